"""Layers forward and backward: retention, weights of four bits, experts, hashes."""

import math

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
import torch.nn.functional as F
from tilelang.engine.callback import register_cuda_postproc_callback


# ---------------- retention / linear attention with decay, eager scheduling over chunks
@tilelang.jit(out_idx=[-1])
def chunk_retention_fwd(B, S, H, D, DV, BT=32, BK=32, BV=32, dtype="float16"):
    accum = "float32"
    NK = tilelang.cdiv(D, BK)

    @T.prim_func
    def main(
        Q: T.Tensor([B, S, H, D], dtype),
        K: T.Tensor([B, S, H, D], dtype),
        V: T.Tensor([B, S, H, DV], dtype),
        O: T.Tensor([NK, B, S, H, DV], dtype),
    ):
        with T.Kernel(T.ceildiv(DV, BV), NK, B * H) as (i_v, i_k, i_bh):
            i_b = i_bh // H
            i_h = i_bh % H
            log_decay = T.alloc_var("float32")
            log_decay = T.log2(1 - T.exp2(-5.0 - 1.0 * i_h))
            q = T.alloc_shared([BT, BK], dtype)
            k = T.alloc_shared([BT, BK], dtype)
            v = T.alloc_shared([BT, BV], dtype)
            h = T.alloc_fragment([BK, BV], accum)
            h_shared = T.alloc_shared([BK, BV], dtype)
            s = T.alloc_fragment([BT, BT], accum)
            s_shared = T.alloc_shared([BT, BT], dtype)
            o = T.alloc_fragment([BT, BV], accum)
            T.clear(h)
            T.use_swizzle(4)
            T.annotate_layout(
                {
                    s_shared: tilelang.layout.make_swizzled_layout(s_shared),
                    h_shared: tilelang.layout.make_swizzled_layout(h_shared),
                }
            )
            for i in T.Pipelined(0, T.ceildiv(S, BT)):
                for row, col in T.Parallel(BT, BK):
                    q[row, col] = Q[i_b, i * BT + row, i_h, i_k * BK + col] * D**-0.5
                T.copy(K[i_b, i * BT : (i + 1) * BT, i_h, i_k * BK : (i_k + 1) * BK], k)
                T.copy(V[i_b, i * BT : (i + 1) * BT, i_h, i_v * BV : (i_v + 1) * BV], v)
                T.gemm(q, k, s, clear_accum=True, transpose_B=True)
                for row, col in T.Parallel(BT, BT):
                    s_shared[row, col] = T.if_then_else(row >= col, s[row, col] * T.exp2((row - col) * log_decay), 0)
                T.copy(h, h_shared)
                for row, col in T.Parallel(BT, BK):
                    q[row, col] = T.exp2((row + 1) * log_decay) * q[row, col]
                T.gemm(q, h_shared, o, clear_accum=True)
                T.gemm(s_shared, v, o)
                for row, col in T.Parallel(BT, BV):
                    v[row, col] = v[row, col] * T.exp2((BT - row - 1) * log_decay)
                for row, col in T.Parallel(BK, BV):
                    h[row, col] = T.exp2(BT * log_decay) * h[row, col]
                T.copy(o, O[i_k, i_b, i * BT : (i + 1) * BT, i_h, i_v * BV : (i_v + 1) * BV])
                T.gemm(k, v, h, transpose_A=True)

    return main


def test_retention():
    torch.manual_seed(0)
    B, S, H, D, DV = 1, 96, 2, 64, 32
    q, k, v = (torch.randn(B, S, H, d, device="cuda", dtype=torch.float16) for d in (D, D, DV))
    o = chunk_retention_fwd(B, S, H, D, DV)(q, k, v)
    o = o[0] if o.size(0) == 1 else o.sum(0)
    ld = torch.log2(1 - 2.0 ** (-5 - torch.arange(H, device="cuda").float()))
    n = torch.arange(S, device="cuda")
    m = torch.where(n[:, None] >= n, torch.exp2((n[:, None] - n).float() * ld[:, None, None]), 0)
    ref = torch.einsum(
        "bhqk,bkhv->bqhv", torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) * D**-0.5 * m, v.float()
    )
    torch.testing.assert_close(o.float(), ref, rtol=3e-2, atol=3e-2)


