"""Remarks: what a lowering chose for a statement, or why it could not, said where it is decided.

They cost nothing unless somebody listens (`kernel.explain`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from tiledsl.errors import Loc

__all__ = ["Remark", "listening", "remark"]


@dataclass(frozen=True)
class Remark:
    """chosen: the form of the code; reason: why it is not a better one, empty where there is none."""

    loc: Loc | None
    chosen: str
    reason: str = ""


_heard: ContextVar[dict[Remark, None] | None] = ContextVar("remarks", default=None)


def remark(loc: Loc | None, chosen: str, reason: str = "") -> None:
    """Say it to who listens; a statement that is lowered in several versions is spoken of once."""
    heard = _heard.get()
    if heard is not None:
        heard[Remark(loc, chosen, reason)] = None


@contextmanager
def listening() -> Iterator[dict[Remark, None]]:
    """The remarks made inside, in order, as the keys of a dict."""
    token = _heard.set({})
    try:
        found = _heard.get()
        assert found is not None
        yield found
    finally:
        _heard.reset(token)
