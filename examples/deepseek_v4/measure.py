"""What the examples of DeepSeek-V4 share to measure: a clock, the bounds of the machine, random numbers, tables."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiledsl.backends.cpu.ceilings import Ceilings, measure_ceilings

__all__ = ["Clock", "Work", "ceilings", "count", "draw", "fail_unless", "print_table", "save", "use_threads"]

GB, MS = 1e-9, 1e3


def count(text: str) -> int:
    """An option that is a number from 1 on."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return value


def use_threads(threads: int) -> None:
    """The kernels of this process run on so many threads."""
    os.environ["TILEDSL_NUM_THREADS"] = str(threads)


def ceilings(threads: int, footprint: int = 1 << 28) -> Ceilings:
    """What this machine can do now: products per second, bytes per second; and says so."""
    found = measure_ceilings(threads, footprint)
    print(
        f"this machine, {threads} thread{'s' * (threads > 1)}: {found.read * GB:.1f} GB/s read, "
        f"{found.fma * GB:.0f} GFLOP/s float32, {found.bytes * GB:.0f} GOP/s int8"
    )
    return found


class Clock:
    """Seconds of named pieces of work. One thread: CPU time of the caller, which other work on a shared machine does
    not lengthen; more threads: wall time."""

    def __init__(self, threads: int) -> None:
        self.now = time.thread_time if threads == 1 else time.perf_counter
        self.seconds: dict[str, list[float]] = defaultdict(list)

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        start = self.now()
        yield
        self.seconds[name].append(self.now() - start)

    def median(self, name: str) -> float:
        """The median of all pieces of this name; 0 where there was none."""
        return statistics.median(self.seconds[name]) if self.seconds[name] else 0.0


@dataclass(frozen=True)
class Work:
    """What a piece of work cannot do without: bytes from memory, float32 operations, operations on bytes."""

    moved: float = 0.0
    floats: float = 0.0
    integers: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(self.moved + other.moved, self.floats + other.floats, self.integers + other.integers)

    def seconds(self, machine: Ceilings) -> float:
        """The least time: the longer of its bytes at the stream's rate and its operations at their instructions'."""
        return max(self.moved / machine.read, self.floats / machine.fma + self.integers / machine.bytes)


def draw(rng: np.random.Generator, *shape: int) -> np.ndarray[Any, Any]:
    """float32 of mean 0 and variance 1 that take one of 256 values: normal ones would cost ten times that."""
    x = rng.integers(0, 256, shape, np.uint8).astype(np.float32)
    x -= np.float32(127.5)
    x *= np.float32(1 / 73.9)
    return x


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """With rich where it is installed, else in plain text; the first column is text, the others numbers."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        print(f"\n{title}")
        widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
        for line in [header, ["-" * w for w in widths], *rows]:
            print("  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))))
        return
    table = Table(title=title, title_justify="left")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for line in rows:
        table.add_row(*line)
    console = Console()
    (console if console.is_terminal else Console(width=140)).print(table)


def fail_unless(checks: dict[str, bool]) -> None:
    """Say which checks failed, and end the program with status 1 if one did."""
    if failed := [name for name, passed in checks.items() if not passed]:
        raise SystemExit("FAILED: " + "; ".join(failed))
    print(f"{len(checks)} checks passed: " + "; ".join(checks))


def save(path: Path | None, what: dict[str, Any]) -> None:
    """The figures as JSON, where a file was named."""
    if path is not None:
        path.write_text(json.dumps(what, indent=1) + "\n", encoding="utf-8")
