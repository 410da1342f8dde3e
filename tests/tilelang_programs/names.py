"""Tests of the language as its authors write them: one name of T each."""

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tvm import arith, tir


@tilelang.jit
def rand_1d(M=1024, seed=42, generator="curandStatePhilox4_32_10_t"):
    num_per_thread = 128
    threads = 1
    blocks = T.ceildiv(M, num_per_thread * threads)

    @T.prim_func
    def rand_kernel(
        A: T.Tensor((M,), "uint32"),
        B: T.Tensor((M,), "float32"),
        C: T.Tensor((M,), "float64"),
        D: T.Tensor((M,), "float32"),
        E: T.Tensor((M,), "float64"),
    ):
        with T.Kernel(blocks, threads=threads) as bx:
            T.rng_init(seed, 0, bx * num_per_thread, generator=generator)
            for i, j in T.Parallel(threads, num_per_thread):
                offsets = (bx * threads + i) * num_per_thread
                idx = offsets + j
                if idx < M:
                    A[idx] = T.rng_rand()
            for i, j in T.Parallel(threads, num_per_thread):
                offsets = (bx * threads + i) * num_per_thread
                idx = offsets + j
                if idx < M:
                    B[idx] = T.rng_rand_float()
                    C[idx] = T.rng_rand_float(bit=64)
                    D[idx] = T.rng_rand_float(dist="normal")
                    E[idx] = T.rng_rand_float(bit=64, dist="normal")

    return rand_kernel


@pytest.mark.parametrize("M,seed,gen", [(512, 42, "curandStatePhilox4_32_10_t"), (1000, 7, "curandStateXORWOW_t")])
def test_rand(M, seed, gen):
    k = rand_1d(M, seed, gen)
    A = torch.empty(M, dtype=torch.uint32, device="cuda")
    B = torch.empty(M, dtype=torch.float32, device="cuda")
    C = torch.empty(M, dtype=torch.float64, device="cuda")
    D = torch.empty(M, dtype=torch.float32, device="cuda")
    E = torch.empty(M, dtype=torch.float64, device="cuda")
    k(A, B, C, D, E)
    assert 0.4 < (A.double() / 2**32).mean() < 0.6
    assert 0 < B.min() and B.max() <= 1 and 0.4 < B.mean() < 0.6
    assert abs(D.mean()) < 0.2 and 0.8 < D.std() < 1.2
    assert abs(E.mean()) < 0.2 and 0.8 < E.std() < 1.2
    assert len(set(A.tolist())) == M


@tilelang.jit
def atomic_add_program(K, M, N, block_M, block_N, dtype=T.float32):
    @T.prim_func
    def atomic_add(A: T.Tensor((K, M, N), dtype), B: T.Tensor((M, N), dtype)):
        with T.Kernel(T.ceildiv(M, block_M), T.ceildiv(N, block_N), K, threads=32) as (bx, by, bz):
            A_shared = T.alloc_shared((block_M, block_N), dtype)
            T.copy(A[bz, bx * block_M : (bx + 1) * block_M, by * block_N : (by + 1) * block_N], A_shared)
            for i, j in T.Parallel(block_M, block_N):
                T.atomic_add(B[bx * block_M + i, by * block_N + j], A_shared[i, j])

    return atomic_add


@tilelang.jit
def tile_atomic_add_program(K, M, N, block_M, block_N, dtype=T.float32):
    @T.prim_func
    def atomic_add(A: T.Tensor((K, M, N), dtype), B: T.Tensor((M, N), dtype)):
        with T.Kernel(T.ceildiv(M, block_M), T.ceildiv(N, block_N), K, threads=32) as (bx, by, bz):
            A_shared = T.alloc_shared((block_M, block_N), dtype)
            T.copy(A[bz, bx * block_M : (bx + 1) * block_M, by * block_N : (by + 1) * block_N], A_shared)
            T.atomic_add(B[bx * block_M, by * block_N], A_shared, use_tma=True)
            T.atomic_add(
                B[bx * block_M : (bx + 1) * block_M, by * block_N : (by + 1) * block_N],
                A_shared,
                memory_order="acq_rel",
            )

    return atomic_add


