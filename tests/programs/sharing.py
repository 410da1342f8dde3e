"""Blocks that share memory: histograms, tickets, ordered accumulation, workspaces, reducers, selection, convolution."""

import numpy as np
from programs.registry import F32, normal, program, wide

import tiledsl
import tiledsl.language as T


@program(0)
def histogram_shared_then_global(rng):
    """Each block counts in shared memory and adds its counts to the result at the end."""
    n = T.dynamic("n")

    @T.prim_func
    def histogram(X: T.Tensor((n,), "uint8"), H: T.Tensor((256,), "int32")):
        with T.Kernel(T.ceildiv(n, 512), threads=256) as b:
            counts = T.alloc_shared((256,), "int32")
            T.clear(counts)
            for i in T.Parallel(512):
                if b * 512 + i < n:
                    T.atomic_add(counts[X[b * 512 + i]], 1)
            T.atomic_add(H, counts)

    pairs = []
    for size in (1, 777, 4096):
        x, h = rng.integers(0, 256, size).astype(np.uint8), np.zeros(256, np.int32)
        tiledsl.compile(histogram)(x, h)
        pairs.append((h, np.bincount(x, minlength=256).astype(np.int32)))
    return pairs


@tiledsl.jit
def _stream_k(M, N, K, workers, BM=16, BN=16, BK=16):
    steps = -(-K // BK)
    across = -(-N // BN)
    total = -(-M // BM) * across * steps

    @T.prim_func
    def main(A: T.Tensor((M, K), "float32"), B: T.Tensor((K, N), "float32"), C: T.Tensor((M, N), "float32")):
        done = T.alloc_global((total // steps,), "int32")
        with T.Kernel(total // steps) as tile:
            for _ in T.Parallel(1):
                done[tile] = 0
        with T.Kernel(workers, threads=128) as w:
            A_s = T.alloc_shared((BM, BK), "float32")
            B_s = T.alloc_shared((BK, BN), "float32")
            old = T.alloc_fragment((BM, BN), "float32")
            acc = T.alloc_fragment((BM, BN), "float32")
            at = T.alloc_var("int32", w * total // workers)
            end = (w + 1) * total // workers
            while at < end:
                tile = at // steps
                first = at % steps
                last = T.min(steps, first + end - at)
                row, column = tile // across * BM, tile % across * BN
                T.clear(acc)
                for k in T.Pipelined(first, last, num_stages=2):
                    T.copy(A[row, k * BK], A_s)
                    T.copy(B[k * BK, column], B_s)
                    T.gemm(A_s, B_s, acc)
                while T.atomic_load(done[tile], memory_order="acquire") != first:
                    pass
                if first > 0:
                    T.copy(C[row, column], old)
                    for i, j in T.Parallel(BM, BN):
                        acc[i, j] += old[i, j]
                T.copy(acc, C[row, column])
                T.atomic_store(done[tile], last, memory_order="release")
                at += last - first

    return main


@program(F32)
def stream_k_in_order(rng):
    """Workers take equal runs of K steps across tiles; the parts of a tile are added in the order of their steps."""
    pairs = []
    for m, n, k, workers in ((1, 1, 1, 1), (33, 40, 129, 5), (48, 16, 200, 7)):
        a, b, c = normal(rng, m, k), normal(rng, k, n), np.zeros((m, n), np.float32)
        _stream_k(m, n, k, workers)(a, b, c)
        pairs.append((c, wide(a) @ wide(b)))
    return pairs


@program(0, ordered=False)
def slots_by_ticket(rng):
    """Tokens go to their expert's list; who comes first is free, so the lists are compared as sets."""
    n, experts, room = 211, 7, 64

    @T.prim_func
    def route(E: T.Tensor((n,), "int32"), L: T.Tensor((experts, room), "int32"), count: T.Tensor((experts,), "int32")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
            for i in T.Parallel(32):
                token = b * 32 + i
                if token < n:
                    slot = T.atomic_add(count[E[token]], 1, return_prev=True)
                    if slot < room:
                        L[E[token], slot] = token

    e = rng.integers(0, experts, n).astype(np.int32)
    lists, count = np.full((experts, room), -1, np.int32), np.zeros(experts, np.int32)
    tiledsl.compile(route)(e, lists, count)
    want = np.full((experts, room), -1, np.int32)
    for x in range(experts):
        mine = np.flatnonzero(e == x)
        want[x, room - len(mine) :] = mine
    return [(count, np.bincount(e, minlength=experts).astype(np.int32)), (np.sort(lists, 1), want)]


@program(F32)
def prefix_sum_of_a_long_vector(rng):
    """Three launches of one function: sums within blocks, a scan of the block totals, and their addition."""
    n = T.dynamic("n")
    block = 128

    @T.prim_func
    def scan(X: T.Tensor((n,), "float32"), O: T.Tensor((n,), "float32")):
        totals = T.alloc_global((T.ceildiv(n, block) + 1,), "float32")
        with T.Kernel(T.ceildiv(n, block)) as b:
            x = T.alloc_shared((block,), "float32")
            T.copy(X[b * block], x)
            T.cumsum(x)
            T.copy(x, O[b * block])
            T.copy(x[block - 1 : block], totals[b + 1 : b + 2])
        with T.Kernel(1, threads=1):
            totals[0] = 0
            for b in T.serial(T.ceildiv(n, block)):
                totals[b + 1] += totals[b]
        with T.Kernel(T.ceildiv(n, block)) as b:
            for i in T.Parallel(block):
                O[b * block + i] += totals[b]

    pairs = []
    for size in (1, 128, 1000):
        x, out = normal(rng, size), np.zeros(size, np.float32)
        tiledsl.compile(scan)(x, out)
        pairs.append((out, np.cumsum(wide(x))))
    return pairs


@program(0, ordered=False)
def top_k_by_radix_select(rng):
    """Four rounds of a shared histogram over eight bits find the k-th largest key; then everyone above it takes a
    slot. The order of slots is free."""

    @tiledsl.jit
    def select(n, k):
        @T.macro
        def key_of(x):
            bits = T.reinterpret(x, T.uint32)
            return bits ^ T.if_then_else(bits >= T.uint32(1 << 31), T.uint32(0xFFFFFFFF), T.uint32(1 << 31))

        @T.prim_func
        def main(X: T.Tensor((3, n), "float32"), I: T.Tensor((3, k), "int32")):
            with T.Kernel(3, threads=128) as row:
                counts = T.alloc_shared((256,), "int32")
                taken = T.alloc_shared((2,), "int32")
                found = T.alloc_var("uint32", 0)
                known = T.alloc_var("uint32", 0)
                need = T.alloc_var("int32", k)
                digit = T.alloc_var("int32")
                for r in T.unroll(4):
                    shift = T.uint32(24 - 8 * r)
                    T.clear(counts)
                    for j in T.Parallel(n):
                        key = key_of(X[row, j])
                        if (key & known) == found:
                            T.atomic_add(counts[T.int32((key >> shift) & T.uint32(255))], 1)
                    digit = 255
                    while counts[digit] < need:
                        need -= counts[digit]
                        digit -= 1
                    found |= T.uint32(digit) << shift
                    known |= T.uint32(255) << shift
                T.clear(taken)
                for j in T.Parallel(n):
                    key = key_of(X[row, j])
                    if key > found:
                        slot = T.atomic_add(taken[0], 1, return_prev=True)
                        I[row, slot] = j
                    if key == found:
                        tie = T.atomic_add(taken[1], 1, return_prev=True)
                        if tie < need:
                            I[row, k - 1 - tie] = j

        return main

    pairs = []
    for n, k in ((1, 1), (17, 5), (1000, 64)):
        x = normal(rng, 3, n)
        at = np.full((3, k), -1, np.int32)
        select(n, k)(x, at)
        got = np.take_along_axis(x, at.astype(np.int64), 1)
        pairs.append((np.sort(got, 1), np.sort(x, 1)[:, n - k :]))
        assert all(len(set(row)) == k for row in at.tolist())
    return pairs


@program(0)
def arg_max_by_packed_keys(rng):
    """Value and index in one 64-bit key: blocks meet in one atomic maximum; of equals the first index wins."""
    m, n = T.dynamic("m, n")

    @T.prim_func
    def arg_max(X: T.Tensor((m, n), "int32"), best: T.Tensor((m,), "int64"), at: T.Tensor((m,), "int32")):
        with T.Kernel(T.ceildiv(n, 64), m) as (b, row):
            for i in T.Parallel(64):
                j = b * 64 + i
                if j < n:
                    T.atomic_max(best[row], (T.int64(X[row, j]) << 32) | T.int64(n - 1 - j))
        with T.Kernel(T.ceildiv(m, 32)) as b:
            for i in T.Parallel(32):
                if b * 32 + i < m:
                    at[b * 32 + i] = n - 1 - T.int32(best[b * 32 + i] & T.int64(0xFFFFFFFF))

    pairs = []
    for rows, columns in ((1, 1), (5, 200)):
        x = rng.integers(-9, 9, (rows, columns)).astype(np.int32)
        best, at = np.full(rows, np.iinfo(np.int64).min), np.zeros(rows, np.int32)
        tiledsl.compile(arg_max)(x, best, at)
        pairs += [(at, x.argmax(1).astype(np.int32)), ((best >> 32).astype(np.int32), x.max(1))]
    return pairs


@program(0, ordered=False)
def embedding_gradient(rng):
    """Rows of a gradient added to the rows that were looked up; small integers, so every order gives the same sums."""
    rows, width, tokens = 11, 40, 65

    @T.prim_func
    def gradient(G: T.Tensor((tokens, width), "float16"), I: T.Tensor((tokens,), "int32"),
                 W: T.Tensor((rows, width), "float16")):  # fmt: skip
        with T.Kernel(tokens) as t:
            g = T.alloc_shared((1, width), "float16")
            T.copy(G[t, 0], g)
            T.atomic_add(W[I[t], 0], g)

    g = rng.integers(-8, 8, (tokens, width)).astype(np.float16)
    at = rng.integers(-1, rows, tokens).astype(np.int32)  # -1 is padding: out of range, skipped
    w = np.zeros((rows, width), np.float16)
    tiledsl.compile(gradient)(g, at, w)
    want = np.zeros((rows, width), np.float16)
    np.add.at(want, at[at >= 0], g[at >= 0])
    return [(w, want)]


@program(F32)
def softmax_with_reducers(rng):
    """Rows in chunks, with the maximum and the sum of a row held in reducers."""
    m, n = T.dynamic("m, n")
    rows, chunk = 8, 48

    @T.prim_func
    def softmax(X: T.Tensor((m, n), "float32"), O: T.Tensor((m, n), "float32")):
        with T.Kernel(T.ceildiv(m, rows)) as b:
            top = T.alloc_reducer((rows,), "float32", op="max", replication="all")
            total = T.alloc_reducer((rows,), "float32", op="sum")
            T.fill(top, -T.infinity("float32"))
            for c in T.serial(T.ceildiv(n, chunk)):
                for i, j in T.Parallel(rows, chunk):
                    if c * chunk + j < n:
                        top[i] = T.max(top[i], X[b * rows + i, c * chunk + j])
            T.finalize_reducer(top)
            T.clear(total)
            for c in T.serial(T.ceildiv(n, chunk)):
                for i, j in T.Parallel(rows, chunk):
                    if c * chunk + j < n:
                        total[i] += T.exp(X[b * rows + i, c * chunk + j] - top[i])
            T.finalize_reducer(total)
            for c in T.serial(T.ceildiv(n, chunk)):
                for i, j in T.Parallel(rows, chunk):
                    O[b * rows + i, c * chunk + j] = T.exp(X[b * rows + i, c * chunk + j] - top[i]) / total[i]

    pairs = []
    for shape in ((1, 1), (7, 17), (20, 130)):
        x, out = normal(rng, *shape), np.zeros(shape, np.float32)
        tiledsl.compile(softmax)(x, out)
        e = np.exp(wide(x) - wide(x).max(1, keepdims=True))
        pairs.append((out, e / e.sum(1, keepdims=True)))
    return pairs


@program(F32)
def convolution_by_im2col(rng):
    """NHWC convolution as a product of windows and filters, with stride, dilation and padding."""

    @tiledsl.jit(out_idx=[-1])
    def convolution(N, H, W, C, F, KH, S, D, P, BM=32, BN=16, BK=24):
        OH, OW = ((size + 2 * P - D * (KH - 1) - 1) // S + 1 for size in (H, W))

        @T.prim_func
        def main(X: T.Tensor((N, H, W, C), "float32"), G: T.Tensor((KH, KH, C, F), "float32"),
                 O: T.Tensor((N, OH, OW, F), "float32")):  # fmt: skip
            with T.Kernel(T.ceildiv(F, BN), T.ceildiv(N * OH * OW, BM), threads=128) as (bx, by):
                windows = T.alloc_shared((BM, BK), "float32")
                filters = T.alloc_shared((BK, BN), "float32")
                acc = T.alloc_fragment((BM, BN), "float32")
                flat_g = T.reshape(G, (KH * KH * C, F))
                flat_o = T.reshape(O, (N * OH * OW, F))
                T.clear(acc)
                for k in T.Pipelined(T.ceildiv(KH * KH * C, BK), num_stages=2):
                    T.c2d_im2col(X, windows, by, k, KH, S, D, P)
                    T.copy(flat_g[k * BK, bx * BN], filters)
                    T.gemm(windows, filters, acc)
                T.copy(acc, flat_o[by * BM, bx * BN])

        return main

    pairs = []
    for n, h, w, c, f, kernel, s, d, p in ((1, 5, 5, 3, 4, 3, 1, 1, 1), (2, 9, 7, 5, 17, 3, 2, 2, 2)):
        x, g = normal(rng, n, h, w, c), normal(rng, kernel, kernel, c, f)
        padded = np.pad(wide(x), ((0, 0), (p, p), (p, p), (0, 0)))
        oh, ow = ((size + 2 * p - d * (kernel - 1) - 1) // s + 1 for size in (h, w))
        want = np.zeros((n, oh, ow, f))
        for a in range(kernel):
            for b in range(kernel):
                part = padded[:, a * d : a * d + s * (oh - 1) + 1 : s, b * d : b * d + s * (ow - 1) + 1 : s]
                want += part @ wide(g)[a, b]
        pairs.append((convolution(n, h, w, c, f, kernel, s, d, p)(x, g), want))
    return pairs
