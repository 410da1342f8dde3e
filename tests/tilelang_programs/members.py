"""Members of kernels, profilers and tuners, and what kernels give back that have no inputs or no outputs."""

import copy
import enum
import functools
import logging

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.autotuner import AutoTuner, autotune
from tilelang.engine.param import CompiledArtifact, KernelParam
from tilelang.profiler import Profiler, do_bench
from tilelang.utils.tensor import TensorSupplyType, get_tensor_supply


@tilelang.jit(out_idx=[0])
def counted(n, dtype="float32"):
    @T.prim_func
    def main(C: T.Tensor((n,), dtype)):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
            for i in T.Parallel(32):
                C[bx * 32 + i] = T.cast(bx * 32 + i, dtype)

    return main


@tilelang.jit(out_idx=[-2, -1])
def filled(n, dtype="bfloat16"):
    @T.prim_func
    def main(by: T.float32, A: T.Tensor((n,), dtype), B: T.Tensor((n, 4), "float4_e2m1fn")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
            for i in T.Parallel(32):
                A[bx * 32 + i] = by
            for i, j in T.Parallel(32, 4):
                B[bx * 32 + i, j] = 1.5

    return main


@tilelang.jit
def ramp(n: int, step: float = 1.0):
    C = T.empty((n,), "float32")
    with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
        for i in T.Parallel(32):
            C[bx * 32 + i] = (bx * 32 + i) * step
    return C


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float8_e4m3fn", "int8", "uint32"])
def test_outputs_alone_are_tensors(dtype):
    c = counted(40, dtype)()
    assert isinstance(c, torch.Tensor) and c.is_cuda and c.dtype is T.dtype(dtype).as_torch()
    assert c.float().tolist() == torch.arange(40).to(c.dtype).float().tolist()


def test_outputs_where_all_arguments_are_numbers():
    a, b = filled(5)(1.5)
    assert a.shape == (5,) and a.dtype is torch.bfloat16 and a.tolist() == [1.5] * 5
    assert b.shape == (5, 2) and b.is_cuda and b.tolist() == [[0x33] * 2] * 5  # two values a byte
    assert torch.equal(ramp(33, step=0.5), torch.arange(33, device="cuda") * 0.5)


def test_outputs_alone_in_a_graph():
    kernel, total, graph = counted(4), torch.zeros(4, device="cuda"), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        total += kernel()
    graph.replay()
    graph.replay()
    assert total.tolist() == [0.0, 2.0, 4.0, 6.0]


@tilelang.jit
def doubled_in_place(dtype="float32"):
    m = T.dynamic("m")
    n = T.symbolic("n")

    @T.prim_func
    def main(A: T.Tensor((m, n * 2), dtype), B: T.Tensor((n,), "int32")):
        with T.Kernel(m, threads=32) as bx:
            for j in T.Parallel(n * 2):
                A[bx, j] = A[bx, j] * 2

    return main


def test_kernels_without_outputs_return_an_empty_list():
    kernel = doubled_in_place()
    a = torch.ones(2, 6, device="cuda")
    assert kernel(a, torch.zeros(3, dtype=torch.int32)) == [] and a.sum() == 24

    @tilelang.jit
    def eager(A):
        A: T.Tensor[(4,), "float32"]
        with T.Kernel(1, threads=32):
            T.fill(A, 7.0)

    b = torch.zeros(4, device="cuda")
    assert eager(b) == [] and b.sum() == 28


def test_a_profiler():
    kernel = doubled_in_place()
    profiler = kernel.get_profiler(tensor_supply_type=TensorSupplyType.One)
    assert isinstance(profiler, Profiler) and profiler.func is kernel and profiler.result_idx == []
    assert profiler.do_bench(n_warmup=1, n_repeat=2, dynamic_symbolic_constraints={"m": 3, "n": 4}) > 0
    with pytest.raises(ValueError, match="symbolic"):
        profiler.do_bench()
    given = [torch.ones(2, 6, device="cuda"), torch.zeros(3, dtype=torch.int32, device="cuda")]
    assert profiler.do_bench(None, 1, 1, input_tensors=given, return_mode="median", backend="cupti") > 0
    every = profiler.do_bench(lambda a, b: a.sum(), input_tensors=given, n_warmup=1, n_repeat=5, return_mode="all")
    assert len(every) == 5 and all(t > 0 for t in every)
    low, mid = do_bench(lambda: torch.ones(3), warmup=1, rep=1, quantiles=[0.2, 0.5])
    assert low <= mid and do_bench(lambda: None, warmup=1, rep=1, quantiles=[0.5], fast_flush=False) >= 0
    x = torch.ones(3, requires_grad=True)
    do_bench(lambda: x.sum().backward(), warmup=0, rep=1, grad_to_none=[x])
    assert x.grad.tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="return_mode"):
        do_bench(lambda: None, return_mode="mode")
    profiler.assert_allclose(lambda a, b: a.mul_(2), input_tensors=given)
    with pytest.raises(AssertionError):
        profiler.assert_allclose(lambda a, b: a * 3, input_tensors=given)


