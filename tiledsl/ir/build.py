"""Building expressions: operators that fold constants and integer identities exactly as the language means them.

What is folded: integers wrap at their type; floats only by the same IEEE operation, in NumPy; identities only
where no bit can change (none on floats). What is dropped: an operand that `droppable` allows, that is, one whose
evaluation nobody can notice. Everything takes Python ints, bools and floats where the other operand gives a type.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from tiledsl.dtypes import DType, as_dtype, promote
from tiledsl.ir.expr import (
    BOOL,
    COMPARISONS,
    Binary,
    Cast,
    Const,
    Expr,
    IfThenElse,
    Load,
    Select,
    Unary,
)
from tiledsl.ir.walk import walk

__all__ = [
    "FALSE", "INT32", "TRUE", "add", "all_of", "and_", "binary", "cast", "ceildiv", "const", "droppable", "eq",
    "floordiv", "floormod", "fold_binary", "fold_cast", "fold_unary", "ge", "gt", "if_then_else", "int_range",
    "is_const", "le", "lt", "max_", "min_", "mul", "ne", "not_", "or_", "same_type", "select", "sub", "unary",
    "wrap", "zero",
]  # fmt: skip

INT32 = as_dtype("int32")
_NEGATED = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
_IEEE = frozenset(["float64", "float32", "float16", "bfloat16"])  # NumPy computes these as the language does
Operand = Expr | int | float | bool


# -- constants ---------------------------------------------------------------------------------------


def int_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer type (bool: 0, 1)."""
    if dtype.is_bool:
        return 0, 1
    if dtype.kind == "int":
        return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1
    return 0, (1 << dtype.bits) - 1


def wrap(value: int, dtype: DType) -> int:
    """value modulo 2**bits, in the range of the integer type."""
    low, _ = int_range(dtype)
    return (value - low) % (1 << dtype.bits) + low


def const(value: Any, dtype: DType) -> Const:
    """A literal of the type: integers wrap, floats are rounded to it."""
    if dtype.is_bool:
        return Const(bool(value), dtype)
    if dtype.is_int:
        return Const(wrap(int(value), dtype), dtype)
    if dtype.name == "float64":
        return Const(float(value), dtype)
    with np.errstate(all="ignore"):
        return Const(float(np.float64(value).astype(dtype.numpy)), dtype)


def zero(dtype: DType) -> Const:
    return const(0, dtype)


TRUE, FALSE = Const(True, BOOL), Const(False, BOOL)


def is_const(e: Expr, value: Any = None) -> bool:
    """A literal (equal to `value`, when one is given)."""
    return isinstance(e, Const) and (value is None or (e.value == value and not e.type.is_vector))


def droppable(e: Expr) -> bool:
    """Nobody can notice whether e is evaluated: it reads no memory (out of range, poison) and divides by no zero."""
    for n in walk(e):
        if isinstance(n, Load):
            return False
        if isinstance(n, Binary) and n.op in _DIVISIONS and n.a.dtype.is_int and not _nonzero(n.b):
            return False
    return True


_DIVISIONS = frozenset(["floordiv", "floormod", "truncdiv", "truncmod"])


def _nonzero(e: Expr) -> bool:
    return isinstance(e, Const) and e.value != 0


# -- folding -------------------------------------------------------------------------------------------


def _fold_int(op: str, a: int, b: int, dtype: DType) -> int | bool | None:
    if op in _COMPARE:
        return bool(_COMPARE[op](a, b))
    if op in _DIVISIONS:
        if b == 0:
            return None  # reported in checked mode: stays
        if op == "floordiv":
            return wrap(a // b, dtype)
        if op == "floormod":
            return wrap(a % b, dtype)
        quotient = abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
        return wrap(quotient if op == "truncdiv" else a - quotient * b, dtype)
    if op in ("shl", "shr"):
        if b < 0:
            return None
        b = min(b, dtype.bits)
        return wrap(a << b if op == "shl" else a >> b, dtype)
    if op in _INT:
        return wrap(_INT[op](a, b), dtype)
    return None


_COMPARE: dict[str, Any] = {
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
}
_INT: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "min": min,
    "max": max,
    "bitand": lambda a, b: a & b,
    "bitor": lambda a, b: a | b,
    "bitxor": lambda a, b: a ^ b,
}
_FLOAT: dict[str, Any] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


def _scalar(c: Const) -> Any:
    """The literal as a NumPy scalar of its own type."""
    return c.type.numpy.type(c.value)


