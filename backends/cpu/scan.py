"""T.cumsum and T.cummax: one element after the other along the axis, 16 scans at a time.

Lanes are neighbouring scans where elements of one scan lie apart. Where they lie side by side, 16 rows are turned, so
that they become neighbours.
"""

from __future__ import annotations

from contextlib import ExitStack

from tiledsl import ir
from tiledsl.analysis.remarks import remark
from tiledsl.ir.arithmetic import accumulator

from .context import Context, get, put, vload, vstore
from .reduce import Reduction, element, store_rounded
from .rows import strips
from .values import index, scalar
from .wide import LANES, ZERO, add, i64, sub

__all__ = ["lower_scan"]


def lower_scan(cx: Context, s: ir.Scan) -> None:
    """Lanes lie along the last dimension, unless that is the one that is scanned."""
    red = Reduction(s.op, accumulator(s.dst.buffer.dtype), into=s.dst.buffer.dtype)
    extents = [scalar(cx, e) for e in s.src.extents]
    last = len(extents) - 1
    if _rows_can_turn(cx, red, s, extents):
        remark(s.loc, "16 scans at a time, turned before and after")
        _turned(cx, red, s, *(int(n.value) for n in extents if isinstance(n, ir.Const)))
        return
    across = s.axis != last and extents[last] != i64(1)
    how = "16 scans at a time" if across else "one element after the other"
    remark(s.loc, how, "" if across else "the scanned axis is the contiguous one")
    with ExitStack() as loops:
        at: dict[int, ir.Expr] = {}
        for d, n in enumerate(extents):
            if d != s.axis and not (across and d == last):
                at[d] = loops.enter_context(cx.loop(f"r{d}", n))
        if not across:
            _along(cx, red, s, at, extents[s.axis], None, False)
            return
        for j, mask in strips(cx, extents[last]):
            _along(cx, red, s, {**at, last: j}, extents[s.axis], mask, True)


_FEW = 4  # rows: fewer are done sooner one by one


def _rows_can_turn(cx: Context, red: Reduction, s: ir.Scan, extents: list[ir.Expr]) -> bool:
    """Constant rows of what the micro-kernel `transpose` takes."""
    places = [cx.places[r.buffer] for r in (s.src, s.dst)]
    plain = all(p.kind == "scratch" and p.buffer.dtype is p.logical is red.t and not p.nibbles for p in places)
    constant = [n.value for n in extents if isinstance(n, ir.Const)]
    return len(extents) == len(constant) == 2 and s.axis == 1 and constant[0] >= _FEW and plain and red.t.bits >= 32


def _turned(cx: Context, red: Reduction, s: ir.Scan, m: int, n: int) -> None:
    turned = cx.scratch(f"{s.dst.buffer.name}_turned", red.t, (n, LANES))

    def strip(r: ir.Region, row: ir.Expr, count: ir.Expr) -> ir.Region:
        first, column = (index(cx, x).expr for x in r.starts)
        return ir.Region(cx.places[r.buffer].buffer, (add(first, row), column), (count, i64(n)))

    with cx.loop("r", i64(m), step=LANES) as row:
        count = i64(LANES) if m % LANES == 0 else cx.let("rows", ir.Binary("min", i64(LANES), sub(i64(m), row)))
        beside = ir.Region(turned, (ZERO, ZERO), (i64(n), count))
        cx.emit(ir.MicroCall("transpose", (beside,), (strip(s.src, row, count),), (count, i64(n))))
        acc = cx.var("acc", red.t.with_lanes(LANES), ir.Broadcast(red.identity(), LANES))
        with cx.loop("k", i64(n)) as k:
            at = sub(i64(n - 1), k) if s.reverse else k
            cx.emit(put(acc, red.combine(get(acc), red.enter(vload(turned, at, ZERO)))))
            cx.emit(vstore(turned, (at, ZERO), get(acc)))
        cx.emit(ir.MicroCall("transpose", (strip(s.dst, row, count),), (beside,), (i64(n), count)))


def _along(
    cx: Context, red: Reduction, s: ir.Scan, at: dict[int, ir.Expr], n: ir.Expr, mask: ir.Expr | None, lanes: bool
) -> None:
    place, first = cx.places[s.dst.buffer], red.identity()
    acc = cx.var("acc", red.t.with_lanes(LANES if lanes else 1), ir.Broadcast(first, LANES) if lanes else first)
    with cx.loop("k", n) as k:
        here = {**at, s.axis: sub(sub(n, i64(1)), k) if s.reverse else k}
        cx.emit(put(acc, red.combine(get(acc), element(cx, red, s.src, here, lanes, mask))))
        idx = tuple(add(index(cx, start).expr, here[d]) for d, start in enumerate(s.dst.starts))
        store_rounded(cx, place, idx if place.kind != "var" else (ZERO,), get(acc), mask)
