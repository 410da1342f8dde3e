"""The surface as tests of the language use it: targets, ways to compile, layouts, Python at trace time, torch."""

from __future__ import annotations

from typing import Literal

import pytest
import tilelang
import tilelang as tl
import tilelang.language as T
import tilelang.testing
import torch
from tilelang import JITKernel, cached
from tilelang import tvm as tvm
from tilelang.transform import simplify_prim_func
from tilelang.utils.target import determine_target
from tilelang.utils.tensor import TensorSupplyType, torch_assert_close


def test_target():
    from tvm.target import Target

    t = Target("cuda")
    assert t.kind.name == "cuda"
    assert determine_target("auto", return_object=True).kind.name == "cuda"
    with tvm.target.Target("cuda -arch=sm_90"):
        pass
    assert tvm.DataType("float16").bits == 16


@simplify_prim_func
def tl_matmul(M: int, N: int, K: int, dtype):
    @T.prim_func
    def main(A: T.Tensor((M, K), dtype), B: T.Tensor((K, N), dtype), C: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, 32), T.ceildiv(M, 32), threads=64) as (bx, by):
            A_shared = T.alloc_shared((32, 32), dtype)
            B_shared = T.alloc_shared((32, 32), dtype)
            C_local = T.alloc_fragment((32, 32), "float32")
            T.clear(C_local)
            for ko in T.Pipelined(T.ceildiv(K, 32), num_stages=2):
                T.copy(A[by * 32, ko * 32], A_shared)
                T.copy(B[ko * 32, bx * 32], B_shared)
                T.gemm(A_shared, B_shared, C_local, policy=T.GemmWarpPolicy.from_warp_partition(2, 1))
            T.copy(C_local, C[by * 32, bx * 32])

    return main


def test_compile_ways():
    a, b = torch.randn(40, 48, device="cuda").half(), torch.randn(48, 33, device="cuda").half()
    f = tl_matmul(40, 33, 48, "float16")
    ref = a.float() @ b.float()
    for k in (
        tilelang.compile(f, out_idx=-1),
        tilelang.compile(f, out_idx=[2], target="cuda", execution_backend="nvrtc", compile_flags=["-O3"]),
        JITKernel(f, out_idx=-1, target="cuda"),
        cached(f, [2]),
        tl.JITKernel(f, out_idx=[-1], execution_backend="cython", verbose=True),
    ):
        torch.testing.assert_close(k(a, b), ref, rtol=1e-3, atol=1e-3)
    art = tilelang.lower(f, target="cuda")
    assert isinstance(art.kernel_source, str)
    with tvm.target.Target("cuda"):
        art = tl.engine.lower(f)
    prof = k.get_profiler(tl.TensorSupplyType.Normal)
    prof.assert_allclose(lambda A, B: A.float() @ B.float(), atol=1e-2, rtol=1e-2)
    prof.run_once()
    assert prof.do_bench(prof.func if hasattr(prof, "func") else None, n_warmup=1, n_repeat=1) > 0
    assert [tuple(int(x) for x in p.shape) for p in k.params][0] == (40, 48)
    assert [str(p.dtype) for p in k.params] == ["float16", "float16", "float32"] or k.params[
        0
    ].torch_dtype() == torch.float16
    assert repr(f.script() if hasattr(f, "script") else f)


