"""Packing: right operands of gemm into panels, from the author's copies or from tiles of the block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from tiledsl import ir
from tiledsl.analysis.remarks import remark
from tiledsl.dtypes import INT32, UINT8, DType

from .context import Context, vstore
from .rows import below, convert, element, strips, whole, zero_of
from .storage import Panels, Place
from .values import index, scalar, value
from .wide import I64, LANES, TRUE, ZERO, add, and_, i64, lt, mul, sub

__all__ = [
    "fill_panels",
    "pack_copy",
    "pack_rows",
    "pack_transposed",
    "rows_of",
    "transpose_panels",
    "transposed_bytes",
]

_FAR = 1 << 62  # beyond the end of every tensor

# What gives 16 elements of one tile row: (column, mask of the columns that exist) -> vector.
Loader = Callable[[ir.Expr, "ir.Expr | None"], ir.Expr]
Index = tuple[ir.Expr, ...]
Rows = Callable[[ir.Expr], Loader]  # the number of a row -> its elements


def pack_rows(cx: Context, packed: ir.Buffer, lead: Index, form: Panels, rows: Rows) -> None:
    """A [k, n] tile into panels."""
    for k, row in _steps(cx, form.k, form.flip, rows):
        _pack_row(cx, packed, lead, form, k, row)


def _steps(cx: Context, k: int, flip: bool | None, rows: Rows) -> Iterator[tuple[ir.Expr, Loader]]:
    """The rows along k of what gemm multiplies: single rows, or words of four rows of bytes each, zero beyond k."""
    if flip is None:
        with cx.loop("k", i64(k)) as i:
            yield i, rows(i)
        return
    if k >= 4:
        with cx.loop("k", i64(k // 4)) as i:
            yield i, _words([rows(add(mul(i, i64(4)), i64(t))) for t in range(4)], flip)
    if k % 4:
        yield i64(k // 4), _words([rows(i64(t)) for t in range(k // 4 * 4, k)], flip)


def _words(rows: list[Loader], flip: bool) -> Loader:
    """One byte of each row per word, the first lowest."""

    def load(j: ir.Expr, mask: ir.Expr | None) -> ir.Expr:
        word: ir.Expr | None = None
        for t, row in enumerate(rows):
            byte = ir.Cast(convert(row(j, mask), UINT8), INT32.with_lanes(LANES))
            moved = ir.Binary("shl", byte, ir.Broadcast(ir.Const(8 * t, INT32), LANES)) if t else byte
            word = moved if word is None else ir.Binary("bitor", word, moved)
        assert word is not None
        return _flipped(word, len(rows)) if flip else word

    return load


def _flipped(x: ir.Expr, count: int) -> ir.Expr:
    """The top bits of the lowest `count` bytes of each lane flipped."""
    t = x.dtype.scalar
    bits = sum(0x80 << 8 * i for i in range(count))
    value = bits - (1 << t.bits) if t.is_signed and bits >> (t.bits - 1) else bits
    return ir.Binary("bitxor", x, ir.Broadcast(ir.Const(value, t), LANES))


def transposed_bytes(cx: Context, src: ir.Region, k: int, m: int) -> ir.Region:
    """A [k, m] tile of bytes as [m, k], by words; what follows k up to a multiple of four is zero."""
    depth = -(-k // 4)
    words = cx.scratch(f"{src.buffer.name}_words", INT32, (depth, m))
    for i, row in _steps(cx, k, False, rows_of(src)):
        for j, mask in strips(cx, i64(m)):
            cx.emit(vstore(words, (i, j), row(j, mask), mask))
    turned = cx.scratch(f"{src.buffer.name}_turned", INT32, (m, depth))
    cx.emit(ir.MicroCall("transpose", (whole(turned),), (whole(words),), (i64(depth), i64(m))))
    return whole(cx.view(turned, src.buffer.dtype, (m, 4 * depth)))


def transpose_panels(cx: Context, src: ir.Region, packed: ir.Buffer, lead: Index, form: Panels) -> None:
    """A block-local row-major [n, depth] tile of the panels' type into panels."""
    n, k, width = form.n, form.depth, form.width
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
    remark(s.loc, "packs panels for gemm")
    lead = tuple(cx.let("at", index(cx, x).expr) for x in s.dst.starts[:-2])
    source = _Source(cx, s)
    matrix = source.matrix(packed.dtype, form) if form.transposed else None
    if matrix is not None:
        cx.either(
            source.inside,
            lambda: transpose_panels(cx, matrix, packed, lead, form),
            lambda: pack_transposed(cx, packed, lead, form, source.guarded),
        )
    elif form.transposed:
        pack_transposed(cx, packed, lead, form, source.either)
    else:
        source.either(lambda rows: pack_rows(cx, packed, lead, form, rows))


