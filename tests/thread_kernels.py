"""Kernels at the thread level, for the tests of every target."""

# ruff: noqa: ANN201  (factories of traced kernels)

import tiledsl.language as T


def block_sum(n: int, threads: int):
    """B[0] = sum of A by one block: a strided sum per thread, then shuffles, then the warps' sums."""
    warps = threads // 32

    @T.prim_func
    def main(A: T.Tensor((n,), T.float32), B: T.Tensor((1,), T.float32)):
        with T.Kernel(1, threads=threads):
            tid = T.get_thread_binding()
            sums = T.alloc_shared((warps,), T.float32)
            own = T.alloc_var(T.float32, 0.0)
            for i in range(T.ceildiv(n, threads)):
                at = i * threads + tid
                if at < n:
                    own += A[at]
            for step in [16, 8, 4, 2, 1]:
                own += T.shfl_xor(own, step)
            if T.get_lane_idx() == 0:
                sums[T.get_warp_idx()] = own
            T.sync_threads()
            if tid < 32:
                rest = T.alloc_var(T.float32, 0.0)
                if tid < warps:
                    rest = sums[tid]
                for step in [16, 8, 4, 2, 1]:
                    rest += T.shfl_xor(rest, step)
                if tid == 0:
                    B[0] = rest

    return main


def transpose(m: int, n: int):
    """B = A transposed through a padded tile of 32x32 by 32x8 threads."""

    @T.prim_func
    def main(A: T.Tensor((m, n), T.float32), B: T.Tensor((n, m), T.float32)):
        with T.Kernel(T.ceildiv(n, 32), T.ceildiv(m, 32), threads=(32, 8)) as (bx, by):
            tx = T.get_thread_binding(0)
            ty = T.get_thread_binding(1)
            tile = T.alloc_shared((32, 33), T.float32)
            for k in T.unroll(4):
                tile[ty + 8 * k, tx] = A[by * 32 + ty + 8 * k, bx * 32 + tx]
            T.sync_threads()
            for k in T.unroll(4):
                B[bx * 32 + ty + 8 * k, by * 32 + tx] = tile[tx, ty + 8 * k]

    return main


