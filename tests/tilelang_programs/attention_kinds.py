"""Attention with sinks and a tuner, with masks of blocks, and with columns that are fetched ahead."""

import itertools
import math

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
import torch.nn.functional as F


def get_configs():
    iter_params = dict(block_M=[32], block_N=[32], num_stages=[1], threads=[128])
    return [dict(zip(iter_params, values)) for values in itertools.product(*iter_params.values())]


@tilelang.autotune(configs=get_configs(), warmup=1, rep=1)
@tilelang.jit(out_idx=[3], pass_configs={tilelang.PassConfigKey.TL_ENABLE_FAST_MATH: True})
def flashattn_sink(
    batch,
    heads,
    seq_q,
    seq_kv,
    dim,
    groups=1,
    window_size=None,
    sm_scale=None,
    block_M=64,
    block_N=64,
    num_stages=1,
    threads=128,
    dtype: T.dtype = T.float16,
):
    if window_size is not None:
        assert window_size % block_N == 0, "window_size must be divisible by block_N"
    if sm_scale is None:
        sm_scale = (1.0 / dim) ** 0.5
    scale = sm_scale * 1.44269504
    head_kv = heads // groups
    q_shape = [batch, heads, seq_q, dim]
    kv_shape = [batch, head_kv, seq_kv, dim]
    accum_dtype = T.float32
    past_len = seq_kv - seq_q
    assert past_len >= 0, "seq_kv must be greater than or equal to seq_q"

    @T.macro
    def MMA0(
        K: T.Tensor(kv_shape, dtype),
        Q_shared: T.SharedBuffer([block_M, dim], dtype),
        K_shared: T.SharedBuffer([block_N, dim], dtype),
        acc_s: T.FragmentBuffer([block_M, block_N], accum_dtype),
        k: T.int32,
        bx: T.int32,
        by: T.int32,
        bz: T.int32,
    ):
        T.copy(K[bz, by // groups, k * block_N : (k + 1) * block_N, :], K_shared)
        for i, j in T.Parallel(block_M, block_N):
            q_idx = bx * block_M + i + past_len
            k_idx = k * block_N + j
            if window_size is not None:
                acc_s[i, j] = T.if_then_else(
                    q_idx >= k_idx and q_idx < k_idx + window_size, 0, -T.infinity(acc_s.dtype)
                )
            else:
                acc_s[i, j] = T.if_then_else(q_idx >= k_idx, 0, -T.infinity(acc_s.dtype))
        T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)

    @T.macro
    def MMA1(
        V: T.Tensor(kv_shape, dtype),
        V_shared: T.SharedBuffer([block_N, dim], dtype),
        acc_s_cast: T.FragmentBuffer([block_M, block_N], dtype),
        acc_o: T.FragmentBuffer([block_M, dim], accum_dtype),
        k: T.int32,
        by: T.int32,
        bz: T.int32,
    ):
        T.copy(V[bz, by // groups, k * block_N : (k + 1) * block_N, :], V_shared)
        T.gemm(acc_s_cast, V_shared, acc_o, policy=T.GemmWarpPolicy.FullRow)

    @T.macro
    def Softmax(
        acc_s: T.FragmentBuffer([block_M, block_N], accum_dtype),
        acc_s_cast: T.FragmentBuffer([block_M, block_N], dtype),
        scores_max: T.FragmentBuffer([block_M], accum_dtype),
        scores_max_prev: T.FragmentBuffer([block_M], accum_dtype),
        scores_scale: T.FragmentBuffer([block_M], accum_dtype),
        scores_sum: T.FragmentBuffer([block_M], accum_dtype),
        logsum: T.FragmentBuffer([block_M], accum_dtype),
    ):
        T.copy(scores_max, scores_max_prev)
        T.fill(scores_max, -T.infinity(accum_dtype))
        T.reduce_max(acc_s, scores_max, dim=1, clear=False)
        for i in T.Parallel(block_M):
            scores_max[i] = T.max(scores_max[i], scores_max_prev[i])
        if window_size is not None:
            for i in T.Parallel(block_M):
                scores_max[i] = T.if_then_else(scores_max[i] == -T.infinity(accum_dtype), 0, scores_max[i])
        for i in T.Parallel(block_M):
            scores_scale[i] = T.exp2(scores_max_prev[i] * scale - scores_max[i] * scale)
        for i, j in T.Parallel(block_M, block_N):
            acc_s[i, j] = T.exp2(acc_s[i, j] * scale - scores_max[i] * scale)
        T.reduce_sum(acc_s, scores_sum, dim=1)
        for i in T.Parallel(block_M):
            logsum[i] = logsum[i] * scores_scale[i] + scores_sum[i]
        T.copy(acc_s, acc_s_cast)

    @T.macro
    def Rescale(
        acc_o: T.FragmentBuffer([block_M, dim], accum_dtype), scores_scale: T.FragmentBuffer([block_M], accum_dtype)
    ):
        for i, j in T.Parallel(block_M, dim):
            acc_o[i, j] *= scores_scale[i]

    @T.prim_func
    def main(
        Q: T.Tensor(q_shape, dtype),
        K: T.Tensor(kv_shape, dtype),
        V: T.Tensor(kv_shape, dtype),
        Output: T.Tensor(q_shape, dtype),
        Sinks: T.Tensor([heads], dtype),
    ):
        with T.Kernel(T.ceildiv(seq_q, block_M), heads, batch, threads=threads) as (bx, by, bz):
            Q_shared = T.alloc_shared([block_M, dim], dtype)
            K_shared = T.alloc_shared([block_N, dim], dtype)
            V_shared = T.alloc_shared([block_N, dim], dtype)
            O_shared = T.alloc_shared([block_M, dim], dtype)
            acc_s = T.alloc_fragment([block_M, block_N], accum_dtype)
            acc_s_cast = T.alloc_fragment([block_M, block_N], dtype)
            acc_o = T.alloc_fragment([block_M, dim], accum_dtype)
            scores_max = T.alloc_fragment([block_M], accum_dtype)
            scores_max_prev = T.alloc_fragment([block_M], accum_dtype)
            scores_scale = T.alloc_fragment([block_M], accum_dtype)
            scores_sum = T.alloc_fragment([block_M], accum_dtype)
            logsum = T.alloc_fragment([block_M], accum_dtype)
            sinks = T.alloc_fragment([block_M], dtype)
            T.annotate_layout(
                {
                    Q_shared: tilelang.layout.make_swizzled_layout(Q_shared),
                    K_shared: tilelang.layout.make_swizzled_layout(K_shared),
                    O_shared: tilelang.layout.make_swizzled_layout(O_shared),
                }
            )
            T.copy(Q[bz, by, bx * block_M : (bx + 1) * block_M, :], Q_shared)
            T.fill(acc_o, 0)
            T.fill(logsum, 0)
            T.fill(scores_max, -T.infinity(accum_dtype))
            for i in T.Parallel(block_M):
                sinks[i] = Sinks[by]
            end = T.min(T.ceildiv(seq_kv, block_N), T.ceildiv((bx + 1) * block_M + past_len, block_N))
            start = T.max(0, (bx * block_M + past_len - window_size) // block_N) if window_size is not None else 0
            for k in T.Pipelined(
                start,
                end,
                num_stages=num_stages,
                order=[-1, 0, 3, 1, -1, 2],
                stage=[-1, 0, 0, 1, -1, 1],
                group=[[0], [1, 2], [3, 4, 5, 6, 7, 8, 9, 10], [11], [12], [13]],
            ):
                MMA0(K, Q_shared, K_shared, acc_s, k, bx, by, bz)
                Softmax(acc_s, acc_s_cast, scores_max, scores_max_prev, scores_scale, scores_sum, logsum)
                Rescale(acc_o, scores_scale)
                MMA1(V, V_shared, acc_s_cast, acc_o, k, by, bz)
            for i in T.Parallel(block_M):
                logsum[i] += T.exp2(sinks[i] * 1.44269504 - scores_max[i] * scale)
            for i, j in T.Parallel(block_M, dim):
                acc_o[i, j] /= logsum[i]
            T.copy(acc_o, O_shared)
            T.copy(O_shared, Output[bz, by, bx * block_M : (bx + 1) * block_M, :])

    return main


def ref_program(Q, K, V, sinks, groups, window):
    K, V = K.repeat_interleave(groups, 1), V.repeat_interleave(groups, 1)
    s = torch.einsum("bhqd,bhkd->bhqk", Q.float(), K.float()) / math.sqrt(Q.shape[-1])
    sq, sk = s.shape[-2:]
    q = torch.arange(sq, device=Q.device)[:, None] + sk - sq
    k = torch.arange(sk, device=Q.device)
    m = (q >= k) & ((q < k + window) if window else True)
    s = s.masked_fill(~m, float("-inf"))
    s = torch.cat([s, sinks.float()[None, :, None, None].expand(s.shape[0], -1, sq, 1)], -1)
    p = torch.softmax(s, -1)[..., :-1]
    return (p @ V.float()).to(Q.dtype)


def test_sink():
    torch.manual_seed(0)
    for window in (None, 64):
        Q = torch.randn(1, 4, 64, 64, device="cuda", dtype=torch.float16)
        K = torch.randn(1, 2, 128, 64, device="cuda", dtype=torch.float16)
        V = torch.randn(1, 2, 128, 64, device="cuda", dtype=torch.float16)
        S = torch.randn(4, device="cuda", dtype=torch.float16)
        kernel = flashattn_sink(1, 4, 64, 128, 64, groups=2, window_size=window)
        o = kernel(Q, K, V, S)
        torch.testing.assert_close(o, ref_program(Q, K, V, S, 2, window), rtol=1e-2, atol=1e-2)


@tilelang.jit(out_idx=[-1])
def seer(batch, heads, seq_q, seq_kv, dim, downsample_len, is_causal, block_M=32, block_N=32):
    scale = (1.0 / dim) ** 0.5 * 1.44269504
    q_shape = [batch, heads, seq_q, dim]
    kv_shape = [batch, heads, seq_kv, dim]
    block_mask_shape = [batch, heads, downsample_len, downsample_len]
    dtype = "float16"
    accum_dtype = "float"
    block_mask_dtype = "int8"

    @T.prim_func
    def main(
        Q: T.Tensor(q_shape, dtype),
        K: T.Tensor(kv_shape, dtype),
        V: T.Tensor(kv_shape, dtype),
        BlockSparseMask: T.Tensor(block_mask_shape, block_mask_dtype),
        Output: T.Tensor(q_shape, dtype),
    ):
        with T.Kernel(T.ceildiv(seq_q, block_M), heads, batch, threads=128) as (bx, by, bz):
            Q_shared = T.alloc_shared([block_M, dim], dtype)
            K_shared = T.alloc_shared([block_N, dim], dtype)
            V_shared = T.alloc_shared([block_N, dim], dtype)
            acc_s = T.alloc_fragment([block_M, block_N], accum_dtype)
            acc_s_cast = T.alloc_fragment([block_M, block_N], dtype)
            acc_o = T.alloc_fragment([block_M, dim], accum_dtype)
            m_i = T.alloc_fragment([block_M], accum_dtype)
            m_prev = T.alloc_fragment([block_M], accum_dtype)
            alpha = T.alloc_fragment([block_M], accum_dtype)
            l_new = T.alloc_fragment([block_M], accum_dtype)
            l_i = T.alloc_fragment([block_M], accum_dtype)
            block_mask = T.alloc_local([downsample_len], block_mask_dtype)
            T.copy(Q[bz, by, bx * block_M : (bx + 1) * block_M, :], Q_shared)
            T.fill(acc_o, 0)
            T.fill(l_i, 0)
            T.fill(m_i, -T.infinity(accum_dtype))
            for vj in T.serial(downsample_len):
                block_mask[vj] = BlockSparseMask[bz, by, bx, vj]
            past_len = seq_kv - seq_q
            loop_range = (
                T.min(T.ceildiv(seq_kv, block_N), T.ceildiv((bx + 1) * block_M + past_len, block_N))
                if is_causal
                else T.ceildiv(seq_kv, block_N)
            )
            for k in T.Pipelined(loop_range, num_stages=1):
                if block_mask[k] != 0:
                    T.copy(K[bz, by, k * block_N : (k + 1) * block_N, :], K_shared)
                    if is_causal:
                        for i, j in T.Parallel(block_M, block_N):
                            acc_s[i, j] = T.if_then_else(
                                bx * block_M + i + past_len >= k * block_N + j, 0, -T.infinity(acc_s.dtype)
                            )
                    else:
                        T.clear(acc_s)
                    T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                    T.copy(m_i, m_prev)
                    T.reduce_max(acc_s, m_i, dim=1, clear=False)
                    for i in T.Parallel(block_M):
                        alpha[i] = T.exp2(m_prev[i] * scale - m_i[i] * scale)
                    for i, j in T.Parallel(block_M, block_N):
                        acc_s[i, j] = T.exp2(acc_s[i, j] * scale - m_i[i] * scale)
                    T.reduce_sum(acc_s, l_new, dim=1)
                    for i in T.Parallel(block_M):
                        l_i[i] = l_i[i] * alpha[i] + l_new[i]
                    for i, j in T.Parallel(block_M, dim):
                        acc_o[i, j] *= alpha[i]
                    T.copy(acc_s, acc_s_cast)
                    T.copy(V[bz, by, k * block_N : (k + 1) * block_N, :], V_shared)
                    T.gemm(acc_s_cast, V_shared, acc_o, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(block_M, dim):
                acc_o[i, j] /= l_i[i]
            T.copy(acc_o, Output[bz, by, bx * block_M : (bx + 1) * block_M, :])

    return main


def test_seer():
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 128, 64, device="cuda", dtype=torch.float16) for _ in range(3))
    mask = torch.rand(1, 2, 4, 4, device="cuda") < 0.5
    mask = mask | torch.eye(4, dtype=torch.bool, device="cuda")
    kern = seer(1, 2, 128, 128, 64, 4, True)
    o = kern(q, k, v, mask.to(torch.int8))
    full = (
        torch.kron(mask.float(), torch.ones(32, 32, device="cuda")).bool()
        & torch.tril(torch.ones(128, 128, device="cuda")).bool()
    )
    ref = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=full)
    torch.testing.assert_close(o.float(), ref, rtol=1e-2, atol=1e-2)
    print(kern.get_kernel_source()[:10])


# minference: async scope, macros with conditions
def vs_sparse(B, H, N, D, V_SIZE, S_SIZE, BM=32, BN=32):
    scale = (1.0 / D) ** 0.5 * 1.44269504
    shape = [B, H, N, D]
    seq_blocks = (N + BM - 1) // BM
    dtype, accum_dtype, int_dtype = "float16", "float", "int32"

    def kernel_func(num_stages, threads):
        @T.macro
        def Prefetch(
            K: T.Tensor(shape, dtype),
            V: T.Tensor(shape, dtype),
            K_shared: T.SharedBuffer([BN, D], dtype),
            V_shared: T.SharedBuffer([BN, D], dtype),
            column_index: T.SharedBuffer([V_SIZE], int_dtype),
            column_count: T.int32,
            k: T.int32,
            bz: T.int32,
            by: T.int32,
        ):
            with T.attr("default", "async_scope", 1):
                for i, j in T.Parallel(BN, D):
                    K_shared[i, j] = T.if_then_else(k + i < column_count, K[bz, by, column_index[k + i], j], 0)
            with T.attr("default", "async_scope", 1):
                for i, j in T.Parallel(BN, D):
                    V_shared[i, j] = T.if_then_else(k + i < column_count, V[bz, by, column_index[k + i], j], 0)
            T.ptx_commit_group()

        @T.macro
        def Compute(
            acc_s,
            acc_s_cast,
            acc_o,
            m_i,
            m_prev,
            alpha,
            l_new,
            l_i,
            k: T.int32,
            count: T.int32,
            Q_shared,
            K_shared,
            V_shared,
            n: T.int32,
        ):
            T.ptx_wait_group(n)
            for i, j in T.Parallel(BM, BN):
                acc_s[i, j] = T.if_then_else(k + j < count, 0, -T.infinity(acc_s.dtype))
            T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
            T.copy(m_i, m_prev)
            T.reduce_max(acc_s, m_i, dim=1, clear=False)
            for i in T.Parallel(BM):
                alpha[i] = T.exp2(m_prev[i] * scale - m_i[i] * scale)
            for i, j in T.Parallel(BM, D):
                acc_o[i, j] = acc_o[i, j] * alpha[i]
            for i, j in T.Parallel(BM, BN):
                acc_s[i, j] = T.exp2(acc_s[i, j] * scale - m_i[i] * scale)
            T.copy(acc_s, acc_s_cast)
            T.gemm(acc_s_cast, V_shared, acc_o, policy=T.GemmWarpPolicy.FullRow)
            T.reduce_sum(acc_s, l_new, dim=1)
            for i in T.Parallel(BM):
                l_i[i] = l_i[i] * alpha[i] + l_new[i]

        @T.prim_func
        def main(
            Q: T.Tensor(shape, dtype),
            K: T.Tensor(shape, dtype),
            V: T.Tensor(shape, dtype),
            Output: T.Tensor(shape, dtype),
            BlockCount: T.Tensor([B, H, seq_blocks], int_dtype),
            BlockOffset: T.Tensor([B, H, seq_blocks, S_SIZE], int_dtype),
            ColumnCount: T.Tensor([B, H, seq_blocks], int_dtype),
            ColumnIndex: T.Tensor([B, H, seq_blocks, V_SIZE], int_dtype),
        ):
            with T.Kernel(seq_blocks, H, B, threads=threads) as (bc, by, bz):
                bx = seq_blocks - 1 - bc
                Q_shared = T.alloc_shared([BM, D], dtype)
                K_shared = T.alloc_shared([BN, D], dtype)
                K_shared_2 = T.alloc_shared([BN, D], dtype)
                V_shared_2 = T.alloc_shared([BN, D], dtype)
                V_shared = T.alloc_shared([BN, D], dtype)
                acc_s = T.alloc_fragment([BM, BN], accum_dtype)
                acc_s_cast = T.alloc_fragment([BM, BN], dtype)
                acc_o = T.alloc_fragment([BM, D], accum_dtype)
                m_i = T.alloc_fragment([BM], accum_dtype)
                m_prev = T.alloc_fragment([BM], accum_dtype)
                alpha = T.alloc_fragment([BM], accum_dtype)
                l_new = T.alloc_fragment([BM], accum_dtype)
                l_i = T.alloc_fragment([BM], accum_dtype)
                block_count = T.alloc_local([1], int_dtype)
                block_offset = T.alloc_shared([S_SIZE], int_dtype, scope="shared")
                column_count = T.alloc_local([1], int_dtype)
                column_index = T.alloc_shared([V_SIZE], int_dtype, scope="shared")
                T.create_list_of_mbarrier([128] * 9)
                block_count[0] = BlockCount[bz, by, bx]
                column_count[0] = ColumnCount[bz, by, bx]
                for vi in T.Parallel(S_SIZE):
                    if vi < block_count[0]:
                        block_offset[vi] = BlockOffset[bz, by, bx, vi]
                for vi in T.serial(V_SIZE):
                    if vi < column_count[0]:
                        column_index[vi] = ColumnIndex[bz, by, bx, vi]
                T.copy(Q[bz, by, bx * BM : (bx + 1) * BM, :], Q_shared)
                T.fill(acc_o, 0)
                T.fill(l_i, 0)
                T.fill(m_i, -T.infinity(accum_dtype))
                for bi in T.Pipelined(block_count[0], num_stages=num_stages):
                    k = block_offset[bi]
                    T.copy(K[bz, by, k : k + BN, :], K_shared)
                    for i, j in T.Parallel(BM, BN):
                        acc_s[i, j] = T.if_then_else(bx * BM + i >= k + j, 0, -T.infinity(acc_s.dtype))
                    T.gemm(Q_shared, K_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                    T.copy(V[bz, by, k : k + BN, :], V_shared)
                    T.copy(m_i, m_prev)
                    T.reduce_max(acc_s, m_i, dim=1, clear=False)
                    for i in T.Parallel(BM):
                        alpha[i] = T.exp2(m_prev[i] * scale - m_i[i] * scale)
                    for i, j in T.Parallel(BM, D):
                        acc_o[i, j] = acc_o[i, j] * alpha[i]
                    for i, j in T.Parallel(BM, BN):
                        acc_s[i, j] = T.exp2(acc_s[i, j] * scale - m_i[i] * scale)
                    T.copy(acc_s, acc_s_cast)
                    T.gemm(acc_s_cast, V_shared, acc_o, policy=T.GemmWarpPolicy.FullRow)
                    T.reduce_sum(acc_s, l_new, dim=1)
                    for i in T.Parallel(BM):
                        l_i[i] = l_i[i] * alpha[i] + l_new[i]
                if column_count[0] != 0:
                    Prefetch(K, V, K_shared, V_shared, column_index, column_count[0], 0, bz, by)
                    for bi in T.serial(T.ceildiv(column_count[0], BN) - 1):
                        k = bi * BN
                        if bi % 2 == 0:
                            Prefetch(K, V, K_shared_2, V_shared_2, column_index, column_count[0], k + BN, bz, by)
                            Compute(
                                acc_s,
                                acc_s_cast,
                                acc_o,
                                m_i,
                                m_prev,
                                alpha,
                                l_new,
                                l_i,
                                k,
                                column_count[0],
                                Q_shared,
                                K_shared,
                                V_shared,
                                1,
                            )
                        else:
                            Prefetch(K, V, K_shared, V_shared, column_index, column_count[0], k + BN, bz, by)
                            Compute(
                                acc_s,
                                acc_s_cast,
                                acc_o,
                                m_i,
                                m_prev,
                                alpha,
                                l_new,
                                l_i,
                                k,
                                column_count[0],
                                Q_shared,
                                K_shared_2,
                                V_shared_2,
                                1,
                            )
                    if T.ceildiv(column_count[0], BN) % 2 == 0:
                        Compute(
                            acc_s,
                            acc_s_cast,
                            acc_o,
                            m_i,
                            m_prev,
                            alpha,
                            l_new,
                            l_i,
                            T.ceildiv(column_count[0], BN) * BN - BN,
                            column_count[0],
                            Q_shared,
                            K_shared_2,
                            V_shared_2,
                            0,
                        )
                    else:
                        Compute(
                            acc_s,
                            acc_s_cast,
                            acc_o,
                            m_i,
                            m_prev,
                            alpha,
                            l_new,
                            l_i,
                            T.ceildiv(column_count[0], BN) * BN - BN,
                            column_count[0],
                            Q_shared,
                            K_shared,
                            V_shared,
                            0,
                        )
                for i, j in T.Parallel(BM, D):
                    acc_o[i, j] /= l_i[i]
                T.copy(acc_o, Output[bz, by, bx * BM : (bx + 1) * BM, :])

        return main

    return kernel_func(2, 128)


def test_minference():
    torch.manual_seed(0)
    N, D = 160, 32
    kern = tilelang.compile(vs_sparse(1, 1, N, D, 64, 4), out_idx=[3])
    q, k, v = (torch.randn(1, 1, N, D, device="cuda", dtype=torch.float16) for _ in range(3))
    nb = 5
    counts = torch.ones(1, 1, nb, dtype=torch.int32, device="cuda")
    offs = torch.zeros(1, 1, nb, 4, dtype=torch.int32, device="cuda")
    ccount = torch.zeros(1, 1, nb, dtype=torch.int32, device="cuda")
    cidx = torch.zeros(1, 1, nb, 64, dtype=torch.int32, device="cuda")
    mask = torch.zeros(N, N, dtype=torch.bool, device="cuda")
    for b in range(nb):
        offs[0, 0, b, 0] = b * 32
        n = min(b * 12, 40)
        cols = torch.randperm(b * 32)[:n].sort().values if n else torch.zeros(0, dtype=torch.long)
        ccount[0, 0, b] = n
        cidx[0, 0, b, :n] = cols
        rows = slice(b * 32, b * 32 + 32)
        mask[rows, b * 32 : b * 32 + 32] = torch.tril(torch.ones(32, 32)).bool()
        mask[rows, cols] = True
    o = kern(q, k, v, counts, offs, ccount, cidx)
    ref = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=mask)
    torch.testing.assert_close(o.float(), ref, rtol=1e-2, atol=1e-2)


if __name__ == "__main__":
    tilelang.testing.main()
