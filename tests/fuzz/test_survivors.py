"""Mistakes that tests/mutation planted and no test noticed; now these do."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import config, ir
from tiledsl.analysis.bounds import Facts
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.frontend.reader import from_text
from tiledsl.ir import build
from tiledsl.ir.equal import equal
from tiledsl.ir.operations import OPERATIONS
from tiledsl.ir.printer import to_text
from tiledsl.passes.pipeline import run as run_passes
from tiledsl.testing import assert_targets_agree

INT32 = as_dtype("int32")


def test_the_larger_of_a_number_and_zero_divides_nothing() -> None:
    assert (T.max(3, 0), T.max(-3, 0), T.min(3, 0), T.min(-3, 0)) == (3, 0, 0, -3)


def test_branches_on_staged_constants() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "int32")):
        with T.Kernel(1):
            if T.cast(1, "int32") < 2:
                A[0] = 1
            else:
                A[1] = 1
            for i in T.Parallel(20):
                if T.cast(3, "int32") < 2:
                    A[i] = 7
                else:
                    A[i] += 2

    A = np.zeros(20, np.int32)
    assert_targets_agree(tiledsl.compile(kernel), A)
    tiledsl.compile(kernel)(A, target="numpy")
    assert A.tolist() == [3, *[2] * 19]


def test_the_right_side_of_or_guards_its_load() -> None:
    """A load on the right of `or` happens where the left side does not hold."""

    @T.prim_func
    def kernel(I: T.Tensor((20,), "int32"), A: T.Tensor((8,), "float32"), B: T.Tensor((20,), "bool")):
        with T.Kernel(1):
            s = T.alloc_shared((8,), "float32")
            T.copy(A, s)
            for i in T.Parallel(20):
                x = I[i]
                B[i] = x < 0 or x > 7 or s[T.max(T.min(x, 7), 0)] > 0 or A[x - 4] > 1

    rng = np.random.default_rng(0)
    I = rng.integers(-20, 20, 20).astype(np.int32)
    assert_targets_agree(tiledsl.compile(kernel), I, rng.standard_normal(8).astype(np.float32), np.zeros(20, bool))


def test_a_sum_wraps_before_it_is_used() -> None:
    """Scalars are held in 64 bits; what leaves the author's type wraps before the next operation sees it."""

    @T.prim_func
    def kernel(X: T.Tensor((9,), "int32"), Y: T.Tensor((9,), "int32"), B: T.Tensor((4, 9), "int32")):
        with T.Kernel(1):
            for i in T.serial(9):
                B[0, i] = (X[i] + Y[i]) // 3
                B[1, i] = T.cast(X[i] * Y[i] > 0, "int32")
                B[2, i] = T.cast(T.float32(X[i] - Y[i]) * 1e-3, "int32")
                B[3, i] = (X[i] + Y[i]) >> 4

    X = np.array([2**31 - 1, -(2**31), 65536, 5, 2**30, -7, 1 << 20, -(2**31), 0], np.int32)
    Y = np.array([5, -1, 65536, -9, 2**30, 3, 1 << 12, 2**31 - 1, 1], np.int32)
    assert_targets_agree(tiledsl.compile(kernel), X, Y, np.zeros((4, 9), np.int32))


