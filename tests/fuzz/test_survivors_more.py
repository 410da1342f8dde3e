"""More mistakes that tests/mutation planted and no test noticed; now these do."""

# mypy: disable-error-code="no-untyped-def,valid-type,misc"
from __future__ import annotations

import io

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import config, ir
from tiledsl.analysis.bounds import Facts
from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.frontend import lenient
from tiledsl.frontend.linear import difference
from tiledsl.frontend.reader import from_text
from tiledsl.interp import Options, run
from tiledsl.ir import build
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text
from tiledsl.ir.verifier import verify
from tiledsl.ir.walk import Rewriter, walk
from tiledsl.passes.instruments import TimePasses
from tiledsl.passes.pipeline import run as run_passes
from tiledsl.testing import assert_targets_agree

INT32 = as_dtype("int32")


def test_a_lane_number_minus_one_wraps_at_the_first_lane() -> None:
    @T.prim_func
    def kernel(B: T.Tensor((2, 20), "int32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                B[0, i] = T.cast(T.cast(i - 1, "uint8"), "int32")
            for i, _j in T.Parallel(20, 3):
                B[1, i] = T.cast(T.cast(i - 1, "uint16"), "int32")

    B = np.zeros((2, 20), np.int32)
    assert_targets_agree(tiledsl.compile(kernel), B)
    tiledsl.compile(kernel)(B, target="numpy")
    assert B[:, 0].tolist() == [255, 65535] and B[0, 1:].tolist() == list(range(19))


def test_conditions_that_hold_for_all_iterations() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "float32"), B: T.Tensor((20,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                if i < 20:
                    B[i] = A[i] if i >= 0 else 7.0

    assert_targets_agree(tiledsl.compile(kernel), np.arange(20, dtype=np.float32), np.zeros(20, np.float32))


def test_sums_onto_old_values_of_every_width() -> None:
    @T.prim_func
    def kernel(
        A: T.Tensor((4, 20), "float64"), B: T.Tensor((4,), "float64"), C: T.Tensor((4, 20), "float16"),
        D: T.Tensor((4,), "float16"), E: T.Tensor((4, 20), "int64"), F: T.Tensor((4,), "int64"),
    ):  # fmt: skip
        with T.Kernel(1):
            a = T.alloc_fragment((4, 20), "float64")
            b = T.alloc_fragment((4,), "float64")
            c = T.alloc_fragment((4, 20), "float16")
            d = T.alloc_fragment((2, 2), "float16")
            e = T.alloc_fragment((4, 20), "int64")
            f = T.alloc_fragment((4,), "int64")
            flat = T.reshape(d, (4,))  # a view keeps the tile in its own type
            for source, old, tile, out in ((A, B, a, b), (C, D, c, flat), (E, F, e, f)):
                T.copy(source, tile)
                T.copy(old, out)
                T.reduce_sum(tile, out, dim=1, clear=False)
                T.copy(out, old)

    rng = np.random.default_rng(0)
    A, C = rng.standard_normal((4, 20)), rng.standard_normal((4, 20)).astype(np.float16)
    E = rng.integers(-(2**60), 2**60, (4, 20))
    olds = np.full(4, 1 / 3), np.full(4, 1 / 3, np.float16), np.full(4, 2**53 + 1)
    assert_targets_agree(tiledsl.compile(kernel), A, olds[0], C, olds[1], E, olds[2])


def test_kernels_without_a_cache() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                A[i] = A[i] + 1

    with config.DISABLE_CACHE.override(True):
        A = np.zeros(4, np.float32)
        tiledsl.compile(kernel)(A, target="numba")
    assert A.tolist() == [1] * 4


def test_a_wider_copy_of_a_half_adds_no_error() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "float16"), B: T.Tensor((20,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                B[i] = A[i]

    args = [np.linspace(-1, 1, 20).astype(np.float16), np.zeros(20, np.float32)]
    assert run(kernel.function, args, Options(exact=True, shadow=True)).shadow["B"].bound.max() == 0


def test_what_is_known_of_remainders() -> None:
    x, n = ir.Var("x", INT32), ir.Var("n", INT32)
    facts = Facts()
    facts.bound(x, 0, 1000)
    facts.bound(n, 1, 100)
    assert facts.prove(build.lt(ir.Binary("floormod", x, n), n))
    shifted = build.add(x, 4)
    assert not facts.multiple(shifted, 4)  # asked before it is known
    facts.assume(build.eq(ir.Binary("floormod", x, build.const(4, INT32)), 0))
    assert facts.multiple(shifted, 4) and facts.prove(
        build.eq(ir.Binary("floormod", shifted, build.const(4, INT32)), 0)
    )


def test_what_was_asked_before_a_fact_is_asked_again() -> None:
    x, facts = ir.Var("x", INT32), Facts()
    wide = ir.Cast(x, as_dtype("int64"))
    assert not facts.multiple(wide, 4)
    facts.assume(build.eq(ir.Binary("floormod", x, build.const(4, INT32)), 0))
    assert facts.multiple(wide, 4)


def test_differences_of_products() -> None:
    i = ir.Var("i", INT32)
    four = build.const(4, INT32)
    for moved, still in (
        (ir.Binary("mul", build.add(i, 1), four), ir.Binary("mul", i, four)),
        (ir.Binary("mul", four, build.add(i, 1)), ir.Binary("mul", four, i)),
        (ir.Binary("mul", build.add(i, 1), four), ir.Binary("mul", four, i)),
    ):
        assert difference(moved, still) == 4 and difference(still, moved) == -4
    assert difference(ir.Binary("mul", i, i), i) is None


def test_strides_of_unknown_variables_are_no_legal_ir() -> None:
    n = T.dynamic("n")

    @T.prim_func
    def kernel(A: T.StridedTensor((n,), (2,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                B[i] = A[i]

    function = kernel.function
    verify(function)
    bad = function.params[0].buffer.replace(strides=(ir.Var("nowhere", INT32),))
    with pytest.raises(TileError, match="nowhere"):
        verify(Rename({function.params[0].buffer: bad}).visit(function))


class Rename(Rewriter):
    def __init__(self, names: dict[ir.Buffer, ir.Buffer]) -> None:
        self.names = names

    def buffer(self, b: ir.Buffer) -> ir.Buffer:
        return self.names.get(b, b)


def test_views_in_scratch_memory_stand_by_themselves() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((12,), "float32"), B: T.Tensor((3, 4), "float32")):
        with T.Kernel(1):
            pad = T.alloc_shared((5,), "float32")
            x = T.alloc_shared((12,), "float32")
            T.clear(pad)
            T.copy(A, x)
            y = T.reshape(x, (3, 4))
            for i, j in T.Parallel(3, 4):
                y[i, j] = y[i, j] + 1
            T.copy(x[4:8], B[0, :])
            T.copy(y[1:3, :], B[1, 0])

    lowered = run_passes(kernel.function, cpu_pipeline())
    scratch = {n for n in walk(lowered.kernels[0].body) if isinstance(n, ir.Buffer) and n.scope == "scratch"}
    assert scratch and all(b.alias_of is None and b.base is not None for b in scratch)
    assert equal(lowered, from_text(to_text(lowered)), hints=True)
    assert_targets_agree(tiledsl.compile(kernel), np.arange(12, dtype=np.float32), np.zeros((3, 4), np.float32))


def test_gathers_of_bytes_claim_no_alignment() -> None:
    from llvmlite import ir as llvm

    from tiledsl.backends.cpu.emit import values

    for name, align in (("int8", 1), ("int16", 2), ("float64", 8)):
        module = llvm.Module()
        f = llvm.Function(
            module, llvm.FunctionType(llvm.VoidType(), [values.PTR, llvm.VectorType(values.I64, 16)]), "f"
        )
        b = llvm.IRBuilder(f.append_basic_block())
        got = values.gather(b, as_dtype(name), f.args[0], f.args[1])
        values.scatter(b, as_dtype(name), f.args[0], f.args[1], got)
        b.ret_void()
        text = str(module)
        assert text.count(f"align {align}") == 2, text


def test_literals_of_outcomes() -> None:
    x = ir.Var("x", ir.BOOL)
    assert build.TRUE.value is True and build.FALSE.value is False
    assert build.and_(x, build.TRUE) is x and build.or_(x, build.FALSE) is x


def test_outcomes_shifted_by_outcomes() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((20,), "float32"), B: T.Tensor((20,), "int32")):
        with T.Kernel(1):
            for i in T.Parallel(20):
                B[i] = (A[i] > 0) << (A[i] > 1)

    A, B = np.linspace(-2, 2, 20, dtype=np.float32), np.zeros(20, np.int32)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    tiledsl.compile(kernel)(A, B, target="numpy")
    assert B.tolist() == ((A > 0).astype(int) << (A > 1).astype(int)).tolist()


def test_a_view_behind_the_start_of_its_buffer() -> None:
    """Offsets of views are in elements, those of scratch memory in bytes."""
    f32, params = as_dtype("float32"), []
    for name in "AB":
        params.append(ir.Buffer(name, f32, (build.const(12, INT32),), "global"))
    x = ir.Buffer("x", f32, (build.const(12, INT32),), "shared")
    tail = ir.Buffer("tail", f32, (build.const(8, INT32),), "shared", alias_of=x, offset=build.const(4, INT32))
    i, j, k = (ir.Var(v, INT32) for v in "ijk")
    body = (
        ir.Alloc(x),
        ir.Parallel((i,), (build.const(12, INT32),), (ir.Store(x, (i,), ir.Load(params[0], (i,))),)),
        ir.Parallel((j,), (build.const(8, INT32),), (ir.Store(tail, (j,), build.add(ir.Load(tail, (j,)), 1.0)),)),
        ir.Parallel((k,), (build.const(12, INT32),), (ir.Store(params[1], (k,), ir.Load(x, (k,))),)),
    )

    @T.prim_func
    def like(A: T.Tensor((12,), "float32"), B: T.Tensor((12,), "float32")):
        with T.Kernel(1):
            B[0] = A[0]

    function = like.function
    old = [p.buffer for p in function.params]
    kernel = function.kernels[0].replace(body=Rename(dict(zip(params, old, strict=True))).visit_block(body))
    function = function.replace(kernels=(kernel,))
    verify(function)
    for f in (function, run_passes(function, cpu_pipeline())):
        A, B = np.arange(12, dtype=np.float32), np.zeros(12, np.float32)
        run(f, [A, B], Options(exact=True))
        assert B.tolist() == [*range(4), *range(5, 13)]


def test_copies_by_other_engines_go_the_same_way() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((8,), "float32"), B: T.Tensor((2, 8), "float32")):
        with T.Kernel(1):
            x, y = T.alloc_shared((8,), "float32"), T.alloc_shared((8,), "float32")
            T.tma_copy(A, x, eviction_policy="evict_first")
            T.async_copy(A, y)
            T.ptx_wait_group(0)
            T.copy(x, B[0, 0:8])
            T.copy(y, B[1, 0:8])

    A, B = np.arange(8, dtype=np.float32), np.zeros((2, 8), np.float32)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    tiledsl.compile(kernel)(A, B, target="numpy")
    assert (B == np.arange(8)).all()


def test_what_a_branch_left_undefined_is_no_operand() -> None:
    with pytest.raises(TileError, match="x has no value here"):

        @T.prim_func
        def kernel(A: T.Tensor((8,), "float32")):
            with T.Kernel(1) as bx:
                if A[bx] > 0:
                    x = A[bx] * 2
                T.print(x)


def test_the_workers_of_a_scheduler_are_all_blocks_of_the_grid() -> None:
    @T.prim_func
    def kernel(B: T.Tensor((5, 7), "int32")):
        with T.Kernel(2, 4, threads=1) as (bx, by):
            tiles = T.PersistentTileScheduler(5, 7)
            tiles.init(by * 2 + bx)
            while tiles.valid():
                B[tiles.m_idx, tiles.n_idx] = by * 2 + bx + 1
                tiles.next_tile()

    B = np.zeros((5, 7), np.int32)
    tiledsl.compile(kernel)(B, target="numpy")
    assert np.bincount(B.ravel(), minlength=9).tolist() == [0, 5, 5, 5, 4, 4, 4, 4, 4]


def test_the_bits_of_a_mask_bound_a_value() -> None:
    x, y = ir.Var("x", INT32), ir.Var("y", INT32)
    few, many = (ir.Binary(op, x, build.const(7, INT32)) for op in ("bitand", "bitor"))
    facts = Facts()
    facts.bound(y, 0, 2)
    assert facts.interval(ir.Binary("bitxor", few, y)) == (0, 7)
    assert facts.interval(ir.Binary("bitxor", many, y))[1] > 7


def test_the_checked_mode_runs_blocks_in_another_order(capfd: pytest.CaptureFixture[str]) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((16,), "int32")):
        with T.Kernel(16) as bx:
            A[bx] = bx
            T.print(bx)

    tiledsl.compile(kernel)(np.zeros(16, np.int32), target="numpy:checked")
    seen = [int(line.split()[-1]) for line in capfd.readouterr().out.splitlines()]
    assert sorted(seen) == [*range(16)] != seen


def test_passes_are_timed_in_seconds() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((16,), "int32")):
        with T.Kernel(16) as bx:
            A[bx] = bx

    times = TimePasses(io.StringIO())
    run_passes(kernel.function, cpu_pipeline(), [times])
    assert len(times.seconds) == len(cpu_pipeline()) and all(0 <= t < 60 for _, t in times.seconds)


@pytest.mark.parametrize("pointer", [5, "A", None])
def test_an_address_is_a_value_of_the_kernel(pointer: object) -> None:
    with pytest.raises(TileError, match="the address must be an element of a T.ptr tensor"):

        @T.prim_func
        def kernel(A: T.Tensor((8,), "float32")):
            with T.Kernel(1):
                T.make_tensor(pointer, (4,), "float32")


def test_two_rows_in_reverse_are_refused() -> None:
    @T.prim_func
    def kernel(A: T.StridedTensor((2, 3), (T.dynamic("s"), 1), "float32"), B: T.Tensor((2,), "float32")):
        with T.Kernel(2) as bx:
            B[bx] = A[bx, 0]

    A = np.arange(6, dtype=np.float32).reshape(2, 3)
    with pytest.raises(TileError, match="negative stride"):
        tiledsl.compile(kernel)(A[::-1], np.zeros(2, np.float32))


def test_a_size_in_another_type_of_as_many_bits_is_the_same_size() -> None:
    n = ir.Var("n", INT32)
    unsigned = ir.Cast(n, as_dtype("uint32"))
    assert difference(ir.Binary("add", unsigned, build.const(2, as_dtype("uint32"))), unsigned) == 2
    assert difference(unsigned, n) == 0


def test_each_of_several_symbols_is_a_name() -> None:
    for names in ("m, 1x", "1x, m", "m n-1"):
        with pytest.raises(TileError, match="is not a list of names"):
            T.dynamic(names)


def test_products_that_vanish_are_rounded_up_and_down() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((4,), "float32"), B: T.Tensor((2, 4), "float32")):
        with T.Kernel(1):
            for i in T.Parallel(4):
                B[0, i] = T.ieee_mul(A[i], T.float32(1e-30), "rd")
                B[1, i] = T.ieee_mul(A[i], T.float32(1e-30), "ru")

    A, B = np.array([1e-30, -1e-30, 0, 1], np.float32), np.zeros((2, 4), np.float32)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    tiledsl.compile(kernel)(A, B, target="numpy")
    tiny = np.float32(1e-45)
    assert B[0, :3].tolist() == [0, -tiny, 0] and B[1, :3].tolist() == [tiny, 0, 0]
    assert (B[:, 3] == np.float32(1e-30)).all()


def test_sums_of_a_thread_wrap_at_their_type() -> None:
    """Narrow integers are no narrow floats, which are added as float32."""

    @T.prim_func
    def kernel(A: T.Tensor((8, 3), "int16"), B: T.Tensor((8, 2), "int16")):
        with T.Kernel(1, threads=8):
            t = T.get_thread_binding()
            own, total = T.alloc_local((3,), "int16"), T.alloc_local((1,), "int16")
            for j in T.serial(3):
                own[j] = A[t, j]
            T.reduce_sum(own, total, dim=0)
            B[t, 0] = total[0]
            T.cumsum(own, dim=0)
            B[t, 1] = own[2]

    A, B = np.full((8, 3), 20000, np.int16), np.zeros((8, 2), np.int16)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    tiledsl.compile(kernel)(A, B, target="numpy")
    assert (B == 60000 - 65536).all()


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_are_rounded_between_operators(dtype: str) -> None:
    @T.prim_func
    def kernel(A: T.Tensor((40,), dtype), B: T.Tensor((40,), dtype), C: T.Tensor((2,), dtype)):
        with T.Kernel(1) as bx:
            for i in T.Parallel(40):
                B[i] = (A[i] + A[i] * 0.0001) - A[i]
            C[bx] = (A[1] + A[0]) - A[1]
            C[1] = (A[1] * A[2]) - A[2]

    numpy = as_dtype(dtype).numpy
    A = np.full(40, 3, np.float32).astype(numpy)
    A[0], A[1], A[2] = 1e-4, 1, 1
    B, C = np.ones(40, numpy), np.ones(2, numpy)
    assert_targets_agree(tiledsl.compile(kernel), A, B, C)
    tiledsl.compile(kernel)(A, B, C, target="numpy")
    assert C.astype(np.float32).tolist() == [0, 0]


def test_the_bits_of_a_warp() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((32,), "int32"), B: T.Tensor((3,), "int32")):
        with T.Kernel(1, threads=32):
            t = T.get_thread_binding()
            every, some, odd = T.warp_reduce_bitand(A[t]), T.warp_reduce_bitor(A[t]), T.warp_reduce_bitxor(A[t])
            if t == 0:
                B[0] = every
                B[1] = some
                B[2] = odd

    A, B = np.arange(32, dtype=np.int32) * 8 + 1, np.zeros(3, np.int32)
    A[3] += 2
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    tiledsl.compile(kernel)(A, B, target="numpy")
    assert B.tolist() == [op.reduce(A) for op in (np.bitwise_and, np.bitwise_or, np.bitwise_xor)]


