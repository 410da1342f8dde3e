"""A generated program: its source text, and what its arguments are; saved as a file that runs by itself."""

from __future__ import annotations

import functools
import linecache
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tiledsl.dtypes import as_dtype
from tiledsl.ir import Function
from tiledsl.runtime import JITKernel

__all__ = ["Argument", "Program", "make_argument"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Argument:
    """One argument of a program.

    name     the parameter's
    dtype    of an array's elements, or of a scalar
    shape    None for a scalar
    values   "small" | "special" (infinities, NaN, denormals, extremes) | "index" (ints of -4 ... 60) | "huge" (any
             bits of an int) | "whole" (floats that are small whole numbers) | "zero"
    strides  in elements, where they are not row-major
    same_as  this argument is the very array of that other one
    beside   its rows lie between the rows of that other one, in one memory: the ranges overlap, the elements do not
    points   each element is the address of an array like that; the array is only read, and is kept for ever
    """

    name: str
    dtype: str
    shape: tuple[int, ...] | None
    values: str = "small"
    strides: tuple[int, ...] | None = None
    same_as: str = ""
    beside: str = ""
    points: Argument | None = None


@functools.cache
def _target(a: Argument, number: int) -> Array:
    return np.asarray(make_argument(a, np.random.default_rng(number)))


def make_argument(a: Argument, rng: np.random.Generator) -> Any:
    """An array (or scalar) for a parameter. Gaps of strided arrays hold NaN, or the largest integer."""
    dtype = as_dtype(a.dtype)
    if a.shape is None:
        value = _draw(dtype, (1,), a.values, rng)[0]
        return value.item() if not dtype.is_float else np.float32(value) if dtype.bits <= 32 else np.float64(value)
    if a.points is not None:
        return np.array([_target(a.points, k).ctypes.data for k in range(a.shape[0])], np.int64)
    if dtype.is_packed:  # rows begin at bytes
        rows = rng.integers(0, 256, (*a.shape[:-1], -(-(a.strides or a.shape[-1:])[0] // 2)), np.uint8)
        return rows[..., : -(-a.shape[-1] // 2)]
    values = _draw(dtype, a.shape, a.values, rng)
    if a.strides is None:
        return values
    span = 1 + sum(max(n - 1, 0) * s for n, s in zip(a.shape, a.strides, strict=True))
    flat = np.full(span, np.nan if dtype.is_float else 1 if dtype.is_bool else np.iinfo(dtype.numpy).max, dtype.numpy)
    steps = tuple(s * flat.itemsize for s in a.strides)
    array: Array = np.ndarray(a.shape, dtype.numpy, flat, 0, steps)
    array[...] = values
    return array


def _draw(dtype: Any, shape: tuple[int, ...], values: str, rng: np.random.Generator) -> Array:
    count = int(np.prod(shape, dtype=np.int64))
    if values == "zero":
        return np.zeros(shape, dtype.numpy)
    if dtype.is_bool:
        return np.asarray(rng.integers(0, 2, shape)).astype(bool)
    if dtype.is_int:
        low = -4 if dtype.kind == "int" else 0
        if values == "huge":
            bits = rng.integers(0, 256, count * dtype.bytes, np.uint8)
            return np.asarray(bits.view(dtype.numpy).reshape(shape))
        if values == "special":
            info = np.iinfo(dtype.numpy)
            pool = np.array(
                [0, 1, info.max, info.min, info.max - 1, info.min + 1, 2, 7, dtype.bits - 1, dtype.bits], dtype.numpy
            )
            return rng.choice(pool, shape)
        return np.asarray(rng.integers(low, 60 if values == "index" else 9, shape)).astype(dtype.numpy)
    if values == "whole":
        return np.asarray(rng.integers(-4, 5, shape)).astype(np.float32).astype(dtype.numpy)
    plain = np.asarray(rng.standard_normal(shape)).astype(np.float32).astype(dtype.numpy)
    if values != "special":
        return plain
    import ml_dtypes

    limits = ml_dtypes.finfo(dtype.numpy)  # type: ignore[no-untyped-call]
    edges = [
        0.0,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        float(limits.max),
        float(limits.min),
        float(limits.tiny),
        1.0,
        -1.0,
        0.5,
    ]
    pool = np.array([*edges, float(limits.smallest_subnormal)], np.float64).astype(dtype.numpy)
    return np.where(rng.random(shape) < 0.25, rng.choice(pool, shape), plain)


@dataclass(frozen=True)
class Program:
    """A drawn program.

    source     Python text that defines `kernel` (a JITKernel without allocated outputs)
    arguments  one per parameter, in order
    features   what it contains: names of statements and constructs, for coverage counts
    tiles      names of constants (`TM = 16`, a line of the source each) that may have any value from 1 on: the tile
               sizes along axes that are not reduced
    batched    axis 0 of every array is a batch whose entries do not know their numbers
    """

    source: str
    arguments: tuple[Argument, ...]
    features: frozenset[str] = field(default=frozenset(), compare=False)
    tiles: tuple[str, ...] = ()
    batched: bool = False

    def __repr__(self) -> str:
        return self.text()

    def kernel(self) -> JITKernel:
        """The traced kernel. Raises what tracing raises."""
        file = f"<generated {abs(hash(self.source)):x}>"
        linecache.cache[file] = (len(self.source), None, self.source.splitlines(keepends=True), file)
        module: dict[str, Any] = {"__name__": "generated"}
        exec(compile(self.source, file, "exec", dont_inherit=True), module)
        kernel = module["kernel"]
        assert isinstance(kernel, JITKernel)
        return kernel

    @property
    def function(self) -> Function:
        return self.kernel().function

    def retiled(self, seed: int = 0) -> list[Program]:
        """The program with two other choices of tile sizes; [] where it has none."""
        if not self.tiles:
            return []
        rng = np.random.default_rng(seed)
        found = []
        for few in ((8, 13, 17, 24, 33, 48), (1, 3, 5)):  # in the second, one axis has many blocks
            source, small = self.source, rng.choice(self.tiles)
            for name in self.tiles:
                size = rng.choice(few if name == small else (16, 17, 33, 48))
                source = re.sub(rf"^{name} = \d+$", f"{name} = {size}", source, flags=re.M)
            found.append(replace(self, source=source))
        return found

    def make_args(self, seed: int = 0) -> list[Any]:
        """Fresh arguments, the same ones for the same seed."""
        made: dict[str, Any] = {}
        for k, a in enumerate(self.arguments):
            made[a.name] = made[a.same_as] if a.same_as else make_argument(a, np.random.default_rng([seed, k]))
            if a.beside:
                pair = made[a.beside], made[a.name]
                both = np.empty((2 * len(pair[0]), *pair[0].shape[1:]), pair[0].dtype)
                made[a.beside], made[a.name] = both[0::2], both[1::2]
                both[0::2], both[1::2] = pair
        return list(made.values())

    @property
    def statements(self) -> int:
        """Lines of the kernel's body."""
        lines = [s.strip() for s in self.source.splitlines()]
        return sum(bool(s) and not s.startswith(("import", "@", "def ", "#", "return")) for s in lines)

    def text(self, seed: int = 0, problem: str = "") -> str:
        """A module that shows the program's problem when it is run."""
        note = "".join(f"# {line}\n" for line in problem.splitlines()[:12])
        arguments = "".join(f"    {a!r},\n" for a in self.arguments)
        return (
            f"{note}{self.source.rstrip()}\n\n\n"
            'if __name__ == "__main__":\n'
            "    from pathlib import Path\n\n"
            "    from tiledsl.testing.fuzz import check\n"
            "    from tiledsl.testing.strategies import Argument, Program\n\n"
            "    arguments = (\n" + arguments.replace("    Argument", "        Argument") + "    )\n"
            "    source = Path(__file__).read_text(encoding='utf-8').partition('if __name__')[0]\n"
            f"    program = Program(source, arguments, tiles={self.tiles!r}, batched={self.batched!r})\n"
            f"    check(program, seed={seed}, every=True)\n"
        )


def names_in(text: str, names: Sequence[str]) -> list[str]:
    """Those of the names that stand in the text, as whole words."""
    words = set(re.findall(r"[A-Za-z_]\w*", text))
    return [n for n in names if n in words]
