"""Small kernels that cover the language: each is run on every target, through every pass, printed and read back.

An entry is a factory `make(s)` of a `T.prim_func` whose tile sizes are multiplied by s, and of arguments whose
sizes are multiplied by s as well: loops then make as many trips, and the interpreter as many steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T

Array = np.ndarray[Any, Any]
Arguments = Callable[[int, np.random.Generator], list[Any]]


@dataclass(frozen=True)
class Entry:
    """make(s): the kernel; arguments(s, rng): its arguments in parameter order, outputs included."""

    name: str
    make: Callable[[int], Any]
    arguments: Arguments

    def kernel(self, s: int = 1) -> tiledsl.JITKernel:
        made = self.make(s)
        return made if isinstance(made, tiledsl.JITKernel) else tiledsl.compile(made)

    def args(self, s: int = 1, seed: int = 0) -> list[Any]:
        return self.arguments(s, np.random.default_rng(seed))


KERNELS: dict[str, Entry] = {}


def entry(arguments: Arguments) -> Callable[[Callable[[int], Any]], Callable[[int], Any]]:
    def register(make: Callable[[int], Any]) -> Callable[[int], Any]:
        KERNELS[make.__name__] = Entry(make.__name__, make, arguments)
        return make

    return register


def normal(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> Array:
    return rng.standard_normal(shape).astype(np.float32).astype(dtype)


def half(name: str) -> Any:
    return T.dtype(name).numpy


# -- GEMM ----------------------------------------------------------------------------------------------------


@entry(lambda s, r: [normal(r, 45 * s, 70 * s), normal(r, 70 * s, 37 * s), np.zeros((45 * s, 37 * s), np.float32)])
def gemm(s: int) -> Any:
    """The canonical one: pipelined K loop, symbolic sizes, tails on all sides."""
    m, n, k = T.dynamic("m, n, k")
    BM, BN, BK = 16 * s, 32 * s, 24 * s

    @T.prim_func
    def main(A: T.Tensor((m, k), "float32"), B: T.Tensor((k, n), "float32"), C: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(n, BN), T.ceildiv(m, BM), threads=128) as (bx, by):
            A_s = T.alloc_shared((BM, BK), "float32")
            B_s = T.alloc_shared((BK, BN), "float32")
            acc = T.alloc_fragment((BM, BN), "float32")
            T.use_swizzle(4)
            T.clear(acc)
            for ko in T.Pipelined(T.ceildiv(k, BK), num_stages=2):
                T.copy(A[by * BM, ko * BK], A_s)
                T.copy(B[ko * BK, bx * BN], B_s)
                T.gemm(A_s, B_s, acc)
            T.copy(acc, C[by * BM, bx * BN])

    return main


@entry(lambda s, r: [normal(r, 33 * s, 48 * s, dtype="float16"), normal(r, 40 * s, 48 * s, dtype="float16"),
                     normal(r, 40 * s), np.zeros((33 * s, 40 * s), np.float16)])  # fmt: skip
def gemm_bias_relu(s: int) -> Any:
    """Half operands, B transposed, an epilogue that reads a vector and rounds once."""
    m, n, k = T.dynamic("m, n, k")
    BM, BN, BK = 13 * s, 16 * s, 16 * s

    @T.prim_func
    def main(A: T.Tensor((m, k), "float16"), B: T.Tensor((n, k), "float16"), bias: T.Tensor((n,), "float32"),
             C: T.Tensor((m, n), "float16")):  # fmt: skip
        with T.Kernel(T.ceildiv(n, BN), T.ceildiv(m, BM)) as (bx, by):
            A_s = T.alloc_shared((BM, BK), "float16")
            B_s = T.alloc_shared((BN, BK), "float16")
            acc = T.alloc_fragment((BM, BN), "float32")
            for ko in T.Pipelined(T.ceildiv(k, BK)):
                T.copy(A[by * BM, ko * BK], A_s)
                T.copy(B[bx * BN, ko * BK], B_s)
                T.gemm(A_s, B_s, acc, transpose_B=True, clear_accum=ko == 0)
            for i, j in T.Parallel(BM, BN):
                acc[i, j] = T.max(acc[i, j] + bias[bx * BN + j], 0)
            T.copy(acc, C[by * BM, bx * BN])

    return main


@entry(lambda s, r: [r.integers(-128, 128, (20 * s, 30 * s)).astype(np.int8),
                     r.integers(-128, 128, (30 * s, 20 * s)).astype(np.int8), normal(r, 20 * s),
                     np.zeros((20 * s, 20 * s), np.float32)])  # fmt: skip
def gemm_int8_dequant(s: int) -> Any:
    """Integer accumulation, A transposed in shared memory by a Parallel nest, scaled at the end."""
    m, n, k = T.dynamic("m, n, k")
    BM, BN, BK = 8 * s, 20 * s, 15 * s

    @T.prim_func
    def main(A: T.Tensor((m, k), "int8"), B: T.Tensor((k, n), "int8"), scale: T.Tensor((m,), "float32"),
             C: T.Tensor((m, n), "float32")):  # fmt: skip
        with T.Kernel(T.ceildiv(m, BM), T.ceildiv(n, BN)) as (by, bx):
            A_t = T.alloc_shared((BK, BM), "int8")
            B_s = T.alloc_shared((BK, BN), "int8")
            acc = T.alloc_fragment((BM, BN), "int32")
            T.clear(acc)
            for ko in T.serial(T.ceildiv(k, BK)):
                for i, j in T.Parallel(BM, BK):
                    A_t[j, i] = A[by * BM + i, ko * BK + j]
                T.copy(B[ko * BK, bx * BN], B_s)
                T.gemm(A_t, B_s, acc, transpose_A=True)
            for i, j in T.Parallel(BM, BN):
                C[by * BM + i, bx * BN + j] = acc[i, j] * scale[by * BM + i]

    return main


@entry(
    lambda s, r: [normal(r, 3, 19 * s, 16 * s), normal(r, 3, 16 * s, 21 * s), np.zeros((3, 19 * s, 21 * s), np.float32)]
)
def gemm_batched_split_k(s: int) -> Any:
    """A batch axis of the grid, regions of one shared buffer as operands, two accumulators added at the end."""
    m, n = T.dynamic("m, n")
    BM, BN, K = 8 * s, 16 * s, 16 * s

    @T.prim_func
    def main(A: T.Tensor((3, m, K), "float32"), B: T.Tensor((3, K, n), "float32"), C: T.Tensor((3, m, n), "float32")):
        with T.Kernel(T.ceildiv(n, BN), T.ceildiv(m, BM), 3) as (bx, by, bz):
            A_s = T.alloc_shared((BM, K), "float32")
            B_s = T.alloc_shared((K, BN), "float32")
            first = T.alloc_fragment((BM, BN), "float32")
            second = T.alloc_fragment((BM, BN), "float32")
            T.copy(A[bz, by * BM : (by + 1) * BM, :], A_s)
            T.copy(B[bz, :, bx * BN : (bx + 1) * BN], B_s)
            T.gemm(A_s[:, 0 : K // 2], B_s[0 : K // 2, :], first, clear_accum=True)
            T.gemm(A_s[:, K // 2 : K], B_s[K // 2 : K, :], second, clear_accum=True)
            for i, j in T.Parallel(BM, BN):
                C[bz, by * BM + i, bx * BN + j] = first[i, j] + second[i, j]

    return main


# -- attention and softmax -----------------------------------------------------------------------------------


def attention_arguments(s: int, r: np.random.Generator) -> list[Any]:
    q, k, v = normal(r, 1, 37 * s, 4, 16 * s), normal(r, 1, 50 * s, 2, 16 * s), normal(r, 1, 50 * s, 2, 16 * s)
    return [q, k, v, np.zeros_like(q), np.zeros((1, 4, 37 * s), np.float32)]


@entry(attention_arguments)
def attention(s: int) -> Any:
    """Causal online softmax with grouped-query heads, two gemms, rescaling, and the log-sum-exp."""
    batch, seq_q, seq_kv = T.dynamic("batch, seq_q, seq_kv")
    BM, BN, D, group = 16 * s, 24 * s, 16 * s, 2
    scale = 1.4426950408889634 / 4.0

    @T.prim_func
    def main(Q: T.Tensor((batch, seq_q, 4, D), "float32"), K: T.Tensor((batch, seq_kv, 2, D), "float32"),
             V: T.Tensor((batch, seq_kv, 2, D), "float32"), O: T.Tensor((batch, seq_q, 4, D), "float32"),
             L: T.Tensor((batch, 4, seq_q), "float32")):  # fmt: skip
        with T.Kernel(T.ceildiv(seq_q, BM), 4, batch) as (bx, h, b):
            Q_s = T.alloc_shared((BM, D), "float32")
            K_s = T.alloc_shared((BN, D), "float32")
            V_s = T.alloc_shared((BN, D), "float32")
            S = T.alloc_fragment((BM, BN), "float32")
            acc = T.alloc_fragment((BM, D), "float32")
            m_old = T.alloc_fragment((BM,), "float32")
            m_new = T.alloc_fragment((BM,), "float32")
            total = T.alloc_fragment((BM,), "float32")
            row = T.alloc_fragment((BM,), "float32")
            T.copy(Q[b, bx * BM : (bx + 1) * BM, h, :], Q_s)
            T.clear(acc)
            T.clear(total)
            T.fill(m_new, -T.infinity("float32"))
            offset = seq_kv - seq_q
            for j in T.Pipelined(T.ceildiv(seq_kv, BN), num_stages=1):
                T.copy(K[b, j * BN : (j + 1) * BN, h // group, :], K_s)
                T.copy(V[b, j * BN : (j + 1) * BN, h // group, :], V_s)
                T.gemm(Q_s, K_s, S, transpose_B=True, clear_accum=True)
                for x, y in T.Parallel(BM, BN):
                    visible = (j * BN + y <= bx * BM + x + offset) and (j * BN + y < seq_kv)
                    S[x, y] = S[x, y] * scale if visible else -T.infinity("float32")
                T.copy(m_new, m_old)
                T.reduce_max(S, m_new, dim=1, clear=False)
                for x in T.Parallel(BM):
                    m_new[x] = T.max(m_new[x], -1e30)
                for x, y in T.Parallel(BM, BN):
                    S[x, y] = T.exp2(S[x, y] - m_new[x])
                T.reduce_sum(S, row, dim=1)
                for x in T.Parallel(BM):
                    total[x] = total[x] * T.exp2(m_old[x] - m_new[x]) + row[x]
                for x, y in T.Parallel(BM, D):
                    acc[x, y] *= T.exp2(m_old[x] - m_new[x])
                T.gemm(S, V_s, acc)
            for x, y in T.Parallel(BM, D):
                acc[x, y] = acc[x, y] / total[x] if total[x] > 0 else 0.0
            for x in T.Parallel(BM):
                L[b, h, bx * BM + x] = (T.log2(total[x]) + m_new[x]) * 0.6931471805599453
            T.copy(acc, O[b, bx * BM : (bx + 1) * BM, h, :])

    return main


@entry(lambda s, r: [normal(r, 11 * s, 61 * s), np.zeros((11 * s, 61 * s), np.float32)])
def softmax_rows(s: int) -> Any:
    """Tails filled with the annotated safe value, broadcasts of a row's maximum and sum."""
    m, n = T.dynamic("m, n")
    BM, BN = 4 * s, 64 * s

    @T.prim_func
    def main(X: T.Tensor((m, n), "float32"), Y: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(m, BM)) as b:
            T.annotate_safe_value({X: -T.infinity("float32")})
            x = T.alloc_fragment((BM, BN), "float32")
            top = T.alloc_fragment((BM,), "float32")
            total = T.alloc_fragment((BM, 1), "float32")
            T.copy(X[b * BM, 0], x)
            T.reduce_max(x, top, dim=1)
            for i, j in T.Parallel(BM, BN):
                x[i, j] = T.exp(x[i, j] - top[i])
            T.reduce_sum(x, total, dim=1)
            for i, j in T.Parallel(BM, BN):
                x[i, j] = x[i, j] / total[i, 0]
            T.copy(x, Y[b * BM, 0])

    return main


