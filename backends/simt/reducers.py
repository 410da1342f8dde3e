"""Reducers written out: partial sums in shared memory, and nests in which one iteration makes all contributions to the
elements it owns, in the order of the language (language.md 0.10)."""

from __future__ import annotations

from dataclasses import dataclass

from tiledsl import ir
from tiledsl.dtypes import DType
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.arithmetic import accumulator, extremes
from tiledsl.ir.build import INT32
from tiledsl.ir.walk import Rewriter, substitute, walk
from tiledsl.passes.expand_threads import combine

__all__ = ["expand_reducers", "identity"]

PARTIALS = 16


def identity(op: str, acc: DType) -> ir.Const:
    """The value that changes no reduction: -0 leaves every float sum as it is."""
    if op in ("max", "min"):
        return build.const(extremes(acc)[op == "min"], acc)
    if op == "bitand":
        return build.const(-1, acc)
    return build.const(-0.0 if acc.is_float and op in ("sum", "abssum") else 0, acc)


@dataclass(frozen=True)
class _Reducer:
    """partials: [*shape, 16] for float sums, whose order counts, else [*shape, 1]."""

    buffer: ir.Buffer
    partials: ir.Buffer
    op: str

    @property
    def count(self) -> int:
        extent = self.partials.shape[-1]
        assert isinstance(extent, ir.Const)
        return int(extent.value)


def expand_reducers(kernel: ir.Kernel) -> ir.Kernel:
    """The kernel without ReducerOps."""
    ops = {n.buffer: n.op for n in walk(kernel.body) if isinstance(n, ir.ReducerOp)}
    if not ops:
        return kernel
    found = {}
    for b, op in ops.items():
        acc = accumulator(b.dtype)
        extent = build.const(PARTIALS if op == "sum" and acc.is_float else 1, INT32)
        shared = b.replace(scope="shared")
        found[b] = _Reducer(shared, ir.Buffer(f"{b.name}_partials", acc, (*b.shape, extent), "shared", loc=b.loc), op)
    body = _Expander(found).visit_block(kernel.body)
    return kernel.replace(body=substitute(body, {}, {b: r.buffer for b, r in found.items()}))


class _Expander(Rewriter):
    def __init__(self, found: dict[ir.Buffer, _Reducer]) -> None:
        self.found = found

    def visit_stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.Parallel) and any(isinstance(n, ir.ReducerOp) for n in walk(s.body)):
            return self._contributing(s)
        if isinstance(s, ir.Alloc) and s.buffer in self.found:
            r = self.found[s.buffer]
            return s, ir.Alloc(r.partials, loc=s.loc), self._cleared(r, s)
        if isinstance(s, ir.ReducerOp):
            if s.action == "update":
                raise TileNotImplementedError(
                    "contributions to a reducer by single threads are not supported on GPUs yet",
                    s.loc,
                    help="contribute inside T.Parallel",
                )
            return self._init(s) if s.action == "init" else self._finalize(s)
        return super().visit_stmt(s)

    def _cleared(self, r: _Reducer, s: ir.Stmt) -> ir.Parallel:
        at = tuple(ir.Var(f"i{d}", e.dtype) for d, e in enumerate(r.partials.shape))
        store = ir.Store(r.partials, at, identity(r.op, r.partials.dtype), proved=True, loc=s.loc)
        return ir.Parallel(at, r.partials.shape, (store,), loc=s.loc)

    def _init(self, s: ir.ReducerOp) -> tuple[ir.Stmt, ...]:
        assert s.value is not None
        at = tuple(ir.Var(f"i{d}", e.dtype) for d, e in enumerate(s.buffer.shape))
        store = ir.Store(s.buffer, at, s.value, proved=True, loc=s.loc)
        return ir.Parallel(at, s.buffer.shape, (store,), loc=s.loc), self._cleared(self.found[s.buffer], s)

    def _finalize(self, s: ir.ReducerOp) -> tuple[ir.Stmt, ...]:
        r = self.found[s.buffer]
        acc = r.partials.dtype
        at = tuple(ir.Var(f"i{d}", e.dtype) for d, e in enumerate(s.buffer.shape))
        values: list[ir.Expr] = [
            ir.Load(r.partials, (*at, build.const(p, INT32)), proved=True, loc=s.loc) for p in range(r.count)
        ]
        lets: list[ir.Stmt] = []
        while len(values) > 1:  # 8-4-2-1
            half = len(values) // 2
            values = [combine(r.op, a, b, False) for a, b in zip(values[:half], values[half:], strict=True)]
            names = [ir.Var(f"p{k}", acc) for k in range(half)]
            lets += [ir.Let(v, e) for v, e in zip(names, values, strict=True)]
            values = list(names)
        old = build.cast(ir.Load(s.buffer, at, proved=True, loc=s.loc), acc)
        total = build.cast(combine(r.op, old, values[0], False), s.buffer.dtype)
        store = ir.Store(s.buffer, at, total, proved=True, loc=s.loc)
        return ir.Parallel(at, s.buffer.shape, (*lets, store), loc=s.loc), self._cleared(r, s)

    def _contributing(self, s: ir.Parallel) -> ir.Parallel:
        """The nest over the axes that tell elements apart; the others become loops of one iteration."""
        updates = [n for n in walk(s.body) if isinstance(n, ir.ReducerOp)]
        owned = [self._variables(s, u) for u in updates]
        own = owned[0] if owned[0] is not None and all(o == owned[0] for o in owned) else set()
        body: tuple[ir.Stmt, ...] = _Updates(self.found).visit_block(s.body)
        pairs = list(zip(s.vars, s.extents, strict=True))
        for v, n in reversed(pairs):
            if v not in own:
                zero, one = build.zero(v.type), build.const(1, v.type)
                body = (ir.For(v, zero, build.cast(n, v.type), one, body, loc=s.loc),)
        kept = [(v, n) for v, n in pairs if v in own] or [(ir.Var("once", INT32), build.const(1, INT32))]
        return ir.Parallel(tuple(v for v, _ in kept), tuple(n for _, n in kept), body, s.annotations, loc=s.loc)

    @staticmethod
    def _variables(s: ir.Parallel, u: ir.ReducerOp) -> set[ir.Var] | None:
        """The variables of the nest whose values name the element that an update goes to; None: something else does."""
        found: set[ir.Var] = set()
        for e in u.indices:
            if isinstance(e, ir.Cast):
                e = e.x
            if isinstance(e, ir.Var) and e in s.vars and e not in found:
                found.add(e)
            elif not isinstance(e, ir.Const):
                return None
        return found


class _Updates(Rewriter):
    def __init__(self, found: dict[ir.Buffer, _Reducer]) -> None:
        self.found = found

    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        if not isinstance(s, ir.ReducerOp):
            return s
        r, value, lane = self.found[s.buffer], s.value, s.lane
        assert value is not None
        part: ir.Expr = build.zero(INT32)
        if lane is not None and r.count > 1:
            part = build.binary("floormod", lane, r.count)
        at = (*s.indices, part)
        old = ir.Load(r.partials, at, proved=True, loc=s.loc)
        total = combine(r.op, old, build.cast(value, r.partials.dtype), False)
        return ir.Store(r.partials, at, total, proved=True, loc=s.loc)
