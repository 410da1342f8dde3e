"""Rows of a table by index: from an array, or from a file larger than memory, gathered ahead in the background."""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
import mmap
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["TableReader", "gather_rows", "gather_rows_kernel"]

WIDTH = 256  # columns of a block
ROWS = ("bfloat16", "float32", "float16", "float8_e4m3fn", "uint8", "int8")


@tiledsl.jit
def gather_rows_kernel(dtype: DType, threads: int = 128) -> Any:
    """Y[i] = Table[I[i]]; 0 for an index out of range."""
    N, D, M = T.dynamic("N"), T.dynamic("D"), T.dynamic("M")

    @T.prim_func
    def gather_rows(Table: T.Tensor((N, D), dtype), I: T.Tensor((M,), T.int32), Y: T.Tensor((M, D), dtype)):
        with T.Kernel(T.ceildiv(D, WIDTH), M, threads=threads) as (bx, i):
            for j in T.Parallel(WIDTH):
                Y[i, bx * WIDTH + j] = Table[I[i], bx * WIDTH + j]

    return gather_rows


_gather_rows_kernel = cache(gather_rows_kernel)  # the same values, the same kernel


def gather_rows(table: Any, index: Any, *, target: Any = None) -> Any:
    """y[..., :] = table[index[...], :].

    table   [rows, d] bfloat16, float32, float16, float8_e4m3fn, uint8 or int8; NumPy (a memory map of a file too, of
            which only the pages of these rows are touched) or torch
    index   any shape, int32
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns [*index.shape, d] of the dtype of table. An index out of range gives zeros.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    dtype = arrays.dtype_of("gather_rows", "table", table, ROWS)
    arrays.dtype_of("gather_rows", "index", index, ("int32",))
    _, d = arrays.rank("gather_rows", "table", table, "rows, d")
    y = allocate((*index.shape, d), dtype, table)
    if count := math.prod(index.shape):
        if d:
            kernel = _gather_rows_kernel(dtype, tiles_for(target).threads)
            kernel(arrays.dense(table), arrays.dense(index).reshape(count), y.reshape(count, d), target=target)
    return y


class TableReader:
    """Rows of a table in a file, which may be larger than memory: resident are the pages of the rows asked for.

    path      a file that holds [rows, d] elements row-major from `offset` on
    d, dtype  elements of a row, and their type, as in gather_rows
    readers   threads that gather in the background

    prefetch(index) asks for rows and returns at once: the system is told which pages will be needed, and a background
    thread gathers the rows. lookup(index) takes what was asked for with the same index, waiting for it if need be;
    without a prefetch it gathers at once. release() gives the pages back to the system; later lookups read them again.
    Use it in a with statement, or close() it. Raises TileTypeError and TileValueError for a file that does not hold
    whole rows.
    """

    def __init__(self, path: str | Path, d: int, dtype: Any, *, offset: int = 0, readers: int = 1) -> None:
        self.dtype = as_dtype(dtype)
        if self.dtype.name not in ROWS:
            raise TileTypeError(f"TableReader: dtype is {dtype!r}, expected {' or '.join(ROWS)}")
        row, size = d * self.dtype.bytes, Path(path).stat().st_size - offset
        if d < 1 or readers < 1 or size < row or size % row:
            raise TileValueError(
                f"TableReader: {path} has {size} bytes from {offset} on, not whole rows of {row} bytes"
            )
        self.rows, self.d, self._offset, self._row = size // row, d, offset, row
        with open(path, "rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._advise("MADV_RANDOM")  # the system's own reading ahead would fetch neighbours
        self._table = np.frombuffer(self._map, np.uint8, size, offset).view(self.dtype.numpy).reshape(self.rows, d)
        self._pool = ThreadPoolExecutor(readers, "engram")
        self._asked: dict[bytes, Future[Any]] = {}

    def _advise(self, how: str, *pages: int) -> None:
        if hasattr(mmap, how):
            self._map.madvise(getattr(mmap, how), *(n * mmap.PAGESIZE for n in pages))

    def pages(self, index: Any) -> np.ndarray[Any, Any]:
        """The pages of the file that hold the rows of an index, ascending, each once."""
        rows = np.unique(np.asarray(index))
        rows = rows[(rows >= 0) & (rows < self.rows)].astype(np.int64)
        first = (self._offset + rows * self._row) // mmap.PAGESIZE
        last = (self._offset + rows * self._row + self._row - 1) // mmap.PAGESIZE
        reach = int((last - first).max(initial=0)) + 1
        return np.unique(np.minimum(first[:, None] + np.arange(reach), last[:, None]))

    def prefetch(self, index: Any, *, target: Any = None) -> int:
        """Ask for the rows of an int32 index on the host. Returns how many pages they lie in."""
        pages = self.pages(index)
        for run in np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1):
            if len(run):
                self._advise("MADV_WILLNEED", int(run[0]), len(run))
        key = np.asarray(index).tobytes()
        self._asked[key] = self._pool.submit(gather_rows, self._table, np.array(index), target=target)
        return len(pages)

    def lookup(self, index: Any, *, target: Any = None) -> Any:
        """gather_rows of the table: [*index.shape, d] NumPy."""
        asked = self._asked.pop(np.asarray(index).tobytes(), None)
        rows = gather_rows(self._table, index, target=target) if asked is None else asked.result()
        return rows.reshape(*np.shape(index), self.d)

    def release(self) -> None:
        """Give all pages back; the table stays usable."""
        self._advise("MADV_DONTNEED")

    def close(self) -> None:
        """End the readers and unmap the file."""
        self._pool.shutdown()
        self._asked.clear()
        del self._table
        with suppress(BufferError):  # somebody still looks at it, a traceback for example: it goes with the last look
            self._map.close()

    def __enter__(self) -> "TableReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
