"""Mistakes planted by tests/mutation that only a later stage, or a check on one, shows."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.backends.simt.apart import SpreadApart
from tiledsl.backends.simt.lower import lower
from tiledsl.backends.simt.names import unique
from tiledsl.backends.simt.nests import reduce_nest
from tiledsl.backends.simt.pipeline import simt_pipeline
from tiledsl.backends.simt.shared import ARCHS
from tiledsl.backends.simt.vectors import copied_rows
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.frontend.uncaught import show_uncaught
from tiledsl.interp import Options, run
from tiledsl.ir import build
from tiledsl.ir.intrinsics import INTRINSICS
from tiledsl.ir.micro import MICRO
from tiledsl.ir.verifier import verify
from tiledsl.ir.walk import walk
from tiledsl.passes.pipeline import run as run_passes
from tiledsl.passes.private_locals import PrivateLocals
from tiledsl.testing import assert_targets_agree

INT32 = as_dtype("int32")


def at_every_stage(kernel: Any, *args: Any) -> list[Any]:
    """The arguments after a run of the author's stage; the loop stage and the thread stage give the same bits, too."""
    function, results = kernel.function, []
    for passes in ((), cpu_pipeline(), simt_pipeline()):
        lowered = run_passes(function, passes)
        verify(lowered)
        copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
        run(lowered, copies, Options(exact=True))
        results.append(copies)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    return results[0]


def test_an_inner_loop_does_not_change_where_a_break_leads() -> None:
    """The value of x that the break leaves with is read behind the loop, though none is read by the next iteration."""
    with pytest.raises(TileValueError, match="x is rebound in this loop"):

        @T.prim_func
        def kernel(A: T.Tensor((6,), "int32"), B: T.Tensor((3,), "int32")):
            with T.Kernel(1):
                x = A[0]
                for i in T.serial(6):
                    if A[i] > 3:
                        break
                    for j in T.serial(2):
                        B[j] = B[j] + i
                    x = A[i] * 10
                B[2] = x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_angles_as_large_as_the_type_has_them(dtype: str) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((40,), dtype), B: T.Tensor((2, 40), dtype)):
        with T.Kernel(1):
            for i in T.Parallel(40):
                B[0, i] = T.sin(A[i])
                B[1, i] = T.cos(A[i])

    top = np.log2(float(np.finfo(dtype).max)) - 0.01
    A = (2 ** np.linspace(1, top, 40)).astype(dtype)
    (B,) = at_every_stage(kernel, A, np.zeros((2, 40), dtype))[1:]
    wide = A.astype(np.float64)
    np.testing.assert_allclose(B, [np.sin(wide), np.cos(wide)], rtol=0, atol=4 * np.finfo(dtype).eps)


def test_a_product_with_a_tile_of_several() -> None:
    """The panels of the right operand have axes in front; the result is a part of a larger tile of halves."""

    @T.prim_func
    def kernel(
        A: T.Tensor((16, 32), "float32"), B: T.Tensor((2, 32, 48), "float32"), C: T.Tensor((2, 32, 48), "float16")
    ):
        with T.Kernel(1):
            a, b = T.alloc_shared((16, 32), "float32"), T.alloc_shared((2, 32, 48), "float32")
            c = T.alloc_fragment((2, 32, 48), "float16")
            T.copy(A, a)
            T.clear(c)
            for s in T.serial(2):
                T.copy(B[s, 0:32, 0:48], b[s, 0:32, 0:48])
            for s in T.serial(2):
                T.gemm(a, b[s, 0:32, 0:48], c[s, 16:32, 0:48])
            T.copy(c, C)

    rng = np.random.default_rng(0)
    A, B = rng.standard_normal((16, 32)).astype(np.float32), rng.standard_normal((2, 32, 48)).astype(np.float32)
    run_passes(kernel.function, cpu_pipeline())
    args = [A, B, np.ones((2, 32, 48), np.float16)]
    want = [a.copy() for a in args]
    run(kernel.function, want, Options(exact=True))
    run(run_passes(kernel.function, cpu_pipeline()), args, Options(exact=True))
    assert (args[2] == want[2]).all() and not args[2][:, :16].any()
    exact, sizes = A.astype(np.float64) @ B, np.abs(A).astype(np.float64) @ np.abs(B)
    chain = 32 * 2.0**-24 / (1 - 32 * 2.0**-24) * sizes  # 32 multiply-adds in float32, then one rounding to float16
    bound = chain + 2.0**-11 * (np.abs(exact) + chain) + 2.0**-25
    assert (np.abs(args[2][:, 16:] - exact) <= bound).all()
    assert_targets_agree(tiledsl.compile(kernel), A, B, np.ones((2, 32, 48), np.float16))


