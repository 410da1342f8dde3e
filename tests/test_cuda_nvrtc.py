"""The target "cuda" without a GPU: text anywhere, cubins where NVRTC is, launches on a driver that only remembers."""

from __future__ import annotations

import ctypes
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import registry_low_precision  # noqa: F401  (adds to the registry)
from cuda_text_support import CASES, source
from gpu.fake_driver import FakeDriver, code
from kernels_registry import KERNELS

import tiledsl
import tiledsl.language as T
from tiledsl import ir
from tiledsl.backend import Artifact, Entry, Target, Workspace, load_backend
from tiledsl.backends.cuda_nvrtc import compile as nvrtc
from tiledsl.backends.cuda_nvrtc.driver import Driver, driver_problem
from tiledsl.backends.cuda_nvrtc.function import CudaFunction, stream_handle
from tiledsl.backends.simt.launching import joined
from tiledsl.backends.simt.lower import lower
from tiledsl.dtypes import as_dtype
from tiledsl.errors import InternalError, TileError, TileRuntimeError, TileTypeError, TileValueError
from tiledsl.runtime.views import allocate, view

ARCHS = ("sm_80", "sm_90a", "sm_100a", "sm_120a")
needs_nvrtc = pytest.mark.skipif(bool(nvrtc.missing()), reason=f"NVRTC: {nvrtc.missing()}")


def scaled() -> Any:
    @T.prim_func
    def main(x: T.Tensor((T.dynamic("n"),), "float32"), s: T.float32, y: T.Tensor((T.dynamic("n"),), "float32")):  # type: ignore[valid-type]  # noqa: F821
        with T.Kernel(T.ceildiv(x.shape[0], 256), threads=128) as b:
            for i in T.Parallel(256):
                y[b * 256 + i] = x[b * 256 + i] * s

    return tiledsl.compile(main, out_idx=-1)


# -- compiling -----------------------------------------------------------------------------------------------------


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("name", CASES)
def test_hand_written_kernels_compile(name: str, arch: str) -> None:
    made = nvrtc.compile_text(source(name), arch)
    used = made.kernels[name]
    assert made.cubin[:4] == b"\x7fELF" and not made.warnings
    assert (used.stack, used.spill_stores, used.spill_loads) == (0, 0, 0)
    assert 0 < used.registers * 256 <= 65536


@needs_nvrtc
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_of_the_language_compile(name: str) -> None:
    """The same text as on the emulator: accepted for every architecture, in registers, without remarks of ptxas."""
    for arch in ("sm_80", "sm_90a", "sm_120a"):
        made = nvrtc.compile_text(joined(lower(KERNELS[name].kernel().function, arch)), arch)
        assert made.kernels and not made.warnings
        for used in made.kernels.values():
            assert (used.stack, used.spill_stores) == (0, 0)


@needs_nvrtc
def test_faults_of_text_name_its_lines() -> None:
    with pytest.raises(InternalError) as e:
        nvrtc.compile_text('extern "C" __global__ void k(int* y) {\n  y[0] = nothing;\n}', "sm_90a")
    assert any("kernel.cu(2)" in n and "nothing" in n for n in e.value.notes)


@needs_nvrtc
def test_architectures_that_nvrtc_lacks() -> None:
    with pytest.raises(TileValueError, match="cannot compile for sm_70; it has .*sm_90"):
        nvrtc.compile_text("", "sm_70")


@pytest.mark.parametrize("arch", ["gfx90", "sm_90x", "90"])
def test_what_is_no_architecture(arch: str) -> None:
    with pytest.raises(TileValueError, match="has no architecture"):
        nvrtc.capability(arch)


def test_resources_are_read_from_the_log() -> None:
    log = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas info    : Function properties for a
    16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 400 bytes cmem[0]
