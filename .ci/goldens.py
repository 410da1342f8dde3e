"""Count the diagnostics an author can meet that have no golden rendered message in tests/goldens/errors.

A diagnostic is a call with a TileError subclass and a message in a room that authors talk to. Its message becomes a
pattern (every formatted value matches anything), which some golden file has to contain. `--max N` fails above N.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOMS = (
    "tiledsl/language",
    "tiledsl/frontend",
    "tiledsl/ir",
    "tiledsl/analysis",
    "tiledsl/runtime",
    "tiledsl/backend.py",
)
GOLDENS = "tests/goldens/errors"
ERROR = re.compile(r"^Tile\w*Error$")
# Fewer literal characters than this would match goldens of other diagnostics.
LITERAL = 6


class Diagnostic(NamedTuple):
    """One place that raises: its file and line, and its message as a regular expression (None: not readable)."""

    place: str
    pattern: str | None
    text: str


def error_class(node: ast.expr) -> bool:
    return isinstance(node, ast.Name | ast.Attribute) and bool(ERROR.match(ast.unparse(node).rpartition(".")[2]))


def message_of(call: ast.Call) -> ast.expr | None:
    """The message of `TileTypeError(message, ...)` or of `helper(..., TileTypeError, message, ...)`."""
    named = [k.value for k in call.keywords if k.arg == "message"]
    if error_class(call.func):
        return named[0] if named else (call.args[0] if call.args else None)
    for position, argument in enumerate(call.args[:-1]):
        if error_class(argument) and ast.unparse(call.func) not in ("isinstance", "issubclass", "pytest.raises"):
            return call.args[position + 1]
    return None


def pattern_of(node: ast.expr) -> str | None:
    """A message expression as a regular expression; None where nothing literal is in it."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return re.escape(node.value)
    if isinstance(node, ast.JoinedStr):
        parts = (re.escape(v.value) if isinstance(v, ast.Constant) else ".*" for v in node.values)
        return "".join(parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (pattern_of(node.left) or ".*") + (pattern_of(node.right) or ".*")
    if isinstance(node, ast.IfExp):
        return f"(?:{pattern_of(node.body) or '.*'}|{pattern_of(node.orelse) or '.*'})"
    return None


def diagnostics(root: Path) -> Iterator[Diagnostic]:
    """Every diagnostic of the rooms that authors talk to."""
    for room in ROOMS:
        place = root / room
        for path in [place] if place.is_file() else sorted(place.rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                message = message_of(node) if isinstance(node, ast.Call) else None
                if message is not None:
                    pattern = pattern_of(message)
                    literal = len(re.sub(r"\\.|[\W_]", "", pattern or ""))
                    where = f"{path.relative_to(root)}:{node.lineno}"
                    yield Diagnostic(where, pattern if literal >= LITERAL else None, ast.unparse(message))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max", type=int, help="fail, and name them, when more diagnostics than this have no golden")
    parser.add_argument("--list", action="store_true", help="name them")
    options = parser.parse_args()
    root = Path(__file__).parent.parent.resolve()
    goldens = "\n".join(p.read_text(encoding="utf-8") for p in sorted((root / GOLDENS).rglob("*")) if p.is_file())
    found = list(diagnostics(root))
    bare = [d for d in found if d.pattern is not None and not re.search(d.pattern, goldens)]
    opaque = [d for d in found if d.pattern is None]
    print(f"goldens: {len(found)} diagnostics, {len(bare)} without a golden, {len(opaque)} with an unreadable message")
    failed = options.max is not None and len(bare) + len(opaque) > options.max
    if options.list or failed:
        for d in (*bare, *opaque):
            print(f"{d.place}: {d.text}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
