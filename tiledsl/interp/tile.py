"""Compiles the block-collective operations: Copy, Fill, Gemm, Reduce, Scan (language.md 0.9, 0.10, 0.15)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tiledsl.conversions import Converter, converter
from tiledsl.dtypes import FLOAT32, FLOAT64, INT32, DType
from tiledsl.errors import TileIndexError, TileRuntimeError, TileTypeError
from tiledsl.interp.checks import overlap
from tiledsl.interp.options import Options
from tiledsl.interp.scope import TRACKER, Env, Fn, Scope
from tiledsl.interp.shadow import Shadowed, casting, chain
from tiledsl.ir import Buffer, Copy, Fill, Gemm, Reduce, Region, Scan, arithmetic, build
from tiledsl.ir.arithmetic import accumulator
from tiledsl.ir.buffer import describe
from tiledsl.ir.exact import gemm_chain

if TYPE_CHECKING:
    from tiledsl.interp.expr import Expressions

__all__ = ["Tiles", "reduce_array", "scan_array"]

View = Callable[[Env], Any]
_Part = tuple[list[int], list[int]]  # low, high


@dataclass(eq=False)
class Tiles:
    """The compiler of tile operations of one kernel."""

    scope: Scope
    expressions: Expressions

    def converter(self, src: DType, dst: DType) -> Converter:
        """The conversion of arrays, shadowed and packed ones included."""
        convert = casting(src, dst) if self.scope.options.shadow else converter(src, dst)
        return (lambda x: convert(np.asarray(x))) if src.is_packed else convert

    def entering(self, src: DType, dst: DType, acc: DType) -> Converter:
        """How an element of src enters a reduction into dst: by way of dst where the accumulator is another integer."""
        if not dst.is_packed or dst.is_float:
            return self.converter(src, acc)
        first, then = self.converter(src, dst), converter(dst, acc)
        return lambda x: then(first(x))

    # -- regions -----------------------------------------------------------------------------------------

    def view(self, region: Region, what: str, drop_leading: int = -1) -> View:
        """The array of a region, which must lie inside its buffer.

        drop_leading: keep only that many trailing axes (the others must have extent 1); -1 = keep all.
        """
        buffer = region.buffer
        self._usable(buffer)
        slot = self.scope.slot(buffer)
        keep = buffer.rank if drop_leading < 0 else drop_leading
        if keep > buffer.rank:
            raise TileTypeError(f"{what}: {describe(buffer)} needs {keep} axes", self.scope.where)
        first = buffer.rank - keep
        if region.whole and not first:
            return lambda env: env[slot]
        starts = [self.expressions.compile(s) for s in region.starts]
        extents = [self.expressions.compile(s) for s in region.extents]
        report = self.scope.reporter(TileIndexError, "only T.copy clips: enlarge the buffer or shrink the region")

        def box(env: Env) -> Any:
            data = env[slot]
            key: list[Any] = []
            for axis, n in enumerate(data.shape):
                start = starts[axis](env, None)
                stop = start + extents[axis](env, None)
                if start < 0 or stop > n:
                    raise report(env, f"{what}: {buffer.name}[{start}:{stop}] is out of range on axis {axis} of {n}")
                if axis < first:
                    if stop - start != 1:
                        raise report(env, f"{what}: leading axis {axis} of {buffer.name} has {stop - start} elements")
                    key.append(start)
                else:
                    key.append(slice(start, stop))
            return data[tuple(key)]

        return box

    def lanes_view(self, region: Region, what: str) -> View:
        """As `view`, for what the threads do together: of storage of each thread, the threads are the first axes."""
        slot = self.scope.slot(region.buffer)
        starts = [self.expressions.compile(s) for s in region.starts]
        extents = [self.expressions.compile(s) for s in region.extents]
        if any(self.scope.varies(s) for s in (*region.starts, *region.extents)):
            raise self.scope.not_yet(f"{what}: a region that differs between threads")

        def box(env: Env) -> Any:
            bounds = [(f(env, None), g(env, None)) for f, g in zip(starts, extents, strict=True)]
            return env[slot][(..., *(slice(a, a + n) for a, n in bounds))]

        return box

    def _usable(self, buffer: Buffer) -> None:
        if self.scope.nest is not None:
            raise self.scope.not_yet("tile operations inside T.Parallel")

    def _touch(
        self,
        f: Callable[[Env], None],
        reads: list[tuple[Buffer, View]],
        dst: tuple[Buffer, View],
        clear: Fn | None = None,
    ) -> Fn:
        """f, with its reads and its write recorded where the run tracks them. clear: a condition; where it does not
        hold, f reads dst too."""
        if not self.scope.options.tracks:

            def plain(env: Env, mask: Any) -> Any:
                f(env)
                return mask

            return plain
        report = self.scope.reporter(TileIndexError)

        def tracked(env: Env, mask: Any) -> Any:
            tracker = env[TRACKER]
            kept = [dst] if clear is not None and not clear(env, None) else []
            for buffer, view in reads + kept:
                tracker.read_view(buffer, env, view(env), report)
            target = dst[1](env)
            before = target.copy()
            f(env)
            tracker.write_view(dst[0], env, target, before, report)
            return mask

        return tracked

    # -- copy and fill -----------------------------------------------------------------------------------

    def copy(self, s: Copy) -> Fn:
        """dst[...] = cast(src[...]), clipped to both buffers."""
        src, dst = s.src.buffer, s.dst.buffer
        self._usable(src)
        self._usable(dst)
        src_slot, dst_slot = self.scope.slot(src), self.scope.slot(dst)
        src_box, dst_box = (
            _Moves([self.expressions.compile(e) for e in region.starts], axes)
            for region, axes in ((s.src, s.src_axes), (s.dst, s.dst_axes))
        )
        extents = [self.expressions.compile(e) for e in s.domain]
        options = self.scope.options
        pads = src.root.scope == "global"
        safe = src.dtype.numpy.type((src.safe or build.zero(src.dtype)).value)
        cast = self.converter(src.dtype, dst.dtype)
        pad = cast(np.asarray(safe))
        noisy = options.global_oob == "report"
        report = self.scope.reporter(TileIndexError, "name the buffer in oob_allowed if the tail is meant")
        overlaps = self.scope.reporter(TileRuntimeError, "copy through another tile: the order of elements is free")
        rank = len(extents)
        zeros = [0] * rank
        perm_src, perm_dst = _alignment(s.src_axes, rank), _alignment(s.dst_axes, rank)
        tracks = options.tracks

        def store(env: Env, value: Any, place: Any) -> None:
            if not tracks:
                place[...] = value
                return
            before = place.copy()
            place[...] = value
            env[TRACKER].write_view(dst, env, place, before, report)

        def copy(env: Env, mask: Any) -> Any:
            source, target = env[src_slot], env[dst_slot]
            domain = [f(env, None) for f in extents]
            from_key, from_part = src_box.place(env, source.shape, domain)
            to_key, to_part = dst_box.place(env, target.shape, domain)
            if noisy:
                for buffer, part in ((src, from_part), (dst, to_part)):
                    if part and buffer.root.scope == "global" and buffer.name not in options.oob_allowed:
                        held = f"{describe(buffer)} holds only {part[0]} to {part[1]} of the {domain} elements"
                        raise report(env, f"copy: {held}")
            if (
                from_part or to_part
            ):  # clipped to what lies in both buffers; a global source pads what it does not cover
                low, high = stored = to_part or (zeros, domain)
                if from_part:
                    low = [max(a, b) for a, b in zip(low, from_part[0], strict=True)]
                    high = [min(a, b) for a, b in zip(high, from_part[1], strict=True)]
                    if pads and (low, high) != stored and _nonempty(*stored):
                        store(env, pad, _aligned(_boxed(target, dst_box.part(to_key, *stored)), perm_dst))
                if not _nonempty(low, high):
                    return mask
                from_key, to_key = src_box.part(from_key, low, high), dst_box.part(to_key, low, high)
            data = _aligned(_boxed(source, from_key), perm_src)
            place = _aligned(_boxed(target, to_key), perm_dst)
            if perm_dst is not None:
                data = _last(data, place)
            if tracks:
                env[TRACKER].read_view(src, env, data, report)
                if options.conflicts == "report" and overlap(data, place):
                    raise overlaps(env, f"copy: {describe(dst)} is written where {describe(src)} is read")
            store(env, cast(data), place)
            return mask

        return copy

    def fill(self, s: Fill) -> Fn:
        """Every element of the region that exists gets the value."""
        buffer = s.dst.buffer
        self._usable(buffer)
        value = self.expressions.compile(s.value)
        view = self._clipped_view(s.dst)

        def fill_region(env: Env) -> None:
            view(env)[...] = value(env, None)

        return self._touch(fill_region, [], (buffer, view))

    def _clipped_view(self, region: Region) -> View:
        slot = self.scope.slot(region.buffer)
        if region.whole:
            return lambda env: env[slot]
        starts = [self.expressions.compile(e) for e in region.starts]
        extents = [self.expressions.compile(e) for e in region.extents]

        def view(env: Env) -> Any:
            key = []
            for f, g in zip(starts, extents, strict=True):
                start = f(env, None)
                key.append(slice(max(0, start), max(0, start + g(env, None))))
            return env[slot][tuple(key)]

        return view

    # -- gemm --------------------------------------------------------------------------------------------

    def gemm(self, s: Gemm) -> Fn:
        """c (+)= op(a) @ op(b)."""
        buffers = (s.a.buffer, s.b.buffer, s.c.buffer)
        a, b, c = (self.view(r, "gemm", 2) for r in (s.a, s.b, s.c))
        out = s.c.buffer.dtype
        acc = FLOAT64 if out.name == "float64" else FLOAT32 if out.is_float else INT32
        if not out.is_float and (s.a.buffer.dtype.is_float or s.b.buffer.dtype.is_float):
            raise TileTypeError(f"gemm: float operands need a float result, {describe(s.c.buffer)}", self.scope.where)
        clear = self.expressions.compile(s.clear)
        ta, tb = s.transpose_a, s.transpose_b
        describe_all = [describe(x) for x in buffers]
        report = self.scope.reporter(TileTypeError)
        # integers are widened by the product itself
        widen_a, widen_b = (self.converter(x.dtype, x.dtype if acc is INT32 else acc) for x in buffers[:2])
        multiply = _multiply(acc, self.scope.options)
        widen_c, narrow_c = self.converter(out, acc), self.converter(acc, out)

        def gemm(env: Env) -> None:
            x, y, z = a(env), b(env), c(env)
            x, y = x.T if ta else x, y.T if tb else y
            if x.shape[1] != y.shape[0] or z.shape != (x.shape[0], y.shape[1]):
                raise report(
                    env,
                    f"gemm: shapes do not fit: op(a) {x.shape}, op(b) {y.shape}, c {z.shape}",
                    f"operands: {', '.join(describe_all)}",
                )
            wide = widen_c(z)  # z itself where it has the accumulator's type
            multiply(widen_a(x), widen_b(y), wide, clear(env, None))
            if wide is not z:
                z[...] = narrow_c(wide)

        return self._touch(gemm, [(buffers[0], a), (buffers[1], b)], (buffers[2], c), clear)

    # -- reduce and scan ---------------------------------------------------------------------------------

    def reduce(self, s: Reduce) -> Fn:
        """dst = reduction of src along an axis, combined with the old dst unless clear."""
        src, dst = s.src.buffer, s.dst.buffer
        x, y = self.view(s.src, "reduce"), self.view(s.dst, "reduce")
        acc = accumulator(dst.dtype)
        to_acc = self.entering(src.dtype, dst.dtype, acc)
        widen, narrow = self.converter(dst.dtype, acc), self.converter(acc, dst.dtype)
        clear = self.expressions.compile(s.clear)
        op, axis, propagate = s.op, s.axis, s.nan_propagate
        combine = _combiner(op, acc, propagate)
        report = self.scope.reporter(TileTypeError)
        names = f"{describe(src)} into {describe(dst)} along axis {axis}"

        def reduce(env: Env) -> None:
            source, target = x(env), y(env)
            kept = source.shape[:axis] + source.shape[axis + 1 :]
            if target.size != math.prod(kept):
                raise report(env, f"reduce_{op}: shape {source.shape} does not reduce to {target.shape}: {names}")
            value = reduce_array(op, to_acc(source), axis, acc, propagate).reshape(target.shape)
            target[...] = narrow(value if clear(env, None) else combine(widen(target), value))

        return self._touch(reduce, [(src, x)], (dst, y), clear)

    def scan(self, s: Scan) -> Fn:
        """Inclusive running sum or maximum."""
        src, dst = s.src.buffer, s.dst.buffer
        x, y = self.view(s.src, "scan"), self.view(s.dst, "scan")
        acc = accumulator(dst.dtype)
        to_acc, narrow = self.entering(src.dtype, dst.dtype, acc), self.converter(acc, dst.dtype)
        op, axis, reverse = s.op, s.axis, s.reverse
        if op not in ("sum", "max"):
            raise self.scope.not_yet(f"the scan {op}")

        def scan(env: Env) -> None:
            value = scan_array(op, to_acc(x(env)), axis, acc, reverse)
            y(env)[...] = narrow(value)

        return self._touch(scan, [(src, x)], (dst, y))


# -- copies ----------------------------------------------------------------------------------------------------


class _Moves:
    """One side of a copy: which slice of its buffer a box of the domain touches."""

    def __init__(self, starts: list[Fn], axes: tuple[int, ...]) -> None:
        self.compiled = starts
        self.by_dim = [axes.index(d) if d in axes else -1 for d in range(len(starts))]

    def place(self, env: Env, extents: tuple[int, ...], domain: list[int]) -> tuple[tuple[Any, ...], _Part | None]:
        """The slice that the domain touches, and (low, high) of what of it is in range, None for all."""
        key: list[Any] = []
        part: _Part | None = None
        for f, axis, n in zip(self.compiled, self.by_dim, extents, strict=True):
            start = f(env, None)
            if axis < 0:
                key.append(start)
                if not 0 <= start < n:
                    part = [0] * len(domain), [0] * len(domain)
                continue
            stop = start + domain[axis]
            key.append(slice(start, stop))
            if start < 0 or stop > n:
                low, high = part = part or ([0] * len(domain), list(domain))
                low[axis], high[axis] = max(0, -start), min(high[axis], n - start)
        return tuple(key), part

    def part(self, key: tuple[Any, ...], low: list[int], high: list[int]) -> tuple[Any, ...]:
        """The slice that a part of the domain touches."""
        moved = zip(key, self.by_dim, strict=True)
        return tuple(k if axis < 0 else slice(k.start + low[axis], k.start + high[axis]) for k, axis in moved)


def _alignment(axes: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[Any, ...]] | None:
    """Permutation and new axes that bring a slice to the order of the domain; None where it is there already."""
    moving = [d for d in axes if d >= 0]
    order = sorted(moving)
    perm = tuple(order.index(d) for d in moving)
    expand = tuple(slice(None) if d >= 0 else None for d in axes)
    if perm == tuple(range(rank)):
        return None
    return perm, expand


def _boxed(data: Any, key: tuple[Any, ...]) -> Any:
    """A view of a box; data[()] of an array without axes would be a copy."""
    return data[key] if key else data


def _aligned(view: Any, alignment: tuple[tuple[int, ...], tuple[Any, ...]] | None) -> Any:
    return view if alignment is None else view.transpose(alignment[0])[alignment[1]]


def _nonempty(low: list[int], high: list[int]) -> bool:
    return all(a < b for a, b in zip(low, high, strict=True))


def _last(data: Any, place: Any) -> Any:
    """Along an axis that the destination does not move on, the last iteration's value stays."""
    key = tuple(
        slice(-1, None) if p == 1 and d > 1 else slice(None) for d, p in zip(data.shape, place.shape, strict=True)
    )
    return data[key]


