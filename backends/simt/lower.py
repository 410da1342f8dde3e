"""A function as CUDA C++ text: through the pipeline to the thread stage, then printed kernel by kernel."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.backend import Site
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir.walk import walk
from tiledsl.passes import pipeline

from .abi import SimtKernel, SimtProgram
from .names import unique
from .pipeline import simt_pipeline
from .printer import print_kernel
from .shared import shared_limit

__all__ = ["lower"]


def lower(function: ir.Function, arch: str = "") -> SimtProgram:
    """The text of a traced function (or of one already lowered to the thread stage) for an architecture ("sm_90a").

    Raises TileNotImplementedError for what GPUs cannot do, a tile that does not fit into shared memory included.
    """
    if function.stage != "thread":
        function = pipeline.run(function, simt_pipeline(arch))
    grid_state = None
    if any(isinstance(n, ir.Sync) and n.scope == "grid" for k in function.kernels for n in walk(k)):
        grid_state = ir.Buffer("grid_state", as_dtype("uint32"), (ir.Const(2, as_dtype("int32")),), "global")
        function = function.replace(workspaces=(*function.workspaces, grid_state))
    sites: list[Site] = []
    taken: set[str] = set()
    kernels: list[SimtKernel] = []
    for k in function.kernels:
        made = print_kernel(function, k, unique(k.name, taken), sites, grid_state)
        _fits(k, made, arch)
        kernels.append(made)
    zeroed = () if grid_state is None else (len(function.workspaces) - 1,)
    return SimtProgram(function, tuple(kernels), tuple(sites), zeroed)


def _fits(kernel: ir.Kernel, made: SimtKernel, arch: str) -> None:
    limit = shared_limit(arch)
    if made.shared_bytes > limit:
        tiles = [
            f"{s.buffer.name} {'x'.join(map(str, s.buffer.const_shape or ()))} {s.buffer.dtype}"
            for s in kernel.body
            if isinstance(s, ir.Alloc) and s.buffer.scope == "shared" and s.buffer.alias_of is None
        ]
        raise TileNotImplementedError(
            f"the tiles of {kernel.name} take {made.shared_bytes} bytes of shared memory, {arch or 'the GPU'} has "
            f"{limit} per block: {', '.join(tiles)}",
            kernel.loc,
            help="use smaller tiles",
        )
