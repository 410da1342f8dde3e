"""`tiledsl bench --target cuda`: library kernels on a GPU against torch and Triton (by torch.compile), as shares of
what this GPU was measured to do. Not yet run on a GPU; the jobs themselves run on the emulator in small."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

from tiledsl.bench.job import Thunk, torch_module
from tiledsl.bench.measure import Row
from tiledsl.errors import TileRuntimeError, TileValueError

__all__ = ["GPU_JOBS", "GpuJob", "main", "problem", "row"]

_DEVICE = "cuda"
_FLUSH = 256 << 20  # bytes that are written between calls: more than a GPU's cache
_ROUNDS = 25
# (torch, device, target, small) -> the contestants, ours ("tiledsl") first
GpuMaker = Callable[[Any, str, str, bool], dict[str, Thunk]]


@dataclass(frozen=True)
class GpuJob:
    """One line of the table: `work` counts operations, `moved` bytes that come from memory and go there; the one that
    is given decides on the bound."""

    name: str
    make: GpuMaker
    work: float = 0.0
    moved: float = 0.0


def problem() -> str:
    """Why nothing can be measured here, as a sentence; empty where it can."""
    from tiledsl.backends.cuda_nvrtc.driver import driver_problem  # a backend: the bench does without it

    reason = driver_problem()
    if reason:
        return reason
    torch = torch_module()
    if torch is None:
        return "torch is not installed, whose tensors hold the data"
    return "" if torch.cuda.is_available() else "torch was installed without CUDA"


def main(options: Any) -> int:
    """Measures the jobs on the current GPU and prints a table.

    Raises TileRuntimeError, with what is missing, where there is no GPU, and TileValueError for unknown jobs.
    """
    unknown = [n for n in options.jobs if n not in GPU_JOBS]
    if unknown:
        raise TileValueError(f"unknown job {unknown[0]!r} on a GPU", help=f"one of {', '.join(GPU_JOBS)}")
    if options.plot:
        raise TileValueError("--plot draws a processor's roofline", help="use --json on a GPU")
    reason = problem()
    if reason:
        raise TileRuntimeError(
            f"target cuda cannot be measured here: {reason}",
            help="run this on a machine with an NVIDIA GPU, its driver, torch with CUDA and `pip install "
            "'tiledsl[cuda]'`; without --target the processor is measured",
        )
    torch = torch_module()
    ceilings = {"products": _product_rate(torch), "copies": _copy_rate(torch)}
    device = torch.cuda.get_device_name()
    print(f"{device}: {ceilings['products'] / 1e12:.0f} TFLOP/s bfloat16, {ceilings['copies'] / 1e9:.0f} GB/s copied")
    rows = []
    for name in options.jobs or GPU_JOBS:
        job = GPU_JOBS[name]
        contestants = job.make(torch, _DEVICE, options.target, False)
        agree(name, contestants)
        rows.append(row(job, measured(torch, contestants), ceilings))
        print(text(rows[-1]), flush=True)
    if options.json:
        table = {"device": device, "date": time.strftime("%Y-%m-%d"), "ceilings": ceilings}
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump({**table, "rows": [asdict(r) for r in rows]}, f, indent=1)
    return 0


def row(job: GpuJob, seconds: dict[str, float], ceilings: dict[str, float]) -> Row:
    """The line of a job's seconds per contestant. ceilings: operations ("products") and bytes ("copies") per second."""
    ours = seconds["tiledsl"]
    peers = [t for who, t in seconds.items() if who != "tiledsl"]
    bound = max(job.work / ceilings["products"], job.moved / ceilings["copies"])
    milliseconds = {who: t * 1e3 for who, t in seconds.items()}
    rates = job.work / ours / 1e9, job.moved / ours / 1e9
    return Row(job.name, milliseconds, *rates, min(peers) / ours if peers else None, bound / ours, None)


