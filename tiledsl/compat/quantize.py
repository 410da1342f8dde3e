"""The portable part of `tilelang.quantize`: how packed low-precision values are unpacked, as expressions, and packed on
the host, also in the order of fast decoders. Those decoders are known by what they give, not by their text."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import tiledsl.language as T
from tiledsl.surface import BufferRef

__all__ = ["DECODERS", "converters", "decode", "general_compress", "interleave_weight", "intrin_groups"]

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


# -- on the host ------------------------------------------------------------------------------------------------------
def _on_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function of a NumPy array that takes, and then gives, torch tensors as well."""

    @functools.wraps(function)
    def either(x: Any, *args: Any, **kw: Any) -> Any:
        if not hasattr(x, "detach"):
            return function(x, *args, **kw)
        import torch

        from tiledsl.compat.pretended_cuda import real

        with real():
            return torch.from_numpy(function(x.detach().cpu().numpy(), *args, **kw)).to(x.device)

    return either


@_on_arrays
def general_compress(lowprecision_weight: Any, source_bits: int = 4, storage_dtype: Any = None) -> Any:
    """Rows of small integers packed into bytes along the last axis, the first value in the lowest bits."""
    import numpy as np

    storage = np.dtype(np.int8 if storage_dtype is None else str(storage_dtype).removeprefix("torch."))
    each = storage.itemsize * 8 // source_bits
    fields = np.asarray(lowprecision_weight).astype(np.int64) & ((1 << source_bits) - 1)
    fields = fields.reshape(*fields.shape[:-1], fields.shape[-1] // each, each)
    words = (fields << (np.arange(each) * source_bits)).sum(axis=-1)
    return words.astype(f"u{storage.itemsize}").view(storage)


# Where the order by strides is finished by moving nibbles of each word: nibble i goes to place _NIBBLES[...][i].
_NIBBLES = {(1, 8): (0, 4, 2, 6, 1, 5, 3, 7), (2, 16): (0, 1, 4, 5, 2, 3, 6, 7), (1, 16): (0, 2, 4, 6, 1, 3, 5, 7)}


def places(nbits: int, target_bits: int) -> list[int]:
    """The bit at which value i of a 32-bit word lies for fast decoders to values of target_bits: as many of them as a
    word holds come from one place of each part, so neighbours lie target_bits apart."""
    parts = 32 // target_bits
    found = [(i % parts) * target_bits + (i // parts) * nbits for i in range(32 // nbits)]
    nibbles = _NIBBLES.get((nbits, target_bits), range(8))
    return [nibbles[at // 4] * 4 + at % 4 for at in found]


def _bits(dtype: Any) -> int:
    return 8 if str(dtype) in ("int8", "uint8") else 16


@_on_arrays
def interleave_weight(qweight: Any, nbits: int = 4, target_dtype: Any = "float16") -> Any:
    """Packed bytes (rows of whole 32-bit words) with the values of each word in the order of fast decoders; int8."""
    import numpy as np

    words = np.ascontiguousarray(qweight).view(np.uint32)
    moved = np.zeros_like(words)
    for i, place in enumerate(places(nbits, _bits(target_dtype))):
        moved |= ((words >> np.uint32(i * nbits)) & np.uint32((1 << nbits) - 1)) << np.uint32(place)
    return moved.view(np.int8)


# -- fast decoders ----------------------------------------------------------------------------------------------------
def get_lop3_intrin_group(
    out_dtype: Any, source_format: str = "uint", source_bit: int = 4, storage_dtype: Any = "int8",
    with_scaling: bool = False, with_zeros: bool = False, zeros_mode: str = "original", storage_scope: str = "local",
) -> dict[str, str]:  # fmt: skip
    """The name under which T.call_extern knows the decoder, and a text for T.import_source.

    source_format: uint or int (less half the range); out_dtype: float16, int8 or uint8.
    """
    kinds = {"float16": "f16", "int8": "i8s", "uint8": "i8u"}
    if str(out_dtype) not in kinds or source_format not in ("int", "uint") or with_scaling or with_zeros:
        raise NotImplementedError("get_lop3_intrin_group: float16 and int8, scales and zeros behind the decoder")
    name = f"decode_i{source_bit}{'s' if source_format == 'int' else 'u'}_to_{kinds[str(out_dtype)]}"
    return {"func_name": name, "c_source": f"// {name}", "cutlass_source": ""}


def get_mxfp_intrin_group(
    out_dtype: Any = "bfloat16", source_format: Any = "uint", source_bit: int = 4, storage_dtype: Any = "uint8",
    use_twiddling: bool = False,
) -> dict[str, str]:  # fmt: skip
    """The same for floats of 4 bits: to bfloat16, in the twiddled order."""
    if str(out_dtype) != "bfloat16" or source_bit != 4 or not use_twiddling:
        raise NotImplementedError("get_mxfp_intrin_group: values of 4 bits to bfloat16, with use_twiddling=True")
    return {"func_name": _TWIDDLED, "c_source": f"// {_TWIDDLED}"}


def intrin_groups() -> dict[str, Any]:
    """The functions under the names that programs import."""
    return {f.__name__: f for f in (get_lop3_intrin_group, get_mxfp_intrin_group)}


_TWIDDLED = "decode_fp4_to_bf16_twiddling"
DECODERS = re.compile(rf"decode_i(?P<bits>[124])(?P<sign>[us])_to_(f16|i8s|i8u)|{_TWIDDLED}")

# The bits of a half word that hold a twiddled value: sign, exponent, mantissa.
_TWIDDLES = ((15, 8, 7, 6), (12, 5, 4, 3), (9, 2, 1, 0), (14, 11, 10, 13))


def decode(name: str, source: Any, target: Any, count: int = 0) -> None:
    """`T.call_extern("handle", name, T.address_of(packed), T.address_of(values)[, count])`: the next count values of
    interleaved bytes, 8 halves or 16 bytes where it is left out; of twiddled ones, count words of 8."""
    match, wide = DECODERS.fullmatch(name), name.endswith("f16")
    assert match is not None
    packed, values = BufferRef(source.buffer), BufferRef(target.buffer)
    (*rows, first), (*to, begin) = ([T.PrimExpr(i) for i in place.indices] for place in (source, target))
    if name == _TWIDDLED:  # the high half word, of bytes 0 and 1, holds values 0 to 3, the low one 4 to 7
        for half in range(2 * max(1, count)):
            high, low = (T.cast(T.cast(packed[(*rows, first + 2 * half + i)], "uint8"), "uint16") for i in (0, 1))
            word = (high << 8) | low
            for i, places_ in enumerate(_TWIDDLES):
                s, e1, e0, m = (((word >> at) & 1) << bit for at, bit in zip(places_, (15, 8, 7, 6), strict=True))
                tiny = T.reinterpret(T.cast(s | e1 | e0 | m, "uint16"), "bfloat16")  # 2**-126 of the value
                values[(*to, begin + 4 * half + i)] = T.cast(tiny, "float32") * 2.0**126
        return
    bits = int(match["bits"])
    less = 1 << (bits - 1) if match["sign"] == "s" else 0
    where = places(bits, 16 if wide else 8)
    for i in range(count or (8 if wide else 16)):
        byte, shift = divmod(where[i % len(where)] + 32 * (i // len(where)), 8)
        word = T.cast(packed[(*rows, first + byte)], "uint8")
        values[(*to, begin + i)] = T.cast(T.cast((word >> shift) & ((1 << bits) - 1), "int32") - less, values.dtype)
