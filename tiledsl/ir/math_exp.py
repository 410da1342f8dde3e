"""exp, log and what is made of them: exp2, exp10, log2, log10, log1p, sinh, cosh, tanh, pow, rsqrt."""

from __future__ import annotations

from collections.abc import Callable

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


def _scalb(b: Builder, x: Term, y: Term) -> Term:
    return b.in_halves(x, b.integer(y))


def _exp2(b: Builder, x: Term) -> Term:
    clamped = b.clamp(x, b.fmt.exp2_limit)
    whole = b.nearest(clamped)
    r = clamped - whole
    return b.scale(fma(r, b.series(r, b.fmt.exp2_poly), 1.0), whole)


def _octaves(b: Builder, x: Term) -> tuple[Term, Term]:
    """r and a whole number k where e**x = e**r * 2**k, |r| at most ln 2 / 2; x is clamped already."""
    whole = b.nearest(x * b.fmt.log2e)
    minus = -whole
    return fma(minus, b.fmt.ln2_lo, fma(minus, b.fmt.ln2_hi, x)), whole


def _exp(b: Builder, x: Term) -> Term:
    r, whole = _octaves(b, b.clamp(x, b.fmt.exp_limit))
    # 1 + r without losing r's low bits: head + rest, exactly, so that only the last addition rounds
    head = r + 1.0
    rest = r - (head - 1.0)
    return b.scale(head + fma(r * r, b.series(r, b.fmt.exp_poly), rest), whole)


def _split(b: Builder, x: Term) -> tuple[Term, Term]:
    """x = (1 + f) * 2**k with 1 + f in [sqrt(1/2), sqrt(2)); returns f and k as a float."""
    fmt = b.fmt
    lift = fmt.mantissa + 1
    tiny = x < fmt.smallest_normal
    bits = select(tiny, x * 2.0**lift, x).bits(fmt.bits)
    k = (bits - fmt.sqrt_half_bits) >> fmt.mantissa
    m = (bits - (k << fmt.mantissa)).bits(fmt.dtype)
    return m - 1.0, select(tiny, k - lift, k).cast(fmt.dtype)


def _log1p_tail(b: Builder, f: Term) -> Term:
    """log(1 + f) - f."""
    if b.fmt is F32:
        square = f * f
        return fma(square * f, b.series(f, _LOG_POLY32), square * -0.5)
    s = f / (f + 2.0)
    z = s * s
    half_square = f * f * 0.5
    return fma(s, fma(z, b.series(z, _LOG_POLY64), half_square), -half_square)


def _log_specials(x: Term, y: Term) -> Term:
    pole = select(x == 0.0, x.like(float("-inf")), float("nan"))
    return select(x > 0.0, select(x < float("inf"), y, x), pole)


def _log(b: Builder, x: Term) -> Term:
    f, k = _split(b, x)
    low = fma(k, b.fmt.ln2_lo, _log1p_tail(b, f))
    return _log_specials(x, fma(k, b.fmt.ln2_hi, low + f))


def _log2(b: Builder, x: Term) -> Term:
    f, k = _split(b, x)
    low = fma(f, b.fmt.log2e_lo, _log1p_tail(b, f) * b.fmt.log2e_hi)
    return _log_specials(x, k + fma(f, b.fmt.log2e_hi, low))


def _rsqrt(b: Builder, x: Term) -> Term:
    return 1.0 / x.root()


# -- exponentials minus one, and hyperbolic functions --------------------------------------------------------------


def _expm1_quarter(b: Builder, x: Term) -> Term:
    """(e**x - 1) / 4, for x that is clamped to 1.5 times what overflows; finite a little longer than e**x."""
    r, whole = _octaves(b, select(x < -60.0, -60.0, x))
    quarter = b.power_of_two(b.integer(whole) - 2)
    return fma(quarter, r + r * r * b.series(r, b.fmt.exp_poly), quarter - 0.25)


def _clamped(x: Term, limit: float) -> Term:
    return select(x > limit, limit, x)  # NaN stays


def _expm1(b: Builder, x: Term) -> Term:
    result = _expm1_quarter(b, _clamped(x, b.fmt.expm1_limit)) * 4.0
    return select(abs(x) < 2.0 ** -(b.fmt.mantissa + 2), x, result)


