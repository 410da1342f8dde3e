"""The operators of the language on NumPy values (language.md 0.7 and 0.12).

Floats: arrays or NumPy scalars of the storage type. Integers and bools: arrays; Python ints go through
`tiledsl.analysis.evaluate`. Everything runs under `np.errstate(all="ignore")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tiledsl.analysis.evaluate import COMPARE, convert_scalar, int_binary, int_unary, wrapper
from tiledsl.conversions import converter
from tiledsl.dtypes import DType, as_dtype

__all__ = [
    "binary", "cast", "combine_lanes", "fmax", "fmin", "highest", "lowest", "ordered_keys", "unary",
]  # fmt: skip

Function1 = Callable[[Any], Any]
Function2 = Callable[[Any, Any], Any]
_F32 = as_dtype("float32")


# -- float max and min: NaN is ignored, -0 lies below +0 ---------------------------------------------


def fmax(a: Any, b: Any) -> Any:
    larger = np.maximum(a, b)
    if np.any(larger != larger):  # np.fmax gives NaN for a signalling one
        larger = np.where(a != a, b, np.where(b != b, a, larger))[()]
    if np.any(larger == 0):
        both = (a == 0) & (b == 0)
        larger = np.where(both, a + b, larger)[()]
    return larger


def fmin(a: Any, b: Any) -> Any:
    smaller = np.minimum(a, b)
    if np.any(smaller != smaller):
        smaller = np.where(a != a, b, np.where(b != b, a, smaller))[()]
    if np.any(smaller == 0):
        both = (a == 0) & (b == 0)
        smaller = np.where(both, -(-a + -b), smaller)[()]
    return smaller


def ordered_keys(x: Any) -> Any:
    """Signed integers in the order of the floats, -0 below +0; the same function maps keys' bits back."""
    bits = x.view(np.dtype(f"int{8 * x.dtype.itemsize}"))
    return bits ^ ((bits >> (8 * x.dtype.itemsize - 1)) & np.iinfo(bits.dtype).max)


# -- tables -----------------------------------------------------------------------------------------------


def _floordiv_float(a: Any, b: Any) -> Any:
    return np.floor(a / b)


def _truncdiv(a: Any, b: Any) -> Any:
    down = np.floor_divide(a, b)
    inexact = (np.remainder(a, b) != 0) & ((a < 0) != (b < 0))
    return down + inexact


def _truncmod(a: Any, b: Any) -> Any:
    rest = np.remainder(a, b)
    return rest - np.where((rest != 0) & ((a < 0) != (b < 0)), b, 0)


_FLOAT: dict[str, Function2] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": fmax, "min": fmin,
    "floordiv": _floordiv_float,
}  # fmt: skip
_INT: dict[str, Function2] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "floordiv": np.floor_divide, "floormod": np.remainder,
    "truncdiv": _truncdiv, "truncmod": _truncmod, "div": _truncdiv, "max": np.maximum, "min": np.minimum,
    "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor, "shl": np.left_shift,
    "shr": np.right_shift,
}  # fmt: skip
_COMPARE: dict[str, Function2] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_UNARY: dict[str, Function1] = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "rint": np.rint, "bitnot": np.invert, "not": np.logical_not,
}  # fmt: skip


def binary(op: str, dtype: DType, array: bool) -> Function2 | None:
    """op on operands of scalar type dtype; `array`: at least one is an array (matters for integers and bools).

    None where the language has no such operator.
    """
    dtype = dtype.scalar
    if op in _COMPARE:
        if array:
            return _COMPARE[op]
        if not dtype.is_float:
            return COMPARE[op]
        compare = _COMPARE[op]
        return lambda a, b: bool(compare(a, b))
    if dtype.is_float:
        function = _FLOAT.get(op)
        return _through_float32(function, dtype) if function is not None and dtype.bits < 16 else function
    if not array:
        try:
            return int_binary(op, dtype)
        except KeyError:
            return None
    if dtype.bits == 4:
        return None
    return _INT.get(op)


def unary(op: str, dtype: DType, array: bool) -> Function1 | None:
    """As `binary`, for one operand."""
    dtype = dtype.scalar
    if dtype.is_float:
        function = _UNARY.get(op)
        if function is None or op in ("bitnot", "not"):
            return None
        return _through_float32(function, dtype) if dtype.bits < 16 else function
    if not array:
        try:
            return int_unary(op, dtype)
        except KeyError:
            return None
    if op in ("floor", "ceil", "trunc", "rint"):
        return lambda x: x
    return None if op == "sqrt" else _UNARY.get(op)


def _through_float32(function: Callable[..., Any], dtype: DType) -> Callable[..., Any]:
    """Floats of 8 bits and less: the float32 operation, then one rounding."""
    widen, narrow = converter(dtype, _F32), converter(_F32, dtype)

    def rounded(*args: Any) -> Any:
        wide = [widen(np.asarray(a)) for a in args]
        return narrow(np.asarray(function(*wide)))[()]

    return rounded


def cast(src: DType, dst: DType, array: bool) -> Function1:
    """The conversion of a value: arrays, or one value (Python int/bool, NumPy float)."""
    src, dst = src.scalar, dst.scalar
    if src is dst:
        return lambda x: x
    if array:
        return converter(src, dst)
    if src.is_int and dst.is_int:
        return wrapper(dst)
    if src.bits <= 32 and not src.is_float and dst.name in ("float32", "float64"):
        # at most 33 bits: exact in float64, so that one rounding follows
        return dst.numpy.type
    return lambda x: convert_scalar(x, src, dst)


# -- reductions ---------------------------------------------------------------------------------------------


def lowest(dtype: DType) -> Any:
    """The identity of max: -inf, or the smallest integer."""
    if dtype.is_float:
        return dtype.numpy.type(-np.inf)
    return False if dtype.is_bool else int(np.iinfo(dtype.numpy).min)


def highest(dtype: DType) -> Any:
    """The identity of min: +inf, or the largest integer."""
    if dtype.is_float:
        return dtype.numpy.type(np.inf)
    return True if dtype.is_bool else int(np.iinfo(dtype.numpy).max)


def combine_lanes(x: Any, function: Function2) -> Any:
    """16 (or fewer) partials along axis 0, combined 8-4-2-1; absent ones are skipped."""
    for half in (8, 4, 2, 1):
        if len(x) > half:
            combined = function(x[: len(x) - half], x[half:])
            x = np.concatenate([combined, x[len(x) - half : half]])
    return x[0]
