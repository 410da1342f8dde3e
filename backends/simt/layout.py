"""Layout inference: which fragments live in registers, and how their axes and those of the nests that touch them are
dealt to threads.

Axes that one variable of a nest runs over belong together (union-find over axes and variables). Each class of axes is
"row" or "col" of the block's grid of threads, "flat" over all threads, or "whole" in every thread. Products say first
(rows and columns of their result), then reductions (along columns), then the shape of tiles. What does not fit - two
axes of one tile in one class, an index that is no plain variable of an axis that is spread, a view - makes the fragment
one in shared memory: slower, never an error.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tiledsl import ir
from tiledsl.analysis.uniformity import thread_level, varying
from tiledsl.ir.build import is_const
from tiledsl.ir.walk import children, free_vars, walk, writes

from .fragment import Axis, ThreadGrid

__all__ = ["Layouts", "axis_key", "infer", "plain", "unrolled"]

Key = tuple[ir.Buffer, int] | ir.Var
_WHOLE_LIMIT = 64  # elements that every thread of the block may hold a copy of
_WRITTEN_OUT = 16  # rounds of a loop that may number registers
_REGISTERS = 128  # words of 32 bits that one thread may hold of one fragment
_RESULTS = 512  # the same of a product's result, which has no better place


def axis_key(b: ir.Buffer, d: int) -> Key:
    return (b, d)


def plain(e: ir.Expr) -> ir.Var | None:
    """The variable that an index is, conversions of integers aside."""
    while isinstance(e, ir.Cast) and e.x.dtype.is_int:
        e = e.x
    return e if isinstance(e, ir.Var) else None


@dataclass(frozen=True)
class Layouts:
    """fragments: those in registers, one map per axis; nests: per variable of a nest that touches some, its map;
    shared: the fragments that have to live in shared memory."""

    grid: ThreadGrid
    fragments: dict[ir.Buffer, tuple[Axis, ...]]
    nests: dict[ir.Var, Axis]
    shared: frozenset[ir.Buffer]
    kinds: dict[Key, str] = field(default_factory=dict)

    def kind(self, b: ir.Buffer, d: int) -> str:
        return self.kinds[b, d]


def infer(kernel: ir.Kernel, grid: ThreadGrid) -> Layouts:
    """The layouts of a kernel whose moves are nests."""
    shared: set[ir.Buffer] = set()
    while True:
        attempt = _Attempt(kernel, grid, shared)
        if not attempt.rejected:
            return Layouts(grid, attempt.fragments(), attempt.nest_axes(), frozenset(shared), attempt.all_kinds())
        shared |= attempt.rejected


class _Attempt:
    """One round: the fragments but those already given up; `rejected` do not fit."""

    def __init__(self, kernel: ir.Kernel, grid: ThreadGrid, shared: set[ir.Buffer]) -> None:
        self.grid = grid
        self.parent: dict[Key, Key] = {}
        self.found: dict[Key, str] = {}  # kind of a class, by its representative
        self.rejected: set[ir.Buffer] = set()
        self.buffers: dict[ir.Buffer, tuple[int, ...]] = {}
        self.nests: list[tuple[ir.Parallel, dict[ir.Buffer, None]]] = []
        self.reductions: list[ir.Reduce] = []
        self.gemms: list[ir.Gemm] = []
        self.whole: set[Key] = set()
        self.written_out = {n.var for n in walk(kernel.body) if isinstance(n, ir.For) and unrolled(n)}
        self.threaded = thread_level(kernel)
        self.varying = varying(kernel.body, kernel.thread_vars)
        allocated = [s.buffer for s in walk(kernel.body) if isinstance(s, ir.Alloc)]
        viewed = {n.root for n in walk(kernel.body) if isinstance(n, ir.Buffer) and n.alias_of is not None}
        for b in allocated:
            if b.scope == "fragment" and b.alias_of is None and b not in shared:
                shape = b.const_shape
                if shape is None or b in viewed or b.dtype.is_packed or b.dtype.is_vector:
                    self.rejected.add(b)
                else:
                    self.buffers[b] = shape
        self._block(kernel.body, None)
        if not self.rejected:
            self._decide()
            self._check()

    # -- classes -----------------------------------------------------------------------------------------------

    def find(self, k: Key) -> Key:
        while (up := self.parent.get(k, k)) != k:
            k = up
        return k

    def union(self, a: Key, b: Key) -> None:
        self.parent[self.find(a)] = self.find(b)

    def kind(self, k: Key) -> str | None:
        return self.found.get(self.find(k))

    def give(self, k: Key, kind: str) -> None:
        self.found.setdefault(self.find(k), kind)

    # -- collecting ----------------------------------------------------------------------------------------------

    def _block(self, body: Sequence[ir.Stmt], nest: ir.Parallel | None) -> None:
        for s in body:
            if nest is None and self.varying.partial(s) and isinstance(s, _BY_BLOCK):
                self.rejected |= self._touched(s)  # done by a part of the threads
            if isinstance(s, ir.Parallel):
                self.nests.append((s, dict.fromkeys(sorted(self._touched(s), key=lambda b: b.name))))
                self._block(s.body, s)
                continue
            if isinstance(s, ir.Gemm):
                self._gemm(s)
            elif isinstance(s, ir.Reduce):
                self._reduce(s)
            elif isinstance(s, ir.Atomic):
                self.rejected |= {b.root for b in writes(s)} & set(self.buffers)
            elif isinstance(s, ir.Debug):
                self.rejected |= {b for b in s.values if isinstance(b, ir.Buffer)} & set(self.buffers)
            elif isinstance(s, ir.Store):
                self._access(s.buffer, s.indices, nest)
                if s.buffer in self.buffers and nest is not None:  # who holds a copy of the element has to come to it
                    places = [e for e in s.indices if plain(e) not in nest.vars]
                    self.whole |= {v for e in places for v in free_vars(e)} & set(nest.vars)
            for e in _expressions(s):
                for n in walk(e):
                    if isinstance(n, ir.Load):
                        self._access(n.buffer, n.indices, nest)
            for block in _blocks(s):
                self._block(block, nest)

    def _touched(self, s: ir.Stmt) -> set[ir.Buffer]:
        return {n.root for n in walk(s) if isinstance(n, ir.Buffer)} & set(self.buffers)

    def _access(self, b: ir.Buffer, indices: Sequence[ir.Expr], nest: ir.Parallel | None) -> None:
        if b not in self.buffers:
            return
        if nest is None and self.threaded:  # an element of the block, touched by single threads
            self.rejected.add(b)
        variables = dict(zip(nest.vars, nest.extents, strict=True)) if nest is not None else {}
        for d, (e, extent) in enumerate(zip(indices, self.buffers[b], strict=True)):
            if extent == 1:
                continue
            v = plain(e)
            if v in variables and isinstance(variables[v], ir.Const):
                self.union((b, d), v)
            else:
                self.whole.add((b, d))
                if free_vars(e) - self.written_out - set(variables) or any(isinstance(n, ir.Load) for n in walk(e)):
                    self.rejected.add(b)  # registers have no numbers when the kernel runs

    def _region(self, r: ir.Region, axes: int) -> bool:
        """The last axes of a region are whole axes of a fragment; indices of the others are free."""
        b = r.buffer
        for d, (start, extent) in enumerate(zip(r.starts, r.extents, strict=True)):
            if d < b.rank - axes:
                if self.buffers[b][d] != 1:
                    self.whole.add((b, d))
            elif not is_const(start, 0) or not is_const(extent, self.buffers[b][d]):
                return False
        return True

    def _gemm(self, s: ir.Gemm) -> None:
        if s.c.buffer in self.buffers:
            self.gemms.append(s)
            if not self._region(s.c, 2):
                self.rejected.add(s.c.buffer)

    def _reduce(self, s: ir.Reduce) -> None:
        src, dst = s.src.buffer, s.dst.buffer
        for r in (s.src, s.dst):
            if r.buffer in self.buffers and not self._region(r, r.buffer.rank):
                self.rejected.add(r.buffer)
        if src in self.buffers:
            self.reductions.append(s)
            kept = [d for d in range(src.rank) if d != s.axis]
            own = kept if dst.rank == src.rank else range(dst.rank)
            if dst in self.buffers:
                for a, d in zip(kept, own, strict=True):
                    if self.buffers[src][a] != 1:
                        self.union((src, a), (dst, d))

    # -- deciding --------------------------------------------------------------------------------------------------

    def _decide(self) -> None:
        for k in self.whole:
            self.found[self.find(k)] = "whole"
        for g in self.gemms:
            rank = g.c.buffer.rank
            self.give((g.c.buffer, rank - 2), "row")
            self.give((g.c.buffer, rank - 1), "col")
        for s in self.reductions:
            self.give((s.src.buffer, s.axis), "col")
        for b, shape in sorted(self.buffers.items(), key=lambda item: -len(item[1])):
            wide = [d for d in range(len(shape)) if shape[d] > 1]
            if len(wide) > 1:
                taken = {self.kind((b, d)) for d in wide}
                for d in reversed(wide):
                    if self.kind((b, d)) is None:
                        free = next((k for k in ("col", "row") if k not in taken), "whole")
                        self.give((b, d), free)
                        taken.add(free)
        for b, shape in self.buffers.items():
            for d in range(len(shape)):
                if shape[d] > 1 and self.kind((b, d)) is None:
                    self.give((b, d), self._lone((b, d)))
        for nest, touched in self.nests:
            if touched:
                self._nest_kinds(nest)

    def _lone(self, k: Key) -> str:
        """An axis of vectors: flat, or a row or column of the tiles that share a nest with it."""
        own = self.find(k)
        for nest, touched in self.nests:
            if touched and len(nest.vars) > 1:
                for at, v in enumerate(nest.vars):
                    if self.find(v) == own:
                        return "col" if at == len(nest.vars) - 1 else "row"
        return "flat"

    def _nest_kinds(self, nest: ir.Parallel) -> None:
        taken = {self.kind(v) for v in nest.vars}
        for v, n in reversed(list(zip(nest.vars, nest.extents, strict=True))):
            if is_const(n, 1):
                self.give(v, "whole")
            elif self.kind(v) is None:
                free = "whole" if "flat" in taken else next((k for k in ("col", "row") if k not in taken), "whole")
                self.give(v, free)
                taken.add(free)

    def _check(self) -> None:
        for b, shape in self.buffers.items():
            kinds = [self.kind((b, d)) for d in range(len(shape)) if shape[d] > 1]
            if not _fit(kinds) or not self._small(b, kinds):
                self.rejected.add(b)
        for g in self.gemms:
            b = g.c.buffer
            last = [self.kind((b, d)) if self.buffers[b][d] > 1 else None for d in (b.rank - 2, b.rank - 1)]
            if last[0] not in (None, "row") or last[1] not in (None, "col"):
                self.rejected.add(b)
        for nest, touched in self.nests:
            own = [v for v, n in zip(nest.vars, nest.extents, strict=True) if not is_const(n, 1)]
            constant = all(isinstance(n, ir.Const) for n in nest.extents)
            if touched and not (constant and _fit([self.kind(v) for v in own])):
                self.rejected.add(min(touched, key=lambda b: math.prod(self.buffers[b])))
            if touched and self._replicated(nest) and self._one_sided(nest):
                self.rejected |= set(touched)
            classes = {self.find(v) for v in own if self.kind(v) != "whole"}
            for n in walk(nest.body) if touched else ():
                if isinstance(n, ir.Store) and n.buffer in self.buffers:  # not all who hold the element come to it
                    if classes - {self.find((n.buffer, d)) for d in range(n.buffer.rank)}:
                        self.rejected.add(n.buffer)

    def _replicated(self, nest: ir.Parallel) -> bool:
        """Several threads do the same iterations, for each its own registers."""
        digits = [d for v in nest.vars for d in self.grid.pattern(self.kind(v) or "whole") if d.stride]
        return math.prod(d.extent for d in digits) < self.grid.threads

    def _one_sided(self, nest: ir.Parallel) -> bool:
        """An iteration writes registers, which all of its replicas do, and goes on with what only one of them has: what
        it stored into memory, or what an atomic operation found."""
        inside = {n.buffer for n in walk(nest.body) if isinstance(n, ir.Alloc)}
        stored = {b.root for n in walk(nest.body) if isinstance(n, ir.Stmt) for b in writes(n)} - inside
        read = {n.buffer.root for n in walk(nest.body) if isinstance(n, ir.Load)}
        again = {b for b in stored & read - set(self.buffers) if b.scope not in ("local", "var")}
        draws = any(isinstance(n, ir.Atomic) and n.result is not None for n in walk(nest))
        return bool(stored & set(self.buffers)) and (draws or bool(again))

    def _small(self, b: ir.Buffer, kinds: Iterable[str | None]) -> bool:
        axes = self._axes(b)
        if all(k == "whole" for k in kinds):
            return math.prod(self.buffers[b]) <= _WHOLE_LIMIT
        words = math.prod(a.registers for a in axes) * (2 if b.dtype.bits > 32 else 1)
        if any(g.c.buffer is b for g in self.gemms):
            return words <= _RESULTS
        held = math.prod(d.extent for a in axes for d in a.digits if d.stride)
        return words <= _REGISTERS // (1 if held == self.grid.threads else 2)  # some hold the same

    # -- results -----------------------------------------------------------------------------------------------------

    def _axes(self, b: ir.Buffer) -> tuple[Axis, ...]:
        return tuple(
            Axis.of(n, self.grid.pattern(self.kind((b, d)) or "whole" if n > 1 else "whole"))
            for d, n in enumerate(self.buffers[b])
        )

    def fragments(self) -> dict[ir.Buffer, tuple[Axis, ...]]:
        return {b: self._axes(b) for b in self.buffers}

    def nest_axes(self) -> dict[ir.Var, Axis]:
        axes: dict[ir.Var, Axis] = {}
        for nest, touched in self.nests:
            if touched:
                for v, n in zip(nest.vars, nest.extents, strict=True):
                    assert isinstance(n, ir.Const)
                    axes[v] = Axis.of(max(n.value, 0), self.grid.pattern(self.kind(v) or "whole"))
        return axes

    def all_kinds(self) -> dict[Key, str]:
        return {(b, d): self.kind((b, d)) or "whole" for b, shape in self.buffers.items() for d in range(len(shape))}


def unrolled(s: ir.For) -> bool:
    """The rounds of a loop are written out: few, or as the author says."""
    bounds = (s.start, s.stop, s.step)
    if not all(isinstance(e, ir.Const) for e in bounds):
        return False
    start, stop, step = (int(e.value) for e in bounds if isinstance(e, ir.Const))
    return len(range(start, stop, step)) <= _WRITTEN_OUT


def _fit(kinds: Iterable[str | None]) -> bool:
    """At most one row and one column, or one flat axis; any number of whole ones."""
    spread = [k for k in kinds if k != "whole"]
    return len(set(spread)) == len(spread) and ("flat" not in spread or len(spread) == 1)


def _expressions(s: ir.Stmt) -> Iterator[ir.Expr]:
    """The expressions of a statement, starts of its regions included."""
    for child in children(s):
        if isinstance(child, ir.Expr) and not (isinstance(child, ir.Var)):
            yield child
        elif isinstance(child, ir.Region):
            yield from child.starts


def _blocks(s: ir.Stmt) -> list[tuple[ir.Stmt, ...]]:
    return [getattr(s, name) for name in ("body", "then", "orelse") if hasattr(s, name)]


_BY_BLOCK = (ir.Parallel, ir.Gemm, ir.Reduce, ir.Scan)
