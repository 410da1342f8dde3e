"""Out of range made explicit: after this pass every element access is in range, proved or guarded.

A global load that is not provably in range becomes `load if in range else 0` (or the buffer's safe value), a
global store or atomic becomes an `If`. Only what is not proved is tested. Accesses of block-local buffers are
marked proved as they are: leaving them is the author's error, which the interpreter reports at the tile stage.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.analysis.scopes import ScopedRewriter
from tiledsl.ir import build
from tiledsl.ir.buffer import Buffer
from tiledsl.ir.expr import Binary, Expr, IfThenElse, Load, Var
from tiledsl.ir.stmt import Alloc, Atomic, Function, If, Let, Stmt, Store
from tiledsl.passes.expand_moves import bind_loads, range_tests

__all__ = ["GuardBounds"]


@dataclass(frozen=True)
class GuardBounds:
    """The pass. Idempotent; expects `expand_moves` to have run (regions are not touched)."""

    name: ClassVar[str] = "guard_bounds"

    def __call__(self, function: Function) -> Function:
        return _Guard().run(function)


class _Guard(ScopedRewriter):
    def __init__(self) -> None:
        self.lets: list[Stmt] = []  # computed before the statement being rewritten
        self.lazy = 0  # inside an operand that may not be evaluated, or that is evaluated again

    # -- statements ----------------------------------------------------------------------------------------

    def visit_stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        outer, self.lets = self.lets, []
        new = self._store(s) if isinstance(s, Store) else super().visit_stmt(s)
        lets, self.lets = self.lets, outer
        return (*lets, *(new if isinstance(new, tuple) else (new,))) if lets else new

    def _store(self, s: Store) -> Stmt:
        indices = tuple(self.visit_expr(i) for i in s.indices)
        if s.proved or s.buffer.scope != "global" or _is_vector(s):
            proved = s.proved or not _is_vector(s)
            return self.shared(s, indices=indices, value=self.visit_expr(s.value), proved=proved)
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
        return self._atomic(s) if isinstance(s, Atomic) else s

    def _atomic(self, s: Atomic) -> Stmt | tuple[Stmt, ...]:
        if s.buffer.scope != "global":
            return s
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

    def expr(self, e: Expr) -> Expr:
        if not isinstance(e, Load) or e.proved or _is_vector(e):
            return e
        if e.buffer.scope != "global":
            return self.shared(e, proved=True)
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


def _is_vector(n: Load | Store) -> bool:
    """Loop-stage accesses carry masks of their own."""
    lanes = n.lanes if isinstance(n, Load) else n.value.dtype.lanes // n.buffer.dtype.lanes
    return lanes > 1 or n.mask is not None or any(i.dtype.is_vector for i in n.indices)


def _outside(buffer: Buffer) -> Expr:
    """What a load out of range gives."""
    return build.zero(buffer.dtype) if buffer.safe is None else buffer.safe
