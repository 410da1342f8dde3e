"""Reductions of register tiles along their columns: in the thread, then among the lanes that share a row.

With 16 lanes per row, lane p holds elements p, p + 16, ... of it, so its sum is partial p of the language's order, and
the butterfly 8-4-2-1 over lanes combines the partials as the language does (language.md 0.10). In the accumulators of
matrix instructions a thread holds four of the sixteen partials, and two of the four steps are its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.ir import build
from tiledsl.ir.arithmetic import accumulator
from tiledsl.ir.build import INT32
from tiledsl.ir.collectives import WARP
from tiledsl.passes.expand_threads import combine

from .fragment import Axis, replicas
from .nests import at as element_at
from .reducers import identity

if TYPE_CHECKING:
    from .lower_threads import Lowering

__all__ = ["lower_reduce", "partial_bits"]


@dataclass(frozen=True)
class _Bit:
    """Where a bit of an index along an axis is: between lanes `lane` apart, or bit `register` of the register's number
    (both 0 where all indices are too small for it)."""

    lane: int = 0
    register: int = 0


def partial_bits(axis: Axis) -> tuple[_Bit, ...] | None:
    """The four lowest bits of an index, which number its partial sum; None where they are not apart, or where elements
    of one partial sum lie in different threads."""
    found: list[_Bit] = []
    below = 1
    for d in axis.digits:
        power = d.extent & (d.extent - 1) == 0
        top = d is axis.digits[-1]
        for b in range(4 - len(found)):
            if 1 << b >= d.extent:
                break
            if not (power or top):
                return None
            found.append(_Bit(lane=d.stride << b) if d.stride else _Bit(register=below << b))
        if d.stride and d.extent > 1 and (not power or d.stride * d.extent > WARP or 1 << len(found) < d.extent):
            return None
        if d.stride and d.extent > 1 and len(found) == 4 and not any(x.lane == d.stride for x in found):
            return None
        below *= 1 if d.stride else d.extent
    return tuple(found + [_Bit()] * (4 - len(found)))


def lower_reduce(low: Lowering, s: ir.Reduce) -> list[ir.Stmt]:
    """One row after the other of those that the thread has a part in: its elements join their partial sums in
    ascending order, then the partials are combined 8-4-2-1, each step in the thread or between lanes."""
    src, dst = s.src.buffer, s.dst.buffer
    axes = low.layouts.fragments[src]
    along = axes[s.axis]
    bits = partial_bits(along)
    assert bits is not None
    acc = accumulator(dst.dtype)
    names = [ir.Var(f"i{d}", INT32) for d in range(src.rank)]
    rows = {v: a for d, (v, a) in enumerate(zip(names, axes, strict=True)) if d != s.axis}
    loops, lets, tests, held = low.over(rows)
    own = [b.register for b in bits if b.register]  # bits of the register's number that tell partials apart
    part = ir.Buffer("part", acc, (build.const(1 << len(own), INT32),), "local", loc=s.loc)
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
    number: ir.Expr = build.zero(INT32)
    for k, weight in enumerate(own):
        bit = build.binary("truncmod", build.binary("truncdiv", register, weight), 2)
        number = build.add(number, build.mul(bit, 1 << k))
    joined = ir.Store(
        part, (number,), combine(s.op, part.load(number, proved=True), value, s.nan_propagate), proved=True
    )
    body: list[ir.Stmt] = [*lets, ir.Alloc(part, loc=s.loc)]
    body += [ir.Store(part, (build.const(p, INT32),), none, proved=True) for p in range(1 << len(own))]
    body += low.nested([(r, along.registers)] if along.registers > 1 else [], (joined,), s)
    left = list(range(1 << len(own)))  # partials that have not been combined into others
    for at in (3, 2, 1, 0):
        if bits[at].register:
            step = 1 << own.index(bits[at].register)
            left = [p for p in left if not p & step]
            for p in left:
                a, b = (part.load(build.const(k, INT32), proved=True) for k in (p, p + step))
                body.append(ir.Store(part, a.indices, combine(s.op, a, b, s.nan_propagate), proved=True))
        elif bits[at].lane:
            for p in left:
                place = (build.const(p, INT32),)
                mine, other = ir.Var("mine", acc), ir.Var("other", acc)
                body.append(ir.Let(mine, part.load(*place, proved=True)))
                step_ = build.const(bits[at].lane, INT32)
                body.append(ir.Collective("shfl_xor", (mine, step_), other, width=WARP, loc=s.loc))
                body.append(ir.Store(part, place, combine(s.op, mine, other, s.nan_propagate), proved=True))
    total = part.load(build.zero(INT32), proved=True)
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
