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
    """For one kernel without prints, asserts or workspaces, on NumPy arrays that do not overlap, that is done before
    another thread would be awake; else None. Made once, since that takes as long as some calls."""
    if len(ready.paces) != 1 or not 0.0 < ready.paces[0].ns_per_block * ready.blocks[0] < pool.WORTH_WAKING_NS:
        return None
    if ready.quick is None:
        program = ready.program
        held = (
            ready.sites or ready.workspaces or program.artifact.entries[0].waits or plan.ready.get(False) is not ready
        )
        arrays = bool(values) and all(type(x) is np.ndarray for x in values)
        able = not held and arrays and type(program.launchable) is CompiledFunction and _able()
        ready.quick = Quick(asked, plan, ready, values) if able else False
    if ready.quick:
        ready.quick.left = ROUNDS
    return ready.quick or None


@cache
def _able() -> bool:
    from tiledsl.backends.cpu.quick import layout_holds

    return layout_holds()


class Quick:
    """`quick(asked, values)` is True when the call is done, False when it has to be made in the ordinary way."""

    __slots__ = ("_keep", "_scratch", "_table", "asked", "function", "left", "plan")

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
        self._scratch, self.left = ready.program.artifact.entries[0].scratch_bytes, ROUNDS

    def __call__(self, values: tuple[Any, ...]) -> bool:
        lane = caller_lane()
        if self.left <= 0 or lane.capacity < self._scratch:
            return False
        self.left -= 1
        done: bool = self.function(values, self._table, lane.address) == 0
        return done
