"""Layers of models: state spaces, gated delta rule, gates, hyper-connections, norms, modules."""

import math

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
import torch.nn as nn
import torch.nn.functional as F


# ---- mamba chunk state
@tilelang.jit(out_idx=[4])
def chunk_state_fwd(
    batch,
    seqlen,
    chunk_size,
    ngroups,
    nheads,
    headdim,
    dstate,
    block_M=32,
    block_N=32,
    block_K=32,
    num_stages=2,
    threads=128,
):
    dtype = T.float16
    accum_dtype = T.float32
    nchunks = T.ceildiv(seqlen, chunk_size)
    p = 1.44269504

    @T.prim_func
    def main(
        B: T.Tensor((batch, seqlen, ngroups, dstate), dtype),
        x: T.Tensor((batch, seqlen, nheads, headdim), dtype),
        dt: T.Tensor((batch, nheads, nchunks, chunk_size), dtype),
        dA_cumsum: T.Tensor((batch, nheads, nchunks, chunk_size), dtype),
        Output: T.Tensor((batch, nchunks, nheads, headdim, dstate), dtype),
    ):
        with T.Kernel(
            nheads, T.ceildiv(headdim, block_M) * T.ceildiv(dstate, block_N), batch * nchunks, threads=threads
        ) as (bz, bx, by):
            x_shared = T.alloc_shared((block_K, block_M), dtype)
            x_local = T.alloc_fragment((block_K, block_M), dtype)
            xt_local = T.alloc_fragment((block_M, block_K), dtype)
            B_shared = T.alloc_shared((block_K, block_N), dtype)
            dt_shared = T.alloc_shared((block_K), dtype)
            dA_cumsum_shared = T.alloc_shared((block_K), dtype)
            acc_o = T.alloc_fragment((block_M, block_N), accum_dtype)
            acc_o_shared = T.alloc_shared((block_M, block_N), dtype)
            scale = T.alloc_fragment((block_K), accum_dtype)
            dA_cs_last = T.alloc_fragment((1), accum_dtype)
            dA_cumsum_local = T.alloc_fragment((block_K), accum_dtype)
            dt_local = T.alloc_fragment((block_K), accum_dtype)
            loop_range = T.ceildiv(chunk_size, block_K)
            batch_idx = by % batch
            chunk_idx = by // batch
            m_idx = bx // T.ceildiv(dstate, block_N)
            n_idx = bx % T.ceildiv(dstate, block_N)
            T.annotate_layout(
                {
                    x_shared: tilelang.layout.make_swizzled_layout(x_shared),
                    acc_o_shared: tilelang.layout.make_swizzled_layout(acc_o_shared),
                }
            )
            dA_cs_last[0] = dA_cumsum[batch_idx, bz, chunk_idx, chunk_size - 1]
            T.clear(acc_o)
            for k in T.Pipelined(
                loop_range,
                num_stages=num_stages,
                order=[-1, -1, -1, 1, -1, 0],
                stage=[-1, -1, -1, 0, -1, 1],
                group=[[0], [1], [2], [3, 4, 5, 6, 7], [8], [9]],
            ):
                T.copy(
                    x[
                        batch_idx,
                        chunk_idx * chunk_size + k * block_K : chunk_idx * chunk_size + (k + 1) * block_K,
                        bz,
                        m_idx * block_M : (m_idx + 1) * block_M,
                    ],
                    x_shared,
                )
                T.copy(dA_cumsum[batch_idx, bz, chunk_idx, k * block_K : (k + 1) * block_K], dA_cumsum_shared)
                T.copy(dt[batch_idx, bz, chunk_idx, k * block_K : (k + 1) * block_K], dt_shared)
                T.copy(dA_cumsum_shared, dA_cumsum_local)
                T.copy(dt_shared, dt_local)
                for i in T.Parallel(block_K):
                    scale[i] = T.exp2(dA_cs_last[0] * p - dA_cumsum_local[i] * p) * dt_local[i]
                T.copy(x_shared, x_local)
                for i, j in T.Parallel(block_M, block_K):
                    xt_local[i, j] = x_local[j, i] * scale[j]
                T.copy(
                    B[
                        batch_idx,
                        chunk_idx * chunk_size + k * block_K : chunk_idx * chunk_size + (k + 1) * block_K,
                        bz // (nheads // ngroups),
                        n_idx * block_N : (n_idx + 1) * block_N,
                    ],
                    B_shared,
                )
                T.gemm(xt_local, B_shared, acc_o)
            T.copy(acc_o, acc_o_shared)
            T.copy(
                acc_o_shared,
                Output[
                    batch_idx,
                    chunk_idx,
                    bz,
                    m_idx * block_M : (m_idx + 1) * block_M,
                    n_idx * block_N : (n_idx + 1) * block_N,
                ],
            )

    return main


