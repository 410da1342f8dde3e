"""Which integer arithmetic cannot leave its type: C's operators do for it; what may wrap is spelled by functions."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.analysis.bounds import kernel_facts
from tiledsl.analysis.scopes import ScopedRewriter

__all__ = ["plain_arithmetic"]


def plain_arithmetic(function: ir.Function, kernel: ir.Kernel) -> set[int]:
    """The ids of the additions, subtractions and products of a kernel that provably stay in range."""
    finder = _Finder()
    finder.facts = kernel_facts(function, kernel)
    finder.visit_block(kernel.body)
    return {number for number, held in finder.held.items() if held}


class _Finder(ScopedRewriter):
    """held: by the ids of operators, whether they hold wherever they stand; asked: those that the expression at hand,
    or one around it, was asked about."""

    def __init__(self) -> None:
        self.held: dict[int, bool] = {}
        self.asked: set[int] = set()

    def visit_expr(self, e: ir.Expr) -> ir.Expr:
        outer = self.asked
        if _counts(e) and id(e) not in self.asked:
            found = self.facts.held(e)
            self.asked = outer | found.keys()
            for number, held in found.items():
                self.held[number] = held and self.held.get(number, True)
        new = super().visit_expr(e)
        self.asked = outer
        return new


def _counts(e: ir.Expr) -> bool:
    return isinstance(e, ir.Binary) and e.op in ("add", "sub", "mul") and e.dtype.is_int and e.dtype.bits >= 32
