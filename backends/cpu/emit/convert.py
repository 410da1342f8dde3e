"""Casts between the dtypes of the loop stage: the table of conversions (language.md 0.11) in LLVM IR.

To narrower floats: round to nearest even, NaN stays NaN; to 8 and 4 bits saturating. To integers: truncate and
saturate, NaN gives 0. bfloat16 and the floats of 8 and 4 bits are made by integer arithmetic: for bfloat16 because the
hardware instruction flushes denormals. A wide source is first rounded to odd in float32, which makes the second
rounding exact.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.values import constant, value_type
from tiledsl.dtypes import FLOAT32, FLOAT64, INT32, UINT32, DType, as_dtype

__all__ = ["cast"]

Value = Any


def cast(b: Any, src: DType, dst: DType, x: Value) -> Value:
    """x (dtype src) as dtype dst; lanes agree."""
    if src is dst:
        return x
    lanes = dst.lanes
    if src.bits == 4 and src.is_int:  # held in a byte
        return cast(b, _byte(src), dst, x)
    if dst.bits == 4 and dst.is_int:
        return _to_nibble(b, src, dst, x)
    if src.is_narrow:
        wide = FLOAT32.with_lanes(lanes)
        return cast(b, wide, dst, _widen(b, src, x))
    if dst.is_bool:
        zero = constant(src, 0)
        return b.fcmp_unordered("!=", x, zero) if src.is_float else b.icmp_unsigned("!=", x, zero)
    if dst.is_narrow:
        return _to_narrow(b, src, dst, x)
    t = value_type(dst)
    if src.is_bool:
        return b.uitofp(x, t) if dst.is_float else b.zext(x, t)
    if src.is_float and dst.is_float:
        return b.fpext(x, t) if dst.bits > src.bits else b.fptrunc(x, t)
    if dst.is_float:
        return b.sitofp(x, t) if src.kind == "int" else b.uitofp(x, t)
    if src.is_float:
        return _to_integer(b, src, dst, x)
    if dst.bits < src.bits:
        return b.trunc(x, t)
    if dst.bits == src.bits:
        return x
    return b.sext(x, t) if src.kind == "int" else b.zext(x, t)


def _byte(d: DType) -> DType:
    return as_dtype("int8" if d.is_signed else "uint8").with_lanes(d.lanes)


def _to_nibble(b: Any, src: DType, dst: DType, x: Value) -> Value:
    """Integers wrap; floats saturate, first at a byte's range."""
    byte, signed = _byte(dst), dst.is_signed
    x = cast(b, src, byte, x)
    if not src.is_float:
        four = constant(byte, 4)
        return b.ashr(b.shl(x, four), four) if signed else b.and_(x, constant(byte, 15))
    compare = b.icmp_signed if signed else b.icmp_unsigned
    low, high = (constant(byte, -8), constant(byte, 7)) if signed else (constant(byte, 0), constant(byte, 15))
    x = b.select(compare(">", x, high), high, x)
    return b.select(compare("<", x, low), low, x)


def _to_integer(b: Any, src: DType, dst: DType, x: Value) -> Value:
    signed = dst.kind == "int"
    low, high = (-(1 << (dst.bits - 1)), 1 << (dst.bits - 1)) if signed else (0, 1 << dst.bits)
    above = b.fcmp_ordered(">=", x, constant(src, high))
    inside = b.and_(b.fcmp_ordered(">=", x, constant(src, low)), b.fcmp_ordered("<", x, constant(src, high)))
    safe = b.select(inside, x, constant(src, 0.0))  # what does not fit, NaN too, must not reach the conversion
    t = value_type(dst)
    n = b.select(above, constant(dst, high - 1), b.fptosi(safe, t) if signed else b.fptoui(safe, t))
    below = b.fcmp_ordered("<", x, constant(src, low))
    return b.select(below, constant(dst, low), n) if signed else n


def _half_type(lanes: int) -> Any:
    return ir.HalfType() if lanes == 1 else ir.VectorType(ir.HalfType(), lanes)


