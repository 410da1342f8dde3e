"""Matrix product of int8: exact int32 sums, or those scaled by row and column."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import GEMM_K, fit, product_tile, tiles_for

__all__ = ["int8_matmul", "int8_matmul_kernel"]


@tiledsl.jit
def int8_matmul_kernel(
    block_M: int,
    block_N: int,
    block_K: int,
    out_dtype: DType,
    row_scales: bool,
    column_scales: bool,
    transpose_A: bool = False,
    transpose_B: bool = False,
    threads: int = 128,
) -> Any:
    """C = A @ B in int32, times R[i] and S[j] where given; stored transposed as in matmul."""
    M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")
    lda, ldb, ldc = T.dynamic("lda", "int64"), T.dynamic("ldb", "int64"), T.dynamic("ldc", "int64")
    A_shape, A_tile = ((K, M), (block_K, block_M)) if transpose_A else ((M, K), (block_M, block_K))
    B_shape, B_tile = ((N, K), (block_N, block_K)) if transpose_B else ((K, N), (block_K, block_N))

    @T.prim_func
    def int8_matmul(
        A: T.StridedTensor(A_shape, (lda, 1), T.int8),
        B: T.StridedTensor(B_shape, (ldb, 1), T.int8),
        R: T.Tensor((M,), T.float32),
        S: T.Tensor((N,), T.float32),
        C: T.StridedTensor((M, N), (ldc, 1), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            A_s = T.alloc_shared(A_tile, T.int8)
            B_s = T.alloc_shared(B_tile, T.int8)
            acc = T.alloc_fragment((block_M, block_N), T.int32)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                if transpose_A:
                    T.copy(A[k * block_K, by * block_M], A_s)
                else:
                    T.copy(A[by * block_M, k * block_K], A_s)
                if transpose_B:
                    T.copy(B[bx * block_N, k * block_K], B_s)
                else:
                    T.copy(B[k * block_K, bx * block_N], B_s)
                T.gemm(A_s, B_s, acc, transpose_A=transpose_A, transpose_B=transpose_B)
            if row_scales or column_scales:
                for i, j in T.Parallel(block_M, block_N):
                    x = T.cast(acc[i, j], T.float32)
                    x = x * R[by * block_M + i] if row_scales else x
                    x = x * S[bx * block_N + j] if column_scales else x
                    C[by * block_M + i, bx * block_N + j] = x
            else:
                T.copy(acc, C[by * block_M, bx * block_N])

    return int8_matmul


_K = (GEMM_K, 4 * GEMM_K, 8 * GEMM_K)  # exact sums may be cut anywhere
_int8_matmul_kernel = cache(int8_matmul_kernel)  # the same values, the same kernel


def int8_matmul(
    a: Any,
    b: Any,
    *,
    row_scale: Any = None,
    column_scale: Any = None,
    out_dtype: Any = None,
    out: Any = None,
    target: Any = None,
) -> Any:
    """c[i, j] = sum_k a[i, k] b[k, j] in int32, times row_scale[i] and column_scale[j] where given (weights scaled by
    channel and activations by token: Dettmers et al., "LLM.int8()", 2022).

    a             [m, k], b [k, n]; int8; NumPy or torch. Transposed views are read in place.
    row_scale     [m] float32
    column_scale  [n] float32
    out_dtype     without scales int32 only; with one float32 (the default), float16 or bfloat16
    out           array [m, n] of the inputs' kind that receives the result
    target        where to run (default: TILEDSL_TARGET, else auto)

    Returns [m, n]. The int32 sum is exact up to k = 131071 and wraps beyond; with scales it is rounded to float32 and
    multiplied by the row's, then the column's scale, each product rounded, and once more to out_dtype.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when out shares memory with an input.
    """
    name = "int8_matmul"
    for which, x in (("a", a), ("b", b)):
        arrays.dtype_of(name, which, x, ("int8",))
    (m, k), (k_b, n) = arrays.rank(name, "a", a, "m, k"), arrays.rank(name, "b", b, "k, n")
    if k != k_b:
        raise TileTypeError(
            f"{name}: inner sizes differ: {arrays.describe(a=a, b=b)}", help="a is [m, k] and b is [k, n]"
        )
    scales = {x: s for x, s in (("row_scale", row_scale), ("column_scale", column_scale)) if s is not None}
    for which, s in scales.items():
        arrays.dtype_of(name, which, s, ("float32",))
        if tuple(s.shape) != ((m,) if which == "row_scale" else (n,)):
            raise TileTypeError(f"{name}: the scales do not fit: {arrays.describe(a=a, b=b, **{which: s})}")
    if scales:
        result = arrays.out_dtype(name, out_dtype, out, as_dtype("float32"))
    else:
        result = as_dtype("int32")
        if out_dtype is not None and as_dtype(out_dtype) is not result:
            raise TileTypeError(f"{name}: out_dtype is {out_dtype!r}, expected int32", help="pass a scale for floats")
    out = arrays.output(name, out, a, (m, n), result, a=a, b=b, **scales)
    if m and n:
        (a, transpose_a), (b, transpose_b) = arrays.matrix(a), arrays.matrix(b)
        row, column = (None if s is None else arrays.dense(s) for s in (row_scale, column_scale))
        tiles = tiles_for(target)
        inner = fit(tiles.within(_K, 512, 0), k)  # two versions of 128 x 128 rows and columns
        kernel = _int8_matmul_kernel(
            *product_tile(tiles, m, n, inner, 1), inner, result, row is not None, column is not None,
            transpose_a, transpose_b, tiles.threads,
        )  # fmt: skip
        kernel(a, b, row, column, out, target=target)
    return out