ptxas info    : Compiling entry function 'b' for 'sm_90a'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers"""
    found = nvrtc._resources(log)
    assert found == {"a": nvrtc.Resources(40, 16, 8, 12), "b": nvrtc.Resources(12, 0, 0, 0)}


def test_text_needs_neither_packages_nor_a_gpu() -> None:
    text = scaled().get_kernel_source(target="cuda:sm_90a")
    assert (
        'extern "C" __global__ void __launch_bounds__(128)' in text
        and "asm" not in text
        and "test_cuda_nvrtc.py" in text
    )


@pytest.mark.skipif(not driver_problem(), reason="there is a GPU")
def test_calls_without_a_gpu_say_so() -> None:
    with pytest.raises(TileRuntimeError, match="target cuda is not available here: ") as e:
        scaled()(np.ones(4, np.float32), 2.0, target="cuda")
    assert "help" in str(e.value)
    function = CudaFunction(artifact())
    with pytest.raises(TileRuntimeError, match="target cuda cannot run here: ") as e:
        function(call([1, 2, 3], []))
    assert 'target="cuda-emulator"' in str(e.value)


# -- launching -----------------------------------------------------------------------------------------------------


def artifact(**changes: Any) -> Artifact:
    """The kernel `scaled` for sm_90a, with another size of shared memory, waits or parameters where asked."""
    from tiledsl.runtime import program

    target = Target("cuda", "sm_90a")
    made = load_backend("cuda").emit(program.lower(scaled().function, target), target)
    kernel = {**made.meta["kernels"][0], **{k: v for k, v in changes.items() if k in ("shared", "params")}}
    entry = made.entries[0]
    grid = tuple(ir.Const(n, as_dtype("int32")) for n in changes.get("grid", ())) or entry.grid
    entry = Entry(entry.symbol, grid, waits=changes.get("waits", False))
    return Artifact(
        made.source, b"cubin", made.host_vars, (entry,), changes.get("workspaces", ()), made.sites,
        {**made.meta, "kernels": [kernel]},
    )  # fmt: skip


def call(words: list[int], values: list[Any], ring: Any = None) -> Any:
    return SimpleNamespace(
        function=scaled().function, values=values, args=np.array(words, np.int64).tobytes(), ring=ring, arrays=[]
    )


def read(places: Any, i: int, kind: Any) -> Any:
    return kind.from_address(places[i]).value


def test_arguments_reach_the_kernel() -> None:
    fake, seen = FakeDriver(), []
    made = artifact()
    kinds = {"float32": ctypes.c_float, "int32": ctypes.c_int32, "int64": ctypes.c_int64}

    def kernel(places: Any) -> None:
        for i, (kind, index, dtype, _) in enumerate(made.meta["kernels"][0]["params"]):
            seen.append((kind, index, read(places, i, ctypes.c_uint64 if kind == "array" else kinds[dtype])))

    fake.kernel = kernel
    scale = int(np.float32(2.5).view(np.uint32))
    CudaFunction(made, Driver(fake))(call([0x7F0000001000, scale, 0x7F0000002000, 1000], []), stream=77)
    ((sizes, _, cooperative),) = fake.launches
    assert sizes == (4, 1, 1, 128, 1, 1, made.meta["kernels"][0]["shared"], 77) and not cooperative
    assert ("array", 0, 0x7F0000001000) in seen and ("array", 2, 0x7F0000002000) in seen
    assert ("scalar", 1, 2.5) in seen and all(v == 1000 for kind, _, v in seen if kind == "symbol")


def test_empty_grids_are_not_launched() -> None:
    fake = FakeDriver()
    CudaFunction(artifact(), Driver(fake))(call([0, 0, 0, 0], []))
    assert not fake.launches


def test_the_current_device_stays_what_it_was() -> None:
    """Of two GPUs: the kernel runs where its arrays lie, and other libraries find their device afterwards."""
    fake = FakeDriver()
    driver, tensor = Driver(fake), SimpleNamespace(device=SimpleNamespace(index=1))
    fake.cuDeviceGet = lambda ordinal: (code(0, ""), ordinal)  # type: ignore[attr-defined]
    fake.cuDevicePrimaryCtxRetain = lambda d: (code(0, ""), 100 + d)  # type: ignore[attr-defined]
    for _ in range(2):
        CudaFunction(artifact(), driver)(call([0, 0, 0, 10], [tensor]))
    assert [c[1] for c in fake.calls if c[0] == "cuCtxSetCurrent"] == [101, 7] * 2 and len(fake.launches) == 2
    CudaFunction(artifact(), driver)(call([0, 0, 0, 10], []))  # wherever the thread is
    assert len([c for c in fake.calls if c[0] == "cuCtxSetCurrent"]) == 4


def test_more_than_48_kilobytes_are_asked_for_once() -> None:
    fake = FakeDriver()
    function = CudaFunction(artifact(shared=100000), Driver(fake))
    for _ in range(2):
        function(call([0, 0, 0, 10], []))
    assert [c for c in fake.calls if c[0] == "cuFuncSetAttribute"] == [("cuFuncSetAttribute", 7, "dynamic", 100000)]
    assert len(fake.launches) == 2


def test_too_much_shared_memory_shows_the_arithmetic() -> None:
    function = CudaFunction(artifact(shared=120000), Driver(FakeDriver(capability=(12, 0), shared=101376)))
    with pytest.raises(TileRuntimeError, match=r"120000 bytes .*, 18624 more than the 101376 .*sm_120a"):
        function(call([0, 0, 0, 10], []))


def test_a_cubin_of_another_architecture() -> None:
    fake = FakeDriver(capability=(8, 0), load_result=code(209, "CUDA_ERROR_NO_BINARY_FOR_GPU"))
    with pytest.raises(TileRuntimeError, match="compiled for sm_90a, and the GPU here is sm_80") as e:
        CudaFunction(artifact(), Driver(fake))(call([0, 0, 0, 10], []))
    assert 'target="cuda:sm_80"' in str(e.value)


def test_blocks_that_wait_must_all_fit() -> None:
    fake = FakeDriver()
    function = CudaFunction(artifact(waits=True), Driver(fake))
    function(call([0, 0, 0, 2048], []))
    assert fake.launches[0][2]
    with pytest.raises(TileRuntimeError, match="9 blocks wait for each other, and this GPU holds 8"):
        function(call([0, 0, 0, 2049], []))


def test_grids_that_no_gpu_takes() -> None:
    with pytest.raises(TileRuntimeError, match="a GPU has at most"):
        CudaFunction(artifact(grid=(1, 70000)), Driver(FakeDriver()))(call([0, 0, 0, 10], []))


def test_messages_come_back_through_a_copy_of_the_ring() -> None:
    words = (ctypes.c_uint64 * 16)(2, 16)
    flushed: list[list[int]] = []
    ring = SimpleNamespace(address=ctypes.addressof(words), flush=lambda: flushed.append(list(words[:6])))
    fake = FakeDriver()

    def kernel(places: Any) -> None:
        there = (ctypes.c_uint64 * 16).from_address(read(places, 0, ctypes.c_uint64))
        assert there[0] == 2 and there[1] == 16
        there[0], there[2], there[3], there[4], there[5] = 6, 0, 3, 1, 42

    fake.kernel = kernel
    CudaFunction(artifact(params=[["ring", 0, "uint64", "ring"]]), Driver(fake))(call([0, 0, 0, 10], [], ring))
    assert flushed == [[6, 16, 0, 3, 1, 42]] and not fake.memory


def test_workspaces_lie_on_the_device() -> None:
    fake, seen = FakeDriver(), []
    fake.kernel = lambda places: seen.append(read(places, 0, ctypes.c_uint64) in fake.memory)
    made = artifact(params=[["workspace", 0, "float32", "w"]], workspaces=(Workspace(as_dtype("float32"), ()),))
    CudaFunction(made, Driver(fake))(call([0, 0, 0, 10, 0xDEAD], []))
    assert seen == [True] and not fake.memory


def test_streams() -> None:
    assert stream_handle(5, []) == 5 and stream_handle(None, [np.zeros(1)]) == 0
    assert stream_handle(SimpleNamespace(__cuda_stream__=lambda: (0, 11)), []) == 11
    assert stream_handle(SimpleNamespace(cuda_stream=12), []) == 12 and stream_handle(SimpleNamespace(ptr=13), []) == 13
    with pytest.raises(TileRuntimeError, match="no CUDA stream"):
        stream_handle("default", [])
    array = GpuArray("<f4", (3,), None, False)
    assert stream_handle(None, [1.0, array]) == 0
    array.__cuda_array_interface__["stream"] = 14
    assert stream_handle(None, [1.0, array]) == 14


def test_streams_of_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As CuPy spells them: `cupy.cuda.get_current_stream().ptr`, and `cupy.empty` for outputs."""
    made: list[Any] = []
    ndarray = type("ndarray", (), {"__module__": "cupy"})
    current = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=15))
    empty = lambda shape, dtype: made.append((shape, dtype)) or ndarray()
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(ndarray=ndarray, cuda=current, empty=empty))
    assert stream_handle(None, [2, ndarray()]) == 15
    ndarray.__cuda_array_interface__ = {"typestr": "<f4", "shape": (2, 3), "strides": None, "data": (4096, False)}
    assert type(allocate((2, 3), as_dtype("float32"), ndarray())) is ndarray and made == [((2, 3), "float32")]


