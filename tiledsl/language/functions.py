"""Functions of floats that are expanded into exactly rounded operations, and arithmetic with a rounding mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiledsl import ir
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.frontend.location import error
from tiledsl.frontend.promotion import FLOAT32, as_number, is_number
from tiledsl.frontend.values import Value, as_value, to_dtype
from tiledsl.language.casts import cast, reinterpret
from tiledsl.language.math import clamp, fma, math_call, number_operands, rsqrt, select_value, sqrt
from tiledsl.language.operation import named, surface

__all__ = [
    "__cos", "__exp", "__exp10", "__exp2", "__log", "__log10", "__log2", "__pow", "__sin", "__tan", "acos", "acosh",
    "asin", "asinh", "atan", "atan2", "atanh", "copysign", "cos", "cosh", "erf", "exp", "exp10", "exp2", "expm1",
    "fmod", "hypot", "ieee_add", "ieee_div", "ieee_fdiv", "ieee_fmaf", "ieee_frcp", "ieee_frsqrt", "ieee_fsqrt",
    "ieee_mul", "ieee_sub", "ldexp", "log", "log10", "log1p", "log2", "pow", "pow_of_int", "power", "sin", "sinh",
    "tan", "tanh",
]  # fmt: skip


def _function(name: str, doc: str) -> Callable[[Any], Any]:
    """T.<name>, a function of one float; `__name` is its approximate form."""
    intrinsic = name.replace("__", "fast_")

    def function(x: Any) -> Any:
        return math_call(name, intrinsic, x)

    return surface(named(function, name, doc))


exp2 = _function("exp2", "2**x, at most 1 ulp from the exact value in float32; keeps the dtype.")
exp = _function("exp", "e**x, at most 1 ulp from the exact value in float32; keeps the dtype.")
exp10 = _function("exp10", "10**x, at most 1 ulp from the exact value; keeps the dtype.")
expm1 = _function("expm1", "e**x - 1, accurate near 0; at most 2.5 ulp from the exact value; keeps the dtype.")
log2 = _function("log2", "Base-2 logarithm, at most 1 ulp from the exact value in float32; keeps the dtype.")
log = _function("log", "Natural logarithm, at most 1 ulp from the exact value in float32; keeps the dtype.")
log10 = _function("log10", "Base-10 logarithm, at most 1 ulp from the exact value; keeps the dtype.")
log1p = _function("log1p", "log(1 + x), accurate near 0; at most 1 ulp from the exact value; keeps the dtype.")
sin = _function("sin", "Sine of any argument in radians, at most 1 ulp from the exact value; keeps the dtype.")
cos = _function("cos", "Cosine of any argument in radians, at most 1 ulp from the exact value; keeps the dtype.")
tan = _function("tan", "Tangent of any argument in radians, at most 2.5 ulp from the exact value; keeps the dtype.")
sinh = _function("sinh", "Hyperbolic sine, at most 3 ulp from the exact value; keeps the dtype.")
cosh = _function("cosh", "Hyperbolic cosine, at most 2 ulp from the exact value; keeps the dtype.")
tanh = _function("tanh", "Hyperbolic tangent, at most 3 ulp from the exact value; keeps the dtype.")
erf = _function("erf", "The error function, at most 1.5 ulp from the exact value; keeps the dtype.")
atan = _function("atan", "Inverse tangent, at most 1 ulp from the exact value; keeps the dtype.")
asin = _function("asin", "Inverse sine, at most 1 ulp from the exact value, NaN outside [-1, 1]; keeps the dtype.")
acos = _function("acos", "Inverse cosine, at most 1 ulp from the exact value, NaN outside [-1, 1]; keeps the dtype.")
asinh = _function("asinh", "Inverse hyperbolic sine, at most 2 ulp from the exact value; keeps the dtype.")
acosh = _function("acosh", "Inverse hyperbolic cosine, at most 3 ulp from the exact value; keeps the dtype.")
atanh = _function("atanh", "Inverse hyperbolic tangent, at most 2.5 ulp from the exact value; keeps the dtype.")

_FAST = "{}, which a target may approximate as its hardware does; the CPU targets compute T.{}."
__exp2 = _function("__exp2", _FAST.format("2**x", "exp2"))
__exp = _function("__exp", _FAST.format("e**x", "exp"))
__exp10 = _function("__exp10", _FAST.format("10**x", "exp10"))
__log2 = _function("__log2", _FAST.format("Base-2 logarithm", "log2"))
__log = _function("__log", _FAST.format("Natural logarithm", "log"))
__log10 = _function("__log10", _FAST.format("Base-10 logarithm", "log10"))
__sin = _function("__sin", _FAST.format("Sine", "sin"))
__cos = _function("__cos", _FAST.format("Cosine", "cos"))
__tan = _function("__tan", _FAST.format("Tangent", "tan"))


@surface
def __pow(x: Any, y: Any) -> Any:
    """x**y of floats, which a target may approximate as its hardware does; the CPU targets compute T.pow."""
    return math_call("__pow", "fast_pow", x, y)


@surface
def pow(x: Any, y: Any) -> Any:
    """x**y, at most 1 ulp from the exact value, special cases as IEEE 754 has them; in the common dtype.

    A Python int from 1 to 64 as exponent means multiplication by repeated squaring, of integers too.
    """
    if is_number(x) and is_number(y):
        return as_number(x) ** as_number(y)
    if isinstance(y, int) and not isinstance(y, bool) and 1 <= y <= _LARGEST_POWER:
        return pow_of_int(x, y)
    return math_call("pow", "pow", x, y)


@surface
def power(x: Any, y: Any) -> Any:
    """Same as `pow`."""
    return pow(x, y)


_LARGEST_POWER = 64  # the expression has so many leaves


@surface
def pow_of_int(x: Any, y: int) -> Any:
    """x to a Python int from 0 to 64, by repeated squaring; integers wrap."""
    if not isinstance(y, int) or not 0 <= y <= _LARGEST_POWER:
        raise error(
            "power-exponent",
            TileValueError,
            f"T.pow_of_int: the exponent is a Python int from 0 to {_LARGEST_POWER}, got {y!r}",
            help="T.pow takes any exponent of float type",
        )
    value = as_value(x, "T.pow_of_int: the argument")
    result: Any = None
    for bit in bin(y)[2:] if y else "":
        result = value if result is None else result * result * value if bit == "1" else result * result
    return Value(to_dtype(1, value.dtype)) if result is None else result


@surface
def fmod(x: Any, y: Any) -> Any:
    """x - trunc(x / y) * y, exact; has the sign of x; floats."""
    return math_call("fmod", "fmod", x, y)


@surface
def atan2(y: Any, x: Any) -> Any:
    """The angle of the vector (x, y), from -pi to pi, at most 1.5 ulp from the exact value; floats."""
    return math_call("atan2", "atan2", y, x)


@surface
def hypot(x: Any, y: Any) -> Any:
    """sqrt(x * x + y * y) without overflow in between, at most 1 ulp from the exact value; floats."""
    return math_call("hypot", "hypot", x, y)


@surface
def ldexp(x: Any, n: Any) -> Any:
    """x * 2**n of a float and an integer, rounded once."""
    steps = as_value(n, "T.ldexp: n")
    if not steps.dtype.is_int:
        raise error(
            "ldexp-exponent", TileTypeError, f"T.ldexp: n is an integer, got {steps!r} ({steps.dtype})",
            help='convert it: T.cast(n, "int32")',
        )  # fmt: skip
    dtype = number_operands("ldexp", x)[1]
    bounded = clamp(cast(steps, "int64"), -4999, 4999)
    return math_call("ldexp", "ldexp", x, cast(bounded, FLOAT32 if dtype.bits < 32 else dtype))


@surface
def copysign(x: Any, y: Any) -> Any:
    """The magnitude of x with the sign of y; floats, zeros included."""
    return math_call("copysign", "copysign", x, y)


# -- arithmetic with a rounding mode --------------------------------------------------------------------------------

_Beyond = Callable[..., Any]


def _ieee(
    name: str, mode: Any, operands: tuple[Any, ...], nearest: Callable[..., Any], beyond: _Beyond, flipped: str
) -> Any:
    """An operation rounded by a mode. `nearest`: the operation; `beyond`: a float64 with the sign of the exact result
    minus a rounded one, of float32 operands; `flipped`: which operands' signs turn the sign of the result."""
    exprs, dtype = number_operands(name, *operands)
    values = [Value(e) for e in exprs]
    if mode == "rn":
        return nearest(*values)
    if mode not in ("rz", "ru", "rd"):
        raise error(
            "rounding-mode", TileValueError, f"T.{name}: unknown rounding mode {mode!r}", help="rn, rz, ru or rd"
        )
    if dtype is not FLOAT32:
        raise error(
            "rounding-mode-dtype",
            TileTypeError,
            f"T.{name}: rounding mode {mode!r} works in float32, not in {dtype}",
            help='convert the operands with T.float32(x), or round to nearest ("rn")',
        )
    turned = [-v if flip == "-" else v for v, flip in zip(values, flipped, strict=True)]
    r = -nearest(*turned) if mode == "rd" and "-" in flipped else nearest(*values)  # 1 - 1 is -0 when rounding down
    away = beyond(r, *values)
    bits = reinterpret(r, "int32")
    step = select_value(r == 0, 1, bits + select_value(r > 0, 1, -1))  # one up
    if mode == "ru":
        return select_value(away > 0, reinterpret(step, "float32"), r)
    step = select_value(r == 0, -(2**31) + 1, bits - select_value(r > 0, 1, -1))
    down = reinterpret(step, "float32")
    if mode == "rd":
        return select_value(away < 0, down, r)
    outside = select_value(r > 0, away < 0, select_value(r < 0, away > 0, False))
    return select_value(outside, reinterpret(bits - 1, "float32"), r)


