"""What the lowering hands to the CUDA targets: kernels as text, and what each of their parameters is."""

from __future__ import annotations

from dataclasses import dataclass

from tiledsl import ir
from tiledsl.backend import Site
from tiledsl.dtypes import DType

__all__ = ["ADDED", "Param", "SimtKernel", "SimtProgram"]

ADDED = "// added"  # behind a barrier in the text that no author wrote; the mark above it is of what follows


@dataclass(frozen=True)
class Param:
    """One parameter of a kernel's text, in the order of the text.

    kind   "array": address of function.params[index]; "scalar": value of function.params[index];
           "symbol": value of function.symbols[index]; "workspace": address of function.workspaces[index];
           "ring": address of the debug ring
    dtype  of the elements or of the value as the text declares it (symbols: int32 or int64)
    name   for messages
    """

    kind: str
    index: int
    dtype: DType
    name: str


@dataclass(frozen=True, eq=False)
class SimtKernel:
    """One kernel. text: all but the prelude, self-contained; block: threads along x, y, z; waits: blocks may wait for
    each other, so that all must be resident."""

    text: str
    name: str
    params: tuple[Param, ...]
    grid: tuple[ir.Expr, ...]
    block: tuple[int, int, int]
    shared_bytes: int
    waits: bool


@dataclass(frozen=True, eq=False)
class SimtProgram:
    """What `simt.lower.lower(function, arch)` gives. function: lowered; its params, symbols and workspaces are what the
    kernels' parameters mean. sites: of the records in the ring. zeroed: indices of workspaces that start as zeros."""

    function: ir.Function
    kernels: tuple[SimtKernel, ...]
    sites: tuple[Site, ...]
    zeroed: tuple[int, ...]
