"""Layers that train: kernels in functions of autograd, in operators of torch, in modules; checkpoints; processes."""

import functools
import os

import tilelang
import tilelang.language as T
import tilelang.testing
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
dtype = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


@functools.cache
@tilelang.jit(out_idx=[2, 3])
def rms_norm(N, eps=1e-6, rows=4, dtype="bfloat16"):
    M = T.symbolic("M")

    @T.prim_func
    def main(
        X: T.Tensor((M, N), dtype), W: T.Tensor((N,), dtype), Y: T.Tensor((M, N), dtype), R: T.Tensor((M,), "float32")
    ):
        with T.Kernel(T.ceildiv(M, rows), threads=64) as b:
            x = T.alloc_fragment((rows, N), "float32")
            squares = T.alloc_fragment((rows, N), "float32")
            r = T.alloc_fragment((rows,), "float32")
            T.copy(X[b * rows, 0], x)
            for i, j in T.Parallel(rows, N):
                squares[i, j] = x[i, j] * x[i, j]
            T.reduce_sum(squares, r, dim=1)
            for i in T.Parallel(rows):
                r[i] = T.rsqrt(r[i] / N + eps)
            for i, j in T.Parallel(rows, N):
                x[i, j] = x[i, j] * r[i] * W[j]
            T.copy(x, Y[b * rows, 0])
            T.copy(r, R[b * rows])

    return main


class RMSNormFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        assert x.is_cuda and w.is_cuda, x.device
        y, r = rms_norm(x.shape[-1])(x.view(-1, x.shape[-1]).contiguous(), w)
        ctx.save_for_backward(x, w, r)
        return y.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        x, w, r = ctx.saved_tensors
        assert grad.is_cuda and r.device.type == "cuda"
        n = x.shape[-1]
        xf, gf = x.float().view(-1, n), grad.float().view(-1, n)
        normal, gx = xf * r[:, None], gf * w.float()
        with torch.cuda.device(x.device):
            gx = r[:, None] * (gx - normal * (gx * normal).mean(-1, keepdim=True)) + torch.zeros(1, device="cuda")
        return gx.to(x.dtype).view_as(x), (gf * normal).sum(0).to(w.dtype)


class Block(nn.Module):
    def __init__(self, n, **where):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n, **where))
        self.linear = nn.Linear(n, n, bias=False, **where)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long, device=device), persistent=False)

    def forward(self, x):
        self.calls += 1
        return x + F.silu(self.linear(RMSNormFunction.apply(x, self.weight)))


def test_training(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(Block(64, device=device, dtype=dtype), Block(64, device=device, dtype=dtype)).cuda().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True)
    x = torch.randn(3, 5, 64, device=device, dtype=dtype, requires_grad=True)
    losses = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=True)
        h = checkpoint(model[0], x, use_reentrant=False)
        loss = checkpoint(model[1], h, use_reentrant=True).float().pow(2).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        torch.cuda.synchronize()
        losses.append(loss.item())
    assert losses[0] > losses[1] > losses[2] and model[0].calls == 6
    torch.save(model.state_dict(), tmp_path / "model.pt")
    model.load_state_dict(torch.load(tmp_path / "model.pt", map_location="cuda", weights_only=True))
    want = F.rms_norm(x.float(), (64,), eps=1e-6)
    torch.testing.assert_close(RMSNormFunction.apply(x, torch.ones_like(x[0, 0])).float(), want, rtol=2e-2, atol=2e-2)


@torch.library.custom_op("training_programs::rms", mutates_args=(), device_types="cuda")
def rms(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return rms_norm(x.shape[-1])(x, w)[0]


@rms.register_fake
def _(x, w):
    return torch.empty_like(x)


rms.register_autograd(
    lambda ctx, grad: (grad * 2, None), setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs)
)


def test_operators_for_cuda():
    x, w = torch.randn(7, 64, device="cuda", dtype=dtype, requires_grad=True), torch.ones(64, device="cuda").to(dtype)
    torch.ops.training_programs.rms(x, w).sum().backward()
    assert x.grad.float().mean() == 2
    torch.library.opcheck(rms, (x.detach(), w))
    exported = torch.export.export(nn.Linear(64, 2).cuda().to(dtype), (x,))
    assert exported.module()(x).is_cuda
    library = torch.library.Library("training_programs_too", "DEF")
    library.define("twice(Tensor x) -> Tensor")
    library.impl("twice", lambda x: x * 2, "CUDA")
    library.impl("twice", lambda x: x.no_such_member, "CPU")
    assert torch.ops.training_programs_too.twice(torch.ones(2, device="cuda")).sum() == 4


def test_a_group_of_processes(monkeypatch, tmp_path):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    torch.cuda.set_device(rank)
    where = torch.device("cuda", rank)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/group", rank=0, world_size=1, device_id=where)
    try:
        x = torch.ones(3, device=where)
        dist.all_reduce(x, group=dist.new_group([0], backend="nccl"))
        dist.barrier(device_ids=[rank])
        model = nn.parallel.DistributedDataParallel(nn.Linear(3, 2).cuda(), device_ids=[rank], output_device=rank)
        model(x[None]).sum().backward()
        assert model.module.weight.grad.is_cuda
        assert x.is_cuda and x.sum() == 3 and dist.get_world_size() == 1
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    tilelang.testing.main()
