"""Matrix products in TileLang's spelling: both styles, profilers, tuners."""

import itertools

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.autotuner import AutoTuner, set_autotune_inputs
from tilelang.profiler import do_bench


@tilelang.jit(
    out_idx=[-1],
    pass_configs={
        tilelang.PassConfigKey.TL_DISABLE_WARP_SPECIALIZED: True,
        tilelang.PassConfigKey.TL_DISABLE_FAST_MATH: True,  # left TileLang in 0.1.7
    },
)
def matmul(M, N, K, block_M, block_N, block_K, dtype="float16", accum_dtype="float"):
    @T.prim_func
    def main(
        A: T.Tensor((M, K), dtype),
        B: T.Tensor((K, N), dtype),
        C: T.Tensor((M, N), dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), dtype)
            B_shared = T.alloc_shared((block_K, block_N), dtype)
            C_local = T.alloc_fragment((block_M, block_N), accum_dtype)
            T.use_swizzle(panel_size=10, enable=True)
            T.annotate_layout({A_shared: tilelang.layout.make_swizzled_layout(A_shared)})
            T.clear(C_local)
            for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=3):
                T.copy(A[by * block_M, ko * block_K], A_shared)
                T.copy(B[ko * block_K, bx * block_N], B_shared)
                T.gemm(A_shared, B_shared, C_local, policy=T.GemmWarpPolicy.FullRow, wg_wait=-1)
            T.copy(C_local, C[by * block_M, bx * block_N])

    return main


def test_lazy_product_and_its_profiler():
    kernel = matmul(100, 96, 65, 32, 32, 32)
    a = torch.randn(100, 65, device="cuda", dtype=torch.float16)
    b = torch.randn(65, 96, device="cuda", dtype=torch.float16)
    torch.testing.assert_close(kernel(a, b), a @ b, rtol=1e-2, atol=1e-2)
    profiler = kernel.get_profiler(tilelang.TensorSupplyType.Normal)
    profiler.assert_allclose(lambda A, B: A @ B, rtol=1e-2, atol=1e-2)
    profiler.assert_consistent(repeat=2)
    assert profiler.do_bench(warmup=1, rep=1) > 0
    assert profiler.do_bench(lambda A, B: A @ B, n_warmup=1, n_repeat=3, return_mode="median") > 0
    low, high = do_bench(lambda: kernel(a, b), warmup=1, rep=1, quantiles=[0.2, 0.8], backend="cupti")
    assert 0 < low <= high
    assert "main" in kernel.get_kernel_source() and kernel.get_host_source()
    assert kernel.out_idx == [2] and len(kernel.params) == 3
    assert kernel.n_max_threads == 128
    with pytest.raises(ValueError):
        kernel.get_tuner_result()


@tilelang.jit
def eager_matmul(A, B, block_M: int = 32, block_N: int = 32, block_K: int = 32):
    M, N, K = T.const("M, N, K")
    A: T.Tensor[[M, K], T.float16]
    B: T.Tensor[[K, N], T.float16]
    C = T.empty((M, N), T.float32)
    with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
        A_shared = T.alloc_shared((block_M, block_K), T.float16)
        B_shared = T.alloc_shared((block_K, block_N), T.float16)
        C_local = T.alloc_fragment((block_M, block_N), T.float32)
        T.clear(C_local)
        for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
            T.copy(A[by * block_M, ko * block_K], A_shared)
            T.copy(B[ko * block_K, bx * block_N], B_shared)
            T.gemm(A_shared, B_shared, C_local)
        T.copy(C_local, C[by * block_M, bx * block_N])
    return C


def test_eager_product():
    a, b = torch.randn(40, 50).cuda().half(), torch.randn(50, 60).cuda().half()
    torch.testing.assert_close(eager_matmul(a, b), a.float() @ b.float(), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(eager_matmul(a, b, block_M=16), a.float() @ b.float(), rtol=1e-3, atol=1e-3)
    assert eager_matmul.compile(M=64, N=64, K=64).params[0].name == "A"


def configs_of(M, N, K):
    found = itertools.product([16, 32], [32], [16, 32])
    return [dict(zip(["block_M", "block_N", "block_K"], c)) for c in found]


@tilelang.autotune(configs=configs_of, warmup=1, rep=1, timeout=60)
@tilelang.jit(out_idx=[-1])
def tuned(M, N, K, block_M=None, block_N=None, block_K=None):
    @T.prim_func
    def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((N, K), "float16"), C: T.Tensor((M, N), "float32")):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=128) as (bx, by):
            A_shared = T.alloc_shared((block_M, block_K), "float16")
            B_shared = T.alloc_shared((block_N, block_K), "float16")
            C_local = T.alloc_fragment((block_M, block_N), "float32")
            T.clear(C_local)
            for ko in T.Pipelined(T.ceildiv(K, block_K), num_stages=2):
                T.copy(A[by * block_M, ko * block_K], A_shared)
                T.copy(B[bx * block_N, ko * block_K], B_shared)
                T.gemm(A_shared, B_shared, C_local, transpose_B=True)
            T.copy(C_local, C[by * block_M, bx * block_N])

    return main


