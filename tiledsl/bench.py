"""`tiledsl bench`: library kernels against NumPy, torch and Numba in one process, interleaved, medians, as ratios.

A ratio above 1 means that tiledsl is faster than the better of the peers that are installed. Nothing here gates a
test: machines differ and are shared; `docs/performance.md` keeps measured tables with machine and date.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl.bench_threads import THREAD_JOBS
from tiledsl.errors import TileValueError

__all__ = ["JOBS", "Job", "Row", "arguments", "main", "run"]

Thunk = Callable[[], Any]
SETTLE = 0.05  # seconds until the spinning threads of another library sleep
_CHILD = "_TILEDSL_BENCH_CHILD"
_ROWS = (13, 200, 64, 0, 301, 129, 7, 310)


@dataclass(frozen=True)
class Job:
    """A name, its floating-point operations, and a maker of the contestants (the first is ours)."""

    name: str
    flops: float
    make: Callable[[str | None], dict[str, Thunk]]


@dataclass(frozen=True)
class Row:
    """One measured line: milliseconds per contestant, GFLOP/s and ratio of ours to the best peer."""

    job: str
    milliseconds: dict[str, float]
    gflops: float
    ratio: float | None


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    return torch


def _array(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    return rng.standard_normal(shape, dtype=np.float32).astype(dtype)


def _tensor(torch: Any, x: np.ndarray[Any, Any]) -> Any:
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(x)


def _gemm(n: int, dtype: Any) -> Callable[[str | None], dict[str, Thunk]]:
    def make(target: str | None) -> dict[str, Thunk]:
        from tiledsl.kernels import matmul

        rng = np.random.default_rng(0)
        a, b = _array(rng, (n, n), dtype), _array(rng, (n, n), dtype)
        out = np.empty((n, n), dtype)
        jobs: dict[str, Thunk] = {"tiledsl": lambda: matmul(a, b, out=out, target=target)}
        if dtype == np.float32:
            peer = np.empty((n, n), dtype)
            jobs["numpy"] = lambda: np.matmul(a, b, out=peer)
        if torch := _torch():
            ta, tb = _tensor(torch, a), _tensor(torch, b)
            to = torch.empty_like(ta)
            jobs["torch"] = lambda: torch.mm(ta, tb, out=to)
        return jobs

    return make


def _attention(d: int, dtype: Any, causal: bool) -> Callable[[str | None], dict[str, Thunk]]:
    def make(target: str | None) -> dict[str, Thunk]:
        from tiledsl.kernels import flash_attention

        rng = np.random.default_rng(0)
        q, k, v = (_array(rng, (1, 8, 2048, d), dtype) for _ in range(3))
        out = np.empty_like(q)

        def ours() -> Any:
            return flash_attention(q, k, v, causal=causal, layout="bhsd", out=out, target=target)

        jobs: dict[str, Thunk] = {"tiledsl": ours}
        if torch := _torch():
            tq, tk, tv = (_tensor(torch, x) for x in (q, k, v))
            sdpa = torch.nn.functional.scaled_dot_product_attention
            jobs["torch"] = lambda: sdpa(tq, tk, tv, is_causal=causal)
        return jobs

    return make


def _grouped(target: str | None) -> dict[str, Thunk]:
    from tiledsl.kernels import grouped_gemm

    rng = np.random.default_rng(0)
    k = n = 512
    a, b = _array(rng, (sum(_ROWS), k), np.float32), _array(rng, (len(_ROWS), k, n), np.float32)
    sizes = np.array(_ROWS, np.int32)
    out = np.empty((sum(_ROWS), n), np.float32)
    starts = np.concatenate([[0], np.cumsum(_ROWS)])
    spans = [(e, int(starts[e]), int(starts[e + 1])) for e in range(len(_ROWS)) if _ROWS[e]]
    peer = np.empty_like(out)

    def with_numpy() -> None:
        for e, lo, hi in spans:
            np.matmul(a[lo:hi], b[e], out=peer[lo:hi])

    jobs: dict[str, Thunk] = {"tiledsl": lambda: grouped_gemm(a, b, sizes, out=out, target=target), "numpy": with_numpy}
    if torch := _torch():
        ta, tb = torch.from_numpy(a), torch.from_numpy(b)
        to = torch.empty(sum(_ROWS), n)

        def with_torch() -> None:
            for e, lo, hi in spans:
                torch.mm(ta[lo:hi], tb[e], out=to[lo:hi])

        jobs["torch"] = with_torch
    return jobs


def _int8(n: int) -> Callable[[str | None], dict[str, Thunk]]:
    def make(target: str | None) -> dict[str, Thunk]:
        from tiledsl.kernels import int8_matmul

        rng = np.random.default_rng(0)
        a, b = (rng.integers(-128, 128, (n, n)).astype(np.int8) for _ in "ab")
        out = np.empty((n, n), np.int32)
        jobs: dict[str, Thunk] = {"tiledsl": lambda: int8_matmul(a, b, out=out, target=target)}
        if torch := _torch():
            ta, tb = torch.from_numpy(a), torch.from_numpy(b)
            jobs["torch"] = lambda: torch._int_mm(ta, tb)
        return jobs

    return make


def _decode(target: str | None) -> dict[str, Thunk]:
    """32 query heads, 8 key heads, D128, batch 4, 64k tokens each: 1 GiB of cache in bfloat16."""
    from tiledsl.kernels import attention_decode

    q = _array(np.random.default_rng(0), (4, 32, 128), ml_dtypes.bfloat16)
    k, v = (_large((4, 1 << 16, 8, 128), ml_dtypes.bfloat16, seed) for seed in (1, 2))
    out = np.empty_like(q)
    jobs: dict[str, Thunk] = {"tiledsl": lambda: attention_decode(q, k, v, out=out, target=target)}
    if torch := _torch():
        tq, tk, tv = _tensor(torch, q)[:, :, None], *(_tensor(torch, x).transpose(1, 2) for x in (k, v))
        sdpa = torch.nn.functional.scaled_dot_product_attention
        jobs["torch"] = lambda: sdpa(tq, tk, tv, enable_gqa=True)
    return jobs


def _large(shape: tuple[int, ...], dtype: Any, seed: int) -> np.ndarray[Any, Any]:
    """Random numbers, a mebibyte of them repeated: what is large takes time to draw."""
    part = _array(np.random.default_rng(seed), (1 << 20,), dtype)
    return np.resize(part, shape)


def _attention_backward(causal: bool) -> Callable[[str | None], dict[str, Thunk]]:
    def make(target: str | None) -> dict[str, Thunk]:
        from tiledsl.kernels import flash_attention, flash_attention_backward

        rng = np.random.default_rng(0)
        q, k, v, do = (_array(rng, (1, 8, 2048, 64), np.float32) for _ in range(4))
        o, lse = flash_attention(q, k, v, causal=causal, layout="bhsd", return_lse=True, target=target)

        def ours() -> Any:
            return flash_attention_backward(q, k, v, o, lse, do, causal=causal, layout="bhsd", target=target)

        jobs: dict[str, Thunk] = {"tiledsl": ours}
        if torch := _torch():
            leaves = [torch.from_numpy(x).requires_grad_() for x in (q, k, v)]
            result = torch.nn.functional.scaled_dot_product_attention(*leaves, is_causal=causal)
            tdo = torch.from_numpy(do)
            jobs["torch"] = lambda: torch.autograd.grad(result, leaves, tdo, retain_graph=True)
        return jobs

    return make


def _rows(name: str) -> Callable[[str | None], dict[str, Thunk]]:
    """Functions of rows on 512 MiB in and as much out (swiglu: half); written where they read nothing again."""

    def make(target: str | None) -> dict[str, Thunk]:
        from tiledsl import kernels

        x, w = _large((1 << 16, 2048), np.float32, 0), _array(np.random.default_rng(1), (2048,), np.float32)
        shapes = {"swiglu": (1 << 16, 1024), "transpose": (2048, 1 << 16)}
        out = np.empty(shapes.get(name, x.shape), np.float32)
        extra = {"rms_norm": (w,), "layer_norm": (w, w)}.get(name, ())
        ours = getattr(kernels, name)
        jobs: dict[str, Thunk] = {"tiledsl": lambda: ours(x, *extra, out=out, target=target)}
        if name == "cumsum":
            jobs["numpy"] = lambda: np.cumsum(x, axis=1, out=out)
        if torch := _torch():
            tx, tw, to = torch.from_numpy(x), torch.from_numpy(w), torch.from_numpy(out)
            f = torch.nn.functional

            def gated() -> Any:
                return torch.mul(f.silu(tx[:, :1024]), tx[:, 1024:], out=to)

            jobs["torch"] = {
                "softmax": lambda: torch.softmax(tx, -1, out=to),
                "rms_norm": lambda: f.rms_norm(tx, (2048,), tw),
                "layer_norm": lambda: f.layer_norm(tx, (2048,), tw, tw),
                "swiglu": gated,
                "transpose": lambda: to.copy_(tx.T),
                "cumsum": lambda: torch.cumsum(tx, 1, out=to),
            }[name]
        return jobs

    return make


ROWS = ("softmax", "rms_norm", "layer_norm", "swiglu", "transpose", "cumsum")


def _jobs() -> dict[str, Job]:
    bf16 = ml_dtypes.bfloat16
    found = [Job(f"gemm-f32-{n}", 2.0 * n**3, _gemm(n, np.float32)) for n in (512, 1024, 2048)]
    found += [Job(f"gemm-{x}-1024", 2.0 * 1024**3, _gemm(1024, t)) for x, t in (("bf16", bf16), ("f16", np.float16))]
    found += [Job("gemm-int8-1024", 2.0 * 1024**3, _int8(1024))]
    for d in (64, 128):
        for name, dtype in (("f32", np.float32), ("bf16", bf16)):
            for causal in (False, True):
                flops = 4.0 * 8 * 2048 * 2048 * d * (0.5 if causal else 1.0)
                found.append(
                    Job(f"attention-{name}-d{d}{'-causal' if causal else ''}", flops, _attention(d, dtype, causal))
                )
    for causal in (False, True):  # five products; ours computes two of them twice
        flops = 10.0 * 8 * 2048 * 2048 * 64 * (0.5 if causal else 1.0)
        found.append(
            Job(f"attention-backward-f32-d64{'-causal' if causal else ''}", flops, _attention_backward(causal))
        )
    found.append(Job("attention-decode-bf16", 4.0 * 4 * 32 * 128 * (1 << 16), _decode))
    found += [Job(name.replace("_", "-"), float(1 << 27), _rows(name)) for name in ROWS]
    found.append(Job("grouped-f32", 2.0 * sum(_ROWS) * 512 * 512, _grouped))
    found += [Job(name, operations, make) for name, (operations, make) in THREAD_JOBS.items()]
    return {j.name: j for j in found}


JOBS = _jobs()


def measure(jobs: dict[str, Thunk], threads: int, seconds: float = 3.0) -> dict[str, float]:
    """Median seconds of each contestant, interleaved A B C A B C ... after one warm-up round each.

    With one thread everybody runs on the calling thread: its CPU time is taken, which other work on a shared
    machine does not lengthen. With more, wall time, after a while of the same untimed: the threads of a
    library that has just worked spin on, on the cores that the next one needs.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    first = {}
    for name, f in jobs.items():
        f()
        start = clock()
        f()
        first[name] = clock() - start
    rounds = int(min(101, max(5, seconds / max(1e-6, sum(first.values())))))
    times: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, f in jobs.items():
            until = time.perf_counter() + (SETTLE if threads > 1 else 0.0)
            while time.perf_counter() < until:
                f()
            start = clock()
            f()
            times[name].append(clock() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def run(names: list[str], target: str | None, threads: int, on_row: Callable[[Row], None] | None = None) -> list[Row]:
    """Measure the named jobs (all when none is named) with the threads this process was started with."""
    rows = []
    for name in names or list(JOBS):
        job = JOBS[name]
        medians = measure(job.make(target), threads)
        ours = medians["tiledsl"]
        peers = [t for who, t in medians.items() if who != "tiledsl"]
        milliseconds = {who: t * 1e3 for who, t in medians.items()}
        row = Row(name, milliseconds, job.flops / ours / 1e9, min(peers) / ours if peers else None)
        rows.append(row)
        if on_row:
            on_row(row)
    return rows


def format_row(row: Row) -> str:
    """One line of the table."""
    times = "  ".join(f"{who} {ms:9.2f} ms" for who, ms in row.milliseconds.items())
    ratio = "  no peer" if row.ratio is None else f"  ratio {row.ratio:5.2f}"
    return f"{row.job:28s} {row.gflops:8.1f} GFLOP/s{ratio}   {times}"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("jobs", nargs="*", metavar="JOB", help=f"which jobs (default: all): {', '.join(JOBS)}")
    parser.add_argument("--target", help="where our kernels run (default: the CPU target)")
    parser.add_argument("--threads", type=int, default=1, help="threads for every library (default 1)")
    parser.add_argument("--json", metavar="FILE", help="also write the table, with the machine and date, as JSON")


def main(options: argparse.Namespace) -> int:
    """Every library reads its number of threads when it is loaded: the measurement runs in a child process."""
    unknown = [n for n in options.jobs if n not in JOBS]
    if unknown:
        raise TileValueError(f"unknown job {unknown[0]!r}", help=f"one of {', '.join(JOBS)}")
    if os.environ.get(_CHILD) != str(options.threads):
        n = str(options.threads)
        names = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "TILEDSL_NUM_THREADS", _CHILD)
        return subprocess.call(
            [sys.executable, "-m", "tiledsl", *sys.argv[1:]], env=os.environ | dict.fromkeys(names, n)
        )
    if torch := _torch():
        torch.set_num_threads(options.threads)
    rows = run(options.jobs, options.target, options.threads, lambda row: print(format_row(row), flush=True))
    if options.json:
        machine = {"processor": platform.processor(), "machine": platform.machine(), "cores": os.cpu_count()}
        table = {"machine": machine, "threads": options.threads, "date": time.strftime("%Y-%m-%d")}
        with open(options.json, "w", encoding="utf-8") as f:
            json.dump({**table, "rows": [asdict(r) for r in rows]}, f, indent=1)
    return 0
