"""The operators of the language on values (language.md 0.7, 0.12): what folding, the host and the interpreter compute.

Floats: arrays or NumPy scalars of the storage type. Integers and bools: arrays, or Python ints and bools. Arrays and
floats run under `np.errstate(all="ignore")`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numpy as np

from tiledsl.conversions import converter
from tiledsl.dtypes import FLOAT32, INT32, DType

__all__ = [
    "BIT_FUNCTIONS", "accumulator", "binary", "bit_function", "cast", "combine_lanes", "combining", "extremes", "fmax",
    "fmin", "identity", "int_range", "ordered_keys", "unary", "wrapper",
]  # fmt: skip

Function1 = Callable[[Any], Any]
Function2 = Callable[[Any, Any], Any]


# -- ranges of integers -----------------------------------------------------------------------------------


def int_range(dtype: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer type (bool: 0, 1)."""
    if dtype.is_bool:
        return 0, 1
    if dtype.kind == "int":
        return -(1 << (dtype.bits - 1)), (1 << (dtype.bits - 1)) - 1
    return 0, (1 << dtype.bits) - 1


def wrapper(dtype: DType) -> Callable[[int], int]:
    """The function that wraps a Python int at an integer type: modulo 2**bits, into its range."""
    low, high = int_range(dtype)
    span = 1 << dtype.bits

    def wrap(v: int) -> int:
        return v if low <= v <= high else (v - low) % span + low

    return wrap


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


def _truncdiv(a: Any, b: Any) -> Any:
    down = np.floor_divide(a, b)
    inexact = (np.remainder(a, b) != 0) & ((a < 0) != (b < 0))
    return down + inexact


def _truncmod(a: Any, b: Any) -> Any:
    rest = np.remainder(a, b)
    step = np.asarray(b, rest.dtype)  # a Python int would widen the result
    return rest - np.where((rest != 0) & ((a < 0) != (b < 0)), step, np.zeros_like(step))


def _python_truncdiv(a: int, b: int) -> int:
    quotient = abs(a) // abs(b) if b else 0
    return quotient if (a < 0) == (b < 0) else -quotient


_FLOAT: dict[str, Function2] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": fmax, "min": fmin,
    "floordiv": lambda a, b: np.floor(a / b),
}  # fmt: skip
_INT: dict[str, Function2] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "floordiv": np.floor_divide, "floormod": np.remainder,
    "truncdiv": _truncdiv, "truncmod": _truncmod, "div": _truncdiv, "max": np.maximum, "min": np.minimum,
    "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor, "shl": np.left_shift,
    "shr": np.right_shift,
}  # fmt: skip
# On Python ints, before they wrap. Division by zero gives 0 (as does the remainder); a shift by the width or more, or
# by a negative count, gives 0, an arithmetic shift right the sign. No type is wider than 64 bits.
_PYTHON: dict[str, Function2] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": lambda a, b: a // b if b else 0,
    "floormod": lambda a, b: a % b if b else 0, "truncdiv": _python_truncdiv,
    "truncmod": lambda a, b: a - b * _python_truncdiv(a, b) if b else 0, "div": _python_truncdiv,
    "max": max, "min": min, "bitand": operator.and_, "bitor": operator.or_, "bitxor": operator.xor,
    "shl": lambda a, b: a << min(b, 64) if b >= 0 else 0, "shr": lambda a, b: a >> (b if b >= 0 else 64),
}  # fmt: skip
_EXACT = frozenset(["neg", "abs", "max", "min"])  # of operands of a type that holds the result as it is
_ON_BOOLS = frozenset(["bitand", "bitor", "bitxor", "min", "max"])
_NEVER_WRAPS = _ON_BOOLS | {"shr", "floormod", "truncmod"}
_COMPARE: dict[str, Function2] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
_PYTHON_COMPARE: dict[str, Function2] = {op: getattr(operator, op) for op in _COMPARE}
_UNARY: dict[str, Function1] = {
    "neg": np.negative, "abs": np.abs, "sqrt": np.sqrt, "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "rint": np.rint, "bitnot": np.invert, "not": np.logical_not,
}  # fmt: skip
_PYTHON_UNARY: dict[str, Function1] = {"neg": operator.neg, "abs": abs, "bitnot": operator.invert}
_PYTHON_UNARY_BOOL: dict[str, Function1] = {"abs": bool, "bitnot": operator.not_}


def binary(op: str, dtype: DType, array: bool) -> Function2 | None:
    """op on operands of scalar type dtype; `array`: at least one is an array (matters for integers and bools).

    None where the language has no such operator.
    """
    dtype = dtype.scalar
    if op in _COMPARE:
        if array:
            return _COMPARE[op]
        if not dtype.is_float:
            return _PYTHON_COMPARE[op]
        compare = _COMPARE[op]
        return lambda a, b: bool(compare(a, b))
    if dtype.is_float:
        function = _FLOAT.get(op)
        return _through_float32(op, function, dtype) if function is not None and dtype.bits < 16 else function
    if not array:
        plain = _PYTHON.get(op) if op in _ON_BOOLS or not dtype.is_bool else None
        return plain if plain is None or op in _NEVER_WRAPS else _wrapping(plain, dtype)
    return _INT.get(op) if dtype.bits != 4 else None


