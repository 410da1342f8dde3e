"""How threads become lanes: warps and lanes by division, blocks that are narrow along x, vectors of each thread; every
target against the interpreter in exact mode, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from properties.support import agree

import tiledsl
import tiledsl.language as T

RNG = np.random.default_rng(17)


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


def loops(kernel: tiledsl.JITKernel) -> str:
    return kernel.text("loop", target="llvm")


def by_warps(threads: int, warp: int, at: int, spell: str) -> tiledsl.JITKernel:
    """Each warp has a row; `at` shifts the threads, so that sixteen of them need not be of one warp."""

    @T.prim_func
    def main(X: T.Tensor((12, 400), "float32"), Y: T.Tensor((12, 400), "float32"), Z: T.Tensor((300,), "int32")):
        with T.Kernel(3, threads=threads) as b:
            t = T.get_thread_binding(0) + at
            if spell == "div":
                row, lane = t // warp, t % warp
            elif spell == "bits":
                row, lane = t >> (warp.bit_length() - 1), t & (warp - 1)
            else:  # every second element, whose lanes go through two warps
                row, lane = 2 * t // warp, 2 * t % warp
            Y[3 * b + row % 3, lane + 5] = X[3 * b + row % 3, lane + 1] * 2.0
            Z[b * threads + t - at] = row * 1000 + lane + (t & -warp)

    return tiledsl.compile(main)


@pytest.mark.parametrize("spell", ["div", "bits", "twice"])
@pytest.mark.parametrize(
    ("threads", "warp", "at"), [(96, 32, 0), (96, 32, 8), (96, 32, 16), (33, 16, 0), (80, 64, 3), (70, 48, 0)]
)
def test_warps_by_division(threads: int, warp: int, at: int, spell: str) -> None:
    if spell == "bits" and warp == 48:
        warp = 8
    agree(by_warps(threads, warp, at, spell), floats(12, 400), floats(12, 400), np.zeros(300, np.int32))


def test_a_row_of_a_warp_is_read_as_it_lies() -> None:
    def gathers(text: str) -> int:
        return text.count("T.ramp(")

    assert gathers(loops(by_warps(96, 32, 0, "div"))) < gathers(loops(by_warps(96, 32, 8, "div")))


def flat(a: int, b: int, c: int, block: int) -> tiledsl.JITKernel:
    @T.prim_func
    def main(X: T.Tensor((a, b, c), "float32"), W: T.Tensor((c,), "float32"), Y: T.Tensor((a, b, c), "float32")):
        with T.Kernel(T.ceildiv(a * b * c, block)) as k:
            for i in T.Parallel(block):
                f = k * block + i
                if f < a * b * c:
                    Y[f // (b * c), f // c % b, f % c] = X[f // (b * c), f // c % b, f % c] * W[f % c]

    return tiledsl.compile(main)


@pytest.mark.parametrize(
    ("a", "b", "c", "block"), [(3, 5, 32, 64), (2, 3, 48, 96), (3, 5, 7, 64), (1, 4, 16, 33), (2, 3, 64, 40)]
)
def test_flat_indices(a: int, b: int, c: int, block: int) -> None:
    agree(flat(a, b, c, block), floats(a, b, c), floats(c), floats(a, b, c))


def negative(n: int) -> tiledsl.JITKernel:
    """Quotients and remainders of numbers below zero."""

    @T.prim_func
    def main(Q: T.Tensor((n,), "int32"), R: T.Tensor((n,), "int32"), S: T.Tensor((n,), "int32")):
        with T.Kernel(1):
            for i in T.Parallel(n):
                Q[i] = (i - 64) // 32
                R[i] = (i - 64) % 32
                S[i] = (i - 48) // 32 + (i - 64) % 96

    return tiledsl.compile(main)


@pytest.mark.parametrize("n", [16, 48, 96, 101])
def test_below_zero(n: int) -> None:
    agree(negative(n), *(np.zeros(n, np.int32) for _ in range(3)))


def narrow_blocks(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str, k: int, mk: int) -> tiledsl.JITKernel:
    """Products of rows, summed over the threads along some axes; every thread keeps what it loads."""
    count = int(np.prod(shape))
    group = int(np.prod([shape[a] for a in axes]))

    @T.prim_func
    def main(A: T.Tensor((k,), dtype), B: T.Tensor((count, k), dtype), C: T.Tensor((count,), "float32")):
        with T.Kernel(1, threads=shape):
            ts = [T.get_thread_binding(a) for a in range(len(shape))]
            row, part = 0, 0
            for a, t in enumerate(ts):
                if a in axes:
                    part = part * shape[a] + t
                else:
                    row = row * shape[a] + t
            a_l = T.alloc_local((mk,), dtype)
            b_l = T.alloc_local((mk,), dtype)
            acc = T.alloc_local((1,), "float32")
            out = T.alloc_local((1,), "float32")
            T.clear(acc)
            for r in T.serial(T.ceildiv(k, group * mk)):
                for v in T.vectorized(mk):
                    at = (r * group + part) * mk + v
                    a_l[v] = T.if_then_else(at < k, A[at], 0)
                    b_l[v] = T.if_then_else(at < k, B[row, at], 0)
                for v in T.serial(mk):
                    acc[0] += T.cast(a_l[v], "float32") * T.cast(b_l[v], "float32")
            with T.attr(
                T.comm_reducer(lambda x, y: x + y, [T.Cast("float32", 0)]),
                "reduce_scope",
                T.reinterpret(T.uint64(0), dtype="handle"),
            ):
                T.evaluate(
                    T.tvm_thread_allreduce(T.uint32(1), acc[0], True, out[0], *(ts[a] for a in axes), dtype="handle")
                )
            C[row] = out[0]

    return tiledsl.compile(main)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((2, 32), (1,)), ((4, 16), (1,)), ((3, 17), (1,)), ((8, 8), (1,)), ((32, 32), (1,)), ((32, 4), (0,)),
        ((2, 3, 16), (2,)), ((2, 16, 3), (1, 2)), ((4, 64), (1,)), ((2, 48), (1,)),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("dtype", "k", "mk"), [("float32", 256, 4), ("float16", 250, 8), ("float32", 131, 1)])
def test_narrow_blocks(shape: tuple[int, ...], axes: tuple[int, ...], dtype: str, k: int, mk: int) -> None:
    count = int(np.prod(shape))
    args = floats(k, dtype=dtype), floats(count, k, dtype=dtype), np.zeros(count, np.float32)
    agree(narrow_blocks(shape, axes, dtype, k, mk), *args, what=f"{shape} {axes}")


def test_shuffles_of_unrolled_loops_are_fixed() -> None:
    def scan(step: str) -> tiledsl.JITKernel:
        @T.prim_func
        def main(X: T.Tensor((64,), "int32"), Y: T.Tensor((64,), "int32")):
            with T.Kernel(1, threads=64):
                t = T.get_thread_binding(0)
                v = T.alloc_var("int32")
                v = X[t]
                for r in T.unroll(5):
                    if step == "up":
                        o = T.shfl_up(v, 1 << r)
                        if t % 32 >= (1 << r):
                            v += o
                    elif step == "xor":
                        v = T.max(v, T.shfl_xor(v, 16 >> r)) - r
                    else:
                        v += T.shfl_down(v, 1 << r)
                Y[t] = v

        return tiledsl.compile(main)

    for step in ("up", "xor", "down"):
        agree(scan(step), RNG.integers(-9, 9, 64).astype(np.int32), np.zeros(64, np.int32))


def vectors(way: int, dtype: str, extra: int, start: int, warp: bool, guard: bool) -> tiledsl.JITKernel:
    """Every thread moves `way` neighbours at a time; rows are whole groups, or longer by `extra`."""
    n, threads = 48 * way + extra, 48

    @T.prim_func
    def main(X: T.Tensor((3, n), dtype), Y: T.Tensor((3, n), dtype), Z: T.Tensor((3, n), "float32")):
        with T.Kernel(3, threads=threads) as b:
            t = T.get_thread_binding(0)
            at = (t // 16 * 16 + t % 16) * way if warp else t * way
            x = T.alloc_local((way,), dtype)
            for v in T.vectorized(way):
                if guard:
                    x[v] = T.if_then_else(at + v + start < n, X[b, at + v + start], 0)
                else:
                    x[v] = X[b, at + v]
            for v in T.serial(way - 1):  # what follows needs the one before
                x[v + 1] += x[v]
            for v in T.vectorized(way):
                Y[b, at + v] = x[v]
            for v in T.vectorized(way):
                if v != 1 or way == 1:  # one is never stored
                    Z[b, at + v] = T.cast(x[v], "float32") + T.cast(Y[b, at + way - 1 - v], "float32")

    return tiledsl.compile(main)


@pytest.mark.parametrize("way", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize(
    ("dtype", "extra", "start", "warp", "guard"),
    [
        ("float32", 0, 0, False, False), ("float16", 0, 0, True, False), ("bfloat16", 1, 0, False, False),
        ("int8", 0, 3, True, True), ("float64", 0, 0, False, False), ("float8_e5m2", 0, 1, False, True),
        ("uint8", 0, 0, True, False), ("int64", 16, 0, False, False),
    ],
)  # fmt: skip
def test_vectors_of_threads(way: int, dtype: str, extra: int, start: int, warp: bool, guard: bool) -> None:
    kind = tiledsl.dtypes.as_dtype(dtype).numpy
    n = 48 * way + extra
    x = RNG.integers(-9, 9, (3, n)).astype(kind)
    agree(vectors(way, dtype, extra, start, warp, guard), x, np.zeros((3, n), kind), np.zeros((3, n), np.float32))


@pytest.mark.parametrize("way", [2, 4, 8, 16])
def test_vectors_of_threads_need_no_gathers(way: int) -> None:
    text = loops(vectors(way, "float32", 0, 0, True, False))
    assert "evens" in text and "zip_low" in text
    before = text[: text.index("zip_low")]
    assert "T.ramp(" not in before


def pairs(n: int, other: int) -> tiledsl.JITKernel:
    """Neighbours in one row change places; a row is read again after it was written, and written twice."""

    @T.prim_func
    def main(X: T.Tensor((4, n), "float16"), C: T.Tensor((n // 2,), "float32"), Y: T.Tensor((4, n), "float32")):
        with T.Kernel(4) as b:
            s = T.alloc_shared((n,), "float32")
            T.copy(X[b, 0:n], s)
            for i in T.Parallel(n // 2):
                Y[b, 2 * i] = s[2 * i] * C[i] - s[2 * i + 1]
                Y[b, 2 * i + 1] = s[2 * i + 1] * C[i] + s[2 * i]
            for i in T.Parallel(n // 2):
                a, c = s[2 * i], s[2 * i + 1]
                s[2 * i] = c
                s[2 * i + 1] = a + s[2 * i + other]
                s[2 * i] = s[2 * i + 1] + s[2 * i]
            for i in T.Parallel(n // 2):
                Y[b, 2 * i + 1] = s[2 * i + 1] + Y[b, 2 * i]
                if i % 3 != 1:
                    Y[b, 2 * i] = s[2 * i]

    return tiledsl.compile(main)


@pytest.mark.parametrize("n", [2, 14, 32, 34, 64, 66, 130])
@pytest.mark.parametrize("other", [0, 1])
def test_pairs(n: int, other: int) -> None:
    agree(pairs(n, other), floats(4, n, dtype=np.float16), floats(n // 2), floats(4, n))


def dynamic_rows(way: int) -> tiledsl.JITKernel:
    """Rows whose length is known at run time only: nothing may be read beyond them."""

    @T.prim_func
    def main(X: T.Tensor((3, T.dynamic("n")), "float32"), Y: T.Tensor((3, 16), "float32")):
        n = X.shape[1]
        with T.Kernel(3, threads=16) as b:
            t = T.get_thread_binding(0)
            acc = T.alloc_var("float32", init=0.0)
            for v in T.serial(way):
                if t * way + v < n:
                    acc += X[b, t * way + v]
            Y[b, t] = acc

    return tiledsl.compile(main)


@pytest.mark.parametrize("n", [1, 17, 63, 64])
def test_rows_of_a_length_that_the_run_decides(n: int) -> None:
    agree(dynamic_rows(4), floats(3, n), floats(3, 16))


@pytest.mark.parametrize("op", ["max", "min", "sum"])
@pytest.mark.parametrize(
    ("threads", "dtype"),
    [((32,), "float32"), ((96,), "float16"), ((17,), "float32"), ((4, 24), "float32"), ((160,), "float64")],
)
def test_extrema_of_warps_and_blocks(op: str, threads: tuple[int, ...], dtype: str) -> None:
    count = int(np.prod(threads))
    reducer = {"max": lambda x, y: T.max(x, y), "min": lambda x, y: T.min(x, y), "sum": lambda x, y: x + y}[op]
    of_warp = {"max": T.warp_reduce_max, "min": T.warp_reduce_min, "sum": T.warp_reduce_sum}[op]

    @T.prim_func
    def main(X: T.Tensor((count,), dtype), Y: T.Tensor((2, count), dtype)):
        with T.Kernel(1, threads=threads):
            ts = [T.get_thread_binding(a) for a in range(len(threads))]
            t = ts[0] if len(threads) == 1 else ts[1] * threads[0] + ts[0]
            out = T.alloc_local((1,), dtype)
            with T.attr(
                T.comm_reducer(reducer, [T.Cast(dtype, 0)]), "reduce_scope", T.reinterpret(T.uint64(0), dtype="handle")
            ):
                T.evaluate(T.tvm_thread_allreduce(T.uint32(1), X[t], True, out[0], ts[-1], dtype="handle"))
            Y[0, t] = out[0]
            Y[1, t] = of_warp(X[t])

    x = floats(count, dtype=dtype)
    for special in (
        x,
        np.where(np.arange(count) % 3, x, np.nan).astype(dtype),
        np.full(count, np.nan, dtype),
        np.where(np.arange(count) % 2, -0.0, 0.0).astype(dtype),
    ):
        agree(tiledsl.compile(main), special, np.zeros((2, count), dtype))
