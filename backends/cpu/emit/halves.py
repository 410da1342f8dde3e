"""Right operands of gemm in a half type, widened to float32 in registers, as LLVM IR.

Rows of them (elements along n side by side) are widened one by one; bfloat16 by words of two neighbours, of which a
shift gives the even columns and a mask the odd ones (`apart`). Where rows lie along k (`emit_turned`), words of two
elements are turned in registers, half as many shuffles as elements would take, and a word gives two steps of k.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.convert import cast
from tiledsl.backends.cpu.emit.values import (
    I32,
    I64,
    PTR,
    VOID,
    at,
    counted,
    i64,
    intrinsic,
    merged,
    prefetch,
    shuffle,
    splat,
    splat_constant,
    suffix,
)
from tiledsl.dtypes import FLOAT32, DType

__all__ = ["Halves", "apart", "emit_turned", "prefetch_once", "row_of", "step", "together"]

Value = Any
_AHEAD = 64  # rows: a tile ahead of one that comes from memory


@dataclass(frozen=True)
class Halves:
    """Elements of a 16-bit float."""

    dtype: DType

    @property
    def name(self) -> str:
        return f"_{self.dtype.name}"

    def splits(self, registers: int) -> bool:
        """Whether rows of so many registers are held with even and odd columns apart."""
        return self.dtype.name == "bfloat16" and registers % 2 == 0


def row_of(b: Any, form: Halves, places: list[Value], vector: Any) -> list[Value]:
    """The row of B that lies at these addresses, one register each; even and odd columns `apart` where it splits."""
    lanes = vector.count
    if form.splits(len(places)):
        words = [b.load(p, align=2, typ=ir.VectorType(I32, lanes)) for p in places[::2]]
        return [x for w in words for x in _widened(b, form, w, vector)]
    half, bits = form.dtype.with_lanes(lanes), ir.VectorType(ir.IntType(16), lanes)
    return [cast(b, half, FLOAT32.with_lanes(lanes), b.load(p, align=2, typ=bits)) for p in places]


def _widened(b: Any, form: Halves, word: Value, vector: Any) -> tuple[Value, Value]:
    """The lower and the upper elements of words."""
    lanes = vector.count
    upper = splat_constant(ir.Constant(I32, 16), lanes)
    if form.dtype.name == "bfloat16":  # the upper half of a float32
        high = splat_constant(ir.Constant(I32, 0xFFFF0000), lanes)
        return b.bitcast(b.shl(word, upper), vector), b.bitcast(b.and_(word, high), vector)
    half, bits = form.dtype.with_lanes(lanes), ir.VectorType(ir.IntType(16), lanes)
    low, high = (cast(b, half, FLOAT32.with_lanes(lanes), b.trunc(x, bits)) for x in (word, b.lshr(word, upper)))
    return low, high


def apart(b: Any, values: list[Value]) -> list[Value]:
    """Neighbouring registers with even and odd columns apart."""
    lanes = values[0].type.count
    pairs = zip(values[::2], values[1::2], strict=True)
    return [shuffle(b, x, y, range(odd, 2 * lanes, 2)) for x, y in pairs for odd in (0, 1)]


def together(b: Any, values: list[Value]) -> list[Value]:
    """What `apart` has taken apart."""
    lanes = values[0].type.count
    mixed = [i // 2 + i % 2 * lanes for i in range(2 * lanes)]
    pairs = zip(values[::2], values[1::2], strict=True)
    return [shuffle(b, x, y, half) for x, y in pairs for half in (mixed[:lanes], mixed[lanes:])]


def emit_turned(module: Any, form: Halves, rows: int, lanes: int, clear: bool) -> Any:
    """The function `void (C, ldc, A, a_row, a_k, B, panel_stride, b_row, m, n, k)`: C[m, n] (+)= A[m, k] @ B^T with
    float32 C and A, and B [n, k] of halves in memory, rows of b_row elements. m is `rows`, at most 8; a_k 1; n a
    multiple of `lanes`, k of `step(lanes)`; strides in elements, all int64.

    `lanes` rows of B are turned in registers, step by step between the products with the words turned before: shuffles
    and multiply-adds use different units, but a store takes the place of a multiply-add. What is `_AHEAD` rows below
    is asked for line by line between the products (the CPU's queue of misses is short), and not in the column at
    hand: where rows lie a power of two apart, its lines compete for the same places of the first-level cache.
    """
    name = f"gemm_float32_turned_{rows}x{lanes}{form.name}" + "_clear" * clear
    if name in module.globals:
        return module.globals[name]
    f = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, PTR, I64, I64, PTR, I64, I64, I64, I64, I64]), name)
    f.linkage = "internal"
    f.attributes.add("noinline")
    for i in (0, 2, 5):
        f.args[i].attributes.add("noalias")
    c, ldc, a, a_row, _, bp, _, b_row, _, n, k = f.args
    b = ir.IRBuilder(f.append_basic_block())
    vector, count = ir.VectorType(ir.FloatType(), lanes), step(lanes) // 2
    ldc, a_row, b_row = (b.mul(x, i64(size)) for x, size in ((ldc, 4), (a_row, 4), (b_row, 2)))
    chunks, zero = 64 // (4 * count), ir.Constant(vector, None)  # of a line: each asks for some of the lines ahead
    last = b.sub(k, i64(2 * count))
    back = b.sub(b.mul(b_row, i64(lanes)), b.mul(last, i64(2)))  # to the next rows
    around = b.mul(b.udiv(b.sub(k, i64(1)), i64(32)), i64(64))  # to a row's last line

    def block(i: Value, *first: Value) -> list[Value]:
        places = _rows(b, at(b, c, b.mul(i, i64(4))), ldc, rows)
        start = [zero if clear else b.load(p, align=4, typ=vector) for p in places]
        below = b.select(b.icmp_signed("<", b.add(i, i64(lanes)), n), back, i64(0))  # the last words stay

        def words(j: Value, here: Value, *now: Value) -> list[Value]:
            following = at(b, here, b.select(b.icmp_signed("==", j, last), below, i64(4 * count)))
            part = b.and_(b.udiv(j, i64(2 * count)), i64(chunks - 1))
            down = b.mul(b.add(b.mul(part, i64(lanes // chunks)), i64(_AHEAD)), b_row)
            aside = b.select(b.icmp_signed("<", j, i64(32)), around, i64(-64))
            asked = at(b, at(b, at(b, here, down), aside), i64(4 * count - 1))
            left, sums = at(b, a, b.mul(j, i64(4))), list(now[count:])
            turning = _turning(b, following, b_row, count, lanes)
            live = next(turning)
            for w, word in enumerate(now[:count]):
                prefetch(b, asked, True)
                asked = at(b, asked, b_row)
                for odd, x in enumerate(_widened(b, form, word, vector)):
                    for r, p in enumerate(_rows(b, at(b, left, i64(8 * w + 4 * odd)), a_row, rows)):
                        spread = splat(b, b.load(p, align=4, typ=ir.FloatType()), lanes)
                        sums[r] = intrinsic(b, f"llvm.fma.{suffix(vector)}", vector, [spread, x, sums[r]])
                held = _in_order(b, lanes, [*sums, *live])
                sums, live = held[:rows], held[rows:]
                if w + 1 < count:
                    live = turning.send(live)
            return [following, *live, *sums]

        _, here, *after = counted(b, i64(0), k, 2 * count, words, *first, *start)
        for p, v in zip(places, after[count:], strict=True):
            b.store(v, p, align=4)
        return [here, *after[:count]]

    before = b.block
    with b.if_then(b.and_(b.icmp_signed(">", n, i64(0)), b.icmp_signed(">", k, i64(0)))):
        turning = _turning(b, bp, b_row, count, lanes)
        live = next(turning)
        for _ in range(count - 1):
            live = turning.send(live)
        inside = b.block
    none = ir.Constant(live[0].type, None)
    counted(b, i64(0), n, lanes, block, bp, *(merged(b, (none, before), (x, inside)) for x in live))
    b.ret_void()
    return f


def _in_order(b: Any, lanes: int, values: list[Value]) -> list[Value]:
    """The values by way of assembly of no instruction (of x86): what is before it stays before what is behind it,
    where the compiler would load everything first and spill it."""
    if lanes < 8:
        return values
    letter, types = "v" if lanes == 16 else "x", [x.type for x in values]
    constraint = ",".join([f"={letter}"] * len(values) + [str(i) for i in range(len(values))])
    made = b.asm(ir.FunctionType(ir.LiteralStructType(types), types), "", constraint, values, True)
    return [b.extract_value(made, i) for i in range(len(values))]


def step(lanes: int) -> int:
    """Elements along k that `emit_turned` takes at a time."""
    return lanes if lanes > 4 else 8


def _rows(b: Any, p: Value, stride: Value, count: int) -> list[Value]:
    found = [p]
    while len(found) < count:
        found.append(at(b, found[-1], stride))
    return found


def _turning(b: Any, place: Value, b_row: Value, count: int, lanes: int) -> Generator[list[Value], list[Value], None]:
    """The first `count` words of `lanes` rows, a register for each: squares of four by four within the quarters of
    registers that hold `count` words of several rows, then, of 16 lanes, the quarters. In `count` steps, each of which
    yields the registers at hand, in the end the words, and takes them up again."""
    rows, parts, quarters = _rows(b, place, b_row, lanes), lanes // count, range(0, lanes, 4)

    def mix(x: Value, y: Value, picked: tuple[int, ...]) -> Value:
        return shuffle(b, x, y, [q + i % 4 + i // 4 * lanes for q in quarters for i in picked])

    live: list[Value] = []
    for first in range(0, count, 4):
        for i in range(first, first + 4):
            own = [rows[i // 4 * 4 * parts + 4 * p + i % 4] for p in range(parts)]
            loaded = [b.load(p, align=2, typ=ir.VectorType(I32, count)) for p in own]
            live = [*live, loaded[0] if parts == 1 else shuffle(b, loaded[0], loaded[1], range(lanes))]
            if i % 2:
                live = yield live
        x, y, z, t = live[first:]
        live = yield live[:first] + [mix(u, v, p) for u, v in ((x, y), (z, t)) for p in ((0, 4, 1, 5), (2, 6, 3, 7))]
        x, y, z, t = live[first:]
        live = live[:first] + [mix(u, v, p) for u, v in ((x, z), (y, t)) for p in ((0, 1, 4, 5), (2, 3, 6, 7))]
        if first + 4 < count:
            live = yield live
    if count == 8:
        low = [*range(4), *range(8, 12), *range(16, 20), *range(24, 28)]
        pairs = list(zip(live[:4], live[4:], strict=True))
        live = [shuffle(b, x, y, [i + q for i in low]) for q in (0, 4) for x, y in pairs]
    yield live


def prefetch_once(b: Any, p: Value) -> None:
    """Asks for the line one page behind p, to be read once: past the second-level cache, where others need the room."""
    intrinsic(b, "llvm.prefetch.p0", VOID, [at(b, p, i64(4096)), *(ir.Constant(I32, x) for x in (0, 0, 1))])
