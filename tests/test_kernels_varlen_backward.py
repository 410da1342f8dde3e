"""Gradients of attention over packed sequences: of each sequence alone, bit for bit, and against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from kernels_support import Array, attention_gradients, normal, same_bits, worst

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError

Q_LENGTHS, KV_LENGTHS = [33, 0, 1, 70, 5], [33, 4, 0, 90, 64]
CASES: list[dict[str, Any]] = [{}, {"causal": True}, {"window": (20, 3)}, {"causal": True, "window": (9, 0)}]


def ends(lengths: list[int]) -> Array:
    return np.cumsum([0, *lengths])


def problem(dtype: str, heads: int, kv_heads: int, dim: int) -> list[Array]:
    rng = np.random.default_rng(1)
    rows, keys = sum(Q_LENGTHS), sum(KV_LENGTHS)
    return [
        normal(rng, (n, h, dim), dtype) for n, h in ((rows, heads), (keys, kv_heads), (keys, kv_heads), (rows, heads))
    ]


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("options", CASES, ids=str)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_each_sequence_as_if_alone(dtype: str, options: dict[str, Any], sink: bool) -> None:
    q, k, v, do = problem(dtype, 4, 2, 32)
    sinks = normal(np.random.default_rng(2), (4,), "float32") if sink else None
    options = {**options, "sink": sinks, "target": "llvm"}
    bounds = ends(Q_LENGTHS), ends(KV_LENGTHS)
    o, lse = kernels.flash_attention_varlen(q, k, v, *bounds, return_lse=True, **options)
    dlse = normal(np.random.default_rng(3), lse.shape, "float32")
    got = kernels.flash_attention_varlen_backward(q, k, v, o, lse, do, *bounds, dlse=dlse, **options)
    total = np.zeros(4, np.float32)
    for s in range(len(Q_LENGTHS)):
        a, b = (slice(e[s], e[s + 1]) for e in bounds)
        one = [x[None, r] for x, r in ((q, a), (k, b), (v, b), (o, a))]
        alone = kernels.flash_attention_backward(
            *one, lse[None, :, a].copy(), do[None, a], dlse=dlse[None, :, a].copy(), **options
        )
        for x, y, r in zip(got, alone, (a, b, b), strict=False):
            assert same_bits(x[r], y[0])
        if sink:
            total = total + alone[3]
    assert not sink or same_bits(got[3], total)


def test_against_float64() -> None:
    q, k, v, do = problem("float32", 2, 1, 16)
    bounds = ends(Q_LENGTHS), ends(KV_LENGTHS)
    o, lse = kernels.flash_attention_varlen(q, k, v, *bounds, return_lse=True, target="llvm")
    got = kernels.flash_attention_varlen_backward(q, k, v, o, lse, do, *bounds, target="llvm")
    for s in range(len(Q_LENGTHS)):
        a, b = (slice(e[s], e[s + 1]) for e in bounds)
        if Q_LENGTHS[s] and KV_LENGTHS[s]:
            one = [x[None, r].swapaxes(1, 2) for x, r in ((q, a), (k, b), (v, b), (do, a))]
            everything, no = np.ones(1, bool), np.zeros((1, 2, Q_LENGTHS[s]))
            exact, off, _, _ = attention_gradients(*one, no, everything, 0.25, "float32", None)
            for x, r, e, w in zip(got, (a, b, b), exact, off, strict=True):
                assert worst(x[None, r].swapaxes(1, 2), e, w) <= 1
        else:
            assert not any(x[r].any() for x, r in zip(got, (a, b, b), strict=True))


def test_what_is_refused() -> None:
    q, k, v, do = problem("float32", 2, 1, 16)
    good = ends(Q_LENGTHS), ends(KV_LENGTHS)
    lse = np.zeros((2, len(q)), np.float32)
    with pytest.raises(TileValueError, match="flash_attention_varlen_backward: cu_seqlens_q must ascend"):
        kernels.flash_attention_varlen_backward(q, k, v, q, lse, do, good[0] + 1, good[1])
    with pytest.raises(TileTypeError, match="expected \\[heads, total_q\\]"):
        kernels.flash_attention_varlen_backward(q, k, v, q, lse[:1], do, *good)
    with pytest.raises(TileTypeError, match="one number of sequences"):
        kernels.flash_attention_varlen_backward(q, k, v, q, lse, do, good[0], good[1][[0, -1]])
    with pytest.raises(TileTypeError, match="one number of sequences"):
        kernels.flash_attention_varlen_backward(q, k, v, q, lse, do, good[0])
