"""Tables of addresses: T.ptr, T.make_tensor, on both targets."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from kernels_support import product_bound, worst
from properties.support import TARGETS, kernel_from

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileError
from tiledsl.frontend.reader import from_text
from tiledsl.ir.equal import equal
from tiledsl.ir.printer import to_text

GROUPED = """
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor((G,), T.ptr), B: T.Tensor((G,), T.ptr), C: T.Tensor((G,), T.ptr), sizes: T.Tensor((G,), "int32")):
    with T.Kernel(G, 2, threads=64) as (g, n):
        m = sizes[g]
        a = T.make_tensor(A[g], (m, 17), "{dtype}")
        b = T.make_tensor(B[g], (17, 40), "{dtype}")
        c = T.make_tensor(C[g], (m, 40), "float32", strides=(48, 1))
        a_s = T.alloc_shared((32, 32), "{dtype}")
        b_s = T.alloc_shared((32, 32), "{dtype}")
        acc = T.alloc_fragment((32, 32), "float32")
        for i in T.serial(T.ceildiv(m, 32)):
            T.clear(acc)
            T.copy(a[i * 32, 0], a_s)
            T.copy(b[0, n * 32], b_s)
            T.gemm(a_s, b_s, acc)
            T.copy(acc, c[i * 32, n * 32])
"""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("target", [*TARGETS, "numpy:checked"])
def test_grouped_gemm_by_pointers(dtype: str, target: str) -> None:
    """Groups of different sizes, one of them empty (its address is 0); rows beyond a group are not touched."""
    rng = np.random.default_rng(0)
    sizes = [33, 0, 7, 64]
    a = [rng.standard_normal((m, 17)).astype(dtype) for m in sizes]
    b = [rng.standard_normal((17, 40)).astype(dtype) for _ in sizes]
    c = [np.full((m + 1, 48), 9, np.float32) for m in sizes]
    tables = [np.array([x.ctypes.data if x.size else 0 for x in xs], np.int64) for xs in (a, b, c)]
    made = kernel_from(GROUPED.replace("G,", "4,").replace("Kernel(G", "Kernel(4").replace("{dtype}", dtype))
    made(*tables, np.array(sizes, np.int32), target=target)
    for m, x, y, z in zip(sizes, a, b, c, strict=True):
        assert worst(z[:m, :40], *product_bound(x, y, "float32")) <= 1
        assert (z[m:] == 9).all() and (z[:, 40:] == 9).all()


SCALAR = """
import tiledsl.language as T

@T.prim_func
def main(p: T.ptr, n: T.int32, O: T.Tensor((8,), "int32")):
    with T.Kernel(1, threads=32):
        x = T.make_tensor(p, (n,), T.int32)
        for i in T.Parallel(8):
            O[i] = x[i - 1] + 100
        T.copy(O[0:2], x[n - 2])
"""


def test_a_pointer_parameter_and_bounds() -> None:
    made = kernel_from(SCALAR)
    for target in TARGETS:
        x, out = np.arange(5, dtype=np.int32), np.zeros(8, np.int32)
        made(x.ctypes.data, 5, out, target=target)
        assert out.tolist() == [100, 100, 101, 102, 103, 104, 100, 100]
        assert x.tolist() == [0, 1, 2, 100, 100]


@pytest.mark.parametrize("target", TARGETS)
def test_address_zero_is_a_located_error(target: str) -> None:
    made = kernel_from(SCALAR)
    with pytest.raises(TileError, match="address is 0") as caught:
        made(0, 5, np.zeros(8, np.int32), target=target)
    assert caught.value.loc is not None and caught.value.loc.line == 7


def test_the_text_reads_back() -> None:
    function = kernel_from(SCALAR).function
    text = to_text(function)
    again = from_text(text)
    assert equal(again, function) and to_text(again) == text


def test_uses_that_are_refused() -> None:
    with pytest.raises(TileError, match="must be an element of a T.ptr tensor"):
        kernel_from(SCALAR.replace("make_tensor(p,", "make_tensor(n,"))
    with pytest.raises(TileError, match="2 extents but 1 strides"):
        kernel_from(SCALAR.replace("(n,), T.int32)", "(n, 1), T.int32, strides=(1,))"))
    body = "            x = T.make_tensor(p, (n,), T.int32)\n            O[i] = x[i]\n"
    with pytest.raises(TileError, match="inside T.Parallel"):
        kernel_from(SCALAR.split("        x =")[0] + "        for i in T.Parallel(8):\n" + body)


def test_tables_of_two_tensors_that_are_one() -> None:
    """Memory reached by an address and as an argument is one memory."""
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(p: T.ptr, X: T.Tensor((64,), "float32")):
    with T.Kernel(1, threads=32):
        x = T.make_tensor(p, (64,), "float32")
        for k in T.serial(3):
            for i in T.Parallel(64):
                x[i] = X[i] + 1.0
            for i in T.Parallel(64):
                X[i] = x[63 - i] * 2.0
""")
    results: list[Any] = []
    for target in TARGETS:
        x = np.arange(64, dtype=np.float32)
        made(x.ctypes.data, x, target=target)
        results.append(x)
    for x in results[1:]:
        np.testing.assert_array_equal(x, results[0])


