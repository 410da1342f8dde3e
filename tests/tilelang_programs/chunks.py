"""Chunks and splits: gated delta rule, triangular inverses, latent attention by split and combine, persistent tiles."""

import pytest
import tilelang
import tilelang as tl
import tilelang.language as T
import tilelang.testing
import torch
import torch.nn.functional as F


@tilelang.jit(out_idx=[-2, -1], pass_configs={tilelang.PassConfigKey.TL_ENABLE_FAST_MATH: True})
def tilelang_chunk_gated_delta_rule_fwd_h(
    B,
    S,
    H,
    DK,
    DV,
    input_dtype,
    output_dtype,
    accum_dtype,
    gate_dtype,
    state_dtype,
    chunk_size,
    use_g,
    use_initial_state,
    block_DK=32,
    block_DV=32,
    threads=128,
    num_stages=1,
):
    block_S = chunk_size
    BS = T.ceildiv(S, block_S)

    @T.prim_func
    def kernel(
        K: T.Tensor((B, S, H, DK), dtype=input_dtype),
        W: T.Tensor((B, S, H, DK), dtype=input_dtype),
        U: T.Tensor((B, S, H, DV), dtype=input_dtype),
        G: T.Tensor((B, S, H), dtype=gate_dtype),
        h0: T.Tensor((B, H, DK, DV), dtype=input_dtype),
        h: T.Tensor((B, BS, H, DK, DV), dtype=output_dtype),
        V_new: T.Tensor((B, S, H, DV), dtype=output_dtype),
    ):
        with T.Kernel(T.ceildiv(DV, block_DV), B * H, threads=threads) as (bv, bbh):
            bb, bh = bbh // H, bbh % H
            b_h_shared = T.alloc_shared((DK, block_DV), dtype=input_dtype)
            b_h_fragment = T.alloc_fragment((DK, block_DV), dtype=accum_dtype)
            U_shared = T.alloc_shared((block_S, block_DV), dtype=input_dtype)
            U_fragment = T.alloc_fragment((block_S, block_DV), dtype=accum_dtype)
            W_shared = T.alloc_shared((block_S, DK), dtype=input_dtype)
            V_new_fragment = T.alloc_fragment((block_S, block_DV), dtype=accum_dtype)
            V_new_shared = T.alloc_shared((block_S, block_DV), dtype=output_dtype)
            K_shared = T.alloc_shared((block_S, DK), dtype=input_dtype)
            G_last_local = T.alloc_local((1), dtype=gate_dtype)
            G_shared = T.alloc_shared((block_S, block_DV), dtype=gate_dtype)
            G_fragment = T.alloc_fragment((block_S, block_DV), dtype=gate_dtype)
            T.annotate_layout(
                {
                    b_h_shared: tilelang.layout.make_swizzled_layout(b_h_shared),
                    U_shared: tilelang.layout.make_swizzled_layout(U_shared),
                    W_shared: tilelang.layout.make_swizzled_layout(W_shared),
                    V_new_shared: tilelang.layout.make_swizzled_layout(V_new_shared),
                    K_shared: tilelang.layout.make_swizzled_layout(K_shared),
                    G_shared: tilelang.layout.make_swizzled_layout(G_shared),
                }
            )
            T.use_swizzle(10)
            if use_initial_state:
                T.copy(h0[bb, bh, 0:DK, bv * block_DV : (bv + 1) * block_DV], b_h_shared)
                T.copy(b_h_shared, b_h_fragment)
            else:
                T.clear(b_h_fragment)
            for i_s in T.Pipelined(T.ceildiv(S, block_S), num_stages=num_stages):
                T.copy(b_h_fragment, b_h_shared)
                T.copy(b_h_shared, h[bb, i_s, bh, 0:DK, bv * block_DV : (bv + 1) * block_DV])
                T.copy(W[bb, i_s * block_S : (i_s + 1) * block_S, bh, 0:DK], W_shared)
                T.gemm(W_shared, b_h_shared, V_new_fragment, clear_accum=True)
                T.copy(U[bb, i_s * block_S : (i_s + 1) * block_S, bh, bv * block_DV : (bv + 1) * block_DV], U_shared)
                T.copy(U_shared, U_fragment)
                for i_s2, i_v in T.Parallel(block_S, block_DV):
                    V_new_fragment[i_s2, i_v] = -V_new_fragment[i_s2, i_v] + U_fragment[i_s2, i_v]
                T.copy(V_new_fragment, dst=V_new_shared)
                T.copy(
                    V_new_shared,
                    V_new[bb, i_s * block_S : (i_s + 1) * block_S, bh, bv * block_DV : (bv + 1) * block_DV],
                )
                T.copy(K[bb, i_s * block_S : (i_s + 1) * block_S, bh, 0:DK], K_shared)
                if use_g:
                    G_last_local[0] = G[bb, (i_s + 1) * block_S - 1, bh]
                    for i_s2, i_v in T.Parallel(block_S, block_DV):
                        G_shared[i_s2, i_v] = G[bb, i_s * block_S + i_s2, bh]
                    T.copy(G_shared, G_fragment)
                    for i_s2, i_v in T.Parallel(block_S, block_DV):
                        V_new_fragment[i_s2, i_v] = (
                            V_new_fragment[i_s2, i_v] * T.exp2((G_last_local[0] - G_fragment[i_s2, i_v]) * 1.442695)
                            if G_last_local[0] - G_fragment[i_s2, i_v] <= 0
                            else 0
                        )
                    G_last_local[0] = T.exp2(G_last_local[0] * 1.442695)
                    for i_k, i_v in T.Parallel(DK, block_DV):
                        b_h_fragment[i_k, i_v] *= G_last_local[0]
                T.copy(V_new_fragment, V_new_shared)
                T.gemm(K_shared, V_new_shared, b_h_fragment, transpose_A=True)

    return kernel