def test_a_store_to_a_variable_under_a_mask_leaves_the_other_lanes() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((37,), "float32"), B: T.Tensor((37,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(37):
                v = T.alloc_var("float32", 2.0)
                if A[i] > 0:
                    v = A[i]
                B[i] = v * A[i]

    A = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    assert_targets_agree(tiledsl.compile(kernel), A, np.zeros(37, np.float32))


def test_gemm_forgets_what_was_there_with_clear_accum() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((17, 9), "float32"), B: T.Tensor((9, 21), "float32"), C: T.Tensor((17, 21), "float32")):
        with T.Kernel(1):
            a = T.alloc_shared((17, 9), "float32")
            b = T.alloc_shared((9, 21), "float32")
            c = T.alloc_fragment((17, 21), "float32")
            T.copy(A, a)
            T.copy(B, b)
            T.fill(c, 5.0)
            T.gemm(a, b, c, clear_accum=True)
            T.copy(c, C)

    A, B, C = np.ones((17, 9), np.float32), np.ones((9, 21), np.float32), np.zeros((17, 21), np.float32)
    assert_targets_agree(tiledsl.compile(kernel), A, B, C)
    tiledsl.compile(kernel)(A, B, C, target="numpy")
    assert (C == 9).all()


def test_an_operand_that_the_kernel_writes_is_not_packed_before_it() -> None:
    """Two blocks along bx use each tile of B, as packing in advance asks for, but the kernel writes B first."""

    @T.prim_func
    def kernel(A: T.Tensor((32, 16), "float32"), B: T.Tensor((16, 16), "float32"), C: T.Tensor((32, 16), "float32")):
        with T.Kernel(2) as bx:
            a = T.alloc_shared((16, 16), "float32")
            b = T.alloc_shared((16, 16), "float32")
            c = T.alloc_fragment((16, 16), "float32")
            for i, j in T.Parallel(16, 16):
                B[i, j] = 3.0
            T.copy(A[bx * 16, 0], a)
            T.copy(B, b)
            T.gemm(a, b, c, clear_accum=True)
            T.copy(c, C[bx * 16, 0])

    A = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    assert_targets_agree(tiledsl.compile(kernel), A, np.zeros((16, 16), np.float32), np.zeros((32, 16), np.float32))


def test_arrays_that_differ_only_in_strides() -> None:
    """A plan made for some strides is not used for others, nor one for apart arguments when they overlap."""
    n, s = T.dynamic("n, s")

    @T.prim_func
    def kernel(A: T.StridedTensor((n,), (s,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 16)) as bx:
            for i in T.Parallel(16):
                B[bx * 16 + i] = A[bx * 16 + i] + 1

    compiled = tiledsl.compile(kernel)
    data = np.arange(200, dtype=np.float32)
    for target in ("numpy", "numba"):
        for step in (2, 3, 5):
            B = np.zeros(37, np.float32)
            compiled(data[: 37 * step : step], B, target=target)
            np.testing.assert_array_equal(B, np.arange(37, dtype=np.float32) * step + 1)


def test_overlapping_arguments_after_apart_ones() -> None:
    """An operand that is packed in advance where arguments lie apart, and must not be where they overlap."""

    @T.prim_func
    def kernel(A: T.Tensor((16, 16), "float32"), B: T.Tensor((16, 16), "float32"), C: T.Tensor((16, 16), "float32")):
        with T.Kernel(2) as bx:
            a = T.alloc_shared((16, 16), "float32")
            b = T.alloc_shared((16, 16), "float32")
            c = T.alloc_fragment((16, 16), "float32")
            if bx == 0:
                for i, j in T.Parallel(16, 16):
                    C[i, j] = 3.0
                T.copy(A, a)
                T.copy(B, b)
                T.gemm(a, b, c, clear_accum=True)
                T.copy(c, C)

    A, B = np.ones((16, 16), np.float32), np.ones((16, 16), np.float32)
    for target in ("numpy:exact", "numba"):
        compiled = tiledsl.compile(kernel)
        for _ in range(2):
            apart, both = np.zeros((16, 16), np.float32), B.copy()
            compiled(A, B, apart, target=target)
            assert (apart == 16).all()
            compiled(A, both, both, target=target)
            assert (both == 48).all()
            partly = np.ones((24, 16), np.float32)
            compiled(A, partly[:16], partly[8:], target=target)
            assert (partly[8:] == 8 + 3 * 8).all()


def test_zeros_of_both_signs_are_two_options() -> None:
    @tiledsl.jit
    def fill(value):
        @T.prim_func
        def kernel(A: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                for i in T.Parallel(4):
                    A[i] = value

        return kernel

    for value in (0.0, -0.0, float("nan"), 0.0):
        A = np.ones(4, np.float32)
        fill(value)(A, target="numpy")
        np.testing.assert_array_equal(A, np.full(4, value, np.float32))
        assert value or np.signbit(A).tolist() == [bool(np.signbit(value))] * 4


def test_a_view_lives_as_long_as_its_buffer() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((12,), "float32"), B: T.Tensor((3, 4), "float32")):
        with T.Kernel(1):
            x = T.alloc_shared((12,), "float32")
            T.copy(A, x)
            views = []
            for _k in T.serial(1):
                views.append(T.reshape(x, (3, 4)))
            T.copy(views[0], B)

    assert_targets_agree(tiledsl.compile(kernel), np.arange(12, dtype=np.float32), np.zeros((3, 4), np.float32))


def test_integers_on_their_way_through_floats_are_rounded() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((5,), "uint32"), B: T.Tensor((5,), "uint32"), C: T.Tensor((5,), "uint32")):
        with T.Kernel(1):
            for i in T.Parallel(5):
                B[i] = T.cast(T.cast(A[i], "float32"), "uint32")
                C[i] = T.cast(T.cast(A[i], "int64"), "uint32")

    A = np.array([0, 7, 2**24 + 1, 2**31 + 1, 2**32 - 1], np.uint32)
    B, C = np.zeros(5, np.uint32), np.zeros(5, np.uint32)
    assert_targets_agree(tiledsl.compile(kernel), A, B, C)
    tiledsl.compile(kernel)(A, B, C, target="numpy")
    assert B.tolist() == [0, 7, 2**24, 2**31, 2**32 - 1] and C.tolist() == A.tolist()


def test_a_truncated_quotient_of_negative_numbers_is_not_the_floor() -> None:
    x, facts = ir.Var("x", INT32), Facts()
    facts.bound(x, -3, -1)
    two = build.const(2, INT32)
    assert not facts.prove(build.lt(ir.Binary("truncdiv", x, two), build.const(0, INT32)))  # -1 // 2 is 0 in C
    assert not facts.prove(build.ge(ir.Binary("truncmod", x, two), build.const(0, INT32)))
    assert facts.prove(build.lt(ir.Binary("floordiv", x, two), build.const(0, INT32)))


def test_a_symbol_found_last_gives_the_ones_before_it() -> None:
    n, m = T.dynamic("n, m")

    @T.prim_func
    def kernel(A: T.Tensor((n * m,), "float32"), B: T.Tensor((2 * n,), "float32"), C: T.Tensor((2,), "int32")):
        with T.Kernel(1) as bx:
            C[bx] = m
            C[bx + 1] = n

    C = np.zeros(2, np.int32)
    tiledsl.compile(kernel)(np.zeros(15, np.float32), np.zeros(6, np.float32), C, target="numpy")
    assert C.tolist() == [5, 3]


def test_a_uniform_exit_under_a_condition_per_lane() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((37,), "float32"), B: T.Tensor((37,), "int32"), n: T.int32):
        with T.Kernel(1):
            for i in T.Parallel(37):
                for k in T.serial(4):
                    if A[i] > 0:
                        if n > 2:
                            break
                    B[i] += k + 1

    A = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    for n in (1, 3):
        assert_targets_agree(tiledsl.compile(kernel), A, np.zeros(37, np.int32), n)


