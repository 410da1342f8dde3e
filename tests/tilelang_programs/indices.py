"""Attention by indices and over ragged rows; an indexer; packed and random values."""

import pytest
import tilelang
import tilelang.testing
import torch
import torch.nn.functional as F
from tilelang import language as T


@tilelang.jit(
    out_idx=[-2, -1],
    pass_configs={
        tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True,
        tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
    },
)
def sparse_mla_fwd(
    heads,
    dim,
    tail_dim,
    topk,
    kv_group=1,
    sm_scale=None,
    is_causal=True,
    CP0=True,
    block_I=32,
    num_stages=2,
    threads=128,
):
    assert dim == tilelang.math.next_power_of_2(dim), f"haven't check padding correctness yet, dim={dim}"
    sm_scale = (1.0 / (dim + tail_dim)) ** 0.5 * 1.44269504 if sm_scale is None else sm_scale * 1.44269504
    batch = T.dynamic("batch")
    seq_len = T.dynamic("seq_len")
    seq_len_kv = T.dynamic("seq_len_kv")
    head_kv = heads // kv_group
    q_shape = [batch, seq_len, heads, dim + tail_dim]
    kv_shape = [batch, seq_len_kv, kv_group, dim + tail_dim]
    o_shape = [batch, seq_len, heads, dim]
    indices_shape = [batch, seq_len, kv_group, topk]
    lse_shape = [batch, seq_len, heads]
    indices_dtype, dtype, accum_dtype = T.int32, T.bfloat16, T.float32
    padded_H = max(tilelang.math.next_power_of_2(head_kv), 16)
    BI = block_I
    NI = tilelang.cdiv(topk, block_I)
    D, D_tail = dim, tail_dim
    REPLICATE_H = head_kv // 64 if head_kv > 64 else 1
    H_per_block = padded_H if REPLICATE_H == 1 else 64

    @T.prim_func
    def main(
        Q: T.Tensor(q_shape, dtype),
        KV: T.Tensor(kv_shape, dtype),
        Indices: T.Tensor(indices_shape, indices_dtype),
        Output: T.Tensor(o_shape, dtype),
        Lse: T.Tensor(lse_shape, accum_dtype),
    ):
        with T.Kernel(seq_len * REPLICATE_H, batch, kv_group, threads=threads) as (bx, by, bz):
            Q_shared = T.alloc_shared([H_per_block, D], dtype)
            Q_tail_shared = T.alloc_shared([H_per_block, D_tail], dtype)
            KV_shared = T.alloc_shared([BI, D], dtype)
            K_tail_shared = T.alloc_shared([BI, D_tail], dtype)
            mask = T.alloc_fragment([BI], "bool")
            acc_o = T.alloc_fragment([H_per_block, D], accum_dtype)
            acc_s = T.alloc_fragment([H_per_block, BI], accum_dtype)
            S_shared = T.alloc_shared([H_per_block, BI], dtype)
            sumexp = T.alloc_fragment([H_per_block], accum_dtype)
            sumexp_i = T.alloc_fragment([H_per_block], accum_dtype)
            alpha = T.alloc_fragment([H_per_block], accum_dtype)
            m_i = T.alloc_fragment([H_per_block], accum_dtype)
            m_i_prev = T.alloc_fragment([H_per_block], accum_dtype)
            T.fill(acc_o, 0)
            T.fill(sumexp, 0)
            T.fill(m_i, -(2**30))
            b_i, g_i = by, bz
            s_i = bx if REPLICATE_H == 1 else (bx // REPLICATE_H)
            q_i = s_i
            max_kv_i = q_i
            H0 = g_i * padded_H + (0 if REPLICATE_H == 1 else (bx % REPLICATE_H) * 64)
            H1 = H0 + H_per_block
            T.copy(Q[b_i, s_i, H0:H1, :D], Q_shared)
            T.copy(Q[b_i, s_i, H0:H1, D:], Q_tail_shared)
            for i_i in T.Pipelined(NI, num_stages=num_stages):
                for bi_i in T.Parallel(BI):
                    mask[bi_i] = Indices[b_i, s_i, g_i, i_i * BI + bi_i] <= max_kv_i
                for bi_i, d_i in T.Parallel(BI, D):
                    KV_shared[bi_i, d_i] = KV[b_i, Indices[b_i, s_i, g_i, i_i * BI + bi_i], g_i, d_i]
                for bi_i, d_i in T.Parallel(BI, D_tail):
                    K_tail_shared[bi_i, d_i] = KV[b_i, Indices[b_i, s_i, g_i, i_i * BI + bi_i], g_i, D + d_i]
                for h_i, bi_i in T.Parallel(H_per_block, BI):
                    acc_s[h_i, bi_i] = T.if_then_else(mask[bi_i], 0, -T.infinity(acc_s.dtype))
                T.gemm(Q_shared, KV_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.gemm(Q_tail_shared, K_tail_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(m_i, m_i_prev)
                T.reduce_max(acc_s, m_i, dim=1, clear=False)
                for h_i in T.Parallel(H_per_block):
                    m_i[h_i] = T.max(m_i[h_i], m_i_prev[h_i])
                for h_i in T.Parallel(H_per_block):
                    alpha[h_i] = T.exp2((m_i_prev[h_i] - m_i[h_i]) * sm_scale)
                for h_i, bi_i in T.Parallel(H_per_block, BI):
                    acc_s[h_i, bi_i] = T.exp2(acc_s[h_i, bi_i] * sm_scale - m_i[h_i] * sm_scale)
                T.reduce_sum(acc_s, sumexp_i, dim=1)
                for h_i in T.Parallel(H_per_block):
                    sumexp[h_i] = sumexp[h_i] * alpha[h_i] + sumexp_i[h_i]
                for h_i, d_i in T.Parallel(H_per_block, D):
                    acc_o[h_i, d_i] = acc_o[h_i, d_i] * alpha[h_i]
                T.copy(acc_s, S_shared)
                T.gemm(S_shared, KV_shared, acc_o, policy=T.GemmWarpPolicy.FullRow)
            for h_i, d_i in T.Parallel(H_per_block, D):
                acc_o[h_i, d_i] /= sumexp[h_i]
            for h_i in T.Parallel(H_per_block):
                sumexp[h_i] = T.log2(sumexp[h_i]) + m_i[h_i] * sm_scale
            T.copy(acc_o, Output[b_i, s_i, H0:H1, :])
            T.copy(sumexp, Lse[b_i, s_i, H0:H1])

    return main


def test_sparse_mla():
    B, S, H, D, Dt, topk = 1, 40, 16, 64, 16, 32
    q = torch.randn(B, S, H, D + Dt, device="cuda", dtype=torch.bfloat16)
    kv = torch.randn(B, S, 1, D + Dt, device="cuda", dtype=torch.bfloat16)
    idx = torch.full((B, S, 1, topk), S, dtype=torch.int32, device="cuda")
    for t in range(S):
        i_i = torch.randperm(max(1, t + 1))[:topk]
        idx[0, t, 0, : len(i_i)] = i_i
    o, lse = sparse_mla_fwd(H, D, Dt, topk)(q, kv, idx)
    keep = torch.zeros(B, S, S + 1, dtype=torch.bool).scatter(2, idx[:, :, 0].long().cpu(), True)[..., :S].cuda()
    keep &= torch.ones(S, S, dtype=torch.bool, device="cuda").tril()
    s = torch.einsum("bmhd,bnd->bhmn", q.float(), kv[:, :, 0].float()) / (D + Dt) ** 0.5
    s = s.masked_fill(~keep[:, None], -torch.inf)
    ref = torch.einsum("bhmn,bnd->bmhd", s.softmax(-1), kv[:, :, 0, :D].float())
    torch.testing.assert_close(o.float(), ref, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(lse.permute(0, 2, 1) / 1.44269504, s.logsumexp(-1), rtol=2e-2, atol=2e-2)


@tilelang.jit(pass_configs={"tl.enable_fast_math": True})
def mqa_attn_return_logits(heads, index_dim, block_N=64, num_stages=1, threads=128, block_Q=None):
    if block_Q is None:
        block_Q = 64 // heads
    dtype, accum, idt = T.float8_e4m3fn, T.float32, T.int32
    seq_len, seq_len_kv = T.dynamic("seq_len"), T.dynamic("seq_len_kv")

    @T.prim_func
    def k(
        IndexQ: T.Tensor([seq_len * heads, index_dim], dtype),
        IndexK: T.Tensor([seq_len_kv, index_dim], dtype),
        IndexKScale: T.Tensor([seq_len_kv], accum),
        Logits: T.Tensor([seq_len, seq_len_kv], accum),
        Weights: T.Tensor([seq_len, heads], accum),
        CuS: T.Tensor([seq_len], idt),
        CuE: T.Tensor([seq_len], idt),
    ):
        with T.Kernel(T.ceildiv(seq_len, block_Q), threads=threads) as bx:
            q_s = T.alloc_shared([block_Q * heads, index_dim], dtype)
            k_s = T.alloc_shared([block_N, index_dim], dtype)
            scale = T.alloc_fragment([block_N], accum)
            s = T.alloc_fragment([block_N, block_Q * heads], accum)
            s_r = T.reshape(s, (block_N, block_Q, heads))
            logits = T.alloc_fragment([block_N, block_Q], accum)
            w = T.alloc_fragment([block_Q, heads], accum)
            seq_len_i = bx * block_Q
            cu_s_min = T.alloc_var(idt)
            cu_e_max = T.alloc_var(idt)
            cu_s_min = 2147483647
            cu_e_max = -2147483648
            for bq_i in T.serial(block_Q):
                cu_s_min = T.min(cu_s_min, T.min(CuS[seq_len_i + bq_i], seq_len_kv))
            for bq_i in T.serial(block_Q):
                cu_e_max = T.max(cu_e_max, T.min(CuE[seq_len_i + bq_i], seq_len_kv))
            T.copy(IndexQ[seq_len_i * heads, 0], q_s)
            T.copy(Weights[seq_len_i, 0], w)
            for nbn_i in T.Pipelined(T.ceildiv(cu_e_max - cu_s_min, block_N), num_stages=num_stages):
                T.copy(IndexK[cu_s_min + nbn_i * block_N, 0], k_s)
                T.copy(IndexKScale[cu_s_min + nbn_i * block_N], scale)
                T.gemm(k_s, q_s, s, transpose_B=True, clear_accum=True, policy=T.GemmWarpPolicy.FullCol)
                for bn_i, bq_i, h_i in T.Parallel(block_N, block_Q, heads):
                    s_r[bn_i, bq_i, h_i] = T.max(s_r[bn_i, bq_i, h_i], 0) * w[bq_i, h_i] * scale[bn_i]
                T.reduce_sum(s_r, logits, dim=-1, clear=True)
                for bq_i, bn_i in T.Parallel(block_Q, block_N):
                    Logits[seq_len_i + bq_i, cu_s_min + nbn_i * block_N + bn_i] = logits[bn_i, bq_i]

    return k


@tilelang.jit
def clean_logits_(threads: int = 512, block_K: int = 256):
    seq_len, seq_len_kv = T.dynamic("seq_len, seq_len_kv")

    @T.prim_func
    def k(
        Logits: T.Tensor([seq_len, seq_len_kv], "float"),
        S: T.Tensor([seq_len], "int32"),
        E: T.Tensor([seq_len], "int32"),
    ):
        with T.Kernel(seq_len, threads=threads) as bx:
            tx = T.thread_binding(0, threads, thread="threadIdx.x")
            cu_k_s = S[bx]
            cu_k_e = E[bx]
            for n_i in T.Pipelined(T.ceildiv(seq_len_kv, block_K)):
                for k_i in T.serial(block_K // threads if block_K >= threads else 1):
                    idx = n_i * block_K + k_i * threads + tx
                    if (idx < cu_k_s or idx >= cu_k_e) and tx < block_K:
                        Logits[bx, idx] = -T.infinity("float")

    return k


def test_indexer():
    S, N, H, D = 33, 150, 16, 64
    q = torch.randn(S * H, D, device="cuda").to(torch.float8_e4m3fn)
    k = torch.randn(N, D, device="cuda").to(torch.float8_e4m3fn)
    sc = torch.rand(N, device="cuda")
    w = torch.randn(S, H, device="cuda")
    e = (torch.arange(S, device="cuda") * 4 + 3).clamp(max=N).int()
    s = (e - 40).clamp(min=0).int()
    L = torch.empty(S, N, device="cuda")
    mqa_attn_return_logits(H, D)(q, k, sc, L, w, s, e)
    clean_logits_()(L, s, e)
    ref = (torch.einsum("shd,nd->shn", q.float().view(S, H, D), k.float()).relu() * w[..., None]).sum(1) * sc
    j = torch.arange(N, device="cuda")
    ref = ref.masked_fill((j < s[:, None]) | (j >= e[:, None]), -torch.inf)
    torch.testing.assert_close(L, ref, rtol=1e-4, atol=1e-3)


@tilelang.jit(out_idx=[6], pass_configs={tilelang.PassConfigKey.TL_ENABLE_FAST_MATH: True})
def flashattn_varlen(
    batch_size, groups, UQ, UKV, heads, dim, is_causal, block_M=32, block_N=32, num_stages=0, threads=128
):
    scale = (1.0 / dim) ** 0.5 * 1.44269504
    head_kv = heads // groups
    dtype, accum_dtype = T.float16, T.float32

    @T.prim_func
    def main(
        Q_unpad: T.Tensor([UQ, heads, dim], dtype),
        K_unpad: T.Tensor([UKV, head_kv, dim], dtype),
        V_unpad: T.Tensor([UKV, head_kv, dim], dtype),
        cu_seqlens_q: T.Tensor([batch_size + 1], T.int32),
        cu_seqlens_k: T.Tensor([batch_size + 1], T.int32),
        max_seqlen_q: T.int32,
        Output_unpad: T.Tensor([UQ, heads, dim], dtype),
    ):
        with T.Kernel(T.ceildiv(max_seqlen_q, block_M), heads, batch_size, threads=threads) as (bx, by, bz):
            Qs = T.alloc_shared([block_M, dim], dtype)
            Ks = T.alloc_shared([block_N, dim], dtype)
            Vs = T.alloc_shared([block_N, dim], dtype)
            Os = T.alloc_shared([block_M, dim], dtype)
            acc_s = T.alloc_fragment([block_M, block_N], accum_dtype)
            acc_c = T.alloc_fragment([block_M, block_N], dtype)
            acc_o = T.alloc_fragment([block_M, dim], accum_dtype)
            sm = T.alloc_fragment([block_M], accum_dtype)
            smp = T.alloc_fragment([block_M], accum_dtype)
            ss = T.alloc_fragment([block_M], accum_dtype)
            su = T.alloc_fragment([block_M], accum_dtype)
            ls = T.alloc_fragment([block_M], accum_dtype)
            q0 = cu_seqlens_q[bz]
            k0 = cu_seqlens_k[bz]
            q_len = cu_seqlens_q[bz + 1] - q0
            k_len = cu_seqlens_k[bz + 1] - k0
            kv_head = by // groups
            T.copy(Q_unpad[q0 + bx * block_M : q0 + (bx + 1) * block_M, by, :], Qs)
            T.fill(acc_o, 0)
            T.fill(ls, 0)
            T.fill(sm, -T.infinity(accum_dtype))
            offset = k_len - q_len
            max_k = offset + (bx + 1) * block_M
            loop_range = (
                T.min(T.ceildiv(max_k, block_N), T.ceildiv(k_len, block_N)) if is_causal else T.ceildiv(k_len, block_N)
            )
            for k in T.Pipelined(loop_range, num_stages=num_stages):
                T.copy(K_unpad[k0 + k * block_N : k0 + (k + 1) * block_N, kv_head, :], Ks)
                if is_causal:
                    for i, j in T.Parallel(block_M, block_N):
                        acc_s[i, j] = T.if_then_else(
                            (bx * block_M + i + offset < k * block_N + j)
                            or (bx * block_M + i >= q_len or k * block_N + j >= k_len),
                            -1e9,
                            0,
                        )
                else:
                    for i, j in T.Parallel(block_M, block_N):
                        acc_s[i, j] = T.if_then_else((bx * block_M + i >= q_len or k * block_N + j >= k_len), -1e9, 0)
                T.gemm(Qs, Ks, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(sm, smp)
                T.reduce_max(acc_s, sm, dim=1, clear=False)
                for i in T.Parallel(block_M):
                    sm[i] = T.max(sm[i], smp[i])
                for i in T.Parallel(block_M):
                    ss[i] = T.exp2(smp[i] * scale - sm[i] * scale)
                for i, j in T.Parallel(block_M, block_N):
                    acc_s[i, j] = T.exp2(acc_s[i, j] * scale - sm[i] * scale)
                T.reduce_sum(acc_s, su, dim=1)
                for i in T.Parallel(block_M):
                    ls[i] = ls[i] * ss[i] + su[i]
                T.copy(acc_s, acc_c)
                for i, j in T.Parallel(block_M, dim):
                    acc_o[i, j] *= ss[i]
                T.copy(V_unpad[k0 + k * block_N : k0 + (k + 1) * block_N, kv_head, :], Vs)
                T.gemm(acc_c, Vs, acc_o, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(block_M, dim):
                acc_o[i, j] = 0 if is_causal and bx * block_M + i + offset < 0 else acc_o[i, j] / ls[i]
            T.copy(acc_o, Os)
            for i, d in T.Parallel(block_M, dim):
                if bx * block_M + i < q_len:
                    Output_unpad[q0 + bx * block_M + i, by, d] = Os[i, d]

    return main


@pytest.mark.parametrize("causal", [True, False])
def test_varlen(causal):
    lq, lk, h, g, d = [20, 45, 7], [33, 45, 40], 4, 2, 32
    q = torch.randn(sum(lq), h, d, device="cuda").half()
    k = torch.randn(sum(lk), h // g, d, device="cuda").half()
    v = torch.randn_like(k)
    cq, ck = (torch.tensor([0, *torch.tensor(l).cumsum(0)], dtype=torch.int32, device="cuda") for l in (lq, lk))
    o = flashattn_varlen(3, g, sum(lq), sum(lk), h, d, causal)(q, k, v, cq, ck, max(lq))
    for b in range(3):
        qq, kk, vv = (
            q[cq[b] : cq[b + 1]].float(),
            k[ck[b] : ck[b + 1]].float().repeat_interleave(g, 1),
            v[ck[b] : ck[b + 1]].float().repeat_interleave(g, 1),
        )
        s = torch.einsum("qhd,khd->hqk", qq, kk) / d**0.5
        if causal:
            s = s.masked_fill(
                ~torch.ones(lq[b], lk[b], dtype=torch.bool, device="cuda").tril(lk[b] - lq[b]), -torch.inf
            )
        torch.testing.assert_close(
            o[cq[b] : cq[b + 1]].float(), torch.einsum("hqk,khd->qhd", s.softmax(-1), vv), rtol=1e-2, atol=1e-2
        )


@tilelang.jit(out_idx=[1])
def dropout(M, N, p: float, seed: int):
    @T.prim_func
    def main(X: T.Tensor((M, N), "float16"), Y: T.Tensor((M, N), "float16")):
        with T.Kernel(M, threads=128) as bx:
            T.rng_init(seed)
            for j in T.Parallel(N):
                Y[bx, j] = T.if_then_else(T.rng_rand_float() > p, X[bx, j] / (1 - p), 0)

    return main


def test_dropout():
    x = torch.ones(16, 512, device="cuda").half()
    y = dropout(16, 512, 0.25, 11)(x)
    assert 0.2 < (y == 0).float().mean() < 0.3 and set(y.unique().tolist()) == {
        0.0,
        torch.tensor(1 / 0.75).half().item(),
    }
    assert torch.equal(y, dropout(16, 512, 0.25, 11)(x)) and not torch.equal(y, dropout(16, 512, 0.25, 12)(x))


@tilelang.jit(out_idx=[1])
def pack_e5m6(n):
    """8 values of 12 bits in 3 words"""

    @T.prim_func
    def main(X: T.Tensor((n, 8), "float32"), W: T.Tensor((n, 3), "uint32")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
            i = b * 32 + T.get_thread_binding()
            c = T.alloc_local((8,), "uint16")
            w = T.alloc_local((3,), "uint32")
            if i < n:
                for k in T.unroll(8):
                    h = T.reinterpret(T.cast(X[i, k], "float16"), "uint16")
                    c[k] = (h + 7 + ((h >> 4) & 1)) >> 4
                w[0] = c[0] | (c[1] << 12) | (c[2] << 24)
                w[1] = (c[2] >> 8) | (c[3] << 4) | (c[4] << 16) | (c[5] << 28)
                w[2] = (c[5] >> 4) | (c[6] << 8) | (c[7] << 20)
                for k in T.vectorized(3):
                    W[i, k] = w[k]

    return main


def test_e5m6():
    x = torch.randn(40, 8, device="cuda")
    w = pack_e5m6(40)(x)
    h = x.half().view(torch.int16).long() & 0xFFFF
    c = ((h + 7 + (h >> 4 & 1)) & 0xFFFF) >> 4
    w0 = (c[:, 0] | c[:, 1] << 12 | c[:, 2] << 24) & 0xFFFFFFFF
    w1 = (c[:, 2] >> 8 | c[:, 3] << 4 | c[:, 4] << 16 | c[:, 5] << 28) & 0xFFFFFFFF
    w2 = (c[:, 5] >> 4 | c[:, 6] << 8 | c[:, 7] << 20) & 0xFFFFFFFF
    assert w.tolist() == torch.stack([w0, w1, w2], 1).tolist()


@tilelang.jit
def layernorm_eager(X, G, B, eps: float = 1e-5, BM: int = 4):
    M, N = T.const("M, N")
    X: T.Tensor[(M, N), T.float16]
    G: T.Tensor[(N,), T.float32]
    B: T.Tensor[(N,), T.float32]
    Y = T.empty((M, N), T.float16)
    Mean = T.empty((M,), T.float32)
    with T.Kernel(T.ceildiv(M, BM), threads=128) as bx:
        x = T.alloc_fragment((BM, N), T.float32)
        s = T.alloc_fragment((BM,), T.float32)
        v = T.alloc_fragment((BM,), T.float32)
        d = T.alloc_fragment((BM, N), T.float32)
        T.copy(X[bx * BM, 0], x)
        T.reduce_sum(x, s, dim=1)
        for i, j in T.Parallel(BM, N):
            d[i, j] = (x[i, j] - s[i] / N) * (x[i, j] - s[i] / N)
        T.reduce_sum(d, v, dim=1)
        for i, j in T.Parallel(BM, N):
            x[i, j] = (x[i, j] - s[i] / N) * T.rsqrt(v[i] / N + eps) * G[j] + B[j]
        T.copy(x, Y[bx * BM, 0])
        for i in T.Parallel(BM):
            Mean[bx * BM + i] = s[i] / N
    return Y, Mean


def test_layernorm():
    x = torch.randn(10, 96, device="cuda").half()
    g, b = torch.randn(96, device="cuda"), torch.randn(96, device="cuda")
    y, m = layernorm_eager(x, g, b)
    torch.testing.assert_close(y.float(), F.layer_norm(x.float(), (96,), g, b), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(m, x.float().mean(1), rtol=1e-5, atol=1e-5)


if __name__ == "__main__":
    tilelang.testing.main()