def test_atomic_adds():
    A = torch.randn(4, 36, 40, device="cuda")
    B = torch.zeros(36, 40, device="cuda")
    atomic_add_program(4, 36, 40, 16, 16)(A, B)
    torch.testing.assert_close(B, A.sum(0), atol=1e-3, rtol=1e-3)
    B.zero_()
    tile_atomic_add_program(4, 36, 40, 16, 16)(A, B)
    torch.testing.assert_close(B, 2 * A.sum(0), atol=1e-3, rtol=1e-3)


@tilelang.jit
def atomic_orders(M, N, block_M, block_N, dtype):
    @T.prim_func
    def main(
        A: T.Tensor((M, N), dtype),
        B: T.Tensor((M, N), dtype),
        C: T.Tensor((1,), dtype),
        D: T.Tensor((M, N), dtype),
        E: T.Tensor((1,), dtype),
    ):
        with T.Kernel(T.ceildiv(M, block_M), T.ceildiv(N, block_N), threads=32) as (bx, by):
            for i, j in T.Parallel(block_M, block_N):
                idx_i = bx * block_M + i
                idx_j = by * block_N + j
                if idx_i < M and idx_j < N:
                    v = T.atomic_load(A[idx_i, idx_j], memory_order="relaxed")
                    T.atomic_store(B[idx_i, idx_j], v, memory_order="release")
                    T.atomic_max(C[0], v, memory_order="seq_cst")
                    D[idx_i, idx_j] = T.atomic_add(E[0], 1, return_prev=True)

    return main


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_orders(dtype):
    dt = T.dtype(dtype).as_torch()
    A = torch.randint(0, 100, (20, 33), device="cuda").to(dt)
    B = torch.zeros_like(A)
    C = torch.zeros(1, dtype=dt, device="cuda")
    D = torch.zeros_like(A)
    E = torch.zeros_like(C)
    atomic_orders(20, 33, 16, 16, dtype)(A, B, C, D, E)
    assert torch.equal(A, B) and C.item() == A.max() and E.item() == 660
    assert sorted(D.flatten().tolist()) == list(range(660))


