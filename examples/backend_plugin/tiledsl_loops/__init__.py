"""A complete backend in one file: lowers kernels with tiledsl's CPU passes and interprets the loops that they become.

It is slow, and it is exact: `tiledsl.testing.conformance("loops")` passes. To make it fast, print the lowered function
as code in `emit` and load that code in `load`; nothing else changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiledsl import ir
from tiledsl.backend import Artifact, Availability, Call, Capabilities, Target
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.dtypes import SCALARS
from tiledsl.interp import Options, run
from tiledsl.ir.printer import to_text

__all__ = ["LoopsBackend", "backend"]


class LoopsBackend:
    """The seven members that tiledsl asks for."""

    name = "loops"

    def probe(self) -> Availability:
        """It runs wherever tiledsl does. A backend that needs a compiler or a device says here what is missing."""
        return Availability(True)

    def capabilities(self, target: Target) -> Capabilities:
        # Every dtype: the interpreter has them. The CPU passes pack operands in advance, unless they are told that
        # arguments overlap.
        return Capabilities(SCALARS, facts=frozenset(["aliased"]), cacheable=False)

    def pipeline(self, target: Target) -> Sequence[Callable[[ir.Function], ir.Function]]:
        """From the author's tiles to scalars, vectors of 16 lanes and loops; docs/architecture.md describes them."""
        return cpu_pipeline()

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        """`source` is for people (`kernel.get_kernel_source()`), `payload` is what `load` gets back."""
        return Artifact.of(function, to_text(function), payload=function)

    def load(self, artifact: Artifact) -> Callable[..., None]:
        lowered: ir.Function = artifact.payload

        def launch(call: Call, *, stream: Any = None, device: Any = None) -> None:
            run(lowered, call.arrays, Options(exact=True))

        return launch

    def version(self, target: Target) -> str:
        """Part of every cache key: it changes whenever the same IR would become other code."""
        return "1"


backend = LoopsBackend()
