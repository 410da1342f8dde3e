"""Several neighbouring elements at once: T.ldg32 ... T.ldg256, T.stg32 ... T.stg256, T.dp4a."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError
from tiledsl.frontend.location import error
from tiledsl.frontend.storage import BufferRef, Cell, Element, RegionRef, emit_store
from tiledsl.frontend.values import Value, Vector, describe, index_expr, lanes_of
from tiledsl.ir import Const
from tiledsl.language.casts import reinterpret
from tiledsl.language.math import if_then_else
from tiledsl.language.operation import named, operation

__all__ = [
    "address_of", "dp4a", "ldg128", "ldg256", "ldg32", "ldg64", "neighbours", "stg128", "stg256", "stg32", "stg64",
]  # fmt: skip


def _elements(name: str, place: Any, bits: int) -> list[Element]:
    """The elements that `bits` bits cover, from a place on."""
    place = address_of(place) if isinstance(place, (RegionRef, BufferRef)) else place
    if not isinstance(place, Element) or place.dtype.is_bool or bits % place.dtype.bits:
        raise error(
            "word-place",
            TileTypeError,
            f"T.{name} takes an element of a tensor whose dtype divides {bits} bits, got {describe(place)}",
            help=f"name the first element: T.{name}(A[i, j])",
        )
    return neighbours(place, bits // place.dtype.bits)


def neighbours(place: Element | Cell, count: int) -> list[Element]:
    """Elements that lie side by side, from a place on."""
    *front, last = place.indices
    return [Element(place.buffer, (*front, index_expr(Value(last) + k))) for k in range(count)]


def _dtype(bits: int) -> str:
    return "uint32" if bits == 32 else f"uint32x{bits // 32}"


def _load(bits: int) -> Callable[..., Any]:
    name = f"ldg{bits}"

    def function(src: Any, pred: Any = None) -> Any:
        elements = _elements(name, src, bits)
        found = reinterpret(Vector(elements) if len(elements) > 1 else elements[0], _dtype(bits))
        if pred is None:
            return found
        lanes = [if_then_else(pred, x, Value(Const(0, x.dtype))) for x in lanes_of(found, found.dtype.lanes)]
        return Vector(lanes) if len(lanes) > 1 else lanes[0]

    doc = f"{bits} bits from an element on, as {_dtype(bits)}; 0 where the condition pred does not hold."
    return operation(named(function, name, doc))


def _store(bits: int) -> Callable[..., Any]:
    name = f"stg{bits}"

    def function(dst: Any, value: Any) -> None:
        elements = _elements(name, dst, bits)
        dtype: DType = elements[0].dtype.with_lanes(len(elements))
        parts = reinterpret(value, dtype)
        for place, part in zip(elements, lanes_of(parts, len(elements)), strict=True):
            emit_store(place.buffer, place.indices, part)

    return operation(named(function, name, f"Stores {bits} bits, a {_dtype(bits)}, from an element on."))


ldg32, ldg64, ldg128, ldg256 = (_load(bits) for bits in (32, 64, 128, 256))
stg32, stg64, stg128, stg256 = (_store(bits) for bits in (32, 64, 128, 256))


@operation
def dp4a(A: Any, B: Any, C: Any) -> None:
    """C += A[0] * B[0] + ... + A[3] * B[3] in int32: A and B name the first of four 8-bit integers, C an element."""
    a, b = (_elements("dp4a", x, 32) for x in (A, B))
    to = address_of(C)
    total = Value(to.typed)
    for x, y in zip(a, b, strict=True):
        total = total + Value(x.typed) * Value(y.typed)
    emit_store(to.buffer, to.indices, total)


@operation
def address_of(place: Any) -> Any:
    """An element, `A[i, j]`, as a place, for operations that take one: atomics, T.ldg32, T.dp4a, T.make_tensor ...

    Of a buffer or slice: its first element.
    """
    if isinstance(place, RegionRef):
        return Element(place.buffer, place.region.starts)
    if isinstance(place, BufferRef):
        return place[(0,) * place.ndim]
    if not isinstance(place, (Element, Cell)):
        raise error(
            "no-address", TileTypeError, f"T.address_of: {describe(place)} lies nowhere in memory",
            help="name an element: T.address_of(A[i, j])",
        )  # fmt: skip
    return place
