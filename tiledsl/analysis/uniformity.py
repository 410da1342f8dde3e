"""Which values differ between threads or lanes: dependence on seed variables through data, storage and control."""

from __future__ import annotations

from collections.abc import Iterable

from tiledsl.ir.buffer import Buffer
from tiledsl.ir.expr import Expr, Var
from tiledsl.ir.stmt import (
    Alloc,
    Atomic,
    Break,
    Collective,
    Continue,
    For,
    If,
    Kernel,
    Let,
    Parallel,
    ReducerOp,
    Return,
    Stmt,
    Store,
    Wait,
    While,
)
from tiledsl.ir.walk import walk, writes

__all__ = ["Varying", "thread_level", "varying"]

_PRIVATE = ("local", "var")


def thread_level(kernel: Kernel) -> bool:
    """The kernel looks at its threads: statements that are no tile operations belong to each of them."""
    threads = set(kernel.thread_vars)
    return any(
        isinstance(n, (Collective, Wait))
        or (isinstance(n, Atomic) and n.op == "arrive")
        or (isinstance(n, Var) and n in threads)
        for n in walk(kernel.body)
    )


class Varying:
    """vars, buffers: what may hold different values in different lanes (buffers: private ones of each lane).

    Shared, fragment and global storage is one for all lanes, so what is loaded there is uniform where the index is.
    Iterations of a T.Parallel count as lanes: they belong to different threads.
    repeated: atomics and contributions to reducers outside T.Parallel that all lanes do alike (language.md 0.3).
    """

    def __init__(self, seeds: Iterable[Var]) -> None:
        self.vars: set[Var] = set(seeds)
        self.buffers: set[Buffer] = set()
        self.repeated: list[Atomic | ReducerOp] = []
        self._parallel = False
        self._partial: set[int] = set()

    def partial(self, s: Stmt) -> bool:
        """Not all lanes need come to this statement of the block."""
        return id(s) in self._partial

    def leaves(self, body: tuple[Stmt, ...]) -> bool:
        """Some lanes, but not all, may leave the body of a loop early."""
        return self._leaves(body, False)

    def expr(self, e: Expr | Stmt) -> bool:
        """True when the value of e, or the operands of a tile operation, may differ between lanes."""
        return any(
            n in self.vars if isinstance(n, Var) else isinstance(n, Buffer) and n.root in self.buffers for n in walk(e)
        )

    def _mark(self, n: Var | Buffer) -> bool:
        if isinstance(n, Var):
            new = n not in self.vars
            self.vars.add(n)
        else:
            new = n.root not in self.buffers
            self.buffers.add(n.root)
        return new

    def _block(self, body: tuple[Stmt, ...], divergent: bool) -> bool:
        """One pass over a block; divergent: not all lanes need be here. True when something new was marked."""
        changed = False
        for s in body:
            if divergent:
                self._partial.add(id(s))
            changed |= self._stmt(s, divergent)
            divergent = divergent or self._leaves((s,), divergent)
        return changed

    def _stmt(self, s: Stmt, divergent: bool) -> bool:
        if isinstance(s, Let):
            return self.expr(s.value) and self._mark(s.var)
        if isinstance(s, (Store, Atomic, ReducerOp)):
            parts = [*s.indices, *((s.value,) if s.value is not None else ())]
            changed, uneven = False, divergent or any(map(self.expr, parts))
            if s.buffer.root.scope in _PRIVATE and uneven:
                changed = self._mark(s.buffer)
            if not isinstance(s, Store) and not uneven and not self._parallel and _counts(s):
                self.repeated.append(s)
            if isinstance(s, Atomic) and s.result is not None:
                changed |= self._mark(s.result)  # every lane draws its own
            return changed
        if isinstance(s, Collective):
            return self._differs(s) and self._mark(s.result)
        if isinstance(s, Alloc):
            return s.init is not None and self.expr(s.init) and self._mark(s.buffer)
        if isinstance(s, If):
            inner = divergent or self.expr(s.cond)
            return self._block(s.then, inner) | self._block(s.orelse, inner)
        if isinstance(s, (For, While)):
            bounds = (s.start, s.stop, s.step) if isinstance(s, For) else (s.cond,)
            uneven = any(map(self.expr, bounds))
            changed = isinstance(s, For) and uneven and self._mark(s.var)
            return changed | self._block(s.body, divergent or uneven or self._leaves(s.body, divergent))
        if isinstance(s, Parallel):
            changed = any([self._mark(v) for v in s.vars])
            self._parallel = True
            changed |= self._block(s.body, divergent)
            self._parallel = False
            return changed
        own = [b for b in writes(s) if b.root.scope in _PRIVATE]  # a tile operation on each thread's storage
        return bool(own) and (divergent or self.expr(s)) and any([self._mark(b) for b in own])

    @staticmethod
    def _differs(s: Collective) -> bool:
        """Threads of one block may get different results; those that are here together agree on a block's vote."""
        return s.scope != "block" or s.op == "rank" or bool(s.axes)

    def _leaves(self, body: tuple[Stmt, ...], divergent: bool, jumps: bool = True) -> bool:
        """Some lanes, but not all, may leave the block early. jumps: by break and continue too, else by return."""
        for s in body:
            if isinstance(s, Return) or (jumps and isinstance(s, (Break, Continue))):
                if divergent:
                    return True
            elif isinstance(s, If):
                inner = divergent or self.expr(s.cond)
                if self._leaves(s.then, inner, jumps) or self._leaves(s.orelse, inner, jumps):
                    return True
            elif isinstance(s, (For, While)):
                uneven = divergent or any(map(self.expr, (s.start, s.stop) if isinstance(s, For) else (s.cond,)))
                uneven = uneven or self._leaves(s.body, uneven)
                if self._leaves(s.body, uneven, False):
                    return True
        return False


def _counts(s: Atomic | ReducerOp) -> bool:
    """It matters how often it is done: max, min, and, or of one value are the same done twice, their old values not."""
    if isinstance(s, ReducerOp):
        return s.action == "update" and s.op in ("sum", "bitxor")
    return s.op in ("add", "xor") or (s.result is not None and s.op != "load")


def varying(body: tuple[Stmt, ...], seeds: Iterable[Var]) -> Varying:
    """What depends on the seeds (thread variables, or the variables of a T.Parallel) in a block; exact up to the
    values that conditions take: a fixed point over storage and control."""
    found = Varying(seeds)
    while found._block(body, False):
        found.repeated.clear()
    return found
