"""Weights packed ahead give the same bits as the matrix they came from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import DTYPES, normal, product_bound, same_bits, tensor, worst

from tiledsl import kernels
from tiledsl.errors import TileTypeError
from tiledsl.kernels.tiles import GEMM_K, PANEL
from tiledsl.testing import assert_targets_agree


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(max_examples=8)
@given(m=st.sampled_from([1, 3, 4, 17, 70]), k=st.sampled_from([1, 31, 128, 130, 257]),
       n=st.sampled_from([1, 31, 64, 65, 130]), turned=st.booleans(), seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_matmul_of_packed(target: str, dtype: str, m: int, k: int, n: int, turned: bool, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = normal(rng, (m, k), dtype), normal(rng, (k, n), dtype)
    packed = kernels.prepack(b.T.copy(), transpose_b=True) if turned else kernels.prepack(b, target=target)
    c = kernels.matmul(a, packed, target=target)
    assert worst(c, *product_bound(a, b, dtype)) <= 1
    if target == "llvm":  # on "numpy" BLAS sums, in an order that depends on the shape
        assert same_bits(c, kernels.matmul(a, b, target=target))


def test_format_is_what_the_docstring_says(dtype: str) -> None:
    rng = np.random.default_rng(0)
    b = normal(rng, (GEMM_K + 5, PANEL + 3), dtype)
    packed = kernels.prepack(b)
    assert packed.shape == b.shape and packed.data.shape == (2, 2 * GEMM_K, PANEL) and str(packed.dtype) == dtype
    for k, n in ((0, 0), (7, PANEL - 1), (GEMM_K + 4, PANEL + 2), (3, PANEL)):
        assert packed.data[n // PANEL, k, n % PANEL] == b[k, n]
    assert not packed.data[:, GEMM_K + 5 :].any() and not packed.data[1, :, 3:].any()
    assert same_bits(np.ascontiguousarray(packed.unpack()), b)
    assert same_bits(kernels.prepack(b.T.copy().T).data, packed.data)


def test_grouped_gemm_of_packed(dtype: str) -> None:
    rng = np.random.default_rng(1)
    a, b = normal(rng, (60, 130), dtype), normal(rng, (4, 130, 70), dtype)
    sizes = np.array([3, 0, 40, 17])
    packed = kernels.prepack(b.swapaxes(1, 2).copy(), transpose_b=True)
    assert packed.shape == (4, 130, 70) and same_bits(np.ascontiguousarray(packed.unpack()), b)
    got = kernels.grouped_gemm(a, packed, sizes, target="llvm")
    assert same_bits(got, kernels.grouped_gemm(a, b, sizes, target="llvm"))


def test_targets_agree_bit_for_bit(dtype: str) -> None:
    rng = np.random.default_rng(2)
    a, b = normal(rng, (5, 130), dtype), normal(rng, (130, 70), dtype)

    def product(a: Any, b: Any, target: str) -> Any:
        packed = kernels.prepack(b, target=target)
        return packed.data, kernels.matmul(a, packed, target=target)

    assert_targets_agree(product, a, b)
    kernels.matmul(a, kernels.prepack(b), target="numpy:checked")


def test_torch(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(3)
    a, b = normal(rng, (5, 130), dtype), normal(rng, (70, 130), dtype)
    packed = kernels.prepack(tensor(torch, b).T)
    got = kernels.matmul(tensor(torch, a), packed, target="llvm")
    assert isinstance(packed.data, torch.Tensor) and isinstance(got, torch.Tensor)
    expected = kernels.matmul(a, b.T, target="llvm")
    assert np.array_equal(got.float().numpy(), expected.astype(np.float32))


def test_arguments_are_checked() -> None:
    ones = np.ones((4, 4), np.float32)
    with pytest.raises(TileTypeError, match="b is int32"):
        kernels.prepack(ones.astype(np.int32))
    with pytest.raises(TileTypeError, match="expected \\[k, n\\] or"):
        kernels.prepack(ones[0])
    packed = kernels.prepack(ones)
    assert repr(packed) == "PackedTensor(float32 (4, 4), data (1, 128, 64))"
    for a, b, words in (
        (ones[:, :3], packed, "inner sizes differ: a is float32 \\(4, 3\\), b is float32 \\(4, 4\\)"),
        (ones.astype(np.float16), packed, "a and b differ in dtype"),
        (ones, kernels.prepack(ones[None]), "b has shape \\(1, 4, 4\\), expected 2 dimensions"),
    ):
        with pytest.raises(TileTypeError, match=words):
            kernels.matmul(a, b)
    with pytest.raises(TileTypeError, match="expected 3 dimensions"):
        kernels.grouped_gemm(ones, packed, np.array([4]))
