"""Constant folding, integer identities and dead branches. Changes no value, and drops nothing that could fail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.ir import (
    Binary,
    Cast,
    Const,
    Debug,
    Expr,
    For,
    Function,
    If,
    IfThenElse,
    Parallel,
    Select,
    Stmt,
    Unary,
    While,
    build,
)
from tiledsl.ir.walk import Rewriter

__all__ = ["Fold", "fold_expr"]


@dataclass(frozen=True)
class Fold:
    """The pass. Floats fold only by the same IEEE operation; loads (out of range, poison) are never dropped."""

    name: ClassVar[str] = "fold"
    optional: ClassVar[bool] = True

    def __call__(self, function: Function) -> Function:
        result: Function = _Folder().visit(function)
        return result


def fold_expr(e: Expr) -> Expr:
    """One expression, folded."""
    return _Folder().visit_expr(e)


def _empty(start: Expr, stop: Expr, step: Expr) -> bool:
    if not (isinstance(start, Const) and isinstance(stop, Const) and isinstance(step, Const)) or step.value == 0:
        return False
    return len(range(start.value, stop.value, step.value)) == 0


class _Folder(Rewriter):
    def expr(self, e: Expr) -> Expr:
        new = e
        if isinstance(e, Binary):
            new = build.binary(e.op, e.a, e.b, e.loc)
        elif isinstance(e, Unary):
            new = build.unary(e.op, e.x, e.loc)
        elif isinstance(e, Cast):
            new = build.cast(e.x, e.type, e.loc)
        elif isinstance(e, IfThenElse):
            new = build.if_then_else(e.cond, e.t, e.f, e.loc)
        elif isinstance(e, Select):
            new = build.select(e.cond, e.t, e.f, e.loc)
        return e if new == e else new

    def stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        if isinstance(s, If):
            if isinstance(s.cond, Const):
                return s.then if s.cond.value else s.orelse
            if not s.then and not s.orelse and build.droppable(s.cond):
                return ()
        elif isinstance(s, For):
            if _empty(s.start, s.stop, s.step):
                return ()
        elif isinstance(s, While):
            if build.is_const(s.cond, False):
                return ()
        elif isinstance(s, Parallel):
            if any(build.is_const(n, 0) for n in s.extents) and all(build.droppable(n) for n in s.extents):
                return ()
        elif isinstance(s, Debug):
            if (s.kind in ("assume", "assert") and len(s.values) == 1) or s.kind == "bounds":
                held = s.values[0]
                if isinstance(held, Const) and held.value is True:
                    return ()
        return s
