"""Thread-level kernels become tile-level ones: after this pass nobody mentions a thread.

A kernel in which threads differ is cut at its synchronisation points (barriers, collectives, block-wide tile
operations, T.Parallel) into regions (`regions.py`), each a T.Parallel over the threads of the block. Control flow that
all threads share stays around the regions. Control flow in which they part stays inside a region where it holds no
synchronisation point, and else becomes masks: an array says which threads are here, and the loop goes on while any is.
A thread that returns leaves the mask of the living. The result is ordinary tile IR, which the interpreter runs too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.scopes import escapes
from tiledsl.analysis.uniformity import PRIVATE, thread_level
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.build import INT32, TRUE, all_of, const, ne
from tiledsl.ir.stmt import TILE_OPS
from tiledsl.ir.walk import Rewriter, free_vars, loads_of, map_kernels, substitute, walk

from .branches import join_branches, reads
from .collectives import lower_collective
from .grid_barriers import renewed, rounds_of
from .roles import run_roles, waits_for_others
from .thread_writer import Level, Loop, Masks, Writer, whole

__all__ = ["Spreader", "SpreadThreads"]

_ZERO = const(0, INT32)
_FEW = 32  # rounds
Body = tuple[ir.Stmt, ...]


@dataclass(frozen=True)
class SpreadThreads:
    """The pass; kernels that do not tell their threads apart stay as they are."""

    name: ClassVar[str] = "spread_threads"

    def __call__(self, function: ir.Function) -> ir.Function:
        return map_kernels(lambda k: Spreader(k).run() if thread_level(k) else k, function)


class Spreader(Writer):
    """The rewriting of one kernel."""

    def __init__(self, kernel: ir.Kernel) -> None:
        super().__init__(kernel)
        self.lets: dict[ir.Var, ir.Expr] = {}  # what needs no memory, in terms of block and thread variables
        self.fork = ir.Var("fork", ir.BOOL)  # the condition of branches whose sides run in turns
        self.meetings: dict[
            tuple[int, int], ir.Buffer
        ] = {}  # who has come to the barriers on which groups of threads count

    def run(self) -> ir.Kernel:
        body = self.block(self.kernel.body, ())
        zeros = [ir.Fill(whole(b), build.zero(INT32)) for b in self.meetings.values()]
        body = (*zeros, *body)
        if self.alive is not None:
            body = (self.regions.region((self.set(self.alive, TRUE),)), *body)
        one = tuple(const(1, n.dtype) for n in self.kernel.threads)  # what is left to wait for does one thread
        return self.kernel.replace(body=run_roles(self.regions.resolve(body), self.fork), threads=one)

    # -- writing -------------------------------------------------------------------------------------------

    def block(self, body: Iterable[ir.Stmt], masks: Masks, group: tuple[int, int] | None = None) -> tuple[ir.Stmt, ...]:
        """The statements of a block that those threads (of a group) run for which the masks hold."""
        outer, self.level = self.level, Level(masks, group or self.level.group)
        for s in join_branches(tuple(body), self.differs, self._renewed, self._variable):
            self.statement(s)
        self.flush()
        level, self.level = self.level, outer
        return tuple(level.out)

    # -- questions -----------------------------------------------------------------------------------------

    def differs(self, n: ir.Expr | ir.Stmt) -> bool:
        """Something in n is not the same for all threads."""
        return self.varying.expr(n)

    def is_point(self, n: ir.Node) -> bool:
        """Threads meet here."""
        return isinstance(n, (ir.Sync, ir.Collective, ir.Wait, ir.ReducerOp, *TILE_OPS))

    def stays_inside(self, s: ir.Stmt) -> bool:
        """Threads can run this whole statement each for itself."""
        if any(self.is_point(n) for n in walk(s)) or escapes(s):
            return False
        arrives = any(isinstance(n, ir.Atomic) and n.op == "arrive" for n in walk(s))
        if arrives and (isinstance(s, ir.For) or not self.differs(s)):
            return False  # who is here is counted outside of regions
        return not self._uniform_effect((s,), self.some_threads)

    def _uniform_effect(self, body: tuple[ir.Stmt, ...], divergent: bool) -> bool:
        """Something in the block happens once for all threads."""
        for s in body:
            if isinstance(s, (ir.Store, ir.Atomic, ir.ReducerOp)):
                private = s.buffer.root.scope in PRIVATE
                if not self.differs(s) and (private or not divergent):
                    return True
            elif isinstance(s, ir.Debug):
                if s.kind != "assume" and not self.differs(s):
                    return True
            elif isinstance(s, ir.Alloc):
                if s.buffer.root.scope not in PRIVATE:
                    return True
            elif isinstance(s, ir.If):
                inner = divergent or self.differs(s.cond)
                if self._uniform_effect(s.then, inner) or self._uniform_effect(s.orelse, inner):
                    return True
            elif isinstance(s, (ir.For, ir.While)) and self._uniform_effect(
                s.body, divergent or self.varying.uneven(s)
            ):
                return True
        return False

    # -- statements ------------------------------------------------------------------------------------------

    def statement(self, s: ir.Stmt) -> None:
        _HANDLERS[type(s)](self, s)
        if self.alive is not None and self.alive not in self.level.masks:
            if any(isinstance(n, ir.Return) for n in walk(s)):
                self.level.masks += (self.alive,)

    def _let(self, s: ir.Let) -> None:
        if not reads(s.value):
            self.lets[s.var] = substitute(s.value, self.lets)
        if self.differs(s.value):
            self.level.pending.append(s)
        else:
            self.uniform_let(s)

    def _alloc(self, s: ir.Alloc) -> None:
        if s.buffer.root.scope in PRIVATE and s.buffer.root in self.varying.buffers:
            self.level.pending.append(s)
        elif s.init is not None and loads_of(s.init):
            self.emit(s)
        else:
            self.level.out.append(s)

    def _reducer(self, s: ir.ReducerOp) -> None:
        """Contributions come statement by statement, each of all threads in their order: a region of its own."""
        self.flush()
        if s.action == "update":
            self.level.pending.append(s)
            self.flush()
        else:
            self.emit(s)

    def _effect(self, s: ir.Store | ir.Atomic | ir.ReducerOp | ir.Debug) -> None:
        if isinstance(s, ir.Atomic) and s.op == "arrive":
            self._arrive(s)
        elif self.differs(s) or (self.some_threads and not _once(s)):
            self.level.pending.append(s)
        elif isinstance(s, ir.Debug) and s.kind == "assume":
            self.level.out.append(s)
        else:
            self.emit(s)

    def _each(self, s: ir.Stmt) -> None:
        """What the threads that are here do each for itself; the block, where that is the same for all of them."""
        if self.differs(s) or self.some_threads:
            self.level.pending.append(s)
        else:
            self.emit(s)

    def _by_block(self, s: ir.Stmt) -> None:
        """The threads that are here do this together; where all may have left by now, perhaps nobody does."""
        if not self._kills():
            self.emit(s)
            return
        still = self.mask("still")
        self.flush()
        self.everywhere(self.set(still, self.here()))
        some = self.some(still, self.regions.array("some", INT32, 1))
        self.emit(ir.If(some, (s,), loc=s.loc))

    def _if(self, s: ir.If) -> None:
        splits = self.differs(s.cond)
        side = self._decided(s) if splits else None
        if side is not None:
            for x in side:
                self.statement(x)
            return
        group = self._group(s) if splits else None
        if self.stays_inside(s):
            if group is not None and group[1] - group[0] == 1:
                self.flush()
                self.level.out.append(self.regions.region(self.guarded(s), *group))
            else:
                self._each(s)
            return
        if group is not None:
            self.flush()
            if self.level.masks and any(isinstance(n, ir.Debug) for n in walk(s)):
                self._perhaps(s, group)
                return
            self.level.out += self.block(_without(s, self._always(s.cond)), self.level.masks, group)
            return
        if not splits:
            then, orelse = (self._branch(b) for b in (s.then, s.orelse))
            self.emit(s.replace(then=then, orelse=orelse))
            return
        then, orelse = self._sides(s)
        if s.orelse and (self._waits(s.then) or self._waits(s.orelse)):
            self.emit(ir.If(self.fork, then, orelse, loc=s.loc))
        else:
            self.emit(*then, *orelse)

    def _perhaps(self, s: ir.If, group: tuple[int, int]) -> None:
        """The branch of a group of which perhaps nobody is here."""
        present = self.mask("present")
        outer, self.level = self.level, Level(self.level.masks, group)
        self.everywhere(self.set(present, self.here()))
        some = self.some(present, self.regions.array("some", INT32, 1))
        body = self.block(_without(s, self._always(s.cond)), self.level.masks, group)
        self.emit(ir.If(some, body, loc=s.loc))
        inner, self.level = self.level, outer
        self.level.out += inner.out

    def _decided(self, s: ir.If) -> Body | None:
        """The side that all threads of the group under way take, where it is known now."""
        if self.level.group == self.everyone:
            return None
        inside = self._inside(s.cond)
        if not any(inside):
            return s.orelse
        return s.then if all(inside) and self._always(s.cond) == TRUE else None

    def _sides(self, s: ir.If) -> tuple[tuple[ir.Stmt, ...], tuple[ir.Stmt, ...]]:
        """What the threads of each side do."""
        halves = self._halves(s)
        if halves is not None:
            self.flush()
            then, orelse = (self.block(b, self.level.masks, g) for b, g in zip((s.then, s.orelse), halves, strict=True))
            return then, orelse
        kills = self._kills()
        cond = ir.Var("cond", ir.BOOL)
        yes, no = self.mask("then"), self.mask("otherwise")
        here = self.here()
        self.flush()
        sides: list[ir.Stmt] = [self.set(yes, build.and_(here, cond))]
        if s.orelse:
            sides.append(self.set(no, build.and_(here, build.not_(cond))))
        value = s.cond if here == TRUE else build.and_(here, s.cond)
        self.everywhere(ir.Let(cond, value, loc=s.loc), *sides)
        found: list[tuple[ir.Stmt, ...]] = []
        for mask, body in ((yes, s.then), (no, s.orelse)):
            outer, self.level = self.level, Level(self.level.masks, self.level.group)
            if body:
                some = self.some(mask, self.regions.array("some", INT32, 1))
                self.emit(ir.If(some, self.block(body, (mask, *kills)), loc=s.loc))
            level, self.level = self.level, outer
            found.append(tuple(level.out))
        return found[0], found[1]

    def _waits(self, body: tuple[ir.Stmt, ...]) -> bool:
        return waits_for_others(body) or any(isinstance(n, ir.Sync) and n.count is not None for n in walk(body))

    def _halves(self, s: ir.If) -> tuple[tuple[int, int], tuple[int, int]] | None:
        """The threads of both sides, where they are known now and each side's are neighbours."""
        low, high = self.level.group
        if not s.orelse or self._always(s.cond) != TRUE:
            return None
        inside = self._inside(s.cond)
        count = sum(inside)
        if not 0 < count < high - low:
            return None
        if all(inside[:count]):
            return (low, low + count), (low + count, high)
        return ((high - count, high), (low, high - count)) if all(inside[-count:]) else None

    def _branch(self, body: tuple[ir.Stmt, ...]) -> tuple[ir.Stmt, ...]:
        self.flush()
        return self.block(body, self.level.masks)

    def _kills(self) -> Masks:
        """The masks that may lose threads while they are in use."""
        loops = [loop.masks[1] for loop in self.loops[-1:] if loop.masks is not None]
        return tuple(m for m in self.level.masks if m in loops or m is self.alive)

    def _group(self, s: ir.If) -> tuple[int, int] | None:
        """Threads with neighbouring numbers, the only ones for which the condition can hold, as far as that is known
        now; None where there are none, or where the others have something to do."""
        low, high = self.level.group
        if s.orelse:
            return None
        inside = [t for t, holds in enumerate(self._inside(s.cond), low) if holds]
        if not inside or inside[-1] - inside[0] + 1 != len(inside) or len(inside) == high - low:
            return None
        return inside[0], inside[-1] + 1

    def _known(self, cond: ir.Expr) -> list[ir.Expr]:
        """The parts of a conjunction that depend on nothing but the thread, in terms of thread variables."""
        if isinstance(cond, ir.Binary) and cond.op == "and":
            return self._known(cond.a) + self._known(cond.b)
        plain: ir.Expr = substitute(cond, self.lets)
        return [plain] if not reads(plain) and free_vars(plain) <= set(self.kernel.thread_vars) else []

    def _inside(self, cond: ir.Expr) -> list[bool]:
        """For each thread of the group under way, whether a condition can hold, as far as that is known now."""
        known = self._known(cond)
        return [all(evaluate(e, self._indices(t)) for e in known) for t in range(*self.level.group)]

    def _indices(self, t: int) -> dict[ir.Var, int]:
        found = {}
        for v, n in zip(self.kernel.thread_vars, self.regions.counts, strict=True):
            t, found[v] = divmod(t, n)
        return found

    def _always(self, cond: ir.Expr) -> ir.Expr:
        """What is left of a condition for the threads of the group that was made for it."""
        if isinstance(cond, ir.Binary) and cond.op == "and":
            return build.and_(self._always(cond.a), self._always(cond.b))
        return TRUE if self._known(cond) else cond

    # -- loops -----------------------------------------------------------------------------------------------

    def _for(self, s: ir.For) -> None:
        uneven = self.varying.uneven(s)
        if s.kind == "unroll" and self._few(s) and any(map(self.is_point, walk(s.body))) and not _leaves(s.body):
            for k in rounds_of(s) or ():
                for x in self._again(s, k):
                    self.statement(x)
        elif self.stays_inside(s) and (uneven or self._short(s) or self.varying.leaves(s.body)):
            self._each(s)
        elif uneven:
            self._for_masked(s)
        elif self.varying.leaves(s.body) or self._returns(s):
            self._even_masked(s)
        else:
            self._together(s)

    def _together(self, s: ir.For | ir.While) -> None:
        """A loop whose rounds all threads go through."""
        self.loops.append(Loop())
        body = self._branch(s.body)
        self.loops.pop()
        self.emit(s.replace(body=body))

    def _short(self, s: ir.For) -> bool:
        """Few rounds: better inside a region, in registers. Long loops stay outside, so that neighbouring threads
        touch neighbouring memory at the same time; so do atomics, which threads do one after the other."""
        if self._few(s) and not any(isinstance(n, ir.Atomic) for n in walk(s.body)):
            return True
        return not self.differs(s)

    @staticmethod
    def _few(s: ir.For) -> bool:
        rounds = rounds_of(s)
        return rounds is not None and len(rounds) <= _FEW

    def _again(self, s: ir.For, k: int) -> tuple[ir.Stmt, ...]:
        """One round of a loop; what it binds is new each time."""
        return self._renewed(s.body, {s.var: const(k, s.var.type)})

    def _renewed(self, body: Body, values: dict[ir.Var, ir.Expr]) -> Body:
        """A copy of a block with values put in; what it binds is new, and as uneven as before."""
        body, values, buffers = renewed(body, values)
        self.varying.vars.update(new for v, new in values.items() if v in self.varying.vars and isinstance(new, ir.Var))
        self.varying.buffers.update(new for b, new in buffers.items() if b in self.varying.buffers)
        return body

    def _variable(self, v: ir.Var) -> ir.Buffer:
        """A private variable as uneven as a value."""
        made = ir.Buffer(v.name, v.type, (const(1, INT32),), "var")
        if v in self.varying.vars:
            self.varying.buffers.add(made)
        return made

    def _returns(self, s: ir.For | ir.While) -> bool:
        return self.some_threads and any(isinstance(n, ir.Return) for n in walk(s.body))

    def _masked_body(
        self, body: tuple[ir.Stmt, ...], going: ir.Buffer, before: tuple[ir.Stmt, ...], after: Callable[[], None]
    ) -> tuple[ir.Stmt, ...]:
        """One round for the threads in `going`."""
        here = self.mask("here")
        self.flush()
        outer, self.level = self.level, Level((), self.level.group)
        self.everywhere(self.set(here, self.holds(going)))
        masks: Masks = (here,)
        if any(isinstance(n, ir.Return) for s in body for n in walk(s)):
            masks += (self._living(),)
        self.loops.append(Loop((going, here)))
        self.level.masks = masks
        self.level.pending += before
        for s in body:
            self.statement(s)
        self.flush()
        self.level.masks = ()
        self.loops.pop()
        after()
        self.flush()
        level, self.level = self.level, outer
        return tuple(level.out)

    def _living(self) -> ir.Buffer:
        if self.alive is None:
            self.alive = self.mask("alive")
        return self.alive

    def _going(self, going: ir.Buffer, *conditions: ir.Expr) -> ir.Expr:
        still = [self.holds(going)] if going else []
        return all_of([*still, *([self.holds(self.alive)] if self.alive is not None else ()), *conditions])

    def _even_masked(self, s: ir.For) -> None:
        """All threads would run the same rounds, but some leave early."""
        going, flag = self.mask("going"), self.regions.array("some", INT32, 1)
        self.flush()
        self.everywhere(self.set(going, self.here()))
        body = self._masked_body(s.body, going, (), lambda: None)
        outer, self.level = self.level, Level((), self.level.group)
        if self.alive is not None:
            self.everywhere(self.set(going, self._going(going)))
        none = build.not_(self.some(going, flag))
        self.emit(ir.If(none, (ir.Break(),), loc=s.loc))
        head, self.level = tuple(self.level.out), outer
        self.emit(s.replace(body=(*head, *body)))

    def _for_masked(self, s: ir.For) -> None:
        """Each thread counts for itself."""
        t = s.var.type
        down = isinstance(s.step, ir.Const) and s.step.value < 0
        count, last, by = (self.regions.per_thread(n, t) for n in (s.var.name, "last", "by"))
        at = (self.thread,)
        inside = ir.Binary("gt" if down else "lt", count.load(*at), last.load(*at))
        start = [ir.Store(b, at, e, loc=s.loc) for b, e in ((count, s.start), (last, s.stop), (by, s.step))]
        self.level.pending += start

        def step(going: ir.Buffer) -> None:  # who is not here has no count
            more = ir.Store(count, at, build.add(count.load(*at), by.load(*at)), loc=s.loc)
            self.level.pending.append(ir.If(self.holds(going), (more,), loc=s.loc))

        self._rounds(s.body, inside, (ir.Let(s.var, count.load(*at), loc=s.loc),), step, s)

    def _while(self, s: ir.While) -> None:
        if self.stays_inside(s):
            self._each(s)
        elif self.varying.uneven(s) or self.varying.leaves(s.body) or self._returns(s):
            self._rounds(s.body, s.cond, (), lambda going: None, s)
        else:
            self._together(s)

    def _rounds(
        self, body: tuple[ir.Stmt, ...], cond: ir.Expr, before: tuple[ir.Stmt, ...],
        step: Callable[[ir.Buffer], None], s: ir.Stmt,
    ) -> None:  # fmt: skip
        """Rounds while cond holds for some thread that is still here."""
        going, flag = self.mask("going"), self.regions.array("some", INT32, 1)
        self.flush()
        self.everywhere(self.set(going, build.and_(self.here(), cond)))
        some = self.some(going, flag)

        def after() -> None:
            step(going)
            self.level.pending.append(self.set(going, self._going(going, cond)))
            self.flush()
            self.some(going, flag)

        self.emit(ir.While(some, self._masked_body(body, going, before, after), loc=s.loc))

    def _leave(self, s: ir.Break | ir.Continue) -> None:
        masks = self.loops[-1].masks
        if masks is None:
            self.emit(s)
            return
        going, here = masks
        self.level.pending.append(self.set(here, build.FALSE))
        if isinstance(s, ir.Break):
            self.level.pending.append(self.set(going, build.FALSE))
        self.flush()  # what follows asks again who is here

    def _return(self, s: ir.Return) -> None:
        all_here = self.level.group == self.everyone and all(m is self.alive for m in self.level.masks)
        if all_here and not any(loop.masks for loop in self.loops):
            self.emit(s)
            return
        self.level.pending.append(self.set(self._living(), build.FALSE))
        self.flush()

    # -- where threads meet ----------------------------------------------------------------------------------

    def _sync(self, s: ir.Sync) -> None:
        self.flush()
        if s.count is not None and (self.some_threads or s.count < self.regions.count):
            self._meet(s, s.count)
        if s.scope != "grid":
            return
        if any(m is not self.alive for m in self.level.masks) or self.level.group != self.everyone:
            raise TileNotImplementedError(
                "a barrier of the grid that only some threads of a block reach is not supported by the CPU targets",
                s.loc,
                help="move it out of the branch, so that all threads come to it",
            )
        self.emit(s)

    def _meet(self, s: ir.Sync, count: int) -> None:
        """A barrier at which `count` threads meet: they are counted, and wait until the round is full."""
        key = s.barrier, count  # rounds of different size count apart
        if key not in self.meetings:
            self.meetings[key] = self.regions.array("arrived", INT32, 1)
        arrived = self.meetings[key]
        now = ir.Var("round", INT32)
        self.emit(ir.Let(now, build.floordiv(arrived.load(_ZERO), count), loc=s.loc))
        self._arrive(ir.Atomic("arrive", arrived, (_ZERO,), const(1, INT32), loc=s.loc))
        self.emit(ir.Wait(ne(build.floordiv(arrived.load(_ZERO), count), now), loc=s.loc))

    def _arrive(self, s: ir.Atomic) -> None:
        """Every thread that is here counts."""
        low, high = self.level.group
        if self.level.masks or self.differs(s):
            self.level.pending.append(s.replace(op="add"))
        else:
            self.emit(s.replace(op="add", value=const(high - low, s.buffer.dtype)))

    def _wait(self, s: ir.Wait) -> None:
        """Where threads wait for different things, for one after the other: all go on when all have come."""
        if not self.differs(s):
            self.emit(s)
            return
        waiting = ir.Var("waiting", INT32)
        present = self.mask("present")
        self.flush()
        self.everywhere(self.set(present, self.here()))
        wait = s.replace(cond=_OfThread(self, waiting).visit_expr(s.cond))
        self.flush()
        body = (ir.If(ne(present.load(waiting), 0), (wait,), loc=s.loc),)
        low, high = (const(n, INT32) for n in self.level.group)
        self.emit(ir.For(waiting, low, high, const(1, INT32), body, loc=s.loc))

    def _collective(self, s: ir.Collective) -> None:
        lower_collective(self, s)


