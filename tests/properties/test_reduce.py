"""The reductions: operation x dtype x axis x odd tile, special values, and the one order of float sums."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest
from properties import bounds, support
from properties.support import DTYPES, Array

import tiledsl
from tiledsl.conversions import convert
from tiledsl.dtypes import DType, as_dtype
from tiledsl.ir.operations import OPERATIONS, Operation

ROWS = [row for name, row in OPERATIONS.items() if name.startswith("reduce_")]
TILES = {"float32": [(1, 1), (33, 31), (7, 229), (48, 16)], "float16": [(13, 127)], "int8": [(3, 33)]}
CASES = [(d, tile) for d in DTYPES if d != "bool" for tile in TILES.get(d, [(13, 37)])]


def variants(row: Operation) -> list[str]:
    """Extra keywords worth a reduction of their own."""
    found = [""]
    if "clear" in row.params:
        found.append(", clear=False")
    if "nan_propagate" in row.params:
        found.append(", nan_propagate=True")
    return found


FULL = (("float32", "float32", (33, 31)), ("int32", "int32", (13, 37)))


def plan(dtype: str, out: str, tile: tuple[int, int]) -> list[tuple[Operation, str, int]]:
    """(operation, keywords, axis) of every reduction in the kernel, in the order of its outputs. Not in FULL: each
    operation with each keyword along one axis only, which halves the code to compile."""
    rows = [r for r in ROWS if r.accepts(as_dtype(dtype)) and r.accepts(as_dtype(out))]
    every = [(r, v, axis) for r in rows for v in variants(r) for axis in (0, 1)]
    return every if (dtype, out, tile) in FULL else [p for k, p in enumerate(every) if (k // 2 + k) % 2 == 0]


@functools.cache
def kernel(dtype: str, tile: tuple[int, int], out: str) -> tiledsl.JITKernel:
    """X (m, n) -> one output per line of `plan`, each (blocks of the other axis' extent): all tiles are reduced."""
    rows, columns = tile
    made = plan(dtype, out, tile)
    params = ", ".join(f'O{k}: T.Tensor((b, {tile[1 - axis]}), "{out}")' for k, (_, _, axis) in enumerate(made))
    lines = []
    for k, (row, keywords, axis) in enumerate(made):
        lines += [
            f'r{k} = T.alloc_fragment(({tile[1 - axis]},), "{out}")',
            f"T.copy(O{k}[i, :], r{k})",
            f"T.{row.name}(x, r{k}, dim={axis}{keywords})",
            f"T.copy(r{k}, O{k}[i, :])",
        ]
    body = "\n        ".join(lines)
    return support.kernel_from(f"""
import tiledsl.language as T

b = T.dynamic("b")

@T.prim_func
def main(X: T.Tensor((b, {rows}, {columns}), "{dtype}"), {params}):
    with T.Kernel(b) as i:
        x = T.alloc_fragment(({rows}, {columns}), "{dtype}")
        T.copy(X[i, :, :], x)
        {body}
""")


def arguments(dtype: str, tile: tuple[int, int], out: str, blocks: int) -> list[Array]:
    """Blocks of special values, of ordinary ones, and of equal magnitudes; old values in the outputs."""
    rng = np.random.default_rng(2)
    d, o = as_dtype(dtype), as_dtype(out)
    shape = (blocks, *tile)
    x = support.random_values(d, int(np.prod(shape)), rng).reshape(shape)
    if d.is_float:
        x[1:] = rng.standard_normal((blocks - 1, *tile)).astype(d.numpy)
        values = support.specials(d)
        for block in (0, 2):
            at = rng.integers(0, x[block].size, x[block].size // 5)
            x[block].flat[at] = rng.choice(values, len(at))
    outs = [
        support.random_values(o, blocks * tile[1 - axis], rng).reshape(blocks, -1)
        for _, _, axis in plan(dtype, out, tile)
    ]
    return [x, *outs]


@pytest.mark.parametrize(("dtype", "tile"), CASES, ids=lambda v: v if isinstance(v, str) else "x".join(map(str, v)))
def test_reductions(dtype: str, tile: tuple[int, int]) -> None:
    """Targets agree bit for bit; integers, maxima and minima are exact; sums are those of the one order."""
    args = arguments(dtype, tile, dtype, 5)
    got = support.agree(kernel(dtype, tile, dtype), *args)
    for k, (row, keywords, axis) in enumerate(plan(dtype, dtype, tile)):
        old = args[1 + k] if "clear=False" in keywords else None
        with np.errstate(all="ignore"):
            wanted = reduced(row, as_dtype(dtype), np.moveaxis(args[0], 1 + axis, -1), old, "nan" in keywords)
        support.assert_same(got[1 + k], wanted, f"{row.name}(dim={axis}{keywords}) of {dtype} {tile}")


@pytest.mark.parametrize(
    ("dtype", "out"),
    [
        ("float16", "float32"),
        ("float32", "float16"),
        ("int8", "int32"),
        ("int32", "float32"),
        ("float32", "float64"),
        ("float8_e4m3fn", "float32"),
        ("float8_e5m2", "bfloat16"),
    ],
)
def test_elements_are_converted_to_the_accumulator_first(dtype: str, out: str) -> None:
    """The output's dtype, at least float32; what is narrower is rounded once, at the end."""
    tile = (13, 37)
    accumulator = "float32" if as_dtype(out).is_narrow else out
    args = arguments(dtype, tile, out, 3)
    got = support.agree(kernel(dtype, tile, out), *args)
    with np.errstate(all="ignore"):
        x = convert(args[0], as_dtype(dtype), as_dtype(accumulator))
        for k, (row, keywords, axis) in enumerate(plan(dtype, out, tile)):
            old = args[1 + k] if "clear=False" in keywords else None
            wanted = reduced(row, as_dtype(out), np.moveaxis(x, 1 + axis, -1), old, "nan" in keywords)
            support.assert_same(got[1 + k], wanted, f"{row.name}(dim={axis}{keywords}) {dtype} -> {out}")


# -- the reference -------------------------------------------------------------------------------------------------


def reduced(row: Operation, dtype: DType, x: Array, old: Array | None, nan_propagate: bool) -> Array:
    """The reduction over the last axis, as language.md 0.10 says, element by element in Python."""
    out = np.empty(x.shape[:-1], dtype.numpy)
    for at in np.ndindex(out.shape):
        values = list(x[at])
        last = [] if old is None else [old[at]]
        one = floats(row, dtype, values, last, nan_propagate) if dtype.is_float else integers(row, dtype, values, last)
        out[at] = one
    return out


def integers(row: Operation, dtype: DType, values: list[int], last: list[int]) -> int:
    """The old value takes part like an element, but its absolute value is not taken."""
    assert row.whole is not None
    if row.name == "reduce_absmax":  # the absolute value of the lowest integer is itself
        return max(0, *(support.wrap(abs(int(v)), dtype) for v in values), *(int(v) for v in last))
    kept = np.array([int(v) for v in values + last], object)
    if row.name.startswith("reduce_bit"):
        start = {"and": -1, "or": 0, "xor": 0}[row.name.removeprefix("reduce_bit")]
        combine: dict[str, Callable[[int, int], int]] = {"and": int.__and__, "or": int.__or__, "xor": int.__xor__}
        return support.wrap(functools.reduce(combine[row.name.removeprefix("reduce_bit")], kept, start), dtype)
    return support.wrap(int(row.whole(kept)), dtype)


def floats(row: Operation, dtype: DType, values: list[float], last: list[float], nan_propagate: bool) -> float:
    """Sums: 16 interleaved partials, 8-4-2-1, the old value last, in at least float32, rounded once at the end."""
    inner = dtype.numpy if dtype.bits >= 32 else np.dtype(np.float32)
    xs = [inner.type(v) for v in values]
    olds = [inner.type(v) for v in last]
    if "abs" in row.name:
        xs = [abs(v) for v in xs]
    if "sum" in row.name:
        partials = [functools.reduce(lambda p, q: inner.type(p + q), xs[i::16]) for i in range(min(16, len(xs)))]
        for half in (8, 4, 2, 1):
            partials = [
                inner.type(p + partials[i + half]) if i + half < len(partials) else p
                for i, p in enumerate(partials[: max(half, 1)])
            ]
        total = partials[0]
        for v in olds:
            total = inner.type(total + v)
        return support.rounded(np.asarray(total), dtype)[()]
    combine = OPERATIONS["min" if "min" in row.name else "max"].real
    assert combine is not None
    if nan_propagate and any(np.isnan(v) for v in xs + olds):
        return dtype.numpy.type(np.nan)
    start = {"reduce_max": -np.inf, "reduce_min": np.inf, "reduce_absmax": 0.0}[row.name]
    best = functools.reduce(lambda p, q: combine(np.float64(p), np.float64(q)), xs + olds, np.float64(start))
    return support.rounded(np.asarray(best, np.float64), dtype)[()]


def test_float_sums_lie_within_the_bound() -> None:
    """The order is ours to choose; the error is not."""
    tile = (33, 31)
    dtype = as_dtype("float32")
    x = np.random.default_rng(4).standard_normal((3, *tile)).astype(np.float32)
    args = [x, *arguments("float32", tile, "float32", 3)[1:]]
    got = support.agree(kernel("float32", tile, "float32"), *args)
    for k, (row, keywords, axis) in enumerate(plan("float32", "float32", tile)):
        if row.name != "reduce_sum" or keywords:
            continue
        wide = np.moveaxis(x.astype(np.float64), 1 + axis, -1)
        for independent in (False, True):
            bounds.assert_within(got[1 + k], wide.sum(-1), bounds.sum_bound(wide, dtype, independent), row.name)
