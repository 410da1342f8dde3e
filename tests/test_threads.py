"""The thread level: kernels of threads, warps and barriers against NumPy; threads as lanes of the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels_support import product_bound, worst
from thread_kernels import (
    allreduce_gemv,
    bitonic_sort,
    block_scan,
    block_sum,
    bucket_owner,
    collatz,
    compact,
    gemv,
    histogram,
    mixed_scale,
    parallel_rounds,
    private_tiles,
    ragged_rows,
    returning,
    shuffles,
    transpose,
    votes,
)
from thread_waiting import (
    grid_sum,
    look_back,
    named_barriers,
    ping_pong,
    pipeline,
    pipeline_of_separate_branches,
    roles,
    warp_groups,
)

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.analysis.uniformity import thread_level
from tiledsl.frontend.reader import from_text
from tiledsl.interp import Options, run
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import verify
from tiledsl.testing import assert_targets_agree

RNG = np.random.default_rng(4)
MODES = [Options(), Options(exact=True, block_order=3), Options.checked()]


def every_mode(kernel: Any, *args: Any) -> list[Any]:
    """The arguments after the kernel, the same in every mode of the interpreter; printing loses nothing."""
    function = kernel.function
    verify(function)
    assert equal(from_text(to_text(function)), function, hints=True)
    outs: list[list[Any]] = []
    for mode in MODES:
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        run(function, copies, mode)
        outs.append(copies)
    for other in outs[1:]:
        for a, b in zip(outs[0], other, strict=True):
            np.testing.assert_array_equal(a, b)
    return outs[0]


def butterfly(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Sums of rows of 32 by the xor butterfly 16-8-4-2-1."""
    for step in (16, 8, 4, 2, 1):
        x = x + x[..., np.arange(32) ^ step]
    return x[..., 0]


