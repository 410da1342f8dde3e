"""Jobs of `tiledsl bench` about waiting: importing, the first result of a process, a call beside its work.

Their contestants say themselves how long they took: in processes of their own, CPU time for one thread, else wall time.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"

import atexit
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl import config
from tiledsl.bench.job import Job, Maker, Thunk

__all__ = ["LATENCY", "four_arrays"]

_SCRIPT = Path(__file__).with_name("first_result.py")
_CALLS = 2000


def _clock() -> str:
    return "process_time" if config.NUM_THREADS.get() == 1 else "perf_counter"


def _first(what: str, cold: bool) -> Maker:
    """Seconds in a new process until the library's kernel has given its first result, after the imports; cold: nothing
    is in the disk cache."""

    def make(target: str | None, small: bool) -> dict[str, Thunk]:
        kept = tempfile.mkdtemp(prefix="tiledsl-bench-")
        atexit.register(shutil.rmtree, kept, ignore_errors=True)

        def run(folder: str) -> float:
            path = os.pathsep.join(filter(None, [str(Path(tiledsl.__file__).parents[1]), os.environ.get("PYTHONPATH")]))
            env = os.environ | {"TILEDSL_CACHE_DIR": folder, "PYTHONPATH": path}
            command = [sys.executable, str(_SCRIPT), what, target or "", _clock()]
            told = subprocess.run(command, env=env, check=True, capture_output=True, text=True)
            return float(json.loads(told.stdout)[what])

        def ours() -> float:
            if not cold:
                return run(kept)
            with tempfile.TemporaryDirectory(prefix="tiledsl-bench-") as folder:
                return run(folder)

        return {"tiledsl": ours}

    return make


_N = T.dynamic("n")


@T.prim_func
def four_arrays(
    A: T.Tensor((_N,), "float32"),
    B: T.Tensor((_N,), "float32"),
    C: T.Tensor((_N,), "float32"),
    D: T.Tensor((_N,), "float32"),
):
    """D = A + B * C."""
    with T.Kernel(T.ceildiv(_N, 16)) as b:
        for i in T.Parallel(16):
            D[b * 16 + i] = A[b * 16 + i] + B[b * 16 + i] * C[b * 16 + i]


def _call(target: str | None, small: bool) -> dict[str, Thunk]:
    """Seconds of a repeated call with four arrays of 16 elements; of its C function alone, called with ready words."""
    from tiledsl.backend import CompiledFunction, resolve
    from tiledsl.runtime import pool, program
    from tiledsl.runtime.lane import caller_lane

    arrays = [np.ones(16, np.float32) for _ in range(4)]
    kernel, clock = tiledsl.compile(four_arrays, target=target), getattr(time, _clock())

    def timed(f: Any, *args: Any) -> Thunk:
        def seconds() -> float:
            start = clock()
            for _ in range(_CALLS):
                f(*args)
            return float(clock() - start) / _CALLS

        return seconds

    jobs = {"tiledsl": timed(kernel, *arrays)}
    launchable = program.compile_function(kernel.function, resolve(target), {}).launchable
    if isinstance(launchable, CompiledFunction):
        lane, words = caller_lane(), struct.pack("5q", *(x.ctypes.data for x in arrays), 16)
        lane.prepare(0, pool.NEVER, 0, 0, 1)
        jobs["its work"] = timed(launchable.functions[0], 0, 1, words, lane.address)
    return jobs


LATENCY = (
    Job("import", _first("import", False), told=True),
    *(
        Job(f"first-{what}-{'cold' if cold else 'warm'}", _first(what, cold), told=True)
        for what in ("gemm", "attention")
        for cold in (True, False)
    ),
    Job("call-4-arrays", _call, told=True),
)
