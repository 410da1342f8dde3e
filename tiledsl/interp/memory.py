"""Compiles element accesses: which elements a Load or Store touches, bounds, masks, gathers and scatters.

Two forms. A *box*: every index is uniform, or a lane variable plus a uniform offset, so that the lanes touch a slice
of the array. Anything else is a *gather* by index arrays. Checked runs take the second form only, where every cell
that is touched can be recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.errors import InternalError, TileIndexError
from tiledsl.interp.scope import TRACKER, Env, Fn, Nest, Scope
from tiledsl.ir import Binary, Buffer, Cast, Const, Expr, Load, Store, Var, build
from tiledsl.ir.buffer import describe, place_text

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Access", "Memory", "in_order"]


@dataclass
class Access:
    """One compiled access: the indices' closures and what happens out of range."""

    buffer: Buffer
    slot: int
    indices: list[Fn]
    guarded: bool  # out of range reads the safe value and is not stored; else it is an error
    safe: Any
    fail: Callable[..., Exception]
    vector: bool  # several elements: the indices have a trailing axis of vector lanes
    contiguous: int  # lanes that lie along the last dimension (Load.lanes), 1 = none
    element_vector: bool  # the buffer's elements are vectors themselves
    nest: Nest | None
    private: bool  # every lane has a copy: the array has the lane axes in front

    @property
    def scalar(self) -> bool:
        return not self.vector and not self.element_vector


