"""T.im2col: the windows of an image as rows of a matrix, so that T.gemm is a convolution."""

from __future__ import annotations

from typing import Any

from tiledsl.errors import TileTypeError
from tiledsl.frontend.describe import operand_text
from tiledsl.frontend.location import error
from tiledsl.frontend.loops import LoopSpec, close_loop, open_loop
from tiledsl.frontend.storage import BufferRef, Element, emit_store
from tiledsl.frontend.values import Value, describe, index_expr
from tiledsl.ir import Const
from tiledsl.language.math import if_then_else
from tiledsl.language.memory import as_region
from tiledsl.language.operation import not_inside_parallel, operation

__all__ = ["c2d_im2col", "im2col"]


@operation
def im2col(
    img: Any, col: Any, nhw_step: Any, c_step: Any, kernel: int, stride: int, dilation: int, pad: int,
    eviction_policy: Any = None,
) -> None:  # fmt: skip
    """A tile of the matrix whose rows are the windows of an image.

    img [N, H, W, C] global; col [M, K] block-local, or a slice of that shape. Row m = nhw_step * M + i belongs to the
    output pixel (n, oh, ow) with m = (n * OH + oh) * OW + ow, column k = c_step * K + j to the tap (kh, kw, c) with
    k = (kh * kernel + kw) * C + c, and

        col[i, j] = img[n, oh * stride + kh * dilation - pad, ow * stride + kw * dilation - pad, c]

    with 0 outside the image. OH = (H + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1, OW likewise.
    """
    what = "T.im2col"
    builder = not_inside_parallel(what)
    tile = as_region(col, f"{what}: col")
    shape = tile.extents[-2:]
    if len(shape) != 2 or any(not (isinstance(e, Const) and e.value == 1) for e in tile.extents[:-2]):
        raise error("im2col-tile", TileTypeError, f"{what}: col must be a matrix: {operand_text(tile)}")
    if not isinstance(img, BufferRef) or img.ndim != 4:
        raise error("im2col-image", TileTypeError, f"{what}: img must be a tensor [N, H, W, C], got {describe(img)}")
    for name, value, least in (
        ("kernel", kernel, 1),
        ("stride", stride, 1),
        ("dilation", dilation, 1),
        ("pad", pad, 0),
    ):
        if not isinstance(value, int) or value < least:
            raise error(
                "im2col-window", TileTypeError, f"{what}: {name} is a Python int from {least} on, not {value!r}"
            )
    rows, columns = map(Value, shape)
    first_row, first_column = (
        Value(index_expr(x, f"{what}: {n}")) * size
        for n, x, size in (("nhw_step", nhw_step, rows), ("c_step", c_step, columns))
    )
    images, height, width, channels = (Value(e) for e in img.buffer.shape)
    reach = dilation * (kernel - 1) + 1
    out_h, out_w = ((n + 2 * pad - reach) // stride + 1 for n in (height, width))
    loop = open_loop(builder, LoopSpec.nest(what, "parallel", (rows, columns)), ("i", "j"))
    i, j = (Value(v) for v in loop.vars)
    m, k = (Value(builder.let(n, x.typed)) for n, x in (("m", first_row + i), ("k", first_column + j)))
    y = (m // out_w) % out_h * stride + k // (channels * kernel) * dilation - pad
    x = m % out_w * stride + (k // channels) % kernel * dilation - pad
    y, x = (Value(builder.let(n, v.typed)) for n, v in (("y", y), ("x", x)))
    at = tuple(index_expr(v) for v in (m // (out_w * out_h), y, x, k % channels))
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width) & (k < kernel * kernel * channels)
    value = if_then_else(inside & (m < images * out_h * out_w), Element(img.buffer, at), 0)
    starts = [Value(s) for s in tile.starts]
    place = (*starts[:-2], starts[-2] + i, starts[-1] + j)
    emit_store(tile.buffer, tuple(index_expr(v) for v in place), value)
    close_loop(builder, loop)


c2d_im2col = im2col
