"""Plants mistakes in the compiler and looks whether its tests notice: `python tests/fuzz/mutation.py --count 200`.

Works in a copy of the repository. Each mutant changes one place (an operator, a constant, a condition, a lost
statement) or undoes one of the fixes in PLANTED; the tests that are mapped to its room get 60 seconds. Prints a report
and writes it to .fuzz/mutation.json: killed, survived (with the changed line), and how long. Not part of `make test`.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60.0
_CPU = (
    "tests/fuzz/test_regressions.py",
    "tests/fuzz/test_survivors.py",
    "tests/fuzz/test_conformance.py::test_numba_conforms",
    "tests/fuzz/test_fuzz.py::test_interpreter_and_passes[0]",
    "tests/test_numba_ops.py",
)
_PASSES = ("tests/test_bounds.py", "tests/test_passes_semantics.py", "tests/fuzz/test_regressions.py",
           "tests/fuzz/test_fuzz.py::test_interpreter_and_passes[0]")  # fmt: skip
# Room -> the tests that should notice, the quickest first.
MAPPED: dict[str, tuple[str, ...]] = {
    "tiledsl/frontend": ("tests/test_frontend.py", "tests/fuzz/test_regressions.py", "tests/test_frontend_python.py",
                         "tests/test_frontend_errors.py",
                         "tests/test_language.py", "tests/test_ir_text.py"),
    "tiledsl/language": ("tests/test_language.py", "tests/test_frontend_errors.py", "tests/properties/test_corners.py"),
    "tiledsl/passes": _PASSES,
    "tiledsl/analysis": _PASSES,
    "tiledsl/conversions.py": ("tests/test_conversions.py",),
    "tiledsl/interp": ("tests/test_interp.py", "tests/test_interp_lanes.py", "tests/test_interp_checks.py",
                       "tests/test_interp_shadow.py", "tests/test_language.py", "tests/fuzz/test_regressions.py"),
    "tiledsl/runtime/cache.py": ("tests/test_cache.py",),
    "tiledsl/runtime/program.py": ("tests/test_cache.py", "tests/test_runtime_jit.py"),
    "tiledsl/runtime/arguments.py": ("tests/test_binding.py", "tests/test_runtime_launch.py"),
    "backends/cpu": _CPU,
    "backends/cpu/emit": ("tests/test_emit_micro.py", *_CPU),
    "backends/numba_cpu": ("tests/test_numba_printer.py", *_CPU),
}  # fmt: skip

# (file, what stands there, what a mistake would be): undone fixes and the classics
PLANTED: tuple[tuple[str, str, str], ...] = (
    ("backends/cpu/nest.py", " | _allocated_inside(p)", ""),
    ("backends/cpu/emit/values.py", "            _keep(b, v)\n", "            pass\n"),
    ("tiledsl/passes/expand_moves.py", "build.same_type(_signed(index), v)", "build.same_type(index, v)"),
    ("tiledsl/frontend/rewrite.py", "function.name in code.co_names", "False"),
    ("backends/cpu/lower.py", 'if s.var.type.name == "uint64"', "if False"),
    ("backends/cpu/nest.py", 'ir.Binary("lt", ir.Ramp(full, 1, LANES)', 'ir.Binary("le", ir.Ramp(full, 1, LANES)'),
    ("backends/cpu/values.py", "round_to(out, t)\n    return Lane(out, 0 if a", "out\n    return Lane(out, 0 if a"),
    ("backends/cpu/values.py", "lane.mask = and_(lane.mask, self.mask)", "pass"),
    ("backends/cpu/values.py", "any(v in lane.inner for v in free_vars(e))", "False"),
    ("backends/cpu/values.py", "any(ld.buffer.root in lane.written for ld in loads_of(e))", "False"),
    ("backends/cpu/values.py", "op in _MAY_WRAP and not _fits(cx, e)", "op in _MAY_WRAP and False"),
    ("backends/cpu/emit/convert.py", "constant(u32, 0x7FFF)", "constant(u32, 0x8000)"),
    ("tiledsl/passes/expand_moves.py", "build.lt(index, extent)", "build.le(index, extent)"),
)  # fmt: skip


@dataclass
class Mutant:
    """One change: text[start:end] of a file becomes `new`."""

    file: str
    line: int
    old: str
    new: str
    start: int
    end: int
    state: str = ""
    by: str = ""
    seconds: float = 0.0


_REFUSING = ("error", "require", "InternalError")
_SILENT = (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr, ast.AnnAssign, ast.arguments)

# -- making mutants ----------------------------------------------------------------------------------------------------

_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
           ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift}  # fmt: skip
_WORDS = {"lt": "le", "le": "lt", "add": "sub", "sub": "add", "min": "max", "max": "min", "and": "or", "or": "and",
          "floordiv": "truncdiv", "shl": "shr", "eq": "ne"}  # fmt: skip


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """All changes of one file, in order."""
    offsets = [0]
    for row in text.encode().splitlines(keepends=True):
        offsets.append(offsets[-1] + len(row))
    for n in _executable(ast.parse(text)):
        new = _changed(n)
        if new is not None:
            start = offsets[n.lineno - 1] + n.col_offset
            end = offsets[(n.end_lineno or n.lineno) - 1] + (n.end_col_offset or 0)
            yield Mutant(file, n.lineno, text.encode()[start:end].decode(), new, start, end)


def _executable(tree: ast.AST) -> Iterator[ast.expr | ast.stmt]:
    """Nodes that decide what is computed: no annotations, errors, docstrings, imports or texts of messages."""
    for n in ast.iter_child_nodes(tree):
        if isinstance(
            n, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr, ast.AnnAssign, ast.arguments)
        ):
            if isinstance(n, ast.AnnAssign) and n.value is not None:
                yield from _executable(n.value)
            continue
        if (
            isinstance(n, ast.Call)
            and isinstance(n.func, ast.Name)
            and n.func.id in ("error", "require", "InternalError")
        ):
            continue
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant):
            continue
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test):
            continue
        if isinstance(n, (ast.expr, ast.stmt)):
            yield n
        if isinstance(n, ast.Subscript) and isinstance(n.value, ast.Name) and n.value.id[0].isupper():
            continue
        yield from _executable(n)


def _changed(n: ast.AST) -> str | None:
    """The mutated text of a node, or None."""
    if isinstance(n, ast.Compare) and len(n.ops) == 1 and type(n.ops[0]) in _COMPARE:
        return f"({ast.unparse(ast.Compare(n.left, [_COMPARE[type(n.ops[0])]()], n.comparators))})"
    if isinstance(n, ast.BinOp) and type(n.op) in _BINARY and not isinstance(n.left, (ast.Constant, ast.List)):
        return f"({ast.unparse(ast.BinOp(n.left, _BINARY[type(n.op)](), n.right))})"
    if isinstance(n, ast.BoolOp):
        other = ast.Or() if isinstance(n.op, ast.And) else ast.And()
        return f"({ast.unparse(ast.BoolOp(other, n.values))})"
    if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.Not):
        return f"({ast.unparse(n.operand)})"
    if isinstance(n, ast.IfExp):
        return f"({ast.unparse(ast.IfExp(n.test, n.orelse, n.body))})"
    if isinstance(n, ast.Constant) and type(n.value) is int and abs(n.value) < 1 << 16:
        return str(n.value + 1)
    if isinstance(n, ast.Constant) and type(n.value) is bool:
        return str(not n.value)
    if isinstance(n, ast.Constant) and isinstance(n.value, str) and n.value in _WORDS:
        return repr(_WORDS[n.value])
    if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call):
        return "pass"  # a lost effect
    return None


def planted(root: Path) -> Iterator[Mutant]:
    for file, old, new in PLANTED:
        text = (root / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            print(f"planted mutant does not apply: {file}: {old!r}", file=sys.stderr)
            continue
        start = len(text[: text.index(old)].encode())
        yield Mutant(file, text[: text.index(old)].count("\n") + 1, old, new, start, start + len(old.encode()))


# -- running them ------------------------------------------------------------------------------------------------------


def tests_for(file: str) -> tuple[str, ...]:
    room = max((r for r in MAPPED if file == r or file.startswith(f"{r}/")), key=len, default="")
    return MAPPED.get(room, ())


def run(root: Path, m: Mutant) -> None:
    path = root / m.file
    before = path.read_bytes()
    path.write_bytes(before[: m.start] + m.new.encode() + before[m.end :])
    begin = time.monotonic()
    m.state = "survived"
    # The process hangs when a loop no longer ends: that counts as noticed. Its group is ended with it.
    environment = {**os.environ, "PYTHONPATH": str(root), "CI": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    files = [t for t in tests_for(m.file) if (root / t.partition("::")[0]).exists()]
    process = subprocess.Popen([*command, *files], cwd=root, env=environment, stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
    try:
        out, _ = process.communicate(timeout=SECONDS)
        if process.returncode:
            m.state = "killed"
            failed = [x for x in out.splitlines() if x.startswith(("FAILED", "ERROR", "E  "))]
            m.by = (failed[-1] if failed else out[-200:])[:120]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        m.state = "unfinished"  # the tests need longer than 60 seconds, or they hang
    finally:
        path.write_bytes(before)
    m.seconds = round(time.monotonic() - begin, 1)


def sources(root: Path) -> list[str]:
    found: list[str] = []
    for room in MAPPED:
        path = root / room
        files = [path] if path.suffix else sorted(path.glob("*.py"))
        found += [str(f.relative_to(root)) for f in files if f.name != "__init__.py"]
    return sorted(set(found))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=200, help="drawn mutants, besides the planted ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rooms", default="", help="only files whose paths begin like one of these, comma-separated")
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--report", type=Path, default=ROOT / ".fuzz" / "mutation.json")
    given = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="tiledsl-mutation-") as folder:
        root = Path(folder) / "copy"
        ignore = shutil.ignore_patterns(".git", ".venv", ".fuzz", "__pycache__", ".*_cache", ".hypothesis")
        shutil.copytree(ROOT, root, symlinks=True, ignore=ignore)
        rooms = tuple(r for r in given.rooms.split(",") if r)
        files = [f for f in sources(root) if not rooms or f.startswith(rooms)]
        every = [m for f in files for m in mutants(f, (root / f).read_text(encoding="utf-8"))]
        chosen = [m for m in planted(root) if not rooms or m.file.startswith(rooms)]
        chosen += random.Random(given.seed).sample(every, min(given.count, len(every)))
        end = time.monotonic() + 60 * given.minutes
        done: list[Mutant] = []
        for m in chosen:
            if time.monotonic() > end:
                break
            run(root, m)
            done.append(m)
            killed = sum(x.state == "killed" for x in done)
            print(f"{len(done)}/{len(chosen)} {m.state:10} {m.seconds:5.1f} s  {m.file}:{m.line}  {m.old[:40]!r} -> "
                  f"{m.new[:40]!r}   ({killed} killed)", flush=True)  # fmt: skip
    counts = {s: sum(m.state == s for m in done) for s in ("killed", "survived", "unfinished")}
    given.report.parent.mkdir(parents=True, exist_ok=True)
    given.report.write_text(
        json.dumps({"counts": counts, "possible": len(every), "mutants": [asdict(m) for m in done]}, indent=1)
    )
    print(f"{counts} of {len(done)} mutants; {len(every)} are possible. Survivors:")
    for m in done:
        if m.state != "killed":
            print(f"  {m.state}: {m.file}:{m.line}: {m.old!r} -> {m.new!r}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
