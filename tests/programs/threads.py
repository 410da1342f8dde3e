"""Programs at the level of threads: lanes, warps, barriers, private arrays, beside tile operations."""

import numpy as np
from programs.registry import F16, F32, normal, program, wide

import tiledsl
import tiledsl.language as T


@program(F16)
def gemv_by_warp_reductions(rng):
    """Each warp takes one row: lanes walk over K with vector loads and add up by shuffles."""
    N, K, warps = 37, 256, 4

    @tiledsl.jit(out_idx=[-1])
    def kernel():
        @T.prim_func
        def main(A: T.Tensor((K,), "float16"), B: T.Tensor((N, K), "float16"), C: T.Tensor((N,), "float16")):
            with T.Kernel(T.ceildiv(N, warps), threads=(32, warps)) as bx:
                lane = T.get_thread_binding(0)
                warp = T.get_thread_binding(1)
                a = T.alloc_local((8,), "float16")
                b = T.alloc_local((8,), "float16")
                total = T.alloc_local((1,), "float32")
                row = bx * warps + warp
                T.clear(total)
                for k in T.serial(T.ceildiv(K, 32 * 8)):
                    for v in T.vectorized(8):
                        a[v] = A[k * 256 + lane * 8 + v]
                        b[v] = B[row, k * 256 + lane * 8 + v]
                    for v in T.serial(8):
                        total[0] += a[v].astype("float32") * b[v].astype("float32")
                value = T.warp_reduce_sum(total[0])
                if lane == 0:
                    C[row] = value

        return main

    a, b = normal(rng, K, dtype=np.float16), normal(rng, N, K, dtype=np.float16)
    return [(kernel()(a, b), wide(b) @ wide(a))]


@program(F32)
def gemv_by_allreduce(rng):
    N, K, threads = 20, 200, 32

    @tiledsl.jit(out_idx=[-1])
    def kernel():
        @T.prim_func
        def main(A: T.Tensor((K,), "float32"), B: T.Tensor((N, K), "float32"), C: T.Tensor((N,), "float32")):
            with T.Kernel(N, threads=threads) as bn:
                tk = T.get_thread_binding(0)
                acc = T.alloc_local((1,), "float32")
                reduced = T.alloc_local((1,), "float32")
                T.clear(acc)
                for k in T.serial(T.ceildiv(K, threads)):
                    if k * threads + tk < K:
                        acc[0] += A[k * threads + tk] * B[bn, k * threads + tk]
                with T.attr(
                    T.comm_reducer(lambda x, y: x + y, [T.Cast("float32", 0)]),
                    "reduce_scope",
                    T.reinterpret(T.uint64(0), dtype="handle"),
                ):
                    T.evaluate(T.tvm_thread_allreduce(T.uint32(1), acc[0], True, reduced[0], tk, dtype="handle"))
                C[bn] = reduced[0]

        return main

    a, b = normal(rng, K), normal(rng, N, K)
    return [(kernel()(a, b), wide(b) @ wide(a))]


