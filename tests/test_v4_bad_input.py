"""Every public function of quant, moe, optim, engram and deepseek_v4 with arguments that do not fit, with nothing, with
NaN, with indices from anywhere; and that a token has the same bits alone and among 256."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from running_error import Ball, ball
from v4_reference import BF16, F
from v4_uses import USES

from tiledsl.backend import load_backend
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import engram, moe, optim, quant

pytestmark = pytest.mark.skipif(not load_backend("llvm").probe().ok, reason="sizes for compiled code")

NAMES = sorted(USES)
# What takes no arrays.
SIZES = {"block_slots", "compressor_state", "engram_primes", "index_page_bytes", "index_page_bytes_fp8", "page_bytes"}
SIZES |= {"mla_page_bytes", "rope_tables", "visible_blocks", "window_slots"}
# What may change its length by itself, by axis: rows of what stands alone, entries of caches and lists, columns that
# need be no multiple of anything.
FREE = {
    "dequantize": "q1",
    "expand": "x1",
    "fp4_grouped_gemm": "a0",  # rows that belong to no group
    "gather_rows": "table0 table1 index0",
    "hyper_head": "x0",
    "hyper_pre": "x0",
    "index_logits": "cache0 block_table0 block_table1",
    "index_logits_fp8": "cache0 block_table0 block_table1",
    "index_queries": "q1",
    "index_queries_fp8": "q1",
    "inverse_rope": "o1 o2",
    "moe_forward": "x0",
    "mxfp4_cast": "x0",
    "newton_schulz": "x0 x1 x2",
    "ngram_hash": "ids0 sizes2",
    "output_projection": "o0 weight0",
    "pack_e5m6": "x0",
    "per_block_cast": "x0 x1",
    "per_channel_cast": "x0 x1",
    "per_token_cast": "x0 x1",
    "prepare_queries": "q1 q2",
    "read_entries": "cache0 slots0",
    "read_mla_entries": "cache0 slots0",
    "route": "logits0",
    "route_backward": "logits1",
    "scaled_gemm": "b0",
    "scaled_grouped_gemm": "b1",
    "select_blocks": "logits1",
    "sparse_attention": "source0 slots1 extra0 extra_slots1",
    "sparse_attention_backward": "source0 slots1",
    "token_mapping": "chosen0 chosen1",
    "unpack_e5m6": "packed0",
}
# Other forms that a function takes.
FORMS = {
    "gather_rows": {"index: one dimension more"},
    "inverse_rope": {"positions: one dimension more"},
    "newton_schulz": {"x: one dimension less"},
    "prepare_queries": {"positions: one dimension more"},
}


def arrays_of(results: Any) -> list[Any]:
    """The arrays that a call gave; a None stays, so that places do not move."""
    return list(results) if isinstance(results, (tuple, list)) else [results]


def misshapen(x: np.ndarray[Any, Any]) -> Iterator[tuple[str, Any]]:
    """What it is, and the argument that it makes of a valid one."""
    yield "a list", x.tolist()
    yield "of another type", np.zeros(x.shape, np.complex64)
    yield "one dimension more", x[None]
    yield "one dimension less", x[0]
    for axis in range(x.ndim):
        yield f"shorter {axis}", np.ascontiguousarray(x.take(range(x.shape[axis] - 1), axis))
        yield f"longer {axis}", np.ascontiguousarray(x.take([*range(x.shape[axis]), 0], axis))


def test_every_public_function_is_here() -> None:
    public = set()
    for room in (quant, moe, optim, engram, v4):
        public |= {n for n in room.__all__ if isinstance(getattr(room, n), types.FunctionType)}
    assert {n for n in public if not n.endswith("_kernel")} - SIZES == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_that_do_not_fit(name: str) -> None:
    """Packed widths, shapes of scales and of everything else, types: an error that describes the arguments, or what the
    function says that it takes."""
    use, taken = USES[name], set()
    for argument, value in use.make(3).items():
        if isinstance(value, np.ndarray):
            for kind, wrong in misshapen(value):
                try:
                    use.run(**{**use.make(3), argument: wrong})
                except (TileTypeError, TileValueError) as error:
                    assert any(word in str(error) for word in ("(", "expected", "sum to")), error  # says what and why
                else:
                    taken.add(f"{argument}: {kind}")
    free = {f"{a[:-1]}: {kind} {a[-1]}" for a in FREE.get(name, "").split() for kind in ("shorter", "longer")}
    assert taken <= free | FORMS.get(name, set())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "fp4_prepack"])
def test_zero_tokens(name: str) -> None:
    use = USES[name]
    made = arrays_of(use.run(**use.make(0)))
    for i in use.results:
        assert 0 in made[i].shape


@pytest.mark.parametrize("name", [n for n in NAMES if USES[n].rows])
def test_a_token_is_the_same_alone_and_with_nan_beside_it(name: str) -> None:
    """Batch 1 and 256; then what is a number in row 7 is none, and no other row changes."""
    use, given = USES[name], USES[name].make(256)
    all_of_it = [np.array(a) for a in arrays_of(use.run(**given))]
    assert {len(all_of_it[i]) for i in use.results} == {256}
    given = use.make(256)  # what is written in place is as before
    for at in (0, 7, 100, 255):
        one = {k: v[at : at + 1] if k in use.rows else v for k, v in given.items()}
        one = {k: v.copy() if isinstance(v, np.ndarray) else v for k, v in one.items()}
        alone = arrays_of(use.run(**one))
        for i in use.results:
            assert alone[i].tobytes() == all_of_it[i][at : at + 1].tobytes(), (at, i)
    for k in use.rows:
        if given[k].dtype in (F, BF16):
            given[k][7] = np.nan
    beside = arrays_of(use.run(**given))
    for i in use.results:
        rest = np.arange(256) != 7
        assert beside[i][rest].tobytes() == all_of_it[i][rest].tobytes(), i


@pytest.mark.parametrize("name", NAMES)
def test_indices_from_anywhere(name: str) -> None:
    """Slots, positions, tokens, experts, counts and sizes that do not exist: an error, or nothing read and written."""
    use = USES[name]
    for argument, value in use.make(3).items():
        if isinstance(value, np.ndarray) and value.dtype in (np.int32, np.int64):
            for wrong in (-1, -(2**31), 2**31 - 1, 10**6, int(value.max()) + 1):
                bad = value.copy()
                bad.reshape(-1)[-1] = wrong
                try:
                    use.run(**{**use.make(3), argument: bad})
                except (TileTypeError, TileValueError) as error:
                    assert f"holds {wrong}" in str(error) or "sum to" in str(error), error


def test_what_indices_out_of_range_mean() -> None:
    """Reading gives zeros, writing nothing, an expert that does not exist gets no row and no weight."""
    cache = np.full((2, v4.page_bytes(2)), 7, np.uint8)
    assert not v4.read_entries(cache, np.array([4, -1, 2**31 - 1], np.int32), 2).astype(F).any()
    cos, sin = v4.rope_tables(4, 1e4)
    zeros = np.zeros(2, np.int32)
    v4.write_entries(np.ones((2, 512), F), None, cos, sin, zeros, np.array([4, -5], np.int32), cache, 2)
    assert (cache == 7).all()
    mapping = moe.token_mapping(np.array([[0, 99], [-3, 1]], np.int32), 4)
    assert mapping.slots.tolist() == [[0, -1], [-1, 1]] and mapping.counts.tolist() == [1, 1, 0, 0]
    rows = engram.gather_rows(np.ones((3, 4), F), np.array([2, 3, -1], np.int32))
    assert rows.sum(1).tolist() == [4, 0, 0]


def test_top_k_above_what_is_visible_and_nan_scores() -> None:
    logits = np.array([[3, 1, 2, -np.inf], [np.nan, 1, -np.inf, -np.inf]], F)
    assert v4.select_blocks(logits, 9, np.array([3, 2], np.int32)).tolist() == [[0, 2, 1, -1], [0, 1, -1, -1]]
    assert v4.select_blocks(logits, 2, np.array([0, 1], np.int32)).tolist() == [[-1, -1], [0, -1]]
    assert (
        v4.sparse_attention(np.ones((2, 3, 8), BF16), np.ones((4, 8), BF16), np.full((2, 5), -1, np.int32)).sum() == 0
    )


@pytest.mark.parametrize("k", [33, 100, 127])
def test_k_is_no_multiple_of_the_block(k: int) -> None:
    """FP8 takes it: the last block is short. MXFP4 says that it needs 32."""
    x = np.random.default_rng(k).standard_normal((5, k)).astype(F)
    q, scale = quant.per_token_cast(x, block=32)
    assert scale.shape == (5, -(-k // 32))
    y = quant.dequantize(q, scale, block=(1, 32), out_dtype="float32")
    assert np.abs(y - x).max() <= 2.0**-4 * np.abs(x).max()
    a, w = quant.per_token_cast(x), quant.per_block_cast(x)
    left, right = (
        q.astype(np.float64) * np.repeat(s, k, 1)[: len(q), :k] for q, s in (a, (w[0], np.repeat(w[1], 5, 0)))
    )
    wanted = ball(left) @ right.T
    # The scales come behind the sums: two more roundings.
    assert Ball(wanted.value, wanted.error, 2).holds(quant.scaled_gemm(*a, *w, out_dtype="float32"))
    with pytest.raises(TileTypeError, match="multiple of 32"):
        quant.mxfp4_cast(x)


def test_experts_without_tokens() -> None:
    """All tokens go to one of many experts: the others cost no rows, and change no bit."""
    given = USES["moe_forward"].make(5)
    bias = np.full(16, -100, F)
    bias[[3, 9]] = 100
    whole = moe.moe_forward(**given | {"bias": bias, "k": 2})
    mapping = moe.token_mapping(moe.route(np.zeros((5, 16), F), 2, bias=bias)[1], 16)
    assert sorted(mapping.sizes.tolist()) == [0] * 14 + [5, 5]
    e = given["experts"]
    for part in (e.gate_up, e.down):
        part[[0, 1, 2, *range(4, 9), *range(10, 16)]] = 0x77
    assert moe.moe_forward(**given | {"bias": bias, "k": 2, "experts": e}).tobytes() == whole.tobytes()
