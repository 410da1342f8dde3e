"""What programs do with `torch.cuda` and its relatives beside computing: streams, memory, seeds, profilers, modules."""

import contextlib
import copy
import threading

import pytest
import tilelang
import tilelang.language as T
import tilelang.testing
import torch
import torch.nn.functional as F
from torch.amp import custom_bwd, custom_fwd
from torch.cuda import nvtx
from torch.cuda.nvtx import range_pop, range_push


@tilelang.jit(out_idx=[1])
def scaled(n, by, dtype="float32"):
    @T.prim_func
    def main(A: T.Tensor((n,), dtype), B: T.Tensor((n,), dtype)):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
            for i in T.Parallel(32):
                B[bx * 32 + i] = A[bx * 32 + i] * by

    return main


def test_streams_are_entered_and_left():
    first, s = torch.cuda.current_stream(), torch.cuda.Stream(device="cuda", priority=-1)
    assert first == torch.cuda.default_stream() and s != first and isinstance(s, torch.cuda.Stream)
    assert s.device == torch.device("cuda", 0) and s.cuda_stream != first.cuda_stream
    s.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(s):
        assert torch.cuda.current_stream() == s and torch.cuda.current_stream(0).cuda_stream == s.cuda_stream
        with torch.cuda.stream(None), torch.cuda.stream(first):
            assert torch.cuda.current_stream() == first
        assert torch.cuda.current_stream() == s
        seen = []
        other = threading.Thread(target=lambda: seen.append(torch.cuda.current_stream()))
        other.start()
        other.join()
        assert seen == [first]
    with s:
        assert torch.cuda.current_stream() is s
    torch.cuda.set_stream(s)
    assert torch.cuda.current_stream() == s and torch.cuda.ExternalStream(s.cuda_stream) == s
    torch.cuda.set_stream(first)
    start, end = (torch.cuda.Event(enable_timing=True, blocking=False, external=False) for _ in range(2))
    start.record(s)
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) >= 0 and s.record_event().query()
    with pytest.raises(RuntimeError, match="enable_timing"):
        torch.cuda.Event().elapsed_time(end)


def test_generators():
    g = torch.Generator(device="cuda")
    assert isinstance(g, torch.Generator) and isinstance(torch.default_generator, torch.Generator)
    assert g.device == torch.device("cuda", 0) and torch.Generator().device.type == "cpu"
    assert not isinstance(3, torch.Generator)
    a = torch.randn(5, generator=g.manual_seed(4), device="cuda")
    assert torch.equal(a, torch.randn(5, generator=g.manual_seed(4), device="cuda:0"))
    assert torch.randperm(5, generator=torch.Generator("cuda"), device="cuda").sum() == 10
    state = torch.cuda.get_rng_state()
    b = torch.rand(3, device="cuda")
    torch.cuda.set_rng_state(state)
    assert torch.equal(b, torch.rand(3, device="cuda"))
    torch.cuda.random.manual_seed(3)
    c = torch.rand(3, device="cuda")
    torch.cuda.manual_seed(3)
    assert torch.equal(c, torch.rand(3, device="cuda"))
    with torch.random.fork_rng(devices=[0]):
        torch.cuda.manual_seed_all(1)


def test_memory_marks_and_the_runtime():
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    x = torch.empty(4, pin_memory=True).pin_memory().to("cuda", non_blocking=True)
    assert x.is_cuda and torch.cuda.memory_allocated() >= 0 and torch.cuda.max_memory_allocated("cuda:0") >= 0
    assert torch.cuda.memory.max_memory_reserved() >= 0 and torch.cuda.memory_stats()["allocated_bytes.all.peak"] >= 0
    free, total = torch.cuda.mem_get_info(0)
    assert 0 < free <= total and isinstance(torch.cuda.memory_summary(), str)
    nvtx.range_push("a")
    nvtx.range_pop()
    range_push("b")
    range_pop()
    torch.cuda.nvtx.mark("c")
    with torch.cuda.nvtx.range("d"):
        torch.cuda.cudart().cudaProfilerStart()
    torch.cuda.cudart().cudaProfilerStop()
    torch.cuda.profiler.start()
    torch.cuda.profiler.stop()


@pytest.mark.parametrize("place", [0, "cuda", "cuda:0", torch.device("cuda"), torch.device("cuda", 0), torch.device(0)])
def test_places(place):
    x = torch.ones(3, device=place)
    moved = [torch.ones(3).to(place), torch.ones(3).to(device=place, dtype=torch.half), torch.ones(3).cuda(place)]
    assert x.is_cuda and x.device.type == "cuda" and x.device.index == 0 and all(m.is_cuda for m in moved)
    layer = torch.nn.Linear(3, 3, device=place).to(device=place, dtype=torch.float32).cuda(place)
    assert next(layer.parameters()).is_cuda and layer(x).is_cuda
    with torch.cuda.device(place):
        assert torch.cuda.current_device() == 0
    torch.cuda.synchronize(place)
    assert torch.cuda.get_device_name(place) and torch.cuda.get_device_capability(place) == (9, 0)
    torch.set_default_device(place)
    try:
        assert torch.arange(3).is_cuda and torch.get_default_device().type == "cuda"
        assert torch.equal(scaled(3, 2.0)(torch.arange(3).float()), torch.tensor([0.0, 2.0, 4.0]))
    finally:
        torch.set_default_device("cpu")


def test_what_lies_elsewhere():
    meta = torch.empty(3, device="meta")
    assert meta.device.type == "meta" and not meta.is_cuda
    x = torch.arange(3.0, device="cuda")
    assert torch.equal(torch.from_dlpack(x), x) and x.cpu().numpy().tolist() == [0, 1, 2]


