"""The tuner: what it measures, refuses, keeps on disk and stops early."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileRuntimeError, TileValueError
from tiledsl.tune import times, tune
from tiledsl.tune.store import Store

A = np.arange(33, dtype=np.float32)


@tiledsl.jit(out_idx=[1], target="numpy")
def scaled(n: int, block: Any = 8, factor: int = 2) -> Any:
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):  # type: ignore[no-untyped-def, valid-type]
        with T.Kernel(T.ceildiv(n, block), threads=32) as bx:
            for i in T.Parallel(block):
                B[bx * block + i] = A[bx * block + i] * factor

    return main


class Slow:
    """A kernel of a known duration."""

    def __init__(self, ms: float) -> None:
        self.ms, self.calls = ms, 0

    def text(self) -> str:
        return f"slow {self.ms}"

    def __call__(self) -> None:
        self.calls += 1
        time.sleep(self.ms / 1e3)


def test_the_fastest_wins_and_slow_ones_are_left_early(tmp_path: Path) -> None:
    found = tune(Slow, [{"ms": 40}, {"ms": 2}, {"ms": 60}], inputs=lambda k: [], warmup=0, rep=100,
                 early_stop=2.0, store=Store(tmp_path))  # fmt: skip
    assert found.config == {"ms": 2} and 1.5 < found.latency < 30
    assert found.trials[0].kernel.calls > 3 and found.trials[2].kernel.calls == 2 and not found.failures


def test_failures_keep_their_diagnostics(tmp_path: Path) -> None:
    def check(kernel: Any, given: Any) -> None:
        np.testing.assert_array_equal(kernel(*given), 2 * A)

    configs = [{"block": 8, "factor": 3}, {"block": "eight"}, {"block": 16}]
    found = tune(scaled, configs, args=(33,), inputs=lambda k: [A], check=check, warmup=0, rep=1, store=Store(tmp_path))
    assert found.config == {"block": 16} and np.array_equal(found.kernel(A), 2 * A)
    wrong, broken = found.failures
    assert wrong.error is not None and "Mismatched elements" in wrong.error
    assert broken.error is not None and broken.kernel is None
    with pytest.raises(TileRuntimeError, match="none of the 1 configurations"):
        tune(scaled, configs[:1], args=(33,), inputs=lambda k: [A], check=check, store=Store(tmp_path))


def test_measurements_lie_on_disk_one_per_configuration(tmp_path: Path) -> None:
    def run(n: int = 33, configs: Any = None) -> tuple[bool, ...]:
        given = np.arange(n, dtype=np.float32)
        found = tune(scaled, configs or {"block": [8, 16]}, args=(n,), inputs=lambda k: [given], warmup=0, rep=1,
                     store=Store(tmp_path))  # fmt: skip
        return tuple(t.stored for t in found.trials)

    assert run() == (False, False) and run() == (True, True)
    assert run(34) == (False, False)  # another kernel
    assert run(33, {"block": [8], "factor": [2, 3]}) == (True, False)
    files = list(tmp_path.glob("*.json"))
    assert len(files) == 5 and all(json.loads(f.read_text())["latency"] > 0 for f in files)
    for f in files:
        f.write_text("{damaged")
    assert run() == (False, False)


def test_nothing_to_tune() -> None:
    with pytest.raises(TileValueError, match="no configurations"):
        tune(scaled, [], inputs=lambda k: [])


def test_numbers_of_calls() -> None:
    kernel = Slow(0.1)
    assert len(times(kernel, n_warmup=3, n_repeat=5)) == 5 and kernel.calls == 1 + 1 + 3 + 5
