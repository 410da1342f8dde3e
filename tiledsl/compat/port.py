"""`tiledsl port SCRIPT.py ...`: which operations of a TileLang program are supported, found by reading, not running."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tiledsl.language as T
from tiledsl.compat.language import lookup, names
from tiledsl.errors import TileError, TileValueError

__all__ = ["Use", "arguments", "main", "report", "uses"]


class Use(NamedTuple):
    """One mention of `T.<name>`."""

    name: str
    line: int
    call: bool


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl port`."""
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT.py", help="programs to read")
    parser.add_argument("--support", action="store_true", help="print the support list of docs/tilelang.md instead")
    parser.add_argument("-v", "--verbose", action="store_true", help="name the supported operations as well")


def _aliases(tree: ast.AST) -> tuple[set[str], dict[str, str]]:
    """Names of the module `tilelang.language`, and names imported from it."""
    modules, names = set[str](), dict[str, str]()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            modules |= {a.asname or a.name for a in n.names if a.name in ("tilelang.language", "tiledsl.language")}
        elif isinstance(n, ast.ImportFrom) and n.module in ("tilelang", "tiledsl"):
            modules |= {a.asname or a.name for a in n.names if a.name == "language"}
        elif isinstance(n, ast.ImportFrom) and n.module in ("tilelang.language", "tiledsl.language"):
            names.update({a.asname or a.name: a.name for a in n.names if a.name != "*"})
    return modules, names


def uses(text: str, file: str = "<text>") -> Iterator[Use]:
    """The mentions of the language's names in a program."""
    tree = ast.parse(text, file)
    modules, names = _aliases(tree)
    called = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call)}
    for n in ast.walk(tree):
        if isinstance(n, ast.Attribute) and ast.unparse(n.value) in modules:
            yield Use(n.attr, n.lineno, id(n) in called)
        elif isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load) and n.id in names:
            yield Use(names[n.id], n.lineno, id(n) in called)


def state(name: str) -> str | None:
    """Why `T.<name>` does not work here; None when it does."""
    try:
        value = lookup(name)
        if type(value).__name__ == "Missing":
            value()  # says why
    except TileError as e:
        return e.message.removeprefix(f"T.{name} ") + (f" ({e.help})" if e.help else "")
    except AttributeError as e:
        return str(e)
    return None


def report(text: str, file: str) -> tuple[list[str], list[str]]:
    """(names that are supported, one line per mention that is not)."""
    supported, complaints = set[str](), list[str]()
    for use in sorted(set(uses(text, file)), key=lambda u: (u.line, u.name)):
        why = state(use.name)
        if why is None:
            supported.add(use.name)
        else:
            complaints.append(f"{file}:{use.line}: T.{use.name} {why}")
    return sorted(supported), complaints


def support() -> str:
    """The support list: names that run on every target, and names that are refused, by reason."""
    refused: dict[str, list[str]] = {}
    for name in T._REFUSED:
        refused.setdefault(state(name) or "", []).append(name)
    lines = ["**Supported on every target**", "", " ".join(f"`{n}`" for n in sorted(names())), ""]
    for why, found in sorted(refused.items()):
        lines += [f"**Refused**: {why}", "", " ".join(f"`{n}`" for n in sorted(set(found))), ""]
    return "\n".join(lines)


def main(options: argparse.Namespace) -> int:
    """1 when a program uses something that is not supported."""
    if options.support:
        print(support())
        return 0
    if not options.scripts:
        raise TileValueError("tiledsl port: which program?", help="tiledsl port SCRIPT.py")
    failed = 0
    for file in options.scripts:
        if not Path(file).is_file():
            raise TileValueError(f"tiledsl port: there is no file {file}")
        try:
            supported, complaints = report(Path(file).read_text(encoding="utf-8"), file)
        except SyntaxError as e:
            raise TileValueError(f"{file}:{e.lineno}: not Python: {e.msg}") from None
        print("\n".join(complaints)) if complaints else None
        print(f"{file}: {len(supported)} operations are supported on every target, {len(complaints)} uses are not")
        if options.verbose:
            print("    " + " ".join(supported))
        failed |= bool(complaints)
    return failed
