"""From the author's tile stage to the loop stage that CPU printers take: the pass list, in order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.passes.apply_layouts import ApplyLayouts
from tiledsl.passes.expand_moves import ExpandMoves
from tiledsl.passes.explain_debug import ExplainDebug
from tiledsl.passes.fold import Fold
from tiledsl.passes.fuse_nests import FuseNests
from tiledsl.passes.guard_bounds import GuardBounds
from tiledsl.passes.order_shared import OrderShared
from tiledsl.passes.pipeline import Pass
from tiledsl.passes.private_locals import PrivateLocals

from .grid_barriers import SplitGrid
from .hoist import HoistPacks
from .lower import Lower
from .spread import SpreadThreads
from .storage import packed_buffers
from .unpack import UnpackOperands
from .waits import SpinWaits

__all__ = ["cpu_pipeline"]


@dataclass(frozen=True)
class _ExpandUnpacked:
    """expand_moves, except for moves into tiles that are kept packed for gemm: there the copy is the packing."""

    name: ClassVar[str] = "expand_unpacked_moves"

    def __call__(self, function: ir.Function) -> ir.Function:
        return ExpandMoves(keep=packed_buffers(function))(function)


def cpu_pipeline() -> tuple[Pass, ...]:
    """The passes.

    Prints and asserts learn where they are while loops are still the author's. Iterations of a nest get own copies
    of per-thread arrays that they write. Barriers that thread-level code lacks
    are put in; then threads become loops, and so do waits for other blocks; a barrier of the grid ends a kernel.
    Constants fold, so that extents and guards are as simple as they can be. Packing that blocks would repeat moves out
    of the grid. Copies become nests. Then each access is proved or guarded, tensors with a layout of their own are
    addressed as they lie in memory, nests over one tile become one, and the statements are lowered one by one.
    """
    threads = (PrivateLocals(), OrderShared(), SpreadThreads(), SplitGrid(), SpinWaits())
    first = (ExplainDebug(), *threads, Fold(), UnpackOperands(), HoistPacks())
    return (*first, _ExpandUnpacked(), GuardBounds(checked=True), ApplyLayouts(), Fold(), FuseNests(), Lower())