@dataclass(eq=False)
class Memory:
    """The access compiler of one kernel."""

    scope: Scope
    expressions: Expressions

    # -- entry points ------------------------------------------------------------------------------------

    def load(self, e: Load) -> Fn:
        """The closure of a Load. Its arrays may be views of the buffer."""
        access = self.access(e, e.lanes)
        mask = None if e.mask is None else self.expressions.compile(e.mask)
        lanes = self.scope.varies(e)
        gather = self._gather(access, mask)
        if mask is None and not self.scope.options.tracks:
            if access.scalar and not lanes:
                return self._load_element(access, e)
            if access.scalar and not e.buffer.dtype.is_packed:
                plan = self._box(e.buffer, e.indices)
                if plan is not None:
                    return self._load_box(access, plan)
        if lanes or e.dtype.is_vector or self.scope.options.shadow:
            return gather
        storage, item = e.dtype.numpy, not e.dtype.is_float

        def uniform(env: Env, m: Any) -> Any:
            # One element for all lanes: it is read when some lane is on, and its value is no array.
            if m is not None and not np.any(m):
                return 0 if item else storage.type(0)
            value = np.asarray(gather(env, m))
            value = value[np.broadcast_to(m, value.shape)][0] if value.ndim else value[()]
            return value.item() if item else value

        return uniform

    def store(self, s: Store) -> Fn:
        """The closure of a Store; returns the mask it was given."""
        value = self.expressions.compile(s.value)
        access = self.access(s, s.value.dtype.lanes)
        mask = None if s.mask is None else self.expressions.compile(s.mask)
        scatter = self._scatter(access, mask, value)
        if mask is None and not self.scope.options.tracks:
            varies = access.private or any(map(self.scope.varies, (*s.indices, s.value)))
            if access.scalar and not varies:
                return self._store_element(access, value)
            if access.scalar and not s.buffer.dtype.is_packed:
                plan = self._box(s.buffer, s.indices)
                if plan is not None and plan.covers_all:
                    return self._store_box(access, plan, value)
        return scatter

    def access(self, node: Any, lanes: int = 1) -> Access:
        """Indices and bounds policy of a node with `buffer` and `indices`."""
        buffer: Buffer = node.buffer
        if len(node.indices) != buffer.rank:
            raise TileIndexError(
                f"{describe(buffer)} is {buffer.rank}-dimensional, but has {len(node.indices)} indices here",
                self.scope.where,
            )
        is_global = buffer.root.scope == "global"
        proved = bool(getattr(node, "proved", False))
        options = self.scope.options
        report = is_global and options.global_oob == "report" and buffer.name not in options.oob_allowed
        guarded = not proved and not report if is_global else not options.bounds
        kind = InternalError if proved else TileIndexError
        safe = (buffer.safe or build.zero(buffer.dtype)).value
        element_vector = buffer.dtype.is_vector
        vector_index = any(i.dtype.is_vector for i in node.indices)
        contiguous = 1 if element_vector or vector_index else lanes
        return Access(
            buffer,
            self.scope.slot(buffer),
            [self.expressions.index(i) for i in node.indices],
            guarded,
            buffer.dtype.numpy.type(safe),
            self.scope.reporter(kind, None if proved else "guard the access with an if, or enlarge the buffer"),
            contiguous > 1 or vector_index,
            contiguous,
            element_vector,
            self.scope.nest,
            self.scope.is_private(buffer),
        )

    # -- one element, uniform ----------------------------------------------------------------------------

    @staticmethod
    def _element(access: Access, env: Env, data: Any) -> tuple[int, ...] | None:
        """The element's indices; None where a guarded access is out of range."""
        at = tuple([f(env, None) for f in access.indices])
        for i, n in zip(at, data.shape, strict=True):
            if not 0 <= i < n:
                if access.guarded:
                    return None
                raise _out_of_range(access, env, at, data.shape)
        return at

    def _load_element(self, access: Access, e: Load) -> Fn:
        slot, safe = access.slot, access.safe
        item = not e.dtype.is_float

        def load(env: Env, mask: Any) -> Any:
            data = env[slot]
            at = self._element(access, env, data)
            value = safe if at is None else data[at]
            return value.item() if item else value

        return load

    def _store_element(self, access: Access, value: Fn) -> Fn:
        slot = access.slot

        def store(env: Env, mask: Any) -> Any:
            v = value(env, None)
            data = env[slot]
            at = self._element(access, env, data)
            if at is not None:
                data[at] = v
            return mask

        return store

    # -- boxes -------------------------------------------------------------------------------------------

    def _box(self, buffer: Buffer, indices: tuple[Expr, ...]) -> _Box | None:
        """The plan of an access whose lanes touch a slice, or None."""
        nest = self.scope.nest
        assert nest is not None
        private = self.scope.is_private(buffer)
        used: set[int] = set()
        dims: list[tuple[int, Fn | None]] = []
        for index in indices:
            form = self._axis_form(index)
            if form is None:
                return None
            var, offset = form
            axis = -1 if var is None else nest.vars.index(var)
            if axis >= 0 and (axis in used or private):
                return None
            used.add(axis)
            dims.append((axis, None if offset is None else self.expressions.index(offset)))
        return _Box(nest.rank, nest.shape_slot, private, tuple(dims))

    def _axis_form(self, e: Expr) -> tuple[Var | None, Expr | None] | None:
        """e as lane variable + uniform offset; None when it is neither uniform nor of that form. Unsigned sums are
        not: they may wrap into the buffer (i - 2 is in range from i = 2 on, but for unsigned i its offset is huge)."""
        if not self.scope.varies(e):
            return None, e
        nest = self.scope.nest
        assert nest is not None
        if isinstance(e, Var):
            return (e, None) if e in nest.vars else None
        if isinstance(e, Cast) and e.type.is_int and e.x.dtype.is_int and e.type.bits >= e.x.dtype.bits:
            form = self._axis_form(e.x)
            if form is None or form[1] is None:
                return form
            return (form[0], Cast(form[1], e.type)) if e.type.kind == "int" else None
        if isinstance(e, Binary) and e.op in ("add", "sub") and e.dtype.kind == "int":
            left, right = self._axis_form(e.a), self._axis_form(e.b)
            if left is None or right is None or (left[0] is not None and right[0] is not None):
                return None
            if e.op == "sub" and right[0] is not None:
                return None
            if e.op == "add" and left[0] is None:
                left, right = right, left
            var, offset = left
            if offset is None and e.op == "add":
                return var, right[1]
            assert right[1] is not None
            return var, Binary(e.op, Const(0, e.dtype) if offset is None else offset, right[1])
        return None

    def _load_box(self, access: Access, box: _Box) -> Fn:
        slot, guarded, safe = access.slot, access.guarded, access.safe
        perm, expand = box.to_lanes()

        def load(env: Env, mask: Any) -> Any:
            data = env[slot]
            key, part, empty = box.place(env, data.shape)
            if part is None:
                return data[key].transpose(perm)[expand]
            if not guarded:
                self._resolve(access, env, box.indices(env), mask, data.shape)
            value = np.full_like(data, safe, shape=box.lanes(env))
            if not empty:
                value[part] = data[key].transpose(perm)[expand]
            return value

        return load

    def _store_box(self, access: Access, box: _Box, value: Fn) -> Fn:
        slot, guarded = access.slot, access.guarded
        perm, expand = box.to_lanes()

        def store(env: Env, mask: Any) -> Any:
            v = value(env, mask)
            data = env[slot]
            key, part, empty = box.place(env, data.shape)
            where = mask
            if part is not None:
                if not guarded:
                    self._resolve(access, env, box.indices(env), mask, data.shape)
                if empty:
                    return mask
                v, where = _part(v, part), _part(mask, part)
            target = data[key].transpose(perm)[expand]
            if where is None:
                target[...] = v
            else:
                np.copyto(target, v, where=where, casting="unsafe")
            return mask

        return store

    # -- gathers and scatters ----------------------------------------------------------------------------

    def touched(self, access: Access, env: Env, mask: Any, vmask: Fn | None = None) -> tuple[tuple[Any, ...], Any]:
        """Indices that are safe to use, and which of them count (None = all), broadcastable to one shape (lane axes,
        vector axis). A private buffer's indices start with the lanes themselves."""
        nest = access.nest
        indices = [f(env, mask) for f in access.indices]
        rank = nest.rank if nest else 0
        if access.vector:
            indices = [_with_vector_axis(i, rank) for i in indices]
            if access.contiguous > 1:
                indices[-1] = indices[-1] + np.arange(access.contiguous)
            mask = None if mask is None else mask[..., None]
        if vmask is not None:
            own = vmask(env, None if mask is None else mask)
            if access.vector:
                own = _with_vector_axis(own, rank) if not isinstance(own, np.ndarray) or own.ndim == rank else own
            mask = own if mask is None else mask & own
        if nest is not None and access.private:
            lanes = np.ogrid[tuple(slice(n) for n in env[nest.shape_slot])]
            indices = [*(a[..., None] if access.vector else a for a in lanes), *indices]
        return self._resolve(access, env, tuple(indices), mask, env[access.slot].shape)

    @staticmethod
    def _resolve(
        access: Access, env: Env, at: tuple[Any, ...], mask: Any, extents: tuple[int, ...]
    ) -> tuple[tuple[Any, ...], Any]:
        """Indices that are safe to use, and which of them count (None = all)."""
        own = at[len(at) - access.buffer.rank :]  # the lanes of a private buffer are in range
        extents = extents[access.nest.rank if access.nest is not None and access.private else 0 :]
        inside: Any = True
        for i, n in zip(own, extents, strict=False):
            inside = inside & ((i >= 0) & (i < n))
        if np.all(inside):
            return at, mask
        bad = ~np.asarray(inside) if mask is None else np.asarray(mask) & ~np.asarray(inside)
        if not access.guarded and bad.any():
            raise _lane_error(access, env, bad, own, extents)
        good = inside if mask is None else inside & mask
        return tuple(np.where(good, i, 0) for i in at), good

    def _gather(self, access: Access, vmask: Fn | None) -> Fn:
        slot, safe, tracks = access.slot, access.safe, self.scope.options.tracks
        # lanes that the program's own mask turns off read 0, not the buffer's safe value
        zero = build.zero(access.buffer.dtype).value
        off = access.buffer.dtype.numpy.type(zero) if vmask is not None else safe

        def gather(env: Env, mask: Any) -> Any:
            data = env[slot]
            at, good = self.touched(access, env, mask, vmask)
            if tracks:
                env[TRACKER].read(access.buffer, env, data, at, good, access.fail)
            if good is None:
                return data[at]
            if data.size == 0:
                return np.full(np.broadcast_shapes(*(np.shape(i) for i in at), np.shape(good)), off, data.dtype)
            if access.element_vector:
                good = np.asarray(good)[..., None] if np.ndim(good) < data[at].ndim else good
            return np.where(good, data[at], off)

        return gather

    def _scatter(self, access: Access, vmask: Fn | None, value: Fn) -> Fn:
        slot, tracks = access.slot, self.scope.options.tracks
        nest = access.nest

        def scatter(env: Env, mask: Any) -> Any:
            v = value(env, mask)
            data = env[slot]
            at, good = self.touched(access, env, mask, vmask)
            if data.size == 0:
                return mask
            shape: tuple[int, ...] = () if nest is None else env[nest.shape_slot]
            if access.vector:
                shape = (*shape, np.shape(v)[-1] if np.ndim(v) else access.contiguous)
            if not shape and good is None:
                flat, values = at, v
            else:
                on_all, flat = in_order(at, good, shape)  # of lanes that write one element, the last one stays
                element = (data.shape[-1],) if access.element_vector else ()
                values = np.broadcast_to(v, shape + element)[on_all]
            if tracks:
                env[TRACKER].write(access.buffer, env, data, flat, values, good, shape, access.fail)
            data[flat] = values
            return mask

        return scatter


