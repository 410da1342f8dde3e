"""The fused clamped SwiGLU and its gradient against float64, their casts bit for bit; E5M6 and stochastic rounding."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import U, close, rounding, same_bits, worst
from v4_reference import BF16, E8M0, TARGETS, Array, fp8_cast, loud

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import quant
from tiledsl.testing import assert_targets_agree

F16 = np.dtype(np.float16)


def swiglu(x: Array, w: Array | None, limit: float | None) -> dict[str, Array]:
    x = x.astype(np.float64)
    n = x.shape[1] // 2
    raw_g, raw_u = x[:, :n], x[:, n:]
    g, u = (raw_g, raw_u) if limit is None else (np.minimum(raw_g, limit), np.clip(raw_u, -limit, limit))
    s = 1 / (1 + np.exp(-g))
    weight = np.ones(len(x)) if w is None else w.astype(np.float64)
    return {"g": g, "u": u, "s": s, "w": weight[:, None], "open_g": g == raw_g, "open_u": u == raw_u}


@settings(max_examples=10)
@given(
    m=st.sampled_from([1, 5, 17]),
    n=st.sampled_from([1, 31, 128, 200]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    weighted=st.booleans(),
    limit=st.sampled_from([None, 0.5, 10.0]),
    e8m0=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_forward(m: int, n: int, dtype: str, weighted: bool, limit: float | None, e8m0: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((m, 2 * n)) * 6).astype(np.float32).astype(dtype)
    w = rng.uniform(0, 3, m).astype(np.float32) if weighted else None
    p = swiglu(x, w, limit)
    wanted = p["g"] * p["s"] * p["u"] * p["w"]
    for target in TARGETS:
        h = quant.swiglu_cast(x, w, limit=limit, block=None, target=target)
        assert h.dtype == x.dtype
        assert worst(h, wanted, 8 * U * np.abs(wanted) + rounding(wanted, dtype) * 1.01 + 2.0**-140) <= 1
        q, s = quant.swiglu_cast(
            x, w, limit=limit, block=64, scale_dtype=E8M0.name if e8m0 else "float32", target=target
        )
        wanted_q, wanted_s = fp8_cast(h, 1, 64, e8m0=e8m0)
        assert same_bits(q, wanted_q) and same_bits(s, wanted_s)


def gradient(x: Array, w: Array | None, d: Array, limit: float | None) -> tuple[Array, Array, Array, Array]:
    """dx and dw in float64, and bounds of their errors before they are rounded."""
    p, D, n = swiglu(x, w, limit), d.astype(np.float64), d.shape[1]
    g, u, s = p["g"], p["u"], p["s"]
    slope = s * (1 + g * (1 - s))
    exact = np.concatenate([D * p["w"] * u * slope * p["open_g"], D * p["w"] * g * s * p["open_u"]], 1)
    # 1 + g (1 - s) cancels where g is negative: its error is that of its two terms.
    size = np.abs(D * p["w"] * u) * s * (1 + np.abs(g) * (1 - s)) * p["open_g"]
    slack = 12 * U * np.concatenate([size, np.abs(exact[:, n:])], 1)
    terms = D * g * s * u
    return exact, terms.sum(1), slack, (n + 10) * U * np.abs(terms).sum(1)


@settings(max_examples=10)
@given(
    m=st.sampled_from([1, 5, 17]),
    n=st.sampled_from([1, 31, 64, 200]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    weighted=st.booleans(),
    limit=st.sampled_from([None, 0.5, 10.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_backward(m: int, n: int, dtype: str, weighted: bool, limit: float | None, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((m, 2 * n)) * 3).astype(np.float32).astype(dtype)
    d = rng.standard_normal((m, n)).astype(np.float32).astype(dtype)
    w = rng.uniform(0, 3, m).astype(np.float32) if weighted else None
    exact, weights, slack, off = gradient(x, w, d, limit)
    for target in TARGETS:
        dx, dw = quant.swiglu_cast_backward(x, w, d, limit=limit, target=target)
        assert worst(dx, exact, slack + rounding(np.abs(exact) + slack, dtype) + 2.0**-140) <= 1
        if weighted:
            assert worst(dw, weights, off + 2.0**-140) <= 1
        else:
            assert dw is None
        if n % 64 == 0:
            q, scale, again = quant.swiglu_cast_backward(x, w, d, limit=limit, block=64, target=target)
            wanted_q, wanted_s = fp8_cast(dx, 1, 64)
            assert same_bits(q, wanted_q) and same_bits(scale, wanted_s)
            assert dw is None or same_bits(again, dw)


def test_gradient_is_the_slope() -> None:
    """The formulas above against central differences of the forward one, at points on both sides of the clamps."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 24)) * 2
    d, w, e = rng.standard_normal((4, 12)), rng.uniform(1, 2, 4), 1e-5
    dx, dw, _, _ = gradient(x, w, d, 1.5)

    def terms(x: Array, w: Array) -> Any:
        p = swiglu(x, w, 1.5)
        return p["g"] * p["s"] * p["u"] * p["w"] * d

    # The third derivative of a term is below 4 |d w|; values of float64 are off by 2^-53 before they are divided by e.
    near = 4 * e**2 * np.abs(d).max() * 2 + 8 * 2.0**-53 * np.abs(terms(x, w)).max() / e
    for at in np.ndindex(*x.shape):
        step = np.zeros(x.shape)
        step[at] = e
        assert abs((terms(x + step, w) - terms(x - step, w)).sum() / (2 * e) - dx[at]) <= 12 * near
    for i in range(4):
        step = np.zeros(4)
        step[i] = e
        assert abs((terms(x, w + step) - terms(x, w - step)).sum() / (2 * e) - dw[i]) <= 12 * near


