"""Programs whose results do not depend on their tile sizes, nor on where in a batch an entry stands.

Every value is a function of the element's own coordinates (gi, gj) and of the arrays; K and row widths, along which is
reduced, are constants of the program. Arrays are [batch, rows, columns], [batch, rows] and the like.
"""

from __future__ import annotations

from typing import Any

from tiledsl.testing.strategies.lanes import Lanes
from tiledsl.testing.strategies.program import Argument, Program
from tiledsl.testing.strategies.rows import statement_rows
from tiledsl.testing.strategies.scope import FLOATS, INTS, Buf, Name, Scope, kind_of

__all__ = ["Tiled"]

_SIZES = (20, 5, 1, 16, 37, 33)
_WIDTHS = (4, 16, 1, 7, 17, 20)
_STARTS = {"full": "by * TM, bx * TN", "row": "by * TM", "wide": "by * TM, 0", "column": "0, bx * TN"}
_HERE = {"full": "gi, gj", "row": "gi"}


class Tiled(Lanes):
    """Draws such a program. Tiles have a form: "full" [TM, TN], "row" [TM], "wide" [TM, W], "column" [W, TN]."""

    def __init__(self, draw: Any, most: int) -> None:
        super().__init__(draw)
        self.budget, self.scope, self.depth = most, Scope(), 1
        self.params: list[str] = []
        self.arguments: list[Argument] = []
        self.forms: dict[str, str] = {}  # of tiles and outputs, by name
        self.batch, self.rows, self.columns = 1 + self.below(3), self.pick(_SIZES), self.pick(_SIZES)
        self.width = self.pick(_WIDTHS)

    # -- where values come from ------------------------------------------------------------------------------------

    def index(self, b: Buf, depth: int = 1) -> list[str]:
        if b.scope == "local":
            return [self.within(n, depth) for n in b.extents]
        form = self.forms.get(b.name)
        if b.scope == "global" and form is not None:
            return ["bz", *_HERE[form].split(", ")]
        if form is None:
            return ["bz", *(self.anywhere(n, depth) for n in b.extents[1:])]
        return [self.within(self.width, depth) if x is None else x for x in self.own(form)]

    def own(self, form: str) -> tuple[str | None, ...]:
        """An iteration's place in a tile; None: anywhere along the width."""
        return {"full": ("i", "j"), "row": ("i",), "wide": ("i", None), "column": (None, "j")}[form]

    def anywhere(self, limit: int, depth: int = 1) -> str:
        here = [n.text for n in self.scope.names if n.text in ("gi", "gj")]
        if here and self.chance(60):
            return f"{self.pick(here)} {self.pick(('+', '-'))} {self.pick(('0', '1', '5'))}"
        return self.within(max(1, limit), depth)

    def lane_print(self, nest: int) -> None:
        self.let(nest)  # the number of iterations, and so of lines, depends on the tiles

    def tensor(self, form: str, dtype: str, written: bool) -> Buf:
        n = {"full": (self.rows, self.columns), "row": (self.rows,), "wide": (self.rows, self.width * 3),
             "column": (self.width * 3, self.columns)}[form]  # fmt: skip
        texts = {"full": "M, N", "row": "M", "wide": f"M, {n[-1]}", "column": f"{n[0]}, N"}[form]
        name = self.fresh("O" if written else "A")
        b = Buf(name, dtype, (self.batch, *n), "global", name)
        self.params.append(f"{name}: T.Tensor((B, {texts}), '{dtype}')")
        floats = ("small", "special") if dtype in FLOATS else ("index", "huge", "special")
        self.arguments.append(Argument(name, dtype, b.extents, "small" if written else self.pick(floats)))
        return b

    def tile(self, form: str, dtype: str) -> Buf:
        shapes = {"full": "(TM, TN)", "row": "(TM,)", "wide": f"(TM, {self.width})", "column": f"({self.width}, TN)"}
        name = self.fresh("F")
        self.put(f"{name} = T.alloc_{self.pick(('fragment', 'shared'))}({shapes[form]}, '{dtype}')")
        self.forms[name] = form
        extents = {"full": (1, 1), "row": (1,), "wide": (1, self.width), "column": (self.width, 1)}[form]
        return Buf(name, dtype, extents, "fragment", name)

    def of(self, *forms: str) -> list[Buf]:
        return [b for b in self.scope.buffers if self.forms.get(b.name) in forms]

    # -- statements ------------------------------------------------------------------------------------------------

    def load(self) -> None:
        form, dtype = self.pick(("full", "row", "wide")), self.pick((*FLOATS, *INTS))
        a, b = self.tensor(form, dtype, False), self.tile(form, dtype)
        self.scope.tensors.append(a)
        shift = self.pick(("", " + 1", " - 3"))
        self.put(f"T.copy({a.name}[bz, {_STARTS[form]}{shift}], {b.name})")
        self.scope.buffers.append(b)

    def nest(self, written: bool = False) -> None:
        """A T.Parallel over the tile's elements, or its rows."""
        form = self.pick(("full", "row"))
        found = self.of(form, "wide") if form == "row" else self.of(form)
        dtype = self.pick((*FLOATS, *INTS[:4]))
        written = written or not found or self.chance(30)
        if written:
            target = self.tensor(form, dtype, True)
            self.forms[target.name] = form
            place: tuple[str | None, ...] = ("bz", *_HERE[form].split(", "))
        else:
            target = self.pick(found)
            place = self.own(self.forms[target.name])
        guard = written and form == "row"  # one block of a row writes it
        if guard:
            self.put("if bx == 0:")
            self.depth += 1
        self.put("for i, j in T.Parallel(TM, TN):" if form == "full" else "for i in T.Parallel(TM):")
        scope = self.scope.inner(lanes=("i", "j"), targets={target.root: (target, place)})
        scope.names += [Name("gi", "int32"), *([Name("gj", "int32")] if form == "full" else [])]
        visible = ("full", "row", "wide", "column") if form == "full" else ("row", "wide")
        scope.buffers = [b for b in scope.buffers if self.forms[b.name] in visible]
        if written:
            scope.tensors = [*scope.tensors, target]
        with self.region(scope):
            self.put("gi = by * TM + i")
            if form == "full":
                self.put("gj = bx * TN + j")
            self.lane_statements(1 + self.below(3), 2)
        self.depth -= guard

    def reduce(self) -> None:
        found = [b for b in self.of("wide") if b.kind != "bool"]
        if not found:
            return self.load()
        b = self.pick(found)
        row = self.pick([r for r in statement_rows("reduce_") if b.kind == "float" or "int" in r.takes])
        if b.kind == "float" and "float" not in row.takes:
            row = statement_rows("reduce_")[0]
        out = self.tile("row", b.dtype)
        extra = ""
        if "clear" in row.params and self.chance(30):
            self.put(f"T.fill({out.name}, {self.pick(('0', '3', '1'))})")
            extra = ", clear=False"
        self.put(f"T.{row.name}({b.name}, {out.name}, dim=1{extra})")
        self.scope.buffers.append(out)

    def gemm(self) -> None:
        """A K loop; the K tile is a constant, the others are not."""
        dtype = self.pick(("float32", "float16", "bfloat16", "float64", "int8"))
        results = {"float64": ("float64",), "int8": ("int32",)}.get(dtype, ("float32", "float16", "bfloat16"))
        a, b = self.tensor("wide", dtype, False), self.tensor("column", dtype, False)
        left, right, c = self.tile("wide", dtype), self.tile("column", dtype), self.tile("full", self.pick(results))
        self.scope.tensors += [a, b]
        self.put(f"T.clear({c.name})")
        self.put(f"for k in {self.pick(('T.Pipelined(3, num_stages=2)', 'T.serial(3)', 'T.Pipelined(2)'))}:")
        self.put(f"    T.copy({a.name}[bz, by * TM, k * {self.width}], {left.name})")
        self.put(f"    T.copy({b.name}[bz, k * {self.width}, bx * TN], {right.name})")
        self.put(f"    T.gemm({left.name}, {right.name}, {c.name})")
        self.scope.buffers += [left, right, c]
        self.saw("gemm")

    def loop(self) -> None:
        v, n = self.fresh("k"), 1 + self.below(3)
        self.put(f"for {v} in T.{self.pick(('serial', 'unroll', 'Pipelined'))}({n}):")
        scope = self.scope.inner()
        scope.names.append(Name(v, "int32", n))
        with self.region(scope):
            self.nest()
            self.pick((self.nest, self.gemm, self.reduce))()

    def store(self, b: Buf) -> None:
        form = self.forms[b.name]
        if form not in _HERE:
            return
        o = self.tensor(form, self.pick((b.dtype, "float32" if kind_of(b.dtype) == "float" else "int32")), True)
        if form == "row":
            self.put("if bx == 0:")
            self.depth += 1
        self.put(f"T.copy({b.name}, {o.name}[bz, {_STARTS[form]}])")
        self.depth -= form == "row"

    def program(self) -> Program:
        self.put("with T.Kernel(T.ceildiv(N, TN), T.ceildiv(M, TM), B) as (bx, by, bz):")
        self.depth += 1
        self.load()
        while self.budget > 0:
            self.budget -= 1
            self.pick((self.nest, self.nest, self.load, self.reduce, self.gemm, self.loop))()
        for b in self.scope.buffers[-4:]:
            self.store(b)
        self.nest(written=True)
        self.saw("tiled")
        anchor = "S0: T.Tensor((B, M, N), 'float32')"  # binds the symbols
        self.arguments.append(Argument("S0", "float32", (self.batch, self.rows, self.columns)))
        head = "import tiledsl\nimport tiledsl.language as T\n\nTM = 16\nTN = 8\n"
        head += f'B, M, N = T.dynamic("B, M, N")\n\n\n@T.prim_func\ndef main({", ".join([*self.params, anchor])}):\n'
        source = head + "\n".join(self.lines) + "\n\n\nkernel = tiledsl.compile(main)\n"
        return Program(source, tuple(self.arguments), frozenset(self.features), ("TM", "TN"), True)
