"""Tile stage -> loop stage, statement by statement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from tiledsl import ir
from tiledsl.analysis.bounds import kernel_facts
from tiledsl.analysis.remarks import remark
from tiledsl.analysis.scopes import jumps_out
from tiledsl.dtypes import DType
from tiledsl.ir.walk import map_kernels, walk

from .boundary import inline_integer_lets, split_boundary
from .context import Context, Lane, get, put, vload, vstore
from .gemm import lower_gemm
from .lane_loops import any_lane, lane_atomic, lane_bounds, lane_for, lane_leave, lane_while, only_here
from .nest import lower_parallel
from .nibbles import encoded, holder, replaced
from .pack import fill_panels, pack_copy
from .plan import plan_scratch
from .reduce import lower_reduce
from .reducer import lower_reducer, plan_reducers
from .scan import lower_scan
from .storage import Place, global_place, place_buffers, place_workspaces
from .strides import pend, stride_of, unrolled
from .tables import spelt
from .values import (
    address,
    as_held,
    bool_mask,
    encode,
    lazily,
    lie_of,
    nibble_address,
    place_of,
    round_to,
    scalar,
    store_pending,
    store_value,
    value,
    vector,
)
from .wide import F32, FALSE, I64, LANES, TRUE, i64, narrow, widen

__all__ = ["Lower"]


@dataclass(frozen=True)
class Lower:
    """The lowering as a pass. Needs moves expanded (except copies into packed tiles) and accesses guarded."""

    name: ClassVar[str] = "lower_cpu"

    def __call__(self, function: ir.Function) -> ir.Function:
        places = place_workspaces(function)
        lowered: ir.Function = map_kernels(lambda k: _kernel(function, k, places), function)
        workspaces = tuple(places[w].buffer for w in function.workspaces)
        loops: ir.Function = lowered.replace(stage="loop", workspaces=workspaces)
        return loops


def _kernel(function: ir.Function, kernel: ir.Kernel, workspaces: dict[ir.Buffer, Place]) -> ir.Kernel:
    cx = Context(place_buffers(function, kernel, workspaces), kernel_facts(function, kernel))
    for s in function.symbols:
        cx.env[s] = Lane(widen(s))
    for p in function.params:
        if p.var is not None:
            cx.env[p.var] = Lane(_parameter(p.var))
    block_vars = []
    for v in kernel.block_vars:
        wide = ir.Var(v.name, I64)
        block_vars.append(wide)
        cx.env[v] = Lane(wide)
    plan_reducers(cx, kernel)
    lower_block(cx, kernel.body)
    lowered = kernel.replace(block_vars=tuple(block_vars), body=tuple(cx.out))
    return plan_scratch(lowered, [p.buffer for p in cx.places.values()] + [p.buffer for p in cx.temps])


def _parameter(v: ir.Var) -> ir.Expr:
    if v.type.is_narrow:
        return ir.Cast(v, F32)
    return widen(v) if v.type.is_int and v.type.name != "uint64" else v


def lower_block(cx: Context, body: tuple[ir.Stmt, ...]) -> None:
    _statements(cx, body)
    store_pending(cx)


def _statements(cx: Context, body: tuple[ir.Stmt, ...]) -> None:
    for s in body:
        if not isinstance(s, (ir.Let, ir.Store)):
            store_pending(cx)
        outer, cx.loc = cx.loc, s.loc or cx.loc
        _HANDLERS[type(s)](cx, s)
        if cx.lane is not None and cx.lane.exits is not None and jumps_out(s):
            only_here(cx)
        cx.loc = outer


def _at_address(cx: Context, b: ir.Buffer) -> None:
    """A tensor at an address that the kernel computes."""
    assert b.base is not None
    strides = None if b.strides is None else tuple(cx.let("stride", scalar(cx, e)) for e in b.strides)
    shape = tuple(cx.let("extent", scalar(cx, e)) for e in b.shape)
    made = b.replace(base=cx.let("address", scalar(cx, b.base)), shape=shape, strides=strides)
    cx.places[b] = global_place(made)
    cx.emit(ir.Alloc(made))


def _alloc(cx: Context, s: ir.Alloc) -> None:
    if s.buffer.base is not None:
        _at_address(cx, s.buffer)
        return
    place = cx.places[s.buffer]
    if place.kind != "var":
        return
    lanes = 1 if cx.lane is None else LANES
    buffer = ir.Buffer(place.buffer.name, place.buffer.dtype.scalar.with_lanes(lanes), place.buffer.shape, "var")
    cx.places[s.buffer] = place = Place("var", buffer, place.logical)
    init = None
    if s.init is not None:
        v = value(cx, s.init)
        init = store_value(cx, v, place) if cx.lane is None else vector(cx, v, place.logical)
    cx.emit(ir.Alloc(buffer, init))


def _let(cx: Context, s: ir.Let) -> None:
    v = value(cx, s.value)
    if s.var.type.is_int:
        cx.facts.let(s.var, s.value)
    if cx.lane is not None and (known := spelt(s.value, cx.lane.spelt)) is not None:
        cx.lane.spelt[s.var] = known
    if cx.lane is not None and any(v is h for h in cx.lane.hoisted.values()):
        cx.lane.inner.discard(s.var)
        cx.env[s.var] = v
    else:
        cx.env[s.var] = Lane(cx.let(s.var.name, v.expr), v.coef)


def _store_nibble(cx: Context, s: ir.Store) -> None:
    """The other half of the byte stays. No two lanes share a byte (`nest.py`)."""
    place, idx, lie, odd = nibble_address(cx, s.buffer, s.indices)
    t, mask = place.logical, cx.lane.mask if cx.lane is not None and lie != 0 else None
    v = value(cx, s.value)
    x = _as_byte(v.expr, t) if lie == 0 else vector(cx, v, t)
    at = tuple(cx.let("at", i) for i in idx)
    code = cx.let("code", encoded(cx.let("x", x), t))
    byte = cx.let("byte", ir.Load(place.buffer, at, mask, LANES if lie == 1 else 1, True))
    cx.emit(ir.Store(place.buffer, at, replaced(byte, odd, code), mask, True))


def _as_byte(x: ir.Expr, t: DType) -> ir.Expr:
    return x if t.is_float else narrow(x, holder(t))


def _store(cx: Context, s: ir.Store) -> None:
    if cx.places[s.buffer].nibbles:
        _store_nibble(cx, s)
        return
    place, at = place_of(cx, s.buffer, s.indices)
    v = value(cx, s.value)
    mask = None
    if cx.lane is not None:
        mask, root = cx.lane.mask, s.buffer.root
        cx.lane.drawn = {k: known for k, known in cx.lane.drawn.items() if known[2] is not root}
        found = None if place.kind == "var" else stride_of(cx, place, at)
        if any(
            of is root and key[:3] != (place.buffer, *(found or ())[:2]) for key, (of, *_) in cx.lane.pending.items()
        ):
            store_pending(cx, root)
        if found is not None:
            for where, x in pend(cx, root, place, found, vector(cx, v, place.logical)):
                x = encode(x, place.buffer.dtype) if place.buffer.dtype.is_narrow else x
                cx.emit(vstore(place.buffer, where, x))
            return
    idx, lie = lie_of(cx, place.buffer, at)
    if place.kind == "var":
        x = store_value(cx, v, place)
        if place.buffer.dtype.lanes > 1:
            x = vector(cx, v, place.logical)
            if mask is not None:
                x = ir.Select(mask, x, get(place.buffer))
        cx.emit(put(place.buffer, x))
    elif lie == 0 and (cx.lane is None or (v.coef == 0 and mask is cx.lane.tail)):
        cx.emit(ir.Store(place.buffer, idx, store_value(cx, v, place), None, True))
    else:
        if lie == 0:  # all lanes to one place: a scatter, whose last lane stays
            idx = (*idx[:-1], ir.Broadcast(idx[-1], LANES))
        x = vector(cx, v, place.logical)
        if place.buffer.dtype.is_narrow:
            x = encode(x, place.buffer.dtype)
        if lie == 1 and mask is not None and _all_own(cx, s, place):
            # A load that follows need not wait for the memory, as it would after a mask.
            idx = tuple(cx.let("at", i) for i in idx)
            x, mask = ir.Select(mask, x, vload(place.buffer, *idx)), None
        cx.emit(ir.Store(place.buffer, idx, x, mask, True))


def _all_own(cx: Context, s: ir.Store, place: Place) -> bool:
    """The elements of lanes that are masked off are there as well, and this block's own."""
    t = place.buffer.dtype
    if place.kind != "scratch" or t.is_narrow or t.is_bool or cx.lane is None or cx.lane.tail is not None:
        return False
    ends = (cx.facts.interval(i) for i in s.indices)
    return all(
        isinstance(n, ir.Const) and 0 <= lo and hi < n.value for (lo, hi), n in zip(ends, s.buffer.shape, strict=True)
    )


