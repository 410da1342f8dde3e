"""Packing: arrays of four-bit elements as kernels take them, two per byte, the low half first (language.md 0.18)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from tiledsl.conversions import convert
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.runtime.views import describe, is_torch

__all__ = ["pack", "unpack"]

Array = np.ndarray[Any, Any]


def pack(x: Any, dtype: Any = None) -> Any:
    """x with two elements per byte: uint8 [..., ceil(n / 2)]; element 2k is the low half of byte k.

    x: a NumPy array or torch CPU tensor [..., n] of numbers. dtype: "int4", "uint4" or "float4_e2m1fn"; None where x is
    an ml_dtypes array of that type. Other elements are converted to dtype first, by the language's conversions
    (integers wrap, floats round and saturate). An odd row ends in a half byte of 0. A tensor gives a tensor.

    Raises TileTypeError where dtype is missing or has no four bits.
    """
    torch = sys.modules["torch"] if is_torch(x) else None
    values = np.asarray(x.float() if torch is not None and x.is_floating_point() else x)
    target = _packed("pack", x, values.dtype if dtype is None else dtype)
    if values.ndim == 0:
        raise TileValueError("pack: a scalar has no rows to pack", help="pass an array of at least one axis")
    with np.errstate(all="ignore"):
        held = convert(values, as_dtype(values.dtype), target)
    codes = (held.view(np.uint8) if target.is_float else held.astype(np.int8).view(np.uint8)) & np.uint8(15)
    if codes.shape[-1] % 2:
        codes = np.concatenate([codes, np.zeros((*codes.shape[:-1], 1), np.uint8)], axis=-1)
    made: Array = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return made if torch is None else torch.from_numpy(made)


def unpack(x: Any, dtype: Any, columns: int | None = None) -> Any:
    """The elements of a packed array, the inverse of `pack`.

    x: uint8 or int8 [..., w], or torch's float4_e2m1fn_x2. dtype: "int4", "uint4" or "float4_e2m1fn". columns: how many
    elements a row has, 2 w (the default) or 2 w - 1. A NumPy array gives an array of dtype (ml_dtypes)
    [..., columns]; a tensor gives a tensor of int8, uint8 or float32, which torch can compute with.

    Raises TileTypeError for other types and TileValueError where x has not as many columns.
    """
    target = _packed("unpack", x, dtype)
    torch = sys.modules["torch"] if is_torch(x) else None
    raw = np.asarray(x.view(torch.uint8) if torch is not None else x)
    if raw.dtype not in (np.int8, np.uint8) or raw.ndim == 0:
        raise TileTypeError(f"unpack: expected an array of bytes, got {describe(x)}", help="pass uint8 or int8")
    width = 2 * raw.shape[-1]
    if columns is not None and columns not in (width, width - 1):
        raise TileValueError(f"unpack: {describe(x)} holds {width} elements per row, not {columns}")
    raw = raw.view(np.uint8)
    codes = np.stack([raw & 15, raw >> 4], axis=-1).reshape(*raw.shape[:-1], width)[..., :columns]
    signed = target.kind == "int"
    plain = codes if not signed else (codes.astype(np.int8) ^ 8) - 8
    if torch is not None:
        wide = np.ascontiguousarray(codes).view(target.numpy).astype(np.float32) if target.is_float else plain
        return torch.from_numpy(np.ascontiguousarray(wide))
    return np.ascontiguousarray(codes).view(target.numpy) if target.is_float else plain.astype(target.numpy)


def _packed(what: str, x: Any, dtype: Any) -> DType:
    try:
        found = as_dtype(dtype)
    except TypeError:
        found = None
    if found is None or not found.is_packed or found.is_vector:
        got = describe(x) if found is None or what == "pack" else str(found)
        raise TileTypeError(
            f"{what}: {got} and dtype {dtype} name no type of four bits",
            help=f'{what}(x, "int4"), "uint4" or "float4_e2m1fn"',
        )
    return found
