"""`tiledsl port SCRIPT.py ...`: which operations of a TileLang program are supported on which target, found by reading,
not running."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import tiledsl.language as T
from tiledsl import backend
from tiledsl.compat.absent import Refused
from tiledsl.compat.install import installed
from tiledsl.compat.language import lookup, names
from tiledsl.compat.quantize import DECODERS
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileError, TileValueError

__all__ = ["Row", "Use", "arguments", "main", "rows", "support", "table", "uses"]

_LANGUAGES = ("tilelang.language", "tiledsl.language")
_HOSTS = ("tilelang", "tvm")
_PACKAGES = (*_HOSTS, "tiledsl")
_DTYPE = re.compile(r"(custom\[\w+\]|b?float|tfloat|u?int)\d+(_\w+)?")


class Use(NamedTuple):
    """One mention of an operation, a dtype, or a name of the host side ("T.copy", "float16", "tilelang.jit", "tvm.te"),
    or of an argument that is refused ("T.Kernel(prelude=)"), and why."""

    name: str
    line: int
    why: str | None = None


class Row(NamedTuple):
    """A name of a program: its lines, and per target None or why it does not work there."""

    name: str
    lines: tuple[int, ...]
    refused: Mapping[str, str | None]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl port`."""
    parser.add_argument("scripts", nargs="*", metavar="SCRIPT.py", help="programs to read")
    parser.add_argument("--support", action="store_true", help="print the support list of docs/tilelang.md instead")
    parser.add_argument("--refused", action="store_true", help="show only what some target refuses")


# -- what a program mentions -----------------------------------------------------------------------------------------


def _aliases(tree: ast.AST) -> dict[str, str]:
    """The program's names for modules and members of TileLang and TVM: {"T": "tilelang.language", "copy": ...}."""
    found = dict[str, str]()
    for n in ast.walk(tree):
        if isinstance(n, ast.Import):
            for a in n.names:
                if a.name.partition(".")[0] in _PACKAGES:
                    found[a.asname or a.name.partition(".")[0]] = a.name if a.asname else a.name.partition(".")[0]
        elif isinstance(n, ast.ImportFrom) and n.module and n.module.partition(".")[0] in _PACKAGES:
            found.update({a.asname or a.name: f"{n.module}.{a.name}" for a in n.names if a.name != "*"})
    return found


def uses(text: str, file: str = "<text>") -> Iterator[Use]:
    """The mentions of TileLang's names and of dtypes in a program."""
    tree = ast.parse(text, file)
    known, inner = _aliases(tree), set[int]()
    for n in ast.walk(tree):
        if isinstance(n, ast.Attribute):
            inner.add(id(n.value))
        if id(n) in inner:
            continue
        if isinstance(n, ast.Attribute) or (isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)):
            first, *rest = ast.unparse(n).split(".")
            if first in known and all(r.isidentifier() for r in rest):
                found = _use(".".join([known[first], *rest]))
                if found:
                    yield Use(found, n.lineno)
        elif isinstance(n, ast.ImportFrom) and n.module and n.module.partition(".")[0] in _HOSTS and n.module != "tvm":
            for a in n.names:
                found = _use(f"{n.module}.{a.name}")
                if found and not found.startswith("T."):
                    yield Use(found, n.lineno)
        elif isinstance(n, ast.Constant) and isinstance(n.value, str) and _DTYPE.fullmatch(n.value):
            yield Use(n.value, n.lineno)
    yield from _arguments(tree, known)


def _arguments(tree: ast.Module, known: Mapping[str, str]) -> Iterator[Use]:
    """Arguments of operations that are refused, as far as they can be read off."""
    texts = {
        t.id: n.value.value
        for n in ast.walk(tree)
        if isinstance(n, ast.Assign) and isinstance(n.value, ast.Constant)
        for t in n.targets
        if isinstance(t, ast.Name)
    }

    def value(e: ast.expr | None) -> Any:
        """The Python value of an argument; ... where it is not plain to see."""
        if e is None or isinstance(e, ast.Constant):
            return e and e.value
        return texts.get(e.id, ...) if isinstance(e, ast.Name) else ...

    for n in ast.walk(tree):
        if not isinstance(n, ast.Call):
            continue
        first, _, rest = ast.unparse(n.func).partition(".")
        found = _use(f"{known[first]}.{rest}".rstrip(".")) if first in known else None
        given = {k.arg: value(k.value) for k in n.keywords if k.arg} | dict(enumerate(map(value, n.args)))
        for label, why in _refused_arguments((found or "").removeprefix("T."), given):
            yield Use(label, n.lineno, why)


