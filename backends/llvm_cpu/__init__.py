"""The target "llvm": loop stage -> LLVM IR -> object code, by llvmlite alone.

The same lowering and the same emitters as "numba", without Numba between: compilation takes a fraction of the time.
"""

from __future__ import annotations

from typing import Any

from tiledsl import ir
from tiledsl.backends.cpu.target import CpuBackend, Modules

__all__ = ["LlvmCpu", "backend"]


class LlvmCpu(CpuBackend):
    """The backend object. The artifact's source is the LLVM IR before optimisation, with the author's lines."""

    name = "llvm"
    printer = "llvm_cpu"
    packages = ("llvmlite",)

    def modules(self, function: ir.Function, cpu: Any) -> Modules:
        from tiledsl.backends.llvm_cpu.kernel import emit_function

        module, symbols, sites = emit_function(function, cpu)
        return Modules(str(module), [module], symbols, sites)


backend = LlvmCpu()
