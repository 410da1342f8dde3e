"""What author code holds while tracing: values, elements, regions, buffers and variables, and their operators.

Promotion is that of language.md (section 2, "dtype promotion"; 0.12 for narrow integers): a Value has the dtype the
author sees, and an expression that may be wider (int8 + int8 is int8, computed in int32 and wrapped when it is
bound, stored or cast). Nothing is folded here.
"""

from __future__ import annotations

import math
from typing import Any, NoReturn, TypeAlias

import numpy as np

from tiledsl.dtypes import DType, as_dtype, promote
from tiledsl.errors import TileIndexError, TileNotImplementedError, TileTypeError
from tiledsl.frontend.builder import current, is_tracing
from tiledsl.frontend.describe import dims, expr_text
from tiledsl.frontend.linear import difference
from tiledsl.frontend.location import error, here
from tiledsl.ir import Binary, Buffer, Cast, Const, Expr, Load, Region, Store, Unary

__all__ = [
    "BOOL", "BufferRef", "Cell", "Element", "FLOAT32", "INT32", "INT64", "Number", "RegionRef", "Undefined", "Value",
    "as_bool", "as_number", "as_value", "binary", "common", "convert", "dtype_of", "index_expr", "is_number", "literal",
    "slice_dtype", "unary",
]  # fmt: skip

BOOL, INT32, INT64, FLOAT32 = (as_dtype(n) for n in ("bool", "int32", "int64", "float32"))
Number: TypeAlias = "Value | int | float"

_SUPPORTED = frozenset(
    "float64 float32 float16 bfloat16 bool int8 int16 int32 int64 uint8 uint16 uint32 uint64".split()
)
_BITWISE = frozenset(["bitand", "bitor", "bitxor", "shl", "shr"])
_COMPARE = frozenset(["eq", "ne", "lt", "le", "gt", "ge"])
_INTEGER_ONLY = frozenset(["floordiv", "floormod", "truncdiv", "truncmod"])
_SYMBOL = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "floordiv": "//", "floormod": "%", "bitand": "&", "bitor": "|",
    "bitxor": "^", "shl": "<<", "shr": ">>", "eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=",
}  # fmt: skip


def slice_dtype(x: Any, what: str) -> DType:
    """The dtype meant by x, refused where this version has no arithmetic for it yet."""
    try:
        dtype = as_dtype(x)
    except TypeError:
        raise error(
            "unknown-dtype", TileTypeError, f"{what}: {x!r} is not a dtype", help='write for example T.float16 or "int32"'
        ) from None
    if dtype.name not in _SUPPORTED:
        raise error("dtype-not-yet", TileNotImplementedError, f"{what}: dtype {dtype} is not supported yet")
    return dtype


