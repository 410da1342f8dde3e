"""Groups of threads that wait for each other run in turns: each is a machine of states with a program counter.

A branch in which threads part and wait (`Spreader` marks it) becomes a process per side. The statements of a side are
cut where it may have to wait; values and loop counters that live across a cut are variables. One loop runs the
processes in turn, each until its condition does not hold, until all have ended. When nobody moves any more, the
kernel fails as an assertion does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tiledsl import ir
from tiledsl.analysis.scopes import jumps_out
from tiledsl.dtypes import DType
from tiledsl.ir import build
from tiledsl.ir.build import INT32, and_, const, eq, ne
from tiledsl.ir.walk import bound_in, loads_of, substitute, walk

from .waits import observed

__all__ = ["STUCK", "run_roles", "waits_for_others"]

STUCK = "threads of a block wait for a condition that nobody makes true"
_ZERO = const(0, INT32)
_DONE = -1
Body = tuple[ir.Stmt, ...]


def waits_for_others(body: Body) -> bool:
    """Something in the block may have to wait for other threads."""
    return any(isinstance(n, ir.Wait) for n in walk(body))


def run_roles(body: Body, fork: ir.Var) -> Body:
    """The body without branches on `fork`, whose two sides run in turns."""
    out: list[ir.Stmt] = []
    for s in body:
        if isinstance(s, ir.If) and s.cond is fork:
            out += _Machine(fork).run(s)
        elif isinstance(s, ir.If):
            out.append(s.replace(then=run_roles(s.then, fork), orelse=run_roles(s.orelse, fork)))
        elif isinstance(s, (ir.For, ir.While)):
            out.append(s.replace(body=run_roles(s.body, fork)))
        elif isinstance(s, ir.Wait) and not any(x.buffer.root.scope == "global" for x in loads_of(s.cond)):
            out.append(ir.Debug("assert", (s.cond,), STUCK, loc=s.loc))  # there is nobody else who could change it
        else:
            out.append(s)
    return tuple(out)


def _variable(name: str, t: DType) -> ir.Buffer:
    return ir.Buffer(name, t, (const(1, INT32),), "var")


def _get(b: ir.Buffer) -> ir.Load:
    return b.load(_ZERO)


def _put(b: ir.Buffer, value: ir.Expr | int) -> ir.Stmt:
    return ir.Store(b, (_ZERO,), const(value, b.dtype) if isinstance(value, int) else value)


@dataclass(eq=False)
class _State:
    """Statements that run at once; the last one may move the program counter."""

    body: list[ir.Stmt] = field(default_factory=list)


@dataclass(eq=False)
class _Process:
    """The states of one side, and where it is."""

    counter: ir.Buffer
    states: list[_State] = field(default_factory=list)

    def add(self) -> int:
        self.states.append(_State())
        return len(self.states) - 1


class _Machine:
    """The processes of one branch, those of branches inside them included."""

    def __init__(self, fork: ir.Var) -> None:
        self.fork = fork
        self.processes: list[_Process] = []
        self.variables: list[ir.Buffer] = []
        self.allocs: list[ir.Alloc] = []
        self.kept: dict[ir.Var, ir.Buffer] = {}  # loop variables
        self.others = False  # other blocks may make a condition true
        self.going, self.moved, self.idle = (_variable(n, INT32) for n in ("going", "moved", "idle"))

    def run(self, s: ir.If) -> Body:
        roots = [self._process(side) for side in (s.then, s.orelse)]
        self._carry()
        sweep: list[ir.Stmt] = [_put(self.moved, 0)]
        for p in self.processes:
            sweep += [_put(self.going, 1), self._turn(p)]
        if not self.others:
            idle = build.select(ne(_get(self.moved), 0), _ZERO, build.add(_get(self.idle), 1))
            sweep += [_put(self.idle, idle), ir.Debug("assert", (build.lt(_get(self.idle), 2),), STUCK, loc=s.loc)]
        running = build.or_(*(ne(_get(p.counter), _DONE) for p in roots))
        start = [ir.Alloc(p.counter, const(0 if p in roots else _DONE, INT32)) for p in self.processes]
        counters = [ir.Alloc(b, _ZERO) for b in (self.going, self.moved, self.idle)]
        own = [ir.Alloc(b, build.zero(b.dtype)) for b in self.variables]
        return (*start, *counters, *own, *self.allocs, ir.While(running, tuple(sweep), loc=s.loc))

    def _turn(self, p: _Process) -> ir.Stmt:
        """One process until it has to wait."""
        body = tuple(ir.If(eq(_get(p.counter), k), tuple(state.body)) for k, state in enumerate(p.states))
        return ir.While(and_(ne(_get(self.going), 0), ne(_get(p.counter), _DONE)), body)

    # -- states ----------------------------------------------------------------------------------------------

    def _process(self, body: Body) -> _Process:
        p = _Process(_variable("at", INT32))
        self.processes.append(p)
        last = self._sequence(p, p.add(), body, None)
        p.states[last].body += [_put(p.counter, _DONE), _put(self.moved, 1)]
        return p

    def _sequence(self, p: _Process, at: int, body: Body, loop: tuple[int, int] | None) -> int:
        """Adds a block behind state `at`; the state that goes on behind it. loop: where continue and break go."""
        for s in body:
            here = p.states[at].body
            if isinstance(s, ir.Wait):
                at = self._wait(p, at, observed(s.cond), s)
            elif isinstance(s, ir.Alloc):
                self.allocs.append(s.replace(init=None))
                if s.init is not None:
                    here.append(ir.Store(s.buffer, (_ZERO,), s.init, loc=s.loc))
            elif not (waits_for_others((s,)) or self._forks(s) or (loop and jumps_out(s))):
                here.append(s)
            elif isinstance(s, (ir.Break, ir.Continue)):
                assert loop is not None
                here.append(_put(p.counter, loop[isinstance(s, ir.Break)]))
                at = p.add()  # nobody comes here
            elif isinstance(s, ir.If) and s.cond is self.fork:
                inner = [self._process(side) for side in (s.then, s.orelse)]
                here += [_put(q.counter, 0) for q in inner]
                done = and_(*(eq(_get(q.counter), _DONE) for q in inner))
                at = self._wait(p, at, ((), done), s)
            elif isinstance(s, ir.If):
                yes, no, behind = p.add(), p.add(), p.add()
                here.append(ir.If(s.cond, (_put(p.counter, yes),), (_put(p.counter, no),), loc=s.loc))
                for start, side in ((yes, s.then), (no, s.orelse)):
                    end = self._sequence(p, start, side, loop)
                    p.states[end].body.append(_put(p.counter, behind))
                at = behind
            elif isinstance(s, ir.For):
                at = self._for(p, at, s)
            else:
                assert isinstance(s, ir.While)
                head, inside, behind = p.add(), p.add(), p.add()
                here.append(_put(p.counter, head))
                self._test(p, head, s.cond, inside, behind)
                end = self._sequence(p, inside, s.body, (head, behind))
                p.states[end].body.append(_put(p.counter, head))
                at = behind
        return at

    def _wait(self, p: _Process, at: int, seen: tuple[Body, ir.Expr], s: ir.Stmt) -> int:
        look, behind = p.add(), p.add()
        p.states[at].body.append(_put(p.counter, look))
        reads, cond = seen
        self.others |= bool(reads)
        yes, no = (_put(p.counter, behind), _put(self.moved, 1)), (_put(self.going, 0),)
        p.states[look].body += [*reads, ir.If(cond, yes, no, loc=s.loc)]
        return behind

    def _test(self, p: _Process, at: int, cond: ir.Expr, yes: int, no: int) -> None:
        p.states[at].body.append(ir.If(cond, (_put(p.counter, yes),), (_put(p.counter, no),)))

    def _for(self, p: _Process, at: int, s: ir.For) -> int:
        t = s.var.type
        count, last = _variable(s.var.name, t), _variable("last", t)
        self.variables += [count, last]
        self.kept[s.var] = count
        head, inside, step, behind = p.add(), p.add(), p.add(), p.add()
        p.states[at].body += [_put(count, s.start), _put(last, s.stop), _put(p.counter, head)]
        down = isinstance(s.step, ir.Const) and s.step.value < 0
        self._test(p, head, ir.Binary("gt" if down else "lt", _get(count), _get(last)), inside, behind)
        end = self._sequence(p, inside, s.body, (step, behind))
        p.states[end].body.append(_put(p.counter, step))
        p.states[step].body += [_put(count, build.add(_get(count), s.step)), _put(p.counter, head)]
        return behind

    def _forks(self, s: ir.Stmt) -> bool:
        return any(isinstance(n, ir.If) and n.cond is self.fork for n in walk(s))

    # -- values that live across states ----------------------------------------------------------------------

    def _carry(self) -> None:
        states = [state for p in self.processes for state in p.states]
        mentions = {state: {n for n in walk(tuple(state.body)) if isinstance(n, ir.Var)} for state in states}
        home = {v: state for state in states for s in state.body if not isinstance(s, ir.For) for v in bound_in(s)}
        for v, state in home.items():
            if any(v in mentions[other] for other in states if other is not state):
                self.kept[v] = _variable(v.name, v.type)
                self.variables.append(self.kept[v])
        for state in states:
            out: list[ir.Stmt] = []
            for s in state.body:
                out.append(s)
                out += [_put(self.kept[v], v) for v in bound_in(s) if home.get(v) is state and v in self.kept]
            brought = [v for v in mentions[state] if v in self.kept and home.get(v) is not state]
            mine = {v: ir.Var(v.name, v.type) for v in sorted(brought, key=lambda v: v.name)}
            lets = [ir.Let(new, _get(self.kept[v])) for v, new in mine.items()]
            state.body = [*lets, *substitute(tuple(out), mine)]
