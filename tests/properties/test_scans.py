"""T.cumsum and T.cummax: dtype x axis x direction x odd tile, in place and into slices, against NumPy step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from properties import support
from properties.support import Array

from tiledsl.conversions import convert
from tiledsl.dtypes import as_dtype
from tiledsl.interp import checked, run

TILES = [(1, 1), (7, 17), (33, 40), (16, 1), (5, 16)]
PAIRS = [(d, d) for d in ("float32", "float64", "float16", "bfloat16", "int8", "int32", "uint64")]
PAIRS += [("float16", "float32"), ("int8", "int32"), ("float32", "bfloat16"), ("int32", "float32")]


def scanned(op: str, x: Array, out: str, axis: int, reverse: bool) -> Array:
    """One step at a time in out's dtype, at least float32."""
    acc = as_dtype("float32") if out in ("float16", "bfloat16") else as_dtype(out)
    x = np.moveaxis(convert(x, as_dtype(x.dtype.name), acc), axis, 0)
    x = x[::-1] if reverse else x
    steps = [x[0]]
    for row in x[1:]:
        steps.append(steps[-1] + row if op == "sum" else np.fmax(steps[-1], row))
    found = np.stack(steps)[::-1] if reverse else np.stack(steps)
    if op == "max" and found.dtype.kind == "f":
        found = np.where(np.isnan(found), -np.inf, found).astype(found.dtype)
    return convert(np.moveaxis(found, 0, axis), acc, as_dtype(out))


def values(dtype: str, shape: tuple[int, ...]) -> Array:
    rng, d = np.random.default_rng(shape[0]), as_dtype(dtype)
    if d.is_int:
        return rng.integers(0, 1 << d.bits, shape, np.dtype(f"uint{d.bits}")).view(d.numpy)
    x: Array = (rng.standard_normal(shape) * 4).astype(d.numpy)
    x[rng.random(shape) < 0.05] = -0.0
    return x


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize(("dtype", "out"), PAIRS)
def test_scans(dtype: str, out: str, tile: tuple[int, int]) -> None:
    plan = [(op, dim, reverse) for op in ("sum", "max") for dim in (0, 1) for reverse in (False, True)]
    if tile != (7, 17):
        plan = plan[::3]
    body = "\n        ".join(
        f"T.cum{op}(x, y, dim={dim - 2 * (dim == 1)}, reverse={reverse})\n        T.copy(y, O[{k}, :, :])"
        for k, (op, dim, reverse) in enumerate(plan)
    )
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor({tile}, "{dtype}"), O: T.Tensor(({len(plan)}, *{tile}), "{out}")):
    with T.Kernel(1):
        x = T.alloc_shared({tile}, "{dtype}")
        y = T.alloc_fragment({tile}, "{out}")
        T.copy(X, x)
        {body}
""")
    x = values(dtype, tile)
    got = support.agree(k, x, np.zeros((len(plan), *tile), as_dtype(out).numpy))[1]
    with np.errstate(all="ignore"):
        for found, case in zip(got, plan, strict=True):
            op, dim, reverse = case
            support.assert_same(found, scanned(op, x, out, dim, reverse), f"{case}")


@pytest.mark.parametrize("n", [1, 7, 33])
def test_slices_in_place_and_nan(n: int) -> None:
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((4, {n}), "float32"), O: T.Tensor((4, {n}), "float32"), row: T.int32):
    with T.Kernel(1):
        s = T.alloc_shared((4, {n}), "float32")
        T.copy(X, s)
        T.cumsum(s[row, :], dim=1)
        T.cummax(s[1:3, 0:{n}], dim=0, reverse=True)
        T.copy(s, O)
""")
    x = np.random.default_rng(n).standard_normal((4, n)).astype(np.float32)
    x[2, n // 2] = np.nan
    wanted = x.copy()
    wanted[3:] = scanned("sum", x[3:], "float32", 1, False)
    wanted[1:3] = scanned("max", x[1:3], "float32", 0, True)
    support.assert_same(support.agree(k, x, np.zeros_like(x), 3)[1], wanted, "slices")
    out: Any = np.zeros_like(x)
    run(k.function, [x, out, 3], checked())
    support.assert_same(out, wanted, "checked")
