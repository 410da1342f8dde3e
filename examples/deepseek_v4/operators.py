"""Kernels of DeepSeek-V4 as functions that PyTorch differentiates: each pairs a forward kernel with a backward one.

`tiledsl.torch` has the general ones (products, norms, rotations); these are V4's own. Tensors are float32 on the CPU.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import moe, quant

LIMIT = 10.0  # of the clamped SwiGLU


class _HyperPre(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fn: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y, post, comb, ctx.mixes = v4.hyper_pre(x, fn, scale, base)
        ctx.save_for_backward(x, fn, scale, base)
        return y, post, comb

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dpost: Tensor, dcomb: Tensor) -> Any:
        return v4.hyper_pre_backward(*ctx.saved_tensors, ctx.mixes, dy, dpost, dcomb)


class _HyperPost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, f: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        ctx.save_for_backward(f, x, post, comb)
        return v4.hyper_post(f, x, post, comb)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return v4.hyper_post_backward(*ctx.saved_tensors, dy)


class _HyperHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, fn: Tensor, scale: Tensor, base: Tensor) -> Tensor:
        y, ctx.mixes = v4.hyper_head(x, fn, scale, base, return_mixes=True)
        ctx.save_for_backward(x, fn, scale, base)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return v4.hyper_head_backward(*ctx.saved_tensors, ctx.mixes, dy)


class _Compress(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kv: Tensor, scores: Tensor, ape: Tensor, ratio: int) -> Tensor:
        ctx.save_for_backward(kv, scores, ape)
        ctx.ratio = ratio
        state = v4.compressor_state(kv.shape[0], ratio, kv.shape[2], kv)
        entries, _ = v4.compress(kv, scores, ape, ratio, state)
        return entries

    @staticmethod
    def backward(ctx: Any, dentries: Tensor) -> Any:
        return *v4.compress_backward(*ctx.saved_tensors[:3], ctx.ratio, dentries), None


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, rows: Tensor, sink: Tensor, slots: Tensor) -> Tensor:
        o, lse = v4.sparse_attention(q, rows, slots, sink=sink, return_lse=True)
        ctx.save_for_backward(q, rows, sink, slots, o, lse)
        return o

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> Any:
        q, rows, sink, slots, o, lse = ctx.saved_tensors
        return *v4.sparse_attention_backward(q, rows, slots, o, lse, do, sink=sink), None


class _Route(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
        weights, chosen = moe.route(logits, k, bias=bias, scale=scale)
        ctx.save_for_backward(logits, chosen)
        ctx.scale = scale
        ctx.mark_non_differentiable(chosen)
        return weights, chosen

    @staticmethod
    def backward(ctx: Any, dweights: Tensor, _: Any) -> Any:
        logits, chosen = ctx.saved_tensors
        return moe.route_backward(logits, chosen, dweights, scale=ctx.scale), None, None, None


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mapping: moe.Mapping) -> Tensor:
        ctx.mapping = mapping
        return moe.expand(x, mapping)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return moe.reduce_rows(dy, ctx.mapping), None


class _Reduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mapping: moe.Mapping) -> Tensor:
        ctx.mapping = mapping
        return moe.reduce_rows(x, mapping)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        return moe.expand(dy, ctx.mapping), None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, weight: Tensor | None) -> Tensor:
        ctx.save_for_backward(gate_up, weight)
        return quant.swiglu_cast(gate_up, weight, limit=LIMIT, block=None)

    @staticmethod
    def backward(ctx: Any, dh: Tensor) -> Any:
        return quant.swiglu_cast_backward(*ctx.saved_tensors, dh, limit=LIMIT)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        flat = weight.reshape(-1, weight.shape[-1])
        return quant.dequantize(*quant.mxfp4_cast(flat), block=(1, 32), out_dtype="float32").reshape(weight.shape)

    @staticmethod
    def backward(ctx: Any, dweight: Tensor) -> Any:
        return dweight


def hyper_pre(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A layer's input [tokens, d] of the streams [tokens, n, d], and the weights of hyper_post."""
    return _HyperPre.apply(x, fn, scale, base)


def hyper_post(f: Tensor, x: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """The streams after a layer whose result is f."""
    return _HyperPost.apply(f, x, post, comb)


def hyper_head(x: Tensor, fn: Tensor, scale: Tensor, base: Tensor) -> Tensor:
    """The streams' last weighted sum."""
    return _HyperHead.apply(x, fn, scale, base)


def compress(kv: Tensor, scores: Tensor, ape: Tensor, ratio: int) -> Tensor:
    """Entries [batch, seq / ratio, c] of whole sequences [batch, seq, width]; ratio divides seq."""
    return _Compress.apply(kv, scores, ape, ratio)


def sparse_attention(q: Tensor, rows: Tensor, sink: Tensor, slots: Tensor) -> Tensor:
    """Queries [tokens, heads, c] over the rows that slots [tokens, n] name; rounded to bfloat16 as the model does."""
    return _SparseAttention.apply(q.bfloat16(), rows.bfloat16(), sink, slots).float()


def route(logits: Tensor, bias: Tensor, k: int, scale: float) -> tuple[Tensor, Tensor]:
    """Weights and experts [tokens, k]; the bias selects only."""
    return _Route.apply(logits, bias, k, scale)


def expand(x: Tensor, mapping: moe.Mapping) -> Tensor:
    """Rows sorted by expert."""
    return _Expand.apply(x, mapping)


def reduce_rows(x: Tensor, mapping: moe.Mapping) -> Tensor:
    """Their sum per token."""
    return _Reduce.apply(x, mapping)


def swiglu(gate_up: Tensor, weight: Tensor | None = None) -> Tensor:
    """The clamped SwiGLU, times a weight per row."""
    return _SwiGLU.apply(gate_up, weight)


def fp4(weight: Tensor) -> Tensor:
    """The nearest MXFP4 values of a weight (32 neighbours along the last axis share a scale); its gradient goes
    straight through to the float32 weight."""
    return _Rounded.apply(weight)
