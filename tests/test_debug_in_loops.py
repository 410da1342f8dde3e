"""T.print and T.device_assert inside T.Parallel and serial loops: the same lines on every target."""

from __future__ import annotations

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl.errors import TileRuntimeError
from tiledsl.testing import available_targets

# mypy: disable-error-code="valid-type,misc,no-untyped-def"

n = T.dynamic("n")


@T.prim_func
def values(X: T.Tensor((n,), "float16")):
    with T.Kernel(1):
        for i in T.Parallel(n):
            if i % 2 == 0:
                T.print(X[i], "x")


@T.prim_func
def one_per_iteration(X: T.Tensor((n,), "float16")):
    with T.Kernel(1):
        tile = T.alloc_shared((2, 2), "float16")
        T.fill(tile, 1.5)
        for _ in T.Parallel(n):
            T.print(tile, "tile")
        for _ in T.serial(2):
            T.print(tile)


@T.prim_func
def own_storage(X: T.Tensor((n,), "float16")):
    with T.Kernel(1):
        for i in T.Parallel(n):
            pair = T.alloc_local((2,), "int32")
            total = T.alloc_var("int32", 7)
            pair[0] = i
            pair[1] = 2 * i
            total += i
            T.print(pair, "pair")
        for i in T.Parallel(n):
            total = T.alloc_var("int32", 7)
            total += i
            T.print(total)


@T.prim_func
def slices(X: T.Tensor((n,), "float16")):
    with T.Kernel(1):
        tile = T.alloc_shared((2, 3), "float16")
        for i, j in T.Parallel(2, 3):
            tile[i, j] = X[i + j]
        T.print(tile[1, 1:3], "row")
        T.print(tile[:, 0])
        T.print(X[3:5])


WANTED = {
    slices: ["row [2. 3.]", "[0. 1.]", "[3. 4.]"],
    values: ["x 0.0", "x 2.0", "x 4.0"],
    one_per_iteration: ["tile [[1.5 1.5]", " [1.5 1.5]]"] * 5 + ["[[1.5 1.5]", " [1.5 1.5]]"] * 2,
    own_storage: [f"pair [{i} {2 * i}]" for i in range(5)] + [str(7 + i) for i in range(5)],
}


@pytest.mark.parametrize("target", ["numpy:exact", *available_targets()])
@pytest.mark.parametrize("kernel", WANTED, ids=lambda k: k.name)
def test_prints(kernel, target: str, capsys: pytest.CaptureFixture[str]) -> None:
    tiledsl.compile(kernel)(np.arange(5).astype(np.float16), target=target)
    assert capsys.readouterr().out.splitlines() == WANTED[kernel]


@pytest.mark.parametrize("target", ["numpy:exact", *available_targets()])
def test_asserts_name_the_iteration(target: str) -> None:
    @T.prim_func
    def small(X: T.Tensor((n,), "float16")):
        with T.Kernel(1):
            for i in T.Parallel(n):
                if i > 1:
                    T.device_assert(X[i] < 3, "too large")

    kernel = tiledsl.compile(small)
    kernel(np.full(5, 2, np.float16), target=target)
    with pytest.raises(TileRuntimeError, match="too large") as caught:
        kernel(np.arange(5).astype(np.float16), target=target)
    assert any("i = 3" in note for note in caught.value.notes)
