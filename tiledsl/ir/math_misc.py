"""erf, fmod, copysign and rounding of ties away from zero."""

from __future__ import annotations

from collections.abc import Callable

from tiledsl.ir.math_builder import F32, Builder, Term, fma, select

__all__ = ["BODIES"]

# erf(x) / x - 1 in x**2 on [0, 1], errors 2**-29 and 2**-56
_NEAR32 = (
    0.12837916612625122, -0.37612637877464294, 0.11283782124519348, -0.026865430176258087, 0.005221031606197357,
    -0.0008484080317430198, 0.00011265958892181516, -9.667044650996104e-06,
)  # fmt: skip
_NEAR64 = (
    0.1283791670955126, -0.3761263890318375, 0.11283791670954879, -0.026866170645076792, 0.0052239776248180145,
    -0.000854832698083379, 0.0001205533111164271, -1.4925595266831182e-05, 1.6461000484121361e-06,
    -1.6350312701054618e-07, 1.4659775274046955e-08, -1.1372848856789924e-09, 5.957176147746114e-11,
)  # fmt: skip
# exp(x**2) * (1 - erf(x)) in (x - c) / (x + c): c = 2 on [1, 4], c = 2.5 on [1, 6]; errors of erf 2**-28 and 2**-58
_FAR32 = (
    0.25539568066596985, -0.427185982465744, 0.24165819585323334, -0.07896830886602402, 0.0037323718424886465,
    0.006811140105128288, -0.0008379754144698381,
)  # fmt: skip
_FAR64 = (
    0.2108063640611436, -0.37173673394897294, 0.2517131932174488, -0.12503305237891782, 0.03992253907546523,
    -0.003993701160123029, -0.0026423659518134547, 0.0008759152875774328, 0.0002283799633257643,
    -0.00012887483134837842, -3.4175718896856294e-05, 1.8596747731144528e-05, 7.499735050763299e-06,
    -2.2328516517555215e-06, -1.587633893127344e-06,
)  # fmt: skip


def _erf(b: Builder, x: Term) -> Term:
    near, far, centre, limit = (_NEAR32, _FAR32, 2.0, 4.0) if b.fmt is F32 else (_NEAR64, _FAR64, 2.5, 6.0)
    size = abs(x)
    inner = select(size < 1.0, size, 1.0)
    small = fma(inner, b.series(inner * inner, near), inner)
    outer = select(size < limit, size, limit)  # where 1 - erf is less than the result shows
    place = (outer - centre) / (outer + centre)
    complement = (-(outer * outer)).apply("exp") * b.series(place, far)
    y = select(size < 1.0, small, 1.0 - complement)
    return select(x == x, y.signed_like(x), x + x)


def _fmod(b: Builder, number: Term, divisor: Term) -> Term:
    """number - trunc(number / divisor) * divisor, exactly: long division, some bits of the quotient at a time.

    Each quotient digit is exact or, where the division rounded up to it, one too large; the fma is exact.
    """
    inner, digit, digits = ("float64", 28, 10) if b.fmt is F32 else ("float64", 52, 41)
    inf = float("inf")
    rest, step = abs(number).cast(inner), abs(divisor).cast(inner)
    steps = [step]
    for _ in range(digits - 1):
        steps.append(steps[-1] * 2.0**digit)
    for step in reversed(steps):
        left = fma(-(rest / step).trunc(), step, rest)
        left = select(left < 0.0, left + step, left)
        rest = select(step < inf, left, rest)
    result = rest.cast(b.fmt.dtype)
    defined = (abs(number) < inf) & (divisor == divisor) & (divisor != 0.0)
    return select(defined, result.signed_like(number), float("nan"))


def _copysign(b: Builder, x: Term, y: Term) -> Term:
    return abs(x).signed_like(y)


def _round_away(b: Builder, x: Term) -> Term:
    whole = abs(x).trunc()
    up = (abs(x) - whole) >= 0.5  # the difference is exact
    return select(up, whole + 1.0, whole).signed_like(x)


BODIES: dict[str, Callable[..., Term]] = {"erf": _erf, "fmod": _fmod, "copysign": _copysign, "round_away": _round_away}
