"""What the library knows about arrays: their kind (NumPy or torch), dtype, strides, and the checks of arguments."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.runtime import address_of, allocate, device_of, is_torch

__all__ = [
    "accumulator", "as_int32", "check_array", "check_eps", "check_lengths", "check_size", "check_vector", "choice",
    "dense", "describe", "dtype_of", "floats", "like_kind", "has_unit_last", "matrix", "on_host", "out_dtype",
    "output", "rank", "strides", "unit_last",
]  # fmt: skip

FLOATS = ("float32", "float16", "bfloat16", "float64")


def accumulator(dtype: Any) -> DType:
    """The type in which sums over elements of `dtype` are kept and functions of them computed: at least float32."""
    return as_dtype("float64" if as_dtype(dtype).name == "float64" else "float32")


def check_array(function: str, name: str, x: Any) -> None:
    """Raises TileTypeError unless x is an array."""
    if not is_torch(x) and not isinstance(x, np.ndarray):
        raise TileTypeError(
            f"{function}: {name} is {type(x).__name__}, expected a NumPy array or a torch tensor",
            help="numpy.asarray(...) makes an array of lists and scalars",
        )


def dtype_of(function: str, name: str, x: Any, allowed: Sequence[str] = FLOATS) -> DType:
    """The dtype of argument `name`. Raises TileTypeError when x is no array or its dtype is not in `allowed`."""
    check_array(function, name, x)
    try:
        dtype = as_dtype(x.dtype)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in allowed:
        raise TileTypeError(
            f"{function}: {name} is {x.dtype} {tuple(x.shape)}, expected {' or '.join(allowed)}",
            help=f"convert it first, for example to {allowed[0]}",
        )
    return dtype


def floats(function: str, **arrays: Any) -> DType:
    """The one float dtype that all these arrays share. Raises TileTypeError otherwise."""
    first, *rest = arrays
    dtype = dtype_of(function, first, arrays[first])
    for name in rest:
        if dtype_of(function, name, arrays[name]) is not dtype:
            raise TileTypeError(
                f"{function}: {first} and {name} differ in dtype: {describe(**{k: arrays[k] for k in (first, name)})}",
                help=f"convert {name} to {dtype}",
            )
    return dtype


def rank(function: str, name: str, x: Any, dims: str) -> tuple[int, ...]:
    """The shape of x, which must have the named dimensions ("m, k"). Raises TileTypeError otherwise."""
    if not hasattr(x, "unpack"):  # packed weights have the shape of what they hold
        check_array(function, name, x)
    expected = dims.count(",") + 1
    shape = tuple(map(int, x.shape))
    if len(shape) != expected:
        raise TileTypeError(f"{function}: {name} has shape {shape}, expected {expected} dimensions [{dims}]")
    return shape


def describe(**arrays: Any) -> str:
    """'a is float32 (3, 4), b is ...' for messages."""
    return ", ".join(f"{k} is {str(x.dtype).removeprefix('torch.')} {tuple(x.shape)}" for k, x in arrays.items())


def strides(x: Any) -> tuple[int, ...]:
    """Strides in elements."""
    if is_torch(x):
        return tuple(int(s) for s in x.stride())
    return tuple(s // x.itemsize for s in x.strides)


def has_unit_last(x: Any) -> bool:
    """The last dimension of x is contiguous, and no stride is negative or not whole elements."""
    if _is_dense(x):
        return True
    extents, (unit, steps) = x.shape, (1, x.stride()) if is_torch(x) else (x.itemsize, x.strides)
    for n, step in zip(extents, steps, strict=True):
        if step % unit or (step < 0 and n > 1):
            return False
    return bool(x.ndim == 0 or extents[-1] <= 1 or steps[-1] == unit)


def unit_last(x: Any) -> Any:
    """x, copied if a kernel cannot read its rows in place."""
    if has_unit_last(x):
        return x
    return x.contiguous() if is_torch(x) else np.ascontiguousarray(x)


def matrix(x: Any) -> tuple[Any, bool]:
    """The last two dimensions of x as a kernel reads them, and whether they are stored transposed."""
    if not has_unit_last(x):
        turned = x.swapaxes(-1, -2)
        if has_unit_last(turned):
            return turned, True
    return unit_last(x), False


def out_dtype(function: str, asked: Any, out: Any, default: DType) -> DType:
    """The dtype of the result: out_dtype=, else that of out=, else the default. Raises TileTypeError."""
    if asked is None:
        return default if out is None else dtype_of(function, "out", out)
    return choice(function, "out_dtype", asked, FLOATS)


def choice(function: str, name: str, value: Any, allowed: tuple[str, ...]) -> DType:
    """The dtype that the caller named. Raises TileTypeError unless it is allowed."""
    try:
        dtype = as_dtype(value)
    except TypeError:
        dtype = None
    if dtype is None or dtype.name not in allowed:
        raise TileTypeError(f"{function}: {name} is {value!r}, expected {' or '.join(allowed)}")
    return dtype


def _same(x: Any, y: Any) -> bool:
    """x and y are the same elements in the same order."""
    if is_torch(x) is not is_torch(y) or x.shape != y.shape:
        return False
    if is_torch(x):
        return bool(x.data_ptr() == y.data_ptr() and x.stride() == y.stride() and x.dtype == y.dtype)
    return address_of(x) == address_of(y) and x.strides == y.strides and x.dtype == y.dtype


def output(
    function: str,
    out: Any,
    like: Any,
    shape: Sequence[int],
    dtype: DType,
    *,
    dense: bool = False,
    in_place: Sequence[str] = (),
    **inputs: Any,
) -> Any:
    """The array that takes the result: `out`, or a new one of the kind of `like` where that is None.

    Raises TileTypeError unless `out` is of the kind of `like`, of this shape and dtype, its last dimension (dense: all
    of it) contiguous; and TileValueError when it overlaps one of `inputs`, which the kernel reads while it writes
    (those named in in_place: unless it is that input, element for element).
    """
    if out is None:
        return allocate(tuple(shape), dtype, like)
    given = dtype_of(function, "out", out, (dtype.name,))
    if tuple(out.shape) != tuple(shape) or is_torch(out) is not is_torch(like):
        kind = "torch tensor" if is_torch(like) else "NumPy array"
        raise TileTypeError(
            f"{function}: out is a {type(out).__name__} of {given} {tuple(out.shape)}, "
            f"expected a {kind} of {dtype} {tuple(shape)}"
        )
    if not has_unit_last(out) or (dense and not _is_dense(out)):
        which = "the array" if dense else "the last dimension"
        raise TileTypeError(
            f"{function}: out has shape {tuple(shape)} and strides {strides(out)} (in elements), "
            f"but {which} must be contiguous",
            help="pass a contiguous array, or leave out= away",
        )
    for name, x in inputs.items():
        if _overlap(out, x) and not (name in in_place and _same(out, x)):
            raise TileValueError(f"{function}: out shares memory with {name}", help="pass an array of its own")
    return out


def check_vector(function: str, name: str, p: Any, x: Any) -> None:
    """Raises TileTypeError unless p is one number for each element of the last axis of x."""
    n = int(x.shape[-1])
    if rank(function, name, p, "n") != (n,):
        raise TileTypeError(
            f"{function}: {name} does not fit the last axis: {describe(x=x, **{name: p})}",
            help=f"{name} is one vector of {n} elements",
        )


def check_eps(function: str, eps: float) -> float:
    """eps as a float. Raises TileValueError unless it is a number that is not negative."""
    if not eps >= 0:
        raise TileValueError(f"{function}: eps is {eps}, expected a number that is not negative")
    return float(eps)


def _is_dense(x: Any) -> bool:
    return bool(x.is_contiguous()) if is_torch(x) else bool(x.flags.c_contiguous)


def _span(x: Any) -> tuple[int, int]:
    """First and one-past-last byte address that x touches."""
    start = int(x.data_ptr()) if is_torch(x) else address_of(x)
    size = int(x.element_size()) if is_torch(x) else int(x.itemsize)
    if 0 in x.shape:
        return start, start
    if _is_dense(x):
        return start, start + math.prod(x.shape) * size
    reach = [(n - 1) * s * size for n, s in zip(x.shape, strides(x), strict=True)]
    return start + sum(r for r in reach if r < 0), start + sum(r for r in reach if r > 0) + size


def _overlap(x: Any, y: Any) -> bool:
    if type(x) is np.ndarray is type(y):
        return np.may_share_memory(x, y)
    a, b = _span(x), _span(y)
    return max(a[0], b[0]) < min(a[1], b[1])


def dense(x: Any) -> Any:
    """x, copied unless it is row-major without gaps."""
    return x if _is_dense(x) else (x.contiguous() if is_torch(x) else np.ascontiguousarray(x))


def on_host(x: Any) -> np.ndarray[Any, Any] | None:
    """The elements as a NumPy array where they lie on the host: what a check of values may read."""
    return np.asarray(x) if device_of(x) == "cpu" else None


def as_int32(x: Any) -> Any:
    """Integers as int32, of the same kind and on the same device."""
    if not is_torch(x):
        return x.astype(np.int32, copy=False)
    return x.int()


def check_size(function: str, what: str, sizes: Any, low: int, high: int) -> None:
    """Raises TileValueError unless low <= sizes <= high, where sizes lie on the host."""
    values = on_host(sizes)
    if values is not None and values.size and not (low <= values.min() and values.max() <= high):
        bad = values.ravel()[int(np.argmax((values.ravel() < low) | (values.ravel() > high)))]
        raise TileValueError(f"{function}: {what} holds {int(bad)}, expected {low} to {high}")


def check_lengths(function: str, lengths: Any, batch: int, most: int) -> None:
    """Raises TileTypeError unless lengths are int32 [batch], TileValueError unless 0 to most (where they lie on the
    host)."""
    dtype_of(function, "lengths", lengths, ("int32",))
    if tuple(lengths.shape) != (batch,):
        raise TileTypeError(f"{function}: {describe(lengths=lengths)}, expected [{batch}]")
    check_size(function, "lengths", lengths, 0, most)


def like_kind(x: np.ndarray[Any, Any], like: Any) -> Any:
    """A NumPy array as an array of the kind and on the device of `like`."""
    if not is_torch(like):
        return x
    return sys.modules["torch"].from_numpy(x).to(like.device)
