"""The deletion test: without the leaves and the accelerator backends, the tests of the core still pass.

A copy of the tree loses the rooms of REMOVED and every test that imports one of them (or imports an example, since
examples use the library). What is left must pass: a few tests of every file, since only an import can be missing.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

REMOVED = (
    "tiledsl/kernels",
    "tiledsl/compat",
    "tiledsl/tune",
    "tiledsl/viz",
    "tiledsl/torch",
    "tiledsl/demo",
    "backends/simt",
    "backends/cuda_nvrtc",
    "backends/cuda_emulator",
)
# Tests of the repository rather than of the core; in a copy without .ci/ and docs/ they would only be skipped.
NOT_CORE = frozenset({"test_ci_tools.py", "test_examples.py", "test_packaging.py", "test_readme.py"})
NEEDED = ("tiledsl", "backends", "tests", "docs", "pyproject.toml")
# At least so many tests must be left; an empty run proves nothing.
CORE_TESTS = 50


def removed_modules() -> frozenset[str]:
    return frozenset(
        (place if place.startswith("tiledsl") else f"tiledsl/{place}").replace("/", ".") for place in REMOVED
    )


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a file imports, `from a import b` as a.b, and importlib calls with a literal;
    attributes of tiledsl too, for these import lazily."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "importorskip")):
            yield from (a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "tiledsl":
            yield f"tiledsl.{node.attr}"


def uses_removed(path: Path) -> bool:
    gone = removed_modules()
    return any(name == g or name.startswith(g + ".") for name in imported(path) for g in gone)


def copy_without(root: Path, place: Path) -> int:
    """Copy the tree without the removed rooms and their tests; the number of test files left."""
    for name in NEEDED:
        source = root / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "backends" if name == "tiledsl" else "")
            shutil.copytree(source, place / name, ignore=ignore)
        else:
            shutil.copy(source, place / name)
    (place / "tiledsl" / "backends").symlink_to(Path("..") / "backends")
    for name in REMOVED:
        shutil.rmtree(place / name, ignore_errors=True)
        (place / f"{name}.py").unlink(missing_ok=True)
    tests = sorted((place / "tests").rglob("test_*.py"))
    for path in tests:
        if path.name in NOT_CORE or uses_removed(path):
            path.unlink()
    return sum(path.exists() for path in tests)


def main() -> int:
    root = Path(__file__).parent.parent.resolve()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        left = copy_without(root, place)
        print(f"deletion test: {left} test files do not need {', '.join(REMOVED)}", flush=True)
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "sample", "-m", "not slow", *sys.argv[1:]]
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(place), str(root / ".ci")]))
        where = [sys.executable, "-c", "import tiledsl.backends as b; print(b.__file__)"]
        used = subprocess.run(where, cwd=place, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        if not Path(used.strip()).resolve().is_relative_to(place.resolve()):
            print(f"error: the copy was not used, but {used}")
            return 1
        run = subprocess.run(command, cwd=place, env=environment, stdout=subprocess.PIPE, text=True)
        print(run.stdout, end="")
        passed = re.search(r"(\d+) passed", run.stdout)
        if run.returncode == 0 and int(passed[1] if passed else 0) < CORE_TESTS:
            print(f"error: fewer than {CORE_TESTS} tests of the core ran")
            return 1
        return run.returncode


if __name__ == "__main__":
    sys.exit(main())
