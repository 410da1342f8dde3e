"""Repeated calls of small kernels take a short way: the same values, the same errors, whatever changes."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T
from tiledsl import config
from tiledsl.backends.cpu.quick import layout_holds
from tiledsl.errors import TileError, TileTypeError
from tiledsl.runtime import quick

N = T.dynamic("n")


@T.prim_func
def three(A: T.Tensor((N,), "float32"), B: T.Tensor((N,), "float32"), C: T.Tensor((N,), "float32")) -> None:
    with T.Kernel(T.ceildiv(N, 32)) as b:
        for i in T.Parallel(32):
            C[b * 32 + i] = A[b * 32 + i] + 2.0 * B[b * 32 + i]


S, Q = T.dynamic("s", "int64"), T.dynamic("q")


@T.prim_func
def strided(A: T.StridedTensor((Q, 3), (S, 1), "int32"), B: T.Tensor((Q, 3), "int32")) -> None:
    with T.Kernel(Q) as b:
        for j in T.Parallel(3):
            B[b, j] = A[b, j] - 1


def floats(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).standard_normal(n, dtype=np.float32)


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which calls took the short way."""
    taken: list[bool] = []
    plain = quick.Quick.__call__

    def noted(self: Any, values: Any) -> bool:
        taken.append(plain(self, values))
        return taken[-1]

    monkeypatch.setattr(quick.Quick, "__call__", noted)
    return taken


def test_this_interpreter_has_the_short_way() -> None:
    assert layout_holds()


def test_many_calls(ways: list[bool]) -> None:
    kernel = tiledsl.compile(three)
    for i in range(600):
        a, b, c = floats(100, i), floats(100, i + 1), np.zeros(100, np.float32)
        kernel(a, b, c)
        assert (c == a + np.float32(2) * b).all()
    assert sum(ways) > 500 and not all(ways)  # now and then the time of a block is measured again


def test_what_may_change_between_calls(ways: list[bool]) -> None:
    """Sizes, read-only inputs, places, overlap, subclasses, the environment's target."""
    kernel = tiledsl.compile(three)
    a, b, c = floats(64), floats(64, 1), np.zeros(64, np.float32)

    class Sub(np.ndarray[Any, Any]):
        pass

    frozen = floats(64, 2)
    frozen.setflags(write=False)
    whole = floats(200, 3)
    cases = [(a, b, c), (a, b, c), (floats(33), floats(33), np.zeros(33, np.float32)), (a, frozen, c),
             (a, frozen, c), (a, frozen, c),
             (whole[:64], whole[100:164], c), (c, b, c), (a, b, c), (a.view(Sub), b, c), (a, b, c),
             (b, a, c)]  # fmt: skip
    for x, y, z in cases:
        want = x + np.float32(2) * y
        kernel(x, y, z)
        assert (z == want).all()
    assert any(ways) and not all(ways)
    before = len(ways)
    with config.TARGET.override("numpy:exact"):
        kernel(a, b, c)
    assert len(ways) == before


def test_overlap_is_seen(ways: list[bool]) -> None:
    """What is written while it is read elsewhere has the bits of the interpreter, call after call. On one thread: a
    block reads what the next one writes."""
    kernel = tiledsl.compile(three)
    with config.NUM_THREADS.override(1):
        for shift in (0, 64, 1, 17, 64, 0):
            x = floats(200)
            y = x.copy()
            kernel(x[shift : shift + 64], x[100:164], x[:64])
            kernel(y[shift : shift + 64], y[100:164], y[:64], target="numpy:exact")
            assert (x == y).all()


def test_it_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For each way of calling, however often they alternate; never for arrays that overlap."""
    made: list[Any] = []
    plain = quick.Quick.__init__

    def counted(self: Any, *args: Any) -> None:
        made.append(self)
        plain(self, *args)

    monkeypatch.setattr(quick.Quick, "__init__", counted)
    kernel = tiledsl.compile(three)
    a, b, c = floats(64), floats(64, 1), np.zeros(64, np.float32)
    for _ in range(5):
        for x in (a, a[:32]):
            for _ in range(4):
                kernel(x, b[: len(x)], c[: len(x)])
    assert len(made) == 2
    for _ in range(4):
        kernel(c, b, c)
    assert len(made) == 2


def test_mistakes_stay_mistakes() -> None:
    kernel = tiledsl.compile(three)
    a, b, c = floats(64), floats(64, 1), np.zeros(64, np.float32)
    for _ in range(3):
        kernel(a, b, c)
    frozen = np.zeros(64, np.float32)
    frozen.setflags(write=False)
    for args in [(a, b), (a, b, c, c), (a, b, frozen), (a, b, c.astype(np.float64)), (a, b, c[:32]), (a, [1.0], c),
                 (a, b, None), (a, b, np.zeros((64, 1), np.float32)), (a, b, c.byteswap().view(">f4"))]:  # fmt: skip
        with pytest.raises(TileError):
            kernel(*args)
    with pytest.raises(TileTypeError, match="no keyword"):
        kernel(a, b, c, blocks=3)
    kernel(a, b, c)
    assert (c == a + np.float32(2) * b).all()


def test_strides_and_symbols(ways: list[bool]) -> None:
    kernel = tiledsl.compile(strided)
    base = np.arange(400, dtype=np.int32).reshape(20, 20)
    for width in (3, 3, 3, 7, 7, 7, 3, 20):
        a, out = base[:5, :width][:, :3] if width != 7 else base[::2][:5, :3], np.zeros((5, 3), np.int32)
        kernel(a, out)
        assert (out == a - 1).all()
    assert any(ways) and not all(ways)


def test_outputs_are_new_arrays(ways: list[bool]) -> None:
    kernel = tiledsl.compile(three, out_idx=[-1])
    a, b = floats(64), floats(64, 1)
    made = [kernel(a, b) for _ in range(5)]
    assert len({id(x) for x in made}) == 5 and all((x == a + np.float32(2) * b).all() for x in made)
    given = np.zeros(64, np.float32)
    assert kernel(a, b, out=given) is given and (given == made[0]).all()
    assert any(ways)


def test_threads() -> None:
    """Each thread has words of its own."""
    kernel, wrong = tiledsl.compile(three), []

    def work(seed: int) -> None:
        for i in range(300):
            a, b, c = floats(96, seed + i), floats(96, seed - i + 5000), np.zeros(96, np.float32)
            kernel(a, b, c)
            if not (c == a + np.float32(2) * b).all():
                wrong.append((seed, i))

    crew = [threading.Thread(target=work, args=(1000 * k,)) for k in range(1, 5)]
    for t in crew:
        t.start()
    for t in crew:
        t.join()
    assert wrong == []