@tilelang.jit
def atomic_x2(M, N, bM, bN, dtype="float16"):
    @T.prim_func
    def main(A: T.Tensor((M, N), dtype), B: T.Tensor((M, N), dtype)):
        with T.Kernel(T.ceildiv(M, bM), T.ceildiv(N, bN), threads=32) as (bx, by):
            for i, j in T.Parallel(bM, bN // 2):
                T.atomic_addx2(B[bx * bM + i, by * bN + j * 2], A[bx * bM + i, by * bN + j * 2])

    return main


def test_atomic_x2():
    for dt in ("float16", "bfloat16", "float32"):
        A = torch.randn(32, 64, device="cuda").to(T.dtype(dt).as_torch())
        B = torch.zeros_like(A)
        atomic_x2(32, 64, 16, 32, dt)(A, B)
        assert torch.equal(A, B)


def test_old_values_of_several():
    @T.prim_func
    def main(A: T.Tensor((8, 16), "float16"), B: T.Tensor((8, 16), "float16"), P: T.Tensor((2, 8, 16), "float16")):
        with T.Kernel(1, threads=32):
            for i, j in T.Parallel(8, 8):
                old = T.atomic_addx2(B[i, j * 2], A[i, j * 2], return_prev=True)
                P[0, i, j * 2] = old[0]
                P[0, i, j * 2 + 1] = old[1]
            for i, j in T.Parallel(8, 4):
                four = T.atomic_addx4(B[i, j * 4], A[i, j * 4], return_prev=True)
                for k in T.vectorized(4):
                    P[1, i, j * 4 + k] = A[i, j * 4 + k] + T.cast(k, "float16")
                P[1, i, j * 4] = four[0]
                P[1, i, j * 4 + 3] = four[3]

    a, b = (torch.randint(-9, 9, (8, 16), device="cuda").half() for _ in range(2))
    before, p = b.clone(), torch.empty(2, 8, 16, dtype=torch.float16, device="cuda")
    tilelang.compile(main)(a, b, p)
    assert torch.equal(b, before + 2 * a) and torch.equal(p[0], before)
    assert torch.equal(p[1, :, ::4], (before + a)[:, ::4]) and torch.equal(p[1, :, 3::4], (before + a)[:, 3::4])


def test_bare_ticket():
    @T.prim_func
    def main(A: T.Tensor((64,), "int32"), C: T.Tensor((1,), "int32")):
        with T.Kernel(2, threads=32):
            slot = T.atomic_add(C[0], 1, return_prev=True)
            A[slot] = slot + 1

    a = torch.zeros(64, dtype=torch.int32, device="cuda")
    c = torch.zeros(1, dtype=torch.int32, device="cuda")
    tilelang.compile(main)(a, c)
    assert a.tolist() == list(range(1, 65)) and c.item() == 64


def test_call_intrin():
    @T.prim_func
    def main(A: T.Tensor((32,), "float32"), B: T.Tensor((6, 32), "float32"), C: T.Tensor((32,), "int32")):
        with T.Kernel(1, threads=32):
            for i in T.Parallel(32):
                B[0, i] = T.call_intrin("float32", "tir.exp", A[i])
                B[1, i] = T.call_intrin("float32", tir.op.Op.get("tir.fabs"), A[i])
                B[2, i] = tir.call_intrin("float32", "tir.sqrt", tir.abs(A[i]))
                B[3, i] = T.call_intrin("float32", "tir.pow", A[i], 2.0)
                B[4, i] = T.call_pure_extern("float32", "fmaxf", A[i], 0.0)
                B[5, i] = T.call_intrin("float32", "tir.if_then_else", A[i] > 0, A[i], 0.0)
                C[i] = T.call_intrin("int32", "tir.reinterpret", A[i])
            T.call_intrin("handle", "tir.tvm_storage_sync", "shared")

    a = torch.randn(32, device="cuda")
    b = torch.empty(6, 32, device="cuda")
    c = torch.empty(32, dtype=torch.int32, device="cuda")
    tilelang.compile(main)(a, b, c)
    torch.testing.assert_close(b, torch.stack([a.exp(), a.abs(), a.abs().sqrt(), a * a, a.relu(), a.relu()]))
    assert torch.equal(c, a.view(torch.int32))


def test_arith():
    an = arith.Analyzer()
    assert an.simplify(3 + 4) == 7 and an.can_prove(4 % 2 == 0)
    x = T.dynamic("x")

    @T.prim_func
    def main(A: T.Tensor((x,), "int32")):
        with T.Kernel(T.ceildiv(x, 32), threads=32) as b:
            for i in T.Parallel(32):
                if not an.can_prove(b * 32 + i < x):
                    A[an.simplify(b * 32 + i)] = b

    a = torch.zeros(40, dtype=torch.int32, device="cuda")
    tilelang.compile(main)(a)
    assert a.tolist() == [0] * 32 + [1] * 8


def test_te_refused():
    import tvm.relax as rx
    from tvm import te

    with pytest.raises(NotImplementedError, match="tvm.te.placeholder"):
        te.placeholder((3,), name="A")
    with pytest.raises(NotImplementedError):
        rx.BlockBuilder()


@pytest.mark.parametrize("dtype", [T.float16, "float8_e4m3", T.bfloat16, torch.int8])
def test_copies(dtype):
    M, N, bM, bN = 70, 66, 32, 32

    @tilelang.jit(
        pass_configs={
            tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER: True,
            tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
        }
    )
    def f():
        @T.prim_func
        def main(A: T.Tensor((M, N), dtype), B: T.Tensor((M, N), dtype), C: T.Tensor((M, N), T.float32)):
            with T.Kernel(T.ceildiv(N, bN), T.ceildiv(M, bM), threads=128) as (bx, by):
                S = T.alloc_shared([bM, bN], dtype)
                F = T.alloc_fragment([bM, bN], T.float32)
                T.copy(
                    A[by * bM : (by + 1) * bM, bx * bN : (bx + 1) * bN],
                    S,
                    coalesced_width=8,
                    disable_tma=True,
                    eviction_policy="evict_last",
                )
                T.copy(S, F)
                T.copy(S, B[by * bM : (by + 1) * bM, bx * bN : (bx + 1) * bN], annotations={"x": 1})
                T.copy(F, C[by * bM, bx * bN], prefer_instruction="st")

        return main

    td = T.dtype(dtype).as_torch()
    A = torch.randn(M, N, device="cuda").to(td)
    B = torch.zeros(M, N, dtype=td, device="cuda")
    C = torch.zeros(M, N, device="cuda")
    f()(A, B, C)
    assert torch.equal(C, A.float()) and torch.equal(B.float(), A.float())


def test_async():
    @T.prim_func
    def main(A: T.Tensor((8, 64), "float32"), B: T.Tensor((64,), "float32")):
        with T.Kernel(1, threads=64):
            s = T.alloc_shared((2, 64), "float32")
            acc = T.alloc_fragment((64,), "float32")
            T.clear(acc)
            T.async_copy(A[0, 0:64], s[0, :])
            T.ptx_commit_group()
            for k in T.serial(8):
                if k < 7:
                    T.async_copy(A[k + 1, 0:64], s[(k + 1) % 2, :])
                    T.ptx_commit_group()
                    T.ptx_wait_group(1)
                else:
                    T.ptx_wait_group(0)
                T.sync_threads()
                for i in T.Parallel(64):
                    acc[i] += s[k % 2, i]
                T.sync_threads()
            T.copy(acc, B)

    a = torch.randn(8, 64, device="cuda")
    b = torch.empty(64, device="cuda")
    tilelang.compile(main)(a, b)
    torch.testing.assert_close(b, a.sum(0))


def test_frontend():
    @T.macro
    def inc(x: T.Ref, by):
        x = x + by

    @T.macro
    def two(a, b):
        return a + b, a - b

    @T.prim_func
    def main(A: T.Tensor((16,), T.int32), B: T.Tensor((16,), T.int32), flag: T.bool):
        with T.Kernel(1, threads=16) as _:
            x: T.int32 = 3
            y: T.float32 = T.float32(2.5)
            v = T.alloc_var(T.int32, init=1)
            w = T.alloc_var("int32")
            w = v
            a, b = two(A[0], A[1])
            inc(v, 4)
            inc(B[2], 5)
            B[0], B[1] = a, b
            B[3] = v + w
            B[4] = x + T.cast(y, "int32")
            first, *rest = [1, 2, 3]
            B[5] = first + sum(rest)
            for i in range(6, 12, 2):
                B[i] = B[i + 1] = i
            n = T.alloc_var("int32", 0)
            while n < 5:
                n += 1
                if n == 3:
                    break
            B[12] = n
            B[13] = 1 if flag else 2
            B[14] = 7 if not flag and A[0] >= 0 else 8
            with T.attr(0, "pragma_x", 1):
                B[15] = A[3] if 0 <= A[3] < 100 else -1

    A = torch.arange(10, 26, dtype=torch.int32, device="cuda")
    B = torch.zeros_like(A)
    tilelang.compile(main)(A, B, True)
    assert B.tolist() == [21, -1, 5, 6, 5, 6, 6, 6, 8, 8, 10, 10, 3, 1, 8, 13]


def test_warp_info():
    @T.prim_func
    def main(A: T.Tensor((6, 256), "int32")):
        with T.Kernel(1, threads=256):
            tx = T.get_thread_binding()
            A[0, tx] = T.get_lane_idx()
            A[1, tx] = T.get_warp_idx_sync()
            A[2, tx] = T.get_warp_idx(warp_size=16)
            A[3, tx] = T.get_warp_group_idx(warp_size=32, warps_per_group=2)
            A[4, tx] = T.shuffle_elect(64)
            A[5, tx] = T.shuffle_elect(0)

    a = torch.empty(6, 256, dtype=torch.int32, device="cuda")
    tilelang.compile(main)(a)
    t = torch.arange(256)
    want = torch.stack([t % 32, t // 32, t // 16, t // 64, (t % 64 == 0).long(), (t == 0).long()]).int()
    assert torch.equal(a.cpu(), want)


def test_generic_reduce_and_helpers():
    @T.prim_func
    def main(A: T.Tensor((8, 64), "float32"), B: T.Tensor((4, 8), "float32"), I: T.Tensor((8, 64), "int32")):
        with T.Kernel(1, threads=128):
            f = T.alloc_fragment((8, 64), "float32")
            r = T.alloc_fragment((8,), "float32")
            T.copy(A, f)
            T.reduce(f, r, "sum", 1, True)
            T.copy(r, B[0, :])
            T.reduce(f, r, "max", dim=1, clear=False)
            T.copy(r, B[1, :])
            T.reduce(f, r, "abssum", dim=1)
            T.copy(r, B[2, :])
            T.reduce_absmax(f, r)
            T.copy(r, B[3, :])
            tx = T.get_thread_binding()
            nx, ny, nz = T.get_thread_extents()
            for k in T.serial(512 // nx):
                i, j = T.index_to_coordinates(k * nx + tx, (8, 64))
                I[i, j] = T.linear_index(i, j, 64) + T.logical_and(i > 0, j > 0)

    a = torch.randn(8, 64, device="cuda")
    b = torch.empty(4, 8, device="cuda")
    i = torch.empty(8, 64, dtype=torch.int32, device="cuda")
    tilelang.compile(main)(a, b, i)
    torch.testing.assert_close(
        b,
        torch.stack([a.sum(1), torch.maximum(a.sum(1), a.amax(1)), a.abs().sum(1), a.abs().amax(1)]),
        rtol=1e-5,
        atol=1e-5,
    )
    k = torch.arange(512).reshape(8, 64).int()
    k[1:, 1:] += 1
    assert torch.equal(i.cpu(), k)


def test_pdl_and_cooperative_and_nreg():
    @tilelang.jit
    def f(n):
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
            with T.Kernel(T.ceildiv(n, 64), threads=64) as b:
                T.pdl_trigger()
                T.set_max_nreg(232, 1)
                T.no_set_max_nreg()
                T.pdl_sync()
                T.annotate_min_blocks_per_sm(2)
                for i in T.Parallel(64, coalesced_width=4, loop_layout=None, prefer_async=True):
                    B[b * 64 + i] = A[b * 64 + i] * 2.0

        return main

    a = torch.randn(100, device="cuda")
    b = torch.empty_like(a)
    f(100)(a, b)
    assert torch.equal(b, a * 2)


def test_pipeline_order_stage():
    M = N = K = 64

    @tilelang.jit(out_idx=[2])
    def mm():
        @T.prim_func
        def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float16")):
            with T.Kernel(T.ceildiv(N, 32), T.ceildiv(M, 32), threads=128) as (bx, by):
                As, Bs = T.alloc_shared((32, 16), "float16"), T.alloc_shared((16, 32), "float16")
                Cl = T.alloc_fragment((32, 32), "float")
                T.use_swizzle(panel_size=10, enable=True)
                T.annotate_layout(
                    {
                        As: tilelang.layout.make_swizzled_layout(As),
                        Bs: tilelang.layout.make_full_bank_swizzled_layout(Bs),
                    }
                )
                T.clear(Cl)
                for k in T.Pipelined(
                    T.ceildiv(K, 16),
                    order=[-1, 0, 1, 2],
                    stage=[-1, 0, 0, 1],
                    group=[[0], [1], [2]],
                    num_stages=3,
                    sync=[[0, 0, 0, 1, 1]],
                ):
                    T.copy(A[by * 32, k * 16], As)
                    T.copy(B[k * 16, bx * 32], Bs)
                    T.gemm(As, Bs, Cl, k_pack=1)
                T.copy(Cl, C[by * 32, bx * 32])

        return main

    a, b = torch.randn(M, K, device="cuda").half(), torch.randn(K, N, device="cuda").half()
    k = mm()
    torch.testing.assert_close(k(a, b), a @ b, rtol=1e-2, atol=1e-2)
    prof = k.get_profiler(tilelang.TensorSupplyType.Auto)
    prof.assert_allclose(lambda A, B: A @ B, rtol=1e-2, atol=1e-2)
    assert prof.do_bench() > 0


if __name__ == "__main__":
    tilelang.testing.main()
