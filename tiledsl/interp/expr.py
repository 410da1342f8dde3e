"""Compiles expressions to closures (see `scope.py` for their form)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tiledsl.dtypes import FLOAT32, DType
from tiledsl.errors import InternalError, TileRuntimeError, TileTypeError
from tiledsl.interp import shadow
from tiledsl.interp.memory import Memory
from tiledsl.interp.scope import STEPS, Env, Fn, Nest, Scope
from tiledsl.ir import (
    Binary,
    Broadcast,
    Call,
    Cast,
    Const,
    Expr,
    Fma,
    IfThenElse,
    Load,
    Ramp,
    Select,
    Unary,
    Var,
    arithmetic,
)
from tiledsl.ir.build import droppable
from tiledsl.ir.exact import fma32, fma64
from tiledsl.ir.intrinsics import INTRINSICS, MIXES
from tiledsl.ir.math import MathFunction, expansion

__all__ = ["Expressions"]

_DIVISIONS = frozenset(["floordiv", "floormod", "truncdiv", "truncmod", "div"])


class Expressions:
    """The expression compiler of one kernel."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.memory = Memory(scope, self)
        self.in_index = False

    # -- entry points ------------------------------------------------------------------------------------

    def compile(self, e: Expr) -> Fn:
        """The closure of an expression."""
        with self.scope.at(e.loc):
            if isinstance(e, Const):
                return self._const(e)
            return self.scope.counted(_COMPILERS[type(e)](self, e))

    def index(self, e: Expr) -> Fn:
        """The closure of an index: checked mode reports int32 overflow inside."""
        saved, self.in_index = self.in_index, True
        try:
            return self.compile(e)
        finally:
            self.in_index = saved

    def is_array(self, e: Expr) -> bool:
        """The value is an ndarray, not a Python or NumPy scalar."""
        return e.dtype.is_vector or self.scope.varies(e)

    def typed(self, e: Expr) -> Fn:
        """Like compile, but integers and bools are NumPy values of their type (np.where would widen Python's)."""
        f = self.compile(e)
        if self.is_array(e) or e.dtype.is_float:
            return f
        scalar = e.dtype.numpy.type
        return lambda env, mask: scalar(f(env, mask))

    # -- leaves ------------------------------------------------------------------------------------------

    def _const(self, e: Const) -> Fn:
        value = e.dtype.numpy.type(e.value) if e.dtype.is_float else e.value
        return lambda env, mask: value

    def _var(self, e: Var) -> Fn:
        slot = self.scope.slot(e)
        return lambda env, mask: env[slot]

    # -- operators ---------------------------------------------------------------------------------------

    def _binary(self, e: Binary) -> Fn:
        if e.op in ("and", "or"):
            return self._lazy(e)
        array = self.is_array(e.a) or self.is_array(e.b)
        function = arithmetic.binary(e.op, e.a.dtype, array)
        if function is None:
            raise self._no_operator(e.op, e.a.dtype)
        a, b = self.compile(e.a), self.compile(e.b)
        index = self.in_index and e.a.dtype.name == "int32" and e.op in ("add", "sub", "mul")
        if self.scope.options.overflow and e.a.dtype.is_int and (index or e.op in _DIVISIONS):
            return self._checked(e, function, a, b)
        return _call2(function, a, b)

    def _no_operator(self, op: str, dtype: DType) -> TileTypeError:
        return TileTypeError(f"{op} is not defined on {dtype}", self.scope.where)

    def _checked(self, e: Binary, function: Callable[[Any, Any], Any], a: Fn, b: Fn) -> Fn:
        """The operator in checked mode: reports division by zero, and int32 overflow inside an index."""
        op = e.op
        wrong: Callable[[Any, Any], Any]
        if op in _DIVISIONS:
            message, help = f"{op}: division by zero", "the result would be 0; guard the division"
            wrong = lambda x, y: y == 0  # noqa: E731
        else:
            message, help = f"int32 overflow inside an index ({op})", "compute the index in int64: T.int64(i) * stride"
            wrong = _overflow(op)
        report = self.scope.reporter(TileRuntimeError, help)

        def checked(env: Env, mask: Any) -> Any:
            x, y = a(env, mask), b(env, mask)
            bad = wrong(x, y) if mask is None else wrong(x, y) & mask
            if np.any(bad):
                raise report(env, message, lane=_first(bad))
            return function(x, y)

        return checked

    def _lazy(self, e: Binary) -> Fn:
        """and, or: the right side is evaluated only where the left does not decide."""
        a, b = self.compile(e.a), self.compile(e.b)
        conjunction = e.op == "and"
        if not self.is_array(e.a):
            decided: Any = not conjunction
            if self.is_array(e):  # lanes meet lanes: what the left decides alone is an array too
                assert self.scope.nest is not None
                decided = np.full((1,) * self.scope.nest.rank, decided)
            if conjunction:
                return lambda env, mask: b(env, mask) if a(env, mask) else decided
            return lambda env, mask: decided if a(env, mask) else b(env, mask)
        if e.dtype.is_vector or droppable(e.b):
            return _call2(np.logical_and if conjunction else np.logical_or, a, b)

        def lanes(env: Env, mask: Any) -> Any:
            left = a(env, mask)
            open_ = left if conjunction else ~left
            if mask is not None:
                open_ = open_ & mask
            if not open_.any():
                return left
            right = b(env, open_)
            return left & right if conjunction else left | right

        return lanes

    def cast(self, src: DType, dst: DType, array: bool) -> Callable[[Any], Any]:
        """The conversion of values; with the shadow, floats are arrays of 0 or more axes."""
        if self.scope.options.shadow and (src.is_float or dst.is_float):
            convert = shadow.casting(src.scalar, dst.scalar)
            return convert if array or dst.is_float else lambda x: convert(x).item()
        return arithmetic.cast(src, dst, array)

    def _unary(self, e: Unary) -> Fn:
        function = arithmetic.unary(e.op, e.x.dtype, self.is_array(e.x))
        if function is None:
            raise self._no_operator(e.op, e.x.dtype)
        x = self.compile(e.x)
        return lambda env, mask: function(x(env, mask))

    def _fma(self, e: Fma) -> Fn:
        a, b, c = self.compile(e.a), self.compile(e.b), self.compile(e.c)
        function = fma32 if e.dtype.scalar is FLOAT32 else fma64
        if self.scope.options.shadow:
            function = shadow.fused(function)
        return lambda env, mask: function(a(env, mask), b(env, mask), c(env, mask))

    def _cast(self, e: Cast) -> Fn:
        x = self.compile(e.x)
        if e.x.dtype.scalar is e.type.scalar:
            return x
        function = self.cast(e.x.dtype, e.type, self.is_array(e.x))
        return lambda env, mask: function(x(env, mask))

    # -- choices -----------------------------------------------------------------------------------------

    def _select(self, e: Select) -> Fn:
        cond = self.compile(e.cond)
        if not self.is_array(e.cond):
            t, f = self._alike(e)
            return lambda env, mask: (t(env, mask), f(env, mask))[not cond(env, mask)]
        t, f = self.typed(e.t), self.typed(e.f)
        return lambda env, mask: np.where(cond(env, mask), t(env, mask), f(env, mask))

    def _if_then_else(self, e: IfThenElse) -> Fn:
        cond = self.compile(e.cond)
        if not self.is_array(e.cond):
            t, f = self._alike(e)
            return lambda env, mask: t(env, mask) if cond(env, mask) else f(env, mask)
        t, f = self.typed(e.t), self.typed(e.f)
        keeps_both = self.scope.options.shadow  # a doubtful condition's bound covers both sides
        if droppable(e.t) and droppable(e.f):
            return lambda env, mask: np.where(cond(env, mask), t(env, mask), f(env, mask))

        def lanes(env: Env, mask: Any) -> Any:
            c = cond(env, mask)
            yes, no = (c, ~c) if mask is None else (c & mask, mask & ~c)
            if not keeps_both and not no.any():
                return self._as_lanes(t(env, yes), c)
            if not keeps_both and not yes.any():
                return self._as_lanes(f(env, no), c)
            return np.where(c, t(env, yes), f(env, no))

        return lanes

    @staticmethod
    def _as_lanes(value: Any, like: Any) -> Any:
        """A uniform value as an array of as many axes as `like`."""
        return value if isinstance(value, np.ndarray) and value.ndim else np.broadcast_to(value, (1,) * like.ndim)

    def _alike(self, e: Select | IfThenElse) -> tuple[Fn, Fn]:
        """Both sides as scalars, or, where one of them is an array, both as arrays."""
        t, f = self.compile(e.t), self.compile(e.f)
        if self.is_array(e.t) == self.is_array(e.f):
            return t, f
        assert self.scope.nest is not None
        shape = (1,) * self.scope.nest.rank
        storage = e.dtype.numpy

        def lift(g: Fn) -> Fn:
            return lambda env, mask: np.broadcast_to(np.asanyarray(g(env, mask), storage), shape)

        return (t, lift(f)) if self.is_array(e.t) else (lift(t), f)

    # -- calls -------------------------------------------------------------------------------------------

    def _call(self, e: Call) -> Fn:
        info = INTRINSICS.get(e.name)
        if info is None:
            raise self.scope.not_yet(f"the function {e.name}")
        if info.kind == "math":
            return self._math(e)
        x = self.compile(e.args[0])
        array = self.is_array(e.args[0])
        if e.name == "reinterpret":
            return _reinterpret(x, e.args[0].dtype, e.type, array)
        if e.name in arithmetic.BIT_FUNCTIONS:
            bits = arithmetic.bit_function(e.name, e.type, array)
            return lambda env, mask: bits(x(env, mask))
        if e.name in _PREDICATES:
            predicate = _PREDICATES[e.name]
            return (
                (lambda env, mask: predicate(x(env, mask)))
                if array
                else lambda env, mask: bool(predicate(x(env, mask)))
            )
        if e.name == "permute":
            y = self.compile(e.args[1])
            return lambda env, mask: _permuted(x(env, mask), y(env, mask))
        if e.name in MIXES:
            lanes, z = list(MIXES[e.name]), self.compile(e.args[1])
            return lambda env, mask: _side_by_side(x(env, mask), z(env, mask))[..., lanes]
        return self._horizontal(e, x)

    def _horizontal(self, e: Call, x: Fn) -> Fn:
        """Functions of all lanes of one vector."""
        lanes = self.scope.varies(e.args[0])
        combine = e.name.removeprefix("hreduce_") if e.name.startswith("hreduce_") else None
        if combine is None and e.name != "any":
            raise self.scope.not_yet(f"the function {e.name}")
        function = arithmetic.binary(combine, e.type, True) if combine else None

        def reduce(env: Env, mask: Any) -> Any:
            v = x(env, mask)
            result = arithmetic.combine_lanes(np.moveaxis(v, -1, 0), function) if function else v.any(-1)
            return result if lanes or e.type.is_float else result.item()

        return reduce

    def _math(self, e: Call) -> Fn:
        """The function's expansion; narrow floats go through float32."""
        dtype = e.args[0].dtype.scalar
        if not dtype.is_float:
            raise TileTypeError(f"{e.name} takes floats, not {dtype}", self.scope.where, help="cast the argument")
        given = [self.compile(a) for a in e.args]
        arrays = [self.is_array(a) for a in e.args]
        if dtype.bits >= 32:
            return self._expand(expansion(e.name, dtype), given, arrays)

        def widened(x: Fn, array: bool) -> Fn:
            widen = self.cast(dtype, FLOAT32, array)
            return lambda env, mask: widen(x(env, mask))

        narrow = self.cast(FLOAT32, dtype, any(arrays))
        wide = self._expand(expansion(e.name, FLOAT32), list(map(widened, given, arrays)), arrays)
        return lambda env, mask: narrow(wide(env, mask))

    def _expand(self, function: MathFunction, given: list[Fn], arrays: list[bool]) -> Fn:
        """The lets of an expansion, run on values of any shape: arrays as if they were one lane axis."""
        scope = Scope(replace(self.scope.options, shadow=False))
        inner = type(self)(scope)
        starts = [scope.bind(p) for p in function.params]
        lanes = [p for p, array in zip(function.params, arrays, strict=True) if array]
        if lanes:
            scope.nest = Nest((lanes[0],), scope.new_slot())
            scope.varying.update(lanes)
        steps: list[tuple[int, Fn]] = []
        for var, value in function.lets:
            f = inner.compile(value)
            if scope.varies(value):
                scope.varying.add(var)
            steps.append((scope.bind(var), f))
        result = inner.compile(function.result)
        size = scope.size

        def expand(inside: Env, values: Sequence[Any]) -> Any:
            inside[STEPS] = 0
            for start, value in zip(starts, values, strict=True):
                inside[start] = value
            for slot, f in steps:
                inside[slot] = f(inside, None)
            return result(inside, None)

        if self.scope.options.shadow:
            exact = shadow.math(function.name, lambda *values: expand([None] * size, values))
            return lambda env, mask: exact(*(x(env, mask) for x in given))

        def run(env: Env, mask: Any) -> Any:
            inside: Env = [None] * size
            value = expand(inside, [x(env, mask) for x in given])
            env[STEPS] += inside[STEPS]
            return value

        return run

    # -- vectors -----------------------------------------------------------------------------------------

    def _broadcast(self, e: Broadcast) -> Fn:
        x, lanes, storage = self.compile(e.x), e.lanes, e.dtype.numpy
        if not self.scope.varies(e.x):
            return lambda env, mask: np.full(lanes, x(env, mask), storage)

        def spread(env: Env, mask: Any) -> Any:
            v = x(env, mask)
            return np.broadcast_to(v[..., None], (*v.shape, lanes))

        return spread

    def _ramp(self, e: Ramp) -> Fn:
        base, storage = self.compile(e.base), e.dtype.numpy
        steps = (np.arange(e.lanes, dtype=np.int64) * e.stride).astype(storage)
        if not self.scope.varies(e.base):
            return lambda env, mask: storage.type(base(env, mask)) + steps
        return lambda env, mask: base(env, mask)[..., None] + steps


