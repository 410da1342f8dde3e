"""Which `tilelang` a program gets: that of `tiledsl run` and `tiledsl pytest`, whatever else is called so."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("tiledsl.compat")

WRONG = "raise ImportError('another tilelang')\n"
ALSO = "import os, tilelang, tvm, tilelang.language; print(tilelang.__version__, os.environ['TILEDSL_PRETEND'])"

PROGRAM = f"""
import concurrent.futures
import importlib.metadata
import importlib.util
import multiprocessing
import os
import subprocess
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import tilelang
import tvm
from tilelang import language as T

ALSO = {ALSO!r}


def child(number):
    import tilelang
    import torch

    return number, tilelang.__version__, torch.ones(1, device="cuda").is_cuda


def started(*args, **kw):
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, check=True, **kw).stdout.split()


if __name__ == "__main__":
    want = [tilelang.__version__, "9.0"]
    assert importlib.metadata.version("tilelang") == tilelang.__version__
    assert importlib.util.find_spec("tilelang").origin == tilelang.__file__
    here = os.path.dirname(os.path.abspath(__file__))
    assert started("-c", ALSO) == want
    assert started("-m", "also", cwd=here) == want
    assert started(os.path.join(here, "also.py"), env={{}}) == want
    assert started("-c", ALSO, env={{**os.environ, "PYTHONPATH": here}}, cwd="/") == want
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {{ALSO!r}}], env={{{{}}}}, check=True)"
    assert started("-c", nested, env={{}}, cwd=here) == want
    kept = os.environ["PYTHONPATH"]
    os.environ["PYTHONPATH"] = here
    assert started("-c", ALSO, cwd=here) == want
    os.environ["PYTHONPATH"] = kept
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(child, [3])) == [(3, tilelang.__version__, True)]
    print("all of them", sys.argv[1:])
"""

TEST = """
import os
import sys

import helper
import tilelang
import tilelang.testing
import torch


def test_where():
    assert "another" not in (tilelang.__doc__ or "") and helper.tilelang is tilelang
    assert torch.ones(2, device="cuda").is_cuda and os.environ.get("PYTEST_XDIST_WORKER", "gw").startswith("gw")


if __name__ == "__main__":
    tilelang.testing.main()
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with packages of these names, as a checkout of TileLang has, and programs beside them."""
    for name in ("tilelang", "tvm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(WRONG)
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "also.py").write_text(ALSO)
    (tmp_path / "helper.py").write_text("import tilelang\n")
    (tmp_path / "test_it.py").write_text(TEST)
    (tmp_path / "conftest.py").write_text("import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\n")
    return tmp_path


def run(*args: str, cwd: Path, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tiledsl", *args], cwd=cwd, capture_output=True, text=True, timeout=300,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **env},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def test_a_folder_beside_the_script_and_children_of_all_kinds(checkout: Path, tmp_path_factory) -> None:
    assert run("run", "program.py", "a", "--b", cwd=checkout) == "all of them ['a', '--b']\n"
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    assert run("run", str(checkout / "also.py"), cwd=elsewhere).endswith(" 9.0\n")
    assert run("run", "--capability", "8.6", "-m", "also", cwd=checkout).endswith(" 8.6\n")


def test_a_package_that_is_installed_by_a_finder_of_its_own(checkout: Path) -> None:
    """As editable installs are; it comes before everything on the path."""
    site = checkout / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import importlib.util, sys\n"
        "class Editable:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        place = {str(checkout / 'tilelang' / '__init__.py')!r}\n"
        "        return importlib.util.spec_from_file_location(name, place) if name == 'tilelang' else None\n"
        "sys.meta_path.insert(0, Editable())\n"
    )
    path = os.pathsep.join([str(site), str(Path(__file__).parents[1])])
    assert "all of them" in run("run", "program.py", cwd=checkout, PYTHONPATH=path)


def test_tests_their_workers_and_their_conftest(checkout: Path) -> None:
    quiet = ("-q", "-p", "no:cacheprovider")
    assert "1 passed" in run("pytest", "--", *quiet, "test_it.py", cwd=checkout)
    assert "1 passed" in run("pytest", "--", *quiet, "-n", "1", "test_it.py", cwd=checkout)
    assert "1 passed" in run("run", "-m", "pytest", *quiet, "test_it.py", cwd=checkout)
    assert "1 passed" in run("run", "test_it.py", *quiet, cwd=checkout)
