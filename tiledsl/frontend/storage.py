"""Storage as author code sees it: buffers, their elements and slices, mutable scalars."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tiledsl.analysis.symbols import row_major
from tiledsl.analysis.uniformity import varying
from tiledsl.dtypes import DType
from tiledsl.errors import TileIndexError, TileTypeError
from tiledsl.frontend.builder import current, is_tracing
from tiledsl.frontend.describe import dims, expr_text
from tiledsl.frontend.habits import advice_here
from tiledsl.frontend.linear import difference
from tiledsl.frontend.location import error, here
from tiledsl.frontend.promotion import INT32, is_number
from tiledsl.frontend.reducer import store_contribution
from tiledsl.frontend.strictness import refuse
from tiledsl.frontend.values import (
    IndexTuple,
    Value,
    Vector,
    binary,
    describe,
    index_expr,
    lanes_of,
    no_attribute,
    refuse_operators,
    to_dtype,
)
from tiledsl.ir import (
    Atomic,
    Binary,
    Buffer,
    Collective,
    Const,
    Expr,
    Load,
    Parallel,
    ReducerOp,
    Region,
    Select,
    Stmt,
    Store,
    Var,
    build,
)
from tiledsl.ir.walk import Rewriter, walk

__all__ = ["BufferRef", "Cell", "Element", "RegionRef", "VectorBufferRef", "check_repeated", "emit_store"]


def _augment(op: str) -> Callable[[Any, Any], Any]:
    """The method of `cell op= other`."""

    def method(self: Cell, other: Any) -> Cell:
        self.store(binary(op, self, other))
        return self

    return method


class Element(Value):
    """A[i, j]: a value, and the place it is read from (T.copy takes it as a head address)."""

    def __init__(self, buffer: Buffer, indices: tuple[Expr, ...]) -> None:
        load = Load(buffer, indices, loc=here())
        if is_tracing():
            current("element access").note_load(load)
        super().__init__(load)
        self.buffer, self.indices = buffer, indices


class Cell(Value):
    """A mutable scalar: T.alloc_var, or an element bound to a T.Ref parameter. Reading loads it anew.

    bound  it has a name; assigning to that name stores into it
    """

    def __init__(self, buffer: Buffer, indices: tuple[Expr, ...], bound: bool = False) -> None:
        self.buffer, self.indices, self.bound = buffer, indices, bound

    @property
    def expr(self) -> Expr:
        load = Load(self.buffer, self.indices, loc=here())
        return current("reading a variable").note_load(load)

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    def __repr__(self) -> str:
        return self.buffer.name

    def store(self, value: Any) -> None:
        """variable = value, converted to its dtype."""
        emit_store(self.buffer, self.indices, value)

    def __getitem__(self, index: Any) -> Value:
        self._only_zero(index)
        return Value(self.expr)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._only_zero(index)
        self.store(value)

    def _only_zero(self, index: Any) -> None:
        if index != 0:
            raise error("var-index", TileIndexError, f"{self.buffer.name} is a single variable; its only index is 0")

    __iadd__, __isub__, __imul__ = _augment("add"), _augment("sub"), _augment("mul")
    __itruediv__, __ifloordiv__, __imod__ = _augment("div"), _augment("floordiv"), _augment("floormod")
    __iand__, __ior__, __ixor__ = _augment("bitand"), _augment("bitor"), _augment("bitxor")
    __ilshift__, __irshift__ = _augment("shl"), _augment("shr")


class RegionRef:
    """A[i, a:b]: a box of a buffer. steps: A[a:b:2] takes every second element; then the extents count those."""

    def __init__(self, region: Region, steps: tuple[int, ...] | None = None) -> None:
        self.region, self.steps = region, steps

    @property
    def buffer(self) -> Buffer:
        return self.region.buffer

    @property
    def dtype(self) -> DType:
        return self.region.buffer.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(_to_python(e) for e in self.region.extents)

    def __iter__(self) -> Any:
        raise error("slice-iteration", TileTypeError, f"{self!r} is a slice of a buffer and cannot be iterated")

    def __repr__(self) -> str:
        return f"{self.buffer.name}[...] ({dims(self.region.extents)} {self.dtype})"

    def _misuse(self, *_: Any, **__: Any) -> Any:
        raise error(
            "slice-arithmetic",
            TileTypeError,
            f"{self!r} is a slice of a buffer; operators work on its elements",
            help=_operator_help("loop over the elements: `for i in T.Parallel(n): C[i] = A[i] + B[i]`"),
        )

    __getitem__ = _misuse
    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        no_attribute(self, name)


class Scope(str):
    """The name of a storage scope. TVM's programs get its name there by a call: `buffer.scope()`."""

    def __call__(self) -> str:
        return {"fragment": "local.fragment", "var": "local.var", "shared": "shared.dyn"}.get(self, str(self))


