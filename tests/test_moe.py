"""Router, mapping, expansion, ordered sum and the whole mixture-of-experts layer against NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import U, close, same_bits, tensor
from running_error import Ball, ball, gradients, where
from v4_reference import BF16, TARGETS, Array, F, fp4_cast, fp4_values, fp8_cast, loud, rounded, spread, through_fp8

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import moe, quant
from tiledsl.testing import assert_targets_agree

I = np.int32
ROUNDINGS = 12  # of a score: two functions of a few roundings each, a quotient or a root


def scores(z: Array, score: str) -> Array:
    z = z.astype(np.float64)
    if score == "sigmoid":
        return 1 / (1 + np.exp(-z))
    return np.sqrt(np.where(z > 20, z, np.log1p(np.exp(np.minimum(z, 20)))))


@settings(max_examples=12)
@given(
    m=st.sampled_from([1, 5, 17, 33]),
    experts=st.sampled_from([1, 7, 48]),
    k=st.sampled_from([1, 2, 6]),
    score=st.sampled_from(["sqrtsoftplus", "sigmoid"]),
    biased=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_route(m: int, experts: int, k: int, score: str, biased: bool, ties: bool, seed: int) -> None:
    rng, k = np.random.default_rng(seed), min(k, experts)
    z = (rng.standard_normal((m, experts)) * 4).astype(F)
    z = np.round(z) if ties else z
    bias = np.round(rng.standard_normal(experts) * 2).astype(F) / 2 if biased else None
    s = scores(z, score)
    key = s + (0 if bias is None else bias)
    for target in TARGETS:
        w, chosen = moe.route(z, k, bias=bias, score=score, scale=1.5, target=target)
        assert w.dtype == F and chosen.dtype == I and chosen.shape == (m, k)
        assert all(len(set(row)) == k for row in chosen.tolist())
        taken = np.take_along_axis(key, chosen, 1)
        order = np.argsort(-key.astype(F), axis=1, kind="stable")[:, :k]
        # By values, up to the rounding of the scores; of equal logits and biases the smaller index first.
        size = s.max() + (0 if bias is None else np.abs(bias).max())
        assert np.abs(taken - np.take_along_axis(key, order, 1)).max() <= 2 * ROUNDINGS * U * size
        if ties and not biased:
            np.testing.assert_array_equal(chosen, order)
        picked = np.take_along_axis(s, chosen, 1)
        wanted = picked / (picked.sum(1, keepdims=True) + 1e-20) * 1.5
        np.testing.assert_allclose(w, wanted, rtol=(k + ROUNDINGS) * 2 * U, atol=1e-30)
        one = moe.route(z[-1:], k, bias=bias, score=score, scale=1.5, target=target)
        assert same_bits(one[0], w[-1:]) and same_bits(one[1], chosen[-1:])


@settings(max_examples=8)
@given(
    m=st.sampled_from([1, 5, 17]),
    shape=st.sampled_from([(8, 4, 8, 6), (7, 1, 1, 1), (4, 2, 3, 5), (3, 2, 33, 2), (2, 2, 5, 3)]),
    score=st.sampled_from(["sqrtsoftplus", "sigmoid"]),
    biased=st.booleans(),
    ties=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_groups(m: int, shape: tuple[int, int, int, int], score: str, biased: bool, ties: bool, seed: int) -> None:
    """DeepSeek-V3.2's selection: the best groups by their largest score (with a bias the two largest) come first."""
    rng, (groups, kept, per, k) = np.random.default_rng(seed), shape
    z = (rng.standard_normal((m, groups * per)) * 4).astype(F)
    z = np.round(z) if ties else z
    bias = np.round(rng.standard_normal(groups * per)).astype(F) / 2 if biased else None
    for target in TARGETS:
        w, chosen = moe.route(z, k, bias=bias, score=score, scale=2.5, groups=groups, kept=kept, target=target)
        s = scores(z, score)
        key = (s if bias is None else s + bias).reshape(m, groups, per)
        top = np.sort(key, -1)[..., ::-1][..., : 2 if biased else 1].astype(np.float64).sum(-1)
        taken_groups = np.take_along_axis(top, np.unique(chosen // per, axis=1), 1)
        best = np.sort(top, -1)[:, ::-1][:, kept - 1]
        near = 2 * (ROUNDINGS + 2) * U * 2 * np.abs(key).max()  # two sums of two scores, each so far off
        assert (taken_groups >= best[:, None] - near).all()
        assert all(len(set((row // per).tolist())) <= kept and len(set(row.tolist())) == k for row in chosen)
        sorted_groups = np.argsort(-top, axis=1, kind="stable")[:, :kept]
        apart = np.sort(top, 1)[:, ::-1]
        for t in range(m):
            clear = kept == groups or apart[t, kept - 1] - apart[t, kept] > near
            allowed = [e for g in sorted_groups[t] for e in range(g * per, g * per + per)]
            values = sorted((float(key[t].ravel()[e]) for e in allowed), reverse=True)[:k]
            if clear:
                assert np.abs(key[t].ravel()[chosen[t]] - values).max() <= near
        picked = np.take_along_axis(scores(z, score), chosen, 1)
        wanted = picked / (picked.sum(1, keepdims=True) + 1e-20) * 2.5
        np.testing.assert_allclose(w, wanted, rtol=(k + ROUNDINGS) * 2 * U, atol=1e-30)
        one = moe.route(z[-1:], k, bias=bias, score=score, scale=2.5, groups=groups, kept=kept, target=target)
        assert same_bits(one[0], w[-1:]) and same_bits(one[1], chosen[-1:])


def test_ties_of_groups_and_what_is_no_number() -> None:
    z = np.array([[1, 0, 1, 0, 2, -9], [0, 0, 0, 0, 0, 0]], F)
    two, nan = np.zeros(6, F), np.array([[np.nan, 3, 1, 2, 0, 0], [np.nan] * 6], F)
    options: dict[str, Any] = {"score": "sigmoid", "groups": 3}
    for target in TARGETS:
        at = options | {"target": target}
        assert moe.route(z, 2, kept=1, **at)[1].tolist() == [[4, 5], [0, 1]]
        assert moe.route(z, 2, kept=1, bias=two, **at)[1].tolist() == [
            [0, 1],
            [0, 1],
        ]  # two largest: 1 + 0, first group
        assert moe.route(nan, 3, kept=2, **at)[1].tolist() == [[1, 3, 2], [0, 1, 2]]
        assert moe.route(nan, 2, kept=1, bias=two, **at)[1].tolist() == [
            [3, 2],
            [0, 1],
        ]


def slope_of_route(z: Array, chosen: Array, dw: Array, score: str, scale: float) -> Ball:
    """The gradient with respect to the logits."""
    leaf = ball(z)
    soft = where(z > 20, leaf, where(z > 20, 0.0, leaf).exp().log1p())
    s = leaf.sigmoid() if score == "sigmoid" else soft.sqrt()
    picked = s[np.arange(len(z))[:, None], chosen]
    return gradients([picked / (picked.sum(1, keepdims=True) + 1e-20) * scale], [dw], [leaf])[0]


@settings(max_examples=8)
@given(
    m=st.sampled_from([1, 5, 33]),
    experts=st.sampled_from([1, 7, 48]),
    k=st.sampled_from([1, 2, 6]),
    score=st.sampled_from(["sqrtsoftplus", "sigmoid"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gradient_of_the_weights(m: int, experts: int, k: int, score: str, seed: int) -> None:
    rng, k = np.random.default_rng(seed), min(k, experts)
    z = (rng.standard_normal((m, experts)) * 4).astype(F)
    z[0, 0] = 25
    dw = rng.standard_normal((m, k)).astype(F)
    for target in TARGETS:
        _, chosen = moe.route(z, k, score=score, scale=2.5, target=target)
        got = moe.route_backward(z, chosen, dw, score=score, scale=2.5, target=target)
        assert slope_of_route(z, chosen, dw, score, 2.5).holds(got)
        one = moe.route_backward(z[-1:], chosen[-1:], dw[-1:], score=score, scale=2.5, target=target)
        assert same_bits(one, got[-1:])
        repeated = np.zeros((1, 2), I)  # a table may name an expert twice: its gradients add up, here to nothing
        ones = np.ones((1, 2), F)
        same = moe.route_backward(z[-1:], repeated, ones, score=score, target=target)
        assert not same[:, 1:].any() and slope_of_route(z[-1:], repeated, ones, score, 1.0).holds(same)
        none = moe.route_backward(z[-1:], repeated + 99, ones, score=score, target=target)
        assert not none.any()
    low = np.array([[-300.0, -300.0]], F)
    assert not moe.route_backward(low, np.array([[0]], I), np.ones((1, 1), F)).any()


def test_the_bias_selects_and_does_not_weigh() -> None:
    z, bias = np.array([[3.0, 2.0, 1.0, 0.0]], F), np.array([0, 0, 0, 9], F)
    w, chosen = moe.route(z, 2, bias=bias)
    s = scores(z, "sqrtsoftplus")[0]
    assert chosen.tolist() == [[3, 0]]
    assert close(w[0], s[[3, 0]] / (s[0] + s[3]), 2 * (2 + ROUNDINGS))


def test_hash_layers_and_bad_scores() -> None:
    rng = np.random.default_rng(0)
    z, table = rng.standard_normal((5, 8)).astype(F), rng.integers(0, 8, (20, 3)).astype(I)
    table[7] = [1, -1, 99]
    ids = np.array([3, 19, 7, 0, 3])
    z[1, table[19][0]] = np.nan
    for target in TARGETS:
        w, chosen = moe.route(z, token_ids=ids, table=table, scale=2.5, target=target)
        np.testing.assert_array_equal(chosen, table[ids])
        assert np.isnan(w[1]).all() and w[2].tolist() == [2.5, 0, 0]
        valid = [0, 3, 4]
        picked = np.take_along_axis(scores(z[valid], "sqrtsoftplus"), table[ids[valid]], 1)
        assert close(w[valid], picked / picked.sum(1, keepdims=True) * 2.5, 2 * (3 + ROUNDINGS))
        bad = np.array([[np.nan, 1.0, -np.inf, np.nan]], F)
        assert moe.route(bad, 3, target=target)[1].tolist() == [[1, 2, 0]]
        zero, _ = moe.route(np.full((1, 4), -300, F), 2, target=target)
        assert zero.tolist() == [[0, 0]]
        assert moe.route(z[:0], 2, target=target)[0].shape == (0, 2)


def mapping_of(chosen: Array, experts: int, alignment: int) -> tuple[Array, Array, Array]:
    """Slots, counts and starts, pair by pair."""
    flat = chosen.ravel()
    counts = np.array([(flat == e).sum() for e in range(experts)])
    starts = np.concatenate([[0], np.cumsum(-(-counts // alignment) * alignment)])
    seen, slots = [0] * experts, np.full(flat.shape, -1)
    for i, e in enumerate(flat):
        if 0 <= e < experts:
            slots[i], seen[e] = starts[e] + seen[e], seen[e] + 1
    return slots.reshape(chosen.shape), counts, starts


@settings(max_examples=12)
@given(
    tokens=st.sampled_from([0, 1, 5, 60, 170]),
    k=st.sampled_from([1, 3, 6]),
    experts=st.sampled_from([1, 5, 48]),
    alignment=st.sampled_from([1, 4]),
    holes=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_mapping(tokens: int, k: int, experts: int, alignment: int, holes: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    chosen = rng.integers(-1 if holes else 0, experts + holes, (tokens, k)).astype(I)
    slots, counts, starts = mapping_of(chosen, experts, alignment)
    x = loud(rng, (tokens, 70), BF16, 3)
    w = rng.uniform(0, 2, (tokens, k)).astype(F)
    add = loud(rng, (tokens, 70), BF16, 3)
    for target in TARGETS:
        mapping = moe.token_mapping(chosen, experts, alignment=alignment, target=target)
        np.testing.assert_array_equal(mapping.slots, slots)
        np.testing.assert_array_equal(mapping.counts, counts)
        np.testing.assert_array_equal(mapping.starts, starts)
        np.testing.assert_array_equal(mapping.sizes, np.diff(starts))
        pairs = np.full(mapping.rows, -1)
        pairs[slots[slots >= 0]] = np.flatnonzero(slots.ravel() >= 0)
        np.testing.assert_array_equal(mapping.pairs, pairs)
        y = moe.expand(x, mapping, target=target)
        wanted = np.zeros((mapping.rows, 70), BF16)
        wanted[pairs >= 0] = x[pairs[pairs >= 0] // k]
        assert same_bits(y, wanted)
        each = moe.expand(w[:, :, None], mapping, target=target)
        np.testing.assert_array_equal(each[pairs >= 0, 0], w.ravel()[pairs[pairs >= 0]])
        total = np.zeros((tokens, 70), F)
        for j in range(k):
            at = np.maximum(slots[:, j], 0)
            term = (wanted[at].astype(F) * w[:, j : j + 1] if mapping.rows else total).astype(F)
            total = np.where(slots[:, j : j + 1] >= 0, (total + term).astype(F), total)
        assert same_bits(moe.reduce_rows(y, mapping, w, out_dtype="float32", target=target), total)
        got = moe.reduce_rows(y, mapping, w, add=add, target=target)
        assert same_bits(got, (total + add.astype(F)).astype(F).astype(BF16))


def layer(rng: np.random.Generator, tokens: int, packed: bool) -> dict[str, Any]:
    """A small layer: 5 experts, d = 128, n = 64, MXFP4 experts, an FP8 (packed: MXFP4) shared one."""
    d, n, e = 128, 64, 5
    x = (rng.standard_normal((tokens, d)) * 2).astype(F).astype(BF16)
    gate = (rng.standard_normal((e, d)) * 0.2).astype(F).astype(BF16)
    w13, w2 = rng.standard_normal((e, 2 * n, d)).astype(F) * 0.3, rng.standard_normal((e, d, n)).astype(F) * 0.3
    (q13, s13), (q2, s2) = fp4_cast(w13.reshape(-1, d)), fp4_cast(w2.reshape(-1, n))
    q13, s13, q2, s2 = q13.reshape(e, 2 * n, -1), s13.reshape(e, 2 * n, -1), q2.reshape(e, d, -1), s2.reshape(e, d, -1)
    (p13, t13), (p2, t2) = fp8_cast(w13[0], 128, 128, e8m0=True), fp8_cast(w2[0], 128, 128, e8m0=True)
    wide = {"w13": fp4_values(q13, s13), "w2": fp4_values(q2, s2)}
    if packed:
        experts = moe.Experts(quant.fp4_prepack(q13, s13), quant.fp4_prepack(q2, s2))
        shared = moe.Experts(quant.fp4_prepack(q13[:1], s13[:1]), quant.fp4_prepack(q2[:1], s2[:1]))
        wide |= {"v13": wide["w13"][:1], "v2": wide["w2"][:1]}
    else:
        experts = moe.Experts(q13, q2, s13, s2)
        shared = moe.Experts(p13[None], p2[None], t13[None], t2[None])
        wide["v13"] = (p13.astype(F) * spread(t13.astype(F), 128, 128, p13.shape)).astype(np.float64)[None]
        wide["v2"] = (p2.astype(F) * spread(t2.astype(F), 128, 128, p2.shape)).astype(np.float64)[None]
    return {"x": x, "gate": gate, "experts": experts, "shared": shared, "wide": wide}


def expert(x: Array, w13: Array, w2: Array, weight: Any, limit: float, packed: bool) -> Ball:
    """One expert on a row of x, with the roundings that the layer's definition names. Those that may fall the other
    way, because a float32 sum is not exact, count with what they change."""

    def cast(v: Ball) -> Ball:
        return v if packed else through_fp8(v)

    hidden = (cast(ball(x)) @ w13.T).through(rounded)
    n = hidden.shape[1] // 2
    g = hidden[:, :n].through(lambda v: np.minimum(v, limit))
    u = hidden[:, n:].through(lambda v: np.clip(v, -limit, limit))
    h = (g * g.sigmoid() * u * weight).through(rounded)
    return (cast(h) @ w2.T).through(rounded)


@pytest.mark.parametrize("packed", [False, True])
def test_layer(packed: bool) -> None:
    rng, limit = np.random.default_rng(1), 3.0
    p = layer(rng, 17, packed)
    x, wide = p["x"], p["wide"]
    bias = rng.standard_normal(5).astype(F)
    z = ball(x) @ p["gate"].astype(np.float64).T
    s = z.exp().log1p().sqrt()
    chosen = np.argsort(-(s.value + bias), axis=1, kind="stable")[:, :2]
    w = s[np.arange(len(x))[:, None], chosen]
    w = w / w.sum(1, keepdims=True) * 1.5
    wanted = []
    for t in range(len(x)):
        row = x[t : t + 1]
        total = expert(row, wide["v13"][0], wide["v2"][0], 1.0, limit, packed)
        for j, e in enumerate(chosen[t]):
            total = total + expert(row, wide["w13"][e], wide["w2"][e], w[t, j], limit, packed)
        wanted.append(total)
    options: dict[str, Any] = {"bias": bias, "scale": 1.5, "shared": p["shared"], "limit": limit}
    for target in TARGETS:
        y = moe.moe_forward(x, p["gate"], p["experts"], 2, target=target, **options)
        assert y.shape == x.shape and y.dtype == BF16
        assert all(row.holds(y[t : t + 1], "bfloat16") for t, row in enumerate(wanted))
        unclamped = moe.moe_forward(x, p["gate"], p["experts"], 2, target=target, **{**options, "limit": None})
        assert not any(row.holds(unclamped[t : t + 1], "bfloat16") for t, row in enumerate(wanted))
        if not packed:
            e = p["experts"]
            ahead = moe.Experts(
                quant.fp4_prepack(e.gate_up, e.gate_up_scale), quant.fp4_prepack(e.down, e.down_scale), cast=True
            )
            assert same_bits(moe.moe_forward(x, p["gate"], ahead, 2, target=target, **options), y)
        for t in (0, 16):
            one = moe.moe_forward(x[t : t + 1], p["gate"], p["experts"], 2, target=target, **options)
            assert same_bits(one, y[t : t + 1])
        assert moe.moe_forward(x[:0], p["gate"], p["experts"], 2, target=target, **options).shape == (0, 128)


def test_targets_agree() -> None:
    p = layer(np.random.default_rng(2), 5, False)
    table, ids = np.array([[0, 3], [4, 1]], I), np.array([0, 1, 1, 0, 1])

    def whole(x: Array, gate: Array, target: str) -> Any:
        return moe.moe_forward(x, gate, p["experts"], token_ids=ids, table=table, limit=10.0, target=target)

    assert_targets_agree(whole, p["x"], p["gate"])
    z = np.random.default_rng(3).standard_normal((9, 16)).astype(F)

    def routed(z: Array, target: str) -> Any:
        w, chosen = moe.route(z, 4, target=target)
        some = moe.route(z, 4, bias=z[0], score="sigmoid", groups=8, kept=3, target=target)
        return [w, chosen, *some, moe.route_backward(z, chosen, w, target=target)]

    assert_targets_agree(routed, z)


def test_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(4)
    z = rng.standard_normal((9, 16)).astype(F)
    w, chosen = moe.route(torch.from_numpy(z), 4)
    assert chosen.tolist() == moe.route(z, 4)[1].tolist()
    mapping = moe.token_mapping(chosen, 16)
    x = loud(rng, (9, 40), BF16, 2)
    y = moe.reduce_rows(moe.expand(tensor(torch, x), mapping), mapping, w, out_dtype="float32")
    assert close(y.numpy(), x.astype(np.float64), 2 * (4 + 4) + 2 * ROUNDINGS)  # weights of 4, and a sum of 4


def test_arguments_are_checked() -> None:
    z, chosen = np.zeros((4, 8), F), np.zeros((4, 2), I)
    mapping, x = moe.token_mapping(chosen, 8), np.zeros((4, 16), F)
    for call, kind, words in (
        (lambda: moe.route(z, 9), TileValueError, "k is 9, but there are 8 experts"),
        (lambda: moe.route(z), TileValueError, "k is None"),
        (lambda: moe.route(z, 2, score="softmax"), TileValueError, "score is 'softmax'"),
        (lambda: moe.route(z, 2, groups=3), TileValueError, "groups is 3, kept 3"),
        (lambda: moe.route(z, 2, groups=4, kept=5), TileValueError, "groups is 4, kept 5"),
        (lambda: moe.route(z, 3, groups=4, kept=1), TileValueError, "k is 3, but there are 2 experts"),
        (lambda: moe.route_backward(z, chosen, z), TileTypeError, "do not fit"),
        (lambda: moe.route(z, 2, bias=z[0, :7]), TileTypeError, "bias does not fit"),
        (lambda: moe.route(z, token_ids=np.zeros(4, I)), TileTypeError, "come together"),
        (lambda: moe.route(z, token_ids=np.full(4, 4, I), table=chosen), TileValueError, "token_ids holds 4"),
        (lambda: moe.token_mapping(chosen, 0), TileValueError, "experts is 0"),
        (lambda: moe.expand(x[:3], mapping), TileTypeError, "mapping is of 4 tokens"),
        (lambda: moe.reduce_rows(x, mapping), TileTypeError, "mapping has 8 rows"),
    ):
        with pytest.raises(kind, match=words):
            call()
