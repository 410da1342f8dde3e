"""Storage and data movement: alloc_*, T.copy, T.fill, T.clear, T.reshape, T.view."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.annotations import host_expr, shape_exprs
from tiledsl.frontend.builder import current
from tiledsl.frontend.control import Tracer, tracer
from tiledsl.frontend.describe import dims, expr_text, operand_text, place_text
from tiledsl.frontend.linear import difference
from tiledsl.frontend.location import error, here
from tiledsl.frontend.loops import LoopSpec, close_loop, open_loop
from tiledsl.frontend.promotion import INT32, is_number, slice_dtype
from tiledsl.frontend.storage import BufferRef, Cell, Element, RegionRef, VectorBufferRef, emit_store
from tiledsl.frontend.values import Value, describe, index_expr, to_dtype
from tiledsl.ir import Alloc, Binary, Buffer, Const, Copy, Expr, Fill, ReducerOp, Region, build
from tiledsl.ir.walk import free_vars
from tiledsl.language.operation import hints, not_inside_parallel, operation

__all__ = [
    "alloc_fragment", "alloc_global", "alloc_local", "alloc_shared", "alloc_var", "as_region", "as_scalar", "clear",
    "copy", "fill", "paired", "reshape", "transpose", "view",
]  # fmt: skip


# -- allocation -------------------------------------------------------------------------------------------


def _alloc(what: str, shape: Any, dtype: Any, scope: str) -> BufferRef:
    extents = shape_exprs(shape, what)
    for e in extents:
        if not isinstance(e, Const):
            raise error(
                "dynamic-alloc",
                TileTypeError,
                f"{what}: the extent {expr_text(e)} is known only at run time",
                help="block-local storage has constant shapes: use Python ints (T.const in eager kernels)",
            )
        if e.value == 0:
            raise error("empty-alloc", TileValueError, f"{what}: shape {dims(extents)} has no elements")
    kind = slice_dtype(dtype, what, vectors=True)
    buffer = Buffer("", kind.scalar, (*extents, *_lanes(kind)), scope, loc=here())
    current(what).emit(Alloc(buffer, loc=here()), what)
    return _ref(buffer, kind)


def _lanes(dtype: DType) -> tuple[Expr, ...]:
    """The axis of the lanes of a vector."""
    return (Const(dtype.lanes, INT32),) if dtype.is_vector else ()


def _ref(buffer: Buffer, dtype: DType) -> BufferRef:
    return VectorBufferRef(buffer, dtype.lanes) if dtype.is_vector else BufferRef(buffer)


def _no_alloc_in_parallel(what: str) -> None:
    if tracer(what).inside("parallel"):
        raise error(
            "alloc-in-parallel",
            TileSyntaxError,
            f"{what} inside T.Parallel",
            help="allocate it before the loop, or use T.alloc_local for storage of one iteration",
        )


@operation
def alloc_shared(shape: Any, dtype: Any = "float32", scope: str = "shared.dyn") -> Any:
    """A tile in shared memory, one per block. Contents are undefined until written."""
    _no_alloc_in_parallel("T.alloc_shared")
    return _alloc("T.alloc_shared", shape, dtype, "shared")


@operation
def alloc_fragment(shape: Any, dtype: Any = "float32", scope: str = "local.fragment") -> Any:
    """A tile in registers: logically one per block, spread over its threads on a GPU. Contents are undefined."""
    _no_alloc_in_parallel("T.alloc_fragment")
    return _alloc("T.alloc_fragment", shape, dtype, "fragment")


@operation
def alloc_local(shape: Any, dtype: Any = "float32", scope: str = "local") -> Any:
    """An array of each thread (inside T.Parallel: of each iteration). Contents are undefined."""
    return _alloc("T.alloc_local", shape, dtype, "local")


@operation
def alloc_var(dtype: Any, init: Any = None, scope: str = "local.var") -> Any:
    """A mutable scalar: `v = T.alloc_var(T.int32, 0)`; then `v = e` and `v += e` store into it."""
    if isinstance(init, str):
        init = None  # T.alloc_var(dtype, "local.var")
    kind = slice_dtype(dtype, "T.alloc_var")
    buffer = Buffer("", kind, (Const(1, INT32),), "var", loc=here())
    value = None if init is None else to_dtype(as_scalar(init, "T.alloc_var: init"), kind)
    current("T.alloc_var").emit(Alloc(buffer, value, loc=here()), "T.alloc_var")
    return Cell(buffer, (Const(0, INT32),))


def as_scalar(x: Any, what: str) -> Any:
    """x, which must be a number or a scalar of the kernel."""
    if isinstance(x, Value) or is_number(x):
        return x
    help = getattr(x, "_advice", None)
    raise error("not-a-scalar", TileTypeError, f"{what} must be a number or scalar value, got {describe(x)}", help=help)


@operation
def alloc_global(shape: Any, dtype: Any = "float32", scope: str = "global") -> Any:
    """A workspace in global memory: one per launch, seen by all blocks and by all kernels of the function.

    shape: ints, symbols and integer parameters. Contents are undefined until written.
    """
    what = "T.alloc_global"
    builder = tracer(what)
    extents = tuple(host_expr(Value(n), what) for n in shape_exprs(shape, what))
    for e in extents:
        builder.check(e)
        late = next((v for v in free_vars(e) if builder.owner.get(v) is not None), None)
        if late is not None:
            raise error(
                "host-value",
                TileTypeError,
                f"{what} needs {late.name}, which has no value before the kernel runs",
                help="a workspace belongs to the whole launch: give each block a part of it",
            )
    buffer = Buffer("", slice_dtype(dtype, what), extents, "global", loc=here())
    builder.owner[buffer] = None
    builder.workspaces.append(buffer)
    return BufferRef(buffer)


# -- views ------------------------------------------------------------------------------------------------


def _view(what: str, src: Any, shape: Any, dtype: DType) -> BufferRef:
    if not isinstance(src, BufferRef):
        raise error("view-operand", TileTypeError, f"{what} takes a buffer, got {type(src).__name__} {src!r}")
    b = src.buffer
    if b.base is not None or b.layout is not None:
        raise error(
            "view-address",
            TileTypeError,
            f"{what}: {src!r} lies at an address of its own or has a layout, and has no other view",
            help="give T.make_tensor the shape and dtype that you need",
        )
    if b.strides is not None:
        raise error("view-strided", TileTypeError, f"{what}: {src!r} has explicit strides and cannot be reshaped")
    extents = (*shape_exprs(shape, what), *_lanes(dtype))
    (old, symbols), (new, others) = _bits(b.shape, b.dtype), _bits(extents, dtype.scalar)
    if old != new or symbols != others:
        has, other = f"{dims(b.shape)} {b.dtype}", f"{dims(extents)} {dtype}"
        raise error(
            "view-size",
            TileTypeError,
            f"{what}: {has} and {other} are not seen to have equally many bits"
            if symbols or others
            else f"{what}: {has} has {old} bits, {other} has {new}",
            notes=place_text(b),
        )
    made = Buffer("", dtype.scalar, extents, b.scope, alias_of=b, loc=here())
    current(what).define(made)
    return _ref(made, dtype)


def _bits(shape: tuple[Expr, ...], dtype: DType) -> tuple[int, Counter[Expr]]:
    """How many bits a buffer has: a number, times expressions."""
    total, rest = dtype.bits, Counter[Expr]()
    for axis, e in enumerate(shape):
        for factor in _factors(e):
            if isinstance(factor, Const):
                total *= factor.value
            else:
                rest[factor] += 1
        if dtype.is_packed and axis == len(shape) - 1 and isinstance(e, Const) and e.value % 2:
            total += total // e.value  # rows of packed elements begin at bytes
    return total, rest


def _factors(e: Expr) -> list[Expr]:
    return _factors(e.a) + _factors(e.b) if isinstance(e, Binary) and e.op == "mul" else [e]


@operation
def reshape(src: Any, shape: Any) -> Any:
    """The same storage with another shape (row-major order, equal number of elements)."""
    return _view("T.reshape", src, shape, src.dtype if isinstance(src, BufferRef) else INT32)


@operation
def view(src: Any, shape: Any = None, dtype: Any = None) -> Any:
    """The same storage with another shape and dtype (equal number of bits)."""
    known = isinstance(src, BufferRef)
    kind = slice_dtype(dtype, "T.view", vectors=True) if dtype is not None else src.dtype if known else INT32
    return _view("T.view", src, shape if shape is not None else src.shape if known else (), kind)


# -- regions ----------------------------------------------------------------------------------------------


def as_region(x: Any, what: str) -> Region:
    """A whole buffer or a slice of one."""
    if isinstance(x, RegionRef):
        if x.steps is not None:
            raise error(
                "stepped-slice",
                TileTypeError,
                f"{what}: {x!r} is a slice with a step, which only T.copy takes",
                help="copy it into a tile first, or loop over its elements",
            )
        return x.region
    if isinstance(x, BufferRef):
        zero = Const(0, INT32)
        return Region(x.buffer, (zero,) * x.buffer.rank, x.buffer.shape, loc=here())
    if isinstance(x, Cell):
        return Region(x.buffer, x.indices, (Const(1, INT32),) * len(x.indices), loc=here())
    hint = None
    if isinstance(x, Element):
        hint = f"an element is one scalar; give a slice: {x.buffer.name}[i:i + 64, ...]"
    raise error(
        "not-a-tile",
        TileTypeError,
        f"{what} must be a buffer or a slice of one, got {describe(x)}",
        help=hint
        or "an argument of the kernel is a T.Tensor parameter, and T.alloc_shared or T.alloc_fragment makes a tile",
    )


@operation
def fill(dst: Any, value: Any) -> None:
    """Every element of the buffer or slice gets the value, converted to its dtype."""
    _fill("T.fill", dst, value)


@operation
def clear(dst: Any) -> None:
    """Every element of the buffer or slice becomes 0."""
    _fill("T.clear", dst, 0)


def _fill(what: str, dst: Any, value: Any) -> None:
    if isinstance(dst, (Cell, Element)):
        emit_store(dst.buffer, dst.indices, as_scalar(value, f"{what}: value"))
        return
    region = as_region(dst, f"{what}: dst")
    builder = not_inside_parallel(what)
    stored = to_dtype(as_scalar(value, f"{what}: value"), region.buffer.dtype)
    op = builder.reducers.get(region.buffer)
    if op is None:
        builder.emit(Fill(region, stored, loc=here()), what)
        return
    if not region.whole or (op == "sum" and not build.is_const(stored, 0)):
        raise error(
            "reducer-fill",
            TileValueError,
            f"{what}: a reducer starts as a whole, and a sum at 0: {operand_text(region)}",
            help=f"T.reducer_init({region.buffer.name}, start) gives a sum another start",
        )
    builder.emit(ReducerOp("init", op, region.buffer, (), stored, loc=here()), what)


# -- copy -------------------------------------------------------------------------------------------------

_CLOSENESS = {"fragment": 2, "local": 2, "var": 2, "shared": 1, "global": 0}


@operation
def copy(
    src: Any, dst: Any, coalesced_width: int | None = None, disable_tma: bool | None = None,
    eviction_policy: Any = None, prefer_instruction: Any = None, annotations: dict[str, Any] | None = None,
    loop_layout: Any = None,
) -> None:  # fmt: skip
    """dst = src, element by element, converted to dst's dtype.

    Each side is a buffer, a slice `A[i, a:b]` or `A[i, a:b:2]`, or an element `A[i, j]` that names the corner of a
    box as large as the other side. Global memory out of range reads 0 (or the annotated safe value); stores out of
    range are skipped. The keywords are hints.

    Raises TileTypeError when the two boxes provably differ in size.
    """
    if isinstance(src, Element) and isinstance(dst, (Element, Cell)):
        emit_store(dst.buffer, dst.indices, src)
        return
    if isinstance(dst, Cell) and isinstance(src, Cell):
        dst.store(src)
        return
    builder = not_inside_parallel("T.copy")
    given = hints(coalesced_width=coalesced_width, disable_tma=disable_tma, eviction_policy=eviction_policy)
    made = paired(src, dst, "T.copy", given)
    steps = [x.steps if isinstance(x, RegionRef) else None for x in (src, dst)]
    if steps == [None, None]:
        builder.emit(made, "T.copy")
    else:
        _copy_stepped(builder, made, steps)


def _copy_stepped(builder: Tracer, s: Copy, steps: list[tuple[int, ...] | None]) -> None:
    """A copy between slices with steps: element by element."""
    nest = open_loop(builder, LoopSpec.nest("T.copy", "parallel", tuple(map(Value, s.domain))), ())

    def element(r: Region, axes: tuple[int, ...], step: tuple[int, ...] | None) -> Element:
        at = [Value(e) for e in r.starts]
        for v, axis in zip(nest.vars, axes, strict=True):
            at[axis] = at[axis] + Value(v) * (1 if step is None else step[axis])
        return Element(r.buffer, tuple(index_expr(v) for v in at))

    value = element(s.src, s.src_axes, steps[0])
    place = element(s.dst, s.dst_axes, steps[1])
    emit_store(place.buffer, place.indices, value)
    close_loop(builder, nest)


def paired(src: Any, dst: Any, what: str, given: tuple[tuple[str, Any], ...] = ()) -> Copy:
    """The copy from src to dst: which boxes, and how their dimensions go together."""
    a, b = _side(src, f"{what}: src"), _side(dst, f"{what}: dst")
    if isinstance(src, Element):
        a = _inherit(a, b, what)
    elif isinstance(dst, Element):
        b = _inherit(b, a, what)
    return _aligned(*_broadcast(a, b, what), what, given)


def _moving(r: Region) -> list[int]:
    """Dimensions whose extent is not the constant 1."""
    return [i for i, e in enumerate(r.extents) if not _is_one(e)]


def _is_one(e: Expr) -> bool:
    return isinstance(e, Const) and e.value == 1


def _side(x: Any, what: str) -> Region:
    """One side of a copy; an element is a corner, without extents yet."""
    if isinstance(x, RegionRef):
        return x.region
    return Region(x.buffer, x.indices, ()) if isinstance(x, Element) else as_region(x, what)


def _inherit(corner: Region, box: Region, what: str) -> Region:
    """The corner's box: the other side's extents, right-aligned."""
    rank = len(corner.starts)
    extents = list(box.extents)
    while len(extents) > rank and _is_one(extents[0]):
        extents.pop(0)
    if len(extents) > rank:
        extents = [e for e in extents if not _is_one(e)]
    if len(extents) > rank:
        raise error(
            "copy-rank",
            TileTypeError,
            f"{what}: {corner.buffer.name} is {rank}-dimensional and cannot hold a box of {dims(box.extents)}",
            notes=place_text(corner.buffer),
        )
    return corner.replace(extents=(*[Const(1, INT32)] * (rank - len(extents)), *extents))


def _broadcast(a: Region, b: Region, what: str) -> tuple[Region, Region]:
    """Where the counts of moving dimensions differ: right-aligned, an extent of 1 takes the other side's."""
    if len(_moving(a)) == len(_moving(b)):
        return a, b
    left, right = list(a.extents), list(b.extents)
    for k in range(1, min(len(left), len(right)) + 1):
        if _is_one(left[-k]):
            left[-k] = right[-k]
        elif _is_one(right[-k]):
            right[-k] = left[-k]
    a, b = a.replace(extents=tuple(left)), b.replace(extents=tuple(right))
    if len(_moving(a)) != len(_moving(b)):
        raise error(
            "copy-shape",
            TileTypeError,
            f"{what}: the shapes do not match: {operand_text(a)} -> {operand_text(b)}",
            notes=place_text(a.buffer) + place_text(b.buffer),
            help="slice both sides to the same box",
        )
    return a, b


