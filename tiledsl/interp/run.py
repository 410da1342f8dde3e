"""Runs a function: binds arguments, compiles each kernel once, walks the grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from tiledsl.analysis.effects import written
from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.meeting import may_wait, waits
from tiledsl.analysis.symbols import solve
from tiledsl.errors import InternalError, TileError, TileRuntimeError, TileTypeError, TileValueError
from tiledsl.interp.blas import one_thread
from tiledsl.interp.checks import Tracker
from tiledsl.interp.coroutines import Scheduler
from tiledsl.interp.nibbles import Nibbles, memory_of
from tiledsl.interp.options import Options, Result, ShadowReport
from tiledsl.interp.scope import BLOCK, RETURNED, SCHEDULER, STEPS, TRACKER, Env, Fn, Scope
from tiledsl.interp.shadow import DOUBTS, Shadowed, lift
from tiledsl.interp.stmt import Statements
from tiledsl.ir import Alloc, Buffer, Function, Kernel, Param, Var, While
from tiledsl.ir.arithmetic import int_range
from tiledsl.ir.layout import positions
from tiledsl.ir.walk import walk

__all__ = ["run"]

_DEFAULT = Options()


@dataclass(frozen=True)
class _Program:
    """One compiled kernel."""

    kernel: Kernel
    scope: Scope
    body: Fn
    views: Any  # makes the views of arguments
    scratch_bytes: int
    waits: bool  # groups of threads, or blocks, may wait for each other

    def begin(self, env: Env) -> None:
        """Gives the environment scratch memory of its own, and the views."""
        if self.scratch_bytes:
            env[self.scope.scratch_slot] = np.zeros(self.scratch_bytes, np.uint8)
        self.views(env)


_PROGRAMS: WeakKeyDictionary[Function, dict[Options, list[_Program]]] = WeakKeyDictionary()


def run(function: Function, args: Sequence[Any], options: Options = _DEFAULT, fresh: bool = True) -> Result:
    """Runs all kernels of a function on the arguments, in place.

    args: one per parameter, in order, outputs included: NumPy arrays of the parameter's dtype (ml_dtypes for the
    narrow floats; any strides), None for a tensor that no kernel uses, Python or NumPy scalars.
    fresh: the outputs' arrays hold nothing yet, so that reading them before, or leaving out elements, is an error where
    poison is checked; False: the caller brought them.
    Raises TileError for wrong arguments and for what the options check; output printed by T.print goes to stdout.
    """
    values, symbols = _bind(function, args)
    if options.conflicts == "report":
        _no_overlap(function, values)
    permuted = _in_logical_order(function, values)
    with np.errstate(all="ignore"):
        programs = _compiled(function, options)
        for buffer in function.workspaces:
            extents = tuple(evaluate(e, symbols) for e in buffer.shape)
            packed = buffer.dtype.is_packed
            values[buffer] = Nibbles.empty(buffer.dtype, extents) if packed else np.zeros(extents, buffer.dtype.numpy)
        if options.shadow:
            plain = {b for b, a in values.items() if a is None or not b.dtype.is_float or b.dtype.is_packed}
            values = {b: a if b in plain else lift(a) for b, a in values.items()}
            doubts = DOUBTS.set([0])
        outputs = [b for i in function.outputs if (b := function.params[i].buffer) is not None] if fresh else []
        tracker = _tracker(function, values, options, outputs) if options.tracks else None
        blocks = steps = 0
        with one_thread():
            for program in programs:
                more = _launch(program, values, symbols, tracker, options)
                blocks, steps = blocks + more[0], steps + more[1]
        if tracker is not None:
            for buffer in outputs:
                tracker.finished(buffer, values[buffer])
        result = Result(blocks, steps if options.count_steps else None)
        if options.shadow:
            result = replace(result, shadow=_shadows(function, values), doubtful=DOUBTS.get()[0])
            DOUBTS.reset(doubts)
    for buffer, (memory, places) in permuted.items():
        memory[places] = values[buffer]
    return result


def _in_logical_order(function: Function, values: dict[Any, Any]) -> dict[Buffer, tuple[Any, Any]]:
    """Arguments with a layout become copies in logical order; per buffer its memory and the place of each element."""
    permuted = {}
    for b in function.buffers:
        if b.layout is not None and values[b] is not None:
            memory = values[b].reshape(-1)
            permuted[b] = memory, positions(b.layout, values[b].shape)
            values[b] = memory[permuted[b][1]]
    return {b: found for b, found in permuted.items() if b in written(function)}


def _shadows(function: Function, values: dict[Any, Any]) -> dict[str, ShadowReport]:
    """Reports of the written float arguments."""
    stored = written(function)
    reports = {}
    for b in function.buffers:
        data = values[b]
        if b in stored and isinstance(data, Shadowed):
            error = np.abs(data.plain.astype(np.float64) - data.value)
            error[(data.plain == data.value) | ((data.plain != data.plain) & (data.value != data.value))] = 0.0
            largest = [float(x.max(initial=0.0)) for x in (error, data.bound)]
            reports[b.name] = ShadowReport(data.value, data.bound, *largest)
    return reports


# -- arguments ---------------------------------------------------------------------------------------------


def _bind(function: Function, args: Sequence[Any]) -> tuple[dict[Any, Any], dict[Var, Any]]:
    """(arrays by buffer, values of scalar parameters and symbols)."""
    if len(args) != len(function.params):
        names = ", ".join(p.name for p in function.params)
        raise TileTypeError(f"{function.name} takes {len(function.params)} arguments ({names}), got {len(args)}")
    used = _used_buffers(function)
    stored = written(function)
    values: dict[Any, Any] = {}
    scalars: dict[Var, Any] = {}
    for p, arg in zip(function.params, args, strict=True):
        if p.var is not None:
            scalars[p.var] = _scalar(p, arg)
        elif p.buffer is not None:
            values[p.buffer] = _array(p, p.buffer, arg, p.buffer in used, p.buffer in stored)
    arrays = [values[b] for b in function.buffers]
    shapes = [None if a is None else _elements(b, a.shape) for a, b in zip(arrays, function.buffers, strict=True)]
    strides = [
        None if a is None or b.strides is None else tuple(_steps(b, a))
        for a, b in zip(arrays, function.buffers, strict=True)
    ]
    known = {v: x for v, x in scalars.items() if not v.dtype.is_float}
    scalars.update(solve(function, shapes, strides, known))
    for b, a in zip(function.buffers, arrays, strict=True):
        if a is not None and b.dtype.is_packed:  # as many elements as the symbols say: the last byte may hold one
            size = 1 + sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)) if a.size else 0
            memory = np.lib.stride_tricks.as_strided(a, (size,), (1,))
            shape = tuple(evaluate(e, scalars) for e in b.shape)
            values[b] = Nibbles.over(memory, b.dtype, shape, tuple(_steps(b, a)))
    return values, scalars


def _elements(buffer: Buffer, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an array in elements of the buffer: two per byte of a packed one."""
    return (*shape[:-1], 2 * shape[-1]) if buffer.dtype.is_packed and shape else shape


