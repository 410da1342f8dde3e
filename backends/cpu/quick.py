"""A launch in one step, as machine code: are these the arrays that the last call had, and if so, run the grid.

Checking types, shapes and strides of a few arrays in Python takes longer than a small kernel. CPython keeps the items
of a tuple, and NumPy the fields of an array (`PyArrayObject_fields` of its C interface), at fixed places;
`layout_holds` looks whether this interpreter does, before anything relies on it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
from llvmlite import ir

from .emit.values import I8, I32, I64, PTR, counted
from .native import compile_module, host_cpu, load_object

__all__ = ["HEADER", "PAIR", "RECORD", "layout_holds", "quick_function"]

# Places in bytes. Of a tuple: its length and items; of an object: its type; of an array: the rest.
_LENGTH, _ITEMS, _TYPE = 16, tuple.__basicsize__, 8
_DATA, _RANK, _SHAPE, _STRIDES, _DESCR, _FLAGS = 16, 24, 32, 40, 56, 64

# The table's words: arrays, all argument words, type of arrays, C function, blocks, pairs, address of the words behind
# the arrays' (symbols), address of a word that is never set; then records, then pairs.
HEADER = 8
RECORD = 6  # type object of elements, rank, flags, address of extents, address of strides, 0
PAIR = 4  # two arrays that must not overlap, and the bytes that each spans


def layout_holds() -> bool:
    """Whether objects lie in memory as the machine code takes it."""
    import sys

    if sys.implementation.name != "cpython" or getattr(sys, "_is_gil_enabled", lambda: True)() is False:
        return False
    if object.__basicsize__ != 16 or np.ndarray.__basicsize__ < 68:
        return False
    x = np.zeros((4, 5), np.int16)[1:, 2:]
    pair, word = (x, x), ctypes.c_int64.from_address
    seen = [word(id(pair) + p).value for p in (_LENGTH, _ITEMS, _ITEMS + 8)]
    seen += [word(id(x) + p).value for p in (_TYPE, _DATA, _DESCR)]
    seen += [ctypes.c_int32.from_address(id(x) + p).value for p in (_RANK, _FLAGS)]
    extents, strides = (word(id(x) + p).value for p in (_SHAPE, _STRIDES))
    seen += [word(p + 8 * d).value for p in (extents, strides) for d in (0, 1)]
    data = x.__array_interface__["data"][0]
    return seen == [2, id(x), id(x), id(np.ndarray), data, id(x.dtype), 2, x.flags.num, *x.shape, *x.strides]


@cache
def quick_function() -> Any:
    """`int64 f(tuple, address of a table, address of context words)`: -1 where the tuple holds other arrays than the
    table says, or arrays that overlap, else what the kernel's C function returns for its whole grid."""
    module = ir.Module("quick")
    f = ir.Function(module, ir.FunctionType(I64, [PTR, PTR, PTR]), "quick")
    b = ir.IRBuilder(f.append_basic_block())
    args, table, context = f.args
    zero, one = ir.Constant(I64, 0), ir.Constant(I64, 1)

    def load(p: Any, place: Any, t: Any = I64) -> Any:
        at = ir.Constant(I64, place) if isinstance(place, int) else place
        return b.load(b.gep(p, [at], source_etype=I8), align=4, typ=t)

    def unless(cond: Any) -> None:
        with b.if_then(b.not_(cond)):
            b.ret(ir.Constant(I64, -1))

    def times(n: Any, size: int, plus: int = 0) -> Any:
        return b.add(b.mul(n, ir.Constant(I64, size)), ir.Constant(I64, plus))

    count, total, kind, function, blocks, pairs, symbols, never = (load(table, 8 * k) for k in range(HEADER))
    unless(b.icmp_signed("==", load(args, _LENGTH), count))
    words = b.bitcast(b.alloca(I64, total), PTR)

    def put(p: Any, n: Any, v: Any) -> None:
        b.store(v, b.gep(p, [n], source_etype=I64), align=8)

    def array(n: Any) -> None:
        x = b.inttoptr(load(args, times(n, 8, _ITEMS)), PTR)
        record = b.gep(table, [times(n, 8 * RECORD, 8 * HEADER)], source_etype=I8)
        unless(b.icmp_signed("==", load(x, _TYPE), kind))
        same = b.icmp_signed("==", load(x, _DESCR), load(record, 0))
        rank = load(record, 8)
        same = b.and_(same, b.icmp_signed("==", b.sext(load(x, _RANK, I32), I64), rank))
        unless(b.and_(same, b.icmp_signed("==", b.sext(load(x, _FLAGS, I32), I64), load(record, 16))))
        places = [
            (b.inttoptr(load(x, p), PTR), b.inttoptr(load(record, q), PTR)) for p, q in ((_SHAPE, 24), (_STRIDES, 32))
        ]

        def axis(d: Any) -> None:
            for has, wanted in places:
                unless(b.icmp_signed("==", load(has, times(d, 8)), load(wanted, times(d, 8))))

        counted(b, zero, rank, 1, axis)
        put(words, n, load(x, _DATA))

    def pair(n: Any) -> None:
        record = b.gep(table, [b.add(times(count, 8 * RECORD, 8 * HEADER), times(n, 8 * PAIR))], source_etype=I8)
        (p, q), (long, wide) = (
            [load(words, times(load(record, k), 8)) for k in (0, 8)],
            [load(record, k) for k in (16, 24)],
        )
        apart = b.or_(b.icmp_signed(">=", p, b.add(q, wide)), b.icmp_signed(">=", q, b.add(p, long)))
        unless(apart)

    counted(b, zero, count, 1, array)
    counted(b, zero, pairs, 1, pair)
    rest = b.inttoptr(symbols, PTR)
    counted(b, count, total, 1, lambda n: put(words, n, load(rest, times(b.sub(n, count), 8))))
    for place, v in ((1, never), (2, zero), (4, zero), (5, one)):  # cancel word, ring, worker, workers
        put(context, ir.Constant(I64, place), v)
    kernel = ir.FunctionType(I64, [I64, I64, PTR, PTR])
    b.ret(b.call(b.inttoptr(function, kernel.as_pointer()), [zero, blocks, words, context]))
    loaded = load_object(compile_module([module], host_cpu()), ["quick"])
    made = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p)(
        loaded.addresses["quick"]
    )
    made.keep = loaded  # type: ignore[attr-defined]
    return made
