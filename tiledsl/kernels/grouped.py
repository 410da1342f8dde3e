"""Grouped matrix product: consecutive rows of one matrix, each group with a right operand of its own."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.packed import PackedTensor
from tiledsl.kernels.tiles import GEMM_K, PANEL, product_tile, tiles_for
from tiledsl.runtime import device_of

__all__ = ["grouped_gemm", "grouped_gemm_kernel"]


@tiledsl.jit
def grouped_gemm_kernel(
    block_M: int,
    block_N: int,
    block_K: int,
    dtype: DType,
    out_dtype: DType,
    sizes_dtype: DType,
    transpose_B: bool = False,
    packed: bool = False,
    threads: int = 128,
) -> Any:
    """C[rows of g] = A[rows of g] @ B[g]; B is stored [G, N, K] if transpose_B, or in panels if packed.

    A tile of rows lies within one group, and a group of s rows has ceil(s / block_M) of them: together at most
    ceil(M / block_M) + G, which is the grid. Each block finds its group by walking the sizes, so they may live
    on the device.
    """
    M, N, K, G = T.dynamic("M"), T.dynamic("N"), T.dynamic("K"), T.dynamic("G")
    lda, ldb, ldc = T.dynamic("lda", "int64"), T.dynamic("ldb", "int64"), T.dynamic("ldc", "int64")
    group_stride = T.dynamic("group_stride", "int64")
    B_shape, B_tile = ((G, N, K), (block_N, block_K)) if transpose_B else ((G, K, N), (block_K, block_N))
    B_type: Any = T.StridedTensor(B_shape, (group_stride, ldb, 1), dtype)
    if packed:  # as prepack writes it; one panel is a tile
        B_type, B_tile = T.Tensor((G, T.dynamic("panels"), T.dynamic("depth"), block_N), dtype), (block_K, block_N)

    @T.prim_func
    def grouped_gemm(
        A: T.StridedTensor((M, K), (lda, 1), dtype),
        B: B_type,
        sizes: T.Tensor((G,), sizes_dtype),
        C: T.StridedTensor((M, N), (ldc, 1), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M) + G, threads=threads) as (bx, by):
            A_s = T.alloc_shared((block_M, block_K), dtype)
            B_s = T.alloc_shared(B_tile, dtype)
            acc = T.alloc_fragment((block_M, block_N), arrays.accumulator(dtype))
            tile = T.alloc_var(T.int32, by)  # this block's tile, counted from the group at hand
            first = T.alloc_var(T.int32, 0)  # first row of the group at hand
            group = T.alloc_var(T.int32, 0)
            row = T.alloc_var(T.int32, 0)  # first row of this block
            rows = T.alloc_var(T.int32, 0)
            for g in T.serial(G):
                size = T.max(T.cast(sizes[g], T.int32), 0)
                if tile >= 0 and tile * block_M < size:
                    group = g
                    row = first + tile * block_M
                    rows = T.min(block_M, size - tile * block_M)
                tile = tile - T.ceildiv(size, block_M)
                first = first + size
            if rows > 0:
                T.clear(acc)
                for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                    T.copy(A[row, k * block_K], A_s)
                    if packed:
                        T.copy(B[group, bx, k * block_K, 0], B_s)
                    elif transpose_B:
                        T.copy(B[group, bx * block_N, k * block_K], B_s)
                    else:
                        T.copy(B[group, k * block_K, bx * block_N], B_s)
                    T.gemm(A_s, B_s, acc, transpose_B=transpose_B)
                for i, j in T.Parallel(block_M, block_N):
                    if i < rows:
                        C[row + i, bx * block_N + j] = acc[i, j]

    return grouped_gemm


_grouped_gemm_kernel = cache(grouped_gemm_kernel)  # the same values, the same kernel


def grouped_gemm(
    a: Any,
    b: Any,
    group_sizes: Any,
    *,
    transpose_b: bool = False,
    out_dtype: Any = None,
    out: Any = None,
    target: Any = None,
) -> Any:
    """Grouped matrix product: c[i, :] = a[i, :] @ b[g(i)], where group g owns group_sizes[g] consecutive rows,
    groups in order (the experts' product of a mixture of experts, rows sorted by expert).

    a            [m, k]; float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    b            [groups, k, n], or [groups, n, k] with transpose_b=True; dtype of a; or a PackedTensor (prepack) of
                 shape [groups, k, n]: same bits
    group_sizes  [groups] int32 or int64, zeros allowed; NumPy, or of the kind of a
    out_dtype    dtype of the result, one of the same four; default: that of a
    out          array [m, n] of the inputs' kind that receives the result
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns [m, n]. Rows beyond the sum of group_sizes are left untouched: they keep what `out` held, and are
    undefined where the library allocated it. Accumulation and bits as in matmul, whatever the other groups are.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for negative group sizes, for sizes whose sum
    exceeds m (both checked where group_sizes lies on the host), and when out shares memory with an input.
    """
    packed = isinstance(b, PackedTensor)
    transpose_b = transpose_b and not packed  # a packed operand has one form
    dtype = arrays.floats("grouped_gemm", a=a, b=b.data if packed else b)
    sizes_dtype = arrays.dtype_of("grouped_gemm", "group_sizes", group_sizes, ("int32", "int64"))
    m, k = arrays.rank("grouped_gemm", "a", a, "m, k")
    groups, *rest = arrays.rank("grouped_gemm", "b", b, "groups, n, k" if transpose_b else "groups, k, n")
    n, k_b = rest if transpose_b else reversed(rest)
    if k_b != k:
        raise TileTypeError(
            f"grouped_gemm: inner sizes differ: {arrays.describe(a=a, b=b)}, transpose_b={transpose_b}",
            help="a is [m, k] and b is [groups, k, n], or [groups, n, k] with transpose_b=True",
        )
    if arrays.rank("grouped_gemm", "group_sizes", group_sizes, "groups") != (groups,):
        raise TileTypeError(
            f"grouped_gemm: one size per group expected: {arrays.describe(group_sizes=group_sizes, b=b)}"
        )
    if device_of(group_sizes) == "cpu":
        group_sizes = _checked(group_sizes, m)
        sizes_dtype = as_dtype("int32")
    result = arrays.out_dtype("grouped_gemm", out_dtype, out, dtype)
    out = arrays.output("grouped_gemm", out, a, (m, n), result, a=a, b=b.data if packed else b, group_sizes=group_sizes)
    if m == 0 or n == 0 or groups == 0:
        return out
    b, turned = (b.data, False) if packed else arrays.matrix(b)
    tiles = tiles_for(target)
    known = arrays.on_host(group_sizes)
    active = groups if known is None else max(int((known > 0).sum()), 1)
    kernel = _grouped_gemm_kernel(
        *product_tile(tiles, -(-m // active), n, GEMM_K, dtype.bytes, True, PANEL * packed),
        GEMM_K,
        dtype,
        result,
        sizes_dtype,
        transpose_b is not turned,
        packed,
        tiles.threads,
    )
    kernel(arrays.unit_last(a), b, arrays.unit_last(group_sizes), out, target=target)
    return out


def _checked(group_sizes: Any, m: int) -> Any:
    """Sizes on the host as int32, after a check that they count rows that exist; on a device the kernel clips them."""
    sizes = np.asarray(group_sizes)
    if (sizes < 0).any():
        g = int(np.argmax(sizes < 0))
        raise TileValueError(f"grouped_gemm: group_sizes[{g}] is {int(sizes[g])}, expected a count of rows")
    if int(sizes.sum(dtype=np.int64)) > m:
        raise TileValueError(f"grouped_gemm: group_sizes sum to {int(sizes.sum(dtype=np.int64))}, but a has {m} rows")
    return np.ascontiguousarray(sizes, np.int32)
