"""The command line: doctor, show, and how subcommands are found."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tiledsl import backend, config
from tiledsl.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent

PROGRAM = """
import numpy as np
import tiledsl
import tiledsl.language as T

m = T.dynamic("m")

@T.prim_func
def negate(X: T.Tensor((m,), "int32")):
    with T.Kernel(T.ceildiv(m, 32), threads=32) as bx:
        for i in T.Parallel(32):
            X[bx * 32 + i] = 0 - X[bx * 32 + i]

@tiledsl.jit(out_idx=-1)
def scale(n, by=2):
    @T.prim_func
    def main(X: T.Tensor((n,), "float32"), Y: T.Tensor((n,), "float32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(n):
                Y[i] = X[i] * by
    return main

@tiledsl.jit
def eager(A):
    N = T.const("N")
    A: T.Tensor[(N,), "float32"]
    C = T.empty((N,), "float32")
    with T.Kernel(1, threads=32):
        for i in T.Parallel(N):
            C[i] = A[i]
    return C

if __name__ == "__main__":
    raise SystemExit("show must not run the program")
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "kernels.py"
    path.write_text(PROGRAM)
    return str(path)


def run(capsys, *argv):
    code = main(argv)
    return code, capsys.readouterr().out


def test_show_every_kernel_of_a_file(file, capsys):
    code, out = run(capsys, "show", file)
    assert code == 0
    assert "def negate" in out and "T.Parallel" in out
    assert "# scale needs values" in out and "# eager needs values" in out and "eager.kernel(M=..., ...)" in out


def test_show_the_kernels_that_a_program_made(tmp_path, capsys):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM.partition("if __name__")[0] + "scale(5), scale(n=9), scale(5)\n")
    code, out = run(capsys, "show", f"{path}:scale")
    assert code == 0 and out.count("def main") == 2
    assert out.index("T.Tensor((5,)") < out.index("T.Tensor((9,)")
    assert "# scale" not in run(capsys, "show", str(path))[1]


def test_show_one_kernel_at_every_stage(file, capsys):
    assert "def negate" in run(capsys, "show", f"{file}:negate")[1]
    assert "T.Tensor((7,)" in run(capsys, "show", f"{file}:scale(7)")[1]
    assert "def eager" in run(capsys, "show", f"{file}:eager.kernel(N=5)")[1]
    if backend.load_backend("numba").probe().ok:
        assert run(capsys, "show", f"{file}:negate", "--stage", "loop", "--target", "numba")[0] == 0
        source = run(capsys, "show", f"{file}:negate", "--source", "--target", "numba")[1]
        assert "def " in source and "first" in source


@pytest.mark.parametrize(
    "argv, name",
    [
        (["show", "no_such_file.py"], "no_file"),
        (["show", "{file}:negat"], "unknown_kernel"),
        (["show", "{file}:np"], "not_a_kernel"),
        (["show", "{file}:scale"], "needs_values"),
        (["show", "{file}:eager"], "needs_const"),
        (["show", "{empty}"], "no_kernels"),
        (["show", "{file}:negate", "--stage", "loop", "--target", "numpy"], "no_loop_stage"),
    ],
)
def test_what_cannot_be_shown(file, tmp_path, capsys, golden, argv, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.py").write_text("x = 1\n")
    argv = [a.format(file="kernels.py", empty="empty.py") for a in argv]
    assert main(argv) == 1
    golden(f"errors/show_{name}", capsys.readouterr().err)


def test_doctor_as_json(capsys, tmp_path):
    with config.CACHE_DIR.override(str(tmp_path / "c")), config.NUM_THREADS.override(3):
        code, out = run(capsys, "doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["tiledsl"] == config.VERSION
    assert found["targets"]["numpy"]["available"] is True
    assert found["threads"]["used"] == 3 and found["threads"]["usable_cores"] >= 1
    assert found["cache"] == {
        "folder": str(tmp_path / "c"), "disabled": False, "problem": None, "artifacts": 0, "bytes": 0
    }  # fmt: skip
    assert not (tmp_path / "c").exists()  # asking creates nothing
    assert {k["name"] for k in found["knobs"]} == {k.env for k in config.KNOBS}


def test_doctor_says_why_a_target_is_missing(capsys, monkeypatch):
    gone = backend.Availability(False, "numba not installed", "pip install numba")
    for name in backend.CPU_TARGETS:
        monkeypatch.setattr(type(backend.load_backend(name)), "probe", lambda self: gone)
    backend._resolve.cache_clear()
    code, out = run(capsys, "doctor")
    backend._resolve.cache_clear()
    assert code == 0
    assert "no  numba" in out and "numba not installed" in out and "to get it: pip install numba" in out
    numpy_line = next(line for line in out.splitlines() if line.startswith("  yes numpy"))
    assert numpy_line.endswith("(default)") or os.environ.get("TILEDSL_TARGET")


def test_doctor_survives_a_wrong_knob(capsys, monkeypatch):
    monkeypatch.setenv("TILEDSL_NUM_THREADS", "many")
    code, out = run(capsys, "doctor")
    assert code == 1
    assert "error: TILEDSL_NUM_THREADS=many" in out


def test_every_knob_is_in_the_table():
    """No other variable of ours is read anywhere, and there are fewer than twenty."""
    assert len(config.KNOBS) < 20
    assert len({k.env for k in config.KNOBS}) == len(config.KNOBS)
    assert all(k.env.startswith("TILEDSL_") and k.help for k in config.KNOBS)
    listed = {v.env for v in vars(config).values() if isinstance(v, config.Knob)}
    assert listed == {k.env for k in config.KNOBS}
    read = set()
    for folder in ("tiledsl", "backends"):
        for path in (ROOT / folder).rglob("*.py"):
            read |= set(re.findall(r"TILEDSL_[A-Z_]+", path.read_text()))
    assert read - {"TILEDSL_BENCH_CHILD"} <= listed  # bench marks its own child process


def test_every_command_has_a_module_with_the_two_functions():
    there = {name for name, (module, _) in COMMANDS.items() if importlib.util.find_spec(module)}
    assert there >= {"doctor", "show"}  # a tree without the library has no demo
    for name in there:
        found = importlib.import_module(COMMANDS[name][0])
        assert callable(found.arguments) and callable(found.main), name
    assert all(help and not help.endswith(".") for _, help in COMMANDS.values())


@pytest.mark.parametrize("argv", [[], ["nonsense"], ["doctor", "--nonsense"]])
def test_wrong_commands_end_with_status_2(argv, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 2
    assert "usage: tiledsl" in capsys.readouterr().err


def test_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "tiledsl", "--version"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == f"tiledsl {config.VERSION}"


def test_show_runs_a_file_with_its_own_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the file prints is not on standard output, and it does not see the command's arguments."""
    file = tmp_path / "k.py"
    file.write_text(
        "import sys\nimport tiledsl.language as T\nprint('words', sys.argv[1:])\n\n"
        "@T.prim_func\ndef main(A: T.Tensor((4,), 'float32')):\n    with T.Kernel(1):\n        T.fill(A, 1.0)\n",
        encoding="utf-8",
    )
    assert main(["show", f"{file}:main"]) == 0
    printed = capsys.readouterr()
    assert "words []" in printed.err and "words" not in printed.out and "T.Kernel(1" in printed.out
