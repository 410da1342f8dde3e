"""Reducers: each element has 16 partials in scratch memory; finalizing combines them 8-4-2-1, as T.reduce does.

Partials lie in front of the elements, or behind them where the axis that becomes vector lanes is one that is reduced:
then the 16 lanes are the 16 partials.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

from tiledsl import ir
from tiledsl.ir.arithmetic import accumulator
from tiledsl.ir.walk import walk

from .boundary import inline_integer_lets
from .context import Context, Lane, Partials
from .nest import choose_axis, moves
from .reduce import Reduction, finish, horizontal, tree
from .rows import strips
from .values import index, lie_of, store_value, value, vector
from .wide import I64, LANES, ZERO, factor, i64, narrow

__all__ = ["lower_reducer", "plan_reducers"]


def plan_reducers(cx: Context, kernel: ir.Kernel) -> None:
    """Room for the partials of every reducer of a kernel."""
    behind: dict[ir.Buffer, bool] = {}
    for n in walk(kernel.body):
        if isinstance(n, ir.ReducerOp):
            behind.setdefault(n.buffer, False)
        if isinstance(n, ir.Parallel):
            nest = inline_integer_lets(n)
            axis, _ = choose_axis(cx, nest)
            for s in walk(nest.body):
                if axis is not None and isinstance(s, ir.ReducerOp):
                    behind[s.buffer] = behind.get(s.buffer) or not moves(nest, axis, s.indices)
    for b, last in behind.items():
        shape, t = b.const_shape or (), accumulator(b.dtype)
        room = cx.scratch(f"{b.name}_partials", t, (*shape, LANES) if last else (LANES, *shape))
        cx.reducers[b] = Partials(room, last)


def lower_reducer(cx: Context, s: ir.ReducerOp) -> None:
    """One step of a reducer."""
    p, red = cx.reducers[s.buffer], Reduction(s.op, accumulator(s.buffer.dtype))
    if s.action == "update":
        _update(cx, s, p, red)
        return
    if s.action == "init":
        assert s.value is not None
        place = cx.places[s.buffer]
        v = value(cx, s.value)
        for idx, mask in _vectors(cx, place.buffer):
            x = store_value(cx, Lane(vector(cx, v, place.logical), None), place)
            cx.emit(ir.Store(place.buffer, idx, x, mask, True))
    else:
        _finalize(cx, s, p, red)
    for idx, mask in _vectors(cx, p.buffer):
        cx.emit(ir.Store(p.buffer, idx, ir.Broadcast(red.identity(), LANES), mask, True))


def _vectors(cx: Context, b: ir.Buffer) -> Iterator[tuple[tuple[ir.Expr, ...], ir.Expr | None]]:
    """All of a buffer, 16 elements at a time: (indices, mask)."""
    with ExitStack() as loops:
        lead = [loops.enter_context(cx.loop(f"r{d}", n)) for d, n in enumerate(b.shape[:-1])]
        for j, mask in strips(cx, b.shape[-1]):
            yield (*lead, j), mask


def _update(cx: Context, s: ir.ReducerOp, p: Partials, red: Reduction) -> None:
    assert s.value is not None
    at = [index(cx, i) for i in s.indices]
    k = _partial(cx, s, red, all(v.coef == 0 for v in at))
    idx, how = lie_of(cx, p.buffer, [*at, k] if p.behind else [k, *at])
    v, t = value(cx, s.value), red.t
    if how == 0:
        x = v.expr if t.is_float else narrow(v.expr, t)
        at_one = tuple(cx.let("at", i) for i in idx)
        old = ir.Load(p.buffer, at_one, proved=True)
        cx.emit(ir.Store(p.buffer, at_one, red.combine(old, x), proved=True))
        return
    assert cx.lane is not None
    lanes = LANES if how == 1 else 1
    idx = tuple(cx.let("at", i) for i in idx)
    old = ir.Load(p.buffer, idx, cx.lane.mask, lanes, True)
    new = red.combine(old, vector(cx, v, s.buffer.dtype))
    cx.emit(ir.Store(p.buffer, idx, new, cx.lane.mask, True))


def _partial(cx: Context, s: ir.ReducerOp, red: Reduction, fixed: bool) -> Lane:
    """Which partial. fixed: all lanes contribute to one element, so they must take different partials."""
    if red.op == "add" and red.t.is_float:
        lane = Lane(ZERO) if s.lane is None else index(cx, s.lane)
        if lane.coef == 1 and cx.lane is not None and factor(lane.expr, cx.lane.base) % LANES == 0:
            return Lane(ZERO, 1)
        if lane.coef == 0:
            return Lane(ir.Binary("bitand", lane.expr, i64(LANES - 1)))
        wide = ir.Binary("bitand", vector(cx, lane, I64), ir.Broadcast(i64(LANES - 1), LANES))
        return Lane(wide, None)
    return Lane(ZERO, 1) if fixed and cx.lane is not None else Lane(ZERO)  # elsewhere the order does not show


def _finalize(cx: Context, s: ir.ReducerOp, p: Partials, red: Reduction) -> None:
    place = cx.places[s.buffer]
    shape = tuple(i64(n) for n in s.buffer.const_shape or ())
    old = ir.Const(False, ir.BOOL)  # the start value joins last
    if p.behind:
        with ExitStack() as loops:
            idx = tuple(loops.enter_context(cx.loop(f"r{d}", n)) for d, n in enumerate(shape))
            total = horizontal(cx, red, ir.Load(p.buffer, (*idx, ZERO), None, LANES, True))
            finish(cx, red, old, place, idx, total, None)
        return
    for idx, mask in _vectors(cx, place.buffer):
        regs = []
        for k in range(LANES):
            x = ir.Load(p.buffer, (i64(k), *idx), mask, LANES, True)
            regs.append(cx.var(f"p{k}", red.t.with_lanes(LANES), x))
        finish(cx, red, old, place, idx, tree(cx, red, regs), mask, True)
