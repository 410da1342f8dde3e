"""A barrier of the grid ends a launch: what follows it is a kernel of its own.

What a block keeps across the barrier goes through workspaces with one place per block: storage is copied out and in,
values that take no memory are computed again, others are kept like storage. Loops of few rounds around barriers are
written out first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.dtypes import INT32
from tiledsl.ir.build import const, ne
from tiledsl.ir.walk import Rewriter, bound_in, free_vars, loads_of, substitute, walk

__all__ = ["SplitGrid", "renewed", "rounds_of"]

_ROUNDS = 32
Body = tuple[ir.Stmt, ...]


@dataclass(frozen=True)
class SplitGrid:
    """The pass, on tile-stage functions whose threads are spread. Barriers inside branches or longer loops stay
    (`waits.py`)."""

    name: ClassVar[str] = "split_grid"

    def __call__(self, function: ir.Function) -> ir.Function:
        kernels: list[ir.Kernel] = []
        workspaces = list(function.workspaces)
        for k in function.kernels:
            if any(map(_is_barrier, walk(k.body))):
                split = _Split(k)
                kernels += split.kernels()
                workspaces += split.workspaces
            else:
                kernels.append(k)
        if len(kernels) == len(function.kernels):
            return function
        return function.replace(kernels=tuple(kernels), workspaces=tuple(workspaces))


def _is_barrier(n: ir.Node) -> bool:
    return isinstance(n, ir.Sync) and n.scope == "grid"


def rounds_of(s: ir.For) -> range | None:
    """The values of a loop variable, where they are known now."""
    bounds = [e.value for e in (s.start, s.stop, s.step) if isinstance(e, ir.Const)]
    return range(*map(int, bounds)) if len(bounds) == 3 and bounds[2] else None


def renewed(
    body: Body, values: dict[ir.Var, ir.Expr]
) -> tuple[Body, dict[ir.Var, ir.Expr], dict[ir.Buffer, ir.Buffer]]:
    """A copy of a block whose variables and buffers are its own, with `values` put in; and what became of each."""
    variables = dict(values)
    buffers: dict[ir.Buffer, ir.Buffer] = {}
    for n in walk(body):
        for v in bound_in(n):
            variables[v] = ir.Var(v.name, v.type, loc=v.loc)
        if isinstance(n, ir.Alloc):
            buffers[n.buffer] = n.buffer.replace()
    copy: Body = substitute(body, variables, buffers)
    return copy, variables, buffers


def _written_out(body: Body) -> Body:
    """The block with the loops of few rounds around barriers written out."""
    out: list[ir.Stmt] = []
    for s in body:
        rounds = rounds_of(s) if isinstance(s, ir.For) and any(map(_is_barrier, walk(s.body))) else None
        leaves = isinstance(s, ir.For) and any(isinstance(n, (ir.Break, ir.Continue)) for n in walk(s.body))
        if rounds is None or len(rounds) > _ROUNDS or leaves:
            out.append(s)
            continue
        assert isinstance(s, ir.For)
        for k in rounds:
            out += _written_out(renewed(s.body, {s.var: const(k, s.var.type)})[0])
    return tuple(out)


class _Split:
    """One kernel, cut at the barriers of its outermost block."""

    def __init__(self, kernel: ir.Kernel) -> None:
        self.kernel = kernel
        self.workspaces: list[ir.Buffer] = []
        self.spaces: dict[ir.Buffer | ir.Var, ir.Buffer] = {}
        # what is kept: the part that makes it, the statement that puts it away, the parts that need it
        self.kept: dict[ir.Buffer | ir.Var, tuple[int, ir.Stmt, list[int]]] = {}
        self.parts: list[list[ir.Stmt]] = [[]]
        for s in _written_out(kernel.body):
            if _is_barrier(s):
                self.parts.append([])
            else:
                self.parts[-1].append(s)

    def kernels(self) -> list[ir.Kernel]:
        if len(self.parts) == 1:
            return [self.kernel]
        mentioned = [self._mentions(part) for part in self.parts]
        before = [self._brought(j, set(mentioned[j])) for j in range(len(self.parts))]
        after: list[list[ir.Stmt]] = [[] for _ in self.parts]
        for b, (home, out, users) in self.kept.items():
            for j in range(home, max(users)):
                if j == home or b in mentioned[j]:
                    after[j].append(out)
        parts = [(*b, *p, *a) for b, p, a in zip(before, self.parts, after, strict=True)]
        done = self._returns()
        return [self._kernel(i, done(i, p)) for i, p in enumerate(parts)]

    def _kernel(self, number: int, body: Body) -> ir.Kernel:
        """A kernel of its own; a binding belongs to one kernel."""
        k = self.kernel
        own = {v: ir.Var(v.name, v.type, loc=v.loc) for v in (*k.block_vars, *k.thread_vars)}
        return k.replace(
            body=substitute(body, own),
            name=f"{k.name}_{number}",
            block_vars=tuple(own[v] for v in k.block_vars),
            thread_vars=tuple(own[v] for v in k.thread_vars),
        )

    @staticmethod
    def _mentions(part: list[ir.Stmt]) -> set[ir.Node]:
        found: set[ir.Node] = set()
        for n in walk(tuple(part)):
            if isinstance(n, ir.Buffer):
                found.add(n.root)
                if n.offset is not None:
                    found |= free_vars(n.offset)
            elif isinstance(n, ir.Var):
                found.add(n)
        return found

    def _workspace(self, name: str, like: ir.Buffer | ir.Var) -> ir.Buffer:
        """One place per block."""
        inner = like.shape if isinstance(like, ir.Buffer) else ()
        made = ir.Buffer(f"{name}_kept", like.dtype, (*self.kernel.grid, *inner), "global")
        self.workspaces.append(made)
        return made

    def _brought(self, j: int, needed: set[ir.Node]) -> list[ir.Stmt]:
        """What makes known in part j what earlier parts have defined."""
        found: list[ir.Stmt] = []  # backwards
        for i in reversed(range(j)):
            for s in reversed(self.parts[i]):
                if isinstance(s, ir.Alloc) and s.buffer in needed:
                    found += [self._back(s.buffer, i, j), ir.Alloc(s.buffer)]
                elif isinstance(s, ir.Let) and s.var in needed and not loads_of(s.value):
                    found.append(s)
                    needed |= free_vars(s.value)
                elif isinstance(s, (ir.Let, ir.Atomic)):
                    found += [self._back(v, i, j) for v in bound_in(s) if v in needed]
        return found[::-1]

    def _back(self, x: ir.Buffer | ir.Var, home: int, user: int) -> ir.Stmt:
        """What part `home` has made, out of its workspace."""
        blocks = self.kernel.block_vars
        if x not in self.kept:
            kept = self._workspace(x.name, x)
            self.kept[x] = (home, self._out(x, kept), [])
            self.spaces[x] = kept
        self.kept[x][2].append(user)
        kept = self.spaces[x]
        if isinstance(x, ir.Var):
            return ir.Let(x, kept.load(*blocks))
        zeros = tuple(const(0, e.dtype) for e in x.shape)
        if x.scope == "var":
            return ir.Store(x, zeros, kept.load(*blocks, *zeros))
        own, place, axes, shifted = self._regions(x, kept)
        return ir.Copy(place, own, x.shape, shifted, axes)

    def _out(self, x: ir.Buffer | ir.Var, kept: ir.Buffer) -> ir.Stmt:
        blocks = self.kernel.block_vars
        if isinstance(x, ir.Var):
            return ir.Store(kept, blocks, x)
        zeros = tuple(const(0, e.dtype) for e in x.shape)
        if x.scope == "var":
            return ir.Store(kept, (*blocks, *zeros), x.load(*zeros))
        own, place, axes, shifted = self._regions(x, kept)
        return ir.Copy(own, place, x.shape, axes, shifted)

    def _regions(self, b: ir.Buffer, kept: ir.Buffer) -> tuple[ir.Region, ir.Region, tuple[int, ...], tuple[int, ...]]:
        """All of b, its place in the workspace, and how their axes correspond."""
        blocks = self.kernel.block_vars
        zeros = tuple(const(0, e.dtype) for e in b.shape)
        ones = tuple(const(1, e.dtype) for e in self.kernel.grid)
        own, place = ir.Region(b, zeros, b.shape), ir.Region(kept, (*blocks, *zeros), (*ones, *b.shape))
        return own, place, tuple(range(b.rank)), tuple(range(len(blocks), len(blocks) + b.rank))

    def _returns(self) -> Callable[[int, Body], Body]:
        """A block that has returned does nothing in later kernels."""
        if not any(isinstance(n, ir.Return) for part in self.parts[:-1] for n in walk(tuple(part))):
            return lambda i, body: body
        gone = self._workspace("returned", ir.Var("returned", INT32))
        blocks = self.kernel.block_vars

        class Mark(Rewriter):
            def stmt(self, s: ir.Stmt) -> ir.Stmt | Body:
                return (ir.Store(gone, blocks, const(1, INT32)), s) if isinstance(s, ir.Return) else s

        def done(i: int, body: Body) -> Body:
            body = Mark().visit_block(body)
            if i == 0:
                return (ir.Store(gone, blocks, const(0, INT32)), *body)
            return (ir.If(ne(gone.load(*blocks), 0), (ir.Return(),)), *body)

        return done