def test_another_version_of_a_backend_does_not_find_the_code_of_this_one(tmp_path, monkeypatch) -> None:
    from tiledsl.backend import load_backend

    def kernel(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                A[i] = A[i] + 1

    backend = load_backend("numba")
    emitted = []
    emit = type(backend).emit
    monkeypatch.setattr(type(backend), "emit", lambda *args: emitted.append(1) or emit(*args))
    with config.CACHE_DIR.override(str(tmp_path / "cache")):
        for version in ("one", "one", "two"):
            monkeypatch.setattr(type(backend), "version", lambda self, target, v=version: v)
            tiledsl.compile(T.prim_func(kernel))(np.zeros(4, np.float32), target="numba")
    assert len(emitted) == 2


def _packed_twice(change: bool, rows: int = 32) -> Any:
    """Two blocks that multiply with one tile; with `change`, one that is no longer what was copied."""

    @T.prim_func
    def kernel(
        A: T.Tensor((2 * rows, 16), "float32"), B: T.Tensor((16, 16), "float32"), C: T.Tensor((2 * rows, 16), "float32")
    ):
        with T.Kernel(2) as bx:
            a = T.alloc_shared((rows, 16), "float32")
            b = T.alloc_shared((16, 16), "float32")
            c = T.alloc_fragment((rows, 16), "float32")
            T.clear(c)
            T.copy(A[bx * rows, 0], a)
            T.copy(B, b)
            if change:
                T.fill(b, 2.0)
            T.gemm(a, b, c)
            T.copy(c, C[bx * rows, 0])

    return kernel


def test_operands_that_blocks_share_are_packed_once() -> None:
    from tiledsl.backends.cpu.hoist import HoistPacks

    function = HoistPacks()(_packed_twice(False).function)
    assert len(function.kernels) == 2 and len(function.workspaces) == 1
    assert len(HoistPacks()(function.replace(attrs=(("aliased", True),))).kernels) == 2  # no further ones
    assert len(HoistPacks()(_packed_twice(False).function.replace(attrs=(("aliased", True),))).kernels) == 1


def test_a_tile_filled_after_its_copy_is_not_the_packed_one() -> None:
    """Packed once per launch, or (few rows) read in place."""
    for rows, change in ((32, False), (32, True), (16, False), (16, True)):
        A = np.random.default_rng(0).standard_normal((2 * rows, 16)).astype(np.float32)
        C = np.zeros((2 * rows, 16), np.float32)
        assert_targets_agree(tiledsl.compile(_packed_twice(change, rows)), A, np.ones((16, 16), np.float32), C)


def test_a_transposed_left_operand_inside_a_larger_buffer() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((2, 9, 17), "float32"), B: T.Tensor((9, 21), "float32"), C: T.Tensor((17, 21), "float32")):
        with T.Kernel(1):
            a = T.alloc_shared((2, 9, 17), "float32")
            b = T.alloc_shared((9, 21), "float32")
            c = T.alloc_fragment((17, 21), "float32")
            T.copy(A, a)
            T.copy(B, b)
            T.clear(c)
            for k in T.serial(2):
                T.gemm(a[k, :, :], b, c, transpose_A=True)
            T.copy(c, C)

    rng = np.random.default_rng(0)
    A, B = (rng.standard_normal(s).astype(np.float32) for s in ((2, 9, 17), (9, 21)))
    assert_targets_agree(tiledsl.compile(kernel), A, B, np.zeros((17, 21), np.float32))


