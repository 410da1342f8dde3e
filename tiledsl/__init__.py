"""tiledsl: a tile-kernel language embedded in Python; one kernel, the same numbers on every target."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tiledsl.config import VERSION as __version__

if TYPE_CHECKING:
    from tiledsl.backend import resolve
    from tiledsl.runtime.jit import JITFunction, jit
    from tiledsl.runtime.kernel import JITKernel, compile
    from tiledsl.runtime.packing import pack, unpack

__all__ = ["JITFunction", "JITKernel", "__version__", "compile", "jit", "pack", "resolve", "unpack"]

# Where the public names live: they are imported when first used, so that `import tiledsl` stays quick.
_LAZY = {
    "JITFunction": "tiledsl.runtime",
    "JITKernel": "tiledsl.runtime",
    "compile": "tiledsl.runtime",
    "jit": "tiledsl.runtime",
    "pack": "tiledsl.runtime",
    "unpack": "tiledsl.runtime",
    "resolve": "tiledsl.backend",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name in _LAZY:
        value = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"tiledsl.{name}")  # tiledsl.kernels, tiledsl.testing ...
    except ModuleNotFoundError as e:
        if e.name != f"tiledsl.{name}":
            raise
        raise AttributeError(f"module 'tiledsl' has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return [*__all__, "kernels", "language", "testing"]