@entry(lambda s, r: [normal(r, 9, 96 * s, dtype=half("bfloat16")), normal(r, 96 * s, dtype=half("bfloat16")),
                     np.zeros((9, 96 * s), half("bfloat16")), 1e-5])  # fmt: skip
def rms_norm(s: int) -> Any:
    """bfloat16 in and out, a scalar parameter, a serial loop over column tiles with a carried sum."""
    m = T.dynamic("m")
    N, BN = 96 * s, 32 * s

    @T.prim_func
    def main(X: T.Tensor((m, N), "bfloat16"), W: T.Tensor((N,), "bfloat16"), Y: T.Tensor((m, N), "bfloat16"),
             eps: T.float32):  # fmt: skip
        with T.Kernel(m) as b:
            x = T.alloc_fragment((1, BN), "float32")
            part = T.alloc_fragment((1,), "float32")
            total = T.alloc_fragment((1,), "float32")
            T.clear(total)
            for j in T.serial(N // BN):
                T.copy(X[b, j * BN : (j + 1) * BN], x)
                for _, i in T.Parallel(1, BN):
                    x[0, i] = x[0, i] * x[0, i]
                T.reduce_sum(x, part, dim=1)
                total[0] += part[0]
            for i in T.Parallel(N):
                Y[b, i] = X[b, i] * T.rsqrt(total[0] / N + eps) * W[i]

    return main


# -- elementwise, gathers, guards ----------------------------------------------------------------------------


@entry(
    lambda s, r: [normal(r, 200 * s), r.integers(-30, 230 * s, 150 * s).astype(np.int32), np.zeros(150 * s, np.float32)]
)
def gather(s: int) -> Any:
    """Indices from memory, negative and too large ones included: those read 0."""
    n, k = T.dynamic("n, k")
    B = 32 * s

    @T.prim_func
    def main(X: T.Tensor((n,), "float32"), I: T.Tensor((k,), "int32"), Y: T.Tensor((k,), "float32")):
        with T.Kernel(T.ceildiv(k, B)) as b:
            for i in T.Parallel(B):
                Y[b * B + i] = X[I[b * B + i]] + 1.0

    return main


@entry(
    lambda s, r: [
        normal(r, 90 * s),
        r.permutation(120 * s)[: 90 * s].astype(np.int64) - 10,
        np.zeros(100 * s, np.float32),
    ]
)
def scatter(s: int) -> Any:
    """Stores to distinct run-time positions, skipped where out of range; 64-bit indices."""
    n, k = T.dynamic("n, k")
    B = 16 * s

    @T.prim_func
    def main(X: T.Tensor((k,), "float32"), I: T.Tensor((k,), "int64"), Y: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(k, B)) as b:
            for i in T.Parallel(B):
                if b * B + i < k:
                    Y[I[b * B + i]] = X[b * B + i]

    return main


@entry(lambda s, r: [normal(r, 50 * s, 20 * s), normal(r, 50 * s, 20 * s), np.zeros((50 * s, 20 * s), np.float32)])
def guards(s: int) -> Any:
    """if / elif / else on lanes and on uniform values, nested, with chained and boolean conditions."""
    m, n = T.dynamic("m, n")
    BM, BN = 8 * s, 32 * s

    @T.prim_func
    def main(A: T.Tensor((m, n), "float32"), B: T.Tensor((m, n), "float32"), C: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(m, BM)) as b:
            for i, j in T.Parallel(BM, BN):
                r = b * BM + i
                if 0 <= r < m and j < n:
                    if A[r, j] > 0.5:
                        C[r, j] = A[r, j] * B[r, j]
                    elif A[r, j] < -0.5 or B[r, j] < 0:
                        C[r, j] = A[r, j] - B[r, j]
                        if not (B[r, j] > -1.0):
                            C[r, j] = C[r, j] * 2
                    else:
                        C[r, j] = T.if_then_else(r > 0, A[r - 1, j], B[r, j])
            if b % 2 == 1:
                for i, j in T.Parallel(BM, BN):
                    C[b * BM + i, j] += 1.0

    return main


@entry(lambda s, r: [np.repeat(r.integers(1, 60, 77).astype(np.int32), s), np.zeros(77 * s, np.int32)])
def while_collatz(s: int) -> Any:
    """A while loop per lane with variables, break and continue: lanes leave at different times."""
    n = T.dynamic("n")
    B = 16 * s

    @T.prim_func
    def main(X: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "int32")):
        with T.Kernel(T.ceildiv(n, B)) as b:
            for i in T.Parallel(B):
                v = T.alloc_local((2,), "int32")
                v[0] = X[b * B + i]
                v[1] = 0
                while v[0] > 1:
                    v[1] += 1
                    if v[1] >= 100:
                        break
                    if v[0] % 2 == 0:
                        v[0] = v[0] // 2
                        continue
                    v[0] = 3 * v[0] + 1
                Y[b * B + i] = v[1]

    return main


