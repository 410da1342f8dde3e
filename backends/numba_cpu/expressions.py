"""Expressions and places of the loop stage as Python text; `printer.py` adds the statements."""

from __future__ import annotations

import keyword
import math
import re

import numpy as np

from tiledsl import ir
from tiledsl.backends.cpu.printing import constant_index, count_of, row_major_strides
from tiledsl.backends.numba_cpu.dialect import TYPE_NAMES
from tiledsl.backends.numba_cpu.names import NAMES
from tiledsl.dtypes import INT64, DType
from tiledsl.errors import InternalError

__all__ = ["RESERVED", "ExpressionPrinter", "plain", "type_name", "unique"]


# Python's binary operators: text and precedence (higher binds tighter).
_OPERATORS = {
    "or": ("or", 1), "and": ("and", 2), "eq": ("==", 4), "ne": ("!=", 4), "lt": ("<", 4), "le": ("<=", 4),
    "gt": (">", 4), "ge": (">=", 4), "bitor": ("|", 5), "bitxor": ("^", 6), "bitand": ("&", 7), "shl": ("<<", 8),
    "shr": (">>", 8), "add": ("+", 9), "sub": ("-", 9), "mul": ("*", 10), "div": ("/", 10),
    "floordiv": ("//", 10), "floormod": ("%", 10),
}  # fmt: skip
_FUNCTIONS = {"max": "maximum", "min": "minimum", "truncdiv": "truncdiv", "truncmod": "truncmod"}
_ATOM = 20


RESERVED = frozenset(
    [*NAMES, *keyword.kwlist, *keyword.softkwlist, "range", "bool", "micro", "first", "last", "args", "context",
     "scratch", "returned"]
)  # fmt: skip


def plain(text: str) -> str:
    """Text of the author inside a comment or docstring: printable ASCII on one line, no quotes or backslashes."""
    return re.sub(r"[^ -~]", "?", text).replace("\\", "/").replace('"', "'")


def unique(name: str, taken: set[str] | frozenset[str]) -> str:
    name = re.sub(r"\W", "_", name, flags=re.ASCII).lstrip("_") or "v"
    name = f"v{name}" if name[0].isdigit() else name
    candidate, n = name, 1
    while candidate in taken:
        n += 1
        candidate = f"{name}_{n}"
    return candidate


def type_name(d: DType) -> str:
    return TYPE_NAMES[d.scalar.name] + ("" if d.lanes == 1 else f"x{d.lanes}")


