"""Small kernels at the corners of the language, many sizes each: targets agree, and passes keep the meaning."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from properties import support

from tiledsl.backends.cpu.pipeline import cpu_pipeline
from tiledsl.passes import pipeline
from tiledsl.passes.instruments import CheckSemantics, Verify

BF16 = np.dtype(ml_dtypes.bfloat16)
HEAD = """
import tiledsl.language as T

m, n, k = T.dynamic("m, n, k")

@T.prim_func
"""
CASES: dict[str, tuple[str, tuple[list[Any], ...]]] = {}
rng = np.random.default_rng(0)


def case(name: str, source: str, *argument_lists: Any) -> None:
    CASES[name] = (HEAD + source.strip() + "\n", tuple(list(a) for a in argument_lists))


def normal(*shape: int, d: Any = np.float32) -> support.Array:
    return rng.standard_normal(shape).astype(np.float32).astype(d)


def ints(low: int, high: int, *shape: int, d: Any = np.int32) -> support.Array:
    return rng.integers(low, high, shape).astype(d)


def zeros(*shape: int, d: Any = np.float32) -> support.Array:
    return np.zeros(shape, d)


case(
    "parallel_symbolic",
    """
def main(A: T.Tensor((m, n), "float32"), B: T.Tensor((m, n), "float32")):
    with T.Kernel(1) as b:
        for i, j in T.Parallel(m, n):
            B[i, j] = A[i, j] * 2 + i - j
""",
    *[(normal(a, c), zeros(a, c)) for a, c in ((1, 1), (3, 17), (33, 31), (5, 229))],
)
case(
    "three_axes",
    """
def main(A: T.Tensor((m, n, k), "float16"), B: T.Tensor((k, n, m), "float32")):
    with T.Kernel(T.ceildiv(m, 4)) as b:
        s = T.alloc_shared((4, 9, 21), "float16")
        for i, j, l in T.Parallel(4, 9, 21):
            s[i, j, l] = A[b * 4 + i, j, l]
        for l, j, i in T.Parallel(21, 9, 4):
            B[l, j, b * 4 + i] = s[i, j, l] * 1.5
""",
    *[(normal(*s, d=np.float16), zeros(*s[::-1])) for s in ((1, 1, 1), (9, 9, 21), (5, 7, 16), (4, 12, 30))],
)
case(
    "inner_serial_reduce",
    """
def main(A: T.Tensor((m, n), "bfloat16"), I: T.Tensor((m,), "int32"), B: T.Tensor((m,), "float32"),
         C: T.Tensor((m,), "int32")):
    with T.Kernel(T.ceildiv(m, 32)) as b:
        for i in T.Parallel(32):
            acc = T.alloc_var("float32", 0.0)
            cnt = T.alloc_var("int32", 0)
            if b * 32 + i < m:
                for j in T.serial(I[b * 32 + i]):
                    if A[b * 32 + i, j] < 0:
                        continue
                    acc += A[b * 32 + i, j]
                    cnt += 1
                    if cnt > 5:
                        break
                B[b * 32 + i] = acc
                C[b * 32 + i] = cnt
""",
    *[
        (normal(a, c, d=BF16), ints(0, c + 3, a), zeros(a), zeros(a, d=np.int32))
        for a, c in ((1, 1), (33, 20), (64, 7))
    ],
)
case(
    "local_array",
    """
def main(A: T.Tensor((m, 8), "float32"), B: T.Tensor((m, 8), "float32")):
    with T.Kernel(T.ceildiv(m, 16)) as b:
        for i in T.Parallel(16):
            v = T.alloc_local((8,), "float32")
            for j in T.serial(8):
                v[j] = A[b * 16 + i, j]
            for p in T.serial(7):
                for j in T.serial(7 - p):
                    if v[j] > v[j + 1]:
                        v[j], v[j + 1] = v[j + 1], v[j]
            for j in T.serial(8):
                B[b * 16 + i, j] = v[j]
""",
    *[(normal(a, 8), zeros(a, 8)) for a in (1, 16, 37)],
)
case(
    "reduce_regions",
    """
def main(A: T.Tensor((3, 20, 37), "float32"), B: T.Tensor((20,), "float32"), C: T.Tensor((3, 37), "float32"),
         D: T.Tensor((3, 1, 20), "float32")):
    with T.Kernel(1) as b:
        s = T.alloc_shared((3, 20, 37), "float32")
        r = T.alloc_fragment((1, 20), "float32")
        q = T.alloc_shared((3, 37), "float32")
        w = T.alloc_fragment((3, 20, 1), "float32")
        T.copy(A, s)
        T.reduce_sum(s[1, :, 3:36], r, dim=2)
        T.reduce_max(s, q, dim=1)
        T.reduce_absmax(s, w, dim=-1)
        T.copy(r[0, :], B)
        T.copy(q, C)
        for i, j in T.Parallel(3, 20):
            D[i, 0, j] = w[i, j, 0]