@entry(lambda s, r: [normal(r, 40 * s), np.zeros(3, np.float32), np.zeros(3, np.int32)])
def vars_and_loops(s: int) -> Any:
    """Block-uniform variables: a search with break, a sum with continue, steps up and down, unrolled."""
    n = T.dynamic("n")

    @T.prim_func
    def main(X: T.Tensor((n,), "float32"), Y: T.Tensor((3,), "float32"), Z: T.Tensor((3,), "int32")):
        with T.Kernel(1, threads=1):
            found = T.alloc_var("int32", -1)
            total = T.alloc_var("float32", 0.0)
            last = T.alloc_var("float32")
            last = 0.0
            for i in T.serial(0, 40, 2):
                if X[i] > 1.0:
                    found = i
                    break
            for i in T.serial(39, -1, -3):
                if X[i] < 0:
                    continue
                total += X[i]
            for i in T.unroll(4):
                last = last * 0.5 + X[i]
            k = T.alloc_var("int32", 5)
            while k * k < 1000:
                k += 3
            Y[0] = total
            Y[1] = last
            Y[2] = X[T.max(found, 0)]
            Z[0] = found
            Z[1] = k
            Z[2] = T.ceildiv(n, 7)

    return main


# -- storage -------------------------------------------------------------------------------------------------


