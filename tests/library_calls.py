"""One call of every function of the library at awkward shapes, with all that it changes as its result: what other
targets are compared on, and where the texts of all its kernels come from."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl import kernels
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import engram, moe, optim, quant

ROOMS = (kernels, quant, moe, optim, engram, v4)
BF16 = ml_dtypes.bfloat16
F, I = np.float32, np.int32
Array = np.ndarray[Any, Any]
Call = Callable[[np.random.Generator, str], Any]

CALLS: dict[str, Call] = {}


def call(f: Call) -> Call:
    """f(rng, target) calls the library's functions that its name and docstring name."""
    CALLS[f.__name__] = f
    return f


def normal(rng: np.random.Generator, *shape: int, dtype: Any = BF16) -> Array:
    return rng.standard_normal(shape).astype(F).astype(dtype)


def covered() -> set[str]:
    """The functions that calls name: in their own names, and in the first words of their docstrings."""
    return {n.strip() for name, f in CALLS.items() for n in (name, *(f.__doc__ or "").rstrip(".").split(","))}


def public() -> set[str]:
    """The functions of the library that run somewhere."""
    return {
        name
        for room in ROOMS
        for name in room.__all__
        if inspect.isfunction(f := getattr(room, name)) and "target" in inspect.signature(f).parameters
    }


# -- products ----------------------------------------------------------------------------------------------------------


@call
def matmul(rng: np.random.Generator, target: str) -> Any:
    """prepack."""
    found = []
    for dtype in (BF16, F, np.float16):
        a, b = normal(rng, 37, 70, dtype=dtype), normal(rng, 70, 41, dtype=dtype)
        found += [
            kernels.matmul(a, b, target=target),
            kernels.matmul(a, kernels.prepack(b, target=target), target=target),
        ]
    return found


@call
def matmul_float64(rng: np.random.Generator, target: str) -> Any:
    return kernels.matmul(rng.standard_normal((17, 33)), rng.standard_normal((33, 7)), target=target)


@call
def int8_matmul(rng: np.random.Generator, target: str) -> Any:
    a, b = (rng.integers(-128, 128, s).astype(np.int8) for s in ((33, 70), (70, 17)))
    scales = {"row_scale": normal(rng, 33, dtype=F), "column_scale": normal(rng, 17, dtype=F)}
    return kernels.int8_matmul(a, b, target=target), kernels.int8_matmul(
        a, b, **scales, out_dtype="bfloat16", target=target
    )


@call
def grouped_gemm(rng: np.random.Generator, target: str) -> Any:
    """k_grouped_gemm, masked_grouped_gemm."""
    a, b, sizes = normal(rng, 60, 40), normal(rng, 3, 40, 33), np.array([17, 0, 43], I)
    return [
        kernels.grouped_gemm(a, b, sizes, target=target),
        kernels.grouped_gemm(a, b.swapaxes(1, 2).copy(), sizes, transpose_b=True, target=target),
        kernels.k_grouped_gemm(normal(rng, 60, 40), normal(rng, 60, 33), sizes, target=target),
        kernels.masked_grouped_gemm(
            normal(rng, 3, 20, 40), b, sizes // 3, out=np.zeros((3, 20, 33), BF16), target=target
        ),
    ]


@call
def conv2d(rng: np.random.Generator, target: str) -> Any:
    x, w = normal(rng, 2, 9, 7, 5), normal(rng, 3, 3, 5, 6)
    return kernels.conv2d(x, w, stride=2, padding=1, target=target)


# -- attention ---------------------------------------------------------------------------------------------------------


@call
def flash_attention(rng: np.random.Generator, target: str) -> Any:
    """flash_attention_backward."""
    q, do = (normal(rng, 1, 37, 4, 32) for _ in range(2))
    k, v, sink = normal(rng, 1, 70, 2, 32), normal(rng, 1, 70, 2, 32), normal(rng, 4, dtype=F)
    options = {"causal": True, "window": (40, 0), "sink": sink, "target": target}
    o, lse = kernels.flash_attention(q, k, v, return_lse=True, **options)
    plain = kernels.flash_attention(q.astype(F), k.astype(F), v.astype(F), target=target)
    return [o, lse, plain, *kernels.flash_attention_backward(q, k, v, o, lse, do, **options)]


@call
def flash_attention_varlen(rng: np.random.Generator, target: str) -> Any:
    """flash_attention_varlen_backward."""
    q, k, v, do = (normal(rng, 57, 2, 32) for _ in range(4))
    ends = np.array([0, 17, 17, 57], I)
    o, lse = kernels.flash_attention_varlen(q, k, v, ends, causal=True, return_lse=True, target=target)
    grads = kernels.flash_attention_varlen_backward(q, k, v, o, lse, do, ends, causal=True, target=target)
    return [o, lse, *grads]


