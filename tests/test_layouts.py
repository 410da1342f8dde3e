"""Layouts of global tensors: the memory is permuted, on every target alike; of tiles they are hints."""

from __future__ import annotations

import numpy as np
import pytest
from kernels_support import product_bound, worst
from properties.support import TARGETS, agree, kernel_from

from tiledsl.errors import TileError
from tiledsl.frontend.reader import from_text
from tiledsl.interp import Options, run
from tiledsl.ir.equal import equal
from tiledsl.ir.layout import is_bijection, positions
from tiledsl.ir.printer import to_text

# The order in which the backward pass of attention leaves a gradient for a second kernel.
WRITE = """
import tiledsl.language as T

def layout(X):
    return T.Layout(X.shape, lambda b, l, h, d: [b, l // 8, h, d // 8, (d % 2), 4 * (l % 8) + (d % 8) // 2])

@T.prim_func
def main(X: T.Tensor((2, 40, 3, 16), "float32"), G: T.Tensor((2, 40, 3, 16), "float32")):
    with T.Kernel(T.ceildiv(40, 16), 3, 2, threads=32) as (bx, by, bz):
        T.annotate_layout({G: layout(G)})
        t = T.alloc_shared((16, 16), "float32")
        T.annotate_layout({t: lambda i, j: (i, j ^ (i % 8))})
        T.copy(X[bz, bx * 16:bx * 16 + 16, by, :], t)
        for i, j in T.Parallel(16, 16):
            T.atomic_add(G[bz, bx * 16 + i, by, j], t[i, j] + G[bz, bx * 16 + i, by, j])
"""
READ = (
    WRITE.split("@T.prim_func")[0]
    + """
@T.prim_func
def main(G: T.Tensor((2, 40, 3, 16), "float32"), O: T.Tensor((2, 40, 3, 16), "float16")):
    with T.Kernel(T.ceildiv(40, 16), 3, 2, threads=32) as (bx, by, bz):
        T.annotate_layout({G: layout(G)})
        T.copy(G[bz, bx * 16:bx * 16 + 16, by, :], O[bz, bx * 16:bx * 16 + 16, by, :])
"""
)


def place(b: int, row: int, h: int, d: int) -> int:
    """The address that the layout's formula gives, computed by hand."""
    return ((((b * 5 + row // 8) * 3 + h) * 2 + d // 8) * 2 + d % 2) * 32 + 4 * (row % 8) + (d % 8) // 2


def test_memory_is_permuted_and_read_back() -> None:
    x = np.arange(2 * 40 * 3 * 16, dtype=np.float32).reshape(2, 40, 3, 16)
    _, g = agree(kernel_from(WRITE), x, np.zeros_like(x))
    memory = g.reshape(-1)
    for index in np.ndindex(x.shape):
        assert memory[place(*index)] == x[index]
    _, out = agree(kernel_from(READ), g, np.zeros(x.shape, np.float16))
    np.testing.assert_array_equal(out, x.astype(np.float16))


GEMM = """
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor((64, 32), "float32"), B: T.Tensor((32, 48), "float32"), C: T.Tensor((64, 48), "float32")):
    with T.Kernel(3, 4, threads=32) as (bx, by):
        T.annotate_layout({A: lambda i, j: (j // 8, i, j % 8), B: T.Layout((32, 48), lambda k, n: (n, k))})
        a, b = T.alloc_shared((16, 32), "float32"), T.alloc_shared((32, 16), "float32")
        c = T.alloc_fragment((16, 16), "float32")
        T.clear(c)
        T.copy(A[by * 16, 0], a)
        T.copy(B[0, bx * 16], b)
        T.gemm(a, b, c)
        T.copy(c, C[by * 16, bx * 16])
"""


def test_operands_of_gemm() -> None:
    """Copies of a permuted tensor are never packed or moved as if it were row-major."""
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((64, 32)).astype(np.float32), rng.standard_normal((32, 48)).astype(np.float32)
    stored_a = np.ascontiguousarray(a.reshape(64, 4, 8).transpose(1, 0, 2)).reshape(64, 32)
    stored_b = np.ascontiguousarray(b.T).reshape(32, 48)
    c = agree(kernel_from(GEMM), stored_a, stored_b, np.zeros((64, 48), np.float32))[2]
    assert worst(c, *product_bound(a, b, "float32")) <= 1


def test_out_of_range_is_that_of_the_logical_shape() -> None:
    made = kernel_from("""
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((6, 5), "int32"), O: T.Tensor((8, 8), "int32"), n: T.int32):
    with T.Kernel(1):
        T.annotate_layout({X: lambda i, j: (j, i)})
        for i, j in T.Parallel(8, 8):
            O[i, j] = X[i - 1, j + n]
        X[n, 7] = 5
        X[n + 1, 4] = 9
""")
    x = np.arange(30, dtype=np.int32).reshape(6, 5)
    memory, out, _ = agree(made, x, np.zeros((8, 8), np.int32), 0)
    logical = x.reshape(5, 6).T
    wanted = np.zeros((8, 8), np.int32)
    wanted[1:7, :5] = logical
    np.testing.assert_array_equal(out, wanted)
    assert memory.reshape(5, 6).T[1, 4] == 9 and (memory != x).sum() == 1


def test_the_text_reads_back() -> None:
    function = kernel_from(GEMM).function
    text = to_text(function)
    assert "layout=" in text
    again = from_text(text)
    assert equal(again, function) and to_text(again) == text


def test_positions_and_bijections() -> None:
    assert positions(((4, 3), ("i1", "i0")), (3, 4)).tolist() == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
    assert is_bijection(((3, 4), ("i0", "i1 ^ 1")), (3, 4))
    assert not is_bijection(((3, 4), ("i0", "i1 // 2 * 2")), (3, 4))


HEAD = """
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((6, 5), "int32"), n: T.int32):
    with T.Kernel(1):
        T.annotate_layout({})
        X[n, 0] = 1
"""


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ("X: lambda i, j: (i, j // 2)", "is not one to one"),
        ("X: lambda i: i", "does not take the indices"),
        ("X: T.Layout((5, 6), lambda i, j: (i, j))", "needs a T.Layout of its shape"),
        ("X: T.Fragment((6, 5))", "needs a T.Layout of its shape"),
        ("X: lambda i, j: (i + n - n, j)", "is no expression of indices"),
    ],
)
def test_layouts_that_are_refused(layout: str, message: str) -> None:
    with pytest.raises(TileError, match=message) as caught:
        kernel_from(HEAD.replace("{}", f"{{{layout}}}"))
    assert caught.value.loc is not None


@pytest.mark.parametrize("target", TARGETS)
def test_read_only_arguments_stay(target: str) -> None:
    made = kernel_from(READ)
    g = np.arange(2 * 40 * 3 * 16, dtype=np.float32).reshape(2, 40, 3, 16)
    g.flags.writeable = False
    made(g, np.zeros(g.shape, np.float16), target=target)
    assert run(made.function, [g, np.zeros(g.shape, np.float16)], Options(exact=True)).blocks == 18
