"""A backend from another package: found by its entry point, chosen by name, launched, and refused when it is wrong."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import backend
from tiledsl.errors import TileRuntimeError, TileValueError

Install = Callable[..., None]


@tiledsl.jit(out_idx=[-1])
def double(n, dtype=T.float32):
    @T.prim_func
    def main(X: T.Tensor((n,), dtype), s: T.int32, Y: T.Tensor((n,), dtype)):
        with T.Kernel(T.ceildiv(n, 32), threads=32) as bx:
            for i in T.Parallel(32):
                Y[bx * 32 + i] = X[bx * 32 + i] * s

    return main


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """install(null="module:object", ...) registers backends as an installed distribution would."""

    def forget() -> None:
        for found in (backend.backends, backend.load_backend, backend._resolve):
            found.cache_clear()

    def installer(**points: str) -> None:
        folder = tmp_path / "third_party-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1.0\n", encoding="utf-8")
        rows = "".join(f"{name} = {place}\n" for name, place in points.items())
        (folder / "entry_points.txt").write_text(f"[tiledsl.backends]\n{rows}", encoding="utf-8")
        importlib.invalidate_caches()
        forget()

    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield installer
    forget()


def test_null_backend_is_launched(install: Install) -> None:
    install(null="null_backend:backend")
    import null_backend

    null_backend.launches.clear()
    kernel = double(70, target="null")
    assert kernel(np.ones(70, np.float32), 3).shape == (70,)
    assert null_backend.launches == [("70", "scalar", "70")]


def test_two_backends_of_one_name(install: Install) -> None:
    install(numba="null_backend:backend")
    with pytest.raises(TileValueError, match="two backends are called 'numba'.*null_backend:backend"):
        backend.resolve("numba")


def test_entry_point_that_is_no_backend(install: Install) -> None:
    install(null="null_backend:launches")
    with pytest.raises(TileValueError, match="null_backend:launches is not a backend called 'null'"):
        backend.resolve("null")


def test_backend_that_cannot_be_imported(install: Install) -> None:
    install(null="no_such_module:backend")
    with pytest.raises(TileRuntimeError, match="target null is not available here: no_such_module"):
        backend.resolve("null")


def test_unknown_name_is_answered_with_a_suggestion(install: Install) -> None:
    install(null="null_backend:backend")
    with pytest.raises(TileValueError, match="unknown target 'nul'(.|\n)*null"):
        backend.resolve("nul")


@pytest.mark.parametrize(("name", "meant"), [("gpu", "cuda"), ("c", "llvm"), ("interpreter", "numpy")])
def test_names_that_others_use(name: str, meant: str) -> None:
    with pytest.raises(TileValueError, match=f"unknown target '{name}'") as e:
        backend.check_target(name)
    assert e.value.help == f"did you mean {meant}?"