def pack_transposed(
    cx: Context, packed: ir.Buffer, lead: Index, form: Panels, either: Callable[[Callable[[Rows], None]], None]
) -> None:
    """An [n, k] tile into panels, by way of its rows in the panels' type."""
    turned = cx.scratch(f"{packed.name}_rows", packed.dtype, (form.n, form.depth))
    small = form.flip is not None
    tile = cx.view(turned, UINT8, (form.n, 4 * form.depth)) if small else turned
    width = 4 * form.depth if small else form.k

    def held(x: ir.Expr) -> ir.Expr:
        x = convert(x, tile.dtype)
        return _flipped(x, 1) if form.flip else x

    def load_rows_with(row: Rows) -> None:
        full = form.k // LANES * LANES
        with cx.loop("i", i64(form.n)) as i:
            load = row(i)
            if full:
                with cx.loop("j", i64(full), step=LANES) as j:
                    cx.emit(vstore(tile, (i, j), held(load(j, None))))
            if full < form.k:
                mask = below(i64(full), i64(form.k))
                x = held(load(i64(full), mask))
                if small:
                    x = ir.Select(mask, x, zero_of(UINT8))
                cx.emit(vstore(tile, (i, i64(full)), x, below(i64(full), i64(width))))

    either(load_rows_with)
    transpose_panels(cx, whole(turned), packed, lead, form)


def fill_panels(cx: Context, s: ir.Fill, place: Place) -> None:
    """T.fill of a packed tile (the padding stays zero)."""
    assert place.panels is not None
    form, t = place.panels, place.buffer.dtype
    t = t if form.flip is None else UINT8
    x = scalar(cx, s.value)
    v = ir.Broadcast(cx.let("x", x if x.dtype == t else ir.Cast(x, t)), LANES)

    def constant(j: ir.Expr, mask: ir.Expr | None) -> ir.Expr:
        return v if mask is None else ir.Select(mask, v, zero_of(t))

    lead = tuple(index(cx, x).expr for x in s.dst.starts[:-2])
    pack_rows(cx, place.buffer, lead, form, lambda k: constant)


def rows_of(src: ir.Region) -> Rows:
    """The rows of a block-local row-major tile."""
    return lambda i: lambda j, mask: ir.Load(src.buffer, element(src, i, j), mask, LANES, True)


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

    def either(self, load_with: Callable[[Rows], None]) -> None:
        """Emit the loading twice, for the inside and for the border; once where the tile is certainly inside."""
        self.cx.either(self.inside, lambda: load_with(self._plain), lambda: load_with(self._guarded))

    def guarded(self, load_with: Callable[[Rows], None]) -> None:
        """Emit the loading for the border alone."""
        load_with(self._guarded)

    def matrix(self, t: DType, form: Panels) -> ir.Region | None:
        """The tile as a matrix in place, where it lies in the source as the panels hold it."""
        rank = self.buffer.rank
        if (self.row, self.col) != (rank - 2, rank - 1) or self.buffer.dtype != t or form.flip is not None:
            return None
        return ir.Region(self.buffer, tuple(self.starts), (*(i64(1),) * (rank - 2), i64(form.n), i64(form.k)))

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
