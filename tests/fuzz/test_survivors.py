"""Mistakes that tests/mutation planted and no test noticed; now these do."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.testing import assert_targets_agree


def test_the_larger_of_a_number_and_zero_divides_nothing() -> None:
    assert (T.max(3, 0), T.max(-3, 0), T.min(3, 0), T.min(-3, 0)) == (3, 0, 0, -3)


def test_branches_on_staged_constants() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "int32")):
        with T.Kernel(1):
            if T.cast(1, "int32") < 2:
                A[0] = 1
            else:
                A[1] = 1
            for i in T.Parallel(20):
                if T.cast(3, "int32") < 2:
                    A[i] = 7
                else:
                    A[i] += 2

    A = np.zeros(20, np.int32)
    assert_targets_agree(tiledsl.compile(kernel), A)
    tiledsl.compile(kernel)(A, target="numpy")
    assert A.tolist() == [3, *[2] * 19]


def test_the_right_side_of_or_guards_its_load() -> None:
    """A load on the right of `or` happens where the left side does not hold."""

    @T.prim_func
    def kernel(I: T.Tensor((20,), "int32"), A: T.Tensor((8,), "float32"), B: T.Tensor((20,), "bool")):
        with T.Kernel(1):
            s = T.alloc_shared((8,), "float32")
            T.copy(A, s)
            for i in T.Parallel(20):
                x = I[i]
                B[i] = x < 0 or x > 7 or s[T.max(T.min(x, 7), 0)] > 0 or A[x - 4] > 1

    rng = np.random.default_rng(0)
    I = rng.integers(-20, 20, 20).astype(np.int32)
    assert_targets_agree(tiledsl.compile(kernel), I, rng.standard_normal(8).astype(np.float32), np.zeros(20, bool))


def test_a_sum_wraps_before_it_is_used() -> None:
    """Scalars are held in 64 bits; what leaves the author's type wraps before the next operation sees it."""

    @T.prim_func
    def kernel(X: T.Tensor((9,), "int32"), Y: T.Tensor((9,), "int32"), B: T.Tensor((4, 9), "int32")):
        with T.Kernel(1):
            for i in T.serial(9):
                B[0, i] = (X[i] + Y[i]) // 3
                B[1, i] = T.cast(X[i] * Y[i] > 0, "int32")
                B[2, i] = T.cast(T.float32(X[i] - Y[i]) * 1e-3, "int32")
                B[3, i] = (X[i] + Y[i]) >> 4

    X = np.array([2**31 - 1, -(2**31), 65536, 5, 2**30, -7, 1 << 20, -(2**31), 0], np.int32)
    Y = np.array([5, -1, 65536, -9, 2**30, 3, 1 << 12, 2**31 - 1, 1], np.int32)
    assert_targets_agree(tiledsl.compile(kernel), X, Y, np.zeros((4, 9), np.int32))
