"""The checks of .ci/ themselves: each must find what it is there to find."""

from __future__ import annotations

import ast
import importlib.util
import os
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent


def tool(name: str) -> ModuleType:
    path = ROOT / ".ci" / f"{name}.py"
    if not path.exists():
        pytest.skip("not in a checkout")
    spec = importlib.util.spec_from_file_location(f"ci_{name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("tiledsl/dtypes.py", "from tiledsl.ir import Load", "floor 0 imports tiledsl.ir of floor 1"),
        ("tiledsl/ir/node.py", "def f():\n    import tiledsl.passes.fold", "floor 1 imports tiledsl.passes.fold"),
        ("tiledsl/ir/node.py", "from ..runtime import jit", "floor 1 imports tiledsl.runtime of floor 5"),
        ("tiledsl/analysis/bounds.py", "from tiledsl import interp", "floor 2 imports tiledsl.interp of floor 2"),
        ("tiledsl/runtime/jit.py", "import tiledsl", "floor 5 imports tiledsl of floor 7"),
        ("tiledsl/kernels/gemm.py", "from tiledsl.ir.expr import Load", "reaches into tiledsl.ir.expr"),
        ("tiledsl/novel.py", "from tiledsl import ir", "'novel' is on no floor"),
        ("backends/cpu/lower.py", "from tiledsl.frontend import trace", "blind to frontend"),
        ("backends/cpu/lower.py", "from ...runtime import pool", "floor 4 imports tiledsl.runtime of floor 5"),
        ("backends/numba_cpu/text.py", "from ..llvm_cpu import text", "'numba_cpu' imports backend room 'llvm_cpu'"),
    ],
)
def test_floors_refuses(tmp_path: Path, name: str, text: str, words: str) -> None:
    write(tmp_path, {"tiledsl/ir/expr.py": "", "backends/cpu/emit/gemm.py": "", "backends/llvm_cpu/text.py": ""})
    complaints = tool("floors").check(write(tmp_path, {name: text}))
    assert len(complaints) == 1 and complaints[0].startswith(f"{name}:") and words in complaints[0]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("tiledsl/ir/node.py", "import numpy\nfrom tiledsl.dtypes import DType\nfrom .expr import Load"),
        ("tiledsl/passes/fold.py", "from tiledsl import interp\nfrom tiledsl.analysis.bounds import prove"),
        ("tiledsl/kernels/gemm.py", "import tiledsl\nimport tiledsl.language as T\nfrom . import tables"),
        ("backends/numba_cpu/text.py", "from ..cpu.emit import gemm\nfrom tiledsl.ir.expr import Load"),
        ("tiledsl/__init__.py", "from tiledsl.runtime.jit import jit"),
    ],
)
def test_floors_accepts(tmp_path: Path, name: str, text: str) -> None:
    write(tmp_path, {"tiledsl/ir/expr.py": "", "backends/cpu/emit/gemm.py": ""})
    assert tool("floors").check(write(tmp_path, {name: text})) == []


def test_floors_does_not_follow_the_link(tmp_path: Path) -> None:
    write(tmp_path, {"tiledsl/__init__.py": "", "backends/cpu/lower.py": ""})
    os.symlink("../backends", tmp_path / "tiledsl" / "backends")
    assert sorted(tool("floors").modules(tmp_path)) == ["tiledsl", "tiledsl.backends.cpu.lower"]


def test_code_lines_are_free_of_prose(tmp_path: Path) -> None:
    head = '"""Room.\n\nMore.\n"""\n\n# why\nx = [\n    1,  # one\n]\n'
    tail = '\n\ndef f():\n    """Doc."""\n    return """a\nb"""\n'
    write(tmp_path, {"a.py": head + tail})
    assert tool("budgets").code_lines(tmp_path / "a.py") == 3


