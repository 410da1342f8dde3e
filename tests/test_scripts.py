"""What a plain script shows: prints of its kernels, and of uncaught errors the author's own frames."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAD = """
import numpy as np
import tiledsl
import tiledsl.language as T


@tiledsl.jit
def factory(n):
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), k: T.int32):
        with T.Kernel(2, threads=32) as bx:
            t = T.alloc_var("int32", 1)
            BODY

    return main


def host():
    factory(4)(np.arange(4, dtype=np.float32), 3, target="TARGET")


host()
"""


def script(folder: Path, body: str, target: str = "llvm", **env: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(HEAD.replace("BODY", body).replace("TARGET", target))
    return subprocess.run(
        [sys.executable, "script.py"], cwd=folder, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **env},
    )  # fmt: skip


@pytest.mark.parametrize("full", ["", "1"])
def test_an_uncaught_error_shows_the_authors_frames(tmp_path: Path, full: str) -> None:
    done = script(tmp_path, "T.gemm(A, A, A)", TILEDSL_FULL_TRACEBACK=full)
    frames = [line for line in done.stderr.splitlines() if line.startswith("  File ")]
    assert done.returncode == 1 and "T.gemm needs matrices" in done.stderr
    assert any("in host" in f for f in frames) and any("in main" in f for f in frames)
    assert any("tiledsl" + os.sep in f for f in frames) == bool(full)
    assert ("TILEDSL_FULL_TRACEBACK=1" in done.stderr) != bool(full)


def test_other_errors_are_shown_as_ever(tmp_path: Path) -> None:
    done = script(tmp_path, "raise KeyError(3)")
    assert "KeyError: 3" in done.stderr and "in trace_prim_func" in done.stderr


@pytest.mark.parametrize("target", ["llvm", "numpy"])
def test_prints_of_python(tmp_path: Path, target: str) -> None:
    """With run-time values `print` is T.print; without them it is Python's, while the kernel is traced."""
    body = "print('x', A[t]); print(f'{3:02d}', 1, sep='-'); print('k', k, bx); print(A)"
    done = script(tmp_path, body, target)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert lines == sorted(["03-1", *["x 1.0", "[0. 1. 2. 3.]"] * 2, "k 3 0", "k 3 1"])
