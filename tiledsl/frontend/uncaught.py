"""What a plain script shows of an error that nobody catches: the author's frames, not those of this package."""

from __future__ import annotations

import sys
from types import TracebackType

from tiledsl.config import FULL_TRACEBACK
from tiledsl.errors import InternalError, TileError

__all__ = ["install", "show_uncaught"]


def install() -> None:
    """`show_uncaught` where nobody else shows what is not caught."""
    if sys.excepthook is sys.__excepthook__:
        sys.excepthook = show_uncaught


def show_uncaught(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    """sys.excepthook of scripts: of a TileError's traceback the author's own frames."""
    left_out = isinstance(value, TileError) and not isinstance(value, InternalError) and _own_frames(value, set())
    sys.__excepthook__(kind, value, value.__traceback__ if left_out else trace)
    if left_out:
        print("(frames of tiledsl are left out; TILEDSL_FULL_TRACEBACK=1 shows them)", file=sys.stderr)


def _own_frames(error: BaseException | None, seen: set[int]) -> bool:
    """Shortens the tracebacks of an error and of those that led to it; False where all is to be shown."""
    if error is None or id(error) in seen or FULL_TRACEBACK.get():
        return False
    seen.add(id(error))
    frames = []
    at = error.__traceback__
    while at is not None:
        if at.tb_frame.f_globals.get("__name__", "").partition(".")[0] not in ("tiledsl", "contextlib", "ast"):
            frames.append(at)
        at = at.tb_next
    short: TracebackType | None = None
    for one in reversed(frames):
        short = TracebackType(short, one.tb_frame, one.tb_lasti, one.tb_lineno)
    error.__traceback__ = short
    for other in (error.__cause__, error.__context__):
        _own_frames(other, seen)
    return True
