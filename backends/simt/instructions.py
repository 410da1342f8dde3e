"""Matrix instructions: which products of a kernel they can do, how its warps share the work, and the registers of one
product. Operands come from shared memory by ldmatrix where 16 bytes of it lie along k (or, of 16-bit types, across);
else element by element. A kernel's other products are multiply-adds on the same registers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.dtypes import DType
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.ir.collectives import WARP
from tiledsl.ir.walk import Rewriter, walk

from .layout import Layouts
from .nests import accumulator, at

if TYPE_CHECKING:
    from .lower_threads import Lowering

__all__ = ["apart", "by_instruction", "choose_products", "lower_mma", "register_operand"]

_HALVES, _BYTES = ("float16", "bfloat16"), ("int8", "uint8")
_UNROLLED = 8  # steps along k that are written out
_FLOAT8 = ("float8_e4m3fn", "float8_e5m2")
_GENERATIONS = {
    "int8": 80, "uint8": 80, "float16": 80, "bfloat16": 80, "float32": 80, "float8_e4m3fn": 89, "float8_e5m2": 89,
}  # fmt: skip
_MARK = ("instruction", "mma")  # annotation of the products that matrix instructions do
_APART = ("apart", True)  # and of those whose result has been given registers of its own


def _generation(arch: str) -> int:
    digits = "".join(c for c in arch if c.isdigit())
    return int(digits) if digits else 0


def _sizes(s: ir.Gemm) -> tuple[int, int, int] | None:
    extents = [*s.c.extents[-2:], s.a.extents[-2 if s.transpose_a else -1]]
    values = [e.value for e in extents if isinstance(e, ir.Const)]
    return (values[0], values[1], values[2]) if len(values) == 3 else None


def _eligible(s: ir.Gemm, generation: int) -> bool:
    """The types are those of an instruction, and tiles of 16 x 8 x k fill the product."""
    a, b, c = (r.buffer.dtype for r in (s.a, s.b, s.c))
    same = a is b or (a.name in _BYTES and b.name in _BYTES) or (a.name in _FLOAT8 and b.name in _FLOAT8)
    sizes = _sizes(s)
    if not same or sizes is None or generation < _GENERATIONS.get(a.name, 1000):
        return False
    if a.name == "float32" and s.precision != "tf32":
        return False
    if accumulator(c) is not c and not c.is_narrow:
        return False
    m, n, k = sizes
    return c.is_float == a.is_float and m % 16 == 0 and n % 8 == 0 and k % (32 // a.bytes) == 0 and min(m, n, k) > 0


def choose_products(kernel: ir.Kernel, threads: int, arch: str) -> ir.Kernel:
    """Marks the products that matrix instructions do, and says how warps stand over rows and columns: as most of the
    work can be done by instructions (attribute "warps"; none where no product can)."""
    gemms = [n for n in walk(kernel.body) if isinstance(n, ir.Gemm)]
    generation = _generation(arch)
    sizes = [found for g in gemms if _eligible(g, generation) and (found := _sizes(g)) is not None]
    if not sizes or threads % WARP:
        return kernel
    warps = threads // WARP

    def fits(size: tuple[int, int, int], split: tuple[int, int]) -> bool:
        return size[0] % (16 * split[0]) == 0 and size[1] % (8 * split[1]) == 0

    def work(split: tuple[int, int]) -> int:
        return sum(m * n * k for m, n, k in sizes if fits((m, n, k), split))

    splits = [(wm, warps // wm) for wm in range(1, warps + 1) if warps % wm == 0]
    most = max(map(work, splits))
    if not most:
        return kernel
    splits = [s for s in splits if work(s) == most]
    along_rows = any(isinstance(n, ir.Reduce) and n.src.buffer.scope == "fragment" for n in walk(kernel.body))
    if along_rows:  # a row in one warp needs no exchange between warps
        wm, wn = max(splits)
    else:  # what the warps read of both operands
        wm, wn = min(splits, key=lambda s: sum(m * s[1] + n * s[0] for m, n, _ in sizes))

    class Marks(Rewriter):
        def stmt(self, s: ir.Stmt) -> ir.Stmt:
            if not isinstance(s, ir.Gemm) or not _eligible(s, generation):
                return s
            size = _sizes(s)
            fit = size is not None and fits(size, (wm, wn))
            return s.replace(annotations=(*s.annotations, _MARK)) if fit else s

    return kernel.replace(body=Marks().visit_block(kernel.body), attrs=(*kernel.attrs, ("warps", (wm, wn))))


def by_instruction(s: ir.Gemm) -> bool:
    """Matrix instructions do this product."""
    return _MARK in s.annotations


def apart(s: ir.Gemm) -> tuple[ir.Stmt, ...]:
    """A product whose result has another layout, or lies in shared memory: into registers of its own, which are copied.
    Nothing where no instruction does it, or where its own registers had no layout either (some threads alone do it)."""
    region = s.c
    if not by_instruction(s) or _APART in s.annotations or region.buffer.rank != 2:
        return ()
    tile = ir.Buffer(f"{region.buffer.name}_tile", region.buffer.dtype, region.extents, "fragment", loc=s.loc)
    names = tuple(ir.Var(f"i{d}", e.dtype) for d, e in enumerate(region.extents))
    there = at(region, names)
    whole = ir.Region(tile, tuple(build.zero(e.dtype) for e in region.extents), region.extents)
    old = ir.Store(tile, names, ir.Load(region.buffer, there, proved=True), proved=True, loc=s.loc)
    new = ir.Store(region.buffer, there, ir.Load(tile, names, proved=True), proved=True, loc=s.loc)
    load, store = (ir.Parallel(names, region.extents, (x,), loc=s.loc) for x in (old, new))
    if isinstance(s.clear, ir.Const):
        first: tuple[ir.Stmt, ...] = () if s.clear.value else (load,)
    else:
        first = (ir.If(ir.Unary("not", s.clear), (load,), loc=s.loc),)
    return ir.Alloc(tile, loc=s.loc), *first, s.replace(c=whole, annotations=(*s.annotations, _APART)), store


def register_operand(layouts: Layouts, s: ir.Gemm) -> bool:
    """A is a fragment in the registers that the instruction wants: where a warp has whole rows, the accumulators of two
    tiles side by side are the A of one step, lane by lane."""
    grid, a = layouts.grid, s.a
    if (
        not by_instruction(s)
        or grid.warps is None
        or grid.warps[1] != 1
        or s.transpose_a
        or a.buffer.dtype.bytes != 2
        or a.buffer.rank != 2
    ):
        return False
    kinds = [layouts.kind(a.buffer, d) for d in (0, 1)]
    return a.whole and kinds == ["row", "col"]


class _Operand:
    """One side of a product: its registers for one step along k, and the statements that load them."""

    def __init__(self, low: Lowering, s: ir.Gemm, side: str, tiles: int) -> None:
        self.low, self.s, self.side, self.tiles = low, s, side, tiles
        self.region: ir.Region = getattr(s, side)
        self.dtype: DType = self.region.buffer.dtype
        self.chunk = 16 // self.dtype.bytes  # elements of one row of a matrix
        self.elements = (16 if side == "a" else 8) // self.dtype.bytes
        along_k = not s.transpose_a if side == "a" else s.transpose_b
        self.along_k = along_k
        self.matrices = self.dtype.bytes == 2 or along_k
        shape = (build.const(tiles, INT32), build.const(self.elements, INT32))
        self.registers = ir.Buffer(f"{side}_{self.region.buffer.name}", self.dtype, shape, "local", loc=s.loc)

    def _contiguous(self) -> bool:
        """Rows of matrices lie in shared memory, at multiples of 16 bytes."""
        b, chunk = self.region.buffer, self.chunk
        if b.scope != "shared" or b.const_shape is None or b.strides is not None or b.alias_of is not None:
            return False
        start = self.region.starts[-1]
        return b.const_shape[-1] % chunk == 0 and isinstance(start, ir.Const) and start.value % chunk == 0

    def _pair(self, across: ir.Expr, k: ir.Expr) -> tuple[ir.Expr, ...]:
        """The indices of the element at a row (of A) or column (of B) and a place along k."""
        return at(self.region, (across, k) if self.along_k else (k, across))

    def load(self, first: ir.Expr, span: int, k: ir.Expr) -> list[ir.Stmt]:
        """Fills the registers. first: row or column of the warp's first tile; span: from one tile to the next; k: the
        step's first."""
        if self.dtype.bytes < 4:
            return self._loaded(first, span, k)
        whole = ir.Region(self.registers, (build.zero(INT32),) * 2, self.registers.shape)
        return [*self._loaded(first, span, k), ir.MicroCall("tf32", (whole,), (whole,), loc=self.s.loc)]

    def _loaded(self, first: ir.Expr, span: int, k: ir.Expr) -> list[ir.Stmt]:
        if self.region.buffer in self.low.registers:
            return self._accumulators(k)
        if not (self.matrices and self._contiguous()):
            return self._elements(first, span, k)
        lane = build.binary("truncmod", self.low.thread, WARP)
        body: list[ir.Stmt] = []
        step = 1 if self.side == "a" else 2
        pairs, rest = divmod(self.tiles, step)
        t = ir.Var("t", INT32)
        if pairs:
            tile = build.mul(t, step) if pairs > 1 else build.zero(INT32)
            body += self.low.nested(
                [(t, pairs)] if pairs > 1 else [], self._matrices(first, span, k, lane, tile, step), self.s
            )
        if rest:
            body += self._matrices(first, span, k, lane, build.const(self.tiles - 1, INT32), 1)
        return body

    def _matrices(
        self, first: ir.Expr, span: int, k: ir.Expr, lane: ir.Expr, tile: ir.Expr, together: int
    ) -> list[ir.Stmt]:
        """One ldmatrix: a tile of A, or one or two neighbours of B."""
        low8 = build.binary("truncmod", lane, 8)
        mid, high = (build.binary("truncmod", build.binary("truncdiv", lane, n), 2) for n in (8, 16))
        chunk = self.chunk
        if self.side == "a":
            down, deep = build.add(low8, build.mul(mid, 8)), build.mul(high, chunk)
            if not self.along_k:
                deep, down = build.add(low8, build.mul(high, 8)), build.mul(mid, 8)
        else:
            down, deep = build.add(low8, build.mul(high, span)), build.mul(mid, chunk)
            if not self.along_k:
                deep, down = build.add(low8, build.mul(mid, 8)), build.mul(high, span)
            if together == 1:  # the upper lanes name the lower ones' rows again
                down = low8 if self.along_k else build.zero(INT32)
        across = build.add(build.add(first, build.mul(tile, span)), down)
        b = self.region.buffer
        zeros = tuple(build.zero(INT32) for _ in b.shape)
        count = 4 if self.side == "a" or together == 2 else 2
        target = ir.Region(
            self.registers,
            (tile, build.zero(INT32)),
            (build.const(together, INT32), build.const(self.elements, INT32)),
        )
        attrs = (("matrices", count), ("trans", not self.along_k))
        source = ir.Region(b, zeros, b.shape)
        return [
            ir.MicroCall(
                "ldmatrix", (target,), (source,), self._pair(across, build.add(k, deep)), attrs, loc=self.s.loc
            )
        ]

    def _accumulators(self, k: ir.Expr) -> list[ir.Stmt]:
        """The registers of a fragment as they are: element e of tile t is row 2 t + e / 2 % 2 and column
        k / 4 + e / 4 * 2 + e % 2 of the thread's registers."""
        t, e = ir.Var("t", INT32), ir.Var("e", INT32)
        tile: ir.Expr = t if self.tiles > 1 else build.zero(INT32)
        row = build.add(build.mul(tile, 2), build.binary("truncmod", build.binary("truncdiv", e, 2), 2))
        col = build.add(build.mul(build.binary("truncdiv", e, 4), 2), build.binary("truncmod", e, 2))
        col = build.add(build.binary("truncdiv", k, 4), col)
        value = ir.Load(self.low.registers[self.region.buffer], (row, col), proved=True, loc=self.s.loc)
        store = ir.Store(self.registers, (tile, e), value, proved=True, loc=self.s.loc)
        loops = [*([(t, self.tiles)] if self.tiles > 1 else []), (e, self.elements)]
        return self.low.nested(loops, (store,), self.s)

    def _elements(self, first: ir.Expr, span: int, k: ir.Expr) -> list[ir.Stmt]:
        """Element by element, as the instruction's figure says (`tiledsl.ir.micro_warp`)."""
        per = 4 // self.dtype.bytes
        lane = build.binary("truncmod", self.low.thread, WARP)
        group, part = build.binary("truncdiv", lane, 4), build.binary("truncmod", lane, 4)
        t, e = ir.Var("t", INT32), ir.Var("e", INT32)
        tile: ir.Expr = t if self.tiles > 1 else build.zero(INT32)
        register = build.binary("truncdiv", e, per)
        half = build.binary("truncmod", register, 2) if self.side == "a" else build.zero(INT32)
        far = build.binary("truncdiv", register, 2) if self.side == "a" else register
        across = build.add(build.add(first, build.mul(tile, span)), build.add(group, build.mul(half, 8)))
        deep = build.add(build.mul(part, per), build.add(build.binary("truncmod", e, per), build.mul(far, 4 * per)))
        value = ir.Load(self.region.buffer, self._pair(across, build.add(k, deep)), proved=True, loc=self.s.loc)
        store = ir.Store(self.registers, (tile, e), value, proved=True, loc=self.s.loc)
        loops = [*([(t, self.tiles)] if self.tiles > 1 else []), (e, self.elements)]
        return self.low.nested(loops, (store,), self.s)


