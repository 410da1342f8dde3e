"""What the expansions of math functions are written with: float formats, and a builder that names every step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType, as_dtype
from tiledsl.ir.expr import Binary, Call, Cast, Const, Expr, Fma, Select, Unary, Var

__all__ = ["F32", "F64", "Builder", "Format", "Term", "fma", "select"]


@dataclass(frozen=True)
class Format:
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
    expm1_limit: float  # beyond it e**x, and e**x / 2, are infinite
    exp10_limit: float
    log2_10: float
    log10_2_hi: float  # few enough bits that its product with an exponent is exact
    log10_2_lo: float
    ln10_hi: float
    ln10_lo: float
    log10e_hi: float
    log10e_lo: float
    two_thirds_hi: float
    two_thirds_lo: float
    atanh_poly: tuple[float, ...]  # (2 atanh(s) / s - 2 - 2 z / 3) / z**2 in z = s**2 on [0, (sqrt(2) - 1)**4]


F32 = Format(
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
    expm1_limit=89.5,
    exp10_limit=50.0,
    log2_10=3.321928024291992,
    log10_2_hi=0.301025390625,
    log10_2_lo=4.605039066518657e-06,
    ln10_hi=2.3025851249694824,
    ln10_lo=-3.1975435632602967e-08,
    log10e_hi=0.4342944920063019,
    log10e_lo=-1.0103049952192578e-08,
    two_thirds_hi=0.6666666865348816,
    two_thirds_lo=-1.9868215517249155e-08,
    atanh_poly=(0.4000000059604645, 0.28571534156799316, 0.22204406559467316, 0.19130085408687592),  # 2**-38
)  # fmt: skip

F64 = Format(
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
    expm1_limit=710.5,
    exp10_limit=350.0,
    log2_10=3.321928094887362,
    log10_2_hi=0.30102999566361177,
    log10_2_lo=3.694239077158931e-13,
    ln10_hi=2.302585092994046,
    ln10_lo=-2.1707562233822494e-16,
    log10e_hi=0.4342944819032518,
    log10e_lo=1.098319650216765e-17,
    two_thirds_hi=0.6666666666666666,
    two_thirds_lo=3.700743415417188e-17,
    # error 2**-66 of the sum
    atanh_poly=(
        0.4, 0.28571428571428564, 0.22222222222228882, 0.1818181817952256, 0.15384615780649008, 0.13333295011819227,
        0.11766878658920436, 0.10454865970366546, 0.10775601535616745,
    ),
)  # fmt: skip


class Builder:
    """Collects the lets of one expansion, and has the steps that several share."""

    def __init__(self, fmt: Format) -> None:
        self.fmt = fmt
        self.lets: list[tuple[Var, Expr]] = []

    def series(self, x: Term, coefficients: tuple[float, ...]) -> Term:
        """Horner's scheme, one fma per degree, in x's type."""
        value = x.like(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            value = fma(value, x, c)
        return value

    def clamp(self, x: Term, limit: float) -> Term:
        """Into [-limit, limit]; NaN passes, because its comparisons are false."""
        high = select(x > limit, limit, x)
        return select(high < -limit, -limit, high)

    def nearest(self, x: Term) -> Term:
        """The nearest whole number: adding 1.5 * 2**mantissa leaves it in the low bits."""
        magic = 1.5 * 2.0**self.fmt.mantissa
        return (x + magic) - magic

    def integer(self, whole: Term) -> Term:
        """A whole number, of magnitude below 2**(mantissa - 1), as an integer."""
        magic_bits = ((self.fmt.bias + self.fmt.mantissa) << self.fmt.mantissa) | (1 << (self.fmt.mantissa - 1))
        return (whole + 1.5 * 2.0**self.fmt.mantissa).bits(self.fmt.bits) - magic_bits

    def power_of_two(self, k: Term) -> Term:
        return ((k + self.fmt.bias) << self.fmt.mantissa).bits(self.fmt.dtype)

    def scale(self, p: Term, whole: Term) -> Term:
        """p * 2**whole; a function of its own, because some CPUs have an instruction for it."""
        return p.named(Call("scalb", (p.expr, whole.expr), self.fmt.dtype))

    def in_halves(self, p: Term, k: Term) -> Term:
        """p * 2**k in two halves: each factor is a normal number, and only the last product rounds."""
        half = k >> 1
        return p * self.power_of_two(half) * self.power_of_two(k - half)


_Method = Callable[[Any, Any], "Term"]


def _operator(op: str) -> tuple[_Method, _Method]:
    def method(self: Term, other: Any) -> Term:
        return self.named(Binary(op, self.expr, self.like(other).expr))

    def reflected(self: Term, other: Any) -> Term:
        return self.like(other).named(Binary(op, self.like(other).expr, self.expr))

    return method, reflected


class Term:
    """An expression of an expansion. Every operator names its result, so that nothing is computed twice; numbers
    take the type of the term that they meet."""

    def __init__(self, builder: Builder, expr: Expr) -> None:
        self.builder, self.expr = builder, expr

    def named(self, expr: Expr) -> Term:
        var = Var(f"t{len(self.builder.lets)}", expr.dtype)
        self.builder.lets.append((var, expr))
        return Term(self.builder, var)

    def like(self, x: Any) -> Term:
        """x as a term; numbers get this term's type."""
        if isinstance(x, Term):
            return x
        dtype = self.expr.dtype
        return Term(self.builder, Const(float(x) if dtype.is_float else x, dtype))

    __add__, __radd__ = _operator("add")
    __sub__, __rsub__ = _operator("sub")
    __mul__, __rmul__ = _operator("mul")
    __truediv__, __rtruediv__ = _operator("div")
    __lshift__, __rshift__ = _operator("shl")[0], _operator("shr")[0]
    __lt__, __gt__ = _operator("lt")[0], _operator("gt")[0]
    __le__, __ge__ = _operator("le")[0], _operator("ge")[0]
    __eq__, __ne__ = _operator("eq")[0], _operator("ne")[0]  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]

    def __and__(self, other: Any) -> Term:
        return _operator("and" if self.expr.dtype.is_bool else "bitand")[0](self, other)

    def __or__(self, other: Any) -> Term:
        return _operator("or" if self.expr.dtype.is_bool else "bitor")[0](self, other)

    __xor__ = _operator("bitxor")[0]

    def __neg__(self) -> Term:
        return self.named(Unary("neg", self.expr))

    def __abs__(self) -> Term:
        return self.named(Unary("abs", self.expr))

    def __invert__(self) -> Term:
        return self.named(Unary("not", self.expr))

    def trunc(self) -> Term:
        return self.named(Unary("trunc", self.expr))

    def root(self) -> Term:
        return self.named(Unary("sqrt", self.expr))

    def cast(self, dtype: Any) -> Term:
        target = as_dtype(dtype)
        return self if self.expr.dtype is target else self.named(Cast(self.expr, target))

    def bits(self, dtype: Any) -> Term:
        """The same bits as another type."""
        return self.named(Call("reinterpret", (self.expr,), as_dtype(dtype)))

    def apply(self, name: str) -> Term:
        """Another math function of this term."""
        return self.named(Call(name, (self.expr,), self.expr.dtype))

    def signed_like(self, other: Term) -> Term:
        """This magnitude (not negative) with the sign of another float of the type."""
        width = f"uint{self.expr.dtype.bits}"
        sign = other.bits(width) & (1 << (self.expr.dtype.bits - 1))
        return (self.bits(width) | sign).bits(self.expr.dtype)


def fma(a: Term, b: Any, c: Any) -> Term:
    """a * b + c, rounded once."""
    return a.named(Fma(a.expr, a.like(b).expr, a.like(c).expr))


def select(cond: Term, t: Any, f: Any) -> Term:
    """t where cond holds, else f; one of them is a term."""
    some = t if isinstance(t, Term) else f
    return cond.named(Select(cond.expr, some.like(t).expr, some.like(f).expr))
