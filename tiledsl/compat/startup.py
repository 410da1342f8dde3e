"""What a process does first that runs a TileLang program: from torch's import on, there is a device that says cuda.

`tiledsl run` and `tiledsl pytest` leave TILEDSL_PRETEND in the environment; `shim/sitecustomize.py` looks for it, so
that workers of pytest-xdist, of multiprocessing and of the program itself see the same. torch is not imported before
the program does so.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from tiledsl import config
from tiledsl.compat.pretended_cuda import pretended

__all__ = ["activate"]


def activate(capability: str | None = None) -> None:
    """Pretend a device for the rest of this process and in those that it starts."""
    text = capability or config.PRETEND.get() or "9.0"
    os.environ[config.PRETEND.env] = text
    major, _, minor = text.partition(".")
    wanted = (int(major), int(minor or 0))
    if "torch" in sys.modules:
        _Forever.enter(wanted)
    else:  # before all others: pytest's finder may claim every module
        others = [finder for finder in sys.meta_path if not isinstance(finder, _AfterTorch)]
        sys.meta_path[:] = [_AfterTorch(wanted), *others]


class _Forever:
    """The redirection that nobody leaves."""

    entered: Any = None

    @classmethod
    def enter(cls, capability: tuple[int, int]) -> None:
        if cls.entered is None:
            cls.entered = pretended(capability)
            cls.entered.__enter__()


class _AfterTorch(importlib.abc.MetaPathFinder):
    """Finds torch as everybody does, and acts when it has been imported."""

    def __init__(self, capability: tuple[int, int]) -> None:
        self.capability, self.busy = capability, threading.local()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "torch" or getattr(self.busy, "here", False):
            return None
        self.busy.here = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.busy.here = False
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.capability)
        return spec


class _Loader(importlib.abc.Loader):
    """A loader that enters the redirection behind the module's own code."""

    def __init__(self, loader: Any, capability: tuple[int, int]) -> None:
        self.loader, self.capability = loader, capability

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        _Forever.enter(self.capability)
