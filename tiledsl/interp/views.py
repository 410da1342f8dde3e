"""Views of storage: aliases (possibly of another dtype), reshapes, and buffers laid out in scratch memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.analysis.symbols import row_major
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileIndexError
from tiledsl.interp.nibbles import Nibbles
from tiledsl.interp.scope import TRACKER, Env, Scope
from tiledsl.interp.shadow import Shadowed, lift, shadowed
from tiledsl.ir.buffer import Buffer

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["make_view", "view_of"]


class _Memory:
    """Lets NumPy make an array over another array's memory; keeps that array alive."""

    def __init__(self, owner: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: DType) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "strides": strides,
            "typestr": f"|V{dtype.numpy.itemsize}",
            "data": (owner.ctypes.data + offset, not owner.flags.writeable),
        }


def view_of(
    data: Any, dtype: DType, shape: tuple[int, ...], strides: tuple[int, ...], offset: int, front: int = 0
) -> Any:
    """An array of dtype over data's memory. strides and offset in elements of dtype; the first `front` axes of data
    (lanes that own a copy each) stay in front."""
    size = dtype.numpy.itemsize
    lanes = (dtype.lanes,) if dtype.is_vector else ()
    step = size * dtype.lanes
    byte_strides = (*data.strides[:front], *(s * step for s in strides), *((size,) if lanes else ()))
    memory = _Memory(data, offset * step, (*data.shape[:front], *shape, *lanes), byte_strides, dtype)
    return np.asarray(memory).view(dtype.numpy)


def make_view(scope: Scope, expressions: Expressions, buffer: Buffer) -> Callable[[Env], Any]:
    """A function of the environment that makes the array of an alias or of a scratch buffer."""
    if buffer.base is not None and buffer.scope == "global":
        return _at_address(scope, expressions, buffer)
    owner = scope.slot(buffer.alias_of) if buffer.alias_of is not None else None
    extents = [expressions.compile(e) for e in buffer.shape]
    strides = None if buffer.strides is None else [expressions.compile(e) for e in buffer.strides]
    offset = None if buffer.offset is None else expressions.compile(buffer.offset)
    base = None if buffer.base is None else expressions.compile(buffer.base)
    nest = scope.nest
    front = nest.rank if nest is not None and scope.is_private(buffer) else 0
    scratch = scope.scratch_slot
    report = scope.reporter(TileIndexError)
    dtype, name = buffer.dtype, buffer.name
    step = dtype.numpy.itemsize * dtype.lanes

    def make(env: Env) -> Any:
        data = env[scratch if owner is None else owner]
        if data is None:
            return None
        shape = tuple([f(env, None) for f in extents])
        steps = row_major(shape, dtype.is_packed) if strides is None else tuple([f(env, None) for f in strides])
        if base is not None and owner is None:  # scratch: a byte offset
            start, rest = divmod(base(env, None), step)
            if rest:
                raise report(env, f"{name} is not aligned to its elements in scratch memory")
        else:
            start = 0 if offset is None else offset(env, None)
        _check(report, env, name, data, dtype, shape, steps, start, front)
        if isinstance(data, Nibbles) or dtype.is_packed:
            return _nibble_view(data, dtype, shape, steps, start, front)
        if isinstance(data, Shadowed):
            if data.dtype != dtype.numpy or not data.flags.c_contiguous:
                raise report(env, f"the float64 shadow cannot see through {name}, a view of {data.dtype} storage")
            wide = as_dtype("float64").with_lanes(dtype.lanes)
            parts = ((data.plain, dtype), (data.value, wide), (data.bound, wide))
            return shadowed(*(view_of(part, kind, shape, steps, start, front) for part, kind in parts))
        return view_of(data, dtype, shape, steps, start, front)

    return make


def _nibble_view(
    data: Any, dtype: DType, shape: tuple[int, ...], steps: tuple[int, ...], start: int, front: int
) -> Any:
    """A view of packed elements, or of other ones over the bytes of packed ones; `start` in elements of dtype."""
    lanes = data.shape[:front]
    if isinstance(data, Nibbles):
        memory, begin, lane_steps = data.memory, data.at(()), data.grid.strides[:front]
    else:
        size = data.itemsize + sum((n - 1) * s for n, s in zip(data.shape, data.strides, strict=True))
        memory = np.asarray(_Memory(data, 0, (size,), (1,), as_dtype("uint8"))).view(np.uint8)
        begin, lane_steps = 0, tuple(2 * s for s in data.strides[:front])
    if dtype.is_packed:
        return Nibbles.over(memory, dtype, (*lanes, *shape), (*lane_steps, *steps), begin + start)
    vector = (dtype.lanes,) if dtype.is_vector else ()
    size = dtype.bits * dtype.lanes // 8
    strides = (*(s // 2 for s in lane_steps), *(s * size for s in steps), *(dtype.bytes // dtype.lanes for _ in vector))
    place = _Memory(memory, begin // 2 + start * size, (*lanes, *shape, *vector), strides, dtype)
    return np.asarray(place).view(dtype.numpy)


def _at_address(scope: Scope, expressions: Expressions, buffer: Buffer) -> Callable[[Env], Any]:
    """A function of the environment that makes an array over memory that the caller knows by its address."""
    assert buffer.base is not None
    base = expressions.compile(buffer.base)
    extents = [expressions.compile(e) for e in buffer.shape]
    strides = None if buffer.strides is None else [expressions.compile(e) for e in buffer.strides]
    dtype = buffer.dtype
    tracks, shadow = scope.options.tracks, scope.options.shadow

    def make(env: Env) -> Any:
        shape = tuple([max(0, f(env, None)) for f in extents])
        steps = row_major(shape, dtype.is_packed) if strides is None else tuple([f(env, None) for f in strides])
        count = 0 if 0 in shape else 1 + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
        size = -(-count * dtype.bits * dtype.lanes // 8)
        data = np.zeros(0, np.uint8)
        if count:
            data = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(base(env, None) % 2**64))
        made = (_nibble_view if dtype.is_packed else view_of)(data, dtype, shape, steps, 0, 0)
        if tracks:
            env[TRACKER].allocate(buffer, made, written=True)
        return lift(made) if shadow and dtype.is_float else made

    return make


def _check(
    report: Callable[..., Exception], env: Env, name: str, data: Any, dtype: DType, shape: tuple[int, ...],
    steps: tuple[int, ...], start: int, front: int,
) -> None:  # fmt: skip
    """The view must lie inside the memory it is a view of."""
    if 0 in shape:
        return
    last = start + sum((n - 1) * s for n, s in zip(shape, steps, strict=True))
    size = dtype.bits * dtype.lanes
    if isinstance(data, Nibbles):
        held = len(data.memory) // max(1, int(np.prod(data.shape[:front])))
    else:
        held = data.itemsize + sum((n - 1) * s for n, s in zip(data.shape[front:], data.strides[front:], strict=True))
    if start < 0 or (last + 1) * size > held * 8:
        raise report(env, f"view {name} of shape {shape} at element {start} is larger than the {held} bytes below it")