class _OfThread(Rewriter):
    """An expression of each thread as an expression of one, by its number: what is its own is kept in arrays."""

    def __init__(self, sp: Spreader, number: ir.Var) -> None:
        self.sp, self.number = sp, number

    def visit_expr(self, e: ir.Expr) -> ir.Expr:
        if not self.sp.differs(e):
            return e
        if any(x.buffer.root.scope not in PRIVATE for x in loads_of(e)):
            return super().visit_expr(e)
        kind = INT32 if e.dtype.is_bool else e.dtype
        array = self.sp.regions.per_thread("own", kind)
        self.sp.level.pending.append(ir.Store(array, (self.sp.thread,), build.cast(e, kind)))
        found = array.load(self.number)
        return ne(found, 0) if e.dtype.is_bool else found


def _once(s: ir.Stmt) -> bool:
    """Done once by whoever is here: a store to a variable that is the same for all who look at it, and output."""
    return isinstance(s, ir.Debug) or (isinstance(s, ir.Store) and s.buffer.root.scope in PRIVATE)


def _without(s: ir.If, cond: ir.Expr) -> tuple[ir.Stmt, ...]:
    """The If under another condition."""
    return s.then if cond == TRUE else (s.replace(cond=cond),)


def _leaves(body: tuple[ir.Stmt, ...]) -> bool:
    return any(isinstance(n, (ir.Break, ir.Continue)) for n in walk(body))


_HANDLERS: dict[type, Callable[[Spreader, Any], None]] = {
    ir.Alloc: Spreader._alloc,
    ir.Let: Spreader._let,
    ir.Store: Spreader._effect,
    ir.Atomic: Spreader._effect,
    ir.ReducerOp: Spreader._reducer,
    ir.Wait: Spreader._wait,
    ir.Debug: Spreader._effect,
    ir.If: Spreader._if,
    ir.For: Spreader._for,
    ir.While: Spreader._while,
    ir.Break: Spreader._leave,
    ir.Continue: Spreader._leave,
    ir.Return: Spreader._return,
    ir.Sync: Spreader._sync,
    ir.Collective: Spreader._collective,
    **dict.fromkeys(TILE_OPS, Spreader._by_block),
}