def in_order(at: tuple[Any, ...], good: Any, shape: tuple[int, ...]) -> tuple[Any, tuple[Any, ...]]:
    """(Which lanes count, the indices of those: one-dimensional, row-major)."""
    on_all = np.broadcast_to(True if good is None else good, shape)
    return on_all, tuple(np.broadcast_to(i, shape)[on_all] for i in at)


@dataclass(frozen=True)
class _Box:
    """dims: per dimension of the buffer (lane axis or -1, uniform offset or index)."""

    rank: int
    shape_slot: int
    private: bool
    dims: tuple[tuple[int, Fn | None], ...]

    @property
    def covers_all(self) -> bool:
        return self.private or {a for a, _ in self.dims if a >= 0} == set(range(self.rank))

    def to_lanes(self) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        """How the slice becomes a value with all lane axes: a permutation, then new axes."""
        if self.private:
            return tuple(range(self.rank)), (...,)
        axes = [a for a, _ in self.dims if a >= 0]
        order = sorted(axes)
        return tuple(axes.index(a) for a in order), tuple(slice(None) if a in order else None for a in range(self.rank))

    def lanes(self, env: Env) -> tuple[int, ...]:
        """Shape of the value."""
        axes = range(self.rank) if self.private else [a for a, _ in self.dims]
        return tuple(n if a in axes else 1 for a, n in enumerate(env[self.shape_slot]))

    def place(self, env: Env, extents: tuple[int, ...]) -> tuple[tuple[Any, ...], tuple[slice, ...] | None, bool]:
        """(slices of the array that are in range, the lanes they belong to (None: all), whether there are none)."""
        shape = env[self.shape_slot]
        key: list[Any] = [slice(None)] * self.rank if self.private else []
        part: list[slice] | None = None
        empty = False
        for (axis, offset), n in zip(self.dims, extents[len(key) :], strict=True):
            start = 0 if offset is None else offset(env, None)
            low, high = 0, 1 if axis < 0 else shape[axis]
            if start < 0 or start + high > n:
                low, high = max(0, -start), min(high, n - start)
                empty = empty or low >= high
                part = part or [slice(None)] * self.rank
                if axis >= 0:
                    part[axis] = slice(low, high)
            key.append(start if axis < 0 else slice(start + low, start + high))
        return tuple(key), None if part is None else tuple(part), empty

    def indices(self, env: Env) -> tuple[Any, ...]:
        """Index arrays along the lane axes (for errors)."""
        shape = env[self.shape_slot]
        out: list[Any] = []
        for axis, offset in self.dims:
            start = 0 if offset is None else offset(env, None)
            if axis < 0:
                out.append(np.full((1,) * self.rank, start))
            else:
                view = [1] * self.rank
                view[axis] = shape[axis]
                out.append((start + np.arange(shape[axis])).reshape(view))
        return tuple(out)