# -- gemm ------------------------------------------------------------------------------------------------------


def _multiply(acc: DType, options: Options) -> Callable[[Any, Any, Any, bool], None]:
    """z (+)= x @ y in place; z of the accumulator's type."""
    if acc is INT32:
        return _multiply_int
    if options.exact:
        product = chain(gemm_chain) if options.shadow else gemm_chain

        def ascending(x: Any, y: Any, z: Any, clear: bool) -> None:
            z[...] = product(x, y, np.zeros(z.shape, z.dtype) if clear else z)

        return ascending

    def blas(x: Any, y: Any, z: Any, clear: bool) -> None:
        if clear:
            z[...] = np.matmul(x, y)
        else:
            z += np.matmul(x, y)

    return blas


def _multiply_int(x: Any, y: Any, z: Any, clear: bool) -> None:
    small = x.dtype.itemsize == 1 and y.dtype.itemsize == 1 and x.shape[1] < 2**30
    if small:  # sums of products of bytes are exact in float64, and BLAS is fast
        product = np.matmul(x.astype(np.float64), y.astype(np.float64)).astype(np.int64)
    else:
        product = np.matmul(x.astype(np.int64), y.astype(np.int64))
    wrapped = product.astype(np.int32)
    z[...] = wrapped if clear else z + wrapped


