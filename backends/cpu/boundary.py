"""Masks only where they bite: a nest whose index conditions all hold for this block runs without them.

For every comparison in a nest that is affine in its loop variables, the worst iteration decides; if all worst
cases hold, the nest without those comparisons does the same. So interior tiles copy without masks, and a causal
mask costs nothing away from the diagonal.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

from tiledsl import ir
from tiledsl.ir.build import int_range
from tiledsl.ir.walk import Rewriter, bound_in, children, free_vars, loads_of, substitute, walk
from tiledsl.passes.fold import fold_expr

from .context import Context
from .nest import affine
from .wide import I64, TRUE, and_

__all__ = ["inline_integer_lets", "split_boundary"]

_LONG = 256  # nodes of an expression: no index is so long
_FLIP = {"lt": False, "le": False, "gt": True, "ge": True}


def inline_integer_lets(p: ir.Parallel) -> ir.Parallel:
    """The nest with its load-free integer lets substituted, so that index arithmetic shows how lanes move; but for long
    ones (a hash, whose rounds would double with each let that two others read)."""
    inlined: ir.Parallel = p.replace(body=_InlineLets().visit_block(p.body))
    return inlined


class _InlineLets(Rewriter):
    def __init__(self) -> None:
        self.values: dict[ir.Var, ir.Expr] = {}

    def var(self, v: ir.Var) -> ir.Expr:
        return self.values.get(v, v)

    def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if not isinstance(s, ir.Let) or not s.var.type.is_int:
            return s
        if sum(1 for _ in islice(walk(s.value), _LONG)) < _LONG and not loads_of(s.value):
            self.values[s.var] = s.value
            return ()
        return s


def split_boundary(cx: Context, p: ir.Parallel) -> tuple[ir.Expr, ir.Parallel] | None:
    """(condition over the block, nest that may be run when it holds), or None where nothing is gained."""
    inner = {v for s in walk(p.body) for v in bound_in(s)}
    worst: dict[ir.Expr, ir.Expr] = {}
    for atom in _atoms(p.body):
        if atom not in worst and not (free_vars(atom) & inner) and not loads_of(atom):
            w = _worst(cx, p, atom)
            if w is not None:
                worst[atom] = w
    if not worst:
        return None
    cond: ir.Expr | None = None
    for w in dict.fromkeys(worst.values()):
        cond = and_(cond, w)
    body = _Assume(worst).visit_block(p.body)
    return (TRUE if cond is None else cond), p.replace(body=body)


def _atoms(body: tuple[ir.Stmt, ...]) -> Iterator[ir.Binary]:
    for n in walk(body):
        if isinstance(n, (ir.If, ir.IfThenElse, ir.Select)):
            yield from _conjuncts(n.cond)
        elif isinstance(n, ir.Debug) and n.kind == "bounds":
            yield from _conjuncts(n.values[0])


def _conjuncts(e: ir.Node) -> Iterator[ir.Binary]:
    if isinstance(e, ir.Binary) and e.op == "and":
        yield from _conjuncts(e.a)
        yield from _conjuncts(e.b)
    elif isinstance(e, ir.Binary) and e.op in _FLIP and e.a.dtype.is_int:
        yield e


def _worst(cx: Context, p: ir.Parallel, atom: ir.Binary) -> ir.Expr | None:
    """The comparison at the iteration where it is hardest to satisfy, in integers that did not wrap; None if that is
    not known."""
    big, small = (atom.b, atom.a) if _FLIP[atom.op] else (atom.a, atom.b)
    whole = [_unwrapped(cx, p, side) for side in (big, small)]
    high, low = _corner(p, big, True), _corner(p, small, False)
    if None in (high, low, *whole):
        return None
    a, b = (low, high) if _FLIP[atom.op] else (high, low)
    return and_(and_(*whole), fold_expr(ir.Binary(atom.op, a, b)))  # type: ignore[arg-type]


def _corner(p: ir.Parallel, e: ir.Expr, highest: bool) -> ir.Expr | None:
    """e in the iteration where it is highest (lowest), unless it is not affine."""
    at = {}
    for v, extent in zip(p.vars, p.extents, strict=True):
        first, last = ir.Const(0, v.type), fold_expr(ir.Binary("sub", _as(extent, v), ir.Const(1, v.type)))
        step = affine(e, v)
        if step is None:
            return None
        at[v] = last if (step > 0) is highest else first
    return fold_expr(substitute(e, at))


def _unwrapped(cx: Context, p: ir.Parallel, side: ir.Expr) -> ir.Expr | None:
    """When no iteration's arithmetic wraps, only then is an affine side worst at an end of the nest: always, or where
    what might wrap, computed in 64 bits, stays in its type at both ends. None if that is not known."""
    cond: ir.Expr = TRUE
    with cx.scope() as facts:
        for v, extent in zip(p.vars, p.extents, strict=True):
            facts.bind(v, ir.Const(0, extent.dtype), extent)
        for e in _leaving(side, facts.held(side)):
            wide, (least, most) = _in_64_bits(e), int_range(e.dtype)
            ends = _corner(p, wide, False), _corner(p, wide, True)
            if not facts.fits(wide) or None in ends:
                return None
            for op, end, limit in (("ge", ends[0], least), ("le", ends[1], most)):
                inside = ir.Binary(op, end, ir.Const(limit, I64))  # type: ignore[arg-type]
                cond = cond if facts.prove(inside) else and_(cond, inside)  # type: ignore[assignment]
    return cond


def _leaving(e: ir.Node, held: dict[int, bool]) -> Iterator[ir.Expr]:
    """The operators that may leave their type, but for those whose result a yielded one only adds and multiplies."""
    below: list[ir.Node] = [e]
    if isinstance(e, ir.Expr) and not held.get(id(e), True):
        yield e
        below = list(_leaves(e))
    for x in below:
        for child in children(x) if not isinstance(x, ir.Load) else ():
            yield from _leaving(child, held)


def _modular(e: ir.Node) -> bool:
    """Whether the last bits of e follow from the last bits of its operands."""
    if isinstance(e, ir.Cast):
        return e.x.dtype.is_int and e.dtype.is_int and e.dtype.bits <= e.x.dtype.bits
    return isinstance(e, ir.Binary) and e.op in ("add", "sub", "mul")


def _leaves(e: ir.Node) -> Iterator[ir.Node]:
    if _modular(e):
        for x in children(e):
            yield from _leaves(x)
    else:
        yield e


def _in_64_bits(e: ir.Expr) -> ir.Expr:
    if isinstance(e, ir.Cast) and _modular(e):
        return _in_64_bits(e.x)
    if isinstance(e, ir.Binary) and _modular(e):
        return ir.Binary(e.op, _in_64_bits(e.a), _in_64_bits(e.b))
    return e if e.dtype == I64 else ir.Cast(e, I64)


def _as(e: ir.Expr, v: ir.Var) -> ir.Expr:
    return e if e.dtype is v.type else ir.Cast(e, v.type)


class _Assume(Rewriter):
    """Replaces comparisons known to hold by true, and folds what that decides."""

    def __init__(self, known: dict[ir.Expr, ir.Expr]) -> None:
        self.known = known

    def expr(self, e: ir.Expr) -> ir.Expr:
        if isinstance(e, ir.Binary) and e.op in _FLIP and e in self.known:
            return TRUE
        if isinstance(e, (ir.Binary, ir.IfThenElse, ir.Select, ir.Unary)) and not e.dtype.is_float:
            return fold_expr(e)
        if isinstance(e, (ir.IfThenElse, ir.Select)) and e.cond == TRUE:
            return e.t
        return e

    def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.If) and s.cond == TRUE:
            return s.then
        if isinstance(s, ir.Debug) and s.kind == "bounds" and s.values[0] == TRUE:
            return ()
        return s
