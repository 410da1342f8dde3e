"""Whole programs: kernels as people write them, each beside a reference that knows nothing of tiles.

A program is a function that makes inputs, runs its kernels on them and returns pairs (what they gave, what an
independent formula gives). Kernels are called without a target: the tests choose it from outside.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Pairs = list[tuple[Array, Array]]


@dataclass(frozen=True)
class Program:
    """run(rng) -> pairs of results and references. error: the largest |result - reference| relative to the largest
    |reference|; 0 means equal. ordered: every target gives the same bits (not so with float atomics)."""

    name: str
    run: Callable[[np.random.Generator], Pairs]
    error: float
    ordered: bool


PROGRAMS: dict[str, Program] = {}

# Errors relative to the largest result: a few units in the last place of what is stored.
F32, F16, BF16 = 2e-5, 2e-3, 1.6e-2


def program(error: float = F32, ordered: bool = True) -> Callable[[Callable[..., Pairs]], Callable[..., Pairs]]:
    """Register a program under the name of its function."""

    def register(run: Callable[..., Pairs]) -> Callable[..., Pairs]:
        assert run.__name__ not in PROGRAMS, f"two programs are called {run.__name__}"
        PROGRAMS[run.__name__] = Program(run.__name__, run, error, ordered)
        return run

    return register


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Array:
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def wide(*arrays: Array) -> Any:
    """The arrays in double precision."""
    found = [a.astype(np.float64) for a in arrays]
    return found[0] if len(found) == 1 else found
