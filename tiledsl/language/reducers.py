"""Reducers: tiles whose elements collect one contribution per iteration of T.Parallel, in one order on all targets."""

from __future__ import annotations

from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError, suggest
from tiledsl.frontend.builder import current
from tiledsl.frontend.describe import operand_text
from tiledsl.frontend.location import error, here
from tiledsl.frontend.reducer import COMBINATIONS, contribute
from tiledsl.frontend.storage import BufferRef, Cell, Element
from tiledsl.frontend.values import describe, to_dtype
from tiledsl.ir import Buffer, ReducerOp, build
from tiledsl.ir.arithmetic import identity
from tiledsl.language.memory import alloc_fragment, as_scalar, copy
from tiledsl.language.operation import not_inside_parallel, operation

__all__ = ["alloc_reducer", "finalize_reducer", "reducer_init", "reducer_update"]


@operation
def alloc_reducer(shape: Any, dtype: Any = "float32", op: str = "sum", replication: str | None = None) -> Any:
    """A tile that collects contributions: every iteration of T.Parallel contributes exactly once.

    op: "sum", "max", "min", "bitand", "bitor" or "bitxor"; replication is a hint.

        r = T.alloc_reducer((n,), "float32", op="sum")
        T.clear(r)                                # or T.fill(r, start); a sum starts at 0
        for i, j in T.Parallel(m, n):
            r[j] += x[i, j]                       # for op="max": r[j] = T.max(r[j], x[i, j])
        T.finalize_reducer(r)                     # from here on r can be read

    A sum of floats goes, in row-major order of the iterations, to partial k mod 16, where k counts the iterations over
    the axes of T.Parallel that the subscript does not mention; the 16 partials are combined 8-4-2-1 and added to the
    start value, in at least float32, and the result is rounded once.
    """
    what = "T.alloc_reducer"
    if op not in COMBINATIONS:
        raise error(
            "reducer-op",
            TileValueError,
            f"{what}: there is no reduction {op!r}",
            help=suggest(str(op), [*COMBINATIONS]) or f"use {', '.join(COMBINATIONS)}",
        )
    made = alloc_fragment(shape, dtype)
    kind: DType = made.dtype
    if not (kind.is_int or (kind.is_float and kind.bits >= 16 and op in ("sum", "max", "min"))) or kind.is_packed:
        raise error("reducer-dtype", TileTypeError, f"{what}: a reducer of {kind} has no {op}")
    not_inside_parallel(what).reducers[made.buffer] = op
    return made


@operation
def reducer_init(reducer: Any, init: Any = None) -> None:
    """Every element starts at `init` (None: what changes nothing, 0 for a sum) and has no contributions."""
    what = "T.reducer_init"
    buffer, op = _reducer(what, reducer)
    if init is not None:
        value = to_dtype(as_scalar(init, f"{what}: init"), buffer.dtype)
    else:
        value = build.const(0 if op == "sum" else identity(op, buffer.dtype), buffer.dtype)
    not_inside_parallel(what).emit(ReducerOp("init", op, buffer, (), value, loc=here()), what)


@operation
def reducer_update(dst: Any, value: Any) -> None:
    """value contributes to the element `dst`: `T.reducer_update(r[j], x)` is what `r[j] += x` says for a sum."""
    what = "T.reducer_update"
    if not isinstance(dst, (Element, Cell)):
        raise error("not-a-reducer", TileTypeError, f"{what}: dst must be an element of a reducer, got {describe(dst)}")
    _reducer(what, BufferRef(dst.buffer))
    contribute(dst.buffer, dst.indices, as_scalar(value, f"{what}: value"))


@operation
def finalize_reducer(reducer: Any, dst: Any = None) -> None:
    """Combines every element with its contributions; then it can be read. dst: a tile that gets a copy."""
    what = "T.finalize_reducer"
    buffer, op = _reducer(what, reducer)
    not_inside_parallel(what).emit(ReducerOp("finalize", op, buffer, loc=here()), what)
    if dst is not None:
        copy(reducer, dst)


def _reducer(what: str, x: Any) -> tuple[Buffer, str]:
    reducers = current(what).reducers
    if isinstance(x, BufferRef) and x.buffer in reducers:
        return x.buffer, reducers[x.buffer]
    text = operand_text(x.buffer) if isinstance(x, BufferRef) else describe(x)
    raise error(
        "not-a-reducer", TileTypeError, f"{what} takes a reducer, got {text}", help="allocate it with T.alloc_reducer"
    )
