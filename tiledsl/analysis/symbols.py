"""Binding the symbols of shapes and strides from the arguments of a call (language.md 0.19)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tiledsl.analysis.evaluate import evaluate
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.ir import Buffer, Expr, Function, Var
from tiledsl.ir.walk import free_vars, walk

__all__ = ["row_major", "solve"]

Shape = Sequence[int]


@dataclass
class _Equation:
    """expr, a shape or stride of an argument, must equal value."""

    buffer: Buffer
    axis: int
    kind: str  # "shape" | "stride"
    expr: Expr
    value: int
    shape: Shape
    spare: int = 0  # 1 for the last axis of a packed array: its last byte may hold one element only

    @property
    def what(self) -> str:
        return "size" if self.kind == "shape" else "stride"

    def error(self, got: str, help: str) -> TileTypeError:
        return TileTypeError(
            f"argument {self.buffer.name}: {self.what} of axis {self.axis} is {self.value}, but {got}",
            self.buffer.loc,
            (_shape_note(self.buffer, self.shape),),
            help,
        )


def _shape_note(buffer: Buffer, shape: Shape) -> str:
    return f"{buffer.name} has shape {tuple(shape)} and dtype {buffer.dtype}"


def row_major(shape: Shape, packed: bool = False) -> tuple[int, ...]:
    """Strides, in elements, of a contiguous array; rows of a packed dtype begin at bytes."""
    strides, step = [], 1
    for axis, extent in reversed(list(enumerate(shape))):
        strides.append(step)
        step *= extent + (extent & 1) if packed and axis == len(shape) - 1 else extent
    return tuple(reversed(strides))


def solve(
    function: Function,
    shapes: Sequence[Shape | None],
    strides: Sequence[Shape | None],
    known: Mapping[Var, int] | None = None,
) -> dict[Var, int]:
    """Values of the function's symbols.

    shapes, strides: one entry per tensor parameter, in the order of `function.buffers`; strides in elements, None =
    contiguous; a shape of None = absent argument. known: values of integer scalar parameters, which expressions may
    use too. Shapes bind first, then strides; what is over-determined is checked. Strides of axes of extent 0 or 1
    are ignored; a symbol that only they mention gets the stride of a contiguous array. Raises TileTypeError (rank,
    shape or stride differs) or TileValueError (undetermined, out of range).
    """
    env: dict[Var, int] = dict(known or {})
    by_shape: list[_Equation] = []
    by_width: list[_Equation] = []  # an array of bytes says how many elements there are, or one more than there are
    by_stride: list[_Equation] = []
    packed: list[tuple[Buffer, Shape, Shape]] = []
    free: dict[Var, int] = {}  # strides that no element's address depends on: what a contiguous array would have
    for buffer, shape, stride in zip(function.buffers, shapes, strides, strict=True):
        if shape is None:
            continue
        if len(shape) != buffer.rank:
            raise TileTypeError(
                f"argument {buffer.name} has {len(shape)} axes, expected {buffer.rank}",
                buffer.loc,
                (_shape_note(buffer, shape),),
                f"index or reshape it to {buffer.rank} axes",
            )
        for i, (e, v) in enumerate(zip(buffer.shape, shape, strict=True)):
            spare = int(buffer.dtype.is_packed and i == buffer.rank - 1)
            (by_width if spare else by_shape).append(_Equation(buffer, i, "shape", e, v, shape, spare))
        actual = row_major(shape) if stride is None else stride
        if any(s < 0 and n > 1 for s, n in zip(actual, shape, strict=True)):
            raise TileTypeError(
                f"argument {buffer.name} has a negative stride: {tuple(actual)} elements",
                buffer.loc,
                (_shape_note(buffer, shape),),
                "pass a copy, for example numpy.ascontiguousarray(x)",
            )
        if buffer.strides is None:
            packed.append((buffer, shape, actual))
            continue
        for i, (e, v, n) in enumerate(zip(buffer.strides, actual, shape, strict=True)):
            if n > 1 and 0 not in shape:
                by_stride.append(_Equation(buffer, i, "stride", e, v, shape))
            elif isinstance(e, Var):
                free.setdefault(e, row_major(shape)[i])
    _bind(by_shape, env)
    _bind(by_width, env)
    _bind(by_shape, env)  # what the widths have told
    _bind(by_stride, env)
    env = {**free, **env}
    for buffer, shape, actual in packed:
        _check_packed(buffer, shape, actual)
    if any(s not in env for s in function.symbols):
        env = {**_of_no_consequence(function, shapes), **env}
    return {s: _checked(s, env, function, shapes) for s in function.symbols}


def _of_no_consequence(function: Function, shapes: Sequence[Shape | None]) -> dict[Var, int]:
    """0 for the symbols that only absent arguments mention, and on which nothing in the kernel depends."""
    nodes = [*(n for k in function.kernels for n in walk(k)), *function.workspaces]
    outputs = {function.params[i].buffer for i in function.outputs}
    given = [b for b, s in zip(function.buffers, shapes, strict=True) if s is not None or b in outputs]
    seen = [e for b in (*given, *nodes) if isinstance(b, Buffer) for e in (*b.shape, *(b.strides or ()))]
    used = {v for v in nodes if isinstance(v, Var)}.union(*map(free_vars, seen))
    return {s: 0 for s in function.symbols if s not in used}


def _bind(equations: list[_Equation], env: dict[Var, int]) -> None:
    """Solves what has one unknown until nothing changes, then checks everything that has a value."""
    pending, progress = equations, True
    while progress:
        progress, later = False, []
        for q in pending:
            unknown = [v for v in free_vars(q.expr) if v not in env]
            if not unknown:
                continue
            if len(unknown) == 1 and _solve_one(q, unknown[0], env):
                progress = True
            else:
                later.append(q)
        pending = later
    for q in equations:
        if any(v not in env for v in free_vars(q.expr)):
            continue
        expected = evaluate(q.expr, env)
        if expected not in (q.value, q.value - q.spare):
            names = ", ".join(f"{v.name} = {env[v]}" for v in sorted(free_vars(q.expr), key=lambda v: v.name))
            known = f" ({names} from other axes or arguments)" if names else ""
            raise q.error(f"expected {expected}{known}", f"give that axis the {q.what} {expected}")


def _solve_one(q: _Equation, unknown: Var, env: dict[Var, int]) -> bool:
    """expr == value for a linear expression of one unknown; False where it is not linear in it."""
    if q.expr is unknown:
        env[unknown] = q.value
        return True
    at = [evaluate(q.expr, {**env, unknown: x}) for x in (0, 1, 2)]
    slope = at[1] - at[0]
    if slope == 0 or at[2] - at[1] != slope:
        return False
    solution, rest = divmod(q.value - at[0], slope)
    below = evaluate(q.expr, {**env, unknown: solution})
    if (rest or below != q.value) and below != q.value - q.spare:
        raise q.error(f"no integer {unknown.name} gives that {q.what}", f"{unknown.name} = {solution} gives {below}")
    env[unknown] = solution
    return True


def _check_packed(buffer: Buffer, shape: Shape, actual: Shape) -> None:
    if 0 in shape:
        return
    expected = row_major(shape)
    if any(a != e for a, e, n in zip(actual, expected, shape, strict=True) if n > 1):
        raise TileTypeError(
            f"argument {buffer.name} must be contiguous (row-major): strides are {tuple(actual)}, expected {expected}"
            " elements",
            buffer.loc,
            (_shape_note(buffer, shape),),
            "pass a contiguous copy, or declare the parameter as T.StridedTensor",
        )


def _checked(symbol: Var, env: dict[Var, int], function: Function, shapes: Sequence[Shape | None]) -> int:
    if symbol not in env:
        outputs = {function.params[i].buffer for i in function.outputs}
        absent = [b.name for b, s in zip(function.buffers, shapes, strict=True) if s is None and b not in outputs]
        note = (f"these arguments are None: {', '.join(absent)}",) if absent else ()
        raise TileValueError(
            f"the value of {symbol.name} does not follow from the arguments",
            symbol.loc,
            note,
            f"use {symbol.name} itself as one axis (or stride) of a tensor parameter",
        )
    value = env[symbol]
    if value < 0:
        notes = tuple(_shape_note(b, s) for b, s in zip(function.buffers, shapes, strict=True) if s is not None)
        raise TileValueError(
            f"{symbol.name} = {value}: an extent cannot be negative",
            symbol.loc,
            notes[:4],
            f"pass arrays from whose shapes {symbol.name} >= 0 follows",
        )
    if symbol.dtype.bits < 64 and value > 2**31 - 1:
        raise TileValueError(
            f"{symbol.name} = {value} does not fit {symbol.dtype}",
            symbol.loc,
            help=f'declare it as T.dynamic("{symbol.name}", "int64")',
        )
    return value
