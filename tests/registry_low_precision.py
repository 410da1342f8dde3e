"""Kernels of the registry that quantise, dequantise and multiply float8, float4 and int4."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from kernels_registry import Array, entry, normal

import tiledsl.language as T

BLOCK = 32  # elements that share a scale


def loud(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Array:
    """Rows and columns of different size."""
    return (normal(rng, *shape) * np.exp2(rng.integers(-20, 20, (*shape[:-1], 1)))).astype(dtype)


@entry(lambda s, r: [loud(r, 13 * s, 160), np.zeros((13 * s, 160), ml_dtypes.float8_e4m3fn),
                     np.zeros((13 * s, 5), ml_dtypes.float8_e8m0fnu)])  # fmt: skip
def quantise_e4m3(s: int) -> Any:
    """Blocks of a row with a power of two as scale, found by integer arithmetic on the bits of the largest element."""
    m = T.dynamic("m")
    ROWS, N = 4 * s, 160

    @T.prim_func
    def main(X: T.Tensor((m, N), "float32"), Q: T.Tensor((m, N), "float8_e4m3fn"),
             S: T.Tensor((m, N // BLOCK), "float8_e8m0fnu")):  # fmt: skip
        with T.Kernel(T.ceildiv(m, ROWS), N // BLOCK, threads=128) as (by, bx):
            x = T.alloc_fragment((ROWS, BLOCK), "float32")
            q = T.alloc_fragment((ROWS, BLOCK), "float8_e4m3fn")
            largest = T.alloc_fragment((ROWS,), "float32")
            inverse = T.alloc_fragment((ROWS,), "float32")
            T.copy(X[by * ROWS, bx * BLOCK], x)
            T.reduce_absmax(x, largest, dim=1)
            for i in T.Parallel(ROWS):
                bits = T.reinterpret(T.max(largest[i], 1e-30) * (1 / 448.0), "uint32")
                exponent = ((bits - 1) >> 23) + 1 - 127  # rounded up to a power of two
                inverse[i] = T.reinterpret((127 - exponent) << 23, "float32")
                S[by * ROWS + i, bx] = T.reinterpret(T.cast(exponent + 127, "uint8"), "float8_e8m0fnu")
            for i, j in T.Parallel(ROWS, BLOCK):
                q[i, j] = T.clamp(x[i, j] * inverse[i], -448.0, 448.0)
            T.copy(q, Q[by * ROWS, bx * BLOCK])

    return main


@entry(lambda s, r: [loud(r, 9 * s, 72, dtype=ml_dtypes.bfloat16), np.zeros((9 * s, 36), np.uint8),
                     np.zeros((9 * s, 3), np.float32)])  # fmt: skip
def quantise_e2m1(s: int) -> Any:
    """bfloat16 to pairs of e2m1 with a float32 scale per 24 elements; the tile is copied, half bytes and all."""
    m = T.dynamic("m")
    ROWS = 4 * s

    @T.prim_func
    def main(X: T.Tensor((m, 72), "bfloat16"), Q: T.Tensor((m, 72), "float4_e2m1fn"), S: T.Tensor((m, 3), "float32")):
        with T.Kernel(T.ceildiv(m, ROWS), 3) as (by, bx):
            x = T.alloc_fragment((ROWS, 24), "bfloat16")
            q = T.alloc_fragment((ROWS, 24), "float4_e2m1fn")
            scale = T.alloc_fragment((ROWS,), "float32")
            T.copy(X[by * ROWS, bx * 24], x)
            T.reduce_absmax(x, scale, dim=1)
            for i in T.Parallel(ROWS):
                scale[i] = T.max(scale[i], 1e-30) / 6.0
                S[by * ROWS + i, bx] = scale[i]
            for i, j in T.Parallel(ROWS, 24):
                q[i, j] = T.cast(x[i, j], "float32") / scale[i]
            T.copy(q, Q[by * ROWS, bx * 24])

    return main


@entry(lambda s, r: [normal(r, 14 * s, 128, dtype=ml_dtypes.float8_e4m3fn), np.exp2(normal(r, 14 * s, 4)),
                     normal(r, 19 * s, 128, dtype=ml_dtypes.float8_e5m2), np.exp2(normal(r, 4)),
                     np.zeros((14 * s, 19 * s), ml_dtypes.bfloat16)])  # fmt: skip
def gemm_fp8_scaled(s: int) -> Any:
    """Products per 32 of the inner size in an accumulator of their own, scaled and added to the sum in float32."""
    m, n = T.dynamic("m, n")
    BM, BN, K = 8 * s, 16 * s, 128

    @T.prim_func
    def main(A: T.Tensor((m, K), "float8_e4m3fn"), SA: T.Tensor((m, K // BLOCK), "float32"),
             B: T.Tensor((n, K), "float8_e5m2"), SB: T.Tensor((K // BLOCK,), "float32"),
             C: T.Tensor((m, n), "bfloat16")):  # fmt: skip
        with T.Kernel(T.ceildiv(n, BN), T.ceildiv(m, BM), threads=128) as (bx, by):
            a = T.alloc_shared((BM, BLOCK), "float8_e4m3fn")
            b = T.alloc_shared((BN, BLOCK), "float8_e5m2")
            part = T.alloc_fragment((BM, BN), "float32")
            total = T.alloc_fragment((BM, BN), "float32")
            T.clear(total)
            for k in T.Pipelined(K // BLOCK, num_stages=3):
                T.copy(A[by * BM, k * BLOCK], a)
                T.copy(B[bx * BN, k * BLOCK], b)
                T.gemm(a, b, part, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(BM, BN):
                    total[i, j] += part[i, j] * (SA[by * BM + i, k] * SB[k])
            T.copy(total, C[by * BM, bx * BN])

    return main


def bytes_(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(0, 256, shape).astype(np.uint8)


@entry(lambda s, r: [normal(r, 11 * s, 96, dtype=np.float16), bytes_(r, 21 * s, 48), normal(r, 21 * s, 3),
                     np.zeros((11 * s, 21 * s), np.float16)])  # fmt: skip
def gemm_w4a16(s: int) -> Any:
    """Weights of four bits in bytes, low half first, made float16 by shifts and a scale per 32 of the inner size."""
    m, n = T.dynamic("m, n")
    BM, BN, K = 8 * s, 8 * s, 96

    @T.prim_func
    def main(A: T.Tensor((m, K), "float16"), W: T.Tensor((n, K // 2), "uint8"), S: T.Tensor((n, K // BLOCK), "float32"),
             C: T.Tensor((m, n), "float16")):  # fmt: skip
        with T.Kernel(T.ceildiv(n, BN), T.ceildiv(m, BM), threads=128) as (bx, by):
            a = T.alloc_shared((BM, BLOCK), "float16")
            raw = T.alloc_shared((BN, BLOCK // 2), "uint8")
            w = T.alloc_shared((BN, BLOCK), "float16")
            acc = T.alloc_fragment((BM, BN), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // BLOCK, num_stages=2):
                T.copy(A[by * BM, k * BLOCK], a)
                T.copy(W[bx * BN, k * (BLOCK // 2)], raw)
                for i, j in T.Parallel(BN, BLOCK):
                    code = (raw[i, j // 2] >> ((j % 2) * 4)) & 0xF
                    w[i, j] = (T.cast(code, "int32") - 8) * S[bx * BN + i, k]
                T.gemm(a, w, acc, transpose_B=True)
            T.copy(acc, C[by * BM, bx * BN])

    return main


@entry(lambda s, r: [r.integers(-128, 128, (11 * s, 64)).astype(np.int8), bytes_(r, 21 * s, 32),
                     np.zeros((11 * s, 21 * s), np.int32)])  # fmt: skip
def gemm_w4a8(s: int) -> Any:
    """int8 by packed int4: the tiles are multiplied as they are."""
    m, n = T.dynamic("m, n")
    BM, BN, BK, K = 8 * s, 8 * s, 32, 64

    @T.prim_func
    def main(A: T.Tensor((m, K), "int8"), W: T.Tensor((n, K), "int4"), C: T.Tensor((m, n), "int32")):
        with T.Kernel(T.ceildiv(n, BN), T.ceildiv(m, BM)) as (bx, by):
            a = T.alloc_shared((BM, BK), "int8")
            w = T.alloc_shared((BN, BK), "int4")
            acc = T.alloc_fragment((BM, BN), "int32")
            for k in T.Pipelined(K // BK, num_stages=2):
                T.copy(A[by * BM, k * BK], a)
                T.copy(W[bx * BN, k * BK], w)
                T.gemm(a, w, acc, transpose_B=True, clear_accum=k == 0)
            T.copy(acc, C[by * BM, bx * BN])

    return main


@entry(lambda s, r: [bytes_(r, 7, 16 * s), np.zeros((7, 32 * s), np.float32), np.zeros((7, 16 * s), np.uint8)])
def reversed_halves(s: int) -> Any:
    """Bytes seen as pairs of e2m1, rows turned round element by element, and seen as bytes again."""
    m = T.dynamic("m")
    N = 32 * s

    @T.prim_func
    def main(X: T.Tensor((m, N // 2), "uint8"), Y: T.Tensor((m, N), "float32"), Z: T.Tensor((m, N // 2), "uint8")):
        with T.Kernel(m) as b:
            raw = T.alloc_shared((1, N // 2), "uint8")
            T.copy(X[b, 0], raw)
            pairs = T.view(raw, (1, N), "float4_e2m1fn")
            turned = T.alloc_fragment((1, N), "float4_e2m1fn")
            for j in T.Parallel(N):
                Y[b, j] = pairs[0, N - 1 - j]
                turned[0, j] = pairs[0, N - 1 - j]
            T.copy(T.view(turned, (1, N // 2), "uint8"), Z[b, 0])

    return main