def test_fragments_layouts():
    def make(shape, threads):
        return T.Fragment(shape, forward_fn=lambda i, j: (i % threads, i // threads * shape[1] + j))

    frag = make([64, 4], 32)
    rep = T.Fragment([8, 8], forward_thread_fn=lambda i, j: i * 4 + j // 2, forward_index_fn=lambda i, j: j % 2)
    warp = rep.repeat([2, 1], repeat_on_thread=True, lower_dim_first=False).replicate(2)
    block = warp.repeat([1, 2], False, False)
    assert (warp.get_thread_size(), block.get_thread_size(), block.shape) == (128, 128, (16, 16))

    @T.prim_func
    def main(A: T.Tensor((64, 4), "float32"), B: T.Tensor((64, 4), "float32")):
        with T.Kernel(1, threads=32):
            f = T.alloc_fragment((64, 4), "float32")
            T.annotate_layout({f: frag})
            T.annotate_l2_hit_ratio({A: 0.5})
            T.copy(A, f, coalesced_width=2)
            for i, j in T.Parallel(64, 4, loop_layout=frag):
                f[i, j] += 1
            T.copy(f, B)

    k = tilelang.compile(main, out_idx=1)
    a = torch.randn(64, 4, device="cuda")
    torch.testing.assert_close(k(a), a + 1)


def test_python_meta():
    table = {"relu": lambda x: T.max(x, 0), "square": lambda x: x * x, "id": lambda x: x}

    class Epilogue:
        def __init__(self, name, scale=1.0):
            self.name, self.scale = name, scale

        @T.macro
        def apply(self, buf, m, n):
            for i, j in T.Parallel(m, n):
                buf[i, j] = table[self.name](buf[i, j]) * self.scale

    eps = [Epilogue("relu"), Epilogue("square", 0.5)]
    bits: Literal[4, 8] = 8

    @T.prim_func
    def main(A: T.Tensor((16, 8), "float32"), B: T.Tensor((2, 16, 8), "float32"), alpha: T.float32, flag: T.bool):
        with T.Kernel(1, threads=64) as _:
            bufs = [T.alloc_fragment((16, 8), "float32") for _ in range(1)] + [T.alloc_fragment((16, 8), "float32")]
            assert len(bufs) == 2, "two"
            T.copy(A, bufs[0])
            T.copy(bufs[0], bufs[1])
            eps[0].apply(bufs[0], *bufs[0].shape)
            eps[1].apply(bufs[1], 16, 8)
            if flag:
                for i, j in T.Parallel(16, 8):
                    bufs[0][i, j] = bufs[0][i, j] * alpha if bits == 8 else 0
            else:
                T.fill(bufs[0], T.float32(-1))
            T.copy(bufs[0], B[0, :, :])
            T.copy(bufs[1], B[1, 0, 0])

    k = tilelang.compile(main, out_idx=[1])
    a = torch.randn(16, 8, device="cuda")
    torch.testing.assert_close(k(a, 2.0, True), torch.stack([a.relu() * 2, a * a * 0.5]))
    torch.testing.assert_close(k(a, 2.0, False)[0], torch.full((16, 8), -1.0, device="cuda"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int32", "int8"])
@tilelang.testing.requires_cuda_compute_version_ge(8, 0)
def test_copy_views(dtype):
    tdtype = T.dtype(dtype).as_torch()

    @T.prim_func
    def main(A: T.Tensor((3, 20, 24), dtype), B: T.Tensor((3, 20, 24), dtype), C: T.Tensor((3, 24, 20), dtype)):
        with T.Kernel(3, threads=128) as bz:
            s = T.alloc_shared((20, 24), dtype)
            st = T.alloc_shared((24, 20), dtype)
            f = T.alloc_fragment((20, 24), dtype)
            T.copy(A[bz, :, :], s)
            T.transpose(s, st)
            T.copy(st, C[bz, 0:24, 0:20])
            T.copy(s[0:10, :], f[0:10, :])
            T.copy(s[10:20, :], f[10:20, :])
            fr = T.reshape(f, (480,))
            for i in T.Parallel(480):
                fr[i] = fr[i] + T.cast(1, dtype)
            T.copy(f, B[bz, 0, 0])

    k = tilelang.compile(main)
    a = torch.randint(-9, 9, (3, 20, 24), device="cuda").to(tdtype)
    b, c = torch.empty_like(a), torch.empty(3, 24, 20, dtype=tdtype, device="cuda")
    k(a, b, c)
    assert torch.equal(b, a + 1) and torch.equal(c, a.transpose(1, 2))


def test_scan_reduce_atomic():
    @T.prim_func
    def main(
        A: T.Tensor((4, 64), "float32"),
        S: T.Tensor((4, 64), "float32"),
        M: T.Tensor((4,), "float32"),
        N: T.Tensor((1,), "int32"),
        D: T.Tensor((4, 64), "float32"),
    ):
        with T.Kernel(4, threads=64) as b:
            row = T.alloc_shared((64,), "float32")
            f = T.alloc_fragment((1, 64), "float32")
            mx = T.alloc_fragment((1,), "float32")
            T.copy(A[b, 0], row)
            T.cumsum(src=row, dim=0, reverse=True)
            T.copy(row, S[b, 0])
            T.copy(A[b : b + 1, :], f)
            T.fill(mx, -T.infinity("float32"))
            T.reduce_max(f, mx, dim=1, clear=False)
            M[b] = mx[0]
            for i in T.Parallel(64):
                if A[b, i] > 0:
                    T.atomic_add(N[0], 1)
            T.atomic_add(D[b, 0], row)
            T.atomic_max(D[3 - b, 63], 1000.0)

    k = tilelang.compile(main)
    a = torch.randn(4, 64, device="cuda")
    s, m, n, d = (
        torch.empty_like(a),
        torch.empty(4, device="cuda"),
        torch.zeros(1, dtype=torch.int32, device="cuda"),
        torch.zeros(4, 64, device="cuda"),
    )
    k(a, s, m, n, d)
    ref = a.flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(s, ref, rtol=1e-4, atol=1e-4)
    assert torch.equal(m, a.amax(1)) and n.item() == (a > 0).sum().item()
    torch.testing.assert_close(d[:, :63], ref[:, :63], rtol=1e-4, atol=1e-4)


def test_jit_forms():
    @tilelang.jit
    def fac(n, *, dtype="float32", scale=2):
        @T.prim_func
        def main(A: T.Tensor((n,), dtype), B: T.Tensor((n,), dtype)):
            with T.Kernel(T.ceildiv(n, 16), threads=16) as b:
                tx = T.get_thread_binding(0)
                i = b * 16 + tx
                if i < n:
                    B[i] = A[i] * scale

        return main

    k1, k2, k3 = fac(20), fac(20, scale=2), fac(20, dtype="float16", scale=3)
    assert k1 is k2 is fac(20) and k3 is not k1
    a = torch.randn(20, device="cuda")
    b = torch.empty_like(a)
    assert k1(a, b) in (None, [])
    torch.testing.assert_close(b, a * 2)
    ks = fac.par_compile([{"n": 20}, {"n": 24, "scale": 5}])
    assert len(ks) == 2
    with pytest.raises(Exception):
        k1(a)
    with pytest.raises(Exception):
        k1(a.half(), b)
    with pytest.raises(ValueError):
        k1(a, b, b)
    assert "B" in str(fac.get_tir(20).script()) if hasattr(fac.get_tir(20), "script") else True


def test_dynamic_tail_and_symbolic():
    m, n = T.dynamic("m, n")
    k_ = T.symbolic("k")

    @tilelang.jit(
        pass_configs={
            tilelang.PassConfigKey.TL_DISABLE_DYNAMIC_TAIL_SPLIT: True,
            tilelang.PassConfigKey.TL_DYNAMIC_ALIGNMENT: 8,
            "tl.disable_warp_specialized": True,
        }
    )
    def dyn():
        @T.prim_func
        def main(A: T.Tensor((m, k_), "bfloat16"), B: T.Tensor((n, k_), "bfloat16"), C: T.Tensor((m, n), "float32")):
            with T.Kernel(T.ceildiv(n, 32), T.ceildiv(m, 32), threads=128) as (bx, by):
                a = T.alloc_shared((32, 32), "bfloat16")
                b = T.alloc_shared((32, 32), "bfloat16")
                c = T.alloc_fragment((32, 32), "float32")
                T.clear(c)
                for ko in T.Pipelined(T.ceildiv(k_, 32), num_stages=0):
                    T.copy(A[by * 32, ko * 32], a)
                    T.copy(B[bx * 32, ko * 32], b)
                    T.gemm(a, b, c, transpose_B=True)
                T.copy(c, C[by * 32, bx * 32])

        return main

    k = dyn()
    for M, N, K in ((33, 65, 40), (1, 1, 1), (0, 5, 8)):
        a, b = torch.randn(M, K, device="cuda").bfloat16(), torch.randn(N, K, device="cuda").bfloat16()
        c = torch.empty(M, N, device="cuda")
        k(a, b, c)
        torch.testing.assert_close(c, a.float() @ b.float().T, rtol=1e-2, atol=1e-2)


def test_while_break_continue_shared_flags():
    @T.prim_func
    def main(A: T.Tensor((32,), "int32"), out: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=32) as _:
            tx = T.get_thread_binding()
            cnt = T.alloc_shared((1,), "int32")
            hist = T.alloc_shared([8], T.int32)
            if tx == 0:
                cnt[0] = 0
            T.fill(hist, 0)
            T.sync_threads()
            x = T.alloc_var("int32", A[tx])
            steps = T.alloc_var(T.int32, 0)
            while x != 1 and steps < 200:
                if x % 2 == 0:
                    x = x // 2
                    steps += 1
                    continue
                x = 3 * x + 1
                steps += 1
            T.atomic_max(cnt[0], steps)
            T.atomic_add(hist[steps & 7], 1, memory_order="relaxed")
            T.sync_threads()
            total = T.alloc_var(T.int32, 0)
            for i in T.serial(8):
                if hist[i] > 100:
                    break
                total += hist[i]
            if tx == 5:
                out[0] = cnt[0]
                out[1] = total
                out[2] = T.clz(T.uint32(cnt[0])) if True else 0
                out[3] = T.popcount(T.int32(255) & 0x5A)

    k = tilelang.compile(main)
    a = torch.arange(1, 33, dtype=torch.int32, device="cuda")
    o = torch.empty(4, dtype=torch.int32, device="cuda")
    k(a, o)

    def collatz(x):
        n = 0
        while x != 1:
            x, n = (x // 2 if x % 2 == 0 else 3 * x + 1), n + 1
        return n

    mx = max(collatz(i) for i in range(1, 33))
    assert o.tolist() == [mx, 32, 32 - mx.bit_length(), 4]


def test_consistency_and_supply():
    f = tl_matmul(32, 32, 32, "float16")
    k = tilelang.compile(f, out_idx=-1)
    p = k.get_profiler(tensor_supply_type=TensorSupplyType.Integer)
    p.assert_consistent(repeat=2)
    ins = p._get_inputs() if hasattr(p, "_get_inputs") else None
    assert ins is None or len(ins) == 2
    p.manual_assert_close(
        lambda A, B: A.float() @ B.float(),
        manual_check_prog=lambda x, y: torch_assert_close(
            x[0] if isinstance(x, (list, tuple)) else x, y[0] if isinstance(y, (list, tuple)) else y
        ),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs cuda")
@pytest.mark.skipif(torch.cuda.get_device_capability()[0] < 9, reason="hopper")
def test_skipif():
    assert torch.version.hip is None
    assert torch.cuda.get_device_properties(torch.device("cuda")).multi_processor_count == 132
    x = torch.zeros(3, 4, device=torch.cuda.current_device())
    assert x.device.type == "cuda" and str(x.device).startswith("cuda")
    assert x.to(device="cuda", dtype=torch.half).is_cuda
    assert torch.empty_like(x, device="cuda").device == x.device
    assert x.cpu().numpy().shape == (3, 4)
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.max_memory_allocated()
    assert torch.tensor([1, 2], device="cuda:0").cuda().tolist() == [1, 2]
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    with torch.device("cuda"):
        y = torch.ones(2)
    assert y.is_cuda
    assert torch.ones(2, device="cuda", requires_grad=True).device.index == 0
    l2 = torch.empty(int(1e4), dtype=torch.int, device="cuda")
    l2.zero_()
    e = torch.cuda.Event(enable_timing=True)
    e.record()
    e.synchronize()


def test_l2_flush_dtype_iters():
    for d in (torch.float8_e4m3fn, torch.float8_e5m2):
        assert T.dtype(d).bits == 8
    assert T.float16 in ("float16",) and "float16" == T.float16
    assert {T.float16: 2, "bfloat16": 3}[T.float16] == 2
    assert T.dtype("int8").bytes == 1
    assert T.int8.max if hasattr(T.int8, "max") else True


if __name__ == "__main__":
    tilelang.testing.main()