@entry(lambda s, r: [normal(r, 24 * s, 32), np.zeros((24 * s, 32), np.float32), np.zeros((24 * s, 32), np.uint32)])
def views(s: int) -> Any:
    """reshape and view of shared memory, with another dtype too: one storage."""
    m = T.dynamic("m")
    B = 8 * s

    @T.prim_func
    def main(X: T.Tensor((m, 32), "float32"), Y: T.Tensor((m, 32), "float32"), Z: T.Tensor((m, 32), "uint32")):
        with T.Kernel(T.ceildiv(m, B)) as b:
            x = T.alloc_shared((B, 32), "float32")
            T.copy(X[b * B, 0], x)
            flat = T.reshape(x, (B * 32,))
            bits = T.view(x, dtype="uint32")
            for i in T.Parallel(B * 32):
                flat[i] = flat[i] * 2.0
            T.copy(bits, Z[b * B, 0])
            for i, j in T.Parallel(B, 32):
                bits[i, j] = bits[i, j] ^ 0x80000000
            T.copy(x, Y[b * B, 0])

    return main


def strided_arguments(s: int, r: np.random.Generator) -> list[Any]:
    wide = normal(r, 30 * s, 50 * s)
    return [wide[:, : 40 * s], np.zeros((40 * s, 30 * s), np.float32)[:, : 30 * s]]


