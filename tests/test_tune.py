"""The tuner: what it measures, refuses, keeps on disk and stops early."""

from __future__ import annotations

import json
import os
import subprocess
import sys
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
    assert found.trials[0].kernel.calls > 3 and found.trials[2].kernel.calls == 4 and not found.failures


class Hiccup(Slow):
    """Something else makes the machine slow while its second call runs."""

    def __call__(self) -> None:
        super().__call__()
        if self.calls == 2 and self.ms < 10:
            time.sleep(0.2)


def test_one_slow_call_does_not_end_a_configuration(tmp_path: Path) -> None:
    found = tune(Hiccup, [{"ms": 20}, {"ms": 2}], inputs=lambda k: [], warmup=0, rep=50, early_stop=1.5,
                 store=Store(tmp_path))  # fmt: skip
    assert found.config == {"ms": 2} and found.latency < 15


def test_progress_where_nobody_watches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A line every few seconds, and what was found; nothing on request, everything on request."""

    def said(progress: bool | None, pause: float) -> list[str]:
        with pytest.MonkeyPatch.context() as m:
            m.setattr("tiledsl.tune.progress._PAUSE", pause)
            tune(Slow, [{"ms": 20}, {"ms": 1}, {"ms": 30}], inputs=lambda k: [], warmup=0, rep=1, progress=progress,
                 store=Store(tmp_path / f"{progress}{pause}"))  # fmt: skip
        return capsys.readouterr().err.splitlines()

    assert said(False, 0) == []
    assert len(said(True, 60)) == 4 and len(said(None, 0)) == 4
    (last,) = said(None, 60)
    assert last.startswith("tiledsl: best of 3: {'ms': 1}: ")


class Unlucky:
    """A configuration on which a program's own code raises something of its own."""

    def __rmul__(self, x: Any) -> Any:
        raise LookupError("no such configuration")


def test_failures_keep_their_diagnostics(tmp_path: Path) -> None:
    def check(kernel: Any, given: Any) -> None:
        np.testing.assert_array_equal(kernel(*given), 2 * A)

    configs = [{"block": 8, "factor": 3}, {"block": "eight"}, {"block": 16}, {"block": 8, "factor": Unlucky()}]
    found = tune(scaled, configs, args=(33,), inputs=lambda k: [A], check=check, warmup=0, rep=1, store=Store(tmp_path))
    assert found.config == {"block": 16} and np.array_equal(found.kernel(A), 2 * A)
    wrong, broken, raised = found.failures
    assert raised.error == "no such configuration"
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


def test_what_is_stored_is_checked_again(tmp_path: Path) -> None:
    """By another check it may be wrong."""

    def run(factor: int) -> tuple[bool, ...]:
        def check(kernel: Any, given: Any) -> None:
            np.testing.assert_array_equal(kernel(*given), factor * A)

        found = tune(scaled, [{"block": 8}], args=(33,), inputs=lambda k: [A], check=check, warmup=0, rep=1,
                     store=Store(tmp_path))  # fmt: skip
        return tuple(t.stored for t in found.trials)

    assert run(2) == (False,)
    with pytest.raises(TileRuntimeError, match="none of the 1 configurations"):
        run(3)
    assert run(2) == (True,)


def test_nothing_to_tune() -> None:
    with pytest.raises(TileValueError, match="no configurations"):
        tune(scaled, [], inputs=lambda k: [])


def test_numbers_of_calls() -> None:
    kernel = Slow(0.1)
    assert len(times(kernel, n_warmup=3, n_repeat=5)) == 5 and kernel.calls == 1 + 1 + 3 + 5


# -- worker processes ----------------------------------------------------------------------------------------------


@tiledsl.jit(target="cpu")
def misbehaving(n: int, how: str = "well") -> Any:
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), flag: T.Tensor((1,), "int32")):  # type: ignore[no-untyped-def, valid-type]
        with T.Kernel(1, threads=32):
            if how == "crashes":
                wild = T.make_tensor(T.int64(64), (n,), "float32")
                T.copy(wild, A)
            elif how == "hangs":
                while T.atomic_load(flag[0]) == 0:
                    pass
            elif how == "asserts":
                T.device_assert(flag[0] == 1, "no flag")
            else:
                for i in T.Parallel(n):
                    A[i] = A[i] + 1.0

    return main


@pytest.mark.parametrize("workers", [1, 2])
def test_a_crash_and_a_hang_are_failed_configurations(workers: int, tmp_path: Path) -> None:
    given = [np.zeros(8, np.float32), np.zeros(1, np.int32)]
    how = ["crashes", "well", *(["hangs"] if workers == 1 else []), "asserts"]  # waiting for it once is enough
    found = tune(misbehaving, {"how": how}, args=(8,), inputs=lambda k: given, warmup=0, rep=1, store=Store(tmp_path),
                 workers=workers, timeout=10)  # fmt: skip
    assert found.config == {"how": "well"} and found.latency > 0
    crashed, *hung, failed = (t.error or "" for t in found.failures)
    assert "SIG" in crashed and "Fatal" in crashed
    assert len(hung) == (workers == 1) and all("longer than 10 seconds" in h for h in hung)
    assert "device_assert failed: no flag" in failed
    assert not given[0].any(), "workers run on copies"
    stored = [json.loads(f.read_text()) for f in tmp_path.glob("*.json")]
    assert sorted("error" in s for s in stored) == [False, *[True] * (len(how) - 1)]
    again = tune(misbehaving, {"how": ["crashes", "well"]}, args=(8,), inputs=lambda k: given, store=Store(tmp_path))
    assert [t.stored for t in again.trials] == [False, True], "failures are tried again"