_COMPILERS: dict[type[Expr], Callable[[Expressions, Any], Fn]] = {
    Const: Expressions._const,
    Var: Expressions._var,
    Load: lambda c, e: c.memory.load(e),
    Binary: Expressions._binary,
    Unary: Expressions._unary,
    Fma: Expressions._fma,
    Cast: Expressions._cast,
    Select: Expressions._select,
    IfThenElse: Expressions._if_then_else,
    Call: Expressions._call,
    Broadcast: Expressions._broadcast,
    Ramp: Expressions._ramp,
}

_PREDICATES: dict[str, Callable[[Any], Any]] = {
    "isnan": lambda x: x != x,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
}


def _call2(function: Callable[[Any, Any], Any], a: Fn, b: Fn) -> Fn:
    return lambda env, mask: function(a(env, mask), b(env, mask))


def _overflow(op: str) -> Callable[[Any, Any], Any]:
    wide: Callable[[Any, Any], Any] = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[op]

    def over(x: Any, y: Any) -> Any:
        exact = wide(np.asarray(x, np.int64), np.asarray(y, np.int64))
        return (exact > 2**31 - 1) | (exact < -(2**31))

    return over


def _first(where: Any) -> tuple[int, ...] | None:
    """Indices of the first true element of an array."""
    where = np.asarray(where)
    return tuple(int(i) for i in np.argwhere(where)[0]) if where.ndim else None


def _side_by_side(x: Any, y: Any) -> Any:
    return np.concatenate(np.broadcast_arrays(x, y), -1)


def _permuted(table: Any, index: Any) -> Any:
    """Lanes of the last axis, chosen for each lane."""
    table, index = np.broadcast_arrays(table, index & 15)
    return np.take_along_axis(table, index.astype(np.intp), -1)


def _reinterpret(x: Fn, src: DType, dst: DType, array: bool) -> Fn:
    if src.bits != dst.bits:
        raise InternalError(f"reinterpret {src} as {dst}: the widths differ")
    storage = dst.numpy
    if array:
        return lambda env, mask: x(env, mask).view(storage)
    source = src.numpy
    if dst.is_float:
        return lambda env, mask: np.asarray(x(env, mask), source).view(storage)[()]
    return lambda env, mask: np.asarray(x(env, mask), source).view(storage).item()
