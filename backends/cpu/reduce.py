"""T.reduce in the one order of language.md 0.10: 16 interleaved partials, combined 8-4-2-1."""

from __future__ import annotations

from contextlib import ExitStack

from tiledsl import ir
from tiledsl.analysis.remarks import remark
from tiledsl.dtypes import DType
from tiledsl.ir import arithmetic
from tiledsl.ir.arithmetic import accumulator
from tiledsl.ir.build import const

from .context import Context, Lane, get, put, vload
from .rows import below, strips
from .storage import Place
from .values import constant, index, scalar, store_value
from .wide import F32, I64, LANES, ZERO, add, i64, widen

__all__ = ["Reduction", "element", "finish", "horizontal", "lower_reduce", "store_rounded", "tree"]

_CHAINS = 4  # registers of a maximum


def lower_reduce(cx: Context, s: ir.Reduce) -> None:
    """One output element (or 16 neighbouring ones) at a time."""
    src, dst = s.src, s.dst
    extents = [constant(cx, e, s) for e in src.extents]
    t = accumulator(dst.buffer.dtype)
    red = Reduction(s.op, t, s.nan_propagate, dst.buffer.dtype)
    kept = [d for d in range(len(extents)) if d != s.axis and extents[d] > 1]
    lanes_axis = len(extents) - 1
    same_rank = len(dst.extents) == len(src.extents)
    with ExitStack() as loops:
        at: dict[int, ir.Expr] = {d: ZERO for d in range(len(extents))}
        across = s.axis != lanes_axis and lanes_axis in kept
        for d in kept:
            if not (across and d == lanes_axis):
                at[d] = loops.enter_context(cx.loop(f"r{d}", i64(extents[d])))
        how = "16 results at a time" if across else "16 partial sums of one result at a time"
        short = not across and (s.axis != lanes_axis or extents[s.axis] < LANES)
        remark(s.loc, how, "elements of a result are fewer than 16, or apart" if short else "")
        if across:
            for j, mask in strips(cx, i64(extents[lanes_axis])):
                here = {**at, lanes_axis: j}
                result = _partials(cx, red, s, extents[s.axis], here, mask, True)
                finish(cx, red, s.clear, *_target(cx, s, here, same_rank), result, mask, True)
            return
        result = _along(cx, red, s, extents, at)
        finish(cx, red, s.clear, *_target(cx, s, at, same_rank), result, None)


class Reduction:
    """Operation, accumulator type, and how an element enters."""

    def __init__(self, name: str, t: DType, propagate: bool = False, into: DType | None = None) -> None:
        self.wraps = into if into is not None and into.is_packed and into.is_int else None  # elements, first
        self.name, self.t, self.propagate = name, t, propagate and t.is_float
        self.op = arithmetic.combining(name)
        self.absolute = name in ("abssum", "absmax")

    def combine(self, a: ir.Expr, b: ir.Expr) -> ir.Expr:
        out: ir.Expr = ir.Binary(self.op, a, b)
        if self.propagate:
            nan = ir.Binary("ne", a, a)
            out = ir.Select(nan, a, ir.Select(ir.Binary("ne", b, b), b, out))
        return out

    def identity(self) -> ir.Const:
        """What an absent element is: -0.0 leaves every float sum as it is, even -0.0."""
        return const(arithmetic.identity(self.name, self.t), self.t)

    def starts_at_identity(self) -> bool:
        """max and min begin at their identity (so NaN is ignored), sums at their first element."""
        return self.op in ("max", "min")

    def enter(self, x: ir.Expr) -> ir.Expr:
        """An element: converted to the accumulator's type, absolute value."""
        lanes = x.dtype.lanes
        want = self.t.with_lanes(lanes)
        if x.dtype.scalar.is_narrow:
            x = ir.Cast(x, F32.with_lanes(lanes))
        if self.wraps is not None:
            x = ir.Cast(x, self.wraps.with_lanes(lanes))
        if x.dtype != want:
            x = ir.Cast(x, want)
        return ir.Unary("abs", x) if self.absolute else x


