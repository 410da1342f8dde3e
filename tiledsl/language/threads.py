"""The thread level: thread indices, barriers, and the exchange of values among the threads of a warp or block."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.frontend.control import Tracer, tracer
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import BOOL, INT32, is_number
from tiledsl.frontend.values import Value, as_bool, as_value, describe, to_dtype
from tiledsl.ir import Cast, Collective, Const, Expr, Return, Sync, Var
from tiledsl.ir.collectives import COLLECTIVES, WARP
from tiledsl.language.operation import named, operation

__all__ = [
    "activemask", "all_sync", "any_sync", "ballot", "ballot_sync", "get_block_binding", "get_block_bindings",
    "get_block_extent", "get_lane_idx", "get_thread_binding", "get_thread_bindings", "get_thread_extent",
    "get_warp_group_idx", "get_warp_idx", "get_warp_idx_sync", "launch_thread", "match_all_sync", "match_any_sync",
    "shfl_down", "shfl_sync", "shfl_up", "shfl_xor", "shuffle_elect", "sync_global", "sync_grid", "sync_threads",
    "sync_warp", "syncthreads_and", "syncthreads_count", "syncthreads_or", "thread_binding", "thread_return",
    "warp_reduce_bitand", "warp_reduce_bitor", "warp_reduce_bitxor", "warp_reduce_max", "warp_reduce_min",
    "warp_reduce_sum",
]  # fmt: skip

_UINT32 = COLLECTIVES["ballot"].gives
assert _UINT32 is not None


# -- indices ----------------------------------------------------------------------------------------------


def _launch(what: str) -> tuple[Tracer, Any]:
    builder = tracer(what)
    builder.require_kernel(what)
    return builder, builder.launch


def _axis(dim: Any, what: str) -> int:
    if not isinstance(dim, int) or not 0 <= dim <= 2:
        raise error(
            "thread-axis", TileValueError, f"{what} has no axis {dim!r}", help="axes are 0 (x), 1 (y) and 2 (z)"
        )
    return dim


def _part(parts: tuple[Any, ...], dim: int, rest: int) -> Value:
    """What a launch has along an axis; beyond its axes an index is 0 and an extent 1."""
    return Value(parts[dim] if dim < len(parts) else Const(rest, INT32, loc=here()))


@operation
def get_thread_binding(dim: int = 0) -> Any:
    """This thread's index along axis dim (0 = x, 1 = y, 2 = z) of the block; int32."""
    builder, launch = _launch("T.get_thread_binding")
    return _part(launch.thread_vars, _axis(dim, "T.get_thread_binding"), 0)


@operation
def get_thread_bindings() -> Any:
    """(x, y, z): this thread's indices."""
    builder, launch = _launch("T.get_thread_bindings")
    return tuple(_part(launch.thread_vars, d, 0) for d in range(3))


@operation
def get_block_binding(dim: int = 0) -> Any:
    """This block's index along axis dim of the grid; int32."""
    return _part(_launch("T.get_block_binding")[1].block_vars, _axis(dim, "T.get_block_binding"), 0)


@operation
def get_block_bindings() -> Any:
    """(x, y, z): this block's indices."""
    launch = _launch("T.get_block_bindings")[1]
    return tuple(_part(launch.block_vars, d, 0) for d in range(3))


@operation
def get_thread_extent(dim: int = 0) -> Any:
    """How many threads a block has along axis dim; a Python int where it is constant."""
    return _extent(_launch("T.get_thread_extent")[1].threads, _axis(dim, "T.get_thread_extent"))


@operation
def get_block_extent(dim: int = 0) -> Any:
    """How many blocks the grid has along axis dim; a Python int where it is constant."""
    return _extent(_launch("T.get_block_extent")[1].grid, _axis(dim, "T.get_block_extent"))


def _extent(extents: tuple[Expr, ...], dim: int) -> Any:
    e = _part(extents, dim, 1).expr
    return e.value if isinstance(e, Const) else Value(e)


def _number_of_thread(what: str) -> Value:
    """x + nx * (y + ny * z)."""
    builder, launch = _launch(what)
    number: Any = None
    for var, extent in reversed(list(zip(launch.thread_vars, launch.threads, strict=True))):
        number = Value(var) if number is None else number * Value(extent) + Value(var)
    assert isinstance(number, Value)
    return number


def _size(n: Any, default: int, what: str) -> int:
    if n is None:
        return default
    if not isinstance(n, int) or n < 1:
        raise error(
            "warp-size",
            TileValueError,
            f"{what} is {n!r}, which is no number of threads",
            help="it must be a positive Python int; leave it out for 32",
        )
    return n


