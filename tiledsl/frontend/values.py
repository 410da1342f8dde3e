"""Scalars that are known only when the kernel runs, and their operators.

A Value has the dtype the author sees, and an expression that may be wider: int8 + int8 is int8, computed in int32 and
wrapped when it is bound, stored or cast (language.md 0.12). Nothing is folded here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np

from tiledsl.dtypes import DType, promote
from tiledsl.errors import TileAttributeError, TileIndexError, TileTypeError, suggest
from tiledsl.frontend.describe import INFIX, expr_text
from tiledsl.frontend.habits import advice_here, instead
from tiledsl.frontend.location import author_frame, error, here, source_here
from tiledsl.frontend.promotion import (
    BOOL,
    FLOAT32,
    INT32,
    as_number,
    convert,
    fits,
    is_number,
    literal,
    literal_dtype,
    slice_dtype,
    widened,
)
from tiledsl.ir import Binary, Expr, Unary

__all__ = [
    "IndexTuple",
    "Undefined",
    "Value",
    "Vector",
    "as_bool",
    "as_value",
    "binary",
    "common",
    "describe",
    "index_expr",
    "lanes_of",
    "no_attribute",
    "refuse_operators",
    "to_dtype",
    "unary",
]

_BITWISE = frozenset(["bitand", "bitor", "bitxor", "shl", "shr"])
_COMPARE = frozenset(["eq", "ne", "lt", "le", "gt", "ge"])
_INTEGER_ONLY = frozenset(["floordiv", "floormod", "truncdiv", "truncmod"])

_UFUNC = {
    "subtract": "sub", "multiply": "mul", "divide": "div", "floor_divide": "floordiv", "remainder": "floormod",
    "bitwise_and": "bitand", "bitwise_or": "bitor", "bitwise_xor": "bitxor", "left_shift": "shl", "right_shift": "shr",
    "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge",
    "add": "add",
}  # fmt: skip

_Method = Callable[[Any, Any], Any]


def _pair(op: str) -> tuple[_Method, _Method]:
    """The methods of `self op other` and `other op self`."""
    return (lambda self, other: binary(op, self, other)), (lambda self, other: binary(op, other, self))


_OPERATORS = (
    *(f"__{side}{op}__" for side in ("", "r")
      for op in "add sub mul matmul truediv floordiv mod divmod pow lshift rshift and xor or".split()),
    *(f"__{op}__" for op in "lt le gt ge neg pos abs invert contains array_ufunc array_function".split()),
)  # fmt: skip


def refuse_operators(cls: type, refuse: Callable[..., Any]) -> None:
    """Lets `refuse` say that objects of this class have no operators; a comparison with a number is one too."""
    for name in _OPERATORS:
        setattr(cls, name, refuse)
    same: Any = cls.__eq__

    def equal(self: Any, other: Any) -> Any:
        return refuse(self) if isinstance(other, Value) or is_number(other) else same(self, other)

    setattr(cls, "__eq__", equal)  # noqa: B010


def no_attribute(x: Any, name: str) -> NoReturn:
    """What `x.name` says when there is no such attribute."""
    if name[0] == name[-1] == "_":  # Python, NumPy and notebooks ask for such names
        raise AttributeError(name)
    known = [n for n in dir(type(x)) if not n.startswith("_")]
    found = instead(name)
    what = f"{x!r} ({x.dtype})" if isinstance(x, Value) else repr(x)
    raise error(
        "no-attribute", TileAttributeError, f"{what} has no member .{name}",
        help=f"use {found}" if found else suggest(name, known) or f"it has {', '.join(known)}",
    )  # fmt: skip


class Value:
    """A scalar that is known only when the kernel runs.

    dtype  what the author sees
    expr   its expression; for narrow integers it may have a wider integer dtype
    """

    def __init__(self, expr: Expr, dtype: DType | None = None) -> None:
        if not isinstance(expr, Expr):  # authors see the class as T.PrimExpr
            raise error(
                "annotation-called",
                TileTypeError,
                f"T.PrimExpr is the type of values, for annotations; it was called with {expr!r}",
                help="T.cast(x, dtype) makes a value of a number",
            )
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

    # Operators: the promotion rules of `binary` and `unary` below.
    __add__, __radd__ = _pair("add")
    __sub__, __rsub__ = _pair("sub")
    __mul__, __rmul__ = _pair("mul")
    __truediv__, __rtruediv__ = _pair("div")
    __floordiv__, __rfloordiv__ = _pair("floordiv")
    __mod__, __rmod__ = _pair("floormod")
    __and__, __rand__ = _pair("bitand")
    __or__, __ror__ = _pair("bitor")
    __xor__, __rxor__ = _pair("bitxor")
    __lshift__, __rlshift__ = _pair("shl")
    __rshift__, __rrshift__ = _pair("shr")
    __lt__, __gt__ = _pair("lt")[0], _pair("gt")[0]
    __le__, __ge__ = _pair("le")[0], _pair("ge")[0]

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
            "power",
            TileTypeError,
            "** does not work on kernel values",
            help="write x * x, or T.pow(x, y)",
        )

    __rpow__ = __pow__

    def _needs_python_value(self, what: str, help: str) -> NoReturn:
        said = advice_here()
        hidden = said and said[0].startswith(("max(", "min(", "sorted(", "`in`"))  # they compare, not the author
        operand = Value(self.expr.a) if hidden and isinstance(self.expr, Binary) else self
        raise error(
            "python-value-needed",
            TileTypeError,
            f"{said[0]}, and {operand!r} ({operand.dtype}) is known only when the kernel runs"
            if said
            else f"{self!r} ({self.dtype}) is known only when the kernel runs; {what}",
            help=said[1] if said else help,
        )

    def __getattr__(self, name: str) -> Any:
        no_attribute(self, name)

    def __bool__(self) -> bool:
        self._needs_python_value(
            "Python needs True or False here",
            "`if`, `and`, `or`, `not` and `a if c else b` work in kernels and macros; in a plain helper use "
            "T.if_then_else, T.max, T.min, or decorate it with @T.macro",
        )

    def __index__(self) -> int:
        name, x = _indexed_here()
        if name:
            tiles = isinstance(x, (list, tuple)) and any(hasattr(e, "buffer") for e in x)
            raise error(
                "python-value-needed",
                TileTypeError,
                f"{name} ({describe(x)}) is a Python object; its index {self!r} ({self.dtype}) is known only when the "
                "kernel runs",
                help="allocate one tile with one more axis, and index that"
                if tiles
                else "pass it to the kernel as an array (a T.Tensor parameter) and index that, make a tile of it "
                "(T.alloc_local, T.alloc_fragment), or loop over Python ints: `for k in [0, 1, 2]:`",
            )
        self._needs_python_value("Python needs an int here", "use a Python int, or a loop like `for i in range(n):`")

    def __array__(self, *_: Any, **__: Any) -> Any:
        self.__index__()  # NumPy asks for one first, and passes over its error

    def __int__(self) -> int:
        self._needs_python_value("int() needs a Python number", "convert with T.int32(x)")

    def __float__(self) -> float:
        self._needs_python_value("float() needs a Python number", "convert with T.float32(x)")

    def __round__(self, digits: int = 0) -> int:
        self._needs_python_value("round() needs a Python number", "use T.round(x)")

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **_: Any) -> Any:
        """An operator whose left side is a NumPy number; NumPy's functions are refused."""
        numbers = [x[()] if isinstance(x, np.ndarray) and x.ndim == 0 else x for x in inputs]
        result = binary(_UFUNC[ufunc.__name__], *numbers) if ufunc.__name__ in _UFUNC else NotImplemented
        if result is NotImplemented:
            self._needs_python_value(
                f"np.{ufunc.__name__} needs numbers", "the functions of kernel values are T.exp, T.max, T.floor, ..."
            )
        return result

    def __hash__(self) -> int:
        self._needs_python_value(
            "it cannot be a dictionary key or set element", "use Python numbers or strings as keys"
        )

    def __iter__(self) -> Any:
        raise error("not-iterable", TileTypeError, f"{self!r} ({self.dtype}) is a scalar and cannot be iterated")


