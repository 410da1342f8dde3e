"""A minimal driver that compiles a loop-stage function and runs it on NumPy arrays, for tests of the printers."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tiledsl import ir
from tiledsl.backend import Artifact, Target
from tiledsl.backends.cpu.native import load_object
from tiledsl.backends.cpu.target import CpuBackend
from tiledsl.dtypes import as_dtype

__all__ = ["Compiled", "compile_function", "run_loop_function"]

Array = np.ndarray[Any, Any]


@dataclass(eq=False)
class Compiled:
    """A loop-stage function as loaded machine code."""

    function: ir.Function
    artifact: Artifact
    entries: tuple[Any, ...]  # callables (first, last, args address, context address) -> int, one per kernel
    keep: Any

    def run(
        self, words: Sequence[int], grids: Sequence[int], *, first: int = 0, ring: Array | None = None, cancel: int = 0
    ) -> int:
        """Runs every kernel over all its blocks (grids: number of blocks) with argument `words`; the first
        nonzero return value, or 0."""
        args = np.array([w & (1 << 64) - 1 for w in words], np.uint64)
        flag = np.array([cancel], np.int64)
        for kernel, entry, blocks in zip(self.function.kernels, self.entries, grids, strict=True):
            scratch = np.zeros(int(dict(kernel.attrs).get("scratch_bytes", 0)) + 64, np.uint8)
            context = np.zeros(8, np.int64)
            context[0] = scratch.ctypes.data + (-scratch.ctypes.data) % 64
            context[1] = flag.ctypes.data
            context[2] = 0 if ring is None else ring.ctypes.data
            context[5] = 1
            result = entry(first, blocks, args.ctypes.data, context.ctypes.data)
            if result:
                return int(result)
        return 0


def compile_function(function: ir.Function, backend: CpuBackend, arch: str = "") -> Compiled:
    """Compiles and loads a loop-stage function for this machine (or for a lesser `arch` that it can run)."""
    artifact = backend.emit(function, Target(backend.name, arch))
    symbols = [e.symbol for e in artifact.entries]
    loaded = load_object(artifact.code, symbols)
    signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p)
    entries = tuple(signature(loaded.addresses[s]) for s in symbols)
    return Compiled(function, artifact, entries, loaded)


def run_loop_function(
    function: ir.Function,
    args: Sequence[Any],
    symbols: Mapping[ir.Var, int] | None = None,
    *,
    backend: CpuBackend,
    arch: str = "",
    ring: Array | None = None,
) -> int:
    """Runs a loop-stage function on NumPy arrays and Python scalars (in parameter order), in place, on one thread.

    symbols: value of each symbol (default: read off the arrays' shapes where a dimension or stride is the bare symbol).
    Returns the last kernel's result code (0 = done). For tests; the runtime does this properly.
    """
    bound = dict(symbols or {})
    for p, a in zip(function.params, args, strict=True):
        if p.buffer is None:
            continue
        steps = [s // a.itemsize for s in a.strides] if isinstance(a, np.ndarray) else []
        for e, extent in (*zip(p.buffer.shape, a.shape, strict=True), *zip(p.buffer.strides or (), steps)):  # noqa: B905
            if isinstance(e, ir.Var):
                bound.setdefault(e, int(extent))
    env = {**bound, **{p.var: a for p, a in zip(function.params, args, strict=True) if p.var is not None}}
    words = []
    for p, a in zip(function.params, args, strict=True):
        words.append(int(a.ctypes.data) if p.buffer is not None else _word(p.var, a))
    words += [bound[s] for s in function.symbols]
    spaces = [np.zeros([_value(e, env) for e in w.shape], w.dtype.numpy) for w in function.workspaces]
    words += [int(w.ctypes.data) for w in spaces]
    grids = []
    for k in function.kernels:
        blocks = 1
        for e in k.grid:
            blocks *= _value(e, env)
        grids.append(blocks)
    return compile_function(function, backend, arch).run(words, grids, ring=ring)


def _word(var: ir.Var | None, value: Any) -> int:
    """A scalar argument as its word: bits of its own width, integers sign-extended."""
    assert var is not None
    if var.dtype.is_float:
        width = as_dtype(f"uint{var.dtype.bits}").numpy
        return int(np.asarray(value, var.dtype.numpy).view(width))
    return int(value)


def _value(e: ir.Expr, env: Mapping[ir.Var, Any]) -> int:
    from tiledsl.analysis.evaluate import evaluate

    return int(evaluate(e, env))
