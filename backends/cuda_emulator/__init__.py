"""The target "cuda-emulator": kernels as CUDA C++ text, run by this machine's processor, on request under a checker.

Architectures choose what the text is generated for and how it is run, separated by commas: "cuda-emulator:sm_90a",
"cuda-emulator:sm_80,checked,late,random=3" (`machine.parse_options`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from tiledsl import ir
from tiledsl.analysis.effects import written
from tiledsl.backend import Artifact, Availability, Capabilities, Target
from tiledsl.backends.cuda_emulator import toolchain
from tiledsl.backends.cuda_emulator.function import EmulatedFunction
from tiledsl.backends.cuda_emulator.machine import parse_options
from tiledsl.backends.simt.launching import artifact_of, joined, sources
from tiledsl.backends.simt.shared import ARCHS
from tiledsl.dtypes import SCALARS
from tiledsl.ir.walk import walk
from tiledsl.passes.pipeline import Pass

__all__ = ["CudaEmulator", "backend"]

ARCH = "sm_80"  # what text is generated for when a target names none


def split_arch(target: Target) -> tuple[str, list[str]]:
    """(architecture, options) of a target."""
    arch, *words = target.arch.split(",") if target.arch else [ARCH]
    if not arch.startswith("sm"):
        arch, words = ARCH, [arch, *words]
    return arch, [w for w in words if w]


class CudaEmulator:
    """The backend object: needs a C++ compiler when it emits, and no GPU."""

    name = "cuda-emulator"

    def probe(self) -> Availability:
        if find_spec("tiledsl.backends.simt.lower") is None:
            return Availability(False, "this version cannot lower kernels to CUDA C++ yet")
        found = toolchain.find_compiler(os.environ.get("CXX"))
        if found is None:
            return Availability(False, "no C++ compiler was found", toolchain.HELP)
        return Availability(True, found.version)

    def capabilities(self, target: Target) -> Capabilities:
        arch, words = split_arch(target)
        parse_options(words)
        archs = tuple(",".join([a, *words]) for a in ARCHS) if target.arch.startswith("sm") else None
        return Capabilities(dtypes=SCALARS, lines=True, archs=archs, arch=arch)

    def pipeline(self, target: Target) -> Sequence[Pass]:
        from tiledsl.backends.simt.pipeline import simt_pipeline

        return simt_pipeline(split_arch(target)[0])

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        from tiledsl.backends.simt.lower import lower

        arch, words = split_arch(target)
        options = parse_options(words)
        program = lower(function, arch)
        code = toolchain.build_kernel(joined(program), [k.name for k in program.kernels], watched=options.check)
        stores = written(function)
        stored = [i for i, p in enumerate(function.params) if p.buffer is not None and p.buffer.root in stores]
        nodes = (n for k in program.function.kernels for n in walk(k) if isinstance(n, ir.Buffer))
        pointers = any(b.scope == "global" and b.base is not None for b in nodes)
        return artifact_of(program, code, options=words, stored=stored, pointers=pointers)

    def load(self, artifact: Artifact) -> EmulatedFunction:
        return EmulatedFunction(artifact)

    def version(self, target: Target) -> str:
        return f"emulator {sources(Path(__file__).parent)}, {toolchain.compiler()}"


backend = CudaEmulator()