class Vector(Value):
    """Values of one dtype side by side, such as T.bfloat16x2(a, b): operators work lane by lane, and v[k], with k a
    Python int, is one of them. In the IR there are the lanes only."""

    def __init__(self, lanes: Sequence[Value]) -> None:
        self.lanes = tuple(lanes)
        self._dtype = lanes[0].dtype.with_lanes(len(lanes))

    @property
    def expr(self) -> Expr:
        raise error(
            "vector-as-scalar",
            TileTypeError,
            f"{self!r} ({self.dtype}) is a vector, and a scalar is needed here",
            help="take a lane: v[0], or convert all lanes with T.cast",
        )

    def astype(self, dtype: Any) -> Vector:
        return Vector([x.astype(slice_dtype(dtype, "astype", vectors=True).scalar) for x in self.lanes])

    def __getitem__(self, lane: Any) -> Value:
        if not isinstance(lane, (int, np.integer)) or not -len(self.lanes) <= lane < len(self.lanes):
            raise error(
                "vector-lane",
                TileIndexError,
                f"{self!r} ({self.dtype}) has no lane {lane!r}",
                help=f"lanes are the Python ints 0 to {len(self.lanes) - 1}",
            )
        return self.lanes[lane]

    def __len__(self) -> int:
        return len(self.lanes)

    def __iter__(self) -> Any:
        return iter(self.lanes)

    def __repr__(self) -> str:
        return f"({', '.join(map(repr, self.lanes))})"


