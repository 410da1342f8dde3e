"""Nests that are joined give what they gave apart: every target against the interpreter in exact mode, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from properties.support import agree

import tiledsl
import tiledsl.language as T

RNG = np.random.default_rng(23)


def floats(*shape: int, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    return RNG.standard_normal(shape).astype(dtype)


def nests(kernel: tiledsl.JITKernel) -> int:
    """Loops over the first axis of the tile, versions for boundaries not counted."""
    found = kernel.explain(*(np.zeros([e.value for e in p.buffer.shape], p.buffer.dtype.numpy) for p in kernel.params))
    return sum(any("at a time" in c for c in line.chosen) for line in found.lines)


def staged(m: int, n: int, bm: int, bn: int, dtype: str) -> tiledsl.JITKernel:
    @T.prim_func
    def main(A: T.Tensor((m, n), dtype), B: T.Tensor((m, n), dtype), C: T.Tensor((m, n), dtype)):
        with T.Kernel(T.ceildiv(n, bn), T.ceildiv(m, bm)) as (bx, by):
            a, b = T.alloc_shared((bm, bn), dtype), T.alloc_shared((bm, bn), dtype)
            c, out = T.alloc_fragment((bm, bn), dtype), T.alloc_shared((bm, bn), dtype)
            T.copy(A[by * bm, bx * bn], a)
            T.copy(B[by * bm, bx * bn], b)
            for i, j in T.Parallel(bm, bn):
                c[i, j] = a[i, j] * b[i, j] + a[i, j]
            T.copy(c, out)
            T.copy(out, C[by * bm, bx * bn])

    return tiledsl.compile(main)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "float8_e4m3fn", "bool"])
@pytest.mark.parametrize(("m", "n", "bm", "bn"), [(33, 70, 16, 32), (7, 17, 8, 7), (1, 1, 1, 1), (5, 40, 3, 33)])
def test_tiles_on_their_way(m: int, n: int, bm: int, bn: int, dtype: str) -> None:
    if dtype == "bool":
        dtype = "uint8"
    kind = tiledsl.dtypes.as_dtype(dtype).numpy
    a, b = (RNG.integers(0, 9, (m, n)).astype(kind) for _ in range(2))
    kernel = staged(m, n, bm, bn, dtype)
    agree(kernel, a, b, np.zeros((m, n), kind))
    if bm * bn > 1:
        assert nests(kernel) == 1


def test_an_array_in_place() -> None:
    a, b = floats(33, 70), floats(33, 70)
    wanted = a * b + a
    staged(33, 70, 16, 32, "float32")(a, b, a)
    np.testing.assert_allclose(a, wanted, rtol=1e-6)


N = 48


def shifted() -> Any:
    """The neighbour's element."""

    @T.prim_func
    def main(X: T.Tensor((5, N), "float32"), Y: T.Tensor((5, N), "float32")):
        with T.Kernel(1):
            a, b = T.alloc_shared((5, N), "float32"), T.alloc_shared((5, N), "float32")
            T.copy(X, a)
            for i, j in T.Parallel(5, N):
                b[i, j] = a[i, (j + 1) % N] + a[4 - i, j]
            for i, j in T.Parallel(5, N):
                a[i, j] = b[i, j] * 2.0
            for i, j in T.Parallel(5, N):
                Y[i, j] = a[i, j] + b[(i + 1) % 5, j]

    return main


def branches() -> Any:
    """Elements that are stored by some iterations only, and twice."""

    @T.prim_func
    def main(X: T.Tensor((5, N), "float32"), Y: T.Tensor((5, N), "float32")):
        with T.Kernel(1):
            a, b = T.alloc_fragment((5, N), "float32"), T.alloc_fragment((5, N), "float16")
            T.copy(X, a)
            T.fill(b, 3.0)
            for i, j in T.Parallel(5, N):
                if X[i, j] > 0:
                    a[i, j] = a[i, j] + 1.0
                    b[i, j] = a[i, j] * 0.3
            for i, j in T.Parallel(5, N):
                a[i, j] = a[i, j] + b[i, j]
                b[i, j] = a[i, j] / 3.0
            for i, j in T.Parallel(5, N):
                Y[i, j] = a[i, j] - T.cast(b[i, j], "float32")

    return main


def rounds() -> Any:
    """What one round leaves, the next one reads; and what the loop leaves is reduced."""

    @T.prim_func
    def main(X: T.Tensor((5, N), "float32"), Y: T.Tensor((5, N), "float32")):
        with T.Kernel(1):
            p, a = T.alloc_fragment((5, N), "float32"), T.alloc_shared((5, N), "float32")
            old, s = T.alloc_fragment((5, N), "float32"), T.alloc_fragment((5,), "float32")
            T.clear(p)
            T.fill(old, 0.5)
            for r in T.serial(3):
                T.copy(X, a)
                for i, j in T.Parallel(5, N):
                    p[i, j] += a[i, j] * old[i, j]
                for i, j in T.Parallel(5, N):
                    old[i, j] = a[i, j] + r
            T.reduce_sum(p, s, dim=1)
            for i, j in T.Parallel(5, N):
                p[i, j] = p[i, j] / s[i]
            T.copy(p, Y)

    return main


def global_memory() -> Any:
    """Rows that are written, and read again elsewhere."""

    @T.prim_func
    def main(X: T.Tensor((5, N), "float32"), Y: T.Tensor((5, N), "float32")):
        with T.Kernel(1):
            a = T.alloc_fragment((5, N), "float32")
            for i, j in T.Parallel(5, N):
                Y[4 - i, j] = X[i, j] + 1.0
            for i, j in T.Parallel(5, N):
                a[i, j] = Y[i, j] * 2.0
            for i, j in T.Parallel(5, N):
                Y[i, j] = a[i, j] + X[4 - i, j]

    return main


def operands() -> Any:
    """Tiles that a product, a scan and a view read as well."""

    @T.prim_func
    def main(X: T.Tensor((5, N), "float32"), Y: T.Tensor((5, N), "float32")):
        with T.Kernel(1):
            a, b = T.alloc_shared((16, N), "float32"), T.alloc_shared((16, N), "float32")
            c, q = T.alloc_fragment((16, 16), "float32"), T.alloc_shared((5, N), "float32")
            T.copy(X[0:16, 0:N], a)
            for i, j in T.Parallel(16, N):
                b[i, j] = a[i, j] + 1.0
            T.gemm(a, b, c, transpose_B=True, clear_accum=True)
            T.copy(X, q)
            flat = T.reshape(q, (5 * N,))
            for i, j in T.Parallel(5, N):
                q[i, j] = q[i, j] * 2.0
            for i, j in T.Parallel(5, N):
                Y[i, j] = flat[(i * N + j + 7) % (5 * N)] + c[i, j % 16]

    return main


@pytest.mark.parametrize("make", [shifted, branches, rounds, global_memory, operands])
def test_what_must_stay_apart(make: Any) -> None:
    agree(tiledsl.compile(make()), floats(5, N), floats(5, N))
