"""The portable part of `tilelang.quantize`: how packed low-precision values are unpacked, as expressions, and packed on
the host. What emits instructions of one GPU is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tiledsl.language as T

__all__ = ["converters", "general_compress"]

# (bits of a value, packed word, position in it, dtype) -> value
Convert = Callable[..., Any]


def _field(nbit: int, val: Any, pos: Any) -> Any:
    """Field `pos` of a word; the lowest bits are field 0."""
    return (val >> (pos * nbit)) & ((1 << nbit) - 1)


def _packed_to_unsigned_convert(storage_type: str = "uint", storage_nbit: int = 8) -> Convert:
    """The field itself."""
    return lambda nbit, val, pos, dtype: T.cast(_field(nbit, val, pos), dtype)


def _packed_to_unsigned_convert_with_zeros(storage_type: str = "uint", storage_nbit: int = 8) -> Convert:
    """The field less a zero point."""
    return lambda nbit, val, pos, zero, dtype: T.cast(T.cast(_field(nbit, val, pos), "int32") - zero, dtype)


def _packed_to_signed_convert(storage_type: str = "uint", storage_nbit: int = 8) -> Convert:
    """The field less half its range."""
    return lambda nbit, val, pos, dtype: T.cast(T.cast(_field(nbit, val, pos), "int32") - (1 << (nbit - 1)), dtype)


def _packed_int_to_int_convert(storage_type: str = "uint", storage_nbit: int = 8) -> Convert:
    """The field as a two's complement number."""

    def convert(nbit: int, val: Any, pos: Any, dtype: Any) -> Any:
        high = 32 - nbit
        return T.cast((T.cast(_field(nbit, val, pos), "int32") << high) >> high, dtype)

    return convert


def _u8_to_f4_to_bf16(nbit: int, val: Any, pos: Any, scale: Any, dtype: Any) -> Any:
    """A 4-bit float (sign, 2 bits of exponent, 1 of mantissa) as bfloat16, `scale` added to its exponent."""
    f4 = T.cast(_field(nbit, val, pos), "uint16")
    exponent = T.min(((f4 >> 1) & 3) + 126 + T.cast(scale, "uint16"), 255)
    return T.reinterpret(T.cast(((f4 >> 3) << 15) | (exponent << 7) | ((f4 & 1) << 6), "uint16"), dtype)


def converters() -> dict[str, Any]:
    """The functions under the names that programs import."""
    made = (_packed_to_unsigned_convert, _packed_to_unsigned_convert_with_zeros, _packed_to_signed_convert,
            _packed_int_to_int_convert, _u8_to_f4_to_bf16)  # fmt: skip
    return {f"_tir{f.__name__}": f for f in made}


def general_compress(lowprecision_weight: Any, source_bits: int = 4, storage_dtype: Any = None) -> Any:
    """Rows of small integers (NumPy) packed into bytes along the last axis, the first value in the lowest bits."""
    import numpy as np

    storage = np.dtype(np.int8 if storage_dtype is None else storage_dtype)
    each = storage.itemsize * 8 // source_bits
    fields = np.asarray(lowprecision_weight).astype(np.int64) & ((1 << source_bits) - 1)
    fields = fields.reshape(*fields.shape[:-1], fields.shape[-1] // each, each)
    words = (fields << (np.arange(each) * source_bits)).sum(axis=-1)
    return words.astype(f"u{storage.itemsize}").view(storage)
