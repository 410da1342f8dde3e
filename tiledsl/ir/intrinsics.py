"""The table of intrinsic functions (`Call` nodes): what they take, and where their meaning is written.

kind "math"    expanded once, as IR, by `tiledsl.ir.math` (language.md 0.8): bit-identical on all targets
kind "prim"    a primitive that every interpreter and printer knows
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["INTRINSICS", "Intrinsic"]


@dataclass(frozen=True)
class Intrinsic:
    """arity, what dtypes it takes ("float", "any", "vector"), its kind and one line of documentation."""

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
    Intrinsic("rsqrt", 1, "float", "math", "1 / sqrt(x): two correctly rounded operations"),
    Intrinsic("reinterpret", 1, "any", "prim", "the same bits as another type of equal width"),
    Intrinsic("isnan", 1, "float", "prim", "true for NaN; bool"),
    Intrinsic("isinf", 1, "float", "prim", "true for infinities; bool"),
    Intrinsic("isfinite", 1, "float", "prim", "neither NaN nor infinite; bool"),
    Intrinsic("hreduce_add", 1, "vector", "prim", "16 lanes combined 8-4-2-1 by +; scalar"),
    Intrinsic("hreduce_max", 1, "vector", "prim", "16 lanes combined 8-4-2-1 by max, NaN ignored; scalar"),
    Intrinsic("hreduce_min", 1, "vector", "prim", "16 lanes combined 8-4-2-1 by min, NaN ignored; scalar"),
    Intrinsic("hreduce_bitand", 1, "vector", "prim", "16 lanes combined by bitwise and; integer scalar"),
    Intrinsic("hreduce_bitor", 1, "vector", "prim", "16 lanes combined by bitwise or; integer scalar"),
    Intrinsic("hreduce_bitxor", 1, "vector", "prim", "16 lanes combined by bitwise exclusive or; integer scalar"),
    Intrinsic("any", 1, "vector", "prim", "true if some lane of a bool vector is; scalar bool"),
    Intrinsic("all", 1, "vector", "prim", "true if every lane of a bool vector is; scalar bool"),
]

INTRINSICS: dict[str, Intrinsic] = {i.name: i for i in _ALL}
