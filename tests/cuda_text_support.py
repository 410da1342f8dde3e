"""Hand-written kernels in the form of generated text (tests/cuda_text), how to call them, and what they must give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl.backends.cuda_emulator.machine import Argument, Options, Outcome, launch, word
from tiledsl.backends.cuda_emulator.toolchain import LoadedKernel, build_kernel, load_kernel

FOLDER = Path(__file__).parent / "cuda_text"
BF16 = ml_dtypes.bfloat16
Array = np.ndarray[Any, Any]


@dataclass
class Case:
    """One launch. args: in the order of the text, arrays or NumPy scalars; outputs: places of arrays that are undefined
    before; check: raises when the arrays are wrong afterwards."""

    name: str
    args: list[Any]
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    check: Callable[[], None]
    outputs: tuple[int, ...] = ()


def source(name: str) -> str:
    return (FOLDER / f"{name}.cu").read_text(encoding="utf-8")


@cache
def built(text: str, name: str, watched: bool) -> LoadedKernel:
    return load_kernel(build_kernel(text, [name], watched=watched), [name])


def run(case: Case, options: Options, text: str | None = None, shared: int | None = None) -> Outcome:
    """Launches the case, with another text or size of shared memory where given; outputs get garbage first."""
    text = source(case.name) if text is None else text
    arguments = []
    for i, a in enumerate(case.args):
        if isinstance(a, np.ndarray):
            if i in case.outputs:
                a.view(np.uint8)[...] = 0xFF
            writable = bool(a.flags.writeable)
            arguments.append(Argument(a.ctypes.data, f"arg{i}", a.nbytes, a.itemsize, writable, i not in case.outputs))
        else:
            arguments.append(Argument(word(a)))
    kernel = built(text, case.name, options.check)
    size = case.shared if shared is None else shared
    return launch(kernel, case.name, text, arguments, case.grid, case.block, size, options)


def _frozen(a: Array) -> Array:
    a.flags.writeable = False
    return a


def block_sum(n: int = 2500) -> Case:
    rng = np.random.default_rng(1)
    x = _frozen(rng.integers(-9, 10, n).astype(np.float32))  # small integers: every order of addition is exact
    blocks = -(-n // 1024)
    total, parts = np.zeros(1, np.float32), np.zeros((blocks, 256), np.float32)

    def check() -> None:
        sums = np.array([x[i * 1024 : (i + 1) * 1024].sum() for i in range(blocks)])
        np.testing.assert_array_equal(parts, np.repeat(sums[:, None], 256, 1))
        np.testing.assert_array_equal(total, x.sum())
        total[:] = 0

    return Case("block_sum", [x, total, parts, np.int32(n)], (blocks,), (256,), 32, check, (2,))


def gemm_fma(m: int = 70, n: int = 65, k: int = 40) -> Case:
    rng = np.random.default_rng(2)
    a = _frozen(rng.integers(-9, 10, (m, k)).astype(np.float32))
    b = _frozen(rng.integers(-9, 10, (k, n)).astype(np.float32))
    c = np.zeros((m, n), np.float32)

    def check() -> None:
        np.testing.assert_array_equal(c, a.astype(np.float64) @ b)

    grid = (-(-n // 64), -(-m // 64))
    return Case("gemm_fma", [a, b, c, *map(np.int32, (m, n, k))], grid, (128,), 2 * 16 * 68 * 4, check, (2,))


def gemm_mma(m: int = 70, n: int = 72, k: int = 152) -> Case:
    rng = np.random.default_rng(3)
    a = _frozen(rng.integers(-9, 10, (m, k)).astype(BF16))
    b = _frozen(rng.integers(-9, 10, (k, n)).astype(BF16))
    c = np.zeros((m, n), np.float32)

    def check() -> None:
        np.testing.assert_array_equal(c, a.astype(np.float64) @ b.astype(np.float64))

    grid = (-(-n // 64), -(-m // 64))
    return Case("gemm_mma", [a, b, c, *map(np.int32, (m, n, k))], grid, (128,), 24576, check, (2,))


def attention(heads: int = 2, s: int = 100, causal: bool = True) -> Case:
    rng = np.random.default_rng(4)
    q, k, v = (_frozen(rng.standard_normal((heads, s, 64)).astype(BF16)) for _ in range(3))
    o = np.zeros((heads, s, 64), np.float32)
    scale = 0.125 * np.log2(np.e)

    def check() -> None:
        wide = [x.astype(np.float64) for x in (q, k, v)]
        scores = wide[0] @ wide[1].transpose(0, 2, 1) * 0.125
        if causal:
            scores[:, np.triu(np.ones((s, s), bool), 1)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        want = p / p.sum(-1, keepdims=True) @ wide[2]
        # Probabilities are rounded to bfloat16 (2**-9 relative each); the values are about 1.
        np.testing.assert_allclose(o, want, rtol=0, atol=2**-7)

    args = [q, k, v, o, np.int32(s), np.int32(causal), np.float32(scale)]
    return Case("attention", args, (-(-s // 64), heads), (128,), 24576, check, (3,))


def pipeline(blocks: int = 2, tiles: int = 5) -> Case:
    rng = np.random.default_rng(5)
    x = _frozen(rng.integers(-(2**31), 2**31, (blocks, tiles, 3, 32), np.int32))
    y = np.zeros((blocks, 3, 32), np.int32)

    def check() -> None:
        np.testing.assert_array_equal(y, x.sum(1, dtype=np.int32)[..., ::-1])

    return Case("pipeline", [x, y, np.int32(tiles)], (blocks,), (128,), 1184, check, (1,))


CASES: dict[str, Callable[[], Case]] = {f.__name__: f for f in (block_sum, gemm_fma, gemm_mma, attention, pipeline)}
