"""Layouts: T.Layout, T.Fragment, T.annotate_layout. Hints for tiles; on a global tensor the order in memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.frontend.describe import expr_text
from tiledsl.frontend.location import error
from tiledsl.frontend.storage import BufferRef
from tiledsl.frontend.values import Value, describe, index_expr
from tiledsl.ir import Var, build
from tiledsl.ir.layout import LayoutData, index_names, is_bijection, physical_extents
from tiledsl.language.operation import operation

__all__ = ["Fragment", "Layout", "annotate_layout"]

_CHECKED = 1 << 22  # elements up to which every place is looked at


class Layout:
    """Where the elements of a tensor lie: `T.Layout(shape, lambda i, j: (i // 8, j, i % 8))`.

    shape       logical extents, Python ints
    forward_fn  from logical indices to indices in memory, which is row-major in their extents; made of + - * // % and
                bit operations. For a global tensor it has to be one to one.

    Raises TileTypeError for a function that is no such map.
    """

    def __init__(self, shape: Any, forward_fn: Callable[..., Any]) -> None:
        extents = tuple(shape) if isinstance(shape, (tuple, list)) else (shape,)
        if not extents or not all(isinstance(n, int) and n > 0 for n in extents):
            raise error(
                "layout-shape",
                TileTypeError,
                f"T.Layout: the shape must be Python ints above 0, got {shape!r}",
                help="take sizes from the factory's arguments or T.const",
            )
        self.shape = extents
        names = index_names(len(extents))
        variables = [Var(n, build.INT32) for n in names]
        try:
            result = forward_fn(*map(Value, variables))
        except TypeError as e:
            raise error(
                "layout-function", TileTypeError, f"T.Layout: the function does not take the indices: {e}"
            ) from e
        items = result if isinstance(result, (tuple, list)) else (result,)
        texts = tuple(expr_text(index_expr(x, "T.Layout: an index in memory")) for x in items)
        try:
            self.data: LayoutData = physical_extents(texts, extents), texts
        except (ValueError, SyntaxError, ZeroDivisionError) as e:
            raise error("layout-function", TileTypeError, f"T.Layout: {e}") from None


class Fragment:
    """How a tile is spread over the threads of a block: a hint for targets that have registers per thread."""

    def __init__(
        self,
        shape: Any,
        forward_fn: Callable[..., Any] | None = None,
        forward_thread_fn: Callable[..., Any] | None = None,
        replicate: int = 1,
        forward_index_fn: Callable[..., Any] | None = None,
    ) -> None:
        self.shape, self.forward_fn, self.replicate = shape, forward_fn, replicate
        self.forward_thread_fn, self.forward_index_fn = forward_thread_fn, forward_index_fn


@operation
def annotate_layout(layouts: dict[Any, Any]) -> None:
    """How buffers lie: {buffer: T.Layout | T.Fragment | function of the indices}.

    Of shared and fragment buffers a hint. Of a global tensor the order of its elements in memory, for the whole
    function: another kernel that reads the tensor needs the same annotation.
    """
    if not isinstance(layouts, dict):
        raise error(
            "layout-key",
            TileTypeError,
            f"T.annotate_layout takes a dict of buffers, got {layouts!r}",
            help="T.annotate_layout({A_s: ...})",
        )
    for key, layout in layouts.items():
        if not isinstance(key, BufferRef):
            raise error("layout-key", TileTypeError, f"T.annotate_layout: {describe(key)} is no buffer")
        if key.scope == "global":
            _place(key, layout)


def _place(tensor: BufferRef, layout: Any) -> None:
    b = tensor.buffer
    if b.alias_of is not None or b.base is not None or b.dtype.is_packed or b.strides is not None:
        raise error(
            "layout-tensor",
            TileTypeError,
            f"T.annotate_layout: {tensor!r} is no contiguous argument of a dtype of whole bytes",
            help="annotate the argument itself",
        )
    if callable(layout) and not isinstance(layout, (Layout, Fragment)):
        layout = Layout(tensor.shape, layout)
    if not isinstance(layout, Layout) or layout.shape != b.const_shape:
        raise error(
            "layout-global",
            TileTypeError,
            f"T.annotate_layout: {tensor!r} needs a T.Layout of its shape, got {describe(layout)}",
            help="T.Layout(A.shape, lambda i, j: ...)",
        )
    count = math.prod(layout.shape)
    memory = layout.data[0]
    if math.prod(memory) != count or (count <= _CHECKED and not is_bijection(layout.data, layout.shape)):
        raise error(
            "layout-not-one-to-one",
            TileValueError,
            f"T.annotate_layout: the map of {tensor!r} into memory of shape {memory} is not one to one",
            help="every place in memory holds one element",
        )
    if b.layout not in (None, layout.data):
        raise error("layout-twice", TileValueError, f"T.annotate_layout: {tensor!r} has another layout already")
    object.__setattr__(b, "layout", layout.data)
