"""The library's functions of rows (layer_norm, swiglu, rope, cumsum, top_k, transpose) against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_support import DTYPES, Array, U, normal, rounding, same_bits, tensor, worst

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.testing import assert_targets_agree


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- layer_norm -------------------------------------------------------------------------------------------------------


def layer_norm_bound(x: Array, w: Array, b: Array, eps: float, dtype: str) -> tuple[Array, Array]:
    """Float64 result and bound. The mean is off by n u mean|x| + u |mean|; that shifts every difference, and the
    root by as much relative to itself; the sum of squares counts half; ten more roundings at most."""
    x, w, b = (t.astype(np.float64) for t in (x, w, b))
    n = x.shape[-1]
    mean = x.mean(axis=-1, keepdims=True)
    off = ((n + 1) * np.abs(x).mean(axis=-1, keepdims=True) + np.abs(mean)) * U
    root = np.sqrt(((x - mean) ** 2).mean(axis=-1, keepdims=True) + eps)
    y = (x - mean) / root
    slack = np.abs(w) * (off / root + np.abs(y) * ((n / 2 + 10) * U + off / root)) * (1 + n * U)
    slack += U * (np.abs(y * w) + np.abs(y * w + b)) + 2.0**-148
    return y * w + b, slack + rounding(np.abs(y * w + b) + slack, dtype)


@settings(max_examples=8)
@given(
    rows=st.sampled_from([1, 3, 16, 17, 33]),
    n=st.sampled_from([1, 2, 31, 48, 229, 511, 512, 513, 1031]),
    eps=st.sampled_from([1e-6, 0.5]),
    weight=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_layer_norm_error(
    target: str, dtype: str, rows: int, n: int, eps: float, weight: bool, bias: bool, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    eps = float(np.float32(eps))
    x = normal(rng, (rows, n), dtype)
    w = normal(rng, (n,), dtype) if weight else None
    b = normal(rng, (n,), dtype) if bias else None
    got = kernels.layer_norm(x, w, b, eps=eps, target=target)
    ones, zeros = np.ones(n), np.zeros(n)
    bound = layer_norm_bound(x, ones if w is None else w, zeros if b is None else b, eps, dtype)
    assert worst(got, *bound) <= 1


def test_layer_norm_of_far_rows(target: str) -> None:
    """A mean of 1000 and a spread of 1: squares would cancel; the squared differences do not."""
    rng = np.random.default_rng(0)
    x = normal(rng, (4, 700), "float32") + np.float32(1000)
    y = kernels.layer_norm(x, target=target)
    assert worst(y, *layer_norm_bound(x, np.ones(700), np.zeros(700), 1e-5, "float32")) <= 1


def test_layer_norm_bound_has_teeth() -> None:
    """It refuses a mean over one element too many, the unbiased variance, and a missing eps."""
    rng = np.random.default_rng(1)
    x, w, b = (normal(rng, s, "float32") for s in ((8, 229), (229,), (229,)))
    y, bound = layer_norm_bound(x, w, b, 1e-2, "float32")
    padded = layer_norm_bound(np.pad(x, ((0, 0), (0, 1))), np.pad(w, (0, 1)), np.pad(b, (0, 1)), 1e-2, "float32")[0]
    assert worst(padded[:, :-1], y, bound) > 1
    unbiased = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-2) * w + b
    assert worst(unbiased, y, bound) > 1
    assert worst(layer_norm_bound(x, w, b, 0.0, "float32")[0], y, bound) > 1


# -- swiglu -----------------------------------------------------------------------------------------------------------


def swiglu_bound(g: Array, u: Array, dtype: str) -> tuple[Array, Array]:
    """Float64 result and bound: exp within an ulp of its value and of what underflows, sum, quotient, product."""
    g, u = g.astype(np.float64), u.astype(np.float64)
    y = g / (1 + np.exp(-g)) * u
    slack = 6 * U * np.abs(y) + 2.0**-148 * (1 + np.abs(u))
    return y, slack + rounding(np.abs(y) + slack, dtype)


@settings(max_examples=8)
@given(
    shape=st.sampled_from([(1,), (17,), (3, 33), (16, 512), (2, 3, 513), (33, 64)]),
    packed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_swiglu_error(target: str, dtype: str, shape: tuple[int, ...], packed: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (normal(rng, (*shape[:-1], 2 * shape[-1]), "float32") * 4).astype(DTYPES[dtype][0])
    g, u = x[..., : shape[-1]], x[..., shape[-1] :]
    got = kernels.swiglu(x, target=target) if packed else kernels.swiglu(g.copy(), u, target=target)
    assert got.dtype == x.dtype
    assert worst(got, *swiglu_bound(g, u, dtype)) <= 1


def test_swiglu_in_place_and_saturated(target: str) -> None:
    g = np.array([[-200.0, -90.0, 0.0, 90.0, 200.0, np.inf]], np.float32)
    u = np.full_like(g, 3)
    exact, bound = swiglu_bound(g, u, "float32")
    assert kernels.swiglu(g, u, out=g, target=target) is g
    assert not g[0, :2].any() and np.isposinf(g[0, -1])  # exp(90) is beyond float32
    assert worst(g[:, 2:-1], exact[:, 2:-1], bound[:, 2:-1]) <= 1


# -- rope -------------------------------------------------------------------------------------------------------------


def rope_reference(x: Array, cos: Array, sin: Array, at: Array, interleaved: bool, dtype: str) -> tuple[Array, Array]:
    """x [batch, seq, heads, head_dim], at [batch, seq]; two products and a sum: 3 roundings of their sizes."""
    x, c, s = x.astype(np.float64), *(t.astype(np.float64)[at][:, :, None] for t in (cos, sin))
    half = cos.shape[1]
    lo, hi = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(0, half), slice(half, 2 * half))
    a, b, y, size = x[..., lo], x[..., hi], x.copy(), np.zeros_like(x)
    y[..., lo], y[..., hi] = a * c - b * s, b * c + a * s
    size[..., lo], size[..., hi] = np.abs(a * c) + np.abs(b * s), np.abs(b * c) + np.abs(a * s)
    slack = 3 * U * size
    return y, np.where(size > 0, slack + rounding(np.abs(y) + slack, dtype), 2.0**-1000)


@settings(max_examples=10)
@given(
    seq=st.sampled_from([1, 7, 16, 17, 33]),
    heads=st.sampled_from([1, 3]),
    dims=st.sampled_from([(2, 1), (8, 4), (40, 16), (64, 32), (70, 33), (200, 50)]),
    positions=st.sampled_from([None, "row", "batch"]),
    interleaved=st.booleans(),
    bshd=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_rope_error(
    target: str, dtype: str, seq: int, heads: int, dims: tuple[int, int], positions: str | None, interleaved: bool,
    bshd: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    d, half = dims
    x = normal(rng, (2, seq, heads, d), dtype)
    angle = rng.uniform(-3, 3, (40, half))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    at = rng.integers(0, 40, (2, seq)) if positions == "batch" else np.tile(rng.integers(0, 40, seq), (2, 1))
    at = np.tile(np.arange(seq), (2, 1)) if positions is None else at
    given_at = {None: None, "row": at[0], "batch": at}[positions]
    source = x if bshd else np.ascontiguousarray(x.swapaxes(1, 2))
    got = kernels.rope(
        source, cos, sin, positions=given_at, interleaved=interleaved, layout="bshd" if bshd else "bhsd", target=target
    )
    got = got if bshd else got.swapaxes(1, 2)
    assert worst(got, *rope_reference(x, cos, sin, at, interleaved, dtype)) <= 1


def test_rope_in_place_and_strided(target: str) -> None:
    rng = np.random.default_rng(2)
    packed = normal(rng, (2, 20, 3, 2, 48), "float32")
    x, cos, sin = packed[..., 1, :], normal(rng, (20, 16), "float32"), normal(rng, (20, 16), "float32")
    y = kernels.rope(np.ascontiguousarray(x), cos, sin, target=target)
    kept = packed[..., 0, :].copy()
    assert kernels.rope(x, cos, sin, out=x, target=target) is x
    assert same_bits(np.ascontiguousarray(x), y) and same_bits(np.ascontiguousarray(packed[..., 0, :]), kept)


# -- cumsum -----------------------------------------------------------------------------------------------------------


@settings(max_examples=8)
@given(
    rows=st.sampled_from([1, 3, 16, 17]),
    n=st.sampled_from([1, 31, 63, 64, 65, 300]),
    reverse=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_cumsum_is_the_sequential_sum(target: str, dtype: str, rows: int, n: int, reverse: bool, seed: int) -> None:
    """One float32 chain, each element rounded once: NumPy's cumulative sum in float32 has the same order."""
    x = normal(np.random.default_rng(seed), (rows, n), dtype)
    forward = x[:, ::-1] if reverse else x
    exact = np.cumsum(forward.astype(np.float32), axis=1, dtype=np.float32).astype(x.dtype)
    got = kernels.cumsum(x, reverse=reverse, target=target)
    assert same_bits(got, np.ascontiguousarray(exact[:, ::-1] if reverse else exact))


