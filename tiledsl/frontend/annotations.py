"""Parameter annotations: T.Tensor, T.StridedTensor and scalar dtypes; shape symbols and compile-time constants."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import Loc, TileTypeError, TileValueError
from tiledsl.frontend.describe import expr_text
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import slice_dtype
from tiledsl.frontend.storage import BufferRef
from tiledsl.frontend.symbols import symbol
from tiledsl.frontend.values import Value, index_expr
from tiledsl.ir import Buffer, Const, Expr, Param, Var
from tiledsl.ir.walk import not_on_host

__all__ = ["Const_", "TensorSpec", "dynamic", "host_expr", "make_param", "shape_exprs"]


def host_expr(x: Any, what: str) -> Expr:
    """An integer expression that is computed before the kernel runs: of symbols and integer parameters."""
    e = index_expr(x, what)
    late = not_on_host(e)
    if late is None:
        return e
    raise error(
        "host-value",
        TileTypeError,
        f"{what} needs {expr_text(late)} ({late.dtype}), which has no value before the kernel runs",
        help="compute it before the call and pass it as a T.int32 parameter",
    )


def shape_exprs(shape: Any, what: str) -> tuple[Expr, ...]:
    """Extents or strides, given as one or several ints or symbolic values."""
    items = shape if isinstance(shape, (tuple, list)) else (shape,)
    found = tuple(index_expr(x, f"{what}: extent {i}") for i, x in enumerate(items))
    for e in found:
        if isinstance(e, Const) and not 0 <= e.value < 1 << 63:
            why = "negative" if e.value < 0 else "beyond int64"
            raise error("negative-extent", TileValueError, f"{what}: extent {e.value} is {why}")
    return found


def address_dtype(dtype: Any) -> Any:
    """T.ptr and T.handle stand for addresses, which are int64."""
    return as_dtype("int64") if isinstance(dtype, DType) and dtype.kind == "handle" else dtype


@dataclass(frozen=True, eq=False)
class TensorSpec:
    """The type of a tensor parameter. strides: in elements, None = row-major contiguous."""

    shape: tuple[Expr, ...]
    dtype: DType
    strides: tuple[Expr, ...] | None = None

    @classmethod
    def make(cls, what: str, shape: Any, dtype: Any, strides: Any = None) -> TensorSpec:
        dims = shape_exprs(shape, what)
        steps = None if strides is None else shape_exprs(strides, f"{what} strides")
        for e in (*dims, *(steps or ())):
            host_expr(Value(e), what)
        if steps is not None and len(steps) != len(dims):
            raise error("stride-count", TileTypeError, f"{what}: {len(dims)} extents but {len(steps)} strides")
        return cls(dims, slice_dtype(address_dtype(dtype), what), steps)


def dynamic(names: str, dtype: Any = "int32") -> Any:
    """One or several shape symbols."""
    try:
        kind = as_dtype(dtype)
    except TypeError as e:
        raise error("symbol-dtype", TileTypeError, f"T.dynamic: {e}") from None
    if not isinstance(names, str):
        raise error("symbol-name", TileTypeError, f"T.dynamic: {names!r} is no text", help='T.dynamic("m, n")')
    if not kind.is_int or kind.bits < 32:
        raise error("symbol-dtype", TileTypeError, f"T.dynamic: a shape symbol is an int32 or int64, not {kind}")
    made = tuple(Value(symbol(n.strip(), kind)) for n in names.replace(",", " ").split())
    if not made or not all(n.isidentifier() for n in names.replace(",", " ").split()):
        raise error(
            "symbol-name", TileValueError, f"T.dynamic: {names!r} is not a list of names", help='T.dynamic("m, n")'
        )
    return made if len(made) > 1 else made[0]


class Const_(Value):
    """A T.const before its value is known: it may only stand directly as an extent or stride."""

    def __init__(self, name: str) -> None:
        super().__init__(Var(name, as_dtype("int32"), loc=here()))
        self.name = name


def make_param(name: str, annotation: Any, loc: Loc | None) -> tuple[Param, Any]:
    """The IR parameter and what the author's code sees of it."""
    if isinstance(annotation, TensorSpec):
        buffer = Buffer(name, annotation.dtype, annotation.shape, "global", annotation.strides, loc=loc)
        return Param(name, buffer=buffer, loc=loc), BufferRef(buffer)
    try:
        dtype = as_dtype(annotation)
    except TypeError:
        dtype = None
    if dtype is not None:
        dtype = address_dtype(dtype)
        var = Var(name, slice_dtype(dtype, f"parameter {name}"), loc=loc)
        return Param(name, var=var, loc=loc), Value(var)
    raise error(
        "param-annotation",
        TileTypeError,
        f"parameter {name} has no tensor or scalar type, but {annotation!r}",
        loc=loc,
        help=f"annotate it: `{name}: T.Tensor((M, N), T.float16)` or `{name}: T.int32`",
    )
