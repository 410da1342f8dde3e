"""What `tilelang.lower` gives: a kernel's texts, as modules that can be printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["CompiledArtifact", "Module"]


@dataclass(frozen=True)
class Module:
    """Text where TileLang has a module of its compiler."""

    text: str

    def __str__(self) -> str:
        return self.text

    def get_source(self, fmt: str = "") -> str:
        return self.text

    inspect_source = script = get_source

    @property
    def imports(self) -> list[Module]:
        """The modules inside: the text is all there is."""
        return [self]

    imported_modules = imports


@dataclass(frozen=True)
class CompiledArtifact:
    """host_mod: the kernel's IR; device_mod and rt_mod: what the target's compiler gets."""

    host_mod: Module
    device_mod: Module
    params: list[Any]
    kernel_source: str
    rt_mod: Module

    @classmethod
    def of(cls, kernel: Any) -> CompiledArtifact:
        """Of a compat.jit.JITKernel."""
        device = Module(kernel.get_kernel_source())
        return cls(Module(kernel.get_host_source()), device, kernel.params, device.text, device)