@operation
def get_lane_idx(warp_size: int | None = None) -> Any:
    """This thread's number in its warp, from 0 to 31."""
    return _number_of_thread("T.get_lane_idx") % _size(warp_size, WARP, "T.get_lane_idx: warp_size")


@operation
def get_warp_idx(warp_size: int | None = None) -> Any:
    """The number of this thread's warp in the block."""
    return _number_of_thread("T.get_warp_idx") // _size(warp_size, WARP, "T.get_warp_idx: warp_size")


@operation
def get_warp_idx_sync(warp_size: int | None = None) -> Any:
    """Same as `get_warp_idx`."""
    return _number_of_thread("T.get_warp_idx_sync") // _size(warp_size, WARP, "T.get_warp_idx_sync: warp_size")


@operation
def get_warp_group_idx(warp_size: int | None = None, warps_per_group: int | None = None) -> Any:
    """The number of this thread's warp group (4 warps) in the block."""
    lanes = _size(warp_size, WARP, "T.get_warp_group_idx: warp_size")
    count = _size(warps_per_group, 4, "T.get_warp_group_idx: warps_per_group")
    return _number_of_thread("T.get_warp_group_idx") // (lanes * count)


@operation
def shuffle_elect(thread_extent: int = 0) -> Any:
    """True for the first thread of each group of thread_extent threads (0: of the block)."""
    number = _number_of_thread("T.shuffle_elect")
    return (number % _size(thread_extent, 1, "T.shuffle_elect: thread_extent") if thread_extent else number) == 0


class ThreadIndex(Value):
    """A thread or block index that a `for` or `with` statement may introduce."""

    def __iter__(self) -> Any:
        return iter((Value(self.expr),))

    def __enter__(self) -> Value:
        return Value(self.expr)

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        return None


def _bound(what: str, extent: Any, tag: Any) -> ThreadIndex:
    """The index that a tag such as "threadIdx.x" names; the launch must have that extent."""
    builder, launch = _launch(what)
    space, _, letter = tag.partition(".") if isinstance(tag, str) else ("", "", "")
    if space not in ("threadIdx", "blockIdx") or letter not in ("x", "y", "z"):
        raise error(
            "thread-tag", TileValueError, f"{what}: {tag!r} names no axis of threads", help='use "threadIdx.x", y or z'
        )
    names, extents = (launch.thread_vars, launch.threads) if space == "threadIdx" else (launch.block_vars, launch.grid)
    dim = "xyz".index(letter)
    have = _extent(extents, dim)
    wanted = as_value(extent, f"{what}: the extent").expr
    wanted_n = wanted.value if isinstance(wanted, Const) else None
    if wanted_n is not None and isinstance(have, int) and wanted_n != have:
        raise error(
            "thread-extent",
            TileValueError,
            f"{what}: {tag} has {have} values in this launch, not {wanted_n}",
            help=f"launch with the extent {wanted_n}: T.Kernel(..., threads=...)",
        )
    return ThreadIndex(_part(names, dim, 0).expr)


@operation
def thread_binding(start: Any, stop: Any = None, thread: Any = None, annotations: dict[str, Any] | None = None) -> Any:
    """The thread index that a tag names: `for t in T.thread_binding(128, "threadIdx.x"):`, or `t = ...`."""
    if isinstance(stop, str):
        start, stop, thread = 0, start, stop
    elif stop is None:
        start, stop = 0, start
    if not (is_number(start) and start == 0):
        raise error(
            "thread-start",
            TileValueError,
            f"T.thread_binding from {start!r}: thread indices start at 0",
            help="write T.thread_binding(n, tag) and add the offset to the index",
        )
    return _bound("T.thread_binding", stop, thread)


@operation
def launch_thread(thread: Any, extent: Any) -> Any:
    """The thread index that a tag names: `tx = T.launch_thread("threadIdx.x", 128)`."""
    return _bound("T.launch_thread", extent, thread)


# -- barriers ---------------------------------------------------------------------------------------------


def _sync(what: str, scope: str, count: int | None = None, barrier: int = 0) -> None:
    builder, _ = _launch(what)
    builder.emit(Sync(scope, count=count, barrier=barrier, loc=here()), what)


@operation
def sync_threads(barrier_id: int | None = None, arrive_count: int | None = None) -> None:
    """A barrier of the block: what threads wrote before it, all threads see after it.

    arrive_count: only that many threads take part; groups of threads meet at barriers of different barrier_id.
    """
    for value, name in ((barrier_id, "barrier_id"), (arrive_count, "arrive_count")):
        if value is not None and not isinstance(value, int):
            raise error(
                "barrier-constant",
                TileTypeError,
                f"T.sync_threads: {name} is {describe(value)}",
                help="it must be a Python int",
            )
    _sync("T.sync_threads", "block", arrive_count, barrier_id or 0)


