"""Other roundings: to E5M6 (12 bits, eight values in three words), and to a neighbour drawn by random bits."""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.scales import INPUTS
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["e5m6_kernel", "pack_e5m6", "stochastic_round", "stochastic_round_kernel", "unpack_e5m6"]

TILE = 64  # groups of eight values
RUN = 1024  # elements of a block of stochastic_round


def _e5m6_code(x: Any) -> Any:
    """The 12 bits of a float32: sign, 5 exponent bits with bias 15, 6 mantissa bits; to nearest even, saturated."""
    bits = T.reinterpret(x, T.uint32)
    size = bits & 0x7FFFFFFF
    normal = ((size + 0xFFFF + ((size >> 17) & 1)) >> 17) - ((127 - 15) << 6)
    # Below 2^-14 steps are 2^-20, which are the steps of float32 from 8 on: the sum rounds, its last bits are the code.
    tiny = T.reinterpret(T.abs(x) + 8.0, T.uint32) - T.reinterpret(T.float32(8.0), T.uint32)
    code = T.if_then_else(size < 0x38800000, tiny, T.min(normal, 0x7BF))
    return T.if_then_else(size > 0x7F800000, T.uint32(0x7E0), code) | ((bits >> 31) << 11)


def _e5m6_value(code: Any) -> Any:
    """The float32 of 12 bits."""
    sign, size = (code >> 11) << 31, code & 0x7FF
    mantissa = (size & 0x3F) << 17
    normal = T.reinterpret(sign | ((size << 17) + ((127 - 15) << 23)), T.float32)
    tiny = T.cast(size, T.float32) * 2.0**-20
    special = T.reinterpret(sign | 0x7F800000 | mantissa, T.float32)
    signed_tiny = T.if_then_else(sign == 0, tiny, -tiny)
    return T.if_then_else(size >= 0x7C0, special, T.if_then_else(size < 0x40, signed_tiny, normal))