class Value:
    """A scalar that is known only when the kernel runs.

    dtype  what the author sees
    expr   its expression; for narrow integers it may have a wider integer dtype
    """

    def __init__(self, expr: Expr, dtype: DType | None = None) -> None:
        self._expr = expr
        self._dtype = dtype or expr.dtype

    @property
    def expr(self) -> Expr:
        return self._expr

    @property
    def dtype(self) -> DType:
        return self._dtype

    @property
    def typed(self) -> Expr:
        """The expression in exactly `dtype` (wrapped, if it was computed wider)."""
        return convert(self.expr, self.dtype)

    def astype(self, dtype: Any) -> Value:
        """This value converted to dtype (language.md 0.11)."""
        return Value(convert(self.expr, slice_dtype(dtype, "astype"), loc=True))

    def __repr__(self) -> str:
        return expr_text(self.expr)

    def __add__(self, other: Any) -> Any:
        return binary("add", self, other)

    def __radd__(self, other: Any) -> Any:
        return binary("add", other, self)

    def __sub__(self, other: Any) -> Any:
        return binary("sub", self, other)

    def __rsub__(self, other: Any) -> Any:
        return binary("sub", other, self)

    def __mul__(self, other: Any) -> Any:
        return binary("mul", self, other)

    def __rmul__(self, other: Any) -> Any:
        return binary("mul", other, self)

    def __truediv__(self, other: Any) -> Any:
        return binary("div", self, other)

    def __rtruediv__(self, other: Any) -> Any:
        return binary("div", other, self)

    def __floordiv__(self, other: Any) -> Any:
        return binary("floordiv", self, other)

    def __rfloordiv__(self, other: Any) -> Any:
        return binary("floordiv", other, self)

    def __mod__(self, other: Any) -> Any:
        return binary("floormod", self, other)

    def __rmod__(self, other: Any) -> Any:
        return binary("floormod", other, self)

    def __and__(self, other: Any) -> Any:
        return binary("bitand", self, other)

    def __rand__(self, other: Any) -> Any:
        return binary("bitand", other, self)

    def __or__(self, other: Any) -> Any:
        return binary("bitor", self, other)

    def __ror__(self, other: Any) -> Any:
        return binary("bitor", other, self)

    def __xor__(self, other: Any) -> Any:
        return binary("bitxor", self, other)

    def __rxor__(self, other: Any) -> Any:
        return binary("bitxor", other, self)

    def __lshift__(self, other: Any) -> Any:
        return binary("shl", self, other)

    def __rlshift__(self, other: Any) -> Any:
        return binary("shl", other, self)

    def __rshift__(self, other: Any) -> Any:
        return binary("shr", self, other)

    def __rrshift__(self, other: Any) -> Any:
        return binary("shr", other, self)

    def __lt__(self, other: Any) -> Any:
        return binary("lt", self, other)

    def __le__(self, other: Any) -> Any:
        return binary("le", self, other)

    def __gt__(self, other: Any) -> Any:
        return binary("gt", self, other)

    def __ge__(self, other: Any) -> Any:
        return binary("ge", self, other)

    def __eq__(self, other: Any) -> Any:
        return binary("eq", self, other)

    def __ne__(self, other: Any) -> Any:
        return binary("ne", self, other)

    def __neg__(self) -> Value:
        return unary("neg", self)

    def __pos__(self) -> Value:
        return self

    def __abs__(self) -> Value:
        return unary("abs", self)

    def __invert__(self) -> Value:
        return unary("bitnot", self)

    def __pow__(self, other: Any) -> NoReturn:
        raise error(
            "power", TileTypeError, "** does not work on kernel values",
            help="write x * x for small powers, or T.exp2(y * T.log2(x))",
        )  # fmt: skip

    __rpow__ = __pow__

    def _needs_python_value(self, what: str, help: str) -> NoReturn:
        raise error(
            "python-value-needed", TileTypeError,
            f"{self!r} ({self.dtype}) is known only when the kernel runs; {what}", help=help,
        )  # fmt: skip

    def __bool__(self) -> bool:
        self._needs_python_value(
            "Python needs True or False here",
            "`if`, `and`, `or`, `not` and `a if c else b` work in kernels and macros; in a plain helper use "
            "T.if_then_else, T.max, T.min, or decorate it with @T.macro",
        )

    def __index__(self) -> int:
        self._needs_python_value("Python needs an int here", "use a Python int, or a loop like `for i in range(n):`")

    def __int__(self) -> int:
        self._needs_python_value("int() needs a Python number", "convert with T.int32(x)")

    def __float__(self) -> float:
        self._needs_python_value("float() needs a Python number", "convert with T.float32(x)")

    def __round__(self, digits: int = 0) -> int:
        self._needs_python_value("round() needs a Python number", "use T.round(x)")

    def __hash__(self) -> int:
        self._needs_python_value("it cannot be a dictionary key or set element", "use Python numbers or strings as keys")

    def __iter__(self) -> Any:
        raise error("not-iterable", TileTypeError, f"{self!r} ({self.dtype}) is a scalar and cannot be iterated")


class Element(Value):
    """A[i, j]: a value, and the place it is read from (T.copy takes it as a head address)."""

    def __init__(self, buffer: Buffer, indices: tuple[Expr, ...]) -> None:
        load = Load(buffer, indices, loc=here())
        if is_tracing():
            current("element access").note_load(load)
        super().__init__(load)
        self.buffer, self.indices = buffer, indices


