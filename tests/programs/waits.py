"""Programs at the level of threads: groups that wait for each other."""

import numpy as np
from programs.registry import F32, program, wide

import tiledsl
import tiledsl.language as T


@program(0)
def producer_and_consumer(rng):
    """Half of the block fills a ring of two slots, the other half reads it; mbarriers say when."""
    n, steps, half = 32, 7, 32

    @tiledsl.jit(out_idx=[1])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((steps, n), "int32"), Y: T.Tensor((n,), "int32")):
            with T.Kernel(1, threads=2 * half):
                tid = T.get_thread_binding()
                ring = T.alloc_shared((2, n), "int32")
                full = T.alloc_barrier([half, half])
                empty = T.alloc_barrier([half, half])
                total = T.alloc_var("int32", 0)
                if tid < half:
                    for k in T.serial(steps):
                        T.barrier_wait(empty[k % 2], ((k // 2) & 1) ^ 1)
                        ring[k % 2, tid] = X[k, tid]
                        T.barrier_arrive(full[k % 2])
                else:
                    for k in T.serial(steps):
                        T.barrier_wait(full[k % 2], (k // 2) & 1)
                        total += ring[k % 2, tid - half] * (k + 1)
                        T.barrier_arrive(empty[k % 2])
                    Y[tid - half] = total

        return main

    x = rng.integers(-100, 100, (steps, n)).astype(np.int32)
    return [(kernel()(x), (x * np.arange(1, steps + 1)[:, None]).sum(0).astype(np.int32))]


@program(F32)
def blocks_that_meet_at_a_grid_barrier(rng):
    """Every block writes its part of a sum, all wait, then every block reads all parts."""
    n, blocks, threads = 400, 5, 32

    @tiledsl.jit(out_idx=[1, 2])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((n,), "float32"), Part: T.Tensor((blocks,), "float32"), Y: T.Tensor((n,), "float32")):
            with T.Kernel(blocks, threads=threads) as bx:
                tid = T.get_thread_binding()
                v = T.alloc_var("float32", 0.0)
                for i in T.serial(T.ceildiv(n // blocks, threads)):
                    p = i * threads + tid
                    if p < n // blocks:
                        v += X[bx * (n // blocks) + p]
                total = T.warp_reduce_sum(v)
                if tid == 0:
                    Part[bx] = total
                T.sync_grid()
                whole = T.alloc_var("float32", 0.0)
                for b in T.serial(blocks):
                    whole += Part[b]
                for i in T.serial(T.ceildiv(n // blocks, threads)):
                    p = i * threads + tid
                    if p < n // blocks:
                        Y[bx * (n // blocks) + p] = X[bx * (n // blocks) + p] / whole

        return main

    x = rng.random(n).astype(np.float32)
    part, y = kernel()(x)
    return [(part, wide(x).reshape(blocks, -1).sum(1)), (y, wide(x) / wide(x).sum())]
