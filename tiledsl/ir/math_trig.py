"""sin, cos and tan: argument reduction in integers, right for every argument, then polynomials in float64.

x * 2 / pi is needed modulo 4. Of the bits of 2 / pi only a window matters, where x's exponent says: bits above it give
multiples of 4, bits below it less than the result can show. The window is cut out with shifts and multiplied by the
mantissa in 64-bit integers; the two top bits are the quadrant. float32 is computed as float64 with a shorter window
and shorter polynomials, and rounded once.
"""

from __future__ import annotations

from collections.abc import Callable

from tiledsl.ir.math_builder import F32, Builder, Term, fma, select

__all__ = ["BODIES"]

# 64 zero bits (arguments below 1 look there), then 2 / pi after the point, 64 bits per word
_TWO_OVER_PI = (
    0, 0xA2F9836E4E441529, 0xFC2757D1F534DDC0, 0xDB6295993C439041, 0xFE5163ABDEBBC561, 0xB7246E3A424DD2E0,
    0x06492EEA09D1921C, 0xFE1DEB1CB129A73E, 0xE88235F52EBB4484, 0xE99C7026B45F7E41, 0x3991D639835339F4,
    0x9C845F8BBDF9283B, 0x1FF897FFDE05980F, 0xEF2F118B5A0A6D1F, 0x6D367ECF27CB09B7, 0x4F463F669E5FEA2D,
    0x7527BAC7EBE5F17B, 0x3D0739F78A5292EA, 0x6BFB5FB11F8D5D08, 0x56033046FC7B6BAB, 0xF0CFBC209AF4361D,
    0xA9E391615EE61B08,
)  # fmt: skip
# pi / 2 * 2**-62 as two floats
_UNIT_HI, _UNIT_LO = 3.4061215800865545e-19, 1.3277647201629795e-35
# (sin r - r) / r**3 and (cos r - 1 + r**2 / 2) / r**4 in r**2, |r| <= pi / 4; absolute errors of sin and cos
_SIN64 = (
    -0.16666666666666666, 0.008333333333330827, -0.0001984126983657571, 2.755731600817155e-06,
    -2.505111227257324e-08, 1.591672619388911e-10,
)  # fmt: skip # 2**-55
_COS64 = (
    0.041666666666666664, -0.0013888888888887322, 2.4801587298651292e-05, -2.755731721268659e-07,
    2.0876134024090145e-09, -1.1381754653662795e-11,
)  # fmt: skip # 2**-60
_SIN32 = (-0.16666666663741367, 0.00833333183062943, -0.00019840063040804112, 2.724686872287745e-06)  # 2**-36
_COS32 = (0.04166666666422613, -0.0013888887635227975, 2.480058060135464e-05, -2.729840765279476e-07)  # 2**-40


def _window(offset: Term, last: int) -> tuple[Term, Term, Term]:
    """192 bits of _TWO_OVER_PI from bit `offset` on, as three words; offset >> 6 is at most `last`."""
    place, shift = offset >> 6, (offset & 63).cast("uint64")
    words = [shift.like(w) for w in _TWO_OVER_PI[: last + 4]]
    for level in reversed(range(last.bit_length())):
        step = 1 << level
        moved = (place & step) != 0
        words = [
            select(moved, words[j + step], words[j]) if j + step < len(words) else words[j]
            for j in range(min(len(words), 3 + step))
        ]
    back = shift.like(64) - shift
    first, second, third = ((a << shift) | (b >> back) for a, b in zip(words[:3], words[1:4], strict=True))
    return first, second, third


def _high_product(a: Term, b: Term) -> Term:
    """The upper 64 bits of a product of two 64-bit words."""
    mask = (1 << 32) - 1
    (ah, al), (bh, bl) = (((v >> 32), (v & mask)) for v in (a, b))
    cross, other = ah * bl, al * bh
    carry = ((al * bl) >> 32) + (cross & mask) + (other & mask)
    return ah * bh + (cross >> 32) + (other >> 32) + (carry >> 32)


def _reduce(b: Builder, x: Term) -> tuple[Term, Term, Term]:
    """|x| = n * pi / 2 + (r + r_low), |r| <= pi / 4: (n modulo 4 as an int64, r, r_low); x is a float64."""
    narrow = b.fmt is F32
    size = abs(x)
    bits = size.bits("int64")
    mantissa = ((bits & ((1 << 52) - 1)) | (1 << 52)).bits("uint64")
    # the exponent counts from 1075; a window that starts at 62 has the bits of weight 2 and 1 on top
    small = size < 0.5
    offset = select(small, 62, (bits >> 52) - (1075 - 62))
    one, two, three = _window(offset, (127 - 52 + 62) >> 6 if narrow else (1024 - 52 + 62) >> 6)
    low = two * mantissa + _high_product(three, mantissa) if not narrow else None
    high = one * mantissa + _high_product(two, mantissa)
    if low is not None:
        high = high + (low < two * mantissa).cast("uint64")
    turned = high.bits("int64")
    n = (turned + (1 << 61)) >> 62
    part = turned - (n << 62)
    top = part.cast("float64")
    n = select(small, 0, n & 3)
    if low is None:
        return n, select(small, size, top * _UNIT_HI), top.like(0.0)
    rest = (part - top.cast("int64")).cast("float64") + (low >> 11).cast("float64") * 2.0**-53
    sum_ = top + rest
    sum_low = (top - sum_) + rest
    r = sum_ * _UNIT_HI
    r_low = fma(sum_, _UNIT_HI, -r) + fma(sum_, _UNIT_LO, sum_low * _UNIT_HI)
    return n, select(small, size, r), select(small, 0.0, r_low)


def _quarter_turns(b: Builder, x: Term) -> tuple[Term, Term, Term, Term]:
    """(x in float64, quadrant, sin r, cos r) of |x| reduced to r."""
    wide = x.cast("float64")
    n, r, low = _reduce(b, wide)
    z = r * r
    narrow = b.fmt is F32
    sine = fma(r * z, b.series(z, _SIN32 if narrow else _SIN64), r)
    half = z * 0.5
    w = 1.0 - half
    tail = z * z * b.series(z, _COS32 if narrow else _COS64)
    if narrow:
        return wide, n, sine, w + tail
    sine = r + fma(r * z, b.series(z, _SIN64), fma(-half, low, low))
    return wide, n, sine, w + (((1.0 - w) - half) + (tail - r * low))


def _finish(b: Builder, x: Term, y: Term) -> Term:
    return select(abs(x) < float("inf"), y, float("nan")).cast(b.fmt.dtype)


def _negate_where(cond: Term, y: Term) -> Term:
    return select(cond, -y, y)


def _sin(b: Builder, x: Term) -> Term:
    wide, n, sine, cosine = _quarter_turns(b, x)
    y = select((n & 1) != 0, cosine, sine)
    return _finish(b, wide, _negate_where(((n & 2) != 0) != (wide.bits("int64") < 0), y))


def _cos(b: Builder, x: Term) -> Term:
    wide, n, sine, cosine = _quarter_turns(b, x)
    y = select((n & 1) != 0, sine, cosine)
    return _finish(b, wide, _negate_where(((n + 1) & 2) != 0, y))


def _tan(b: Builder, x: Term) -> Term:
    wide, n, sine, cosine = _quarter_turns(b, x)
    odd = (n & 1) != 0
    y = select(odd, -cosine, sine) / select(odd, sine, cosine)
    return _finish(b, wide, _negate_where(wide.bits("int64") < 0, y))


BODIES: dict[str, Callable[..., Term]] = {"sin": _sin, "cos": _cos, "tan": _tan}
