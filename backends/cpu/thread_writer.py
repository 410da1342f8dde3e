"""Where the statements of a spread kernel go: blocks of the result, regions that are open, masks of who is here."""

from __future__ import annotations

from dataclasses import dataclass, field

from tiledsl import ir
from tiledsl.analysis.uniformity import Varying, varying
from tiledsl.ir import build
from tiledsl.ir.build import INT32, TRUE, all_of, const, ne
from tiledsl.ir.walk import loads_of, walk, writes

from .regions import Regions

__all__ = ["Level", "Loop", "Masks", "Writer", "whole"]

_ZERO = const(0, INT32)
Masks = tuple[ir.Buffer, ...]


@dataclass(eq=False)
class Loop:
    """A loop around what is being written. masks: None where all threads leave it together; else `going` holds the
    threads that have not left it, `here` those that are in this round."""

    masks: tuple[ir.Buffer, ir.Buffer] | None = None


@dataclass(eq=False)
class Level:
    """One block of the result. group: the numbers of the threads that may be here, first and behind the last; of
    those the ones are here for which all masks hold."""

    masks: Masks
    group: tuple[int, int]
    out: list[ir.Stmt] = field(default_factory=list)
    pending: list[ir.Stmt] = field(default_factory=list)  # of the region that is open


class Writer:
    """What is being written of one kernel.

    level, loops  the block that is being written, and the loops around it
    alive         the mask of the threads that have not returned; None while none can have
    """

    def __init__(self, kernel: ir.Kernel) -> None:
        self.kernel = kernel
        self.varying: Varying = varying(kernel.body, kernel.thread_vars, kernel.threads)
        self.regions = Regions(kernel, self.varying)
        self.thread = self.regions.thread
        self.everyone = (0, self.regions.count)
        self.level = Level((), self.everyone)
        self.loops: list[Loop] = []
        self.alive: ir.Buffer | None = None

    @property
    def some_threads(self) -> bool:
        """Perhaps not all threads are here."""
        return bool(self.level.masks) or self.level.group != self.everyone

    def flush(self) -> None:
        """Ends the open region."""
        level = self.level
        if level.pending:
            level.out.append(self.regions.region(self.guarded(*level.pending), *level.group))
            level.pending = []

    def guarded(self, *body: ir.Stmt) -> tuple[ir.Stmt, ...]:
        """Statements for those threads of the group that are here."""
        guard = all_of(self.holds(m) for m in self.level.masks)
        return body if guard == TRUE else (ir.If(guard, body, loc=body[0].loc),)

    def emit(self, *s: ir.Stmt) -> None:
        """Statements that run once for the block, in their place."""
        self.flush()
        self.level.out += s

    def everywhere(self, *body: ir.Stmt) -> None:
        """A region of its own, of all threads of the block, wherever they are."""
        self.level.out.append(self.regions.region(body))

    def here(self) -> ir.Expr:
        """This thread, of all of the block, is here."""
        first, last = self.level.group
        tests = [build.ge(self.thread, first)] if first else []
        if last < self.regions.count:
            tests.append(build.lt(self.thread, last))
        return all_of([*tests, *(self.holds(m) for m in self.level.masks)])

    def holds(self, mask: ir.Buffer) -> ir.Expr:
        return ne(mask.load(self.thread), 0)

    def set(self, mask: ir.Buffer, value: ir.Expr) -> ir.Stmt:
        return ir.Store(mask, (self.thread,), build.cast(value, INT32))

    def mask(self, name: str) -> ir.Buffer:
        return self.regions.per_thread(name, INT32)

    def some(self, mask: ir.Buffer, flag: ir.Buffer) -> ir.Expr:
        """A condition for the block, computed here: the mask holds for some thread."""
        self.emit(ir.Reduce("max", whole(mask), whole(flag), 0, TRUE))
        return ne(flag.load(_ZERO), 0)

    def uniform_let(self, s: ir.Let) -> None:
        """A value of the block; it moves before the open region unless that writes what it reads."""
        stored = {b.root for p in self.level.pending for n in walk(p) if isinstance(n, ir.Stmt) for b in writes(n)}
        shared = any(b.scope == "global" for b in stored)
        for load in loads_of(s.value):
            root = load.buffer.root
            if root in stored or (shared and root.scope == "global"):
                self.flush()
        self.level.out.append(s)


def whole(b: ir.Buffer) -> ir.Region:
    """All of a buffer."""
    return ir.Region(b, tuple(build.zero(e.dtype) for e in b.shape), b.shape)
