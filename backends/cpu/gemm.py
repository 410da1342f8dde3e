"""T.gemm: operands brought into the micro-kernel's forms, and the packing of right operands into panels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tiledsl import ir
from tiledsl.dtypes import DType
from tiledsl.errors import TileNotImplementedError

from .context import Context, vstore
from .storage import Panels, Place, accumulator_type, panel_width
from .values import index, scalar, value
from .wide import F32, LANES, TRUE, ZERO, add, and_, i64, lt, mul

Loader = Callable[[ir.Expr, "ir.Expr | None"], ir.Expr]

__all__ = ["fill_panels", "lower_gemm", "pack_copy"]


def lower_gemm(cx: Context, s: ir.Gemm) -> None:
    """Clear if asked, multiply with the micro-kernel, round once if C is a half."""
    t = accumulator_type(s)
    m, k = _extents(cx, s.a, s)[:: -1 if s.transpose_a else 1]
    n = _extents(cx, s.c, s)[1]
    a = _left(cx, s, t)
    b, width = _right(cx, s, t, n, k)
    c, back = _result(cx, s, t, m, n)
    _clear(cx, s, c, m, n, t)
    attrs = (("NR", width), ("a_trans", s.transpose_a))
    cx.emit(ir.MicroCall("gemm", (c,), (a, b), (i64(m), i64(n), i64(k)), attrs))
    if back is not None:
        _copy_rows(cx, c, back, m, n)
    elif s.c.buffer.dtype.is_half:
        _round_rows(cx, c, m, n, s.c.buffer.dtype)


def _extents(cx: Context, r: ir.Region, s: ir.Gemm) -> tuple[int, int]:
    out = []
    for e in r.extents[-2:]:
        n = scalar(cx, e)
        if not isinstance(n, ir.Const):
            raise TileNotImplementedError("gemm: an extent that is not a compile-time constant is not yet supported", s.loc)
        out.append(int(n.value))
    return out[0], out[1]


def _region(cx: Context, r: ir.Region) -> ir.Region:
    """The region with loop-stage buffer and 64-bit starts."""
    starts = tuple(index(cx, x).expr for x in r.starts)
    return ir.Region(cx.places[r.buffer].buffer, starts, tuple(scalar(cx, e) for e in r.extents))


def _left(cx: Context, s: ir.Gemm, t: DType) -> ir.Region:
    region = _region(cx, s.a)
    if region.buffer.dtype == t:
        return region
    rows, cols = _extents(cx, s.a, s)
    temp = _whole(cx.scratch(f"{s.a.buffer.name}_wide", t, (rows, cols)))
    _copy_rows(cx, region, temp, rows, cols)
    return temp


def _right(cx: Context, s: ir.Gemm, t: DType, n: int, k: int) -> tuple[ir.Region, int]:
    place = cx.places[s.b.buffer]
    if place.panels is not None:
        return _whole(place.buffer), place.panels.width
    region = _region(cx, s.b)
    width = panel_width(n)
    count = -(-n // width)
    packed = cx.scratch(f"{s.b.buffer.name}_panels", t, (count, k, width))
    if s.transpose_b:
        if region.buffer.dtype != t:
            temp = _whole(cx.scratch(f"{s.b.buffer.name}_wide", t, (n, k)))
            _copy_rows(cx, region, temp, n, k)
            region = temp
        if n % width:
            _zero_columns(cx, packed, k, n, width)
        with cx.loop("p", i64(count)) as p:
            rows = i64(width) if n % width == 0 else ir.Binary("min", i64(width), ir.Binary("sub", i64(n), mul(p, i64(width))))
            starts = (*region.starts[:-2], add(region.starts[-2], mul(p, i64(width))), region.starts[-1])
            src = ir.Region(region.buffer, starts, region.extents)
            dst = ir.Region(packed, (p, ZERO, ZERO), (i64(1), i64(k), i64(width)))
            cx.emit(ir.MicroCall("transpose", (dst,), (src,), (rows, i64(k))))
    else:
        _pack_rows(cx, region, packed, Panels(n, k, width))
    return _whole(packed), width


def _result(cx: Context, s: ir.Gemm, t: DType, m: int, n: int) -> tuple[ir.Region, ir.Region | None]:
    region = _region(cx, s.c)
    if region.buffer.dtype == t:
        return region, None
    temp = _whole(cx.scratch(f"{s.c.buffer.name}_wide", t, (m, n)))
    if s.clear != TRUE:
        _copy_rows(cx, region, temp, m, n)
    return temp, region


def _clear(cx: Context, s: ir.Gemm, c: ir.Region, m: int, n: int, t: DType) -> None:
    cond = scalar(cx, s.clear)
    if isinstance(cond, ir.Const) and not cond.value:
        return
    zero = ir.Broadcast(ir.Const(0.0 if t.is_float else 0, t), LANES)
    with cx.when(cond):
        for at, j, mask in _rows(cx, m, n):
            cx.emit(vstore(c.buffer, _at(c, at, j), zero, mask))


def _whole(b: ir.Buffer) -> ir.Region:
    return ir.Region(b, tuple(ZERO for _ in b.shape), b.shape)


# -- row loops -------------------------------------------------------------------------------------------------


def _rows(cx: Context, m: int, n: int) -> Iterator[tuple[ir.Expr, ir.Expr, ir.Expr | None]]:
    """Iterate a row-major m x n tile in vectors: yields (row, column, mask)."""
    full = n // LANES * LANES
    with cx.loop("i", i64(m)) as i:
        if full:
            with cx.loop("j", i64(full), step=LANES) as j:
                yield i, j, None
        if full < n:
            yield i, i64(full), _below(i64(full), i64(n))


def _below(start: ir.Expr, limit: ir.Expr) -> ir.Expr:
    return ir.Binary("lt", ir.Ramp(start, 1, LANES), ir.Broadcast(limit, LANES))


def _at(r: ir.Region, i: ir.Expr, j: ir.Expr) -> tuple[ir.Expr, ...]:
    return (*r.starts[:-2], add(r.starts[-2], i), add(r.starts[-1], j))


def _copy_rows(cx: Context, src: ir.Region, dst: ir.Region, m: int, n: int) -> None:
    for i, j, mask in _rows(cx, m, n):
        x = ir.Load(src.buffer, _at(src, i, j), mask, LANES, True)
        cx.emit(vstore(dst.buffer, _at(dst, i, j), _convert(x, dst.buffer.dtype), mask))


def _round_rows(cx: Context, c: ir.Region, m: int, n: int, t: DType) -> None:
    for i, j, mask in _rows(cx, m, n):
        x = ir.Load(c.buffer, _at(c, i, j), mask, LANES, True)
        cx.emit(vstore(c.buffer, _at(c, i, j), ir.Cast(ir.Cast(x, t.with_lanes(LANES)), F32.with_lanes(LANES)), mask))


def _convert(x: ir.Expr, t: DType) -> ir.Expr:
    """A loaded vector as type t (float32 to half and back included)."""
    return x if x.dtype.scalar == t else ir.Cast(x, t.with_lanes(LANES))


# -- packing -----------------------------------------------------------------------------------------------------


def _pack_rows(cx: Context, src: ir.Region, packed: ir.Buffer, form: Panels) -> None:
    """A block-local row-major [k, n] tile into panels."""
    with cx.loop("k", i64(form.k)) as k:
        _pack_row(cx, packed, form, k, lambda j, mask: ir.Load(src.buffer, _at(src, k, j), mask, LANES, True))


def _pack_row(cx: Context, packed: ir.Buffer, form: Panels, k: ir.Expr, load: Loader) -> None:
    """One row of n elements: whole panels in a loop, the last one padded with zeros."""
    whole = form.n // form.width
    if whole:
        with cx.loop("p", i64(whole)) as p:
            for v in range(0, form.width, LANES):
                x = load(add(mul(p, i64(form.width)), i64(v)), None)
                cx.emit(vstore(packed, (p, k, i64(v)), _convert(x, packed.dtype)))
    for v in range(0, form.width, LANES) if form.n % form.width else ():
        j = whole * form.width + v
        mask = None if j + LANES <= form.n else _below(i64(j), i64(form.n))
        if j >= form.n:
            zero = ir.Const(0.0 if packed.dtype.is_float else 0, packed.dtype)
            x = ir.Broadcast(zero, LANES)
        else:
            x = _convert(load(i64(j), mask), packed.dtype)
        cx.emit(vstore(packed, (i64(whole), k, i64(v)), x))


def _zero_columns(cx: Context, packed: ir.Buffer, k: int, n: int, width: int) -> None:
    zero = ir.Broadcast(ir.Const(0.0 if packed.dtype.is_float else 0, packed.dtype), LANES)
    first = n % width // LANES * LANES
    with cx.loop("k", i64(k)) as row:
        for v in range(first, width, LANES):
            cx.emit(vstore(packed, (i64(n // width), row, i64(v)), zero))


def pack_copy(cx: Context, s: ir.Copy, place: Place) -> None:
    """T.copy into a tile kept in panels: the copy is the packing. Outside the source: zeros."""
    assert place.panels is not None
    form, packed, src = place.panels, place.buffer, cx.places[s.src.buffer].buffer
    starts = [index(cx, x).expr for x in s.src.starts]
    starts = [cx.let("at", x) for x in starts]
    row, col = s.src_axes
    shape = [value(cx, e).expr for e in s.src.buffer.shape]
    spans = {row: form.k, col: form.n}

    def at(k: ir.Expr, j: ir.Expr) -> tuple[ir.Expr, ...]:
        moved = list(starts)
        moved[row], moved[col] = add(starts[row], k), add(starts[col], j)
        return tuple(moved)

    inside: ir.Expr | None = None
    fixed: ir.Expr | None = None
    for d, start in enumerate(starts):
        ok = _within(start, spans.get(d, 1), shape[d])
        inside = and_(inside, ok)
        if d not in spans:
            fixed = and_(fixed, ok)

    def fast() -> None:
        with cx.loop("k", i64(form.k)) as k:
            _pack_row(cx, packed, form, k, lambda j, mask: ir.Load(src, at(k, j), mask, LANES, True))

    if inside is None or inside == TRUE:
        fast()
        return
    with cx.block() as then:
        fast()
    with cx.block() as orelse, cx.loop("k", i64(form.k)) as k:
        row_ok = and_(fixed, _within(add(starts[row], k), 1, shape[row]))
        ok = cx.let("row_ok", row_ok if row_ok is not None else TRUE)

        def guarded(j: ir.Expr, mask: ir.Expr | None) -> ir.Expr:
            first = add(starts[col], j)
            m: ir.Expr = ir.Binary("and", _below(first, shape[col]), ir.Broadcast(ok, LANES))
            low = ir.Binary("ge", ir.Ramp(first, 1, LANES), ir.Broadcast(ZERO, LANES))
            m = ir.Binary("and", m, low)
            if mask is not None:
                m = ir.Binary("and", m, mask)
            return ir.Load(src, at(k, j), cx.let("m", m), LANES, True)

        _pack_row(cx, packed, form, k, guarded)
    cx.emit(ir.If(inside, tuple(then), tuple(orelse)))


def _within(start: ir.Expr, span: int, size: ir.Expr) -> ir.Expr | None:
    """0 <= start and start + span <= size; None when it certainly holds."""
    low = None if isinstance(start, ir.Const) and start.value >= 0 else ir.Binary("le", ZERO, start)
    high: ir.Expr = lt(add(start, i64(span - 1)), size)
    return and_(low, None if high == TRUE else high)


def fill_panels(cx: Context, s: ir.Fill, place: Place) -> None:
    """T.fill of a packed tile (the padding stays zero)."""
    assert place.panels is not None
    x = ir.Broadcast(cx.let("x", scalar(cx, s.value)), LANES)
    form = place.panels

    def constant(j: ir.Expr, mask: ir.Expr | None) -> ir.Expr:
        if mask is None:
            return x
        return ir.Select(mask, x, ir.Broadcast(ir.Const(0.0 if x.dtype.is_float else 0, x.dtype.scalar), LANES))

    with cx.loop("k", i64(form.k)) as k:
        _pack_row(cx, place.buffer, form, k, constant)

