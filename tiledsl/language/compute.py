"""Tile arithmetic: T.gemm, the reductions and the scans."""

from __future__ import annotations

from enum import Enum
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import TileNotImplementedError, TileTypeError, TileValueError
from tiledsl.frontend.describe import dims, operand_text, place_text
from tiledsl.frontend.linear import difference
from tiledsl.frontend.location import error, here
from tiledsl.frontend.values import as_bool
from tiledsl.ir import Const, Expr, Gemm, Reduce, Region, Scan
from tiledsl.language.memory import as_region
from tiledsl.language.operation import hints, not_inside_parallel, operation

__all__ = [
    "GemmWarpPolicy", "cummax", "cumsum", "gemm", "gemm_v2", "reduce_absmax", "reduce_abssum", "reduce_bitand",
    "reduce_bitor", "reduce_bitxor", "reduce_max", "reduce_min", "reduce_sum",
]  # fmt: skip


class GemmWarpPolicy(Enum):
    """How a GPU spreads a T.gemm over its warps; a hint."""

    Square = 0
    FullRow = 1
    FullCol = 2


@operation
def gemm(
    A: Any, B: Any, C: Any, transpose_A: bool = False, transpose_B: bool = False,
    policy: GemmWarpPolicy = GemmWarpPolicy.Square, clear_accum: Any = False, k_pack: int = 1, mbar: Any = None,
    annotations: dict[str, Any] | None = None, precision: str = "ieee",
) -> None:  # fmt: skip
    """C += op(A) @ op(B) over the last two dimensions; leading extents must be 1.

    A [M, K] ([K, M] with transpose_A), B [K, N] ([N, K] with transpose_B): shared or fragment, of one dtype, or two
    floats or two integers of at most 8 bits. C [M, N]: float32, float16 or bfloat16 for float operands of at most 32
    bits, float64 for float64, int32 for integers of at most 8 bits. clear_accum: bool or condition; start from 0.
    policy and k_pack are hints. precision "tf32" allows GPUs to round float32 operands to 11 bits first (TF32), which
    is much faster; other targets, and the reference, stay IEEE.

    Raises TileTypeError when the shapes or dtypes do not go together, TileValueError for other words of precision.
    """
    builder = not_inside_parallel("T.gemm")
    if mbar is not None:
        raise error(
            "hardware-only",
            TileNotImplementedError,
            "T.gemm(mbar=...) is hardware-only: it signals products in tensor memory, which only some GPUs have",
            help="leave it out: the product is there when T.gemm returns",
        )
    a, b, c = (as_region(x, f"T.gemm: {n}") for x, n in ((A, "A"), (B, "B"), (C, "C")))
    for r in (a, b, c):
        _check_matrix(r)
    (am, ak), (bk, bn), (cm, cn) = _matrix(a, transpose_A), _matrix(b, transpose_B), r_last(c)
    an, bnm, cnm = (r.buffer.name for r in (a, b, c))
    _check_equal("gemm-inner", "inner sizes", (an, "K", ak, a), (bnm, "K", bk, b), _swap_help(a, b, transpose_B))
    _check_equal(
        "gemm-rows", "the numbers of rows", (an, "M", am, a), (cnm, "M", cm, c), f"give {cnm} {dims((am,))} rows"
    )
    _check_equal(
        "gemm-columns",
        "the numbers of columns",
        (bnm, "N", bn, b),
        (cnm, "N", cn, c),
        f"give {cnm} {dims((bn,))} columns",
    )
    _check_dtypes(a, b, c)
    if c.buffer.root in (a.buffer.root, b.buffer.root):
        raise error(
            "gemm-alias",
            TileValueError,
            f"T.gemm: {operand_text(c)} is both the result and an operand",
            notes=place_text(c.buffer),
            help="accumulate into a fragment of its own (T.alloc_fragment)",
        )
    builder.emit(
        Gemm(
            a,
            b,
            c,
            as_bool(clear_accum, "T.gemm: clear_accum"),
            bool(transpose_A),
            bool(transpose_B),
            _precision(precision, a),
            annotations=hints(policy=policy.name if isinstance(policy, GemmWarpPolicy) else None),
            loc=here(),
        ),
        "T.gemm",
    )