@dataclass(frozen=True)
class _Small:
    """A float of 8 or 4 bits with a sign: its code without the sign, `mantissa` bits up from bit 0, read as the top of
    a float32, is the number times 2**-rebias, subnormal ones included."""

    mantissa: int
    rebias: int
    largest: float
    nan: int
    special: int | None = None  # codes from here on are infinite or NaN

    @property
    def shift(self) -> int:
        return 23 - self.mantissa


_SMALL = {
    "float8_e4m3fn": _Small(3, 120, 448.0, 0x7F, 0x7F),
    "float8_e5m2": _Small(2, 112, 57344.0, 0x7E, 0x7C),
    "float4_e2m1fn": _Small(1, 126, 6.0, 0x07),
}


def _widen(b: Any, src: DType, bits: Value) -> Value:
    f32, u32 = FLOAT32.with_lanes(src.lanes), UINT32.with_lanes(src.lanes)
    t = value_type(f32)
    name = src.scalar.name
    if name == "float16":
        return b.fpext(b.bitcast(bits, _half_type(src.lanes)), t)
    code = b.zext(bits, value_type(u32))
    if name == "bfloat16":
        return b.bitcast(b.shl(code, constant(u32, 16)), t)
    if name == "float8_e8m0fnu":
        exponent = b.shl(code, constant(u32, 23))
        lowest = b.select(b.icmp_unsigned("==", code, constant(u32, 0)), constant(u32, 0x400000), exponent)
        nan = b.icmp_unsigned("==", code, constant(u32, 0xFF))
        return b.bitcast(b.select(nan, constant(u32, 0x7FC00000), lowest), t)
    form = _SMALL[name]
    top = src.bits - 1
    size = b.and_(code, constant(u32, (1 << top) - 1))
    number = b.fmul(b.bitcast(b.shl(size, constant(u32, form.shift)), t), constant(f32, 2.0**form.rebias))
    word = b.bitcast(number, value_type(u32))
    if form.special is not None:
        special = b.or_(b.shl(size, constant(u32, form.shift)), constant(u32, 0x7F800000))
        word = b.select(b.icmp_unsigned(">=", size, constant(u32, form.special)), special, word)
    sign = b.and_(b.shl(code, constant(u32, 31 - top)), constant(u32, 0x80000000))
    return b.bitcast(b.or_(word, sign), t)


def _to_small(b: Any, dst: DType, x: Value) -> Value:
    """float32 -> e4m3, e5m2, e2m1: below the smallest normal number a float32 addition rounds, above it integers do."""
    lanes, form = dst.lanes, _SMALL[dst.scalar.name]
    f32, u32 = FLOAT32.with_lanes(lanes), UINT32.with_lanes(lanes)
    top, t = dst.bits - 1, value_type(u32)
    word = b.bitcast(x, t)
    size = b.and_(word, constant(u32, 0x7FFFFFFF))
    most = b.bitcast(constant(f32, form.largest), t)
    size = b.select(b.icmp_unsigned(">", size, most), most, size)
    last = b.and_(b.lshr(size, constant(u32, form.shift)), constant(u32, 1))
    even = b.add(size, b.add(last, constant(u32, (1 << (form.shift - 1)) - 1)))
    normal = b.sub(b.lshr(even, constant(u32, form.shift)), constant(u32, form.rebias << form.mantissa))
    # A float32 around `magic` moves in steps of the smallest number of dst: its last bits are the code.
    magic = 2.0 ** (form.rebias - form.mantissa - 103)
    near = b.bitcast(b.fadd(b.bitcast(size, value_type(f32)), constant(f32, magic)), t)
    tiny = b.sub(near, b.bitcast(constant(f32, magic), t))
    below = b.icmp_unsigned("<", size, constant(u32, (form.rebias + 1) << 23))
    code = b.select(below, tiny, normal)
    code = b.select(b.fcmp_unordered("uno", x, x), constant(u32, form.nan), code)
    sign = b.and_(b.lshr(word, constant(u32, 31 - top)), constant(u32, 1 << top))
    if top == 3:  # what stands for NaN is a number: +6
        sign = b.select(b.fcmp_unordered("uno", x, x), constant(u32, 0), sign)
    return b.trunc(b.or_(code, sign), value_type(dst))


