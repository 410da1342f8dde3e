"""What both CUDA targets do with lowered kernels: artifacts, and the arguments, grids and workspaces of a call."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tiledsl import ir
from tiledsl.analysis.evaluate import evaluate
from tiledsl.backend import Artifact, Call, Entry, Workspace, host_vars
from tiledsl.backends.simt.abi import SimtProgram
from tiledsl.dtypes import DType, as_dtype

__all__ = ["KernelInfo", "Launches", "artifact_of", "joined", "sources"]


def joined(program: SimtProgram) -> str:
    """The text of all kernels, for one compilation: each in a namespace, since helpers may have the same names."""
    if len(program.kernels) == 1:
        return program.kernels[0].text
    return "\n".join(f"namespace {k.name}_ {{\n{k.text}\n}}  // namespace {k.name}_\n" for k in program.kernels)


def artifact_of(program: SimtProgram, code: bytes, **meta: Any) -> Artifact:
    """The artifact of a lowered program. meta: more JSON data of the target's own."""
    function = program.function
    kernels = [
        {
            "params": [[p.kind, p.index, p.dtype.name, p.name] for p in k.params],
            "block": list(k.block),
            "shared": k.shared_bytes,
        }
        for k in program.kernels
    ]
    return Artifact(
        source=joined(program),
        code=code,
        host_vars=host_vars(function),
        entries=tuple(Entry(k.name, k.grid, waits=k.waits) for k in program.kernels),
        workspaces=tuple(Workspace(b.dtype, b.shape) for b in function.workspaces),
        sites=program.sites,
        meta={"kernels": kernels, "zeroed": list(program.zeroed), **meta},
    )


@dataclass(frozen=True)
class KernelInfo:
    """One kernel of an artifact. params: (kind, index, dtype, name) as in `abi.Param`; waits: for other blocks."""

    name: str
    grid: tuple[ir.Expr, ...]
    block: tuple[int, int, int]
    shared_bytes: int
    params: tuple[tuple[str, int, DType, str], ...]
    waits: bool


class Launches:
    """The kernels of an artifact, and what a call's argument words (parameters, symbols, workspaces) mean for them."""

    def __init__(self, artifact: Artifact) -> None:
        self.artifact = artifact
        self.kernels = tuple(
            KernelInfo(
                e.symbol,
                e.grid,
                tuple(k["block"]),
                k["shared"],
                tuple((kind, index, as_dtype(dtype), name) for kind, index, dtype, name in k["params"]),
                e.waits,
            )
            for e, k in zip(artifact.entries, artifact.meta["kernels"], strict=True)
        )

    def words(self, call: Call) -> list[int]:
        return list(struct.unpack(f"{len(call.args) // 8}q", call.args))

    def values(self, call: Call, words: list[int]) -> dict[ir.Var, int]:
        """What grids and workspaces are computed from: integer parameters, then symbols."""
        params = call.function.params
        places = [i for i, p in enumerate(params) if p.var is not None and not p.var.dtype.is_float]
        places += range(len(params), len(params) + len(call.function.symbols))
        return {v: words[i] for v, i in zip(self.artifact.host_vars, places, strict=True)}

    def grid(self, kernel: KernelInfo, values: Mapping[ir.Var, int]) -> tuple[int, ...]:
        return tuple(max(0, int(evaluate(e, values))) for e in kernel.grid)

    def workspace_bytes(self, values: Mapping[ir.Var, int]) -> list[int]:
        spaces = self.artifact.workspaces
        return [math.prod(int(evaluate(e, values)) for e in w.shape) * w.dtype.numpy.itemsize for w in spaces]

    def place(self, call: Call, kind: str, index: int) -> int:
        """Where among the words an argument of a kernel stands ("ring" has no word)."""
        params, symbols = len(call.function.params), len(call.function.symbols)
        return index + {"array": 0, "scalar": 0, "symbol": params, "workspace": params + symbols}[kind]


@cache
def sources(*folders: Path) -> str:
    """Identifies the code that turns IR into text and text into machine code: any edit of it makes another."""
    root = Path(ir.__file__).parent.parent
    here = Path(__file__).parent
    places = (here, *folders, *(root / room for room in ("ir", "analysis", "passes")))
    files = [p for d in places for p in sorted(d.rglob("*")) if p.suffix in (".py", ".h", ".cpp")]
    stats = [(p.name, s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]
