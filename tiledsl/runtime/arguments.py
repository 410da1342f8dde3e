"""Argument binding: check what a caller passes against a function's parameters, and solve for the symbols."""

from __future__ import annotations

import math
import numbers
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl import ir
from tiledsl.analysis.bounds import SYMBOL_MAX
from tiledsl.analysis.effects import written
from tiledsl.analysis.evaluate import evaluate
from tiledsl.analysis.symbols import row_major, solve
from tiledsl.dtypes import DType
from tiledsl.errors import TileError, TileTypeError, TileValueError
from tiledsl.frontend.describe import expr_text
from tiledsl.ir.build import int_range
from tiledsl.ir.walk import walk
from tiledsl.runtime.views import View, describe, view

__all__ = ["Bound", "Signature", "Slot", "convert_scalar", "scalar_word", "word_maker"]

_BYTE_LIKE = {"bool": ("int8", "uint8"), "int8": ("bool",), "uint8": ("bool",), "handle": ("int64", "uint64")}


@dataclass(frozen=True)
class Slot:
    """One parameter. written: the kernels store into it; used: they mention it at all (or its symbols do)."""

    param: ir.Param
    output: bool
    written: bool
    used: bool

    @property
    def name(self) -> str:
        return self.param.name

    @property
    def buffer(self) -> ir.Buffer | None:
        return self.param.buffer

    @property
    def dtype(self) -> DType:
        if self.param.buffer is not None:
            return self.param.buffer.dtype
        assert self.param.var is not None
        return self.param.var.dtype


@dataclass(frozen=True)
class Bound:
    """Accepted arguments: per parameter a View, a Python scalar or None (absent, or an output to allocate);
    env: the value of every symbol that the inputs determine."""

    values: tuple[Any, ...]
    env: dict[ir.Var, int]


