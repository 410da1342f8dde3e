"""Parts of models: experts, indexers, norms, rotary positions, hyper-connections, n-grams, scans, convolution."""

import numpy as np
from programs.registry import BF16, F16, F32, normal, program, wide

import tiledsl
import tiledsl.language as T


@program(F32)
def moe_grouped_by_pointers(rng):
    """Weights of experts as a table of addresses: each group multiplies with the matrix it points to."""
    groups, K, N, BM, BN, BK = 3, 40, 48, 16, 16, 24
    sizes = [20, 0, 13]
    M = sum(sizes)

    @tiledsl.jit
    def kernel():
        @T.prim_func
        def main(
            A: T.Tensor((M, K), "float32"),
            W: T.Tensor((groups,), T.ptr),
            Offsets: T.Tensor((groups + 1,), "int32"),
            C: T.Tensor((M, N), "float32"),
        ):
            with T.Kernel(T.ceildiv(M, BM), T.ceildiv(N, BN), groups, threads=128) as (bx, by, bz):
                w = T.make_tensor(W[bz], (K, N), "float32")
                A_s = T.alloc_shared((BM, BK), "float32")
                W_s = T.alloc_shared((BK, BN), "float32")
                acc = T.alloc_fragment((BM, BN), "float32")
                first = Offsets[bz]
                rows = Offsets[bz + 1] - first
                if bx * BM < rows:
                    T.clear(acc)
                    for k in T.Pipelined(T.ceildiv(K, BK), num_stages=2):
                        T.copy(A[first + bx * BM : first + (bx + 1) * BM, k * BK : (k + 1) * BK], A_s)
                        T.copy(w[k * BK : (k + 1) * BK, by * BN : (by + 1) * BN], W_s)
                        T.gemm(A_s, W_s, acc)
                    for i, j in T.Parallel(BM, BN):
                        if bx * BM + i < rows:
                            C[first + bx * BM + i, by * BN + j] = acc[i, j]

        return main

    a, weights = normal(rng, M, K), [normal(rng, K, N) for _ in range(groups)]
    offsets = np.cumsum([0, *sizes]).astype(np.int32)
    c = np.zeros((M, N), np.float32)
    kernel()(a, np.array([w.ctypes.data for w in weights], np.int64), offsets, c)
    want = np.concatenate([wide(a[o:p]) @ wide(w) for o, p, w in zip(offsets[:-1], offsets[1:], weights, strict=True)])
    return [(c, want)]


@program(F16)
def moe_gather_multiply_scatter(rng):
    """Tokens gathered by index for an expert, silu(x W1) * (x W3), rows written where the sorted order says."""
    tokens, D, F, picked, BM, BN, BK = 30, 32, 48, 21, 8, 16, 16

    @tiledsl.jit(out_idx=[4])
    def kernel():
        @T.prim_func
        def main(
            X: T.Tensor((tokens, D), "float16"),
            W1: T.Tensor((F, D), "float16"),
            W3: T.Tensor((F, D), "float16"),
            Index: T.Tensor((picked,), "int32"),
            Y: T.Tensor((picked, F), "float16"),
        ):
            with T.Kernel(T.ceildiv(F, BN), T.ceildiv(picked, BM), threads=64) as (bx, by):
                X_s = T.alloc_shared((BM, BK), "float16")
                W1_s = T.alloc_shared((BN, BK), "float16")
                W3_s = T.alloc_shared((BN, BK), "float16")
                gate = T.alloc_fragment((BM, BN), "float32")
                up = T.alloc_fragment((BM, BN), "float32")
                T.clear(gate)
                T.clear(up)
                for k in T.Pipelined(T.ceildiv(D, BK), num_stages=2):
                    for i, j in T.Parallel(BM, BK):
                        row = by * BM + i
                        X_s[i, j] = T.if_then_else(row < picked, X[Index[row], k * BK + j], 0)
                    T.copy(W1[bx * BN, k * BK], W1_s)
                    T.copy(W3[bx * BN, k * BK], W3_s)
                    T.gemm(X_s, W1_s, gate, transpose_B=True)
                    T.gemm(X_s, W3_s, up, transpose_B=True)
                for i, j in T.Parallel(BM, BN):
                    gate[i, j] = gate[i, j] * T.sigmoid(gate[i, j]) * up[i, j]
                T.copy(gate, Y[by * BM, bx * BN])

        return main

    x, w1, w3 = (normal(rng, *s, dtype=np.float16) for s in ((tokens, D), (F, D), (F, D)))
    index = rng.integers(0, tokens, picked).astype(np.int32)
    g, u = wide(x)[index] @ wide(w1).T, wide(x)[index] @ wide(w3).T
    return [(kernel()(x, w1, w3, index), g / (1 + np.exp(-g)) * u)]


