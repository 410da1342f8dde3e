"""Walking and rewriting trees of any stage, driven by the field marks of `node.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from tiledsl.ir.buffer import Buffer, Region
from tiledsl.ir.expr import Binary, Cast, Const, Expr, IfThenElse, Load, Select, Unary, Var
from tiledsl.ir.node import Node, fields_of
from tiledsl.ir.stmt import Atomic, Function, Kernel, Stmt

__all__ = [
    "Rewriter",
    "bound_in",
    "children",
    "free_vars",
    "loads_of",
    "not_on_host",
    "reads",
    "substitute",
    "walk",
    "writes",
]


def children(n: Node) -> Iterator[Node]:
    """Direct children in field order: operands, bindings and the statements of blocks."""
    for f in fields_of(type(n)):
        if f.role not in ("operand", "binding", "block"):
            continue
        value = getattr(n, f.name)
        if isinstance(value, Node):
            yield value
        elif isinstance(value, tuple):
            for item in value:
                if isinstance(item, Node):
                    yield item


def walk(root: Node | tuple[Stmt, ...]) -> Iterator[Node]:
    """Every node below (and including) root in pre-order; does not descend into Buffers or Vars."""
    stack: list[Node] = list(reversed(root)) if isinstance(root, tuple) else [root]
    while stack:
        n = stack.pop()
        yield n
        if not isinstance(n, (Buffer, Var)):
            stack.extend(reversed(list(children(n))))


def free_vars(e: Expr) -> set[Var]:
    """The variables that an expression mentions."""
    return {n for n in walk(e) if isinstance(n, Var)}


def bound_in(n: Node) -> tuple[Var, ...]:
    """The variables that a statement introduces; none for other nodes."""
    if not isinstance(n, Stmt):
        return ()
    bound = [getattr(n, f.name) for f in fields_of(type(n)) if f.role == "binding"]
    return tuple(v for x in bound for v in (x if isinstance(x, tuple) else (x,)) if isinstance(v, Var))


def not_on_host(e: Expr) -> Expr | None:
    """The first part of e that has no value before the kernel runs: integers of the call and arithmetic have one,
    memory, functions and float parameters have none."""
    for n in walk(e):
        known = not n.dtype.is_float if isinstance(n, Var) else isinstance(n, _ON_HOST)
        if not known and isinstance(n, Expr):
            return n
    return None


_ON_HOST = (Const, Unary, Binary, Cast, Select, IfThenElse)


def loads_of(n: Node | tuple[Stmt, ...]) -> list[Load]:
    return [x for x in walk(n) if isinstance(x, Load)]


def _touched(s: Stmt, effect: str) -> tuple[Buffer, ...]:
    """The buffers of the operands that are marked with the effect."""
    values = [getattr(s, f.name) for f in fields_of(type(s)) if effect in f.effect]
    found = [x for value in values for x in (value if isinstance(value, tuple) else (value,)) if x is not None]
    return tuple(x.buffer if isinstance(x, Region) else x for x in found)


def writes(s: Stmt) -> tuple[Buffer, ...]:
    """Buffers that this statement itself (not its blocks) may write; not resolved to alias roots."""
    return () if isinstance(s, Atomic) and s.op == "load" else _touched(s, "w")


def reads(s: Stmt) -> tuple[Buffer, ...]:
    """Buffers that this statement itself (operands included, blocks excluded) may read."""
    values = [getattr(s, f.name) for f in fields_of(type(s)) if f.role == "operand"]
    operands = [x for value in values for x in (value if isinstance(value, tuple) else (value,))]
    loads = [load for x in operands if isinstance(x, (Expr, Region)) for load in loads_of(x)]
    return (*(load.buffer for load in loads), *_touched(s, "r"))


class Rewriter:
    """Bottom-up rewriting that shares what does not change.

    Subclass and override `expr`, `stmt` (may return one statement, a tuple of them, or () to drop it),
    `buffer` and `var`. Children are rewritten first; the hooks see a node with its new children.
    """

    def expr(self, e: Expr) -> Expr:
        return e

    def stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        return s

    def buffer(self, b: Buffer) -> Buffer:
        return b

    def var(self, v: Var) -> Expr:
        return v

    def passed(self, s: Stmt) -> None:
        """Called behind each statement of a block, with the statement as it was."""

    def visit_expr(self, e: Expr) -> Expr:
        if isinstance(e, Var):
            return self.var(e)
        return self.expr(self._rebuild(e))

    def visit_block(self, body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
        out: list[Stmt] = []
        for s in body:
            new = self.visit_stmt(s)
            out.extend(new) if isinstance(new, tuple) else out.append(new)
            self.passed(s)
        if len(out) == len(body) and all(a is b for a, b in zip(out, body, strict=True)):
            return body
        return tuple(out)

    def visit_stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        return self.stmt(self._rebuild(s))

    def visit(self, n: Any) -> Any:
        """Rewrite any node (statement results must be single)."""
        if isinstance(n, Expr):
            return self.visit_expr(n)
        if isinstance(n, Buffer):
            return self.buffer(n)
        if isinstance(n, Stmt):
            return self.visit_stmt(n)
        return self._rebuild(n)

    def _binding(self, n: Any) -> Any:
        if isinstance(n, Buffer):
            return self.buffer(n)
        if isinstance(n, Var):
            new = self.var(n)
            return new if isinstance(new, Var) else n
        return self._rebuild(n) if isinstance(n, Node) else n

    def _rebuild(self, n: Any) -> Any:
        changes: dict[str, Any] = {}
        for f in fields_of(type(n)):
            old = getattr(n, f.name)
            if old is None or f.role in ("attribute", "hint"):
                continue
            new: Any
            if f.role == "block" and (not old or isinstance(old[0], Stmt)):
                new = self.visit_block(old)
            else:
                one = self._binding if f.role == "binding" else self.visit
                if isinstance(old, tuple):
                    new = tuple(one(x) if isinstance(x, Node) else x for x in old)
                    if all(a is b for a, b in zip(new, old, strict=True)):
                        new = old
                else:
                    new = one(old) if isinstance(old, Node) else old
            if new is not old:
                changes[f.name] = new
        return n.replace(**changes) if changes else n


class _Substitute(Rewriter):
    def __init__(self, mapping: Mapping[Var, Expr], buffers: Mapping[Buffer, Buffer]) -> None:
        self.mapping, self.buffers = mapping, buffers

    def var(self, v: Var) -> Expr:
        return self.mapping.get(v, v)

    def buffer(self, b: Buffer) -> Buffer:
        return self.buffers.get(b, b)


def substitute(n: Any, mapping: Mapping[Var, Expr], buffers: Mapping[Buffer, Buffer] | None = None) -> Any:
    """n (node or block) with variables, and optionally buffers, replaced."""
    rewriter = _Substitute(mapping, buffers or {})
    return rewriter.visit_block(n) if isinstance(n, tuple) else rewriter.visit(n)


def map_kernels(fn: Callable[[Kernel], Kernel], function: Function) -> Function:
    """The function with `fn` applied to each of its kernels (shared when nothing changed)."""
    kernels = tuple(fn(k) for k in function.kernels)
    same = all(a is b for a, b in zip(kernels, function.kernels, strict=True))
    return function if same else function.replace(kernels=kernels)
