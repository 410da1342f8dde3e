"""Quantisers and what reads their output: scales per token, block, channel; powers of two as scales; packed nibbles."""

import ml_dtypes
import numpy as np
from programs.registry import BF16, F32, normal, program, wide

import tiledsl
import tiledsl.language as T

E4M3 = ml_dtypes.float8_e4m3fn


@program(0)
def per_token_cast_to_fp8(rng):
    """Rows in groups of 32: scale = max |x| / 448, values x / scale rounded to e4m3."""
    M, N, G, rows = 37, 96, 32, 8

    @tiledsl.jit
    def cast(X, group: int):
        M = T.dynamic("M")
        N = T.const("N")
        X: T.Tensor[(M, N), T.bfloat16]
        Y = T.empty((M, N), T.float8_e4m3fn)
        S = T.empty((M, T.ceildiv(N, group)), T.float32)
        with T.Kernel(T.ceildiv(M, rows), T.ceildiv(N, group), threads=128) as (bx, by):
            x = T.alloc_fragment((rows, group), T.float32)
            amax = T.alloc_fragment((rows,), T.float32)
            scale = T.alloc_fragment((rows,), T.float32)
            y = T.alloc_fragment((rows, group), T.float8_e4m3fn)
            T.copy(X[bx * rows, by * group], x)
            T.reduce_absmax(x, amax, dim=1)
            for i in T.Parallel(rows):
                amax[i] = T.max(amax[i], 1e-4)
                scale[i] = amax[i] / 448.0
                if bx * rows + i < M:
                    S[bx * rows + i, by] = scale[i]
            for i, j in T.Parallel(rows, group):
                y[i, j] = T.clamp(x[i, j] / scale[i], -448.0, 448.0)
            T.copy(y, Y[bx * rows, by * group])
        return Y, S

    x = normal(rng, M, N, dtype=ml_dtypes.bfloat16)
    y, s = cast(x, G)
    blocks = x.astype(np.float32).reshape(M, N // G, G)
    want_s = np.maximum(np.abs(blocks).max(-1), np.float32(1e-4)) / np.float32(448.0)
    want = np.clip(blocks / want_s[..., None], -448, 448).astype(E4M3)
    return [(y.view(np.uint8), want.reshape(M, N).view(np.uint8)), (s, want_s)]


@program(0)
def cast_with_power_of_two_scales(rng):
    """Scales rounded up to powers of two by integer arithmetic on their bits; four of them packed into an int32."""
    M, G, groups = 20, 32, 8
    N = G * groups

    @tiledsl.jit(out_idx=[1, 2])
    def kernel():
        @T.macro
        def power_of_two_above(x):
            bits = T.reinterpret(x, "uint32")
            exponent = ((bits - 1) >> 23) + 1 - 127
            return T.cast(exponent, "int32")

        @T.prim_func
        def main(
            X: T.Tensor((M, N), "float32"),
            Y: T.Tensor((M, N), "float8_e4m3fn"),
            Packed: T.Tensor((M, groups // 4), "int32"),
        ):
            with T.Kernel(T.ceildiv(M, 4), threads=128) as bx:
                x = T.alloc_fragment((4, groups, G), "float32")
                amax = T.alloc_fragment((4, groups), "float32")
                exps = T.alloc_shared((4, groups), "int32")
                for i, g, j in T.Parallel(4, groups, G):
                    x[i, g, j] = X[bx * 4 + i, g * G + j]
                T.reduce_absmax(x, amax, dim=2)
                for i, g in T.Parallel(4, groups):
                    exps[i, g] = power_of_two_above(T.max(amax[i, g], 1e-4) * T.float32(1.0 / 448.0))
                for i, g, j in T.Parallel(4, groups, G):
                    inverse = T.reinterpret((127 - exps[i, g]) << 23, "float32")
                    Y[bx * 4 + i, g * G + j] = x[i, g, j] * inverse
                for i, w in T.Parallel(4, groups // 4):
                    word = T.alloc_var("int32")
                    word = 0
                    for b in T.unroll(4):
                        word = word | ((exps[i, w * 4 + b] + 127) << (8 * b))
                    Packed[bx * 4 + i, w] = word

        return main

    x = normal(rng, M, N) * 10
    y, packed = kernel()(x)
    blocks = x.reshape(M, groups, G)
    amax = np.maximum(np.abs(blocks).max(-1), np.float32(1e-4)) * np.float32(1.0 / 448.0)
    exps = ((amax.view(np.uint32) - np.uint32(1)) >> 23).astype(np.int64) + 1 - 127
    want = (blocks * (2.0 ** -exps[..., None]).astype(np.float32)).astype(np.float32)
    words = ((exps + 127).astype(np.uint8)).reshape(M, groups // 4, 4).view(np.int32)[..., 0]
    return [(y.view(np.uint8), np.clip(want, -448, 448).astype(E4M3).reshape(M, N).view(np.uint8)), (packed, words)]


@program(0)
def fp4_quantised_and_back(rng):
    """e2m1 values, two per byte, with e8m0 scales per 16; then the product with a vector from the packed form."""
    M, N, G = 10, 64, 16

    @tiledsl.jit(out_idx=[1, 2])
    def quantise():
        @T.prim_func
        def main(
            X: T.Tensor((M, N), "float32"),
            Y: T.Tensor((M, N), "float4_e2m1fn"),
            S: T.Tensor((M, N // G), "float8_e8m0fnu"),
        ):
            with T.Kernel(M, threads=32) as bx:
                x = T.alloc_fragment((N // G, G), "float32")
                amax = T.alloc_fragment((N // G,), "float32")
                scale = T.alloc_fragment((N // G,), "float8_e8m0fnu")
                for g, j in T.Parallel(N // G, G):
                    x[g, j] = X[bx, g * G + j]
                T.reduce_absmax(x, amax, dim=1)
                for g in T.Parallel(N // G):
                    scale[g] = amax[g] / 6.0
                    S[bx, g] = scale[g]
                for g, j in T.Parallel(N // G, G):
                    Y[bx, g * G + j] = x[g, j] / T.cast(scale[g], "float32")

        return main

    x = normal(rng, M, N)
    y, s = quantise()(x)
    groups = x.reshape(M, N // G, G)
    ratio = np.abs(groups).max(-1) / np.float32(6.0)
    exps = np.ceil(np.log2(ratio.astype(np.float64))).astype(np.int64)
    scaled = groups / (2.0 ** exps[..., None]).astype(np.float32)
    codes = scaled.astype(ml_dtypes.float4_e2m1fn).view(np.uint8).reshape(M, N) & 15
    packed = (codes[:, ::2] | (codes[:, 1::2] << 4)).astype(np.uint8)
    return [(y, packed), (s.view(np.uint8), (exps + 127).astype(np.uint8))]


@program(BF16)
def dequantise_fp4_and_multiply(rng):
    """Weights in packed e2m1 with e8m0 scales along K, turned into bfloat16 tiles on the way to T.gemm."""
    M, N, K, G, BM, BN, BK = 9, 40, 64, 32, 16, 16, 32

    @tiledsl.jit(out_idx=[-1])
    def kernel():
        @T.prim_func
        def main(
            A: T.Tensor((M, K), "bfloat16"),
            W: T.Tensor((N, K), "float4_e2m1fn"),
            S: T.Tensor((N, K // G), "uint8"),
            C: T.Tensor((M, N), "float32"),
        ):
            with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=128) as (bx, by):
                A_s = T.alloc_shared((BM, BK), "bfloat16")
                W_s = T.alloc_shared((BN, BK), "float4_e2m1fn")
                B_s = T.alloc_shared((BN, BK), "bfloat16")
                acc = T.alloc_fragment((BM, BN), "float32")
                T.clear(acc)
                for k in T.Pipelined(K // BK, num_stages=2):
                    T.copy(A[by * BM, k * BK], A_s)
                    T.copy(W[bx * BN, k * BK], W_s)
                    for i, j in T.Parallel(BN, BK):
                        exponent = T.cast(S[bx * BN + i, (k * BK + j) // G], "uint32") << 23
                        B_s[i, j] = T.cast(W_s[i, j], "float32") * T.reinterpret(exponent, "float32")
                    T.gemm(A_s, B_s, acc, transpose_B=True)
                T.copy(acc, C[by * BM, bx * BN])

        return main

    a = normal(rng, M, K, dtype=ml_dtypes.bfloat16)
    codes = rng.integers(0, 16, (N, K), dtype=np.uint8)
    s = rng.integers(120, 130, (N, K // G), dtype=np.uint8)
    w = codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64) * np.repeat(2.0 ** (s.astype(np.float64) - 127), G, 1)
    packed = codes[:, ::2] | (codes[:, 1::2] << 4)
    return [(kernel()(a, packed, s), wide(a) @ w.T)]


@program(0)
def int4_weights_unpacked_by_shifts(rng):
    """Two's complement nibbles out of int8 by shifting left and back, as integers wrap at a store."""
    N, K = 12, 34

    @tiledsl.jit
    def unpack(W):
        N, B = T.const("N, B")
        W: T.Tensor[(N, B), T.int8]
        Y = T.empty((N, B * 2), T.int8)
        with T.Kernel(N, threads=32) as bx:
            for j in T.Parallel(B * 2):
                byte = W[bx, j // 2]
                shifted = T.alloc_var(T.int8)
                shifted = byte << ((1 - j % 2) * 4)
                Y[bx, j] = shifted >> 4
        return Y

    w = rng.integers(-8, 8, (N, K), dtype=np.int8)
    packed = ((w[:, ::2] & 15) | (w[:, 1::2] << 4)).astype(np.int8)
    return [(unpack(packed), w)]


@program(F32)
def per_channel_statistics_with_reducers(rng):
    """Column-wise absolute maximum over rows by a reducer, then scaling with it."""
    M, N = 45, 19

    @tiledsl.jit(out_idx=[1, 2])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((M, N), "float32"), Y: T.Tensor((M, N), "float32"), S: T.Tensor((N,), "float32")):
            with T.Kernel(1, threads=64):
                x = T.alloc_fragment((M, N), "float32")
                top = T.alloc_reducer((N,), "float32", op="max", replication="all")
                T.copy(X, x)
                T.fill(top, -T.infinity("float32"))
                for i, j in T.Parallel(M, N):
                    top[j] = T.max(top[j], T.abs(x[i, j]))
                T.finalize_reducer(top)
                for i, j in T.Parallel(M, N):
                    Y[i, j] = x[i, j] / top[j]
                for j in T.Parallel(N):
                    S[j] = top[j]

        return main

    x = normal(rng, M, N)
    y, s = kernel()(x)
    top = np.abs(x).max(0)
    return [(s, top), (y, x / top)]


@program(0)
def stochastic_bits_of_e5m6(rng):
    """A 12-bit float from float32 by shifts in 16-bit integers, packed three bytes per two values."""
    N = 40

    @tiledsl.jit(out_idx=[1])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((N,), "uint16"), Y: T.Tensor((N * 3 // 2,), "uint8")):
            with T.Kernel(1, threads=32):
                for p in T.Parallel(N // 2):
                    lo = X[2 * p] >> 4
                    hi = X[2 * p + 1] >> 4
                    word = T.cast(lo, "uint32") | (T.cast(hi, "uint32") << 12)
                    for b in T.unroll(3):
                        Y[3 * p + b] = T.cast((word >> (8 * b)) & 0xFF, "uint8")

        return main

    x = rng.integers(0, 1 << 16, N, dtype=np.uint16)
    lo, hi = (x[::2] >> 4).astype(np.uint32), (x[1::2] >> 4).astype(np.uint32)
    word = lo | (hi << 12)
    want = np.stack([(word >> (8 * b)) & 0xFF for b in range(3)], -1).astype(np.uint8).reshape(-1)
    return [(kernel()(x), want)]
