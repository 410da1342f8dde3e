"""Every kernel of DeepSeek-V4 in checked mode: no race, no read of memory that nobody wrote, no store outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from v4_reference import BF16, Array, F, fp4_cast, fp8_cast

from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import engram, moe, optim, quant

AT = {"target": "numpy:checked"}


def f(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(F)


def b(*shape: int) -> Array:
    return f(*shape).astype(BF16)


def ints(*values: int) -> Array:
    return np.array(values, np.int32)


def casts() -> None:
    x = f(33, 160)
    quant.dequantize(*quant.per_token_cast(x, **AT), block=(1, 128), **AT)
    quant.dequantize(*quant.per_block_cast(x, **AT), block=(128, 128), **AT)
    quant.dequantize(*quant.per_channel_cast(x, **AT), block=(128, 1), **AT)
    fp4 = quant.mxfp4_cast(x, **AT)
    quant.fp4_to_fp8(*fp4, **AT)
    quant.fp4_to_fp8(*fp4, per_token=True, **AT)


def swiglu() -> None:
    quant.swiglu_cast(b(17, 66), f(17), limit=1.0, **AT)
    quant.swiglu_cast_backward(b(17, 256), f(17), b(17, 128), limit=1.0, block=64, **AT)
    quant.swiglu_cast_backward(b(17, 66), f(17), b(17, 33), **AT)


def roundings() -> None:
    quant.unpack_e5m6(quant.pack_e5m6(f(33, 160), **AT), **AT)
    quant.stochastic_round(f(33, 160), seed=1, **AT)


def products() -> None:
    (a, sa), fp8, fp4 = fp8_cast(f(33, 160), 1, 128), fp8_cast(f(70, 160), 128, 128), fp4_cast(f(70, 160))
    quant.scaled_gemm(a, sa, *fp8, **AT)
    quant.scaled_gemm(a, sa, *fp4, **AT)
    packed = quant.fp4_prepack(fp4[0][None], fp4[1][None], **AT)
    quant.fp4_grouped_gemm(b(20, 160), packed, np.array([15]), **AT)


def mixture() -> None:
    z = f(9, 16)
    weights, chosen = moe.route(z, 4, bias=z[0], **AT)
    moe.route(z, 4, bias=z[0], score="sigmoid", groups=8, kept=4, **AT)
    moe.route_backward(z, chosen, weights, **AT)
    mapping = moe.token_mapping(chosen, 16, alignment=4, **AT)
    moe.reduce_rows(moe.expand(f(9, 40), mapping, **AT), mapping, weights, **AT)


def hyper_connections() -> None:
    x, fn, scale, base = f(5, 4, 40), f(24, 160) * F(0.1), f(3), f(24)
    y, post, comb, saved = v4.hyper_pre(x, fn, scale, base, iterations=2, **AT)
    v4.hyper_post_backward(y, v4.hyper_post(y, x, post, comb, **AT), post, comb, x, **AT)
    v4.hyper_pre_backward(x, fn, scale, base, saved, y, post, comb, iterations=2, **AT)
    _, saved = v4.hyper_head(x, fn[:4], scale[:1], base[:4], return_mixes=True, **AT)
    v4.hyper_head_backward(x, fn[:4], scale[:1], base[:4], saved, y, **AT)


def optimisers() -> None:
    optim.muon_step(f(70, 33), f(70, 33), f(70, 33), lr=0.1, **AT)
    optim.adamw_step(f(70, 33), f(70, 33), f(70, 33), abs(f(70, 33)), step=1, lr=0.1, **AT)


def memory() -> None:
    sizes = engram.engram_primes(100, 2, 4)[None]
    engram.ngram_hash(np.arange(27, dtype=np.int32).reshape(9, 3), np.array([[3, 5, 7]]), sizes, **AT)
    given = f(5, 4, 40), f(5, 4, 41)[..., :40].copy(), f(5, 40), f(4, 40), f(4, 40)
    y, saved = engram.engram_gate(*given, **AT)
    engram.engram_gate_backward(*given, saved, y, **AT)
    engram.gather_rows(f(33, 160), ints(3, -1, 99), **AT)


def compressors() -> None:
    for ratio, width in ((4, 66), (8, 33)):
        state = v4.compressor_state(2, ratio, width)
        for lengths in (ints(17, 3), ints(0, 17)):
            given = f(2, 17, width), f(2, 17, width), f(ratio, width), ratio
            v4.compress(*given, state, lengths=lengths, **AT)
            v4.compress_backward(*given, f(2, -(-17 // ratio), 33), lengths=lengths, **AT)


def attention() -> None:
    (cos, sin), at, slots = v4.rope_tables(20, 1e4), np.arange(5, dtype=np.int32), np.array([[0, 4, -1], [3, 2, 1]])
    cache, slots = np.zeros((3, v4.page_bytes(2)), np.uint8), slots.astype(np.int32)
    v4.write_entries(f(5, 512), f(512), cos, sin, at, ints(0, -1, 2, 3, 4), cache, 2, **AT)
    v4.read_entries(cache, at, 2, **AT)
    v4.sparse_attention(b(2, 4, 512), cache, slots, page_size=2, sink=f(4), **AT)
    q, rows = b(2, 4, 40), b(5, 40)
    o, lse = v4.sparse_attention(q, rows, slots, return_lse=True, sink=f(4), **AT)
    v4.sparse_attention_backward(q, rows, slots, o, lse, o, sink=f(4), **AT)


def indexers() -> None:
    (cos, sin), at, visible = v4.rope_tables(20, 1e4), np.arange(5, dtype=np.int32), ints(5, 2)
    for page in (2, 64):
        cache = np.zeros((3, v4.index_page_bytes(page)), np.uint8)
        v4.write_index_keys(f(5, 128), f(128), cos, sin, at, at, cache, page, **AT)
        codes = v4.index_queries(f(2, 4, 128), cos, sin, at[:2], **AT)
        logits = v4.index_logits(codes, f(2, 4), cache, page, visible, 5, **AT)
        v4.select_blocks(logits, 3, visible, **AT)


def baseline() -> None:
    (cos, sin), at, visible = v4.rope_tables(20, 1e4), np.arange(5, dtype=np.int32), ints(5, 2)
    keys = np.zeros((3, v4.index_page_bytes_fp8(2)), np.uint8)
    v4.write_index_keys_fp8(f(5, 128), f(128), f(128), cos, sin, at, ints(0, -1, 2, 1, 4), keys, 2, **AT)
    codes = v4.index_queries_fp8(f(2, 4, 128), cos, sin, at[:2], **AT)
    v4.index_logits_fp8(codes, f(2, 4), keys, 2, visible, 5, **AT)
    cache = np.zeros((3, v4.mla_page_bytes(2)), np.uint8)
    v4.write_mla_entries(f(5, 576), f(512), cos, sin, at, ints(0, -1, 2, 3, 4), cache, 2, **AT)
    v4.read_mla_entries(cache, at, 2, **AT)
    slots = np.array([[0, 4, -1], [3, 2, 1]], np.int32)
    v4.sparse_attention(b(2, 4, 576), cache, slots, page_size=2, value_dim=512, **AT)


USES = (casts, swiglu, roundings, products, mixture, hyper_connections, optimisers, memory, compressors, attention)


@pytest.mark.parametrize("use", (*USES, indexers, baseline), ids=lambda use: use.__name__)
def test_checked_mode_finds_nothing(use: Callable[[], Any]) -> None:
    use()
