"""Compiles waiting: conditions over memory, barriers of the grid and of groups of threads, and the branches in which
groups of threads wait for each other (language.md 0.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.errors import TileError, TileRuntimeError
from tiledsl.interp.coroutines import Scheduler
from tiledsl.interp.scope import BLOCK, SCHEDULER, TRACKER, Env, Fn, Scope
from tiledsl.ir.stmt import Kernel, Stmt, Sync, Wait
from tiledsl.ir.walk import walk

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Waits", "waits"]

_HELP = "somebody must arrive, or write what is waited for, without waiting for these threads first"


def waits(body: Kernel | Sequence[Stmt]) -> bool:
    """Something in it may have to wait for other groups of threads, or for other blocks."""
    root = body.body if isinstance(body, Kernel) else tuple(body)
    return any(isinstance(n, Wait) or (isinstance(n, Sync) and _meets(n)) for n in walk(root))


def _meets(s: Sync) -> bool:
    return s.scope == "grid" or s.count is not None


@dataclass(eq=False)
class Waits:
    """The compiler of waits of one kernel."""

    scope: Scope
    expressions: Expressions

    def compile(self, s: Wait) -> Fn:
        """Goes on when the condition holds for all threads that are here."""
        if self.scope.nest is None or not self.scope.nest.threads:
            raise self.scope.not_yet("waiting inside T.Parallel")
        options = self.scope.options
        try:  # what is waited for is read like an atomic
            self.scope.options = replace(options, poison=False, conflicts="off")
            cond = self.expressions.compile(s.cond)
        finally:
            self.scope.options = options
        describe = self._describer("waiting for a condition that nobody makes true")

        def wait(env: Env, mask: Any) -> Any:
            def ready() -> bool:
                holds = cond(env, mask)
                if not isinstance(holds, np.ndarray):
                    return bool(holds)
                return bool((holds if mask is None else holds | ~mask).all())

            self._suspended(env, lambda scheduler: scheduler.wait(ready, lambda: describe(env, mask)))
            return mask

        return wait

    def barrier(self, s: Sync) -> Fn:
        """A barrier of all blocks, or of `count` threads of the block."""
        nest, count = self.scope.nest, s.count
        if count is None:
            blocks = self._describer("waiting for the other blocks")

            def grid(env: Env, mask: Any) -> Any:
                total = env[SCHEDULER].blocks
                self._suspended(env, lambda x: x.meet("grid", total, 1, lambda: blocks(env, None)))
                return mask

            return grid
        if nest is None or not nest.threads:
            return lambda env, mask: mask  # all threads are in step
        threads = self._describer(f"waiting until {count} have come")

        def meet(env: Env, mask: Any) -> Any:
            here = int(np.broadcast_to(True if mask is None else mask, env[nest.shape_slot]).sum())
            key = env[BLOCK], s.barrier
            self._suspended(env, lambda x: x.meet(key, count, here, lambda: threads(env, mask)))
            return mask

        return meet

    def branches(self, then: Fn, orelse: Fn) -> Callable[[Env, Any, Any], tuple[Any, Any]]:
        """Both sides of a branch as coroutines; (those who go on of the one side, of the other)."""

        def both(env: Env, yes: Any, no: Any) -> tuple[Any, Any]:
            results: list[Any] = [False, False]

            def side(index: int, f: Fn, mask: Any) -> Callable[[], None]:
                def job() -> None:
                    if tracker is not None:
                        tracker.resume(state)
                    results[index] = f(env, mask)

                return job

            tracker = env[TRACKER]
            state = None if tracker is None else tracker.state()
            jobs = [side(k, f, m) for k, (f, m) in enumerate(((then, yes), (orelse, no))) if m.any()]
            env[SCHEDULER].fork(jobs)
            if tracker is not None:
                tracker.resume(state)
            return results[0], results[1]

        return both

    @staticmethod
    def _suspended(env: Env, wait: Callable[[Scheduler], None]) -> None:
        """Waits; the tracker then knows that what others did before is ordered."""
        tracker = env[TRACKER]
        state = None if tracker is None else tracker.state()
        wait(env[SCHEDULER])
        if tracker is not None:
            tracker.resume(state)
            tracker.barrier()
            tracker.new_launch()

    def _describer(self, message: str) -> Callable[[Env, Any], TileError]:
        report = self.scope.reporter(TileRuntimeError, _HELP)
        nest = self.scope.nest

        def describe(env: Env, mask: Any) -> TileError:
            if nest is None:
                return report(env, f"a block is {message}")
            on = np.broadcast_to(True if mask is None else mask, env[nest.shape_slot])
            lane = None if mask is None else tuple(int(i) for i in np.argwhere(on)[0])
            return report(env, f"{int(on.sum())} threads are {message}", lane=lane)

        return describe
