"""C names of types and values: what the prelude calls each dtype, and how constants are written."""

from __future__ import annotations

import math
import re

import numpy as np

from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileNotImplementedError

__all__ = ["ELEMENT_BYTES", "RESERVED", "c_type", "constant", "natural", "suffix", "unique"]

_SUFFIX = {
    "float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "bool",
    "float8_e4m3fn": "e4m3", "float8_e5m2": "e5m2", "float8_e8m0fnu": "e8m0", "float4_e2m1fn": "e2m1",
    "int4": "i8", "uint4": "u8", "handle": "u64",
    **{f"{sign}int{bits}": f"{sign or 'i'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}  # fmt: skip
_C = {"f32": "float", "f64": "double", "i32": "int"}
ELEMENT_BYTES = {"float4_e2m1fn": 1, "int4": 1, "uint4": 1}  # one element per byte where nobody looks at the bytes

RESERVED = frozenset(
    "alignas alignof and and_eq asm auto bitand bitor bool break case catch char class compl const constexpr continue "
    "decltype default delete do double else enum explicit export extern false float for friend goto if inline int long "
    "mutable namespace new noexcept not not_eq nullptr operator or or_eq private protected public register return "
    "short signed sizeof static struct switch template this throw true try typedef typename union unsigned using "
    "virtual void volatile while xor xor_eq main threadIdx blockIdx blockDim gridDim warpSize inline restrict "
    "NULL INFINITY NAN".split()
)


def suffix(d: DType) -> str:
    """The prelude's short name of a type: f32, bf16, u8 ..."""
    if d.is_vector:
        raise TileNotImplementedError(f"vectors ({d}) are not supported on GPUs yet", help="use scalars of the type")
    return _SUFFIX[d.name]


def c_type(d: DType) -> str:
    """The C type of one element."""
    name = suffix(d)
    return _C.get(name, f"tl_{name}")


def natural(d: DType) -> DType:
    """The type in which C computes with integers of a type."""
    return as_dtype("int32") if d.is_bool or d.bits < 32 else d


def constant(value: object, d: DType) -> str:
    """A constant of the type."""
    if d.is_bool:
        return "true" if value else "false"
    if d.name in ("float32", "float64"):
        return _float(float(value), d)  # type: ignore[arg-type]
    if d.is_float:
        return f"tl_cvt_{suffix(d)}_f32({_float(float(value), as_dtype('float32'))})"  # type: ignore[arg-type]
    number = int(value)  # type: ignore[call-overload]
    if d.name in ("uint64", "handle"):
        return f"{number}ull"
    if d.name == "uint32":
        return f"{number}u"
    if d.name == "int64":
        return "(-9223372036854775807ll - 1)" if number == -(1 << 63) else f"{number}ll"
    return "(-2147483647 - 1)" if number == -(1 << 31) else str(number)


def _float(value: float, d: DType) -> str:
    if d.name == "float32":
        value = float(np.float32(value))
        if not math.isfinite(value):
            return f"tl_f32_bits(0x{np.float32(value).view(np.uint32):08x}u)"
        text = repr(np.float32(value).item()) if value == int(value) and abs(value) < 1e16 else str(np.float32(value))
        return f"{text if '.' in text or 'e' in text else text + '.0'}f"
    if not math.isfinite(value):
        return f"tl_f64_bits(0x{np.float64(value).view(np.uint64):016x}ull)"
    return repr(value)


def unique(name: str, taken: set[str]) -> str:
    """A C name near the wanted one that is not taken yet; it is taken then."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "v"
    name = f"v{name}" if name[0].isdigit() or name.startswith(("tl_", "TL_", "tlr_")) else name
    found, n = name, 1
    while found in taken or found in RESERVED:
        n += 1
        found = f"{name}_{n}"
    taken.add(found)
    return found
