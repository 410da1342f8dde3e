"""How kernels are put together: scheduler objects, chains of roles, gates in registers, tickets."""

import numpy as np
from programs.registry import F32, normal, program, wide

import tiledsl
import tiledsl.language as T


@program(F32)
def matmul_by_a_scheduler_object(rng):
    """Workers walk over output tiles; where a worker is lies in variables that a Python object holds."""
    M, N, K, B, workers = 40, 50, 24, 16, 3

    @T.meta_class
    class Tiles:
        def __init__(self, rows, columns, first, step):
            self.at = T.alloc_var(T.int32, init=first)
            self.left = T.alloc_var(T.int32, init=(rows * columns - first + step - 1) // step)
            self.rows, self.columns, self.step = rows, columns, step

        def valid(self):
            return self.left > 0

        def place(self):
            return self.at // self.columns, self.at % self.columns

        @T.inline
        def advance(self):
            self.at += self.step
            self.left = self.left - 1

    @tiledsl.jit(out_idx=[2])
    def kernel():
        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B_: T.Tensor((N, K), "float16"), C: T.Tensor((M, N), "float32")):
            with T.Kernel(workers, threads=64) as worker:
                a, b = T.alloc_shared((B, B), "float16"), T.alloc_shared((B, B), "float16")
                acc = T.alloc_fragment((B, B), "float32")
                tiles = Tiles(T.ceildiv(M, B), T.ceildiv(N, B), worker, workers)
                while tiles.valid():
                    row, column = tiles.place()
                    for k in T.Pipelined(T.ceildiv(K, B), num_stages=2):
                        T.copy(A[row * B, k * B], a)
                        T.copy(B_[column * B, k * B], b)
                        T.gemm(a, b, acc, transpose_B=True, clear_accum=k == 0)
                    T.copy(acc, C[row * B, column * B])
                    tiles.advance()

        return main

    a, b = normal(rng, M, K, dtype=np.float16), normal(rng, N, K, dtype=np.float16)
    return [(kernel()(a, b), wide(a) @ wide(b).T)]


@program(F32)
def chain_of_three_roles(rng):
    """Load, square, store: three groups of warps in a row, an `if` for each, one buffer between neighbours."""
    n, width = 6, 48

    @tiledsl.jit(out_idx=[1])
    def kernel():
        @T.prim_func
        def main(A: T.Tensor((n, width), "float32"), C: T.Tensor((n, width), "float32")):
            with T.Kernel(1, threads=384):
                first, second = T.alloc_shared((width,), "float32"), T.alloc_shared((width,), "float32")
                full1, empty1 = T.alloc_barrier(128), T.alloc_barrier(128)
                full2, empty2 = T.alloc_barrier(arrive_count=128), T.alloc_barrier(arrive_count=128)
                tx = T.get_thread_binding()
                if tx < 128:
                    T.dec_max_nreg(24)
                    for i in T.serial(n):
                        T.barrier_wait(empty1, (i & 1) ^ 1)
                        T.copy(A[i, :], first)
                        T.barrier_arrive(full1)
                scale = T.alloc_var("float32", init=0.5)
                if tx >= 128 and tx < 256:
                    T.inc_max_nreg(160)
                    for i in T.serial(n):
                        T.barrier_wait(full1, i & 1)
                        T.barrier_wait(empty2, (i & 1) ^ 1)
                        for j in T.Parallel(width):
                            second[j] = first[j] * first[j] * scale
                        T.barrier_arrive(empty1)
                        T.barrier_arrive(full2)
                if tx >= 256:
                    for i in T.serial(n):
                        T.mbarrier_wait_parity(full2, i & 1)
                        T.copy(second, C[i, :])
                        T.mbarrier_arrive(empty2)

        return main

    a = normal(rng, n, width)
    return [(kernel()(a), wide(a) ** 2 / 2)]