def test_shifts_of_outcomes_are_shifts_of_integers() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "float32"), B: T.Tensor((2, 20), "int32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                B[0, i] = (A[i] > 0) << 2
                B[1, i] = T.cast((A[i] > 0) ^ (A[i] > 1), "int32")

    A, B = np.linspace(-2, 2, 20, dtype=np.float32), np.zeros((2, 20), np.int32)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    tiledsl.compile(kernel)(A, B, target="numpy")
    assert B.tolist() == [((A > 0) * 4).tolist(), ((A > 0) & (A <= 1)).astype(int).tolist()]


def test_a_box_that_starts_below_zero_is_the_authors_error() -> None:
    @T.prim_func
    def kernel(I: T.Tensor((1,), "int32"), B: T.Tensor((4,), "float32")):
        with T.Kernel(1) as bx:
            x = T.alloc_fragment((8, 4), "float32")
            r = T.alloc_fragment((4,), "float32")
            T.fill(x, 1.0)
            k = I[bx]
            T.reduce_sum(x[k : k + 4, :], r, dim=0)
            T.copy(r, B)

    for start, fine in ((0, True), (4, True), (-1, False), (5, False)):
        B = np.zeros(4, np.float32)
        if fine:
            tiledsl.compile(kernel)(np.array([start], np.int32), B, target="numpy")
            assert B.tolist() == [4] * 4
        else:
            with pytest.raises(TileError, match="out of range"):
                tiledsl.compile(kernel)(np.array([start], np.int32), B, target="numpy")


def test_float8_has_no_operator_that_floats_lack() -> None:
    from tiledsl.ir import arithmetic

    e4m3 = as_dtype("float8_e4m3fn")
    assert (
        arithmetic.binary("shl", e4m3, True) is None and arithmetic.binary("bitxor", as_dtype("float32"), True) is None
    )
    assert arithmetic.binary("add", e4m3, True) is not None


def test_bounds_of_products_choices_and_extremes() -> None:
    x, y, c = ir.Var("x", INT32), ir.Var("y", INT32), ir.Var("c", as_dtype("bool"))
    facts = Facts()
    facts.bound(x, 0, 10)
    facts.bound(y, 0, 10)
    product = build.mul(build.mul(x, 2), build.mul(y, 3))
    assert facts.interval(product) == (0, 600)
    assert not facts.prove(build.lt(product, 501)) and facts.prove(build.le(product, 600))
    choice = ir.IfThenElse(c, x, y)
    assert facts.prove(build.le(choice, 10)) and not facts.prove(build.ge(choice, 5))
    facts.assume(build.ge(choice, 5))
    assert facts.prove(build.ge(build.mul(choice, 2), 9)) and not facts.prove(build.ge(choice, 6))
    larger, smaller = ir.Binary("max", x, y), ir.Binary("min", x, y)
    assert facts.interval(larger) == facts.interval(smaller) == (0, 10)
    facts.assume(build.le(x, 3))
    assert facts.prove(build.le(smaller, 3)) and not facts.prove(build.le(larger, 9))
    facts.assume(build.le(y, 4))
    facts.assume(build.ge(y, 2))
    assert facts.prove(build.le(larger, 4)) and facts.prove(build.ge(larger, 2))
    assert not facts.prove(build.le(larger, 3)) and not facts.prove(build.ge(larger, 3))


def test_meanings_of_empty_rows() -> None:
    empty = np.zeros((2, 0))
    found = {n: OPERATIONS[f"reduce_{n}"].real(empty).tolist() for n in ("sum", "abssum", "max", "min", "absmax")}
    inf = float("inf")
    assert found == {"sum": [0] * 2, "abssum": [0] * 2, "max": [-inf] * 2, "min": [inf] * 2, "absmax": [0] * 2}


def test_an_argument_that_is_not_there_gives_no_sizes() -> None:
    @tiledsl.jit
    def kernel(A, B):
        N = T.const("N")
        A: T.Tensor[(N,), T.float32]
        B: T.Tensor[(4,), T.float32]
        with T.Kernel(1):
            for i in T.Parallel(4):
                B[i] = N

    with pytest.raises(TileError):
        kernel(None, np.zeros(4, np.float32), target="numpy")
    B = np.zeros(4, np.float32)
    kernel(np.zeros(7, np.float32), B, target="numpy")
    assert B.tolist() == [7] * 4


def test_only_raw_is_raw() -> None:
    lowered = run_passes(_packed_twice(False).function, cpu_pipeline())
    text = to_text(lowered)
    assert ".raw[" in text and equal(lowered, from_text(text), hints=True)
    with pytest.raises(TileError):
        from_text(text.replace(".raw[", ".cooked["))
