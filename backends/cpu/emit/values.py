"""LLVM types, constants, lane shuffles and memory of the loop stage's values.

An emitter is a pure function over an llvmlite IRBuilder. It knows dtypes, not Numba and not tiles. Values of narrow
floats are their bits (i16, i8; four bits in an i8): the loop stage only loads, stores and converts them.
bool is i1 as a value and one byte in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir

from tiledsl.dtypes import DType, as_dtype

__all__ = [
    "I1", "I8", "I32", "I64", "LANES", "PTR", "VOID", "at", "constant", "counted", "gather", "i64", "intrinsic",
    "lanes_of", "load", "memory_type", "merged", "opaque", "prefetch", "ramp", "register_bytes", "scatter", "shuffle",
    "splat", "splat_constant", "store", "suffix", "value_type",
]  # fmt: skip

LANES = 16  # lanes of every vector of the loop stage
PTR = ir.PointerType()
VOID = ir.VoidType()
I1, I8, I32, I64 = (ir.IntType(n) for n in (1, 8, 32, 64))
_FLOATS = {"float32": ir.FloatType(), "float64": ir.DoubleType()}

Value = Any  # llvmlite values are untyped for mypy


def value_type(d: DType) -> Any:
    """The LLVM type of a value: i1 for bool, bits for narrow floats, <n x ...> for vectors."""
    scalar = d.scalar
    t = _FLOATS.get(scalar.name) or (I1 if scalar.is_bool else ir.IntType(max(8, scalar.bits)))
    return t if d.lanes == 1 else ir.VectorType(t, d.lanes)


def memory_type(d: DType) -> Any:
    """The LLVM type of the same value in memory: a bool is a byte."""
    return value_type(as_dtype("uint8").with_lanes(d.lanes)) if d.is_bool else value_type(d)


def lanes_of(v: Value) -> int:
    return v.type.count if isinstance(v.type, ir.VectorType) else 1


def register_bytes(b: Any) -> int:
    """Width of the vector registers of the CPU that the module is for: whoever makes the module says so in its
    attribute `register_bytes`."""
    return int(getattr(b.module, "register_bytes", 16))


def suffix(t: Any) -> str:
    """The overload suffix of an LLVM intrinsic: f32, v16i8 ..."""
    if isinstance(t, ir.VectorType):
        return f"v{t.count}{suffix(t.element)}"
    if isinstance(t, ir.IntType):
        return f"i{t.width}"
    return {"float": "f32", "double": "f64", "half": "f16"}[str(t)]


def intrinsic(b: Any, name: str, result: Any, args: Sequence[Value], aligned: dict[int, int] | None = None) -> Value:
    """Calls an LLVM intrinsic or external function; `aligned`: argument -> alignment in bytes."""
    f = b.module.globals.get(name)
    if f is None:
        f = ir.Function(b.module, ir.FunctionType(result, [a.type for a in args]), name)
        for i, bytes_ in (aligned or {}).items():
            f.args[i].attributes.align = bytes_
    return b.call(f, args)


def constant(d: DType, x: Any) -> Value:
    """A Python bool, int or float as a constant of d (all lanes). Integers wrap."""
    t = value_type(d.scalar)
    if d.is_float and not d.is_narrow:
        c = ir.Constant(t, float(x))
    elif d.is_bool:
        c = ir.Constant(t, int(bool(x)))
    else:
        c = ir.Constant(t, int(x) & ((1 << max(8, d.bits)) - 1))
    return c if d.lanes == 1 else splat_constant(c, d.lanes)


class _SplatConstant(ir.Constant):  # type: ignore[misc]
    """A vector constant with equal lanes, written shortly: the text of a module is mostly such constants."""

    def _get_reference(self) -> str:
        lane = self.constant[0]
        return f"splat ({lane.type} {lane.get_reference()})"


def splat_constant(c: Value, lanes: int) -> Value:
    return _SplatConstant(ir.VectorType(c.type, lanes), [c] * lanes)


def splat(b: Any, x: Value, lanes: int = LANES) -> Value:
    """All lanes equal to a scalar."""
    if isinstance(x, ir.Constant):
        return splat_constant(x, lanes)
    t = ir.VectorType(x.type, lanes)
    undefined = ir.Constant(t, ir.Undefined)
    one = b.insert_element(undefined, x, ir.Constant(I32, 0))
    return b.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, lanes), [0] * lanes))


def shuffle(b: Any, x: Value, y: Value | None, lanes: Sequence[int]) -> Value:
    """Lanes picked from x (0 ...) and y (count ...)."""
    y = ir.Constant(x.type, ir.Undefined) if y is None else y
    return b.shuffle_vector(x, y, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def ramp(b: Any, base: Value, stride: int, lanes: int = LANES) -> Value:
    """base, base + stride, ...; wraps."""
    mask = (1 << base.type.width) - 1
    steps = ir.Constant(ir.VectorType(base.type, lanes), [(i * stride) & mask for i in range(lanes)])
    return b.add(splat(b, base, lanes), steps)


def merged(b: Any, *ways: tuple[Value, Any]) -> Value:
    """The value that each of the blocks which lead here brings."""
    phi = b.phi(ways[0][0].type)
    for v, block in ways:
        phi.add_incoming(v, block)
    return phi


def counted(b: Any, start: Value, stop: Value, step: int, body: Callable[..., Any], *carried: Value) -> list[Value]:
    """for i in range(start, stop, step) in int64: body(i, *carried) gives what the next round gets. Returns i and
    what is carried, behind the loop."""
    before = b.block
    head, inside, after = (b.append_basic_block() for _ in range(3))
    b.branch(head)
    b.position_at_end(head)
    now = [merged(b, (v, before)) for v in (start, *carried)]
    b.cbranch(b.icmp_signed("<", now[0], stop), inside, after)
    b.position_at_end(inside)
    given = body(*now)
    following = b.add(now[0], ir.Constant(I64, step), flags=("nsw",))
    for phi, v in zip(now, (following, *given) if carried else (following,), strict=True):
        phi.add_incoming(v, b.block)
    b.branch(head)
    b.position_at_end(after)
    return now


def _element(b: Any, d: DType, base: Value, index: Value) -> Value:
    return b.gep(base, [index], inbounds=True, source_etype=memory_type(d.scalar))


def _to_memory(b: Any, d: DType, v: Value) -> Value:
    return b.zext(v, memory_type(d)) if d.is_bool else v


def _from_memory(b: Any, d: DType, v: Value) -> Value:
    return b.icmp_unsigned("!=", v, ir.Constant(v.type, None)) if d.is_bool else v


def load(b: Any, d: DType, base: Value, index: Value, mask: Value | None = None) -> Value:
    """d.lanes elements from base[index] on (index: i64, in elements); off lanes are not touched and give 0.

    Nothing more than the element's own alignment is assumed of the address.
    """
    address, t, align = _element(b, d, base, index), memory_type(d), max(1, d.bits // 8)
    if mask is None:
        return _from_memory(b, d, b.load(address, align=align, typ=t))
    if d.lanes == 1:
        with b.if_else(mask) as (then, otherwise):
            with then:
                loaded, end = b.load(address, align=align, typ=t), b.block
            with otherwise:
                other = b.block
        return _from_memory(b, d, merged(b, (loaded, end), (ir.Constant(t, None), other)))
    name = f"llvm.masked.load.{suffix(t)}.p0"
    loaded = intrinsic(b, name, t, [address, _by_signs(b, mask, d.bits), ir.Constant(t, None)], {0: align})
    _keep(b, loaded)
    return _from_memory(b, d, loaded)


def store(b: Any, d: DType, base: Value, index: Value, v: Value, mask: Value | None = None) -> None:
    """d.lanes elements to base[index] on; off lanes stay as they are."""
    address, align = _element(b, d, base, index), max(1, d.bits // 8)
    v = _to_memory(b, d, v)
    if mask is None:
        b.store(v, address, align=align)
    elif d.lanes == 1:
        with b.if_then(mask):
            b.store(v, address, align=align)
    else:
        if d.bits < 64 and not d.is_float or d.is_narrow:
            _keep(b, v)
        intrinsic(b, f"llvm.masked.store.{suffix(v.type)}.p0", VOID, [v, address, mask], {1: align})


def _keep(b: Any, v: Value) -> None:
    """A second use of v, which keeps LLVM (22) from two mistakes. A masked load with one use, in a select under the
    same mask, is done where the select is, also behind a store to the same place. And on x86 with AVX-512 the
    truncation that made v is merged with a masked store; where the mask is a constant with one lane on, that lane is
    then stored untruncated over its neighbours."""
    f = b.module.globals.get("llvm.fake.use")
    if f is None:
        f = ir.Function(b.module, ir.FunctionType(VOID, [], var_arg=True), "llvm.fake.use")
    b.call(f, [v])


def _by_signs(b: Any, mask: Value, bits: int) -> Value:
    """The mask of a load, as LLVM (22) needs it for AVX2: when it finds there that a register's part of a mask is all
    off, it loads that part without a mask. So it is kept from knowing the mask, as sign bits of the loaded elements'
    width, which the instruction wants."""
    lanes = lanes_of(mask)
    if register_bytes(b) != 32 or bits not in (32, 64) or lanes * bits < 128 or isinstance(mask, ir.Constant):
        return mask
    signs = b.sext(mask, ir.VectorType(ir.IntType(bits), lanes))
    hidden = opaque(b, b.bitcast(signs, ir.VectorType(_FLOATS[f"float{bits}"], lanes)))
    return b.icmp_signed("<", b.bitcast(hidden, signs.type), ir.Constant(signs.type, None))


def opaque(b: Any, v: Value) -> Value:
    """v, one or more floats, of which the compiler knows nothing."""
    return intrinsic(b, f"llvm.arithmetic.fence.{suffix(v.type)}", v.type, [v])


def _all_on(lanes: int) -> Value:
    return ir.Constant(ir.VectorType(I1, lanes), [1] * lanes)


def _addresses(b: Any, d: DType, base: Value, index: Value) -> Value:
    """A vector of addresses; index: of int64."""
    lanes = lanes_of(index)
    size = max(1, d.bits // 8)
    places = b.add(splat(b, b.ptrtoint(base, I64), lanes), b.mul(index, splat_constant(i64(size), lanes)))
    return b.inttoptr(places, ir.VectorType(PTR, lanes))


def gather(b: Any, d: DType, base: Value, index: Value, mask: Value | None = None) -> Value:
    """One element per lane from base[index[lane]]; off lanes give 0. d: the scalar dtype."""
    lanes = lanes_of(index)
    t = memory_type(d.with_lanes(lanes))
    args = [_addresses(b, d, base, index), _all_on(lanes) if mask is None else mask, ir.Constant(t, None)]
    align = max(1, d.bits // 8)
    got = intrinsic(b, f"llvm.masked.gather.{suffix(t)}.v{lanes}p0", t, args, {0: align})
    return _from_memory(b, d.with_lanes(lanes), got)


def scatter(b: Any, d: DType, base: Value, index: Value, v: Value, mask: Value | None = None) -> None:
    """One element per lane to base[index[lane]], ascending lanes (the last one wins)."""
    lanes = lanes_of(index)
    v = _to_memory(b, d.with_lanes(lanes), v)
    args = [v, _addresses(b, d, base, index), _all_on(lanes) if mask is None else mask]
    align = max(1, d.bits // 8)
    intrinsic(b, f"llvm.masked.scatter.{suffix(v.type)}.v{lanes}p0", VOID, args, {1: align})


def i64(x: int) -> Value:
    return ir.Constant(I64, x)


def at(b: Any, p: Value, offset: Value) -> Value:
    """p + offset bytes."""
    return b.gep(p, [offset], inbounds=True, source_etype=I8)


def prefetch(b: Any, p: Value, far: bool = False) -> None:
    """Asks for the line of memory at p, which need not exist. far: into the second-level cache."""
    intrinsic(b, "llvm.prefetch.p0", VOID, [p, *(ir.Constant(I32, x) for x in (0, 2 if far else 3, 1))])
