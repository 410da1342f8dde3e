"""Arithmetic on whole tiles: reductions, products in all forms, the softmax between two products."""

from __future__ import annotations

from tiledsl.testing.strategies.moves import Moves
from tiledsl.testing.strategies.rows import statement_rows
from tiledsl.testing.strategies.scope import FLOATS, INTS, NARROW, PACKED, Buf, kind_of

__all__ = ["Products"]

_GEMM_SIZES = (16, 4, 1, 8, 3, 5, 17, 13, 33)
# Operands that may stand beside operands of another type.
_MIXED = (("int8", "uint8", *PACKED[:2]), NARROW)


class Products(Moves):
    """Draws statements on tiles."""

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
        cells = [v for v in self.scope.names if v.cell and v.writable and v.kind == b.kind]
        if cells and b.rank == 1 and not self.single and self.chance(50):
            self.put(f"T.{row.name}({b.name}, {self.pick(cells).text}, dim=0)")
            return
        if outs and self.chance(60):
            out = self.pick(outs)
            if "clear" in row.params and self.chance(75):
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

    def scan(self, nest: int) -> None:
        """A running sum or maximum, in place or into another tile."""
        found = [b for b in self.tiles() if b.kind != "bool"]
        if not found:
            return
        b = self.pick(found)
        dim = self.below(b.rank)
        extra = f", dim={dim if self.chance(50) else dim - b.rank}" + self.pick(("", ", reverse=True"))
        if self.chance(50):
            out = self.new_tile(b.extents, self.pick((b.dtype, *(FLOATS if b.kind == "float" else INTS))))
            self.scope.buffers.append(out)
            extra = f", {out.name}{extra}"
        self.saw("scan")
        self.put(f"T.{self.pick(statement_rows('cum')).name}({b.name}{extra})")

    @staticmethod
    def results(dtype: str) -> tuple[str, ...]:
        """What a product of operands of this type may be."""
        if kind_of(dtype) == "int":
            return ("int32",)
        return ("float64",) if dtype == "float64" else ("float32", "float16", "bfloat16")

    def gemm(self, nest: int) -> None:
        """A product, often of tiles that are there (a chain), and something done with the result."""
        found = [
            b
            for b in self.tiles(writable=False)
            if b.rank == 2 and b.dtype in (*FLOATS, *NARROW, "int8", "uint8", *PACKED)
        ]
        dtype = self.pick(("float32", "float16", "bfloat16", "float64", "int8", "uint8", *NARROW, *PACKED))
        if found and self.chance(60):
            a = self.pick(found)
            dtype = a.dtype
            ta = self.chance(30)
            m, k = a.extents[::-1] if ta else a.extents
            self.saw("gemm chain")
        else:
            m, k, ta = self.pick(_GEMM_SIZES), self.pick(_GEMM_SIZES), self.chance(30)
            a = self.operand((k, m) if ta else (m, k), dtype)
        tb, same = self.chance(40), [x for x in _MIXED if dtype in x]
        other = self.pick(same[0]) if same and self.chance(30) else dtype
        fits = [b for b in found if b.dtype == other and b.extents[1 if tb else 0] == k]
        if fits and self.chance(50):
            b = self.pick(fits)
            n = b.extents[0 if tb else 1]
        else:
            n = self.pick(_GEMM_SIZES)
            b = self.operand((n, k) if tb else (k, n), other)
        results = self.results(dtype)
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
        for x in (b, c):
            if x not in found and x.scope == "fragment" and self.chance(20):
                self.view_of(x)
        options = "".join(f", transpose_{x}=True" for x, on in (("A", ta), ("B", tb)) if on)
        args = [a.name, b.name, c.name]
        if self.chance(15):  # leading extents of 1 are dropped; a slice of everything is the whole
            args[0] = f"{a.name}[0:{a.extents[0]}, 0:{a.extents[1]}]"
        self.put(f"T.gemm({', '.join(args)}{options}{clear})")

    def matmul(self, nest: int) -> None:
        """The usual K loop over tiles that serve nothing but the product, then what follows with the result."""
        dtype = self.pick(("float32", "float16", "bfloat16", "float64", "int8", "float32"))
        sizes: tuple[int, ...] = (16, 8, 32, 5, 17, 33, 1)
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
            own = [o for o in self.outputs() if o.dtype == dtype and o.rank == 2]
            own = [o for o in own if all(x >= y for x, y in zip(o.extents, shape, strict=True))]
            if own and self.chance(50):  # what the block itself has written
                tensor = self.pick(own)
                starts = [s or "0" for s in tensor.starts]
            lead = [self.pick((*blocks, "0")) for _ in range(tensor.rank - 2)]
            sides.append((tile, f"T.copy({tensor.name}[{', '.join([*lead, *starts])}], {tile.name})"))
        if self.chance(12):  # the same operand from elsewhere
            self.saw("two tiles of one tensor")
            again = self.new_tile(sides[1][0].extents, dtype, "shared")
            copy = sides[1][1].replace(f"{sides[1][0].name})", f"{again.name})").replace(f"{loop} * {k}", f"0 * {k}")
            sides.append((again, copy))
        c = self.new_tile((m, n), self.pick(self.results(dtype)), "fragment")
        options = "".join(f", transpose_{x}=True" for x, on in (("A", ta), ("B", tb)) if on)
        clear = self.chance(30)
        if clear:
            options += f", clear_accum={loop} == 0"
        else:
            self.put(f"T.clear({c.name})")
        self.saw("matmul")
        stages = self.pick(("2", "0", "None", "3", "1"))
        header = self.pick(
            (f"T.Pipelined({steps}, num_stages={stages})", f"T.serial({steps})", f"T.serial(T.cast({steps}, 'int8'))")
        )
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
        if self.chance(20) or len(sides) > 2:
            self.put(f"T.gemm({sides[0][0].name}, {sides[-1][0].name}, {c.name}{options})")
        self.depth -= bool(header)
        self.scope.buffers.append(c)
        if self.chance(25):  # what the last iteration left
            self.saw("read after the loop")
            self.scope.buffers += [tile for tile, _ in sides]
        if self.chance(15):  # its memory is looked at otherwise, too
            self.view_of(c)
        if self.chance(50):
            i, j = self.fresh("i"), self.fresh("i")
            self.put(f"for {i}, {j} in T.Parallel({m}, {n}):")
            with self.region(self.lanes_scope([i, j], (m, n), {c.root: (c, (i, j))})):
                self.put(f"{c.name}[{i}, {j}] = {self.value(c.kind)}")

    def view_of(self, b: Buf) -> None:
        raise NotImplementedError

    def operand(self, shape: tuple[int, int], dtype: str) -> Buf:
        b = self.new_tile(shape, dtype, "shared" if self.chance(80) else "fragment")
        self.copy_whole(b)
        self.scope.buffers.append(b)
        return b

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