@pytest.mark.parametrize("op", ["bitand", "bitor", "bitxor", "shl", "shr", "floordiv", "truncmod", "min", "max"])
def test_every_operator_on_integers_is_legal(op: str) -> None:
    x, y, out = ir.Var("x", INT32), ir.Var("y", INT32), ir.Buffer("A", INT32, (build.const(1, INT32),), "global")
    store = ir.Store(out, (build.zero(INT32),), ir.Binary(op, x, y))
    params = (ir.Param("A", buffer=out), ir.Param("x", var=x), ir.Param("y", var=y))
    kernel = ir.Kernel("k", (), (), (), (), (store,))
    verify(ir.Function("f", params, (kernel,)))


def test_conditions_that_are_worst_in_the_middle_of_a_nest() -> None:
    @T.prim_func
    def kernel(A: T.Tensor((12, 40), "int32"), B: T.Tensor((2, 12, 40), "int32")):
        with T.Kernel(1):
            for i, j in T.Parallel(12, 40):
                if j < (i - 6) * (i - 6):
                    B[0, i, j] = A[i, j]
                if (i - 6) * (i - 6) < j:
                    B[1, i, j] = A[i, j]

    A, B = np.arange(1, 481, dtype=np.int32).reshape(12, 40), np.zeros((2, 12, 40), np.int32)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    run(kernel.function, [A, B], Options(exact=True))
    i, j = np.indices((12, 40))
    assert (B == A * np.stack([j < (i - 6) ** 2, (i - 6) ** 2 < j])).all()


def test_slices_are_assigned_from_slices_where_that_is_let_pass() -> None:
    heard: list[TileError] = []
    with lenient(lambda e, _: heard.append(e)):

        @T.prim_func
        def kernel(A: T.Tensor((5, 8), "int32"), B: T.Tensor((5, 8), "int32")):
            with T.Kernel(1, threads=5):
                t = T.get_thread_binding()
                x = T.alloc_local((8,), "int32")
                x[0:4] = A[t, 4:8]
                x[4:8] = A[t, 0:4]
                B[t, 0:8] = x[0:8]

    assert len(heard) == 3 and all("cannot be assigned" in str(e) for e in heard)
    A = np.arange(40, dtype=np.int32).reshape(5, 8)
    B = np.zeros_like(A)
    assert_targets_agree(tiledsl.compile(kernel), A, B)
    run(kernel.function, [A, B], Options(exact=True))
    assert (B == np.roll(A, 4, 1)).all()
