"""Idioms of public programs: hints of every kind, views, macros, strides, loops with exits, tables on the host."""

import itertools
import math

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.intrinsics import make_mma_swizzle_layout
from tilelang.layout import make_swizzled_layout
from tvm import DataType, tir


def test_gemm_with_every_hint():
    @tilelang.jit(
        out_idx=[-1],
        pass_configs={
            tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True,
            tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
            "tl.enable_fast_math": True,
        },
    )
    def matmul(M, N, K, block_M, block_N, block_K, dtype="float16", accum_dtype="float"):
        micro = DataType(dtype).bits

        @T.prim_func
        def main(
            A: T.Tensor((K, M), dtype),
            B: T.Tensor((N, K), dtype),
            C: T.Tensor((M, N), dtype),
        ):
            with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
                A_shared = T.alloc_shared((block_K, block_M), dtype, scope="shared")
                B_shared = T.alloc_shared((block_N, block_K), dtype)
                C_shared = T.alloc_shared((block_M, block_N), dtype)
                C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
                T.annotate_layout(
                    {
                        A_shared: make_swizzled_layout(A_shared),
                        B_shared: make_mma_swizzle_layout(B_shared),
                        C_shared: tilelang.layout.make_swizzled_layout(C_shared),
                    }
                )
                T.disable_warp_group_reg_alloc()
                T.use_swizzle(panel_size=10, order="row", enable=micro == 16)
                for ko in T.Pipelined(
                    T.ceildiv(K, block_K),
                    num_stages=3,
                    order=[-1, 0, 1],
                    stage=[-1, 0, 1],
                    group=[[0], [1], [2]],
                    sync=[[0, 0]],
                ):
                    T.copy(A[ko * block_K, by * block_M], A_shared, coalesced_width=8)
                    T.copy(B[bx * block_N, ko * block_K], B_shared, disable_tma=True, eviction_policy="evict_first")
                    T.gemm(
                        A_shared,
                        B_shared,
                        C_local,
                        transpose_A=True,
                        transpose_B=True,
                        k_pack=1,
                        policy=T.GemmWarpPolicy.FullRow,
                        clear_accum=ko == 0,
                    )
                T.copy(C_local, C_shared)
                T.copy(C_shared, C[by * block_M : (by + 1) * block_M, bx * block_N : (bx + 1) * block_N])

        return main

    a = torch.randn(70, 100, device="cuda").half()
    b = torch.randn(90, 70, device="cuda").half()
    kernel = matmul(100, 90, 70, 64, 32, 32)
    torch.testing.assert_close(kernel(a, b), (a.float().T @ b.float().T).half(), rtol=2e-3, atol=2e-3)
    assert isinstance(kernel.get_kernel_source(), str)


def test_reductions_into_old_values_and_casts():
    @tilelang.jit(out_idx=-1)
    def made(M, N, BN):
        @T.prim_func
        def main(X: T.Tensor((M, N), T.bfloat16), O: T.Tensor((3, M), T.float32)):
            with T.Kernel(1, threads=64) as _:
                x = T.alloc_fragment((M, BN), T.bfloat16)
                xf = T.alloc_fragment((M, BN), T.float32)
                s = T.alloc_fragment([M], T.float32)
                m = T.alloc_fragment([M, 1], T.float32)
                a = T.alloc_fragment((M,), T.float32)
                T.clear(s)
                T.fill(m, T.min_value(T.float32))
                T.fill(a, 0)
                for k in range(T.ceildiv(N, BN)):
                    T.copy(X[:, k * BN], x)
                    for i, j in T.Parallel(M, BN):
                        xf[i, j] = T.if_then_else(k * BN + j < N, T.Cast("float32", x[i, j]), T.float32(0))
                    T.reduce_sum(xf, s, dim=-1, clear=False)
                    for i, j in T.Parallel(M, BN):
                        if k * BN + j >= N:
                            xf[i, j] = -T.infinity(T.float32)
                    T.reduce_max(xf, m, dim=1, clear=False)
                    T.copy(x, xf)
                    T.reduce_absmax(xf, a, dim=1, clear=False)
                for i in T.Parallel(M):
                    O[0, i] = s[i]
                    O[1, i] = T.clamp(m[i, 0], -1.0, T.max_value("float32"))
                    O[2, i] = T.max(a[i], 1e-4)

        return main

    x = torch.randn(16, 100, device="cuda").bfloat16()
    got = made(16, 100, 32)(x)
    f = x.float()
    torch.testing.assert_close(got[0], f.sum(1), rtol=1e-5, atol=1e-5)
    assert torch.equal(got[1], f.max(1).values.clamp(min=-1)) and torch.equal(got[2], f.abs().max(1).values)


