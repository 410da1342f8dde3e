"""Where tiles live: fragments that do not fit into registers move to shared memory, and operations that registers
cannot do become nests.

Behind this pass a kernel has nests, products into register tiles, and reductions of such tiles along their rows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.analysis.uniformity import varying
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.ir.walk import Rewriter, map_kernels, substitute, walk, writes

from .fragment import ThreadGrid
from .instructions import apart, choose_products, register_operand
from .layout import Layouts, infer
from .nests import gemm_nest, reduce_nest, scan_nest, staged
from .reducers import expand_reducers
from .rows import partial_bits

__all__ = ["PlaceFragments", "thread_count", "thread_grid"]


def thread_count(kernel: ir.Kernel) -> int:
    """Threads of a block. Raises TileNotImplementedError where that is known only at run time."""
    for e in kernel.threads:
        if not isinstance(e, ir.Const):
            raise TileNotImplementedError(
                "a number of threads that is known only at run time", kernel.loc, help="use a Python number for threads"
            )
    return math.prod(e.value for e in kernel.threads if isinstance(e, ir.Const))


@dataclass(frozen=True)
class PlaceFragments:
    """The pass; expects that moves are nests and that every access is in range."""

    name: ClassVar[str] = "place_fragments"
    arch: str = ""  # "sm_80" and later have matrix instructions

    def __call__(self, function: ir.Function) -> ir.Function:
        return map_kernels(lambda k: _kernel(k, self.arch), function)


def thread_grid(kernel: ir.Kernel) -> ThreadGrid:
    """How the threads of a kernel behind this pass stand over tiles."""
    warps = dict(kernel.attrs).get("warps")
    threads = thread_count(kernel)
    return ThreadGrid.mma(threads, *warps) if warps else ThreadGrid.fma(threads)


def _kernel(kernel: ir.Kernel, arch: str) -> ir.Kernel:
    kernel = kernel.replace(body=_Merge().visit_block(kernel.body))
    kernel = expand_reducers(kernel)
    kernel = _share_written_locals(kernel)
    kernel = choose_products(kernel, thread_count(kernel), arch)
    grid = thread_grid(kernel)
    while True:
        layouts = infer(kernel, grid)
        moved = {b: b.replace(scope="shared") for b in layouts.shared}
        writer = _Writer(layouts)
        body = writer.visit_block(kernel.body)
        if not writer.wrote and not moved:
            return kernel
        kernel = kernel.replace(body=substitute(body, {}, with_views(body, moved)))


def with_views(body: tuple[ir.Stmt, ...], moved: dict[ir.Buffer, ir.Buffer]) -> dict[ir.Buffer, ir.Buffer]:
    """The replacements of buffers, and those of the views of them that follow."""
    found = dict(moved)

    def new(b: ir.Buffer) -> ir.Buffer:
        if b not in found and b.alias_of is not None and b.root in moved:
            found[b] = b.replace(scope=moved[b.root].scope, alias_of=new(b.alias_of))
        return found.get(b, b)

    for n in walk(body):
        if isinstance(n, ir.Buffer):
            new(n)
    return found


class _Merge(Rewriter):
    """Perfectly nested T.Parallel as one."""

    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        while isinstance(s, ir.Parallel) and len(s.body) == 1 and isinstance(s.body[0], ir.Parallel):
            inner = s.body[0]
            s = s.replace(vars=s.vars + inner.vars, extents=s.extents + inner.extents, body=inner.body)
        return s


def _share_written_locals(kernel: ir.Kernel) -> ir.Kernel:
    """Storage of each thread that is alike in all threads, and that a tile operation or nest writes, gets one copy for
    the block: no single thread does the whole operation."""
    inside = {
        n.buffer
        for s in walk(kernel.body)
        if isinstance(s, ir.Parallel)
        for n in walk(s.body)
        if isinstance(n, ir.Alloc)
    }
    own = varying(kernel.body, kernel.thread_vars).buffers
    moved: dict[ir.Buffer, ir.Buffer] = {}
    for s in walk(kernel.body):
        if isinstance(s, (ir.Parallel, ir.Gemm, ir.Reduce, ir.Scan)):
            for b in (w.root for n in walk(s) if isinstance(n, ir.Stmt) for w in writes(n)):
                if b.scope in ("local", "var") and b not in inside and b not in own - _nest_written(s):
                    moved[b] = b.replace(scope="shared")
    if not moved:
        return kernel

    class Split(Rewriter):
        def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
            if isinstance(s, ir.Alloc) and s.init is not None and s.buffer in moved:
                first = (build.zero(INT32),)
                return s.replace(init=None), ir.Store(s.buffer, first, s.init, proved=True, loc=s.loc)
            return s

    body = Split().visit_block(kernel.body)
    return kernel.replace(body=substitute(body, {}, with_views(body, moved)))


def _nest_written(s: ir.Stmt) -> set[ir.Buffer]:
    """What a nest writes: `varying` counts it as different between lanes because of the nest's own variables."""
    return (
        {w.root for n in walk(s) if isinstance(n, ir.Stmt) for w in writes(n)} if isinstance(s, ir.Parallel) else set()
    )


class _Writer(Rewriter):
    """One round of writing operations out; wrote: something was."""

    def __init__(self, layouts: Layouts) -> None:
        self.layouts, self.wrote = layouts, False

    def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.Scan):
            return self._wrote(scan_nest(s))
        if isinstance(s, ir.Reduce):
            return self._reduce(s)
        return self._gemm(s) if isinstance(s, ir.Gemm) else s

    def _wrote(self, *new: ir.Stmt) -> tuple[ir.Stmt, ...]:
        self.wrote = True
        return new

    def _reduce(self, s: ir.Reduce) -> ir.Stmt | tuple[ir.Stmt, ...]:
        held = self.layouts.fragments
        src, dst = s.src.buffer, s.dst.buffer
        if src not in held:
            return s if src in self.layouts.shared or dst in self.layouts.shared else self._wrote(reduce_nest(s))
        if self.layouts.kind(src, s.axis) == "col" and partial_bits(held[src][s.axis]) is not None:
            return s
        tile, fill = staged(s.src, f"{src.name}_rows", s)
        return self._wrote(*fill, s.replace(src=tile))

    def _gemm(self, s: ir.Gemm) -> ir.Stmt | tuple[ir.Stmt, ...]:
        held = self.layouts.fragments
        if s.c.buffer not in held:
            if s.c.buffer in self.layouts.shared:
                return s
            return self._wrote(*(apart(s) or (gemm_nest(s),)))
        before: list[ir.Stmt] = []
        for side in ("a", "b"):
            r: ir.Region = getattr(s, side)
            if r.buffer in held and not (side == "a" and register_operand(self.layouts, s)):
                tile, fill = staged(r, f"{r.buffer.name}_operand", s)
                before += fill
                s = s.replace(**{side: tile})
        return self._wrote(*before, s) if before else s