def test_votes_are_legal() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((40,), "int32"), B: T.Tensor((40,), "int32")):
        with T.Kernel(1, threads=40):
            t = T.get_thread_binding(0)
            B[t] = T.any_sync(A[t] > 3) + T.shfl_sync(A[t], 2)

    verify(kernel.function)
    B = at_every_stage(kernel, np.arange(40, dtype=np.int32), np.zeros(40, np.int32))[1]
    assert B.tolist() == [3] * 32 + [35] * 8


def test_hints_take_no_part_in_equality() -> None:
    i, n = ir.Var("i", INT32), build.const(4, INT32)
    body = (ir.Debug("print", (i,)),)
    loops = [ir.For(i, build.zero(INT32), n, build.const(1, INT32), body, kind=k) for k in ("serial", "unroll")]
    assert loops[0] == loops[1] and hash(loops[0]) == hash(loops[1])


def test_arrays_that_a_nest_writes_belong_to_its_iterations() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "int32"), B: T.Tensor((20,), "int32"), C: T.Tensor((3,), "int32")):
        with T.Kernel(1):
            x = T.alloc_local((2,), "int32")
            v = T.alloc_var("int32", 7)
            x[0] = 1
            x[1] = 2
            for i in T.Parallel(20):
                x[0] = A[i]
                v = x[0] + 1
                B[i] = x[0] + x[1] + v
            C[0] = x[0]
            C[1] = x[1]
            C[2] = v

    for apart in (False, True):
        nest = next(n for n in walk(PrivateLocals(apart)(kernel.function).kernels[0]) if isinstance(n, ir.Parallel))
        own = {n.buffer.scope for n in walk(nest.body) if isinstance(n, ir.Alloc)}
        assert own == {"local"} and sum(isinstance(n, ir.Alloc) for n in walk(nest.body)) == 1 + apart
    args = np.arange(20, dtype=np.int32), np.zeros(20, np.int32), np.zeros(3, np.int32)
    _, B, C = at_every_stage(kernel, *args)
    assert B.tolist() == [2 * k + 3 for k in range(20)] and C.tolist() == [19, 2, 20]


def test_a_breakpoint_stops_in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), "int32")):
        with T.Kernel(2):
            breakpoint()
            A[0] = 1

    stops: list[Any] = []
    monkeypatch.setattr(sys, "breakpointhook", lambda *_: stops.append(sys._getframe(1).f_locals["values"]["A"]))
    A = np.zeros(4, np.int32)
    run(kernel.function, [A])
    assert len(stops) == 2 and A[0] == 1


