"""What drawn kernels of single threads, of packed elements and of other memory brought to light: one test each."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.backends.simt.pipeline import simt_pipeline
from tiledsl.interp import Options, run
from tiledsl.ir.intrinsics import INTRINSICS
from tiledsl.ir.operations import OPERATIONS
from tiledsl.passes import ExpandMoves
from tiledsl.passes.instruments import Verify
from tiledsl.passes.pipeline import run as run_passes
from tiledsl.testing import assert_targets_agree


def agree(kernel: Any, *args: Any) -> None:
    assert_targets_agree(tiledsl.compile(kernel), *args)


@pytest.mark.parametrize("threads", [32, 33, 96])
def test_the_smallest_float_of_a_block_is_one_value_for_all(threads: int) -> None:
    """The compiled targets lost the result of an all-reduction that is no sum of wide numbers."""

    @T.prim_func
    def kernel(A: T.Tensor((threads,), "float32"), B: T.Tensor((threads,), "float32")):
        with T.Kernel(1, threads=threads):
            tid = T.get_thread_binding()
            low = T.alloc_local((1,), "float32")
            with T.attr(T.comm_reducer(lambda x, y: T.min(x, y), [T.float32(0)]), "reduce_scope", 0):
                T.tvm_thread_allreduce(T.uint32(1), A[tid], True, low[0], tid)
            B[tid] = low[0] * 2

    A = np.random.default_rng(3).standard_normal(threads).astype(np.float32)
    B = np.zeros_like(A)
    agree(kernel, A, B)
    run(kernel.function, [A, B], Options(exact=True))
    assert (B == A.min() * 2).all()


def test_an_all_reduction_along_an_axis_that_the_block_lacks() -> None:
    """It went over all threads instead of over the one that each of them is along that axis."""

    @T.prim_func
    def kernel(A: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            tid = T.get_thread_binding()
            total = T.alloc_local((1,), "int32")
            with T.attr(T.comm_reducer(lambda x, y: x + y, [T.int32(0)]), "reduce_scope", 0):
                T.tvm_thread_allreduce(T.uint32(1), tid, True, total[0], T.get_thread_binding(1))
            A[tid] = total[0]

    A = np.zeros(64, np.int32)
    agree(kernel, A)
    run(kernel.function, [A], Options(exact=True))
    assert A.tolist() == [*range(64)]


@pytest.mark.parametrize(
    "name", sorted(i.name for i in INTRINSICS.values() if i.kind == "math" and i.name in OPERATIONS)
)
def test_every_math_function_has_a_bound(name: str) -> None:
    """Functions that the shadow did not know stopped it with an internal error."""
    row, call, whole = OPERATIONS[name], getattr(T, name), name == "ldexp"

    @T.prim_func
    def kernel(A: T.Tensor((16,), "float32"), B: T.Tensor((16,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(16):
                if len(row.params) > 1 and not whole:
                    B[i] = call(A[i], A[15 - i] + 1)
                elif whole:
                    B[i] = call(A[i], i - 8)
                else:
                    B[i] = call(A[i])

    A = np.linspace(0.25, 0.875, 16).astype(np.float32)
    A = A + 1 if name == "acosh" else A
    B = np.zeros_like(A)
    report = run(kernel.function, [A, B], Options(exact=True, shadow=True)).shadow["B"]
    assert (np.abs(B - report.value) <= report.bound).all()
    assert (report.bound <= 1e-5 * np.maximum(np.abs(report.value), 1)).all()


@pytest.mark.parametrize("above", [0, 9])
def test_a_branch_with_a_barrier_of_the_grid_behind_roles(above: int) -> None:
    """It was taken for one more branch in which threads part, and refused."""

    @T.prim_func
    def kernel(A: T.Tensor((2, 32), "int32"), C: T.Tensor((1,), "int32"), B: T.Tensor((2, 32), "int32")):
        with T.Kernel(2, threads=32) as bx:
            tid = T.get_thread_binding()
            full = T.alloc_barrier(16)
            ring = T.alloc_shared((16,), "int32")
            if tid < 16:
                ring[tid] = A[bx, tid]
                T.barrier_arrive(full)
            else:
                T.barrier_wait(full, 0)
                A[bx, tid] = ring[tid - 16]
            if C[0] > 5:
                T.sync_grid()
                B[bx, tid] = A[1 - bx, tid]

    agree(
        kernel, np.arange(64, dtype=np.int32).reshape(2, 32), np.array([above], np.int32), np.zeros((2, 32), np.int32)
    )


def test_contributions_of_a_nest_in_checked_mode() -> None:
    """The checked mode stopped with an internal error at a reducer's update."""

    @T.prim_func
    def kernel(A: T.Tensor((4, 20), "int32"), B: T.Tensor((4,), "int32")):
        with T.Kernel(1):
            r = T.alloc_reducer((4,), "int32", op="sum")
            T.reducer_init(r)
            for i, j in T.Parallel(4, 20):
                T.reducer_update(r[i], A[i, j])
            T.finalize_reducer(r)
            T.copy(r, B)

    A, B = np.arange(80, dtype=np.int32).reshape(4, 20), np.zeros(4, np.int32)
    run(kernel.function, [A, B], Options.checked())
    assert (B == A.sum(1)).all()


