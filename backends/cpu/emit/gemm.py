"""The gemm micro-kernel: C[m, n] (+)= A[m, k] @ B with B packed in column panels, or as rows in place, as LLVM IR.

Each element of C is one k-ascending chain of fused multiply-adds (for integers: multiply, add, wrap) that starts from
C, or from 0 with `clear`. Register blocking only decides which elements are computed together, so every blocking
gives the same bits.

A block of MR rows by NV registers lives in vector registers over the whole K loop; per k it takes NV loads of the
panel and MR broadcasts of A. The tile is covered panel by panel (a panel stays in the first-level cache), rows from
the top; what is left of the rows goes through smaller blocks, what is left of the columns through masked C accesses.

B may be of a half type: it is widened in registers (`emit.halves`), which costs a product of few rows less than a pass
through memory would.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.bytes import Bytes, four_products, row_shifts
from tiledsl.backends.cpu.emit.halves import Halves, apart, row_of, together
from tiledsl.backends.cpu.emit.values import (
    I64,
    PTR,
    VOID,
    at,
    counted,
    i64,
    intrinsic,
    merged,
    prefetch,
    splat,
    suffix,
    value_type,
)
from tiledsl.dtypes import DType

__all__ = ["Blocking", "Form", "blocking", "emit_gemm"]

Value = Any
Form = Bytes | Halves | None  # of operands narrower than what is multiplied
_PREFETCH_B = 2048  # bytes ahead in the panel; the panel is read as one stream
_PREFETCH_ROWS = 64  # ahead of rows in place, which come from memory


@dataclass(frozen=True)
class Blocking:
    """lanes of one register, registers per row of a block (NV), rows of a full block (MR)."""

    lanes: int
    nv: int
    mr: int


def blocking(d: DType, panel: int, register_bytes: int) -> Blocking:
    """What fits the register file: MR * NV accumulators, NV panel registers and one broadcast of A.

    32 registers of 64 bytes, else 16 of 32 or 16 bytes. `panel` is the width of a panel in elements.
    """
    lanes = min(panel, register_bytes * 8 // d.bits)
    budget = 28 if register_bytes == 64 else 14
    # 4 registers wide and 6 high needs the fewest loads per multiply-add among what fits 28
    widest = 4 if register_bytes == 64 else 2
    nv = next(v for v in range(min(widest, panel // lanes), 0, -1) if (panel // lanes) % v == 0)
    mr = {4: 6, 3: 8, 2: 12, 1: 14}[nv] if register_bytes == 64 else (budget - nv) // nv
    return Blocking(lanes, nv, min(mr, 14))


def emit_gemm(
    module: Any, d: DType, panel: int, shape: Blocking, clear: bool = False, form: Form = None, in_place: str = ""
) -> Any:
    """The function `void (C, ldc, A, a_row, a_k, B, panel_stride, b_k, m, n, k)`; strides in elements, all int64.

    C row-major; A[i, k] at i * a_row + k * a_k; B[p, k, j] at p * panel_stride + k * b_k + j, zero or anything beyond
    n. Memory of C beyond column n is neither read nor written.

    form: Bytes, operands of 8 bits, d is int32. A's bytes follow each other along k (a_k is 1); a panel holds words of
    four bytes along k, [ceil(k / 4), panel], zero beyond k. Strides of B count words then. Halves: B's elements.
    in_place: B lies in rows, of which every `panel` columns are a panel; n is a multiple of panel. "together": one row
    after the other; else "apart".
    """
    more = ("_clear" * clear) + (form.name if form else "") + (f"_rows_{in_place}" if in_place else "")
    name = f"gemm_{d.name}_{panel}_{shape.lanes}x{shape.nv}x{shape.mr}{more}"
    if name in module.globals:
        return module.globals[name]
    small = form if isinstance(form, Bytes) else None
    f = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, PTR, I64, I64, PTR, I64, I64, I64, I64, I64]), name)
    f.linkage = "internal"
    f.attributes.add("noinline")
    blocks = {mr: _emit_block(module, d, shape, mr, clear, form, in_place, f"{name}_{mr}") for mr in _heights(shape.mr)}
    c, ldc, a, a_row, a_k, bp, panel_stride, b_k, m, n, k = f.args
    b = ir.IRBuilder(f.append_basic_block())
    size = d.bits // 8
    b_size = 2 if isinstance(form, Halves) else size
    width = shape.lanes * shape.nv
    ldc, a_k = (b.mul(s, i64(size)) for s in (ldc, a_k))
    panel_stride, b_k = (b.mul(s, i64(b_size)) for s in (panel_stride, b_k))
    a_row = a_row if small else b.mul(a_row, i64(size))

    def columns(j: Value) -> None:
        """One block column: columns j .. j + width of C."""
        in_panel = b.mul(b.urem(j, i64(panel)), i64(b_size))
        b_column = at(b, at(b, bp, b.mul(b.udiv(j, i64(panel)), panel_stride)), in_panel)
        c_column = at(b, c, b.mul(j, i64(size)))
        left = b.sub(n, j)

        def rows(mr: int, i: Value) -> None:
            b.call(blocks[mr], [at(b, c_column, b.mul(i, ldc)), ldc, at(b, a, b.mul(i, a_row)), a_row, a_k, b_column,
                                b_k, left, k])  # fmt: skip

        full = b.sub(m, b.urem(m, i64(shape.mr)))
        counted(b, i64(0), full, shape.mr, lambda i: rows(shape.mr, i))
        done = full
        for mr in _heights(shape.mr)[1:]:  # binary decomposition of the rest: each height at most once
            fits = b.icmp_signed(">=", b.sub(m, done), i64(mr))
            with b.if_then(fits):
                rows(mr, done)
            done = b.select(fits, b.add(done, i64(mr)), done)

    counted(b, i64(0), n, width, columns)
    b.ret_void()
    return f


def _heights(mr: int) -> list[int]:
    """Heights of blocks: the full one and powers of two below it."""
    return [mr, *(h for h in (8, 4, 2, 1) if h < mr)]


def _emit_block(
    module: Any, d: DType, shape: Blocking, mr: int, clear: bool, form: Form, in_place: str, name: str
) -> Any:
    """`void (C, ldc, A, a_row, a_k, B, b_k, columns left, k)` for one block of mr rows; strides in bytes."""
    small = form if isinstance(form, Bytes) else None
    f = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, PTR, I64, I64, PTR, I64, I64, I64]), name)
    f.linkage = "internal"
    f.attributes.add("noinline")
    for i in (0, 2, 5):
        f.args[i].attributes.add("noalias")
    c, ldc, a, a_row, a_k, bp, b_k, left, k = f.args
    b = ir.IRBuilder(f.append_basic_block())
    vector = ir.VectorType(value_type(d), shape.lanes)
    size, register = d.bits // 8, shape.lanes * d.bits // 8
    places = [(i, j) for i in range(mr) for j in range(shape.nv)]
    rows = [at(b, c, b.mul(ldc, i64(i))) for i in range(mr)]
    whole = b.icmp_signed(">=", left, i64(shape.lanes * shape.nv))
    for i, j in places:
        prefetch(b, at(b, rows[i], i64(j * register)))

    start: list[Value] = []
    if clear:
        start = [ir.Constant(vector, None) for _ in places]
    else:
        with b.if_else(whole) as (then, otherwise):
            with then:
                plain = [b.load(at(b, rows[i], i64(j * register)), align=size, typ=vector) for i, j in places]
                plain_end = b.block
            with otherwise:
                masks = [_mask(b, left, j * shape.lanes, shape.lanes) for j in range(shape.nv)]
                masked = [_masked_load(b, vector, at(b, rows[i], i64(j * register)), masks[j], size) for i, j in places]
                masked_end = b.block
        start = [merged(b, (p, plain_end), (q, masked_end)) for p, q in zip(plain, masked, strict=True)]
    split = isinstance(form, Halves) and form.splits(shape.nv)
    if split and not clear:
        start = apart(b, start)

    steps = k
    if small:
        steps = b.ashr(b.add(k, i64(3)), i64(2))
        if small.flip:
            lines = [at(b, a, b.mul(a_row, i64(i))) for i in range(mr)]
            shifts = [splat(b, x, shape.lanes) for x in row_shifts(b, small, lines, k, shape.lanes)]
            start = [b.add(v, shifts[i]) for (i, _), v in zip(places, start, strict=True)]
    final = _k_loop(b, d, shape, mr, (a, a_row, a_k), (bp, b_k), steps, start, form, in_place)
    if split:
        final = together(b, final)

    with b.if_else(whole) as (then, otherwise):
        with then:
            for (i, j), v in zip(places, final, strict=True):
                b.store(v, at(b, rows[i], i64(j * register)), align=size)
        with otherwise:
            masks = [_mask(b, left, j * shape.lanes, shape.lanes) for j in range(shape.nv)]
            for (i, j), v in zip(places, final, strict=True):
                _masked_store(b, v, at(b, rows[i], i64(j * register)), masks[j], size)
    b.ret_void()
    return f


def _k_loop(
    b: Any, d: DType, shape: Blocking, mr: int, left: tuple[Value, Value, Value], right: tuple[Value, Value],
    steps: Value, start: list[Value], form: Form, in_place: str,
) -> list[Value]:  # fmt: skip
    """The accumulators after all k. left: address, row stride and k stride of A; right: address and k stride of B, in
    bytes; steps: along k, a word of B each.

    Not unrolled: the multiply-adds of one k hide the loop, and any strides of A run at full speed.
    """
    size = d.bits // 8
    (a, a_row, a_k), (bp, b_k) = left, right
    offsets = [b.mul(a_row, i64(i)) for i in range(mr)]
    vector = start[0].type
    halves = form if isinstance(form, Halves) else None
    register = shape.lanes * (2 if halves else size)
    busy = in_place == "together" and mr >= 4  # what is asked a tile ahead has time to come, and to be asked again
    ahead = b.mul(b_k, steps if busy else i64(_PREFETCH_ROWS)) if in_place else i64(_PREFETCH_B)

    def one(i: Value, a_now: Value, b_now: Value, *acc: Value) -> list[Value]:
        places = [at(b, b_now, i64(j * register)) for j in range(shape.nv)]
        columns = row_of(b, halves, places, vector) if halves else [b.load(p, align=size, typ=vector) for p in places]
        last = (shape.nv * register - 1,) if in_place == "apart" else ()  # rows may begin anywhere in a line
        for line in (*range(0, shape.nv * register, 64), *last):
            prefetch(b, at(b, at(b, b_now, ahead), i64(line)), busy or in_place == "apart")
        total = list(acc)
        for row in range(mr):
            scalar = b.load(at(b, a_now, offsets[row]), align=1 if d.is_int else size, typ=value_type(d))
            spread = splat(b, scalar, shape.lanes)
            for j in range(shape.nv):
                x, y, z = spread, columns[j], total[row * shape.nv + j]
                if isinstance(form, Bytes):
                    z = four_products(b, form, x, y, z)
                else:
                    z = intrinsic(b, f"llvm.fma.{suffix(vector)}", vector, [x, y, z])
                total[row * shape.nv + j] = z
        return [at(b, a_now, a_k), at(b, b_now, b_k), *total]

    return counted(b, i64(0), steps, 1, one, a, bp, *start)[3:]


def _mask(b: Any, left: Value, first: int, lanes: int) -> Value:
    """Lanes below `left`, counting from `first`."""
    numbers = ir.Constant(ir.VectorType(I64, lanes), [first + i for i in range(lanes)])
    return b.icmp_signed("<", numbers, splat(b, left, lanes))


def _masked_load(b: Any, vector: Any, p: Value, mask: Value, align: int) -> Value:
    zero = ir.Constant(vector, None)
    return intrinsic(b, f"llvm.masked.load.{suffix(vector)}.p0", vector, [p, mask, zero], {0: align})


def _masked_store(b: Any, v: Value, p: Value, mask: Value, align: int) -> None:
    intrinsic(b, f"llvm.masked.store.{suffix(v.type)}.p0", VOID, [v, p, mask], {1: align})
