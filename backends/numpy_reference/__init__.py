"""Target "numpy": the interpreter of the tile stage, which is the meaning of every kernel.

Architectures choose its mode: "numpy" (gemm through BLAS, within a bound), "numpy:exact" (bit for bit what
compiled targets give), "numpy:checked" (exact, and reports races, poison and accesses out of range).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tiledsl import ir
from tiledsl.backend import Artifact, Availability, Call, Capabilities, Target
from tiledsl.dtypes import SCALARS

__all__ = ["NumpyReference", "backend"]


class _Interpreted:
    """Runs the traced function on the call's arrays."""

    def __init__(self, mode: str) -> None:
        from tiledsl.interp import Options

        self.options = {"": Options(), "exact": Options(exact=True), "checked": Options.checked()}[mode]

    def __call__(self, call: Call, *, stream: Any = None, device: Any = None) -> None:
        from tiledsl import interp

        interp.run(call.function, call.arrays, self.options, call.fresh)


class NumpyReference:
    """The backend object: needs no lowering, no compilation and no device."""

    name = "numpy"

    def probe(self) -> Availability:
        return Availability(True, f"NumPy {np.__version__}")

    def capabilities(self, target: Target) -> Capabilities:
        return Capabilities(dtypes=SCALARS, cacheable=False, archs=("exact", "checked"))

    def pipeline(self, target: Target) -> Sequence[Any]:
        return ()

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        from tiledsl.ir.printer import to_text

        return Artifact.of(function, to_text(function), payload=target.arch)

    def load(self, artifact: Artifact) -> _Interpreted:
        return _Interpreted(artifact.payload)

    def version(self, target: Target) -> str:
        return f"interp 1, numpy {np.__version__}"


backend = NumpyReference()
