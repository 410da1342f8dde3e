"""From the author's tile stage to the thread stage that the CUDA printer takes: the pass list, in order."""

from __future__ import annotations

from tiledsl.passes.apply_layouts import ApplyLayouts
from tiledsl.passes.expand_moves import ExpandMoves
from tiledsl.passes.explain_debug import ExplainDebug
from tiledsl.passes.fold import Fold
from tiledsl.passes.guard_bounds import GuardBounds
from tiledsl.passes.pipeline import Pass
from tiledsl.passes.private_locals import PrivateLocals

from .apart import SpreadApart
from .lower_threads import LowerThreads
from .order import OrderThreads
from .place import PlaceFragments
from .reuse import ReuseTiles
from .stages import PipelineLoops

__all__ = ["simt_pipeline"]


def simt_pipeline(arch: str = "") -> tuple[Pass, ...]:
    """The passes. arch: "sm_90a"; without one, products are done by multiply-adds.

    Prints and asserts learn where they are while loops are still the author's; storage of each thread that a nest
    writes becomes each iteration's own. Copies become nests, each access is proved or guarded, and tensors with a
    layout of their own are addressed as they lie in memory. Pipelined loops get versions of their tiles. Then it is
    decided which fragments live in registers; what does not fit moves to shared memory, and tiles that are too much for
    it take turns where they can. Barriers go between operations that touch the same memory from different threads, and
    at last operations become what each thread does.
    """
    first = (ExplainDebug(), SpreadApart(), PrivateLocals(apart=True), Fold())
    explicit = (ExpandMoves(), GuardBounds(checked=True), ApplyLayouts(), Fold())
    tiles = (PipelineLoops(arch=arch), PlaceFragments(arch), ReuseTiles(arch=arch))
    return (*first, *explicit, *tiles, OrderThreads(), LowerThreads(), Fold())
