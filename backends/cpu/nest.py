"""T.Parallel nests: choose the axis that becomes vector lanes, emit loops, or fall back to scalar iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from tiledsl import ir
from tiledsl.analysis.remarks import remark
from tiledsl.ir.walk import bound_in, walk, writes

from .context import Context, Lane, LaneLoop, get, put
from .strides import coefficient, per_lane
from .values import scalar
from .wide import LANES, ZERO, i64, lt

__all__ = ["access_score", "affine", "choose_axis", "lower_parallel", "moves", "worth"]

Body = Callable[[Context, tuple[ir.Stmt, ...]], None]


def lower_parallel(cx: Context, p: ir.Parallel, body: Body) -> None:
    """Emit the nest; `body` lowers a block in the current (scalar or vector) mode."""
    axis, why = choose_axis(cx, p)
    how = "one iteration after the other" if axis is None else f"16 iterations of {p.vars[axis].name} at a time"
    remark(p.loc or cx.loc, how, why)
    extents = [scalar(cx, e) for e in p.extents]
    private = _outer_vars_written(p)
    saved = {b: cx.let(f"{b.name}_before", get(cx.places[b].buffer)) for b in private}
    with ExitStack() as loops, cx.scope() as facts:
        for v, e in zip(p.vars, p.extents, strict=True):
            facts.bind(v, ir.Const(0, e.dtype), e)
        for k, v in enumerate(p.vars):
            if k != axis:
                cx.env[v] = Lane(loops.enter_context(cx.loop(v.name, extents[k])))
        if axis is None:
            for b, old in saved.items():
                cx.emit(put(cx.places[b].buffer, old))
            body(cx, p.body)
        else:
            _vector_loop(cx, p, p.vars[axis], extents[axis], body)


def _vector_loop(cx: Context, p: ir.Parallel, var: ir.Var, n: ir.Expr, body: Body) -> None:
    stored = frozenset(b.root for s in walk(p.body) if isinstance(s, ir.Stmt) for b in writes(s))
    written = stored | _allocated_inside(p)
    inner = {var} | {v for s in walk(p.body) for v in bound_in(s)}
    lane = LaneLoop(None, written, [], inner=inner, branches=_of_threads(p), axis=var)
    with cx.when(None if isinstance(n, ir.Const) else lt(ZERO, n)):
        full: ir.Expr = i64(n.value // LANES * LANES) if isinstance(n, ir.Const) else _round_down(cx, n)
        with cx.block() as loops:
            if full != ZERO:
                with cx.loop(var.name, full, step=LANES) as base:
                    _one_vector(cx, lane, var, base, None, p, body)
            if full != n:
                with cx.when(None if isinstance(n, ir.Const) else lt(full, n)):
                    tail = ir.Binary("lt", ir.Ramp(full, 1, LANES), ir.Broadcast(n, LANES))
                    _one_vector(cx, lane, var, full, cx.let("tail", tail), p, body)
        cx.out += lane.pre
        cx.out += loops


def _round_down(cx: Context, n: ir.Expr) -> ir.Expr:
    return cx.let("full", ir.Binary("bitand", n, i64(-LANES)))


def _one_vector(
    cx: Context, lane: LaneLoop, var: ir.Var, base: ir.Expr, mask: ir.Expr | None, p: ir.Parallel, body: Body
) -> None:
    cx.lane, lane.mask, lane.tail, lane.base = lane, mask, mask, base
    cx.env[var] = Lane(base, 1)
    try:
        body(cx, p.body)
    finally:
        cx.lane = None


# -- which axis ------------------------------------------------------------------------------------------------


_HEAVY = 24  # operators beside which atomics, lane after lane, do not decide


def choose_axis(cx: Context, p: ir.Parallel) -> tuple[int | None, str]:
    """The axis whose lanes touch memory best, None when the body needs one iteration at a time; and what is bad about
    that."""
    best, best_score, why = None, 0.0, "no axis has two iterations"
    work = sum(isinstance(n, (ir.Binary, ir.Unary, ir.Call, ir.Cast)) for n in walk(p.body))
    heavy = _of_threads(p) and work > _HEAVY
    for axis in reversed(range(len(p.vars))):
        extent = p.extents[axis]
        if isinstance(extent, ir.Const) and extent.value < 2:
            continue
        lets: dict[ir.Var, int | None] = {p.vars[axis]: 1}
        lanes = _Lanes(lets, _allocated_inside(p), _of_threads(p), heavy)
        if not lanes.block(p.body):
            why = why if best is not None else lanes.why
            continue
        if _shares_bytes(cx, p, lets):
            why = why if best is not None else "neighbours share bytes of 4-bit elements"
            continue
        score = 1.0 + worth(p.body, partial(access_score, lets=lets))
        if isinstance(extent, ir.Const) and extent.value < LANES:
            score *= extent.value / LANES
        if score > best_score:
            best, best_score, why = axis, score, _scattered(p, lets)
    return best, why


def _scattered(p: ir.Parallel, lets: dict[ir.Var, int | None]) -> str:
    """Which buffers the lanes meet far apart from each other, and which indices have to be tested."""
    found: dict[str, None] = {}
    for n in walk(p.body):
        if isinstance(n, (ir.Load, ir.Store)) and 0 < access_score(n, lets) <= _APART * 2:
            found[f"{'gathers from' if isinstance(n, ir.Load) else 'scatters to'} {n.buffer.name}"] = None
        elif isinstance(n, ir.Debug) and n.kind == "bounds":
            found[f"tests indices of {n.message.partition('[')[0]}"] = None
    return ", ".join(found)


def _shares_bytes(cx: Context, p: ir.Parallel, lets: dict[ir.Var, int | None]) -> bool:
    """Whether two lanes may store into one byte: they move along the rows of packed elements, other than by every
    second one, or not at all."""
    stores = [n for n in walk(p.body) if isinstance(n, ir.Store) and cx.places[n.buffer].nibbles]
    moves = [[coefficient(i, lets) for i in s.indices] for s in stores]
    return any(m[-1] is None or m[-1] % 2 == 1 or not any(c != 0 for c in m) for m in moves)


def moves(p: ir.Parallel, axis: int, indices: tuple[ir.Expr, ...]) -> bool:
    """The element that these indices name, in the nest, differs between iterations along the axis."""
    lets: dict[ir.Var, int | None] = {p.vars[axis]: 1}
    _Lanes(lets, _allocated_inside(p), _of_threads(p)).block(p.body)
    return any(coefficient(i, lets) != 0 for i in indices)


def worth(body: Iterable[ir.Stmt], score: Callable[[ir.Node], float]) -> float:
    """A sum over what a block says, where what a loop says counts several times."""
    total = 0.0
    for s in body:
        if isinstance(s, (ir.For, ir.While)):
            total += _ROUNDS * worth(s.body, score)
        elif isinstance(s, ir.If):
            total += sum(map(score, walk(s.cond))) + worth((*s.then, *s.orelse), score)
        else:
            total += sum(map(score, walk(s)))
    return total


_ROUNDS = 8
_APART = 0.05  # what an access is worth whose lanes lie apart


def access_score(n: ir.Node, lets: dict[ir.Var, int | None]) -> float:
    """What an access is worth to sixteen lanes: 1 where they lie side by side, twice that for a store."""
    if not isinstance(n, (ir.Load, ir.Store)) or n.buffer.scope == "var":
        return 0.0
    weight = 2.0 if isinstance(n, ir.Store) else 1.0
    coefs = [coefficient(i, lets, True) for i in n.indices]
    if all(c == 0 for c in coefs):
        return 0.5 * weight
    contiguous = coefs[-1] == 1 and all(c == 0 for c in coefs[:-1])
    return weight if contiguous else _APART * weight


def affine(e: ir.Expr, v: ir.Var) -> int | None:
    """The constant factor of v in e, or None when e is not affine in v (or mentions loads)."""
    return coefficient(e, {v: 1})


def _allocated_inside(p: ir.Parallel) -> frozenset[ir.Buffer]:
    return frozenset(n.buffer for n in walk(p.body) if isinstance(n, ir.Alloc))


def _outer_vars_written(p: ir.Parallel) -> list[ir.Buffer]:
    inside = _allocated_inside(p)
    found = {n.buffer: None for n in walk(p.body) if isinstance(n, ir.Store) and n.buffer.scope == "var"}
    return [b for b in found if b not in inside]


def _of_threads(p: ir.Parallel) -> bool:
    """The nest runs over the threads of a block (`regions.py`)."""
    return bool(dict(p.annotations).get("threads"))


@dataclass
class _Lanes:
    """Whether all lanes can run a block together; records in `lets` how each let moves with the lane.

    threads: loops that lanes leave one by one, and stores of all lanes to one place, are worth vectors
    heavy: so much is computed that atomics, lane after lane, do not decide
    why: what stands against it, once it does
    """

    lets: dict[ir.Var, int | None]
    inside: frozenset[ir.Buffer]
    threads: bool
    heavy: bool = False
    why: str = ""

    def unless(self, against: bool, why: str) -> bool:
        """Whether nothing stands against it."""
        if against:
            self.why = why
        return not against

    def block(self, body: tuple[ir.Stmt, ...]) -> bool:
        return all(map(self.statement, body))

    def statement(self, s: ir.Stmt) -> bool:
        if isinstance(s, ir.Let):
            self.lets[s.var] = coefficient(s.value, self.lets)
            return True
        if isinstance(s, ir.Store):
            name = s.buffer.name
            if s.buffer.scope in ("var", "local"):
                return self.unless(s.buffer not in self.inside, f"every iteration writes {name}, made outside")
            one = all(coefficient(i, self.lets) == 0 for i in s.indices)
            return self.unless(one and not self.threads, f"neighbours store to one element of {name}")
        if isinstance(s, ir.Alloc):
            return self.unless(s.buffer.scope != "var", f"every iteration has an array {s.buffer.name} of its own")
        if isinstance(s, ir.If):
            return self.block(s.then) and self.block(s.orelse)
        if isinstance(s, ir.For):
            even = all(coefficient(x, self.lets) == 0 and not per_lane(x) for x in (s.start, s.stop, s.step))
            self.lets[s.var] = 0 if even else None
            leaves = any(isinstance(n, (ir.Break, ir.Continue)) for n in walk(s.body))
            uneven = not self.threads and (not even or leaves)
            return self.unless(uneven, "neighbours go through an inner loop differently often") and self.block(s.body)
        if isinstance(s, ir.Atomic):
            if s.result is not None:
                self.lets[s.result] = None
            return self.unless(not self.heavy, "atomics are done one by one")
        if isinstance(s, ir.ReducerOp):
            coefs = [coefficient(i, self.lets) for i in s.indices]
            if None in coefs or any(coefs):  # sixteen elements, or we cannot tell
                return self.unless(None in coefs, f"which element of {s.buffer.name} gets what depends on data")
            lane = 0 if s.lane is None else coefficient(s.lane, self.lets)
            ordered = s.op == "sum" and s.buffer.dtype.is_float
            apart = lane is not None and lane % 2 == 1  # sixteen partials of one element
            return self.unless(ordered and not apart, f"{s.buffer.name} is summed in the order of iterations")
        if isinstance(s, (ir.While, ir.Break, ir.Continue)):
            loop = self.unless(not self.threads, "a while loop or a jump out of a loop")
            return loop and (not isinstance(s, ir.While) or self.block(s.body))
        silent = isinstance(s, ir.Debug) and s.kind in ("assume", "bounds")
        return self.unless(not silent, "prints, asserts and the like come one by one")