class ExpressionPrinter:
    """Names, pointers and expressions of one kernel.

    used: functions that the text uses -> the line that defines them ("" for the dialect's own)
    """

    def __init__(self, kernel: ir.Kernel, used: dict[str, str]) -> None:
        self.kernel, self.used = kernel, used
        self.lines: list[str] = []
        self.depth = 0
        self.names: dict[object, str] = {}
        self.taken: set[str] = set(RESERVED)
        self.pointers: dict[ir.Buffer, str] = {}
        self.strides: dict[ir.Buffer, tuple[ir.Expr, ...]] = {}

    def line(self, text: str) -> None:
        self.lines.append("    " * self.depth + text)

    def use(self, name: str, definition: str = "") -> str:
        self.used.setdefault(name, definition)
        return name

    def name(self, key: object, wanted: str) -> str:
        found = self.names.get(key)
        if found is None:
            found = self.names[key] = unique(wanted, self.taken)
            self.taken.add(found)
        return found

    def zero(self, d: DType) -> str:
        return self.constant(ir.Const(0.0 if d.is_float else False if d.is_bool else 0, d.scalar), d)

    def var_name(self, b: ir.Buffer, i: int) -> str:
        return self.name((b, i), b.name if count_of(b) == 1 else f"{b.name}_{i}")

    def view(self, b: ir.Buffer) -> str:
        """The address of a view: its root's, moved by its offset (in elements of its own type)."""
        assert b.alias_of is not None
        maker = self.use(f"{TYPE_NAMES[b.dtype.scalar.name]}_pointer")
        address = f"{maker}({self.pointer(b.alias_of)})"
        return address if b.offset is None else f"{address} + {self.as_index(b.offset, 10)}"

    def pointer(self, b: ir.Buffer) -> str:
        found = self.pointers.get(b)
        if found is not None:
            return found
        if b.alias_of is not None:
            return f"({self.view(b)})"
        assert b.base is not None
        return f"{self.use(f'{TYPE_NAMES[b.dtype.scalar.name]}_pointer')}({self.expr(b.base)})"

    def strides_of(self, b: ir.Buffer) -> tuple[ir.Expr, ...]:
        """Strides in elements as constants or expressions over symbols, computed once per kernel."""
        found = self.strides.get(b)
        if found is None:
            found = self.strides[b] = row_major_strides(b)
        return found

    def stride(self, e: ir.Expr) -> str:
        return str(e.value) if isinstance(e, ir.Const) else self.as_index(e, 0)

    def as_index(self, e: ir.Expr, precedence: int) -> str:
        """An integer expression as int64."""
        if isinstance(e, ir.Const):
            return str(int(e.value))
        if e.dtype is INT64:
            return self.expr(e, precedence=precedence)
        return f"{self.use('i64' if e.dtype.lanes == 1 else 'i64x16')}({self.expr(e)})"

    def place(self, b: ir.Buffer, indices: tuple[ir.Expr, ...]) -> tuple[str, str]:
        """The pointer and the linear index (scalar, or a vector for gathers) of an element."""
        constant, scalars, vectors = 0, [], []
        for index, stride in zip(indices, self.strides_of(b), strict=True):
            if isinstance(index, ir.Const) and index.value == 0:
                continue
            if isinstance(index, ir.Const) and isinstance(stride, ir.Const):
                constant += int(index.value) * int(stride.value)
            elif index.dtype.lanes == 1:
                scalars.append(self.scaled(index, stride))
            else:
                vectors.append(self.scaled(index, stride))
        base = self.pointer(b)
        scalar = " + ".join(scalars)
        if not scalar:
            scalar = str(constant)
        elif constant:
            scalar += f" {'+' if constant > 0 else '-'} {abs(constant)}"
        if not vectors:
            return base, scalar
        if scalar not in ("", "0"):
            base = f"({base} + ({scalar}))" if " " in scalar else f"({base} + {scalar})"
        return base, " + ".join(vectors)

    def scaled(self, index: ir.Expr, stride: ir.Expr) -> str:
        if isinstance(stride, ir.Const) and stride.value == 1:
            return self.as_index(index, 9)
        if isinstance(index, ir.Const) and index.value == 1:
            return self.as_index(stride, 10)
        if index.dtype.lanes > 1:
            return f"{self.as_index(index, 10)} * {self.use('i64x16')}({self.stride(stride)})"
        return f"{self.as_index(index, 10)} * {self.as_index(stride, 11)}"

    # -- expressions -----------------------------------------------------------------------------------------

    def expr(self, e: ir.Expr, *, precedence: int = 0, literal: bool = False) -> str:
        """The text of e. literal: an integer constant may stand bare, because its neighbour gives it its type."""
        if isinstance(e, ir.Const):
            return self.constant(e, e.type, literal)
        text, own = getattr(self, f"on_{type(e).__name__}")(e)
        return f"({text})" if own < precedence else text

    def constant(self, c: ir.Const, d: DType, literal: bool = False) -> str:
        """A constant of dtype d (all lanes)."""
        v = c.value
        if d.is_bool:
            text = repr(bool(v))
            return text if d.lanes == 1 else f"{self.use(type_name(d))}({text})"
        if d.is_float:
            v = float(np.float32(v)) if d.bits == 32 else float(v)
            text = repr(v) if math.isfinite(v) else self.use("nan") if v != v else f"{'-' * (v < 0)}{self.use('inf')}"
            return text if d.name == "float64" else f"{self.use(type_name(d))}({text})"
        text = str(int(v))
        if d.name == "uint64" and int(v) >= 1 << 63:
            text = str(int(v) - (1 << 64))  # the same bits: literals are int64
        return text if d is INT64 or literal else f"{self.use(type_name(d))}({text})"

    def on_Var(self, e: ir.Var) -> tuple[str, int]:
        if e not in self.names:
            raise InternalError(f"{e.name} is used in kernel {self.kernel.name} before it is defined")
        return self.names[e], _ATOM

    def on_Load(self, e: ir.Load) -> tuple[str, int]:
        b = e.buffer
        if b.scope == "var":
            return self.var_name(b, constant_index(e.indices)), _ATOM
        base, index = self.place(b, e.indices)
        mask = "" if e.mask is None else f", {self.expr(e.mask)}"
        if e.lanes > 1:
            return f"{self.use('load16')}({base}, {index}{mask})", _ATOM
        if mask:
            return f"{self.use('load')}({base}, {index}{mask})", _ATOM
        return f"{base}[{index}]", _ATOM

    def on_Unary(self, e: ir.Unary) -> tuple[str, int]:
        if e.op == "neg":
            return f"-{self.expr(e.x, precedence=12)}", 12
        if e.op == "bitnot" or (e.op == "not" and e.dtype.lanes > 1):
            return f"~{self.expr(e.x, precedence=12)}", 12
        if e.op == "not":
            return f"not {self.expr(e.x, precedence=4)}", 3
        return f"{self.use('absolute' if e.op == 'abs' else e.op)}({self.expr(e.x)})", _ATOM

    def on_Binary(self, e: ir.Binary) -> tuple[str, int]:
        op = e.op
        literals = e.a.dtype.is_int and not (isinstance(e.a, ir.Const) and isinstance(e.b, ir.Const))
        if op in _FUNCTIONS:
            a, b = (self.expr(x, literal=literals) for x in (e.a, e.b))
            return f"{self.use(_FUNCTIONS[op])}({a}, {b})", _ATOM
        if e.dtype.lanes > 1 and op in ("and", "or"):
            op = f"bit{op}"
        sign, own = _OPERATORS[op]
        left = own + 1 if op in ir.COMPARISONS else own
        a = self.expr(e.a, precedence=left, literal=literals)
        b = self.expr(e.b, precedence=own + 1, literal=literals)
        return f"{a} {sign} {b}", own

    def call(self, name: str, *args: ir.Expr) -> tuple[str, int]:
        return f"{self.use(name)}({', '.join(self.expr(a) for a in args)})", _ATOM

    def on_Fma(self, e: ir.Fma) -> tuple[str, int]:
        return self.call("fma", e.a, e.b, e.c)

    def on_Select(self, e: ir.Select) -> tuple[str, int]:
        return self.call("select", e.cond, e.t, e.f)

    def on_IfThenElse(self, e: ir.IfThenElse) -> tuple[str, int]:
        t, c, f = self.expr(e.t, precedence=1), self.expr(e.cond, precedence=1), self.expr(e.f)
        return f"{t} if {c} else {f}", 0

    def on_Cast(self, e: ir.Cast) -> tuple[str, int]:
        return self.call(type_name(e.type), e.x)

    def on_Call(self, e: ir.Call) -> tuple[str, int]:
        if e.name == "reinterpret":
            return self.call("as_" + type_name(e.type), *e.args)
        return self.call("any_lane" if e.name == "any" else e.name, *e.args)

    def on_Broadcast(self, e: ir.Broadcast) -> tuple[str, int]:
        if isinstance(e.x, ir.Const):
            return self.constant(e.x, e.dtype), _ATOM
        return self.call(type_name(e.dtype), e.x)

    def on_Ramp(self, e: ir.Ramp) -> tuple[str, int]:
        return f"{self.use('ramp')}({self.expr(e.base)}, {e.stride})", _ATOM
