"""Conversions and promotions inside kernels: every pair of dtypes, special values and random bit patterns."""

from __future__ import annotations

import functools
import math
import re
from fractions import Fraction

import numpy as np
import pytest
from properties import support
from properties.support import DTYPES, Array

import tiledsl
from tiledsl.conversions import convert
from tiledsl.dtypes import DType, as_dtype, promote
from tiledsl.ir.operations import OPERATIONS


@functools.cache
def cast_kernel(src: str, loop: str) -> tiledsl.JITKernel:
    outs = ", ".join(f'O{k}: T.Tensor((n,), "{d}")' for k, d in enumerate(DTYPES))
    lines = "\n            ".join(f'O{k}[p] = T.cast(X[p], "{d}")' for k, d in enumerate(DTYPES))
    return support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "{src}"), {outs}):
    with T.Kernel(T.ceildiv(n, 48)) as b:
        for i in T.{loop}(48):
            p = b * 48 + i
            {lines}
""")


def converted(x: Array, src: DType, dst: DType) -> Array:
    """language.md 0.11, value by value in Python and NumPy's own rounding."""
    if src is dst:
        return x
    if dst.is_bool:
        return x.astype(np.float64) != 0 if src.is_float else x != 0
    if not src.is_float:
        values = [int(v) for v in x]
        if dst.is_int:
            return np.array([support.wrap(v, dst) for v in values], dst.numpy)
        return np.array([rounded(v, dst) for v in values], np.float64).astype(dst.numpy)
    wide = x.astype(np.float64)
    if dst.is_int:
        low, high = support.int_range(dst)
        clipped = [0 if np.isnan(v) else low if v <= low else high if v >= high else int(v) for v in wide]
        return np.array(clipped, dst.numpy)
    if dst.is_narrow:  # ml_dtypes rounds float64 to bfloat16 twice
        return np.array([rounded(float(v), dst) for v in wide], np.float64).astype(dst.numpy)
    return wide.astype(dst.numpy)


def rounded(v: float | int, dst: DType) -> float:
    if dst.name == "float8_e8m0fnu":
        return up_to_a_power_of_two(v)
    largest = float(support.float_format(dst)[2]) if dst.bits <= 8 else math.inf  # 8 bits and less saturate
    if v == 0 or v != v or abs(v) == math.inf:
        return v * 1.0 if v != v else min(max(v * 1.0, -largest), largest)
    return min(max(support.nearest(Fraction(v), dst), -largest), largest)


def up_to_a_power_of_two(v: float | int) -> float:
    if v != v or v >= 2.0**127:
        return v * 1.0 if v != v else 2.0**127
    exact = Fraction(max(v, 0))
    return next(2.0**k for k in range(-127, 128) if exact <= Fraction(2) ** k)


@pytest.mark.parametrize("src", DTYPES)
def test_casts(src: str) -> None:
    """T.cast to every dtype: the rules of conversions, and all targets, in vector and in scalar code."""
    x = support.operands(src)[0]
    for loop in ("Parallel", "serial"):
        outs = [np.zeros(len(x), as_dtype(d).numpy) for d in DTYPES]
        got = support.agree(cast_kernel(src, loop), x, *outs, what=loop)
        with np.errstate(all="ignore"):
            for d, values in zip(DTYPES, got[1:], strict=True):
                wanted = converted(x, as_dtype(src), as_dtype(d))
                support.assert_same(values, wanted, f"{src} -> {d} in T.{loop}", [x])


OPERATORS = [OPERATIONS[name] for name in ("x + y", "max", "x < y")]


def common(left: str, right: str) -> DType:
    """The dtype that both operands are converted to; bools count as int32."""
    dtype = promote(as_dtype(left), as_dtype(right))
    return as_dtype("int32") if dtype.is_bool else dtype


@functools.cache
def mixed_kernel(left: str) -> tiledsl.JITKernel:
    """x of one dtype with y of each other one, under a few operators; F are the comparisons."""
    params, lines = [], []
    for k, right in enumerate(DTYPES):
        numbers, flags = support.split(OPERATORS)
        params.append(f'Y{k}: T.Tensor((n,), "{right}")')
        params.append(f'O{k}: T.Tensor(({len(numbers)}, n), "{common(left, right)}")')
        params.append(f'F{k}: T.Tensor(({len(flags)}, n), "bool")')
        for out, rows in (("O", numbers), ("F", flags)):
            lines += [f"{out}{k}[{j}, p] = " + re.sub(r"\by\b", f"Y{k}[p]", r.spelling) for j, r in enumerate(rows)]
    body = "\n            ".join(lines)
    return support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "{left}"), {", ".join(params)}):
    with T.Kernel(T.ceildiv(n, 64)) as b:
        for i in T.Parallel(64):
            p = b * 64 + i
            x = X[p]
            {body}
""")


@pytest.mark.parametrize("left", DTYPES)
def test_promotion(left: str) -> None:
    """Both operands are converted to the promoted dtype, then the operation is that dtype's; narrow integers are
    converted to int32, and the result wraps (language.md 0.12)."""
    numbers, flags = support.split(OPERATORS)
    n = max(len(support.operands(d)[0]) for d in (left, *DTYPES))
    x = np.resize(support.operands(left)[0], n)
    args: list[Array] = [x]
    for right in DTYPES:
        y = np.resize(np.roll(support.operands(right)[1], 37), n)
        args += [y, np.zeros((len(numbers), n), common(left, right).numpy), np.zeros((len(flags), n), bool)]
    got = support.agree(mixed_kernel(left), *args)
    for k, right in enumerate(DTYPES):
        dtype, y = common(left, right), args[1 + 3 * k]
        with np.errstate(all="ignore"):
            inner = as_dtype("int32") if dtype.is_int and dtype.bits < 32 else dtype
            inputs = [convert(x, as_dtype(left), inner), convert(y, as_dtype(right), inner)]
        for rows, values in ((numbers, got[2 + 3 * k]), (flags, got[3 + 3 * k])):
            for row, v in zip(rows, values, strict=True):
                what = f"{row.spelling} of {left}, {right}"
                wanted = support.expected(row, inner, inputs)
                wanted = wanted if row.gives == "bool" else convert(wanted, inner, dtype)
                support.assert_same(v, wanted, what, [x, y])