@operation
def sync_warp(mask: Any = None) -> None:
    """A barrier of each warp."""
    _sync("T.sync_warp", "warp")


@operation
def sync_grid() -> None:
    """A barrier of all blocks of the launch."""
    _sync("T.sync_grid", "grid")


@operation
def sync_global() -> None:
    """Same as `sync_grid`."""
    _sync("T.sync_global", "grid")


@operation
def thread_return() -> None:
    """Ends this thread; the others go on, and barriers no longer count it."""
    builder, _ = _launch("T.thread_return")
    if builder.inside("parallel"):
        raise error(
            "return-in-parallel",
            TileTypeError,
            "T.thread_return inside T.Parallel",
            help="use continue to skip an iteration",
        )
    builder.emit(Return(loc=here()), "T.thread_return")


# -- exchange ---------------------------------------------------------------------------------------------


def _mask(mask: Any, what: str) -> Expr | None:
    """A mask of lanes; all of them is no mask."""
    if mask is None or (is_number(mask) and int(mask) & 0xFFFFFFFF == 0xFFFFFFFF):
        return None
    return to_dtype(as_value(mask, f"{what}: mask"), _UINT32)  # type: ignore[arg-type]


def collective(
    what: str, op: str, args: tuple[Any, ...], mask: Any = None, scope: str = "warp", **options: Any
) -> Value:
    """Emits one exchange; its result as a value."""
    builder, _ = _launch(what)
    takes = COLLECTIVES[op].takes
    exprs: list[Expr] = []
    for x, kind in zip(args, takes, strict=True):
        scalar = is_number(x) or (isinstance(x, Value) and not x.dtype.is_vector and x.dtype.kind != "handle")
        if not scalar:
            raise error(
                "collective-operand",
                TileTypeError,
                f"{what} takes one scalar per thread, got {describe(x)}",
                help="tiles are reduced with T.reduce_sum and its like",
            )
        if kind == "bool":
            exprs.append(as_bool(x, what))
        else:
            value = as_value(x, what)
            exprs.append(to_dtype(value, INT32 if kind == "int32" or value.dtype.is_bool else value.dtype))
    if op.startswith("bit") and not exprs[0].dtype.is_int:
        raise error(
            "collective-bits",
            TileTypeError,
            f"{what} takes integers, got {exprs[0].dtype}",
            help='look at the bits: T.reinterpret(x, "uint32")',
        )
    result = Var(op, COLLECTIVES[op].result(tuple(e.dtype for e in exprs)), loc=here())
    made = Collective(op, tuple(exprs), result, scope, mask=_mask(mask, what), loc=here(), **options)
    builder.emit(made, what)
    builder.define(result)
    as_int = result.type is BOOL  # votes are integers for authors, as in CUDA
    return Value(Cast(result, INT32, loc=here()) if as_int else result)


_WIDTHS = (1, 2, 4, 8, 16, WARP)  # lanes of a segment
_P = ParamSpec("_P")
_R = TypeVar("_R")


