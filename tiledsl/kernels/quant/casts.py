"""Casts to FP8 and MXFP4 with one scale per block of a row, of a tile, or of a run of rows in a column."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.scales import E4M3, E8M0, FLOOR, FP8, INPUTS, SCALES, block_size, blocks, scale_of
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["cast_kernel", "mxfp4_cast", "per_block_cast", "per_channel_cast", "per_token_cast"]

TILE_ROWS = 16  # of a tile whose blocks are one row high
TILE_COLUMNS = 64  # of a tile whose blocks are one column wide
FP4_FLOOR = 6 * 2.0**-126  # the scale of a block of zeros is the smallest normal number


@tiledsl.jit
def cast_kernel(
    block_M: int, block_N: int, dtype: DType, out_dtype: DType, scale_dtype: DType, floor: float, threads: int = 128
) -> Any:
    """S = scale of each block of block_M x block_N elements, Q = X / S, rounded to nearest even and saturated."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldx = T.dynamic("ldx", "int64")
    rows, columns = (TILE_ROWS if block_M == 1 else block_M), (TILE_COLUMNS if block_N == 1 else block_N)

    @T.prim_func
    def cast(
        X: T.StridedTensor((M, N), (ldx, 1), dtype),
        Q: T.Tensor((M, N), out_dtype),
        S: T.Tensor((T.ceildiv(M, block_M), T.ceildiv(N, block_N)), scale_dtype),
    ):
        with T.Kernel(T.ceildiv(N, columns), T.ceildiv(M, rows), threads=threads) as (bx, by):
            x = T.alloc_fragment((rows, columns), T.float32)
            q = T.alloc_fragment((rows, columns), out_dtype)
            T.copy(X[by * rows, bx * columns], x)
            if block_N == 1:
                largest = T.alloc_fragment((columns,), T.float32)
                scale = T.alloc_fragment((columns,), T.float32)
                T.reduce_absmax(x, largest, dim=0)
                for j in T.Parallel(columns):
                    found = scale_of(largest[j], floor, out_dtype, scale_dtype)
                    S[by, bx * columns + j] = found
                    scale[j] = T.cast(found, T.float32)
                for i, j in T.Parallel(rows, columns):
                    q[i, j] = x[i, j] / scale[j]
            else:
                largest = T.alloc_fragment((rows,), T.float32)
                scale = T.alloc_fragment((rows,), T.float32)
                T.reduce_absmax(x, largest, dim=1)
                if block_M == 1:
                    for i in T.Parallel(rows):
                        found = scale_of(largest[i], floor, out_dtype, scale_dtype)
                        S[by * rows + i, bx] = found
                        scale[i] = T.cast(found, T.float32)
                    for i, j in T.Parallel(rows, columns):
                        q[i, j] = x[i, j] / scale[i]
                else:
                    whole = T.alloc_fragment((1,), T.float32)
                    T.reduce_max(largest, whole, dim=0)
                    for i in T.Parallel(1):
                        found = scale_of(whole[0], floor, out_dtype, scale_dtype)
                        S[by, bx] = found
                        whole[i] = T.cast(found, T.float32)
                    for i, j in T.Parallel(rows, columns):
                        q[i, j] = x[i, j] / whole[0]
            T.copy(q, Q[by * rows, bx * columns])

    return cast


_cast_kernel = cache(cast_kernel)  # the same values, the same kernel


def _cast(
    function: str, x: Any, block: tuple[int, int], dtype: Any, scale_dtype: Any, floor: float, target: Any
) -> tuple[Any, Any]:
    source = arrays.dtype_of(function, "x", x, INPUTS)
    m, n = arrays.rank(function, "x", x, "rows, columns")
    scales = arrays.choice(function, "scale_dtype", scale_dtype, SCALES)
    if not 2.0**-126 <= floor < float("inf"):
        raise TileValueError(f"{function}: floor is {floor}, expected a positive finite float32")
    q = allocate((m, n), as_dtype(dtype), x)
    scale = allocate((blocks(m, block[0]), blocks(n, block[1])), scales, x)
    if m and n:
        kernel = _cast_kernel(*block, source, as_dtype(dtype), scales, float(floor), tiles_for(target).threads)
        kernel(arrays.unit_last(x), q, scale, target=target)
    return q, scale


