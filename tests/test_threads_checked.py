"""What the checked mode reports at the thread level, and what it must not report."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tiledsl.language as T
from tiledsl.errors import TileRuntimeError
from tiledsl.interp import Options, checked, run

Golden = Callable[[str, str], None]


@T.prim_func
def divergent_barrier(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        if t < 40:
            A[t] = 1
            T.sync_threads()


@T.prim_func
def barrier_of_returned(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        if t >= 40:
            T.thread_return()
        T.sync_threads()
        A[t] = 1


@T.prim_func
def barrier_in_uneven_loop(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        for k in T.serial(t):
            A[t] = k
            T.sync_threads()


@T.prim_func
def named_barrier_count(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        if t < 32:
            A[t] = 1
            T.sync_threads(1, 48)


@T.prim_func
def named_barrier(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        if t < 32:
            T.sync_threads(1, 32)
            A[t] = 1
        else:
            T.sync_threads(2, 32)


@T.prim_func
def inactive_source(A: T.Tensor((32,), T.int32)):
    with T.Kernel(1, threads=32):
        t = T.get_thread_binding()
        if t < 20:
            A[t] = T.shfl_down(t, 4)


@T.prim_func
def beyond_the_block(A: T.Tensor((40,), T.int32)):
    with T.Kernel(1, threads=40):
        t = T.get_thread_binding()
        A[t] = T.shfl_sync(t, 16)


@T.prim_func
def source_outside_mask(A: T.Tensor((32,), T.int32)):
    with T.Kernel(1, threads=32):
        t = T.get_thread_binding()
        A[t] = T.shfl_sync(t, 9, mask=0xFF)


@T.prim_func
def partial_reduction(A: T.Tensor((32,), T.int32)):
    with T.Kernel(1, threads=32):
        t = T.get_thread_binding()
        if t % 2 == 0:
            A[t] = T.warp_reduce_sum(t)


@T.prim_func
def partial_vote(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        if t < 8:
            A[t] = T.syncthreads_or(t > 3)


@T.prim_func
def missing_barrier(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        s[t] = t
        A[t] = s[63 - t]


@T.prim_func
def two_writers(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        A[t // 2] = t


@T.prim_func
def write_after_read(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((1,), T.int32)
        if t == 0:
            s[0] = 7
        T.sync_threads()
        A[t] = s[0]
        if t == 5:
            s[0] = 8


@T.prim_func
def warp_barrier_is_not_enough(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        s[t] = t
        T.sync_warp()
        A[t] = s[(t + 32) % 64]


@T.prim_func
def uninitialised_local(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        x = T.alloc_local((2,), T.int32)
        if t != 3:
            x[1] = t
        A[t] = x[1]


@T.prim_func
def out_of_range(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=(8, 8)):
        tx = T.get_thread_binding(0)
        ty = T.get_thread_binding(1)
        s = T.alloc_shared((60,), T.int32)
        s[ty * 8 + tx] = tx


@T.prim_func
def missing_arrival(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        bar = T.alloc_barrier(64)
        if t < 32:
            T.barrier_arrive(bar)
            T.barrier_wait(bar, 0)
            A[t] = 1


@T.prim_func
def each_waits_for_the_other(A: T.Tensor((64,), T.int32)):
    with T.Kernel(2, threads=64) as bx:
        t = T.get_thread_binding()
        bars = T.alloc_barrier([32, 32])
        if t < 32:
            T.barrier_wait(bars[0], 0)
            T.barrier_arrive(bars[1])
        else:
            T.barrier_wait(bars[1], 0)
            T.barrier_arrive(bars[0])
        A[t] = bx


@T.prim_func
def flag_that_nobody_sets(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        while A[0] != 5:
            pass
        T.thread_return()


@T.prim_func
def block_that_returns(A: T.Tensor((64,), T.int32)):
    with T.Kernel(3, threads=64) as bx:
        if bx == 1:
            return
        T.sync_grid()
        A[bx] = 1


DEADLOCKS = [
    named_barrier_count, missing_arrival, each_waits_for_the_other, flag_that_nobody_sets, block_that_returns,
]  # fmt: skip
REPORTED = [
    divergent_barrier, barrier_in_uneven_loop, inactive_source, beyond_the_block,
    source_outside_mask, partial_reduction, partial_vote, missing_barrier, two_writers, write_after_read,
    warp_barrier_is_not_enough, uninitialised_local,
]  # fmt: skip


def outcome(kernel: Any, options: Options) -> np.ndarray[Any, Any]:
    a = np.full(kernel.function.buffers[0].const_shape, -1, np.int32)
    run(kernel.function, [a], options)
    return a


@pytest.mark.parametrize("kernel", REPORTED, ids=lambda k: k.name)
def test_reported(kernel: Any, golden: Golden) -> None:
    assert outcome(kernel, Options()).shape  # the default does not look, and has one result
    np.testing.assert_array_equal(outcome(kernel, Options()), outcome(kernel, Options(exact=True)))
    with pytest.raises(TileRuntimeError) as e:
        outcome(kernel, checked())
    golden(f"errors/threads_{kernel.name}", str(e.value))


@pytest.mark.parametrize("kernel", DEADLOCKS, ids=lambda k: k.name)
def test_deadlocks(kernel: Any, golden: Golden) -> None:
    messages, before = [], set(threading.enumerate())
    for options in (Options(), checked()):
        with pytest.raises(TileRuntimeError) as e:
            outcome(kernel, options)
        messages.append(str(e.value).splitlines()[0])
    assert messages[0] == messages[1]
    with pytest.raises(TileRuntimeError) as e:
        outcome(kernel, Options())
    golden(f"errors/threads_{kernel.name}", str(e.value))
    assert set(threading.enumerate()) <= before  # abandoned coroutines have ended


def test_an_access_out_of_range_names_the_thread(golden: Golden) -> None:
    with pytest.raises(IndexError) as e:
        outcome(out_of_range, Options())
    golden("errors/threads_out_of_range", str(e.value))


@T.prim_func
def warp_barrier(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        s[t] = t
        T.sync_warp()
        x = s[t ^ 31]
        T.sync_warp()
        s[t] = x + 1
        T.sync_warp()
        A[t] = s[t ^ 31]


@T.prim_func
def many_readers_then_one_writer(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((2,), T.int32)
        if t % 32 == 0:
            s[t // 32] = t
        T.sync_warp()
        A[t] = s[t // 32]
        T.sync_warp()
        if t % 32 == 1:
            s[t // 32] = 5


@T.prim_func
def same_value(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((1,), T.int32)
        s[0] = 3
        T.sync_threads()
        A[t] = s[0]


@T.prim_func
def tiles_are_barriers(A: T.Tensor((64,), T.int32)):
    with T.Kernel(1, threads=64):
        t = T.get_thread_binding()
        s = T.alloc_shared((64,), T.int32)
        T.copy(A, s)
        s[t] = s[t] + t
        for i in T.Parallel(64):
            s[i] = s[i] * 2
        x = s[63 - t]
        T.clear(s)
        A[t] = x


@T.prim_func
def masked_reduction(A: T.Tensor((32,), T.int32)):
    with T.Kernel(1, threads=32):
        t = T.get_thread_binding()
        if t < 16:
            A[t] = T.any_sync(t == 3, 0xFFFF)
        elif t < 24:
            A[t] = T.shfl_xor(t, 1, mask=0xFF0000)


@pytest.mark.parametrize(
    "kernel",
    [barrier_of_returned, named_barrier, warp_barrier, many_readers_then_one_writer, same_value, tiles_are_barriers]
    + [masked_reduction],
    ids=lambda k: k.name,
)
def test_silent(kernel: Any) -> None:
    a = np.arange(kernel.function.buffers[0].const_shape[0], dtype=np.int32)
    b = a.copy()
    run(kernel.function, [a], checked())
    run(kernel.function, [b], Options())
    np.testing.assert_array_equal(a, b)


def test_defined_results_of_what_checked_mode_refuses() -> None:
    t = np.arange(32)
    np.testing.assert_array_equal(outcome(inactive_source, Options()), np.where(t < 20, np.where(t < 16, t + 4, t), -1))
    even = np.where(t % 2 == 0, t[t % 2 == 0].sum(), -1)
    np.testing.assert_array_equal(outcome(partial_reduction, Options()), even)


def test_blocks_come_in_another_order() -> None:
    @T.prim_func
    def kernel(turn: T.Tensor((1,), "int32"), at: T.Tensor((30,), "int32")):
        with T.Kernel(30, threads=1) as bx:
            at[bx] = T.atomic_add(turn[0], 1, return_prev=True)

    at = np.zeros(30, np.int32)
    run(kernel.function, [np.zeros(1, np.int32), at], Options.checked())
    assert sorted(at) == list(range(30)) != at.tolist()
