"""Compiles reducers: contributions are queued while a T.Parallel runs, and applied in row-major order at its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.conversions import Converter, converter
from tiledsl.dtypes import DType
from tiledsl.errors import TileIndexError
from tiledsl.interp.atomic import apply_lanes
from tiledsl.interp.memory import in_order
from tiledsl.interp.scope import TRACKER, Env, Fn, Scope
from tiledsl.interp.shadow import Shadowed, casting, lift
from tiledsl.ir import Buffer, ReducerOp, arithmetic

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Reducers"]

_PARTIALS = 16


@dataclass
class _State:
    """One reducer: where its partials lie (axis 0: the partial), the queue of the running nest, how it combines."""

    partials: int
    queue: int
    acc: DType
    identity: Any
    combine: Callable[[Any, Any], Any]
    additive: bool
    flushes: set[int] = field(default_factory=set)  # the nests that apply its queue at their end

    def start(self, env: Env, data: Any) -> None:
        """No contributions."""
        partials = np.full((_PARTIALS, *data.shape), self.identity, self.acc.numpy)
        env[self.partials] = lift(partials) if isinstance(data, Shadowed) else partials
        env[self.queue] = []


@dataclass(eq=False)
class Reducers:
    """The compiler of the reducers of one kernel."""

    scope: Scope
    expressions: Expressions
    states: dict[Buffer, _State] = field(default_factory=dict)

    def compile(self, s: ReducerOp) -> Fn:
        """One step: init, update or finalize."""
        state = self.states.get(s.buffer)
        if state is None:
            acc = arithmetic.accumulator(s.buffer.dtype)
            combine = arithmetic.binary(arithmetic.combining(s.op), acc, True)
            assert combine is not None
            identity = arithmetic.identity(s.op, acc)
            state = self.states[s.buffer] = _State(
                self.scope.new_slot(), self.scope.new_slot(), acc, identity, combine, s.op == "sum"
            )  # fmt: skip
        return {"init": self._init, "update": self._update, "finalize": self._finalize}[s.action](s, state)

    def converter(self, src: DType, dst: DType) -> Converter:
        """The conversion of arrays, shadowed ones included."""
        return casting(src, dst) if self.scope.options.shadow else converter(src, dst)

    def _init(self, s: ReducerOp, state: _State) -> Fn:
        slot, buffer = self.scope.slot(s.buffer), s.buffer
        assert s.value is not None
        value = self.expressions.compile(s.value)
        tracks, report = self.scope.options.tracks, self.scope.reporter(TileIndexError)

        def init(env: Env, mask: Any) -> Any:
            data = env[slot]
            before = data.copy()
            data[...] = value(env, None)
            state.start(env, data)
            if tracks:
                env[TRACKER].write_view(buffer, env, data, before, report)
            return mask

        return init

    def _update(self, s: ReducerOp, state: _State) -> Fn:
        memory, nest = self.expressions.memory, self.scope.nest
        access = memory.access(s)
        assert s.value is not None
        value = self.expressions.compile(s.value)
        lane = None if s.lane is None else self.expressions.index(s.lane)
        spread = s.op == "sum" and s.buffer.dtype.is_float  # elsewhere the order does not show
        widen = self.converter(s.buffer.dtype, state.acc)
        storage, tracks = s.buffer.dtype.numpy, self.scope.options.tracks
        if nest is not None and not nest.threads and nest.shape_slot not in state.flushes:
            state.flushes.add(nest.shape_slot)
            nest.after.append(lambda env: _flush(env, state))

        def update(env: Env, mask: Any) -> Any:
            data = env[access.slot]
            at, good = memory.touched(access, env, mask)
            shape = () if nest is None else env[nest.shape_slot]
            on_all, flat = in_order(at, good, shape)
            if tracks:
                env[TRACKER].atomic(s.buffer, env, data, flat, True, access.fail)
            if env[state.queue] is None:  # the start value is undefined: nobody gave one
                state.start(env, data)
            part = np.broadcast_to(0 if lane is None or not spread else lane(env, mask), shape)[on_all] % _PARTIALS
            given = np.broadcast_to(np.asanyarray(value(env, mask), storage), shape)[on_all]
            env[state.queue].append((np.flatnonzero(on_all), (part, *flat), widen(given)))
            if nest is None or nest.threads:
                _flush(env, state)
            return mask

        return update

    def _finalize(self, s: ReducerOp, state: _State) -> Fn:
        slot = self.scope.slot(s.buffer)
        widen, narrow = self.converter(s.buffer.dtype, state.acc), self.converter(state.acc, s.buffer.dtype)

        def finalize(env: Env, mask: Any) -> Any:
            data = env[slot]
            if env[state.queue] is None:
                state.start(env, data)
            partials = env[state.partials]
            total = arithmetic.combine_lanes(partials, state.combine)
            data[...] = narrow(state.combine(widen(data), total))
            partials[...] = state.identity
            return mask

        return finalize


def _flush(env: Env, state: _State) -> None:
    """Applies what the lanes of a nest have contributed: lane after lane, each in the order of its program."""
    queue = env[state.queue]
    if not queue:
        return
    order = np.argsort(np.concatenate([lanes for lanes, _, _ in queue]), kind="stable")
    at = tuple(np.concatenate(parts)[order] for parts in zip(*(at for _, at, _ in queue), strict=True))
    given = np.concatenate([values for _, _, values in queue])[order]
    apply_lanes(env[state.partials], at, given, state.combine, state.additive, False)
    queue.clear()
