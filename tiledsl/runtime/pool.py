"""The one thread pool: runs ranges of a grid through a compiled function that holds no GIL.

Blocks are independent, so results are the same for any number of threads and any distribution. The calling
thread works too. It works alone when the grid is small, when the pool is busy (concurrent calls) or when one
thread is wanted. Chunks are handed out by a shared counter; how many blocks make a chunk follows from the
time that earlier launches of the same kernel took.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from collections.abc import Callable
from functools import cache

from tiledsl import config
from tiledsl.runtime.lane import Lane, caller_lane

__all__ = ["CANCELLED", "DONE", "FAILED", "STUCK", "Job", "Pace", "run_grid", "run_serial", "thread_count"]

DONE, CANCELLED, FAILED = range(3)
STUCK = 4  # said by the runtime, never by compiled code: blocks wait for each other, and cannot all run

CHUNKS_PER_WORKER = 8  # the last chunk of a grid then costs at most 1/8 of a worker's share
SHORTEST_CHUNK_NS = 20_000  # below this the call through ctypes (0.5 us) and the wake-up would show
LONGEST_CHUNK_NS = 50_000_000  # an interrupt waits for at most this
PROBE_ABOVE = 8  # a smaller grid of unknown pace is shared at once, for its blocks may be long
WORTH_WAKING_NS = 100_000  # another thread is awake after 20 to 40 us, and the caller waits as long for its end

BlockFunction = Callable[[int, int, bytes, int], int]


class Pace:
    """How long one block of a kernel takes, learnt from its launches; decides chunk sizes, never values."""

    __slots__ = ("ns_per_block",)

    def __init__(self) -> None:
        self.ns_per_block = 0.0

    def learn(self, blocks: int, ns: float) -> None:
        new = ns / blocks
        self.ns_per_block = new if not self.ns_per_block else 0.5 * (self.ns_per_block + new)

    def chunk(self, blocks: int, workers: int) -> int:
        """Blocks per chunk for a grid of `blocks` on `workers` threads."""
        even = -(-blocks // (CHUNKS_PER_WORKER * workers)) if workers > 1 else blocks
        ns = self.ns_per_block
        if not ns:
            return 1
        return max(1, min(max(even, int(SHORTEST_CHUNK_NS / ns)), int(LONGEST_CHUNK_NS / ns)))


class Job:
    """One grid in flight."""

    __slots__ = (
        "active",
        "args",
        "begun",
        "blocks",
        "cancel",
        "chunk",
        "code",
        "function",
        "ring",
        "scratch",
        "spent",
        "starts",
        "workers",
    )

    def __init__(
        self,
        function: BlockFunction,
        first: int,
        blocks: int,
        args: bytes,
        scratch: int,
        ring: int,
        chunk: int,
        workers: int,
    ) -> None:
        self.function, self.blocks, self.args = function, blocks, args
        self.scratch, self.ring, self.chunk, self.workers = scratch, ring, chunk, workers
        self.cancel = ctypes.c_int64(0)
        self.code = DONE
        self.begun = first  # the last chunk that was handed out
        self.starts = itertools.count(first, chunk)  # next() is one step under the GIL
        self.active: set[int] = set()  # workers that may be inside compiled code
        self.spent: list[int] = []  # ns of each worker between its first and its last chunk

    def stop(self, code: int) -> None:
        self.code = max(self.code, code)
        self.cancel.value = 1

    def abandon(self) -> None:
        """After an interrupt: array memory must outlive the workers' last store, so nothing else may end this wait."""
        self.stop(CANCELLED)
        while self.active:
            try:
                time.sleep(0.0005)
            except BaseException:
                continue

    def drain(self, lane: Lane, worker: int) -> None:
        """Run chunks until none is left, or until one fails or the job is cancelled."""
        self.active.add(worker)
        lane.busy = True
        try:
            lane.prepare(self.scratch, ctypes.addressof(self.cancel), self.ring, worker, self.workers)
            function, blocks, chunk, args, context = self.function, self.blocks, self.chunk, self.args, lane.address
            start = time.perf_counter_ns()
            while not self.cancel.value:
                first = next(self.starts)
                if first >= blocks:
                    break
                self.begun = first
                code = function(first, min(first + chunk, blocks), args, context)
                if code:
                    self.stop(code)
            self.spent.append(time.perf_counter_ns() - start)
        finally:
            lane.busy = False
            self.active.discard(worker)


class _Worker(threading.Thread):
    """A parked thread. Releasing `wake` hands it `job`; it releases `done` when it has left the job. A caller
    that gets `wake` back without waiting has taken the job away before the worker saw it."""

    def __init__(self, number: int) -> None:
        super().__init__(name=f"tiledsl-worker-{number}", daemon=True)
        self.number = number
        self.job: Job | None = None
        self.wake = threading.Lock()
        self.done = threading.Lock()
        self.wake.acquire()
        self.done.acquire()

    def run(self) -> None:
        lane = Lane()
        while True:
            self.wake.acquire()
            job = self.job
            if job is None:
                return
            try:
                job.drain(lane, self.number)
            except MemoryError:
                pass  # the caller runs what is left, or fails as well
            except BaseException:
                job.stop(CANCELLED)
            self.job = job = None
            self.done.release()


