"""Tiles lowered to threads mean the same: the interpreter runs both stages on awkward shapes, bit for bit, and its
checked mode finds no race between threads, no value that nobody wrote and no place out of range."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels_registry import KERNELS
from properties import support

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.backends.simt.lower import lower
from tiledsl.backends.simt.pipeline import simt_pipeline
from tiledsl.errors import TileNotImplementedError
from tiledsl.interp import Options, run
from tiledsl.ir.walk import walk
from tiledsl.passes import pipeline
from tiledsl.passes.instruments import Verify

ARCHES = ["", "sm_90a"]
RNG = np.random.default_rng(8)


def arrays(kernel: tiledsl.JITKernel) -> list[Any]:
    """Random arguments of a kernel of constant shapes."""
    found = []
    for b in kernel.function.buffers:
        shape, numpy = b.const_shape, b.dtype.numpy
        assert shape is not None
        if b.dtype.is_float:
            found.append(RNG.standard_normal(shape).astype(np.float32).astype(numpy))
        else:
            found.append(RNG.integers(-20 if b.dtype.is_signed else 0, 20, shape).astype(numpy))
    return found


def same_on_threads(kernel: tiledsl.JITKernel, args: list[Any] | None = None, arch: str = "sm_90a") -> ir.Function:
    """The lowered function, after it gave what the tile stage gives."""
    function = kernel.function
    args = arrays(kernel) if args is None else args
    lowered = pipeline.run(function, simt_pipeline(arch), [Verify()])
    assert lowered.stage == "thread"
    wanted, got, checked = (support.copies(args) for _ in range(3))
    run(function, wanted, Options(exact=True))
    run(lowered, got, Options(exact=True))
    packed = any(n.dtype.is_packed for k in lowered.kernels for n in walk(k) if isinstance(n, ir.Buffer))
    if not packed:  # the checks count bytes; the text stores halves of one by two threads with tl_merge_nibble
        run(lowered, checked, Options.checked())
    for p, a, b in zip(function.params, wanted, got, strict=True):
        if isinstance(a, np.ndarray):
            support.assert_same(b, a, f"{p.name} on threads")
    assert lower(lowered, arch).kernels
    return lowered


def micro(function: ir.Function) -> set[str]:
    return {n.name for k in function.kernels for n in walk(k.body) if isinstance(n, ir.MicroCall)}


def registers(function: ir.Function) -> set[str]:
    """Names of arrays of a thread."""
    allocs = (n.buffer for k in function.kernels for n in walk(k.body) if isinstance(n, ir.Alloc))
    return {b.name for b in allocs if b.scope == "local"}


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("name", KERNELS)
def test_registry(name: str, arch: str) -> None:
    entry = KERNELS[name]
    same_on_threads(entry.kernel(), entry.args(), arch)


# -- products ------------------------------------------------------------------------------------------------------


def product(m: int, n: int, k: int, tile: tuple[int, int, int], dtype: str, threads: int, **how: Any) -> Any:
    bm, bn, bk = tile
    ta, tb = how.get("transpose_A", False), how.get("transpose_B", False)
    acc = how.get("acc", "float32" if T.dtype(dtype).is_float else "int32")

    @T.prim_func
    def main(
        A: T.Tensor((k, m) if ta else (m, k), dtype),
        B: T.Tensor((n, k) if tb else (k, n), dtype),
        C: T.Tensor((m, n), acc),
    ):
        with T.Kernel(T.ceildiv(n, bn), T.ceildiv(m, bm), threads=threads) as (bx, by):
            a = T.alloc_shared((bk, bm) if ta else (bm, bk), dtype)
            b = T.alloc_shared((bn, bk) if tb else (bk, bn), dtype)
            c = T.alloc_fragment((bm, bn), acc)
            T.clear(c)
            for ko in T.Pipelined(T.ceildiv(k, bk), num_stages=how.get("stages", 2)):
                T.copy(A[ko * bk, by * bm] if ta else A[by * bm, ko * bk], a)
                T.copy(B[bx * bn, ko * bk] if tb else B[ko * bk, bx * bn], b)
                T.gemm(a, b, c, transpose_A=ta, transpose_B=tb)
            T.copy(c, C[by * bm, bx * bn])

    return tiledsl.compile(main)


@pytest.mark.parametrize("threads", [1, 32, 48, 96])
@pytest.mark.parametrize(
    ("m", "n", "k", "tile"), [(8, 229, 48, (8, 229, 48)), (17, 33, 7, (7, 33, 5)), (1, 1, 1, (1, 1, 1))]
)
def test_products_of_any_shape(m: int, n: int, k: int, tile: tuple[int, int, int], threads: int) -> None:
    if n == 229 and threads == 1:
        pytest.skip("slow: one thread at a time")
    done = same_on_threads(product(m, n, k, tile, "float32", threads))
    assert not {"mma", "ldmatrix"} & micro(done)


@pytest.mark.parametrize("dtype", ["float64", "float16", "bfloat16", "int8", "uint8", "float8_e4m3fn"])
def test_products_by_multiply_adds(dtype: str) -> None:
    acc = {"acc": "float64"} if dtype == "float64" else {}
    done = same_on_threads(product(13, 21, 19, (8, 16, 9), dtype, 48, **acc), arch="")
    assert "c" in registers(done) and not micro(done)


@pytest.mark.parametrize("a", [False, True])
@pytest.mark.parametrize("b", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "uint8", "float8_e4m3fn", "float8_e5m2"])
def test_matrix_instructions(dtype: str, a: bool, b: bool) -> None:
    k = 40 if a else 48
    done = same_on_threads(product(50, 40, k, (32, 24, 32), dtype, 64, transpose_A=a, transpose_B=b))
    assert {"mma", "async_commit", "async_wait"} <= micro(done)


@pytest.mark.parametrize("stages", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("k", [1, 16, 33, 80])
def test_stages(stages: int, k: int) -> None:
    same_on_threads(product(16, 24, k, (16, 24, 16), "bfloat16", 32, stages=stages))


@pytest.mark.parametrize("arch", ["sm_70", "sm_80", "sm_89"])
def test_architectures_have_their_instructions(arch: str) -> None:
    halves = micro(pipeline.run(product(16, 8, 16, (16, 8, 16), "float16", 32).function, simt_pipeline(arch)))
    bytes_ = micro(pipeline.run(product(16, 8, 32, (16, 8, 32), "float8_e4m3fn", 32).function, simt_pipeline(arch)))
    assert ("mma" in halves) == (arch >= "sm_80") and ("mma" in bytes_) == (arch >= "sm_89")


def chain(threads: int, rows: int, wide: int) -> Any:
    """The second product's left operand is the first one's result, as in attention."""

    @T.prim_func
    def main(
        A: T.Tensor((rows, 32), "float16"), B: T.Tensor((32, wide), "float16"), C: T.Tensor((wide, 32), "float16"),
        D: T.Tensor((rows, 32), "float32"),
    ):  # fmt: skip
        with T.Kernel(1, threads=threads):
            a, b = T.alloc_shared((rows, 32), "float16"), T.alloc_shared((32, wide), "float16")
            c = T.alloc_shared((wide, 32), "float16")
            s, p = T.alloc_fragment((rows, wide), "float32"), T.alloc_fragment((rows, wide), "float16")
            top, d = T.alloc_fragment((rows,), "float32"), T.alloc_fragment((rows, 32), "float32")
            T.copy(A, a)
            T.copy(B, b)
            T.copy(C, c)
            T.gemm(a, b, s, clear_accum=True)
            T.reduce_max(s, top, dim=1)
            for i, j in T.Parallel(rows, wide):
                p[i, j] = T.exp2(s[i, j] - top[i])
            T.gemm(p, c, d, clear_accum=True)
            T.copy(d, D)

    return tiledsl.compile(main)


@pytest.mark.parametrize(("threads", "rows", "wide"), [(32, 16, 48), (64, 32, 64), (128, 32, 64), (128, 64, 16)])
def test_accumulators_become_operands(threads: int, rows: int, wide: int) -> None:
    done = same_on_threads(chain(threads, rows, wide))
    tiles = {
        n.buffer.name for n in walk(done.kernels[0].body) if isinstance(n, ir.Alloc) and n.buffer.scope == "shared"
    }
    assert "mma" in micro(done)
    assert ("p_operand" in tiles) == (rows < threads // 2)  # only where a row lies in several warps


# -- reductions ----------------------------------------------------------------------------------------------------


def reduction(
    op: str, rows: int, cols: int, axis: int, threads: int, dtype: str, scope: str, clear: bool = True
) -> Any:
    out = cols if axis == 0 else rows

    @T.prim_func
    def main(X: T.Tensor((rows, cols), dtype), Y: T.Tensor((out,), dtype), Z: T.Tensor((rows, cols), dtype)):
        with T.Kernel(1, threads=threads):
            x = T.alloc_fragment((rows, cols), dtype) if scope == "fragment" else T.alloc_shared((rows, cols), dtype)
            y = T.alloc_fragment((out,), dtype)
            T.copy(X, x)
            T.copy(Y, y)
            if op == "sum":
                T.reduce_sum(x, y, dim=axis, clear=clear)
            elif op == "max":
                T.reduce_max(x, y, dim=axis, clear=clear)
            elif op == "min":
                T.reduce_min(x, y, dim=axis, clear=clear)
            else:
                T.reduce_abssum(x, y, dim=axis)
            for i, j in T.Parallel(rows, cols):
                x[i, j] = x[i, j] - y[j if axis == 0 else i]
            T.copy(y, Y)
            T.copy(x, Z)

    return tiledsl.compile(main)


@pytest.mark.parametrize("op", ["sum", "max", "abssum", "min"])
@pytest.mark.parametrize("threads", [1, 8, 48])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (33, 17), (8, 229)])
def test_row_reductions(op: str, rows: int, cols: int, threads: int) -> None:
    same_on_threads(reduction(op, rows, cols, 1, threads, "float32", "fragment"))


@pytest.mark.parametrize("scope", ["fragment", "shared"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", ["float16", "float64", "int32", "int8"])
def test_reductions_keep_old_values(dtype: str, axis: int, scope: str) -> None:
    same_on_threads(reduction("sum", 9, 35, axis, 40, dtype, scope, clear=False))


def test_extremes_of_nan_and_zeros() -> None:
    x = RNG.choice(np.array([0.0, -0.0, np.nan, -np.inf, 1.0], np.float32), (12, 37))
    x[3], x[4] = np.nan, -0.0
    for op in ("max", "min", "sum"):
        kernel = reduction(op, 12, 37, 1, 32, "float32", "fragment")
        same_on_threads(kernel, [x, np.zeros(12, np.float32), np.zeros_like(x)])


# -- where fragments live ---------------------------------------------------------------------------------------------


def test_a_softmax_stays_in_registers() -> None:
    @T.prim_func
    def main(X: T.Tensor((20, 70), "float32"), Y: T.Tensor((20, 70), "float32")):
        with T.Kernel(1, threads=64):
            x = T.alloc_fragment((20, 70), "float32")
            top = T.alloc_fragment((20,), "float32")
            total = T.alloc_fragment((20,), "float32")
            T.copy(X, x)
            T.reduce_max(x, top, dim=1)
            for i, j in T.Parallel(20, 70):
                x[i, j] = T.exp(x[i, j] - top[i])
            T.reduce_sum(x, total, dim=1)
            for i, j in T.Parallel(20, 70):
                Y[i, j] = x[i, j] / total[i]

    done = same_on_threads(tiledsl.compile(main))
    assert {"x", "top", "total"} <= registers(done)
    assert not any(isinstance(n, ir.Sync) for n in walk(done.kernels[0].body))


def test_conflicts_move_to_shared_memory() -> None:
    """A diagonal, a transposed read, an index that is no variable, one element: all legal."""

    @T.prim_func
    def main(X: T.Tensor((24, 24), "float32"), Y: T.Tensor((24, 24), "float32"), Z: T.Tensor((24,), "float32")):
        with T.Kernel(1, threads=96):
            x = T.alloc_fragment((24, 24), "float32")
            y = T.alloc_fragment((24, 24), "float32")
            d = T.alloc_fragment((24,), "float32")
            T.copy(X, x)
            for i, j in T.Parallel(24, 24):
                y[i, j] = x[j, i] + x[i, (j + 1) % 24]
            for i in T.Parallel(24):
                d[i] = x[i, i] + y[23 - i, 0]
            for i in T.Parallel(23):
                d[i] = d[i] + x[3, 5]
            T.copy(d, Z)
            T.copy(y, Y)

    done = same_on_threads(tiledsl.compile(main))
    assert "x" not in registers(done)


@pytest.mark.parametrize("threads", [1, 33, 64, 128])
def test_elements_scans_and_conversions(threads: int) -> None:
    @T.prim_func
    def main(X: T.Tensor((6, 50), "float32"), Y: T.Tensor((6, 50), "bfloat16"), S: T.Tensor((6, 50), "float32")):
        with T.Kernel(2, threads=threads) as b:
            x = T.alloc_fragment((3, 50), "float32")
            h = T.alloc_fragment((3, 50), "bfloat16")
            T.copy(X[b * 3, 0], x)
            T.copy(x, h)
            T.cumsum(x, dim=1)
            for i, j in T.Parallel(3, 50):
                if h[i, j] > T.bfloat16(0):
                    h[i, j] = h[i, j] * T.bfloat16(2)
            T.copy(h, Y[b * 3, 0])
            T.copy(x, S[b * 3, 0])

    same_on_threads(tiledsl.compile(main))


def test_reducers_and_last_values() -> None:
    @T.prim_func
    def main(X: T.Tensor((7, 45), "float32"), Y: T.Tensor((7,), "float32"), Z: T.Tensor((2,), "int32")):
        with T.Kernel(1, threads=64):
            total = T.alloc_reducer((7,), "float32", op="sum")
            last = T.alloc_var("int32", 3)
            T.fill(total, 0)
            for i, j in T.Parallel(7, 45):
                total[i] += X[i, j]
            for i in T.Parallel(5):
                last = i * 2
            T.finalize_reducer(total)
            T.copy(total, Y)
            Z[0] = last
            Z[1] = last + 1

    same_on_threads(tiledsl.compile(main))


@pytest.mark.parametrize(("first", "meeting"), [(64, ("block", 64)), (96, ("warp", None))])
def test_a_tile_operation_of_some_warps(first: int, meeting: Any) -> None:
    @T.prim_func
    def main(X: T.Tensor((100,), "float32"), Y: T.Tensor((100,), "float32")):
        with T.Kernel(1, threads=128):
            t = T.get_thread_binding()
            s = T.alloc_shared((100,), "float32")
            if t >= first:
                T.copy(X, s)
                for i in T.Parallel(100):
                    Y[i] = s[99 - i]

    done = same_on_threads(tiledsl.compile(main))
    meets = [n for n in walk(done.kernels[0].body) if isinstance(n, ir.Sync)]
    assert [(s.scope, s.count) for s in meets] == [meeting]


def test_tiles_of_a_loop_are_the_same_memory_in_every_round() -> None:
    @T.prim_func
    def main(X: T.Tensor((40, 64), "float32"), Y: T.Tensor((40, 64), "float32")):
        with T.Kernel(1, threads=64):
            for k in T.serial(40):
                s = T.alloc_shared((64,), "float32")
                for i in T.Parallel(64):
                    s[i] = X[k, i]
                for i in T.Parallel(64):
                    Y[k, i] = s[63 - i]

    done = same_on_threads(tiledsl.compile(main))
    loop = next(n for n in walk(done.kernels[0].body) if isinstance(n, ir.For))
    assert sum(isinstance(n, ir.Sync) for n in walk(loop.body)) == 2


def test_tiles_take_turns_where_the_architecture_has_too_little_memory() -> None:
    @T.prim_func
    def main(X: T.Tensor((2, 64, 240), "float32"), Y: T.Tensor((2, 64, 240), "float32")):
        with T.Kernel(1, threads=64):
            s, t = T.alloc_shared((64, 240), "float32"), T.alloc_shared((64, 240), "float32")
            for k, tile in enumerate((s, t)):
                T.copy(X[k, 0, 0], tile)
                for i, j in T.Parallel(64, 240):
                    Y[k, i, j] = tile[63 - i, 239 - j]

    size = 64 * 240 * 4
    for arch, tiles in (("sm_120", 1), ("sm_90", 2)):
        done = same_on_threads(tiledsl.compile(main), arch=arch)
        assert [k.shared_bytes for k in lower(done, arch).kernels] == [tiles * size]


@pytest.mark.parametrize("into_registers", [False, True])
def test_iterations_that_read_what_they_stored(into_registers: bool) -> None:
    """Several threads hold a row's scale; only one of them stores into shared memory, and it alone reads that again."""

    @T.prim_func
    def main(X: T.Tensor((8, 24), "float32"), Y: T.Tensor((8,), "float32"), Z: T.Tensor((8,), "float32")):
        with T.Kernel(1, threads=64):
            x = T.alloc_fragment((8, 24), "float32")
            scale = T.alloc_fragment((8,), "float32")
            steps = T.alloc_shared((3, 8), "float32")
            T.copy(X, x)
            T.reduce_max(x, scale, dim=1)
            for i in T.Parallel(8):
                for k in T.serial(3):
                    steps[k, i] = scale[i] * k
                if into_registers:
                    scale[i] = steps[2, i] + 1
                Y[i] = steps[1, i] + steps[2, i]
            T.copy(scale, Z)

    done = same_on_threads(tiledsl.compile(main))
    assert ("scale" in registers(done)) is not into_registers