# -- arrays on a GPU ------------------------------------------------------------------------------------------------


class GpuArray:
    """What CuPy and Numba show of an array."""

    def __init__(self, typestr: str, shape: tuple[int, ...], strides: tuple[int, ...] | None, readonly: bool) -> None:
        self.__cuda_array_interface__ = {
            "typestr": typestr, "shape": shape, "strides": strides, "data": (4096, readonly), "version": 3,
        }  # fmt: skip


def test_arrays_by_cuda_array_interface() -> None:
    seen = view(GpuArray("<f4", (3, 4), (32, 4), False), "x", "cuda")
    assert (seen.storage, seen.shape, seen.strides, seen.address, seen.writable) == (
        "float32",
        (3, 4),
        (8, 1),
        4096,
        True,
    )
    seen = view(GpuArray("<i8", (3, 4), None, True), "x", "cuda")
    assert (seen.storage, seen.strides, seen.writable) == ("int64", (4, 1), False)
    with pytest.raises(TileValueError, match="lies on cuda, and the kernel runs on cpu"):
        view(GpuArray("<f4", (3,), None, False), "x", "cpu")
    with pytest.raises(TileValueError, match="byte-swapped"):
        view(GpuArray(">f4", (3,), None, False), "x", "cuda")
    with pytest.raises(TileTypeError, match="makes no arrays of bfloat16"):
        allocate((3,), as_dtype("bfloat16"), GpuArray("<f4", (3,), None, False))


class DlpackOnly:
    """An array on a GPU (really the host's) of a library that shows nothing but DLPack."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.x.__dlpack__()


def test_arrays_by_dlpack() -> None:
    pytest.importorskip("cuda.core")
    x = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    seen = view(DlpackOnly(x), "x", "cuda")
    assert (seen.storage, seen.shape, seen.strides, seen.address) == ("float32", (4, 3), (6, 2), x.ctypes.data)
    with pytest.raises(TileTypeError, match="DlpackOnly makes no arrays of float32") as e:
        allocate((3,), as_dtype("float32"), DlpackOnly(x))
    assert "pass the output as out=" in str(e.value)
    torch = pytest.importorskip("torch")
    with pytest.raises(TileTypeError, match="x: DlpackOnly cannot be shared through DLPack"):
        view(DlpackOnly(torch.zeros(3, dtype=torch.float8_e4m3fn)), "x", "cuda")


def test_arrays_in_host_memory_are_refused() -> None:
    with pytest.raises(TileError, match="lies on cpu, and the kernel runs on cuda"):
        view(np.zeros(3, np.float32), "x", "cuda")
