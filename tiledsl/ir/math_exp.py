"""exp, log and what is made of them: exp2, exp10, log2, log10, log1p, sinh, cosh, tanh, pow, rsqrt."""

from __future__ import annotations

from collections.abc import Callable

from tiledsl.ir.expr import Binary, Cast, Expr, Fma, Select, Unary, Var
from tiledsl.ir.math_builder import F32, Builder, Term, fma, select

__all__ = ["BODIES"]

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


def _scalb(b: Builder, x: Var, y: Var) -> Expr:
    return b.in_halves(x, b.integer(y))


def _exp2(b: Builder, x: Var) -> Expr:
    clamped = b.clamp(x, b.fmt.exp2_limit)
    whole = b.nearest(clamped)
    r = b.let("r", Binary("sub", clamped, whole))
    p = b.let("p", Fma(r, b.poly(r, b.fmt.exp2_poly), b.const(1.0)))
    return b.scale(p, whole)


def _exp(b: Builder, x: Var) -> Expr:
    clamped = b.clamp(x, b.fmt.exp_limit)
    whole = b.nearest(b.let("in_octaves", Binary("mul", clamped, b.const(b.fmt.log2e))))
    minus = b.let("minus", Unary("neg", whole))
    r_hi = b.let("r_hi", Fma(minus, b.const(b.fmt.ln2_hi), clamped))
    r = b.let("r", Fma(minus, b.const(b.fmt.ln2_lo), r_hi))
    square = b.let("square", Binary("mul", r, r))
    # 1 + r without losing r's low bits: head + rest, exactly, so that only the last addition rounds
    head = b.let("head", Binary("add", r, b.const(1.0)))
    rest = b.let("rest_of_r", Binary("sub", r, Binary("sub", head, b.const(1.0))))
    tail = b.let("tail", Fma(square, b.poly(r, b.fmt.exp_poly), rest))
    return b.scale(b.let("p", Binary("add", head, tail)), whole)


def _split(b: Builder, x: Var) -> tuple[Expr, Expr]:
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


def _log1p_tail(b: Builder, f: Expr) -> Expr:
    """log(1 + f) - f."""
    if b.fmt is F32:
        square = b.let("square", Binary("mul", f, f))
        cube = b.let("cube", Binary("mul", square, f))
        bulk = b.let("bulk", Binary("mul", square, b.const(-0.5)))
        return b.let("tail", Fma(cube, b.poly(f, _LOG_POLY32), bulk))
    s = b.let("s", Binary("div", f, Binary("add", f, b.const(2.0))))
    z = b.let("z", Binary("mul", s, s))
    half_square = b.let("half_square", Binary("mul", Binary("mul", f, f), b.const(0.5)))
    inner = b.let("inner", Fma(z, b.poly(z, _LOG_POLY64), half_square))
    return b.let("tail", Fma(s, inner, Unary("neg", half_square)))


def _log_specials(b: Builder, x: Var, y: Expr) -> Expr:
    inf = b.const(float("inf"))
    finite = b.let("finite", Select(Binary("lt", x, inf), y, x))
    pole = b.let("pole", Select(Binary("eq", x, b.const(0.0)), b.const(float("-inf")), b.const(float("nan"))))
    return Select(Binary("gt", x, b.const(0.0)), finite, pole)


def _log(b: Builder, x: Var) -> Expr:
    f, k = _split(b, x)
    low = b.let("low", Fma(k, b.const(b.fmt.ln2_lo), _log1p_tail(b, f)))
    middle = b.let("middle", Binary("add", low, f))
    return _log_specials(b, x, b.let("y", Fma(k, b.const(b.fmt.ln2_hi), middle)))


def _log2(b: Builder, x: Var) -> Expr:
    f, k = _split(b, x)
    tail = _log1p_tail(b, f)
    low = b.let("low", Fma(f, b.const(b.fmt.log2e_lo), Binary("mul", tail, b.const(b.fmt.log2e_hi))))
    fraction = b.let("fraction", Fma(f, b.const(b.fmt.log2e_hi), low))
    return _log_specials(b, x, b.let("y", Binary("add", k, fraction)))


