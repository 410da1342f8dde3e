"""Scalar functions: choice, rounding, integer division, exponentials, conversions and limits.

Functions whose arguments are all Python ints (T.ceildiv, T.max, ...) give Python ints, so that they serve for tile
sizes too.
"""

from __future__ import annotations

import functools
import math as _math
import operator
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype, promote
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.frontend.control import choice_dtype
from tiledsl.frontend.control import if_then_else as _if_then_else
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import BOOL, FLOAT32, as_number, convert, is_number
from tiledsl.frontend.values import Value, as_bool, as_value, binary, describe, to_dtype, unary
from tiledsl.language.operation import named, surface

__all__ = [
    "Select", "abs", "bitwise_and", "bitwise_not", "bitwise_or", "bitwise_xor", "ceil",
    "ceildiv", "clamp", "floor", "floordiv", "floormod", "fma", "if_then_else", "infinity",
    "isfinite", "isinf", "isnan", "max", "max_value", "min", "min_value", "nearbyint", "round",
    "rsqrt", "shift_left", "shift_right", "sigmoid", "sqrt", "trunc", "truncdiv", "truncmod",
]  # fmt: skip


def _two(name: str, op: str, a: Any, b: Any, python: Callable[[Any, Any], Any] | None) -> Any:
    if is_number(a) and is_number(b) and python is not None:
        x, y = as_number(a), as_number(b)
        if op.endswith(("div", "mod")) and y == 0:
            raise error("python-division", TileValueError, f"T.{name}: division by zero: {x}, {y}")
        return python(x, y)
    if op.endswith(("div", "mod")) and is_number(b) and b == 0:
        raise error("python-division", TileValueError, f"T.{name}: division by zero: {describe(a)}, 0")
    left = as_value(a, f"T.{name}: the first operand") if is_number(a) and is_number(b) else a
    result = binary(op, left, b)
    if result is NotImplemented:
        for x in (a, b):
            as_value(x, f"T.{name}: an operand")
    return result


def _operator(name: str, op: str, python: Callable[[Any, Any], Any], doc: str) -> Callable[[Any, Any], Any]:
    """T.<name> of two scalars: an operator of the IR, and what it is of Python numbers."""

    def function(a: Any, b: Any) -> Any:
        return _two(name, op, a, b, python)

    return surface(named(function, name, doc))