def test_swiglu_corners() -> None:
    """Without the clamp a gate of 1000 passes; NaN stays NaN; a row alone has the bits it has among others."""
    x = np.array([[1000.0, np.nan, 3.0, -20.0, 2.0, np.nan]], np.float32)
    for target in TARGETS:
        h = quant.swiglu_cast(x, limit=10.0, block=None, target=target)
        assert close(h[0, :1], np.array([-100 / (1 + np.exp(-10))]), 8) and np.isnan(h[0, 1:]).all()
        assert quant.swiglu_cast(x, block=None, target=target)[0, 0] == -20000
    rng = np.random.default_rng(1)
    x, w = loud(rng, (33, 128), BF16, 2), rng.uniform(0, 1, 33).astype(np.float32)
    q, s = quant.swiglu_cast(x, w, limit=10.0)
    for i in (0, 3, 32):
        one = quant.swiglu_cast(x[i : i + 1], w[i : i + 1], limit=10.0)
        assert same_bits(one[0][0], q[i]) and same_bits(one[1][0], s[i])
    d = loud(rng, (33, 64), BF16, 2)
    assert_targets_agree(lambda *a, target: quant.swiglu_cast(*a, limit=10.0, target=target), x, w)
    assert_targets_agree(lambda *a, target: quant.swiglu_cast_backward(*a, limit=10.0, target=target), x, w, d)
    assert quant.swiglu_cast(x[:0])[0].shape == (0, 64)


# -- E5M6 -------------------------------------------------------------------------------------------------------------


def e5m6_code(x: float) -> int:
    """By its definition: the nearest of the finite values, ties to the even code."""
    sign = 2048 if np.signbit(x) else 0
    if np.isnan(x):
        return sign | 0x7E0
    size = min(abs(float(x)), 65024.0)
    if size < 2.0**-14:
        return sign | int(np.round(size * 2.0**20))  # NumPy rounds ties to even
    e = int(np.floor(np.log2(size)))
    e -= size < 2.0**e
    m = int(np.round((size / 2.0**e - 1) * 64))
    return sign | ((e + 15 + (m == 64)) << 6) | (0 if m == 64 else m)


def e5m6_value(code: int) -> float:
    sign, e, m = (-1.0 if code & 2048 else 1.0), code >> 6 & 31, code & 63
    return float(sign * (m * 2.0**-20 if e == 0 else (1 + m / 64) * 2.0 ** (e - 15)))


