"""Layouts with the methods of TileLang's: what programs compute from them on the host. Of tiles they are hints; of a
global tensor the order in memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import tiledsl.language as T

__all__ = ["Fragment", "identity", "swizzled"]


def identity(buffer: Any, *args: Any, **kw: Any) -> Any:
    """The layout in which a buffer lies anyway."""
    shape = [getattr(n, "value", n) for n in buffer.shape]
    return T.Layout(shape, lambda *indices: list(indices))


def swizzled(buffer: Any, *args: Any, sizes: Sequence[int] = (8, 4, 2), **kw: Any) -> Any:
    """Rows of 128, 64 or 32 bytes, the most that divides a row, whose pieces of 16 bytes change places: piece c of row
    r lies at c xor r // (8 / pieces) % pieces, so that 8 rows fill the banks of shared memory evenly.

    sizes  how many pieces a row may have

    What no such rows divide, or is no matrix of known extents, lies as it is.
    """
    *_, rows, columns = (None, None, *(getattr(n, "value", n) for n in buffer.shape))
    bits = T.dtype(buffer.dtype).bits
    pieces = next((n for n in sizes if isinstance(columns, int) and columns * bits % (n * 128) == 0), 0)
    if len(buffer.shape) < 2 or not isinstance(rows, int) or rows % 8 or not pieces or 128 % bits:
        return identity(buffer)
    per = 128 // bits  # elements of a piece

    def forward(*indices: Any) -> list[Any]:
        *front, r, j = indices
        piece = (j // per % pieces) ^ (r % 8 // (8 // pieces))
        return [*front, j // (per * pieces), r // 8, (r % 8 * pieces + piece) * per + j % per]

    return T.Layout(list(buffer.shape), forward)


class Fragment(T.Fragment):
    """`T.Fragment(shape, forward_fn)`: which thread holds an element, and where.

    forward_fn gives (thread, index); forward_thread_fn and forward_index_fn give them apart. All take the indices, and
    a number below `replicate` behind them where that is above 1.
    """

    def __init__(
        self, shape: Any, forward_fn: Any = None, forward_thread_fn: Any = None, replicate: int = 1,
        forward_index_fn: Any = None,
    ) -> None:  # fmt: skip
        super().__init__(shape, forward_fn, forward_thread_fn, replicate, forward_index_fn)
        self.shape = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        self.copies = replicate
        vars(self)["replicate"] = self._replicate

    def place(self, indices: Sequence[int], copy: int = 0) -> tuple[int, Any]:
        """(thread, index there) of an element with these indices (Python ints)."""
        given = (*indices, copy) if self.copies > 1 else tuple(indices)
        if self.forward_fn is not None:
            thread, *index = self.forward_fn(*given)
            return thread, index[0] if len(index) == 1 else tuple(index)
        assert self.forward_thread_fn is not None
        return self.forward_thread_fn(*given), self.forward_index_fn(*indices) if self.forward_index_fn else 0

    def get_thread_size(self) -> int:
        """How many threads hold elements."""
        return 1 + max(int(self.place(i, c)[0]) for i in _all(self.shape) for c in range(self.copies))

    def get_local_size(self) -> int:
        """How many elements of a tile a thread holds."""
        return int(math.prod(self.shape)) * self.copies // self.get_thread_size()

    def repeat(self, repeats: Sequence[int], repeat_on_thread: bool = False, lower_dim_first: bool = True) -> Fragment:
        """A larger tile of copies of this one, side by side: in more threads, or at more places of each."""
        threads, places, axes = self.get_thread_size(), self.get_local_size(), range(len(self.shape))

        def forward(*given: Any) -> tuple[Any, Any]:
            copy = given[len(self.shape)] if self.copies > 1 else 0
            number: Any = 0
            for d in axes if lower_dim_first else reversed(axes):
                number = number * repeats[d] + given[d] // self.shape[d]
            thread, index = self.place([given[d] % self.shape[d] for d in axes], copy)
            return (thread + number * threads, index) if repeat_on_thread else (thread, index + number * places)

        return Fragment([n * r for n, r in zip(self.shape, repeats, strict=True)], forward, replicate=self.copies)

    def _replicate(self, times: int) -> Fragment:
        """The same tile in `times` groups of threads."""
        threads = self.get_thread_size()

        def forward(*given: Any) -> tuple[Any, Any]:
            *indices, copy = given
            thread, index = self.place(indices, copy % self.copies)
            return thread + copy // self.copies * threads, index

        return Fragment(self.shape, forward, replicate=self.copies * times)

    def condense_rep_var(self) -> Fragment:
        """Nothing is to be simplified."""
        return self


def _all(shape: Sequence[int]) -> Any:
    import itertools

    return itertools.product(*map(range, shape))
