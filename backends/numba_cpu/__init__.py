"""The target "numba": loop stage -> readable Python in a small dialect -> Numba -> object code.

`backend` is what the registry finds. For tests: `run_loop_function(function, args, symbols)` runs a loop-stage
function in place on NumPy arrays; `compile_function(function)` gives `.source`, `.code` and `.run(words, grids)`.
Only `emit` imports Numba; loading needs llvmlite alone.
"""

from __future__ import annotations

from typing import Any

from tiledsl import ir
from tiledsl.backend import Artifact, Target
from tiledsl.backends.cpu.target import CpuBackend

__all__ = ["NumbaCpu", "backend", "compile_function", "run_loop_function"]


class NumbaCpu(CpuBackend):
    """The backend object. The artifact's source is the Python text."""

    name = "numba"
    printer = "numba_cpu"
    packages = ("numba", "llvmlite")

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        from tiledsl.backends.numba_cpu.compile import object_code
        from tiledsl.backends.numba_cpu.printer import print_function

        printed = print_function(function)
        code = object_code(printed, self.cpu(target))
        return Artifact.of(function, printed.text, symbols=printed.symbols, code=code, sites=printed.sites)


backend = NumbaCpu()


def __getattr__(name: str) -> Any:
    if name in ("compile_function", "run_loop_function"):
        from tiledsl.backends.numba_cpu import compile as _compile

        return getattr(_compile, name)
    raise AttributeError(name)
