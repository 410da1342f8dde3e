"""Casts between the dtypes of the loop stage: the table of conversions (language.md 0.11) in LLVM IR.

To narrower floats: round to nearest even, NaN stays NaN. To integers: truncate and saturate, NaN gives 0.
bfloat16 is made by integer arithmetic, because the hardware instruction flushes denormals. A wide source is first
rounded to odd in float32, which makes the second rounding exact.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.values import constant, value_type
from tiledsl.dtypes import DType, as_dtype

__all__ = ["cast"]

Value = Any
F32, F64 = as_dtype("float32"), as_dtype("float64")


def cast(b: Any, src: DType, dst: DType, x: Value) -> Value:
    """x (dtype src) as dtype dst; lanes agree."""
    if src is dst:
        return x
    lanes = dst.lanes
    if src.is_half:
        wide = F32.with_lanes(lanes)
        return cast(b, wide, dst, _widen(b, src, x))
    if dst.is_bool:
        zero = constant(src, 0)
        return b.fcmp_unordered("!=", x, zero) if src.is_float else b.icmp_unsigned("!=", x, zero)
    if dst.is_half:
        return _to_half(b, src, dst, x)
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


def _widen(b: Any, src: DType, bits: Value) -> Value:
    t = value_type(F32.with_lanes(src.lanes))
    if src.scalar.name == "float16":
        return b.fpext(b.bitcast(bits, _half_type(src.lanes)), t)
    u32 = as_dtype("uint32").with_lanes(src.lanes)
    return b.bitcast(b.shl(b.zext(bits, value_type(u32)), constant(u32, 16)), t)


def _to_half(b: Any, src: DType, dst: DType, x: Value) -> Value:
    lanes = dst.lanes
    if src.scalar.name != "float32":
        if not src.is_float:
            x = _to_float64(b, src, x)
        x = _round_to_odd(b, lanes, x)
    if dst.scalar.name == "float16":
        return b.bitcast(b.fptrunc(x, _half_type(lanes)), value_type(dst))
    u32 = as_dtype("uint32").with_lanes(lanes)
    bits = b.bitcast(x, value_type(u32))
    last = b.and_(b.lshr(bits, constant(u32, 16)), constant(u32, 1))
    rounded = b.add(bits, b.add(last, constant(u32, 0x7FFF)))
    rounded = b.select(b.fcmp_unordered("uno", x, x), b.or_(bits, constant(u32, 0x400000)), rounded)
    return b.trunc(b.lshr(rounded, constant(u32, 16)), value_type(dst))


def _to_float64(b: Any, src: DType, x: Value) -> Value:
    """An integer as float64, exactly or (from 2**40 on) with the same rounding to 11 bits and fewer."""
    wide = F64.with_lanes(src.lanes)
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
    f32, f64, u32 = F32.with_lanes(lanes), F64.with_lanes(lanes), as_dtype("uint32").with_lanes(lanes)
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
