"""Fragments: how the elements of a tile are dealt to the registers of the threads of a block.

An axis of a tile is a number in mixed radix. Each digit of its index, lowest first, is either a part of the number of
the thread that holds the element, or a part of the number of a register in that thread. A fragment has one such map per
axis; parts of the thread number that no axis uses are replicas: these threads hold the same elements.

One formula thus serves elementwise nests, register tiles of FMA products and the matrix instructions' own layouts:
accumulators of m16n8 have rows [8 threads of stride 4, 2 registers, warps] and columns [2 registers, 4 threads].
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tiledsl import ir
from tiledsl.ir import build
from tiledsl.ir.build import INT32
from tiledsl.ir.collectives import WARP

__all__ = ["Axis", "Digit", "ThreadGrid", "replicas"]


@dataclass(frozen=True)
class Digit:
    """extent values; stride: the weight of this digit in the thread's number, 0 for a digit of the register."""

    extent: int
    stride: int = 0


Pattern = tuple[Digit, ...]


@dataclass(frozen=True)
class Axis:
    """The indices 0 .. extent - 1 of one axis. digits: lowest first; their product may exceed the extent."""

    extent: int
    digits: Pattern

    @staticmethod
    def of(extent: int, pattern: Pattern) -> Axis:
        """The axis that repeats a pattern over as many registers as the extent needs."""
        span = math.prod(d.extent for d in pattern)
        return Axis(extent, (*pattern, Digit(-(-extent // span))))

    @property
    def registers(self) -> int:
        return math.prod(d.extent for d in self.digits if not d.stride)

    @property
    def span(self) -> int:
        """One more than the largest index that threads and registers stand for."""
        return math.prod(d.extent for d in self.digits)

    @property
    def neighbours(self) -> int:
        """How many indices from a multiple of it on are registers of one thread, side by side."""
        return self.digits[0].extent if self.digits[0].stride == 0 and len(self.digits) > 1 else 1

    @property
    def padded(self) -> bool:
        """Some registers stand for indices beyond the extent."""
        return self.span > self.extent

    def index(self, thread: ir.Expr, register: ir.Expr) -> ir.Expr:
        """The index that a thread's register holds; int32."""
        total: ir.Expr = build.zero(INT32)
        weight, below = 1, 1
        for d in self.digits:
            source, stride = (thread, d.stride) if d.stride else (register, below)
            last = not d.stride and below * d.extent == self.registers
            part = source if last and stride == 1 else build.binary("truncdiv", source, stride)
            if not last:
                part = build.binary("truncmod", part, d.extent)
            total = build.add(total, build.mul(part, weight))
            weight *= d.extent
            below *= 1 if d.stride else d.extent
        return total

    def place(self, index: int) -> tuple[int, int]:
        """(the thread's part, the register) of an index."""
        thread, register, below = 0, 0, 1
        for d in self.digits:
            index, digit = divmod(index, d.extent)
            if d.stride:
                thread += digit * d.stride
            else:
                register += digit * below
                below *= d.extent
        return thread, register


def replicas(axes: Iterable[Axis], thread: ir.Expr, threads: int) -> ir.Expr | None:
    """The condition that picks one of the threads that hold the same elements; None where each has its own."""
    used = sorted((d.stride, d.extent) for a in axes for d in a.digits if d.stride and d.extent > 1)
    tests: list[ir.Expr] = []
    at = 1
    for stride, extent in [*used, (threads, 1)]:
        if stride > at:
            part = build.binary("truncdiv", thread, at)
            if stride < threads:
                part = build.binary("truncmod", part, stride // at)
            tests.append(build.eq(part, 0))
        at = stride * extent
    return build.all_of(tests) if tests else None


@dataclass(frozen=True)
class ThreadGrid:
    """How the threads of a block stand over the rows and columns of tiles; one for a whole kernel.

    row, col: the patterns of axes that are rows and columns
    warps: rows and columns of warps where matrix instructions do the products
    """

    threads: int
    row: Pattern
    col: Pattern
    warps: tuple[int, int] | None = None

    @staticmethod
    def fma(threads: int) -> ThreadGrid:
        """16 neighbours side by side along columns, so that lane p has the elements p, p + 16, ... of a row: the 16
        partial sums of the language's order (language.md 0.10); fewer where 16 does not divide the threads."""
        lanes = math.gcd(threads, 16)
        return ThreadGrid(threads, (Digit(threads // lanes, lanes),), (Digit(lanes, 1),))

    @staticmethod
    def mma(threads: int, rows: int, cols: int) -> ThreadGrid:
        """rows x cols warps, each with accumulators of m16n8 tiles that repeat over registers."""
        row = (Digit(8, 4), Digit(2), Digit(rows, WARP))
        return ThreadGrid(threads, row, (Digit(2), Digit(4, 1), Digit(cols, WARP * rows)), (rows, cols))

    def pattern(self, kind: str) -> Pattern:
        """The pattern of an axis that is a "row", a "col", "flat" (alone over all threads) or "whole"."""
        return {"row": self.row, "col": self.col, "flat": (Digit(self.threads, 1),), "whole": ()}[kind]
