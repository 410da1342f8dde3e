"""Kernels of the registry that reduce, that come in several launches, and to whose results many contribute."""

from __future__ import annotations

from typing import Any

import numpy as np
from kernels_registry import entry, normal

import tiledsl
import tiledsl.language as T

# -- reductions, float64, several outputs --------------------------------------------------------------------


@entry(lambda s, r: [np.tile(normal(r, 19, 33, dtype=np.float64), s), np.zeros(33 * s, np.float64),
                     np.zeros(19, np.float64), np.zeros(19, np.int32)])  # fmt: skip
def reductions(s: int) -> Any:
    """Both axes, absolute values, clear=False across blocks of columns, an argmax through a serial loop."""
    n = T.dynamic("n")
    B = 16 * s

    @T.prim_func
    def main(X: T.Tensor((19, n), "float64"), C: T.Tensor((n,), "float64"), R: T.Tensor((19,), "float64"),
             A: T.Tensor((19,), "int32")):  # fmt: skip
        with T.Kernel(1):
            x = T.alloc_fragment((19, B), "float64")
            columns = T.alloc_fragment((B,), "float64")
            rows = T.alloc_fragment((19,), "float64")
            best = T.alloc_fragment((19,), "int32")
            T.clear(rows)
            T.clear(best)
            for j in T.serial(T.ceildiv(n, B)):
                T.copy(X[0, j * B], x)
                T.reduce_abssum(x, columns, dim=0)
                T.copy(columns, C[j * B])
                T.reduce_absmax(x, rows, dim=1, clear=False)
            for i in T.Parallel(19):
                top = T.alloc_local((1,), "float64")
                top[0] = -T.infinity("float64")
                for j in T.serial(33):
                    if X[i, j] > top[0]:
                        top[0] = X[i, j]
                        best[i] = j
            T.copy(rows, R)
            T.copy(best, A)

    return main


@entry(lambda s, r: [normal(r, 60 * s), normal(r, 60 * s), np.zeros(60 * s, np.float32), np.zeros(60 * s, np.float32)])
def several_kernels(s: int) -> Any:
    """Two launches in one function, in order."""
    n = T.dynamic("n")
    B = 32 * s

    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), B_: T.Tensor((n,), "float32"), C: T.Tensor((n,), "float32"),
             D: T.Tensor((n,), "float32")):  # fmt: skip
        with T.Kernel(T.ceildiv(n, B)) as b:
            for i in T.Parallel(B):
                C[b * B + i] = A[b * B + i] + B_[b * B + i]
        with T.Kernel(T.ceildiv(n, B)) as b:
            for i in T.Parallel(B):
                D[b * B + i] = C[n - 1 - b * B - i] * 2.0

    return main


@entry(lambda s, r: [normal(r, 35 * s, 18 * s), normal(r, 18 * s), np.zeros((35 * s, 18 * s), np.float32)])
def eager_style(s: int) -> Any:
    """T.const, T.empty and annotations in the body."""

    @tiledsl.jit
    def add_row(A, V, block=8 * s):
        M, N = T.const("M, N")
        A: T.Tensor[(M, N), T.float32]
        V: T.Tensor[(N,), T.float32]
        C = T.empty((M, N), "float32")
        with T.Kernel(T.ceildiv(M, block)) as b:
            for i, j in T.Parallel(block, N):
                C[b * block + i, j] = A[b * block + i, j] + V[j]
        return C

    return add_row.kernel(M=35 * s, N=18 * s)


@entry(lambda s, r: [normal(r, 3, 17, 29 * s), np.zeros((3, 17, 29 * s), np.float32), 17, 2.5])
def scalars_and_grid(s: int) -> Any:
    """T.grid with scalar bodies, scalar parameters as bounds, fma, clamp, rounding and selection."""
    n = T.dynamic("n")

    @T.prim_func
    def main(X: T.Tensor((3, 17, n), "float32"), Y: T.Tensor((3, 17, n), "float32"), rows: T.int32, low: T.float32):
        with T.Kernel(3, threads=1) as b:
            for i, j in T.grid(rows, 4):
                x = X[b, i, j]
                Y[b, i, j] = T.fma(x, x, low) if j % 2 else T.clamp(x, -low, low)
            for i, j in T.Parallel(17, 29 * s):
                if j >= 4:
                    Y[b, i, j] = T.Select(X[b, i, j] > 0, T.floor(X[b, i, j]), T.round(X[b, i, j] * 4.0))

    return main


