"""Gradients and gates: attention's gradient in a permuted layout, the experts of a token by repeated maxima."""

import math

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
import torch.nn.functional as F


# ---------------- flash attention backward with preprocess/postprocess & atomic dq in swizzled global layout
def make_dq_layout(dQ):
    return T.Layout(dQ.shape, lambda b, l, h, d: [b, l // 8, h, d // 8, (d % 2), 4 * (l % 8) + (d % 8) // 2])


@tilelang.jit(out_idx=[2])
def bwd_preprocess(batch, heads, seq_len, dim):
    @T.prim_func
    def flash_bwd_prep(
        O: T.Tensor([batch, seq_len, heads, dim], "float16"),
        dO: T.Tensor([batch, seq_len, heads, dim], "float16"),
        Delta: T.Tensor([batch, heads, seq_len], "float"),
    ):
        with T.Kernel(heads, T.ceildiv(seq_len, 32), batch) as (bx, by, bz):
            o = T.alloc_fragment([32, 32], "float16")
            do = T.alloc_fragment([32, 32], "float16")
            acc = T.alloc_fragment([32, 32], "float")
            delta = T.alloc_fragment([32], "float")
            T.clear(acc)
            for k in range(T.ceildiv(dim, 32)):
                T.copy(O[bz, by * 32 : (by + 1) * 32, bx, k * 32 : (k + 1) * 32], o)
                T.copy(dO[bz, by * 32 : (by + 1) * 32, bx, k * 32 : (k + 1) * 32], do)
                for i, j in T.Parallel(32, 32):
                    acc[i, j] += o[i, j] * do[i, j]
            T.reduce_sum(acc, delta, 1)
            T.copy(delta, Delta[bz, bx, by * 32 : (by + 1) * 32])

    return flash_bwd_prep


@tilelang.jit(out_idx=[1])
def bwd_postprocess(batch, heads, seq_len, dim):
    shape = [batch, seq_len, heads, dim]

    @T.prim_func
    def flash_bwd_post(dQ: T.Tensor(shape, "float"), dQ_out: T.Tensor(shape, "float16")):
        with T.Kernel(T.ceildiv(seq_len, 64), heads, batch, threads=128) as (bx, by, bz):
            T.annotate_layout({dQ: make_dq_layout(dQ)})
            T.copy(dQ[bz, bx * 64 : (bx + 1) * 64, by, :], dQ_out[bz, bx * 64 : (bx + 1) * 64, by, :])

    return flash_bwd_post


@tilelang.jit(pass_configs={tilelang.PassConfigKey.TL_ENABLE_FAST_MATH: True})
def flashattn_bwd(batch, heads, seq_len, dim, is_causal, block_M, block_N):
    sm_scale = (1.0 / dim) ** 0.5
    scale = (1.0 / dim) ** 0.5 * 1.44269504
    shape = [batch, seq_len, heads, dim]
    dtype, accum_dtype = "float16", "float"

    @T.prim_func
    def flash_bwd(
        Q: T.Tensor(shape, dtype),
        K: T.Tensor(shape, dtype),
        V: T.Tensor(shape, dtype),
        dO: T.Tensor(shape, dtype),
        lse: T.Tensor([batch, heads, seq_len], accum_dtype),
        Delta: T.Tensor([batch, heads, seq_len], accum_dtype),
        dQ: T.Tensor(shape, accum_dtype),
        dK: T.Tensor(shape, dtype),
        dV: T.Tensor(shape, dtype),
    ):
        with T.Kernel(heads, T.ceildiv(seq_len, block_M), batch, threads=128) as (bx, by, bz):
            K_shared = T.alloc_shared([block_M, dim], dtype)
            dsT_shared = T.alloc_shared([block_M, block_N], dtype)
            q = T.alloc_shared([block_N, dim], dtype)
            V_shared = T.alloc_shared([block_M, dim], dtype)
            qkT = T.alloc_fragment([block_M, block_N], accum_dtype)
            dsT = T.alloc_fragment([block_M, block_N], accum_dtype)
            qkT_cast = T.alloc_fragment([block_M, block_N], dtype)
            dsT_cast = T.alloc_fragment([block_M, block_N], dtype)
            lse_shared = T.alloc_shared([block_N], accum_dtype)
            delta = T.alloc_shared([block_N], accum_dtype)
            do = T.alloc_shared([block_N, dim], dtype)
            dv = T.alloc_fragment([block_M, dim], accum_dtype)
            dk = T.alloc_fragment([block_M, dim], accum_dtype)
            dq = T.alloc_fragment([block_N, dim], accum_dtype)
            T.annotate_layout({dQ: make_dq_layout(dQ), K_shared: tilelang.layout.make_swizzled_layout(K_shared)})
            T.copy(K[bz, by * block_M : (by + 1) * block_M, bx, :], K_shared)
            T.copy(V[bz, by * block_M : (by + 1) * block_M, bx, :], V_shared)
            T.clear(dv)
            T.clear(dk)
            loop_st = T.floordiv(by * block_M, block_N) if is_causal else 0
            loop_ed = T.ceildiv(seq_len, block_N)
            for k in T.Pipelined(loop_st, loop_ed, num_stages=2):
                T.copy(Q[bz, k * block_N : (k + 1) * block_N, bx, :], q)
                T.clear(qkT)
                T.gemm(K_shared, q, qkT, transpose_B=True, policy=T.GemmWarpPolicy.FullRow, wg_wait=-1)
                T.copy(dO[bz, k * block_N : (k + 1) * block_N, bx, :], do)
                T.clear(dsT)
                T.gemm(V_shared, do, dsT, transpose_B=True, policy=T.GemmWarpPolicy.FullRow, wg_wait=-1)
                T.wait_wgmma(1)
                T.copy(lse[bz, bx, k * block_N : (k + 1) * block_N], lse_shared)
                for i, j in T.Parallel(block_M, block_N):
                    qkT[i, j] = T.exp2(qkT[i, j] * scale - lse_shared[j])
                if is_causal:
                    for i, j in T.Parallel(block_M, block_N):
                        qkT[i, j] = T.if_then_else(by * block_M + i <= k * block_N + j, qkT[i, j], 0)
                T.wait_wgmma(0)
                T.copy(qkT, qkT_cast)
                T.gemm(qkT_cast, do, dv, policy=T.GemmWarpPolicy.FullRow, wg_wait=-1)
                T.copy(Delta[bz, bx, k * block_N : (k + 1) * block_N], delta)
                for i, j in T.Parallel(block_M, block_N):
                    dsT_cast[i, j] = qkT[i, j] * (dsT[i, j] - delta[j]) * sm_scale
                T.gemm(dsT_cast, q, dk, policy=T.GemmWarpPolicy.FullRow, wg_wait=1)
                T.copy(dsT_cast, dsT_shared)
                T.clear(dq)
                T.gemm(dsT_shared, K_shared, dq, transpose_A=True, wg_wait=1)
                T.wait_wgmma(0)
                for i, j in T.Parallel(block_N, dim):
                    T.atomic_add(dQ[bz, k * block_N + i, bx, j], dq[i, j])
            T.copy(dv, dV[bz, by * block_M : (by + 1) * block_M, bx, :])
            T.copy(dk, dK[bz, by * block_M : (by + 1) * block_M, bx, :])

    return flash_bwd


class _attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, k, v, causal):
        s = torch.einsum("bqhd,bkhd->bhqk", q.float(), k.float()) / math.sqrt(q.shape[-1])
        if causal:
            s = s.masked_fill(~torch.tril(torch.ones(s.shape[-2:], dtype=torch.bool, device=s.device)), float("-inf"))
        lse = torch.logsumexp(s, -1) * 1.44269504
        o = torch.einsum("bhqk,bkhd->bqhd", torch.softmax(s, -1), v.float()).to(q.dtype)
        ctx.save_for_backward(q, k, v, o, lse)
        ctx.causal = causal
        return o

    @staticmethod
    def backward(ctx, do):
        q, k, v, o, lse = ctx.saved_tensors
        BATCH, N_CTX, H, D_HEAD = q.shape
        do, q, k, v, o = [x if x.is_contiguous() else x.contiguous() for x in (do, q, k, v, o)]
        delta = bwd_preprocess(BATCH, H, N_CTX, D_HEAD)(o, do)
        kernel = flashattn_bwd(BATCH, H, N_CTX, D_HEAD, ctx.causal, 32, 32)
        shape = [BATCH, N_CTX, H, D_HEAD]
        dq = torch.zeros(shape, dtype=torch.float32, device=q.device)
        dk = torch.empty(shape, dtype=torch.float16, device=q.device)
        dv = torch.empty(shape, dtype=torch.float16, device=q.device)
        kernel(q, k, v, do, lse, delta, dq, dk, dv)
        dq = bwd_postprocess(BATCH, H, N_CTX, D_HEAD)(dq)
        return dq, dk, dv, None


attention = _attention.apply


def test_bwd():
    torch.manual_seed(0)
    for causal in (False, True):
        q, k, v = (
            torch.empty(1, 128, 2, 64, dtype=torch.half, device="cuda").normal_().requires_grad_() for _ in range(3)
        )
        dO = torch.randn_like(q)
        o = attention(q, k, v, causal)
        o.backward(dO, retain_graph=True)
        dQ, q.grad = q.grad.clone(), None
        dK, k.grad = k.grad.clone(), None
        dV, v.grad = v.grad.clone(), None
        r = F.scaled_dot_product_attention(*(x.float().transpose(1, 2) for x in (q, k, v)), is_causal=causal).transpose(
            1, 2
        )
        r.backward(dO.float(), retain_graph=True)
        assert torch.allclose(dV, v.grad, rtol=1e-2, atol=1e-2)
        assert torch.allclose(dK, k.grad, rtol=1e-2, atol=1e-2)
        assert torch.allclose(dQ, q.grad, rtol=1e-2, atol=1e-2)


# ---------------- topk example, expert-wise gate; with numpy ints & T.const shape
@tilelang.jit(out_idx=[1, 2])
def tl_topk(M, N, topk, blk_m, threads=128):
    dtype = "float32"

    @T.prim_func
    def topk_kernel(
        logits: T.Tensor([M, N], dtype),
        topk_gates: T.Tensor([M, topk], dtype),
        topk_indices: T.Tensor([M, topk], "int32"),
    ):
        with T.Kernel(T.ceildiv(M, blk_m), threads=threads) as bx:
            logits_frag = T.alloc_fragment([blk_m, N], dtype=dtype)
            max_val = T.alloc_fragment([blk_m], dtype=dtype)
            expand_max_idx = T.alloc_fragment([blk_m, N], "int32")
            max_idx = T.alloc_fragment([blk_m], "int32")
            T.copy(logits[bx * blk_m, 0], logits_frag)
            for k in T.serial(topk):
                T.fill(expand_max_idx, -1)
                T.reduce_max(logits_frag, max_val, dim=1, clear=True)
                for i, j in T.Parallel(blk_m, N):
                    expand_max_idx[i, j] = T.if_then_else(max_val[i] == logits_frag[i, j], j, expand_max_idx[i, j])
                T.reduce_max(expand_max_idx, max_idx, dim=1, clear=True)
                for i, j in T.Parallel(blk_m, N):
                    logits_frag[i, j] = T.if_then_else(max_val[i] == logits_frag[i, j], -10000.0, logits_frag[i, j])
                for i in T.Parallel(blk_m):
                    topk_gates[bx * blk_m + i, k] = max_val[i]
                    topk_indices[bx * blk_m + i, k] = max_idx[i]

    return topk_kernel


def test_topk():
    x = torch.rand(70, 32).cuda()
    gates, idx = tl_topk(70, 32, 6, 16)(x)
    g, i = x.topk(6, 1)
    torch.testing.assert_close(gates, g)
    torch.testing.assert_close(idx, i.to(torch.int32))


if __name__ == "__main__":
    tilelang.testing.main()
