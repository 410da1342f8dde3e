"""Divided roles: groups of threads that count, wait and compute each for itself, on the interpreter and compiled.

Every kernel runs in every mode and is compared with a formula in NumPy; mistakes are reported by the checked mode.
"""

from typing import Any

import numpy as np
import pytest
from kernels_support import product_bound, worst

import tiledsl
import tiledsl.language as T
from tiledsl.backend import backends, load_backend
from tiledsl.errors import TileError

TARGETS = ["numpy:exact", "numpy:checked", "numba", "llvm"]
EMULATED = "cuda-emulator" in backends() and load_backend("cuda-emulator").probe().ok
EVERYWHERE = [*TARGETS, "cuda-emulator:sm_80"] if EMULATED else TARGETS
rng = np.random.default_rng(5)


def normal(*shape: int) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape).astype(np.float16)


def product(c: np.ndarray[Any, Any], a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> None:
    assert worst(c, *product_bound(a, b, "float32")) <= 1


@tiledsl.jit(out_idx=[2])
def pipeline(M, N, K, BM, BN, BK, stages, where):
    """Producer and consumer with counters of their own: allocated outside, inside, or a pair of local elements."""

    @T.macro
    def step(stage: T.Ref, phase: T.Ref):
        stage += 1
        if stage == stages:
            stage = 0
            phase ^= 1

    @T.prim_func
    def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=96) as (bx, by):
            a, b = T.alloc_shared((stages, BM, BK), "float16"), T.alloc_shared((stages, BK, BN), "float16")
            acc = T.alloc_fragment((BM, BN), "float32")
            full, empty = T.alloc_barrier([32] * stages), T.alloc_barrier([64] * stages)
            tid = T.get_thread_binding()
            if where == "outside":
                stage, phase = T.alloc_var("int32", 0), T.alloc_var("int32", 0)
            if where == "local":
                pair = T.alloc_local((2,), "int32")
                T.clear(pair)
            if tid < 32:
                if where == "inside":
                    stage, phase = T.alloc_var("int32", 0), T.alloc_var("int32", 0)
                for k in T.serial(T.ceildiv(K, BK)):
                    if where == "local":
                        T.barrier_wait(empty[pair[0]], pair[1] ^ 1)
                        T.copy(A[by * BM, k * BK], a[pair[0], :, :])
                        T.copy(B[k * BK, bx * BN], b[pair[0], :, :])
                        T.barrier_arrive(full[pair[0]])
                        step(pair[0], pair[1])
                    else:
                        T.barrier_wait(empty[stage], phase ^ 1)
                        T.copy(A[by * BM, k * BK], a[stage, :, :])
                        T.copy(B[k * BK, bx * BN], b[stage, :, :])
                        T.barrier_arrive(full[stage])
                        step(stage, phase)
            else:
                if where == "inside":
                    stage, phase = T.alloc_var("int32", 0), T.alloc_var("int32", 0)
                T.clear(acc)
                for _ in T.serial(T.ceildiv(K, BK)):
                    if where == "local":
                        T.barrier_wait(full[pair[0]], pair[1])
                        T.gemm(a[pair[0], :, :], b[pair[0], :, :], acc)
                        T.barrier_arrive(empty[pair[0]])
                        step(pair[0], pair[1])
                    else:
                        T.barrier_wait(full[stage], phase)
                        T.gemm(a[stage, :, :], b[stage, :, :], acc)
                        T.barrier_arrive(empty[stage])
                        step(stage, phase)
                T.copy(acc, C[by * BM, bx * BN])

    return main


@pytest.mark.parametrize("where", ["outside", "inside", "local"])
@pytest.mark.parametrize("target", EVERYWHERE)
def test_counters_of_each_role(target: str, where: str) -> None:
    a, b = normal(20, 100), normal(100, 17)
    product(pipeline(20, 17, 100, 16, 16, 16, 3, where)(a, b, target=target), a, b)


