"""Arrays of elements of four bits over bytes: what the interpreter sees of a packed buffer (language.md 0.18)."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiledsl.analysis.symbols import row_major
from tiledsl.dtypes import DType

__all__ = ["Nibbles", "memory_of"]

Array = np.ndarray[Any, Any]
_NOWHERE = np.zeros(1, np.uint8)


def memory_of(data: Any) -> Any:
    """The array that owns the memory of an array of either kind."""
    return data.memory if isinstance(data, Nibbles) else data


class Nibbles:
    """An array of a packed dtype. Element number p (`positions`) is a nibble of byte p // 2 of `memory`, the low one
    where p is even.

    Where the interpreter uses an ndarray, this can stand: slices are views, elements and index arrays read values
    (arrays of `dtype.numpy`), and assignment changes half bytes, of equal elements the last one staying.

    memory  uint8, one-dimensional
    grid    shape and strides (in nibbles) as NumPy computes them for views; its own memory is never touched
    start   number of the element that the memory address of `_NOWHERE` stands for
    """

    def __init__(self, memory: Array, packed: DType, grid: Array, start: int) -> None:
        self.memory, self.packed, self.grid, self.start = memory, packed, grid, start

    @classmethod
    def over(
        cls, memory: Array, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...] | None = None, start: int = 0
    ) -> Nibbles:
        """shape and strides in elements; without strides row-major, rows begin at bytes."""
        steps = row_major(shape, packed=True) if strides is None else strides
        return cls(memory, dtype, np.lib.stride_tricks.as_strided(_NOWHERE, shape, steps), start)

    @classmethod
    def empty(cls, dtype: DType, shape: tuple[int, ...]) -> Nibbles:
        """Zeroed memory of its own."""
        count = int(np.prod(shape[:-1], dtype=np.int64)) * -(-shape[-1] // 2)
        return cls.over(np.zeros(count, np.uint8), dtype, shape)

    def copies(self, front: tuple[int, ...]) -> Nibbles:
        """This array once per lane, the lanes' axes in front."""
        made = Nibbles.empty(self.packed, front + self.shape)
        made[...] = self.copy()
        return made

    # -- what ndarrays have --------------------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, ...]:
        shape: tuple[int, ...] = self.grid.shape
        return shape

    @property
    def ndim(self) -> int:
        return self.grid.ndim

    @property
    def size(self) -> int:
        return self.grid.size

    @property
    def dtype(self) -> Any:
        return self.packed.numpy

    @property
    def T(self) -> Nibbles:
        return self._like(self.grid.T)

    def transpose(self, axes: tuple[int, ...]) -> Nibbles:
        return self._like(self.grid.transpose(axes))

    def copy(self) -> Array:
        """The values, an array of their own."""
        return np.asarray(self._read(self.positions()))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self.copy() if dtype is None else self.copy().astype(dtype)

    def __str__(self) -> str:
        return str(self.copy())

    def __getitem__(self, key: Any) -> Any:
        keys = key if isinstance(key, tuple) else (key,)
        return self._read(self.at(keys)) if self._elements(keys) else self._like(self.grid[(*keys, ...)])

    def __setitem__(self, key: Any, value: Any) -> None:
        keys = key if isinstance(key, tuple) else (key,)
        at = self.at(keys) if self._elements(keys) else self._like(self.grid[keys]).positions()
        self._write(np.asarray(at), value)

    # -- elements -------------------------------------------------------------------------------------------

    def positions(self) -> Array:
        """The numbers of all elements, of this array's shape."""
        at = self.at(tuple(np.ogrid[tuple(slice(n) for n in self.shape)]))
        return np.broadcast_to(at, self.shape)

    def at(self, indices: tuple[Any, ...]) -> Any:
        """The numbers of the elements at integers or index arrays."""
        number: Any = self.start + self.grid.ctypes.data - _NOWHERE.ctypes.data
        for i, stride in zip(indices, self.grid.strides, strict=False):
            number = number + np.asarray(i, np.int64) * stride
        return number

    def _elements(self, keys: tuple[Any, ...]) -> bool:
        return len(keys) == self.ndim and not any(isinstance(k, slice) or k is None or k is ... for k in keys)

    def _like(self, grid: Array) -> Nibbles:
        return Nibbles(self.memory, self.packed, grid, self.start)

    def _read(self, at: Any) -> Any:
        code = (self.memory[np.asarray(at) >> 1] >> ((np.asarray(at) & 1) * 4).astype(np.uint8)) & np.uint8(15)
        code = np.asarray(code, np.uint8)
        if self.packed.is_float:
            return code.view(self.dtype)[()]
        signed = (code.astype(np.int8) ^ 8) - 8 if self.packed.is_signed else code
        return signed.astype(self.dtype)[()]

    def _write(self, at: Array, value: Any) -> None:
        values = np.asarray(value)
        if values.dtype != self.dtype:
            values = values.astype(self.dtype)
        code = values.view(np.uint8) if self.packed.is_float else values.astype(np.int8).view(np.uint8)
        code = np.broadcast_to(code & 15, at.shape)
        for high in (0, 1):
            mine = (at & 1) == high
            byte = at[mine] >> 1
            kept = self.memory[byte] & np.uint8(0x0F if high else 0xF0)
            self.memory[byte] = kept | (code[mine] << np.uint8(4 * high))
