"""Small eager kernels, and words of the language one by one."""

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch


@tilelang.jit
def tl_add_1d(A, B, BLOCK_N: int):
    N = T.const("N")
    dtype = T.float16
    A: T.Tensor((N,), dtype)
    B: T.Tensor((N,), dtype)
    C = T.empty((N,), dtype)
    with T.Kernel(N // BLOCK_N, threads=256) as bx:
        base_idx = bx * BLOCK_N
        for i in T.Parallel(BLOCK_N):
            C[base_idx + i] = A[base_idx + i] + B[base_idx + i]
    return C


@tilelang.jit
def tl_outer_mul_relu(A, B, BLOCK_N: int, BLOCK_M: int):
    N, M = T.const("N, M")
    dtype = T.float16
    A: T.Tensor((N,), dtype)
    B: T.Tensor((M,), dtype)
    C = T.empty((N, M), dtype)
    with T.Kernel(N // BLOCK_N, M // BLOCK_M, threads=256) as (bx, by):
        A_l = T.alloc_fragment(BLOCK_N, dtype)
        B_l = T.alloc_fragment((BLOCK_M,), dtype)
        T.copy(A[bx * BLOCK_N : (bx + 1) * BLOCK_N], A_l)
        T.copy(B[by * BLOCK_M], B_l)
        for i, j in T.Parallel(BLOCK_N, BLOCK_M):
            v = A_l[i] * B_l[j]
            C[bx * BLOCK_N + i, by * BLOCK_M + j] = T.if_then_else(v > 0, v, 0)
    return C


@tilelang.jit
def tl_softmax_online(A, BLOCK_M: int, BLOCK_N: int):
    M, N = T.const("M, N")
    A: T.Tensor((M, N), T.float32)
    B = T.empty((M, N), T.float32)
    with T.Kernel(T.ceildiv(M, BLOCK_M), threads=128) as pid:
        LOG2E = 1.44269504
        a = T.alloc_fragment((BLOCK_M, BLOCK_N), T.float32)
        cur_max = T.alloc_fragment((BLOCK_M,), T.float32)
        exp_a = T.alloc_fragment((BLOCK_M, BLOCK_N), T.float32)
        s = T.alloc_fragment((BLOCK_M,), T.float32)
        lse = T.alloc_fragment((BLOCK_M,), T.float32)
        T.fill(lse, -T.infinity(T.float32))
        for k in T.Serial(T.ceildiv(N, BLOCK_N)):
            T.copy(A[pid * BLOCK_M, k * BLOCK_N], a)
            T.reduce_max(a, cur_max, dim=1, clear=True)
            for i, j in T.Parallel(BLOCK_M, BLOCK_N):
                exp_a[i, j] = T.exp2(a[i, j] * LOG2E - cur_max[i] * LOG2E)
            T.reduce_sum(exp_a, s, dim=1)
            for i in T.Parallel(BLOCK_M):
                lse[i] = cur_max[i] * LOG2E + T.log2(T.exp2(lse[i] - cur_max[i] * LOG2E) + s[i])
        for k in T.Serial(T.ceildiv(N, BLOCK_N)):
            T.copy(A[pid * BLOCK_M, k * BLOCK_N], a)
            for i, j in T.Parallel(BLOCK_M, BLOCK_N):
                a[i, j] = T.exp2(a[i, j] * LOG2E - lse[i])
            T.copy(a, B[pid * BLOCK_M, k * BLOCK_N])
    return B


@tilelang.jit
def tl_conv1d(X, K, BLOCK_N: int, BLOCK_L: int):
    N, L, KL = T.const("N, L, KL")
    X: T.Tensor((N, L), T.float16)
    K: T.Tensor((KL,), T.float16)
    O = T.empty((N, L), T.float16)
    with T.Kernel(N // BLOCK_N, L // BLOCK_L, threads=256) as (bx, by):
        acc = T.alloc_fragment((BLOCK_N, BLOCK_L), T.float32)
        T.clear(acc)
        for kk in T.serial(KL):
            for i, j in T.Parallel(BLOCK_N, BLOCK_L):
                pos = by * BLOCK_L + j + kk
                if pos < L:
                    acc[i, j] += T.cast(X[bx * BLOCK_N + i, pos], "float32") * K[kk]
        T.copy(acc, O[bx * BLOCK_N, by * BLOCK_L])
    return O


@tilelang.jit
def tl_dequant_matmul(A, B, scales, BLOCK_M: int, BLOCK_N: int, BLOCK_K: int):
    M, N, K, KB, G = T.const("M, N, K, KB, G")
    A: T.Tensor((M, K), T.float16)
    B: T.Tensor((N, KB), T.uint8)
    scales: T.Tensor((N, G), T.float16)
    C = T.empty((M, N), T.float16)
    group = K // G
    with T.Kernel(T.ceildiv(N, BLOCK_N), T.ceildiv(M, BLOCK_M), threads=128) as (bx, by):
        A_s = T.alloc_shared((BLOCK_M, BLOCK_K), T.float16)
        B_s = T.alloc_shared((BLOCK_N, BLOCK_K // 2), T.uint8)
        B_l = T.alloc_fragment((BLOCK_N, BLOCK_K // 2), T.uint8)
        Bd = T.alloc_fragment((BLOCK_N, BLOCK_K), T.float16)
        Bds = T.alloc_shared((BLOCK_N, BLOCK_K), T.float16)
        C_l = T.alloc_fragment((BLOCK_M, BLOCK_N), T.float32)
        T.clear(C_l)
        for ko in T.Pipelined(K // BLOCK_K, num_stages=2):
            T.copy(A[by * BLOCK_M, ko * BLOCK_K], A_s)
            T.copy(B[bx * BLOCK_N, ko * BLOCK_K // 2], B_s)
            T.copy(B_s, B_l)
            for i, j in T.Parallel(BLOCK_N, BLOCK_K):
                q = (B_l[i, j // 2] >> ((j % 2) * 4)) & 0xF
                Bd[i, j] = (q.astype("float16") - 8) * scales[bx * BLOCK_N + i, (ko * BLOCK_K + j) // group]
            T.copy(Bd, Bds)
            T.gemm(A_s, Bds, C_l, transpose_B=True)
        T.copy(C_l, C[by * BLOCK_M, bx * BLOCK_N])
    return C


def test_puzzles():
    torch.manual_seed(0)
    a, b = torch.randn(1024, dtype=torch.half, device="cuda"), torch.randn(1024, dtype=torch.half, device="cuda")
    torch.testing.assert_close(tl_add_1d(a, b, BLOCK_N=256), a + b)
    torch.testing.assert_close(
        tl_outer_mul_relu(a[:128].contiguous(), b[:64].contiguous(), 32, 64), torch.relu(a[:128, None] * b[None, :64])
    )
    x = torch.randn(32, 256, device="cuda")
    torch.testing.assert_close(tl_softmax_online(x, 16, 64), torch.softmax(x, -1), rtol=1e-4, atol=1e-6)
    x = torch.randn(16, 64, dtype=torch.half, device="cuda")
    k = torch.randn(5, dtype=torch.half, device="cuda")
    ref = torch.nn.functional.conv1d(torch.nn.functional.pad(x.float(), (0, 4))[:, None], k.float()[None, None])[:, 0]
    torch.testing.assert_close(tl_conv1d(x, k, 8, 32).float(), ref, rtol=1e-2, atol=1e-2)
    A = torch.randn(32, 128, dtype=torch.half, device="cuda")
    q = torch.randint(0, 16, (48, 128), dtype=torch.uint8, device="cuda")
    B = q[:, 0::2] | (q[:, 1::2] << 4)
    s = torch.rand(48, 4, dtype=torch.half, device="cuda")
    ref = A.float() @ ((q.float() - 8) * s.float().repeat_interleave(32, 1)).T
    torch.testing.assert_close(tl_dequant_matmul(A, B, s, 16, 16, 64).float(), ref, rtol=2e-2, atol=0.2)
    tl_dequant_matmul.compile(A, B, s, 16, 16, 64).get_kernel_source()


def test_ptr_args():
    def matmul_ptr(dtype, block):
        @T.prim_func
        def main(a_ptr: T.ptr, c_ptr: T.ptr, m: T.int32, n: T.int32):
            A = T.make_tensor(a_ptr, (m, n), dtype)
            C = T.make_tensor(c_ptr, (m, n), dtype)
            with T.Kernel(T.ceildiv(n, block), m, threads=block) as (bx, by):
                for i in T.Parallel(block):
                    if bx * block + i < n:
                        C[by, bx * block + i] = A[by, bx * block + i] * 2

        return main

    kern = tilelang.compile(matmul_ptr("float32", 32), execution_backend="cython")
    a = torch.randn(5, 70, device="cuda")
    c = torch.zeros_like(a)
    kern(a, c, 5, 70)
    torch.testing.assert_close(c, a * 2)
    c.zero_()
    kern(a.data_ptr(), c.data_ptr(), 5, 70)
    torch.testing.assert_close(c, a * 2)


def test_var_init_while_swap():
    @T.prim_func
    def main(A: T.Tensor((8,), T.int32), n: T.int32):
        with T.Kernel(1, threads=1) as _:
            a = T.alloc_var(T.int32, 0)
            b = T.alloc_var(T.int32, init=1)
            i = T.alloc_var("int32")
            i = 0
            while i < 8:
                A[i] = a
                a, b = b, a + b
                i += 1
            for j in range(0, 8, 3):
                if j == 6 and n > 0:
                    A[j], A[j + 1] = A[j + 1], A[j]
                elif not (n > 0):
                    A[j] = -1

    k = tilelang.compile(main)
    A = torch.empty(8, dtype=torch.int32, device="cuda")
    k(A, 1)
    assert A.tolist() == [0, 1, 1, 2, 3, 5, 13, 8]


def test_macro_stuff():
    @T.macro
    def add_one(x: T.Ref):
        x += 1

    @T.macro
    def pair(x, y):
        return x + y, x - y

    @T.macro
    def for_each(buf, f):
        for i in T.serial(buf.shape[0]):
            buf[i] = f(buf[i])

    @T.prim_func
    def main(A: T.Tensor((4,), T.float32), B: T.Tensor((4,), "float32")):
        with T.Kernel(1, threads=32):
            v = T.alloc_var(T.float32, 3)
            add_one(v)
            p, m = pair(v, 1.5)
            loc = T.alloc_local([4], T.float32)
            for i in T.unroll(4):
                loc[i] = A[i]
            for_each(loc, lambda x: x * 2)
            add_one(loc[2])
            for i in T.vectorized(4):
                B[i] = loc[i] + p + m

    k = tilelang.compile(main, out_idx=1)
    a = torch.randn(4, device="cuda")
    ref = a * 2 + 8
    ref[2] += 1
    torch.testing.assert_close(k(a), ref)


def test_ternary_chain_equal_negative():
    @T.prim_func
    def main(A: T.Tensor((16,), T.int32), B: T.Tensor((16,), T.int32), C: T.Tensor((16,), T.int32)):
        with T.Kernel(T.ceildiv(16, 8), threads=8) as bx:
            tx = T.get_thread_binding()
            i = bx * 8 + tx
            A[i] = B[i] = C[i] = i * (1 if bx == 0 else 2)
            if tx == 0:
                A[-1] = -5

    k = tilelang.compile(main)
    a, b, c = (torch.zeros(16, dtype=torch.int32, device="cuda") for _ in range(3))
    k(a, b, c)
    ref = [i if i < 8 else 2 * i for i in range(16)]
    assert b.tolist() == c.tolist() == ref and a[:15].tolist() == ref[:15]


@pytest.mark.parametrize("op,ref", [("reduce_sum", torch.sum), ("reduce_max", torch.amax), ("reduce_min", torch.amin)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "int32"])
def test_reduce(op, ref, dtype):
    @tilelang.jit(out_idx=-1)
    def made(M, N):
        @T.prim_func
        def main(A: T.Tensor((M, N), dtype), B: T.Tensor((M,), dtype)):
            with T.Kernel(1) as _:
                A_local = T.alloc_fragment((M, N), dtype)
                B_local = T.alloc_fragment((M,), dtype)
                T.copy(A, A_local)
                getattr(T, op)(A_local, B_local, dim=1)
                T.copy(B_local, B)

        return main

    a = torch.randint(-5, 5, (33, 40), device="cuda").to(T.dtype(dtype).as_torch())
    torch.testing.assert_close(made(33, 40)(a), ref(a, 1).to(a.dtype))


def test_dtype_api():
    assert T.float32 == "float32" and T.dtype(torch.float16) == T.float16
    assert T.float16.bits == 16 and T.dtype("float8_e4m3fn").as_torch() == torch.float8_e4m3fn
    assert T.float32.as_torch() is torch.float32
    assert str(T.int32) == "int32"
    assert hash(T.float32) == hash(T.dtype("float32"))
    assert {"float32": 1}.get(str(T.float32)) == 1
    assert T.dtype("float32x4").lanes == 4


def test_print_everything(capfd):
    @T.prim_func
    def main(A: T.Tensor((4,), T.float32)):
        with T.Kernel(1, threads=4):
            s = T.alloc_shared((4,), T.float32)
            f = T.alloc_fragment((4,), T.float32)
            T.copy(A, s)
            T.copy(s, f)
            T.print(s)
            T.print(f, msg="frag")
            T.print(A[1])
            v = T.alloc_var("int32", 7)
            T.print(v, "v")
            print(A[2])
            if T.get_thread_binding() == 0:
                T.print(s[3] + 1, msg=f"thread zero {1 + 1}")

    k = tilelang.compile(main)
    k(torch.arange(4, dtype=torch.float32, device="cuda"))
    lines = sorted(capfd.readouterr().out.splitlines())
    assert lines.count("1.0") >= 1 and any(line.startswith("frag [0. 1. 2. 3.]") for line in lines)
    assert "2.0" in lines and "thread zero 2 4.0" in lines and sum(line == "v 7" for line in lines) >= 1


if __name__ == "__main__":
    tilelang.testing.main()
