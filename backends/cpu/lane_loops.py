"""Loops that vector lanes leave one by one, and atomics of lanes, inside a nest over the threads of a block."""

from __future__ import annotations

from collections.abc import Callable

from tiledsl import ir
from tiledsl.analysis.scopes import jumps_out
from tiledsl.dtypes import DType

from .context import Context, Lane, get, put
from .storage import held
from .values import as_held, bool_mask, index, lazily, value, vector
from .wide import BOOL, FALSE, I64, LANES, TRUE, ZERO, add, i64, mul, narrow

__all__ = ["lane_atomic", "lane_bounds", "lane_for", "lane_leave", "lane_while", "only_here"]

Body = Callable[[Context, tuple[ir.Stmt, ...]], None]
_MASK = BOOL.with_lanes(LANES)


def any_lane(mask: ir.Expr) -> ir.Expr:
    return ir.Call("any", (mask,), BOOL)


def only_here(cx: Context) -> None:
    """What follows is for the lanes that are still in this round."""
    assert cx.lane is not None and cx.lane.exits is not None
    cx.lane.mask = cx.let("m", ir.Binary("and", _mask(cx), get(cx.lane.exits[1])))


def _mask(cx: Context) -> ir.Expr:
    assert cx.lane is not None
    return ir.Broadcast(TRUE, LANES) if cx.lane.mask is None else cx.lane.mask


def lane_leave(cx: Context, s: ir.Break | ir.Continue) -> None:
    """The lanes that are here leave the loop, or the round."""
    assert cx.lane is not None and cx.lane.exits is not None
    gone = ir.Unary("not", _mask(cx))
    for register in cx.lane.exits if isinstance(s, ir.Break) else cx.lane.exits[1:]:
        cx.emit(put(register, ir.Binary("and", get(register), gone)))


def _round(cx: Context, going: ir.Buffer, body: tuple[ir.Stmt, ...], lower: Body) -> None:
    """One round for the lanes that go on."""
    lane = cx.lane
    assert lane is not None
    here = cx.var("here", _MASK, get(going))
    outer = lane.exits
    with lazily(cx, None):
        lane.mask, lane.exits = cx.let("m", get(going)), (going, here)
        lower(cx, body)
        lane.exits = outer


def _stop_if_none(cx: Context, going: ir.Buffer) -> None:
    cx.emit(ir.If(ir.Unary("not", any_lane(get(going))), (ir.Break(),)))


def lane_for(cx: Context, s: ir.For, lower: Body) -> bool:
    """A loop whose bounds differ between lanes, or that they leave early; False where neither is so."""
    start, stop, step = (value(cx, e) for e in (s.start, s.stop, s.step))
    even = start.coef == stop.coef == step.coef == 0
    if even and not any(map(jumps_out, s.body)):
        return False
    t = s.var.type
    going = cx.var("going", _MASK, _mask(cx))
    if even:
        var = ir.Var(s.var.name, I64)
        cx.env[s.var] = Lane(var if t.name != "uint64" else ir.Cast(var, t))
        with cx.block() as body, cx.scope() as facts:
            facts.bind(s.var, s.start, s.stop, s.step)
            _stop_if_none(cx, going)
            _round(cx, going, s.body, lower)
        first, end, by = (e.expr if t.name != "uint64" else ir.Cast(e.expr, I64) for e in (start, stop, step))
        cx.emit(ir.For(var, first, end, by, tuple(body), s.kind, s.annotations))
        return True
    count = cx.var(s.var.name, t.with_lanes(LANES), vector(cx, start, t))
    last, stride = cx.let("last", vector(cx, stop, t)), cx.let("by", vector(cx, step, t))
    down = isinstance(s.step, ir.Const) and s.step.value < 0

    def inside() -> ir.Stmt:
        return put(going, ir.Binary("and", get(going), ir.Binary("gt" if down else "lt", get(count), last)))

    cx.emit(inside())
    with cx.block() as body, cx.scope() as facts:
        facts.bind(s.var, s.start, s.stop, s.step)
        cx.env[s.var] = Lane(cx.let(s.var.name, get(count)), None)
        _round(cx, going, s.body, lower)
        cx.emit(put(count, ir.Binary("add", get(count), stride)))
        cx.emit(inside())
    cx.emit(ir.While(any_lane(get(going)), tuple(body)))
    return True