def _refused_arguments(name: str, given: Mapping[Any, Any]) -> Iterator[tuple[str, str]]:
    """What is refused of a call of `T.<name>`: the argument, and the sentence that the kernel's author would see."""
    text = given.get("source", given.get(0))
    if name == "import_source" and isinstance(text, str) and not DECODERS.fullmatch(text.removeprefix("// ")):
        yield "T.import_source(source)", state(name) or ""
    if name in ("Kernel", "ClusterKernel") and given.get("prelude"):
        yield f"T.{name}(prelude=)", f"T.{name}(prelude=...) is hardware-only: it is C text for one GPU; leave it out"
    if name == "gemm" and given.get("mbar"):
        yield "T.gemm(mbar=)", "T.gemm(mbar=...) is hardware-only: it needs tensor memory; leave it out"
    if name in ("call_extern", "call_pure_extern"):
        texts = (x for x in (given.get(0), given.get(1)) if isinstance(x, str) and x != "void" and not _held(x))
        called = given.get("func_name", next(texts, None))
        if isinstance(called, str) and called not in T._EXTERN and not DECODERS.fullmatch(called):
            yield (
                f"T.call_extern({called!r})",
                (
                    f"T.call_extern: {called!r} is none of CUDA's documented scalar and warp intrinsics; "
                    "write it with functions of T, or as a @T.macro"
                ),
            )
    if name in ("call_intrin", "call_pure_intrin") and isinstance(given.get(1), str):
        why = state(given[1].rpartition(".")[2])
        if why:
            yield f"T.call_intrin({given[1]!r})", why
    if name == "cast" and (given.get("rbits") or given.get("round") not in (None, "", "rn", "rz", ...)):
        yield "T.cast(round=)", 'T.cast: other roundings than "rn" and "rz" have no portable meaning; leave them out'


def _use(dotted: str) -> str | None:
    """The row that a dotted name belongs to; None for modules."""
    for language in _LANGUAGES:
        if dotted == language:
            return None
        if dotted.startswith(language + "."):
            name = dotted.removeprefix(language + ".").partition(".")[0]
            value = _found(name)
            return value.name if isinstance(value, DType) else f"T.{name}"
    package, _, rest = dotted.partition(".")
    return dotted if package in _HOSTS and rest else None


# -- what is supported -----------------------------------------------------------------------------------------------


def _found(name: str) -> Any:
    try:
        return lookup(name)
    except (TileError, AttributeError):
        return None


def state(name: str) -> str | None:
    """Why the language does not have `T.<name>`, and what to write; None when it has it."""
    try:
        value = getattr(T, name) if name == "import_source" else lookup(name)
        if type(value).__name__ == "Missing":
            value()  # says why
    except TileError as e:
        return e.message + (f"; {e.help}" if e.help else "")
    except AttributeError as e:
        return str(e)
    return None


def _on_host(dotted: str) -> Any:
    """What a name of TileLang's host side is here; a `Refused` where it is not supported."""
    package, *parts = dotted.split(".")
    value: Any = importlib.import_module(package)
    for part in parts:
        value = getattr(value, part, None)
    if value is None or isinstance(value, Refused):  # perhaps of a module that nothing has imported yet
        value = getattr(importlib.import_module(".".join([package, *parts[:-1]])), parts[-1], None)
    return Refused(dotted) if value is None else value


def targets() -> dict[str, backend.Capabilities]:
    """What each target that this version has says of itself, in the order of the registry."""
    found = dict[str, backend.Capabilities]()
    for name in backend.backends():
        try:
            found[name] = backend.load_backend(name).capabilities(backend.Target(name))
        except TileError:  # cannot even be imported here
            continue
    return found


def _lacks(able: backend.Capabilities, name: str) -> str | None:
    why = able.lacks.get(name[2:])
    return None if why is None else f"{name} is refused: {why}"


def _held(dtype: str) -> str | None:
    """The scalar type that a dtype's values are made of (an address is an int64); None for what is no dtype."""
    try:
        name = as_dtype(dtype).scalar.name
    except TypeError:
        return None
    return "int64" if name == "handle" else name


