"""Elements moved, summed or chosen along the last axis: transpose, cumulative sum, top-k."""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import ROW_TILE, fit, tiles_for
from tiledsl.runtime import allocate

__all__ = ["cumsum", "cumsum_kernel", "top_k", "top_k_kernel", "transpose", "transpose_kernel"]

MOVABLE = ("float32", "float16", "bfloat16", "float64", "int8", "uint8", "int16", "int32", "int64")


@tiledsl.jit
def transpose_kernel(block_M: int, block_N: int, dtype: DType, threads: int = 128) -> Any:
    """Y[b, j, i] = X[b, i, j], a tile at a time: both sides are read and written along their rows."""
    batch, M, N = T.dynamic("batch"), T.dynamic("M"), T.dynamic("N")
    x_batch, ldx, y_batch, ldy = (T.dynamic(s, "int64") for s in ("x_batch", "ldx", "y_batch", "ldy"))

    @T.prim_func
    def transpose(
        X: T.StridedTensor((batch, M, N), (x_batch, ldx, 1), dtype),
        Y: T.StridedTensor((batch, N, M), (y_batch, ldy, 1), dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), batch, threads=threads) as (bx, by, b):
            tile = T.alloc_shared((block_M, block_N), dtype)
            T.copy(X[b, by * block_M, bx * block_N], tile)
            for j, i in T.Parallel(block_N, block_M):
                Y[b, bx * block_N + j, by * block_M + i] = tile[i, j]

    return transpose


_transpose_kernel = cache(transpose_kernel)  # the same values, the same kernel


def transpose(x: Any, *, out: Any = None, target: Any = None) -> Any:
    """The last two axes exchanged, in memory: y[..., j, i] = x[..., i, j].

    x       [..., m, n]; floats or integers of 8 to 64 bits; NumPy (ml_dtypes) or torch
    out     array [..., n, m] like x that receives the result
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns a row-major [..., n, m].

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when out shares memory with x.
    """
    dtype = arrays.dtype_of("transpose", "x", x, MOVABLE)
    if x.ndim < 2:
        raise TileTypeError(f"transpose: at least two dimensions expected: {arrays.describe(x=x)}")
    *lead, m, n = x.shape
    out = arrays.output("transpose", out, x, (*lead, n, m), dtype, dense=True, x=x)
    count = math.prod(lead)
    if count and m and n:
        kernel = _transpose_kernel(TRANSPOSE_TILE, TRANSPOSE_TILE, dtype, tiles_for(target).threads)
        kernel(arrays.unit_last(x).reshape(count, m, n), out.reshape(count, n, m), target=target)
    return out


TRANSPOSE_TILE = 64


