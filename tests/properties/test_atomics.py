"""Atomics: operation x dtype x memory x odd sizes, old values, out of range, tiles, and two workers on one element."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from properties import support
from properties.support import Array

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.interp import checked, run
from tiledsl.ir.stmt import Atomic
from tiledsl.ir.walk import walk

# mypy: disable-error-code="valid-type,misc,no-untyped-def"

FLOATS = ("float32", "float64", "float16", "bfloat16")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
UPDATES = [(op, d) for d in (*FLOATS, *INTS) for op in ("add", "max", "min")]
UPDATES += [(op, d) for d in INTS for op in ("and", "or", "xor")]
TARGETS = ("numpy", *(t for t in support.TARGETS if t != "numpy"))


def one_by_one(op: str, old: Any, x: Any, dtype: str) -> Any:
    """One update in the arithmetic of Python and NumPy: exact, then one rounding to the dtype."""
    d = as_dtype(dtype)
    if d.is_int:
        a, b = int(old), int(x)
        value = {"add": a + b, "max": max(a, b), "min": min(a, b), "and": a & b, "or": a | b, "xor": a ^ b}[op]
        return np.array(value % (1 << d.bits), f"uint{d.bits}").view(d.numpy)[()]
    if op == "add":
        return d.numpy.type(old + x)  # of two values of one type, NumPy and ml_dtypes round the exact sum once
    if math.isnan(x) or math.isnan(old):
        return old if math.isnan(x) else x
    key = [(float(v), math.copysign(1.0, float(v))) for v in (old, x)]
    return (old, x)[key.index(max(key) if op == "max" else min(key))]


def kernel(op: str, dtype: str, scope: str, rows: int) -> tiledsl.JITKernel:
    """C[I[i]] op= X[i] over one T.Parallel; P[i] is what it replaced."""
    place = "C" if scope == "global" else "s"
    local = "" if scope == "global" else f's = T.alloc_shared(({rows},), "{dtype}")\n        T.copy(C, s)'
    back = "" if scope == "global" else "T.copy(s, C)"
    return support.kernel_from(f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(X: T.Tensor((n,), "{dtype}"), I: T.Tensor((n,), "int32"), C: T.Tensor(({rows},), "{dtype}"),
         P: T.Tensor((n,), "{dtype}")):
    with T.Kernel(1, threads=32):
        {local}
        for i in T.Parallel(n):
            P[i] = T.atomic_{op}({place}[I[i]], X[i], return_prev=True)
        {back}
""")


def values(dtype: str, n: int, seed: int) -> Array:
    rng, d = np.random.default_rng(seed), as_dtype(dtype)
    if d.is_int:
        return rng.integers(0, 1 << d.bits, n, np.dtype(f"uint{d.bits}")).view(d.numpy)
    x: Array = (rng.standard_normal(n) * 2.0 ** rng.integers(-6, 6, n)).astype(d.numpy)
    x[rng.random(n) < 0.1] = np.nan
    x[rng.random(n) < 0.1] = -0.0
    return x


@pytest.mark.parametrize("scope", ["global", "shared"])
@pytest.mark.parametrize(("op", "dtype"), UPDATES)
def test_every_update_and_old_value(op: str, dtype: str, scope: str) -> None:
    rows = 5
    k = kernel(op, dtype, scope, rows)
    for n in (1, 17, 33):
        x, c = values(dtype, n, n), values(dtype, rows, 9)
        low, high = (-2, rows + 2) if scope == "global" else (0, rows)  # out of range is the author's error in shared
        at = np.random.default_rng(n).integers(low, high, n).astype(np.int32)
        p = np.ones(n, x.dtype)
        got = support.agree(k, x, at, c, p, what=f"atomic_{op} {dtype} {scope}")
        wanted, before = c.copy(), np.zeros(n, x.dtype)
        with np.errstate(all="ignore"):
            for i in range(n):
                if 0 <= at[i] < rows:
                    before[i] = wanted[at[i]]
                    wanted[at[i]] = one_by_one(op, wanted[at[i]], x[i], dtype)
        support.assert_same(got[2], wanted, "result")
        support.assert_same(got[3], before, "old values")
        inputs = [x, at, c.copy(), p.copy()]
        run(k.function, inputs, checked())
        support.assert_same(inputs[2], wanted, "checked")


