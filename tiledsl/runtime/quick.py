"""Calls like the last one, of kernels so small that checking their arguments in Python would take longer than they run.

A `Quick` holds what the last call found: types, shapes, strides, the program. Machine code compares the next call's
arrays with it and launches, or says that the call has to take the ordinary way. Values never depend on the way.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from tiledsl.backend import CompiledFunction
from tiledsl.runtime import pool
from tiledsl.runtime.lane import caller_lane
from tiledsl.runtime.launch import Plan, Ready
from tiledsl.runtime.views import address_of

__all__ = ["Quick", "quick_of"]

ROUNDS = 256  # calls until the ordinary way measures again how long a block takes


def quick_of(asked: Any, plan: Plan, ready: Ready, values: Sequence[Any]) -> Quick | None:
    """For one kernel without prints, asserts or workspaces, on NumPy arrays, that is done before another thread would
    be awake; else None."""
    program, pace = ready.program, ready.paces[0] if ready.paces else None
    entries = program.artifact.entries
    small = pace is not None and 0.0 < pace.ns_per_block * ready.blocks[0] < pool.WORTH_WAKING_NS
    plain = len(entries) == 1 and not (ready.sites or ready.workspaces or entries[0].waits or plan.aligned)
    compiled = type(program.launchable) is CompiledFunction
    if (
        not (small and plain and compiled)
        or not values
        or any(type(x) is not np.ndarray for x in values)
        or not _able()
    ):
        return None
    return Quick(asked, plan, ready, values)


@cache
def _able() -> bool:
    from tiledsl.backends.cpu.quick import layout_holds

    return layout_holds()


class Quick:
    """`quick(asked, values)` is True when the call is done, False when it has to be made in the ordinary way."""

    __slots__ = ("_keep", "_left", "_scratch", "_table", "asked", "function", "plan")

    def __init__(self, asked: Any, plan: Plan, ready: Ready, values: Sequence[Any]) -> None:
        from tiledsl.backends.cpu.quick import quick_function

        def words(numbers: Sequence[int]) -> np.ndarray[Any, Any]:
            array = np.array([*numbers, 0], np.int64)
            keep.append(array)
            return array

        keep: list[Any] = [ready, [x.dtype for x in values]]
        launchable = ready.program.launchable
        assert isinstance(launchable, CompiledFunction)
        entry = ctypes.cast(launchable.functions[0], ctypes.c_void_p).value or 0
        count, symbols = len(values), plan.symbol_words
        table = [count, count + len(symbols), id(np.ndarray), entry, ready.blocks[0], len(plan.pairs)]
        table += [address_of(words(symbols)), pool.NEVER]
        for x in values:
            table += [id(x.dtype), x.ndim, x.flags.num, address_of(words(x.shape)), address_of(words(x.strides)), 0]
        for i, j in plan.pairs:
            table += [i, j, plan.spans[i], plan.spans[j]]
        self.asked, self.plan, self.function = asked, plan, quick_function()
        self._table, self._keep = address_of(words(table)), keep
        self._scratch, self._left = ready.program.artifact.entries[0].scratch_bytes, ROUNDS

    def __call__(self, values: tuple[Any, ...]) -> bool:
        lane = caller_lane()
        if self._left <= 0 or lane.capacity < self._scratch:
            return False
        self._left -= 1
        return bool(self.function(values, self._table, lane.address) == 0)
