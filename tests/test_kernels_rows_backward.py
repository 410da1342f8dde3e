"""The gradients of softmax, the norms and swiglu against float64 (longdouble for float64 inputs)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import DTYPES, Array, normal, rounding, same_bits, tensor

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.testing import assert_targets_agree

NAMES = [*DTYPES, "float64"]
ROWS = st.sampled_from([1, 3, 16, 17, 65, 130])
COLUMNS = st.sampled_from([1, 2, 31, 48, 229, 512, 513, 700])
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(params=NAMES, scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def draw(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return rng.standard_normal(shape) if dtype == "float64" else normal(rng, shape, dtype)


def wide(x: Array) -> Array:
    return x.astype(np.longdouble if x.dtype == np.float64 else np.float64)


def within(got: Array, exact: Array, size: Array, roundings: float, reach: Any = 1.0) -> bool:
    """|got - exact| <= roundings u size, where size adds up the magnitudes that make the result and u is the unit
    roundoff of the sums, plus what an intermediate that underflows can miss (reach: what multiplies it), plus one
    rounding to the result's dtype."""
    assert got.shape == exact.shape
    dtype = str(got.dtype)
    u, tiny = (2.0**-53, 2.0**-1072) if dtype == "float64" else (2.0**-24, 2.0**-148)
    slack = roundings * u * size + tiny * reach
    last = 2.0**-53 * np.abs(exact) if dtype == "float64" else rounding(np.abs(exact) + slack, dtype)
    return bool((np.abs(wide(got) - exact) <= slack + last).all())


