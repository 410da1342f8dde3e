"""Formulas of block-scaled types in plain NumPy (ml_dtypes for single roundings), written from their specifications."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from running_error import Ball

from tiledsl import config
from tiledsl.backend import load_backend

Array = np.ndarray[Any, Any]

BF16, E4M3, E5M2 = (np.dtype(t) for t in (ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2))
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
MOST = {E4M3: 448.0, E5M2: 57344.0}
F = np.float32
# The meaning and the default target; the others are compared with the meaning on fixed examples.
NAMED = config.TEST_TARGETS.get().split() or ("numpy:exact", "llvm")
TARGETS = [t for t in NAMED if load_backend(t.partition(":")[0]).probe().ok]
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6] + [-0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def power_above(s: Array) -> Array:
    """The e8m0 code of 2^ceil(log2 s) of positive normal float32, by their bits."""
    bits = s.astype(F).view(np.uint32).astype(np.int64)
    return np.minimum((bits >> 23) + ((bits & 0x7FFFFF) != 0), 254).astype(np.uint8)


def to_fp8(x: Array, dtype: Any) -> Array:
    """To nearest even, saturated."""
    most = MOST[np.dtype(dtype)]
    return np.where(np.isnan(x), x, np.clip(x, -most, most)).astype(dtype)


def to_fp4(x: Array) -> Array:
    """Codes of e2m1 to nearest even, saturated; by distance, not by bits."""
    table = E2M1[:8].astype(np.float64)
    size = np.abs(x.astype(np.float64))
    distance = np.abs(size[..., None] - table)
    near = distance.min(-1, keepdims=True)
    ties = np.where(distance == near, np.arange(8), 99)
    even = np.where(ties % 2 == 0, ties, 99).min(-1)
    code = np.where(even < 99, even, ties.min(-1)).astype(np.uint8)
    code = np.where(size >= 6, 7, code)
    return np.where(np.isnan(x), 7, code | (np.signbit(x) * 8)).astype(np.uint8)


def pack_nibbles(codes: Array) -> Array:
    return codes[..., 0::2] | (codes[..., 1::2] << 4)


def nibbles(packed: Array) -> Array:
    return np.stack([packed & 15, packed >> 4], -1).reshape(*packed.shape[:-1], -1)


def block_max(x: Array, r: int, c: int) -> Array:
    m, n = x.shape
    size = np.abs(x.astype(F))
    size = np.where(np.isnan(size), 0, size)
    padded = np.zeros((-(-m // r) * r, -(-n // c) * c), F)
    padded[:m, :n] = size
    return padded.reshape(padded.shape[0] // r, r, padded.shape[1] // c, c).max((1, 3))


def spread(s: Array, r: int, c: int, shape: tuple[int, ...]) -> Array:
    return np.repeat(np.repeat(s, r, 0), c, 1)[: shape[0], : shape[1]]


def fp8_cast(x: Array, r: int, c: int, dtype: Any = E4M3, e8m0: bool = False, floor: float = 1e-4) -> Any:
    peak = np.maximum(np.minimum(block_max(x, r, c), np.finfo(F).max), F(floor))
    s = (peak * F(1 / MOST[np.dtype(dtype)])).astype(F)
    if e8m0:
        s = power_above(s).view(E8M0)
    wide = spread(s.astype(F), r, c, x.shape)
    with np.errstate(all="ignore"):
        return to_fp8(x.astype(F) / wide, dtype), s


def rounded(x: Array) -> Array:
    """Values of bfloat16, by way of float32."""
    return x.astype(F).astype(BF16).astype(np.float64)


def through_fp8(v: Ball, c: int = 128) -> Ball:
    """The values of v cast to FP8 with a power of two per row and c columns; each power has to be certain."""

    def values(x: Array) -> Array:
        q, s = fp8_cast(x, 1, c, e8m0=True)
        return q.astype(np.float64) * spread(s.astype(np.float64), 1, c, x.shape)

    scales = [fp8_cast(np.maximum(np.abs(v.value) + e, 0), 1, c, e8m0=True)[1] for e in (-v.error, v.error)]
    assert (scales[0] == scales[1]).all()
    return v.through(values)


def fp4_cast(x: Array) -> tuple[Array, Array]:
    peak = np.maximum(np.minimum(block_max(x, 1, 32), np.finfo(F).max), F(6 * 2.0**-126))
    s = power_above((peak * F(1 / 6)).astype(F)).view(E8M0)
    with np.errstate(all="ignore"):
        return pack_nibbles(to_fp4(x.astype(F) / spread(s.astype(F), 1, 32, x.shape))), s


def fp4_values(q: Array, s: Array) -> Array:
    """Float64, [..., k] of pairs and e8m0 scales per 32."""
    wide: Array = E2M1[nibbles(q)].astype(np.float64)
    return wide * np.repeat(np.exp2(s.view(np.uint8).astype(np.float64) - 127), 32, -1)


def loud(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any = F, spread: int = 12) -> Array:
    """Normal numbers whose size differs from column to column and row to row by powers of two."""
    x = rng.standard_normal(shape).astype(F)
    for axis in range(len(shape)):
        steps = rng.integers(-spread, spread, shape[axis])
        x = x * np.exp2(steps).astype(F).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return x.astype(F).astype(dtype)