def _sinh(b: Builder, x: Term) -> Term:
    half = _expm1_quarter(b, _clamped(abs(x), b.fmt.expm1_limit)) * 2.0  # E / 2 where E = e**|x| - 1
    y = select(half < float("inf"), half + half / (half * 2.0 + 1.0), half)  # (E + E / (E + 1)) / 2
    return select(abs(x) < 2.0 ** -(b.fmt.mantissa // 2 + 1), x, y.signed_like(x))


def _cosh(b: Builder, x: Term) -> Term:
    half = _expm1_quarter(b, _clamped(abs(x), b.fmt.expm1_limit)) * 2.0
    e = half + 0.5  # e**|x| / 2
    return e + 0.25 / e


def _tanh(b: Builder, x: Term) -> Term:
    quarter = _expm1_quarter(b, _clamped(abs(x) * 2.0, 60.0))
    y = quarter / (quarter + 0.5)  # E / (E + 2) where E = e**(2 |x|) - 1
    return select(abs(x) < 2.0 ** -(b.fmt.mantissa // 2 + 1), x, y.signed_like(x))


# -- other bases ---------------------------------------------------------------------------------------------------


def _exp10(b: Builder, x: Term) -> Term:
    fmt = b.fmt
    t = b.clamp(x, fmt.exp10_limit)
    whole = b.nearest(t * fmt.log2_10)
    minus = -whole
    r = fma(minus, fmt.log10_2_lo, fma(minus, fmt.log10_2_hi, t))
    s = r * fmt.ln10_hi
    low = fma(r, fmt.ln10_lo, fma(r, fmt.ln10_hi, -s))
    head = s + 1.0
    rest = s - (head - 1.0)
    return b.scale(head + fma(s * s, b.series(s, fmt.exp_poly), rest + low), whole)


def _log10(b: Builder, x: Term) -> Term:
    fmt = b.fmt
    f, k = _split(b, x)
    low = fma(f, fmt.log10e_lo, _log1p_tail(b, f) * fmt.log10e_hi)
    low = fma(k, fmt.log10_2_lo, low)
    return _log_specials(x, fma(k, fmt.log10_2_hi, fma(f, fmt.log10e_hi, low)))


def _log1p(b: Builder, x: Term) -> Term:
    u = x + 1.0
    shift = u - 1.0
    missed = select(x < 1.0, x - shift, 1.0 - (u - x)) / u  # log(1 + x) = log(u) + missed, all but exactly
    f, k = _split(b, u)
    low = fma(k, b.fmt.ln2_lo, _log1p_tail(b, f) + missed)
    result = _log_specials(u, fma(k, b.fmt.ln2_hi, low + f))
    return select(abs(x) < 2.0 ** -(b.fmt.mantissa + 2), x, result)


# -- powers --------------------------------------------------------------------------------------------------------


def _log2_wide(b: Builder, x: Term) -> tuple[Term, Term]:
    """log2(x) as the sum of two floats, for finite x > 0; good to 1.4 times the type's bits.

    log(1 + f) = 2 atanh(s), s = f / (2 + f): s + s**3 / 3 are carried in two floats each, the rest in one.
    """
    fmt = b.fmt
    f, k = _split(b, x)
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


def _pow(b: Builder, base: Term, power: Term) -> Term:
    fmt, inf = b.fmt, float("inf")
    magnitude = abs(base)
    high, low = _log2_wide(b, magnitude)
    high = select(magnitude == 0.0, -inf, select(magnitude < inf, high, inf))
    octaves = power * high
    rest = fma(power, high, -octaves) + power * low
    rest = select(abs(octaves) < fmt.exp2_limit, rest, 0.0)
    clamped = b.clamp(octaves, fmt.exp2_limit)
    whole = b.nearest(clamped)
    r = (clamped - whole) + rest
    value = b.scale(fma(r, b.series(r, fmt.exp2_poly), 1.0), whole)
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
    return select(unknown, float("nan"), value)


BODIES: dict[str, Callable[..., Term]] = {
    "scalb": _scalb,
    "exp2": _exp2, "exp": _exp, "exp10": _exp10, "expm1": _expm1, "log2": _log2, "log": _log, "log10": _log10,
    "log1p": _log1p, "sinh": _sinh, "cosh": _cosh, "tanh": _tanh, "pow": _pow, "rsqrt": _rsqrt,
}  # fmt: skip