def test_gdn():
    B, S, H, DK, DV, C = 1, 128, 2, 32, 64, 32
    dt = torch.float16
    K = F.normalize(torch.randn(B, S, H, DK, device="cuda"), dim=-1).to(dt)
    W = (torch.randn(B, S, H, DK, device="cuda") * 0.1).to(dt)
    U = torch.randn(B, S, H, DV, device="cuda").to(dt)
    G = -torch.rand(B, S // C, C, H, device="cuda").cumsum(2).view(B, S, H) * 0.05
    h0 = torch.randn(B, H, DK, DV, device="cuda").to(dt)
    k = tilelang_chunk_gated_delta_rule_fwd_h(
        B, S, H, DK, DV, "float16", "float16", "float32", "float32", "float32", C, True, True
    )
    h, vn = k(K, W, U, G, h0)
    st = h0.float()
    for c in range(S // C):
        sl = slice(c * C, (c + 1) * C)
        torch.testing.assert_close(h[:, c].float(), st, rtol=2e-2, atol=2e-2)
        v = U[:, sl].float() - torch.einsum("bshk,bhkv->bshv", W[:, sl].float(), st)
        torch.testing.assert_close(vn[:, sl].float(), v, rtol=2e-2, atol=2e-2)
        gl = G[:, (c + 1) * C - 1]
        st = st * gl.exp()[:, :, None, None] + torch.einsum(
            "bshk,bshv->bhkv", K[:, sl].float(), v * (gl[:, None] - G[:, sl]).exp()[..., None]
        )


@tilelang.jit(out_idx=[-1])
def solve_tril(B, S, H, BT, dtype="float32"):
    @T.prim_func
    def main(A: T.Tensor((B, S, H, BT), dtype), Ai: T.Tensor((B, S, H, BT), dtype)):
        with T.Kernel(T.ceildiv(S, BT), B * H, threads=64) as (bt, bbh):
            bb, bh = bbh // H, bbh % H
            s = T.alloc_shared((BT, BT), dtype)
            x = T.alloc_fragment((BT, BT), dtype)
            row = T.alloc_fragment((BT,), dtype)
            T.copy(A[bb, bt * BT : (bt + 1) * BT, bh, :], s)
            for i, j in T.Parallel(BT, BT):
                x[i, j] = T.if_then_else(i > j, -s[i, j], 0)
            T.copy(x, s)
            for i in T.serial(1, BT):
                T.clear(row)
                for k in T.serial(i):
                    for j in T.Parallel(BT):
                        row[j] += s[i, k] * s[k, j]
                for j in T.Parallel(BT):
                    if j < i:
                        s[i, j] = s[i, j] + row[j]
            for i in T.Parallel(BT):
                s[i, i] = s[i, i] + 1
            T.copy(s, Ai[bb, bt * BT : (bt + 1) * BT, bh, :])

    return main


def test_solve_tril():
    B, S, H, BT = 1, 64, 2, 16
    A = torch.randn(B, S, H, BT, device="cuda") * 0.3
    got = solve_tril(B, S, H, BT)(A)
    m = A.view(B, S // BT, BT, H, BT).transpose(2, 3).tril(-1) + torch.eye(BT)
    want = torch.linalg.inv(m).transpose(2, 3).reshape(B, S, H, BT)
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


def mla_decode(
    batch, heads, kv_head_num, seqlen_kv, dim, pe_dim, block_N=32, block_H=16, num_split=2, threads=128, dtype="float16"
):
    scale = (1.0 / (dim + pe_dim)) ** 0.5 * 1.44269504
    accum = "float"
    kv_group_num = heads // kv_head_num
    VALID = min(block_H, kv_group_num)

    @T.macro
    def split(Q, Q_pe, KV, K_pe, glse, Output_partial):
        with T.Kernel(batch, heads // VALID, num_split, threads=threads) as (bx, by, bz):
            Q_shared = T.alloc_shared([block_H, dim], dtype)
            S_shared = T.alloc_shared([block_H, block_N], dtype)
            Q_pe_shared = T.alloc_shared([block_H, pe_dim], dtype)
            KV_shared = T.alloc_shared([block_N, dim], dtype)
            K_pe_shared = T.alloc_shared([block_N, pe_dim], dtype)
            acc_s = T.alloc_fragment([block_H, block_N], accum)
            acc_s_cast = T.alloc_fragment([block_H, block_N], dtype)
            acc_o = T.alloc_fragment([block_H, dim], accum)
            m = T.alloc_fragment([block_H], accum)
            mp = T.alloc_fragment([block_H], accum)
            sc = T.alloc_fragment([block_H], accum)
            ss = T.alloc_fragment([block_H], accum)
            ls = T.alloc_fragment([block_H], accum)
            cur_kv_head = by // (kv_group_num // block_H)
            T.use_swizzle(10)
            T.copy(Q[bx, by * VALID : (by + 1) * VALID, :], Q_shared)
            T.copy(Q_pe[bx, by * VALID : (by + 1) * VALID, :], Q_pe_shared)
            T.fill(acc_o, 0)
            T.fill(ls, 0)
            T.fill(m, -T.infinity(accum))
            loop_range = T.ceildiv((seqlen_kv // num_split), block_N)
            for k in T.Pipelined(loop_range, num_stages=2):
                kv_start = (seqlen_kv // num_split) * bz + k * block_N
                kv_end = (seqlen_kv // num_split) * bz + (k + 1) * block_N
                T.copy(KV[bx, kv_start:kv_end, cur_kv_head, :], KV_shared)
                T.copy(K_pe[bx, kv_start:kv_end, cur_kv_head, :], K_pe_shared)
                T.clear(acc_s)
                T.gemm(Q_shared, KV_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                T.gemm(Q_pe_shared, K_pe_shared, acc_s, transpose_B=True, policy=T.GemmWarpPolicy.FullCol)
                T.copy(m, mp)
                T.fill(m, -T.infinity(accum))
                T.reduce_max(acc_s, m, dim=1, clear=False)
                for i in T.Parallel(block_H):
                    m[i] = T.max(m[i], mp[i])
                for i in T.Parallel(block_H):
                    sc[i] = T.exp2(mp[i] * scale - m[i] * scale)
                for i, j in T.Parallel(block_H, block_N):
                    acc_s[i, j] = T.exp2(acc_s[i, j] * scale - m[i] * scale)
                T.reduce_sum(acc_s, ss, dim=1)
                T.copy(acc_s, S_shared)
                T.copy(S_shared, acc_s_cast)
                for i in T.Parallel(block_H):
                    ls[i] = ls[i] * sc[i] + ss[i]
                for i, j in T.Parallel(block_H, dim):
                    acc_o[i, j] *= sc[i]
                T.gemm(acc_s_cast, KV_shared, acc_o, policy=T.GemmWarpPolicy.FullCol)
            for i, j in T.Parallel(block_H, dim):
                acc_o[i, j] /= ls[i]
            for i in T.Parallel(block_H):
                ls[i] = T.log2(ls[i]) + m[i] * scale
            T.copy(ls, glse[bx, by * VALID : (by + 1) * VALID, bz])
            T.copy(acc_o, Output_partial[bx, by * VALID : (by + 1) * VALID, bz, :])

    @T.macro
    def combine(glse, Output_partial, Output):
        with T.Kernel(heads, batch, threads=128) as (by, bz):
            po = T.alloc_fragment([dim], dtype)
            o = T.alloc_fragment([dim], accum)
            lse_local_split = T.alloc_var(accum)
            lse_logsum = T.alloc_var(accum)
            lse_max = T.alloc_var(accum)
            sl = T.alloc_var(accum)
            T.clear(o)
            lse_logsum = 0
            lse_max = -T.infinity(accum)
            for k in T.serial(num_split):
                lse_max = T.max(lse_max, glse[bz, by, k])
            for k in T.Pipelined(num_split, num_stages=1):
                lse_local_split = glse[bz, by, k]
                lse_logsum += T.exp2(lse_local_split - lse_max)
            lse_logsum = T.log2(lse_logsum) + lse_max
            for k in T.serial(num_split):
                for i in T.Parallel(dim):
                    po[i] = Output_partial[bz, by, k, i]
                lse_local_split = glse[bz, by, k]
                sl = T.exp2(lse_local_split - lse_logsum)
                for i in T.Parallel(dim):
                    o[i] += po[i] * sl
            for i in T.Parallel(dim):
                Output[bz, by, i] = o[i]

    @T.prim_func
    def main_split(
        Q: T.Tensor([batch, heads, dim], dtype),
        Q_pe: T.Tensor([batch, heads, pe_dim], dtype),
        KV: T.Tensor([batch, seqlen_kv, kv_head_num, dim], dtype),
        K_pe: T.Tensor([batch, seqlen_kv, kv_head_num, pe_dim], dtype),
        glse: T.Tensor([batch, heads, num_split], dtype),
        Output_partial: T.Tensor([batch, heads, num_split, dim], dtype),
        Output: T.Tensor([batch, heads, dim], dtype),
    ):
        split(Q, Q_pe, KV, K_pe, glse, Output_partial)
        combine(glse, Output_partial, Output)

    return main_split


def test_mla():
    b, h, s, d, pe = 2, 32, 128, 64, 16
    program = mla_decode(b, h, 1, s, d, pe)
    kernel = tilelang.compile(program, out_idx=[6])
    profiler = kernel.get_profiler(tensor_supply_type=tilelang.TensorSupplyType.Randn)

    def ref(q, qpe, kv, kpe, *rest):
        qq = torch.cat([q, qpe], -1).float()
        kk = torch.cat([kv, kpe], -1).float()[:, :, 0]
        a = torch.softmax(torch.einsum("bhd,bsd->bhs", qq, kk) / (d + pe) ** 0.5, -1)
        return torch.einsum("bhs,bsd->bhd", a, kv.float()[:, :, 0]).half()

    profiler.assert_allclose(ref, rtol=1e-2, atol=1e-2, max_mismatched_ratio=0.01)
    assert profiler.do_bench(warmup=1) > 0


@tilelang.jit
def conv_eager(
    data,
    kernel_flat,
    out,
    S: int = 1,
    D: int = 1,
    P: int = 1,
    block_M: int = 32,
    block_N: int = 32,
    block_K: int = 32,
    KH: int = 3,
    KW: int = 3,
):
    N, H, W, C, F_ = T.const("N, H, W, C, F")
    OH, OW = T.const("OH, OW")
    KF = T.const("KF")
    data: T.Tensor[(N, H, W, C), T.float16]
    kernel_flat: T.Tensor[(KF, F_), T.float16]
    out: T.Tensor[(N, OH, OW, F_), T.float16]
    with T.Kernel(T.ceildiv(F_, block_N), T.ceildiv(N * OH * OW, block_M), threads=128) as (bx, by):
        data_shared = T.alloc_shared((block_M, block_K), T.float16)
        kernel_shared = T.alloc_shared((block_K, block_N), T.float16)
        out_local = T.alloc_fragment((block_M, block_N), T.float32)
        out_flat = T.reshape(out, (N * OH * OW, F_))
        T.clear(out_local)
        for k_iter in T.Pipelined(T.ceildiv(KH * KW * C, block_K), num_stages=2):
            for i, j in T.Parallel(block_M, block_K):
                k = k_iter * block_K + j
                m = by * block_M + i
                access_h = m % (OH * OW) // OW * S + k // (KW * C) * D - P
                access_w = m % OW * S + k // C % KW * D - P
                in_bound = (access_h >= 0) and (access_w >= 0) and (access_h < H) and (access_w < W)
                data_shared[i, j] = T.if_then_else(in_bound, data[m // (OH * OW), access_h, access_w, k % C], 0)
            T.copy(kernel_flat[k_iter * block_K, bx * block_N], kernel_shared)
            T.gemm(data_shared, kernel_shared, out_local)
        T.copy(out_local, out_flat[by * block_M, bx * block_N])


def test_conv():
    n, h, w, c, f = 2, 9, 8, 16, 24
    x = torch.randn(n, h, w, c, device="cuda").half()
    k = torch.randn(3, 3, c, f, device="cuda").half()
    o = torch.empty(n, h, w, f, device="cuda", dtype=torch.float16)
    conv_eager(x, k.view(-1, f), o)
    ref = F.conv2d(x.permute(0, 3, 1, 2).float(), k.permute(3, 2, 0, 1).float(), padding=1).permute(0, 2, 3, 1)
    torch.testing.assert_close(o.float(), ref, rtol=2e-2, atol=5e-2)


def splitk_gemv(N, K, BLOCK_N=4, BLOCK_K=64, reduce_threads=16, dtype="float16", accum_dtype="float"):
    TILE_K = 4

    @T.prim_func
    def main(A: T.Tensor((K,), dtype), B: T.Tensor((N, K), dtype), C: T.Tensor((N,), dtype)):
        with T.Kernel(T.ceildiv(N, BLOCK_N), threads=(BLOCK_N, reduce_threads)) as bn:
            tn = T.get_thread_binding(0)
            tk = T.get_thread_binding(1)
            A_local = T.alloc_local((TILE_K,), dtype)
            B_local = T.alloc_local((TILE_K,), dtype)
            C_accum = T.alloc_local((1,), accum_dtype)
            C_reduced = T.alloc_local((1,), accum_dtype)
            T.clear(C_accum)
            for bk in T.serial(T.ceildiv(K, BLOCK_K)):
                for k in T.vectorized(TILE_K):
                    A_local[k] = A[bk * BLOCK_K + tk * TILE_K + k]
                    B_local[k] = B[bn * BLOCK_N + tn, bk * BLOCK_K + tk * TILE_K + k]
                for k in T.serial(TILE_K):
                    C_accum[0] += A_local[k].astype(accum_dtype) * B_local[k].astype(accum_dtype)
            with T.attr(
                T.comm_reducer(lambda x, y: x + y, [T.Cast(accum_dtype, 0)]),
                "reduce_scope",
                T.reinterpret(T.uint64(0), dtype="handle"),
            ):
                T.evaluate(T.tvm_thread_allreduce(T.uint32(1), C_accum[0], True, C_reduced[0], tk, dtype="handle"))
            C[bn * BLOCK_N + tn] = C_reduced[0]

    return main


def test_gemv():
    N, K = 40, 192
    k = tl.compile(splitk_gemv(N, K), out_idx=-1, target="cuda")
    a, b = torch.randn(K, device="cuda").half(), torch.randn(N, K, device="cuda").half()
    torch.testing.assert_close(k(a, b), b @ a, rtol=1e-2, atol=1e-1)


@tilelang.jit(out_idx=[-1])
def matmul_persistent(
    M,
    N,
    K,
    block_M,
    block_N,
    block_K,
    threads,
    num_stages,
    dtype=T.float16,
    accum_dtype=T.float32,
    use_persistent_primitive=True,
):
    sm_num = tilelang.carver.arch.driver.get_num_sms()
    m_blocks, n_blocks = T.ceildiv(M, block_M), T.ceildiv(N, block_N)
    waves = T.ceildiv(m_blocks * n_blocks, sm_num)
    group_size = 8

    @T.prim_func
    def main_persistent_primitive(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), dtype)):
        with T.Kernel(sm_num, threads=threads) as (block_id):
            As = T.alloc_shared((block_M, block_K), dtype)
            Bs = T.alloc_shared((block_K, block_N), dtype)
            Cl = T.alloc_fragment((block_M, block_N), accum_dtype)
            Cs = T.alloc_shared((block_M, block_N), dtype)
            for bx, by in T.Persistent([T.ceildiv(M, block_M), T.ceildiv(N, block_N)], sm_num, block_id):
                T.clear(Cl)
                for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=num_stages):
                    T.copy(A[bx * block_M, k * block_K], As)
                    T.copy(B[k * block_K, by * block_N], Bs)
                    T.gemm(As, Bs, Cl)
                T.copy(Cl, Cs)
                T.copy(Cs, C[bx * block_M, by * block_N])

    @T.prim_func
    def main(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), dtype)):
        with T.Kernel(sm_num, threads=threads) as (block_id):
            As = T.alloc_shared((block_M, block_K), dtype)
            Bs = T.alloc_shared((block_K, block_N), dtype)
            Cl = T.alloc_fragment((block_M, block_N), accum_dtype)
            for w in T.serial(waves):
                tile_id = sm_num * w + block_id
                bx = (tile_id // group_size) % m_blocks
                by = (tile_id % group_size) + (tile_id // group_size) // m_blocks * group_size
                if bx * block_M < M and by * block_N < N:
                    T.clear(Cl)
                    for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=num_stages):
                        T.copy(A[bx * block_M, k * block_K], As)
                        T.copy(B[k * block_K, by * block_N], Bs)
                        T.gemm(As, Bs, Cl)
                    T.copy(Cl, C[bx * block_M, by * block_N])

    return main_persistent_primitive if use_persistent_primitive else main


@pytest.mark.parametrize("prim", [True, False])
def test_persistent(prim):
    a, b = torch.randn(300, 64, device="cuda").half(), torch.randn(64, 200, device="cuda").half()
    k = matmul_persistent(300, 200, 64, 32, 32, 32, 128, 2, use_persistent_primitive=prim)
    torch.testing.assert_close(k(a, b), a @ b, rtol=1e-2, atol=1e-1)


if __name__ == "__main__":
    tilelang.testing.main()
