"""Matrix products: layouts, epilogues, splits of K, persistent grids, quantised operands, batches."""

import numpy as np
from programs.registry import BF16, F16, F32, normal, program, wide

import tiledsl
import tiledsl.language as T


@tiledsl.jit(out_idx=[-1])
def _gemm(M, N, K, BM, BN, BK, trans_a, trans_b, dtype, out_dtype, epilogue):
    A_shape = (K, M) if trans_a else (M, K)
    B_shape = (N, K) if trans_b else (K, N)
    A_tile = (BK, BM) if trans_a else (BM, BK)
    B_tile = (BN, BK) if trans_b else (BK, BN)

    @T.macro
    def gelu(x):
        return 0.5 * x * (1.0 + T.erf(x * 0.7071067811865476))

    @T.prim_func
    def main(
        A: T.Tensor(A_shape, dtype),
        B: T.Tensor(B_shape, dtype),
        bias: T.Tensor((N,), dtype),
        C: T.Tensor((M, N), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=128) as (bx, by):
            A_s = T.alloc_shared(A_tile, dtype)
            B_s = T.alloc_shared(B_tile, dtype)
            acc = T.alloc_fragment((BM, BN), T.float32)
            T.use_swizzle(panel_size=10)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, BK), num_stages=3):
                if trans_a:
                    T.copy(A[k * BK, by * BM], A_s)
                else:
                    T.copy(A[by * BM, k * BK], A_s)
                if trans_b:
                    T.copy(B[bx * BN, k * BK], B_s)
                else:
                    T.copy(B[k * BK, bx * BN], B_s)
                T.gemm(A_s, B_s, acc, transpose_A=trans_a, transpose_B=trans_b, policy=T.GemmWarpPolicy.FullRow)
            if epilogue:
                for i, j in T.Parallel(BM, BN):
                    acc[i, j] = gelu(acc[i, j] + T.cast(bias[bx * BN + j], T.float32))
            T.copy(acc, C[by * BM, bx * BN])

    return main


def _run_gemm(rng, M, N, K, trans_a, trans_b, dtype, out_dtype="float32", epilogue=False, tiles=(32, 48, 16)):
    np_dtype = T.dtype(dtype).numpy
    a = normal(rng, *((K, M) if trans_a else (M, K)), dtype=np_dtype)
    b = normal(rng, *((N, K) if trans_b else (K, N)), dtype=np_dtype)
    bias = normal(rng, N, dtype=np_dtype)
    got = _gemm(M, N, K, *tiles, trans_a, trans_b, dtype, out_dtype, epilogue)(a, b, bias)
    a, b, bias = wide(a, b, bias)
    want = (a.T if trans_a else a) @ (b.T if trans_b else b)
    if epilogue:
        from math import erf

        want = want + bias
        want = 0.5 * want * (1.0 + np.vectorize(erf)(want / np.sqrt(2.0)))
    return [(got, want)]


@program(F32)
def gemm_nn_f32(rng):
    return _run_gemm(rng, 65, 100, 77, False, False, "float32")


@program(F16)
def gemm_nt_f16_out_f16(rng):
    return _run_gemm(rng, 64, 50, 96, False, True, "float16", "float16")


@program(BF16)
def gemm_tn_bf16_gelu_bias(rng):
    return _run_gemm(rng, 40, 70, 33, True, False, "bfloat16", "bfloat16", epilogue=True)


@program(F32)
def gemm_tt_f64_like_sizes(rng):
    return _run_gemm(rng, 1, 7, 129, True, True, "float32", tiles=(16, 16, 32))


