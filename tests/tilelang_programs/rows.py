"""Row-wise kernels in TileLang's spelling: softmax, norms, attention, quantisation, scans, reducers."""

import math

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tvm import tirx


def test_softmax_online():
    @tilelang.jit(out_idx=[1])
    def softmax(M, N, BN):
        scale = 1.44269504

        @T.prim_func
        def main(X: T.Tensor([M, N], "float32"), Y: T.Tensor([M, N], "float32")):
            with T.Kernel(M, threads=128) as i_m:
                x = T.alloc_fragment([BN], "float32")
                y = T.alloc_fragment([BN], "float32")
                lse = T.alloc_fragment([1], "float32")
                max_x = T.alloc_fragment([1], "float32")
                sum_x = T.alloc_fragment([1], "float32")
                T.fill(lse, -T.infinity("float32"))
                for i_n in T.Pipelined(0, T.ceildiv(N, BN)):
                    T.copy(X[i_m, i_n * BN], x)
                    for j in T.Parallel(BN):
                        x[j] = T.if_then_else(i_n * BN + j < N, x[j], -T.infinity("float32"))
                    T.reduce_max(x, max_x, dim=0, clear=True)
                    for j in T.Parallel(BN):
                        y[j] = T.exp2(x[j] * scale - max_x[0] * scale)
                    T.reduce_sum(y, sum_x, dim=0, clear=True)
                    lse[0] = max_x[0] * scale + T.log2(T.exp2(lse[0] - max_x[0] * scale) + sum_x[0])
                for i_n in T.Pipelined(0, T.ceildiv(N, BN)):
                    T.copy(X[i_m, i_n * BN], x)
                    for j in T.Parallel(BN):
                        y[j] = T.exp2(x[j] * scale - lse[0])
                    T.copy(y, Y[i_m, i_n * BN])

        return main

    x = torch.randn(7, 200, device="cuda")
    torch.testing.assert_close(softmax(7, 200, 64)(x), x.softmax(dim=1), rtol=1e-4, atol=1e-5)


def test_rms_norm_with_symbolic_rows():
    def rms_norm(N, blk_m):
        M = T.symbolic("M")

        @T.prim_func
        def main(A: T.Tensor((M, N), "float"), B: T.Tensor((M, N), "float")):
            with T.Kernel(T.ceildiv(M, blk_m), threads=128, is_cpu=False) as bx:
                A_local = T.alloc_fragment((blk_m, N), "float")
                A_pow = T.alloc_fragment((blk_m, N), "float")
                A_sum = T.alloc_fragment((blk_m,), "float")
                T.copy(A[bx * blk_m : (bx + 1) * blk_m, :], A_local)
                for i, j in T.Parallel(blk_m, N):
                    A_pow[i, j] = A_local[i, j] * A_local[i, j]
                T.reduce_sum(A_pow, A_sum, dim=1)
                for i in T.Parallel(blk_m):
                    A_sum[i] = T.rsqrt(A_sum[i] / N + 1e-12)
                for i, j in T.Parallel(blk_m, N):
                    A_local[i, j] *= A_sum[i]
                T.copy(A_local, B[bx * blk_m, 0])

        return main

    kernel = tilelang.compile(rms_norm(48, 4), out_idx=-1, target="cuda", execution_backend="tvm_ffi")
    for rows in (1, 17):
        x = torch.randn(rows, 48, device="cuda")
        want = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12)
        torch.testing.assert_close(kernel(x), want, rtol=1e-4, atol=1e-5)


