"""The math functions, written once in the IR's exactly rounded operations (language.md 0.8).

Every interpreter and printer evaluates or prints these expansions; nobody calls a math library, so the results are
the same bits on every target. Only + - * / sqrt fma, integer operations, comparisons, selects, casts between integers
and floats, and reinterpretations are used.

Polynomials are minimax fits (Remez exchange in 60 digits, relative error, rounded to the type afterwards) of the
function named beside the coefficients, lowest degree first. Largest errors measured, in units in the last place:
float32 exp2 0.952 and exp 0.801 over every argument of magnitude 2**-25 and more whose result is not 0 or infinite
(smaller ones give 1), log2 0.983 and log 0.825 over every mantissa of 22 of the 255 binades, not over all arguments;
float64 below 1 on random samples (tests/test_math.py); rsqrt = 1 / sqrt(x) rounds twice, below 1.5.
float16 and bfloat16 arguments go through float32: whoever makes the call casts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType, as_dtype
from tiledsl.ir.expr import Binary, Call, Cast, Const, Expr, Fma, Select, Unary, Var

__all__ = ["EXPANSIONS", "EXPANSIONS64", "MathFunction", "expansion"]


@dataclass(frozen=True)
class MathFunction:
    """result, after lets evaluated in order, as a function of params (all scalar and of type `dtype`, except
    integer and bool lets)."""

    name: str
    dtype: DType
    params: tuple[Var, ...]
    lets: tuple[tuple[Var, Expr], ...]
    result: Expr


@dataclass(frozen=True)
class _Format:
    """What the expansions need to know about a binary float format."""

    dtype: DType
    bits: DType  # the signed integer of equal width
    mantissa: int  # stored mantissa bits
    bias: int
    smallest_normal: float
    sqrt_half_bits: int  # bit pattern of sqrt(1/2)
    exp2_limit: float  # beyond this magnitude exp2 has long over- or underflowed
    exp_limit: float
    log2e: float
    ln2_hi: float  # few enough bits that k * ln2_hi is exact for every exponent k
    ln2_lo: float
    log2e_hi: float
    log2e_lo: float
    exp2_poly: tuple[float, ...]  # (2**r - 1) / r              on [-1/2, 1/2]
    exp_poly: tuple[float, ...]  # (e**r - 1 - r) / r**2       on [-ln 2 / 2, ln 2 / 2]


_F32 = _Format(
    dtype=as_dtype("float32"),
    bits=as_dtype("int32"),
    mantissa=23,
    bias=127,
    smallest_normal=2.0**-126,
    sqrt_half_bits=0x3F3504F3,
    exp2_limit=160.0,
    exp_limit=120.0,
    log2e=1.4426950216293335,
    ln2_hi=0.693145751953125,
    ln2_lo=1.428606765330187e-06,
    log2e_hi=1.4426950216293335,
    log2e_lo=1.925963033500011e-08,
    # relative error 2.0e-9
    exp2_poly=(
        0.6931471824645996, 0.24022647738456726, 0.055503323674201965, 0.00961843691766262,
        0.0013398873852565885, 0.00015353361959569156,
    ),
    # relative error of e**r 3.1e-9
    exp_poly=(
        0.4999999403953552, 0.1666651964187622, 0.04166840761899948, 0.008368914015591145,
        0.0013814191333949566,
    ),
)  # fmt: skip

_F64 = _Format(
    dtype=as_dtype("float64"),
    bits=as_dtype("int64"),
    mantissa=52,
    bias=1023,
    smallest_normal=2.0**-1022,
    sqrt_half_bits=0x3FE6A09E667F3BCD,
    exp2_limit=1200.0,
    exp_limit=800.0,
    log2e=1.4426950408889634,
    ln2_hi=0.6931471803691238,
    ln2_lo=1.9082149292705877e-10,
    log2e_hi=1.4426950408889634,
    log2e_lo=2.0355273740931033e-17,
    # relative error 3.4e-18
    exp2_poly=(
        0.6931471805599453, 0.2402265069591013, 0.055504108664820084, 0.00961812910759412, 0.0013333558146774623,
        0.00015403530457112132, 1.5252733493125674e-05, 1.3215435282291829e-06, 1.0178199572640582e-07,
        7.073783250885263e-09, 4.4347711729228614e-10,
    ),
    # relative error of e**r 3.7e-18
    exp_poly=(
        0.5000000000000011, 0.16666666666666405, 0.04166666666652714, 0.008333333333498085, 0.0013888888944539727,
        0.00019841269500931304, 2.480149205570183e-05, 2.7557589387516997e-06, 2.763065186367796e-07,
        2.4999760732846208e-08,
    ),
)  # fmt: skip

# (log(1 + f) - f + f**2 / 2) / f**3 on [sqrt(1/2) - 1, sqrt(2) - 1], relative error of log(1 + f) 7.3e-10; with one
# coefficient less log2 would exceed one unit in the last place near 1.4
_LOG_POLY32 = (
    0.3333331048488617, -0.24999986588954926, 0.20002226531505585, -0.16669252514839172, 0.14218664169311523,
    -0.12384334951639175, 0.11872926354408264, -0.11789865046739578, 0.06915540248155594,
)  # fmt: skip
# (2 atanh(s) / s - 2) / s**2 in z = s**2, s = f / (2 + f), same range of f, relative error of log(1 + f) 2.8e-18
_LOG_POLY64 = (
    0.6666666666666715, 0.39999999999521146, 0.2857142872186334, 0.22222200459583416, 0.181834746588334,
    0.15316179396520677, 0.14775973103955437,
)  # fmt: skip


class _Builder:
    """Collects the lets of one expansion."""

    def __init__(self, fmt: _Format) -> None:
        self.fmt = fmt
        self.lets: list[tuple[Var, Expr]] = []

    def let(self, name: str, value: Expr) -> Var:
        var = Var(name, value.dtype)
        self.lets.append((var, value))
        return var

    def const(self, value: float) -> Const:
        return Const(float(value), self.fmt.dtype)

    def int(self, value: int) -> Const:
        return Const(value, self.fmt.bits)

    def to_bits(self, x: Expr) -> Expr:
        return Call("reinterpret", (x,), self.fmt.bits)

    def to_float(self, x: Expr) -> Expr:
        return Call("reinterpret", (x,), self.fmt.dtype)

    def poly(self, x: Expr, coefficients: tuple[float, ...]) -> Expr:
        """Horner's scheme, one fma per degree."""
        value: Expr = self.const(coefficients[-1])
        for i in reversed(range(len(coefficients) - 1)):
            value = self.let(f"p{i}", Fma(value, x, self.const(coefficients[i])))
        return value

    def clamp(self, x: Expr, limit: float) -> Expr:
        """Into [-limit, limit]; NaN passes, because its comparisons are false."""
        high = self.let("clamped_high", Select(Binary("gt", x, self.const(limit)), self.const(limit), x))
        return self.let("clamped", Select(Binary("lt", high, self.const(-limit)), self.const(-limit), high))

    def round_to_int(self, x: Expr) -> tuple[Expr, Expr]:
        """(nearest integer as float, as integer). Adding 1.5 * 2**mantissa leaves the integer in the low bits."""
        magic = 1.5 * 2.0**self.fmt.mantissa
        magic_bits = ((self.fmt.bias + self.fmt.mantissa) << self.fmt.mantissa) | (1 << (self.fmt.mantissa - 1))
        shifted = self.let("shifted", Binary("add", x, self.const(magic)))
        whole = self.let("whole", Binary("sub", shifted, self.const(magic)))
        return whole, self.let("k", Binary("sub", self.to_bits(shifted), self.int(magic_bits)))

    def power_of_two(self, k: Expr) -> Expr:
        biased = Binary("add", k, self.int(self.fmt.bias))
        return self.to_float(Binary("shl", biased, self.int(self.fmt.mantissa)))

    def scale(self, p: Expr, k: Expr) -> Expr:
        """p * 2**k in two halves: each factor is a normal number, and only the last product rounds."""
        half = self.let("half", Binary("shr", k, self.int(1)))
        rest = self.let("rest", Binary("sub", k, half))
        first = self.let("scaled", Binary("mul", p, self.power_of_two(half)))
        return Binary("mul", first, self.power_of_two(rest))


