"""Differences of index expressions: enough to see that `k * 32 + 32 - k * 32` is 32."""

from __future__ import annotations

from tiledsl.ir import Binary, Cast, Const, Expr, Unary

__all__ = ["difference"]

_Form = tuple[dict[Expr, int], int]


def _linear(e: Expr) -> _Form:
    """e = sum(coefficient * term) + constant; terms are opaque expressions."""
    match e:
        case Const(value=int(value)):
            return {}, value
        case Cast(x=x, type=t) if x.dtype.is_int and t.is_int and t.bits >= x.dtype.bits:
            return _linear(x)
        case Unary(op="neg", x=x):
            return _scale(_linear(x), -1)
        case Binary(op="add", a=a, b=b):
            return _add(_linear(a), _linear(b))
        case Binary(op="sub", a=a, b=b):
            return _add(_linear(a), _scale(_linear(b), -1))
        case Binary(op="mul", a=a, b=b):
            left, right = _linear(a), _linear(b)
            if not left[0]:
                return _scale(right, left[1])
            if not right[0]:
                return _scale(left, right[1])
    return {e: 1}, 0


def _scale(form: _Form, factor: int) -> _Form:
    return {term: c * factor for term, c in form[0].items()}, form[1] * factor


def _add(a: _Form, b: _Form) -> _Form:
    terms = dict(a[0])
    for term, c in b[0].items():
        terms[term] = terms.get(term, 0) + c
    return terms, a[1] + b[1]


def difference(a: Expr, b: Expr) -> int | None:
    """a - b when it is the same number for all values of the variables (indices are assumed not to wrap), else None."""
    terms, constant = _add(_linear(a), _scale(_linear(b), -1))
    return None if any(terms.values()) else constant
