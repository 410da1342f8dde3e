"""Where each block-local buffer lives on a CPU: registers, scratch, or micro-kernel panels.

Narrow floats that only live inside a block are kept as float32: every store into them has already been rounded
to the narrow type, so the wide copy is exact, and gemm and vector code need no conversion. A shared tile whose
only reader is T.gemm as its right operand is kept packed in panels, so that the copy that fills it *is* the packing.
`packed_buffers` decides that once, while all moves are whole; later a move that is still whole tells the decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir.walk import walk

from .nibbles import bytes_of, holder
from .wide import F32, I64, i64

__all__ = [
    "FEW_ROWS",
    "GemmTile",
    "Panels",
    "Place",
    "accumulator_type",
    "can_pack",
    "flip_of",
    "gemm_operands",
    "global_place",
    "held",
    "is_unit",
    "packed_buffers",
    "panel_width",
    "place_buffers",
    "place_workspaces",
]


FEW_ROWS = 8  # of a product's left operand: bringing the right one into panels would take longer than the product


@dataclass(frozen=True)
class Panels:
    """Packed right operand of a gemm, [..., ceil(n / width), depth, width]; the author's tile is [k, n], or [n, k] when
    transposed. Depth is k; or, for 8-bit operands (flip is not None), the number of words of four bytes along k."""

    n: int
    k: int
    width: int
    transposed: bool
    flip: bool | None = None  # whether the top bits of the bytes are flipped (`emit.bytes`)

    @property
    def depth(self) -> int:
        return self.k if self.flip is None else -(-self.k // 4)


@dataclass(frozen=True)
class GemmTile:
    """A tile that only T.gemm reads, always as its right operand in the same form."""

    transposed: bool
    type: DType  # what gemm multiplies in
    flip: bool | None  # as in `Panels`


@dataclass(frozen=True)
class Place:
    """kind "global" | "scratch" | "var" | "panels"; `buffer` is its loop-stage buffer; `logical` the author's
    dtype (the buffer's own dtype may be wider, or bytes that hold two elements each)."""

    kind: str
    buffer: ir.Buffer
    logical: DType
    panels: Panels | None = None
    nibbles: bool = False  # packed elements in bytes


def panel_width(n: int) -> int:
    """Columns per panel: the widest of 64, 48, 32, 16 that pads least."""
    return min((64, 48, 32, 16), key=lambda w: (-(-n // w) * w - n > 15, -(-n // w) * w - n, -w))


def place_buffers(
    function: ir.Function, kernel: ir.Kernel, workspaces: dict[ir.Buffer, Place]
) -> dict[ir.Buffer, Place]:
    """A place for every buffer of the kernel; scratch offsets are assigned later (`plan.py`)."""
    places = {b: global_place(b) for b in function.buffers} | workspaces
    uses = _uses(kernel)
    aliased = {b.root for b in uses if b.alias_of is not None}
    for b in _local_buffers(kernel):
        places[b] = _place(b, uses.get(b, []), places, aliased)
    return places


def place_workspaces(function: ir.Function) -> dict[ir.Buffer, Place]:
    """Workspaces that kernels fill tile by tile and only T.gemm reads are kept in panels."""
    places = {w: Place("global", w, w.dtype) for w in function.workspaces}
    for w in [w for w in places if w.dtype.is_packed]:
        places[w] = Place("global", bytes_of(w, "global", None), w.dtype, nibbles=True)
    uses = _all_uses(function)
    for w in function.workspaces:
        if _is_packed(uses.get(w, [])):
            places[w] = _panels(w, uses[w], "global")
    return places


def global_place(b: ir.Buffer) -> Place:
    """The place of an argument, or of a tensor at an address."""
    if b.dtype.is_packed:
        return Place("global", bytes_of(b, "global", b), b.dtype, nibbles=True)
    return Place("global", b, b.dtype)


def packed_buffers(function: ir.Function) -> frozenset[ir.Buffer]:
    """The author's tiles, and workspaces, that are to be kept in panels: their moves have to stay whole."""
    uses = _all_uses(function)
    found = [w for w in function.workspaces if _gemm_tile(uses.get(w, [])) and any(k == "copy_in" for k, _ in uses[w])]
    found += [b for k in function.kernels for b in gemm_operands(k)]
    return frozenset(b for b in found if all(can_pack(n) for _, n in uses[b] if isinstance(n, ir.Copy)))


def gemm_operands(kernel: ir.Kernel) -> dict[ir.Buffer, GemmTile]:
    """The shared tiles that are filled whole and read by T.gemm alone, as its right operand."""
    uses = _uses(kernel)
    aliased = {b.root for b in uses if b.alias_of is not None}
    found: dict[ir.Buffer, GemmTile] = {}
    for b, how in uses.items():
        if b.scope == "shared" and b.rank == 2 and b not in aliased and b.const_shape is not None:
            form = _gemm_tile(how)
            if form is not None:
                found[b] = form
    return found


def _gemm_tile(uses: list[tuple[str, ir.Node]]) -> GemmTile | None:
    kinds = {how for how, _ in uses}
    if "gemm_b" not in kinds or not kinds <= {"copy_in", "fill", "gemm_b"}:
        return None
    forms = {GemmTile(n.transpose_b, accumulator_type(n), flip_of(n)) for how, n in uses if isinstance(n, ir.Gemm)}
    return forms.pop() if len(forms) == 1 else None


def _all_uses(function: ir.Function) -> dict[ir.Buffer, list[tuple[str, ir.Node]]]:
    uses: dict[ir.Buffer, list[tuple[str, ir.Node]]] = {}
    for k in function.kernels:
        for b, found in _uses(k).items():
            uses.setdefault(b, []).extend(found)
    return uses


def _is_packed(uses: list[tuple[str, ir.Node]]) -> bool:
    """Whether `packed_buffers` chose a buffer: all moves into others have become nests by now."""
    return any(how in ("copy_in", "fill") for how, _ in uses)


def _panels(b: ir.Buffer, uses: list[tuple[str, ir.Node]], scope: str) -> Place:
    """Where no gemm is left (it was in a branch that is never taken), nobody looks at the form."""
    form = _gemm_tile(uses) or GemmTile(False, held(b.dtype), None)
    rows, cols = (int(e.value) for e in b.shape[-2:] if isinstance(e, ir.Const))
    n, k = (rows, cols) if form.transposed else (cols, rows)
    width = panel_width(n)
    panels = Panels(n, k, width, form.transposed, form.flip)
    shape = (*b.shape[:-2], i64(-(-n // width)), i64(panels.depth), i64(width))
    return Place("panels", ir.Buffer(b.name, form.type, shape, scope), b.dtype, panels)


def _local_buffers(kernel: ir.Kernel) -> list[ir.Buffer]:
    seen: dict[ir.Buffer, None] = {}
    for n in walk(kernel.body):
        if isinstance(n, ir.Alloc):
            seen[n.buffer] = None
        elif isinstance(n, ir.Buffer):
            for b in n.chain:
                if b.scope != "global" or b.alias_of is not None:
                    seen.setdefault(b)
    return list(seen)


def _uses(kernel: ir.Kernel) -> dict[ir.Buffer, list[tuple[str, ir.Node]]]:
    """How each buffer is touched: ("copy_in" | "fill" | "gemm_b" | "other", statement)."""
    uses: dict[ir.Buffer, list[tuple[str, ir.Node]]] = {}

    def note(b: ir.Buffer, how: str, n: ir.Node) -> None:
        uses.setdefault(b, []).append((how, n))

    for n in walk(kernel.body):
        if isinstance(n, ir.Copy):
            note(n.dst.buffer, "copy_in" if _whole(n.dst) else "other", n)
            note(n.src.buffer, "other", n)
        elif isinstance(n, ir.Fill):
            note(n.dst.buffer, "fill" if _whole(n.dst) else "other", n)
        elif isinstance(n, ir.Gemm):
            note(n.a.buffer, "other", n)
            note(n.c.buffer, "other", n)
            note(n.b.buffer, "gemm_b" if _whole(n.b) else "other", n)
        elif isinstance(n, (ir.Reduce, ir.Scan)):
            note(n.src.buffer, "other", n)
            note(n.dst.buffer, "other", n)
        elif isinstance(n, (ir.Load, ir.Store, ir.Atomic, ir.ReducerOp)):
            note(n.buffer, "other", n)
        elif isinstance(n, ir.Debug):
            for b in n.values:
                if isinstance(b, ir.Buffer):
                    note(b, "other", n)
    return uses


def _whole(r: ir.Region) -> bool:
    """The region is one whole tile: the last two dimensions in full, single steps in those before."""
    b = r.buffer
    if len(r.extents) != b.rank or b.rank < 2:
        return False
    lead = all(isinstance(e, ir.Const) and e.value == 1 for e in r.extents[:-2])
    zero = all(isinstance(s, ir.Const) and s.value == 0 for s in r.starts[-2:])
    ends = zip(r.extents[-2:], b.shape[-2:], strict=True)
    return (
        lead
        and zero
        and all(isinstance(e, ir.Const) and isinstance(n, ir.Const) and e.value == n.value for e, n in ends)
    )


def _place(
    b: ir.Buffer,
    uses: list[tuple[str, ir.Node]],
    places: dict[ir.Buffer, Place],
    aliased: set[ir.Buffer],
) -> Place:
    if b.alias_of is not None:
        root = places[b.root]
        if root.kind == "global" and root.nibbles and root.buffer.alias_of is None:  # a workspace in bytes
            if b.dtype.is_packed:
                return Place("global", bytes_of(b, "global", root.buffer), b.dtype, nibbles=True)
            return Place("global", b.replace(alias_of=root.buffer), b.dtype)
        if root.kind == "global":
            return global_place(b)
        if b.dtype.is_packed:
            return Place("scratch", bytes_of(b, "scratch", root.buffer), b.dtype, nibbles=True)
        view = ir.Buffer(b.name, b.dtype, _const_shape(b), "scratch", alias_of=root.buffer, offset=b.offset)
        return Place("scratch", view, b.dtype)
    if b.base is not None:  # until `lower` meets the statement that computes its address
        return global_place(b)
    shape = _const_shape(b)
    if b.dtype.is_packed and b in aliased:
        return Place("scratch", bytes_of(b, "scratch", None), b.dtype, nibbles=True)
    if b.scope == "var":
        return Place("var", ir.Buffer(b.name, held(b.dtype), (i64(1),), "var"), b.dtype)
    if _is_packed(uses):
        return _panels(b, uses, "scratch")
    dtype = b.dtype if b in aliased else held(b.dtype)
    return Place("scratch", ir.Buffer(b.name, dtype, shape, "scratch"), b.dtype)


def can_pack(s: ir.Copy) -> bool:
    """Whether this copy can write panels directly: a plain 2-D tile whose source rows are contiguous."""
    src = s.src.buffer
    rank = s.dst.buffer.rank
    if (
        s.dst_axes != (rank - 2, rank - 1)
        or len(s.src_axes) != 2
        or -1 in s.src_axes
        or src.safe is not None
        or src.layout is not None
    ):
        return False
    if s.src_axes[1] != src.rank - 1 or s.src_axes[0] == s.src_axes[1]:
        return False
    same = src.dtype == s.dst.buffer.dtype or (
        src.dtype.is_float and s.dst.buffer.dtype in (F32,) and src.dtype.is_narrow
    )
    return is_unit(src) and same and not src.dtype.is_bool and not src.dtype.is_packed and src.scope != "var"


def is_unit(b: ir.Buffer) -> bool:
    """Elements of a row lie side by side."""
    return b.strides is None or (isinstance(b.strides[-1], ir.Const) and b.strides[-1].value == 1)


def accumulator_type(g: ir.Gemm) -> DType:
    """The type gemm multiplies and adds in (language.md 0.9)."""
    t = g.c.buffer.dtype
    if t.is_float:
        return t if t.bits == 64 else F32
    return as_dtype("int32") if t.bits <= 32 else I64


def flip_of(g: ir.Gemm) -> bool | None:
    """Whether bytes are flipped while packing; None where operands have more than 8 bits (`Panels`)."""
    a, b = g.a.buffer.dtype, g.b.buffer.dtype
    small = a.is_int and b.is_int and max(a.bits, b.bits) <= 8 and accumulator_type(g).bits == 32
    return a.is_signed == b.is_signed if small else None


def held(dtype: DType) -> DType:
    """The type that values of this (scalar) type have in the loop stage when they are vectors."""
    return F32 if dtype.is_narrow else holder(dtype) if dtype.is_packed else dtype


def _const_shape(b: ir.Buffer) -> tuple[ir.Const, ...]:
    shape = b.const_shape
    if shape is None:
        raise TileNotImplementedError(
            f"{b.name}: a block-local buffer whose extents are not compile-time constants is not yet supported "
            f"by the CPU targets",
            b.loc,
            help="make the extents Python ints (factory arguments), or run on target='numpy'",
        )
    return tuple(i64(n) for n in shape)
