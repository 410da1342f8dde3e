"""Barriers of the block where thread-level code leaves them out: between two statements of which one writes shared
storage that another thread may touch in the other.

Statements that all threads come to thus happen one after the other for the whole block, as they do in the interpreter,
however a backend runs the threads in between. (The checked mode reports such code.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.analysis.meeting import apart
from tiledsl.analysis.uniformity import thread_level, varying
from tiledsl.ir import (
    TILE_OPS,
    Alloc,
    Atomic,
    Binary,
    Buffer,
    Cast,
    Collective,
    Const,
    Debug,
    Expr,
    For,
    Function,
    If,
    Kernel,
    Let,
    Load,
    Region,
    Stmt,
    Store,
    Sync,
    Var,
    While,
)
from tiledsl.ir.walk import bound_in, map_kernels, walk, writes

__all__ = ["OrderShared", "Orderer"]

# (kind of access "r", "w" or "a", indices; None: anywhere)
_Access = tuple[str, tuple[Expr, ...] | None]
_Pending = dict[Buffer, frozenset[_Access]]


@dataclass(frozen=True)
class OrderShared:
    """The pass; kernels that do not look at their threads stay as they are."""

    name: ClassVar[str] = "order_shared"

    def __call__(self, function: Function) -> Function:
        def one(kernel: Kernel) -> Kernel:
            if not thread_level(kernel):
                return kernel
            body, _ = Orderer(kernel).block(kernel.body, {})
            return kernel if body == kernel.body else kernel.replace(body=body)

        return map_kernels(one, function)


class Orderer:
    """pending: accesses since the last barrier, by the buffer that owns the storage.

    scopes: of the storage that is watched; by_block: operations that are barriers by themselves; renewed: what a loop
    allocates is other storage in each round
    """

    scopes: tuple[str, ...] = ("shared", "fragment")
    by_block: tuple[type[Stmt], ...] = TILE_OPS
    renewed = True

    def __init__(self, kernel: Kernel) -> None:
        self.found = varying(kernel.body, kernel.thread_vars, kernel.threads)
        extents = zip(kernel.thread_vars, kernel.threads, strict=True)
        self.threads = {v: n.value if isinstance(n, Const) else None for v, n in extents}
        self.lets = {s.var: s.value for s in walk(kernel.body) if isinstance(s, Let)}

    def block(self, body: tuple[Stmt, ...], pending: _Pending) -> tuple[tuple[Stmt, ...], _Pending]:
        out: list[Stmt] = []
        free = 0  # up to here groups of threads go on without each other: no place for a barrier of the block
        for at, s in enumerate(body):
            if at < free:
                pending = _merge(pending, self._accesses((s,)))
                out.append(self.parted(s))
                continue
            if self._meets(s):
                pending = {}
                out.append(s)
                continue
            free = apart(body, at, self.found.expr)
            if isinstance(s, (For, While)) and self._together(s):
                test, body_of = (s.start, s.stop, s.step) if isinstance(s, For) else (s.cond,), s.body
                out, pending = self._before(s, out, pending, self._accesses(test))
                inner, after = self.block(body_of, pending)
                inner, after = self.block(inner, _merge(pending, _carried(after, s, self.renewed)))  # round after round
                if isinstance(s, While):  # the next round's test
                    last, after = self._before(s, list(inner), after, self._accesses(test))
                    inner = tuple(last)
                out.append(s if inner == s.body else s.replace(body=inner))
                pending = _merge(pending, _carried(after, s, self.renewed))
            elif isinstance(s, If) and not self.found.expr(s.cond):
                out, pending = self._before(s, out, pending, self._accesses((s.cond,)))
                (then, one), (orelse, two) = self.block(s.then, pending), self.block(s.orelse, pending)
                same = then == s.then and orelse == s.orelse
                out.append(s if same else s.replace(then=then, orelse=orelse))
                pending = _merge(one, two)
            else:
                out, pending = self._before(s, out, pending, self._accesses((s,)))
                out.append(self.parted(s))
        return tuple(out), pending

    def parted(self, s: Stmt) -> Stmt:
        """A statement to whose parts not all threads come together."""
        return s

    def barrier(self, s: Stmt) -> tuple[Stmt, ...]:
        """The barrier in front of a statement."""
        return (Sync("block", loc=s.loc),)

    def signals(self, s: Stmt) -> bool:
        """It tells others that all that is pending has been done."""
        return False

    def _before(self, s: Stmt, out: list[Stmt], pending: _Pending, own: _Pending) -> tuple[list[Stmt], _Pending]:
        """Behind a barrier, if accesses of s do not go together with what is pending."""
        clash = any(_clash(pending.get(b, frozenset()), accesses) for b, accesses in own.items())
        if clash or (pending and self.signals(s)):
            return [*out, *self.barrier(s)], own
        return out, _merge(pending, own)

    def _meets(self, s: Stmt) -> bool:
        if isinstance(s, Sync):
            return s.scope in ("block", "grid") and s.count is None
        return isinstance(s, self.by_block) or (isinstance(s, Collective) and s.scope == "block" and bool(s.args))

    def _together(self, s: For | While) -> bool:
        """All threads go through the same rounds."""
        return not self.found.uneven(s) and not self.found.leaves(s.body)

    # -- what is touched ---------------------------------------------------------------------------------

    def _accesses(self, roots: tuple[Expr | Stmt, ...]) -> _Pending:
        """What statements and expressions touch of shared storage."""
        found: dict[Buffer, set[_Access]] = {}

        def note(b: Buffer, kind: str, indices: tuple[Expr, ...] | None) -> None:
            if b.root.scope in self.scopes:
                own = indices is not None and b is b.root and self._own(indices)
                found.setdefault(b.root, set()).add((kind, indices if own else None))

        for root in roots:
            for n in walk(root):
                if isinstance(n, Load):
                    note(n.buffer, "r", n.indices)
                elif isinstance(n, Store):
                    note(n.buffer, "w", n.indices)
                elif isinstance(n, Atomic):
                    note(n.buffer, "a", n.indices)
                elif isinstance(n, Region):
                    note(n.buffer, "r", None)
                elif isinstance(n, Stmt):
                    for b in writes(n):
                        note(b, "w", None)
                    for value in n.values if isinstance(n, Debug) else ():
                        if isinstance(value, Buffer):
                            note(value, "r", None)
        return {b: frozenset(accesses) for b, accesses in found.items()}

    def _own(self, indices: tuple[Expr, ...]) -> bool:
        """No two threads have the same indices: a sum of thread indices, as digits of different weight."""
        settled: set[Var] = set()
        for index in indices:
            weights = self._weights(index)
            reach = 0
            for v, weight in sorted((weights or {}).items(), key=lambda pair: abs(pair[1])):
                extent = self.threads[v]
                if extent is None or abs(weight) <= reach:
                    break
                reach += abs(weight) * (extent - 1)
            else:
                settled |= set(weights or ())
        return all(v in settled or n == 1 for v, n in self.threads.items())

    def _weights(self, e: Expr) -> dict[Var, int] | None:
        """e as weights of thread indices plus what is the same for all threads; None for other expressions."""
        if any(isinstance(n, Load) for n in walk(e)):
            return None
        if isinstance(e, Var) and e in self.threads:
            return {e: 1}
        if not self.found.expr(e):
            return {}
        if isinstance(e, Var) and e in self.lets:
            return self._weights(self.lets[e])
        if isinstance(e, Cast) and e.type.is_int and e.x.dtype.is_int and e.type.bits >= e.x.dtype.bits:
            return self._weights(e.x)
        if isinstance(e, Binary) and e.op in ("add", "sub"):
            a, b = self._weights(e.a), self._weights(e.b)
            if a is None or b is None:
                return None
            sign = 1 if e.op == "add" else -1
            summed = {v: a.get(v, 0) + sign * b.get(v, 0) for v in (*a, *b)}
            return {v: w for v, w in summed.items() if w}
        if isinstance(e, Binary) and e.op == "mul":
            for x, y in ((e.a, e.b), (e.b, e.a)):
                if isinstance(x, Const):
                    found = self._weights(y)
                    return None if found is None else {v: w * x.value for v, w in found.items()}
        return None


def _merge(a: _Pending, b: _Pending) -> _Pending:
    return {k: a.get(k, frozenset()) | b.get(k, frozenset()) for k in (*a, *b)}


def _clash(a: frozenset[_Access], b: frozenset[_Access]) -> bool:
    """Some access of a and some of b may touch one element from two threads, one of them to write it. Equal indices are
    the same thread's; atomics go together."""
    return any((x, y) not in (("r", "r"), ("a", "a")) and (at is None or at != other) for x, at in a for y, other in b)


def _carried(pending: _Pending, s: For | While, renewed: bool) -> _Pending:
    """What was pending at the end of a round, as the next round sees it: names bound in the loop have changed."""
    bound = {v for n in walk(s) for v in bound_in(n)}
    own = {n.buffer for n in walk(s.body) if isinstance(n, Alloc)} if renewed else set()

    def seen(access: _Access) -> _Access:
        kind, at = access
        fresh = at is not None and any(n in bound for i in at for n in walk(i) if isinstance(n, Var))
        return (kind, None) if fresh else access

    return {b: frozenset(map(seen, accesses)) for b, accesses in pending.items() if b not in own}
