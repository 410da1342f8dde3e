"""The checked mode's memory of who touched what: uninitialised reads, races of lanes, of threads, of blocks.

The storage of a root buffer is divided into cells (the smallest element size of its views). Each cell knows whether
it was written, by which lane of the current T.Parallel or thread since the last barrier, and by which block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from tiledsl.errors import TileError, TileRuntimeError
from tiledsl.interp.nibbles import Nibbles, memory_of
from tiledsl.interp.options import Options
from tiledsl.interp.scope import BLOCK, Env
from tiledsl.ir.buffer import Buffer, place_text
from tiledsl.ir.collectives import WARP

__all__ = ["Tracker", "overlap"]

Array = np.ndarray[Any, Any]
Fail = Callable[..., Exception]
_NOBODY, _SEVERAL = -1, -2
# Of threads, per warp (minus its number): several of this warp; somebody of it, before the warp's last barrier.
_TOGETHER, _SETTLED = -(1 << 41), -(1 << 40)


def overlap(a: Array, b: Array) -> bool:
    """Whether two views share elements without being one view (which is element by element, in place)."""
    if isinstance(a, Nibbles) and isinstance(b, Nibbles):
        one, other = (x.positions() + 2 * x.memory.ctypes.data for x in (a, b))
        return not np.array_equal(one, other) and bool(np.isin(one, other).any())
    a, b = memory_of(a), memory_of(b)
    same = (a.ctypes.data, a.shape, a.strides) == (b.ctypes.data, b.shape, b.strides)
    return not same and np.shares_memory(a, b)


class _Cells:
    """The cells of one allocation."""

    def __init__(self, data: Array, grain: int, written: bool) -> None:
        data = memory_of(data)
        self.low, high = byte_bounds(data) if data.size else (data.ctypes.data, data.ctypes.data)
        self.grain = grain
        count = max(1, (high - self.low) // grain)
        self.written = np.full(count, written)
        self.lane_writer, self.lane_reader, self.block_writer, self.block_reader = (
            np.full(count, _NOBODY) for _ in range(4)
        )

    def of(self, data: Array, at: tuple[Any, ...]) -> Array:
        """Cell numbers of elements, with a trailing axis for elements of several cells."""
        if isinstance(data, Nibbles):  # the byte
            return np.asarray(data.at(at) // 2 + (data.memory.ctypes.data - self.low))[..., None] // self.grain
        offset: Any = data.ctypes.data - self.low
        for i, stride in zip(at, data.strides, strict=False):
            offset = offset + np.asarray(i, np.int64) * stride
        # a vector element covers the rest of the axes
        covered = data.itemsize * int(np.prod(data.shape[len(at) :], dtype=np.int64))
        cells = np.asarray(offset)[..., None] // self.grain + np.arange(max(1, covered // self.grain))
        return np.asarray(cells)


def _with_axis(view: Array) -> Array:
    """The view, of one axis where it has none: cells are counted along axes."""
    return view if view.shape else view.reshape(1)


class Tracker:
    """What one run knows about its memory."""

    def __init__(self, options: Options, grains: Mapping[Buffer, int]) -> None:
        self.poison = options.poison
        self.conflicts = options.conflicts == "report"
        self.grains = grains
        self.cells: dict[Buffer, _Cells] = {}
        self.lanes: Array | None = None  # lane numbers, of the nest's shape
        self.who = "iteration"

    # -- life of storage ---------------------------------------------------------------------------------

    def allocate(self, buffer: Buffer, data: Array, written: bool) -> None:
        grain = self.grains.get(buffer.root, data.dtype.itemsize)
        self.cells[buffer.root] = _Cells(data, grain, written)

    def new_launch(self) -> None:
        """Blocks of one launch race with each other, not with those of an earlier one."""
        for cells in self.cells.values():
            cells.block_writer.fill(_NOBODY)
            cells.block_reader.fill(_NOBODY)

    # -- threads -----------------------------------------------------------------------------------------

    def state(self) -> tuple[dict[Buffer, _Cells], Array | None, str]:
        """What belongs to the block and threads that run now; `resume` takes it when they go on after others."""
        return self.cells, self.lanes, self.who

    def resume(self, state: Any) -> None:
        self.cells, self.lanes, self.who = state

    @contextmanager
    def threads(self, shape: tuple[int, ...]) -> Iterator[None]:
        """The threads of a block."""
        self.lanes, self.who = np.arange(int(np.prod(shape))).reshape(shape), "thread"
        self.barrier()
        try:
            yield
        finally:
            self.lanes, self.who = None, "iteration"

    @contextmanager
    def whole_block(self) -> Iterator[None]:
        """What the block does as a whole is ordered before and after what its threads do."""
        saved = self.lanes, self.who
        self.lanes, self.who = None, "iteration"
        try:
            yield
        finally:
            self.lanes, self.who = saved
            self.barrier()

    def barrier(self) -> None:
        """What threads, or lanes, did so far no longer races."""
        for cells in self.cells.values():
            cells.lane_writer.fill(_NOBODY)
            cells.lane_reader.fill(_NOBODY)

    def warp_barrier(self, here: Array) -> None:
        """What threads did so far no longer races with those of the same warp. here: the warps at the barrier."""
        for cells in self.cells.values():
            for codes in (cells.lane_writer, cells.lane_reader):
                warp = _warp(codes)
                met = (warp >= 0) & here[np.maximum(warp, 0)]
                codes[met] = _SETTLED - warp[met]

    @contextmanager
    def nest(self, shape: tuple[int, ...], copies: Mapping[Buffer, Array]) -> Iterator[None]:
        """A T.Parallel: inside, each lane has its copy of these buffers; outside sees the last lane's again."""
        self.lanes = np.arange(int(np.prod(shape))).reshape(shape)
        self.barrier()
        outer = {b: self.cells[b] for b in copies if b in self.cells}
        for b, cells in outer.items():
            inner = _Cells(copies[b], cells.grain, False)
            inner.written.reshape(-1, len(cells.written))[...] = cells.written
            self.cells[b] = inner
        try:
            yield
        finally:
            for b, cells in outer.items():
                cells.written[...] = self.cells[b].written[-len(cells.written) :]
                self.cells[b] = cells
            self.lanes = None

    # -- accesses ----------------------------------------------------------------------------------------

    def read(self, buffer: Buffer, env: Env, data: Array, at: tuple[Any, ...], good: Any, fail: Fail) -> None:
        """Elements at index arrays are read where `good` (None = everywhere)."""
        cells = self.cells.get(buffer.root)
        if cells is None or data.size == 0:
            return
        flat, lanes = self._flatten(at, good)
        touched = cells.of(data, flat)
        if self.poison:
            blank = ~cells.written[touched].all(-1)
            self._refuse(blank, fail, env, buffer, cells, flat, lanes, "is read before anything has written it")
        if not self.conflicts:
            return
        racing = None if lanes is None or self._private(buffer) else lanes
        for who, owner, writers, readers in self._racers(buffer, env, cells, racing):
            bad = _others(writers[touched], owner).any(-1)
            what = f"is read by one {who} and written by another"
            self._refuse(bad, fail, env, buffer, cells, flat, lanes, what)
            _note_reader(readers, touched, np.broadcast_to(owner, touched.shape))

    def _racers(
        self, buffer: Buffer, env: Env, cells: _Cells, lanes: Array | None
    ) -> Iterator[tuple[str, Any, Array, Array]]:
        """Who can race on the buffer: (what races, who it is here, writers, readers of its cells)."""
        if lanes is not None:
            yield self.who, lanes[..., None], cells.lane_writer, cells.lane_reader
        if buffer.root.scope == "global":
            yield "block", env[BLOCK], cells.block_writer, cells.block_reader

    def write(
        self, buffer: Buffer, env: Env, data: Array, flat: tuple[Any, ...], values: Any, good: Any,
        shape: tuple[int, ...], fail: Fail,
    ) -> None:  # fmt: skip
        """Elements at one-dimensional index arrays (or one element) are about to get values."""
        cells = self.cells.get(buffer.root)
        if cells is None:
            return
        touched = cells.of(data, flat)
        if self.conflicts:
            lanes = None
            if self.lanes is not None:
                ids = self.lanes.reshape(self.lanes.shape + (1,) * (len(shape) - self.lanes.ndim))
                lanes = np.broadcast_to(ids, shape)[np.broadcast_to(True if good is None else good, shape)]
            private = self._private(buffer)
            if isinstance(data, Nibbles):  # half bytes of one byte are different values
                values = _codes(data, flat, values)
                differs = np.ones(np.shape(values), np.bool_)
            else:
                differs = _differs(data[flat], values)
            self._check_write(buffer, env, cells, flat, touched, values, differs, None if private else lanes, fail)
        cells.written[touched] = True

    def _check_write(
        self, buffer: Buffer, env: Env, cells: _Cells, flat: tuple[Any, ...], touched: Array, values: Any, differs: Any,
        lanes: Array | None, fail: Fail,
    ) -> None:  # fmt: skip
        changed = np.asarray(differs)[..., None]
        for who, owner, writers, readers in self._racers(buffer, env, cells, lanes):
            bad = (_others(writers[touched], owner) & changed).any(-1)
            if who != "block":
                bad |= _twice(touched, values)
            what = f"is written by two {who}s with different values"
            self._refuse(bad, fail, env, buffer, cells, flat, lanes, what)
            bad = _others(readers[touched], owner).any(-1)
            what = f"is read by one {who} and written by another"
            self._refuse(bad, fail, env, buffer, cells, flat, lanes, what)
            writers[touched] = np.broadcast_to(owner, touched.shape)

    def atomic(self, buffer: Buffer, env: Env, data: Array, flat: tuple[Any, ...], reads: bool, fail: Fail) -> None:
        """Atomics do not race; those that read do so where something has been written."""
        cells = self.cells.get(buffer.root)
        if cells is None:
            return
        touched = cells.of(data, flat)
        if self.poison and reads:
            blank = ~cells.written[touched].all(-1)
            self._refuse(blank, fail, env, buffer, cells, flat, None, "is updated before anything has written it")
        cells.written[touched] = True

    def finished(self, buffer: Buffer, data: Array) -> None:
        """An output that the kernels were to write, all of it."""
        if not self.poison or data.size == 0:
            return
        cells = self.cells[buffer.root]
        every = tuple(np.indices(data.shape).reshape(data.ndim, -1))
        left = ~cells.written[cells.of(data, every)].all(-1)
        if left.any():
            first = ", ".join(str(i[np.argmax(left)]) for i in every)
            raise TileRuntimeError(
                f"{buffer.name}[{first}] is never written: {int(left.sum())} of the {data.size} elements of the output "
                "hold nothing",
                buffer.loc,
                help="write every element, or pass the array instead of letting it be allocated",
            )

    # -- whole views (tile operations) -------------------------------------------------------------------

    def read_view(self, buffer: Buffer, env: Env, view: Array, fail: Fail) -> None:
        view = _with_axis(view)
        if view.size:
            self.read(buffer, env, view, tuple(np.ogrid[tuple(slice(n) for n in view.shape)]), None, fail)

    def write_view(self, buffer: Buffer, env: Env, view: Array, before: Array, fail: Fail) -> None:
        """view has been written; before: what it held."""
        view, before = _with_axis(view), _with_axis(before)
        cells = self.cells.get(buffer.root)
        if cells is None or view.size == 0:
            return
        at, _ = self._flatten(tuple(np.ogrid[tuple(slice(n) for n in view.shape)]), None)
        touched = cells.of(view, at)
        if self.conflicts:
            old, new = (x.astype(np.float32) if isinstance(view, Nibbles) else x for x in (before, np.asarray(view)))
            self._check_write(buffer, env, cells, at, touched, None, _differs(old, new).ravel(), None, fail)
        cells.written[touched] = True

    # -- helpers -----------------------------------------------------------------------------------------

    def _private(self, buffer: Buffer) -> bool:
        """Storage of threads that is the same in all of them, or packed elements that registers hold, where no byte is
        shared. Copies of lanes have cells of their own."""
        of_threads = self.who == "thread" and buffer.root.scope in ("local", "var")
        return of_threads or (buffer.dtype.is_packed and buffer.root.scope == "fragment")

    def _flatten(self, at: tuple[Any, ...], good: Any) -> tuple[tuple[Any, ...], Array | None]:
        """Index arrays of what is touched, one-dimensional, and the lanes that touch it."""
        shapes = [np.shape(i) for i in at] + ([] if good is None else [np.shape(good)])
        if self.lanes is None:
            shape = np.broadcast_shapes(*shapes)
            ids = None
        else:
            extra = max([len(s) for s in shapes], default=0) > self.lanes.ndim
            ids = self.lanes[..., None] if extra else self.lanes
            shape = np.broadcast_shapes(ids.shape, *shapes)
        on = np.broadcast_to(True if good is None else good, shape)
        flat = tuple(np.broadcast_to(i, shape)[on] for i in at)
        return flat, None if ids is None else np.broadcast_to(ids, shape)[on]

    def _refuse(
        self, bad: Any, fail: Fail, env: Env, buffer: Buffer, cells: _Cells, flat: tuple[Any, ...], lanes: Any,
        what: str,
    ) -> None:  # fmt: skip
        """The error of the first element that is `bad`, if one is."""
        if not bad.any():
            return
        first = int(np.argmax(bad)) if np.ndim(bad) else 0
        index = [int(np.ravel(i)[first if np.ndim(i) else 0]) for i in flat[len(flat) - buffer.rank :]]
        element = f"{buffer.name}[{', '.join(map(str, index))}]"
        notes = place_text(buffer.root)
        lane = None
        if lanes is not None and self.lanes is not None and np.ndim(lanes):
            lane = tuple(int(i) for i in np.unravel_index(int(lanes[first]), self.lanes.shape))
        located = fail(env, f"{element} {what}", *notes, lane=lane)
        assert isinstance(located, TileError)
        help = next(text for part, text in _REMEDIES if part in what)
        raise TileRuntimeError(located.message, located.loc, located.notes, help.format(buffer.name))


