"""Operands of gemm, reductions and scans that lie in bytes, two elements each, are copied into tiles of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.analysis.scopes import ScopedRewriter
from tiledsl.ir import build
from tiledsl.ir.walk import walk

__all__ = ["UnpackOperands"]


@dataclass(frozen=True)
class UnpackOperands:
    """The pass. A tile that nobody looks at as another type needs no copy: it is not kept in bytes."""

    name: ClassVar[str] = "unpack_operands"

    def __call__(self, function: ir.Function) -> ir.Function:
        views = {n for k in function.kernels for n in walk(k.body) if isinstance(n, ir.Buffer) and n.alias_of}
        in_bytes = {b for b in views | {b.root for b in views} | set(function.buffers) if b.dtype.is_packed}
        return _Unpacker(in_bytes).run(function) if in_bytes else function


class _Unpacker(ScopedRewriter):
    def __init__(self, in_bytes: set[ir.Buffer]) -> None:
        super().__init__()
        self.in_bytes = in_bytes

    def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if not isinstance(s, (ir.Gemm, ir.Reduce, ir.Scan)):
            return s
        before: list[ir.Stmt] = []
        after: list[ir.Stmt] = []
        moved: dict[str, ir.Region] = {}
        for name in ("a", "b") if isinstance(s, ir.Gemm) else ("src", "dst"):
            region: ir.Region = getattr(s, name)
            if region.buffer not in self.in_bytes:
                continue
            tile = ir.Buffer(region.buffer.name, region.buffer.dtype, region.extents, "fragment", loc=s.loc)
            zeros = tuple(build.zero(e.dtype) for e in region.extents)
            whole = ir.Region(tile, zeros, region.extents)
            axes = tuple(range(len(region.extents)))
            before += [ir.Alloc(tile, loc=s.loc), ir.Copy(region, whole, region.extents, axes, axes, loc=s.loc)]
            if name == "dst":
                after.append(ir.Copy(whole, region, region.extents, axes, axes, loc=s.loc))
            moved[name] = whole
        return (*before, s.replace(**moved), *after) if moved else s