class Cell(Value):
    """A mutable scalar: T.alloc_var, or an element bound to a T.Ref parameter. Reading loads it anew.

    bound  it has a name; assigning to that name stores into it
    """

    def __init__(self, buffer: Buffer, indices: tuple[Expr, ...], bound: bool = False) -> None:
        self.buffer, self.indices, self.bound = buffer, indices, bound

    @property
    def expr(self) -> Expr:
        load = Load(self.buffer, self.indices, loc=here())
        return current("reading a variable").note_load(load)

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    def __repr__(self) -> str:
        return self.buffer.name

    def store(self, value: Any) -> None:
        """variable = value, converted to its dtype."""
        emit_store(self.buffer, self.indices, value)

    def __getitem__(self, index: Any) -> Value:
        self._only_zero(index)
        return Value(self.expr)

    def __setitem__(self, index: Any, value: Any) -> None:
        self._only_zero(index)
        self.store(value)

    def _only_zero(self, index: Any) -> None:
        if index != 0:
            raise error("var-index", TileIndexError, f"{self.buffer.name} is a single variable; its only index is 0")

    def _augment(self, op: str, other: Any) -> Cell:
        self.store(binary(op, self, other))
        return self

    def __iadd__(self, other: Any) -> Cell:
        return self._augment("add", other)

    def __isub__(self, other: Any) -> Cell:
        return self._augment("sub", other)

    def __imul__(self, other: Any) -> Cell:
        return self._augment("mul", other)

    def __itruediv__(self, other: Any) -> Cell:
        return self._augment("div", other)

    def __ifloordiv__(self, other: Any) -> Cell:
        return self._augment("floordiv", other)

    def __imod__(self, other: Any) -> Cell:
        return self._augment("floormod", other)

    def __iand__(self, other: Any) -> Cell:
        return self._augment("bitand", other)

    def __ior__(self, other: Any) -> Cell:
        return self._augment("bitor", other)

    def __ixor__(self, other: Any) -> Cell:
        return self._augment("bitxor", other)

    def __ilshift__(self, other: Any) -> Cell:
        return self._augment("shl", other)

    def __irshift__(self, other: Any) -> Cell:
        return self._augment("shr", other)


class RegionRef:
    """A[i, a:b]: a box of a buffer."""

    def __init__(self, region: Region) -> None:
        self.region = region

    @property
    def buffer(self) -> Buffer:
        return self.region.buffer

    @property
    def dtype(self) -> DType:
        return self.region.buffer.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(_to_python(e) for e in self.region.extents)

    def __repr__(self) -> str:
        return f"{self.buffer.name}[...] ({dims(self.region.extents)} {self.dtype})"


