"""Products into register tiles by multiply-adds: each thread keeps its elements of the result and goes along k once,
with one column of A and one row of B in registers (language.md 0.9: each element is one k-ascending chain)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tiledsl import ir
from tiledsl.ir import build
from tiledsl.ir.build import INT32

from .instructions import by_instruction, lower_mma
from .nests import accumulator, at, multiply_add

if TYPE_CHECKING:
    from .lower_threads import Lowering

__all__ = ["lower_gemm"]


def lower_gemm(low: Lowering, s: ir.Gemm) -> list[ir.Stmt]:
    """By matrix instructions or by multiply-adds, as `choose_products` has marked it."""
    c = s.c.buffer
    acc = accumulator(c.dtype)
    axes = low.layouts.fragments[c]
    rows, cols = axes[-2:]
    lead = s.c.starts[:-2]
    held_c = low.registers[c]
    lead_at = low.element(c, (*lead, build.zero(INT32), build.zero(INT32)), {})[:-2]
    depth = s.a.extents[-2 if s.transpose_a else -1]
    k = ir.Var("k", depth.dtype)
    ri, rj = ir.Var("r_i", INT32), ir.Var("r_j", INT32)
    before: list[ir.Stmt] = []
    after: list[ir.Stmt] = []
    total, lead_total = held_c, lead_at
    own = held_c.dtype is not acc
    if own:
        total = ir.Buffer(f"{c.name}_wide", acc, held_c.shape[-2:], "local", loc=s.loc)
        lead_total = ()
        before.append(ir.Alloc(total, loc=s.loc))
    each = [(ri, rows.registers), (rj, cols.registers)]
    old = build.cast(ir.Load(held_c, (*lead_at, ri, rj), proved=True), acc)
    zero = build.zero(acc)
    if own or not _false(s.clear):
        start = old if _false(s.clear) else zero if _true(s.clear) else build.if_then_else(s.clear, zero, old)
        before += low.nested(each, (ir.Store(total, (*lead_total, ri, rj), start, proved=True, loc=s.loc),), s)
    if own:
        done = build.cast(ir.Load(total, (ri, rj), proved=True), c.dtype)
        after += low.nested(each, (ir.Store(held_c, (*lead_at, ri, rj), done, proved=True, loc=s.loc),), s)
    if by_instruction(s):
        return [*before, *lower_mma(low, s, total, lead_total), *after]
    a = ir.Buffer("a", acc, (build.const(rows.registers, INT32),), "local", loc=s.loc)
    b = ir.Buffer("b", acc, (build.const(cols.registers, INT32),), "local", loc=s.loc)
    body: list[ir.Stmt] = [ir.Alloc(a, loc=s.loc), ir.Alloc(b, loc=s.loc)]
    for operand, axis, register, region, transposed in (
        (a, rows, ri, s.a, s.transpose_a),
        (b, cols, rj, s.b, not s.transpose_b),
    ):
        index = ir.Var("i" if operand is a else "j", INT32)
        pair = (k, index) if transposed else (index, k)
        value = build.cast(ir.Load(region.buffer, at(region, pair), proved=True, loc=s.loc), acc)
        if axis.padded:
            value = build.if_then_else(build.lt(index, axis.extent), value, zero)
        fetch = (
            ir.Let(index, axis.index(low.thread, register)),
            ir.Store(operand, (register,), value, proved=True, loc=s.loc),
        )
        body += low.nested([(register, axis.registers)], fetch, s)
    place = (*lead_total, ri, rj)
    step = multiply_add(a.load(ri, proved=True), b.load(rj, proved=True), ir.Load(total, place, proved=True))
    body += low.nested(each, (ir.Store(total, place, step, proved=True, loc=s.loc),), s)
    loop = ir.For(k, build.zero(k.type), depth, build.const(1, k.type), tuple(body), loc=s.loc)
    return [*before, loop, *after]


def _true(e: ir.Expr) -> bool:
    return isinstance(e, ir.Const) and bool(e.value)


def _false(e: ir.Expr) -> bool:
    return isinstance(e, ir.Const) and not e.value
