"""The NumPy reference of a DeepSeek-V4 block against itself (prefill, decode), formulas, published sizes, its traps."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

PLACE = Path(__file__).parents[1] / "examples" / "deepseek_v4"
if not PLACE.is_dir():
    pytest.skip("not in a checkout", allow_module_level=True)
sys.path.insert(0, str(PLACE))
try:
    import reference as v4  # type: ignore[import-not-found]
    import reference_formats as formats  # type: ignore[import-not-found]
    import reference_weights as sizes  # type: ignore[import-not-found]
finally:
    sys.path.remove(str(PLACE))

SMALL = v4.SMALL
HALF = 2.0**-8  # unit roundoff of bfloat16
TOKENS = 41
WINDOW, CSA, HCA = 0, 1, 2
X, IDS = v4.random_state(SMALL, TOKENS)
WEIGHTS = [v4.block_weights(SMALL, layer) for layer in range(3)]
rng = np.random.default_rng(5)


def through(layer: int, prefilled: int, traps: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """The values of one prefill and of the decodes behind it; "out" is X'."""
    block = v4.Block(SMALL, layer, WEIGHTS[layer], traps)
    calls = [block.prefill(X[:prefilled], IDS[:prefilled])] if prefilled else []
    calls += [block.decode(X[t], int(IDS[t])) for t in range(prefilled, TOKENS)]
    return [{**values, "out": out} for out, values in calls]


# ---- prefill and decode


@pytest.mark.parametrize("layer", [WINDOW, CSA, HCA])
def test_decode_after_any_prefill_is_prefill(layer: int) -> None:
    whole = through(layer, TOKENS)[0]["out"]
    for prefilled in (0, 3, 16, 23, 40):
        split = v4.run(v4.Block(SMALL, layer, WEIGHTS[layer]), X, IDS, prefilled)
        np.testing.assert_array_equal(split, whole, err_msg=f"{prefilled} tokens at once")


def test_published_window_and_ratio() -> None:
    config = replace(SMALL, window=128, compress_ratios=(128,), page_tokens=256)
    x, ids = v4.random_state(config, 260, seed=3)
    weights = v4.block_weights(config, 0)
    block = v4.Block(config, 0, weights)
    whole, values = block.prefill(x, ids)
    assert values["attn.compressed"].shape == (2, config.head_dim)
    assert [np.sum(values["attn.indices"][t, 128:] >= 0) for t in (126, 127, 254, 255)] == [0, 1, 1, 2]
    np.testing.assert_array_equal(v4.run(v4.Block(config, 0, weights), x, ids, 250), whole)


def test_states_and_caches_are_the_same() -> None:
    for layer, ratio in ((CSA, 4), (HCA, 16)):
        whole, last = through(layer, TOKENS)[0], through(layer, 6)[-1]
        live = (ratio if layer == CSA else 0) + TOKENS % ratio
        for name in ("attn", "indexer") if layer == CSA else ("attn",):
            for state in ("kv_state", "score_state"):
                np.testing.assert_array_equal(whole[f"{name}.{state}"][:live], last[f"{name}.{state}"][:live])
        for name in ("compressed", "compressed_rows", "compressed_pages"):
            np.testing.assert_array_equal(whole[f"attn.{name}"], last[f"attn.{name}"])
    np.testing.assert_array_equal(through(CSA, TOKENS)[0]["indexer.key_rows"], through(CSA, 6)[-1]["indexer.key_rows"])


@pytest.mark.parametrize("layer", [WINDOW, CSA, HCA])
def test_later_tokens_do_not_matter(layer: int) -> None:
    x = X.copy()
    x[25:] = -x[25:]
    out, _ = v4.Block(SMALL, layer, WEIGHTS[layer]).prefill(x, IDS)
    whole = through(layer, TOKENS)[0]["out"]
    np.testing.assert_array_equal(out[:25], whole[:25])
    assert not np.array_equal(out[25], whole[25])


def test_what_a_block_refuses() -> None:
    with pytest.raises(ValueError, match="unknown traps"):
        v4.Block(SMALL, 0, WEIGHTS[0], frozenset({"no_such"}))
    block = v4.Block(SMALL, 0, WEIGHTS[0])
    with pytest.raises(ValueError, match="expected"):
        block.prefill(X, IDS[:-1])
    block.prefill(X[:2], IDS[:2])
    with pytest.raises(ValueError, match="first call"):
        block.prefill(X, IDS)


