"""What instructions gave on GPUs: one file per device in tests/goldens/gpu, written by `make gpu`, binding ever after.

A file has the device, its driver and the date, and per micro-kernel of `test_cuda_prelude.py` digests of arguments
and of what they were afterwards. Runs on the emulator must give what every file says. No file: nothing is verified on
hardware yet, and docs/cuda.md says so.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["FOLDER", "digest", "meet", "on_gpu", "save"]

FOLDER = Path(__file__).parent.parent / "goldens" / "gpu"
_new: dict[str, dict[str, str]] = {}


def on_gpu() -> bool:
    """Micro-kernels run on a GPU, or on what stands for one."""
    return bool(os.environ.get("TILEDSL_GPU"))


def digest(args: Sequence[Any]) -> str:
    """Of arrays and scalars; a NaN equals a NaN."""
    found = hashlib.sha256()
    for a in map(np.asarray, args):
        if a.dtype.kind not in "iub":
            with np.errstate(all="ignore"):
                wide = a.astype(np.float64)
            a = np.where(wide != wide, np.zeros_like(a), a)
            found.update(np.packbits(wide != wide).tobytes())
        found.update(repr((a.dtype.name, a.shape)).encode() + a.tobytes())
    return found.hexdigest()[:16]


@cache
def known(folder: Path) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Micro-kernel -> (file, digest before -> digest after)."""
    found: dict[str, list[tuple[str, dict[str, str]]]] = {}
    for path in sorted(folder.glob("*.json")):
        for name, results in json.loads(path.read_text(encoding="utf-8"))["results"].items():
            found.setdefault(name, []).append((path.name, results))
    return found


def meet(name: str, given: str, args: Sequence[Any], folder: Path | None = None) -> None:
    """Records a result of a GPU; raises AssertionError where another result is recorded."""
    after = digest(args)
    if on_gpu():
        _new.setdefault(name, {})[given] = after
    for file, results in known(folder or FOLDER).get(name, ()):
        assert results.get(given, after) == after, f"{name}: not what {file} has recorded"


def save(path: Path, **facts: str) -> None:
    """facts: device, architecture, driver, date ... of the results so far."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(f"  {json.dumps(name)}: {json.dumps(_new[name])}" for name in sorted(_new))
    head = "".join(f" {json.dumps(k)}: {json.dumps(v)},\n" for k, v in facts.items())
    path.write_text(f'{{\n{head} "results": {{\n{rows}\n }}\n}}\n', encoding="utf-8")
