"""The math functions, written once in the IR's exactly rounded operations (language.md 0.8).

Every interpreter and printer evaluates or prints these expansions; nobody calls a math library, so the results are
the same bits on every target. Only + - * / sqrt fma, integer operations, comparisons, selects, casts between integers
and floats, and reinterpretations are used.

Polynomials are fits in 60 digits (Remez exchange, or interpolation at Chebyshev nodes; relative error, rounded to the
type afterwards) of the function named beside the coefficients, lowest degree first. Largest errors measured, in units
in the last place:
float32 exp2 0.952 and exp 0.801 over every argument of magnitude 2**-25 and more whose result is not 0 or infinite
(smaller ones give 1), log2 0.983 and log 0.825 over every mantissa of 22 of the 255 binades, not over all arguments;
float64 below 1 on random samples (tests/test_math.py); rsqrt = 1 / sqrt(x) rounds twice, below 1.5.
On samples, float32 and float64: exp10 0.83, log10 0.87, log1p 0.81, expm1 1.6, sinh and tanh 2.3, cosh 1.6, pow 1.0,
erf 0.97, sin and cos 0.51 and 0.74, tan 0.51 and 1.7 (of arguments of any size), atan 0.55 and 0.8, asin and acos 0.52
and 0.8, atan2 0.54 and 1.3, hypot 0.5 and 0.7, asinh and atanh 0.5 and 1.5, acosh 0.5 and 2.5. fmod and copysign are
exact, ldexp rounds once.
The names `fast_...` share the expansions here; a target may approximate them.
float16 and bfloat16 arguments go through float32: whoever makes the call casts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType, as_dtype
from tiledsl.ir import math_exp, math_inverse, math_misc, math_trig
from tiledsl.ir.expr import Expr, Var
from tiledsl.ir.math_builder import F32, F64, Builder, Format, Term

__all__ = ["EXPANSIONS", "EXPANSIONS64", "MathFunction", "expansion"]


@dataclass(frozen=True)
class MathFunction:
    """result, after lets evaluated in order, as a function of params (all scalar and of type `dtype`, except
    integer and bool lets)."""

    name: str
    dtype: DType
    params: tuple[Var, ...]
    lets: tuple[tuple[Var, Expr], ...]
    result: Expr


_BODIES: dict[str, Callable[..., Term]] = {
    **math_exp.BODIES, **math_trig.BODIES, **math_inverse.BODIES, **math_misc.BODIES,
}  # fmt: skip


class _Expansions(Mapping[str, MathFunction]):
    """The expansions in one format, each built when it is first used."""

    def __init__(self, fmt: Format) -> None:
        self.fmt = fmt
        self.built: dict[str, MathFunction] = {}

    def __getitem__(self, name: str) -> MathFunction:
        if name not in self.built:
            builder, body = Builder(self.fmt), _BODIES[name]
            params = tuple(Var(p, self.fmt.dtype) for p in "xy"[: body.__code__.co_argcount - 1])
            result = body(builder, *(Term(builder, p) for p in params))
            self.built[name] = MathFunction(name, self.fmt.dtype, params, tuple(builder.lets), result.expr)
        return self.built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(_BODIES)

    def __len__(self) -> int:
        return len(_BODIES)


EXPANSIONS: Mapping[str, MathFunction] = _Expansions(F32)
EXPANSIONS64: Mapping[str, MathFunction] = _Expansions(F64)


def expansion(name: str, dtype: Any) -> MathFunction:
    """The expansion of a math intrinsic for float32 or float64 (or vectors of them).

    Raises KeyError for a function without one, TypeError for another dtype.
    """
    scalar = as_dtype(dtype).scalar
    table = {"float32": EXPANSIONS, "float64": EXPANSIONS64}.get(scalar.name)
    if table is None:
        raise TypeError(f"{name} is expanded over float32 and float64, not {scalar.name}: cast the argument first")
    return table[name.removeprefix("fast_")]
