"""Formats of the DeepSeek-V4 reference: bf16, FP8, FP4 and e8m0 as stored, cache entries and pages as bytes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np

Array = np.ndarray[Any, Any]
NO_TRAPS: frozenset[str] = frozenset()


def bf16(x: Array) -> Array:
    """x rounded to bf16, as float64."""
    return x.astype(ml_dtypes.bfloat16).astype(np.float64)


def pow2_ceil_exponent(x: Array) -> Array:
    """ceil(log2(x)) exactly, for positive x."""
    mantissa, exponent = np.frexp(x)
    return exponent - (mantissa == 0.5)


def _blocks(x: Array, size: int) -> Array:
    """[..., k] as [..., ceil(k / size), size], zeros behind the tail."""
    pad = -x.shape[-1] % size
    x = np.concatenate([x, np.zeros((*x.shape[:-1], pad))], axis=-1)
    return x.reshape(*x.shape[:-1], x.shape[-1] // size, size)


def quantize_fp8(x: Array, block: int) -> tuple[Array, Array]:
    """Codes (float8_e4m3fn [..., k]) and scale exponents (int [..., ceil(k / block)]) of x [..., k]."""
    tiles = _blocks(x, block)
    exponent = pow2_ceil_exponent(np.maximum(np.abs(tiles).max(-1), 1e-4) / 448)
    codes = np.clip(np.ldexp(tiles, -exponent[..., None]), -448, 448).astype(ml_dtypes.float8_e4m3fn)
    return codes.reshape(*x.shape[:-1], exponent.shape[-1] * block)[..., : x.shape[-1]], exponent


def fake_fp8(x: Array, block: int) -> Array:
    """x through FP8 and back to bf16."""
    codes, exponent = quantize_fp8(x, block)
    scale = np.repeat(exponent, block, axis=-1)[..., : x.shape[-1]]
    return bf16(np.ldexp(codes.astype(np.float64), scale))


def quantize_fp4(x: Array, block: int = 32) -> tuple[Array, Array]:
    """Codes (uint8 0..15, one per element) and scale exponents of x [..., k], k a multiple of block."""
    tiles = _blocks(x, block)
    exponent = pow2_ceil_exponent(np.maximum(np.abs(tiles).max(-1), 6 * 2.0**-126) / 6)
    codes = np.clip(np.ldexp(tiles, -exponent[..., None]), -6, 6).astype(ml_dtypes.float4_e2m1fn)
    return codes.view(np.uint8).reshape(x.shape) & 15, exponent


FP4_VALUES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def dequantize_fp4(codes: Array, exponent: Array, block: int = 32) -> Array:
    """Values (float64 [..., k]) of codes (0..15) with one exponent per block."""
    return np.ldexp(FP4_VALUES[codes], np.repeat(exponent, block, axis=-1))


def pack_nibbles(codes: Array) -> Array:
    """uint8 [..., k / 2] of codes [..., k]: even k in the low nibble."""
    return (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)


def unpack_nibbles(packed: Array) -> Array:
    """The inverse of pack_nibbles."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], 2 * packed.shape[-1])


def e8m0_exponent(scale: Array) -> Array:
    """Exponents (int) of float8_e8m0fnu scales."""
    return scale.view(np.uint8).astype(np.int64) - 127


def to_e8m0(exponent: Array) -> Array:
    """float8_e8m0fnu scales of exponents."""
    return (exponent + 127).astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


@dataclass(frozen=True)
class Fp8Weight:
    """codes float8_e4m3fn [out, in], scale float8_e8m0fnu [ceil(out / 128), ceil(in / 128)]."""

    codes: Array
    scale: Array

    @classmethod
    def of(cls, w: Array) -> "Fp8Weight":
        """The quantised form of w [out, in]."""
        rows, columns = w.shape
        tiles = _blocks(_blocks(w, 128).transpose(1, 2, 0), 128)  # [in / 128, 128, out / 128, 128]
        exponent = pow2_ceil_exponent(np.maximum(np.abs(tiles).max((1, 3)), 1e-4) / 448).T
        spread = np.repeat(np.repeat(exponent, 128, 0), 128, 1)[:rows, :columns]
        return cls(np.ldexp(w, -spread).astype(ml_dtypes.float8_e4m3fn), to_e8m0(exponent))

    @cached_property
    def values(self) -> Array:
        """float64 [out, in]."""
        rows, columns = self.codes.shape
        spread = np.repeat(np.repeat(e8m0_exponent(self.scale), 128, 0), 128, 1)[:rows, :columns]
        return np.ldexp(self.codes.astype(np.float64), spread)


@dataclass(frozen=True)
class Fp4Weight:
    """packed uint8 [..., out, in / 2], scale float8_e8m0fnu [..., out, in / 32]."""

    packed: Array
    scale: Array

    def __getitem__(self, expert: int) -> "Fp4Weight":
        return Fp4Weight(self.packed[expert], self.scale[expert])

    @property
    def values(self) -> Array:
        """float64 [..., out, in]; not kept, because all experts would not fit."""
        return dequantize_fp4(unpack_nibbles(self.packed), e8m0_exponent(self.scale))


def quantize_kv(x: Array, rope_dim: int) -> tuple[Array, Array]:
    """Cache entries of x [n, d]: values (float64 [n, d]) and bytes (uint8 [n, d + rope + scales and their padding])."""
    plain, turned = x[:, :-rope_dim], x[:, -rope_dim:]
    codes, exponent = quantize_fp8(plain, 64)
    scales = np.zeros((len(x), -(-exponent.shape[1] // 8) * 8), np.uint8)
    scales[:, : exponent.shape[1]] = exponent + 127
    tail = turned.astype(ml_dtypes.bfloat16).view(np.uint8).reshape(len(x), 2 * rope_dim)
    rows = np.concatenate([codes.view(np.uint8), tail, scales], axis=1)
    return np.concatenate([fake_fp8(plain, 64), turned], axis=1), rows


def page_bytes(entries: int, data: int, scales: int, traps: frozenset[str] = NO_TRAPS) -> int:
    """Bytes of a page: entries x (data + scales), padded to a multiple of data."""
    size = entries * (data + scales)
    return size if "page_unpadded" in traps else -(-size // data) * data


def pack_pages(rows: Array, entries: int, data: int, traps: frozenset[str] = NO_TRAPS) -> Array:
    """uint8 [pages, page bytes] of entries' bytes [n, data + scales]: data rows, then scales, then zeros."""
    scales = rows.shape[1] - data
    count = -(-len(rows) // entries)
    pages = np.zeros((count, page_bytes(entries, data, scales, traps)), np.uint8)
    for i, row in enumerate(rows):
        page, slot = divmod(i, entries)
        pages[page, slot * data : (slot + 1) * data] = row[:data]
        start = entries * data + slot * scales
        pages[page, start : start + scales] = row[data:]
    return pages


def unpack_pages(pool: Array, count: int, entries: int, data: int, scales: int) -> Array:
    """The first `count` entries' bytes [count, data + scales] of pages one behind another in pool (uint8 [bytes])."""
    stride = page_bytes(entries, data, scales)
    rows = np.empty((count, data + scales), np.uint8)
    for i in range(count):
        page, slot = divmod(i, entries)
        start = page * stride + slot * data
        rows[i, :data] = pool[start : start + data]
        start = page * stride + entries * data + slot * scales
        rows[i, data:] = pool[start : start + scales]
    return rows
