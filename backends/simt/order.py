"""Barriers between the operations of a block, and of groups of its threads, that touch the same memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tiledsl import ir
from tiledsl.analysis.groups import Ranges, ThreadGroups, size
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir.collectives import WARP
from tiledsl.ir.walk import map_kernels, walk
from tiledsl.passes.order_shared import Orderer

from .place import thread_count
from .stages import ASYNC

__all__ = ["OrderThreads", "one_warp"]

_TILES = (ir.Parallel, ir.Gemm, ir.Reduce)
BARRIERS = 14  # numbers of barriers that groups get, downwards from here


@dataclass(frozen=True)
class OrderThreads:
    """The pass; expects that fragments left are registers: of shared and global memory threads see each other's."""

    name: ClassVar[str] = "order_threads"

    def __call__(self, function: ir.Function) -> ir.Function:
        def one(kernel: ir.Kernel) -> ir.Kernel:
            if thread_count(kernel) == 1:
                return kernel
            body, _ = _GroupOrderer(kernel).block(kernel.body, {})
            return kernel if body == kernel.body else kernel.replace(body=body)

        return map_kernels(one, function)


def one_warp(group: Ranges) -> bool:
    """All threads of the group are in one warp."""
    return bool(group) and group[0][0] // WARP == (group[-1][1] - 1) // WARP


def _waited(s: ir.Parallel) -> bool:
    return bool(dict(s.annotations).get(ASYNC, False))


class _GroupOrderer(Orderer):
    """group: the threads that come to the block at hand; None: not known."""

    scopes = ("shared", "global")
    by_block = ()
    renewed = False  # shared memory of a loop is the same in every round

    def __init__(self, kernel: ir.Kernel) -> None:
        super().__init__(kernel)
        self.groups = ThreadGroups(kernel)
        self.group: Ranges | None = self.groups.everyone
        self.apart = False  # inside a branch that only a group comes to
        self.numbers: dict[Ranges, int] = {}

    def parted(self, s: ir.Stmt) -> ir.Stmt:
        if not isinstance(s, ir.If):
            return s
        outer, self.apart = (self.group, self.apart), True
        sides = self.groups.split(self.group, s.cond)
        bodies = []
        for self.group, body in zip(sides, (s.then, s.orelse), strict=True):
            bodies.append(self.block(body, {})[0] if self.group else body)
        self.group, self.apart = self.groups.after(s, outer[0]), outer[1]
        then, orelse = bodies
        return s if then == s.then and orelse == s.orelse else s.replace(then=then, orelse=orelse)

    def _accesses(self, roots: tuple[ir.Expr | ir.Stmt, ...]) -> dict[ir.Buffer, frozenset[Any]]:
        """Without asynchronous fills, whose waits and barriers are there already."""
        return super()._accesses(tuple(r for r in roots if not (isinstance(r, ir.Parallel) and _waited(r))))

    def signals(self, s: ir.Stmt) -> bool:
        """One thread, or some, touch what others look at to see that everybody is done."""
        if isinstance(s, ir.Atomic):
            return s.op != "arrive" and s.result is None and not any(map(self.found.expr, s.indices))
        if not isinstance(s, ir.If) or not self.found.expr(s.cond):
            return False
        return any(isinstance(n, ir.Atomic) for n in walk(s)) and not any(isinstance(n, _TILES) for n in walk(s))

    def barrier(self, s: ir.Stmt) -> tuple[ir.Stmt, ...]:
        group = self.group
        if not self.apart:
            return (ir.Sync("block", added=True, loc=s.loc),)
        assert group is not None
        if one_warp(group):
            return (ir.Sync("warp", added=True, loc=s.loc),)
        n = size(group)
        if n % WARP:
            if any(isinstance(x, _TILES) for x in walk(s)):
                raise TileNotImplementedError(
                    f"a tile operation by {n} threads: on GPUs groups of whole warps (32 threads) work together",
                    s.loc,
                    help="make the group a multiple of 32 threads, or a part of one warp",
                )
            return ()
        number = self.numbers.setdefault(group, BARRIERS - len(self.numbers))
        return (ir.Sync("block", count=n, barrier=number, added=True, loc=s.loc),)
