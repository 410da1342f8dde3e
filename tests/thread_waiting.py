"""Kernels whose groups of threads, or whose blocks, wait for each other, for the tests of every target."""

# ruff: noqa: ANN201  (factories of traced kernels)

import tiledsl.language as T


def roles():
    """One half of the block copies tiles, the other counts; then all write."""

    @T.prim_func
    def main(A: T.Tensor((32, 32), T.float32), B: T.Tensor((32, 32), T.float32), N: T.Tensor((1,), T.int32)):
        with T.Kernel(1, threads=64):
            tid = T.get_thread_binding()
            s = T.alloc_shared((32, 32), T.float32)
            hits = T.alloc_shared((1,), T.int32)
            T.fill(hits, 0)
            if tid < 32:
                T.copy(A, s)
                for i, j in T.Parallel(32, 32):
                    s[i, j] = s[i, j] * 2.0
            else:
                T.atomic_add(hits[0], 1)
            T.sync_threads()
            for i, j in T.Parallel(32, 32):
                B[i, j] = s[i, j] + 1.0
            if tid == 63:
                N[0] = hits[0]

    return main


def pipeline(n: int, stages: int):
    """B = 2 A + 1, tile by tile: one half of the block loads into a ring of stages, the other computes and stores."""

    @T.prim_func
    def main(A: T.Tensor((n, 64), T.float32), B: T.Tensor((n, 64), T.float32)):
        with T.Kernel(2, threads=256) as bx:
            tid = T.get_thread_binding()
            ring = T.alloc_shared((stages, 64), T.float32)
            full = T.alloc_barrier([128] * stages)
            empty = T.alloc_barrier([128] * stages)
            if tid < 128:
                for k in T.serial(n // 2):
                    T.barrier_wait(empty[k % stages], ((k // stages) & 1) ^ 1)
                    T.copy(A[bx * (n // 2) + k, 0], ring[k % stages, 0:64])
                    T.mbarrier_arrive(full[k % stages])
            else:
                own = tid - 128
                for k in T.serial(n // 2):
                    T.mbarrier_wait_parity(full[k % stages], (k // stages) & 1)
                    if own < 64:
                        B[bx * (n // 2) + k, own] = ring[k % stages, own] * 2.0 + 1.0
                    T.barrier_arrive(empty[k % stages])

    return main


def ping_pong(n: int):
    """Two warps take turns on one cell: X[0] counts, Y[i] = who was there at turn i."""

    @T.prim_func
    def main(X: T.Tensor((1,), T.int32), Y: T.Tensor((n,), T.int32)):
        with T.Kernel(1, threads=64):
            tid = T.get_thread_binding()
            turn = T.alloc_shared((1,), T.int32)
            T.fill(turn, 0)
            if T.get_warp_idx() == 0:
                for k in T.serial(n):
                    if k % 2 == 0:
                        while T.atomic_load(turn[0]) != k:
                            pass
                        if T.get_lane_idx() == 0:
                            Y[k] = 0
                            T.atomic_store(turn[0], k + 1)
            else:
                for k in T.serial(n):
                    if k % 2 == 1:
                        while T.atomic_load(turn[0]) != k:
                            pass
                        if T.get_lane_idx() == 0:
                            Y[k] = 1
                            T.atomic_store(turn[0], k + 1)
            T.sync_threads()
            if tid == 0:
                X[0] = turn[0]

    return main


def named_barriers():
    """Two halves of the block hand values over at a barrier that both count on."""

    @T.prim_func
    def main(A: T.Tensor((64,), T.int32), B: T.Tensor((64,), T.int32)):
        with T.Kernel(1, threads=64):
            t = T.get_thread_binding()
            s = T.alloc_shared((64,), T.int32)
            if t >= 32:
                s[t] = A[t]
                T.sync_threads(1, 64)
                B[t] = s[t - 32]
            else:
                s[t] = A[t]
                T.sync_threads(1, 64)
                B[t] = s[t + 32]

    return main


def grid_sum(blocks: int):
    """Every block puts a number down; behind a barrier of the grid each reads all of them. Twice."""

    @T.prim_func
    def main(W: T.Tensor((2, blocks), T.int32), B: T.Tensor((blocks,), T.int32)):
        with T.Kernel(blocks, threads=32) as bx:
            t = T.get_thread_binding()
            if t == 0:
                W[0, bx] = bx + 1
            T.sync_grid()
            total = T.alloc_var(T.int32, 0)
            for k in T.serial(blocks):
                total += W[0, k]
            if t == 0:
                W[1, bx] = total * (bx + 1)
            T.sync_grid()
            if t == 0:
                B[bx] = W[1, (bx + 1) % blocks]

    return main


def look_back(blocks: int):
    """Running sums over blocks, backwards: block b waits for the flag of block b + 1."""

    @T.prim_func
    def main(A: T.Tensor((blocks,), T.int32), F: T.Tensor((blocks,), T.int32), S: T.Tensor((blocks,), T.int32)):
        with T.Kernel(blocks, threads=64) as bx:
            t = T.get_thread_binding()
            if t == 0:
                own = T.alloc_var(T.int32, A[bx])
                if bx < blocks - 1:
                    while T.atomic_load(F[bx + 1]) == 0:
                        pass
                    own += S[bx + 1]
                S[bx] = own
                T.atomic_store(F[bx], 1)

    return main


def pipeline_of_separate_branches(n: int, stages: int):
    """As `pipeline`, but each role has an `if` of its own, and a value between them."""

    @T.prim_func
    def main(A: T.Tensor((n, 64), T.float32), B: T.Tensor((n, 64), T.float32)):
        with T.Kernel(2, threads=256) as bx:
            tid = T.get_thread_binding()
            ring = T.alloc_shared((stages, 64), T.float32)
            full = T.alloc_barrier([128] * stages)
            empty = T.alloc_barrier([128] * stages)
            half = n // 2
            if tid < 128:
                for k in T.serial(half):
                    T.barrier_wait(empty[k % stages], ((k // stages) & 1) ^ 1)
                    T.copy(A[bx * half + k, 0], ring[k % stages, 0:64])
                    T.barrier_arrive(full[k % stages])
                if tid == 5:
                    T.thread_return()
            own = tid % 128
            factor = T.alloc_var(T.float32, 2.0)
            if tid >= 128:
                for k in T.serial(half):
                    T.barrier_wait(full[k % stages], (k // stages) & 1)
                    if own < 64:
                        B[bx * half + k, own] = ring[k % stages, own] * factor
                    T.barrier_arrive(empty[k % stages])
            T.sync_threads()
            if tid < 64:
                B[bx * half, tid] += factor / 4.0 * T.cast(own + 1 - tid, "float32")

    return main


def warp_groups(n: int):
    """B = A + 1 row by row: warp group 1 loads, warp group 0 stores, in one loop, with numbered barriers."""

    @T.prim_func
    def main(A: T.Tensor((n, 64), T.float32), B: T.Tensor((n, 64), T.float32)):
        with T.Kernel(1, threads=256):
            s = T.alloc_shared((64,), T.float32)
            T.create_list_of_mbarrier(128, 128)
            for k in range(n):
                with T.ws(1):
                    T.mbarrier_wait_parity(1, (k & 1) ^ 1)
                    T.copy(A[k, 0], s)
                    T.mbarrier_arrive(mbarrier=0)
                with T.ws(0):
                    T.mbarrier_wait_parity(T.get_mbarrier(0), k & 1)
                    for i in T.Parallel(64):
                        B[k, i] = s[i] + 1.0
                    T.mbarrier_arrive(1)

    return main


def rounds_of_the_grid(blocks: int, least: int):
    """Every block adds up what the others have put down, in as many rounds as the first argument says; the barriers are
    inside a run-time loop, and one more inside a branch."""

    @T.prim_func
    def main(R: T.Tensor((2,), T.int32), W: T.Tensor((3, blocks), T.int32), B: T.Tensor((blocks,), T.int32)):
        with T.Kernel(blocks, threads=32) as bx:
            t = T.get_thread_binding()
            total = T.alloc_var(T.int32, bx + 1)
            for k in T.serial(R[0]):
                if t == 0:
                    W[k % 2, bx] = total
                T.sync_grid()
                for j in T.serial(blocks):
                    total += W[k % 2, j] * (j + k)
            if R[1] > least:
                if t == 0:
                    W[2, bx] = total
                T.sync_grid()
                total -= W[2, (bx + 1) % blocks]
            if t == 0:
                B[bx] = total

    return main