def flash_attention(batch, heads, seq, dim, causal, block_M=32, block_N=32):
    scale = (1.0 / dim) ** 0.5 * 1.44269504
    shape = [batch, seq, heads, dim]

    @tilelang.jit(out_idx=[3], pass_configs={"tl.enable_fast_math": True})
    def build():
        @T.macro
        def softmax(scores, scores_max, scores_max_prev, scores_scale, scores_sum, logsum):
            T.copy(scores_max, scores_max_prev)
            T.reduce_max(scores, scores_max, dim=1, clear=False)
            for i in T.Parallel(block_M):
                scores_scale[i] = T.exp2(scores_max_prev[i] * scale - scores_max[i] * scale)
            for i, j in T.Parallel(block_M, block_N):
                scores[i, j] = T.exp2(scores[i, j] * scale - scores_max[i] * scale)
            T.reduce_sum(scores, scores_sum, dim=1)
            for i in T.Parallel(block_M):
                logsum[i] = logsum[i] * scores_scale[i] + scores_sum[i]

        @T.prim_func
        def main(
            Q: T.Tensor(shape, "float16"),
            K: T.Tensor(shape, "float16"),
            V: T.Tensor(shape, "float16"),
            Output: T.Tensor(shape, "float16"),
        ):
            with T.Kernel(T.ceildiv(seq, block_M), heads, batch, threads=128) as (bx, by, bz):
                Q_shared = T.alloc_shared([block_M, dim], "float16")
                K_shared = T.alloc_shared([block_N, dim], "float16")
                V_shared = T.alloc_shared([block_N, dim], "float16")
                acc_s = T.alloc_fragment([block_M, block_N], "float")
                acc_s_cast = T.alloc_fragment([block_M, block_N], "float16")
                acc_o = T.alloc_fragment([block_M, dim], "float")
                scores_max = T.alloc_fragment([block_M], "float")
                scores_max_prev = T.alloc_fragment([block_M], "float")
                scores_scale = T.alloc_fragment([block_M], "float")
                scores_sum = T.alloc_fragment([block_M], "float")
                logsum = T.alloc_fragment([block_M], "float")
                T.copy(Q[bz, bx * block_M : (bx + 1) * block_M, by, :], Q_shared)
                T.fill(acc_o, 0)
                T.fill(logsum, 0)
                T.fill(scores_max, -T.infinity("float"))
                loop_range = (
                    T.min(T.ceildiv(seq, block_N), T.ceildiv((bx + 1) * block_M, block_N))
                    if causal
                    else T.ceildiv(seq, block_N)
                )
                for k in T.Pipelined(loop_range, num_stages=1, order=None, stage=None):
                    T.copy(K[bz, k * block_N : (k + 1) * block_N, by, :], K_shared)
                    if causal:
                        for i, j in T.Parallel(block_M, block_N):
                            acc_s[i, j] = T.if_then_else(
                                bx * block_M + i >= k * block_N + j, 0, -T.infinity(acc_s.dtype)
                            )
                    else:
                        for i, j in T.Parallel(block_M, block_N):
                            acc_s[i, j] = T.if_then_else(k * block_N + j >= seq, -T.infinity(acc_s.dtype), 0)
                    T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                    T.copy(V[bz, k * block_N : (k + 1) * block_N, by, :], V_shared)
                    softmax(acc_s, scores_max, scores_max_prev, scores_scale, scores_sum, logsum)
                    T.copy(acc_s, acc_s_cast)
                    for i, j in T.Parallel(block_M, dim):
                        acc_o[i, j] *= scores_scale[i]
                    T.gemm(acc_s_cast, V_shared, acc_o, policy=T.GemmWarpPolicy.FullRow)
                for i, j in T.Parallel(block_M, dim):
                    acc_o[i, j] /= logsum[i]
                T.copy(acc_o, Output[bz, bx * block_M : (bx + 1) * block_M, by, :])

        return main

    return build()


def test_flash_attention():
    for causal in (False, True):
        q, k, v = (torch.randn(2, 70, 2, 32, device="cuda", dtype=torch.float16) for _ in range(3))
        got = flash_attention(2, 2, 70, 32, causal)(q, k, v)
        s = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) / math.sqrt(32)
        if causal:
            s = s.masked_fill(torch.ones(70, 70, device="cuda").triu(1).bool(), -math.inf)
        want = torch.einsum("bhqk,bkhd->bqhd", s.softmax(-1), v.float())
        torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


