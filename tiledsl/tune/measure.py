"""Times of calls on the host's clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

__all__ = ["milliseconds", "once", "times"]


def times(
    run: Callable[[], Any], warmup: float = 25, rep: float = 100, n_warmup: int = 0, n_repeat: int = 0
) -> list[float]:
    """Milliseconds of single calls, ascending; at least one.

    warmup, rep         milliseconds to spend before and while measuring
    n_warmup, n_repeat  numbers of calls instead, where they are not 0
    """
    run()  # compiles
    first = max(1e-4, once(run))
    for _ in range(n_warmup or min(100, int(warmup / first))):
        run()
    return sorted(once(run) for _ in range(n_repeat or max(1, min(1000, int(rep / first)))))


def milliseconds(run: Callable[[], Any], warmup: float = 25, rep: float = 100) -> float:
    """The median of `times`."""
    found = times(run, warmup, rep)
    return found[len(found) // 2]


def once(run: Callable[[], Any]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3
