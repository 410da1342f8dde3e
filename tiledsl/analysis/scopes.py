"""A rewriter that knows, at every place of a kernel, what `bounds.Facts` can know there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from tiledsl.analysis.bounds import Facts, kernel_facts
from tiledsl.ir import (
    Binary,
    Break,
    Const,
    Continue,
    Debug,
    Expr,
    For,
    Function,
    If,
    IfThenElse,
    Kernel,
    Let,
    Node,
    Parallel,
    Return,
    Stmt,
    While,
)
from tiledsl.ir.build import const
from tiledsl.ir.walk import Rewriter, map_kernels, walk

_N = TypeVar("_N", bound=Node)
_T = TypeVar("_T")

__all__ = ["ScopedRewriter", "escapes", "jumps_out", "leaves"]


def leaves(body: tuple[Stmt, ...]) -> bool:
    """True when control never reaches the end of the block."""
    if not body:
        return False
    last = body[-1]
    return isinstance(last, (Break, Continue, Return)) or (
        isinstance(last, If) and leaves(last.then) and leaves(last.orelse)
    )


def jumps_out(s: Stmt) -> bool:
    """Control may leave the loop around s, or its round, from within s."""
    if isinstance(s, If):
        return any(map(jumps_out, (*s.then, *s.orelse)))
    return isinstance(s, (Break, Continue))


def escapes(s: Stmt) -> bool:
    """Control may leave s for a place outside of it."""
    return jumps_out(s) or any(isinstance(n, Return) for n in walk(s))


class ScopedRewriter(Rewriter):
    """Override `expr` and `stmt` as in Rewriter; `self.facts` holds where they are called."""

    facts: Facts

    def run(self, function: Function) -> Function:
        """The function with all its kernels rewritten."""

        def one(kernel: Kernel) -> Kernel:
            self.facts = kernel_facts(function, kernel)
            self.enter(kernel)
            body = self.visit_block(kernel.body)
            return kernel if body is kernel.body else kernel.replace(body=body)

        return map_kernels(one, function)

    def enter(self, kernel: Kernel) -> None:
        """Called before a kernel's body is visited."""

    @contextmanager
    def scope(self) -> Iterator[Facts]:
        outer = self.facts
        self.facts = outer.child()
        try:
            yield self.facts
        finally:
            self.facts = outer

    def where(self, cond: Expr, holds: bool, visit: Callable[[_T], _T], x: _T) -> _T:
        """x visited with the condition known to hold, or not to hold."""
        with self.scope() as facts:
            facts.assume(cond, holds)
            return visit(x)

    def visit_block(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        with self.scope():
            return super().visit_block(body)

    def passed(self, s: Stmt) -> None:
        """What a statement lets the rest of its block know."""
        if isinstance(s, Let):
            self.facts.let(s.var, s.value)
        elif isinstance(s, Debug) and s.kind in ("assume", "assert", "bounds"):
            for v in s.values if s.kind == "assume" else s.values[:1]:
                if isinstance(v, Expr):
                    self.facts.assume(v)
        elif isinstance(s, If):
            if leaves(s.then):
                self.facts.assume(s.cond, False)
            elif leaves(s.orelse):
                self.facts.assume(s.cond)

    def visit_stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        if isinstance(s, For):
            new: Stmt = self.shared(s, start=self.visit(s.start), stop=self.visit(s.stop), step=self.visit(s.step))
            with self.scope() as facts:
                facts.bind(s.var, s.start, s.stop, s.step)
                body = self.visit_block(s.body)
            return self.stmt(self.shared(new, body=body))
        if isinstance(s, Parallel):
            extents = tuple(self.visit(e) for e in s.extents)
            with self.scope() as facts:
                for v, extent in zip(s.vars, s.extents, strict=True):
                    facts.bind(v, const(0, v.type), extent)
                body = self.visit_block(s.body)
            return self.stmt(self.shared(s, extents=extents, body=body))
        if isinstance(s, While):
            cond = self.visit_while(s.cond)
            body = self.where(s.cond, True, self.visit_block, s.body)
            return self.stmt(self.shared(s, cond=cond, body=body))
        if isinstance(s, If):
            cond = self.visit(s.cond)
            then = self.where(s.cond, True, self.visit_block, s.then)
            orelse = self.where(s.cond, False, self.visit_block, s.orelse)
            return self.stmt(self.shared(s, cond=cond, then=then, orelse=orelse))
        return super().visit_stmt(s)

    def visit_while(self, cond: Expr) -> Expr:
        """The condition of a While, which is evaluated again before each iteration."""
        return self.visit_expr(cond)

    def visit_expr(self, e: Expr) -> Expr:
        if isinstance(e, IfThenElse):
            cond = self.visit_expr(e.cond)
            t = self.side(e.t, e.cond, cond, True)
            f = self.side(e.f, e.cond, cond, False)
            return self.expr(self.shared(e, cond=cond, t=t, f=f))
        if isinstance(e, Binary) and e.op in ("and", "or") and not isinstance(e.b, Const):
            a = self.visit_expr(e.a)
            b = self.side(e.b, e.a, a, e.op == "and")
            return self.expr(self.shared(e, a=a, b=b))
        return super().visit_expr(e)

    def side(self, x: Expr, cond: Expr, visited: Expr, holds: bool) -> Expr:
        """An operand that is evaluated only where the condition (visited: as rewritten) holds, or does not."""
        return self.where(cond, holds, self.visit_expr, x)

    @staticmethod
    def shared(n: _N, **fields: object) -> _N:
        """n with these fields; itself when none changed."""
        changes = {
            k: v
            for k, v in fields.items()
            if v is not getattr(n, k) and not (isinstance(v, tuple) and _same(v, getattr(n, k)))
        }
        return n.replace(**changes) if changes else n


def _same(a: tuple[object, ...], b: tuple[object, ...]) -> bool:
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))
