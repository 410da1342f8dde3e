"""What threads do with warps, lanes and vectors of their own: GEMV, scans, rows of warps, dequantisation, staged tiles."""

import math

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
import torch.nn.functional as F

LOG2E = 1.44269504
ALL = [None, "numpy:checked"]


def call(kernel, *args, target=None):
    return kernel(*args) if target is None else kernel(*args, target=target)


def add_up(dtype, value, out, *axes):
    with T.attr(
        T.comm_reducer(lambda x, y: x + y, [T.Cast(dtype, 0)]),
        "reduce_scope",
        T.reinterpret(T.uint64(0), dtype="handle"),
    ):
        T.evaluate(T.tvm_thread_allreduce(T.uint32(1), value, True, out, *axes, dtype="handle"))


@tilelang.jit(out_idx=[-1])
def gemv(N, K, block_N, reduce_threads, tile_k, dtype, how):
    step = reduce_threads * tile_k

    @T.prim_func
    def main(A: T.Tensor((K,), dtype), B: T.Tensor((N, K), dtype), C: T.Tensor((N,), dtype)):
        with T.Kernel(T.ceildiv(N, block_N), threads=(block_N, reduce_threads)) as bn:
            tn, tk = T.get_thread_binding(0), T.get_thread_binding(1)
            a = T.alloc_local((tile_k,), dtype)
            b = T.alloc_local((tile_k,), dtype)
            acc = T.alloc_local((1,), "float32")
            total = T.alloc_local((1,), "float32")
            shared = T.alloc_shared((block_N,), "float32")
            if tk == 0:
                shared[tn] = 0
            T.clear(acc)
            for bk in T.serial(T.ceildiv(K, step)):
                for k in T.vectorized(tile_k):
                    a[k] = A[bk * step + tk * tile_k + k]
                    b[k] = B[bn * block_N + tn, bk * step + tk * tile_k + k]
                for k in T.serial(tile_k):
                    acc[0] += a[k].astype("float32") * b[k].astype("float32")
            if how == "shared":
                T.sync_threads()
                T.atomic_add(shared[tn], acc[0])
                T.sync_threads()
                if tk == 0:
                    C[bn * block_N + tn] = shared[tn]
            else:
                add_up("float32", acc[0], total[0], tk)
                if tk == 0:
                    C[bn * block_N + tn] = total[0]

    return main


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("how", ["shared", "allreduce"])
@pytest.mark.parametrize(
    ("block_N", "threads", "tile_k", "dtype"),
    [(4, 32, 8, "float16"), (2, 32, 4, "float32"), (32, 32, 1, "float16"), (3, 16, 2, "bfloat16")],
)
def test_gemv(block_N, threads, tile_k, dtype, how, target):
    N, K = 12 if block_N < 32 else 32, 2 * threads * tile_k
    a, b = torch.randn(K).to(getattr(torch, dtype)), torch.randn(N, K).to(getattr(torch, dtype))
    got = call(gemv(N, K, block_N, threads, tile_k, dtype, how), a, b, target=target)
    torch.testing.assert_close(got.float(), b.float() @ a.float(), rtol=2e-2, atol=1e-1)


