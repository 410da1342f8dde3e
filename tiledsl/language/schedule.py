"""Persistent blocks that walk over tiles with an object that says where they are."""

from __future__ import annotations

import functools
from typing import Any

from tiledsl.errors import TileValueError
from tiledsl.frontend.location import error
from tiledsl.frontend.promotion import INT32
from tiledsl.frontend.values import Value, index_expr
from tiledsl.ir import Const
from tiledsl.language.launch import in_groups
from tiledsl.language.math import ceildiv, min
from tiledsl.language.memory import alloc_var
from tiledsl.language.threads import get_block_extent

__all__ = ["PersistentTileScheduler"]


class PersistentTileScheduler:
    """The tiles of one of `num_workers` persistent blocks, a row m_idx and a column n_idx at a time:

        tiles = T.PersistentTileScheduler(tiles_m, tiles_n)
        tiles.init(b)                     # the number of this worker
        while tiles.valid():
            bx, by = tiles.m_idx, tiles.n_idx
            ...
            tiles.next_tile()

    num_m_tiles, num_n_tiles  extents of the grid of tiles
    num_workers   workers that share the tiles, each visited once; None: the launch's blocks, cluster_size of them one
    swizzle_size  columns (rows, where not column_major) that are taken together, for cache reuse: the order only
    column_major  whether m_idx varies fastest
    cluster_size  blocks that do neighbouring rows together; m_idx then counts such groups of rows
    stateful      False: no variables, only `coord`
    """

    def __init__(
        self, num_m_tiles: Any, num_n_tiles: Any, num_workers: Any = None, swizzle_size: int = 1,
        column_major: bool = True, cluster_size: int = 1, stateful: bool = True, name: str | None = None,
    ) -> None:  # fmt: skip
        what = "T.PersistentTileScheduler"
        for number, is_called in ((swizzle_size, "swizzle_size"), (cluster_size, "cluster_size")):
            if not isinstance(number, int) or number < 1:
                raise error(
                    "scheduler-size",
                    TileValueError,
                    f"T.PersistentTileScheduler: {is_called} is {number!r}",
                    help="a positive Python int",
                )
        self._rows = Value(index_expr(ceildiv(num_m_tiles, cluster_size), f"{what}: num_m_tiles"))
        self._columns = Value(index_expr(num_n_tiles, f"{what}: num_n_tiles"))
        if num_workers is None:
            blocks = functools.reduce(lambda a, b: a * b, (get_block_extent(d) for d in range(3)))
            num_workers = blocks // cluster_size
        self._workers, self._panel, self._column_major = num_workers, swizzle_size, column_major
        if stateful:
            self._at, self._m, self._n, self._round = (alloc_var(INT32, 0) for _ in range(4))

    m_idx = property(lambda self: Value(self._m.expr), doc="The row of the tile.")
    n_idx = property(lambda self: Value(self._n.expr), doc="The column of the tile.")
    linear_idx = property(lambda self: Value(self._at.expr), doc="The number of the tile.")
    current_iter = property(lambda self: Value(self._round.expr), doc="How many tiles this worker has left behind.")

    def coord(self, tile_id: Any) -> tuple[Value, Value]:
        """(m_idx, n_idx) of a tile's number, below the number of tiles."""
        tile = min(
            Value(index_expr(tile_id, "coord: tile_id")), self._rows * self._columns - 1
        )  # none to decode behind
        fast, slow = (self._rows, self._columns) if self._column_major else (self._columns, self._rows)
        across, along = in_groups(tile, fast, slow, self._panel)
        return (along, across) if self._column_major else (across, along)

    def update_current_idx(self, linear_idx: Any) -> None:
        """Goes to a tile."""
        self._m[0], self._n[0] = self.coord(linear_idx)

    def init(self, worker_id: Any) -> None:
        """Goes to the first tile of a worker."""
        self._round[0] = Value(Const(0, INT32))
        self._at[0] = worker_id
        self.update_current_idx(self.linear_idx)

    def next_tile(self) -> None:
        """Goes to the worker's next tile."""
        self._at += self._workers
        self._round += 1
        self.update_current_idx(self.linear_idx)

    def valid(self) -> Any:
        """Whether there is such a tile."""
        return self.linear_idx < self._rows * self._columns
