"""What a run of the interpreter can be asked to check, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

__all__ = ["Options", "Result", "ShadowReport", "checked"]


@dataclass(frozen=True)
class Options:
    """How to interpret a function. The default is the `numpy` target: fast, with the always-on bounds checks.

    exact         gemm is the k-ascending fma chain, bit for bit what CPU targets compute (default: BLAS, in a bound)
    poison        reading memory that nobody has written is an error that names the allocation
    bounds        an element access outside a block-local buffer is an error; False: it reads 0, or is skipped
    conflicts     "report": lanes of a T.Parallel, or blocks, that race on an element are an error
    global_oob    "report": an access outside a global buffer is an error, T.copy included
    oob_allowed   names of buffers that "report" leaves alone (tails that are meant to be clipped)
    overflow      int32 overflow inside an index, and integer division by zero, are errors
    block_order   None: x fastest, ascending; else the seed of a shuffled order
    shadow        carry float64 values and error bounds beside every float (see `Result.shadow`)
    count_steps   count Python-level steps (see `Result.steps`)
    """

    exact: bool = False
    poison: bool = False
    bounds: bool = True
    conflicts: str = "off"
    global_oob: str = "ignore"
    oob_allowed: frozenset[str] = frozenset()
    overflow: bool = False
    block_order: int | None = None
    shadow: bool = False
    count_steps: bool = False

    def __post_init__(self) -> None:
        if self.conflicts not in ("off", "report"):
            raise ValueError(f'conflicts is "off" or "report", not {self.conflicts!r}')
        if self.global_oob not in ("ignore", "report"):
            raise ValueError(f'global_oob is "ignore" or "report", not {self.global_oob!r}')
        object.__setattr__(self, "oob_allowed", frozenset(self.oob_allowed))

    @property
    def tracks(self) -> bool:
        """Accesses are recorded cell by cell."""
        return self.poison or self.conflicts == "report"

    @staticmethod
    def checked(**changes: Any) -> Options:
        """Everything that can be checked without forbidding clipped tails, in exact mode."""
        every = Options(exact=True, poison=True, conflicts="report", overflow=True, block_order=0)
        return replace(every, **changes)


checked = Options.checked


@dataclass(frozen=True)
class ShadowReport:
    """One float output beside its float64 shadow.

    value, bound      arrays of the output's shape: float64 value, and how far the output may be from it
    max_error         largest |output - value|
    max_bound         largest bound
    """

    value: np.ndarray[Any, Any]
    bound: np.ndarray[Any, Any]
    max_error: float
    max_bound: float


@dataclass(frozen=True)
class Result:
    """What a run reports.

    blocks   blocks that ran, over all kernels
    steps    Python-level steps (closures called) over all blocks, or None when they were not counted
    doubtful with the shadow: branches and loops that rounding errors may have decided
    shadow   per written float argument (by parameter name), when `Options.shadow` was set
    """

    blocks: int
    steps: int | None = None
    doubtful: int = 0
    shadow: Mapping[str, ShadowReport] = field(default_factory=dict)