def test_what_lowering_gives():
    kernel = counted(8)
    artifact = tilelang.lower(kernel.prim_func, target="cuda", enable_host_codegen=True, runtime_only=False)
    assert isinstance(artifact, CompiledArtifact) and isinstance(artifact.params[0], KernelParam)
    assert artifact.kernel_source == str(artifact.device_mod) and "main" in str(artifact.host_mod)
    assert artifact.rt_mod.imports[0].inspect_source() == artifact.rt_mod.imported_modules[0].get_source()
    assert kernel.artifact.kernel_source == artifact.kernel_source == str(kernel.rt_mod)
    made = [get_tensor_supply(TensorSupplyType.Integer)(p) for p in artifact.params]
    assert made[0].shape == (8,) and made[0].dtype is torch.float32


def test_switches_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TILEDSL_CACHE_DIR", "")
    tilelang.set_cache_dir(tmp_path)
    assert tilelang.get_cache_dir() == str(tmp_path) and counted(7)().tolist() == list(range(7))
    assert tilelang.env.env.is_cache_enabled() and any(tmp_path.rglob("*"))
    tilelang.disable_cache()
    assert not tilelang.is_cache_enabled()
    tilelang.enable_cache()
    tilelang.cache.clear_cache()
    assert tilelang.env.is_cache_enabled()


def test_kernels_in_modules_are_shared_by_copies():
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = counted(5)

        def forward(self):
            return self.kernel()

    layer = Layer().cuda()
    twin = copy.deepcopy(layer)
    assert twin.kernel is layer.kernel and twin().sum() == 10
    assert "main" in repr(layer.kernel) and layer.kernel.pass_configs == {}


def test_keys_of_pass_configurations():
    key = tilelang.PassConfigKey.TL_DISABLE_TMA_LOWER
    assert key == key.value == "tl.disable_tma_lower" and tilelang.PassConfigKey("tl.simplify") == "tl.simplify"
    assert {tilelang.PassConfigKey.TIR_DISABLE_CSE: 1} == {"tir.disable_cse": 1} and isinstance(key, str)
    with pytest.raises(AttributeError):
        _ = tilelang.PassConfigKey.FAST_MATH


class Policy(enum.Enum):
    SLOW = 8
    QUICK = 32


def test_a_tuner_whose_profile_is_given_where_old_versions_took_it(capfd):
    def factory(n, policy=None, extra=None):
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
            with T.Kernel(T.ceildiv(n, policy.value), threads=32) as bx:
                for i in T.Parallel(policy.value):
                    B[bx * policy.value + i] = A[bx * policy.value + i] + extra

        return main

    factory = functools.partial(factory, 64)  # any callable that gives a kernel
    tuner = AutoTuner.from_kernel(kernel=factory, configs=[{"policy": p, "extra": e} for p in Policy for e in (1, 2)])
    tuner.set_compile_args(out_idx=-1, supply_type=TensorSupplyType.Zero, ref_prog=lambda a: a + 2, target="cuda")
    best = tuner.run(warmup=1, rep=1)
    assert best.config["extra"] == 2 and best.config["policy"] in Policy and best.func is best.kernel.prim_func
    assert best.kernel(torch.zeros(64, device="cuda")).sum() == 128
    said = capfd.readouterr().err
    assert "best of 4: " in said and ", 2 failed" in said and said.count("fails: ") == 2


def test_a_tuner_as_a_decorator_with_logging(caplog):
    @autotune(configs=lambda n: [{"block": b} for b in (16, 32) if b <= n], warmup=1, rep=1, timeout=60)
    @tilelang.jit(out_idx=[1])
    def copied(n, block=8):
        @T.prim_func
        def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
            with T.Kernel(T.ceildiv(n, block), threads=32) as bx:
                for i in T.Parallel(block):
                    B[bx * block + i] = A[bx * block + i]

        return main

    with caplog.at_level(logging.DEBUG, logger="tilelang"):
        kernel = copied(40)
    assert kernel.config["block"] in (16, 32) and kernel.latency > 0 and kernel.ref_latency is None
    assert copied(40) is kernel and copied(48) is not kernel


if __name__ == "__main__":
    tilelang.testing.main()
