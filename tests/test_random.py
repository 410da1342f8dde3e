"""T.rng_*: Philox4x32-10 against published vectors and an independent formula; the same bits on all targets."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tiledsl
import tiledsl.language as T

TARGETS = ["numpy:exact", "numpy:checked", "numba", "llvm"]


def philox(seed: int, sequence: int, number: int) -> int:
    """Number `number` of a sequence, with Python's integers."""
    low = (1 << 32) - 1
    block = number // 4
    c = [block & low, block >> 32, sequence & low, sequence >> 32]
    k = [seed & low, seed >> 32]
    for _ in range(10):
        a, b = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [b >> 32 ^ c[1] ^ k[0], b & low, a >> 32 ^ c[3] ^ k[1], a & low]
        k = [k[0] + 0x9E3779B9 & low, k[1] + 0xBB67AE85 & low]
    return c[number % 4]


def test_the_formula_has_the_published_numbers() -> None:
    """Random123's known answers: counters and keys of zeros, of ones, and of pi's digits."""
    assert [philox(0, 0, n) for n in range(4)] == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = (1 << 64) - 1
    assert [philox(ones, ones, 4 * ones + n) for n in range(4)] == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]
    pi = philox(0x299F31D0A4093822, 0x0370734413198A2E, 4 * 0x85A308D3243F6A88)
    assert pi == 0xD16CFE09


@tiledsl.jit
def drawn(blocks: int, threads: int, seq: Any, off: int) -> Any:
    @T.prim_func
    def main(W: T.Tensor((blocks, threads, 5), "uint32"), F: T.Tensor((blocks, threads, 6), "float64"), seed: T.int64):
        with T.Kernel(blocks, threads=threads) as b:
            tid = T.get_thread_binding()
            T.rng_init(seed, seq, off)
            for k in T.serial(5):
                W[b, tid, k] = T.rng_rand()
            F[b, tid, 0] = T.rng_rand_float()
            F[b, tid, 1] = T.rng_rand_float(bit=64)
            for k in T.serial(3):
                F[b, tid, 2 + k] = T.rng_rand_float(dist="normal")
            F[b, tid, 5] = T.rng_rand_float(bit=64, dist="normal")

    return main


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("seq", "off"), [(None, 6), (2**40 + 1, 2**34 - 3)])
def test_every_thread_has_its_own_place(target: str, seq: int | None, off: int) -> None:
    seed = 0x1234567890ABCDEF
    w, f = np.zeros((2, 33, 5), np.uint32), np.zeros((2, 33, 6))
    drawn(2, 33, seq, off)(w, f, seed, target=target)
    for b, t in ((0, 0), (0, 32), (1, 7)):
        sequence = b * 33 + t if seq is None else seq
        numbers = [philox(seed, sequence, off + n) for n in range(13)]
        assert w[b, t].tolist() == numbers[:5]
        assert f[b, t, 0] == np.float32(numbers[5]) * np.float32(2**-32) + np.float32(2**-33)
        assert f[b, t, 1] == (numbers[6] + 1) / 2**32
        u, v = np.array(numbers[7:13], np.float64).reshape(3, 2).T
        size, angle = np.sqrt(-2 * np.log((u + 0.5) / 2**32)), 2 * np.pi * (v + 0.5) / 2**32
        pairs = np.stack([size * np.sin(angle), size * np.cos(angle)], 1).reshape(-1)
        np.testing.assert_allclose(f[b, t, 2:6], pairs[:4], rtol=1e-4, atol=1e-5)
    exact, doubles = np.zeros_like(w), np.zeros_like(f)
    drawn(2, 33, seq, off)(exact, doubles, seed, target="numpy:exact")
    assert np.array_equal(w, exact) and np.array_equal(f, doubles)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("threads", [1, 7, 32])
def test_iterations_draw_one_after_the_other(target: str, threads: int) -> None:
    """Iteration f belongs to thread f % threads; also where seed and sequence are the same for all."""

    @tiledsl.jit
    def made(n: int, threads: int) -> Any:
        @T.prim_func
        def main(W: T.Tensor((n,), "uint32")):
            with T.Kernel(1, threads=threads):
                T.rng_init(5, 0)
                for i in T.Parallel(n):
                    W[i] = T.rng_rand()

        return main

    w = np.zeros(40, np.uint32)
    made(40, threads)(w, target=target)
    assert w.tolist() == [philox(5, 0, i // threads) for i in range(40)]
