"""The example backend: built as a wheel of its own, found through its entry point, and conforming."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "examples" / "backend_plugin"
LONGEST = 900  # seconds; about one minute of an idle core
CHECK = r"""
from tiledsl.backend import backends
from tiledsl.testing import conformance
assert backends()["loops"] == "tiledsl_loops:backend"
report = conformance("loops", rounds=1, show=lambda case: print("case", case, flush=True))
assert report.ok and not report.failed, str(report)
assert not report.skipped, report.skipped
print(report)
"""


@pytest.mark.slow
def test_the_example_backend_conforms(tmp_path: Path) -> None:
    if not PLUGIN.is_dir():
        pytest.skip("not in a checkout")
    pytest.importorskip("setuptools")
    pytest.importorskip("pip")
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(PLUGIN, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    wheel = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(source)]
    subprocess.run(wheel, check=True, capture_output=True, text=True)
    (built,) = tmp_path.glob("*.whl")
    install = [*pip, "install", "--no-deps", "--no-index", "--target", str(site), str(built)]
    subprocess.run(install, check=True, capture_output=True, text=True)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}
    out = tmp_path / "out"
    with out.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                [sys.executable, "-c", CHECK], env=environment, stdout=file, stderr=file, timeout=LONGEST
            )
        except subprocess.TimeoutExpired:
            cases = [line for line in out.read_text("utf-8").splitlines() if line.startswith("case ")]
            pytest.fail(f"still at {cases[-1:]} after {LONGEST} s")
    assert done.returncode == 0, out.read_text("utf-8")
    assert "0 failed" in out.read_text("utf-8")
