"""A driver that only remembers its calls: stands for `cuda.bindings.driver`, with the host's memory as the device's."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

__all__ = ["Code", "FakeDriver", "code"]


class Code(int):
    """A result code with a name."""

    name = "CUDA_SUCCESS"


def code(value: int, name: str) -> Code:
    made = Code(value)
    made.name = name
    return made


@dataclass
class FakeDriver:
    """Stands for cuda.bindings.driver: remembers calls; memory of the "device" is the host's."""

    capability: tuple[int, int] = (9, 0)
    shared: int = 232448
    resident_per_sm: int = 2
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    launches: list[Any] = field(default_factory=list)
    memory: dict[int, Any] = field(default_factory=dict)
    load_result: Code = field(default_factory=lambda: Code(0))
    kernel: Any = None

    CUdevice_attribute = SimpleNamespace(
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR="major",
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR="minor",
        CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN="shared",
        CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT="sms",
    )
    CUfunction_attribute = SimpleNamespace(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic")

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def remember(*args: Any) -> tuple[Any, ...]:
            self.calls.append((name, *args))
            return (Code(0), 7)

        return remember

    def cuDeviceGetAttribute(self, key: str, device: int) -> tuple[Any, ...]:
        return Code(0), {"major": self.capability[0], "minor": self.capability[1], "shared": self.shared, "sms": 4}[key]

    def cuModuleLoadData(self, cubin: bytes) -> tuple[Any, ...]:
        return self.load_result, "module"

    def cuFuncSetAttribute(self, *args: Any) -> tuple[Any, ...]:
        self.calls.append(("cuFuncSetAttribute", *args))
        return (Code(0),)

    def cuOccupancyMaxActiveBlocksPerMultiprocessor(self, *args: Any) -> tuple[Any, ...]:
        return Code(0), self.resident_per_sm

    def cuMemAlloc(self, size: int) -> tuple[Any, ...]:
        block = ctypes.create_string_buffer(size)
        self.memory[ctypes.addressof(block)] = block
        return Code(0), ctypes.addressof(block)

    def cuMemAllocAsync(self, size: int, stream: int) -> tuple[Any, ...]:
        return self.cuMemAlloc(size)

    def cuMemFree(self, address: int) -> tuple[Any, ...]:
        del self.memory[address]
        return (Code(0),)

    def cuMemFreeAsync(self, address: int, stream: int) -> tuple[Any, ...]:
        return self.cuMemFree(address)

    def cuMemcpyHtoD(self, dst: int, src: int, size: int) -> tuple[Any, ...]:
        ctypes.memmove(dst, src, size)
        return (Code(0),)

    def cuMemcpyDtoH(self, dst: int, src: int, size: int) -> tuple[Any, ...]:
        return self.cuMemcpyHtoD(dst, src, size)

    def _launched(self, cooperative: bool, function: Any, *numbers: int) -> tuple[Any, ...]:
        *sizes, params = numbers[:9]
        places = (ctypes.c_void_p * 8).from_address(params)
        self.launches.append((tuple(sizes), places, cooperative))
        if self.kernel:
            self.kernel(places)
        return (Code(0),)

    def cuLaunchKernel(self, function: Any, *numbers: int) -> tuple[Any, ...]:
        return self._launched(False, function, *numbers)

    def cuLaunchCooperativeKernel(self, function: Any, *numbers: int) -> tuple[Any, ...]:
        return self._launched(True, function, *numbers)
