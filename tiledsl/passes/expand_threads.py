"""What single threads do by tile notation, written out: T.Parallel where iterations look at their thread, and moves and
reductions of per-thread storage.

Behind this pass a tile operation or T.Parallel of a thread-level kernel is done by the block as a whole.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

from tiledsl.analysis.bounds import kernel_facts
from tiledsl.analysis.uniformity import Varying, thread_level, varying
from tiledsl.dtypes import INT32, DType, promote
from tiledsl.errors import TileNotImplementedError, TileTypeError
from tiledsl.ir import (
    Alloc,
    Binary,
    Buffer,
    Collective,
    Const,
    Copy,
    Debug,
    Expr,
    Fill,
    Fma,
    For,
    Function,
    Gemm,
    If,
    Kernel,
    Let,
    Load,
    Node,
    Parallel,
    Reduce,
    Region,
    Scan,
    Stmt,
    Store,
    Sync,
    Unary,
    Var,
    build,
)
from tiledsl.ir.arithmetic import accumulator, combining, identity
from tiledsl.ir.walk import bound_in, map_kernels, walk, writes
from tiledsl.passes.expand_moves import MoveWriter, serial, up_to
from tiledsl.passes.split_roles import split_roles

__all__ = ["ExpandThreads", "combine", "serial_reduce", "serial_scan", "thread_number"]

_PARTIALS = 16  # language.md 0.10


@dataclass(frozen=True)
class ExpandThreads:
    """The pass; kernels that do not look at their threads stay as they are."""

    name: ClassVar[str] = "expand_threads"

    def __call__(self, function: Function) -> Function:
        return _Writer().run(function)


def thread_number(kernel: Kernel) -> tuple[Expr, Expr]:
    """(x + nx * (y + ny * z), how many threads a block has)."""
    number: Expr = build.zero(INT32)
    count: Expr = build.const(1, INT32)
    for v, extent in zip(reversed(kernel.thread_vars), reversed(kernel.threads), strict=True):
        number = build.add(build.mul(number, build.cast(extent, INT32)), build.cast(v, INT32))
        count = build.mul(count, build.cast(extent, INT32))
    return number, count


class _Writer(MoveWriter):
    kernel: Kernel
    found: Varying
    own: set[Buffer]

    def run(self, function: Function) -> Function:
        def one(kernel: Kernel) -> Kernel:
            if not thread_level(kernel):
                return kernel
            kernel = split_roles(kernel)
            self.kernel, self.found = kernel, varying(kernel.body, kernel.thread_vars, kernel.threads)
            self.own = varying(kernel.body, kernel.thread_vars).buffers
            self.facts = kernel_facts(function, kernel)
            return self.shared(kernel, body=self.visit_block(kernel.body))

        return map_kernels(one, function)

    def stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        if isinstance(s, Parallel):
            return s if not self._looks(s) else serial(s) if self._fills_own(s) else self._rounds(s)
        if isinstance(s, Debug):
            return s.replace(values=tuple(x for v in s.values for x in self._shown(v)))
        if not isinstance(s, (Copy, Fill, Reduce, Scan, Gemm)):
            return s
        own = self.own.intersection(b.root for b in writes(s))  # each thread's, though they may agree on what it holds
        if not own and not self.found.expr(s):
            return s
        if isinstance(s, (Copy, Fill)):
            written = super().stmt(s)
            return tuple(serial(x) for x in (written if isinstance(written, tuple) else (written,)))
        if isinstance(s, Gemm):
            if not own and not self.found.expr(Fill(s.c, s.clear)):
                raise TileTypeError(
                    "T.gemm: each thread has operands of its own, but all would add to one C",
                    s.loc,
                    help="give each thread its own C: T.alloc_local, or a part of shared memory",
                )
            return _serial_gemm(s)
        return serial_reduce(s) if isinstance(s, Reduce) else serial_scan(s)

    def _shown(self, v: Expr | Buffer) -> tuple[Expr | Buffer, ...]:
        """Storage of each thread that is printed whole, as its elements."""
        if not isinstance(v, Buffer) or v.root not in self.found.buffers or v.const_shape is None:
            return (v,)
        places = itertools.product(*(range(n) for n in v.const_shape))
        return tuple(v.load(*(build.const(i, INT32) for i in at)) for at in places)

    # -- T.Parallel --------------------------------------------------------------------------------------

    def _looks(self, s: Parallel) -> bool:
        """Its iterations depend on the thread that they belong to."""
        nodes = list(walk(s))
        if any(isinstance(n, (Collective, Sync)) for n in nodes):
            return True
        inside: set[Node] = {v for n in nodes for v in bound_in(n)} | {n.buffer for n in nodes if isinstance(n, Alloc)}
        used = {n.root if isinstance(n, Buffer) else n for n in nodes if isinstance(n, (Var, Buffer))}
        return not used.isdisjoint((self.found.vars | self.found.buffers) - inside)

    def _fills_own(self, s: Parallel) -> bool:
        """Its iterations write the elements of an array of each thread: then every thread does all of them."""
        stores = [n for n in walk(s) if isinstance(n, Store) and n.buffer.root in self.own]
        return any(v in s.vars for n in stores for i in n.indices for v in walk(i))

    def _rounds(self, s: Parallel) -> tuple[Stmt, ...]:
        """Iteration f of the flattened nest belongs to thread f % threads; under a condition on threads, to those for
        which it holds, in their order."""
        dtype: DType = INT32
        for e in s.extents:
            dtype = promote(dtype, e.dtype)
        before: list[Stmt] = []
        number, count = thread_number(self.kernel)
        if self.found.partial(s):
            number, count = Var("rank", INT32), Var("size", INT32)
            before = [Collective(v.name, (), v, "block", loc=s.loc) for v in (number, count)]
        size: Expr = build.const(1, dtype)
        for e in s.extents:
            size = build.mul(size, build.cast(e, dtype))
        step, flat = Var("turn", dtype), Var("flat", dtype)
        first = build.add(build.mul(step, build.cast(count, dtype)), build.cast(number, dtype))
        lets: list[Stmt] = []
        rest: Expr = flat
        for v, e in reversed(list(zip(s.vars, s.extents, strict=True))):
            extent = build.cast(e, dtype)
            value = rest if v is s.vars[0] else build.floormod(rest, extent)
            lets.append(Let(v, build.cast(value, v.type), loc=s.loc))
            rest = build.floordiv(rest, extent)
        body = If(build.lt(flat, size), (*lets, *s.body), loc=s.loc)
        rounds = build.ceildiv(size, build.cast(count, dtype))
        loop = For(
            step, build.zero(dtype), rounds, build.const(1, dtype), (Let(flat, first, loc=s.loc), body), loc=s.loc
        )
        return (*before, loop)


# -- reductions of one thread ------------------------------------------------------------------------------------


def _indices(r: Region, vs: list[Var | None]) -> tuple[Expr, ...]:
    return tuple(
        start if v is None else build.add(*build.same_type(start, v)) for start, v in zip(r.starts, vs, strict=True)
    )


def combine(op: str, a: Expr, b: Expr, propagate: bool) -> Expr:
    operator = combining(op)
    value: Expr = Binary(operator, a, b)
    if propagate and a.dtype.is_float and operator in ("max", "min"):
        for x in (b, a):
            value = build.select(Binary("ne", x, x), x, value)
    return value


def _serial_gemm(s: Gemm) -> Stmt:
    """One k-ascending fma chain per element, from C or 0."""
    acc = accumulator(s.c.buffer.dtype)
    (rows, columns), inner = s.c.extents[-2:], s.a.extents[-2 if s.transpose_a else -1]
    i, j, k = (Var(n, e.dtype) for n, e in zip("ijk", (rows, columns, inner), strict=True))
    total = Buffer("total", acc, (build.const(1, INT32),), "var", loc=s.loc)
    at = (build.zero(INT32),)

    def element(r: Region, *vs: Var) -> Load:
        front: list[Var | None] = [None] * (len(r.starts) - 2)
        return Load(r.buffer, _indices(r, [*front, *vs]), loc=s.loc)

    a = build.cast(element(s.a, *((k, i) if s.transpose_a else (i, k))), acc)
    b = build.cast(element(s.b, *((j, k) if s.transpose_b else (k, j))), acc)
    old, so_far = element(s.c, i, j), Load(total, at)
    step: Expr = Fma(a, b, so_far, loc=s.loc) if acc.is_float else Binary("add", so_far, Binary("mul", a, b))
    chain = (
        Alloc(total, build.if_then_else(s.clear, build.zero(acc), build.cast(old, acc)), loc=s.loc),
        up_to(k, inner, (Store(total, at, step, loc=s.loc),), s),
        Store(s.c.buffer, old.indices, build.cast(so_far, s.c.buffer.dtype), loc=s.loc),
    )
    return up_to(i, rows, (up_to(j, columns, chain, s),), s)


def serial_reduce(s: Reduce) -> tuple[Stmt, ...]:
    """16 interleaved partials along the axis, combined 8-4-2-1; the old value joins last."""
    length = s.src.extents[s.axis]
    if not isinstance(length, Const) or length.value < 1:
        raise TileNotImplementedError(f"a reduction of one thread over {length} elements is not supported yet", s.loc)
    n, acc = length.value, accumulator(s.dst.buffer.dtype)
    kept = [None if k == s.axis else Var(f"i{k}", e.dtype) for k, e in enumerate(s.src.extents)]
    part = Buffer("part", acc, (build.const(min(n, _PARTIALS), INT32),), "local", loc=s.loc)

    def joined(count: int, first: Expr | None) -> Stmt:
        """The next `count` elements join their partials, whose numbers are constants once the loop is unrolled."""
        k, j = Var("k", INT32), Var("j", INT32)
        index = [j if d == s.axis else v for d, v in enumerate(kept)]
        value: Expr = build.cast(Load(s.src.buffer, _indices(s.src, index), loc=s.loc), acc)
        if s.op in ("abssum", "absmax"):
            value = Unary("abs", value)
        if first is not None:
            value = combine(s.op, Load(part, (k,)), value, s.nan_propagate)
        place = Let(j, k if first is None else build.add(first, k), loc=s.loc)
        loop = up_to(k, build.const(count, INT32), (place, Store(part, (k,), value, loc=s.loc)), s)
        return loop.replace(kind="unroll")

    rounds = Var("round", INT32)
    body: list[Stmt] = [Alloc(part, loc=s.loc), joined(min(n, _PARTIALS), None)]
    if n >= 2 * _PARTIALS:
        more = joined(_PARTIALS, build.mul(build.add(rounds, 1), _PARTIALS))
        body.append(up_to(rounds, build.const(n // _PARTIALS - 1, INT32), (more,), s))
    if n > _PARTIALS and n % _PARTIALS:
        body.append(joined(n % _PARTIALS, build.const(n - n % _PARTIALS, INT32)))
    have = min(n, _PARTIALS)
    for half in (8, 4, 2, 1):
        for k in range(max(0, have - half)):
            a, b = (Load(part, (build.const(x, INT32),)) for x in (k, k + half))
            body.append(Store(part, a.indices, combine(s.op, a, b, s.nan_propagate), loc=s.loc))
        have = min(have, half)
    total: Expr = Load(part, (build.zero(INT32),))
    if acc.is_float and s.op in ("max", "min", "absmax"):
        total = combine(s.op, build.const(identity(s.op, acc), acc), total, s.nan_propagate)  # of NaN alone
    slots: list[Var | None] = list(kept)
    if len(s.dst.extents) < len(kept):
        slots.pop(s.axis)
    place = _indices(s.dst, slots or [None] * len(s.dst.starts))
    old = build.cast(Load(s.dst.buffer, place, loc=s.loc), acc)
    total = build.if_then_else(s.clear, total, combine(s.op, old, total, s.nan_propagate))
    body.append(Store(s.dst.buffer, place, build.cast(total, s.dst.buffer.dtype), loc=s.loc))
    return _around(kept, s.src, tuple(body), s)


def serial_scan(s: Scan) -> tuple[Stmt, ...]:
    """The running value along the axis, one element after the other."""
    acc = accumulator(s.dst.buffer.dtype)
    kept = [None if k == s.axis else Var(f"i{k}", e.dtype) for k, e in enumerate(s.src.extents)]
    extent = s.src.extents[s.axis]
    j = Var("j", extent.dtype)
    run = Buffer("running", acc, (build.const(1, INT32),), "var", loc=s.loc)
    at = (build.zero(INT32),)
    step: Expr = build.sub(build.sub(extent, 1), j) if s.reverse else j
    where = Var("at", extent.dtype)
    index = [where if k == s.axis else v for k, v in enumerate(kept)]
    value = build.cast(Load(s.src.buffer, _indices(s.src, index), loc=s.loc), acc)
    joined = combine(s.op, Load(run, at), value, False)
    if s.op == "sum":  # a sum starts with its first value: +0 would change -0
        joined = build.if_then_else(Binary("eq", j, build.zero(j.type)), value, joined)
    out = Store(s.dst.buffer, _indices(s.dst, index), build.cast(Load(run, at), s.dst.buffer.dtype), loc=s.loc)
    body = (Let(where, step, loc=s.loc), Store(run, at, joined, loc=s.loc), out)
    start = None if s.op == "sum" else build.const(identity(s.op, acc), acc)
    return _around(kept, s.src, (Alloc(run, start, loc=s.loc), up_to(j, extent, body, s)), s)


def _around(kept: list[Var | None], src: Region, body: tuple[Stmt, ...], s: Stmt) -> tuple[Stmt, ...]:
    for v, extent in reversed(list(zip(kept, src.extents, strict=True))):
        if v is not None:
            body = (up_to(v, extent, body, s),)
    return body
