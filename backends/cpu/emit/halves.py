"""Right operands of gemm in a half type, widened to float32 in registers, as LLVM IR.

Rows of them (elements along n side by side) are widened one by one. Where they lie along k, words of two elements are
turned instead, half as many shuffles as elements would take, and a word gives two rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.convert import cast
from tiledsl.backends.cpu.emit.values import I32, splat_constant
from tiledsl.dtypes import FLOAT32, DType

__all__ = ["Halves", "rows_of"]

Value = Any


@dataclass(frozen=True)
class Halves:
    """Elements of a 16-bit float, or (pairs) words of two of them along k, the first lowest."""

    dtype: DType
    pairs: bool = False

    @property
    def name(self) -> str:
        return f"_{self.dtype.name}" + "_pairs" * self.pairs

    @property
    def bytes(self) -> int:
        """Of an element, or a word."""
        return 4 if self.pairs else 2


def rows_of(b: Any, form: Halves, places: list[Value], vector: Any) -> list[list[Value]]:
    """The rows of B that lie at these addresses, one register each: one row, or the two of words."""
    lanes = vector.count
    half, wide = form.dtype.with_lanes(lanes), FLOAT32.with_lanes(lanes)
    bits = ir.VectorType(ir.IntType(16), lanes)
    if not form.pairs:
        return [[cast(b, half, wide, b.load(p, align=2, typ=bits)) for p in places]]
    words = [b.load(p, align=4, typ=ir.VectorType(I32, lanes)) for p in places]
    upper = splat_constant(ir.Constant(I32, 16), lanes)
    if form.dtype.name == "bfloat16":  # the upper half of a float32
        high = splat_constant(ir.Constant(I32, 0xFFFF0000), lanes)
        found = [b.shl(x, upper) for x in words], [b.and_(x, high) for x in words]
        return [[b.bitcast(x, vector) for x in row] for row in found]
    found = words, [b.lshr(x, upper) for x in words]
    return [[cast(b, half, wide, b.trunc(x, bits)) for x in row] for row in found]
