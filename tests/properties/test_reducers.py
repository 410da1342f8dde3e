"""Reducers: operation x dtype x nest x odd extents, the one order of float sums, against loops over all iterations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from properties import support
from properties.support import Array

import tiledsl.language as T
from tiledsl.conversions import convert
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.interp import Options, checked, run

# mypy: disable-error-code="valid-type,misc,no-untyped-def"

UPDATE = {"sum": "{0} += {1}", "max": "{0} = T.max({0}, {1})", "min": "{0} = T.min({1}, {0})", "bitand": "{0} &= {1}",
          "bitor": "{0} |= {1}", "bitxor": "{0} ^= {1}"}  # fmt: skip
START = {"sum": 0, "max": 0, "min": 1, "bitand": 27, "bitor": 4, "bitxor": 1}
FLOATS = ("float32", "float64", "float16", "bfloat16")
INTS = ("int8", "int32", "uint16", "int64")
CASES = [(op, d) for d in FLOATS for op in ("sum", "max", "min")] + [(op, d) for d in INTS for op in UPDATE]
TILES = [(1, 1), (7, 17), (33, 16), (5, 40)]
PLAN = [(*case, *tile) for case in CASES for tile in (TILES if case[1] in ("float32", "int32") else TILES[1:2])]

Contribution = tuple[tuple[int, ...], int, Any]  # element, number among the contributions' iterations, value


def collected(op: str, start: Any, shape: tuple[int, ...], dtype: str, given: Iterator[Contribution]) -> Array:
    """One contribution after the other, in at least float32; 16 partials combined 8-4-2-1, the start value last."""
    d = as_dtype(dtype)
    acc = as_dtype("float32") if d.is_float and d.bits < 32 else d
    partials: dict[tuple[tuple[int, ...], int], Any] = {}
    for at, number, value in given:
        key = at, number % 16 if op == "sum" and d.is_float else 0
        x = convert(np.asarray(value), d, acc)[()]
        partials[key] = combine(op, partials[key], x) if key in partials else x
    out = np.empty(shape, d.numpy)
    for at in np.ndindex(shape):
        found = [partials.get((at, p)) for p in range(16)]
        for half in (8, 4, 2, 1):
            pairs = zip(found[:half], found[half:], strict=True)
            found = [b if a is None else a if b is None else combine(op, a, b) for a, b in pairs]
        first = convert(np.asarray(start, d.numpy), d, acc)[()]
        total = first if found[0] is None else combine(op, first, found[0])
        out[at] = convert(np.asarray(total), acc, d)
    return out


def combine(op: str, a: Any, b: Any) -> Any:
    if op in ("max", "min"):
        return np.fmax(a, b) if op == "max" else np.fmin(a, b)
    ufunc = {"sum": np.add, "bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor}[op]
    return ufunc(a, b)


def values(dtype: str, shape: tuple[int, ...]) -> Array:
    rng, d = np.random.default_rng(len(dtype)), as_dtype(dtype)
    if d.is_int:
        return rng.integers(0, 1 << min(d.bits, 63), shape, np.uint64).astype(f"uint{d.bits}").view(d.numpy)
    return (rng.standard_normal(shape) * 8).astype(d.numpy)


@pytest.mark.parametrize(("op", "dtype", "m", "n"), PLAN)
def test_rows_columns_and_all(op: str, dtype: str, m: int, n: int) -> None:
    up = UPDATE[op].format
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor(({m}, {n}), "{dtype}"), R: T.Tensor(({m},), "{dtype}"), C: T.Tensor(({n},), "{dtype}"),
         A: T.Tensor((1,), "{dtype}")):
    with T.Kernel(1):
        x = T.alloc_shared(({m}, {n}), "{dtype}")
        r = T.alloc_reducer(({m},), "{dtype}", op="{op}")
        c = T.alloc_reducer(({n},), "{dtype}", op="{op}", replication="all")
        a = T.alloc_reducer(1, "{dtype}", "{op}")
        T.copy(X, x)
        T.fill(r, {START[op]})
        T.fill(c, {START[op]})
        T.fill(a, {START[op]})
        for i, j in T.Parallel({m}, {n}):
            {up("r[i]", "x[i, j]")}
        for i, j in T.Parallel({m}, {n}):
            {up("c[j]", "x[i, j]")}
        for i, j in T.Parallel({m}, {n}):
            {up("a[0]", "x[i, j]")}
        T.finalize_reducer(r)
        T.finalize_reducer(c)
        T.finalize_reducer(a)
        T.copy(r, R)
        T.copy(c, C)
        T.copy(a, A)
""")
    x = values(dtype, (m, n))
    args = [x, *(np.zeros(k, x.dtype) for k in (m, n, 1))]
    got = support.agree(k, *args)
    cells: Callable[[], Iterator[tuple[int, int]]] = lambda: itertools.product(range(m), range(n))  # noqa: E731
    with np.errstate(all="ignore"):
        for found, given in zip(
            got[1:],
            (
                (((i,), j, x[i, j]) for i, j in cells()),
                (((j,), i, x[i, j]) for i, j in cells()),
                (((0,), i * n + j, x[i, j]) for i, j in cells()),
            ),
            strict=True,
        ):
            support.assert_same(found, collected(op, START[op], found.shape, dtype, given), op)
    run(k.function, args, checked())