@pytest.mark.parametrize("dtype", [np.dtype(np.float32), BF16, F16])
def test_e5m6(dtype: Any) -> None:
    rng = np.random.default_rng(4)
    every = np.array([e5m6_value(c) for c in range(0x7C0)])
    between = (every[1:] + every[:-1]) / 2
    near = np.concatenate([np.nextafter(between.astype(np.float32), np.float32(9e9)), between.astype(np.float32)])
    x = np.concatenate(
        [every, near, loud(rng, (40, 8), spread=12).ravel(), [np.nan, np.inf, -np.inf, 1e30, 65519, -0.0]]
    )
    x = np.concatenate([x, -x]).astype(np.float32)
    with np.errstate(all="ignore"):
        x = x[: len(x) // 24 * 24].reshape(-1, 24).astype(dtype)
    codes = np.array([e5m6_code(v) for v in x.astype(np.float64).ravel()]).reshape(x.shape)
    for target in TARGETS:
        packed = quant.pack_e5m6(x, target=target)
        assert packed.shape == (len(x), 9) and packed.dtype == np.uint32
        for row in (0, 1, len(x) - 1):
            for group in range(3):
                words = packed[row, 3 * group : 3 * group + 3]
                whole = int(words[0]) | int(words[1]) << 32 | int(words[2]) << 64
                np.testing.assert_array_equal([whole >> 12 * j & 4095 for j in range(8)], codes[row, 8 * group :][:8])
        y = quant.unpack_e5m6(packed, target=target)
        special = np.isnan(x.astype(np.float32))
        wanted = np.array([e5m6_value(c) for c in codes.ravel()], np.float32).reshape(x.shape)
        np.testing.assert_array_equal(y, np.where(special, np.float32(np.nan), wanted))
        assert same_bits(
            quant.pack_e5m6(np.where(special, np.float32(1), y), target=target),
            quant.pack_e5m6(np.where(special, np.float32(1), x.astype(np.float32)), target=target),
        )
        half = quant.unpack_e5m6(packed, out_dtype="float16", target=target)
        np.testing.assert_array_equal(half.astype(np.float32), y)
    assert_targets_agree(quant.pack_e5m6, x)


# -- stochastic rounding ----------------------------------------------------------------------------------------------


def philox(counter: Array, key: int) -> Array:
    """Philox2x32-10: [..., 2] words of 64-bit counters."""
    low, high = counter.astype(np.uint64) & np.uint64(0xFFFFFFFF), counter.astype(np.uint64) >> np.uint64(32)
    for _ in range(10):
        product = low * np.uint64(0xD256D193)
        low, high = (product >> np.uint64(32)) ^ np.uint64(key) ^ high, product & np.uint64(0xFFFFFFFF)
        key = (key + 0x9E3779B9) % 2**32
    return np.stack([low, high], -1).astype(np.uint32)


def test_philox_gives_the_published_numbers() -> None:
    for counter, key, words in ((0, 0, (0xFF1DAE59, 0x6CD10DF2)), (2**64 - 1, 2**32 - 1, (0x2C3F628B, 0xAB4FD7AD))):
        assert tuple(philox(np.array([counter], np.uint64), key)[0]) == words


@pytest.mark.parametrize("seeded", [False, True])
def test_stochastic_round(seeded: bool) -> None:
    rng = np.random.default_rng(6)
    x = loud(rng, (37, 41), spread=20)
    x.ravel()[:6] = [np.nan, np.inf, -np.inf, 0, -0.0, 1e-41]
    noise = philox(np.arange(5, 5 + x.size).astype(np.uint64), 77)[:, 0].reshape(x.shape)
    options: dict[str, Any] = {"seed": 77, "offset": 5} if seeded else {"random": noise}
    bits = x.view(np.uint32).astype(np.uint64)
    moved = ((bits + (noise & 0xFFFF)) >> 16).astype(np.uint16).view(ml_dtypes.bfloat16).astype(np.float32)
    wanted = np.where(np.isfinite(x), moved, x).astype(ml_dtypes.bfloat16)
    for target in TARGETS:
        y = quant.stochastic_round(x, target=target, **options)
        np.testing.assert_array_equal(y.astype(np.float32), wanted.astype(np.float32))
        assert np.signbit(y.ravel()[4].astype(np.float32))
    assert_targets_agree(lambda a, target: quant.stochastic_round(a, target=target, **options), x)


def test_stochastic_round_is_fair_and_splits_anywhere() -> None:
    x = np.full(200_000, 1 + 0.3 * 2.0**-7, np.float32)
    y = quant.stochastic_round(x, seed=1).astype(np.float64)
    assert abs((y - 1).mean() * 2**7 - 0.3) < 5 * (0.21 / len(x)) ** 0.5 and set(y) == {1.0, 1 + 2.0**-7}
    rest = quant.stochastic_round(x[1000:], seed=1, offset=1000)
    np.testing.assert_array_equal(rest.astype(np.float64), y[1000:])
    held = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(quant.stochastic_round(held, seed=2).astype(np.float32), held)


def test_arguments_are_checked() -> None:
    x, w = np.ones((4, 16), np.float32), np.ones(4, np.float32)
    for call, kind, words in (
        (lambda: quant.swiglu_cast(x[:, :15]), TileTypeError, "even number of columns"),
        (lambda: quant.swiglu_cast(x, w[:3]), TileTypeError, "one weight per token"),
        (lambda: quant.swiglu_cast(x, limit=-1.0), TileValueError, "limit is -1.0"),
        (lambda: quant.swiglu_cast_backward(x, w, x), TileTypeError, "dh does not fit"),
        (lambda: quant.swiglu_cast_backward(x, w, x[:, :8], block=32), TileValueError, "a half of gate_up has 8"),
        (lambda: quant.pack_e5m6(x[:, :7]), TileTypeError, "multiple of 8"),
        (lambda: quant.unpack_e5m6(np.zeros((2, 4), np.uint32)), TileTypeError, "multiple of 3"),
        (lambda: quant.stochastic_round(x), TileValueError, "pass a seed or random bits"),
        (lambda: quant.stochastic_round(x, random=np.zeros(3, np.uint32)), TileTypeError, "shapes differ"),
        (lambda: quant.stochastic_round(x, seed=-1), TileValueError, "seed is -1"),
    ):
        with pytest.raises(kind, match=words):
            call()
