"""Products of 8-bit integers for the gemm micro-kernel: four along k at a time, summed in int32, as LLVM IR.

Integer sums are the same in any order, so every form below gives the same bits: `vpdpbusd` where the CPU has it (it
multiplies unsigned by signed bytes), pairs of 16-bit products elsewhere on x86, plain multiplications anywhere.

The panels' bytes have the opposite signedness of the left operand: where both operands have the same, the top bits of
the right one's bytes are flipped while packing, which shifts b by 128 one way or the other; 128 times the sum of
the row of A is put back before the products are added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.values import I32, I64, counted, intrinsic, merged, splat_constant, suffix
from tiledsl.dtypes import DType

__all__ = ["Bytes", "four_products", "row_shifts"]

Value = Any


@dataclass(frozen=True)
class Bytes:
    """Operands of 8 bits: whether the left one is signed, whether the panels' bytes are flipped, and how the CPU
    multiplies: "vnni", "pairs" or "plain"."""

    signed: bool
    flip: bool
    form: str

    @classmethod
    def of(cls, left: DType, flip: bool, module: Any) -> Bytes:
        """For a module whose maker says in its attribute `byte_products` what the CPU has."""
        return cls(left.is_signed, flip, str(getattr(module, "byte_products", "plain")))

    @property
    def name(self) -> str:
        return f"_{'s' if self.signed else 'u'}8" + "f" * self.flip + f"_{self.form}"


def four_products(b: Any, how: Bytes, left: Value, right: Value, total: Value) -> Value:
    """total + the sum of four products, in each int32 lane; left and right hold four bytes per lane."""
    u, s = (right, left) if how.signed else (left, right)
    lanes = total.type.count
    bits = 32 * lanes
    if how.form == "vnni":
        return intrinsic(b, f"llvm.x86.avx512.vpdpbusd.{bits}", total.type, [total, u, s])
    if how.form == "pairs":
        halves = ir.VectorType(ir.IntType(16), 2 * lanes)
        eight = splat_constant(ir.Constant(halves.element, 8), 2 * lanes)
        u, s = b.bitcast(u, halves), b.bitcast(s, halves)
        even = b.lshr(b.shl(u, eight), eight), b.ashr(b.shl(s, eight), eight)
        odd = b.lshr(u, eight), b.ashr(s, eight)
        name = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}[bits]
        for x, y in (even, odd):
            total = b.add(total, intrinsic(b, f"llvm.x86.{name}", total.type, [x, y]))
        return total
    for i in range(4):
        up, down = (splat_constant(ir.Constant(I32, n), lanes) for n in (24 - 8 * i, 24))
        total = b.add(total, b.mul(b.lshr(b.shl(u, up), down), b.ashr(b.shl(s, up), down)))
    return total


def row_shifts(b: Any, how: Bytes, rows: list[Value], k: Value, lanes: int) -> list[Value]:
    """What flipped panels take from the sums of these rows of A, to be added: -+128 times the sum of the row's k bytes
    (int32 scalars). Up to three bytes behind a row are read, not used."""
    vector = ir.VectorType(I32, lanes)
    zero = ir.Constant(vector, None)
    ones = splat_constant(ir.Constant(I32, 0x01010101), lanes)

    def plus(p: Value, at: Value, total: Value, wide: bool, mask: Value | None = None) -> Value:
        address = b.gep(p, [at], inbounds=True, source_etype=ir.IntType(8))
        if wide:
            x = b.load(address, align=1, typ=vector)
        else:
            word = b.load(address, align=1, typ=I32)
            x = b.insert_element(zero, word if mask is None else b.and_(word, mask), ir.Constant(I32, 0))
        return four_products(b, how, x, ones, total)

    totals, at = [zero] * len(rows), ir.Constant(I64, 0)
    for step in (4 * lanes, 4):

        def more(at: Value, *totals: Value, step: int = step) -> list[Value]:
            return [plus(p, at, t, step > 4) for p, t in zip(rows, totals, strict=True)]

        at, *totals = counted(b, at, b.sub(k, ir.Constant(I64, step - 1)), step, more, *totals)
    left = b.trunc(b.mul(b.sub(k, at), ir.Constant(I64, 8)), I32)
    mask = b.sub(b.shl(ir.Constant(I32, 1), left), ir.Constant(I32, 1))
    before = b.block
    with b.if_then(b.icmp_signed("<", at, k)):
        last = [plus(p, at, t, False, mask) for p, t in zip(rows, totals, strict=True)]
        inside = b.block
    sums = [merged(b, (old, before), (v, inside)) for old, v in zip(totals, last, strict=True)]
    name, factor = f"llvm.vector.reduce.add.{suffix(vector)}", ir.Constant(I32, -128 if how.signed else 128)
    return [b.mul(intrinsic(b, name, I32, [x]), factor) for x in sums]