def text(r: Row) -> str:
    """One line of the table."""
    rate = f"{r.gbytes:8.0f} GB/s   " if r.gbytes else f"{r.gflops / 1e3:8.1f} TFLOP/s"
    times = "  ".join(f"{who} {ms:8.3f} ms" for who, ms in r.milliseconds.items())
    ratio = "  no peer   " if r.ratio is None else f"  ratio {r.ratio:5.2f}"
    return f"{r.job:28s} {rate}{ratio}  {r.share or 0.0:4.0%} of the bound   {times}"


def agree(job: str, contestants: dict[str, Thunk]) -> None:
    """Raises TileRuntimeError where ours differs from torch's result by more than some roundings of bfloat16: times of
    wrong results mean nothing."""
    ours, theirs = (contestants[who]().float() for who in ("tiledsl", "torch"))
    off, size = float((ours - theirs).abs().max()), float(theirs.abs().max())
    if ours.shape != theirs.shape or not off <= 2.0**-6 * size:  # NaN is not
        raise TileRuntimeError(f"{job}: the result is off by {off:.3g} from torch's, whose largest value is {size:.3g}")


def measured(torch: Any, jobs: dict[str, Thunk]) -> dict[str, float]:
    """Median seconds of each contestant by events of the GPU, in turns, with a cold cache. What a peer cannot do is
    left out, and said."""
    able: dict[str, Thunk] = {}
    for who, f in jobs.items():
        try:
            for _ in range(3):
                f()
            torch.cuda.synchronize()
            able[who] = f
        except Exception as e:
            if who == "tiledsl":
                raise
            print(f"  {who}: {type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}", file=sys.stderr)
    flush = torch.empty(_FLUSH, dtype=torch.uint8, device=_DEVICE)
    times: dict[str, list[float]] = {who: [] for who in able}
    for _ in range(_ROUNDS):
        for who, f in able.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            f()
            end.record()
            end.synchronize()
            times[who].append(begin.elapsed_time(end) / 1e3)
    return {who: statistics.median(t) for who, t in times.items()}


def _product_rate(torch: Any) -> float:
    """Operations per second of torch's bfloat16 product of 8192 x 8192 matrices."""
    a, b = (_normal(torch, (8192, 8192), _DEVICE, seed) for seed in (1, 2))
    return float(2.0 * 8192**3 / measured(torch, {"tiledsl": lambda: a @ b})["tiledsl"])


def _copy_rate(torch: Any) -> float:
    """Bytes read and written per second by a copy of 2 GiB."""
    a = torch.empty(1 << 31, dtype=torch.uint8, device=_DEVICE)
    b = torch.empty_like(a)
    return float(2.0 * a.numel() / measured(torch, {"tiledsl": lambda: b.copy_(a)})["tiledsl"])


# -- jobs ----------------------------------------------------------------------------------------------------------


def _normal(torch: Any, shape: tuple[int, ...], device: str, seed: int) -> Any:
    """Random data: constant data is multiplied faster, with less power."""
    generator = torch.Generator(device).manual_seed(seed)
    return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(torch.bfloat16)


def _triton(torch: Any, name: str, f: Callable[..., Any], *given: Any) -> dict[str, Thunk]:
    """f as torch compiles it to Triton, where that is installed and the data lies on a GPU."""
    if find_spec("triton") is None or not given[0].is_cuda:
        return {}
    torch._inductor.config.max_autotune_gemm_backends = "TRITON"
    compiled = torch.compile(f, mode="max-autotune-no-cudagraphs")
    return {name: lambda: compiled(*given)}


def _gemm(torch: Any, device: str, target: str, small: bool) -> dict[str, Thunk]:
    from tiledsl.kernels import matmul

    n = 96 if small else 8192
    a, b = (_normal(torch, (n, n), device, seed) for seed in (1, 2))
    out = torch.empty_like(a)
    return {
        "tiledsl": lambda: matmul(a, b, out=out, target=target),
        "torch": lambda: a @ b,
        **_triton(torch, "triton", torch.matmul, a, b),
    }


