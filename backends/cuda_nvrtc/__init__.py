"""The target "cuda": CUDA C++ text, compiled by NVRTC, launched through the driver. Not yet run on a GPU.

Text (`kernel.get_kernel_source(target="cuda:sm_90a")`) can be had on any machine, cubins where NVRTC is installed, and
calls where there is a GPU. Without an architecture the GPU's own is meant, and sm_80 where there is no GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from tiledsl import ir
from tiledsl.backend import Artifact, Availability, Capabilities, Target
from tiledsl.backends.cuda_nvrtc import compile as nvrtc
from tiledsl.backends.cuda_nvrtc.driver import default_driver, driver_problem
from tiledsl.backends.cuda_nvrtc.function import CudaFunction
from tiledsl.backends.simt.launching import artifact_of, joined, sources
from tiledsl.backends.simt.shared import ARCHS
from tiledsl.dtypes import SCALARS
from tiledsl.passes.pipeline import Pass

__all__ = ["CudaNvrtc", "backend"]


@cache
def _own_arch() -> str:
    if driver_problem():
        return "sm_80"
    driver = default_driver()
    return driver.arch(driver.activate())


class CudaNvrtc:
    """The backend object."""

    name = "cuda"

    def probe(self) -> Availability:
        if find_spec("tiledsl.backends.simt.lower") is None:
            return Availability(False, "this version cannot lower kernels to CUDA C++ yet")
        reason = nvrtc.missing()
        if reason:
            return Availability(False, reason, nvrtc.HELP, text=True)
        reason = driver_problem()
        if reason:
            help = (
                'use "cuda-emulator" or a CPU target here; get_kernel_source(target="cuda:sm_90a") works all the same'
            )
            return Availability(False, reason, help, text=True)
        return Availability(True, f"NVRTC {nvrtc.nvrtc_version()}, {_own_arch()}")

    def capabilities(self, target: Target) -> Capabilities:
        return Capabilities(dtypes=SCALARS, lines=True, archs=ARCHS, arch=target.arch or _own_arch())

    def pipeline(self, target: Target) -> Sequence[Pass]:
        from tiledsl.backends.simt.pipeline import simt_pipeline

        return simt_pipeline(target.arch or _own_arch())

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        """Text, and a cubin where NVRTC is installed."""
        from tiledsl.backends.simt.lower import lower

        arch = target.arch or _own_arch()
        nvrtc.capability(arch)
        program = lower(function, arch)
        code = b""
        if not nvrtc.missing():
            code = nvrtc.compile_text(joined(program), arch).cubin
        return artifact_of(program, code, arch=arch)

    def load(self, artifact: Artifact) -> CudaFunction:
        return CudaFunction(artifact)

    def version(self, target: Target) -> str:
        return f"NVRTC {nvrtc.nvrtc_version()}, {sources(Path(__file__).parent)}, {target.arch or _own_arch()}"


backend = CudaNvrtc()
