"""Bugs that generated kernels found, each as the smallest kernel that shows it."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.errors import TileError
from tiledsl.frontend.reader import from_text
from tiledsl.interp import Options, run
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.passes import ExpandMoves
from tiledsl.passes.fold import Fold
from tiledsl.passes.instruments import Verify
from tiledsl.passes.pipeline import run as run_passes
from tiledsl.testing import assert_targets_agree
from tiledsl.testing.strategies import Program


def agree(kernel: Any, *args: Any) -> None:
    """Every target gives the exact interpreter's bits, and so does the lowered kernel, which is a legal one."""
    assert_targets_agree(kernel if isinstance(kernel, tiledsl.JITKernel) else tiledsl.compile(kernel), *args)
    copies = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    want = [a.copy() if isinstance(a, np.ndarray) else a for a in args]
    lowered = run_passes(kernel.function, cpu_pipeline(), [Verify()])
    run(lowered, copies, Options(exact=True))
    run(kernel.function, want, Options(exact=True))
    for a, b in zip(copies, want, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("src", "dst"),
    [("int32", "int16"), ("int32", "int8"), ("int16", "int8"), ("float32", "bfloat16"), ("int64", "int32")],
)
def test_a_tail_of_one_narrow_element_leaves_its_neighbours(src: str, dst: str) -> None:
    """LLVM stored the single lane of the tail without truncating it, over the elements beside it."""
    kinds = {"bfloat16": ml_dtypes.bfloat16}

    def kernel(A: T.Tensor((4, 17), src), B: T.Tensor((4, 40), dst)):
        with T.Kernel(1):
            for i, j in T.Parallel(4, 17):
                B[i, j] = A[i, j]

    A = np.full((4, 17), 3, src)
    agree(T.prim_func(kernel), A, np.full((4, 40), 1, kinds.get(dst, dst)))


def test_a_variable_of_an_iteration_is_not_invariant() -> None:
    @T.prim_func
    def kernel(s: T.float32, A: T.Tensor((33, 4), "float32"), B: T.Tensor((33, 4), "float32")):
        with T.Kernel(1):
            for i, j in T.Parallel(33, 4):
                v = T.alloc_var("float32", s + A[i, j])
                B[i, j] = T.max(v, s) * A[i, j]

    agree(
        kernel, 0.5, np.random.default_rng(0).standard_normal((33, 4)).astype(np.float32), np.zeros((33, 4), np.float32)
    )


def test_a_uniform_element_under_a_mask_is_no_array_in_the_checked_mode() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((8,), "float32"), B: T.Tensor((8,), "int32")):
        with T.Kernel(1) as bx:
            for i in T.Parallel(8):
                if A[i] > 0:
                    B[i] = T.cast(A[bx], "int32") if A[bx + 1] > 0 else 7

    A, B = np.array([3, -1, 2, 5, -2, 0, 1, 4], np.float32), np.zeros(8, np.int32)
    run(kernel.function, [A, B], Options.checked())
    assert B.tolist() == [7, 0, 7, 7, 0, 0, 7, 7]


def test_choices_inside_one_anothers_conditions_end() -> None:
    """A gather's guard led the bounds prover back to the choice it came from."""
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.Tensor((5,), "float32"), I: T.Tensor((n, 132), "int64"), B: T.Tensor((n, 20), "float16")):
        with T.Kernel(T.ceildiv(n, 33)) as bx:
            for i, j in T.Parallel(32, 6):
                r = bx * 31
                inner = I[r + (I[r + j, I[r + (I[r + 30, bx] % 31), bx] % 48] % 31), bx]
                B[bx * 33 + i, j] = T.bfloat16(I[r, I[r + (I[r, 47 - bx] % 31), T.min(T.max(inner, 0), 47)] % 48])

    I = np.random.default_rng(0).integers(-4, 60, (40, 132))
    agree(kernel, np.zeros(5, np.float32), I, np.zeros((40, 20), np.float16))


