"""Checks of the arguments that all functions of attention share."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays

__all__ = ["check_heads", "check_layout", "check_scale", "check_sink", "checked_bounds", "prepare", "window_limits"]

LAYOUTS = {"bshd": "batch, seq, heads, head_dim", "bhsd": "batch, heads, seq, head_dim"}


def check_layout(function: str, layout: str) -> str:
    """The names of the dimensions of a layout. Raises TileValueError for an unknown one."""
    if layout not in LAYOUTS:
        raise TileValueError(f"{function}: layout is {layout!r}, expected 'bshd' or 'bhsd'")
    return LAYOUTS[layout]


def prepare(function: str, dims: str, q: Any, k: Any, v: Any, out: Any) -> tuple[DType, Any]:
    """The common dtype, and the array that takes the result; ranks checked."""
    dtype = arrays.floats(function, q=q, k=k, v=v)
    for name, x in (("q", q), ("k", k), ("v", v)):
        arrays.rank(function, name, x, dims)
    return dtype, arrays.output(function, out, q, q.shape, dtype, q=q, k=k, v=v)


def check_heads(function: str, dims: str, Q: Any, K: Any, V: Any, given: tuple[Any, Any, Any]) -> None:
    """Heads and head_dim of [batch, heads, rows, head_dim] views fit; messages show the arrays as given."""
    q, k, v = given
    if K.shape != V.shape or K.shape[3] != Q.shape[3]:
        raise TileTypeError(
            f"{function}: shapes do not fit: {arrays.describe(q=q, k=k, v=v)}",
            help=f"all are [{dims}]; k and v have one shape, and the head_dim of q",
        )
    heads, kv_heads, head_dim = Q.shape[1], K.shape[1], Q.shape[3]
    if head_dim == 0 or (heads and (kv_heads == 0 or heads % kv_heads)):
        raise TileTypeError(
            f"{function}: {heads} query heads, {kv_heads} key heads, head_dim {head_dim}",
            help="the number of query heads is a multiple of the number of key heads, and head_dim is not 0",
        )


def check_scale(function: str, scale: float | None, head_dim: int) -> float:
    """The scale, by default 1 / sqrt(head_dim). Raises TileValueError unless it is finite."""
    value = 1.0 / math.sqrt(head_dim) if scale is None else float(scale)
    if not math.isfinite(value):
        raise TileValueError(f"{function}: scale is {value}, expected a finite number")
    return value


def window_limits(function: str, window: Any, causal: bool, longest: int) -> tuple[int, int] | None:
    """(left, right) with numbers on both sides and causal folded in, or None where causal says all.

    `longest` is no limit for sequences up to that length. Raises TileValueError for anything but two numbers >= 0.
    """
    if window is None:
        return None
    try:
        left, right = (longest if w is None else int(w) for w in window)
    except (TypeError, ValueError):
        left = right = -1
    if left < 0 or right < 0:
        raise TileValueError(
            f"{function}: window is {window!r}, expected (left, right), two numbers that are not negative",
            help="None in place of a number: no limit on that side",
        )
    if left >= longest and (causal or right >= longest):
        return None
    return min(left, longest), 0 if causal else min(right, longest)


def check_sink(function: str, sink: Any, heads: int, dtype: DType) -> Any:
    """The sinks, contiguous. Raises TileTypeError unless they are None or [heads], of the type of sums over dtype."""
    if sink is None:
        return None
    arrays.dtype_of(function, "sink", sink, (arrays.accumulator(dtype).name,))
    if arrays.rank(function, "sink", sink, "heads") != (heads,):
        raise TileTypeError(f"{function}: {arrays.describe(sink=sink)}, expected one number for each of {heads} heads")
    return arrays.dense(sink)


def checked_bounds(function: str, name: str, bounds: Any, rows: int) -> Any:
    """The bounds as int32. Raises TileTypeError or TileValueError unless they ascend from 0 to `rows`."""
    arrays.dtype_of(function, name, bounds, ("int32", "int64"))
    arrays.rank(function, name, bounds, "sequences + 1")
    ends = np.asarray(bounds)
    if len(ends) == 0 or ends[0] != 0 or ends[-1] != rows or (np.diff(ends) < 0).any():
        raise TileValueError(
            f"{function}: {name} must ascend from 0 to {rows}, the number of rows, "
            f"got {np.array2string(ends, threshold=8)}",
            help="numpy.cumsum of the lengths, with 0 in front",
        )
    return np.ascontiguousarray(ends, np.int32)
