"""Windows and sinks of attention, and its gradient, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_support import (
    DTYPES,
    attention_gradients,
    attention_reference,
    normal,
    same_bits,
    tensor,
    window_mask,
    worst,
)

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.testing import assert_targets_agree

Window = tuple[int | None, int | None] | None


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


LENGTHS = st.sampled_from([1, 2, 17, 33, 64, 65, 129, 200])
WINDOWS = st.sampled_from([None, (0, 0), (5, 3), (64, 0), (None, 7), (70, None), (None, None), (500, 500)])
SINKS = st.sampled_from([None, 0.0, -3.0, 6.0, float("-inf")])


@settings(max_examples=6)
@given(
    seq_q=LENGTHS, seq_kv=LENGTHS, heads=st.sampled_from([(1, 1), (4, 2)]), causal=st.booleans(), window=WINDOWS,
    sink=SINKS, seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(seq_q=130, seq_kv=257, heads=(2, 1), causal=True, window=(40, 3), sink=1.0, seed=0)
@example(seq_q=130, seq_kv=70, heads=(2, 1), causal=False, window=(5, 9), sink=1.0, seed=0)
def test_window_and_sink(
    target: str, dtype: str, seq_q: int, seq_kv: int, heads: tuple[int, int], causal: bool, window: Window,
    sink: float | None, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    q = normal(rng, (2, heads[0], seq_q, 32), dtype)
    k, v = (normal(rng, (2, heads[1], seq_kv, 32), dtype) for _ in "kv")
    sinks = None if sink is None else (sink + normal(rng, (heads[0],), "float32"))
    mask = window_mask(seq_q, seq_kv, causal, window)
    o, lse = kernels.flash_attention(
        q, k, v, causal=causal, window=window, sink=sinks, return_lse=True, layout="bhsd", target=target
    )
    exact, exact_lse, o_bound, lse_bound = attention_reference(q, k, v, mask, 32**-0.5, dtype, sinks)
    assert worst(o, exact, o_bound) <= 1
    assert worst(lse, exact_lse, lse_bound) <= 1
    blind = ~mask.any(axis=1)
    assert not o[:, :, blind].any() and np.isneginf(lse[:, :, blind]).all()


def test_the_bound_refuses_a_wrong_window_and_a_missing_sink(dtype: str) -> None:
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, (1, 2, 90, 32), dtype) for _ in "qkv")
    sinks = np.zeros(2, np.float32)
    right = attention_reference(q, k, v, window_mask(90, 90, True, (20, 0)), 32**-0.5, dtype, sinks)
    for wrong in (
        attention_reference(q, k, v, window_mask(90, 90, True, (19, 0)), 32**-0.5, dtype, sinks),
        attention_reference(q, k, v, window_mask(90, 90, False, (20, 1)), 32**-0.5, dtype, sinks),
        attention_reference(q, k, v, window_mask(90, 90, True, (20, 0)), 32**-0.5, dtype),
    ):
        off = np.abs(wrong[0] - right[0])[:, :, 21:-1] > right[2][:, :, 21:-1]
        assert off.any(axis=-1).mean() > 0.9


def test_varlen_with_window_and_sink(dtype: str) -> None:
    """A packed sequence has the bits of that sequence alone."""
    rng = np.random.default_rng(1)
    lens = [5, 100, 0, 33]
    ends = np.cumsum([0, *lens]).astype(np.int32)
    q = normal(rng, (sum(lens), 4, 32), dtype)
    k, v = (normal(rng, (sum(lens), 2, 32), dtype) for _ in "kv")
    options: dict[str, Any] = {"window": (20, 4), "sink": normal(rng, (4,), "float32"), "return_lse": True}
    o, lse = kernels.flash_attention_varlen(q, k, v, ends, target="llvm", **options)
    for s in range(len(lens)):
        rows = slice(*ends[s : s + 2])
        one, one_lse = kernels.flash_attention(q[None, rows], k[None, rows], v[None, rows], target="llvm", **options)
        assert same_bits(o[rows], one[0]) and same_bits(np.ascontiguousarray(lse[:, rows]), one_lse[0])


def test_window_does_not_depend_on_other_queries(dtype: str) -> None:
    rng = np.random.default_rng(2)
    q = normal(rng, (2, 150, 2, 32), dtype)
    k, v = (normal(rng, (2, 200, 2, 32), dtype) for _ in "kv")
    options: dict[str, Any] = {"window": (70, 2), "sink": np.ones(2, np.float32), "target": "numba"}
    o = kernels.flash_attention(q, k, v, **options)
    for last in (1, 7, 100):
        tail = kernels.flash_attention(q[:1, -last:], k[:1], v[:1], **options)
        assert same_bits(tail, np.ascontiguousarray(o[:1, -last:]))


# -- the gradient -----------------------------------------------------------------------------------------------------


@settings(max_examples=4)
@given(
    seq_q=LENGTHS, seq_kv=LENGTHS, heads=st.sampled_from([(1, 1), (4, 2), (3, 3)]), causal=st.booleans(),
    window=WINDOWS, sink=st.sampled_from([None, 0.0, 2.0]), lse_gradient=st.booleans(), bshd=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(
    seq_q=130, seq_kv=257, heads=(2, 1), causal=True, window=None, sink=None, lse_gradient=False, bshd=True, seed=0
)
@example(
    seq_q=130, seq_kv=70, heads=(4, 2), causal=True, window=(9, 9), sink=1.0, lse_gradient=True, bshd=False, seed=0
)
def test_gradient_error(
    target: str, dtype: str, seq_q: int, seq_kv: int, heads: tuple[int, int], causal: bool, window: Window,
    sink: float | None, lse_gradient: bool, bshd: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    q, do = (normal(rng, (2, heads[0], seq_q, 32), dtype) for _ in "qo")
    k, v = (normal(rng, (2, heads[1], seq_kv, 32), dtype) for _ in "kv")
    dlse = normal(rng, (2, heads[0], seq_q), "float32") * np.float32(lse_gradient)
    sinks = None if sink is None else sink + normal(rng, (heads[0],), "float32")
    mask = window_mask(seq_q, seq_kv, causal, window)
    exact, bounds, o, lse = attention_gradients(q, k, v, do, dlse, mask, 32**-0.5, dtype, sinks)
    given = [np.ascontiguousarray(x.swapaxes(1, 2)) if bshd else x for x in (q, k, v, o.astype(q.dtype), do)]
    got = kernels.flash_attention_backward(
        *given[:4], lse.astype(np.float32), given[4], dlse=dlse if lse_gradient else None, causal=causal, window=window,
        sink=sinks, layout="bshd" if bshd else "bhsd", target=target,
    )  # fmt: skip
    assert len(got) == len(exact)
    for i, (x, e, bound) in enumerate(zip(got, exact, bounds, strict=True)):
        assert x.dtype == (q.dtype if i < 3 else np.float32)
        assert worst(x.swapaxes(1, 2) if bshd and i < 3 else x, e, bound) <= 1, "dq dk dv dsink".split()[i]


def test_gradient_bound_has_teeth() -> None:
    """It refuses a shifted mask, a gradient without delta, and one key head's gradient for another's."""
    rng = np.random.default_rng(3)
    q, do = (normal(rng, (1, 2, 100, 32), "float32") for _ in "qo")
    k, v = (normal(rng, (1, 2, 100, 32), "float32") for _ in "kv")
    none = np.zeros((1, 2, 100), np.float32)
    exact, bounds, _, _ = attention_gradients(
        q, k, v, do, none, window_mask(100, 100, True, None), 0.2, "float32", None
    )
    shifted = attention_gradients(q, k, v, do, none, window_mask(100, 100, False, (None, 1)), 0.2, "float32", None)[0]
    for a, e, b in zip(shifted, exact, bounds, strict=True):
        assert (np.abs(a - e) > b)[:, :, 1:-1].mean() > 0.9
    wrong = attention_gradients(q, k, v, do, none + 1, window_mask(100, 100, True, None), 0.2, "float32", None)[0]
    assert all(worst(wrong[i], exact[i], bounds[i]) > 1 for i in (0, 1))


@pytest.mark.parametrize(("dtype", "causal"), [("float32", False), *((d, True) for d in DTYPES)])
def test_gradient_is_the_same_everywhere(dtype: str, causal: bool) -> None:
    """Bit for bit: the exact interpreter, compiled code, one sequence of the batch alone."""
    rng = np.random.default_rng(4)
    q, do = (normal(rng, (2, 70, 4, 32), dtype) for _ in "qo")
    k, v = (normal(rng, (2, 90, 2, 32), dtype) for _ in "kv")
    o, lse = kernels.flash_attention(q, k, v, causal=causal, return_lse=True, target="llvm")
    whole = kernels.flash_attention_backward(q, k, v, o, lse, do, causal=causal, target="llvm")
    one = kernels.flash_attention_backward(
        *(x[1:] for x in (q, k, v, o, lse, do)), causal=causal, target="llvm"
    )  # fmt: skip
    assert all(same_bits(a, b[1:]) for a, b in zip(one, whole, strict=True))
    small = [x[:1, :33] for x in (q, k, v, o)]
    assert_targets_agree(
        kernels.flash_attention_backward, *small, np.ascontiguousarray(lse[:1, :, :33]), do[:1, :33], causal=causal
    )


def test_gradient_of_nothing(target: str) -> None:
    q, none = np.ones((2, 3, 4, 16), np.float32), np.ones((2, 0, 4, 16), np.float32)
    lse = np.full((2, 4, 3), -np.inf, np.float32)
    dq, dk, dv = kernels.flash_attention_backward(q, none, none, q * 0, lse, q, target=target)
    assert not dq.any() and dk.shape == dv.shape == none.shape
    dq, dk, dv = kernels.flash_attention_backward(none, q, q, none, lse[..., :0], none, target=target)
    assert dq.shape == none.shape and not dk.any() and not dv.any()


def test_checked_mode_and_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(5)
    q, k, v, do = (normal(rng, (1, 70, 2, 16), dtype) for _ in "qkvo")
    sink, options = np.zeros(2, np.float32), {"window": (9, 0), "causal": True}
    o, lse = kernels.flash_attention(q, k, v, sink=sink, return_lse=True, target="numpy:checked", **options)
    got = kernels.flash_attention_backward(q, k, v, o, lse, do, sink=sink, target="numpy:checked", **options)
    given = [tensor(torch, x) for x in (q, k, v, o, lse, do)]
    again = kernels.flash_attention_backward(*given, sink=tensor(torch, sink), target="llvm", **options)
    for a, b in zip(again, got, strict=True):
        assert isinstance(a, torch.Tensor) and np.array_equal(a.float().numpy(), b.astype(np.float32))


X = np.ones((1, 4, 2, 8), np.float32)
L = np.ones((1, 2, 4), np.float32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.flash_attention(X, X, X, window=(-1, 3)), TileValueError, "window is \\(-1, 3\\)"),
        (lambda: kernels.flash_attention(X, X, X, window=3), TileValueError, "window is 3"),
        (lambda: kernels.flash_attention(X, X, X, sink=L[0, 0]), TileTypeError, "one number for each of 2 heads"),
        (lambda: kernels.flash_attention(X, X, X, sink=np.ones(2)), TileTypeError, "sink is float64"),
        (lambda: kernels.flash_attention_backward(X, X, X, X, L[0], X), TileTypeError, "lse is float32 \\(2, 4\\)"),
        (lambda: kernels.flash_attention_backward(X, X, X, X[:, :2], L, X), TileTypeError, "o and do are like q"),
        (lambda: kernels.flash_attention_backward(X, X, X, X, L, X, dlse=L[..., :1]), TileTypeError, "dlse is"),
        (lambda: kernels.flash_attention_backward(X, X, X, X, L, X, layout="b"), TileValueError, "layout is 'b'"),
    ],
)
def test_arguments_are_checked(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
