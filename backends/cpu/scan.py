"""T.cumsum and T.cummax: one element after the other along the axis, 16 neighbouring scans at a time."""

from __future__ import annotations

from contextlib import ExitStack

from tiledsl import ir
from tiledsl.analysis.remarks import remark

from .context import Context, get, put
from .reduce import Reduction, accumulator, element, store_rounded
from .rows import strips
from .values import index, scalar
from .wide import LANES, ZERO, add, i64, sub

__all__ = ["lower_scan"]


def lower_scan(cx: Context, s: ir.Scan) -> None:
    """Lanes lie along the last dimension, unless that is the one that is scanned."""
    red = Reduction(s.op, accumulator(s.dst.buffer.dtype), into=s.dst.buffer.dtype)
    extents = [scalar(cx, e) for e in s.src.extents]
    last = len(extents) - 1
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
