"""Hyper-connections and their gradients against the formulas in float64, within bounds of their float32 arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import same_bits
from running_error import Ball, ball, gradients, sampled
from v4_reference import BF16, TARGETS, Array, F

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.testing import assert_targets_agree


def parameters(rng: np.random.Generator, n: int, d: int, spread: float = 1.0) -> tuple[Array, Array, Array]:
    mixes = n * (n + 2)
    fn = rng.standard_normal((mixes, n * d)) * spread / (n * d) ** 0.5
    return fn.astype(F), rng.uniform(0.5, 1.5, 3).astype(F), rng.standard_normal(mixes).astype(F)


def pre(x: Ball, fn: Ball, scale: Ball, base: Ball, iterations: int = 20) -> tuple[Ball, Ball, Ball]:
    """The formulas."""
    (m, n, d), eps = x.shape, 1e-6
    flat = x.reshape(m, n * d)
    mix = (flat @ fn.swap()) / ((flat * flat).mean(-1, keepdims=True) + eps).sqrt()
    post = 2 * (mix[:, n : 2 * n] * scale[1] + base[n : 2 * n]).sigmoid()
    c = (mix[:, 2 * n :] * scale[2] + base[2 * n :]).reshape(m, n, n)
    c = (c - c.max(-1, keepdims=True)).exp()
    c = c / c.sum(-1, keepdims=True) + eps
    c = c / (c.sum(-2, keepdims=True) + eps)
    for _ in range(iterations - 1):
        c = c / (c.sum(-1, keepdims=True) + eps)
        c = c / (c.sum(-2, keepdims=True) + eps)
    return weighted(x, mix[:, :n], scale[0], base[:n]), post, c


def weighted(x: Ball, mix: Ball, scale: Ball, base: Ball) -> Ball:
    """The sum of the streams."""
    return (((mix * scale + base).sigmoid() + 1e-6).reshape(*mix.shape, 1) * x).sum(1)


def head(x: Ball, fn: Ball, scale: Ball, base: Ball) -> Ball:
    flat = x.reshape(len(x.value), -1)
    mix = (flat @ fn.swap()) / ((flat * flat).mean(-1, keepdims=True) + 1e-6).sqrt()
    return weighted(x, mix, scale[0], base)


@settings(max_examples=8)
@given(
    m=st.sampled_from([1, 5, 17]),
    n=st.sampled_from([2, 4]),
    d=st.sampled_from([1, 33, 256, 300]),
    dtype=st.sampled_from([BF16, np.dtype(F)]),
    iterations=st.sampled_from([1, 20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_pre_post_head(m: int, n: int, d: int, dtype: Any, iterations: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((m, n, d)) * 2).astype(F).astype(dtype)
    fn, scale, base = parameters(rng, n, d)
    f = rng.standard_normal((m, d)).astype(F).astype(dtype)
    wide = [ball(t) for t in (x, fn, scale, base)]
    y, post, _ = pre(*wide, 1)
    comb, off = sampled(lambda: pre(*wide, iterations))[2]
    for target in TARGETS:
        got = v4.hyper_pre(x, fn, scale, base, iterations=iterations, target=target)
        assert got[0].dtype == dtype and got[1].dtype == F and got[2].shape == (m, n, n)
        assert y.holds(got[0], dtype.name) and post.holds(got[1]) and np.abs(got[2] - comb).max() <= off
        after = v4.hyper_post(f, x, got[1], got[2], target=target)
        wanted = ball(got[1][:, :, None]) * f[:, None] + ball(got[2]).swap() @ wide[0]
        assert wanted.holds(after, dtype.name)
        last = v4.hyper_head(x, fn[:n], scale[:1], base[:n], target=target)
        assert y.holds(last, dtype.name)
        one = v4.hyper_pre(x[-1:], fn, scale, base, iterations=iterations, target=target)
        assert all(same_bits(one[i], got[i][-1:]) for i in range(3))


def test_comb_is_used_transposed_and_sums_by_columns() -> None:
    """Trap 1: streams are mixed by the transpose. Trap 2: softmax + eps, then columns before rows: columns sum to
    1 - 1e-6, rows only nearly."""
    comb = np.zeros((1, 2, 2), F)
    comb[0, 0, 1] = 1
    x = np.array([[[5.0], [7.0]]], F)
    y = v4.hyper_post(np.zeros((1, 1), F), x, np.zeros((1, 2), F), comb)
    assert y.ravel().tolist() == [0, 5]
    rng = np.random.default_rng(0)
    x, (fn, scale, base) = rng.standard_normal((64, 4, 32)).astype(F), parameters(rng, 4, 32)
    comb = v4.hyper_pre(x, fn, scale, base)[2].astype(np.float64)
    assert np.abs(comb.sum(1) - (1 - 1e-6)).max() < 4e-7
    assert 1e-7 < np.abs(comb.sum(2) - 1).max() < 0.05
    post = v4.hyper_pre(x * 0, fn, scale, base * 0 - 200)[1]
    assert not post.any()  # trap 15: pre adds eps, post does not
    assert (v4.hyper_pre(x * 0 + 1, fn * 0, scale, base * 0 - 200)[0] > 3.9e-6).all()


@pytest.mark.parametrize("n", [2, 4])
def test_gradients_are_those_of_automatic_differentiation(n: int) -> None:
    rng, m, d = np.random.default_rng(1), 70, 40
    x = rng.standard_normal((m, n, d)).astype(F)
    fn, scale, base = parameters(rng, n, d)
    f, dy = rng.standard_normal((m, d)).astype(F), rng.standard_normal((m, d)).astype(F)
    dpost, dcomb = rng.standard_normal((m, n)).astype(F), rng.standard_normal((m, n, n)).astype(F)
    leaves = [ball(t) for t in (x, fn, scale, base)]
    wanted = sampled(lambda: gradients(pre(*leaves), (dy, dpost, dcomb), leaves))
    for target in TARGETS:
        _, post, comb, saved = v4.hyper_pre(x, fn, scale, base, target=target)
        got = v4.hyper_pre_backward(x, fn, scale, base, saved, dy, dpost, dcomb, target=target)
        for g, (exact, off) in zip(got, wanted, strict=True):
            assert g.shape == exact.shape and np.abs(g - exact).max() <= off
        after = rng.standard_normal((m, n, d)).astype(F)
        df, dx, dp, dc = v4.hyper_post_backward(f, x, post, comb, after, target=target)
        d_after = ball(after)
        assert (ball(post[:, None]) @ d_after).holds(df[:, None]) and (ball(comb) @ d_after).holds(dx)
        assert (d_after @ f[:, :, None]).holds(dp[:, :, None]) and (ball(x) @ d_after.swap()).holds(dc)
        one = v4.hyper_pre(x[:1], fn, scale, base, target=target)[3]
        alone = v4.hyper_pre_backward(x[:1], fn, scale, base, one, dy[:1], dpost[:1], dcomb[:1], target=target)
        assert same_bits(alone[0], got[0][:1])


@pytest.mark.parametrize(("m", "n", "d"), [(1, 1, 7), (17, 2, 33), (70, 4, 300)])
def test_gradients_of_the_head(m: int, n: int, d: int) -> None:
    rng = np.random.default_rng(m)
    x = rng.standard_normal((m, n, d)).astype(F)
    fn, scale, base = (rng.standard_normal(s).astype(F) for s in ((n, n * d), 1, n))
    fn = (fn / F(n * d) ** F(0.5)).astype(F)
    dy = rng.standard_normal((m, d)).astype(F)
    leaves = [ball(t) for t in (x, fn, scale, base)]
    wanted = gradients([head(*leaves)], [dy], leaves)
    for target in TARGETS:
        got, saved = v4.hyper_head(x, fn, scale, base, return_mixes=True, target=target)
        assert same_bits(got, v4.hyper_head(x, fn, scale, base, target=target))
        grads = v4.hyper_head_backward(x, fn, scale, base, saved, dy, target=target)
        assert all(g.dtype == F and w.holds(g) for g, w in zip(grads, wanted, strict=True))
        _, one = v4.hyper_head(x[:1], fn, scale, base, return_mixes=True, target=target)
        assert same_bits(v4.hyper_head_backward(x[:1], fn, scale, base, one, dy[:1], target=target)[0], grads[0][:1])


def test_targets_agree() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((5, 4, 40)).astype(F).astype(BF16)
    fn, scale, base = parameters(rng, 4, 40)
    dy, dpost, dcomb = (rng.standard_normal(s).astype(F) for s in ((5, 40), (5, 4), (5, 4, 4)))

    def all_of_it(x: Array, fn: Array, scale: Array, base: Array, dy: Array, target: str) -> Any:
        y, post, comb, saved = v4.hyper_pre(x, fn, scale, base, iterations=3, target=target)
        after = v4.hyper_post(y, x, post, comb, target=target)
        grads = v4.hyper_post_backward(y, x, post, comb, after, target=target)
        more = v4.hyper_pre_backward(x, fn, scale, base, saved, dy, dpost, dcomb, iterations=3, target=target)
        head, kept = v4.hyper_head(x, fn[:4], scale[:1], base[:4], return_mixes=True, target=target)
        last = v4.hyper_head_backward(x, fn[:4], scale[:1], base[:4], kept, dy, target=target)
        return [y, post, comb, after, *grads, *more, head, *last]

    assert_targets_agree(all_of_it, x, fn, scale, base, dy.astype(BF16))


def test_corners_and_arguments() -> None:
    rng = np.random.default_rng(3)
    x, (fn, scale, base) = rng.standard_normal((3, 4, 8)).astype(F), parameters(rng, 4, 8)
    y, post, comb, saved = v4.hyper_pre(x[:0], fn, scale, base)
    assert y.shape == (0, 8) and post.shape == (0, 4) and comb.shape == (0, 4, 4)
    assert v4.hyper_post(y, x[:0], post, comb).shape == (0, 4, 8)
    grads = v4.hyper_pre_backward(x[:0], fn, scale, base, saved, y, post, comb)
    assert grads[0].shape == (0, 4, 8) and not any(g.any() for g in grads[1:])
    y, post, comb, saved = v4.hyper_pre(x, fn, scale, base)
    for call, kind, words in (
        (lambda: v4.hyper_pre(x, fn[:23], scale, base), TileTypeError, "fn is \\[24, 32\\]"),
        (lambda: v4.hyper_pre(x, fn, scale[:2], base), TileTypeError, "scale is \\[3\\]"),
        (lambda: v4.hyper_pre(x, fn, scale, base, iterations=0), TileValueError, "iterations is 0"),
        (lambda: v4.hyper_pre(x, fn, scale, base, eps=-1.0), TileValueError, "eps is -1.0"),
        (lambda: v4.hyper_pre(x.astype(np.float16), fn, scale, base), TileTypeError, "x is float16"),
        (lambda: v4.hyper_post(y, x, post[:, :3], comb), TileTypeError, "expected post"),
        (lambda: v4.hyper_post_backward(y, x, post, comb, x[:, :3]), TileTypeError, "dy does not fit"),
        (lambda: v4.hyper_pre_backward(x, fn, scale, base, saved, y, post, post), TileTypeError, "expected dcomb"),
        (lambda: v4.hyper_head_backward(x, fn[:4], scale[:1], base[:4], saved, y), TileTypeError, "expected saved.mix"),
    ):
        with pytest.raises(kind, match=words):
            call()
