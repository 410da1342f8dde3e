"""Jobs of attention: forward, as written for a GPU, decoding from a large cache, backward."""

# mypy: disable-error-code="no-untyped-def,valid-type"

import math
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.bench.job import BF16, Job, Maker, Thunk, array, large, tensor, torch_module

__all__ = ["ATTENTION", "gpu_attention"]

HEADS, SEQ = 8, 2048
_SMALL = (1, 2, 70)


def _forward(d: int, dtype: Any, causal: bool) -> Maker:
    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        from tiledsl.kernels import flash_attention

        rng = np.random.default_rng(0)
        q, k, v = (array(rng, (*(_SMALL if small else (1, HEADS, SEQ)), d), dtype) for _ in range(3))
        out = np.empty_like(q)

        def ours() -> Any:
            return flash_attention(q, k, v, causal=causal, layout="bhsd", out=out, target=target)

        return {"tiledsl": ours, **_torch_forward(q, k, v, causal)}

    return make


def _torch_forward(q: Any, k: Any, v: Any, causal: bool) -> dict[str, Thunk]:
    torch = torch_module()
    if torch is None:
        return {}
    tensors = [tensor(torch, x) for x in (q, k, v)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    return {"torch": lambda: sdpa(*tensors, is_causal=causal)}


@tiledsl.jit
def gpu_attention(batch: int, heads: int, seq: int, dim: int, block_M: int = 128, block_N: int = 128) -> Any:
    """Causal attention in float32 on [batch, heads, seq, dim], written as for a GPU: every tile of keys up to the
    diagonal is masked, and the softmax is spelt out."""
    scale = math.log2(math.e) / math.sqrt(dim)
    shape = (batch, heads, seq, dim)

    @T.prim_func
    def main(
        Q: T.Tensor(shape, T.float32),
        K: T.Tensor(shape, T.float32),
        V: T.Tensor(shape, T.float32),
        Output: T.Tensor(shape, T.float32),
    ):
        with T.Kernel(T.ceildiv(seq, block_M), heads, batch, threads=256) as (bx, by, bz):
            Q_shared = T.alloc_shared((block_M, dim), T.float32)
            K_shared = T.alloc_shared((block_N, dim), T.float32)
            V_shared = T.alloc_shared((block_N, dim), T.float32)
            scores = T.alloc_fragment((block_M, block_N), T.float32)
            acc = T.alloc_fragment((block_M, dim), T.float32)
            peak = T.alloc_fragment((block_M,), T.float32)
            before = T.alloc_fragment((block_M,), T.float32)
            shrink = T.alloc_fragment((block_M,), T.float32)
            part = T.alloc_fragment((block_M,), T.float32)
            total = T.alloc_fragment((block_M,), T.float32)
            T.copy(Q[bz, by, bx * block_M : (bx + 1) * block_M, :], Q_shared)
            T.clear(acc)
            T.clear(total)
            T.fill(peak, -T.infinity(T.float32))
            for k in T.Pipelined(T.min(T.ceildiv(seq, block_N), T.ceildiv((bx + 1) * block_M, block_N)), num_stages=2):
                T.copy(K[bz, by, k * block_N : (k + 1) * block_N, :], K_shared)
                for i, j in T.Parallel(block_M, block_N):
                    scores[i, j] = T.if_then_else(bx * block_M + i >= k * block_N + j, 0.0, -T.infinity(T.float32))
                T.gemm(Q_shared, K_shared, scores, transpose_B=True, policy=T.GemmWarpPolicy.FullRow)
                T.copy(peak, before)
                T.reduce_max(scores, peak, dim=1, clear=False)
                for i in T.Parallel(block_M):
                    shrink[i] = T.exp2(before[i] * scale - peak[i] * scale)
                for i, j in T.Parallel(block_M, block_N):
                    scores[i, j] = T.exp2(scores[i, j] * scale - peak[i] * scale)
                T.reduce_sum(scores, part, dim=1)
                for i in T.Parallel(block_M):
                    total[i] = total[i] * shrink[i] + part[i]
                for i, j in T.Parallel(block_M, dim):
                    acc[i, j] *= shrink[i]
                T.copy(V[bz, by, k * block_N : (k + 1) * block_N, :], V_shared)
                T.gemm(scores, V_shared, acc, policy=T.GemmWarpPolicy.FullRow)
            for i, j in T.Parallel(block_M, dim):
                acc[i, j] /= total[i]
            T.copy(acc, Output[bz, by, bx * block_M : (bx + 1) * block_M, :])

    return main


def _gpu_style(target: str | None, small: bool) -> dict[str, Thunk]:
    shape = (*(_SMALL if small else (1, HEADS, SEQ)), 64)
    rng = np.random.default_rng(0)
    q, k, v = (array(rng, shape, np.float32) for _ in range(3))
    out, kernel = np.empty_like(q), gpu_attention(*shape)

    def ours() -> Any:
        kernel(q, k, v, out, target=target)
        return out

    return {"tiledsl": ours, **_torch_forward(q, k, v, True)}


def _decode(target: str | None, small: bool) -> dict[str, Thunk]:
    """32 query heads, 8 key heads, D128, batch 4, 64k tokens each: 1 GiB of cache in bfloat16."""
    from tiledsl.kernels import attention_decode

    batch, tokens = (2, 77) if small else (4, 1 << 16)
    q = array(np.random.default_rng(0), (batch, 32, 128), BF16)
    k, v = (large((batch, tokens, 8, 128), BF16, seed) for seed in (1, 2))
    out = np.empty_like(q)
    jobs: dict[str, Thunk] = {"tiledsl": lambda: attention_decode(q, k, v, out=out, target=target)}
    if torch := torch_module():
        tq, tk, tv = tensor(torch, q)[:, :, None], *(tensor(torch, x).transpose(1, 2) for x in (k, v))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        jobs["torch"] = lambda: sdpa(tq, tk, tv, enable_gqa=True)[:, :, 0]
    return jobs


def _backward(causal: bool) -> Maker:
    """Results: (dq, dk, dv)."""

    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        from tiledsl.kernels import flash_attention, flash_attention_backward

        rng = np.random.default_rng(0)
        q, k, v, do = (array(rng, (*(_SMALL if small else (1, HEADS, SEQ)), 64), np.float32) for _ in range(4))
        o, lse = flash_attention(q, k, v, causal=causal, layout="bhsd", return_lse=True, target=target)

        def ours() -> Any:
            return flash_attention_backward(q, k, v, o, lse, do, causal=causal, layout="bhsd", target=target)

        jobs: dict[str, Thunk] = {"tiledsl": ours}
        if torch := torch_module():
            leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
            result = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
            tdo = torch.from_numpy(do)
            jobs["torch"] = lambda: torch.autograd.grad(result, leaves, tdo, retain_graph=True)
        return jobs

    return make


def _work(d: int, causal: bool, products: int) -> float:
    return 2.0 * products * HEADS * SEQ * SEQ * d * (0.5 if causal else 1.0)


def _name(what: str, causal: bool) -> str:
    return f"attention-{what}{'-causal' if causal else ''}"


_CACHE = 2.0 * 2 * 4 * (1 << 16) * 8 * 128  # bytes of keys and values
ATTENTION = (
    *(
        Job(_name(f"{x}-d{d}", causal), _forward(d, t, causal), _work(d, causal, 2))
        for d in (64, 128)
        for x, t in (("f32", np.float32), ("bf16", BF16))
        for causal in (False, True)
    ),
    Job("gpu-attention-f32-d64-causal", _gpu_style, _work(64, True, 2)),
    Job("attention-decode-bf16", _decode, 4.0 * 4 * 32 * 128 * (1 << 16), _CACHE, written=False),
    *(  # five products; ours computes two of them twice
        Job(_name("backward-f32-d64", causal), _backward(causal), _work(64, causal, 5)) for causal in (False, True)
    ),
)
