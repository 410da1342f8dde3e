"""One program, the spellings of many versions: decorators, modules, hints, loops, vectors, lists of kernels."""

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.jit.kernel import JITKernel
from tilelang.layout.swizzle import make_swizzled_layout as msl
from tilelang.profiler.bench import do_bench
from tilelang.transform import PassConfigKey


def test_lazy_jit():
    @tilelang.lazy_jit(out_idx=[-1])
    def f(n, dtype=T.float32):
        @T.prim_func
        def main(A: T.Tensor((n,), dtype), B: T.Tensor((n,), dtype)):
            with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
                for i in T.Parallel(32):
                    B[bx * 32 + i] = A[bx * 32 + i] + 1

        return main

    a = torch.randn(40, device="cuda")
    assert torch.equal(f(40)(a), a + 1)


@pytest.mark.parametrize("mode", ["auto", "lazy"])
def test_mode(mode):
    @tilelang.jit(out_idx=-1, mode=mode)
    def f(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
            with T.Kernel(1, threads=32):
                T.copy(A, B)

        return main

    a = torch.randn(40, device="cuda")
    assert torch.equal(f(40)(a), a)


@pytest.mark.parametrize("mode", ["auto", "eager"])
def test_eager_modes(mode):
    @tilelang.jit(mode=mode, target="cuda", verbose=True)
    def gemm(A, B, out_dtype: T.dtype = T.float32, block_M: int = 32, block_N: int = 32, block_K: int = 32):
        M, N, K = T.const("M N K")
        A: T.Tensor[[M, K], T.float16]
        B: T.Tensor[[K, N], T.float16]
        C = T.empty((M, N), out_dtype)
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            a = T.alloc_shared((block_M, block_K), A.dtype)
            b = T.alloc_shared((block_K, block_N), B.dtype)
            c = T.alloc_fragment((block_M, block_N), out_dtype)
            T.clear(c)
            for k in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                T.copy(A[by * block_M, k * block_K], a)
                T.copy(B[k * block_K, bx * block_N], b)
                T.gemm(a, b, c)
            T.copy(c, C[by * block_M, bx * block_N])
        return C

    a, b = torch.randn(50, 40, device="cuda").half(), torch.randn(40, 70, device="cuda").half()
    torch.testing.assert_close(gemm(a, b), a.float() @ b.float(), rtol=1e-3, atol=1e-3)
    assert gemm(a, b, out_dtype=T.float16).dtype == torch.float16
    assert gemm.compile(M=50, N=70, K=40).get_kernel_source() == gemm.get_kernel_source(a, b) != ""


def test_dynamic_eager():
    @tilelang.jit
    def add(A, B, C):
        M = T.dynamic("M")
        N = T.const("N")
        A: T.Tensor[(M, N), T.float32]
        B: T.Tensor[(M, N), T.float32]
        C: T.Tensor[(M, N), T.float32]
        with T.Kernel(M, threads=32) as b:
            for j in T.Parallel(N):
                C[b, j] = A[b, j] + B[b, j]

    for m in (3, 9):
        a, b = torch.randn(m, 40, device="cuda"), torch.randn(m, 40, device="cuda")
        c = torch.empty_like(a)
        add(a, b, c)
        assert torch.equal(c, a + b)


def test_old_hints():
    @T.prim_func
    def main(A: T.Buffer((64, 64), "float16"), B: T.Buffer((64, 64), "float16"), C: T.Buffer((64, 64), "float16")):
        with T.Kernel(2, 2, threads=128, is_cpu=False) as (bx, by):
            a = T.alloc_shared((32, 64), "float16", "shared.dyn")
            b = T.alloc_shared((64, 32), "float16", scope="shared")
            c = T.alloc_fragment((32, 32), "float", scope="local.fragment")
            v = T.alloc_var("int32", "local.var")
            v = 1
            T.annotate_layout({a: msl(a), b: msl(b)})
            T.clear(c)
            if v > 1:
                T.fill(c, 1)
            T.use_swizzle(8, order="row", enable=True)
            T.clear(c)
            T.copy(A[by * 32, 0], a, coalesced_width=8)
            T.copy(B[0, bx * 32], b)
            T.gemm(a, b, c, False, False, policy=T.GemmWarpPolicy.FullRow, wg_wait=0, clear_accum=False)
            T.copy(c, C[by * 32, bx * 32])

    for kw in (
        dict(out_idx=[2], target="cuda", execution_backend="ctypes"),
        dict(
            out_idx=-1,
            target="auto",
            execution_backend="dlpack",
            verbose=False,
            pass_configs={PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True, "tl.disable_tma_lower": True},
        ),
        dict(out_idx=[-1], target="cuda -arch=sm_90a", execution_backend="torch"),
    ):
        k = tilelang.compile(main, **kw)
        a, b = torch.randn(64, 64, device="cuda").half(), torch.randn(64, 64, device="cuda").half()
        torch.testing.assert_close(k(a, b), a @ b, rtol=1e-2, atol=1e-1)
    assert isinstance(k, JITKernel)
    assert do_bench(lambda: k(a, b), warmup=1, rep=1) > 0
    assert k.get_kernel_source() and k.get_host_source() is not None


def test_device_functions():
    """macros in classes, nested macros, closures, loops over python lists, dict configs"""
    cfg = {"bm": 16, "ops": ["relu", "scale"], "alpha": 0.5}

    @T.macro
    def relu(x):
        return T.max(x, 0)

    @T.macro
    def epilogue(buf, m, n):
        for op in cfg["ops"]:
            for i, j in T.Parallel(m, n):
                if op == "relu":
                    buf[i, j] = relu(buf[i, j])
                else:
                    buf[i, j] *= cfg["alpha"]

    @tilelang.jit(out_idx=[1])
    def f(M, N):
        bm = cfg["bm"]

        @T.prim_func
        def main(A: T.Tensor((M, N), "float32"), B: T.Tensor((M, N), "float32")):
            with T.Kernel(T.ceildiv(M, bm)) as b:
                x = T.alloc_fragment((bm, N), "float32")
                T.copy(A[b * bm, 0], x)
                epilogue(x, bm, N)
                T.copy(x, B[b * bm, 0])

        return main

    a = torch.randn(30, 20, device="cuda")
    assert torch.equal(f(30, 20)(a), a.relu() * 0.5)


def test_conditions_and_ternaries():
    @T.prim_func
    def main(A: T.Tensor((64,), "int32"), B: T.Tensor((64,), "int32"), n: T.int32):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64):
                if T.any(i < 5, i > 60) or T.all(i > 10, i < 20, A[i] % 2 == 0):
                    B[i] = 1
                elif i == n or not (A[i] > 20):
                    B[i] = 2
                else:
                    B[i] = 3 if i % 2 == 0 else (4 if A[i] & 4 else 5)

    a = torch.randint(0, 40, (64,), dtype=torch.int32, device="cuda")
    b = torch.empty_like(a)
    tilelang.compile(main)(a, b, 33)
    want = []
    for i, x in enumerate(a.tolist()):
        if i < 5 or i > 60 or (10 < i < 20 and x % 2 == 0):
            want.append(1)
        elif i == 33 or not x > 20:
            want.append(2)
        else:
            want.append(3 if i % 2 == 0 else (4 if x & 4 else 5))
    assert b.tolist() == want