def element(
    cx: Context, red: Reduction, src: ir.Region, at: dict[int, ir.Expr], lanes: bool, mask: ir.Expr | None
) -> ir.Expr:
    """The element (lanes: 16 of them) of a region at an index per dimension, as the reduction takes it."""
    place = cx.places[src.buffer]
    idx = tuple(add(index(cx, start).expr, at[d]) for d, start in enumerate(src.starts))
    if place.kind == "var":
        x: ir.Expr = get(place.buffer)
    else:
        x = vload(place.buffer, *idx, mask=mask) if lanes else ir.Load(place.buffer, idx, None, 1, True)
    return red.enter(x)


def _along(cx: Context, red: Reduction, s: ir.Reduce, extents: list[int], at: dict[int, ir.Expr]) -> ir.Expr:
    """Reduce along the contiguous dimension (lanes are the 16 partials) or, when nothing else runs along the
    lanes, along any dimension element by element with 16 registers."""
    n, axis = extents[s.axis], s.axis
    if axis != len(extents) - 1:
        return _partials(cx, red, s, n, at, None)
    v16 = red.t.with_lanes(LANES)
    full = n // LANES * LANES
    ident = ir.Broadcast(red.identity(), LANES)
    first_is_element = full > 0 and not red.starts_at_identity()
    if first_is_element:
        acc = cx.var("acc", v16, element(cx, red, s.src, {**at, axis: ZERO}, True, None))
    else:
        acc = cx.var("acc", v16, ident)
    start = LANES if first_is_element else 0
    if red.op in ("max", "min") and not red.propagate and full >= _CHAINS * LANES:
        start = _in_chains(cx, red, s, acc, at, full)
    if full > start:
        with cx.loop("k", i64(full), i64(start), LANES) as k:
            x = element(cx, red, s.src, {**at, axis: k}, True, None)
            cx.emit(put(acc, red.combine(get(acc), x)))
    if full < n:
        mask = cx.let("tail", below(i64(full), i64(n)))
        x = cx.let("x", element(cx, red, s.src, {**at, axis: i64(full)}, True, mask))
        both = x if full == 0 and not red.starts_at_identity() else red.combine(get(acc), x)
        cx.emit(put(acc, ir.Select(mask, both, get(acc))))
    return horizontal(cx, red, get(acc))


