"""What TileLang and TVM have and this layer does not: it can be imported; its use is an error that says so."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, NoReturn

from tiledsl.compat import language

__all__ = ["Refused", "install", "refusing", "words"]

_PACKAGES = ("tilelang.", "tvm.")


class Refused:
    """Stands for something whose use is an error that says what to do."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.why = (
            f"{name} is not part of the compatibility layer; write kernels with tilelang.language, and compute on "
            "the host with Python, NumPy or torch"
        )

    def __call__(self, *args: Any, **kw: Any) -> NoReturn:
        raise NotImplementedError(self.why)

    def __getattr__(self, name: str) -> Refused:
        if name.startswith("__"):
            raise AttributeError(name)
        return Refused(f"{self.name}.{name}")


def refusing(package: str) -> Callable[[str], Any]:
    """The `__getattr__` of a module ("tilelang.layout", "tvm.te") that lacks all further names."""

    def find(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Refused(f"{package}.{name}")

    return find


def words(name: str) -> Any:
    """The `__getattr__` of modules that hold functions of T under TileLang's or TVM's names."""
    if name.startswith("__"):
        raise AttributeError(name)
    return language.lookup(name)


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.startswith(_PACKAGES) else None

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        vars(module)["__getattr__"] = words if name.startswith("tilelang.language.") else _of_parent(name)


def _of_parent(package: str) -> Callable[[str], Any]:
    """Names of `tilelang.layout.swizzle` are those of `tilelang.layout`, or refused."""
    parent, refused = sys.modules[package.rpartition(".")[0]], refusing(package)

    def find(name: str) -> Any:
        found = refused(name) if parent.__name__ in ("tilelang", "tvm") else getattr(parent, name)
        return refused(name) if isinstance(found, Refused) else found

    return find


def install() -> None:
    """Modules that do not exist can be imported from here on."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
