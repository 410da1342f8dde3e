"""Hosts that say cuda: models, autograd, streams, events, generators, child processes."""

import subprocess
import sys
import threading

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
from tilelang.carver.arch import driver
from tilelang.utils.target import determine_target
from torch.utils.checkpoint import checkpoint

torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.benchmark = True


@tilelang.jit(out_idx=[1])
def doubled(n):
    @T.prim_func
    def main(A: T.Tensor((n,), "float32"), B: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
            for i in T.Parallel(32):
                B[bx * 32 + i] = A[bx * 32 + i] * 2

    return main


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return doubled(x.shape[0])(x)

    @staticmethod
    def backward(ctx, grad):
        return doubled(grad.shape[0])(grad.contiguous())


class Model(torch.nn.Module):
    def __init__(self, n):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(n, device="cuda"))

    def forward(self, x):
        assert x.is_cuda and x.device.type == "cuda"
        return Double.apply(x * self.weight)


def test_a_module_and_its_gradients():
    model = Model(40).to("cuda", torch.float32)
    x = torch.arange(40, device="cuda", dtype=torch.float32)
    model(x).sum().backward()
    assert torch.equal(model.weight.grad, 2 * x) and model.weight.grad.is_cuda


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, g):
        assert g.is_cuda and g.device.type == "cuda"
        return g * torch.full((2,), 2.0, device="cuda")


@pytest.mark.parametrize("how", ["backward", "grad", "hook", "checkpoint", "reentrant"])
def test_gradients_are_computed_on_the_device(how):
    x = torch.ones(2, device="cuda", requires_grad=True)
    if how in ("checkpoint", "reentrant"):
        y = checkpoint(lambda v: _Doubled.apply(v * torch.ones(2, device="cuda")), x, use_reentrant=how == "reentrant")
    else:
        y = _Doubled.apply(x)
    if how == "hook":
        y.register_hook(lambda g: g * torch.ones(2, device=g.device))
    got = torch.autograd.grad(y.sum(), x)[0] if how == "grad" else (y.sum().backward(), x.grad)[1]
    assert got.tolist() == [2.0, 2.0] and got.is_cuda


def test_streams_events_and_marks():
    stream = torch.cuda.Stream()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    x = torch.ones(8, device="cuda")
    with torch.cuda.stream(stream), torch.cuda.nvtx.range("work"):
        start.record()
        y = doubled(8)(x)
        y.record_stream(stream)
        end.record()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    assert start.elapsed_time(end) >= 0 and y.tolist() == [2.0] * 8


def test_random_numbers_are_reproducible():
    tilelang.testing.set_random_seed(3)
    torch.manual_seed(7)
    first = torch.randn(4, device="cuda")
    torch.cuda.manual_seed_all(7)
    assert torch.equal(first, torch.randn(4, device="cuda"))
    g = torch.Generator(device="cuda").manual_seed(1)
    assert torch.randint(0, 9, (5,), generator=g, device="cuda").shape == (5,)


def test_what_the_device_says():
    assert torch.cuda.get_device_properties(0).multi_processor_count == 132 == driver.get_num_sms()
    assert torch.cuda.is_available() and torch.version.cuda
    assert "cuda" in str(determine_target("auto"))
    assert tilelang.cdiv(7, 2) == 4 and tilelang.next_power_of_2(9) == 16
    assert tilelang.utils.map_torch_type("bfloat16") is torch.bfloat16


def test_moves_and_default_devices():
    x = torch.tensor([1.5], device="cuda:0").to(dtype=torch.float16, device="cuda")
    assert x.dtype is torch.float16 and x.to(0).is_cuda and x.get_device() == 0
    torch.set_default_device("cuda")
    try:
        assert torch.zeros(2).is_cuda and torch.get_default_device().type == "cuda"
    finally:
        torch.set_default_device(None)
    with torch.device("cuda"):
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).shape == (1, 2)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (torch.ones(2, 2, device="cuda") @ torch.ones(2, 2, device="cuda")).dtype is torch.bfloat16


def test_threads_see_the_device():
    seen = []
    worker = threading.Thread(target=lambda: seen.append(doubled(4)(torch.ones(4, device="cuda")).tolist()))
    worker.start()
    worker.join()
    assert seen == [[2.0] * 4]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_child_processes_see_the_device():
    text = "import torch, tilelang; x = torch.ones(3, device='cuda'); print(x.is_cuda, tilelang.__version__)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd="/", check=True)
    assert done.stdout.split() == ["True", "0.1.15"]


def test_a_print_of_the_kernel(capfd):
    @T.prim_func
    def main(A: T.Tensor((2,), "int32")):
        with T.Kernel(1, threads=32):
            T.print(A[1], msg="second")

    tilelang.compile(main)(torch.tensor([3, 4], dtype=torch.int32, device="cuda"))
    assert "second" in capfd.readouterr().out


def test_par_compile_and_files(tmp_path):
    kernels = doubled.par_compile([{"n": 4}, (8,)])
    assert [k(torch.ones(n, device="cuda")).sum().item() for k, n in zip(kernels, (4, 8))] == [8, 16]
    kernels[0].export_sources(kernel_path=tmp_path / "k.txt", host_path=tmp_path / "h.txt")
    assert (tmp_path / "k.txt").read_text() and "main" in (tmp_path / "h.txt").read_text()


def test_modules_that_need_a_gpu_import_and_refuse_their_use():
    from tilelang import tvm
    from tilelang.intrinsics.mma_macro_generator import TensorCoreIntrinEmitter
    from tilelang.transform import simplify_prim_func

    assert tvm.DataType("float16").bits == 16 and simplify_prim_func(len) is len
    with pytest.raises(NotImplementedError, match="mma_macro_generator.TensorCoreIntrinEmitter"):
        TensorCoreIntrinEmitter(a_dtype="float16")


def test_a_replayed_graph_keeps_the_results_of_its_capture():
    x = torch.ones(4, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = doubled(4)(x)
    graph.replay()
    assert y.tolist() == [2.0] * 4
    with torch.amp.autocast("cuda"), torch.cuda.device(0):
        loss = torch.amp.GradScaler("cuda").scale(torch.ones((), device="cuda"))
    assert loss.item() == 1


def test_two_torch_functions_of_the_device_are_two_objects():
    found = [f for n, f in vars(torch.cuda).items() if callable(f) and "pretended_cuda" in getattr(f, "__module__", "")]
    assert len(found) > 20 and len(set(found)) == len(found)  # torch.compile keeps tables of them
