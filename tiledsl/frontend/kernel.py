"""`with T.Kernel(...)`: one launch, its grid and its block."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

from tiledsl.errors import TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.annotations import host_expr
from tiledsl.frontend.builder import Block
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import INT32
from tiledsl.frontend.regions import Tracer, tracer
from tiledsl.frontend.storage import check_repeated
from tiledsl.frontend.values import IndexTuple, Value
from tiledsl.ir import Const, Kernel, Var

__all__ = ["BlockIndex", "KernelLaunch"]

_MAX_THREADS = 1024  # of a CUDA block; every target keeps the limit so that kernels stay portable


class BlockIndex(Value):
    """The index of a one-dimensional grid; unpacks into itself, so that `as (bx,)` works too."""

    _advice = "a grid of one axis has one index: `as bx`; T.Kernel(grid_x, grid_y) has two"

    def __iter__(self) -> Any:
        return iter((Value(self.expr),))


class KernelLaunch:
    """The context manager that `T.Kernel` makes."""

    _advice = "it stands in a with statement, which gives the indices: `with T.Kernel(n) as bx:`"

    def __init__(self, grid: tuple[Any, ...], threads: Any) -> None:
        if not 1 <= len(grid) <= 3:
            raise error("grid-rank", TileTypeError, f"T.Kernel: a grid has 1 to 3 dimensions, got {len(grid)}")
        self._text = f"T.Kernel({', '.join(map(repr, grid))})"
        self.grid = tuple(host_expr(g, f"T.Kernel: grid dimension {i}") for i, g in enumerate(grid))
        for g in self.grid:
            if isinstance(g, Const) and g.value < 0:
                raise error("grid-negative", TileValueError, f"T.Kernel: grid dimension {g.value} is negative")
        sizes = threads if isinstance(threads, (tuple, list)) else (128 if threads is None else threads,)
        if not 1 <= len(sizes) <= 3:
            raise error("thread-rank", TileTypeError, f"T.Kernel: threads has 1 to 3 dimensions, got {len(sizes)}")
        self.threads = tuple(host_expr(t, "T.Kernel: threads") for t in sizes)
        known = [t.value for t in self.threads if isinstance(t, Const)]
        self.total = math.prod(known) if len(known) == len(self.threads) else None
        if self.total is not None and not 1 <= self.total <= _MAX_THREADS:
            raise error(
                "thread-count", TileValueError, f"T.Kernel: a block has 1 to {_MAX_THREADS} threads, not {self.total}"
            )
        self.loc = here()
        self.block: Block | None = None
        self.names: tuple[str, ...] = ()  # the author's, of the block's indices

    def __repr__(self) -> str:
        return self._text

    def __enter__(self) -> Any:
        builder = tracer("T.Kernel")
        builder.enter_kernel()
        if builder.in_kernel:
            raise error(
                "nested-kernel",
                TileSyntaxError,
                "T.Kernel inside T.Kernel",
                loc=self.loc,
                notes=(f"the outer one begins at {builder.blocks[0].loc}",),
                help="place one after the other",
            )
        for e in (*self.grid, *self.threads):
            builder.check(e, self.loc)
        self.block = builder.push("kernel", self.loc)
        builder.kernel_attrs = []
        builder.launch, builder.updates, builder.barriers, builder.random = self, [], None, None
        axes = ["bx", "by", "bz"][: len(self.grid)]
        own = len(self.names) == len(set(self.names)) == len(axes)
        self.block_vars = self._vars(builder, self.names if own else axes)
        self.thread_vars = self._vars(builder, ["tx", "ty", "tz"][: len(self.threads)])
        for s in builder.preamble:
            builder.emit(s, "T.Kernel")
        values = tuple(Value(v) for v in self.block_vars)
        names = ", ".join(axes)
        return IndexTuple(values, f"name each: `as ({names})`") if len(values) > 1 else BlockIndex(self.block_vars[0])

    def _vars(self, builder: Tracer, names: Sequence[str]) -> tuple[Var, ...]:
        made = tuple(Var(name, INT32, loc=self.loc) for name in names)
        for v in made:
            builder.define(v)
        return made

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        builder = tracer("T.Kernel")
        assert self.block is not None
        if kind is not None:
            builder.abandon(self.block)
            return
        body = builder.pop(self.block)
        if self.total != 1:
            body = check_repeated(body, self.thread_vars, self.total, builder.updates)
        builder.kernels.append(
            Kernel(
                builder.name,
                self.grid,
                self.threads,
                self.block_vars,
                self.thread_vars,
                body,
                tuple(builder.kernel_attrs),
                loc=self.loc,
            )
        )
