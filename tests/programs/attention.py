"""Attention in its forms: forward and backward, packed sequences, decoding, sparse blocks, latent keys."""

import math

import numpy as np
from programs.registry import BF16, F16, F32, normal, program, wide

import tiledsl
import tiledsl.language as T

LOG2E = math.log2(math.e)


def softmax_attention(q, k, v, mask=None, sink=None, scale=None):
    """(output, natural logarithm of the sums) in double precision; [heads, rows, dim], heads of k repeated."""
    q, k, v = wide(q, k, v)
    k, v = (np.repeat(x, len(q) // len(x), axis=0) for x in (k, v))
    s = np.einsum("hqd,hkd->hqk", q, k) * (scale or 1.0 / math.sqrt(q.shape[-1]))
    if mask is not None:
        s = np.where(mask, s, -np.inf)
    top = s.max(axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0.0)
    p = np.exp(s - top)
    total = p.sum(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (np.log(total) + top)[..., 0]
    if sink is not None:
        total = total + np.exp(wide(sink)[:, None, None] - top)
    with np.errstate(invalid="ignore"):
        p = np.where(total > 0, p / total, 0.0)
    return np.einsum("hqk,hkd->hqd", p, v), lse, p


@tiledsl.jit(out_idx=[3, 4])
def _forward(heads, kv_heads, dim, causal, dtype, block_M=32, block_N=48, window=None, has_sink=False):
    scale = LOG2E / math.sqrt(dim)
    batch, seq_q, seq_k = T.dynamic("batch, seq_q, seq_k")
    acc_t = T.float32

    @T.prim_func
    def main(
        Q: T.Tensor((batch, seq_q, heads, dim), dtype),
        K: T.Tensor((batch, seq_k, kv_heads, dim), dtype),
        V: T.Tensor((batch, seq_k, kv_heads, dim), dtype),
        O: T.Tensor((batch, seq_q, heads, dim), dtype),
        Lse: T.Tensor((batch, heads, seq_q), acc_t),
        Sinks: T.Tensor((heads,), acc_t),
    ):
        with T.Kernel(T.ceildiv(seq_q, block_M), heads, batch, threads=128) as (bx, by, bz):
            Q_s = T.alloc_shared([block_M, dim], dtype)
            K_s = T.alloc_shared([block_N, dim], dtype)
            V_s = T.alloc_shared([block_N, dim], dtype)
            S = T.alloc_fragment([block_M, block_N], acc_t)
            P = T.alloc_fragment([block_M, block_N], dtype)
            acc = T.alloc_fragment([block_M, dim], acc_t)
            m = T.alloc_fragment([block_M], acc_t)
            m_prev = T.alloc_fragment([block_M], acc_t)
            rescale = T.alloc_fragment([block_M], acc_t)
            row_sum = T.alloc_fragment([block_M], acc_t)
            logsum = T.alloc_fragment([block_M], acc_t)
            T.annotate_layout({Q_s: T.Layout(Q_s.shape, lambda i, j: (i, j))})

            kv_head = by // (heads // kv_heads)
            past = seq_k - seq_q
            T.copy(Q[bz, bx * block_M : (bx + 1) * block_M, by, :], Q_s)
            T.fill(acc, 0)
            T.fill(logsum, 0)
            T.fill(m, -T.infinity(acc_t))
            last = T.ceildiv(seq_k, block_N)
            if causal:
                last = T.min(last, T.ceildiv((bx + 1) * block_M + past, block_N))
            first = T.max(0, (bx * block_M + past - window) // block_N) if window is not None else 0
            for k in T.Pipelined(first, last, num_stages=2):
                T.copy(K[bz, k * block_N : (k + 1) * block_N, kv_head, :], K_s)
                for i, j in T.Parallel(block_M, block_N):
                    q_pos = bx * block_M + i + past
                    k_pos = k * block_N + j
                    if window is not None:
                        seen = k_pos < seq_k and 0 <= q_pos - k_pos <= window
                    elif causal:
                        seen = k_pos < seq_k and q_pos >= k_pos
                    else:
                        seen = k_pos < seq_k
                    S[i, j] = T.if_then_else(seen, 0, -T.infinity(acc_t))
                T.gemm(Q_s, K_s, S, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(V[bz, k * block_N : (k + 1) * block_N, kv_head, :], V_s)
                T.copy(m, m_prev)
                T.reduce_max(S, m, dim=1, clear=False)
                for i in T.Parallel(block_M):
                    m[i] = T.max(m[i], T.float32(-1e30))
                    rescale[i] = T.exp2(m_prev[i] * scale - m[i] * scale)
                for i, j in T.Parallel(block_M, block_N):
                    S[i, j] = T.exp2(S[i, j] * scale - m[i] * scale)
                T.reduce_sum(S, row_sum, dim=1)
                for i in T.Parallel(block_M):
                    logsum[i] = logsum[i] * rescale[i] + row_sum[i]
                T.copy(S, P)
                for i, j in T.Parallel(block_M, dim):
                    acc[i, j] *= rescale[i]
                T.gemm(P, V_s, acc, policy=T.GemmWarpPolicy.FullRow)
            for i in T.Parallel(block_M):
                if bx * block_M + i < seq_q:
                    Lse[bz, by, bx * block_M + i] = T.log(logsum[i]) + m[i] * scale * 0.6931471805599453
            if has_sink:
                for i in T.Parallel(block_M):
                    logsum[i] += T.exp2(Sinks[by] * LOG2E - m[i] * scale)
            for i, j in T.Parallel(block_M, dim):
                acc[i, j] /= logsum[i]
            T.copy(acc, O[bz, bx * block_M : (bx + 1) * block_M, by, :])

    return main


def _run_forward(rng, batch, heads, kv_heads, seq_q, seq_k, dim, causal, dtype, window=None, sink=False):
    np_dtype = T.dtype(dtype).numpy
    q = normal(rng, batch, seq_q, heads, dim, dtype=np_dtype)
    k, v = (normal(rng, batch, seq_k, kv_heads, dim, dtype=np_dtype) for _ in range(2))
    sinks = normal(rng, heads)
    o, lse = _forward(heads, kv_heads, dim, causal, dtype, window=window, has_sink=sink)(q, k, v, sinks)
    rows, cols = np.arange(seq_q)[:, None] + seq_k - seq_q, np.arange(seq_k)[None]
    mask = cols <= rows if causal else np.ones((seq_q, seq_k), bool)
    if window is not None:
        mask &= rows - cols <= window
    found = [
        softmax_attention(*(x[b].swapaxes(0, 1) for x in (q, k, v)), mask, sinks if sink else None)
        for b in range(batch)
    ]
    want, want_lse = (np.stack([f[i] for f in found]) for i in range(2))
    return [(o, want.swapaxes(1, 2)), (lse, want_lse)]


@program(F32)
def attention_forward_full_f32(rng):
    return _run_forward(rng, 2, 2, 2, 50, 50, 32, False, "float32")


@program(BF16)
def attention_forward_causal_gqa_bf16(rng):
    return _run_forward(rng, 1, 4, 2, 70, 70, 64, True, "bfloat16")


@program(F16)
def attention_forward_causal_longer_keys_f16(rng):
    return _run_forward(rng, 1, 2, 1, 33, 90, 32, True, "float16")


@program(F32)
def attention_forward_window_and_sink(rng):
    return _run_forward(rng, 1, 4, 1, 100, 100, 16, True, "float32", window=20, sink=True)


@program(F32)
def attention_backward(rng):
    """Three kernels: row sums of dO * O, then dK and dV per block of keys, then dQ per block of queries."""
    batch, heads, seq, dim, BM, BN = 1, 2, 60, 32, 24, 32
    scale = 1.0 / math.sqrt(dim)
    shape = (batch, seq, heads, dim)

    @tiledsl.jit(out_idx=[2])
    def preprocess():
        @T.prim_func
        def main(
            O: T.Tensor(shape, "float32"),
            dO: T.Tensor(shape, "float32"),
            Delta: T.Tensor((batch, heads, seq), "float32"),
        ):
            with T.Kernel(heads, T.ceildiv(seq, BM), batch) as (bx, by, bz):
                o = T.alloc_fragment([BM, 16], "float32")
                do = T.alloc_fragment([BM, 16], "float32")
                acc = T.alloc_fragment([BM, 16], "float32")
                delta = T.alloc_fragment([BM], "float32")
                T.clear(acc)
                for k in range(T.ceildiv(dim, 16)):
                    T.copy(O[bz, by * BM : (by + 1) * BM, bx, k * 16 : (k + 1) * 16], o)
                    T.copy(dO[bz, by * BM : (by + 1) * BM, bx, k * 16 : (k + 1) * 16], do)
                    for i, j in T.Parallel(BM, 16):
                        acc[i, j] += o[i, j] * do[i, j]
                T.reduce_sum(acc, delta, 1)
                T.copy(delta, Delta[bz, bx, by * BM : (by + 1) * BM])

        return main

    @tiledsl.jit(out_idx=[6, 7, 8])
    def backward():
        @T.prim_func
        def main(
            Q: T.Tensor(shape, "float32"),
            K: T.Tensor(shape, "float32"),
            V: T.Tensor(shape, "float32"),
            dO: T.Tensor(shape, "float32"),
            lse: T.Tensor((batch, heads, seq), "float32"),
            Delta: T.Tensor((batch, heads, seq), "float32"),
            dQ: T.Tensor(shape, "float32"),
            dK: T.Tensor(shape, "float32"),
            dV: T.Tensor(shape, "float32"),
        ):
            with T.Kernel(heads, T.ceildiv(seq, BN), batch, threads=128) as (bx, by, bz):
                K_s = T.alloc_shared([BN, dim], "float32")
                V_s = T.alloc_shared([BN, dim], "float32")
                q = T.alloc_shared([BM, dim], "float32")
                do = T.alloc_shared([BM, dim], "float32")
                l_s = T.alloc_shared([BM], "float32")
                d_s = T.alloc_shared([BM], "float32")
                s = T.alloc_fragment([BN, BM], "float32")
                dp = T.alloc_fragment([BN, BM], "float32")
                dv = T.alloc_fragment([BN, dim], "float32")
                dk = T.alloc_fragment([BN, dim], "float32")
                T.copy(K[bz, by * BN : (by + 1) * BN, bx, :], K_s)
                T.copy(V[bz, by * BN : (by + 1) * BN, bx, :], V_s)
                T.clear(dv)
                T.clear(dk)
                for k in T.Pipelined(by * BN // BM, T.ceildiv(seq, BM), num_stages=2):
                    T.copy(Q[bz, k * BM : (k + 1) * BM, bx, :], q)
                    T.copy(dO[bz, k * BM : (k + 1) * BM, bx, :], do)
                    T.copy(lse[bz, bx, k * BM : (k + 1) * BM], l_s)
                    T.copy(Delta[bz, bx, k * BM : (k + 1) * BM], d_s)
                    T.clear(s)
                    T.gemm(K_s, q, s, transpose_B=True)
                    T.clear(dp)
                    T.gemm(V_s, do, dp, transpose_B=True)
                    for i, j in T.Parallel(BN, BM):
                        visible = (by * BN + i <= k * BM + j) and (k * BM + j < seq)
                        s[i, j] = T.if_then_else(visible, T.exp(s[i, j] * scale - l_s[j]), 0)
                        dp[i, j] = s[i, j] * (dp[i, j] - d_s[j]) * scale
                    T.gemm(s, do, dv)
                    T.gemm(dp, q, dk)
                T.copy(dv, dV[bz, by * BN : (by + 1) * BN, bx, :])
                T.copy(dk, dK[bz, by * BN : (by + 1) * BN, bx, :])
            with T.Kernel(heads, T.ceildiv(seq, BM), batch, threads=128) as (bx, by, bz):
                q = T.alloc_shared([BM, dim], "float32")
                do = T.alloc_shared([BM, dim], "float32")
                K_s = T.alloc_shared([BN, dim], "float32")
                V_s = T.alloc_shared([BN, dim], "float32")
                s = T.alloc_fragment([BM, BN], "float32")
                dp = T.alloc_fragment([BM, BN], "float32")
                dq = T.alloc_fragment([BM, dim], "float32")
                T.copy(Q[bz, by * BM : (by + 1) * BM, bx, :], q)
                T.copy(dO[bz, by * BM : (by + 1) * BM, bx, :], do)
                T.clear(dq)
                for k in T.Pipelined(T.ceildiv(T.min(seq, (by + 1) * BM), BN), num_stages=1):
                    T.copy(K[bz, k * BN : (k + 1) * BN, bx, :], K_s)
                    T.copy(V[bz, k * BN : (k + 1) * BN, bx, :], V_s)
                    T.clear(s)
                    T.gemm(q, K_s, s, transpose_B=True)
                    T.clear(dp)
                    T.gemm(do, V_s, dp, transpose_B=True)
                    for i, j in T.Parallel(BM, BN):
                        row, col = by * BM + i, k * BN + j
                        if row < seq and col <= row:
                            s[i, j] = T.exp(s[i, j] * scale - lse[bz, bx, row])
                            dp[i, j] = s[i, j] * (dp[i, j] - Delta[bz, bx, row]) * scale
                        else:
                            dp[i, j] = 0
                    T.gemm(dp, K_s, dq)
                T.copy(dq, dQ[bz, by * BM : (by + 1) * BM, bx, :])

        return main

    q, k, v, do = (normal(rng, *shape) for _ in range(4))
    mask = np.tril(np.ones((seq, seq), bool))
    Q, K, V, G = (wide(x)[0].swapaxes(0, 1) for x in (q, k, v, do))
    o, lse, p = softmax_attention(Q, K, V, mask)
    delta = preprocess()(np.ascontiguousarray(o.swapaxes(0, 1)[None], np.float32), do)
    dq, dk, dv = backward()(q, k, v, do, np.ascontiguousarray(lse[None], np.float32), delta)
    want_delta = (o * G).sum(-1)
    dp = np.einsum("hqd,hkd->hqk", G, V)
    ds = p * (dp - want_delta[..., None]) * scale
    wants = [
        np.einsum("hqk,hkd->hqd", ds, K), np.einsum("hqk,hqd->hkd", ds, Q), np.einsum("hqk,hqd->hkd", p, G),
    ]  # fmt: skip
    pairs = [(got, w.swapaxes(0, 1)[None]) for got, w in zip((dq, dk, dv), wants, strict=True)]
    return [*pairs, (delta, want_delta[None])]


@program(F16)
def attention_varlen(rng):
    """Sequences one after the other, their ends in cu_seqlens; blocks beyond a sequence return at once."""
    heads, dim, BM, BN = 2, 32, 16, 32
    lengths = [17, 0, 40, 3]
    ends = np.cumsum([0, *lengths]).astype(np.int32)
    total, batch = int(ends[-1]), len(lengths)
    scale = LOG2E / math.sqrt(dim)

    @tiledsl.jit(out_idx=[-1])
    def kernel(total, batch, longest):
        @T.prim_func
        def main(
            Q: T.Tensor((total, heads, dim), "float16"),
            K: T.Tensor((total, heads, dim), "float16"),
            V: T.Tensor((total, heads, dim), "float16"),
            cu: T.Tensor((batch + 1,), "int32"),
            O: T.Tensor((total, heads, dim), "float16"),
        ):
            with T.Kernel(T.ceildiv(longest, BM), heads, batch, threads=64) as (bx, by, bz):
                Q_s = T.alloc_shared([BM, dim], "float16")
                K_s = T.alloc_shared([BN, dim], "float16")
                V_s = T.alloc_shared([BN, dim], "float16")
                S = T.alloc_fragment([BM, BN], "float32")
                P = T.alloc_fragment([BM, BN], "float16")
                acc = T.alloc_fragment([BM, dim], "float32")
                m = T.alloc_fragment([BM], "float32")
                old = T.alloc_fragment([BM], "float32")
                part = T.alloc_fragment([BM], "float32")
                logsum = T.alloc_fragment([BM], "float32")
                start, end = cu[bz], cu[bz + 1]
                length = end - start
                if bx * BM < length:
                    for i, d in T.Parallel(BM, dim):
                        if bx * BM + i < length:
                            Q_s[i, d] = Q[start + bx * BM + i, by, d]
                        else:
                            Q_s[i, d] = 0
                    T.clear(acc)
                    T.clear(logsum)
                    T.fill(m, -T.infinity("float32"))
                    for k in T.Pipelined(T.ceildiv(length, BN), num_stages=1):
                        T.copy(K[start + k * BN : start + (k + 1) * BN, by, :], K_s)
                        T.copy(V[start + k * BN : start + (k + 1) * BN, by, :], V_s)
                        for i, j in T.Parallel(BM, BN):
                            S[i, j] = T.if_then_else(k * BN + j < length, 0, -T.infinity("float32"))
                        T.gemm(Q_s, K_s, S, transpose_B=True)
                        T.copy(m, old)
                        T.reduce_max(S, m, dim=1, clear=False)
                        for i, j in T.Parallel(BM, BN):
                            S[i, j] = T.exp2((S[i, j] - m[i]) * scale)
                        T.reduce_sum(S, part, dim=1)
                        T.copy(S, P)
                        for i in T.Parallel(BM):
                            logsum[i] = logsum[i] * T.exp2((old[i] - m[i]) * scale) + part[i]
                        for i, d in T.Parallel(BM, dim):
                            acc[i, d] = acc[i, d] * T.exp2((old[i] - m[i]) * scale)
                        # what lies behind the sequence is a neighbour's: its weight is 0, its values are finite
                        T.gemm(P, V_s, acc)
                    for i, d in T.Parallel(BM, dim):
                        if bx * BM + i < length:
                            O[start + bx * BM + i, by, d] = acc[i, d] / logsum[i]

        return main

    q, k, v = (normal(rng, total, heads, dim, dtype=np.float16) for _ in range(3))
    got = kernel(total, batch, max(lengths))(q, k, v, ends)
    want = np.zeros((total, heads, dim))
    for a, b in zip(ends[:-1], ends[1:], strict=True):
        if b > a:
            want[a:b] = softmax_attention(*(x[a:b].swapaxes(0, 1) for x in (q, k, v)))[0].swapaxes(0, 1)
    return [(got, want)]


@program(F32)
def attention_decode_split_paged(rng):
    """One query per sequence: keys in pages, splits of fixed length, partial results combined by a second kernel."""
    batch, heads, kv_heads, dim, page, pages, split = 3, 8, 2, 32, 8, 40, 32
    group = heads // kv_heads
    lengths = np.array([5, 77, 64], np.int32)
    most = -(-int(lengths.max()) // split)
    table = rng.permutation(pages)[: 3 * 10].reshape(3, 10).astype(np.int32)
    scale = LOG2E / math.sqrt(dim)

    @tiledsl.jit(out_idx=[5])
    def kernel():
        @T.prim_func
        def main(
            Q: T.Tensor((batch, heads, dim), "float32"),
            K: T.Tensor((pages, page, kv_heads, dim), "float32"),
            V: T.Tensor((pages, page, kv_heads, dim), "float32"),
            Table: T.Tensor((batch, 10), "int32"),
            Lens: T.Tensor((batch,), "int32"),
            O: T.Tensor((batch, heads, dim), "float32"),
        ):
            part = T.alloc_global((batch, heads, most, dim), "float32")
            stats = T.alloc_global((batch, heads, most, 2), "float32")
            with T.Kernel(most, kv_heads, batch, threads=128) as (bx, by, bz):
                Q_s = T.alloc_shared([group, dim], "float32")
                K_s = T.alloc_shared([split, dim], "float32")
                V_s = T.alloc_shared([split, dim], "float32")
                S = T.alloc_fragment([group, split], "float32")
                acc = T.alloc_fragment([group, dim], "float32")
                m = T.alloc_fragment([group], "float32")
                total = T.alloc_fragment([group], "float32")
                first = bx * split
                if first < Lens[bz]:
                    T.copy(Q[bz, by * group : (by + 1) * group, :], Q_s)
                    for j, d in T.Parallel(split, dim):
                        t = first + j
                        inside = t < Lens[bz]
                        row = T.if_then_else(inside, Table[bz, t // page], 0)
                        K_s[j, d] = T.if_then_else(inside, K[row, t % page, by, d], 0)
                        V_s[j, d] = T.if_then_else(inside, V[row, t % page, by, d], 0)
                    T.gemm(Q_s, K_s, S, transpose_B=True, clear_accum=True)
                    for i, j in T.Parallel(group, split):
                        S[i, j] = T.if_then_else(first + j < Lens[bz], S[i, j] * scale, -T.infinity("float32"))
                    T.reduce_max(S, m, dim=1)
                    for i, j in T.Parallel(group, split):
                        S[i, j] = T.exp2(S[i, j] - m[i])
                    T.reduce_sum(S, total, dim=1)
                    T.gemm(S, V_s, acc, clear_accum=True)
                    T.copy(acc, part[bz, by * group : (by + 1) * group, bx, :])
                    for i in T.Parallel(group):
                        stats[bz, by * group + i, bx, 0] = m[i]
                        stats[bz, by * group + i, bx, 1] = total[i]
            with T.Kernel(heads, batch, threads=32) as (bx, by):
                top = T.alloc_var("float32", -T.infinity("float32"))
                total = T.alloc_var("float32", 0.0)
                acc = T.alloc_fragment([dim], "float32")
                T.clear(acc)
                count = T.ceildiv(Lens[by], split)
                for s in T.serial(count):
                    top = T.max(top, stats[by, bx, s, 0])
                for s in T.serial(count):
                    w = T.exp2(stats[by, bx, s, 0] - top)
                    total += w * stats[by, bx, s, 1]
                    for d in T.Parallel(dim):
                        acc[d] += w * part[by, bx, s, d]
                for d in T.Parallel(dim):
                    O[by, bx, d] = acc[d] / total

        return main

    q = normal(rng, batch, heads, dim)
    k, v = (normal(rng, pages, page, kv_heads, dim) for _ in range(2))
    got = kernel()(q, k, v, table, lengths)
    want = np.zeros((batch, heads, dim))
    for b in range(batch):
        keys, values = (x[table[b]].reshape(-1, kv_heads, dim)[: lengths[b]].swapaxes(0, 1) for x in (k, v))
        want[b] = softmax_attention(q[b][:, None], keys, values)[0][:, 0]
    return [(got, want)]


@program(F32)
def attention_block_sparse(rng):
    """A mask of blocks decides which tiles are visited; rows that see nothing give 0."""
    heads, seq, dim, B = 2, 96, 16, 32
    blocks = seq // B
    scale = 1.0 / math.sqrt(dim)
    mask = rng.random((heads, blocks, blocks)) < 0.5
    mask[0, 1] = False

    @tiledsl.jit(out_idx=[4])
    def kernel():
        @T.prim_func
        def main(
            Q: T.Tensor((heads, seq, dim), "float32"),
            K: T.Tensor((heads, seq, dim), "float32"),
            V: T.Tensor((heads, seq, dim), "float32"),
            Mask: T.Tensor((heads, blocks, blocks), "int8"),
            O: T.Tensor((heads, seq, dim), "float32"),
        ):
            with T.Kernel(blocks, heads, threads=128) as (bx, by):
                Q_s = T.alloc_shared([B, dim], "float32")
                K_s = T.alloc_shared([B, dim], "float32")
                V_s = T.alloc_shared([B, dim], "float32")
                S = T.alloc_fragment([B, B], "float32")
                acc = T.alloc_fragment([B, dim], "float32")
                m = T.alloc_fragment([B], "float32")
                old = T.alloc_fragment([B], "float32")
                part = T.alloc_fragment([B], "float32")
                total = T.alloc_fragment([B], "float32")
                row = T.alloc_local([blocks], "int8")
                for i in T.vectorized(blocks):
                    row[i] = Mask[by, bx, i]
                T.copy(Q[by, bx * B, 0], Q_s)
                T.clear(acc)
                T.clear(total)
                T.fill(m, T.float32(-(2**30)))
                for k in T.Pipelined(blocks, num_stages=2):
                    if row[k] != 0:
                        T.copy(K[by, k * B, 0], K_s)
                        T.copy(V[by, k * B, 0], V_s)
                        T.clear(S)
                        T.gemm(Q_s, K_s, S, transpose_B=True)
                        T.copy(m, old)
                        T.reduce_max(S, m, dim=1, clear=False)
                        for i, j in T.Parallel(B, B):
                            S[i, j] = T.exp((S[i, j] - m[i]) * scale)
                        T.reduce_sum(S, part, dim=1)
                        for i in T.Parallel(B):
                            total[i] = total[i] * T.exp((old[i] - m[i]) * scale) + part[i]
                        for i, j in T.Parallel(B, dim):
                            acc[i, j] *= T.exp((old[i] - m[i]) * scale)
                        T.gemm(S, V_s, acc)
                for i, j in T.Parallel(B, dim):
                    O[by, bx * B + i, j] = T.if_then_else(total[i] > 0, acc[i, j] / total[i], 0)

        return main

    q, k, v = (normal(rng, heads, seq, dim) for _ in range(3))
    full = np.repeat(np.repeat(mask, B, 1), B, 2)
    return [(kernel()(q, k, v, mask.astype(np.int8)), softmax_attention(q, k, v, full)[0])]


@program(BF16)
def mla_decode(rng):
    """Latent attention: 16 heads share one latent of 64 and a rotary part of 16; values are the latent itself."""
    batch, heads, seq, latent, rope, BN, BH = 2, 16, 75, 64, 16, 32, 16
    scale = LOG2E / math.sqrt(latent + rope)

    @tiledsl.jit(out_idx=[-1])
    def kernel():
        @T.prim_func
        def main(
            Q: T.Tensor((batch, heads, latent), "bfloat16"),
            Q_pe: T.Tensor((batch, heads, rope), "bfloat16"),
            KV: T.Tensor((batch, seq, 1, latent), "bfloat16"),
            K_pe: T.Tensor((batch, seq, 1, rope), "bfloat16"),
            O: T.Tensor((batch, heads, latent), "bfloat16"),
        ):
            with T.Kernel(batch, heads // BH, threads=256) as (bx, by):
                Q_s = T.alloc_shared([BH, latent], "bfloat16")
                Q_pe_s = T.alloc_shared([BH, rope], "bfloat16")
                KV_s = T.alloc_shared([BN, latent], "bfloat16")
                K_pe_s = T.alloc_shared([BN, rope], "bfloat16")
                S_s = T.alloc_shared([BH, BN], "bfloat16")
                acc_s = T.alloc_fragment([BH, BN], "float32")
                acc_o = T.alloc_fragment([BH, latent], "float32")
                m = T.alloc_fragment([BH], "float32")
                old = T.alloc_fragment([BH], "float32")
                part = T.alloc_fragment([BH], "float32")
                total = T.alloc_fragment([BH], "float32")
                T.copy(Q[bx, by * BH : (by + 1) * BH, :], Q_s)
                T.copy(Q_pe[bx, by * BH : (by + 1) * BH, :], Q_pe_s)
                T.clear(acc_o)
                T.clear(total)
                T.fill(m, -T.infinity("float32"))
                for k in T.Pipelined(T.ceildiv(seq, BN), num_stages=2):
                    T.copy(KV[bx, k * BN : (k + 1) * BN, 0, :], KV_s)
                    T.copy(K_pe[bx, k * BN : (k + 1) * BN, 0, :], K_pe_s)
                    T.gemm(Q_s, KV_s, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol, clear_accum=True)
                    T.gemm(Q_pe_s, K_pe_s, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                    for i, j in T.Parallel(BH, BN):
                        acc_s[i, j] = T.if_then_else(k * BN + j < seq, acc_s[i, j], -T.infinity("float32"))
                    T.copy(m, old)
                    T.fill(m, -T.infinity("float32"))
                    T.reduce_max(acc_s, m, dim=1, clear=False)
                    for i in T.Parallel(BH):
                        m[i] = T.max(m[i], old[i])
                    for i, j in T.Parallel(BH, BN):
                        acc_s[i, j] = T.exp2(acc_s[i, j] * scale - m[i] * scale)
                    T.reduce_sum(acc_s, part, dim=1)
                    T.copy(acc_s, S_s)
                    for i in T.Parallel(BH):
                        total[i] = total[i] * T.exp2((old[i] - m[i]) * scale) + part[i]
                    for i, j in T.Parallel(BH, latent):
                        acc_o[i, j] *= T.exp2((old[i] - m[i]) * scale)
                    T.gemm(S_s, KV_s, acc_o, policy=T.GemmWarpPolicy.FullCol)
                for i, j in T.Parallel(BH, latent):
                    acc_o[i, j] /= total[i]
                T.copy(acc_o, O[bx, by * BH : (by + 1) * BH, :])

        return main

    import ml_dtypes

    bf16 = ml_dtypes.bfloat16
    q, q_pe = normal(rng, batch, heads, latent, dtype=bf16), normal(rng, batch, heads, rope, dtype=bf16)
    kv, k_pe = normal(rng, batch, seq, 1, latent, dtype=bf16), normal(rng, batch, seq, 1, rope, dtype=bf16)
    got = kernel()(q, q_pe, kv, k_pe)
    whole_q, whole_k = np.concatenate([q, q_pe], -1), np.concatenate([kv, k_pe], -1)
    want = np.stack([
        softmax_attention(whole_q[b][:, None], whole_k[b].swapaxes(0, 1), kv[b].swapaxes(0, 1))[0][:, 0]
        for b in range(batch)
    ])  # fmt: skip
    return [(got, want)]
