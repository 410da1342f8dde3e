"""Blocks that wait for each other on the CPU targets: for later blocks, at barriers inside loops, for ever."""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from properties.support import agree
from thread_waiting import look_back, rounds_of_the_grid

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileNotImplementedError, TileRuntimeError
from tiledsl.runtime import resident

TARGETS = ("numba", "llvm")
RNG = np.random.default_rng(8)


def zeros(*shape: int) -> np.ndarray[Any, Any]:
    return np.zeros(shape, np.int32)


@pytest.mark.parametrize("blocks", [1, 2, 7, 33])
def test_later_blocks(blocks: int) -> None:
    a = RNG.integers(-9, 9, blocks).astype(np.int32)
    *_, sums = agree(tiledsl.compile(look_back(blocks)), a, zeros(blocks), zeros(blocks))
    np.testing.assert_array_equal(sums, np.cumsum(a[::-1])[::-1])


@pytest.mark.parametrize("blocks", [1, 7, 33])
def test_barriers_of_the_grid_in_loops_and_branches(blocks: int) -> None:
    kernel = tiledsl.compile(rounds_of_the_grid(blocks, 3))
    for rounds in ([5, 4], [6, 3], [0, 9], [40, 9]):
        agree(kernel, np.array(rounds, np.int32), zeros(3, blocks), zeros(blocks), what=str(rounds))


@T.prim_func
def polling(n: T.int32, F: T.Tensor((1,), T.int32), B: T.Tensor((1,), T.int32)):
    """Block 0 waits until all others have come, by asking with an atomic that changes nothing."""
    with T.Kernel(n, threads=1) as bx:
        if bx == 0:
            seen = T.alloc_var(T.int32, 0)
            while seen < n - 1:
                seen = T.atomic_add(F[0], 0, return_prev=True)
            B[0] = seen
        else:
            T.atomic_add(F[0], 1)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("n", [1, 2, 50, 3000])
def test_any_atomic_may_look(target: str, n: int) -> None:
    seen = zeros(1)
    tiledsl.compile(polling, target=target)(n, zeros(1), seen)
    assert seen[0] == n - 1


@T.prim_func
def gate(A: T.Tensor((2,), T.int32), n: T.int32):
    """Block b waits until block n - 1 has opened the gate."""
    with T.Kernel(n, threads=1) as bx:
        if bx == n - 1:
            T.atomic_store(A[0], A[1])
        while T.atomic_load(A[0]) == 0:
            pass


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C raises, also where the tests were started in the background, which ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("target", TARGETS)
def test_an_interrupt_ends_a_deadlock(target: str, interruptible: None) -> None:
    kernel = tiledsl.compile(gate, target=target)
    a = np.array([0, 1], np.int32)
    kernel(a, 5)
    a[:] = 0
    for n in (1, 5):  # nobody opens it
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            kernel(a, n)
        assert time.monotonic() - start < 20
    assert not [t for t in threading.enumerate() if t.name.startswith("tiledsl-block") and t.join(5) and t.is_alive()]
    a[:] = 0, 1
    kernel(a, 5)
    assert a[0] == 1


@pytest.mark.parametrize("target", TARGETS)
def test_more_waiting_blocks_than_can_run(target: str, monkeypatch: pytest.MonkeyPatch, golden: Any) -> None:
    kernel = tiledsl.compile(gate, target=target)
    monkeypatch.setattr(resident, "MOST", 8)
    monkeypatch.setattr(resident, "_PATIENCE_S", 0.2)
    kernel(np.array([0, 1], np.int32), 8)
    kernel(np.array([1, 1], np.int32), 100)  # nobody waits
    with pytest.raises(TileRuntimeError) as caught:
        kernel(np.array([0, 1], np.int32), 9)
    text = re.sub(r"(?<=py:)\d+:\d+|^\d+(?= \|)", "N", str(caught.value), flags=re.MULTILINE)
    golden("errors/more_waiting_blocks", text)


@T.prim_func
def failing(A: T.Tensor((1,), T.int32)):
    with T.Kernel(3, threads=1) as bx:
        T.device_assert(bx < 2, "block 2 gives up")
        while T.atomic_load(A[0]) == 0:
            pass


@pytest.mark.parametrize("target", TARGETS)
def test_a_failed_assert_ends_the_wait_of_others(target: str) -> None:
    with pytest.raises(TileRuntimeError, match="block 2 gives up"):
        tiledsl.compile(failing, target=target)(zeros(1))


@T.prim_func
def printing(A: T.Tensor((4,), T.int32)):
    """Block b waits for block b - 1, then says so."""
    with T.Kernel(4, threads=1) as bx:
        if bx > 0:
            while T.atomic_load(A[bx - 1]) == 0:
                pass
        T.print(bx, "here is block")
        T.atomic_store(A[bx], 1)


@pytest.mark.parametrize("target", TARGETS)
def test_prints_of_a_chain_come_in_its_order(target: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiledsl.compile(printing, target=target)(zeros(4))
    got = capsys.readouterr().out
    tiledsl.compile(printing, target="numpy")(zeros(4))
    assert got == capsys.readouterr().out
    assert got.count("here is block") == 4


@T.prim_func
def leaving(A: T.Tensor((1,), T.int32)):
    with T.Kernel(4, threads=1) as bx:
        if bx == A[0]:
            T.thread_return()
        for _ in T.serial(A[0]):
            T.sync_grid()


@pytest.mark.parametrize("target", TARGETS)
def test_blocks_that_leave_before_a_barrier_are_refused(target: str) -> None:
    with pytest.raises(TileNotImplementedError, match="whose blocks may return"):
        tiledsl.compile(leaving, target=target)(zeros(1))
