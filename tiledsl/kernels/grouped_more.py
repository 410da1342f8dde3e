"""The other two products of a mixture of experts: padded groups, and sums over the rows of each group."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import GEMM_K, product_tile, tiles_for

__all__ = ["k_grouped_gemm", "k_grouped_gemm_kernel", "masked_grouped_gemm", "masked_grouped_gemm_kernel"]


@tiledsl.jit
def masked_grouped_gemm_kernel(
    block_M: int,
    block_N: int,
    block_K: int,
    dtype: DType,
    out_dtype: DType,
    transpose_B: bool = False,
    threads: int = 128,
) -> Any:
    """C[g, i, :] = A[g, i, :] @ B[g] for i < counts[g]; B is stored [G, N, K] if transpose_B."""
    M, N, K, G = T.dynamic("M"), T.dynamic("N"), T.dynamic("K"), T.dynamic("G")
    a_group, lda, b_group, ldb, c_group, ldc = (
        T.dynamic(s, "int64") for s in ("a_group", "lda", "b_group", "ldb", "c_group", "ldc")
    )
    B_shape, B_tile = ((G, N, K), (block_N, block_K)) if transpose_B else ((G, K, N), (block_K, block_N))

    @T.prim_func
    def masked_grouped_gemm(
        A: T.StridedTensor((G, M, K), (a_group, lda, 1), dtype),
        B: T.StridedTensor(B_shape, (b_group, ldb, 1), dtype),
        counts: T.Tensor((G,), T.int32),
        C: T.StridedTensor((G, M, N), (c_group, ldc, 1), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), G, threads=threads) as (bx, by, g):
            A_s = T.alloc_shared((block_M, block_K), dtype)
            B_s = T.alloc_shared(B_tile, dtype)
            acc = T.alloc_fragment((block_M, block_N), arrays.accumulator(dtype))
            if by * block_M < counts[g]:
                T.clear(acc)
                for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                    T.copy(A[g, by * block_M, k * block_K], A_s)
                    if transpose_B:
                        T.copy(B[g, bx * block_N, k * block_K], B_s)
                    else:
                        T.copy(B[g, k * block_K, bx * block_N], B_s)
                    T.gemm(A_s, B_s, acc, transpose_B=transpose_B)
                for i, j in T.Parallel(block_M, block_N):
                    if by * block_M + i < counts[g]:
                        C[g, by * block_M + i, bx * block_N + j] = acc[i, j]

    return masked_grouped_gemm


_masked_grouped_gemm_kernel = cache(masked_grouped_gemm_kernel)  # the same values, the same kernel


def masked_grouped_gemm(
    a: Any,
    b: Any,
    counts: Any,
    *,
    transpose_b: bool = False,
    out_dtype: Any = None,
    out: Any = None,
    target: Any = None,
) -> Any:
    """Padded groups: c[g, i, :] = a[g, i, :] @ b[g] for the first counts[g] rows of each group (the experts' product
    where each expert has room for max_m rows, as when decoding from a captured graph).

    a          [groups, max_m, k]; float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    b          [groups, k, n], or [groups, n, k] with transpose_b=True; dtype of a
    counts     [groups] int32 or int64, 0 ... max_m; NumPy, or of the kind of a
    out_dtype  dtype of the result, one of the same four; default: that of a
    out        array [groups, max_m, n] of the inputs' kind that receives the result
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns [groups, max_m, n]. The rows from counts[g] on are neither read into a result nor written: they keep what
    `out` held, and are undefined where the library allocated it. Accumulation and bits as in matmul.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for counts outside of 0 ... max_m (where they lie
    on the host), and when out shares memory with an input.
    """
    name = "masked_grouped_gemm"
    dtype = arrays.floats(name, a=a, b=b)
    groups, m, k = arrays.rank(name, "a", a, "groups, max_m, k")
    groups_b, *rest = arrays.rank(name, "b", b, "groups, n, k" if transpose_b else "groups, k, n")
    n, k_b = rest if transpose_b else reversed(rest)
    if k_b != k or groups_b != groups:
        raise TileTypeError(
            f"{name}: shapes do not fit: {arrays.describe(a=a, b=b)}, transpose_b={transpose_b}",
            help="a is [groups, max_m, k], b is [groups, k, n], or [groups, n, k] with transpose_b=True",
        )
    arrays.dtype_of(name, "counts", counts, ("int32", "int64"))
    if arrays.rank(name, "counts", counts, "groups") != (groups,):
        raise TileTypeError(f"{name}: one count per group expected: {arrays.describe(counts=counts, b=b)}")
    arrays.check_size(name, "counts", counts, 0, m)
    result = arrays.out_dtype(name, out_dtype, out, dtype)
    out = arrays.output(name, out, a, (groups, m, n), result, a=a, b=b, counts=counts)
    if groups and m and n:
        b, turned = arrays.matrix(b)
        tiles = tiles_for(target)
        sizes = *product_tile(tiles, m, n, GEMM_K, dtype.bytes, True), GEMM_K
        kernel = _masked_grouped_gemm_kernel(*sizes, dtype, result, transpose_b is not turned, tiles.threads)
        kernel(arrays.unit_last(a), b, arrays.dense(arrays.as_int32(counts)), out, target=target)
    return out


@tiledsl.jit
def k_grouped_gemm_kernel(
    block_M: int, block_N: int, block_K: int, dtype: DType, out_dtype: DType, threads: int = 128
) -> Any:
    """C[g] = A[rows of g].T @ B[rows of g].

    Whole tiles of a group's rows are copied; the rows after them are read one by one, because the tile goes on into
    the next group. Each block finds its rows by adding up the sizes, so they may live on the device.
    """
    M, N, K, G = T.dynamic("M"), T.dynamic("N"), T.dynamic("K"), T.dynamic("G")
    lda, ldb, c_group, ldc = (T.dynamic(s, "int64") for s in ("lda", "ldb", "c_group", "ldc"))

    @T.prim_func
    def k_grouped_gemm(
        A: T.StridedTensor((K, M), (lda, 1), dtype),
        B: T.StridedTensor((K, N), (ldb, 1), dtype),
        sizes: T.Tensor((G,), T.int32),
        C: T.StridedTensor((G, M, N), (c_group, ldc, 1), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), G, threads=threads) as (bx, by, g):
            A_s = T.alloc_shared((block_K, block_M), dtype)
            B_s = T.alloc_shared((block_K, block_N), dtype)
            A_rest = T.alloc_shared((block_K, block_M), dtype)
            B_rest = T.alloc_shared((block_K, block_N), dtype)
            acc = T.alloc_fragment((block_M, block_N), arrays.accumulator(dtype))
            first = T.alloc_var(T.int32, 0)
            for i in T.serial(g):
                first = first + T.max(sizes[i], 0)
            size = T.max(sizes[g], 0)
            T.clear(acc)
            for k in T.Pipelined(size // block_K, num_stages=2):
                T.copy(A[first + k * block_K, by * block_M], A_s)
                T.copy(B[first + k * block_K, bx * block_N], B_s)
                T.gemm(A_s, B_s, acc, transpose_A=True)
            done = size // block_K * block_K
            if done < size:
                for k, i in T.Parallel(block_K, block_M):
                    at = first + done + k
                    A_rest[k, i] = T.if_then_else(done + k < size, A[at, by * block_M + i], T.cast(0, dtype))
                for k, j in T.Parallel(block_K, block_N):
                    at = first + done + k
                    B_rest[k, j] = T.if_then_else(done + k < size, B[at, bx * block_N + j], T.cast(0, dtype))
                T.gemm(A_rest, B_rest, acc, transpose_A=True)
            T.copy(acc, C[g, by * block_M, bx * block_N])

    return k_grouped_gemm


_k_grouped_gemm_kernel = cache(k_grouped_gemm_kernel)  # the same values, the same kernel


def k_grouped_gemm(
    a: Any, b: Any, group_sizes: Any, *, out_dtype: Any = None, out: Any = None, target: Any = None
) -> Any:
    """Products over the rows of each group: c[g] = a[rows of g].T @ b[rows of g], group g owning group_sizes[g]
    consecutive rows, groups in order (the gradient of grouped_gemm with respect to its weights).

    a            [rows, m]; float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    b            [rows, n], dtype of a
    group_sizes  [groups] int32 or int64, zeros allowed: such a group's product is 0; NumPy, or of the kind of a
    out_dtype    dtype of the result, one of the same four; default: that of a
    out          array [groups, m, n] of the inputs' kind that receives the result
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns [groups, m, n]. Rows beyond the sum of group_sizes are ignored. Each element is summed as in matmul, in
    ascending order of rows, whatever the other groups are: the bits of matmul(a[rows].T, b[rows]).

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for negative group sizes, for sizes whose sum
    exceeds the rows (both checked where group_sizes lies on the host), and when out shares memory with an input.
    """
    name = "k_grouped_gemm"
    dtype = arrays.floats(name, a=a, b=b)
    (rows, m), (rows_b, n) = arrays.rank(name, "a", a, "rows, m"), arrays.rank(name, "b", b, "rows, n")
    if rows != rows_b:
        raise TileTypeError(f"{name}: a and b differ in rows: {arrays.describe(a=a, b=b)}")
    arrays.dtype_of(name, "group_sizes", group_sizes, ("int32", "int64"))
    (groups,) = arrays.rank(name, "group_sizes", group_sizes, "groups")
    arrays.check_size(name, "group_sizes", group_sizes, 0, rows)
    known = arrays.on_host(group_sizes)
    if known is not None and int(known.sum(dtype="int64")) > rows:
        raise TileValueError(f"{name}: group_sizes sum to {int(known.sum(dtype='int64'))}, but a has {rows} rows")
    result = arrays.out_dtype(name, out_dtype, out, dtype)
    out = arrays.output(name, out, a, (groups, m, n), result, a=a, b=b, group_sizes=group_sizes)
    if groups and m and n:
        tiles = tiles_for(target)
        sizes = *product_tile(tiles, m, n, 2 * GEMM_K, dtype.bytes), GEMM_K  # whole and cut tiles apart
        kernel = _k_grouped_gemm_kernel(*sizes, dtype, result, tiles.threads)
        counts = arrays.dense(arrays.as_int32(group_sizes))
        kernel(arrays.unit_last(a), arrays.unit_last(b), counts, out, target=target)
    return out
