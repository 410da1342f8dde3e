"""A T.Parallel that tells threads apart: iteration f of the flattened nest is run by thread f % threads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.build import INT32, add, const, floordiv, floormod, lt, mul
from tiledsl.ir.walk import walk, writes

if TYPE_CHECKING:
    from .spread import Spreader

__all__ = ["own_iterations"]

_PRIVATE = ("local", "var")


def own_iterations(sp: Spreader, p: ir.Parallel) -> None:
    """Writes the nest: as it is, or as a region in which each thread goes through its iterations."""
    if not _observes(sp, p):
        sp.emit(p)
        return
    if sp.level.masks and any(m is not sp.alive for m in sp.level.masks):
        raise TileNotImplementedError(
            "a T.Parallel that uses thread indices, done by some threads of the block, is not supported by the CPU "
            "targets",
            p.loc,
            help="put it where all threads are, or run on target='numpy'",
        )
    while len(p.body) == 1 and isinstance(p.body[0], ir.Parallel):
        inner = p.body[0]
        p = p.replace(vars=p.vars + inner.vars, extents=p.extents + inner.extents, body=inner.body)
    wide = [build.cast(e, INT32) for e in p.extents]
    total: ir.Expr = const(1, INT32)
    for e in wide:
        total = mul(total, e)
    count = sp.regions.count
    f, r = ir.Var("iteration", INT32), ir.Var("round", INT32)
    lets: list[ir.Stmt] = []
    rest: ir.Expr = f
    for k in reversed(range(len(p.vars))):
        v, e = p.vars[k], wide[k]
        own = rest if k == 0 else floormod(rest, e)
        lets.append(ir.Let(v, build.cast(own, v.type), loc=p.loc))
        rest = floordiv(rest, e)
    body: tuple[ir.Stmt, ...] = (*lets, *p.body)
    if not (isinstance(total, ir.Const) and total.value % count == 0):
        body = (ir.If(lt(f, total), body, loc=p.loc),)
    body = (ir.Let(f, add(mul(r, count), sp.thread)), *body)
    rounds = floordiv(add(total, count - 1), count)
    loop = ir.For(r, const(0, INT32), rounds, const(1, INT32), body, loc=p.loc)
    sp.flush()
    sp.everywhere(*sp.expanded(loop))


def _observes(sp: Spreader, p: ir.Parallel) -> bool:
    """The nest sees which thread runs an iteration, or leaves something in the thread's own storage."""
    own = {n.buffer.root for n in walk(p.body) if isinstance(n, ir.Alloc)}
    inner = {v for n in walk(p) if isinstance(n, (ir.Let, ir.For)) for v in (n.var,)} | set(p.vars)
    inner |= {n.result for n in walk(p) if isinstance(n, ir.Atomic) and n.result is not None}
    for n in walk(p.body):
        if isinstance(n, ir.Var) and n in sp.varying.vars and n not in inner:
            return True
        if isinstance(n, ir.Buffer) and n.root in sp.varying.buffers and n.root not in own:
            return True
        if isinstance(n, ir.Stmt) and any(b.root.scope in _PRIVATE and b.root not in own for b in writes(n)):
            return True
    return False