# ---- the parts against formulas written another way


def test_sinkhorn() -> None:
    comb = v4.sinkhorn(rng.standard_normal((200, 4, 4)), 20, 1e-6)
    np.testing.assert_allclose(comb.sum(-2), 1 - 1e-6, rtol=0, atol=1e-9)
    assert np.abs(comb.sum(-1) - 1).max() < 2e-3
    logits = rng.standard_normal((4, 4))
    first = np.exp(logits) / np.exp(logits).sum(1, keepdims=True) + 1e-6
    np.testing.assert_allclose(v4.sinkhorn(logits, 1, 1e-6), first / (first.sum(0) + 1e-6), rtol=1e-14)


def test_hyper_connections_stream_by_stream() -> None:
    w = WEIGHTS[CSA].attn_hc
    mixed, pre, post, comb = v4.hc_pre(X[:3], w, SMALL)
    out = formats.bf16(rng.standard_normal((3, SMALL.hidden)))
    after = v4.hc_post(X[:3], out, post, comb)
    for t in range(3):
        flat = X[t].ravel()
        mix = w.fn @ (flat / np.sqrt(np.mean(flat**2) + 1e-6))
        np.testing.assert_allclose(pre[t], 1 / (1 + np.exp(-(mix[:4] * w.scale[0] + w.base[:4]))) + 1e-6, rtol=1e-12)
        np.testing.assert_allclose(post[t], 2 / (1 + np.exp(-(mix[4:8] * w.scale[1] + w.base[4:8]))), rtol=1e-12)
        np.testing.assert_array_equal(mixed[t], formats.bf16(sum(pre[t, i] * X[t, i] for i in range(4))))
        for n in range(4):
            expected = post[t, n] * out[t] + sum(comb[t, m, n] * X[t, m] for m in range(4))
            np.testing.assert_allclose(after[t, n], expected, rtol=2**-8, atol=1e-12)


def test_sink_is_a_factor_of_plain_attention() -> None:
    q, kv, sink = rng.standard_normal((2, 4, 128)), rng.standard_normal((9, 128)), rng.standard_normal(4)
    indices = np.array([[0, 3, 4, -1, 8], [2, -1, -1, 1, -1]])
    out, sums = v4.sparse_attention(q, kv, indices, sink)
    for t, rows in enumerate(([0, 3, 4, 8], [2, 1])):
        logits = q[t] @ kv[rows].T / np.sqrt(128)
        lse = np.log(np.exp(logits).sum(1))
        plain = np.exp(logits - lse[:, None]) @ kv[rows]
        share = 1 / (1 + np.exp(sink - lse))[:, None]
        # Probabilities are rounded to bfloat16, and the result.
        off = HALF * (1 + HALF) * (np.exp(logits - lse[:, None]) @ np.abs(kv[rows]) * share + np.abs(plain * share))
        assert (np.abs(out[t] - plain * share) <= off).all()
        np.testing.assert_allclose(sums[t] * np.exp(logits.max(1)), np.exp(lse) + np.exp(sink), rtol=1e-12)