class Signature:
    """The parameters of a function, ready to check arguments against."""

    def __init__(self, function: ir.Function) -> None:
        self.function = function
        stored, mentioned = written(function), _mentioned(function)
        self.slots = tuple(
            Slot(p, i in function.outputs, p.buffer in stored, p.buffer in mentioned or p.var in mentioned)
            for i, p in enumerate(function.params)
        )
        self.inputs = tuple(s for s in self.slots if not s.output)

    # -- checks -------------------------------------------------------------------------------------------------

    def check_count(self, given: int) -> None:
        """Raises TileValueError when the number of arguments is not the number of inputs."""
        if given != len(self.inputs):
            names = ", ".join(s.name for s in self.inputs)
            outputs = [s.name for s in self.slots if s.output]
            missing = [] if outputs else self.inputs[given:]
            forgot = bool(missing) and all(s.written for s in missing)
            raise TileValueError(
                f"{self.function.name}: expected {_count(len(self.inputs), 'input')} ({names}), got {given}",
                self.function.loc,
                notes=(f"{', '.join(outputs)}: allocated and returned, not passed",) if outputs else (),
                help=f"pass {', '.join(s.name for s in missing)} too, or have it allocated and returned: "
                f"@tiledsl.jit(out_idx={[*range(-len(missing), 0)]})"
                if forgot
                else None,
            )

    def bind(self, args: Sequence[Any], device: str = "cpu", outs: Sequence[Any] | None = None) -> Bound:
        """Check the inputs, in order, and the outputs when the caller brings them. Raises TileTypeError or
        TileValueError that name the parameter, what was expected and what came."""
        self.check_count(len(args))
        expected = sum(s.output for s in self.slots)
        if outs is not None and len(outs) != expected:
            raise TileValueError(f"{self.function.name}: out= takes {_count(expected, 'array')}, got {len(outs)}")
        given, made = iter(args), iter(outs or ())
        shapes = [(s.buffer, getattr(x, "shape", ())) for s, x in zip(self.inputs, args, strict=True)]
        guess = _first_extents(shapes)  # for messages
        values: list[Any] = []
        for slot in self.slots:
            try:
                if slot.output:
                    values.append(None if outs is None else self._accept(slot, next(made), device, guess))
                else:
                    values.append(self._accept(slot, next(given), device, guess))
            except TileError as e:
                e.loc = e.loc or slot.param.loc or self.function.loc
                raise
        env = self._solve(values)
        return Bound(tuple(values), env)

    def _accept(self, slot: Slot, x: Any, device: str, guess: dict[ir.Var, int]) -> Any:
        buffer = slot.buffer
        if buffer is None:
            return convert_scalar(x, slot.dtype, slot.name)
        if x is None:
            if slot.used:
                raise TileTypeError(
                    f"{slot.name}: expected {self._expected(buffer, guess)}, got None",
                    help=f"None stands for parameters that the kernel never touches; pass an array for {slot.name}",
                )
            return None
        seen = _logical(view(x, slot.name, device), buffer.dtype)
        if seen.storage != buffer.dtype.name and seen.storage not in _BYTE_LIKE.get(buffer.dtype.name, ()):
            order = f"the arguments are {', '.join(s.name for s in self.inputs)}, in this order"
            convert = _convert_help(slot.name, seen, buffer.dtype)
            raise self._mismatch(slot, seen, guess, order if len(seen.shape) != buffer.rank else convert)
        if len(seen.shape) != buffer.rank:
            raise self._mismatch(
                slot,
                seen,
                guess,
                f"{slot.name} needs {_count(buffer.rank, 'dimension')}, this array has {len(seen.shape)}",
            )
        if slot.written and not seen.writable:
            raise TileValueError(
                f"{slot.name}: the kernel writes to it, and this array is read-only",
                help=f"pass a writable array: {slot.name}.copy()",
            )
        shared = any(s == 0 and n > 1 for n, s in zip(seen.shape, seen.strides, strict=True))
        if slot.written and shared and 0 not in seen.shape:  # NumPy gives arrays without elements strides of 0
            raise TileValueError(
                f"{slot.name}: the kernel writes to it, and elements of this array share memory (strides "
                f"{_tuple(seen.strides)})",
                help=f"pass an array of its own memory: {slot.name}.copy()",
            )
        return seen

    def _solve(self, values: Sequence[Any]) -> dict[ir.Var, int]:
        """Symbols from shapes and strides. What single symbols and constants say is checked first, and in the
        caller's terms; `solve` does the rest."""
        arrays = [(s, v) for s, v in zip(self.slots, values, strict=True) if isinstance(v, View) and s.buffer]
        first = _first_extents([(s.buffer, v.shape) for s, v in arrays])
        for slot, seen in arrays:
            assert slot.buffer is not None
            for axis, (extent, n) in enumerate(zip(slot.buffer.shape, seen.shape, strict=True)):
                if isinstance(extent, (ir.Var, ir.Const)):
                    wanted = int(extent.value) if isinstance(extent, ir.Const) else first[extent]
                    if n not in (wanted, wanted + (wanted & 1 if _is_width(slot.buffer, axis) else 0)):
                        raise self._mismatch(slot, seen, first, None)
            self._check_strides(slot, seen)
        views = {s.buffer: v for s, v in arrays}
        shapes = [views[b].shape if b in views else None for b in self.function.buffers]
        strides = [views[b].strides if b in views else None for b in self.function.buffers]
        scalars = {
            s.param.var: v
            for s, v in zip(self.slots, values, strict=True)
            if s.param.var is not None and isinstance(v, int)
        }
        env = solve(self.function, shapes, strides, scalars)
        for symbol, n in env.items():
            largest = SYMBOL_MAX.get(symbol.type.bits, n)
            if n > largest:
                raise TileValueError(
                    f"{self.function.name}: {symbol.name} = {n}, and a symbol of {symbol.type} is at most {largest}",
                    self.function.loc,
                    help=f'declare it as T.dynamic("{symbol.name}", "int64")',
                )
        return env

    def _check_strides(self, slot: Slot, seen: View) -> None:
        """Contiguity and signs; strides that are declared are equations, and `solve` checks those."""
        if 0 in seen.shape:
            return
        packed = row_major(seen.shape)
        contiguous = all(n == 1 or s == p for n, s, p in zip(seen.shape, seen.strides, packed, strict=True))
        negative = any(s < 0 and n > 1 for n, s in zip(seen.shape, seen.strides, strict=True))
        assert slot.buffer is not None
        if not negative and (contiguous or slot.buffer.strides is not None):
            return
        name, got = slot.name, f"{seen.text()} with strides {_tuple(seen.strides)}"
        copy = f"{name}.contiguous()" if seen.kind == "torch" else f"np.ascontiguousarray({name})"
        at = slot.param.loc or self.function.loc
        if negative:
            raise TileValueError(f"{name}: negative strides are not supported, got {got}", at, help=f"pass {copy}")
        raise TileValueError(
            f"{name}: expected a contiguous (row-major) array, got {got}",
            at,
            help=f"pass {copy}, or declare {name} as T.StridedTensor",
        )

    # -- messages -------------------------------------------------------------------------------------------------

    def _expected(self, buffer: ir.Buffer, env: dict[ir.Var, int]) -> str:
        return f"{buffer.dtype}[{', '.join(_extent(e, env) for e in buffer.shape)}]"

    def _mismatch(self, slot: Slot, seen: View, env: dict[ir.Var, int], help: str | None) -> TileTypeError:
        assert slot.buffer is not None
        return TileTypeError(
            f"{slot.name}: expected {self._expected(slot.buffer, env)}, got {seen.text()}",
            slot.param.loc or self.function.loc,
            help=help,
        )


def _first_extents(shapes: Sequence[tuple[ir.Buffer | None, Sequence[int]]]) -> dict[ir.Var, int]:
    """What the first array that has a symbol as an extent says about it."""
    found: dict[ir.Var, int] = {}
    for widths in (False, True):  # arrays of packed elements know their last extent least exactly
        for buffer, shape in shapes:
            if buffer is not None and len(shape) == buffer.rank:
                for axis, (extent, n) in enumerate(zip(buffer.shape, shape, strict=True)):
                    if isinstance(extent, ir.Var) and _is_width(buffer, axis) == widths:
                        found.setdefault(extent, n)
    return found


