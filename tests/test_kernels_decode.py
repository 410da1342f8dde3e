"""Attention of one token against a cache (dense, paged, latent) against float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernels_support import DTYPES, Array, attention_reference, normal, same_bits, tensor, worst

from tiledsl import kernels
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels.decode import BLOCKS
from tiledsl.kernels.tiles import SPLIT
from tiledsl.testing import assert_targets_agree


@pytest.fixture(params=list(DTYPES), scope="module")
def dtype(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def pages_of(
    rng: np.random.Generator, cache: Array, lengths: list[int], size: int, left: int | None = None
) -> tuple[Array, Array]:
    """The cache cut into pages in random order, the rest NaN; and the block table, -1 where nothing is that counts."""
    batch, seq = cache.shape[:2]
    count = -(-seq // size)
    table = rng.permutation(batch * count + 2)[: batch * count].reshape(batch, count).astype(np.int32)
    pages = np.full((batch * count + 2, size, *cache.shape[2:]), np.nan, cache.dtype)
    for b, length in enumerate(lengths):
        for t in range(length):
            pages[table[b, t // size], t % size] = cache[b, t]
        table[b, -(-length // size) :] = -1
        if left is not None:
            table[b, : max(length - 1 - left, 0) // size] = -1
    return pages, table


def decode_reference(
    q: Array, k: Array, v: Array, lengths: list[int], scale: float, dtype: str, sink: Array | None = None,
    left: int | None = None,
) -> tuple[Array, Array, Array, Array]:  # fmt: skip
    ends, at = np.array(lengths)[:, None, None, None], np.arange(k.shape[1])
    mask = (at < ends) & (True if left is None else at >= ends - 1 - left)
    first = (x.swapaxes(1, 2) for x in (k, v))
    found = attention_reference(q[:, :, None], *first, mask, scale, dtype, sink)
    return tuple(x[:, :, 0] for x in found)  # type: ignore[return-value]


@settings(max_examples=6)
@given(
    heads=st.sampled_from([(1, 1), (4, 4), (6, 2), (5, 1)]), dims=st.sampled_from([(32, 32), (33, 17)]),
    lengths=st.lists(st.sampled_from([0, 1, 63, 64, 65, SPLIT, SPLIT + 1, SPLIT + 100]), min_size=1, max_size=3),
    page=st.sampled_from([None, 16, 64, 100]), sink=st.booleans(),
    left=st.sampled_from([None, 0, 1, 62, 63, 64, 100, SPLIT]), seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
@example(heads=(6, 2), dims=(32, 32), lengths=[SPLIT + 100, 0, 70], page=64, sink=True, left=None, seed=0)
@example(heads=(2, 2), dims=(32, 32), lengths=[SPLIT + 100, 0, 70], page=100, sink=False, left=110, seed=0)
@example(heads=(6, 2), dims=(32, 32), lengths=[SPLIT + 100, 1, 70], page=None, sink=True, left=130, seed=0)
def test_decode_error(
    target: str, dtype: str, heads: tuple[int, int], dims: tuple[int, int], lengths: list[int], page: int | None,
    sink: bool, left: int | None, seed: int,
) -> None:  # fmt: skip
    rng = np.random.default_rng(seed)
    batch, seq = len(lengths), max(*lengths, 1) + 3
    q = normal(rng, (batch, heads[0], dims[0]), dtype)
    k, v = (normal(rng, (batch, seq, heads[1], d), dtype) for d in dims)
    sinks = normal(rng, (heads[0],), "float32") if sink else None
    exact, exact_lse, bound, lse_bound = decode_reference(q, k, v, lengths, dims[0] ** -0.5, dtype, sinks, left)
    for b, length in enumerate(lengths):
        k[b, length:], v[b, length:] = np.nan, np.nan  # a cache may hold anything behind its end
        if left is not None:
            k[b, : max(length - 1 - left, 0)], v[b, : max(length - 1 - left, 0)] = np.nan, np.nan
    window = None if left is None else (left, 0)
    options: dict[str, Any] = {"window": window, "sink": sinks, "return_lse": True, "target": target}
    if page is not None:
        order = rng.bit_generator.state
        k, options["block_table"] = pages_of(rng, k, lengths, page, left)
        rng.bit_generator.state = order
        v, _ = pages_of(rng, v, lengths, page, left)
    o, lse = kernels.attention_decode(q, k, v, np.array(lengths), **options)
    assert worst(o, exact, bound) <= 1
    assert worst(lse, exact_lse, lse_bound) <= 1
    for b, length in enumerate(lengths):
        assert length or (not o[b].any() and np.isneginf(lse[b]).all())


@pytest.mark.parametrize("heads", [(2, 2), (6, 2)])
def test_bits_depend_on_the_sequence_alone(dtype: str, heads: tuple[int, int]) -> None:
    """Not on the batch, the longest length, the page size, or where pages lie."""
    rng = np.random.default_rng(0)
    lengths = [SPLIT + 200, 3, 130]
    q = normal(rng, (3, heads[0], 32), dtype)
    k, v = (normal(rng, (3, SPLIT + 256, heads[1], 32), dtype) for _ in "kv")
    o = kernels.attention_decode(q, k, v, np.array(lengths), target="llvm")
    for b, n in enumerate(lengths):
        one = kernels.attention_decode(q[b : b + 1], k[b : b + 1, :n], v[b : b + 1, :n], target="llvm")
        assert same_bits(one, o[b : b + 1])
    for size in (16, 64, 48, 256):
        state = rng.bit_generator.state
        kp, table = pages_of(rng, k, lengths, size)
        rng.bit_generator.state = state
        vp, _ = pages_of(rng, v, lengths, size)
        paged = kernels.attention_decode(q, kp, vp, np.array(lengths), block_table=table, target="llvm")
        assert same_bits(paged, o)


def test_blocks_of_several_key_heads_have_the_same_bits(dtype: str) -> None:
    """CPUs take key heads together where there are blocks enough; the reference and a sequence alone do not."""
    rng = np.random.default_rng(4)
    lengths = np.array([70, 0, 64, 1, 65, 77, 33, 80] * (BLOCKS // 8))
    q = normal(rng, (BLOCKS, 6, 32), dtype)
    k, v = (normal(rng, (BLOCKS, 80, 2, 32), dtype) for _ in "kv")
    assert_targets_agree(kernels.attention_decode, q, k, v, lengths, return_lse=True, window=(66, 0))
    o = kernels.attention_decode(q, k, v, lengths, target="llvm")
    for b in (0, 3, BLOCKS - 1):
        one = kernels.attention_decode(*(x[b : b + 1] for x in (q, k, v, lengths)), target="llvm")
        assert same_bits(one, o[b : b + 1])


def test_decode_bound_has_teeth(dtype: str) -> None:
    """It refuses one token more or less, and a split that is not rescaled to the common maximum."""
    rng = np.random.default_rng(1)
    q, k, v = normal(rng, (2, 4, 32), dtype), normal(rng, (2, 60, 2, 32), dtype), normal(rng, (2, 60, 2, 32), dtype)
    exact, _, bound, _ = decode_reference(q, k, v, [40, 40], 0.2, dtype)
    for wrong in ([41, 41], [39, 39]):
        other = decode_reference(q, k, v, wrong, 0.2, dtype)[0]
        assert (np.abs(other - exact) > bound).any(axis=-1).mean() > 0.9
    halves = [decode_reference(q, k[:, s], v[:, s], [20, 20], 0.2, dtype)[0] for s in (slice(0, 20), slice(20, 40))]
    assert worst((halves[0] + halves[1]) / 2, exact, bound) > 1


@settings(max_examples=4)
@given(heads=st.sampled_from([1, 5, 16]), length=st.sampled_from([1, 64, 130, SPLIT + 70]), paged=st.booleans(),
       seed=st.integers(0, 2**32 - 1))  # fmt: skip
def test_mla_error(target: str, dtype: str, heads: int, length: int, paged: bool, seed: int) -> None:
    """The latent cache is keys and values at once. (576 and 512 at full size below.)"""
    rng = np.random.default_rng(seed)
    q, cache = normal(rng, (2, heads, 72), dtype), normal(rng, (2, length + 2, 72), dtype)
    lengths = [length, length // 2]
    exact, exact_lse, bound, lse_bound = decode_reference(
        q, cache[:, :, None], cache[:, :, None, :64], lengths, 0.1, dtype
    )
    options: dict[str, Any] = {}
    if paged:
        cache, options["block_table"] = pages_of(rng, cache, lengths, 64)
    o, lse = kernels.mla_decode(
        q, cache, np.array(lengths), scale=0.1, value_dim=64, return_lse=True, target=target, **options
    )
    assert worst(o, exact, bound) <= 1 and worst(lse, exact_lse, lse_bound) <= 1


def test_mla_at_full_size() -> None:
    rng = np.random.default_rng(2)
    q, cache = normal(rng, (1, 16, 576), "bfloat16"), normal(rng, (1, 150, 576), "bfloat16")
    o = kernels.mla_decode(q, cache, scale=192**-0.5, target="llvm")
    views = cache[:, :, None], cache[:, :, None, :512]
    exact, _, bound, _ = decode_reference(q, *views, [150], 192**-0.5, "bfloat16")
    assert worst(o, exact, bound) <= 1


@pytest.mark.parametrize(("dtype", "heads"), [("float32", (2, 2)), *((d, (4, 2)) for d in DTYPES)])
def test_targets_agree_bit_for_bit(dtype: str, heads: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    lengths = [150, 0, 70]
    q = normal(rng, (3, heads[0], 16), dtype)
    k, v = (normal(rng, (3, 160, heads[1], 16), dtype) for _ in "kv")
    given = q, k, v, np.array(lengths)
    assert_targets_agree(kernels.attention_decode, *given, return_lse=True, sink=np.ones(heads[0], np.float32))
    kernels.attention_decode(*given, target="numpy:checked")
    state = rng.bit_generator.state
    kp, table = pages_of(rng, k, lengths, 48)
    rng.bit_generator.state = state
    vp, _ = pages_of(rng, v, lengths, 48)
    assert_targets_agree(kernels.attention_decode, q, kp, vp, np.array(lengths), block_table=table)
    kernels.attention_decode(q, kp, vp, np.array(lengths), block_table=table, target="numpy:checked")


def test_torch_in_torch_out(dtype: str) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    rng = np.random.default_rng(4)
    q, k, v = (normal(rng, s, dtype) for s in ((2, 4, 32), (2, 70, 2, 32), (2, 70, 2, 32)))
    lengths = np.array([70, 9])
    expected = kernels.attention_decode(q, k, v, lengths, target="llvm")
    given = [tensor(torch, x) for x in (q, k, v)]
    got = kernels.attention_decode(*given, torch.from_numpy(lengths), target="llvm")
    assert isinstance(got, torch.Tensor) and np.array_equal(got.float().numpy(), expected.astype(np.float32))
    assert kernels.attention_decode(*given, target="llvm").shape == given[0].shape


Q, C = np.ones((2, 4, 8), np.float32), np.ones((2, 10, 2, 8), np.float32)
N = np.array([10, 3])
T = np.zeros((2, 2), np.int32)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: kernels.attention_decode(Q, C, C[:, :5], N), TileTypeError, "shapes do not fit"),
        (lambda: kernels.attention_decode(Q[:, :3], C, C, N), TileTypeError, "3 query heads"),
        (lambda: kernels.attention_decode(Q, C, C, N + 1), TileValueError, "lengths holds 11, expected 0 to 10"),
        (lambda: kernels.attention_decode(Q, C, C, N[:1]), TileTypeError, "one length for each sequence"),
        (lambda: kernels.attention_decode(Q, C, C, N, block_table=T[:1]), TileTypeError, "one row for each"),
        (
            lambda: kernels.attention_decode(Q, C, C, N, block_table=T - 1),
            TileValueError,
            "table\\[0, 0\\] is -1",
        ),
        (lambda: kernels.attention_decode(Q, C, C, N, scale=float("inf")), TileValueError, "scale is inf"),
        (lambda: kernels.attention_decode(Q, C, C, N, out=Q), TileValueError, "out shares memory with q"),
        (lambda: kernels.mla_decode(Q, C[:, :, 0], scale=1.0, value_dim=9), TileValueError, "value_dim is 9"),
        (lambda: kernels.mla_decode(Q, C, scale=1.0), TileTypeError, "cache has shape"),
    ],
)
def test_arguments_are_checked(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()
