"""T.call_extern: CUDA's documented scalar and warp intrinsics by name, with one meaning on every target.

The table says what each takes and gives, as its C declaration does, and writes its meaning with functions of T.
Arguments are converted to the declared types, the result to the type that the call names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileAttributeError, TileTypeError, suggest
from tiledsl.frontend.location import error
from tiledsl.frontend.promotion import is_number, slice_dtype
from tiledsl.frontend.values import Value, as_bool, as_value, to_dtype
from tiledsl.language import bits, casts, functions, math, threads
from tiledsl.language.operation import operation

__all__ = ["NAMES", "call_extern"]

_SHORT = {
    "f": "float32", "d": "float64", "h": "float16", "b": "bfloat16", "i": "int32", "u": "uint32", "l": "int64",
    "w": "uint64", "s": "int16", "t": "uint16", "p": "bool",
}  # fmt: skip
_Call = Callable[..., Any]
_row: tuple[str, str, str, _Call]  # names, what they take, what they give, the meaning (`_add`)
_TABLE: dict[str, tuple[str, str, _Call]] = {}


def _add(names: str, takes: str, gives: str, meaning: Callable[..., Any]) -> None:
    """takes and gives: one letter of _SHORT per value; "*" is a value of any type, "m" a mask of lanes and "n" an int
    that may be left out; a function that gives "" is a statement."""
    for name in names.split():
        _TABLE[name] = (takes, gives, meaning)


def _as(dtype: str) -> Callable[[Any], Any]:
    return lambda x: casts.cast(x, dtype)


def _bits_of(dtype: str) -> Callable[[Any], Any]:
    return lambda x: casts.reinterpret(x, dtype)


def _toward(dtype: str, mode: str) -> Callable[[Any], Any]:
    """A float32 rounded to a narrower float, to zero, up or down."""
    integer = f"int{as_dtype(dtype).bits}"

    def convert(x: Any) -> Any:
        near = casts.cast(x, dtype)
        back = casts.cast(near, "float32")
        magnitude_down = Value(to_dtype(casts.reinterpret(near, integer) - 1, as_dtype(integer)))
        magnitude_up = Value(to_dtype(casts.reinterpret(near, integer) + 1, as_dtype(integer)))
        if mode == "rz":
            return math.select_value(math.abs(back) > math.abs(x), casts.reinterpret(magnitude_down, dtype), near)
        smallest = casts.reinterpret(Value(to_dtype(1, as_dtype(integer))), dtype)
        if mode == "rd":
            below = math.select_value(back > 0, magnitude_down, magnitude_up)
            moved = math.select_value(back == 0, -smallest, casts.reinterpret(Value(below.typed), dtype))
            return math.select_value(back > x, moved, near)
        above = math.select_value(back > 0, magnitude_up, magnitude_down)
        moved = math.select_value(back == 0, smallest, casts.reinterpret(Value(above.typed), dtype))
        return math.select_value(back < x, moved, near)

    return convert


def _rounded(operation: Callable[..., Any], mode: str) -> Callable[..., Any]:
    return lambda *args: operation(*args, mode)


def _saturate(x: Any) -> Any:
    """[0, 1]; NaN becomes 0."""
    return math.min(math.max(x, 0.0), 1.0)


def _high(a: Any, b: Any) -> Any:
    wide = "int64" if a.dtype.is_signed else "uint64"
    return (casts.cast(a, wide) * casts.cast(b, wide)) >> 32


def _rounded_int(x: Any, rounding: Callable[[Any], Any], dtype: str) -> Any:
    return casts.cast(rounding(x), dtype)


# bits of integers
for _letters, _suffix in (("u", ""), ("w", "ll")):
    _add(f"__popc{_suffix}", _letters, "i", bits.popcount)
    _add(f"__clz{_suffix}", _letters, "i", bits.clz)
    _add(f"__ffs{_suffix}", _letters, "i", bits.ffs)
    _add(f"__brev{_suffix}", _letters, _letters, bits.brev)
for _row in (
    ("__byte_perm", "uuu", "u", bits.byte_perm),
    ("__funnelshift_l", "uuu", "u", lambda lo, hi, n: (_join(lo, hi) << casts.cast(n & 31, "uint64")) >> 32),
    ("__funnelshift_r", "uuu", "u", lambda lo, hi, n: _join(lo, hi) >> casts.cast(n & 31, "uint64")),
    ("__mulhi", "ii", "i", _high),
    ("__umulhi", "uu", "u", _high),
    ("__dp4a", "iii", "i", lambda a, b, c: _dp4a("int8x4", a, b, c)),
    ("__mul24", "ii", "i", lambda a, b: ((a << 8) >> 8) * ((b << 8) >> 8)),
    ("__umul24", "uu", "u", lambda a, b: (a & 0xFFFFFF) * (b & 0xFFFFFF)),
    ("min", "**", "*", math.min),
    ("max", "**", "*", math.max),
    ("abs", "*", "*", math.abs),
    ("umin", "uu", "u", math.min),
    ("umax", "uu", "u", math.max),
):
    _add(*_row)


def _join(low: Any, high: Any) -> Any:
    return (casts.cast(high, "uint64") << 32) | casts.cast(low, "uint64")


def _dp4a(dtype: str, a: Any, b: Any, c: Any) -> Any:
    """c and the product of the bytes of a and b."""
    x, y = (casts.reinterpret(v, dtype) for v in (a, b))
    return functools.reduce(lambda total, k: total + x[k] * y[k], range(4), c)


# bits of floats, both ways
for _float, _letter, _ints in (
    ("float", "f", (("int", "i"), ("uint", "u"))),
    ("double", "d", (("longlong", "l"),)),
    ("half", "h", (("short", "s"), ("ushort", "t"))),
    ("bfloat16", "b", (("short", "s"), ("ushort", "t"))),
):
    for _int, _other in _ints:
        _add(f"__{_float}_as_{_int}", _letter, _other, _bits_of(_SHORT[_other]))
        _add(f"__{_int}_as_{_float}", _other, _letter, _bits_of(_SHORT[_letter]))

# conversions
for _row in (
    ("__float2half __float2half_rn", "f", "h", _as("float16")),
    ("__float2bfloat16 __float2bfloat16_rn", "f", "b", _as("bfloat16")),
    ("__half2float", "h", "f", _as("float32")),
    ("__bfloat162float", "b", "f", _as("float32")),
    ("__double2float_rn", "d", "f", _as("float32")),
    ("__int2float_rn", "i", "f", _as("float32")),
    ("__uint2float_rn", "u", "f", _as("float32")),
    ("__int2double_rn", "i", "d", _as("float64")),
    ("__int2half_rn", "i", "h", _as("float16")),
):
    _add(*_row)
for _mode, _round in (("rz", math.trunc), ("rn", math.round), ("ru", math.ceil), ("rd", math.floor)):
    for _letter, _kind in (("f", "float"), ("d", "double"), ("h", "half")):
        for _to, _type in (("i", "int"), ("u", "uint"), ("l", "ll"), ("w", "ull")):
            _add(
                f"__{_kind}2{_type}_{_mode}", _letter, _to,
                lambda x, r=_round, t=_to: _rounded_int(x, r, _SHORT[t]),
            )  # fmt: skip
    if _mode != "rn":
        _add(f"__float2half_{_mode}", "f", "h", _toward("float16", _mode))
        _add(f"__float2bfloat16_{_mode}", "f", "b", _toward("bfloat16", _mode))
    _add(f"__fadd_{_mode}", "ff", "f", _rounded(functions.ieee_add, _mode))
    _add(f"__fsub_{_mode}", "ff", "f", _rounded(functions.ieee_sub, _mode))
    _add(f"__fmul_{_mode}", "ff", "f", _rounded(functions.ieee_mul, _mode))
    _add(f"__fdiv_{_mode}", "ff", "f", _rounded(functions.ieee_fdiv, _mode))
    _add(f"__fmaf_{_mode}", "fff", "f", _rounded(functions.ieee_fmaf, _mode))
    _add(f"__frcp_{_mode}", "f", "f", _rounded(functions.ieee_frcp, _mode))
    _add(f"__fsqrt_{_mode}", "f", "f", _rounded(functions.ieee_fsqrt, _mode))
for _row in (
    ("__frsqrt_rn", "f", "f", math.rsqrt),
    ("__dadd_rn", "dd", "d", lambda a, b: a + b),
    ("__dmul_rn", "dd", "d", lambda a, b: a * b),
    ("__fma_rn", "ddd", "d", math.fma),
    ("__saturatef", "f", "f", _saturate),
    ("__fdividef fdividef", "ff", "f", lambda a, b: a / b),
):
    _add(*_row)

# functions of floats: float, double where the name has no f, and half
for _name in ("sin", "cos", "tan", "sinh", "cosh", "tanh", "exp", "exp2", "exp10", "expm1", "log", "log2", "log10",
              "log1p", "erf", "atan", "asin", "acos", "asinh", "acosh", "atanh"):  # fmt: skip
    _add(f"{_name}f", "f", "f", getattr(functions, _name))
    _add(_name, "d", "d", getattr(functions, _name))
    if _name in ("sin", "cos", "exp", "exp2", "exp10", "log", "log2", "log10"):
        _add(f"h{_name}", "h", "h", getattr(functions, _name))
    if hasattr(functions, f"__{_name}"):
        _add(f"__{_name}f", "f", "f", getattr(functions, f"__{_name}"))
for _name in ("sqrt", "rsqrt", "floor", "ceil", "trunc"):
    _add(f"{_name}f", "f", "f", getattr(math, _name))
    _add(_name, "d", "d", getattr(math, _name))
    _add(f"h{_name}", "h", "h", getattr(math, _name))
for _row in (
    ("fabsf", "f", "f", math.abs),
    ("fabs", "d", "d", math.abs),
    ("rintf nearbyintf", "f", "f", math.round),
    ("rint nearbyint", "d", "d", math.round),
    ("roundf", "f", "f", lambda x: math.round(x, "ties-away-from-zero")),
    ("fmaxf", "ff", "f", math.max),
    ("fminf", "ff", "f", math.min),
    ("fmax", "dd", "d", math.max),
    ("fmin", "dd", "d", math.min),
    ("fmaf", "fff", "f", math.fma),
    ("fma", "ddd", "d", math.fma),
    ("powf", "ff", "f", functions.pow),
    ("pow", "dd", "d", functions.pow),
    ("__powf", "ff", "f", getattr(functions, "__pow")),
    ("fmodf", "ff", "f", functions.fmod),
    ("fmod", "dd", "d", functions.fmod),
    ("atan2f", "ff", "f", functions.atan2),
    ("atan2", "dd", "d", functions.atan2),
    ("hypotf", "ff", "f", functions.hypot),
    ("hypot", "dd", "d", functions.hypot),
    ("ldexpf scalbnf", "fi", "f", functions.ldexp),
    ("ldexp scalbn", "di", "d", functions.ldexp),
    ("copysignf", "ff", "f", functions.copysign),
    ("copysign", "dd", "d", functions.copysign),
    # of float16 or bfloat16, as the arguments are
    ("__hadd __hadd_rn", "**", "*", lambda a, b: a + b),
    ("__hsub __hsub_rn", "**", "*", lambda a, b: a - b),
    ("__hmul __hmul_rn", "**", "*", lambda a, b: a * b),
    ("__hdiv", "**", "*", lambda a, b: a / b),
    ("__hfma", "***", "*", math.fma),
    ("__hneg", "*", "*", lambda a: -a),
    ("__habs", "*", "*", math.abs),
    ("__hmax", "**", "*", math.max),
    ("__hmin", "**", "*", math.min),
    ("__hgt", "**", "p", lambda a, b: a > b),
    ("__hge", "**", "p", lambda a, b: a >= b),
    ("__hlt", "**", "p", lambda a, b: a < b),
    ("__hle", "**", "p", lambda a, b: a <= b),
    ("__heq", "**", "p", lambda a, b: a == b),
    ("__hne", "**", "p", lambda a, b: a != b),
    ("__hisnan", "*", "p", math.isnan),
    # the other threads of the warp or block
    ("__shfl_sync", "m*in", "*", lambda mask, v, lane, width=32: threads.shfl_sync(v, lane, width, mask)),
    ("__shfl_up_sync", "m*un", "*", lambda mask, v, by, width=32: threads.shfl_up(v, by, width, mask)),
    ("__shfl_down_sync", "m*un", "*", lambda mask, v, by, width=32: threads.shfl_down(v, by, width, mask)),
    ("__shfl_xor_sync", "m*in", "*", lambda mask, v, by, width=32: threads.shfl_xor(v, by, width, mask)),
    ("__ballot_sync", "mp", "u", lambda mask, v: threads.ballot_sync(v, mask)),
    ("__any_sync", "mp", "i", lambda mask, v: threads.any_sync(v, mask)),
    ("__all_sync", "mp", "i", lambda mask, v: threads.all_sync(v, mask)),
    ("__match_any_sync", "m*", "u", lambda mask, v: threads.match_any_sync(v, mask)),
    ("__activemask", "", "u", threads.activemask),
    ("__syncthreads", "", "", threads.sync_threads),
    ("__syncwarp", "", "", lambda: threads.sync_warp()),
    ("__syncthreads_count", "p", "i", threads.syncthreads_count),
    ("__syncthreads_and", "p", "i", threads.syncthreads_and),
    ("__syncthreads_or", "p", "i", threads.syncthreads_or),
):
    _add(*_row)


NAMES = frozenset(_TABLE)


@operation
def call_extern(return_type: Any, func_name: str, *args: Any) -> Any:
    """One of CUDA's documented intrinsics by name: `T.call_extern("int32", "__popc", x)`.

    The result is converted to return_type ("handle" or "void": nothing). Names outside the table are refused: other
    functions have no meaning on other targets.
    """
    found = _TABLE.get(func_name)
    if found is None:
        raise error(
            "extern-name",
            TileAttributeError,
            f"T.call_extern: {func_name!r} is none of CUDA's documented scalar and warp intrinsics, "
            "and another function has no meaning on other targets",
            help=suggest(str(func_name), list(_TABLE)) or "write it with functions of T, or as a @T.macro",
        )
    takes, gives, meaning = found
    if not len(takes.removesuffix("n")) <= len(args) <= len(takes):
        raise error(
            "extern-arguments",
            TileTypeError,
            f"T.call_extern: {func_name} takes {len(takes.removesuffix('n'))} arguments, got {len(args)}",
        )
    given = [
        x if kind in "mn" else _argument(f"T.call_extern: argument {i} of {func_name}", x, kind)
        for i, (x, kind) in enumerate(zip(args, takes, strict=False))
    ]
    result = meaning(*given)
    if not gives or str(return_type) in ("handle", "void"):
        return None
    target = slice_dtype(return_type, "T.call_extern: the type of the result")
    value = as_value(result, "T.call_extern: the result")
    if gives != "*":
        value = Value(to_dtype(value, as_dtype(_SHORT[gives])))
    return Value(to_dtype(value, target))


def _argument(what: str, x: Any, kind: str) -> Value:
    value = as_value(x, what)
    if kind == "*":
        return value
    dtype = as_dtype(_SHORT[kind])
    return Value(as_bool(value, what) if dtype.is_bool else to_dtype(x if is_number(x) else value, dtype))