gemm_v2 = gemm


def _precision(given: Any, a: Region) -> str:
    if given not in ("ieee", "tf32"):
        raise error(
            "gemm-precision", TileValueError, f'T.gemm: precision is {given!r}; it is "ieee" (the default) or "tf32"'
        )
    if given == "tf32" and a.buffer.dtype.name != "float32":
        raise error(
            "gemm-precision",
            TileTypeError,
            f'T.gemm: precision="tf32" is for float32 operands: {operand_text(a)}',
            notes=place_text(a.buffer),
            help="leave it out",
        )
    return str(given)


def r_last(r: Region) -> tuple[Expr, Expr]:
    """The last two extents."""
    return r.extents[-2], r.extents[-1]


def _matrix(r: Region, transposed: bool) -> tuple[Expr, Expr]:
    rows, columns = r_last(r)
    return (columns, rows) if transposed else (rows, columns)


def _check_matrix(r: Region) -> None:
    if len(r.extents) < 2 or any(not (isinstance(e, Const) and e.value == 1) for e in r.extents[:-2]):
        raise error(
            "gemm-rank",
            TileTypeError,
            f"T.gemm needs matrices: {operand_text(r)}",
            notes=place_text(r.buffer),
            help="slice it down to its last two dimensions"
            if len(r.extents) > 2
            else "a vector is a matrix of one row: T.reshape(x, (1, n)); or multiply in T.Parallel and T.reduce_sum",
        )
    for e in r_last(r):
        if not isinstance(e, Const):
            raise error(
                "gemm-dynamic",
                TileTypeError,
                f"T.gemm needs constant sizes: {operand_text(r)}",
                help="copy a tile of constant size into shared memory first",
            )
    if r.buffer.scope not in ("shared", "fragment", "local"):
        raise error(
            "gemm-scope",
            TileTypeError,
            f"T.gemm works on shared, fragment and local buffers: {operand_text(r)}",
            help="copy the tile into shared memory (T.alloc_shared, T.copy) first",
        )


_Named = tuple[str, str, Expr, Region]


def _check_equal(ident: str, what: str, x: _Named, y: _Named, help: str | None) -> None:
    if difference(x[2], y[2]) == 0:
        return
    sides = ", ".join(f"{name} is {dims(r_last(r))} ({label}={dims((e,))})" for name, label, e, r in (x, y))
    notes = place_text(x[3].buffer) + place_text(y[3].buffer)
    raise error(ident, TileTypeError, f"gemm: {what} differ: {sides}", notes=notes, help=help)


def _swap_help(a: Region, b: Region, transpose_b: bool) -> str | None:
    k = dims((a.extents[-1],))
    if not transpose_b and difference(a.extents[-1], b.extents[-1]) == 0:
        return f"pass transpose_B=True, or give {b.buffer.name} {k} rows"
    if transpose_b and difference(a.extents[-1], b.extents[-2]) == 0:
        return "drop transpose_B=True"
    return f"give {b.buffer.name} an inner size of {k}"


def _accumulators(operand: DType) -> tuple[str, ...]:
    if operand.name == "float64":
        return ("float64",)
    if operand.is_float:
        return ("float32", "float16", "bfloat16")
    return ("int32",) if operand.is_int and operand.bits <= 8 else ()


def _mix(a: DType, b: DType) -> bool:
    """Operands of 8 bits and less need not be of one dtype: their products are exact."""
    return a.bits <= 8 and b.bits <= 8 and a.is_float == b.is_float and not (a.is_bool or b.is_bool)


