"""The command: computes every case on every target, checks and times it, shows a table and draws demo.png."""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiledsl.backend import load_backend
from tiledsl.demo.report import Progress, draw, print_table
from tiledsl.demo.text import Batch, pack, sentences
from tiledsl.demo.work import Case, cases
from tiledsl.errors import TileValueError

__all__ = ["Measurement", "arguments", "main"]

TARGETS = ("numpy", "llvm")
DTYPES = ("float32", "bfloat16")
SECONDS = 1.0  # a time is the median of runs for about this long, at least one


@dataclass(frozen=True)
class Measurement:
    """One row of the table. first: seconds of the first call, compilation included; seconds: median of later
    calls; error: largest |result - float64|; apart: largest |result - result of the first target|; rivals: name ->
    seconds."""

    case: Case
    target: str
    first: float
    seconds: float
    error: float
    apart: float
    rivals: dict[str, float]

    @property
    def gflops(self) -> float:
        return self.case.flops / self.seconds / 1e9


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl demo`."""
    parser.add_argument("--tokens", type=int, default=2048, help="most tokens of the text to take (default 2048)")
    parser.add_argument("--png", default="demo.png", help="where to put the picture (default demo.png)")


def main(options: argparse.Namespace) -> int:
    """Run the demo; returns the exit status."""
    picture = Path(options.png)
    if not picture.parent.is_dir():
        raise TileValueError(f"--png {options.png}: there is no folder {picture.parent}")
    batch = pack(sentences(), options.tokens)
    torch = _optional("torch")
    usable = []
    for name in TARGETS:
        state = load_backend(name).probe()
        if state.ok:
            usable.append(name)
        else:
            print(f"target {name} is left out: {state.reason} {state.help}")
    print(
        f'{len(batch.tokens)} tokens of "Alice\'s Adventures in Wonderland", {len(batch.lengths)} sentences of '
        f"{batch.lengths.min()} to {batch.lengths.max()} tokens; targets {', '.join(usable)}; compared with NumPy"
        + ("" if torch is None else " and torch")
    )
    rows = measure(batch, usable, torch)
    print_table(rows)
    if len(usable) > 1:
        print(_agreement(rows, usable[0]))
    draw(rows, batch, picture)
    return 0


def measure(batch: Batch, targets: Sequence[str], torch: Any) -> list[Measurement]:
    """All cases, on all targets."""
    rows = []
    with Progress(len(DTYPES) * 3 * (len(targets) + 1)) as progress:
        for dtype in DTYPES:
            progress.step(f"{dtype}: embedding, routing, float64 answers", advance=0)
            for case in cases(batch, dtype, torch):
                progress.step(f"{dtype} {case.kernel}: other libraries")
                rivals = {name: _time(run) for name, run in case.rivals.items()}
                reference: Any = None
                for target in targets:
                    progress.step(f"{dtype} {case.kernel}: target {target}")
                    row, result = _measure(case, target, reference, rivals)
                    reference = result if reference is None else reference
                    rows.append(row)
    return rows


def _measure(case: Case, target: str, reference: Any, rivals: dict[str, float]) -> tuple[Measurement, Any]:
    start = time.perf_counter()
    result = case.run(target)
    first = time.perf_counter() - start
    wide = result.astype(np.float64)
    error = float(np.abs(wide - case.exact).max())
    apart = 0.0 if reference is None else float(np.abs(wide - reference).max())
    return Measurement(case, target, first, _time(lambda: case.run(target)), error, apart, rivals), wide


def _time(run: Callable[[], Any]) -> float:
    """Median seconds of one call."""
    times: list[float] = []
    while not times or (sum(times) < SECONDS and len(times) < 50):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def _agreement(rows: list[Measurement], reference: str) -> str:
    """How far the other targets are from the reference, per dtype."""
    words = ", ".join(f"{max(r.apart for r in rows if r.case.dtype == d):.1e} in {d}" for d in DTYPES)
    return (
        f"Largest difference between {reference} and the other targets: {words}.\n(Target numpy multiplies with BLAS, "
        "in an order of its own; numpy:exact agrees bit for bit, as the tests check.)"
    )
