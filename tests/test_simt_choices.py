"""What the lowering decides per product, per store and per tile, on the thread stage (interpreted) and as CUDA text on
the emulator: instructions for some products of a kernel, TF32 on request, stores of neighbours, tiles taking turns."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from properties import support
from test_simt_lowering import arrays, micro, product, same_on_threads

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.backend import load_backend
from tiledsl.backends.simt.lower import lower
from tiledsl.backends.simt.pipeline import simt_pipeline
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.ir.walk import walk
from tiledsl.passes import pipeline

CHECKED = "cuda-emulator:sm_80,checked,late"
needs_compiler = pytest.mark.skipif(not load_backend("cuda-emulator").probe().ok, reason="no C++ compiler")


def on_emulator(kernel: tiledsl.JITKernel, args: list[Any] | None = None) -> list[Any]:
    """All arguments after a checked run, and they are what the interpreter says."""
    args = arrays(kernel) if args is None else args
    wanted, got = support.copies(args), support.copies(args)
    kernel(*wanted, target="numpy:exact")
    kernel(*got, target=CHECKED)
    for p, a, b in zip(kernel.function.params, got, wanted, strict=True):
        support.assert_same(a, b, p.name)
    return got


# -- per product ----------------------------------------------------------------------------------------------------


def mixed(threads: int, n: int) -> Any:
    """A product of halves, for instructions, and one of float32 on what came out, by multiply-adds."""

    @T.prim_func
    def main(
        A: T.Tensor((32, 48), "float16"), B: T.Tensor((48, 40), "float16"), W: T.Tensor((40, n), "float32"),
        C: T.Tensor((32, 40), "float32"), D: T.Tensor((32, n), "float32"), R: T.Tensor((32,), "float32"),
    ):  # fmt: skip
        with T.Kernel(1, threads=threads):
            a, b = T.alloc_shared((32, 48), "float16"), T.alloc_shared((48, 40), "float16")
            w = T.alloc_shared((40, n), "float32")
            c, d = T.alloc_fragment((32, 40), "float32"), T.alloc_fragment((32, n), "float32")
            r = T.alloc_fragment((32,), "float32")
            T.copy(A, a)
            T.copy(B, b)
            T.copy(W, w)
            T.gemm(a, b, c, clear_accum=True)
            T.gemm(c, w, d, clear_accum=True)
            T.reduce_sum(d, r, dim=1)
            T.copy(c, C)
            T.copy(d, D)
            T.copy(r, R)

    return tiledsl.compile(main)


@pytest.mark.parametrize(("threads", "n"), [(32, 24), (64, 7), (64, 33), (160, 17)])
def test_one_product_that_no_instruction_does(threads: int, n: int) -> None:
    done = same_on_threads(mixed(threads, n))
    calls = [s for s in walk(done.kernels[0].body) if isinstance(s, ir.MicroCall) and s.name == "mma"]
    assert len(calls) == 1 if threads != 160 else len(calls) <= 1
    multiply_adds = [s for s in walk(done.kernels[0].body) if isinstance(s, ir.Fma)]
    assert multiply_adds


@needs_compiler
@pytest.mark.parametrize(("threads", "n"), [(32, 24), (64, 33)])
def test_one_product_that_no_instruction_does_as_text(threads: int, n: int) -> None:
    on_emulator(mixed(threads, n))


def test_warps_stand_as_most_of_the_work_wants() -> None:
    """128 rows by 8 columns and 16 by 512: four warps suit one of them at most, and the larger has them."""

    @T.prim_func
    def main(
        A: T.Tensor((16, 16), "float16"), B: T.Tensor((16, 512), "float16"), E: T.Tensor((128, 16), "float16"),
        F: T.Tensor((16, 8), "float16"), C: T.Tensor((16, 512), "float32"), G: T.Tensor((128, 8), "float32"),
    ):  # fmt: skip
        with T.Kernel(1, threads=128):
            a, b = T.alloc_shared((16, 16), "float16"), T.alloc_shared((16, 512), "float16")
            e, f = T.alloc_shared((128, 16), "float16"), T.alloc_shared((16, 8), "float16")
            c, g = T.alloc_fragment((16, 512), "float32"), T.alloc_fragment((128, 8), "float32")
            T.copy(A, a)
            T.copy(B, b)
            T.copy(E, e)
            T.copy(F, f)
            T.gemm(a, b, c, clear_accum=True)
            T.gemm(e, f, g, clear_accum=True)
            T.copy(c, C)
            T.copy(g, G)

    done = same_on_threads(tiledsl.compile(main))
    assert dict(done.kernels[0].attrs)["warps"] == (1, 4)
    (call,) = [s for s in walk(done.kernels[0].body) if isinstance(s, ir.MicroCall) and s.name == "mma"]
    assert call.writes[0].buffer.name == "c"


# -- TF32 -----------------------------------------------------------------------------------------------------------


def asked(
    precision: str, m: int, n: int, k: int, tile: tuple[int, int, int], threads: int, a_turned: bool, b_turned: bool
) -> Any:
    bm, bn, bk = tile

    @T.prim_func
    def main(
        A: T.Tensor((k, m) if a_turned else (m, k), "float32"),
        B: T.Tensor((n, k) if b_turned else (k, n), "float32"),
        C: T.Tensor((m, n), "float32"),
    ):
        with T.Kernel(T.ceildiv(n, bn), T.ceildiv(m, bm), threads=threads) as (bx, by):
            a = T.alloc_shared((bk, bm) if a_turned else (bm, bk), "float32")
            b = T.alloc_shared((bn, bk) if b_turned else (bk, bn), "float32")
            c = T.alloc_fragment((bm, bn), "float32")
            T.clear(c)
            for ko in T.Pipelined(T.ceildiv(k, bk), num_stages=2):
                T.copy(A[ko * bk, by * bm] if a_turned else A[by * bm, ko * bk], a)
                T.copy(B[bx * bn, ko * bk] if b_turned else B[ko * bk, bx * bn], b)
                T.gemm(a, b, c, transpose_A=a_turned, transpose_B=b_turned, precision=precision)
            T.copy(c, C[by * bm, bx * bn])

    return tiledsl.compile(main)


def rounded(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """float32 with 11 bits, to nearest, ties away from zero: by arithmetic, not by bits."""
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1], -125)  # below 2^-126 all have the same quantum
    steps = np.ldexp(np.abs(x.astype(np.float64)), 11 - exponent)
    return np.copysign(np.ldexp(np.floor(steps + 0.5), exponent - 11), x)


@needs_compiler
@pytest.mark.parametrize(("a_turned", "b_turned"), [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize(
    ("m", "n", "k", "tile", "threads"), [(37, 41, 29, (32, 16, 24), 64), (16, 8, 8, (16, 8, 8), 32)]
)
def test_tf32_on_request(
    m: int, n: int, k: int, tile: tuple[int, int, int], threads: int, a_turned: bool, b_turned: bool
) -> None:
    """On the emulator: exact products of operands with 11 bits, summed in float32. Everywhere else, and without the
    request: IEEE."""
    kernel = asked("tf32", m, n, k, tile, threads, a_turned, b_turned)
    assert {"mma", "tf32"} <= micro(pipeline.run(kernel.function, simt_pipeline("sm_80")))
    text = lower(kernel.function, "sm_80").kernels[0].text
    assert "tl_mma_m16n8k8_f32_tf32(" in text and ("tl_ldmatrix" in text) == (not a_turned or b_turned)
    a, b, c = arrays(kernel)
    x, y = (z.T if turned else z for z, turned in ((a, a_turned), (b, b_turned)))
    got = {}
    for target in ("numpy:exact", "llvm", CHECKED, "cuda-emulator:sm_90a,random=3,any", "cuda-emulator:sm_75"):
        got[target] = np.full_like(c, np.nan)
        kernel(a, b, got[target], target=target)
    for target in ("llvm", "cuda-emulator:sm_75"):  # sm_75 has no such instruction
        support.assert_same(got[target], got["numpy:exact"], target)
    support.assert_same(got[CHECKED], got["cuda-emulator:sm_90a,random=3,any"], "orders")
    units = (np.abs(x).astype(np.float64) @ np.abs(y).astype(np.float64)) * k * 2.0**-24
    exact = x.astype(np.float64) @ y.astype(np.float64)
    narrow = rounded(x) @ rounded(y)
    assert (np.abs(got["numpy:exact"] - exact) <= units).all()
    assert (np.abs(got[CHECKED] - narrow) <= units).all()
    assert (np.abs(got[CHECKED] - exact) > units).any()  # it is not IEEE
    plain = asked("ieee", m, n, k, tile, threads, a_turned, b_turned)
    assert not micro(pipeline.run(plain.function, simt_pipeline("sm_80"))) & {"mma", "tf32"}


def test_tf32_for_float32_only() -> None:
    with pytest.raises(TileTypeError, match='precision="tf32" is for float32 operands: .*float16'):

        @T.prim_func
        def main(A: T.Tensor((16, 16), "float16"), C: T.Tensor((16, 16), "float32")):
            with T.Kernel(1, threads=32):
                a, c = T.alloc_shared((16, 16), "float16"), T.alloc_fragment((16, 16), "float32")
                T.copy(A, a)
                T.gemm(a, a, c, precision="tf32")
                T.copy(c, C)

        tiledsl.compile(main)
    with pytest.raises(TileValueError, match="precision is 'tf23'"):
        asked("tf23", 16, 8, 8, (16, 8, 8), 32, False, False)


def test_what_is_no_number_stays() -> None:
    from tiledsl.ir.micro import MICRO

    x = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 1e-45, 3e38, 1 + 2.0**-11, 1 + 3 * 2.0**-12], np.float32)
    y = np.empty_like(x)
    MICRO["tf32"]([y], [x], [], {}, True)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(y[~finite], x[~finite])
    np.testing.assert_array_equal(y[finite], rounded(x[finite]).astype(np.float32))
    assert np.signbit(y[4]) and y[7] == 1 + 2.0**-10


# -- stores of neighbours ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "out"), [(40, "float32"), (40, "bfloat16"), (41, "float16"), (33, "float32")])
def test_neighbours_are_stored_together(n: int, out: str) -> None:
    """Rows of the result that begin anywhere, and end within a pair."""

    @T.prim_func
    def main(
        A: T.Tensor((37, 32), "bfloat16"), B: T.Tensor((32, n), "bfloat16"), bias: T.Tensor((n,), "float32"),
        C: T.Tensor((37, n), out), D: T.Tensor((37, n), "float32"),
    ):  # fmt: skip
        with T.Kernel(T.ceildiv(n, 16), T.ceildiv(37, 16), threads=64) as (bx, by):
            a, b = T.alloc_shared((16, 32), "bfloat16"), T.alloc_shared((32, 16), "bfloat16")
            c = T.alloc_fragment((16, 16), "float32")
            T.copy(A[by * 16, 0], a)
            T.copy(B[0, bx * 16], b)
            T.gemm(a, b, c, clear_accum=True)
            T.copy(c, C[by * 16, bx * 16])
            for i, j in T.Parallel(16, 16):
                D[by * 16 + i, bx * 16 + j] = c[i, j] + bias[bx * 16 + j]

    kernel = tiledsl.compile(main)
    same_on_threads(kernel)
    text = lower(kernel.function, "sm_80").kernels[0].text
    assert text.count(f"tl_copy_{2 * T.dtype(out).bytes}(dst") + text.count("tl_copy_8(dst") >= 2
    if load_backend("cuda-emulator").probe().ok:
        on_emulator(kernel)


# -- tiles that take turns --------------------------------------------------------------------------------------------


def turns(size: int, late: bool) -> Any:
    """Two tiles that never hold a value at once, or (late) the first is read behind the second's life."""

    @T.prim_func
    def main(X: T.Tensor((4, size), "float32"), Y: T.Tensor((4, size), "float32"), n: T.int32):
        with T.Kernel(1, threads=64):
            a, b = T.alloc_shared((4, size), "float32"), T.alloc_shared((4, size), "float32")
            for k in T.serial(n):
                if k % 2 == 0:
                    T.copy(X, a)
                    for i, j in T.Parallel(4, size):
                        Y[i, j] = Y[i, j] + a[3 - i, size - 1 - j]
                else:
                    T.copy(X, b)
                    for i, j in T.Parallel(4, size):
                        Y[i, j] = Y[i, j] * 2.0 - b[i, size - 1 - j]
                    if late:
                        for i, j in T.Parallel(4, size):
                            Y[i, j] = Y[i, j] - a[i, j]

    return tiledsl.compile(main)


def test_tiles_take_turns_where_all_do_not_fit() -> None:
    def tiles(size: int, late: bool) -> int:
        done = pipeline.run(turns(size, late).function, simt_pipeline("sm_80"))
        allocs = [n for n in walk(done.kernels[0].body) if isinstance(n, ir.Alloc)]
        return sum(s.buffer.scope == "shared" for s in allocs)

    assert tiles(100, False) == 2  # they fit: each its own
    assert tiles(7000, False) == 1  # 224000 bytes of 166912
    assert tiles(7000, True) == 2


@needs_compiler
def test_tiles_that_take_turns_are_right() -> None:
    kernel = turns(7000, False)
    x = np.random.default_rng(1).standard_normal((4, 7000)).astype(np.float32)
    wanted = np.ones_like(x)
    got = wanted.copy()
    kernel(x, wanted, 3, target="numpy:exact")
    kernel(x, got, 3, target=CHECKED)
    support.assert_same(got, wanted, "y")


def test_products_of_any_shape_keep_their_registers() -> None:
    """What no instruction does stays as it was: threads side by side along columns."""
    done = same_on_threads(product(17, 33, 19, (17, 33, 19), "float16", 64))
    assert "warps" not in dict(done.kernels[0].attrs)
