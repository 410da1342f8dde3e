"""Whole functions: parameters, symbols, styles, one kernel or two."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

from tiledsl.testing.strategies.program import Argument, Program
from tiledsl.testing.strategies.scope import FLOATS, INTS, PACKED, STORED, Buf, Name, Scope, kind_of
from tiledsl.testing.strategies.statements import Statements
from tiledsl.testing.strategies.threads import Threads
from tiledsl.testing.strategies.tiled import Tiled

__all__ = ["programs", "random_program"]

_TILES = (16, 8, 4, 1, 3, 17, 5, 32, 13, 33)
_SIZES = (20, 1, 5, 16, 37, 2, 64, 3)
_AXES = ("bx", "by", "bz")


class _Dim:
    """A grid axis: `count` blocks of `tile` cover `size`, which the kernel calls `text`."""

    def __init__(self, var: str, tile: int, count: int, size: int, text: str) -> None:
        self.var, self.tile, self.count, self.size, self.text = var, tile, count, size, text

    @property
    def grid(self) -> str:
        return f"T.ceildiv({self.text}, {self.tile})"


class _Function(Statements):
    """Draws a function. style: "prim_func", "lazy" (a factory) or "eager"."""

    def __init__(self, draw: Any, most: int) -> None:
        super().__init__(draw)
        self.most = most
        self.macros, self.accumulators = [], []
        self.params: list[str] = []
        self.arguments: list[Argument] = []
        self.scalars: list[Name] = []
        self.symbols: dict[str, int] = {}
        self.wide: set[str] = set()  # symbols of 64 bits
        self.bound: set[str] = set()
        self.style = self.pick(("prim_func", "prim_func", "lazy", "eager"))

    # -- tensors ---------------------------------------------------------------------------------------------------

    def add(
        self,
        b: Buf,
        values: str,
        strides: tuple[int, ...] | None,
        stride_texts: list[str],
        same_as: str = "",
        beside: str = "",
    ) -> None:
        dims = f"({', '.join(b.dims)},)"
        self.bound |= set(b.dims) & set(self.symbols)
        kind = f"Tensor({dims}, '{b.dtype}')"
        if strides is not None:
            kind = f"StridedTensor({dims}, ({', '.join(stride_texts)},), '{b.dtype}')"
        if self.style == "eager":
            kind = kind.replace("Tensor(", "Tensor[", 1)[:-1] + "]"
        self.params.append(f"{b.name}: T.{kind}")
        self.arguments.append(Argument(b.name, b.dtype, b.sizes, values, strides, same_as, beside))
        self.scope.tensors.append(b)

    def symbol(self, size: int) -> str:
        """A new symbol of this size, or the number."""
        if not self.chance(30):
            return str(size)
        name = self.fresh("n")
        self.symbols[name] = size
        return name

    def input_for(self, b: Buf) -> Buf:
        found = [a for a in self.scope.tensors if a.is_input and b.rank <= a.rank <= b.rank + 1]
        if found and self.chance(65):
            return self.pick(found)
        sizes = [*b.extents]
        if self.chance(20):
            sizes = [3, *sizes]
        return self.input(sizes, self.pick((b.dtype, *FLOATS[:2], *INTS[:3], self.pick(STORED))))

    def input_like(self, sizes: list[int], dtype: str) -> Buf:
        """A tensor of that type (or a narrower float), old or new."""
        types = (dtype, dtype, "float16") if dtype == "float32" else (dtype,)
        found = [a for a in self.scope.tensors if a.is_input and a.dtype in types and a.rank in (2, 3)]
        if found and self.chance(40):
            return self.pick(found)
        return self.input([2, *sizes] if self.chance(20) else sizes, self.pick(types))

    def input(self, like: list[int], dtype: str) -> Buf:
        """A tensor that is only read; the sizes are near `like`, or those of the grid."""
        texts, sizes = [], []
        for n in like:
            options: list[tuple[str, int]] = [(d.text, d.size) for d in self.dims] + [
                ("", n),
                ("", self.pick(_SIZES)),
                ("", n + 3),
            ]
            text, size = self.pick(options)
            texts.append(text or self.symbol(size))
            sizes.append(size)
        plain = [a for a in self.scope.tensors if a.name[0] in "AI" and self.values_of(a).strides is None]
        twin = self.pick(plain) if plain and self.chance(12) else None
        name = self.fresh("A" if kind_of(dtype) == "float" else "I")
        values = self.pick(("small", "special", "whole") if kind_of(dtype) == "float" else ("index", "huge", "special"))
        if twin is not None and twin.kind == kind_of(dtype) and twin.rank == len(sizes):
            self.saw("aliased inputs")
            b = replace(twin, name=name, root=name)
            self.add(b, "small", None, [], twin.name)
            return b
        b = Buf(name, dtype, tuple(sizes), "global", name, (), tuple(texts), sizes=tuple(sizes))
        if dtype not in PACKED and self.chance(20):
            strides, stride_texts = self.strides(b.sizes, written=False)
            self.add(b, values, strides, stride_texts)
        else:
            self.add(b, values, None, [])
        return b

    def values_of(self, b: Buf) -> Argument:
        return next(a for a in self.arguments if a.name == b.name)

    def strides(self, sizes: tuple[int, ...], written: bool) -> tuple[tuple[int, ...], list[str]]:
        """Rows with gaps, a transposed layout, or (only read) one row for all."""
        self.saw("strided")
        how = self.pick(("gaps", "transposed", "repeated"))
        order = range(len(sizes)) if how != "transposed" else range(len(sizes))[::-1]
        strides, step = [0] * len(sizes), 1
        for d in [*order][::-1]:
            strides[d] = step
            step *= max(1, sizes[d]) + (self.below(4) if how != "transposed" else 0)
        if how == "repeated" and not written and len(sizes) > 1:
            strides[0] = 0
        texts = [self.symbol(s) if s > 1 else str(s) for s in strides]
        return tuple(strides), texts

    def output(self, extents: tuple[int, ...], dtype: str) -> Buf:
        """A tensor of which each block writes a box of its own; the last boxes may reach over its end. Blocks share no
        byte: of odd rows of packed elements there is no tensor."""
        if dtype in PACKED and extents[-1] % 2:
            dtype = "int8" if kind_of(dtype) == "int" else "float32"
        starts, texts, sizes = [""] * len(extents), [], []
        split = [d for d in self.dims]
        by_axis = len(split) <= len(extents) and self.chance(60)
        for d, n in enumerate(extents):
            size, text = n, ""
            if by_axis and d < len(split):
                dim = split[d]
                starts[d] = f"{dim.var} * {n}"
                if dim.tile == n and self.chance(70):
                    size, text = dim.size, dim.text
                else:
                    size = max(1, dim.count * n - self.below(n))
            elif not by_axis and d == 0:
                starts[d] = f"lin * {n}"
                size = max(1, math.prod(x.count for x in split) * n - self.below(n))
            elif self.chance(20):
                size = max(1, n + self.pick((0, 1, -1)))
            if dtype in PACKED and d == len(extents) - 1 and size % 2:
                size, text = size + 1, ""
            texts.append(text or self.symbol(size))
            sizes.append(size)
        name = self.fresh("O")
        b = Buf(name, dtype, extents, "global", name, tuple(starts), tuple(texts), sizes=tuple(sizes))
        if dtype in PACKED:  # rows with gaps, in whole bytes
            step = b.sizes[-1] + 2 * self.below(3)
            apart = b.rank == 2 and self.chance(30)
            self.add(b, "small", (step, 1) if apart else None, [self.symbol(step), "1"] if apart else [])
        elif b.rank == 2 and self.chance(10):
            self.saw("interleaved arguments")
            strides: tuple[int, ...] = (2 * sizes[1], 1)
            stride_texts = [self.symbol(2 * sizes[1]), "1"]
            other = replace(b, name=f"A{name}", root=f"A{name}", starts=(), extents=b.sizes)
            self.add(other, "small", strides, stride_texts)
            self.add(b, "small", strides, stride_texts, beside=other.name)
        elif self.chance(12):
            strides, stride_texts = self.strides(b.sizes, written=True)
            self.add(b, "small", strides, stride_texts)
        else:
            self.add(b, "small", None, [])
        return b

    def accumulator(self) -> None:
        """A tensor that all blocks update, each element in any order."""
        sizes = tuple(self.pick(_SIZES) for _ in range(self.pick((1, 2))))
        dtype, name = self.accumulator_dtype(), self.fresh("H")
        b = Buf(name, dtype, sizes, "global", name, (), tuple(map(str, sizes)), sizes=sizes)
        self.add(b, "small", None, [])
        self.scope.tensors.remove(b)
        self.accumulators.append((b, self.operation(dtype, True)))

    # -- the function ----------------------------------------------------------------------------------------------

    def draw_dims(self, names: str) -> None:
        self.dims = []
        for k in range(self.pick((1, 2, 1, 3))):
            tile, count = self.pick(_TILES), self.pick((1, 2, 3) if k < 2 else (1, 2))
            size = (count - 1) * tile + 1 + self.below(tile)
            if self.chance(2):
                count = size = 0
                self.saw("empty grid")
            text = str(size)
            if self.chance(60):
                text = names[k]
                self.symbols[text] = size
                if self.style != "eager" and self.chance(15):
                    self.saw("int64 symbol")
                    self.wide.add(text)
            self.dims.append(_Dim(_AXES[k], tile, count, size, text))

    def launch(self) -> None:
        """One `with T.Kernel`: its statements, and at the end something of all that is left over."""
        grid = ", ".join(d.grid for d in self.dims)
        self.threads, self.single = self.pick(("128", "1", "32", "96")), self.chance(15)
        target = self.dims[0].var if len(self.dims) == 1 else f"({', '.join(d.var for d in self.dims)})"
        self.put(f"with T.Kernel({grid}, threads={self.threads}) as {target}:")
        self.scope = Scope(tensors=self.scope.tensors)
        self.scope.names += [*self.scalars, *(Name(d.var, "int32", max(1, d.count)) for d in self.dims)]
        self.depth += 1
        lin = self.dims[-1].var
        for d in self.dims[-2::-1]:
            lin = f"({lin}) * {d.grid} + {d.var}"
        self.put(f"lin = {lin}")
        if self.single:
            self.put("tid = T.get_thread_binding(0)")
        self.scope.names.append(Name("lin", "int32", max(1, math.prod(d.count for d in self.dims))))
        for s in self.symbols:
            if self.style == "eager":  # a Python number there
                self.put(f"s{s} = T.cast({s}, 'int32')")
            self.scope.names.append(Name(f"s{s}" if self.style == "eager" else s, "int32"))
        if self.chance(15):
            inputs = [b for b in self.scope.tensors if b.is_input and b.kind == "float"]
            if inputs:
                self.saw("safe value")
                self.put(f"T.annotate_safe_value({{{self.pick(inputs).name}: {self.pick(('1.0', '-2.0', '0.5'))}}})")
        self.tensors_of_kernel()
        for _ in range(self.pick((1, 2, 0))):
            self.tile()
        self.budget = self.most
        self.statements(3 + self.below(self.most - 2), 2)
        self.leave()
        self.depth -= 1

    def leave(self) -> None:
        """Tiles, variables and names go into outputs, so that nothing was computed in vain."""
        tiles = self.tiles(writable=False)
        for b in tiles[-3:]:
            o = self.output(b.extents, b.dtype)
            self.put(f"T.copy({b.name}, {o.name}[{', '.join(s or '0' for s in o.starts)}])")
        drawn = [n for n in self.scope.names if n.cell or n.text[0] == "x"][-3:]
        for n in drawn:
            o = self.output((1,), {"float": "float32", "int": "int32", "bool": "bool"}[n.kind])
            self.put(f"{o.at(['0'])} = {n.text}")

    def program(self) -> Program:
        self.depth = {"prim_func": 1, "lazy": 2, "eager": 1}[self.style]
        self.scope = Scope()
        self.draw_dims("MNP")
        for name, dtype in (("flag", "bool"), ("count", "int32"), ("scale", "float32"), ("wide", "int64"),
                            ("half", "float16"), ("byte", "uint8"), ("far", "float64")):  # fmt: skip
            if self.chance(20):
                self.params.append(f"{name}: T.{dtype}")
                self.arguments.append(Argument(name, dtype, None, "index" if dtype == "int32" else "small"))
                self.scalars.append(Name(name, dtype))
                self.saw("scalar parameter")
        self.input([self.dims[0].tile] * self.pick((2, 1, 3)), self.pick(FLOATS))
        if self.chance(70):
            self.input([16] * self.pick((1, 2)), self.pick(INTS))
        if self.chance(55):
            self.accumulator()
        self.launch()
        if self.chance(20):
            self.saw("two kernels")
            tensors = self.scope.tensors
            tensors[:] = [replace(b, starts=(), extents=b.sizes) for b in tensors]
            self.draw_dims("QRS")
            self.launch()
        for s, size in self.symbols.items():
            if s not in self.bound:
                name = self.fresh("Z")
                self.scope.tensors = []
                self.add(Buf(name, "float32", (size,), "global", name, dims=(s,), sizes=(size,)), "small", None, [])
        self.saw(self.style)
        return Program(self.text(), tuple(self.arguments), frozenset(self.features))

    def text(self) -> str:
        head = ["import tiledsl", "import tiledsl.language as T", ""]
        types = {s: ', "int64"' if s in self.wide else "" for s in self.symbols}
        dynamic = [f'{s} = T.dynamic("{s}"{types[s]})' for s in self.symbols]
        macros = "\n\n".join(self.macros)
        body = "\n".join(self.lines)
        if self.style == "eager":
            names = ", ".join(self.symbols)
            consts = f'    {names} = T.const("{names}")\n' if self.symbols else ""
            declared = "".join(f"    {p}\n" for p in self.params if "Tensor" in p)
            given = ", ".join(p if "Tensor" not in p else p.split(":")[0] for p in self.params)
            values = ", ".join(f"{s}={n}" for s, n in self.symbols.items())
            return "\n".join([*head, macros, f"@tiledsl.jit\ndef main({given}):\n{consts}{declared}{body}\n\n",
                              f"kernel = main.kernel({values})\n"])  # fmt: skip
        params = ", ".join(self.params)
        if self.style == "lazy":
            factory = "@tiledsl.jit\ndef factory(unused=1):\n    @T.prim_func\n"
            inner = f"    def main({params}):\n{body}\n\n    return main\n\n"
            return "\n".join([*head, *dynamic, "", macros, factory + inner, "kernel = factory()\n"])
        return "\n".join([*head, *dynamic, "", macros, f"@T.prim_func\ndef main({params}):\n{body}\n\n",
                          "kernel = tiledsl.compile(main)\n"])  # fmt: skip


def random_program(seed: int | str, most: int = 12) -> Program:
    """The program of a seed: every choice is drawn evenly. most: statements of one kernel, roughly."""
    return _program(random.Random(seed), most)


def _program(draw: Any, most: int) -> Program:
    """One in eight has results that do not depend on its tile sizes, one in three is of single threads."""
    source = _Function(draw, most)
    kind = source.below(100)
    if kind < 55:
        return source.program()
    return Threads(draw).program() if kind < 88 else Tiled(draw, most // 2).program()


def programs(most: int = 12) -> Any:
    """A Hypothesis strategy of complete kernels, valid and free of races by construction; they shrink to small ones."""
    from hypothesis import strategies as st

    return st.composite(lambda draw: _program(draw, most))()