def test_vector_types():
    @T.prim_func
    def main(
        A: T.Tensor((64,), "float32"),
        B: T.Tensor((64,), "bfloat16"),
        C: T.Tensor((16,), "uint32"),
        D: T.Tensor((64,), T.float8_e4m3fn),
    ):
        with T.Kernel(1, threads=16):
            tx = T.get_thread_binding()
            v = T.alloc_local((4,), "float32")
            for k in T.vectorized(4):
                v[k] = A[tx * 4 + k]
            lo = T.bfloat16x2(T.bfloat16(v[0]), T.bfloat16(v[1]))
            C[tx] = T.reinterpret(lo, "uint32")
            for k in T.vectorized(4):
                B[tx * 4 + k] = T.cast(v[k], "bfloat16")
                D[tx * 4 + k] = v[k]

    a = torch.randn(64, device="cuda")
    b = torch.empty(64, dtype=torch.bfloat16, device="cuda")
    c = torch.empty(16, dtype=torch.uint32, device="cuda")
    d = torch.empty(64, dtype=torch.float8_e4m3fn, device="cuda")
    tilelang.compile(main)(a, b, c, d)
    assert torch.equal(b, a.bfloat16()) and torch.equal(d.float(), a.to(torch.float8_e4m3fn).float())
    assert torch.equal(c.view(torch.int32), b.view(torch.int32)[::2])


