"""TileLang programs, unchanged, through `tiledsl pytest` and `tiledsl run`: few processes, many programs each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")

from tiledsl.compat.port import report  # noqa: E402

PROGRAMS = Path(__file__).parent / "tilelang_programs"
NEVER = (*("-p", "no:cacheprovider"), "-q", "--no-header", "--tb=short")


def tiledsl(*args: str, cwd: Path = PROGRAMS, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tiledsl", *args],
        cwd=cwd, capture_output=True, text=True, timeout=600,
        env={**os.environ, "PYTHONPATH": str(PROGRAMS.parent.parent), **env},
    )  # fmt: skip


def passed(done: subprocess.CompletedProcess[str]) -> int:
    """How many tests passed; none failed."""
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    found = re.search(r"(\d+) passed", done.stdout)
    assert found, done.stdout
    return int(found[1])


@pytest.mark.slow
def test_all_programs_on_the_default_target() -> None:
    done = tiledsl("pytest", "--", *NEVER, "products.py", "rows.py", "traps.py", "hosts.py")
    assert passed(done) >= 35 and "1 skipped" in done.stdout  # requires_rocm


def test_traps_on_the_reference_and_in_workers() -> None:
    done = tiledsl("pytest", "--target", "numpy", "--", *NEVER, "-n", "1", "traps.py")
    assert passed(done) >= 11


def test_a_program_that_is_its_own_test() -> None:
    done = tiledsl("run", "products.py", *NEVER, "-k", "marks or eager_product")
    assert passed(done) == 2


def test_notices_are_given_once(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import tilelang, tilelang.language as T\n"
        "for _ in range(2):\n"
        "    @T.prim_func\n"
        "    def main(A: T.Tensor((4,), 'int32')):\n"
        "        with T.Kernel(1, threads=32, speed=9):\n"
        "            T.annotate_pass_configs({'tl.no_such_key': True, 'tl.disable_tma_lower': True})\n"
        "            k = 0\n"
        "            for i in T.serial(4):\n"
        "                k = k + 1\n"
        "                A[i] = k\n"
        "    tilelang.compile(main, target='cuda', made_up=1)\n"
    )
    done = tiledsl("run", "p.py", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for said in ("speed=9", "tl.no_such_key", "made_up", "every iteration begins with the value that k has"):
        assert done.stderr.count(said) == 1, done.stderr
    assert "disable_tma_lower" not in done.stderr and "p.py:9" in done.stderr


def test_port_reads_a_program_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "p.py").write_text(
        "import tilelang.language as T\n"
        "raise SystemExit('must not run')\n"
        "@T.prim_func\n"
        "def main(A: T.Tensor((4,), 'int32')):\n"
        "    with T.Kernel(1):\n"
        "        T.alloc_tmem([1], 'float32')\n"
        "        T.rng_init(1)\n"
        "        T.no_such_operation(1)\n"
    )
    done = tiledsl("port", "p.py", cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and len(lines) == 4, done.stdout + done.stderr
    assert report((tmp_path / "p.py").read_text(), "p.py") == (["Kernel", "Tensor", "prim_func"], lines[:3])
    assert lines[0].startswith("p.py:6: T.alloc_tmem is hardware-only")
    assert lines[1].startswith("p.py:7: T.rng_init is left out")
    assert lines[2].startswith("p.py:8: T.no_such_operation")
    assert tiledsl("port", "products.py", "rows.py", "hosts.py").returncode == 0


def test_the_support_list_of_the_docs() -> None:
    """Made anew by: tiledsl port --support."""
    text = (PROGRAMS.parent.parent / "docs" / "tilelang.md").read_text(encoding="utf-8")
    made = tiledsl("port", "--support")
    assert made.returncode == 0 and text.partition("<!-- support list -->\n")[2] == made.stdout