# What a report's text contains, and what to do then.
_REMEDIES = (
    ("before anything", "give it a value first: T.clear({0}), T.fill, or a T.copy into it"),
    ("read by one thread", "order them by a T.sync_threads() between the two accesses"),
    ("read by one iteration", "iterations have no order: write to another buffer, or make two T.Parallel of it"),
    ("read by one block", "blocks have no order: write to another tensor, or use two kernels"),
    ("", "add up with T.atomic_add, T.reduce_sum or T.alloc_reducer, or let one of them write"),
)


def _codes(data: Nibbles, flat: tuple[Any, ...], values: Any) -> Any:
    """Numbers that are equal where the same half of a byte gets the same bits."""
    at = np.asarray(data.at(flat))
    return (at & 1) * 1000 + np.broadcast_to(np.asarray(values, data.dtype).astype(np.float32), at.shape)


def _others(cells: Array, owner: Any) -> Any:
    """Where somebody else than the owner was."""
    return (cells != _NOBODY) & (cells != owner) & (cells != _SETTLED - np.asarray(owner) // WARP)


def _warp(codes: Any) -> Any:
    """The warp that a code speaks of; -1 for none, or several."""
    return np.select(
        [codes >= 0, codes <= _TOGETHER, codes <= _SETTLED], [codes // WARP, _TOGETHER - codes, _SETTLED - codes], -1
    )


def _differs(old: Any, new: Any) -> Any:
    """Elementwise: the bits differ (a NaN equals a NaN)."""
    old, new = np.broadcast_arrays(np.asarray(old), np.asarray(new, np.asarray(old).dtype))
    same = (old == new) & (np.signbit(old) == np.signbit(new)) if old.dtype.kind not in "iub" else old == new
    if old.dtype.kind not in "iub":
        same |= (old != old) & (new != new)
    return ~same


def _twice(touched: Array, values: Any) -> Any:
    """Which writes of one statement touch a cell that an earlier one of it gave another value."""
    result = np.zeros(touched.shape[:-1], np.bool_)
    if touched.ndim < 2 or len(touched) < 2:
        return result
    first = touched[:, 0]
    order = np.argsort(first, kind="stable")
    again = np.flatnonzero(first[order][1:] == first[order][:-1])
    if len(again):
        flat_values = np.broadcast_to(values, first.shape)
        a, b = order[again], order[again + 1]
        result[b] = _differs(flat_values[a], flat_values[b])
    return result


def _note_reader(reader: Array, touched: Array, who: Array) -> None:
    before = reader[touched]
    reader[touched] = who
    last = reader[touched]
    clash = (last != who) | _others(before, who)
    one_warp = (last // WARP == who // WARP) & ((before == _NOBODY) | (_warp(before) == who // WARP))
    reader[touched[clash]] = _TOGETHER - last[clash] // WARP
    reader[touched[clash & ~one_warp]] = _SEVERAL