@pytest.mark.parametrize("dtype", [*FLOATS, *INTS])
def test_no_update_is_lost_between_workers(dtype: str) -> None:
    """Many blocks on several workers meet in the same elements; the sums are exact, so their order does not show."""
    exact = {"bfloat16": 1 << 8, "float16": 1 << 11, "int8": 1 << 7, "uint8": 1 << 8}.get(dtype, 1 << 15)
    blocks, rounds = 16, exact // 32
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(C: T.Tensor((3,), "{dtype}"), M: T.Tensor((3,), "{dtype}")):
    with T.Kernel({blocks}, threads=1) as b:
        for r in T.serial({rounds}):
            for i in T.Parallel(3):
                T.atomic_add(C[i], 1, memory_order="acq_rel")
                T.atomic_max(M[i], r)
""")
    for target in TARGETS:
        c, m = (np.zeros(3, as_dtype(dtype).numpy) for _ in range(2))
        with tiledsl.config.NUM_THREADS.override(4):
            k(c, m, target=target)
        assert c.astype(np.float64).tolist() == [blocks * rounds] * 3, target
        assert m.astype(np.float64).tolist() == [rounds - 1] * 3, target


@pytest.mark.parametrize("target", TARGETS)
def test_tickets_are_the_numbers_from_0(target: str) -> None:
    """Slots drawn by return_prev: every one is drawn once, whatever the order (language.md 0.4)."""

    @T.prim_func
    def tickets(count: T.Tensor((1,), "int32"), slot: T.Tensor((37, 13), "int32")):
        with T.Kernel(37) as b:
            for i in T.Parallel(13):
                slot[b, i] = T.atomic_add(count[0], 1, return_prev=True)

    count, slot = np.zeros(1, np.int32), np.zeros((37, 13), np.int32)
    with tiledsl.config.NUM_THREADS.override(4):
        tiledsl.compile(tickets)(count, slot, target=target)
    assert count[0] == 37 * 13 and sorted(slot.ravel()) == list(range(37 * 13))


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (7, 17), (33, 16), (16, 40)])
@pytest.mark.parametrize("source", ["shared", "fragment"])
def test_tiles(source: str, rows: int, columns: int) -> None:
    """A tile added at a corner, a slice and a whole buffer; what lies outside the tensor is skipped."""
    m, n = 40, 37
    k = support.kernel_from(f"""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor(({rows}, {columns}), "float16"), C: T.Tensor(({m}, {n}), "float32"),
         R: T.Tensor((3, {columns}), "float32"), W: T.Tensor(({rows}, {columns}), "int32"), at: T.int32):
    with T.Kernel(1):
        x = T.alloc_{source}(({rows}, {columns}), "float16")
        w = T.alloc_shared(({rows}, {columns}), "int32")
        T.copy(X, x)
        T.fill(w, 3)
        T.atomic_add(C[at, at - 2], x)
        T.atomic_max(R[1, :], x[{rows - 1}, 0:{columns}])
        T.atomic_min(w, x)
        T.atomic_or(W, w)