@tiledsl.jit(out_idx=[2])
def persistent(M, N, K, BM, BN, BK, stages, workers, roles_inside):
    """Tiles by a scheduler; the roles are in the loop over tiles, or the loop in each role; counters go on."""

    @T.prim_func
    def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
        with T.Kernel(workers, threads=64) as w:
            a, b = T.alloc_shared((stages, BM, BK), "float16"), T.alloc_shared((stages, BK, BN), "float16")
            acc = T.alloc_fragment((BM, BN), "float32")
            full, empty = T.alloc_barrier([32] * stages), T.alloc_barrier([32] * stages)
            tid = T.get_thread_binding()
            count = T.alloc_var("int32", 0)
            tiles = T.PersistentTileScheduler(T.ceildiv(M, BM), T.ceildiv(N, BN), workers)
            if roles_inside:
                for t in T.serial(T.ceildiv(T.ceildiv(M, BM) * T.ceildiv(N, BN), workers)):
                    i, j = tiles.coord(t * workers + w)
                    with T.ws(0):
                        pass
                    if tid < 32:
                        for k in T.serial(T.ceildiv(K, BK)):
                            T.barrier_wait(empty[count % stages], (count // stages) & 1 ^ 1)
                            T.copy(A[i * BM, k * BK], a[count % stages, :, :])
                            T.copy(B[k * BK, j * BN], b[count % stages, :, :])
                            T.barrier_arrive(full[count % stages])
                            count += 1
                    if tid >= 32:
                        for k in T.serial(T.ceildiv(K, BK)):
                            T.barrier_wait(full[count % stages], (count // stages) & 1)
                            T.gemm(a[count % stages, :, :], b[count % stages, :, :], acc, clear_accum=k == 0)
                            T.barrier_arrive(empty[count % stages])
                            count += 1
                        if t * workers + w < T.ceildiv(M, BM) * T.ceildiv(N, BN):
                            T.copy(acc, C[i * BM, j * BN])
            else:
                tiles.init(w)
                if tid < 32:
                    while tiles.valid():
                        for k in T.serial(T.ceildiv(K, BK)):
                            T.barrier_wait(empty[count % stages], (count // stages) & 1 ^ 1)
                            T.copy(A[tiles.m_idx * BM, k * BK], a[count % stages, :, :])
                            T.copy(B[k * BK, tiles.n_idx * BN], b[count % stages, :, :])
                            T.barrier_arrive(full[count % stages])
                            count += 1
                        tiles.next_tile()
                else:
                    while tiles.valid():
                        for k in T.serial(T.ceildiv(K, BK)):
                            T.barrier_wait(full[count % stages], (count // stages) & 1)
                            T.gemm(a[count % stages, :, :], b[count % stages, :, :], acc, clear_accum=k == 0)
                            T.barrier_arrive(empty[count % stages])
                            count += 1
                        T.copy(acc, C[tiles.m_idx * BM, tiles.n_idx * BN])
                        tiles.next_tile()

    return main


@pytest.mark.parametrize("roles_inside", [False, True])
@pytest.mark.parametrize("target", EVERYWHERE)
def test_persistent_roles(target: str, roles_inside: bool) -> None:
    a, b = normal(33, 50), normal(50, 40)
    product(persistent(33, 40, 50, 16, 16, 16, 2, 4, roles_inside)(a, b, target=target), a, b)


@tiledsl.jit(out_idx=[1])
def four_roles(n, width, early):
    """Load, scale, add, store in a chain of four; `early`: the loader returns at its end, the others go on."""

    @T.prim_func
    def main(A: T.Tensor((n, width), "float32"), B: T.Tensor((n, width), "float32")):
        with T.Kernel(1, threads=128):
            x = T.alloc_shared((3, 2, width), "float32")
            ready, done = T.alloc_barrier([32] * 6), T.alloc_barrier([32] * 6)
            tid = T.get_thread_binding()
            if tid < 32:
                for k in T.serial(n):
                    T.barrier_wait(done[k % 2], (k // 2) & 1 ^ 1)
                    T.copy(A[k, :], x[0, k % 2, :])
                    T.barrier_arrive(ready[k % 2])
                if early:
                    T.thread_return()
            elif tid < 64:
                for k in T.serial(n):
                    T.barrier_wait(ready[k % 2], (k // 2) & 1)
                    T.barrier_wait(done[2 + k % 2], (k // 2) & 1 ^ 1)
                    for i in T.Parallel(width):
                        x[1, k % 2, i] = x[0, k % 2, i] * 2.0
                    T.barrier_arrive(ready[2 + k % 2])
                    T.barrier_arrive(done[k % 2])
            elif tid < 96:
                for k in T.serial(n):
                    T.barrier_wait(ready[2 + k % 2], (k // 2) & 1)
                    T.barrier_wait(done[4 + k % 2], (k // 2) & 1 ^ 1)
                    for i in T.serial(T.ceildiv(width, 32)):
                        if i * 32 + tid - 64 < width:
                            x[2, k % 2, i * 32 + tid - 64] = x[1, k % 2, i * 32 + tid - 64] + k
                    T.barrier_arrive(ready[4 + k % 2])
                    T.barrier_arrive(done[2 + k % 2])
            else:
                for k in T.serial(n):
                    T.barrier_wait(ready[4 + k % 2], (k // 2) & 1)
                    T.copy(x[2, k % 2, :], B[k, :])
                    T.barrier_arrive(done[4 + k % 2])

    return main


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("target", EVERYWHERE)
def test_a_chain_of_four(target: str, early: bool) -> None:
    a = rng.standard_normal((7, 45)).astype(np.float32)
    np.testing.assert_array_equal(
        four_roles(7, 45, early)(a, target=target), a * 2 + np.arange(7, dtype=np.float32)[:, None]
    )


@tiledsl.jit(out_idx=[1])
def tickets(n):
    """Nested roles and conditions: each warp waits for its predecessor, inside a branch of a branch."""

    @T.prim_func
    def main(A: T.Tensor((n,), "int32"), B: T.Tensor((5,), "int32")):
        with T.Kernel(1, threads=128):
            total = T.alloc_shared((1,), "int32")
            turn = T.alloc_barrier([32] * 4)
            tid = T.get_thread_binding()
            if tid == 0:
                total[0] = 0
            T.sync_threads()
            if tid < 64:
                if tid < 32:
                    T.atomic_add(total[0], A[tid])
                    T.barrier_arrive(turn[0])
                else:
                    T.barrier_wait(turn[0], 0)
                    if n > 32:
                        if tid == 32:
                            B[0] = total[0]
                    T.sync_warp()
                    T.atomic_add(total[0], A[tid])
                    T.barrier_arrive(turn[1])
            else:
                if tid >= 96:
                    T.barrier_wait(turn[2], 0)
                    if tid == 96:
                        B[2] = total[0]
                    T.sync_warp()
                    T.atomic_add(total[0], A[tid])
                    T.barrier_arrive(turn[3])
                else:
                    T.barrier_wait(turn[1], 0)
                    if tid == 64:
                        B[1] = total[0]
                    T.sync_warp()
                    T.atomic_add(total[0], A[tid])
                    T.barrier_arrive(turn[2])
            T.sync_threads()
            if tid == 5:
                B[3] = total[0]
                B[4] = tid

    return main


@pytest.mark.parametrize("target", EVERYWHERE)
def test_nested_roles(target: str) -> None:
    a = rng.integers(-50, 50, 128).astype(np.int32)
    sums = a.reshape(4, 32).sum(1).cumsum()
    np.testing.assert_array_equal(tickets(128)(a, target=target), [*sums, 5])


@tiledsl.jit(out_idx=[1])
def named(n):
    """Two of three warps meet at barriers of their own, again and again, while the third does something else."""

    @T.prim_func
    def main(A: T.Tensor((n, 32), "int32"), B: T.Tensor((3, n, 32), "int32")):
        with T.Kernel(1, threads=96):
            x = T.alloc_shared((2, 32), "int32")
            tid = T.get_thread_binding()
            if tid < 64:
                warp, lane = tid // 32, tid % 32
                for k in T.serial(n):
                    x[warp, lane] = A[k, lane] + warp
                    T.sync_threads(1, 64)
                    B[warp, k, lane] = x[1 - warp, 31 - lane]
                    T.sync_threads(2, 64)
            else:
                for k in T.serial(n):
                    B[2, k, tid - 64] = T.shfl_xor(A[k, tid - 64], 1)

    return main


@pytest.mark.parametrize("target", EVERYWHERE)
def test_named_barriers_of_some_warps(target: str) -> None:
    a = rng.integers(0, 99, (5, 32)).astype(np.int32)
    b = named(5)(a, target=target)
    np.testing.assert_array_equal(b, [a[:, ::-1] + 1, a[:, ::-1], a.reshape(5, 16, 2)[:, :, ::-1].reshape(5, 32)])


@tiledsl.jit(out_idx=[1])
def own_waits(n):
    """Each warp of a role waits for a barrier of its own, with a phase of its own."""

    @T.prim_func
    def main(A: T.Tensor((n, 64), "int32"), B: T.Tensor((n, 64), "int32")):
        with T.Kernel(1, threads=128):
            x = T.alloc_shared((64,), "int32")
            full, empty = T.alloc_barrier([32, 32]), T.alloc_barrier([32, 32])
            tid = T.get_thread_binding()
            warp = T.alloc_var("int32", tid // 32 % 2)
            phase = T.alloc_var("int32", 0)
            if tid < 64:
                for k in T.serial(n):
                    T.barrier_wait(empty[warp], phase ^ 1)
                    x[tid] = A[k, tid] + warp
                    T.barrier_arrive(full[warp])
                    phase = phase ^ 1
            else:
                for k in T.serial(n):
                    T.barrier_wait(full[warp], phase)
                    B[k, tid - 64] = x[tid - 64]
                    T.barrier_arrive(empty[warp])
                    phase = phase ^ 1

    return main


@pytest.mark.parametrize("target", EVERYWHERE)
def test_waits_that_differ_between_threads(target: str) -> None:
    a = rng.integers(0, 99, (6, 64)).astype(np.int32)
    np.testing.assert_array_equal(own_waits(6)(a, target=target), a + np.arange(64) // 32)


@tiledsl.jit(out_idx=[1])
def between(n):
    """Statements between two branches of roles belong to both; a count goes on there, and after."""

    @T.prim_func
    def main(A: T.Tensor((n,), "int32"), B: T.Tensor((4, 64), "int32")):
        with T.Kernel(1, threads=64):
            x = T.alloc_shared((n,), "int32")
            bar = T.alloc_barrier([32, 32])
            tid = T.get_thread_binding()
            count = T.alloc_var("int32", 3)
            with T.ws(0):
                pass
            if tid < 32:
                for k in T.serial(n):
                    if tid == 0:
                        x[k] = A[k] + count
                    count += 2
                T.barrier_arrive(bar[0])
                T.barrier_wait(bar[1], 0)
            count += 100
            if tid >= 32:
                T.barrier_wait(bar[0], 0)
                for k in T.serial(n):
                    count += x[k]
                T.barrier_arrive(bar[1])
            B[0, tid] = count
            count += 1
            T.sync_threads()
            B[1, tid] = count
            for k in T.serial(2):
                if tid < 32:
                    T.sync_threads(3, 32)
                    count *= 2
                else:
                    T.sync_threads(4, 32)
                    count -= 1
                B[2 + k, tid] = count

    return main


@pytest.mark.parametrize("target", EVERYWHERE)
def test_variables_that_outlive_their_roles(target: str) -> None:
    a = rng.integers(0, 9, 4).astype(np.int32)
    first, second = 3 + 8 + 100, 3 + 100 + int((a + 3 + 2 * np.arange(4)).sum())
    rows = [[first, second], [first + 1, second + 1]]
    for _ in range(2):
        rows.append([rows[-1][0] * 2, rows[-1][1] - 1])
    np.testing.assert_array_equal(between(4)(a, target=target), np.repeat(rows, 32, axis=1))


@tiledsl.jit(out_idx=[2])
def small_products(n, scope):
    """Each thread multiplies matrices of its own: in registers, or in its part of shared memory."""

    @T.prim_func
    def main(A: T.Tensor((n, 3, 5), "float16"), B: T.Tensor((n, 5, 4), "float16"), C: T.Tensor((n, 3, 4), "float32")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
            tx = T.get_thread_binding()
            i = b * 32 + tx
            if scope == "local":
                x, y = T.alloc_local((3, 5), "float16"), T.alloc_local((5, 4), "float16")
                z = T.alloc_local((3, 4), "float32")
                if i < n:
                    T.copy(A[i, :, :], x)
                    T.copy(B[i, 0, 0], y)
                    T.gemm(x, y, z, clear_accum=True)
                    T.gemm(x, y, z)
                    T.copy(z, C[i, 0, 0])
            else:
                x, y = T.alloc_shared((32, 3, 5), "float16"), T.alloc_shared((32, 4, 5), "float16")
                z = T.alloc_shared((32, 3, 4), "float32")
                if i < n:
                    T.copy(A[i, :, :], x[tx, :, :])
                    for p, q in T.grid(4, 5):
                        y[tx, p, q] = B[i, q, p]
                    T.clear(z[tx, :, :])
                    for _ in T.serial(2):
                        T.gemm(x[tx, :, :], y[tx, :, :], z[tx, :, :], transpose_B=True)
                    T.copy(z[tx, :, :], C[i, :, :])

    return main


@pytest.mark.parametrize("scope", ["local", "shared"])
@pytest.mark.parametrize("target", EVERYWHERE)
def test_products_of_each_thread(target: str, scope: str) -> None:
    a, b = normal(45, 3, 5), normal(45, 5, 4)
    got = small_products(45, scope)(a, b, target=target)
    assert worst(got, *product_bound(np.concatenate([a, a], -1), np.concatenate([b, b], -2), "float32")) <= 1


def test_one_product_of_many_threads_places_is_refused() -> None:
    with pytest.raises(TileError, match="each thread has operands of its own, but all would add to one C"):

        @T.prim_func
        def main(A: T.Tensor((32, 16, 16), "float16")):
            with T.Kernel(1, threads=32):
                a, c = T.alloc_shared((32, 16, 16), "float16"), T.alloc_fragment((16, 16), "float32")
                T.gemm(a[T.get_thread_binding(), :, :], a[0, :, :], c)


@tiledsl.jit
def stuck(kind):
    @T.prim_func
    def main(A: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            bar = T.alloc_barrier([32, 32])
            tid = T.get_thread_binding()
            if tid < 32:
                T.barrier_wait(bar[1], 0)
                T.barrier_arrive(bar[0])
            else:
                if kind == "both wait":
                    T.barrier_wait(bar[0], 0)
                    T.barrier_arrive(bar[1])
                elif kind == "too few":
                    if tid < 48:
                        T.barrier_arrive(bar[1])
                A[tid] = 1

    return main


@pytest.mark.parametrize("kind", ["both wait", "too few", "nobody"])
@pytest.mark.parametrize("target", ["numpy", "numpy:checked", "numba", "llvm"])
def test_deadlocks_are_reported(target: str, kind: str) -> None:
    with pytest.raises(TileError, match="deadlock|wait for a condition that nobody makes true") as caught:
        stuck(kind)(np.zeros(64, np.int32), target=target)
    assert caught.value.loc is not None and caught.value.loc.line


def test_storage_of_threads_is_printed(capfd: Any) -> None:
    """Whole, element by element, by each thread that is there: alike on all targets."""

    @tiledsl.jit
    def made():
        @T.prim_func
        def main(A: T.Tensor((4,), "int32")):
            with T.Kernel(1, threads=4):
                tx = T.get_thread_binding()
                own = T.alloc_local((2, 2), "int32")
                for i, j in T.grid(2, 2):
                    own[i, j] = A[tx] * 10 + 2 * i + j
                if tx > 1:
                    T.print(own, msg="own")

        return main

    for target in TARGETS:
        made()(np.arange(4, dtype=np.int32), target=target)
        assert capfd.readouterr().out.splitlines() == ["own 20 21 22 23", "own 30 31 32 33"], target


def test_what_a_role_agrees_on_is_printed_once(capfd: Any) -> None:
    """As uniform values of the block are (language.md 0.3), also where the threads that are there are no neighbours."""

    @tiledsl.jit
    def made():
        @T.prim_func
        def main(A: T.Tensor((4,), "int32")):
            with T.Kernel(1, threads=8):
                tid = T.get_thread_binding()
                count = T.alloc_var("int32", 1)
                if tid < 4:
                    T.print(A[0], msg="role")
                    count += 1
                    T.sync_threads(1, 4)
                    T.print(count, msg="count")
                if tid % 3 == 1:
                    T.print(A[2], msg="some")
                if tid > 100:
                    T.print(A[3], msg="nobody")

        return main

    for target in ("numpy:exact", "numba", "llvm"):
        made()(np.arange(4, dtype=np.int32), target=target)
        assert capfd.readouterr().out.splitlines() == ["role 0", "count 2", "some 2"], target


@pytest.mark.parametrize("target", TARGETS)
def test_a_role_of_nobody(target: str, capfd: Any) -> None:
    """Found by drawing: threads that are not in the one branch, so in no branch of the other for them."""

    @tiledsl.jit
    def made():
        @T.prim_func
        def main(A: T.Tensor((4,), "int32"), B: T.Tensor((64,), "int32")):
            with T.Kernel(1, threads=64):
                tid = T.get_thread_binding()
                s, count = T.alloc_shared((4,), "int32"), T.alloc_var("int32", 0)
                if tid // 16 == 1:
                    T.fill(s, 3)
                else:
                    if tid // 16 == 1:
                        count += 2
                        T.print(A[0], msg="nobody")
                        T.copy(A, s)
                    T.fill(s, 3)
                B[tid] = count

        return main

    b = np.ones(64, np.int32)
    made()(np.arange(4, dtype=np.int32), b, target=target)
    assert not b.any() and not capfd.readouterr().out
