"""Products of few rows, which read their right operand where it lies: every target has the interpreter's bits."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.dtypes import as_dtype


def product(
    rows: int,
    columns: int,
    depth: int,
    dtype: str,
    turned: bool,
    heads: int,
    written: bool = False,
    twice: bool = False,
) -> Any:
    """C[h] = A B[h], with B [n, heads, k] or [k, heads, n]: the tile's axes are not the last ones. written: the kernel
    changes B behind the copy. twice: two products share the tile."""
    M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")
    shape = (N, heads, K) if turned else (K, heads, N)
    strides = (T.dynamic("far", "int64"), T.dynamic("near", "int64"), 1)

    @T.prim_func
    def main(
        A: T.Tensor((M, K), dtype),
        B: T.StridedTensor(shape, strides, dtype),
        C: T.Tensor((heads, M, N), "float64" if dtype == "float64" else "float32"),
    ):
        with T.Kernel(heads, T.ceildiv(N, columns), T.ceildiv(M, rows)) as (h, j, i):
            A_s = T.alloc_shared((rows, depth), dtype)
            B_s = T.alloc_shared((columns, depth) if turned else (depth, columns), dtype)
            acc = T.alloc_fragment((rows, columns), "float64" if dtype == "float64" else "float32")
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, depth), num_stages=2):
                T.copy(A[i * rows, k * depth], A_s)
                if turned:
                    T.copy(B[j * columns : (j + 1) * columns, h, k * depth : (k + 1) * depth], B_s)
                else:
                    T.copy(B[k * depth : (k + 1) * depth, h, j * columns : (j + 1) * columns], B_s)
                if written:
                    for x in T.Parallel(1):
                        B[0, h, x] = 7.0
                T.gemm(A_s, B_s, acc, transpose_B=turned)
                if twice:
                    T.gemm(A_s, B_s, acc, transpose_B=turned)
            T.copy(acc, C[h, i * rows, j * columns])

    return tiledsl.compile(main)


def run(kernel: Any, m: int, n: int, k: int, dtype: str, turned: bool, heads: int, target: str) -> Any:
    rng, t = np.random.default_rng(m * n + k), as_dtype(dtype).numpy
    a = (rng.standard_normal((m, k)) * 2.0 ** rng.integers(-9, 9, (m, k))).astype(t)
    b = (rng.standard_normal((n, heads, k + 3) if turned else (k, heads, n + 3))).astype(t)
    b = b[..., : k if turned else n]
    c = np.full((heads, m, n), np.nan, "f8" if dtype == "float64" else "f4")
    kernel(a, b, c, target=target)
    form, x, y = "mk,nhk->hmn" if turned else "mk,khn->hmn", a.astype(np.float64), b.astype(np.float64)
    # A chain of k products in the accumulator's precision, and one in float64 for the exact value.
    chains = k * (2.0**-53 if dtype == "float64" else 2.0**-24) + k * 2.0**-53
    exact, bound = np.einsum(form, x, y), 1.01 * chains * np.einsum(form, np.abs(x), np.abs(y))
    return c, b, bool(np.all(np.abs(c - exact) <= bound))


FORMS = [
    (1, 32, 34, "bfloat16"), (7, 64, 64, "bfloat16"), (7, 48, 33, "bfloat16"), (7, 48, 34, "float16"),
    (7, 16, 8, "float32"), (16, 32, 34, "bfloat16"), (17, 32, 34, "float32"), (7, 32, 34, "float64"),
]  # fmt: skip


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("rows, columns, depth, dtype", FORMS)
def test_right_operands_in_place(rows: int, columns: int, depth: int, dtype: str, turned: bool) -> None:
    """Tiles inside, at the boundary and beyond it."""
    kernel = product(rows, columns, depth, dtype, turned, 2)
    for m, n, k in ((1, 64, 64), (rows, 97, 70), (2 * rows + 1, 16, 33)):
        wanted, _, close = run(kernel, m, n, k, dtype, turned, 2, "numpy:exact")
        assert close, (m, n, k)
        for target in ("llvm", "numba"):
            got, _, _ = run(kernel, m, n, k, dtype, turned, 2, target)
            assert got.tobytes() == wanted.tobytes(), (target, m, n, k)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("form", [{"written": True}, {"twice": True}])
def test_what_must_not_be_read_later(form: dict[str, bool], turned: bool) -> None:
    """A source that the kernel writes after the copy, and a tile of two products."""
    kernel = product(2, 16, 16, "bfloat16", turned, 1, **form)
    results = [run(kernel, 2, 16, 16, "bfloat16", turned, 1, t) for t in ("numpy:exact", "llvm", "numba")]
    for c, b, _ in results[1:]:
        assert c.tobytes() == results[0][0].tobytes() and b.tobytes() == results[0][1].tobytes()


def test_keys_of_a_block_of_the_grid_are_not_packed_ahead() -> None:
    """Blocks that begin at places of their own share no tile, although a loop runs over it."""
    from tiledsl.backends.cpu.hoist import HoistPacks
    from tiledsl.passes.fold import Fold

    def kernel(shared: bool) -> Any:
        @T.prim_func
        def main(
            A: T.Tensor((32, 16), "float32"), B: T.Tensor((256, 16), "float32"), C: T.Tensor((8, 32, 32), "float32")
        ):
            with T.Kernel(8) as bx:
                a = T.alloc_shared((32, 16), "float32")
                b = T.alloc_shared((16, 16), "float32")
                c = T.alloc_fragment((32, 16), "float32")
                T.clear(c)
                T.copy(A, a)
                for k in T.serial(2):
                    T.copy(B[(0 if shared else bx * 32) + k * 16, 0], b)
                    T.gemm(a, b, c, transpose_B=True)
                T.copy(c, C[bx, 0, 0])

        return tiledsl.compile(main)

    for shared in (False, True):
        function = HoistPacks()(Fold()(kernel(shared).function))
        (let,) = (s for s in function.kernels[-1].body if isinstance(s, ir.Let))
        assert let.value == ir.Const(shared, ir.BOOL)