def test_dequantised_weights_through_tirx():
    def _tir_u4_to_f16(val: tirx.PrimExpr, pos: tirx.PrimExpr, dtype: str):
        mask = tirx.const(0xF, "uint8")
        return (
            ((val >> (pos.astype("uint8") * tirx.const(4, "uint8"))) & mask).astype("int8") - tirx.const(8, "int8")
        ).astype(dtype)

    N, K = 5, 32

    @tilelang.jit(out_idx=[1])
    def dequant():
        @T.prim_func
        def main(B: T.Tensor((N, K // 2), "uint8"), C: T.Tensor((N, K), "float16")):
            with T.Kernel(N, threads=32) as bx:
                for j in T.Parallel(K):
                    C[bx, j] = _tir_u4_to_f16(B[bx, j // 2], j % 2, "float16")

        return main

    b = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda")
    want = torch.stack([(b & 15), (b >> 4)], -1).reshape(N, K).to(torch.int32) - 8
    assert torch.equal(dequant()(b).int(), want)


def test_fp8_per_token_cast_with_both_orders_of_reinterpret():
    fp8_max = 448.0

    @tilelang.jit
    def cast(M, N):
        @T.prim_func
        def main(
            X: T.Tensor((M, N), "bfloat16"), Y: T.Tensor((M, N), "float8_e4m3"), S: T.Tensor((M,), "float32"),
            bits: T.Tensor((M,), "int32"), back: T.Tensor((M,), "float32"),
        ):  # fmt: skip
            with T.Kernel(M, threads=128) as m:
                x = T.alloc_fragment((1, N), "float32")
                amax = T.alloc_fragment((1,), "float32")
                T.copy(X[m, 0], x)
                T.reduce_absmax(x, amax, dim=1)
                s = T.alloc_var("float32")
                s = T.max(amax[0], 1e-4) / fp8_max
                S[m] = s
                bits[m] = T.reinterpret("int32", s)
                back[m] = T.reinterpret(T.reinterpret(s, "int32"), "float32")
                for j in T.Parallel(N):
                    Y[m, j] = T.clamp(x[0, j] / s, -fp8_max, fp8_max)

        return main

    x = torch.randn(5, 64, device="cuda", dtype=torch.bfloat16)
    y, s = torch.empty(5, 64, device="cuda", dtype=torch.float8_e4m3fn), torch.empty(5, device="cuda")
    bits, back = torch.empty(5, device="cuda", dtype=torch.int32), torch.empty(5, device="cuda")
    cast(5, 64)(x, y, s, bits, back)
    want = x.float().abs().amax(1).clamp(min=1e-4) / 448
    assert torch.equal(s, want) and torch.equal(back, s) and torch.equal(bits, s.view(torch.int32))
    assert torch.equal(y.float(), (x.float() / want[:, None]).clamp(-448, 448).to(torch.float8_e4m3fn).float())


def test_old_and_new_reducers():
    @tilelang.jit(out_idx=[1, 2])
    def column_sums(M, N):
        @T.prim_func
        def main(A: T.Tensor((M, N), "float32"), old: T.Tensor((N,), "float32"), new: T.Tensor((N,), "float32")):
            with T.Kernel(1, threads=64):
                r = T.alloc_reducer((N,), "float32", op="sum", replication="all")
                T.clear(r)
                for i, j in T.Parallel(M, N):
                    r[j] += A[i, j]
                T.finalize_reducer(r)
                T.copy(r, old)
                q = T.alloc_reducer((N,), "float32", op="sum")
                T.reducer_init(q)
                for i, j in T.Parallel(M, N):
                    T.reducer_update(q[j], A[i, j])
                out = T.alloc_fragment((N,), "float32")
                T.finalize_reducer(q, out)
                T.copy(out, new)

        return main

    a = torch.randint(-9, 9, (13, 32), device="cuda").float()
    old, new = column_sums(13, 32)(a)
    assert torch.equal(old, a.sum(0)) and torch.equal(new, a.sum(0))


def test_scans():
    @tilelang.jit(out_idx=[1])
    def scan(M, N, dim, reverse):
        @T.prim_func
        def main(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32")):
            with T.Kernel(1, threads=64):
                s = T.alloc_shared((M, N), "float32")
                T.copy(A, s)
                T.cumsum(src=s, dim=dim, reverse=reverse)
                T.copy(s, B)

        return main

    a = torch.randint(-9, 9, (8, 16), device="cuda").float()
    assert torch.equal(scan(8, 16, 0, False)(a), a.cumsum(0))
    assert torch.equal(scan(8, 16, 1, True)(a), a.flip(1).cumsum(1).flip(1))