@pytest.mark.parametrize(
    ("share", "more", "warned", "failed"), [(1, 0, 0, 0), (1, 1, 1, 0), (1.3, 0, 1, 0), (1.3, 1, 0, 1)]
)
def test_budgets_warn_and_fail(tmp_path: Path, share: float, more: int, warned: int, failed: int) -> None:
    lines = round(share * tool("budgets").BUDGETS[0].lines) + more
    parts = {f"tiledsl/ir/f{i}.py": "x = 1\n" * 500 for i in range(lines // 500)}
    parts["tiledsl/ir/rest.py"] = "x = 1\n" * (lines % 500)
    _, warnings, errors = tool("budgets").check(write(tmp_path, parts))
    assert (len(warnings), len(errors)) == (warned, failed)


def test_budgets_refuse_homeless_files_long_printers_and_a_grown_protocol(tmp_path: Path) -> None:
    files = {
        "tiledsl/novel.py": "x = 1\n",
        "backends/numba_cpu/text.py": "\n" * 601,
        "tests/null_backend.py": "x = 1\n" * 61,
    }
    _, _, errors = tool("budgets").check(write(tmp_path, files))
    assert [e.partition(":")[0] for e in errors] == list(files)


def test_deletion_finds_the_tests_that_need_a_removed_room(tmp_path: Path) -> None:
    deletion = tool("deletion")
    texts = {
        "a.py": "from tiledsl import kernels",
        "b.py": "def test():\n    import tiledsl.kernels.matmul",
        "c.py": "from tiledsl.backends import simt",
        "d.py": "import importlib\nimportlib.import_module('tiledsl.viz')",
        "e.py": "from tiledsl import kernels_for_tests, torchlike\nimport torch",
    }
    write(tmp_path, texts)
    assert [name for name in texts if deletion.uses_removed(tmp_path / name)] == ["a.py", "b.py", "c.py", "d.py"]


def test_goldens_match_messages_to_files(tmp_path: Path) -> None:
    goldens = tool("goldens")
    write(
        tmp_path,
        {
            "tiledsl/frontend/a.py": "raise TileTypeError(f'gemm: inner {a} and {b} differ', loc)\n"
            "raise self.fail(errors.TileNameError, 'undefined name ' + name)\n"
            "raise TileValueError(words)\n"
            "raise ValueError('not ours')\n"
            "isinstance(e, TileTypeError)\n",
        },
    )
    found = list(goldens.diagnostics(tmp_path))
    assert [d.place.rpartition(":")[2] for d in found] == ["1", "2", "3"]
    assert [d.pattern is None for d in found] == [False, False, True]
    import re

    assert re.search(found[0].pattern, "x: gemm: inner 32 and 64 differ")
    assert re.search(found[1].pattern, "undefined name 'y'")


@pytest.mark.parametrize(
    ("version", "requires", "cpu"),
    [
        ("2.13.0+cpu", ["filelock", "sympy>=1.13"], True),
        ("2.13.0", ["filelock", 'nvidia-nccl; sys_platform == "nowhere"'], True),
        ("2.13.0", ["filelock", "nvidia-nccl-any==2"], False),
        ("2.13.0", ["cuda-toolkit[all]"], False),
        ("2.13.0+cu130", ["filelock"], False),
        ("2.13.0", ['nvidia-x; extra == "gpu"'], True),
    ],
)
def test_only_a_cpu_build_of_torch_is_accepted(version: str, requires: list[str], cpu: bool) -> None:
    pytest.importorskip("packaging")
    assert tool("cpu_torch").is_cpu_build({"version": version, "requires_dist": requires}) is cpu


def test_tools_read_every_file_of_the_tree() -> None:
    """The trees that the tools walk are those that exist: nothing is skipped because a folder was renamed."""
    names = set(tool("floors").modules(ROOT))
    assert {"tiledsl", "tiledsl.ir.expr", "tiledsl.backends"} <= names
    for path in (ROOT / ".ci").glob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def test_golden_compares_and_updates(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile("def test(golden):\n    golden('errors/a', 'one')")
    pytester.runpytest().assert_outcomes(failed=1)
    pytester.runpytest("--update-golden").assert_outcomes(passed=1)
    pytester.runpytest().assert_outcomes(passed=1)
    pytester.makepyfile("def test(golden):\n    golden('errors/a', 'two')")
    pytester.runpytest().assert_outcomes(failed=1)


def test_skips_are_counted_by_reason(pytester: pytest.Pytester) -> None:
    pytester.makeconftest((Path(__file__).parent / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(
        "import pytest\n@pytest.mark.parametrize('i', [1, 2])\ndef test(i):\n    pytest.skip('no torch')"
    )
    pytester.runpytest().stdout.fnmatch_lines(["*skipped: 2*", "*2 no torch", "*2 skipped*"])


@pytest.mark.parametrize(("count", "size"), [(0, 0), (1, 1), (3, 3), (4, 3), (1000, 3)])
def test_sample_is_spread(count: int, size: int) -> None:
    chosen = tool("sample").chosen(count)
    assert len(chosen) == size and chosen <= set(range(count))
    assert not count or {0, count - 1} <= chosen
    assert tool("sample").chosen(count, 1) == set(range(count)[:1])
