"""Tiles, and what moves between tiles and tensors: allocations, copies, fills."""

from __future__ import annotations

from tiledsl.testing.strategies.lanes import Lanes
from tiledsl.testing.strategies.scope import STORED, Buf

__all__ = ["TILES", "Moves"]

TILES = (16, 4, 1, 8, 3, 5, 17, 2, 7, 13, 31, 32, 33, 48)


class Moves(Lanes):
    """Draws tiles that are defined everywhere, and copies in both directions."""

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
        shape = tuple(self.pick(TILES) for _ in range(min(rank, 2)))
        if rank == 3:
            shape = (self.pick((2, 1, 3)), *shape)
        b = self.new_tile(shape, self.pick(STORED))
        how = self.pick(("copy", "fill") if b.halves else ("copy", "fill", "parallel"))
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
            starts = slices
            if lead and self.chance(40) and slices is not names:  # the last axes stand still
                lead, starts = starts, lead
        call = self.pick(("T.copy",) * 6 + ("T.async_copy", "T.tma_copy"))
        self.put(f"{call}({a.name}[{', '.join([*lead, *starts])}], {b.name})")
        if call == "T.async_copy":
            self.put("T.ptx_wait_group(0)")

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

    def transpose(self, nest: int) -> None:
        found = [b for b in self.tiles(writable=False) if b.rank == 2]
        if found:
            a = self.pick(found)
            b = self.new_tile(a.extents[::-1], self.pick((a.dtype, *STORED[:4])))
            self.saw("transpose")
            self.put(f"T.transpose({a.name}, {b.name})")
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

    # -- tensors: what the kernel around the block provides ------------------------------------------------------

    def input_for(self, b: Buf) -> Buf:
        raise NotImplementedError

    def input_like(self, sizes: list[int], dtype: str) -> Buf:
        raise NotImplementedError

    def output(self, extents: tuple[int, ...], dtype: str) -> Buf:
        raise NotImplementedError

    def outputs(self) -> list[Buf]:
        return [b for b in self.scope.tensors if b.starts]
