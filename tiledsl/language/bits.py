"""Bits of integers, and small helpers: T.popcount, T.clz, T.byte_perm, T.align_up, T.any_of, T.all_of ..."""

from __future__ import annotations

from typing import Any

from tiledsl import ir
from tiledsl.dtypes import UINT32, UINT64, DType, as_dtype
from tiledsl.errors import TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.control import CONTROL, tracer
from tiledsl.frontend.location import error, here
from tiledsl.frontend.loops import LoopSpec, close_loop, open_loop
from tiledsl.frontend.promotion import BOOL, is_number
from tiledsl.frontend.storage import BufferRef, RegionRef
from tiledsl.frontend.values import Value, as_bool, as_value, to_dtype
from tiledsl.language.math import ceildiv, select_value
from tiledsl.language.memory import alloc_var, as_region
from tiledsl.language.operation import operation, surface

__all__ = [
    "align_up", "all_of", "any_of", "brev", "byte_perm", "clz", "determine_fp8_type", "evaluate", "ffs", "loop_break",
    "popcount",
]  # fmt: skip


def _bits(name: str, x: Any) -> tuple[Value, DType, int]:
    """(the bits as an unsigned integer of 32 or 64 bits, the operand's dtype, how many bits were added above)."""
    v = as_value(x, f"T.{name}: the argument")
    if not v.dtype.is_int:
        raise error(
            "bits-dtype",
            TileTypeError,
            f"T.{name} takes an integer, got {v!r} ({v.dtype})",
            help="for the bits of a float use T.reinterpret(x, T.uint32)",
        )
    width = v.dtype.bits
    own = Value(to_dtype(v, as_dtype(f"uint{width}")))
    wide = UINT64 if width == 64 else UINT32
    return Value(to_dtype(own, wide)), v.dtype, wide.bits - width


def _bit_call(name: str, x: Value) -> Value:
    return Value(ir.Call(name, (x.typed,), x.dtype, loc=here()))


@surface
def popcount(x: Any) -> Any:
    """How many bits of an integer are set; keeps the dtype."""
    bits, dtype, _ = _bits("popcount", x)
    return Value(to_dtype(_bit_call("popcount", bits), dtype))


@surface
def clz(x: Any) -> Any:
    """How many zero bits stand above the highest one of an integer (its width for 0); keeps the dtype."""
    bits, dtype, added = _bits("clz", x)
    return Value(to_dtype(_bit_call("clz", bits) - added, dtype))


@surface
def ffs(x: Any) -> Any:
    """The position of the lowest bit that is set, counted from 1; 0 for 0; keeps the dtype."""
    bits, dtype, _ = _bits("ffs", x)
    return Value(to_dtype(bits.dtype.bits - _bit_call("clz", bits & (~bits + 1)), dtype))


@surface
def brev(x: Any) -> Any:
    """The bits of an integer in reverse order; keeps the dtype."""
    bits, dtype, added = _bits("brev", x)
    return Value(to_dtype(_bit_call("brev", bits) >> added, dtype))


@surface
def byte_perm(x: Any, y: Any, selector: Any) -> Any:
    """Four of the eight bytes of two 32-bit integers (x has bytes 0 to 3, y 4 to 7) as a uint32.

    Each nibble of the selector, lowest first, names a byte of the result by its low three bits; its high bit asks for
    the byte's sign instead, repeated.
    """
    (a, _, _), (b, _, _), (s, _, _) = (_bits("byte_perm", v) for v in (x, y, selector))
    if any(v.dtype.bits != 32 for v in (a, b, s)):
        raise error("byte-perm", TileTypeError, "T.byte_perm takes 32-bit integers", help="convert with T.uint32(x)")
    both = Value(to_dtype(a, UINT64)) | (Value(to_dtype(b, UINT64)) << 32)
    result: Any = None
    for i in range(4):
        nibble = s >> (4 * i)
        byte = Value(to_dtype(both >> Value(to_dtype((nibble & 7) << 3, both.dtype)), UINT32)) & 0xFF
        sign = select_value((byte & 0x80) != 0, 0xFF, 0)
        byte = Value(to_dtype(select_value((nibble & 8) != 0, sign, byte), UINT32))
        result = byte if result is None else result | (byte << (8 * i))
    return result


# -- helpers --------------------------------------------------------------------------------------------------------


@surface
def align_up(value: Any, alignment: Any) -> Any:
    """The smallest multiple of alignment that is not below value; integers."""
    return ceildiv(value, alignment) * alignment


@surface
def determine_fp8_type(fp8_format: str = "e4m3") -> str:
    """The name of the 8-bit float type: "float8_e4m3fn" for "e4m3", "float8_e5m2" for "e5m2"."""
    names = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2"}
    if fp8_format not in names:
        raise error(
            "fp8-format", TileValueError, f"T.determine_fp8_type: {fp8_format!r} is no format", help="e4m3 or e5m2"
        )
    return names[fp8_format]


@operation
def evaluate(value: Any) -> None:
    """A value whose result is not needed. Values of kernels have no effect, so nothing remains of it."""
    if value is not None and not is_number(value):
        as_value(value, "T.evaluate: the value")


@operation
def loop_break() -> None:
    """Leaves the innermost loop: `break`."""
    if not tracer("T.loop_break").loops or CONTROL.jump("break"):
        raise error(
            "loop-break",
            TileSyntaxError,
            "T.loop_break leaves a loop of the kernel, and stands in none",
            help="loop with T.serial or range; loops over Python sequences run while tracing, there write `break`",
        )


def _fold(what: str, x: Any, every: bool) -> Value:
    """A loop over the elements, which are read as conditions."""
    if not isinstance(x, (BufferRef, RegionRef)):
        raise error(
            "any-all-operand",
            TileTypeError,
            f"{what} takes a buffer or a slice of one, got {x!r}",
            help="for two conditions write `a or b`, `a and b`",
        )
    region = as_region(x, what)
    builder = tracer(what)
    result = alloc_var(BOOL, every)
    result.bound = True
    nest = open_loop(builder, LoopSpec.nest(what, "serial", tuple(map(Value, region.extents))), ())
    places = [Value(s) + v for s, v in zip(region.starts, map(Value, nest.vars), strict=True)]
    element = as_bool(BufferRef(region.buffer)[tuple(places)], what)
    old = result.expr
    result.store(Value(ir.Binary("and" if every else "or", old, element, loc=here())))
    close_loop(builder, nest)
    return Value(result.expr)


@operation
def any_of(buffer: Any) -> Any:
    """True if some element of a buffer or slice is not 0."""
    return _fold("T.any_of", buffer, False)


@operation
def all_of(buffer: Any) -> Any:
    """True if every element of a buffer or slice is not 0."""
    return _fold("T.all_of", buffer, True)