@pytest.mark.parametrize("dtype", ["uint32", "uint64"])
def test_a_box_that_starts_near_the_end_of_an_unsigned_type_is_out_of_range(dtype: str) -> None:
    """start + step wrapped to 0, into range."""

    @T.prim_func
    def kernel(P: T.Tensor((1,), dtype), A: T.Tensor((8,), "float32"), B: T.Tensor((8,), "float32")):
        with T.Kernel(1) as bx:
            x = T.alloc_shared((8,), "float32")
            T.copy(A[P[bx]], x)
            T.copy(x, B)

    P, A = np.array([2 ** np.iinfo(dtype).bits - 3], dtype), np.arange(8, dtype=np.float32) + 1
    want, got = np.ones(8, np.float32), np.ones(8, np.float32)
    run(kernel.function, [P, A, want])
    run(ExpandMoves()(kernel.function), [P, A, got])
    assert not want.any() and not got.any()
    agree(kernel, P, A, np.ones(8, np.float32))


def test_floats_become_python_ints_under_the_shadow() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32"), B: T.Tensor((4,), "uint64")):
        with T.Kernel(4) as bx:
            v = T.alloc_var("uint64", T.cast(A[bx], "int8"))
            B[bx] = ~v

    A, B = np.array([-3, 5, 0, -0.5], np.float32), np.zeros(4, np.uint64)
    run(kernel.function, [A, B], Options(exact=True, shadow=True))
    assert B.tolist() == [2, 2**64 - 6, 2**64 - 1, 2**64 - 1]


def test_a_loop_over_uint64() -> None:
    @T.prim_func
    def kernel(N: T.Tensor((2,), "uint64"), B: T.Tensor((2, 5), "uint64")):
        with T.Kernel(2) as bx:
            for i in T.Parallel(5):
                for k in T.serial(N[bx] % 4):
                    B[bx, i] += k + 1

    agree(kernel, np.array([2**63 + 3, 6], np.uint64), np.zeros((2, 5), np.uint64))


def test_an_outcome_stored_as_a_number_under_the_shadow() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((8,), "float32"), B: T.Tensor((8,), "int8")):
        with T.Kernel(1):
            for i in T.Parallel(8):
                x = A[i] - A[7]
                B[7 - i] = T.cast(x > -3, "uint64")

    A, B = np.arange(8, dtype=np.float32), np.zeros(8, np.int8)
    run(kernel.function, [A, B], Options(exact=True, shadow=True))
    assert B.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]


@T.macro
def halved(x, n):
    if n == 0:
        return x
    return halved(x * 0.5, n - 1)


def test_a_macro_of_the_module_that_calls_itself() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                A[i] = halved(A[i], 3)

    A = np.full(4, 8, np.float32)
    run(kernel.function, [A])
    assert A.tolist() == [1] * 4


@pytest.mark.parametrize("dtype", ["uint64", "int64", "uint32", "int32", "int8"])
def test_a_truncated_remainder_by_a_literal_keeps_its_type(dtype: str) -> None:
    """It became float64, which loses digits in the product."""

    @T.prim_func
    def kernel(A: T.Tensor((8,), dtype), F: T.Tensor((8,), "int64"), G: T.Tensor((8,), dtype)):
        with T.Kernel(1):
            for i in T.Parallel(8):
                x = T.truncmod(A[i], 3)
                F[i] = F[i] * x
                G[i] = x

    A = np.arange(8).astype(dtype) - np.array(4).astype(dtype)
    agree(kernel, A, -np.arange(8) * 4294967294, np.zeros(8, dtype))


