"""Branches one after the other in which threads part and wait become one branch: each side goes on, on its own, to
what stands before the last of them. (`with T.ws(0): ...` behind `with T.ws(1): ...` is the usual form.)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiledsl import ir
from tiledsl.analysis.meeting import apart
from tiledsl.ir.build import INT32, const
from tiledsl.ir.walk import bound_in, free_vars, loads_of, walk

__all__ = ["join_branches", "reads"]

_FIRST = (const(0, INT32),)
Body = tuple[ir.Stmt, ...]


def join_branches(
    body: Body,
    differs: Callable[[Any], bool],
    copy: Callable[[Body, dict[Any, Any]], Body],
    kept: Callable[[ir.Var], ir.Buffer],
) -> Body:
    """The block with such branches joined. copy: makes a block again, with names of its own; kept: a variable for a
    value that each side computes and that is used behind them."""
    for at, s in enumerate(body):
        end = apart(body, at, differs)
        if end == at + 1 or not isinstance(s, ir.If):
            continue
        common, rest = _hoisted(body[at + 1 : end])
        used = {n for n in walk(body[end:]) if isinstance(n, ir.Var)}
        names = {v: kept(v) for x in rest for v in bound_in(x) if v in used}
        rest = tuple(y for x in rest for y in (x, *(ir.Store(names[v], _FIRST, v) for v in bound_in(x) if v in names)))
        both = s.replace(then=(*s.then, *copy(rest, {})), orelse=(*s.orelse, *copy(rest, {})))
        before = (*body[:at], *map(ir.Alloc, names.values()), *common, both)
        behind = tuple(ir.Let(v, b.load(*_FIRST)) for v, b in names.items())
        return (*before, *behind, *join_branches(body[end:], differs, copy, kept))
    return body


def _hoisted(body: Body) -> tuple[Body, Body]:
    """What of a block may as well stand before it (storage, values of indices), and the others."""
    common: list[ir.Stmt] = []
    rest: list[ir.Stmt] = []
    held: set[ir.Var] = set()  # what the others bind
    for s in body:
        if isinstance(s, ir.Alloc):
            common.append(s.replace(init=None))
            if s.init is not None:
                rest.append(ir.Store(s.buffer, _FIRST, s.init, loc=s.loc))
        elif isinstance(s, ir.Let) and not (reads(s.value) or free_vars(s.value) & held):
            common.append(s)
        else:
            held.update(bound_in(s))
            rest.append(s)
    return tuple(common), tuple(rest)


def reads(e: ir.Expr) -> bool:
    """The value of e depends on more than variables."""
    return bool(loads_of(e)) or any(isinstance(n, ir.Call) for n in walk(e))