def _steps(buffer: Buffer, array: Any) -> list[int]:
    """The strides of an array in elements."""
    steps = [s // array.itemsize for s in array.strides]
    return [*(2 * s for s in steps[:-1]), *steps[-1:]] if buffer.dtype.is_packed else steps


def _used_buffers(function: Function) -> set[Buffer]:
    return {n.root for k in function.kernels for n in walk(k.body) if isinstance(n, Buffer)}


def _scalar(p: Param, arg: Any) -> Any:
    assert p.var is not None
    dtype = p.var.dtype
    if isinstance(arg, np.generic):
        arg = arg.item() if not dtype.is_float else arg
    if dtype.is_float:
        return dtype.numpy.type(arg)
    if dtype.is_bool:
        return bool(arg)
    if isinstance(arg, float) or not hasattr(arg, "__index__"):
        raise TileTypeError(f"argument {p.name} is {type(arg).__name__} {arg!r}, expected an integer ({dtype})")
    value = int(arg)
    low, high = int_range(dtype)
    if not low <= value <= high:
        raise TileValueError(f"argument {p.name} = {value} does not fit {dtype}")
    return value


def _array(p: Param, buffer: Buffer, arg: Any, used: bool, written: bool) -> Any:
    if arg is None:
        if used:
            raise TileTypeError(f"argument {p.name} is None, but the kernel uses it", buffer.loc)
        return None
    if not isinstance(arg, np.ndarray):
        raise TileTypeError(f"argument {p.name} is a {type(arg).__name__}, expected a NumPy array of {buffer.dtype}")
    if buffer.dtype.is_packed and arg.dtype in (np.int8, np.uint8):
        arg = arg.view(np.uint8)
    elif arg.dtype != buffer.dtype.numpy and not (buffer.dtype.is_bool and arg.dtype in (np.int8, np.uint8)):
        raise TileTypeError(f"argument {p.name} has dtype {arg.dtype}, expected {buffer.dtype}", buffer.loc)
    if written and not arg.flags.writeable:
        raise TileValueError(f"argument {p.name} is read-only, but the kernel writes it", buffer.loc)
    return arg.view(np.bool_) if buffer.dtype.is_bool and arg.dtype != np.bool_ else arg


def _no_overlap(function: Function, values: dict[Any, Any]) -> None:
    """Raises TileRuntimeError when a written argument shares memory with another one (language.md 0.20)."""
    arrays = {b: memory_of(values[b]) for b in function.buffers if values[b] is not None}
    stored = written(function)
    for b in [b for b in arrays if b in stored]:
        for other, array in arrays.items():
            if other is not b and np.shares_memory(arrays[b], array):
                raise TileRuntimeError(
                    f"arguments {b.name} and {other.name} share memory, and the kernel writes {b.name}",
                    b.loc or function.loc,
                    help=f"pass a copy of {other.name}",
                )


# -- compilation -------------------------------------------------------------------------------------------


def _compiled(function: Function, options: Options) -> list[_Program]:
    variants = _PROGRAMS.setdefault(function, {})
    programs = variants.get(options)
    if programs is None:
        programs = variants[options] = [_compile(function, k, options) for k in function.kernels]
    return programs


def _compile(function: Function, kernel: Kernel, options: Options) -> _Program:
    scope = Scope(options)
    scalars = [p.var for p in function.params if p.var is not None]
    names: tuple[Var | Buffer, ...] = (
        *scalars,
        *function.buffers,
        *function.symbols,
        *kernel.block_vars,
        *function.workspaces,
    )
    for name in names:
        scope.bind(name)
    statements = Statements(scope, kernel, _views(function, kernel))
    with scope.loop(*kernel.block_vars):
        roots = [*function.buffers, *function.workspaces]
        makers = [statements.bind_views(b) for b in roots] + [statements.bind_view(b) for b in _scratch(kernel)]
        body = statements.kernel_body()

    def views(env: Env) -> None:
        for make in makers:
            make(env)

    together = waits(kernel) or any(isinstance(n, While) and may_wait(n) for n in walk(kernel.body))
    return _Program(kernel, scope, body, views, int(dict(kernel.attrs).get("scratch_bytes", 0)), together)


def _scratch(kernel: Kernel) -> list[Buffer]:
    """Buffers of the loop stage at their place in scratch memory, where no Alloc says so."""
    allocated = {s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)}
    roots = {n.root: None for n in walk(kernel.body) if isinstance(n, Buffer) and n.root.scope == "scratch"}
    return [b for b in roots if b not in allocated]


