"""Stores into a reducer: `r[j] += x` in T.Parallel is one contribution of this iteration."""

from __future__ import annotations

from typing import Any

from tiledsl.errors import TileTypeError
from tiledsl.frontend.builder import Builder, current
from tiledsl.frontend.describe import expr_text
from tiledsl.frontend.location import error, here
from tiledsl.frontend.values import Value, to_dtype
from tiledsl.ir import Binary, Buffer, Cast, Expr, Let, Load, ReducerOp, Var, build
from tiledsl.ir.walk import free_vars

__all__ = ["COMBINATIONS", "contribute", "store_contribution"]

# What a reducer's op is called as an operator of expressions, and how an author writes it.
COMBINATIONS = {
    "sum": ("add", "{0} += x"),
    "max": ("max", "{0} = T.max({0}, x)"),
    "min": ("min", "{0} = T.min({0}, x)"),
    "bitand": ("bitand", "{0} &= x"),
    "bitor": ("bitor", "{0} |= x"),
    "bitxor": ("bitxor", "{0} ^= x"),
}


def contribute(buffer: Buffer, indices: tuple[Expr, ...], value: Any) -> None:
    """value contributes to buffer[indices]."""
    builder = current("a contribution to a reducer")
    op = builder.reducers[buffer]
    lane = _lane(builder, indices)
    builder.emit(ReducerOp("update", op, buffer, indices, to_dtype(value, buffer.dtype), lane, loc=here()))


def store_contribution(buffer: Buffer, indices: tuple[Expr, ...], value: Any) -> None:
    """buffer[indices] = buffer[indices] op value, as the author wrote it; any other store is refused."""
    op = current("a store").reducers.get(buffer)
    if op is not None and isinstance(value, Value):
        e = _plain(value.expr)
        if isinstance(e, Binary) and e.op == COMBINATIONS[op][0]:
            for own, other in ((_plain(e.a), e.b), (_plain(e.b), e.a)):
                if isinstance(own, Load) and own.buffer is buffer and own.indices == indices:
                    contribute(buffer, indices, Value(other))
                    return
    place = f"{buffer.name}[{', '.join(map(expr_text, indices))}]"
    how = (
        "contribute to the reducer itself, not to a view"
        if op is None
        else f"write {COMBINATIONS[op][1].format(place)}"
    )
    raise error(
        "reducer-store",
        TileTypeError,
        f"{place}: a reducer takes contributions only, one operation with its old value",
        help=f"{how}, or T.fill to set it",
    )


def _plain(e: Expr) -> Expr:
    """e without the conversions that promotion put around it."""
    while isinstance(e, Cast):
        e = e.x
    return e


def _lane(builder: Builder, indices: tuple[Expr, ...]) -> Expr | None:
    """The number of this iteration over the axes of T.Parallel that the subscript does not depend on."""
    lets = {s.var: s.value for b in builder.blocks for s in b.statements if isinstance(s, Let)}
    used: set[Var] = set()
    open_ = [v for i in indices for v in free_vars(i)]
    while open_:
        v = open_.pop()
        if v not in used:
            used.add(v)
            open_ += free_vars(lets[v]) if v in lets else ()
    lane: Expr | None = None
    for v, extent in [axis for b in builder.blocks for axis in b.nest]:
        if v not in used:
            lane = v if lane is None else build.add(*build.same_type(build.mul(*build.same_type(lane, extent)), v))
    return lane
