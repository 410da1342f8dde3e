"""DeepSeek-V3.2's cache, indexer and sparse attention, the baseline, against NumPy written from their description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import attention_reference, same_bits, worst
from running_error import Ball, ball, concatenate
from v4_reference import BF16, E4M3, TARGETS, Array, F, fp8_cast, loud, rounded, to_fp8

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.testing import assert_targets_agree

HADAMARD = np.array([[(-1) ** bin(i & j).count("1") for j in range(128)] for i in range(128)], np.float64)


def peaks(v: Ball) -> Ball:
    """Of each row the largest size."""
    return Ball(np.abs(v.value).max(-1, keepdims=True), v.error.max(-1, keepdims=True))


def eight_bits(v: Ball, scale: Array) -> Ball:
    """The codes' values of v over its scale."""
    return (v / scale).through(lambda x: to_fp8(x, E4M3).astype(np.float64))


def entry_of(cache: Array, slot: int, page: int) -> tuple[Array, Array, Array]:
    """Codes, scales and rotated elements of an entry of 656 bytes."""
    data = cache[slot // page][slot % page * 656 :][:656]
    return data[:512].view(E4M3), data[512:528].view(F), data[528:].view(BF16)


@settings(max_examples=8)
@given(
    n=st.sampled_from([1, 5, 17]),
    page=st.sampled_from([1, 3, 64]),
    normed=st.booleans(),
    dtype=st.sampled_from([BF16, np.dtype(F)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_entries(n: int, page: int, normed: bool, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = loud(rng, (n, 576), dtype, 3)
    weight = rng.uniform(0.5, 2, 512).astype(F) if normed else None
    cos, sin = v4.rope_tables(50, 10000.0)
    at = rng.integers(0, 50, n).astype(np.int32)
    pages = -(-2 * n // page)
    slots = rng.permutation(pages * page)[:n].astype(np.int32)
    if n > 1:
        slots[0] = -1
    wide = ball(rounded(x))
    latent = wide[:, :512]
    if weight is not None:
        latent = (latent / ((latent * latent).mean(1, keepdims=True) + 1e-6).sqrt() * weight).through(rounded)
    a, b, c, s = wide[:, 512::2], wide[:, 513::2], cos[at], sin[at]
    turned = concatenate([a * c - b * s, b * c + a * s], 1)
    codes, scales = fp8_cast(latent.value, 1, 128)
    for target in TARGETS:
        cache = np.full((pages, v4.mla_page_bytes(page)), 7, np.uint8)
        assert cache.shape[1] == 656 * page
        v4.write_mla_entries(x, weight, cos, sin, at, slots, cache, page, target=target)
        values = v4.read_mla_entries(cache, slots, page, target=target)
        written = np.zeros(cache.shape, bool)
        for i, slot in enumerate(slots):
            if slot < 0:
                assert not values[i].astype(F).any()
                continue
            written[slot // page, slot % page * 656 : slot % page * 656 + 656] = True
            q, scale, rope = entry_of(cache, int(slot), page)
            assert turned[i].holds(np.concatenate([rope[0::2], rope[1::2]]), "bfloat16")
            if weight is None:  # then nothing is rounded before the cast: bit for bit
                assert same_bits(scale, scales[i]) and same_bits(q, codes[i])
            else:
                rows = latent[i].reshape(4, 128)
                assert (peaks(rows) * (1 / 448)).holds(scale[:, None])
                assert eight_bits(rows, scale[:, None]).holds(q.astype(np.float64).reshape(4, 128))
            exact = (q.astype(F) * np.repeat(scale, 128)).astype(BF16)
            assert same_bits(values[i], np.concatenate([exact, rope]))
        assert (cache[~written] == 7).all()
        alone = np.full_like(cache, 7)
        v4.write_mla_entries(x[-1:], weight, cos, sin, at[-1:], slots[-1:], alone, page, target=target)
        last = slots[-1]
        assert all(
            same_bits(p, q) for p, q in zip(entry_of(alone, last, page), entry_of(cache, last, page), strict=True)
        )


@pytest.mark.parametrize("heads", [3, 17])
def test_sparse_attention_over_entries(heads: int) -> None:
    """The paged FP8 cache gives the bits of the rows that it stands for, and the softmax's values."""
    rng = np.random.default_rng(heads)
    cos, sin = v4.rope_tables(90, 10000.0)
    x, at = rng.standard_normal((90, 576)).astype(F), np.arange(90, dtype=np.int32)
    q = rng.standard_normal((3, heads, 576)).astype(F).astype(BF16)
    chosen = np.stack([rng.permutation(90)[:70] for _ in range(3)]).astype(np.int32)
    chosen[0, 5:60], chosen[2] = -1, -1
    for target in TARGETS:
        cache = np.zeros((12, v4.mla_page_bytes(8)), np.uint8)
        v4.write_mla_entries(x, None, cos, sin, at, at, cache, 8, target=target)
        rows = v4.read_mla_entries(cache, at, 8, target=target)
        o, lse = v4.sparse_attention(q, cache, chosen, page_size=8, value_dim=512, return_lse=True, target=target)
        plain = v4.sparse_attention(q, rows, chosen, value_dim=512, return_lse=True, target=target)
        assert same_bits(o, plain[0]) and same_bits(lse, plain[1]) and o.shape == (3, heads, 512)
        keys = rows[chosen[1]][None, None]
        found = attention_reference(q[1][None, :, None], keys, keys[..., :512], np.ones(1, bool), 1 / 24, "bfloat16")
        exact, exact_lse, bound, lse_bound = (x[0, :, 0] for x in found)
        assert worst(o[1], exact, bound) <= 1 and worst(lse[1], exact_lse, lse_bound) <= 1
        assert not o[2].astype(F).any() and np.isneginf(lse[2]).all()


def rotated(x: Array, norm: tuple[Array, Array] | None, cos: Array, sin: Array, at: Array) -> Ball:
    """What is cast: values of bfloat16; the first 64 elements in pairs (j, j + 32)."""
    v = ball(rounded(x))
    if norm is not None:
        v = v - v.mean(-1, keepdims=True)
        v = (v / ((v * v).mean(-1, keepdims=True) + 1e-6).sqrt() * norm[0] + norm[1]).through(rounded)
    a, b, c, s = v[..., :32], v[..., 32:64], cos[at], sin[at]
    y = concatenate([(a * c - b * s).through(rounded), (b * c + a * s).through(rounded), v[..., 64:]], v.ndim - 1)
    return (y @ HADAMARD * 128**-0.5).through(rounded)


@settings(max_examples=8)
@given(
    n=st.sampled_from([1, 5, 70]),
    page=st.sampled_from([1, 3, 64]),
    heads=st.sampled_from([1, 7, 64]),
    normed=st.booleans(),
    dtype=st.sampled_from([BF16, np.dtype(F)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_indexer(n: int, page: int, heads: int, normed: bool, dtype: Any, seed: int) -> None:
    """Keys and queries as cast values; logits from the bytes, exactly but for the sums' rounding."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, 128)) * 4).astype(F).astype(dtype)
    q = (rng.standard_normal((3, heads, 128)) * 2).astype(F).astype(dtype)
    norm = (rng.uniform(0.5, 2, 128).astype(F), rng.standard_normal(128).astype(F)) if normed else None
    cos, sin = v4.rope_tables(100, 10000.0)
    at, w = rng.integers(0, 100, n).astype(np.int32), rng.standard_normal((3, heads)).astype(F)
    pages = -(-n // page)
    order = rng.permutation(pages * page)
    table = rng.permutation(pages).astype(np.int32)[None]
    slots = (table[0][np.arange(n) // page] * page + np.arange(n) % page).astype(np.int32)
    visible = np.array([n, n // 2, 0], np.int32)
    exact, exact_q = rotated(x, norm, cos, sin, at), rotated(q, None, cos[:3, None], sin[:3, None], np.arange(3))
    assert len(order) >= n
    for target in TARGETS:
        cache = np.zeros((pages, v4.index_page_bytes_fp8(page)), np.uint8)
        v4.write_index_keys_fp8(x, *(norm or (None, None)), cos, sin, at, slots, cache, page, target=target)
        codes = v4.index_queries_fp8(q, cos, sin, np.arange(3, dtype=np.int32), target=target)
        assert codes.shape == (3, heads, 132) and cache.shape[1] == 132 * page
        k8 = np.concatenate([p[: 128 * page].reshape(page, 128) for p in cache])[slots].view(E4M3)
        sk = np.concatenate([p[128 * page :].view(F) for p in cache])[slots]
        q8 = codes[..., :128].copy().view(E4M3).astype(np.float64)
        sq = codes[..., 128:].copy().view(F)[..., 0]
        for got, scale, wanted in ((k8.astype(np.float64), sk, exact), (q8, sq, exact_q)):
            assert (peaks(wanted) * (1 / 448)).holds(scale[..., None])
            assert eight_bits(wanted, scale[..., None]).holds(got)
        dots = np.maximum(np.einsum("thd,sd->ths", q8, k8.astype(np.float64)), 0)
        folded = (w * sq).astype(F).astype(np.float64)
        logits = v4.index_logits_fp8(codes, w, cache, page, visible, n, block_table=table, target=target)
        size = np.einsum("th,ths->ts", np.abs(folded), dots) * sk
        seen = np.arange(n) < visible[:, None]
        assert np.isneginf(logits[~seen]).all()
        error = np.abs(logits - np.einsum("th,ths->ts", folded, dots) * sk)
        assert (error[seen] <= 2.0**-16 * size[seen] + 1e-30).all()
        one = v4.index_logits_fp8(codes[1:2], w[1:2], cache, page, visible[1:2], n, block_table=table, target=target)
        assert same_bits(one, logits[1:2])
        chosen = v4.select_blocks(logits, min(n, 20), visible, target=target)
        assert (chosen[2] == -1).all() and (chosen[0] >= 0).all()


def test_the_transform_and_the_order_of_pairs() -> None:
    """A unit vector gives a row of Hadamard's matrix; position 1 turns element 0 against element 32, not 1."""
    cos, sin = v4.rope_tables(2, 10000.0)
    units, cache = np.zeros((2, 128), F), np.zeros((2, 132), np.uint8)
    units[0, 77] = units[1, 0] = 8
    at = np.array([0, 1], np.int32)
    v4.write_index_keys_fp8(units, None, None, cos, sin, at, np.arange(2, dtype=np.int32), cache, 1)
    values = cache[:, :128].copy().view(E4M3).astype(np.float64) * cache[:, 128:].copy().view(F)
    row = float(np.asarray(8 * 128**-0.5, F).astype(BF16))
    scales = cache[:, 128:].copy().view(F)
    assert Ball(HADAMARD[77] * row, roundings=2).holds(values[0])  # the scale's, and the quotient's
    turned = [ball(HADAMARD[32 * i]) * rounded(8 * t[1, :1]) for i, t in enumerate((cos, sin))]
    wanted = ((turned[0] + turned[1]) * 128**-0.5).through(rounded)
    assert (eight_bits(wanted, scales[1]) * scales[1]).holds(values[1])


def test_targets_agree() -> None:
    rng = np.random.default_rng(4)
    cos, sin = v4.rope_tables(20, 10000.0)
    x, w, bias = (rng.standard_normal(s).astype(F) for s in ((9, 128), 128, 128))
    q, weights, latents = (rng.standard_normal(s).astype(F) for s in ((2, 4, 128), (2, 4), (9, 576)))
    at, visible = np.arange(9, dtype=np.int32), np.array([9, 5], np.int32)

    def baseline(x: Array, q: Array, weights: Array, latents: Array, target: str) -> Any:
        keys, cache = np.zeros((5, v4.index_page_bytes_fp8(2)), np.uint8), np.zeros((5, v4.mla_page_bytes(2)), np.uint8)
        v4.write_index_keys_fp8(x, w, bias, cos, sin, at, at, keys, 2, target=target)
        codes = v4.index_queries_fp8(q, cos, sin, at[:2], target=target)
        logits = v4.index_logits_fp8(codes, weights, keys, 2, visible, 9, target=target)
        chosen = v4.select_blocks(logits, 6, visible, target=target)
        v4.write_mla_entries(latents, None, cos, sin, at, at, cache, 2, target=target)
        heads = latents[:4].reshape(2, 2, 576).astype(BF16)
        o = v4.sparse_attention(heads, cache, chosen, page_size=2, value_dim=512, target=target)
        return [keys, codes, logits, chosen, cache, o, v4.read_mla_entries(cache, at, 2, target=target)]

    assert_targets_agree(baseline, x, q, weights, latents)


def test_corners_and_arguments() -> None:
    keys, cache = np.zeros((2, v4.index_page_bytes_fp8(2)), np.uint8), np.zeros((2, v4.mla_page_bytes(2)), np.uint8)
    q, w, visible = np.zeros((3, 4, 132), np.uint8), np.zeros((3, 4), F), np.zeros(3, np.int32)
    x, rows, (cos, sin) = np.zeros((2, 128), F), np.zeros((2, 576), F), v4.rope_tables(4, 10000.0)
    at, table = np.zeros(2, np.int32), np.array([[0, 5]], np.int32)
    heads, slots = np.zeros((2, 3, 576), BF16), np.zeros((2, 5), np.int32)
    assert np.isneginf(v4.index_logits_fp8(q, w, keys, 2, visible, 4)).all()
    assert v4.index_logits_fp8(q[:0], w[:0], keys, 2, visible[:0], 4).shape == (0, 4)
    v4.write_mla_entries(rows[:0], None, cos, sin, at[:0], at[:0], cache, 2)
    assert v4.read_mla_entries(cache, at[:0], 2).shape == (0, 576)
    nan = np.full((1, 576), np.nan, F)
    v4.write_mla_entries(nan, None, cos, sin, at[:1], at[:1], cache, 2)
    assert np.isnan(v4.read_mla_entries(cache, at[:1], 2).astype(F)).all()
    for call, kind, words in (
        (lambda: v4.index_logits_fp8(q, w, keys, 2, visible + 5, 4), TileValueError, "visible holds 5"),
        (lambda: v4.index_logits_fp8(q, w, keys, 2, visible, 4, block_table=table), TileValueError, "table holds 5"),
        (lambda: v4.index_logits_fp8(q[..., :68], w, keys, 2, visible, 4), TileTypeError, "do not fit"),
        (lambda: v4.index_logits_fp8(q, w, keys, 3, visible, 4), TileTypeError, "has 396 bytes"),
        (lambda: v4.index_logits_fp8(q, w, keys, 2, visible, 4, sequence=at), TileTypeError, "expected \\[3\\]"),
        (lambda: v4.write_index_keys_fp8(x, x[0], None, cos, sin, at, at, keys, 2), TileTypeError, "come together"),
        (
            lambda: v4.write_index_keys_fp8(x[:, :64], None, None, cos, sin, at, at, keys, 2),
            TileTypeError,
            "128 elements",
        ),
        (
            lambda: v4.write_mla_entries(rows[:, :512], None, cos, sin, at, at, cache, 2),
            TileTypeError,
            "of 576 elements",
        ),
        (lambda: v4.write_mla_entries(rows, None, cos, sin, at + 4, at, cache, 2), TileValueError, "positions holds 4"),
        (lambda: v4.write_mla_entries(rows, rows[0], cos, sin, at, at, cache, 2), TileTypeError, "a weight of 512"),
        (
            lambda: v4.sparse_attention(heads, cache, slots + 4, page_size=2),
            TileValueError,
            "holds 4, expected -1 to 3",
        ),
        (lambda: v4.sparse_attention(heads, cache, slots, page_size=3), TileTypeError, "has 1968 bytes"),
    ):
        with pytest.raises(kind, match=words):
            call()