def _if(cx: Context, s: ir.If) -> None:
    c = value(cx, s.cond)
    if c.coef == 0:
        if isinstance(c.expr, ir.Const):
            lower_block(cx, s.then if c.expr.value else s.orelse)
            return
        with cx.block() as then, lazily(cx, None):
            lower_block(cx, s.then)
        with cx.block() as orelse, lazily(cx, None):
            lower_block(cx, s.orelse)
        cx.emit(ir.If(c.expr, tuple(then), tuple(orelse)))
        return
    m = cx.let("m", bool_mask(cx, c))
    _if_lanes(cx, m, s.then)
    if s.orelse:
        _if_lanes(cx, ir.Unary("not", m), s.orelse)


_JUMP = 12  # nodes: what is worth a jump where no lane needs it


def _if_lanes(cx: Context, mask: ir.Expr, body: tuple[ir.Stmt, ...]) -> None:
    with lazily(cx, mask):
        assert cx.lane is not None
        if cx.lane.branches and cx.lane.mask is not None and sum(1 for _ in walk(body)) > _JUMP:
            some = any_lane(cx.lane.mask)
            with cx.block() as then:
                lower_block(cx, body)
            cx.emit(ir.If(some, tuple(then)))
        else:
            lower_block(cx, body)


def _for(cx: Context, s: ir.For) -> None:
    if cx.lane is not None and lane_for(cx, s, lower_block):
        return
    for k in unrolled(cx, s) or ():
        with cx.scope() as facts:
            facts.bind(s.var, ir.Const(k, s.var.type), ir.Const(k + 1, s.var.type))
            cx.env[s.var] = Lane(i64(k))
            _statements(cx, s.body)
    if unrolled(cx, s):
        return
    start, stop, step = (scalar(cx, e) for e in (s.start, s.stop, s.step))
    var = ir.Var(s.var.name, I64)
    cx.env[s.var] = Lane(var)
    if s.var.type.name == "uint64":  # held as itself; what a loop counts to is far below its upper half
        start, stop, step = (ir.Cast(e, I64) for e in (start, stop, step))
        cx.env[s.var] = Lane(ir.Cast(var, s.var.type))
    with cx.block() as body, lazily(cx, None), cx.scope() as facts:
        facts.bind(s.var, s.start, s.stop, s.step)
        lower_block(cx, s.body)
    cx.emit(ir.For(var, start, stop, step, tuple(body), s.kind, s.annotations))


