"""From tiles to threads: nests become loops of each thread over its registers or turns, products and row reductions are
done in registers, and what the block does once is done by one thread."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from tiledsl import ir
from tiledsl.analysis.groups import Ranges, ThreadGroups, rank, size
from tiledsl.analysis.uniformity import varying
from tiledsl.dtypes import promote
from tiledsl.errors import InternalError, TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.ir.collectives import COLLECTIVE_REDUCTIONS
from tiledsl.ir.walk import Rewriter, free_vars, map_kernels, substitute, walk, writes
from tiledsl.passes.expand_threads import thread_number

from .fragment import Axis, replicas
from .layout import infer, plain, unrolled
from .place import thread_count, thread_grid
from .stages import ASYNC
from .vectors import Stores, copied_rows, stored_rows

__all__ = ["AT_ONCE", "Lowering", "LowerThreads", "count"]

AT_ONCE = "at_once"  # annotation of loops: how many rounds compilers may merge
_SHORT = 4  # rounds that are written out in any case


@dataclass(frozen=True)
class LowerThreads:
    """The pass; expects `place_fragments`, and barriers between the operations."""

    name: ClassVar[str] = "lower_threads"

    def __call__(self, function: ir.Function) -> ir.Function:
        lowered = map_kernels(lambda k: Lowering(k).run(), function)
        return lowered.replace(stage="thread")


def count(v: ir.Var, n: int | ir.Expr, body: Iterable[ir.Stmt], s: ir.Stmt, kind: str = "serial") -> ir.For:
    """A loop of v from 0 below n."""
    stop = n if isinstance(n, ir.Expr) else build.const(n, v.type)
    return ir.For(v, build.zero(v.type), stop, build.const(1, v.type), tuple(body), kind, loc=s.loc)


class Lowering:
    """The lowering of one kernel.

    thread     number of the thread in its block, int32
    registers  what holds a fragment's elements: a `local` buffer with one axis per axis of the fragment
    """

    def __init__(self, kernel: ir.Kernel) -> None:
        self.kernel = kernel
        self.threads = thread_count(kernel)
        self.varying = varying(kernel.body, kernel.thread_vars)
        self.layouts = infer(kernel, thread_grid(kernel))
        if self.layouts.shared:
            names = ", ".join(b.name for b in self.layouts.shared)
            raise InternalError(f"fragments without a layout: {names}", kernel.loc)
        number, _ = thread_number(kernel)
        self.prologue: list[ir.Stmt] = []
        if self.threads == 1:
            self.thread: ir.Expr = build.zero(INT32)
        elif isinstance(number, ir.Var):
            self.thread = number
        else:
            self.thread = ir.Var("thread", INT32)
            self.prologue.append(ir.Let(self.thread, number))
        self.registers = {
            b: ir.Buffer(
                b.name, b.dtype, tuple(build.const(max(a.registers, 1), INT32) for a in axes), "local", loc=b.loc
            )
            for b, axes in self.layouts.fragments.items()
        }

        self.groups = ThreadGroups(kernel)
        self.group: Ranges | None = self.groups.everyone
        self.multiplied = {n.c.buffer for n in walk(kernel.body) if isinstance(n, ir.Gemm)}

    def run(self) -> ir.Kernel:
        body = self.block(self.kernel.body)
        return self.kernel.replace(body=(*self.prologue, *body))

    # -- statements ----------------------------------------------------------------------------------------------

    def block(self, body: Sequence[ir.Stmt]) -> tuple[ir.Stmt, ...]:
        out: list[ir.Stmt] = []
        for s in body:
            out += self.stmt(s)
        return tuple(out)

    def stmt(self, s: ir.Stmt) -> list[ir.Stmt]:
        from .exchange import reduce_block
        from .products import lower_gemm
        from .rows import lower_reduce

        if isinstance(s, (ir.Parallel, ir.Gemm, ir.Reduce)):
            if not self.group:
                raise TileNotImplementedError(
                    "a tile operation by threads that only the running kernel knows is not supported on GPUs",
                    s.loc,
                    help="let its condition depend on thread indices alone, or move it out of the branch",
                )
            if isinstance(s, ir.Parallel):
                return self.register_nest(s) if self.touches(s) else self.flat_nest(s)
            return lower_gemm(self, s) if isinstance(s, ir.Gemm) else lower_reduce(self, s)
        if isinstance(s, ir.Alloc):
            return self._alloc(s)
        if isinstance(s, ir.Wait):  # no lane of a warp goes on and changes what the others still look at
            together = [ir.Sync("warp", loc=s.loc)] if self.group and self.threads > 1 else []
            return [_Body(self, {}, None).shallow(s), *together]
        if isinstance(s, ir.Collective) and s.scope == "block" and s.op in COLLECTIVE_REDUCTIONS:
            return reduce_block(self, s)
        once = self.threads > 1 and self._once(s)
        if isinstance(s, ir.If) and self.varying.expr(s.cond):
            s = self._parted(s)
        elif isinstance(s, (ir.For, ir.While)):
            outer = self.group
            numbers = isinstance(s, ir.For) and unrolled(s) and self._numbers(s)
            s = s.replace(body=self.block(s.body), **({"kind": "unroll"} if numbers else {}))
            returns = any(isinstance(n, ir.Return) and self.varying.partial(n) for n in walk(s.body))
            self.group = None if returns else outer
        else:
            changes = {n: self.block(getattr(s, n)) for n in ("body", "then", "orelse") if hasattr(s, n)}
            s = s.replace(**changes) if changes else s
        new = _Body(self, {}, None).shallow(s)
        if once:
            return [ir.If(build.eq(self.thread, 0), (new,), loc=s.loc)]
        return [new]

    def _parted(self, s: ir.If) -> ir.If:
        """A branch that threads part at: each side is done by the group of threads for which the condition says so.
        Where one side ends its threads, the other side's go on alone."""
        outer = self.group
        sides = self.groups.split(outer, s.cond)
        bodies = []
        for self.group, body in zip(sides, (s.then, s.orelse), strict=True):
            bodies.append(self.block(body))
        self.group = self.groups.after(s, outer)
        return s.replace(then=bodies[0], orelse=bodies[1])

    def _alloc(self, s: ir.Alloc) -> list[ir.Stmt]:
        b = s.buffer
        if b in self.registers:
            return [ir.Alloc(self.registers[b], loc=s.loc), *self._cleared(b, s)]
        if b.scope == "fragment":
            raise InternalError(f"fragment {b.name} has no layout", s.loc)
        if b.scope == "shared" and b.alias_of is None:
            if b.const_shape is None:
                raise TileNotImplementedError(
                    f"{b.name} has a shape that is known only at run time: on GPUs tiles have constant shapes",
                    s.loc or b.loc,
                    help="use Python numbers, or T.const symbols, for the shapes of tiles",
                )
            self.prologue.insert(0, s)
            return []
        return [_Body(self, {}, None).shallow(s)]

    def _cleared(self, b: ir.Buffer, s: ir.Stmt) -> list[ir.Stmt]:
        """Accumulators whose registers stand for more than the tile: all are multiplied, so all have values."""
        own = self.registers[b]
        if b not in self.multiplied or not any(a.padded for a in self.layouts.fragments[b]):
            return []
        at = tuple(ir.Var(f"r{d}", INT32) for d in range(own.rank))
        store = ir.Store(own, at, build.zero(b.dtype), proved=True, loc=s.loc)
        return self.nested(
            [(v, e.value) for v, e in zip(at, own.shape, strict=True) if isinstance(e, ir.Const)], (store,), s
        )

    def _once(self, s: ir.Stmt) -> bool:
        """The block does it as if once: all threads come to it with the same values, and others see it."""
        if self.varying.partial(s) or any(self.varying.expr(e) for e in _values(s)):
            return False
        if isinstance(s, ir.Store):
            return s.buffer.root.scope in ("shared", "global")
        if isinstance(s, ir.Atomic):
            return s.result is None and s.op != "arrive"
        return isinstance(s, ir.Debug) and s.kind == "print"  # who goes on has to know that nothing failed

    def _numbers(self, s: ir.For) -> bool:
        """The loop's variable says which register is meant."""
        accesses = (n for n in walk(s.body) if isinstance(n, (ir.Load, ir.Store)) and n.buffer in self.registers)
        return any(s.var in free_vars(e) for n in accesses for e in n.indices)

    def touches(self, s: ir.Stmt) -> bool:
        """Some fragment in registers is touched."""
        return any(isinstance(n, ir.Buffer) and n in self.registers for n in walk(s))

    # -- nests -----------------------------------------------------------------------------------------------------

    def flat_nest(self, s: ir.Parallel) -> list[ir.Stmt]:
        """Iteration f of the flattened nest is done by thread f % threads, in turn f // threads. Rows that are copied
        count in pieces of several elements."""
        rows = copied_rows(s)
        if rows is not None:
            chunk = ir.Var(f"{s.vars[-1].name}_piece", s.vars[-1].type)
            extent = s.extents[-1]
            assert isinstance(extent, ir.Const)
            pieces = ir.Const(extent.value // rows.width, extent.type)
            body = rows.body(
                build.mul(chunk, rows.width), s, rows.asynchronous and dict(s.annotations).get(ASYNC, False)
            )
            s = s.replace(vars=(*s.vars[:-1], chunk), extents=(*s.extents[:-1], pieces), body=body)
        dtype = INT32
        for e in s.extents:
            dtype = promote(dtype, e.dtype)
        assert self.group is not None
        threads = size(self.group)
        total: ir.Expr = build.const(1, dtype)
        for e in s.extents:
            total = build.mul(total, build.cast(e, dtype))
        body = s.body
        rest: ir.Expr
        thread = build.cast(rank(self.group, self.thread), dtype)
        if isinstance(total, ir.Const) and total.value <= threads:
            step, flat = None, thread
        else:
            step = ir.Var("turn", dtype)
            flat = build.add(build.mul(step, threads), thread)
        name = ir.Var("f", dtype)
        whole = isinstance(total, ir.Const) and total.value % threads == 0
        rest, lets = name, []
        for at, (v, e) in reversed(list(enumerate(zip(s.vars, s.extents, strict=True)))):
            extent = build.cast(e, dtype)
            value = rest if at == 0 else build.binary("truncmod", rest, extent)
            lets.append(ir.Let(v, build.cast(value, v.type), loc=s.loc))
            rest = build.binary("truncdiv", rest, extent)
        inner: tuple[ir.Stmt, ...] = (*lets, *body)
        if not whole:
            inner = (ir.If(build.lt(name, total), inner, loc=s.loc),)
        inner = (ir.Let(name, flat, loc=s.loc), *inner)
        if step is None:
            # what ends an iteration ends the loop of one round
            return [count(ir.Var("turn", dtype), 1, inner, s)] if _leaves(body) else list(inner)
        number = build.binary("truncdiv", build.add(total, threads - 1), threads)
        return [count(step, number, inner, s)]

    def register_nest(self, s: ir.Parallel) -> list[ir.Stmt]:
        """Each thread goes over the registers that the nest's axes give it."""
        axes = {v: self.layouts.nests[v] for v in s.vars}
        guard = replicas(axes.values(), self.thread, self.threads)
        pieces = stored_rows(s, axes[s.vars[-1]].neighbours)
        loops, lets, tests, held = self.over(axes, {} if pieces is None else {pieces.last: pieces.width})
        if guard is not None and not any(w in self.registers for n in walk(s.body) for w in _written(n)):
            tests, guard = [*tests, guard], None  # one of those who hold the same elements does it all
        if pieces is None:
            body = _Body(self, held, guard).visit_block(s.body)
        else:
            tests += pieces.tests
            body = pieces.body([self._neighbour(pieces, held, e) for e in range(pieces.width)], s)
        inner: tuple[ir.Stmt, ...] = body
        if tests:
            inner = (ir.If(build.all_of(tests), inner, loc=s.loc),)
        inner = (*lets, *inner)
        if not loops:
            if _leaves(body):
                return [count(ir.Var("turn", INT32), 1, inner, s)]
            return list(inner)
        return self.nested(loops, inner, s)

    def _neighbour(self, pieces: Stores, held: dict[ir.Var, ir.Expr], e: int) -> ir.Expr:
        """What element e of a piece is, whose registers are neighbours too."""
        own = {**held, pieces.last: build.add(held[pieces.last], e)}
        value = _Body(self, own, None).visit_expr(pieces.value)
        neighbour: ir.Expr = substitute(value, {pieces.last: build.add(pieces.last, e)})
        return neighbour

    def over(
        self, axes: dict[ir.Var, Axis], pieces: Mapping[ir.Var, int] = MappingProxyType({})
    ) -> tuple[list[tuple[ir.Var, int]], list[ir.Stmt], list[ir.Expr], dict[ir.Var, ir.Expr]]:
        """Loops over the registers of axes: (register variables and their numbers, lets of the indices, the tests that
        indices exist, the register of each axis). pieces: how many neighbours are taken at a time."""
        loops: list[tuple[ir.Var, int]] = []
        lets: list[ir.Stmt] = []
        tests: list[ir.Expr] = []
        held: dict[ir.Var, ir.Expr] = {}
        for v, axis in axes.items():
            register: ir.Expr = build.zero(INT32)
            wide = pieces.get(v, 1)
            if axis.registers != wide:
                turn = ir.Var(f"r_{v.name}", INT32)
                register = build.mul(turn, wide)
                loops.append((turn, axis.registers // wide))
            held[v] = register
            lets.append(ir.Let(v, build.cast(axis.index(self.thread, register), v.type)))
            if axis.padded:
                tests.append(build.lt(v, axis.extent))
        return loops, lets, tests, held

    def nested(self, loops: Sequence[tuple[ir.Var, int]], body: Iterable[ir.Stmt], s: ir.Stmt) -> list[ir.Stmt]:
        """Loops over registers, written out where they number some: else the loads of all rounds would be in flight."""
        inner = tuple(body)
        for v, n in reversed(loops):
            if n <= _SHORT or _numbered(v, inner):
                inner = (count(v, n, inner, s, "unroll"),)
            else:
                inner = (count(v, n, inner, s).replace(annotations=((AT_ONCE, 2),)),)
        return list(inner)

    def element(self, b: ir.Buffer, indices: Sequence[ir.Expr], held: dict[ir.Var, ir.Expr]) -> tuple[ir.Expr, ...]:
        """The register of an element of a fragment."""
        found: list[ir.Expr] = []
        for axis, e in zip(self.layouts.fragments[b], indices, strict=True):
            v = plain(e)
            if axis.extent == 1:
                found.append(build.zero(INT32))
            else:
                found.append(held[v] if v is not None and v in held else e)
        return tuple(found)


class _Body(Rewriter):
    """The statements of one iteration, as its thread does them. held: the registers of the nest's variables; guard:
    the condition that picks one of several threads that do the same iteration."""

    def __init__(self, lowering: Lowering, held: dict[ir.Var, ir.Expr], guard: ir.Expr | None) -> None:
        self.lowering, self.held, self.guard = lowering, held, guard

    def expr(self, e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Load) and e.buffer in self.lowering.registers:
            at = self.lowering.element(e.buffer, e.indices, self.held)
            return ir.Load(self.lowering.registers[e.buffer], at, proved=True, loc=e.loc)
        return e

    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        if isinstance(s, ir.Store) and s.buffer in self.lowering.registers:
            at = self.lowering.element(s.buffer, s.indices, self.held)
            return s.replace(buffer=self.lowering.registers[s.buffer], indices=at, proved=True)
        outside = isinstance(s, (ir.Store, ir.Atomic)) and s.buffer.root.scope in ("shared", "global")
        if self.guard is not None and (outside or (isinstance(s, ir.Debug) and s.kind == "print")):
            return ir.If(self.guard, (s,), loc=s.loc)
        return s

    def shallow(self, s: ir.Stmt) -> ir.Stmt:
        """One statement, without its blocks."""
        blocks = {n: getattr(s, n) for n in ("body", "then", "orelse") if hasattr(s, n)}
        if not blocks:
            new = self.visit_stmt(s)
            assert isinstance(new, ir.Stmt)
            return new
        bare = s.replace(**{n: () for n in blocks})
        new = self.visit_stmt(bare)
        assert isinstance(new, ir.Stmt)
        return new.replace(**blocks)


def _numbered(v: ir.Var, body: tuple[ir.Stmt, ...]) -> bool:
    """An array of the thread is indexed with v, or with what follows from it."""
    known = {v}
    for n in walk(body):
        if isinstance(n, ir.Let) and free_vars(n.value) & known:
            known.add(n.var)
    places = (n for n in walk(body) if isinstance(n, (ir.Load, ir.Store)) and n.buffer.root.scope == "local")
    return any(free_vars(e) & known for n in places for e in n.indices) or any(
        isinstance(n, ir.MicroCall) for n in walk(body)
    )


def _written(n: ir.Node) -> Iterable[ir.Buffer]:
    return writes(n) if isinstance(n, ir.Stmt) else ()


def _values(s: ir.Stmt) -> list[ir.Expr]:
    if isinstance(s, (ir.Store, ir.Atomic)):
        return [*s.indices, *([s.value] if s.value is not None else [])]
    return [v for v in s.values if isinstance(v, ir.Expr)] if isinstance(s, ir.Debug) else []


def _leaves(body: tuple[ir.Stmt, ...]) -> bool:
    return any(isinstance(n, ir.Continue) for n in walk(body))
