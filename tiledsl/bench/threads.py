"""Jobs of `tiledsl bench` at the thread level, against the same computation in plain Numba loops."""

# mypy: disable-error-code="no-untyped-def,valid-type"

from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.bench.job import Array, Job, Thunk

__all__ = ["THREADS", "block_histogram", "block_sums", "tiled_transpose"]


def block_sums(n: int, chunk: int, threads: int) -> Any:
    """B[b] = sum of A[b * chunk : (b + 1) * chunk] float32: strided sums of threads, then of warps by shuffles."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.float32), B: T.Tensor((n // chunk,), T.float32)):
        with T.Kernel(n // chunk, threads=threads) as bx:
            tx = T.get_thread_binding()
            warps = T.alloc_shared((threads // 32,), T.float32)
            own = T.alloc_var(T.float32, 0.0)
            for i in T.serial(chunk // threads):
                own += A[bx * chunk + i * threads + tx]
            for s in T.unroll(5):
                own += T.shfl_down(own, 16 >> s)
            if tx % 32 == 0:
                warps[tx // 32] = own
            T.sync_threads()
            if tx < 32:
                rest = T.alloc_var(T.float32, 0.0)
                if tx < threads // 32:
                    rest = warps[tx]
                for s in T.unroll(5):
                    rest += T.shfl_down(rest, 16 >> s)
                if tx == 0:
                    B[bx] = rest

    return main


def tiled_transpose(m: int, n: int) -> Any:
    """B[n, m] = A[m, n] transposed, float32: tiles of 32x32 in shared memory, by 32x8 threads."""

    @T.prim_func
    def main(A: T.Tensor((m, n), T.float32), B: T.Tensor((n, m), T.float32)):
        with T.Kernel(T.ceildiv(n, 32), T.ceildiv(m, 32), threads=(32, 8)) as (bx, by):
            tx = T.get_thread_binding(0)
            ty = T.get_thread_binding(1)
            tile = T.alloc_shared((32, 33), T.float32)
            for j in T.serial(0, 32, 8):
                tile[ty + j, tx] = A[by * 32 + ty + j, bx * 32 + tx]
            T.sync_threads()
            for j in T.serial(0, 32, 8):
                B[bx * 32 + ty + j, by * 32 + tx] = tile[tx, ty + j]

    return main


def block_histogram(n: int, bins: int, chunk: int, threads: int) -> Any:
    """H[v] += how often v stands in A (int32, 0 <= v < bins): shared counters of each block, added up at its end."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), H: T.Tensor((bins,), T.int32)):
        with T.Kernel(n // chunk, threads=threads) as bx:
            tx = T.get_thread_binding()
            counts = T.alloc_shared((bins,), T.int32)
            T.clear(counts)
            for i in T.serial(chunk // threads):
                T.atomic_add(counts[A[bx * chunk + i * threads + tx]], 1)
            T.sync_threads()
            for i in T.serial(T.ceildiv(bins, threads)):
                if i * threads + tx < bins:
                    T.atomic_add(H[i * threads + tx], counts[i * threads + tx])

    return main


# -- the same in plain Numba -------------------------------------------------------------------------------


def _sums(a: Array, b: Array) -> None:
    chunk = a.shape[0] // b.shape[0]
    for block in range(b.shape[0]):
        total = np.float32(0)
        for i in range(chunk):
            total += a[block * chunk + i]
        b[block] = total


def _transpose(a: Array, b: Array) -> None:
    for i0 in range(0, a.shape[0], 32):
        for j0 in range(0, a.shape[1], 32):
            for i in range(i0, min(i0 + 32, a.shape[0])):
                for j in range(j0, min(j0 + 32, a.shape[1])):
                    b[j, i] = a[i, j]


def _histogram(a: Array, h: Array) -> None:
    for i in range(a.shape[0]):
        h[a[i]] += 1


def _contest(target: str | None, function: Any, plain: Any, given: Array, out: Array) -> dict[str, Thunk]:
    """Ours and Numba's, each with an output of its own; both start from zeros where they count."""
    import numba

    kernel, loops, other = tiledsl.compile(function), numba.njit(plain), out.copy()

    def ours() -> Any:
        kernel(given, out, target=target)
        return out

    def with_numba() -> Any:
        loops(given, other)
        return other

    return {"tiledsl": ours, "numba": with_numba}


_N, _CHUNK = 1 << 20, 1024


def _sum_job(target: str | None, small: bool) -> dict[str, Thunk]:
    n = 1 << 12 if small else _N
    a = np.random.default_rng(0).standard_normal(n, dtype=np.float32)
    return _contest(target, block_sums(n, _CHUNK, 256), _sums, a, np.zeros(n // _CHUNK, np.float32))


def _transpose_job(target: str | None, small: bool) -> dict[str, Thunk]:
    n = 70 if small else 1024
    a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    return _contest(target, tiled_transpose(n, n), _transpose, a, np.zeros_like(a))


def _histogram_job(target: str | None, small: bool) -> dict[str, Thunk]:
    n = 1 << 14 if small else _N
    v = np.random.default_rng(0).integers(0, 256, n).astype(np.int32)
    return _contest(target, block_histogram(n, 256, 8192, 256), _histogram, v, np.zeros(256, np.int32))


THREADS = (
    Job("threads-sum", _sum_job, _N),
    Job("threads-transpose", _transpose_job, _N),
    Job("threads-histogram", _histogram_job, _N),
)
