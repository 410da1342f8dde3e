"""Reductions of register tiles along their columns: in the thread, then among the lanes that share a row.

With 16 lanes per row, lane p holds elements p, p + 16, ... of it, so its sum is partial p of the language's order, and
the butterfly 8-4-2-1 over lanes combines the partials as the language does (language.md 0.10). With fewer lanes a
thread holds several partials and combines those first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.ir.collectives import WARP
from tiledsl.passes.expand_threads import combine

from .fragment import Axis, replicas
from .nests import at as element_at
from .reducers import PARTIALS, identity, wide

if TYPE_CHECKING:
    from .lower_threads import Lowering

__all__ = ["lower_reduce"]


def lower_reduce(low: Lowering, s: ir.Reduce) -> list[ir.Stmt]:
    """One row after the other of those that the thread has a part in."""
    src, dst = s.src.buffer, s.dst.buffer
    axes = low.layouts.fragments[src]
    along = axes[s.axis]
    acc = wide(dst.dtype)
    lanes = [d for d in along.digits if d.stride and d.extent > 1]
    own = PARTIALS // lanes[0].extent if len(lanes) == 1 and along.digits[0] == lanes[0] else 1
    names = [ir.Var(f"i{d}", INT32) for d in range(src.rank)]
    rows = {v: a for d, (v, a) in enumerate(zip(names, axes, strict=True)) if d != s.axis}
    loops, lets, tests, held = low.over(rows)
    part = ir.Buffer("part", acc, (build.const(own, INT32),), "local", loc=s.loc)
    none = identity(s.op, acc)
    r = ir.Var("r", INT32)
    register: ir.Expr = r if along.registers > 1 else build.zero(INT32)
    held[names[s.axis]] = register
    value: ir.Expr = build.cast(
        ir.Load(low.registers[src], low.element(src, names, held), proved=True, loc=s.loc), acc, s.loc
    )
    if s.op in ("abssum", "absmax"):
        value = ir.Unary("abs", value)
    inside = [*tests]
    if along.padded:
        inside.append(build.lt(along.index(low.thread, register), along.extent))
    value = build.if_then_else(build.all_of(inside), value, none, loc=s.loc)
    slot = (build.binary("truncmod", register, own),)
    joined = ir.Store(part, slot, combine(s.op, part.load(*slot, proved=True), value, s.nan_propagate), proved=True)
    body: list[ir.Stmt] = [*lets, ir.Alloc(part, loc=s.loc)]
    body += [ir.Store(part, (build.const(p, INT32),), none, proved=True) for p in range(own)]
    body += low.nested([(r, along.registers)] if along.registers > 1 else [], (joined,), s)
    first = (build.zero(INT32),)
    while own > 1:
        own //= 2
        for p in range(own):
            a, b = (part.load(build.const(k, INT32), proved=True) for k in (p, p + own))
            body.append(ir.Store(part, a.indices, combine(s.op, a, b, s.nan_propagate), proved=True))
    total: ir.Expr = part.load(*first, proved=True)
    for digit in lanes:
        half = digit.extent // 2
        while half:
            mine, other = ir.Var("mine", acc), ir.Var("other", acc)
            body.append(ir.Let(mine, total))
            step = build.const(half * digit.stride, INT32)
            body.append(ir.Collective("shfl_xor", (mine, step), other, width=WARP, loc=s.loc))
            total = combine(s.op, mine, other, s.nan_propagate)
            half //= 2
    body += _store(low, s, names, held, total, tests, rows)
    return low.nested(loops, body, s)


def _store(
    low: Lowering,
    s: ir.Reduce,
    names: list[ir.Var],
    held: dict[ir.Var, ir.Expr],
    total: ir.Expr,
    tests: list[ir.Expr],
    rows: dict[ir.Var, Axis],
) -> list[ir.Stmt]:
    """The reduced value of a row, joined with the old one, where it belongs."""
    dst, acc = s.dst.buffer, total.dtype
    kept: list[ir.Expr] = [v for d, v in enumerate(names) if d != s.axis]
    if len(s.dst.extents) > len(kept):
        kept.insert(s.axis, build.zero(INT32)) if len(s.dst.extents) == len(names) else kept.append(build.zero(INT32))
    value = ir.Var("total", acc)
    target, place = dst, element_at(s.dst, tuple(kept))
    if dst in low.registers:
        target, place = low.registers[dst], low.element(dst, place, held)
    old = build.cast(ir.Load(target, place, proved=True, loc=s.loc), acc)
    joined = build.if_then_else(s.clear, value, combine(s.op, old, value, s.nan_propagate))
    store: ir.Stmt = ir.Store(target, place, build.cast(joined, dst.dtype), proved=True, loc=s.loc)
    conditions = list(tests)
    if dst not in low.registers:
        one = replicas(rows.values(), low.thread, low.threads)
        conditions += [one] if one is not None else []
    if conditions:
        store = ir.If(build.all_of(conditions), (store,), loc=s.loc)
    return [ir.Let(value, total, loc=s.loc), store]