def test_packed_elements_of_each_iteration_are_its_own() -> None:
    """Arrays of an odd number of elements: the last one shares its byte with the next iteration's first, in memory."""

    @T.prim_func
    def kernel(A: T.Tensor((20,), "int32"), B: T.Tensor((20,), "int32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                x = T.alloc_local((3,), "int4")
                for j in T.serial(3):
                    x[j] = A[i] % 5 + j - 3
                B[i] = x[0] + x[1] * 10 + x[2] * 100

    A, B = np.arange(20, dtype=np.int32), np.zeros(20, np.int32)
    run(kernel.function, [A, B], Options.checked())
    assert B.tolist() == [111 * (k % 5 - 3) + 210 for k in range(20)]


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "float16", "bfloat16"])
def test_scalars_of_narrow_floats(dtype: str) -> None:
    @T.prim_func
    def kernel(x: dtype, A: T.Tensor((20,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                A[i] = A[i] + T.cast(x, "float32")

    A = np.arange(20, dtype=np.float32)
    assert_targets_agree(tiledsl.compile(kernel), 1.5, A)


def test_a_short_unrolled_loop_around_barriers_is_written_out() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((40,), "int32")):
        with T.Kernel(1, threads=40):
            t = T.get_thread_binding(0)
            s = T.alloc_shared((40,), "int32")
            for k in T.unroll(3):
                s[t] = A[t] + k
                T.sync_threads()
                A[t] = s[(t + 1) % 40]
                T.sync_threads()

    assert_targets_agree(tiledsl.compile(kernel), np.arange(40, dtype=np.int32))
    spread = run_passes(kernel.function, cpu_pipeline()[:4])
    assert not any(isinstance(n, ir.For) for n in walk(spread.kernels[0]))


def test_every_lowered_statement_has_its_place() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20, 20), "float32"), B: T.Tensor((20,), "float32")):
        with T.Kernel(1):
            a = T.alloc_shared((20, 20), "float32")
            T.copy(A, a)
            for i in T.Parallel(20):
                if A[i, 0] > 0:
                    B[i] = A[i, 1]
                T.device_assert(A[i, 0] < 9, "small")

    lowered = run_passes(kernel.function, cpu_pipeline()).kernels[0]
    places = {type(n).__name__: n.loc for n in walk(lowered.body) if isinstance(n, ir.Stmt) and n.loc is None}
    assert not places
    (test,) = (n for n in walk(lowered.body) if isinstance(n, ir.Debug) and n.kind == "assert")
    (stated,) = (n for n in walk(kernel.function.kernels[0]) if isinstance(n, ir.Debug))
    assert test.loc.line == stated.loc.line


def test_rounds_that_a_variable_of_each_iteration_counts() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((40,), "int32"), B: T.Tensor((40,), "int32")):
        with T.Kernel(1):
            for i in T.Parallel(40):
                n = T.alloc_var("int32", A[i] % 5)
                x = T.alloc_local((2,), "int32")
                x[0] = n
                total = T.alloc_var("int32", 0)
                for j in T.serial(n):
                    total += j + x[0]
                for _ in T.serial(x[0]):
                    total += A[(i + n) % 40]
                B[i] = total

    A, B = np.arange(40, dtype=np.int32), np.zeros(40, np.int32)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    n = A % 5
    B = at_every_stage(kernel, A, B)[1]
    assert B.tolist() == (n * (n - 1) // 2 + n * n + n * ((A + n) % 40)).tolist()


def test_rows_of_packed_elements_begin_at_bytes_in_memory() -> None:
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((3, n), "int4"), B: T.Tensor((3, n), "int32")):
        with T.Kernel(1, threads=32):
            for i, j in T.Parallel(3, n):
                B[i, j] = A[i, j]

    text = "".join(k.text for k in lower(kernel.function).kernels)
    assert "n + (n & 1)" in text and "n - (n & 1)" not in text


def test_the_state_of_a_barrier_of_the_grid_begins_with_zeros() -> None:
    @T.prim_func
    def kernel(X: T.Tensor((3, 4), "int32")):
        with T.Kernel(3, threads=4) as bx:
            t = T.get_thread_binding(0)
            kept = T.alloc_global((3, 4), "int32")
            kept[bx, t] = X[bx, t]
            T.sync_grid()
            X[bx, t] = kept[2 - bx, t]

    program = lower(kernel.function, "sm_80")
    assert len(program.function.workspaces) == 2
    assert [program.function.workspaces[k].name for k in program.zeroed] == ["grid_state"]


