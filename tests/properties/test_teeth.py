"""The bounds bite: results with a known fault lie outside them, wherever the fault is larger than the bound."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from properties import bounds, support
from properties.support import Array
from properties.test_gemm import Case, kernel

import tiledsl
from tiledsl.dtypes import as_dtype

CASE = Case("float32", "float32", (33, 48, 31))
F32 = as_dtype("float32")
M, N = 13, 17
BLOCK = 32


def to_tf32(x: Array) -> Array:
    """Ten bits of mantissa, to nearest even."""
    bits = x.view(np.uint32).astype(np.uint64)
    bits += 0xFFF + ((bits >> 13) & 1)
    return (bits & 0xFFFFE000).astype(np.uint32).view(np.float32)


def product(a: Array, b: Array) -> Array:
    """What the kernel computes, by the interpreter's chain."""
    out = np.zeros((len(a), b.shape[1]), np.float32)
    support.run_reference(kernel(CASE), np.ascontiguousarray(a), np.ascontiguousarray(b), out)
    return out


def operands(k: int) -> tuple[Array, Array]:
    rng = np.random.default_rng(k)
    return rng.standard_normal((M, k)).astype(np.float32), rng.standard_normal((k, N)).astype(np.float32)


def gemm_bound(a: Array, b: Array, independent: bool) -> tuple[Array, Array]:
    """(exact product, bound) of the right computation."""
    wide = a.astype(np.float64), b.astype(np.float64)
    count = bounds.count_gemm(kernel(CASE).function, {"M": M, "N": N, "K": a.shape[1]})
    return wide[0] @ wide[1], bounds.gemm_bound(*wide, count, F32, F32, independent)


def assert_bites(right: Array, wrong: Array, exact: Array, bound: Array, fault: Array, what: str) -> None:
    """The right result passes; the wrong one is refused at each element whose fault exceeds the bound."""
    bounds.assert_within(right, exact, bound, what)
    outside = np.abs(wrong.astype(np.float64) - exact) > bound
    must = np.abs(fault) > 2 * bound  # the rounding errors of both results may hide one bound's worth
    assert must.any(), f"{what}: the fault is too small to tell anything"
    assert outside[must].all(), f"{what}: {np.count_nonzero(must & ~outside)} faults of {must.sum()} pass"
    with pytest.raises(AssertionError, match="outside the bound"):
        bounds.assert_within(wrong, exact, bound, what)


@pytest.mark.parametrize("k", [1, 7, 33, 128, 512, 1024])
def test_tf32_operands_are_refused(k: int) -> None:
    a, b = operands(k)
    rounded = to_tf32(a), to_tf32(b)
    exact, bound = gemm_bound(a, b, independent=True)
    fault = rounded[0].astype(np.float64) @ rounded[1].astype(np.float64) - exact
    wrong = product(*rounded)
    assert_bites(product(a, b), wrong, exact, bound, fault, f"TF32, k={k}")
    share = np.mean(np.abs(wrong - exact) > bound)
    assert share > 0.9, f"only {share:.0%} of the elements show it"


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("k", [1, 7, 33, 128, 512, 1024])
def test_a_dropped_last_term_is_refused(k: int, independent: bool) -> None:
    a, b = operands(k)
    exact, bound = gemm_bound(a, b, independent)
    fault = a[:, -1:].astype(np.float64) @ b[-1:].astype(np.float64)
    cut = a.copy()
    cut[:, -1] = 0
    assert_bites(product(a, b), product(cut, b), exact, bound, fault, f"last of {k} dropped")


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("k", [1, 7, 33, 128, 512, 1024])
def test_a_masked_term_that_is_included_is_refused(k: int, independent: bool) -> None:
    """Column k of A is masked, as a tail or a causal mask would; the fault lets one through."""
    a, b = operands(k + 1)
    exact, bound = gemm_bound(a[:, :k], b[:k], independent)
    fault = a[:, k:].astype(np.float64) @ b[k:].astype(np.float64)
    assert_bites(product(a[:, :k], b[:k]), product(a, b), exact, bound, fault, f"one beyond {k} included")


@functools.cache
def sums() -> tiledsl.JITKernel:
    """Row sums of the first `visible` elements: the others are masked."""
    return support.kernel_from(f"""
import tiledsl.language as T

m = T.dynamic("m")

@T.prim_func
def main(X: T.Tensor((m, 229), "float32"), Y: T.Tensor((m,), "float32"), visible: T.int32):
    with T.Kernel(T.ceildiv(m, {BLOCK})) as b:
        x = T.alloc_fragment(({BLOCK}, 229), "float32")
        total = T.alloc_fragment(({BLOCK},), "float32")
        T.copy(X[b * {BLOCK}, 0], x)
        for i, j in T.Parallel({BLOCK}, 229):
            x[i, j] = x[i, j] if j < visible else 0.0
        T.reduce_sum(x, total, dim=1)
        T.copy(total, Y[b * {BLOCK}])
""")


@pytest.mark.parametrize("visible", [1, 16, 48, 127, 228])
def test_reductions_refuse_one_element_more_or_less(visible: int) -> None:
    x = np.random.default_rng(visible).standard_normal((229, 229)).astype(np.float32)

    def run(count: int) -> Array:
        y = np.zeros(len(x), np.float32)
        support.run_reference(sums(), x, y, count)
        return y

    exact = x[:, :visible].astype(np.float64).sum(1)
    for independent in (False, True):
        bound = bounds.sum_bound(x[:, :visible].astype(np.float64), F32, independent)
        for wrong, fault in ((visible - 1, x[:, visible - 1]), (visible + 1, x[:, visible])):
            assert_bites(run(visible), run(wrong), exact, bound, fault, f"{wrong} elements instead of {visible}")