def _wide(*xs: Any) -> list[Any]:
    return [cast(x, "float64") for x in xs]


def _beyond_sum(r: Any, a: Any, b: Any) -> Any:
    """a + b - r, of float64 values, r being a + b rounded to float32."""
    total = a + b
    back = total - a
    return (total - r) + ((a - (total - back)) + (b - back))


def _beyond_quotient(r: Any, a: Any, b: Any) -> Any:
    rest = a - r * b
    return select_value(b < 0, -rest, rest)


@surface
def ieee_add(x: Any, y: Any, rounding_mode: str = "rn") -> Any:
    """x + y rounded to nearest ("rn") or, in float32, to zero ("rz"), up ("ru") or down ("rd")."""
    return _ieee(
        "ieee_add", rounding_mode, (x, y), lambda a, b: a + b, lambda r, *ab: _beyond_sum(*_wide(r, *ab)), "--"
    )


@surface
def ieee_sub(x: Any, y: Any, rounding_mode: str = "rn") -> Any:
    """x - y with a rounding mode, like `ieee_add`."""
    return _ieee(
        "ieee_sub", rounding_mode, (x, y), lambda a, b: a - b, lambda r, a, b: _beyond_sum(*_wide(r, a, -b)), "--"
    )


@surface
def ieee_mul(x: Any, y: Any, rounding_mode: str = "rn") -> Any:
    """x * y with a rounding mode, like `ieee_add`."""

    def beyond(*values: Any) -> Any:
        r, a, b = _wide(*values)
        return a * b - r

    return _ieee("ieee_mul", rounding_mode, (x, y), lambda a, b: a * b, beyond, "+-")