def _aligned(a: Region, b: Region, what: str, given: tuple[tuple[str, Any], ...]) -> Copy:
    """The copy over the moving dimensions, paired in order; the side closer to the registers gives the extents."""
    src_axes, dst_axes = _moving(a), _moving(b)
    closer_is_dst = _CLOSENESS[b.buffer.scope] > _CLOSENESS[a.buffer.scope]
    domain: list[Expr] = []
    left, right = list(a.extents), list(b.extents)
    for i, j in zip(src_axes, dst_axes, strict=True):
        if difference(left[i], right[j]) not in (0, None):
            raise error(
                "copy-extent",
                TileTypeError,
                f"{what}: extent {expr_text(left[i])} of the source meets {expr_text(right[j])} of the destination: "
                f"{operand_text(a)} -> {operand_text(b)}",
                notes=place_text(a.buffer) + place_text(b.buffer),
                help="slice both sides to the same box",
            )
        left[i] = right[j] = right[j] if closer_is_dst else left[i]
        domain.append(left[i])
    if not domain:  # one element each
        domain, src_axes, dst_axes = [Const(1, INT32)], [len(left) - 1], [len(right) - 1]
    return Copy(
        Region(a.buffer, a.starts, tuple(left), loc=here()),
        Region(b.buffer, b.starts, tuple(right), loc=here()),
        tuple(domain),
        tuple(src_axes),
        tuple(dst_axes),
        annotations=given,
        loc=here(),
    )


