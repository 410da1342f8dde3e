"""The examples run, on both targets, and check themselves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiledsl.backend import load_backend

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_examples_are_there() -> None:
    if not (ROOT / "examples").is_dir():
        pytest.skip("not in a checkout")
    assert [p.name[:2] for p in EXAMPLES] == ["01", "02", "03", "04"]


@pytest.mark.parametrize("target", ["numpy", "llvm"])
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example(path: Path, target: str) -> None:
    state = load_backend(target).probe()
    if not state.ok:
        pytest.skip(f"target {target} is not available: {state.reason}")
    places = [p for p in (os.environ.get("PYTHONPATH"),) if p]
    environment = {**os.environ, "TILEDSL_TARGET": target, "PYTHONPATH": os.pathsep.join(places)}
    run = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.strip(), "an example says what it found"
