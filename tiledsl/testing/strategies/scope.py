"""What a program under construction may name: buffers, scalars, and who may write what."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from tiledsl.dtypes import as_dtype

__all__ = ["FLOATS", "INTS", "NARROW", "NO_ATOMICS", "PACKED", "STORED", "Buf", "Name", "Scope", "Source", "kind_of"]

# Simplest first: Hypothesis shrinks towards the front.
FLOATS = ("float32", "float16", "bfloat16", "float64")
INTS = ("int32", "int8", "uint8", "int64", "uint32", "int16", "uint16", "uint64")
NARROW = ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn")  # kept in memory; arithmetic is float32's, rounded
PACKED = ("int4", "uint4", "float4_e2m1fn")  # two elements in a byte
STORED = (*FLOATS, *INTS[:5], "bool", *NARROW, *PACKED[:2], "float8_e8m0fnu")
NO_ATOMICS = ("bool", *NARROW, *PACKED, "float8_e8m0fnu")

X = TypeVar("X")


def kind_of(dtype: str) -> str:
    """ "float", "int" or "bool"."""
    d = as_dtype(dtype)
    return "float" if d.is_float else "bool" if d.is_bool else "int"


@dataclass(frozen=True)
class Buf:
    """A tensor or tile.

    extents  sizes; of a tensor: of the box that the running block owns, or all of it for an input
    starts   of an output: where the block's box begins, per dimension (texts); () for others
    dims     of a tensor: its shape as the kernel writes it
    root     name of the storage: equal for views of one buffer
    frozen   may no longer be written (its bits were looked at as another type)
    """

    name: str
    dtype: str
    extents: tuple[int, ...]
    scope: str = "shared"
    root: str = ""
    starts: tuple[str, ...] = ()
    dims: tuple[str, ...] = ()
    frozen: bool = False
    sizes: tuple[int, ...] = ()

    @property
    def rank(self) -> int:
        return len(self.extents)

    @property
    def kind(self) -> str:
        return kind_of(self.dtype)

    @property
    def is_input(self) -> bool:
        return self.scope == "global" and not self.starts

    @property
    def halves(self) -> bool:
        """Two elements share a byte, which belongs to one iteration."""
        return self.dtype in PACKED and self.scope != "fragment"

    @property
    def is_tile(self) -> bool:
        return self.scope in ("shared", "fragment")

    def at(self, index: Sequence[str]) -> str:
        """An element; of an output: counted from the block's box."""
        parts = [f"{s} + {i}" if s else i for s, i in zip(self.starts, index, strict=True)] if self.starts else index
        return f"{self.name}[{', '.join(parts)}]"


@dataclass(frozen=True)
class Name:
    """A scalar. top: it lies in 0 ... top - 1 (0: nothing is known). roots: storage that its value was read from.
    cell: a T.alloc_var; writable: by the statement that is being drawn."""

    text: str
    dtype: str
    top: int = 0
    roots: frozenset[str] = frozenset()
    cell: bool = False
    writable: bool = False

    @property
    def kind(self) -> str:
        return kind_of(self.dtype)


@dataclass
class Scope:
    """What is visible, and where we are. A copy of it serves each region.

    lanes    names of the enclosing T.Parallel's variables
    targets  storage written by the enclosing T.Parallel: root -> (buffer, index); None in an index: any value there
    exits    "break" and "continue" are possible here
    shared   tiles that the nest only updates atomically, with the one operation that it uses
    forbid   roots that a value may not be read from (an effect on uniform values)
    """

    tensors: list[Buf] = field(default_factory=list)  # one list for all scopes of a kernel
    buffers: list[Buf] = field(default_factory=list)
    names: list[Name] = field(default_factory=list)
    lanes: tuple[str, ...] = ()
    targets: dict[str, tuple[Buf, tuple[str | None, ...]]] = field(default_factory=dict)
    exits: bool = False
    shared: tuple[tuple[Buf, str], ...] = ()
    forbid: frozenset[str] = frozenset()

    def inner(self, **changes: Any) -> Scope:
        copy = replace(self, **changes)
        copy.buffers, copy.names = list(copy.buffers), list(copy.names)
        return copy

    def readable(self, kind: str) -> list[Buf]:
        """Buffers of which some element may be read here."""
        found = []
        for b in (*self.buffers, *self.tensors):
            if b.kind != kind or b.root in self.forbid:
                continue
            target = self.targets.get(b.root)
            if target is None or target[0] is b:  # through the very buffer that is written
                found.append(b)
        return found

    def scalars(self, kind: str) -> list[Name]:
        return [n for n in self.names if n.kind == kind and not (n.roots & self.forbid)]


class Source:
    """Draws, and the text that grows. draw: Hypothesis's, which shrinks, or a `random.Random`, which is even."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self.lines: list[str] = []
        self.depth = 2
        self.features: set[str] = set()
        self.counts: dict[str, int] = {}

    # -- draws -----------------------------------------------------------------------------------------------------

    def below(self, n: int) -> int:
        if isinstance(self._draw, random.Random):
            return self._draw.randrange(n)
        from hypothesis import strategies as st

        return int(self._draw(st.integers(0, n - 1))) if n > 1 else 0

    def pick(self, options: Sequence[X]) -> X:
        return options[self.below(len(options))]

    def chance(self, percent: int) -> bool:
        """False is the simple case."""
        return self.below(100) >= 100 - percent

    # -- text ------------------------------------------------------------------------------------------------------

    def put(self, line: str) -> None:
        self.lines.append("    " * self.depth + line)

    def saw(self, feature: str) -> None:
        self.features.add(feature)

    def fresh(self, stem: str) -> str:
        n = self.counts[stem] = self.counts.get(stem, 0) + 1
        return f"{stem}{n}"
