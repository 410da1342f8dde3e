"""The thread pool, driven by small functions of the CPU ABI that are compiled here with llvmlite."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import threading
import time

import numpy as np
import pytest

from tiledsl import config
from tiledsl.runtime import lane, pool

# out[b] += 1 for every block; stops at a set cancel word; spins args[1] rounds per block; fails at block args[2];
# leaves worker number + 1 in who[b]; writes and reads back one word of scratch.
IR = """
define i64 @k(i64 %first, i64 %last, ptr %args, ptr %context) {
entry:
  %out_i = load i64, ptr %args
  %out = inttoptr i64 %out_i to ptr
  %p1 = getelementptr i64, ptr %args, i64 1
  %spin = load i64, ptr %p1
  %p2 = getelementptr i64, ptr %args, i64 2
  %bad = load i64, ptr %p2
  %p3 = getelementptr i64, ptr %args, i64 3
  %who_i = load i64, ptr %p3
  %who = inttoptr i64 %who_i to ptr
  %scratch_i = load i64, ptr %context
  %scratch = inttoptr i64 %scratch_i to ptr
  %c1 = getelementptr i64, ptr %context, i64 1
  %cancel_i = load i64, ptr %c1
  %cancel = inttoptr i64 %cancel_i to ptr
  %c4 = getelementptr i64, ptr %context, i64 4
  %worker = load i64, ptr %c4
  br label %head
head:
  %b = phi i64 [ %first, %entry ], [ %b1, %next ]
  %more = icmp slt i64 %b, %last
  br i1 %more, label %check, label %done
check:
  %stop = load volatile i64, ptr %cancel
  %stopped = icmp ne i64 %stop, 0
  br i1 %stopped, label %cancelled, label %body
body:
  store volatile i64 %b, ptr %scratch
  br label %spinning
spinning:
  %i = phi i64 [ 0, %body ], [ %i1, %spinning ]
  %tick = load volatile i64, ptr %scratch
  %i1 = add i64 %i, 1
  %on = icmp slt i64 %i1, %spin
  br i1 %on, label %spinning, label %act
act:
  %is_bad = icmp eq i64 %b, %bad
  br i1 %is_bad, label %failed, label %next
next:
  %q = getelementptr i64, ptr %out, i64 %tick
  %old = load i64, ptr %q
  %new = add i64 %old, 1
  store i64 %new, ptr %q
  %w = getelementptr i64, ptr %who, i64 %b
  %w1 = add i64 %worker, 1
  store i64 %w1, ptr %w
  %b1 = add i64 %b, 1
  br label %head
done:
  ret i64 0
cancelled:
  ret i64 1
failed:
  ret i64 2
}
"""


@pytest.fixture(scope="module")
def function():
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2, jit=True)
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(IR), machine)
    engine.finalize_object()
    signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p)
    yield signature(engine.get_function_address("k"))
    engine.close()


class Grid:
    def __init__(self, blocks: int, spin: int = 1, bad: int = -1) -> None:
        self.blocks = blocks
        self.out = np.zeros(max(1, blocks), np.int64)
        self.who = np.zeros(max(1, blocks), np.int64)
        self.args = struct.pack("4q", self.out.ctypes.data, spin, bad, self.who.ctypes.data)

    def run(self, function, **kw):
        kw.setdefault("pace", pool.Pace())
        return pool.run_grid(function, self.blocks, self.args, scratch_bytes=64, **kw)


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("blocks", [0, 1, 2, 7, 64, 1000])
def test_every_block_runs_once(function, blocks, threads):
    grid = Grid(blocks)
    pace = pool.Pace()
    for round_ in range(1, 4):
        assert grid.run(function, threads=threads, pace=pace) == pool.DONE
        assert (grid.out[:blocks] == round_).all()


def test_two_threads_share_a_long_grid(function):
    grid = Grid(64, spin=1_000_000)
    assert grid.run(function, threads=2) == pool.DONE
    assert set(grid.who) == {1, 2}


def test_a_short_grid_stays_on_the_caller(function):
    grid = Grid(16)
    pace = pool.Pace()
    pace.ns_per_block = 10.0
    grid.run(function, threads=2, pace=pace)
    assert set(grid.who) == {1}


def test_failure_stops_the_others(function):
    grid = Grid(4000, spin=20_000, bad=3)
    assert grid.run(function, threads=2) == pool.FAILED
    assert grid.out.sum() < 4000
    assert grid.out[3] == 0


def test_chunks_follow_the_time_of_a_block():
    pace = pool.Pace()
    assert pace.chunk(8, 2) == 1  # unknown, and the grid is too short to try a block first
    pace.learn(10, 10 * 100.0)  # 0.1 us: long chunks
    assert pace.chunk(1000, 2) == 200
    assert pace.chunk(1000, 1) == 1000
    pace.ns_per_block = 1e9  # 1 s: block by block, so that an interrupt is noticed
    assert pace.chunk(1000, 2) == pace.chunk(1000, 1) == 1


def test_concurrent_calls_run_inline(function):
    """Calls from many Python threads at once: one owns the pool, the others work alone; all finish."""
    grids = [Grid(50, spin=5000) for _ in range(6)]
    callers = [threading.Thread(target=g.run, args=(function,), kwargs={"threads": 2}) for g in grids]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
        assert not caller.is_alive()
    for grid in grids:
        assert (grid.out == 1).all()


def test_knob_sets_the_number_of_threads(function):
    with config.NUM_THREADS.override(3):
        assert pool.thread_count() == 3
        grid = Grid(400, spin=50_000)
        grid.run(function)
        assert set(grid.who) <= {1, 2, 3}
    with config.NUM_THREADS.override(1):
        grid = Grid(40, spin=5000)
        grid.run(function)
        assert set(grid.who) == {1}


def test_scratch_is_aligned_and_grows(function):
    own = lane.Lane()
    seen = []
    for size in (1, 4096, lane.ARENA_STEP + 1, 64):
        own.prepare(size, 0, 0, 0, 1)
        address = ctypes.c_int64.from_address(own.address).value
        assert address % 64 == 0
        ctypes.memset(address, 0xAB, size)
        seen.append(address)
    assert seen[0] == seen[1] and seen[2] == seen[3]


def test_a_lane_in_use_is_not_shared():
    mine = lane.caller_lane()
    mine.busy = True
    try:
        assert lane.caller_lane() is not mine
    finally:
        mine.busy = False
    assert lane.caller_lane() is mine


def test_interrupt_cancels_and_the_next_launch_works(function):
    grid = Grid(1_000_000, spin=100_000)  # would take minutes
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    timer.start()
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        grid.run(function, threads=2)
    signal.signal(signal.SIGINT, handler)
    assert time.monotonic() - start < 20
    before = grid.out.copy()
    time.sleep(0.05)
    assert (grid.out == before).all()  # nobody writes any more
    again = Grid(64, spin=1000)
    assert again.run(function, threads=2) == pool.DONE
    assert (again.out == 1).all()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_fork_after_use(function):
    Grid(64, spin=1_000_000).run(function, threads=2)
    child = os.fork()
    if child == 0:
        grid = Grid(64, spin=1_000_000)
        code = grid.run(function, threads=2)
        os._exit(0 if code == pool.DONE and (grid.out == 1).all() and set(grid.who) == {1, 2} else 1)
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the forked child hangs")