@entry(strided_arguments)
def strided_transpose(s: int) -> Any:
    """Rows farther apart than their length; the transpose goes through shared memory."""
    m, n, pitch = T.dynamic("m, n, pitch")
    B = 16 * s

    @T.prim_func
    def main(X: T.StridedTensor((m, n), (pitch, 1), "float32"), Y: T.Tensor((n, m), "float32")):
        with T.Kernel(T.ceildiv(n, B), T.ceildiv(m, B)) as (bx, by):
            x = T.alloc_shared((B, B), "float32")
            T.copy(X[by * B, bx * B], x)
            for i, j in T.Parallel(B, B):
                Y[bx * B + i, by * B + j] = x[j, i]

    return main


@entry(
    lambda s, r: [
        normal(r, 5, 30 * s),
        normal(r, 30 * s),
        np.zeros((5, 34 * s), np.float16),
        np.zeros((3, 30 * s), np.float32),
    ]
)
def copies(s: int) -> Any:
    """Boxes that hang over all edges, negative starts, broadcasts, conversions, partial writes."""
    n = T.dynamic("n")
    S = s

    @T.prim_func
    def main(X: T.Tensor((5, n), "float32"), V: T.Tensor((n,), "float32"), Y: T.Tensor((5, n + 4 * S), "float16"),
             Z: T.Tensor((3, n), "float32")):  # fmt: skip
        with T.Kernel(2) as b:
            x = T.alloc_shared((8, 16 * S), "float16")
            v = T.alloc_fragment((16 * S,), "float32")
            w = T.alloc_shared((3, 16 * S), "float32")
            T.fill(x, 7.0)
            T.copy(X[b * 4 - 2, b * 20 * S - 3 * S], x)
            T.copy(x[1:5, 0 : 16 * S], Y[1, b * 17 * S])
            T.copy(V[b * 16 * S], v)
            T.clear(w)
            T.fill(w[1, 2 : 8 * S], 3.0)
            T.copy(v[0 : 8 * S], w[2, 8 * S : 16 * S])
            T.copy(w, Z[0, b * 16 * S])

    return main