@settings(max_examples=8)
@given(m=ROWS, n=COLUMNS, seed=seeds)
def test_softmax(target: str, dtype: str, m: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    y = kernels.softmax(draw(rng, (m, n), dtype), target=target)
    dy = draw(rng, (m, n), dtype)
    Y, D = wide(y), wide(dy)
    exact = Y * (D - (Y * D).sum(-1, keepdims=True))
    size = Y * (np.abs(D) + (np.abs(Y * D)).sum(-1, keepdims=True))
    assert within(kernels.softmax_backward(y, dy, target=target), exact, size, n / 8 + 12)


def norm_gradients(x: Array, w: Array, dy: Array, eps: float, centred: bool) -> tuple[list[Array], list[Array]]:
    """The exact gradients, and the sums of the magnitudes that enter them."""
    x, w, dy = wide(x), wide(w), wide(dy)
    mean = x.mean(-1, keepdims=True) if centred else np.zeros_like(x[:, :1])
    d = x - mean
    far = np.abs(d) + np.abs(x).mean(-1, keepdims=True) * centred  # what the error of the mean counts against
    r = 1 / np.sqrt((d * d).mean(-1, keepdims=True) + eps)
    worse = 1 + (far * far).mean(-1, keepdims=True) * r * r  # an error of the mean square, relative
    g = dy * w
    dx = r * (g - g.mean(-1, keepdims=True) * centred - d * r * r * (g * d).mean(-1, keepdims=True))
    big = np.abs(g)
    size = big + big.mean(-1, keepdims=True) * centred + far * r * r * (big * far).mean(-1, keepdims=True)
    sums = [dx, (dy * d * r).sum(0), dy.sum(0)]
    return sums, [r * size * worse, (np.abs(dy) * far * r * worse).sum(0), np.abs(dy).sum(0)]


@settings(max_examples=8)
@given(m=ROWS, n=COLUMNS, eps=st.sampled_from([2.0**-10, 0.5]), weight=st.booleans(), centred=st.booleans(), seed=seeds)
def test_norms(
    target: str, dtype: str, m: int, n: int, eps: float, weight: bool, centred: bool, seed: int
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    x, dy, w = draw(rng, (m, n), dtype), draw(rng, (m, n), dtype), draw(rng, (n,), dtype)
    if centred:
        got = kernels.layer_norm_backward(x, w if weight else None, dy, eps=eps, target=target)
        w = w if weight else np.ones_like(w)
    else:
        got = kernels.rms_norm_backward(x, w, dy, eps=eps, target=target)
    exact, size = norm_gradients(x, w, dy, eps, centred)
    assert len(got) == (3 if centred else 2)
    for a, b, c, terms in zip(got, exact, size, (n, m, m), strict=False):
        assert a.dtype == x.dtype and within(a, b, c, (terms + n) / 8 + 16)


def test_norm_gradients_have_teeth() -> None:
    """The bound refuses a missing mean, a mean over one element more, and a weight's gradient that lacks a row."""
    rng = np.random.default_rng(1)
    x, dy, w = (draw(rng, s, "float32") for s in ((65, 229), (65, 229), (229,)))
    (dx, dw, _), (size, w_size, _) = norm_gradients(x, w, dy, 0.5, True)
    f32 = np.float32
    assert within(dx.astype(f32), dx, size, 74) and within(dw.astype(f32), dw, w_size, 53)
    g = wide(dy) * w
    r = 1 / np.sqrt(x.astype(float).var(-1, keepdims=True) + 0.5)
    assert not within((dx + r * g.mean(-1, keepdims=True) / 230).astype(f32), dx, size, 74)
    short = norm_gradients(x[:-1], w, dy[:-1], 0.5, True)[0][1]
    assert not within(short.astype(f32), dw, w_size, 53)


@settings(max_examples=8)
@given(
    shape=st.sampled_from([(1,), (17,), (3, 33), (2, 3, 513), (33, 64)]),
    scale=st.sampled_from([1.0, 8.0, 40.0]),
    seed=seeds,
)
def test_swiglu(target: str, dtype: str, shape: tuple[int, ...], scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gate, up, dy = (draw(rng, shape, dtype) for _ in range(3))
    gate = (gate * scale).astype(gate.dtype)
    got = kernels.swiglu_backward(gate, up, dy, target=target)
    G, U, D = wide(gate), wide(up), wide(dy)
    s, rest = 1 / (1 + np.exp(-G)), 1 / (1 + np.exp(G))
    exact = D * U * s * (1 + G * rest), D * G * s
    size = np.abs(D * U) * s * (1 + np.abs(G) * rest), np.abs(exact[1])
    reach = (1 + np.abs(D)) * (1 + np.abs(U)) * (1 + np.abs(G))
    assert all(within(a, b, c, 10, reach) for a, b, c in zip(got, exact, size, strict=True))


def calls(x: Array) -> dict[str, Any]:
    y, w = x[::-1], x[0]
    return {
        "softmax": lambda **kw: kernels.softmax_backward(x, y, **kw),
        "rms_norm": lambda **kw: kernels.rms_norm_backward(x, w, y, **kw),
        "layer_norm": lambda **kw: kernels.layer_norm_backward(x, w, y, **kw),
        "plain": lambda **kw: kernels.layer_norm_backward(x, None, y, **kw),
        "swiglu": lambda **kw: kernels.swiglu_backward(x, y, x, **kw),
    }


@pytest.mark.parametrize("name", ["softmax", "rms_norm", "layer_norm", "plain", "swiglu"])
def test_targets_agree_bit_for_bit(name: str, dtype: str) -> None:
    x = draw(np.random.default_rng(2), (70, 300), dtype)
    assert_targets_agree(calls(x)[name])
    calls(x[:5])[name](target="numpy:checked")


@pytest.mark.parametrize("name", ["softmax", "rms_norm", "layer_norm", "swiglu"])
def test_torch_in_torch_out_and_rows_alone(name: str, dtype: str, target: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(3)
    x, dy = draw(rng, (33, 70), dtype), draw(rng, (33, 70), dtype)
    function = getattr(kernels, f"{name}_backward")
    middle = {"softmax": [], "swiglu": [x]}.get(name, [x[0]])
    whole = function(x, *middle, dy, target=target)
    given_x, *given_middle, given_dy = (
        torch.from_numpy(t) if dtype == "float64" else tensor(torch, t) for t in (x, *middle, dy)
    )
    again = function(given_x, *given_middle, given_dy, target=target)
    part = function(x[5:9], *([x[5:9]] if name == "swiglu" else middle), dy[5:9], target=target)
    whole, again, part = (t if isinstance(t, tuple) else (t,) for t in (whole, again, part))
    assert same_bits(part[0], whole[0][5:9])
    for a, b in zip(again, whole, strict=True):
        assert isinstance(a, torch.Tensor) and np.array_equal(a.double().numpy(), b.astype(float))


def test_nothing(target: str) -> None:
    none, w = np.ones((0, 5), np.float32), np.ones(5, np.float32)
    dx, dw, db = kernels.layer_norm_backward(none, w, none, target=target)
    assert dx.shape == (0, 5) and not dw.any() and not db.any()  # sums of nothing
    assert kernels.softmax_backward(none, none, target=target).size == 0
    assert kernels.swiglu_backward(none, none, none, target=target)[0].size == 0
    assert kernels.rms_norm_backward(none.T, none[:, 0], none.T, target=target)[1].size == 0


F = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: kernels.softmax_backward(F, F[:3]),
            TileTypeError,
            "one shape .* expected: y is float32 \\(4, 4\\), dy",
        ),
        (lambda: kernels.softmax_backward(F, F.astype(float)), TileTypeError, "y and dy differ in dtype"),
        (lambda: kernels.swiglu_backward(F, F[0], F), TileTypeError, "one shape"),
        (lambda: kernels.rms_norm_backward(F, F[0, :3], F), TileTypeError, "weight does not fit"),
        (lambda: kernels.layer_norm_backward(F, None, F, eps=-1), TileValueError, "eps is -1"),
    ],
)
def test_arguments_are_checked(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
