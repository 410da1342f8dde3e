"""Expressions, shared by all stages. Every expression has a dtype; operands of one operator agree in type
(the frontend inserts casts). Values are immutable; equality is structural, except Var: by identity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tiledsl.dtypes import BOOL, DType
from tiledsl.ir.node import Node, attribute, node, operand

if TYPE_CHECKING:
    from tiledsl.ir.buffer import Buffer

__all__ = [
    "BINARY_OPS",
    "BOOL",
    "COMPARISONS",
    "Binary",
    "Broadcast",
    "Call",
    "Cast",
    "Choice",
    "Const",
    "Expr",
    "Fma",
    "IfThenElse",
    "Load",
    "Ramp",
    "Select",
    "UNARY_OPS",
    "Unary",
    "Var",
]


# Operators. Integer arithmetic wraps at its type; float operators round to their type (language.md 0.7).
ARITHMETIC = frozenset(["add", "sub", "mul", "div", "floordiv", "floormod", "truncdiv", "truncmod", "min", "max"])
BITWISE = frozenset(["bitand", "bitor", "bitxor", "shl", "shr"])
COMPARISONS = frozenset(["eq", "ne", "lt", "le", "gt", "ge"])
LOGICAL = frozenset(["and", "or"])  # lazy: the right side is evaluated only where the left does not decide
BINARY_OPS = ARITHMETIC | BITWISE | COMPARISONS | LOGICAL
UNARY_OPS = frozenset(["neg", "not", "bitnot", "abs", "sqrt", "floor", "ceil", "trunc", "rint"])


@dataclass(frozen=True, eq=False)
class Expr(Node):
    """Base of all expressions."""

    @property
    def dtype(self) -> DType:
        """`type` where a node states it, else what follows from its operands."""
        found: DType = self.type  # type: ignore[attr-defined]
        return found


@node
class Const(Expr):
    """A literal. value: Python bool, int or float (also nan and inf), representable in `type`."""

    value: Any = attribute()
    type: DType = attribute()

    def __eq__(self, other: object) -> bool:
        # NaN equals NaN and -0.0 differs from 0.0: equality is of bits, not of numbers.
        return isinstance(other, Const) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[str, str]:
        return (self.type.name, repr(self.value))


@dataclass(frozen=True, eq=False)
class Var(Expr):
    """An immutable scalar: loop variable, let, block or thread index, scalar parameter or shape symbol."""

    name: str = field(metadata={"role": "attribute"})
    type: DType = field(metadata={"role": "attribute"})


@node
class Load(Expr):
    """One element of a buffer; `lanes` > 1 (loop stage): that many elements contiguous along the last
    dimension. A vector-typed index makes it a gather. `mask` (vector of bool, or bool): lanes that are off
    are not accessed and give 0.

    Tile stage: out of range of a *global* buffer gives 0 or the buffer's safe value (language.md 0.14).
    `proved`: a pass has shown, or guarded, that the access is in range; a raw access out of range is then an
    internal error.
    """

    buffer: Buffer = operand()
    indices: tuple[Expr, ...] = operand()
    mask: Expr | None = operand(default=None)
    lanes: int = attribute(default=1)
    proved: bool = attribute(default=False)

    @property
    def dtype(self) -> DType:
        lanes = max([self.lanes, *(i.dtype.lanes for i in self.indices)])
        return self.buffer.dtype.with_lanes(lanes) if lanes > 1 else self.buffer.dtype  # elements may be vectors


@node
class Unary(Expr):
    """op in UNARY_OPS. "not" takes bool, "bitnot" integers; rint rounds to nearest even."""

    op: str = attribute()
    x: Expr = operand()

    @property
    def dtype(self) -> DType:
        return self.x.dtype


@node
class Binary(Expr):
    """op in BINARY_OPS; both operands have one dtype, comparisons give bool (lane by lane)."""

    op: str = attribute()
    a: Expr = operand()
    b: Expr = operand()

    @property
    def dtype(self) -> DType:
        return BOOL.with_lanes(self.a.dtype.lanes) if self.op in COMPARISONS else self.a.dtype


@node
class Fma(Expr):
    """a * b + c with one rounding; float32 or float64."""

    a: Expr = operand()
    b: Expr = operand()
    c: Expr = operand()

    @property
    def dtype(self) -> DType:
        return self.a.dtype


@dataclass(frozen=True, eq=False)
class Choice(Expr):
    """cond ? t : f."""

    cond: Expr = operand()
    t: Expr = operand()
    f: Expr = operand()

    @property
    def dtype(self) -> DType:
        return self.t.dtype


@node
class Select(Choice):
    """Both sides are evaluated, one is chosen."""


@node
class IfThenElse(Choice):
    """Only the chosen side is evaluated: guards loads."""


@node
class Cast(Expr):
    """Conversion by the one table of conversions (language.md 0.11)."""

    x: Expr = operand()
    type: DType = attribute()


@node
class Call(Expr):
    """An intrinsic of `tiledsl.ir.intrinsics`: exp2, log, rsqrt, reinterpret, hreduce_add ..."""

    name: str = attribute()
    args: tuple[Expr, ...] = operand()
    type: DType = attribute()


@node
class Broadcast(Expr):
    """Loop stage: all lanes equal to a scalar."""

    x: Expr = operand()
    lanes: int = attribute()

    @property
    def dtype(self) -> DType:
        return self.x.dtype.with_lanes(self.lanes)


@node
class Ramp(Expr):
    """Loop stage: base, base + stride, base + 2 stride ...; integers."""

    base: Expr = operand()
    stride: int = attribute()
    lanes: int = attribute()

    @property
    def dtype(self) -> DType:
        return self.base.dtype.with_lanes(self.lanes)
