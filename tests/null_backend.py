"""A backend that runs nothing: what it costs to write one (at most 60 lines, counted by .ci/budgets.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tiledsl import ir
from tiledsl.backend import Artifact, Availability, Call, Capabilities, Target
from tiledsl.ir.printer import to_text

launches: list[tuple[str, ...]] = []


class NullLaunchable:
    """Remembers the shapes of the arguments, and leaves the outputs as they are."""

    def __call__(self, call: Call, *, stream: Any = None, device: Any = None) -> None:
        launches.append(tuple("x".join(map(str, getattr(a, "shape", ()))) or "scalar" for a in call.arrays))


class NullBackend:
    """The seven members, each as small as it can be."""

    name = "null"

    def probe(self) -> Availability:
        return Availability(True)

    def capabilities(self, target: Target) -> Capabilities:
        return Capabilities(dtypes=frozenset({"float32", "int32"}), cacheable=False)

    def pipeline(self, target: Target) -> Sequence[Callable[[ir.Function], ir.Function]]:
        return ()

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        return Artifact.of(function, to_text(function))

    def load(self, artifact: Artifact) -> NullLaunchable:
        return NullLaunchable()

    def version(self, target: Target) -> str:
        return "1"


backend = NullBackend()