@program(F32, ordered=False)
def gemm_split_k_atomic(rng):
    M, N, K, split, BM, BN, BK = 48, 40, 200, 3, 16, 32, 16

    @T.prim_func
    def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), split, threads=128) as (bx, by, bz):
            A_s = T.alloc_shared((BM, BK), "float16")
            B_s = T.alloc_shared((BK, BN), "float16")
            C_s = T.alloc_shared((BM, BN), "float32")
            acc = T.alloc_fragment((BM, BN), "float32")
            steps = T.ceildiv(K, BK * split)
            T.clear(acc)
            for k in T.Pipelined(steps, num_stages=2):
                T.copy(A[by * BM, (bz * steps + k) * BK], A_s)
                T.copy(B[(bz * steps + k) * BK, bx * BN], B_s)
                T.gemm(A_s, B_s, acc)
            T.copy(acc, C_s)
            T.atomic_add(C[by * BM, bx * BN], C_s)

    a, b = normal(rng, M, K, dtype=np.float16), normal(rng, K, N, dtype=np.float16)
    c = np.zeros((M, N), np.float32)
    tiledsl.compile(main)(a, b, c)
    return [(c, wide(a) @ wide(b))]


@program(F32)
def gemm_split_k_two_kernels(rng):
    """Partial products in a workspace, added up by a second kernel of the same function, in order."""
    M, N, K, split, BM, BN, BK = 48, 40, 200, 4, 16, 32, 10

    @T.prim_func
    def main(A: T.Tensor((M, K), "float32"), B: T.Tensor((K, N), "float32"), C: T.Tensor((M, N), "float32")):
        parts = T.alloc_global((split, M, N), "float32")
        with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), split, threads=128) as (bx, by, bz):
            A_s = T.alloc_shared((BM, BK), "float32")
            B_s = T.alloc_shared((BK, BN), "float32")
            acc = T.alloc_fragment((BM, BN), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // BK // split, num_stages=2):
                T.copy(A[by * BM, (bz * (K // BK // split) + k) * BK], A_s)
                T.copy(B[(bz * (K // BK // split) + k) * BK, bx * BN], B_s)
                T.gemm(A_s, B_s, acc)
            T.copy(acc, parts[bz, by * BM : (by + 1) * BM, bx * BN : (bx + 1) * BN])
        with T.Kernel(T.ceildiv(M, 8), threads=64) as bx:
            for i, j in T.Parallel(8, N):
                total = T.alloc_var("float32")
                total = 0.0
                for s in T.serial(split):
                    total += parts[s, bx * 8 + i, j]
                C[bx * 8 + i, j] = total

    a, b = normal(rng, M, K), normal(rng, K, N)
    return [(tiledsl.compile(main, out_idx=-1)(a, b), wide(a) @ wide(b))]


@program(F32)
def gemm_persistent(rng):
    M, N, K, BM, BN, BK, workers = 100, 90, 64, 32, 32, 16, 5

    @T.prim_func
    def main(A: T.Tensor((M, K), "float32"), B: T.Tensor((N, K), "float32"), C: T.Tensor((M, N), "float32")):
        with T.Kernel(workers, threads=128) as block:
            A_s = T.alloc_shared((BM, BK), "float32")
            B_s = T.alloc_shared((BN, BK), "float32")
            acc = T.alloc_fragment((BM, BN), "float32")
            for bx, by in T.Persistent([T.ceildiv(M, BM), T.ceildiv(N, BN)], workers, block):
                T.clear(acc)
                for k in T.Pipelined(T.ceildiv(K, BK), num_stages=2):
                    T.copy(A[bx * BM, k * BK], A_s)
                    T.copy(B[by * BN, k * BK], B_s)
                    T.gemm(A_s, B_s, acc, transpose_B=True)
                T.copy(acc, C[bx * BM, by * BN])

    a, b = normal(rng, M, K), normal(rng, N, K)
    return [(tiledsl.compile(main, out_idx=[-1])(a, b), wide(a) @ wide(b).T)]


@program(F16)
def gemm_w4a16_dequantised(rng):
    """Weights of 4 bits, two per byte, with a scale per group of 32 along K and a zero point of 8."""
    M, N, K, group, BM, BN, BK = 20, 64, 128, 32, 16, 32, 32

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "float16"),
        W: T.Tensor((N, K // 2), "uint8"),
        S: T.Tensor((N, K // group), "float16"),
        C: T.Tensor((M, N), "float16"),
    ):
        with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=128) as (bx, by):
            A_s = T.alloc_shared((BM, BK), "float16")
            W_s = T.alloc_shared((BN, BK // 2), "uint8")
            W_local = T.alloc_fragment((BN, BK // 2), "uint8")
            W_deq = T.alloc_fragment((BN, BK), "float16")
            acc = T.alloc_fragment((BM, BN), "float32")
            T.clear(acc)
            for k in T.Pipelined(K // BK, num_stages=2):
                T.copy(A[by * BM, k * BK], A_s)
                T.copy(W[bx * BN, k * BK // 2], W_s)
                T.copy(W_s, W_local)
                for i, j in T.Parallel(BN, BK):
                    nibble = (W_local[i, j // 2] >> ((j % 2) * 4)) & 0xF
                    W_deq[i, j] = (T.cast(nibble, "float16") - T.float16(8)) * S[bx * BN + i, (k * BK + j) // group]
                T.gemm(A_s, W_deq, acc, transpose_B=True)
            T.copy(acc, C[by * BM, bx * BN])

    a = normal(rng, M, K, dtype=np.float16)
    w = rng.integers(0, 256, (N, K // 2), dtype=np.uint8)
    s = (rng.random((N, K // group)) * 0.1).astype(np.float16)
    values = np.stack([w & 15, w >> 4], axis=-1).reshape(N, K).astype(np.float16) - np.float16(8)
    deq = values * np.repeat(s, group, axis=1)
    return [(tiledsl.compile(main, out_idx=-1)(a, w, s), wide(a) @ wide(deq).T)]


@program(0)
def gemm_int8_exact(rng):
    M, N, K = 33, 29, 70

    @tiledsl.jit
    def multiply(A, B):
        M, N, K = T.const("M, N, K")
        A: T.Tensor[(M, K), T.int8]
        B: T.Tensor[(N, K), T.int8]
        C = T.empty((M, N), T.int32)
        with T.Kernel(T.ceildiv(N, 16), T.ceildiv(M, 16), threads=32) as (bx, by):
            A_s = T.alloc_shared((16, 32), T.int8)
            B_s = T.alloc_shared((16, 32), T.int8)
            acc = T.alloc_fragment((16, 16), T.int32)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, 32)):
                T.copy(A[by * 16, k * 32], A_s)
                T.copy(B[bx * 16, k * 32], B_s)
                T.gemm(A_s, B_s, acc, transpose_B=True)
            T.copy(acc, C[by * 16, bx * 16])
        return C

    a, b = (rng.integers(-128, 128, s, dtype=np.int8) for s in ((M, K), (N, K)))
    return [(multiply(a, b), a.astype(np.int32) @ b.astype(np.int32).T)]


@program(BF16)
def gemm_fp8_block_scales(rng):
    """e4m3 operands with float32 scales per 1x128 of A and 128x128 of B, accumulators promoted per block of K."""
    M, N, K, G, BM = 40, 130, 300, 128, 32
    groups_k, groups_n = -(-K // G), -(-N // G)

    @T.prim_func
    def main(
        A: T.Tensor((M, K), "float8_e4m3fn"),
        As: T.Tensor((M, groups_k), "float32"),
        B: T.Tensor((N, K), "float8_e4m3fn"),
        Bs: T.Tensor((groups_n, groups_k), "float32"),
        C: T.Tensor((M, N), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(N, G), T.ceildiv(M, BM), threads=128) as (bx, by):
            A_s = T.alloc_shared((BM, G), "float8_e4m3fn")
            B_s = T.alloc_shared((G, G), "float8_e4m3fn")
            scale = T.alloc_shared((BM,), "float32")
            part = T.alloc_fragment((BM, G), "float32")
            acc = T.alloc_fragment((BM, G), "float32")
            T.clear(acc)
            for k in T.Pipelined(groups_k, num_stages=2):
                T.copy(A[by * BM, k * G], A_s)
                T.copy(B[bx * G, k * G], B_s)
                b_scale = Bs[bx, k]
                for i in T.Parallel(BM):
                    scale[i] = As[by * BM + i, k] * b_scale
                T.clear(part)
                T.gemm(A_s, B_s, part, transpose_B=True)
                for i, j in T.Parallel(BM, G):
                    acc[i, j] += part[i, j] * scale[i]
            T.copy(acc, C[by * BM, bx * G])

    import ml_dtypes

    a, b = (normal(rng, *s).astype(ml_dtypes.float8_e4m3fn) for s in ((M, K), (N, K)))
    a_s, b_s = (rng.random(s).astype(np.float32) + 0.5 for s in ((M, groups_k), (groups_n, groups_k)))
    full_a = wide(a) * np.repeat(a_s, G, axis=1)[:, :K]
    full_b = wide(b) * np.repeat(np.repeat(b_s, G, axis=0), G, axis=1)[:N, :K]
    return [(tiledsl.compile(main, out_idx=[-1])(a, a_s, b, b_s), full_a @ full_b.T)]


@program(F32)
def gemm_batched_with_strides(rng):
    """A batch of products over arguments of any strides."""
    b, m, n, k = T.dynamic("b, m, n, k")
    s0, s1, s2 = T.dynamic("s0, s1, s2")

    @T.prim_func
    def main(
        A: T.StridedTensor((b, m, k), (s0, s1, s2), "float32"),
        B: T.Tensor((b, k, n), "float32"),
        C: T.Tensor((b, m, n), "float32"),
    ):
        with T.Kernel(T.ceildiv(n, 32), T.ceildiv(m, 16), b, threads=128) as (bx, by, bz):
            A_s = T.alloc_shared((16, 24), "float32")
            B_s = T.alloc_shared((24, 32), "float32")
            acc = T.alloc_fragment((16, 32), "float32")
            for ko in T.Pipelined(T.ceildiv(k, 24), num_stages=2):
                T.copy(A[bz, by * 16, ko * 24], A_s)
                T.copy(B[bz, ko * 24, bx * 32], B_s)
                T.gemm(A_s, B_s, acc, clear_accum=ko == 0)
            T.copy(acc, C[bz, by * 16, bx * 32])

    a, w = normal(rng, 50, 3, 20).transpose(1, 2, 0), normal(rng, 3, 50, 33)
    return [(tiledsl.compile(main, out_idx=-1)(a, w), np.einsum("bmk,bkn->bmn", wide(a), wide(w)))]


@program(F32)
def newton_schulz_step(rng):
    """One step of the orthogonalisation in Muon: X <- a X + (b A + c A A) X with A = X X^T, all in one block."""
    R, C = 24, 40
    a, b, c = 3.4445, -4.7750, 2.0315

    @tiledsl.jit(out_idx=[-1])
    def step():
        @T.prim_func
        def main(X: T.Tensor((R, C), "float32"), Y: T.Tensor((R, C), "float32")):
            with T.Kernel(1, threads=128):
                X_s = T.alloc_shared((R, C), "float32")
                A_s = T.alloc_shared((R, R), "float32")
                A = T.alloc_fragment((R, R), "float32")
                AA = T.alloc_fragment((R, R), "float32")
                out = T.alloc_fragment((R, C), "float32")
                T.copy(X, X_s)
                T.clear(A)
                T.gemm(X_s, X_s, A, transpose_B=True)
                T.copy(A, A_s)
                T.clear(AA)
                T.gemm(A_s, A_s, AA)
                for i, j in T.Parallel(R, R):
                    A_s[i, j] = b * A[i, j] + c * AA[i, j]
                for i, j in T.Parallel(R, C):
                    out[i, j] = a * X_s[i, j]
                T.gemm(A_s, X_s, out)
                T.copy(out, Y)

        return main

    x = normal(rng, R, C)
    x /= np.linalg.norm(x)
    w = wide(x)
    A = w @ w.T
    return [(step()(x), a * w + (b * A + c * A @ A) @ w)]