def test_what_stands_behind_the_return_of_every_thread() -> None:
    """A variable that is read there was split into one for nobody, and was gone."""

    @T.prim_func
    def kernel(A: T.Tensor((6,), "int32"), B: T.Tensor((6,), "int32")):
        with T.Kernel(1, threads=6):
            tid = T.get_thread_binding(0)
            v = T.alloc_var("int32")
            v = A[tid]
            B[tid] = v
            if 3 + tid > 2:
                T.thread_return()
            B[tid] = v + 1

    A, B = np.arange(6, dtype=np.int32), np.zeros(6, np.int32)
    agree(kernel, A, B)
    run(kernel.function, [A, B], Options(exact=True))
    assert (B == A).all()


def test_the_bound_of_powers_of_two() -> None:
    """The shadow took a cast to e8m0 for one that rounds to nearest and keeps signs."""

    @T.prim_func
    def kernel(A: T.Tensor((16,), "float32"), B: T.Tensor((16,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(16):
                B[i] = T.cast(T.cast(A[i], "float8_e8m0fnu"), "float32")

    A, B = np.linspace(-2, 5, 16).astype(np.float32), np.zeros(16, np.float32)
    report = run(kernel.function, [A, B], Options(exact=True, shadow=True)).shadow["B"]
    assert (np.abs(B - report.value) <= report.bound).all()
    assert (report.bound <= 2 * np.maximum(A, 2.0**-126)).all()


def test_moves_into_an_array_of_a_thread() -> None:
    """Written out as a nest, of which each iteration had its own copy, they kept the last element alone."""

    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32"), B: T.Tensor((8,), "float32")):
        with T.Kernel(1):
            own = T.alloc_local((4,), "float32")
            more = T.alloc_local((4,), "float32")
            T.fill(own, 3)
            T.copy(A, more)
            for i in T.serial(4):
                B[i] = own[i]
                B[4 + i] = more[i]

    A, B = np.arange(4, dtype=np.float32), np.zeros(8, np.float32)
    agree(kernel, A, B)
    run(ExpandMoves()(kernel.function), [A, B], Options(exact=True))
    assert B.tolist() == [3, 3, 3, 3, 0, 1, 2, 3]


def test_a_chain_of_blocks_beside_roles_after_every_pass() -> None:
    """Behind the pass that makes loops of threads, a wait for another block made the interpreter take what is left for
    the statements of all threads, each of which arrived for all of them."""

    @T.prim_func
    def kernel(W: T.Tensor((2,), "int32"), B: T.Tensor((2, 32), "int32")):
        with T.Kernel(2, threads=32) as bx:
            tid = T.get_thread_binding(0)
            w = T.alloc_var("int32", 0)
            if tid == 0:
                if bx > 0:
                    while T.atomic_load(W[bx - 1]) == 0:
                        pass
                T.atomic_store(W[bx], 1)
            ring = T.alloc_shared((32,), "int32")
            full = T.alloc_barrier(16)
            if tid < 16:
                ring[tid] = tid
                T.barrier_arrive(full)
            else:
                T.barrier_wait(full, 0)
                w = ring[tid - 16]
            B[bx, tid] = w

    function = kernel.function
    for p in cpu_pipeline():
        function = p(function)
        B = np.zeros((2, 32), np.int32)
        run(function, [np.zeros(2, np.int32), B], Options(exact=True))
        assert (B[:, 16:] == np.arange(16)).all() and not B[:, :16].any(), p.name


def test_a_view_of_what_one_role_alone_reads() -> None:
    """The variable that roles got for themselves lost its views: the interpreter did not know them."""

    @T.prim_func
    def kernel(A: T.Tensor((33,), "int32")):
        with T.Kernel(1, threads=33):
            tid = T.get_thread_binding()
            own = T.alloc_local((2,), "int32")
            own[0] = tid
            own[1] = 70000 + tid
            halves = T.view(own, (4,), "int16")
            halves[tid % 2] = T.int16(9)
            tile = T.alloc_shared((40,), "int32")
            T.fill(tile, 3)
            if tid < 20:
                for i in T.Parallel(40):
                    tile[i] = i + own[0]
            T.sync_threads()
            A[tid] = tile[tid]

    A = np.zeros(33, np.int32)
    agree(kernel, A)
    run(kernel.function, [A], Options(exact=True))
    owner = np.arange(33) % 20  # of iteration i, among the threads that are there
    assert A.tolist() == [i + (9 if t % 2 == 0 else t | 9 << 16) for i, t in enumerate(owner)]


def test_a_shuffle_of_a_constant_is_none_of_the_older_order() -> None:
    """T.shfl_sync(7, lane, mask=...) was read as mask, value and lane: the mask as a width, without one as a mask."""

    @T.prim_func
    def kernel(A: T.Tensor((32, 4), "int32")):
        with T.Kernel(1, threads=32):
            tid = T.get_thread_binding()
            A[tid, 0] = T.shfl_sync(7, tid * 3, mask=0x0F0F0F0F)
            A[tid, 1] = T.shfl_up(7, tid)
            A[tid, 2] = T.shfl_sync(0xFFFFFFFF, tid, 5)
            A[tid, 3] = T.shfl_sync(0xFFFFFFFF, tid, 5, 8)

    A = np.zeros((32, 4), np.int32)
    agree(kernel, A)
    run(kernel.function, [A], Options(exact=True))
    assert A.tolist() == [[7, 7, 5, t // 8 * 8 + 5] for t in range(32)]


@pytest.mark.parametrize("how", ["continue", "break", "return"])
def test_the_only_thread_of_a_branch_leaves(how: str) -> None:
    """Whether it does was known when threads became loops; what it would have done next was done all the same."""

    @T.prim_func
    def kernel(A: T.Tensor((7,), "int32"), B: T.Tensor((7,), "int32")):
        with T.Kernel(1, threads=7):
            tid = T.get_thread_binding()
            w = T.alloc_var("int32", 0)
            if A[tid] > 100:
                T.thread_return()
            if tid == 0:
                for _ in T.serial(2):
                    if tid * 3 % 3 == 0:
                        w += T.syncthreads_and(A[tid] > 0)
                        if how == "continue":
                            continue
                        elif how == "break":
                            break
                        else:
                            B[tid] = w
                            T.thread_return()
                    w += A[tid]
                    B[tid] = w
            B[tid] = w + 10

    A, B = np.arange(7, dtype=np.int32) + 50, np.zeros(7, np.int32)
    agree(kernel, A, B)
    run(kernel.function, [A, B], Options(exact=True))
    assert B.tolist() == [{"continue": 12, "break": 11, "return": 1}[how], *[10] * 6]


@pytest.mark.parametrize("number", [32, 33])
def test_a_value_between_branches_that_wait_is_used_behind_them(number: int) -> None:
    """The compiled targets refused it, and asked for a variable, which they can make themselves."""

    @T.prim_func
    def kernel(A: T.Tensor((2, number), "int32"), W: T.Tensor((2,), "int32"), B: T.Tensor((2, 2, number), "int32")):
        with T.Kernel(2, threads=number) as bx:
            tid = T.get_thread_binding()
            ring = T.alloc_shared((8,), "int32")
            full = T.alloc_barrier(8)
            got = T.alloc_var("int32", 0)
            if tid < 8:
                ring[tid] = A[bx, tid]
                T.barrier_arrive(full)
            else:
                T.barrier_wait(full, 0)
                got = ring[tid % 8]
            twice = got * 2 + A[bx, tid]
            even = twice % 2 == 0
            votes = T.ballot(even)
            if tid == number - 1:
                if bx > 0:
                    while T.atomic_load(W[bx - 1]) == 0:
                        pass
                T.atomic_store(W[bx], 1)
            B[0, bx, tid] = twice + T.if_then_else(even, 1000, 0)
            B[1, bx, tid] = T.cast(votes, "int32")

    A = np.arange(2 * number, dtype=np.int32).reshape(2, number) ** 2
    W, B = np.zeros(2, np.int32), np.zeros((2, 2, number), np.int32)
    agree(kernel, A, W, B)
    run(kernel.function, [A, W, B], Options(exact=True))
    lanes = np.arange(number)
    twice = np.where(lanes < 8, 0, A[:, lanes % 8]) * 2 + A
    even = twice % 2 == 0
    assert (B[0] == twice + np.where(even, 1000, 0)).all()
    together = (lanes[:, None] // 32 == lanes // 32) & ((lanes[:, None] < 8) == (lanes < 8))
    bits = np.uint32(1) << (lanes % 32).astype(np.uint32)
    assert (B[1].view(np.uint32) == (even[:, None] & together).astype(np.uint32) @ bits).all()


def test_one_barrier_of_groups_of_different_size() -> None:
    """Arrivals were counted on: behind a round of 20, a round of 12 began in the middle, opened too early for those
    who came first, and never for the others."""

    @T.prim_func
    def kernel(A: T.Tensor((32,), "int32")):
        with T.Kernel(1, threads=32):
            tid = T.get_thread_binding()
            S = T.alloc_shared((32,), "int32")
            full = T.alloc_barrier(8)
            if tid < 20:
                S[tid] = tid
                T.sync_threads(1, 20)
            T.sync_threads()
            if tid < 8:
                T.barrier_arrive(full)
            else:
                T.barrier_wait(full, 0)
            if tid < 12:
                S[tid] = tid * 2
                T.sync_threads(1, 12)
                A[tid] = S[(tid + 1) % 12]

    A = np.zeros(32, np.int32)
    agree(kernel, A)
    run(kernel.function, [A], Options(exact=True))
    assert A.tolist() == [(t + 1) % 12 * 2 for t in range(12)] + [0] * 20


@pytest.mark.parametrize("target", ["numpy:checked", "numpy"])
def test_a_tile_without_axes_is_copied(target: str) -> None:
    """The checked mode stopped with an internal error."""

    @T.prim_func
    def kernel(A: T.Tensor((6,), "float32"), O: T.Tensor((11,), "float32")):
        with T.Kernel(3) as bx:
            one = T.alloc_fragment((), "float32")
            T.copy(A[bx], one)
            T.copy(one, O[bx * 4])

    A, O = np.arange(6, dtype=np.float32) + 1, np.zeros(11, np.float32)
    agree(kernel, A, O)
    tiledsl.compile(kernel)(A, O, target=target)
    assert O.tolist() == [1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0]


@pytest.mark.parametrize("index", [2**63, 2**64 - 1])
def test_an_index_beyond_all_signed_ones(index: int) -> None:
    """Where the guard of another axis kept the load, the lowering gave a literal that 64 signed bits cannot hold."""

    @T.prim_func
    def kernel(A: T.Tensor((4, 4), "float32"), I: T.Tensor((4,), "int32"), B: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                B[i] = T.if_then_else(I[I[i]] > 0, A[I[i], index], 1)

    agree(kernel, np.ones((4, 4), np.float32), np.array([0, 3, 9, 1], np.int32), np.zeros(4, np.float32))


def test_a_variable_that_begins_with_an_element_of_registers() -> None:
    """Threads of GPUs: the element was looked for in the tile that had become registers."""

    @T.prim_func
    def kernel(A: T.Tensor((4,), "int32"), O: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=32) as bx:
            tile = T.alloc_fragment((4,), "int32")
            T.copy(A, tile)
            v = T.alloc_var("int32", tile[A[bx] % 4] * 3)
            O[1] = v

    A = np.array([2, 5, 7, 9], np.int32)
    lowered = run_passes(kernel.function, simt_pipeline("sm_80"), [Verify()])
    for function in (kernel.function, lowered):
        O = np.zeros(4, np.int32)
        run(function, [A, O], Options(exact=True))
        assert O.tolist() == [0, 21, 0, 0]


def test_what_parted_threads_count_alike_is_counted_once() -> None:
    """Both sides of a branch in which threads wait go on by themselves to the next one: a variable that is the same
    for all threads was one for both sides, and both counted it up."""

    @T.prim_func
    def kernel(W: T.Tensor((3,), "int32"), O: T.Tensor((3, 33), "int32")):
        with T.Kernel(3, threads=33) as bx:
            tid = T.get_thread_binding()
            v = T.alloc_var("int32", 5)
            full = T.alloc_barrier(1)
            if tid < 1:
                T.mbarrier_arrive(full)
            else:
                T.barrier_wait(full, 0)
            v = v + 1
            if tid == 32:
                if bx > 0:
                    while T.atomic_load(W[bx - 1]) == 0:
                        pass
                T.atomic_store(W[bx], 1)
            O[bx, tid] = v

    W, O = np.zeros(3, np.int32), np.zeros((3, 33), np.int32)
    run(kernel.function, [W, O], Options(exact=True))
    assert (O == 6).all() and (W == 1).all()
    agree(kernel, np.zeros(3, np.int32), np.zeros((3, 33), np.int32))


@pytest.mark.parametrize("order", [None, 3])
@pytest.mark.parametrize("kind", ["long", "counted by data", "branch"])
def test_blocks_that_look_again_and_again_take_turns(kind: str, order: int | None) -> None:
    """On a CPU a barrier of the grid that cannot end a launch is a loop that looks for the other blocks. Interpreted,
    the first block looked for ever, and the example backend hung: nobody else went on."""
    rounds = 40 if kind == "long" else 1

    @T.prim_func
    def kernel(X: T.Tensor((3, 4), "int32"), C: T.Tensor((1,), "int32")):
        with T.Kernel(3, threads=4) as bx:
            tid = T.get_thread_binding()
            w = T.alloc_var("int32", 0)
            s = T.alloc_shared((4,), "int32")
            for i in T.serial(C[0] if kind == "counted by data" else rounds):
                if C[0] > 2 or kind != "branch":
                    s[tid] = w + bx + i
                    X[bx, tid] = s[tid]
                    T.sync_grid()
                    w += X[2 - bx, 3 - tid] + s[3 - tid]
                    T.sync_grid()
            X[bx, tid] = w

    want, got, C = np.zeros((3, 4), np.int32), np.zeros((3, 4), np.int32), np.array([5], np.int32)
    run(kernel.function, [want, C], Options(exact=True))
    run(run_passes(kernel.function, cpu_pipeline()), [got, C], Options(exact=True, block_order=order))
    assert want.all() and (got == want).all()
    agree(kernel, np.zeros((3, 4), np.int32), C)


@pytest.mark.parametrize("op", ["sum", "max", "bitor", "bitand", "bitxor"])
def test_reductions_of_four_bits(op: str) -> None:
    """By single threads, and in the thread stage of GPUs, partials had four bits, too, which no operator takes."""
    reduce = {"sum": T.reduce_sum, "max": T.reduce_max, "bitor": T.reduce_bitor, "bitand": T.reduce_bitand,
              "bitxor": T.reduce_bitxor}[op]  # fmt: skip

    @T.prim_func
    def block(A: T.Tensor((6, 20), "int4"), B: T.Tensor((6,), "int4")):
        with T.Kernel(1, threads=32):
            a, b = T.alloc_fragment((6, 20), "int4"), T.alloc_shared((6,), "int4")
            T.copy(A, a)
            reduce(a, b, dim=1)
            T.copy(b, B)

    @T.prim_func
    def threads(A: T.Tensor((6, 20), "int4"), B: T.Tensor((6, 2), "int4")):
        with T.Kernel(1, threads=6):
            t = T.get_thread_binding()
            a, b = T.alloc_local((1, 20), "int4"), T.alloc_local((1,), "int4")
            for k in T.serial(20):
                a[0, k] = A[t, k]
            reduce(a, b, dim=1)
            B[t, 0] = b[0]
            if op in ("sum", "max"):
                T.cumsum(a, dim=1) if op == "sum" else T.cummax(a, dim=1)
            B[t, 1] = a[0, 19]

    ufunc = {"sum": np.add, "max": np.maximum, "bitor": np.bitwise_or, "bitand": np.bitwise_and,
             "bitxor": np.bitwise_xor}[op]  # fmt: skip
    x = np.random.default_rng(0).integers(-8, 8, (6, 20))
    want = (ufunc.reduce(x, axis=1) + 8) % 16 - 8
    last = want if op in ("sum", "max") else x[:, -1]
    for kernel, columns in ((block, want), (threads, np.stack([want, last], 1))):
        args = [tiledsl.pack(x, "int4"), tiledsl.pack(np.zeros_like(columns), "int4")]
        agree(kernel, *args)
        for passes in ((), simt_pipeline("sm_80")):
            copies = [a.copy() for a in args]
            run(run_passes(kernel.function, passes), copies, Options(exact=True))
            np.testing.assert_array_equal(copies[1], tiledsl.pack(columns, "int4"))
