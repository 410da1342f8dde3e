"""The rooms of DeepSeek-V4 take torch tensors and give them back, with the bits that NumPy arrays give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from v4_reference import BF16, Array, F

from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import engram, optim

torch: Any = pytest.importorskip("torch", reason="torch is not installed")


def f(*shape: int) -> Array:
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(F)


def b(*shape: int) -> Array:
    return f(*shape).astype(BF16)


def to(x: Array) -> Any:
    return torch.from_numpy(x.astype(F)).bfloat16() if x.dtype == BF16 else torch.from_numpy(x.copy())


def equal(got: Any, wanted: Any) -> None:
    for g, w in zip(got, wanted, strict=True):
        assert isinstance(g, torch.Tensor) and isinstance(w, np.ndarray)
        np.testing.assert_array_equal(g.float().numpy() if g.is_floating_point() else g.numpy(), w.astype(F))


def test_hyper_connections() -> None:
    x, fn, scale, base = f(5, 4, 40), f(24, 160) * F(0.1), f(3), f(24)
    *wanted, saved = v4.hyper_pre(x, fn, scale, base)
    *got, kept = v4.hyper_pre(*map(to, (x, fn, scale, base)))
    equal(got, wanted)
    equal([v4.hyper_post(got[0], to(x), *got[1:])], [v4.hyper_post(wanted[0], x, *wanted[1:])])
    equal(
        v4.hyper_pre_backward(*map(to, (x, fn, scale, base)), kept, *got),
        v4.hyper_pre_backward(x, fn, scale, base, saved, *wanted),
    )


def test_attention() -> None:
    (cos, sin), at = v4.rope_tables(20, 1e4), np.arange(5, dtype=np.int32)
    slots, x, q = np.array([[0, 4, -1], [3, 2, 1]], np.int32), f(5, 512), b(2, 4, 512)
    results: list[list[Any]] = []
    for kind in (lambda a: a, to):
        cache = kind(np.zeros((3, v4.page_bytes(2)), np.uint8))
        v4.write_entries(*map(kind, (x, f(512), cos, sin, at, at)), cache, 2)
        o, lse = v4.sparse_attention(kind(q), cache, kind(slots), page_size=2, sink=kind(f(4)), return_lse=True)
        rows = v4.read_entries(cache, kind(at), 2)
        dense, dense_lse = v4.sparse_attention(kind(q), rows, kind(slots), return_lse=True)
        grads = v4.sparse_attention_backward(kind(q), rows, kind(slots), dense, dense_lse, dense)
        keys = kind(np.zeros((3, v4.index_page_bytes(2)), np.uint8))
        v4.write_index_keys(*map(kind, (f(5, 128), f(128), cos, sin, at, at)), keys, 2)
        codes = v4.index_queries(*map(kind, (f(2, 4, 128), cos, sin, at[:2])))
        visible = kind(np.array([5, 2], np.int32))
        logits = v4.index_logits(codes, kind(f(2, 4)), keys, 2, visible, 5)
        chosen = v4.select_blocks(logits, 3, visible)
        turned = v4.inverse_rope(
            v4.prepare_queries(kind(q), *map(kind, (cos, sin, at[:2]))), *map(kind, (cos, sin, at[:2]))
        )
        y = v4.output_projection(turned, kind(b(2, 8, 1024)), kind(b(9, 16)))
        state = v4.compressor_state(1, 4, 6, kind(f(1)))
        blocks, counts = v4.compress(*map(kind, (f(1, 9, 6), f(1, 9, 6), f(4, 6))), 4, state)
        results.append([cache, o, lse, rows, *grads, keys, codes, logits, chosen, y, blocks[:, :2], counts, state.kv])
    equal(results[1], results[0])


def test_baseline() -> None:
    (cos, sin), at = v4.rope_tables(20, 1e4), np.arange(5, dtype=np.int32)
    results: list[list[Any]] = []
    for kind in (lambda a: a, to):
        cache, keys = (kind(np.zeros((3, n(2)), np.uint8)) for n in (v4.mla_page_bytes, v4.index_page_bytes_fp8))
        places = [kind(x) for x in (cos, sin, at, at)]
        v4.write_mla_entries(kind(f(5, 576)), kind(f(512)), *places, cache, 2)
        v4.write_index_keys_fp8(kind(f(5, 128)), kind(f(128)), kind(f(128)), *places, keys, 2)
        codes = v4.index_queries_fp8(kind(f(5, 2, 128)), *places[:3])
        logits = v4.index_logits_fp8(codes, kind(f(5, 2)), keys, 2, kind(at + 1), 5)
        slots = v4.select_blocks(logits, 3, kind(at + 1))
        o = v4.sparse_attention(kind(b(5, 4, 576)), cache, slots, page_size=2, value_dim=512)
        results.append([cache, keys, codes, logits, slots, o, v4.read_mla_entries(cache, kind(at), 2)])
    equal(results[1], results[0])


def test_muon_and_engram() -> None:
    w, g, v = f(20, 33), f(33, 20).T.copy(), f(20, 33) * 2
    mine, momentum = to(w), to(v)
    optim.muon_step(mine, to(g), momentum, lr=0.1)
    optim.muon_step(w, g, v, lr=0.1)
    equal([mine, momentum], [w, v])
    given = f(5, 4, 40), f(5, 4, 41)[..., :40].copy(), f(5, 40), f(4, 40), f(4, 40)
    y, saved = engram.engram_gate(*given)
    y_t, saved_t = engram.engram_gate(*map(to, given))
    equal(
        [y_t, *engram.engram_gate_backward(*map(to, given), saved_t, y_t)],
        [y, *engram.engram_gate_backward(*given, saved, y)],
    )
    ids, mult, sizes = (
        np.arange(27, dtype=np.int32).reshape(9, 3),
        np.array([[3, 5, 7]]),
        engram.engram_primes(99, 2, 4),
    )
    equal([engram.ngram_hash(*map(to, (ids, mult, sizes[None])))], [engram.ngram_hash(ids, mult, sizes[None])])
