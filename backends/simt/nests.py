"""Tile operations written out as T.Parallel nests of elements: what the thread stage does not do in registers."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.passes.expand_threads import serial_reduce, serial_scan

__all__ = ["accumulator", "gemm_nest", "multiply_add", "reduce_nest", "scan_nest", "staged"]

_F32, _F64 = as_dtype("float32"), as_dtype("float64")
_AT0 = (build.zero(INT32),)


def accumulator(out: DType) -> DType:
    """What a product into `out` accumulates in (language.md 0.9)."""
    return _F64 if out is _F64 else _F32 if out.is_float else INT32


def multiply_add(a: ir.Expr, b: ir.Expr, c: ir.Expr) -> ir.Expr:
    """a * b + c as one step of a product's chain."""
    return ir.Fma(a, b, c) if c.dtype.is_float else build.add(build.mul(a, b), c)


def at(r: ir.Region, last: tuple[ir.Expr, ...]) -> tuple[ir.Expr, ...]:
    """The indices of an element of a region, counted in its last axes."""
    free = len(r.starts) - len(last)
    return (*r.starts[:free], *(build.add(*build.same_type(s, i)) for s, i in zip(r.starts[free:], last, strict=True)))


def _nest(variables: tuple[ir.Var, ...], extents: tuple[ir.Expr, ...], body: list[ir.Stmt], s: ir.Stmt) -> ir.Parallel:
    return ir.Parallel(variables, extents, tuple(body), loc=s.loc)


def gemm_nest(s: ir.Gemm) -> ir.Parallel:
    """One element of the result per iteration, a chain of multiply-adds along k."""
    m, n = s.c.extents[-2:]
    depth = s.a.extents[-2 if s.transpose_a else -1]
    i, j, k = ir.Var("i", m.dtype), ir.Var("j", n.dtype), ir.Var("k", depth.dtype)
    c = s.c.buffer
    acc = accumulator(c.dtype)
    total = ir.Buffer("total", acc, (build.const(1, INT32),), "var", loc=s.loc)
    place = at(s.c, (i, j))
    first = build.if_then_else(s.clear, build.zero(acc), build.cast(ir.Load(c, place, proved=True), acc))
    a = ir.Load(s.a.buffer, at(s.a, (k, i) if s.transpose_a else (i, k)), proved=True)
    b = ir.Load(s.b.buffer, at(s.b, (j, k) if s.transpose_b else (k, j)), proved=True)
    step = multiply_add(build.cast(a, acc), build.cast(b, acc), ir.Load(total, _AT0, proved=True))
    loop = ir.For(
        k, build.zero(k.type), depth, build.const(1, k.type), (ir.Store(total, _AT0, step, proved=True),), loc=s.loc
    )
    done = ir.Store(c, place, build.cast(ir.Load(total, _AT0, proved=True), c.dtype), proved=True, loc=s.loc)
    return _nest((i, j), (m, n), [ir.Alloc(total, first), loop, done], s)


def _peeled(loops: tuple[ir.Stmt, ...], axes: int, s: ir.Stmt) -> ir.Parallel:
    """The outer loops of a serial form as one nest; without any, a nest of one iteration."""
    variables: list[ir.Var] = []
    extents: list[ir.Expr] = []
    for _ in range(axes):
        (loop,) = loops
        assert isinstance(loop, ir.For)
        variables.append(loop.var)
        extents.append(loop.stop)
        loops = loop.body
    if not variables:
        variables, extents = [ir.Var("once", INT32)], [build.const(1, INT32)]
    return _nest(tuple(variables), tuple(extents), list(loops), s)


def reduce_nest(s: ir.Reduce) -> ir.Parallel:
    """One reduced element per iteration."""
    return _peeled(serial_reduce(s), len(s.src.extents) - 1, s)


def scan_nest(s: ir.Scan) -> ir.Parallel:
    """One line along the axis per iteration."""
    return _peeled(serial_scan(s), len(s.src.extents) - 1, s)


def staged(r: ir.Region, name: str, s: ir.Stmt) -> tuple[ir.Region, list[ir.Stmt]]:
    """A region of a fragment as a new tile in shared memory: (all of that tile, the statements that fill it)."""
    tile = ir.Buffer(name, r.buffer.dtype, r.extents, "shared", loc=s.loc)
    variables = tuple(ir.Var(f"i{d}", e.dtype) for d, e in enumerate(r.extents))
    value = ir.Load(r.buffer, at(r, variables), proved=True)
    nest = _nest(variables, r.extents, [ir.Store(tile, variables, value, proved=True, loc=s.loc)], s)
    whole = ir.Region(tile, tuple(build.zero(e.dtype) for e in r.extents), r.extents)
    return whole, [ir.Alloc(tile, loc=s.loc), nest]
