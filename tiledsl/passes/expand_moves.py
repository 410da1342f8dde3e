"""Copy and Fill become Parallel nests of element loads and stores, with the clipping rules written out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from tiledsl.analysis.bounds import Facts
from tiledsl.analysis.scopes import ScopedRewriter
from tiledsl.analysis.uniformity import PRIVATE
from tiledsl.dtypes import as_dtype
from tiledsl.ir import (
    Binary,
    Buffer,
    Const,
    Copy,
    Expr,
    Fill,
    For,
    Function,
    If,
    Let,
    Load,
    Parallel,
    Stmt,
    Store,
    Var,
    build,
)
from tiledsl.ir.walk import loads_of

__all__ = ["ExpandMoves", "MoveWriter", "bind_loads", "range_tests", "serial", "up_to"]


@dataclass(frozen=True)
class ExpandMoves:
    """The pass. What is left to `guard_bounds` is the meaning of global accesses out of range; here a store
    to, and a load from, block-local storage is guarded where it is not provably in range (`ir.Copy`)."""

    name: ClassVar[str] = "expand_moves"
    keep: frozenset[Buffer] = frozenset()  # destinations whose moves stay whole: a backend packs them itself

    def __call__(self, function: Function) -> Function:
        return MoveWriter(self.keep).run(function)


def range_tests(buffer: Buffer, indices: tuple[Expr, ...], facts: Facts) -> list[Expr]:
    """The comparisons that put the access in range; those that `facts` prove are left out."""
    tests: list[Expr] = []
    for index, extent in zip(indices, buffer.shape, strict=True):
        for test in (build.ge(index, 0), build.lt(index, extent)):
            if not facts.prove(test):
                tests.append(test)
    return tests


class MoveWriter(ScopedRewriter):
    """Writes moves out as nests, but those into `keep`."""

    def __init__(self, keep: frozenset[Buffer] = frozenset()) -> None:
        super().__init__()
        self.keep = keep

    def stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        if isinstance(s, (Copy, Fill)) and s.dst.buffer not in self.keep:
            return self._copy(s) if isinstance(s, Copy) else self._fill(s)
        return s

    def _copy(self, s: Copy) -> tuple[Stmt, ...]:
        src_buffer, dst_buffer = s.src.buffer, s.dst.buffer
        lets: list[Stmt] = []
        with self.scope():
            src_starts = self._once(s.src.starts, src_buffer.name, lets)
            dst_starts = self._once(s.dst.starts, dst_buffer.name, lets)
            for every, part in _parts(dst_buffer, s.dst_axes, s.domain):
                with self.scope() as facts:
                    nest, steps, extents = _variables(s.domain, every, part, facts)
                    src = tuple(_along(start, d, s.src_axes, steps) for d, start in enumerate(src_starts))
                    dst = tuple(_along(start, d, s.dst_axes, steps) for d, start in enumerate(dst_starts))
                    tests = [] if dst_buffer.scope == "global" else range_tests(dst_buffer, dst, facts)
                    if src_buffer.scope != "global":
                        tests += range_tests(src_buffer, src, facts)
                value = build.cast(Load(src_buffer, src, loc=s.loc), dst_buffer.dtype, s.loc)
                lets.append(_nest(nest, extents, tests, Store(dst_buffer, dst, value, loc=s.loc), s.annotations))
        return tuple(lets)

    def _fill(self, s: Fill) -> tuple[Stmt, ...]:
        buffer, region = s.dst.buffer, s.dst
        lets: list[Stmt] = []
        with self.scope():
            starts = self._once(region.starts, buffer.name, lets)
            (value,) = self._once((s.value,), buffer.name, lets)
            axes = tuple(range(len(starts)))
            for every, part in _parts(buffer, axes, region.extents):
                with self.scope() as facts:
                    nest, steps, extents = _variables(region.extents, every, part, facts)
                    indices = tuple(_along(start, d, axes, steps) for d, start in enumerate(starts))
                    tests = [] if buffer.scope == "global" else range_tests(buffer, indices, facts)
                lets.append(_nest(nest, extents, tests, Store(buffer, indices, value, loc=s.loc), ()))
        return tuple(lets)

    def _once(self, values: Iterable[Expr], name: str, lets: list[Stmt]) -> tuple[Expr, ...]:
        """The values; those that read memory are bound before the nest, which may change what they read."""
        return bind_loads(values, f"{name}_at", lets, self.facts)


def bind_loads(values: Iterable[Expr], name: str, lets: list[Stmt], facts: Facts) -> tuple[Expr, ...]:
    """The values, with a Let (appended to `lets`) for each that reads memory, so that it is read once."""
    result: list[Expr] = []
    for value in values:
        if loads_of(value):
            bound = Var(name, value.dtype, loc=value.loc)
            lets.append(Let(bound, value, loc=value.loc))
            facts.let(bound, value)
            value = bound
        result.append(value)
    return tuple(result)


def _parts(dst: Buffer, axes: tuple[int, ...], domain: tuple[Expr, ...]) -> list[tuple[int, int]]:
    """(axis of the domain, which of its elements): a move into packed elements is two nests, over every second element
    of a row, so that no two iterations share a byte. (-1, 0) is all at once."""
    along = axes.index(dst.rank - 1) if dst.dtype.is_packed and dst.rank - 1 in axes else -1
    if along < 0 or build.is_const(domain[along], 1):
        return [(-1, 0)]
    return [(along, 0), (along, 1)]


def _variables(
    domain: tuple[Expr, ...], every: int, part: int, facts: Facts
) -> tuple[list[Var], list[Expr], tuple[Expr, ...]]:
    """Loop variables, what they mean as steps through the domain, and their extents."""
    extents = list(domain)
    if every >= 0:
        extents[every] = build.floordiv(build.add(domain[every], 1 - part), 2)
    nest = [Var(f"i{k}", extent.dtype) for k, extent in enumerate(domain)]
    for v, extent in zip(nest, extents, strict=True):
        facts.bind(v, build.zero(v.type), extent)
    steps: list[Expr] = list(nest)
    if every >= 0:
        steps[every] = build.add(build.mul(nest[every], 2), part)
    return nest, steps, tuple(extents)


def _along(start: Expr, dim: int, axes: Iterable[int], steps: list[Expr]) -> Expr:
    """start plus the steps that move along this dimension; an axis of one element does not move."""
    index = start
    for v, axis in zip(steps, axes, strict=True):
        if axis == dim:
            index = build.add(*build.same_type(_signed(index), v))
    return index


def _signed(start: Expr) -> Expr:
    """A start to which steps may be added: an unsigned one would wrap from its end back to 0, into range."""
    if start.dtype.kind != "uint" or isinstance(start, Const):
        return start
    if start.dtype.bits == 64:
        start = Binary("min", start, Const(1 << 62, start.dtype), loc=start.loc)
    return build.cast(start, as_dtype("int64"), start.loc)


def _nest(nest: list[Var], domain: tuple[Expr, ...], tests: list[Expr], store: Store, annotations: Any) -> Stmt:
    body: Stmt = If(build.all_of(tests), (store,), loc=store.loc) if tests else store
    made = Parallel(tuple(nest), domain, (body,), annotations, loc=store.loc)
    return serial(made) if store.buffer.root.scope in PRIVATE else made  # iterations of a nest have their own copies


def serial(s: Stmt) -> Stmt:
    """A nest as sequential loops of one thread."""
    if not isinstance(s, Parallel):
        return s
    body = s.body
    for v, extent in reversed(list(zip(s.vars, s.extents, strict=True))):
        body = (up_to(v, extent, body, s),)
    return body[0]


def up_to(v: Var, extent: Expr, body: tuple[Stmt, ...], s: Stmt) -> For:
    """A loop over 0 ... extent - 1, in the place of s."""
    return For(v, build.zero(v.type), build.cast(extent, v.type), build.const(1, v.type), body, loc=s.loc)