""",
    (normal(3, 20, 37), zeros(20), zeros(3, 37), zeros(3, 1, 20)),
)
case(
    "views_half",
    """
def main(A: T.Tensor((m, 16), "float16"), B: T.Tensor((m, 32), "float16"), C: T.Tensor((m, 8), "uint32")):
    with T.Kernel(m) as b:
        s = T.alloc_shared((16,), "float16")
        u = T.view(s, (8,), "uint32")
        f = T.alloc_shared((2, 16), "float16")
        g = T.reshape(f, (32,))
        T.copy(A[b, :], s)
        for i in T.Parallel(8):
            C[b, i] = u[i] ^ 7
            u[i] = u[i] ^ T.uint32(0x80008000)
        for i, j in T.Parallel(2, 16):
            f[i, j] = s[j] * (i + 1)
        T.copy(g, B[b, :])
""",
    *[(normal(a, 16, d=np.float16), zeros(a, 32, d=np.float16), zeros(a, 8, d=np.uint32)) for a in (1, 5)],
)
case(
    "int_indices",
    """
def main(A: T.Tensor((m,), "float32"), I: T.Tensor((n,), "uint8"), J: T.Tensor((n,), "int64"),
         K: T.Tensor((n,), "uint32"), B: T.Tensor((n,), "float32")):
    with T.Kernel(T.ceildiv(n, 16)) as b:
        t = T.alloc_shared((256,), "float32")
        T.copy(A[0], t)
        for i in T.Parallel(16):
            p = b * 16 + i
            if p < n:
                B[p] = A[I[p]] + A[J[p]] + A[K[p]] + t[I[p]] + t[255 - I[p]]
""",
    *[
        (
            normal(a),
            ints(0, 256, c, d=np.uint8),
            ints(-(2**40), 2**40, c, d=np.int64) % (a + 9) - 4,
            ints(0, a + 5, c, d=np.uint32),
            zeros(c),
        )
        for a, c in ((1, 1), (200, 50), (256, 33), (300, 129))
    ],
)
case(
    "gemm_frag_a",
    """
def main(A: T.Tensor((m, 24), "float32"), W: T.Tensor((24, n), "float32"), C: T.Tensor((m, n), "bfloat16")):
    with T.Kernel(T.ceildiv(m, 13)) as b:
        a = T.alloc_fragment((13, 24), "bfloat16")
        w = T.alloc_shared((24, 31), "bfloat16")
        c = T.alloc_fragment((13, 31), "float32")
        for j in T.serial(T.ceildiv(n, 31)):
            T.copy(W[0, j * 31], w)
            for i, l in T.Parallel(13, 24):
                a[i, l] = T.exp(A[b * 13 + i, l]) if b * 13 + i < m else 0.0
            T.clear(c)
            T.gemm(a, w, c)
            T.gemm(a, w, c)
            for i, l in T.Parallel(13, 31):
                c[i, l] = T.sigmoid(c[i, l])
            T.copy(c, C[b * 13, j * 31])
""",
    *[(normal(a, 24), normal(24, c), zeros(a, c, d=BF16)) for a, c in ((1, 1), (13, 31), (40, 70))],
)
case(
    "bool_tiles",
    """
def main(A: T.Tensor((m, n), "float32"), M: T.Tensor((m, n), "bool"), C: T.Tensor((m, n), "float32"),
         D: T.Tensor((m,), "int32")):
    with T.Kernel(T.ceildiv(m, 8)) as b:
        ms = T.alloc_shared((8, 40), "bool")
        cnt = T.alloc_fragment((8, 40), "int32")
        tot = T.alloc_fragment((8,), "int32")
        T.copy(M[b * 8, 0], ms)
        for i, j in T.Parallel(8, 40):
            ms[i, j] = ms[i, j] and (i + j) % 3 != 0
            cnt[i, j] = T.cast(ms[i, j], "int32")
            if not ms[i, j]:
                cnt[i, j] += 2
        T.reduce_sum(cnt, tot, dim=1)
        for i, j in T.Parallel(8, 40):
            C[b * 8 + i, j] = A[b * 8 + i, j] if ms[i, j] else -A[b * 8 + i, j]
        T.copy(tot, D[b * 8])
""",
    *[
        (normal(a, c), ints(0, 2, a, c, d=bool), zeros(a, c), zeros(a, d=np.int32))
        for a, c in ((1, 1), (9, 40), (31, 33))
    ],
)
case(
    "uniform_store_in_parallel",
    """
