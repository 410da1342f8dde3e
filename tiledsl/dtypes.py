"""The dtype table: every scalar, packed and vector type of the language, with its NumPy storage.

Storage of the narrow floats comes from ml_dtypes; conversions between types live in `conversions.py`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["DType", "SCALARS", "as_dtype", "promote", "set_cast_hook"]

_CastHook = Callable[["DType", tuple[Any, ...]], Any]
_cast_hook: _CastHook | None = None


def set_cast_hook(hook: _CastHook) -> None:
    """Install what `T.float32(x)` does. The language room installs it; floor 0 cannot know expressions."""
    global _cast_hook
    _cast_hook = hook


class DType(str):
    """One type of the language: its name, a text that knows what it means. Interned: two equal types are the same
    object.

    name   canonical name ("float32", "int8", "float32x4", "bool", "handle")
    kind   "float" | "int" | "uint" | "bool" | "handle"
    bits   bits of one logical element (one lane)
    lanes  1 for scalars, 2..64 for vectors
    """

    __slots__ = ("bits", "kind", "lanes", "name")

    name: str
    kind: str
    bits: int
    lanes: int

    def __new__(cls, name: str, kind: str, bits: int, lanes: int = 1) -> DType:
        made = super().__new__(cls, name)
        made.name, made.kind, made.bits, made.lanes = name, kind, bits, lanes
        return made

    # -- classification -------------------------------------------------------------------------
    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_int(self) -> bool:
        """True for signed and unsigned integers, not for bool."""
        return self.kind in ("int", "uint")

    @property
    def is_signed(self) -> bool:
        return self.kind in ("int", "float")

    @property
    def is_bool(self) -> bool:
        return self.kind == "bool"

    @property
    def is_vector(self) -> bool:
        return self.lanes > 1

    @property
    def is_packed(self) -> bool:
        """Sub-byte: logical shape, packed storage, low nibble first."""
        return self.bits < 8

    @property
    def is_half(self) -> bool:
        """float16 and bfloat16."""
        return self.kind == "float" and self.bits == 16

    @property
    def is_narrow(self) -> bool:
        """Floats of 16 bits and less: arithmetic is the float32 operation followed by one rounding."""
        return self.kind == "float" and self.bits <= 16

    # -- relatives ------------------------------------------------------------------------------
    @property
    def scalar(self) -> DType:
        """The type of one lane."""
        return self if self.lanes == 1 else as_dtype(self.name[: self.name.rindex("x")])

    def with_lanes(self, lanes: int) -> DType:
        """The vector type of `lanes` lanes of this scalar type (the scalar type itself for 1)."""
        base = self.scalar
        return base if lanes == 1 else as_dtype(f"{base.name}x{lanes}")

    # -- storage --------------------------------------------------------------------------------
    @property
    def bytes(self) -> int:
        """Bytes of one element (a packed type reports the byte that holds it)."""
        return max(1, self.bits * self.lanes // 8)

    @property
    def itemsize(self) -> int:
        return self.bytes

    @property
    def numpy(self) -> np.dtype[Any]:
        """NumPy type of one logical element (ml_dtypes for narrow floats and nibbles)."""
        return _NUMPY[self.scalar.name]

    def as_torch(self) -> Any:
        """The torch dtype of arrays of this type: of bytes for int4 and uint4, of pairs for float4_e2m1fn."""
        import torch

        storage = {"float4_e2m1fn": "float4_e2m1fn_x2", "int4": "int8", "uint4": "uint8"}.get(self.name, self.name)
        found = getattr(torch, storage, None)
        if not isinstance(found, torch.dtype):
            raise TypeError(f"torch has no dtype for {self}")
        return found

    # -- Python protocol ------------------------------------------------------------------------
    def __call__(self, *args: Any) -> Any:
        if _cast_hook is None:
            raise TypeError(f"T.{self.name}(...) needs tiledsl.language to be imported")
        return _cast_hook(self, args)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DType):
            return self is other
        try:
            return as_dtype(other) is self
        except TypeError:
            return False

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return (as_dtype, (self.name,))


_SCALARS: dict[str, tuple[str, int, Any]] = {
    "bool": ("bool", 8, np.bool_),
    **{f"int{b}": ("int", b, getattr(np, f"int{b}")) for b in (8, 16, 32, 64)},
    **{f"uint{b}": ("uint", b, getattr(np, f"uint{b}")) for b in (8, 16, 32, 64)},
    "int4": ("int", 4, ml_dtypes.int4),
    "uint4": ("uint", 4, ml_dtypes.uint4),
    "float64": ("float", 64, np.float64),
    "float32": ("float", 32, np.float32),
    "float16": ("float", 16, np.float16),
    "bfloat16": ("float", 16, ml_dtypes.bfloat16),
    "float8_e4m3fn": ("float", 8, ml_dtypes.float8_e4m3fn),
    "float8_e5m2": ("float", 8, ml_dtypes.float8_e5m2),
    "float8_e8m0fnu": ("float", 8, ml_dtypes.float8_e8m0fnu),
    "float4_e2m1fn": ("float", 4, ml_dtypes.float4_e2m1fn),
    "handle": ("handle", 64, np.uint64),
}
_NUMPY: dict[str, np.dtype[Any]] = {name: np.dtype(storage) for name, (_, _, storage) in _SCALARS.items()}
_TABLE = {name: DType(name, kind, bits) for name, (kind, bits, _) in _SCALARS.items()}
SCALARS = frozenset(_TABLE) - {"handle"}  # names of the types that kernels compute with
_ALIASES = {
    "float": "float32",
    "half": "float16",
    "double": "float64",
    "int": "int32",
    "uint": "uint32",
    "long": "int64",
    "ulong": "uint64",
    "short": "int16",
    "ushort": "uint16",
    "char": "int8",
    "uchar": "uint8",
    "float8_e4m3": "float8_e4m3fn",
    "e4m3_float8": "float8_e4m3fn",
    "e5m2_float8": "float8_e5m2",
    "float8_e8m0": "float8_e8m0fnu",
    "float4_e2m1": "float4_e2m1fn",
    "boolean": "bool",
    "bool_": "bool",
    "ptr": "handle",
}
_BY_PYTHON: dict[Any, str] = {bool: "bool", int: "int32", float: "float32"}
_VECTOR = re.compile(r"(?P<base>.+[a-z0-9])x(?P<lanes>2|4|8|16|32|64)\Z")


@cache
def _named(name: str) -> DType | None:
    name = _ALIASES.get(name, name)
    if name in _TABLE:
        return _TABLE[name]
    match = _VECTOR.match(name)
    if match:
        base = _named(match["base"])
        if base is not None and base.kind != "handle":
            lanes = int(match["lanes"])
            return DType(f"{base.name}x{lanes}", base.kind, base.bits, lanes)
    return None


@cache
def _of_numpy(x: np.dtype[Any]) -> DType | None:
    return _named(x.name)  # slow: NumPy builds the name


def as_dtype(x: Any) -> DType:
    """The DType meant by a DType, a name, a NumPy/ml_dtypes type, a torch dtype, or Python's int/float/bool.

    Raises TypeError when nothing is meant.
    """
    if isinstance(x, DType):
        return x
    if isinstance(x, np.dtype):
        found = _of_numpy(x)
    elif isinstance(x, str):
        found = _named(x.removeprefix("torch."))
    elif isinstance(x, type) and x in _BY_PYTHON:
        found = _TABLE[_BY_PYTHON[x]]
    elif type(x).__module__ == "torch":
        found = _named(str(x).removeprefix("torch."))
    else:
        try:
            found = _named(np.dtype(x).name)
        except Exception:  # NumPy looks into x: what that raises is x's own
            found = None
    if found is None:
        raise TypeError(f"unknown dtype {x!r}")
    return found


BOOL, INT8, UINT8, INT32, UINT32, INT64, UINT64, FLOAT32, FLOAT64 = map(
    as_dtype, ("bool", "int8", "uint8", "int32", "uint32", "int64", "uint64", "float32", "float64")
)

_FLOAT_RANK = {
    "float4_e2m1fn": 0,
    "float8_e8m0fnu": 1,
    "float8_e5m2": 2,
    "float8_e4m3fn": 3,
    "bfloat16": 4,
    "float16": 5,
    "float32": 6,
    "float64": 7,
}


def promote(a: DType, b: DType) -> DType:
    """Result type of `a op b` between two typed operands (docs/dtypes.md).

    A float beats any integer; the wider float wins, float16 over bfloat16; the wider integer wins,
    unsigned at equal width; bool takes the other side. Vectors promote lane by lane (equal lane counts,
    or one scalar side).
    """
    if a is b:
        return a
    lanes = max(a.lanes, b.lanes)
    if a.lanes != b.lanes and min(a.lanes, b.lanes) != 1:
        raise TypeError(f"vectors of {a.lanes} and {b.lanes} lanes do not combine")
    x, y = a.scalar, b.scalar
    if "handle" in (x.kind, y.kind):
        raise TypeError("an address does not take part in arithmetic")
    if x is y:
        result = x
    elif x.is_float or y.is_float:
        floats = [t for t in (x, y) if t.is_float]
        result = max(floats, key=lambda t: _FLOAT_RANK[t.name])
    elif x.is_bool or y.is_bool:
        result = y if x.is_bool else x
    elif x.bits != y.bits:
        result = x if x.bits > y.bits else y
    else:
        result = x if x.kind == "uint" else y
    return result.with_lanes(lanes)
