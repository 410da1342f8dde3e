"""From adding two vectors to a matrix product in four steps.

Run it: python examples/01_quickstart.py. TILEDSL_TARGET=numpy runs the same kernels on the reference interpreter.
"""

import numpy as np

import tiledsl
import tiledsl.language as T

rng = np.random.default_rng(0)


# Step 1: a grid of blocks, and elements in parallel. A factory takes what is known when the kernel is compiled
# (here the block size) and returns the kernel. `n` stays symbolic: one compile serves all lengths. The last block
# runs past the end; a global access out of range reads 0 and stores nothing, so no mask is needed.
@tiledsl.jit(out_idx=[-1])
def vector_add(block, dtype):
    n = T.dynamic("n")

    @T.prim_func
    def add(A: T.Tensor((n,), dtype), B: T.Tensor((n,), dtype), C: T.Tensor((n,), dtype)):
        with T.Kernel(T.ceildiv(n, block), threads=128) as bx:
            for i in T.Parallel(block):
                C[bx * block + i] = A[bx * block + i] + B[bx * block + i]

    return add


x, y = rng.standard_normal((2, 1000), dtype=np.float32)
assert np.array_equal(vector_add(256, T.float32)(x, y), x + y)
print("1. vector add     equal to NumPy, bit for bit")


# Step 2: tiles. T.copy moves a tile from memory into a fragment that belongs to the block, T.reduce_sum adds up
# its rows. The first axis of the output is symbolic too.
@tiledsl.jit(out_idx=[-1])
def row_sums(block_M, block_N):
    M, N = T.dynamic("M"), T.dynamic("N")

    @T.prim_func
    def sums(A: T.Tensor((M, N), "float32"), S: T.Tensor((M,), "float32")):
        with T.Kernel(T.ceildiv(M, block_M), threads=128) as bx:
            tile = T.alloc_fragment((block_M, block_N), "float32")
            total = T.alloc_fragment((block_M,), "float32")
            T.clear(total)
            for k in T.serial(T.ceildiv(N, block_N)):
                T.copy(A[bx * block_M, k * block_N], tile)
                T.reduce_sum(tile, total, dim=1, clear=False)
            T.copy(total, S[bx * block_M])

    return sums


a = rng.standard_normal((301, 777), dtype=np.float32)
error = np.abs(row_sums(16, 128)(a) - a.sum(axis=1, dtype=np.float64)).max()
assert error < 777 * 2.0**-24 * np.abs(a).sum(axis=1).max()
print(f"2. row sums       largest error {error:.1e}")


# Step 3: a matrix product. Each block computes one tile of C and walks along K; T.gemm multiplies the tiles in
# shared memory and adds to the accumulator.
@tiledsl.jit(out_idx=[-1])
def gemm(block_M, block_N, block_K, dtype):
    M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")

    @T.prim_func
    def main(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_s = T.alloc_shared((block_M, block_K), dtype)
            B_s = T.alloc_shared((block_K, block_N), dtype)
            acc = T.alloc_fragment((block_M, block_N), "float32")
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                T.copy(A[by * block_M, k * block_K], A_s)
                T.copy(B[k * block_K, bx * block_N], B_s)
                T.gemm(A_s, B_s, acc)
            T.copy(acc, C[by * block_M, bx * block_N])

    return main


def check(name, got, a, b):
    """|error| <= k u sum |a b|: what a float32 sum of k terms can be off by."""
    exact = a.astype(np.float64) @ b.astype(np.float64)
    bound = a.shape[1] * 2.0**-24 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64))
    error = np.abs(got - exact)
    assert (error <= bound).all()
    print(f"{name} largest error {error.max():.1e}, allowed {bound.max():.1e}")


a, b = rng.standard_normal((200, 333), dtype=np.float32), rng.standard_normal((333, 150), dtype=np.float32)
check("3. matrix product", gemm(64, 64, 32, "float32")(a, b), a, b)


# Step 4: an epilogue on the accumulator, ordinary Python at trace time (`activation` is a Python function: it
# becomes part of the kernel), and narrow inputs with a float32 sum.
@tiledsl.jit(out_idx=[-1])
def linear(block_M, block_N, block_K, dtype, activation):
    M, N, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("K")

    @T.prim_func
    def main(
        X: T.Tensor((M, K), dtype),
        W: T.Tensor((N, K), dtype),
        bias: T.Tensor((N,), "float32"),
        Y: T.Tensor((M, N), "float32"),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            X_s = T.alloc_shared((block_M, block_K), dtype)
            W_s = T.alloc_shared((block_N, block_K), dtype)
            acc = T.alloc_fragment((block_M, block_N), "float32")
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                T.copy(X[by * block_M, k * block_K], X_s)
                T.copy(W[bx * block_N, k * block_K], W_s)
                T.gemm(X_s, W_s, acc, transpose_B=True)
            for i, j in T.Parallel(block_M, block_N):
                acc[i, j] = activation(acc[i, j] + bias[bx * block_N + j])
            T.copy(acc, Y[by * block_M, bx * block_N])

    return main


def relu(x):
    return T.max(x, 0.0)


x, w = a.astype(np.float16), b.T.copy().astype(np.float16)
bias = rng.standard_normal(150, dtype=np.float32)
got = linear(64, 64, 32, "float16", relu)(x, w, bias)
exact = np.maximum(x.astype(np.float64) @ w.T.astype(np.float64) + bias, 0)
assert np.abs(got - exact).max() < 1e-4
print(f"4. linear + relu  largest error {np.abs(got - exact).max():.1e} with float16 inputs")