# ---------------- fp4 dequant gemm with macros of both kinds, transposed output, bias and permuted scale
def _tir_u8_to_f4_to_bf16(nbit: int, val: T.PrimExpr, pos: T.PrimExpr, scale: T.PrimExpr, dtype: str):
    assert nbit == 4
    assert dtype == "bfloat16"
    assert val.dtype == "uint8"
    mask = (1 << nbit) - 1
    f4 = (val >> (pos.astype("uint8") * nbit)) & T.Cast("uint8", mask)
    s = f4 >> T.Cast("uint8", 3)
    e_f4 = T.Cast("uint16", (f4 >> 1) & 3)
    e_bf16 = T.min(e_f4 + T.Cast("uint16", 126) + T.Cast("uint16", scale), T.Cast("uint16", 255))
    m_f4 = f4 & 1
    val_bf16 = T.reinterpret(
        "bfloat16", ((((T.Cast("uint16", s) << 8) | e_bf16) << 7) | (T.Cast("uint16", m_f4) << 6)).astype("uint16")
    )
    return val_bf16


@tilelang.jit(out_idx=[-1])
def mxfp4_matmul(
    M,
    N,
    K,
    topk=1,
    block_M=32,
    block_N=32,
    block_K=64,
    scale_size=32,
    with_bias=False,
    num_stages=1,
    threads=128,
    split=1,
):
    num_elems_per_byte = 2
    QK = K // num_elems_per_byte
    Block_QK = block_K // num_elems_per_byte
    A_shape, B_shape = (M, K), (N, QK)
    Bias_shape = (M, N)
    assert K % (block_K * split) == 0

    def get_simple_dequant_func(in_dtype="fp4", out_dtype=T.bfloat16):
        assert in_dtype in ["fp4"]

        @T.macro
        def simple_dequant_bf16_fp4(B_shared, B_dequantize_shared, Scale_buffer, k):
            B_local = T.alloc_fragment((block_N, Block_QK), T.uint8)
            B_dequantize_local = T.alloc_fragment((block_N, block_K), out_dtype)
            bx = T.get_block_binding(0)
            T.copy(B_shared, B_local)
            for i, j in T.Parallel(block_N, block_K):
                B_dequantize_local[i, j] = _tir_u8_to_f4_to_bf16(
                    4,
                    B_local[i, j // num_elems_per_byte],
                    j % num_elems_per_byte,
                    Scale_buffer[bx * block_N + i, k * block_K // scale_size + j // scale_size],
                    dtype=out_dtype,
                )
            T.copy(B_dequantize_local, B_dequantize_shared)

        return simple_dequant_bf16_fp4

    @T.prim_func
    def main(
        A: T.Tensor(A_shape, "bfloat16"),
        B: T.Tensor(B_shape, "uint8"),
        Scale: T.Tensor((N, K // scale_size), "uint8"),
        Bias: T.Tensor(Bias_shape, "bfloat16"),
        C: T.Tensor((M, N), "bfloat16"),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), "bfloat16")
            B_shared = T.alloc_shared((block_N, Block_QK), "uint8")
            B_dequantize_shared = T.alloc_shared((block_N, block_K), "bfloat16")
            Bias_shared = T.alloc_shared((block_M, block_N), "bfloat16")
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            C_shared = T.alloc_shared((block_M, block_N), "bfloat16")
            T.annotate_layout({C_shared: tilelang.layout.make_swizzled_layout(C_shared)})
            if threads == 512:
                T.disable_warp_group_reg_alloc()
            if with_bias:
                T.copy(Bias[by * block_M : (by + 1) * block_M, bx * block_N : (bx + 1) * block_N], Bias_shared)
                T.copy(Bias_shared, C_local)
            else:
                T.clear(C_local)
            for k in T.Pipelined(K // block_K, num_stages=num_stages):
                T.copy(A[by * block_M, k * block_K], A_shared)
                T.copy(B[bx * block_N, k * block_K // num_elems_per_byte], B_shared)
                get_simple_dequant_func()(B_shared, B_dequantize_shared, Scale, k)
                T.gemm(A_shared, B_dequantize_shared, C_local, transpose_B=True)
            T.copy(C_local, C_shared)
            T.copy(C_shared, C[by * block_M : (by + 1) * block_M, bx * block_N : (bx + 1) * block_N])

    return main


def test_mxfp4():
    torch.manual_seed(0)
    M, N, K = 40, 64, 128
    A = torch.randn(M, K, dtype=torch.bfloat16, device="cuda")
    qB = torch.randint(0, 256, (N, K // 2), dtype=torch.uint8, device="cuda")
    S = torch.randint(0, 8, (N, K // 32), dtype=torch.uint8, device="cuda")
    Bias = torch.randn(M, N, dtype=torch.bfloat16, device="cuda")
    for with_bias in (False, True):
        C = mxfp4_matmul(M, N, K, with_bias=with_bias)(A, qB, S, Bias)
        f4 = torch.stack([qB & 15, qB >> 4], -1).view(N, K)
        bits = (
            ((f4 >> 3).to(torch.int32) << 15)
            | ((((f4 >> 1) & 3).to(torch.int32) + 126 + S.to(torch.int32).repeat_interleave(32, 1)).clamp(max=255) << 7)
            | ((f4 & 1).to(torch.int32) << 6)
        )
        B = (bits << 16).view(torch.float32)
        ref = A.float() @ B.T + (Bias.float() if with_bias else 0)
        torch.testing.assert_close(C.float(), ref, rtol=2e-2, atol=1.0)


# ---------------- warp specialised softpipe / gemm with explicit barrier lists and T.ws
def ws_matmul(M, N, K, block_M, block_N, block_K, dtype="float16", accum_dtype="float"):
    num_stages = 2

    @T.prim_func
    def main(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), dtype)):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=256) as (bx, by):
            A_shared = T.alloc_shared((num_stages, block_M, block_K), dtype)
            B_shared = T.alloc_shared((num_stages, block_K, block_N), dtype)
            C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
            T.create_list_of_mbarrier(128, 128, 128, 128)
            with T.ws(1):
                T.dec_max_nreg(24)
                for ko in range(T.ceildiv(K, block_K)):
                    T.mbarrier_wait_parity(
                        mbarrier=ko % num_stages + num_stages, parity=((ko // num_stages) % num_stages) ^ 1
                    )
                    T.copy(
                        A[by * block_M : (by + 1) * block_M, ko * block_K : (ko + 1) * block_K],
                        A_shared[ko % num_stages, :, :],
                    )
                    T.copy(
                        B[ko * block_K : (ko + 1) * block_K, bx * block_N : (bx + 1) * block_N],
                        B_shared[ko % num_stages, :, :],
                    )
                    T.mbarrier_arrive(mbarrier=ko % num_stages)
            with T.ws(0):
                T.inc_max_nreg(240)
                T.clear(C_local)
                for ko in range(T.ceildiv(K, block_K)):
                    T.mbarrier_wait_parity(mbarrier=ko % num_stages, parity=(ko // num_stages) % num_stages)
                    T.gemm(A_shared[ko % num_stages, :, :], B_shared[ko % num_stages, :, :], C_local)
                    T.mbarrier_arrive(mbarrier=ko % num_stages + num_stages)
                T.copy(C_local, C[by * block_M, bx * block_N])

    return main


def test_ws():
    k = tilelang.compile(
        ws_matmul(64, 64, 128, 32, 32, 32), out_idx=[2], target="cuda", pass_configs={"tl.disable_tma_lower": False}
    )
    a, b = torch.randn(64, 128, device="cuda").half(), torch.randn(128, 64, device="cuda").half()
    torch.testing.assert_close(k(a, b), a @ b, rtol=1e-2, atol=1e-1)


# ---------------- moe: fused experts with token gather, shared experts; expert capacity and padded groups
@tilelang.jit(pass_configs={"tl.disable_tma_lower": True, "tl.disable_warp_specialized": True})
def moe_forward_routed(
    d_hidden,
    d_expert,
    n_routed,
    group_sum,
    group_count,
    block_token=32,
    block_dhidden=32,
    block_dexpert=32,
    threads=256,
    num_stages=1,
    k_pack=1,
    coalesced_width=None,
    dtype="float16",
):
    scale = 1.44269504
    M = math.ceil(group_sum / block_token) + group_count

    @T.prim_func
    def kernel(
        input: T.Tensor((group_sum, d_hidden), dtype),
        gate_w: T.Tensor((n_routed, d_expert, d_hidden), dtype),
        up_w: T.Tensor((n_routed, d_expert, d_hidden), dtype),
        down_w: T.Tensor((n_routed, d_hidden, d_expert), dtype),
        weights: T.Tensor((group_sum,), dtype),
        group_sizes: T.Tensor((n_routed,), T.int32),
        group_offsets: T.Tensor((n_routed,), T.int32),
        group_padded_offsets: T.Tensor((n_routed,), T.int32),
        group_idx_for_bx: T.Tensor((M,), T.int32),
        up_logits: T.Tensor((group_sum, d_expert), dtype),
        output: T.Tensor((group_sum, d_hidden), dtype),
    ):
        with T.Kernel(M, T.ceildiv(d_expert, block_dexpert), threads=threads) as (bx, by):
            input_shared = T.alloc_fragment((block_token, block_dhidden), dtype=dtype)
            g_shared = T.alloc_shared((block_dexpert, block_dhidden), dtype=dtype)
            u_shared = T.alloc_shared((block_dexpert, block_dhidden), dtype=dtype)
            gate_l = T.alloc_fragment((block_token, block_dexpert), "float32")
            up_l = T.alloc_fragment((block_token, block_dexpert), "float32")
            cur_group_idx = T.alloc_local([1], T.int32)
            cur_group_size = T.alloc_local([1], T.int32)
            T.use_swizzle(10, enable=True)
            m_start_padded = bx * block_token
            cur_group_idx[0] = group_idx_for_bx[bx]
            cur_group_size[0] = group_sizes[cur_group_idx[0]]
            m_start = m_start_padded - group_padded_offsets[cur_group_idx[0]] + group_offsets[cur_group_idx[0]]
            actual_rows = T.max(
                0, T.min(block_token, cur_group_size[0] - (m_start_padded - group_padded_offsets[cur_group_idx[0]]))
            )
            T.clear(gate_l)
            T.clear(up_l)
            for k in T.Pipelined(T.ceildiv(d_hidden, block_dhidden), num_stages=num_stages):
                T.copy(
                    input[m_start : m_start + block_token, k * block_dhidden : (k + 1) * block_dhidden],
                    input_shared,
                    coalesced_width=coalesced_width,
                )
                T.copy(
                    gate_w[
                        cur_group_idx[0],
                        by * block_dexpert : (by + 1) * block_dexpert,
                        k * block_dhidden : (k + 1) * block_dhidden,
                    ],
                    g_shared,
                    coalesced_width=coalesced_width,
                )
                T.gemm(input_shared, g_shared, gate_l, k_pack=k_pack, transpose_B=True)
                T.copy(
                    up_w[
                        cur_group_idx[0],
                        by * block_dexpert : (by + 1) * block_dexpert,
                        k * block_dhidden : (k + 1) * block_dhidden,
                    ],
                    u_shared,
                )
                T.gemm(input_shared, u_shared, up_l, k_pack=k_pack, transpose_B=True)
            for i, j in T.Parallel(block_token, block_dexpert):
                gate_l[i, j] = gate_l[i, j] * (1.0 / (1.0 + T.exp2(-gate_l[i, j] * scale)))
                up_l[i, j] = up_l[i, j] * gate_l[i, j]
            for i, j in T.Parallel(block_token, block_dexpert):
                if i < actual_rows:
                    up_logits[m_start + i, by * block_dexpert + j] = up_l[i, j]
        with T.Kernel(M, T.ceildiv(d_hidden, block_dhidden), threads=threads) as (bx, by):
            x_shared = T.alloc_shared((block_token, block_dexpert), dtype=dtype)
            w_shared = T.alloc_shared((block_dhidden, block_dexpert), dtype=dtype)
            o_l = T.alloc_fragment((block_token, block_dhidden), "float32")
            cur = T.alloc_var(T.int32)
            cur = group_idx_for_bx[bx]
            m_start_padded = bx * block_token
            m_start = m_start_padded - group_padded_offsets[cur] + group_offsets[cur]
            actual_rows = T.max(0, T.min(block_token, group_sizes[cur] - (m_start_padded - group_padded_offsets[cur])))
            T.clear(o_l)
            for k in T.Pipelined(T.ceildiv(d_expert, block_dexpert), num_stages=num_stages):
                T.copy(
                    up_logits[m_start : m_start + block_token, k * block_dexpert : (k + 1) * block_dexpert], x_shared
                )
                T.copy(
                    down_w[
                        cur, by * block_dhidden : (by + 1) * block_dhidden, k * block_dexpert : (k + 1) * block_dexpert
                    ],
                    w_shared,
                )
                T.gemm(x_shared, w_shared, o_l, transpose_B=True)
            for i, j in T.Parallel(block_token, block_dhidden):
                if i < actual_rows:
                    output[m_start + i, by * block_dhidden + j] = o_l[i, j] * weights[m_start + i]

    return kernel


def test_moe():
    torch.manual_seed(0)
    dh, de, n = 64, 96, 3
    sizes = torch.tensor([40, 0, 17], dtype=torch.int32)
    tot = int(sizes.sum())
    x = torch.randn(tot, dh, device="cuda", dtype=torch.half)
    g, u = (torch.randn(n, de, dh, device="cuda", dtype=torch.half) * 0.1 for _ in range(2))
    d = torch.randn(n, dh, de, device="cuda", dtype=torch.half) * 0.1
    w = torch.rand(tot, device="cuda", dtype=torch.half)
    offs = torch.cumsum(sizes, 0).int() - sizes
    pad = (sizes + 31) // 32 * 32
    poffs = torch.cumsum(pad, 0).int() - pad
    M = math.ceil(tot / 32) + n
    idx = []
    for b in range(M):
        e = 0
        for j in range(n):
            if b * 32 >= poffs[j]:
                e = j
        idx.append(e)
    up = torch.zeros(tot, de, device="cuda", dtype=torch.half)
    out = torch.zeros(tot, dh, device="cuda", dtype=torch.half)
    moe_forward_routed(dh, de, n, tot, n)(
        x,
        g,
        u,
        d,
        w,
        sizes.cuda(),
        offs.int().cuda(),
        poffs.int().cuda(),
        torch.tensor(idx, dtype=torch.int32, device="cuda"),
        up,
        out,
    )
    ref = (
        torch.cat(
            [
                (F.silu(xx.float() @ gg.float().T) * (xx.float() @ uu.float().T)) @ dd.float().T
                for xx, gg, uu, dd in zip(x.split(sizes.tolist()), g, u, d)
            ]
        )
        * w.float()[:, None]
    )
    torch.testing.assert_close(out.float(), ref, rtol=2e-2, atol=2e-2)


# ---------------- engram hash: int64 arithmetic with dynamic shapes
@tilelang.jit
def engram_hash(max_ngram, num_layers, num_tables, pad=0):
    num_tokens = T.dynamic("num_tokens")

    @T.prim_func
    def main(
        ids: T.Tensor[(num_tokens, max_ngram), T.int64],
        mult: T.Tensor[(num_layers, max_ngram), T.int64],
        vocab: T.Tensor[(num_layers, max_ngram - 1, num_tables), T.int32],
        out: T.Tensor[(num_layers, num_tokens, (max_ngram - 1) * num_tables), T.int32],
    ):
        with T.Kernel(num_layers, T.ceildiv(num_tokens, 64), threads=64) as (pid_l, pid_t):
            tid = T.get_thread_binding()
            tok = pid_t * 64 + tid
            h = T.alloc_var(T.int64)
            if tok < num_tokens:
                h = ids[tok, 0] * mult[pid_l, 0]
                for i in T.unroll(1, max_ngram):
                    h = T.bitwise_xor(h, ids[tok, i] * mult[pid_l, i])
                    for j in T.serial(num_tables):
                        out[pid_l, tok, (i - 1) * num_tables + j] = T.cast(h % T.int64(vocab[pid_l, i - 1, j]), T.int32)

    return main


def test_engram():
    ids = torch.randint(0, 1 << 40, (70, 3), device="cuda")
    mult = torch.randint(1, 1 << 20, (2, 3), device="cuda") * 2 + 1
    voc = torch.randint(1000, 9999, (2, 2, 4), dtype=torch.int32, device="cuda")
    out = torch.empty(2, 70, 8, dtype=torch.int32, device="cuda")
    engram_hash(3, 2, 4)(ids, mult, voc, out)
    h = (ids[:, None, 0] * mult[None, :, 0]).T
    for i in (1, 2):
        h = h ^ (ids[:, None, i] * mult[None, :, i]).T
        ref = h[..., None] % voc[:, i - 1][:, None, :].long()
        assert torch.equal(out[..., (i - 1) * 4 : i * 4].long(), ref)


@register_cuda_postproc_callback
def tilelang_callback_cuda_postproc(code, _):
    return code


if __name__ == "__main__":
    tilelang.testing.main()