class BufferRef:
    """A tensor argument or an allocated tile. `shape` gives Python ints where they are known."""

    def __init__(self, buffer: Buffer) -> None:
        self.buffer = buffer

    @property
    def name(self) -> str:
        return self.buffer.name

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def scope(self) -> str:
        return self.buffer.scope

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(_to_python(e) for e in self.buffer.shape)

    @property
    def ndim(self) -> int:
        return self.buffer.rank

    @property
    def strides(self) -> tuple[Any, ...]:
        """Strides in elements."""
        if self.buffer.strides is not None:
            return tuple(_to_python(e) for e in self.buffer.strides)
        found: list[Any] = [1]
        for extent in reversed(self.shape[1:]):
            found.append(found[-1] * extent)
        return tuple(reversed(found))

    def __repr__(self) -> str:
        return f"{self.name} ({dims(self.buffer.shape)} {self.dtype} {self.scope})"

    def __bool__(self) -> bool:
        raise error("buffer-as-bool", TileTypeError, f"{self!r} is a buffer; it is neither true nor false")

    def __iter__(self) -> Any:
        raise error(
            "buffer-iteration", TileTypeError, f"{self!r} is a buffer and cannot be iterated",
            help="loop over its indices: `for i in T.serial(n):`",
        )  # fmt: skip

    def __getitem__(self, key: Any) -> Any:
        starts, extents = self._locate(key)
        if extents is None:
            return Element(self.buffer, starts)
        return RegionRef(Region(self.buffer, starts, extents, loc=here()))

    def __setitem__(self, key: Any, value: Any) -> None:
        starts, extents = self._locate(key)
        if extents is not None:
            raise error(
                "slice-store", TileTypeError, f"a slice of {self!r} cannot be assigned",
                help="use T.copy(source, region) or T.fill(region, value)",
            )  # fmt: skip
        emit_store(self.buffer, starts, value)

    def _binary_misuse(self, *_: Any) -> Any:
        raise error(
            "buffer-arithmetic", TileTypeError, f"{self!r} is a buffer; operators work on its elements",
            help="loop over the elements: `for i, j in T.Parallel(m, n): C[i, j] = A[i, j] + B[i, j]`",
        )  # fmt: skip

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _binary_misuse
    __lt__ = __le__ = __gt__ = __ge__ = __neg__ = __matmul__ = __mod__ = __floordiv__ = _binary_misuse

    def _locate(self, key: Any) -> tuple[tuple[Expr, ...], tuple[Expr, ...] | None]:
        """Starts, and extents if some index is a slice."""
        keys = key if isinstance(key, tuple) else (key,)
        rank = self.buffer.rank
        if len(keys) != rank:
            plural = "" if len(keys) == 1 else "es"
            raise error(
                "rank-mismatch", TileIndexError, f"{self!r} is {rank}-dimensional but got {len(keys)} index{plural}",
                help="give one index or slice per dimension",
            )  # fmt: skip
        starts: list[Expr] = []
        extents: list[Expr] = []
        for axis, k in enumerate(keys):
            size = self.buffer.shape[axis]
            if not isinstance(k, slice):
                starts.append(self._index(k, axis, size))
                extents.append(Const(1, INT32))
                continue
            if k.step is not None and k.step != 1:
                raise error("slice-step", TileNotImplementedError, "slices with a step are not supported yet")
            start = Const(0, INT32) if k.start is None else self._index(k.start, axis, size, end=True)
            stop = size if k.stop is None else self._index(k.stop, axis, size, end=True)
            starts.append(start)
            extents.append(self._extent(start, stop))
        return tuple(starts), tuple(extents) if any(isinstance(k, slice) for k in keys) else None

    def _extent(self, start: Expr, stop: Expr) -> Expr:
        known = difference(stop, start)
        if known is None:
            return (Value(stop) - Value(start)).typed
        if known <= 0:
            raise error("empty-slice", TileIndexError, f"the slice {expr_text(start)}:{expr_text(stop)} of {self!r} is empty")
        return Const(known, INT32)

    def _index(self, k: Any, axis: int, size: Expr, end: bool = False) -> Expr:
        if isinstance(k, (int, np.integer)) and not isinstance(k, bool):
            k = int(k)
            if isinstance(size, Const):
                wrapped = k + size.value if k < 0 else k
                limit = size.value + 1 if end else size.value
                if wrapped < 0 or (wrapped >= limit and self.scope != "global"):
                    raise error(
                        "constant-index", TileIndexError,
                        f"index {k} is out of range for dimension {axis} of {self!r}, which has {size.value} elements",
                    )  # fmt: skip
                return index_expr(wrapped)
            return (Value(size) + k).typed if k < 0 else index_expr(k)
        return index_expr(k, f"index {axis} of {self!r}")


class Undefined:
    """Stands for a name that a staged region defined, after that region."""

    def __init__(self, name: str, message: str, notes: tuple[str, ...], help: str) -> None:
        self.name, self.message, self.notes, self.help = name, message, notes, help


def _to_python(e: Expr) -> Any:
    return e.value if isinstance(e, Const) else Value(e)


# -- numbers and literals ---------------------------------------------------------------------------------


def is_number(x: Any) -> bool:
    """A Python or NumPy number: known while tracing."""
    return isinstance(x, (int, float, np.number, np.bool_))


def as_number(x: Any) -> int | float:
    """The Python number of a Python or NumPy number."""
    number: int | float = x.item() if isinstance(x, (np.number, np.bool_)) else x
    return number


def _fits(value: int | float, dtype: DType) -> bool:
    """The literal is exactly a value of dtype."""
    if dtype.is_int:
        low, high = (-(1 << dtype.bits - 1), (1 << dtype.bits - 1) - 1) if dtype.is_signed else (0, (1 << dtype.bits) - 1)
        return isinstance(value, int) and low <= value <= high
    if dtype.is_bool:
        return isinstance(value, bool)
    if math.isnan(value) or math.isinf(value):
        return True
    with np.errstate(over="ignore"):
        try:
            return bool(float(np.asarray(value, dtype=np.float64).astype(dtype.numpy)) == value)
        except OverflowError:
            return False


def literal_dtype(value: int | float) -> DType:
    """bool, int32 (int64 or uint64 where it does not fit), float32."""
    if isinstance(value, bool):
        return BOOL
    if isinstance(value, float):
        return FLOAT32
    for name in ("int32", "int64", "uint64"):
        if _fits(value, as_dtype(name)):
            return as_dtype(name)
    raise error("literal-range", TileTypeError, f"the integer {value} does not fit in 64 bits")


