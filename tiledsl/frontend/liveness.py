"""Which names a staged region hands on: to its own next iteration, to its else branch, or to the code after it.

Tracing runs the body of a staged region once, so a name that the region rebinds would silently keep a wrong value
where it is read on another path. This analysis finds, for each `if`, `for` and `while` of a function, the names
for which that matters (language.md 0.6); `control` checks at trace time whether they really were rebound.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

__all__ = ["Liveness", "RegionNames", "analyse", "assigned_names"]

_Live = frozenset[str]
_NONE: _Live = frozenset()
_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


@dataclass(frozen=True)
class RegionNames:
    """carried: read in the next iteration before they are assigned again. after: assigned here and read on another
    path later (after the region; for an `if` also in its else branch)."""

    carried: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True)
class Liveness:
    """Per region of a function, and all names of `after` sets (`fragile`: they may turn out undefined)."""

    regions: dict[ast.stmt, RegionNames]
    fragile: frozenset[str]


def assigned_names(*nodes: ast.AST) -> set[str]:
    """Names bound anywhere below, nested scopes excluded (but their own names included)."""
    found: set[str] = set()
    stack = list(nodes)
    while stack:
        n = stack.pop()
        if isinstance(n, ast.Name) and isinstance(n.ctx, (ast.Store, ast.Del)):
            found.add(n.id)
        if isinstance(n, _SCOPES):
            if not isinstance(n, ast.Lambda):
                found.add(n.name)
            continue
        if isinstance(n, (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)):
            continue
        stack.extend(ast.iter_child_nodes(n))
    return found


def _uses(*nodes: ast.AST | None) -> _Live:
    return frozenset(
        n.id
        for root in nodes
        if root is not None
        for n in ast.walk(root)
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    )


class _Analysis:
    """Backward liveness over structured statements."""

    def __init__(self, captured: _Live) -> None:
        self.captured = captured  # names that nested functions read: live everywhere
        self.regions: dict[ast.stmt, RegionNames] = {}
        self.loops: list[tuple[_Live, _Live]] = []  # (live after the loop, live at its head)

    def block(self, body: list[ast.stmt], live: _Live) -> _Live:
        for s in reversed(body):
            live = self.statement(s, live)
        return live

    def statement(self, s: ast.stmt, live: _Live) -> _Live:
        match s:
            case ast.Return():
                return _uses(s.value)
            case ast.Raise():
                return _uses(s.exc, s.cause)
            case ast.Break():
                return self.loops[-1][0] if self.loops else live
            case ast.Continue():
                return self.loops[-1][1] if self.loops else live
            case ast.If():
                orelse = self.block(s.orelse, live)
                then = self.block(s.body, live)
                self._record(s, _NONE, assigned_names(*s.body, *s.orelse), live | orelse)
                return then | orelse | _uses(s.test)
            case ast.For():
                targets = frozenset(assigned_names(s.target))
                enter = self._loop(s, s.body, live, targets, _NONE)
                return enter | live | _uses(s.iter, s.target)
            case ast.While():
                return self._loop(s, s.body, live, _NONE, _uses(s.test)) | live
            case ast.With():
                inner = self.block(s.body, live)
                for item in reversed(s.items):
                    inner = (inner - assigned_names(item)) | _uses(item)
                return inner
            case ast.AugAssign():
                target = frozenset([s.target.id]) if isinstance(s.target, ast.Name) else _uses(s.target)
                return live | target | _uses(s.value)
            case ast.AnnAssign() if s.value is None:
                return live | _uses(s.annotation)
        return (live - assigned_names(s)) | _uses(s)

    def _loop(self, s: ast.For | ast.While, body: list[ast.stmt], after: _Live, bound: _Live, test: _Live) -> _Live:
        """Live at the loop's head (before the targets are bound); iterated to its fixed point."""
        head = test
        while True:
            self.loops.append((after, after | head))
            enter = (self.block(body, after | head) - bound) | test
            self.loops.pop()
            if enter <= head:
                break
            head |= enter
        inside = assigned_names(*body)
        self._record(s, head & inside, inside | bound, after)
        return head

    def _record(self, s: ast.stmt, carried: _Live | set[str], assigned: set[str] | _Live, live: _Live) -> None:
        after = assigned & (live | self.captured)
        self.regions[s] = RegionNames(tuple(sorted(carried)), tuple(sorted(after)))


def analyse(function: ast.FunctionDef) -> Liveness:
    """Liveness of one function's own statements."""
    captured: set[str] = set()
    for n in ast.walk(function):
        if n is not function and isinstance(n, _SCOPES):
            captured |= _uses(n)
    analysis = _Analysis(frozenset(captured))
    analysis.block(function.body, _NONE)
    fragile = frozenset(name for r in analysis.regions.values() for name in r.after)
    return Liveness(analysis.regions, fragile)
