"""What the iterations of a T.Parallel do, each with its own elements; and names and variables, there and outside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tiledsl.testing.strategies.expressions import Expressions
from tiledsl.testing.strategies.program import names_in
from tiledsl.testing.strategies.scope import FLOATS, INTS, STORED, Buf, Name, Scope

__all__ = ["Lanes"]


class Lanes(Expressions):
    """Draws statements of one iteration. `budget`: statements that may still be drawn."""

    budget = 20
    single = False  # there are statements of single threads

    @contextmanager
    def region(self, scope: Scope) -> Iterator[None]:
        """An indented block with this scope; never empty."""
        outer, self.scope = self.scope, scope
        self.depth += 1
        before = len(self.lines)
        try:
            yield
            if len(self.lines) == before:
                self.put("pass")
        finally:
            self.scope = outer
            self.depth -= 1

    # -- nests -----------------------------------------------------------------------------------------------------

    def lanes_scope(
        self, lanes: list[str], extents: tuple[int, ...], targets: dict[str, tuple[Buf, tuple[str | None, ...]]]
    ) -> Scope:
        scope = self.scope.inner(lanes=tuple(lanes), targets=targets, exits=False)
        scope.names += [Name(v, "int32", n) for v, n in zip(lanes, extents, strict=True)]
        for i, n in enumerate(scope.names):
            if n.writable:
                scope.names[i] = Name(n.text, n.dtype, n.top, n.roots, n.cell)
        return scope

    def lane_statements(self, count: int, nest: int) -> None:
        """Ends with a store, so that the nest does something."""
        for _ in range(count - 1):
            self.budget -= 1
            self.pick(
                [self.lane_store] * 3 + [self.let] + [self.lane_exit] * self.chance(25)
                + [self.lane_branch, self.lane_loop, self.lane_array, self.lane_variable, self.lane_while,
                   self.lane_vectors] * (nest > 0)
                + [self.lane_print] * self.chance(10) + [self.lane_atomic] * (2 * self.chance(50))
            )(nest - 1)  # fmt: skip
        self.lane_store(nest)

    def lane_store(self, nest: int = 0) -> None:
        private = [b for b in self.scope.buffers if b.scope == "local"]
        if private and self.chance(25):
            b = self.pick(private)
            self.put(f"{b.at([self.within(n) for n in b.extents])} = {self.value(b.kind)}")
            return
        cells = [n for n in self.scope.names if n.cell and n.writable]
        if cells and self.chance(30):
            return self.set_cell(self.pick(cells))
        b, fixed = self.pick(list(self.scope.targets.values()))
        index = [self.within(n) if i is None else i for i, n in zip(fixed, b.extents, strict=True)]
        how = self.pick(("=", "=", "+=", "=", "*=", "-="))
        if b.kind == "bool":
            how = "="
        readable = b in self.scope.readable(b.kind)
        if how != "=" and not readable:
            how = "="
        self.put(f"{b.at(index)} {how} {self.value(b.kind)}")

    def lane_branch(self, nest: int) -> None:
        self.saw("if in nest")
        self.put(f"if {self.truth()}:")
        with self.region(self.scope.inner()):
            self.lane_statements(1 + self.below(2), nest)
        if self.chance(40):
            self.put("else:")
            with self.region(self.scope.inner()):
                self.lane_statements(1, nest)

    def lane_exit(self, nest: int) -> None:
        self.saw("exit in nest")
        self.put(f"if {self.truth()}:")
        self.put("    continue")

    def lane_loop(self, nest: int) -> None:
        self.saw("loop in nest")
        v, n = self.fresh("k"), 1 + self.below(5)
        stop = str(n) if self.chance(70) else f"({self.whole(1)} % {n + 1})"
        self.put(f"for {v} in T.{self.pick(('serial', 'unroll', 'vectorized'))}({stop}):")
        scope = self.scope.inner()
        scope.names.append(Name(v, "int32", n))
        with self.region(scope):
            if self.chance(20):
                self.saw("exit in nest")
                self.put(f"if {self.truth()}:")
                self.put(f"    {self.pick(('break', 'continue'))}")
            self.lane_statements(1 + self.below(2), nest)

    def lane_while(self, nest: int) -> None:
        self.saw("while in nest")
        w = self.fresh("w")
        self.put(f"{w} = T.alloc_var('int32', 0)")
        self.put(f"while {w} < {self.within(5)}:")
        scope = self.scope.inner()
        scope.names.append(Name(w, "int32", 6, cell=True))
        with self.region(scope):
            self.put(f"{w} += 1")
            self.lane_statements(1, nest)

    def lane_array(self, nest: int) -> None:
        self.saw("array in nest")
        name, n, dtype = self.fresh("L"), 1 + self.below(4), self.pick(STORED)
        self.put(f"{name} = T.alloc_local(({n},), '{dtype}')")
        b, q = Buf(name, dtype, (n,), "local", root=name), self.fresh("q")
        scope = self.scope.inner()
        scope.names.append(Name(q, "int32", n))
        self.put(f"for {q} in T.serial({n}):")
        with self.region(scope):
            self.put(f"{name}[{q}] = {self.value(b.kind)}")
        self.scope.buffers.append(b)

    def lane_atomic(self, nest: int) -> None:
        self.lane_store(nest)

    def lane_vectors(self, nest: int) -> None:
        self.lane_array(nest)

    def lane_print(self, nest: int) -> None:
        self.saw("print in nest")
        message = self.pick(("", ", 'here {}'"))
        self.put(f"T.print({self.value(self.pick(('int', 'float', 'bool')), 1)}{message})")

    def lane_variable(self, nest: int) -> None:
        self.saw("variable in nest")
        self.new_cell()

    # -- scalars ---------------------------------------------------------------------------------------------------

    def let(self, nest: int) -> None:
        kind = self.pick(("float", "int", "bool"))
        text = self.value(kind)
        x = self.fresh("x")
        roots = frozenset(names_in(text, [b.name for b in (*self.scope.tensors, *self.scope.buffers)]))
        self.put(f"{x} = {text}")
        dtype = {"float": "float32", "int": "int32", "bool": "bool"}[kind]
        self.scope.names.append(Name(x, dtype, 0, self.roots(roots, text)))

    def roots(self, names: frozenset[str], text: str) -> frozenset[str]:
        direct = {b.root for b in (*self.scope.tensors, *self.scope.buffers) if b.name in names}
        through = [n.roots for n in self.scope.names if n.text in names_in(text, [n.text])]
        return frozenset(direct.union(*through))

    def new_cell(self) -> None:
        dtype = self.pick(("float32", "int32", *FLOATS, *INTS, "bool"))
        v = self.fresh("v")
        text = self.value({"bool": "bool"}.get(dtype, "float" if dtype in FLOATS else "int"), 1)
        self.put(f"{v} = T.alloc_var('{dtype}', {text})")
        every = frozenset(b.root for b in (*self.scope.tensors, *self.scope.buffers))
        self.scope.names.append(Name(v, dtype, 0, every, cell=True, writable=True))

    def variable(self, nest: int) -> None:
        self.saw("variable")
        self.new_cell()

    def set_cell(self, v: Name) -> None:
        how = self.pick(("=", "+=", "=", "*=", "-=")) if v.kind != "bool" else "="
        self.put(f"{v.text} {how} {self.value(v.kind)}")
