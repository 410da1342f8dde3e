"""What launches and arrays are refused for, word for word."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError
from tiledsl.runtime.views import _cuda_dlpack_view, _like_cuda


@T.prim_func
def scaled(g: T.int32, A: T.Tensor((4,), "float32"), B: T.Tensor((4,), "float32")) -> None:
    with T.Kernel(g):
        for i in T.Parallel(4):
            B[i] = A[i] * 2.0


@T.prim_func
def silent(A: T.Tensor((4,), "float32"), B: T.Tensor((4,), "float32")) -> None:
    with T.Kernel(1):
        T.copy(B, A)


@T.prim_func
def large(Y: T.Tensor((4,), "float32")) -> None:
    with T.Kernel(1):
        S = T.alloc_shared((1 << 44,), "float32")
        for i in T.Parallel(4):
            S[i] = 1.0
            Y[i] = S[i]


@T.prim_func
def uncleared(A: T.Tensor((4, 4), "float32"), C: T.Tensor((4, 4), "float32")) -> None:
    with T.Kernel(1) as block:
        a = T.alloc_shared((4, 4), "float32")
        acc = T.alloc_fragment((4, 4), "float32")
        T.copy(A, a)
        for k in T.serial(2):
            T.gemm(a, a, acc, clear_accum=k == block + 1)
        T.copy(acc, C)


@T.prim_func
def racing(A: T.Tensor((8,), "float32")) -> None:
    with T.Kernel(2) as half:
        for i in T.Parallel(4):
            A[half * 4] = A[half * 4 + i]


n = T.dynamic("n")


@T.prim_func
def shown(A: T.Tensor((n,), "float32")) -> None:
    with T.Kernel(1):
        T.print(A)


FOUR, CHECKED = np.ones(4, np.float32), "numpy:checked"
REFUSED: dict[str, Callable[[], Any]] = {
    "grid_negative": lambda: tiledsl.compile(scaled)(-1, FOUR, FOUR.copy()),
    "grid_empty": lambda: tiledsl.compile(scaled, out_idx=[2])(0, FOUR),
    "output_forgotten": lambda: tiledsl.compile(scaled)(1, FOUR),
    "accumulator_uncleared": lambda: tiledsl.compile(uncleared, out_idx=[1])(np.eye(4, dtype="f4"), target=CHECKED),
    "race_of_iterations": lambda: tiledsl.compile(racing)(np.arange(8, dtype="f4"), target=CHECKED),
    "output_unwritten": lambda: tiledsl.compile(silent, out_idx=[1])(FOUR),
    "not_enough_memory": lambda: tiledsl.compile(large)(FOUR.copy(), target="llvm"),
    "print_symbolic": lambda: tiledsl.compile(shown)(FOUR, target="llvm"),
    "gpu_dlpack": lambda: _cuda_dlpack_view(FOUR, "x"),
    "gpu_no_such_array": lambda: _like_cuda((3,), as_dtype("bfloat16").name, FOUR),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str, golden: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "gpu_dlpack":
        monkeypatch.setitem(sys.modules, "cuda.core.utils", None)
    if name == "gpu_no_such_array":
        monkeypatch.delitem(sys.modules, "numpy")  # the package of the array that is at hand makes none
    with pytest.raises(TileError) as caught:
        REFUSED[name]()
    golden(f"errors/runtime_{name}", f"{type(caught.value).__name__}: {caught.value}", numbered=False)
