"""Scalar expressions: every value an author can write, with every element access in range where it has to be."""

from __future__ import annotations

from tiledsl.testing.strategies.scope import FLOATS, INTS, Buf, Scope, Source

__all__ = ["Expressions"]

_FLOAT_CALLS = ("T.abs({})", "T.sqrt({})", "T.exp2({})", "T.floor({})", "T.rsqrt({})", "T.exp({})", "T.log2({})",
                "T.sigmoid({})", "T.ceil({})", "T.trunc({})", "T.round({})", "T.log({})", "(-{})")  # fmt: skip
_FLOAT_PAIRS = ("({} + {})", "({} - {})", "({} * {})", "T.max({}, {})", "({} / {})", "T.min({}, {})")
_INT_PAIRS = ("({} + {})", "({} - {})", "({} * {})", "T.max({}, {})", "T.min({}, {})", "({} // {})", "({} % {})",
              "({} & {})", "({} | {})", "({} ^ {})", "T.truncdiv({}, {})", "T.truncmod({}, {})",
              "T.ceildiv({}, {})")  # fmt: skip
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")
_FLOAT_LITERALS = ("1.0", "0.5", "-2.0", "0.0", "3", "1e-3", "-0.0", "65504.0")
_INT_LITERALS = ("1", "2", "3", "-1", "7", "-5", "16", "100")