@pytest.mark.parametrize("dtype", ["float32", "float16", "int32"])
@pytest.mark.parametrize("n", [1, 7, 33, 64])
def test_conditions_inner_loops_and_rounds(n: int, dtype: str) -> None:
    """Several contributions of one iteration, some iterations without any, three nests before the reducer is read."""
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((3, {n}, 5), "{dtype}"), O: T.Tensor((4,), "{dtype}"), I: T.Tensor(({n},), "int32"),
         G: T.Tensor((6,), "{dtype}")):
    with T.Kernel(1):
        o = T.alloc_reducer((4,), "{dtype}", op="sum")
        g = T.alloc_reducer((6,), "{dtype}", op="sum")
        T.reducer_init(o, 3)
        T.reducer_init(g)
        for t in T.serial(3):
            for i in T.Parallel({n}):
                for k in T.serial(5):
                    if X[t, i, k] > 0:
                        o[t] += X[t, i, k]
                half = i // 2
                T.reducer_update(g[I[i]], X[t, half, 0])
                g[I[i]] += X[t, i, 1]
        T.finalize_reducer(o)
        T.finalize_reducer(g, dst=G)
        T.copy(o, O)
""")
    x, at = values(dtype, (3, n, 5)), np.random.default_rng(n).integers(0, 6, n).astype(np.int32)
    args = [x, np.zeros(4, x.dtype), at, np.zeros(6, x.dtype)]
    got = support.agree(k, *args)
    first = (((t,), i, x[t, i, k]) for t, i, k in np.ndindex(3, n, 5) if x[t, i, k] > 0)
    second = (((int(at[i]),), 0, v) for t, i in np.ndindex(3, n) for v in (x[t, i // 2, 0], x[t, i, 1]))
    with np.errstate(all="ignore"):
        support.assert_same(got[1], collected("sum", 3, (4,), dtype, first), "conditions")
        support.assert_same(got[3], collected("sum", 0, (6,), dtype, second), "by index")
    run(k.function, args, checked())


def test_the_middle_of_three_axes_and_a_bound_subscript() -> None:
    k = support.kernel_from("""
import tiledsl.language as T

m, n = T.dynamic("m, n")

@T.prim_func
def main(X: T.Tensor((m, 6, n), "float32"), O: T.Tensor((6,), "float32"), P: T.Tensor((3,), "float32")):
    with T.Kernel(1):
        o = T.alloc_reducer((6,), "float32")
        p = T.alloc_reducer((3,), "float32")
        T.clear(o)
        T.clear(p)
        for a, b, c in T.Parallel(m, 6, n):
            pair = b // 2
            o[b] += X[a, b, c]
            p[pair] = X[a, b, c] * 2 + p[pair]
        T.finalize_reducer(o)
        T.finalize_reducer(p)
        T.copy(o, O)
        T.copy(p, P)