def _while(cx: Context, s: ir.While) -> None:
    if cx.lane is not None:
        lane_while(cx, s, lower_block)
        return
    cond = scalar(cx, s.cond)
    with cx.block() as body:
        lower_block(cx, s.body)
    cx.emit(ir.While(cond, tuple(body)))


def _leave(cx: Context, s: ir.Break | ir.Continue) -> None:
    if cx.lane is not None and cx.lane.exits is not None:
        lane_leave(cx, s)
    else:
        cx.emit(s)


def _parallel(cx: Context, s: ir.Parallel) -> None:
    s = inline_integer_lets(s)
    split = split_boundary(cx, s)
    if split is None or split[0] == FALSE:
        lower_parallel(cx, s, lower_block)
        return
    cond, inside = split
    remark(s.loc or cx.loc, f"index conditions {'nowhere' if cond == TRUE else 'only in tiles at a boundary'}")

    def without() -> None:
        with cx.scope() as facts:
            facts.assume(cond)
            lower_parallel(cx, inside, lower_block)

    cx.either(scalar(cx, cond), without, lambda: lower_parallel(cx, s, lower_block))


def _move(cx: Context, s: ir.Copy | ir.Fill) -> None:
    place = cx.places[s.dst.buffer]  # other moves have been expanded
    if isinstance(s, ir.Copy):
        pack_copy(cx, s, place)
    else:
        fill_panels(cx, s, place)