def test_chunk_state():
    torch.manual_seed(0)
    b, s, cs, g, h, d, n = 2, 128, 64, 1, 2, 48, 40
    B = torch.randn(b, s, g, n, device="cuda", dtype=torch.float16)
    x = torch.randn(b, s, h, d, device="cuda", dtype=torch.float16)
    dt = torch.rand(b, h, s // cs, cs, device="cuda", dtype=torch.float16)
    dA = -torch.rand(b, h, s // cs, cs, device="cuda").cumsum(-1).half() * 0.1
    k = chunk_state_fwd(b, s, cs, g, h, d, n)
    o = k(B, x, dt, dA)
    decay = torch.exp(dA[..., -1:].float() - dA.float()) * dt.float()
    ref = torch.einsum("bcln,bhcl,bclhp->bchpn", B.float().view(b, 2, cs, n), decay, x.float().view(b, 2, cs, h, d))
    torch.testing.assert_close(o.float(), ref, rtol=2e-2, atol=2e-2)


# ---- gated delta rule chunk h
@tilelang.jit(out_idx=[-3, -2, -1], pass_configs={tilelang.PassConfigKey.TL_DISABLE_THREAD_STORAGE_SYNC: False})
def chunk_h(
    B,
    S,
    H,
    DK,
    DV,
    input_dtype,
    use_g,
    use_initial_state=True,
    store_final_state=True,
    save_new_value=True,
    chunk_size=32,
    block_DK=32,
    block_DV=32,
    threads=128,
    num_stages=0,
):
    accum_dtype = "float32"
    block_S = chunk_size
    BS = S // block_S

    @T.prim_func
    def kernel(
        K: T.Tensor((B, S, H, DK), dtype=input_dtype),
        W: T.Tensor((B, S, H, DK), dtype=input_dtype),
        U: T.Tensor((B, S, H, DV), dtype=input_dtype),
        G: T.Tensor((B, S, H), dtype="float32"),
        initial_state: T.Tensor((B, H, DK, DV), dtype=input_dtype),
        h: T.Tensor((B, BS, H, DK, DV), dtype=input_dtype),
        final_state: T.Tensor((B, H, DK, DV), dtype="float32"),
        V_new: T.Tensor((B, S, H, DV), dtype=input_dtype),
    ):
        with T.Kernel(T.ceildiv(DV, block_DV), B * H, threads=threads) as (bv, bbh):
            bb, bh = bbh // H, bbh % H
            b_h_shared = T.alloc_shared((DK, block_DV), dtype=input_dtype)
            b_h_fragment = T.alloc_fragment((DK, block_DV), dtype=accum_dtype)
            U_shared = T.alloc_shared((block_S, block_DV), dtype=input_dtype)
            U_fragment = T.alloc_fragment((block_S, block_DV), dtype=accum_dtype)
            W_shared = T.alloc_shared((block_S, DK), dtype=input_dtype)
            V_new_fragment = T.alloc_fragment((block_S, block_DV), dtype=accum_dtype)
            V_new_shared = T.alloc_shared((block_S, block_DV), dtype=input_dtype)
            K_shared = T.alloc_shared((block_S, DK), dtype=input_dtype)
            G_last_local = T.alloc_var(T.float32)
            G_shared = T.alloc_shared((block_S, block_DV), dtype="float32")
            G_fragment = T.alloc_fragment((block_S, block_DV), dtype="float32")
            T.annotate_layout(
                {
                    U_shared: tilelang.layout.make_swizzled_layout(U_shared),
                    G_shared: tilelang.layout.make_swizzled_layout(G_shared),
                }
            )
            T.use_swizzle(10)
            if use_initial_state:
                T.copy(initial_state[bb, bh, 0:DK, bv * block_DV : (bv + 1) * block_DV], b_h_shared)
                T.copy(b_h_shared, b_h_fragment)
            else:
                T.clear(b_h_fragment)
            for i_s in T.Pipelined(T.ceildiv(S, block_S), num_stages=num_stages):
                T.copy(b_h_shared, h[bb, i_s, bh, 0:DK, bv * block_DV : (bv + 1) * block_DV])
                T.copy(W[bb, i_s * block_S : (i_s + 1) * block_S, bh, 0:DK], W_shared)
                T.gemm(W_shared, b_h_shared, V_new_fragment, clear_accum=True)
                T.copy(U[bb, i_s * block_S : (i_s + 1) * block_S, bh, bv * block_DV : (bv + 1) * block_DV], U_shared)
                T.copy(U_shared, U_fragment)
                for i_s2, i_v in T.Parallel(block_S, block_DV):
                    V_new_fragment[i_s2, i_v] = -V_new_fragment[i_s2, i_v] + U_fragment[i_s2, i_v]
                if save_new_value:
                    T.copy(V_new_fragment, dst=V_new_shared)
                    T.copy(
                        V_new_shared,
                        V_new[bb, i_s * block_S : (i_s + 1) * block_S, bh, bv * block_DV : (bv + 1) * block_DV],
                    )
                T.copy(K[bb, i_s * block_S : (i_s + 1) * block_S, bh, 0:DK], K_shared)
                if use_g:
                    G_last_local = G[bb, (i_s + 1) * block_S - 1, bh]
                    for i_s2, i_v in T.Parallel(block_S, block_DV):
                        G_shared[i_s2, i_v] = G[bb, i_s * block_S + i_s2, bh]
                    T.copy(G_shared, G_fragment)
                    for i_s2, i_v in T.Parallel(block_S, block_DV):
                        with T.If(G_last_local - G_fragment[i_s2, i_v] <= 0):
                            with T.Then():
                                V_new_fragment[i_s2, i_v] = V_new_fragment[i_s2, i_v] * T.exp2(
                                    (G_last_local - G_fragment[i_s2, i_v]) * 1.442695
                                )
                            with T.Else():
                                V_new_fragment[i_s2, i_v] = 0
                    G_last_local = T.exp2(G_last_local * 1.442695)
                    for i_k, i_v in T.Parallel(DK, block_DV):
                        b_h_fragment[i_k, i_v] *= G_last_local
                T.copy(V_new_fragment, V_new_shared)
                T.gemm(K_shared, V_new_shared, b_h_fragment, transpose_A=True)
                T.copy(b_h_fragment, b_h_shared)
            if store_final_state:
                T.copy(b_h_fragment, final_state[bb, bh, 0:DK, bv * block_DV : (bv + 1) * block_DV])

    return kernel


def test_chunk_h():
    torch.manual_seed(0)
    B, S, H, DK, DV = 1, 96, 2, 32, 64
    dt = torch.bfloat16
    K = F.normalize(torch.randn(B, S, H, DK, device="cuda"), dim=-1).to(dt)
    W = F.normalize(torch.randn(B, S, H, DK, device="cuda"), dim=-1).to(dt)
    U = torch.randn(B, S, H, DV, device="cuda").to(dt)
    G = F.logsigmoid(torch.randn(B, 3, 32, H, device="cuda")).cumsum(2).view(B, S, H)
    h0 = torch.randn(B, H, DK, DV, device="cuda").to(dt)
    hs, last, vn = chunk_h(B, S, H, DK, DV, "bfloat16", True)(K, W, U, G, h0)
    h = h0.float()
    for c in range(3):
        sl = slice(c * 32, c * 32 + 32)
        torch.testing.assert_close(hs[:, c].float(), h, rtol=5e-2, atol=5e-2)
        v = U[:, sl].float() - torch.einsum("bshk,bhkv->bshv", W[:, sl].float(), h.to(dt).float())
        g = G[:, sl]
        gl = g[:, -1:]
        v2 = v * torch.exp(gl - g)[..., None]
        h = h * torch.exp(gl[:, 0])[..., None, None] + torch.einsum("bshk,bshv->bhkv", K[:, sl].float(), v2)
    torch.testing.assert_close(last, h, rtol=5e-2, atol=5e-2)


# ---- top-k gate, TileKernels style: one warp per token
@tilelang.jit
def get_topk_gate_kernel(num_experts: int, num_topk: int):
    num_threads = 32
    num_tokens = T.dynamic("num_tokens")
    num_aligned = (num_experts + num_threads - 1) // num_threads * num_threads
    per = num_aligned // num_threads

    @T.prim_func
    def topk_gate(
        scores: T.Tensor[(num_tokens, num_experts), T.float32], topk_idx: T.Tensor[(num_tokens, num_topk), T.int64]
    ):
        with T.Kernel(num_tokens, threads=num_threads) as pid:
            tid = T.get_thread_binding()
            loc = T.alloc_local((per,), T.float32)
            for i in T.unroll(per):
                e = i * num_threads + tid
                loc[i] = T.if_then_else(e < num_experts, scores[pid, e], -T.infinity(T.float32))
            for k in T.unroll(num_topk):
                best = T.alloc_var(T.float32, init=-T.infinity(T.float32))
                best_idx = T.alloc_var(T.int32, init=num_aligned)
                for i in T.unroll(per):
                    if loc[i] > best:
                        best = loc[i]
                        best_idx = i * num_threads + tid
                mx = T.warp_reduce_max(best)
                cand = T.Select(best == mx, best_idx, T.int32(num_aligned))
                win = T.warp_reduce_min(cand)
                if tid == 0:
                    topk_idx[pid, k] = win
                for i in T.unroll(per):
                    if i * num_threads + tid == win:
                        loc[i] = -T.infinity(T.float32)

    return topk_gate


def test_topk_gate():
    torch.manual_seed(0)
    for E, K in ((72, 6), (64, 8), (256, 8)):
        s = torch.randn(19, E, device="cuda")
        out = torch.empty(19, K, dtype=torch.int64, device="cuda")
        get_topk_gate_kernel(E, K)(s, out)
        assert torch.equal(out, s.topk(K).indices)


# ---- hyper connection: pre (norm + small gemm split) and sinkhorn
@tilelang.jit(
    pass_configs={
        tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
        tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True,
        tilelang.PassConfigKey.TL_PTXAS_REGISTER_USAGE_LEVEL: 10,
        tilelang.PassConfigKey.TL_DISABLE_VECTORIZE_256: True,
    }
)
def mhc_pre(
    hidden: int,
    rms_eps: float,
    pre_eps: float,
    sinkhorn_eps: float,
    post_mult: float,
    sinkhorn_repeat: int,
    n_splits: int = 4,
    mult: int = 4,
):
    num_tokens = T.dynamic("num_tokens")
    mult3 = mult * (2 + mult)
    hidden_block = math.gcd(64, hidden)

    @T.prim_func
    def main(
        gemm_out_mul: T.Tensor[(n_splits, num_tokens, mult3), T.float32],
        gemm_out_sqrsum: T.Tensor[(n_splits, num_tokens), T.float32],
        hc_scale: T.Tensor[(3,), T.float32],
        hc_base: T.Tensor[(mult3,), T.float32],
        residual: T.Tensor[(num_tokens, mult, hidden), T.bfloat16],
        post_mix: T.Tensor[(num_tokens, mult), T.float32],
        comb_mix: T.Tensor[(num_tokens, mult * mult), T.float32],
        layer_input: T.Tensor[(num_tokens, hidden), T.bfloat16],
    ):
        with T.Kernel(num_tokens, threads=96) as i:
            rms = T.alloc_fragment(1, T.float32)
            mixes = T.alloc_fragment(mult3, T.float32)
            T.clear(mixes)
            rms[0] = 0
            for i_split in T.serial(n_splits):
                rms[0] += gemm_out_sqrsum[i_split, i]
            rms[0] = T.rsqrt(rms[0] / (mult * hidden) + rms_eps)
            for j in T.Parallel(mult3):
                mixes[j] = 0
                for i_split in T.serial(n_splits):
                    mixes[j] += gemm_out_mul[i_split, i, j]
                mixes[j] *= rms[0]
            mixes_shared = T.alloc_shared(mult3, T.float32)
            T.copy(mixes, mixes_shared)
            if T.get_thread_binding() < 32:
                cm = T.alloc_fragment((mult, mult), T.float32)
                for j in T.Parallel(mult):
                    post_mix[i, j] = T.sigmoid(mixes_shared[j + mult] * hc_scale[1] + hc_base[j + mult]) * post_mult
                for j, k in T.Parallel(mult, mult):
                    cm[j, k] = mixes_shared[j * mult + k + mult * 2] * hc_scale[2] + hc_base[j * mult + k + mult * 2]
                row_sum = T.alloc_fragment(mult, T.float32)
                col_sum = T.alloc_fragment(mult, T.float32)
                row_max = T.alloc_fragment(mult, T.float32)
                T.reduce_max(cm, row_max, dim=1)
                for j, k in T.Parallel(mult, mult):
                    cm[j, k] = T.exp(cm[j, k] - row_max[j])
                T.reduce_sum(cm, row_sum, dim=1)
                for j, k in T.Parallel(mult, mult):
                    cm[j, k] = cm[j, k] / row_sum[j] + sinkhorn_eps
                T.reduce_sum(cm, col_sum, dim=0)
                for j, k in T.Parallel(mult, mult):
                    cm[j, k] = cm[j, k] / (col_sum[k] + sinkhorn_eps)
                for _ in T.serial(sinkhorn_repeat - 1):
                    T.reduce_sum(cm, row_sum, dim=1)
                    for j, k in T.Parallel(mult, mult):
                        cm[j, k] = cm[j, k] / (row_sum[j] + sinkhorn_eps)
                    T.reduce_sum(cm, col_sum, dim=0)
                    for j, k in T.Parallel(mult, mult):
                        cm[j, k] = cm[j, k] / (col_sum[k] + sinkhorn_eps)
                for j, k in T.Parallel(mult, mult):
                    comb_mix[i, j * mult + k] = cm[j, k]
            else:
                pre_mix_shared = T.alloc_shared(mult, T.float32)
                for j in T.Parallel(mult):
                    pre_mix_shared[j] = T.sigmoid(mixes_shared[j] * hc_scale[0] + hc_base[j]) + pre_eps
                for i0_h in T.Pipelined(hidden // hidden_block, num_stages=2):
                    xs = T.alloc_shared((mult, hidden_block), T.bfloat16)
                    xl = T.alloc_fragment((mult, hidden_block), T.float32)
                    T.copy(residual[i, 0, i0_h * hidden_block], xs)
                    T.copy(xs, xl)
                    ol = T.alloc_fragment(hidden_block, T.float32)
                    T.clear(ol)
                    for i_hc in T.serial(mult):
                        pre = pre_mix_shared[i_hc]
                        for i1_h in T.Parallel(hidden_block):
                            ol[i1_h] += pre * xl[i_hc, i1_h]
                    T.copy(ol, layer_input[i, i0_h * hidden_block])

    return main


def test_mhc_pre():
    torch.manual_seed(0)
    n, hid, m = 5, 192, 4
    mul = torch.randn(4, n, 24, device="cuda")
    sq = torch.rand(4, n, device="cuda") * hid
    sc, base = torch.rand(3, device="cuda"), torch.randn(24, device="cuda")
    res = torch.randn(n, m, hid, device="cuda", dtype=torch.bfloat16)
    post, comb, li = (
        torch.empty(n, m, device="cuda"),
        torch.empty(n, 16, device="cuda"),
        torch.empty(n, hid, dtype=torch.bfloat16, device="cuda"),
    )
    mhc_pre(hid, 1e-6, 1e-2, 1e-6, 2.0, 5)(mul, sq, sc, base, res, post, comb, li)
    mix = mul.sum(0) * torch.rsqrt(sq.sum(0) / (m * hid) + 1e-6)[:, None]
    pre = torch.sigmoid(mix[:, :4] * sc[0] + base[:4]) + 1e-2
    torch.testing.assert_close(post, torch.sigmoid(mix[:, 4:8] * sc[1] + base[4:8]) * 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(li.float(), (pre[..., None] * res.float()).sum(1), rtol=1e-2, atol=1e-2)
    cm = torch.softmax((mix[:, 8:] * sc[2] + base[8:]).view(n, 4, 4), -1) + 1e-6
    cm = cm / (cm.sum(1, keepdim=True) + 1e-6)
    for _ in range(4):
        cm = cm / (cm.sum(2, keepdim=True) + 1e-6)
        cm = cm / (cm.sum(1, keepdim=True) + 1e-6)
    torch.testing.assert_close(comb, cm.view(n, 16), rtol=1e-3, atol=1e-4)


# ---- swiglu backward with per channel fp8 cast and transpose, vector locals
@tilelang.jit
def swiglu_cast(hidden, group=128, block_k=32):
    num_tokens = T.dynamic("num_tokens")

    @T.macro
    def silu(x):
        return x / (1.0 + T.exp(-x))

    @T.prim_func
    def main(
        x: T.Tensor[(num_tokens, hidden * 2), T.bfloat16],
        w: T.Tensor[(num_tokens,), T.float32],
        out: T.Tensor[(num_tokens, hidden), T.float8_e4m3fn],
        sf: T.Tensor[(T.ceildiv(num_tokens, group), hidden), T.float32],
    ):
        with T.Kernel(T.ceildiv(hidden, block_k), T.ceildiv(num_tokens, group), threads=128) as (px, py):
            xl = T.alloc_fragment((group, block_k), T.float32)
            amax = T.alloc_reducer((block_k,), T.float32, op="max", replication="all")
            T.fill(amax, 1e-4)
            for i, j in T.Parallel(group, block_k):
                row = py * group + i
                gate, up = x[row, px * block_k + j], x[row, hidden + px * block_k + j]
                xl[i, j] = silu(T.cast(gate, T.float32)) * T.cast(up, T.float32) * w[row]
                amax[j] = T.max(amax[j], T.abs(xl[i, j]))
            T.finalize_reducer(amax)
            for j in T.Parallel(block_k):
                sf[py, px * block_k + j] = amax[j] / 448.0
            for i, j in T.Parallel(group, block_k):
                out[py * group + i, px * block_k + j] = T.clamp(xl[i, j] * (448.0 / amax[j]), -448.0, 448.0)

    return main


def test_swiglu_cast():
    torch.manual_seed(0)
    x = torch.randn(200, 128, device="cuda", dtype=torch.bfloat16)
    w = torch.rand(200, device="cuda")
    out = torch.empty(200, 64, dtype=torch.float8_e4m3fn, device="cuda")
    sf = torch.empty(2, 64, device="cuda")
    swiglu_cast(64)(x, w, out, sf)
    g, u = x.float().chunk(2, -1)
    y = F.silu(g) * u * w[:, None]
    for c in range(2):
        sl = slice(c * 128, min(200, c * 128 + 128))
        s = y[sl].abs().amax(0).clamp(min=1e-4) / 448
        torch.testing.assert_close(sf[c], s)
        torch.testing.assert_close(out[sl].float() * s, y[sl], rtol=0.07, atol=1e-2)


# ---- norm split-k with eager style and get_tir
@tilelang.jit
def rms_norm(A, blk_m: int = 1, eps: float = 1e-12):
    M, N = T.const("M, N")
    dtype = T.float
    A: T.Tensor[[M, N], dtype]
    B = T.empty((M, N), dtype)
    with T.Kernel(T.ceildiv(M, blk_m), threads=128) as bx:
        A_shared = T.alloc_shared((blk_m, N), dtype)
        A_pow_local = T.alloc_fragment((blk_m, N), dtype)
        A_local = T.alloc_fragment((blk_m, N), dtype)
        A_powsum = T.alloc_fragment((blk_m,), dtype)
        T.copy(A[bx * blk_m : (bx + 1) * blk_m, :], A_shared)
        T.copy(A_shared, A_local)
        for i, j in T.Parallel(blk_m, N):
            A_pow_local[i, j] = A_local[i, j] * A_local[i, j]
        T.reduce_sum(A_pow_local, A_powsum, dim=1)
        for i in T.Parallel(blk_m):
            A_powsum[i] = T.rsqrt(A_powsum[i] / N + eps)
        for i, j in T.Parallel(blk_m, N):
            A_local[i, j] *= A_powsum[i]
        T.copy(A_local, B[bx * blk_m : (bx + 1) * blk_m, :])
    return B


def test_rms_eager_profile():
    x = torch.randn(17, 100, device="cuda")
    k = rms_norm.compile(M=17, N=100, blk_m=4)
    torch.testing.assert_close(k(x), x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-12), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        rms_norm(x, blk_m=2), x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-12), rtol=1e-4, atol=1e-5
    )
    prof = k.get_profiler()
    prof.assert_allclose(lambda x: x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-12), rtol=0.01, atol=0.01)
    lat = prof.do_bench(warmup=1, rep=1)
    lat2 = prof.do_bench(lambda x: x * 2, warmup=1, rep=1)
    lat3 = tilelang.profiler.do_bench(
        lambda: rms_norm(x), warmup=1, rep=1, backend="cudagraph", quantiles=[0.5], return_mode="median"
    )
    assert lat > 0 and lat2 > 0 and lat3 > 0


class Dense(nn.Module):
    def __init__(self, i, o):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(o, i, dtype=torch.float16))
        self.register_buffer("zero", torch.zeros(o, device="cuda"))

    def forward(self, x):
        M, K = x.shape
        N = self.weight.shape[0]
        return linear(M, N, K)(x, self.weight) + self.zero.to(x.dtype)


