"""The target "cuda-emulator": kernels of the language as CUDA C++ text on this machine; what authors see of faults."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import registry_low_precision  # noqa: F401  (adds to the registry)
from kernels_registry import KERNELS
from properties import support

import tiledsl
import tiledsl.language as T
from tiledsl.backend import load_backend, resolve
from tiledsl.errors import TileRuntimeError, TileValueError

pytestmark = pytest.mark.skipif(not load_backend("cuda-emulator").probe().ok, reason="no C++ compiler")
ORDERS = ("cuda-emulator:sm_80,last,late", "cuda-emulator:sm_80,random=1,any", "cuda-emulator:sm_80,checked,late")
EXACT = "numpy:exact"


def run(kernel: tiledsl.JITKernel, args: list[Any], target: str) -> list[Any]:
    outs = [args[i] for i in kernel.out_idx]
    kernel(*(a for i, a in enumerate(args) if i not in kernel.out_idx), out=outs or None, target=target)
    return args


@pytest.mark.parametrize("name", KERNELS)
def test_registry(name: str) -> None:
    entry = KERNELS[name]
    kernel = entry.kernel()
    want = run(kernel, entry.args(), EXACT)
    for target in ORDERS:
        for got, right in zip(run(kernel, entry.args(), target), want, strict=True):
            if isinstance(right, np.ndarray):
                support.assert_same(got, right, target)


def reversed_rows(broken: bool) -> Any:
    @T.prim_func
    def main(x: T.Tensor((4, 64), "float32"), y: T.Tensor((4, 64), "float32")):
        with T.Kernel(4, threads=64) as b:
            s = T.alloc_shared((64,), "float32")
            t = T.get_thread_binding()
            s[t] = x[b, t]
            if not broken:
                T.sync_threads()
            y[b, t] = s[63 - t]

    return tiledsl.compile(main, out_idx=-1)


def test_right_kernels_run_checked() -> None:
    x = np.arange(256, dtype=np.float32).reshape(4, 64)
    got = reversed_rows(False)(x, target="cuda-emulator:checked")
    np.testing.assert_array_equal(got, x[:, ::-1])


@pytest.mark.parametrize("same", [True, False])
def test_threads_that_write_one_element(same: bool) -> None:
    """Equal values are no race (language.md 0.4); others are one, whatever the bytes were before."""

    @T.prim_func
    def main(x: T.Tensor((64,), "int32"), y: T.Tensor((2,), "int32")):
        with T.Kernel(1, threads=64):
            s = T.alloc_shared((1,), "int32")
            for i in T.Parallel(64):
                s[0] = x[0] if same else x[i] // 63
            y[0] = s[0]
            for i in T.Parallel(64):
                y[1] = x[0] + 5 if same else x[i]

    kernel = tiledsl.compile(main, out_idx=-1)
    x = np.arange(64, dtype=np.int32)
    if same:
        np.testing.assert_array_equal(kernel(x, target="cuda-emulator:checked"), [0, 5])
        return
    with pytest.raises(TileRuntimeError, match="race: (shared|y).*: written by thread") as e:
        kernel(x, target="cuda-emulator:checked")
    assert "s[0] = x[0] if same" in str(e.value) and "y[1] = x[0] + 5" in str(e.value)


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(256, dtype=torch.float32).reshape(4, 64)
    for target in ("cuda-emulator", "cuda-emulator:checked"):
        got = reversed_rows(False)(x, target=target)
        assert isinstance(got, torch.Tensor) and torch.equal(got, x.flip(1))


def test_strided_arguments_in_checked_runs() -> None:
    n = T.dynamic("n")
    s = T.dynamic("s")

    @T.prim_func
    def main(x: T.StridedTensor((n,), (s,), "float32"), y: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
            for i in T.Parallel(32):
                y[b * 32 + i] = x[b * 32 + i] + 1.0

    x = np.arange(99, dtype=np.float32)
    got = tiledsl.compile(main, out_idx=-1)(x[::3], target="cuda-emulator:checked")
    np.testing.assert_array_equal(got, x[::3] + 1)


def test_prints_and_asserts(capsys: pytest.CaptureFixture[str]) -> None:
    @T.prim_func
    def main(x: T.Tensor((8,), "int32"), y: T.Tensor((8,), "int32")):
        with T.Kernel(1, threads=32):
            T.print(x[3], msg="third")
            for i in T.Parallel(8):
                T.device_assert(x[i] < 100, "too large")
                y[i] = x[i] * 2

    kernel = tiledsl.compile(main, out_idx=-1)
    x = np.arange(8, dtype=np.int32)
    texts = []
    for target in (EXACT, "cuda-emulator", "cuda-emulator:checked"):
        np.testing.assert_array_equal(kernel(x, target=target), 2 * x)
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2] and "third" in texts[0]
    x[5] = 100
    for target in ("cuda-emulator", "cuda-emulator:checked"):
        with pytest.raises(TileRuntimeError, match="device_assert failed: too large") as e:
            kernel(x, target=target)
        assert "test_cuda_emulator_target.py" in str(e.value)


def test_several_kernels_of_one_function() -> None:
    n = T.dynamic("n")

    @T.prim_func
    def main(x: T.Tensor((n,), "float32"), y: T.Tensor((n,), "float32"), z: T.Tensor((n,), "float32")):
        with T.Kernel(T.ceildiv(n, 64), threads=64) as b:
            for i in T.Parallel(64):
                y[b * 64 + i] = T.exp(x[b * 64 + i])
        with T.Kernel(T.ceildiv(n, 32), threads=32) as b:
            for i in T.Parallel(32):
                z[b * 32 + i] = T.exp(y[n - 1 - b * 32 - i])

    kernel = tiledsl.compile(main, out_idx=[1, 2])
    x = np.linspace(-2, 1, 100, dtype=np.float32)
    want = kernel(x, target=EXACT)
    for target in ORDERS:
        for got, right in zip(kernel(x, target=target), want, strict=True):
            support.assert_same(got, right, target)


def test_source_is_what_runs() -> None:
    text = reversed_rows(False).get_kernel_source(target="cuda-emulator:sm_90a")
    assert "tl_sync();" in text and "//@" in text and "test_cuda_emulator_target.py" in text


def test_bad_options_are_errors_of_the_caller() -> None:
    with pytest.raises(TileValueError, match="has no option 'chekced'"):
        reversed_rows(False)(np.zeros((4, 64), np.float32), target="cuda-emulator:chekced")


def test_it_can_be_asked_for_by_name() -> None:
    assert str(resolve("cuda-emulator:sm_90a,checked")) == "cuda-emulator:sm_90a,checked"
    from tiledsl.testing import available_targets

    assert "cuda-emulator" not in available_targets()  # a C++ compiler for every kernel takes its time


def test_what_mutants_of_the_text_changed() -> None:
    """Shuffles by a distance that only the running kernel knows, beyond the warp too; rows of half bytes of odd,
    dynamic width; a workspace of elements that are not one byte."""
    n = T.dynamic("n")

    @T.prim_func
    def main(
        D: T.Tensor((4,), "int32"), P: T.Tensor((3, n), "int4"), O: T.Tensor((4, 2, 32), "int32"),
        Q: T.Tensor((3, n), "int32"), R: T.Tensor((4, 32), "float64"),
    ):  # fmt: skip
        W = T.alloc_global((4, 32), "float64")
        with T.Kernel(4, threads=32) as b:
            t = T.get_thread_binding()
            O[b, 0, t] = T.shfl_down(t + 100, D[b])
            O[b, 1, t] = T.shfl_xor(t + 100, D[b])
            W[b, t] = t * 0.5 + b
        with T.Kernel(4, threads=32) as b:
            if b == 0:
                for i, j in T.Parallel(3, n):
                    Q[i, j] = P[i, j]
            for i in T.Parallel(32):
                R[b, i] = W[3 - b, 31 - i]

    rng = np.random.default_rng(5)
    made = [
        np.array([1, 5, 31, 40], np.int32), rng.integers(0, 256, (3, 4), np.uint8), np.zeros((4, 2, 32), np.int32),
        np.zeros((3, 7), np.int32), np.zeros((4, 32)),
    ]  # fmt: skip
    kernel = tiledsl.compile(main)
    want, got = support.copies(made), support.copies(made)
    kernel(*want, target=EXACT)
    kernel(*got, target="cuda-emulator:sm_80,checked")
    for a, b in zip(want, got, strict=True):
        support.assert_same(b, a, "on threads")