@pytest.mark.parametrize("target", ALL)
def test_a_warp_for_each_row(target):
    warps, N, K = 4, 8, 512

    @tilelang.jit(out_idx=[-1])
    def kernel(dtype="bfloat16"):
        @T.prim_func
        def main(A: T.Tensor((K,), dtype), B: T.Tensor((N, K), dtype), C: T.Tensor((N,), "float32")):
            with T.Kernel(N // warps, threads=warps * 32) as bx:
                tx = T.get_thread_binding(0)
                w, lane = tx // 32, tx % 32
                s = T.alloc_var("float32", init=0.0)
                for kb in T.serial(K // 256):
                    for v in T.unroll(8):
                        at = kb * 256 + lane * 8 + v
                        s += A[at].astype("float32") * B[bx * warps + w, at].astype("float32")
                for r in T.unroll(5):
                    s += T.shfl_down(s, 16 >> r)
                if lane == 0:
                    C[bx * warps + w] = s

        return main

    a, b = torch.randn(K).bfloat16(), torch.randn(N, K).bfloat16()
    torch.testing.assert_close(call(kernel(), a, b, target=target), b.float() @ a.float(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("target", ALL)
def test_softmax_of_a_row_per_warp(target):
    M, N, warps = 7, 96, 4

    @tilelang.jit(out_idx=[-1])
    def kernel():
        per = N // 32

        @T.prim_func
        def main(X: T.Tensor((M, N), "float32"), Y: T.Tensor((M, N), "float32")):
            with T.Kernel(T.ceildiv(M, warps), threads=warps * 32) as bx:
                tx = T.get_thread_binding(0)
                row, lane = bx * warps + (tx >> 5), tx & 31
                x = T.alloc_local((per,), "float32")
                m = T.alloc_var("float32")
                s = T.alloc_var("float32")
                m = -T.infinity("float32")
                s = 0.0
                for i in T.unroll(per):
                    x[i] = T.if_then_else(row < M, X[row, i * 32 + lane], 0.0)
                    m = T.max(m, x[i])
                for r in T.unroll(5):
                    m = T.max(m, T.shfl_xor(m, 1 << r))
                for i in T.unroll(per):
                    x[i] = T.exp2((x[i] - m) * LOG2E)
                    s += x[i]
                s = T.warp_reduce_sum(s)
                for i in T.unroll(per):
                    if row < M:
                        Y[row, i * 32 + lane] = x[i] / s

        return main

    x = torch.randn(M, N)
    torch.testing.assert_close(call(kernel(), x, target=target), x.softmax(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", ALL)
def test_scan_of_a_block(target):
    N, threads = 512, 256

    @tilelang.jit(out_idx=[-1])
    def kernel():
        @T.prim_func
        def main(X: T.Tensor((N,), "int32"), Y: T.Tensor((N,), "int32")):
            with T.Kernel(N // threads, threads=threads) as bx:
                tx = T.get_thread_binding(0)
                lane, w = tx % 32, tx // 32
                sums = T.alloc_shared((threads // 32,), "int32")
                v = T.alloc_var("int32")
                v = X[bx * threads + tx]
                for r in T.unroll(5):
                    o = T.shfl_up(v, 1 << r)
                    if lane >= (1 << r):
                        v += o
                if lane == 31:
                    sums[w] = v
                T.sync_threads()
                for j in T.serial(w):
                    v += sums[j]
                Y[bx * threads + tx] = v

        return main

    x = torch.randint(-5, 6, (N,), dtype=torch.int32)
    want = x.view(-1, threads).cumsum(1, dtype=torch.int32).view(-1)
    assert torch.equal(call(kernel(), x, target=target), want)


@pytest.mark.parametrize("target", ALL)
def test_swiglu_in_vectors_of_four_and_scales_of_warps(target):
    M, H, G, warps = 3, 512, 128, 2

    @tilelang.jit(out_idx=[1, 2])
    def kernel():
        @T.prim_func
        def main(
            X: T.Tensor((M, 2 * H), "bfloat16"),
            Y: T.Tensor((M, H), "float8_e4m3fn"),
            S: T.Tensor((M, H // G), "float32"),
        ):
            with T.Kernel(M, H // G // warps, threads=warps * 32) as (bx, by):
                tx = T.get_thread_binding(0)
                g, lane = by * warps + tx // 32, tx % 32
                v = T.alloc_local((4,), "float32")
                am = T.alloc_var("float32")
                am = 0.0
                for c in T.vectorized(4):
                    gate = T.cast(X[bx, g * G + lane * 4 + c], "float32")
                    v[c] = gate / (1.0 + T.exp(-gate)) * T.cast(X[bx, H + g * G + lane * 4 + c], "float32")
                for c in T.unroll(4):
                    am = T.max(am, T.abs(v[c]))
                am = T.max(T.warp_reduce_max(am), 1e-4)
                for c in T.vectorized(4):
                    Y[bx, g * G + lane * 4 + c] = T.cast(v[c] * (448.0 / am), "float8_e4m3fn")
                if lane == 0:
                    S[bx, g] = am / 448.0

        return main

    x = torch.randn(M, 2 * H).bfloat16()
    a, b = x.float().chunk(2, -1)
    v = (F.silu(a) * b).view(M, -1, G)
    s = v.abs().amax(-1).clamp(min=1e-4)
    y, got = call(kernel(), x, target=target)
    torch.testing.assert_close(got, s / 448, rtol=1e-5, atol=0)
    want = (v * (448 / s)[..., None]).to(torch.float8_e4m3fn).view(M, H)
    torch.testing.assert_close(y.float(), want.float(), rtol=0.13, atol=2**-9)


@pytest.mark.parametrize("target", ALL)
def test_four_bit_weights_by_threads(target):
    N, K, bn, rt, G, mk = 8, 512, 4, 16, 64, 16

    @tilelang.jit(out_idx=[-1])
    def kernel(dtype="float16"):
        step = rt * mk

        @T.prim_func
        def main(
            A: T.Tensor((1, K), dtype),
            B: T.Tensor((N, K // 2), "int8"),
            S: T.Tensor((N, K // G), dtype),
            C: T.Tensor((1, N), "float32"),
        ):
            with T.Kernel(T.ceildiv(N, bn), 1, threads=(rt, bn)) as (bx, by):
                a = T.alloc_local((mk,), dtype)
                q = T.alloc_local((mk // 2,), "int8")
                d = T.alloc_local((mk,), dtype)
                acc = T.alloc_local((1,), "float32")
                total = T.alloc_local((1,), "float32")
                kr, ni = T.get_thread_binding(0), T.get_thread_binding(1)
                T.clear(acc)
                for ko in T.serial(T.ceildiv(K, step)):
                    for v in T.vectorized(mk):
                        a[v] = A[by, ko * step + kr * mk + v]
                    for v in T.vectorized(mk // 2):
                        q[v] = B[bx * bn + ni, ko * (step // 2) + kr * (mk // 2) + v]
                    for v in T.serial(mk):
                        code = ((q[v // 2].astype("int32") >> (4 * (v % 2))) & 15) - 8
                        d[v] = T.cast(code, dtype) * S[bx * bn + ni, (ko * step + kr * mk) // G]
                    for v in T.serial(mk):
                        acc[0] += a[v].astype("float32") * d[v].astype("float32")
                add_up("float32", acc[0], total[0], kr)
                if kr == 0:
                    C[by, bx * bn + ni] = total[0]

        return main

    a, q = torch.randn(1, K).half(), torch.randint(-128, 128, (N, K // 2), dtype=torch.int8)
    s = torch.rand(N, K // G).half()
    u = q.view(torch.uint8).int()
    w = torch.stack([(u & 15) - 8, (u >> 4) - 8], -1).view(N, -1, G).half() * s[..., None]
    got = call(kernel(), a, q, s, target=target)
    torch.testing.assert_close(got, a.float() @ w.view(N, K).float().t(), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_tiles_through_shared_memory_and_fragments(dtype, target):
    bm, bn = 16, 32

    @tilelang.jit(out_idx=[-1])
    def kernel():
        M, N = T.dynamic("M"), T.dynamic("N")

        @T.prim_func
        def main(A: T.Tensor((M, N), dtype), B: T.Tensor((M, N), dtype), C: T.Tensor((M, N), dtype)):
            with T.Kernel(T.ceildiv(N, bn), T.ceildiv(M, bm), threads=64) as (bx, by):
                a, b = T.alloc_shared((bm, bn), dtype), T.alloc_shared((bm, bn), dtype)
                f, c = T.alloc_fragment((bm, bn), dtype), T.alloc_shared((bm, bn), dtype)
                T.copy(A[by * bm, bx * bn], a)
                T.copy(B[by * bm, bx * bn], b)
                for i, j in T.Parallel(bm, bn):
                    f[i, j] = a[i, j] + b[i, j]
                for i, j in T.Parallel(bm, bn):
                    f[i, j] = f[i, j] * f[i, j]
                T.copy(f, c)
                T.copy(c, C[by * bm, bx * bn])

        return main

    for m, n in ((16, 32), (17, 45), (1, 1)):
        a, b = (torch.randn(m, n).to(getattr(torch, dtype)) for _ in range(2))
        assert torch.equal(call(kernel(), a, b, target=target), (a + b) * (a + b))


@pytest.mark.parametrize("target", ALL)
def test_a_hadamard_transform(target):
    b, n, threads = 2, 256, 64

    @tilelang.jit(out_idx=[1])
    def kernel():
        elems, warps = n // threads, threads // 32

        @T.prim_func
        def main(A: T.Tensor((b, n), "float32"), B: T.Tensor((b, n), "float32")):
            with T.Kernel(b, threads=threads) as bx:
                x = T.alloc_local((elems,), "float32")
                s = T.alloc_shared((threads, elems), "float32")
                tx = T.get_thread_binding(0)
                for i in T.vectorized(elems):
                    x[i] = A[bx, tx * elems + i]
                for i in T.unroll(int(math.log2(elems))):
                    for j in T.serial(elems >> (i + 1)):
                        for k in T.serial(1 << i):
                            at = j * (2 << i) + k
                            x[at] = x[at] + x[at + (1 << i)]
                            x[at + (1 << i)] = x[at] - 2 * x[at + (1 << i)]
                for r in T.unroll(5):
                    for i in T.serial(elems):
                        other = T.shfl_xor(x[i], 1 << r)
                        x[i] = T.if_then_else(((tx >> r) & 1) == 1, other - x[i], other + x[i])
                for r in T.serial(int(math.log2(warps))):
                    for i in T.vectorized(elems):
                        s[tx, i] = x[i]
                    T.sync_threads()
                    for i in T.serial(elems):
                        o = s[tx ^ (32 << r), i]
                        x[i] = T.if_then_else(((tx >> (r + 5)) & 1) == 1, o - x[i], o + x[i])
                    T.sync_threads()
                for i in T.vectorized(elems):
                    B[bx, tx * elems + i] = x[i]

        return main

    x = torch.randn(b, n)
    want = x
    for s in range(8):
        v = want.view(b, -1, 2, 1 << s)
        want = torch.stack([v[:, :, 0] + v[:, :, 1], v[:, :, 0] - v[:, :, 1]], 2).view(b, n)
    torch.testing.assert_close(call(kernel(), x, target=target), want, rtol=1e-4, atol=1e-4)


def test_a_program_may_ask_what_a_call_takes():
    kernel = gemv(12, 128, 4, 16, 4, "float32", "allreduce")
    text = str(kernel.explain(torch.randn(128, device="cuda"), torch.randn(12, 128, device="cuda")))
    assert "bound:" in text and "main on" in text


if __name__ == "__main__":
    tilelang.testing.main()
