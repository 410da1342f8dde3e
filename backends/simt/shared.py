"""The block of shared memory: where each tile lies in it."""

from __future__ import annotations

import math

from tiledsl import ir
from tiledsl.ir.walk import walk

from .names import ELEMENT_BYTES

__all__ = ["shared_offsets"]

_ALIGNMENT = 128  # bytes: a vector access, a row of banks and a swizzle's period start evenly


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
