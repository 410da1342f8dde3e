"""The operation table: one row per operation of the language, for the reference docs and the property tests.

A row says how an author writes the operation, what it takes and gives,
     what it means in arithmetic that is independent
of the interpreter, how exact it is, and which inputs are worth trying. The IR's operator sets (`expr`), the
intrinsics and the surface are compared with these rows by the tests; a new operation adds its row here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tiledsl.dtypes import DType

__all__ = ["OPERATIONS", "Operation", "elementwise"]

Meaning = Callable[..., Any]
FLOAT, SIGNED, UNSIGNED, BOOL = "float", "int", "uint", "bool"
NUMBER, INTEGER, ANY = (FLOAT, SIGNED, UNSIGNED), (SIGNED, UNSIGNED), (FLOAT, SIGNED, UNSIGNED, BOOL)


@dataclass(frozen=True)
class Operation:
    """One operation.

    name      the public name in T; operators of Python go by their spelling
    spelling  an expression of x, y, z that an author may write, or the call with its main arguments
    params    parameter names of T.<name>; () for operators of Python
    family    the section of the reference
    doc       one line
    takes     kinds of dtypes of the operands; () where the operation is no elementwise one
    gives     "promoted" (the operands' common dtype: the default of elementwise operations), "bool", or words
    real      meaning on floats: a function of float64 arrays (or of `Fraction`s where `rational`); the result is
              rounded to the dtype (float16, bfloat16: to float32 first). With `ulps` it gets longdouble arrays.
    whole     meaning on integers and bools: a function of Python ints; the result wraps at the dtype
    rational  `real` is evaluated in rational numbers, so that exactly one rounding follows
    ulps      None: exact, bit for bit on every target; else the largest error in units in the last place
    flushes   results below 1 / the largest number may come out as 0
    draws     per operand: "any" value of its dtype, "count" (of a shift), "divisor", or "positive"
    alike     the operands have to be of one dtype; others are promoted
    checked   what the checked mode of the interpreter reports
    """

    name: str
    spelling: str
    params: tuple[str, ...]
    family: str
    doc: str
    takes: tuple[str, ...] = ()
    gives: str = ""
    real: Meaning | None = None
    whole: Meaning | None = None
    rational: bool = False
    ulps: float | None = None
    flushes: bool = False
    draws: tuple[str, ...] = ("any", "any", "any")
    alike: bool = False
    checked: str = ""

    @property
    def arity(self) -> int:
        """Operands of an elementwise operation."""
        meaning = self.real or self.whole
        return 0 if meaning is None else meaning.__code__.co_argcount

    def accepts(self, dtype: DType) -> bool:
        return dtype.kind in self.takes


# -- meanings that are longer than an expression ----------------------------------------------------------------


def _max(x: Any, y: Any) -> Any:
    """A number beats NaN; -0 is below +0."""
    return np.where(np.isnan(y) | (x > y) | ((x == y) & ~np.signbit(x)), x, y)


def _min(x: Any, y: Any) -> Any:
    return np.where(np.isnan(y) | (x < y) | ((x == y) & np.signbit(x)), x, y)


def _truncdiv(x: int, y: int) -> int:
    return 0 if y == 0 else abs(x) // abs(y) * (-1 if (x < 0) != (y < 0) else 1)


def _shl(x: int, y: int) -> int:
    return x << y if 0 <= y < 64 else 0  # wrapping at the type drops the rest


def _shr(x: int, y: int) -> int:
    return x >> (y if 0 <= y < 64 else 64)


def _sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def _erf(x: Any) -> Any:
    """2 / sqrt(pi) * exp(-x**2) * sum of 2**n x**(2n+1) / (2n+1)!!: positive terms, so nothing cancels."""
    size = np.minimum(np.abs(x), x.dtype.type(7))
    term = total = size
    for n in range(1, 200):
        term = term * (2 * size * size / (2 * n + 1))
        total = total + term
    pi = x.dtype.type(4) * np.arctan(x.dtype.type(1))
    return np.copysign(2 / np.sqrt(pi) * np.exp(-size * size) * total, x)


_ROWS: list[Operation] = []


def _row(*args: Any, **kw: Any) -> None:
    row = Operation(*args, **kw)
    _ROWS.append(replace(row, gives="promoted") if row.takes and not row.gives and row.family != "Tiles" else row)


# fmt: off
# -- operators of Python -----------------------------------------------------------------------------------------
_A = "Arithmetic"
_row("x + y", "x + y", (), _A, "sum", NUMBER, real=lambda x, y: x + y, whole=lambda x, y: x + y, rational=True)
_row("x - y", "x - y", (), _A, "difference", NUMBER, real=lambda x, y: x - y, whole=lambda x, y: x - y, rational=True)
_row("x * y", "x * y", (), _A, "product", NUMBER, real=lambda x, y: x * y, whole=lambda x, y: x * y, rational=True)
_row("x / y", "x / y", (), _A, "quotient; unsigned integers truncate, signed ones are an error", (FLOAT, UNSIGNED),
     real=lambda x, y: x / y, whole=_truncdiv, rational=True, draws=("any", "divisor"),
     checked="integer division by zero")
_row("x // y", "x // y", (), _A, "quotient rounded down; by zero 0", INTEGER,
     whole=lambda x, y: 0 if y == 0 else x // y, draws=("any", "divisor"), checked="division by zero")
_row("x % y", "x % y", (), _A, "remainder with the sign of y; by zero 0", INTEGER,
     whole=lambda x, y: 0 if y == 0 else x % y, draws=("any", "divisor"), checked="division by zero")
_row("-x", "-x", (), _A, "negation", NUMBER, real=lambda x: -x, whole=lambda x: -x)
_row("x & y", "x & y", (), "Bits", "bitwise and; of bools, both", (*INTEGER, BOOL), whole=lambda x, y: x & y)
_row("x | y", "x | y", (), "Bits", "bitwise or; of bools, either", (*INTEGER, BOOL), whole=lambda x, y: x | y)
_row("x ^ y", "x ^ y", (), "Bits", "bitwise exclusive or", (*INTEGER, BOOL), whole=lambda x, y: x ^ y)
_row("~x", "~x", (), "Bits", "bitwise complement", INTEGER, whole=lambda x: ~x)
_row("x << y", "x << y", (), "Bits", "left shift; 0 when y is negative or at least the width", INTEGER, whole=_shl,
     draws=("any", "count"))
_row("x >> y", "x >> y", (), "Bits", "right shift, arithmetic for signed x; 0 or the sign when y is out of range",
     INTEGER,
     whole=_shr, draws=("any", "count"))
for _sign, _same in (
    ("==", lambda x, y: x == y),
    ("!=", lambda x, y: x != y),
    ("<", lambda x, y: x < y),
    ("<=", lambda x, y: x <= y),
    (">", lambda x, y: x > y),
    (">=", lambda x, y: x >= y),
):
    _row(f"x {_sign} y", f"x {_sign} y", (), "Comparison", "false for NaN" if _sign != "!=" else "true for NaN", ANY,
     "bool",
         real=_same, whole=_same)
_row("x and y", "x and y", (), "Logic", "y is evaluated only where x holds", (BOOL,), "bool", whole=lambda x,
     y: x and y)
_row("x or y", "x or y", (), "Logic", "y is evaluated only where x does not hold", (BOOL,), "bool", whole=lambda x,
     y: x or y)
_row("not x", "not x", (), "Logic", "negation", (BOOL,), "bool", whole=lambda x: not x)
_row("y if x < z else z", "y if x < z else z", (), "Choice", "lazy choice: only the chosen side is evaluated", NUMBER,
     real=lambda x, y, z: np.where(x < z, y, z), whole=lambda x, y, z: y if x < z else z)

# -- scalar functions ---------------------------------------------------------------------------------------------
_AB = ("a", "b")
_row("max", "T.max(x, y)", _AB, _A, "the larger; a number beats NaN, -0 is below +0", NUMBER, real=_max,
     whole=lambda x, y: max(x, y))
_row("min", "T.min(x, y)", _AB, _A, "the smaller; a number beats NaN, -0 is below +0", NUMBER, real=_min,
     whole=lambda x, y: min(x, y))
_row("clamp", "T.clamp(x, y, z)", ("x", "low", "high"), _A, "min(max(x, low), high)", NUMBER,
     real=lambda x, y, z: _min(_max(x, y), z), whole=lambda x, y, z: min(max(x, y), z))
_row("abs", "T.abs(x)", ("x",), _A, "absolute value; of the lowest integer, itself", NUMBER, real=lambda x: np.abs(x),
     whole=lambda x: abs(x))
_row("fma", "T.fma(x, y, z)", ("a", "b", "c"), _A, "a * b + c rounded once; halves through float32", (FLOAT,),
     real=lambda x, y, z: x * y + z, rational=True)
_row("floordiv", "T.floordiv(x, y)", _AB, _A, "x // y", INTEGER, whole=lambda x, y: 0 if y == 0 else x // y,
     draws=("any", "divisor"), checked="division by zero")
_row("floormod", "T.floormod(x, y)", _AB, _A, "x % y", INTEGER, whole=lambda x, y: 0 if y == 0 else x % y,
     draws=("any", "divisor"), checked="division by zero")
_row("truncdiv", "T.truncdiv(x, y)", _AB, _A, "quotient rounded towards 0; by zero 0", INTEGER, whole=_truncdiv,
     draws=("any", "divisor"), checked="division by zero")
_row("truncmod", "T.truncmod(x, y)", _AB, _A, "remainder with the sign of a; by zero 0", INTEGER,
     whole=lambda x, y: 0 if y == 0 else x - y * _truncdiv(x, y), draws=("any", "divisor"),
     checked="division by zero")
# its a + b - 1 wraps at the (widened) type, which unbounded integers do not show: not an elementwise row
_row("ceildiv", "T.ceildiv(a, b)", _AB, _A, "a / b rounded up: (a + b - 1) // b; Python ints stay Python ints")
_row("bitwise_and", "T.bitwise_and(x, y)", _AB, "Bits", "x & y", INTEGER, whole=lambda x, y: x & y)
_row("bitwise_or", "T.bitwise_or(x, y)", _AB, "Bits", "x | y", INTEGER, whole=lambda x, y: x | y)
_row("bitwise_xor", "T.bitwise_xor(x, y)", _AB, "Bits", "x ^ y", INTEGER, whole=lambda x, y: x ^ y)
_row("bitwise_not", "T.bitwise_not(x)", ("x",), "Bits", "~x", INTEGER, whole=lambda x: ~x)
_row("shift_left", "T.shift_left(x, y)", _AB, "Bits", "x << y", INTEGER, whole=_shl, draws=("any", "count"))
_row("shift_right", "T.shift_right(x, y)", _AB, "Bits", "x >> y", INTEGER, whole=_shr, draws=("any", "count"))
_row("if_then_else", "T.if_then_else(x < z, y, z)", ("cond", "t", "f"), "Choice",
     "lazy choice: only the chosen side is evaluated, so it may guard a load", NUMBER,
     real=lambda x, y, z: np.where(x < z, y, z), whole=lambda x, y, z: y if x < z else z)
_row("Select", "T.Select(x < z, y, z)", ("cond", "t", "f"), "Choice", "eager choice between two values of one dtype",
     NUMBER, real=lambda x, y, z: np.where(x < z, y, z), whole=lambda x, y, z: y if x < z else z, alike=True)
_row("floor", "T.floor(x)", ("x",), "Rounding", "the largest whole number not above x", NUMBER,
     real=lambda x: np.floor(x), whole=lambda x: x)
_row("ceil", "T.ceil(x)", ("x",), "Rounding", "the smallest whole number not below x", NUMBER,
     real=lambda x: np.ceil(x), whole=lambda x: x)
_row("trunc", "T.trunc(x)", ("x",), "Rounding", "x without its fraction", NUMBER, real=lambda x: np.trunc(x),
     whole=lambda x: x)
_row("nearbyint", "T.nearbyint(x)", ("x",), "Rounding", "same as round: ties to even", NUMBER,
     real=lambda x: np.rint(x), whole=lambda x: x)
_row("round", "T.round(x)", ("x", "rounding_mode"), "Rounding", "the nearest whole number, ties to even", NUMBER,
     real=lambda x: np.rint(x), whole=lambda x: x)
_F = "Functions of floats"
_row("sqrt", "T.sqrt(x)", ("x",), _F, "square root, correctly rounded", (FLOAT,), real=lambda x: np.sqrt(x))
# the root's half ulp is at most one ulp of the quotient; the division adds half of one
_row("rsqrt", "T.rsqrt(x)", ("x",), _F, "1 / sqrt(x): two correctly rounded operations", (FLOAT,),
     real=lambda x: 1 / np.sqrt(x), ulps=1.5)
_row("exp2", "T.exp2(x)", ("x",), _F, "2**x", (FLOAT,), real=lambda x: np.exp2(x), ulps=1.0)
_row("exp", "T.exp(x)", ("x",), _F, "e**x", (FLOAT,), real=lambda x: np.exp(x), ulps=1.0)
_row("log2", "T.log2(x)", ("x",), _F, "base-2 logarithm", (FLOAT,), real=lambda x: np.log2(x), ulps=1.25)
_row("log", "T.log(x)", ("x",), _F, "natural logarithm", (FLOAT,), real=lambda x: np.log(x), ulps=1.0)
# exp within 1 ulp (2 u), then two rounded operations (u each): 4 u, and an ulp is at least u
_row("sigmoid", "T.sigmoid(x)", ("x",), _F, "1 / (1 + exp(0 - x)); 0 where exp overflows", (FLOAT,), real=_sigmoid,
     ulps=4.0, flushes=True)
_row("exp10", "T.exp10(x)", ("x",), _F, "10**x", (FLOAT,), real=lambda x: np.power(x.dtype.type(10), x), ulps=1.0)
_row("expm1", "T.expm1(x)", ("x",), _F, "e**x - 1, accurate near 0", (FLOAT,), real=lambda x: np.expm1(x), ulps=2.5)
_row("log10", "T.log10(x)", ("x",), _F, "base-10 logarithm", (FLOAT,), real=lambda x: np.log10(x), ulps=1.0)
_row("log1p", "T.log1p(x)", ("x",), _F, "log(1 + x), accurate near 0", (FLOAT,), real=lambda x: np.log1p(x), ulps=1.0)
_row("sin", "T.sin(x)", ("x",), _F, "sine of any argument", (FLOAT,), real=lambda x: np.sin(x), ulps=1.0)
_row("cos", "T.cos(x)", ("x",), _F, "cosine of any argument", (FLOAT,), real=lambda x: np.cos(x), ulps=1.0)
_row("tan", "T.tan(x)", ("x",), _F, "tangent of any argument", (FLOAT,), real=lambda x: np.tan(x), ulps=2.5)
_row("sinh", "T.sinh(x)", ("x",), _F, "hyperbolic sine", (FLOAT,), real=lambda x: np.sinh(x), ulps=3.0)
_row("cosh", "T.cosh(x)", ("x",), _F, "hyperbolic cosine", (FLOAT,), real=lambda x: np.cosh(x), ulps=2.0)
_row("tanh", "T.tanh(x)", ("x",), _F, "hyperbolic tangent", (FLOAT,), real=lambda x: np.tanh(x), ulps=3.0)
_row("erf", "T.erf(x)", ("x",), _F, "the error function", (FLOAT,), real=_erf, ulps=1.5)
_row("atan", "T.atan(x)", ("x",), _F, "inverse tangent", (FLOAT,), real=lambda x: np.arctan(x), ulps=1.0)
_row("asin", "T.asin(x)", ("x",), _F, "inverse sine", (FLOAT,), real=lambda x: np.arcsin(x), ulps=1.0)
_row("acos", "T.acos(x)", ("x",), _F, "inverse cosine", (FLOAT,), real=lambda x: np.arccos(x), ulps=1.0)
_row("asinh", "T.asinh(x)", ("x",), _F, "inverse hyperbolic sine", (FLOAT,), real=lambda x: np.arcsinh(x), ulps=2.0)
_row("acosh", "T.acosh(x)", ("x",), _F, "inverse hyperbolic cosine", (FLOAT,), real=lambda x: np.arccosh(x), ulps=3.0)
_row("atanh", "T.atanh(x)", ("x",), _F, "inverse hyperbolic tangent", (FLOAT,), real=lambda x: np.arctanh(x), ulps=2.5)
_row("atan2", "T.atan2(x, y)", ("y", "x"), _F, "the angle of the vector (x, y), from -pi to pi", (FLOAT,),
     real=lambda x, y: np.arctan2(x, y), ulps=1.5)
_row("hypot", "T.hypot(x, y)", ("x", "y"), _F, "sqrt(x * x + y * y) without overflow in between", (FLOAT,),
     real=lambda x, y: np.hypot(x, y), ulps=1.0)
_row("ldexp", "T.ldexp(x, n)", ("x", "n"), _F, "x * 2**n of a float and an integer, rounded once")
_row("pow", "T.pow(x, y)", ("x", "y"), _F, "x**y; a Python int from 1 to 64 multiplies, of integers too", (FLOAT,),
     real=lambda x, y: np.power(x, y), ulps=1.0)
_row("power", "T.power(x, y)", ("x", "y"), _F, "same as pow", (FLOAT,), real=lambda x, y: np.power(x, y), ulps=1.0)
_row("pow_of_int", "T.pow_of_int(x, 3)", ("x", "y"), _F, "x to a Python int from 0 to 64, by multiplication")
_row("fmod", "T.fmod(x, y)", ("x", "y"), _F, "x - trunc(x / y) * y; the sign is x's", (FLOAT,),
     real=lambda x, y: np.fmod(x, y))
_row("copysign", "T.copysign(x, y)", ("x", "y"), _F, "the magnitude of x with the sign of y", (FLOAT,),
     real=lambda x, y: np.copysign(x, y))
for _name, _meaning in (
    ("exp2", lambda x: np.exp2(x)), ("exp", lambda x: np.exp(x)), ("exp10", lambda x: np.power(x.dtype.type(10), x)),
    ("log2", lambda x: np.log2(x)), ("log", lambda x: np.log(x)), ("log10", lambda x: np.log10(x)),
    ("sin", lambda x: np.sin(x)), ("cos", lambda x: np.cos(x)), ("tan", lambda x: np.tan(x)),
):
    _row(f"__{_name}", f"T.__{_name}(x)", ("x",), _F, f"{_name}, which a GPU may approximate", (FLOAT,), real=_meaning,
         ulps=2.5)
_row("__pow", "T.__pow(x, y)", ("x", "y"), _F, "pow, which a GPU may approximate", (FLOAT,),
     real=lambda x, y: np.power(x, y), ulps=2.0)
_MODE = ("x", "y", "rounding_mode")
_row("ieee_add", "T.ieee_add(x, y)", _MODE, _F, "x + y with a rounding mode", (FLOAT,), real=lambda x, y: x + y,
     rational=True)
_row("ieee_sub", "T.ieee_sub(x, y)", _MODE, _F, "x - y with a rounding mode", (FLOAT,), real=lambda x, y: x - y,
     rational=True)
_row("ieee_mul", "T.ieee_mul(x, y)", _MODE, _F, "x * y with a rounding mode", (FLOAT,), real=lambda x, y: x * y,
     rational=True)
_row("ieee_fdiv", "T.ieee_fdiv(x, y)", _MODE, _F, "x / y with a rounding mode", (FLOAT,), real=lambda x, y: x / y,
     rational=True)
_row("ieee_div", "T.ieee_div(x, y)", _MODE, _F, "same as ieee_fdiv", (FLOAT,), real=lambda x, y: x / y, rational=True)
_row("ieee_fmaf", "T.ieee_fmaf(x, y, z)", ("x", "y", "z", "rounding_mode"), _F, "fma with a rounding mode", (FLOAT,),
     real=lambda x, y, z: x * y + z, rational=True)
_row("ieee_frcp", "T.ieee_frcp(x)", ("x", "rounding_mode"), _F, "1 / x with a rounding mode", (FLOAT,),
     real=lambda x: 1 / x, rational=True)
_row("ieee_fsqrt", "T.ieee_fsqrt(x)", ("x", "rounding_mode"), _F, "square root with a rounding mode", (FLOAT,),
     real=lambda x: np.sqrt(x))
_row("ieee_frsqrt", "T.ieee_frsqrt(x)", ("x",), _F, "same as rsqrt", (FLOAT,), real=lambda x: 1 / np.sqrt(x), ulps=1.5)
_row("isnan", "T.isnan(x)", ("x",), _F, "true for NaN", (FLOAT,), "bool", real=lambda x: np.isnan(x))
_row("isinf", "T.isinf(x)", ("x",), _F, "true for the two infinities", (FLOAT,), "bool", real=lambda x: np.isinf(x))
_row("isfinite", "T.isfinite(x)", ("x",), _F, "neither NaN nor infinite", (FLOAT,), "bool",
     real=lambda x: np.isfinite(x))

_B = "Bits"
_row("popcount", "T.popcount(x)", ("x",), _B, "bits that are set")
_row("clz", "T.clz(x)", ("x",), _B, "zero bits above the highest one")
_row("ffs", "T.ffs(x)", ("x",), _B, "position of the lowest one, from 1; 0 for 0")
_row("brev", "T.brev(x)", ("x",), _B, "the bits in reverse order")
_row("dp4a", "T.dp4a(A[i], B[i], C[0])", ("A", "B", "C"), _B, "C[0] += the product of four neighbours each, in int32")
_row("byte_perm", "T.byte_perm(x, y, selector)", ("x", "y", "selector"), _B, "four of eight bytes")
_row("align_up", "T.align_up(value, alignment)", ("value", "alignment"), _A, "the multiple that is not below value")

_C = "Conversions and limits"
_row("cast", "T.cast(value, dtype)", ("value", "dtype", "round", "sat", "rbits"), _C,
     'to nearest even (round="rz": towards zero); float to integer truncates and saturates, NaN gives 0; integers wrap',
     gives="dtype")
_row("Cast", "T.Cast(dtype, value)", ("dtype", "value"), _C, "cast with its arguments exchanged", gives="dtype")
_row("reinterpret", "T.reinterpret(value, dtype)", ("value", "dtype"), _C, "the same bits as another type",
     gives="dtype")
_row("vectorized_cast", "T.vectorized_cast(value, dtype)", ("value", "dtype"), _C, "cast of a vector, lane by lane",
     gives="dtype")
_row("extract_lane", "T.extract_lane(value, lane)", ("value", "lane"), _C, "one lane of a vector")
for _op in ("add2", "sub2", "mul2", "min2", "max2"):
    _row(_op, f"T.{_op}(a, b)", ("a", "b"), _C, f"{_op[:3]} of vectors of two lanes")
_row("abs2", "T.abs2(x)", ("x",), _C, "abs of a vector of two lanes")
_row("fma2", "T.fma2(a, b, c)", ("a", "b", "c"), _C, "fma of vectors of two lanes")
_row("infinity", "T.infinity(dtype)", ("dtype",), _C, "positive infinity", gives="dtype")
_row("max_value", "T.max_value(dtype)", ("dtype",), _C, "the largest finite value", gives="dtype")
_row("min_value", "T.min_value(dtype)", ("dtype",), _C, "the lowest finite value", gives="dtype")
_row("dtype", "T.dtype(x)", ("x",), _C, "the dtype meant by a name, a NumPy or torch dtype, or a Python type",
     gives="a dtype")

# -- tiles ----------------------------------------------------------------------------------------------------------
_T = "Tiles"
_REDUCE = ("buffer", "out", "dim", "clear", "batch")
_row("copy", "T.copy(src, dst)",
     ("src", "dst", "coalesced_width", "disable_tma", "eviction_policy", "prefer_instruction", "annotations",
      "loop_layout"), _T,
     "dst = src converted to dst's dtype; global memory out of range reads 0, stores out of range are skipped")
for _bits in (32, 64, 128, 256):
    _row(f"ldg{_bits}", f"T.ldg{_bits}(A[i])", ("src", "pred"), _T, f"{_bits} bits from an element on, as uint32 words")
    _row(f"stg{_bits}", f"T.stg{_bits}(A[i], value)", ("dst", "value"), _T, f"stores {_bits} bits from an element on")
_row("fill", "T.fill(dst, value)", ("dst", "value"), _T, "every element gets the value")
_row("clear", "T.clear(dst)", ("dst",), _T, "every element becomes 0")
_row("im2col", "T.im2col(img, col, m_tile, k_tile, kernel, stride, dilation, pad)",
     ("img", "col", "nhw_step", "c_step", "kernel", "stride", "dilation", "pad", "eviction_policy"), _T,
     "windows of an image [N, H, W, C] as rows of a matrix; 0 outside")
_row("transpose", "T.transpose(src, dst)", ("src", "dst"), _T, "dst[j, i] = src[i, j]")
_row("gemm", "T.gemm(A, B, C)",
     ("A", "B", "C", "transpose_A", "transpose_B", "policy", "clear_accum", "k_pack", "mbar", "annotations",
      "precision"), _T,
     "C += A @ B in float32 (float64, int32): one k-ascending fma chain per element, rounded once to C's dtype",
     real=lambda a, b, c: c + a @ b)
_row("reduce_sum", "T.reduce_sum(buffer, out, dim)", _REDUCE, _T, "sum along dim in 16 interleaved partials", NUMBER,
     real=lambda x: x.sum(-1), whole=lambda x: x.sum(-1), ulps=1.0)
_row("reduce_abssum", "T.reduce_abssum(buffer, out, dim)", ("buffer", "out", "dim", "batch"), _T,
     "sum of absolute values along dim", NUMBER, real=lambda x: np.abs(x).sum(-1),
     whole=lambda x: np.abs(x).sum(-1), ulps=1.0)
_row("reduce_max", "T.reduce_max(buffer, out, dim)", (*_REDUCE, "nan_propagate"), _T,
     "largest along dim; NaN is ignored unless nan_propagate", NUMBER,
     real=lambda x: np.fmax.reduce(x, -1, initial=-np.inf), whole=lambda x: x.max(-1))
_row("reduce_min", "T.reduce_min(buffer, out, dim)", (*_REDUCE, "nan_propagate"), _T,
     "smallest along dim; NaN is ignored unless nan_propagate", NUMBER,
     real=lambda x: np.fmin.reduce(x, -1, initial=np.inf), whole=lambda x: x.min(-1))
_row("reduce_absmax", "T.reduce_absmax(buffer, out, dim)", (*_REDUCE, "nan_propagate"), _T,
     "largest absolute value along dim; 0 when there is none", NUMBER,
     real=lambda x: np.fmax.reduce(np.abs(x), -1, initial=0.0), whole=lambda x: np.abs(x).max(-1))
_row("reduce_bitand", "T.reduce_bitand(buffer, out, dim)", _REDUCE, _T, "bitwise and along dim", INTEGER,
     whole=lambda x: np.bitwise_and.reduce(x, -1))
_row("reduce_bitor", "T.reduce_bitor(buffer, out, dim)", _REDUCE, _T, "bitwise or along dim", INTEGER,
     whole=lambda x: np.bitwise_or.reduce(x, -1))
_row("reduce_bitxor", "T.reduce_bitxor(buffer, out, dim)", _REDUCE, _T, "bitwise exclusive or along dim", INTEGER,
     whole=lambda x: np.bitwise_xor.reduce(x, -1))
_row("cumsum", "T.cumsum(src, dst, dim)", ("src", "dst", "dim", "reverse"), _T,
     "running sum along dim, one element after the other", NUMBER, real=lambda x: np.cumsum(x, -1),
     whole=lambda x: np.cumsum(x, -1))
_row("cummax", "T.cummax(src, dst, dim)", ("src", "dst", "dim", "reverse"), _T, "running maximum along dim", NUMBER,
     real=lambda x: np.fmax.accumulate(x, -1), whole=lambda x: np.maximum.accumulate(x, -1))

# -- atomics --------------------------------------------------------------------------------------------------------
_U = "Atomics"
_UPDATE = ("dst", "value", "memory_order", "return_prev")
_row("atomic_add", "T.atomic_add(C[i, j], x)", (*_UPDATE, "use_tma"), _U,
     "adds in one step to an element, or a tile to a box; floats round per addition, in any order")
_row("atomic_max", "T.atomic_max(C[i, j], x)", _UPDATE, _U, "the larger in one step; a number beats NaN")
_row("atomic_min", "T.atomic_min(C[i, j], x)", _UPDATE, _U, "the smaller in one step; a number beats NaN")
_row("atomic_and", "T.atomic_and(C[i, j], x)", _UPDATE, _U, "bitwise and in one step")
_row("atomic_or", "T.atomic_or(C[i, j], x)", _UPDATE, _U, "bitwise or in one step")
_row("atomic_xor", "T.atomic_xor(C[i, j], x)", _UPDATE, _U, "bitwise exclusive or in one step")
_row("atomic_addx2", "T.atomic_addx2(C[i, 2 * j], A[i, 2 * j])", ("dst", "value", "return_prev"), _U,
     "atomic_add of two neighbours")
_row("atomic_addx4", "T.atomic_addx4(C[i, 4 * j], A[i, 4 * j])", ("dst", "value", "return_prev"), _U,
     "atomic_add of four neighbours")
_row("atomic_load", "T.atomic_load(C[i])", ("src", "memory_order"), _U, "an element, read in one step",
     gives="the element's dtype")
_row("atomic_store", "T.atomic_store(C[i], x)", ("dst", "value", "memory_order"), _U, "an element, written in one step")

# -- asynchronous hardware, in order ----------------------------------------------------------------------------------
_Y = "Asynchronous names"
_row("async_copy", "T.async_copy(src, dst)", ("src", "dst", "coalesced_width", "annotations", "loop_layout"), _Y,
     "copy: the data is there at once")
_row("tma_copy", "T.tma_copy(src, dst)", ("src", "dst", "barrier", "eviction_policy", "annotations"), _Y,
     "copy: the data is there at once")
for _name, _params, _what in (
    ("ptx_commit_group", (), "ends a group of copies"),
    ("ptx_wait_group", ("num",), "waits for copies"),
    ("tma_store_arrive", (), "ends a group of stores"),
    ("tma_store_wait", ("count",), "waits for stores"),
    ("pdl_trigger", (), "lets the next kernel begin"),
    ("pdl_sync", (), "waits for the kernel before"),
    ("warpgroup_arrive", (), "orders the operands of a product"),
    ("warpgroup_commit_batch", (), "ends a batch of products"),
    ("warpgroup_wait", ("num_mma",), "waits for products"),
    ("warpgroup_fence_operand", ("buffer_or_ptr", "offset", "num_regs", "dtype"), "keeps registers of a product"),
    ("wait_wgmma", ("id",), "waits for products"),
    ("fence_proxy_async", (), "orders memory between engines"),
    ("fence_barrier_init", (), "makes barriers visible"),
):
    _row(_name, f"T.{_name}({', '.join(_params)})", _params, _Y, f"{_what}: everything is in order already")

# -- structure ------------------------------------------------------------------------------------------------------
_S, _M, _L, _D, _H = "Kernels and arguments", "Storage", "Loops", "Looking in", "Hints"
_row("prim_func", "@T.prim_func", ("pyfunc",), _S, "traces a function into a kernel", gives="a PrimFunc")
_row("macro", "@T.macro", ("pyfunc",), _S, "a function traced into each kernel that calls it", gives="a Macro")
_row("Ref", "x: T.Ref", (), _S, "a macro's parameter that can be assigned to", gives="an annotation")
_row("Kernel", "with T.Kernel(gx, gy, threads=128) as (bx, by):", ("grid", "threads", "prelude", "cluster_dims"), _S,
     "one launch: a grid of blocks, x fastest", gives="block indices")
_row("ClusterKernel", "with T.ClusterKernel(gx, gy, cluster_dims=2) as (bx, by):",
     ("grid", "threads", "cluster_dims", "prelude"), _S, "a Kernel whose blocks a GPU may group", gives="block indices")
_row("meta_class", "@T.meta_class", ("cls",), _S, "a class whose objects exist while tracing", gives="the class")
_row("PrimExpr", "x: T.PrimExpr", (), _S, "the type of values of a kernel", gives="an annotation")
_row("SharedBuffer", "x: T.SharedBuffer((m, n), dtype)", ("shape", "dtype"), _S, "a macro's parameter: a shared tile",
     gives="an annotation")
_row("FragmentBuffer", "x: T.FragmentBuffer((m, n), dtype)", ("shape", "dtype"), _S, "a macro's parameter: a fragment",
     gives="an annotation")
_row("LocalBuffer", "x: T.LocalBuffer((n,), dtype)", ("shape", "dtype"), _S, "a macro's parameter: a local array",
     gives="an annotation")
_row("Tensor", "A: T.Tensor((m, n), dtype)", ("shape", "dtype", "data"), _S, "a row-major contiguous argument",
     gives="an annotation")
_row("Buffer", "A: T.Buffer((m, n), dtype)", ("shape", "dtype", "data"), _S, "older name of Tensor",
     gives="an annotation")
_row("StridedTensor", "A: T.StridedTensor(shape, strides, dtype)", ("shape", "strides", "dtype"), _S,
     "an argument with explicit strides in elements", gives="an annotation")
_row("dynamic", 'm, n = T.dynamic("m, n")', ("names", "dtype"), _S, "sizes that every launch binds", gives="symbols")
_row("symbolic", 'm = T.symbolic("m")', ("names", "dtype"), _S, "older name of dynamic", gives="symbols")
_row("const", 'M, N = T.const("M, N")', ("names",), _S, "sizes that specialise an eager kernel", gives="ints")
_row("empty", "C = T.empty((m, n), dtype)", ("shape", "dtype"), _S, "an output of an eager kernel", gives="a tensor")
_row("address_of", "T.address_of(A[i])", ("place",), _S, "an element as a place, for operations that take one",
     gives="the element")
_row("any_of", "T.any_of(buffer)", ("buffer",), "Choice", "true if some element is not 0", gives="bool of a buffer")
_row("all_of", "T.all_of(buffer)", ("buffer",), "Choice", "true if no element is 0", gives="bool of a buffer")
_row("alloc_shared", "T.alloc_shared(shape, dtype)", ("shape", "dtype", "scope"), _M, "a tile, one per block",
     gives="a buffer")
_row("alloc_fragment", "T.alloc_fragment(shape, dtype)", ("shape", "dtype", "scope"), _M,
     "a tile in registers, logically one per block", gives="a buffer")
_row("alloc_local", "T.alloc_local(shape, dtype)", ("shape", "dtype", "scope"), _M,
     "an array per thread; inside T.Parallel per iteration", gives="a buffer")
_row("alloc_var", "v = T.alloc_var(dtype, init)", ("dtype", "init", "scope"), _M, "a mutable scalar",
     gives="a variable")
_row("alloc_global", "T.alloc_global(shape, dtype)", ("shape", "dtype", "scope"), _M,
     "a workspace per launch, seen by all blocks and kernels", gives="a buffer")
_row("alloc_reducer", 'T.alloc_reducer(shape, dtype, op="sum")', ("shape", "dtype", "op", "replication"), _M,
     "a tile that collects one contribution per iteration of T.Parallel", gives="a buffer",
     checked="a contribution before the start value")
_row("reducer_init", "T.reducer_init(r, start)", ("reducer", "init"), _M, "the start value of a reducer")
_row("reducer_update", "T.reducer_update(r[j], x)", ("dst", "value"), _M, "one contribution; also r[j] += x")
_row("finalize_reducer", "T.finalize_reducer(r)", ("reducer", "dst"), _M,
     "combines a reducer with its contributions: float sums in 16 interleaved partials")
_row("reshape", "T.reshape(src, shape)", ("src", "shape"), _M, "the same storage with another shape", gives="a buffer")
_row("make_tensor", "T.make_tensor(address, shape, dtype)", ("ptr", "shape", "dtype", "strides"), _M,
     "a global tensor at an address, from a T.ptr tensor or parameter", gives="a buffer")
_row("view", "T.view(src, shape, dtype)", ("src", "shape", "dtype"), _M,
     "the same storage with another shape and dtype",
     gives="a buffer")
_NEST = ("extents", "coalesced_width", "loop_layout", "prefer_async", "annotations")
_row("Parallel", "for i, j in T.Parallel(m, n):", _NEST, _L, "independent iterations in no order", gives="indices")
_row("parallel", "for i in T.parallel(n):", ("extents",), _L, "same as Parallel", gives="indices")
_row("Pipelined", "for k in T.Pipelined(n, num_stages=2):",
     ("start", "stop", "num_stages", "order", "stage", "sync", "group", "annotations"), _L,
     "a sequential loop whose copies may overlap its arithmetic", gives="an index")
_row("Persistent", "for by, bx in T.Persistent([m, n], blocks, b):",
     ("domain", "wave_size", "index", "group_size", "annotations"), _L,
     "the tiles of one of several persistent blocks; each tile once", gives="indices")
_row("PersistentTileScheduler", "tiles = T.PersistentTileScheduler(tiles_m, tiles_n)",
     ("num_m_tiles", "num_n_tiles", "num_workers", "swizzle_size", "column_major", "cluster_size", "stateful", "name"),
     _L, "an object that walks over the tiles of one of several persistent blocks", gives="a scheduler")
_row("serial", "for i in T.serial(start, stop, step):", ("start", "stop", "step", "annotations"), _L,
     "a sequential loop", gives="an index")
_row("unroll", "for i in T.unroll(n):", ("start", "stop", "step", "explicit", "unroll_factor", "annotations"), _L,
     "a sequential loop to be unrolled", gives="an index")
_row("vectorized", "for i in T.vectorized(n):", ("start", "stop", "annotations"), _L,
     "a sequential loop to be run in vector lanes", gives="an index")
_row("loop_break", "T.loop_break()", (), _L, "leaves the innermost loop, as `break` does")
_row("grid", "for i, j in T.grid(m, n):", ("extents",), _L, "nested sequential loops", gives="indices")
_row("print", "T.print(obj, msg)", ("obj", "msg", "warp_group_id", "warp_id"), _D, "prints a buffer or scalar")
_row("device_assert", "T.device_assert(condition, msg)", ("condition", "msg", "no_stack_info"), _D,
     "stops the kernel with an error unless the condition holds")
_row("assume", "T.assume(condition)", ("condition",), _D, "a promise to the compiler; the checked mode tests it",
     checked="a promise that does not hold")
_row("call_extern", 'T.call_extern("int32", "__popc", x)', ("return_type", "func_name", "args"), _F,
     "one of CUDA's documented scalar and warp intrinsics, with one meaning on every target", gives="dtype")
_row("evaluate", "T.evaluate(value)", ("value",), _D, "a value whose result is not needed")
_row("determine_fp8_type", "T.determine_fp8_type(fp8_format)", ("fp8_format",), _C, "the name of an 8-bit float",
     gives="text")
_row("use_swizzle", "T.use_swizzle(panel_size)", ("panel_size", "order", "enable"), _H, "visit blocks in panels")
_row("annotate_layout", "T.annotate_layout({buffer: layout})", ("layouts",), _H,
     "of tiles a hint; of a global tensor the order of its elements in memory")
_row("Layout", "T.Layout(shape, lambda i, j: (i // 8, j, i % 8))", ("shape", "forward_fn"), _H,
     "where elements lie in memory", gives="a layout")
_row("Fragment", "T.Fragment(shape, forward_fn)",
     ("shape", "forward_fn", "forward_thread_fn", "replicate", "forward_index_fn"), _H,
     "how a tile is spread over threads", gives="a layout")
_row("annotate_safe_value", "T.annotate_safe_value({tensor: value})", ("values",), _M,
     "what reads out of range of a tensor give")
_row("annotate_l2_hit_ratio", "T.annotate_l2_hit_ratio({tensor: ratio})", ("ratios",), _H, "cache residency")
_row("annotate_restrict_buffers", "T.annotate_restrict_buffers(A, B)", ("buffers",), _H, "arguments do not overlap")
_row("annotate_pass_configs", "T.annotate_pass_configs({})", ("configs",), _H, "compiler configuration")
_row("annotate_compile_flags", "T.annotate_compile_flags([])", ("flags",), _H, "compiler flags")
_row("disable_warp_group_reg_alloc", "T.disable_warp_group_reg_alloc()", (), _H, "registers of warp groups")
_row("no_set_max_nreg", "T.no_set_max_nreg()", (), _H, "registers of warp groups")
_row("set_max_nreg", "T.set_max_nreg(reg_count, is_inc)", ("reg_count", "is_inc"), _H, "registers of warp groups")
_row("inc_max_nreg", "T.inc_max_nreg(reg_count)", ("reg_count",), _H, "registers of warp groups")
_row("dec_max_nreg", "T.dec_max_nreg(reg_count)", ("reg_count",), _H, "registers of warp groups")
_row("annotate_producer_reg_dealloc", "T.annotate_producer_reg_dealloc(reg_count)", ("reg_count",), _H,
     "registers of warp groups")
_row("annotate_consumer_reg_alloc", "T.annotate_consumer_reg_alloc(reg_count)", ("reg_count",), _H,
     "registers of warp groups")
_row("GemmWarpPolicy", "T.GemmWarpPolicy.Square", (), _H, "how a GPU spreads T.gemm over warps", gives="an enumeration")

# -- threads --------------------------------------------------------------------------------------------------------
_TH = "Threads"
_row("get_thread_binding", "tx = T.get_thread_binding(0)", ("dim",), _TH, "this thread's index along an axis",
     gives="an index")
_row("get_thread_bindings", "tx, ty, tz = T.get_thread_bindings()", (), _TH, "this thread's indices", gives="indices")
_row("get_thread_extent", "T.get_thread_extent(0)", ("dim",), _TH, "threads of a block along an axis", gives="a size")
_row("get_block_binding", "bx = T.get_block_binding(0)", ("dim",), _TH, "this block's index", gives="an index")
_row("get_block_bindings", "bx, by, bz = T.get_block_bindings()", (), _TH, "this block's indices", gives="indices")
_row("get_block_extent", "T.get_block_extent(0)", ("dim",), _TH, "blocks of the grid along an axis", gives="a size")
_row("get_lane_idx", "T.get_lane_idx()", ("warp_size",), _TH, "number of the thread in its warp", gives="an index")
_row("get_warp_idx", "T.get_warp_idx()", ("warp_size",), _TH, "number of the thread's warp", gives="an index")
_row("get_warp_idx_sync", "T.get_warp_idx_sync()", ("warp_size",), _TH, "same as get_warp_idx", gives="an index")
_row("get_warp_group_idx", "T.get_warp_group_idx()", ("warp_size", "warps_per_group"), _TH,
     "number of the thread's group of 4 warps", gives="an index")
_row("thread_binding", 'for t in T.thread_binding(n, "threadIdx.x"):', ("start", "stop", "thread", "annotations"), _TH,
     "the thread index that a tag names", gives="an index")
_row("launch_thread", 'tx = T.launch_thread("threadIdx.x", n)', ("thread", "extent"), _TH,
     "the thread index that a tag names", gives="an index")
_row("thread_return", "T.thread_return()", (), _TH, "ends this thread; barriers no longer count it")
_row("sync_threads", "T.sync_threads()", ("barrier_id", "arrive_count"), _TH, "a barrier of the block",
     checked="a barrier that only a part of the block's threads reaches")
_row("sync_warp", "T.sync_warp()", ("mask",), _TH, "a barrier of each warp")
_row("sync_grid", "T.sync_grid()", (), _TH, "a barrier of all blocks of the launch")
_row("sync_global", "T.sync_global()", (), _TH, "same as sync_grid")
_row("comm_reducer", "T.comm_reducer(lambda x, y: x + y, [zero])", ("fcombine", "identity"), _TH,
     "the reduction that a function of two values means", gives="a reducer")
_row("attr", 'with T.attr(T.comm_reducer(...), "reduce_scope", value):', ("node", "attr_key", "value"), _TH,
     "the reducer of the all-reductions inside")
_row("tvm_thread_allreduce", "T.tvm_thread_allreduce(T.uint32(1), x, True, y[0], tx)",
     ("size", "value", "predicate", "out", "threads", "dtype"), _TH,
     "y[0] = reduction of x over thread axes: an xor butterfly, then one over groups of 32")
_row("alloc_barrier", "bars = T.alloc_barrier([128, 128])", ("arrive_count",), _TH,
     "barriers for groups of threads that arrive, and groups that wait", gives="barriers")
for _name, _arg in (("barrier_arrive", "barrier"), ("mbarrier_arrive", "mbarrier"), ("ptx_arrive_barrier", "barrier")):
    _row(_name, f"T.{_name}(bars[i])", (_arg,), _TH, "each thread that comes here arrives once")
_row("ptx_arrive_barrier_expect_tx", "T.ptx_arrive_barrier_expect_tx(bars[i], n)", ("barrier", "bytes"), _TH,
     "arrives; copies are complete when they return")
_row("mbarrier_expect_tx", "T.mbarrier_expect_tx(bars[i], n)", ("mbarrier", "tx"), _TH,
     "nothing: copies are complete when they return")
_row("barrier_wait", "T.barrier_wait(bars[i], parity)", ("barrier", "parity"), _TH,
     "waits until the phase of this parity is complete", checked="a deadlock (always reported)")
_row("create_list_of_mbarrier", "T.create_list_of_mbarrier(128, 128)", ("args",), _TH,
     "barriers that are named by their numbers")
_row("get_mbarrier", "T.get_mbarrier(0)", ("barrier_id",), _TH, "a barrier of create_list_of_mbarrier",
     gives="a barrier")
_row("ws", "with T.ws(0):", ("warp_group_idx",), _TH, "what the threads of some warp groups (128 threads) do")
_row("mbarrier_wait_parity", "T.mbarrier_wait_parity(bars[i], parity)", ("mbarrier", "parity"), _TH,
     "same as barrier_wait", checked="a deadlock (always reported)")
_INACTIVE = "a value taken from a thread that is not there"
_row("shfl_sync", "T.shfl_sync(x, lane)", ("value", "srcLane", "width", "mask"), _TH,
     "x of a lane of the segment of width lanes", gives="x's dtype", checked=_INACTIVE)
_row("shfl_up", "T.shfl_up(x, delta)", ("value", "delta", "width", "mask"), _TH, "x of the lane delta below",
     gives="x's dtype", checked=_INACTIVE)
_row("shfl_down", "T.shfl_down(x, delta)", ("value", "delta", "width", "mask"), _TH, "x of the lane delta above",
     gives="x's dtype", checked=_INACTIVE)
_row("shfl_xor", "T.shfl_xor(x, delta)", ("value", "delta", "width", "mask"), _TH, "x of lane ^ delta",
     gives="x's dtype", checked=_INACTIVE)
for _op, _what in (("sum", "sum"), ("max", "largest"), ("min", "smallest"), ("bitand", "bitwise and"),
                   ("bitor", "bitwise or"), ("bitxor", "bitwise exclusive or")):
    _row(f"warp_reduce_{_op}", f"T.warp_reduce_{_op}(x)", ("value",), _TH,
         f"{_what} over the warp: an xor butterfly 16-8-4-2-1", gives="x's dtype", checked=_INACTIVE)
_row("any_sync", "T.any_sync(p)", ("predicate", "mask"), _TH, "1 where p holds in some thread of the warp",
     gives="int32")
_row("all_sync", "T.all_sync(p)", ("predicate", "mask"), _TH, "1 where p holds in every thread of the warp",
     gives="int32")
_row("ballot_sync", "T.ballot_sync(p)", ("predicate", "mask"), _TH, "bit i: p holds in lane i", gives="uint32")
_row("ballot", "T.ballot(p)", ("predicate",), _TH, "bit i: p holds in lane i", gives="uint32")
_row("activemask", "T.activemask()", (), _TH, "bit i: lane i is here", gives="uint32")
_row("match_any_sync", "T.match_any_sync(x)", ("value", "mask"), _TH, "bit i: lane i has the same x", gives="uint32")
_row("match_all_sync", "T.match_all_sync(x)", ("value", "mask"), _TH,
     "the lanes that are here, where all have the same x, else 0", gives="uint32")
_row("shuffle_elect", "T.shuffle_elect(n)", ("thread_extent",), _TH,
     "true for the first thread of each group of n (0: of the block)", gives="bool")
_row("rng_init", "T.rng_init(seed)", ("seed", "seq", "off", "generator"), _TH, "starts this thread's random numbers")
_row("rng_rand", "T.rng_rand()", (), _TH, "the next random number (Philox4x32-10)", gives="uint32")
_row("rng_rand_float", "T.rng_rand_float()", ("bit", "dist"), _TH, "the next random float", gives="a float")
_row("syncthreads_count", "T.syncthreads_count(p)", ("predicate",), _TH, "a barrier; threads where p holds",
     gives="int32")
_row("syncthreads_and", "T.syncthreads_and(p)", ("predicate",), _TH, "a barrier; 1 where p holds in all threads",
     gives="int32")
_row("syncthreads_or", "T.syncthreads_or(p)", ("predicate",), _TH, "a barrier; 1 where p holds in some thread",
     gives="int32")

# fmt: on

OPERATIONS: Mapping[str, Operation] = {row.name: row for row in _ROWS}


def elementwise(dtype: DType) -> list[Operation]:
    """The operations on scalars that take operands of this dtype."""
    return [row for row in _ROWS if row.accepts(dtype) and row.gives in ("promoted", "bool")]
