"""The indexer's keys, scores and selection, and what follows attention, against NumPy written from the description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import DTYPES, product_bound, same_bits, worst
from running_error import Ball, ball, concatenate
from v4_reference import (
    BF16,
    E2M1,
    TARGETS,
    Array,
    F,
    fp4_cast,
    fp4_values,
    loud,
    power_above,
    rounded,
    through_fp8,
    to_fp4,
)  # fmt: skip

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels.quant import per_block_cast
from tiledsl.testing import assert_targets_agree

HADAMARD = np.array([[(-1) ** bin(i & j).count("1") for j in range(128)] for i in range(128)], np.float64)


def turned(x: Ball, cos: Array, sin: Array) -> Ball:
    """The last elements of each row, as many as the tables have twice, rotated in pairs of neighbours."""
    plain, rest = x[..., : -2 * cos.shape[-1]], x[..., -2 * cos.shape[-1] :]
    a, b = rest[..., 0::2], rest[..., 1::2]
    parts = concatenate([plain, a * cos - b * sin, b * cos + a * sin], x.ndim - 1)
    n, half = plain.shape[-1], cos.shape[-1]
    return parts[..., [*range(n), *(n + half * (j % 2) + j // 2 for j in range(2 * half))]]


def rotated(x: Array, weight: Array | None, cos: Array, sin: Array, at: Array) -> Ball:
    """What is cast: values of bfloat16. A rounding that may fall the other way counts with what it changes."""
    v = ball(rounded(x))
    if weight is not None:
        v = (v / ((v * v).mean(-1, keepdims=True) + 1e-6).sqrt() * weight).through(rounded)
    return (turned(v, cos[at], sin[at]).through(rounded) @ HADAMARD * 128**-0.5).through(rounded)


def key_of(cache: Array, slot: int, page: int) -> tuple[Array, Array]:
    """Bytes and scales of a key."""
    data, at = cache[slot // page], slot % page
    return data[at * 64 : at * 64 + 64], data[page * 64 + at * 4 : page * 64 + at * 4 + 4]


@settings(max_examples=8)
@given(
    n=st.sampled_from([1, 5, 17]),
    page=st.sampled_from([1, 2, 64]),
    normed=st.booleans(),
    dtype=st.sampled_from([BF16, np.dtype(F)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_keys(n: int, page: int, normed: bool, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = loud(rng, (n, 128), dtype, 2)
    weight = rng.uniform(0.5, 2, 128).astype(F) if normed else None
    cos, sin = v4.rope_tables(50, 160000.0, factor=16.0)
    at = rng.integers(0, 50, n).astype(np.int32)
    pages = -(-2 * n // page)
    slots = rng.permutation(pages * page)[:n].astype(np.int32)
    if n > 1:
        slots[1] = -1
    y = rotated(x, weight, cos, sin, at)
    for target in TARGETS:
        cache = np.full((pages, v4.index_page_bytes(page)), 9, np.uint8)
        v4.write_index_keys(x, weight, cos, sin, at, slots, cache, page, target=target)
        kept = np.flatnonzero(slots >= 0)
        for i in kept:
            codes, scales = key_of(cache, int(slots[i]), page)
            value = fp4_values(codes[None], scales[None])[0]
            step = np.repeat(np.exp2(scales.astype(np.float64) - 127), 32)
            size, off = np.abs(y.value[i]).reshape(4, 32), y.error[i].reshape(4, 32)
            least, most = (power_above((p * F(1 / 6)).astype(F)) for p in ((size - off).max(1), (size + off).max(1)))
            assert (least <= scales).all() and (scales <= most).all()
            assert (y[i] / step).through(lambda v: E2M1[to_fp4(v)].astype(np.float64)).holds(value / step)
        assert (cache == 9).sum() >= (pages * page - len(kept)) * 60
        queries = v4.index_queries(x[:, None], cos, sin, at, target=target)
        if not normed:
            for i in kept:
                assert same_bits(queries[i, 0], np.concatenate(key_of(cache, int(slots[i]), page)))


def test_the_cast_of_rotated_keys_is_that_of_mxfp4() -> None:
    """One element of a power of two spreads over all 128 exactly: the bytes are known to the last bit."""
    cos, sin = np.ones((1, 32), F), np.zeros((1, 32), F)
    rng = np.random.default_rng(0)
    x = np.zeros((9, 128), F)
    x[np.arange(9), rng.integers(0, 128, 9)] = np.exp2(rng.integers(-20, 20, 9)) * rng.choice([-1, 1], 9) * 1.5
    x[8, 5], x[8, 7] = 1, -3  # four sizes: sums of two
    at, cache = np.zeros(9, np.int32), np.zeros((9, 68), np.uint8)
    wanted = fp4_cast(rotated(x, None, cos, sin, at).value.astype(BF16))
    for target in TARGETS:
        v4.write_index_keys(x, None, cos, sin, at, np.arange(9, dtype=np.int32), cache, 1, target=target)
        np.testing.assert_array_equal(cache[:, :64], wanted[0])
        np.testing.assert_array_equal(cache[:, 64:], wanted[1].view(np.uint8))


def keys(rng: np.random.Generator, count: int, page: int) -> tuple[Array, Array]:
    """A cache of random keys, in pages that do not follow one another, and its table."""
    pages = -(-count // page) + 1
    codes = rng.integers(0, 256, (pages * page, 64)).astype(np.uint8)
    scales = rng.integers(120, 130, (pages * page, 4)).astype(np.uint8)
    cache = np.concatenate([codes.reshape(pages, -1), scales.reshape(pages, -1)], 1)
    return cache, rng.permutation(pages).astype(np.int32)[None]


@settings(max_examples=8)
@given(
    m=st.sampled_from([1, 5]),
    heads=st.sampled_from([1, 8, 64]),
    n=st.sampled_from([1, 63, 64, 530]),
    page=st.sampled_from([2, 64]),
    seed=st.integers(0, 2**32 - 1),
)
def test_logits_and_selection(m: int, heads: int, n: int, page: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cache, table = keys(rng, n, page)
    q = rng.integers(0, 256, (m, heads, 68)).astype(np.uint8)
    q[:, :, 64:] = rng.integers(120, 130, (m, heads, 4))
    w = rng.standard_normal((m, heads)).astype(F)
    visible = rng.integers(0, n + 1, m).astype(np.int32)
    visible[0] = n
    slots = table[0][np.arange(n) // page] * page + np.arange(n) % page
    pairs = [key_of(cache, int(s), page) for s in slots]
    k = fp4_values(np.stack([p[0] for p in pairs]), np.stack([p[1] for p in pairs]))
    dots = np.maximum(np.einsum("thd,sd->ths", fp4_values(q[..., :64], q[..., 64:].copy()), k), 0)
    wanted = np.einsum("th,ths->ts", w.astype(np.float64), dots)
    size = np.einsum("th,ths->ts", np.abs(w).astype(np.float64), dots)
    seen = np.arange(n) < visible[:, None]
    for target in TARGETS:
        logits = v4.index_logits(q, w, cache, page, visible, n, block_table=table, target=target)
        assert np.isneginf(logits[~seen]).all()
        bound = (heads + 8) * 2.0**-23 * (size + 128 * np.abs(w).sum(1, keepdims=True) * 36 * 64) + 1e-30
        assert (np.abs(np.where(seen, logits, 0) - np.where(seen, wanted, 0)) <= bound).all()
        one = v4.index_logits(q[:1], w[:1], cache, page, visible[:1], n, block_table=table, target=target)
        assert same_bits(one, logits[:1])
        short = v4.index_logits(q, w, cache, page, visible, n, block_table=table, out_dtype="bfloat16", target=target)
        assert same_bits(short, logits.astype(BF16))
        k_most = min(16, n)
        chosen = v4.select_blocks(logits, 16, visible, target=target)
        assert chosen.shape == (m, k_most)
        for t in range(m):
            order = np.argsort(-logits[t], kind="stable")[:k_most]
            np.testing.assert_array_equal(chosen[t], np.where(order < visible[t], order, -1))


def test_one_sum_and_four_are_the_same_number() -> None:
    """Scales close together go through one sum of integers, others through four: no bit tells which, so a key does not
    depend on its neighbours. A NaN is no relevance: 0. 17 heads: a multiple of nothing."""
    rng = np.random.default_rng(4)
    codes, scales = rng.integers(0, 256, (128, 64)).astype(np.uint8), rng.integers(124, 128, (128, 4)).astype(np.uint8)
    q = rng.integers(0, 256, (2, 17, 68)).astype(np.uint8)
    q[:, :, 64:] = rng.integers(125, 129, (2, 17, 4))
    w, visible = rng.standard_normal((2, 17)).astype(F), np.full(2, 128, np.int32)
    far = scales.copy()
    far[[5, 80, 127]] = [[0, 130, 120, 255], [97, 97, 97, 101], [158, 157, 157, 157]]
    others = np.setdiff1d(np.arange(128), [5, 80, 127])
    k = fp4_values(codes, scales)
    dots = np.maximum(np.einsum("thd,sd->ths", fp4_values(q[..., :64], q[..., 64:]), k), 0)
    wanted = (ball(w[:, None]) @ Ball(dots, roundings=2))[:, 0]  # integers, as floats, times scales
    for target in TARGETS:
        near, mixed = (
            v4.index_logits(
                q, w, np.concatenate([codes.reshape(2, -1), s.reshape(2, -1)], 1), 64, visible, 128, target=target
            )
            for s in (scales, far)
        )
        assert wanted.holds(near)
        assert same_bits(near[:, others].copy(), mixed[:, others].copy())
        assert not mixed[:, 5].any() and np.isfinite(mixed[:, 127]).all()
        exact = np.maximum(np.einsum("hd,d->h", fp4_values(q[1, :, :64], q[1, :, 64:]), fp4_values(codes, far)[80]), 0)
        assert (ball(w[1:]) @ Ball(exact[:, None], roundings=2)).holds(mixed[1:, 80:81])


def test_needles_are_found() -> None:
    """Queries find the keys that are near them among 4096 others, through rotation and four bits."""
    rng = np.random.default_rng(1)
    cos, sin = v4.rope_tables(1, 160000.0)
    x = rng.standard_normal((4096, 128)).astype(F)
    places = np.array([3, 700, 4095])
    q = np.repeat(x[places][:, None], 8, 1) + rng.standard_normal((3, 8, 128)).astype(F) * 0.5
    cache, zeros = np.zeros((64, v4.index_page_bytes(64)), np.uint8), np.zeros(4096, np.int32)
    v4.write_index_keys(x, None, cos, sin, zeros, np.arange(4096, dtype=np.int32), cache, 64)
    codes = v4.index_queries(q, cos, sin, zeros[:3])
    visible = np.full(3, 4096, np.int32)
    logits = v4.index_logits(codes, np.ones((3, 8), F), cache, 64, visible, 4096)
    assert v4.select_blocks(logits, 4, visible)[:, 0].tolist() == places.tolist()
    top = v4.select_blocks(logits, 512, visible)
    half = v4.select_blocks(logits.astype(BF16), 512, visible)
    overlap = [len(set(a) & set(b)) / 512 for a, b in zip(top.tolist(), half.tolist(), strict=True)]
    assert min(overlap) >= 0.98


def test_prefill_chunks_and_decode_select_the_same() -> None:
    """From the compressor's input to the chosen blocks: one call, chunks and single tokens, in pages of two kinds."""
    rng, tokens = np.random.default_rng(7), 45
    kv, z = (rng.standard_normal((1, tokens, 256)).astype(F) for _ in range(2))
    ape, weight = rng.standard_normal((4, 256)).astype(F), rng.uniform(0.5, 2, 128).astype(F)
    q, w = rng.standard_normal((tokens, 8, 128)).astype(F), rng.standard_normal((tokens, 8)).astype(F)
    cos, sin = v4.rope_tables(tokens, 160000.0, factor=16.0)

    def run(cuts: list[int], page: int, target: str) -> list[Array]:
        state, keys = v4.compressor_state(1, 4, 256), np.zeros((-(-12 // page), v4.index_page_bytes(page)), np.uint8)
        logits, chosen = [], []
        for first, end in zip([0, *cuts], [*cuts, tokens], strict=True):
            part = slice(first, end)
            made, counts = v4.compress(kv[:, part], z[:, part], ape, 4, state, target=target)
            blocks = np.arange(first // 4, first // 4 + int(counts[0]), dtype=np.int32)
            entries = made[0, : counts[0]]
            v4.write_index_keys(entries, weight, cos, sin, 4 * blocks, blocks, keys, page, target=target)
            at = np.arange(first, end, dtype=np.int32)
            seen = v4.visible_blocks(at, 4)
            codes = v4.index_queries(q[part], cos, sin, at, target=target)
            logits.append(v4.index_logits(codes, w[part], keys, page, seen, 11, target=target))
            chosen.append(v4.select_blocks(logits[-1], 5, seen, target=target))
        return [np.concatenate(logits), np.concatenate(chosen)]

    for target in TARGETS:
        for page in (4, 64):
            whole = run([], page, target)
            for cuts in ([3, 4, 21, 40], list(range(1, tokens))) if target == "llvm" else ([3, 21],):
                assert all(same_bits(a, b) for a, b in zip(run(list(cuts), page, target), whole, strict=True))


@pytest.mark.parametrize("groups", [1, 4])
def test_output(groups: int) -> None:
    rng = np.random.default_rng(3)
    m, heads, dim, r, d = 5, 8, 96, 24, 40
    o = rng.standard_normal((m, heads, dim)).astype(F).astype(BF16)
    a = rng.standard_normal((groups, r, heads * dim // groups)).astype(F).astype(BF16)
    b = rng.standard_normal((d, groups * r)).astype(F).astype(BF16)
    cos, sin = v4.rope_tables(30, 10000.0)
    at = np.array([3, 0, 29, 7, 7])
    pairs = o[:, :, 32:].astype(np.float64).reshape(m, heads, -1, 2)
    size = np.repeat(np.hypot(pairs[..., 0], pairs[..., 1]), 2, -1)
    # What the first product may be off goes through the second.
    parts = zip(np.split(o.reshape(m, -1), groups, 1), a, strict=True)
    middle = concatenate([ball(x.astype(np.float64)) @ w.astype(np.float64).T for x, w in parts], 1)
    between, off = product_bound(o.reshape(m, groups, 1, -1), a.swapaxes(1, 2), "bfloat16")
    exact, bound = product_bound(between.reshape(m, -1), b.T, "bfloat16")
    bound = bound + 1.01 * off.reshape(m, -1) @ np.abs(b.T.astype(np.float64))
    for target in TARGETS:
        turned = o.copy()
        kernels.rope(turned[None, :, :, 32:], cos, sin, positions=at, interleaved=True, out=turned[None, :, :, 32:])
        assert v4.inverse_rope(turned, cos, sin, at, target=target) is turned
        # Two roundings to bfloat16; the first is turned, too, which makes it sqrt(2) as large at most.
        assert worst(turned[:, :, 32:], o[:, :, 32:].astype(np.float64), 2.5 * DTYPES["bfloat16"][1] * size) <= 1
        assert same_bits(turned[:, :, :32].copy(), o[:, :, :32].copy())
        y = v4.output_projection(o, a, b, target=target)
        assert worst(y, exact, bound) <= 1
        assert same_bits(v4.output_projection(o[2:3], a, b, target=target), y[2:3]) or target.startswith("numpy")
        assert v4.output_projection(o[:0], a, b, target=target).shape == (0, d)
        q, scale = per_block_cast(b, scale_dtype="float8_e8m0fnu", target=target)
        narrow = v4.output_projection(o, a, q, scale, target=target)
        wide = q.astype(np.float64) * scale.astype(np.float64)
        assert (through_fp8(middle.through(rounded)) @ wide.T).holds(narrow, "bfloat16")
        assert narrow.dtype == BF16 and not same_bits(narrow, y)
        assert v4.output_projection(o[:0], a, q, scale, target=target).shape == (0, d)


def test_queries_are_normalised_head_by_head() -> None:
    rng = np.random.default_rng(5)
    q = (rng.standard_normal((5, 3, 96)) * 4).astype(F).astype(BF16)
    cos, sin = v4.rope_tables(30, 10000.0)
    at = np.array([3, 0, 29, 7, 7])
    wide = ball(q)
    normed = (wide / ((wide * wide).mean(-1, keepdims=True) + 1e-6).sqrt()).through(rounded)
    wanted = turned(normed, cos[at][:, None], sin[at][:, None])
    for target in TARGETS:
        y = v4.prepare_queries(q, cos, sin, at, target=target)
        assert wanted.holds(y, "bfloat16")
        assert y.dtype == BF16 and same_bits(v4.prepare_queries(q[2:3], cos, sin, at[2:3], target=target), y[2:3])


def test_targets_agree() -> None:
    rng = np.random.default_rng(4)
    cos, sin = v4.rope_tables(20, 10000.0)
    x, w = rng.standard_normal((9, 128)).astype(F), rng.uniform(0.5, 2, 128).astype(F)
    q, weights = rng.standard_normal((2, 4, 128)).astype(F), rng.standard_normal((2, 4)).astype(F)
    at, visible = np.arange(9, dtype=np.int32), np.array([9, 5], np.int32)

    def scores(x: Array, w: Array, q: Array, weights: Array, target: str) -> Any:
        cache = np.zeros((5, v4.index_page_bytes(2)), np.uint8)
        v4.write_index_keys(x, w, cos, sin, at, at, cache, 2, target=target)
        codes = v4.index_queries(q, cos, sin, at[:2], target=target)
        logits = v4.index_logits(codes, weights, cache, 2, visible, 9, target=target)
        return [cache, codes, logits, v4.select_blocks(logits, 6, visible, target=target)]

    assert_targets_agree(scores, x, w, q, weights)


def test_corners_and_arguments() -> None:
    cache, table = np.zeros((2, v4.index_page_bytes(2)), np.uint8), np.array([[0, 5]], np.int32)
    q, w, visible = np.zeros((3, 4, 68), np.uint8), np.zeros((3, 4), F), np.zeros(3, np.int32)
    x, (cos, sin) = np.zeros((2, 128), F), v4.rope_tables(4, 10000.0)
    at = np.zeros(2, np.int32)
    assert np.isneginf(v4.index_logits(q, w, cache, 2, visible, 4)).all()
    assert v4.index_logits(q, w, cache, 2, visible, 0).shape == (3, 0)
    assert v4.select_blocks(np.zeros((3, 0), F), 5, visible).shape == (3, 0)
    nan = np.array([[0.0, np.nan, 1.0]], F)
    assert v4.select_blocks(nan, 2, np.array([3], np.int32)).tolist() == [[1, 2]]
    for call, kind, words in (
        (lambda: v4.index_logits(q, w, cache, 2, visible + 5, 4), TileValueError, "visible holds 5"),
        (lambda: v4.index_logits(q, w, cache, 2, visible, 4, block_table=table), TileValueError, "block_table holds 5"),
        (lambda: v4.index_logits(q[..., :67], w, cache, 2, visible, 4), TileTypeError, "do not fit"),
        (lambda: v4.index_logits(q, w, cache, 3, visible, 4), TileTypeError, "has 204 bytes"),
        (lambda: v4.select_blocks(nan, 0, at[:1]), TileValueError, "k is 0"),
        (lambda: v4.write_index_keys(x[:, :64], None, cos, sin, at, at, cache, 2), TileTypeError, "128 elements"),
        (lambda: v4.index_queries(x[None], cos, sin, at), TileTypeError, "expected \\[1\\]"),
        (lambda: v4.output_projection(x[None], x[None], x), TileTypeError, "do not fit"),
        (lambda: v4.output_projection(x[None], x[None], x[:, :2], x), TileTypeError, "weights|do not fit"),
    ):
        with pytest.raises(kind, match=words):
            call()
