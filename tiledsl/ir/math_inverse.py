"""Inverse trigonometric and hyperbolic functions, hypot and ldexp; float32 is computed in float64 and rounded once.

atan2(y, x) turns the vector by the nearest of the angles 0, atan 1/2, pi/4, atan 3/2 and pi/2, so that a short series
in the tangent of the rest is enough; the angles are pairs of floats. asin and acos halve the angle of large arguments,
with a square root whose rounding error an fma gives exactly.
"""

from __future__ import annotations

from collections.abc import Callable

from tiledsl.ir.math_builder import F32, F64, Builder, Term, fma, select

__all__ = ["BODIES"]

_INF, _NAN = float("inf"), float("nan")
_HALF_PI, _HALF_PI_LOW = 1.5707963267948966, 6.123233995736766e-17
# (tangent up to which an angle serves, its own tangent, the angle): the last one's tangent has no number
_ANGLES = (
    (0.4375, 0.0, 0.0, 0.0),
    (0.6875, 0.5, 0.4636476090008061, 2.2698777452961687e-17),
    (1.1875, 1.0, 0.7853981633974483, 3.061616997868383e-17),
    (2.4375, 1.5, 0.982793723247329, 1.3903311031230998e-17),
)
# (atan(t) / t - 1) / t**2 in t**2 on [0, (7/16)**2], errors 2**-25 and 2**-53
_ATAN32 = (-0.33333330908945935, 0.1999934591898359, -0.1425738126858135, 0.10675068449407266, -0.06233155621642538)
_ATAN64 = (
    -0.33333333333333326, 0.19999999999988538, -0.14285714283280446, 0.11111110909314796, -0.09090900491077782,
    0.07692093082241042, -0.06663307052798643, 0.05848220461809881, -0.05036135476766176, 0.03787892822024019,
    -0.01760316174165283,
)  # fmt: skip
# (asin(s) / s - 1) / s**2 in s**2 on [0, 1/4], errors 2**-28 and 2**-56
_ASIN32 = (
    0.16666666296086072, 0.07500102984365659, 0.044596662041933785, 0.031131661409049823, 0.01700642288835463,
    0.03392075098128672,
)  # fmt: skip
_ASIN64 = (
    0.16666666666666669, 0.07499999999998246, 0.044642857146715224, 0.030381944111470414, 0.02237217399258514,
    0.017352368683220237, 0.013971561429615895, 0.011475854230996917, 0.010343945660632455, 0.005368793513501136,
    0.01763697890970574, -0.015212740532334724, 0.0289990839133281,
)  # fmt: skip


def _angle(b: Builder, up: Term, along: Term) -> tuple[Term, Term]:
    """The angle of (along, up), both not negative and finite, from 0 to pi / 2, as a sum (large, small)."""
    rise, run, large, low = -along, up, up.like(_HALF_PI), up.like(_HALF_PI_LOW)
    for limit, tangent, angle, angle_low in reversed(_ANGLES):
        near = up <= along * limit
        rise = select(near, fma(along, -tangent, up), rise)
        run = select(near, fma(up, tangent, along), run)
        large, low = select(near, angle, large), select(near, angle_low, low)
    t = rise / select(run == 0.0, 1.0, run)
    z = t * t
    return large, t + fma(t * z, b.series(z, _ATAN32 if b.fmt is F32 else _ATAN64), low)


def _wide(*xs: Term) -> list[Term]:
    return [x.cast("float64") for x in xs]


def _narrow(b: Builder, x: Term) -> Term:
    return x.cast(b.fmt.dtype)


def _middle(b: Builder, limit: int, down: int, *sizes: Term) -> tuple[list[Term], Term]:
    """Magnitudes times a power of two, 2**down above 2**limit, so that what is made of them neither overflows nor loses
    bits; and the inverse of the power."""
    if b.fmt is F32:
        return list(sizes), sizes[0].like(1.0)  # in float64 there is room
    top = select(sizes[0] > sizes[1], *sizes)
    huge, tiny = top > 2.0**limit, top < 2.0**-400
    factor, back = (
        select(huge, 2.0 ** (sign * down), select(tiny, top.like(2.0 ** (sign * 800)), 1.0)) for sign in (1, -1)
    )
    return [x * factor for x in sizes], back


def _atan(b: Builder, x: Term) -> Term:
    wide = x.cast("float64")
    size = abs(wide)
    bounded = select(size < 2.0**64, size, 2.0**64)  # nothing more happens beyond
    large, small = _angle(b, bounded, size.like(1.0))
    return _narrow(b, select(wide == wide, (large + small).signed_like(wide), wide + wide))


def _atan2(b: Builder, y: Term, x: Term) -> Term:
    up, along = _wide(y, x)
    (rise, run), _ = _middle(b, 1000, -50, *(select(abs(v) < _INF, abs(v), abs(v).like(1.0)) for v in (up, along)))
    # infinite against finite: an axis; both infinite: the diagonal
    endless = (abs(up) == _INF) | (abs(along) == _INF)
    rise = select(endless & (abs(up) < _INF), 0.0, rise)
    run = select(endless & (abs(along) < _INF), 0.0, run)
    rise, run = select(endless & (rise != 0.0), 1.0, rise), select(endless & (run != 0.0), 1.0, run)
    nowhere = (rise == 0.0) & (run == 0.0)
    large, small = _angle(b, rise, select(nowhere, 1.0, run))
    ahead = along.bits("int64") >= 0
    back = (2 * _HALF_PI - large) + (2 * _HALF_PI_LOW - small)
    angle = select(ahead, large + small, back).signed_like(up)
    return _narrow(b, select((up == up) & (along == along), angle, up + along))


