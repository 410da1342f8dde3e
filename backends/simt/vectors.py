"""Rows of elements in pieces of up to 16 bytes: copies of them, and stores of neighbours that one thread holds, are
recognised in nests, and written as short loops of which the printer makes one access (or an asynchronous copy)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tiledsl import ir
from tiledsl.ir import build
from tiledsl.ir.build import INT32, is_const
from tiledsl.ir.walk import free_vars, loads_of, substitute

__all__ = ["VECTOR", "Rows", "Stores", "copied_rows", "stored_rows"]

VECTOR = "copy"  # annotation of the short loops: "plain" or "async"
_BYTES = 16


@dataclass(frozen=True)
class Rows:
    """A nest that copies: dst[to] = src[at] where all tests hold, else zero (or nothing).

    tests: those that do not depend on the last variable; limits: last variable + offset < limit
    """

    dst: ir.Buffer
    to: tuple[ir.Expr, ...]
    src: ir.Buffer
    at: tuple[ir.Expr, ...]
    last: ir.Var
    width: int
    tests: tuple[ir.Expr, ...]
    limits: tuple[ir.Binary, ...]
    skips: bool

    def body(self, first: ir.Expr, s: ir.Stmt, asynchronous: bool) -> tuple[ir.Stmt, ...]:
        """One piece, whose first element has the last variable `first`."""
        e = ir.Var("e", INT32)
        lets: list[ir.Stmt] = [ir.Let(self.last, build.cast(first, self.last.type))]
        moved = {self.last: build.add(self.last, build.cast(e, self.last.type))}
        value: ir.Expr = ir.Load(self.src, substitute_all(self.at, moved), proved=True, loc=s.loc)
        to = substitute_all(self.to, moved)
        inside: ir.Expr = build.TRUE
        if self.tests or self.limits:
            valid = build.if_then_else(build.all_of(self.tests), _valid(self.limits, self.width), build.zero(INT32))
            name = ir.Var("valid", INT32)
            lets.append(ir.Let(name, valid))
            inside = build.lt(e, name)
        if not self.skips:
            value = build.if_then_else(inside, value, build.zero(self.dst.dtype))
        store: ir.Stmt = ir.Store(self.dst, to, value, proved=True, loc=s.loc)
        if self.skips and not is_const(inside, True):
            store = ir.If(inside, (store,), loc=s.loc)
        return (*lets, _short_loop(e, self.width, store, "async" if asynchronous else "plain", s))

    @property
    def asynchronous(self) -> bool:
        """cp.async can do it: from global to shared memory, 4 bytes or more, zeros elsewhere."""
        return (
            self.src.root.scope == "global"
            and self.dst.scope == "shared"
            and not self.skips
            and self.width * self.dst.dtype.bytes >= 4
        )


@dataclass(frozen=True)
class Stores:
    """A nest that stores values of its own, width neighbours along the last variable: dst[to] = value where all tests
    hold and last variable + offset < limit."""

    dst: ir.Buffer
    to: tuple[ir.Expr, ...]
    value: ir.Expr
    last: ir.Var
    width: int
    tests: tuple[ir.Expr, ...]
    limits: tuple[ir.Binary, ...]

    def body(self, values: Sequence[ir.Expr], s: ir.Stmt) -> tuple[ir.Stmt, ...]:
        """One piece, from the last variable on, of these values."""
        e, width = ir.Var("e", INT32), build.const(self.width, INT32)
        piece = ir.Buffer(f"{self.dst.name}_piece", self.dst.dtype, (width,), "local", loc=s.loc)
        made: list[ir.Stmt] = [ir.Alloc(piece, loc=s.loc)]
        inside: ir.Expr = build.TRUE
        if self.limits:
            name = ir.Var("valid", INT32)
            made.append(ir.Let(name, _valid(self.limits, self.width)))
            inside = build.lt(e, name)
        zero = build.zero(self.dst.dtype)
        for at, value in enumerate(values):
            index = build.const(at, INT32)
            if self.limits and any(n.buffer.scope != "fragment" for n in loads_of(self.value)):
                value = build.if_then_else(substitute(inside, {e: index}), value, zero)
            made.append(ir.Store(piece, (index,), value, proved=True, loc=s.loc))
        to = substitute_all(self.to, {self.last: build.add(self.last, build.cast(e, self.last.type))})
        store: ir.Stmt = ir.Store(self.dst, to, ir.Load(piece, (e,), proved=True), proved=True, loc=s.loc)
        if self.limits:
            store = ir.If(inside, (store,), loc=s.loc)
        made.append(_short_loop(e, self.width, store, "plain", s))
        return tuple(made)


def _valid(limits: Sequence[ir.Binary], width: int) -> ir.Expr:
    """How many elements of a piece are within the limits."""
    valid: ir.Expr = build.const(width, INT32)
    for test in limits:
        left = build.sub(*build.same_type(test.b, test.a))
        left = build.max_(build.min_(left, width), 0)
        valid = build.min_(valid, build.cast(left, INT32))
    return valid


def _short_loop(e: ir.Var, width: int, store: ir.Stmt, how: str, s: ir.Stmt) -> ir.For:
    zero, one, n = build.zero(INT32), build.const(1, INT32), build.const(width, INT32)
    return ir.For(e, zero, n, one, (store,), "vectorized", ((VECTOR, how),), loc=s.loc)


def substitute_all(indices: tuple[ir.Expr, ...], moved: dict[ir.Var, ir.Expr]) -> tuple[ir.Expr, ...]:
    return tuple(substitute(i, moved) for i in indices)


def copied_rows(s: ir.Parallel) -> Rows | None:
    """What a nest copies, if it does nothing else, and the last variable goes along rows of both sides."""
    if len(s.body) != 1 or not isinstance(s.extents[-1], ir.Const):
        return None
    inner, conditions, skips = s.body[0], [], False
    if isinstance(inner, ir.If) and not inner.orelse and len(inner.then) == 1:
        conditions, inner, skips = _conjuncts(inner.cond), inner.then[0], True
    if not isinstance(inner, ir.Store):
        return None
    value = inner.value
    if isinstance(value, ir.IfThenElse) and not skips and _is_zero(value.f):
        conditions, value = _conjuncts(value.cond), value.t
    dst = inner.buffer
    if not isinstance(value, ir.Load) or value.mask is not None or value.dtype is not dst.dtype or dst.dtype.is_vector:
        return None
    src, last = value.buffer, s.vars[-1]
    scopes = {dst.root.scope, src.root.scope}
    if dst.dtype.is_packed or not scopes <= {"global", "shared"} or loads_of_any((*inner.indices, *value.indices)):
        return None
    width = _BYTES // dst.dtype.bytes
    while width > 1 and s.extents[-1].value % width:
        width //= 2
    found = Rows(dst, inner.indices, src, value.indices, last, width, (), (), skips)
    if width == 1 or not all(_along(b, at, last, width) for b, at in ((dst, found.to), (src, found.at))):
        return None
    parted = _parted(conditions, last)
    return None if parted is None else replace(found, tests=parted[0], limits=parted[1])


def stored_rows(s: ir.Parallel, width: int) -> Stores | None:
    """What a nest stores, if it does nothing else, where pieces of `width` elements along its last variable (or half as
    many ...) can be one access of memory."""
    if len(s.body) != 1 or not isinstance(s.extents[-1], ir.Const):
        return None
    inner, conditions = s.body[0], []
    if isinstance(inner, ir.If) and not inner.orelse and len(inner.then) == 1:
        conditions, inner = _conjuncts(inner.cond), inner.then[0]
    if not isinstance(inner, ir.Store) or loads_of_any((*inner.indices, *conditions)):
        return None
    dst, last = inner.buffer, s.vars[-1]
    if dst.dtype.is_packed or dst.dtype.is_vector or dst.root.scope not in ("global", "shared"):
        return None
    while width > 1 and (s.extents[-1].value % width or width * dst.dtype.bytes > _BYTES):
        width //= 2
    parted = _parted(conditions, last)
    if width == 1 or parted is None or not _along(dst, inner.indices, last, width):
        return None
    return Stores(dst, inner.indices, inner.value, last, width, *parted)


def _parted(conditions: list[ir.Expr], last: ir.Var) -> tuple[tuple[ir.Expr, ...], tuple[ir.Binary, ...]] | None:
    """The conditions without the last variable, and those that limit it; None where it occurs in others."""
    limits = [c for c in conditions if last in free_vars(c)]
    if any(not _limit(c, last) for c in limits):
        return None
    tests = tuple(c for c in conditions if last not in free_vars(c))
    return tests, tuple(c for c in limits if isinstance(c, ir.Binary))


def loads_of_any(indices: tuple[ir.Expr, ...]) -> bool:
    return any(loads_of(i) for i in indices)


def _is_zero(e: ir.Expr) -> bool:
    return isinstance(e, ir.Const) and e.value == 0 and str(e.value) != "-0.0"


def _conjuncts(e: ir.Expr) -> list[ir.Expr]:
    if isinstance(e, ir.Binary) and e.op == "and":
        return [*_conjuncts(e.a), *_conjuncts(e.b)]
    return [e]


def _step(e: ir.Expr, v: ir.Var) -> int | None:
    """By how much e grows with v, where that is 0 or 1 for sure."""
    if v not in free_vars(e):
        return 0
    if e is v:
        return 1
    if isinstance(e, ir.Cast) and e.x.dtype.is_int and e.type.is_int and e.type.bits >= e.x.dtype.bits:
        return _step(e.x, v)
    if isinstance(e, ir.Binary) and e.op == "add":
        a, b = _step(e.a, v), _step(e.b, v)
        return a + b if a is not None and b is not None and a + b <= 1 else None
    if isinstance(e, ir.Binary) and e.op == "sub" and _step(e.b, v) == 0:
        return _step(e.a, v)
    return None


def _limit(e: ir.Expr, v: ir.Var) -> bool:
    """v + x < n."""
    return isinstance(e, ir.Binary) and e.op == "lt" and _step(e.a, v) == 1 and _step(e.b, v) == 0


def _along(b: ir.Buffer, indices: tuple[ir.Expr, ...], v: ir.Var, width: int) -> bool:
    """v goes along the last axis, element by element; a tile's rows and their starts are multiples of the width."""
    if any(_step(i, v) != 0 for i in indices[:-1]) or _step(indices[-1], v) != 1:
        return False
    if b.strides is not None and not is_const(b.strides[-1], 1):
        return False
    if b.root.scope == "global":
        return True
    shape = b.const_shape
    start = substitute(indices[-1], {v: build.zero(v.type)})
    start = start if isinstance(start, ir.Const) else build.add(start, 0)
    whole = shape is not None and b.alias_of is None and b.strides is None and shape[-1] % width == 0
    return whole and isinstance(start, ir.Const) and start.value % width == 0