def test_cumsum_of_integers_wraps(target: str) -> None:
    rng = np.random.default_rng(3)
    for kind in (np.int32, np.int64):
        x = rng.integers(np.iinfo(kind).min, np.iinfo(kind).max, (2, 3, 70), dtype=kind)
        assert np.array_equal(kernels.cumsum(x, target=target), np.cumsum(x, axis=-1, dtype=kind))


# -- top_k ------------------------------------------------------------------------------------------------------------


def top_k_reference(x: Array, k: int) -> tuple[Array, Array]:
    """By a stable sort: NaN first, then descending, equal ones in the order of columns."""
    wide = x.astype(np.float64)
    order = np.lexsort((np.broadcast_to(np.arange(x.shape[-1]), x.shape), -np.nan_to_num(wide, nan=0), ~np.isnan(wide)))
    return np.take_along_axis(x, order[..., :k], -1), order[..., :k].astype(np.int32)


@settings(max_examples=8)
@given(
    rows=st.sampled_from([1, 3]),
    n=st.sampled_from([1, 2, 31, 64, 65, 256, 257, 512, 1100]),
    k=st.sampled_from([1, 7, 40]),
    ties=st.booleans(),
    special=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(rows=3, n=600, k=40, ties=True, special=True, seed=0)
def test_top_k(target: str, dtype: str, rows: int, n: int, k: int, ties: bool, special: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = normal(rng, (rows, n), "float32")
    x = (np.round(x) if ties else x).astype(DTYPES[dtype][0])
    if special:
        for v in (np.nan, np.inf, -np.inf, -0.0, 0.0, np.nan):
            x[rng.integers(rows), rng.integers(n)] = v
    k = min(k, n)
    values, indices = kernels.top_k(x, k, target=target)
    expected, columns = top_k_reference(x, k)
    assert indices.dtype == np.int32 and np.array_equal(indices, columns)
    assert values.dtype == x.dtype and np.array_equal(values.astype(float), expected.astype(float), equal_nan=True)


# -- transpose --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "int64"])
def test_transpose(target: str, kind: str) -> None:
    rng = np.random.default_rng(4)
    element = DTYPES[kind][0] if kind in DTYPES else np.dtype(kind)
    for shape in [(1, 1), (7, 33), (64, 65), (3, 130, 17), (2, 0, 5)]:
        x = rng.integers(-99, 99, shape).astype(element)
        assert same_bits(kernels.transpose(x, target=target), np.ascontiguousarray(x.swapaxes(-1, -2)))
    x = rng.integers(-99, 99, (40, 50)).astype(element)
    assert same_bits(kernels.transpose(x[3:30, 7:], target=target), np.ascontiguousarray(x[3:30, 7:].T))


# -- all of them ------------------------------------------------------------------------------------------------------


def tables(rng: np.random.Generator) -> tuple[Array, Array]:
    return normal(rng, (40, 100), "float32"), normal(rng, (40, 100), "float32")


CALLS: dict[str, Callable[..., Any]] = {
    "layer_norm": lambda x, **kw: kernels.layer_norm(x, x[0], x[0], **kw),
    "swiglu": kernels.swiglu,
    "cumsum": kernels.cumsum,
    "transpose": kernels.transpose,
    "rope": lambda x, **kw: kernels.rope(x[:, None, None], *tables(np.random.default_rng(1)), **kw),
    "top_k": lambda x, **kw: kernels.top_k(x, 9, **kw),
}


@pytest.mark.parametrize("name", CALLS)
def test_targets_agree_bit_for_bit(name: str, dtype: str) -> None:
    assert_targets_agree(CALLS[name], normal(np.random.default_rng(5), (19, 300), dtype))


@pytest.mark.parametrize("name", ["swiglu", "cumsum", "top_k", "rope", "layer_norm"])
def test_rows_do_not_depend_on_each_other(name: str, dtype: str, target: str) -> None:
    x = normal(np.random.default_rng(6), (40, 300), dtype)
    call = (lambda x, **kw: kernels.layer_norm(x, **kw)) if name == "layer_norm" else CALLS[name]
    whole = call(x, target=target)
    for rows in (slice(0, 1), slice(13, 14), slice(5, 22)):
        part = call(x[rows], target=target)
        pairs = zip(part, whole, strict=True) if isinstance(whole, tuple) else [(part, whole)]
        assert all(same_bits(a, b[rows]) for a, b in pairs)


@pytest.mark.parametrize("name", CALLS)
def test_checked_mode_finds_nothing(name: str) -> None:
    CALLS[name](normal(np.random.default_rng(7), (5, 300), "bfloat16"), target="numpy:checked")


@pytest.mark.parametrize("name", CALLS)
def test_torch_in_torch_out(name: str, dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    x = normal(np.random.default_rng(8), (5, 300), dtype)
    if name == "rope":
        cos, sin = tables(np.random.default_rng(1))
        args = [tensor(torch, t) for t in (x, cos, sin)]
        got = kernels.rope(args[0][:, None, None], *args[1:], target="llvm")
    else:
        got = CALLS[name](tensor(torch, x), target="llvm")
    expected = CALLS[name](x, target="llvm")
    pairs = zip(got, expected, strict=True) if isinstance(expected, tuple) else [(got, expected)]
    for a, b in pairs:
        assert isinstance(a, torch.Tensor) and str(a.dtype) == f"torch.{b.dtype}"
        assert np.array_equal(a.float().numpy(), b.astype(np.float32))


def test_nothing(target: str) -> None:
    none = np.ones((4, 300), np.float32)[:0]
    for name, call in CALLS.items():
        got = kernels.layer_norm(none, target=target) if name == "layer_norm" else call(none, target=target)
        assert all(x.size == 0 for x in (got if isinstance(got, tuple) else (got,)))
    for name in ("swiglu", "cumsum", "transpose"):
        assert CALLS[name](np.ones((4, 0), np.float32), target=target).size == 0


F = np.ones((4, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.layer_norm(F, F[0, :3]), TileTypeError, "weight does not fit"),
        (lambda: kernels.layer_norm(F, None, F[0, :3]), TileTypeError, "bias does not fit"),
        (lambda: kernels.layer_norm(F, F[0], F[0].astype(np.float16)), TileTypeError, "weight and bias differ"),
        (lambda: kernels.layer_norm(F, eps=float("nan")), TileValueError, "eps is nan"),
        (lambda: kernels.swiglu(F[:, :3]), TileTypeError, "two halves"),
        (lambda: kernels.swiglu(F, F[:2]), TileTypeError, "one shape expected"),
        (lambda: kernels.swiglu(F, out=F[:, :2].copy().T), TileTypeError, "out is a ndarray"),
        (lambda: kernels.rope(F[None, None], F, F), TileTypeError, "tables do not fit"),
        (lambda: kernels.rope(F[None, :, None], F[:3, :2], F[:3, :2]), TileValueError, "hold 3 positions"),
        (lambda: kernels.rope(F[None, :, None], F[:, :2], F[:, :2], positions=[0]), TileTypeError, "positions is list"),
        (
            lambda: kernels.rope(F[None, :, None], F[:, :2], F[:, :2], positions=np.array([0, 1, 2, 4])),
            TileValueError,
            "positions holds 4, expected 0 to 3",
        ),
        (lambda: kernels.rope(F[None, None], F, F, layout="sbhd"), TileValueError, "expected 'bshd' or 'bhsd'"),
        (lambda: kernels.cumsum(F.astype(np.int8)), TileTypeError, "x is int8"),
        (lambda: kernels.cumsum(F[:2], out=F[1:3]), TileValueError, "out shares memory with x"),
        (lambda: kernels.top_k(F, 5), TileValueError, "k is 5, expected 1 to 4, the elements of a row"),
        (lambda: kernels.top_k(F, 0), TileValueError, "k is 0"),
        (lambda: kernels.transpose(F[0]), TileTypeError, "at least two dimensions"),
        (lambda: kernels.transpose(F.astype(np.complex64)), TileTypeError, "x is complex64"),
        (lambda: kernels.transpose(F, out=F), TileValueError, "out shares memory with x"),
    ],
)
def test_arguments_are_checked(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
