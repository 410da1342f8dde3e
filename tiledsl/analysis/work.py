"""How much a function computes and moves, statement by statement, for given arguments.

Trip counts are evaluated for blocks of the grid (a sample of a large one); what depends on data is counted once, and
said to be a lower bound; of two sides of a branch that data decide about, one counts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.errors import TileError
from tiledsl.ir.walk import free_vars, walk

__all__ = ["Work", "work"]

_BLOCKS = 64  # of a grid, evenly spread, when it has more
_TRIPS = 64  # of a loop whose body depends on its variable
_FLOPS = {"add", "sub", "mul", "div", "min", "max", "fma"}

Env = Mapping[ir.Var, Any]


@dataclass
class Work:
    """runs: how often the statement is executed; operations on numbers; bytes read from and written to arguments;
    at_least: data decide, and one round was counted."""

    statement: ir.Stmt
    runs: float = 0.0
    operations: float = 0.0
    moved: float = 0.0
    at_least: bool = False


def work(function: ir.Function, env: Env) -> list[Work]:
    """One entry for each tile operation and outermost scalar statement, in program order.

    env: values of the function's symbols and scalar parameters.
    """
    found: dict[int, Work] = {}
    parts: dict[int, _Parts] = {}
    for kernel in function.kernels:
        grid = [max(0, int(evaluate(g, env))) for g in kernel.grid]
        for block, weight in _sample(grid):
            _Counter(found, parts, {**env, **dict(zip(kernel.block_vars, block, strict=True))}).block(
                kernel.body, weight, False
            )
    return list(found.values())


def _sample(grid: list[int]) -> Iterator[tuple[tuple[int, ...], float]]:
    total = 1
    for g in grid:
        total *= g
    if total <= _BLOCKS:
        yield from ((b, 1.0) for b in product(*map(range, grid)))
        return
    for k in range(_BLOCKS):
        n, block = (2 * k + 1) * total // (2 * _BLOCKS), []
        for g in grid:
            block.append(n % g)
            n //= g
        yield tuple(block), total / _BLOCKS


class _Parts:
    """What of a statement does not depend on where and how often it is executed: found once."""

    def __init__(self, s: ir.Stmt) -> None:
        nodes = list(walk(s.body if isinstance(s, ir.Parallel) else s))
        self.arithmetic = sum(map(_arithmetic, nodes))
        self.regions = [n for n in nodes if isinstance(n, ir.Region) and n.buffer.scope == "global"]
        elements = (n for n in nodes if isinstance(n, (ir.Load, ir.Store, ir.Atomic)) and n.buffer.scope == "global")
        self.touched = sum(n.buffer.dtype.bits / 8 for n in elements)


@dataclass
class _Counter:
    found: dict[int, Work]
    parts: dict[int, _Parts]
    env: dict[ir.Var, Any]

    def value(self, e: ir.Expr) -> Any:
        """None where data decide."""
        try:
            return evaluate(e, self.env)
        except TileError:
            return None

    def block(self, body: tuple[ir.Stmt, ...], times: float, loose: bool) -> None:
        for s in body:
            self.statement(s, times, loose)

    def statement(self, s: ir.Stmt, times: float, loose: bool) -> None:
        if isinstance(s, ir.Let):
            value = self.value(s.value)
            if value is not None:
                self.env[s.var] = value
        elif isinstance(s, ir.For):
            self.loop(s, times, loose)
        elif isinstance(s, ir.While):
            self.block(s.body, times, True)
        elif isinstance(s, ir.If):
            taken = self.value(s.cond)
            if taken is None:
                self.either(s, times)
            else:
                self.block(s.then if taken else s.orelse, times, loose)
        elif isinstance(s, (ir.Copy, ir.Gemm, ir.Reduce, ir.Scan, ir.Fill, ir.Parallel, ir.Store, ir.Atomic)):
            self.count(s, times, loose)

    def either(self, s: ir.If, times: float) -> None:
        """Data choose one side: the one with more operations counts, the other's statements are there without runs."""
        sides = [_Counter({}, self.parts, dict(self.env)) for _ in range(2)]
        for side, body in zip(sides, (s.then, s.orelse), strict=True):
            side.block(body, times, True)
        heavier = max(
            sides, key=lambda c: [sum(getattr(w, f) for w in c.found.values()) for f in ("operations", "moved")]
        )
        for side in sides:
            for key, w in side.found.items():
                one, share = self.found.setdefault(key, Work(w.statement)), float(side is heavier)
                one.runs, one.at_least = one.runs + share * w.runs, True
                one.operations, one.moved = one.operations + share * w.operations, one.moved + share * w.moved

    def loop(self, s: ir.For, times: float, loose: bool) -> None:
        bounds = [self.value(e) for e in (s.start, s.stop, s.step)]
        if None in bounds:
            self.block(s.body, times, True)
            return
        rounds = range(*map(int, bounds))
        if not rounds:
            return
        matters = any(s.var in free_vars(e) for e in _deciding(s.body))
        chosen = list(rounds)[:: max(1, len(rounds) // _TRIPS)] if matters else [rounds[0]]
        for i in chosen:
            self.env[s.var] = i
            self.block(s.body, times * len(rounds) / len(chosen), loose)

    def count(self, s: ir.Stmt, times: float, loose: bool) -> None:
        one = self.found.setdefault(id(s), Work(s))
        one.runs += times
        one.at_least |= loose
        if id(s) not in self.parts:
            self.parts[id(s)] = _Parts(s)
        one.operations += times * self.operations(s, self.parts[id(s)])
        one.moved += times * self.moved(s, self.parts[id(s)])

    def size(self, extents: tuple[ir.Expr, ...]) -> float:
        total = 1.0
        for e in extents:
            n = self.value(e)
            total *= 1 if n is None else max(0, n)
        return total

    def operations(self, s: ir.Stmt, parts: _Parts) -> float:
        if isinstance(s, ir.Gemm):
            return 2.0 * self.size(s.c.extents) * self.size((s.a.extents[-2 if s.transpose_a else -1],))
        if isinstance(s, (ir.Reduce, ir.Scan)):
            return self.size(s.src.extents)
        if isinstance(s, ir.Parallel):
            return self.size(s.extents) * parts.arithmetic
        return float(parts.arithmetic) if isinstance(s, (ir.Store, ir.Atomic)) else 0.0

    def moved(self, s: ir.Stmt, parts: _Parts) -> float:
        if isinstance(s, (ir.Copy, ir.Gemm, ir.Reduce, ir.Scan, ir.Fill)):
            return sum(self.size(r.extents) * r.buffer.dtype.bits / 8 for r in parts.regions)
        return (self.size(s.extents) if isinstance(s, ir.Parallel) else 1.0) * parts.touched


def _arithmetic(n: ir.Node) -> int:
    """Operations of one node: each of +, -, *, /, min, max counts one, a function of a float one as well."""
    if isinstance(n, ir.Binary):
        return int(n.op in _FLOPS and n.a.dtype.is_float)
    return int(isinstance(n, ir.Call) and n.dtype.is_float)


def _deciding(body: tuple[ir.Stmt, ...]) -> Iterator[ir.Expr]:
    """Expressions in a block that decide how often something in it happens."""
    for n in walk(body):
        if isinstance(n, ir.For):
            yield from (n.start, n.stop, n.step)
        elif isinstance(n, (ir.If, ir.While)):
            yield n.cond
        elif isinstance(n, ir.Parallel):
            yield from n.extents
        elif isinstance(n, ir.Region):
            yield from n.extents
        elif isinstance(n, ir.Let) and n.var.type.is_int:
            yield n.value
