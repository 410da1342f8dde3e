"""What every printer of the loop stage asks of it: places in memory, strides, the buffers of a kernel, debug sites."""

from __future__ import annotations

import math

from tiledsl import ir
from tiledsl.dtypes import INT64
from tiledsl.ir.walk import walk

__all__ = ["buffers_of", "constant_index", "count_of", "row_major_strides"]


def count_of(b: ir.Buffer) -> int:
    """Number of elements of a buffer of constant shape."""
    assert b.const_shape is not None
    return math.prod(b.const_shape)


def constant_index(indices: tuple[ir.Expr, ...]) -> int:
    """The one constant index of an element of a variable."""
    (at,) = indices
    assert isinstance(at, ir.Const)
    return int(at.value)


def row_major_strides(b: ir.Buffer) -> tuple[ir.Expr, ...]:
    """Strides in elements: the buffer's own, or the products of its extents, as int64 expressions."""
    if b.strides is not None:
        return b.strides
    running: ir.Expr = ir.Const(1, INT64)
    backwards = []
    for extent in reversed(b.shape):
        backwards.append(running)
        running = _times(running, extent)
    return tuple(reversed(backwards))


def _times(a: ir.Expr, extent: ir.Expr) -> ir.Expr:
    if isinstance(extent, ir.Const):
        extent = ir.Const(int(extent.value), INT64)
    elif extent.dtype is not INT64:
        extent = ir.Cast(extent, INT64)
    if isinstance(a, ir.Const) and isinstance(extent, ir.Const):
        return ir.Const(a.value * extent.value, INT64)
    return extent if isinstance(a, ir.Const) and a.value == 1 else ir.Binary("mul", a, extent)


def buffers_of(body: tuple[ir.Stmt, ...]) -> list[ir.Buffer]:
    """Buffers in memory that a kernel touches, with the roots of views, in order of appearance."""
    found: dict[ir.Buffer, None] = {}
    for n in walk(body):
        if isinstance(n, ir.Buffer) and n.scope != "var":
            for b in n.chain:
                found.setdefault(b)
    return list(found)
