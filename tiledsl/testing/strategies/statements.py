"""Statements of a block: each method draws one kind, valid and free of races by construction."""

from __future__ import annotations

import math
from collections.abc import Callable

from tiledsl.dtypes import as_dtype
from tiledsl.ir.operations import OPERATIONS
from tiledsl.testing.strategies.memory import Memory
from tiledsl.testing.strategies.moves import TILES
from tiledsl.testing.strategies.program import names_in
from tiledsl.testing.strategies.scope import FLOATS, INTS, PACKED, STORED, Buf, Name

__all__ = ["Statements"]


class Statements(Memory):
    """Draws statements into `lines`."""

    macros: list[str]
    threads = "128"

    # -- regions ---------------------------------------------------------------------------------------------------

    def statements(self, count: int, nest: int) -> None:
        """Statements of the block; nest: how many more levels of loops and branches are allowed."""
        for _ in range(count):
            if self.budget <= 0:
                return
            self.budget -= 1
            self.statement(nest)

    def statement(self, nest: int) -> None:
        tiles = [b for b in self.scope.buffers if b.is_tile]
        options: list[Callable[[int], object]] = [self.parallel] * 5 + [self.tile] * 2
        if tiles:
            options += [self.reduce, self.gemm, self.view] * 2
            options += [self.copy_in, self.tile_copy, self.fill, self.store, self.scan, self.transpose]
            options += [self.atomic_tile] * bool(self.accumulators)
        options += [self.copy_out, self.let, self.variable, self.assign, self.hint, self.promise]
        options += [self.show] * (2 * self.chance(20)) + [self.reducer, self.im2col, self.word]
        options += [self.owned] * 3 if self.single else [self.array]
        if nest > 0:
            options += [
                self.matmul,
                self.matmul,
                self.loop,
                self.loop,
                self.branch,
                self.softmax,
                self.swap,
                self.while_loop,
                self.macro,
                self.meta,
            ]
        self.pick(options)(nest)

    # -- nests -----------------------------------------------------------------------------------------------------

    def parallel(self, nest: int = 0) -> None:
        """A nest that writes one or two buffers, each iteration its own elements."""
        candidates = [b for b in self.tiles() + self.outputs() if not b.halves or b.extents[-1] % 2 == 0]
        if not candidates or self.chance(15):
            candidates = [self.output((self.pick(TILES), self.pick(TILES))[: self.pick((2, 1))], self.pick(STORED))]
        first = self.pick(candidates)
        if first.halves and first.extents[-1] % 2:
            return
        row = first.rank > 1 and not first.halves and self.chance(20)  # one lane per row: the rest of the index is free
        extents = first.extents[: -1 if row else None]
        if first.halves:  # an iteration has a byte for itself
            extents = (*extents[:-1], extents[-1] // 2)
        if self.chance(15):
            extents = tuple(max(1, n - 1) for n in extents)
        elif self.chance(2):
            extents = (0, *extents[1:])
        lanes = [self.fresh("i") for _ in extents]
        index: list[str | None] = [*lanes, *([None] * (first.rank - len(lanes)))]
        for d, n in enumerate(first.extents[: len(lanes)]):
            if extents[d] == n and self.chance(12):
                index[d] = f"({n - 1} - {lanes[d]})"
                self.saw("reversed store")
        if first.halves:
            index[-1] = f"(2 * {lanes[-1]} + {self.below(2)})"
        guard = ""
        if self.chance(12) and not first.halves:  # more iterations than elements
            extents = tuple(n + 3 for n in extents)
            guard = " and ".join(f"{v} < {n}" for v, n in zip(lanes, first.extents, strict=False))
            self.saw("guarded nest")
        targets: dict[str, tuple[Buf, tuple[str | None, ...]]] = {first.root: (first, tuple(index))}
        for other in self.tiles() + self.outputs():
            if (
                other.halves
                or other.root in targets
                or guard
                or other.rank < len(lanes)
                or len(targets) > 1
                or not self.chance(35)
            ):
                continue
            if all(n <= m for n, m in zip(extents, other.extents, strict=False)):
                targets[other.root] = (other, (*lanes, *([None] * (other.rank - len(lanes)))))
                self.saw("two targets")
        words = self.pick(("Parallel", "Parallel", "parallel"))
        target_names = ", ".join(lanes)
        self.put(f"for {target_names} in T.{words}({', '.join(map(str, extents))}):")
        scope = self.lanes_scope(lanes, extents, targets)
        self.histogram(scope)
        with self.region(scope):
            if guard:
                self.put(f"if {guard}:")
                with self.region(self.scope.inner()):
                    self.lane_statements(1 + self.below(3), 2)
            else:
                self.lane_statements(1 + self.below(4), 2)

    def reducer(self, nest: int) -> None:
        """A tile that collects what the iterations of a nest contribute, at times only some of them."""
        self.saw("reducer")
        dtype = self.pick(("float32", "int32", "float16", "float64", "int64"))
        kind = "float" if dtype in FLOATS else "int"
        op = self.pick(("sum", "max", "min", *(("bitand", "bitor", "bitxor") if kind == "int" else ())))
        r, extents = self.fresh("R"), tuple(self.pick(TILES) for _ in range(2))
        extents = (*extents, 3) if self.chance(25) else extents
        lanes, along = [self.fresh("i") for _ in extents], self.below(len(extents))
        one = self.chance(20)  # all contribute to one element
        place, size = ("0", 1) if one else (lanes[along], extents[along])
        self.put(f"{r} = T.alloc_reducer(({size},), '{dtype}', op='{op}')")
        self.put(f"T.clear({r})" if op == "sum" and self.chance(50) else f"T.reducer_init({r})")
        self.put(f"for {', '.join(lanes)} in T.Parallel({', '.join(map(str, extents))}):")
        with self.region(self.lanes_scope(lanes, extents, {})):
            if self.chance(30):
                self.put(f"if {self.truth()}:")
                with self.region(self.scope.inner()):
                    self.put(f"T.reducer_update({r}[{place}], {self.value(kind)})")
            self.put(f"T.reducer_update({r}[{place}], {self.value(kind)})")
        self.put(f"T.finalize_reducer({r})")
        self.scope.buffers.append(Buf(r, dtype, (size,), "fragment", r, frozen=True))

    # -- scalars ---------------------------------------------------------------------------------------------------

    def assign(self, nest: int) -> None:
        cells = [n for n in self.scope.names if n.cell and n.writable]
        if cells:
            self.set_cell(self.pick(cells))

    def store(self, nest: int) -> None:
        """One element, written by the block."""
        b = self.pick(self.tiles() + self.outputs() or [self.output((self.pick(TILES),), "float32")])
        self.saw("element store")
        index = [self.within(n) for n in b.extents]
        once = b.scope == "fragment" and not self.single  # else one thread may read what another has written
        value = self.value(b.kind) if once else self.uniform(b, 2)
        self.put(f"{b.at(index)} = {value}")

    def owned(self, nest: int) -> None:
        """Rows of a tile, each written by one thread."""
        found = [b for b in self.tiles() if b.scope == "shared" and b.dtype not in PACKED]
        if not found:
            self.tile(nest)
            return
        b, n = self.pick(found), int(self.threads)
        self.saw("rows of threads")
        row = self.fresh("r")
        self.put("T.sync_threads()")
        self.put(f"for {row} in T.serial({-(-b.extents[0] // n)}):")
        self.put(f"    if {row} * {n} + tid < {b.extents[0]}:")
        scope = self.scope.inner(forbid=self.scope.forbid | {b.root}, exits=False)
        scope.names.append(Name("tid", "int32", n))
        self.depth += 1
        with self.region(scope):
            columns = [self.within(k) for k in b.extents[1:]]
            for _ in range(1 + self.below(2)):
                self.put(f"{b.at([f'{row} * {n} + tid', *columns])} = {self.value(b.kind)}")
        self.depth -= 1
        self.put("T.sync_threads()")

    def swap(self, nest: int) -> None:
        """Two elements exchanged: both sides are read before either is written."""
        found = [b for b in self.tiles() if b.scope == "fragment"]  # each thread has its own part of it
        if found and not self.single:
            b = self.pick(found)
            p, q = (b.at([self.within(n, 0) for n in b.extents]) for _ in range(2))
            self.saw("swap")
            self.put(f"{p}, {q} = {q}, {p}")

    # -- control ---------------------------------------------------------------------------------------------------

    def loop(self, nest: int) -> None:
        form = self.pick(("serial", "Pipelined", "unroll", "range", "grid", "between", "down", "runtime", "typed",
                          "empty", "vectorized", "Persistent", "steps"))  # fmt: skip
        self.saw(f"loop {form}")
        v, n = self.fresh("k"), 1 + self.below(4)
        scope = self.scope.inner(exits=form not in ("unroll", "grid", "vectorized", "Persistent"))
        names, header = [v], f"T.serial({n})"
        if form == "Pipelined":
            header = f"T.Pipelined({n}, num_stages={self.pick(('None', '0', '1', '2', '3'))})"
        elif form == "unroll":
            header = f"T.unroll({n})"
        elif form == "range":
            header = f"range({n})"
        elif form == "grid":
            names.append(self.fresh("k"))
            header = f"T.grid({n}, 2)"
        elif form == "Persistent":
            names.append(self.fresh("k"))
            waves = 1 + self.below(3)
            header = f"T.Persistent([{n}, 2], {waves}, {self.below(waves)}, {1 + self.below(3)})"
        elif form == "between":
            header = f"T.serial({self.below(3)}, {2 + n}, {1 + self.below(2)})"
            n += 2
        elif form == "down":
            header = f"T.serial({n}, -1, -1)"
            n += 1
        elif form == "typed":
            header = (
                f"T.serial(T.cast({self.whole(1)} % {n + 1}, '{self.pick(('uint64', 'int64', 'uint32', 'int8'))}'))"
            )
        elif form == "empty":
            header = self.pick(("T.serial(2, 2)", "T.serial(3, 1)", "T.serial(0)"))
        elif form == "steps":  # at least 2, but no interval shows it
            header, n = f"T.serial(0, {2 * n}, T.cast({self.whole(1)} % 2 ^ 2, 'int32'))", 2 * n
        elif form == "vectorized":
            header = f"T.vectorized({n})"
        elif form == "runtime":
            header = f"T.{self.pick(('serial', 'Pipelined'))}({self.whole(1)} % {n + 1})"
            if self.chance(40):
                header = f"T.serial(0, {n}, {self.within(3)} + 1)"
        self.put(f"for {', '.join(names)} in {header}:")
        scope.names += [Name(v, "int32", n) for v in names[:1]] + [Name(v, "int32", 2) for v in names[1:]]
        with self.region(scope):
            self.exit()
            self.statements(1 + self.below(4), nest - 1)

    def exit(self) -> None:
        if self.scope.exits and self.chance(12):
            self.saw("exit")
            self.put(f"if {self.truth()}:")
            self.put(f"    {self.pick(('break', 'continue', 'T.loop_break()'))}")

    def branch(self, nest: int) -> None:
        self.saw("if")
        decided = self.pick(("T.cast(0, 'bool')", "T.cast(1, 'bool')", "lin >= lin")) if self.chance(8) else ""
        tiles = self.tiles(writable=False)
        if tiles and self.chance(14):
            decided = f"T.{self.pick(('any_of', 'all_of'))}({self.pick(tiles).name})"
        self.put(f"if {decided or self.truth()}:")
        with self.region(self.scope.inner()):
            self.statements(1 + self.below(3), nest - 1)
        if self.chance(40):
            self.put("else:")
            with self.region(self.scope.inner()):
                self.statements(1 + self.below(2), nest - 1)

    def while_loop(self, nest: int) -> None:
        self.saw("while")
        w = self.fresh("w")
        self.put(f"{w} = T.alloc_var('int32', 0)")
        tests = [f"{w} < {1 + self.below(3)}", self.pick((self.truth(), self.constant("bool")))]
        self.put(f"while {' and '.join(tests[:: self.pick((1, -1))])}:")
        scope = self.scope.inner(exits=True)
        scope.names.append(Name(w, "int32", 4, cell=True))
        with self.region(scope):
            self.put(f"{w} += 1")
            self.exit()
            self.statements(1 + self.below(3), nest - 1)

    def macro(self, nest: int) -> None:
        """Statements moved into a macro: scalars by value, variables by reference, buffers as they are."""
        self.saw("macro")
        outer_lines, outer_depth, self.lines, self.depth = self.lines, self.depth, [], 0
        with self.region(self.scope.inner(exits=False)):
            self.statements(1 + self.below(3), nest - 1)
        body, self.lines, self.depth = self.lines, outer_lines, outer_depth
        text = "\n".join(body)
        buffers = [b.name for b in (*self.scope.tensors, *self.scope.buffers, *(b for b, _ in self.accumulators))]
        names = names_in(text, list(dict.fromkeys([*buffers, "tid", *(n.text for n in self.scope.names)])))
        cells = {n.text for n in self.scope.names if n.cell}
        m = self.fresh("macro")
        params = ", ".join(f"{n}: T.Ref" if n in cells else n for n in names)
        self.macros.append(f"@T.macro\ndef {m}({params}):\n{text}\n")
        self.put(f"{m}({', '.join(names)})")

    def meta(self, nest: int) -> None:
        """Python at trace time: a loop over a tuple, or a branch that is decided while tracing."""
        self.saw("meta")
        if self.chance(50):
            self.put(f"for c in ({', '.join(str(self.below(4)) for _ in range(1 + self.below(2)))},):")
            scope = self.scope.inner(exits=False)
        else:
            self.put(f"if {self.pick(('True', '3 > 2', 'len((1, 2)) == 2'))}:")
            scope = self.scope.inner(exits=False)
        with self.region(scope):
            self.statements(1 + self.below(2), 0)

    # -- views and hints -------------------------------------------------------------------------------------------

    def view(self, nest: int) -> None:
        found = self.tiles()
        if not found:
            return
        self.view_of(self.pick(found))

    def view_of(self, b: Buf) -> None:
        total = math.prod(b.extents)
        if b.dtype in PACKED and b.extents[-1] % 2:
            return
        if b.kind == "int" and self.chance(50):
            self.retype(b, total)
            return
        shapes = [
            (total,),
            (1, total),
            (total, 1),
            (*b.extents[:-2], b.extents[-1], b.extents[-2]) if b.rank > 1 else (total,),
        ]
        shapes = [s for s in shapes if b.dtype not in PACKED or s[-1] % 2 == 0]
        shape = self.pick(shapes)
        name = self.fresh("V")
        self.saw("reshape")
        self.put(f"{name} = T.reshape({b.name}, {shape})")
        self.scope.buffers.append(Buf(name, b.dtype, shape, b.scope, b.root))

    def retype(self, b: Buf, total: int) -> None:
        """Bits of ints as another type. Through a float view they are only read: which NaN an arithmetic gives is not
        defined, and what an int view of one would show neither."""
        bits = total * as_dtype(b.dtype).bits
        fits = [d for d in (*INTS, *FLOATS, *PACKED[:2]) if d != b.dtype and bits % as_dtype(d).bits == 0]
        d = self.pick(fits)
        name, shape = self.fresh("V"), (bits // as_dtype(d).bits,)
        self.saw("view")
        self.put(f"{name} = T.view({b.name}, {shape}, '{d}')")
        self.scope.buffers.append(Buf(name, d, shape, b.scope, b.root, frozen=d in FLOATS))

    def hint(self, nest: int) -> None:
        tiles = self.tiles(writable=False)
        inputs = [b.name for b in self.scope.tensors if b.is_input]
        options = ["T.use_swizzle({n})", "T.use_swizzle({n}, 'column')", "T.no_set_max_nreg()"]
        options += ["T.set_max_nreg({n}, 1)", "T.disable_warp_group_reg_alloc()"]
        options += [
            f"T.{r.name}({'0' if r.params else ''})"
            for r in OPERATIONS.values()
            if r.family == "Asynchronous names" and len(r.params) < 2
        ]
        options += ["T.annotate_pass_configs({{'k': {n}}})", "T.annotate_compile_flags(['-O{n}'])"]
        if tiles:
            options += [f"T.annotate_layout({{{{{self.pick(tiles).name}: None}}}})"] * 3
        if inputs:
            name = self.pick(inputs)
            options += [f"T.annotate_l2_hit_ratio({{{{{name}: 0.5}}}})", f"T.annotate_restrict_buffers({name})"] * 3
        self.put(self.pick(options).format(n=2 + self.below(8)))

    def promise(self, nest: int) -> None:
        """Something that holds, said or asserted."""
        shapes = [n.text for n in self.scope.names if n.top > 0 and not n.cell]
        if shapes:
            call = self.pick(
                (
                    "T.assume({} >= 0)",
                    "T.assume(T.cast(1, 'bool'))",
                    "T.device_assert({} >= 0, 'never')",
                    "assert {} >= 0, 'never'",
                )
            )
            self.saw("promise")
            self.put(call.format(self.pick(shapes)))

    def show(self, nest: int) -> None:
        """T.print: every target has to print the same lines."""
        self.saw("print")
        whole = [b for b in self.scope.tensors if b.is_input and b.dims == tuple(map(str, b.sizes))]
        small = [b for b in self.tiles(writable=False) + whole if 0 < math.prod(b.extents) <= 64]
        small = [b for b in small if b.scope != "global" or self.values_of(b).strides is None]
        message = self.pick(("", ", 'got'", ", msg='{0} %s'"))
        if small and self.chance(40):
            self.put(f"T.print({self.pick(small).name}{message})")
        else:
            self.put(f"T.print({self.value(self.pick(('int', 'float', 'bool')), 1)}{message})")
