"""Loop headers (`T.serial`, `T.Parallel`, `T.grid`, ...) and the opening and closing of staged loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType, promote
from tiledsl.errors import Loc, TileNotImplementedError, TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.builder import Block, Builder
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import INT32, convert, is_number
from tiledsl.frontend.values import IndexTuple, Value, index_expr
from tiledsl.ir import Const, Expr, For, If, Parallel, Var
from tiledsl.ir.walk import free_vars

__all__ = ["LoopSpec", "OpenLoop", "close_loop", "open_loop"]


# From the loop's variable: whether there is an iteration, and then (in its block) what the `for` targets get.
Decode = Callable[[Value], tuple[Value, Callable[[], tuple[Value, ...]]]]


@dataclass(eq=False)
class LoopSpec:
    """What stands after `in`. ranges: (start, stop, step) per axis, all of one dtype per axis.
    decode: the targets are not the loop variables but computed from them."""

    what: str
    kind: str  # "serial" | "pipelined" | "unroll" | "vectorized" | "parallel"
    ranges: tuple[tuple[Expr, Expr, Expr], ...]
    annotations: tuple[tuple[str, Any], ...] = ()
    loc: Loc | None = None
    decode: Decode | None = None

    @classmethod
    def serial(
        cls, what: str, start: Any, stop: Any = None, step: Any = None, kind: str = "serial",
        annotations: tuple[tuple[str, Any], ...] = (),
    ) -> LoopSpec:  # fmt: skip
        """A loop over range(start, stop, step), or range(start)."""
        if stop is None:
            start, stop = 0, start
        step = 1 if step is None else step
        if is_number(step) and step == 0:
            raise error("zero-step", TileValueError, f"{what}: the step is 0", help="leave it out, or pass 1 or -1")
        bounds = [index_expr(x, f"{what}: {name}") for x, name in ((start, "start"), (stop, "stop"), (step, "step"))]
        dtype: DType = INT32
        for b in bounds:
            if isinstance(b, Const) and b.value >= 1 << 63:
                raise error(
                    "literal-range",
                    TileTypeError,
                    f"{what}: a loop cannot count to {b.value}",
                    help="bounds are below 2**63",
                )
            dtype = promote(dtype, b.dtype)
        first, last, by = (_in(b, dtype) for b in bounds)
        return cls(what, kind, ((first, last, by),), annotations, here())

    @classmethod
    def nest(
        cls, what: str, kind: str, extents: tuple[Any, ...], annotations: tuple[tuple[str, Any], ...] = ()
    ) -> LoopSpec:
        """A nest of loops from 0."""
        if not extents:
            raise error("no-extents", TileTypeError, f"{what} needs at least one extent")
        ranges = tuple(cls.serial(what, e).ranges[0] for e in extents)
        return cls(what, kind, ranges, annotations, here())

    def __iter__(self) -> Iterator[Any]:  # the type that loop variables have for type checkers
        raise error(
            "loop-not-in-for",
            TileSyntaxError,
            f"{self.what} can only stand in a `for` statement of a kernel or macro",
            loc=self.loc,
            help="in comprehensions and helpers use Python's range with Python ints",
        )


def _in(e: Expr, dtype: DType) -> Expr:
    return Const(e.value, dtype, loc=e.loc) if isinstance(e, Const) else convert(e, dtype)


@dataclass(eq=False)
class OpenLoop:
    """A loop whose body is being traced; `values` is what the `for` targets get."""

    spec: LoopSpec
    vars: tuple[Var, ...]
    blocks: list[Block]
    loc: Loc | None
    targets: tuple[Value, ...]
    guard: tuple[Expr, Block] | None = None

    @property
    def values(self) -> Any:
        count = len(self.targets)
        names = ", ".join("ijklmn"[:count])
        return (
            IndexTuple(self.targets, f"name each: `for {names} in {self.spec.what}(...)`")
            if count > 1
            else self.targets[0]
        )


def open_loop(builder: Builder, spec: LoopSpec, targets: tuple[str, ...]) -> OpenLoop:
    """Begins a staged loop; the next statements are its body."""
    loc = spec.loc
    if not builder.in_kernel:
        raise error(
            "loop-outside-kernel",
            TileSyntaxError,
            f"{spec.what} must be inside `with T.Kernel(...)`",
            help="begin with `with T.Kernel(blocks, threads=128) as bx:`; outside of it loop over Python lists",
        )
    names = targets if len(targets) == len(spec.ranges) else tuple(f"i{k}" for k in range(len(spec.ranges)))
    variables = tuple(Var(n, r[0].dtype, loc=loc) for n, r in zip(names, spec.ranges, strict=True))
    for bounds in spec.ranges:
        for b in bounds:
            builder.check(b, loc)
    blocks: list[Block] = []
    if spec.kind == "parallel":
        _check_nesting(builder, spec)
        blocks.append(builder.push("parallel", loc))
        blocks[0].nest = tuple((v, bounds[1]) for v, bounds in zip(variables, spec.ranges, strict=True))
        for v in variables:
            builder.define(v)
    else:
        for v in variables:
            blocks.append(builder.push("for", loc))
            builder.define(v)
    values = tuple(Value(v) for v in variables)
    if spec.decode is None:
        return OpenLoop(spec, variables, blocks, loc, values)
    inside, coordinates = spec.decode(values[0])
    builder.check(inside.expr, loc)
    guard = inside.expr, builder.push("if", loc)
    made = coordinates()
    names = targets if len(targets) == len(made) else tuple(f"i{k}" for k in range(len(made)))
    lets = tuple(Value(builder.let(n, v.typed)) for n, v in zip(names, made, strict=True))
    return OpenLoop(spec, variables, blocks, loc, lets, guard)


def _check_nesting(builder: Builder, spec: LoopSpec) -> None:
    outer = builder.inside("parallel")
    if outer is None:
        return
    if builder.blocks[-1] is not outer or outer.statements:
        raise error(
            "parallel-nesting",
            TileSyntaxError,
            "a T.Parallel inside another one must follow it directly",
            notes=(f"the outer one begins at {outer.loc}",),
            help="use one T.Parallel over all axes, or T.serial inside",
        )
    bound = {v for v, block in builder.owner.items() if block is outer and isinstance(v, Var)}
    if any(free_vars(r[1]) & bound for r in spec.ranges):
        raise error(
            "ragged-parallel",
            TileNotImplementedError,
            "the extent of a nested T.Parallel depends on the outer one: not supported yet",
            help="use the largest extent and an `if` inside",
        )


def close_loop(builder: Builder, loop: OpenLoop) -> None:
    """Ends the body and emits the loop."""
    spec = loop.spec
    if loop.guard is not None:
        cond, block = loop.guard
        builder.emit(If(cond, builder.pop(block), loc=loop.loc), spec.what, checked=True)
    if spec.kind == "parallel":
        body = builder.pop(loop.blocks[0])
        extents = tuple(stop for _, stop, _ in spec.ranges)
        variables = loop.vars
        inner = next((s for s in body if isinstance(s, Parallel)), None)
        if inner is not None:
            if len(body) > 1:
                raise error(
                    "parallel-nesting-after",
                    TileSyntaxError,
                    "a T.Parallel inside another one must be its only statement",
                    loc=inner.loc,
                    notes=(f"the outer one begins at {loop.loc}",),
                    help="use one T.Parallel over all axes",
                )
            variables, extents, body = variables + inner.vars, extents + inner.extents, inner.body
        made: For | Parallel = Parallel(variables, extents, body, spec.annotations, loc=loop.loc)
        builder.emit(made, spec.what, checked=True)
        return
    for var, block, (start, stop, step) in reversed(list(zip(loop.vars, loop.blocks, spec.ranges, strict=True))):
        body = builder.pop(block)
        made = For(var, start, stop, step, body, spec.kind, spec.annotations, loc=loop.loc)
        builder.emit(made, spec.what, checked=True)
