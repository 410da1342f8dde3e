"""Engram's hash, gate and tables: NumPy integers, bounds of float32, and the pages of a big file."""

from __future__ import annotations

import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernels_support import same_bits
from running_error import Ball, ball, gradients, where
from v4_reference import BF16, TARGETS, Array, F

from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import engram
from tiledsl.testing import assert_targets_agree


def hashes(ids: Array, mult: Array, sizes: Array) -> Array:
    """Python integers, wrapped to 64 bits by hand."""
    layers, grams, heads = sizes.shape
    out = np.zeros((layers, len(ids), grams * heads), np.int32)
    for layer in range(layers):
        for t, row in enumerate(ids.tolist()):
            h, before = 0, 0
            for n, token in enumerate(row):
                h ^= (token * int(mult[layer, n]) + 2**63) % 2**64 - 2**63
                if n:
                    for j in range(heads):
                        out[layer, t, (n - 1) * heads + j] = h % int(sizes[layer, n - 1, j]) + before
                        before += int(sizes[layer, n - 1, j])
    return out


@settings(max_examples=8)
@given(
    m=st.sampled_from([0, 1, 17, 300]),
    layers=st.sampled_from([1, 3]),
    length=st.sampled_from([2, 3]),
    heads=st.sampled_from([1, 8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_hash(m: int, layers: int, length: int, heads: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 129280, (m, length)).astype(np.int32)
    mult = rng.integers(-(2**62), 2**62, (layers, length)) * 2 + 1
    sizes = np.stack([engram.engram_primes(int(rng.integers(3, 10**6)), length - 1, heads) for _ in range(layers)])
    for target in TARGETS:
        np.testing.assert_array_equal(engram.ngram_hash(ids, mult, sizes, target=target), hashes(ids, mult, sizes))


def test_primes() -> None:
    found = engram.engram_primes(646400, 2, 8)
    assert found.shape == (2, 8) and len(set(found.ravel().tolist())) == 16 and (np.diff(found.ravel()) > 0).all()
    sieve = np.ones(found.max() + 1, bool)
    sieve[:2] = False
    for p in range(2, int(found.max() ** 0.5) + 1):
        sieve[p * p :: p] = False
    np.testing.assert_array_equal(found.ravel(), np.flatnonzero(sieve[646400:])[:16] + 646400)


def gate(x: Ball, k: Ball, v: Ball, wx: Ball, wk: Ball, eps: float = 1e-20, clamp: float = 1e-6) -> Ball:
    """The formula."""
    m, s, d = x.shape
    rx, rk = (1 / ((t * t).mean(-1) + eps).sqrt() for t in (x, k))
    dot = (x * wx * k * wk).sum(-1) * rx * rk * d**-0.5

    def root(x: Array) -> Array:
        return np.copysign(np.sqrt(np.maximum(np.abs(x), clamp)), x)

    def slope(y: Ball) -> Ball:
        return where(np.abs(dot.value) > clamp, 0.5 / (y * np.sign(y.value)), 0.0)

    g = dot.function(root(dot.value), dot.through(root).error, slope).sigmoid()
    return x + g.reshape(m, s, 1) * v.reshape(m, 1, d)


@settings(max_examples=6)
@given(
    m=st.sampled_from([1, 7, 33]),
    s=st.sampled_from([1, 4]),
    d=st.sampled_from([1, 31, 256, 300]),
    dtype=st.sampled_from([BF16, np.dtype(F)]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gate(m: int, s: int, d: int, dtype: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, k = (rng.standard_normal((m, s, d)).astype(F).astype(dtype) for _ in range(2))
    v, (wx, wk) = rng.standard_normal((m, d)).astype(F).astype(dtype), rng.uniform(0.5, 2, (2, s, d)).astype(F)
    wanted = gate(*map(ball, (x, k, v, wx, wk)))
    for target in TARGETS:
        y, _ = engram.engram_gate(x, k, v, wx, wk, target=target)
        assert wanted.holds(y, dtype.name)
        one, _ = engram.engram_gate(x[-1:], k[-1:], v[-1:], wx, wk, target=target)
        assert same_bits(one, y[-1:])


def test_gradients_are_those_of_automatic_differentiation() -> None:
    rng, (m, s, d) = np.random.default_rng(0), (70, 3, 40)
    x, k, dy = (rng.standard_normal((m, s, d)).astype(F) for _ in range(3))
    k[5] = 0  # a dot below the clamp
    v, (wx, wk) = rng.standard_normal((m, d)).astype(F), rng.uniform(0.5, 2, (2, s, d)).astype(F)
    leaves = [ball(t) for t in (x, k, v, wx, wk)]
    wanted = gradients([gate(*leaves, eps=1e-6)], [dy], leaves)
    for target in TARGETS:
        _, saved = engram.engram_gate(x, k, v, wx, wk, eps=1e-6, target=target)
        got = engram.engram_gate_backward(x, k, v, wx, wk, saved, dy, target=target)
        assert all(w.holds(g) for g, w in zip(got, wanted, strict=True))
        assert not got[1][5].any()


def test_targets_agree() -> None:
    rng, (m, s, d) = np.random.default_rng(1), (5, 2, 40)
    x, k, dy = (rng.standard_normal((m, s, d)).astype(F).astype(BF16) for _ in range(3))
    v, (wx, wk) = rng.standard_normal((m, d)).astype(F).astype(BF16), rng.uniform(0.5, 2, (2, s, d)).astype(F)

    def both(*a: Array, target: str) -> Any:
        y, saved = engram.engram_gate(*a[:5], target=target)
        return [y, *engram.engram_gate_backward(*a[:5], saved, a[5], target=target)]

    assert_targets_agree(both, x, k, v, wx, wk, dy)
    ids, mult = rng.integers(0, 999, (9, 3)).astype(np.int32), rng.integers(1, 2**60, (2, 3))
    sizes = np.stack([engram.engram_primes(1000, 2, 4)] * 2)
    assert_targets_agree(engram.ngram_hash, ids, mult, sizes)
    table, index = rng.standard_normal((50, 30)).astype(F), np.array([[3, -1, 49], [50, 0, 3]], np.int32)
    assert_targets_agree(engram.gather_rows, table, index)
    got = engram.gather_rows(table, index)
    np.testing.assert_array_equal(got[0, [0, 2]], table[[3, 49]])
    assert not got[0, 1].any() and not got[1, 0].any()


def resident(path: Path) -> int:
    """Bytes of the file's mapping that are resident in this process."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = str(path) in line
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found


def test_a_table_larger_than_memory(tmp_path: Path) -> None:
    """A sparse file larger than this machine's memory: what is resident are the pages of the rows asked for."""
    path, d = tmp_path / "table", 1024
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**34
    rows = min(2 * memory, 2**43) // (2 * d)
    rng = np.random.default_rng(2)
    index = (rng.permutation(2000)[:60] * (rows // 2000)).astype(np.int32).reshape(3, 20)
    values = rng.standard_normal((60, d)).astype(F).astype(BF16)
    try:
        with open(path, "wb") as file:
            file.truncate(rows * 2 * d)
            for row, value in zip(index.ravel(), values, strict=True):
                file.seek(int(row) * 2 * d)
                file.write(value.tobytes())
    except OSError as e:
        pytest.skip(f"no room for a sparse file: {e}")
    with engram.TableReader(path, d, "bfloat16") as table:
        assert table.rows == rows and rows * 2 * d > memory
        before = resident(path)
        pages = [table.prefetch(part) for part in index]
        got = np.concatenate([table.lookup(part) for part in index])
        assert same_bits(got, values)
        assert same_bits(table.lookup(index).reshape(60, d), values)
        if before == 0 and (now := resident(path)):
            assert sum(pages) == len(table.pages(index)) and now <= sum(pages) * mmap.PAGESIZE
            table.release()
            assert resident(path) == 0
        assert same_bits(table.lookup(index[1]), values[20:40])


def test_small_rows_share_pages(tmp_path: Path) -> None:
    path, table = tmp_path / "small", np.arange(3000, dtype=F).reshape(1000, 3)
    path.write_bytes(b"head" * 3 + table.tobytes())
    with engram.TableReader(path, 3, "float32", offset=12) as reader:
        index = np.array([999, 0, 0, 5, -3, 1000], np.int32)
        assert reader.prefetch(index) == 2 and reader.rows == 1000
        got = reader.lookup(index)
        np.testing.assert_array_equal(got[:4], table[[999, 0, 0, 5]])
        assert not got[4:].any()


def test_corners_and_arguments(tmp_path: Path) -> None:
    ids, mult = np.zeros((4, 3), np.int32), np.ones((1, 3), np.int64)
    sizes, x = np.full((1, 2, 2), 7, np.int32), np.ones((2, 3, 8), F)
    path = tmp_path / "t"
    path.write_bytes(bytes(100))
    y, saved = engram.engram_gate(x[:0], x[:0], x[:0, 0], x[0], x[0])
    assert y.shape == (0, 3, 8)
    assert not engram.engram_gate_backward(x[:0], x[:0], x[:0, 0], x[0], x[0], saved, y)[3].any()
    for call, kind, words in (
        (lambda: engram.ngram_hash(ids, mult, sizes[:, :1]), TileTypeError, "do not fit"),
        (lambda: engram.ngram_hash(ids, mult, sizes * 0), TileValueError, "sizes holds 0"),
        (lambda: engram.ngram_hash(ids, mult, sizes * 0 + 2**30), TileValueError, "sum to 2\\^31"),
        (lambda: engram.engram_primes(0, 1, 1), TileValueError, "positive"),
        (lambda: engram.engram_gate(x, x, x[0], x[0], x[0]), TileTypeError, "expected value"),
        (lambda: engram.engram_gate(x, x.astype(BF16), x[:, 0], x[0], x[0]), TileTypeError, "differ in dtype"),
        (lambda: engram.gather_rows(x[0], np.zeros(3, np.int64)), TileTypeError, "index is int64"),
        (lambda: engram.TableReader(path, 7, "float32"), TileValueError, "not whole rows of 28 bytes"),
        (lambda: engram.TableReader(path, 5, "float64"), TileTypeError, "dtype is 'float64'"),
    ):
        with pytest.raises(kind, match=words):
            call()
