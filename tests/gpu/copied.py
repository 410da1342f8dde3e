"""The target "cuda-copied": what "cuda" does, on arrays of the host, which are copied to the GPU and back.

So every test that compares targets runs on a GPU unchanged (conftest.py knows the name). "cuda-copied:sm_70" launches
text without tensor cores and asynchronous copies: its sums have the order of the language, so that bits are compared.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from gpu.machine import Machine, machine, problem
from tiledsl import ir
from tiledsl.analysis.effects import written
from tiledsl.backend import Artifact, Availability, Call, Capabilities, Target
from tiledsl.backends.cuda_nvrtc.function import CudaFunction
from tiledsl.backends.simt.launching import artifact_of, joined
from tiledsl.backends.simt.lower import lower
from tiledsl.backends.simt.pipeline import simt_pipeline
from tiledsl.backends.simt.shared import ARCHS
from tiledsl.dtypes import SCALARS
from tiledsl.ir.walk import walk
from tiledsl.passes.pipeline import Pass

__all__ = ["backend"]


class CopiedFunction:
    """The Launchable: arrays that overlap stay together, and come back where the kernel writes them."""

    def __init__(self, artifact: Artifact, gpu: Machine) -> None:
        self._function, self._stored, self._gpu = CudaFunction(artifact, gpu.api), artifact.meta["stored"], gpu

    def __call__(self, call: Call, *, stream: Any = None, device: Any = None) -> None:
        gpu, words = self._gpu, list(struct.unpack(f"{len(call.args) // 8}Q", call.args))
        gpu.api.activate(gpu.ordinal)
        arrays = []  # first byte, end, parameter
        for i, (p, a) in enumerate(zip(call.function.params, call.arrays, strict=True)):
            if p.buffer is not None and a is not None and a.size:
                span = sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)) + a.itemsize
                arrays.append((words[i], words[i] + span, i))
        groups: list[list[tuple[int, int, int]]] = []
        for one in sorted(arrays):
            if groups and one[0] < max(end for _, end, _ in groups[-1]):
                groups[-1].append(one)
            else:
                groups.append([one])
        made = []
        try:
            for group in groups:
                first, size = group[0][0], max(end for _, end, _ in group) - group[0][0]
                there = gpu.upload(first, size)
                made.append((first, there, size, any(i in self._stored for _, _, i in group)))
                for address, _, i in group:
                    words[i] = there + address - first
            args = struct.pack(f"{len(words)}Q", *words)
            self._function(SimpleNamespace(function=call.function, values=[], args=args, ring=call.ring, arrays=[]))
            gpu.api.call("cuCtxSynchronize")
            for first, there, size, stored in made:
                if stored:
                    gpu.download(first, there, size)
        finally:
            for first, there, _, _ in made:
                gpu.free(there, first)


class CopiedCuda:
    """The backend object."""

    name = "cuda-copied"

    def probe(self) -> Availability:
        return Availability(not problem(), problem())

    def capabilities(self, target: Target) -> Capabilities:
        arch = target.arch or machine().arch
        return Capabilities(dtypes=SCALARS, cacheable=False, lines=True, archs=ARCHS, arch=arch)

    def pipeline(self, target: Target) -> Sequence[Pass]:
        return simt_pipeline(target.arch or machine().arch)

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        gpu = machine()
        program = lower(function, target.arch or gpu.arch)
        nodes = (n for k in program.function.kernels for n in walk(k) if isinstance(n, ir.Buffer))
        if any(b.scope == "global" and b.base is not None for b in nodes):
            pytest.skip("a kernel of addresses: they would be the host's")
        code = gpu.compile(joined(program), [k.name for k in program.kernels])
        stores = written(function)
        stored = [i for i, p in enumerate(function.params) if p.buffer is not None and p.buffer.root in stores]
        return artifact_of(program, code, arch=gpu.arch, stored=stored)

    def load(self, artifact: Artifact) -> CopiedFunction:
        return CopiedFunction(artifact, machine())

    def version(self, target: Target) -> str:
        return f"copied to {machine().name}"


backend = CopiedCuda()