def lanes_of(x: Any, count: int) -> Sequence[Any]:
    """The lanes of a vector; a scalar is the same in all of them."""
    if not isinstance(x, Vector):
        return [x] * count
    if len(x.lanes) != count:
        raise error(
            "vector-lanes",
            TileTypeError,
            f"{x!r} ({x.dtype}) has {len(x.lanes)} lanes, not {count}",
            help="vectors meet vectors of as many lanes, and scalars",
        )
    return x.lanes


def _indexed_here() -> tuple[str, Any]:
    """The author's array, list or dict whose element is asked for at this place: its name and itself, or ""."""
    frame = author_frame()
    name = re.match(r"([A-Za-z_]\w*)\[", source_here())
    if frame is None or name is None:
        return "", None
    x = frame.f_locals.get(name[1], frame.f_globals.get(name[1]))
    return "" if x is None else name[1], x


class IndexTuple(tuple[Value, ...]):
    """The indices of a grid or loop of several axes, where one name got them all; `_advice` says how to name each."""

    _advice: str

    def __new__(cls, values: Sequence[Value], advice: str) -> IndexTuple:
        made = super().__new__(cls, values)
        made._advice = advice
        return made

    __hash__ = tuple.__hash__

    def _misuse(self, *_: Any, **__: Any) -> NoReturn:
        raise error("index-tuple", TileTypeError, f"{self!r} are {len(self)} indices, not a number", help=self._advice)


refuse_operators(IndexTuple, IndexTuple._misuse)


class Undefined:
    """Stands for a name that a staged region defined, after that region; `last` is what tracing bound it to there."""

    def __init__(self, name: str, reason: str, notes: tuple[str, ...], help: str, last: Any = None) -> None:
        self.name, self.reason, self.notes, self.help, self.last = name, reason, notes, help, last


def as_value(x: Any, what: str) -> Value:
    """x as a Value; Python numbers get their literal dtype."""
    if isinstance(x, Value):
        return x
    if is_number(x):
        number = as_number(x)
        dtype = literal_dtype(number)
        return Value(literal(number, dtype))
    help = getattr(x, "_advice", None)
    if isinstance(x, DType):
        help = "the shape comes first, then the dtype: ((64, 32), T.float16)"
    elif isinstance(x, (tuple, list)):
        help = help or "a tuple or list is not one number; where several are taken, pass them one by one"
    elif isinstance(x, str) and x.isidentifier():
        help = f'a size that only calls tell is a symbol: {x} = T.dynamic("{x}")'
    elif not help and hasattr(x, "shape"):
        help = "a kernel sees an array as a T.Tensor parameter, whose elements are scalars: A[i]"
    raise error("not-a-value", TileTypeError, f"{what} must be a scalar value, got {describe(x)}", help=help)


