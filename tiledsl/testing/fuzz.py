"""Checks of one generated program: every way to run it must give the same bits (`oracles` says which ways).

The exact interpreter runs first; its result is what all others are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence

from tiledsl.testing.oracles import COMPILING, ORACLES, Case, Mismatch, same_bits
from tiledsl.testing.strategies import Program

__all__ = ["COMPILING", "ORACLES", "Mismatch", "check", "same_bits"]


def check(program: Program, seed: int = 0, oracles: Sequence[str] | None = None, every: bool = False) -> None:
    """Run the program in all ways named (default: those that need no compiler; every: all). Raises Mismatch, or what
    a way to run it raises."""
    names = list(ORACLES) if every else [n for n in ORACLES if n not in COMPILING] if oracles is None else oracles
    case = Case(program, seed)
    assert case.want is not None
    for name in names:
        ORACLES[name](case)
