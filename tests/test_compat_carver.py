"""The plain kernels of `tilelang.carver`'s templates compute what the templates say, and recommendations make sense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels_support import attention_reference, window_mask, worst

import tiledsl
from tiledsl.compat import carver

RNG = np.random.default_rng(0)


def run(template: Any, *arrays: Any, target: str = "numpy") -> Any:
    return tiledsl.compile(template.equivalent_function(), out_idx=[-1])(*arrays, target=target)


def draw(*shape: int) -> Any:
    return RNG.integers(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
def test_matmul(trans_a: bool, trans_b: bool) -> None:
    a, b, bias = draw(37, 33), draw(33, 45), draw(45)
    given = [np.ascontiguousarray(a.T) if trans_a else a, np.ascontiguousarray(b.T) if trans_b else b]
    types = dict(in_dtype="float32", out_dtype="float32", accum_dtype="float32", trans_A=trans_a, trans_B=trans_b)
    assert np.array_equal(run(carver.MatmulTemplate(37, 45, 33, **types), *given), a @ b)
    assert np.array_equal(run(carver.MatmulTemplate(37, 45, 33, with_bias=True, **types), *given, bias), a @ b + bias)


def test_gemv_of_integers() -> None:
    a, b = draw(1, 50).astype(np.int8), draw(20, 50).astype(np.int8)
    found = run(carver.GEMVTemplate(20, 50, in_dtype="int8", out_dtype="int32"), a, b)
    assert np.array_equal(found, a.astype(np.int32) @ b.T.astype(np.int32))


def test_elementwise() -> None:
    x = draw(300)
    assert np.array_equal(run(carver.ElementwiseTemplate([3, 100], "float32"), x), x + 1)


@pytest.mark.parametrize("structure", ["SSR", "SRS", "RS", "SR", "RSR", "R"])
def test_reduction(structure: str) -> None:
    shape = (3, 5, 4)[: len(structure)]
    x = draw(*shape)
    want = x.sum(axis=tuple(i for i, s in enumerate(structure) if s == "R")).reshape(-1)
    assert np.array_equal(run(carver.GeneralReductionTemplate(structure, shape, "float32"), x).reshape(-1), want)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    q, k, v = (draw(2, 40, 3, 16) for _ in range(3))
    template = carver.FlashAttentionTemplate(2, 3, 16, 40, 40, causal, "float32", "float32", "float32")
    heads_first = (x.swapaxes(1, 2) for x in (q, k, v))
    want, _, bound, _ = attention_reference(*heads_first, window_mask(40, 40, causal, None), 0.25, "float32")
    assert worst(run(template, q, k, v).swapaxes(1, 2), want, bound) <= 1


def test_convolution() -> None:
    image, filters = draw(2, 7, 6, 3), draw(3, 3, 3, 5)
    template = carver.ConvTemplate(2, 3, 7, 6, 5, 3, 2, 1, 1, "float32", "float32")
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = np.zeros((2, 4, 3, 5), np.float32)
    for y in range(4):
        for x in range(3):
            want[:, y, x] = np.einsum("nijc,ijcf->nf", padded[:, 2 * y : 2 * y + 3, 2 * x : 2 * x + 3], filters)
    assert np.array_equal(run(template, image, filters), want)


def test_hints_fit_the_machine_and_the_problem() -> None:
    for arch in (carver.CUDA(), carver.CPU()):
        for m, n, k in ((4096, 4096, 4096), (1, 4096, 4096), (100, 96, 64), (17, 33, 5)):
            hints = carver.MatmulTemplate(m, n, k).with_arch(arch).recommend_hints(50)
            assert hints
            for h in hints:
                (bm, bn), (wm, wn), (bk,) = h.block, h.warp, h.rstep
                assert bm % wm == bn % wn == 0 and h.threads == bm // wm * (bn // wn) * 32
                assert h.pipeline_stage * (bm + bn) * bk * 2 <= arch.smem_cap
                assert bm < 2 * max(m, 16) and bn < 2 * max(n, 16) and bk < 2 * max(k, 16)
    large, few = (
        carver.MatmulTemplate(m, 4096, 4096).with_arch(carver.CUDA()).recommend_hints(1)[0] for m in (4096, 16)
    )
    assert large.block[0] * large.block[1] > few.block[0] * few.block[1] and few.block[0] == 16
