"""Error bounds of dot products and sums, derived from the arithmetic; the number of terms is read off the IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.dtypes import DType

Array = np.ndarray[Any, Any]


def unit(dtype: DType) -> float:
    """u: half a unit in the last place of 1."""
    return float(ml_dtypes.finfo(dtype.numpy).eps) / 2


@dataclass(frozen=True)
class GemmCount:
    """terms: products added to one element; calls: T.gemm statements that run on it (each rounds to C's dtype once)."""

    terms: int
    calls: int


def count_gemm(function: ir.Function, symbols: Mapping[str, int]) -> GemmCount:
    """Counted over the loops of the kernel's body, with these values of the symbols (by name)."""
    env = {s: symbols[s.name] for s in function.symbols}

    def visit(body: tuple[ir.Stmt, ...], times: int) -> tuple[int, int]:
        terms = calls = 0
        for s in body:
            if isinstance(s, ir.For):
                start, stop, step = (int(evaluate(e, env)) for e in (s.start, s.stop, s.step))
                more = visit(s.body, times * len(range(start, stop, step)))
            elif isinstance(s, ir.Gemm):
                extent = s.a.extents[-2] if s.transpose_a else s.a.extents[-1]
                more = (times * int(evaluate(extent, env)), times)
            else:
                continue
            terms, calls = terms + more[0], calls + more[1]
        return terms, calls

    return GemmCount(*visit(function.kernels[0].body, 1))


def gemm_bound(a: Array, b: Array, count: GemmCount, accumulator: DType, result: DType, independent: bool) -> Array:
    """How far C may lie from the exact a @ b (float64 arrays [M, K], [K, N]).

    Arbitrary values: n u sum |a b|. Independent draws of zero mean: 6 sqrt(n) u sqrt(sum (a b)**2), because partial
    sums grow like a random walk and their roundings are independent. Where C is narrower than the accumulator,
    each T.gemm rounds the running sum once more: calls * u_C * sum |a b|.
    """
    u = unit(accumulator)
    magnitude = np.abs(a) @ np.abs(b)
    if independent:
        bound = 6 * np.sqrt(count.terms) * u * np.sqrt(a**2 @ b**2)
    else:
        bound = count.terms * u * magnitude
    if result is not accumulator:
        bound = bound + count.calls * unit(result) * magnitude
    return np.asarray(bound + float(ml_dtypes.finfo(result.numpy).smallest_subnormal))


def sum_bound(x: Array, dtype: DType, independent: bool) -> Array:
    """How far a sum over the last axis in dtype may lie from the exact one; as `gemm_bound`, with b = 1."""
    n, u = x.shape[-1], unit(dtype)
    if independent:
        return np.asarray(6 * np.sqrt(n) * u * np.sqrt((x**2).sum(-1)))
    return np.asarray(n * u * np.abs(x).sum(-1))


def assert_within(got: Array, exact: Array, bound: Array, what: str) -> None:
    """|got - exact| <= bound everywhere; NaN counts as outside."""
    error = np.abs(got.astype(np.float64) - exact)
    bad = np.argwhere(~(error <= bound))
    if len(bad):
        at = tuple(int(i) for i in bad[0])
        raise AssertionError(
            f"{what}: {len(bad)} of {got.size} outside the bound, first at {at}: {got[at]!r}, exact "
            f"{exact[at]!r}, bound {bound[at]!r}"
        )
