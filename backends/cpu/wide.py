"""64-bit integer expressions that fold constants: what address arithmetic of the loop stage is made of."""

from __future__ import annotations

from tiledsl import ir
from tiledsl.dtypes import as_dtype

I64 = as_dtype("int64")
F32 = as_dtype("float32")
BOOL = ir.BOOL
LANES = 16
ZERO = ir.Const(0, I64)
ONE = ir.Const(1, I64)
TRUE = ir.Const(True, BOOL)

__all__ = ["BOOL", "F32", "I64", "LANES", "ONE", "TRUE", "ZERO", "add", "and_", "ceildiv", "clamp", "div", "i64", "lt"]
__all__ += ["max_", "min_", "mod", "mul", "narrow", "sub", "widen"]


def i64(x: int) -> ir.Const:
    return ir.Const(x, I64)


def _both(a: ir.Expr, b: ir.Expr) -> tuple[int, int] | None:
    if isinstance(a, ir.Const) and isinstance(b, ir.Const):
        return a.value, b.value
    return None


def add(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if k := _both(a, b):
        return i64(k[0] + k[1])
    if a == ZERO:
        return b
    if b == ZERO:
        return a
    if isinstance(b, ir.Const) and isinstance(a, ir.Binary) and a.op == "add" and isinstance(a.b, ir.Const):
        return add(a.a, i64(a.b.value + b.value))
    return ir.Binary("add", a, b)


def sub(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if k := _both(a, b):
        return i64(k[0] - k[1])
    if b == ZERO:
        return a
    if isinstance(b, ir.Const):
        return add(a, i64(-b.value))
    return ir.Binary("sub", a, b)


def mul(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if k := _both(a, b):
        return i64(k[0] * k[1])
    if a == ZERO or b == ZERO:
        return ZERO
    if a == ONE:
        return b
    return a if b == ONE else ir.Binary("mul", a, b)


def div(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if (k := _both(a, b)) and k[1]:
        return i64(k[0] // k[1])
    return a if b == ONE else ir.Binary("floordiv", a, b)


def mod(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if (k := _both(a, b)) and k[1]:
        return i64(k[0] % k[1])
    return ZERO if b == ONE else ir.Binary("floormod", a, b)


def min_(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if k := _both(a, b):
        return i64(min(k))
    return a if a == b else ir.Binary("min", a, b)


def max_(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if k := _both(a, b):
        return i64(max(k))
    return a if a == b else ir.Binary("max", a, b)


def clamp(x: ir.Expr, lo: ir.Expr, hi: ir.Expr) -> ir.Expr:
    return max_(lo, min_(x, hi))


def ceildiv(a: ir.Expr, b: int) -> ir.Expr:
    return div(add(a, i64(b - 1)), i64(b))


def lt(a: ir.Expr, b: ir.Expr) -> ir.Expr:
    if k := _both(a, b):
        return ir.Const(k[0] < k[1], BOOL)
    return ir.Binary("lt", a, b)


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
    if isinstance(e, ir.Const):
        return i64(int(e.value))
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
