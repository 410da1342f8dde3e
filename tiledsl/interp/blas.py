"""Runs NumPy's BLAS on one thread, where NumPy ships an OpenBLAS that says how (else nothing happens).

One thread makes a gemm's bits independent of the machine's load. The setting belongs to the process: other threads
that call BLAS during a run also get one thread.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["one_thread"]

_PREFIXES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")


@cache
def _controls() -> tuple[Callable[[], int], Callable[[int], Any]] | None:
    """(get, set) of the number of threads of the OpenBLAS library inside NumPy's wheel."""
    package = Path(np.__file__).parent
    folders = (package.parent / "numpy.libs", package / ".libs", package / ".dylibs")
    for path in (p for folder in folders if folder.is_dir() for p in sorted(folder.iterdir()) if "openblas" in p.name):
        try:
            library = ctypes.CDLL(str(path))  # loaded already: this is the same handle
        except OSError:
            continue
        for prefix in _PREFIXES:
            try:
                return library[prefix.format("get_num_threads")], library[prefix.format("set_num_threads")]
            except AttributeError:
                continue
    return None


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, matrix products of large arrays use one thread."""
    controls = _controls()
    before = controls[0]() if controls else 1
    if controls is None or before == 1:
        yield
        return
    controls[1](1)
    try:
        yield
    finally:
        controls[1](before)
