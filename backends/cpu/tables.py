"""Functions of four bits become tables: one permutation of 16 lanes instead of the arithmetic that unpacks a code.

An expression that looks at a value only through `x & c`, c at most 15, has 16 results. Sixteen lanes hold them: the
expression itself, computed in front of the nest for the numbers 0 to 15; in the nest the value's low bits choose.
"""

from __future__ import annotations

from tiledsl import ir
from tiledsl.ir.walk import Rewriter, substitute

from .wide import F32

__all__ = ["coded", "spelt"]

_WORTH = 4  # operators: a permutation replaces them
_NUMBERS: dict[str, ir.Var] = {}


def spelt(e: ir.Expr, known: dict[ir.Var, ir.Expr]) -> ir.Expr | None:
    """e without the variables that stand for functions of four bits, if it is one itself."""
    e = substitute(e, known)
    looked: list[ir.Binary] = []
    return e if _operators(e, looked) > 0 and looked else None


def coded(e: ir.Expr, known: dict[ir.Var, ir.Expr]) -> tuple[ir.Expr, ir.Expr, ir.Var] | None:
    """(the value whose low four bits decide about e, e as a function of a variable, the variable), where it pays.
    known: what variables stand for, as `spelt` gives it."""
    if e.dtype != F32 or isinstance(e, (ir.Load, ir.Fma)):
        return None
    e = substitute(e, known)
    looked: list[ir.Binary] = []
    if _operators(e, looked) < _WORTH or not looked:
        return None
    source = looked[0].a
    if any(x.a != source for x in looked) or source.dtype.bits > 32:
        return None
    number = _NUMBERS.setdefault(source.dtype.name, ir.Var("number", source.dtype))
    return source, _Number(looked, number).visit_expr(e), number


def _operators(e: ir.Expr, looked: list[ir.Binary]) -> float:
    """How many operators e has above what it looks at, which is noted; -inf where it looks at more than four bits."""
    if isinstance(e, ir.Const):
        return 0
    if isinstance(e, ir.Binary) and e.op == "bitand" and isinstance(e.b, ir.Const) and 0 <= e.b.value <= 15:
        inside: list[ir.Binary] = []
        count = _operators(e.a, inside)
        if count > 0 and inside:  # a function of four bits itself
            looked += inside
            return 1 + count
        looked.append(e)
        return 1
    if isinstance(e, ir.Binary):
        return 1 + _operators(e.a, looked) + _operators(e.b, looked)
    if isinstance(e, (ir.Unary, ir.Cast)):
        return 1 + _operators(e.x, looked)
    if isinstance(e, ir.Call) and e.name == "reinterpret":
        return 1 + _operators(e.args[0], looked)
    if isinstance(e, (ir.Select, ir.IfThenElse)):
        return 1 + sum(_operators(x, looked) for x in (e.cond, e.t, e.f))
    return float("-inf")


class _Number(Rewriter):
    """What is looked at, replaced by the variable."""

    def __init__(self, looked: list[ir.Binary], number: ir.Var) -> None:
        self.looked, self.number = looked, number

    def visit_expr(self, e: ir.Expr) -> ir.Expr:
        if any(e is x for x in self.looked):
            return e.replace(a=self.number)
        return super().visit_expr(e)
