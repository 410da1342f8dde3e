"""The one table of conversions on every target: all values of 16 bits and less, dense samples of others."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from properties import support
from properties.support import Array

import tiledsl
from tiledsl.conversions import convert
from tiledsl.dtypes import DType, as_dtype

SOURCES = ("float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "int16", "uint16", "int8", "uint8",
           "float32", "float64", "int32", "uint64")  # fmt: skip
RESULTS = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float16", "bfloat16", "float32", "int8", "uint8", "int32",
           "bool")  # fmt: skip
PACKED = ("float4_e2m1fn", "int4", "uint4")


def every_value(dtype: DType) -> Array:
    """All bit patterns of 16 bits and less. Of others: random ones, and those of float32 whose exponents the narrow
    types have, around the places where rounding changes."""
    if dtype.bits <= 16:
        return np.arange(2**dtype.bits, dtype=np.uint32).astype(f"u{dtype.bits // 8}").view(dtype.numpy)
    rng = np.random.default_rng(3)
    raw = rng.integers(0, 256, 20000 * dtype.bytes, np.uint8).view(dtype.numpy)
    if not dtype.is_float:
        small = rng.integers(-70000 if dtype.kind == "int" else 0, 70000, 20000)
        return np.concatenate([raw, small.astype(dtype.numpy)])
    upper = rng.integers(0x3100_0000 >> 16, 0x4A00_0000 >> 16, 30000).astype(np.uint32) << 16
    lower = rng.choice(np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32), 30000)
    dense = ((upper & 0xFFF0_0000) | lower | (upper & rng.integers(0, 2**20, 30000).astype(np.uint32))).view(np.float32)
    return np.concatenate([raw, dense.astype(dtype.numpy), -dense.astype(dtype.numpy)])


@functools.cache
def kernel(src: str, loop: str) -> tiledsl.JITKernel:
    outs = ", ".join(f'O{k}: T.Tensor((n,), "{d}")' for k, d in enumerate((*RESULTS, *PACKED)))
    lines = "\n            ".join(f"O{k}[p] = X[p]" for k in range(len(RESULTS)))
    # Packed results go through a tile: a T.Parallel may not store two elements of a byte.
    tiles = "\n        ".join(
        f't{k} = T.alloc_fragment((64,), "{d}")\n        T.copy(X[b * 64], t{k})\n        T.copy(t{k}, O{k}[b * 64])'
        for k, d in enumerate((*RESULTS, *PACKED))
        if d in PACKED
    )
    return support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "{src}"), {outs}):
    with T.Kernel(T.ceildiv(n, 64)) as b:
        for i in T.{loop}(64):
            p = b * 64 + i
            {lines}
        {tiles}
""")


@pytest.mark.parametrize("loop", ["Parallel", "serial"])
@pytest.mark.parametrize("src", SOURCES)
def test_targets_convert_by_the_table(src: str, loop: str) -> None:
    source = as_dtype(src)
    x = every_value(source)
    for target in support.TARGETS:
        outs = [np.zeros(len(x), as_dtype(d).numpy) for d in RESULTS]
        packed = [np.zeros(-(-len(x) // 2), np.uint8) for _ in PACKED]
        kernel(src, loop)(x, *outs, *packed, target=target)
        with np.errstate(all="ignore"):
            for d, got in zip(RESULTS, outs, strict=True):
                support.assert_same(got, convert(x, source, as_dtype(d)), f"{target} {loop}: {src} -> {d}", [x])
            for d, got in zip(PACKED, packed, strict=True):
                wanted = tiledsl.pack(convert(x, source, as_dtype(d)))
                np.testing.assert_array_equal(got, wanted, f"{target} {loop}: {src} -> {d}")