def _to_e8m0(b: Any, dst: DType, x: Value) -> Value:
    """float32 -> the exponent of the next power of two; 2**-127 and less, negative ones too, give 0."""
    i32 = INT32.with_lanes(dst.lanes)
    word = b.bitcast(x, value_type(i32))
    up = b.lshr(b.add(word, constant(i32, 0x7FFFFF)), constant(i32, 23))
    up = b.select(b.icmp_signed(">", up, constant(i32, 0xFE)), constant(i32, 0xFE), up)
    code = b.select(b.icmp_signed("<=", word, constant(i32, 0x400000)), constant(i32, 0), up)
    code = b.select(b.fcmp_unordered("uno", x, x), constant(i32, 0xFF), code)
    return b.trunc(code, value_type(dst))


def _to_narrow(b: Any, src: DType, dst: DType, x: Value) -> Value:
    lanes = dst.lanes
    if src.scalar.name != "float32":
        if not src.is_float:
            x = _to_float64(b, src, x)
        x = _round_to_odd(b, lanes, x)
    if dst.scalar.name == "float8_e8m0fnu":
        return _to_e8m0(b, dst, x)
    if dst.bits <= 8:
        return _to_small(b, dst, x)
    if dst.scalar.name == "float16":
        return b.bitcast(b.fptrunc(x, _half_type(lanes)), value_type(dst))
    u32 = UINT32.with_lanes(lanes)
    bits = b.bitcast(x, value_type(u32))
    last = b.and_(b.lshr(bits, constant(u32, 16)), constant(u32, 1))
    rounded = b.add(bits, b.add(last, constant(u32, 0x7FFF)))
    rounded = b.select(b.fcmp_unordered("uno", x, x), b.or_(bits, constant(u32, 0x400000)), rounded)
    return b.trunc(b.lshr(rounded, constant(u32, 16)), value_type(dst))


def _to_float64(b: Any, src: DType, x: Value) -> Value:
    """An integer as float64, exactly or (from 2**40 on) with the same rounding to 11 bits and fewer."""
    wide = FLOAT64.with_lanes(src.lanes)
    if src.bits == 64:
        low = b.and_(x, constant(src, 0xFFF))
        sticky = b.or_(b.and_(x, constant(src, ~0xFFF)), constant(src, 0x800))
        jammed = b.select(b.icmp_unsigned("!=", low, constant(src, 0)), sticky, x)
        if src.kind == "int":
            near = constant(src, 1 << 40)
            small = b.icmp_unsigned("<", b.add(x, near), constant(src, 1 << 41))
        else:
            small = b.icmp_unsigned("<", x, constant(src, 1 << 40))
        x = b.select(small, x, jammed)
    return cast(b, src, wide, x)


def _round_to_odd(b: Any, lanes: int, x: Value) -> Value:
    """float64 -> float32: exact values stay, others go to the neighbour whose last bit is 1."""
    f32, f64, u32 = FLOAT32.with_lanes(lanes), FLOAT64.with_lanes(lanes), UINT32.with_lanes(lanes)
    y = b.fptrunc(x, value_type(f32))
    back = b.fpext(y, value_type(f64))
    bits = b.bitcast(y, value_type(u32))
    even = b.icmp_unsigned("==", b.and_(bits, constant(u32, 1)), constant(u32, 0))
    inexact = b.fcmp_ordered("!=", back, x)
    negative = b.icmp_signed("<", bits, constant(u32, 0))
    went_up = b.fcmp_ordered(">", back, x)
    grew = b.xor(went_up, negative)  # the magnitude was rounded up
    other = b.select(grew, b.sub(bits, constant(u32, 1)), b.add(bits, constant(u32, 1)))
    return b.bitcast(b.select(b.and_(inexact, even), other, bits), value_type(f32))
