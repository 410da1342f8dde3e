"""Private variables of the thread, one for each role that uses them.

`stage = T.alloc_var(...)` that a producer and a consumer count each for itself is two variables: what each is then is
the same for all threads that look at it (`analysis.uniformity`), so places and conditions of tile operations are too.
"""

from __future__ import annotations

from tiledsl.analysis.uniformity import Varying, varying
from tiledsl.ir.buffer import Buffer
from tiledsl.ir.stmt import Alloc, Kernel, Stmt
from tiledsl.ir.walk import Rewriter, walk, writes

__all__ = ["split_roles"]


def split_roles(kernel: Kernel) -> Kernel:
    """The kernel with such variables split."""
    found = varying(kernel.body, kernel.thread_vars, kernel.threads)
    views = {n.root for n in walk(kernel.body) if isinstance(n, Buffer) and n.alias_of is not None}
    own = {
        b: [(r, b.replace(name=b.name)) for r in readers]
        for b, readers in found.readers.items()
        if b in found.buffers - views and found.everyone[0] not in readers
    }
    return kernel.replace(body=_Splitter(found, own).visit_block(kernel.body)) if own else kernel


class _Splitter(Rewriter):
    """own: what becomes of a variable, for the threads that read it."""

    def __init__(self, found: Varying, own: dict[Buffer, list[tuple[int, Buffer]]]) -> None:
        self.found, self.own = found, own
        self.names: dict[Buffer, Buffer] = {}

    def buffer(self, b: Buffer) -> Buffer:
        return self.names.get(b, b)

    def visit_stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        threads, _ = self.found.place(s)
        outer, self.names = self.names, {b: new for b, own in self.own.items() for r, new in own if r & threads}
        split = [b for b in ((s.buffer,) if isinstance(s, Alloc) else writes(s)) if b in self.own]
        made: list[Stmt] = []
        for r, new in self.own[split[0]] if split else [(threads, None)]:
            if r & threads:
                names = self.names if new is None else {**self.names, split[0]: new}
                self.names, kept = names, self.names
                one = super().visit_stmt(s)
                self.names = kept
                made += one if isinstance(one, tuple) else (one,)
        self.names = outer
        return made[0] if len(made) == 1 else tuple(made)
