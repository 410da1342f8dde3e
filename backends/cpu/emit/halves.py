"""Right operands of gemm in a half type, widened to float32 in registers, as LLVM IR.

Rows of them (elements along n side by side) are widened one by one; bfloat16 by words of two neighbours, of which a
shift gives the even columns and a mask the odd ones (`apart`). Where rows lie along k (`emit_turned`), words of two
elements are turned in registers, half as many shuffles as elements would take, and a word gives two steps of k.
"""

from __future__ import annotations

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

    Blocks of `lanes` rows of B are turned in registers while the products of the block before go on: shuffles and
    multiply-adds use different units. What is `_AHEAD` rows below is asked for line by line between the products (the
    CPU's queue of misses is short), and words go through memory for no other reason than that this order stays.
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
    chunks = 64 // (4 * count)  # of a line of memory: each asks for some of the lines ahead
    zero = ir.Constant(vector, None)
    turned = b.alloca(ir.VectorType(I32, lanes), count)

    def block(i: Value) -> None:
        places = _rows(b, at(b, c, b.mul(i, i64(4))), ldc, rows)
        start = [zero if clear else b.load(p, align=4, typ=vector) for p in places]
        first = at(b, bp, b.mul(i, b_row))

        def words(j: Value, *total: Value) -> list[Value]:
            here = at(b, first, b.mul(j, i64(2)))
            for w, x in enumerate(_turned(b, _rows(b, here, b_row, lanes), count, lanes)):
                b.store(x, at(b, turned, i64(4 * lanes * w)), align=4)
            left = at(b, a, b.mul(j, i64(4)))

            def one(w: Value, ahead: Value, *sums: Value) -> list[Value]:
                prefetch(b, ahead, True)
                word = b.load(at(b, turned, b.mul(w, i64(4 * lanes))), align=4, typ=ir.VectorType(I32, lanes))
                places = _rows(b, at(b, left, b.mul(w, i64(8))), a_row, rows)
                now = list(sums)
                for odd, x in enumerate(_widened(b, form, word, vector)):
                    for r, p in enumerate(places):
                        spread = splat(b, b.load(at(b, p, i64(4 * odd)), align=4, typ=ir.FloatType()), lanes)
                        now[r] = intrinsic(b, f"llvm.fma.{suffix(vector)}", vector, [spread, x, now[r]])
                return [at(b, ahead, b_row), *now]

            part = b.and_(b.udiv(j, i64(2 * count)), i64(chunks - 1))
            below = b.add(b.mul(part, i64(lanes // chunks)), i64(_AHEAD))
            ahead = at(b, at(b, here, b.mul(below, b_row)), i64(4 * count - 1))
            return counted(b, i64(0), i64(count), 1, one, ahead, *total)[2:]

        _, *total = counted(b, i64(0), k, 2 * count, words, *start)
        for p, v in zip(places, total, strict=True):
            b.store(v, p, align=4)

    counted(b, i64(0), n, lanes, block)
    b.ret_void()
    return f


def step(lanes: int) -> int:
    """Elements along k that `emit_turned` takes at a time."""
    return lanes if lanes > 4 else 8


def _rows(b: Any, p: Value, stride: Value, count: int) -> list[Value]:
    found = [p]
    while len(found) < count:
        found.append(at(b, found[-1], stride))
    return found


def _turned(b: Any, rows: list[Value], count: int, lanes: int) -> list[Value]:
    """The first `count` words of `lanes` rows, a register for each word: squares of four by four within the quarters
    of registers that hold `count` words of several rows, then, of 16 lanes, the quarters."""
    parts, quarters = lanes // count, range(0, lanes, 4)
    lines = []
    for i in range(count):
        own = [rows[i // 4 * 4 * parts + 4 * p + i % 4] for p in range(parts)]
        loaded = [b.load(p, align=2, typ=ir.VectorType(I32, count)) for p in own]
        lines.append(loaded[0] if parts == 1 else shuffle(b, loaded[0], loaded[1], range(lanes)))

    def mix(x: Value, y: Value, picked: tuple[int, ...]) -> Value:
        return shuffle(b, x, y, [q + i % 4 + i // 4 * lanes for q in quarters for i in picked])

    words = []
    for i in range(0, count, 4):
        halves = [
            mix(x, y, p) for x, y in (lines[i : i + 2], lines[i + 2 : i + 4]) for p in ((0, 4, 1, 5), (2, 6, 3, 7))
        ]
        words += [mix(x, y, p) for x, y in (halves[::2], halves[1::2]) for p in ((0, 1, 4, 5), (2, 3, 6, 7))]
    if count == 4:
        return words
    quarter = [
        [*range(q, q + 4), *range(q + 8, q + 12), *range(q + 16, q + 20), *range(q + 24, q + 28)] for q in (0, 4)
    ]
    return [shuffle(b, x, y, p) for p in quarter for x, y in zip(words[:4], words[4:], strict=True)]


def prefetch_once(b: Any, p: Value) -> None:
    """Asks for the line one page behind p, to be read once: past the second-level cache, where others need the room."""
    intrinsic(b, "llvm.prefetch.p0", VOID, [at(b, p, i64(4096)), *(ir.Constant(I32, x) for x in (0, 0, 1))])