def _attention(causal: bool) -> GpuMaker:
    def make(torch: Any, device: str, target: str, small: bool) -> dict[str, Thunk]:
        from tiledsl.kernels import flash_attention

        shape = (1, 2, 80, 128) if small else (1, 16, 16384, 128)
        q, k, v = (_normal(torch, shape, device, seed) for seed in (1, 2, 3))
        out = torch.empty_like(q)
        sdpa = torch.nn.functional.scaled_dot_product_attention
        jobs: dict[str, Thunk] = {
            "tiledsl": lambda: flash_attention(q, k, v, causal=causal, layout="bhsd", out=out, target=target),
            "torch": lambda: sdpa(q, k, v, is_causal=causal),
        }
        if q.is_cuda and find_spec("triton") is not None:  # torch's flexible attention is a kernel of Triton
            from torch.nn.attention.flex_attention import create_block_mask, flex_attention

            mask = create_block_mask(lambda b, h, i, j: i >= j, None, None, *shape[2:3] * 2) if causal else None
            flexible = torch.compile(flex_attention)
            jobs["triton"] = lambda: flexible(q, k, v, block_mask=mask)
        return jobs

    return make


def _mla(torch: Any, device: str, target: str, small: bool) -> dict[str, Thunk]:
    """128 heads on one latent cache of 576 elements per token, 128 sequences of 8192 tokens."""
    from tiledsl.kernels import mla_decode

    batch, heads, tokens = (2, 3, 70) if small else (128, 128, 8192)
    q, cache = _normal(torch, (batch, heads, 576), device, 1), _normal(torch, (batch, tokens, 576), device, 2)
    scale = 192**-0.5

    def with_torch() -> Any:
        scores = torch.softmax(torch.matmul(q, cache.mT).float() * scale, -1)
        return torch.matmul(scores.to(q.dtype), cache[..., :512])

    return {"tiledsl": lambda: mla_decode(q, cache, scale=scale, target=target), "torch": with_torch}


def _grouped(torch: Any, device: str, target: str, small: bool) -> dict[str, Thunk]:
    """8 experts of 4096 x 4096 with 4096 rows each."""
    from tiledsl.kernels import grouped_gemm

    groups, rows, k, n = (3, 17, 64, 80) if small else (8, 4096, 4096, 4096)
    a, b = _normal(torch, (groups * rows, k), device, 1), _normal(torch, (groups, k, n), device, 2)
    sizes = torch.full((groups,), rows, dtype=torch.int32, device=device)
    out = torch.empty((groups * rows, n), dtype=a.dtype, device=device)
    return {
        "tiledsl": lambda: grouped_gemm(a, b, sizes, out=out, target=target),
        "torch": lambda: torch.bmm(a.view(groups, rows, k), b).view(groups * rows, n),
        **_triton(torch, "triton", torch.bmm, a.view(groups, rows, k), b),
    }


def _rms_norm(torch: Any, device: str, target: str, small: bool) -> dict[str, Thunk]:
    from tiledsl.kernels import rms_norm

    m, n = (9, 300) if small else (32768, 8192)
    x, w = _normal(torch, (m, n), device, 1), _normal(torch, (n,), device, 2)
    out = torch.empty_like(x)

    def norm(x: Any, w: Any) -> Any:
        return torch.nn.functional.rms_norm(x, (n,), w, 1e-6)

    return {
        "tiledsl": lambda: rms_norm(x, w, out=out, target=target),
        "torch": lambda: norm(x, w),
        **_triton(torch, "triton", norm, x, w),
    }


GPU_JOBS = {
    job.name: job
    for job in (
        GpuJob("gemm-bf16-8192", _gemm, work=2.0 * 8192**3),
        GpuJob("attention-bf16-d128-16k", _attention(False), work=4.0 * 16 * 16384**2 * 128),
        GpuJob("attention-bf16-d128-16k-causal", _attention(True), work=2.0 * 16 * 16384**2 * 128),
        GpuJob("mla-decode-bf16", _mla, work=2.0 * 128 * 128 * 8192 * (576 + 512)),
        GpuJob("grouped-bf16", _grouped, work=2.0 * 8 * 4096**3),
        GpuJob("rms-norm-bf16", _rms_norm, moved=2.0 * 2 * 32768 * 8192),
    )
}