def test_the_tuner_stacked_above_jit():
    kernel = tuned(48, 64, 32)
    assert kernel.config in configs_of(48, 64, 32) and kernel.latency > 0
    assert kernel.get_tuner_result().latency == kernel.latency
    assert len(kernel.get_tuner_result().trials) == 4
    a, b = torch.randn(48, 32).cuda().half(), torch.randn(64, 32).cuda().half()
    torch.testing.assert_close(kernel(a, b), a.float() @ b.float().T, rtol=1e-3, atol=1e-3)
    assert tuned(48, 64, 32) is kernel
    assert tuned(48, 64, 32, block_M=16, block_N=16, block_K=16).config is None  # given, so not tuned


def test_tuning_with_ones_own_inputs():
    a, b = torch.randn(40, 48).cuda().half(), torch.randn(56, 48).cuda().half()
    with set_autotune_inputs(a, b):
        kernel = tuned(40, 56, 48)
    torch.testing.assert_close(kernel(a, b), a.float() @ b.float().T, rtol=1e-3, atol=1e-3)


def test_the_tuner_class_refuses_what_is_wrong_and_what_fails():
    def scaled(block=None, factor=None):
        @T.prim_func
        def main(A: T.Tensor((64,), "float32"), B: T.Tensor((64,), "float32")):
            with T.Kernel(T.ceildiv(64, block), threads=block) as bx:
                for i in T.Parallel(block):
                    B[bx * block + i] = A[bx * block + i] * factor

        return main

    tuner = (
        AutoTuner.from_kernel(
            kernel=scaled,
            configs=[dict(block=b, factor=f) for b in (16, 32) for f in (2, 3)] + [dict(block="no", factor=2)],
        )
        .set_compile_args(out_idx=[-1], target="auto", execution_backend="cython")
        .set_profile_args(
            supply_type=tilelang.TensorSupplyType.Integer,
            ref_prog=lambda a: a * 2,
            skip_check=False,
            supply_prog=lambda params: [torch.arange(64, device="cuda", dtype=torch.float32)],
        )
    )
    result = tuner.run(warmup=1, rep=1)
    assert result.config["factor"] == 2 and result.latency > 0 and result.ref_latency > 0
    assert [t.error is None for t in result.trials] == [True, False, True, False, False]
    assert result.kernel(torch.ones(64, device="cuda")).tolist() == [2.0] * 64


@tilelang.autotune(configs={"block": [8, 16]}, warmup=1, rep=1)
@tilelang.jit
def tuned_eager(A, block: int = 4):
    n = T.const("n")
    A: T.Tensor[(n,), "float32"]
    B = T.empty((n,), "float32")
    with T.Kernel(T.ceildiv(n, block), threads=32) as bx:
        for i in T.Parallel(block):
            B[bx * block + i] = A[bx * block + i] + 1
    return B


def test_a_tuned_eager_kernel():
    assert tuned_eager(torch.zeros(33, device="cuda")).tolist() == [1.0] * 33


@tilelang.autotune(configs=[{"block": b, "threads": 32} for b in (8, 16)], warmup=1, rep=1)
@tilelang.jit(out_idx=[-1])
def partly_tuned(n, block=4, threads=64):
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), C: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, block), threads=threads) as bx:
            for i in T.Parallel(block):
                C[bx * block + i] = A[bx * block + i] * block

    return main


@pytest.mark.parametrize("given", [((32, 4), {}), ((32,), {"block": 4})])
def test_a_parameter_of_the_call_is_not_tuned(given):
    kernel = partly_tuned(*given[0], **given[1])
    assert kernel(torch.ones(32, device="cuda")).tolist() == [4.0] * 32 and kernel.config == {"threads": 32}


def test_split_k_with_atomics():
    M, N, K, block, split = 32, 32, 128, 16, 4

    @T.prim_func
    def main(A: T.Tensor((M, K), "float16"), B: T.Tensor((K, N), "float16"), C: T.Tensor((M, N), "float32")):
        with T.Kernel(N // block, M // block, split, threads=64) as (bx, by, bz):
            A_shared = T.alloc_shared((block, K // split), "float16")
            B_shared = T.alloc_shared((K // split, block), "float16")
            C_local = T.alloc_fragment((block, block), "float32")
            T.copy(A[by * block, bz * (K // split)], A_shared)
            T.copy(B[bz * (K // split), bx * block], B_shared)
            T.gemm(A_shared, B_shared, C_local, clear_accum=True)
            T.atomic_add(C[by * block, bx * block], C_local)

    kernel = tilelang.compile(main)
    a, b, c = torch.randn(M, K).cuda().half(), torch.randn(K, N).cuda().half(), torch.zeros(M, N, device="cuda")
    kernel(a, b, c)
    tilelang.testing.torch_assert_close(c, a.float() @ b.float(), rtol=1e-3, atol=1e-3)


@tilelang.testing.requires_cuda
@tilelang.testing.requires_cuda_compute_version_ge(9, 0)
def test_marks_let_it_run():
    assert torch.cuda.get_device_capability() == (9, 0)


@tilelang.testing.requires_rocm
def test_marks_skip_it():
    raise AssertionError("there is no ROCm")


if __name__ == "__main__":
    tilelang.testing.main()