def _arc(b: Builder, s: Term) -> Term:
    """asin(s) / s - 1, for |s| <= 1/2."""
    z = s * s
    return z * b.series(z, _ASIN32 if b.fmt is F32 else _ASIN64)


def _half_chord(size: Term) -> tuple[Term, Term]:
    """sqrt((1 - size) / 2) as a sum (large, small), and 0 for sizes up to 1/2."""
    z = select(size > 0.5, (1.0 - size) * 0.5, 0.0)
    root = z.root()
    return root, fma(-root, root, z) / select(root == 0.0, 1.0, root + root)


def _asin(b: Builder, x: Term) -> Term:
    wide = x.cast("float64")
    size = abs(wide)
    inner = select(size <= 0.5, size, 0.5)
    near = fma(inner, _arc(b, inner), inner)
    root, low = _half_chord(size)
    # pi / 2 - 2 asin(root), the large difference with its rounding error
    first = _HALF_PI - 2.0 * root
    lost = (_HALF_PI - first) - 2.0 * root
    far = first + (lost - (2.0 * fma(root, _arc(b, root), low) - _HALF_PI_LOW))
    return _narrow(b, select(size <= 1.0, select(size <= 0.5, near, far).signed_like(wide), _NAN))


def _acos(b: Builder, x: Term) -> Term:
    wide = x.cast("float64")
    size = abs(wide)
    inner = select(size <= 0.5, wide, 0.5)
    near = _HALF_PI - (inner - (_HALF_PI_LOW - inner * _arc(b, inner)))
    root, low = _half_chord(size)
    arc = fma(root, _arc(b, root), low)
    behind = 2.0 * (_HALF_PI - (root + (arc - _HALF_PI_LOW)))
    far = select(wide > 0.0, 2.0 * (root + arc), behind)
    return _narrow(b, select(size <= 1.0, select(size <= 0.5, near, far), _NAN))


def _hypot(b: Builder, x: Term, y: Term) -> Term:
    sizes = [abs(v) for v in _wide(x, y)]
    (p, q), back = _middle(b, 500, -600, *sizes)
    swap = p < q
    p, q = select(swap, q, p), select(swap, p, q)
    square, other = p * p, q * q
    h = (square + other).root()
    if b.fmt is F64:  # one step of Newton, with the exact error of h * h
        again = h * h
        excess = (fma(h, h, -again) - fma(p, p, -square)) + (fma(-q, q, (again - square)))
        h = h - excess / select(h == 0.0, 1.0, h + h)
    endless = (sizes[0] == _INF) | (sizes[1] == _INF)
    return _narrow(b, select(endless, _INF, h * back))


def _ldexp(b: Builder, x: Term, n: Term) -> Term:
    """n is a whole number of magnitude below 5000."""
    wide, steps = _wide(x, n)
    steps = select(abs(steps) < 2400.0, steps, select(steps > 0.0, steps.like(2400.0), -2400.0))
    if b.fmt is F64:  # a number between 1 and 2 and its exponent
        small = abs(wide) < 2.0**-1022
        normal = select(small, wide * 2.0**54, wide)
        exponent = (normal.bits("int64") >> 52) & 0x7FF
        steps = steps + (exponent - select(small, exponent.like(1077), 1023)).cast("float64")
        unit = ((normal.bits("int64") & ~(0x7FF << 52)) | (0x3FF << 52)).bits("float64")
    else:
        unit = wide
    limit = 1100.0 if b.fmt is F64 else 300.0
    steps = select(abs(steps) < limit, steps, select(steps > 0.0, steps.like(limit), -limit))
    k = steps.cast("int64")
    half = k >> 1
    one, two = (((v + 1023) << 52).bits("float64") for v in (half, k - half))
    whole = (wide == 0.0) | ~(abs(wide) < _INF)
    return _narrow(b, select(whole, wide, (unit * one) * two))


def _asinh(b: Builder, x: Term) -> Term:
    wide = x.cast("float64")
    size = abs(wide)
    huge = size > 2.0**28
    t = select(huge, 1.0, size)
    near = (t + t * t / (1.0 + fma(t, t, 1.0).root())).apply("log1p")
    return _narrow(b, select(huge, size.apply("log") + 0.6931471805599453, near).signed_like(wide))


def _acosh(b: Builder, x: Term) -> Term:
    wide = x.cast("float64")
    huge = wide > 2.0**28
    t = select(huge, 1.0, wide - 1.0)
    near = (t + (t * (t + 2.0)).root()).apply("log1p")
    return _narrow(b, select(wide >= 1.0, select(huge, wide.apply("log") + 0.6931471805599453, near), _NAN))


def _atanh(b: Builder, x: Term) -> Term:
    wide = x.cast("float64")
    size = abs(wide)
    # 2 x / (1 - x); tiny arguments are their own result
    far = ((size + size) / (1.0 - size)).apply("log1p") * 0.5
    return _narrow(b, select(size < 2.0**-28, size, far).signed_like(wide))


BODIES: dict[str, Callable[..., Term]] = {
    "atan": _atan, "atan2": _atan2, "asin": _asin, "acos": _acos, "hypot": _hypot, "ldexp": _ldexp, "asinh": _asinh,
    "acosh": _acosh, "atanh": _atanh,
}  # fmt: skip