def per_token_cast(
    x: Any,
    *,
    block: int = 128,
    dtype: Any = E4M3,
    scale_dtype: Any = "float32",
    floor: float = FLOOR,
    target: Any = None,
) -> tuple[Any, Any]:
    """Activations to FP8 with a scale per token and block of columns (DeepSeek-V3's 1x128 form): for the `block`
    elements of a row that share a scale, s = max(max |x|, floor) * (1 / most), with most = 448 (e4m3) or 57344
    (e5m2), products in float32; for scale_dtype e8m0 s is rounded up to a power of two; q = x / s.

    x            [tokens, k], float32, bfloat16 or float16; NumPy (ml_dtypes) or torch
    block        128, 64 or 32; k need not be a multiple: the last block is short
    dtype        "float8_e4m3fn" or "float8_e5m2"
    scale_dtype  "float32" or "float8_e8m0fnu"
    floor        a positive float32
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns (q [tokens, k], scale [tokens, ceil(k / block)]). Bit-exact on every target: maximum, one product, one
    quotient, one rounding to nearest even that saturates. A NaN becomes a NaN and does not enter the scale; an
    infinity becomes the largest code, and its block has the scale of the largest float32.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for another block or floor.
    """
    name = "per_token_cast"
    form = (1, block_size(name, block))
    return _cast(name, x, form, arrays.choice(name, "dtype", dtype, FP8), scale_dtype, floor, target)


def per_block_cast(
    x: Any, *, dtype: Any = E4M3, scale_dtype: Any = "float32", floor: float = FLOOR, target: Any = None
) -> tuple[Any, Any]:
    """Weights to FP8 with a scale per 128 x 128 elements; the formula and its corners as in per_token_cast.

    x        [n, k]; neither need be a multiple of 128
    others   as in per_token_cast

    Returns (q [n, k], scale [ceil(n / 128), ceil(k / 128)]).

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for another floor.
    """
    name = "per_block_cast"
    return _cast(name, x, (128, 128), arrays.choice(name, "dtype", dtype, FP8), scale_dtype, floor, target)


def per_channel_cast(
    x: Any,
    *,
    block: int = 128,
    dtype: Any = E4M3,
    scale_dtype: Any = "float32",
    floor: float = FLOOR,
    target: Any = None,
) -> tuple[Any, Any]:
    """Activations to FP8 with a scale per column and `block` consecutive tokens, as products over tokens (gradients of
    weights) want them; the formula and its corners as in per_token_cast.

    x        [tokens, k]; tokens need not be a multiple of the block
    block    128, 64 or 32
    others   as in per_token_cast

    Returns (q [tokens, k], scale [ceil(tokens / block), k]).

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for another block or floor.
    """
    name = "per_channel_cast"
    form = (block_size(name, block), 1)
    return _cast(name, x, form, arrays.choice(name, "dtype", dtype, FP8), scale_dtype, floor, target)


def mxfp4_cast(x: Any, *, target: Any = None) -> tuple[Any, Any]:
    """To MXFP4 (OCP Microscaling Formats v1.0, with the scale rounded up as DeepSeek-V4 does): for each 32 elements of
    a row s = 2^ceil(log2(max(max |x|, 6 * 2^-126) * (1 / 6))), q = x / s as e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their
    negatives), to nearest even.

    x       [rows, k], k a multiple of 32; float32, bfloat16 or float16; NumPy (ml_dtypes) or torch
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns (q uint8 [rows, k / 2], two elements per byte, the low half first; scale float8_e8m0fnu [rows, k / 32]).
    Bit-exact on every target. e2m1 has neither infinities nor NaN: those become 6 with the sign, and 6; a NaN does not
    enter the scale.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    arrays.dtype_of("mxfp4_cast", "x", x, INPUTS)
    if arrays.rank("mxfp4_cast", "x", x, "rows, k")[1] % 32:
        raise TileTypeError(
            f"mxfp4_cast: {arrays.describe(x=x)}, expected a multiple of 32 columns", help="pad the rows with zeros"
        )
    return _cast("mxfp4_cast", x, (1, 32), as_dtype("float4_e2m1fn"), E8M0, FP4_FLOOR, target)
