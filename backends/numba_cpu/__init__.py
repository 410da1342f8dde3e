"""The target "numba": loop stage -> readable Python in a small dialect -> Numba -> object code.

Only `emit` imports Numba; loading needs llvmlite alone.
"""

from __future__ import annotations

from typing import Any

from tiledsl import ir
from tiledsl.backends.cpu.target import CpuBackend, Modules

__all__ = ["NumbaCpu", "backend"]


class NumbaCpu(CpuBackend):
    """The backend object. The artifact's source is the Python text."""

    name = "numba"
    printer = "numba_cpu"
    lines = True  # its text is shown
    packages = ("numba", "llvmlite")

    def modules(self, function: ir.Function, cpu: Any) -> Modules:
        from tiledsl.backends.numba_cpu.compile import llvm_modules
        from tiledsl.backends.numba_cpu.printer import print_function

        printed = print_function(function)
        return Modules(printed.text, llvm_modules(printed, cpu), printed.symbols, printed.sites)


backend = NumbaCpu()
