"""Which integer arithmetic cannot leave its type: C's operators do for it; what may wrap is spelled by functions."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.analysis.bounds import kernel_facts
from tiledsl.analysis.scopes import ScopedRewriter
from tiledsl.ir.walk import walk

__all__ = ["plain_arithmetic"]


def plain_arithmetic(function: ir.Function, kernel: ir.Kernel) -> set[int]:
    """The ids of the additions, subtractions and products of a kernel that provably stay in range."""
    finder = _Finder()
    finder.facts = kernel_facts(function, kernel)
    finder.visit_block(kernel.body)
    return finder.found


class _Finder(ScopedRewriter):
    def __init__(self) -> None:
        self.found: set[int] = set()

    def visit_expr(self, e: ir.Expr) -> ir.Expr:
        if _counts(e) and id(e) not in self.found and self.facts.fits(e):
            self.found |= {id(n) for n in walk(e) if isinstance(n, ir.Expr) and _counts(n)}
            return e
        return super().visit_expr(e)


def _counts(e: ir.Expr) -> bool:
    return isinstance(e, ir.Binary) and e.op in ("add", "sub", "mul") and e.dtype.is_int and e.dtype.bits >= 32
