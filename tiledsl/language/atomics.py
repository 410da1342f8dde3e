"""Atomic operations on global and shared memory: single elements, vectors of neighbours, and whole tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiledsl.errors import TileTypeError, TileValueError, suggest
from tiledsl.frontend.builder import current
from tiledsl.frontend.control import Tracer
from tiledsl.frontend.describe import operand_text
from tiledsl.frontend.location import error, here
from tiledsl.frontend.loops import LoopSpec, close_loop, open_loop
from tiledsl.frontend.storage import BufferRef, Cell, Element, RegionRef
from tiledsl.frontend.values import Value, Vector, describe, to_dtype
from tiledsl.ir import Atomic, Buffer, Expr, If, Load, Region, Var, build
from tiledsl.language.memory import as_scalar, paired
from tiledsl.language.operation import named, not_inside_parallel, operation
from tiledsl.language.words import address_of, neighbours

__all__ = [
    "atomic_add", "atomic_addx2", "atomic_addx4", "atomic_and", "atomic_load", "atomic_max", "atomic_min",
    "atomic_or", "atomic_store", "atomic_xor",
]  # fmt: skip

_ORDERS = ("relaxed", "consume", "acquire", "release", "acq_rel", "seq_cst")  # the numbers of C++'s memory_order
_READS, _WRITES = ("relaxed", "acquire", "seq_cst"), ("relaxed", "release", "seq_cst")


@operation
def atomic_add(
    dst: Any, value: Any, memory_order: str | int | None = None, return_prev: bool = False, use_tma: bool = False
) -> Any:  # fmt: skip
    """dst += value in one step that no other thread or block can divide.

    dst           an element `C[i, j]` of a global or shared buffer; or, for a tile, a buffer, a slice, or the element
                  at the corner of a box as large as value
    value         a scalar, converted to dst's dtype; or a tile: a buffer or slice
    memory_order  "relaxed" (the default), "acquire", "release", "acq_rel" or "seq_cst"
    return_prev   give the old value (elements only)

    Floats round at every addition, and their order among threads and blocks is free. Elements out of range are
    skipped; their old value is 0. use_tma is a hint.
    """
    return _update("add", dst, value, memory_order, return_prev)


def _atomic(name: str, doc: str) -> Callable[..., Any]:
    def function(dst: Any, value: Any, memory_order: str | int | None = None, return_prev: bool = False) -> Any:
        return _update(name.removeprefix("atomic_"), dst, value, memory_order, return_prev)

    return operation(named(function, name, doc))


atomic_max = _atomic("atomic_max", "dst = max(dst, value) in one step; like `atomic_add`. A number beats NaN.")
atomic_min = _atomic("atomic_min", "dst = min(dst, value) in one step; like `atomic_add`. A number beats NaN.")
atomic_and = _atomic("atomic_and", "dst &= value in one step; integers. Like `atomic_add`.")
atomic_or = _atomic("atomic_or", "dst |= value in one step; integers. Like `atomic_add`.")
atomic_xor = _atomic("atomic_xor", "dst ^= value in one step; integers. Like `atomic_add`.")


@operation
def atomic_addx2(dst: Any, value: Any, return_prev: bool = False) -> Any:
    """atomic_add of two neighbours: dst and value are the first elements, `C[i, 2 * j]` and `A[i, 2 * j]`.

    Each is added in a step of its own. return_prev: give the old values, as a vector."""
    return _vector("T.atomic_addx2", dst, value, 2, return_prev)


@operation
def atomic_addx4(dst: Any, value: Any, return_prev: bool = False) -> Any:
    """atomic_add of four neighbours: dst and value are the first elements, `C[i, 4 * j]` and `A[i, 4 * j]`.

    Each is added in a step of its own. return_prev: give the old values, as a vector."""
    return _vector("T.atomic_addx4", dst, value, 4, return_prev)


@operation
def atomic_load(src: Any, memory_order: str | int | None = "seq_cst") -> Any:
    """The value of an element, read in one step. memory_order: "relaxed", "acquire" or "seq_cst"."""
    what = "T.atomic_load"
    return _emit(what, "load", _element(what, "src", src), None, _order(what, memory_order, _READS), True)


@operation
def atomic_store(dst: Any, value: Any, memory_order: str | int | None = "seq_cst") -> None:
    """Writes an element in one step. memory_order: "relaxed", "release" or "seq_cst"."""
    what = "T.atomic_store"
    place = _element(what, "dst", dst)
    _emit(what, "store", place, as_scalar(value, f"{what}: value"), _order(what, memory_order, _WRITES), False)


# -- elements ---------------------------------------------------------------------------------------------


def _update(op: str, dst: Any, value: Any, memory_order: str | int | None, return_prev: bool) -> Value | None:
    what = f"T.atomic_{op}"
    order = _order(what, memory_order)
    if not isinstance(value, (BufferRef, RegionRef)):
        return _emit(what, op, _element(what, "dst", dst), as_scalar(value, f"{what}: value"), order, return_prev)
    if return_prev:
        raise error("atomic-prev", TileTypeError, f"{what}: return_prev gives the old value of one element, not a tile")
    _tile(what, op, dst, value, order)
    return None


def _order(what: str, order: str | int | None, allowed: tuple[str, ...] = _ORDERS) -> str:
    """The name of a memory order."""
    if order is None:
        return "relaxed"
    numbered = isinstance(order, int) and 0 <= order < len(_ORDERS)
    name = _ORDERS[order] if numbered else order  # type: ignore[index]
    name = "acquire" if name == "consume" else name
    if name not in allowed:
        hint = suggest(order, allowed) if isinstance(order, str) else None
        raise error(
            "memory-order",
            TileValueError,
            f"{what}: there is no memory order {order!r}",
            help=hint or f"use {', '.join(a for a in allowed if a != 'consume')}",
        )
    return str(name)


def _element(what: str, name: str, x: Any) -> Element | Cell:
    """An element of global or shared memory."""
    if not isinstance(x, (Element, Cell)):
        raise error(
            "atomic-place",
            TileTypeError,
            f"{what}: {name} must be an element, got {describe(x)}",
            help="name one element: C[i, j]",
        )
    return x


def _place(what: str, op: str, buffer: Buffer) -> None:
    """Refuses buffers that no other thread sees, and dtypes that the operation does not have."""
    if buffer.scope not in ("global", "shared"):
        raise error(
            "atomic-scope",
            TileTypeError,
            f"{what} works on global and shared memory: {operand_text(buffer)}",
            help="a tile of the block is updated in T.Parallel: c[i, j] += x; or allocate it with T.alloc_shared",
        )
    d = buffer.dtype
    bits = op in ("and", "or", "xor")
    known = d.is_int or (d.is_float and d.bits >= 16 and not bits) or (d.is_bool and op in ("load", "store"))
    if not known or d.is_vector or d.is_packed:
        kinds = "integers" if bits else "integers and floats of 16 bits and more"
        raise error("atomic-dtype", TileTypeError, f"{what} takes only {kinds}: {operand_text(buffer)}")


def _emit(what: str, op: str, dst: Element | Cell, value: Any, order: str, wanted: bool) -> Value | None:
    buffer = dst.buffer
    _place(what, op, buffer)
    result = Var("prev", buffer.dtype, loc=here()) if wanted else None
    stored = None if op == "load" else to_dtype(value, buffer.dtype)
    current(what).emit(Atomic(op, buffer, dst.indices, stored, result, order, loc=here()), what)
    return None if result is None else Value(result)


def _vector(what: str, dst: Any, value: Any, lanes: int, return_prev: bool) -> Vector | None:
    to, source = _element(what, "dst", address_of(dst)), _element(what, "value", address_of(value))
    pairs = zip(neighbours(to, lanes), neighbours(source, lanes), strict=True)
    old = [_emit(what, "add", place, item, "relaxed", return_prev) for place, item in pairs]
    return Vector([x for x in old if x is not None]) if return_prev else None


# -- tiles ------------------------------------------------------------------------------------------------


def _tile(what: str, op: str, dst: Any, src: Any, order: str) -> None:
    """The boxes of T.copy(src, dst), element by element; what lies outside either buffer is skipped."""
    builder = not_inside_parallel(what)
    if not isinstance(dst, (Element, RegionRef, BufferRef)):
        _element(what, "dst", dst)
    move = paired(src, dst, what)
    _place(what, op, move.dst.buffer)
    loop = open_loop(builder, LoopSpec.nest(what, "parallel", tuple(Value(e) for e in move.domain)), ())
    from_at, to_at = (_along(r, axes, loop.vars) for r, axes in ((move.src, move.src_axes), (move.dst, move.dst_axes)))
    tests = _tests(move.src, from_at) + (_tests(move.dst, to_at) if move.dst.buffer.scope == "shared" else [])
    value = to_dtype(Value(Load(move.src.buffer, from_at, loc=here())), move.dst.buffer.dtype)
    update = Atomic(op, move.dst.buffer, to_at, value, None, order, loc=here())
    _when(builder, tests, update, what)
    close_loop(builder, loop)


def _along(r: Region, axes: tuple[int, ...], nest: tuple[Var, ...]) -> tuple[Expr, ...]:
    at = list(r.starts)
    for v, axis in zip(nest, axes, strict=True):
        at[axis] = build.add(*build.same_type(at[axis], v))
    return tuple(at)


def _tests(r: Region, at: tuple[Expr, ...]) -> list[Expr]:
    """Whether an element lies in its buffer, where that is not plain to see. A global destination tests itself."""
    tests = []
    for start, extent, size, index in zip(r.starts, r.extents, r.buffer.shape, at, strict=True):
        if not (build.is_const(start, 0) and extent == size):
            tests += [build.ge(index, 0), build.lt(index, size)]
    return tests


def _when(builder: Tracer, tests: list[Expr], s: Atomic, what: str) -> None:
    if not tests:
        builder.emit(s, what)
        return
    block = builder.push("if", here())
    builder.emit(s, what)
    builder.emit(If(build.all_of(tests), builder.pop(block), loc=here()), what, checked=True)
