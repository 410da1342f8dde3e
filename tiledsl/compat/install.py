"""Makes `import tilelang` find the modules of `shim/`, in this process and in those it starts.

The folder stands first on the path, and a finder of our own comes before the path: a folder `tilelang` beside a script,
in the working directory or in a checkout of TileLang, and an installed TileLang, are all passed by.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import os
import site
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.metadata import Distribution, DistributionFinder

__all__ = ["SHIM", "VERSION", "install", "installed"]

SHIM = Path(__file__).parent / "shim"
VERSION = "0.1.15"  # of TileLang, as programs are told
_NAMES = ("tilelang", "tvm")
_PACKAGE = str(Path(__file__).parents[2])  # the folder that holds `tiledsl`


class _First(importlib.abc.MetaPathFinder):
    """Finds the packages of the shim, whatever else is on the path."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.PathFinder.find_spec(name, [str(SHIM)]) if name in _NAMES else None

    def find_distributions(self, context: DistributionFinder.Context) -> Iterable[Distribution]:
        """So that importlib.metadata.version("tilelang") has an answer."""
        from importlib.metadata import Distribution

        class Installed(Distribution):
            def read_text(self, filename: str) -> str | None:
                text = f"Metadata-Version: 2.1\nName: tilelang\nVersion: {VERSION}\n"
                return text if filename == "METADATA" else None

            def locate_file(self, path: Any) -> Any:
                return SHIM / path

        return [Installed()] if context.name in (None, "tilelang") else []


def install() -> None:
    """From here on `tilelang` and `tvm` are the compatibility layer's, here and in child processes."""
    _come_first()
    os.environ["PYTHONPATH"] = _python_path(os.environ)
    start: Any = subprocess.Popen.__init__
    if not hasattr(start, "__wrapped__"):  # also where a program changes the environment, or gives another

        @functools.wraps(start)
        def begin(self: Any, *args: Any, env: Mapping[str, str] | None = None, **kw: Any) -> None:
            start(self, *args, env=_handed_down(os.environ if env is None else env), **kw)

        setattr(subprocess.Popen, "__init__", begin)  # noqa: B010 (its overloads are many)


def _come_first() -> None:
    for name in [m for m in sys.modules if m.partition(".")[0] in _NAMES]:
        del sys.modules[name]
    sys.meta_path[:] = [_First(), *(f for f in sys.meta_path if not isinstance(f, _First))]
    sys.path[:] = [str(SHIM), *(p for p in sys.path if p != str(SHIM))]


def _python_path(environment: Mapping[str, str]) -> str:
    inherited = environment.get("PYTHONPATH")
    places = [str(SHIM), *(inherited.split(os.pathsep) if inherited else ())]
    if _PACKAGE not in (*site.getsitepackages(), site.getusersitepackages()):
        places.append(_PACKAGE)  # a child in another folder finds it too
    return os.pathsep.join(dict.fromkeys(places))


def _handed_down(environment: Mapping[str, str]) -> dict[str, str]:
    """A child's environment, with what makes it a process of this run."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("TILEDSL_")}
    return {**ours, **environment, "PYTHONPATH": _python_path(environment)}


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """For a while, and in this process alone."""
    path, finders, modules = list(sys.path), list(sys.meta_path), dict(sys.modules)
    _come_first()
    try:
        yield
    finally:
        sys.path[:], sys.meta_path[:] = path, finders
        for name in [m for m in sys.modules if m.partition(".")[0] in _NAMES]:
            del sys.modules[name]
        sys.modules.update({m: x for m, x in modules.items() if m.partition(".")[0] in _NAMES})
