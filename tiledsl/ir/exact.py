"""Fused multiply-add with one rounding, and chains of it, in plain NumPy.

float32: the product of two float32 is exact in float64; the sum in float64 rounds once too often only where it lands
on a tie of float32, or where the result is subnormal: those elements are redone through rounding to odd.
float64: error-free transformations and one addition rounded to odd (S. Boldo, G. Melquiond, "Emulation of a FMA and
correctly rounded sums: proved algorithms using rounding to odd", IEEE Trans. Computers 57(4), 2008), with exact
rational arithmetic where exponents are extreme.

Callers run under `np.errstate(all="ignore")`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

__all__ = ["fma", "fma32", "fma64", "gemm_chain"]

Array = np.ndarray[Any, Any]

_LOW_BITS = np.int64(0x1FFFFFFF)  # of a float64's mantissa, beyond float32's
_TIE = np.int64(0x10000000)
_SMALLEST_NORMAL32 = 2.0**-126


def fma(a: Any, b: Any, c: Any) -> Any:
    """a * b + c rounded once; float32 or float64 arrays or NumPy scalars, all of one type."""
    return fma32(a, b, c) if np.result_type(a, b, c) == np.float32 else fma64(a, b, c)


def fma32(a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float32, rounded once; operands broadcast."""
    product = _wide(a) * _wide(b)
    wide_c = _wide(c)
    total = product + wide_c
    rounded = total.astype(np.float32)
    hard = (total.view(np.int64) & _LOW_BITS) == _TIE
    small = np.abs(total) < _SMALLEST_NORMAL32
    if small.any():
        hard = hard | (small & (total != 0))
    if hard.any():
        if rounded.ndim == 0:
            return _to_odd(product, wide_c, total).astype(np.float32)
        p, d = (np.broadcast_to(x, rounded.shape)[hard] for x in (product, wide_c))
        rounded[hard] = _to_odd(p, d, total[hard]).astype(np.float32)
    return rounded


def _wide(x: Any) -> Any:
    return np.float64(x) if np.ndim(x) == 0 else x.astype(np.float64)


def _to_odd(x: Any, y: Any, total: Any) -> Any:
    """x + y rounded to odd, given total = x + y rounded to nearest (float64)."""
    back = total - x
    error = (x - (total - back)) + (y - back)
    bits = np.asarray(total).view(np.int64)
    step = np.where((error > 0) == (total > 0), 1, -1)
    inexact = (error != 0) & ((bits & 1) == 0) & np.isfinite(total)
    return (bits + np.where(inexact, step, 0)).view(np.float64)


# -- float64 -------------------------------------------------------------------------------------------------

_SPLITTER = 134217729.0  # 2**27 + 1
_LARGEST_SPLIT, _SMALLEST_SAFE, _LARGEST_SAFE = 2.0**990, 2.0**-900, 2.0**1000


def fma64(a: Any, b: Any, c: Any) -> Any:
    """a * b + c in float64, rounded once; operands broadcast."""
    a, b, c = np.broadcast_arrays(*(np.asarray(v, np.float64) for v in (a, b, c)))
    high = a * b
    low = _product_error(a, b, high)
    top, bottom = _two_sum(c, low)
    value, rest = _two_sum(high, top)
    result = value + _to_odd(bottom, rest, bottom + rest)
    plain = np.where(np.isfinite(a) & np.isfinite(b) & ~np.isfinite(c), c, high + c)  # high may have overflowed
    special = ~np.isfinite(high) | ~np.isfinite(c) | (a == 0) | (b == 0)
    result = np.where(special, plain, result)
    size = np.abs(high)
    large = (np.abs(a) > _LARGEST_SPLIT) | (np.abs(b) > _LARGEST_SPLIT) | (size > _LARGEST_SAFE)
    large |= np.abs(c) > _LARGEST_SAFE
    small = (size < _SMALLEST_SAFE) | ((np.abs(result) < _SMALLEST_SAFE) & (result != 0))
    overflowed = np.isinf(high) & np.isfinite(a) & np.isfinite(b) & np.isfinite(c)
    hard = ((large | small) & ~special) | overflowed
    if hard.any():
        result = np.array(result)
        exact = [_fraction_fma(*abc) for abc in zip(a[hard], b[hard], c[hard], strict=True)]
        result[hard] = exact
    return result if result.ndim else result[()]


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    total = x + y
    back = total - x
    return total, (x - (total - back)) + (y - back)


def _halves(x: Array) -> tuple[Array, Array]:
    scaled = x * _SPLITTER
    high = scaled - (scaled - x)
    return high, x - high


def _product_error(a: Array, b: Array, product: Array) -> Array:
    (ah, al), (bh, bl) = _halves(a), _halves(b)
    error: Array = ((ah * bh - product) + ah * bl + al * bh) + al * bl
    return error


def _fraction_fma(a: float, b: float, c: float) -> float:
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return 0.0  # a cancelled sum of non-zero terms
    try:
        value = float(exact)
    except OverflowError:
        value = float("inf") if exact > 0 else float("-inf")
    return value if value != 0 or exact > 0 else -0.0


# -- chains ------------------------------------------------------------------------------------------------------


def gemm_chain(a: Array, b: Array, c: Array) -> Array:
    """c + a @ b where each element is one k-ascending chain of fma that starts from c.

    a [M, K], b [K, N], c [M, N], all float32 or all float64; returns a new [M, N]. K NumPy-level steps.
    """
    out = c.copy()
    if c.dtype == np.float64:
        for k in range(a.shape[1]):
            out[...] = fma64(a[:, k : k + 1], b[k], out)
        return out
    left, right = np.ascontiguousarray(a.T, np.float64)[:, :, None], b.astype(np.float64)
    wide, product, total = out.astype(np.float64), np.empty(c.shape), np.empty(c.shape)
    bits, low = total.view(np.int64), product.view(np.int64)
    flags = np.empty(c.shape, np.bool_)
    # Products are multiples of a power of two: where that is a multiple of float32's smallest number, a small sum is
    # exact, and only ties can be rounded twice.
    subnormal = _smallest(left) * _smallest(right) < 2.0**-100
    for k in range(a.shape[1]):
        np.multiply(left[k], right[k], out=product)
        np.add(product, wide, out=total)
        np.bitwise_and(bits, _LOW_BITS, out=low)  # over the product, which only a tie needs again
        if np.equal(low, _TIE, out=flags).any() or (subnormal and (np.abs(total) < _SMALLEST_NORMAL32).any()):
            out[...] = fma32(a[:, k : k + 1], b[k], wide.astype(np.float32))
        else:
            out[...] = total
        wide[...] = out
    return out


def _smallest(x: Array) -> float:
    """Smallest magnitude that is not zero."""
    size = np.abs(x)
    return float(size.min(where=size > 0, initial=np.inf))