# -- reductions ------------------------------------------------------------------------------------------------

_BITS = {"bitand": np.bitwise_and, "bitor": np.bitwise_or, "bitxor": np.bitwise_xor}


def _combiner(op: str, acc: DType, propagate: bool) -> Callable[[Any, Any], Any]:
    """How an old value joins a reduction."""
    plain = arithmetic.binary(arithmetic.combining(op), acc, True)
    assert plain is not None
    if not (propagate and acc.is_float and op in ("max", "min", "absmax")):
        return plain

    def propagating(a: Any, b: Any) -> Any:
        return np.where((a != a) | (b != b), np.asarray(np.nan, a.dtype), plain(a, b))

    return propagating


def reduce_array(op: str, x: Any, axis: int, acc: DType, propagate: bool) -> Any:
    """The reduction of x (of type acc) along an axis, which disappears (language.md 0.10)."""
    if op in ("abssum", "absmax"):
        x = np.abs(x)
    if op in ("sum", "abssum"):
        return _ordered_sum(x, axis) if acc.is_float else x.sum(axis, dtype=acc.numpy)
    if op in _BITS:
        return _BITS[op].reduce(x, axis=axis)
    identity = arithmetic.identity(op, acc)
    if not acc.is_float:
        return (np.minimum if op == "min" else np.maximum).reduce(x, axis=axis, initial=identity)
    return _extreme(x, axis, identity, op == "min", propagate)


