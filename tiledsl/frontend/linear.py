"""Differences of index expressions: enough to see that `k * 32 + 32 - k * 32` is 32."""

from __future__ import annotations

from tiledsl.analysis.linear import Linear
from tiledsl.ir import Binary, Cast, Const, Expr, Unary

__all__ = ["difference"]


def _linear(e: Expr, atoms: dict[Expr, int]) -> Linear:
    """e as a linear form; atoms: numbers of the expressions that it is made of."""
    match e:
        case Const(value=int(value)):
            return Linear(const=value)
        case Cast(x=x, type=t) if x.dtype.is_int and t.is_int and t.bits >= x.dtype.bits:
            return _linear(x, atoms)
        case Unary(op="neg", x=x):
            return _linear(x, atoms).scale(-1)
        case Binary(op="add" | "sub" as op, a=a, b=b):
            return _linear(a, atoms).plus(_linear(b, atoms), 1 if op == "add" else -1)
        case Binary(op="mul", a=a, b=b):
            left, right = _linear(a, atoms), _linear(b, atoms)
            if left.is_const:
                return right.scale(left.const)
            if right.is_const:
                return left.scale(right.const)
    return Linear({atoms.setdefault(e, len(atoms)): 1})


def difference(a: Expr, b: Expr) -> int | None:
    """a - b when it is the same number for all values of the variables (indices are assumed not to wrap), else None."""
    atoms: dict[Expr, int] = {}
    form = _linear(a, atoms).plus(_linear(b, atoms), -1)
    return form.const if form.is_const else None
