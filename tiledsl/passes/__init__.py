"""Passes: pure functions from Function to Function, one per file."""

from tiledsl.passes.expand_moves import ExpandMoves
from tiledsl.passes.fold import Fold
from tiledsl.passes.guard_bounds import GuardBounds

__all__ = ["ExpandMoves", "Fold", "GuardBounds"]