max = _operator(
    "max",
    "max",
    lambda x, y: x if x >= y else y,
    "The larger of two scalars; of NaN and a number, the number; -0 is below +0.",
)
min = _operator(
    "min",
    "min",
    lambda x, y: x if x <= y else y,
    "The smaller of two scalars; of NaN and a number, the number; -0 is below +0.",
)
floordiv = _operator("floordiv", "floordiv", operator.floordiv, "a / b rounded down; integers.")
floormod = _operator("floormod", "floormod", operator.mod, "a - b * floordiv(a, b): has the sign of b; integers.")
truncdiv = _operator(
    "truncdiv",
    "truncdiv",
    lambda x, y: (-1 if (x < 0) != (y < 0) else 1) * (_abs(x) // _abs(y)),
    "a / b rounded towards 0; integers.",
)
truncmod = _operator(
    "truncmod",
    "truncmod",
    lambda x, y: (-1 if x < 0 else 1) * (_abs(x) % _abs(y)),
    "a - b * truncdiv(a, b): has the sign of a; integers.",
)
bitwise_and = _operator("bitwise_and", "bitand", operator.and_, "a & b.")
bitwise_or = _operator("bitwise_or", "bitor", operator.or_, "a | b.")
bitwise_xor = _operator("bitwise_xor", "bitxor", operator.xor, "a ^ b.")
shift_left = _operator("shift_left", "shl", operator.lshift, "a << b; a shift by the width or more gives 0.")
shift_right = _operator(
    "shift_right", "shr", operator.rshift, "a >> b: arithmetic for signed, logical for unsigned integers."
)


@surface
def clamp(x: Any, low: Any, high: Any) -> Any:
    """min(max(x, low), high)."""
    return min(max(x, low), high)


@surface
def ceildiv(a: Any, b: Any) -> Any:
    """a / b rounded up: (a + b - 1) // b; integers."""
    if is_number(a) and is_number(b):
        return _two("ceildiv", "floordiv", a, b, lambda x, y: -(-x // y))
    for x in (a, b):
        as_value(x, "T.ceildiv: an operand")  # or says what it is
    if is_number(b) and b == 0:
        raise error("python-division", TileValueError, f"T.ceildiv: division by zero: {describe(a)}, 0")
    return _two("ceildiv", "floordiv", binary("sub", binary("add", a, b), 1), b, None)


def _abs(x: Any) -> Any:
    return -x if x < 0 else x


@surface
def bitwise_not(x: Any) -> Any:
    """~x."""
    operand: Any = as_number(x) if isinstance(x, (int, np.integer)) else as_value(x, "T.bitwise_not: its operand")
    return ~operand


# -- choice -----------------------------------------------------------------------------------------------


@surface
def if_then_else(cond: Any, t: Any, f: Any) -> Any:
    """t where cond holds, else f. Only the chosen side is evaluated: it may guard a load."""
    if not isinstance(cond, Value):
        return t if cond else f
    return _if_then_else(cond, t, f)


@surface
def Select(cond: Any, t: Any, f: Any) -> Any:
    """t where cond holds, else f; both sides are evaluated and have one dtype."""
    if not isinstance(cond, Value):
        return t if cond else f
    left, right = as_value(t, "T.Select: a side"), as_value(f, "T.Select: a side")
    if isinstance(t, Value) and isinstance(f, Value) and t.dtype is not f.dtype:
        raise error(
            "select-dtypes",
            TileTypeError,
            f"T.Select: the sides differ in dtype: {left!r} ({left.dtype}), {right!r} ({right.dtype})",
            help="cast one side, or use T.if_then_else",
        )
    return select_value(cond, t, f)


def select_value(cond: Any, t: Any, f: Any) -> Any:
    """An eager choice in the sides' common dtype."""
    dtype = choice_dtype("Select", t, f)
    return Value(ir.Select(as_bool(cond, "a choice"), to_dtype(t, dtype), to_dtype(f, dtype), loc=here()))


# -- floats -----------------------------------------------------------------------------------------------


def _float(name: str, x: Any) -> Value:
    v = as_value(float(x) if is_number(x) else x, f"T.{name}: the argument")
    if not v.dtype.is_float:
        raise error(
            "math-dtype",
            TileTypeError,
            f"T.{name} takes a float, got {v!r} ({v.dtype})",
            help=f"convert it: T.{name}(T.float32(x))",
        )
    return v


def number_operands(name: str, *args: Any) -> tuple[tuple[ir.Expr, ...], DType]:
    """Float operands in their common dtype, and it; Python ints take the dtype of the others."""
    values = [_float(name, x) for x in args]
    known = [v.dtype for x, v in zip(args, values, strict=True) if not isinstance(x, (int, np.integer))]
    dtype = functools.reduce(promote, known or [FLOAT32])
    return tuple(to_dtype(v, dtype) for v in values), dtype


def math_call(name: str, intrinsic: str, *args: Any) -> Value:
    """A function that is expanded in float32 or float64; halves go through float32."""
    operands, dtype = number_operands(name, *args)
    inner = FLOAT32 if dtype.bits < 32 else dtype
    call = ir.Call(intrinsic, tuple(convert(e, inner) for e in operands), inner, loc=here())
    return Value(convert(call, dtype, loc=True))


@surface
def rsqrt(x: Any) -> Any:
    """1 / sqrt(x), both correctly rounded; keeps the dtype."""
    return math_call("rsqrt", "rsqrt", x)


@surface
def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(0 - x)); keeps the dtype."""
    v = _float("sigmoid", x)
    return 1 / (1 + math_call("exp", "exp", 0 - v))


@surface
def sqrt(x: Any) -> Any:
    """Square root, correctly rounded; keeps the dtype."""
    return unary("sqrt", _float("sqrt", x))


@surface
def abs(x: Any) -> Any:
    """Absolute value."""
    return _abs(as_number(x)) if is_number(x) else unary("abs", as_value(x, "T.abs: the argument"))


def _rounding(name: str, op: str, x: Any, python: Callable[[float], Any]) -> Any:
    if is_number(x):
        return python(as_number(x))
    v = as_value(x, f"T.{name}: the argument")
    return v if v.dtype.is_int else unary(op, _float(name, x))


@surface
def floor(x: Any) -> Any:
    """The largest whole number not above x; keeps the dtype."""
    return _rounding("floor", "floor", x, _math.floor)


@surface
def ceil(x: Any) -> Any:
    """The smallest whole number not below x; keeps the dtype."""
    return _rounding("ceil", "ceil", x, _math.ceil)


@surface
def trunc(x: Any) -> Any:
    """x without its fraction; keeps the dtype."""
    return _rounding("trunc", "trunc", x, _math.trunc)


@surface
def round(x: Any, rounding_mode: str = "ties-to-even") -> Any:
    """The nearest whole number; keeps the dtype. rounding_mode: "ties-to-even" or "ties-away-from-zero"."""
    if rounding_mode == "ties-to-even":
        return _rounding("round", "rint", x, lambda v: int(np.rint(v)))
    if rounding_mode != "ties-away-from-zero":
        raise error(
            "round-mode",
            TileValueError,
            f"T.round: unknown rounding_mode {rounding_mode!r}",
            help='"ties-to-even" or "ties-away-from-zero"',
        )
    if is_number(x):
        return int(_math.copysign(_math.floor(_abs(as_number(x)) + 0.5), as_number(x)))
    v = as_value(x, "T.round: the argument")
    return v if v.dtype.is_int else math_call("round", "round_away", v)


@surface
def nearbyint(x: Any) -> Any:
    """Same as `round`: ties to even."""
    return round(x)


@surface
def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding. float16 and bfloat16 go through float32."""
    dtype = promote(promote(_float("fma", a).dtype, _float("fma", b).dtype), _float("fma", c).dtype)
    inner = FLOAT32 if dtype.bits < 32 else dtype
    return Value(convert(ir.Fma(*(to_dtype(x, inner) for x in (a, b, c)), loc=here()), dtype, loc=True))


def _classify(name: str, doc: str) -> Callable[[Any], Any]:
    def function(x: Any) -> Any:
        return Value(ir.Call(name, (_float(name, x).expr,), BOOL, loc=here()))

    return surface(named(function, name, doc))


isnan = _classify("isnan", "True for NaN.")
isinf = _classify("isinf", "True for the two infinities.")
isfinite = _classify("isfinite", "Neither NaN nor infinite.")


# -- limits -----------------------------------------------------------------------------------------------


def _limits(what: str, dtype: Any) -> tuple[DType, float, float]:
    try:
        kind = as_dtype(dtype)
    except TypeError as e:
        raise error("limit-of", TileTypeError, f"{what} takes a dtype: {e}") from None
    if kind.is_bool:
        return kind, False, True
    if kind.is_int:
        signed = kind.is_signed
        return kind, -(1 << kind.bits - 1) if signed else 0, (1 << kind.bits - signed) - 1
    if not kind.is_float or kind.is_vector:
        raise error("limit-kind", TileTypeError, f"{what}: {kind} is no scalar number type")
    info = ml_dtypes.finfo(kind.numpy)  # type: ignore[no-untyped-call]
    return kind, float(info.min), float(info.max)


@surface
def infinity(dtype: Any = "float32") -> Any:
    """Positive infinity of a float type that has one."""
    kind, _, _ = _limits("T.infinity", dtype)
    if kind.name not in ("float16", "bfloat16", "float32", "float64", "float8_e5m2"):
        raise error(
            "no-infinity", TileTypeError, f"T.infinity: {kind} has no infinity", help="use T.max_value or T.min_value"
        )
    return Value(ir.Const(_math.inf, kind, loc=here()))


@surface
def max_value(dtype: Any) -> Any:
    """The largest finite value of a type."""
    kind, _, high = _limits("T.max_value", dtype)
    return Value(ir.Const(high, kind, loc=here()))


@surface
def min_value(dtype: Any) -> Any:
    """The lowest finite value of a type."""
    kind, low, _ = _limits("T.min_value", dtype)
    return Value(ir.Const(low, kind, loc=here()))
