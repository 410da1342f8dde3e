"""Indices that leave the buffer or their type: constant shifts, starts at the ends of the integer types, wrapping."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.testing import assert_targets_agree

# mypy: disable-error-code="no-untyped-def,valid-type,misc"

N = 64
A = np.arange(1, N + 1, dtype=np.float32)
PERMUTED = np.random.default_rng(0).permutation(N).astype(np.int32)
LOOPS: dict[str, Any] = {"lanes": T.Parallel, "scalars": T.serial}


@pytest.mark.parametrize("shift", [-N, -17, -2, -1, 1, 3])
@pytest.mark.parametrize("loop", LOOPS)
def test_constant_shifts(loop: str, shift: int) -> None:
    """The whole address is a constant next to the lane: contiguous, strided and gathered."""

    @T.prim_func
    def kernel(
        X: T.Tensor((N,), "float32"),
        P: T.Tensor((N,), "int32"),
        C: T.Tensor((N,), "float32"),
        D: T.Tensor((N,), "float32"),
        E: T.Tensor((N, 2), "float32"),
    ):
        with T.Kernel(1):
            for i in LOOPS[loop](N):
                C[i] = X[i + shift]
            for i in LOOPS[loop](N):
                D[i + shift] = X[i]
            for i in LOOPS[loop](N):
                E[2 * i + shift, 0] = X[2 * i + shift]
            for i in LOOPS[loop](N):
                E[P[i] + shift, 1] = X[P[i] + shift]

    arrays = [np.zeros(N, np.float32), np.zeros(N, np.float32), np.zeros((N, 2), np.float32)]
    assert_targets_agree(tiledsl.compile(kernel), A, PERMUTED, *arrays)
    tiledsl.compile(kernel)(A, PERMUTED, *arrays, target="numpy:exact")
    at = np.arange(N) + shift
    inside = (at >= 0) & (at < N)
    expected = np.zeros(N, np.float32)
    expected[inside] = A[at[inside]]
    np.testing.assert_array_equal(arrays[0], expected)


INDICES: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda r, i: r + i,
    "subtract": lambda r, i: r - i,
    "from the lane": lambda r, i: i - r,
    "product": lambda r, i: r * i,
    "cast": lambda r, i: T.cast(T.cast(i, "uint32") - T.cast(r, "uint32"), "int64"),
}
STARTS = {
    "int32": (0, 2, -1, 2**31 - 1, 2**31 - 40, -(2**31), 20 - 2**31),
    "uint32": (0, 2, 2**32 - 1, 2**32 - 30, 2**31),
    "int64": (2, -1, 2**63 - 1, 2**63 - 40, -(2**63), 2**32 + 1),
}


@pytest.mark.parametrize("dtype", STARTS)
@pytest.mark.parametrize("form", INDICES)
def test_starts_at_the_ends_of_a_type(form: str, dtype: str) -> None:
    """No condition may be dropped because it holds at the first lane when a later lane wraps, and the interpreter
    may not take lanes that wrap for a slice."""
    index = INDICES[form]

    @T.prim_func
    def kernel(
        X: T.Tensor((N,), "float32"),
        r: getattr(T, dtype),
        limit: T.int32,
        C: T.Tensor((N,), "float32"),
        D: T.Tensor((N,), "float32"),
    ):
        with T.Kernel(1):
            for i in T.Parallel(N):
                C[i] = X[index(r, i)]
            for i in T.Parallel(N):
                if index(r, i) < limit:
                    D[i] += 100

    compiled = tiledsl.compile(kernel)
    for start in STARTS[dtype]:
        assert_targets_agree(compiled, A, start, 60, np.zeros(N, np.float32), np.zeros(N, np.float32))


def test_copies_at_the_ends_of_a_type() -> None:
    @T.prim_func
    def kernel(X: T.Tensor((7, 9), "float32"), r: T.int32, c: T.int32, C: T.Tensor((7, 9), "float32")):
        with T.Kernel(1):
            tile = T.alloc_shared((4, 4), "float32")
            T.copy(X[r, c], tile)
            T.copy(tile, C[r, c])

    compiled = tiledsl.compile(kernel)
    x = np.arange(1, 64, dtype=np.float32).reshape(7, 9)
    for r, c in [(2**31 - 3, 0), (0, 2**31 - 3), (-(2**31), 0), (2**31 - 1, 2**31 - 1), (5, 7), (-2, -3)]:
        out = np.zeros((7, 9), np.float32)
        assert_targets_agree(compiled, x, r, c, out)
        compiled(x, r, c, out, target="numpy:exact")
        rows, columns = (max(0, r), r + 4), (max(0, c), c + 4)
        kept = np.zeros((7, 9), np.float32)
        kept[slice(*rows), slice(*columns)] = x[slice(*rows), slice(*columns)]
        np.testing.assert_array_equal(out, kept)


@pytest.mark.parametrize("narrow", ["int8", "uint8", "int16"])
def test_conditions_on_lanes_cast_to_a_narrow_type(narrow: str) -> None:
    """A cast that wraps within the nest is not worst at its ends."""
    limits = (-100, -5, 0, 44, 150)
    n = 300

    @T.prim_func
    def kernel(C: T.Tensor((2 * len(limits), n), "int32")):
        with T.Kernel(1):
            for i in T.Parallel(n):
                for k, limit in enumerate(limits):
                    if T.cast(i, narrow) < limit:
                        C[2 * k, i] = 1
                    if T.cast(i, narrow) * 3 >= limit:
                        C[2 * k + 1, i] = 1

    compiled = tiledsl.compile(kernel)
    got = np.zeros((2 * len(limits), n), np.int32)
    assert_targets_agree(compiled, got)
    compiled(got, target="numpy:exact")
    lane = np.arange(n).astype(narrow).astype(np.int32)
    for k, limit in enumerate(limits):
        np.testing.assert_array_equal(got[2 * k], lane < limit)
        np.testing.assert_array_equal(got[2 * k + 1], lane * 3 >= limit)


@pytest.mark.parametrize("start", [0, N - 20, -10, 2**31 - 100, 2**31 - 20, -(2**31)])
def test_int32_indices_of_long_tensors(start: int) -> None:
    """Where 32 bits do not wrap, which one test in front of the nest tells, lanes lie side by side; where they do, the
    index is negative, and nothing is there."""
    n = T.dynamic("n", "int64")

    @T.prim_func
    def kernel(X: T.Tensor((n,), "float32"), C: T.Tensor((n,), "float32"), first: T.int32):
        with T.Kernel(T.ceildiv(n, 32)) as bx:
            for i in T.Parallel(32):
                C[first + bx * 32 + i] = X[first + bx * 32 + i] + X[i - first]

    made = tiledsl.compile(kernel)
    assert_targets_agree(made, A, np.zeros_like(A), start)
    (line,) = made.explain(A, np.zeros_like(A), 0, target="llvm").lines
    assert line.chosen[0] == "index conditions only in tiles at a boundary" and not line.reasons
