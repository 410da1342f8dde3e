"""Intervals of integer expressions from the ranges of the variables in them."""

from __future__ import annotations

from collections.abc import Mapping

from tiledsl import ir
from tiledsl.dtypes import DType

__all__ = ["interval", "limits"]


def limits(t: DType) -> tuple[int, int]:
    """Smallest and largest value of an integer type (bool: 0 and 1)."""
    if t.is_bool:
        return 0, 1
    return (-(1 << (t.bits - 1)), (1 << (t.bits - 1)) - 1) if t.kind == "int" else (0, (1 << t.bits) - 1)


def interval(e: ir.Expr, ranges: Mapping[ir.Var, tuple[int, int]]) -> tuple[int, int]:
    """Bounds of the mathematical value of `e` computed in unbounded integers from operands inside their types."""
    if isinstance(e, ir.Const):
        return int(e.value), int(e.value)
    if isinstance(e, ir.Var):
        return ranges.get(e, limits(e.type))
    if isinstance(e, ir.Binary) and not e.a.dtype.is_float:
        found = _binary(e, ranges)
        if found is not None:
            return found
    if isinstance(e, ir.Cast) and not e.x.dtype.is_float:
        inner, bounds = interval(e.x, ranges), limits(e.type)
        return inner if bounds[0] <= inner[0] and inner[1] <= bounds[1] else bounds
    if isinstance(e, (ir.Select, ir.IfThenElse)):
        t, f = interval(e.t, ranges), interval(e.f, ranges)
        return min(t[0], f[0]), max(t[1], f[1])
    return limits(e.dtype)


def _inside(e: ir.Expr, ranges: Mapping[ir.Var, tuple[int, int]]) -> tuple[int, int]:
    """Bounds of an operand: a sub-expression that may wrap can be anything of its type."""
    lo, hi = interval(e, ranges)
    tmin, tmax = limits(e.dtype)
    return (lo, hi) if tmin <= lo and hi <= tmax else (tmin, tmax)


def _binary(e: ir.Binary, ranges: Mapping[ir.Var, tuple[int, int]]) -> tuple[int, int] | None:
    (al, ah), (bl, bh) = _inside(e.a, ranges), _inside(e.b, ranges)
    op = e.op
    if op == "add":
        return al + bl, ah + bh
    if op == "sub":
        return al - bh, ah - bl
    if op == "mul":
        corners = (al * bl, al * bh, ah * bl, ah * bh)
        return min(corners), max(corners)
    if op == "floordiv" and bl > 0:
        return min(al // bl, al // bh), max(ah // bl, ah // bh)
    if op == "floormod" and bl > 0:
        return (al, ah) if 0 <= al and ah < bl else (0, bh - 1)
    if op == "min":
        return min(al, bl), min(ah, bh)
    if op == "max":
        return max(al, bl), max(ah, bh)
    if op == "bitand" and (al >= 0 or bl >= 0):
        return 0, min(h for lo, h in ((al, ah), (bl, bh)) if lo >= 0)
    if op == "shr" and bl >= 0 and al >= 0:
        return 0, ah
    return None