def _exp2(b: _Builder, x: Var) -> Expr:
    clamped = b.clamp(x, b.fmt.exp2_limit)
    whole, k = b.round_to_int(clamped)
    r = b.let("r", Binary("sub", clamped, whole))
    p = b.let("p", Fma(r, b.poly(r, b.fmt.exp2_poly), b.const(1.0)))
    return b.scale(p, k)


def _exp(b: _Builder, x: Var) -> Expr:
    clamped = b.clamp(x, b.fmt.exp_limit)
    whole, k = b.round_to_int(b.let("in_octaves", Binary("mul", clamped, b.const(b.fmt.log2e))))
    minus = b.let("minus", Unary("neg", whole))
    r_hi = b.let("r_hi", Fma(minus, b.const(b.fmt.ln2_hi), clamped))
    r = b.let("r", Fma(minus, b.const(b.fmt.ln2_lo), r_hi))
    square = b.let("square", Binary("mul", r, r))
    # 1 + r without losing r's low bits: head + rest, exactly, so that only the last addition rounds
    head = b.let("head", Binary("add", r, b.const(1.0)))
    rest = b.let("rest_of_r", Binary("sub", r, Binary("sub", head, b.const(1.0))))
    tail = b.let("tail", Fma(square, b.poly(r, b.fmt.exp_poly), rest))
    return b.scale(b.let("p", Binary("add", head, tail)), k)