def _part(v: Any, part: tuple[slice, ...]) -> Any:
    """The lanes `part` of a value that broadcasts to the lanes."""
    if not isinstance(v, np.ndarray) or v.ndim == 0:
        return v
    return v[tuple(slice(None) if n == 1 else s for s, n in zip(part, v.shape, strict=True))]


def _with_vector_axis(i: Any, rank: int) -> Any:
    """A scalar per lane gets a trailing axis; a vector has it already."""
    if isinstance(i, np.ndarray):
        return i[..., None] if i.ndim == rank and rank else i
    return i


def _out_of_range(
    access: Access, env: Env, at: tuple[Any, ...], extents: tuple[int, ...], lane: tuple[int, ...] | None = None
) -> Exception:
    name = access.buffer.name
    index = ", ".join(str(int(i)) for i in at)
    message = f"{name}[{index}] is out of range: {name} is {access.buffer.dtype} of shape {tuple(extents)}"
    return access.fail(env, message, *place_text(access.buffer), lane=lane)


def _lane_error(access: Access, env: Env, bad: Any, at: tuple[Any, ...], extents: tuple[int, ...]) -> Exception:
    """The error of the first lane that is out of range."""
    bad = np.asarray(bad)
    if bad.ndim == 0:
        return _out_of_range(access, env, at, extents)
    lane = tuple(int(i) for i in np.argwhere(bad)[0])
    index = tuple(np.broadcast_to(i, bad.shape)[lane] for i in at)
    return _out_of_range(access, env, index, extents, lane[:-1] if access.vector else lane)
