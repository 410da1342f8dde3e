"""Which threads of a block come to a statement, where that follows from their numbers alone."""

from __future__ import annotations

import itertools

from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.scopes import escapes
from tiledsl.errors import TileError
from tiledsl.ir import build
from tiledsl.ir.expr import Const, Expr, Var
from tiledsl.ir.stmt import Break, Continue, If, Kernel, Let, Return, Stmt
from tiledsl.ir.walk import free_vars, substitute, walk

__all__ = ["Ranges", "ThreadGroups", "rank", "size"]

Ranges = tuple[tuple[int, int], ...]
"""Numbers of threads: first and one beyond the last of each run, ascending."""
_MOST = 4  # runs of a group that is still told apart by comparisons


class ThreadGroups:
    """everyone: all threads of the block, empty where their number is known only at run time."""

    def __init__(self, kernel: Kernel) -> None:
        extents = [e.value if isinstance(e, Const) else 0 for e in kernel.threads]
        self.threads = [
            dict(zip(kernel.thread_vars, reversed(at), strict=True))
            for at in itertools.product(*(range(n) for n in reversed(extents)))
        ]
        self.everyone: Ranges = ((0, len(self.threads)),)
        self._lets: dict[Var, Expr] = {s.var: s.value for s in walk(kernel.body) if isinstance(s, Let)}
        self._known: dict[Expr, list[bool] | None] = {}

    def split(self, group: Ranges | None, cond: Expr) -> tuple[Ranges | None, Ranges | None]:
        """Of a group, those for whom the condition holds and the others; None: not known, or too scattered."""
        holds = self._holds(cond)
        if group is None or holds is None:
            return None, None
        mine = [t for first, end in group for t in range(first, end)]
        return _runs([t for t in mine if holds[t]]), _runs([t for t in mine if not holds[t]])

    def after(self, s: Stmt, group: Ranges | None) -> Ranges | None:
        """Of those who come to a statement, the ones that go on behind it. Who leaves a loop is not followed."""
        if isinstance(s, Return):
            return ()
        if not escapes(s):
            return group
        if not isinstance(s, If):
            return None
        stay: list[int] = []
        for side, body in zip(self.split(group, s.cond), (s.then, s.orelse), strict=True):
            for inner in body:
                side = None if isinstance(inner, (Break, Continue)) else self.after(inner, side)
            if side is None:
                return None
            stay += [t for first, end in side for t in range(first, end)]
        return _runs(sorted(stay))

    def _holds(self, cond: Expr) -> list[bool] | None:
        if cond not in self._known:
            try:
                e = self._inlined(cond)
                self._known[cond] = [bool(evaluate(e, at)) for at in self.threads]
            except TileError:
                self._known[cond] = None
        return self._known[cond]

    def _inlined(self, e: Expr) -> Expr:
        """e over thread variables alone, as far as lets say."""
        while inner := {v: self._lets[v] for v in free_vars(e) if v in self._lets}:
            e = substitute(e, inner)
        return e


def _runs(numbers: list[int]) -> Ranges | None:
    runs: list[tuple[int, int]] = []
    for t in numbers:
        if runs and runs[-1][1] == t:
            runs[-1] = runs[-1][0], t + 1
        else:
            runs.append((t, t + 1))
    return tuple(runs) if len(runs) <= _MOST else None


def size(group: Ranges) -> int:
    """How many threads a group has."""
    return sum(end - first for first, end in group)


def rank(group: Ranges, thread: Expr) -> Expr:
    """How many threads of the group have lower numbers than one of it."""
    if not group:
        return thread
    skipped = group[0][0]
    number = build.sub(thread, skipped)
    for (_, end), (first, _) in itertools.pairwise(group):
        number = build.sub(
            number,
            build.select(build.ge(thread, first), build.const(first - end, thread.dtype), build.zero(thread.dtype)),
        )
    return number