def _wrapping(function: Callable[..., int], dtype: DType) -> Callable[..., int]:
    wrap = wrapper(dtype)
    return lambda *args: wrap(function(*args))


def unary(op: str, dtype: DType, array: bool) -> Function1 | None:
    """As `binary`, for one operand."""
    dtype = dtype.scalar
    if dtype.is_float:
        function = _UNARY.get(op)
        if function is None or op in ("bitnot", "not"):
            return None
        return _through_float32(op, function, dtype) if dtype.bits < 16 else function
    if op in ("floor", "ceil", "trunc", "rint"):
        return lambda x: x
    if array:
        return None if op == "sqrt" else _UNARY.get(op)
    if op == "not" or dtype.is_bool:
        return operator.not_ if op == "not" else _PYTHON_UNARY_BOOL.get(op)
    return _wrapping(_PYTHON_UNARY[op], dtype) if op in _PYTHON_UNARY else None


def _through_float32(op: str, function: Callable[..., Any], dtype: DType) -> Callable[..., Any]:
    """Floats of 8 bits and less: the float32 operation, then one rounding (which would saturate infinities)."""
    widen, narrow = converter(dtype, FLOAT32), converter(FLOAT32, dtype)
    if op in _EXACT and dtype.name != "float8_e8m0fnu":  # which has no negative numbers
        narrow = lambda x: x.astype(dtype.numpy)  # noqa: E731

    def rounded(*args: Any) -> Any:
        wide = [widen(np.asarray(a)) for a in args]
        return narrow(np.asarray(function(*wide)))[()]

    return rounded


def cast(src: DType, dst: DType, array: bool) -> Function1:
    """The conversion of a value: arrays, or one value (Python int/bool, NumPy float)."""
    src, dst = src.scalar, dst.scalar
    if src is dst:
        return lambda x: x
    convert = converter(src, dst)
    if array:
        return convert
    if src.is_int and dst.is_int:
        return wrapper(dst)
    if src.bits <= 32 and not src.is_float and dst.name in ("float32", "float64"):
        # at most 33 bits: exact in float64, so that one rounding follows
        return dst.numpy.type
    if dst.is_float:
        return lambda x: convert(np.asarray(x, src.numpy))[()]
    return lambda x: convert(np.asarray(x, src.numpy)).item()


def _popcount(x: Any) -> Any:
    return np.bitwise_count(x)


def _clz(x: Any) -> Any:
    width = 8 * x.dtype.itemsize
    for shift in (1, 2, 4, 8, 16, 32)[: width.bit_length() - 1]:
        x = x | x >> x.dtype.type(shift)
    return width - np.bitwise_count(x)


def _brev(x: Any) -> Any:
    width = 8 * x.dtype.itemsize
    swapped = np.ascontiguousarray(x).view(np.uint8).reshape(*x.shape, width // 8)[..., ::-1]
    return np.packbits(np.unpackbits(swapped, axis=-1, bitorder="little"), axis=-1).view(x.dtype)[..., 0]


BIT_FUNCTIONS: dict[str, Function1] = {"popcount": _popcount, "clz": _clz, "brev": _brev}


def bit_function(name: str, dtype: DType, array: bool) -> Function1:
    """popcount, clz or brev on arrays of an integer type, or on Python ints."""
    plain, storage = BIT_FUNCTIONS[name], dtype.scalar.numpy
    unsigned = np.dtype(f"u{storage.itemsize}")
    if array:
        return lambda x: plain(x.view(unsigned)).astype(unsigned).view(storage)
    wrap = wrapper(dtype)
    return lambda x: wrap(int(plain(np.array([x & (1 << dtype.bits) - 1], unsigned))[0]))


# -- reductions ---------------------------------------------------------------------------------------------


def extremes(dtype: DType) -> tuple[Any, Any]:
    """The identities of max and min: -inf and +inf, or the smallest and the largest integer."""
    if dtype.is_float:
        return dtype.numpy.type(-np.inf), dtype.numpy.type(np.inf)
    return (False, True) if dtype.is_bool else int_range(dtype)


def combining(op: str) -> str:
    """The operator that joins two values of a reduction."""
    return {"sum": "add", "abssum": "add", "absmax": "max"}.get(op, op)


def identity(op: str, dtype: DType) -> Any:
    """What an absent value of a reduction is: -0.0 leaves every float sum as it is, even -0.0."""
    if op in ("max", "min"):
        return extremes(dtype)[op == "min"]
    if op == "bitand":
        return -1 if dtype.kind == "int" else int_range(dtype)[1]
    return -0.0 if dtype.is_float and combining(op) == "add" else 0


def accumulator(dtype: DType) -> DType:
    """What a reduction or scan into dtype accumulates in: at least float32, for packed integers int32."""
    return FLOAT32 if dtype.is_float and dtype.bits < 32 else INT32 if dtype.is_packed else dtype


def combine_lanes(x: Any, function: Function2) -> Any:
    """16 (or fewer) partials along axis 0, combined 8-4-2-1; absent ones are skipped."""
    for half in (8, 4, 2, 1):
        if len(x) > half:
            combined = function(x[: len(x) - half], x[half:])
            x = np.concatenate([combined, x[len(x) - half : half]])
    return x[0]