@pytest.mark.parametrize("n", [3, 16, 37])
def test_a_sum_of_negative_zeros(n: int) -> None:
    """The interpreter started from +0 where there was more than one element per partial sum."""

    @T.prim_func
    def kernel(A: T.Tensor((4, n), "float32"), B: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            x = T.alloc_fragment((4, n), "float32")
            r = T.alloc_fragment((4,), "float32")
            T.copy(A, x)
            T.reduce_sum(x, r, dim=1)
            T.copy(r, B)

    A, B = np.full((4, n), -0.0, np.float32), np.ones(4, np.float32)
    agree(kernel, A, B)
    run(kernel.function, [A, B], Options(exact=True))
    assert np.signbit(B).all()


@pytest.mark.parametrize("dtype", ["uint64", "int64", "uint32"])
def test_a_packed_operand_that_starts_near_the_end_of_its_type_is_out_of_range(dtype: str) -> None:
    """The row number was added with wrap-around before it was compared: memory outside the tensor was read."""

    @T.prim_func
    def kernel(
        P: T.Tensor((2,), dtype), A: T.Tensor((16, 16), "float32"), B: T.Tensor((40, 16), "float32"),
        C: T.Tensor((16, 16), "float32"),
    ):  # fmt: skip
        with T.Kernel(1):
            a = T.alloc_shared((16, 16), "float32")
            b = T.alloc_shared((16, 16), "float32")
            c = T.alloc_fragment((16, 16), "float32")
            T.clear(c)
            T.copy(A, a)
            for k in T.serial(2):
                T.copy(B[P[k], 0], b)
                T.gemm(a, b, c)
            T.copy(c, C)

    most = np.iinfo(dtype).max
    A, B = np.ones((16, 16), np.float32), np.random.default_rng(0).standard_normal((40, 16)).astype(np.float32)
    for starts in ([most - 2, most - 20], [3, most]):
        agree(kernel, np.array(starts, dtype), A, B, np.ones((16, 16), np.float32))


def test_a_packing_kernel_has_thread_variables_of_its_own() -> None:
    """They were those of the kernel that it packs for: the lowered function's text read as another one."""

    @T.prim_func
    def kernel(A: T.Tensor((128, 32), "float32"), B: T.Tensor((32, 32), "float32"), C: T.Tensor((128, 32), "float32")):
        with T.Kernel(2, 4) as (bx, by):
            A_s = T.alloc_shared((32, 16), "float32")
            B_s = T.alloc_shared((16, 16), "float32")
            acc = T.alloc_fragment((32, 16), "float32")
            T.clear(acc)
            for k in T.Pipelined(2, num_stages=2):
                T.copy(A[by * 32, k * 16], A_s)
                T.copy(B[k * 16, bx * 16], B_s)
                T.gemm(A_s, B_s, acc)
            T.copy(acc, C[by * 32, bx * 16])

    lowered = run_passes(kernel.function, cpu_pipeline(), [Verify()])
    assert len(lowered.kernels) == 2
    variables = [v for k in lowered.kernels for v in k.thread_vars]
    assert len(set(variables)) == len(variables)
    text = to_text(lowered)
    assert to_text(from_text(text)) == text


def test_the_verifier_knows_half_precision_parameters() -> None:
    """A scalar parameter of a half type is only ever cast in the loop stage; the verifier took it for arithmetic."""

    @T.prim_func
    def kernel(h: T.float16, A: T.Tensor((20,), "float32"), B: T.Tensor((20,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                B[i] = h * A[i]

    agree(kernel, np.float16(0.1), np.arange(20, dtype=np.float32), np.zeros(20, np.float32))


@pytest.mark.parametrize("n", [96, 130])
def test_a_transposed_operand_of_several_panels_stays_in_range(n: int) -> None:
    """The region that a panel is transposed from was as tall as the whole tile, whatever row it started at."""

    @T.prim_func
    def kernel(A: T.Tensor((8, 32), "int8"), B: T.Tensor((n, 32), "int8"), C: T.Tensor((8, n), "int32")):
        with T.Kernel(1):
            A_s = T.alloc_shared((8, 32), "int8")
            B_s = T.alloc_shared((n, 32), "int8")
            acc = T.alloc_fragment((8, n), "int32")
            T.copy(A, A_s)
            T.copy(B, B_s)
            B_s[0, 0] = B_s[1, 1]  # not only a copy: the tile is not kept packed
            T.clear(acc)
            T.gemm(A_s, B_s, acc, transpose_B=True)
            T.copy(acc, C)

    rng = np.random.default_rng(n)
    agree(
        kernel, rng.integers(-9, 9, (8, 32), np.int8), rng.integers(-9, 9, (n, 32), np.int8), np.zeros((8, n), np.int32)
    )


def test_a_vector_of_a_register_array_is_its_first_value() -> None:
    """Partial sums of columns in several registers: each starts as a vector of 16 lanes."""

    @T.prim_func
    def kernel(A: T.Tensor((32, 7), "uint32"), B: T.Tensor((32, 1), "uint32")):
        with T.Kernel(1):
            a = T.alloc_shared((32, 7), "uint32")
            b = T.alloc_shared((32, 1), "uint32")
            T.copy(A, a)
            T.reduce_absmax(a, b, dim=-1)
            T.copy(b, B)

    agree(kernel, np.arange(224, dtype=np.uint32).reshape(32, 7), np.zeros((32, 1), np.uint32))


def test_the_shadow_of_a_function_of_a_scalar_and_a_tile() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "float32"), B: T.Tensor((20,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                B[i] = T.copysign(A[i], A[3])

    result = run(kernel.function, [np.ones(20, np.float32), np.zeros(20, np.float32)], Options(shadow=True))
    assert result.shadow["B"].max_error == 0


@pytest.mark.parametrize("wrong", ["flags", "numbers in flags", "configs", "extent", "combination", "window"])
def test_arguments_that_hostile_programs_gave(wrong: str) -> None:
    """They ended in bare errors of Python, or in an internal error of the lowering."""
    with pytest.raises(TileError) as caught:

        @T.prim_func
        def kernel(A: T.Tensor((4,), "float32"), images: T.Tensor((1, 4, 4, 4), "float32")):
            with T.Kernel(1) as bx:
                if wrong == "flags":
                    T.annotate_compile_flags(4)
                if wrong == "numbers in flags":
                    T.annotate_compile_flags([bx])
                if wrong == "combination":
                    T.comm_reducer(3, [T.float32(0)])
                if wrong == "configs":
                    T.annotate_pass_configs(bx)
                if wrong == "window":
                    T.im2col(images, T.alloc_shared((4, 4), "float32"), T, bx, 1, 1, 1, 0)
                if wrong == "extent":
                    x = T.alloc_shared((2**63,), "float32")
                    T.copy(x, A)

    assert caught.value.loc is not None and caught.value.loc.file == __file__


def test_the_shadow_saturates_where_8_bit_floats_do() -> None:
    """The bound of a saturated element was far off its value."""

    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32"), B: T.Tensor((4,), "float8_e4m3fn"), C: T.Tensor((4,), "float8_e5m2")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                B[i] = A[i] * 1.5
                C[i] = A[i] * 1.5

    a = np.array([1e30, -1e30, 1.0, 447.0], np.float32)
    outs = [np.zeros(4, d) for d in (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)]
    report = run(kernel.function, [a, *outs], Options(shadow=True)).shadow
    for name, out in (("B", outs[0]), ("C", outs[1])):
        assert (np.abs(out.astype(np.float64) - report[name].value) <= report[name].bound).all()


@pytest.mark.parametrize("left", ["T.thread_return()", "continue"])
def test_a_tile_operation_that_all_threads_have_left_out(left: str) -> None:
    """The lowering copied for threads that were gone."""
    jump = f"""
            for k in T.serial(2):
                if A[bx, tid] >= bx:
                    {left}
                T.copy(S, B[bx, 0:40])
"""
    source = f"""
import tiledsl
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor((2, 40), "int32"), B: T.Tensor((2, 40), "int32")):
    with T.Kernel(2, threads=40) as bx:
            tid = T.get_thread_binding()
            S = T.alloc_shared((40,), "int32")
            S[tid] = tid
            T.sync_threads(){jump}
kernel = tiledsl.compile(main)
"""
    A = np.stack([np.arange(40), np.arange(40) - 39]).astype(np.int32)
    B = np.full((2, 40), -1, np.int32)
    agree(Program(source, ()).kernel(), A, B)


def test_blocks_of_a_split_grid_have_variables_of_their_own() -> None:
    """The parts of a kernel around a barrier of the grid shared their block and thread variables."""

    @T.prim_func
    def kernel(A: T.Tensor((2, 32), "int32"), B: T.Tensor((2, 32), "int32")):
        with T.Kernel(2, threads=32) as bx:
            tid = T.get_thread_binding()
            A[bx, tid] += 1
            T.sync_grid()
            B[bx, tid] = A[1 - bx, tid]

    function = run_passes(kernel.function, cpu_pipeline(), ())
    assert equal(function, from_text(to_text(function)), hints=True)
    variables = [v for k in function.kernels for v in (*k.block_vars, *k.thread_vars)]
    assert len(set(variables)) == len(variables) == 4
    agree(kernel, np.arange(64, dtype=np.int32).reshape(2, 32), np.zeros((2, 32), np.int32))


def test_a_tile_is_packed_or_not_whatever_folds_away() -> None:
    """The copy was left whole for a gemm that a later fold took away: the lowering did not know the copy."""

    @T.prim_func
    def kernel(A: T.Tensor((40, 40), "float16"), B: T.Tensor((40, 40), "float32")):
        with T.Kernel(1):
            L, R = T.alloc_shared((40, 40), "float16"), T.alloc_shared((40, 40), "float16")
            C = T.alloc_fragment((40, 40), "float32")
            T.fill(C, 3)
            T.copy(A, L)
            for _ in T.serial(2):
                T.copy(A, R)
                if T.cast(0, "bool"):
                    T.gemm(L, R, C)
            T.copy(C, B)

    folds = [k for k, p in enumerate(cpu_pipeline()) if isinstance(p, Fold)]
    assert len(folds) == 2
    A = np.ones((40, 40), np.float16)
    for left_out in folds:
        rest = [p for k, p in enumerate(cpu_pipeline()) if k != left_out]
        B = np.zeros((40, 40), np.float32)
        run(run_passes(kernel.function, rest, [Verify()]), [A, B], Options(exact=True))
        assert (B == 3).all()


def test_what_is_made_behind_a_certain_break_has_a_name() -> None:
    """A variable made there was said to belong to another kernel."""

    @T.prim_func
    def kernel(A: T.Tensor((8,), "int32")):
        with T.Kernel(1):
            for k in T.serial(3):
                A[k] = 5
                if 2 > 1:
                    break
                n = T.alloc_var("int32", 2)
                x = k + n
                while n > 0:
                    n -= 1
                    A[k] = x

    A = np.zeros(8, np.int32)
    agree(kernel, A)
    tiledsl.compile(kernel)(A, target="numpy")
    assert A.tolist() == [5, 0, 0, 0, 0, 0, 0, 0]


def test_a_word_that_is_certainly_not_loaded_is_zero() -> None:
    """The hostile edits drew a predicate of 0: the lanes were Python numbers."""

    @T.prim_func
    def main(A: T.Tensor((4,), "int32"), B: T.Tensor((2,), "uint32")):
        with T.Kernel(1):
            x = T.ldg64(A[0], 0)
            B[0] = x[0] + T.uint32(1)
            B[1] = x[1]

    agree(main, np.arange(4, dtype=np.int32) + 5, np.full(2, 7, np.uint32))
    out = np.full(2, 7, np.uint32)
    tiledsl.compile(main)(np.arange(4, dtype=np.int32) + 5, out)
    assert out.tolist() == [1, 0]


@pytest.mark.parametrize("given", [("int32", 0), (len,)])
def test_the_type_of_values_is_no_function(given: tuple[Any, ...]) -> None:
    """The hostile edits called T.PrimExpr, also as a decorator."""
    with pytest.raises(TileError, match="for annotations"):
        T.PrimExpr(*given)


@T.macro
def outer_names_itself(x):
    """A function inside, which is never called, mentions the macro's own name."""

    def later():
        return outer_names_itself

    x[0] = 1.0


def test_a_macro_that_a_function_inside_it_names() -> None:
    """The hostile edits put a kernel that calls a macro into that macro."""

    @T.prim_func
    def main(A: T.Tensor((1,), "float32")):
        with T.Kernel(1):
            outer_names_itself(A)

    agree(main, np.zeros(1, np.float32))


@pytest.mark.parametrize("of", ["A", "A[bx]", "x", "A[0:2]"])
def test_a_name_with_an_underscore_is_no_attribute(of: str) -> None:
    """The hostile edits asked a tile for .__pow, which is a name of T: a bare AttributeError."""
    with pytest.raises(TileError, match="has no member .__pow") as caught:

        @T.prim_func
        def kernel(A: T.Tensor((4,), "float32")):
            with T.Kernel(1) as bx:
                x = T.alloc_var("float32", 0)
                things = {"A": A, "A[bx]": A[bx], "x": x, "A[0:2]": A[0:2]}
                getattr(things[of], "__pow")

    assert caught.value.loc is not None and caught.value.loc.file == __file__
