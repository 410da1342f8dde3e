"""The rules that every tree keeps, checked: which nodes a stage may hold (a table), types, ranks, scopes, shapes.

What an author can cause is a TileError with the author's line; what only a bug of the compiler can cause is an
InternalError. Expressions are checked in `verify_expr.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiledsl.errors import InternalError, TileIndexError, TileSyntaxError, TileTypeError, TileValueError
from tiledsl.ir import expr as E
from tiledsl.ir import stmt as S
from tiledsl.ir.buffer import SCOPES, Buffer, Region, describe
from tiledsl.ir.collectives import COLLECTIVE_REDUCTIONS, COLLECTIVES, WARP
from tiledsl.ir.verify_expr import ExprChecker, is_index
from tiledsl.ir.walk import children

__all__ = ["STAGES", "verify"]

_COMMON: frozenset[type] = frozenset(
    [S.Alloc, S.Let, S.Store, S.For, S.While, S.If, S.Break, S.Continue, S.Return, S.Debug, S.Atomic]
    + [E.Const, E.Var, E.Load, E.Unary, E.Binary, E.Fma, E.Select, E.IfThenElse, E.Cast, E.Call]
)
_THREADS: frozenset[type] = frozenset([S.Sync, S.Wait, S.Collective])  # of several threads in one block
# stage -> the node classes that it may hold
STAGES: dict[str, frozenset[type]] = {
    "tile": _COMMON | _THREADS | {*S.TILE_OPS, S.ReducerOp, S.MicroCall},
    "loop": _COMMON | {S.MicroCall, E.Broadcast, E.Ramp},
    "thread": _COMMON | _THREADS | {S.MicroCall, E.Broadcast, E.Ramp},
}
_ATOMICS = frozenset("add max min and or xor exchange load store arrive".split())
_ORDERS = frozenset("relaxed acquire release acq_rel seq_cst".split())
_REDUCTIONS = frozenset("sum max min abssum absmax bitand bitor bitxor".split())
_SYNCS = frozenset("block warp grid async".split())
_DEBUGS = frozenset("print assert bounds breakpoint assume".split())


def verify(function: S.Function) -> None:
    """Raises TileError (the author's mistake) or InternalError (the compiler's) at the first broken rule."""
    _Verifier(function).run()


class _Verifier(ExprChecker):
    def __init__(self, function: S.Function) -> None:
        if function.stage not in STAGES:
            raise InternalError(f"unknown stage {function.stage!r}", function.loc)
        super().__init__(function.stage, STAGES[function.stage], function.loc)
        self.function = function
        self.loops = 0
        self.parallel = False

    # -- tops --------------------------------------------------------------------------------------------

    def run(self) -> None:
        f = self.function
        for s in f.symbols:
            self.require(is_index(s.type), f"symbol {s.name} is {s.type}, not an integer", s.loc)
            self.define(s)
        names = [p.name for p in f.params]
        self.require(len(set(names)) == len(names), f"two parameters of {f.name} have one name", f.loc)
        for p in f.params:
            self.require((p.buffer is None) != (p.var is None), f"parameter {p.name} is not one of tensor and scalar")
            if p.var is not None:
                self.define(p.var)
        for b in [p.buffer for p in f.params if p.buffer is not None] + list(f.workspaces):
            self.require(b.scope == "global", f"{describe(b)} is an argument or workspace, so its scope is global")
            self.define_buffer(b)
            for e in (*b.shape, *(b.strides or ())):
                self.host(e, f"a dimension of {b.name}")
        self.require(
            all(0 <= i < len(f.params) for i in f.outputs), f"outputs {f.outputs} of {len(f.params)} parameters"
        )
        for k in f.kernels:
            self.kernel(k)

    def kernel(self, k: S.Kernel) -> None:
        with self.region(k.loc):
            self.require(
                len(k.block_vars) == len(k.grid), f"{len(k.block_vars)} block variables, grid of {len(k.grid)}"
            )
            self.require(
                len(k.thread_vars) == len(k.threads), f"{len(k.thread_vars)} thread variables, {len(k.threads)} extents"
            )
            for e in (*k.grid, *k.threads):
                self.host(e, "an extent of the launch")
            for v in (*k.block_vars, *k.thread_vars):
                self.define(v)
            self.block(k.body)

    def block(self, body: tuple[S.Stmt, ...]) -> None:
        with self.region(None):
            for s in body:
                self.stmt(s)

    # -- statements --------------------------------------------------------------------------------------

    def stmt(self, s: S.Stmt) -> None:
        with self.at(s.loc):
            if type(s) not in self.allowed:
                raise InternalError(f"{type(s).__name__} is no statement of the {self.stage} stage", self.loc)
            if self.parallel and isinstance(s, S.TILE_OPS):
                name = type(s).__name__ if isinstance(s, S.Parallel) else type(s).__name__.lower()
                raise TileSyntaxError(
                    f"T.{name} inside T.Parallel: its iterations are independent, a tile operation is done by the "
                    "whole block",
                    self.loc,
                    help="put it before or after the T.Parallel",
                )
            for child in children(s):
                if isinstance(child, Region):
                    self.box(child)
            _RULES[type(s)](self, s)

    def alloc(self, s: S.Alloc) -> None:
        b = s.buffer
        if b.scope == "global" and b.base is not None:  # memory at an address that the kernel computes
            self.require(s.init is None, f"{describe(b)} has an initial value; only vars have one")
            self.define_buffer(b)
            return
        scopes = (
            ("var", "scratch") if self.stage == "loop" else tuple(x for x in SCOPES if x not in ("global", "scratch"))
        )
        self.require(b.scope in scopes, f"{describe(b)}: the {self.stage} stage allocates {', '.join(scopes)}")
        if self.stage == "loop":
            self.require(b.const_shape is not None, f"{describe(b)} needs a constant shape")
        self.require(b.scope != "var" or b.rank == 1, f"{describe(b)}: a var has one axis")
        if s.init is not None:
            self.require(b.scope == "var", f"{describe(b)} has an initial value; only vars have one")
            self.value(s.init)
            self.same(s.init, b.dtype, f"initial value of {b.name}")
        self.define_buffer(b)

    def let(self, s: S.Let) -> None:
        self.value(s.value)
        self.same(s.value, s.var.type, f"value of {s.var.name}")
        self.define(s.var)

    def store(self, s: S.Store) -> None:
        for e in (*s.indices, s.value, *((s.mask,) if s.mask is not None else ())):
            self.value(e)
        lanes = self.access(s.buffer, s.indices, s.mask, s.value.dtype.lanes // s.buffer.dtype.lanes, s.proved)
        self.same(
            s.value, s.buffer.dtype.with_lanes(lanes * s.buffer.dtype.lanes), f"value stored into {describe(s.buffer)}"
        )

    def loop(self, s: S.For) -> None:
        for e, what in ((s.start, "start"), (s.stop, "stop"), (s.step, "step")):
            self.index(e, f"the {what} of a loop")
            self.require(e.dtype is s.var.type, f"loop variable {s.var.name} is {s.var.type}, its {what} {e.dtype}")
        if isinstance(s.step, E.Const) and s.step.value == 0:
            raise TileValueError("the step of a loop is 0", self.loc, help="a loop advances by 1, -1, ... each round")
        with self.region(None):
            self.define(s.var)
            self.body(s.body)

    def body(self, body: tuple[S.Stmt, ...]) -> None:
        self.loops += 1
        self.block(body)
        self.loops -= 1

    def while_(self, s: S.While) -> None:
        self.condition(s.cond, "a while")
        self.body(s.body)

    def branch(self, s: S.If) -> None:
        self.condition(s.cond, "an if")
        self.block(s.then)
        self.block(s.orelse)

    def leave(self, s: S.Break | S.Continue) -> None:
        if not self.loops and not (self.parallel and isinstance(s, S.Continue)):  # no iteration ends the others
            raise TileSyntaxError(
                f"{type(s).__name__.lower()} outside a loop", self.loc, help="put it into a for or while"
            )

    def parallel_nest(self, s: S.Parallel) -> None:
        self.require(
            len(s.vars) == len(s.extents), f"{len(s.vars)} variables, {len(s.extents)} extents of a T.Parallel"
        )
        for v, e in zip(s.vars, s.extents, strict=True):
            self.index(e, "an extent of T.Parallel")
            self.require(is_index(v.type), f"loop variable {v.name} is {v.type}")
        with self.region(None):
            for v in s.vars:
                self.define(v)
            outer, self.loops, self.parallel = self.loops, 0, True
            self.block(s.body)
            self.loops, self.parallel = outer, False

    def debug(self, s: S.Debug) -> None:
        self.require(s.kind in _DEBUGS, f"unknown debug statement {s.kind!r}")
        for v in s.values:
            self.known(v) if isinstance(v, Buffer) else self.value(v)
        if s.kind in ("assert", "bounds", "assume"):
            cond = s.values[0] if s.values else None  # explain_debug appends what an assert's message shows
            self.require(isinstance(cond, E.Expr), f"{s.kind} takes a condition")
            if isinstance(cond, E.Expr):
                self.condition(cond, f"an {s.kind}")

    def atomic(self, s: S.Atomic) -> None:
        self.require(s.op in _ATOMICS, f"unknown atomic operation {s.op!r}")
        self.require(s.order in _ORDERS, f"unknown memory order {s.order!r}")
        self.require(
            (s.value is None) == (s.op == "load"), f"atomic {s.op} with{'out' if s.value is None else ''} a value"
        )
        if s.value is not None:
            self.value(s.value)
            self.same(s.value, s.buffer.dtype, f"value of an atomic on {describe(s.buffer)}")
        for e in s.indices:
            self.value(e)
        self.access(s.buffer, s.indices, None, 1, True)
        if s.result is not None:
            self.require(
                s.result.type is s.buffer.dtype, f"result {s.result.name} of an atomic on {describe(s.buffer)}"
            )
            self.define(s.result)

    def sync(self, s: S.Sync) -> None:
        self.require(s.scope in _SYNCS, f"unknown scope {s.scope!r} of a barrier")
        self.require(s.count is None or s.scope == "block", f"a count of threads at a barrier of the {s.scope}")

    def collective(self, s: S.Collective) -> None:
        known = COLLECTIVES.get(s.op)
        self.require(known is not None, f"unknown collective {s.op!r}")
        assert known is not None
        self.require(s.scope in known.scopes, f"collective {s.op} over a {s.scope}")
        self.require(len(s.args) == len(known.takes), f"collective {s.op} of {len(s.args)} arguments")
        for e, kind in zip(s.args, known.takes, strict=True):
            self.value(e)
            fits = not e.dtype.is_vector and (e.dtype.is_int or e.dtype.is_float)
            self.require(fits if kind == "any" else e.dtype.name == kind, f"collective {s.op} of {e.dtype}")
        if s.op in COLLECTIVE_REDUCTIONS and s.op.startswith("bit"):
            self.require(s.args[0].dtype.is_int, f"collective {s.op} of {s.args[0].dtype}")
        gives = known.result(tuple(e.dtype for e in s.args))
        self.require(s.result.type is gives, f"result {s.result.name} of collective {s.op} is {s.result.type}")
        self.require(s.width in (1, 2, 4, 8, 16, WARP), f"collective {s.op} in segments of {s.width} lanes")
        self.require(len(set(s.axes)) == len(s.axes), f"collective {s.op} over the axes {s.axes}")
        if s.mask is not None:
            self.value(s.mask)
            self.require(s.mask.dtype.name == "uint32", f"mask of collective {s.op} is {s.mask.dtype}")
        self.define(s.result)

    # -- tile operations ---------------------------------------------------------------------------------

    def box(self, r: Region) -> None:
        b = r.buffer
        self.known(b)
        if not len(r.starts) == len(r.extents) == b.rank:
            raise TileIndexError(
                f"{describe(b)} has {b.rank} axes, the region {len(r.starts)}",
                self.loc,
                help="give one start and one extent per axis",
            )
        for e in (*r.starts, *r.extents):
            self.index(e, f"a bound of a region of {b.name}")

    def copy(self, s: S.Copy) -> None:
        for e in s.domain:
            self.index(e, "an extent of a copy")
        for axes, region, what in ((s.src_axes, s.src, "source"), (s.dst_axes, s.dst, "destination")):
            self.require(len(axes) == len(s.domain), f"{len(axes)} axes of the {what} for a domain of {len(s.domain)}")
            moved = [a for a in axes if a != -1]
            good = all(0 <= a < region.buffer.rank for a in moved) and len(set(moved)) == len(moved)
            self.require(good, f"axes {axes} of the {what} {describe(region.buffer)}")

    def fill(self, s: S.Fill) -> None:
        self.value(s.value)
        self.same(s.value, s.dst.buffer.dtype, f"value that fills {describe(s.dst.buffer)}")

    def gemm(self, s: S.Gemm) -> None:
        sizes = []
        for r, transposed in ((s.a, s.transpose_a), (s.b, s.transpose_b), (s.c, False)):
            if len(r.extents) < 2 or any(_number(e) != 1 for e in r.extents[:-2]):
                raise TileTypeError(
                    f"gemm: {_shape(r)} is not a matrix",
                    self.loc,
                    help="it needs two axes; axes before them have the extent 1",
                )
            last = [_number(e) for e in r.extents[-2:]]
            sizes.append(last[::-1] if transposed else last)
        (m, k), (k2, n), (m2, n2) = sizes
        for what, x, y, p, q in (("inner", k, k2, s.a, s.b), ("row", m, m2, s.a, s.c), ("column", n, n2, s.b, s.c)):
            if x is not None and y is not None and x != y:
                raise TileTypeError(
                    f"gemm: {what} sizes differ: {_shape(p)} has {x}, {_shape(q)} has {y}",
                    self.loc,
                    help="change a shape, or transpose_A / transpose_B",
                )
        self.condition(s.clear, "clear_accum")

    def reduce(self, s: S.Reduce) -> None:
        self.require(s.op in _REDUCTIONS, f"unknown reduction {s.op!r}")
        self.axis(s.axis, s.src, "reduce")
        src = list(s.src.extents)
        kept = src[: s.axis] + src[s.axis + 1 :]
        with_one = src[: s.axis] + [None] + src[s.axis + 1 :]
        dst = list(s.dst.extents)
        fits = _agree(dst, kept) or _agree(dst, with_one) or (not kept and _agree(dst, [None]))
        if not fits:
            raise TileTypeError(
                f"reduce: {_shape(s.dst)} does not hold {_shape(s.src)} without axis {s.axis}",
                self.loc,
                help="the result has the source's shape without the axis, or with 1 there",
            )
        self.condition(s.clear, "clear")

    def scan(self, s: S.Scan) -> None:
        self.require(s.op in ("sum", "max"), f"unknown scan {s.op!r}")
        self.axis(s.axis, s.src, "scan")
        if not _agree(list(s.dst.extents), list(s.src.extents)):
            raise TileTypeError(
                f"scan: {_shape(s.dst)} and {_shape(s.src)} differ in shape",
                self.loc,
                help="the result has the source's shape",
            )

    def axis(self, axis: int, r: Region, what: str) -> None:
        if not 0 <= axis < len(r.extents):
            raise TileIndexError(
                f"{what}: {_shape(r)} has no axis {axis}", self.loc, help=f"its axes are 0 to {len(r.extents) - 1}"
            )

    def reducer(self, s: S.ReducerOp) -> None:
        self.require(s.action in ("init", "update", "finalize"), f"unknown reducer action {s.action!r}")
        self.require(s.op in _REDUCTIONS, f"unknown reduction {s.op!r}")
        self.known(s.buffer)
        if s.action == "update":
            for e in s.indices:
                self.value(e)
            self.access(s.buffer, s.indices, None, 1, True)
        if s.value is not None:
            self.value(s.value)
            self.same(s.value, s.buffer.dtype, f"value for reducer {describe(s.buffer)}")
        if s.lane is not None:
            self.index(s.lane, "the number of a contribution")

    def micro_call(self, s: S.MicroCall) -> None:
        from tiledsl.ir.micro import MICRO

        self.require(s.name in MICRO, f"unknown micro-kernel {s.name!r}")
        for e in s.scalars:
            self.value(e)


def _number(e: E.Expr | None) -> int | None:
    return e.value if isinstance(e, E.Const) else None


def _agree(a: list[Any], b: list[Any]) -> bool:
    """Shapes that are not known to differ; None stands for 1."""
    one = [1 if e is None else _number(e) for e in b]
    return len(a) == len(b) and all(x is None or y is None or x == y for x, y in zip(map(_number, a), one, strict=True))


def _shape(r: Region) -> str:
    extents = "x".join("?" if _number(e) is None else str(_number(e)) for e in r.extents)
    return f"{r.buffer.name} ({extents} {r.buffer.dtype})"


_RULES: dict[type, Callable[[_Verifier, Any], None]] = {
    S.Alloc: _Verifier.alloc,
    S.Let: _Verifier.let,
    S.Store: _Verifier.store,
    S.For: _Verifier.loop,
    S.While: _Verifier.while_,
    S.If: _Verifier.branch,
    S.Break: _Verifier.leave,
    S.Continue: _Verifier.leave,
    S.Return: lambda checker, s: None,
    S.Debug: _Verifier.debug,
    S.Atomic: _Verifier.atomic,
    S.Sync: _Verifier.sync,
    S.Collective: _Verifier.collective,
    S.Wait: lambda checker, s: checker.condition(s.cond, "a wait"),
    S.Parallel: _Verifier.parallel_nest,
    S.Copy: _Verifier.copy,
    S.Fill: _Verifier.fill,
    S.Gemm: _Verifier.gemm,
    S.Reduce: _Verifier.reduce,
    S.Scan: _Verifier.scan,
    S.ReducerOp: _Verifier.reducer,
    S.MicroCall: _Verifier.micro_call,
}