def _rsqrt(b: Builder, x: Var) -> Expr:
    return Binary("div", b.const(1.0), b.let("root", Unary("sqrt", x)))


# -- exponentials minus one, and hyperbolic functions --------------------------------------------------------------


def _exp_parts(b: Builder, x: Term) -> tuple[Term, Term, Term]:
    """e**x = (head + tail) * 2**k, head + tail in [0.70, 1.42]; x is clamped already. Also head + tail - 1 as a sum
    that keeps its low bits where k = 0: (r, e**r - 1 - r, k)."""
    whole = b.nearest((x * b.fmt.log2e).expr)
    minus = -b.term(whole)
    r = fma(minus, b.fmt.ln2_lo, fma(minus, b.fmt.ln2_hi, x))
    return r, r * r * b.series(r, b.fmt.exp_poly), b.term(b.integer(whole))


def _expm1_quarter(b: Builder, x: Term) -> Term:
    """(e**x - 1) / 4, for x that is clamped to 1.5 times what overflows; finite a little longer than e**x."""
    r, rest, k = _exp_parts(b, select(x < -60.0, -60.0, x))
    quarter = b.term(b.power_of_two((k - 2).expr))
    return fma(quarter, r + rest, quarter - 0.25)


def _clamped(x: Term, limit: float) -> Term:
    return select(x > limit, limit, x)  # NaN stays


def _expm1(b: Builder, x: Var) -> Expr:
    t = b.term(x)
    quarter = _expm1_quarter(b, _clamped(t, b.fmt.expm1_limit))
    result = quarter * 4.0
    return select(abs(t) < 2.0 ** -(b.fmt.mantissa + 2), t, result).expr