class Expressions(Source):
    """Draws expressions as text. `self.scope` is what they may name."""

    scope: Scope
    nested = 0  # element accesses around the one being drawn

    def value(self, kind: str, depth: int = 2) -> str:
        return {"float": self.real, "int": self.whole, "bool": self.truth}[kind](depth)

    # -- leaves ----------------------------------------------------------------------------------------------------

    def leaf(self, kind: str) -> str:
        """A name, an element, or a constant: always a staged value."""
        names, buffers = self.scope.scalars(kind), self.scope.readable(kind)
        options = ["element"] * (2 * bool(buffers)) + ["name"] * bool(names)
        if not options:
            return self.constant(kind)
        if self.pick(options) == "name":
            return self.pick(names).text
        return self.element(self.pick(buffers))

    def constant(self, kind: str) -> str:
        if kind == "bool":
            return self.pick(("T.cast(1, 'bool')", "T.cast(0, 'bool')"))
        if kind == "int":
            return f"T.cast({self.pick(_INT_LITERALS)}, '{self.pick(INTS)}')"
        if self.chance(15):
            return self.pick(("T.infinity('float32')", "-T.infinity('float32')", "T.max_value('float32')"))
        return f"T.cast({self.pick(_FLOAT_LITERALS)}, '{self.pick(FLOATS)}')"

    # -- indices ---------------------------------------------------------------------------------------------------

    def within(self, limit: int, depth: int = 1) -> str:
        """An int in 0 ... limit - 1, whatever the data are."""
        fits = [n.text for n in self.scope.names if n.kind == "int" and 0 < n.top <= limit]
        how = self.pick(
            ["name"] * (3 * bool(fits)) + ["constant"] + ["mod", "clamp"] * (depth > 0) + ["mirror"] * bool(fits)
        )
        if how == "name":
            return self.pick(fits)
        if how == "mirror":
            return f"({limit - 1} - {self.pick(fits)})"
        if how == "constant":
            return str(self.below(limit))
        if how == "mod":
            return f"({self.whole(depth - 1)} % {limit})"
        return f"T.min(T.max({self.whole(depth - 1)}, 0), {limit - 1})"

    def anywhere(self, limit: int, depth: int = 1) -> str:
        """An int that may leave 0 ... limit - 1 on both sides: only for global tensors and moves."""
        bounded = [n.text for n in self.scope.names if n.kind == "int" and n.top > 0]
        blocks = [n.text for n in self.scope.names if n.text in ("bx", "by", "bz")]
        tile = self.pick((16, 8, 4, 3, 17))
        how = self.pick(
            ["tiled"] * bool(blocks and bounded)
            + ["sum"] * bool(bounded)
            + ["constant", "within"]
            + ["any"] * (depth > 0)
        )
        if how == "tiled":
            return f"{self.pick(blocks)} * {tile} + {self.pick(bounded)}"
        if how == "sum":
            return f"{self.pick(bounded)} {self.pick(('+', '-'))} {self.pick(('0', '1', '3', '20'))}"
        if how == "constant":
            return str(self.below(max(1, limit)))
        if how == "within":
            return self.within(max(1, limit), depth)
        self.saw("wild index")
        return self.whole(depth - 1)

    def index(self, b: Buf, depth: int = 1) -> list[str]:
        """Where an element of b may be read here."""
        target = self.scope.targets.get(b.root)
        if target is not None:
            return [self.within(n, depth) if i is None else i for i, n in zip(target[1], b.extents, strict=True)]
        if b.is_input:
            return [self.anywhere(n, depth) for n in b.extents]
        return [self.within(n, depth) for n in b.extents]

    def element(self, b: Buf) -> str:
        self.nested += 1
        try:
            return b.at(self.index(b, 1 if self.nested <= 2 else -1))
        finally:
            self.nested -= 1

    # -- floats ----------------------------------------------------------------------------------------------------

    def real(self, depth: int = 2) -> str:
        if depth <= 0:
            return self.leaf("float")
        how = self.pick(("leaf", "pair", "pair", "literal", "call", "cast", "choice", "fma", "from int", "clamp",
                         "select", "bits"))  # fmt: skip
        if how == "leaf":
            return self.leaf("float")
        if how == "pair":
            return self.pick(_FLOAT_PAIRS).format(self.real(depth - 1), self.real(depth - 1))
        if how == "literal":
            pair = self.pick(_FLOAT_PAIRS)
            both = (self.real(depth - 1), self.pick(_FLOAT_LITERALS))
            return pair.format(*(both if self.chance(60) else both[::-1]))
        if how == "call":
            return self.pick(_FLOAT_CALLS).format(self.real(depth - 1))
        if how == "cast":
            return f"T.cast({self.real(depth - 1)}, '{self.pick(FLOATS)}')"
        if how == "from int":
            return self.pick(("T.float32({})", "T.float16({})", "T.bfloat16({})", "T.float64({})")).format(
                self.whole(depth - 1)
            )
        if how == "choice":
            self.saw("lazy choice")
            parts = self.truth(depth - 1), self.real(depth - 1), self.real(depth - 1)
            return (
                "T.if_then_else({}, {}, {})".format(*parts)
                if self.chance(50)
                else "({1} if {0} else {2})".format(*parts)
            )
        if how == "select":
            d = self.pick(FLOATS)
            a, b = (f"T.cast({self.real(depth - 1)}, '{d}')" for _ in range(2))
            return f"T.Select({self.truth(depth - 1)}, {a}, {b})"
        if how == "fma":
            return f"T.fma({self.real(depth - 1)}, {self.real(depth - 1)}, {self.leaf('float')})"
        if how == "clamp":
            return f"T.clamp({self.real(depth - 1)}, {self.leaf('float')}, {self.leaf('float')})"
        bits, floats = self.pick(
            (("int32", "float32"), ("uint16", "float16"), ("uint16", "bfloat16"), ("uint64", "float64"))
        )
        return f"T.reinterpret(T.cast({self.whole(depth - 1)}, '{bits}'), '{floats}')"

    # -- ints ------------------------------------------------------------------------------------------------------

    def whole(self, depth: int = 2) -> str:
        if depth <= 0:
            return self.leaf("int")
        how = self.pick(
            ("leaf", "literal", "pair", "pair", "cast", "shift", "choice", "from float", "unary", "from bool")
        )
        if how == "leaf":
            return self.leaf("int")
        if how == "pair":
            return self.pick(_INT_PAIRS).format(self.whole(depth - 1), self.whole(depth - 1))
        if how == "literal":
            both = (self.whole(depth - 1), self.pick(_INT_LITERALS))
            return self.pick(_INT_PAIRS).format(*(both if self.chance(60) else both[::-1]))
        if how == "cast":
            return f"T.cast({self.whole(depth - 1)}, '{self.pick(INTS)}')"
        if how == "shift":
            return (
                f"({self.whole(depth - 1)} {self.pick(('<<', '>>'))} {self.pick((self.leaf('int'), '1', '3', '31'))})"
            )
        if how == "choice":
            return f"T.if_then_else({self.truth(depth - 1)}, {self.whole(depth - 1)}, {self.leaf('int')})"
        if how == "unary":
            return self.pick(("T.abs({})", "(-{})", "(~{})")).format(self.whole(depth - 1))
        if how == "from bool":
            return f"T.cast({self.truth(depth - 1)}, '{self.pick(INTS)}')"
        return f"T.cast({self.real(depth - 1)}, '{self.pick(INTS)}')"

    # -- bools -----------------------------------------------------------------------------------------------------

    def truth(self, depth: int = 1) -> str:
        if depth <= 0:
            kind = self.pick(("int", "float"))
            return f"({self.leaf(kind)} {self.pick(_COMPARISONS)} {self.pick(_INT_LITERALS[:4])})"
        how = self.pick(("compare", "compare", "and", "not", "leaf", "chain", "class", "mixed"))
        if how == "compare":
            kind = self.pick(("int", "float"))
            return f"({self.value(kind, depth - 1)} {self.pick(_COMPARISONS)} {self.value(kind, depth - 1)})"
        if how == "mixed":
            return f"({self.whole(depth - 1)} {self.pick(_COMPARISONS)} {self.real(depth - 1)})"
        if how == "and":
            self.saw("lazy and")
            return f"({self.truth(depth - 1)} {self.pick(('and', 'or'))} {self.truth(depth - 1)})"
        if how == "not":
            return f"(not {self.truth(depth - 1)})"
        if how == "leaf":
            return self.leaf("bool") if self.scope.readable("bool") or self.scope.scalars("bool") else self.truth(0)
        if how == "chain":
            return f"({self.pick(_INT_LITERALS[:5])} <= {self.whole(depth - 1)} < {self.pick(('5', '40', '9'))})"
        return f"{self.pick(('T.isnan', 'T.isinf', 'T.isfinite'))}({self.real(depth - 1)})"