@program(F32)
def indexer_scores_in_fp8(rng):
    """Scores of a lightning indexer: sum over heads of weight * relu(q . k) * scale of the key."""
    import ml_dtypes

    rows, keys, heads, D, BN = 6, 50, 8, 32, 16

    @tiledsl.jit(out_idx=[4])
    def kernel():
        @T.prim_func
        def main(
            Q: T.Tensor((rows, heads, D), "float8_e4m3fn"),
            K: T.Tensor((keys, D), "float8_e4m3fn"),
            W: T.Tensor((rows, heads), "float32"),
            S: T.Tensor((keys,), "float32"),
            O: T.Tensor((rows, keys), "float32"),
        ):
            with T.Kernel(T.ceildiv(keys, BN), rows, threads=128) as (bx, by):
                Q_s = T.alloc_shared((heads, D), "float8_e4m3fn")
                K_s = T.alloc_shared((BN, D), "float8_e4m3fn")
                logits = T.alloc_fragment((BN, heads), "float32")
                total = T.alloc_fragment((BN,), "float32")
                T.copy(Q[by, 0, 0], Q_s)
                T.copy(K[bx * BN, 0], K_s)
                T.gemm(K_s, Q_s, logits, transpose_B=True, clear_accum=True)
                for i, h in T.Parallel(BN, heads):
                    logits[i, h] = T.max(logits[i, h], 0) * W[by, h]
                T.reduce_sum(logits, total, dim=1)
                for i in T.Parallel(BN):
                    if bx * BN + i < keys:
                        O[by, bx * BN + i] = total[i] * S[bx * BN + i]

        return main

    e4m3 = ml_dtypes.float8_e4m3fn
    q, k = normal(rng, rows, heads, D).astype(e4m3), normal(rng, keys, D).astype(e4m3)
    w, s = normal(rng, rows, heads), rng.random(keys).astype(np.float32)
    dots = np.maximum(np.einsum("rhd,kd->rkh", wide(q), wide(k)), 0)
    return [(kernel()(q, k, w, s), np.einsum("rkh,rh->rk", dots, wide(w)) * wide(s))]


@program(0)
def top_k_set_in_one_block(rng):
    """The k largest of a row as a set: histograms of 8 bits of the key from the top, in shared memory."""
    rows, n, k, threads = 4, 300, 40, 64

    @tiledsl.jit(out_idx=[1])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((rows, n), "float32"), Out: T.Tensor((rows, k), "int32")):
            with T.Kernel(rows, threads=threads) as bx:
                keys = T.alloc_shared((n,), "uint32")
                hist = T.alloc_shared((256,), "int32")
                prefix = T.alloc_shared((1,), "uint32")
                wanted = T.alloc_shared((1,), "int32")
                count = T.alloc_shared((2,), "int32")
                for i in T.Parallel(n):
                    bits = T.reinterpret(X[bx, i], "uint32")
                    keys[i] = T.if_then_else(bits >> 31 == 1, ~bits, bits | T.uint32(0x80000000))
                for _ in T.Parallel(1):
                    prefix[0] = 0
                    wanted[0] = k
                for level in T.serial(4):
                    shift = T.cast(24 - 8 * level, "uint32")
                    T.clear(hist)
                    for i in T.Parallel(n):
                        same = T.if_then_else(level == 0, True, (keys[i] >> (shift + 8)) == (prefix[0] >> (shift + 8)))
                        if same:
                            T.atomic_add(hist[(keys[i] >> shift) & 255], 1)
                    for _ in T.Parallel(1):
                        left = T.alloc_var("int32")
                        found = T.alloc_var("int32")
                        left = wanted[0]
                        found = 0
                        for d in T.serial(256):
                            digit = 255 - d
                            if left > 0:
                                if hist[digit] >= left:
                                    found = digit
                                    wanted[0] = left
                                    left = 0
                                else:
                                    left = left - hist[digit]
                        prefix[0] = prefix[0] | (T.cast(found, "uint32") << shift)
                for _ in T.Parallel(1):
                    count[0] = 0
                    count[1] = 0
                for i in T.Parallel(n):
                    if keys[i] > prefix[0]:
                        slot = T.atomic_add(count[0], 1, return_prev=True)
                        Out[bx, slot] = i
                    elif keys[i] == prefix[0]:
                        tie = T.atomic_add(count[1], 1, return_prev=True)
                        if tie < wanted[0]:
                            Out[bx, k - 1 - tie] = i

        return main

    x = normal(rng, rows, n)
    got = np.sort(kernel()(x), axis=1)
    return [(got, np.sort(np.argsort(-x, axis=1)[:, :k], axis=1).astype(np.int32))]