def _ordered_sum(x: Any, axis: int) -> Any:
    """16 interleaved partials, each ascending, combined 8-4-2-1."""
    x = np.moveaxis(x, axis, 0)
    n = x.shape[0]
    if n == 0:
        return np.zeros(x.shape[1:], x.dtype)
    rows, rest = divmod(n, 16)
    if rows == 0:
        return arithmetic.combine_lanes(x, np.add)
    # NumPy adds along an axis that is not the innermost one row after row (its pairwise summation is for
    # innermost axes); the 16 partials are an axis of smaller stride, so this is the ascending order.
    # It would start from +0, which a sum of -0 is not.
    partials = np.add.reduce(x[: rows * 16].reshape(rows, 16, *x.shape[1:]), axis=0, initial=-0.0)
    if rest:
        partials[:rest] += x[rows * 16 :]
    return arithmetic.combine_lanes(partials, np.add)


def _extreme(x: Any, axis: int, identity: Any, smallest: bool, propagate: bool) -> Any:
    function = np.minimum if smallest else np.maximum
    value = function.reduce(x, axis=axis, initial=identity)
    if np.isnan(value).any():  # np.fmax would give NaN for a signalling one
        value = function.reduce(np.where(np.isnan(x), identity, x), axis=axis, initial=identity)
    zero = value == 0
    if zero.any():  # of zeros, the sign decides: -0 below +0
        has = (x == 0) & (np.signbit(x) == smallest)
        sign = -0.0 if smallest else 0.0
        found = has.any(axis=axis)
        if identity == 0:
            found = np.ones_like(found)  # absmax starts at +0
        value = np.where(zero, np.where(found, sign, -sign), value).astype(x.dtype)
    if propagate:
        value = np.where((x != x).any(axis=axis), np.asarray(np.nan, x.dtype), value)
    return value


def scan_array(op: str, x: Any, axis: int, acc: DType, reverse: bool) -> Any:
    """The inclusive scan of x (of type acc), sequential along the axis."""
    if reverse:
        x = np.flip(x, axis)
    if op == "sum":
        value = np.add.accumulate(x, axis=axis, dtype=acc.numpy)
    elif isinstance(x, Shadowed):
        value = np.fmax.accumulate(x, axis=axis)
    elif acc.is_float:
        keys = arithmetic.ordered_keys(np.where(np.isnan(x), arithmetic.extremes(acc)[0], x))
        running = np.maximum.accumulate(keys, axis=axis)
        value = arithmetic.ordered_keys(running.view(acc.numpy)).view(acc.numpy)
    else:
        value = np.maximum.accumulate(x, axis=axis)
    return np.flip(value, axis) if reverse else value