class BufferRef:
    """A tensor argument or an allocated tile. `shape` gives Python ints where they are known."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    @property
    def name(self) -> str:
        return self.buffer.name

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def scope(self) -> Scope:
        return Scope(self.buffer.scope)

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(_to_python(e) for e in self.buffer.shape)

    @property
    def ndim(self) -> int:
        return self.buffer.rank

    @property
    def data(self) -> Element:
        """The first element, which stands for the address of the storage."""
        return Element(self.buffer, (Const(0, INT32),) * self.buffer.rank)

    def access_ptr(self, access_mask: Any = "r", offset: Any = 0, extent: Any = None) -> Element:
        """The element at a row-major offset: what T.copy, atomics and T.ldg128 take as an address."""
        places: list[Any] = []
        rest = Value(index_expr(offset))
        for size in reversed(self.buffer.shape[1:]):
            places.append((rest % Value(size)).expr)
            rest = rest // Value(size)
        return Element(self.buffer, (*(() if not self.buffer.rank else (rest.expr,)), *reversed(places)))

    @property
    def strides(self) -> tuple[Any, ...]:
        """Strides in elements."""
        if self.buffer.strides is not None:
            return tuple(_to_python(e) for e in self.buffer.strides)
        return row_major(self.shape)

    def __repr__(self) -> str:
        return f"{self.name} ({dims(self.buffer.shape)} {self.dtype} {self.scope})"

    def __bool__(self) -> bool:
        raise error("buffer-as-bool", TileTypeError, f"{self!r} is a buffer; it is neither true nor false")

    def __iter__(self) -> Any:
        raise error(
            "buffer-iteration",
            TileTypeError,
            f"{self!r} is a buffer and cannot be iterated",
            help=_operator_help("loop over its indices: `for i in T.serial(n):`"),
        )

    def __getitem__(self, key: Any) -> Any:
        steps = tuple(self._step(k) for k in (key if isinstance(key, tuple) else (key,)))
        starts, extents = self._locate(key)
        if extents is None:
            return Element(self.buffer, starts)
        if all(step == 1 for step in steps):
            return RegionRef(Region(self.buffer, starts, extents, loc=here()))
        counts = tuple(build.ceildiv(e, step) if step > 1 else e for e, step in zip(extents, steps, strict=True))
        return RegionRef(Region(self.buffer, starts, counts, loc=here()), steps)

    def _step(self, k: Any) -> int:
        step = k.step if isinstance(k, slice) else None
        if step is None:
            return 1
        if not isinstance(step, (int, np.integer)) or step < 1:
            raise error(
                "slice-step", TileIndexError, f"the step of a slice of {self!r} is {step!r}, not an int above 0"
            )
        return int(step)

    def __setitem__(self, key: Any, value: Any) -> None:
        starts, extents = self._locate(key)
        if extents is None:
            emit_store(self.buffer, starts, value)
            return
        refused = error(
            "slice-store",
            TileTypeError,
            f"a slice of {self!r} cannot be assigned",
            help="use T.copy(source, region) or T.fill(region, value)",
        )
        places, values = _places(starts, extents), _listed(value)
        if not places or len(values) not in (1, len(places)):
            raise refused
        refuse(refused, "each thread stores its elements one by one")
        named = [Value(current("a store").let("lane", x.typed)) if isinstance(x, Value) else x for x in values]
        for k, place in enumerate(places):
            emit_store(self.buffer, place, named[k % len(named)])

    def __len__(self) -> int:
        raise error(
            "buffer-length",
            TileTypeError,
            f"{self!r} has no len()",
            help=f"use {self.name}.shape[0], which may be a symbol",
        )

    def _binary_misuse(self, *_: Any, **__: Any) -> Any:
        raise error(
            "buffer-arithmetic",
            TileTypeError,
            f"{self!r} is a buffer; operators work on its elements",
            help=_operator_help("loop over the elements: `for i, j in T.Parallel(m, n): C[i, j] = A[i, j] + B[i, j]`"),
        )

    __hash__ = object.__hash__

    def __getattr__(self, name: str) -> Any:
        no_attribute(self, name)

    def _indices(self) -> str:
        """What to write where the number of indices is wrong."""
        names = "ijklmnopqrst"[: self.ndim] or "0"
        slices = ", ".join([f"{names[0]}:{names[0]} + 4", *":" * (self.ndim - 1)])
        return f"one index or slice per dimension: {self.name}[{', '.join(names)}], {self.name}[{slices}]"

    @property
    def _advice(self) -> str:
        """What to write where a scalar is needed."""
        i = ", ".join("ijklmn"[: self.ndim]) or "0"
        return f"take its elements: `for {i} in T.Parallel({', '.join(map(str, self.shape))}):` and {self.name}[{i}]"

    def _locate(self, key: Any) -> tuple[tuple[Expr, ...], tuple[Expr, ...] | None]:
        """Starts, and extents if some index is a slice."""
        keys = key if isinstance(key, tuple) else (key,)
        rank = self.buffer.rank
        if len(keys) != rank:
            plural = "" if len(keys) == 1 else "es"
            raise error(
                "rank-mismatch",
                TileIndexError,
                f"{self!r} is {rank}-dimensional but got {len(keys)} index{plural}",
                help=key._advice if isinstance(key, IndexTuple) else self._indices(),
            )
        starts: list[Expr] = []
        extents: list[Expr] = []
        for axis, k in enumerate(keys):
            size = self.buffer.shape[axis]
            if not isinstance(k, slice):
                starts.append(self._index(k, axis, size))
                extents.append(Const(1, INT32))
                continue
            start = Const(0, INT32) if k.start is None else self._index(k.start, axis, size, end=True)
            stop = size if k.stop is None else self._index(k.stop, axis, size, end=True)
            starts.append(start)
            extents.append(self._extent(start, stop))
        return tuple(starts), tuple(extents) if any(isinstance(k, slice) for k in keys) else None

    def _extent(self, start: Expr, stop: Expr) -> Expr:
        known = difference(stop, start)
        if known is None:
            return index_expr(Value(stop) - Value(start))
        if known <= 0:
            raise error(
                "empty-slice", TileIndexError, f"the slice {expr_text(start)}:{expr_text(stop)} of {self!r} is empty"
            )
        return Const(known, INT32)

    def _index(self, k: Any, axis: int, size: Expr, end: bool = False) -> Expr:
        if isinstance(k, (int, np.integer)) and not isinstance(k, bool):
            k = int(k)
            if isinstance(size, Const):
                wrapped = k + size.value if k < 0 else k
                limit = size.value + 1 if end else size.value
                if wrapped < 0 or (wrapped >= limit and self.scope != "global"):
                    raise error(
                        "constant-index",
                        TileIndexError,
                        f"index {k} is out of range for dimension {axis} of {self!r}, which has {size.value} elements",
                        help=f"use an index from 0 to {limit - 1}" if limit else None,
                    )
                return index_expr(wrapped)
            return index_expr(Value(size) + k) if k < 0 else index_expr(k)
        return index_expr(k, f"index {axis} of {self!r}")


def _places(starts: tuple[Expr, ...], extents: tuple[Expr, ...]) -> list[tuple[Expr, ...]]:
    """The indices of a box of at most 64 elements, row-major; none where it is larger or its size is not known."""
    sizes = [e.value if isinstance(e, Const) else _MOST + 1 for e in extents]
    if math.prod(sizes) > _MOST:
        return []
    boxes = itertools.product(*map(range, sizes))
    return [tuple(index_expr(Value(s) + k) for s, k in zip(starts, box, strict=True)) for box in boxes]


def _listed(value: Any) -> list[Any]:
    """The scalars that a slice is assigned from: of another slice, of a vector, or one for all; else none."""
    if isinstance(value, RegionRef) and value.steps is None:
        region = value.region
        return [Element(region.buffer, place) for place in _places(region.starts, region.extents)]
    if isinstance(value, Vector):
        return list(value.lanes)
    return [value] if isinstance(value, Value) or is_number(value) else []


_MOST = 64  # lanes of the widest vector


def _operator_help(otherwise: str) -> str:
    found = advice_here()
    if found is None:
        return otherwise
    return found[1] + ("" if "tile" in found[1] or " " in found[0][:4] else ", element by element in T.Parallel")


def _product(a: Any, b: Any) -> Any:
    raise error(
        "tile-product",
        TileTypeError,
        f"{a!r} @ {b!r}: products of tiles have a place that they go to",
        help="C = T.alloc_fragment((m, n), T.float32); T.clear(C); T.gemm(A, B, C) adds A @ B to C",
    )


for _kind, _refuse in ((RegionRef, RegionRef._misuse), (BufferRef, BufferRef._binary_misuse)):
    refuse_operators(_kind, _refuse)
    setattr(_kind, "__matmul__", _product)  # noqa: B010


class VectorBufferRef(BufferRef):
    """A tile whose elements are vectors: in the IR a tile of scalars with one more axis, the lanes."""

    def __init__(self, buffer: Buffer, lanes: int) -> None:
        super().__init__(buffer)
        self.lanes = lanes

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype.with_lanes(self.lanes)

    @property
    def shape(self) -> tuple[Any, ...]:
        return super().shape[:-1]

    @property
    def ndim(self) -> int:
        return self.buffer.rank - 1

    def __getitem__(self, key: Any) -> Any:
        keys = (*(key if isinstance(key, tuple) else (key,)), slice(None))
        starts, extents = self._locate(keys)
        if any(isinstance(k, slice) for k in keys[:-1]):
            assert extents is not None
            return RegionRef(Region(self.buffer, starts, extents, loc=here()))
        return Vector([Element(self.buffer, (*starts[:-1], Const(k, INT32))) for k in range(self.lanes)])

    def __setitem__(self, key: Any, value: Any) -> None:
        keys = key if isinstance(key, tuple) else (key,)
        if any(isinstance(k, slice) for k in keys) or not (isinstance(value, Value) or is_number(value)):
            super().__setitem__((*keys, 0), value)  # which says what is wrong
            return
        starts, _ = self._locate((*keys, slice(None)))
        builder = current("a store")
        lanes = [x.typed if isinstance(x, Value) else x for x in lanes_of(value, self.lanes)]
        named = [Value(builder.let("lane", x)) if isinstance(x, Expr) else x for x in lanes]  # before the first store
        for k, x in enumerate(named):
            emit_store(self.buffer, (*starts[:-1], Const(k, INT32)), x)


def _to_python(e: Expr) -> Any:
    return e.value if isinstance(e, Const) else Value(e)


def emit_store(buffer: Buffer, indices: tuple[Expr, ...], value: Any) -> None:
    """buffer[indices] = value, converted to the buffer's dtype."""
    if not isinstance(value, Value) and not is_number(value):
        raise error(
            "store-value",
            TileTypeError,
            f"{describe(value)} cannot be stored into an element of {BufferRef(buffer)!r}",
            help="assign a scalar; tiles move with T.copy",
        )
    builder = current("a store")
    if buffer.root in builder.reducers:
        store_contribution(buffer, indices, value)
        return
    made = Store(buffer, indices, to_dtype(value, buffer.dtype), loc=here())
    if _updates(made) and not builder.inside("parallel"):
        builder.updates.append(made)
    builder.emit(made, "a store")


