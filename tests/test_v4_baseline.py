"""DeepSeek-V3.2's cache, indexer and sparse attention, the baseline, against NumPy written from their description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import same_bits
from v4_reference import BF16, E4M3, TARGETS, Array, F, fp8_cast, loud

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.testing import assert_targets_agree

HADAMARD = np.array([[(-1) ** bin(i & j).count("1") for j in range(128)] for i in range(128)], np.float64)


def rounded(x: Array) -> Array:
    return x.astype(F).astype(BF16).astype(np.float64)


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
    wide = rounded(x)
    latent = wide[:, :512]
    if weight is not None:
        latent = latent / np.sqrt((latent * latent).mean(1, keepdims=True) + 1e-6) * weight.astype(np.float64)
        latent = rounded(latent)
    a, b, c, s = wide[:, 512::2], wide[:, 513::2], cos[at].astype(np.float64), sin[at].astype(np.float64)
    turned = np.stack([a * c - b * s, b * c + a * s], -1).reshape(n, 64)
    codes, scales = fp8_cast(latent, 1, 128)
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
            np.testing.assert_allclose(
                rope.astype(np.float64), turned[i], rtol=2.0**-7, atol=2.0**-7 * abs(wide[i]).max()
            )
            if weight is None:  # then nothing is rounded before the cast: bit for bit
                assert same_bits(scale, scales[i]) and same_bits(q, codes[i])
            else:
                np.testing.assert_allclose(scale, scales[i], rtol=2.0**-7)
                steps = np.abs(q.astype(np.float64) * np.repeat(scale, 128) - latent[i])
                assert (steps <= 2.0**-3.9 * np.abs(latent[i]) + 2.0**-9 * np.repeat(scale, 128)).all()
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
        keys = rows[chosen[1]].astype(np.float64)
        s = q[1].astype(np.float64) @ keys.T / 24
        p = np.exp(s - s.max(1, keepdims=True))
        np.testing.assert_allclose(o[1].astype(np.float64), p / p.sum(1, keepdims=True) @ keys[:, :512], atol=0.02)
        np.testing.assert_allclose(lse[1], np.log(p.sum(1)) + s.max(1), rtol=1e-5)
        assert not o[2].astype(F).any() and np.isneginf(lse[2]).all()


def rotated(x: Array, norm: tuple[Array, Array] | None, cos: Array, sin: Array, at: Array) -> Array:
    """What is cast: float64 of bfloat16 values; the first 64 elements in pairs (j, j + 32)."""
    x = rounded(x)
    if norm is not None:
        weight, bias = (v.astype(np.float64) for v in norm)
        x = x - x.mean(-1, keepdims=True)
        x = rounded(x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * weight + bias)
    a, b, c, s = x[..., :32], x[..., 32:64], cos[at].astype(np.float64), sin[at].astype(np.float64)
    y = x.copy()
    y[..., :32], y[..., 32:64] = rounded(a * c - b * s), rounded(b * c + a * s)
    return rounded(y @ HADAMARD * 128**-0.5)


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
            np.testing.assert_allclose(scale, np.abs(wanted).max(-1) / 448, rtol=2.0**-6)
            off = np.abs(got * scale[..., None] - wanted)
            assert (off <= 2.0**-4 * np.abs(wanted) + 2.0**-6 * np.abs(wanted).max(-1, keepdims=True)).all()
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
    np.testing.assert_allclose(values[0], HADAMARD[77] * row, rtol=1e-6)
    wanted = (HADAMARD[0] * rounded(8 * cos[1, :1]) + HADAMARD[32] * rounded(8 * sin[1, :1])) * 128**-0.5
    np.testing.assert_allclose(values[1], wanted, rtol=0.07, atol=0.01)


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
