"""From the author's tile stage to the loop stage that CPU printers take: the pass list, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiledsl import ir
from tiledsl.passes.expand_moves import ExpandMoves
from tiledsl.passes.fold import Fold
from tiledsl.passes.guard_bounds import GuardBounds

from .lower import Lower
from .storage import packed_buffers

__all__ = ["cpu_passes", "cpu_pipeline"]

Pass = Callable[[ir.Function], ir.Function]


def cpu_passes(function: ir.Function) -> tuple[Any, ...]:
    """The passes for one function.

    Constants fold first, so that extents and guards are as simple as they can be. Copies become nests, except those
    that fill tiles kept packed for gemm (the copy is the packing). Then every access is proved or guarded, and the
    statements are lowered one by one.
    """
    return (Fold(), ExpandMoves(keep=packed_buffers(function)), GuardBounds(), Fold(), Lower())


@dataclass(frozen=True)
class _ExpandUnpackedMoves:
    """ExpandMoves for all but the copies that fill tiles kept packed in this function."""

    name = "expand_moves"

    def __call__(self, function: ir.Function) -> ir.Function:
        return ExpandMoves(keep=packed_buffers(function))(function)


def cpu_pipeline() -> tuple[Any, ...]:
    """The same passes for any function, as a backend hands them out."""
    return (Fold(), _ExpandUnpackedMoves(), GuardBounds(), Fold(), Lower())
