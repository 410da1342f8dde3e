"""Matrix product: one kernel for all shapes, operands as they lie in memory."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.packed import PackedTensor
from tiledsl.kernels.tiles import GEMM_K, PANEL, product_tile, tiles_for

__all__ = ["matmul", "matmul_kernel"]


@tiledsl.jit
def matmul_kernel(
    block_M: int,
    block_N: int,
    block_K: int,
    dtype: DType,
    out_dtype: DType,
    transpose_A: bool = False,
    transpose_B: bool = False,
    packed: bool = False,
    threads: int = 128,
) -> Any:
    """C = A @ B; A is stored [K, M] if transpose_A, B is stored [N, K] if transpose_B, or in panels if packed."""
    M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")
    lda, ldb, ldc = T.dynamic("lda", "int64"), T.dynamic("ldb", "int64"), T.dynamic("ldc", "int64")
    A_shape, A_tile = ((K, M), (block_K, block_M)) if transpose_A else ((M, K), (block_M, block_K))
    B_shape, B_tile = ((N, K), (block_N, block_K)) if transpose_B else ((K, N), (block_K, block_N))
    B_type: Any = T.StridedTensor(B_shape, (ldb, 1), dtype)
    if packed:  # as prepack writes it; one panel is a tile
        B_type, B_tile = T.Tensor((T.dynamic("panels"), T.dynamic("depth"), block_N), dtype), (block_K, block_N)

    @T.prim_func
    def matmul(
        A: T.StridedTensor(A_shape, (lda, 1), dtype),
        B: B_type,
        C: T.StridedTensor((M, N), (ldc, 1), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            A_s = T.alloc_shared(A_tile, dtype)
            B_s = T.alloc_shared(B_tile, dtype)
            acc = T.alloc_fragment((block_M, block_N), arrays.accumulator(dtype))
            T.use_swizzle(8)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                if transpose_A:
                    T.copy(A[k * block_K, by * block_M], A_s)
                else:
                    T.copy(A[by * block_M, k * block_K], A_s)
                if packed:
                    T.copy(B[bx, k * block_K, 0], B_s)
                elif transpose_B:
                    T.copy(B[bx * block_N, k * block_K], B_s)
                else:
                    T.copy(B[k * block_K, bx * block_N], B_s)
                T.gemm(A_s, B_s, acc, transpose_A=transpose_A, transpose_B=transpose_B)
            T.copy(acc, C[by * block_M, bx * block_N])

    return matmul


_matmul_kernel = cache(matmul_kernel)  # the same values, the same kernel


def matmul(a: Any, b: Any, *, out_dtype: Any = None, out: Any = None, target: Any = None) -> Any:
    """Matrix product c[i, j] = sum_k a[i, k] b[k, j].

    a           [m, k], b [k, n]; both float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch. Transposed
                views are read in place. b may be a PackedTensor (prepack): same bits.
    out_dtype   dtype of the result, one of the same four; default: that of a
    out         array of the inputs' kind that receives the result
    target      where to run (default: TILEDSL_TARGET, else auto)

    Returns [m, n] of the inputs' kind. Products are exact and summed in float32 (float64 for float64) in ascending
    order of k, one rounding to out_dtype at the end: the same bits for any m, n, number of threads and CPU target
    (|error| <= k u sum|a b| with u = 2^-24 or 2^-53, plus that rounding). Sums over k = 0 terms are 0.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when out shares memory with a or b.
    """
    packed = isinstance(b, PackedTensor)
    dtype = arrays.floats("matmul", a=a, b=b.data if packed else b)
    (m, k), (k_b, n) = arrays.rank("matmul", "a", a, "m, k"), arrays.rank("matmul", "b", b, "k, n")
    if k != k_b:
        raise TileTypeError(
            f"matmul: inner sizes differ: {arrays.describe(a=a, b=b)}", help="a is [m, k] and b is [k, n]"
        )
    result = arrays.out_dtype("matmul", out_dtype, out, dtype)
    out = arrays.output("matmul", out, a, (m, n), result, a=a, b=b.data if packed else b)
    if m == 0 or n == 0:
        return out
    a, transpose_a = arrays.matrix(a)
    b, transpose_b = (b.data, False) if packed else arrays.matrix(b)
    tiles = tiles_for(target)
    sizes = product_tile(tiles, m, n, GEMM_K, dtype.bytes, column_tile=PANEL * packed)
    form = dtype, result, transpose_a, transpose_b, packed, tiles.threads
    kernel = _matmul_kernel(*sizes, GEMM_K, *form)
    kernel(a, b, out, target=target)
    return out