def _split(b: _Builder, x: Var) -> tuple[Expr, Expr]:
    """x = (1 + f) * 2**k with 1 + f in [sqrt(1/2), sqrt(2)); returns f and k as a float."""
    fmt = b.fmt
    lift = fmt.mantissa + 1
    tiny = b.let("tiny", Binary("lt", x, b.const(fmt.smallest_normal)))
    lifted = b.let("lifted", Select(tiny, Binary("mul", x, b.const(2.0**lift)), x))
    bits = b.let("bits", b.to_bits(lifted))
    k = b.let("k", Binary("shr", Binary("sub", bits, b.int(fmt.sqrt_half_bits)), b.int(fmt.mantissa)))
    m = b.let("m", b.to_float(Binary("sub", bits, Binary("shl", k, b.int(fmt.mantissa)))))
    true_k = b.let("true_k", Select(tiny, Binary("sub", k, b.int(lift)), k))
    return b.let("f", Binary("sub", m, b.const(1.0))), b.let("kf", Cast(true_k, fmt.dtype))


def _log1p_tail(b: _Builder, f: Expr) -> Expr:
    """log(1 + f) - f."""
    if b.fmt is _F32:
        square = b.let("square", Binary("mul", f, f))
        cube = b.let("cube", Binary("mul", square, f))
        bulk = b.let("bulk", Binary("mul", square, b.const(-0.5)))
        return b.let("tail", Fma(cube, b.poly(f, _LOG_POLY32), bulk))
    s = b.let("s", Binary("div", f, Binary("add", f, b.const(2.0))))
    z = b.let("z", Binary("mul", s, s))
    half_square = b.let("half_square", Binary("mul", Binary("mul", f, f), b.const(0.5)))
    inner = b.let("inner", Fma(z, b.poly(z, _LOG_POLY64), half_square))
    return b.let("tail", Fma(s, inner, Unary("neg", half_square)))


def _log_specials(b: _Builder, x: Var, y: Expr) -> Expr:
    inf = b.const(float("inf"))
    finite = b.let("finite", Select(Binary("lt", x, inf), y, x))
    pole = b.let("pole", Select(Binary("eq", x, b.const(0.0)), b.const(float("-inf")), b.const(float("nan"))))
    return Select(Binary("gt", x, b.const(0.0)), finite, pole)


def _log(b: _Builder, x: Var) -> Expr:
    f, k = _split(b, x)
    low = b.let("low", Fma(k, b.const(b.fmt.ln2_lo), _log1p_tail(b, f)))
    middle = b.let("middle", Binary("add", low, f))
    return _log_specials(b, x, b.let("y", Fma(k, b.const(b.fmt.ln2_hi), middle)))


def _log2(b: _Builder, x: Var) -> Expr:
    f, k = _split(b, x)
    tail = _log1p_tail(b, f)
    low = b.let("low", Fma(f, b.const(b.fmt.log2e_lo), Binary("mul", tail, b.const(b.fmt.log2e_hi))))
    fraction = b.let("fraction", Fma(f, b.const(b.fmt.log2e_hi), low))
    return _log_specials(b, x, b.let("y", Binary("add", k, fraction)))


def _rsqrt(b: _Builder, x: Var) -> Expr:
    return Binary("div", b.const(1.0), b.let("root", Unary("sqrt", x)))


_BODIES: dict[str, Callable[[_Builder, Var], Expr]] = {
    "exp2": _exp2,
    "exp": _exp,
    "log2": _log2,
    "log": _log,
    "rsqrt": _rsqrt,
}


def _build(name: str, fmt: _Format) -> MathFunction:
    builder = _Builder(fmt)
    x = Var("x", fmt.dtype)
    result = _BODIES[name](builder, x)
    return MathFunction(name, fmt.dtype, (x,), tuple(builder.lets), result)


EXPANSIONS: dict[str, MathFunction] = {name: _build(name, _F32) for name in _BODIES}
EXPANSIONS64: dict[str, MathFunction] = {name: _build(name, _F64) for name in _BODIES}


def expansion(name: str, dtype: Any) -> MathFunction:
    """The expansion of a math intrinsic for float32 or float64 (or vectors of them).

    Raises KeyError for a function without one, TypeError for another dtype.
    """
    scalar = as_dtype(dtype).scalar
    table = {"float32": EXPANSIONS, "float64": EXPANSIONS64}.get(scalar.name)
    if table is None:
        raise TypeError(f"{name} is expanded over float32 and float64, not {scalar.name}: cast the argument first")
    return table[name]
