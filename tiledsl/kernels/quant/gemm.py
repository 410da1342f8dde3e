"""Products of FP8 activations with FP8 or MXFP4 weights: each block of K is summed by itself, scaled, and added."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.scales import E4M3, SCALES, blocks, fp4_matrix
from tiledsl.kernels.tiles import fit_rows, tiles_for

__all__ = [
    "check_groups",
    "find_rows",
    "row_block",
    "scaled_gemm",
    "scaled_gemm_kernel",
    "scaled_grouped_gemm",
    "scaled_masked_gemm",
    "tile_count",
]

OUTPUTS = ("bfloat16", "float32", "float16")
FP4 = as_dtype("float4_e2m1fn")
ROWS = (1, 16, 64)  # of a tile; no bit depends on them
BLOCK_N = 64  # divides the 128 columns that share a scale


@T.macro
def find_rows(sizes, groups, room, block, *, block_M):
    """The group, the first row and the number of rows of a block's tile of rows, by walking the sizes, which may lie
    on a device. Groups follow one another, or have `room` rows each (room > 0). Beyond the last tile rows is 0."""
    tile = T.alloc_var(T.int32, block)  # counted from the group at hand
    first = T.alloc_var(T.int32, 0)
    group = T.alloc_var(T.int32, 0)
    row = T.alloc_var(T.int32, 0)
    rows = T.alloc_var(T.int32, 0)
    for g in T.serial(groups):
        size = T.max(T.cast(sizes[g], T.int32), 0)
        if tile >= 0 and tile * block_M < size:
            group = g
            row = first + tile * block_M
            rows = T.min(block_M, size - tile * block_M)
        tile = tile - T.ceildiv(size, block_M)
        first = first + T.if_then_else(room > 0, room, size)
    return group, row, rows


@tiledsl.jit
def scaled_gemm_kernel(
    block_M: int,
    a_block: int,
    b_dtype: DType,
    a_scale_dtype: DType,
    b_scale_dtype: DType,
    out_dtype: DType,
    threads: int = 128,
) -> Any:
    """C[rows of g] = sum over blocks of K of (A B[g]^T of the block) * (SA SB): "promoted accumulation".

    A scale of B holds for 128 x 128 elements (FP8) or 1 x 32 (MXFP4), one of A for 1 x a_block; the shorter block is
    the one that is summed by itself.
    """
    M, N, K, G = T.dynamic("M"), T.dynamic("N"), T.dynamic("K"), T.dynamic("G")
    lda, ldc = T.dynamic("lda", "int64"), T.dynamic("ldc", "int64")
    b_rows, b_block = (1, 32) if b_dtype.is_packed else (128, 128)
    block_K = min(a_block, b_block)

    @T.prim_func
    def scaled_gemm(
        A: T.StridedTensor((M, K), (lda, 1), E4M3),
        SA: T.Tensor((M, T.ceildiv(K, a_block)), a_scale_dtype),
        B: T.Tensor((G, N, K), b_dtype),
        SB: T.Tensor((G, T.ceildiv(N, b_rows), T.ceildiv(K, b_block)), b_scale_dtype),
        sizes: T.Tensor((G,), T.int32),
        room: T.int32,
        tiles: T.int32,
        C: T.StridedTensor((M, N), (ldc, 1), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, BLOCK_N), tiles, threads=threads) as (bx, by):
            A_s = T.alloc_shared((block_M, block_K), E4M3)
            B_s = T.alloc_shared((BLOCK_N, block_K), b_dtype)
            B_wide = T.alloc_shared((BLOCK_N, block_K), E4M3)
            part = T.alloc_fragment((block_M, BLOCK_N), T.float32)
            total = T.alloc_fragment((block_M, BLOCK_N), T.float32)
            sa = T.alloc_fragment((block_M,), T.float32)
            sb = T.alloc_fragment((BLOCK_N,), T.float32)
            group, row, rows = find_rows(sizes, G, room, by, block_M=block_M)
            if rows > 0:
                T.clear(total)
                for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                    T.copy(A[row, k * block_K], A_s)
                    T.copy(B[group, bx * BLOCK_N, k * block_K], B_s)
                    if b_dtype.is_packed:  # matrix units take one type of eight bits: e2m1 is exact in e4m3
                        T.copy(B_s, B_wide)
                        T.gemm(A_s, B_wide, part, transpose_B=True, clear_accum=True)
                    else:
                        T.gemm(A_s, B_s, part, transpose_B=True, clear_accum=True)
                    for i in T.Parallel(block_M):
                        sa[i] = T.cast(SA[row + i, k * block_K // a_block], T.float32)
                    for j in T.Parallel(BLOCK_N):
                        at = (bx * BLOCK_N + j) if b_rows == 1 else bx * BLOCK_N // b_rows
                        sb[j] = T.cast(SB[group, at, k * block_K // b_block], T.float32)
                    for i, j in T.Parallel(block_M, BLOCK_N):
                        total[i, j] = total[i, j] + part[i, j] * (sa[i] * sb[j])
                for i, j in T.Parallel(block_M, BLOCK_N):
                    if i < rows:
                        C[row + i, bx * BLOCK_N + j] = total[i, j]

    return scaled_gemm


_scaled_gemm_kernel = cache(scaled_gemm_kernel)  # the same values, the same kernel


def _weights(name: str, b: Any, b_scale: Any) -> tuple[DType, int, int, int]:
    """dtype, groups, n, k of weights [groups, n, k]. Raises TileTypeError unless the scales fit."""
    given = arrays.dtype_of(name, "b", b, (E4M3, "uint8", "float4_e2m1fn"))
    if given.name != E4M3:
        return (FP4, *fp4_matrix(name, "b", b, b_scale, "groups, n, k / 2"))  # type: ignore[return-value]
    groups, n, k = arrays.rank(name, "b", b, "groups, n, k")
    arrays.dtype_of(name, "b_scale", b_scale, SCALES)
    if tuple(b_scale.shape) != (groups, blocks(n, 128), blocks(k, 128)):
        raise TileTypeError(
            f"{name}: {arrays.describe(b=b, b_scale=b_scale)} do not fit",
            help="FP8 weights [.., n, k] have a scale per 128 x 128 elements, [.., ceil(n / 128), ceil(k / 128)]",
        )
    return given, groups, n, k


def row_block(name: str, a: Any, a_scale: Any, allowed: tuple[int, ...]) -> int:
    """How many columns of a share a scale. Raises TileTypeError unless a_scale has one per row and so many columns."""
    m, k = (int(n) for n in a.shape)
    forms = {blocks(k, block): block for block in allowed}
    rows, per_row = arrays.rank(name, "a_scale", a_scale, "rows, blocks")
    if rows != m or per_row not in forms:
        raise TileTypeError(
            f"{name}: {arrays.describe(a=a, a_scale=a_scale)} do not fit",
            help=f"a has a scale per row and {' or '.join(map(str, sorted(forms.values())))} columns",
        )
    return forms[per_row]


def _run(
    name: str, a: Any, a_scale: Any, b: Any, b_scale: Any, sizes: Any, room: int, out_dtype: Any, out: Any, target: Any
) -> Any:
    """All forms: a [rows, k] with its scales, b [groups, n, k], sizes [groups]; room > 0: the rows of each group."""
    b_dtype, groups, n, k = _weights(name, b, b_scale)
    arrays.dtype_of(name, "a", a, (E4M3,))
    a_scales = arrays.dtype_of(name, "a_scale", a_scale, SCALES)
    m, k_a = arrays.rank(name, "a", a, "rows, k")
    if k_a != k:
        raise TileTypeError(
            f"{name}: inner sizes differ: {arrays.describe(a=a, b=b)}",
            help="a is [.., k] and b is [.., n, k], MXFP4 [.., n, k / 2]",
        )
    a_block = row_block(name, a, a_scale, (32, 128) if b_dtype.is_packed else (128,))
    result = arrays.choice(name, "out_dtype", out_dtype if out is None else out.dtype, OUTPUTS)
    out = arrays.output(name, out, a, (m, n), result, a=a, a_scale=a_scale, b=b, b_scale=b_scale)
    if m and n and groups:
        tiles = tiles_for(target)
        rows_each = room or -(-m // groups)
        block_m = fit_rows(ROWS, rows_each)
        count = tile_count(sizes, block_m, room, m)
        form = block_m, a_block, b_dtype, a_scales, as_dtype(b_scale.dtype), result, tiles.threads
        kernel = _scaled_gemm_kernel(*form)
        kernel(
            arrays.unit_last(a), arrays.dense(a_scale), arrays.dense(b), arrays.dense(b_scale),
            arrays.dense(arrays.as_int32(sizes)), room, count, out, target=target,
        )  # fmt: skip
    return out


def tile_count(sizes: Any, block_m: int, room: int, rows: int) -> int:
    """How many tiles of rows there are: exactly where the sizes lie on the host, else the most that they can need."""
    known = arrays.on_host(sizes)
    if known is not None:
        return int((-(-known.astype(np.int64) // block_m)).sum())
    groups = int(sizes.shape[0])
    return blocks(room, block_m) * groups if room else blocks(rows, block_m) + groups - 1


def scaled_gemm(
    a: Any,
    a_scale: Any,
    b: Any,
    b_scale: Any,
    *,
    out_dtype: Any = "bfloat16",
    out: Any = None,
    target: Any = None,
) -> Any:
    """c = (a a_scale) @ (b b_scale)^T of block-scaled operands with promoted accumulation (DeepSeek-V3's technical
    report, 3.3.2): the products of a block of k are summed in ascending order in float32, the block's sum is
    multiplied by (a_scale * b_scale), and the products are added in ascending order of the blocks, all in float32;
    one rounding to out_dtype.

    a          float8_e4m3fn [m, k]; NumPy (ml_dtypes) or torch
    a_scale    [m, ceil(k / 128)] float32 or float8_e8m0fnu (per_token_cast); for MXFP4 weights also [m, k / 32]
    b          float8_e4m3fn [n, k], or MXFP4: uint8 [n, k / 2], k a multiple of 32
    b_scale    [ceil(n / 128), ceil(k / 128)] float32 or float8_e8m0fnu (per_block_cast); MXFP4: float8_e8m0fnu
               [n, k / 32] (mxfp4_cast); then blocks are 32 long
    out_dtype  "bfloat16", "float32" or "float16"
    out        array [m, n] that receives the result
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns [m, n]. The same bits for any m, n, number of threads and CPU target. A NaN, or a NaN scale, reaches the
    rows or columns that it belongs to. For k = 0 the result is 0.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when out shares memory with an input.
    """
    name = "scaled_gemm"
    for which, x in (("b", b), ("b_scale", b_scale)):
        arrays.rank(name, which, x, "n, k")
    sizes = arrays.like_kind(np.array([arrays.rank(name, "a", a, "m, k")[0]], np.int32), a)
    return _run(name, a, a_scale, b[None], b_scale[None], sizes, 0, out_dtype, out, target)


def scaled_grouped_gemm(
    a: Any,
    a_scale: Any,
    b: Any,
    b_scale: Any,
    group_sizes: Any,
    *,
    out_dtype: Any = "bfloat16",
    out: Any = None,
    target: Any = None,
) -> Any:
    """scaled_gemm for consecutive rows of a, group g owning group_sizes[g] of them with weights of its own (an expert's
    tokens, padded or not).

    a, a_scale   [rows, k] and its scales, as in scaled_gemm
    b, b_scale   [groups, n, k] and its scales, FP8 or MXFP4, as in scaled_gemm with groups in front
    group_sizes  [groups] int32 or int64, zeros allowed; NumPy, or of the kind of a
    out_dtype, out, target as in scaled_gemm

    Returns [rows, n]. Rows beyond the sum of group_sizes are left untouched: they keep what `out` held, and are
    undefined where the library allocated it. A row has the bits that scaled_gemm gives it.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for negative group sizes, for sizes whose sum
    exceeds the rows (both checked where they lie on the host), and when out shares memory with an input.
    """
    name = "scaled_grouped_gemm"
    check_groups(name, group_sizes, a, b)
    return _run(name, a, a_scale, b, b_scale, group_sizes, 0, out_dtype, out, target)


def check_groups(name: str, group_sizes: Any, a: Any, b: Any) -> None:
    """Raises TileTypeError or TileValueError unless the sizes are one per group and count rows that exist."""
    for which, x in (("a", a), ("b", b)):
        arrays.check_array(name, which, x)
    arrays.dtype_of(name, "group_sizes", group_sizes, ("int32", "int64"))
    if arrays.rank(name, "group_sizes", group_sizes, "groups") != (b.shape[0],):
        raise TileTypeError(f"{name}: one size per group expected: {arrays.describe(group_sizes=group_sizes, b=b)}")
    arrays.check_size(name, "group_sizes", group_sizes, 0, a.shape[0])
    known = arrays.on_host(group_sizes)
    if known is not None and int(known.sum(dtype="int64")) > a.shape[0]:
        raise TileValueError(f"{name}: group_sizes sum to {int(known.sum(dtype='int64'))}, but a has {a.shape[0]} rows")


def scaled_masked_gemm(
    a: Any,
    a_scale: Any,
    b: Any,
    b_scale: Any,
    counts: Any,
    *,
    out_dtype: Any = "bfloat16",
    out: Any = None,
    target: Any = None,
) -> Any:
    """scaled_gemm for groups with room for max_m rows each, of which the first counts[g] are there (decoding).

    a, a_scale  [groups, max_m, k] and [groups, max_m, blocks], as in scaled_gemm
    b, b_scale  as in scaled_grouped_gemm
    counts      [groups] int32 or int64, 0 ... max_m; NumPy, or of the kind of a
    out         contiguous array [groups, max_m, n]; out_dtype, target as in scaled_gemm

    Returns [groups, max_m, n]. Rows from counts[g] on are not written. A row has the bits that scaled_gemm gives it.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for counts outside of 0 ... max_m (where they lie
    on the host), and when out shares memory with an input.
    """
    name = "scaled_masked_gemm"
    groups, room, k = arrays.rank(name, "a", a, "groups, max_m, k")
    scales = arrays.rank(name, "a_scale", a_scale, "groups, max_m, blocks")
    arrays.check_array(name, "b", b)
    if scales[:2] != (groups, room) or b.shape[0] != groups:
        raise TileTypeError(f"{name}: groups differ: {arrays.describe(a=a, a_scale=a_scale, b=b)}")
    arrays.dtype_of(name, "counts", counts, ("int32", "int64"))
    if arrays.rank(name, "counts", counts, "groups") != (groups,):
        raise TileTypeError(f"{name}: one count per group expected: {arrays.describe(counts=counts, b=b)}")
    arrays.check_size(name, "counts", counts, 0, room)
    n = int(b.shape[1]) if b.ndim == 3 else 0
    dtype = arrays.choice(name, "out_dtype", out_dtype if out is None else out.dtype, OUTPUTS)
    out = arrays.output(name, out, a, (groups, room, n), dtype, dense=True, a=a, b=b)
    rows = groups * room
    flat = arrays.dense(a).reshape(rows, k), arrays.dense(a_scale).reshape(rows, scales[2])
    _run(name, *flat, b, b_scale, counts, room, None, out.reshape(rows, n), target)
    return out
