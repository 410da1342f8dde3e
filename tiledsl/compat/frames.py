"""Branches in TVM's notation: `with T.If(condition): with T.Then(): ... with T.Else(): ...`."""

from __future__ import annotations

import threading
from typing import Any

import tiledsl.language as T
from tiledsl.errors import TileSyntaxError
from tiledsl.surface import CONTROL

__all__ = ["Else", "If", "Then"]


class _Open(threading.local):
    def __init__(self) -> None:
        self.branches: list[Any] = []


_open = _Open()


class If:
    """A branch whose sides are given by T.Then and T.Else."""

    def __init__(self, condition: Any) -> None:
        self.branch = CONTROL.if_(T.cast(condition, "bool"), ())

    def __enter__(self) -> None:
        _open.branches.append(self.branch)

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        _open.branches.pop()
        if kind is None:
            self.branch.leave()


class Then:
    """The statements of the innermost T.If, where its condition holds."""

    side = "then"

    def __enter__(self) -> None:
        if not _open.branches:
            raise TileSyntaxError(f"T.{type(self).__name__} must be inside `with T.If(...)`")
        self.branch = _open.branches[-1]
        getattr(self.branch, self.side)()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self.branch.end()


class Else(Then):
    """Where it does not hold."""

    side = "orelse"
