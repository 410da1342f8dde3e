"""A lane: what one thread needs to run blocks of compiled kernels - the context words and a scratch arena."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from functools import cache

__all__ = ["Lane", "caller_lane"]

# Words of the context (docs/architecture.md, CPU ABI).
SCRATCH, CANCEL, RING, ROUNDS, WORKER, WORKERS, PAUSE = range(7)
CONTEXT_WORDS = 8
ARENA_STEP = 1 << 21  # arenas grow in huge-page steps, so that a worker soon has all it will ever need


@cache
def _pause() -> int:
    """Address of the C function that lets other threads run; 0 where there is none."""
    try:
        library, name = ("kernel32", "SwitchToThread") if os.name == "nt" else (None, "sched_yield")
        return ctypes.cast(getattr(ctypes.CDLL(library), name), ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


class Lane:
    """The context block and the scratch of one thread. A lane runs one job at a time."""

    __slots__ = ("_arena", "capacity", "_words", "address", "busy")

    def __init__(self) -> None:
        self._words = (ctypes.c_int64 * CONTEXT_WORDS)()
        self._words[PAUSE] = _pause()
        self.address = ctypes.addressof(self._words)
        self._arena: mmap.mmap | None = None
        self.capacity = 0
        self.busy = False

    def prepare(self, scratch_bytes: int, cancel: int, ring: int, worker: int, workers: int) -> None:
        """Fill the context: at least `scratch_bytes` of scratch (contents undefined), the address of the cancel
        word, the address of the debug ring (0: none), and who this is among how many."""
        if scratch_bytes > self.capacity:
            self._grow(scratch_bytes)
        words = self._words
        words[CANCEL] = cancel
        words[RING] = ring
        words[WORKER] = worker
        words[WORKERS] = workers

    @property
    def rounds(self) -> int:
        """How often loops that wait have gone round, ever."""
        return self._words[ROUNDS]

    def _grow(self, size: int) -> None:
        capacity = -(-size // ARENA_STEP) * ARENA_STEP
        # A private mapping: shared ones (the default of mmap) get no huge pages. Pages come zeroed and are
        # touched first by the thread that uses them.
        try:
            arena = mmap.mmap(-1, capacity, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, OverflowError) as e:
            raise MemoryError(f"no {size} bytes for the tiles of a block") from e
        if hasattr(mmap, "MADV_HUGEPAGE"):
            try:
                arena.madvise(mmap.MADV_HUGEPAGE)
            except OSError:
                pass  # a kernel without huge pages; only speed is lost
        self._words[SCRATCH] = ctypes.addressof(ctypes.c_char.from_buffer(arena))
        self._arena, self.capacity = arena, capacity


_own = threading.local()


def caller_lane() -> Lane:
    """The lane of the calling thread; a fresh one when it is in use (a kernel run from a signal handler)."""
    lane: Lane | None = getattr(_own, "lane", None)
    if lane is None:
        lane = _own.lane = Lane()
    return Lane() if lane.busy else lane