def _check_dtypes(a: Region, b: Region, c: Region) -> None:
    notes = place_text(a.buffer) + place_text(b.buffer) + place_text(c.buffer)
    if a.buffer.dtype is not b.buffer.dtype and not _mix(a.buffer.dtype, b.buffer.dtype):
        raise error(
            "gemm-operand-dtypes",
            TileTypeError,
            f"gemm: the operands differ in dtype: {operand_text(a)}, {operand_text(b)}",
            notes=notes,
            help="T.copy converts: allocate both tiles with one dtype",
        )
    allowed = _accumulators(a.buffer.dtype)
    if not allowed:
        raise error(
            "gemm-dtype", TileTypeError, f"gemm: operands of dtype {a.buffer.dtype} are not multiplied", notes=notes
        )
    if c.buffer.dtype.name not in allowed:
        raise error(
            "gemm-result-dtype",
            TileTypeError,
            f"gemm: {a.buffer.dtype} operands accumulate in {' or '.join(allowed)}, not in {operand_text(c)}",
            notes=place_text(c.buffer),
            help=f"allocate {c.buffer.name} with dtype {allowed[0]}",
        )


# -- reductions -------------------------------------------------------------------------------------------


def _reduce(op: str, src: Any, out: Any, dim: Any, clear: Any, nan_propagate: bool = False) -> None:
    what = f"T.reduce_{op}"
    builder = not_inside_parallel(what)
    s, d = as_region(src, f"{what}: buffer"), as_region(out, f"{what}: out")
    axis = _axis(what, s, d, dim)
    kept = s.extents[:axis] + s.extents[axis + 1 :]
    one = (Const(1, s.extents[axis].dtype),)
    wanted = [kept, s.extents[:axis] + one + s.extents[axis + 1 :]] if kept else [one]
    if not any(
        len(w) == len(d.extents) and all(difference(x, y) == 0 for x, y in zip(w, d.extents, strict=True))
        for w in wanted
    ):
        raise error(
            "reduce-shape",
            TileTypeError,
            f"{what}: reducing dimension {axis} of {operand_text(s)} "
            f"gives {' or '.join(dims(w) for w in wanted)}, not {operand_text(d)}",
            notes=place_text(d.buffer),
        )
    if op.startswith("bit") and not (s.buffer.dtype.is_int and d.buffer.dtype.is_int):
        raise error("reduce-bits", TileTypeError, f"{what} takes integers: {operand_text(s)}, {operand_text(d)}")
    if s.buffer.root is d.buffer.root:
        raise error("reduce-alias", TileValueError, f"{what}: {s.buffer.name} is both source and result")
    condition = as_bool(clear, f"{what}: clear")
    builder.emit(Reduce(op, s, d, axis, condition, bool(nan_propagate), loc=here()), what)


def _axis(what: str, src: Region, dst: Region, dim: Any) -> int:
    """The dimension along which block-local tiles are reduced or scanned."""
    rank = len(src.extents)
    if not isinstance(dim, int) or not -rank <= dim < rank:
        raise error(
            "reduce-dim",
            TileValueError,
            f"{what}: there is no dimension {dim!r} in {operand_text(src)}",
            help=f"dim is -{rank} to {rank - 1}",
        )
    for r in (src, dst):
        if r.buffer.scope == "global":
            raise error(
                "reduce-scope",
                TileTypeError,
                f"{what} works on block-local buffers: {operand_text(r)}",
                help="copy the tile into shared memory or a fragment first",
            )
    return dim % rank


@operation
def reduce_sum(buffer: Any, out: Any, dim: int = -1, clear: Any = True, batch: int = 1) -> None:
    """out = sum of buffer over `dim`; out has buffer's shape without dim, or with 1 there.

    clear=False adds to out's old value. Order and rounding: language.md 0.10. batch is a hint.
    """
    _reduce("sum", buffer, out, dim, clear)