@call
def attention_decode(rng: np.random.Generator, target: str) -> Any:
    """mla_decode."""
    q, k, v = normal(rng, 2, 4, 64), normal(rng, 2, 300, 2, 64), normal(rng, 2, 300, 2, 64)
    lengths = np.array([300, 17], I)
    o = kernels.attention_decode(q, k, v, lengths, return_lse=True, target=target)
    q, cache = normal(rng, 2, 5, 48), normal(rng, 2, 70, 48)
    return [*o, kernels.mla_decode(q, cache, np.array([70, 3], I), scale=0.2, value_dim=32, target=target)]


@call
def block_sparse_attention(rng: np.random.Generator, target: str) -> Any:
    q, k, v = (normal(rng, 1, 130, 2, 32) for _ in range(3))
    mask = rng.random((1, 2, 3, 3)) < 0.6
    return kernels.block_sparse_attention(q, k, v, block_mask=mask, causal=True, return_lse=True, target=target)


# -- rows --------------------------------------------------------------------------------------------------------------


@call
def rms_norm(rng: np.random.Generator, target: str) -> Any:
    """layer_norm, softmax, swiglu, cumsum, transpose."""
    x, w, b = normal(rng, 7, 229), normal(rng, 229), normal(rng, 229)
    return [
        kernels.rms_norm(x, w, target=target),
        kernels.layer_norm(x, w, b, target=target),
        kernels.softmax(x, target=target),
        kernels.swiglu(x, x[::-1].copy(), target=target),
        kernels.cumsum(x.astype(F), reverse=True, target=target),
        kernels.transpose(x, target=target),
    ]


@call
def rms_norm_backward(rng: np.random.Generator, target: str) -> Any:
    """layer_norm_backward, softmax_backward, swiglu_backward."""
    x, dy, w = normal(rng, 17, 129), normal(rng, 17, 129), normal(rng, 129)
    return [
        *kernels.rms_norm_backward(x, w, dy, target=target),
        *kernels.layer_norm_backward(x, w, dy, target=target),
        kernels.softmax_backward(np.abs(x), dy, target=target),
        *kernels.swiglu_backward(x, dy, dy, target=target),
    ]


@call
def top_k(rng: np.random.Generator, target: str) -> Any:
    return kernels.top_k(normal(rng, 5, 229, dtype=F), 7, target=target)


@call
def rope(rng: np.random.Generator, target: str) -> Any:
    x, (cos, sin) = normal(rng, 1, 7, 3, 40), (normal(rng, 9, 16, dtype=F) for _ in range(2))
    both = (False, True)
    return [kernels.rope(x, cos, sin, interleaved=pairs, target=target) for pairs in both]


# -- quantisation ------------------------------------------------------------------------------------------------------


def loud(rng: np.random.Generator, *shape: int, dtype: Any = BF16) -> Array:
    return (rng.standard_normal(shape) * np.exp2(rng.integers(-6, 6, (*shape[:-1], 1)))).astype(dtype)


@call
def per_token_cast(rng: np.random.Generator, target: str) -> Any:
    """per_block_cast, per_channel_cast, mxfp4_cast, fp4_to_fp8, dequantize."""
    x = loud(rng, 17, 256)
    q, s = quant.mxfp4_cast(x, target=target)
    tokens = quant.per_token_cast(x, target=target)
    return [
        *tokens,
        *quant.per_token_cast(x, block=32, dtype="float8_e5m2", scale_dtype="float8_e8m0fnu", target=target),
        *quant.per_block_cast(x, target=target),
        *quant.per_channel_cast(x, target=target),
        q,
        s,
        *quant.fp4_to_fp8(q, s, per_token=True, check=False, target=target),
        quant.dequantize(*tokens, block=(1, 128), target=target),
    ]


@call
def pack_e5m6(rng: np.random.Generator, target: str) -> Any:
    """unpack_e5m6, stochastic_round."""
    x = loud(rng, 7, 72, dtype=F)
    packed = quant.pack_e5m6(x, target=target)
    random = rng.integers(0, 1 << 32, x.shape, np.uint32)
    rounded = [quant.stochastic_round(x, **how, target=target) for how in ({"seed": 7}, {"random": random})]
    return [packed, quant.unpack_e5m6(packed, target=target), *rounded]


