"""Drawn programs in which threads part: variables of each thread against the same statements run thread by thread.

Threads do not exchange anything, so plain Python, one thread after the other, says what each of them has to store.
Barriers of warps and tile operations stand in the branches, which makes roles of them (`analysis.uniformity`).
"""

import importlib.util
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiledsl

THREADS, N = 64, 4
NAMES = ("x", "y", "z[0]", "z[1]")
CONDITIONS = [
    "tid < 32", "tid >= 32", "tid < 16", "tid // 16 == 1", "tid % 2 == 0", "tid == 5", "tid < 48", "tid > 70", "n > 2",
    "x > 3", "tid < 32 and n > 2",
]  # fmt: skip
VALUES = ["x + 1", "x * 2 + 1", "y + x", "y - 2", "n", "z[0] + 1", "z[1] + y", "tid", "S[0] + x", "x if y > 2 else y"]
MEETINGS = ["T.sync_warp()", "T.fill(S, 3)", "T.copy(A, S)", "T.barrier_arrive(bar[0])"]
KERNEL = """
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor((4,), "int32"), n: T.int32, B: T.Tensor(({slots}, {threads}), "int32")):
    with T.Kernel(1, threads={threads}):
        S = T.alloc_shared((4,), "int32")
        bar = T.alloc_barrier([4096])
        tid = T.get_thread_binding()
        x, y = T.alloc_var("int32", 1), T.alloc_var("int32", 2)
        z = T.alloc_local((2,), "int32")
        T.clear(z)
        T.fill(S, 3)
{body}
"""


class Drawn:
    """The lines of one program; slots: rows of B that it stores to."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.lines: list[str] = []
        self.slots = 0
        self.loop = False
        self.block(0)
        for name in NAMES:
            self.store(0, name)

    def add(self, depth: int, text: str) -> None:
        self.lines.append("    " * depth + text)

    def store(self, depth: int, value: str) -> None:
        self.add(depth, f"B[{self.slots}, tid] = {value}")
        self.slots += 1

    def block(self, depth: int) -> None:
        choose = self.random.choice
        for _ in range(self.random.randint(1, 4)):
            kind = self.random.random()
            if kind < 0.35:
                values = [*VALUES, "k + x"] if self.loop else VALUES
                self.add(depth, choose([f"{choose(NAMES)} = {choose(values)}", f"{choose(NAMES)} += {choose('12n')}"]))
            elif kind < 0.45:
                self.store(depth, choose([*NAMES, "x + y"]))
            elif kind < 0.62:
                self.add(depth, choose(MEETINGS))
            elif kind < 0.85 and depth < 3:
                self.add(depth, f"if {choose(CONDITIONS)}:")
                self.block(depth + 1)
                self.add(depth + 1, choose([*MEETINGS, "pass", "y += 1"]))
                if choose([True, False]):
                    self.add(depth, "else:")
                    self.block(depth + 1)
            elif depth < 3 and not self.loop:
                self.loop = True
                self.add(depth, f"for k in T.serial({choose(['3', 'n', 'x & 3'])}):")
                self.block(depth + 1)
                self.add(depth + 1, choose([*MEETINGS, "x += 1"]))
                self.loop = False
            else:
                self.add(depth, "y = y + 1")


class Serial:
    """T for one thread in plain Python: its operations do nothing here, and T.serial is range."""

    serial = range

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


@pytest.mark.parametrize("seed", range(24))
def test_each_thread_as_if_alone(seed: int, tmp_path: Path) -> None:
    drawn = Drawn(seed)
    code = compile("\n".join(drawn.lines), f"seed {seed}", "exec")
    want = np.full((drawn.slots, THREADS), -7, np.int32)
    for tid in range(THREADS):
        names = {"x": 1, "y": 2, "z": [0, 0], "S": [3] * 4, "A": None, "bar": [None], "n": N, "B": want}
        exec(code, {"T": Serial(), "tid": tid, **names})
    path = tmp_path / "drawn.py"
    body = "\n".join("        " + line for line in drawn.lines)
    path.write_text(KERNEL.format(slots=drawn.slots, threads=THREADS, body=body), encoding="utf-8")
    spec = importlib.util.spec_from_file_location(f"drawn{seed}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    kernel = tiledsl.compile(module.main)
    for target in ("numpy:exact", "numpy:checked", "numba", "llvm") if seed % 4 == 0 else ("numpy:exact", "llvm"):
        if target == "numpy:checked" and "T.sync_warp()" in "".join(drawn.lines):
            continue  # it reports a barrier that a part of a warp comes to
        got = np.full_like(want, -7)
        kernel(np.full(4, 3, np.int32), N, got, target=target)
        np.testing.assert_array_equal(got, want, err_msg=f"{target}\n{path.read_text(encoding='utf-8')}")
