"""Recurrences over time in chunks: states carried by a block, triangular inverses, decays in powers of two."""

import math

import numpy as np
from programs.registry import BF16, F16, F32, normal, program, wide

import tiledsl
import tiledsl.language as T


@program(BF16)
def retention_by_chunks(rng):
    """o_t = sum over s <= t of g^(t-s) (q_t k_s) v_s, a head's state in fragments, decays kept in shared memory."""
    B, S, H, D, DV, C = 1, 40, 2, 32, 16, 16

    @tiledsl.jit(out_idx=[3])
    def kernel(batch, heads, seq_len, dim_qk, dim_v, BK, BV, chunk):
        NK, NV, NT = dim_qk // BK, dim_v // BV, T.ceildiv(seq_len, chunk)
        dtype, accum = T.bfloat16, T.float32
        scale = dim_qk**-0.5

        @T.prim_func
        def main(
            Q: T.Tensor([batch, seq_len, heads, dim_qk], dtype),
            K: T.Tensor([batch, seq_len, heads, dim_qk], dtype),
            V: T.Tensor([batch, seq_len, heads, dim_v], dtype),
            Output: T.Tensor([NK, batch, seq_len, heads, dim_v], dtype),
        ):
            with T.Kernel(NV, NK, batch * heads) as (i_v, i_k, i_bh):
                i_b = i_bh // heads
                i_h = i_bh % heads
                log_decay = T.alloc_var(accum)
                log_decay = T.log2(1 - T.exp2(-5.0 - 1.0 * i_h))
                q = T.alloc_shared([chunk, BK], dtype)
                k = T.alloc_shared([chunk, BK], dtype)
                v = T.alloc_shared([chunk, BV], dtype)
                h = T.alloc_fragment([BK, BV], accum)
                h_shared = T.alloc_shared([BK, BV], dtype)
                s = T.alloc_fragment([chunk, chunk], accum)
                s_shared = T.alloc_shared([chunk, chunk], dtype)
                o = T.alloc_fragment([chunk, BV], accum)
                v_decayed = T.alloc_fragment([chunk, BV], accum)
                T.clear(h)
                T.use_swizzle(10)
                for i in T.Pipelined(0, NT):
                    for row, col in T.Parallel(chunk, BK):
                        q[row, col] = Q[i_b, i * chunk + row, i_h, i_k * BK + col] * scale
                    T.copy(K[i_b, i * chunk : (i + 1) * chunk, i_h, i_k * BK : (i_k + 1) * BK], k)
                    T.copy(V[i_b, i * chunk : (i + 1) * chunk, i_h, i_v * BV : (i_v + 1) * BV], v)
                    T.gemm(q, k, s, clear_accum=True, transpose_B=True)
                    for row, col in T.Parallel(chunk, chunk):
                        s_shared[row, col] = T.if_then_else(
                            row >= col, s[row, col] * T.exp2((row - col) * log_decay), 0
                        )
                    T.copy(h, h_shared)
                    T.gemm(q, h_shared, o, clear_accum=True)
                    for row, col in T.Parallel(chunk, BV):
                        o[row, col] = T.exp2((row + 1) * log_decay) * o[row, col]
                    T.gemm(s_shared, v, o)
                    for row, col in T.Parallel(chunk, BV):
                        v_decayed[row, col] = v[row, col] * T.exp2((chunk - row - 1) * log_decay)
                    for row, col in T.Parallel(BK, BV):
                        h[row, col] = T.exp2(chunk * log_decay) * h[row, col]
                    T.copy(v_decayed, v)
                    T.gemm(k, v, h, transpose_A=True)
                    T.copy(o, Output[i_k, i_b, i * chunk : (i + 1) * chunk, i_h, i_v * BV : (i_v + 1) * BV])

        return main

    bf16 = T.dtype("bfloat16").numpy
    q, k = (normal(rng, B, S, H, D, dtype=bf16) for _ in range(2))
    v = normal(rng, B, S, H, DV, dtype=bf16)
    got = kernel(B, H, S, D, DV, 16, 16, C)(q, k, v)
    decay = 1 - 2.0 ** (-5.0 - np.arange(H))
    apart = np.arange(S)[:, None] - np.arange(S)
    weights = np.where(apart >= 0, decay[:, None, None] ** np.maximum(apart, 0), 0)
    scores = np.einsum("bthd,bshd->bhts", wide(q), wide(k)) * weights / math.sqrt(D)
    return [(wide(np.asarray(got)).sum(0), np.einsum("bhts,bshd->bthd", scores, wide(v)))]


