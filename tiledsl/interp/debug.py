"""Compiles T.print, T.device_assert, T.assume and breakpoint()."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.errors import TileIndexError, TileRuntimeError
from tiledsl.interp.scope import Env, Fn, Scope, of_lane
from tiledsl.ir import Buffer, Debug, Expr

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Debugs"]


@dataclass(eq=False)
class Debugs:
    """The compiler of debug statements of one kernel."""

    scope: Scope
    expressions: Expressions

    def compile(self, s: Debug) -> Fn:
        """The closure of a Debug statement."""
        if s.kind == "print":
            return self._print(s)
        if s.kind == "breakpoint":
            return self._breakpoint()
        if s.kind == "assume" and not self.scope.options.tracks:
            return lambda env, mask: mask
        cond_expr = s.values[0]
        assert isinstance(cond_expr, Expr)
        cond = self.expressions.compile(cond_expr)
        fail = self._failure(s)

        def check(env: Env, mask: Any) -> Any:
            bad = np.logical_not(cond(env, mask)) if mask is None else mask & np.logical_not(cond(env, mask))
            if np.any(bad):
                lane = tuple(int(i) for i in np.argwhere(bad)[0]) if np.ndim(bad) else None
                raise fail(env, mask, lane)
            return mask

        return check

    def _failure(self, s: Debug) -> Callable[[Env, Any, tuple[int, ...] | None], Exception]:
        """What a condition that does not hold raises. A test that `guard_bounds` put in has its whole message."""
        loc, report = self.scope.where, self.scope.reporter(TileRuntimeError)
        if s.kind == "bounds":
            shown = [self.expressions.compile(v) for v in s.values[1:] if isinstance(v, Expr)]

            def out_of_range(env: Env, mask: Any, lane: tuple[int, ...] | None) -> Exception:
                values = [of_lane(v, lane or ()) if np.ndim(v) else v for v in (f(env, mask) for f in shown)]
                message, *notes, help = s.message.format(*values).split("\n")
                return TileIndexError(message, loc, tuple(notes), help)

            return out_of_range
        what = "device_assert failed" if s.kind == "assert" else "T.assume does not hold"
        message = f"{what}: {s.message}" if s.message else what
        return lambda env, mask, lane: report(env, message, lane=lane)

    def _print(self, s: Debug) -> Fn:
        """One line per call; in T.Parallel one per lane that is on, in row-major order. Threads print what differs
        between them each, and what does not once (language.md 0.3)."""
        parts: list[tuple[Fn, bool]] = []
        for v in s.values:
            if isinstance(v, Buffer):
                parts.append((_slot(self.scope.slot(v)), self.scope.is_private(v)))
            else:
                parts.append((self.expressions.compile(v), self.scope.varies(v)))
        nest = self.scope.nest
        head = [s.message] if s.message else []

        def show(env: Env, mask: Any) -> Any:
            values = [(f(env, mask), lanes) for f, lanes in parts]
            if nest is None or (nest.threads and not any(lanes for _, lanes in values)):
                print(*head, *(v for v, _ in values))
                return mask
            shape = env[nest.shape_slot]
            on = np.broadcast_to(True if mask is None else mask, shape)
            for lane in zip(*np.nonzero(on), strict=True):
                print(*head, *(of_lane(v, lane) if lanes else v for v, lanes in values))
            return mask

        return show

    def _breakpoint(self) -> Fn:
        names = [(key.name, slot) for key, slot in self.scope.slots.items()]

        def stop(env: Env, mask: Any) -> Any:
            values = {name: env[slot] for name, slot in names}  # what the author sees: buffers and variables
            breakpoint()  # noqa: T100 - the author asked for it
            del values
            return mask

        return stop


def _slot(slot: int) -> Fn:
    return lambda env, mask: env[slot]