def test_views_reshapes_and_symbolic_rows():
    @tilelang.jit
    def made(D, dtype):
        n = T.symbolic("n", "int32")

        @T.prim_func
        def main(X: T.Tensor([n, D], dtype), Y: T.Tensor([n, D // 8, 8], "float32"), Z: T.Tensor([n * D], "uint16")):
            with T.Kernel(T.ceildiv(n, 4), threads=32) as b:
                s = T.alloc_shared([4, D], dtype)
                f = T.alloc_fragment([4, D], "float32")
                T.copy(X[b * 4 : b * 4 + 4, 0:D], s)
                bits = T.view(s, dtype="uint16")
                flat = T.reshape(bits, [4 * D])
                for i in T.Parallel(4 * D):
                    if b * 4 * D + i < n * D:
                        Z[b * 4 * D + i] = flat[i]
                T.copy(s, f)
                cube = T.reshape(f, [4, D // 8, 8])
                T.copy(cube, Y[b * 4, 0, 0])

        return main

    x = torch.randn(7, 24, device="cuda").half()
    y, z = torch.zeros(7, 3, 8, device="cuda"), torch.zeros(7 * 24, dtype=torch.uint16, device="cuda")
    made(24, "float16")(x, y, z)
    assert torch.equal(y.reshape(7, 24), x.float()) and torch.equal(z, x.view(torch.uint16).flatten())


def test_macros_that_return_tuples_and_take_lambdas():
    @T.macro
    def minmax(buf, n):
        lo = T.alloc_var("float32")
        hi = T.alloc_var("float32")
        lo = T.infinity("float32")
        hi = -T.infinity("float32")
        for i in T.serial(n):
            lo = T.min(lo, buf[i])
            hi = T.max(hi, buf[i])
        return lo, hi

    def apply(f, x):
        return f(x)

    @T.macro
    def scale(buf: T.SharedBuffer((40,), "float32"), by, each):
        for i in T.Parallel(40):
            buf[i] = apply(each, buf[i]) * by

    @tilelang.jit(out_idx=[1])
    def made():
        @T.prim_func
        def main(A: T.Tensor((40,), "float32"), B: T.Tensor((42,), "float32")):
            with T.Kernel(1, threads=64):
                s = T.alloc_shared((40,), "float32")
                T.copy(A, s)
                scale(s, 0.5, lambda v: v * v + 1)
                low, high = minmax(s, 40)
                T.copy(s, B[0:40])
                B[40] = low
                B[41] = high

        return main

    a = torch.randn(40, device="cuda")
    want = (a * a + 1) * 0.5
    got = made()(a)
    assert torch.equal(got[:40], want) and got[40] == want.min() and got[41] == want.max()


def test_loops_with_steps_exits_and_unrolling():
    @tilelang.jit
    def made(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "int32"), B: T.Tensor((8,), "int32")):
            with T.Kernel(1, threads=1):
                total = T.alloc_var("int32", init=0)
                last = T.alloc_var(T.int32, 7)
                for i in T.serial(1, n, 3):
                    total += A[i]
                B[0] = total
                for i in T.serial(n - 1, -1, -2):
                    last = i
                    if A[i] < 4:
                        T.loop_break()
                B[1] = last
                k = T.alloc_var("int32")
                k = 0
                while k < n and A[k] != 5:
                    k += 1
                B[2] = k
                for i in T.unroll(4, explicit=False):
                    if i == 2:
                        continue
                    B[3] = i
                for i in T.unroll(0, 4, unroll_factor=2):
                    B[4] = i * 2
                for i, j in T.grid(2, 3):
                    B[5] = i * 10 + j
                for i in T.vectorized(4):
                    B[6] = A[i]
                B[7] = 0
                for i in range(n):
                    if A[i] == 3:
                        B[7] = i
                        break

        return main

    a = torch.tensor([9, 1, 8, 3, 5, 7, 2, 6], dtype=torch.int32, device="cuda")
    b = torch.full((8,), -1, dtype=torch.int32, device="cuda")
    made(8)(a, b)
    assert b.tolist() == [1 + 5 + 6, 3, 4, 3, 6, 12, 3, 3], b.tolist()


def test_strided_tensors_and_packed_adds():
    m, n = T.dynamic("m"), T.dynamic("n")
    sa, sb = T.dynamic("sa"), T.dynamic("sb")

    @tilelang.jit
    def made():
        @T.prim_func
        def main(
            A: T.StridedTensor((m, n), (sa, 1), "float32"),
            B: T.StridedTensor((n, m), strides=(sb, 1), dtype="float32"),
            C: T.Tensor((n,), "float32"),
        ):
            with T.Kernel(m, threads=32) as i:
                for j in T.Parallel(n):
                    B[j, i] = A[i, j]
                for j in T.Parallel(n // 4):
                    T.atomic_addx4(C[j * 4], A[i, j * 4])
                for j in T.Parallel(n // 2):
                    T.atomic_addx2(C[j * 2], A[i, j * 2])
                T.atomic_add(C[0:4], A[i, 0:4])

        return main

    big = torch.arange(5 * 20, device="cuda").float().reshape(5, 20)
    a = big[:, 3:11]
    out = torch.zeros(8, 9, device="cuda")
    c = torch.zeros(8, device="cuda")
    made()(a, out[:, :5], c)
    assert torch.equal(out[:, :5], a.T) and not out[:, 5:].any()
    want = a.sum(0) * 2
    want[:4] += a.sum(0)[:4]
    assert torch.equal(c, want)


def test_eager_kernels_with_constants():
    @tilelang.jit(pass_configs={"tl.disable_safe_memory_legalize": False})
    def add(A, B, block: int = 64, dtype: T.dtype = T.float32):
        M, N = T.const("M, N")
        A: T.Tensor[[M, N], dtype]
        B: T.Tensor[[M, N], dtype]
        C = T.empty((M, N), dtype)
        with T.Kernel(T.ceildiv(N, block), M, threads=block) as (bx, by):
            for i in T.Parallel(block):
                C[by, bx * block + i] = A[by, bx * block + i] + B[by, bx * block + i]
        return C

    a, b = torch.randn(3, 100, device="cuda"), torch.randn(3, 100, device="cuda")
    assert torch.equal(add(a, b), a + b) and torch.equal(add(a, b, block=32), a + b)


def test_dequantised_gemm_with_a_helper_of_tir():
    def _tir_u4_to_f16(nbit: int, val: tir.PrimExpr, pos: tir.PrimExpr, dtype: str):
        assert nbit == 4 and dtype == "float16" and val.dtype == "uint8"
        mask = tir.const((1 << nbit) - 1, "uint8")
        raw = (val >> (pos.astype("uint8") * tir.const(nbit, "uint8"))) & mask
        return raw.astype("float16") - tir.const(8, "float16")

    @tilelang.jit(out_idx=[2])
    def made(M, N, K, BM, BN, BK):
        per = 8 // 4

        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((N, K // per), "uint8"), C: T.Tensor((M, N), "float32")):
            with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), threads=128) as (bx, by):
                A_shared = T.alloc_shared((BM, BK), "float16")
                B_shared = T.alloc_shared((BN, BK // per), "uint8")
                B_local = T.alloc_fragment((BN, BK // per), "uint8")
                B_deq = T.alloc_fragment((BN, BK), "float16")
                B_sh = T.alloc_shared((BN, BK), "float16")
                C_local = T.alloc_fragment((BM, BN), "float32")
                T.clear(C_local)
                for k in T.Pipelined(K // BK, num_stages=2):
                    T.copy(A[by * BM, k * BK], A_shared)
                    T.copy(B[bx * BN, k * BK // per], B_shared)
                    T.copy(B_shared, B_local)
                    for i, j in T.Parallel(BN, BK):
                        B_deq[i, j] = _tir_u4_to_f16(4, B_local[i, j // per], j % per, dtype="float16")
                    T.copy(B_deq, B_sh)
                    T.gemm(A_shared, B_sh, C_local, transpose_B=True)
                T.copy(C_local, C[by * BM, bx * BN])

        return main

    a = torch.randn(20, 64, device="cuda").half()
    q = torch.randint(0, 256, (24, 32), dtype=torch.uint8, device="cuda")
    w = torch.stack([q & 15, q >> 4], -1).reshape(24, 64).float() - 8
    torch.testing.assert_close(made(20, 24, 64, 16, 16, 32)(a, q), a.float() @ w.T, rtol=1e-4, atol=1e-3)


def test_split_k_by_atomics_of_tiles():
    @tilelang.jit
    def made(M, N, K, BM, BN, BK, split_k):
        splitK = K // split_k

        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
            with T.Kernel(T.ceildiv(N, BN), T.ceildiv(M, BM), split_k, threads=64) as (bx, by, bz):
                A_shared = T.alloc_shared((BM, BK), "float16")
                B_shared = T.alloc_shared((BK, BN), "float16")
                C_local = T.alloc_fragment((BM, BN), "float32")
                C_shared = T.alloc_shared((BM, BN), "float32")
                T.clear(C_local)
                for ko in T.Pipelined(T.ceildiv(splitK, BK), num_stages=0):
                    T.copy(A[by * BM, bz * splitK + ko * BK], A_shared)
                    T.copy(B[bz * splitK + ko * BK, bx * BN], B_shared)
                    T.gemm(A_shared, B_shared, C_local)
                T.copy(C_local, C_shared)
                T.atomic_add(C[by * BM, bx * BN], C_shared, use_tma=True)

        return main

    a, b = torch.randn(40, 64, device="cuda").half(), torch.randn(64, 48, device="cuda").half()
    c = torch.zeros(40, 48, device="cuda")
    made(40, 48, 64, 16, 16, 16, 4)(a, b, c)
    torch.testing.assert_close(c, a.float() @ b.float(), rtol=1e-3, atol=1e-3)


def test_grouped_gemm_with_tables_on_the_host():
    batch_sizes = [5, 0, 17, 8]
    padded = list(itertools.accumulate([0] + [math.ceil(b / 8) * 8 for b in batch_sizes]))

    @tilelang.jit(out_idx=[2])
    def made(batch_sizes_list, K, N, BM, BN, BK):
        batch_sum, count = sum(batch_sizes_list), len(batch_sizes_list)
        total_m_blocks = sum((s + BM - 1) // BM for s in batch_sizes_list)

        @T.prim_func
        def kernel(
            A: T.Tensor([batch_sum, K], "float16"),
            B: T.Tensor([count, K, N], "float16"),
            C: T.Tensor([batch_sum, N], "float16"),
            sizes: T.Tensor([count], "int32"),
            offsets: T.Tensor([count], "int32"),
            padded_offsets: T.Tensor([count], "int32"),
        ):
            with T.Kernel(total_m_blocks, T.ceildiv(N, BN), threads=64) as (bx, by):
                A_shared = T.alloc_shared([BM, BK], "float16")
                B_shared = T.alloc_shared([BK, BN], "float16")
                C_local = T.alloc_fragment([BM, BN], "float32")
                cur_batch_idx = T.alloc_local([1], "int32")
                cur_batch_size = T.alloc_local([1], "int32")
                m_start_padded = bx * BM
                for i in range(count):
                    in_cur = m_start_padded >= padded_offsets[i]
                    cur_batch_idx[0] = T.if_then_else(in_cur, i, cur_batch_idx[0])
                cur_batch_size[0] = sizes[cur_batch_idx[0]]
                m_start = m_start_padded - padded_offsets[cur_batch_idx[0]] + offsets[cur_batch_idx[0]]
                actual_rows = T.max(0, T.min(BM, cur_batch_size[0] + padded_offsets[cur_batch_idx[0]] - m_start_padded))
                T.clear(C_local)
                for k in T.Pipelined(T.ceildiv(K, BK), num_stages=2):
                    T.copy(A[m_start : m_start + BM, k * BK : (k + 1) * BK], A_shared)
                    T.copy(B[cur_batch_idx[0], k * BK : (k + 1) * BK, by * BN : (by + 1) * BN], B_shared)
                    T.gemm(A_shared, B_shared, C_local)
                for i, j in T.Parallel(BM, BN):
                    if i < actual_rows:
                        C[m_start + i, by * BN + j] = C_local[i, j]

        return kernel

    a = torch.randn(sum(batch_sizes), 32, device="cuda").half()
    b = torch.randn(4, 32, 24, device="cuda").half()
    sizes = torch.tensor(batch_sizes, dtype=torch.int32, device="cuda")
    offsets = torch.tensor(list(itertools.accumulate([0] + batch_sizes))[:-1], dtype=torch.int32, device="cuda")
    pads = torch.tensor(padded[:-1], dtype=torch.int32, device="cuda")
    got = made(batch_sizes, 32, 24, 8, 16, 16)(a, b, sizes, offsets, pads)
    want = torch.cat([x.float() @ w.float() for x, w in zip(a.split(batch_sizes), b)])
    torch.testing.assert_close(got.float(), want, rtol=1e-2, atol=1e-2)


def test_nsa_like_gather_and_any_of():
    @tilelang.jit(out_idx=[-1])
    def blocksparse(M, N, K, BM, BN, BK):
        mask_shape = (M // BM, N // BN, K // BK)

        @T.prim_func
        def main(
            A: T.Tensor((M, K), "float16"),
            B: T.Tensor((K, N), "float16"),
            Mask: T.Tensor(mask_shape, "bool"),
            C: T.Tensor((M, N), "float16"),
        ):
            with T.Kernel(N // BN, M // BM, threads=128) as (bx, by):
                a, b = T.alloc_shared((BM, BK), "float16"), T.alloc_shared((BK, BN), "float16")
                acc = T.alloc_fragment((BM, BN), "float32")
                has = T.alloc_local([1], "bool")
                T.clear(acc)
                has[0] = False
                for k in T.Pipelined(K // BK, num_stages=1):
                    if Mask[by, bx, k]:
                        T.copy(A[by * BM, k * BK], a)
                        T.copy(B[k * BK, bx * BN], b)
                        T.gemm(a, b, acc)
                if T.any_of(Mask[by, bx, :]):
                    T.copy(acc, C[by * BM, bx * BN])
                else:
                    T.fill(C[by * BM : (by + 1) * BM, bx * BN : (bx + 1) * BN], -1)

        return main

    m = torch.rand(3, 2, 4) < 0.3
    m[0, 0] = False
    a, b = torch.randn(48, 64, device="cuda").half(), torch.randn(64, 32, device="cuda").half()
    got = blocksparse(48, 32, 64, 16, 16, 16)(a, b, m)
    for i in range(3):
        for j in range(2):
            if m[i, j].any():
                want = sum(
                    a[i * 16 : i * 16 + 16, k * 16 : k * 16 + 16].float()
                    @ b[k * 16 : k * 16 + 16, j * 16 : j * 16 + 16].float()
                    for k in range(4)
                    if m[i, j, k]
                )
            else:
                want = torch.full((16, 16), -1.0)
            torch.testing.assert_close(
                got[i * 16 : i * 16 + 16, j * 16 : j * 16 + 16].float(), want, rtol=1e-2, atol=1e-2
            )


def test_reshape_symbolic_argument():
    n = T.dynamic("n")

    @T.prim_func
    def main(A: T.Tensor((n, 24), "float32"), B: T.Tensor((n, 3, 8), "float32")):
        with T.Kernel(n, threads=32) as i:
            A3 = T.reshape(A, (n, 3, 8))
            flat = T.view(B, (n * 24,))
            for j, k in T.Parallel(3, 8):
                flat[i * 24 + j * 8 + k] = A3[i, j, k] + 1.0

    a, b = torch.randn(5, 24), torch.zeros(5, 3, 8)
    tilelang.compile(main)(a, b)
    assert torch.equal(b.reshape(5, 24), a + 1)


def test_view_dtype_symbolic():
    n = T.dynamic("n")

    @T.prim_func
    def main(A: T.Tensor((n, 24), "float32"), B: T.Tensor((n, 24), "uint32")):
        with T.Kernel(n, threads=32) as i:
            bits = T.view(A, dtype="uint32")
            for j in T.Parallel(24):
                B[i, j] = bits[i, j]

    a, b = torch.randn(5, 24), torch.zeros(5, 24, dtype=torch.uint32)
    tilelang.compile(main)(a, b)
    assert torch.equal(b.view(torch.float32), a)


def test_shape_attributes_strides_dtype():
    @T.macro
    def fill_diag(buf, v):
        for i in T.Parallel(buf.shape[0]):
            buf[i, i] = T.cast(v, buf.dtype)

    @T.prim_func
    def main(A: T.Tensor((8, 8), "float16")):
        with T.Kernel(1, threads=8):
            s = T.alloc_shared(A.shape, A.dtype)
            T.clear(s)
            fill_diag(s, 3)
            assert len(s.shape) == 2 and s.dtype == "float16" and s.scope() in ("shared", "shared.dyn")
            T.copy(s, A)

    a = torch.zeros(8, 8).half()
    tilelang.compile(main)(a)
    assert torch.equal(a, torch.eye(8).half() * 3)


def test_scalar_lets_and_tuple_unpack():
    @T.macro
    def coords(t, n):
        return t // n, t % n

    @T.prim_func
    def main(A: T.Tensor((6, 7), "int32")):
        with T.Kernel(42, threads=1) as t:
            i, j = coords(t, 7)
            (x, y), z = coords(t, 7), i + j
            if not (x != i or y != j):
                A[i, j] = z
            p = q = i * 2
            p, q = q + 1, p - 1
            A[i, j] += p - q if z > 3 else 0

    a = torch.zeros(6, 7, dtype=torch.int32)
    tilelang.compile(main)(a)
    z = torch.arange(6)[:, None] + torch.arange(7)
    assert torch.equal(a, (z + torch.where(z > 3, 2, 0)).int())


if __name__ == "__main__":
    tilelang.testing.main()