def lower_mma(low: Lowering, s: ir.Gemm, total: ir.Buffer, lead: tuple[ir.Expr, ...]) -> list[ir.Stmt]:
    """total[lead, ...] += a @ b by matrix instructions; total: the accumulator's registers."""
    found, warps = _sizes(s), low.layouts.grid.warps
    assert found is not None and warps is not None
    (m, n, depth), (wm, wn) = found, warps
    rows, cols = m // (16 * wm), n // (8 * wn)
    number = build.binary("truncdiv", low.thread, WARP)
    a, b = _Operand(low, s, "a", rows), _Operand(low, s, "b", cols)
    step = 32 // a.dtype.bytes
    k = ir.Var("k", INT32)
    body: list[ir.Stmt] = [ir.Alloc(a.registers, loc=s.loc), ir.Alloc(b.registers, loc=s.loc)]
    body += a.load(build.mul(build.binary("truncmod", number, wm), 16), 16 * wm, k)
    body += b.load(build.mul(build.binary("truncdiv", number, wm), 8), 8 * wn, k)
    i, j = ir.Var("i", INT32), ir.Var("j", INT32)
    one, two, zero = build.const(1, INT32), build.const(2, INT32), build.zero(INT32)
    tile_i, tile_j = i if rows > 1 else zero, j if cols > 1 else zero
    target = ir.Region(
        total,
        (*lead, build.mul(tile_i, 2), build.mul(tile_j, 2)),
        (*(one for _ in lead), two, two),
    )
    left, right = (
        ir.Region(o.registers, (t, zero), (one, build.const(o.elements, INT32))) for o, t in ((a, tile_i), (b, tile_j))
    )
    kind = "unroll" if depth // step <= _UNROLLED else "serial"
    call = ir.MicroCall("mma", (target,), (left, right), loc=s.loc)
    body += low.nested([(v, c) for v, c in ((i, rows), (j, cols)) if c > 1], (call,), s)
    return [ir.For(k, zero, build.const(depth, INT32), build.const(step, INT32), tuple(body), kind, loc=s.loc)]
