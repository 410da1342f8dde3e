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
from tiledsl.ir.walk import Rewriter, loads_of, map_kernels, substitute, walk, writes

from .shared import shared_limit
from .vectors import copied_rows

__all__ = ["ASYNC", "PipelineLoops"]

ASYNC = "async"  # annotation of nests whose tiles are guarded by waits and barriers of their own


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
        return map_kernels(lambda k: _kernel(k, shared_limit(self.arch)), function)


def _kernel(kernel: ir.Kernel, limit: int) -> ir.Kernel:
    writer = _Loops(kernel, limit)
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
    """fills: per loop the statements, by number, that fill a tile; stages: how many versions each of these tiles gets;
    versions: the tile with a first axis of versions, per tile."""

    def __init__(self, kernel: ir.Kernel, limit: int) -> None:
        self.varying = varying(kernel.body, kernel.thread_vars)
        loops = [n for n in walk(kernel.body) if isinstance(n, ir.For) and self._fits(n)]
        inner = {id(n) for s in loops for n in walk(s.body) if isinstance(n, ir.For)}
        loops = [s for s in loops if id(s) not in inner]
        fills = {id(s): _fills(s) for s in loops}
        uses, inside = _counts(kernel.body), [_counts(s.body) for s in loops]
        filled = {b for found in fills.values() for b in found.values()}
        # every use of a tile is in a loop that fills it (and its Alloc)
        own = {
            b
            for b in filled
            if uses[b] == 1 + sum(n.get(b, 0) for s, n in zip(loops, inside, strict=True) if b in fills[id(s)].values())
        }
        self.fills = {key: {at: b for at, b in found.items() if b in own} for key, found in fills.items()}
        size = sum(map(_bytes, own))
        allocs = [n.buffer for n in walk(kernel.body) if isinstance(n, ir.Alloc)]
        others = sum(_bytes(b) for b in allocs if b.scope == "shared") - size
        # two blocks on a multiprocessor where that leaves two versions, else one
        room = next((r for r in (limit // 2 - others, limit - others) if r >= 2 * size), 0)
        wanted = [dict(s.annotations)["num_stages"] for s in loops if self.fills[id(s)]]
        self.stages: int = min([*wanted, room // max(size, 1)])
        self.versions: dict[ir.Buffer, ir.Buffer] = {}
        if self.stages >= 2:
            extent = build.const(self.stages, build.INT32)
            self.versions = {b: b.replace(shape=(extent, *b.shape)) for b in own}

    def _fits(self, s: ir.For) -> bool:
        stages = dict(s.annotations).get("num_stages", 0)
        if s.kind != "pipelined" or not isinstance(stages, int) or stages < 2 or not is_const(s.step, 1):
            return False
        leaves = (ir.Break, ir.Continue, ir.Return, ir.Sync, ir.Wait)
        return not self.varying.partial(s) and not any(isinstance(n, leaves) for n in walk(s.body))

    def visit_stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.For) and self.versions and self.fills.get(id(s)):
            return self._written(s, self.fills[id(s)], self.stages)
        return super().visit_stmt(s)

    def _written(self, s: ir.For, fills: dict[int, ir.Buffer], stages: int) -> tuple[ir.Stmt, ...]:
        kind, plain = s.var.type, _inlined(s.body)
        ahead = stages - 1

        def fill(k: ir.Expr, version: ir.Expr) -> tuple[ir.Stmt, ...]:
            out: list[ir.Stmt] = []
            for at in fills:
                nest = plain[at]
                assert isinstance(nest, ir.Parallel)
                fresh = {v: ir.Var(v.name, v.type) for v in nest.vars}
                nest = nest.replace(vars=tuple(fresh.values()), annotations=(*nest.annotations, (ASYNC, True)))
                nest = nest.replace(body=substitute(nest.body, {**fresh, s.var: k}))
                out += _Versions(self.versions, version).visit_block((nest,))
            return tuple(out)

        commit = ir.MicroCall("async_commit", (), loc=s.loc)
        before: list[ir.Stmt] = [ir.Sync("block", added=True, loc=s.loc)]
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
            ir.Sync("block", added=True, loc=s.loc),
            ir.Let(later, build.add(s.var, ahead), loc=s.loc),
            ir.If(build.lt(later, s.stop), fill(later, next_version), loc=s.loc),
            commit,
            *_Versions(self.versions, version).visit_block(rest),
        )
        return (*before, s.replace(body=body, kind="serial"))


def _counts(body: tuple[ir.Stmt, ...]) -> dict[ir.Buffer, int]:
    """How often each tile is named."""
    found: dict[ir.Buffer, int] = {}
    for n in walk(body):
        if isinstance(n, ir.Buffer):
            found[n.root] = found.get(n.root, 0) + 1
    return found


def _fills(s: ir.For) -> dict[int, ir.Buffer]:
    """Statements of a loop's body, by number, that do nothing but fill a tile of shared memory from global memory which
    the loop does not write; the tile is not read before it is filled."""
    found: dict[int, ir.Buffer] = {}
    stored = effects(s.body).writes
    names = {n.var for n in s.body if isinstance(n, ir.Let)}
    for at, x in enumerate(_inlined(s.body)):
        rows = copied_rows(x) if isinstance(x, ir.Parallel) else None
        if rows is None or not rows.asynchronous or not isinstance(x, ir.Parallel):
            continue
        b = rows.dst
        writers = [n for n in walk(s.body) if isinstance(n, ir.Stmt) and b in {w.root for w in writes(n)}]
        depends = any(isinstance(n, ir.Var) and n in names for n in walk(x))
        allocated = any(isinstance(n, ir.Alloc) and n.buffer is b for n in walk(s.body))
        early = any(n is b for e in s.body[:at] for n in walk(e))  # a read of the round before
        if len(writers) == 1 and not depends and not allocated and not early and rows.src.root not in stored:
            if _covers(x, b):
                found[at] = b
    return found


def _inlined(body: tuple[ir.Stmt, ...]) -> list[ir.Stmt]:
    """The statements with names of numbers that read no memory written out, so that they can move."""
    values: dict[ir.Var, ir.Expr] = {}
    out: list[ir.Stmt] = []
    for s in body:
        s = substitute(s, values)
        if isinstance(s, ir.Let) and not loads_of(s.value):
            values[s.var] = s.value
        out.append(s)
    return out


def _bytes(b: ir.Buffer) -> int:
    return math.prod(b.const_shape or (0,)) * b.dtype.bytes


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
