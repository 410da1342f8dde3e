"""The float64 shadow: beside every float runs its float64 value and a bound on how far the float may be from it.

`Shadowed` is an ndarray (the primary values, which decide control flow and indices) that carries both. Bounds follow
the operations' rounding errors; a rounding cast adds the target's rounding. A comparison that the bounds cannot decide
is *doubtful*: what a select or a masked store does with it gets a bound that covers either side. Doubtful conditions of
whole branches and loops, and of scatters, are only counted. Reinterpreted bits start again as exact values.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from itertools import product
from math import erf
from typing import Any

import numpy as np

from tiledsl.conversions import Converter, converter
from tiledsl.dtypes import DType, as_dtype

__all__ = ["DOUBTS", "Shadowed", "casting", "chain", "fused", "lift", "math", "micro", "shadowed"]

Array = np.ndarray[Any, Any]
Parts = tuple[Any, Any, Any]
DOUBTS: ContextVar[list[int]] = ContextVar("DOUBTS")


class Shadowed(np.ndarray[Any, Any]):
    """Primary values with `value` and `bound`, float64 arrays of the same shape. Scalars are 0-d."""

    value: Array
    bound: Array

    def __getitem__(self, key: Any) -> Any:
        return shadowed(*(part[key] for part in _parts(self)))

    def __setitem__(self, key: Any, new: Any) -> None:
        for part, p in zip(_parts(self), _parts(new), strict=True):
            part[key] = p

    def view(self, *args: Any, **kw: Any) -> Any:
        return self.plain.view(*args, **kw)

    def copy(self, order: Any = "C") -> Any:
        return shadowed(*(part.copy() for part in _parts(self)))

    def transpose(self, *axes: Any) -> Any:
        return shadowed(*(part.transpose(*axes) for part in _parts(self)))

    def reshape(self, *shape: Any, **kw: Any) -> Any:
        return shadowed(*(part.reshape(*shape) for part in _parts(self)))

    def astype(self, dtype: Any, *args: Any, **kw: Any) -> Any:
        target = as_dtype(dtype)
        return casting(as_dtype(self.dtype), target)(self)

    @property
    def T(self) -> Any:
        return self.transpose()

    @property
    def plain(self) -> Array:
        return np.ndarray.view(self, np.ndarray)

    def __str__(self) -> str:
        return str(self.plain[()])

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kw: Any) -> Any:
        if method == "at":
            target, where, operand = inputs
            for part, p in zip(_parts(target), _parts(operand), strict=True):
                ufunc.at(part, where, p)
            ufunc.at(target.bound, where, _rounding(target.plain[where], target.dtype))
            return None
        if method in ("reduce", "accumulate"):
            return _fold(ufunc, method, inputs[0], kw)
        parts = [_parts(x) for x in inputs]
        with_primaries = ufunc(*(p[0] for p in parts), **kw)
        if with_primaries.dtype.kind in "biu":
            return _compare(ufunc, with_primaries, parts)
        rule = _RULES.get(ufunc)
        if rule is None:
            raise NotImplementedError(f"the float64 shadow of {ufunc.__name__}")
        value, bound = rule(*(x for p in parts for x in p[1:]))
        if ufunc not in _EXACT:
            # a matrix product's own rounding is in its rule
            bound = bound + (0 if ufunc is np.matmul else _rounding(with_primaries, with_primaries.dtype))
        result = shadowed(with_primaries, value, bound)
        if out is None:
            return result
        out[0][...] = result
        return out[0]

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _dispatch(func, args, kwargs)


class _Doubtful(np.ndarray[Any, Any]):
    """Outcomes of comparisons; `doubt` says where rounding may have decided."""

    doubt: Array

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kw: Any) -> Any:
        plain = [_undoubted(x) for x in inputs]
        result = getattr(ufunc, method)(*plain, **kw)
        if method != "__call__" or result.dtype != np.bool_:
            return result
        return _doubtful(result, _any_doubt(inputs, result.shape))

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in (np.where, np.copyto):
            return _dispatch(func, args, kwargs)
        if func is np.broadcast_to:
            _count(self.doubt)
        return func(*map(_undoubted, args), **{k: _undoubted(v) for k, v in kwargs.items()})

    def __getitem__(self, key: Any) -> Any:
        return _doubtful(_undoubted(self)[key], self.doubt[key])

    def __bool__(self) -> bool:
        _count(self.doubt)
        return bool(_undoubted(self))

    def any(self, *args: Any, **kw: Any) -> Any:
        return _undoubted(self).any(*args, **kw)

    def astype(self, dtype: Any, *args: Any, **kw: Any) -> Any:
        _count(self.doubt)  # a number made of an outcome carries no doubt
        return _undoubted(self).astype(dtype, *args, **kw)

    def copy(self, order: Any = "C") -> Any:
        return _doubtful(_undoubted(self).copy(), self.doubt)


# -- construction ----------------------------------------------------------------------------------------------


def lift(data: Any) -> Shadowed:
    """An array as exact values; it keeps its memory, so that stores reach it."""
    return shadowed(data, data.astype(np.float64, order="C"), np.zeros(data.shape))


def shadowed(p: Any, value: Any, bound: Any) -> Shadowed:
    """Primary values with their float64 values and bounds."""
    out: Shadowed = np.ndarray.view(np.asarray(p), Shadowed)
    out.value, out.bound = np.asarray(value), np.asarray(bound)
    if out.bound.shape != out.shape:
        out.bound = np.broadcast_to(out.bound, out.shape)
    if out.value.shape != out.shape:
        out.value = np.broadcast_to(out.value, out.shape)
    return out


def _parts(x: Any) -> Parts:
    if isinstance(x, Shadowed):
        return x.plain, x.value, x.bound
    p = np.asarray(x)
    return p, p.astype(np.float64), np.zeros(p.shape)


def _doubtful(outcome: Any, doubt: Any) -> Any:
    if not np.any(doubt):
        return np.asarray(outcome)
    out = np.asarray(outcome).view(_Doubtful)
    out.doubt = np.broadcast_to(doubt, out.shape)
    return out


def _undoubted(x: Any) -> Any:
    return np.ndarray.view(x, np.ndarray) if isinstance(x, (_Doubtful, Shadowed)) else x


def _any_doubt(inputs: Sequence[Any], shape: tuple[int, ...]) -> Any:
    found = [np.broadcast_to(x.doubt, shape) for x in inputs if isinstance(x, _Doubtful)]
    return np.logical_or.reduce(found) if found else np.zeros(shape, np.bool_)


def _count(doubt: Any) -> None:
    if np.any(doubt):
        DOUBTS.get()[0] += 1


# -- rules -----------------------------------------------------------------------------------------------------

_UNITS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
_TINIEST = {"float64": 2.0**-1074, "float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}


def _rounding(p: Any, dtype: Any, units: float = 1.0) -> Any:
    """Half a unit in the last place of p, generously; where p is not finite, nothing."""
    name = as_dtype(dtype).name
    size = np.abs(np.asarray(p).astype(np.float64))
    # narrower floats: three, two, one or no mantissa bits
    unit = _UNITS.get(name, {"float8_e4m3fn": 2.0**-4, "float8_e5m2": 2.0**-3}.get(name, 0.5))
    return np.where(np.isfinite(size), units * unit * size + _TINIEST.get(name, 2.0**-10), 0.0)


def _product(a: Any, ea: Any, b: Any, eb: Any) -> tuple[Any, Any]:
    return a * b, np.abs(a) * eb + np.abs(b) * ea + ea * eb


def _quotient(a: Any, ea: Any, b: Any, eb: Any) -> tuple[Any, Any]:
    value = a / b
    return value, (ea + np.abs(value) * eb) / np.maximum(np.abs(b) - eb, 0.0)


def _root(a: Any, ea: Any) -> tuple[Any, Any]:
    value = np.sqrt(a)
    return value, np.where(ea == 0, 0.0, ea / (np.sqrt(np.maximum(a - ea, 0.0)) + value))


def _step(f: Callable[[Any], Any]) -> Callable[[Any, Any], tuple[Any, Any]]:
    return lambda a, ea: (f(a), f(a + ea) - f(a - ea))


def _matrix(a: Any, ea: Any, b: Any, eb: Any) -> tuple[Any, Any]:
    size = np.abs(a) @ np.abs(b)
    spread = np.abs(a) @ eb + ea @ (np.abs(b) + eb)
    return a @ b, spread + (a.shape[-1] + 1) * 2.0**-24 * size


_RULES: dict[Any, Callable[..., tuple[Any, Any]]] = {
    np.add: lambda a, ea, b, eb: (a + b, ea + eb),
    np.subtract: lambda a, ea, b, eb: (a - b, ea + eb),
    np.multiply: _product,
    np.divide: _quotient,
    np.sqrt: _root,
    np.negative: lambda a, ea: (-a, ea),
    np.absolute: lambda a, ea: (np.abs(a), ea),
    np.maximum: lambda a, ea, b, eb: (np.maximum(a, b), np.maximum(ea, eb)),
    np.minimum: lambda a, ea, b, eb: (np.minimum(a, b), np.maximum(ea, eb)),
    np.matmul: _matrix,
    **{f: _step(f) for f in (np.floor, np.ceil, np.trunc, np.rint)},
}
_EXACT = {np.negative, np.absolute, np.maximum, np.minimum, np.floor, np.ceil, np.trunc, np.rint}


def _fold(ufunc: Any, method: str, x: Any, kw: Mapping[str, Any]) -> Any:
    """reduce and accumulate of sums, maxima and minima."""
    p, value, bound = _parts(x)
    axis = kw["axis"]
    primary = getattr(ufunc, method)(p, **kw)
    plain = {"axis": axis}
    if ufunc is np.add:
        size = getattr(np.add, method)(np.abs(value) + bound, **plain)
        spread = getattr(np.add, method)(bound, **plain) + p.shape[axis] * _rounding(size, p.dtype)
        return shadowed(primary, getattr(np.add, method)(value, **plain), spread)
    if ufunc not in (np.maximum, np.minimum, np.fmax):
        raise NotImplementedError(f"the float64 shadow of {ufunc.__name__}.{method}")
    extra = {} if "initial" not in kw else {"initial": float(kw["initial"])}
    spread = getattr(np.maximum, method)(bound, **plain, **({"initial": 0.0} if extra else {}))
    return shadowed(primary, getattr(ufunc, method)(value, **plain, **extra), spread)


def _compare(ufunc: Any, outcome: Any, parts: list[Parts]) -> Any:
    """Comparisons: doubtful where the values lie within their bounds, but not both exact."""
    if outcome.dtype != np.bool_ or len(parts) != 2:
        return outcome
    (_, a, ea), (_, b, eb) = parts
    return _doubtful(outcome, (np.abs(a - b) <= ea + eb) & (ea + eb > 0))


def _dispatch(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    if func is np.where:
        return _where(*args)
    if func is np.copyto:
        return _copyto(args[0], args[1], kwargs.get("where", True))
    if func in (np.full_like, np.zeros_like, np.empty_like):
        return lift(func(_undoubted(args[0]), *args[1:], **kwargs))
    if func is np.concatenate:
        pieces = [_parts(x) for x in args[0]]
        return shadowed(*(np.concatenate(p, *args[1:], **kwargs) for p in zip(*pieces, strict=True)))
    if func in (np.broadcast_to, np.moveaxis, np.flip):
        return shadowed(*(func(p, *args[1:], **kwargs) for p in _parts(args[0])))
    if func in (np.shape, np.ndim, np.size, np.any, np.all):
        return func(*map(_undoubted, args), **kwargs)
    raise NotImplementedError(f"the float64 shadow of {func.__name__}")


def _where(cond: Any, t: Any, f: Any) -> Any:
    plain = _undoubted(cond)
    choice = np.where(plain, _undoubted(t), _undoubted(f))
    if choice.dtype.kind in "biu":
        if isinstance(cond, _Doubtful):
            _count(cond.doubt)
        return choice
    (_, ts, tb), (_, fs, fb) = _parts(t), _parts(f)
    bound: Any = np.where(plain, tb, fb)
    if isinstance(cond, _Doubtful):
        bound = np.where(cond.doubt, _either(ts, tb, fs, fb), bound)
    return shadowed(choice, np.where(plain, ts, fs), bound)


def _either(a: Any, ea: Any, b: Any, eb: Any) -> Any:
    """How far either side may be from one of them."""
    return np.maximum(ea, eb) + np.where(a == b, 0.0, np.abs(a - b))


def _copyto(target: Any, new: Any, where: Any) -> None:
    plain = _undoubted(where)
    if not isinstance(target, Shadowed):
        np.copyto(target, _undoubted(new), where=plain, casting="unsafe")
        if isinstance(where, _Doubtful):
            _count(where.doubt)
        return
    (p, value, bound), (q, new_value, new_bound) = _parts(target), _parts(new)
    if isinstance(where, _Doubtful):
        either = _either(value, bound, new_value, new_bound)
    np.copyto(p, q, where=plain, casting="unsafe")
    np.copyto(value, new_value, where=plain)
    np.copyto(bound, new_bound, where=plain)
    if isinstance(where, _Doubtful):
        np.copyto(bound, either, where=where.doubt)


# -- operations that are not ufuncs ------------------------------------------------------------------------------


def casting(src: DType, dst: DType) -> Converter:
    """`converter` for values that may be shadowed."""
    convert, exact = converter(src, dst), promotes(src, dst)
    # what saturates is as far from the exact value as that is from the largest one: the shadow saturates, too
    least, limit = -np.inf, np.inf
    if dst.is_float and src.is_float:
        least, limit = (float(x) for x in convert(np.asarray([-np.inf, np.inf], src.numpy)))
    upwards = dst.name == "float8_e8m0fnu"  # to the next power of two

    def cast(x: Any) -> Any:
        if not isinstance(x, Shadowed):
            return convert(np.asarray(x))
        p = convert(x.plain)
        if not dst.is_float:
            return p
        value = np.clip(x.value, least, limit) if limit < np.inf else x.value
        if upwards:
            return shadowed(p, value, 2 * x.bound + p.astype(np.float64))
        return shadowed(p, value, x.bound if exact else x.bound + _rounding(p, p.dtype))

    return cast


def promotes(src: DType, dst: DType) -> bool:
    """Every value of src is one of dst."""
    return src is dst or dst.name == "float64" or (dst.name == "float32" and src.bits <= 16)


def fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """fma for shadowed operands."""

    def fma(*operands: Any) -> Any:
        (pa, a, ea), (pb, b, eb), (pc, c, ec) = (_parts(x) for x in operands)
        p = function(pa, pb, pc)
        value, bound = _product(a, ea, b, eb)
        return shadowed(p, value + c, bound + ec + _rounding(p, pa.dtype))

    return fma


_MATH: dict[str, tuple[Callable[[Any], Any], Callable[[Any, Any, Any], Any]]] = {
    "exp2": (np.exp2, lambda x, e, y: y * np.expm1(e * np.log(2.0))),
    "exp": (np.exp, lambda x, e, y: y * np.expm1(e)),
    "log2": (np.log2, lambda x, e, y: e / np.maximum(x - e, 0.0) / np.log(2.0)),
    "log": (np.log, lambda x, e, y: e / np.maximum(x - e, 0.0)),
    "rsqrt": (lambda x: 1 / np.sqrt(x), lambda x, e, y: 1 / np.sqrt(np.maximum(x - e, 0.0)) - y),
}


def _times_power(x: Any, n: Any) -> Any:
    return np.ldexp(x, np.rint(n).astype(np.int32))


_EXACT_MATH: dict[str, Callable[..., Any]] = {
    "exp10": lambda x: np.power(10.0, x), "expm1": np.expm1, "log10": np.log10, "log1p": np.log1p, "sinh": np.sinh,
    "cosh": np.cosh, "tanh": np.tanh, "sin": np.sin, "cos": np.cos, "tan": np.tan, "pow": np.power, "fmod": np.fmod,
    "copysign": np.copysign, "erf": np.vectorize(erf, otypes=[np.float64]),
    "round_away": lambda x: np.copysign(np.floor(np.abs(x) + 0.5), x),
    "atan": np.arctan, "atan2": np.arctan2, "asin": np.arcsin, "acos": np.arccos, "asinh": np.arcsinh,
    "acosh": np.arccosh, "atanh": np.arctanh, "hypot": np.hypot, "ldexp": _times_power,
    "scalb": _times_power,
}  # fmt: skip


def _corners(function: Callable[..., Any], parts: Sequence[Parts], y: Any) -> Any:
    """How far the function may be from y where its arguments are within their bounds: what their ends give."""
    ends = [(v - e - np.abs(v) * 2.0**-52, v + e + np.abs(v) * 2.0**-52) for _, v, e in parts]
    away = [np.abs(function(*corner) - y) for corner in product(*ends)]
    return np.nan_to_num(np.maximum.reduce(away), nan=np.inf)


def math(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A math function (`function`: its expansion on plain arrays) for shadowed arguments."""
    name = name.removeprefix("fast_")

    def of(*args: Any) -> Any:
        parts = [_parts(x) for x in args]
        p = np.asarray(function(*(part[0] for part in parts)))
        if name in _MATH:
            exact, spread_of = _MATH[name]
            y = exact(parts[0][1])
            spread = spread_of(*parts[0][1:], y)
        else:
            y = _EXACT_MATH[name](*(part[1] for part in parts))
            spread = _corners(_EXACT_MATH[name], parts, y)
            if name in ("sin", "cos"):
                spread = np.minimum(parts[0][2], 2.0)
        known = functools.reduce(np.logical_and, [part[2] == 0 for part in parts])  # they may differ in shape
        return shadowed(p, y, np.where(known, 0.0, spread) + _rounding(p, p.dtype, 6.0))

    return of


def chain(function: Callable[..., Any]) -> Callable[..., Any]:
    """gemm_chain for shadowed operands."""

    def of(a: Any, b: Any, c: Any) -> Any:
        (pa, va, ea), (pb, vb, eb), (pc, vc, ec) = (_parts(x) for x in (a, b, c))
        value, bound = _matrix(va, ea, vb, eb)
        return shadowed(function(pa, pb, pc), value + vc, bound + ec + _rounding(np.abs(vc), pc.dtype, pa.shape[1]))

    return of


def micro(meaning: Callable[..., None]) -> Callable[..., None]:
    """A micro-kernel on shadowed regions: products and sums go through the ufuncs, so BLAS mode carries the shadow;
    exact mode then puts the chain's primary values in place."""

    def of(writes: Any, reads: Any, scalars: Any, attrs: Any, exact: bool) -> None:
        before = [_undoubted(w).copy() for w in writes]
        meaning(writes, reads, scalars, attrs, False)
        if exact:
            meaning(before, [_undoubted(r) for r in reads], scalars, attrs, True)
            for w, p in zip(writes, before, strict=True):
                _undoubted(w)[...] = p

    return of
