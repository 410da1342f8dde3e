"""Kernels in which threads meet where nobody can tell who comes: what they do is spread over nests of threads.

GPUs have barriers of the block, of a warp's lanes and of whole warps that are named beforehand. Where an author's
barrier, block-wide operation or tile operation is for "the threads that are here" and that follows from no thread's
number, or where the number is none that hardware takes, the kernel is rewritten as the CPU does it: control flow
becomes the block's own, masks say who is here, and what threads do between two meetings is a T.Parallel over them.
Slower than an author's own barriers, but what the interpreter says; `thread_count` and the rest of the lowering see a
kernel of tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.analysis.groups import Ranges, ThreadGroups, size
from tiledsl.analysis.uniformity import thread_level, varying
from tiledsl.backends.cpu.spread import Spreader
from tiledsl.ir import build
from tiledsl.ir.collectives import WARP
from tiledsl.ir.walk import Rewriter, map_kernels, substitute, walk
from tiledsl.passes.order_shared import OrderShared

from .order import BARRIERS, one_warp

__all__ = ["SpreadApart"]

_NAMES = 12  # in one question


@dataclass(frozen=True)
class SpreadApart:
    """The pass; expects the author's kernels. All others stay as they are."""

    name: ClassVar[str] = "spread_apart"

    def __call__(self, function: ir.Function) -> ir.Function:
        def one(kernel: ir.Kernel) -> ir.Kernel:
            threads = kernel.threads
            if thread_level(kernel):
                if not _Meetings(kernel).unknown(kernel.body):
                    return kernel
                (ordered,) = OrderShared()(function.replace(kernels=(kernel,))).kernels
                kernel = Spreader(ordered).run()
                kernel = kernel.replace(body=_Lazy().visit_block(kernel.body))
            return kernel.replace(threads=threads, body=_OneAsks().visit_block(kernel.body))

        return map_kernels(one, function)


class _Lazy(Rewriter):
    """Who is here is asked of all threads, and what only those who are have been given memory for stands behind that
    question: names of such values are written out where they are used."""

    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        if not isinstance(s, ir.Parallel) or not isinstance(s.body[-1], ir.Store):
            return s
        *names, store = s.body
        if not names or len(names) > _NAMES or not all(isinstance(n, ir.Let) for n in names):
            return s
        values: dict[ir.Var, ir.Expr] = {}
        for n in names:
            assert isinstance(n, ir.Let)
            values[n.var] = build.cast(substitute(n.value, values), n.var.type)
        return s.replace(body=(substitute(store, values),))


class _OneAsks(Rewriter):
    """What an atomic operation of the block finds, one thread finds and tells the others: they go on alike."""

    def visit_stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.Parallel):
            return s
        if not isinstance(s, ir.Atomic) or s.result is None:
            return super().visit_stmt(s)
        first, own = (build.zero(build.INT32),), ir.Var(s.result.name, s.result.type)
        told = ir.Buffer("told", s.result.type, (build.const(1, build.INT32),), "shared", loc=s.loc)
        ask = (s.replace(result=own), ir.Store(told, first, own, loc=s.loc))
        nest = ir.Parallel((ir.Var("once", build.INT32),), told.shape, ask, loc=s.loc)
        return ir.Alloc(told, loc=s.loc), nest, ir.Let(s.result, told.load(*first), loc=s.loc)


class _Meetings:
    """Looks for meetings that hardware has no barrier for. group: who comes to the statements at hand."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self.groups = ThreadGroups(kernel)
        self.varying = varying(kernel.body, kernel.thread_vars, kernel.threads)
        self.group: Ranges | None = self.groups.everyone

    def unknown(self, body: Sequence[ir.Stmt]) -> bool:
        """Some meeting in these statements is one."""
        return any(self.statement(s) for s in body)

    def statement(self, s: ir.Stmt) -> bool:
        outer = self.group
        if isinstance(s, ir.If):
            sides = self.groups.split(outer, s.cond) if self.varying.expr(s.cond) else (outer, outer)
            for self.group, block in zip(sides, (s.then, s.orelse), strict=True):
                if self.unknown(block):
                    return True
            self.group = self.groups.after(s, outer) if self.varying.expr(s.cond) else outer
            return False
        if isinstance(s, (ir.For, ir.While)):
            self.group = None if self.varying.uneven(s) or self.varying.leaves(s.body) else outer
            found = self.unknown(s.body)
            returns = any(isinstance(n, ir.Return) and self.varying.partial(n) for n in walk(s.body))
            self.group = None if returns else outer
            return found
        if isinstance(s, ir.ReducerOp):
            return s.action == "update" and self.varying.expr(s)
        return self._meets(s) and not self._possible(s)

    def _meets(self, s: ir.Stmt) -> bool:
        if isinstance(s, (ir.Sync, ir.Collective)):
            return s.scope == "block"
        return isinstance(s, ir.TILE_OPS)

    def _possible(self, s: ir.Stmt) -> bool:
        """There is a barrier for those who come."""
        if isinstance(s, ir.Sync) and (s.count is not None or s.barrier):
            return (s.count or 0) % WARP == 0 and 0 <= s.barrier <= BARRIERS
        if self.group is None:
            return False
        if self.group == self.groups.everyone:
            return True
        if isinstance(s, (ir.Sync, ir.Collective)):
            return isinstance(s, ir.Collective) and s.op in ("rank", "size")
        return one_warp(self.group) or size(self.group) % WARP == 0
