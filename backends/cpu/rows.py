"""Row-major tiles, 16 elements at a time: the loops that gemm and packing are made of."""

from __future__ import annotations

from collections.abc import Iterator

from tiledsl import ir
from tiledsl.dtypes import DType

from .context import Context, vstore
from .wide import F32, LANES, add, i64

__all__ = ["below", "convert", "copy_rows", "element", "round_rows", "rows", "strips", "whole", "zero_of"]


def rows(cx: Context, m: int, n: int) -> Iterator[tuple[ir.Expr, ir.Expr, ir.Expr | None]]:
    """Iterate a row-major m x n tile in vectors: yields (row, column, mask)."""
    full = n // LANES * LANES
    with cx.loop("i", i64(m)) as i:
        if full:
            with cx.loop("j", i64(full), step=LANES) as j:
                yield i, j, None
        if full < n:
            yield i, i64(full), below(i64(full), i64(n))


def strips(cx: Context, n: ir.Expr) -> Iterator[tuple[ir.Expr, ir.Expr | None]]:
    """Sixteen columns at a time: where they begin, and the mask of the last ones."""
    full = n.value // LANES * LANES if isinstance(n, ir.Const) else 0
    if full:
        with cx.loop("j", i64(full), step=LANES) as j:
            yield j, None
    if n != i64(full):
        with cx.loop("j", n, i64(full), LANES) as j:
            yield j, cx.let("tail", below(j, n))


def below(start: ir.Expr, limit: ir.Expr) -> ir.Expr:
    """Lanes whose number, counted from start, is below the limit."""
    return ir.Binary("lt", ir.Ramp(start, 1, LANES), ir.Broadcast(limit, LANES))


def element(r: ir.Region, i: ir.Expr, j: ir.Expr) -> tuple[ir.Expr, ...]:
    """Indices of element (i, j) of the region's last two dimensions."""
    return (*r.starts[:-2], add(r.starts[-2], i), add(r.starts[-1], j))


def copy_rows(cx: Context, src: ir.Region, dst: ir.Region, m: int, n: int) -> None:
    """dst = src, converted."""
    for i, j, mask in rows(cx, m, n):
        x = ir.Load(src.buffer, element(src, i, j), mask, LANES, True)
        cx.emit(vstore(dst.buffer, element(dst, i, j), convert(x, dst.buffer.dtype), mask))


def round_rows(cx: Context, c: ir.Region, m: int, n: int, t: DType) -> None:
    """Round a float32 tile to a half type, in place."""
    for i, j, mask in rows(cx, m, n):
        x = ir.Load(c.buffer, element(c, i, j), mask, LANES, True)
        cx.emit(
            vstore(c.buffer, element(c, i, j), ir.Cast(ir.Cast(x, t.with_lanes(LANES)), F32.with_lanes(LANES)), mask)
        )


def convert(x: ir.Expr, t: DType) -> ir.Expr:
    """A loaded vector as type t (float32 to half and back included)."""
    return x if x.dtype.scalar == t else ir.Cast(x, t.with_lanes(LANES))


def whole(b: ir.Buffer) -> ir.Region:
    """All of a buffer."""
    return ir.Region(b, tuple(i64(0) for _ in b.shape), b.shape)


def zero_of(t: DType) -> ir.Expr:
    """Sixteen zeros."""
    return ir.Broadcast(ir.Const(0.0 if t.is_float else 0, t), LANES)
