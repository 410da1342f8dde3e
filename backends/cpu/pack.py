"""Packing: right operands of gemm into panels, from the author's copies or from tiles of the block."""

from __future__ import annotations

from collections.abc import Callable

from tiledsl import ir

from .context import Context, vstore
from .rows import below, convert, element, whole, zero_of
from .storage import Panels, Place
from .values import index, scalar, value
from .wide import I64, LANES, TRUE, ZERO, add, and_, i64, lt, mul, sub

__all__ = ["fill_panels", "pack_copy", "pack_rows", "transpose_panels"]

_FAR = 1 << 62  # beyond the end of every tensor

# What gives 16 elements of one tile row: (column, mask of the columns that exist) -> vector.
Loader = Callable[[ir.Expr, "ir.Expr | None"], ir.Expr]
Index = tuple[ir.Expr, ...]


def pack_rows(cx: Context, src: ir.Region, packed: ir.Buffer, lead: Index, form: Panels) -> None:
    """A block-local row-major [k, n] tile into panels."""
    with cx.loop("k", i64(form.k)) as k:
        _pack_row(cx, packed, lead, form, k, _row_of(src, k))


def transpose_panels(cx: Context, src: ir.Region, packed: ir.Buffer, lead: Index, form: Panels) -> None:
    """A block-local row-major [n, k] tile of the panels' type into panels."""
    n, k, width = form.n, form.k, form.width
    if n % width:
        with cx.loop("k", i64(k)) as row:
            for v in range(n % width // LANES * LANES, width, LANES):
                cx.emit(vstore(packed, (*lead, i64(n // width), row, i64(v)), zero_of(packed.dtype)))
    with cx.loop("p", i64(-(-n // width))) as p:
        first = mul(p, i64(width))
        rows = i64(width) if n % width == 0 else ir.Binary("min", i64(width), sub(i64(n), first))
        starts = (*src.starts[:-2], add(src.starts[-2], first), src.starts[-1])
        source = ir.Region(src.buffer, starts, (*src.extents[:-2], rows, src.extents[-1]))
        ones = tuple(i64(1) for _ in lead)
        target = ir.Region(packed, (*lead, p, ZERO, ZERO), (*ones, i64(1), i64(k), i64(width)))
        cx.emit(ir.MicroCall("transpose", (target,), (source,), (rows, i64(k))))


def pack_copy(cx: Context, s: ir.Copy, place: Place) -> None:
    """T.copy into a tile kept in panels. Outside the source: zeros."""
    assert place.panels is not None
    form, packed = place.panels, place.buffer
    lead = tuple(cx.let("at", index(cx, x).expr) for x in s.dst.starts[:-2])
    source = _Source(cx, s)
    if not form.transposed:

        def load_with(row: Callable[[ir.Expr], Loader]) -> None:
            with cx.loop("k", i64(form.k)) as k:
                _pack_row(cx, packed, lead, form, k, row(k))

        source.either(load_with)
        return
    tile = whole(cx.scratch(f"{s.dst.buffer.name}_rows", packed.dtype, (form.n, form.k)))

    def load_rows_with(row: Callable[[ir.Expr], Loader]) -> None:
        full = form.k // LANES * LANES
        with cx.loop("i", i64(form.n)) as i:
            load = row(i)
            if full:
                with cx.loop("j", i64(full), step=LANES) as j:
                    cx.emit(vstore(tile.buffer, (i, j), convert(load(j, None), packed.dtype)))
            if full < form.k:
                mask = below(i64(full), i64(form.k))
                cx.emit(vstore(tile.buffer, (i, i64(full)), convert(load(i64(full), mask), packed.dtype), mask))

    source.either(load_rows_with)
    transpose_panels(cx, tile, packed, lead, form)


def fill_panels(cx: Context, s: ir.Fill, place: Place) -> None:
    """T.fill of a packed tile (the padding stays zero)."""
    assert place.panels is not None
    form, t = place.panels, place.buffer.dtype
    x = scalar(cx, s.value)
    v = ir.Broadcast(cx.let("x", x if x.dtype == t else ir.Cast(x, t)), LANES)

    def constant(j: ir.Expr, mask: ir.Expr | None) -> ir.Expr:
        return v if mask is None else ir.Select(mask, v, zero_of(t))

    lead = tuple(index(cx, x).expr for x in s.dst.starts[:-2])
    with cx.loop("k", i64(form.k)) as k:
        _pack_row(cx, place.buffer, lead, form, k, constant)


def _row_of(src: ir.Region, i: ir.Expr) -> Loader:
    return lambda j, mask: ir.Load(src.buffer, element(src, i, j), mask, LANES, True)


def _pack_row(cx: Context, packed: ir.Buffer, lead: Index, form: Panels, k: ir.Expr, load: Loader) -> None:
    """One row of n elements: whole panels in a loop, the last one padded with zeros."""
    count = form.n // form.width
    if count:
        with cx.loop("p", i64(count)) as p:
            for v in range(0, form.width, LANES):
                x = load(add(mul(p, i64(form.width)), i64(v)), None)
                cx.emit(vstore(packed, (*lead, p, k, i64(v)), convert(x, packed.dtype)))
    for v in range(0, form.width, LANES) if form.n % form.width else ():
        j = count * form.width + v
        mask = None if j + LANES <= form.n else below(i64(j), i64(form.n))
        x = zero_of(packed.dtype) if j >= form.n else convert(load(i64(j), mask), packed.dtype)
        cx.emit(vstore(packed, (*lead, i64(count), k, i64(v)), x))


class _Source:
    """Rows of a copy's source: without masks where the whole tile lies inside, else masked to zero."""

    def __init__(self, cx: Context, s: ir.Copy) -> None:
        self.cx = cx
        self.buffer = cx.places[s.src.buffer].buffer
        self.starts = [cx.let("at", _start(cx, x)) for x in s.src.starts]
        self.row, self.col = s.src_axes
        self.shape = [value(cx, e).expr for e in s.src.buffer.shape]
        h, w = (int(scalar(cx, e).value) for e in s.domain)  # type: ignore[attr-defined]
        spans = {self.row: h, self.col: w}
        self.inside: ir.Expr | None = None
        self.fixed: ir.Expr | None = None
        for d, start in enumerate(self.starts):
            ok = _within(start, spans.get(d, 1), self.shape[d])
            self.inside = and_(self.inside, ok)
            if d not in spans:
                self.fixed = and_(self.fixed, ok)

    def either(self, load_with: Callable[[Callable[[ir.Expr], Loader]], None]) -> None:
        """Emit the loading twice, for the inside and for the border; once where the tile is certainly inside."""
        cx = self.cx
        if self.inside is None or self.inside == TRUE:
            load_with(self._plain)
            return
        with cx.block() as then:
            load_with(self._plain)
        with cx.block() as orelse:
            load_with(self._guarded)
        cx.emit(ir.If(self.inside, tuple(then), tuple(orelse)))

    def _at(self, i: ir.Expr, j: ir.Expr) -> Index:
        moved = list(self.starts)
        moved[self.row], moved[self.col] = add(self.starts[self.row], i), add(self.starts[self.col], j)
        return tuple(moved)

    def _plain(self, i: ir.Expr) -> Loader:
        return lambda j, mask: ir.Load(self.buffer, self._at(i, j), mask, LANES, True)

    def _guarded(self, i: ir.Expr) -> Loader:
        cx = self.cx
        row_ok = and_(self.fixed, _within(add(self.starts[self.row], i), 1, self.shape[self.row]))
        ok = cx.let("row_ok", TRUE if row_ok is None else row_ok)

        def load(j: ir.Expr, mask: ir.Expr | None) -> ir.Expr:
            first = add(self.starts[self.col], j)
            m: ir.Expr = ir.Binary("and", below(first, self.shape[self.col]), ir.Broadcast(ok, LANES))
            m = ir.Binary("and", m, ir.Binary("ge", ir.Ramp(first, 1, LANES), ir.Broadcast(ZERO, LANES)))
            if mask is not None:
                m = ir.Binary("and", m, mask)
            return ir.Load(self.buffer, self._at(i, j), cx.let("m", m), LANES, True)

        return load


def _start(cx: Context, x: ir.Expr) -> ir.Expr:
    """Where the tile begins, as an int64 that cannot wrap around when the number of a row is added."""
    if x.dtype.bits < 64 or cx.facts.interval(x)[1] <= _FAR:
        return index(cx, x).expr
    e = scalar(cx, x)
    near = ir.Binary("min", e, ir.Const(_FAR, e.dtype))
    return near if e.dtype == I64 else ir.Cast(near, I64)


def _within(start: ir.Expr, span: int, size: ir.Expr) -> ir.Expr | None:
    """0 <= start and start + span <= size; None when it certainly holds."""
    low = None if isinstance(start, ir.Const) and start.value >= 0 else ir.Binary("le", ZERO, start)
    high: ir.Expr = lt(add(start, i64(span - 1)), size)
    return and_(low, None if high == TRUE else high)
