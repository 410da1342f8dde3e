"""`tilelang.tools`: the analyser counts what a kernel computes and moves; what draws pictures does nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiledsl.compat.notices import notice
from tiledsl.surface import count_work

__all__ = ["AnalysisResult", "Analyzer", "tool"]

_TFLOPS, _GBPS = 989.0, 3350.0  # of the pretended GPU, for products of halves and for its memory


@dataclass(frozen=True)
class AnalysisResult:
    """Operations, bytes of arguments read and written, and from these the time in seconds that a GPU needs at least."""

    total_flops: int
    total_global_bytes: int
    estimated_time: float
    expected_tflops: float
    expected_bandwidth_GBps: float


class Analyzer:
    """`Analyzer.analysis(kernel, arch)`: of a traced function or a compiled kernel without symbolic shapes."""

    def __init__(self, fn: Any, device: Any = None) -> None:
        self.fn, self.device = fn, device

    def calculate(self) -> AnalysisResult:
        """Counts the function."""
        found = count_work(getattr(self.fn, "function", self.fn), {})
        flops, moved = (int(sum(getattr(w, name) for w in found)) for name in ("operations", "moved"))
        time = max(flops / (_TFLOPS * 1e12), moved / (_GBPS * 1e9))
        return AnalysisResult(
            flops, moved, time, flops / time / 1e12 if time else 0.0, moved / time / 1e9 if time else 0.0
        )

    @classmethod
    def analysis(cls, fn: Any, device: Any = None) -> AnalysisResult:
        """What `calculate` gives."""
        return cls(fn, device).calculate()


def tool(name: str) -> Callable[..., None]:
    """A tool whose result is not needed to run."""
    if name.startswith("__"):
        raise AttributeError(name)

    def nothing(*args: Any, **kw: Any) -> None:
        notice(f"tilelang.tools.{name} does nothing here")

    return nothing
