"""Measured configurations on disk: one small JSON file each, beside the compiled kernels.

The key holds the kernel's printed IR, so a changed kernel, target, machine or input shape is another measurement.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from pathlib import Path
from typing import Any

from tiledsl import config
from tiledsl.runtime import default_cache

__all__ = ["Store", "key_of"]


def key_of(*parts: object) -> str:
    """A name for these parts on this machine."""
    machine = (
        config.VERSION,
        platform.machine(),
        platform.processor(),
        config.usable_cores(),
        config.NUM_THREADS.get(),
    )
    return hashlib.sha256("\n".join(map(str, (*machine, *parts))).encode()).hexdigest()


class Store:
    """A folder of measurements; a disk that fails counts as an empty one."""

    def __init__(self, folder: Path | None = None) -> None:
        cache = default_cache() if folder is None else None
        self.folder = cache.root / "tune" if cache is not None else folder

    def get(self, key: str) -> dict[str, Any] | None:
        if self.folder is None:
            return None
        try:
            found = json.loads((self.folder / f"{key}.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("latency"), float) else None

    def put(self, key: str, value: dict[str, Any]) -> None:
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.folder)
            with open(handle, "w", encoding="utf-8") as f:
                json.dump(value, f, default=repr)
            os.replace(name, self.folder / f"{key}.json")
        except OSError:
            return