def test_names_of_the_prelude_are_not_given_to_variables() -> None:
    for wanted in ("tl_exp", "TL_MAX", "tlr_x", "1st", "main"):
        taken: set[str] = set()
        name = unique(wanted, taken)
        assert not name.startswith(("tl_", "TL_", "tlr_")) and not name[0].isdigit() and name != "main"
        assert unique(wanted, taken) != name


def test_a_reduction_has_an_iteration_for_each_of_its_results() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((3, 5, 20), "float32"), B: T.Tensor((3, 5), "float32")):
        with T.Kernel(1):
            a, b = T.alloc_shared((3, 5, 20), "float32"), T.alloc_shared((3, 5), "float32")
            T.copy(A, a)
            T.reduce_sum(a, b, dim=2)
            T.copy(b, B)

    (reduction,) = (n for n in walk(kernel.function.kernels[0]) if isinstance(n, ir.Reduce))
    assert [e.value for e in reduce_nest(reduction).extents] == [3, 5]


def test_conditions_of_which_only_one_side_moves_evenly() -> None:
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((n,), "int32"), B: T.Tensor((4, n), "int32")):
        with T.Kernel(T.ceildiv(n, 32)) as bx:
            for i in T.Parallel(32):
                j = bx * 32 + i
                if j < n:
                    if j // 2 >= 3:
                        B[0, j] = A[j]
                    if 3 >= j // 2:
                        B[1, j] = A[j]
                    if j // 3 < n - 7:
                        B[2, j] = A[j]
                    if n > j * j:
                        B[3, j] = A[j]

    A = np.arange(1, 71, dtype=np.int32)
    args = A, np.zeros((4, 70), np.int32)
    assert_targets_agree(tiledsl.compile(kernel), *args)
    j = np.arange(70)
    want = np.stack([j // 2 >= 3, j // 2 <= 3, j // 3 < 63, j * j < 70]) * A
    assert (at_every_stage(kernel, *args)[1] == want).all()


@pytest.mark.parametrize(("dtype", "turned"), [("float32", True), ("int64", True), ("int16", False)])
def test_scans_along_rows_go_down_columns_of_turned_strips(dtype: str, turned: bool) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((7, 33), dtype), B: T.Tensor((7, 33), dtype)):
        with T.Kernel(1):
            a = T.alloc_shared((7, 33), dtype)
            T.copy(A, a)
            T.cumsum(a, dim=1)
            T.copy(a, B)

    rng = np.random.default_rng(0)
    args = rng.integers(-9, 9, (7, 33)).astype(dtype), np.zeros((7, 33), dtype)
    assert_targets_agree(tiledsl.compile(kernel), *args)
    assert (at_every_stage(kernel, *args)[1] == np.cumsum(args[0], axis=1)).all()
    body = run_passes(kernel.function, cpu_pipeline()).kernels[0].body
    assert any(isinstance(n, ir.MicroCall) and n.name == "transpose" for n in walk(body)) == turned


@pytest.mark.parametrize("k", [3, 4, 5, 8])
def test_products_of_few_bytes(k: int) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((5, k), "int8"), B: T.Tensor((k, 20), "int8"), C: T.Tensor((5, 20), "int32")):
        with T.Kernel(1):
            a, b = T.alloc_shared((5, k), "int8"), T.alloc_shared((k, 20), "int8")
            c = T.alloc_fragment((5, 20), "int32")
            T.copy(A, a)
            T.copy(B, b)
            T.copy(C, c)
            T.gemm(a, b, c)
            T.copy(c, C)

    rng = np.random.default_rng(0)
    A, B = rng.integers(-128, 128, (5, k)).astype(np.int8), rng.integers(-128, 128, (k, 20)).astype(np.int8)
    C = rng.integers(-9, 9, (5, 20)).astype(np.int32)
    assert_targets_agree(tiledsl.compile(kernel), A, B, C)
    assert (at_every_stage(kernel, A, B, C)[2] == C + A.astype(np.int32) @ B.astype(np.int32)).all()