@tilelang.jit(out_idx=-1, target="cuda", execution_backend="tvm_ffi", verbose=False)
def linear(M, N, K, BM=32, BN=32, BK=32):
    @T.prim_func
    def linear_kernel(x: T.Buffer((M, K), "float16"), w: T.Buffer((N, K), "float16"), y: T.Buffer((M, N), "float16")):
        with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=128) as (bx, by):
            xs = T.alloc_shared((BM, BK), x.dtype)
            ws = T.alloc_shared((BN, BK), w.dtype)
            acc = T.alloc_fragment((BM, BN), T.float)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, BK), num_stages=3):
                T.copy(x[by * BM, k * BK], xs)
                T.copy(w[bx * BN, k * BK], ws)
                T.gemm(xs, ws, acc, False, True)
            T.copy(acc, y[by * BM, bx * BN])

    return linear_kernel


def test_module():
    m = Dense(70, 50).cuda()
    x = torch.randn(9, 70, device="cuda", dtype=torch.half)
    with torch.no_grad(), torch.cuda.device(0):
        torch.testing.assert_close(m(x), x @ m.weight.T, rtol=1e-2, atol=1e-1)
    print(linear.get_kernel_source(9, 50, 70)[:20])


if __name__ == "__main__":
    tilelang.testing.main()
