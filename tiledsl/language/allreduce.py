"""Reductions over thread axes in TVM's notation: `with T.attr(T.comm_reducer(...), "reduce_scope", ...)` around
`T.evaluate(T.tvm_thread_allreduce(...))`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.control import if_then_else, tracer
from tiledsl.frontend.location import error
from tiledsl.frontend.promotion import is_number
from tiledsl.frontend.storage import Cell, Element
from tiledsl.frontend.values import Value, as_value, describe
from tiledsl.ir import Binary, Const, Var
from tiledsl.ir.collectives import COLLECTIVE_REDUCTIONS
from tiledsl.language.operation import operation, surface
from tiledsl.language.threads import collective

__all__ = ["attr", "comm_reducer", "tvm_thread_allreduce"]


@dataclass(frozen=True)
class Reducer:
    """op: a name of COLLECTIVE_REDUCTIONS; identity: what changes nothing."""

    op: str
    identity: Value


@surface
def comm_reducer(fcombine: Callable[[Any, Any], Any], identity: Any) -> Reducer:
    """The reduction that a function of two values means: lambda x, y: x + y, T.max(x, y), T.min, x & y, x | y, x ^ y.

    identity: a list of the one value that changes nothing, such as [T.Cast("float32", 0)].
    """
    values = list(identity) if isinstance(identity, (list, tuple)) else [identity]
    start = as_value(values[0], "T.comm_reducer: the identity") if len(values) == 1 else None
    if start is not None and callable(fcombine):
        x, y = Var("x", start.dtype), Var("y", start.dtype)
        made = fcombine(Value(x), Value(y))
        expr = made.typed if isinstance(made, Value) else None
        for op, operator in COLLECTIVE_REDUCTIONS.items():
            if isinstance(expr, Binary) and expr.op == operator and {expr.a, expr.b} == {x, y}:
                return Reducer(op, start)
    raise error(
        "reducer-function",
        TileTypeError,
        "T.comm_reducer takes a function that combines two values by +, T.max, T.min, &, | or ^",
        help="give lambda x, y: x + y (or T.max(x, y) ...) and a list of one identity",
    )


@operation
def attr(node: Any, attr_key: str, value: Any) -> AbstractContextManager[None]:
    """`with T.attr(T.comm_reducer(...), "reduce_scope", ...)`: the reducer of the all-reductions inside."""
    if attr_key != "reduce_scope" or not isinstance(node, Reducer):
        raise error(
            "attribute-key",
            TileValueError,
            f"T.attr({attr_key!r}) has no meaning here",
            help='use T.attr(T.comm_reducer(...), "reduce_scope", ...) around T.tvm_thread_allreduce',
        )
    return _with_reducer(node)


@contextmanager
def _with_reducer(reducer: Reducer) -> Iterator[None]:
    builder = tracer("T.attr")
    outer, builder.reducer = builder.reducer, reducer
    try:
        yield
    finally:
        builder.reducer = outer


@operation
def tvm_thread_allreduce(size: Any, value: Any, predicate: Any, out: Any, *threads: Any, dtype: Any = None) -> None:
    """out = reduction of value over the threads along the given thread indices, in all of them.

    size       how many values: T.uint32(1)
    predicate  threads for which it is false count as the reducer's identity
    out        an element of a local buffer, `y[0]`, or a T.alloc_var
    threads    thread indices (T.get_thread_binding); none: all
    """
    builder = tracer("T.tvm_thread_allreduce")
    builder.require_kernel("T.tvm_thread_allreduce")
    reducer = builder.reducer
    if not isinstance(reducer, Reducer):
        raise error(
            "no-reducer",
            TileSyntaxError,
            "T.tvm_thread_allreduce has no reducer",
            help='put it into `with T.attr(T.comm_reducer(lambda x, y: x + y, [zero]), "reduce_scope", ...):`',
        )
    if not isinstance(out, (Element, Cell)):
        raise error(
            "allreduce-out",
            TileTypeError,
            f"T.tvm_thread_allreduce: out is {describe(out)}",
            help="give an element of a T.alloc_local buffer, y[0]",
        )
    names = builder.launch.thread_vars
    axes = []
    for t in threads:
        if isinstance(t, Value) and t.expr in names:
            axes.append(names.index(t.expr))
        elif not is_number(t) and not (isinstance(t, Value) and isinstance(t.expr, Const)):
            raise error(
                "allreduce-axis",
                TileTypeError,
                f"T.tvm_thread_allreduce: {describe(t)} is no thread index",
                help="give what T.get_thread_binding(axis) returned",
            )
    kind: DType = out.dtype
    value = as_value(value, "T.tvm_thread_allreduce").astype(kind)
    if isinstance(predicate, Value):
        value = if_then_else(predicate, value, reducer.identity)
    whole = set(axes) == set(range(len(names))) or not threads
    if axes or not threads:
        along = () if whole else tuple(sorted(axes))
        value = collective("T.tvm_thread_allreduce", reducer.op, (value,), scope="block", axes=along)
    Cell(out.buffer, out.indices).store(value)  # along axes that the block does not have: of one thread
