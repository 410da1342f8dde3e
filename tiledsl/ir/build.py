"""Building expressions: operators that fold constants and integer identities exactly as the language means them.

What is folded: integers wrap at their type; floats only by the same IEEE operation, in NumPy; identities only
where no bit can change (none on floats). What is dropped: an operand that `droppable` allows, that is, one whose
evaluation nobody can notice. Everything takes Python ints, bools and floats where the other operand gives a type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np

from tiledsl.conversions import convert
from tiledsl.dtypes import INT32, DType, as_dtype, promote
from tiledsl.ir import arithmetic
from tiledsl.ir.arithmetic import int_range, wrapper
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
    "zero",
]  # fmt: skip

_NEGATED = {"eq": "ne", "ne": "eq", "lt": "ge", "ge": "lt", "gt": "le", "le": "gt"}
_IEEE = frozenset(["float64", "float32", "float16", "bfloat16"])  # NumPy computes these as the language does
Operand = Expr | int | float | bool


# -- constants ---------------------------------------------------------------------------------------


def const(value: Any, dtype: DType) -> Const:
    """A literal of the type: integers wrap, floats are rounded to it."""
    if dtype.is_bool:
        return Const(bool(value), dtype)
    if dtype.is_int:
        return Const(wrapper(dtype)(int(value)), dtype)
    if dtype.name == "float64":
        return Const(float(value), dtype)
    with np.errstate(all="ignore"):
        if dtype.bits <= 8:  # the table's roundings and saturation, which are not those of ml_dtypes
            return Const(float(convert(np.array([value], np.float64), as_dtype("float64"), dtype)[0]), dtype)
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
        if (
            isinstance(n, Binary)
            and n.op in _DIVISIONS
            and n.a.dtype.is_int
            and not (isinstance(n.b, Const) and n.b.value)
        ):
            return False
    return True


_DIVISIONS = frozenset(["floordiv", "floormod", "truncdiv", "truncmod", "div"])


# -- folding -------------------------------------------------------------------------------------------


def _scalar(c: Const) -> Any:
    """The literal as `arithmetic` takes it."""
    return c.type.numpy.type(c.value) if c.type.is_float else c.value


def _folded(function: Callable[..., Any] | None, dtype: DType, *operands: Const) -> Const | None:
    """function(operands) as a literal; None where there is no function, or NumPy does not compute as the language."""
    if function is None or any(c.type.is_float and c.type.name not in _IEEE for c in operands):
        return None
    with np.errstate(all="ignore"):
        return const(function(*map(_scalar, operands)), dtype)


def fold_binary(op: str, a: Const, b: Const) -> Const | None:
    """The literal that `a op b` is, or None where it cannot be computed here."""
    dtype = a.type
    if dtype.is_vector or b.type is not dtype:
        return None
    if op in ("and", "or"):
        return const(a.value and b.value if op == "and" else a.value or b.value, BOOL)
    if dtype.is_int and ((op in _DIVISIONS and b.value == 0) or (op in ("shl", "shr") and b.value < 0)):
        return None  # reported in checked mode: stays
    if op in ("min", "max") and (a.value != a.value or b.value != b.value):
        return None  # NaN is left to the targets
    return _folded(arithmetic.binary(op, dtype, False), BOOL if op in COMPARISONS else dtype, a, b)


def fold_unary(op: str, x: Const) -> Const | None:
    return None if x.type.is_vector else _folded(arithmetic.unary(op, x.type, False), x.type, x)


def fold_cast(x: Const, dtype: DType) -> Const | None:
    """The literal converted by the one table of conversions."""
    if dtype.is_vector or x.type.is_vector or "handle" in (x.type.kind, dtype.kind):
        return None
    with np.errstate(all="ignore"):
        return const(arithmetic.cast(x.type, dtype, False)(_scalar(x)), dtype)


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
    if ((value == 0 and op in ("mul", "bitand")) or (value == 1 and op in ("floormod", "truncmod"))) and droppable(a):
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


add, sub, mul, floordiv, floormod, min_, max_ = (
    partial(binary, op) for op in ("add", "sub", "mul", "floordiv", "floormod", "min", "max")
)
eq, ne, lt, le, gt, ge, and_, or_ = (partial(binary, op) for op in ("eq", "ne", "lt", "le", "gt", "ge", "and", "or"))


def ceildiv(a: Operand, b: Operand) -> Expr:
    """(a + b - 1) // b, the language's definition."""
    return floordiv(sub(add(a, b), 1), b)


not_ = partial(unary, "not")


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
