"""Grids whose blocks wait for each other: every block gets a thread of its own, once all running ones wait.

Blocks start in the order of the grid, so that a few threads do where blocks wait for earlier ones. Whoever waits counts
its rounds; when every thread has been seen waiting since the last block began, the crew doubles. The caller only looks
on, so that an interrupt ends any wait.
"""

from __future__ import annotations

import threading
import time

from tiledsl.runtime.lane import Lane
from tiledsl.runtime.pool import CANCELLED, DONE, STUCK, BlockFunction, Job, thread_count

__all__ = ["MOST", "run_resident"]

MOST = 1024  # blocks that run at once
_LOOK_S = 0.001  # between two looks at the crew
_PATIENCE_S = 10.0  # how long the largest crew may wait, all of it, before the grid is given up


class _Crew:
    """The threads of one grid."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.threads: list[threading.Thread] = []
        self.lanes: list[Lane] = []
        self.seen: list[int] = []  # rounds of each lane at the last turn

    def grow(self, count: int) -> None:
        for worker in range(len(self.threads), count):
            lane = Lane()
            thread = threading.Thread(
                target=self._work, args=(lane, worker), name=f"tiledsl-block-{worker}", daemon=True
            )
            thread.start()
            self.threads.append(thread)
            self.lanes.append(lane)
        self.turn()

    def _work(self, lane: Lane, worker: int) -> None:
        try:
            self.job.drain(lane, worker)
        except BaseException:  # only memory can be missing here
            self.job.stop(CANCELLED)

    def turn(self) -> None:
        self.seen = [lane.rounds for lane in self.lanes]

    def waits(self) -> bool:
        """Every thread has waited since the last turn."""
        return all(lane.rounds > seen for lane, seen in zip(self.lanes, self.seen, strict=True) if lane.busy)


def run_resident(
    function: BlockFunction, blocks: int, args: bytes, *, scratch_bytes: int = 0, ring: int = 0, threads: int = 0
) -> int:
    """Run blocks 0..blocks-1 as `pool.run_grid` does, but so that each goes on although others wait for it.

    threads: how many begin (0 means `thread_count()`). STUCK: more than MOST blocks wait for each other.
    """
    if blocks <= 0:
        return DONE
    job = Job(function, 0, blocks, args, scratch_bytes, ring, 1, min(blocks, MOST))
    crew, most = _Crew(job), min(blocks, MOST)
    try:
        crew.grow(min(threads or thread_count(), most))
        began, since = job.begun, time.monotonic()
        for thread in crew.threads:  # grows meanwhile
            while thread.is_alive():
                thread.join(_LOOK_S)
                if job.begun != began:
                    began, since = job.begun, time.monotonic()
                    crew.turn()
                elif began < blocks - 1 and crew.waits():
                    if len(crew.threads) < most:
                        crew.grow(min(2 * len(crew.threads), most))
                    elif time.monotonic() - since > _PATIENCE_S:
                        job.stop(STUCK)
                    else:
                        crew.turn()
    except BaseException:
        job.abandon()
        raise
    return job.code
