"""Attention over chosen blocks against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_support import DTYPES, Array, attention_reference, normal, same_bits, tensor, window_mask, worst

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.testing import assert_targets_agree


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def listed(mask: Array) -> Array:
    """The mask as ascending lists, filled with -1."""
    out = np.full((*mask.shape[:3], mask.shape[3] + 1), -1, np.int64)
    for at in np.ndindex(mask.shape[:3]):
        chosen = np.flatnonzero(mask[at])
        out[at][: len(chosen)] = chosen
    return out


@settings(max_examples=6)
@given(
    seq_q=st.sampled_from([1, 33, 64, 100]), seq_kv=st.sampled_from([1, 63, 130]),
    size=st.sampled_from([(16, 32), (33, 17)]), shared=st.sampled_from([(1, 1), (2, 1), (1, 4), (2, 4)]),
    causal=st.booleans(), density=st.sampled_from([0.0, 0.5, 1.0]),
    lists=st.booleans(), bshd=st.booleans(), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(seq_q=100, seq_kv=130, size=(16, 32), shared=(2, 1), causal=True, density=0.5, lists=True, bshd=True, seed=0)
def test_block_sparse_error(
    target: str, dtype: str, seq_q: int, seq_kv: int, size: tuple[int, int], shared: tuple[int, int], causal: bool,
    density: float, lists: bool, bshd: bool, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    q = normal(rng, (2, 4, seq_q, 32), dtype)
    k, v = (normal(rng, (2, 2, seq_kv, 32), dtype) for _ in "kv")
    blocks = rng.random((*shared, -(-seq_q // size[0]), -(-seq_kv // size[1]))) < density
    seen = blocks.repeat(size[0], axis=2).repeat(size[1], axis=3)[:, :, :seq_q, :seq_kv]
    mask = seen & window_mask(seq_q, seq_kv, causal, None)
    exact, exact_lse, bound, lse_bound = attention_reference(q, k, v, mask, 32**-0.5, dtype)
    given = [np.ascontiguousarray(x.swapaxes(1, 2)) if bshd else x for x in (q, k, v)]
    who: dict[str, Any] = {"block_indices": listed(blocks)} if lists else {"block_mask": blocks}
    o, lse = kernels.block_sparse_attention(
        *given, **who, block_size=size, causal=causal, return_lse=True, layout="bshd" if bshd else "bhsd", target=target
    )
    assert worst(o.swapaxes(1, 2) if bshd else o, exact, bound) <= 1
    assert worst(lse, exact_lse, lse_bound) <= 1


def test_lists_masks_and_dense_attention_agree(dtype: str) -> None:
    """Bit for bit: ascending lists and the mask; a full mask of key blocks of 64 and flash_attention."""
    rng = np.random.default_rng(0)
    q, k, v = (normal(rng, (1, 130, 2, 32), dtype) for _ in "qkv")
    mask = rng.random((1, 2, 3, 3)) < 0.6
    options: dict[str, Any] = {"causal": True, "target": "llvm"}
    by_mask = kernels.block_sparse_attention(q, k, v, block_mask=mask, **options)
    assert same_bits(by_mask, kernels.block_sparse_attention(q, k, v, block_indices=listed(mask), **options))
    full = kernels.block_sparse_attention(q, k, v, block_mask=np.ones_like(mask), **options)
    assert same_bits(full, kernels.flash_attention(q, k, v, **options))


def test_targets_agree_bit_for_bit(dtype: str) -> None:
    rng = np.random.default_rng(1)
    q, k, v = (normal(rng, (1, 50, 2, 16), dtype) for _ in "qkv")
    options = {"block_mask": rng.random((1, 1, 4, 4)) < 0.5, "block_size": (16, 16), "return_lse": True}
    assert_targets_agree(kernels.block_sparse_attention, q, k, v, **options)
    kernels.block_sparse_attention(q, k, v, target="numpy:checked", **options)


def test_torch_in_torch_out(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(2)
    q, k, v = (normal(rng, (1, 50, 2, 16), dtype) for _ in "qkv")
    mask = rng.random((1, 1, 1, 1)) < 2
    expected = kernels.block_sparse_attention(q, k, v, block_mask=mask, target="llvm")
    given = [tensor(torch, x) for x in (q, k, v)]
    got = kernels.block_sparse_attention(*given, block_mask=torch.from_numpy(mask), target="llvm")
    assert isinstance(got, torch.Tensor) and np.array_equal(got.float().numpy(), expected.astype(np.float32))


X = np.ones((1, 4, 2, 8), np.float32)
M = np.ones((1, 1, 1, 1), bool)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, TileTypeError, "pass either block_mask or block_indices"),
        ({"block_mask": M, "block_indices": M.astype(int)}, TileTypeError, "pass either"),
        ({"block_mask": M.astype(np.int32)}, TileTypeError, "block_mask is int32"),
        ({"block_mask": M[0]}, TileTypeError, "expected 4 dimensions"),
        ({"block_mask": M, "block_size": (2, 2)}, TileTypeError, "expected \\(1, 2, 2, 2\\)"),
        ({"block_mask": M, "block_size": (0, 2)}, TileValueError, "block_size is \\(0, 2\\)"),
        ({"block_indices": M.astype(np.int32)}, TileValueError, "block_indices holds 1, but keys have 1 blocks"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        kernels.block_sparse_attention(X, X, X, **options)
