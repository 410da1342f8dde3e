"""What compiled code shares with the runtime: the cancel word, the ring of debug records, atomics.

The ring: word 0 is where the next record goes (in words; first 2), word 1 the capacity in words, then records of
[kind, site, number of values, value bits ...]; kind 0 is a print, 1 a failed assert. A record that finds no room is
dropped, but word 0 advances.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from tiledsl.backends.cpu.emit import arith, convert
from tiledsl.backends.cpu.emit.values import I32, I64, PTR, constant, memory_type, merged
from tiledsl.dtypes import FLOAT32, INT64, UINT8, DType, as_dtype

__all__ = ["atomic", "bits", "cancelled", "reserve", "waited"]

Value = Any


def _word(b: Any, context: Value, i: int) -> Value:
    return b.load(b.gep(context, [ir.Constant(I64, i)], inbounds=True, source_etype=I64), typ=I64)


def cancelled(b: Any, context: Value) -> Value:
    """Context word 1 is the address of the cancel word; nonzero means stop."""
    flag = b.load_atomic(b.inttoptr(_word(b, context, 1), PTR), ordering="monotonic", align=8, typ=I64)
    return b.icmp_unsigned("!=", flag, ir.Constant(I64, 0))


def waited(b: Any, context: Value) -> Value:
    """A round of a loop that waits, counted in context word 3; every 64th lets other threads run (by the function at
    context word 6, 0 for none). Nonzero means stop, as with `cancelled`."""
    at = b.gep(context, [ir.Constant(I64, 3)], inbounds=True, source_etype=I64)
    rounds = b.add(b.load(at, typ=I64), ir.Constant(I64, 1))
    b.store(rounds, at)
    pause = _word(b, context, 6)
    long = b.icmp_unsigned("==", b.and_(rounds, ir.Constant(I64, 63)), ir.Constant(I64, 0))
    with b.if_then(b.and_(long, b.icmp_unsigned("!=", pause, ir.Constant(I64, 0))), likely=False):
        b.call(b.inttoptr(pause, ir.FunctionType(I32, []).as_pointer()), [])
    return cancelled(b, context)


def bits(b: Any, d: DType, v: Value) -> Value:
    """The value's bits, zero-extended to a word (integers sign-extended)."""
    if d.is_bool:
        return b.zext(v, I64)
    if d.is_float:
        width = as_dtype(f"uint{max(8, d.bits)}")
        return convert.cast(b, width, INT64, arith.reinterpret(b, width, v))
    return convert.cast(b, d, INT64, v)


def reserve(b: Any, context: Value, kind: Value, site: Value, count: int) -> Value:
    """Address of the value words of a new record, or 0 when there is no ring (context word 2) or no room."""
    ring = _word(b, context, 2)
    size = ir.Constant(I64, 3 + count)
    before = b.block
    with b.if_then(b.icmp_unsigned("!=", ring, ir.Constant(I64, 0))):
        start = b.inttoptr(ring, PTR)
        offset = b.atomic_rmw("add", start, size, "monotonic")
        fits = b.icmp_signed("<=", b.add(offset, size), _word(b, start, 1))
        none = b.block
        with b.if_then(fits):
            record = b.gep(start, [offset], source_etype=I64)
            for i, v in enumerate((kind, site, ir.Constant(I64, count))):
                b.store(v, b.gep(record, [ir.Constant(I64, i)], source_etype=I64))
            place = b.ptrtoint(b.gep(record, [ir.Constant(I64, 3)], source_etype=I64), I64)
            written = b.block
        inner = merged(b, (ir.Constant(I64, 0), none), (place, written))
        end = b.block
    return merged(b, (ir.Constant(I64, 0), before), (inner, end))


_RMW = {"add": "add", "and": "and", "or": "or", "xor": "xor", "exchange": "xchg"}
_ORDERS = {"relaxed": "monotonic"}  # what LLVM calls it
_FAILED = {"release": "monotonic", "acq_rel": "acquire"}  # a compare and swap that fails does not write


def atomic(
    b: Any, op: str, d: DType, base: Value, index: Value, value: Value | None, order: str = "relaxed"
) -> Value | None:
    """One read-modify-write of base[index]; gives the old value (None for a store).

    Integers use the hardware's operation; floats, halves (rounded per operation) and bool compare and swap.
    """
    t, order = memory_type(d), _ORDERS.get(order, order)
    word = ir.IntType(d.bits)
    place = b.gep(base, [index], inbounds=True, source_etype=t)
    address = b.inttoptr(b.ptrtoint(place, I64), word.as_pointer())  # llvmlite wants to see the element's type
    align = d.bits // 8

    def as_word(v: Value) -> Value:
        return b.zext(v, word) if d.is_bool else v if v.type == word else b.bitcast(v, word)

    if op == "store":
        b.store_atomic(as_word(value), address, order, align)
        return None
    if op == "load":
        return _out(b, d, b.load_atomic(address, ordering=order, align=align, typ=word))
    if d.is_int or op == "exchange":
        name = _RMW.get(op) or (op if d.kind == "int" else f"u{op}")
        return _out(b, d, b.atomic_rmw(name, address, as_word(value), order))
    before = b.block
    first = b.load_atomic(address, ordering="monotonic", align=align, typ=word)
    again, done = b.append_basic_block(), b.append_basic_block()
    b.branch(again)
    b.position_at_end(again)
    old = merged(b, (first, before))
    wide = FLOAT32 if d.is_narrow else d
    x, y = (convert.cast(b, d, wide, v) for v in (_out(b, d, old), value))
    new = convert.cast(b, wide, d, arith.binary(b, op, wide, x, y))
    swapped = b.cmpxchg(address, old, as_word(new), order, _FAILED.get(order, order))
    old.add_incoming(b.extract_value(swapped, 0), b.block)
    b.cbranch(b.extract_value(swapped, 1), done, again)
    b.position_at_end(done)
    return _out(b, d, old)


def _out(b: Any, d: DType, word: Value) -> Value:
    if d.is_bool:
        return b.icmp_unsigned("!=", word, constant(UINT8, 0))
    return arith.reinterpret(b, d, word)