def _sinh(b: Builder, x: Var) -> Expr:
    t = b.term(x)
    half = _expm1_quarter(b, _clamped(abs(t), b.fmt.expm1_limit)) * 2.0  # E / 2 where E = e**|x| - 1
    y = select(half < float("inf"), half + half / (half * 2.0 + 1.0), half)  # (E + E / (E + 1)) / 2
    return select(abs(t) < 2.0 ** -(b.fmt.mantissa // 2 + 1), t, y.signed_like(t)).expr


def _cosh(b: Builder, x: Var) -> Expr:
    half = _expm1_quarter(b, _clamped(abs(b.term(x)), b.fmt.expm1_limit)) * 2.0
    e = half + 0.5  # e**|x| / 2
    return (e + 0.25 / e).expr


def _tanh(b: Builder, x: Var) -> Expr:
    t = b.term(x)
    quarter = _expm1_quarter(b, _clamped(abs(t) * 2.0, 60.0))
    y = quarter / (quarter + 0.5)  # E / (E + 2) where E = e**(2 |x|) - 1
    return select(abs(t) < 2.0 ** -(b.fmt.mantissa // 2 + 1), t, y.signed_like(t)).expr


# -- other bases ---------------------------------------------------------------------------------------------------


def _exp10(b: Builder, x: Var) -> Expr:
    fmt = b.fmt
    t = b.term(b.clamp(x, fmt.exp10_limit))
    whole = b.nearest((t * fmt.log2_10).expr)
    minus = -b.term(whole)
    r = fma(minus, fmt.log10_2_lo, fma(minus, fmt.log10_2_hi, t))
    s = r * fmt.ln10_hi
    low = fma(r, fmt.ln10_lo, fma(r, fmt.ln10_hi, -s))
    head = s + 1.0
    rest = s - (head - 1.0)
    tail = fma(s * s, b.series(s, fmt.exp_poly), rest + low)
    return b.scale((head + tail).expr, whole)


def _log10(b: Builder, x: Var) -> Expr:
    fmt = b.fmt
    f_expr, k_expr = _split(b, x)
    tail = b.term(_log1p_tail(b, f_expr))
    f, k = b.term(f_expr), b.term(k_expr)
    low = fma(f, fmt.log10e_lo, tail * fmt.log10e_hi)
    low = fma(k, fmt.log10_2_lo, low)
    return _log_specials(b, x, fma(k, fmt.log10_2_hi, fma(f, fmt.log10e_hi, low)).expr)


def _log1p(b: Builder, x: Var) -> Expr:
    fmt = b.fmt
    t = b.term(x)
    u = t + 1.0
    shift = u - 1.0
    missed = select(t < 1.0, t - shift, 1.0 - (u - t)) / u  # log(1 + x) = log(u) + missed, all but exactly
    one_plus = b.let("one_plus", u.expr)
    f_expr, k_expr = _split(b, one_plus)
    f, k = b.term(f_expr), b.term(k_expr)
    low = fma(k, fmt.ln2_lo, b.term(_log1p_tail(b, f_expr)) + missed)
    y = fma(k, fmt.ln2_hi, low + f)
    result = b.term(_log_specials(b, one_plus, y.expr))
    return select(abs(t) < 2.0 ** -(fmt.mantissa + 2), t, result).expr


# -- powers --------------------------------------------------------------------------------------------------------


def _log2_wide(b: Builder, x: Var) -> tuple[Term, Term]:
    """log2(x) as the sum of two floats, for finite x > 0; good to 1.4 times the type's bits.

    log(1 + f) = 2 atanh(s), s = f / (2 + f): s + s**3 / 3 are carried in two floats each, the rest in one.
    """
    fmt = b.fmt
    f_expr, k_expr = _split(b, x)
    f, k = b.term(f_expr), b.term(k_expr)
    below = f + 2.0
    below_low = f - (below - 2.0)
    s = f / below
    s_low = fma(-s, below_low, fma(-s, below, f)) / below
    z = s * s
    z_low = fma(s * 2.0, s_low, fma(s, s, -z))
    third = z * fmt.two_thirds_hi
    third_low = fma(z, fmt.two_thirds_hi, -third) + fma(z, fmt.two_thirds_lo, z_low * fmt.two_thirds_hi)
    third_low = fma(z * z, b.series(z, fmt.atanh_poly), third_low)
    u = third + third_low
    u_low = (third - u) + third_low
    p = s * u
    p_low = fma(s, u, -p) + fma(s, u_low, s_low * u)
    double = s * 2.0
    h = double + p
    h_low = ((double - h) + p) + fma(s_low, 2.0, p_low)
    g = h * fmt.log2e_hi
    g_low = fma(h, fmt.log2e_hi, -g) + fma(h, fmt.log2e_lo, h_low * fmt.log2e_hi)
    high = k + g
    return high, ((k - high) + g) + g_low


def _pow(b: Builder, x: Var, y: Var) -> Expr:
    fmt = b.fmt
    base, power, inf = b.term(x), b.term(y), float("inf")
    size = b.let("size", abs(base).expr)
    magnitude = b.term(size)
    high, low = _log2_wide(b, size)
    high = select(magnitude == 0.0, -inf, select(magnitude < inf, high, inf))
    octaves = power * high
    rest = fma(power, high, -octaves) + power * low
    rest = select(abs(octaves) < fmt.exp2_limit, rest, 0.0)
    clamped = b.term(b.clamp(octaves.expr, fmt.exp2_limit))
    whole = b.nearest(clamped.expr)
    r = (clamped - b.term(whole)) + rest
    value = b.term(b.let("value", b.scale(fma(r, b.series(r, fmt.exp2_poly), 1.0).expr, whole)))
    # special cases, as IEEE 754 has them
    value = select((magnitude == 1.0) | (power == 0.0), 1.0, value)
    integer = power.trunc() == power
    half = power * 0.5
    odd = integer & (half.trunc() != half)
    negative = base.bits(fmt.bits) < 0
    value = select(negative & odd, -value, value)
    value = select((base < 0.0) & (magnitude < inf) & ~integer, float("nan"), value)
    unknown = (base != base) | (power != power)
    unknown = unknown & (base != 1.0) & (power != 0.0)
    return select(unknown, float("nan"), value).expr


BODIES: dict[str, Callable[..., Expr]] = {
    "scalb": _scalb,
    "exp2": _exp2, "exp": _exp, "exp10": _exp10, "expm1": _expm1, "log2": _log2, "log": _log, "log10": _log10,
    "log1p": _log1p, "sinh": _sinh, "cosh": _cosh, "tanh": _tanh, "pow": _pow, "rsqrt": _rsqrt,
}  # fmt: skip
