"""Scalar expressions: every value an author can write, with every element access in range where it has to be."""

from __future__ import annotations

from tiledsl.dtypes import as_dtype
from tiledsl.ir.operations import Operation
from tiledsl.testing.strategies.rows import WRITTEN, families_for, fill_in, needs_sign, operand_kinds
from tiledsl.testing.strategies.scope import FLOATS, INTS, NARROW, PACKED, STORED, Buf, Scope, Source

__all__ = ["Expressions"]

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
            if self.chance(10):
                return f"{self.pick(('T.max_value', 'T.min_value'))}('{self.pick(INTS)}')"
            return f"T.cast({self.pick(_INT_LITERALS)}, '{self.pick(INTS)}')"
        if self.chance(15):
            limit = self.pick(("T.infinity", "-T.infinity", "T.max_value", "T.min_value"))
            return f"{limit}('{self.pick(FLOATS)}')"
        return f"T.cast({self.pick(_FLOAT_LITERALS)}, '{self.pick(FLOATS)}')"

    # -- indices ---------------------------------------------------------------------------------------------------

    def within(self, limit: int, depth: int = 1) -> str:
        """An int in 0 ... limit - 1, whatever the data are."""
        fits = [n.text for n in self.scope.names if n.kind == "int" and 0 < n.top <= limit]
        how = self.pick(
            ["name"] * (3 * bool(fits))
            + ["constant"]
            + ["mod", "clamp", "bits"] * (depth > 0)
            + ["mirror"] * bool(fits)
        )
        if how == "name":
            return self.pick(fits)
        if how == "mirror":
            return f"({limit - 1} - {self.pick(fits)})"
        if how == "constant":
            return str(self.below(limit))
        if how == "mod":
            return f"({self.whole(depth - 1)} % {limit})"
        if how == "bits":  # in range, but no interval shows it
            return f"({self.whole(depth - 1)} % {limit} & {self.whole(depth - 1)} % {limit})"
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

    # -- rows of the operation table -------------------------------------------------------------------------------

    def row(self, kind: str, depth: int) -> str:
        """An elementwise operation that gives this kind, with what its row asks for as operands."""
        row = self.pick(self.pick(families_for(kind)))
        of = self.pick(operand_kinds(row, kind))
        literal = self.below(row.arity) if row.arity > 1 and of != "bool" and self.chance(25) else -1
        if row.family == "Logic":
            self.saw("lazy and")
        if row.family == "Choice" and not row.alike:
            self.saw("lazy choice")
        one_type = self.pick(FLOATS if of == "float" else INTS)
        sign = needs_sign(row) if of == "int" else ""
        texts = []
        for k in range(row.arity):
            if k == literal:
                text = self.pick(_FLOAT_LITERALS if of == "float" else _INT_LITERALS)
                if self.chance(20):
                    text = self.constant(of)
            else:
                text = self.operand_text(row, k, of, depth - 1)
            if row.alike:
                text = f"T.cast({text}, '{one_type}')"
            elif sign:
                text = f"T.cast({text}, '{sign}{as_dtype(one_type).bits}')"
            texts.append(text)
        self.saw(f"row {row.name}")
        return fill_in(row, texts)

    def written(self, kind: str, depth: int) -> str:
        """A row whose operands the table cannot describe."""
        name, text = self.pick([(n, t) for n, (k, t) in WRITTEN.items() if k == kind])
        self.saw(f"row {name}")
        return text.format(
            int=self.whole(depth - 1),
            float=self.leaf("float"),
            bits=self.pick(("int32", "uint32", "int64", "uint64")),
            number=self.pick(_INT_LITERALS),
            positive=2 + self.below(3),
            pair=self.pick(("float32x2", "float16x2", "bfloat16x2")),
            lane=self.below(2),
        )

    def operand_text(self, row: Operation, k: int, kind: str, depth: int) -> str:
        if row.draws[k] == "count":
            return self.pick((self.leaf("int"), "1", "3", "31"))
        return self.value(kind, 0 if k > 1 else depth)

    # -- floats ----------------------------------------------------------------------------------------------------

    def real(self, depth: int = 2) -> str:
        if depth <= 0:
            return self.leaf("float")
        how = self.pick(("leaf", "row", "row", "row", "row", "row", "cast", "from int", "bits", "written"))
        if how == "leaf":
            return self.leaf("float")
        if how == "row":
            return self.row("float", depth)
        if how == "written":
            return self.written("float", depth)
        if how == "cast":
            return self.cast(self.real(depth - 1), (*FLOATS, *NARROW, STORED[-1]))
        if how == "from int":
            return self.pick(("T.float32({})", "T.float16({})", "T.bfloat16({})", "T.float64({})")).format(
                self.whole(depth - 1)
            )
        bits, floats = self.pick(
            (
                ("int32", "float32"),
                ("uint16", "float16"),
                ("uint16", "bfloat16"),
                ("uint64", "float64"),
                ("uint4", NARROW[2]),
                ("uint8", NARROW[1]),
            )
        )
        return f"T.reinterpret(T.cast({self.whole(depth - 1)}, '{bits}'), '{floats}')"

    # -- ints ------------------------------------------------------------------------------------------------------

    def whole(self, depth: int = 2) -> str:
        if depth <= 0:
            return self.leaf("int")
        how = self.pick(("leaf", "row", "row", "row", "row", "cast", "from float", "from bool", "written", "bits"))
        if how == "leaf":
            return self.leaf("int")
        if how == "row":
            return self.row("int", depth)
        if how == "written":
            return self.written("int", depth)
        if how == "bits":
            a, b = self.pick(
                (("int4", "uint4"), ("uint4", "int4"), ("int32", "uint32"), ("uint8", "int8"), ("int64", "uint64"))
            )
            return f"T.reinterpret(T.cast({self.whole(depth - 1)}, '{a}'), '{b}')"
        source = {"cast": self.whole, "from bool": self.truth, "from float": self.real}[how]
        return self.cast(source(depth - 1), (*INTS, *PACKED[:2]))

    def cast(self, value: str, dtypes: tuple[str, ...]) -> str:
        dtype = self.pick(dtypes)
        return f"T.Cast('{dtype}', {value})" if self.chance(12) else f"T.cast({value}, '{dtype}')"

    # -- bools -----------------------------------------------------------------------------------------------------

    def truth(self, depth: int = 1) -> str:
        if depth <= 0:
            kind = self.pick(("int", "float"))
            return f"({self.leaf(kind)} {self.pick(_COMPARISONS)} {self.pick(_INT_LITERALS[:4])})"
        how = self.pick(("row", "row", "row", "leaf", "chain", "mixed"))
        if how == "row":
            return self.row("bool", depth)
        if how == "mixed":
            return f"({self.whole(depth - 1)} {self.pick(_COMPARISONS)} {self.real(depth - 1)})"
        if how == "leaf":
            return self.leaf("bool") if self.scope.readable("bool") or self.scope.scalars("bool") else self.truth(0)
        return f"({self.pick(_INT_LITERALS[:5])} <= {self.whole(depth - 1)} < {self.pick(('5', '40', '9'))})"
