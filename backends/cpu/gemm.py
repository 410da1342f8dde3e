"""T.gemm: operands brought into the forms that the micro-kernel takes."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.analysis.remarks import remark
from tiledsl.dtypes import DType

from .context import Context, vstore
from .pack import pack_rows, pack_transposed, rows_of, transpose_panels, transposed_bytes
from .printing import row_major_strides
from .rows import copy_rows, element, round_rows, rows, whole, zero_of
from .storage import FEW_ROWS, Panels, accumulator_type, flip_of, is_unit, panel_width
from .values import constant, index, scalar
from .wide import F32, LANES, TRUE, ZERO, i64

__all__ = ["lower_gemm"]


def lower_gemm(cx: Context, s: ir.Gemm) -> None:
    """Clear if asked, multiply with the micro-kernel, round once if C is a half."""
    t = accumulator_type(s)
    m, k = [constant(cx, e, s) for e in s.a.extents[-2:]][:: -1 if s.transpose_a else 1]
    n = constant(cx, s.c.extents[-1], s)
    a = _left(cx, s, t)
    b, width, form = _right(cx, s, t, m, n, k)
    c, back = _result(cx, s, t, m, n)
    _clear(cx, s, c, m, n, t)
    attrs: tuple[tuple[str, object], ...] = (("NR", width), ("a_trans", s.transpose_a), *form)
    flip = flip_of(s)
    if flip is not None:
        attrs = (*attrs[:1], ("flip", flip))
    if s.clear == TRUE:
        attrs = (*attrs, ("clear", True))
    cx.emit(ir.MicroCall("gemm", (c,), (a, b), (i64(m), i64(n), i64(k)), attrs))
    how = f"rows of {s.b.buffer.root.name} in place" if dict(form).get("in_place") else f"panels of {width}"
    remark(s.loc, f"micro-kernel of {t}, {m}x{n}x{k}, {how}", ", ".join(_detours(cx, s, t, bool(form))))
    if back is not None:
        copy_rows(cx, c, back, m, n)
    elif s.c.buffer.dtype.is_narrow:
        round_rows(cx, c, m, n, s.c.buffer.dtype)


def _detours(cx: Context, s: ir.Gemm, t: DType, in_place: bool) -> list[str]:
    """What has to happen before and after the micro-kernel in every call of it."""
    a, b, c = s.a.buffer, s.b.buffer, s.c.buffer
    found = []
    if flip_of(s) is None and cx.places[a].buffer.dtype != t:
        found.append(f"{a.name} is widened to {t}")
    if flip_of(s) is not None and s.transpose_a:
        found.append(f"{a.name} is transposed")
    if cx.places[b].panels is None and not in_place:
        shared = b.scope == "shared" and b.alias_of is None
        why = "more than whole copies and gemms touch it" if shared else "it is no shared tile of its own"
        found.append(f"{b.name} is packed each time: {why}")
    if cx.places[c].buffer.dtype != t:
        found.append(f"{c.name} is converted from and to {t}")
    return found


def _region(cx: Context, r: ir.Region) -> ir.Region:
    """The region with loop-stage buffer and 64-bit starts."""
    starts = tuple(index(cx, x).expr for x in r.starts)
    return ir.Region(cx.places[r.buffer].buffer, starts, tuple(scalar(cx, e) for e in r.extents))


def _left(cx: Context, s: ir.Gemm, t: DType) -> ir.Region:
    region = _region(cx, s.a)
    height, width = (constant(cx, e, s) for e in s.a.extents[-2:])
    if flip_of(s) is not None:
        assert region.buffer.scope == "scratch"  # a word at the end of a row may be read up to three bytes beyond
        return transposed_bytes(cx, region, height, width) if s.transpose_a else region
    if region.buffer.dtype == t:
        return region
    temp = whole(cx.scratch(f"{s.a.buffer.name}_wide", t, (height, width)))
    copy_rows(cx, region, temp, height, width)
    return temp


def _right(
    cx: Context, s: ir.Gemm, t: DType, m: int, n: int, k: int
) -> tuple[ir.Region, int, tuple[tuple[str, object], ...]]:
    """The right operand, the width of its panels, and how it is held where that is not in panels of type t."""
    place = cx.places[s.b.buffer]
    if place.panels is not None:
        lead = tuple(index(cx, x).expr for x in s.b.starts[:-2])
        ones = tuple(i64(1) for _ in lead)
        whole_panels = (*lead, ZERO, ZERO, ZERO), (*ones, *place.buffer.shape[-3:])
        return ir.Region(place.buffer, *whole_panels), place.panels.width, ()
    region = _region(cx, s.b)
    width, stored = panel_width(n), region.buffer.dtype
    form = Panels(n, k, width, s.transpose_b, flip_of(s))
    halves = stored.is_narrow and stored.bits == 16
    if t == F32 and (stored == t or halves) and m <= (FEW_ROWS if s.transpose_b else 2 * FEW_ROWS):
        if not s.transpose_b and n % LANES == 0 and is_unit(region.buffer):
            stride = row_major_strides(region.buffer)[-2]
            together = region.buffer.scope != "global" or (isinstance(stride, ir.Const) and stride.value == n)
            # Where rows lie apart, and few products hide it, one line of memory of each: the CPU fetches lines by twos.
            most = 64 if together or m >= 4 else max(LANES, 512 // stored.bits)
            columns = max(w for w in (64, 48, 32, 16) if n % w == 0 and w <= most)
            return region, columns, (("in_place", "together" if together else "apart"),)
        straight = is_unit(region.buffer) and not s.transpose_a
        if s.transpose_b and halves and straight and n % LANES == 0 and k % LANES == 0:
            return region, m, (("in_place", "turned"),)
    packed = cx.scratch(f"{s.b.buffer.name}_panels", t, (-(-n // width), form.depth, width))
    if s.transpose_b and form.flip is not None:
        pack_transposed(cx, packed, (), form, lambda rows: rows(rows_of(region)))
    elif s.transpose_b:
        if region.buffer.dtype != t:
            temp = whole(cx.scratch(f"{s.b.buffer.name}_wide", t, (n, k)))
            copy_rows(cx, region, temp, n, k)
            region = temp
        transpose_panels(cx, region, packed, (), form)
    else:
        pack_rows(cx, packed, (), form, rows_of(region))
    return whole(packed), width, ()


def _result(cx: Context, s: ir.Gemm, t: DType, m: int, n: int) -> tuple[ir.Region, ir.Region | None]:
    region = _region(cx, s.c)
    if region.buffer.dtype == t:
        return region, None
    temp = whole(cx.scratch(f"{s.c.buffer.name}_wide", t, (m, n)))
    if s.clear != TRUE:
        copy_rows(cx, region, temp, m, n)
    return temp, region


def _clear(cx: Context, s: ir.Gemm, c: ir.Region, m: int, n: int, t: DType) -> None:
    """A clear that only the run decides; a certain one is the micro-kernel's."""
    cond = scalar(cx, s.clear)
    if isinstance(cond, ir.Const):
        return
    with cx.when(cond):
        for i, j, mask in rows(cx, m, n):
            cx.emit(vstore(c.buffer, element(c, i, j), zero_of(t), mask))
