"""Packed elements in memory: half a byte each, the low half first (language.md 0.18).

Arguments and whatever is looked at as another type stay bytes, and each access shifts and masks; a tile of the block
that nobody looks at otherwise is kept with one element per float32 or byte (`storage.py`).
"""

from __future__ import annotations

from tiledsl import ir
from tiledsl.dtypes import INT8, UINT8, UINT32, DType
from tiledsl.ir import build

from .wide import F32, I64

__all__ = ["byte_at", "bytes_of", "decoded", "encoded", "holder", "replaced"]

_SMALLEST = 2.0**126  # e2m1's exponents, in float32's place, are so much too small


def holder(t: DType) -> DType:
    """The type that values of a packed type have when they are not in bytes."""
    return F32 if t.is_float else INT8 if t.is_signed else UINT8


def bytes_of(b: ir.Buffer, scope: str, root: ir.Buffer | None) -> ir.Buffer:
    """The memory of a packed buffer as uint8: half as many columns, rows begin at bytes."""
    shape = (*b.shape[:-1], build.ceildiv(b.shape[-1], 2))
    strides = None
    if b.strides is not None:
        strides = (*(build.floordiv(s, 2) for s in b.strides[:-1]), b.strides[-1])
    offset = None if b.offset is None else build.floordiv(b.offset, 2)
    return ir.Buffer(b.name, UINT8, shape, scope, strides, alias_of=root, offset=offset)


def byte_at(index: ir.Expr) -> tuple[ir.Expr, ir.Expr]:
    """The byte that holds an element of a row, and whether it is the high half; int64, scalar or vector."""
    lanes = index.dtype.lanes
    one = _like(1, I64, lanes)
    odd = ir.Binary("ne", ir.Binary("bitand", index, one), _like(0, I64, lanes))
    return ir.Binary("shr", index, one), odd


def _like(value: float, t: DType, lanes: int) -> ir.Expr:
    c = ir.Const(value, t)
    return c if lanes == 1 else ir.Broadcast(c, lanes)


def _op(op: str, x: ir.Expr, value: float) -> ir.Expr:
    return ir.Binary(op, x, _like(value, x.dtype.scalar, x.dtype.lanes))


def _bits(x: ir.Expr, t: DType) -> ir.Expr:
    return ir.Call("reinterpret", (x,), t.with_lanes(x.dtype.lanes))


def decoded(byte: ir.Expr, odd: ir.Expr, t: DType) -> ir.Expr:
    """The element in one half of a byte, as `holder(t)`."""
    lanes = byte.dtype.lanes
    code = ir.Select(odd, _op("shr", byte, 4), _op("bitand", byte, 15))
    if t.kind == "uint":
        return code
    if t.kind == "int":
        return _op("shr", _op("shl", ir.Cast(code, INT8.with_lanes(lanes)), 4), 4)
    word = ir.Cast(code, UINT32.with_lanes(lanes))
    size = _op("mul", _bits(_op("shl", _op("bitand", word, 7), 22), F32), _SMALLEST)
    sign = _op("shl", _op("bitand", word, 8), 28)
    return _bits(ir.Binary("bitor", _bits(size, UINT32), sign), F32)


def encoded(x: ir.Expr, t: DType) -> ir.Expr:
    """The code, in a uint8, of a value of t that is held as `holder(t)`."""
    u8 = UINT8.with_lanes(x.dtype.lanes)
    if not t.is_float:
        return _op("bitand", ir.Cast(x, u8) if x.dtype is not u8 else x, 15)
    word = _bits(_op("mul", x, 1 / _SMALLEST), UINT32)
    size, sign = _op("bitand", _op("shr", word, 22), 7), _op("bitand", _op("shr", word, 28), 8)
    return ir.Cast(ir.Binary("bitor", size, sign), u8)


def replaced(byte: ir.Expr, odd: ir.Expr, code: ir.Expr) -> ir.Expr:
    """The byte with one half replaced."""
    high = ir.Binary("bitor", _op("bitand", byte, 15), _op("shl", code, 4))
    low = ir.Binary("bitor", _op("bitand", byte, 0xF0), code)
    return ir.Select(odd, high, low)
