"""The math functions, written once in the IR's exactly rounded operations (language.md 0.8).

Every interpreter and printer evaluates or prints these expansions; nobody calls a math library, so the results are
the same bits on every target. Only + - * / sqrt fma, integer operations, comparisons, selects, casts between integers
and floats, and reinterpretations are used.

Polynomials are fits in 60 digits (Remez exchange, or interpolation at Chebyshev nodes; relative error, rounded to the
type afterwards) of the function named beside the coefficients, lowest degree first. Errors as measured are in
docs/numerics.md; over every mantissa of 22 of the 255 binades log2 has 0.983 and log 0.825 units in the last place. On
samples, float32 and float64: pow 1.0, atan2 0.54 and 1.3, hypot 0.5 and 0.7. fmod and copysign are exact, ldexp rounds
once.
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
