"""A loaded artifact of the emulator: calls become launches, what the machine finds becomes errors of the author."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tiledsl import ir
from tiledsl.backend import Artifact, Call
from tiledsl.backends.cuda_emulator.machine import Argument, launch, parse_options
from tiledsl.backends.cuda_emulator.reports import raise_reports
from tiledsl.backends.cuda_emulator.toolchain import load_kernel
from tiledsl.backends.simt.launching import Launches

__all__ = ["EmulatedFunction"]


class EmulatedFunction:
    """The Launchable: all kernels of an artifact, one after the other, on the emulated machine."""

    def __init__(self, artifact: Artifact) -> None:
        self._launches = Launches(artifact)
        self._options = parse_options(artifact.meta["options"])
        self._kernel = load_kernel(artifact.code, [e.symbol for e in artifact.entries])

    def __call__(self, call: Call, *, stream: Any = None, device: Any = None) -> None:
        launches, ring, options = self._launches, call.ring, self._options
        words = launches.words(call)
        values = launches.values(call, words)
        arguments = self._arguments(call, words, values)
        sizes, first = launches.workspace_bytes(values), len(words) - len(launches.artifact.workspaces)
        for i in launches.artifact.meta["zeroed"]:
            ctypes.memset(words[first + i], 0, sizes[i])
        for number, k in enumerate(launches.kernels):
            chosen = [
                _value(ring.address if ring else 0) if kind == "ring" else arguments[launches.place(call, kind, index)]
                for kind, index, _, _ in k.params
            ]
            if number:  # what the kernels before left behind
                chosen = [replace(a, defined=True) for a in chosen]
            grid = launches.grid(k, values)
            outcome = launch(
                self._kernel,
                k.name,
                launches.artifact.source,
                chosen,
                grid,
                k.block,
                k.shared_bytes,
                options,
                resident=k.waits,
                pointers=launches.artifact.meta["pointers"],
            )
            if ring is not None:
                ring.flush()
            raise_reports(call.function.name, outcome.reports)
            if options.banks:
                for c in outcome.conflicts:
                    if c.wavefronts > c.ideal:
                        print(f"{c.wavefronts} wavefronts where {c.ideal} would do: {c.place}", file=sys.stderr)

    def _arguments(self, call: Call, words: list[int], values: Mapping[ir.Var, int]) -> list[Argument]:
        """One for each word; only checked runs want to know what lies behind addresses."""
        if not self._options.check:
            return [_value(w) for w in words]
        found = [_value(w) for w in words]
        stored = self._launches.artifact.meta["stored"]
        for i, (p, a) in enumerate(zip(call.function.params, call.arrays, strict=True)):
            if p.buffer is not None and a is not None and a.size:
                span = sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)) + a.itemsize
                found[i] = _memory(words[i], p.name, span, a.itemsize, i in stored, i not in call.function.outputs)
        artifact, sizes = self._launches.artifact, self._launches.workspace_bytes(values)
        first = len(words) - len(artifact.workspaces)
        for i, (w, size) in enumerate(zip(artifact.workspaces, sizes, strict=True)):
            if size:
                name, zeroed = f"workspace {i}", i in artifact.meta["zeroed"]
                found[first + i] = _memory(words[first + i], name, size, w.dtype.numpy.itemsize, True, zeroed)
        return found


def _value(word: int) -> Argument:
    return Argument(word & (1 << 64) - 1)


def _memory(word: int, name: str, size: int, granule: int, written: bool, defined: bool) -> Argument:
    return Argument(word & (1 << 64) - 1, name, size, granule, written, defined)