@pytest.mark.parametrize(("layer", "ratio"), [(CSA, 4), (HCA, 16)])
def test_compressed_entries_by_hand(layer: int, ratio: int) -> None:
    values, w = through(layer, TOKENS)[0], WEIGHTS[layer].attn.compressor
    x, dim = values["attn.normed"], SMALL.head_dim
    kv, score = x @ w.wkv.T, x @ w.wgate.T
    for i in range(TOKENS // ratio):
        own = [(t, slice(-dim, None)) for t in range(i * ratio, (i + 1) * ratio)]
        before = [(t, slice(0, dim)) for t in range((i - 1) * ratio, i * ratio) if t >= 0 and ratio == 4]
        weights = np.array([np.exp(score[t, part] + w.ape[t % ratio, part]) for t, part in before + own])
        entry = (weights * np.array([kv[t, part] for t, part in before + own])).sum(0) / weights.sum(0)
        entry = formats.bf16(entry)
        entry = formats.bf16(entry / np.sqrt(np.mean(entry**2) + 1e-6) * w.norm)
        pairs = entry[-64::2] + 1j * entry[-63::2]
        pairs = pairs * np.exp(1j * i * ratio * v4.Rope.of(SMALL, ratio).frequencies)
        turned = np.stack([pairs.real, pairs.imag], 1).ravel()
        got = values["attn.compressed"][i]
        np.testing.assert_array_equal(got, np.concatenate([formats.fake_fp8(entry[:-64], 64), formats.bf16(turned)]))


def test_indexer_picks_the_best_that_it_sees() -> None:
    values = through(CSA, TOKENS)[0]
    q, keys, weights = values["indexer.q"], values["indexer.keys"], values["indexer.weights"]
    picks = values["indexer.topk"]
    assert picks.shape == (TOKENS, 3)
    for t in range(TOKENS):
        seen = (t + 1) // 4
        scores = [sum(weights[t, h] * max(q[t, h] @ keys[s], 0) for h in range(4)) for s in range(seen)]
        np.testing.assert_allclose(values["indexer.scores"][t, :seen], scores, rtol=1e-9, atol=1e-12)
        assert set(picks[t]) - {-1} == set(np.argsort(scores)[::-1][:3])
        assert np.sum(picks[t] == -1) == max(3 - seen, 0)
    assert np.abs(keys).max() > 0 and np.isfinite(keys).all()


def test_indexer_weights_by_hand() -> None:
    values = through(CSA, TOKENS)[0]
    expected = values["attn.normed"] @ WEIGHTS[CSA].attn.indexer.weights_proj.T / np.sqrt(128 * 4)
    np.testing.assert_allclose(values["indexer.weights"], expected, rtol=1e-9, atol=1e-12)


def length(x: Any) -> Any:
    """Of each pair among the last 64 elements, for both."""
    return np.repeat(np.hypot(x[..., -64::2], x[..., -63::2]), 2, -1)


def test_rotation() -> None:
    rope = v4.Rope.of(SMALL, 4)
    x = formats.bf16(rng.standard_normal((5, 3, 128)))
    there = rope(x, np.arange(5) + 7)
    np.testing.assert_array_equal(there[..., :64], x[..., :64])
    back = rope(there, np.arange(5) + 7, inverse=True)
    # Two roundings to bfloat16; the first is turned, too, which makes it sqrt(2) as large at most.
    assert (np.abs(back - x)[..., 64:] <= 2.5 * HALF * length(x)).all()
    q, k = np.repeat(x[:1, 0], 4, axis=0), np.repeat(x[1:2, 0], 4, axis=0)
    shifts = (rope(q, np.arange(4) * 5 + 3) * rope(k, np.arange(4) * 5))[:, 64:].sum(1)
    off = 2 * HALF * (1 + HALF) * (length(q) * length(k)).sum(1)  # each factor is rounded
    assert (np.abs(shifts - shifts[0]) <= off + off[0]).all()
    plain = 160000.0 ** -(np.arange(32) / 32)
    ratio = plain / rope.frequencies
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(16) and (np.diff(ratio) >= -1e-12).all()
    np.testing.assert_allclose(v4.Rope.of(SMALL, 0).frequencies, 1e4 ** -(np.arange(32) / 32))


def test_experts_by_hand() -> None:
    values, w = through(HCA, TOKENS)[0], WEIGHTS[HCA].moe
    x, t = values["ffn.normed"], 11
    scores = np.sqrt(np.log1p(np.exp(x[t] @ w.gate.T)))
    np.testing.assert_allclose(values["moe.scores"][t], scores, rtol=1e-9)
    picks = np.argsort(-(scores + w.bias))[:2]
    np.testing.assert_array_equal(values["moe.experts"][t], picks)
    weights = scores[picks] / scores[picks].sum() * 1.5
    np.testing.assert_allclose(values["moe.weights"][t], weights, rtol=1e-9)
    total = np.zeros(SMALL.hidden)
    shared = [(a.values, b.values, c.values, 1.0) for a, b, c in [(w.shared_w1, w.shared_w2, w.shared_w3)]]
    routed = [(w.w1[e].values, w.w2[e].values, w.w3[e].values, p) for e, p in zip(picks, weights, strict=True)]
    cast, bf16 = partial(formats.fake_fp8, block=128), formats.bf16
    for w1, w2, w3, weight in shared + routed:
        gate, up = np.minimum(bf16(w1 @ cast(x[t])), 1.0), np.clip(bf16(w3 @ cast(x[t])), -1.0, 1.0)
        total += bf16(w2 @ cast(bf16(gate / (1 + np.exp(-gate)) * up * weight)))
    np.testing.assert_array_equal(values["moe.out"][t], bf16(total))
    assert np.array_equal(through(WINDOW, TOKENS)[0]["moe.experts"], WEIGHTS[WINDOW].moe.tid2eid[IDS])


def test_head() -> None:
    config = replace(SMALL, vocab=10)
    weights = sizes.head_weights(config)
    logits = v4.head(X[:5], weights, config)
    joined = v4.hc_head(X[:5], weights[0], config)
    normed = formats.bf16(joined / np.sqrt((joined**2).mean(1, keepdims=True) + 1e-6) * weights[1])
    assert logits.shape == (5, 10)
    np.testing.assert_allclose(logits, normed @ weights[2].T, rtol=1e-12, atol=1e-12)


# ---- formats


def test_fp8_scales_are_powers_of_two_that_do_not_overflow() -> None:
    x = formats.bf16(rng.standard_normal((50, 192)) * np.exp(rng.uniform(-20, 20, (50, 1))))
    x[0], x[1, :64] = 0, 448 * 2.0**-3
    codes, exponent = formats.quantize_fp8(x, 64)
    tiles = np.abs(x).reshape(50, 3, 64).max(-1)
    np.testing.assert_array_equal(exponent, np.ceil(np.log2(np.maximum(tiles, 1e-4) / 448)))
    assert exponent[0, 0] == -22 and exponent[1, 0] == -3
    error = np.abs(formats.fake_fp8(x, 64) - x).reshape(50, 3, 64)
    assert (error <= np.maximum(np.abs(x).reshape(50, 3, 64) * 2.0**-4, np.ldexp(1.0, exponent - 10)[..., None])).all()


def test_fp4_ties_nibbles_and_scales() -> None:
    x = np.zeros((1, 32))
    x[0, :9] = [6, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -5]
    codes, exponent = formats.quantize_fp4(x)
    assert exponent.tolist() == [[0]]
    assert formats.FP4_VALUES[codes[0, :9]].tolist() == [6, 0, 1, 1, 2, 2, 4, 4, -4]
    np.testing.assert_array_equal(np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn), formats.FP4_VALUES)
    packed = formats.pack_nibbles(codes)
    assert packed[0, 0] == codes[0, 0] | codes[0, 1] << 4
    np.testing.assert_array_equal(formats.unpack_nibbles(packed), codes)
    assert formats.quantize_fp4(np.zeros((1, 32)))[1].item() == -126
    y = rng.standard_normal((20, 64))
    tiles = np.abs(y).reshape(20, 2, 32).max(-1)
    np.testing.assert_array_equal(formats.quantize_fp4(y)[1], np.ceil(np.log2(tiles / 6)))


