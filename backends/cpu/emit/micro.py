"""Which micro-kernel a MicroCall of the loop stage means, and what it is called with."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tiledsl import ir
from tiledsl.backends.cpu.emit.bytes import Bytes
from tiledsl.backends.cpu.emit.gemm import Form, blocking, emit_gemm
from tiledsl.backends.cpu.emit.halves import Halves, emit_turned
from tiledsl.backends.cpu.emit.transpose import emit_transpose
from tiledsl.backends.cpu.emit.values import register_bytes
from tiledsl.backends.cpu.printing import row_major_strides
from tiledsl.dtypes import INT64, as_dtype

__all__ = ["Micro", "operands"]


@dataclass(frozen=True)
class Micro:
    """A micro-kernel's variant.

    name      "gemm" or "transpose"
    dtype     of what it writes
    panel     gemm: columns of a panel, or of what is done together of rows in place; "turned": rows of C
    clear     gemm: C starts from 0
    left      gemm: the type of operands of 8 bits on the left
    flip      gemm: the top bits of the right bytes are flipped
    right     gemm: the half type of right operands that are not of C's type
    in_place  gemm: the right operand lies in rows, "together", "apart", or along k, "turned"
    """

    name: str
    dtype: str
    panel: int = 0
    clear: bool = False
    left: str = ""
    flip: bool = False
    right: str = ""
    in_place: str = ""

    @classmethod
    def of(cls, s: ir.MicroCall) -> Micro:
        attrs, d, left = dict(s.attrs), s.writes[0].buffer.dtype, s.reads[0].buffer.dtype
        if s.name == "transpose":
            return cls(s.name, d.name)
        right = s.reads[1].buffer.dtype
        return cls(
            s.name,
            d.name,
            int(attrs["NR"]),
            bool(attrs.get("clear")),
            left.name if left.bits == 8 else "",
            bool(attrs.get("flip")),
            right.name if right != d and left.bits != 8 else "",
            str(attrs.get("in_place", "")),
        )

    def options(self) -> dict[str, Any]:
        """The fields that are not as they are by themselves."""
        found = {f: getattr(self, f) for f in list(self.__dataclass_fields__)[2:]}
        return {f: v for f, v in found.items() if v}

    def emit(self, b: Any) -> Any:
        """The function in the module of this builder."""
        d, width, module = as_dtype(self.dtype), register_bytes(b), b.module
        if self.name == "transpose":
            return emit_transpose(module, d.bits, min(16, max(4, width * 8 // d.bits)))
        form: Form = None
        if self.left:
            form = Bytes.of(as_dtype(self.left), self.flip, module)
        elif self.right:
            form = Halves(as_dtype(self.right))
            if self.in_place == "turned":
                return emit_turned(module, form, self.panel, width // 4, self.clear)
        return emit_gemm(module, d, self.panel, blocking(d, self.panel, width), self.clear, form, self.in_place)


def operands(s: ir.MicroCall) -> Iterator[tuple[ir.Region, tuple[ir.Expr, ...]]]:
    """The regions whose addresses a micro-kernel gets, each with the strides that follow."""
    attrs = dict(s.attrs)
    for r in (*s.writes, *s.reads):
        strides = row_major_strides(r.buffer)
        axes: tuple[int, ...] = (-2,)
        if s.name == "gemm" and r is s.reads[0]:
            axes = (-1, -2) if attrs.get("a_trans") else (-2, -1)
        elif s.name == "gemm" and r is s.reads[1]:
            if attrs.get("in_place"):
                yield r, (ir.Const(int(attrs["NR"]), INT64), strides[-2])
                continue
            axes = (-3, -2)
        yield r, tuple(strides[i] for i in axes)
