"""Weights packed ahead: right operands in the order in which a product reads them.

The format is public: [panels, K, PANEL] (groups: [groups, panels, K, PANEL]), element (k, n) of the matrix at
[n // PANEL, k, n % PANEL], with K rounded up to a multiple of GEMM_K and zeros beyond the matrix.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from dataclasses import dataclass
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import GEMM_K, PANEL, tiles_for
from tiledsl.runtime import allocate

__all__ = ["PackedTensor", "prepack", "prepack_kernel"]


@dataclass(frozen=True)
class PackedTensor:
    """What prepack returns: `data` in the packed format, `shape` (k, n) or (groups, k, n) of the matrix, `dtype`."""

    data: Any
    shape: tuple[int, ...]
    dtype: DType

    def unpack(self) -> Any:
        """The matrix again, row-major, of the kind of `data`."""
        *lead, k, n = self.shape
        rows = self.data.swapaxes(-3, -2)
        return rows.reshape((*lead, rows.shape[-3], rows.shape[-2] * PANEL))[..., :k, :n]

    def __repr__(self) -> str:
        return f"PackedTensor({self.dtype} {self.shape}, data {tuple(self.data.shape)})"


@tiledsl.jit
def prepack_kernel(dtype: DType, transpose_B: bool = False, threads: int = 128) -> Any:
    """One tile of a panel per block; B is stored [G, N, K] if transpose_B."""
    G, K, N = T.dynamic("G"), T.dynamic("K"), T.dynamic("N")
    panels, depth = T.dynamic("panels"), T.dynamic("depth")
    group_stride, ldb = T.dynamic("group_stride", "int64"), T.dynamic("ldb", "int64")
    B_shape, B_tile = ((G, N, K), (PANEL, GEMM_K)) if transpose_B else ((G, K, N), (GEMM_K, PANEL))

    @T.prim_func
    def prepack(
        B: T.StridedTensor(B_shape, (group_stride, ldb, 1), dtype),
        Packed: T.Tensor((G, panels, depth, PANEL), dtype),
    ):
        with T.Kernel(panels, T.ceildiv(depth, GEMM_K), G, threads=threads) as (p, k, g):
            tile = T.alloc_shared(B_tile, dtype)
            if transpose_B:
                T.copy(B[g, p * PANEL, k * GEMM_K], tile)
                for i, j in T.Parallel(GEMM_K, PANEL):
                    Packed[g, p, k * GEMM_K + i, j] = tile[j, i]
            else:
                T.copy(B[g, k * GEMM_K, p * PANEL], tile)
                for i, j in T.Parallel(GEMM_K, PANEL):
                    Packed[g, p, k * GEMM_K + i, j] = tile[i, j]

    return prepack


_prepack_kernel = cache(prepack_kernel)  # the same values, the same kernel


def prepack(b: Any, *, transpose_b: bool = False, target: Any = None) -> PackedTensor:
    """Pack a right operand once, for matmul and grouped_gemm to take in place of the matrix: same results, bit for bit,
    without arranging it anew in every call (which pays for weights stored [n, k] and few rows).

    b            [k, n] or [groups, k, n]; with transpose_b=True [n, k] or [groups, n, k]; float32, float16,
                 bfloat16 or float64; NumPy (ml_dtypes) or torch; transposed views are read in place
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns a PackedTensor with data of the kind of b. A change of b afterwards does not reach it.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    dtype = arrays.dtype_of("prepack", "b", b)
    if b.ndim not in (2, 3):
        raise TileTypeError(f"prepack: {arrays.describe(b=b)}, expected [k, n] or [groups, k, n]")
    b = b.swapaxes(-1, -2) if transpose_b else b
    shape = tuple(int(n) for n in b.shape)
    *_, k, n = shape
    groups = shape[0] if len(shape) == 3 else 1
    form = (groups, -(-n // PANEL), -(-k // GEMM_K) * GEMM_K, PANEL)
    data = allocate(form, dtype, b)
    if all(form):
        stored, transposed = arrays.matrix(b if len(shape) == 3 else b[None])
        _prepack_kernel(dtype, transposed, tiles_for(target).threads)(stored, data, target=target)
    return PackedTensor(data if len(shape) == 3 else data[0], shape, dtype)
