"""The GPU that the tools of this folder use: this machine's, or with TILEDSL_GPU=emulated the emulator's."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from functools import cache
from typing import Any

from gpu.emulated import EmulatedDriver, cubin
from tiledsl.backends.cuda_nvrtc import compile as nvrtc
from tiledsl.backends.cuda_nvrtc.driver import Driver, default_driver, driver_problem

__all__ = ["Machine", "facts", "machine", "problem"]


@dataclass(frozen=True)
class Machine:
    """name: as the driver says it; arch: "sm_90a"; driver: its version, "13.0"."""

    api: Driver
    ordinal: int
    name: str
    arch: str
    driver: str
    emulated: bool

    def compile(self, text: str, names: list[str]) -> bytes:
        """A cubin for this GPU."""
        return cubin(text, names) if self.emulated else nvrtc.compile_text(text, self.arch).cubin

    def upload(self, address: int, size: int) -> int:
        """Device memory with a copy of the host's, at the same place of a line of 256 bytes; `base` frees it."""
        there = int(self.api.call("cuMemAlloc", size + address % 256))
        if size:
            self.api.call("cuMemcpyHtoD", there + address % 256, address, size)
        return there + address % 256

    def download(self, address: int, there: int, size: int) -> None:
        if size:
            self.api.call("cuMemcpyDtoH", address, there, size)

    def free(self, there: int, address: int) -> None:
        self.api.call("cuMemFree", there - address % 256)


def problem() -> str:
    """Why there is no GPU here, as a sentence; empty where there is one."""
    return "" if _emulated() else nvrtc.missing() or driver_problem()


def _emulated() -> bool:
    return os.environ.get("TILEDSL_GPU") == "emulated"


@cache
def machine() -> Machine:
    """Raises TileRuntimeError where there is no GPU."""
    if _emulated():
        return Machine(Driver(EmulatedDriver()), 0, "emulated GPU", "sm_90a", "none", True)
    api = default_driver()
    ordinal = api.activate()
    raw: Any = api.call("cuDeviceGetName", 256, ordinal)
    name = re.sub(r"\W+", " ", bytes(raw).split(b"\0")[0].decode()).strip()
    version = int(api.call("cuDriverGetVersion"))
    return Machine(api, ordinal, name, api.arch(ordinal), f"{version // 1000}.{version % 1000 // 10}", False)


def facts() -> dict[str, str]:
    """What results are recorded with."""
    gpu = machine()
    versions = {"driver": gpu.driver, "nvrtc": nvrtc.nvrtc_version()}
    return {"device": gpu.name, "architecture": gpu.arch, **versions, "date": time.strftime("%Y-%m-%d")}
