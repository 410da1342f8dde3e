"""Operators of the loop stage as LLVM IR, scalars and vectors alike, with exactly the language's meaning.

No instruction carries a fast-math flag, so LLVM neither contracts nor reassociates: every operator rounds once.
Division by zero gives 0, shifts by the width or more give 0 or the sign, max and min ignore NaN and order
-0 below +0.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.values import (
    I1,
    I32,
    constant,
    intrinsic,
    lanes_of,
    opaque,
    register_bytes,
    shuffle,
    splat,
    suffix,
    value_type,
)
from tiledsl.dtypes import DType

__all__ = [
    "any_lane",
    "binary",
    "bit_function",
    "classify",
    "fma",
    "hreduce",
    "known_quiet",
    "permute",
    "reinterpret",
    "unary",
]

Value = Any

_FLOAT_UNARY = {"floor": "floor", "ceil": "ceil", "trunc": "trunc", "rint": "roundeven", "sqrt": "sqrt", "abs": "fabs"}
_COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def unary(b: Any, op: str, d: DType, x: Value) -> Value:
    """op of ir.UNARY_OPS on a value of dtype d."""
    if op in ("not", "bitnot"):
        return b.not_(x)
    if d.is_float:
        if op == "neg":
            return b.fneg(x)
        return intrinsic(b, f"llvm.{_FLOAT_UNARY[op]}.{suffix(x.type)}", x.type, [x])
    if op == "neg":
        return b.sub(constant(d, 0), x)
    if op == "abs" and d.is_signed:
        return b.select(b.icmp_signed("<", x, constant(d, 0)), b.sub(constant(d, 0), x), x)
    return x  # abs of unsigned; floor, ceil, trunc, rint of integers


def binary(b: Any, op: str, d: DType, x: Value, y: Value) -> Value:
    """op of ir.BINARY_OPS on two values of dtype d ("and", "or" without laziness, for vectors of bool)."""
    if op in _COMPARE:
        return _compare(b, op, d, x, y)
    if op in ("and", "bitand"):
        return b.and_(x, y)
    if op in ("or", "bitor"):
        return b.or_(x, y)
    if op == "bitxor":
        return b.xor(x, y)
    return _float(b, op, x, y) if d.is_float else _integer(b, op, d, x, y)


def _compare(b: Any, op: str, d: DType, x: Value, y: Value) -> Value:
    sign = _COMPARE[op]
    if d.is_float:
        return b.fcmp_unordered(sign, x, y) if op == "ne" else b.fcmp_ordered(sign, x, y)
    return b.icmp_signed(sign, x, y) if d.kind == "int" else b.icmp_unsigned(sign, x, y)


def _float(b: Any, op: str, x: Value, y: Value) -> Value:
    if op in ("max", "min"):
        return _extreme(b, op, x, y)
    return {"add": b.fadd, "sub": b.fsub, "mul": b.fmul, "div": b.fdiv}[op](x, y)


def _extreme(b: Any, op: str, x: Value, y: Value) -> Value:
    """max or min of floats. One AVX-512 instruction orders zeros and ignores quiet NaN as the language does; a
    signalling NaN must be made quiet first."""
    if suffix(x.type) in _RANGES and register_bytes(b) == 64:
        return _range(b, op, _quiet(b, x), _quiet(b, y))
    if not isinstance(x.type, ir.VectorType):
        # LLVM 22 (x86 with AVX-512) forgets the NaN of the other operand of a scalar maximumnum when it can tell that
        # one operand is none, an integer converted or a maximum with a constant.
        x, y = (v if isinstance(v, ir.Constant) else opaque(b, v) for v in (x, y))
    return intrinsic(b, f"llvm.{op}imumnum.{suffix(x.type)}", x.type, [x, y])


_RANGES = {"v16f32": ("ps.512", 16), "f32": ("ss", 8)}  # of AVX-512: the instruction, and the bits of its mask


def _range(b: Any, op: str, x: Value, y: Value) -> Value:
    """max or min of quiet float32, 16 lanes or one."""
    form, bits = _RANGES[suffix(x.type)]
    if form == "ss":
        zero = ir.Constant(I32, 0)
        none = ir.Constant(ir.VectorType(ir.FloatType(), 4), ir.Undefined)
        found = _ranged(b, op, form, bits, *(b.insert_element(none, v, zero) for v in (x, y)))
        return known_quiet(b.extract_element(found, zero))
    return known_quiet(_ranged(b, op, form, bits, x, y))


def _ranged(b: Any, op: str, form: str, bits: int, x: Value, y: Value) -> Value:
    all_on, default_rounding = ir.Constant(ir.IntType(bits), -1), ir.Constant(I32, 4)
    which = ir.Constant(I32, 5 if op == "max" else 4)  # maximum or minimum, with the sign of the one chosen
    sides = [x, y, x, all_on, which, default_rounding] if form == "ss" else [x, y, which, x, all_on, default_rounding]
    return intrinsic(b, f"llvm.x86.avx512.mask.range.{form}", x.type, sides)


def known_quiet(v: Value) -> Value:
    """v, marked as no signalling NaN."""
    v.quiet = True
    return v


def _quiet(b: Any, v: Value) -> Value:
    """v without signalling NaN. Arithmetic gives none, unless a constant, as in x * 1, lets LLVM leave it out."""
    if getattr(v, "quiet", False):
        return v
    if getattr(v, "opname", "") in ("fadd", "fsub", "fmul", "fdiv"):
        if not any(isinstance(x, ir.Constant) for x in v.operands):
            return v
    return known_quiet(intrinsic(b, f"llvm.canonicalize.{suffix(v.type)}", v.type, [v]))


def _integer(b: Any, op: str, d: DType, x: Value, y: Value) -> Value:
    if op in ("add", "sub", "mul"):
        return {"add": b.add, "sub": b.sub, "mul": b.mul}[op](x, y)
    signed = d.kind == "int"
    if op in ("max", "min"):
        name = f"llvm.{'s' if signed else 'u'}{op}.{suffix(x.type)}"
        return intrinsic(b, name, x.type, [x, y])
    if op in ("shl", "shr"):
        return _shift(b, op, d, x, y)
    return _divide(b, op, d, x, y)


def _shift(b: Any, op: str, d: DType, x: Value, y: Value) -> Value:
    inside = b.icmp_unsigned("<", y, constant(d, d.bits))
    if op == "shr" and d.kind == "int":
        return b.ashr(x, b.select(inside, y, constant(d, d.bits - 1)))
    shifted = (b.shl if op == "shl" else b.lshr)(x, b.select(inside, y, constant(d, 0)))
    return b.select(inside, shifted, constant(d, 0))


def _positive_constant(y: Value) -> int | None:
    """The value of a constant divisor (uniform over the lanes), if it is above 0."""
    if not isinstance(y, ir.Constant):
        return None
    c = y.constant
    if isinstance(c, (list, tuple)):
        lanes = {v.constant if isinstance(v, ir.Constant) else v for v in c}
        c = lanes.pop() if len(lanes) == 1 else None
    width = (y.type.element if isinstance(y.type, ir.VectorType) else y.type).width
    return c if isinstance(c, int) and 0 < c < 1 << (width - 1) else None


def _divide(b: Any, op: str, d: DType, x: Value, y: Value) -> Value:
    """floordiv, floormod, truncdiv, truncmod, div; x / 0 gives 0 (both quotient and remainder)."""
    remainder = op.endswith("mod")
    zero, one = constant(d, 0), constant(d, 1)
    known = _positive_constant(y)
    if d.kind == "uint":
        if known:
            return b.urem(x, y) if remainder else b.udiv(x, y)
        by_zero = b.icmp_unsigned("==", y, zero)
        safe = b.select(by_zero, one, y)
        return b.select(by_zero, zero, b.urem(x, safe) if remainder else b.udiv(x, safe))
    floors = op.startswith("floor")
    if known and floors and known & (known - 1) == 0:  # a shift and a mask already floor
        return b.and_(x, constant(d, known - 1)) if remainder else b.ashr(x, constant(d, known.bit_length() - 1))
    if known:
        q, r = b.sdiv(x, y), b.srem(x, y)
    else:  # 0 and -1 take their own way: both trap in hardware, for every x or for the smallest one
        special = b.icmp_unsigned("<=", b.add(y, one), one)
        safe = b.select(special, one, y)
        q, r = b.sdiv(x, safe), b.srem(x, safe)
        q = b.select(special, b.mul(x, y), q)  # y = 0: 0; y = -1: -x, wrapping
        r = b.select(special, zero, r)
    if not floors:
        return r if remainder else q
    wrong_side = b.and_(b.icmp_signed("!=", r, zero), b.icmp_signed("<", b.xor(r, y), zero))
    if remainder:
        return b.select(wrong_side, b.add(r, y), r)
    return b.select(wrong_side, b.sub(q, one), q)


def fma(b: Any, x: Value, y: Value, z: Value) -> Value:
    """x * y + z with one rounding."""
    return intrinsic(b, f"llvm.fma.{suffix(x.type)}", x.type, [x, y, z])


def classify(b: Any, name: str, d: DType, x: Value) -> Value:
    """isnan, isinf, isfinite."""
    if name == "isnan":
        return b.fcmp_unordered("uno", x, x)
    magnitude = unary(b, "abs", d, x)
    infinity = constant(d, float("inf"))
    return b.fcmp_ordered("==" if name == "isinf" else "<", magnitude, infinity)


def bit_function(b: Any, name: str, x: Value) -> Value:
    """popcount, clz or brev of an integer."""
    which = {"popcount": "ctpop", "clz": "ctlz", "brev": "bitreverse"}[name]
    zero_is_defined = [ir.Constant(I1, 0)] if name == "clz" else []
    return intrinsic(b, f"llvm.{which}.{suffix(x.type)}", x.type, [x, *zero_is_defined])


def hreduce(b: Any, op: str, d: DType, v: Value) -> Value:
    """The lanes of v combined 8-4-2-1: lane i with lane i + 8, then i + 4, i + 2, i + 1. op: add, max, min,
    bitand, bitor, bitxor."""
    n = lanes_of(v)
    whole = op in ("max", "min") and suffix(v.type) == "v16f32" and register_bytes(b) == 64
    v = _quiet(b, v) if whole else v
    while n > 1:
        n //= 2
        if whole:  # all lanes get the result, by instructions of whole registers
            v = _range(b, op, v, shuffle(b, v, None, [i ^ n for i in range(16)]))
            continue
        half = d.with_lanes(n)
        low, high = (shuffle(b, v, None, range(first, first + n)) for first in (0, n))
        if n == 1:
            low, high = (b.extract_element(x, ir.Constant(I32, 0)) for x in (low, high))
        v = binary(b, op, half, low, high)
    return known_quiet(b.extract_element(v, ir.Constant(I32, 0))) if whole else v


def permute(b: Any, x: Value, index: Value) -> Value:
    """Lane index mod 16 of x, for each lane of index; 16 lanes of 32 bits."""
    x86, width = getattr(b.module, "byte_products", "plain") != "plain", register_bytes(b)
    if x86 and width == 64:
        floats = ir.VectorType(ir.FloatType(), 16)
        return b.bitcast(intrinsic(b, "llvm.x86.avx512.permvar.sf.512", floats, [b.bitcast(x, floats), index]), x.type)
    if x86 and width == 32:
        floats = ir.VectorType(ir.FloatType(), 8)
        low, high = (b.bitcast(shuffle(b, x, None, range(at, at + 8)), floats) for at in (0, 8))
        halves = []
        for at in (0, 8):
            i = shuffle(b, index, None, range(at, at + 8))
            one, two = (intrinsic(b, "llvm.x86.avx2.permps", floats, [t, i]) for t in (low, high))
            eight = splat(b, ir.Constant(I32, 8), 8)
            upper = b.icmp_unsigned("!=", b.and_(i, eight), ir.Constant(i.type, None))
            halves.append(b.select(upper, two, one))
        return b.bitcast(shuffle(b, halves[0], halves[1], range(16)), x.type)
    index, found = b.and_(index, splat(b, ir.Constant(I32, 15), 16)), ir.Constant(x.type, ir.Undefined)
    for lane in (ir.Constant(I32, i) for i in range(16)):
        found = b.insert_element(found, b.extract_element(x, b.extract_element(index, lane)), lane)
    return found


def any_lane(b: Any, v: Value) -> Value:
    """Whether some element of a vector of bool is true."""
    return intrinsic(b, f"llvm.vector.reduce.or.{suffix(v.type)}", I1, [v])


def reinterpret(b: Any, d: DType, x: Value) -> Value:
    """The same bits as a value of dtype d."""
    t = value_type(d)
    if d.bits == 4:  # a byte, whose upper half follows from the type
        four = constant(d, 4)
        upper = b.shl(x, four)
        return b.ashr(upper, four) if d.kind == "int" else b.lshr(upper, four)
    return x if x.type == t else b.bitcast(x, t)
