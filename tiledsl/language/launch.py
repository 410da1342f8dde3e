"""Kernels and loops: T.Kernel, T.Parallel, T.Pipelined, T.serial and their relatives."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from tiledsl.errors import TileNotImplementedError, TileValueError
from tiledsl.frontend.builder import current
from tiledsl.frontend.kernel import KernelLaunch
from tiledsl.frontend.location import error
from tiledsl.frontend.loops import LoopSpec
from tiledsl.frontend.promotion import INT32
from tiledsl.frontend.trace import Macro, PrimFunc, Ref, trace_prim_func
from tiledsl.frontend.values import Value, index_expr
from tiledsl.ir import Const
from tiledsl.language import math
from tiledsl.language.operation import hints, operation

_Class = TypeVar("_Class", bound=type)

__all__ = [
    "ClusterKernel", "Kernel", "Parallel", "Persistent", "Pipelined", "Ref", "Serial", "Unroll", "Vectorized",
    "grid", "inline", "macro", "meta_class", "parallel", "prim_func", "serial", "unroll", "vectorized",
]  # fmt: skip


def prim_func(pyfunc: Callable[..., Any]) -> PrimFunc:
    """Decorator: traces the function into a kernel. Every parameter is annotated with a T type.

    Raises a TileError, with the author's line, for whatever the kernel cannot contain.
    """
    return trace_prim_func(pyfunc, sys._getframe(1).f_locals)


def macro(pyfunc: Callable[..., Any]) -> Macro:
    """Decorator: a function that is traced into each kernel that calls it.

    Scalars are evaluated at the call, buffers are passed by reference; annotate `x: T.Ref` to assign to the
    caller's variable or element. It may return values and tuples.
    """
    return Macro(pyfunc)


inline = macro


def meta_class(cls: _Class) -> _Class:
    """Decorator of a class whose objects exist while a kernel is traced, such as a scheduler of tiles: its methods may
    be @T.inline, and its fields hold variables and values of the kernel."""
    return cls


@operation
def Kernel(*grid: Any, threads: Any = 128, prelude: str | None = None, cluster_dims: Any = None) -> KernelLaunch:
    """One launch: `with T.Kernel(gx, gy, threads=128) as (bx, by):`. bx is below gx; x varies fastest.

    grid     1 to 3 extents: ints or symbolic expressions
    threads  threads of a block (int or up to 3); a hint for targets without threads
    cluster_dims  how many blocks a GPU groups, a hint
    """
    if prelude is not None:
        raise error(
            "hardware-only", TileNotImplementedError, "T.Kernel(prelude=...) is hardware-only: it is C text for one GPU"
        )
    return KernelLaunch(grid, threads)


@operation
def ClusterKernel(*grid: Any, threads: Any = 128, cluster_dims: Any = None, prelude: str | None = None) -> KernelLaunch:
    """A `Kernel` whose blocks a GPU may group; what blocks of a group share is not portable."""
    return Kernel(*grid, threads=threads, prelude=prelude)


@operation
def Parallel(
    *extents: Any, coalesced_width: int | None = None, loop_layout: Any = None, prefer_async: bool | None = None,
    annotations: dict[str, Any] | None = None,
) -> LoopSpec:  # fmt: skip
    """Independent iterations in no particular order: `for i, j in T.Parallel(m, n):`.

    Two iterations must not write different values to one element, nor read what another one writes.
    The keywords are hints.
    """
    given = hints(coalesced_width=coalesced_width, prefer_async=prefer_async)
    return LoopSpec.nest("T.Parallel", "parallel", extents, given)


@operation
def parallel(*extents: Any) -> LoopSpec:
    """Same as `Parallel`."""
    return LoopSpec.nest("T.parallel", "parallel", extents)


@operation
def Pipelined(
    start: Any, stop: Any = None, num_stages: int | None = 0, order: Any = None, stage: Any = None, sync: Any = None,
    group: Any = None, annotations: dict[str, Any] | None = None,
) -> LoopSpec:  # fmt: skip
    """A sequential loop whose copies may overlap its arithmetic; num_stages and the other keywords are hints."""
    return LoopSpec.serial("T.Pipelined", start, stop, None, "pipelined", hints(num_stages=num_stages or 0))


@operation
def Persistent(
    domain: Any, wave_size: Any, index: Any, group_size: int = 8, annotations: dict[str, Any] | None = None
) -> LoopSpec:  # fmt: skip
    """The tiles of one of `wave_size` persistent blocks: `for by, bx in T.Persistent([m, n], blocks, b):`.

    domain      extents of the grid of tiles; the loop gives one coordinate per extent
    wave_size   blocks that share the tiles; each tile is visited once, by one of them
    index       number of this block, below wave_size
    group_size  tiles go in groups of so many along the last dimension, for cache reuse: the order of tiles only
    """
    what = "T.Persistent"
    extents = domain if isinstance(domain, (tuple, list)) else (domain,)
    if not extents or not isinstance(group_size, int) or group_size < 1:
        raise error(
            "persistent-domain",
            TileValueError,
            f"{what} takes a list of extents and a positive group size, got {extents!r} and {group_size!r}",
            help="T.Persistent([tiles_m, tiles_n], blocks, b)",
        )
    sizes = [Value(index_expr(n, f"{what}: domain")) for n in extents]
    wave, number = (Value(index_expr(x, f"{what}: {n}")) for x, n in ((wave_size, "wave_size"), (index, "index")))
    outer = functools.reduce(lambda a, b: a * b, sizes[:-1], Value(Const(1, INT32)))
    total = outer * sizes[-1]

    def decode(w: Value) -> tuple[Value, Callable[[], tuple[Value, ...]]]:
        tile = w * wave + number
        return tile < total, lambda: coordinates(Value(current(what).let("tile", tile.typed)))

    def coordinates(tile: Value) -> tuple[Value, ...]:
        last, rest = in_groups(tile, outer, sizes[-1], group_size)
        found = [last]
        for n in reversed(sizes[1:-1]):
            found.append(rest % n)
            rest = rest // n
        return tuple(reversed([*found, rest] if len(sizes) > 1 else found))

    spec = LoopSpec.serial(what, (total + wave - 1) // wave)
    spec.decode = decode
    return spec


def in_groups(tile: Value, outer: Any, inner: Any, group: int) -> tuple[Value, Value]:
    """(coordinate below inner, coordinate below outer) of a tile's number, in an order that takes `group` inner ones
    together: all outer ones for the first group, then for the next."""
    first = tile // (outer * group) * group
    width = Value(current("a schedule of tiles").let("width", math.min(inner - first, group).typed))
    inside = tile - first * outer
    return first + inside % width, inside // width


@operation
def serial(start: Any, stop: Any = None, step: Any = None, annotations: dict[str, Any] | None = None) -> LoopSpec:
    """A sequential loop over range(start, stop, step). A step that is not a constant must be positive."""
    return LoopSpec.serial("T.serial", start, stop, step)


@operation
def unroll(
    start: Any, stop: Any = None, step: Any = None, explicit: bool = False, unroll_factor: int | None = None,
    annotations: dict[str, Any] | None = None,
) -> LoopSpec:  # fmt: skip
    """A sequential loop that the compiler should unroll."""
    return LoopSpec.serial("T.unroll", start, stop, step, "unroll", hints(unroll_factor=unroll_factor))


@operation
def vectorized(start: Any, stop: Any = None, annotations: dict[str, Any] | None = None) -> LoopSpec:
    """A sequential loop that the compiler should run in vector lanes."""
    return LoopSpec.serial("T.vectorized", start, stop, None, "vectorized")


@operation
def grid(*extents: Any) -> LoopSpec:
    """Nested sequential loops: `for i, j in T.grid(m, n):`."""
    return LoopSpec.nest("T.grid", "serial", extents)


Serial, Unroll, Vectorized = serial, unroll, vectorized
