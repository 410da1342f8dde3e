"""Barriers that thread-level code lacks: where they are put in, where not, and that every target then agrees."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.interp import Options, run
from tiledsl.ir.walk import walk
from tiledsl.passes.order_shared import OrderShared


def added(kernel: Any) -> int:
    """How many barriers the pass puts in."""
    count = lambda f: sum(isinstance(n, ir.Sync) for n in walk(f.kernels[0].body))
    return count(OrderShared()(kernel.function)) - count(kernel.function)


@T.prim_func
def reversed_(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        s[t] = A[t] * 3
        A[t] = s[63 - t]


@T.prim_func
def one_writer(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((1,), T.int32)
        if t == 40:
            s[0] = A[t]
        A[t] = s[0] + t


@T.prim_func
def one_warp_writes(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        lane = T.get_lane_idx()
        s = T.alloc_shared((32,), T.int32)
        if t >= 32:
            s[lane] = A[t]
        A[t] = s[lane] + t


@T.prim_func
def around_a_loop(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        x = T.alloc_var(T.int32, A[t])
        for k in T.serial(5):
            s[t] = x + k
            x = s[(t + 1) % 64]
        A[t] = x


@T.prim_func
def loop_variable_in_the_index(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=16):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        for k in T.serial(4):
            s[t + 16 * k] = A[t + 16 * k] + s[(t + 1) % 16] if k > 0 else 1
        for k in T.serial(4):
            A[t + 16 * k] = s[t + 16 * k]


@T.prim_func
def own_elements(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=(8, 8)):
        x = T.get_thread_binding(0)
        y = T.get_thread_binding(1)
        at = x + 8 * y
        s = T.alloc_shared((64,), T.int32)
        q = T.alloc_shared((8, 8), T.int32)
        s[at] = A[at]
        q[y, x] = s[at] + 1
        s[at] = s[at] + q[y, x]
        A[at] = s[at]


@T.prim_func
def atomics_together(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((4,), T.int32)
        if t < 4:
            s[t] = 0
        T.sync_threads()
        T.atomic_add(s[t % 4], 1)
        T.atomic_add(s[t % 3], 1)
        T.sync_threads()
        A[t] = s[t % 4]


@T.prim_func
def branches(A: T.Tensor((64,), T.int32), n: T.int32):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        s[t] = A[t]
        if n > 3:
            A[t] = s[63 - t]
        else:
            s[t] = s[t] + 1
        A[t] += s[t ^ 1]


@pytest.mark.parametrize(
    ("kernel", "barriers"),
    [(reversed_, 1), (one_writer, 1), (one_warp_writes, 1), (around_a_loop, 2), (own_elements, 0)]
    + [(atomics_together, 0), (branches, 2), (loop_variable_in_the_index, None)],
    ids=lambda x: getattr(x, "name", None),
)
def test_barriers(kernel: Any, barriers: int | None) -> None:
    assert barriers is None or added(kernel) == barriers
    again = OrderShared()(kernel.function)
    assert OrderShared()(again) is again
    rest: list[Any] = [5] if len(kernel.function.params) > 1 else []
    reference = np.arange(64, dtype=np.int32)
    run(kernel.function, [reference, *rest], Options(exact=True))
    for target in ("numba", "llvm"):
        a = np.arange(64, dtype=np.int32)
        tiledsl.compile(kernel, target=target)(a, *rest)
        np.testing.assert_array_equal(a, reference)
