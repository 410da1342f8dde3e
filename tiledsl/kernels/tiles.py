"""Tile sizes of the library's kernels: one small table per target and kind of GPU, and the constants that all share.

Tiles along M and N may differ between targets and shapes: they never change a bit of a result. Tiles along
reduced axes decide the order of sums, so they are constants.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from tiledsl.backend import Target, load_backend, resolve

__all__ = [
    "GEMM_K",
    "KV_TILE",
    "PANEL",
    "ROW_TILE",
    "SPLIT",
    "Tiles",
    "fit",
    "fit_row",
    "fit_rows",
    "product_tile",
    "tiles_for",
]

# Constants of the kernels, equal on all targets (reduced axes).
GEMM_K = 128  # K tile of matmul and grouped_gemm
ROW_TILE = 512  # columns that softmax and rms_norm take at a time
KV_TILE = 64  # keys per step of attention: 128 is 2 to 4 % quicker for long sequences, and half as quick for short ones
PANEL = 64  # columns of a panel of weights packed ahead
SPLIT = 512  # tokens of the cache that attention_decode treats by themselves; a multiple of KV_TILE


class Tiles(NamedTuple):
    """Tile extents to choose from, ascending; `fit` chooses. Every one is a compile of its own, so there are few.

    gemm_m, gemm_n   of matmul
    grouped_m        rows of grouped_gemm (against the mean group), with gemm_n
    attention        query rows (for packed sequences: against the mean length)
    rows             rows of softmax, the norms and swiglu, up to 256 columns
    wide_rows        the same beyond: memory is read best one long row after the other
    attention_backward  query rows, of attention's gradient
    decode           least and most query heads of one key head, when decoding
    decode_rows      query heads of a block that may be those of several key heads
    threads          threads of a block, where that means something
    shared           bytes that a GPU's block may have for its tiles; 0 elsewhere
    """

    gemm_m: tuple[int, ...]
    gemm_n: tuple[int, ...]
    grouped_m: tuple[int, ...]
    attention: tuple[int, ...]
    rows: tuple[int, ...]
    wide_rows: tuple[int, ...] = (4,)
    attention_backward: tuple[int, ...] = (16, 64)
    decode: tuple[int, int] = (16, 64)
    decode_rows: int = 1
    threads: int = 128
    shared: int = 0

    def threads_for(self, columns: int) -> int:
        """Of a block that keeps rows of results of so many columns: on GPUs they are registers of its threads."""
        return self.threads * (2 if self.shared and columns > 256 else 1)

    def within(self, sizes: tuple[int, ...], each: int, others: int) -> tuple[int, ...]:
        """Those of ascending tile sizes that fit beside `others` bytes, at `each` bytes per unit; or the first."""
        return sizes[:1] + tuple(s for s in sizes[1:] if not self.shared or s * each + others <= self.shared)


# Measured on CPUs: small M tiles cost little, because right operands are packed once for all blocks; wide N tiles
# and, beyond the cache, tall M tiles pay where they fit.
COMPILED = Tiles(
    gemm_m=(1, 4, 16, 256),
    gemm_n=(64, 512),
    grouped_m=(1, 4, 16),
    attention=(16,),
    rows=(16,),
    wide_rows=(1,),
    decode=(1, 64),
    decode_rows=32,
)
TABLE: dict[str, Tiles] = {
    "numpy": Tiles(gemm_m=(256,), gemm_n=(256,), grouped_m=(128,), attention=(128,), rows=(64,), wide_rows=(64,)),
    "llvm": COMPILED,
    "numba": COMPILED,
}
DEFAULT = Tiles(gemm_m=(16, 64, 128), gemm_n=(64, 128), grouped_m=(16, 64), attention=(16, 64), rows=(4,))
# GPUs by compute capability, not yet measured: two versions of a product's bfloat16 tiles fit into shared memory, and
# accumulators into 128 registers.
_LARGE = DEFAULT._replace(shared=227 << 10)
_SMALL = DEFAULT._replace(gemm_m=(16, 64), shared=99 << 10)
GPUS = {
    "sm_70": _SMALL._replace(shared=96 << 10), "sm_75": _SMALL._replace(gemm_n=(64,), shared=64 << 10),
    "sm_80": DEFAULT._replace(shared=163 << 10), "sm_87": DEFAULT._replace(shared=163 << 10),
    "sm_86": _SMALL, "sm_88": _SMALL, "sm_89": _SMALL,
    "sm_90": _LARGE, "sm_100": _LARGE, "sm_103": _LARGE, "sm_110": _LARGE, "sm_120": _SMALL, "sm_121": _SMALL,
}  # fmt: skip
MOST_PADDING = 0.25  # of the extent: beyond it a smaller tile is quicker than computing what nobody needs


def tiles_for(target: Any) -> Tiles:
    """The row of the table for a target as the caller named it (None: the default target)."""
    return _row(resolve(target))


@cache
def _row(target: Target) -> Tiles:
    if target.name in TABLE:
        return TABLE[target.name]
    return GPUS.get(load_backend(target.name).capabilities(target).arch.rstrip("af"), DEFAULT)


def product_tile(
    tiles: Tiles, rows: int, columns: int, depth: int, size: int, grouped: bool = False, column_tile: int = 0
) -> tuple[int, int]:
    """Rows and columns of a product's tile, with operands of `size` bytes per element and tiles of `depth` along k.

    grouped: of `grouped_m`; column_tile: is given.
    """
    heights = tiles.grouped_m if grouped else tiles.gemm_m
    across = column_tile or fit(tiles.within(tiles.gemm_n, depth * size, heights[0] * depth * size), columns)
    return fit_rows(tiles.within(heights, depth * size, across * depth * size), rows), across


def fit(sizes: tuple[int, ...], extent: int) -> int:
    """The largest of the ascending `sizes` that overshoots the extent by at most MOST_PADDING, else the smallest."""
    fitting = [s for s in sizes if -(-extent // s) * s <= (1 + MOST_PADDING) * extent]
    return max(fitting, default=sizes[0])


def fit_rows(sizes: tuple[int, ...], rows: int) -> int:
    """As `fit`, but up to 16 rows get one tile that covers them: the weights are read once."""
    few = [s for s in sizes if rows <= s <= 16]
    return few[0] if few else fit(tuple(s for s in sizes if s >= 16), rows)


def fit_row(tiles: Tiles, rows: int, columns: int) -> tuple[int, int]:
    """Tile of a function of rows. A row that fits into a narrower tile than ROW_TILE has the same sums there."""
    width = next((c for c in (64, 256) if columns <= c), ROW_TILE)
    return fit(tiles.rows if width < ROW_TILE else tiles.wide_rows, rows), width