_COMBINE = {"and": "bitand", "or": "bitor", "xor": "bitxor"}


def _atomic(cx: Context, s: ir.Atomic) -> None:
    """A hardware atomic on global memory. A block's own memory is touched by one worker: there it is plain code."""
    if cx.lane is not None:
        lane_atomic(cx, s, _atomic)
        return
    place, idx, _ = address(cx, s.buffer, s.indices)
    t = place.logical
    if place.kind == "global":
        v = None if s.value is None else store_value(cx, value(cx, s.value), place)
        result = None if s.result is None else ir.Var(s.result.name, place.buffer.dtype)
        cx.emit(ir.Atomic(s.op, place.buffer, idx, v, result, s.order))
        if s.result is not None and result is not None:
            old: ir.Expr = ir.Cast(result, F32) if t.is_narrow else result
            cx.env[s.result] = Lane(widen(old) if t.is_int and t.name != "uint64" else old)
        return
    at = tuple(cx.let("at", i) for i in idx)
    given = None if s.value is None else cx.let("given", value(cx, s.value).expr)
    old = cx.let("old", as_held(ir.Load(place.buffer, at, proved=True), t))
    if given is not None:
        new = given
        if s.op not in ("store", "exchange"):
            new = ir.Binary(_COMBINE.get(s.op, s.op), old, given)
            new = round_to(new, t) if t.is_narrow else new
        cx.emit(ir.Store(place.buffer, at, store_value(cx, Lane(new), place), proved=True))
    if s.result is not None:
        cx.env[s.result] = Lane(old)


def _debug(cx: Context, s: ir.Debug) -> None:
    if s.kind == "assume":
        return
    if cx.lane is not None:
        lane_bounds(cx, s, _debug)
        return
    values: list[ir.Expr | ir.Buffer] = []
    for x in s.values:
        if isinstance(x, ir.Buffer):
            values.append(cx.places[x].buffer)
        else:
            v = scalar(cx, x)
            v = narrow(v, x.dtype) if x.dtype.is_int else encode(v, x.dtype) if x.dtype.is_narrow else v
            values.append(v)  # of the author's type: the text of 1000 differs between float16 and float32
    cx.emit(ir.Debug(s.kind, tuple(values), s.message, loc=s.loc))


def _same(cx: Context, s: ir.Stmt) -> None:
    cx.emit(s)


_HANDLERS: dict[type, Callable[[Context, Any], None]] = {
    ir.Alloc: _alloc,
    ir.Let: _let,
    ir.Store: _store,
    ir.If: _if,
    ir.For: _for,
    ir.While: _while,
    ir.Parallel: _parallel,
    ir.Gemm: lower_gemm,
    ir.Reduce: lower_reduce,
    ir.Scan: lower_scan,
    ir.ReducerOp: lower_reducer,
    ir.Copy: _move,
    ir.Fill: _move,
    ir.Atomic: _atomic,
    ir.Debug: _debug,
    ir.Break: _leave,
    ir.Continue: _leave,
    ir.Return: _same,
    ir.Sync: lambda cx, s: None,  # its regions of threads follow each other
}