def literal(value: int | float, dtype: DType) -> Expr:
    """A literal in dtype; one that dtype cannot hold is converted by the rules of casts."""
    if isinstance(value, bool) and not dtype.is_bool:
        value = int(value)
    if _fits(value, dtype):
        return Const(float(value) if dtype.is_float else value, dtype, loc=here())
    if isinstance(value, float):
        if dtype.name == "float32":
            return Const(_round32(value), dtype, loc=here())
        return Cast(Const(_round32(value), FLOAT32), dtype, loc=here())
    return Cast(Const(int(value), literal_dtype(int(value))), dtype, loc=here())


def _round32(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.float32(value))


def convert(e: Expr, dtype: DType, loc: bool = False) -> Expr:
    """e, cast to dtype where it has another one."""
    if e.dtype is dtype:
        return e
    return Cast(e, dtype, loc=here() if loc else e.loc)


def as_value(x: Any, what: str) -> Value:
    """x as a Value; Python numbers get their literal dtype."""
    if isinstance(x, Value):
        return x
    if is_number(x):
        number = as_number(x)
        dtype = literal_dtype(number)
        return Value(literal(number, dtype))
    raise error("not-a-value", TileTypeError, f"{what} must be a scalar value, got {_describe(x)}")


def _describe(x: Any) -> str:
    if isinstance(x, (BufferRef, RegionRef)):
        return f"buffer {x!r}"
    return f"{type(x).__name__} {x!r}" if x is not None else "None"


def dtype_of(x: Any) -> DType:
    """Dtype of a value or literal."""
    return x.dtype if isinstance(x, Value) else literal_dtype(as_number(x))


def to_dtype(x: Any, dtype: DType) -> Expr:
    """A value or literal as an expression of dtype."""
    if isinstance(x, Value):
        return convert(x.expr, dtype)
    return literal(as_number(x), dtype)


def widened(dtype: DType) -> DType:
    """The dtype that arithmetic on dtype is computed in (0.12): at least int32."""
    return INT32 if dtype.is_bool or (dtype.is_int and dtype.bits < 32) else dtype


def index_expr(x: Any, what: str = "an index") -> Expr:
    """An integer expression for indices, extents and loop bounds: int32, or a wider type that x has."""
    v = as_value(x, what)
    if not v.dtype.is_int:
        raise error("index-dtype", TileTypeError, f"{what} must be an integer, got {v!r} ({v.dtype})")
    e = v.expr
    return e if e.dtype.bits >= 32 else convert(e, INT32)


def as_bool(x: Any, what: str) -> Expr:
    """A condition: numbers count as true when they are not 0."""
    v = as_value(x, what)
    if v.dtype.is_bool:
        return v.typed
    return Binary("ne", v.typed, literal(0, v.dtype), loc=here())


# -- operators --------------------------------------------------------------------------------------------


def common(op: str, a: Any, b: Any) -> DType:
    """Dtype of `a op b` as the author sees it (for comparisons: of the compared operands)."""
    bitwise = op in _BITWISE
    if isinstance(a, Value) and isinstance(b, Value):
        try:
            return promote(a.dtype, b.dtype)
        except TypeError as e:
            raise error("promotion", TileTypeError, f"{_SYMBOL.get(op, op)}: {e}") from None
    value, number = (a, as_number(b)) if isinstance(a, Value) else (b, as_number(a))
    dtype: DType = value.dtype
    if isinstance(number, float):
        return promote(dtype, FLOAT32)
    if isinstance(number, bool):
        return dtype if bitwise else promote(dtype, BOOL)
    if dtype.is_float:
        return dtype
    if bitwise and not dtype.is_bool:
        return dtype if _fits(number, dtype) or _fits(number, INT32) else promote(dtype, literal_dtype(number))
    if not _fits(number, INT32) and _fits(number, dtype):
        return dtype
    return promote(dtype, literal_dtype(number))