class _Pool:
    def __init__(self, threads: int) -> None:
        self.threads = threads
        self.busy = threading.Lock()
        self.workers = [_Worker(n) for n in range(1, threads)]
        for worker in self.workers:
            worker.start()

    def run(self, job: Job) -> None:
        """Run the job on the caller and `job.workers - 1` others; returns when nobody is inside any more."""
        helpers = self.workers[: job.workers - 1]
        try:
            for worker in helpers:
                worker.job = job
                worker.wake.release()
            job.drain(caller_lane(), 0)
            for worker in helpers:
                if worker.wake.acquire(blocking=False):
                    worker.job = None
                else:
                    worker.done.acquire()
        except BaseException:
            # An interrupt, anywhere above: which locks are held is not known any more, so this pool is given up.
            _give_up(self)
            job.abandon()
            raise

    def close(self) -> None:
        for worker in self.workers:
            worker.job = None
            try:
                worker.wake.release()
            except RuntimeError:
                pass  # it was awake already and finds no job next time


_pool: _Pool | None = None
_lock = threading.Lock()  # guards the choice of the pool, never a job


def _give_up(pool: _Pool) -> None:
    global _pool
    if _pool is pool:
        _pool = None
    pool.close()


def _forget() -> None:
    """After fork the child has none of the threads, and locks in the state that they happened to be in."""
    global _pool, _lock
    _pool, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def thread_count() -> int:
    """Threads that a kernel may use now (TILEDSL_NUM_THREADS, else the usable cores)."""
    return config.NUM_THREADS.get() or _cores()


_cores = cache(config.usable_cores)


def _claim(threads: int) -> _Pool | None:
    """The pool, locked for one job; None when it is busy."""
    global _pool
    pool = _pool
    if pool is None or pool.threads != threads:
        with _lock:
            pool = _pool
            if pool is None or pool.threads != threads:
                if pool is not None:
                    if not pool.busy.acquire(blocking=False):
                        return None
                    pool.close()  # its lock stays taken: who still holds a reference finds it busy
                pool = _pool = _Pool(threads)
    return pool if pool.busy.acquire(blocking=False) else None


def run_grid(
    function: BlockFunction,
    blocks: int,
    args: bytes,
    *,
    scratch_bytes: int = 0,
    ring: int = 0,
    pace: Pace,
    threads: int = 0,
) -> int:
    """Run blocks 0..blocks-1 of a CPU-ABI function and return its worst code (DONE, CANCELLED, FAILED).

    args: the argument words; ring: address of the debug ring; threads: 0 means `thread_count()`.
    """
    if blocks <= 0:
        return DONE
    first, wanted = 0, threads
    if not pace.ns_per_block and blocks > PROBE_ABOVE:  # one block alone tells how long the others take
        start = time.perf_counter_ns()
        code = _run_inline(function, 1, args, scratch_bytes, ring, 1)
        if code:
            return code
        pace.learn(1, time.perf_counter_ns() - start)
        first = 1
    left = blocks - first
    workers, pool = 1, None
    if left > 1 and (not pace.ns_per_block or pace.ns_per_block * left > WORTH_WAKING_NS):
        wanted = wanted or thread_count()
        pool = _claim(wanted) if wanted > 1 else None
        workers = min(wanted, left) if pool is not None else 1
    chunk = pace.chunk(left, workers)
    if pool is None:
        start = time.perf_counter_ns()
        code = _run_inline(function, blocks, args, scratch_bytes, ring, chunk, first)
        pace.learn(left, time.perf_counter_ns() - start)
    else:
        job = Job(function, first, blocks, args, scratch_bytes, ring, chunk, workers)
        try:
            pool.run(job)
        finally:
            pool.busy.release()
        code = job.code
        pace.learn(left, sum(job.spent))
    return code


_never = ctypes.c_int64(0)
NEVER = ctypes.addressof(_never)  # the cancel word of inline runs: an interrupt ends them between two chunks


def _run_inline(
    function: BlockFunction, blocks: int, args: bytes, scratch_bytes: int, ring: int, chunk: int, first: int = 0
) -> int:
    lane = caller_lane()
    lane.busy = True
    try:
        lane.prepare(scratch_bytes, NEVER, ring, 0, 1)
        while first < blocks:
            code = function(first, min(first + chunk, blocks), args, lane.address)
            if code:
                return code
            first += chunk
    finally:
        lane.busy = False
    return DONE


def run_serial(
    function: BlockFunction, blocks: int, args: bytes, *, scratch_bytes: int, ring: int, after_block: Callable[[], None]
) -> int:
    """Run the blocks one by one, in order, on the calling thread, with `after_block()` after each."""
    for block in range(blocks):
        code = _run_inline(function, block + 1, args, scratch_bytes, ring, 1, block)
        after_block()
        if code:
            return code
    return DONE
