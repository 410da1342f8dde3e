"""The rules of expressions, buffers and scopes; `verifier.py` adds those of statements."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import InternalError, Loc, TileIndexError, TileNameError, TileTypeError
from tiledsl.ir import expr as E
from tiledsl.ir.buffer import Buffer, describe
from tiledsl.ir.build import const
from tiledsl.ir.intrinsics import INTRINSICS
from tiledsl.ir.node import Node
from tiledsl.ir.walk import not_on_host, walk

__all__ = ["ExprChecker", "LOOP_LANES", "describe", "is_index"]

LOOP_LANES = 16  # vectors of the loop stage have exactly this many lanes
_INTEGER = 'cast it, for example T.cast(x, "int32")'
_INT_OPS = frozenset(["floordiv", "floormod", "truncdiv", "truncmod", "shl", "shr"])


def is_index(dtype: DType) -> bool:
    """A scalar integer."""
    return dtype.is_int and not dtype.is_vector


class ExprChecker:
    """What is in scope, and the checks of everything below a statement."""

    def __init__(self, stage: str, allowed: frozenset[type], loc: Loc | None) -> None:
        self.stage, self.allowed, self.loc = stage, allowed, loc
        self.vars: set[E.Var] = set()
        self.ever: set[E.Var] = set()  # also those whose region has ended
        self.buffers: set[Buffer] = set()

    # -- errors and scopes -------------------------------------------------------------------------------

    def place(self, e: Node) -> Loc | None:
        """Where e is used; a Var's own location is that of its definition."""
        return self.loc if isinstance(e, E.Var) else e.loc or self.loc

    def require(self, holds: bool, message: str, loc: Loc | None = None) -> None:
        """A rule that only a bug of the compiler can break."""
        if not holds:
            raise InternalError(f"{self.stage} stage: {message}", loc or self.loc)

    @contextmanager
    def at(self, loc: Loc | None) -> Iterator[None]:
        outer, self.loc = self.loc, loc or self.loc
        yield
        self.loc = outer

    @contextmanager
    def region(self, loc: Loc | None) -> Iterator[None]:
        """Names defined inside end with it."""
        with self.at(loc):
            outer = set(self.vars), set(self.buffers)
            yield
            self.vars, self.buffers = outer

    def define(self, v: E.Var) -> None:
        self.require(v not in self.vars, f"{v.name} is bound twice in one scope", v.loc)
        self.vars.add(v)
        self.ever.add(v)

    def define_buffer(self, b: Buffer) -> None:
        self.require(b not in self.buffers, f"{describe(b)} is allocated twice in one scope", b.loc)
        self.buffers.add(b)
        self.layout(b)

    def layout(self, b: Buffer) -> None:
        """The expressions of a buffer itself."""
        for e in (*b.shape, *(b.strides or ()), *((b.offset,) if b.offset is not None else ())):
            self.index(e, f"a dimension of {b.name}")
        self.require(b.strides is None or len(b.strides) == b.rank, f"{describe(b)} has {len(b.strides or ())} strides")
        if b.base is not None:
            self.value(b.base)
        if b.safe is not None:
            self.require(b.scope == "global" and b.safe.type is b.dtype, f"safe value of {describe(b)}")

    def known(self, b: Buffer) -> None:
        """b exists here: allocated, an argument, a view of one that exists, or at a run-time address."""
        if b in self.buffers:
            return
        if b.alias_of is not None:
            self.known(b.alias_of)
            self.layout(b)
        elif b.base is not None:
            self.layout(b)
        else:
            raise TileNameError(
                f"{describe(b)} is used outside the region that allocates it",
                self.loc,
                help="allocate it before the loop or branch",
            )

    # -- expressions ---------------------------------------------------------------------------------------

    def same(self, e: E.Expr, dtype: DType, what: str) -> None:
        self.require(e.dtype is dtype, f"{what} is {e.dtype}, not {dtype}", e.loc)

    def condition(self, e: E.Expr, what: str) -> None:
        self.value(e)
        if e.dtype is not E.BOOL:
            raise TileTypeError(
                f"the condition of {what} is {e.dtype}, not bool", self.place(e), help="compare it: `x != 0`"
            )

    def index(self, e: E.Expr, what: str) -> None:
        self.value(e)
        if not is_index(e.dtype):
            raise TileTypeError(f"{what} is {e.dtype}, not an integer", self.place(e), help=_INTEGER)

    def host(self, e: E.Expr, what: str) -> None:
        """An integer that is computed before the kernel runs."""
        self.index(e, what)
        late = not_on_host(e)
        if late is not None:
            name = late.name if isinstance(late, (E.Var, E.Call)) else type(late).__name__
            raise TileTypeError(
                f"{what} needs {name} ({late.dtype}), which has no value before the kernel runs",
                self.place(late),
                help="compute it before the call and pass it as an int32 parameter",
            )

    def access(self, b: Buffer, indices: tuple[E.Expr, ...], mask: E.Expr | None, lanes: int, proved: bool) -> int:
        """An element access, its indices checked before; how many elements it touches."""
        self.known(b)
        if len(indices) != b.rank:
            raise TileIndexError(
                f"{describe(b)} has {b.rank} axes, {len(indices)} indices are given",
                self.loc,
                help="one index per axis",
            )
        vector = self.stage != "tile"
        for i in indices:
            if not (i.dtype.is_int and (vector or not i.dtype.is_vector)):
                raise TileTypeError(
                    f"an index of {describe(b)} is {i.dtype}, not an integer", self.place(i), help=_INTEGER
                )
            lanes = max(lanes, i.dtype.lanes)
        self.require(vector or (lanes == 1 and mask is None), f"vector access of {describe(b)}")
        if mask is not None:
            self.require(mask.dtype is E.BOOL.with_lanes(lanes), f"mask of an access of {describe(b)} is {mask.dtype}")
        if self.stage == "loop":
            self.require(proved, f"access of {describe(b)} is not proved")
            self.require(lanes in (1, LOOP_LANES), f"access of {lanes} elements of {describe(b)}")
            constant = all(isinstance(i, E.Const) for i in indices)
            self.require(b.scope != "var" or constant, f"{describe(b)} is indexed by something that is no constant")
        return lanes

    def value(self, root: E.Expr) -> None:
        """An expression and everything below it."""
        for n in walk(root):
            if isinstance(n, Buffer):
                continue
            if type(n) not in self.allowed:
                raise InternalError(f"{type(n).__name__} is no expression of the {self.stage} stage", self.loc)
            with self.at(self.place(n)):
                getattr(self, f"on_{type(n).__name__.lower()}")(n)
            assert isinstance(n, E.Expr)
            if self.stage == "loop" and n.dtype.is_narrow:
                plain = isinstance(n, (E.Load, E.Cast, E.Broadcast, E.Const, E.Var)) or _is_bits(n)
                self.require(plain, f"arithmetic in {n.dtype}")

    def on_const(self, c: E.Const) -> None:
        ok = type(c.value) is (bool if c.type.is_bool else int if c.type.is_int else float)
        self.require(ok or c.type.kind == "handle", f"literal {c.value!r} of {c.type}")
        if ok and not c.type.is_vector:
            self.require(const(c.value, c.type) == c, f"{c.type} has no value {c.value!r}")

    def on_var(self, v: E.Var) -> None:
        if v in self.vars:
            return
        if v in self.ever:
            raise TileNameError(
                f"{v.name} is used outside the region that defines it",
                self.loc,
                (f"{v.name} is defined at {v.loc}",) if v.loc else (),
                help=f"allocate it with T.alloc_var before, and store into it: {v.name}[0] = ...",
            )
        raise InternalError(f"{self.stage} stage: {v.name} is not defined", self.loc)

    def on_load(self, e: E.Load) -> None:
        self.access(e.buffer, e.indices, e.mask, e.lanes, e.proved)

    def on_unary(self, e: E.Unary) -> None:
        dtype = e.x.dtype
        self.require(e.op in E.UNARY_OPS, f"unknown operator {e.op!r}")
        if e.op == "not":
            ok = dtype.is_bool
        elif e.op == "bitnot":
            ok = dtype.is_int
        elif e.op in ("neg", "abs"):
            ok = dtype.is_int or dtype.is_float
        else:
            ok = dtype.is_float
        self.require(ok, f"{e.op} of {dtype}")

    def on_binary(self, e: E.Binary) -> None:
        dtype = e.a.dtype
        self.require(e.op in E.BINARY_OPS, f"unknown operator {e.op!r}")
        self.require(dtype is e.b.dtype, f"{e.op} of {dtype} and {e.b.dtype}")
        if e.op in ("and", "or"):
            ok = dtype.is_bool  # of vectors: both sides are evaluated
        elif e.op in ("bitand", "bitor", "bitxor"):
            ok = dtype.is_int or dtype.is_bool
        elif e.op in _INT_OPS:
            ok = dtype.is_int
        else:
            ok = dtype.is_int or dtype.is_float or e.op in E.COMPARISONS
        self.require(ok, f"{e.op} of {dtype}")

    def on_fma(self, e: E.Fma) -> None:
        ok = e.a.dtype is e.b.dtype is e.c.dtype and e.a.dtype.scalar.name in ("float32", "float64")
        self.require(ok, f"fma of {e.a.dtype}, {e.b.dtype}, {e.c.dtype}")

    def on_select(self, e: E.Select) -> None:
        self.require(e.t.dtype is e.f.dtype, f"choice between {e.t.dtype} and {e.f.dtype}")
        fits = e.cond.dtype.is_bool and e.cond.dtype.lanes in (1, e.t.dtype.lanes)
        self.require(fits, f"choice of {e.t.dtype} by {e.cond.dtype}")

    def on_ifthenelse(self, e: E.IfThenElse) -> None:
        self.require(not e.cond.dtype.is_vector, f"a lazy choice by {e.cond.dtype}: vectors take masks and Select")
        self.require(e.cond.dtype.is_bool, f"choice by {e.cond.dtype}")
        self.require(e.t.dtype is e.f.dtype, f"choice between {e.t.dtype} and {e.f.dtype}")

    def on_cast(self, e: E.Cast) -> None:
        ok = e.x.dtype.lanes == e.type.lanes and "handle" not in (e.x.dtype.kind, e.type.kind)
        self.require(ok, f"cast of {e.x.dtype} to {e.type}")

    def on_call(self, e: E.Call) -> None:
        known = INTRINSICS.get(e.name)
        self.require(known is not None, f"unknown function {e.name!r}")
        assert known is not None
        self.require(len(e.args) == known.arity, f"{e.name} of {len(e.args)} arguments")
        for a in e.args:
            ok: Any = {"float": a.dtype.is_float, "vector": a.dtype.is_vector, "int": a.dtype.is_int}.get(
                known.takes, True
            )
            self.require(ok, f"{e.name} of {a.dtype}")

    def on_broadcast(self, e: E.Broadcast) -> None:
        self.require(not e.x.dtype.is_vector, f"broadcast of {e.x.dtype}")
        self.width(e.lanes)

    def on_ramp(self, e: E.Ramp) -> None:
        self.require(is_index(e.base.dtype), f"ramp from {e.base.dtype}")
        self.width(e.lanes)

    def width(self, lanes: int) -> None:
        self.require(self.stage != "loop" or lanes == LOOP_LANES, f"a vector of {lanes} lanes")


def _is_bits(e: E.Expr) -> bool:
    """A value that has a type only because its bits were looked at as one."""
    return isinstance(e, E.Call) and e.name == "reinterpret"