@operation
def reduce_max(
    buffer: Any, out: Any, dim: int = -1, clear: Any = True, batch: int = 1, nan_propagate: bool = False
) -> None:
    """out = largest element over `dim` (-inf or the smallest integer when there is none); NaN is ignored unless
    nan_propagate. clear=False includes out's old value."""
    _reduce("max", buffer, out, dim, clear, nan_propagate)


@operation
def reduce_min(
    buffer: Any, out: Any, dim: int = -1, clear: Any = True, batch: int = 1, nan_propagate: bool = False
) -> None:
    """out = smallest element over `dim`; like `reduce_max`."""
    _reduce("min", buffer, out, dim, clear, nan_propagate)


@operation
def reduce_absmax(
    buffer: Any, out: Any, dim: int = -1, clear: Any = True, batch: int = 1, nan_propagate: bool = False
) -> None:
    """out = largest absolute value over `dim`, 0 when there is none; like `reduce_max`."""
    _reduce("absmax", buffer, out, dim, clear, nan_propagate)


@operation
def reduce_abssum(buffer: Any, out: Any, dim: int = -1, batch: int = 1) -> None:
    """out = sum of absolute values over `dim`."""
    _reduce("abssum", buffer, out, dim, True)


@operation
def reduce_bitand(buffer: Any, out: Any, dim: int = -1, clear: Any = True, batch: int = 1) -> None:
    """out = bitwise and over `dim`; integers."""
    _reduce("bitand", buffer, out, dim, clear)


@operation
def reduce_bitor(buffer: Any, out: Any, dim: int = -1, clear: Any = True, batch: int = 1) -> None:
    """out = bitwise or over `dim`; integers."""
    _reduce("bitor", buffer, out, dim, clear)


@operation
def reduce_bitxor(buffer: Any, out: Any, dim: int = -1, clear: Any = True, batch: int = 1) -> None:
    """out = bitwise exclusive or over `dim`; integers."""
    _reduce("bitxor", buffer, out, dim, clear)


# -- scans ------------------------------------------------------------------------------------------------


def _scan(op: str, src: Any, dst: Any, dim: Any, reverse: bool) -> None:
    what = f"T.cum{op}"
    builder = not_inside_parallel(what)
    s = as_region(src, f"{what}: src")
    d = s if dst is None else as_region(dst, f"{what}: dst")
    axis = _axis(what, s, d, dim)
    same = len(s.extents) == len(d.extents)
    if not same or any(difference(x, y) != 0 for x, y in zip(s.extents, d.extents, strict=True)):
        raise error(
            "scan-shape",
            TileTypeError,
            f"{what}: {operand_text(s)} and {operand_text(d)} differ in shape",
            notes=place_text(d.buffer),
        )
    if s.buffer.root is d.buffer.root and (s.buffer is not d.buffer or s.starts != d.starts):
        raise error(
            "scan-alias",
            TileValueError,
            f"{what}: source and result overlap in {s.buffer.name}",
            help="scan in place (leave dst out), or into another tile",
        )
    if s.buffer.dtype.is_bool or d.buffer.dtype.is_bool:
        raise error("scan-dtype", TileTypeError, f"{what} takes numbers: {operand_text(s)}, {operand_text(d)}")
    builder.emit(Scan(op, s, d, axis, bool(reverse), loc=here()), what)


@operation
def cumsum(src: Any, dst: Any = None, dim: int = 0, reverse: bool = False) -> None:
    """dst = running sum of src along `dim`, each element included; from the end when reverse.

    src and dst are block-local buffers or slices of one shape; dst=None works in place. Elements are added one after
    the other in dst's dtype, at least float32, and each sum is rounded to dst's dtype.
    """
    _scan("sum", src, dst, dim, reverse)


@operation
def cummax(src: Any, dst: Any = None, dim: int = 0, reverse: bool = False) -> None:
    """dst = running maximum of src along `dim`; like `cumsum`. NaN is ignored (-inf while there is nothing else)."""
    _scan("max", src, dst, dim, reverse)
