# ruff: noqa: E501  (one case, one line)
"""The surface: promotion and narrow integers, copies of all kinds, reductions, views, eager kernels."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tiledsl.language as T
from tiledsl import ir
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileAttributeError, TileError, TileNotImplementedError
from tiledsl.frontend import ArgInfo, EagerTemplate, PrimFunc
from tiledsl.frontend.reader import from_text
from tiledsl.frontend.values import Value
from tiledsl.interp import run
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import verify
from tiledsl.ir.walk import walk
from tiledsl.language.missing import HARDWARE, MISSING

# mypy: disable-error-code="no-untyped-def,valid-type,misc"


def value(dtype: Any) -> Value:
    return Value(ir.Var("x", as_dtype(dtype)))


def execute(kernel: PrimFunc, *args: Any) -> Any:
    verify(kernel.function)
    assert equal(from_text(to_text(kernel.function)), kernel.function)
    run(kernel.function, args)
    return args[-1]


# -- promotion --------------------------------------------------------------------------------------------

PROMOTION = [
    ("int32", "float16", "float16"),
    ("int64", "bfloat16", "bfloat16"),
    ("float16", "float32", "float32"),
    ("float16", "bfloat16", "float16"),
    ("float32", "float64", "float64"),
    ("int8", "int32", "int32"),
    ("int32", "uint32", "uint32"),
    ("uint8", "int8", "uint8"),
    ("int64", "uint32", "int64"),
    ("bool", "int8", "int8"),
    ("bool", "float16", "float16"),
    ("int8", 1, "int32"),
    ("uint8", 300, "int32"),
    ("uint32", 1, "uint32"),
    ("uint32", 1 << 31, "uint32"),
    ("int32", 1 << 31, "int64"),
    ("int64", 1, "int64"),
    ("float16", 1, "float16"),
    ("bfloat16", 2, "bfloat16"),
    ("bfloat16", 1.5, "float32"),
    ("float64", 1.5, "float64"),
    ("int64", 1.5, "float32"),
    ("int32", True, "int32"),
    ("float32", True, "float32"),
]


@pytest.mark.parametrize(("a", "b", "expected"), PROMOTION)
def test_promotion(a: str, b: Any, expected: str) -> None:
    x = value(a)
    y = value(b) if isinstance(b, str) else b
    for result in (x + y, y + x, T.max(x, y), x * y):
        assert result.dtype == expected
        assert result.expr.dtype.bits >= min(32, as_dtype(expected).bits) or result.dtype.is_float
    assert T.if_then_else(value("bool"), x, y).dtype == expected
    compared = x < y
    assert compared.dtype == "bool" and compared.expr.a.dtype is compared.expr.b.dtype


@pytest.mark.parametrize("op", ["and", "or", "xor", "lshift", "rshift"])
def test_bitwise_literals_keep_the_dtype(op: str) -> None:
    import operator

    fn = getattr(operator, op + "_" if op in ("and", "or") else op)
    for dtype in ("int8", "uint16", "int32", "uint64"):
        assert fn(value(dtype), 1).dtype == dtype
    assert fn(value("int8"), value("int32")).dtype == "int32"


def test_literals_are_exact_or_cast() -> None:
    assert (value("float16") * 0.5).dtype == "float32"
    assert (value("float64") * 0.1).expr.b == ir.Const(0.1, as_dtype("float64"))
    assert (value("float32") * 0.1).expr.b == ir.Const(float(np.float32(0.1)), as_dtype("float32"))
    huge = (value("float16") + 70000).expr.b
    assert isinstance(huge, ir.Cast) and huge.x == ir.Const(70000, as_dtype("int32"))
    assert (value("uint32") + -1).expr.b == ir.Cast(ir.Const(-1, as_dtype("int32")), as_dtype("uint32"))
    assert (value("int32") + np.int64(3)).dtype == "int32"


def test_python_numbers_stay_python_numbers() -> None:
    assert T.ceildiv(1000, 64) == 16 and T.max(3, 4) == 4 and T.min(3, 4.5) == 3 and T.clamp(9, 0, 4) == 4
    assert (T.floordiv(-7, 2), T.floormod(-7, 2), T.truncdiv(-7, 2), T.truncmod(-7, 2)) == (-4, 1, -3, -1)
    assert T.if_then_else(False, 1, 2) == 2 and T.abs(-3) == 3 and T.shift_left(1, 4) == 16


def scalar_kernel(dtype: DType, out: DType, compute: Any) -> PrimFunc:
    @T.prim_func
    def kernel(A: T.Tensor((16,), dtype), B: T.Tensor((16,), dtype), C: T.Tensor((16,), out)):
        with T.Kernel(1):
            for i in T.Parallel(16):
                C[i] = compute(A[i], B[i])

    return kernel


def test_narrow_integers_are_computed_wide_and_wrap_when_kept() -> None:
    a = np.arange(16, dtype=np.int8) * 8 - 60
    b = np.full(16, 100, np.int8)
    wide = a.astype(np.int32) + b
    kernel = scalar_kernel(T.int8, T.int8, lambda x, y: x + y)
    np.testing.assert_array_equal(execute(kernel, a, b, np.zeros(16, np.int8)), wide.astype(np.int8))
    kernel = scalar_kernel(T.int8, T.int32, lambda x, y: T.int32(x + y))
    np.testing.assert_array_equal(execute(kernel, a, b, np.zeros(16, np.int32)), wide)
    kernel = scalar_kernel(T.int8, T.bool, lambda x, y: x + y > 120)
    np.testing.assert_array_equal(execute(kernel, a, b, np.zeros(16, np.bool_)), wide > 120)
    u = np.arange(16, dtype=np.uint16) * 4001
    kernel = scalar_kernel(T.uint16, T.uint32, lambda x, y: T.cast(x << 20, T.uint32))
    np.testing.assert_array_equal(execute(kernel, u, u, np.zeros(16, np.uint32)), u.astype(np.uint32) << 20)
    kernel = scalar_kernel(T.uint16, T.float16, lambda x, y: T.reinterpret(x + y, T.float16))
    got = execute(kernel, u, u, np.zeros(16, np.float16)).view(np.uint16)
    np.testing.assert_array_equal(got, u + u)


def test_a_let_wraps() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((2,), T.uint8), C: T.Tensor((2,), T.int32)):
        with T.Kernel(1):
            x = A[0] + A[1]
            C[0] = x
            C[1] = A[0] + A[1]

    got = execute(kernel, np.array([200, 100], np.uint8), np.zeros(2, np.int32))
    assert got.tolist() == [44, 300]


MATH = {
    "sqrt": (lambda x: T.sqrt(x), np.sqrt),
    "floor": (lambda x: T.floor(x), np.floor),
    "ceil": (lambda x: T.ceil(x), np.ceil),
    "trunc": (lambda x: T.trunc(x), np.trunc),
    "round": (lambda x: T.round(x), np.rint),
    "abs": (lambda x: T.abs(x - 4), lambda x: np.abs(x - 4)),
    "clamp": (lambda x: T.clamp(x, 2.0, 3), lambda x: np.clip(x, 2, 3)),
    "isnan": (lambda x: T.if_then_else(T.isnan(x), 1.0, 0.0), lambda x: np.isnan(x).astype(np.float32)),
    "fma": (lambda x: T.fma(x, x, 1.0), lambda x: np.float32(x.astype(np.float64) * x + 1)),
    "select": (lambda x: T.Select(x > 2, x, -x), lambda x: np.where(x > 2, x, -x)),
    "cast": (lambda x: T.Cast("float32", T.cast(x, "int32")), lambda x: x.astype(np.int32).astype(np.float32)),
    "reinterpret": (
        lambda x: T.reinterpret(T.reinterpret(x, T.uint32) ^ 0x80000000, T.float32), lambda x: -x,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MATH)
def test_exact_functions(name: str) -> None:
    ours, theirs = MATH[name]
    x = np.linspace(0.1, 7.7, 16, dtype=np.float32)
    kernel = scalar_kernel(T.float32, T.float32, lambda a, _: ours(a))
    np.testing.assert_array_equal(execute(kernel, x, x, np.zeros(16, np.float32)), theirs(x))


@pytest.mark.parametrize("name", ["exp2", "exp", "log2", "log", "rsqrt", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "bfloat16"])
def test_math_functions(name: str, dtype: str) -> None:
    theirs = {"rsqrt": lambda x: 1 / np.sqrt(x), "sigmoid": lambda x: 1 / (1 + np.exp(-x))}.get(name) or getattr(
        np, name
    )
    kind = as_dtype(dtype)
    x = np.linspace(0.3, 5, 16).astype(kind.numpy)
    kernel = scalar_kernel(kind, kind, lambda a, _: getattr(T, name)(a))
    got = execute(kernel, x, x, np.zeros(16, kind.numpy)).astype(np.float64)
    ulp = float(ml_dtypes.finfo(kind.numpy).eps)
    np.testing.assert_allclose(got, theirs(x.astype(np.float64)), rtol=4 * ulp, atol=ulp)


def test_limits() -> None:
    assert T.infinity("float16").expr == ir.Const(float("inf"), as_dtype("float16"))
    assert T.max_value("bfloat16").expr.value == float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)
    assert (T.min_value("int8").expr.value, T.max_value("uint8").expr.value) == (-128, 255)
    assert T.max_value("float8_e4m3fn").expr.value == 448 and T.max_value("float4_e2m1fn").expr.value == 6


# -- copies -----------------------------------------------------------------------------------------------

G = np.arange(3 * 10 * 12, dtype=np.float32).reshape(3, 10, 12) + 1


def copy_kernel(shape: tuple[int, ...], body: Any, scope: str = "shared") -> PrimFunc:
    alloc = {"shared": T.alloc_shared, "fragment": T.alloc_fragment}[scope]

    @T.prim_func
    def kernel(A: T.Tensor(G.shape, T.float32), C: T.Tensor(shape, T.float32)):
        with T.Kernel(1) as bx:
            tile = alloc(shape, T.float32)
            T.fill(tile, -1.0)
            body(A, tile, bx)
            T.copy(tile, C)

    return kernel


def padded(a: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.zeros(shape, np.float32)
    out[tuple(slice(0, n) for n in a.shape)] = a
    return out


COPIES: dict[str, tuple[tuple[int, ...], Any, np.ndarray]] = {
    "head address": ((4, 5), lambda A, t, b: T.copy(A[b + 1, 2, 3], t), G[1, 2:6, 3:8]),
    "head address, rank 3": ((1, 4, 5), lambda A, t, b: T.copy(A[b + 1, 2, 3], t), G[1:2, 2:6, 3:8]),
    "slices": ((4, 5), lambda A, t, b: T.copy(A[2, 2:6, 3:8], t), G[2, 2:6, 3:8]),
    "slices with run-time starts": ((4, 5), lambda A, t, b: T.copy(A[2, b + 2 : b + 6, b * 5 : (b * 5) + 5], t), G[2, 2:6, 0:5]),
    "a column": ((10,), lambda A, t, b: T.copy(A[1, :, 3], t), G[1, :, 3]),
    "the whole": ((3, 10, 12), lambda A, t, b: T.copy(A, t), G),
    "into a slice": ((4, 6), lambda A, t, b: T.copy(A[0, 0:2, 0:3], t[1:3, 2:5]), np.pad(G[0, 0:2, 0:3], ((1, 1), (2, 1)), constant_values=-1)),
    "into a corner": ((4, 6), lambda A, t, b: T.copy(A[0, 0:2, 0:3], t[1, 2]), np.pad(G[0, 0:2, 0:3], ((1, 1), (2, 1)), constant_values=-1)),
    "ones are matched by order": ((4, 1, 5), lambda A, t, b: T.copy(A[1, 2:6, 3:8], t), G[1, 2:6, None, 3:8]),
    "out of range reads 0": ((8, 8), lambda A, t, b: T.copy(A[0, 6, 7], t), padded(G[0, 6:, 7:], (8, 8))),
    "negative starts read 0": ((4, 12), lambda A, t, b: T.copy(A[0, b - 2, 0], t), np.concatenate([np.zeros((2, 12), np.float32), G[0, :2]])),
    "one element": ((1,), lambda A, t, b: T.copy(A[1, 1, 1], t[0]), G[1, 1, 1:2]),
    "an extent of 1 takes the other's": ((4, 5), lambda A, t, b: T.copy(A[1, 2:3, 3:8], t), G[1, 2:6, 3:8]),
}  # fmt: skip


@pytest.mark.parametrize("scope", ["shared", "fragment"])
@pytest.mark.parametrize("case", COPIES)
def test_copy(case: str, scope: str) -> None:
    shape, body, expected = COPIES[case]
    np.testing.assert_array_equal(execute(copy_kernel(shape, body, scope), G, np.zeros(shape, np.float32)), expected)


def test_copy_out_of_range_stores_are_skipped_and_types_convert() -> None:
    @T.prim_func
    def kernel(C: T.Tensor((5, 5), T.float16)):
        with T.Kernel(1) as bx:
            t = T.alloc_fragment((4, 4), T.float32)
            T.fill(t, 1.0 / 3)
            T.copy(t, C[bx + 3, bx - 2])

    expected = np.zeros((5, 5), np.float16)
    expected[3:, :2] = np.float16(np.float32(1 / 3))
    np.testing.assert_array_equal(execute(kernel, np.zeros((5, 5), np.float16)), expected)


def test_safe_value() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.float32), C: T.Tensor((8,), T.float32)):
        with T.Kernel(1):
            T.annotate_safe_value({A: 7.5})
            t = T.alloc_fragment((8,), T.float32)
            T.copy(A[0], t)
            T.copy(t, C)

    got = execute(kernel, np.ones(4, np.float32), np.zeros(8, np.float32))
    assert got.tolist() == [1] * 4 + [7.5] * 4


def test_views() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4, 6), T.float32), C: T.Tensor((3, 8), T.uint32), D: T.Tensor((2,), T.float32)):
        with T.Kernel(1):
            t = T.alloc_shared((4, 6), T.float32)
            T.copy(A, t)
            flat = T.reshape(t, 24)
            bits = T.view(t, (3, 8), T.uint32)
            T.copy(bits, C)
            flat[1] = 5.0
            D[0] = t[0, 1]
            rows = T.reshape(A, (24,))
            D[1] = rows[23]

    A = np.arange(24, dtype=np.float32).reshape(4, 6)
    C = np.zeros((3, 8), np.uint32)
    assert execute(kernel, A, C, np.zeros(2, np.float32)).tolist() == [5, 23]
    np.testing.assert_array_equal(C, A.view(np.uint32).reshape(3, 8))


# -- tile arithmetic --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ta", "tb", "clear"), list(itertools.product([False, True], repeat=3)))
def test_gemm(ta: bool, tb: bool, clear: bool) -> None:
    a_shape, b_shape = ((24, 16) if ta else (16, 24)), ((40, 24) if tb else (24, 40))

    @T.prim_func
    def kernel(A: T.Tensor(a_shape, T.float32), B: T.Tensor(b_shape, T.float32), C: T.Tensor((16, 40), T.float32)):
        with T.Kernel(1) as bx:
            a = T.alloc_shared((2, *a_shape), T.float32)
            b = T.alloc_shared(b_shape, T.float32)
            c = T.alloc_fragment((16, 40), T.float32)
            T.copy(A, a[1, :, :])
            T.copy(B, b)
            T.fill(c, 1.0)
            T.gemm(a[1, :, :], b, c, transpose_A=ta, transpose_B=tb, clear_accum=bx == 0 if clear else False)
            T.copy(c, C)

    rng = np.random.default_rng(0)
    A, B = (rng.integers(-4, 5, s).astype(np.float32) for s in (a_shape, b_shape))
    got = execute(kernel, A, B, np.zeros((16, 40), np.float32))
    np.testing.assert_array_equal(got, (A.T if ta else A) @ (B.T if tb else B) + (0 if clear else 1))


REDUCTIONS = {
    "sum": (np.add.reduce, np.add),
    "max": (np.maximum.reduce, np.maximum),
    "min": (np.minimum.reduce, np.minimum),
    "absmax": (lambda x, axis: np.abs(x).max(axis), np.maximum),
}


@pytest.mark.parametrize("op", REDUCTIONS)
@pytest.mark.parametrize(("dim", "keep", "clear"), list(itertools.product([0, 1, -1], [False, True], [False, True])))
def test_reductions(op: str, dim: int, keep: bool, clear: bool) -> None:
    reduce, combine = REDUCTIONS[op]
    kept = [9, 13]
    if keep:
        kept[dim] = 1
    else:
        kept.pop(dim)

    @T.prim_func
    def kernel(A: T.Tensor((9, 13), T.int32), C: T.Tensor(kept, T.int32)):
        with T.Kernel(1):
            x = T.alloc_fragment((9, 13), T.int32)
            y = T.alloc_fragment(kept, T.int32)
            T.copy(A, x)
            T.fill(y, 5)
            getattr(T, f"reduce_{op}")(x, y, dim=dim, clear=clear)
            T.copy(y, C)

    A = np.random.default_rng(0).integers(-50, 50, (9, 13)).astype(np.int32)
    expected = reduce(A, axis=dim).reshape(kept)
    got = execute(kernel, A, np.zeros(kept, np.int32))
    np.testing.assert_array_equal(got, expected if clear else combine(expected, 5))


def test_reduce_to_one_element() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((16,), T.int32), C: T.Tensor((1,), T.int32)):
        with T.Kernel(1):
            x = T.alloc_fragment((16,), T.int32)
            y = T.alloc_fragment((1,), T.int32)
            T.copy(A, x)
            T.reduce_sum(x, y)
            T.copy(y, C)

    assert execute(kernel, np.arange(16, dtype=np.int32), np.zeros(1, np.int32))[0] == 120


# -- eager kernels ----------------------------------------------------------------------------------------


def test_eager() -> None:
    def scale_rows(A, s: T.Tensor((3,), T.float32), by: T.float32, block=4, dtype=T.float32):
        M, N = T.const("M, N")
        assert block > 0
        A: T.Tensor[(M, N), dtype]
        doubled = T.empty((M, N), dtype)
        row_sum = T.empty((M,), dtype)
        tiles = -(-N // block)
        with T.Kernel(M, threads=64) as bx:
            row = T.alloc_fragment((tiles * block,), dtype)
            total = T.alloc_fragment((1,), dtype)
            T.copy(A[bx, 0], row)
            T.reduce_sum(row, total)
            for j in T.Parallel(tiles * block):
                doubled[bx, j] = row[j] * s[bx] * by
            row_sum[bx] = total[0]
        return doubled, row_sum

    template = EagerTemplate(scale_rows)
    assert (template.arguments, template.options) == (("A", "s", "by"), ("block", "dtype"))
    assert template.defaults == {"block": 4, "dtype": T.float32}
    f32 = as_dtype("float32")
    kernel = template.bind({"A": ArgInfo((3, 5), f32), "s": ArgInfo((3,), f32), "by": None}, {"block": 8})
    assert kernel.consts == {"M": 3, "N": 5} and kernel.function.outputs == (3, 4) and not kernel.single
    assert [(p.name, "tensor" if p.buffer else "scalar") for p in kernel.function.params] == [
        ("A", "tensor"), ("s", "tensor"), ("by", "scalar"), ("doubled", "tensor"), ("row_sum", "tensor"),
    ]  # fmt: skip
    A, s = np.arange(15, dtype=np.float32).reshape(3, 5), np.array([1, 2, 3], np.float32)
    out, sums = np.zeros((3, 5), np.float32), np.zeros(3, np.float32)
    run(kernel.function, [A, s, 2.0, out, sums])
    np.testing.assert_array_equal(out, A * s[:, None] * 2)
    np.testing.assert_array_equal(sums, A.sum(1))
    again = template.bind({"A": None, "s": None, "by": None}, {}, consts={"M": 3, "N": 5})
    assert again.consts == kernel.consts


def test_eager_dynamic_dimension_and_stride() -> None:
    def first(A, column: int = 0):
        m = T.dynamic("m")
        S = T.const("S")
        A: T.StridedTensor[(m, 2), (S, 1), T.float32]
        out = T.empty((m,), T.float32)
        with T.Kernel(T.ceildiv(m, 4)) as bx:
            for i in T.Parallel(4):
                out[bx * 4 + i] = A[bx * 4 + i, column]
        return out

    template = EagerTemplate(first)
    A = np.arange(30, dtype=np.float32).reshape(6, 5)[:, :2]
    kernel = template.bind({"A": ArgInfo((6, 2), as_dtype("float32"), (5, 1))}, {"column": 1})
    assert kernel.consts == {"S": 5} and kernel.single
    assert [v.name for v in kernel.function.symbols] == ["m"]
    np.testing.assert_array_equal(execute(kernel, A, np.zeros(6, np.float32)), A[:, 1])


# -- names ------------------------------------------------------------------------------------------------


def test_names() -> None:
    for name in T.__all__:
        attribute = getattr(T, name)
        assert isinstance(attribute, DType) or attribute.__doc__ or name in ("Tensor", "Buffer", "StridedTensor"), name
    for name in MISSING:
        assert not hasattr(type(T), name) and name not in T.__all__
        with pytest.raises(TileNotImplementedError, match=f"T.{name} is not supported yet"):
            getattr(T, name)()
    assert not HARDWARE.keys() & (MISSING | {*T.__all__})
    for name in [*HARDWARE, "tcgen05_ld"]:
        with pytest.raises(TileNotImplementedError, match=f"T.{name} is hardware-only"):
            getattr(T, name)()
    with pytest.raises(TileAttributeError, match="no T.gem"):
        T.gem  # noqa: B018
    assert not hasattr(T, "no_such_name_at_all")
    assert T.float32x4 is as_dtype("float32x4")


def test_tier_1_and_2_are_known() -> None:
    """Every name of the language (docs/reference.md) is there, or says that it is not yet."""
    tiers = """
    Tensor Kernel copy alloc_fragment alloc_shared ceildiv Pipelined Parallel gemm clear prim_func reduce_sum
    if_then_else exp2 empty const fill max reduce_max infinity serial GemmWarpPolicy min use_swizzle log2 alloc_var
    annotate_layout atomic_add floordiv Layout floormod alloc_global Persistent dynamic get_thread_binding dtype unroll
    alloc_local cast exp vectorized assume macro reinterpret reduce_absmax StridedTensor sync_threads reshape Fragment
    Select alloc_reducer finalize_reducer disable_warp_group_reg_alloc clamp device_assert rsqrt sigmoid thread_return
    attr comm_reducer tvm_thread_allreduce evaluate thread_binding sync_warp Cast Ref Serial abs im2col shfl_sync
    shift_left view LocalBuffer SharedBuffer async_copy ptx_wait_group cumsum log make_tensor ptr max_value sqrt symbolic
    sync_grid abs2 max2 atomic_addx4 bitwise_xor ceil copysign get_lane_idx get_warp_idx isfinite log1p no_set_max_nreg
    parallel pdl_sync popcount shfl_xor truncdiv truncmod warp_reduce_max warp_reduce_sum determine_fp8_type reduce_min
    reduce_abssum cummax reducer_init reducer_update annotate_safe_value any_of all_of transpose grid atomic_max
    atomic_min atomic_or atomic_load atomic_store atomic_addx2 ballot any_sync all_sync match_any_sync match_all_sync
    syncthreads_and syncthreads_or syncthreads_count warp_reduce_min warp_reduce_bitand warp_reduce_bitor __exp __log
    PersistentTileScheduler align_up extract_lane annotate_pass_configs annotate_compile_flags cos sin tanh erf pow print
    ClusterKernel call_extern get_block_binding launch_thread tma_copy shfl_up shfl_down Buffer FragmentBuffer meta_class
    inline alloc_barrier round trunc floor isnan isinf fma min_value truncdiv bitwise_and bitwise_or bitwise_not
    """.split()
    assert [n for n in tiers if n not in T.__all__ and n not in MISSING] == []


def test_hints_and_debugging_statements() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.float32)):
        T.annotate_pass_configs({"tl.enable_fast_math": True})
        with T.Kernel(1):
            s = T.alloc_shared((4,), T.float32)
            T.annotate_layout({s: None})
            T.use_swizzle(8)
            T.no_set_max_nreg()
            T.copy(A, s)
            T.assume(A[0] > 0)
            T.device_assert(A[0] > 0, "positive")
            assert A[1] > 0, "also positive"
            T.print(s, "tile")
            T.print(A[0] * 2, msg="twice")
            breakpoint()

    debug = [n for n in walk(kernel.function.kernels[0]) if isinstance(n, ir.Debug)]
    assert [(d.kind, d.message) for d in debug] == [
        ("assume", ""), ("assert", "positive"), ("assert", "also positive"), ("print", "tile"), ("print", "twice"),
        ("breakpoint", ""),
    ]  # fmt: skip
    assert dict(kernel.function.kernels[0].attrs) == {"swizzle": (8, "row")}


def test_device_assert_stops() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), T.float32)):
        with T.Kernel(1):
            T.device_assert(A[0] > 0, "positive")

    execute(kernel, np.ones(4, np.float32))
    with pytest.raises(TileError, match="positive"):
        execute(kernel, np.zeros(4, np.float32))
