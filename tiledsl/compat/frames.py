"""Branches in TVM's notation: `with T.If(condition): with T.Then(): ... with T.Else(): ...`."""

from __future__ import annotations

import sys
import threading
from typing import Any

from tiledsl.errors import TileSyntaxError
from tiledsl.frontend.builder import current
from tiledsl.frontend.location import error
from tiledsl.frontend.regions import Branch
from tiledsl.frontend.values import Value, as_bool

__all__ = ["Else", "If", "Then"]


class _Open(threading.local):
    def __init__(self) -> None:
        self.branches: list[Branch] = []


_open = _Open()


class If:
    """A branch whose sides are given by T.Then and T.Else."""

    def __init__(self, condition: Any) -> None:
        self.branch = Branch(Value(as_bool(condition, "T.If")), (), sys._getframe(1))

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
            raise error("branch-side", TileSyntaxError, f"T.{type(self).__name__} must be inside `with T.If(...)`")
        self.branch = _open.branches[-1]
        getattr(self.branch, self.side)()

    def __exit__(self, kind: Any, value: Any, trace: Any) -> None:
        if kind is None:
            self.branch.end()
        elif self.branch.block is not None:
            current("a branch").abandon(self.branch.block)


class Else(Then):
    """Where it does not hold."""

    side = "orelse"
