"""A driver whose kernels run on the emulator: all of the way from a call to a launch, without a GPU.

"Cubins" are text and the names of its kernels. What a real driver refuses is refused: a kernel of a module that was not
loaded, and more than 48 KB of shared memory that was not asked for.
"""

from __future__ import annotations

import ctypes
import json
import re
from dataclasses import dataclass, field
from typing import Any

from gpu.fake_driver import Code, FakeDriver, code
from tiledsl.backends.cuda_emulator.machine import Argument, Options, launch
from tiledsl.backends.cuda_emulator.toolchain import build_kernel, load_kernel

__all__ = ["EmulatedDriver", "cubin"]

_SMALL_SHARED = 48 * 1024


def cubin(text: str, names: list[str]) -> bytes:
    return json.dumps([text, names]).encode()


@dataclass
class EmulatedDriver(FakeDriver):
    """options: of the emulator. Modules and functions are handles from 1, as numbers."""

    options: Options = field(default_factory=lambda: Options(order="random", seed=1, copies="any"))
    modules: list[tuple[str, Any]] = field(default_factory=list)
    functions: list[tuple[int, str]] = field(default_factory=list)
    shared_allowed: dict[int, int] = field(default_factory=dict)

    def cuCtxGetCurrent(self) -> tuple[Any, ...]:
        return Code(0), 0

    def cuModuleLoadData(self, image: bytes) -> tuple[Any, ...]:
        text, names = json.loads(image)
        self.modules.append((text, load_kernel(build_kernel(text, names, watched=False), names)))
        return Code(0), len(self.modules)

    def cuModuleGetFunction(self, module: int, name: bytes) -> tuple[Any, ...]:
        if name.decode() not in self.modules[module - 1][1].entries:
            return code(500, "CUDA_ERROR_NOT_FOUND"), 0
        self.functions.append((module, name.decode()))
        return Code(0), len(self.functions)

    def cuFuncSetAttribute(self, function: int, attribute: str, value: int) -> tuple[Any, ...]:
        self.shared_allowed[function] = value
        return (Code(0),)

    def _launched(self, cooperative: bool, function: Any, *numbers: int) -> tuple[Any, ...]:
        gx, gy, gz, bx, by, bz, shared, _, places = numbers[:9]
        if shared > self.shared_allowed.get(function, _SMALL_SHARED):
            return (code(1, "CUDA_ERROR_INVALID_VALUE"),)
        module, name = self.functions[function - 1]
        text, kernel = self.modules[module - 1]
        count = _parameters(text, name)
        at = (ctypes.c_void_p * count).from_address(places)
        arguments = [Argument(ctypes.c_uint64.from_address(p).value) for p in at]
        outcome = launch(
            kernel, name, text, arguments, (gx, gy, gz), (bx, by, bz), shared, self.options, resident=cooperative
        )
        self.launches.append((name, outcome))
        return (Code(0) if outcome.ended and not outcome.reports else code(719, "CUDA_ERROR_LAUNCH_FAILED"),)

    def cuMemsetD8Async(self, address: int, value: int, count: int, stream: int) -> tuple[Any, ...]:
        ctypes.memset(address, value, count)
        return (Code(0),)


def _parameters(text: str, name: str) -> int:
    """How many parameters the text declares for a kernel."""
    found = re.search(rf"__global__[^\n]*\b{name}\(([^)]*)\)", text)
    assert found, name
    return found[1].count(",") + 1 if found[1].strip() else 0
