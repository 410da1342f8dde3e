"""Names that say so when used: what this version does not have yet, and what no portable kernel can have."""

from __future__ import annotations

from typing import Any, NoReturn

from tiledsl.errors import TileNotImplementedError
from tiledsl.frontend.location import error
from tiledsl.language.operation import not_yet

__all__ = ["HARDWARE", "MISSING", "Missing", "refused"]

MISSING = frozenset(["gemm_sp"])  # 2:4 sparse operands, in an order that the hardware's compressor makes

# A closed list: what these do exists on some NVIDIA GPUs only, so no portable kernel contains it.
_HARDWARE = {
    "tensor memory": "alloc_tmem tmem_allocate tmem_deallocate",
    "clusters of blocks and their distributed shared memory": """
    alloc_cluster_barrier block_rank_in_cluster cluster_arrive cluster_sync cluster_wait copy_cluster map_shared_rank
    """,
    "descriptors of matrix instructions": "alloc_descriptor alloc_tcgen05_instruction_desc alloc_tcgen05_smem_desc "
    "alloc_wgmma_desc initialize_tcgen05_descriptor initialize_wgmma_descriptor",
    "descriptors of a GPU's copy engine": "create_tma_descriptor create_tma_im2col_descriptor tma_load tma_load_im2col "
    "tma_load_multicast tma_store",
    "formats of other makers' GPUs": "float8_e4m3fnuz float8_e5m2fnuz float8_e4m3b11fnuz float6_e2m3fn float6_e3m2fn",
    "PTX or C text": "import_source ptx ptx_ldmatrix ptx_mma ptx_mma_sp ptx_stmatrix ptx_wgmma_rs ptx_wgmma_ss",
}
_FAMILIES = {  # names that begin so
    "tcgen05_": "tensor memory",
    **dict.fromkeys(("alloc_tcgen05_", "increase_descriptor_"), "descriptors of matrix instructions"),
    "cluster_": "clusters of blocks and their distributed shared memory",
    "clc_": "clusters of blocks and their distributed shared memory",
    "ptx_": "PTX or C text",
    "tma_": "descriptors of a GPU's copy engine",
    "create_tma_": "descriptors of a GPU's copy engine",
    **dict.fromkeys(
        ("tvm_mfma", "tvm_mmac", "tvm_rdna_", "simdgroup_", "make_filled_simdgroup"), "matrix instructions by name"
    ),
    "mma_": "matrix instructions by name",
    "wgmma_": "matrix instructions by name",
    "tvm_mma_": "matrix instructions by name",
    "tvm_load_matrix_": "matrix instructions by name",
    "tvm_store_matrix_": "matrix instructions by name",
    "tvm_fill_fragment": "matrix instructions by name",
    "call_llvm_": "PTX or C text",
    "call_packed": "functions of another compiler's run time",
    "tvm_stack_": "functions of another compiler's run time",
}
HARDWARE = {name: what for what, names in _HARDWARE.items() for name in names.split()}


def refused(name: str) -> bool:
    """The language will never have this name, which its model has."""
    return _needs(name) is not None


def _needs(name: str) -> str | None:
    return HARDWARE.get(name) or next((what for prefix, what in _FAMILIES.items() if name.startswith(prefix)), None)


_HELP = {  # by what a name needs
    "tensor memory": "accumulate in a T.alloc_fragment with T.gemm, and T.copy it out",
    "clusters of blocks and their distributed shared memory": "let each block T.copy what it needs; blocks meet at "
    "T.sync_grid, and exchange through global memory",
    "descriptors of a GPU's copy engine": "use T.copy or T.tma_copy between the tensor and the tile",
    "descriptors of matrix instructions": "use T.gemm: descriptors are made where a GPU needs them",
    "formats of other makers' GPUs": "use T.float8_e4m3fn or T.float8_e5m2, and convert on the host",
    "PTX or C text": "use T.gemm, T.copy and the functions of T; T.call_extern has CUDA's documented intrinsics",
    "matrix instructions by name": "use T.gemm",
    "functions of another compiler's run time": "call them on the host",
    "gemm_sp": "unpack the sparse operand on the host, and use T.gemm",
}


class Missing:
    """Stands for one such name; any use of it is a located error."""

    def __init__(self, name: str) -> None:
        self._name = name

    def _use(self, *args: Any, **kw: Any) -> NoReturn:
        what = f"T.{self._name}"
        needs = _needs(self._name)
        if needs is not None:
            kind, end = ("left out", "") if "compiler" in needs else ("hardware-only", ", which only some GPUs have")
            raise error(
                "hardware-only",
                TileNotImplementedError,
                f"{what} is {kind}: it needs {needs}{end}",
                help=_HELP[needs],
            )
        raise not_yet(f"T.{self._name}", _HELP.get(self._name))

    __call__ = __getitem__ = __getattr__ = _use

    def __repr__(self) -> str:
        return f"<T.{self._name}, not supported yet>"