@program(F32)
def gate_by_shuffles(rng):
    """The largest k of a row within one warp: each lane keeps its few in registers, winners go by butterflies."""
    tokens, experts, top = 5, 72, 6
    per = -(-experts // 32)

    @tiledsl.jit
    def kernel():
        rows = T.dynamic("rows")

        @T.prim_func
        def main(
            X: T.Tensor[(rows, experts), T.float32],
            Index: T.Tensor[(rows, top), T.int64],
            Weight: T.Tensor[(rows, top), T.float32],
        ):
            with T.Kernel(rows, threads=32) as (row,):
                lane = T.get_thread_binding()
                v = T.alloc_local((per,), T.float32)
                keep = T.alloc_var(T.int64)
                mine = T.alloc_var(T.float32, init=0.0)
                total = T.alloc_var(T.float32, init=0.0)
                for j in T.unroll(per):
                    v[j] = T.if_then_else(j * 32 + lane < experts, X[row, j * 32 + lane], -T.infinity(T.float32))
                keep = 0
                for k in T.serial(top):
                    best = T.alloc_var(T.float32, init=-T.infinity(T.float32))
                    where = T.alloc_var(T.int32, init=experts)
                    for j in T.unroll(per):
                        if v[j] > best:
                            best = v[j]
                            where = j * 32 + lane
                    for s in T.unroll(5):
                        other, place = T.shfl_xor(best, 1 << s), T.shfl_xor(where, 1 << s)
                        if other > best or (other == best and place < where):
                            best = other
                            where = place
                    for j in T.unroll(per):
                        if where == j * 32 + lane:
                            v[j] = -T.infinity(T.float32)
                    if lane == k:
                        keep = where
                        mine = T.sigmoid(best)
                    total += T.sigmoid(best)
                if lane < top:
                    Index[row, lane] = keep
                    Weight[row, lane] = mine / total

        return main

    x = np.round(normal(rng, tokens, experts), 1)
    index, weight = np.zeros((tokens, top), np.int64), np.zeros((tokens, top), np.float32)
    kernel()(x, index, weight)
    order = np.argsort(-x, axis=1, kind="stable")[:, :top]
    gates = 1 / (1 + np.exp(-np.take_along_axis(wide(x), order, 1)))
    return [(index, order), (weight, gates / gates.sum(1, keepdims=True))]


@program(0)
def groups_by_a_barrier_of_the_grid(rng):
    """Experts counted, started at aligned places, slots given in order: three steps between barriers of all blocks."""
    tokens, top, experts, align, blocks, threads = 21, 3, 8, 4, 3, 64

    @tiledsl.jit
    def kernel():
        rows = T.dynamic("rows")

        @T.prim_func
        def main(
            Index: T.Tensor[(rows, top), T.int32],
            Count: T.Tensor[(experts,), T.int32],
            Start: T.Tensor[(experts + 1,), T.int32],
            Slot: T.Tensor[(rows, top), T.int32],
        ):
            with T.Kernel(blocks, threads=threads) as block:
                tid = T.get_thread_binding()
                me = block * threads + tid
                for i in T.serial(me, rows * top, blocks * threads):
                    e = Index[i // top, i % top]
                    if e >= 0:
                        T.atomic_add(Count[e], 1)
                T.sync_grid()
                if block == 0 and tid == 0:
                    acc = T.alloc_var(T.int32, init=0)
                    for e in range(experts):
                        Start[e] = acc
                        acc += T.ceildiv(Count[e], align) * align
                    Start[experts] = acc
                T.sync_grid()
                for e in T.serial(me, experts, blocks * threads):
                    given = T.alloc_var(T.int32, init=0)
                    for i in T.serial(rows * top):
                        if Index[i // top, i % top] == e:
                            Slot[i // top, i % top] = Start[e] + given
                            given += 1

        return main

    index = rng.integers(-1, experts, (tokens, top)).astype(np.int32)
    count, start, slot = np.zeros(experts, np.int32), np.zeros(experts + 1, np.int32), np.full_like(index, -1)
    kernel()(index, count, start, slot)
    counts = np.bincount(index[index >= 0], minlength=experts)
    starts = np.concatenate([[0], np.cumsum(-(-counts // align) * align)])
    slots = np.full(index.size, -1)
    for e in range(experts):
        slots[np.flatnonzero(index.ravel() == e)] = starts[e] + np.arange(counts[e])
    return [(count, counts), (start, starts), (slot, slots.reshape(index.shape))]


@program(F32)
def gram_matrix_by_one_warp_of_loaders(rng):
    """A warp loads and arrives four times per round for the 128 that are counted; a group of warps multiplies."""
    n, size = 5, 16

    @tiledsl.jit(out_idx=[1])
    def kernel():
        @T.prim_func
        def main(A: T.Tensor((n, size, size), "float16"), C: T.Tensor((size, size), "float32")):
            with T.Kernel(1, threads=256):
                ring = T.alloc_shared((2, size, size), "float16")
                acc = T.alloc_fragment((size, size), "float32")
                full, empty = T.alloc_barrier([128, 128]), T.alloc_barrier([128, 128])
                T.clear(acc)
                tx = T.get_thread_binding()
                if tx < 128:
                    for i in T.serial(n):
                        T.mbarrier_wait_parity(full[i % 2], (i // 2) & 1)
                        T.gemm(ring[i % 2, :, :], ring[i % 2, :, :], acc, transpose_B=True)
                        T.mbarrier_arrive(empty[i % 2])
                elif tx < 160:
                    for i in T.serial(n):
                        T.mbarrier_wait_parity(empty[i % 2], ((i // 2) & 1) ^ 1)
                        T.copy(A[i, :, :], ring[i % 2, :, :])
                        for _ in T.serial(4):
                            T.mbarrier_arrive(full[i % 2])
                T.sync_threads()
                T.copy(acc, C)

        return main

    a = normal(rng, n, size, size, dtype=np.float16)
    return [(kernel()(a), np.einsum("nij,nkj->ik", wide(a), wide(a)))]
