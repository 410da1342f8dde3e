"""NumPy meanings of the thread stage's micro-kernels, which the 32 lanes of a warp do together: matrix instructions.

Views of storage of each thread have the threads as their first axes; scalars may differ between threads. Fragments lie
in registers as the PTX ISA says: lane l of an m16n8 accumulator holds rows l / 4 and l / 4 + 8, columns
2 (l mod 4) and the next; operands hold 4 bytes per register, the lowest k (or n) lowest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tiledsl.ir.exact import fma32

__all__ = ["WARP_MICRO", "a_element", "b_element", "c_element"]

Array = np.ndarray[Any, Any]
_LANES = np.arange(32)
_WIDE = np.dtype(np.float32)


def a_element(i: int, width: int) -> tuple[Array, Array]:
    """(row, k) of element i of the operand A per lane; width: bytes of an element (m16n8k16 of 2, m16n8k32 of 1,
    m16n8k8 of 4)."""
    per = 4 // width  # elements of a register
    register, part = divmod(i, per)
    return _LANES // 4 + 8 * (register % 2), per * (_LANES % 4) + part + 4 * per * (register // 2)


def b_element(i: int, width: int) -> tuple[Array, Array]:
    """(k, column) of element i of the operand B per lane."""
    per = 4 // width
    register, part = divmod(i, per)
    return per * (_LANES % 4) + part + 4 * per * register, _LANES // 4


def c_element(i: int) -> tuple[Array, Array]:
    """(row, column) of element i of the accumulator per lane."""
    return _LANES // 4 + 8 * (i // 2), 2 * (_LANES % 4) + i % 2


def _of_warps(x: Array, elements: int) -> Array:
    """A view of each thread's elements as [warp, lane, element]; shares memory where it can."""
    return x.reshape(-1, 32, elements)


def _mma(
    writes: Sequence[Array], reads: Sequence[Array], scalars: Sequence[Any], attrs: Mapping[str, Any], exact: bool
) -> None:
    """c[16, 8] += a[16, k] @ b[k, 8], k = 8 elements of 4 bytes, 16 of 2 or 32 of 1; each element a k-ascending
    chain. float32 operands count with the 11 bits that "tf32" left of them."""
    width = reads[0].dtype.itemsize
    depth = 32 // width
    a, b = (_of_warps(np.ascontiguousarray(x), n) for x, n in zip(reads, (depth // 2, depth // 4), strict=True))
    c = np.ascontiguousarray(writes[0])
    held = _of_warps(c, 4)
    warps = len(held)
    kind = c.dtype if c.dtype.kind in "iu" else _WIDE
    left, right = np.zeros((warps, 16, depth), kind), np.zeros((warps, depth, 8), kind)
    total = np.zeros((warps, 16, 8), c.dtype)
    for i in range(depth // 2):
        left[:, *a_element(i, width)] = a[:, :, i].astype(kind)
    for i in range(depth // 4):
        right[:, *b_element(i, width)] = b[:, :, i].astype(kind)
    for i in range(4):
        total[:, *c_element(i)] = held[:, :, i]
    for k in range(depth):
        x, y = left[:, :, k, None], right[:, None, k, :]
        total = total + x * y if kind.kind in "iu" else fma32(x, y, total)
    for i in range(4):
        held[:, :, i] = total[:, *c_element(i)]
    writes[0][...] = held.reshape(c.shape)


def _ldmatrix(
    writes: Sequence[Array], reads: Sequence[Array], scalars: Sequence[Any], attrs: Mapping[str, Any], exact: bool
) -> None:
    """Matrices of 8 rows of 16 bytes, one register of each: lane 8 m + i names row i of matrix m by its indices.

    scalars: per axis of the tile the index of the row's first element; attrs: matrices (2 or 4), trans.
    """
    tile, out = reads[0], writes[0]
    count, per = int(attrs["matrices"]), 4 // tile.dtype.itemsize
    threads = out.size // (count * per)
    at = [np.broadcast_to(s, out.shape[: len(np.shape(s))] or (threads,)).reshape(-1, 32) for s in scalars]
    lanes = _LANES[: 8 * count]
    steps = np.arange(4 * per)
    rows = tile[tuple(i[:, lanes, None] + (steps if d == len(at) - 1 else 0) for d, i in enumerate(at))]
    matrices = rows.reshape(-1, count, 8, 4 * per)
    if attrs["trans"]:
        matrices = matrices.swapaxes(2, 3)
    own = matrices.reshape(-1, count, 8, 4, per)[:, :, _LANES // 4, _LANES % 4]
    out[...] = own.swapaxes(1, 2).reshape(out.shape)


def _tf32(
    writes: Sequence[Array], reads: Sequence[Array], scalars: Sequence[Any], attrs: Mapping[str, Any], exact: bool
) -> None:
    """Rounds float32 values to 11 bits, to nearest, ties away from zero; what is no number or infinite stays."""
    x = np.ascontiguousarray(reads[0])
    rounded = ((x.view(np.uint32) + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
    writes[0][...] = np.where(np.isfinite(x), rounded, x)


def _nothing(*_: Any) -> None:
    """Asynchronous copies happen when they are issued: groups of them need not be waited for."""


WARP_MICRO: dict[str, Callable[..., None]] = {
    "mma": _mma,
    "ldmatrix": _ldmatrix,
    "tf32": _tf32,
    "async_commit": _nothing,
    "async_wait": _nothing,
}