def fold_binary(op: str, a: Const, b: Const) -> Const | None:
    """The literal that `a op b` is, or None where it cannot be computed here."""
    dtype = a.type
    if dtype.is_vector or b.type is not dtype:
        return None
    if dtype.is_bool:
        if op in ("and", "bitand"):
            return const(a.value and b.value, BOOL)
        if op in ("or", "bitor"):
            return const(a.value or b.value, BOOL)
        if op in ("eq", "ne", "bitxor"):
            return const((a.value == b.value) == (op == "eq"), BOOL)
        return None
    if dtype.is_int:
        value = _fold_int(op, a.value, b.value, dtype)
        return None if value is None else const(value, BOOL if op in COMPARISONS else dtype)
    if dtype.name not in _IEEE:
        return None
    if op in _COMPARE:
        return const(_COMPARE[op](a.value, b.value), BOOL)
    if op in ("min", "max"):
        return _fold_extreme(op, a, b)
    if op in _FLOAT:
        with np.errstate(all="ignore"):
            return const(float(_FLOAT[op](_scalar(a), _scalar(b))), dtype)
    return None


def _fold_extreme(op: str, a: Const, b: Const) -> Const | None:
    """min and max of floats: NaN is left to the targets, -0 is below +0."""
    if math.isnan(a.value) or math.isnan(b.value):
        return None

    def key(c: Const) -> tuple[float, float]:
        return c.value, math.copysign(1.0, c.value)

    return min(a, b, key=key) if op == "min" else max(a, b, key=key)


def fold_unary(op: str, x: Const) -> Const | None:
    dtype, value = x.type, x.value
    if dtype.is_vector:
        return None
    if dtype.is_bool:
        return const(not value, BOOL) if op == "not" else None
    if dtype.is_int:
        if op == "neg":
            return const(-value, dtype)
        if op == "bitnot":
            return const(~value, dtype)
        return const(abs(value), dtype) if op == "abs" else None
    if dtype.name not in _IEEE:
        return None
    if op == "neg":
        return const(-value, dtype)
    if op == "abs":
        return const(abs(value), dtype)
    if op in ("sqrt", "floor", "ceil", "trunc", "rint"):
        with np.errstate(all="ignore"):
            return const(float(getattr(np, op)(_scalar(x))), dtype)
    return None


def fold_cast(x: Const, dtype: DType) -> Const | None:
    """The literal converted by the one table of conversions."""
    src = x.type
    if dtype.is_vector or src.is_vector or "handle" in (src.kind, dtype.kind):
        return None
    if dtype.is_int and not src.is_float:
        return const(int(x.value), dtype)
    from tiledsl.conversions import convert

    with np.errstate(all="ignore"):
        value = convert(np.array([x.value], src.numpy), src, dtype)[0]
    return const(bool(value) if dtype.is_bool else int(value) if dtype.is_int else float(value), dtype)


# -- operators ---------------------------------------------------------------------------------------------


def same_type(a: Operand, b: Operand) -> tuple[Expr, Expr]:
    """Both operands as expressions of one type: a Python number takes the other's, else the promoted type."""
    if not isinstance(a, Expr):
        if not isinstance(b, Expr):
            raise TypeError("one operand has to be an expression")
        return const(a, b.dtype), b
    if not isinstance(b, Expr):
        return a, const(b, a.dtype)
    if a.dtype is b.dtype:
        return a, b
    for x, y in ((a, b), (b, a)):  # a literal follows where its value fits
        low, high = int_range(y.dtype) if y.dtype.is_int else (0, -1)
        if isinstance(x, Const) and x.type.is_int and low <= x.value <= high:
            return (const(x.value, y.dtype), y) if x is a else (y, const(x.value, y.dtype))
    common = promote(a.dtype, b.dtype)
    return cast(a, common), cast(b, common)


def binary(op: str, a: Operand, b: Operand, loc: Any = None) -> Expr:
    """`a op b`, folded."""
    a, b = same_type(a, b)
    if isinstance(a, Const) and isinstance(b, Const):
        folded = fold_binary(op, a, b)
        if folded is not None:
            return folded
    found: Expr | None = None
    if op in ("and", "or"):
        found = _logical(op, a, b)
    elif a.dtype.is_int and not a.dtype.is_vector:
        found = _identity(op, a, b)
    return Binary(op, a, b, loc=loc) if found is None else found


def _logical(op: str, a: Expr, b: Expr) -> Expr | None:
    decides = op == "or"  # the left value that decides
    if isinstance(a, Const):
        return a if a.value == decides else b
    if isinstance(b, Const):
        if b.value != decides:
            return a
        return b if droppable(a) else None
    return None


def _identity(op: str, a: Expr, b: Expr) -> Expr | None:
    """Integer identities; a literal left operand of a commutative operator counts as right."""
    if isinstance(a, Const) and op in ("add", "mul"):
        a, b = b, a
    if not isinstance(b, Const):
        return zero(a.dtype) if op == "sub" and a == b and droppable(a) else None
    value = b.value
    if value == 0 and op in ("add", "sub", "shl", "shr", "bitor", "bitxor"):
        return a
    if value == 1 and op in ("mul", "floordiv", "truncdiv"):
        return a
    if droppable(a) and ((value == 0 and op in ("mul", "bitand")) or (value == 1 and op in ("floormod", "truncmod"))):
        return zero(a.dtype)
    if op in ("add", "sub", "mul") and isinstance(a, Binary) and isinstance(a.b, Const):
        return _chain(op, a, b)
    return None


