"""Drawn index expressions over drawn data: compiled code touches the same elements as the interpreter, and an error
tells where they lie outside of a tile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from properties import support

from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.errors import TileIndexError
from tiledsl.passes import pipeline

INDEX_TYPES = ("int32", "int64", "uint8", "int16", "uint32")


class Drawn:
    """One kernel, of a seed: three accesses of tiles in a nest, a serial loop or the threads of a block."""

    def __init__(self, seed: int) -> None:
        self.rng = rng = np.random.default_rng(seed)
        self.type = str(rng.choice(INDEX_TYPES))
        self.rows, self.columns = (int(x) for x in rng.integers(1, 40, 2))
        self.body = [self.statement(k) for k in range(3)]
        form = rng.integers(0, 4)
        head, self.kernel = {
            0: ("for i in T.Parallel(n):", "1"),
            1: ("for j, i in T.Parallel(2, n):", "1"),
            2: ("for i in T.serial(n):", "1, threads=1"),
            3: ("i = T.get_thread_binding()\nif i < n:", "1, threads=96"),
        }[int(form)]
        lines = [*head.split("\n"), *("    " + line for s in self.body for line in s.split("\n"))]
        self.lines = "\n".join("        " + line for line in lines)

    def expression(self, depth: int) -> str:
        """The loop variable, or data of the index type, and arithmetic on them."""
        rng = self.rng
        kind = int(rng.integers(0, 10)) if depth else int(rng.integers(0, 3))
        if kind < 3:
            return ("i", f"A[i, {rng.integers(0, 2)}]", f"(i + {rng.integers(0, 20)})")[kind]
        a, b = self.expression(depth - 1), self.expression(depth - 1)
        mask = int(rng.choice([3, 7, 15, 31, 12, 63]))
        forms = [f"({a} {op} {b})" for op in "+-"]
        forms += [f"({a} {op} {mask})" for op in ("%", "&", "//")]
        forms += [f"T.clamp({a}, 0, {mask})", f"(({a} & {mask}) ^ ({b} & 5))", f"({a} >> 2)", f"({a} * {mask % 5})"]
        return str(rng.choice(forms))

    def statement(self, number: int) -> str:
        row, column = self.expression(2), self.expression(1)
        kind, tile = int(self.rng.integers(0, 5)), "SFR"[number]
        if kind == 0:
            return f"{tile}[{row}, {column}] = 1.5"
        if kind == 1:
            return f"Y[i, {number}] = T.if_then_else({column} < {self.rows}, {tile}[{row}, {column}], -1.0)"
        if kind == 2:
            return f"if {column} > 3:\n    Y[i, {number}] = {tile}[{row}, {column}] + {tile}[{row}, 0]"
        if kind == 3:
            return f"at{number} = {row}\nY[i, {number}] = {tile}[at{number}, {column}] * 2.0"
        return f"Y[i, {number}] = {tile}[{row}, {column}]"

    @property
    def source(self) -> str:
        shape = f"({self.rows}, {self.columns})"
        return f"""
import tiledsl.language as T

n = T.dynamic("n")

@T.prim_func
def main(A: T.Tensor((n, 2), "{self.type}"), Y: T.Tensor((n, 3), "float32")):
    with T.Kernel({self.kernel}):
        S = T.alloc_shared({shape}, "float32")
        F = T.alloc_shared({shape}, "float16")
        R = T.alloc_shared({shape}, "float32")
        for r, c in T.Parallel{shape}:
            S[r, c] = r * {self.columns} + c
            F[r, c] = r - c
            R[r, c] = c
{self.lines}
"""

    def data(self) -> list[Any]:
        """Small numbers, mostly within the tile; then numbers of all sizes."""
        rng, info = self.rng, np.iinfo(self.type)
        low = rng.integers(0, 4, (50, 2))
        near = rng.integers(0, self.rows + 2, (50, 2))
        far = rng.integers(info.min, info.max, (17, 2), self.type)
        return [x.astype(self.type) for x in (low[:7], low, near, far)]


def outcome(kernel: Any, data: Any, target: str) -> tuple[str, Any]:
    """Which of several wrong accesses an error is about is open."""
    y = np.zeros((len(data), 3), np.float32)
    try:
        kernel(data, y, target=target)
    except TileIndexError as e:
        return e.message, None
    return "", y


def drawn_kernels(count: int) -> list[tuple[Drawn, Any]]:
    """Kernels that are not refused as a whole, because an access is out of range whatever the data are."""
    found, seed = [], 0
    while len(found) < count:
        drawn = Drawn(seed)
        kernel = support.kernel_from(drawn.source)
        seed += 1
        try:
            pipeline.run(kernel.function, cpu_pipeline(), ())
        except TileIndexError:
            continue
        found.append((drawn, kernel))
    return found


@pytest.mark.parametrize("seed", range(16))
def test_compiled_code_leaves_no_tile(seed: int) -> None:
    drawn, kernel = drawn_kernels(16)[seed]
    for data in drawn.data():
        want, result = outcome(kernel, data, "numpy:exact")
        for target in support.TARGETS:
            told, y = outcome(kernel, data, target)
            if want == "":
                assert told == "", f"{target}: {told}\n{drawn.source}"
                support.assert_same(y, result, f"{target}\n{drawn.source}")
            else:
                assert told != "", f"{target} does not see: {want}\n{drawn.source}"


def test_the_drawn_kernels_go_wrong_and_right() -> None:
    """Otherwise the property above says little."""
    told = []
    for drawn, kernel in drawn_kernels(16):
        told += [outcome(kernel, data, "numpy:exact")[0] for data in drawn.data()]
    assert 8 < sum(t == "" for t in told) < len(told) - 8, told
