"""Regions of a thread-level kernel: what all its threads do between two synchronisation points, as one T.Parallel.

While the kernel is taken apart, a region holds the author's statements as they were, with thread indices and storage
that every thread has for itself. `Regions.resolve` then sees all regions, and decides what becomes of a value that
differs between threads: it stays inside where no other region needs it, is computed again where that reads no
memory, and else lives in an array with one element per thread, the threads last so that vector lanes are neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from tiledsl import ir
from tiledsl.analysis.uniformity import Varying
from tiledsl.dtypes import DType
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir.build import INT32, add, const, floordiv, floormod, mul
from tiledsl.ir.walk import Rewriter, bound_in, free_vars, loads_of, substitute, walk

from .nest import access_score, worth
from .strides import coefficient
from .wide import LANES

__all__ = ["Regions", "thread_counts"]


def thread_counts(kernel: ir.Kernel) -> tuple[int, ...]:
    """The extents of a block, which have to be constants where threads are told apart."""
    counts = tuple(e.value for e in kernel.threads if isinstance(e, ir.Const))
    if len(counts) != len(kernel.threads):
        raise TileNotImplementedError(
            "a kernel that uses its thread indices needs a number of threads that is a compile-time constant on the "
            "CPU targets",
            kernel.loc,
            help="make threads= Python ints (factory arguments), or run on target='numpy'",
        )
    return counts


@dataclass(eq=False)
class _Region:
    """A region in the tree, the loops around it, what it defines and what it mentions."""

    nest: ir.Parallel
    loops: tuple[ir.Stmt, ...]
    lets: dict[ir.Var, ir.Expr | None] = field(default_factory=dict)  # None: no expression gives it again
    mentions: set[ir.Var] = field(default_factory=set)
    allocs: dict[ir.Buffer, ir.Alloc] = field(default_factory=dict)
    touches: set[ir.Buffer] = field(default_factory=set)


class Regions:
    """The regions of one kernel.

    thread  stands for the number of the thread (x fastest) in regions, until `resolve`
    place   stands for where a thread's own storage lies among that of the others
    arrays  block-wide storage that was made on the way; to be allocated at the top of the kernel
    """

    def __init__(self, kernel: ir.Kernel, varying: Varying) -> None:
        self.kernel, self.varying = kernel, varying
        self.counts = thread_counts(kernel)
        self.count = math.prod(self.counts)
        self.thread, self.place = ir.Var("thread", INT32), ir.Var("place", INT32)
        self.arrays: list[ir.Buffer] = []

    def array(self, name: str, dtype: DType, *extents: int) -> ir.Buffer:
        """New storage of the block."""
        made = ir.Buffer(name, dtype, tuple(const(n, INT32) for n in extents), "shared")
        self.arrays.append(made)
        return made

    def per_thread(self, name: str, dtype: DType) -> ir.Buffer:
        return self.array(name, dtype, self.count)

    def place_of(self) -> ir.Expr | None:
        """`place` of a thread, by its indices, where that is not its number: x comes first, but where another axis
        has more for sixteen lanes to do."""
        axes = list(zip(self.kernel.thread_vars, self.counts, strict=True))
        gain = {a: self._worth(v) * min(n, LANES) for a, (v, n) in enumerate(axes) if a == 0 or n >= LANES}
        first = max(gain, key=gain.__getitem__)
        if first == 0:
            return None
        found: ir.Expr = const(0, INT32)
        step = 1
        for v, n in (axes[first], *axes[:first], *axes[first + 1 :]):
            found = add(found, mul(v, step))
            step *= n
        return found

    def _worth(self, v: ir.Var) -> float:
        """How well lanes along a thread index touch memory, a thread's own as neighbours."""
        lets: dict[ir.Var, int | None] = {v: 1}

        def score(n: ir.Node) -> float:
            if isinstance(n, ir.Let):
                lets[n.var] = coefficient(n.value, lets)
            own = isinstance(n, (ir.Load, ir.Store)) and n.buffer.root in self.varying.buffers
            return 1.0 if own else access_score(n, lets)

        return worth(self.kernel.body, score)

    def region(self, body: tuple[ir.Stmt, ...], first: int = 0, last: int | None = None) -> ir.Parallel:
        """A region of the threads with the numbers first to last - 1 (None: of all)."""
        last = self.count if last is None else last
        threads = ("threads", (first, last))
        return ir.Parallel((self.thread,), (const(last - first, INT32),), body, (threads,))

    def _is_region(self, n: ir.Node) -> bool:
        return isinstance(n, ir.Parallel) and n.vars == (self.thread,)

    # -- resolving -----------------------------------------------------------------------------------------

    def resolve(self, body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        """The kernel's body with its regions as nests over the threads, and the arrays they need allocated."""
        regions = list(self._find(body, ()))
        plan = _Plan(self, regions)
        found = _Place(self, plan, regions).visit_block(body)
        return (*(ir.Alloc(b) for b in self.arrays), *found)

    def _find(self, body: tuple[ir.Stmt, ...], loops: tuple[ir.Stmt, ...]) -> Iterator[_Region]:
        for s in body:
            if self._is_region(s):
                assert isinstance(s, ir.Parallel)
                yield self._describe(s, loops)
            elif isinstance(s, ir.If):
                yield from self._find(s.then, loops)
                yield from self._find(s.orelse, loops)
            elif isinstance(s, (ir.For, ir.While)):
                yield from self._find(s.body, (*loops, s))

    def _describe(self, nest: ir.Parallel, loops: tuple[ir.Stmt, ...]) -> _Region:
        r = _Region(nest, loops)
        for n in walk(nest.body):
            if isinstance(n, ir.Alloc):
                r.allocs[n.buffer] = n
            elif isinstance(n, ir.Var):
                r.mentions.add(n)
            elif isinstance(n, ir.Buffer):
                r.touches.add(n.root)
                if n.offset is not None:
                    r.mentions |= free_vars(n.offset)
            for v in bound_in(n):
                r.lets[v] = n.value if isinstance(n, ir.Let) else None
        r.touches -= {b for b, s in r.allocs.items() if not _used(nest, b)}
        return r


def _used(nest: ir.Parallel, b: ir.Buffer) -> bool:
    """The region does more with b than to allocate it."""
    allocs = sum(isinstance(n, ir.Alloc) and n.buffer is b for n in walk(nest.body))
    return sum(n is b or (isinstance(n, ir.Buffer) and n.root is b) for n in walk(nest.body)) > allocs


class _Plan:
    """Where everything that differs between threads lives.

    again   variables that each region computes for itself, with their values
    kept    variables that live in an array
    moved   author's buffers, views included, and the arrays that stand for them; first: these have the threads first
    inside  buffers that one region alone uses: region -> the Alloc statements at its head
    """

    def __init__(self, owner: Regions, regions: list[_Region]) -> None:
        self.owner = owner
        self.again: dict[ir.Var, ir.Expr] = {}
        self.kept: dict[ir.Var, ir.Buffer] = {}
        self.moved: dict[ir.Buffer, ir.Buffer] = {}
        self.first: set[ir.Buffer] = set()
        self.inside: dict[int, list[ir.Alloc]] = {}
        self.private: set[ir.Buffer] = set()
        self._values(regions)
        self._storage(regions)

    def _values(self, regions: list[_Region]) -> None:
        for r in regions:
            for v, value in r.lets.items():
                if not any(v in other.mentions for other in regions if other is not r):
                    continue
                if value is not None and self._pure(value, r):
                    self.again[v] = value
                else:
                    self.kept[v] = self.owner.per_thread(v.name, v.type)

    def _pure(self, e: ir.Expr, r: _Region) -> bool:
        """Cheap to compute again: whole numbers from what every region has."""
        if not (e.dtype.is_int or e.dtype.is_bool) or loads_of(e) or any(isinstance(n, ir.Call) for n in walk(e)):
            return False
        own = [v for v in free_vars(e) if v in r.lets and v not in self.again and v not in self.kept]
        if any(r.lets[v] is None for v in own):
            return False
        if not all(self._pure(value, r) for v in own if (value := r.lets[v]) is not None):
            return False
        self.again.update((v, value) for v in own if (value := r.lets[v]) is not None)
        return True

    def _storage(self, regions: list[_Region]) -> None:
        varying = self.owner.varying.buffers
        views = [n for r in regions for n in walk(r.nest.body) if isinstance(n, ir.Buffer) and n.alias_of is not None]
        viewed: dict[ir.Buffer, list[ir.Buffer]] = {}
        for view in dict.fromkeys(views):
            viewed.setdefault(view.root, []).append(view)
        roots: dict[ir.Buffer, None] = {}
        home: dict[ir.Buffer, tuple[_Region, ir.Alloc]] = {}
        for r in regions:
            for b in sorted(r.touches | set(r.allocs), key=lambda b: b.name):
                if b in varying or b in r.allocs:
                    roots.setdefault(b)
            for b, s in r.allocs.items():
                home[b] = (r, s)
        for b in roots:
            users = [r for r in regions if b in r.touches]
            if b.alias_of is None and not (b.scope == "var" and b not in viewed and self._stays(b, users, home)):
                self._spread(b, viewed.get(b, []))

    def _stays(self, b: ir.Buffer, users: list[_Region], home: dict[ir.Buffer, tuple[_Region, ir.Alloc]]) -> bool:
        """One region alone uses the variable, once per life: it can be a register there."""
        if b not in home:
            return False
        r, alloc = home[b]
        if not users or users == [r]:
            return True
        known = alloc.init is None or isinstance(alloc.init, ir.Const)
        if len(users) > 1 or users[0].loops != r.loops or not known:
            return False
        self.inside.setdefault(id(users[0].nest), []).append(alloc)
        self.private.add(b)
        return True

    def _spread(self, b: ir.Buffer, views: list[ir.Buffer]) -> None:
        n, own = self.owner.count, [e.value for e in _const_shape(b)]
        whole = all(
            v.dtype == b.dtype and v.offset is None and v.strides is None and math.prod(_extents(v)) == math.prod(own)
            for v in views
        )
        made = self.owner.array(b.name, b.dtype, *((*own, n) if whole else (n, *own)))
        self.moved[b] = made
        if not whole:
            self.first.add(made)
        threads = const(n, INT32)
        for v in views:
            shape = (*_const_shape(v), threads) if whole else (threads, *_const_shape(v))
            view = ir.Buffer(v.name, v.dtype, shape, "shared", alias_of=made, offset=v.offset)
            if not whole:
                bits = math.prod(own) * b.dtype.bits * b.dtype.lanes // (v.dtype.bits * v.dtype.lanes)
                steps = [math.prod(_extents(v)[k + 1 :]) for k in range(v.rank)]
                inner = v.strides or tuple(const(x, INT32) for x in steps)
                view = view.replace(strides=(const(bits, INT32), *inner))
                self.first.add(view)
            self.moved[v] = view


def _const_shape(b: ir.Buffer) -> tuple[ir.Const, ...]:
    shape = tuple(e for e in b.shape if isinstance(e, ir.Const))
    if len(shape) != b.rank:
        raise TileNotImplementedError(
            f"{b.name}: storage of a thread whose extents are not compile-time constants is not supported by the CPU "
            "targets",
            b.loc,
            help="make the extents Python ints (factory arguments), or run on target='numpy'",
        )
    return shape


def _extents(b: ir.Buffer) -> list[int]:
    return [int(e.value) for e in _const_shape(b)]


class _Place(Rewriter):
    """Turns regions into nests over the axes of the block."""

    def __init__(self, owner: Regions, plan: _Plan, regions: list[_Region]) -> None:
        self.owner, self.plan = owner, plan
        self.regions = {id(r.nest): r for r in regions}
        self.arrays = set(plan.moved.values())
        self.place = owner.place_of()
        self.here: _Region | None = None
        self.now: dict[ir.Var, ir.Var] = {}

    def visit_stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        found = self.regions.get(id(s))
        if found is not None:
            return self._nest(found)
        if self.here is None:
            return self._outside(s)
        return super().visit_stmt(s)

    def _outside(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.If):
            return s.replace(then=self.visit_block(s.then), orelse=self.visit_block(s.orelse))
        if isinstance(s, (ir.For, ir.While)):
            return s.replace(body=self.visit_block(s.body))
        return s

    def _nest(self, r: _Region) -> ir.Stmt | tuple[ir.Stmt, ...]:
        head: list[ir.Stmt] = []
        self.here, self.now = r, {}
        for v in sorted(r.mentions - set(r.lets), key=lambda v: v.name):
            self._bring(v, head)
        own_body = self.visit_block(r.nest.body)
        self.here = None
        if not own_body:
            return ()
        body = (*head, *self.plan.inside.get(id(r.nest), ()), *own_body)
        own, axes, extents = self._axes(*dict(r.nest.annotations)["threads"])
        loc = r.nest.body[0].loc
        return ir.Parallel(axes, extents, substitute(body, own), (("threads", True),), loc=loc)

    def _axes(self, first: int, last: int) -> tuple[dict[ir.Var, ir.Expr], tuple[ir.Var, ...], tuple[ir.Expr, ...]]:
        """Thread indices and thread number by the variables of a nest, and that nest: over the axes of the block,
        or for some of its threads over their numbers."""
        vs, counts = self.owner.kernel.thread_vars, self.owner.counts
        own: dict[ir.Var, ir.Expr] = {}
        number: ir.Expr = const(first, INT32)
        nest: list[tuple[ir.Var, int]] = []
        if (first, last) == (0, self.owner.count):
            nest = [(ir.Var(v.name, v.type), n) for v, n in zip(vs, counts, strict=True) if n > 1]
            named = dict(zip([v for v, n in zip(vs, counts, strict=True) if n > 1], nest, strict=True))
            for v, n in reversed(list(zip(vs, counts, strict=True))):
                own[v] = named[v][0] if v in named else const(0, v.type)
                number = add(mul(number, n), own[v])
        else:
            if last - first > 1:
                nest = [(ir.Var("thread", INT32), last - first)]
                number = add(nest[0][0], first)
            rest = number
            for k, (v, n) in enumerate(zip(vs, counts, strict=True)):
                own[v] = rest if k == len(vs) - 1 else floormod(rest, n)
                rest = floordiv(rest, n)
        own[self.owner.thread] = number
        own[self.owner.place] = number if self.place is None else substitute(self.place, own)
        nest = nest or [(ir.Var("one", INT32), 1)]
        return own, tuple(v for v, _ in reversed(nest)), tuple(const(n, INT32) for _, n in reversed(nest))

    def _bring(self, v: ir.Var, head: list[ir.Stmt]) -> None:
        """Makes a value of another region known here."""
        if v in self.now:
            return
        if v in self.plan.again:
            value = self.plan.again[v]
            for w in sorted(free_vars(value), key=lambda w: w.name):
                self._bring(w, head)
            mine = ir.Var(v.name, v.type)
            head.append(ir.Let(mine, substitute(value, self.now)))
            self.now[v] = mine
        elif v in self.plan.kept:
            mine = ir.Var(v.name, v.type)
            head.append(ir.Let(mine, self.plan.kept[v].load(self.owner.thread)))
            self.now[v] = mine

    # -- what a region says ------------------------------------------------------------------------------

    def var(self, v: ir.Var) -> ir.Expr:
        return self.now.get(v, v)

    def buffer(self, b: ir.Buffer) -> ir.Buffer:
        return self.plan.moved.get(b, b)

    def _at(self, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> tuple[ir.Expr, ...]:
        thread = (self.owner.place,)
        return thread + indices if b in self.plan.first else indices + thread

    def expr(self, e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Load) and e.buffer in self.arrays:
            return e.replace(indices=self._at(e.buffer, e.indices))
        return e

    def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.Alloc):
            if s.buffer in self.arrays:
                zero = tuple(const(0, INT32) for _ in range(s.buffer.rank - 1))
                return () if s.init is None else ir.Store(s.buffer, self._at(s.buffer, zero), s.init, loc=s.loc)
            return () if s.buffer in self.plan.private else s
        if isinstance(s, ir.Atomic) and s.op == "arrive":
            s = s.replace(op="add")
        if isinstance(s, (ir.Store, ir.Atomic)) and s.buffer in self.arrays:
            s = s.replace(indices=self._at(s.buffer, s.indices))
        elif isinstance(s, ir.Debug) and any(isinstance(v, ir.Buffer) and v in self.arrays for v in s.values):
            raise TileNotImplementedError(
                "printing whole storage of a thread is not supported by the CPU targets",
                s.loc,
                help="print its elements, or run on target='numpy'",
            )
        kept = [(v, self.plan.kept[v]) for v in bound_in(s) if v in self.plan.kept]
        return (s, *(ir.Store(b, (self.owner.thread,), v, loc=s.loc) for v, b in kept)) if kept else s