def _chain(op: str, a: Binary, b: Const) -> Expr | None:
    """(x + c) + d and (x * c) * d with one literal; only where the literals' own sum or product does not wrap."""
    assert isinstance(a.b, Const)
    if op == "mul":
        if a.op != "mul":
            return None
        combined = a.b.value * b.value
    elif a.op in ("add", "sub"):
        combined = (a.b.value if a.op == "add" else -a.b.value) + (b.value if op == "add" else -b.value)
    else:
        return None
    low, high = int_range(b.type)
    if not low < combined <= high:
        return None
    if op == "mul":
        return mul(a.a, combined)
    return add(a.a, combined) if combined >= 0 else sub(a.a, -combined)


def unary(op: str, x: Expr, loc: Any = None) -> Expr:
    """`op x`, folded."""
    if isinstance(x, Const):
        folded = fold_unary(op, x)
        if folded is not None:
            return folded
    if op == "not":
        if isinstance(x, Unary) and x.op == "not":
            return x.x
        if isinstance(x, Binary) and x.op in _NEGATED and not x.a.dtype.is_float:  # NaN: not (a < b) is not a >= b
            return Binary(_NEGATED[x.op], x.a, x.b, loc=loc or x.loc)
    return Unary(op, x, loc=loc)


def cast(x: Expr, dtype: DType, loc: Any = None) -> Expr:
    """x converted, folded; widening an integer and going back is x."""
    if x.dtype is dtype:
        return x
    if isinstance(x, Const):
        folded = fold_cast(x, dtype)
        if folded is not None:
            return folded
    if isinstance(x, Cast) and x.x.dtype is dtype and _widens(dtype, x.type):
        return x.x
    return Cast(x, dtype, loc=loc)


def _widens(a: DType, b: DType) -> bool:
    """Every value of integer type a is a value of integer type b."""
    if not (a.is_int and b.is_int) or a.is_vector:
        return False
    (low, high), (wide_low, wide_high) = int_range(a), int_range(b)
    return wide_low <= low and high <= wide_high


def add(a: Operand, b: Operand) -> Expr:
    return binary("add", a, b)


def sub(a: Operand, b: Operand) -> Expr:
    return binary("sub", a, b)


def mul(a: Operand, b: Operand) -> Expr:
    return binary("mul", a, b)


def floordiv(a: Operand, b: Operand) -> Expr:
    return binary("floordiv", a, b)


def floormod(a: Operand, b: Operand) -> Expr:
    return binary("floormod", a, b)


def ceildiv(a: Operand, b: Operand) -> Expr:
    """(a + b - 1) // b, the language's definition."""
    return floordiv(sub(add(a, b), 1), b)


def min_(a: Operand, b: Operand) -> Expr:
    return binary("min", a, b)


def max_(a: Operand, b: Operand) -> Expr:
    return binary("max", a, b)


def eq(a: Operand, b: Operand) -> Expr:
    return binary("eq", a, b)


def ne(a: Operand, b: Operand) -> Expr:
    return binary("ne", a, b)


def lt(a: Operand, b: Operand) -> Expr:
    return binary("lt", a, b)


def le(a: Operand, b: Operand) -> Expr:
    return binary("le", a, b)


def gt(a: Operand, b: Operand) -> Expr:
    return binary("gt", a, b)


def ge(a: Operand, b: Operand) -> Expr:
    return binary("ge", a, b)


def and_(a: Operand, b: Operand) -> Expr:
    return binary("and", a, b)


def or_(a: Operand, b: Operand) -> Expr:
    return binary("or", a, b)


def not_(x: Expr) -> Expr:
    return unary("not", x)


def all_of(conditions: Iterable[Expr]) -> Expr:
    """Lazy conjunction, left to right; true when there are none."""
    result: Expr = TRUE
    for c in conditions:
        result = and_(result, c)
    return result


def if_then_else(cond: Expr, t: Expr, f: Expr, loc: Any = None) -> Expr:
    """Lazy choice, decided here when the condition is a literal."""
    if isinstance(cond, Const) and not cond.type.is_vector:
        return t if cond.value else f
    return IfThenElse(cond, t, f, loc=loc)


def select(cond: Expr, t: Expr, f: Expr, loc: Any = None) -> Expr:
    """Eager choice, decided here when the condition is a literal and the other side can be dropped."""
    if isinstance(cond, Const) and not cond.type.is_vector and droppable(f if cond.value else t):
        return t if cond.value else f
    return Select(cond, t, f, loc=loc)
