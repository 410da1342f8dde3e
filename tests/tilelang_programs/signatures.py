"""Signatures of several versions: keywords by their published names, older positions, casts, packed integers, votes."""

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch


def run(f, *a, **k):
    return tilelang.compile(f, **k)(*a)


def test_keywords():
    @T.prim_func
    def main(
        A: T.Tensor(shape=(8, 16), dtype="float16"), B: T.Tensor((8, 16), "float16"), C: T.Tensor((8,), "float32")
    ):
        with T.Kernel(1, 1, threads=128, is_cpu=False) as (bx, by):
            s = T.alloc_shared(shape=(8, 16), dtype="float16", scope="shared.dyn")
            f = T.alloc_fragment(shape=(8, 16), dtype=T.float32, scope="local.fragment")
            r = T.alloc_fragment([8], "float32")
            g = T.alloc_fragment([8, 8], "float32")
            T.clear(g)
            T.annotate_safe_value(safe_value_map={A: 0})
            T.annotate_layout(layout_map={s: tilelang.layout.make_swizzled_layout(s)})
            T.fill(buffer=s, value=0)
            T.clear(buffer=f)
            T.copy(src=A, dst=s, eviction_policy="evict_first")
            T.gemm(A=s, B=s, C=g, transpose_B=True, k_pack=2, wg_wait=0)
            T.copy(s, f)
            T.reduce_sum(buffer=f, out=r, dim=1, clear=True)
            for i, j in T.Parallel(8, 16, coalesced_width=2):
                f[i, j] = T.clamp(dst=f[i, j], min_val=-1.0, max_val=1.0)
            T.copy(f, B)
            T.copy(r, C)

    a = torch.randn(8, 16, device="cuda").half()
    b, c = run(main, a, out_idx=[1, 2])
    torch.testing.assert_close(b, a.clamp(-1, 1))
    torch.testing.assert_close(c, a.float().sum(1), rtol=1e-4, atol=1e-4)


