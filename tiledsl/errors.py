"""Source locations and the diagnostics that authors and callers see.

Every error is rendered in `__str__`, so Python, pytest and IPython show the same text, at most 12 lines.
"""

from __future__ import annotations

import linecache
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "InternalError",
    "Loc",
    "TileAttributeError",
    "TileError",
    "TileIndexError",
    "TileNameError",
    "TileNotImplementedError",
    "TileRuntimeError",
    "TileSyntaxError",
    "TileTypeError",
    "TileValueError",
    "suggest",
]

MAX_LINES = 12
MAX_COLUMNS = 160  # of a source line: generated code can be longer than any screen


@dataclass(frozen=True, slots=True)
class Loc:
    """A place in the author's source: file, 1-based line, 1-based columns, function; `caller` is the
    place that called this function while tracing (a macro or helper), innermost first."""

    file: str
    line: int
    col: int = 1
    end_col: int = 0
    function: str = ""
    caller: Loc | None = None

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line}:{self.col}"


def _short(path: str) -> str:
    """The path relative to the working directory where it lies below it; of a notebook's cell, its number."""
    import os
    import sys

    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    compiler = getattr(shell, "compile", None)
    if path in getattr(compiler, "_filename_map", ()) or path.startswith("<ipython-input-"):
        cell = compiler.format_code_name(path) if compiler is not None else None
        if cell:
            return str(cell[1])
    try:
        rel = os.path.relpath(path)
    except ValueError:
        return path
    return path if rel.startswith("..") or path.startswith("<") else rel


@dataclass(eq=False)
class TileError(Exception):
    """Base of everything that tiledsl raises on purpose.

    message  what is wrong, with the operands' shapes and dtypes
    loc      the author's source, None where no kernel source is involved (argument binding)
    notes    facts that help ("B_s was allocated at ...")
    help     what to do
    """

    message: str
    loc: Loc | None = None
    notes: tuple[str, ...] = field(default=())
    help: str | None = None

    def __post_init__(self) -> None:
        super().__init__(self.message)

    def __str__(self) -> str:
        return render(self)

    def _render_traceback_(self) -> list[str]:
        """What notebooks show instead of a traceback: the message is about the author's lines, not about ours."""
        return [f"{type(self).__name__}: {self}"]

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.message, self.loc, self.notes, self.help))


class TileTypeError(TileError, TypeError):
    """Wrong kind, dtype, rank or shape of an operand or argument."""


class TileValueError(TileError, ValueError):
    """A value that no operation can accept."""


class TileIndexError(TileError, IndexError):
    """Wrong number of indices, or an element access outside a block-local buffer."""


class TileNameError(TileError, NameError):
    """A name that is undefined, or used outside the region that defines it."""


class TileAttributeError(TileError, AttributeError):
    """A name that the language does not have."""


class TileSyntaxError(TileError, SyntaxError):
    """A Python construct that a kernel cannot contain."""

    def __str__(self) -> str:
        return render(self)


class TileNotImplementedError(TileError, NotImplementedError):
    """Part of the language that this version does not have yet."""


class TileRuntimeError(TileError, RuntimeError):
    """Raised while a kernel runs: failed device_assert, races and poison found by the checked mode, ..."""


class InternalError(TileError, RuntimeError):
    """A bug of tiledsl. `notes` name a saved, self-contained reproduction."""

    def _render_traceback_(self) -> list[str]:
        """The whole traceback: whoever reports the bug needs it."""
        import traceback

        return "".join(traceback.format_exception(self)).splitlines()


def render(error: TileError) -> str:
    """Message, source line with a caret, call chain, notes and help: at most MAX_LINES lines."""
    tail = [f"   = note: {note}" for note in error.notes]
    if error.help:
        tail.append(f"   = help: {error.help}")
    loc = error.loc
    if loc is None:
        return "\n".join([error.message, *tail])
    head = [error.message, f"  --> {loc}" + (f"  in {loc.function}" if loc.function else "")]
    source = linecache.getline(loc.file, loc.line).rstrip("\n")
    if source.strip():
        gutter = str(loc.line)
        left = max(0, loc.col - 41) if len(source) > MAX_COLUMNS else 0
        source, col = source[left : left + MAX_COLUMNS].rstrip(), loc.col - left
        width = max(1, (loc.end_col or loc.col + 1) - loc.col)
        width = min(width, max(1, len(source) - col + 1))
        head.append(f"{gutter} | {source}")
        head.append(f"{' ' * len(gutter)} | {' ' * (col - 1)}{'^' * width}")
    chain = []
    caller = loc.caller
    while caller is not None:
        chain.append(f"   = called from {caller}" + (f"  in {caller.function}" if caller.function else ""))
        caller = caller.caller
    room = MAX_LINES - len(head) - len(tail)
    if len(chain) > max(0, room):
        chain = [*chain[: max(0, room - 1)], f"   = ... and {len(chain) - max(0, room - 1)} more callers"]
    lines = [*head, *chain, *tail]
    return "\n".join(lines[:MAX_LINES])


def suggest(name: str, known: Any) -> str | None:
    """'did you mean num_stages?' for the closest known name, or None."""
    import difflib

    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else None