def binary(op: str, a: Any, b: Any) -> Any:
    """`a op b` by the promotion rules; NotImplemented for operands that are no scalars."""
    for x in (a, b):
        if not isinstance(x, Value) and not is_number(x):
            return NotImplemented
    seen = common(op, a, b)
    if op in _COMPARE:
        inner = seen if seen.is_bool and op in ("eq", "ne") else widened(seen)
        return Value(Binary(op, to_dtype(a, inner), to_dtype(b, inner), loc=here()))
    if op in _BITWISE:
        return _bitwise(op, a, b, seen)
    if op == "div" and seen.is_int and not seen.is_signed:
        op = "truncdiv"
    if op == "div" and not seen.is_float:
        raise error(
            "integer-division", TileTypeError, f"/ of integers is ambiguous: {_text(a)} / {_text(b)}",
            help="use // (rounds down) or T.truncdiv, or convert one side: T.float32(x)",
        )  # fmt: skip
    if op in _INTEGER_ONLY and seen.is_float:
        raise error(
            "float-floordiv", TileTypeError, f"{_SYMBOL.get(op, 'T.' + op)} takes integers: {_text(a)}, {_text(b)}",
            help="for floats use T.floor(a / b)",
        )  # fmt: skip
    if seen.is_bool and op not in ("min", "max"):
        seen = INT32
    inner = widened(seen)
    return Value(Binary(op, to_dtype(a, inner), to_dtype(b, inner), loc=here()), seen)


def _bitwise(op: str, a: Any, b: Any, seen: DType) -> Value:
    if seen.is_float:
        raise error(
            "bitwise-float", TileTypeError, f"{_SYMBOL[op]} takes integers: {_text(a)}, {_text(b)}",
            help="for the bits of a float use T.reinterpret(x, T.uint32)",
        )  # fmt: skip
    if seen.is_bool and op in ("bitand", "bitor", "bitxor"):
        logical = {"bitand": "and", "bitor": "or", "bitxor": "ne"}[op]
        return Value(Binary(logical, to_dtype(a, BOOL), to_dtype(b, BOOL), loc=here()))
    if seen.is_bool:
        seen = INT32
    inner = widened(seen)
    return Value(Binary(op, to_dtype(a, inner), to_dtype(b, inner), loc=here()), seen)


def _text(x: Any) -> str:
    return f"{x!r} ({x.dtype})" if isinstance(x, Value) else repr(x)


def unary(op: str, x: Value) -> Value:
    """neg, abs, bitnot and the rounding functions."""
    if op == "bitnot":
        if x.dtype.is_bool:
            return Value(Unary("not", x.typed, loc=here()))
        if x.dtype.is_float:
            raise error("bitwise-float-not", TileTypeError, f"~ takes integers, got {_text(x)}")
    seen = INT32 if x.dtype.is_bool else x.dtype
    if op == "abs" and seen.kind == "uint":
        return x
    return Value(Unary(op, to_dtype(x, widened(seen)), loc=here()), seen)


def emit_store(buffer: Buffer, indices: tuple[Expr, ...], value: Any) -> None:
    """buffer[indices] = value, converted to the buffer's dtype."""
    if not isinstance(value, Value) and not is_number(value):
        raise error(
            "store-value", TileTypeError, f"{_describe(value)} cannot be stored into an element of {BufferRef(buffer)!r}",
            help="assign a scalar; tiles move with T.copy",
        )  # fmt: skip
    builder = current("a store")
    stored = to_dtype(value, buffer.dtype)
    check_uniform_effect(buffer, indices, stored)
    builder.emit(Store(buffer, indices, stored, loc=here()), "a store")


def check_uniform_effect(buffer: Buffer, indices: tuple[Expr, ...], value: Expr) -> None:
    """Refuses `s[i] = f(s[i])` on shared or global memory where every thread of the block would do it (0.3)."""
    builder = current("a store")
    if buffer.scope not in ("shared", "global") or builder.kernel_threads == 1 or builder.inside("parallel"):
        return
    for load in builder.sources(value):
        if load.buffer.root is not buffer.root:
            continue
        same_view = load.buffer is buffer
        if not same_view or all(difference(a, b) in (0, None) for a, b in zip(load.indices, indices, strict=True)):
            break
    else:
        return
    where = f"{buffer.name}[{', '.join(expr_text(i) for i in indices)}]"
    raise error(
        "non-uniform-effect", TileTypeError,
        f"every thread of the block would update {where} ({buffer.dtype} {buffer.scope}) from its own old value",
        help="write `for _ in T.Parallel(1):` around it so that it happens once, use threads=1, or accumulate in a "
        "T.alloc_var or fragment",
    )  # fmt: skip