def _views(function: Function, kernel: Kernel) -> dict[Buffer, list[Buffer]]:
    """Views that have no Alloc of their own, by what they are a view of."""
    allocated = {s.buffer for s in walk(kernel.body) if isinstance(s, Alloc)}
    found: dict[Buffer, list[Buffer]] = {}
    seen: set[Buffer] = set()

    def visit(buffer: Buffer) -> None:
        if buffer in seen or buffer in allocated or buffer.alias_of is None:
            return
        seen.add(buffer)
        found.setdefault(buffer.alias_of, []).append(buffer)
        visit(buffer.alias_of)

    for n in walk(kernel.body):
        if isinstance(n, Buffer):
            visit(n)
    return found


def _tracker(function: Function, values: dict[Any, Any], options: Options, outputs: Sequence[Buffer]) -> Tracker:
    grains: dict[Buffer, int] = {}
    for kernel in function.kernels:
        for n in walk(kernel.body):
            if isinstance(n, Buffer):
                grains[n.root] = min(grains.get(n.root, 1 << 30), n.dtype.numpy.itemsize)
    tracker = Tracker(options, grains)
    for buffer, data in values.items():
        if data is not None:
            fresh = buffer in outputs or buffer in function.workspaces
            tracker.allocate(buffer, data, written=not fresh)
    return tracker


