"""Vectors of a few lanes, such as T.bfloat16x2(a, b): what works on all lanes and is no operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiledsl.errors import TileTypeError
from tiledsl.frontend.location import error
from tiledsl.frontend.values import Value, Vector, as_value, binary, lanes_of, unary
from tiledsl.language.casts import cast
from tiledsl.language.math import fma
from tiledsl.language.operation import named, surface

__all__ = ["abs2", "add2", "extract_lane", "fma2", "max2", "min2", "mul2", "sub2", "vectorized_cast"]


def _pairs(name: str, function: Callable[..., Any], *operands: Any) -> Vector:
    """function, lane by lane; scalars count for both lanes."""
    if not any(isinstance(x, Vector) for x in operands):
        raise error(
            "no-vector",
            TileTypeError,
            f"T.{name} takes vectors such as T.float32x2(a, b), got {', '.join(map(repr, operands))}",
            help="for scalars use the operator, or the function without the 2",
        )
    return Vector([as_value(function(*lane), name) for lane in zip(*(lanes_of(x, 2) for x in operands), strict=True)])


def _of_two(name: str, doc: str) -> Callable[[Any, Any], Any]:
    def function(a: Any, b: Any) -> Any:
        return _pairs(name, lambda x, y: binary(name[:-1], x, y), a, b)

    return surface(named(function, name, doc))


add2 = _of_two("add2", "a + b of vectors of two lanes.")
sub2 = _of_two("sub2", "a - b of vectors of two lanes.")
mul2 = _of_two("mul2", "a * b of vectors of two lanes.")
max2 = _of_two("max2", "T.max of vectors of two lanes.")
min2 = _of_two("min2", "T.min of vectors of two lanes.")


@surface
def fma2(a: Any, b: Any, c: Any) -> Any:
    """a * b + c with one rounding, of vectors of two lanes."""
    return _pairs("fma2", fma, a, b, c)


@surface
def abs2(x: Any) -> Any:
    """T.abs of a vector of two lanes."""
    return _pairs("abs2", lambda lane: unary("abs", lane), x)


@surface
def vectorized_cast(value: Any, dtype: Any) -> Any:
    """T.cast of a vector, lane by lane; dtype names the vector's type or that of a lane."""
    return cast(value, dtype)


@surface
def extract_lane(value: Any, lane: int) -> Value:
    """One lane of a vector, the same as value[lane]; lane is a Python int."""
    if not isinstance(value, Vector):
        raise error(
            "no-lanes", TileTypeError, f"T.extract_lane takes a vector such as T.float32x2(a, b), got {value!r}"
        )
    return value[lane]
