"""Compiles waiting: conditions over memory, barriers of the grid and of groups of threads, and the branches in which
groups of threads wait for each other (language.md 0.5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.errors import TileError, TileRuntimeError
from tiledsl.interp.coroutines import Scheduler
from tiledsl.interp.scope import BLOCK, RETURNED, SCHEDULER, STEPS, TRACKER, Env, Fn, Scope
from tiledsl.ir import Alloc, Atomic, Buffer, Collective, Let, Stmt, Sync, Wait

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Waits"]

# (environment, those of the sides, the mask of the first)
Rejoin = Callable[[Env, list[Env], Any], None]

_HELP = "somebody must arrive, or write what is waited for, without waiting for these threads first"


def _union(a: Any, b: Any) -> Any:
    """Two masks of lanes, None or False for nobody."""
    if a is None or a is False:
        return b
    return a if b is None or b is False else a | b


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

    def by_turns(self, body: Fn) -> Fn:
        """Rounds of a loop that may wait for other blocks: after each of them the others go on."""

        def round_(env: Env, mask: Any) -> Any:
            mask = body(env, mask)
            if mask is not False:
                self._suspended(env, lambda scheduler: scheduler.turn(), ordered=False)
            return mask

        return round_

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
            key = env[BLOCK], s.barrier, count  # rounds of different size count apart
            self._suspended(env, lambda x: x.meet(key, count, here, lambda: threads(env, mask)))
            return mask

        return meet

    def branches(
        self, then: Fn, orelse: Fn, rest: Fn, exits: tuple[int, ...], rejoin: Rejoin
    ) -> Callable[[Env, Any, Any], tuple[Any, Any]]:
        """Both sides of a branch, each followed by the rest, as coroutines; (those who go on of the one side, of the
        other). exits: slots of the enclosing loops that say who left them; rejoin: joins what the rest binds."""

        def both(env: Env, yes: Any, no: Any) -> tuple[Any, Any]:
            tracker = env[TRACKER]
            state: Any = None if tracker is None else tracker.state()
            results: list[Any] = [False, False]
            jobs, own = [], []

            def side(index: int, f: Fn, mask: Any, env: Env) -> Callable[[], None]:
                def job() -> None:
                    if tracker is not None:
                        tracker.resume((dict(state[0]), *state[1:]))  # what a side allocates is its own
                    mask_after = f(env, mask)
                    results[index] = mask_after if mask_after is False else rest(env, mask_after)

                return job

            for index, (f, mask) in enumerate(((then, yes), (orelse, no))):
                if mask.any():
                    own.append(list(env))  # a value that both bind in the rest is not the same for both
                    jobs.append(side(index, f, mask, own[-1]))
            steps = env[STEPS]
            env[SCHEDULER].fork(jobs)
            for side_env in own:
                env[STEPS] += side_env[STEPS] - steps
                for slot in (RETURNED, *exits):
                    env[slot] = _union(env[slot], side_env[slot])
            if tracker is not None:
                tracker.resume(state)
            rejoin(env, own, yes)
            return results[0], results[1]

        return both

    def rejoin(self, rest: Sequence[Stmt], views: Callable[[Buffer], Callable[[Env], None]]) -> Rejoin:
        """Of what statements bind for those behind them: the one side's for its threads, the other's for the others."""
        nest, scope = self.scope.nest, self.scope
        slots: list[tuple[int, bool]] = []
        made: list[tuple[Buffer, int, Callable[[Env], None]]] = []
        for s in rest:
            if isinstance(s, Alloc):
                slots.append((scope.slot(s.buffer), scope.is_private(s.buffer)))
                made.append((s.buffer, slots[-1][0], views(s.buffer)))
            elif isinstance(s, Let) or (isinstance(s, (Atomic, Collective)) and s.result is not None):
                slots.append((scope.slot(s.var if isinstance(s, Let) else s.result), True))  # type: ignore[arg-type]

        def join(env: Env, own: list[Env], yes: Any) -> None:
            for slot, per_thread in slots:
                value = env[slot] = own[0][slot]
                if len(own) > 1 and per_thread and any(isinstance(e[slot], np.ndarray) for e in own):
                    assert nest is not None
                    lanes = yes.reshape(yes.shape + (1,) * (np.ndim(value) - nest.rank))
                    env[slot] = np.where(lanes, value, own[1][slot])
            for buffer, slot, bind in made:
                bind(env)
                if env[TRACKER] is not None:
                    env[TRACKER].allocate(buffer, env[slot], written=True)

        return join

    @staticmethod
    def _suspended(env: Env, wait: Callable[[Scheduler], None], ordered: bool = True) -> None:
        """Waits. ordered: the tracker then knows that what others did before does not race."""
        tracker = env[TRACKER]
        state = None if tracker is None else tracker.state()
        wait(env[SCHEDULER])
        if tracker is not None:
            tracker.resume(state)
            if ordered:
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