def test_all_threads_of_several_warps_add_up() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((100,), "int32"), B: T.Tensor((100,), "int32")):
        with T.Kernel(1, threads=100):
            t = T.get_thread_binding(0)
            total = T.alloc_local((1,), "int32")
            with T.attr(T.comm_reducer(lambda x, y: x + y, [T.int32(0)]), "reduce_scope", 0):
                T.tvm_thread_allreduce(T.uint32(1), A[t], True, total[0], t)
            B[t] = total[0]

    A = np.arange(100, dtype=np.int32) ** 2
    assert_targets_agree(tiledsl.compile(kernel), A, np.zeros(100, np.int32))
    assert (at_every_stage(kernel, A, np.zeros(100, np.int32))[1] == A.sum()).all()


def test_threads_that_all_meet_stay_threads_on_gpus() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            t = T.get_thread_binding(0)
            s = T.alloc_shared((64,), "int32")
            s[t] = A[t]
            T.sync_threads()
            A[t] = s[63 - t]

    assert SpreadApart()(kernel.function).kernels[0] is kernel.function.kernels[0]


def test_rows_that_lean_are_no_rows() -> None:
    """Copies whose rows shift from element to element must not go piece by piece."""

    @T.prim_func
    def kernel(A: T.Tensor((16, 16), "int32"), B: T.Tensor((2, 8, 16), "int32")):
        with T.Kernel(1, threads=32):
            s = T.alloc_shared((2, 8, 16), "int32")
            for k, i, j in T.Parallel(2, 8, 16):
                s[k, i, j] = A[15 - j, i + k]
            for k, i, j in T.Parallel(2, 8, 16):
                B[k, i, j] = s[k, 7 - i, 15 - j]
            T.sync_threads()
            for i, j in T.Parallel(8, 16):
                s[0, i, j] = A[15 - j, j]
            T.copy(s[0, 0:8, 0:16], B[1, 0:8, 0:16])

    A = np.arange(256, dtype=np.int32).reshape(16, 16)
    B = at_every_stage(kernel, A, np.zeros((2, 8, 16), np.int32))[1]
    assert (B[0] == A[:, :8].T[::-1]).all() and (B[1] == A[::-1].diagonal()).all()


def test_who_has_the_same_value_is_asked_by_its_own_name() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((32,), "int32"), B: T.Tensor((3, 32), "uint32")):
        with T.Kernel(1, threads=32):
            t = T.get_thread_binding(0)
            B[0, t] = T.match_any_sync(A[t])
            B[1, t] = T.match_all_sync(A[t])
            B[2, t] = T.ballot(A[t] > 3)

    (made,) = lower(kernel.function, "sm_80").kernels
    assert "tl_match_any" in made.text and "tl_match_all" in made.text and "tl_ballot(" in made.text


def test_every_access_of_a_gpus_threads_is_proved() -> None:
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((n, 33), "float32"), B: T.Tensor((33, 20), "float32"), C: T.Tensor((n, 20), "float32")):
        with T.Kernel(T.ceildiv(n, 16), threads=64) as bx:
            a, b = T.alloc_shared((16, 33), "float32"), T.alloc_shared((33, 20), "float32")
            c = T.alloc_fragment((16, 20), "float32")
            top = T.alloc_fragment((16,), "float32")
            T.copy(A[bx * 16, 0], a)
            T.copy(B, b)
            T.clear(c)
            T.gemm(a, b, c)
            T.reduce_max(c, top, dim=1)
            for i, j in T.Parallel(16, 20):
                c[i, j] = c[i, j] - top[i]
            T.copy(c, C[bx * 16, 0])

    lowered = run_passes(kernel.function, simt_pipeline()).kernels[0]
    accesses = [n for n in walk(lowered.body) if isinstance(n, (ir.Load, ir.Store)) and n.buffer.scope != "var"]
    assert accesses and [n for n in accesses if not n.proved] == []