@operation
def transpose(src: Any, dst: Any) -> None:
    """dst[j, i] = src[i, j], converted to dst's dtype: src [M, N], dst [N, M], block-local matrices or slices."""
    what = "T.transpose"
    builder = not_inside_parallel(what)
    a, b = as_region(src, f"{what}: src"), as_region(dst, f"{what}: dst")
    rows, columns = _moving_pair(a), _moving_pair(b)
    fits = all(difference(a.extents[i], b.extents[j]) in (0, None) for i, j in zip(rows, columns[::-1], strict=True))
    if not fits or a.buffer.root is b.buffer.root:
        raise error(
            "transpose-shape",
            TileTypeError,
            f"{what}: {operand_text(b)} does not hold the transpose of {operand_text(a)}",
            notes=place_text(b.buffer),
            help="src is [M, N], dst another matrix [N, M]",
        )
    domain = tuple(a.extents[i] for i in rows)
    builder.emit(Copy(a, b, domain, rows, columns[::-1], loc=here()), what)


def _moving_pair(r: Region) -> tuple[int, int]:
    """The two dimensions of a matrix: those that move, or the last two."""
    moving, rank = _moving(r), len(r.extents)
    if rank < 2 or len(moving) > 2:
        raise error("transpose-rank", TileTypeError, f"T.transpose takes matrices: {operand_text(r)}")
    first, second = moving if len(moving) == 2 else (rank - 2, rank - 1)
    return first, second