def _either_order(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """The function, which also takes the order of older versions: (mask, value, lane[, width]), by position."""

    @functools.wraps(function)
    def shuffle(*args: _P.args, **kw: _P.kwargs) -> _R:
        given: tuple[Any, ...] = (*args, *kw.values()) if [*kw] == ["width"] and len(args) == 3 else args
        if kw and given is args or not 3 <= len(given) <= 4 or not is_number(given[0]) or is_number(given[1]):
            return function(*args, **kw)
        mask, value, lane, width = given if len(given) == 4 else (*given, WARP)
        if is_number(lane) and (lane == WARP or not is_number(width) or width not in _WIDTHS):
            return function(*args, **kw)
        return function(value, lane, width, mask)  # type: ignore[call-arg]

    return shuffle


def _shuffle(what: str, op: str, value: Any, lane: Any, width: Any, mask: Any) -> Value:
    if width not in _WIDTHS:
        raise error(
            "shuffle-width",
            TileValueError,
            f"{what}: there are no segments of width {width!r}",
            help="segments have 1, 2, 4, 8, 16 or 32 lanes",
        )
    return collective(what, op, (value, lane), mask, width=width)


@_either_order
@operation
def shfl_sync(value: Any, srcLane: Any, width: Any = WARP, mask: Any = None) -> Any:
    """value of lane srcLane % width of this thread's segment of `width` lanes.

    The older order (mask, value, srcLane, width), by position, is understood too. Of a lane that does not take part:
    the own value.
    """
    return _shuffle("T.shfl_sync", "shfl", value, srcLane, width, mask)


@_either_order
@operation
def shfl_up(value: Any, delta: Any, width: Any = WARP, mask: Any = None) -> Any:
    """value of the lane delta below, in the segment of `width` lanes; the first delta lanes keep their own."""
    return _shuffle("T.shfl_up", "shfl_up", value, delta, width, mask)


@_either_order
@operation
def shfl_down(value: Any, delta: Any, width: Any = WARP, mask: Any = None) -> Any:
    """value of the lane delta above, in the segment of `width` lanes; the last delta lanes keep their own."""
    return _shuffle("T.shfl_down", "shfl_down", value, delta, width, mask)


@_either_order
@operation
def shfl_xor(value: Any, delta: Any, width: Any = WARP, mask: Any = None) -> Any:
    """value of lane (own lane ^ delta); of a lane in a later segment of `width` lanes: the own value."""
    return _shuffle("T.shfl_xor", "shfl_xor", value, delta, width, mask)


def _is_bool(x: Any) -> bool:
    return isinstance(x, bool) or (isinstance(x, Value) and x.dtype.is_bool)


def _vote(what: str, op: str, predicate: Any, mask: Any) -> Value:
    if isinstance(mask, Value) and (is_number(predicate) or (mask.dtype.is_bool and not _is_bool(predicate))):
        predicate, mask = mask, predicate  # CUDA's own order
    return collective(what, op, (predicate,), mask)


@operation
def any_sync(predicate: Any, mask: Any = None) -> Any:
    """1 where the predicate holds in some thread of the warp, else 0; int32."""
    return _vote("T.any_sync", "any", predicate, mask)


@operation
def all_sync(predicate: Any, mask: Any = None) -> Any:
    """1 where the predicate holds in every thread of the warp that is here, else 0; int32."""
    return _vote("T.all_sync", "all", predicate, mask)


@operation
def ballot_sync(predicate: Any, mask: Any = None) -> Any:
    """Bit i says that the predicate holds in lane i; uint32."""
    return _vote("T.ballot_sync", "ballot", predicate, mask)


@operation
def ballot(predicate: Any) -> Any:
    """Bit i says that the predicate holds in lane i; uint32."""
    return collective("T.ballot", "ballot", (predicate,))


@operation
def activemask() -> Any:
    """Bit i says that lane i is here; uint32."""
    return collective("T.activemask", "activemask", ())


@operation
def match_any_sync(value: Any, mask: Any = None) -> Any:
    """Bit i says that lane i has the same value, bit for bit; uint32."""
    return _vote("T.match_any_sync", "match_any", value, mask)


@operation
def match_all_sync(value: Any, mask: Any = None) -> Any:
    """The lanes that are here, where all have the same value, else 0; uint32."""
    return _vote("T.match_all_sync", "match_all", value, mask)


def _reduction(name: str, doc: str) -> Callable[[Any], Any]:
    def function(value: Any) -> Any:
        return collective(f"T.{name}", name.removeprefix("warp_reduce_"), (value,))

    return operation(named(function, name, doc))


warp_reduce_sum = _reduction(
    "warp_reduce_sum",
    "Sum over the threads of the warp, the same in all of them: an xor butterfly 16-8-4-2-1 in the value's dtype.",
)
warp_reduce_max = _reduction("warp_reduce_max", "Largest value in the warp; a number beats NaN.")
warp_reduce_min = _reduction("warp_reduce_min", "Smallest value in the warp; a number beats NaN.")
warp_reduce_bitand = _reduction("warp_reduce_bitand", "Bitwise and over the warp; integers.")
warp_reduce_bitor = _reduction("warp_reduce_bitor", "Bitwise or over the warp; integers.")
warp_reduce_bitxor = _reduction("warp_reduce_bitxor", "Bitwise exclusive or over the warp; integers.")


@operation
def syncthreads_count(predicate: Any) -> Any:
    """A barrier of the block; in how many of its threads the predicate holds; int32."""
    return collective("T.syncthreads_count", "count", (predicate,), scope="block")


@operation
def syncthreads_and(predicate: Any) -> Any:
    """A barrier of the block; 1 where the predicate holds in all of its threads, else 0; int32."""
    return collective("T.syncthreads_and", "all", (predicate,), scope="block")


@operation
def syncthreads_or(predicate: Any) -> Any:
    """A barrier of the block; 1 where the predicate holds in some of its threads, else 0; int32."""
    return collective("T.syncthreads_or", "any", (predicate,), scope="block")
