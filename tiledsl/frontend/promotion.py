"""Python numbers as literals, and the dtypes of literals (docs/dtypes.md; language.md 0.12)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiledsl.dtypes import BOOL, FLOAT32, INT32, SCALARS, DType, as_dtype
from tiledsl.errors import TileNotImplementedError, TileTypeError
from tiledsl.frontend.habits import dtype_advice
from tiledsl.frontend.location import error, here
from tiledsl.ir import Cast, Const, Expr
from tiledsl.ir.arithmetic import int_range

__all__ = [
    "BOOL", "FLOAT32", "INT32", "as_number", "convert", "fits", "is_number", "literal", "literal_dtype", "slice_dtype",
    "widened",
]  # fmt: skip


def slice_dtype(x: Any, what: str, vectors: bool = False) -> DType:
    """The dtype meant by x; addresses are refused, and vectors unless they are asked for."""
    try:
        dtype = as_dtype(x)
    except TypeError:
        raise error(
            "unknown-dtype",
            TileTypeError,
            f"{what}: {x!r} is not a dtype",
            help=dtype_advice(x),
        ) from None
    if dtype.scalar.name not in SCALARS:
        raise error("dtype-not-yet", TileNotImplementedError, f"{what}: dtype {dtype} is not supported yet")
    if dtype.is_vector and not vectors:
        raise error(
            "vector-dtype",
            TileTypeError,
            f"{what}: {dtype} is a vector, and a scalar type is needed",
            help=f"use {dtype.scalar} and an axis of {dtype.lanes} more; T.alloc_local, T.alloc_shared take vectors",
        )
    return dtype


def is_number(x: Any) -> bool:
    """A Python or NumPy number: known while tracing."""
    return isinstance(x, (int, float, np.number, np.bool_))


def as_number(x: Any) -> int | float:
    """The Python number of a Python or NumPy number."""
    number: int | float = x.item() if isinstance(x, (np.number, np.bool_)) else x
    return number


def fits(value: int | float, dtype: DType) -> bool:
    """The literal is exactly a value of dtype."""
    if dtype.is_int:
        low, high = int_range(dtype)
        return isinstance(value, int) and low <= value <= high
    if dtype.is_bool:
        return isinstance(value, bool)
    with np.errstate(over="ignore"):
        try:
            held = float(np.asarray(value, dtype=np.float64).astype(dtype.numpy))
        except OverflowError:
            return False
    return held == value or (held != held and value != value)


def literal_dtype(value: int | float) -> DType:
    """bool, int32 (int64 or uint64 where it does not fit), float32."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return FLOAT32
    for name in ("int32", "int64", "uint64"):
        if fits(value, as_dtype(name)):
            return as_dtype(name)
    raise error("literal-range", TileTypeError, f"the integer {value} does not fit in 64 bits")


def literal(value: int | float, dtype: DType) -> Expr:
    """A literal in dtype; one that dtype cannot hold is converted by the rules of casts."""
    if isinstance(value, bool) and not dtype.is_bool:
        value = int(value)
    if fits(value, dtype):
        return Const(float(value) if dtype.is_float else value, dtype, loc=here())
    if isinstance(value, float):
        if dtype.name == "float32":
            return Const(_round32(value), dtype, loc=here())
        return Cast(Const(_round32(value), FLOAT32), dtype, loc=here())
    return Cast(Const(int(value), literal_dtype(int(value))), dtype, loc=here())


def _round32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def convert(e: Expr, dtype: DType, loc: bool = False) -> Expr:
    """e, cast to dtype where it has another one."""
    if e.dtype is dtype:
        return e
    return Cast(e, dtype, loc=here() if loc else e.loc)


def widened(dtype: DType) -> DType:
    """The dtype that arithmetic on dtype is computed in (0.12): at least int32."""
    return INT32 if dtype.is_bool or (dtype.is_int and dtype.bits < 32) else dtype