def _in_chains(cx: Context, red: Reduction, s: ir.Reduce, acc: ir.Buffer, at: dict[int, ir.Expr], full: int) -> int:
    """The beginning of an extremum, which is the same in any order, in several registers: one would wait for itself.
    Returns how many elements are in acc."""
    step = _CHAINS * LANES
    regs = [acc, *(cx.var("acc", acc.dtype, ir.Broadcast(red.identity(), LANES)) for _ in range(_CHAINS - 1))]
    with cx.loop("k", i64(full // step * step), step=step) as k:
        for p, r in enumerate(regs):
            x = element(cx, red, s.src, {**at, s.axis: add(k, i64(p * LANES))}, True, None)
            cx.emit(put(r, red.combine(get(r), x)))
    for r in regs[1:]:
        cx.emit(put(acc, red.combine(get(acc), get(r))))
    return full // step * step


def horizontal(cx: Context, red: Reduction, x: ir.Expr) -> ir.Expr:
    """16 partials in the lanes of x, combined 8-4-2-1."""
    name = f"hreduce_{red.op}"
    r: ir.Expr = ir.Call(name, (x,), red.t)
    if red.propagate:
        v = cx.let("v", x)
        nan = ir.Call("any", (ir.Binary("ne", v, v),), ir.BOOL)
        r = ir.Select(nan, ir.Const(float("nan"), red.t), ir.Call(name, (v,), red.t))
    return r


def _partials(
    cx: Context,
    red: Reduction,
    s: ir.Reduce,
    n: int,
    at: dict[int, ir.Expr],
    mask: ir.Expr | None,
    lanes: bool = False,
) -> ir.Expr:
    """16 registers, element i goes to register i mod 16, then the tree."""
    count = min(n, LANES)
    t = red.t.with_lanes(LANES) if lanes else red.t
    ident: ir.Expr = ir.Broadcast(red.identity(), LANES) if lanes else red.identity()

    def at_k(k: ir.Expr) -> ir.Expr:
        return element(cx, red, s.src, {**at, s.axis: k}, lanes, mask)

    regs = []
    for p in range(count):
        first = at_k(i64(p))
        regs.append(cx.var(f"p{p}", t, red.combine(ident, first) if red.starts_at_identity() else first))
    full = n // LANES * LANES
    if full > LANES:
        with cx.loop("k", i64(full), i64(LANES), LANES) as k:
            for p in range(LANES):
                cx.emit(put(regs[p], red.combine(get(regs[p]), at_k(add(k, i64(p))))))
    if n > LANES:
        for p in range(n - full):
            cx.emit(put(regs[p], red.combine(get(regs[p]), at_k(i64(full + p)))))
    if not regs:
        return ident
    return tree(cx, red, regs)


def tree(cx: Context, red: Reduction, regs: list[ir.Buffer]) -> ir.Expr:
    """16 registers or fewer, combined 8-4-2-1."""
    for half in (8, 4, 2, 1):
        for p in range(min(half, len(regs) - half)):
            cx.emit(put(regs[p], red.combine(get(regs[p]), get(regs[p + half]))))
        regs = regs[:half]
    return get(regs[0])


def _target(cx: Context, s: ir.Reduce, at: dict[int, ir.Expr], same_rank: bool) -> tuple[Place, tuple[ir.Expr, ...]]:
    place = cx.places[s.dst.buffer]
    if place.kind == "var":
        return place, (ZERO,)
    dims = [d for d in range(len(s.src.extents)) if same_rank or d != s.axis]
    if not same_rank and len(s.dst.extents) == 1 and not dims:
        dims = [s.axis]
    idx = []
    for k, start in enumerate(s.dst.starts):
        d = dims[k] if k < len(dims) else None
        move = ZERO if d is None or d == s.axis else at[d]
        idx.append(add(index(cx, start).expr, move))
    return place, tuple(idx)


def finish(
    cx: Context,
    red: Reduction,
    clear: ir.Expr,
    place: Place,
    idx: tuple[ir.Expr, ...],
    result: ir.Expr,
    mask: ir.Expr | None,
    lanes: bool = False,
) -> None:
    """Combine with the old value unless clear, round once, store."""
    width = LANES if lanes else 1
    result = cx.let("r", result)
    if not (isinstance(clear, ir.Const) and clear.value):
        old: ir.Expr = ir.Load(place.buffer, idx, mask, width, True)
        if old.dtype.scalar.is_narrow:
            old = ir.Cast(old, F32.with_lanes(width))
        if old.dtype != result.dtype:
            old = ir.Cast(old, result.dtype)
        if isinstance(clear, ir.Const):
            result = cx.let("r", red.combine(old, result))
        else:
            cond = scalar(cx, clear)
            fresh, both = result, cx.let("r2", red.combine(old, result))
            result = ir.Select(ir.Broadcast(cond, LANES) if lanes else cond, fresh, both)
    store_rounded(cx, place, idx, result, mask)


def store_rounded(
    cx: Context, place: Place, idx: tuple[ir.Expr, ...], result: ir.Expr, mask: ir.Expr | None = None
) -> None:
    """Stores a value of the accumulator's type (or 16), rounded once to what the author's buffer holds."""
    t, lanes = place.logical, result.dtype.lanes
    if t.is_narrow:
        result = ir.Cast(ir.Cast(result, t.with_lanes(lanes)), F32.with_lanes(lanes))
    if t.is_packed and t.is_int:
        result = ir.Cast(ir.Cast(result, t.with_lanes(lanes)), place.buffer.dtype.scalar.with_lanes(lanes))
    if lanes == 1 and t.is_int and result.dtype != I64:
        result = widen(result)
    v = Lane(result, None if lanes > 1 else 0)
    cx.emit(ir.Store(place.buffer, idx, store_value(cx, v, place), mask, True))