def rows(text: str, file: str = "<text>") -> list[Row]:
    """One row per name that the program mentions, in the order of first mention."""
    lines: dict[str, list[int]] = {}
    whys: dict[str, str] = {}
    for use in sorted(set(uses(text, file)), key=lambda u: (u.line, u.name)):
        lines.setdefault(use.name, []).append(use.line)
        if use.why:
            whys[use.name] = use.why
    able, found = targets(), []
    with installed():
        for name, at in lines.items():
            refused: dict[str, str | None]
            if name in whys:
                refused = dict.fromkeys(able, whys[name])
            elif name.startswith("T."):
                why = state(name[2:]) if name != "T.import_source" else None
                refused = {t: why or _lacks(able[t], name) for t in able}
            elif name.partition(".")[0] in _HOSTS:
                value = _on_host(name)
                if isinstance(value, ModuleType) and not callable(value):
                    continue
                refused = dict.fromkeys(able, value.why if isinstance(value, Refused) else None)
            else:
                held = _held(name)
                none = None if held else state(name)
                refused = {t: none or (None if held in able[t].dtypes else f"{t} has no {name}") for t in able}
            found.append(Row(name, tuple(at), refused))
    return found


def table(found: Iterable[Row]) -> list[str]:
    """The rows as text, a column per target."""
    listed = list(found)
    columns = list(targets())
    cells = [["", "lines", *columns]]
    for row in listed:
        at = ", ".join(map(str, row.lines[:4])) + (", ..." if len(row.lines) > 4 else "")
        cells.append([row.name, at, *("no" if row.refused[t] else "yes" for t in columns)])
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    return ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in cells]


def complaints(found: Iterable[Row], file: str) -> list[str]:
    """One line per name and reason: where, on which targets, why, and what would have to change."""
    said = []
    for row in found:
        for why in dict.fromkeys(w for w in row.refused.values() if w):
            where = [t for t, w in row.refused.items() if w == why]
            place = "" if len(where) == len(row.refused) else f"on {', '.join(where)}: "
            said.append(f"{file}:{row.lines[0]}: {place}{why}")
    return said


def support() -> str:
    """The support list: names that run on every target, and names that are refused, by reason."""
    refused: dict[str, list[str]] = {}
    for name in [n for n in T._REFUSED if state(n)]:
        refused.setdefault((state(name) or "").removeprefix(f"T.{name} "), []).append(name)
    lacks: dict[str, list[str]] = {}
    for target, able in targets().items():
        for name, why in able.lacks.items():
            lacks.setdefault(f"on {target}: {why}", []).append(name)
    everywhere = sorted(set(names()) - {n for found in lacks.values() for n in found})
    lines = ["**Supported on every target**", "", " ".join(f"`{n}`" for n in everywhere), ""]
    for why, found in (*sorted(refused.items()), *sorted(lacks.items())):
        lines += [f"**Refused**: {why}", "", " ".join(f"`{n}`" for n in sorted(set(found))), ""]
    return "\n".join(lines)


def main(options: argparse.Namespace) -> int:
    """1 when a program uses something that no target supports."""
    if options.support:
        print(support())
        return 0
    if not options.scripts:
        raise TileValueError("tiledsl port: which program?", help="tiledsl port SCRIPT.py")
    failed = False
    for file in options.scripts:
        if not Path(file).is_file():
            raise TileValueError(f"tiledsl port: there is no file {file}")
        try:
            found = rows(Path(file).read_text(encoding="utf-8"), file)
        except SyntaxError as e:
            raise TileValueError(f"{file}:{e.lineno}: not Python: {e.msg}") from None
        print(f"{file}: {_sentence(found)}")
        shown = [r for r in found if any(r.refused.values())] if options.refused else found
        if shown:
            print("\n".join(["", *table(shown), ""]))
        for line in complaints(found, file):
            print(line)
        failed |= any(all(r.refused.values()) for r in found)
    return int(failed)


def _sentence(found: list[Row]) -> str:
    """How far each target takes the program."""
    counts = {t: sum(1 for r in found if not r.refused[t]) for t in targets()}
    return f"of {len(found)} names, supported: " + ", ".join(f"{n} on {t}" for t, n in counts.items())
