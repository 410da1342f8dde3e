"""Small kernels of CUDA text, built together and run on the emulator over arrays; bit equality."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tiledsl.backends.cuda_emulator import toolchain
from tiledsl.backends.cuda_emulator.machine import Argument, Options, Outcome, launch, word

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

    def __call__(self, name: str, *args: Any, blocks: int = 1, threads: int = 32, check: bool = False) -> Outcome:
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
        return outcome

    def map(self, name: str, result: Any, *args: Array) -> Array:
        """result dtype; the kernel's parameters are inputs, output, count; each thread takes every 4096th element."""
        n = len(args[0])
        out = np.zeros(n, result)
        self(name, *args, out, np.int32(n), blocks=32, threads=128)
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