""")
    rng = np.random.default_rng(rows)
    x = (rng.standard_normal((rows, columns)) * 8).astype(np.float16)
    for at in (0, 1, 30, -5):
        c, r = rng.standard_normal((m, n)).astype(np.float32), np.zeros((3, columns), np.float32)
        w = np.full((rows, columns), 8, np.int32)
        got = support.agree(k, x, c, r, w, at)
        wanted = np.zeros((m + 80, n + 80), np.float32)
        wanted[40 : 40 + m, 40 : 40 + n] = c
        wanted[40 + at : 40 + at + rows, 38 + at : 38 + at + columns] += x
        support.assert_same(got[1], wanted[40 : 40 + m, 40 : 40 + n], f"corner {at}")
        support.assert_same(got[2], np.stack([r[0], np.maximum(0, x[-1].astype(np.float32)), r[2]]), "slice")
        support.assert_same(got[3], 8 | np.minimum(3, np.trunc(x).astype(np.int32)), "whole")


def test_neighbours() -> None:
    @T.prim_func
    def pairs(A: T.Tensor((7, 8), "float16"), C: T.Tensor((7, 9), "float16"), D: T.Tensor((7, 6), "float16")):
        with T.Kernel(1):
            s = T.alloc_shared((7, 8), "float16")
            T.copy(A, s)
            for i, j in T.Parallel(7, 4):
                T.atomic_addx2(C[i, j * 2], s[i, j * 2])
            for i, j in T.Parallel(7, 2):
                T.atomic_addx4(D[i, j * 4], A[i, j * 4 : j * 4 + 4])

    rng = np.random.default_rng(0)
    a, c, d = (rng.standard_normal((7, n)).astype(np.float16) for n in (8, 9, 6))
    _, got_c, got_d = support.agree(tiledsl.compile(pairs), a, c, d)
    np.testing.assert_array_equal(got_c, c + np.pad(a, ((0, 0), (0, 1))))
    np.testing.assert_array_equal(got_d, d + a[:, :6])


def test_load_store_and_waiting_for_an_earlier_block() -> None:
    """Ordered accumulation: block b waits until block b - 1 has published, so that even float sums have one order."""

    @T.prim_func
    def ordered(X: T.Tensor((19, 5), "float32"), C: T.Tensor((5,), "float32"), turn: T.Tensor((1,), "int32")):
        with T.Kernel(19, threads=1) as b:
            while T.atomic_load(turn[0], memory_order="acquire") != b:
                T.assume(b > 0)
            for j in T.Parallel(5):
                C[j] += X[b, j]
            T.atomic_store(turn[0], b + 1, memory_order="release")

    x = np.random.default_rng(3).standard_normal((19, 5)).astype(np.float32)
    with tiledsl.config.NUM_THREADS.override(4):
        _, c, turn = support.agree(tiledsl.compile(ordered), x, np.zeros(5, np.float32), np.zeros(1, np.int32))
    total = np.zeros(5, np.float32)
    for row in x:
        total += row
    np.testing.assert_array_equal(c, total)
    assert turn[0] == 19


def test_memory_orders_reach_the_code() -> None:
    @T.prim_func
    def orders(C: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=1):
            T.atomic_add(C[0], 1)
            T.atomic_add(C[0], 1, memory_order=4)
            T.atomic_store(C[1], T.atomic_load(C[0], "acquire"), "release")
            T.atomic_xor(C[2], 1, memory_order=1)

    function = tiledsl.compile(orders).function
    found = [(s.op, s.order) for s in walk(function.kernels[0].body) if isinstance(s, Atomic)]
    assert found == [
        ("add", "relaxed"), ("add", "acq_rel"), ("load", "acquire"), ("store", "release"), ("xor", "acquire"),
    ]  # fmt: skip
    (c,) = support.agree(tiledsl.compile(orders), np.zeros(4, np.int32))
    assert c.tolist() == [2, 2, 1, 0]


def test_a_thread_guard_or_one_thread_makes_it_happen_once() -> None:
    @T.prim_func
    def once(C: T.Tensor((2,), "int32")):
        with T.Kernel(3, threads=64):
            for _ in T.Parallel(1):
                T.atomic_add(C[0], 1)

    (c,) = support.agree(tiledsl.compile(once), np.zeros(2, np.int32))
    assert c.tolist() == [3, 0]


def test_one_thread_waits_for_its_block() -> None:
    """The usual form at thread level: thread 0 looks, the others wait at the barrier."""

    @T.prim_func
    def chain(X: T.Tensor((9, 32), "float32"), C: T.Tensor((32,), "float32"), turn: T.Tensor((1,), "int32")):
        with T.Kernel(9, threads=32) as b:
            t = T.get_thread_binding()
            if t == 0:
                while T.atomic_load(turn[0], memory_order="acquire") != b:
                    pass
            T.sync_threads()
            C[t] += X[b, t]
            T.sync_threads()
            if t == 0:
                T.atomic_store(turn[0], b + 1, memory_order="release")

    x = np.random.default_rng(3).standard_normal((9, 32)).astype(np.float32)
    with tiledsl.config.NUM_THREADS.override(4):
        c = support.agree(tiledsl.compile(chain), x, np.zeros(32, np.float32), np.zeros(1, np.int32))[1]
    total = np.zeros(32, np.float32)
    for row in x:
        total += row
    np.testing.assert_array_equal(c, total)


@pytest.mark.parametrize("target", support.TARGETS)
def test_a_block_that_waits_for_one_that_failed_ends(target: str) -> None:
    @T.prim_func
    def hopeless(X: T.Tensor((8,), "float32"), ready: T.Tensor((1,), "int32"), O: T.Tensor((8,), "float32")):
        with T.Kernel(8, threads=1) as b:
            if b == 0:
                total = T.alloc_var("float32", 0.0)
                for i in T.serial(1000000):
                    total += X[i % 8]
                T.device_assert(total < 0, "first")
                T.atomic_store(ready[0], 1, memory_order="release")
            while T.atomic_load(ready[0], memory_order="acquire") == 0:
                pass
            O[b] = X[b]

    with tiledsl.config.NUM_THREADS.override(4), pytest.raises(TileError, match="first"):
        tiledsl.compile(hopeless)(np.ones(8, np.float32), np.zeros(1, np.int32), np.zeros(8, np.float32), target=target)
