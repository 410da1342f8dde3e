"""`make gpu` without a GPU: its target on a driver whose kernels the emulator runs, its records, its report. And with
one: arrays of torch, CuPy and DLPack, and streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from gpu import copied, machine, recorded
from gpu import run as gpu_run
from gpu.emulated import EmulatedDriver
from kernels_registry import KERNELS
from properties import support

import tiledsl
import tiledsl.language as T
from tiledsl import backend
from tiledsl.backend import load_backend
from tiledsl.backends.cuda_nvrtc import compile as nvrtc
from tiledsl.backends.cuda_nvrtc.driver import Driver, driver_problem
from tiledsl.errors import TileRuntimeError

ROOT = Path(__file__).parent.parent
needs_compiler = pytest.mark.skipif(not load_backend("cuda-emulator").probe().ok, reason="no C++ compiler")
needs_gpu = pytest.mark.skipif(bool(nvrtc.missing() or driver_problem()), reason="no GPU")


# -- without a GPU -------------------------------------------------------------------------------------------------


class Bound:
    """An emulated driver whose arguments cuda-bindings, where they are installed, have to accept first: without a
    driver they fail after converting them."""

    def __init__(self, api: EmulatedDriver) -> None:
        self.api, self.seen = api, set[str]()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.api, name)
        if (
            nvrtc.missing()
            or not driver_problem()
            or name[:2] != "cu"
            or name in ("cuDeviceGetAttribute", "cuFuncSetAttribute")
        ):
            return found

        def called(*args: Any) -> Any:
            from cuda.bindings import driver

            with pytest.raises(RuntimeError, match="driver library"):
                getattr(driver, name)(*args)
            self.seen.add(name)
            return found(*args)

        return called


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedDriver]:
    """The machine of "cuda-copied" is the emulator behind a driver."""
    api = EmulatedDriver()
    gpu = machine.Machine(Driver(Bound(api)), 0, "emulated GPU", "sm_90a", "none", True)
    for module in (machine, copied):
        monkeypatch.setattr(module, "machine", lambda: gpu)
    monkeypatch.setenv("TILEDSL_GPU", "emulated")
    monkeypatch.setitem(backend.BUILT_IN, "cuda-copied", "gpu.copied:backend")
    caches = (backend.backends, backend.load_backend, backend._resolve)
    for found in caches:
        found.cache_clear()
    yield api
    for found in caches:
        found.cache_clear()


@needs_compiler
@pytest.mark.parametrize("name", ["attention", "gemm_int8_dequant", "gather", "strided_transpose", "dequant_int4"])
def test_kernels_through_a_driver(emulated: EmulatedDriver, name: str) -> None:
    kernel = KERNELS[name].kernel()
    want = KERNELS[name].args()
    kernel(*(a for i, a in enumerate(want) if i not in kernel.out_idx), out=[want[i] for i in kernel.out_idx] or None,
           target="numpy:exact")  # fmt: skip
    for target in ("cuda-copied", "cuda-copied:sm_70"):
        got = KERNELS[name].args()
        kernel(*(a for i, a in enumerate(got) if i not in kernel.out_idx), out=[got[i] for i in kernel.out_idx] or None,
               target=target)  # fmt: skip
        for a, b in zip(got, want, strict=True):
            if isinstance(b, np.ndarray):
                support.assert_same(a, b, target)
    assert emulated.launches and not emulated.memory


@needs_compiler
def test_all_that_a_launch_may_need(emulated: EmulatedDriver, capsys: pytest.CaptureFixture[str]) -> None:
    """Two kernels, a workspace, 64 KB of shared memory, a barrier of the grid, scalars, prints, overlapping arrays."""

    @T.prim_func
    def main(x: T.Tensor((64,), "float32"), s: T.float32, y: T.Tensor((64,), "float32")):
        w = T.alloc_global((64,), "float32")
        with T.Kernel(2, threads=32) as b:
            big = T.alloc_shared((16384,), "float32")
            for i in T.Parallel(16384):
                big[i] = x[b * 32 + i % 32] * s
            for i in T.Parallel(32):
                w[b * 32 + i] = big[16352 + i]
            T.sync_grid()
            for i in T.Parallel(32):
                w[b * 32 + i] = w[b * 32 + i] + 1.0
        with T.Kernel(1, threads=64):
            T.print(w[63], msg="last")
            for i in T.Parallel(64):
                y[i] = w[63 - i]

    kernel = tiledsl.compile(main)
    memory = np.arange(100, dtype=np.float32)
    want = memory.copy()
    kernel(want[:64], 0.5, want[36:], target="numpy:exact")
    kernel(memory[:64], 0.5, memory[36:], target="cuda-copied")
    support.assert_same(memory, want, "copied")
    texts = capsys.readouterr().out.splitlines()
    assert len(texts) == 2 and texts[0] == texts[1]
    assert [name for name, _ in emulated.launches] == [k.name for k in kernel.function.kernels] and not emulated.memory
    assert list(emulated.shared_allowed.values()) == [65536]


@needs_compiler
def test_micro_kernels_on_a_gpu_are_recorded_and_bind(
    emulated: EmulatedDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prelude_kernels import Kernels, elementwise

    monkeypatch.setattr(recorded, "_new", {})
    kernels = Kernels({"bf16_f32": elementwise(["f32"], "bf16", "tl_cvt_bf16_f32(a[i])")})
    x = np.array([1.0, 1.00390625, np.nan, -0.0], np.float32)
    assert kernels.map("bf16_f32", np.uint16, x)[1] == 0x3F80 and emulated.launches
    recorded.save(tmp_path / "sm_90a.json", **machine.facts())
    kept = json.loads((tmp_path / "sm_90a.json").read_text(encoding="utf-8"))
    assert kept["device"] == "emulated GPU" and kept["date"] and list(kept["results"]) == ["bf16_f32"]
    monkeypatch.setattr(recorded, "FOLDER", tmp_path)
    monkeypatch.delenv("TILEDSL_GPU")
    kernels.map("bf16_f32", np.uint16, x)  # the emulator gives the same
    wrong = Kernels({"bf16_f32": elementwise(["f32"], "bf16", "(tl_bf16)(tl_bits_f32(a[i]) >> 16) + (tl_bf16)1")})
    with pytest.raises(AssertionError, match="bf16_f32: not what sm_90a.json has recorded"):
        wrong.map("bf16_f32", np.uint16, x)


def test_digests_know_no_nan_from_another() -> None:
    one, other = (np.array([bits, 0x3F800000], np.uint32).view(np.float32) for bits in (0x7FC00000, 0xFFC00001))
    assert recorded.digest([one]) == recorded.digest([other]) != recorded.digest([np.zeros_like(one)])
    assert recorded.digest([np.float32(0.0)]) != recorded.digest([np.float32(-0.0)])


@pytest.mark.skipif(not driver_problem(), reason="there is a GPU")
def test_without_a_gpu_one_sentence_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TILEDSL_GPU", "real")
    assert gpu_run.main([]) == 1
    assert capsys.readouterr().err.startswith("nothing was run: ")


def test_steps_name_what_is_there(tmp_path: Path) -> None:
    steps = gpu_run.steps(tmp_path / "r.json", tmp_path / "b.json")
    files = {word for s in steps for word in s.command if word.startswith("tests/")}
    assert len(files) > 20 and all((ROOT / f).is_file() for f in files)
    assert [s.needs for s in steps].count("compute-sanitizer") == 3 and steps[-1].command[3:6] == [
        "bench",
        "--target",
        "cuda",
    ]


def test_the_page_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setenv("PATH", "")
    say = "print('=== 3 passed, 1 skipped in 1.50s ===')"
    steps = [
        gpu_run.Step("right", [sys.executable, "-c", say]),
        gpu_run.Step("wrong", [sys.executable, "-c", "raise SystemExit('no such thing')"]),
        gpu_run.Step("absent", ["compute-sanitizer"], needs="compute-sanitizer"),
    ]
    done = [gpu_run.run(s, tmp_path, "real") for s in steps]
    job = {
        "job": "gemm",
        "milliseconds": {"tiledsl": 2.0, "torch": 1.0},
        "gflops": 4e5,
        "gbytes": 0.0,
        "share": 0.5,
        "ratio": 0.5,
    }
    text = gpu_run.report(
        {"device": "X", "date": "2026-01-02"}, done, {"ceilings": {"products": 8e14, "copies": 4e12}, "rows": [job]}
    )
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[1][:2] == ["right", "ok"] and rows[1][3] == "3 passed, 1 skipped"
    assert rows[2][:2] == ["wrong", "**no**"] and rows[2][3] == "no such thing"
    assert rows[3][3] == "left out: compute-sanitizer is not on the path"
    assert rows[5] == ["gemm", "2.000", "400.0", "0", "50%", "torch 1.000", "0.50"]
    assert "# Run on X" in text and "date 2026-01-02" in text and "800 TFLOP/s bfloat16, 4000 GB/s" in text


# -- with a GPU ----------------------------------------------------------------------------------------------------


def doubled() -> Any:
    n = T.dynamic("n")

    @T.prim_func
    def main(x: T.Tensor((n,), "float32"), s: T.float32, y: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 128), threads=128) as b:
            for i in T.Parallel(128):
                y[b * 128 + i] = x[b * 128 + i] * s

    return tiledsl.compile(main, out_idx=-1)


class Shown:
    """What only shows a protocol of another array."""

    def __init__(self, x: Any, *names: str) -> None:
        self.x = x
        for name in names:
            setattr(type(self), name, property(lambda self, name=name: getattr(self.x, name)))


@needs_gpu
@pytest.mark.parametrize("how", ["torch", "cupy", "__cuda_array_interface__", "dlpack"])
def test_arrays_of_every_library(how: str) -> None:
    library: Any = pytest.importorskip("cupy" if how == "cupy" else "torch")
    make: dict[str, Callable[[], Any]] = {
        "cupy": lambda: library.arange(1000, dtype="float32"),
        "torch": lambda: library.arange(1000, dtype=library.float32, device="cuda"),
    }
    x = make.get(how, make.get("torch" if how != "cupy" else how, lambda: None))()
    shown: Any = x
    out: Any = x + 0
    if how == "__cuda_array_interface__":
        shown, back = (type("Cai", (Shown,), {})(a, how) for a in (x, out))
        doubled()(shown, 2.0, out=back)
    elif how == "dlpack":
        shown, back = (type("Dlpack", (Shown,), {})(a, "__dlpack__", "__dlpack_device__") for a in (x, out))
        doubled()(shown, 2.0, out=back)
    else:
        out = doubled()(x, 2.0)
        assert type(out) is type(x)
    assert bool((out == 2 * x).all())


@needs_gpu
def test_streams_of_torch() -> None:
    torch = pytest.importorskip("torch")
    x = torch.zeros(1 << 24, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        x += 3
        y = doubled()(x, 2.0)
    stream.synchronize()
    assert bool((y == 6).all())
    with pytest.raises(TileRuntimeError, match="no CUDA stream"):
        doubled()(x, 2.0, stream=SimpleNamespace())
