"""Statements of a block: each method draws one kind, valid and free of races by construction."""

from __future__ import annotations

import math
from collections.abc import Callable

from tiledsl.dtypes import as_dtype
from tiledsl.testing.strategies.lanes import Lanes
from tiledsl.testing.strategies.program import names_in
from tiledsl.testing.strategies.rows import statement_rows
from tiledsl.testing.strategies.scope import FLOATS, INTS, STORED, Buf, Name

__all__ = ["Statements"]

_TILES = (16, 4, 1, 8, 3, 5, 17, 2, 7, 13, 31, 32, 33, 48)
_GEMM_SIZES = (16, 4, 1, 8, 3, 5, 17, 13, 33)


class Statements(Lanes):
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
            options += [self.copy_in, self.tile_copy, self.fill, self.store]
        options += [self.copy_out, self.let, self.variable, self.assign, self.hint, self.promise]
        options += [self.show] * self.chance(12)
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

    # -- tiles -----------------------------------------------------------------------------------------------------

    def new_tile(self, shape: tuple[int, ...], dtype: str, scope: str = "") -> Buf:
        scope = scope or self.pick(("shared", "fragment"))
        name = self.fresh("S" if scope == "shared" else "F")
        text = f"({', '.join(map(str, shape))},)" if len(shape) == 1 else str(shape)
        self.put(f"{name} = T.alloc_{scope}({text}, '{dtype}')")
        return Buf(name, dtype, shape, scope, root=name)

    def tile(self, nest: int = 0) -> Buf:
        """A new tile, defined everywhere before it can be read."""
        rank = self.pick((2, 1, 2, 3))
        shape = tuple(self.pick(_TILES) for _ in range(min(rank, 2)))
        if rank == 3:
            shape = (self.pick((2, 1, 3)), *shape)
        b = self.new_tile(shape, self.pick(STORED))
        how = self.pick(("copy", "fill", "parallel"))
        self.saw(f"tile by {how}")
        if how == "copy":
            self.copy_whole(b)
        elif how == "fill":
            self.put(f"T.fill({b.name}, {self.uniform(b)})")
        else:
            lanes = [self.fresh("i") for _ in shape]
            self.put(f"for {', '.join(lanes)} in T.Parallel({', '.join(map(str, shape))}):")
            scope = self.lanes_scope(lanes, shape, {b.root: (b, tuple(lanes))})  # not readable yet
            with self.region(scope):
                self.put(f"{b.at(lanes)} = {self.value(b.kind)}")
        self.scope.buffers.append(b)
        return b

    def uniform(self, b: Buf, depth: int = 1) -> str:
        """A value for b that does not come from b."""
        outer = self.scope
        self.scope = outer.inner(forbid=outer.forbid | {b.root})
        text = self.value(b.kind, depth)
        self.scope = outer
        return text

    def copy_whole(self, b: Buf) -> None:
        """Every element of tile b comes from an input."""
        a = self.input_for(b)
        starts = [self.anywhere(n) for n in a.extents[-b.rank :]]
        lead = [self.anywhere(n) for n in a.extents[: a.rank - b.rank]]
        if self.chance(35):
            names = []
            for text in starts:
                names.append(self.fresh("p"))
                self.put(f"{names[-1]} = {text}")
            slices = [f"{p}:{p} + {n}" for p, n in zip(names, b.extents, strict=True)]
            self.saw("copy of a slice")
            if all(n == 1 for n in b.extents):
                slices = names
            self.put(f"T.copy({a.name}[{', '.join([*lead, *slices])}], {b.name})")
        else:
            self.put(f"T.copy({a.name}[{', '.join([*lead, *starts])}], {b.name})")

    # -- moves -----------------------------------------------------------------------------------------------------

    def tiles(self, kind: str = "", rank: int = 0, writable: bool = True) -> list[Buf]:
        found = [b for b in self.scope.buffers if b.is_tile and not (writable and b.frozen)]
        return [b for b in found if (not kind or b.kind == kind) and (not rank or b.rank == rank)]

    def copy_in(self, nest: int) -> None:
        found = self.tiles()
        if found:
            self.copy_whole(self.pick(found))

    def tile_copy(self, nest: int) -> None:
        """Between tiles: whole ones, boxes, and boxes that run over the edge."""
        found = self.tiles()
        pairs = [(a, b) for a in self.tiles(writable=False) for b in found if a.root != b.root and a.rank == b.rank]
        if not pairs:
            return self.tile_from(nest)
        a, b = self.pick(pairs)
        if a.extents == b.extents and self.chance(40):
            self.put(f"T.copy({a.name}, {b.name})")
            return
        box = [1 + self.below(min(m, n)) for m, n in zip(a.extents, b.extents, strict=True)]
        sides = []
        for x in (a, b):
            wild = self.chance(30)
            parts = []
            for limit, size in zip(x.extents, box, strict=True):
                if wild and size > 1:
                    p = self.fresh("p")
                    self.put(f"{p} = {self.whole(1)} + lin")
                    self.saw("clipped tile copy")
                    parts.append(f"{p}:{p} + {size}")
                else:
                    at = self.below(limit - size + 1)
                    parts.append(f"{at}:{at + size}")
            sides.append(f"{x.name}[{', '.join(parts)}]")
        self.put(f"T.copy({', '.join(sides)})")

    def tile_from(self, nest: int) -> None:
        found = self.tiles(writable=False)
        if found:
            a = self.pick(found)
            b = self.new_tile(a.extents, self.pick(STORED))
            self.put(f"T.copy({a.name}, {b.name})")
            self.scope.buffers.append(b)

    def copy_out(self, nest: int) -> None:
        """A tile, or what fits of it, into the block's own part of an output - or back."""
        found = self.tiles(writable=False)
        if not found:
            self.tile(nest)
            found = self.tiles(writable=False)
        t = self.pick(found)
        fits = [
            o
            for o in self.outputs()
            if o.rank == t.rank and all(x >= y for x, y in zip(o.extents, t.extents, strict=True))
        ]
        o = self.pick(fits) if fits and self.chance(50) else self.output(t.extents, self.pick((t.dtype, *STORED)))
        starts = [s or "0" for s in o.starts]
        if not t.frozen and self.chance(25):
            self.saw("copy from an output")
            self.put(f"T.copy({o.name}[{', '.join(starts)}], {t.name})")
        else:
            self.put(f"T.copy({t.name}, {o.name}[{', '.join(starts)}])")

    def fill(self, nest: int) -> None:
        found = self.tiles()
        if not found:
            return
        b = self.pick(found)
        if self.chance(20):
            self.put(f"T.clear({b.name})")
            return
        parts = []
        for n in b.extents:
            size = 1 + self.below(n)
            if self.chance(30):
                p = self.fresh("p")
                self.put(f"{p} = {self.whole(1)} + lin")
                parts.append(f"{p}:{p} + {size}" if size > 1 else f"{self.below(n)}:{n}")
            else:
                at = self.below(n - size + 1)
                parts.append(f"{at}:{at + size}")
        self.put(f"T.fill({b.name}[{', '.join(parts)}], {self.uniform(b)})")

    # -- arithmetic on tiles ---------------------------------------------------------------------------------------

    def reduce(self, nest: int) -> None:
        found = [b for b in self.tiles(writable=False) if b.kind != "bool"]
        if not found:
            return
        b = self.pick(found)
        axis = self.below(b.rank)
        keep = list(b.extents)
        if self.chance(30):
            keep[axis] = 1
        else:
            keep.pop(axis)
        shape = tuple(keep) or (1,)
        row = self.pick([r for r in statement_rows("reduce_") if b.kind in r.takes])
        op = row.name.removeprefix("reduce_")
        outs = [o for o in self.tiles() if o.extents == shape and o.root != b.root and (o.kind == b.kind)]
        extra = ""
        if outs and self.chance(60):
            out = self.pick(outs)
            if "clear" in row.params and self.chance(60):
                extra = self.pick((", clear=False", f", clear={self.truth()}"))
        else:
            out = self.new_tile(shape, self.pick((b.dtype, *(FLOATS if b.kind == "float" else INTS))))
            if "clear" in row.params and self.chance(20):
                self.put(f"T.fill({out.name}, {self.value(out.kind, 0)})")
                extra = ", clear=False"
            self.scope.buffers.append(out)
        if "nan_propagate" in row.params and b.kind == "float" and self.chance(25):
            extra += ", nan_propagate=True"
        self.saw(f"reduce {op}")
        dim = axis if self.chance(50) else axis - b.rank
        self.put(f"T.reduce_{op}({b.name}, {out.name}, dim={dim}{extra})")

    def gemm(self, nest: int) -> None:
        """A product, often of tiles that are there (a chain), and something done with the result."""
        found = [b for b in self.tiles(writable=False) if b.rank == 2 and b.dtype in (*FLOATS, "int8", "uint8")]
        dtype = self.pick(("float32", "float16", "bfloat16", "float64", "int8", "uint8"))
        if found and self.chance(60):
            a = self.pick(found)
            dtype = a.dtype
            ta = self.chance(30)
            m, k = a.extents[::-1] if ta else a.extents
            self.saw("gemm chain")
        else:
            m, k, ta = self.pick(_GEMM_SIZES), self.pick(_GEMM_SIZES), self.chance(30)
            a = self.operand((k, m) if ta else (m, k), dtype)
        tb = self.chance(40)
        fits = [b for b in found if b.dtype == dtype and b.extents[1 if tb else 0] == k]
        if fits and self.chance(50):
            b = self.pick(fits)
            n = b.extents[0 if tb else 1]
        else:
            n = self.pick(_GEMM_SIZES)
            b = self.operand((n, k) if tb else (k, n), dtype)
        results = {"float64": ("float64",), "int8": ("int32",), "uint8": ("int32",)}.get(
            dtype, ("float32", "float16", "bfloat16")
        )
        out = [c for c in self.tiles() if c.extents == (m, n) and c.dtype in results and c.root not in (a.root, b.root)]
        clear = ""
        if out and self.chance(70):
            c = self.pick(out)
            clear = self.pick(("", ", clear_accum=True", f", clear_accum={self.truth()}"))
        else:
            c = self.new_tile((m, n), self.pick(results))
            if self.chance(50):
                self.put(f"T.clear({c.name})")
            else:
                clear = ", clear_accum=True"
            self.scope.buffers.append(c)
        self.saw("gemm")
        options = "".join(f", transpose_{x}=True" for x, on in (("A", ta), ("B", tb)) if on)
        args = [a.name, b.name, c.name]
        if self.chance(15):  # leading extents of 1 are dropped; a slice of everything is the whole
            args[0] = f"{a.name}[0:{a.extents[0]}, 0:{a.extents[1]}]"
        self.put(f"T.gemm({', '.join(args)}{options}{clear})")

    def matmul(self, nest: int) -> None:
        """The usual K loop over tiles that serve nothing but the product, then what follows with the result."""
        dtype = self.pick(("float32", "float16", "bfloat16", "float64", "int8", "float32"))
        sizes = (16, 8, 32, 5, 17, 33, 1)
        if self.chance(6):
            self.saw("large tiles")  # beyond the blocks of the packed product
            sizes = (64, 96, 130)
        m, n, k = (self.pick(sizes) for _ in range(3))
        steps, ta, tb = 1 + self.below(3), self.chance(20), self.chance(35)
        blocks = [x.text for x in self.scope.names if x.text in ("bx", "by", "bz", "lin") and not x.roots]
        row, col, loop = self.pick(blocks), self.pick(blocks), self.fresh("k")
        sides = []
        for at, size, flip in ((row, m, ta), (col, n, not tb)):
            shape = (k, size) if flip else (size, k)
            tile = self.new_tile(shape, dtype, "shared")
            tensor = self.input_like([steps * k - 1, 3 * size] if flip else [3 * size, steps * k], dtype)
            odd = self.pick(("", "", "", " + 1"))
            starts = [f"{loop} * {k}", f"{at} * {size}{odd}"] if flip else [f"{at} * {size}{odd}", f"{loop} * {k}"]
            lead = [self.pick((*blocks, "0")) for _ in range(tensor.rank - 2)]
            sides.append((tile, f"T.copy({tensor.name}[{', '.join([*lead, *starts])}], {tile.name})"))
        results = {"float64": ("float64",), "int8": ("int32",)}.get(dtype, ("float32", "float16", "bfloat16"))
        c = self.new_tile((m, n), self.pick(results), "fragment")
        options = "".join(f", transpose_{x}=True" for x, on in (("A", ta), ("B", tb)) if on)
        clear = self.chance(30)
        if clear:
            options += f", clear_accum={loop} == 0"
        else:
            self.put(f"T.clear({c.name})")
        self.saw("matmul")
        stages = self.pick(("2", "0", "None", "3", "1"))
        header = self.pick((f"T.Pipelined({steps}, num_stages={stages})", f"T.serial({steps})"))
        if steps == 1 and not clear:
            self.put(f"{loop} = 0")
            header = ""
        if header:
            self.put(f"for {loop} in {header}:")
        self.depth += bool(header)
        cleared = self.chance(12)
        for tile, copy in sides:
            if cleared:
                self.put(f"T.fill({tile.name}, {self.pick(('0', '1'))})")
            if cleared and self.chance(30):
                self.put(f"if {self.truth()}:")
                copy = f"    {copy}"
            self.put(copy)
        self.put(f"T.gemm({sides[0][0].name}, {sides[1][0].name}, {c.name}{options})")
        if self.chance(20):
            self.put(f"T.gemm({sides[0][0].name}, {sides[1][0].name}, {c.name}{options})")
        self.depth -= bool(header)
        self.scope.buffers.append(c)
        if self.chance(25):  # what the last iteration left
            self.saw("read after the loop")
            self.scope.buffers += [tile for tile, _ in sides]
        if self.chance(50):
            i, j = self.fresh("i"), self.fresh("i")
            self.put(f"for {i}, {j} in T.Parallel({m}, {n}):")
            with self.region(self.lanes_scope([i, j], (m, n), {c.root: (c, (i, j))})):
                self.put(f"{c.name}[{i}, {j}] = {self.value(c.kind)}")

    def operand(self, shape: tuple[int, int], dtype: str) -> Buf:
        b = self.new_tile(shape, dtype, "shared" if self.chance(80) else "fragment")
        self.copy_whole(b)
        self.scope.buffers.append(b)
        return b

    # -- nests -----------------------------------------------------------------------------------------------------

    def parallel(self, nest: int = 0) -> None:
        """A nest that writes one or two buffers, each iteration its own elements."""
        candidates = self.tiles() + self.outputs()
        if not candidates or self.chance(15):
            candidates = [self.output((self.pick(_TILES), self.pick(_TILES))[: self.pick((2, 1))], self.pick(STORED))]
        first = self.pick(candidates)
        row = first.rank > 1 and self.chance(20)  # one lane per row: the rest of the index is free
        extents = first.extents[: -1 if row else None]
        if self.chance(15):
            extents = tuple(max(1, n - 1) for n in extents)
        lanes = [self.fresh("i") for _ in extents]
        index: list[str | None] = [*lanes, *([None] * (first.rank - len(lanes)))]
        for d, n in enumerate(first.extents[: len(lanes)]):
            if extents[d] == n and self.chance(12):
                index[d] = f"({n - 1} - {lanes[d]})"
                self.saw("reversed store")
        guard = ""
        if self.chance(12):  # more iterations than elements
            extents = tuple(n + 3 for n in extents)
            guard = " and ".join(f"{v} < {n}" for v, n in zip(lanes, first.extents, strict=False))
            self.saw("guarded nest")
        targets: dict[str, tuple[Buf, tuple[str | None, ...]]] = {first.root: (first, tuple(index))}
        for other in self.tiles() + self.outputs():
            if other.root in targets or guard or other.rank < len(lanes) or len(targets) > 1 or not self.chance(35):
                continue
            if all(n <= m for n, m in zip(extents, other.extents, strict=False)):
                targets[other.root] = (other, (*lanes, *([None] * (other.rank - len(lanes)))))
                self.saw("two targets")
        words = self.pick(("Parallel", "Parallel", "parallel"))
        target_names = ", ".join(lanes)
        self.put(f"for {target_names} in T.{words}({', '.join(map(str, extents))}):")
        scope = self.lanes_scope(lanes, extents, targets)
        with self.region(scope):
            if guard:
                self.put(f"if {guard}:")
                with self.region(self.scope.inner()):
                    self.lane_statements(1 + self.below(3), 2)
            else:
                self.lane_statements(1 + self.below(4), 2)

    # -- scalars ---------------------------------------------------------------------------------------------------

    def assign(self, nest: int) -> None:
        cells = [n for n in self.scope.names if n.cell and n.writable]
        if cells:
            self.set_cell(self.pick(cells))

    def store(self, nest: int) -> None:
        """One element, written by the block."""
        b = self.pick(self.tiles() + self.outputs() or [self.output((self.pick(_TILES),), "float32")])
        self.saw("element store")
        index = [self.within(n) for n in b.extents]
        value = self.value(b.kind) if b.scope == "fragment" else self.uniform(b, 2)
        self.put(f"{b.at(index)} = {value}")

    def swap(self, nest: int) -> None:
        """Two elements exchanged: both sides are read before either is written."""
        found = [b for b in self.tiles() if b.scope == "fragment"]  # each thread has its own part of it
        if found:
            b = self.pick(found)
            p, q = (b.at([self.within(n, 0) for n in b.extents]) for _ in range(2))
            self.saw("swap")
            self.put(f"{p}, {q} = {q}, {p}")

    def softmax(self, nest: int) -> None:
        """Masked scores, row maxima, exponentials, sums and the quotient: rows may be masked altogether."""
        m, n = self.pick((16, 5, 1, 8, 17)), self.pick((16, 33, 7, 1, 17))
        d = self.pick(("float32", "float32", "float16", "bfloat16", "float64"))
        x, top, total = self.new_tile((m, n), d), self.new_tile((m,), d), self.new_tile((m,), d)
        i, j = self.fresh("i"), self.fresh("i")
        self.saw("softmax")
        mask = self.pick((f"{j} <= {i}", f"{j} < {i}", self.truth(), f"{i} * 2 > {j}", f"{j} < {self.leaf('int')}"))
        self.put(f"for {i}, {j} in T.Parallel({m}, {n}):")
        with self.region(self.lanes_scope([i, j], (m, n), {x.root: (x, (i, j))})):
            self.put(f"{x.name}[{i}, {j}] = T.if_then_else({mask}, {self.real(1)}, -T.infinity('{d}'))")
        self.put(f"T.reduce_max({x.name}, {top.name}, dim=1)")
        low = f"T.max({top.name}[{i}], -65504.0)" if self.chance(40) else f"{top.name}[{i}]"
        self.put(f"for {i}, {j} in T.Parallel({m}, {n}):")
        self.put(f"    {x.name}[{i}, {j}] = T.{self.pick(('exp2', 'exp'))}({x.name}[{i}, {j}] - {low})")
        self.put(f"T.reduce_sum({x.name}, {total.name}, dim=1)")
        if self.chance(70):
            self.put(f"for {i}, {j} in T.Parallel({m}, {n}):")
            self.put(f"    {x.name}[{i}, {j}] = {x.name}[{i}, {j}] / {total.name}[{i}]")
        self.scope.buffers += [x, top, total]

    # -- control ---------------------------------------------------------------------------------------------------

    def loop(self, nest: int) -> None:
        form = self.pick(("serial", "Pipelined", "unroll", "range", "grid", "between", "down", "runtime", "typed",
                          "empty", "vectorized"))  # fmt: skip
        self.saw(f"loop {form}")
        v, n = self.fresh("k"), 1 + self.below(4)
        scope = self.scope.inner(exits=form not in ("unroll", "grid", "vectorized"))
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
        elif form == "vectorized":
            header = f"T.vectorized({n})"
        elif form == "runtime":
            header = f"T.{self.pick(('serial', 'Pipelined'))}({self.whole(1)} % {n + 1})"
        self.put(f"for {', '.join(names)} in {header}:")
        scope.names += [Name(v, "int32", n) for v in names[:1]] + [Name(v, "int32", 2) for v in names[1:]]
        with self.region(scope):
            self.exit()
            self.statements(1 + self.below(4), nest - 1)

    def exit(self) -> None:
        if self.scope.exits and self.chance(12):
            self.saw("exit")
            self.put(f"if {self.truth()}:")
            self.put(f"    {self.pick(('break', 'continue'))}")

    def branch(self, nest: int) -> None:
        self.saw("if")
        decided = self.pick(("T.cast(0, 'bool')", "T.cast(1, 'bool')", "lin >= lin")) if self.chance(8) else ""
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
        self.put(f"while {w} < {1 + self.below(3)} and {self.truth()}:")
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
        buffers = [b.name for b in (*self.scope.tensors, *self.scope.buffers)]
        names = names_in(text, list(dict.fromkeys([*buffers, *(n.text for n in self.scope.names)])))
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
        b = self.pick(found)
        total = 1
        for n in b.extents:
            total *= n
        if b.kind == "int" and self.chance(50):
            self.retype(b, total)
            return
        shapes = [
            (total,),
            (1, total),
            (total, 1),
            (*b.extents[:-2], b.extents[-1], b.extents[-2]) if b.rank > 1 else (total,),
        ]
        shape = self.pick(shapes)
        name = self.fresh("V")
        self.saw("reshape")
        self.put(f"{name} = T.reshape({b.name}, {shape})")
        self.scope.buffers.append(Buf(name, b.dtype, shape, b.scope, b.root))

    def retype(self, b: Buf, total: int) -> None:
        """Bits of ints as another type. Through a float view they are only read: which NaN an arithmetic gives is not
        defined, and what an int view of one would show neither."""
        bits = total * as_dtype(b.dtype).bits
        fits = [d for d in (*INTS, *FLOATS) if d != b.dtype and bits % as_dtype(d).bits == 0]
        d = self.pick(fits)
        name, shape = self.fresh("V"), (bits // as_dtype(d).bits,)
        self.saw("view")
        self.put(f"{name} = T.view({b.name}, {shape}, '{d}')")
        self.scope.buffers.append(Buf(name, d, shape, b.scope, b.root, frozen=d in FLOATS))

    def hint(self, nest: int) -> None:
        tiles = self.tiles(writable=False)
        inputs = [b.name for b in self.scope.tensors if b.is_input]
        options = ["T.use_swizzle({n})", "T.use_swizzle({n}, 'column')", "T.no_set_max_nreg()", "T.set_max_nreg({n}, 1)",
                   "T.disable_warp_group_reg_alloc()", "T.annotate_pass_configs({{'k': {n}}})",
                   "T.annotate_compile_flags(['-O{n}'])"]  # fmt: skip
        if tiles:
            options += [f"T.annotate_layout({{{{{self.pick(tiles).name}: None}}}})"] * 3
        if inputs:
            name = self.pick(inputs)
            options += [f"T.annotate_l2_hit_ratio({{{{{name}: 0.5}}}})", f"T.annotate_restrict_buffers({name})"]
        self.put(self.pick(options).format(n=2 + self.below(8)))

    def promise(self, nest: int) -> None:
        """Something that holds, said or asserted."""
        shapes = [n.text for n in self.scope.names if n.top > 0 and not n.cell]
        if shapes:
            call = self.pick(("T.assume({} >= 0)", "T.device_assert({} >= 0, 'never')", "assert {} >= 0, 'never'"))
            self.saw("promise")
            self.put(call.format(self.pick(shapes)))

    def show(self, nest: int) -> None:
        """T.print: every target has to print the same lines."""
        self.saw("print")
        small = [b for b in self.tiles(writable=False) if math.prod(b.extents) <= 64]
        message = self.pick(("", ", 'got'", ", msg='{0} %s'"))
        if small and self.chance(40):
            self.put(f"T.print({self.pick(small).name}{message})")
        else:
            self.put(f"T.print({self.value(self.pick(('int', 'float', 'bool')), 1)}{message})")

    # -- tensors: what the kernel around the block provides ------------------------------------------------------

    def input_for(self, b: Buf) -> Buf:
        raise NotImplementedError

    def input_like(self, sizes: list[int], dtype: str) -> Buf:
        raise NotImplementedError

    def output(self, extents: tuple[int, ...], dtype: str) -> Buf:
        raise NotImplementedError

    def outputs(self) -> list[Buf]:
        return [b for b in self.scope.tensors if b.starts]
