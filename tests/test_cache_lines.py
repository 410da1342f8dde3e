"""Compiled code is kept for texts that mean the same; what names lines is never taken from another text."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiledsl
from tiledsl import config
from tiledsl.errors import TileIndexError

GATHER = """
import tiledsl.language as T

@T.prim_func
def main(X: T.Tensor((4,), "int32"), Y: T.Tensor((4,), "int32")):
    with T.Kernel(1):
        s = T.alloc_shared((4,), "int32")
        T.copy(X, s)
        for i in T.Parallel(4):
            Y[i] = s[X[i]]
"""
PLAIN = GATHER.replace("s[X[i]]", "X[i] + 1")


@pytest.fixture
def kernel_of(tmp_path: Path) -> Any:
    """(source, lines above it, name) -> a kernel from a file, of its own unless it is named, in an empty cache."""

    def make(source: str, above: int, name: str = "") -> tiledsl.JITKernel:
        path = tmp_path / f"{name or 'k' + str(len(list(tmp_path.glob('*.py'))))}.py"
        text = "\n" * above + textwrap.dedent(source)
        path.write_text(text, encoding="utf-8")
        names: dict[str, Any] = {"__name__": path.stem}
        exec(compile(text, str(path), "exec"), names)
        return tiledsl.compile(names["main"])

    with config.CACHE_DIR.override(str(tmp_path / "cache")):
        yield make


@pytest.mark.parametrize("target", ["llvm", "numba"])
def test_an_error_names_the_text_of_the_kernel_that_ran(kernel_of: Any, target: str) -> None:
    """A test of bounds is in the code, which was compiled for the first text."""
    wild, out = np.array([0, 1, 9, 3], np.int32), np.zeros(4, np.int32)
    for above in (0, 3, 0, 3):
        kernel = kernel_of(GATHER, above)
        with pytest.raises(TileIndexError) as caught:
            kernel(wild, out, target=target)
        assert caught.value.loc is not None and caught.value.loc.line == 10 + above
        assert caught.value.loc.file == kernel.function.loc.file


def test_each_text_is_compiled_once(kernel_of: Any) -> None:
    wild, out = np.array([0, 1, 2, 3], np.int32), np.zeros(4, np.int32)
    compiled = []
    for above, name in ((0, "one"), (0, "two"), (3, "two"), (0, "one"), (0, "two"), (3, "two")):
        kernel = kernel_of(GATHER, above, name)
        kernel(wild, out, target="llvm")
        (program,) = kernel._programs.values()
        compiled.append(program.compiled)
    assert compiled == [True] * 3 + [False] * 3


def test_code_that_names_no_line_serves_all(kernel_of: Any) -> None:
    x, out = np.array([0, 1, 2, 3], np.int32), np.zeros(4, np.int32)
    compiled = []
    for above in (0, 3):
        kernel = kernel_of(PLAIN, above)
        kernel(x, out, target="llvm")
        (program,) = kernel._programs.values()
        compiled.append(program.compiled)
    assert compiled == [True, False] and out.tolist() == [1, 2, 3, 4]


def test_generated_text_names_its_own_lines(kernel_of: Any) -> None:
    for above in (0, 5):
        kernel = kernel_of(PLAIN, above)
        assert f"k{0 if above == 0 else 1}.py:{10 + above}" in kernel.get_kernel_source("numba")


def test_cuda_text_names_its_own_lines(kernel_of: Any) -> None:
    pytest.importorskip("tiledsl.backends.cuda_nvrtc")
    for above in (0, 5):
        assert f".py:{10 + above}" in kernel_of(PLAIN, above).get_kernel_source("cuda:sm_80")