""")
    for m, n in ((1, 1), (5, 3), (4, 16), (3, 33)):
        x = values("float32", (m, 6, n))
        got = support.agree(k, x, np.zeros(6, np.float32), np.zeros(3, np.float32))
        given = [(a, b, c) for a, b, c in np.ndindex(m, 6, n)]
        one = collected("sum", 0, (6,), "float32", (((b,), a * n + c, x[a, b, c]) for a, b, c in given))
        twice = x * np.float32(2)
        two = collected("sum", 0, (3,), "float32", (((b // 2,), a * n + c, twice[a, b, c]) for a, b, c in given))
        support.assert_same(got[1], one, f"{m} {n}")
        support.assert_same(got[2], two, f"{m} {n}")


def test_a_contribution_before_the_start_is_reported() -> None:
    @T.prim_func
    def early(O: T.Tensor((1,), "float32")):
        with T.Kernel(1):
            r = T.alloc_reducer(1, "float32")
            for _ in T.Parallel(4):
                r[0] += 1.0
            T.finalize_reducer(r)
            T.copy(r, O)

    with pytest.raises(TileError, match="r.*before anything has written it"):
        run(early.function, [np.zeros(1, np.float32)], checked())


@pytest.mark.parametrize("size", [1, 64, 150])
def test_threads_contribute_one_by_one(size: int) -> None:
    """At thread level contributions come statement by statement, each of all threads in their order."""
    k = support.kernel_from("""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "float32"), O: T.Tensor((3,), "float32")):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        r = T.alloc_reducer((3,), "float32")
        T.clear(r)
        for k in T.serial(3):
            if k * 64 + t < n:
                r[t % 3] += X[k * 64 + t]
        T.finalize_reducer(r)
        if t < 3:
            O[t] = r[t]
""")
    x = values("float32", (size,))
    given = [((t % 3,), 0, x[k * 64 + t]) for k in range(3) for t in range(64) if k * 64 + t < size]
    args = [x, np.zeros(3, np.float32)]
    support.assert_same(support.agree(k, *args)[1], collected("sum", 0, (3,), "float32", iter(given)), "threads")
    run(k.function, args, checked())


def test_the_shadow_of_a_reducer_bounds_its_error() -> None:
    k = support.kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((200,), "float16"), O: T.Tensor((2,), "float32")):
    with T.Kernel(1):
        total = T.alloc_reducer(1, "float32")
        top = T.alloc_reducer(1, "float16", op="max")
        T.clear(total)
        T.clear(top)
        for i in T.Parallel(200):
            total[0] += X[i] / T.float32(3)
            top[0] = T.max(top[0], X[i])
        T.finalize_reducer(total)
        T.finalize_reducer(top)
        O[0] = total[0]
        O[1] = top[0]
""")
    x = values("float16", (200,))
    found = run(k.function, [x, np.zeros(2, np.float32)], Options(shadow=True)).shadow
    assert found is not None
    exact = x.astype(np.float64)
    np.testing.assert_allclose(found["O"].value, [(exact / 3).sum(), exact.max()], rtol=1e-9)
    assert 0 < found["O"].max_error <= found["O"].max_bound < 1e-2


@pytest.mark.parametrize("op", ["sum", "max"])
def test_elements_that_variables_of_the_iterations_name(op: str) -> None:
    """Sixteen iterations at a time would lose what several of them contribute to one element."""
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((64,), "int32"), O: T.Tensor((3,), "int32")):
    with T.Kernel(1):
        r = T.alloc_reducer((3,), "int32", op="{op}")
        T.clear(r)
        for i in T.Parallel(64):
            v = T.alloc_var("int32", 0)
            v = X[i] % 3
            {UPDATE[op].format("r[v]", "X[i]")}
        T.finalize_reducer(r)
        T.copy(r, O)
""")
    x = np.random.default_rng(0).integers(0, 100, 64).astype(np.int32)
    found = [x[x % 3 == j] for j in range(3)]
    want = [part.sum() if op == "sum" else part.max() for part in found]
    assert support.agree(k, x, np.zeros(3, np.int32))[1].tolist() == want
