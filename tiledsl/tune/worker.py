"""The child of a tuner, a fresh interpreter: it compiles, runs and measures one kernel after the other.

Jobs come as pickles on standard input, answers go as pickles to what was standard output; what kernels print goes to
standard error. A job holds the kernel's IR as text, so nothing of the author's program is imported here.
"""

from __future__ import annotations

import faulthandler
import os
import pickle
import runpy
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tiledsl import ir
from tiledsl.errors import TileError
from tiledsl.runtime import compile
from tiledsl.tune.measure import milliseconds, once

__all__ = ["Job", "Memory", "answer", "main", "measured"]

_FEW = 3  # calls before a configuration counts as too slow


@dataclass(frozen=True)
class Memory:
    """An array in a file of raw bytes: strides in bytes, `dtype` a NumPy type."""

    file: str
    dtype: Any
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray[Any, Any]:
        """The array; what is written to it stays in this process."""
        if 0 in self.shape:
            return np.empty(self.shape, self.dtype)
        raw: Any = np.memmap(self.file, np.uint8, "c")
        return np.ndarray(self.shape, self.dtype, raw, strides=self.strides)


@dataclass(frozen=True)
class Job:
    """What a worker does once. spend: milliseconds before and while measuring, None: run the kernel once, which
    compiles it; limit: do not measure on when a call takes longer (ms)."""

    text: str
    target: str
    arguments: tuple[Any, ...]
    spend: tuple[float, float] | None
    limit: float | None = None


def measured(call: Callable[[], Any], spend: tuple[float, float], limit: float | None) -> float:
    """Milliseconds of a call: its median, or the quickest of a few where that exceeds the limit (whatever else the
    machine does makes single calls slower, never quicker)."""
    call()
    if limit is not None:
        few = [once(call)]
        while few[-1] > limit and len(few) < _FEW:
            few.append(once(call))
        if few[-1] > limit:
            return min(few)
    return milliseconds(call, *spend)


def answer(job: Job) -> dict[str, Any]:
    """{"latency": ms} (0 for a job that only runs), or {"error": diagnostic}."""
    try:
        kernel = compile(_function(job.text), target=job.target)
        arguments = [x.array() if isinstance(x, Memory) else x for x in job.arguments]
        if job.spend is None:
            kernel(*arguments)
            return {"latency": 0.0}
        return {"latency": measured(lambda: kernel(*arguments), job.spend, job.limit)}
    except TileError as e:
        return {"error": str(e) or type(e).__name__}
    except Exception as e:
        return {"error": f"{type(e).__name__}: {e}"}


def _function(text: str) -> ir.Function:
    """The function of printed IR, which is a Python module."""
    with tempfile.TemporaryDirectory(prefix="tiledsl-tune-") as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(text, encoding="utf-8")
        names = runpy.run_path(str(path))
    return next(x for x in names.values() if isinstance(x, ir.Function))


def main() -> None:
    """Answer jobs until there are no more."""
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    while True:
        try:
            job = pickle.load(sys.stdin.buffer)
        except EOFError:
            return
        pickle.dump(answer(job), answers)
        answers.flush()
