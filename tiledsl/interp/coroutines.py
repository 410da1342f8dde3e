"""Coroutines: groups of threads, and blocks, that wait for each other. One runs at a time, in a fixed order.

Each has a thread of the operating system, so that it can stop in the middle of nested closures; they hand a baton
around. The first in the list that can go on does: a kernel whose waits are satisfied in order runs as if it had none.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence

import numpy as np

from tiledsl.errors import TileError, TileRuntimeError

__all__ = ["Scheduler"]

_SHOWN = 6  # waiting groups that a deadlock's message lists


class _Abandoned(BaseException):
    """Unwinds a task that nobody will resume."""


class _Task:
    def __init__(self, job: Callable[[], None], scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.ready: Callable[[], bool] | None = None  # None: it can go on
        self.describe: Callable[[], TileError] | None = None
        self.error: BaseException | None = None
        self.done = self.abandoned = self.started = False
        self.go = threading.Semaphore(0)
        context = contextvars.copy_context()
        self.thread = threading.Thread(target=lambda: context.run(self._run, job), daemon=True)

    def _run(self, job: Callable[[], None]) -> None:
        self.go.acquire()
        try:
            if not self.abandoned:
                with np.errstate(all="ignore"):
                    job()
        except _Abandoned:
            pass
        except BaseException as e:
            self.error = e
        self.done = True
        self.scheduler.back.release()

    def resume(self) -> None:
        """Runs it until it waits or ends."""
        if not self.started:
            self.started = True
            self.thread.start()
        self.ready = None
        self.go.release()
        self.scheduler.back.acquire()
        if self.done:
            self.thread.join()


class Scheduler:
    """The tasks of one launch. blocks: how many blocks it has."""

    def __init__(self, blocks: int) -> None:
        self.blocks = blocks
        self.tasks: list[_Task] = []
        self.current: _Task | None = None
        self.back = threading.Semaphore(0)
        self.arrived: dict[object, int] = {}  # at barriers: how many came so far

    def run(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Runs all jobs to their end. Raises what one of them raises, and TileRuntimeError for a deadlock."""
        self.tasks = [_Task(job, self) for job in jobs]
        try:
            at = 0
            while self.tasks:
                if at == len(self.tasks):
                    raise self._deadlock()
                task = self.tasks[at]
                if task.ready is not None and not task.ready():
                    at += 1
                    continue
                self.current = task
                task.resume()
                if task.error is not None:
                    raise task.error
                if task.done:
                    self.tasks.remove(task)
                at = 0
        finally:
            for task in self.tasks:
                if task.started and not task.done:
                    task.abandoned = True
                    task.resume()

    def wait(self, ready: Callable[[], bool], describe: Callable[[], TileError] | None = None) -> None:
        """Called by a task: goes on when ready() holds. describe: says who waits where, if that never happens."""
        if ready():
            return
        self._pause(ready, describe)

    def turn(self) -> None:
        """Called by a task that looks again and again for what others change: they go on first."""
        if len(self.tasks) > 1:
            assert self.current is not None
            self.tasks.remove(self.current)
            self.tasks.append(self.current)
            self._pause(None, None)

    def _pause(self, ready: Callable[[], bool] | None, describe: Callable[[], TileError] | None) -> None:
        task = self.current
        assert task is not None
        task.ready, task.describe = ready, describe
        self.back.release()
        task.go.acquire()
        if task.abandoned:
            raise _Abandoned

    def fork(self, jobs: Sequence[Callable[[], None]]) -> None:
        """Called by a task: runs the jobs as tasks of their own, and goes on when all have ended."""
        assert self.current is not None
        children = [_Task(job, self) for job in jobs]
        at = self.tasks.index(self.current) + 1
        self.tasks[at:at] = children
        self.wait(lambda: all(c.done for c in children))

    def meet(self, key: object, count: int, who: int, describe: Callable[[], TileError]) -> None:
        """Called by a task: `who` more have come to a barrier that opens for each `count`."""
        before = self.arrived.get(key, 0)
        self.arrived[key] = before + who
        round_ = (before // count + 1) * count
        self.wait(lambda: self.arrived[key] >= round_, describe)

    def _deadlock(self) -> TileError:
        waiting = [task.describe() for task in self.tasks if task.describe is not None]
        first = waiting[0]
        others = [f"{e.message}, at {e.loc} {' '.join(e.notes[:1])}".rstrip() for e in waiting[1 : _SHOWN + 1]]
        more = [f"and {len(waiting) - _SHOWN - 1} more"] if len(waiting) > _SHOWN + 1 else []
        return TileRuntimeError(f"deadlock: {first.message}", first.loc, (*first.notes, *others, *more), first.help)