@tiledsl.jit
def e5m6_kernel(dtype: DType, unpack: bool, threads: int = 128) -> Any:
    """Value j of a group of eight is bits 12 j ... 12 j + 11 of the group's 96 bits; the first word has the lowest."""
    M, G = T.dynamic("M"), T.dynamic("G")

    @T.prim_func
    def e5m6(X: T.Tensor((M, 8 * G), dtype), P: T.Tensor((M, 3 * G), T.uint32)):
        with T.Kernel(T.ceildiv(G, TILE), M, threads=threads) as (bx, row):
            for g in T.Parallel(TILE):
                group = bx * TILE + g
                if group < G:
                    if unpack:
                        words = T.alloc_local((3,), T.uint32)
                        for w in T.unroll(3):
                            words[w] = P[row, 3 * group + w]
                        for j in T.unroll(8):
                            low, at = 12 * j // 32, 12 * j % 32
                            code = words[low] >> at
                            code = code | (words[(12 * j + 11) // 32] << (32 - at)) if at > 20 else code
                            X[row, 8 * group + j] = _e5m6_value(code & 0xFFF)
                    else:
                        codes = T.alloc_local((8,), T.uint32)
                        for j in T.unroll(8):
                            codes[j] = _e5m6_code(T.cast(X[row, 8 * group + j], T.float32))
                        P[row, 3 * group] = codes[0] | (codes[1] << 12) | (codes[2] << 24)
                        P[row, 3 * group + 1] = (codes[2] >> 8) | (codes[3] << 4) | (codes[4] << 16) | (codes[5] << 28)
                        P[row, 3 * group + 2] = (codes[5] >> 4) | (codes[6] << 8) | (codes[7] << 20)

    return e5m6


_e5m6_kernel = cache(e5m6_kernel)  # the same values, the same kernel


def pack_e5m6(x: Any, *, target: Any = None) -> Any:
    """To E5M6: sign, 5 exponent bits (bias 15), 6 mantissa bits: float16 without its last four bits. Value j of each
    eight lies in bits 12 j ... 12 j + 11 of their 96 bits, the first word holding the lowest.

    x       [rows, k], k a multiple of 8; float32, bfloat16 or float16; NumPy (ml_dtypes) or torch
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns uint32 [rows, 3 k / 8]. One rounding, to nearest even; beyond 65024 it saturates, infinities too; NaN stays
    NaN; steps below 2^-14 are 2^-20. Bit-exact on every target.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    dtype = arrays.dtype_of("pack_e5m6", "x", x, INPUTS)
    m, k = arrays.rank("pack_e5m6", "x", x, "rows, k")
    if k % 8:
        raise TileTypeError(f"pack_e5m6: {arrays.describe(x=x)}, expected a multiple of 8 columns")
    packed = allocate((m, 3 * k // 8), as_dtype("uint32"), x)
    if m and k:
        _e5m6_kernel(dtype, False, tiles_for(target).threads)(arrays.dense(x), packed, target=target)
    return packed


def unpack_e5m6(packed: Any, *, out_dtype: Any = "float32", target: Any = None) -> Any:
    """The values of pack_e5m6 again.

    packed     uint32 [rows, 3 k / 8], a multiple of 3 columns; NumPy or torch
    out_dtype  "float32" or "float16" (both exact) or "bfloat16" (exact down to 2^-20, as all of E5M6 is)
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns [rows, k]. Raises TileTypeError for wrong dtypes or shapes.
    """
    arrays.dtype_of("unpack_e5m6", "packed", packed, ("uint32",))
    out = arrays.choice("unpack_e5m6", "out_dtype", out_dtype, INPUTS)
    m, words = arrays.rank("unpack_e5m6", "packed", packed, "rows, 3 k / 8")
    if words % 3:
        raise TileTypeError(f"unpack_e5m6: {arrays.describe(packed=packed)}, expected a multiple of 3 columns")
    x = allocate((m, words // 3 * 8), out, packed)
    if m and words:
        _e5m6_kernel(out, True, tiles_for(target).threads)(x, arrays.dense(packed), target=target)
    return x


def philox(counter: Any, key: Any) -> Any:
    """The first word of Philox2x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", 2011) at a
    64-bit counter."""
    low, high = T.cast(counter & 0xFFFFFFFF, T.uint32), T.cast(counter >> 32, T.uint32)
    for _ in [None] * 10:
        product = T.cast(low, T.uint64) * T.uint64(0xD256D193)
        low, high = T.cast(product >> 32, T.uint32) ^ key ^ high, T.cast(product & 0xFFFFFFFF, T.uint32)
        key = key + T.uint32(0x9E3779B9)
    return low


@tiledsl.jit
def stochastic_round_kernel(seeded: bool, threads: int = 128) -> Any:
    """Y = the bfloat16 next to X towards 0, or the one away from it where 16 random bits and the dropped bits carry."""
    N = T.dynamic("N")

    @T.prim_func
    def stochastic_round(
        X: T.Tensor((N,), T.float32),
        R: T.Tensor((N,), T.uint32),
        seed: T.uint32,
        first: T.int64,
        Y: T.Tensor((N,), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(N, RUN), threads=threads) as bx:
            for i in T.Parallel(RUN):
                at = bx * RUN + i
                if at < N:
                    bits = T.reinterpret(X[at], T.uint32)
                    noise = philox(T.cast(first + at, T.uint64), seed) if seeded else R[at]
                    size = bits & 0x7FFFFFFF
                    finite = size < 0x7F800000
                    moved = (size + (noise & 0xFFFF)) >> 16 << 16
                    kept = T.if_then_else(finite, moved, size) | (bits & 0x80000000)
                    Y[at] = T.reinterpret(kept, T.float32)

    return stochastic_round


_stochastic_round_kernel = cache(stochastic_round_kernel)


def stochastic_round(
    x: Any, *, seed: int | None = None, random: Any = None, offset: int = 0, target: Any = None
) -> Any:
    """float32 to bfloat16, up or down with the probability that makes the mean exact: 16 random bits are added below
    bfloat16's last bit, and what is below is cut off.

    x       any shape, float32; NumPy or torch
    seed    0 ... 2^32 - 1: element i (row-major) takes the low 16 bits of Philox2x32-10 at counter offset + i under
            this key: the same on every target, in any split of x
    random  in place of seed: uint32 like x, whose low 16 bits are taken
    offset  the counter of the first element
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns bfloat16 like x. Bit-exact on every target. What bfloat16 holds is never changed; NaN and infinities stay; a
    number above the largest bfloat16 may round to infinity.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError unless one of seed and random is given.
    """
    name = "stochastic_round"
    arrays.dtype_of(name, "x", x, ("float32",))
    if (seed is None) is (random is None):
        raise TileValueError(f"{name}: pass a seed or random bits, one of the two")
    if random is not None:
        arrays.dtype_of(name, "random", random, ("uint32",))
        if tuple(random.shape) != tuple(x.shape):
            raise TileTypeError(f"{name}: shapes differ: {arrays.describe(x=x, random=random)}")
    elif not 0 <= int(seed or 0) < 2**32 or offset < 0:
        raise TileValueError(f"{name}: seed is {seed}, offset {offset}, expected 0 ... 2^32 - 1 and no negative offset")
    y = allocate(tuple(x.shape), as_dtype("bfloat16"), x)
    if n := math.prod(x.shape):
        kernel = _stochastic_round_kernel(random is None, tiles_for(target).threads)
        bits = None if random is None else arrays.dense(random).reshape(n)
        kernel(arrays.dense(x).reshape(n), bits, int(seed or 0), int(offset), y.reshape(n), target=target)
    return y
