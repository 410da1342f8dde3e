"""The names that printed text uses, with their typing rules and their LLVM emitters.

The dialect is strict: both operands of an operator have one type and the result wraps or rounds at that type
(`int32 + int32` is `int32`); only an integer literal takes the type of the other side. Types convert by calling them:
`f32(x)`, `i64(i)`, `f32x16(0.0)` (a scalar gives all lanes). `A[i]` loads and stores one element of a typed pointer,
counted in elements; with a vector of indices it gathers and scatters; `load16` and `store16` touch 16 elements
in a row; a last argument `mask` turns lanes off. `A + i` is the pointer i elements further.

Nothing here imports Numba: `numba_target.py` teaches Numba these rules.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir as ll

from tiledsl.backends.cpu.emit import arith, convert, values
from tiledsl.dtypes import BOOL, FLOAT64, INT64, DType, as_dtype
from tiledsl.ir.intrinsics import MIXES

__all__ = ["Kind", "Literal", "LoopOver", "OPERATORS", "Op", "Pointer", "TYPE_NAMES", "VOID", "dialect_names"]


# Short names of the scalar types; the vectors of 16 lanes append x16.
TYPE_NAMES = {
    "float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "boolean",
    "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "float8_e8m0fnu": "e8m0", "float4_e2m1fn": "e2m1",
    "int4": "i4", "uint4": "u4",
    **{f"{sign}int{bits}": f"{sign or 'i'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip


@dataclass(frozen=True)
class Pointer:
    """An address of elements of one dtype."""

    dtype: DType


@dataclass(frozen=True)
class Literal:
    """An integer written in the text: takes the type of what it meets, else int64."""

    value: int


@dataclass(frozen=True)
class LoopOver:
    """What `range` gives: loop counters of one integer dtype."""

    dtype: DType


class _Void:
    pass


VOID = _Void()
Kind = Any  # DType | Pointer | Literal | LoopOver | VOID
Rule = Callable[[Sequence[Kind]], Kind]
Emit = Callable[[Any, Sequence[Kind], Kind, Sequence[Any]], Any]


class Op:
    """One function or operator of the dialect."""

    def __init__(self, name: str, rule: Rule, emit: Emit) -> None:
        self.name, self.rule, self.emit = name, rule, emit
        self.__name__ = self.__qualname__ = name

    def __call__(self, *args: Any) -> Any:
        raise TypeError(f"{self.name} exists in compiled kernels only")

    def __repr__(self) -> str:
        return self.name


def _dtype(kind: Kind) -> DType:
    if isinstance(kind, Literal):
        return INT64
    if not isinstance(kind, DType):
        raise TypeError(f"a value is needed, not {kind}")
    return kind


def _same(kinds: Sequence[Kind]) -> DType:
    """The one dtype of all operands; literals follow."""
    found = [k for k in kinds if not isinstance(k, Literal)]
    d = _dtype(found[0]) if found else INT64
    if any(k is not d for k in found):
        raise TypeError(f"operands differ: {', '.join(str(k) for k in kinds)}")
    if len(found) < len(kinds) and not d.is_int:
        raise TypeError(f"an integer literal meets {d}")
    return d


def _as(kind: Kind, d: DType, v: Any) -> Any:
    """The operand v as d, for a literal that follows."""
    return values.constant(d, kind.value) if isinstance(kind, Literal) else v


def _index(b: Any, kind: Kind, v: Any) -> Any:
    d = _dtype(kind)
    if not d.is_int:
        raise TypeError(f"an index is an integer, not {d}")
    return convert.cast(b, d, INT64, v) if d.lanes == 1 and d is not INT64 else v


# -- operators ------------------------------------------------------------------------------------------------


def _binary(name: str) -> Op:
    compares = name in ("eq", "ne", "lt", "le", "gt", "ge")

    def rule(kinds: Sequence[Kind]) -> Kind:
        if name == "add" and isinstance(kinds[0], Pointer):
            _dtype(kinds[1])
            return kinds[0]
        d = _same(kinds)
        return BOOL.with_lanes(d.lanes) if compares else d

    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
        if isinstance(result, Pointer):
            step = _index(b, kinds[1], args[1])
            return b.gep(args[0], [step], inbounds=True, source_etype=values.memory_type(result.dtype))
        d = _same(kinds)
        return arith.binary(b, name, d, *(_as(k, d, v) for k, v in zip(kinds, args, strict=True)))

    return Op(name, rule, emit)


def _unary(name: str) -> Op:
    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
        return arith.unary(b, name, result, args[0])

    return Op(name, lambda kinds: _dtype(kinds[0]), emit)


def _getitem(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    index, d = _index(b, kinds[1], args[1]), kinds[0].dtype
    mask = args[2] if len(args) > 2 else None
    fetch = values.load if result.lanes == 1 else values.gather
    return fetch(b, d, args[0], index, mask)


def _setitem(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> None:
    index, d = _index(b, kinds[1], args[1]), kinds[0].dtype
    v = _as(kinds[2], d, args[2])
    mask = args[3] if len(args) > 3 else None
    put = values.store if _dtype(kinds[1]).lanes == 1 else values.scatter
    put(b, d, args[0], index, v, mask)


def _element_rule(kinds: Sequence[Kind]) -> Kind:
    d: DType = kinds[0].dtype
    return d.with_lanes(_dtype(kinds[1]).lanes)


def _store_rule(kinds: Sequence[Kind]) -> Kind:
    d: DType = kinds[0].dtype.with_lanes(_dtype(kinds[1]).lanes)
    if not isinstance(kinds[2], Literal) and kinds[2] is not d:
        raise TypeError(f"{kinds[2]} stored to {d}")
    return VOID


OPERATORS: dict[Any, Op] = {
    **{
        getattr(operator, py): _binary(name)
        for py, name in [
            ("add", "add"), ("sub", "sub"), ("mul", "mul"), ("truediv", "div"), ("floordiv", "floordiv"),
            ("mod", "floormod"), ("and_", "bitand"), ("or_", "bitor"), ("xor", "bitxor"), ("lshift", "shl"),
            ("rshift", "shr"), ("eq", "eq"), ("ne", "ne"), ("lt", "lt"), ("le", "le"), ("gt", "gt"), ("ge", "ge"),
        ]
    },
    operator.neg: _unary("neg"),
    operator.invert: _unary("bitnot"),
    operator.not_: _unary("not"),
    operator.getitem: Op("getitem", _element_rule, _getitem),
    operator.setitem: Op("setitem", _store_rule, _setitem),
    bool: Op("bool", lambda kinds: BOOL, lambda b, kinds, _, args: convert.cast(b, _dtype(kinds[0]), BOOL, args[0])),
}  # fmt: skip


# -- memory -----------------------------------------------------------------------------------------------------


def _load16(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    return values.load(b, result, args[0], _index(b, kinds[1], args[1]), args[2] if len(args) > 2 else None)


def _store16(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> None:
    mask = args[3] if len(args) > 3 else None
    values.store(b, kinds[2], args[0], _index(b, kinds[1], args[1]), args[2], mask)


def _pointer(d: DType) -> Op:
    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
        return args[0] if isinstance(kinds[0], Pointer) else b.inttoptr(args[0], values.PTR)

    return Op(f"{TYPE_NAMES[d.name]}_pointer", lambda kinds: Pointer(d), emit)


def _range_rule(kinds: Sequence[Kind]) -> Kind:
    return LoopOver(_same(kinds))


def _range(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    """start, stop, step in int64 and a slot for the counter, kept in memory that LLVM turns into registers."""
    d = result.dtype
    full = [convert.cast(b, d, INT64, _as(k, d, v)) for k, v in zip(kinds, args, strict=True)]
    if len(full) == 1:
        full = [values.constant(INT64, 0), *full]
    if len(full) == 2:
        full.append(values.constant(INT64, 1))
    with b.goto_entry_block():
        slot = b.bitcast(b.alloca(values.I64, size=3), values.PTR)
    for i, v in enumerate(full):
        b.store(v, _field(b, slot, i))
    return slot


def _field(b: Any, slot: Any, i: int) -> Any:
    return b.gep(slot, [ll.Constant(values.I64, i)], inbounds=True, source_etype=values.I64)


def next_of_range(b: Any, d: DType, slot: Any) -> tuple[Any, Any]:
    """The counter and whether it is inside; advances."""
    now, stop, step = (b.load(_field(b, slot, i), typ=values.I64) for i in range(3))
    up = b.icmp_signed(">", step, values.constant(INT64, 0))
    inside = b.select(up, b.icmp_signed("<", now, stop), b.icmp_signed(">", now, stop))
    b.store(b.add(now, step, flags=("nsw",)), _field(b, slot, 0))
    return convert.cast(b, INT64, d, now), inside


OPERATORS[range] = Op("range", _range_rule, _range)


# -- functions ----------------------------------------------------------------------------------------------------


def _cast(d: DType) -> Op:
    def rule(kinds: Sequence[Kind]) -> Kind:
        if _dtype(kinds[0]).lanes not in (1, d.lanes):
            raise TypeError(f"{kinds[0]} does not become {d}")
        return d

    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
        src, v = _dtype(kinds[0]), args[0]
        if isinstance(kinds[0], Literal):
            return values.constant(d, kinds[0].value)
        if isinstance(v, ll.Constant) and src is FLOAT64 and d.is_float and not d.is_narrow:
            return values.constant(d, v.constant)
        v = convert.cast(b, src, d.with_lanes(src.lanes), v)
        return values.splat(b, v, d.lanes) if src.lanes != d.lanes else v

    name = TYPE_NAMES[d.scalar.name] + ("" if d.lanes == 1 else f"x{d.lanes}")
    return Op(name, rule, emit)


def _reinterpret(d: DType) -> Op:
    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
        return arith.reinterpret(b, d, args[0])

    return Op("as_" + _cast(d).name, lambda kinds: d, emit)


def _binary_function(public: str, name: str) -> Op:
    op = _binary(name)
    return Op(public, op.rule, op.emit)


def _select(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    t, f = (_as(k, result, v) for k, v in zip(kinds[1:], args[1:], strict=True))
    return b.select(args[0], t, f)


def _ramp(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> Any:
    return values.ramp(b, args[0], kinds[1].value)


def _classify(name: str) -> Op:
    return Op(
        name,
        lambda kinds: BOOL.with_lanes(kinds[0].lanes),
        lambda b, kinds, result, args: arith.classify(b, name, kinds[0], args[0]),
    )


def _bits(name: str) -> Op:
    return Op(name, lambda kinds: kinds[0], lambda b, kinds, result, args: arith.bit_function(b, name, args[0]))


def _hreduce(op: str) -> Op:
    return Op(
        f"hreduce_{op}",
        lambda kinds: kinds[0].scalar,
        lambda b, kinds, result, args: arith.hreduce(b, op, kinds[0], args[0]),
    )


def _mix(name: str) -> Op:
    return Op(
        name, lambda kinds: kinds[0], lambda b, kinds, result, args: values.shuffle(b, args[0], args[1], MIXES[name])
    )


def dialect_names() -> dict[str, Op]:
    """Every function of the dialect by the name that printed text uses."""
    ops = [
        Op("load", _element_rule, _getitem),
        Op("store", _store_rule, _setitem),
        Op("load16", lambda kinds: kinds[0].dtype.with_lanes(16), _load16),
        Op("store16", lambda kinds: VOID, _store16),
        Op("address", lambda kinds: INT64, lambda b, kinds, result, args: b.ptrtoint(args[0], values.I64)),
        Op("fma", _same, lambda b, kinds, result, args: arith.fma(b, *args)),
        Op("select", lambda kinds: _same(kinds[1:]), _select),
        Op("ramp", lambda kinds: _dtype(kinds[0]).with_lanes(16), _ramp),
        *(_unary(name) for name in ("sqrt", "floor", "ceil", "trunc", "rint")),
        _binary_function("maximum", "max"),
        _binary_function("minimum", "min"),
        _binary_function("truncdiv", "truncdiv"),
        _binary_function("truncmod", "truncmod"),
        _binary_function("floordiv", "floordiv"),
        *(_classify(name) for name in ("isnan", "isinf", "isfinite")),
        *(_bits(name) for name in ("popcount", "clz", "brev")),
        *(_hreduce(op) for op in ("add", "max", "min", "bitand", "bitor", "bitxor")),
        Op("permute", lambda kinds: kinds[0], lambda b, kinds, result, args: arith.permute(b, *args)),
        *(_mix(name) for name in MIXES),
        Op("any_lane", lambda kinds: BOOL, lambda b, kinds, result, args: arith.any_lane(b, args[0])),
    ]
    absolute = _unary("abs")
    ops.append(Op("absolute", absolute.rule, absolute.emit))
    for name in TYPE_NAMES:
        d = as_dtype(name)
        ops.append(_pointer(d))
        for lanes in (1, 16):
            ops += [_cast(d.with_lanes(lanes)), _reinterpret(d.with_lanes(lanes))]
    return {op.name: op for op in ops}