def histogram(n: int, bins: int):
    """B[v] = how often v stands in A, by shared atomics of 64 threads."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), B: T.Tensor((bins,), T.int32)):
        with T.Kernel(1, threads=64):
            tid = T.get_thread_binding()
            counts = T.alloc_shared((bins,), T.int32)
            if tid < bins:
                counts[tid] = 0
            T.sync_threads()
            for i in range(T.ceildiv(n, 64)):
                if i * 64 + tid < n:
                    T.atomic_add(counts[A[i * 64 + tid]], 1)
            T.sync_threads()
            if tid < bins:
                B[tid] = counts[tid]

    return main


def gemv(n: int, k: int):
    """y = A @ x, one row per warp."""

    @T.prim_func
    def main(A: T.Tensor((n, k), T.float32), X: T.Tensor((k,), T.float32), Y: T.Tensor((n,), T.float32)):
        with T.Kernel(T.ceildiv(n, 4), threads=128) as bx:
            lane = T.get_lane_idx()
            row = bx * 4 + T.get_warp_idx()
            acc = T.alloc_local((1,), T.float32)
            acc[0] = 0.0
            if row < n:
                for j in range(T.ceildiv(k, 32)):
                    acc[0] += A[row, j * 32 + lane] * X[j * 32 + lane]
            total = T.warp_reduce_sum(acc[0])
            if lane == 0 and row < n:
                Y[row] = total

    return main


def allreduce_gemv(n: int, k: int):
    """y = A @ x with 4x16 threads: rows along x, a reduction over y by tvm_thread_allreduce."""

    @T.prim_func
    def main(A: T.Tensor((n, k), T.float32), X: T.Tensor((k,), T.float32), Y: T.Tensor((n,), T.float32)):
        with T.Kernel(T.ceildiv(n, 4), threads=(4, 16)) as bx:
            tn = T.get_thread_binding(0)
            tk = T.get_thread_binding(1)
            acc = T.alloc_local((1,), T.float32)
            total = T.alloc_local((1,), T.float32)
            T.clear(acc)
            for j in range(T.ceildiv(k, 16)):
                acc[0] += A[bx * 4 + tn, j * 16 + tk] * X[j * 16 + tk]
            with T.attr(
                T.comm_reducer(lambda x, y: x + y, [T.Cast("float32", 0)]),
                "reduce_scope",
                T.reinterpret(T.uint64(0), dtype="handle"),
            ):
                T.evaluate(T.tvm_thread_allreduce(T.uint32(1), acc[0], True, total[0], tk, dtype="handle"))
            if tk == 0:
                Y[bx * 4 + tn] = total[0]

    return main


def bitonic_sort(n: int):
    """Sorts A in place in shared memory; n threads, n a power of two."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32)):
        with T.Kernel(1, threads=n):
            tid = T.get_thread_binding()
            s = T.alloc_shared((n,), T.int32)
            s[tid] = A[tid]
            T.sync_threads()
            size = T.alloc_var(T.int32, 2)
            while size <= n:
                stride = T.alloc_var(T.int32, size // 2)
                while stride > 0:
                    other = tid ^ stride
                    if other > tid:
                        a = s[tid]
                        b = s[other]
                        if (a > b) == ((tid & size) == 0):
                            s[tid] = b
                            s[other] = a
                    T.sync_threads()
                    stride = stride // 2
                size = size * 2
            A[tid] = s[tid]

    return main


def block_scan(m: int, threads: int):
    """Inclusive sums of rows: shfl_up in warps, then the warps' totals."""
    warps = threads // 32

    @T.prim_func
    def main(A: T.Tensor((m, threads), T.int32), B: T.Tensor((m, threads), T.int32)):
        with T.Kernel(m, threads=threads) as bx:
            tid = T.get_thread_binding()
            lane = T.get_lane_idx()
            warp = T.get_warp_idx()
            totals = T.alloc_shared((warps,), T.int32)
            v = T.alloc_var(T.int32, A[bx, tid])
            for step in [1, 2, 4, 8, 16]:
                below = T.shfl_up(v, step)
                if lane >= step:
                    v += below
            if lane == 31:
                totals[warp] = v
            T.sync_threads()
            for w in range(warps):
                if w < warp:
                    v += totals[w]
            B[bx, tid] = v

    return main


def compact(n: int):
    """B = the positive elements of A in order, N[0] how many; one block of 64 threads."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), B: T.Tensor((n,), T.int32), N: T.Tensor((1,), T.int32)):
        with T.Kernel(1, threads=64):
            tid = T.get_thread_binding()
            lane = T.get_lane_idx()
            counts = T.alloc_shared((2,), T.int32)
            base = T.alloc_var(T.int32, 0)
            for i in range(T.ceildiv(n, 64)):
                x = A[i * 64 + tid]
                keep = x > 0
                votes = T.ballot(keep)
                below = T.alloc_var(T.int32, 0)
                total = T.alloc_var(T.int32, 0)
                for b in range(32):
                    bit = T.cast((votes >> T.cast(b, "uint32")) & 1, "int32")
                    total += bit
                    if b < lane:
                        below += bit
                if lane == 0:
                    counts[T.get_warp_idx()] = total
                T.sync_threads()
                if keep:
                    B[base + T.get_warp_idx() * counts[0] + below] = x
                base += counts[0] + counts[1]
                T.sync_threads()
            if tid == 0:
                N[0] = base

    return main


def bucket_owner(n: int):
    """B[i] = how many lanes of the warp before i hold the same value."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), B: T.Tensor((n,), T.int32)):
        with T.Kernel(1, threads=n):
            tid = T.get_thread_binding()
            same = T.match_any_sync(A[tid])
            before = T.alloc_var(T.int32, 0)
            for b in T.serial(T.get_lane_idx()):
                before += T.cast((same >> T.cast(b, "uint32")) & 1, "int32")
            B[tid] = before

    return main


def collatz(n: int):
    """B[i] = steps from A[i] to 1: every thread loops as often as it must."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), B: T.Tensor((n,), T.int32)):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
            i = bx * 32 + T.get_thread_binding()
            if i < n:
                v = T.alloc_var(T.int32, A[i])
                steps = T.alloc_var(T.int32, 0)
                while v != 1:
                    if v % 2 == 0:
                        v = v // 2
                    else:
                        v = 3 * v + 1
                    steps += 1
                B[i] = steps

    return main


def ragged_rows(m: int, n: int):
    """B[i] = sum of the even elements of A[i, :L[i]] up to the first -9."""

    @T.prim_func
    def main(A: T.Tensor((m, n), T.int32), L: T.Tensor((m,), T.int32), B: T.Tensor((m,), T.int32)):
        with T.Kernel(1, threads=m):
            i = T.get_thread_binding()
            total = T.alloc_var(T.int32, 0)
            for j in T.serial(L[i]):
                x = A[i, j]
                if x == -9:
                    break
                if x % 2 != 0:
                    continue
                total += x
            B[i] = total

    return main


def returning(n: int):
    """Threads beyond n and those of multiples of 3 return; the rest goes on, past a barrier."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), B: T.Tensor((64,), T.int32), N: T.Tensor((1,), T.int32)):
        with T.Kernel(1, threads=64):
            tid = T.get_thread_binding()
            if tid >= n:
                T.thread_return()
            for k in T.serial(4):
                if k == 2 and A[tid] % 3 == 0:
                    T.thread_return()
            T.sync_threads()
            B[tid] = A[tid] * 2
            left = T.syncthreads_count(True)
            if tid == 1:
                N[0] = left

    return main


def votes(threads: int):
    """Rows of B: what votes, matches and reductions give."""

    @T.prim_func
    def main(A: T.Tensor((threads,), T.int32), B: T.Tensor((9, threads), T.int32)):
        with T.Kernel(1, threads=threads):
            t = T.get_thread_binding()
            x = A[t]
            B[0, t] = T.any_sync(x == 3)
            B[1, t] = T.all_sync(x < 3)
            B[2, t] = T.cast(T.ballot_sync(x == 1), "int32")
            B[3, t] = T.cast(T.match_any_sync(x), "int32")
            B[4, t] = T.warp_reduce_max(x)
            B[5, t] = T.warp_reduce_bitxor(x)
            if t % 2 == 1:
                B[6, t] = T.cast(T.activemask(), "int32")
            B[7, t] = T.syncthreads_count(x == 2)
            some = T.syncthreads_or(x == 3)
            B[8, t] = some + 2 * T.syncthreads_and(x < 4)

    return main


def shuffles():
    """Rows of B: shuffles of every kind, in segments and whole warps, in both orders of arguments."""

    @T.prim_func
    def main(A: T.Tensor((64,), T.int32), B: T.Tensor((8, 64), T.int32)):
        with T.Kernel(1, threads=64):
            t = T.get_thread_binding()
            x = A[t]
            B[0, t] = T.shfl_sync(x, 5)
            B[1, t] = T.shfl_sync(x, 11, 8)
            B[2, t] = T.shfl_up(x, 3, width=8)
            B[3, t] = T.shfl_down(x, 3, 8)
            B[4, t] = T.shfl_xor(x, 4, width=8)
            B[5, t] = T.shfl_xor(x, 9, width=8)
            B[6, t] = T.shfl_xor(x, 16)
            B[7, t] = T.shfl_sync(0xFFFFFFFF, x, 7)

    return main


def mixed_scale(dtype: str):
    """B = A times each row's largest absolute value: a tile, then two threads per row, then a tile again."""

    @T.prim_func
    def main(A: T.Tensor((64, 32), dtype), B: T.Tensor((64, 32), dtype), M: T.Tensor((64,), T.float32)):
        with T.Kernel(1, threads=128):
            tid = T.get_thread_binding()
            s = T.alloc_shared((64, 32), dtype)
            peaks = T.alloc_shared((64,), T.float32)
            T.copy(A, s)
            row = tid // 2
            part = T.alloc_local((16,), T.float32)
            T.copy(s[row, (tid % 2) * 16], part)
            top = T.alloc_var(T.float32, 0.0)
            for j in T.serial(16):
                top = T.max(top, T.abs(part[j]))
            peak = T.max(top, T.shfl_xor(top, 1))
            if tid % 2 == 0:
                peaks[row] = peak
            f = T.alloc_fragment((64, 32), T.float32)
            T.sync_threads()
            for i, j in T.Parallel(64, 32):
                f[i, j] = s[i, j] * peaks[i]
            T.copy(f, B)
            T.copy(peaks, M)

    return main


def parallel_rounds(n: int):
    """B[i] = the thread of iteration i; C[t] = what thread t summed over its iterations."""

    @T.prim_func
    def main(A: T.Tensor((n,), T.int32), B: T.Tensor((n,), T.int32), C: T.Tensor((32,), T.int32)):
        with T.Kernel(1, threads=32):
            tid = T.get_thread_binding()
            own = T.alloc_local((1,), T.int32)
            own[0] = 0
            for i in T.Parallel(n):
                B[i] = tid
                own[0] += A[i]
            C[tid] = own[0]

    return main


def private_tiles():
    """Tile operations on each thread's own storage: copies, fills, reductions."""

    @T.prim_func
    def main(
        A: T.Tensor((16, 40), T.float32), B: T.Tensor((16, 40), T.float16), M: T.Tensor((16,), T.float32),
        S: T.Tensor((16,), T.float32), F: T.Tensor((16,), T.float32),
    ):  # fmt: skip
        with T.Kernel(1, threads=16):
            t = T.get_thread_binding()
            x = T.alloc_local((40,), T.float32)
            h = T.alloc_local((40,), T.float16)
            top = T.alloc_local((1,), T.float32)
            total = T.alloc_local((1,), T.float32)
            filled = T.alloc_local((3,), T.float32)
            T.copy(A[t, 0:40], x)
            T.copy(x, h)
            T.copy(h, B[t, 0:40])
            T.reduce_max(x, top)
            T.reduce_sum(x, total)
            T.fill(filled, T.cast(t * 0 + 7, "float32"))
            M[t] = top[0]
            S[t] = total[0]
            F[t] = filled[2]

    return main
