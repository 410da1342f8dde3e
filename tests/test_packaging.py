"""What is installed: the packages' list, the entry points, and an import that opens and loads nothing heavy."""

from __future__ import annotations

import importlib
import os
import re
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import tiledsl
from tiledsl import backend

ROOT = Path(__file__).parent.parent
HEAVY = ("numba", "llvmlite", "torch", "cuda", "matplotlib", "rich", "mpmath", "scipy")


@pytest.fixture
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def checkout() -> Path:
    if not (ROOT / "backends").is_dir():
        pytest.skip("not in a checkout")
    return ROOT


def test_every_package_is_listed(checkout: Path, project: dict[str, Any]) -> None:
    listed = project["tool"]["setuptools"]["packages"]
    on_disk = {
        ".".join((package, *path.parent.relative_to(folder).parts))
        for package, folder in (("tiledsl", checkout / "tiledsl"), ("tiledsl.backends", checkout / "backends"))
        for path in folder.rglob("*.py")
        if path.parts[: len(folder.parts) + 1] != (*folder.parts, "backends")
    }
    assert sorted(listed) == sorted(on_disk)


def test_every_data_file_is_listed(checkout: Path, project: dict[str, Any]) -> None:
    listed = {
        path
        for package, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in checkout.joinpath(*package.replace("tiledsl.backends", "backends").split(".")).glob(pattern)
    }
    on_disk = {
        path
        for folder in ("tiledsl", "backends")
        for path in (checkout / folder).rglob("*")
        if path.is_file()
        and path.suffix not in (".py", ".pyc")
        and not path.is_relative_to(checkout / "tiledsl" / "backends")
    }
    assert listed == on_disk


def test_installed_files() -> None:
    folder = Path(tiledsl.__file__).parent
    assert (folder / "py.typed").exists()


def test_version(project: dict[str, Any]) -> None:
    assert tiledsl.__version__ == project["project"]["version"]


def test_entry_points_are_the_built_in_backends(project: dict[str, Any]) -> None:
    assert project["project"]["entry-points"]["tiledsl.backends"] == dict(backend.BUILT_IN)


def test_entry_points_and_script_exist(project: dict[str, Any]) -> None:
    points = project["project"]["entry-points"]["tiledsl.backends"].values()
    for place in (*points, project["project"]["scripts"]["tiledsl"]):
        module, _, attribute = place.partition(":")
        assert hasattr(importlib.import_module(module), attribute), place


def test_no_folder_hides_a_library(checkout: Path) -> None:
    for folder in ("backends", "tests"):
        assert not [name for name in ("cuda", "numba") if (checkout / folder / name).is_dir()]


def test_backends_has_one_name(checkout: Path) -> None:
    environment = dict(os.environ, PYTHONPATH=str(checkout))
    run = subprocess.run(
        [sys.executable, "-c", "import backends"], cwd=checkout, env=environment, capture_output=True, text=True
    )
    assert run.returncode != 0 and "tiledsl.backends" in run.stderr


def python(code: str, bytecode: Path | None = None) -> str:
    """What a fresh interpreter prints. bytecode: where it keeps compiled modules, whatever the environment says."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    if bytecode is not None:
        environment |= {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = python("import tiledsl, tiledsl.language, sys; print(*sys.modules)").split()
    assert "tiledsl.language" in loaded
    assert not sorted({name.partition(".")[0] for name in loaded} & set(HEAVY))


def test_import_is_quick(tmp_path: Path) -> None:
    """Above NumPy's own import, of compiled modules as an installation has them; by processor time, so that a busy
    machine does not decide."""
    code = """if True:
        import numpy, ml_dtypes, time
        begin = time.process_time()
        import tiledsl, tiledsl.language
        print(time.process_time() - begin)
    """
    python(code, tmp_path)
    assert statistics.median(float(python(code, tmp_path)) for _ in range(3)) < 0.15


def test_pre_commit_pins_the_same_tools(checkout: Path, project: dict[str, Any]) -> None:
    hooks = (checkout / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    pinned = [r for r in project["project"]["optional-dependencies"]["test"] if "==" in r]
    assert sorted(pinned) == sorted(set(re.findall(r'"(\w+==[\d.]+)"', hooks)))
