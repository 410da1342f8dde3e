"""Conversions between dtypes: T.cast, T.float32(x), T.reinterpret, and vectors of a few lanes (language.md 0.11)."""

from __future__ import annotations

import math
from typing import Any

from tiledsl import ir
from tiledsl.dtypes import FLOAT64, DType, as_dtype, set_cast_hook
from tiledsl.errors import TileNotImplementedError, TileTypeError
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import INT32, convert, is_number, slice_dtype
from tiledsl.frontend.values import Value, Vector, as_value, binary, lanes_of, to_dtype
from tiledsl.language.operation import surface

__all__ = ["Cast", "cast", "reinterpret"]


@surface
def cast(value: Any, dtype: Any, round: str = "", sat: bool = True, rbits: Any = None) -> Any:
    """value converted to dtype (language.md 0.11); vectors lane by lane.

    round: "" the table of conversions (to nearest even; float to int truncates; to float8_e8m0fnu up), "rn" to nearest
    even, "rz" towards zero. sat=False: what is too large for a float of 8 bits becomes its infinity, or NaN where it
    has none (float4_e2m1fn has neither: it saturates). Floats converted to integers saturate all the same.
    """
    return _cast("T.cast", value, dtype, round, sat, rbits)


@surface
def Cast(dtype: Any, value: Any) -> Any:
    """`cast` with its arguments exchanged."""
    return _cast("T.Cast", value, dtype)


def _cast(what: str, value: Any, dtype: Any, mode: str = "", sat: bool = True, rbits: Any = None) -> Value:
    target = slice_dtype(dtype, what, vectors=True)
    if mode not in ("", "rn", "rz") or rbits is not None:
        raise error(
            "cast-rounding",
            TileNotImplementedError,
            f"{what}: rounding {mode or 'by random bits'!r} has no portable meaning",
            help='round="rn" (to nearest even) or "rz" (towards zero)',
        )
    overflow = not sat and target.is_float and target.bits == 8
    if isinstance(value, Vector) or target.is_vector:
        count = value.dtype.lanes if isinstance(value, Vector) else target.lanes
        if target.lanes not in (1, count):
            raise error(
                "cast-lanes", TileTypeError, f"{what}: {value!r} has {count} lanes, {target} has {target.lanes}"
            )
        return Vector([_convert(what, x, target.scalar, mode, overflow) for x in lanes_of(value, count)])
    return _convert(what, value, target, mode, overflow)


def _convert(what: str, value: Any, target: DType, mode: str, overflow: bool = False) -> Value:
    if overflow:
        v = as_value(value, f"{what}: the value")
        return v if v.dtype is target else _unsaturated(v, _convert(what, v, target, mode), mode)
    if is_number(value) and not mode:
        return Value(to_dtype(value, target))
    v = as_value(value, f"{what}: the value")
    if mode == "rn" and v.dtype.is_float and target.is_int:
        return Value(convert(ir.Unary("rint", v.expr, loc=here()), target, loc=True))
    if mode == "rz" and target.is_float and target is not v.dtype:
        return _towards_zero(what, v, target)
    return Value(v.expr if v.expr.dtype is target else ir.Cast(v.expr, target, loc=here()))


# The sizes from which on a value is too large: halfway to the next power of two's worth of codes, where even is above.
_TOO_LARGE = {"float8_e4m3fn": math.nextafter(464.0, 465.0), "float8_e5m2": 61440.0,
              "float8_e8m0fnu": math.nextafter(2.0**127, math.inf)}  # fmt: skip


def _unsaturated(v: Value, near: Value, mode: str) -> Value:
    """The saturated value `near` of v, or the code behind it, infinity or NaN, where v is too large."""
    limit = math.inf if mode == "rz" else _TOO_LARGE[near.dtype.name]
    exact = convert(v.expr, FLOAT64)
    size = exact if near.dtype.name == "float8_e8m0fnu" else ir.Unary("abs", exact, loc=here())
    beyond = ir.Binary("ge", size, ir.Const(limit, FLOAT64), loc=here())
    code = convert(ir.Call("reinterpret", (near.expr,), as_dtype("uint8"), loc=here()), INT32)
    above = ir.Binary("add", code, ir.Const(1, INT32), loc=here())
    return _bits(Value(convert(ir.Select(beyond, above, code, loc=here()), as_dtype("uint8"))), near.dtype)


