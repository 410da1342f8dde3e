"""Small kernels of CUDA text, built together and run over arrays: on the emulator, or on a GPU where TILEDSL_GPU asks
for it (`make gpu`); bit equality."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from gpu import recorded

from tiledsl.backends.cuda_emulator import toolchain
from tiledsl.backends.cuda_emulator.machine import Argument, Options, launch, word
from tiledsl.dtypes import as_dtype

Array = np.ndarray[Any, Any]
# The prelude's suffixes of types.
NARROW = {
    "f16": "float16", "bf16": "bfloat16", "e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "e8m0": "float8_e8m0fnu",
    "e2m1": "float4_e2m1fn",
}  # fmt: skip
C_TYPES = {"f32": "float", "f64": "double"}
INTS = {f"{s}{b}": f"{'u' if s == 'u' else ''}int{b}" for s in "iu" for b in (8, 16, 32, 64)}
DTYPES = {**NARROW, **INTS, "f32": "float32", "f64": "float64"}


def c_type(suffix: str) -> str:
    return C_TYPES.get(suffix, f"tl_{suffix}")


class Kernels:
    """Several small kernels of one text, built together; each runs over arrays with one thread per element or warp."""

    def __init__(self, bodies: dict[str, tuple[str, str]]) -> None:
        """bodies: name -> (parameters, body)"""
        self.text = "\n".join(
            f'extern "C" __global__ void __launch_bounds__(128) {name}({parameters}) {{\n'
            f"  int t = (int)(blockIdx.x * blockDim.x + threadIdx.x);\n  {body}\n}}"
            for name, (parameters, body) in bodies.items()
        )
        self.names = list(bodies)
        self.loaded: dict[bool, Any] = {}

    def __call__(
        self, name: str, *args: Any, blocks: int = 1, threads: int = 32, check: bool = False, kept: bool = True
    ) -> None:
        """kept: what a GPU gave for these arguments is recorded, and binding here (not where it may choose)."""
        given = recorded.digest(args)
        if recorded.on_gpu():
            self._on_gpu(name, args, blocks, threads)
        else:
            self._emulated(name, args, blocks, threads, check)
        if kept:
            recorded.meet(name, given, args)

    def _on_gpu(self, name: str, args: Sequence[Any], blocks: int, threads: int) -> None:
        from gpu.machine import machine

        gpu = machine()
        text, names = self.text, self.names
        if int(gpu.arch.strip("sm_af")) < 89:  # no instruction for 8-bit floats
            names = [n for n in names if not re.match(r"m16n8k32_f32", n)]
            text = "\n".join(p for p in re.split(r"(?m)^(?=extern)", text) if any(f" {n}(" in p for n in names))
            if name not in names:
                pytest.skip(f"{gpu.arch} has no {name}")
        if True not in self.loaded:
            self.loaded[True] = gpu.compile(text, names)
        gpu.api.activate(gpu.ordinal)
        function = gpu.api.function(self.loaded[True], gpu.arch, name, 4096, gpu.ordinal)
        arrays = [(i, a.ctypes.data, a.nbytes) for i, a in enumerate(args) if isinstance(a, np.ndarray)]
        words = [0 if isinstance(a, np.ndarray) else word(a) for a in args]
        for i, address, size in arrays:
            words[i] = gpu.upload(address, size)
        gpu.api.launch(function, (blocks, 1, 1), (threads, 1, 1), 4096, 0, words, False)
        gpu.api.call("cuCtxSynchronize")
        for i, address, size in arrays:
            gpu.download(address, words[i], size)
            gpu.free(words[i], address)

    def _emulated(self, name: str, args: Sequence[Any], blocks: int, threads: int, check: bool) -> None:
        if check not in self.loaded:
            code = toolchain.build_kernel(self.text, self.names, watched=check)
            self.loaded[check] = toolchain.load_kernel(code, self.names)
        arguments = [
            Argument(a.ctypes.data, f"arg{i}", a.nbytes, a.itemsize) if isinstance(a, np.ndarray) else Argument(word(a))
            for i, a in enumerate(args)
        ]
        options = Options(order="random", seed=7, check=check)
        outcome = launch(self.loaded[check], name, self.text, arguments, (blocks,), (threads,), 4096, options)
        assert outcome.ended and not outcome.reports, [str(r) for r in outcome.reports]

    def map(self, name: str, result: Any, *args: Array) -> Array:
        """result dtype; the kernel's parameters are inputs, output, count; each thread takes every 4096th element."""
        n = len(args[0])
        out = np.zeros(n, result)
        code = NARROW.get(name.partition("_")[0])
        shown = out.view(as_dtype(code).numpy) if code and out.dtype.kind == "u" else out
        self(name, *args, shown, np.int32(n), blocks=32, threads=128)
        return out


def elementwise(parameters: Sequence[str], result: str, expression: str) -> tuple[str, str]:
    inputs = ", ".join(f"const {c_type(s)}* {v}" for s, v in zip(parameters, "abc", strict=False))
    return f"{inputs}, {c_type(result)}* y, int n", f"for (int i = t; i < n; i += 4096) {{ y[i] = {expression}; }}"


def same(got: Array, want: Array, what: Any = "") -> None:
    """Bit for bit, except that a NaN equals a NaN."""
    with np.errstate(all="ignore"):
        wide = [x.astype(np.float64) if x.dtype.kind not in "iub" else x for x in (got, want)]
    bits = np.dtype(f"u{got.dtype.itemsize}")
    differs = (got.view(bits) != want.view(bits)) & ~((wide[0] != wide[0]) & (wide[1] != wide[1]))
    assert not differs.any(), (what, np.flatnonzero(differs)[:5], got[differs][:5], want[differs][:5])
