"""What programs ask of the host: analysers, packed weights, graphs, gradients; and copies by the threads of a role."""

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.carver.arch import CUDA
from tilelang.quantize.utils import interleave_weight
from tilelang.tools import Analyzer


@tilelang.jit(out_idx=[2])
def kernel(
    N,
    C,
    H,
    W,
    F,
    KK,
    S,
    D,
    P,
    block_M=32,
    block_N=32,
    block_K=16,
    num_stages=1,
    threads=128,
    dtype="float16",
    accum_dtype="float",
):
    KH, KW = KK, KK
    OH = (H + 2 * P - D * (KK - 1) - 1) // S + 1
    OW = (W + 2 * P - D * (KK - 1) - 1) // S + 1
    is_hopper = torch.cuda.get_device_properties(0).major == 9

    @T.prim_func
    def main(
        data: T.Tensor((N, H, W, C), dtype),
        kernel: T.Tensor((KH, KW, C, F), dtype),
        out: T.Tensor((N, OH, OW, F), dtype),
    ):
        with T.Kernel(T.ceildiv(F, block_N), T.ceildiv(N * OH * OW, block_M), threads=threads) as (bx, by):
            data_shared = T.alloc_shared((block_M, block_K), dtype)
            kernel_shared = T.alloc_shared((block_K, block_N), dtype)
            out_local = T.alloc_fragment((block_M, block_N), accum_dtype)
            out_shared = T.alloc_shared((block_M, block_N), dtype)
            kernel_flat = T.Tensor((KH * KW * C, F), dtype, kernel.data)
            out_flat = T.Tensor((N * OH * OW, F), dtype, out.data)
            T.annotate_layout(
                {
                    out_shared: tilelang.layout.make_swizzled_layout(out_shared),
                    data_shared: tilelang.layout.make_swizzled_layout(data_shared),
                }
            )
            T.clear(out_local)
            for k_iter in T.Pipelined(T.ceildiv(KH * KW * C, block_K), num_stages=num_stages):
                if is_hopper:
                    T.c2d_im2col(data, data_shared, by, k_iter, KH, S, D, P)
                else:
                    for i, j in T.Parallel(block_M, block_K):
                        k = k_iter * block_K + j
                        m = by * block_M + i
                        access_h = m % (OH * OW) // OW * S + k // (KW * C) * D - P
                        access_w = m % OW * S + k // C % KW * D - P
                        in_bound = (access_h >= 0) and (access_w >= 0) and (access_h < H) and (access_w < W)
                        data_shared[i, j] = T.if_then_else(in_bound, data[m // (OH * OW), access_h, access_w, k % C], 0)
                T.copy(kernel_flat[k_iter * block_K, bx * block_N], kernel_shared)
                T.gemm(data_shared, kernel_shared, out_local)
            T.copy(out_local, out_shared)
            T.copy(out_shared, out_flat[by * block_M, bx * block_N])

    return main


def test_conv_and_analyzer():
    N, C, H, W, F, K, S, D, P = 2, 16, 9, 9, 32, 3, 1, 1, 1
    k = kernel(N, C, H, W, F, K, S, D, P)
    a, b = torch.randn(N, H, W, C, device="cuda").half(), torch.randn(K, K, C, F, device="cuda").half()
    out = k(a, b)
    ref = torch.conv2d(
        a.permute(0, 3, 1, 2).float(), b.permute(3, 2, 0, 1).float(), stride=S, padding=P, dilation=D
    ).permute(0, 2, 3, 1)
    tilelang.testing.torch_assert_close(out.float(), ref, atol=1e-1, rtol=1e-1, max_mismatched_ratio=0.01)
    cuda_device = CUDA("cuda")
    result = Analyzer.analysis(k.prim_func if hasattr(k, "prim_func") else k, cuda_device)
    print(result)
    print(f"Analyzed FLOPs: {result.total_flops}")
    print(f"Expected FLOPs: {2 * N * F * H * W * C * K * K}")
    assert result.total_flops >= 2 * N * F * H * W * C * K * K
    print(result.expected_tflops, result.estimated_time, result.total_global_bytes, result.expected_bandwidth_GBps)


@tilelang.jit(out_idx=[2])
def grouped_gemm(batch_sum, batch_count, K, N, block_M, block_N, block_K, num_stages=2, threads=128, dtype="float16"):
    accum_dtype = "float32"

    @T.prim_func
    def kernel(
        A: T.Tensor([batch_sum, K], dtype),
        B: T.Tensor([batch_count, K, N], dtype),
        C: T.Tensor([batch_sum, N], dtype),
        batch_sizes: T.Tensor([batch_count], "int32"),
        batch_offsets: T.Tensor([batch_count], "int32"),
        batch_padded_offsets: T.Tensor([batch_count], "int32"),
    ):
        with T.Kernel(T.ceildiv(batch_sum, block_M) + batch_count, T.ceildiv(N, block_N), threads=threads) as (bx, by):
            A_shared = T.alloc_shared([block_M, block_K], dtype)
            B_shared = T.alloc_shared([block_K, block_N], dtype)
            C_local = T.alloc_fragment([block_M, block_N], accum_dtype)
            cur_batch_idx = T.alloc_local([1], "int32")
            cur_batch_size = T.alloc_local([1], "int32")
            m_start_padded = bx * block_M
            for i in range(batch_count):
                in_cur_batch_idx = m_start_padded >= batch_padded_offsets[i]
                cur_batch_idx[0] = T.if_then_else(in_cur_batch_idx, i, cur_batch_idx[0])
            cur_batch_size[0] = batch_sizes[cur_batch_idx[0]]
            m_start = m_start_padded - batch_padded_offsets[cur_batch_idx[0]] + batch_offsets[cur_batch_idx[0]]
            actual_rows = T.max(
                0, T.min(block_M, cur_batch_size[0] + batch_padded_offsets[cur_batch_idx[0]] - m_start_padded)
            )
            T.clear(C_local)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=num_stages):
                T.copy(A[m_start : m_start + block_M, k * block_K : (k + 1) * block_K], A_shared)
                T.copy(
                    B[cur_batch_idx[0], k * block_K : (k + 1) * block_K, by * block_N : (by + 1) * block_N], B_shared
                )
                T.gemm(A_shared, B_shared, C_local)
            for i, j in T.Parallel(block_M, block_N):
                if i < actual_rows:
                    C[m_start + i, by * block_N + j] = C_local[i, j]

    return kernel


@tilelang.jit(out_idx=[2])
def grouped_gemm_bwd(
    batch_sum, batch_count, M, N, block_M, block_N, block_K, num_stages=1, threads=128, dtype="float16"
):
    @T.prim_func
    def kernel(
        A: T.Tensor([batch_sum, M], dtype),
        B: T.Tensor([batch_sum, N], dtype),
        C: T.Tensor([batch_count, M, N], dtype),
        batch_sizes: T.Tensor([batch_count], "int32"),
        batch_offsets: T.Tensor([batch_count], "int32"),
    ):
        with T.Kernel(T.ceildiv(M, block_M), T.ceildiv(N, block_N), batch_count, threads=threads) as (bx, by, bz):
            A_shared = T.alloc_shared([block_K, block_M], dtype)
            B_shared = T.alloc_shared([block_K, block_N], dtype)
            C_local = T.alloc_fragment([block_M, block_N], "float32")
            T.clear(C_local)
            for k in T.Pipelined(T.ceildiv(batch_sizes[bz], block_K), num_stages=num_stages):
                for i, j in T.Parallel(block_K, block_M):
                    A_shared[i, j] = T.if_then_else(
                        i < batch_sizes[bz] - k * block_K, A[batch_offsets[bz] + k * block_K + i, bx * block_M + j], 0
                    )
                for i, j in T.Parallel(block_K, block_N):
                    B_shared[i, j] = T.if_then_else(
                        i < batch_sizes[bz] - k * block_K, B[batch_offsets[bz] + k * block_K + i, by * block_N + j], 0
                    )
                T.gemm(A_shared, B_shared, C_local, transpose_A=True)
            T.copy(C_local, C[bz, bx * block_M, by * block_N])

    return kernel


class _GroupedGEMM(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b, batch_sizes):
        block_M, block_N, block_K = 32, 32, 32
        offs = torch.cumsum(batch_sizes, 0).to(torch.int32) - batch_sizes
        padded = (batch_sizes + block_M - 1) // block_M * block_M
        poffs = torch.cumsum(padded, 0).to(torch.int32) - padded
        kernel = grouped_gemm(a.shape[0], b.shape[0], b.shape[1], b.shape[2], block_M, block_N, block_K)
        o = kernel(a, b, batch_sizes, offs, poffs.to(torch.int32))
        ctx.save_for_backward(a, b, batch_sizes, offs)
        return o

    @staticmethod
    def backward(ctx, grad):
        a, b, batch_sizes, offs = ctx.saved_tensors

        def maybe_contiguous(x):
            if x.stride(-1) != 1:
                return x.contiguous()
            return x

        grad, a, b = [maybe_contiguous(x) for x in (grad, a, b)]
        kernel = grouped_gemm_bwd(a.shape[0], b.shape[0], b.shape[1], b.shape[2], 32, 32, 32)
        return None, kernel(a, grad, batch_sizes, offs), None


def test_grouped():
    torch.manual_seed(0)
    sizes = [30, 0, 45, 64]
    a = torch.randn(sum(sizes), 64, device="cuda", dtype=torch.float16)
    b = torch.randn(4, 64, 48, device="cuda", dtype=torch.float16, requires_grad=True)
    bs = torch.tensor(sizes, device="cuda", dtype=torch.int32)
    o = _GroupedGEMM.apply(a, b, bs)
    ref = torch.cat([x @ w for x, w in zip(a.split(sizes), b)])
    torch.testing.assert_close(o, ref, rtol=1e-2, atol=1e-2)
    go = torch.randn_like(o)
    o.backward(go)
    got, b.grad = b.grad.clone(), None
    ref.backward(go)
    torch.testing.assert_close(got, b.grad, rtol=1e-2, atol=1e-1)


def test_interleave():
    import numpy as np

    w = np.random.randint(-128, 127, (8, 64)).astype("int8")
    for bits, dt in ((4, "float16"), (4, "int8"), (2, "int8"), (2, "float16"), (1, "int8"), (1, "float16")):
        out = interleave_weight(w, bits, dt)
        assert out.shape == w.shape and out.dtype == w.dtype
        assert (
            np.bincount(np.unpackbits(out.view(np.uint8).ravel()))
            == np.bincount(np.unpackbits(w.view(np.uint8).ravel()))
        ).all()


@tilelang.jit
def sparse_pipelined(N, D, topk, BI=32, threads=384):
    """cp.async by threads and barriers, the pipelined sparse MLA's way."""
    NI = topk // BI
    dtype = "bfloat16"

    @T.prim_func
    def main(KV: T.Tensor([N, D], dtype), I: T.Tensor([4, topk], "int32"), O: T.Tensor([4, D], "float32")):
        with T.Kernel(4, threads=threads) as bx:
            KV_shared_0 = T.alloc_shared([BI, D], dtype)
            KV_shared_1 = T.alloc_shared([BI, D], dtype)
            acc = T.alloc_fragment([BI, D], "float32")
            o = T.alloc_fragment([D], "float32")
            indices_local = T.alloc_local([1], "int32")
            bar_k_0_ready = T.alloc_barrier(arrive_count=128)
            bar_k_1_ready = T.alloc_barrier(arrive_count=128)
            bar_k_0_free = T.alloc_barrier(arrive_count=256)
            bar_k_1_free = T.alloc_barrier(arrive_count=256)
            tx = T.get_thread_binding()
            if tx < 256:
                T.set_max_nreg(240, 1)
                T.fill(acc, 0)
                for i_i in T.serial(T.ceildiv(NI, 2)):
                    T.barrier_wait(bar_k_0_ready[0], (i_i & 1))
                    for i, j in T.Parallel(BI, D):
                        acc[i, j] += KV_shared_0[i, j]
                    T.barrier_arrive(bar_k_0_free[0])
                    T.barrier_wait(bar_k_1_ready[0], (i_i & 1))
                    for i, j in T.Parallel(BI, D):
                        acc[i, j] += KV_shared_1[i, j]
                    T.barrier_arrive(bar_k_1_free[0])
                T.reduce_sum(acc, o, dim=0)
                T.copy(o, O[bx, 0])
            elif tx >= 256:
                T.set_max_nreg(80, 0)
                for i_i in T.serial(T.ceildiv(NI, 2)):
                    T.barrier_wait(bar_k_0_free[0], ((i_i & 1) ^ 1))
                    for r in T.serial(BI // 16):
                        indices_local[0] = I[bx, (i_i * 2) * BI + r * 16 + (tx - 256) // 8]
                        for u in T.serial(D // 64):
                            for v in T.vectorized(8):
                                KV_shared_0[r * 16 + (tx - 256) // 8, 64 * u + (tx - 256) % 8 * 8 + v] = KV[
                                    indices_local[0], 64 * u + (tx - 256) % 8 * 8 + v
                                ]
                    T.cp_async_barrier_noinc(bar_k_0_ready[0])
                    T.barrier_wait(bar_k_1_free[0], ((i_i & 1) ^ 1))
                    for r in T.serial(BI // 16):
                        indices_local[0] = I[bx, (i_i * 2 + 1) * BI + r * 16 + (tx - 256) // 8]
                        with T.attr("default", "async_scope", 1):
                            for u in T.serial(D // 64):
                                for v in T.vectorized(8):
                                    KV_shared_1[r * 16 + (tx - 256) // 8, 64 * u + (tx - 256) % 8 * 8 + v] = KV[
                                        indices_local[0], 64 * u + (tx - 256) % 8 * 8 + v
                                    ]
                    T.cp_async_barrier_noinc(bar_k_1_ready[0])

    return main


def test_cp_async_barrier():
    torch.manual_seed(0)
    kv = torch.randn(200, 64, device="cuda", dtype=torch.bfloat16)
    idx = torch.randint(0, 200, (4, 128), device="cuda", dtype=torch.int32)
    o = torch.empty(4, 64, device="cuda")
    sparse_pipelined(200, 64, 128)(kv, idx, o)
    torch.testing.assert_close(o, kv.float()[idx.long()].sum(1), rtol=1e-3, atol=1e-3)


def test_graph():
    @tilelang.jit(out_idx=[1])
    def f(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
            with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
                for i in T.Parallel(32):
                    B[b * 32 + i] = A[b * 32 + i] * 2

        return main

    k = f(64)
    x = torch.randn(64, device="cuda")
    s = torch.cuda.Stream()
    s.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(s):
        for _ in range(3):
            y = k(x)
    torch.cuda.current_stream().wait_stream(s)
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        y = k(x) + 1
        z = torch.relu(y)
        z.mul_(3)
    for _ in range(3):
        x.copy_(torch.randn(64, device="cuda"))
        g.replay()
        torch.cuda.synchronize()
        torch.testing.assert_close(y, x * 2 + 1)
        torch.testing.assert_close(z, 3 * torch.relu(x * 2 + 1))


if __name__ == "__main__":
    tilelang.testing.main()


@tilelang.testing.requires_cuda
def test_lop3():
    from tilelang.quantize import general_compress, get_lop3_intrin_group

    torch.manual_seed(0)
    for bits, fmt, out in (
        (4, "uint", "float16"),
        (4, "int", "float16"),
        (2, "uint", "float16"),
        (1, "uint", "float16"),
        (4, "int", "int8"),
        (2, "int", "int8"),
        (1, "uint", "int8"),
    ):
        info = get_lop3_intrin_group(
            out_dtype=out,
            source_format=fmt,
            source_bit=bits,
            storage_dtype="int8",
            with_scaling=False,
            with_zeros=False,
        )
        n = 8 if out == "float16" else 16
        nb = n * bits // 8

        @tilelang.jit(out_idx=[1])
        def made(rows, N):
            @T.prim_func
            def main(B: T.Tensor((rows, N * bits // 8), "int8"), C: T.Tensor((rows, N), out)):
                with T.Kernel(rows, threads=N // n) as by:
                    T.import_source(info["c_source"])
                    tx = T.get_thread_binding(0)
                    B_local = T.alloc_local([nb], "int8")
                    C_local = T.alloc_local([n], out)
                    for v in T.vectorized(nb):
                        B_local[v] = B[by, tx * nb + v]
                    T.call_extern(
                        "handle", info["func_name"], T.address_of(B_local[0]), T.address_of(C_local[0]), dtype=out
                    )
                    for v in T.vectorized(n):
                        C[by, tx * n + v] = C_local[v]

            return main

        w = torch.randint(0, 1 << bits, (3, 64), dtype=torch.int8, device="cuda")
        packed = interleave_weight(general_compress(w, bits, torch.int8), bits, out)
        assert packed.is_cuda and packed.dtype == torch.int8
        got = made(3, 64)(packed)
        ref = w.to(torch.int32) - (0 if fmt == "uint" else 1 << (bits - 1))
        assert torch.equal(got.to(torch.int32), ref), (bits, fmt, out)
