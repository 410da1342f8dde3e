"""Two-dimensional convolution as a matrix product: rows of patches, gathered tile by tile (im2col, nothing stored)."""

# mypy: disable-error-code="no-untyped-def,valid-type,operator"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import fit, product_tile, tiles_for
from tiledsl.runtime import allocate

__all__ = ["conv2d", "conv2d_kernel"]

INNER_TILES = (16, 32, 64, 128)  # along the patch; the sum is one chain per element, so any tile gives the same bits


@tiledsl.jit
def conv2d_kernel(block_M: int, block_N: int, block_K: int, dtype: DType, out_dtype: DType, threads: int = 128) -> Any:
    """C[p, f] = sum over taps t and k of X[image, y, x + k] W[t, k, f], for p = output pixels in row-major order.

    X is [images, height, width * channels] and W [taps, K, filters]: a tap is a row of the filter, and K its whole
    width times the channels, which lie next to each other in X too. (With a dilation along x a tap is one element
    of the filter.) Rows and columns outside of the image read 0.
    """
    images, height, line = T.dynamic("images"), T.dynamic("height"), T.dynamic("line")
    taps, K, N = T.dynamic("taps"), T.dynamic("K"), T.dynamic("N")
    pixels = T.dynamic("pixels")
    x_image, x_row = T.dynamic("x_image", "int64"), T.dynamic("x_row", "int64")

    @T.prim_func
    def conv2d(
        X: T.StridedTensor((images, height, line), (x_image, x_row, 1), dtype),
        W: T.Tensor((taps, K, N), dtype),
        out_height: T.int32,
        out_width: T.int32,
        stride_y: T.int32,
        step_x: T.int32,  # elements of a line from one output pixel to the next
        first_y: T.int32,
        first_x: T.int32,  # element of a line where the patch of output column 0 begins
        taps_x: T.int32,  # taps per row of the filter
        tap_y: T.int32,
        tap_x: T.int32,
        C: T.Tensor((pixels, N), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(pixels, block_M), threads=threads) as (bx, by):
            A_s = T.alloc_shared((block_M, block_K), dtype)
            B_s = T.alloc_shared((block_K, block_N), dtype)
            acc = T.alloc_fragment((block_M, block_N), arrays.accumulator(dtype))
            T.clear(acc)
            for t in T.serial(taps):
                for k in T.serial(T.ceildiv(K, block_K)):
                    for i, j in T.Parallel(block_M, block_K):
                        p = by * block_M + i
                        image = p // (out_height * out_width)
                        y = p // out_width % out_height * stride_y + first_y + t // taps_x * tap_y
                        x = p % out_width * step_x + first_x + t % taps_x * tap_x
                        column = k * block_K + j
                        A_s[i, j] = T.if_then_else(column < K, X[image, y, x + column], T.cast(0, dtype))
                    T.copy(W[t, k * block_K, bx * block_N], B_s)
                    T.gemm(A_s, B_s, acc)
            T.copy(acc, C[by * block_M, bx * block_N])

    return conv2d


_conv2d_kernel = cache(conv2d_kernel)  # the same values, the same kernel


def conv2d(
    x: Any,
    weight: Any,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    out_dtype: Any = None,
    target: Any = None,
) -> Any:
    """Convolution (cross-correlation, as networks have it) of images with channels last:
    y[n, i, j, f] = sum_{r, s, c} x[n, i stride + r dilation - padding, j stride + s dilation - padding, c]
    weight[r, s, c, f], elements outside of the image counting as 0 (by a product with patches as rows: Chellapilla,
    Puri and Simard, 2006).

    x          [images, height, width, channels]; float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    weight     [filter height, filter width, channels, filters], dtype of x
    stride, padding, dilation   a number, or one each for height and width
    out_dtype  dtype of the result, one of the same four; default: that of x
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns [images, out height, out width, filters], out = (size + 2 padding - dilation (filter - 1) - 1) // stride
    + 1. Sums are float32 (float64 for float64), in the order of r, s, c; rounded once.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for strides and dilations below 1, negative
    paddings, and filters larger than the padded image.
    """
    name = "conv2d"
    dtype = arrays.floats(name, x=x, weight=weight)
    images, height, width, channels = arrays.rank(name, "x", x, "images, height, width, channels")
    rows, cols, c, filters = arrays.rank(name, "weight", weight, "rows, columns, channels, filters")
    if c != channels:
        raise TileTypeError(
            f"{name}: channels differ: {arrays.describe(x=x, weight=weight)}",
            help="x is [images, height, width, channels], weight [rows, columns, channels, filters]",
        )
    (sy, sx), (py, px), (dy, dx) = (
        _pair(name, what, v, low)
        for what, v, low in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1))
    )
    out_height = (height + 2 * py - dy * (rows - 1) - 1) // sy + 1
    out_width = (width + 2 * px - dx * (cols - 1) - 1) // sx + 1
    if min(rows, cols, channels) < 1 or min(out_height, out_width) < 1:
        raise TileValueError(
            f"{name}: the filter does not fit: {arrays.describe(x=x, weight=weight)}, "
            f"padding {(py, px)}, dilation {(dy, dx)}"
        )
    result = arrays.out_dtype(name, out_dtype, None, dtype)
    out = allocate((images, out_height, out_width, filters), result, x)
    pixels = images * out_height * out_width
    if pixels and filters:
        taps_x, inner = (1, cols * channels) if dx == 1 else (cols, channels)
        X = arrays.dense(x).reshape(images, height, width * channels)
        W = arrays.dense(weight).reshape(rows * taps_x, inner, filters)
        tiles = tiles_for(target)
        inner_tile = fit(INNER_TILES, inner)
        sizes = *product_tile(tiles, pixels, filters, inner_tile, dtype.bytes), inner_tile
        kernel = _conv2d_kernel(*sizes, dtype, result, tiles.threads)
        steps = sy, sx * channels, -py, -px * channels, taps_x, dy, dx * channels
        kernel(X, W, out_height, out_width, *steps, out.reshape(pixels, filters), target=target)
    return out


def _pair(function: str, what: str, value: Any, low: int) -> tuple[int, int]:
    try:
        y, x = (value, value) if isinstance(value, int) else (int(v) for v in value)
    except (TypeError, ValueError):
        y = x = low - 1
    if y < low or x < low:
        raise TileValueError(f"{function}: {what} is {value!r}, expected one or two integers from {low} on")
    return y, x
