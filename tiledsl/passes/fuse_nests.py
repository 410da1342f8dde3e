"""Nests over one tile, one after the other, become one nest: what an iteration stores for the same iteration of the
next nest is a value then, and a tile that nobody else reads is never written.

It is what kernels do that bring tiles into shared memory, compute, and bring them out again; on a CPU every such step
would be a pass through the cache. Nests are joined where all that one writes and another touches is the element of the
iteration, and where all touch global memory along rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from tiledsl.analysis.remarks import remark
from tiledsl.ir import (
    Alloc,
    Binary,
    Buffer,
    Cast,
    Const,
    Expr,
    For,
    Function,
    If,
    Kernel,
    Let,
    Load,
    Node,
    Parallel,
    Region,
    Stmt,
    Store,
    Var,
    While,
)
from tiledsl.ir.walk import Rewriter, free_vars, map_kernels, substitute, walk

__all__ = ["FuseNests"]

Body = tuple[Stmt, ...]


@dataclass(frozen=True)
class FuseNests:
    """The pass; moves have become nests, and accesses are guarded."""

    name: ClassVar[str] = "fuse_nests"

    def __call__(self, function: Function) -> Function:
        return map_kernels(_kernel, function)


def _kernel(kernel: Kernel) -> Kernel:
    body = _Blocks().visit_block(kernel.body)
    if body is kernel.body:
        return kernel
    return kernel.replace(body=_Forward(body).visit_block(body))


@dataclass
class _Nest:
    """A nest that may be joined. elements: buffers of which it touches the iteration's element alone; other: what it
    reads elsewhere; written: what it writes."""

    nest: Parallel
    elements: set[Buffer] = field(default_factory=set)
    other: set[Buffer] = field(default_factory=set)
    written: set[Buffer] = field(default_factory=set)


def _describe(s: Stmt) -> _Nest | None:
    """None where s is no nest of loads, stores and values, or goes through global memory other than along rows."""
    if not isinstance(s, Parallel) or s.annotations or not all(isinstance(e, Const) for e in s.extents):
        return None
    found, own = _Nest(s), tuple(s.vars)
    for n in walk(s.body):
        if isinstance(n, Stmt) and not isinstance(n, (Let, Store, If)):
            return None
        if isinstance(n, (Load, Store)):
            b = n.buffer
            if b.scope == "var" or b.alias_of is not None or b.base is not None or b.dtype.is_packed:
                return None
            if b.scope == "global" and not _along_rows(n.indices, own):
                return None
            (found.elements if n.indices == own else found.other).add(b)
            if isinstance(n, Store):
                found.written.add(b)
    found.elements -= found.other
    return found


def _along_rows(indices: tuple[Expr, ...], own: tuple[Var, ...]) -> bool:
    """The last axis of the nest goes one step along rows, or none."""
    if not indices or not own:
        return True
    last = own[-1]
    if any(last in free_vars(i) for i in indices[:-1]):
        return False
    e: Expr = indices[-1]
    return last not in free_vars(e) or _one_step(e, last)


def _one_step(e: Expr, v: Var) -> bool:
    if isinstance(e, Cast):
        return _one_step(e.x, v)
    if isinstance(e, Binary) and e.op == "add":
        return any(_one_step(x, v) and v not in free_vars(y) for x, y in ((e.a, e.b), (e.b, e.a)))
    return e is v


def _apart(a: _Nest, b: _Nest) -> bool:
    """Nothing that one of them writes is touched by the other, but for the iteration's element of the block's own."""
    for one, two in ((a, b), (b, a)):
        for w in one.written:
            if w in two.other or (w in two.elements | two.written and (w.scope == "global" or w not in one.elements)):
                return False
    extents = [[e.value for e in n.nest.extents if isinstance(e, Const)] for n in (a, b)]
    return extents[0] == extents[1]


class _Blocks(Rewriter):
    """Joins nests, block by block."""

    def visit_block(self, body: Body) -> Body:
        out: list[Stmt] = []
        group: list[_Nest] = []
        for s in super().visit_block(body):
            if (
                isinstance(s, Alloc)
                and s.init is None
                and s.buffer.base is None
                and s.buffer.alias_of is None
                and group
            ):
                out.insert(len(out) - 1, s)
                continue
            found = _describe(s)
            if found is not None and group and all(_apart(g, found) for g in group):
                group.append(found)
                out[-1] = _joined(group)
            else:
                group = [] if found is None else [found]
                out.append(s)
        same = len(out) == len(body) and all(a is b for a, b in zip(out, body, strict=True))
        return body if same else tuple(out)


def _joined(group: list[_Nest]) -> Parallel:
    first = group[0].nest
    body: list[Stmt] = []
    for g in group:
        if g.nest is not first and g.nest.loc is not None and first.loc is not None:
            remark(g.nest.loc, f"in one pass with line {first.loc.line}")
        body += substitute(g.nest.body, dict(zip(g.nest.vars, first.vars, strict=True)))
    return first.replace(body=tuple(body))


class _Forward(Rewriter):
    """In a nest, the element that has just been stored is its value; tiles that are only ever stored are dropped."""

    def __init__(self, body: Body) -> None:
        self.read = _read_elsewhere(body)

    def visit_stmt(self, s: Stmt) -> Stmt | Body:
        if _describe(s) is None:
            return super().visit_stmt(s)
        assert isinstance(s, Parallel)
        own, known = tuple(s.vars), dict[Buffer, Expr]()
        out: list[Stmt] = []
        for x in s.body:
            for b in _inside(x):
                known.pop(b, None)
            y = _Known(own, known).visit_stmt(x)
            assert isinstance(y, Stmt)
            if isinstance(y, Store):
                known.pop(y.buffer, None)
                block = y.buffer.scope in ("shared", "fragment") and y.value.dtype is y.buffer.dtype
                if block and y.indices == own:
                    var = Var(y.buffer.name, y.value.dtype)
                    out.append(Let(var, y.value, loc=y.loc))
                    known[y.buffer] = var
                    if y.buffer not in self.read:
                        continue
                    y = y.replace(value=var)
            out.append(y)
        return s.replace(body=tuple(out)) if out else ()


class _Known(Rewriter):
    def __init__(self, own: tuple[Var, ...], known: dict[Buffer, Expr]) -> None:
        self.own, self.known = own, known

    def expr(self, e: Expr) -> Expr:
        return self.known.get(e.buffer, e) if isinstance(e, Load) and e.indices == self.own else e


def _read_elsewhere(body: Body) -> set[Buffer]:
    """Buffers that something reads other than a nest the element that it stored before."""
    return {b for n in _readers(body) for b in _mentioned(n)}


def _readers(body: Body) -> Iterable[Node]:
    for s in body:
        if isinstance(s, (For, While)):
            yield from (n for e in _heads(s) for n in walk(e))
            yield from _readers(s.body)
        elif isinstance(s, If):
            yield from walk(s.cond)
            yield from _readers((*s.then, *s.orelse))
        elif _describe(s) is None:
            yield from (n for n in walk(s) if not isinstance(n, Alloc))
        else:
            assert isinstance(s, Parallel)
            yield from _strangers(s)


def _heads(s: For | While) -> tuple[Expr, ...]:
    return (s.cond,) if isinstance(s, While) else (s.start, s.stop, s.step)


def _strangers(s: Parallel) -> Iterable[Node]:
    """What a nest reads that it has not stored before, and what it stores elsewhere or perhaps."""
    own, stored = tuple(s.vars), set[Buffer]()
    for x in s.body:
        stored -= _inside(x)
        for n in walk(x):
            known = isinstance(n, Load) and n.buffer in stored and n.indices == own
            if isinstance(n, (Load, Store)) and not known and n is not x:
                yield n
        if isinstance(x, Store) and x.indices == own:
            stored.add(x.buffer)
        elif isinstance(x, Store):
            yield x


def _inside(s: Stmt) -> set[Buffer]:
    """What a branch may store: what was known of it before is not known in it."""
    return {n.buffer for n in walk(s) if isinstance(n, Store) and n is not s}


def _mentioned(n: Node) -> set[Buffer]:
    if isinstance(n, (Load, Region)) or (isinstance(n, Stmt) and hasattr(n, "buffer")):
        return {n.buffer.root}
    return {b.root for b in getattr(n, "values", ()) if isinstance(b, Buffer)}
