"""The table of intrinsic functions (`Call` nodes): what they take, and where their meaning is written.

kind "math"    expanded once, as IR, by `tiledsl.ir.math` (language.md 0.8): bit-identical on all targets
kind "prim"    a primitive that every interpreter and printer knows
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["FAST", "INTRINSICS", "Intrinsic"]


@dataclass(frozen=True)
class Intrinsic:
    """arity, what dtypes it takes ("float", "int", "any", "vector"), its kind and one line of documentation."""

    name: str
    arity: int
    takes: str
    kind: str
    doc: str


_ALL = [
    Intrinsic("exp2", 1, "float", "math", "2**x, at most 1 ulp in float32"),
    Intrinsic("exp", 1, "float", "math", "e**x, at most 1 ulp in float32"),
    Intrinsic("log2", 1, "float", "math", "base-2 logarithm, at most 1 ulp in float32"),
    Intrinsic("log", 1, "float", "math", "natural logarithm, at most 1 ulp in float32"),
    Intrinsic("exp10", 1, "float", "math", "10**x"),
    Intrinsic("expm1", 1, "float", "math", "e**x - 1, accurate near 0"),
    Intrinsic("log10", 1, "float", "math", "base-10 logarithm"),
    Intrinsic("log1p", 1, "float", "math", "log(1 + x), accurate near 0"),
    Intrinsic("sinh", 1, "float", "math", "hyperbolic sine"),
    Intrinsic("cosh", 1, "float", "math", "hyperbolic cosine"),
    Intrinsic("tanh", 1, "float", "math", "hyperbolic tangent"),
    Intrinsic("pow", 2, "float", "math", "x**y"),
    Intrinsic("rsqrt", 1, "float", "math", "1 / sqrt(x): two correctly rounded operations"),
    Intrinsic("sin", 1, "float", "math", "sine, of any argument"),
    Intrinsic("cos", 1, "float", "math", "cosine, of any argument"),
    Intrinsic("tan", 1, "float", "math", "tangent, of any argument"),
    Intrinsic("erf", 1, "float", "math", "error function"),
    Intrinsic("fmod", 2, "float", "math", "x - trunc(x / y) * y, exact"),
    Intrinsic("copysign", 2, "float", "math", "the magnitude of x with the sign of y"),
    Intrinsic("atan", 1, "float", "math", "inverse tangent"),
    Intrinsic("atan2", 2, "float", "math", "the angle of the vector (y, x), from -pi to pi"),
    Intrinsic("asin", 1, "float", "math", "inverse sine"),
    Intrinsic("acos", 1, "float", "math", "inverse cosine"),
    Intrinsic("asinh", 1, "float", "math", "inverse hyperbolic sine"),
    Intrinsic("acosh", 1, "float", "math", "inverse hyperbolic cosine"),
    Intrinsic("atanh", 1, "float", "math", "inverse hyperbolic tangent"),
    Intrinsic("hypot", 2, "float", "math", "sqrt(x * x + y * y)"),
    Intrinsic("ldexp", 2, "float", "math", "x * 2**n, exact, n a whole number"),
    Intrinsic("scalb", 2, "float", "math", "x * 2**n rounded once, x near 1, n whole and at most twice the bias"),
    Intrinsic("round_away", 1, "float", "math", "nearest whole number, ties away from zero"),
    Intrinsic("reinterpret", 1, "any", "prim", "the same bits as another type of equal width"),
    Intrinsic("popcount", 1, "int", "prim", "bits that are set; 32 and 64 bits"),
    Intrinsic("clz", 1, "int", "prim", "zero bits above the highest one; 32 and 64 bits"),
    Intrinsic("brev", 1, "int", "prim", "the bits in reverse order; 32 and 64 bits"),
    Intrinsic("isnan", 1, "float", "prim", "true for NaN; bool"),
    Intrinsic("isinf", 1, "float", "prim", "true for infinities; bool"),
    Intrinsic("isfinite", 1, "float", "prim", "neither NaN nor infinite; bool"),
    Intrinsic("hreduce_add", 1, "vector", "prim", "16 lanes combined 8-4-2-1 by +; scalar"),
    Intrinsic("hreduce_max", 1, "vector", "prim", "16 lanes combined 8-4-2-1 by max, NaN ignored; scalar"),
    Intrinsic("hreduce_min", 1, "vector", "prim", "16 lanes combined 8-4-2-1 by min, NaN ignored; scalar"),
    Intrinsic("hreduce_bitand", 1, "vector", "prim", "16 lanes combined by bitwise and; integer scalar"),
    Intrinsic("hreduce_bitor", 1, "vector", "prim", "16 lanes combined by bitwise or; integer scalar"),
    Intrinsic("hreduce_bitxor", 1, "vector", "prim", "16 lanes combined by bitwise exclusive or; integer scalar"),
    Intrinsic("permute", 2, "vector", "prim", "lane y mod 16 of x, for each lane of the int32 vector y; x of 32 bits"),
    Intrinsic("evens", 2, "vector", "prim", "lanes 0, 2, 4 ... of x and y one after the other"),
    Intrinsic("odds", 2, "vector", "prim", "lanes 1, 3, 5 ... of x and y one after the other"),
    Intrinsic("zip_low", 2, "vector", "prim", "the first lanes of x and y in turn"),
    Intrinsic("zip_high", 2, "vector", "prim", "the last lanes of x and y in turn"),
    Intrinsic("any", 1, "vector", "prim", "true if some lane of a bool vector is; scalar bool"),
]

FAST = ("exp", "exp2", "exp10", "log", "log2", "log10", "sin", "cos", "tan", "pow")
"""Functions with a second name `fast_...`, for which a target may use a hardware approximation (language.md 0.8)."""

MIXES = {
    "evens": tuple(range(0, 32, 2)),
    "odds": tuple(range(1, 32, 2)),
    "zip_low": tuple(i // 2 + i % 2 * 16 for i in range(16)),
    "zip_high": tuple(i // 2 + i % 2 * 16 for i in range(16, 32)),
}
"""Which lanes of x and y, one after the other, are the lanes of the result."""

INTRINSICS: dict[str, Intrinsic] = {i.name: i for i in _ALL}
INTRINSICS |= {
    f"fast_{n}": replace(INTRINSICS[n], name=f"fast_{n}", doc=f"{INTRINSICS[n].doc}; may be approximate") for n in FAST
}
