"""The CUDA driver, as far as kernels need it: contexts, modules, launches, memory; errors that say what to do.

Everything goes through one object with the functions of `cuda.bindings.driver`, so that tests can stand in for it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from tiledsl.errors import InternalError, TileRuntimeError

__all__ = ["Driver", "default_driver", "driver_problem"]

_NO_BINARY = ("CUDA_ERROR_NO_BINARY_FOR_GPU", "CUDA_ERROR_INVALID_IMAGE", "CUDA_ERROR_UNSUPPORTED_PTX_VERSION")
_SMALL_SHARED = 48 * 1024  # more has to be asked for


@cache
def driver_problem() -> str:
    """Why no kernel can be launched here, as a sentence; empty where one can."""
    try:
        from cuda.bindings import driver

        (result,) = driver.cuInit(0)
        if int(result):
            return f"the NVIDIA driver does not start ({result.name})"
        result, count = driver.cuDeviceGetCount()
    except ImportError:
        return "cuda-bindings not installed"
    except (RuntimeError, OSError):
        return "there is no NVIDIA driver"
    return "" if not int(result) and int(count) else "the NVIDIA driver has no GPU"


@cache
def default_driver() -> Driver:
    """The driver of this machine. Raises TileRuntimeError where there is none."""
    reason = driver_problem()
    if reason:
        raise TileRuntimeError(
            f"target cuda cannot run here: {reason}",
            help='run on a machine with an NVIDIA GPU and driver, or use target="cuda-emulator" or a CPU target',
        )
    from cuda.bindings import driver

    return Driver(driver)


class Driver:
    """Calls of the driver that raise instead of giving codes. api: `cuda.bindings.driver` or what stands for it."""

    def __init__(self, api: Any) -> None:
        self.api = api
        self.enum = api.CUdevice_attribute
        self._functions: dict[Any, Any] = {}
        self._contexts: dict[int, Any] = {}  # by device: retained once

    def call(self, name: str, *args: Any) -> Any:
        """What the function gives besides its code: nothing, a value or a tuple."""
        result, *values = getattr(self.api, name)(*args)
        if int(result):
            raise TileRuntimeError(f"the CUDA driver refuses {name}: {getattr(result, 'name', result)}")
        return values[0] if len(values) == 1 else tuple(values) if values else None

    def activate(self, ordinal: int | None = None) -> int:
        """Makes the primary context of a device current (None: whatever is current, else device 0); the device."""
        self.call("cuInit", 0)
        if ordinal is None and int(self.call("cuCtxGetCurrent")):
            return int(self.call("cuCtxGetDevice"))
        device = self.call("cuDeviceGet", ordinal or 0)
        if int(device) not in self._contexts:
            self._contexts[int(device)] = self.call("cuDevicePrimaryCtxRetain", device)
        self.call("cuCtxSetCurrent", self._contexts[int(device)])
        return int(device)

    @contextmanager
    def active(self, ordinal: int | None) -> Iterator[int]:
        """As `activate`; what was current is so again afterwards, for other libraries take it as the chosen device."""
        self.call("cuInit", 0)
        before = self.call("cuCtxGetCurrent")
        try:
            yield self.activate(ordinal)
        finally:
            if ordinal is not None and int(before):
                self.call("cuCtxSetCurrent", before)

    def attribute(self, name: str, device: int) -> int:
        key = getattr(self.enum, f"CU_DEVICE_ATTRIBUTE_{name}")
        return int(self.call("cuDeviceGetAttribute", key, device))

    def arch(self, device: int) -> str:
        """ "sm_90a": the architecture with this very device's instructions."""
        major, minor = (self.attribute(f"COMPUTE_CAPABILITY_{x}", device) for x in ("MAJOR", "MINOR"))
        return f"sm_{major}{minor}{'a' if major >= 9 else ''}"

    def function(self, cubin: bytes, arch: str, name: str, shared_bytes: int, device: int) -> Any:
        """A kernel of a cubin, loaded once per device and ready for its shared memory.

        Raises TileRuntimeError for a cubin of another architecture and for more shared memory than the device has.
        """
        key = (cubin, name, device)
        if key not in self._functions:
            limit = self.attribute("MAX_SHARED_MEMORY_PER_BLOCK_OPTIN", device)
            if shared_bytes > limit:
                raise TileRuntimeError(
                    f"{name} needs {shared_bytes} bytes of shared memory for a block, {shared_bytes - limit} more than "
                    f"the {limit} of this GPU ({self.arch(device)})",
                    help="use smaller tiles or fewer stages (num_stages)",
                )
            result, module = self.api.cuModuleLoadData(cubin)
            if getattr(result, "name", "") in _NO_BINARY:
                raise TileRuntimeError(
                    f"{name} was compiled for {arch}, and the GPU here is {self.arch(device)} ({result.name})",
                    help=f'leave the architecture out (target="cuda"), or write target="cuda:{self.arch(device)}"; a '
                    "driver older than NVRTC needs an update",
                )
            if int(result):
                raise InternalError(f"the CUDA driver refuses a cubin: {getattr(result, 'name', result)}")
            found = self.call("cuModuleGetFunction", module, name.encode())
            if shared_bytes > _SMALL_SHARED:
                key_ = self.api.CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
                self.call("cuFuncSetAttribute", found, key_, shared_bytes)
            self._functions[key] = found
        return self._functions[key]

    def resident(self, function: Any, threads: int, shared_bytes: int, device: int) -> int:
        """How many blocks the device holds at once."""
        per = int(self.call("cuOccupancyMaxActiveBlocksPerMultiprocessor", function, threads, shared_bytes))
        return per * self.attribute("MULTIPROCESSOR_COUNT", device)

    def launch(
        self,
        function: Any,
        grid: Sequence[int],
        block: Sequence[int],
        shared_bytes: int,
        stream: int,
        words: Sequence[int],
        cooperative: bool,
    ) -> None:
        """words: 64 bits per parameter, of which the kernel takes as many bytes as the parameter has."""
        values = (ctypes.c_uint64 * max(1, len(words)))(*(w & (1 << 64) - 1 for w in words))
        at = ctypes.addressof(values)
        places = (ctypes.c_void_p * max(1, len(words)))(*(at + 8 * i for i in range(len(words))))
        name = "cuLaunchCooperativeKernel" if cooperative else "cuLaunchKernel"
        extra = () if cooperative else (0,)
        self.call(name, function, *grid, *block, shared_bytes, stream, ctypes.addressof(places), *extra)