def test_weights_have_a_scale_per_block() -> None:
    w = rng.standard_normal((200, 300)) * np.exp(rng.uniform(-3, 3, (200, 300)))
    quantised = formats.Fp8Weight.of(w)
    assert quantised.codes.shape == (200, 300) and quantised.scale.shape == (2, 3)
    exponent = formats.e8m0_exponent(quantised.scale)
    for i in range(2):
        for j in range(3):
            tile = w[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
            assert exponent[i, j] == np.ceil(np.log2(np.abs(tile).max() / 448))
            kept = quantised.values[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
            assert (np.abs(kept - tile) <= np.maximum(np.abs(tile) / 16, 2.0 ** (exponent[i, j] - 10))).all()
    assert WEIGHTS[0].moe.w1.packed.shape == (8, 128, 128) and WEIGHTS[0].moe.w1.scale.shape == (8, 128, 8)


def test_hadamard_is_orthogonal() -> None:
    h = v4.hadamard(128)
    np.testing.assert_array_equal(h @ h.T, 128 * np.eye(128))
    assert h[3].tolist()[:4] == [1, -1, -1, 1]


def test_pages() -> None:
    assert formats.page_bytes(64, 576, 8) == 37440 and formats.page_bytes(2, 576, 8) == 1728
    x = rng.standard_normal((130, 512))
    values, rows = formats.quantize_kv(formats.bf16(x), 64)
    assert rows.shape == (130, 584) and (rows[:, 583] == 0).all()
    pages = formats.pack_pages(rows, 64, 576)
    assert pages.shape == (3, 37440)
    np.testing.assert_array_equal(formats.unpack_pages(pages.ravel(), 130, 64, 576, 8), rows)
    plain = rows[:, :448].view(ml_dtypes.float8_e4m3fn).astype(float).reshape(130, 7, 64)
    plain = plain * 2.0 ** (rows[:, 576:583].astype(int) - 127)[..., None]
    tail = np.ascontiguousarray(rows[:, 448:576]).view(ml_dtypes.bfloat16).astype(float)
    np.testing.assert_array_equal(np.concatenate([plain.reshape(130, 448), tail], axis=1), values)
    wrong = formats.pack_pages(rows, 64, 576, frozenset({"page_unpadded"})).ravel()
    read = formats.unpack_pages(np.concatenate([wrong, np.zeros(4096, np.uint8)]), 130, 64, 576, 8)
    assert np.array_equal(read[:64], rows[:64]) and not np.array_equal(read[64], rows[64])


def test_published_schedules() -> None:
    flash, pro = sizes.V4_FLASH.compress_ratios, sizes.V4_PRO.compress_ratios
    assert len(flash) == 44 and [flash[:43].count(r) for r in (0, 4, 128)] == [2, 21, 20]
    assert len(pro) == 62 and [pro[:61].count(r) for r in (0, 4, 128)] == [0, 30, 31]
    assert flash[-1] == pro[-1] == 0


# ---- traps

#: Where each trap is first seen: the layer and the value.
SEEN = {
    "comb_not_transposed": (WINDOW, "attn.x"),
    "sinkhorn_from_exp": (WINDOW, "attn.comb"),
    "ape_missing_in_state": (CSA, "attn.score_state"),
    "rope_at_block_end": (HCA, "attn.compressed"),
    "one_theta": (WINDOW, "attn.q"),
    "yarn_mscale": (CSA, "attn.q"),
    "window_in_bf16": (WINDOW, "attn.window_kv"),
    "sink_scaled": (WINDOW, "attn.sums"),
    "swiglu_unclamped": (WINDOW, "moe.hidden"),
    "route_weight_after_w2": (WINDOW, "moe.hidden"),
    "indexer_unscaled": (CSA, "indexer.weights"),
    "topk_unmasked": (CSA, "indexer.topk"),
    "sum_of_rounded": (WINDOW, "attn.sums"),
    "page_unpadded": (HCA, "attn.compressed_pages"),
    "hc_eps_swapped": (WINDOW, "attn.pre"),
}
ONLY_INSIDE = {"indexer_unscaled", "page_unpadded"}  # the block's output does not depend on these


def test_every_trap_is_listed_with_its_number() -> None:
    assert [meaning.split(":")[0] for meaning in v4.TRAPS.values()] == [str(i) for i in range(1, 16)]
    assert list(SEEN) == list(v4.TRAPS)


@pytest.mark.parametrize("trap", v4.TRAPS)
def test_a_trap_is_seen(trap: str) -> None:
    layer, name = SEEN[trap]
    right, wrong = through(layer, 30), through(layer, 30, frozenset({trap}))
    earlier = list(right[0])[: list(right[0]).index(name)]
    # what the first call computed before it is untouched (pre comes before post and comb, states behind entries)
    for key in earlier:
        np.testing.assert_array_equal(right[0][key], wrong[0][key], err_msg=key)
    assert any(
        a[name].shape != b[name].shape or not np.array_equal(a[name], b[name])
        for a, b in zip(right, wrong, strict=True)
    )
    same = all(np.array_equal(a["out"], b["out"]) for a, b in zip(right, wrong, strict=True))
    assert same == (trap in ONLY_INSIDE)


@pytest.mark.parametrize(
    ("trap", "layer"),
    [("one_theta", CSA), ("yarn_mscale", WINDOW), ("ape_missing_in_state", WINDOW), ("topk_unmasked", HCA)],
)
def test_a_trap_stays_in_its_layers(trap: str, layer: int) -> None:
    right, wrong = through(layer, 30), through(layer, 30, frozenset({trap}))
    assert all(np.array_equal(a["out"], b["out"]) for a, b in zip(right, wrong, strict=True))


def test_eps_matters_where_the_gates_close() -> None:
    closed = replace(WEIGHTS[0].attn_hc, base=np.full(24, -40.0))
    mixed, _, post, _ = v4.hc_pre(X[:2], closed, SMALL)
    wrong, _, wrong_post, _ = v4.hc_pre(X[:2], closed, SMALL, frozenset({"hc_eps_swapped"}))
    assert np.abs(mixed).max() > 1e-7 > 1e-12 > np.abs(wrong).max()
    assert np.abs(post).max() < 1e-12 < 1e-7 < np.abs(wrong_post).max()