@call
def scaled_gemm(rng: np.random.Generator, target: str) -> Any:
    """scaled_grouped_gemm, scaled_masked_gemm, fp4_prepack, fp4_grouped_gemm."""
    a, sa = quant.per_token_cast(loud(rng, 37, 256), target="numpy")
    b, sb = quant.per_block_cast(loud(rng, 256, 256), target="numpy")
    grouped, sizes = (np.stack([b, b[::-1]]), np.stack([sb, sb[::-1]])), np.array([20, 17], I)
    q, s = quant.mxfp4_cast(loud(rng, 2 * 64, 256), target="numpy")
    packed = quant.fp4_prepack(q.reshape(2, 64, -1), s.reshape(2, 64, -1), target=target)
    rows = np.stack([a, a]), np.stack([sa, sa])
    return [
        quant.scaled_gemm(a, sa, b, sb, target=target),
        quant.scaled_grouped_gemm(a, sa, *grouped, sizes, target=target),
        quant.scaled_masked_gemm(*rows, *grouped, sizes, out=np.zeros((2, 37, 256), BF16), target=target),
        quant.fp4_grouped_gemm(loud(rng, 37, 256), packed, sizes, target=target),
        quant.fp4_grouped_gemm(a, packed, sizes, a_scale=sa, target=target),
    ]


@call
def swiglu_cast(rng: np.random.Generator, target: str) -> Any:
    """swiglu_cast_backward."""
    x, w, d = loud(rng, 9, 512), rng.uniform(0.5, 2, 9).astype(F), loud(rng, 9, 256)
    return [
        *quant.swiglu_cast(x, w, limit=1.5, target=target),
        *quant.swiglu_cast_backward(x, w, d, limit=1.5, target=target),
    ]


# -- mixtures of experts, training, engrams ----------------------------------------------------------------------------


@call
def moe_forward(rng: np.random.Generator, target: str) -> Any:
    """route, route_backward, token_mapping, expand, reduce_rows, feed_forward."""
    x, z = normal(rng, 9, 40), normal(rng, 9, 16, dtype=F)
    w, chosen = moe.route(z, 4, bias=z[0], target=target)
    mapping = moe.token_mapping(chosen, 16, alignment=4, target=target)
    rows = moe.expand(x, mapping, target=target)
    back = moe.reduce_rows(rows, mapping, w, add=x, out_dtype="float32", target=target)
    (q13, s13), (q2, s2) = (quant.mxfp4_cast(loud(rng, *s), target="numpy") for s in ((5 * 128, 128), (5 * 128, 64)))
    weights = q13.reshape(5, 128, 64), q2.reshape(5, 128, 32), s13.reshape(5, 128, 4), s2.reshape(5, 128, 2)
    tokens, gate = normal(rng, 7, 128), normal(rng, 5, 128)
    whole = moe.moe_forward(tokens, gate, moe.Experts(*weights), 2, limit=10.0, target=target)
    dz = moe.route_backward(z, chosen, w, target=target)
    return [w, chosen, dz, *(m for m in vars(mapping).values() if isinstance(m, np.ndarray)), back, whole]


@call
def muon_step(rng: np.random.Generator, target: str) -> Any:
    """newton_schulz, adamw_step."""
    w, g, m = (normal(rng, 33, 17, dtype=F) for _ in range(3))
    optim.muon_step(w, g, m, lr=0.1, target=target)
    first, second, more = m.copy(), m * m, w.copy()
    optim.adamw_step(more, g, first, second, step=3, lr=0.1, target=target)
    return [w, m, more, first, second]


@call
def engram_gate(rng: np.random.Generator, target: str) -> Any:
    """engram_gate_backward, gather_rows, ngram_hash."""
    x, k, dy = (normal(rng, 5, 2, 40) for _ in range(3))
    v, (wx, wk) = normal(rng, 5, 40), rng.uniform(0.5, 2, (2, 2, 40)).astype(F)
    y, saved = engram.engram_gate(x, k, v, wx, wk, target=target)
    grads = engram.engram_gate_backward(x, k, v, wx, wk, saved, dy, target=target)
    ids, mult = rng.integers(0, 999, (9, 3)).astype(I), rng.integers(1, 2**60, (2, 3))
    sizes = np.stack([engram.engram_primes(1000, 2, 4)] * 2)
    rows = engram.gather_rows(normal(rng, 50, 30, dtype=F), np.array([[3, -1, 49], [50, 0, 3]], I), target=target)
    return [y, *saved, *grads, engram.ngram_hash(ids, mult, sizes, target=target), rows]


# -- DeepSeek-V4 -------------------------------------------------------------------------------------------------------