@program(BF16, ordered=False)
def linear_attention_backward(rng):
    """dQ forward in time, dK and dV backward; parts of dV from different blocks meet by atomics on a tile."""
    B, S, H, D, C = 1, 32, 1, 32, 16

    @tiledsl.jit(pass_configs={"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True})
    def kernel(B, S, H, DK, DV, chunk=C, scale=None, dtype=T.bfloat16):
        if scale is None:
            scale = DK**-0.5
        BK = BV = 16
        NK, NV, NT = DK // BK, DV // BV, S // chunk
        accum = T.float32

        @T.prim_func
        def main(
            Q: T.Tensor([B, S, H, DK], dtype),
            K: T.Tensor([B, S, H, DK], dtype),
            V: T.Tensor([B, S, H, DV], dtype),
            dO: T.Tensor([B, S, H, DV], dtype),
            dQ: T.Tensor([B, S, H, DK], accum),
            dK: T.Tensor([B, S, H, DK], accum),
            dV: T.Tensor([B, S, H, DV], accum),
        ):
            with T.Kernel(NV, NK, B * H) as (i_v, i_k, i_bh):
                i_b, i_h = i_bh // H, i_bh % H
                ds = T.alloc_fragment([chunk, chunk], accum)
                ds_s = T.alloc_shared([chunk, chunk], dtype)
                dq = T.alloc_fragment([chunk, BK], accum)
                dk = T.alloc_fragment([chunk, BK], accum)
                dv = T.alloc_fragment([chunk, BV], accum)
                dq_s = T.alloc_shared([chunk, BK], accum)
                dv_s = T.alloc_shared([chunk, BV], accum)
                h = T.alloc_fragment([BV, BK], accum)
                h_s = T.alloc_shared([BV, BK], dtype)
                dh = T.alloc_fragment([BK, BV], accum)
                dh_s = T.alloc_shared([BK, BV], dtype)
                q = T.alloc_shared([chunk, BK], dtype)
                k = T.alloc_shared([chunk, BK], dtype)
                v = T.alloc_shared([chunk, BV], dtype)
                do = T.alloc_shared([chunk, BV], dtype)
                T.clear(h)
                T.clear(dh)
                for i in T.Pipelined(0, NT):
                    T.copy(K[i_b, i * chunk : (i + 1) * chunk, i_h, i_k * BK : (i_k + 1) * BK], k)
                    T.copy(V[i_b, i * chunk : (i + 1) * chunk, i_h, i_v * BV : (i_v + 1) * BV], v)
                    T.copy(dO[i_b, i * chunk : (i + 1) * chunk, i_h, i_v * BV : (i_v + 1) * BV], do)
                    T.gemm(do, v, ds, transpose_B=True, clear_accum=True)
                    for row, col in T.Parallel(chunk, chunk):
                        ds_s[row, col] = T.if_then_else(row >= col, ds[row, col], 0)
                    T.gemm(ds_s, k, dq, clear_accum=True)
                    T.copy(h, h_s)
                    T.gemm(do, h_s, dq)
                    T.gemm(v, k, h, transpose_A=True)
                    for row, col in T.Parallel(chunk, BK):
                        dq[row, col] *= scale
                    T.copy(dq, dq_s)
                    T.atomic_add(dQ[i_b, i * chunk : (i + 1) * chunk, i_h, i_k * BK : (i_k + 1) * BK], dq_s)
                for i in T.Pipelined(1, NT + 1):
                    start = NT - i
                    for row, col in T.Parallel(chunk, BK):
                        q[row, col] = Q[i_b, start * chunk + row, i_h, i_k * BK + col] * scale
                    T.copy(K[i_b, start * chunk : (start + 1) * chunk, i_h, i_k * BK : (i_k + 1) * BK], k)
                    T.copy(V[i_b, start * chunk : (start + 1) * chunk, i_h, i_v * BV : (i_v + 1) * BV], v)
                    T.copy(dO[i_b, start * chunk : (start + 1) * chunk, i_h, i_v * BV : (i_v + 1) * BV], do)
                    T.gemm(v, do, ds, transpose_B=True, clear_accum=True)
                    for row, col in T.Parallel(chunk, chunk):
                        ds_s[row, col] = T.if_then_else(row <= col, ds[row, col], 0)
                    T.gemm(ds_s, q, dk, clear_accum=True)
                    T.copy(dh, dh_s)
                    T.gemm(v, dh_s, dk, transpose_B=True)
                    T.gemm(k, q, ds, transpose_B=True, clear_accum=True)
                    for row, col in T.Parallel(chunk, chunk):
                        ds_s[row, col] = T.if_then_else(row <= col, ds[row, col], 0)
                    T.gemm(ds_s, do, dv, clear_accum=True)
                    T.gemm(k, dh_s, dv)
                    T.gemm(q, do, dh, transpose_A=True)
                    for row, col in T.Parallel(chunk, BK):
                        T.atomic_add(dK[i_b, start * chunk + row, i_h, i_k * BK + col], dk[row, col])
                    T.copy(dv, dv_s)
                    T.atomic_add(dV[i_b, start * chunk : (start + 1) * chunk, i_h, i_v * BV : (i_v + 1) * BV], dv_s)

        return main

    bf16 = T.dtype("bfloat16").numpy
    q, k, v, do = (normal(rng, B, S, H, D, dtype=bf16) for _ in range(4))
    grads = [np.zeros((B, S, H, D), np.float32) for _ in range(3)]
    kernel(B, S, H, D, D)(q, k, v, do, *grads)
    Q, K, V, O = wide(q, k, v, do)
    seen = np.tril(np.ones((S, S)))
    ds = np.einsum("bthd,bshd->bhts", O, V) * seen / math.sqrt(D)
    p = np.einsum("bthd,bshd->bhts", Q, K) * seen / math.sqrt(D)
    want = np.einsum("bhts,bshd->bthd", ds, K), np.einsum("bhts,bthd->bshd", ds, Q), np.einsum("bhts,bthd->bshd", p, O)
    return list(zip(grads, want, strict=True))


@program(F16)
def state_space_chunk_scan(rng):
    """Output of one chunk from the states before it and from its own tokens; groups of heads share B and C."""
    batch, seqlen, chunk, groups, heads, dim, states = 1, 64, 32, 1, 2, 24, 16
    chunks = seqlen // chunk

    @tiledsl.jit(out_idx=[7])
    def chunk_scan(block_M=16, block_N=16, block_K=16, block_Dstate=16, num_stages=2, threads=64):
        dtype, accum = T.float16, T.float32
        p = 1.44269504

        @T.prim_func
        def main(
            cb: T.Tensor((batch, chunks, groups, chunk, chunk), dtype),  # type: ignore
            x: T.Tensor((batch, seqlen, heads, dim), dtype),  # type: ignore
            dt: T.Tensor((batch, heads, chunks, chunk), dtype),  # type: ignore
            dA_cumsum: T.Tensor((batch, heads, chunks, chunk), dtype),  # type: ignore
            C: T.Tensor((batch, seqlen, groups, states), dtype),  # type: ignore
            prev_states: T.Tensor((batch, chunks, heads, dim, states), dtype),  # type: ignore
            D: T.Tensor((heads), dtype),  # type: ignore
            Output: T.Tensor((batch, seqlen, heads, dim), dtype),  # type: ignore
        ):
            with T.Kernel(
                heads,
                T.ceildiv(chunk, block_M) * T.ceildiv(dim, block_N),
                batch * chunks,
                threads=threads,
            ) as (bz, bx, by):
                acc_o = T.alloc_fragment((block_M, block_N), accum)
                cb_s = T.alloc_shared((block_M, block_K), dtype, scope="shared.dyn")
                cb_l = T.alloc_fragment((block_M, block_K), dtype)
                dA_k_s = T.alloc_shared((block_K), dtype, scope="shared")
                dA_k = T.alloc_fragment((block_K), accum)
                dA_m = T.alloc_fragment((block_M), accum)
                dt_s = T.alloc_shared((block_K), dtype, scope="shared")
                dt_l = T.alloc_fragment((block_K), accum)
                x_s = T.alloc_shared((block_K, block_N), dtype, scope="shared.dyn")
                dA_m_s = T.alloc_shared((block_M), dtype, scope="shared")
                scale_m = T.alloc_fragment((block_M), accum)
                C_s = T.alloc_shared((block_M, block_Dstate), dtype)
                prev_s = T.alloc_shared((block_N, block_Dstate), dtype)
                D_l = T.alloc_fragment((1), accum)
                x_res_s = T.alloc_shared((block_M, block_N), dtype, scope="shared.dyn")
                x_res = T.alloc_fragment((block_M, block_N), accum)
                b_idx = by % batch
                c_idx = by // batch
                m_idx = bx // T.ceildiv(dim, block_N)
                n_idx = bx % T.ceildiv(dim, block_N)
                T.no_set_max_nreg()
                T.copy(dA_cumsum[b_idx, bz, c_idx, m_idx * block_M : (m_idx + 1) * block_M], dA_m_s)
                T.copy(dA_m_s, dA_m)
                T.clear(acc_o)
                for i in T.Parallel(block_M):
                    scale_m[i] = T.exp2(dA_m[i] * p)
                T.copy(
                    C[
                        b_idx,
                        c_idx * chunk + m_idx * block_M : c_idx * chunk + (m_idx + 1) * block_M,
                        bz // (heads // groups),
                        0:block_Dstate,
                    ],
                    C_s,
                )
                T.copy(prev_states[b_idx, c_idx, bz, n_idx * block_N : (n_idx + 1) * block_N, 0:block_Dstate], prev_s)
                T.gemm(C_s, prev_s, acc_o, transpose_B=True)
                for i, j in T.Parallel(block_M, block_N):
                    acc_o[i, j] *= scale_m[i]
                for k in T.Pipelined(T.ceildiv((m_idx + 1) * block_M, block_K), num_stages=num_stages):
                    T.copy(
                        cb[
                            b_idx,
                            c_idx,
                            bz // (heads // groups),
                            m_idx * block_M : (m_idx + 1) * block_M,
                            k * block_K : (k + 1) * block_K,
                        ],
                        cb_s,
                    )
                    T.copy(cb_s, cb_l)
                    T.copy(dA_cumsum[b_idx, bz, c_idx, k * block_K : (k + 1) * block_K], dA_k_s)
                    T.copy(dA_k_s, dA_k)
                    for i, j in T.Parallel(block_M, block_K):
                        cb_l[i, j] = cb_l[i, j] * T.exp2(dA_m[i] * p - dA_k[j] * p)
                    T.copy(dt[b_idx, bz, c_idx, k * block_K : (k + 1) * block_K], dt_s)
                    T.copy(dt_s, dt_l)
                    for i, j in T.Parallel(block_M, block_K):
                        cb_l[i, j] *= dt_l[j]
                    for i, j in T.Parallel(block_M, block_K):
                        cb_l[i, j] = T.if_then_else(m_idx * block_M + i >= k * block_K + j, cb_l[i, j], 0)
                    T.copy(
                        x[
                            b_idx,
                            c_idx * chunk + k * block_K : c_idx * chunk + (k + 1) * block_K,
                            bz,
                            n_idx * block_N : (n_idx + 1) * block_N,
                        ],
                        x_s,
                    )
                    T.gemm(cb_l, x_s, acc_o)
                D_l[0] = D[bz]
                first = c_idx * chunk + m_idx * block_M
                T.copy(x[b_idx, first : first + block_M, bz, n_idx * block_N : (n_idx + 1) * block_N], x_res_s)
                T.copy(x_res_s, x_res)
                for i, j in T.Parallel(block_M, block_N):
                    acc_o[i, j] += x_res[i, j] * D_l[0]
                T.copy(acc_o, Output[b_idx, first : first + block_M, bz, n_idx * block_N : (n_idx + 1) * block_N])

        return main

    half = np.float16
    cb = normal(rng, batch, chunks, groups, chunk, chunk, dtype=half)
    x = normal(rng, batch, seqlen, heads, dim, dtype=half)
    dt = (rng.random((batch, heads, chunks, chunk)) * 0.5).astype(half)
    da = (-np.cumsum(rng.random((batch, heads, chunks, chunk)) * 0.1, -1)).astype(half)
    c = normal(rng, batch, seqlen, groups, states, dtype=half)
    prev = normal(rng, batch, chunks, heads, dim, states, dtype=half)
    d = normal(rng, heads, dtype=half)
    got = chunk_scan()(cb, x, dt, da, c, prev, d)
    X, DT, DA, C, P = wide(x, dt, da, c, prev)
    X = X.reshape(batch, chunks, chunk, heads, dim)
    C = C.reshape(batch, chunks, chunk, states)
    decay = np.exp(DA[..., :, None] - DA[..., None, :]) * np.tril(np.ones((chunk, chunk)))
    inner = np.einsum("bcts,bhcts,bhcs,bcshd->bcthd", wide(cb)[:, :, 0], decay, DT, X)
    before = np.einsum("bctn,bchdn,bhct->bcthd", C, P, np.exp(DA))
    want = inner + before + X * wide(d)[:, None]
    return [(got, want.reshape(batch, seqlen, heads, dim))]


@program(F32)
def inverse_of_unit_triangles(rng):
    """(I + L)^-1 of a strictly lower triangle, row by row in place, then the chunk's u = inverse (beta v)."""
    B, S, H, C, D = 1, 40, 2, 16, 24

    @tiledsl.jit(out_idx=[-2, -1])
    def kernel():
        @T.prim_func
        def main(
            K: T.Tensor((B, S, H, D), "float32"),
            V: T.Tensor((B, S, H, D), "float32"),
            Beta: T.Tensor((B, S, H), "float32"),
            G: T.Tensor((B, S, H), "float32"),
            A: T.Tensor((B, S, H, C), "float32"),
            U: T.Tensor((B, S, H, D), "float32"),
        ):
            with T.Kernel(T.ceildiv(S, C), B * H, threads=64) as (i_c, i_bh):
                i_b, i_h = i_bh // H, i_bh % H
                k = T.alloc_shared((C, D), "float32")
                kb = T.alloc_shared((C, D), "float32")
                a = T.alloc_fragment((C, C), "float32")
                a_s = T.alloc_shared((C, C), "float32")
                row = T.alloc_fragment((C,), "float32")
                products = T.alloc_fragment((C, C), "float32")
                added = T.alloc_fragment((C,), "float32")
                u = T.alloc_fragment((C, D), "float32")
                beta = T.alloc_shared((C,), "float32")
                g = T.alloc_shared((C,), "float32")
                T.copy(K[i_b, i_c * C : (i_c + 1) * C, i_h, 0:D], k)
                T.copy(Beta[i_b, i_c * C : (i_c + 1) * C, i_h], beta)
                T.copy(G[i_b, i_c * C : (i_c + 1) * C, i_h], g)
                T.cumsum(g, dim=0)
                for i, j in T.Parallel(C, D):
                    kb[i, j] = k[i, j] * beta[i]
                T.gemm(kb, k, a, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(C, C):
                    if i <= j:
                        a[i, j] = 0
                    else:
                        a[i, j] = -a[i, j] * T.exp(g[i] - g[j])
                T.copy(a, a_s)
                for i in T.serial(1, C):
                    T.copy(a_s[i, :], row)
                    for j, l in T.Parallel(C, C):
                        products[j, l] = T.if_then_else(l < i, row[l] * a_s[l, j], 0.0)
                    T.reduce_sum(products, added, dim=1)
                    for j in T.Parallel(C):
                        if j < i:
                            a_s[i, j] = row[j] + added[j]
                for i in T.Parallel(C):
                    a_s[i, i] = a_s[i, i] + 1.0
                T.copy(a_s, A[i_b, i_c * C : (i_c + 1) * C, i_h, :])
                for i, j in T.Parallel(C, D):
                    kb[i, j] = V[i_b, i_c * C + i, i_h, j] * beta[i]
                T.gemm(a_s, kb, u, clear_accum=True)
                T.copy(u, U[i_b, i_c * C : (i_c + 1) * C, i_h, :])

        return main

    k, v = normal(rng, B, S, H, D) / 4, normal(rng, B, S, H, D)
    beta, g = rng.random((B, S, H)).astype(np.float32), -rng.random((B, S, H)).astype(np.float32) / 8
    a, u = kernel()(k, v, beta, g)
    want_a, want_u = np.zeros((B, S, H, C)), np.zeros((B, S, H, D))
    for b, h, c in np.ndindex(B, H, -(-S // C)):
        at = slice(c * C, min(S, (c + 1) * C))
        K, V, beta_c, sums = wide(k[b, at, h], v[b, at, h], beta[b, at, h], g[b, at, h].astype(np.float64).cumsum())
        lower = np.tril(beta_c[:, None] * (K @ K.T) * np.exp(sums[:, None] - sums), -1)
        inverse = np.linalg.inv(np.eye(len(K)) + lower)
        want_a[b, at, h, : len(K)] = inverse
        want_u[b, at, h] = inverse @ (beta_c[:, None] * V)
    return [(a, want_a), (u, want_u)]


@program(F32)
def linear_attention_chunked(rng):
    """o_t = q_t sum_{s <= t} k_s v_s^T in chunks: the state carries what earlier chunks gave."""
    heads, seq, dim, C = 2, 80, 24, 32

    @tiledsl.jit(out_idx=[3, 4])
    def kernel():
        @T.prim_func
        def main(
            Q: T.Tensor((heads, seq, dim), "float32"),
            K: T.Tensor((heads, seq, dim), "float32"),
            V: T.Tensor((heads, seq, dim), "float32"),
            O: T.Tensor((heads, seq, dim), "float32"),
            State: T.Tensor((heads, dim, dim), "float32"),
        ):
            with T.Kernel(heads, threads=128) as h:
                q = T.alloc_shared([C, dim], "float32")
                k = T.alloc_shared([C, dim], "float32")
                v = T.alloc_shared([C, dim], "float32")
                s = T.alloc_fragment([C, C], "float32")
                o = T.alloc_fragment([C, dim], "float32")
                state = T.alloc_fragment([dim, dim], "float32")
                state_s = T.alloc_shared([dim, dim], "float32")
                T.clear(state)
                for t in T.serial(T.ceildiv(seq, C)):
                    T.copy(Q[h, t * C, 0], q)
                    T.copy(K[h, t * C, 0], k)
                    T.copy(V[h, t * C, 0], v)
                    T.gemm(q, k, s, transpose_B=True, clear_accum=True)
                    for i, j in T.Parallel(C, C):
                        s[i, j] = T.if_then_else(i >= j, s[i, j], 0)
                    T.copy(state, state_s)
                    T.gemm(q, state_s, o, clear_accum=True)
                    T.gemm(s, v, o)
                    T.gemm(k, v, state, transpose_A=True)
                    T.copy(o, O[h, t * C, 0])
                T.copy(state, State[h, 0, 0])

        return main

    q, k, v = (normal(rng, heads, seq, dim) for _ in range(3))
    Q, K, V = wide(q, k, v)
    s = np.einsum("hqd,hkd->hqk", Q, K) * np.tril(np.ones((seq, seq)))
    o, state = kernel()(q, k, v)
    return [(o, s @ V), (state, np.einsum("hkd,hke->hde", K, V))]