@entry(lambda s, r: [normal(r, 21 * s, 10 * s), np.zeros((21 * s, 10 * s), np.float32)])
def macros(s: int) -> Any:
    """Macros with buffers, scalars and T.Ref, closures, Python loops and a swap at trace time."""
    m, n = T.dynamic("m, n")
    BM, BN = 8 * s, 10 * s
    powers = [1.0, 0.5, 0.25]

    @T.macro
    def horner(x, y: T.Ref):
        y = powers[0]
        for _ in T.unroll(2):
            y = y * x + 0.5

    @T.macro
    def apply(tile, factor):
        for i, j in T.Parallel(BM, BN):
            tile[i, j] = tile[i, j] * factor

    @T.prim_func
    def main(X: T.Tensor((m, n), "float32"), Y: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(m, BM)) as b:
            x = T.alloc_fragment((BM, BN), "float32")
            y = T.alloc_fragment((BM, BN), "float32")
            T.copy(X[b * BM, 0], x)
            for i, j in T.Parallel(BM, BN):
                horner(x[i, j], y[i, j])
            apply(y, sum(powers))
            for i, j in T.Parallel(BM, BN // 2):
                y[i, j], y[i, BN - 1 - j] = y[i, BN - 1 - j], y[i, j]
            T.copy(y, Y[b * BM, 0])

    return main


# -- integers and bits ---------------------------------------------------------------------------------------


@entry(
    lambda s, r: [r.integers(0, 256, (12, 20 * s)).astype(np.uint8), normal(r, 12), np.zeros((12, 40 * s), np.float16)]
)
def dequant_int4(s: int) -> Any:
    """Two nibbles per byte, low first, sign by subtraction, scaled per row."""
    m, n = T.dynamic("m, n")
    B = 40 * s

    @T.prim_func
    def main(W: T.Tensor((m, n), "uint8"), scale: T.Tensor((m,), "float32"), Y: T.Tensor((m, 2 * n), "float16")):
        with T.Kernel(m) as b:
            for j in T.Parallel(B):
                nibble = (W[b, j // 2] >> ((j % 2) * 4)) & 0xF
                Y[b, j] = (T.cast(nibble, "int32") - 8) * scale[b]

    return main


@entry(lambda s, r: [r.integers(0, 2**32, 70 * s, dtype=np.uint64).astype(np.uint32), np.zeros(70 * s, np.uint32),
                     np.zeros(70 * s, np.float32)])  # fmt: skip
def hash_bits(s: int) -> Any:
    """Wrapping multiplications and shifts, a float built from bits, int64 intermediate values."""
    n = T.dynamic("n")
    B = 32 * s

    @T.prim_func
    def main(X: T.Tensor((n,), "uint32"), Y: T.Tensor((n,), "uint32"), Z: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, B)) as b:
            for i in T.Parallel(B):
                x = X[b * B + i]
                x1 = (x ^ (x >> 16)) * T.uint32(0x85EBCA6B)
                x2 = (x1 ^ (x1 >> 13)) * T.uint32(0xC2B2AE35)
                Y[b * B + i] = x2 ^ (x2 >> 16)
                wide = T.cast(x, "int64") * 3 - 5
                Z[b * B + i] = (
                    T.reinterpret((x2 >> 9) | T.uint32(0x3F800000), "float32") - 1.0 + T.cast(wide % 7, "float32")
                )

    return main


@entry(lambda s, r: [r.integers(0, 50, 64 * s).astype(np.int16), r.integers(0, 2, 64 * s).astype(bool),
                     np.zeros(64 * s, np.int8),
                     np.zeros(64 * s, bool)])  # fmt: skip
def narrow_and_bool(s: int) -> Any:
    """int16 and int8 with C-like widening, bools as values, stores that wrap."""
    n = T.dynamic("n")
    B = 48 * s

    @T.prim_func
    def main(
        X: T.Tensor((n,), "int16"), F: T.Tensor((n,), "bool"), Y: T.Tensor((n,), "int8"), G: T.Tensor((n,), "bool")
    ):
        with T.Kernel(T.ceildiv(n, B)) as b:
            for i in T.Parallel(B):
                p = b * B + i
                Y[p] = X[p] * X[p] + T.cast(F[p], "int8")
                G[p] = (F[p] and X[p] > 10) or not F[p]

    return main