def lane_while(cx: Context, s: ir.While, lower: Body) -> None:
    """Rounds for the lanes whose condition holds, while there are any."""
    assert cx.lane is not None
    going = cx.var("going", _MASK, _mask(cx))
    with cx.block() as body:
        with lazily(cx, None):
            cx.lane.mask = cx.let("m", get(going))
            holds = bool_mask(cx, value(cx, s.cond))
            cx.emit(put(going, ir.Binary("and", get(going), holds)))
        _stop_if_none(cx, going)
        _round(cx, going, s.body, lower)
    cx.emit(ir.While(TRUE, tuple(body)))


def lane_atomic(cx: Context, s: ir.Atomic, lower: Callable[[Context, ir.Atomic], None]) -> None:
    """The lanes one after the other, each as `lower` does it."""
    lane = cx.lane
    assert lane is not None
    number = ir.Var("lane", I64)
    at = tuple(_of_lane(cx, index(cx, i), I64, number) for i in s.indices)
    operand = None if s.value is None else _of_lane(cx, value(cx, s.value), s.value.dtype, number)
    here = None if lane.mask is None else _spilled(cx, lane.mask, number)
    t = s.buffer.dtype
    old = None if s.result is None else cx.scratch("old", held(t), (LANES,))
    with cx.block() as body, cx.when(here):
        cx.lane = None
        lower(cx, s.replace(indices=at, value=operand))
        cx.lane = lane
        if old is not None and s.result is not None:
            found = cx.env[s.result].expr
            cx.emit(ir.Store(old, (number,), narrow(found, t) if t.is_int else found, proved=True))
    cx.emit(ir.For(number, ZERO, i64(LANES), i64(1), tuple(body)))
    if old is not None and s.result is not None:
        cx.env[s.result] = Lane(cx.let(s.result.name, ir.Load(old, (ZERO,), lane.mask, LANES, True)), None)


def lane_bounds(cx: Context, s: ir.Debug, lower: Callable[[Context, ir.Debug], None]) -> None:
    """A test of all lanes; where it fails, the first lane tells, as `lower` does it."""
    lane, cond = cx.lane, s.values[0]
    assert lane is not None and isinstance(cond, ir.Expr)
    bad = cx.let("bad", ir.Binary("and", _mask(cx), ir.Unary("not", bool_mask(cx, value(cx, cond)))))
    number = ir.Var("lane", I64)
    with cx.when(any_lane(bad)), lazily(cx, bad):
        shown = [_of_lane(cx, value(cx, v), v.dtype, number) for v in s.values[1:] if isinstance(v, ir.Expr)]
        here = _spilled(cx, bad, number)
        with cx.block() as body, cx.when(here):
            cx.lane = None
            lower(cx, s.replace(values=(FALSE, *shown)))
            cx.lane = lane
        cx.emit(ir.For(number, ZERO, i64(LANES), i64(1), tuple(body)))


def _of_lane(cx: Context, v: Lane, t: DType, lane: ir.Var) -> ir.Var:
    """A variable of the tile stage that stands for what one lane has; t: its type."""
    if v.coef is None:
        x = as_held(_spilled(cx, v.expr, lane), t)
    else:
        x = v.expr if v.coef == 0 else add(v.expr, mul(lane, i64(v.coef)))
    var = ir.Var("of_lane", t)
    cx.env[var] = Lane(x)
    return var


def _spilled(cx: Context, x: ir.Expr, lane: ir.Var) -> ir.Expr:
    """One lane of a vector, by way of memory."""
    row = cx.scratch("lanes", x.dtype.scalar, (LANES,))
    cx.emit(ir.Store(row, (ZERO,), x, proved=True))
    return ir.Load(row, (lane,), proved=True)
