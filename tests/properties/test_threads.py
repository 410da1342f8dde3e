"""Thread-level kernels: every target agrees with the interpreter in exact mode, bit for bit, and so does the
interpreter after the CPU pass that makes loops of threads."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import numpy as np
import pytest
import thread_kernels as made
import thread_waiting as waiting
from hypothesis import given, settings
from hypothesis import strategies as st
from properties.support import agree, copies, run_reference

import tiledsl
import tiledsl.bench.threads as bench
from tiledsl import ir
from tiledsl.backends.cpu.grid_barriers import SplitGrid
from tiledsl.backends.cpu.spread import SpreadThreads
from tiledsl.interp import Options, run
from tiledsl.ir import build
from tiledsl.ir.build import INT32, const
from tiledsl.ir.verifier import verify
from tiledsl.testing.strategies.threads import BLOCKS, Threads

RNG = np.random.default_rng(11)


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


def ints(low: int, high: int, *shape: int) -> np.ndarray[Any, Any]:
    return RNG.integers(low, high, shape).astype(np.int32)


def spread(kernel: tiledsl.JITKernel, *args: Any) -> list[Any]:
    """The interpreter before and after the pass; the arguments afterwards."""
    function = SplitGrid()(SpreadThreads()(kernel.function))
    assert function is not kernel.function
    verify(function)
    wanted, got = copies(args), copies(args)
    run_reference(kernel, *wanted)
    run(function, got, Options(exact=True))
    for p, w, g in zip(kernel.params, wanted, got, strict=True):
        np.testing.assert_array_equal(g, w, err_msg=p.name)
    return wanted


PROGRAMS: dict[str, Callable[[], tuple[Any, tuple[Any, ...]]]] = {
    "block_sum": lambda: (made.block_sum(1000, 128), (floats(1000), floats(1))),
    "transpose": lambda: (made.transpose(33, 70), (floats(33, 70), floats(70, 33))),
    "histogram": lambda: (made.histogram(1000, 17), (ints(0, 17, 1000), np.zeros(17, np.int32))),
    "gemv": lambda: (made.gemv(7, 33), (floats(7, 33), floats(33), floats(7))),
    "allreduce": lambda: (made.allreduce_gemv(9, 100), (floats(9, 100), floats(100), floats(9))),
    "bitonic": lambda: (made.bitonic_sort(64), (ints(-50, 50, 64),)),
    "scan": lambda: (made.block_scan(3, 96), (ints(-9, 9, 3, 96), ints(0, 1, 3, 96))),
    "compact": lambda: (made.compact(500), (ints(-5, 5, 500), ints(0, 1, 500), ints(0, 1, 1))),
    "match": lambda: (made.bucket_owner(64), (ints(0, 5, 64), ints(0, 1, 64))),
    "collatz": lambda: (made.collatz(70), (ints(1, 60, 70), ints(0, 1, 70))),
    "ragged": lambda: (made.ragged_rows(37, 20), (ints(-12, 9, 37, 20), ints(0, 21, 37), ints(0, 1, 37))),
    "returning": lambda: (made.returning(50), (ints(-3, 9, 50), ints(0, 1, 64), ints(0, 1, 1))),
    "votes": lambda: (made.votes(96), (ints(0, 4, 96), ints(0, 1, 9, 96))),
    "shuffles": lambda: (made.shuffles(), (ints(-9, 99, 64), ints(0, 1, 8, 64))),
    "mixed": lambda: (made.mixed_scale("float16"), (floats(64, 32, dtype=np.float16),) * 2 + (floats(64),)),
    "rounds": lambda: (made.parallel_rounds(100), (ints(0, 9, 100), ints(0, 1, 100), ints(0, 1, 32))),
    "tiles": lambda: (
        made.private_tiles(),
        (floats(16, 40), floats(16, 40, dtype=np.float16), floats(16), floats(16), floats(16)),
    ),
    "bench sum": lambda: (bench.block_sums(1024, 256, 64), (floats(1024), floats(4))),
    "bench transpose": lambda: (bench.tiled_transpose(45, 70), (floats(45, 70), floats(70, 45))),
    "bench histogram": lambda: (bench.block_histogram(768, 100, 256, 64), (ints(0, 100, 768), ints(0, 1, 100))),
    "grid": lambda: (waiting.grid_sum(7), (ints(0, 1, 2, 7), ints(0, 1, 7))),
    "pipeline": lambda: (waiting.pipeline(14, 3), (floats(14, 64), floats(14, 64))),
    "separate branches": lambda: (waiting.pipeline_of_separate_branches(14, 3), (floats(14, 64), floats(14, 64))),
    "warp groups": lambda: (waiting.warp_groups(5), (floats(5, 64), floats(5, 64))),
    "ping pong": lambda: (waiting.ping_pong(9), (ints(0, 1, 1), ints(0, 1, 9))),
    "named barriers": lambda: (waiting.named_barriers(), (ints(0, 99, 64), ints(0, 1, 64))),
    "roles": lambda: (waiting.roles(), (floats(32, 32), floats(32, 32), ints(0, 1, 1))),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    function, args = PROGRAMS[name]()
    kernel = tiledsl.compile(function)
    spread(kernel, *args)
    agree(kernel, *args)


def program(r: Random, threads: Any) -> tuple[tiledsl.JITKernel, list[Any]]:
    """A random kernel and its arguments."""
    made = Threads(r, threads).program()
    return made.kernel(), made.make_args()


@settings(max_examples=40)
@given(st.randoms(use_true_random=False), st.sampled_from(BLOCKS))
def test_the_pass_keeps_the_meaning(r: Random, threads: Any) -> None:
    kernel, args = program(r, threads)
    spread(kernel, *args)


@settings(max_examples=5)
@given(st.randoms(use_true_random=False), st.sampled_from(BLOCKS))
def test_random_programs_agree(r: Random, threads: Any) -> None:
    kernel, args = program(r, threads)
    agree(kernel, *args)


def test_a_view_that_begins_at_a_value_from_before_the_barrier() -> None:
    """Views of authors begin at constants; a kernel's text may say more."""
    x, tile = (ir.Buffer(name, INT32, (const(8, INT32),), scope) for name, scope in (("x", "global"), ("s", "shared")))
    bx, k = ir.Var("bx", INT32), ir.Var("k", INT32)
    view = ir.Buffer("view", INT32, (const(2, INT32),), "shared", alias_of=tile, offset=k)
    before = (ir.Let(k, build.mul(bx, 2)), ir.Alloc(tile), ir.Sync("grid"))
    at = build.add(build.mul(bx, 2), 1)
    after = (ir.Store(view, (const(1, INT32),), build.add(bx, 1)), ir.Store(x, (at,), tile.load(at)))
    kernel = ir.Kernel("main", (const(4, INT32),), (), (bx,), (), (*before, *after))
    function = ir.Function("main", (ir.Param("x", x),), (kernel,))
    split = SplitGrid()(function)
    assert len(split.kernels) == 2
    for f in (function, split):
        verify(f)
        got = np.zeros(8, np.int32)
        run(f, [got], Options(exact=True))
        assert got.tolist() == [0, 1, 0, 2, 0, 3, 0, 4]
