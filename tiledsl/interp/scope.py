"""What the compilers of expressions, accesses and statements share: slots of the environment and lane axes.

A tree is compiled once into closures `f(env, mask)`. env is a list: every variable and buffer has a slot. Inside
T.Parallel a value that differs between lanes is an ndarray whose axes are the lane axes (extent 1 where it does not
vary along one); mask is None (all lanes) or a bool array that broadcasts to the lanes. Everything else is uniform:
Python ints and bools, NumPy float scalars, and mask is None. Vectors have their lanes as a trailing axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tiledsl.errors import InternalError, Loc, TileError, TileNotImplementedError
from tiledsl.interp.options import Options
from tiledsl.ir import Buffer, Expr, Load, Var
from tiledsl.ir.walk import walk

__all__ = ["BLOCK", "Env", "Fn", "Nest", "RETURNED", "SCHEDULER", "STEPS", "Scope", "TRACKER", "of_lane"]

Env = list[Any]
Fn = Callable[[Env, Any], Any]

# The first slots of every environment.
RETURNED, STEPS, TRACKER, BLOCK, SCHEDULER = range(5)


def of_lane(value: Any, lane: Sequence[Any]) -> Any:
    """One lane's part of a value that broadcasts to the lanes."""
    return value[tuple(0 if n == 1 else i for i, n in zip(lane, value.shape, strict=False))]


@dataclass
class Nest:
    """One T.Parallel nest, or the threads of a block: its variables (one lane axis each), where its shape lies, and the
    private buffers. threads: the lanes are threads, z outermost, so that x runs fastest.
    after: run when all lanes of a T.Parallel are through."""

    vars: tuple[Var, ...]
    shape_slot: int
    private: set[Buffer] = field(default_factory=set)
    threads: bool = False
    after: list[Callable[[Env], None]] = field(default_factory=list)

    @property
    def rank(self) -> int:
        return len(self.vars)


class Scope:
    """Compile-time state of one kernel."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.slots: dict[Var | Buffer, int] = {}
        self.scratch_slot = 5
        self.size = 6
        self.nest: Nest | None = None
        self.varying: set[Var] = set()
        self.loops: list[Var] = []  # enclosing loop, block and lane variables, outermost first
        self.where: Loc | None = None
        self.alloc_locs: dict[Buffer, Loc | None] = {}

    # -- slots -------------------------------------------------------------------------------------------

    def new_slot(self) -> int:
        self.size += 1
        return self.size - 1

    def bind(self, name: Var | Buffer) -> int:
        """The slot of a variable or buffer that is introduced here."""
        slot = self.slots.get(name)
        if slot is None:
            slot = self.slots[name] = self.new_slot()
        return slot

    def slot(self, name: Var | Buffer) -> int:
        """The slot of a variable or buffer that is used here."""
        slot = self.slots.get(name)
        if slot is None:
            raise InternalError(f"interpreter: {name.name} is used where nothing defines it", self.where)
        return slot

    @contextmanager
    def at(self, loc: Loc | None) -> Iterator[None]:
        """Errors of what is compiled inside point at loc."""
        saved, self.where = self.where, loc or self.where
        try:
            yield
        finally:
            self.where = saved

    @contextmanager
    def loop(self, *loop_vars: Var) -> Iterator[None]:
        self.loops.extend(loop_vars)
        try:
            yield
        finally:
            del self.loops[len(self.loops) - len(loop_vars) :]

    # -- lanes -------------------------------------------------------------------------------------------

    @property
    def threaded(self) -> bool:
        """The lanes are the threads of the block."""
        return self.nest is not None and self.nest.threads

    @contextmanager
    def whole_block(self) -> Iterator[None]:
        """What is compiled inside belongs to the block, not to its threads one by one."""
        saved = self.nest, self.varying
        self.nest, self.varying = None, set()
        try:
            yield
        finally:
            self.nest, self.varying = saved

    def is_private(self, buffer: Buffer) -> bool:
        """Every lane has its own copy: the array has the lane axes in front."""
        return self.nest is not None and buffer.root in self.nest.private

    def varies(self, e: Expr) -> bool:
        """The value may differ between lanes."""
        if self.nest is None:
            return False
        for n in walk(e):
            if isinstance(n, Var):
                if n in self.varying:
                    return True
            elif isinstance(n, Load) and self.is_private(n.buffer):
                return True
        return False

    def counted(self, f: Fn) -> Fn:
        """f, or f that counts its calls."""
        if not self.options.count_steps:
            return f

        def step(env: Env, mask: Any) -> Any:
            env[STEPS] += 1
            return f(env, mask)

        return step

    # -- errors ------------------------------------------------------------------------------------------

    def not_yet(self, what: str) -> TileNotImplementedError:
        return TileNotImplementedError(f"the interpreter does not have {what} yet", self.where)

    def reporter(self, kind: type[TileError], help: str | None = None) -> Callable[..., TileError]:
        """A function (env, message, *notes, lane=None) -> error that names the loop values of this place.

        lane: indices of the offending lane along the lane axes.
        """
        names = [(v.name, self.slot(v)) for v in self.loops]
        loc = self.where

        def report(env: Env, message: str, *notes: str, lane: tuple[int, ...] | None = None) -> TileError:
            values = []
            for name, slot in names:
                value = env[slot]
                if isinstance(value, np.ndarray):
                    if lane is None:
                        continue
                    value = of_lane(value, lane)
                values.append(f"{name} = {value}")
            loops = (f"where {', '.join(values)}",) if values else ()
            return kind(message, loc, (*loops, *notes), help)

        return report