def _is_width(buffer: ir.Buffer, axis: int) -> bool:
    """The axis along which two elements share a byte."""
    return buffer.dtype.is_packed and axis == buffer.rank - 1


def _mentioned(function: ir.Function) -> set[Any]:
    """Root buffers and variables that the kernels mention at all."""
    found = [n for kernel in function.kernels for n in walk(kernel)]
    return {n.root if isinstance(n, ir.Buffer) else n for n in found if isinstance(n, (ir.Buffer, ir.Var))}


def _logical(seen: View, dtype: DType) -> View:
    """The view in logical elements: for packed parameters, two per byte of an int8 or uint8 array."""
    if not dtype.is_packed or seen.storage not in ("int8", "uint8", "float4_e2m1fn_x2") or not seen.shape:
        return seen
    shape = (*seen.shape[:-1], seen.shape[-1] * 2)
    strides = (*(s * 2 for s in seen.strides[:-1]), seen.strides[-1])
    return View(seen.obj, seen.kind, dtype.name, shape, strides, seen.address, seen.writable, seen.array)


# -- scalars ------------------------------------------------------------------------------------------------------


def convert_scalar(x: Any, dtype: DType, name: str) -> bool | int | float:
    """x as a Python value of the parameter's type (floats rounded to it). Raises TileTypeError for values of
    another kind and TileValueError for values out of range."""
    if isinstance(x, (bool, np.bool_)):
        x = bool(x)
    elif isinstance(x, numbers.Integral):
        x = int(x)
    elif isinstance(x, (float, np.floating, ml_dtypes.bfloat16)):
        x = float(x)
    else:
        raise TileTypeError(
            f"{name}: expected a Python or NumPy number for {dtype}, got {describe(x)}",
            help=f"pass {name}.item()" if hasattr(x, "item") else None,
        )
    if dtype.is_bool:
        if x not in (0, 1) or isinstance(x, float):
            raise TileTypeError(f"{name}: expected a bool, got {describe(x)}")
        return bool(x)
    if dtype.is_int:
        if isinstance(x, float):
            raise TileTypeError(f"{name}: expected an integer for {dtype}, got {describe(x)}", help=f"pass int({name})")
        low, high = int_range(dtype)
        if not low <= x <= high:
            raise TileValueError(f"{name}: {x} does not fit {dtype} ({low} to {high})")
        return int(x)
    if not dtype.is_float:
        raise TileTypeError(f"{name}: a scalar parameter cannot have the type {dtype}")
    value = float(x) if abs(x) < 2**1023 else math.copysign(math.inf, x)
    with np.errstate(over="ignore"):
        rounded = float(np.asarray(value, np.float64).astype(dtype.numpy))
    if math.isinf(rounded) and not (isinstance(x, float) and math.isinf(x)):
        raise TileValueError(f"{name}: {describe(x)} does not fit {dtype}")
    return rounded


def scalar_word(value: bool | int | float, dtype: DType) -> int:
    """The 64-bit argument word of a converted scalar: integers sign-extended, floats as their own bits."""
    if dtype.is_float:
        bits = np.asarray(value, np.float64).astype(dtype.numpy).tobytes()
        return int(struct.unpack("<q", bits.ljust(8, b"\0"))[0])
    value = int(value)
    return value - 2**64 if value >= 2**63 else value


def word_maker(dtype: DType, name: str) -> Callable[[Any], int]:
    """The function from an argument to its word, for values of a type that `convert_scalar` has accepted before:
    quick for the common types, with the same errors."""

    def general(x: Any) -> int:
        return scalar_word(convert_scalar(x, dtype, name), dtype)

    if dtype.name == "float32":
        pack, unpack = struct.Struct("<f").pack, struct.Struct("<I").unpack

        def quick(x: Any) -> int:
            try:
                return int(unpack(pack(x))[0])  # rounds to nearest even
            except OverflowError:
                return general(x)

        return quick
    if dtype.kind == "int":
        low, high = int_range(dtype)
        return lambda x: int(x) if low <= x <= high else general(x)
    return general


# -- text -----------------------------------------------------------------------------------------------------------


def _value(extent: ir.Expr, env: dict[ir.Var, int]) -> int | None:
    """The extent's value when the environment determines it."""
    if isinstance(extent, ir.Const):
        return int(extent.value)
    return int(evaluate(extent, env)) if all(v in env for v in walk(extent) if isinstance(v, ir.Var)) else None


def _extent(extent: ir.Expr, env: dict[ir.Var, int]) -> str:
    value = _value(extent, env)
    text = expr_text(extent)
    return text if value is None or text == str(value) else f"{text}={value}"


def _tuple(values: Sequence[int]) -> str:
    return f"({', '.join(map(str, values))})"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _convert_help(name: str, seen: View, dtype: DType) -> str:
    if dtype.is_packed:
        return f'{name} holds two elements per byte: pass tiledsl.pack({name}, "{dtype}"), uint8 of half the columns'
    if seen.kind == "torch":
        return f"convert it: {name}.to(torch.{dtype})"
    module = "np" if dtype.numpy.isbuiltin == 1 else "ml_dtypes"
    return f"convert it: {name}.astype({module}.{dtype.numpy.name})"
