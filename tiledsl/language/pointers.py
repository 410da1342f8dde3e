"""Tensors at addresses that a kernel reads from a table: T.ptr, T.make_tensor."""

from __future__ import annotations

from typing import Any

from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileSyntaxError, TileTypeError
from tiledsl.frontend.annotations import shape_exprs
from tiledsl.frontend.builder import Builder
from tiledsl.frontend.control import tracer
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import slice_dtype
from tiledsl.frontend.storage import BufferRef
from tiledsl.frontend.values import Value, describe, to_dtype
from tiledsl.ir import Alloc, Buffer, Const, Debug, Expr, Var, build
from tiledsl.language.operation import operation

__all__ = ["make_tensor"]


@operation
def make_tensor(ptr: Any, shape: Any, dtype: Any = "float32", strides: Any = None) -> Any:
    """A global tensor at the address `ptr`: an element of a T.ptr tensor (a table of addresses), or a T.ptr parameter.

    shape and strides (in elements; row-major contiguous where left out) are ints or integer values of the kernel.
    Accesses outside the shape read 0 and store nothing, as with arguments; what lies inside it must exist. Address 0
    is an error unless the tensor has no elements. What is made of parameters may stand before T.Kernel.
    """
    what = "T.make_tensor"
    builder = tracer(what)
    if builder.inside("parallel"):
        raise error(
            "make-tensor-in-parallel",
            TileSyntaxError,
            f"{what} inside T.Parallel: the iterations share one tensor",
            help="make it before the loop",
        )
    if not isinstance(ptr, Value) or ptr.dtype.name not in ("int64", "uint64"):
        raise error(
            "address",
            TileTypeError,
            f"{what}: the address must be an element of a T.ptr tensor or a T.ptr parameter, got {describe(ptr)}",
            help="declare the table as T.Tensor((n,), T.ptr)",
        )
    extents = tuple(_fixed(builder, "extent", e) for e in shape_exprs(shape, what))
    steps = None
    if strides is not None:
        steps = tuple(_fixed(builder, "stride", e) for e in shape_exprs(strides, f"{what} strides"))
        if len(steps) != len(extents):
            raise error("stride-count", TileTypeError, f"{what}: {len(extents)} extents but {len(steps)} strides")
    address = _fixed(builder, "address", to_dtype(ptr, as_dtype("int64")))
    buffer = Buffer("", slice_dtype(dtype, what), extents, "global", steps, base=address, loc=here())
    present: Expr = build.ne(address, 0)
    for e in extents:
        present = build.or_(present, build.le(e, 0))
    text = f"{what}: the address is 0"
    builder.at_start(Debug("assert", (present,), text, loc=here()), what)
    builder.at_start(Alloc(buffer, loc=here()), what)
    return BufferRef(buffer)


def _fixed(builder: Builder, name: str, e: Expr) -> Expr:
    """The value that e has now; before T.Kernel it stays the same."""
    return e if isinstance(e, (Const, Var)) or not builder.in_kernel else builder.let(name, e)