@call
def sparse_attention(rng: np.random.Generator, target: str) -> Any:
    """sparse_attention_backward, write_entries, read_entries, prepare_queries, inverse_rope, output_projection."""
    cos, sin = v4.rope_tables(20, 10000.0)
    at, slots = np.arange(5, dtype=I), np.array([[0, 4, -1], [3, 2, 1]], I)
    cache = np.zeros((3, v4.page_bytes(2)), np.uint8)
    v4.write_entries(normal(rng, 5, 512, dtype=F), normal(rng, 512, dtype=F), cos, sin, at, at, cache, 2, target=target)
    q = v4.prepare_queries(normal(rng, 2, 4, 512), cos, sin, at[:2], target=target)
    o = v4.sparse_attention(q, cache, slots, page_size=2, sink=normal(rng, 4, dtype=F), target=target)
    turned = v4.inverse_rope(o, cos, sin, at[:2], target=target)
    projected = v4.output_projection(turned, normal(rng, 2, 16, 1024), normal(rng, 24, 32), target=target)
    q, rows, do = normal(rng, 2, 4, 16), normal(rng, 5, 16), normal(rng, 2, 4, 16)
    small, lse = v4.sparse_attention(q, rows, slots, return_lse=True, target=target)
    grads = v4.sparse_attention_backward(q, rows, slots, small, lse, do, target=target)
    read = v4.read_entries(cache, at, 2, target=target)
    return [cache, o, turned, projected, small, lse, *grads, read]


@call
def compress(rng: np.random.Generator, target: str) -> Any:
    """compress_backward."""
    kv, z, ape = normal(rng, 1, 11, 6, dtype=F), normal(rng, 1, 11, 6, dtype=F), normal(rng, 4, 6, dtype=F)
    state = v4.compressor_state(1, 4, 6)
    made, _ = v4.compress(kv, z, ape, 4, state, target=target)
    grads = v4.compress_backward(kv, z, ape, 4, normal(rng, *made.shape, dtype=F), target=target)
    return [made[:, :2], state.kv, state.score, *grads]  # rows of whole blocks


@call
def index_logits(rng: np.random.Generator, target: str) -> Any:
    """write_index_keys, index_queries, select_blocks."""
    cos, sin = v4.rope_tables(20, 10000.0)
    x, w = normal(rng, 9, 128, dtype=F), normal(rng, 128, dtype=F)
    at, visible = np.arange(9, dtype=I), np.array([9, 5], I)
    cache = np.zeros((5, v4.index_page_bytes(2)), np.uint8)
    v4.write_index_keys(x, w, cos, sin, at, at, cache, 2, target=target)
    codes = v4.index_queries(normal(rng, 2, 4, 128, dtype=F), cos, sin, at[:2], target=target)
    weights = normal(rng, 2, 4, dtype=F)
    logits = v4.index_logits(codes, weights, cache, 2, visible, 9, target=target)
    return [cache, codes, logits, v4.select_blocks(logits, 6, visible, target=target)]


@call
def index_logits_fp8(rng: np.random.Generator, target: str) -> Any:
    """write_index_keys_fp8, index_queries_fp8, write_mla_entries, read_mla_entries."""
    cos, sin = v4.rope_tables(20, 10000.0)
    at, visible = np.arange(5, dtype=I), np.array([5, 3], I)
    keys, cache = np.zeros((5, v4.index_page_bytes_fp8(2)), np.uint8), np.zeros((5, v4.mla_page_bytes(2)), np.uint8)
    x, w, bias = normal(rng, 5, 128, dtype=F), normal(rng, 128, dtype=F), normal(rng, 128, dtype=F)
    v4.write_index_keys_fp8(x, w, bias, cos, sin, at, at, keys, 2, target=target)
    codes = v4.index_queries_fp8(normal(rng, 2, 4, 128, dtype=F), cos, sin, at[:2], target=target)
    logits = v4.index_logits_fp8(codes, normal(rng, 2, 4, dtype=F), keys, 2, visible, 7, target=target)
    v4.write_mla_entries(normal(rng, 5, 576), None, cos, sin, at, at, cache, 2, target=target)
    return [keys, codes, logits, cache, v4.read_mla_entries(cache, at, 2, target=target)]


@call
def hyper_pre(rng: np.random.Generator, target: str) -> Any:
    """hyper_post, hyper_head, hyper_pre_backward, hyper_post_backward, hyper_head_backward."""
    x, dy, dpost, dcomb = (normal(rng, *s, dtype=F) for s in ((5, 4, 40), (5, 40), (5, 4), (5, 4, 4)))
    fn, scale, base = (normal(rng, *s, dtype=F) for s in ((24, 160), (3,), (24,)))
    y, post, comb, saved = v4.hyper_pre(x, fn, scale, base, iterations=3, target=target)
    after = v4.hyper_post(y, x, post, comb, target=target)
    grads = v4.hyper_post_backward(y, x, post, comb, after, target=target)
    more = v4.hyper_pre_backward(x, fn, scale, base, saved, dy, dpost, dcomb, iterations=3, target=target)
    small = x, fn[:4].copy(), scale[:1].copy(), base[:4].copy()
    head, kept = v4.hyper_head(*small, return_mixes=True, target=target)
    last = v4.hyper_head_backward(*small, kept, dy, target=target)
    return [y, post, comb, after, *grads, *more, head, *last]
