"""The library in float64: no step of it may be float32, which would show as an error of 1e-8 and more."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledsl import kernels
from tiledsl.testing import assert_targets_agree

Array = np.ndarray[Any, Any]
LD = np.longdouble
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 2, 7, 17, 33, 130])
TOLERANCE = 2.0**-44  # of the largest result: 2^9 roundings of float64, and 2^20 times less than one of float32


def close(got: Array, exact: Array) -> bool:
    """float64, of this shape, and within the tolerance."""
    assert got.dtype == np.float64 and got.shape == exact.shape
    return bool((np.abs(got - exact) <= TOLERANCE * np.abs(exact).max(initial=1)).all())


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


@settings(max_examples=8)
@given(m=sizes, n=sizes, k=sizes, seed=seeds)
def test_products(target: str, m: int, n: int, k: int, seed: int) -> None:
    a, b = draw(seed, (m, k), (k, n))
    exact = a.astype(LD) @ b.astype(LD)
    assert close(kernels.matmul(a, b, target=target), exact)
    assert close(kernels.matmul(a, kernels.prepack(b, target=target), target=target), exact)
    cut = m // 3
    counts = np.array([cut, 0, m - cut])
    w = np.stack([b, b, 2 * b])
    exact[cut:] *= 2
    assert close(kernels.grouped_gemm(a, w, counts, target=target), exact)
    (g,) = draw(seed + 1, (m, n))
    parts = [a[s].astype(LD).T @ g[s].astype(LD) for s in (slice(cut), slice(0), slice(cut, m))]
    assert close(kernels.k_grouped_gemm(a, g, counts, target=target), np.stack(parts))
    padded = kernels.masked_grouped_gemm(a[None], b[None], np.array([m]), target=target)
    assert close(padded, (a.astype(LD) @ b.astype(LD))[None])


@settings(max_examples=8)
@given(rows=sizes, n=st.sampled_from([1, 2, 33, 513, 600]), seed=seeds)
def test_rows(target: str, rows: int, n: int, seed: int) -> None:
    x, u, w, b = draw(seed, (rows, n), (rows, n), (n,), (n,))
    X, U, W, B = (t.astype(LD) for t in (x, u, w, b))
    assert close(kernels.softmax(x, target=target), softmax(X))
    root = np.sqrt((X * X).mean(-1, keepdims=True) + LD(0.1))
    assert close(kernels.rms_norm(x, w, eps=0.1, target=target), X / root * W)
    centred = X - X.mean(-1, keepdims=True)
    root = np.sqrt((centred * centred).mean(-1, keepdims=True) + LD(0.1))
    assert close(kernels.layer_norm(x, w, b, eps=0.1, target=target), centred / root * W + B)
    assert close(kernels.swiglu(x, u, target=target), X / (1 + np.exp(-X)) * U)
    assert close(kernels.cumsum(x, target=target), np.cumsum(X, axis=-1))


@settings(max_examples=6)
@given(seq=sizes, half=st.sampled_from([1, 4, 20]), interleaved=st.booleans(), seed=seeds)
def test_rope(target: str, seq: int, half: int, interleaved: bool, seed: int) -> None:
    x, cos, sin = draw(seed, (1, seq, 2, 2 * half + 3), (seq, half), (seq, half))
    X, c, s = x.astype(LD), cos.astype(LD)[:, None], sin.astype(LD)[:, None]
    lo, hi = (slice(0, 2 * half, 2), slice(1, 2 * half, 2)) if interleaved else (slice(half), slice(half, 2 * half))
    y = X.copy()
    y[..., lo], y[..., hi] = X[..., lo] * c - X[..., hi] * s, X[..., hi] * c + X[..., lo] * s
    assert close(kernels.rope(x, cos, sin, interleaved=interleaved, target=target), y)
    back = kernels.rope(x, cos, sin, interleaved=interleaved, inverse=True, target=target)
    assert close(back, kernels.rope(x, cos, -sin, interleaved=interleaved, target=target).astype(LD))


def attention(q: Array, k: Array, v: Array, seen: Array, sink: Array | None) -> tuple[Array, Array, Array]:
    """Output, lse and probabilities of [batch, heads, rows, dim]; every row sees something."""
    s = np.where(seen, np.einsum("bhid,bhjd->bhij", q, k) / np.sqrt(LD(q.shape[-1])), -np.inf)
    lse = np.log(np.exp(s).sum(-1))
    whole = lse if sink is None else np.log(np.exp(lse) + np.exp(sink[None, :, None]))
    p = np.exp(s - whole[..., None])
    return np.einsum("bhij,bhjd->bhid", p, v), lse, p


@settings(max_examples=8)
@given(rows=sizes, more=st.sampled_from([0, 5, 70]), kind=st.sampled_from(["full", "causal", "window"]),
       sunk=st.booleans(), seed=seeds)  # fmt: skip
def test_attention_and_its_gradient(target: str, rows: int, more: int, kind: str, sunk: bool, seed: int) -> None:
    d, cols = 10, rows + more
    shapes = (2, 4, rows, d), (2, 2, cols, d), (2, 2, cols, d), (2, 4, rows, d), (2, 4, rows), (4,)
    q, k, v, g, dlse, sink = draw(seed, *shapes)
    at, key = np.arange(rows)[:, None] + more, np.arange(cols)
    seen = {"full": key >= 0, "causal": key <= at, "window": (key >= at - 3) & (key <= at)}[kind]
    options: dict[str, Any] = {"causal": kind == "causal", "window": (3, 0) if kind == "window" else None}
    options |= {"sink": sink if sunk else None, "layout": "bhsd", "target": target}
    Q, K, V, G, L, S = (x.astype(LD) for x in (q, k, v, g, dlse, sink))
    K, V = (np.repeat(x, 2, axis=1) for x in (K, V))
    out, lse, p = attention(Q, K, V, seen, S if sunk else None)
    o, got_lse = kernels.flash_attention(q, k, v, return_lse=True, **options)
    assert close(o, out) and close(got_lse, lse)

    found = kernels.flash_attention_backward(q, k, v, o, got_lse, g, dlse=dlse, **options)
    share = np.where(seen, np.exp(np.einsum("bhid,bhjd->bhij", Q, K) / np.sqrt(LD(d)) - lse[..., None]), 0)
    dp = np.einsum("bhid,bhjd->bhij", G, V)
    delta = (G * out).sum(-1)
    ds = (p * (dp - delta[..., None]) + share * L[..., None]) / np.sqrt(LD(d))
    heads = [
        np.einsum("bhij,bhjd->bhid", ds, K),
        np.einsum("bhij,bhid->bhjd", ds, Q),
        np.einsum("bhij,bhid->bhjd", p, G),
    ]
    exact = [heads[0], *(x.reshape(2, 2, 2, cols, d).sum(2) for x in heads[1:])]
    if sunk:
        exact.append((-(1 - p.sum(-1)) * delta).sum((0, 2)))
    assert all(close(a, b) for a, b in zip(found, exact, strict=True))


def test_the_other_attentions(target: str) -> None:
    q, k, v, sink = draw(5, (2, 70, 4, 20), (2, 70, 2, 20), (2, 70, 2, 20), (4,))
    o, lse = kernels.flash_attention(q, k, v, sink=sink, return_lse=True, target=target)
    ends = np.array([0, 70, 140])
    flat = (x.reshape(140, -1, 20) for x in (q, k, v))
    packed, packed_lse = kernels.flash_attention_varlen(*flat, ends, sink=sink, return_lse=True, target=target)
    assert close(packed, o.reshape(140, 4, 20)) and close(packed_lse, np.concatenate([*lse], axis=-1))
    token, token_lse = kernels.attention_decode(q[:, -1], k, v, sink=sink, return_lse=True, target=target)
    assert close(token, o[:, -1]) and close(token_lse, lse[..., -1])
    plain = kernels.flash_attention(q, k, v, target=target)
    mask = np.ones((2, 4, 2, 2), bool)
    assert close(kernels.block_sparse_attention(q, k, v, block_mask=mask, block_size=(64, 64), target=target), plain)


def test_convolution(target: str) -> None:
    x, w = draw(6, (1, 5, 6, 3), (2, 2, 3, 4))
    patches = np.stack([x[0, r : r + 4, s : s + 5] for r in range(2) for s in range(2)], axis=2).astype(LD)
    assert close(kernels.conv2d(x, w, target=target), np.einsum("hwtc,tcf->hwf", patches, w.reshape(4, 3, 4))[None])


def test_targets_agree_bit_for_bit() -> None:
    x, w, b, q, g = draw(7, (19, 70), (70,), (70, 33), (1, 33, 2, 20), (1, 33, 2, 20))
    assert_targets_agree(kernels.matmul, x, b)
    assert_targets_agree(kernels.softmax, x)
    assert_targets_agree(kernels.layer_norm, x, w, w)
    assert_targets_agree(kernels.rms_norm, x, w)
    assert_targets_agree(kernels.swiglu, x)
    o, lse = assert_targets_agree(kernels.flash_attention, q, q, q, causal=True, return_lse=True)
    assert_targets_agree(kernels.flash_attention_backward, q, q, q, o, lse, g, causal=True)
