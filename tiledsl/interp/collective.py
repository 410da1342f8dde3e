"""Compiles barriers and the exchange of values among threads: gathers along the lane axes, inside warps of 32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.errors import TileRuntimeError
from tiledsl.interp.scope import RETURNED, TRACKER, Env, Fn, Nest, Scope
from tiledsl.ir import Collective, Sync, arithmetic
from tiledsl.ir.collectives import COLLECTIVE_REDUCTIONS, WARP

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Collectives"]

_LANES = np.arange(WARP)
_STEPS = (16, 8, 4, 2, 1)
_SHUFFLES = ("shfl", "shfl_up", "shfl_down", "shfl_xor")
_NO_BARRIER = ("rank", "size")


class _Warps:
    """The threads at a statement, as a table of warps and lanes. named: per thread (asking, other) or per warp (1,
    other), which lanes count."""

    def __init__(self, shape: tuple[int, ...], mask: Any, lanes: Any) -> None:
        self.shape, self.count = shape, int(np.prod(shape))
        numbers = np.arange(-(-self.count // WARP) * WARP).reshape(-1, WARP)
        self.exists = numbers < self.count
        self.number = np.minimum(numbers, self.count - 1)
        self.on = self.exists if mask is None else self.table(mask) & self.exists
        self.named: Any = self.on[:, None, :]
        if lanes is not None:
            self.named = self.named & ((self.table(lanes)[:, :, None] >> _LANES.astype(np.uint32)) & 1).astype(np.bool_)

    def table(self, x: Any) -> Any:
        """A value of the threads as [warp, lane]; what lies beyond the last thread repeats it."""
        return np.broadcast_to(x, self.shape).reshape(-1)[self.number]

    def lanes(self, x: Any) -> Any:
        """A table as a value of the threads."""
        return np.broadcast_to(x, self.on.shape).reshape(-1)[: self.count].reshape(self.shape)

    def thread(self, where: Any) -> tuple[int, ...]:
        """Indices along the lane axes of the first thread of a table."""
        number = int(self.number[np.nonzero(where)][0])
        return tuple(int(i) for i in np.unravel_index(number, self.shape))


@dataclass(eq=False)
class Collectives:
    """The compiler of barriers and collectives of one kernel."""

    scope: Scope
    expressions: Expressions

    # -- barriers ----------------------------------------------------------------------------------------

    def sync(self, s: Sync) -> Fn:
        """A barrier of the block or warp. Statement after statement, all threads are in step already; a checked run
        reports a barrier that only a part of the threads reaches, and starts a new interval."""
        nest = self.scope.nest
        if nest is None or not nest.threads or not self.scope.options.tracks or s.scope == "async":
            return lambda env, mask: mask
        if s.scope == "warp":

            def warp(env: Env, mask: Any) -> Any:
                env[TRACKER].warp_barrier(_Warps(env[nest.shape_slot], mask, None).on.any(-1))
                return mask

            return warp
        check = self._complete(nest, "T.sync_threads")

        def block(env: Env, mask: Any) -> Any:
            check(env, mask)
            env[TRACKER].barrier()
            return mask

        return block

    def _complete(self, nest: Nest, what: str) -> Callable[[Env, Any], None]:
        """Raises unless all threads that have not ended are here."""
        help = "move it out of the branch or loop, so that all threads of the block come to it"
        report = self.scope.reporter(TileRuntimeError, help)

        def check(env: Env, mask: Any) -> None:
            shape = env[nest.shape_slot]
            here = np.broadcast_to(True if mask is None else mask, shape)
            live = np.broadcast_to(True if env[RETURNED] is False else ~env[RETURNED], shape)
            missing = live & ~here
            if missing.any():
                text = f"{what} is reached by {int(here.sum())} threads, but waits for {int(live.sum())}"
                lane = tuple(int(i) for i in np.argwhere(missing)[0])
                raise report(env, text, "the first thread that does not come is named here", lane=lane)

        return check

    # -- exchange ----------------------------------------------------------------------------------------

    def compile(self, s: Collective) -> Fn:
        """result = what this thread gets."""
        nest = self.scope.nest
        if nest is None or not nest.threads:
            raise self.scope.not_yet("an exchange among threads inside T.Parallel")
        args = [self.expressions.compile(e) for e in s.args]
        storages = [e.dtype.numpy for e in s.args]
        if s.scope == "block":
            meaning, varies = self._block(s, nest)
        else:
            meaning, varies = self._warp(s, nest), True
        result, storage = self.scope.bind(s.result), s.result.dtype.numpy
        if varies:
            self.scope.varying.add(s.result)

        def run(env: Env, mask: Any) -> Any:
            values = [np.asanyarray(f(env, mask), t) for f, t in zip(args, storages, strict=True)]
            value = meaning(env, mask, *values)
            env[result] = value.astype(storage, copy=False) if varies else value
            return mask

        return run

    def _warp(self, s: Collective, nest: Nest) -> Callable[..., Any]:
        lanes = None if s.mask is None else self.expressions.compile(s.mask)
        op, width, checks = s.op, s.width, self.scope.options.tracks
        help = "let all threads of the warp come to it, or name those that do in its mask"
        report = self.scope.reporter(TileRuntimeError, help)
        combine = self._operator(s)

        def shuffle(env: Env, warps: _Warps, x: Any, by: Any) -> Any:
            source, valid = _source(op, warps.table(by).astype(np.int64), width)
            source = np.where(valid, source, _LANES)
            row = np.arange(len(source))[:, None]
            there = warps.named[row, _LANES if warps.named.shape[1] > 1 else 0, source]
            bad = warps.on & valid & ~there
            if checks and bad.any():
                lane = int(source[bad][0])
                text = f"T.{op} reads lane {lane} of the warp, which does not take part".replace("shfl ", "shfl_sync ")
                raise report(env, text, lane=warps.thread(bad))
            return warps.lanes(warps.table(x)[row, np.where(valid & there, source, _LANES)])

        def reduce(env: Env, warps: _Warps, x: Any) -> Any:
            absent = warps.exists[:, None, :] & ~warps.on[:, None, :]
            bad = warps.on & absent.any(-1) if lanes is None else np.zeros_like(warps.on)
            if checks and bad.any():
                first = int(np.argmax(absent[np.nonzero(bad)[0][0], 0]))
                text = f"T.warp_reduce_{op} goes over lane {first} of the warp, which does not take part"
                raise report(env, text, lane=warps.thread(bad))
            value = np.broadcast_to(warps.table(x)[:, None, :], (len(warps.on), warps.named.shape[1], WARP))
            total = _butterfly(value, warps.named, combine)  # the same in all lanes
            return warps.lanes(total[..., 0])

        def vote(env: Env, warps: _Warps, *args: Any) -> Any:
            yes = warps.named
            if op in ("any", "all", "ballot"):
                holds = warps.table(args[0])[:, None, :]
                if op != "ballot":
                    return warps.lanes((yes & holds).any(-1) if op == "any" else (~yes | holds).all(-1))
                yes = yes & holds
            elif op.startswith("match"):
                bits = _bits(warps.table(args[0]))
                same = bits[:, None, :] == bits[:, :, None]
                if op == "match_any":
                    yes = yes & same
                else:
                    yes = yes & (same | ~yes).all(-1)[..., None]
            return warps.lanes((yes * (np.uint32(1) << _LANES.astype(np.uint32))).sum(-1, dtype=np.uint32))

        function = shuffle if op in _SHUFFLES else reduce if op in COLLECTIVE_REDUCTIONS else vote

        def run(env: Env, mask: Any, *values: Any) -> Any:
            warps = _Warps(env[nest.shape_slot], mask, None if lanes is None else lanes(env, mask))
            return function(env, warps, *values)

        return run

    def _operator(self, s: Collective) -> Callable[[Any, Any], Any]:
        if s.op not in COLLECTIVE_REDUCTIONS:
            return np.add
        found = arithmetic.binary(COLLECTIVE_REDUCTIONS[s.op], s.args[0].dtype, True)
        if found is None:
            raise self.scope.not_yet(f"a reduction by {s.op} of {s.args[0].dtype}")
        return found

    def _block(self, s: Collective, nest: Nest) -> tuple[Callable[..., Any], bool]:
        """The meaning, and whether threads get different results."""
        op = s.op
        combine = self._operator(s)
        check = self._complete(nest, f"a block-wide {op}")
        checks = self.scope.options.tracks and op not in _NO_BARRIER
        rank = nest.rank
        axes = [rank - 1 - a for a in sorted(s.axes or range(rank), reverse=True) if a < rank]
        item = s.result.dtype.is_int or s.result.dtype.is_bool

        def reduce(on: Any, x: Any) -> Any:
            kept = [a for a in range(rank) if a not in axes]
            order = (*kept, *axes)
            front = tuple(on.shape[a] for a in kept)
            value, has = (v.transpose(order).reshape((*front, -1)) for v in (x, on))
            while True:
                rows = -(-value.shape[-1] // WARP)
                at = np.minimum(np.arange(rows * WARP), value.shape[-1] - 1)
                has = has[..., at] & (np.arange(rows * WARP) < value.shape[-1])
                grid = (*front, rows, WARP)
                value = _butterfly(value[..., at].reshape(grid), has.reshape(grid), combine)[..., 0]
                has = has.reshape(grid).any(-1)
                if rows == 1:
                    break
            value = value.reshape(tuple(1 if a in axes else n for a, n in enumerate(on.shape)))
            return value if s.axes else value.reshape(())[()]

        def run(env: Env, mask: Any, *values: Any) -> Any:
            if checks:
                check(env, mask)
                env[TRACKER].barrier()
            shape = env[nest.shape_slot]
            on = np.broadcast_to(True if mask is None else mask, shape)
            if op == "rank":
                return (np.cumsum(on) - on.ravel()).reshape(shape)
            if op == "size":
                return int(on.sum())
            x = np.broadcast_to(values[0], shape)
            if op == "count":
                return int((x & on).sum())
            if op in ("any", "all"):
                return bool((x & on).any() if op == "any" else (x | ~on).all())
            total = reduce(on, x)
            return total.item() if item and not s.axes else total

        return run, op == "rank" or bool(s.axes)


def _source(op: str, by: Any, width: int) -> tuple[Any, Any]:
    """(source lane per asking lane, whether it lies in the segment)."""
    base = _LANES & -width
    if op == "shfl":
        return base + (by & (width - 1)), np.ones(by.shape, np.bool_)
    if op == "shfl_up":
        source = _LANES - by
        return source, (by >= 0) & (source >= base)
    source = _LANES + by if op == "shfl_down" else _LANES ^ by
    return source, (by >= 0) & (source < base + width)


def _butterfly(value: Any, has: Any, combine: Callable[[Any, Any], Any]) -> Any:
    """The xor butterfly 16-8-4-2-1 along the last axis; lanes without a value are passed over."""
    has = np.broadcast_to(has, value.shape)
    for step in _STEPS:
        partner = _LANES ^ step
        other, there = value[..., partner], has[..., partner]
        value = np.where(has & there, combine(value, other), np.where(has, value, other))
        has = has | there
    return value


def _bits(x: Any) -> Any:
    return x.view(np.dtype(f"u{x.dtype.itemsize}"))
