"""Attention over chosen keys: selected blocks, gathered tokens, block masks, vertical and slash patterns."""

import math

import numpy as np
from programs.registry import BF16, F16, F32, normal, program, wide

import tiledsl
import tiledsl.language as T


def soft(scores):
    """Softmax of the last axis in double precision; rows that see nothing give 0."""
    top = scores.max(axis=-1, keepdims=True)
    p = np.exp(scores - np.where(np.isfinite(top), top, 0.0))
    total = p.sum(axis=-1, keepdims=True)
    return np.divide(p, total, out=np.zeros_like(p), where=total > 0)


def next_power(n):
    return 1 << (n - 1).bit_length()


@tiledsl.jit(
    out_idx=[-1],
    pass_configs={tiledsl.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True}
    if hasattr(tiledsl, "PassConfigKey")
    else None,
)
def _selected_blocks(batch, heads, seq_len, dim, is_causal, scale=None, block_size=16, groups=1, selected_blocks=4):
    if scale is None:
        scale = (1.0 / dim) ** 0.5 * 1.44269504
    else:
        scale = scale * 1.44269504
    head_kv = heads // groups
    q_shape = [batch, seq_len, heads, dim]
    kv_shape = [batch, seq_len, head_kv, dim]
    index_shape = [batch, seq_len, head_kv, selected_blocks]
    dtype, accum_dtype, index_dtype = T.float16, T.float32, T.int32
    BS = block_size
    BV = min(16, next_power(dim))
    NV = (dim + BV - 1) // BV
    assert NV >= 1
    G = groups

    @T.prim_func
    def main(
        Q: T.Tensor(q_shape, dtype),
        K: T.Tensor(kv_shape, dtype),
        V: T.Tensor(kv_shape, dtype),
        Indices: T.Tensor(index_shape, index_dtype),
        Counts: T.Tensor([batch, seq_len, head_kv], index_dtype),
        Output: T.Tensor(q_shape, dtype),
    ):
        with T.Kernel(seq_len, NV, batch * head_kv, threads=32) as (bx, by, bz):
            q_s = T.alloc_shared([G, dim], dtype)
            k_s = T.alloc_shared([BS, dim], dtype)
            v_s = T.alloc_shared([BS, BV], dtype)
            o_s = T.alloc_shared([G, BV], dtype)
            s = T.alloc_fragment([G, BS], accum_dtype)
            s_cast = T.alloc_fragment([G, BS], dtype)
            o = T.alloc_fragment([G, BV], accum_dtype)
            m = T.alloc_fragment([G], accum_dtype)
            m_old = T.alloc_fragment([G], accum_dtype)
            alpha = T.alloc_fragment([G], accum_dtype)
            part = T.alloc_fragment([G], accum_dtype)
            logsum = T.alloc_fragment([G], accum_dtype)

            i_t, i_v, i_bh = bx, by, bz
            i_b, i_h = i_bh // head_kv, i_bh % head_kv
            NS = Counts[i_b, i_t, i_h]
            T.copy(Q[i_b, i_t, i_h * G : (i_h + 1) * G, :], q_s)
            T.fill(o, 0)
            T.fill(logsum, 0)
            T.fill(m, -T.infinity(accum_dtype))
            for i in T.Pipelined(NS, num_stages=2):
                i_s = Indices[i_b, i_t, i_h, i] * BS
                if i_s <= i_t and i_s >= 0:
                    T.copy(K[i_b, i_s : i_s + BS, i_h, :], k_s)
                    if is_causal:
                        for a, b in T.Parallel(G, BS):
                            s[a, b] = T.if_then_else(i_t >= (i_s + b), 0, -T.infinity(s.dtype))
                    else:
                        T.clear(s)
                    T.gemm(q_s, k_s, s, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                    T.copy(m, m_old)
                    T.fill(m, -T.infinity(accum_dtype))
                    T.reduce_max(s, m, dim=1, clear=True)
                    for a in T.Parallel(G):
                        m[a] = T.max(m[a], m_old[a])
                        alpha[a] = T.exp2(m_old[a] * scale - m[a] * scale)
                    for a, b in T.Parallel(G, BS):
                        s[a, b] = T.exp2(s[a, b] * scale - m[a] * scale)
                    T.reduce_sum(s, part, dim=1)
                    for a in T.Parallel(G):
                        logsum[a] = logsum[a] * alpha[a] + part[a]
                    T.copy(s, s_cast)
                    for a, b in T.Parallel(G, BV):
                        o[a, b] *= alpha[a]
                    T.copy(V[i_b, i_s : i_s + BS, i_h, i_v * BV : (i_v + 1) * BV], v_s)
                    T.gemm(s_cast, v_s, o, policy=T.GemmWarpPolicy.FullRow)
            for a, b in T.Parallel(G, BV):
                o[a, b] /= logsum[a]
            T.copy(o, o_s)
            T.copy(o_s, Output[i_b, i_t, i_h * G : (i_h + 1) * G, i_v * BV : (i_v + 1) * BV])

    return main


@program(F16)
def selected_blocks_forward(rng):
    """Each query names blocks of keys; names beyond its own position and beyond its count are passed over."""
    B, H, G, L, D, BS, S = 1, 4, 2, 14, 24, 4, 3
    q = normal(rng, B, L, H, D, dtype=np.float16)
    k, v = (normal(rng, B, L, H // G, D, dtype=np.float16) for _ in range(2))
    index = np.stack([rng.permutation(4)[:S] for _ in range(L * H // G)]).reshape(B, L, H // G, S).astype(np.int32)
    index[..., 0] = 0
    for place in np.ndindex(index.shape[:3]):
        if (index[place] == 0).sum() > 1:
            index[place][1:][index[place][1:] == 0] = 4 + 1
    counts = rng.integers(1, S + 1, (B, L, H // G)).astype(np.int32)
    got = _selected_blocks(B, H, L, D, True, block_size=BS, groups=G, selected_blocks=S)(q, k, v, index, counts)
    want = np.zeros(q.shape)
    for b, t, h in np.ndindex(B, L, H):
        chosen = index[b, t, h // G, : counts[b, t, h // G]]
        seen = np.isin(np.arange(L) // BS, chosen) & (np.arange(L) <= t)
        score = np.where(seen, wide(k)[b, :, h // G] @ wide(q)[b, t, h] / math.sqrt(D), -np.inf)
        want[b, t, h] = soft(score) @ wide(v)[b, :, h // G]
    return [(got, want)]


def _gathered_forward(heads, dim, tail_dim, topk, kv_group=1, sm_scale=None, is_causal=True, block_I=32, num_stages=2):
    assert dim == next_power(dim), f"{dim=}"
    assert topk % block_I == 0, "otherwise some indices would be lost"
    sm_scale = ((1.0 / (dim + tail_dim)) ** 0.5 if sm_scale is None else sm_scale) * 1.44269504
    batch, seq_len, seq_len_kv = T.dynamic("batch, seq_len, seq_len_kv")
    head_kv = heads // kv_group
    padded_H = max(next_power(head_kv), 16)
    BI, NI, D, D_tail = block_I, T.ceildiv(topk, block_I), dim, tail_dim
    dtype, accum_dtype, indices_dtype = T.bfloat16, T.float32, T.int32
    REPLICATE_H = head_kv // 64 if head_kv > 64 else 1
    H_per_block = padded_H if REPLICATE_H == 1 else 64

    @T.prim_func
    def main(
        Q: T.Tensor([batch, seq_len, heads, dim + tail_dim], dtype),  # type: ignore
        KV: T.Tensor([batch, seq_len_kv, kv_group, dim + tail_dim], dtype),  # type: ignore
        Indices: T.Tensor([batch, seq_len, kv_group, topk], indices_dtype),  # type: ignore
        Output: T.Tensor([batch, seq_len, heads, dim], dtype),  # type: ignore
        Lse: T.Tensor([batch, seq_len, heads], accum_dtype),  # type: ignore
    ):
        with T.Kernel(seq_len * REPLICATE_H, batch, kv_group, threads=256) as (
            bx,
            by,
            bz,
        ):
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
            T.fill(m_i, -(2**30))  # not -inf: -inf - -inf is NaN

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
                T.gemm(Q_shared, KV_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                T.gemm(Q_tail_shared, K_tail_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
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
                T.gemm(S_shared, KV_shared, acc_o, policy=T.GemmWarpPolicy.FullCol)
            for h_i, d_i in T.Parallel(H_per_block, D):
                acc_o[h_i, d_i] /= sumexp[h_i]
            for h_i in T.Parallel(H_per_block):
                sumexp[h_i] = T.log2(sumexp[h_i]) + m_i[h_i] * sm_scale
            T.copy(acc_o, Output[b_i, s_i, H0:H1, :])
            T.copy(sumexp, Lse[b_i, s_i, H0:H1])

    return main


@tiledsl.jit
def _gathered_delta(batch, seq_len, heads, dim, block=16):
    shape = [batch, seq_len, heads, dim]

    @T.prim_func
    def delta_kernel(
        O: T.Tensor(shape, T.bfloat16), dO: T.Tensor(shape, T.bfloat16), Delta: T.Tensor(shape[:-1], T.float32)
    ):
        with T.Kernel(heads, T.ceildiv(seq_len, block), batch) as (bx, by, bz):
            o = T.alloc_fragment([block, block], T.float32)
            do = T.alloc_fragment([block, block], T.float32)
            acc = T.alloc_fragment([block, block], T.float32)
            delta = T.alloc_fragment([block], T.float32)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(dim, block), num_stages=1):
                T.copy(O[bz, by * block : (by + 1) * block, bx, k * block : (k + 1) * block], o)
                T.copy(dO[bz, by * block : (by + 1) * block, bx, k * block : (k + 1) * block], do)
                for i, j in T.Parallel(block, block):
                    acc[i, j] += o[i, j] * do[i, j]
            T.reduce_sum(acc, delta, 1)
            T.copy(delta, Delta[bz, by * block : (by + 1) * block, bx])

    return delta_kernel


@tiledsl.jit(out_idx=[-2])
def _gathered_backward(B, S, S_kv, H, D, D_tail, topk, block_size=16, split=2):
    scale = (D + D_tail) ** (-0.5)
    scale_log2 = scale * 1.44269504
    dtype, accum = T.bfloat16, T.float32
    BS, NS, padded_H = block_size, T.ceildiv(topk, block_size), max(next_power(H), 16)

    @T.prim_func
    def backward(
        Q: T.Tensor([B, S, H, D + D_tail], dtype),
        KV: T.Tensor([B, S_kv, 1, D + D_tail], dtype),
        dO: T.Tensor([B, S, H, D], dtype),
        Indices: T.Tensor([B, S, 1, topk], "int32"),
        Lse: T.Tensor([B, S, H], accum),
        Delta: T.Tensor([B, S, H], accum),
        dQ: T.Tensor([B, S, H, D + D_tail], dtype),
        dKV: T.Tensor([B, S_kv, 1, D + D_tail], accum),
    ):
        with T.Kernel(S, B, 1, threads=128) as (s_i, by, bz):
            Qs = T.alloc_shared([padded_H, D], dtype)
            Qt = T.alloc_shared([padded_H, D_tail], dtype)
            KVs = T.alloc_shared([BS, D], dtype)
            Kt = T.alloc_shared([BS, D_tail], dtype)
            dOs = T.alloc_shared([padded_H, D], dtype)
            mask = T.alloc_fragment([BS], "bool")
            Ps = T.alloc_shared([padded_H, BS], dtype)
            dPs = T.alloc_shared([padded_H, BS], dtype)
            dQs = T.alloc_shared([padded_H, D], dtype)
            dQt = T.alloc_shared([padded_H, D_tail], dtype)
            P = T.alloc_fragment([padded_H, BS], accum)
            dP = T.alloc_fragment([padded_H, BS], accum)
            acc_dq = T.alloc_fragment([padded_H, D], accum)
            acc_dqt = T.alloc_fragment([padded_H, D_tail], accum)
            acc_dkv = T.alloc_fragment([BS, D], accum)
            acc_dkt = T.alloc_fragment([BS, D_tail], accum)
            dkv_s = T.view(KVs, shape=[BS // split, D], dtype=accum)
            dkt_s = T.view(Kt, shape=[BS // split, D_tail], dtype=accum)

            T.copy(Q[by, s_i, bz * padded_H : (bz + 1) * padded_H, :D], Qs)
            T.copy(Q[by, s_i, bz * padded_H : (bz + 1) * padded_H, D:], Qt)
            T.copy(dO[by, s_i, bz * padded_H : (bz + 1) * padded_H, :D], dOs)
            T.clear(acc_dq)
            T.clear(acc_dqt)
            T.annotate_layout({dQs: T.Layout(dQs.shape, lambda i, j: [i, j])})
            for i_i in T.Pipelined(NS, num_stages=0):
                for b in T.Parallel(BS):
                    mask[b] = Indices[by, s_i, bz, i_i * BS + b] != -1
                for h, b in T.Parallel(padded_H, BS):
                    P[h, b] = T.if_then_else(mask[b], 0, -T.infinity(P.dtype))
                for b, d in T.Parallel(BS, D):
                    KVs[b, d] = KV[by, Indices[by, s_i, bz, i_i * BS + b], bz, d]
                T.gemm(Qs, KVs, P, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                for b, d in T.Parallel(BS, D_tail):
                    Kt[b, d] = KV[by, Indices[by, s_i, bz, i_i * BS + b], bz, D + d]
                T.gemm(Qt, Kt, P, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                for h, b in T.Parallel(padded_H, BS):
                    P[h, b] = T.exp2(P[h, b] * scale_log2 - Lse[by, s_i, bz * padded_H + h])
                T.copy(P, Ps)
                T.gemm(dOs, KVs, dP, transpose_B=True, policy=T.GemmWarpPolicy.FullCol, clear_accum=True)
                for h, b in T.Parallel(padded_H, BS):
                    dP[h, b] = P[h, b] * (dP[h, b] - Delta[by, s_i, bz * padded_H + h]) * scale
                T.copy(dP, dPs)
                T.gemm(dPs, KVs, acc_dq, policy=T.GemmWarpPolicy.FullCol)
                T.gemm(dPs, Kt, acc_dqt, policy=T.GemmWarpPolicy.FullCol)
                T.gemm(dPs, Qs, acc_dkv, transpose_A=True, policy=T.GemmWarpPolicy.FullCol, clear_accum=True)
                T.gemm(Ps, dOs, acc_dkv, transpose_A=True, policy=T.GemmWarpPolicy.FullCol)
                T.clear(acc_dkt)
                T.gemm(dPs, Qt, acc_dkt, transpose_A=True, policy=T.GemmWarpPolicy.FullCol)
                for s in range(split):
                    for b, d in T.Parallel(BS, D):
                        if b < BS // split:
                            dkv_s[b, d] = acc_dkv[b + s * (BS // split), d]
                    for b, d in T.Parallel(BS, D_tail):
                        if b < BS // split:
                            dkt_s[b, d] = acc_dkt[b + s * (BS // split), d]
                    for b, d in T.Parallel(BS // split, D // 4):
                        T.atomic_addx4(
                            dKV[by, Indices[by, s_i, bz, i_i * BS + b + s * (BS // split)], bz, d * 4],
                            dkv_s[b, d * 4],
                        )
                    for b, d in T.Parallel(BS // split, D_tail // 4):
                        T.atomic_addx4(
                            dKV[by, Indices[by, s_i, bz, i_i * BS + b + s * (BS // split)], bz, D + d * 4],
                            dkt_s[b, d * 4],
                        )
            T.copy(acc_dq, dQs)
            T.copy(acc_dqt, dQt)
            T.copy(dQs, dQ[by, s_i, bz * padded_H : (bz + 1) * padded_H, :D])
            T.copy(dQt, dQ[by, s_i, bz * padded_H : (bz + 1) * padded_H, D:])

    return backward


@program(BF16, ordered=False)
def gathered_tokens_forward_and_backward(rng):
    """Latent attention over tokens named by indices (-1: none); dKV by atomics on four elements at once."""
    B, S, S_kv, H, D, R, K = 1, 4, 40, 16, 16, 8, 32
    kv = normal(rng, B, S_kv, 1, D + R, dtype=T.dtype("bfloat16").numpy)
    q = normal(rng, B, S, H, D + R, dtype=kv.dtype)
    do = normal(rng, B, S, H, D, dtype=kv.dtype)
    index = np.stack([rng.permutation(S_kv)[:K] for _ in range(B * S)]).reshape(B, S, 1, K).astype(np.int32)
    forward = tiledsl.jit(_gathered_forward, out_idx=[-2, -1])(H, D, R, K, block_I=16)
    # The forward kernel hides what lies beyond its own position.
    o, lse = forward(q, kv, index)
    Q, KV, DO = wide(q, kv, do)
    want_o = np.zeros(o.shape)
    for b, s in np.ndindex(B, S):
        rows = KV[b, index[b, s, 0], 0]
        score = np.where(index[b, s, 0] <= s, Q[b, s] @ rows.T / math.sqrt(D + R), -np.inf)
        want_o[b, s] = soft(score) @ rows[:, :D]
    some = (index <= np.arange(S)[None, :, None, None]).any((-1, -2))
    pairs = [(np.asarray(o)[some], want_o[some])]
    # Backward, with absent tokens.
    index[0, 2, 0, 20:] = -1
    dq_want, dkv_want = np.zeros(q.shape), np.zeros(kv.shape)
    lse, delta_in = np.zeros((B, S, H), np.float32), np.zeros((B, S, H, D), kv.dtype)
    for b, s in np.ndindex(B, S):
        found = index[b, s, 0] >= 0
        names = index[b, s, 0][found]
        rows = KV[b, names, 0]
        score = Q[b, s] @ rows.T / math.sqrt(D + R)
        p = soft(score)
        lse[b, s] = (np.log(np.exp(score).sum(-1))) * math.log2(math.e)
        delta_in[b, s] = p @ rows[:, :D]
        dp = DO[b, s] @ rows[:, :D].T
        ds = p * (dp - (p * dp).sum(-1, keepdims=True)) / math.sqrt(D + R)
        dq_want[b, s] = ds @ rows
        np.add.at(dkv_want[b, :, 0], names, ds.T @ Q[b, s])
        np.add.at(dkv_want[b, :, 0, :D], names, p.T @ DO[b, s])
    delta = np.zeros((B, S, H), np.float32)
    _gathered_delta(B, S, H, D)(delta_in, do, delta)
    dkv = np.zeros(kv.shape, np.float32)
    dq = _gathered_backward(B, S, S_kv, H, D, R, K)(q, kv, do, index, lse, delta, dkv)
    return [*pairs, (delta, (wide(delta_in) * DO).sum(-1)), (dq, dq_want), (dkv, dkv_want)]


@program(F32)
def indexer_with_packed_rows(rng):
    """Scores of an fp8 index head over ranges of keys per query; what lies outside is cleaned to -inf after."""
    L, LK, H, D, BQ, BN = 21, 67, 4, 32, 4, 32
    fp8 = T.dtype("float8_e4m3fn").numpy

    @tiledsl.jit
    def logits(heads, index_dim, block_N=BN, block_Q=BQ, num_stages=3, threads=128):
        dtype, accum = T.float8_e4m3fn, T.float32
        seq_len = T.dynamic("seq_len")
        seq_len_kv = T.dynamic("seq_len_kv")

        @T.prim_func
        def kernel(
            IndexQ: T.Tensor([seq_len * heads, index_dim], dtype),
            IndexK: T.Tensor([seq_len_kv, index_dim], dtype),
            IndexKScale: T.Tensor([seq_len_kv], accum),
            Logits: T.Tensor([seq_len, seq_len_kv], accum),
            Weights: T.Tensor([seq_len, heads], accum),
            CuKS: T.Tensor([seq_len], T.int32),
            CuKE: T.Tensor([seq_len], T.int32),
        ):
            with T.Kernel(T.ceildiv(seq_len, block_Q), threads=threads) as bx:
                q_s = T.alloc_shared([block_Q * heads, index_dim], dtype)
                k_s = T.alloc_shared([block_N, index_dim], dtype)
                scale = T.alloc_fragment([block_N], accum)
                s = T.alloc_fragment([block_N, block_Q * heads], accum)
                s3 = T.reshape(s, (block_N, block_Q, heads))
                out = T.alloc_fragment([block_N, block_Q], accum)
                weights = T.alloc_fragment([block_Q, heads], accum)
                seq_len_i = bx * block_Q
                k_min = T.alloc_var(T.int32)
                k_max = T.alloc_var(T.int32)
                k_min = 2147483647
                k_max = -2147483648
                for bq_i in T.serial(block_Q):
                    k_min = T.min(k_min, T.min(CuKS[T.min(seq_len_i + bq_i, seq_len - 1)], seq_len_kv))
                for bq_i in T.serial(block_Q):
                    k_max = T.max(k_max, T.min(CuKE[T.min(seq_len_i + bq_i, seq_len - 1)], seq_len_kv))
                T.copy(IndexQ[seq_len_i * heads, 0], q_s)
                T.copy(Weights[seq_len_i, 0], weights)
                for nbn_i in T.Pipelined(T.ceildiv(k_max - k_min, block_N), num_stages=num_stages):
                    T.copy(IndexK[k_min + nbn_i * block_N, 0], k_s)
                    T.copy(IndexKScale[k_min + nbn_i * block_N], scale)
                    T.gemm(k_s, q_s, s, transpose_B=True, clear_accum=True, policy=T.GemmWarpPolicy.FullCol)
                    for bn_i, bq_i, h_i in T.Parallel(block_N, block_Q, heads):
                        s3[bn_i, bq_i, h_i] = (T.max(s3[bn_i, bq_i, h_i], 0) * weights[bq_i, h_i]) * scale[bn_i]
                    T.reduce_sum(s3, out, dim=-1, clear=True)
                    for bq_i, bn_i in T.Parallel(block_Q, block_N):
                        Logits[seq_len_i + bq_i, k_min + nbn_i * block_N + bn_i] = out[bn_i, bq_i]

        return kernel

    @tiledsl.jit
    def clean(threads=64, block_K=48):
        seq_len, seq_len_kv = T.symbolic("seq_len"), T.symbolic("seq_len_kv")

        @T.prim_func
        def clean_kernel(
            Logits: T.Tensor([seq_len, seq_len_kv], "float32"),  # type: ignore
            CuKS: T.Tensor([seq_len], "int32"),  # type: ignore
            CuKE: T.Tensor([seq_len], "int32"),  # type: ignore
        ):
            with T.Kernel(seq_len, threads=threads) as bx:
                tx = T.thread_binding(0, threads, thread="threadIdx.x")
                cu_k_s = CuKS[bx]
                cu_k_e = CuKE[bx]
                for n_i in T.Pipelined(T.ceildiv(seq_len_kv, block_K)):
                    for k_i in T.serial(block_K // threads + 1):
                        idx = n_i * block_K + k_i * threads + tx
                        if (k_i * threads + tx < block_K) and (idx < cu_k_s or idx >= cu_k_e):
                            Logits[bx, idx] = -T.infinity("float32")

        return clean_kernel

    q, k = normal(rng, L * H, D).astype(fp8), normal(rng, LK, D).astype(fp8)
    scale, weights = rng.random(LK).astype(np.float32) + 0.5, normal(rng, L, H)
    start = (np.arange(L) // 7 * 10).astype(np.int32)
    end = np.minimum(start + 20 + np.arange(L), LK).astype(np.int32)
    out = np.zeros((L, LK), np.float32)
    logits(H, D)(q, k, scale, out, weights, start, end)
    clean()(out, start, end)
    s = np.einsum("qhd,kd->qkh", wide(q).reshape(L, H, D), wide(k))
    want = (np.maximum(s, 0) * wide(weights)[:, None]).sum(-1) * wide(scale)
    cols = np.arange(LK)
    return [(out, np.where((cols >= start[:, None]) & (cols < end[:, None]), want, -np.inf))]