# -- launch ------------------------------------------------------------------------------------------------


def _launch(
    program: _Program, values: dict[Any, Any], symbols: dict[Var, Any], tracker: Tracker | None, options: Options
) -> tuple[int, int]:
    """(blocks, steps) of one kernel."""
    scope, kernel = program.scope, program.kernel
    env: Env = [None] * scope.size
    env[STEPS], env[TRACKER] = 0, tracker
    for name, value in (*values.items(), *symbols.items()):
        if name in scope.slots:
            env[scope.slots[name]] = value
    grid = [evaluate(e, symbols) for e in kernel.grid]
    if any(n < 0 for n in grid):
        raise TileValueError(f"{kernel.name}: the grid {tuple(grid)} has a negative extent", kernel.loc)
    total = int(np.prod(grid, dtype=np.int64)) if grid else 1
    order: Sequence[int] = range(total)
    if options.block_order is not None:
        order = np.random.default_rng(options.block_order).permutation(total).tolist()
    slots = [scope.slots[v] for v in kernel.block_vars]
    if tracker is not None:
        tracker.new_launch()
    body = program.body

    def block(env: Env, number: int) -> None:
        env[BLOCK] = rest = number
        for slot, extent in zip(slots, grid, strict=False):
            rest, env[slot] = divmod(rest, extent)
        env[RETURNED] = False
        body(env, None)

    try:
        program.begin(env)
        if program.waits:
            _launch_together(order, env, program, block)
        else:
            for number in order:
                block(env, number)
    except (TileError, KeyboardInterrupt, MemoryError):
        raise
    except Exception as e:
        raise InternalError(f"interpreter: {type(e).__name__}: {e} in block {env[BLOCK]}", kernel.loc) from e
    return total, env[STEPS]


def _launch_together(order: Sequence[int], env: Env, program: _Program, block: Callable[[Env, int], None]) -> None:
    """All blocks as coroutines, each with an environment of its own."""
    env[SCHEDULER] = scheduler = Scheduler(len(order))
    tracker = env[TRACKER]
    cells = {} if tracker is None else tracker.cells

    def job(number: int) -> Callable[[], None]:
        def run() -> None:
            if tracker is not None:
                tracker.resume((dict(cells), None, "iteration"))  # what the block allocates is its own
            own, steps = list(env), env[STEPS]
            if program.scratch_bytes:
                program.begin(own)
            block(own, number)
            env[STEPS] += own[STEPS] - steps

        return run

    scheduler.run([job(number) for number in order])
    if tracker is not None:
        tracker.resume((cells, None, "iteration"))
