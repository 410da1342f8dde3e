"""The transpose micro-kernel: dst[j, i] = src[i, j] for elements of 4 or 8 bytes.

Squares of 16x16 (8x8 for 8 bytes) are transposed in registers by rounds of two-input shuffles; the edges go element
by element.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit.values import I64, PTR, VOID, at, counted, i64, shuffle

__all__ = ["emit_transpose"]

Value = Any


def emit_transpose(module: Any, bits: int, side: int) -> Any:
    """The function `void (dst, ld_dst, src, ld_src, rows, cols)`; leading dimensions in elements, rows and cols of
    src, int64. bits: 32 or 64; side: of the squares, a power of two.
    """
    name = f"transpose_{bits}_{side}"
    if name in module.globals:
        return module.globals[name]
    f = ir.Function(module, ir.FunctionType(VOID, [PTR, I64, PTR, I64, I64, I64]), name)
    f.linkage = "internal"
    f.attributes.add("noinline")
    for i in (0, 2):
        f.args[i].attributes.add("noalias")
    dst, ld_dst, src, ld_src, rows, cols = f.args
    b = ir.IRBuilder(f.append_basic_block())
    size, element = bits // 8, ir.IntType(bits)
    ld_dst, ld_src = b.mul(ld_dst, i64(size)), b.mul(ld_src, i64(size))
    whole_rows = b.and_(rows, i64(-side))
    whole_cols = b.and_(cols, i64(-side))

    def place(p: Value, ld: Value, i: Value, j: Value) -> Value:
        return at(b, at(b, p, b.mul(i, ld)), b.mul(j, i64(size)))

    def square(i: Value, j: Value) -> None:
        vector = ir.VectorType(element, side)
        top, out = place(src, ld_src, i, j), place(dst, ld_dst, j, i)
        lines = [b.load(at(b, top, b.mul(ld_src, i64(r))), align=size, typ=vector) for r in range(side)]
        for r, v in enumerate(_transposed(b, lines)):
            b.store(v, at(b, out, b.mul(ld_dst, i64(r))), align=size)

    def one(i: Value, j: Value) -> None:
        b.store(b.load(place(src, ld_src, i, j), align=size, typ=element), place(dst, ld_dst, j, i), align=size)

    counted(b, i64(0), whole_rows, side, lambda i: counted(b, i64(0), whole_cols, side, lambda j: square(i, j)))
    counted(b, i64(0), whole_rows, 1, lambda i: counted(b, whole_cols, cols, 1, lambda j: one(i, j)))
    counted(b, whole_rows, rows, 1, lambda i: counted(b, i64(0), cols, 1, lambda j: one(i, j)))
    b.ret_void()
    return f


def _transposed(b: Any, lines: list[Value]) -> list[Value]:
    """log2(side) rounds: round s swaps the off-diagonal halves of every 2s x 2s block."""
    side = len(lines)
    current = lines
    s = 1
    while s < side:
        following = list(current)
        low = [i if not i & s else side + (i ^ s) for i in range(side)]
        high = [(i | s) if not i & s else side + i for i in range(side)]
        for i in range(side):
            if not i & s:
                x, y = current[i], current[i | s]
                following[i], following[i | s] = shuffle(b, x, y, low), shuffle(b, x, y, high)
        current = following
        s *= 2
    return current