def _towards_zero(what: str, v: Value, target: DType) -> Value:
    """The nearest value, or, where that is larger than the exact one, the one below it in size: its code less one."""
    if v.dtype.is_int and v.expr.dtype.bits == 64 or target.name in ("float64", "float8_e8m0fnu", "float4_e2m1fn"):
        if v.dtype.bits <= target.bits and v.dtype.is_float:
            return Value(convert(v.expr, target, loc=True))  # nothing is rounded
        raise error(
            "cast-rounding-types",
            TileNotImplementedError,
            f"{what}: from {v.dtype} to {target} there is no rounding towards zero",
            help="leave round out, or convert in two steps through float32",
        )
    near = ir.Cast(v.expr, target, loc=here())
    exact, size = (ir.Unary("abs", convert(x, FLOAT64), loc=here()) for x in (v.expr, near))
    word = as_dtype(f"uint{target.bits}")
    code = convert(ir.Call("reinterpret", (near,), word, loc=here()), INT32)
    below = ir.Binary("sub", code, ir.Const(1, INT32), loc=here())
    lower = ir.Select(ir.Binary("gt", size, exact, loc=here()), below, code, loc=here())
    return Value(ir.Call("reinterpret", (convert(lower, word),), target, loc=here()))


def _construct(dtype: DType, args: tuple[Any, ...]) -> Any:
    """`T.float32(x)`; `T.bfloat16x2(a, b)` packs two values, `T.float32x4(x)` repeats one or converts a vector."""
    if len(args) == 1:
        return _cast(f"T.{dtype}", args[0], dtype)
    if len(args) != dtype.lanes:
        wanted = "one value" if dtype.lanes == 1 else f"1 or {dtype.lanes} values"
        raise error("dtype-call", TileTypeError, f"T.{dtype} converts {wanted}, got {len(args)} arguments")
    return Vector([_convert(f"T.{dtype}", x, dtype.scalar, "") for x in args])


set_cast_hook(_construct)


@surface
def reinterpret(value: Any, dtype: Any) -> Any:
    """The bits of value as another type of the same width. Older programs give the dtype first: accepted too.

    Vectors have their first lane in the lowest bits: T.reinterpret(word, "bfloat16x2") is two halves of a uint32.
    """
    if isinstance(value, (DType, str)):
        value, dtype = dtype, value
    if dtype == "handle":
        return as_value(value, "T.reinterpret: the value")  # a null pointer, which T.attr takes
    target = slice_dtype(dtype, "T.reinterpret", vectors=True)
    v = as_value(value, "T.reinterpret: the value")
    if v.dtype.bits * v.dtype.lanes != target.bits * target.lanes or v.dtype.is_bool or target.is_bool:
        raise error(
            "reinterpret-width",
            TileTypeError,
            f"T.reinterpret: {v!r} ({v.dtype}) and {target} are not of the same width",
        )
    if v.dtype is target:
        return v
    if v.dtype.bits == target.bits:
        made = [_bits(x, target.scalar) for x in lanes_of(v, v.dtype.lanes)]
        return Vector(made) if target.is_vector else made[0]
    return _regroup(v, target)


def _bits(v: Value, target: DType) -> Value:
    if v.dtype is target:
        return v
    return Value(ir.Call("reinterpret", (v.typed,), target, loc=here()))


def _regroup(v: Value, target: DType) -> Value:
    """Lanes of another width: each group of bits goes through the integer that holds all of it."""
    word = as_dtype(f"uint{max(v.dtype.bits, target.bits)}")
    inner, outer = as_dtype(f"uint{v.dtype.bits}"), as_dtype(f"uint{target.bits}")
    parts = [_cast("T.reinterpret", _bits(x, inner), word) for x in lanes_of(v, v.dtype.lanes)]
    made: list[Value] = []
    if v.dtype.bits < target.bits:
        count = target.bits // v.dtype.bits
        for first in range(0, len(parts), count):
            whole = parts[first]
            for k in range(1, count):
                whole = binary("bitor", whole, binary("shl", parts[first + k], k * v.dtype.bits))
            made.append(whole)
    else:
        count = v.dtype.bits // target.bits
        made = [binary("shr", x, k * target.bits) for x in parts for k in range(count)]
    lanes = [_bits(_cast("T.reinterpret", x, outer), target.scalar) for x in made]
    return Vector(lanes) if target.is_vector else lanes[0]
