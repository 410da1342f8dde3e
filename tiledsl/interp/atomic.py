"""Compiles atomics: read-modify-writes of single elements, lanes in row-major order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.interp.memory import in_order
from tiledsl.interp.scope import TRACKER, Env, Fn, Scope
from tiledsl.ir import Atomic, arithmetic

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Atomics", "apply_lanes"]

_OPERATORS = {
    "add": "add",
    "arrive": "add",
    "max": "max",
    "min": "min",
    "and": "bitand",
    "or": "bitor",
    "xor": "bitxor",
}


@dataclass(eq=False)
class Atomics:
    """The compiler of atomics of one kernel."""

    scope: Scope
    expressions: Expressions

    def compile(self, s: Atomic) -> Fn:
        """One read-modify-write; out of range of a global buffer it is skipped and the old value reads 0."""
        memory = self.expressions.memory
        access = memory.access(s)
        value = None if s.value is None else self.expressions.compile(s.value)
        combine = self._combine(s)
        item = not s.buffer.dtype.is_float
        nest = self.scope.nest
        result = None
        if s.result is not None:
            result = self.scope.bind(s.result)
            if nest is not None:
                self.scope.varying.add(s.result)
        tracks = self.scope.options.tracks
        reads = s.result is not None or s.op not in ("store", "exchange")
        storage = s.buffer.dtype.numpy
        additive = s.op in ("add", "arrive") and (s.buffer.dtype.is_int or result is None)

        def atomic(env: Env, mask: Any) -> Any:
            data = env[access.slot]
            at, good = memory.touched(access, env, mask)
            shape: tuple[int, ...] = () if nest is None else env[nest.shape_slot]
            on_all, flat = in_order(at, good, shape)
            operand = (
                None if value is None else np.broadcast_to(np.asanyarray(value(env, mask), storage), shape)[on_all]
            )
            if tracks:
                env[TRACKER].atomic(s.buffer, env, data, flat, reads, access.fail)
            old = apply_lanes(data, flat, operand, combine, additive, result is not None)
            if result is not None:
                before = np.zeros_like(data, shape=shape)
                before[on_all] = old
                env[result] = before if shape else before.item() if item else before[()]
            return mask

        return atomic

    def _combine(self, s: Atomic) -> Callable[[Any, Any], Any] | None:
        """old, operand -> new; None where memory is only read."""
        if s.op == "load":
            return None
        if s.op in ("exchange", "store"):
            return lambda old, new: new
        function = arithmetic.binary(_OPERATORS[s.op], s.buffer.dtype, True) if s.op in _OPERATORS else None
        if function is None:
            raise self.scope.not_yet(f"atomic {s.op} on {s.buffer.dtype}")
        return function


def apply_lanes(
    data: Any, flat: tuple[Any, ...], operand: Any, combine: Callable[[Any, Any], Any] | None, additive: bool,
    wanted: bool,
) -> Any:  # fmt: skip
    """Applies the operation lane after lane; returns the old values where they are wanted."""
    if combine is None:
        return data[flat]
    where = np.ravel_multi_index(flat, data.shape) if flat else np.zeros(1, np.int64)
    if len(where) == 0:
        return data[flat]
    order = np.argsort(where, kind="stable")
    place = where[order]
    fresh = np.r_[True, place[1:] != place[:-1]]
    if fresh.all():  # no element twice
        old = data[flat]
        data[flat] = combine(old, operand)
        return old
    if additive and not wanted:
        np.add.at(data, flat, operand)  # unbuffered: in the order of the lanes, rounding each time
        return None
    if additive:
        return _tickets(data, flat, operand, order, fresh)
    # The n-th touch of each element happens in round n.
    starts = np.flatnonzero(fresh)
    turn_sorted = np.arange(len(place)) - np.repeat(starts, np.diff(np.r_[starts, len(place)]))
    turn = np.empty_like(turn_sorted)
    turn[order] = turn_sorted
    old = np.empty_like(data, shape=(len(where),))
    for n in range(int(turn.max()) + 1):
        now = turn == n
        spot = tuple(i[now] for i in flat)
        old[now] = data[spot]
        data[spot] = combine(old[now], operand[now])
    return old


def _tickets(data: Any, flat: tuple[Any, ...], operand: Any, order: Any, fresh: Any) -> Any:
    """Integer adds: old values are running sums per element (wrapping, hence exact in any order)."""
    added = operand[order]
    before = np.cumsum(added, dtype=data.dtype) - added
    starts = np.flatnonzero(fresh)
    before -= np.repeat(before[starts], np.diff(np.r_[starts, len(added)]))
    old = np.empty_like(before)
    old[order] = before
    old += data[flat]
    np.add.at(data, flat, operand)
    return old