@surface
def ieee_fmaf(x: Any, y: Any, z: Any, rounding_mode: str = "rn") -> Any:
    """x * y + z, rounded once, with a rounding mode, like `ieee_add`."""

    def beyond(*values: Any) -> Any:
        r, a, b, c = _wide(*values)
        return _beyond_sum(r, a * b, c)

    return _ieee("ieee_fmaf", rounding_mode, (x, y, z), fma, beyond, "+--")


@surface
def ieee_fdiv(x: Any, y: Any, rounding_mode: str = "rn") -> Any:
    """x / y with a rounding mode, like `ieee_add`."""
    return _ieee("ieee_fdiv", rounding_mode, (x, y), lambda a, b: a / b, lambda *v: _beyond_quotient(*_wide(*v)), "-+")


@surface
def ieee_div(x: Any, y: Any, rounding_mode: str = "rn") -> Any:
    """Same as `ieee_fdiv`."""
    return ieee_fdiv(x, y, rounding_mode)


@surface
def ieee_frcp(x: Any, rounding_mode: str = "rn") -> Any:
    """1 / x with a rounding mode, like `ieee_add`."""

    def beyond(r: Any, a: Any) -> Any:
        return _beyond_quotient(*_wide(r, Value(ir.Const(1.0, FLOAT32)), a))

    return _ieee("ieee_frcp", rounding_mode, (x,), lambda a: 1 / a, beyond, "-")


@surface
def ieee_fsqrt(x: Any, rounding_mode: str = "rn") -> Any:
    """Square root with a rounding mode, like `ieee_add`."""

    def beyond(*values: Any) -> Any:
        r, a = _wide(*values)
        return a - r * r

    return _ieee("ieee_fsqrt", rounding_mode, (x,), sqrt, beyond, "+")


@surface
def ieee_frsqrt(x: Any) -> Any:
    """1 / sqrt(x): `rsqrt`."""
    return rsqrt(x)