def main(A: T.Tensor((m,), "float32"), B: T.Tensor((m, n), "float32"), C: T.Tensor((3,), "int32")):
    with T.Kernel(1) as b:
        s = T.alloc_shared((3,), "int32")
        T.clear(s)
        for i in T.Parallel(40):
            if i == 17:
                s[0] = i * 2
            if i % 20 == 3:
                s[1] = 9
        for i in T.Parallel(1):
            s[2] += 5
        T.copy(s, C)
        for i, j in T.Parallel(8, 40):
            if j == 2:
                B[i, 0] = A[i] + 1
""",
    (normal(8), zeros(8, 5), zeros(3, d=np.int32)),
)
case(
    "double_and_long",
    """
def main(A: T.Tensor((m, n), "float64"), I: T.Tensor((m,), "int64"), B: T.Tensor((m, n), "float64"),
         J: T.Tensor((m,), "int64")):
    with T.Kernel(T.ceildiv(m, 16)) as b:
        x = T.alloc_fragment((16, 33), "float64")
        r = T.alloc_fragment((16,), "float64")
        T.copy(A[b * 16, 0], x)
        T.reduce_max(x, r, dim=1)
        for i, j in T.Parallel(16, 33):
            x[i, j] = T.exp(x[i, j] - r[i]) + T.cast(I[b * 16 + i] * 3 - j, "float64")
        for i in T.Parallel(16):
            J[b * 16 + i] = (I[b * 16 + i] * 1234567891 >> 7) // 13 + I[b * 16 + i] % -5
        T.copy(x, B[b * 16, 0])
""",
    *[
        (
            normal(a, c, d=np.float64),
            ints(-(2**40), 2**40, a, d=np.int64),
            zeros(a, c, d=np.float64),
            zeros(a, d=np.int64),
        )
        for a, c in ((1, 1), (17, 33), (5, 40))
    ],
)
case(
    "pipelined_dynamic_bounds",
    """
def main(L: T.Tensor((m,), "int32"), A: T.Tensor((m, n), "float32"), B: T.Tensor((m,), "float32")):
    with T.Kernel(m) as b:
        s = T.alloc_shared((1, 16), "float32")
        acc = T.alloc_fragment((1,), "float32")
        T.clear(acc)
        length = L[b]
        for j in T.Pipelined(T.ceildiv(length, 16), num_stages=3):
            T.copy(A[b, j * 16], s)
            for _, i in T.Parallel(1, 16):
                if j * 16 + i >= length:
                    s[0, i] = 0
            T.reduce_sum(s, acc, dim=1, clear=False)
        B[b] = acc[0]
""",
    *[(ints(0, c + 1, a), normal(a, c), zeros(a)) for a, c in ((1, 1), (9, 50), (4, 16))],
)
case(
    "stride_access",
    """
def main(A: T.Tensor((m,), "float32"), B: T.Tensor((m,), "float32"), C: T.Tensor((m,), "int16")):
    with T.Kernel(T.ceildiv(m, 32)) as b:
        for i in T.Parallel(16):
            p = b * 32 + 2 * i
            B[p] = A[p + 1]
            B[p + 1] = -A[p]
        for i in T.Parallel(32):
            q = b * 32 + 31 - i
            C[q] = T.cast(A[q] * 1000, "int16") + i // 3 - (i % 5) * 7
""",
    *[(normal(a), zeros(a), zeros(a, d=np.int16)) for a in (1, 2, 33, 64, 127)],
)
case(
    "early_return_like",
    """
def main(A: T.Tensor((m, n), "float32"), F: T.Tensor((m,), "bool"), B: T.Tensor((m, n), "float32")):
    with T.Kernel(m, T.ceildiv(n, 16)) as (b, c):
        if F[b]:
            x = T.alloc_fragment((16,), "float32")
            T.copy(A[b, c * 16], x)
            if c % 2 == 0:
                for i in T.Parallel(16):
                    x[i] = x[i] * 2
            else:
                T.fill(x, 5)
            T.copy(x, B[b, c * 16])
        elif c == 0:
            T.fill(B[b, 0:16], -1)
""",
    *[(normal(a, c), ints(0, 2, a, d=bool), zeros(a, c)) for a, c in ((1, 1), (9, 50), (4, 16))],
)


@pytest.mark.parametrize("name", CASES)
def test_targets_agree(name: str) -> None:
    source, argument_lists = CASES[name]
    kernel = support.kernel_from(source)
    for args in argument_lists:
        support.agree(kernel, *args, what=str([a.shape for a in args]))


@pytest.mark.parametrize("name", CASES)
def test_passes_keep_the_meaning(name: str) -> None:
    source, argument_lists = CASES[name]
    function = support.kernel_from(source).function
    for args in argument_lists:
        pipeline.run(function, cpu_pipeline(), [Verify(), CheckSemantics(lambda _, args=args: support.copies(args))])
