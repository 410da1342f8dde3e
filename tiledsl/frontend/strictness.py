"""The one switch between this language and the one it descends from: refusals that may become notices.

TileLang accepts kernels that 0.3 and 0.6 refuse. `lenient(report)` is for the compatibility layer: while it is active
such a kernel is traced with TileLang's meaning, and `report` hears what would have been the error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from tiledsl.errors import TileError

__all__ = ["lenient", "refuse"]

_Report = Callable[[TileError, str], None]  # the error that was not raised, and the meaning taken instead
_report: ContextVar[_Report | None] = ContextVar("lenient", default=None)


@contextmanager
def lenient(report: _Report) -> Iterator[None]:
    """Kernels traced inside have TileLang's meaning where the language refuses them."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def refuse(e: TileError, meaning: str) -> None:
    """Raises e; under `lenient`, reports it with the meaning that the caller then gives the kernel."""
    report = _report.get()
    if report is None:
        raise e
    report(e, meaning)
