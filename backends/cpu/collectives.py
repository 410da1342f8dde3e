"""What threads exchange, as arrays over the threads: each writes its value, then reads or combines those of others.

Reductions are the xor butterfly 16-8-4-2-1 of the table in `tiledsl.ir.collectives`. Over numbers of 32 bits and more
that is exactly the order of T.reduce over 32 elements, so where all threads are here a reduction is one of those.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.dtypes import UINT32, DType, as_dtype
from tiledsl.ir import build
from tiledsl.ir.build import INT32, TRUE, add, all_of, and_, const, eq, floordiv, floormod, lt, mul, ne, select, sub
from tiledsl.ir.collectives import COLLECTIVE_REDUCTIONS, WARP
from tiledsl.ir.walk import substitute
from tiledsl.passes.fold import fold_expr

from .thread_writer import whole as _whole

if TYPE_CHECKING:
    from .spread import Spreader

__all__ = ["lower_collective"]

Element = Callable[[ir.Expr], ir.Expr]


def lower_collective(sp: Spreader, s: ir.Collective) -> None:
    """Writes one collective; its result is a value of the threads that go on."""
    _Exchange(sp, s).write()


def _bits(a: ir.Expr, op: str, b: int) -> ir.Expr:
    return build.binary(op, a, const(b, a.dtype))


class _Exchange:
    """One collective.

    presence  an array that says which threads are here; None: all of them
    mask      an array of the masks that the threads ask with; None: nobody is left out
    """

    def __init__(self, sp: Spreader, s: ir.Collective) -> None:
        self.sp, self.s = sp, s
        self.thread, self.count = sp.thread, sp.regions.count
        self.presence: ir.Buffer | None = None
        self.mask: ir.Expr | None = None

    def write(self) -> None:
        sp, s = self.sp, self.s
        if s.mask is not None:
            name = ir.Var("mask", UINT32)
            sp.level.pending.append(ir.Let(name, s.mask, loc=s.loc))
            self.mask = name
        first, last = sp.level.group
        whole_warps = first % WARP == 0 and (last % WARP == 0 or last == self.count)
        if sp.level.masks or (sp.some_threads and (s.scope == "block" or not whole_warps)):
            sp.flush()
            self.presence = sp.mask("present")
            sp.everywhere(sp.set(self.presence, sp.here()))
        if s.op in COLLECTIVE_REDUCTIONS:
            self.reduction()
        elif s.op.startswith("shfl"):
            self.shuffle()
        elif s.op.startswith("match"):
            self.match()
        elif s.op == "rank":
            self.rank()
        elif s.scope == "block":
            self.block_vote()
        else:
            self.warp_vote()

    # -- pieces ----------------------------------------------------------------------------------------------

    def publish(self, name: str, value: ir.Expr, absent: ir.Expr | None = None, at: ir.Expr | None = None) -> ir.Buffer:
        """An array with the value of each thread; absent: that of threads that are not here; at: where, if not by
        their number."""
        array = self.sp.regions.per_thread(name, value.dtype)
        if absent is not None and self.presence is not None:
            self.sp.everywhere(ir.Store(array, (self.thread,), absent, loc=self.s.loc))
        self.sp.level.pending.append(ir.Store(array, (self.thread if at is None else at,), value, loc=self.s.loc))
        self.sp.flush()
        return array

    def result(self, value: ir.Expr) -> None:
        self.sp.level.pending.append(ir.Let(self.s.result, value, loc=self.s.loc))

    def exists(self, j: ir.Expr, known: bool = False) -> ir.Expr:
        """Thread j takes part, as this thread sees it. known: j is below the number of threads."""
        tests: list[ir.Expr] = []
        if not known and self.count % WARP:
            tests.append(lt(j, self.count))
        if self.presence is not None:
            tests.append(ne(self.presence.load(j), 0))
        if self.mask is not None:
            tests.append(
                ne(_bits(build.binary("shr", self.mask, build.cast(_bits(j, "bitand", 31), UINT32)), "bitand", 1), 0)
            )
        return all_of(tests)

    def warp_start(self) -> ir.Expr:
        return _bits(self.thread, "bitand", -WARP)

    # -- shuffles --------------------------------------------------------------------------------------------

    def shuffle(self) -> None:
        s, width = self.s, self.s.width
        lane = ir.Var("lane", INT32)
        self.sp.level.pending.append(ir.Let(lane, s.args[1], loc=s.loc))
        values = self.publish("values", s.args[0])
        mine = _bits(self.thread, "bitand", width - 1)
        known = fold_expr(s.args[1])  # 1 << r in an unrolled loop
        fixed = known.value if isinstance(known, ir.Const) else None
        by: ir.Expr = lane if fixed is None else const(fixed, INT32)
        if s.op == "shfl":
            self.read(values, add(sub(self.thread, mine), _bits(by, "bitand", width - 1)), TRUE)
        elif s.op == "shfl_xor":
            self.xor(values, by, fixed, mine)
        else:
            down = s.op == "shfl_down"
            step = add if down else sub
            tests = [lt(step(mine, by), width) if down else build.ge(step(mine, by), 0)]
            if fixed is None or not 0 <= fixed < width:  # else sums would wrap
                tests[:0] = [build.ge(by, 0), lt(by, width)]
            self.read(values, step(self.thread, by), all_of(tests))

    def xor(self, values: ir.Buffer, by: ir.Expr, fixed: int | None, mine: ir.Expr) -> None:
        """Of lane ^ by; where that is one step up or down, neighbouring lanes read neighbouring elements."""
        width, lane = self.s.width, _bits(self.thread, "bitand", WARP - 1)
        if fixed in (1, 2, 4, 8, 16) and fixed < width:
            low = eq(_bits(self.thread, "bitand", fixed), 0)
            up, down = add(self.thread, fixed), sub(self.thread, fixed)
            if self.count % WARP == 0 and self.exists(up, known=True) == TRUE:
                self.result(build.if_then_else(low, values.load(up), values.load(down)))
                return
        other = build.binary("bitxor", lane, by)
        last = add(sub(lane, mine), width)
        near = fixed is not None and 0 <= fixed < width
        inside = TRUE if near else and_(build.ge(by, 0), lt(other, last))
        self.read(values, add(self.warp_start(), other), inside)

    def read(self, values: ir.Buffer, source: ir.Expr, inside: ir.Expr) -> None:
        """The result: of thread `source` where that is in the segment and here, else the own value."""
        if self.count % WARP:
            inside = and_(inside, lt(source, self.count))
        inside = and_(inside, self.exists(source, known=True))
        found, own = values.load(source), values.load(self.thread)
        self.result(found if inside == TRUE else build.if_then_else(inside, found, own))

    # -- votes ---------------------------------------------------------------------------------------------------

    def ballot(self, holds: ir.Expr) -> ir.Expr:
        """What this thread reads of the vote of its warp, without its own mask."""
        lane = build.cast(_bits(self.thread, "bitand", WARP - 1), UINT32)
        bit = build.binary("shl", const(1, UINT32), lane)
        votes = self.publish("votes", select(holds, bit, const(0, UINT32)), const(0, UINT32))
        return self.of_group(votes, "bitor", WARP)

    def masked(self, votes: ir.Expr) -> ir.Expr:
        return votes if self.mask is None else build.binary("bitand", votes, self.mask)

    def warp_vote(self) -> None:
        s = self.s
        if s.op == "activemask":
            self.result(self.masked(self.ballot(TRUE)))
        elif s.op == "ballot":
            self.result(self.masked(self.ballot(s.args[0])))
        elif s.op == "any":
            self.result(ne(self.masked(self.ballot(s.args[0])), 0))
        else:
            self.result(eq(self.masked(self.ballot(build.not_(s.args[0]))), 0))

    def block_vote(self) -> None:
        s = self.s
        if s.op == "size" and self.presence is None:
            self.block_result(const(self.count, INT32))
            return
        idle = const(1 if s.op == "all" else 0, INT32)
        votes = self.publish("votes", build.cast(s.args[0] if s.args else TRUE, INT32), idle)
        total = self.sp.regions.array("vote", INT32, 1)
        kind = {"any": "max", "all": "min", "count": "sum", "size": "sum"}[s.op]
        self.sp.emit(ir.Reduce(kind, _whole(votes), _whole(total), 0, TRUE, loc=s.loc))
        found = total.load(const(0, INT32))
        value = found if s.op in ("count", "size") else ne(found, 0)
        self.block_result(value)

    def block_result(self, value: ir.Expr) -> None:
        """A result that all threads that are here share."""
        if self.s.result in self.sp.varying.vars:
            self.result(value)
        else:
            self.sp.uniform_let(ir.Let(self.s.result, value, loc=self.s.loc))

    def rank(self) -> None:
        if self.presence is None:
            self.result(self.thread)
            return
        ranks = self.sp.regions.per_thread("ranks", INT32)
        seen = ir.Buffer("seen", INT32, (const(1, INT32),), "var")
        i, zero = ir.Var("i", INT32), (const(0, INT32),)
        step = (
            ir.Store(ranks, (i,), seen.load(*zero)),
            ir.Store(seen, zero, add(seen.load(*zero), self.presence.load(i))),
        )
        self.sp.emit(
            ir.Alloc(seen, const(0, INT32)),
            ir.For(i, const(0, INT32), const(self.count, INT32), const(1, INT32), step, loc=self.s.loc),
        )
        self.result(ranks.load(self.thread))

    def match(self) -> None:
        """Bit by bit: who of the warp has this thread's value."""
        s = self.s
        value = s.args[0]
        if value.dtype.is_float:
            unsigned = as_dtype(f"uint{value.dtype.bits}")
            value = ir.Call("reinterpret", (value,), unsigned)
        values = self.publish("values", value)
        same = ir.Buffer("same", UINT32, (const(1, INT32),), "var")
        other = ir.Buffer("other", UINT32, (const(1, INT32),), "var")
        j, zero = ir.Var("j", INT32), (const(0, INT32),)
        at = add(self.warp_start(), j)
        bit = build.binary("shl", const(1, UINT32), build.cast(j, UINT32))
        equal = eq(values.load(at), values.load(self.thread))

        def put(b: ir.Buffer) -> ir.Stmt:
            return ir.Store(b, zero, build.binary("bitor", b.load(*zero), bit), loc=s.loc)

        step: ir.Stmt = ir.If(equal, (put(same),), (put(other),), loc=s.loc)
        here = self.exists(at)
        if here != TRUE:
            step = ir.If(here, (step,), loc=s.loc)
        loop = ir.For(j, const(0, INT32), const(WARP, INT32), const(1, INT32), (step,), loc=s.loc)
        self.sp.level.pending += [ir.Alloc(same, const(0, UINT32)), ir.Alloc(other, const(0, UINT32)), loop]
        found: ir.Expr = same.load(*zero)
        if s.op == "match_all":
            found = select(eq(other.load(*zero), 0), found, const(0, UINT32))
        self.result(found)

    # -- reductions ----------------------------------------------------------------------------------------------

    def reduction(self) -> None:
        s = self.s
        counts = self.sp.regions.counts
        axes = tuple(sorted(s.axes)) if s.axes else tuple(range(len(counts)))
        group = WARP if s.scope == "warp" else math.prod(counts[a] for a in axes)
        neighbours = s.scope == "warp" or all(counts[a] == 1 for a in range(axes[-1] + 1) if a not in axes)
        if self.presence is None and self.mask is None and self._together(group):
            at = None if neighbours else self.by_groups(axes)
            values = self.publish("values", s.args[0], at=at)
            found = self.of_group(values, s.op, group, at)
            if group >= self.count and s.scope == "block":
                self.block_result(substitute(found, {self.thread: const(0, INT32)}))
            else:
                self.result(found)
            return
        values = self.publish("values", s.args[0])
        if s.scope == "warp":
            self.result(self.by_each(WARP, lambda k: add(self.warp_start(), k), values))
            return
        steps = [math.prod(counts[:a]) for a in range(len(counts))]
        start: ir.Expr = const(0, INT32)
        for a, v in enumerate(self.sp.kernel.thread_vars):
            if a not in axes:
                start = add(start, mul(v, steps[a]))

        def place(k: ir.Expr) -> ir.Expr:
            at = start
            for a in axes:
                at = add(at, mul(floormod(k, counts[a]), steps[a]))
                k = floordiv(k, counts[a])
            return at

        found = self.by_each(group, place, values)
        if self.s.result not in self.sp.varying.vars:  # all have the same, and the block goes on with it
            total = self.sp.regions.array("total", values.dtype, 1)
            self.sp.level.pending.append(ir.Store(total, (const(0, INT32),), found, loc=s.loc))
            self.sp.flush()
            found = total.load(const(0, INT32))
        self.block_result(found)

    def _together(self, group: int) -> bool:
        """`of_group` can do it: groups are whole warps, or parts of one."""
        whole = self.count % min(group, WARP) == 0 or _foldable(self.s.args[0].dtype, self.s.op)
        return whole and not (group > WARP and group % WARP and group < self.count)

    def by_groups(self, axes: tuple[int, ...]) -> ir.Expr:
        """The number of a thread where those that differ along some axes are neighbours, in their order."""
        at: ir.Expr = const(0, INT32)
        step = 1
        own = list(zip(self.sp.kernel.thread_vars, self.sp.regions.counts, strict=True))
        for a in (*axes, *(a for a in range(len(own)) if a not in axes)):
            at, step = add(at, mul(own[a][0], step)), step * own[a][1]
        return at

    def of_group(self, values: ir.Buffer, op: str, group: int, at: ir.Expr | None = None) -> ir.Expr:
        """The reduction over each `group` neighbours in an array, as one of them reads it; the last may be fewer.
        at: where each thread is, if not at its number."""
        n, t, loc = self.count, values.dtype, self.s.loc
        inner = min(group, WARP)
        whole, rest = divmod(n, inner)
        found = self.sp.regions.array("found", t, whole + (rest > 0))
        if whole:
            view = _view(values, whole, inner)
            out = ir.Region(found, (const(0, INT32),), (const(whole, INT32),))
            self.rows(op, view, out)
        if rest:
            src = ir.Region(values, (const(whole * inner, INT32),), (const(rest, INT32),))
            out = ir.Region(found, (const(whole, INT32),), (const(1, INT32),))
            self.sp.emit(ir.Reduce(op, src, out, 0, TRUE, loc=loc))
        if group > WARP:
            parts = whole + (rest > 0)
            per = -(-min(group, n) // WARP)
            total = self.sp.regions.array("total", t, parts // per)
            self.rows(op, _view(found, parts // per, per), _whole(total))
            found = total
        if found.const_shape == (1,):
            return found.load(const(0, INT32))
        shift = group.bit_length() - 1
        at = self.thread if at is None else at
        own = _bits(at, "shr", shift) if group == 1 << shift else floordiv(at, const(group, INT32))
        return found.load(own)

    def rows(self, op: str, values: ir.Buffer, out: ir.Region) -> None:
        """Each row of an array, of at most 32 elements, combined; the array is used up."""
        count, n = values.const_shape or (0, 0)
        loc, none = self.s.loc, const(0, INT32)
        if _foldable(values.dtype, op):
            self.sp.emit(ir.Reduce(op, _whole(values), out, 1, TRUE, loc=loc))
            return
        g, i = ir.Var("g", INT32), ir.Var("i", INT32)
        for half in (16, 8, 4, 2, 1):
            if n > half:
                both = ir.Binary(COLLECTIVE_REDUCTIONS[op], values.load(g, i), values.load(g, add(i, half)))
                step = ir.Store(values, (g, i), both, loc=loc)
                extents = const(count, INT32), const(min(half, n - half), INT32)
                self.sp.emit(ir.Parallel((g, i), extents, (step,), loc=loc))
                n = half
        copy = ir.Store(out.buffer, (add(out.starts[0], g),), values.load(g, none), loc=loc)
        self.sp.emit(ir.Parallel((g,), (const(count, INT32),), (copy,), loc=loc))

    def by_each(self, group: int, place: Element, values: ir.Buffer) -> ir.Expr:
        """Each thread goes through its group itself; place: the number of the group's k-th thread."""
        t = values.dtype
        zero = (const(0, INT32),)
        rounds = -(-group // WARP)
        part, has = _local("part", t, WARP), _local("has", INT32, WARP)
        parts, have = _local("parts", t, rounds), _local("have", INT32, rounds)
        g, j = ir.Var("g", INT32), ir.Var("j", INT32)
        k = add(mul(g, WARP), j)

        def of_thread(at: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
            tests = [lt(k, group)] if group % WARP else []
            there = self.exists(at, known=self.s.scope == "block")
            return all_of([*tests, there]), values.load(at)

        def of_part(at: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
            return and_(lt(j, rounds), ne(have.load(j), 0)), parts.load(at)

        at = place(k)
        fill = self._gather(*of_thread(at), part, has, j)
        keep = (ir.Store(parts, (g,), part.load(*zero)), ir.Store(have, (g,), has.load(*zero)))
        body = (*fill, *self._butterfly(part, has), *keep)
        out: list[ir.Stmt] = [ir.Alloc(b) for b in (part, has, parts, have)]
        out.append(ir.For(g, const(0, INT32), const(rounds, INT32), const(1, INT32), body, loc=self.s.loc))
        if rounds > 1:
            out += [*self._gather(*of_part(j), part, has, j), *self._butterfly(part, has)]
        self.sp.level.pending += out
        return part.load(*zero)

    def _gather(
        self, there: ir.Expr, value: ir.Expr, part: ir.Buffer, has: ir.Buffer, j: ir.Var
    ) -> tuple[ir.Stmt, ...]:
        zero, one = const(0, INT32), const(1, INT32)
        yes = (ir.Store(part, (j,), value, loc=self.s.loc), ir.Store(has, (j,), one))
        no = (ir.Store(part, (j,), build.zero(part.dtype)), ir.Store(has, (j,), zero))
        step = yes if there == TRUE else (ir.If(there, yes, no),)
        return (ir.For(j, zero, const(WARP, INT32), one, step, loc=self.s.loc),)

    def _butterfly(self, part: ir.Buffer, has: ir.Buffer) -> tuple[ir.Stmt, ...]:
        """part[0] combines what is there; the lanes of the other half would have the same."""
        op = COLLECTIVE_REDUCTIONS[self.s.op]
        out: list[ir.Stmt] = []
        for half in (16, 8, 4, 2, 1):
            i = ir.Var("i", INT32)
            a, b = part.load(i), part.load(add(i, half))
            mine, other = ne(has.load(i), 0), ne(has.load(add(i, half)), 0)
            both = select(mine, select(other, ir.Binary(op, a, b), a), b)
            step = (
                ir.Store(part, (i,), both, loc=self.s.loc),
                ir.Store(has, (i,), build.binary("bitor", has.load(i), has.load(add(i, half)))),
            )
            out.append(ir.For(i, const(0, INT32), const(half, INT32), const(1, INT32), step, loc=self.s.loc))
        return tuple(out)


def _foldable(t: DType, op: str) -> bool:
    """T.reduce has the butterfly's bits: no rounding between its steps, NaN and -0 as the operator has them."""
    return t.is_int or (t.bits >= 32 and op == "sum")


def _local(name: str, t: DType, n: int) -> ir.Buffer:
    return ir.Buffer(name, t, (const(n, INT32),), "local")


def _view(b: ir.Buffer, *extents: int) -> ir.Buffer:
    """The leading elements of an array in another shape."""
    return ir.Buffer(b.name, b.dtype, tuple(const(n, INT32) for n in extents), "shared", alias_of=b)
