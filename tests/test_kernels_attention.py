"""The library's attention against float64, with a bound that follows from the arithmetic."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels.tiles import KV_TILE
from tiledsl.testing import assert_targets_agree

Array = np.ndarray[Any, Any]

# Name, unit roundoff, half of the smallest subnormal.
DTYPES = {
    "float32": (np.dtype(np.float32), 2.0**-24, 2.0**-150),
    "float16": (np.dtype(np.float16), 2.0**-11, 2.0**-25),
    "bfloat16": (np.dtype(ml_dtypes.bfloat16), 2.0**-8, 2.0**-134),
}
U = 2.0**-24


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    return rng.standard_normal(shape, np.float32).astype(DTYPES[dtype][0])


def same_bits(x: Array, y: Array) -> bool:
    return x.shape == y.shape and x.dtype == y.dtype and x.tobytes() == y.tobytes()


def visible(rows: int, cols: int, causal: bool, shift: int = 0) -> Array:
    if not causal:
        return np.ones((rows, cols), bool)
    return np.arange(cols) <= np.arange(rows)[:, None] + cols - rows + shift


def reference(
    q: Array, k: Array, v: Array, causal: bool, scale: float, dtype: str, shift: int = 0
) -> tuple[Array, Array, Array, Array]:
    """Float64 output, lse, and the bounds of their errors; arrays are [batch, heads, seq, head_dim], independent
    draws of zero mean.

    The exponent of p_ij: the sum over head_dim (6 sqrt(d) u sum |q k|, times the scale), scale and its rounding, and
    the difference from the maximum; exp2 adds 2 u. The maximum itself and the rescalings' exponents cancel between
    numerator and denominator. Sums over n keys and one rescaling per tile: (n + 2 tiles) u each; p is rounded to the
    dtype before it meets v.
    """
    _, u, tiny = DTYPES[dtype]
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    d, n = q.shape[-1], k.shape[2]
    mask = visible(q.shape[2], n, causal, shift)
    s = np.where(mask, q @ k.swapaxes(2, 3) * scale, -np.inf)
    peak = s.max(axis=-1, keepdims=True, initial=-np.inf)
    from_peak = np.where(mask, s - np.where(np.isfinite(peak), peak, 0), -np.inf)
    e = np.exp(from_peak)
    total = e.sum(axis=-1, keepdims=True)
    seen = total > 0
    p = e / np.where(seen, total, 1)
    o = p @ v
    with np.errstate(divide="ignore"):
        lse = np.where(seen, np.where(seen, peak, 0) + np.log(total), -np.inf)[..., 0]
    size = np.abs(q) @ np.abs(k).swapaxes(2, 3) * abs(scale)
    finite_s, finite_d = np.where(mask, np.abs(s), 0), np.where(mask, np.abs(from_peak), 0)
    r = (min(d, 6 * d**0.5) * size + 3 * finite_s + finite_d + 2) * U
    sums = (2 * n + 4 * -(-n // KV_TILE) + 6) * U
    half = 0.0 if dtype == "float32" else u
    each = r + (p * r).sum(axis=-1, keepdims=True) + sums + half
    o_slack = (p * each * (1 + each)) @ np.abs(v) + n * tiny * np.abs(v).max(initial=0)
    o_bound = o_slack + u * (np.abs(o) + o_slack) + tiny
    with np.errstate(invalid="ignore"):
        lse_bound = (
            (p * r).sum(axis=-1)
            + sums
            + 6 * U * (1 + np.where(seen[..., 0], np.abs(lse), 0) + np.abs(np.where(seen, peak, 0))[..., 0])
        )
    return o, lse, o_bound, lse_bound


def worst(got: Array, exact: Array, bound: Array) -> float:
    """Largest error in units of its bound; equal infinities count as no error, NaN as an infinite one."""
    assert got.shape == exact.shape
    with np.errstate(invalid="ignore"):
        error = np.where(got == exact, 0, np.abs(got.astype(np.float64) - exact))
    return float(np.nan_to_num(error / bound, nan=np.inf).max(initial=0.0))


LENGTHS = st.sampled_from([1, 2, 16, 31, 33, 48, 64, 65, 127, 128, 129, 229])


@settings(max_examples=10)
@given(
    seq_q=LENGTHS,
    seq_kv=LENGTHS,
    heads=st.sampled_from([(1, 1), (4, 2), (6, 2), (3, 3)]),
    batch=st.sampled_from([1, 2]),
    causal=st.booleans(),
    scale=st.sampled_from([None, 0.0, -0.3, 1.0]),
    bshd=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
@example(seq_q=130, seq_kv=257, heads=(2, 1), batch=1, causal=True, scale=None, bshd=True, seed=0)
@example(seq_q=130, seq_kv=70, heads=(2, 1), batch=1, causal=True, scale=None, bshd=False, seed=0)
def test_attention_error(
    target: str,
    dtype: str,
    seq_q: int,
    seq_kv: int,
    heads: tuple[int, int],
    batch: int,
    causal: bool,
    scale: float | None,
    bshd: bool,
    seed: int,
) -> None:
    rng = np.random.default_rng(seed)
    h, h_kv = heads
    q = normal(rng, (batch, h, seq_q, 32), dtype)
    k, v = (normal(rng, (batch, h_kv, seq_kv, 32), dtype) for _ in "kv")
    exact, exact_lse, o_bound, lse_bound = reference(q, k, v, causal, 32**-0.5 if scale is None else scale, dtype)
    given = [np.ascontiguousarray(x.swapaxes(1, 2)) if bshd else x for x in (q, k, v)]
    o, lse = kernels.flash_attention(
        *given, causal=causal, scale=scale, return_lse=True, layout="bshd" if bshd else "bhsd", target=target
    )
    assert o.shape == given[0].shape and o.dtype == q.dtype
    assert lse.shape == (batch, h, seq_q) and lse.dtype == np.float32
    assert worst(o.swapaxes(1, 2) if bshd else o, exact, o_bound) <= 1
    assert worst(lse, exact_lse, lse_bound) <= 1
    if causal and seq_q > seq_kv:  # queries that see nothing
        hidden = (o if bshd else o.swapaxes(1, 2))[:, : seq_q - seq_kv]
        assert not hidden.any() and np.isneginf(lse[..., : seq_q - seq_kv]).all()


@pytest.mark.parametrize("head_dim", [1, 16, 33, 128])
def test_attention_head_dims(target: str, head_dim: int) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (normal(rng, (1, 2, 70, head_dim), "float32") for _ in "qkv")
    exact, _, bound, _ = reference(q, k, v, True, head_dim**-0.5, "float32")
    assert worst(kernels.flash_attention(q, k, v, causal=True, layout="bhsd", target=target), exact, bound) <= 1


def test_attention_bound_has_teeth(dtype: str) -> None:
    """The bound refuses one masked key that is included, one key that is left out, and TF32 operands."""
    rng = np.random.default_rng(2)
    q, k, v = (normal(rng, (1, 2, 100, 64), dtype) for _ in "qkv")
    exact, lse, bound, lse_bound = reference(q, k, v, True, 0.125, dtype)
    more, more_lse, _, _ = reference(q, k, v, True, 0.125, dtype, shift=1)
    less, less_lse, _, _ = reference(q, k, v, True, 0.125, dtype, shift=-1)
    for other, other_lse in ((more, more_lse), (less, less_lse)):
        off = np.abs(other - exact)[:, :, 1:-1] > bound[:, :, 1:-1]
        assert off.any(axis=-1).mean() > 0.9, "rows that see one key more or less"
        assert (np.abs(other_lse - lse) > lse_bound)[:, :, 1:-1].mean() > 0.9
    if dtype == "float32":
        bits = [x.view(np.uint32) for x in (q, k, v)]
        q10, k10, v10 = (((b + 0x1000) & np.uint32(0xFFFFE000)).view(np.float32) for b in bits)
        assert worst(reference(q10, k10, v10, True, 0.125, dtype)[0], exact, bound) > 1


def test_attention_of_nothing(target: str) -> None:
    q, none = np.ones((2, 3, 4, 16), np.float32), np.ones((2, 0, 4, 16), np.float32)
    o, lse = kernels.flash_attention(q, none, none, return_lse=True, target=target)
    assert not o.any() and np.isneginf(lse).all()
    assert kernels.flash_attention(none, q, q, target=target).shape == none.shape
    assert kernels.flash_attention(q[:0], q[:0], q[:0], target=target).shape == (0, 3, 4, 16)
    no_heads = q[:, :, :0]
    assert kernels.flash_attention(no_heads, no_heads, no_heads, target=target).shape == (2, 3, 0, 16)


def test_attention_does_not_depend_on_the_batch(dtype: str) -> None:
    """Bit for bit: one sequence of the batch, one head, the last queries only."""
    rng = np.random.default_rng(3)
    q = normal(rng, (3, 150, 4, 64), dtype)
    k, v = (normal(rng, (3, 200, 2, 64), dtype) for _ in "kv")
    o, lse = kernels.flash_attention(q, k, v, causal=True, return_lse=True, target="numba")
    one, one_lse = kernels.flash_attention(q[1:2], k[1:2], v[1:2], causal=True, return_lse=True, target="numba")
    assert same_bits(one, o[1:2]) and same_bits(one_lse, lse[1:2])
    head = kernels.flash_attention(q[:, :, 3:], k[:, :, 1:], v[:, :, 1:], causal=True, target="numba")
    assert same_bits(head, np.ascontiguousarray(o[:, :, 3:]))
    for last in (1, 7, 100):
        tail = kernels.flash_attention(q[:, -last:], k, v, causal=True, target="numba")
        assert same_bits(tail, np.ascontiguousarray(o[:, -last:]))


def test_layouts_and_views_give_the_same_bits(target: str) -> None:
    rng = np.random.default_rng(4)
    packed = normal(rng, (2, 70, 6, 3, 32), "float32")  # q, k, v interleaved per head, read in place
    q, k, v = (packed[..., i, :] for i in range(3))
    o = kernels.flash_attention(q, k, v, target=target)
    plain = [np.ascontiguousarray(x) for x in (q, k, v)]
    assert same_bits(kernels.flash_attention(*plain, target=target), o)
    heads_first = [x.swapaxes(1, 2).copy() for x in plain]
    assert same_bits(kernels.flash_attention(*heads_first, layout="bhsd", target=target).swapaxes(1, 2).copy(), o)
    out = np.zeros((2, 70, 6, 40), np.float32)
    assert kernels.flash_attention(q, k, v, out=out[..., :32], target=target) is not None
    assert np.array_equal(out[..., :32], o) and not out[..., 32:].any()


# -- packed sequences ---------------------------------------------------------------------------------------------


def ends(lengths: list[int]) -> Array:
    return np.cumsum([0, *lengths]).astype(np.int32)


@pytest.mark.parametrize("causal", [False, True])
def test_varlen_is_attention_of_each_sequence(target: str, dtype: str, causal: bool) -> None:
    """Also where a sequence has other numbers of queries and keys, or none."""
    rng = np.random.default_rng(5)
    q_lens, kv_lens = [5, 70, 0, 1, 33], [5, 100, 3, 64, 20]
    q = normal(rng, (sum(q_lens), 4, 32), dtype)
    k, v = (normal(rng, (sum(kv_lens), 2, 32), dtype) for _ in "kv")
    q_ends, kv_ends = ends(q_lens), ends(kv_lens).astype(np.int64)
    o, lse = kernels.flash_attention_varlen(q, k, v, q_ends, kv_ends, causal=causal, return_lse=True, target=target)
    assert o.shape == q.shape and lse.shape == (4, sum(q_lens))
    for s in range(len(q_lens)):
        rows, keys = slice(*q_ends[s : s + 2]), slice(*kv_ends[s : s + 2])
        alone = (q[None, rows], k[None, keys], v[None, keys])
        one, one_lse = kernels.flash_attention(*alone, causal=causal, return_lse=True, target=target)
        if target == "numpy":  # BLAS: within a bound only
            h_first = [x.swapaxes(1, 2) for x in alone]
            exact, exact_lse, bound, lse_bound = reference(*h_first, causal, 32**-0.5, dtype)
            assert worst(o[rows].swapaxes(0, 1)[None], exact, bound) <= 1
            assert worst(lse[None, :, rows], exact_lse, lse_bound) <= 1
        else:
            assert same_bits(o[rows], one[0]) and same_bits(np.ascontiguousarray(lse[:, rows]), one_lse[0])


@pytest.mark.parametrize("causal", [False, True])
def test_targets_agree_bit_for_bit(dtype: str, causal: bool) -> None:
    """Compiled targets and the reference in exact mode, each with its own tile of queries."""
    rng = np.random.default_rng(6)
    q = normal(rng, (1, 40, 2, 32), dtype)
    k, v = (normal(rng, (1, 150, 1, 32), dtype) for _ in "kv")
    assert_targets_agree(kernels.flash_attention, q, k, v, causal=causal, return_lse=True)
    bounds = ends([3, 37]), ends([100, 50])
    assert_targets_agree(kernels.flash_attention_varlen, q[0], k[0], v[0], *bounds, causal=causal, return_lse=True)


def test_checked_mode_finds_nothing() -> None:
    """No races, nothing uninitialised, no overflow in indices."""
    rng = np.random.default_rng(8)
    q, k, v = (normal(rng, (2, n, 2, 16), "bfloat16") for n in (33, 70, 70))
    o = kernels.flash_attention(q, k, v, causal=True, target="numpy:checked")
    assert same_bits(o, kernels.flash_attention(q, k, v, causal=True, target="numpy:exact"))
    kernels.flash_attention_varlen(q[0], k[0], v[0], ends([3, 0, 30]), ends([60, 5, 5]), target="numpy:checked")


def test_torch_in_torch_out(target: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(7)
    q, k, v = (torch.from_numpy(normal(rng, (2, 50, h, 32), "float32")).bfloat16() for h in (4, 2, 2))
    o, lse = kernels.flash_attention(q, k, v, causal=True, return_lse=True, target=target)
    assert isinstance(o, torch.Tensor) and o.dtype is torch.bfloat16 and isinstance(lse, torch.Tensor)
    arrays = [x.float().numpy().swapaxes(1, 2) for x in (q, k, v)]
    exact, exact_lse, bound, lse_bound = reference(*arrays, True, 32**-0.5, "bfloat16")
    assert worst(o.float().numpy().swapaxes(1, 2), exact, bound) <= 1
    assert worst(lse.numpy(), exact_lse, lse_bound) <= 1
    bounds = torch.tensor([0, 20, 50], dtype=torch.int32)
    packed = kernels.flash_attention_varlen(q[0], k[0], v[0], bounds, causal=True, target=target)
    assert isinstance(packed, torch.Tensor) and packed.shape == q[0].shape


X = np.ones((1, 4, 2, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.flash_attention(X, X, X[..., :4]), TileTypeError, "shapes do not fit"),
        (lambda: kernels.flash_attention(X[:, :, :1], X, X), TileTypeError, "1 query heads, 2 key heads"),
        (lambda: kernels.flash_attention(X[0], X, X), TileTypeError, "q has shape \\(4, 2, 8\\), expected 4"),
        (lambda: kernels.flash_attention(X, X.repeat(2, 0), X.repeat(2, 0)), TileTypeError, "differ in batch"),
        (lambda: kernels.flash_attention(X, X, X, layout="sbhd"), TileValueError, "expected 'bshd' or 'bhsd'"),
        (lambda: kernels.flash_attention(X, X, X, scale=float("nan")), TileValueError, "scale is nan"),
        (lambda: kernels.flash_attention(X, X, X.astype(np.float16)), TileTypeError, "q and v differ in dtype"),
        (lambda: kernels.flash_attention(X, X.copy(), X.copy(), out=X), TileValueError, "out shares memory with q"),
        (lambda: kernels.flash_attention_varlen(X[0], X[0], X[0], ends([3])), TileValueError, "ascend from 0 to 4"),
        (lambda: kernels.flash_attention_varlen(X[0], X[0], X[0], ends([4, 0]), ends([4])), TileTypeError, "number of"),
    ],
)
def test_arguments_are_checked(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
