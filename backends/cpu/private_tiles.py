"""Tile operations that each thread does for itself, on storage of its own or at places of its own, as serial loops."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.build import INT32, add, cast, const, int_range
from tiledsl.passes.expand_moves import ExpandMoves

__all__ = ["TILE_OPS", "expand_private"]

TILE_OPS = (ir.Copy, ir.Fill, ir.Gemm, ir.Reduce, ir.Scan, ir.ReducerOp)
_F32 = as_dtype("float32")
_COMBINE = {"sum": "add", "abssum": "add", "max": "max", "absmax": "max", "min": "min"}
_COMBINE |= {"bitand": "bitand", "bitor": "bitor", "bitxor": "bitxor"}
Index = tuple[ir.Expr, ...]


def expand_private(kernel: ir.Kernel, s: ir.Stmt) -> tuple[ir.Stmt, ...]:
    """The operation of one thread as loops over elements."""
    if isinstance(s, (ir.Copy, ir.Fill)):
        alone = ir.Function(kernel.name, (), (kernel.replace(body=(s.replace(participants=None),)),))
        moved = ExpandMoves()(alone).kernels[0].body
        return tuple(_serial(x) if isinstance(x, ir.Parallel) else x for x in moved)
    expand = _EXPANSIONS.get(type(s))
    if expand is None:
        raise TileNotImplementedError(
            f"{type(s).__name__.lower()} by each thread for itself is not supported by the CPU targets", s.loc
        )
    return expand(s)


def _serial(p: ir.Parallel) -> ir.Stmt:
    body = p.body
    for v, n in reversed(list(zip(p.vars, p.extents, strict=True))):
        body = (ir.For(v, const(0, v.type), cast(n, v.type), const(1, v.type), body, loc=p.loc),)
    return body[0]


def _loops(extents: Iterable[ir.Expr], make: Callable[[Index], tuple[ir.Stmt, ...]], loc: Any) -> tuple[ir.Stmt, ...]:
    """make(indices) under one loop per extent; an extent of 1 needs none."""
    nest = [(None if build.is_const(n, 1) else ir.Var(f"i{k}", n.dtype), n) for k, n in enumerate(extents)]
    body = make(tuple(build.zero(n.dtype) if v is None else v for v, n in nest))
    for v, n in reversed(nest):
        if v is not None:
            body = (ir.For(v, const(0, v.type), n, const(1, v.type), body, loc=loc),)
    return body


def _at(r: ir.Region, steps: Index) -> Index:
    return tuple(add(*build.same_type(start, step)) for start, step in zip(r.starts, steps, strict=True))


# -- reductions and scans, in the order of language.md 0.10 ----------------------------------------------------------


def _accumulator(t: DType) -> DType:
    return _F32 if t.is_float and t.bits < 32 else t


def _extent(r: ir.Region, axis: int, s: ir.Stmt) -> int:
    n = r.extents[axis]
    if not isinstance(n, ir.Const):
        raise TileNotImplementedError(
            "a reduction by each thread for itself needs an extent that is a compile-time constant", s.loc
        )
    return int(n.value)


def _reduce(s: ir.Reduce) -> tuple[ir.Stmt, ...]:
    t = _accumulator(s.dst.buffer.dtype)
    n = _extent(s.src, s.axis, s)
    count = min(n, 16)
    part = ir.Buffer("part", t, (const(max(count, 1), INT32),), "local")
    whole = [const(1, e.dtype) if d == s.axis else e for d, e in enumerate(s.src.extents)]

    def element(steps: Index, k: ir.Expr) -> ir.Expr:
        along = tuple(k if d == s.axis else x for d, x in enumerate(steps))
        x = cast(ir.Load(s.src.buffer, _at(s.src, along), loc=s.loc), t)
        return ir.Unary("abs", x) if s.op in ("abssum", "absmax") else x

    def combine(a: ir.Expr, b: ir.Expr) -> ir.Expr:
        both: ir.Expr = ir.Binary(_COMBINE[s.op], a, b)
        if s.nan_propagate and t.is_float:
            both = ir.Select(ir.Binary("ne", a, a), a, ir.Select(ir.Binary("ne", b, b), b, both))
        return both

    def one(steps: Index) -> tuple[ir.Stmt, ...]:
        out: list[ir.Stmt] = [ir.Alloc(part)]

        def put(i: ir.Expr, x: ir.Expr) -> None:
            out.append(ir.Store(part, (i,), x, loc=s.loc))

        for p in range(count):
            first = element(steps, const(p, INT32))
            put(const(p, INT32), combine(_identity(s.op, t), first) if _from_identity(s.op) else first)
        if n > 16:
            k = ir.Var("k", INT32)
            slot = ir.Binary("bitand", k, const(15, INT32))
            step = ir.Store(part, (slot,), combine(part.load(slot), element(steps, k)), loc=s.loc)
            out.append(ir.For(k, const(16, INT32), const(n, INT32), const(1, INT32), (step,), loc=s.loc))
        for half in (8, 4, 2, 1):
            for p in range(half):
                if p + half < count:
                    a, b = const(p, INT32), const(p + half, INT32)
                    put(a, combine(part.load(a), part.load(b)))
        result: ir.Expr = part.load(const(0, INT32)) if count else _identity(s.op, t)
        dst = _at(s.dst, _kept(s, steps))
        if not build.is_const(s.clear, True):
            both = combine(cast(ir.Load(s.dst.buffer, dst, loc=s.loc), t), result)
            result = build.if_then_else(s.clear, result, both)
        out.append(ir.Store(s.dst.buffer, dst, cast(result, s.dst.buffer.dtype), loc=s.loc))
        return tuple(out)

    return _loops(whole, one, s.loc)


def _kept(s: ir.Reduce, steps: Index) -> Index:
    """The element of dst that belongs to one of src."""
    if len(s.dst.extents) == len(steps):
        return steps
    left = steps[: s.axis] + steps[s.axis + 1 :]
    return left or (build.zero(INT32),)


def _from_identity(op: str) -> bool:
    return _COMBINE[op] in ("max", "min")


def _identity(op: str, t: DType) -> ir.Const:
    if op in ("max", "min"):
        if t.is_float:
            return ir.Const(float("-inf") if op == "max" else float("inf"), t)
        low, high = int_range(t)
        return ir.Const(low if op == "max" else high, t)
    if op == "bitand":
        low, high = int_range(t)
        return ir.Const(-1 if low else high, t)
    return ir.Const((-0.0 if _COMBINE[op] == "add" else 0.0) if t.is_float else 0, t)


def _scan(s: ir.Scan) -> tuple[ir.Stmt, ...]:
    t = _accumulator(s.dst.buffer.dtype)
    n = _extent(s.src, s.axis, s)
    acc = ir.Buffer("acc", t, (const(1, INT32),), "var")
    zero = (const(0, INT32),)
    whole = [const(1, e.dtype) if d == s.axis else e for d, e in enumerate(s.src.extents)]
    first, last, by = (n - 1, -1, -1) if s.reverse else (0, n, 1)

    def one(steps: Index) -> tuple[ir.Stmt, ...]:
        k = ir.Var("k", INT32)
        along = tuple(k if d == s.axis else x for d, x in enumerate(steps))
        x = ir.Let(ir.Var("x", t), cast(ir.Load(s.src.buffer, _at(s.src, along), loc=s.loc), t), loc=s.loc)
        joined = ir.Binary(_COMBINE[s.op], acc.load(*zero), x.var)
        start = ir.Binary("eq", k, const(first, INT32))
        put = ir.Store(acc, zero, ir.Select(start, x.var, joined), loc=s.loc)
        keep = ir.Store(s.dst.buffer, _at(s.dst, along), cast(acc.load(*zero), s.dst.buffer.dtype), loc=s.loc)
        loop = ir.For(k, const(first, INT32), const(last, INT32), const(by, INT32), (x, put, keep), loc=s.loc)
        return (ir.Alloc(acc, build.zero(t)), loop)

    return _loops(whole, one, s.loc)


def _gemm(s: ir.Gemm) -> tuple[ir.Stmt, ...]:
    """Each element is one fma chain, ascending along k, from its old value (language.md 0.9)."""
    c = s.c.buffer
    t = _accumulator(c.dtype)
    acc = ir.Buffer("acc", t, (const(1, INT32),), "var")
    zero = (const(0, INT32),)
    m, n = s.c.extents[-2:]
    depth = s.a.extents[-2] if s.transpose_a else s.a.extents[-1]

    def lead(r: ir.Region) -> Index:
        return tuple(build.zero(INT32) for _ in r.extents[:-2])

    def one(steps: Index) -> tuple[ir.Stmt, ...]:
        i, j = steps
        k = ir.Var("k", depth.dtype)
        a = ir.Load(s.a.buffer, _at(s.a, (*lead(s.a), *((k, i) if s.transpose_a else (i, k)))), loc=s.loc)
        b = ir.Load(s.b.buffer, _at(s.b, (*lead(s.b), *((j, k) if s.transpose_b else (k, j)))), loc=s.loc)
        x, y, old = cast(a, t), cast(b, t), acc.load(*zero)
        step = ir.Fma(x, y, old) if t.is_float else add(old, ir.Binary("mul", x, y))
        at = _at(s.c, (*lead(s.c), i, j))
        first = build.if_then_else(s.clear, build.zero(t), cast(ir.Load(c, at, loc=s.loc), t))
        chain = ir.For(k, build.zero(k.type), depth, const(1, k.type), (ir.Store(acc, zero, step, loc=s.loc),))
        return (ir.Alloc(acc, first), chain, ir.Store(c, at, cast(acc.load(*zero), c.dtype), loc=s.loc))

    return _loops((m, n), one, s.loc)


_EXPANSIONS: dict[type, Callable[[Any], tuple[ir.Stmt, ...]]] = {
    ir.Reduce: _reduce,
    ir.Scan: _scan,
    ir.Gemm: _gemm,
}
