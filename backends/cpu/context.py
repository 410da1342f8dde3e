"""What every part of the lowering shares: the block under construction, the environment, what is known of integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tiledsl import ir
from tiledsl.analysis.bounds import Facts
from tiledsl.dtypes import DType
from tiledsl.errors import Loc

from .storage import Place
from .wide import I64, LANES, ZERO, i64

__all__ = ["Context", "Lane", "LaneLoop"]


@dataclass(frozen=True)
class Lane:
    """A value inside (or outside) a vector loop.

    coef 0: uniform, `expr` is a scalar. coef c: lane l holds expr + c*l (integers). coef None: `expr` is a
    vector. Scalar integers other than uint64 are held as int64 whatever their type; halves as float32.
    """

    expr: ir.Expr
    coef: int | None = 0


@dataclass
class LaneLoop:
    """The vector loop being emitted: its lane mask, what it writes, where invariant values are hoisted to.

    mask may be narrower than `tail`, the mask of the loop itself, which has at least one lane.
    exits: registers of the innermost loop that lanes leave one by one: those that go on, those that are in this round.
    branches: lanes are threads, whose conditions often hold for none of sixteen: what follows is then jumped over.
    """

    mask: ir.Expr | None
    written: frozenset[ir.Buffer]
    pre: list[ir.Stmt]
    tail: ir.Expr | None = None
    inner: set[ir.Var] = field(default_factory=set)  # author's variables bound inside the loop
    guarded: int = 0  # > 0: inside a conditional or lazy operand, where loads must not be hoisted
    hoisted: dict[ir.Expr, Lane] = field(default_factory=dict)
    exits: tuple[ir.Buffer, ir.Buffer] | None = None
    branches: bool = False
    # variables that are functions of four bits (`tables.py`)
    spelt: dict[ir.Var, ir.Expr] = field(default_factory=dict)
    base: ir.Expr = ZERO  # the number of the first lane, a multiple of 16
    axis: ir.Var | None = None
    # what `strides.py` has read (in which block of statements, its name, the buffer), and stores that wait
    drawn: dict[Any, tuple[list[ir.Stmt], ir.Expr, ir.Buffer]] = field(default_factory=dict)
    pending: dict[Any, tuple[ir.Buffer, Place, dict[int, ir.Expr]]] = field(default_factory=dict)


@dataclass(frozen=True)
class Partials:
    """The 16 partials of a reducer's elements; behind: they are the last dimension, else the first."""

    buffer: ir.Buffer
    behind: bool


@dataclass
class Context:
    """Mutable state of lowering one kernel."""

    places: dict[ir.Buffer, Place]
    facts: Facts
    env: dict[ir.Var, Lane] = field(default_factory=dict)
    out: list[ir.Stmt] = field(default_factory=list)
    lane: LaneLoop | None = None
    loc: Loc | None = None
    temps: list[Place] = field(default_factory=list)
    reducers: dict[ir.Buffer, Partials] = field(default_factory=dict)

    def emit(self, s: ir.Stmt) -> None:
        self.out.append(s if s.loc is not None else s.replace(loc=self.loc))

    @contextmanager
    def scope(self) -> Iterator[Facts]:
        """Facts about loop variables hold inside their loops only: a loop may run no iteration."""
        outer, self.facts = self.facts, self.facts.child()
        try:
            yield self.facts
        finally:
            self.facts = outer

    @contextmanager
    def block(self) -> Iterator[list[ir.Stmt]]:
        """Collect statements into a list of their own."""
        outer, self.out = self.out, []
        try:
            yield self.out
        finally:
            self.out = outer

    def let(self, name: str, value: ir.Expr) -> ir.Expr:
        """Name a value (constants and variables need no name)."""
        if isinstance(value, (ir.Const, ir.Var)):
            return value
        var = ir.Var(name, value.dtype)
        self.emit(ir.Let(var, value))
        return var

    @contextmanager
    def loop(self, name: str, stop: ir.Expr, start: ir.Expr = ZERO, step: int = 1) -> Iterator[ir.Expr]:
        """for name in range(start, stop, step); a single iteration is emitted without a loop."""
        if isinstance(start, ir.Const) and isinstance(stop, ir.Const) and 0 < stop.value - start.value <= step:
            yield start
            return
        var = ir.Var(name, I64)
        with self.block() as body:
            yield var
        self.emit(ir.For(var, start, stop, i64(step), tuple(body)))

    @contextmanager
    def when(self, cond: ir.Expr | None) -> Iterator[None]:
        """if cond: ... (None = always)."""
        if cond is None or cond == ir.Const(True, ir.BOOL):
            yield
            return
        with self.block() as body:
            yield
        self.emit(ir.If(cond, tuple(body)))

    def either(self, cond: ir.Expr | None, then: Callable[[], None], orelse: Callable[[], None]) -> None:
        """if cond (None = true): then(), else: orelse(), as statements; only one where the condition is known."""
        if cond is None or isinstance(cond, ir.Const):
            (then if cond is None or cond.value else orelse)()
            return
        with self.block() as yes:
            then()
        with self.block() as no:
            orelse()
        self.emit(ir.If(cond, tuple(yes), tuple(no)))

    def var(self, name: str, dtype: DType, init: ir.Expr | None = None) -> ir.Buffer:
        """A mutable register, scalar or vector."""
        buffer = ir.Buffer(name, dtype, (i64(1),), "var")
        self.emit(ir.Alloc(buffer, init))
        return buffer

    def scratch(self, name: str, dtype: DType, shape: tuple[int, ...]) -> ir.Buffer:
        """A scratch array of this kernel (allocated at its top)."""
        buffer = ir.Buffer(name, dtype, tuple(i64(n) for n in shape), "scratch")
        self.temps.append(Place("scratch", buffer, buffer.dtype))
        return buffer

    def view(self, root: ir.Buffer, dtype: DType, shape: tuple[int, ...]) -> ir.Buffer:
        """A scratch array looked at as another type."""
        extents = tuple(i64(n) for n in shape)
        buffer = ir.Buffer(root.name, dtype, extents, "scratch", alias_of=root)
        self.temps.append(Place("scratch", buffer, dtype))
        return buffer


def get(buffer: ir.Buffer) -> ir.Load:
    """Read a register."""
    return ir.Load(buffer, (ZERO,), proved=True)


def put(buffer: ir.Buffer, value: ir.Expr) -> ir.Store:
    """Write a register."""
    return ir.Store(buffer, (ZERO,), value, proved=True)


def vload(buffer: ir.Buffer, *index: ir.Expr, mask: ir.Expr | None = None) -> ir.Load:
    """16 contiguous elements."""
    return ir.Load(buffer, index, mask, LANES, True)


def vstore(buffer: ir.Buffer, index: tuple[ir.Expr, ...], value: ir.Expr, mask: ir.Expr | None = None) -> ir.Store:
    return ir.Store(buffer, index, value, mask, True)
