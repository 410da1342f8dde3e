"""Reductions over the threads of a block: values meet in shared memory, and each thread combines those that it asks for
in the language's order (`tiledsl.ir.collectives`): by groups of 32, then the groups' results."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.ir.collectives import COLLECTIVE_REDUCTIONS, WARP

if TYPE_CHECKING:
    from .lower_threads import Lowering

__all__ = ["reduce_block"]


def reduce_block(low: Lowering, s: ir.Collective) -> list[ir.Stmt]:
    """The collective as stores, barriers and loops; all threads of the block come to it."""
    from .lower_threads import count

    acc = s.args[0].dtype
    extents = [e.value for e in low.kernel.threads if isinstance(e, ir.Const)]
    strides = [1, *extents[:1], *([extents[0] * extents[1]] if len(extents) > 1 else [])][: len(extents)]
    axes = [a for a in sorted(s.axes or range(len(extents)))]
    first: ir.Expr = build.zero(INT32)  # of the threads that this one's result is of
    for a, v in enumerate(low.kernel.thread_vars):
        if a not in axes:
            first = build.add(first, build.mul(build.cast(v, INT32), strides[a]))
    n = 1
    for a in axes:
        n *= extents[a]
    values = ir.Buffer(f"{s.result.name}_values", acc, (build.const(low.threads, INT32),), "shared", loc=s.loc)
    low.prologue.insert(0, ir.Alloc(values, loc=s.loc))

    def element(index: ir.Expr) -> ir.Expr:
        place = first
        rest = index
        for a in axes:
            digit = rest if a is axes[-1] else build.binary("truncmod", rest, extents[a])
            place = build.add(place, build.mul(digit, strides[a]))
            rest = build.binary("truncdiv", rest, extents[a])
        return values.load(place, proved=True)

    mine = ir.Store(values, (low.thread,), s.args[0], proved=True, loc=s.loc)
    meet = ir.Sync("block", loc=s.loc)
    rows = -(-n // WARP)
    results = ir.Buffer("rows", acc, (build.const(rows, INT32),), "local", loc=s.loc)
    lanes = ir.Buffer("lanes", acc, (build.const(WARP, INT32),), "local", loc=s.loc)
    row, lane = ir.Var("row", INT32), ir.Var("lane", INT32)
    index = build.add(build.mul(row, WARP), lane)
    fill = ir.Store(lanes, (lane,), element(index), proved=True)
    body: list[ir.Stmt] = [count(lane, WARP, (ir.If(build.lt(index, n), (fill,)),), s)]
    body += _tree(s, lanes, build.sub(n, build.mul(row, WARP)) if rows > 1 else build.const(n, INT32))
    body.append(ir.Store(results, (row,), lanes.load(build.zero(INT32), proved=True), proved=True))
    after: list[ir.Stmt] = []
    if rows > 1:
        at = ir.Var("at", INT32)
        fill = ir.Store(lanes, (at,), results.load(at, proved=True), proved=True)
        after = [count(at, rows, (fill,), s), *_tree(s, lanes, build.const(rows, INT32))]
    total = ir.Let(s.result, lanes.load(build.zero(INT32), proved=True), loc=s.loc)
    loop = count(row, rows, body, s)
    return [meet, mine, meet, ir.Alloc(results, loc=s.loc), ir.Alloc(lanes, loc=s.loc), loop, *after, total]


def _tree(s: ir.Collective, lanes: ir.Buffer, present: ir.Expr) -> list[ir.Stmt]:
    """lanes[0] = the first `present` lanes combined 16-8-4-2-1."""
    from .lower_threads import count

    steps: list[ir.Stmt] = []
    half = WARP // 2
    while half:
        k = ir.Var("k", INT32)
        other = build.add(k, half)
        a, b = lanes.load(k, proved=True), lanes.load(other, proved=True)
        joined = ir.Store(lanes, (k,), ir.Binary(COLLECTIVE_REDUCTIONS[s.op], a, b), proved=True)
        steps.append(count(k, half, (ir.If(build.lt(other, present), (joined,)),), s))
        half //= 2
    return steps
