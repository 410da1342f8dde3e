"""Muon and AdamW against NumPy in float64, and the singular values of the orthogonalised result."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import close, same_bits
from running_error import Ball, ball, sampled
from v4_reference import TARGETS, F

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import optim
from tiledsl.testing import assert_targets_agree

STEPS = [(3.4445, -4.7750, 2.0315)] * 8 + [(2.0, -1.5, 0.5)] * 2


def orthogonal(x: Ball) -> Ball:
    """The formula."""
    x = x / (x * x).sum((-2, -1), keepdims=True).sqrt()
    for a, b, c in STEPS:
        s = x @ x.swap()
        x = a * x + (b * s + c * (s @ s)) @ x
    return x


@settings(max_examples=8)
@given(
    shape=st.sampled_from([(1, 1), (7, 17), (33, 5), (2, 65, 130), (3, 130, 64), (1, 1, 300)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_newton_schulz_in_float32(shape: tuple[int, ...], seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal(shape).astype(F)
    exact, off = sampled(lambda: [orthogonal(ball(x))])[0]
    for target in TARGETS:
        got = optim.newton_schulz(x, products="float32", target=target)
        assert got.shape == shape and got.dtype == F
        # Small singular values grow by a factor of up to 3.4445 per step, and rounding errors with them.
        assert np.abs(got - exact).max() <= off


@pytest.mark.parametrize("shape", [(2, 96, 160), (160, 96)])
@pytest.mark.parametrize("target", TARGETS)
def test_singular_values(shape: tuple[int, ...], target: str) -> None:
    """With bfloat16 products all within [0.995, 1.006]; after the first eight steps alone they are not."""
    x = np.random.default_rng(0).standard_normal(shape).astype(F)
    got = optim.newton_schulz(x, target=target)
    s = np.linalg.svd(got.astype(np.float64), compute_uv=False)
    assert s.min() >= 0.995 and s.max() <= 1.006
    u, _, v = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    assert np.abs(got - u @ v).max() < 0.02
    fast = optim.newton_schulz(x, coefficients=tuple(STEPS[:8]), target=target)
    s = np.linalg.svd(fast.astype(np.float64), compute_uv=False)
    assert s.max() - s.min() > 0.1 and s.min() > 0.6 and s.max() < 1.2


def test_small_singular_values_converge() -> None:
    rng = np.random.default_rng(1)
    u, _ = np.linalg.qr(rng.standard_normal((40, 40)))
    v, _ = np.linalg.qr(rng.standard_normal((80, 40)))
    x = (u * np.geomspace(1, 2e-4, 40)) @ v.T
    s = np.linalg.svd(optim.newton_schulz(x.astype(F), products="float32").astype(np.float64), compute_uv=False)
    assert s.min() > 0.999 and s.max() < 1.001


@settings(max_examples=6)
@given(shape=st.sampled_from([(5, 33), (130, 20), (2, 17, 64)]), seed=st.integers(0, 2**32 - 1))
def test_muon_step(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, g, v = (rng.standard_normal(shape).astype(F) for _ in range(3))

    def update() -> list[Ball]:
        m = 0.95 * ball(v) + g
        return [ball(w) * (1 - 0.02 * 0.1) - orthogonal(0.95 * m + g) * (np.sqrt(max(shape[-2:])) * 0.18) * 0.02]

    wanted, off = sampled(update)[0]
    for target in TARGETS:
        weight, momentum = w.copy(), v.copy()
        optim.muon_step(weight, g, momentum, lr=0.02, products="float32", target=target)
        m = 0.95 * v.astype(np.float64) + g
        assert close(momentum, m, 2, 0.95 * np.abs(v) + np.abs(g))
        assert np.abs(weight - wanted).max() <= off
        if len(shape) == 3:
            alone, one = w[1].copy(), v[1].copy()
            optim.muon_step(alone, g[1], one, lr=0.02, products="float32", target=target)
            assert same_bits(alone, weight[1]) and same_bits(one, momentum[1])


@settings(max_examples=6)
@given(
    shape=st.sampled_from([(1,), (7, 300), (1025,)]), step=st.sampled_from([1, 2, 100]), seed=st.integers(0, 2**32 - 1)
)
def test_adamw_step(shape: tuple[int, ...], step: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    w, g, m = (rng.standard_normal(shape).astype(F) for _ in range(3))
    v = rng.uniform(0, 2, shape).astype(F)
    for target in TARGETS:
        got = [w.copy(), m.copy(), v.copy()]
        optim.adamw_step(got[0], g, got[1], got[2], step=step, lr=0.01, target=target)
        m64 = 0.9 * m.astype(np.float64) + 0.1 * g
        v64 = 0.95 * v.astype(np.float64) + 0.05 * g.astype(np.float64) ** 2
        update = (m64 / (1 - 0.9**step)) / (np.sqrt(v64 / (1 - 0.95**step)) + 1e-20)
        wanted = w * (1 - 0.01 * 0.1) - 0.01 * update
        size = 0.9 * np.abs(m) + 0.1 * np.abs(g)
        assert close(got[1], m64, 3, size) and close(got[2], v64, 4)
        # The update: 4 roundings of m, 5 under the root, the constants, the root, the quotient; then the weight's own.
        assert close(got[0], wanted, 16, np.abs(w) + 0.01 * np.abs(update) * size / np.abs(m64))


def test_against_torch() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(2)
    w = rng.standard_normal((9, 20)).astype(F)
    leaf = torch.nn.Parameter(torch.from_numpy(w.astype(np.float64)))
    size = np.abs(w).astype(np.float64)
    other = torch.optim.AdamW([leaf], lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    mine, first, second = torch.from_numpy(w.copy()), torch.zeros(9, 20), torch.zeros(9, 20)
    for step in range(1, 6):
        g = torch.from_numpy(rng.standard_normal((9, 20)).astype(F))
        leaf.grad, before = g.double(), leaf.detach().numpy().copy()
        other.step()
        size += np.abs(leaf.detach().numpy() - before)
        optim.adamw_step(mine, g, first, second, step=step, lr=0.01, eps=1e-8)
    assert close(mine.numpy(), leaf.detach().numpy(), 5 * 16, size)  # 16 a step, as above


def test_targets_agree() -> None:
    rng = np.random.default_rng(3)
    w, g, v = (rng.standard_normal((70, 33)).astype(F) for _ in range(3))
    assert_targets_agree(lambda *a, target: optim.muon_step(*a, lr=0.1, target=target), w, g, v)
    assert_targets_agree(lambda *a, target: optim.adamw_step(*a, step=3, lr=0.1, target=target), w, g, v, v * v)


def test_corners_and_arguments() -> None:
    zero = np.zeros((4, 6), F)
    assert not optim.newton_schulz(zero).any() and optim.newton_schulz(zero[:0]).shape == (0, 6)
    w = np.ones((4, 6), F)
    optim.muon_step(w, zero, zero.copy(), lr=0.5)
    assert close(w, np.full((4, 6), 0.95), 2)
    bad: Any = zero.astype(np.float64)
    for call, kind, words in (
        (lambda: optim.newton_schulz(bad), TileTypeError, "x is float64"),
        (lambda: optim.newton_schulz(zero[0]), TileTypeError, "expected \\[m, n\\]"),
        (lambda: optim.newton_schulz(zero, products="int8"), TileTypeError, "products is 'int8'"),
        (lambda: optim.muon_step(w, zero[:3], zero, lr=1.0), TileTypeError, "shapes differ"),
        (lambda: optim.muon_step(w.T, zero.T, zero.T, lr=1.0), TileValueError, "has to be contiguous"),
        (lambda: optim.adamw_step(w, w, w, w, step=0, lr=1.0), TileValueError, "step is 0"),
    ):
        with pytest.raises(kind, match=words):
            call()
