"""How contestants are measured: interleaved in one process, medians, beside what the machine can do."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tiledsl.backends.cpu.ceilings import Ceilings
from tiledsl.bench.job import Job, Thunk

__all__ = ["Row", "format_row", "measure", "run"]

SETTLE = 0.15  # seconds until the spinning threads of another library sleep (OpenBLAS: about 0.1)


@dataclass(frozen=True)
class Row:
    """One measured line: milliseconds per contestant; operations and bytes per second of ours in GFLOP/s and GB/s (0
    where the job has none to speak of); ratio of the best peer's time to ours; share of the machine's bound."""

    job: str
    milliseconds: dict[str, float]
    gflops: float
    gbytes: float
    ratio: float | None
    share: float | None
    intensity: float | None  # operations per byte from memory, where it decides


def measure(jobs: dict[str, Thunk], threads: int, seconds: float = 3.0, told: bool = False) -> dict[str, float]:
    """Median seconds of each contestant, interleaved A B C A B C ... after one warm-up round each. told: they return
    the seconds that count themselves.

    With one thread everybody runs on the calling thread: its CPU time is taken, which other work on a shared
    machine does not lengthen. With more, wall time, after a while of the same untimed: the threads of a
    library that has just worked spin on, on the cores that the next one needs.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter

    def timed(f: Thunk) -> float:
        start = clock()
        result = f()
        return float(result) if told else clock() - start

    first = {}
    for name, f in jobs.items():
        f()
        first[name] = timed(f)
    settle = SETTLE if threads > 1 and not told else 0.0
    rounds = int(min(101, max(5, seconds / max(1e-6, sum(first.values()) + len(jobs) * settle))))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, f in jobs.items():
            until = time.perf_counter() + settle
            while time.perf_counter() < until:
                f()
            times[name].append(timed(f))
    return {name: statistics.median(t) for name, t in times.items()}


def run(
    jobs: Sequence[Job],
    target: str | None,
    threads: int,
    ceilings: Ceilings | None = None,
    on_row: Callable[[Row], None] | None = None,
    small: bool = False,
) -> list[Row]:
    """Measure jobs with the threads this process was started with."""
    rows = []
    for job in jobs:
        medians = measure(job.make(target, small), threads, told=job.told)
        ours = medians["tiledsl"]
        peers = [t for who, t in medians.items() if who != "tiledsl"]
        bound = ceilings and ceilings.seconds(job.work, job.moved, job.integer, job.written)
        row = Row(
            job.name,
            {who: t * 1e3 for who, t in medians.items()},
            job.work / ours / 1e9,
            job.moved / ours / 1e9,
            min(peers) / ours if peers else None,
            bound / ours if bound and not small else None,
            job.work / job.moved if job.moved and job.work else None,
        )
        rows.append(row)
        if on_row:
            on_row(row)
    return rows


def format_row(row: Row) -> str:
    """One line of the table."""
    rate = f"{row.gbytes:8.1f} GB/s   " if row.gbytes else f"{row.gflops:8.1f} GFLOP/s" if row.gflops else " " * 16
    times = "  ".join(f"{who} {ms:9.4g} ms" for who, ms in row.milliseconds.items())
    ratio = "  no peer   " if row.ratio is None else f"  ratio {row.ratio:5.2f}"
    share = "" if row.share is None else f"  {row.share:4.0%} of the bound"
    return f"{row.job:28s} {rate}{ratio}{share}   {times}"