def test_what_the_device_is():
    assert torch.cuda.device_count() == 1 and torch.cuda.is_bf16_supported()
    if hasattr(torch, "accelerator"):
        assert torch.accelerator.is_available() and torch.accelerator.current_accelerator().type == "cuda"
        torch.accelerator.synchronize()
        assert torch.accelerator.current_stream() == torch.cuda.current_stream() and torch.Stream("cuda").query()
        assert torch.Event("cuda", enable_timing=True).timing
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic = True, True
    torch.backends.cuda.enable_flash_sdp(True)
    torch.set_float32_matmul_precision("high")
    q = torch.randn(1, 2, 8, 16, device="cuda", dtype=torch.float16)
    want = F.scaled_dot_product_attention(q, q, q)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    for kind in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kind):
            torch.testing.assert_close(F.scaled_dot_product_attention(q, q, q), want, rtol=1e-2, atol=1e-2)
    assert torch.FloatTensor(2).type(torch.cuda.FloatTensor).dtype is torch.float32


class Scale(torch.autograd.Function):
    @staticmethod
    @custom_fwd(device_type="cuda", cast_inputs=torch.float16)
    def forward(ctx, x):
        assert not torch.is_autocast_enabled() and x.dtype is torch.float16
        return scaled(x.numel(), 3.0, "float16")(x)

    @staticmethod
    @custom_bwd(device_type="cuda")
    def backward(ctx, grad):
        assert grad.is_cuda
        return scaled(grad.numel(), 3.0, "float16")(grad.contiguous())


def test_automatic_precision():
    x = torch.ones(4, device="cuda", requires_grad=True)
    with torch.cuda.amp.autocast(dtype=torch.bfloat16):
        assert torch.is_autocast_enabled() and torch.get_autocast_gpu_dtype() is torch.bfloat16
        assert torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") is torch.bfloat16
        y = Scale.apply(x)
    scaler = torch.cuda.amp.GradScaler()
    optimizer = torch.optim.AdamW([x], lr=1e-3, fused=False)
    scaler.scale(y.float().sum()).backward()
    assert x.grad.tolist() == [3.0] * 4
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()


def test_a_profiler_of_torch():
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds[1:]), torch.autograd.profiler.emit_nvtx():
        torch.ones(2, device="cuda").sum()
    with torch.profiler.profile(activities=kinds, record_shapes=True) as seen:
        with torch.profiler.record_function("ours"):
            scaled(8, 2.0)(torch.ones(8, device="cuda")).sum()
    assert "ours" in seen.key_averages().table(sort_by="cuda_time_total", row_limit=10)


class Counter(threading.Thread):
    """Threads of programs override `run`."""

    def run(self):
        self.found = scaled(4, 2.0)(torch.ones(4, device="cuda"))


def test_threads_and_copies():
    worker = Counter()
    worker.start()
    worker.join()
    assert worker.found.is_cuda and worker.found.tolist() == [2.0] * 4
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).cuda().half()
    twin = copy.deepcopy(model)
    assert all(p.is_cuda and p.dtype is torch.half for p in twin.parameters())
    twin.load_state_dict(model.state_dict())
    data = torch.utils.data.TensorDataset(torch.arange(6.0))
    for workers in (0, 1):
        for (batch,) in torch.utils.data.DataLoader(data, batch_size=3, num_workers=workers, pin_memory=True):
            assert scaled(3, 2.0)(batch.cuda(non_blocking=True)).sum() == 2 * batch.sum()


def test_what_one_thread_does_is_not_seen_by_others():
    """A kernel at work knows where things lie in truth; a thread beside it still has a GPU."""
    begun, seen = threading.Event(), []

    def look():
        begun.wait()
        while not seen or seen[-1] is not None:
            seen.append(None if done.is_set() else torch.ones(1, device="cuda").pin_memory().is_cuda)

    done, other = threading.Event(), threading.Thread(target=look)
    other.start()
    kernel, x = scaled(1 << 20, 2.0), torch.ones(1 << 20, device="cuda")
    begun.set()
    for _ in range(20):
        kernel(x)
    done.set()
    other.join()
    assert seen[-1] is None and all(seen[:-1])


@torch.compile(mode="max-autotune", fullgraph=True)
def reference(x):
    assert x.is_cuda
    return F.relu(x * 2) + 1


def test_a_reference_that_is_compiled_by_torch():
    x = torch.randn(40, device="cuda")
    torch.testing.assert_close(reference(x), torch.relu(x * 2) + 1)
    around = torch.compile(torch.nn.Sequential(torch.nn.Linear(40, 40, bias=False).cuda(), torch.nn.ReLU()))
    x.requires_grad_()
    (around(x).sum() + torch.compile(lambda x: scaled(40, 2.0)(x.detach()))(x).sum()).backward()
    assert x.grad.is_cuda and x.grad.shape == (40,)


def test_a_captured_graph_has_a_stream_of_its_own():
    side, x = torch.cuda.Stream(), torch.ones(4, device="cuda")
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            scaled(4, 2.0)(x)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        assert torch.cuda.is_current_stream_capturing() and torch.cuda.current_stream() == side
        y = scaled(4, 2.0)(x)
    x.fill_(5)
    graph.replay()
    torch.cuda.synchronize()
    assert y.tolist() == [10.0] * 4 and not torch.cuda.is_current_stream_capturing()
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        stack.enter_context(torch.cuda.device("cuda:0"))
        assert scaled(4, 2.0)(x).tolist() == [10.0] * 4


if __name__ == "__main__":
    tilelang.testing.main()