def test_all_threads_are_back_behind_loops_that_some_leave() -> None:
    @T.prim_func
    def main(X: T.Tensor((64,), "int32"), Y: T.Tensor((40,), "int32"), Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            t = T.get_thread_binding()
            s = T.alloc_shared((40,), "int32")
            v = T.alloc_var("int32", 0)
            T.clear(s)
            for i in T.Parallel(40):
                if (i + X[t]) % 3 == 0:
                    continue
                s[i] = i
            if X[t] > 0:
                for k in T.serial(5):
                    if k > X[t]:
                        break
                    v += k
            T.copy(s, Y)
            Z[t] = v

    same_on_threads(tiledsl.compile(main))


def test_registers_are_numbered_when_the_text_is_made() -> None:
    """A fragment that every thread holds whole is in registers where loops are written out, else in shared memory; the
    first value of a variable may come from one."""

    @T.prim_func
    def main(X: T.Tensor((40,), "float32"), Y: T.Tensor((40,), "float32"), Z: T.Tensor((1,), "float32")):
        with T.Kernel(1, threads=32):
            few = T.alloc_fragment((4,), "float32")
            many = T.alloc_fragment((40,), "float32")
            T.copy(X[0:4], few)
            T.copy(X, many)
            first = T.alloc_var("float32", few[1])
            for k in T.serial(4):
                few[k] = few[k] + 1.0
            for k in T.serial(39):
                many[k + 1] = many[k + 1] + many[k]
            T.copy(many, Y)
            Z[0] = first + few[3]

    assert {"few", "many"} & registers(same_on_threads(tiledsl.compile(main))) == {"few"}


def test_expressions_are_printed_once() -> None:
    """Nested conversions and shifts make a text of their own length, and no two minus signs meet."""

    @T.prim_func
    def main(X: T.Tensor((64,), "uint32"), Y: T.Tensor((64,), "uint32"), Z: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            for i in T.Parallel(64):
                e = T.cast(X[i], "uint64")
                for _ in [None] * 60:
                    e = T.cast(T.cast(e >> 1, "uint32"), "uint64")
                Y[i] = T.cast(e, "uint32")
                minus = T.cast(X[i], "float32") * -1.0
                Z[i] = -(0.0 - minus) if X[i] > 3 else -T.abs(-minus)

    text = lower(same_on_threads(tiledsl.compile(main)), "sm_80").kernels[0].text
    assert text.count("tl_shr") == 60 and "--" not in text


# -- what GPUs cannot do ---------------------------------------------------------------------------------------------


def test_too_much_shared_memory_is_said_with_the_arithmetic() -> None:
    @T.prim_func
    def main(X: T.Tensor((300, 300), "float32")):
        with T.Kernel(1, threads=64):
            big = T.alloc_shared((300, 300), "float32")
            T.copy(X, big)
            T.copy(big, X)

    with pytest.raises(
        TileNotImplementedError, match=r"take 360064 bytes.*sm_80 has 166912 per block: big 300x300 float32"
    ):
        lower(tiledsl.compile(main).function, "sm_80")


def test_text_names_the_authors_lines() -> None:
    (kernel,) = lower(KERNELS["gemm"].kernel().function, "sm_90a").kernels
    assert "tests/kernels" in kernel.text and "| T.gemm(A_s, B_s, acc)" in kernel.text
    assert "asm" not in kernel.text and "template" not in kernel.text and "#include" not in kernel.text
    assert [p.name for p in kernel.params] == ["A", "B", "C", "m", "k", "n"]