@program(BF16)
def rms_norm_and_rope(rng):
    """Heads normalised, then rotated in interleaved pairs by the angle of their position."""
    seq, heads, D = 19, 3, 32

    @tiledsl.jit(out_idx=[4])
    def kernel():
        @T.prim_func
        def main(
            X: T.Tensor((seq, heads, D), "bfloat16"),
            W: T.Tensor((D,), "float32"),
            Cos: T.Tensor((seq, D // 2), "float32"),
            Sin: T.Tensor((seq, D // 2), "float32"),
            Y: T.Tensor((seq, heads, D), "bfloat16"),
        ):
            with T.Kernel(seq, threads=64) as b:
                x = T.alloc_fragment((heads, D), "float32")
                sq = T.alloc_fragment((heads, D), "float32")
                norm = T.alloc_fragment((heads,), "float32")
                T.copy(X[b, 0, 0], x)
                for h, d in T.Parallel(heads, D):
                    sq[h, d] = x[h, d] * x[h, d]
                T.reduce_sum(sq, norm, dim=-1)
                for h in T.Parallel(heads):
                    norm[h] = T.rsqrt(norm[h] / D + 1e-6)
                for h, d in T.Parallel(heads, D):
                    x[h, d] = x[h, d] * norm[h] * W[d]
                for h, p in T.Parallel(heads, D // 2):
                    even, odd = x[h, 2 * p], x[h, 2 * p + 1]
                    Y[b, h, 2 * p] = even * Cos[b, p] - odd * Sin[b, p]
                    Y[b, h, 2 * p + 1] = even * Sin[b, p] + odd * Cos[b, p]

        return main

    import ml_dtypes

    x, w = normal(rng, seq, heads, D, dtype=ml_dtypes.bfloat16), normal(rng, D)
    angle = np.arange(seq)[:, None] * 10000.0 ** (-np.arange(D // 2) / (D // 2))
    cos, sin = np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)
    n = wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + 1e-6) * wide(w)
    even, odd = n[..., ::2], n[..., 1::2]
    c, s = wide(cos)[:, None], wide(sin)[:, None]
    want = np.stack([even * c - odd * s, even * s + odd * c], -1).reshape(seq, heads, D)
    return [(kernel()(x, w, cos, sin), want)]


@program(F32)
def sinkhorn_of_hyper_connections(rng):
    """4x4 matrices per token made doubly stochastic by alternating normalisations; then streams are mixed."""
    tokens, n, D, rounds = 10, 4, 24, 8

    @T.macro
    def normalise(m, sums, dim: int):
        T.reduce_sum(m, sums, dim=dim)
        for i, j in T.Parallel(n, n):
            m[i, j] = m[i, j] / (sums[j if dim == 0 else i] + 1e-6)

    @tiledsl.jit(out_idx=[2])
    def kernel():
        @T.prim_func
        def main(
            Logits: T.Tensor((tokens, n, n), "float32"),
            X: T.Tensor((tokens, n, D), "float32"),
            Y: T.Tensor((tokens, n, D), "float32"),
        ):
            with T.Kernel(tokens, threads=96) as t:
                m = T.alloc_fragment((n, n), "float32")
                sums = T.alloc_fragment((n,), "float32")
                top = T.alloc_fragment((n,), "float32")
                x = T.alloc_shared((n, D), "float32")
                y = T.alloc_fragment((n, D), "float32")
                T.copy(Logits[t, 0, 0], m)
                T.reduce_max(m, top, dim=1)
                for i, j in T.Parallel(n, n):
                    m[i, j] = T.exp(m[i, j] - top[i])
                for _ in T.serial(rounds):
                    normalise(m, sums, 1)
                    normalise(m, sums, 0)
                T.copy(X[t, 0, 0], x)
                T.clear(y)
                for i, d in T.Parallel(n, D):
                    for j in T.serial(n):
                        y[i, d] += m[i, j] * x[j, d]
                T.copy(y, Y[t, 0, 0])

        return main

    logits, x = normal(rng, tokens, n, n), normal(rng, tokens, n, D)
    m = np.exp(wide(logits) - wide(logits).max(-1, keepdims=True))
    for _ in range(rounds):
        m = m / (m.sum(2, keepdims=True) + 1e-6)
        m = m / (m.sum(1, keepdims=True) + 1e-6)
    return [(kernel()(logits, x), m @ wide(x))]


@program(0)
def hashed_ngrams(rng):
    """Ids of the last two and three tokens mixed by multiplication and exclusive or, modulo primes, per head."""
    batch, seq, heads = 2, 21, 4

    @tiledsl.jit(out_idx=[3])
    def kernel():
        @T.prim_func
        def main(
            Tokens: T.Tensor((batch, seq), "int64"),
            Mult: T.Tensor((3,), "int64"),
            Primes: T.Tensor((2, heads), "int64"),
            Out: T.Tensor((batch, seq, 2, heads), "int64"),
        ):
            with T.Kernel(batch, threads=32) as b:
                for s, o, h in T.Parallel(seq, 2, heads):
                    mixed = T.alloc_var("int64")
                    mixed = Tokens[b, s] * Mult[0]
                    for g in T.serial(1, 3):
                        if g < o + 2:
                            mixed = mixed ^ (T.if_then_else(s >= g, Tokens[b, s - g], 0) * Mult[g])
                    Out[b, s, o, h] = mixed % Primes[o, h]

        return main

    tokens = rng.integers(0, 50000, (batch, seq))
    mult = rng.integers(1, 1 << 40, 3) * 2 + 1
    primes = np.array([[10007, 10009, 10037, 10039], [20011, 20021, 20023, 20029]])
    shifted = [np.pad(tokens, ((0, 0), (g, 0)))[:, :seq] * mult[g] for g in range(3)]
    mixes = [shifted[0] ^ shifted[1], shifted[0] ^ shifted[1] ^ shifted[2]]
    want = np.stack([m[..., None] % p for m, p in zip(mixes, primes, strict=True)], axis=2)
    return [(kernel()(tokens, mult, primes), want)]


@program(F32)
def selective_scan(rng):
    """h_t = a_t h_{t-1} + b_t x_t over time, channels in parallel, states in a private array."""
    seq, channels, states = 25, 18, 4

    @tiledsl.jit(out_idx=[4])
    def kernel():
        @T.prim_func
        def main(
            X: T.Tensor((seq, channels), "float32"),
            A: T.Tensor((channels, states), "float32"),
            B: T.Tensor((seq, states), "float32"),
            C: T.Tensor((seq, states), "float32"),
            Y: T.Tensor((seq, channels), "float32"),
        ):
            with T.Kernel(1, threads=32):
                h = T.alloc_fragment((channels, states), "float32")
                T.clear(h)
                for t in T.serial(seq):
                    for c in T.Parallel(channels):
                        y = T.alloc_var("float32")
                        y = 0.0
                        for s in T.serial(states):
                            h[c, s] = h[c, s] * T.exp(A[c, s]) + B[t, s] * X[t, c]
                            y += h[c, s] * C[t, s]
                        Y[t, c] = y

        return main

    x, a, b, c = (
        normal(rng, seq, channels),
        -rng.random((channels, states)).astype(np.float32),
        normal(rng, seq, states),
        normal(rng, seq, states),
    )
    h, want = np.zeros((channels, states)), np.zeros((seq, channels))
    for t in range(seq):
        h = h * np.exp(wide(a)) + wide(b)[t] * wide(x)[t][:, None]
        want[t] = h @ wide(c)[t]
    return [(kernel()(x, a, b, c), want)]


@program(F32)
def convolution_with_flat_views(rng):
    N, H, W, C, F, K, S, D, P = 2, 9, 8, 16, 20, 3, 2, 1, 1
    OH, OW = ((x + 2 * P - D * (K - 1) - 1) // S + 1 for x in (H, W))
    BM, BN, BK = 16, 16, 16

    @tiledsl.jit(out_idx=[2])
    def kernel():
        @T.prim_func
        def main(
            X: T.Tensor((N, H, W, C), "float32"),
            Kernel: T.Tensor((K, K, C, F), "float32"),
            Y: T.Tensor((N, OH, OW, F), "float32"),
        ):
            with T.Kernel(T.ceildiv(F, BN), T.ceildiv(N * OH * OW, BM), threads=128) as (bx, by):
                col = T.alloc_shared((BM, BK), "float32")
                k_s = T.alloc_shared((BK, BN), "float32")
                acc = T.alloc_fragment((BM, BN), "float32")
                flat = T.Tensor((K * K * C, F), "float32", Kernel.data)
                out = T.Tensor((N * OH * OW, F), "float32", Y.data)
                T.clear(acc)
                for k in T.Pipelined(T.ceildiv(K * K * C, BK), num_stages=2):
                    T.c2d_im2col(X, col, by, k, K, S, D, P)
                    T.copy(flat[k * BK, bx * BN], k_s)
                    T.gemm(col, k_s, acc)
                T.copy(acc, out[by * BM, bx * BN])

        return main

    x, w = normal(rng, N, H, W, C), normal(rng, K, K, C, F)
    padded = np.pad(wide(x), ((0, 0), (P, P), (P, P), (0, 0)))
    want = np.zeros((N, OH, OW, F))
    for i in range(K):
        for j in range(K):
            part = padded[:, i * D : i * D + S * OH : S, j * D : j * D + S * OW : S]
            want += np.einsum("nhwc,cf->nhwf", part[:, :OH, :OW], wide(w)[i, j])
    return [(kernel()(x, w), want)]


@program(F32)
def cross_entropy_of_long_rows(rng):
    """Rows longer than a tile: running maximum and sum, the target's logit picked by index."""
    M, N, B = 13, 500, 64

    @tiledsl.jit
    def loss(X, Target):
        M, N = T.dynamic("M, N")
        X: T.Tensor[(M, N), T.float32]
        Target: T.Tensor[(M,), T.int64]
        L = T.empty((M,), T.float32)
        with T.Kernel(M, threads=64) as row:
            x = T.alloc_fragment((1, B), T.float32)
            top = T.alloc_fragment((1,), T.float32)
            before = T.alloc_fragment((1,), T.float32)
            part = T.alloc_fragment((1,), T.float32)
            total = T.alloc_fragment((1,), T.float32)
            T.fill(top, -T.infinity(T.float32))
            T.clear(total)
            for k in T.serial(T.ceildiv(N, B)):
                for _, j in T.Parallel(1, B):
                    x[0, j] = T.if_then_else(k * B + j < N, X[row, k * B + j], -T.infinity(T.float32))
                before[0] = top[0]
                T.reduce_max(x, top, dim=1, clear=False)
                for _, j in T.Parallel(1, B):
                    x[0, j] = T.exp(x[0, j] - top[0])
                T.reduce_sum(x, part, dim=1)
                total[0] = total[0] * T.exp(before[0] - top[0]) + part[0]
            L[row] = T.log(total[0]) + top[0] - X[row, Target[row]]
        return L

    x, target = normal(rng, M, N) * 3, rng.integers(0, N, M)
    w = wide(x)
    want = np.log(np.exp(w - w.max(1, keepdims=True)).sum(1)) + w.max(1) - w[np.arange(M), target]
    return [(loss(x, target), want)]


@program(F32)
def layer_norm_backward(rng):
    """dx per row; dgamma and dbeta by adding up over rows in order, in a second kernel."""
    M, N = 20, 33

    @tiledsl.jit(out_idx=[3, 4, 5])
    def kernel():
        @T.prim_func
        def main(
            X: T.Tensor((M, N), "float32"),
            G: T.Tensor((N,), "float32"),
            dY: T.Tensor((M, N), "float32"),
            dX: T.Tensor((M, N), "float32"),
            dG: T.Tensor((N,), "float32"),
            dB: T.Tensor((N,), "float32"),
        ):
            xhat_all = T.alloc_global((M, N), "float32")
            with T.Kernel(M, threads=32) as b:
                x = T.alloc_fragment((N,), "float32")
                g = T.alloc_fragment((N,), "float32")
                t = T.alloc_fragment((N,), "float32")
                mean = T.alloc_fragment((1,), "float32")
                var = T.alloc_fragment((1,), "float32")
                c1 = T.alloc_fragment((1,), "float32")
                c2 = T.alloc_fragment((1,), "float32")
                T.copy(X[b, 0], x)
                T.reduce_sum(x, mean, dim=0)
                for j in T.Parallel(N):
                    x[j] = x[j] - mean[0] / N
                    t[j] = x[j] * x[j]
                T.reduce_sum(t, var, dim=0)
                inv = T.rsqrt(var[0] / N + 1e-5)
                for j in T.Parallel(N):
                    x[j] = x[j] * inv
                    g[j] = dY[b, j] * G[j]
                    t[j] = g[j] * x[j]
                    xhat_all[b, j] = x[j]
                T.reduce_sum(g, c1, dim=0)
                T.reduce_sum(t, c2, dim=0)
                for j in T.Parallel(N):
                    dX[b, j] = (g[j] - c1[0] / N - x[j] * (c2[0] / N)) * inv
            with T.Kernel(1, threads=32):
                a = T.alloc_fragment((N,), "float32")
                b = T.alloc_fragment((N,), "float32")
                T.clear(a)
                T.clear(b)
                for i in T.serial(M):
                    for j in T.Parallel(N):
                        a[j] += dY[i, j] * xhat_all[i, j]
                        b[j] += dY[i, j]
                T.copy(a, dG)
                T.copy(b, dB)

        return main

    x, g, dy = normal(rng, M, N), normal(rng, N), normal(rng, M, N)
    X, G, D = wide(x, g, dy)
    c = X - X.mean(1, keepdims=True)
    inv = 1 / np.sqrt((c**2).mean(1, keepdims=True) + 1e-5)
    h, q = c * inv, D * G
    want = (q - q.mean(1, keepdims=True) - h * (q * h).mean(1, keepdims=True)) * inv
    dx, dg, db = kernel()(x, g, dy)
    return [(dx, want), (dg, (D * h).sum(0)), (db, D.sum(0))]


@program(F32)
def optional_bias_and_flags(rng):
    """Arguments that may be absent, a flag decided when the kernel is made, a macro that returns two values."""
    M, N = 9, 21

    @T.macro
    def mean_and_inverse(x, sums):
        T.reduce_sum(x, sums, dim=0)
        return sums[0] / N, 1.0 / (sums[0] * sums[0] + 1.0)

    @tiledsl.jit(out_idx=[3])
    def kernel(with_bias):
        @T.prim_func
        def main(
            X: T.Tensor((M, N), "float32"),
            B: T.Tensor((N,), "float32"),
            alpha: T.float32,
            Y: T.Tensor((M, N), "float32"),
        ):
            with T.Kernel(M, threads=32) as b:
                x = T.alloc_fragment((N,), "float32")
                s = T.alloc_fragment((1,), "float32")
                T.copy(X[b, 0], x)
                mean, inverse = mean_and_inverse(x, s)
                for j in T.Parallel(N):
                    Y[b, j] = (x[j] - mean) * inverse * alpha + (B[j] if with_bias else 0.0)

        return main

    x, b = normal(rng, M, N), normal(rng, N)
    total = wide(x).sum(1, keepdims=True)
    base = (wide(x) - total / N) / (total**2 + 1) * 1.5
    return [(kernel(False)(x, None, 1.5), base), (kernel(True)(x, b, 1.5), base + wide(b))]


@program(0)
def games_with_python(rng):
    """Loops over Python values, dictionaries and closures at trace time; chained assignment, swaps."""
    n = 16
    steps = {"double": 2, "triple": 3}

    def scaled(x, by):
        return x * by

    @tiledsl.jit(out_idx=[1])
    def kernel(names):
        @T.prim_func
        def main(X: T.Tensor((n,), "int32"), Y: T.Tensor((n,), "int32")):
            with T.Kernel(1, threads=n):
                a = T.alloc_shared((n,), "int32")
                b = T.alloc_shared((n,), "int32")
                for i in T.Parallel(n):
                    a[i] = b[i] = X[i]
                for name in names:
                    for i in T.Parallel(n):
                        a[i] += scaled(b[i], steps[name]) if i % 2 == 0 else -1
                for i in T.Parallel(n // 2):
                    a[i], a[n - 1 - i] = a[n - 1 - i], a[i]
                k = T.alloc_var("int32", 0)
                while k < n:
                    if k % 5 == 4:
                        k += 1
                        continue
                    if k > 12:
                        break
                    b[k] = a[k]
                    k += 1
                T.copy(b, Y)

        return main

    x = rng.integers(-9, 9, n).astype(np.int32)
    a = x.copy()
    for by in (2, 3):
        a = np.where(np.arange(n) % 2 == 0, a + x * by, a - 1)
    a = a[::-1]
    want = x.copy()
    for k in range(n):
        if k % 5 != 4 and k <= 12:
            want[k] = a[k]
    return [(kernel(("double", "triple"))(x), want)]
