"""Layouts of global tensors written out: accesses go to a view of the memory as it lies, by indices in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.ir import Atomic, Buffer, Expr, Function, Load, Stmt, Store, build
from tiledsl.ir.layout import LayoutData, physical_indices
from tiledsl.ir.walk import Rewriter

__all__ = ["ApplyLayouts"]


@dataclass(frozen=True)
class ApplyLayouts:
    """The pass; expects element accesses that are in range (`expand_moves` and `guard_bounds` have run)."""

    name: ClassVar[str] = "apply_layouts"

    def __call__(self, function: Function) -> Function:
        plain = {b: b.replace(layout=None) for b in function.buffers if b.layout is not None}
        if not plain:
            return function
        views: dict[Buffer, tuple[LayoutData, Buffer]] = {}
        for b, p in plain.items():
            extents = tuple(build.const(n, build.INT32) for n in b.layout[0])
            views[p] = b.layout, Buffer(f"{b.name}_memory", b.dtype, extents, "global", alias_of=p, loc=b.loc)
        result: Function = _Place(plain, views).visit(function)
        return result


class _Place(Rewriter):
    def __init__(self, plain: dict[Buffer, Buffer], views: dict[Buffer, tuple[LayoutData, Buffer]]) -> None:
        self.plain, self.views = plain, views

    def buffer(self, b: Buffer) -> Buffer:
        return self.plain.get(b, b)

    def expr(self, e: Expr) -> Expr:
        if isinstance(e, Load) and e.buffer in self.views:
            layout, view = self.views[e.buffer]
            return e.replace(buffer=view, indices=physical_indices(layout, e.indices))
        return e

    def stmt(self, s: Stmt) -> Stmt:
        if isinstance(s, (Store, Atomic)) and s.buffer in self.views:
            layout, view = self.views[s.buffer]
            return s.replace(buffer=view, indices=physical_indices(layout, s.indices))
        return s
