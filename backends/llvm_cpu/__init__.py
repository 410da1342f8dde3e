"""The target "llvm": loop stage -> LLVM IR -> object code, by llvmlite alone.

The same lowering and the same emitters as "numba", without Numba between: compilation takes a fraction of the time.
"""

from __future__ import annotations

from tiledsl import ir
from tiledsl.backend import Artifact, Target
from tiledsl.backends.cpu.target import CpuBackend

__all__ = ["LlvmCpu", "backend"]


class LlvmCpu(CpuBackend):
    """The backend object. The artifact's source is the LLVM IR before optimisation, with the author's lines."""

    name = "llvm"
    printer = "llvm_cpu"
    packages = ("llvmlite",)

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        from tiledsl.backends.cpu.native import compile_module
        from tiledsl.backends.llvm_cpu.kernel import emit_function

        cpu = self.cpu(target)
        module, symbols, sites = emit_function(function, cpu)
        code = compile_module([module], cpu)
        return Artifact.of(function, str(module), symbols=symbols, code=code, sites=sites)


backend = LlvmCpu()
