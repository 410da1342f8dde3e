"""The block of shared memory: where each tile lies in it."""

from __future__ import annotations

import math

from tiledsl import ir
from tiledsl.ir.walk import walk

from .names import ELEMENT_BYTES

__all__ = ["ARCHS", "row_swizzle", "shared_limit", "shared_offsets", "swizzles"]

_KILOBYTES = {
    "sm_70": 96, "sm_75": 64, "sm_80": 163, "sm_86": 99, "sm_87": 163, "sm_88": 99, "sm_89": 99, "sm_90": 227,
    "sm_100": 227, "sm_103": 227, "sm_110": 227, "sm_120": 99, "sm_121": 99,
}  # fmt: skip
# Architectures that exist; "a" is one with its own instructions, "f" one with those of its family.
ARCHS = (
    *_KILOBYTES,
    *(f"{a}a" for a in _KILOBYTES if int(a[3:]) >= 90),
    *(f"{a}f" for a in _KILOBYTES if int(a[3:]) >= 100),
)
_ALIGNMENT = 128  # bytes: a vector access, a row of banks and a swizzle's period start evenly


def shared_limit(arch: str) -> int:
    """Bytes of shared memory that a block may have."""
    return _KILOBYTES.get(arch.rstrip("af"), 227) * 1024


def shared_offsets(kernel: ir.Kernel, bytewise: set[ir.Buffer]) -> tuple[dict[ir.Buffer, int], int]:
    """(offset in bytes of every tile in shared memory, bytes in all). bytewise: tiles of 4-bit elements that lie two to
    a byte, because somebody looks at their bytes; the others have one element per byte."""
    offsets: dict[ir.Buffer, int] = {}
    total = 0
    for s in walk(kernel.body):
        if isinstance(s, ir.Alloc) and s.buffer.scope == "shared" and s.buffer.alias_of is None:
            b = s.buffer
            n = math.prod(b.const_shape or ())
            size = -(-n * b.dtype.bits // 8) if b in bytewise else n * ELEMENT_BYTES.get(b.dtype.name, b.dtype.bytes)
            offsets[b] = total
            total += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, total


def swizzles(kernel: ir.Kernel) -> dict[ir.Buffer, tuple[int, int, int]]:
    """Tiles that matrices are loaded from: their rows of 16-byte chunks are permuted, so that a chunk of 8 rows lies
    in different banks. (shift, mask, unit) for column ^ (row >> shift & mask) * unit.

    Rows of 128 bytes and multiples of it: chunk ^ row % 8; of 64: chunk ^ row / 2 % 4; of 32: chunk ^ row / 4 % 2.
    """
    found: dict[ir.Buffer, tuple[int, int, int]] = {}
    touched = [n for n in walk(kernel.body) if isinstance(n, ir.Buffer)]
    whole = {v for n in walk(kernel.body) if isinstance(n, ir.Debug) for v in n.values if isinstance(v, ir.Buffer)}
    viewed = {b.root for b in touched if b.alias_of is not None} | whole
    for s in walk(kernel.body):
        if isinstance(s, ir.MicroCall) and s.name == "ldmatrix":
            b = s.reads[0].buffer
            shape = b.const_shape
            if shape is None or len(shape) < 2 or b in viewed:
                continue
            unit = 16 // b.dtype.bytes
            how = row_swizzle(shape[-1] * b.dtype.bytes)
            if how is not None:
                found[b] = (*how, unit)
    return found


def row_swizzle(size: int) -> tuple[int, int] | None:
    """(shift, mask) for rows of that many bytes: chunk c of row r lies at c ^ (r >> shift & mask)."""
    if size % 128 == 0:
        return 0, 7
    return {64: (1, 3), 32: (2, 1)}.get(size)
