"""Names that came late: addresses, byte products, schedulers of tiles; and TVM's own spellings under the shim."""

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.compat.language import lookup
from tiledsl.errors import TileError

TARGETS = ["numpy:exact", "numpy:checked", "numba", "llvm"]


@pytest.mark.parametrize("target", TARGETS)
def test_products_of_bytes_and_addresses(target: str) -> None:
    @tiledsl.jit
    def made(n):
        @T.prim_func
        def main(
            A: T.Tensor((n, 4), "int8"), B: T.Tensor((n, 4), "int8"), C: T.Tensor((2, n), "int32"),
            D: T.Tensor((1,), "int32"),
        ):  # fmt: skip
            with T.Kernel(1, threads=32):
                a, b = T.alloc_local((4,), "int8"), T.alloc_local((4,), "int8")
                acc = T.alloc_local((1,), "int32")
                for i in T.serial(n):
                    acc[0] = i
                    T.copy(A[i, 0:4], a)
                    T.copy(B[i, 0:4], b)
                    T.dp4a(a[0], b[0], acc[0])
                    T.dp4a(a, T.address_of(b[0]), acc)
                    C[0, i] = acc[0]
                for i in T.Parallel(n):
                    words = T.ldg32(T.address_of(A[i, 0])), T.ldg32(B[i, 0])
                    C[1, i] = T.call_extern(
                        "int32", "__dp4a", T.reinterpret(words[0], "int32"), T.reinterpret(words[1], "int32"), i
                    )
                    T.atomic_add(T.address_of(D[0]), 1)

        return main

    rng = np.random.default_rng(0)
    a, b = (rng.integers(-128, 128, (17, 4)).astype(np.int8) for _ in range(2))
    c, d = np.zeros((2, 17), np.int32), np.zeros(1, np.int32)
    made(17)(a, b, c, d, target=target)
    dots = (a.astype(np.int32) * b).sum(1)
    np.testing.assert_array_equal(c, [2 * dots + np.arange(17), dots + np.arange(17)])
    assert d[0] == 17


def test_what_has_no_address() -> None:
    with pytest.raises(TileError, match="lies nowhere in memory"):

        @T.prim_func
        def main(A: T.Tensor((4,), "float32")):
            with T.Kernel(1):
                T.address_of(A[0] + 1)


@pytest.mark.parametrize("options", [{}, {"swizzle_size": 2}, {"column_major": False, "swizzle_size": 3}])
@pytest.mark.parametrize("target", TARGETS)
def test_a_scheduler_visits_every_tile_once(target: str, options: dict[str, int]) -> None:
    @tiledsl.jit
    def made(m, n, workers, **kw):
        @T.prim_func
        def main(V: T.Tensor((m, n), "int32"), R: T.Tensor((m, n), "int32")):
            with T.Kernel(workers, threads=32) as b:
                tiles = T.PersistentTileScheduler(m, n, **kw)
                tiles.init(b)
                while tiles.valid():
                    i, j = tiles.m_idx, tiles.n_idx
                    if T.get_thread_binding() == 0:
                        V[i, j] += 1
                        R[i, j] = tiles.current_iter
                    tiles.next_tile()

        return main

    for m, n, workers in ((5, 7, 3), (1, 1, 4), (8, 3, 8)):
        v, r = np.zeros((m, n), np.int32), np.zeros((m, n), np.int32)
        made(m, n, workers, **options)(v, r, target=target)
        assert (v == 1).all() and sorted(r.flat) == sorted(t // workers for t in range(m * n))


def test_the_order_of_a_scheduler() -> None:
    """Two columns at a time, rows fastest within: what swizzle_size says; and a stateless one in a loop."""

    @tiledsl.jit
    def made(m, n, size):
        @T.prim_func
        def main(O: T.Tensor((m * n, 2), "int32")):
            with T.Kernel(1):
                tiles = T.PersistentTileScheduler(m, n, 1, swizzle_size=size, stateful=False)
                for w in range(m * n):
                    i, j = tiles.coord(w)
                    O[w, 0] = i
                    O[w, 1] = j

        return main

    for size, columns in ((1, [(0,), (1,), (2,)]), (2, [(0, 1), (2,)])):
        o = np.zeros((12, 2), np.int32)
        made(4, 3, size)(o)
        assert o.tolist() == [[i, j] for part in columns for i in range(4) for j in part]


@pytest.mark.parametrize("target", TARGETS)
def test_operators_by_their_names(target: str) -> None:
    """T.add and its like, as TVM's builders are called."""
    add, sub, mul, both, lt, none, div = (lookup(n) for n in ("add", "Sub", "multiply", "And", "LT", "Not", "div"))

    @tiledsl.jit
    def made(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "int32"), B: T.Tensor((5, n), "int32")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    B[0, i] = add(A[i], 3)
                    B[1, i] = sub(mul(A[i], 2), i)
                    B[2, i] = T.if_then_else(both(lt(A[i], 4), none(lt(A[i], 2))), 1, 0)
                    B[3, i] = div(A[i] - 5, 2)
                    B[4, i] = div(T.float32(A[i]), 2) * 2

        return main

    a = np.arange(9, dtype=np.int32)
    b = np.zeros((5, 9), np.int32)
    made(9)(a, b, target=target)
    want = [a + 3, a * 2 - a, (a < 4) & (a >= 2), np.trunc((a - 5) / 2), a]
    np.testing.assert_array_equal(b, np.array(want).astype(np.int32))


@pytest.mark.parametrize("target", TARGETS)
def test_shuffles_as_tvm_spells_them(target: str) -> None:
    up, down, lane = (lookup(f"tvm_warp_shuffle{n}") for n in ("_up", "_down", ""))

    @tiledsl.jit
    def made():
        @T.prim_func
        def main(B: T.Tensor((3, 32), "int32")):
            with T.Kernel(1, threads=32):
                tx = T.get_thread_binding()
                mask = lookup("tvm_warp_activemask")()
                B[0, tx] = up(mask, tx, 1, 32, 32)
                B[1, tx] = down(mask, tx, 2, 16, 32)
                B[2, tx] = lane(mask, tx, 3, 8, 32)

        return main

    b = np.zeros((3, 32), np.int32)
    made()(b, target=target)
    x = np.arange(32)
    np.testing.assert_array_equal(b, [np.maximum(x - 1, 0), np.where(x % 16 < 14, x + 2, x), x // 8 * 8 + 3])


def test_families_of_hardware_names() -> None:
    for name in ("ptx_cp_async_bulk", "clc_try_cancel", "tvm_mma_sync", "wgmma_mma"):
        with pytest.raises(TileError, match="hardware-only"):
            lookup(name)()