@entry(
    lambda s, r: [
        normal(r, 26 * s, dtype=np.float16),
        normal(r, 26 * s, dtype=np.float16),
        np.zeros(26 * s, np.float16),
    ]
)
def half_chain(s: int) -> Any:
    """Every operator on float16 rounds; sigmoid and exp in halves; a literal float makes float32."""
    n = T.dynamic("n")
    B = 16 * s

    @T.prim_func
    def main(A: T.Tensor((n,), "float16"), B_: T.Tensor((n,), "float16"), C: T.Tensor((n,), "float16")):
        with T.Kernel(T.ceildiv(n, B)) as b:
            for i in T.Parallel(B):
                a, c = A[b * B + i], B_[b * B + i]
                y = a * c + a - c / 3
                z = T.sigmoid(y) * T.exp(a) + T.sqrt(T.abs(c))
                C[b * B + i] = z + y * 1.5

    return main


# -- contributions of many ----------------------------------------------------------------------------------------


@entry(lambda s, r: [r.integers(-1, 12, 50 * s).astype(np.int32), normal(r, 50 * s), np.zeros(12, np.int32),
                     np.zeros((12, 3), np.float32), np.zeros(50 * s, np.int32)])  # fmt: skip
def counted(s: int) -> Any:
    """Atomics on shared and global memory with and without old values, a tile added at a corner, a workspace."""
    n = T.dynamic("n")
    B = 16 * s

    @T.prim_func
    def main(I: T.Tensor((n,), "int32"), X: T.Tensor((n,), "float32"), H: T.Tensor((12,), "int32"),
             M: T.Tensor((12, 3), "float32"), rank: T.Tensor((n,), "int32")):  # fmt: skip
        first = T.alloc_global((n,), "int32")
        with T.Kernel(1, threads=32):
            counts = T.alloc_shared((12,), "int32")
            T.clear(counts)
            for k in T.serial(T.ceildiv(n, B)):
                for i in T.Parallel(B):
                    at = k * B + i
                    if at < n and I[at] >= 0:
                        first[at] = T.atomic_add(counts[I[at]], 1, return_prev=True)
                        T.atomic_max(M[I[at], 0], X[at])
                        T.atomic_min(M[I[at], 1], X[at], memory_order="acq_rel")
            T.atomic_add(H[1], counts)
        with T.Kernel(T.ceildiv(n, B)) as b:
            for i in T.Parallel(B):
                if I[b * B + i] >= 0:
                    rank[b * B + i] = first[b * B + i]

    return main


@entry(lambda s, r: [normal(r, 33 * s, 20 * s, dtype=np.float16), np.zeros(33 * s, np.float32),
                     np.zeros(20 * s, np.float16), np.zeros((33 * s, 20 * s), np.float32)])  # fmt: skip
def collected(s: int) -> Any:
    """Reducers over rows and columns, with a condition and an inner loop; scans of both directions, in place."""
    M, N = 33 * s, 20 * s

    @T.prim_func
    def main(X: T.Tensor((M, N), "float16"), R: T.Tensor((M,), "float32"), C: T.Tensor((N,), "float16"),
             O: T.Tensor((M, N), "float32")):  # fmt: skip
        with T.Kernel(1):
            x = T.alloc_shared((M, N), "float16")
            y = T.alloc_fragment((M, N), "float32")
            rows = T.alloc_reducer((M,), "float32", op="sum")
            columns = T.alloc_reducer((N,), "float16", op="max")
            T.copy(X, x)
            T.reducer_init(rows, 0.5)
            T.fill(columns, -1)
            for i, j in T.Parallel(M, N):
                for k in T.serial(2):
                    if x[i, j] > k:
                        rows[i] += x[i, j]
                columns[j] = T.max(columns[j], x[i, j])
            T.finalize_reducer(rows, R)
            T.finalize_reducer(columns)
            T.copy(columns, C)
            T.cumsum(x, y, dim=1, reverse=True)
            T.cummax(y, dim=0)
            T.copy(y, O)

    return main
