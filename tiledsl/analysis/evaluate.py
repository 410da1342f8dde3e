"""The value of a scalar expression on the host: grids, extents, strides; and the integer operators on Python ints.

The interpreter uses the same operator table for its uniform integers (language.md 0.12).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tiledsl.conversions import convert
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError
from tiledsl.ir.build import int_range
from tiledsl.ir.expr import Binary, Cast, Const, Expr, IfThenElse, Select, Unary, Var

__all__ = ["COMPARE", "convert_scalar", "evaluate", "int_binary", "int_unary", "wrapper"]

COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def wrapper(dtype: DType) -> Callable[[int], int]:
    """The function that wraps a Python int at an integer type."""
    low, high = int_range(dtype)
    span = 1 << dtype.bits

    def wrap(v: int) -> int:
        return v if low <= v <= high else (v - low) % span + low

    return wrap


def _truncdiv(a: int, b: int) -> int:
    quotient = abs(a) // abs(b) if b else 0
    return quotient if (a < 0) == (b < 0) else -quotient


def int_binary(op: str, dtype: DType) -> Callable[[Any, Any], Any]:
    """An operator of an integer type (or of bool: comparisons and bit operations) on Python values.

    Division by zero gives 0 (as does the remainder); a shift by the width or more, or by a negative count, gives 0,
    an arithmetic shift right the sign.
    """
    if op in COMPARE:
        return COMPARE[op]
    if dtype.is_bool:
        on_bools: dict[str, Callable[[Any, Any], Any]] = {
            "bitand": operator.and_, "bitor": operator.or_, "bitxor": operator.xor, "min": min, "max": max,
        }  # fmt: skip
        return on_bools[op]
    wrap, bits = wrapper(dtype), dtype.bits
    plain: dict[str, Callable[[int, int], int]] = {
        "min": min,
        "max": max,
        "bitand": operator.and_,
        "bitor": operator.or_,
        "bitxor": operator.xor,
        "shr": lambda a, b: a >> b if 0 <= b < bits else -1 if a < 0 else 0,
        "floormod": lambda a, b: a % b if b else 0,
        "truncmod": lambda a, b: a - b * _truncdiv(a, b) if b else 0,
    }
    if op in plain:
        return plain[op]
    wrapping: dict[str, Callable[[int, int], int]] = {
        "add": operator.add,
        "sub": operator.sub,
        "mul": operator.mul,
        "floordiv": lambda a, b: a // b if b else 0,
        "truncdiv": _truncdiv,
        "div": _truncdiv,
        "shl": lambda a, b: a << b if 0 <= b < bits else 0,
    }
    f = wrapping[op]
    return lambda a, b: wrap(f(a, b))


def int_unary(op: str, dtype: DType) -> Callable[[Any], Any]:
    """An operator of an integer type (or bool) on Python values."""
    if op == "not":
        return operator.not_
    if op in ("floor", "ceil", "trunc", "rint"):
        return lambda v: v
    if dtype.is_bool:
        return {"abs": lambda v: v, "bitnot": operator.not_}[op]
    functions: dict[str, Callable[[Any], Any]] = {"neg": operator.neg, "abs": abs, "bitnot": operator.invert}
    f, wrap = functions[op], wrapper(dtype)
    return lambda v: wrap(f(v))


def convert_scalar(value: Any, src: DType, dst: DType) -> Any:
    """One value by the table of conversions; Python ints and bools, NumPy scalars for floats."""
    with np.errstate(all="ignore"):
        result = convert(np.asarray(value, src.numpy), src, dst)[()]
    return result if dst.is_float else result.item()


def evaluate(expr: Expr, env: Mapping[Var, Any]) -> Any:
    """The value of a scalar expression: int, bool, or float (of the expression's precision).

    env: variables to Python or NumPy values. Raises TileTypeError for an expression that needs a running kernel
    (a Load, a Call) or a variable that env lacks.
    """
    value = _evaluate(expr, env)
    return float(value) if expr.dtype.is_float else value


def _evaluate(e: Expr, env: Mapping[Var, Any]) -> Any:
    if isinstance(e, Const):
        return e.dtype.numpy.type(e.value) if e.dtype.is_float else e.value
    if isinstance(e, Var):
        if e not in env:
            raise TileTypeError(f"{e.name} has no value before the kernel runs", e.loc)
        return e.dtype.numpy.type(env[e]) if e.dtype.is_float else env[e]
    if isinstance(e, Binary):
        a = _evaluate(e.a, env)
        if e.op in ("and", "or"):
            decided = (not a) if e.op == "and" else a
            return bool(a) if decided else bool(_evaluate(e.b, env))
        b = _evaluate(e.b, env)
        return _float_binary(e, a, b) if e.a.dtype.is_float else int_binary(e.op, e.a.dtype)(a, b)
    if isinstance(e, Unary):
        x = _evaluate(e.x, env)
        return _float_unary(e, x) if e.dtype.is_float else int_unary(e.op, e.dtype)(x)
    if isinstance(e, Cast):
        return convert_scalar(_evaluate(e.x, env), e.x.dtype, e.type)
    if isinstance(e, (Select, IfThenElse)):
        return _evaluate(e.t if _evaluate(e.cond, env) else e.f, env)
    raise TileTypeError(f"a {type(e).__name__} has no value before the kernel runs", e.loc)


_FLOAT_BINARY: dict[str, Callable[[Any, Any], Any]] = {
    **COMPARE,
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "min": np.fmin,
    "max": np.fmax,
}
_FLOAT_UNARY: dict[str, Callable[[Any], Any]] = {
    "neg": operator.neg,
    "abs": abs,
    "sqrt": np.sqrt,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "rint": np.rint,
}


def _float_binary(e: Binary, a: Any, b: Any) -> Any:
    if e.op not in _FLOAT_BINARY:
        raise TileTypeError(f"{e.op} of {e.a.dtype} has no value before the kernel runs", e.loc)
    with np.errstate(all="ignore"):
        result = _FLOAT_BINARY[e.op](a, b)
    return bool(result) if e.op in COMPARE else result


def _float_unary(e: Unary, x: Any) -> Any:
    with np.errstate(all="ignore"):
        return _FLOAT_UNARY[e.op](x)
