"""`tiledsl bench`: library kernels against NumPy, torch and Numba in one process, interleaved, medians, as ratios.

A ratio above 1 means that tiledsl is faster than the better of the peers that are installed. Nothing here gates a
test: machines differ and are shared; `docs/performance.md` keeps measured tables with machine and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict

from tiledsl.bench import gpu
from tiledsl.bench.attention import ATTENTION
from tiledsl.bench.job import Job, torch_module
from tiledsl.bench.latency import LATENCY
from tiledsl.bench.measure import Row, format_row, run
from tiledsl.bench.products import PRODUCTS
from tiledsl.bench.rows import ROWS
from tiledsl.bench.threads import THREADS
from tiledsl.errors import TileValueError

__all__ = ["JOBS", "Job", "Row", "arguments", "main", "run"]

JOBS = {job.name: job for job in (*PRODUCTS, *ATTENTION, *ROWS, *THREADS, *LATENCY)}
_CHILD = "_TILEDSL_BENCH_CHILD"
_NAMES = f"{', '.join(JOBS)}; with --target cuda: {', '.join(gpu.GPU_JOBS)}"


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl bench`."""
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"which jobs (default: all): {_NAMES}")
    parser.add_argument("--target", help="where our kernels run (default: the CPU target)")
    parser.add_argument("--threads", type=int, default=1, help="threads for every library (default 1)")
    parser.add_argument("--json", metavar="FILE", help="also write the table, with machine, bounds and date, as JSON")
    parser.add_argument("--plot", metavar="FILE", help="also draw the table under the machine's roofline")


def main(options: argparse.Namespace) -> int:
    """On a GPU by `bench.gpu`. Else every library reads its number of threads when it is loaded: the measurement runs
    in a child process."""
    if (options.target or "").partition(":")[0] == "cuda":
        return gpu.main(options)
    unknown = [n for n in options.jobs if n not in JOBS]
    if unknown:
        raise TileValueError(f"unknown job {unknown[0]!r}", help=f"one of {', '.join(JOBS)}")
    if options.threads < 1:
        raise TileValueError(f"--threads is {options.threads}, expected a number from 1 on")
    if os.environ.get(_CHILD) != str(options.threads):
        n = str(options.threads)
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TILEDSL_NUM_THREADS", _CHILD)
        return subprocess.call(
            [sys.executable, "-m", "tiledsl", *sys.argv[1:]], env=os.environ | dict.fromkeys(names, n)
        )
    from tiledsl.backends.cpu.ceilings import measure_ceilings

    if torch := torch_module():
        torch.set_num_threads(options.threads)
    ceilings = measure_ceilings(options.threads)
    print(
        f"this machine, {options.threads} thread{'s' * (options.threads > 1)}: "
        f"{ceilings.fma / 1e9:.0f} GFLOP/s float32, {ceilings.bytes / 1e9:.0f} GOP/s int8, "
        f"{ceilings.read / 1e9:.1f} GB/s read, {ceilings.copy / 1e9:.1f} GB/s copied"
    )
    jobs = [JOBS[name] for name in options.jobs or JOBS]
    left = iter(range(len(jobs) - 1, -1, -1))

    def report(row: Row) -> None:
        more = next(left)
        print(format_row(row), flush=True)
        if more and sys.stderr.isatty():
            print(f"  {more} of {len(jobs)} to go ...", end="\r", file=sys.stderr, flush=True)

    rows = run(jobs, options.target, options.threads, ceilings, report)
    if options.json:
        machine = {"processor": platform.processor(), "machine": platform.machine(), "cores": os.cpu_count()}
        table = {"machine": machine, "threads": options.threads, "date": time.strftime("%Y-%m-%d")}
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump({**table, "ceilings": asdict(ceilings), "rows": [asdict(r) for r in rows]}, f, indent=1)
    if options.plot:
        from tiledsl.bench.plot import plot

        plot(rows, ceilings, options.plot)
    return 0