def describe(x: Any) -> str:
    """What an argument is, for diagnostics."""
    if x is None or hasattr(x, "buffer"):
        return repr(x)
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        return f"{type(x).__name__} of {x.dtype}[{', '.join(map(str, x.shape))}]"
    text = repr(x)
    kind = "tuple" if isinstance(x, tuple) else type(x).__name__
    return f"{kind} {text if len(text) < 80 else text[:76] + ' ...'}"


def to_dtype(x: Any, dtype: DType) -> Expr:
    """A value or literal as an expression of dtype."""
    if isinstance(x, Value):
        return convert(x.expr, dtype)
    return literal(as_number(x), dtype)


def index_expr(x: Any, what: str = "an index") -> Expr:
    """An integer expression for indices, extents and loop bounds: int32, or a wider type that x has."""
    v = as_value(x, what)
    if not v.dtype.is_int:
        raise error(
            "index-dtype",
            TileTypeError,
            f"{what} must be an integer, got {v!r} ({v.dtype})",
            help="use // where / stands, or int(...): sizes and indices are ints"
            if is_number(x)
            else "cast it: T.cast(x, T.int32)",
        )
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
            raise error(
                "promotion", TileTypeError, f"the operands of {INFIX.get(op, op)} do not go together: {e}"
            ) from None
    value, number = (a, as_number(b)) if isinstance(a, Value) else (b, as_number(a))
    dtype: DType = value.dtype
    if isinstance(number, float):
        return promote(dtype, FLOAT32)
    if isinstance(number, bool):
        return dtype if bitwise else promote(dtype, BOOL)
    if dtype.is_float:
        return dtype
    if bitwise and not dtype.is_bool:
        return dtype if fits(number, dtype) or fits(number, INT32) else promote(dtype, literal_dtype(number))
    if not fits(number, INT32) and fits(number, dtype):
        return dtype
    return promote(dtype, literal_dtype(number))


def binary(op: str, a: Any, b: Any) -> Any:
    """`a op b` by the promotion rules; NotImplemented for operands that are no scalars."""
    for x in (a, b):
        if not isinstance(x, Value) and not is_number(x):
            return NotImplemented
    if isinstance(a, Vector) or isinstance(b, Vector):
        count = len(a.lanes if isinstance(a, Vector) else b.lanes)
        return Vector([binary(op, x, y) for x, y in zip(lanes_of(a, count), lanes_of(b, count), strict=True)])
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
            "integer-division",
            TileTypeError,
            f"/ of integers is ambiguous: {_text(a)} / {_text(b)}",
            help="use // (rounds down), T.ceildiv (rounds up) or T.truncdiv, or convert one side: T.float32(x)",
        )
    if op in _INTEGER_ONLY and seen.is_float:
        raise error(
            "float-floordiv",
            TileTypeError,
            f"{INFIX.get(op, 'T.' + op)} takes integers: {_text(a)}, {_text(b)}",
            help="for floats use T.floor(a / b)",
        )
    if seen.is_bool and op not in ("min", "max"):
        seen = INT32
    inner = widened(seen)
    return Value(Binary(op, to_dtype(a, inner), to_dtype(b, inner), loc=here()), seen)


def _bitwise(op: str, a: Any, b: Any, seen: DType) -> Value:
    if seen.is_float:
        raise error(
            "bitwise-float",
            TileTypeError,
            f"{INFIX[op]} takes integers: {_text(a)}, {_text(b)}",
            help="for the bits of a float use T.reinterpret(x, T.uint32)",
        )
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
    if isinstance(x, Vector):
        return Vector([unary(op, lane) for lane in x.lanes])
    if op == "bitnot":
        if x.dtype.is_bool:
            return Value(Unary("not", x.typed, loc=here()))
        if x.dtype.is_float:
            raise error(
                "bitwise-float-not",
                TileTypeError,
                f"~ takes integers, got {_text(x)}",
                help="for the bits of a float use T.reinterpret(x, T.uint32)",
            )
    seen = INT32 if x.dtype.is_bool else x.dtype
    if op == "abs" and seen.kind == "uint":
        return x
    return Value(Unary(op, to_dtype(x, widened(seen)), loc=here()), seen)
