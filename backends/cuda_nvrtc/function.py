"""A loaded artifact of the target "cuda": calls become launches on the stream that the arguments' library uses."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tiledsl.backend import Artifact, Call, DebugRing
from tiledsl.backends.cuda_nvrtc.driver import Driver, default_driver
from tiledsl.backends.simt.launching import Launches
from tiledsl.errors import TileRuntimeError

__all__ = ["CudaFunction", "stream_handle"]

_MOST_BLOCKS = (2**31 - 1, 65535, 65535)


def stream_handle(stream: Any, values: Sequence[Any]) -> int:
    """The driver's handle of a stream: one that was given (an int, `__cuda_stream__`, torch's `cuda_stream`, CuPy's
    `ptr`), else the current one of the arguments' library, else the default stream."""
    if stream is None:
        torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
        for v in values:
            if torch is not None and isinstance(v, torch.Tensor):
                return int(torch.cuda.current_stream(v.device).cuda_stream)
            if cupy is not None and isinstance(v, cupy.ndarray):
                return int(cupy.cuda.get_current_stream().ptr)
            if facts := getattr(v, "__cuda_array_interface__", None):
                return int(facts.get("stream") or 0)  # the one that the producer orders its work by
        return 0
    if isinstance(stream, int):
        return stream
    if hasattr(stream, "__cuda_stream__"):
        return int(stream.__cuda_stream__()[1])
    for name in ("cuda_stream", "ptr", "handle"):
        if hasattr(stream, name):
            return int(getattr(stream, name))
    raise TileRuntimeError(
        f"stream: {type(stream).__name__} is no CUDA stream", help="pass torch.cuda.current_stream() or its handle"
    )


def device_ordinal(values: Sequence[Any]) -> int | None:
    """The device on which the first array lies; None where its library does not say."""
    for v in values:
        index = getattr(getattr(v, "device", None), "index", None)
        if isinstance(index, int):  # torch
            return index
        if hasattr(v, "__dlpack_device__"):
            kind, number = v.__dlpack_device__()
            if int(kind) in (2, 13):
                return int(number)
    return None


class CudaFunction:
    """The Launchable. The driver is asked for when a call comes, so that text can be had without one."""

    def __init__(self, artifact: Artifact, driver: Driver | None = None) -> None:
        self._launches = Launches(artifact)
        self._driver = driver

    def __call__(self, call: Call, *, stream: Any = None, device: Any = None) -> None:
        driver = self._driver or default_driver()
        with driver.active(device_ordinal(call.values) if device is None else int(device)) as ordinal:
            self._run(driver, ordinal, call, stream)

    def _run(self, driver: Driver, ordinal: int, call: Call, stream: Any) -> None:
        launches, artifact = self._launches, self._launches.artifact
        handle = stream_handle(stream, call.values)
        words = launches.words(call)
        values = launches.values(call, words)
        sizes, zeroed = launches.workspace_bytes(values), artifact.meta["zeroed"]
        with _workspaces(driver, sizes, zeroed, handle) as spaces, _ring(driver, call.ring) as ring:
            words[len(words) - len(spaces) :] = spaces
            for k in launches.kernels:
                grid = [*launches.grid(k, values), 1, 1][:3]
                if 0 in grid:
                    continue
                if any(n > most for n, most in zip(grid, _MOST_BLOCKS, strict=True)):
                    raise TileRuntimeError(
                        f"{k.name}: a grid of {grid[0]} x {grid[1]} x {grid[2]} blocks; a GPU has at most "
                        "2147483647 x 65535 x 65535",
                        call.function.loc,
                        help="put the longest axis first in T.Kernel",
                    )
                function = driver.function(artifact.code, artifact.meta["arch"], k.name, k.shared_bytes, ordinal)
                if k.waits:
                    self._all_fit(driver, function, k, grid, ordinal, call)
                given = [ring if kind == "ring" else words[launches.place(call, kind, i)] for kind, i, _, _ in k.params]
                driver.launch(function, grid, k.block, k.shared_bytes, handle, given, k.waits)
        if call.ring is not None:
            call.ring.flush()

    @staticmethod
    def _all_fit(driver: Driver, function: Any, k: Any, grid: Sequence[int], ordinal: int, call: Call) -> None:
        most = driver.resident(function, k.block[0] * k.block[1] * k.block[2], k.shared_bytes, ordinal)
        blocks = grid[0] * grid[1] * grid[2]
        if blocks > most:
            raise TileRuntimeError(
                f"{k.name}: {blocks} blocks wait for each other, and this GPU holds {most} of them at once",
                call.function.loc,
                help=f"launch at most {most} blocks, each of which does more",
            )


@contextmanager
def _workspaces(driver: Driver, sizes: Sequence[int], zeroed: Sequence[int], stream: int) -> Iterator[list[int]]:
    """Device memory in the order of the stream: freed for later work when the kernels before have used it."""
    made = [int(driver.call("cuMemAllocAsync", max(256, n), stream)) for n in sizes]
    try:
        for i in zeroed:
            driver.call("cuMemsetD8Async", made[i], 0, sizes[i], stream)
        yield made
    finally:
        for address in made:
            driver.call("cuMemFreeAsync", address, stream)


@contextmanager
def _ring(driver: Driver, ring: DebugRing | None) -> Iterator[int]:
    """A copy of the ring on the device; what kernels wrote comes back when they are done."""
    if ring is None:
        yield 0
        return
    head = (ctypes.c_uint64 * 2).from_address(ring.address)
    size = 8 * head[1]
    there = int(driver.call("cuMemAlloc", size))
    try:
        driver.call("cuMemcpyHtoD", there, ring.address, 16)
        yield there
        driver.call("cuCtxSynchronize")
        driver.call("cuMemcpyDtoH", ring.address, there, size)
    finally:
        driver.call("cuMemFree", there)