@program(F32)
def block_sum_by_shuffles(rng):
    """Butterflies within warps, one value per warp through shared memory, the first warp adds those up."""
    n, threads = 1000, 256

    @tiledsl.jit(out_idx=[-1])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((n,), "float32"), Y: T.Tensor((T.ceildiv(n, threads),), "float32")):
            with T.Kernel(T.ceildiv(n, threads), threads=threads) as bx:
                tid = T.get_thread_binding()
                parts = T.alloc_shared((threads // 32,), "float32")
                v = T.alloc_var("float32")
                v = 0.0
                if bx * threads + tid < n:
                    v = X[bx * threads + tid]
                for step in T.unroll(5):
                    v += T.shfl_xor(v, 16 >> step)
                if tid % 32 == 0:
                    parts[tid // 32] = v
                T.sync_threads()
                if tid < 32:
                    v = T.if_then_else(tid < threads // 32, parts[tid % (threads // 32)], 0.0)
                    for step in T.unroll(3):
                        v += T.shfl_down(v, 4 >> step)
                    if tid == 0:
                        Y[bx] = v

        return main

    x = normal(rng, n)
    want = np.pad(wide(x), (0, -n % threads)).reshape(-1, threads).sum(1)
    return [(kernel()(x), want)]


@program(0)
def transpose_through_shared_memory(rng):
    M, N, B = 50, 37, 16

    @tiledsl.jit(out_idx=[-1])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((M, N), "float32"), Y: T.Tensor((N, M), "float32")):
            with T.Kernel(T.ceildiv(N, B), T.ceildiv(M, B), threads=(B, B)) as (bx, by):
                tile = T.alloc_shared((B, B + 1), "float32")
                tx, ty = T.get_thread_binding(0), T.get_thread_binding(1)
                if by * B + ty < M and bx * B + tx < N:
                    tile[ty, tx] = X[by * B + ty, bx * B + tx]
                T.sync_threads()
                if bx * B + ty < N and by * B + tx < M:
                    Y[bx * B + ty, by * B + tx] = tile[tx, ty]

        return main

    x = normal(rng, M, N)
    return [(kernel()(x), x.T)]


@program(0)
def histogram_with_shared_atomics(rng):
    n, bins, threads = 5000, 64, 128

    @tiledsl.jit
    def kernel(X, H):
        n, bins = T.const("n, bins")
        X: T.Tensor[(n,), T.int32]
        H: T.Tensor[(bins,), T.int32]
        with T.Kernel(4, threads=threads) as bx:
            tid = T.get_thread_binding()
            local = T.alloc_shared((bins,), T.int32)
            for i in T.serial(T.ceildiv(bins, threads)):
                if i * threads + tid < bins:
                    local[i * threads + tid] = 0
            T.sync_threads()
            for i in T.serial(T.ceildiv(n, 4 * threads)):
                p = (bx * T.ceildiv(n, 4 * threads) + i) * threads + tid
                if p < n:
                    T.atomic_add(local[X[p]], 1)
            T.sync_threads()
            for i in T.serial(T.ceildiv(bins, threads)):
                if i * threads + tid < bins:
                    T.atomic_add(H[i * threads + tid], local[i * threads + tid])

    x = rng.integers(0, bins, n).astype(np.int32)
    h = np.zeros(bins, np.int32)
    kernel(x, h)
    return [(h, np.bincount(x, minlength=bins).astype(np.int32))]


@program(0)
def bitonic_sort(rng):
    n = 256

    @tiledsl.jit
    def sort(X):
        n = T.const("n")
        X: T.Tensor[(n,), T.int32]
        Y = T.empty((n,), T.int32)
        with T.Kernel(1, threads=n):
            tid = T.get_thread_binding()
            s = T.alloc_shared((n,), T.int32)
            s[tid] = X[tid]
            T.sync_threads()
            for logk in T.serial(1, 9):
                for j in T.serial(logk):
                    distance = 1 << (logk - 1 - j)
                    other = tid ^ distance
                    if other > tid:
                        up = (tid & (1 << logk)) == 0
                        a, b = s[tid], s[other]
                        if (a > b) == up:
                            s[tid] = b
                            s[other] = a
                    T.sync_threads()
            Y[tid] = s[tid]
        return Y

    x = rng.integers(-1000, 1000, n).astype(np.int32)
    return [(sort(x), np.sort(x))]


@program(0)
def compaction_by_ballots(rng):
    """Positive elements in order: ranks within a warp from ballots, between warps from a scan in shared memory."""
    n = 128

    @tiledsl.jit(out_idx=[1, 2])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "int32"), Count: T.Tensor((1,), "int32")):
            with T.Kernel(1, threads=n):
                tid = T.get_thread_binding()
                lane = T.get_lane_idx()
                warp = T.get_warp_idx()
                counts = T.alloc_shared((n // 32,), "int32")
                keep = X[tid] > 0
                votes = T.ballot_sync(T.uint32(0xFFFFFFFF), keep)
                below = T.popcount(votes & ((T.uint32(1) << T.cast(lane, "uint32")) - T.uint32(1)))
                Y[tid] = 0
                if lane == 0:
                    counts[warp] = T.cast(T.popcount(votes), "int32")
                T.sync_threads()
                first = T.alloc_var("int32", 0)
                for w in T.serial(n // 32):
                    if w < warp:
                        first += counts[w]
                if keep:
                    Y[first + T.cast(below, "int32")] = X[tid]
                total = T.syncthreads_count(keep)
                if tid == 0:
                    Count[0] = total

        return main

    x = rng.integers(-50, 50, n).astype(np.int32)
    kept = x[x > 0]
    y, count = kernel()(x)
    return [(y, np.pad(kept, (0, n - len(kept)))), (count, np.array([len(kept)], np.int32))]


@program(0)
def expert_mapping_with_match(rng):
    """Slots of tokens at experts: lanes with the same expert find each other, the first one takes slots for all."""
    tokens, experts, warp = 96, 8, 32

    @tiledsl.jit(out_idx=[1, 2])
    def kernel():
        @T.prim_func
        def main(
            E: T.Tensor((tokens,), "int32"), Slot: T.Tensor((tokens,), "int32"), Count: T.Tensor((experts,), "int32")
        ):
            with T.Kernel(1, threads=warp):
                lane = T.get_lane_idx()
                counts = T.alloc_shared((experts,), "int32")
                if lane < experts:
                    counts[lane] = 0
                T.sync_warp()
                for t in T.serial(tokens // warp):
                    e = E[t * warp + lane]
                    peers = T.call_extern("uint32", "__match_any_sync", T.uint32(0xFFFFFFFF), e)
                    before = T.call_extern(
                        "int32", "__popc", peers & ((T.uint32(1) << T.cast(lane, "uint32")) - T.uint32(1))
                    )
                    base = counts[e]
                    Slot[t * warp + lane] = base + before
                    T.sync_warp()
                    if before == 0:
                        counts[e] = base + T.call_extern("int32", "__popc", peers)
                    T.sync_warp()
                if lane < experts:
                    Count[lane] = counts[lane]

        return main

    e = rng.integers(0, experts, tokens).astype(np.int32)
    slot = np.array([np.sum(e[:i] == e[i]) for i in range(tokens)], np.int32)
    got, count = kernel()(e)
    return [(got, slot), (count, np.bincount(e, minlength=experts).astype(np.int32))]


@program(F32)
def scan_by_shuffles(rng):
    """Inclusive sums of rows of 32 by shfl_up, whole rows by one warp each; integers exactly, floats nearly."""
    rows = 9

    @tiledsl.jit(out_idx=[1])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((rows, 32), "float32"), Y: T.Tensor((rows, 32), "float32")):
            with T.Kernel(T.ceildiv(rows, 4), threads=128) as bx:
                tid = T.get_thread_binding()
                lane, warp = tid % 32, tid // 32
                row = bx * 4 + warp
                if row >= rows:
                    T.thread_return()
                v = T.alloc_var("float32")
                v = X[row, lane]
                for step in T.serial(5):
                    below = T.shfl_up(v, 1 << step)
                    if lane >= (1 << step):
                        v = v + below
                Y[row, lane] = v

        return main

    x = normal(rng, rows, 32)
    return [(kernel()(x), np.cumsum(wide(x), axis=1))]


@program(F32)
def softmax_top_k_gate(rng):
    """Scores of 64 experts per token, the 6 largest by rounds of warp maxima; weights normalised."""
    tokens, experts, k = 11, 64, 6

    @tiledsl.jit(out_idx=[1, 2])
    def gate():
        @T.prim_func
        def main(
            Logits: T.Tensor((tokens, experts), "float32"),
            W: T.Tensor((tokens, k), "float32"),
            I: T.Tensor((tokens, k), "int32"),
        ):
            with T.Kernel(tokens, threads=32) as bx:
                lane = T.get_thread_binding()
                mine = T.alloc_local((2,), "float32")
                best = T.alloc_var("float32")
                which = T.alloc_var("int32")
                total = T.alloc_var("float32", 0.0)
                for r in T.unroll(2):
                    mine[r] = 1.0 / (1.0 + T.exp(-Logits[bx, r * 32 + lane]))
                for i in T.serial(k):
                    best = -T.infinity("float32")
                    which = experts
                    for r in T.unroll(2):
                        if mine[r] > best:
                            best = mine[r]
                            which = r * 32 + lane
                    for step in T.unroll(5):
                        other = T.shfl_xor(best, 16 >> step)
                        index = T.shfl_xor(which, 16 >> step)
                        if other > best or (other == best and index < which):
                            best = other
                            which = index
                    total += best
                    if lane == 0:
                        W[bx, i] = best
                        I[bx, i] = which
                    for r in T.unroll(2):
                        if which == r * 32 + lane:
                            mine[r] = -T.infinity("float32")
                T.sync_warp()
                if lane < k:
                    W[bx, lane] = W[bx, lane] / total

        return main

    logits = normal(rng, tokens, experts)
    w, i = gate()(logits)
    score = 1 / (1 + np.exp(-wide(logits)))
    order = np.argsort(-score, axis=1, kind="stable")[:, :k]
    top = np.take_along_axis(score, order, 1)
    return [(w, top / top.sum(1, keepdims=True)), (i, order.astype(np.int32))]


@program(F32)
def tiles_and_threads_mixed(rng):
    """A tile product whose epilogue is written per thread, through shared memory."""
    M, N, K, threads = 32, 32, 48, 64

    @tiledsl.jit(out_idx=[2])
    def kernel():
        @T.prim_func
        def main(A: T.Tensor((M, K), "float32"), B: T.Tensor((K, N), "float32"), C: T.Tensor((M,), "float32")):
            with T.Kernel(1, threads=threads):
                tid = T.get_thread_binding()
                A_s = T.alloc_shared((M, K), "float32")
                B_s = T.alloc_shared((K, N), "float32")
                acc = T.alloc_fragment((M, N), "float32")
                out = T.alloc_shared((M, N), "float32")
                T.copy(A, A_s)
                T.copy(B, B_s)
                T.clear(acc)
                T.gemm(A_s, B_s, acc)
                T.copy(acc, out)
                T.sync_threads()
                best = T.alloc_var("float32")
                best = -T.infinity("float32")
                for j in T.serial(N // 2):
                    best = T.max(best, out[tid // 2, (tid % 2) * (N // 2) + j])
                best = T.max(best, T.shfl_xor(best, 1))
                if tid % 2 == 0:
                    C[tid // 2] = best

        return main

    a, b = normal(rng, M, K), normal(rng, K, N)
    return [(kernel()(a, b), (wide(a) @ wide(b)).max(1))]


@program(F32)
def matmul_by_warp_groups(rng):
    """One group of warps loads, the other multiplies: a branch each, one after the other, and a ring of two stages."""
    M, N, K, BM, BN, BK = 48, 40, 80, 32, 32, 16

    @tiledsl.jit(out_idx=[2])
    def kernel():
        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
            with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=256) as (bx, by):
                As = T.alloc_shared((2, BM, BK), "float16")
                Bs = T.alloc_shared((2, BK, BN), "float16")
                acc = T.alloc_fragment((BM, BN), "float32")
                full, empty = T.alloc_barrier([128, 128]), T.alloc_barrier([128, 128])
                with T.ws(1):
                    for k in T.serial(T.ceildiv(K, BK)):
                        T.barrier_wait(empty[k % 2], (k // 2 % 2) ^ 1)
                        T.copy(A[by * BM, k * BK], As[k % 2, :, :])
                        T.copy(B[k * BK, bx * BN], Bs[k % 2, 0:BK, 0:BN])
                        T.barrier_arrive(full[k % 2])
                rounds = T.ceildiv(K, BK)
                with T.ws(0):
                    T.clear(acc)
                    for k in T.serial(rounds):
                        T.barrier_wait(full[k % 2], k // 2 % 2)
                        T.gemm(As[k % 2, :, :], Bs[k % 2, :, :], acc)
                        T.barrier_arrive(empty[k % 2])
                    T.copy(acc, C[by * BM, bx * BN])

        return main

    a, b = normal(rng, M, K, dtype=np.float16), normal(rng, K, N, dtype=np.float16)
    return [(kernel()(a, b), wide(a) @ wide(b))]
