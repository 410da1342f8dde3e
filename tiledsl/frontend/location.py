"""Where in the author's source an operation was written: the Python stack while tracing, with exact columns."""

from __future__ import annotations

import dis
import itertools
import linecache
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FrameType, TracebackType
from typing import TypeVar

import numpy as np

from tiledsl.errors import Loc, TileError

__all__ = ["author_frame", "error", "here", "is_author_file", "position", "raised_at", "source_here", "tracing_root"]

_E = TypeVar("_E", bound=TileError)
_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_INTERNAL = tuple(
    os.path.join(_PACKAGE, room) for room in ("frontend", "language", "dtypes.py", "errors.py", "runtime", "compat")
)
_STDLIB = os.path.dirname(os.path.abspath(os.__file__)) + os.sep
_NUMPY = os.path.dirname(os.path.abspath(np.__file__)) + os.sep

_author_files: dict[str, bool] = {}
_Position = tuple[int, int, int]
_positions: dict[
    tuple[int, int], tuple[CodeType, _Position]
] = {}  # by identity of the code: equal code may differ in file


class _Roots(threading.local):
    """The code objects of the functions being traced in this thread, outermost first."""

    def __init__(self) -> None:
        self.codes: list[CodeType] = []


_roots = _Roots()


@contextmanager
def tracing_root(code: CodeType) -> Iterator[None]:
    """Call chains end at this function while the block runs."""
    _roots.codes.append(code)
    try:
        yield
    finally:
        _roots.codes.pop()


def is_author_file(path: str) -> bool:
    known = _author_files.get(path)
    if known is None:
        absolute = os.path.abspath(path)
        in_stdlib = absolute.startswith(_STDLIB) and "site-packages" not in absolute
        known = not (absolute.startswith((*_INTERNAL, _NUMPY)) or in_stdlib or path.startswith("<frozen"))
        _author_files[path] = known
    return known


def _is_anonymous(code: CodeType) -> bool:
    """Comprehensions, the lambdas of lazy operands and annotations (from Python 3.14 on, which calls them as a
    function) belong to what is around them."""
    return code.co_name == "__annotate__" or (code.co_name.startswith("<") and code.co_name != "<module>")


def author_frame() -> FrameType | None:
    """The innermost frame that runs the author's code."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_author_file(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def position(code: CodeType, instruction: int) -> _Position:
    """(line, column, end column), 1-based, the end exclusive and on the same line, of one instruction."""
    known = _positions.get((id(code), instruction))
    if known is None:
        known = _positions[id(code), instruction] = code, _position(code, instruction)
    return known[1]


def _position(code: CodeType, instruction: int) -> _Position:
    line, end_line, col, end_col = next(itertools.islice(code.co_positions(), instruction // 2, None))
    line = line or code.co_firstlineno
    if col is None or end_col is None:
        return line, 1, 0
    raw = linecache.getline(code.co_filename, line)
    text = raw.rstrip("\n").encode()
    start = len(text[:col].decode(errors="replace")) + 1
    if end_line == line:
        end = len(text[:end_col].decode(errors="replace")) + 1
        if text[col : end_col + 1] in (b"any(", b"all("):  # of a generator: from Python 3.14 on a loop of this frame
            depths = itertools.accumulate({"(": 1, ")": -1}.get(c, 0) for c in text[end_col:].decode(errors="replace"))
            end += next((n for n, depth in enumerate(depths, 1) if depth == 0), 0)
        return line, start, end
    return line, start, len(raw.split("#")[0].rstrip()) + 1


def here() -> Loc | None:
    """The author's place that is running now, with the chain of macros and helpers that led to it."""
    frame = author_frame()
    found: list[tuple[str, int, int, int, str]] = []
    anonymous: tuple[str, int, int, int] | None = None
    root = _roots.codes[-1] if _roots.codes else None
    while frame is not None:
        code = frame.f_code
        if is_author_file(code.co_filename):
            place = anonymous or (code.co_filename, *position(code, frame.f_lasti))
            if _is_anonymous(code):
                anonymous = place
            else:
                anonymous = None
                found.append((*place, code.co_qualname.replace("<locals>.", "")))
                if code is root:
                    break
        frame = frame.f_back
    else:
        found = found[:1]  # not below a traced function: a chain would only name the test runner
    loc: Loc | None = None
    for file, line, col, end_col, function in reversed(found):
        loc = Loc(file, line, col, end_col, "" if function == "<module>" else function, loc)
    return loc


def source_here() -> str:
    """The text of the author's expression that is running now, as far as it stands on its first line."""
    frame = author_frame()
    if frame is None:
        return ""
    line, col, end = position(frame.f_code, frame.f_lasti)
    return linecache.getline(frame.f_code.co_filename, line)[col - 1 : (end or 0) - 1]


def raised_at(tb: TracebackType | None) -> tuple[Loc, FrameType] | None:
    """Where Python itself raised an error in the author's code, with the chain of callers, and the frame; None when
    somebody else did, or the author on purpose."""
    loc: Loc | None = None
    frame, instruction = None, 0
    while tb is not None:
        frame, instruction = tb.tb_frame, tb.tb_lasti
        code = frame.f_code
        if is_author_file(code.co_filename):
            name, caller = code.co_qualname.replace("<locals>.", ""), loc
            if caller is not None and _is_anonymous(code):
                name, caller = caller.function, caller.caller
            loc = Loc(code.co_filename, *position(code, instruction), name, caller)
        tb = tb.tb_next
    if frame is None or loc is None or not is_author_file(frame.f_code.co_filename):
        return None
    if dis.opname[frame.f_code.co_code[instruction]] in ("RAISE_VARARGS", "RERAISE"):
        return None
    return loc, frame


def error(
    ident: str, kind: type[_E], message: str, *, help: str | None = None, notes: tuple[str, ...] = (),
    loc: Loc | None = None,
) -> _E:  # fmt: skip
    """A diagnostic at the author's current place (or `loc`). `ident` names it for the golden tests."""
    made = kind(message, loc or here(), tuple(dict.fromkeys(notes)), help)
    made.ident = ident  # type: ignore[attr-defined]
    return made