def test_old_vars_and_barriers():
    @T.prim_func
    def main(A: T.Tensor((64,), "int32"), B: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding()
            flag = T.alloc_var("bool", "local.var")
            n = T.alloc_var("int32", scope="local.var")
            m = T.alloc_var(T.int32, 5, "local.var")
            b = T.alloc_var("bool", init=False)
            s = T.alloc_shared((64,), "int32")
            flag = True
            n = 3
            s[tx] = A[tx]
            T.sync_threads(barrier_id=1, arrive_count=64)
            if flag and not b:
                m += n
            B[tx] = s[63 - tx] * m

    a = torch.arange(64, dtype=torch.int32, device="cuda")
    assert torch.equal(run(main, a, out_idx=-1), a.flip(0) * 8)


def test_eager_variants():
    @tilelang.jit
    def scale(A: T.Tensor, s: float, out_dtype=T.float32, *, block=16):
        M, N = T.const("M, N")
        A: T.Tensor((M, N), T.float16)
        B = T.empty((M, N), out_dtype)
        C = T.empty(M, dtype="float32")
        with T.Kernel(T.ceildiv(M, block), threads=32) as b:
            x = T.alloc_fragment((block, N), "float32")
            y = T.alloc_fragment((block,), "float32")
            T.copy(A[b * block, 0], x)
            for i, j in T.Parallel(block, N):
                x[i, j] *= s
            T.reduce_sum(x, y, dim=1)
            T.copy(x, B[b * block, 0])
            T.copy(y, C[b * block])
        return B, C

    a = torch.randn(20, 24, device="cuda").half()
    b, c = scale(a, 2.0)
    torch.testing.assert_close(b, a.float() * 2)
    torch.testing.assert_close(c, a.float().sum(1) * 2, rtol=1e-4, atol=1e-4)
    b, c = scale(a, 0.5, "float16", block=4)
    assert b.dtype == torch.float16
    k = scale.compile(M=20, N=24, s=2.0)
    assert torch.equal(k(a)[0], a.float() * 2)

    @tilelang.jit
    def dyn(X, Y, flag: bool = False):
        n = T.dynamic("n")
        X: T.Tensor[(n,), T.float32]
        Y: T.Tensor[(n,), T.float32]
        with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
            for i in T.Parallel(32):
                if flag:
                    Y[b * 32 + i] = X[b * 32 + i] + 1
                else:
                    Y[b * 32 + i] = X[b * 32 + i] - 1

    for n in (5, 64):
        x, y = torch.randn(n, device="cuda"), torch.empty(n, device="cuda")
        dyn(x, y)
        torch.testing.assert_close(y, x - 1)
        dyn(x, y, flag=True)
        torch.testing.assert_close(y, x + 1)


def test_atomics_vec():
    @T.prim_func
    def main(
        A: T.Tensor((4, 32, 32), "float32"),
        C: T.Tensor((32, 32), "float32"),
        D: T.Tensor((32, 32), "bfloat16"),
        L: T.Tensor((1,), "int32"),
    ):
        with T.Kernel(4, threads=128) as b:
            s = T.alloc_shared((32, 32), "float32")
            sb = T.alloc_shared((32, 32), "bfloat16")
            T.copy(A[b, 0, 0], s)
            T.copy(A[b, 0, 0], sb)
            for i, j in T.Parallel(32, 16):
                T.atomic_addx2(C[i, j * 2], s[i, j * 2])
                T.atomic_addx2(D[i, j * 2], sb[i, j * 2])
            if T.get_thread_binding() == 0:
                old = T.atomic_add(L[0], 1, return_prev=True)
                T.device_assert(old < 4, "count")

    a = torch.randint(-3, 3, (4, 32, 32), device="cuda").float()
    c, d, count = (
        torch.zeros(32, 32, device="cuda"),
        torch.zeros(32, 32, device="cuda", dtype=torch.bfloat16),
        torch.zeros(1, dtype=torch.int32, device="cuda"),
    )
    tilelang.compile(main)(a, c, d, count)
    assert torch.equal(c, a.sum(0)) and torch.equal(d.float(), a.sum(0)) and count.item() == 4


def test_int4_and_packed():
    @tilelang.jit(out_idx=[2])
    def mm(M, N, K):
        @T.prim_func
        def main(A: T.Tensor((M, K), "int4"), B: T.Tensor((N, K), "int4"), C: T.Tensor((M, N), "int32")):
            with T.Kernel(T.ceildiv(N, 32), T.ceildiv(M, 32), threads=64) as (bx, by):
                a, b = T.alloc_shared((32, 64), "int4"), T.alloc_shared((32, 64), "int4")
                c = T.alloc_fragment((32, 32), "int32")
                T.clear(c)
                for k in T.Pipelined(K // 64, num_stages=2):
                    T.copy(A[by * 32, k * 64], a)
                    T.copy(B[bx * 32, k * 64], b)
                    T.gemm(a, b, c, transpose_B=True)
                T.copy(c, C[by * 32, bx * 32])

        return main

    a = torch.randint(-8, 8, (32, 128), dtype=torch.int8, device="cuda")
    b = torch.randint(-8, 8, (64, 128), dtype=torch.int8, device="cuda")

    def pack(x):
        return (x[:, 0::2] & 15) | (x[:, 1::2] << 4)

    assert torch.equal(mm(32, 64, 128)(pack(a), pack(b)), (a.int() @ b.int().T))


def test_shared_memory_bits():
    @T.prim_func
    def main(A: T.Tensor((64,), "uint32"), B: T.Tensor((8, 64), "int32")):
        with T.Kernel(1, threads=64):
            tx = T.get_thread_binding(0)
            v = A[tx]
            B[0, tx] = T.popcount(v)
            B[1, tx] = T.clz(v)
            B[2, tx] = T.cast((v >> 3) ^ (v << 5), "int32")
            B[3, tx] = T.ballot_sync(T.uint32(0xFFFFFFFF), (v & 1) == 1) & 0x7FFFFFFF
            B[4, tx] = T.any_sync(0xFFFFFFFF, v > 5) + 2 * T.all_sync(0xFFFFFFFF, v >= 0)
            B[5, tx] = T.get_lane_idx() + 100 * T.get_warp_idx() + 1000 * T.get_warp_group_idx()
            B[6, tx] = T.syncthreads_count(v > 100)
            B[7, tx] = T.shfl_down(T.cast(v, "int32"), 1)

    a = torch.randint(0, 200, (64,), device="cuda").to(torch.uint32)
    b = run(main, a, out_idx=-1)
    v = a.to(torch.int64)
    assert b[0].tolist() == [bin(x).count("1") for x in v.tolist()]
    assert b[1].tolist() == [32 - x.bit_length() for x in v.tolist()]
    assert (b[6] == (v > 100).sum()).all()


def test_shapes_strides_and_scalars():
    n = T.dynamic("n")
    st = T.dynamic("st", "int64")

    @T.prim_func
    def main(
        X: T.StridedTensor((n, 8), (st, 1), "float32"),
        Y: T.Tensor((n, 8), "float32"),
        a: T.float32,
        b: T.int64,
        c: T.float16,
        d: T.bool,
        e: T.uint8,
    ):
        with T.Kernel(n, threads=8) as i:
            tx = T.get_thread_binding()
            Y[i, tx] = X[i, tx] * a + T.cast(b, "float32") + c + T.if_then_else(d, 1, 0) + e

    x = torch.randn(5, 20, device="cuda")[:, 3:11]
    y = torch.empty(5, 8, device="cuda")
    tilelang.compile(main)(x, y, 2, 3, 0.5, True, 7)
    torch.testing.assert_close(y, x * 2 + 3 + 0.5 + 1 + 7)


def test_cast_matrix():
    dts = [
        "float32",
        "float16",
        "bfloat16",
        "float8_e4m3fn",
        "float8_e5m2",
        "int8",
        "uint8",
        "int32",
        "int64",
        "float64",
        "bool",
    ]

    @tilelang.jit(out_idx=[1])
    def mk(a, b):
        @T.prim_func
        def main(X: T.Tensor((16,), a), Y: T.Tensor((16,), b)):
            with T.Kernel(1, threads=16):
                f = T.alloc_fragment((16,), a)
                g = T.alloc_fragment((16,), b)
                T.copy(X, f)
                for i in T.Parallel(16):
                    g[i] = T.cast(f[i], b)
                T.copy(g, Y)

        return main

    for a in dts[::2]:
        for b in dts[1::3]:
            x = torch.randint(0, 2, (16,), device="cuda").to(T.dtype(a).as_torch())
            y = mk(a, b)(x)
            assert torch.equal(y.float(), x.float()), (a, b)


class TestClassBased:
    @tilelang.testing.requires_cuda
    @tilelang.testing.requires_llvm
    def test_in_class(self):
        @tilelang.jit(out_idx=[-1])
        def f(n):
            @T.prim_func
            def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
                with T.Kernel(1, threads=n):
                    for i in T.thread_binding(n, thread="threadIdx.x"):
                        B[i] = A[i]

            return main

        k = f(8)
        k.assert_allclose(lambda x: x)
        k.assert_consistent(repeat=2)


@tilelang.testing.requires_package("torch")
@tilelang.testing.requires_cuda_compute_version(9, 0)
@pytest.mark.parametrize("m", [tilelang.cdiv(5, 2)])
def test_marks(m):
    assert m == 3


@tilelang.testing.requires_cuda_compute_version_lt(9)
def test_skipped():
    raise AssertionError


if __name__ == "__main__":
    tilelang.testing.main()
