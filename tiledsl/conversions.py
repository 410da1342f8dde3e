"""The one table of conversions between scalar types (language.md 0.11), in vectorised NumPy, bit-exact.

Rules: to a float, round to nearest even once; to float8/float4, saturate (float4: NaN gives +6); to float8_e8m0fnu,
round up, zero and negatives give code 0x00, too large 0xFE, NaN 0xFF; float to integer truncates and saturates,
NaN gives 0; integer to integer wraps; anything to bool is `x != 0`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from tiledsl.dtypes import FLOAT64, DType, as_dtype

__all__ = ["Converter", "convert", "converter"]

Array = np.ndarray[Any, Any]
Converter = Callable[[Array], Array]


def convert(x: Array, src: DType, dst: DType) -> Array:
    """x (an array of `src.numpy`) as an array of `dst.numpy`, same shape; x itself when nothing changes."""
    return converter(src, dst)(x)


@cache
def converter(src: DType, dst: DType) -> Converter:
    """The function that converts arrays of scalar type src to dst (vector types: lane by lane)."""
    src, dst = src.scalar, dst.scalar
    if src is dst:
        return _same
    convert_scalar = _pick(src, dst)

    def with_zero_dim(x: Array) -> Array:
        # NumPy turns 0-d results into scalars, which cannot be assigned by mask: lift them.
        return convert_scalar(x) if x.ndim else convert_scalar(x.reshape(1)).reshape(())

    return with_zero_dim


def _same(x: Array) -> Array:
    return x


def _pick(src: DType, dst: DType) -> Converter:
    storage = dst.numpy
    if dst.is_bool:
        wide = _to_float64(src) if src.is_float else _to_plain_int(src)
        return lambda x: wide(x) != 0
    if src.is_float and dst.is_float:
        return _float_to_float(src, dst)
    if src.is_float:
        return _float_to_int(src, dst)
    if dst.is_float:
        return _int_to_float(src, dst)
    plain = _to_plain_int(src)
    if dst.bits == 4:
        return lambda x: _wrap4(plain(x), dst)
    return lambda x: plain(x).astype(storage)


# -- widening: always exact ------------------------------------------------------------------------------


def _to_plain_int(src: DType) -> Converter:
    """bool stays, nibbles become bytes."""
    return (lambda x: x.astype(np.int8)) if src.bits == 4 else _same


def _bfloat16_to_float32(x: Array) -> Array:
    wide = x.view(np.uint16).astype(np.uint32)
    wide <<= 16
    return wide.view(np.float32)


def _e8m0_to_float64(x: Array) -> Array:
    code = x.view(np.uint8).astype(np.int64)
    value = ((code - 127 + 1023) << 52).view(np.float64)
    value[code == 255] = np.nan
    return value


def _to_float64(src: DType) -> Converter:
    if src.name == "float8_e8m0fnu":
        return _e8m0_to_float64
    if src.name == "bfloat16":
        return lambda x: _bfloat16_to_float32(x).astype(np.float64)
    if src.bits >= 16:
        return lambda x: x.astype(np.float64)
    return lambda x: x.astype(np.float32).astype(np.float64)


# -- float to float ------------------------------------------------------------------------------------------


def _float_to_float(src: DType, dst: DType) -> Converter:
    storage = dst.numpy
    if dst.bits <= 8:
        wide = _to_float64(src)
        return lambda x: _encode(wide(x), dst)
    if dst.name == "bfloat16":
        if src.name == "float32":
            return _float32_to_bfloat16
        if src.name == "float64":
            return lambda x: _float32_to_bfloat16(_float64_to_float32_odd(x))
    if src.name == "bfloat16" and dst.name == "float32":
        return _bfloat16_to_float32
    if src.bits >= 16 and src.name != "bfloat16":
        if dst.name == "bfloat16":
            return lambda x: _float32_to_bfloat16(x.astype(np.float32))
        return lambda x: x.astype(storage)  # NumPy's own conversions round to nearest even once
    wide = _to_float64(src)
    if dst.name == "bfloat16":
        return lambda x: _float32_to_bfloat16(wide(x).astype(np.float32))
    return lambda x: wide(x).astype(storage)


def _float32_to_bfloat16(x: Array) -> Array:
    bits = np.ascontiguousarray(x).view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += 0x7FFF
    odd += bits  # cannot wrap for a number; a NaN is mended below
    odd >>= 16
    out = odd.astype(np.uint16)
    nan = x != x
    if nan.any():
        out[nan] = (bits[nan] >> 16).astype(np.uint16) | 0x40
    return out.view(as_dtype("bfloat16").numpy)


def _float64_to_float32_odd(x: Array) -> Array:
    """Rounded to odd: a later rounding to nearest, to fewer bits, then equals one rounding of x."""
    near = x.astype(np.float32)
    wide = near.astype(np.float64)
    bits = near.view(np.uint32)
    bits -= np.abs(wide) > np.abs(x)  # now truncated toward zero
    bits |= (wide != x) & (x == x)
    return near


@cache
def _thresholds(dst: DType) -> Array:
    """float64 t[i] such that a magnitude m rounds to code c = number of t[i] < m.

    t[i] is the midpoint of codes i and i + 1; where i is odd a tie goes up, so t[i] lies just below the midpoint.
    """
    codes = np.arange(2 ** (dst.bits - 1), dtype=np.uint8)
    values = codes.view(dst.numpy).astype(np.float32).astype(np.float64)
    values = values[np.isfinite(values)]
    middle = (values[:-1] + values[1:]) / 2
    middle[1::2] = np.nextafter(middle[1::2], 0)
    return middle


_POWERS = np.ldexp(1.0, np.arange(-127, 127))
_NAN_CODE = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E, "float4_e2m1fn": 0x07}


def _encode(x: Array, dst: DType) -> Array:
    """float64 -> float8 or float4, one rounding, saturating."""
    nan = x != x
    if dst.name == "float8_e8m0fnu":
        code = np.searchsorted(_POWERS, x, side="left").astype(np.uint8)
        code[nan] = 0xFF
        return code.view(dst.numpy)
    code = np.searchsorted(_thresholds(dst), np.abs(x), side="left").astype(np.uint8)
    code[nan] = _NAN_CODE[dst.name]
    sign = np.signbit(x) & ~nan if dst.bits == 4 else np.signbit(x)
    code |= sign.astype(np.uint8) << (dst.bits - 1)
    return code.view(dst.numpy)


# -- between floats and integers -----------------------------------------------------------------------------


def _float_to_int(src: DType, dst: DType) -> Converter:
    wide = _to_float64(src)
    signed = dst.kind == "int"
    low = -(2.0 ** (dst.bits - 1)) if signed else 0.0
    above = 2.0 ** (dst.bits - 1 if signed else dst.bits)
    largest, smallest = int(above) - 1, int(low)
    plain = np.dtype(f"{dst.kind}{max(8, dst.bits)}") if dst.bits == 4 else dst.numpy

    def truncate(x: Array) -> Array:
        t = np.trunc(wide(x))
        out = np.where((t >= low) & (t < above), t, 0.0).astype(plain)
        out[t >= above] = largest
        out[t < low] = smallest
        return _wrap4(out, dst) if dst.bits == 4 else out

    return truncate


def _int_to_float(src: DType, dst: DType) -> Converter:
    storage, plain = dst.numpy, _to_plain_int(src)
    if dst.bits >= 32 or (dst.name == "float16"):
        # float16: an integer that float32 cannot hold is far beyond float16's range, so one rounding counts
        return lambda x: plain(x).astype(storage)
    narrow = _float_to_float(FLOAT64, dst)
    return lambda x: narrow(_int_to_float64_odd(plain(x)))


def _int_to_float64_odd(x: Array) -> Array:
    """Integers as float64, those beyond 2**53 rounded to odd in their upper 53 bits."""
    if x.dtype.itemsize < 8:
        return x.astype(np.float64)
    upper = (x >> 11) | ((x & 0x7FF) != 0)
    small = x < 2**53 if x.dtype.kind == "u" else (x < 2**53) & (x > -(2**53))
    return np.where(small, x.astype(np.float64), upper.astype(np.float64) * 2048.0)


def _wrap4(x: Array, dst: DType) -> Array:
    low = x.astype(np.int64) & 15 if x.dtype.kind != "u" else x & 15
    low = low.astype(np.int8)
    if dst.kind == "int":
        low = (low ^ 8) - 8
    return low.astype(dst.numpy)
