"""Memory barriers (mbarriers): groups of threads that arrive, and groups that wait for a phase to be complete.

A barrier is a shared counter of arrivals. Phase p is complete when `count * (p + 1)` threads have arrived; waiting for
a parity waits until the phase under way has the other one, so that waiting for parity 1 of a new barrier returns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from tiledsl.errors import TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import INT32, is_number
from tiledsl.frontend.regions import rename, tracer
from tiledsl.frontend.storage import BufferRef, Element
from tiledsl.frontend.values import Value, as_bool, as_value, describe, to_dtype
from tiledsl.ir import Alloc, Atomic, Buffer, Const, Expr, Fill, If, Load, Region, Wait, build
from tiledsl.language.operation import operation
from tiledsl.language.threads import get_warp_group_idx

__all__ = [
    "alloc_barrier", "barrier_arrive", "barrier_wait", "create_list_of_mbarrier", "get_mbarrier", "mbarrier_arrive",
    "mbarrier_expect_tx", "mbarrier_wait_parity", "ptx_arrive_barrier", "ptx_arrive_barrier_expect_tx", "ws",
]  # fmt: skip


class Barrier(BufferRef):
    """One or several barriers. counts: arrivals that complete a phase of each."""

    def __init__(self, buffer: Buffer, counts: tuple[int, ...]) -> None:
        super().__init__(buffer)
        self.counts = counts

    def __getitem__(self, key: Any) -> BarrierPlace:
        element = super().__getitem__(key)
        assert isinstance(element, Element)
        return BarrierPlace(self, element.indices[0])

    def __setitem__(self, key: Any, value: Any) -> None:
        raise error(
            "barrier-store",
            TileTypeError,
            f"{self.name} is a barrier; nothing is stored into it",
            help="use T.barrier_arrive and T.barrier_wait",
        )


class BarrierPlace:
    """One barrier of several."""

    def __init__(self, barrier: Barrier, index: Expr) -> None:
        self.barrier, self.index = barrier, index


@operation
def alloc_barrier(arrive_count: Any) -> Any:
    """A barrier for arrive_count arrivals per phase; a list gives several, `bars[i]`. They are shared by the block."""
    counts = tuple(arrive_count) if isinstance(arrive_count, (list, tuple)) else (arrive_count,)
    if not counts or not all(isinstance(n, int) and 0 < n < 1 << 31 for n in counts):
        raise error(
            "barrier-count",
            TileValueError,
            f"T.alloc_barrier: arrive_count is {describe(arrive_count)}",
            help="it must be a positive Python int below 2**31, or a list of them",
        )
    builder = tracer("T.alloc_barrier")
    buffer = Buffer("", INT32, (Const(len(counts), INT32),), "shared", loc=here())
    builder.emit(Alloc(buffer, loc=here()), "T.alloc_barrier")
    zero = Const(0, INT32, loc=here())
    builder.emit(Fill(Region(buffer, (zero,), buffer.shape), zero, loc=here()), "T.alloc_barrier")
    return Barrier(buffer, counts)


@operation
def create_list_of_mbarrier(*args: Any) -> None:
    """Barriers that `get_mbarrier`, and plain numbers where a barrier is asked for, name: counts, or a list of them."""
    made = alloc_barrier(args[0] if len(args) == 1 else list(args))
    rename(made.buffer, "mbarrier")
    tracer("T.create_list_of_mbarrier").barriers = made


@operation
def get_mbarrier(barrier_id: Any) -> Any:
    """Barrier number barrier_id of those that `create_list_of_mbarrier` made."""
    listed = tracer("T.get_mbarrier").barriers
    if listed is None:
        raise error(
            "no-barriers",
            TileSyntaxError,
            "T.get_mbarrier before T.create_list_of_mbarrier",
            help="make them first: T.create_list_of_mbarrier(128, 128), or use T.alloc_barrier",
        )
    return listed[barrier_id]


@operation
def ws(*warp_group_idx: int) -> AbstractContextManager[None]:
    """`with T.ws(0):` what the threads of a warp group (128 threads), or of several, do."""
    if not warp_group_idx or not all(isinstance(g, int) for g in warp_group_idx):
        raise error(
            "warp-group",
            TileTypeError,
            f"T.ws{warp_group_idx!r} names no warp group",
            help="give the numbers of warp groups as Python ints: T.ws(0)",
        )
    return _in_groups(warp_group_idx)


@contextmanager
def _in_groups(warp_group_idx: tuple[int, ...]) -> Iterator[None]:
    builder = tracer("T.ws")
    group = get_warp_group_idx()
    cond: Expr = build.FALSE
    for g in warp_group_idx:
        cond = build.or_(cond, as_bool(group == g, "T.ws"))
    place = here()
    block = builder.push("if", place)
    try:
        yield
    except BaseException:
        builder.abandon(block)
        raise
    builder.emit(If(cond, builder.pop(block), loc=place), "T.ws", checked=True)


def _place(what: str, barrier: Any) -> tuple[Buffer, Expr, Expr]:
    """(counter, index, arrivals per phase)."""
    listed = tracer(what).barriers
    if isinstance(barrier, Barrier) and len(barrier.counts) == 1:
        barrier = barrier[0]
    elif listed is not None and (is_number(barrier) or isinstance(barrier, Value)):
        barrier = listed[barrier]
    if not isinstance(barrier, BarrierPlace):
        raise error(
            "barrier-operand",
            TileTypeError,
            f"{what} takes one barrier, got {describe(barrier)}",
            help="allocate it with T.alloc_barrier(arrive_count); of several, give bars[i]",
        )
    counts, index = barrier.barrier.counts, barrier.index
    count: Expr = Const(counts[0], INT32)
    for k in range(1, len(counts)):
        if counts[k] != counts[0]:
            count = build.if_then_else(build.eq(index, k), Const(counts[k], INT32), count)
    return barrier.barrier.buffer, index, count


def _arrive(what: str, barrier: Any) -> None:
    buffer, index, _ = _place(what, barrier)
    builder = tracer(what)
    builder.emit(Atomic("arrive", buffer, (index,), Const(1, INT32), None, "release", loc=here()), what)


def _wait(what: str, barrier: Any, parity: Any) -> None:
    buffer, index, count = _place(what, barrier)
    if not (is_number(parity) or isinstance(parity, Value)):
        raise error("barrier-parity", TileTypeError, f"{what}: parity is {describe(parity)}", help="it is 0 or 1")
    phase = build.floordiv(Load(buffer, (index,), loc=here()), count)
    wanted = to_dtype(as_value(parity, f"{what}: parity"), INT32)
    builder = tracer(what)
    builder.emit(Wait(build.ne(build.binary("bitand", phase, 1), wanted), loc=here()), what)


@operation
def barrier_arrive(barrier: Any) -> None:
    """Each thread that comes here arrives once."""
    _arrive("T.barrier_arrive", barrier)


@operation
def mbarrier_arrive(mbarrier: Any) -> None:
    """Same as `barrier_arrive`."""
    _arrive("T.mbarrier_arrive", mbarrier)


@operation
def ptx_arrive_barrier(barrier: Any) -> None:
    """Same as `barrier_arrive`."""
    _arrive("T.ptx_arrive_barrier", barrier)


@operation
def ptx_arrive_barrier_expect_tx(barrier: Any, bytes: Any) -> None:
    """Arrives; copies are complete when they return, so that there are no bytes to expect."""
    _arrive("T.ptx_arrive_barrier_expect_tx", barrier)


@operation
def mbarrier_expect_tx(mbarrier: Any, tx: Any) -> None:
    """Bytes that copies will bring; copies are complete when they return, so that none are to be expected."""
    _place("T.mbarrier_expect_tx", mbarrier)


@operation
def barrier_wait(barrier: Any, parity: Any = 0) -> None:
    """Waits until the phase of this parity is complete: 0 for the first, then 1, 0, ..."""
    _wait("T.barrier_wait", barrier, parity)


@operation
def mbarrier_wait_parity(mbarrier: Any, parity: Any) -> None:
    """Same as `barrier_wait`."""
    _wait("T.mbarrier_wait_parity", mbarrier, parity)