@tiledsl.jit(target="cpu")
def mixed(n: int, block: int = 8) -> Any:
    @T.prim_func
    def main(
        A: T.StridedTensor((n, 4), (T.dynamic("s"), 1), "bfloat16"),  # type: ignore[valid-type]
        W: T.Tensor((n, 4), "float4_e2m1fn"),  # type: ignore[valid-type]
        by: T.float32,  # type: ignore[valid-type]
        missing: T.Tensor((n,), "float32"),  # type: ignore[valid-type]
        E: T.Tensor((0,), "int8"),  # type: ignore[valid-type]
        B: T.Tensor((n, 4), "float32"),  # type: ignore[valid-type]
    ) -> None:
        with T.Kernel(1, threads=32):
            for k in T.serial(T.ceildiv(n, block)):
                for i, j in T.Parallel(block, 4):
                    B[k * block + i, j] = A[k * block + i, j] * by + W[k * block + i, j]
            T.device_assert(B[0, 1] == 2.5 and B[n - 1, 3] == 9.5 * (n - 1) + 0.5, "other numbers")

    return main


def test_workers_see_the_same_arguments(tmp_path: Path) -> None:
    """Strides, types that NumPy does not have, packed bytes, scalars, None and empty arrays; the kernel compares."""
    torch = pytest.importorskip("torch")
    wide = torch.zeros(9, 6, dtype=torch.bfloat16)
    wide[0, 1], wide[8, 3] = 1.0, 38.0
    packed = torch.full((9, 2), 0x11, dtype=torch.uint8)  # 0.5 everywhere
    given = [wide[:, :4], packed, 2.0, None, np.zeros(0, np.int8), np.zeros((9, 4), np.float32)]
    found = tune(mixed, {"block": [4, 8]}, args=(9,), inputs=lambda k: given, warmup=0, rep=1, store=Store(tmp_path))
    assert not found.failures and all(t.latency for t in found.trials)
    wrong = [wide[:, :4].float(), *given[1:]]
    with pytest.raises(TileRuntimeError, match=r"A: expected bfloat16\[9, 4\], got float32\[9, 4\]"):
        tune(mixed, {"block": [4, 8]}, args=(9,), inputs=lambda k: wrong, store=Store(tmp_path))


SCRIPT = """
import numpy as np
import tiledsl
import tiledsl.language as T
from tiledsl.tune import tune

print("imported once")


@tiledsl.jit(out_idx=[1])
def twice(n, block):
    by = 2.0

    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, block), threads=32) as bx:
            for i in T.Parallel(block):
                B[bx * block + i] = A[bx * block + i] * by

    return main


a = np.arange(100, dtype=np.float32)
configs = {"block": [16, 32, 64]}
found = tune(twice, configs, args=(100,), inputs=lambda k: [a], warmup=0, rep=1, progress=True, workers=2)
assert np.array_equal(found.kernel(a), 2 * a)
"""


def test_a_script_needs_no_main_guard_and_sees_progress(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    env = {**os.environ, "TILEDSL_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "imported once\n"
    assert "compiled 3 of 3" in done.stderr and "3/3 {'block': 64}: " in done.stderr
    assert len(list((tmp_path / "cache").rglob("tune/*.json"))) == 3


def test_kernels_of_addresses_are_measured_here(tmp_path: Path) -> None:
    def make(n: int) -> Any:
        @T.prim_func
        def main(P: T.Tensor((1,), T.ptr), B: T.Tensor((n,), "float32")):  # type: ignore[no-untyped-def, valid-type]
            with T.Kernel(1, threads=32):
                T.copy(T.make_tensor(P[0], (n,), "float32"), B)

        return tiledsl.compile(main, out_idx=[-1])

    a = np.arange(8, dtype=np.float32)
    found = tune(make, [{"n": 8}], inputs=lambda k: [np.array([a.ctypes.data])], store=Store(tmp_path), rep=1)
    assert np.array_equal(found.kernel(np.array([a.ctypes.data])), a) and not found.failures


def test_arrays_of_a_device_are_measured_here(tmp_path: Path) -> None:
    """As far as it goes without one: the error is that of a call in this process."""

    class OnDevice:
        shape, dtype = (33,), "float32"

        def __dlpack__(self, **_: Any) -> Any:
            raise BufferError("device memory")

        def __dlpack_device__(self) -> tuple[int, int]:
            return (4, 0)

    with pytest.raises(TileRuntimeError, match="lies on opencl, and the kernel runs on cpu"):
        tune(scaled, {"block": [8, 16]}, args=(33,), inputs=lambda k: [OnDevice()], store=Store(tmp_path), workers=2)
