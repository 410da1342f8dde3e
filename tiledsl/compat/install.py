"""Makes `import tilelang` find the modules of `shim/`, in this process and in those it starts."""

from __future__ import annotations

import contextlib
import os
import site
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["SHIM", "install", "installed"]

SHIM = Path(__file__).parent / "shim"
_NAMES = ("tilelang", "tvm")
_PACKAGE = str(Path(__file__).parents[2])  # the folder that holds `tiledsl`


def install() -> None:
    """From here on `tilelang` and `tvm` are the compatibility layer's, here and in child processes."""
    for name in [m for m in sys.modules if m.partition(".")[0] in _NAMES]:
        del sys.modules[name]
    sys.path.insert(0, str(SHIM))
    inherited = os.environ.get("PYTHONPATH")
    places = [str(SHIM), *(inherited.split(os.pathsep) if inherited else ())]
    if _PACKAGE not in (*site.getsitepackages(), site.getusersitepackages()):
        places.append(_PACKAGE)  # a child in another folder finds it too
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(places))


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """`install` for a while."""
    path, modules, before = list(sys.path), dict(sys.modules), os.environ.get("PYTHONPATH")
    install()
    try:
        yield
    finally:
        sys.path[:] = path
        for name in [m for m in sys.modules if m.partition(".")[0] in _NAMES]:
            del sys.modules[name]
        sys.modules.update({m: x for m, x in modules.items() if m.partition(".")[0] in _NAMES})
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
