"""What block-scaled types share: the scale of a block from its largest element, shapes of blocks, and their checks."""

# mypy: disable-error-code="no-untyped-def"
from typing import Any

import numpy as np

import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays

__all__ = ["BLOCKS", "E4M3", "E8M0", "FLOOR", "FP8", "INPUTS", "MOST", "SCALES", "block_size", "blocks"]
__all__ += ["fp4_matrix", "scale_of"]

E4M3, E8M0 = "float8_e4m3fn", "float8_e8m0fnu"
FP8 = (E4M3, "float8_e5m2")
SCALES = ("float32", E8M0)
INPUTS = ("float32", "bfloat16", "float16")
BLOCKS = (128, 64, 32)
MOST = {E4M3: 448.0, "float8_e5m2": 57344.0, "float4_e2m1fn": 6.0}
FLOOR = 1e-4  # blocks with smaller elements are scaled as if they had one of this size
LARGEST = float(np.finfo(np.float32).max)


def scale_of(largest: Any, floor: float, dtype: DType, scale_dtype: DType) -> Any:
    """The scale of a block as an expression of scale_dtype: max(largest, floor) * (1 / most), each float32, for e8m0
    rounded up to a power of two. An infinite element counts as the largest float32: it saturates, the scale stays
    finite."""
    size = T.max(T.min(largest, LARGEST), floor) * float(np.float32(1 / MOST[dtype.name]))
    return T.cast(size, scale_dtype)


def blocks(extent: int, block: int) -> int:
    """How many blocks cover the extent; the last may be short."""
    return -(-extent // block)


def block_size(function: str, block: Any, allowed: tuple[int, ...] = BLOCKS) -> int:
    """Raises TileValueError unless the block is one of the formats'."""
    if block not in allowed:
        raise TileValueError(f"{function}: block is {block!r}, expected {' or '.join(map(str, allowed))}")
    return int(block)


def fp4_matrix(function: str, name: str, q: Any, scale: Any, dims: str) -> tuple[int, ...]:
    """The logical shape [..., k] of a matrix of e2m1 pairs [..., k / 2] with e8m0 scales [..., k / 32]. Raises
    TileTypeError unless widths and scales fit."""
    arrays.dtype_of(function, name, q, ("uint8", "int8", "float4_e2m1fn"))
    arrays.dtype_of(function, f"{name}_scale", scale, (E8M0,))
    *lead, half = arrays.rank(function, name, q, dims)
    k = 2 * half
    if k % 32 or tuple(scale.shape) != (*lead, k // 32):
        raise TileTypeError(
            f"{function}: {arrays.describe(**{name: q, f'{name}_scale': scale})} do not fit",
            help="rows hold k / 2 bytes, two elements each, and k / 32 scales; k is a multiple of 32",
        )
    return (*lead, k)