@tiledsl.jit
def cumsum_kernel(block_M: int, block_N: int, dtype: DType, out_dtype: DType, reverse: bool, threads: int = 128) -> Any:
    """Y[i, j] = X[i, 0] + ... + X[i, j] (reverse: X[i, j] + ... from the end): one chain per row, across tiles."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldx, ldy = T.dynamic("ldx", "int64"), T.dynamic("ldy", "int64")
    sum_dtype = T.int64 if dtype.is_int else arrays.accumulator(dtype)
    begin = block_N - 1 if reverse else 0

    @T.prim_func
    def cumsum(X: T.StridedTensor((M, N), (ldx, 1), dtype), Y: T.StridedTensor((M, N), (ldy, 1), out_dtype)):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as bx:
            x = T.alloc_fragment((block_M, block_N), sum_dtype)
            carry = T.alloc_fragment((block_M,), sum_dtype)
            T.clear(carry)
            tiles = T.ceildiv(N, block_N)
            for k in T.serial(tiles):
                at = tiles - 1 - k if reverse else k
                T.copy(X[bx * block_M, at * block_N], x)
                for i in T.Parallel(block_M):  # the carry enters before the tile's first element: one chain
                    x[i, begin] = carry[i] + x[i, begin]
                T.cumsum(x, dim=1, reverse=reverse)
                for i in T.Parallel(block_M):
                    carry[i] = x[i, block_N - 1 - begin]
                T.copy(x, Y[bx * block_M, at * block_N])

    return cumsum


_cumsum_kernel = cache(cumsum_kernel)  # the same values, the same kernel


def cumsum(x: Any, *, reverse: bool = False, out: Any = None, target: Any = None) -> Any:
    """Cumulative sum over the last axis: y[..., j] = x[..., 0] + ... + x[..., j]; reverse: from the end.

    x       [..., n]; float32, float16, bfloat16, float64, int32 or int64; NumPy (ml_dtypes) or torch
    out     contiguous array like x that receives the result; it may be x itself
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns an array like x. One chain per row, ascending (reverse: descending) in float32 (float64), each element
    rounded once to the dtype while the chain stays float32; integers wrap at their type. The bits do not depend on
    other rows.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when out overlaps x without being x.
    """
    dtype = arrays.dtype_of("cumsum", "x", x, (*arrays.FLOATS, "int32", "int64"))
    if x.ndim == 0:
        raise TileTypeError("cumsum: x is a scalar array, expected at least one dimension")
    out = arrays.output("cumsum", out, x, x.shape, dtype, dense=True, in_place="x", x=x)
    rows = (math.prod(x.shape[:-1]), x.shape[-1])
    if all(rows):
        tiles = tiles_for(target)
        kernel = _cumsum_kernel(fit(tiles.rows, rows[0]), SCAN_TILE, dtype, dtype, reverse, tiles.threads)
        kernel(arrays.unit_last(x).reshape(rows), out.reshape(rows), target=target)
    return out


SCAN_TILE = 64


@tiledsl.jit
def top_k_kernel(k: int, block_N: int, dtype: DType, resident: bool, threads: int = 128) -> Any:
    """The k largest elements of each row, largest first, and their columns.

    Values become integers of the same order (`key`). The k-th largest key is found bit by bit: 32 counts of the keys
    that reach a candidate. One walk along the row then takes what lies above it, and of its equals the first ones;
    the place of each among the k is the number of those before it. resident: the row fits into one tile.
    """
    M, N = T.dynamic("M"), T.dynamic("N")
    ldx = T.dynamic("ldx", "int64")
    # Halves differ only in the leading bits of their float32 form.
    low = {"float32": 0, "bfloat16": 16, "float16": 13}[dtype.name]

    @T.prim_func
    def top_k(
        X: T.StridedTensor((M, N), (ldx, 1), dtype),
        Values: T.Tensor((M, k), dtype),
        Indices: T.Tensor((M, k), T.int32),
    ):
        with T.Kernel(M, threads=threads) as row:
            key = T.alloc_fragment((block_N,), T.int32)
            hit = T.alloc_fragment((block_N,), T.int32)
            count = T.alloc_fragment((1,), T.int32)
            found = T.alloc_fragment((k,), T.int32)  # keys, by column
            column = T.alloc_fragment((k,), T.int32)
            at_least = T.alloc_var(T.int32, -(1 << (31 - low)))  # the k-th largest key, as far as it is known
            taken = T.alloc_var(T.int32, 0)
            equal = T.alloc_var(T.int32, 0)  # how many of the k-th key's equals are wanted

            @T.macro
            def load(t):
                for j in T.Parallel(block_N):
                    x = T.cast(X[row, t * block_N + j], T.float32)
                    bits = T.reinterpret(T.if_then_else(x == 0.0, 0.0, x), T.int32)  # -0 equals 0
                    ordered = T.if_then_else(bits >= 0, bits, bits ^ 0x7FFFFFFF)
                    ordered = T.if_then_else(x == x, ordered, 0x7FFFFFFF)  # NaN above all
                    key[j] = T.if_then_else(t * block_N + j < N, ordered >> low, -(1 << (31 - low)))

            @T.macro
            def tally(limit, above):
                T.clear(count)
                for t in T.serial(T.ceildiv(N, block_N)):
                    if not resident:
                        load(t)
                    for j in T.Parallel(block_N):
                        reached = key[j] > limit if above else key[j] >= limit
                        hit[j] = T.if_then_else(reached and t * block_N + j < N, 1, 0)
                    T.reduce_sum(hit, count, dim=0, clear=False)

            if resident:
                load(0)
            tally(0, above=False)
            if count[0] >= k:
                at_least = 0
            for b in T.serial(31 - low):
                candidate = at_least + T.shift_left(1, 30 - low - b)
                tally(candidate, above=False)
                if count[0] >= k:
                    at_least = candidate
            tally(at_least, above=True)
            equal = k - count[0]
            for t in T.serial(T.ceildiv(N, block_N)):
                if not resident:
                    load(t)
                for j in T.serial(T.min(block_N, N - t * block_N)):
                    if key[j] > at_least or (key[j] == at_least and equal > 0):
                        if key[j] == at_least:
                            equal = equal - 1
                        found[taken] = key[j]
                        column[taken] = t * block_N + j
                        taken = taken + 1
            for i in T.Parallel(k):
                place = T.alloc_var(T.int32, 0)
                for j in T.serial(k):
                    place += T.if_then_else(found[j] > found[i] or (found[j] == found[i] and j < i), 1, 0)
                Values[row, place] = X[row, column[i]]
                Indices[row, place] = column[i]

    return top_k


_top_k_kernel = cache(top_k_kernel)  # the same values, the same kernel


def top_k(x: Any, k: int, *, target: Any = None) -> tuple[Any, Any]:
    """The k largest elements of each row and their columns, largest first; of equal ones the lowest column first.

    x       [..., n], float32, float16 or bfloat16; NumPy (ml_dtypes) or torch
    k       1 ... n
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns (values [..., k] of the dtype of x, indices [..., k] int32). -0 and 0 are equal; NaN counts as larger than
    everything, as in torch.topk. Selection by the bits of the values (radix select, from the highest bit), so the
    result depends on the row alone.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError unless 1 <= k <= n.
    """
    dtype = arrays.dtype_of("top_k", "x", x, ("float32", "float16", "bfloat16"))
    if x.ndim == 0:
        raise TileTypeError("top_k: x is a scalar array, expected at least one dimension")
    *lead, n = x.shape
    if not 1 <= int(k) <= n:
        raise TileValueError(f"top_k: k is {k}, expected 1 to {n}, the elements of a row: {arrays.describe(x=x)}")
    m = math.prod(lead)
    values, indices = allocate((*lead, k), dtype, x), allocate((*lead, k), as_dtype("int32"), x)
    if m:
        width = 64 if n <= 64 else 256 if n <= 256 else ROW_TILE
        kernel = _top_k_kernel(int(k), width, dtype, n <= width, tiles_for(target).threads)
        flat = arrays.unit_last(x).reshape(m, n)
        kernel(flat, values.reshape(m, k), indices.reshape(m, k), target=target)
    return values, indices
