"""Where each block-local buffer lives on a CPU: registers, scratch, or micro-kernel panels.

Narrow floats that only live inside a block are kept as float32: every store into them has already been rounded
to the narrow type, so the wide copy is exact, and gemm and vector code need no conversion. A shared tile whose
only reader is T.gemm as its right operand is kept packed in panels, so that the copy that fills it *is* the packing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir.walk import walk

from .wide import F32, I64, i64

__all__ = ["Panels", "Place", "accumulator_type", "packed_buffers", "panel_width", "place_buffers"]


@dataclass(frozen=True)
class Panels:
    """Packed right operand of a gemm, [ceil(n / width), k, width], zero beyond n; the author's tile is [k, n]."""

    n: int
    k: int
    width: int


@dataclass(frozen=True)
class Place:
    """kind "global" | "scratch" | "var" | "panels"; `buffer` is its loop-stage buffer; `logical` the author's
    dtype (the buffer's own dtype may be wider)."""

    kind: str
    buffer: ir.Buffer
    logical: DType
    panels: Panels | None = None


def panel_width(n: int) -> int:
    """Columns per panel: the widest of 64, 48, 32, 16 that pads least."""
    return min((64, 48, 32, 16), key=lambda w: (-(-n // w) * w - n > 15, -(-n // w) * w - n, -w))


def place_buffers(function: ir.Function, kernel: ir.Kernel) -> dict[ir.Buffer, Place]:
    """A place for every buffer of the kernel; scratch offsets are assigned later (`plan.py`)."""
    places: dict[ir.Buffer, Place] = {}
    for b in (*function.buffers, *function.workspaces):
        places[b] = Place("global", b, b.dtype)
    uses = _uses(kernel)
    for b in _local_buffers(kernel):
        places[b] = _place(b, uses.get(b, []), places, {r.root for r in uses if r.alias_of is not None})
    return places


def packed_buffers(function: ir.Function) -> frozenset[ir.Buffer]:
    """The author's tiles that are kept in panels."""
    return frozenset(
        b for k in function.kernels for b, place in place_buffers(function, k).items() if place.kind == "panels"
    )


def _local_buffers(kernel: ir.Kernel) -> list[ir.Buffer]:
    seen: dict[ir.Buffer, None] = {}
    for n in walk(kernel.body):
        if isinstance(n, ir.Alloc):
            seen[n.buffer] = None
        elif isinstance(n, ir.Buffer) and (n.scope != "global" or n.alias_of is not None):
            chain = [n]
            while chain[-1].alias_of is not None:
                chain.append(chain[-1].alias_of)
            for b in reversed(chain):
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
    zero = all(isinstance(s, ir.Const) and s.value == 0 for s in r.starts)
    return zero and len(r.extents) == r.buffer.rank and all(
        isinstance(e, ir.Const) and isinstance(n, ir.Const) and e.value == n.value
        for e, n in zip(r.extents, r.buffer.shape, strict=True)
    )


def _place(
    b: ir.Buffer, uses: list[tuple[str, ir.Node]], places: dict[ir.Buffer, Place], aliased: set[ir.Buffer]
) -> Place:
    if b.alias_of is not None:
        root = places[b.root]
        if root.kind == "global":
            return Place("global", b, b.dtype)
        view = ir.Buffer(b.name, b.dtype, _const_shape(b), "scratch", alias_of=root.buffer, offset=b.offset)
        return Place("scratch", view, b.dtype)
    shape = _const_shape(b)
    if b.scope == "var":
        return Place("var", ir.Buffer(b.name, _held(b.dtype), (i64(1),), "var"), b.dtype)
    kinds = {how for how, _ in uses}
    if b.scope == "shared" and b.rank == 2 and b not in aliased and "gemm_b" in kinds and kinds <= {"copy_in", "fill", "gemm_b"}:
        gemms = [n for how, n in uses if how == "gemm_b" and isinstance(n, ir.Gemm)]
        accumulators = {accumulator_type(g) for g in gemms}
        copies = [n for how, n in uses if how == "copy_in" and isinstance(n, ir.Copy)]
        plain = not any(g.transpose_b for g in gemms) and len(accumulators) == 1
        if plain and all(_can_pack(c) for c in copies):
            k, n = (int(e.value) for e in shape)
            width = panel_width(n)
            packed = ir.Buffer(b.name, accumulators.pop(), (i64(-(-n // width)), i64(k), i64(width)), "scratch")
            return Place("panels", packed, b.dtype, Panels(n, k, width))
    dtype = b.dtype if b in aliased else _held(b.dtype)
    return Place("scratch", ir.Buffer(b.name, dtype, shape, "scratch"), b.dtype)


def _can_pack(s: ir.Copy) -> bool:
    """Whether this copy can write panels directly: a plain 2-D tile whose source rows are contiguous."""
    src = s.src.buffer
    if s.dst_axes != (0, 1) or len(s.src_axes) != 2 or -1 in s.src_axes or src.safe is not None:
        return False
    if s.src_axes[1] != src.rank - 1 or s.src_axes[0] == s.src_axes[1]:
        return False
    unit = src.strides is None or (isinstance(src.strides[-1], ir.Const) and src.strides[-1].value == 1)
    same = src.dtype == s.dst.buffer.dtype or (src.dtype.is_float and s.dst.buffer.dtype in (F32,) and src.dtype.is_half)
    return unit and same and not src.dtype.is_bool and src.scope != "var"


def accumulator_type(g: ir.Gemm) -> DType:
    """The type gemm multiplies and adds in (language.md 0.9)."""
    t = g.c.buffer.dtype
    if t.is_float:
        return t if t.bits == 64 else F32
    return as_dtype("int32") if t.bits <= 32 else I64


def _held(dtype: DType) -> DType:
    return F32 if dtype.is_half else dtype


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
