"""The published cache formats read in plain NumPy, and attention and index scores over them in float64: what the
example's kernels are checked against."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["attention", "entries", "hadamard", "keys", "rotate", "scores"]

Array = np.ndarray[Any, Any]

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def powers(codes: Array) -> Array:
    """e8m0 codes as float64."""
    return np.exp2(codes.astype(np.float64) - 127)


def entries(cache: Array, slots: Array, page: int) -> Array:
    """float64 [n, 512] of 584-byte entries: 448 e4m3 with a scale per 64, then 64 bfloat16; scales behind the page's
    data."""
    data = cache[slots // page]
    begin = slots % page
    body = data[np.arange(len(slots))[:, None], begin[:, None] * 576 + np.arange(576)]
    scale = data[np.arange(len(slots))[:, None], page * 576 + begin[:, None] * 8 + np.arange(7)]
    codes = body[:, :448].copy().view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    rope = body[:, 448:].copy().view(ml_dtypes.bfloat16).astype(np.float64)
    return np.concatenate([codes * np.repeat(powers(scale), 64, 1), rope], 1)


def unpacked(pairs: Array, scale: Array) -> Array:
    """float64 of pairs of e2m1, the low half first, with an e8m0 scale per 32."""
    codes = np.stack([pairs & 15, pairs >> 4], -1).reshape(*pairs.shape[:-1], -1)
    return E2M1[codes] * np.repeat(powers(scale), 32, -1)


def keys(cache: Array, first: int, last: int, page: int) -> Array:
    """float64 [last - first, 128] of the keys of whole pages: a page's pairs, then its scales."""
    pages = cache[first // page : -(-last // page)]
    data = pages[:, : page * 64].reshape(-1, 64)
    scale = pages[:, page * 64 :].reshape(-1, 4)
    skip = first % page
    return unpacked(data[skip : skip + last - first], scale[skip : skip + last - first])


def scores(cache: Array, queries: Array, weights: Array, visible: int, page: int) -> tuple[Array, Array]:
    """Of each visible key sum over h of w[h] max(q[h] . k, 0), and the same of absolute values (for a bound of what
    float32 may differ). queries [heads, 68] bytes, weights [heads]."""
    q = unpacked(queries[:, :64], queries[:, 64:])
    total, size = np.empty(visible), np.empty(visible)
    for first in range(0, visible, 8192):
        last = min(first + 8192, visible)
        k = keys(cache, first, last, page)
        dots = np.maximum(k @ q.T, 0)
        total[first:last] = dots @ weights.astype(np.float64)
        size[first:last] = (np.abs(k) @ np.abs(q).T) @ np.abs(weights).astype(np.float64)
    return total, size


def rotate(x: Array, positions: Array, theta: float, factor: float = 1.0) -> Array:
    """The last 64 elements turned in neighbouring pairs; factor > 1: YaRN's frequencies, 65,536 original positions."""
    i = np.arange(32)
    frequency = theta ** (-2.0 * i / 64)
    if factor > 1:
        low, high = (64 * np.log(65536 / (turns * 2 * np.pi)) / (2 * np.log(theta)) for turns in (32, 1))
        ramp = np.clip((i - np.floor(low)) / (np.ceil(high) - np.floor(low)), 0, 1)
        frequency = frequency * (1 - ramp) + frequency / factor * ramp
    angle = positions[:, None] * frequency
    y = x.astype(np.float64)
    a, b = y[..., -64::2].copy(), y[..., -63::2].copy()
    y[..., -64::2] = a * np.cos(angle) - b * np.sin(angle)
    y[..., -63::2] = b * np.cos(angle) + a * np.sin(angle)
    return y


def hadamard(x: Array) -> Array:
    """x H / sqrt(128) with H[i, j] = (-1)^popcount(i & j)."""
    matrix = np.ones((1, 1))
    for _ in range(7):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return x @ matrix / np.sqrt(128.0)


def attention(q: Array, kv: Array, sink: Array) -> Array:
    """softmax(q k / sqrt(512)) with a sink in the denominator, times v = k: float64 [heads, 512]. q [heads, 512],
    kv [n, 512], sink [heads]."""
    s = q.astype(np.float64) @ kv.T * 512**-0.5
    peak = np.maximum(s.max(1), sink)[:, None]
    p = np.exp(s - peak)
    p /= p.sum(1, keepdims=True) + np.exp(sink[:, None] - peak)
    return p @ kv