@pytest.mark.parametrize("caught", [TileTypeError, KeyError])
def test_frames_of_the_package_are_left_out(caught: type[Exception], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(caught) as failed:

        @T.prim_func
        def wrong(A: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                T.gemm(A, A, A) if caught is TileTypeError else {}[A]

    show_uncaught(failed.type, failed.value, failed.tb)
    text = capfd.readouterr().err
    assert "in wrong" in text and "in test_frames" in text
    assert ("in trace_prim_func" not in text) == ("frames of tiledsl are left out" in text) == (caught is TileTypeError)


def test_architectures_with_instructions_of_their_own() -> None:
    assert {"sm_90a", "sm_100a", "sm_100f"} <= set(ARCHS) and not {"sm_89a", "sm_90f"} & set(ARCHS)


def test_prints_of_values_and_of_tiles(capfd: pytest.CaptureFixture[str]) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=32):
            s = T.alloc_local((2, 2), "int32")
            for i in T.serial(4):
                s[i // 2, i % 2] = A[i]
            print("first", A[0])
            T.print(s, "all")

    run(kernel.function, [np.array([7, 2, 3, 4], np.int32)])
    assert "first 7" in capfd.readouterr().out
    (made,) = lower(kernel.function, "sm_80").kernels
    assert made.text.count("tl_report") == 2


def test_copies_in_pieces_go_along_rows() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((16, 16), "float32"), B: T.Tensor((16, 16), "float32")):
        with T.Kernel(1, threads=32):
            s = T.alloc_shared((16, 16), "float32")
            for i, j in T.Parallel(16, 16):
                s[i, j] = A[15 - i, j]
            for i, j in T.Parallel(16, 16):
                s[i, j] = A[15 - j, j]
            for i, j in T.Parallel(16, 16):
                B[i, j] = s[j, i]

    nests = [n for n in walk(kernel.function.kernels[0]) if isinstance(n, ir.Parallel)]
    assert [copied_rows(n) is not None for n in nests] == [True, False, False]


@pytest.mark.parametrize("lead", [(), (1,), (1, 1)])
def test_panels_with_axes_in_front(lead: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((5, 7)), rng.standard_normal((7, 20)), np.zeros((5, 20))
    panels = np.zeros((2, 7, 16))
    panels[0], panels[1, :, :4] = b[:, :16], b[:, 16:]
    MICRO["gemm"]([c], [a, panels.reshape(*lead, 2, 7, 16)], (5, 20, 7), {"NR": 16}, False)
    np.testing.assert_allclose(c, a @ b)


def test_fragments_that_no_registers_hold_are_shared() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((48, 1024), "float32"), B: T.Tensor((48, 1024), "float32")):
        with T.Kernel(1, threads=32):
            x = T.alloc_fragment((48, 1024), "float32")
            T.copy(A, x)
            for i, j in T.Parallel(48, 1024):
                x[i, j] = x[i, j] * 2
            T.copy(x, B)

    (made,) = lower(kernel.function, "sm_90").kernels
    assert made.shared_bytes == 48 * 1024 * 4


def test_a_column_of_a_reduction_lies_with_its_rows() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((16, 32), "float32"), B: T.Tensor((16,), "float32")):
        with T.Kernel(1, threads=64):
            x, top = T.alloc_fragment((16, 32), "float32"), T.alloc_fragment((16,), "float32")
            T.copy(A, x)
            T.reduce_max(x, top, dim=1)
            T.copy(top, B)

    (made,) = lower(kernel.function, "sm_90").kernels
    assert made.shared_bytes == 0
    A = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    assert (at_every_stage(kernel, A, np.zeros(16, np.float32))[1] == A.max(1)).all()


def test_functions_take_as_many_numbers_as_numpys() -> None:
    known = {n: f for n in INTRINSICS if isinstance(f := getattr(np, n, None), np.ufunc)}
    assert {"exp", "log", "sin"} <= set(known)
    assert {n: INTRINSICS[n].arity for n in known} == {n: f.nin for n, f in known.items()}
