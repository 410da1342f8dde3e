"""Constants and small helpers of 64-bit address arithmetic in the loop stage."""

from __future__ import annotations

import math

from tiledsl import ir
from tiledsl.dtypes import FLOAT32, INT32, INT64, as_dtype
from tiledsl.ir import build
from tiledsl.ir.build import add, lt, mul, sub

I32, I64, F32 = INT32, INT64, FLOAT32
BOOL = ir.BOOL
LANES = 16
ZERO = ir.Const(0, I64)
TRUE = ir.Const(True, BOOL)
FALSE = ir.Const(False, BOOL)

__all__ = [
    "BOOL",
    "F32",
    "I32",
    "I64",
    "LANES",
    "TRUE",
    "ZERO",
    "add",
    "and_",
    "divided",
    "factor",
    "i64",
    "lt",
    "mul",
    "narrow",
    "sub",
    "widen",
]


def i64(x: int) -> ir.Const:
    return ir.Const(x, I64)


def and_(a: ir.Expr | None, b: ir.Expr | None) -> ir.Expr | None:
    """Conjunction where None means true."""
    for x, y in ((a, b), (b, a)):
        if x is None or x == TRUE:
            return y
    assert a is not None and b is not None
    return ir.Binary("and", a, b)


def widen(e: ir.Expr) -> ir.Expr:
    """The value of a narrow integer (or bool) as int64."""
    if e.dtype == I64:
        return e
    if isinstance(e, ir.Const):  # one of 64 bits without a sign wraps, as the conversion does
        return build.cast(e, I64)
    return ir.Cast(e, I64)


def narrow(e: ir.Expr, dtype: object) -> ir.Expr:
    """int64 to a narrower integer type, wrapping."""
    target = as_dtype(dtype)
    if e.dtype == target:
        return e
    if isinstance(e, ir.Const):
        lo = -(1 << (target.bits - 1)) if target.kind == "int" else 0
        if lo <= e.value < lo + (1 << target.bits):
            return ir.Const(e.value, target)
    if isinstance(e, ir.Cast) and e.x.dtype == target and e.dtype == I64:
        return e.x
    return ir.Cast(e, target)


def factor(e: ir.Expr, base: ir.Expr) -> int:
    """A number that divides e, where base (the first lane's number) is a multiple of 16; 0 divides nothing but 0."""
    if isinstance(e, ir.Const):
        return abs(int(e.value))
    if isinstance(e, ir.Binary) and e.op in ("add", "sub", "mul"):
        a, b = factor(e.a, base), factor(e.b, base)
        return a * b if e.op == "mul" else math.gcd(a, b)
    return LANES if e is base else 1


def divided(e: ir.Expr) -> tuple[ir.Expr, int, bool] | None:
    """(a, n, whether it is the quotient) of e = floor(a / n), n * floor(a / n) or the rest of a by n, for a constant n
    above 0, however it is written; the second counts as a quotient."""
    if not isinstance(e, ir.Binary) or not isinstance(e.b, ir.Const) or not e.dtype.is_int:
        return None
    n = int(e.b.value)
    if e.op in ("floordiv", "floormod") and n > 0:
        return e.a, n, e.op == "floordiv"
    if e.op == "shr" and 0 <= n < 31:
        return e.a, 1 << n, True
    if e.op == "bitand" and n and (n & (n + 1) == 0 or -n & (-n - 1) == 0):
        return e.a, n + 1 if n > 0 else -n, n < 0
    return None
