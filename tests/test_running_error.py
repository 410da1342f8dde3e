"""The running error analysis: float32 stays inside, a wrong term does not, and gradients are slopes."""

from __future__ import annotations

from typing import Any

import numpy as np
from kernels_support import Array
from running_error import Ball, ball, concatenate, gradients, sampled, where

rng = np.random.default_rng(0)
X, W = rng.standard_normal((9, 40)).astype(np.float32), rng.standard_normal((40, 12)).astype(np.float32) / 6


def formula(x: Any, w: Any) -> Any:
    """Every operation; for balls and for arrays of any float."""
    if not isinstance(x, Ball):
        y = x @ w
        p = np.exp(y - y.max(1, keepdims=True))
        p = p / p.sum(1, keepdims=True)
        s = 1 / (1 + np.exp(-np.concatenate([p, y], 1)[:, ::2]))
        return np.where(X[:, :12] > 0, np.log1p(np.exp(s)) * 3, -np.sqrt((s * s).mean(0) + x.dtype.type(1e-3)))
    y = x @ w
    p = (y - y.max(1, keepdims=True)).exp()
    p = p / p.sum(1, keepdims=True)
    s = concatenate([p, y], 1)[:, ::2].sigmoid()
    return where(X[:, :12] > 0, s.exp().log1p() * 3, -((s * s).mean(0) + 1e-3).sqrt())


def test_float32_is_inside_and_a_wrong_term_is_not() -> None:
    wanted = formula(ball(X), ball(W))
    np.testing.assert_array_equal(wanted.value, formula(X.astype(np.float64), W.astype(np.float64)))
    assert wanted.holds(formula(X, W)) and wanted.error.max() < 1e-4
    short = W.copy()
    short[-1] = 0
    assert not wanted.holds(formula(X, short))
    assert not wanted.holds(formula(X, W.astype(np.float16).astype(np.float32)))


def test_gradients_are_slopes() -> None:
    x, w, dy = X.astype(np.float64), W.astype(np.float64), rng.standard_normal((9, 12))
    leaves = [ball(x), ball(w)]
    found = gradients([formula(*leaves)], [dy], leaves)

    def slope(which: int, at: tuple[int, ...]) -> float:
        moved = []
        for step in (1e-6, -1e-6):
            both = [x.copy(), w.copy()]
            both[which][at] += step
            moved.append(formula(*both))
        return float(((moved[0] - moved[1]) * dy).sum() / 2e-6)

    for which, at in ((0, (0, 0)), (0, (8, 39)), (1, (0, 0)), (1, (17, 5))):
        assert abs(found[which].value[at] - slope(which, at)) < 1e-8
        assert found[which].error.max() < 1e-3


def test_sampled_errors_are_smaller_and_of_their_size() -> None:
    wanted = formula(ball(X), ball(W))
    exact, off = sampled(lambda: [formula(ball(X), ball(W))])[0]
    np.testing.assert_array_equal(exact, wanted.value)
    assert 1e-3 * wanted.error.max() < off < wanted.error.max()
    assert np.abs(formula(X, W) - exact).max() <= off


def test_casts_near_a_boundary() -> None:
    at: Array = np.array([1.4, 1.5 - 1e-9, 1.5 + 1e-9])
    assert Ball(at, 1e-6).through(np.rint).error.tolist() == [0, 1, 1]
