"""Out of range made explicit: after this pass every element access is in range, proved or guarded.

A global load that is not provably in range becomes `load if in range else 0` (or the buffer's safe value), a
global store or atomic becomes an `If`. Only what is not proved is tested. Leaving a block's own tile is the author's
error: what provably does, in a statement that every block comes to, is refused here; what may is tested where
`checked` asks for it, before the statement (`Debug("bounds")`, whose message is the interpreter's). The interpreter
reports it by itself, at the tile stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.analysis.scopes import ScopedRewriter, leaves
from tiledsl.dtypes import INT64
from tiledsl.errors import Loc, TileIndexError
from tiledsl.ir import (
    Alloc,
    Atomic,
    Binary,
    Break,
    Buffer,
    Const,
    Debug,
    Expr,
    For,
    Function,
    Gemm,
    If,
    IfThenElse,
    Kernel,
    Let,
    Load,
    Parallel,
    Reduce,
    ReducerOp,
    Region,
    Scan,
    Stmt,
    Store,
    Var,
    While,
    build,
)
from tiledsl.ir.buffer import place_text
from tiledsl.passes.expand_moves import bind_loads, range_tests
from tiledsl.passes.explain_debug import escaped, where

__all__ = ["GuardBounds", "out_of_range"]

_HELP = "guard the access with an if, or enlarge the buffer"
_STEP_HELP = "count up by at least 1, or down by at least 1"
_REGION_HELP = "only T.copy clips: enlarge the buffer or shrink the region"


@dataclass(frozen=True)
class GuardBounds:
    """The pass. Idempotent; expects `expand_moves` to have run (regions of copies are not touched).

    checked: accesses of block-local buffers, and regions, that are not proved in range are tested at run time
    """

    name: ClassVar[str] = "guard_bounds"
    checked: bool = False

    def __call__(self, function: Function) -> Function:
        return _Guard(self.checked).run(function)


class _Guard(ScopedRewriter):
    def __init__(self, checked: bool) -> None:
        self.checked = checked
        self.lets: list[Stmt] = []  # computed before the statement being rewritten
        self.lazy = 0  # inside an operand that may not be evaluated, or that is evaluated again
        self.path: list[Expr] = []  # conditions any of which keeps the operand at hand from being evaluated
        self.loops: tuple[Var, ...] = ()  # what the text of an error shows
        self.entering: tuple[Var, ...] = ()  # the variables of the loop whose body comes next
        self.sure = True  # every block comes to the statement at hand
        self.into = True  # and to what stands inside it

    def enter(self, kernel: Kernel) -> None:
        self.loops = kernel.block_vars

    # -- statements ----------------------------------------------------------------------------------------

    def visit_stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        outer, self.lets = self.lets, []
        if isinstance(s, (For, Parallel)):
            self.entering = (s.var,) if isinstance(s, For) else s.vars
        into, self.into = self.into, self._happens(s)
        new = self._store(s) if isinstance(s, Store) else super().visit_stmt(s)
        lets, self.lets = self.lets, outer
        self.into = into
        return (*lets, *(new if isinstance(new, tuple) else (new,))) if lets else new

    def _happens(self, s: Stmt) -> bool:
        """What stands in the statement's blocks is done at least once."""
        if isinstance(s, For):
            down = isinstance(s.step, Const) and s.step.value < 0
            return self.facts.prove(build.binary("lt", *((s.stop, s.start) if down else (s.start, s.stop))))
        if isinstance(s, Parallel):
            return all(self.facts.prove(build.ge(e, 1)) for e in s.extents)
        return not isinstance(s, (If, While))

    def visit_block(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        outer, self.loops, self.entering = self.loops, (*self.loops, *self.entering), ()
        sure, self.sure = self.sure, self.sure and self.into
        try:
            return super().visit_block(body)
        finally:
            self.loops, self.sure = outer, sure

    def passed(self, s: Stmt) -> None:
        if isinstance(s, If) and (leaves(s.then) or leaves(s.orelse)):
            self.sure = False
        super().passed(s)

    def _store(self, s: Store) -> Stmt:
        indices = tuple(self.visit_expr(i) for i in s.indices)
        if s.proved or s.buffer.scope != "global":
            indices = indices if s.proved else self._inside(s.buffer, indices, s.loc)
            return self.shared(s, indices=indices, value=self.visit_expr(s.value), proved=True)
        indices = self._bound(indices)
        tests = range_tests(s.buffer, indices, self.facts)
        outer, self.lets = self.lets, []
        with self.scope() as facts:  # the value is computed only where the store happens
            for test in tests:
                facts.assume(test)
            store = self.shared(s, indices=indices, value=self.visit_expr(s.value), proved=True)
        inner, self.lets = self.lets, outer
        if tests:
            return If(build.all_of(tests), (*inner, store), loc=s.loc)
        self.lets += inner
        return store

    def stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        if isinstance(s, While) and self.lets:  # the condition's tests come before each evaluation
            tests, self.lets = self.lets, []
            leave = If(build.unary("not", s.cond), (Break(),), loc=s.loc)
            return s.replace(cond=build.TRUE, body=(*tests, leave, *s.body))
        if isinstance(s, For) and self.checked and not self.facts.prove(build.ne(s.step, 0)):
            self._test([build.ne(s.step, 0)], "the step of a loop is 0", (), s.loc, _STEP_HELP)
        if isinstance(s, Atomic):
            return self._atomic(s)
        if isinstance(s, ReducerOp) and s.indices:
            return self.shared(s, indices=self._inside(s.buffer, s.indices, s.loc))
        if isinstance(s, Gemm):
            self._regions("gemm", s.loc, s.a, s.b, s.c)
        elif isinstance(s, (Reduce, Scan)):
            self._regions("reduce" if isinstance(s, Reduce) else "scan", s.loc, s.src, s.dst)
        return s

    def _atomic(self, s: Atomic) -> Stmt | tuple[Stmt, ...]:
        if s.buffer.scope != "global":
            return self.shared(s, indices=self._inside(s.buffer, s.indices, s.loc))
        s = self.shared(s, indices=self._bound(s.indices))
        tests = range_tests(s.buffer, s.indices, self.facts)
        if not tests:
            return s
        cond = build.all_of(tests)
        if s.result is None:
            return If(cond, (s,), loc=s.loc)
        # The result is visible after the If, so it goes through a variable; a skipped atomic gives 0.
        old = Buffer(s.result.name, s.result.type, (build.const(1, build.INT32),), "var", loc=s.loc)
        first = (build.zero(build.INT32),)
        inner = Var(s.result.name, s.result.type, loc=s.loc)
        keep = Store(old, first, inner, proved=True, loc=s.loc)
        return (
            Alloc(old, _outside(s.buffer), loc=s.loc),
            If(cond, (s.replace(result=inner), keep), loc=s.loc),
            Let(s.result, Load(old, first, proved=True, loc=s.loc), loc=s.loc),
        )

    # -- expressions -----------------------------------------------------------------------------------------

    def visit_expr(self, e: Expr) -> Expr:
        lazy = isinstance(e, IfThenElse) or (isinstance(e, Binary) and e.op in ("and", "or"))
        return self.visit_while(e) if lazy else super().visit_expr(e)

    def visit_while(self, cond: Expr) -> Expr:
        self.lazy += 1
        try:
            return super().visit_expr(cond)
        finally:
            self.lazy -= 1

    def side(self, x: Expr, cond: Expr, visited: Expr, holds: bool) -> Expr:
        self.path.append(build.unary("not", visited) if holds else visited)
        try:
            return super().side(x, cond, visited, holds)
        finally:
            self.path.pop()

    def expr(self, e: Expr) -> Expr:
        if not isinstance(e, Load) or e.proved:
            return e
        if e.buffer.scope != "global":
            return self.shared(e, indices=self._inside(e.buffer, e.indices, e.loc), proved=True)
        e = self.shared(e, indices=self._bound(e.indices), proved=True)
        tests = range_tests(e.buffer, e.indices, self.facts)
        if not tests:
            return e
        return build.if_then_else(build.all_of(tests), e, _outside(e.buffer), loc=e.loc)

    def _bound(self, indices: tuple[Expr, ...]) -> tuple[Expr, ...]:
        """Indices that read memory, bound by a Let before the statement, so that test and access agree on one
        evaluation. Where the access may not happen at all they stay: reading twice in one expression gives the
        same value."""
        return indices if self.lazy else bind_loads(indices, "at", self.lets, self.facts)

    # -- what the author has to keep in range ------------------------------------------------------------------

    def _inside(self, buffer: Buffer, indices: tuple[Expr, ...], loc: Loc | None) -> tuple[Expr, ...]:
        """The indices of an element of a block's own tile."""
        if self.checked and range_tests(buffer, indices, self.facts):
            indices = self._bound(indices)
            name = escaped(buffer.name)
            text = f"{name}[{', '.join(['{}'] * buffer.rank)}] is out of range: {name} is {buffer.dtype} of shape "
            tests = range_tests(buffer, indices, self.facts)
            self._test(tests, f"{text}{buffer.const_shape}", indices, loc, *place_text(buffer), _HELP)
        return indices

    def _regions(self, what: str, loc: Loc | None, *regions: Region) -> None:
        """What a tile operation touches lies in its tiles (those in global memory are the compiler's own)."""
        for r in [r for r in regions if self.checked and r.buffer.scope != "global"]:
            for axis, (start, extent, size) in enumerate(zip(r.starts, r.extents, r.buffer.shape, strict=True)):
                first, count, n = (build.cast(e, INT64) for e in (start, extent, size))
                end = build.add(first, count)
                tests = [t for t in (build.ge(first, 0), build.le(end, n)) if not self.facts.prove(t)]
                text = f"{what}: {escaped(r.buffer.name)}[{{}}:{{}}] is out of range on axis {axis} of {{}}"
                self._test(tests, text, (first, end, n), loc, *place_text(r.buffer), _REGION_HELP)

    def _test(self, tests: list[Expr], text: str, shown: tuple[Expr, ...], loc: Loc | None, *lines: str) -> None:
        """Tests before the statement, where it happens. text: a template (`explain_debug`) for what is shown; lines:
        notes, and help."""
        if not tests:
            return
        sure = self.sure and not self.path  # what may never happen is tested when it does
        if sure and any(self.facts.prove(t, False) for t in tests) and not self.facts.contradictory():
            ranges = [self.facts.interval(e) for e in shown]
            values = [str(low) if low == high else f"{low}...{high}" for low, high in ranges]
            raise TileIndexError(text.format(*values), loc, lines[:-1], lines[-1])
        cond = build.all_of(tests)
        for skipped in reversed(self.path):
            cond = build.binary("or", skipped, cond)
        message = text + where(self.loops) + "".join(f"\n{escaped(line)}" for line in lines)
        self.lets.append(Debug("bounds", (cond, *shown, *self.loops), message, loc=loc))
        self.facts.assume(cond)


def out_of_range(text: str, loc: Loc | None) -> TileIndexError:
    """The error of a test that failed, from its filled template (`_test`)."""
    message, *notes, help = text.split("\n")
    return TileIndexError(message, loc, tuple(notes), help)


def _outside(buffer: Buffer) -> Expr:
    """What a load out of range gives."""
    return build.zero(buffer.dtype) if buffer.safe is None else buffer.safe
