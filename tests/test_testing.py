"""assert_targets_agree finds what it is there to find."""

from __future__ import annotations

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.testing import assert_targets_agree, available_targets

M = T.dynamic("m")


@T.prim_func
def scale(X: T.Tensor((M,), "float32"), s: T.float32, Y: T.Tensor((M,), "float32")):
    with T.Kernel(T.ceildiv(M, 32), threads=32) as bx:
        for i in T.Parallel(32):
            Y[bx * 32 + i] = X[bx * 32 + i] * s


@T.prim_func
def rows(X: T.StridedTensor((M, 3), (T.dynamic("sx"), 1), "int32")):
    with T.Kernel(M, threads=32) as bx:
        for j in T.Parallel(3):
            X[bx, j] = X[bx, j] + 1


def test_real_kernels_agree():
    kernel = tiledsl.compile(scale, out_idx=2)
    x = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    x[3], x[4], x[5] = np.nan, np.inf, -0.0
    y = assert_targets_agree(kernel, x, 0.1)
    assert np.array_equal(y, x * np.float32(0.1), equal_nan=True)
    assert set(available_targets()) >= {"numba"} or available_targets() == []


def test_arguments_are_left_as_they_are():
    base = np.arange(40, dtype=np.int32).reshape(4, 10)
    before = base.copy()
    assert_targets_agree(tiledsl.compile(rows), base[:, 2:5])
    assert np.array_equal(base, before)


def test_torch_tensors():
    torch = pytest.importorskip("torch", reason="no torch")
    y = assert_targets_agree(tiledsl.compile(scale, out_idx=2), torch.ones(40), 3.0)
    assert isinstance(y, torch.Tensor) and y[0].item() == 3


def fake(change):
    """A kernel that is wrong on every target but the reference."""

    def kernel(x, out, target):
        y = np.cumsum(x, dtype=np.float32)
        out[...] = y
        if target != "numpy:exact":
            change(y, out)
        return y

    return kernel


def one_ulp(y, out):
    y[3] = np.nextafter(y[3], np.float32(9))


def negative_zero(y, out):
    y[0] = -0.0


def other_nan(y, out):
    y[1] = np.nan


def argument(y, out):
    out[2] += 1


@pytest.mark.parametrize(
    "change, message",
    [
        (one_ulp, r"else: output 0: 1 of 8 elements differ; first at \[3\]"),
        (negative_zero, r"first at \[0\]: np.float32\(-0.0\), the reference gives np.float32\(0.0\)"),
        (other_nan, "elements differ"),
        (argument, "else: argument 1: 1 of 8 elements differ"),
    ],
)
def test_the_smallest_difference_is_found(change, message):
    x = np.arange(8, dtype=np.float32)
    with pytest.raises(AssertionError, match=message):
        assert_targets_agree(fake(change), x, np.zeros(8, np.float32), targets=["else"])
    assert_targets_agree(fake(lambda y, out: None), x, np.zeros(8, np.float32), targets=["else"])


def test_bounds():
    x, out = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    assert_targets_agree(fake(one_ulp), x, out, targets=["else"], bound=1e-6)
    assert_targets_agree(fake(one_ulp), x, out, targets=["else"], bound=lambda y: 1e-6 * np.abs(y))
    with pytest.raises(AssertionError, match="differ by more than the bound"):
        assert_targets_agree(fake(one_ulp), x, out, targets=["else"], bound=1e-8)
    with pytest.raises(AssertionError, match="differ by more than the bound"):
        assert_targets_agree(fake(other_nan), x, out, targets=["else"], bound=1e9)


def test_shapes_types_and_counts_are_compared():
    def shape(x, target):
        return x if target == "numpy:exact" else x[:-1]

    def dtype(x, target):
        return x if target == "numpy:exact" else x.astype(np.float64)

    def count(x, target):
        return [x] if target == "numpy:exact" else [x, x]

    for kernel, message in ((shape, r"float32\[3\]"), (dtype, "float64"), (count, "returns 2 arrays, not 1")):
        with pytest.raises(AssertionError, match=message):
            assert_targets_agree(kernel, np.zeros(4, np.float32), targets=["else"])
