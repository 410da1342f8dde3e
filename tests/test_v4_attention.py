"""Compressors, cache entries and sparse attention of DeepSeek-V4 against NumPy written from its description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import U, attention_gradients, attention_reference, close, same_bits, worst
from running_error import Ball, ball, concatenate, gradients
from v4_reference import BF16, E4M3, E8M0, TARGETS, Array, F, fp8_cast, loud

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.testing import assert_targets_agree

# -- compressors ------------------------------------------------------------------------------------------------------


def compressed(kv: Any, z: Any, ape: Any, ratio: int) -> list[Ball]:
    """The formula: entries of one sequence from its beginning, each [1, c]."""
    kv, z, ape = (ball(x) for x in (kv, z, ape))
    overlap = ratio == 4
    c = kv.shape[1] // (2 if overlap else 1)
    out = []
    for i in range(kv.shape[0] // ratio):
        own = slice(i * ratio, (i + 1) * ratio)
        rows, logits = kv[own, -c:], z[own, -c:] + ape[:, -c:]
        if overlap and i:
            before = slice((i - 1) * ratio, i * ratio)
            rows = concatenate([kv[before, :c], rows])
            logits = concatenate([z[before, :c] + ape[:, :c], logits])
        p = (logits - logits.max(0)).exp()
        out.append((p * rows).sum(0, keepdims=True) / p.sum(0, keepdims=True))
    return out


@settings(max_examples=8)
@given(
    ratio=st.sampled_from([4, 8, 128]),
    seq=st.sampled_from([1, 3, 17, 40, 300]),
    c=st.sampled_from([1, 33, 128]),
    cuts=st.lists(st.sampled_from([1, 1, 2, 5, 64]), max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_compress(ratio: int, seq: int, c: int, cuts: list[int], seed: int) -> None:
    """One call, chunks and single tokens give the same bits, and the formula's values."""
    rng = np.random.default_rng(seed)
    width = 2 * c if ratio == 4 else c
    kv, z = (rng.standard_normal((2, seq, width)).astype(F) for _ in range(2))
    z *= 3
    ape = rng.standard_normal((ratio, width)).astype(F)
    wanted = [compressed(kv[b], z[b], ape, ratio) for b in range(2)]
    for target in TARGETS:
        state = v4.compressor_state(2, ratio, width)
        whole, counts = v4.compress(kv, z, ape, ratio, state, target=target)
        assert counts.tolist() == [seq // ratio] * 2 and state.seen.tolist() == [seq] * 2
        for b in range(2):
            assert all(w.holds(whole[b, i : i + 1]) for i, w in enumerate(wanted[b]))
        other, at, parts = v4.compressor_state(2, ratio, width), 0, []
        for cut in [*cuts, seq]:
            step = slice(at, min(at + cut, seq))
            if step.stop > step.start:
                made, n = v4.compress(kv[:, step], z[:, step], ape, ratio, other, target=target)
                parts.append(made[:, : n[0]])
            at = step.stop
        assert same_bits(np.concatenate(parts, 1), whole[:, : counts[0]].copy())
        alone = v4.compressor_state(1, ratio, width)
        one, _ = v4.compress(kv[1:], z[1:], ape, ratio, alone, target=target)
        assert same_bits(one[0, : counts[1]], whole[1, : counts[1]])
        for x, y in ((state.kv, other.kv), (state.score, other.score)):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(("ratio", "seq", "c"), [(4, 3, 5), (4, 17, 33), (4, 40, 64), (8, 33, 65), (128, 300, 7)])
def test_gradients_of_the_compressors(ratio: int, seq: int, c: int) -> None:
    """Against the formula gone backwards; ragged; sequences alone have the same bits."""
    rng, width = np.random.default_rng(seq), 2 * c if ratio == 4 else c
    kv, z = (rng.standard_normal((2, seq, width)).astype(F) for _ in range(2))
    z *= 3
    ape, lengths = rng.standard_normal((ratio, width)).astype(F), np.array([seq, max(seq - 3, 0)], np.int32)
    blocks = -(-seq // ratio)
    dc = rng.standard_normal((2, blocks, c)).astype(F)
    leaves = [ball(t) for t in (kv, z, ape)]
    entries = [compressed(leaves[0][b, :n], leaves[1][b, :n], leaves[2], ratio) for b, n in enumerate(lengths)]
    seeds = [dc[b, i : i + 1] for b in range(2) for i in range(len(entries[b]))]
    wanted = gradients(entries[0] + entries[1], seeds, leaves)
    dc[1, lengths[1] // ratio :] = np.nan  # not read
    for target in TARGETS:
        got = v4.compress_backward(kv, z, ape, ratio, dc, lengths=lengths, target=target)
        assert all(g.dtype == F and w.holds(g) for g, w in zip(got, wanted, strict=True))
        alone = v4.compress_backward(kv[:1], z[:1], ape, ratio, dc[:1], target=target)
        assert same_bits(alone[0], got[0][:1]) and same_bits(alone[1], got[1][:1])


def test_ragged_decode_and_the_position_bias() -> None:
    """Sequences of different lengths in one call. Trap 3: the bias is in the scores that the state keeps."""
    rng = np.random.default_rng(0)
    kv, z, ape = (rng.standard_normal(s).astype(F) for s in ((2, 9, 6), (2, 9, 6), (4, 6)))
    state = v4.compressor_state(2, 4, 6)
    first, n = v4.compress(kv, z, ape, 4, state, lengths=np.array([9, 3], np.int32))
    assert n.tolist() == [2, 0] and state.seen.tolist() == [9, 3]
    assert same_bits(state.score[1, 2], z[1, 2] + ape[2])
    second, n = v4.compress(kv[:, 3:6], z[:, 3:6], ape, 4, state, lengths=np.array([0, 3], np.int32))
    assert n.tolist() == [0, 1]
    assert all(w.holds(first[0, i : i + 1]) for i, w in enumerate(compressed(kv[0], z[0], ape, 4)))
    assert compressed(kv[1, :6], z[1, :6], ape, 4)[0].holds(second[1, :1])


# -- entries ----------------------------------------------------------------------------------------------------------


def entry_values(x: Array, weight: Array | None, cos: Array, sin: Array, at: Array) -> tuple[Array, Array]:
    """bfloat16 [n, 512] after norm and rotation, before FP8; and the bound of its error in bfloat16 steps."""
    x = x.astype(BF16).astype(np.float64)
    if weight is not None:
        x = x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weight.astype(np.float64)
        x = x.astype(F).astype(BF16).astype(np.float64)
    a, b, c, s = x[:, 448::2], x[:, 449::2], cos[at].astype(np.float64), sin[at].astype(np.float64)
    y = x.copy()
    y[:, 448::2], y[:, 449::2] = a * c - b * s, b * c + a * s
    return y.astype(F).astype(BF16), y


@settings(max_examples=8)
@given(
    n=st.sampled_from([1, 5, 17]),
    page=st.sampled_from([1, 2, 64]),
    normed=st.booleans(),
    dtype=st.sampled_from([BF16, np.dtype(F)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_entries(n: int, page: int, normed: bool, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = loud(rng, (n, 512), dtype, 3)
    weight = rng.uniform(0.5, 2, 512).astype(F) if normed else None
    cos, sin = v4.rope_tables(50, 10000.0)
    at = rng.integers(0, 50, n).astype(np.int32)
    pages = -(-2 * n // page)
    slots = rng.permutation(pages * page)[:n].astype(np.int32)
    if n > 1:
        slots[1] = -1
    value, _ = entry_values(x, weight, cos, sin, at)
    for target in TARGETS:
        cache = np.full((pages, v4.page_bytes(page)), 7, np.uint8)
        v4.write_entries(x, weight, cos, sin, at, slots, cache, page, target=target)
        back = v4.read_entries(cache, slots, page, target=target)
        wide = value.astype(np.float64)
        rope = back[:, 448:].astype(np.float64)
        kept = slots >= 0
        assert (np.abs(rope - wide[:, 448:])[kept] <= 2.0**-7 * np.abs(wide[:, 448:]).max(1, keepdims=True)[kept]).all()
        if not normed:  # nothing but casts and exact products before FP8: the bytes are known
            q, s = fp8_cast(value[:, :448].astype(F), 1, 64, e8m0=True)
            for i in np.flatnonzero(kept):
                data = cache[slots[i] // page]
                begin = slots[i] % page * 576
                assert same_bits(data[begin : begin + 448].view(E4M3), q[i])
                tail = page * 576 + slots[i] % page * 8
                assert same_bits(data[tail : tail + 7].view(E8M0), s[i]) and data[tail + 7] == 0
                assert same_bits(data[begin + 448 : begin + 576].view(BF16), back[i, 448:])
                wanted = q[i].astype(F) * np.repeat(s[i].astype(F), 64)
                np.testing.assert_array_equal(back[i, :448].astype(F), wanted)
        else:
            step = np.repeat(np.abs(wide[:, :448]).reshape(n, 7, 64).max(2), 64, 1) * 2.0**-3
            assert (np.abs(back[:, :448].astype(np.float64) - wide[:, :448])[kept] <= step[kept]).all()
        assert not back[~kept].astype(F).any()
        used = np.zeros_like(cache, bool)
        for slot in slots[kept]:
            used[slot // page, slot % page * 576 : (slot % page + 1) * 576] = True
            used[slot // page, page * 576 + slot % page * 8 : page * 576 + (slot % page + 1) * 8] = True
        assert (cache[~used] == 7).all()


def test_published_page_sizes_and_tables() -> None:
    assert [v4.page_bytes(n) for n in (64, 2)] == [37440, 1728]
    cos, sin = v4.rope_tables(100, 160000.0, factor=16.0)
    cos, sin = cos.astype(np.float64), sin.astype(np.float64)
    assert np.abs(cos**2 + sin**2 - 1).max() <= 3 * U  # trap 6: no mscale
    angle = np.arctan2(sin[1], cos[1])
    plain = 160000.0 ** (-np.arange(32) / 32)
    assert abs(angle[0] - plain[0]) <= 2 * U and abs(angle[-1] * 16 / plain[-1] - 1) <= 2 * U
    assert (angle <= plain * (1 + 2 * U)).all() and (angle >= plain / 16 * (1 - 2 * U)).all()


# -- sparse attention -------------------------------------------------------------------------------------------------


def attention(q: Array, rows: list[Array], slots: list[Array], scale: float, sink: Array | None, values: int) -> Any:
    """Float64 o and lse (without the sink), and the bounds of their errors, token by token."""
    found = []
    for t in range(len(q)):
        kv = np.concatenate([r[s[t][s[t] >= 0]] for r, s in zip(rows, slots, strict=True)])[None, None]
        parts = attention_reference(
            q[t][None, :, None], kv, kv[..., :values], np.ones(1, bool), scale, "bfloat16", sink
        )
        found.append([x[0, :, 0] for x in parts])
    return tuple(map(np.stack, zip(*found, strict=True)))


@settings(max_examples=6)
@given(
    m=st.sampled_from([1, 3]),
    heads=st.sampled_from([1, 17, 64]),
    n=st.sampled_from([1, 63, 130]),
    extra=st.sampled_from([0, 40]),
    sink=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_sparse_attention_of_caches(m: int, heads: int, n: int, extra: int, sink: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    cos, sin = v4.rope_tables(200, 10000.0)
    q = (rng.standard_normal((m, heads, 512)) * 2).astype(F).astype(BF16)
    caches, rows = [], []
    for page in (64, 2):
        cache = np.zeros((-(-150 // page), v4.page_bytes(page)), np.uint8)
        at = np.arange(150, dtype=np.int32)
        v4.write_entries(rng.standard_normal((150, 512)).astype(F), None, cos, sin, at, at, cache, page)
        caches.append(cache)
        rows.append(v4.read_entries(cache, at, page))
    slots = [np.stack([rng.permutation(150)[:k] for _ in range(m)]).astype(np.int32) for k in (n, max(extra, 1))]
    for s in slots:
        s[rng.random(s.shape) < 0.3] = -1
    slots[0][-1] = -1
    sinks = rng.standard_normal(heads).astype(F) * 3 if sink else None
    more: dict[str, Any] = {"extra": caches[1], "extra_slots": slots[1], "extra_page_size": 2} if extra else {}
    count = 2 if extra else 1
    wanted, wanted_lse, bound, lse_bound = attention(q, rows[:count], slots[:count], 512**-0.5, sinks, 512)
    for target in TARGETS:
        o, lse = v4.sparse_attention(
            q, caches[0], slots[0], page_size=64, sink=sinks, return_lse=True, target=target, **more
        )
        assert worst(o, wanted, bound) <= 1 and worst(lse, wanted_lse, lse_bound) <= 1
        if not extra:
            assert not o[-1].astype(F).any() and np.isneginf(lse[-1]).all()
        few = {**more, "extra_slots": slots[1][:1]} if extra else {}
        one = v4.sparse_attention(q[:1], caches[0], slots[0][:1], page_size=64, sink=sinks, target=target, **few)
        assert same_bits(one, o[:1])
        dense = v4.sparse_attention(q, rows[0], slots[0], sink=sinks, target=target)
        if not extra:
            assert same_bits(dense, o)


def test_sparse_attention_is_dense_attention_over_everything() -> None:
    """Heavily compressed attention: a list of all blocks, in pages; and a latent of 576 elements with 512 values."""
    rng = np.random.default_rng(1)
    q, rows = (rng.standard_normal(s).astype(F).astype(BF16) for s in ((3, 16, 576), (70, 576)))
    positions = np.array([127, 300, 8000])
    assert v4.visible_blocks(positions, 128).tolist() == [1, 2, 62]
    assert v4.visible_blocks(np.array([2, 3, 4, 6, 7]), 4).tolist() == [0, 1, 1, 1, 2]
    slots = v4.block_slots(positions, 128)
    assert slots.shape == (3, 62) and (slots >= 0).sum(1).tolist() == [1, 2, 62]
    wanted, _, bound, _ = attention(q, [rows], [slots], 576**-0.5, None, 512)
    o = v4.sparse_attention(q, rows, slots, value_dim=512)
    assert worst(o, wanted, bound) <= 1
    window = v4.window_slots(np.array([2, 130]), 128)
    assert window[0].tolist() == [-1] * 125 + [0, 1, 2] and window[1].tolist() == list(range(3, 131))
    assert v4.window_slots(np.array([130]), 128, ring=True)[0].tolist() == [t % 128 for t in range(3, 131)]


def test_probabilities_are_rounded_for_the_product_and_not_for_the_sum() -> None:
    """Trap 13. 63 of 64 probabilities, relative to the largest, lie just below halfway between two bfloat16."""
    q, rows = np.zeros((1, 1, 16), BF16), np.zeros((64, 16), BF16)
    q[0, 0, 0] = 1
    rows[:, 1] = 1
    rows[1:, 0] = -0.6875  # exp(-0.6875) is between 0.5 and 0.50390625: 0.50283
    scale = 0.6895 / 0.6875  # makes it 0.50183
    o, lse = v4.sparse_attention(q, rows, np.arange(64, dtype=np.int32)[None], scale=scale, return_lse=True)
    p = np.exp(-0.6895)
    assert 0.5 < p < 0.5 + 2.0**-9
    assert close(lse[0], np.log(1 + 63 * p)[None], 8)  # of the exponent, exp2, the sum, the logarithm
    assert float(o[0, 0, 1]) == float(np.array((1 + 63 * 0.5) / (1 + 63 * p), BF16)) < 1


def test_prefill_chunks_and_decode_have_the_same_bits() -> None:
    """All tokens at once over their own entries and their blocks, or one by one with a ring of 128 and more blocks."""
    rng, tokens, page = np.random.default_rng(6), 150, 8
    x, q = rng.standard_normal((tokens, 512)).astype(F), rng.standard_normal((tokens, 2, 512)).astype(F).astype(BF16)
    blocks = rng.standard_normal((tokens // 4, 512)).astype(F)
    cos, sin = v4.rope_tables(tokens, 10000.0)
    at, sink = np.arange(tokens, dtype=np.int32), rng.standard_normal(2).astype(F)
    ring, whole, comp = (np.zeros((20, v4.page_bytes(page)), np.uint8) for _ in range(3))
    v4.write_entries(x, None, cos, sin, at, at, whole, page)
    v4.write_entries(blocks, None, cos, sin, at[: len(blocks)] * 4, at[: len(blocks)], comp, page)
    options: dict[str, Any] = {"page_size": page, "extra": comp, "extra_page_size": page, "sink": sink}
    lists = v4.block_slots(at, 4)
    prefill = v4.sparse_attention(q, whole, v4.window_slots(at), extra_slots=lists, **options)
    cut = v4.sparse_attention(q[70:], whole, v4.window_slots(at[70:]), extra_slots=lists[70:], **options)
    assert same_bits(cut, prefill[70:])
    for t in range(tokens):
        one = slice(t, t + 1)
        v4.write_entries(x[one], None, cos, sin, at[one], at[one] % 128, ring, page)
        window, seen = v4.window_slots(at[one], ring=True), v4.block_slots(at[one], 4)
        assert same_bits(v4.sparse_attention(q[one], ring, window, extra_slots=seen, **options), prefill[one])


@pytest.mark.parametrize("sink", [False, True])
def test_gradients_are_those_of_automatic_differentiation(sink: bool) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng, (m, heads, n, dim, values) = np.random.default_rng(2), (19, 17, 70, 40, 32)
    q, rows, do = (
        rng.standard_normal(s).astype(F).astype(BF16) for s in ((m, heads, dim), (90, dim), (m, heads, values))
    )
    slots = np.stack([rng.permutation(90)[:n] for _ in range(m)]).astype(np.int32)
    slots[rng.random(slots.shape) < 0.3] = -1
    slots[4] = -1
    sinks = rng.standard_normal(heads).astype(F) if sink else None
    leaves = [torch.from_numpy(x.astype(np.float64)).requires_grad_() for x in (q, rows)]
    tail = torch.from_numpy((sinks if sink else np.full(heads, -np.inf)).astype(np.float64))
    tail.requires_grad_(sink)
    seen = torch.from_numpy(slots >= 0)
    kv = leaves[1][torch.from_numpy(np.maximum(slots, 0)).long()]
    s = torch.einsum("thd,tnd->thn", leaves[0], kv) * dim**-0.5
    s = s.masked_fill(~seen[:, None], -np.inf)
    s = torch.cat([s, tail[None, :, None].expand(m, heads, 1)], -1)
    p = torch.softmax(torch.where(seen.any(1)[:, None, None], s, 0.0), -1)[..., :-1]
    out = torch.einsum("thn,tnd->thd", p, kv[..., :values]) * seen.any(1)[:, None, None]
    (out * torch.from_numpy(do.astype(np.float64))).sum().backward()
    exact, lse, bound, _ = attention(q, [rows], [slots], dim**-0.5, sinks, values)
    np.testing.assert_allclose(exact, out.detach().numpy(), rtol=0, atol=1e-12)
    bounds = [np.full(x.shape, 2.0**-134) for x in (q, rows, tail)]  # what nobody reads has a gradient of 0
    for t in np.flatnonzero((slots >= 0).any(1)):
        seen_rows = slots[t][slots[t] >= 0]
        kv = rows[seen_rows][None, None]
        parts, off, _, _ = attention_gradients(
            q[None].swapaxes(1, 2)[:, :, t : t + 1], kv, kv[..., :values], do[None].swapaxes(1, 2)[:, :, t : t + 1],
            np.zeros((1, heads, 1)), np.ones(1, bool), dim**-0.5, "bfloat16", sinks,
        )  # fmt: skip
        bounds[0][t] = off[0][0, :, 0]
        more = [b[0, 0] + m * U * (np.abs(e[0, 0]) + b[0, 0]) for e, b in zip(parts[1:3], off[1:3], strict=True)]
        bounds[1][seen_rows] += more[0]
        bounds[1][seen_rows, :values] += more[1]
        if sink:
            bounds[2] += off[3] + m * U * (np.abs(parts[3]) + off[3])
    for target in TARGETS:
        o = v4.sparse_attention(q, rows, slots, value_dim=values, sink=sinks, target=target)
        assert worst(o, exact, bound) <= 1
        given = exact.astype(F).astype(BF16), lse.astype(F)
        got = v4.sparse_attention_backward(q, rows, slots, *given, do, sink=sinks, target=target)
        for g, leaf, b in zip(got, [*leaves, tail], bounds, strict=False):
            assert worst(g, leaf.grad.numpy(), b) <= 1
        assert not got[0][4].astype(F).any() and len(got) == 2 + sink


def test_targets_agree() -> None:
    rng = np.random.default_rng(3)
    cos, sin = v4.rope_tables(20, 10000.0)
    x, w = rng.standard_normal((5, 512)).astype(F), rng.uniform(0.5, 2, 512).astype(F)
    at = np.arange(5, dtype=np.int32)

    def cached(x: Array, w: Array, q: Array, slots: Array, target: str) -> Any:
        cache = np.zeros((3, v4.page_bytes(2)), np.uint8)
        v4.write_entries(x, w, cos, sin, at, at, cache, 2, target=target)
        return [cache, v4.sparse_attention(q, cache, slots, page_size=2, target=target)]

    slots = np.array([[0, 4, -1], [3, 2, 1]], np.int32)
    assert_targets_agree(cached, x, w, rng.standard_normal((2, 4, 512)).astype(F).astype(BF16), slots)
    q, rows, do = (rng.standard_normal(s).astype(F).astype(BF16) for s in ((2, 4, 16), (5, 16), (2, 4, 16)))

    def gradients(q: Array, rows: Array, do: Array, target: str) -> Any:
        o, lse = v4.sparse_attention(q, rows, slots, return_lse=True, target=target)
        return v4.sparse_attention_backward(q, rows, slots, o, lse, do, target=target)

    assert_targets_agree(gradients, q, rows, do)

    def blocks(kv: Array, z: Array, ape: Array, target: str) -> Any:
        state = v4.compressor_state(1, 4, 6)
        made, _ = v4.compress(kv, z, ape, 4, state, target=target)
        grads = v4.compress_backward(kv, z, ape, 4, made, target=target)
        return [made, state.kv, state.score, *grads]

    assert_targets_agree(blocks, *(rng.standard_normal(s).astype(F) for s in ((1, 8, 6), (1, 8, 6), (4, 6))))


def test_arguments_are_checked() -> None:
    x, q = np.zeros((2, 512), F), np.zeros((2, 3, 512), BF16)
    cos, sin = v4.rope_tables(4, 10000.0)
    at, cache = np.zeros(2, np.int32), np.zeros((2, v4.page_bytes(2)), np.uint8)
    state, slots = v4.compressor_state(1, 4, 6), np.zeros((2, 5), np.int32)
    kv, rows = np.zeros((1, 8, 6), F), np.zeros((9, 512), BF16)
    o, lse = q, np.zeros((2, 3), F)
    for call, kind, words in (
        (lambda: v4.write_entries(x, None, cos, sin, at + 4, at, cache, 2), TileValueError, "positions holds 4"),
        (lambda: v4.write_entries(x, None, cos, sin, at, at, cache, 3), TileTypeError, "has 2304 bytes"),
        (lambda: v4.write_entries(x[:, :500], None, cos, sin, at, at, cache, 2), TileTypeError, "of 512 elements"),
        (lambda: v4.compress(kv, kv, kv[0], 4, state), TileTypeError, "ape is \\(8, 6\\)"),
        (lambda: v4.compress(kv, kv, kv[0, :4], 4, state, lengths=at[:1] + 9), TileValueError, "lengths holds 9"),
        (lambda: v4.compress(kv, kv, kv[0, :4], 4, state, lengths=at), TileTypeError, "expected \\[1\\]"),
        (lambda: v4.compress_backward(kv, kv, kv[0, :4], 4, kv), TileTypeError, "expected dentries \\[1, 2, 3\\]"),
        (lambda: v4.sparse_attention(q, cache, slots + 4, page_size=2), TileValueError, "holds 4, expected -1 to 3"),
        (lambda: v4.sparse_attention(q[:, :, :64], cache, slots, page_size=2), TileTypeError, "entries have 512"),
        (lambda: v4.sparse_attention(q, rows, slots[:1]), TileTypeError, "expected \\[2, n\\]"),
        (lambda: v4.sparse_attention(q, rows, slots, extra=rows), TileTypeError, "come together"),
        (lambda: v4.sparse_attention_backward(q, rows, slots, o, lse, q), TileValueError, "names a row twice"),
    ):
        with pytest.raises(kind, match=words):
            call()