def test_slices_are_vectors():
    @T.prim_func
    def main(A: T.Tensor((16, 16), "float32"), B: T.Tensor((16, 8), "float16")):
        with T.Kernel(1, threads=16):
            tx = T.get_thread_binding()
            b = A[tx, 0:4]
            A[tx, 4:8] = b
            A[tx, 8:16] = 3.0
            for i in T.Parallel(16):
                B[i, 0:4] = A[i, 4:8]
                B[i, 4:8] = T.float16x4(0.5)

    a = torch.randn(16, 16, device="cuda")
    want, b = a.clone(), torch.empty(16, 8, dtype=torch.float16, device="cuda")
    tilelang.compile(main)(a, b)
    assert torch.equal(a[:, :8], want[:, :4].repeat(1, 2)) and (a[:, 8:] == 3).all()
    assert torch.equal(b[:, :4], want[:, :4].half()) and (b[:, 4:] == 0.5).all()


def test_ragged_loops_and_vars():
    @T.prim_func
    def main(
        L: T.Tensor((8,), "int32"),
        A: T.Tensor((8, 50), "float32"),
        S: T.Tensor((8,), "float32"),
        M: T.Tensor((8,), "int32"),
    ):
        with T.Kernel(8, threads=32) as b:
            n = L[b]
            acc = T.alloc_fragment((1,), "float32")
            best = T.alloc_var("float32")
            at = T.alloc_var("int32")
            T.clear(acc)
            best = -T.infinity("float32")
            at = -1
            for i in T.serial(n):
                acc[0] += A[b, i]
                if A[b, i] > best:
                    best = A[b, i]
                    at = i
            for k in range(n, 50):
                if A[b, k] < -100.0:
                    break
                acc[0] -= 0.0
            S[b] = acc[0]
            M[b] = at

    l = torch.tensor([0, 1, 50, 7, 33, 2, 49, 16], dtype=torch.int32, device="cuda")
    a = torch.randn(8, 50, device="cuda")
    s = torch.empty(8, device="cuda")
    m = torch.empty(8, dtype=torch.int32, device="cuda")
    tilelang.compile(main)(l, a, s, m)
    for b in range(8):
        assert abs(s[b] - a[b, : l[b]].sum()) < 1e-4 and m[b] == (a[b, : l[b]].argmax() if l[b] else -1)


def test_errors_are_clear():
    with pytest.raises(Exception, match="create_tma_descriptor"):

        @T.prim_func
        def main(A: T.Tensor((64, 64), "float16")):
            with T.Kernel(1, threads=128):
                s = T.alloc_shared((64, 64), "float16")
                d = T.create_tma_descriptor(6, 2, A.data, 64, 64, 2, 128, 64, 64, 1, 1, 0, 2, 2, 0)
                T.tma_load(d, 0, s.data, 0, 0)

    with pytest.raises(Exception, match="my_device_function"):

        @T.prim_func
        def main2(A: T.Tensor((64,), "float16")):
            with T.Kernel(1, threads=128):
                T.call_extern(
                    "handle", "my_device_function", T.access_ptr(A, "r"), A.access_ptr("w"), T.address_of(A[3])
                )


def test_multi_kernels_and_outputs():
    @tilelang.jit(out_idx=[1, 2])
    def f(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32"), C: T.Tensor((1,), "float32")):
            with T.Kernel(T.ceildiv(n, 64), threads=64) as b:
                for i in T.Parallel(64):
                    B[b * 64 + i] = A[b * 64 + i] * A[b * 64 + i]
            with T.Kernel(1, threads=64):
                s = T.alloc_fragment((n,), "float32")
                r = T.alloc_fragment((1,), "float32")
                T.copy(B, s)
                T.reduce_sum(s, r)
                T.copy(r, C)

        return main

    a = torch.randn(100, device="cuda")
    b, c = f(100)(a)
    assert torch.equal(b, a * a)
    torch.testing.assert_close(c[0], (a * a).sum())


def test_par_compile_and_source():
    @tilelang.jit(out_idx=[-1])
    def f(n, k=1):
        @T.prim_func
        def main(A: T.Tensor((n,), "int32"), B: T.Tensor((n,), "int32")):
            with T.Kernel(1, threads=32):
                for i in T.Parallel(n):
                    B[i] = A[i] * k

        return main

    ks = f.par_compile([(8,), (8, 2), {"n": 8, "k": 3}])
    a = torch.arange(8, dtype=torch.int32, device="cuda")
    assert [k(a)[7].item() for k in ks] == [7, 14, 21]
    funcs = [f.get_tir(8, 5), f.get_tir(8, 6)]
    ks = tilelang.par_compile(funcs, out_idx=[-1], num_workers=2)
    assert [k(a)[1].item() for k in ks] == [5, 6]


if __name__ == "__main__":
    tilelang.testing.main()
