"""From FP8 and MXFP4 back to floats, and from MXFP4 to FP8 without loss."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.scales import E4M3, E8M0, FP8, SCALES, blocks, fp4_matrix
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["dequantize", "dequantize_kernel", "fp4_to_fp8", "fp4_to_fp8_kernel"]

TILE_ROWS, TILE_COLUMNS = 16, 64


@tiledsl.jit
def dequantize_kernel(
    block_M: int, block_N: int, dtype: DType, scale_dtype: DType, out_dtype: DType, threads: int = 128
) -> Any:
    """Y[i, j] = Q[i, j] * S[i // block_M, j // block_N]."""
    M, N = T.dynamic("M"), T.dynamic("N")
    rows, columns = (TILE_ROWS if block_M == 1 else block_M), (TILE_COLUMNS if block_N == 1 else block_N)

    @T.prim_func
    def dequantize(
        Q: T.Tensor((M, N), dtype),
        S: T.Tensor((T.ceildiv(M, block_M), T.ceildiv(N, block_N)), scale_dtype),
        Y: T.Tensor((M, N), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, columns), T.ceildiv(M, rows), threads=threads) as (bx, by):
            for i, j in T.Parallel(rows, columns):
                row = by if block_M > 1 else by * rows + i
                column = bx if block_N > 1 else bx * columns + j
                value = T.cast(Q[by * rows + i, bx * columns + j], T.float32)
                Y[by * rows + i, bx * columns + j] = value * T.cast(S[row, column], T.float32)

    return dequantize


_dequantize_kernel = cache(dequantize_kernel)  # the same values, the same kernel


def dequantize(q: Any, scale: Any, *, block: tuple[int, int], out_dtype: Any = "bfloat16", target: Any = None) -> Any:
    """y[i, j] = q[i, j] * scale[i // block[0], j // block[1]], the product in float32, rounded once.

    q          [rows, columns] float8_e4m3fn or float8_e5m2; or MXFP4 pairs, uint8 [rows, columns / 2]; NumPy
               (ml_dtypes) or torch
    scale      [ceil(rows / block[0]), ceil(columns / block[1])] float32 or float8_e8m0fnu
    block      (1, 128), (1, 64), (1, 32) per token; (128, 128) per block; (128, 1), (64, 1), (32, 1) per channel; any
               multiple of 32 stands where these have one
    out_dtype  "bfloat16", "float32" or "float16"
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns [rows, columns] of out_dtype. Bit-exact on every target; a NaN in either gives NaN.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for blocks that are not of these forms.
    """
    name = "dequantize"
    given = arrays.dtype_of(name, "q", q, (*FP8, "uint8", "float4_e2m1fn"))
    dtype = given if given.name in FP8 else as_dtype("float4_e2m1fn")
    scale_dtype = arrays.dtype_of(name, "scale", scale, SCALES)
    out = arrays.choice(name, "out_dtype", out_dtype, ("bfloat16", "float32", "float16"))
    m, n = arrays.rank(name, "q", q, "rows, columns")
    n = 2 * n if dtype.is_packed else n
    if not isinstance(block, (tuple, list)) or len(block) != 2:
        raise TileValueError(f"{name}: block is {block!r}, expected rows and columns that share a scale: (1, 128)")
    r, c = (int(e) for e in block)
    if not (r > 0 and c > 0 and (r == 1 or r % 32 == 0) and (c == 1 or c % 32 == 0) and (r, c) != (1, 1)):
        raise TileValueError(f"{name}: block is {block}, expected (1, 128), (128, 128), (128, 1) or such")
    if tuple(scale.shape) != (blocks(m, r), blocks(n, c)):
        raise TileTypeError(
            f"{name}: {arrays.describe(q=q, scale=scale)} do not fit for blocks of {r} x {c}",
            help=f"scale is [{blocks(m, r)}, {blocks(n, c)}]",
        )
    y = allocate((m, n), out, q)
    if m and n:
        kernel = _dequantize_kernel(r, c, dtype, scale_dtype, out, tiles_for(target).threads)
        kernel(arrays.dense(q), arrays.dense(scale), y, target=target)
    return y


@tiledsl.jit
def fp4_to_fp8_kernel(block_M: int, threads: int = 128) -> Any:
    """Per block_M x 128 elements: E8 = max(E4 - 6, 0) over the block's e8m0 codes E4, Q8 = Q4 * 2^(E4 - E8).
    Lossy counts the elements of each tile that e4m3 cannot hold."""
    M, N = T.dynamic("M"), T.dynamic("N")
    rows = TILE_ROWS if block_M == 1 else block_M

    @T.prim_func
    def fp4_to_fp8(
        Q4: T.Tensor((M, N), "float4_e2m1fn"),
        S4: T.Tensor((M, N // 32), E8M0),
        Q8: T.Tensor((M, N), E4M3),
        S8: T.Tensor((T.ceildiv(M, block_M), T.ceildiv(N, 128)), E8M0),
        Lossy: T.Tensor((T.ceildiv(M, rows), T.ceildiv(N, 128)), T.int32),
    ):
        with T.Kernel(T.ceildiv(N, 128), T.ceildiv(M, rows), threads=threads) as (bx, by):
            code = T.alloc_fragment((rows, 4), T.int32)
            common = T.alloc_fragment((rows,), T.int32)
            wrong = T.alloc_fragment((rows, 128), T.int32)
            counts = T.alloc_fragment((rows,), T.int32)
            count = T.alloc_fragment((1,), T.int32)
            for i, j in T.Parallel(rows, 4):
                code[i, j] = T.cast(T.reinterpret(S4[by * rows + i, bx * 4 + j], T.uint8), T.int32)
            T.reduce_max(code, common, dim=1)
            if block_M > 1:
                T.reduce_max(common, count, dim=0)
                for i in T.Parallel(rows):
                    common[i] = count[0]
            for i in T.Parallel(rows):  # 0xFF is NaN, of all that the block holds
                common[i] = T.if_then_else(common[i] == 255, 255, T.max(common[i] - 6, 0))
                if block_M == 1 or i == 0:
                    S8[by if block_M > 1 else by * rows + i, bx] = T.reinterpret(T.cast(common[i], T.uint8), E8M0)
            for i, j in T.Parallel(rows, 128):
                # 2^-24 and less leaves nothing of e2m1 in e4m3: an exponent that stays a normal float32 will do
                ratio = T.max(code[i, j // 32] - common[i], -40)
                factor = T.reinterpret((ratio + 127) << 23, T.float32)
                value = T.cast(Q4[by * rows + i, bx * 128 + j], T.float32) * factor
                short = T.cast(value, E4M3)
                Q8[by * rows + i, bx * 128 + j] = short
                wrong[i, j] = T.if_then_else(T.cast(short, T.float32) == value or common[i] == 255, 0, 1)
            T.reduce_sum(wrong, counts, dim=1)
            T.reduce_sum(counts, count, dim=0)
            for i in T.Parallel(1):
                Lossy[by, bx] = count[i]

    return fp4_to_fp8


_fp4_to_fp8_kernel = cache(fp4_to_fp8_kernel)


def fp4_to_fp8(q: Any, scale: Any, *, per_token: bool = False, check: bool = True, target: Any = None) -> Any:
    """MXFP4 weights as FP8 weights of the same values (DeepSeek-V4's training products read FP4 masters so). Within a
    block of 128 x 128 elements S8 = max S4 / 2^6, so that the largest element is at most 6 * 2^6 = 384 < 448; each 32
    elements are multiplied by S4 / S8 and cast to e4m3. Exact while S4 / S8 >= 2^-8, that is for scales that lie
    within a factor of 2^14, and beyond for elements whose bits allow it.

    q          uint8 [n, k / 2], pairs of e2m1; NumPy or torch
    scale      float8_e8m0fnu [n, k / 32]; k a multiple of 32
    per_token  True: a scale per 1 x 128 elements
    check      raise where an element would be rounded (on the host; a device's result is not looked at)
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns (float8_e4m3fn [n, k], float8_e8m0fnu [ceil(n / 128), ceil(k / 128)] or [n, ceil(k / 128)]). Where the
    largest scale is below 2^-121, S8 is 2^-127. A NaN scale makes the block's scale NaN.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for elements that e4m3 cannot hold.
    """
    name = "fp4_to_fp8"
    n, k = fp4_matrix(name, "q", q, scale, "n, k / 2")
    rows = 1 if per_token else 128
    q8 = allocate((n, k), as_dtype(E4M3), q)
    s8 = allocate((blocks(n, rows), blocks(k, 128)), as_dtype(E8M0), q)
    if n and k:
        lossy = allocate((blocks(n, max(rows, TILE_ROWS)), blocks(k, 128)), as_dtype("int32"), q)
        kernel = _fp4_to_fp8_kernel(rows, tiles_for(target).threads)
        kernel(arrays.dense(q), arrays.dense(scale), q8, s8, lossy, target=target)
        counts = arrays.on_host(lossy) if check else None
        if counts is not None and counts.any():
            raise TileValueError(
                f"{name}: {int(counts.sum())} elements lie too far below their block's largest scale for e4m3",
                help="per_token=True compares fewer scales; check=False rounds such elements",
            )
    return q8, s8
