"""Functions of the dialect that touch more than values: cancellation, debug records, atomics, math functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir as ll

from tiledsl.backends.cpu.emit import convert, ring, values
from tiledsl.backends.cpu.emit.expansion import emit_math
from tiledsl.backends.numba_cpu.dialect import VOID, Kind, Literal, Op, Pointer
from tiledsl.dtypes import BOOL, INT64, DType
from tiledsl.ir.intrinsics import INTRINSICS

__all__ = ["effect_names"]


_ATOMICS = ("add", "max", "min", "and", "or", "xor", "exchange", "load", "store")
_ORDERS = ("relaxed", "acquire", "release", "acq_rel", "seq_cst")


def _cancelled(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    """Whether the cancel word (context word 1 holds its address) is set."""
    return ring.cancelled(b, args[0])


def _waited(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    """A round of a loop that waits: whether to stop."""
    return ring.waited(b, args[0])


def _ring_write(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> None:
    """ring_write(context, kind, site, values ...): one record, dropped when there is no ring or no room."""
    words = [_bits(b, (k,), result, (v,)) for k, v in zip(kinds[3:], args[3:], strict=True)]
    kind, site = (values.constant(INT64, k.value) for k in kinds[1:3])
    place = ring.reserve(b, args[0], kind, site, len(words))
    with b.if_then(b.icmp_unsigned("!=", place, values.constant(INT64, 0))):
        slots = b.inttoptr(place, values.PTR)
        for i, w in enumerate(words):
            b.store(w, b.gep(slots, [ll.Constant(values.I64, i)], source_etype=values.I64))


def _ring_record(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    """ring_record(context, kind, site, count): address of `count` value words to fill, or 0."""
    kind, site, count = (k.value for k in kinds[1:4])
    return ring.reserve(b, args[0], values.constant(INT64, kind), values.constant(INT64, site), count)


def _bits(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    kind = kinds[0]
    return values.constant(INT64, kind.value) if isinstance(kind, Literal) else ring.bits(b, kind, args[0])


def _atomic(op: str, order: str) -> Op:
    def rule(kinds: Sequence[Kind]) -> Kind:
        if not isinstance(kinds[0], Pointer):
            raise TypeError("an atomic needs a place in memory")
        return VOID if op == "store" else kinds[0].dtype

    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
        d: DType = kinds[0].dtype
        index = convert.cast(b, kinds[1], INT64, args[1]) if isinstance(kinds[1], DType) else args[1]
        value = None
        if len(args) > 2:
            value = args[2] if isinstance(kinds[2], DType) else values.constant(d, kinds[2].value)
        return ring.atomic(b, op, d, args[0], index, value, order)

    return Op(f"atomic_{op}" + f"_{order}" * (order != "relaxed"), rule, emit)


def _math(name: str) -> Op:
    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
        return b.call(emit_math(b.module, name, result), args)

    return Op(name, lambda kinds: kinds[0], emit)


def effect_names() -> dict[str, Op]:
    """By the name that printed text uses."""
    ops = [
        Op("cancelled", lambda kinds: BOOL, _cancelled),
        Op("waited", lambda kinds: BOOL, _waited),
        Op("ring_write", lambda kinds: VOID, _ring_write),
        Op("ring_record", lambda kinds: INT64, _ring_record),
        Op("bits", lambda kinds: INT64, _bits),
        *(_atomic(op, order) for op in _ATOMICS for order in _ORDERS),
        *(_math(i.name) for i in INTRINSICS.values() if i.kind == "math"),
    ]
    return {op.name: op for op in ops}
