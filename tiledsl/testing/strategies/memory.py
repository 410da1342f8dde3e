"""Memory that is neither an argument nor a plain tile: workspaces, tensors at addresses, tensors with a layout of their
own, arrays of single threads, words and vectors; and windows of images."""

from __future__ import annotations

import math
from typing import Any

from tiledsl.dtypes import as_dtype
from tiledsl.testing.strategies.atomics import Atomics
from tiledsl.testing.strategies.program import Argument
from tiledsl.testing.strategies.scope import FLOATS, INTS, NO_ATOMICS, PACKED, STORED, Buf

__all__ = ["Memory"]

_WORDS = (32, 64, 128, 256)


class Memory(Atomics):
    """Draws them. dims: the axes of the grid."""

    dims: list[Any]
    arguments: list[Argument]

    def values_of(self, b: Buf) -> Argument:
        raise NotImplementedError

    def add(self, b: Buf, values: str, strides: tuple[int, ...] | None, stride_texts: list[str]) -> None:
        raise NotImplementedError

    # -- at the top of a kernel --------------------------------------------------------------------------------------

    def tensors_of_kernel(self) -> None:
        """Tensors that are declared before anything else."""
        for make in (self.workspace, self.pointer, self.layout):
            if self.chance(10):
                make()

    def workspace(self) -> None:
        """Memory of the launch, a part for each block, which writes all of it at once."""
        self.saw("workspace")
        name, dtype = self.fresh("K"), self.pick(STORED)
        extents = tuple(self.pick((4, 16, 1, 6, 34)) for _ in range(self.pick((1, 2))))
        if dtype in PACKED:
            dtype = "int8"
        grid = " * ".join(d.grid for d in self.dims)
        dims = (f"({grid}) * {extents[0]}", *map(str, extents[1:]))
        starts = (f"lin * {extents[0]}", *("" for _ in extents[1:]))
        sizes = (math.prod(d.count for d in self.dims) * extents[0], *extents[1:])
        b = Buf(name, dtype, extents, "global", name, starts, dims, sizes=sizes)
        self.put(f"{name} = T.alloc_global(({', '.join(dims)},), '{dtype}')")
        lanes = [self.fresh("i") for _ in extents]
        self.put(f"for {', '.join(lanes)} in T.Parallel({', '.join(map(str, extents))}):")
        with self.region(self.lanes_scope(lanes, extents, {name: (b, tuple(lanes))})):
            self.put(f"{b.at(lanes)} = {self.value(b.kind)}")
        self.scope.tensors.append(b)

    def pointer(self) -> None:
        """A tensor at an address that the kernel reads from a table; it is only read."""
        self.saw("pointer")
        table, name, dtype = self.fresh("P"), self.fresh("B"), self.pick((*FLOATS, *INTS))
        sizes = tuple(self.pick((5, 16, 1, 33)) for _ in range(self.pick((2, 1))))
        dims = tuple(map(str, sizes))
        b = Buf(table, "int64", (2,), "global", table, (), ("2",), sizes=(2,))
        self.add(b, "small", None, [])
        self.scope.tensors.remove(b)
        self.arguments[-1] = Argument(table, "int64", (2,), points=Argument(name, dtype, sizes))
        at = self.pick(("0", "1", "lin % 2"))
        self.put(f"{name} = T.make_tensor({table}[{at}], ({', '.join(dims)},), '{dtype}')")
        self.scope.buffers.append(Buf(name, dtype, sizes, "global", name, (), dims, sizes=sizes))

    def layout(self) -> None:
        """The elements of an argument lie in another order in memory."""
        plain = {a.name for a in self.arguments if a.strides is None and not a.same_as and not a.beside}
        plain -= {a.same_as for a in self.arguments} | {a.beside for a in self.arguments}
        found = [b for b in self.scope.tensors if b.name in plain and b.dims == tuple(map(str, b.sizes))]
        found = [b for b in found if b.dtype not in PACKED and 0 not in b.sizes]
        if found:
            self.saw("layout")
            b = self.pick(found)
            names = [f"i{k}" for k in range(b.rank)]
            turned = [f"{n - 1} - {i}" for n, i in zip(b.sizes, names, strict=True)]
            to = self.pick((names[::-1], turned, [*turned[:1], *names[1:]]))
            self.put(f"T.annotate_layout({{{b.name}: T.Layout({b.sizes}, lambda {', '.join(names)}: "
                     f"[{', '.join(to)}])}})")  # fmt: skip

    # -- statements --------------------------------------------------------------------------------------------------

    def array(self, nest: int) -> None:
        """An array outside of a nest: each iteration of one has its own, and the last one's stays."""
        self.lane_array(nest)

    def im2col(self, nest: int) -> None:
        """Windows of an image as rows of a matrix."""
        self.saw("im2col")
        images = [b for b in self.scope.tensors if b.is_input and b.rank == 4]
        if images:
            image = self.pick(images)
        else:
            sizes = (self.pick((2, 1)), self.pick((5, 7)), self.pick((6, 5)), self.pick((3, 1, 8)))
            name = self.fresh("A")
            image = Buf(name, self.pick(FLOATS[:3]), sizes, "global", name, (), tuple(map(str, sizes)), sizes=sizes)
            self.add(image, "small", None, [])
        tile = self.new_tile((self.pick((16, 5, 17)), self.pick((8, 9, 16))), self.pick((image.dtype, "float32")))
        steps = f"{self.within(3, 0)}, {self.within(2, 0)}"
        window = f"{self.pick((3, 1, 2))}, {self.pick((1, 2))}, {self.pick((1, 2))}, {self.pick((1, 0, 2))}"
        self.put(f"T.im2col({image.name}, {tile.name}, {steps}, {window})")
        self.scope.buffers.append(tile)

    def word(self, nest: int) -> None:
        """32 to 256 bits at once, from a tensor to the block's own part of another one."""
        sources = [b for b in self.scope.tensors if b.is_input and b.dtype in (*FLOATS, *INTS)]
        wanted = [o for o in self.outputs() if o.dtype not in NO_ATOMICS]
        places = [(o, n) for o in wanted for n in _WORDS if n % _bits(o) == 0 and n <= o.extents[-1] * _bits(o)]
        pairs = [(a, o, n) for a in sources for o, n in places if n % _bits(a) == 0]
        if pairs:
            self.saw("word")
            a, o, bits = self.pick(pairs)
            outer = self.scope
            self.scope = outer.inner(forbid=outer.forbid | {o.root})  # all threads store the same
            at = [self.within(n, 0) for n in o.extents[:-1]]
            at.append(str(self.below(o.extents[-1] - bits // _bits(o) + 1)))
            held = ""
            if self.chance(30):
                held = f", pred={self.fresh('p')}"
                self.put(f"p{self.counts['p']} = {self.truth(0)}")
            place = f"{self.pick(('', 'T.address_of'))}({a.at([self.anywhere(n, 0) for n in a.extents])})"
            if self.single:  # some may still read what all now write
                self.put("T.sync_threads()")
            self.put(f"T.stg{bits}({o.at(at)}, T.ldg{bits}({place}{held}))")
            if self.single:
                self.put("T.sync_threads()")
            self.scope = outer
        bytes_ = [b for b in self.scope.tensors if b.is_input and b.dtype in ("int8", "uint8")]
        sums = [b for b in self.outputs() if b.dtype == "int32"]
        if bytes_ and sums:
            self.saw("dp4a")
            o, sides = self.pick(sums), [self.pick(bytes_) for _ in range(2)]
            read = [b.at([self.anywhere(n, 0) for n in b.extents]) for b in sides]
            at = [self.within(n, 0) for n in o.extents]
            self.put(f"for {self.fresh('i')} in T.Parallel(1):")
            self.put(f"    T.dp4a({', '.join(read)}, {o.at(at)})")

    def lane_vectors(self, nest: int) -> None:
        """An array of vectors of two, also seen as one of scalars."""
        self.saw("vectors in nest")
        d = self.pick(FLOATS[:3])
        name, flat = self.fresh("L"), self.fresh("L")
        self.put(f"{name} = T.alloc_local((2,), '{d}x2')")
        for k in range(2):
            self.put(f"{name}[{k}] = T.{d}x2({self.leaf('float')}, {self.real(1)})")
        self.put(f"{flat} = T.view({name}, (4,), '{d}')")
        self.scope.buffers.append(Buf(flat, d, (4,), "local", root=name))


def _bits(b: Buf) -> int:
    return as_dtype(b.dtype).bits