@pytest.mark.parametrize(("n", "threads"), [(1, 32), (100, 64), (1000, 128), (4097, 256)])
def test_block_sum_by_warp_shuffles(n: int, threads: int) -> None:
    a = RNG.standard_normal(n).astype(np.float32)
    _, out = every_mode(block_sum(n, threads), a, np.zeros(1, np.float32))
    assert worst(out[None], *product_bound(a[None], np.ones((n, 1)), "float32")) <= 1
    padded = np.zeros(-(-n // threads) * threads, np.float32)
    padded[:n] = a
    own = np.zeros(threads, np.float32)
    for row in padded.reshape(-1, threads):
        own = own + row
    warps = np.zeros(32, np.float32)
    warps[: threads // 32] = butterfly(own.reshape(-1, 32))
    assert out[0] == butterfly(warps)


@pytest.mark.parametrize(("m", "n"), [(32, 32), (33, 70), (1, 5), (64, 31)])
def test_shared_memory_transpose(m: int, n: int) -> None:
    a = RNG.standard_normal((m, n)).astype(np.float32)
    _, out = every_mode(transpose(m, n), a, np.full((n, m), np.nan, np.float32))
    np.testing.assert_array_equal(out, a.T)


@pytest.mark.parametrize("n", [1, 63, 1000])
def test_histogram_with_shared_atomics(n: int) -> None:
    a = RNG.integers(0, 17, n).astype(np.int32)
    _, out = every_mode(histogram(n, 17), a, np.zeros(17, np.int32))
    np.testing.assert_array_equal(out, np.bincount(a, minlength=17))


@pytest.mark.parametrize(("n", "k"), [(4, 64), (7, 33), (9, 100)])
def test_gemv_by_warp_reductions(n: int, k: int) -> None:
    a, x = RNG.standard_normal((n, k)).astype(np.float32), RNG.standard_normal(k).astype(np.float32)
    for made in (gemv(n, k), allreduce_gemv(n, k)):
        *_, out = every_mode(made, a, x, np.zeros(n, np.float32))
        assert worst(out[:, None], *product_bound(a, x[:, None], "float32")) <= 1


@pytest.mark.parametrize("n", [2, 32, 64, 256])
def test_bitonic_sort(n: int) -> None:
    a = RNG.integers(-50, 50, n).astype(np.int32)
    np.testing.assert_array_equal(every_mode(bitonic_sort(n), a)[0], np.sort(a))


@pytest.mark.parametrize("threads", [32, 96, 128])
def test_scan_by_shuffles(threads: int) -> None:
    a = RNG.integers(-9, 9, (3, threads)).astype(np.int32)
    _, out = every_mode(block_scan(3, threads), a, np.zeros_like(a))
    np.testing.assert_array_equal(out, np.cumsum(a, 1))


@pytest.mark.parametrize("n", [1, 31, 64, 500])
def test_compaction_by_ballots(n: int) -> None:
    a = RNG.integers(-5, 5, n).astype(np.int32)
    _, out, count = every_mode(compact(n), a, np.full(n, -99, np.int32), np.zeros(1, np.int32))
    kept = a[a > 0]
    assert count[0] == len(kept)
    np.testing.assert_array_equal(out[: len(kept)], kept)
    assert (out[len(kept) :] == -99).all()


def test_match_gives_groups_of_equal_values() -> None:
    a = RNG.integers(0, 5, 64).astype(np.int32)
    _, rank = every_mode(bucket_owner(64), a, np.zeros(64, np.int32))
    for warp in (slice(0, 32), slice(32, 64)):
        x = a[warp]
        np.testing.assert_array_equal(rank[warp], [np.count_nonzero(x[:i] == x[i]) for i in range(32)])


def test_divergent_loops() -> None:
    def steps(n: int) -> int:
        count = 0
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            count += 1
        return count

    a = RNG.integers(1, 200, 70).astype(np.int32)
    _, out = every_mode(collatz(70), a, np.zeros(70, np.int32))
    np.testing.assert_array_equal(out, [steps(int(n)) for n in a])
    lengths = RNG.integers(0, 12, 40).astype(np.int32)
    x = RNG.integers(-9, 9, (40, 12)).astype(np.int32)
    *_, total = every_mode(ragged_rows(40, 12), x, lengths, np.zeros(40, np.int32))
    expected = []
    for row, n in zip(x, lengths, strict=True):
        s = 0
        for v in row[:n]:
            if v == -9:
                break
            if v % 2:
                continue
            s += v
        expected.append(s)
    np.testing.assert_array_equal(total, expected)


def test_threads_that_return_are_gone() -> None:
    a = np.arange(50, dtype=np.int32)
    _, out, count = every_mode(returning(50), a, np.full(64, -1, np.int32), np.zeros(1, np.int32))
    expected = np.full(64, -1)
    expected[:50][a % 3 != 0] = (a * 2)[a % 3 != 0]
    np.testing.assert_array_equal(out, expected)
    assert count[0] == np.count_nonzero(a % 3)


@pytest.mark.parametrize("threads", [32, 48, 64])
def test_votes_and_masks(threads: int) -> None:
    a = RNG.integers(0, 4, threads).astype(np.int32)
    _, out = every_mode(votes(threads), a, np.zeros((9, threads), np.int32))
    for first in range(0, threads, 32):
        x = a[first : first + 32]
        lane = np.arange(len(x))
        bits = [np.uint32(sum(1 << int(i) for i in np.flatnonzero(x == v))) for v in range(4)]
        part = out[:, first : first + 32]
        np.testing.assert_array_equal(part[0], np.any(x == 3))
        np.testing.assert_array_equal(part[1], np.all(x < 3))
        np.testing.assert_array_equal(part[2].astype(np.uint32), bits[1])
        np.testing.assert_array_equal(part[3].astype(np.uint32), [bits[v] for v in x])
        np.testing.assert_array_equal(part[4], np.max(x))
        np.testing.assert_array_equal(part[5], np.bitwise_xor.reduce(x))
        odd = lane % 2 == 1  # the active mask of a branch
        np.testing.assert_array_equal(part[6][odd].astype(np.uint32), np.uint32(sum(1 << int(i) for i in lane[odd])))
    np.testing.assert_array_equal(out[7], np.count_nonzero(a == 2))
    np.testing.assert_array_equal(out[8], int(np.any(a == 3)) + 2 * int(np.all(a < 4)))


def test_shuffles_in_segments() -> None:
    a = RNG.integers(0, 1000, 64).astype(np.int32)
    _, out = every_mode(shuffles(), a, np.zeros((8, 64), np.int32))
    lane, x = np.arange(32), a.reshape(2, 32)
    base = lane & -8
    expected = [
        x[:, np.full(32, 5)],
        x[:, base + 3],
        np.where(lane - 3 >= base, x[:, np.maximum(lane - 3, 0)], x),
        np.where(lane + 3 < base + 8, x[:, np.minimum(lane + 3, 31)], x),
        x[:, lane ^ 4],
        np.where((lane ^ 9) < base + 8, x[:, lane ^ 9], x),
        x[:, lane ^ 16],
        x[:, np.full(32, 7)],
    ]
    np.testing.assert_array_equal(out, np.stack([e.reshape(64) for e in expected]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_tiles_and_threads_mixed(dtype: str) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    a = RNG.standard_normal((64, 32)).astype(kind)
    _, out, top = every_mode(mixed_scale(dtype), a, np.zeros((64, 32), kind), np.zeros(64, np.float32))
    peak = np.abs(a.astype(np.float32)).max(1)
    np.testing.assert_array_equal(top, peak)
    np.testing.assert_array_equal(out, (a.astype(np.float32) * peak[:, None]).astype(kind))


def test_iterations_belong_to_threads() -> None:
    a = RNG.integers(-9, 9, 300).astype(np.int32)
    _, out, own = every_mode(parallel_rounds(300), a, np.zeros(300, np.int32), np.zeros(32, np.int32))
    np.testing.assert_array_equal(out, np.arange(300) % 32)
    np.testing.assert_array_equal(own, np.bincount(np.arange(300) % 32, a, 32).astype(np.int32))


def test_tile_operations_of_single_threads() -> None:
    a = RNG.standard_normal((16, 40)).astype(np.float32)
    a[3, 5] = np.nan
    _, out, top, total, run_ = every_mode(
        private_tiles(), a, np.zeros((16, 40), np.float16), *(np.zeros(16, np.float32) for _ in range(3))
    )
    np.testing.assert_array_equal(out, a.astype(np.float16))
    np.testing.assert_array_equal(top, np.fmax.reduce(a, 1))
    partials = np.zeros((16, 16), np.float32)
    partials += a[:, :16]
    partials += a[:, 16:32]
    partials[:, :8] += a[:, 32:]
    for half in (8, 4, 2, 1):
        partials = partials[:, :half] + partials[:, half : 2 * half]
    np.testing.assert_array_equal(total, partials[:, 0])
    np.testing.assert_array_equal(run_, 7.0)


def test_tile_operations_under_a_condition_are_done_once() -> None:
    a = RNG.standard_normal((32, 32)).astype(np.float32)
    _, out, hits = every_mode(roles(), a, np.zeros((32, 32), np.float32), np.zeros(1, np.int32))
    np.testing.assert_array_equal(out, a * 2 + 1)
    assert hits[0] == 32


def test_steps_do_not_depend_on_the_number_of_threads() -> None:
    def steps(function: ir.Function, *args: Any) -> int:
        found = run(function, list(args), Options(count_steps=True)).steps
        assert found is not None
        return found

    few, many = (votes(n).function for n in (32, 512))
    assert steps(few, np.ones(32, np.int32), np.zeros((9, 32), np.int32)) == steps(
        many, np.ones(512, np.int32), np.zeros((9, 512), np.int32)
    )
    assert thread_level(few.kernels[0])


def test_shadow_of_exchanges() -> None:
    a = RNG.standard_normal(500).astype(np.float32)
    out = np.zeros(1, np.float32)
    report = run(block_sum(500, 128).function, [a, out], Options(exact=True, shadow=True)).shadow["B"]
    np.testing.assert_allclose(report.value[0], a.astype(np.float64).sum(), rtol=1e-12)
    assert abs(float(out[0]) - report.value[0]) <= report.max_bound < 1e-2


# -- groups that wait for each other -------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "stages"), [(2, 1), (8, 1), (10, 2), (14, 3)])
def test_producers_and_consumers(n: int, stages: int) -> None:
    a = RNG.standard_normal((n, 64)).astype(np.float32)
    _, out = every_mode(pipeline(n, stages), a, np.zeros((n, 64), np.float32))
    np.testing.assert_array_equal(out, a * 2 + 1)
    _, out = every_mode(pipeline_of_separate_branches(n, stages), a, np.zeros((n, 64), np.float32))
    expected = a * 2
    for row in (0, n // 2):
        expected[row, np.arange(64) != 5] += 0.5  # thread 5 has returned
    np.testing.assert_array_equal(out, expected)


def test_warp_groups() -> None:
    a = RNG.standard_normal((5, 64)).astype(np.float32)
    _, out = every_mode(warp_groups(5), a, np.zeros((5, 64), np.float32))
    np.testing.assert_array_equal(out, a + 1)


def test_spin_waits_between_warps() -> None:
    count, who = every_mode(ping_pong(9), np.zeros(1, np.int32), np.full(9, -1, np.int32))
    assert count[0] == 9
    np.testing.assert_array_equal(who, np.arange(9) % 2)


def test_barriers_of_groups() -> None:
    a = np.arange(64, dtype=np.int32)
    _, out = every_mode(named_barriers(), a, np.zeros(64, np.int32))
    np.testing.assert_array_equal(out, (a + 32) % 64)


@pytest.mark.parametrize("blocks", [1, 2, 7, 40])
def test_barriers_of_the_grid(blocks: int) -> None:
    _, out = every_mode(grid_sum(blocks), np.zeros((2, blocks), np.int32), np.zeros(blocks, np.int32))
    total = blocks * (blocks + 1) // 2
    np.testing.assert_array_equal(out, total * ((np.arange(blocks) + 1) % blocks + 1))


@pytest.mark.parametrize("blocks", [1, 2, 30])
def test_blocks_that_wait_for_later_blocks(blocks: int) -> None:
    a = RNG.integers(-9, 9, blocks).astype(np.int32)
    *_, sums = every_mode(look_back(blocks), a, np.zeros(blocks, np.int32), np.zeros(blocks, np.int32))
    np.testing.assert_array_equal(sums, np.cumsum(a[::-1])[::-1])


# -- the surface -----------------------------------------------------------------------------------------------


def test_indices_and_extents() -> None:
    import tiledsl.language as T

    n = T.dynamic("n")

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), B: T.Tensor((2, 8, 6, 4), T.int32)):
        with T.Kernel(2, threads=(4, 6, 8)) as bx:
            x, y, z = T.get_thread_bindings()
            ny = T.get_thread_extent(1)
            assert (T.get_thread_extent(0), ny, T.get_thread_extent(2), T.get_block_extent(0)) == (4, 6, 8, 2)
            assert T.get_block_extent(1) == 1
            first = T.launch_thread("threadIdx.y", 6)
            with T.launch_thread("threadIdx.x", 4) as tx:
                for tz in T.thread_binding(0, 8, thread="threadIdx.z"):
                    number = T.get_warp_idx() * 1000 + T.get_lane_idx()
                    warp = T.get_warp_group_idx() * 100_000 + T.cast(T.shuffle_elect(64), "int32") * 1_000_000
                    B[bx, tz, first, tx] = number + warp
            bxs = T.get_block_bindings()
            assert T.get_block_binding(2).expr.value == 0
            if (x + y + z == 0) and (bxs[0] == 0):
                A[0] = T.get_block_binding(0) + 5

    number = np.arange(4 * 6 * 8).reshape(8, 6, 4)
    expected = number // 32 * 1000 + number % 32 + number // 128 * 100_000 + (number % 64 == 0) * 1_000_000
    a, b = every_mode(main, np.zeros(3, np.int32), np.zeros((2, 8, 6, 4), np.int32))
    np.testing.assert_array_equal(b, np.stack([expected, expected]))
    assert a[0] == 5


def test_uniform_updates_are_refused_and_guarded_ones_are_not() -> None:
    import tiledsl.language as T
    from tiledsl.errors import TileTypeError

    @T.prim_func
    def fine(A: T.Tensor((64,), T.int32)):
        with T.Kernel(1, threads=64):
            t = T.get_thread_binding()
            s = T.alloc_shared((64,), T.int32)
            s[t] = t
            s[t] = s[t] + 1
            if t == 0:
                s[0] += 5
            T.sync_threads()
            A[t] = s[t]

    (a,) = every_mode(fine, np.zeros(64, np.int32))
    np.testing.assert_array_equal(a, np.arange(64) + 1 + 5 * (np.arange(64) == 0))
    with pytest.raises(TileTypeError, match="from its own old value"):

        @T.prim_func
        def wrong(A: T.Tensor((64,), T.int32)):
            with T.Kernel(1, threads=64):
                t = T.get_thread_binding()
                A[t] = t
                x = A[3]
                A[3] = x + 1


@pytest.mark.parametrize("target", ["llvm", "numpy:exact"])
def test_shuffles_of_constants_and_of_the_older_order(target: str) -> None:
    """By position, a number and then a value are mask and value, unless a width stands behind them."""

    @T.prim_func
    def main(A: T.Tensor((8, 32), "int32")):
        with T.Kernel(1, threads=32):
            t = T.get_thread_binding()
            A[0, t] = T.shfl_up(7, t, width=8)
            A[1, t] = T.shfl_sync(7, t, 32)
            A[2, t] = T.shfl_down(7, t, 32, 0xFFFFFFFF)
            A[3, t] = T.shfl_sync(0xFFFFFFFF, t, 5, 8)
            A[4, t] = T.shfl_sync(0xFFFFFFFF, t, t ^ 1)
            A[5, t] = T.shfl_xor(0xFFFFFFFF, t, 1, width=8)
            A[6, t] = T.shfl_sync(t, 5, 8)
            A[7, t] = T.shfl_down(t, 30, 32, 0xFFFFFFFF)

    a, t = np.zeros((8, 32), np.int32), np.arange(32)
    tiledsl.compile(main, target=target)(a)
    seven, fifth = np.full(32, 7), t // 8 * 8 + 5
    assert np.array_equal(a, [seven, seven, seven, fifth, t ^ 1, t ^ 1, fifth, np.where(t < 2, t + 30, t)])


@pytest.mark.parametrize("threads", [40, 64])
def test_votes_are_of_those_who_are_there(threads: int) -> None:
    """Each round fewer threads vote; who is gone no longer counts for what it said before."""

    @T.prim_func
    def kernel(A: T.Tensor((threads,), "int32"), B: T.Tensor((4, 3, threads), "int32")):
        with T.Kernel(1, threads=threads):
            t = T.get_thread_binding()
            for k in T.serial(4):
                if A[t] > k:
                    B[k, 0, t] = T.cast(T.ballot(A[t] > 1), "int32")
                    B[k, 1, t] = T.all_sync(A[t] != 2)
                    B[k, 2, t] = T.cast(T.activemask(), "int32")

    a = np.random.default_rng(0).integers(0, 5, threads).astype(np.int32)
    args = a, np.full((4, 3, threads), -7, np.int32)
    b = every_mode(kernel, *args)[1]
    lanes = np.arange(threads)
    warps = lanes[:, None] // 32 == lanes // 32
    for k in range(4):
        here = warps & (a > k)
        bits = np.uint32(1) << (lanes % 32).astype(np.uint32)
        want = [(here & (a > 1)) @ bits, (~here | (a != 2)).all(1), here @ bits]
        want = [np.where(a > k, w.astype(np.uint32).view(np.int32), -7) for w in want]
        np.testing.assert_array_equal(b[k], want)
    assert_targets_agree(tiledsl.compile(kernel), *args)


def test_reductions_of_bits_over_warps() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((64,), "uint32"), B: T.Tensor((3, 64), "uint32")):
        with T.Kernel(1, threads=64):
            t = T.get_thread_binding()
            B[0, t] = T.warp_reduce_bitor(A[t])
            B[1, t] = T.warp_reduce_bitand(A[t])
            B[2, t] = T.warp_reduce_bitxor(A[t])

    a = RNG.integers(0, 1 << 32, 64, np.uint32) | np.uint32(1 << 31)
    a[:32] &= np.uint32(0xFFFFFFF0)
    args = a, np.zeros((3, 64), np.uint32)
    want = [np.repeat(f.reduce(a.reshape(2, 32), axis=1), 32) for f in (np.bitwise_or, np.bitwise_and, np.bitwise_xor)]
    np.testing.assert_array_equal(every_mode(kernel, *args)[1], want)
    assert_targets_agree(tiledsl.compile(kernel), *args)