def _updates(s: Store) -> bool:
    """It may be `s[i] = f(s[i])` on shared or global memory."""
    if s.buffer.scope not in ("shared", "global"):
        return False
    for load in current("a store").sources(s.value):
        if load.buffer.root is not s.buffer.root:
            continue
        same_view = load.buffer is s.buffer
        if not same_view or all(difference(a, b) in (0, None) for a, b in zip(load.indices, s.indices, strict=True)):
            return True
    return False


def _element_text(buffer: Buffer, indices: tuple[Expr, ...]) -> str:
    return f"{buffer.name}[{', '.join(expr_text(i) for i in indices)}] ({buffer.dtype} {buffer.scope})"


def check_repeated(
    body: tuple[Stmt, ...], threads: tuple[Var, ...], count: int | None, updates: Sequence[Store]
) -> tuple[Stmt, ...]:
    """Refuses updates and atomics of shared and global memory that every thread of the block would do with the same
    values (0.3). updates: stores of the body that may read what they write. Gives the body; where leniency is asked
    for, such an update happens once, as everywhere, and such an atomic once per thread, each with an old value of its
    own."""
    if not updates and not any(isinstance(n, (Atomic, ReducerOp)) for n in walk(body)):
        return body
    found = varying(body, threads)
    for u in updates:
        if not found.partial(u) and not any(map(found.expr, (*u.indices, u.value))):
            refused = error(
                "non-uniform-effect",
                TileTypeError,
                f"every thread of the block would update {_element_text(u.buffer, u.indices)} from its own old value",
                loc=u.loc,
                help="write `for _ in T.Parallel(1):` around it so that it happens once, use threads=1, or accumulate "
                "in a T.alloc_var or fragment",
            )
            refuse(refused, "it happens once per block")
    for s in found.repeated:
        what = f"atomic {s.op}" if isinstance(s, Atomic) else f"contribution ({s.op})"
        refused = error(
            "repeated-atomic",
            TileTypeError,
            f"every thread of the block would do this {what} to {_element_text(s.buffer, s.indices)}",
            loc=s.loc,
            help="to do it once, write `if T.get_thread_binding() == 0:` or `for _ in T.Parallel(1):` around it, or "
            "use threads=1",
        )
        if isinstance(s, ReducerOp) or (s.result is None and count is None):
            raise refused
        refuse(refused, "every thread does it")
    return _EveryThread(found.repeated, count or 1).visit_block(body) if found.repeated else body


class _EveryThread(Rewriter):
    """Writes out that all threads do these statements."""

    def __init__(self, repeated: Sequence[Stmt], threads: int) -> None:
        self.repeated, self.threads = set(map(id, repeated)), threads

    def visit_stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        if id(s) not in self.repeated:
            return super().visit_stmt(s)
        if isinstance(s, Atomic) and s.result is not None:  # with an operand that the thread decides about
            rank = Var("rank", INT32, loc=s.loc)
            here_too = Binary("ge", rank, Const(0, INT32), loc=s.loc)
            assert s.value is not None
            value = Select(here_too, s.value, build.zero(s.value.dtype), loc=s.loc)
            return Collective("rank", (), rank, "block", loc=s.loc), s.replace(value=value)
        return Parallel((Var("t", INT32, loc=s.loc),), (Const(self.threads, INT32),), (s,), loc=s.loc)
