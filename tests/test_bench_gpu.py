"""`tiledsl bench --target cuda` without a GPU: what it says, its arithmetic, and its jobs in small on the emulator."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tiledsl.backend import load_backend
from tiledsl.bench import gpu
from tiledsl.cli import main
from tiledsl.errors import TileRuntimeError

pytest.importorskip("tiledsl.backends.cuda_nvrtc")
needs_compiler = pytest.mark.skipif(not load_backend("cuda-emulator").probe().ok, reason="no C++ compiler")


@pytest.mark.skipif(not gpu.problem(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--target", "cuda"]) == 1
    said = capsys.readouterr()
    assert said.err.startswith("TileRuntimeError: target cuda cannot be measured here: ") and not said.out
    assert "run this on a machine with an NVIDIA GPU" in said.err and "Traceback" not in said.err


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--target", "cuda:sm_90a", "gemm-f32-512"]) == 1
    assert "unknown job 'gemm-f32-512' on a GPU" in capsys.readouterr().err
    assert main(["bench", "--target", "cuda", "--plot", "x.png"]) == 1
    assert "--plot draws a processor's roofline" in capsys.readouterr().err


def test_rows() -> None:
    ceilings = {"products": 800e12, "copies": 4e12}
    r = gpu.row(gpu.GpuJob("a", lambda *_: {}, work=4e12), {"tiledsl": 0.01, "torch": 0.008, "triton": 0.02}, ceilings)
    assert (r.gflops, r.ratio, r.share) == (pytest.approx(400e3), pytest.approx(0.8), pytest.approx(0.5))
    assert "400.0 TFLOP/s  ratio  0.80   50% of the bound" in gpu.text(r)
    r = gpu.row(gpu.GpuJob("b", lambda *_: {}, moved=2e9), {"tiledsl": 0.001}, ceilings)
    assert "2000 GB/s" in gpu.text(r) and "no peer" in gpu.text(r) and r.share == pytest.approx(0.5)


@needs_compiler
def test_the_whole_command_in_small(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """All that `tiledsl bench --target cuda` does, with the emulator for the GPU and its clock."""
    torch = pytest.importorskip("torch")
    ticks = itertools.count()
    event = SimpleNamespace(record=lambda: None, synchronize=lambda: None, elapsed_time=lambda other: 1.0 + next(ticks))

    def small(job: Any) -> Any:
        make = lambda t, device, target, _: job.make(t, device, "cuda-emulator:sm_90a", True)  # noqa: E731
        return dataclasses.replace(job, make=make)

    names = ("gemm-bf16-8192", "rms-norm-bf16")
    monkeypatch.setattr(gpu, "GPU_JOBS", {name: small(gpu.GPU_JOBS[name]) for name in names})
    for name, value in {"_DEVICE": "cpu", "_FLUSH": 16, "problem": lambda: ""}.items():
        monkeypatch.setattr(gpu, name, value)
    for name in ("_product_rate", "_copy_rate"):
        monkeypatch.setattr(gpu, name, lambda torch: 1e15)
    for name, f in {"get_device_name": lambda: "X", "synchronize": lambda: None, "Event": lambda **_: event}.items():
        monkeypatch.setattr(torch.cuda, name, f)
    assert main(["bench", "--target", "cuda", "--json", str(tmp_path / "b.json")]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "X: 1000 TFLOP/s bfloat16, 1000000 GB/s copied" and [s.split()[0] for s in shown[1:]] == [*names]
    kept = json.loads((tmp_path / "b.json").read_text(encoding="utf-8"))
    assert kept["device"] == "X" and kept["date"] and [r["job"] for r in kept["rows"]] == [*names]
    assert all(r["share"] > 0 and r["milliseconds"].keys() == {"tiledsl", "torch"} for r in kept["rows"])


def test_times_of_wrong_results_are_not_shown() -> None:
    torch = pytest.importorskip("torch")
    right, wrong = torch.ones(4), torch.tensor([1.0, 1.0, float("nan"), 1.0])
    gpu.agree("a", {"tiledsl": lambda: right, "torch": lambda: right * (1 + 2.0**-7)})
    for bad in (wrong, right * 1.1):
        with pytest.raises(TileRuntimeError, match="a: the result is off by .* whose largest value is 1"):
            gpu.agree("a", {"tiledsl": lambda bad=bad: bad, "torch": lambda: right})


@needs_compiler
@pytest.mark.parametrize("job", gpu.GPU_JOBS.values(), ids=lambda j: j.name)
def test_contestants_agree(job: Any) -> None:
    """To some roundings of bfloat16, of results near 1 and sums of products near their length."""
    torch = pytest.importorskip("torch")
    ours, *peers = (f().float() for f in job.make(torch, "cpu", "cuda-emulator:sm_90a", True).values())
    assert len(peers) == 1
    for theirs in peers:
        assert ours.shape == theirs.shape and ours.isfinite().all()
        assert float((ours - theirs).abs().max()) <= 2.0**-6 * float(theirs.abs().max())
