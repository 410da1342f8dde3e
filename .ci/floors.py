"""Imports go only down the floors: read every module's imports from its syntax tree and compare them with the table.

A room may import rooms of lower floors, and rooms that stand before it on its own floor. Imports inside functions and
under TYPE_CHECKING count as well: a dependency is a dependency. Leaves may import each other's and lower rooms' front
doors only (the package, never a module inside it); tools for looking at the house may look inside.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

# Rooms of a floor in the order in which they may see each other.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "dtypes", "conversions", "config"),
    ("ir",),
    ("analysis", "interp", "passes"),
    ("frontend", "language"),
    ("backend", "backends"),
    ("runtime",),
    (
        "testing",
        "kernels",
        "tune",
        "surface",
        "viz",
        "compat",
        "torch",
        "bench",
        "demo",
        "doctor",
        "show",
        "cli",
        "__main__",
    ),
)
FACADE = "tiledsl"  # tiledsl/__init__.py: above everything; only leaves may import it
LEAVES = frozenset(FLOORS[6])
TOOLS = frozenset({"testing", "bench", "doctor", "show"})  # leaves that look inside: their subject is the house itself
# What a room may not see although it lies below: a backend gets finished IR and never asks where it came from.
# A second surface takes from the core what others can have too.
BLIND = {
    "backends": frozenset({"language", "frontend"}),
    "compat": frozenset({"ir", "analysis", "interp", "passes", "frontend", "backends", "runtime"}),
}
# Rooms inside backends/, in order; a printer sees the lowering that feeds it, and not the other printer.
BACKEND_ROOMS = {
    "numpy_reference": frozenset[str](),
    "cpu": frozenset[str](),
    "numba_cpu": frozenset({"cpu"}),
    "llvm_cpu": frozenset({"cpu"}),
    "simt": frozenset({"cpu"}),  # how threads are spread over nests
    "cuda_nvrtc": frozenset({"simt"}),
    "cuda_emulator": frozenset({"simt"}),
}


class Import(NamedTuple):
    """One imported module: the line it is written in and its full dotted name."""

    line: int
    name: str


def modules(root: Path) -> dict[str, Path]:
    """Every module of the package by dotted name; backends/ is read where it lies, not through the link."""
    found: dict[str, Path] = {}
    for package, folder in (("tiledsl", root / "tiledsl"), ("tiledsl.backends", root / "backends")):
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "tiledsl" and parts[0] == "backends":
                continue
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def imports(name: str, path: Path, known: dict[str, Path]) -> Iterator[Import]:
    """The modules that `path` imports; `from package import module` counts as the module."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]

    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(node.lineno, alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base]).rstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                is_module = inner in known or (base == FACADE and height(alias.name) is not None)
                yield Import(node.lineno, inner if is_module else base)


def room(name: str) -> str:
    """The room of a dotted module name: the part after `tiledsl`."""
    parts = name.split(".")
    return parts[1] if len(parts) > 1 else FACADE


def height(name: str) -> tuple[int, int] | None:
    """Floor and place on the floor; None for a room that the table does not have."""
    if name == FACADE:
        return (len(FLOORS), 0)
    return next(((f, rooms.index(name)) for f, rooms in enumerate(FLOORS) if name in rooms), None)


def complaint(name: str, target: Import) -> str | None:
    """Why module `name` may not have this import; None if it may."""
    here, there = room(name), room(target.name)
    if target.name.partition(".")[0] != "tiledsl":
        return None
    if here == FACADE:
        return None
    below, above = height(there), height(here)
    if below is None or above is None:
        return f"room {there if below is None else here!r} is on no floor; add it to the table in .ci/floors.py"
    if there in BLIND.get(here, frozenset()):
        return f"{here} is blind to {there}, and imports {target.name}"
    if here in LEAVES:
        if there in (here, FACADE) or target.name.count(".") == 1 or (here in TOOLS and there not in LEAVES):
            return None
        return f"is a leaf and reaches into {target.name}; import it from tiledsl.{there}"
    if here == there == "backends":
        ours, theirs = (n.split(".")[2] if n.count(".") > 1 else "" for n in (name, target.name))
        if theirs in ("", ours) or theirs in BACKEND_ROOMS.get(ours, frozenset()):
            return None
        return f"backend room {ours!r} imports backend room {theirs!r}"
    if here == there:
        return None
    if below >= above:
        return f"floor {above[0]} imports {target.name} of floor {below[0]}"
    return None


def check(root: Path) -> list[str]:
    """All complaints about the tree at `root`, as `file:line: why`."""
    known = modules(root)
    complaints = []
    for name, path in known.items():
        for target in sorted(set(imports(name, path, known))):
            why = complaint(name, target)
            if why:
                complaints.append(f"{path.relative_to(root)}:{target.line}: {why}")
    return complaints


def main() -> int:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent.parent).resolve()
    complaints = check(root)
    print("\n".join(complaints) or f"floors: {len(modules(root))} modules import only downwards")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