PACKED = """
import tiledsl.language as T

@T.prim_func
def main(p: T.ptr, q: T.ptr, O: T.Tensor((6, 34), "float32")):
    with T.Kernel(1, threads=32):
        x = T.make_tensor(p, (6, 34), "float4_e2m1fn")
        y = T.make_tensor(q, (6, 34), "float8_e4m3fn")
        for i, j in T.Parallel(6, 34):
            O[i, j] = T.float32(x[i, j])
            y[i, j] = T.float32(x[i, j]) * 2.0
"""


@pytest.mark.parametrize("target", TARGETS)
def test_narrow_types(target: str) -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 256, (6, 17), np.uint8)
    y, out = np.zeros((6, 34), ml_dtypes.float8_e4m3fn), np.zeros((6, 34), np.float32)
    kernel_from(PACKED)(codes.ctypes.data, y.ctypes.data, out, target=target)
    nibbles = np.stack([codes & 15, codes >> 4], -1).reshape(6, 34)
    values = nibbles.astype(np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32)
    np.testing.assert_array_equal(out, values)
    np.testing.assert_array_equal(y.astype(np.float32), values * 2)


def test_threads_share_a_tensor_at_an_address() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(P: T.Tensor((4,), T.ptr), O: T.Tensor((4, 64), "float32")):
    with T.Kernel(4, threads=64) as b:
        t = T.get_thread_binding()
        x = T.make_tensor(P[b], (64,), "float32")
        s = T.alloc_shared((64,), "float32")
        s[t] = x[63 - t]
        T.sync_threads()
        x[t] = s[t] * 2.0
        O[b, t] = x[t] + s[63 - t]
""")
    for target in (*TARGETS, "numpy:exact"):
        tensors = [np.arange(64, dtype=np.float32) + k for k in range(4)]
        before = np.stack(tensors)
        out = np.zeros((4, 64), np.float32)
        made(np.array([x.ctypes.data for x in tensors]), out, target=target)
        np.testing.assert_array_equal(np.stack(tensors), before[:, ::-1] * 2)
        np.testing.assert_array_equal(out, before[:, ::-1] * 2 + before)


@T.prim_func
def before_kernels(a: T.ptr, c: T.ptr, m: T.int32, n: T.int32):
    A = T.make_tensor(a, (m, n), "float32")
    half = (n + 1) // 2
    C = T.make_tensor(c, (m, half), "float32")
    T.assume(n > 0)
    with T.Kernel(m, threads=32) as by:
        for i in T.Parallel(32):
            C[by, i] = A[by, i] * 2
    with T.Kernel(m, threads=32) as by:
        for i in T.Parallel(32):
            C[by, i] += A[by, i + half]


@pytest.mark.parametrize("target", ["llvm", "numba", "numpy:exact", "numpy:checked"])
def test_tensors_made_before_the_kernels(target: str) -> None:
    """Every kernel of the function sees them; an address of 0 is found."""
    kernel = tiledsl.compile(before_kernels, target=target)
    a, c = np.arange(100, dtype=np.float32).reshape(5, 20), np.zeros((5, 10), np.float32)
    kernel(a.ctypes.data, c.ctypes.data, 5, 20)
    assert np.array_equal(c, a[:, :10] * 2 + a[:, 10:])
    with pytest.raises(TileError, match="the address is 0"):
        kernel(0, c.ctypes.data, 5, 20)
