"""Which values differ between threads or lanes: dependence on seed variables through data, storage and control."""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Sequence

from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.meeting import apart
from tiledsl.ir import (
    TILE_OPS,
    Alloc,
    Atomic,
    Binary,
    Break,
    Buffer,
    Call,
    Collective,
    Const,
    Continue,
    Expr,
    For,
    If,
    Kernel,
    Let,
    Load,
    Parallel,
    ReducerOp,
    Return,
    Stmt,
    Store,
    Sync,
    Var,
    Wait,
    While,
)
from tiledsl.ir.walk import reads, substitute, walk, writes

__all__ = ["PRIVATE", "Varying", "thread_level", "varying"]

PRIVATE = ("local", "var")  # scopes of which each thread has its own
_MEETINGS = (Wait, Sync, *TILE_OPS)
# The threads that may be at a place (bits by number), and sets of them: those of one set who come, come together.
Here = tuple[int, tuple[int, ...]]


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
    Iterations of a T.Parallel count as lanes: they belong to different threads. Private storage that only the threads
    of one role read, and that all of them change together, is uniform too: it matters to nobody else.
    repeated: atomics and contributions to reducers outside T.Parallel that all lanes do alike (language.md 0.3).
    readers: the threads that read a private buffer, as sets without common members (bits by number); without what all
             threads read before a role may have changed it.
    """

    def __init__(self, seeds: Sequence[Var], threads: Sequence[Expr] = ()) -> None:
        self.vars: set[Var] = set(seeds)
        self.buffers: set[Buffer] = set()
        self.repeated: list[Atomic | ReducerOp] = []
        self.readers: dict[Buffer, list[int]] = {}
        self._threads = [(v, e.value) for v, e in zip(seeds, threads, strict=False) if isinstance(e, Const)]
        count = math.prod(n for _, n in self._threads) if len(self._threads) == len(threads) > 0 else 0
        all_threads = max((1 << count) - 1, 1)
        self.everyone: Here = (all_threads, (all_threads,))
        self._parallel = False
        self._places: dict[int, Here] = {}
        self._stores: list[tuple[Buffer, Here, bool]] = []
        self._parted: set[Buffer] = set()  # what some threads, but not all, may have changed by now
        self._lets: dict[Var, Expr] = {}  # in terms of thread variables
        self._chosen: dict[Expr, int] = {}  # the threads for which conditions hold

    def place(self, s: Stmt) -> Here:
        """Who comes to this statement of the block."""
        return self._places[id(s)]

    def partial(self, s: Stmt) -> bool:
        """Not all lanes need come to this statement of the block."""
        return self._places.get(id(s), self.everyone) != self.everyone

    def leaves(self, body: tuple[Stmt, ...]) -> bool:
        """Some lanes, but not all, may leave the body of a loop early."""
        return self._leaves(body, False)

    def expr(self, e: Expr | Stmt) -> bool:
        """True when the value of e, or the operands of a tile operation, may differ between lanes."""
        return any(
            n in self.vars if isinstance(n, Var) else isinstance(n, Buffer) and n.root in self.buffers for n in walk(e)
        )

    def run(self, body: tuple[Stmt, ...]) -> bool:
        """One pass over everything; true when something new was marked."""
        for known in (self.repeated, self.readers, self._places, self._stores, self._parted):
            known.clear()
        changed = self._block(body, self.everyone)
        return changed | any(
            [self._mark(b) for b, here, uneven in self._stores if uneven or not self._all_readers(b, here)]
        )

    def uneven(self, s: For | While) -> bool:
        """Lanes may run different numbers of rounds, by the loop's own bounds."""
        return any(map(self.expr, (s.start, s.stop, s.step) if isinstance(s, For) else (s.cond,)))

    def _mark(self, n: Var | Buffer) -> bool:
        if isinstance(n, Var):
            new = n not in self.vars
            self.vars.add(n)
        else:
            new = n.root not in self.buffers
            self.buffers.add(n.root)
        return new

    # -- roles -------------------------------------------------------------------------------------------

    def _all_readers(self, b: Buffer, here: Here) -> bool:
        """Those who are here are all that may read the buffer, and perhaps others."""
        threads, sets = here
        read = functools.reduce(operator.or_, self.readers.get(b, []), 0)
        together = any(threads & ~one == 0 for one in sets)
        return here == self.everyone or (together and threads & read == read)

    def _read(self, s: Stmt, here: Here) -> None:
        threads = here[0]
        if not threads:
            return  # nobody comes here
        for root in {b.root for b in reads(s) if b.root.scope in PRIVATE}:
            if here == self.everyone and root not in self._parted:
                continue  # still the same for all roles
            apart = [r for r in self.readers.get(root, []) if not r & threads]
            joined = (r for r in self.readers.get(root, []) if r & threads)
            self.readers[root] = [*apart, functools.reduce(operator.or_, joined, threads)]

    def _sides(self, s: If, here: Here) -> tuple[Here, Here]:
        """Who goes to the two sides of a branch. Roles are told apart where groups of threads meet in the branch and
        the condition is known for each thread."""
        if not self.expr(s.cond):
            return here, here
        threads, sets = here
        known, rest = self._known(s.cond)
        if known is None or not any(isinstance(n, _MEETINGS) for n in walk(s)):
            return (threads, ()), (threads, ())
        even = not any(map(self.expr, rest))
        return (threads & known, sets if even else ()), (threads, ()) if rest else (threads & ~known, sets)

    def _parted_by(self, here: Here, s: Stmt) -> Here:
        """Who comes to what is behind a branch in which they wait for each other: the two sides, each by itself."""
        assert isinstance(s, If)
        known, rest = self._known(s.cond)
        if known is None or rest:
            return here[0], ()
        return here[0], tuple(one & side for one in here[1] for side in (known, ~known))

    def _known(self, cond: Expr) -> tuple[int | None, list[Expr]]:
        """The threads for which the parts of a conjunction hold that depend on nothing but the thread; other parts."""
        if isinstance(cond, Binary) and cond.op == "and":
            (a, some), (b, others) = self._known(cond.a), self._known(cond.b)
            return (b if a is None else a if b is None else a & b), some + others
        plain: Expr = substitute(cond, self._lets)
        if not self._of_threads(plain):
            return None, [cond]
        if plain not in self._chosen:
            number, found = 1, 0
            for index in itertools.product(*(range(n) for _, n in reversed(self._threads))):
                env = dict(zip((v for v, _ in reversed(self._threads)), index, strict=True))
                found |= number if evaluate(plain, env) else 0
                number <<= 1
            self._chosen[plain] = found
        return self._chosen[plain], []

    def _of_threads(self, e: Expr) -> bool:
        """The thread decides alone about the value."""
        names = {v for v, _ in self._threads}
        return bool(names) and not any(
            isinstance(n, (Load, Call)) or (isinstance(n, Var) and n not in names) for n in walk(e)
        )

    # -- statements --------------------------------------------------------------------------------------

    def _block(self, body: tuple[Stmt, ...], here: Here) -> bool:
        """One pass over a block. True when something new was marked."""
        changed, end = False, 0
        branches: list[Stmt] = []  # at which those who come parted
        for at, s in enumerate(body):
            if at >= end:
                branches = []
            came = functools.reduce(self._parted_by, branches, here)
            if (until := apart(body, at, self.expr)) > at + 1:
                branches, end = [*branches, s], until
            other = self._places.get(id(s), came)  # the same statement at two places
            self._places[id(s)] = came if other == came else (came[0] | other[0], ())
            if isinstance(s, (For, While)):
                inner = (n for branch in walk(s.body) if isinstance(branch, If) for n in walk(branch))
                self._parted |= {n.buffer.root for n in inner if isinstance(n, Store)}
            self._read(s, came)
            changed |= self._stmt(s, came)
            if came != self.everyone:
                self._parted |= {b.root for b in writes(s)}
            here = self._behind(s, here)
        return changed

    def _behind(self, s: Stmt, here: Here) -> Here:
        """Who is left behind a statement."""
        if here == self.everyone and not self._leaves((s,), False):
            return here
        if not any(isinstance(n, (Return, Break, Continue)) for n in walk(s)):
            return here
        if isinstance(s, If) and s.then and isinstance(s.then[-1], Return):
            known, rest = self._known(s.cond)
            if known is not None and not rest and sum(isinstance(n, (Return, Break, Continue)) for n in walk(s)) == 1:
                return here[0] & ~known, here[1]
        return (here[0], () if self._leaves((s,), here != self.everyone) else here[1])

    def _stmt(self, s: Stmt, here: Here) -> bool:
        divergent = here != self.everyone
        if isinstance(s, Let):
            plain: Expr = substitute(s.value, self._lets)
            if self._of_threads(plain):
                self._lets[s.var] = plain
            return self.expr(s.value) and self._mark(s.var)
        if isinstance(s, (Store, Atomic, ReducerOp)):
            parts = [*s.indices, *((s.value,) if s.value is not None else ())]
            uneven = any(map(self.expr, parts))
            if s.buffer.root.scope in PRIVATE:
                self._stores.append((s.buffer.root, here, uneven))
            if not isinstance(s, Store) and not divergent and not uneven and not self._parallel and _counts(s):
                self.repeated.append(s)
            # every lane draws its own
            return isinstance(s, Atomic) and s.result is not None and self._mark(s.result)
        if isinstance(s, Collective):
            return self._differs(s) and self._mark(s.result)
        if isinstance(s, Alloc):
            if s.init is not None:
                self._stores.append((s.buffer.root, here, self.expr(s.init)))
            return False
        if isinstance(s, If):
            then, orelse = self._sides(s, here)
            return self._block(s.then, then) | self._block(s.orelse, orelse)
        if isinstance(s, (For, While)):
            uneven = self.uneven(s)
            changed = isinstance(s, For) and uneven and self._mark(s.var)
            uneven = uneven or self._leaves(s.body, divergent)
            return changed | self._block(s.body, (here[0], ()) if uneven else here)
        if isinstance(s, Parallel):
            changed = any([self._mark(v) for v in s.vars])
            self._parallel = True
            changed |= self._block(s.body, here)
            self._parallel = False
            return changed
        own = [b.root for b in writes(s) if b.root.scope in PRIVATE]  # a tile operation on each thread's storage
        self._stores += [(b, here, self.expr(s)) for b in own]
        return False

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
                uneven = divergent or self.uneven(s)
                uneven = uneven or self._leaves(s.body, uneven)
                if self._leaves(s.body, uneven, False):
                    return True
        return False


def _counts(s: Atomic | ReducerOp) -> bool:
    """It matters how often it is done: max, min, and, or of one value are the same done twice, their old values not."""
    if isinstance(s, ReducerOp):
        return s.action == "update" and s.op in ("sum", "bitxor")
    return s.op in ("add", "xor") or (s.result is not None and s.op != "load")


def varying(body: tuple[Stmt, ...], seeds: Sequence[Var], threads: Sequence[Expr] = ()) -> Varying:
    """What depends on the seeds (thread variables, or the variables of a T.Parallel) in a block; exact up to the
    values that conditions take: a fixed point over storage and control. threads: the extents of thread variables, if
    roles are to be told apart."""
    found = Varying(seeds, threads)
    while found.run(body):
        pass
    return found
