"""Count logical lines of code per room against the budgets; fail above 1.3 times. Docstrings and comments are free.

The budgets keep the house small enough to be read. Also checked: no file of more than 600 lines becomes a habit (a
warning), a printer never has more (an error), and the null backend of the tests fits into 60 lines.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path
from typing import NamedTuple

FAIL_ABOVE = 1.3
FILE_LINES = 600
NULL_BACKEND = ("tests/null_backend.py", 60)
PRINTERS = ("backends/numba_cpu", "backends/llvm_cpu")


class Budget(NamedTuple):
    """A group of rooms that shares one number of code lines."""

    name: str
    lines: int
    rooms: tuple[str, ...]


BUDGETS = (
    Budget(
        "floors 0-3, backend, runtime",
        14000,  # the whole language, thread level included (docs/architecture.md says why not 9,000)
        (
            "tiledsl/__init__.py",
            "tiledsl/dtypes.py",
            "tiledsl/conversions.py",
            "tiledsl/errors.py",
            "tiledsl/config.py",
            "tiledsl/ir",
            "tiledsl/analysis",
            "tiledsl/passes",
            "tiledsl/interp",
            "tiledsl/language",
            "tiledsl/frontend",
            "tiledsl/backend.py",
            "backends/__init__.py",
            "backends/numpy_reference",
            "tiledsl/runtime",
        ),
    ),
    Budget("CPU lowering and printers", 5500, ("backends/cpu", "backends/numba_cpu", "backends/llvm_cpu")),
    Budget("SIMT and CUDA", 6000, ("backends/simt", "backends/cuda_nvrtc")),
    Budget("CUDA emulator", 2000, ("backends/cuda_emulator",)),
    *(
        Budget(f"leaf {leaf.removesuffix('.py')}", 3000, (f"tiledsl/{leaf}",))
        for leaf in (
            "kernels",
            "kernels/quant",
            "kernels/engram",
            "kernels/moe",
            "kernels/optim",
            "kernels/deepseek_v4",
            "testing",
            "tune",
            "viz",
            "compat",
            "torch",
            "demo",
            "torch.py",
            "bench",
            "demo.py",
            "doctor.py",
            "show.py",
            "surface.py",
            "__main__.py",
            "cli",
            "cli.py",
        )
    ),
)


def code_lines(path: Path) -> int:
    """Logical lines: one per statement or block header, however the formatter breaks it; docstrings, comments and
    blank lines are free."""
    text = path.read_text(encoding="utf-8")
    lines = sum(token.type == tokenize.NEWLINE for token in tokenize.generate_tokens(io.StringIO(text).readline))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                lines -= isinstance(first.value.value, str)
    return lines


def files(root: Path, room: str) -> list[Path]:
    """The room's own files: a room inside it that has a budget of its own counts there."""
    place = root / room
    inner = [root / other for budget in BUDGETS for other in budget.rooms if other.startswith(room + "/")]
    if place.is_file():
        return [place]
    return [p for p in sorted(place.rglob("*.py")) if not any(p.is_relative_to(i) for i in inner)]


def check(root: Path) -> tuple[list[str], list[str], list[str]]:
    """The table, the warnings and the errors of the tree at `root`."""
    table, warnings, errors = [], [], []
    counted: set[Path] = set()
    for budget in BUDGETS:
        rows = []
        for room in budget.rooms:
            paths = files(root, room)
            counted.update(paths)
            if paths:
                rows.append((room, len(paths), sum(map(code_lines, paths))))
        if not rows:
            continue
        total = sum(row[2] for row in rows)
        table.append(f"{budget.name:32} {total:6} of {budget.lines:5}  {total / budget.lines:4.0%}")
        if len(rows) > 1:
            table.extend(f"    {room:28} {lines:6}  in {n} file{'s' * (n > 1)}" for room, n, lines in rows)
        if total > FAIL_ABOVE * budget.lines:
            errors.append(f"{budget.name}: {total} code lines, budget {budget.lines}, limit {FAIL_ABOVE:g} times that")
        elif total > budget.lines:
            warnings.append(f"{budget.name}: {total} code lines are above the budget of {budget.lines}")

    everything = [p for top in ("tiledsl", "backends") for p in sorted((root / top).rglob("*.py"))]
    everything = [p for p in everything if not under_link(root, p)]
    for path in everything:
        name = path.relative_to(root).as_posix()
        if path not in counted:
            errors.append(f"{name}: belongs to no budget; add its room to the table in .ci/budgets.py")
        length = len(path.read_text(encoding="utf-8").splitlines())
        if length > FILE_LINES:
            (errors if name.startswith(PRINTERS) else warnings).append(
                f"{name}: {length} lines, more than {FILE_LINES}"
            )
    null, limit = root / NULL_BACKEND[0], NULL_BACKEND[1]
    if null.exists():
        length = code_lines(null)
        table.append(f"{'null backend':32} {length:6} of {limit:5}")
        if length > limit:
            errors.append(f"{NULL_BACKEND[0]}: {length} code lines, more than {limit}: the protocol has grown")
    return table, warnings, errors


def under_link(root: Path, path: Path) -> bool:
    return path.is_relative_to(root / "tiledsl" / "backends")


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    table, warnings, errors = check(root)
    print("\n".join([*table, *(f"warning: {w}" for w in warnings), *(f"error: {e}" for e in errors)]))
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
