"""Pipelined loops: tiles that a loop fills from global memory get several versions, and are filled asynchronously some
rounds ahead of their use.

    for k: fill(S, k); use(S, k)      becomes      for p < stages - 1: fill(S[p], p); commit
                                                   for k: wait; barrier; fill(S[(k + stages - 1) % stages], ...); commit
                                                          use(S[k % stages], k)

One barrier per round: behind it everybody has used what is filled next, and sees what has arrived.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.analysis.effects import effects
from tiledsl.analysis.uniformity import varying
from tiledsl.ir import build
from tiledsl.ir.build import is_const
from tiledsl.ir.walk import Rewriter, map_kernels, substitute, walk, writes

from .vectors import copied_rows

__all__ = ["ASYNC", "PipelineLoops"]

ASYNC = "async"  # annotation of nests whose tiles are guarded by waits and barriers of their own
_SHARED_BYTES = 96 * 1024  # versions stop being made beyond this


@dataclass(frozen=True)
class PipelineLoops:
    """The pass; expects that moves are nests with every access in range. Loops that do not fit stay as they are."""

    name: ClassVar[str] = "pipeline_loops"
    optional: ClassVar[bool] = True
    arch: str = ""

    def __call__(self, function: ir.Function) -> ir.Function:
        digits = "".join(c for c in self.arch if c.isdigit())
        if not digits or int(digits) < 80:
            return function
        return map_kernels(_kernel, function)


def _kernel(kernel: ir.Kernel) -> ir.Kernel:
    writer = _Loops(kernel)
    body = writer.visit_block(kernel.body)
    if not writer.versions:
        return kernel
    return kernel.replace(body=_Allocs(writer.versions).visit_block(body))


class _Allocs(Rewriter):
    def __init__(self, versions: dict[ir.Buffer, ir.Buffer]) -> None:
        self.versions = versions

    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        return s.replace(buffer=self.versions[s.buffer]) if isinstance(s, ir.Alloc) and s.buffer in self.versions else s


class _Loops(Rewriter):
    """versions: the tile with a first axis of versions, per tile."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self.kernel = kernel
        self.varying = varying(kernel.body, kernel.thread_vars)
        self.versions: dict[ir.Buffer, ir.Buffer] = {}
        self.uses: dict[ir.Buffer, int] = {}
        for n in walk(kernel.body):
            if isinstance(n, ir.Buffer):
                self.uses[n.root] = self.uses.get(n.root, 0) + 1

    def visit_stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.For) and s.kind == "pipelined":
            return self._pipelined(s)
        return super().visit_stmt(s)

    def _pipelined(self, s: ir.For) -> ir.Stmt | tuple[ir.Stmt, ...]:
        stages = dict(s.annotations).get("num_stages", 0)
        if not isinstance(stages, int) or stages < 2 or not is_const(s.step, 1) or self.varying.partial(s):
            return super().visit_stmt(s)
        if any(isinstance(n, (ir.Break, ir.Continue, ir.Return, ir.Sync, ir.Wait)) for n in walk(s.body)):
            return super().visit_stmt(s)
        fills = self._fills(s)
        size = sum(math.prod(b.const_shape or ()) * b.dtype.bytes for b in fills.values())
        stages = min(stages, max(1, _SHARED_BYTES // max(size, 1)))
        if not fills or stages < 2:
            return super().visit_stmt(s)
        for b in fills.values():
            extent = build.const(stages, build.INT32)
            self.versions[b] = b.replace(shape=(extent, *b.shape))
        return self._written(s, fills, stages)

    def _fills(self, s: ir.For) -> dict[int, ir.Buffer]:
        """Statements of the body, by number, that do nothing but fill a tile of shared memory from global memory which
        the loop does not write; the tile is used in this loop alone, and not before it is filled."""
        found: dict[int, ir.Buffer] = {}
        stored = effects(s.body).writes
        inside: dict[ir.Buffer, int] = {}
        for n in walk(s.body):
            if isinstance(n, ir.Buffer):
                inside[n.root] = inside.get(n.root, 0) + 1
        names = {n.var for n in s.body if isinstance(n, ir.Let)}
        for at, x in enumerate(s.body):
            rows = copied_rows(x) if isinstance(x, ir.Parallel) else None
            if rows is None or not rows.asynchronous or not isinstance(x, ir.Parallel):
                continue
            b = rows.dst
            outside = self.uses[b] - inside[b] > 1  # the Alloc is one
            writers = [n for n in walk(s.body) if isinstance(n, ir.Stmt) and b in {w.root for w in writes(n)}]
            depends = any(isinstance(n, ir.Var) and n in names for n in walk(x))
            allocated = any(isinstance(n, ir.Alloc) and n.buffer is b for n in walk(s.body))
            early = any(n is b for e in s.body[:at] for n in walk(e))
            whole = _covers(x, b)
            if outside or len(writers) != 1 or depends or allocated or early or not whole or rows.src.root in stored:
                continue
            found[at] = b
        return found

    def _written(self, s: ir.For, fills: dict[int, ir.Buffer], stages: int) -> tuple[ir.Stmt, ...]:
        kind = s.var.type
        ahead = stages - 1

        def fill(k: ir.Expr, version: ir.Expr) -> tuple[ir.Stmt, ...]:
            out: list[ir.Stmt] = []
            for at in fills:
                nest = s.body[at]
                assert isinstance(nest, ir.Parallel)
                fresh = {v: ir.Var(v.name, v.type) for v in nest.vars}
                nest = nest.replace(vars=tuple(fresh.values()), annotations=(*nest.annotations, (ASYNC, True)))
                nest = nest.replace(body=substitute(nest.body, {**fresh, s.var: k}))
                out += _Versions(self.versions, version).visit_block((nest,))
            return tuple(out)

        commit = ir.MicroCall("async_commit", (), loc=s.loc)
        before: list[ir.Stmt] = [ir.Sync("block", loc=s.loc)]
        for p in range(ahead):
            k = build.add(s.start, p)
            body = fill(k, build.const(p, kind))
            before += [ir.If(build.lt(k, s.stop), body, loc=s.loc), commit]
        later = ir.Var(f"{s.var.name}_next", kind)
        turn = build.sub(s.var, s.start)
        version = build.binary("truncmod", turn, stages)
        next_version = build.binary("truncmod", build.sub(later, s.start), stages)
        rest = tuple(x for at, x in enumerate(s.body) if at not in fills)
        body = (
            ir.MicroCall("async_wait", (), attrs=(("groups", stages - 2),), loc=s.loc),
            ir.Sync("block", loc=s.loc),
            ir.Let(later, build.add(s.var, ahead), loc=s.loc),
            ir.If(build.lt(later, s.stop), fill(later, next_version), loc=s.loc),
            commit,
            *_Versions(self.versions, version).visit_block(rest),
        )
        return (*before, s.replace(body=body, kind="serial"))


def _covers(x: ir.Parallel, b: ir.Buffer) -> bool:
    """The nest writes every element of the tile."""
    (store,) = x.body
    return isinstance(store, ir.Store) and store.indices == x.vars and x.extents == b.shape


class _Versions(Rewriter):
    """Accesses of tiles go to one version of them."""

    def __init__(self, versions: dict[ir.Buffer, ir.Buffer], version: ir.Expr) -> None:
        self.versions, self.version = versions, build.cast(version, build.INT32)

    def expr(self, e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Load) and e.buffer in self.versions:
            return e.replace(buffer=self.versions[e.buffer], indices=(self.version, *e.indices))
        return e

    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        if isinstance(s, (ir.Store, ir.Atomic)) and s.buffer in self.versions:
            return s.replace(buffer=self.versions[s.buffer], indices=(self.version, *s.indices))
        return s

    def visit(self, n: ir.Node) -> ir.Node:
        if isinstance(n, ir.Region) and n.buffer in self.versions:
            one = build.const(1, build.INT32)
            starts = tuple(self.visit_expr(e) for e in n.starts)
            return n.replace(buffer=self.versions[n.buffer], starts=(self.version, *starts), extents=(one, *n.extents))
        return super().visit(n)  # type: ignore[no-any-return]
