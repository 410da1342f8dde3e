"""A whole DeepSeek-V4 block of the kernels against the independent one in NumPy; all fifteen known mistakes show.

The reference makes a mistake on purpose, the kernels' block is given its inputs stage by stage, and the comparison has
to fail where that mistake is.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from v4_examples import load

import tiledsl.kernels  # noqa: F401  (what this example is about)
from tiledsl.backend import load_backend

weights, block, compare, reference, layer = (load(n) for n in ("weights", "block", "compare", "reference", "layer"))

pytestmark = pytest.mark.skipif(not load_backend("llvm").probe().ok, reason="sizes for compiled code")

# The clamp of the activations is low, so that it acts on random weights; there are more blocks than the indexer picks.
SMALL = replace(weights.SMALL, limit=1.0, top_k=3)
CALLS = {4: (21, 17), 128: (129, 126), 0: (12, 10)}  # tokens, prefilled; blocks are completed while decoding


@cache
def case(ratio: int, hashed: bool = False, saturated: bool = False) -> tuple[Any, Any, Any, int]:
    """Weights, streams, token ids, prefilled tokens."""
    w = weights.random_weights(weights.with_ratio(SMALL, ratio, hashed), seed=ratio + 1)
    tokens, prefill = CALLS[ratio]
    rng = np.random.default_rng(ratio)
    if saturated:  # sigmoids near 10^-6, where the eps added to them counts
        w.attn_hyper.base[:8] = -14
    x = compare.as_streams(rng.standard_normal((tokens, w.config.streams, w.config.d)))
    return w, x, rng.integers(0, w.config.vocab, tokens), prefill


def out_of_bounds(*traps: str, ratio: int = 4, saturated: bool = False) -> set[str]:
    """Stages that differ when the reference makes these mistakes."""
    w, x, ids, prefill = case(ratio, saturated=saturated)
    values = compare.reference_values(w, x, ids, prefill, frozenset(traps))
    found: set[str] = compare.failures(compare.compare(w, x, ids, prefill, values, target="llvm"))
    return found


@pytest.mark.parametrize(("ratio", "hashed"), [(4, False), (128, False), (0, True)])
def test_the_block_is_the_reference(ratio: int, hashed: bool) -> None:
    """Stage by stage, and, given attention's result, as a whole: prefill and decode."""
    w, x, ids, prefill = case(ratio, hashed)
    values = compare.reference_values(w, x, ids, prefill)
    stages = compare.compare(w, x, ids, prefill, values, target="llvm")
    assert compare.failures(stages) == set()
    names = {f.name for call in stages for f in call}
    assert len(names) == {4: 25, 128: 22, 0: 21}[ratio]
    whole = compare.worst(compare.compare(w, x, ids, prefill, values, forced=frozenset({"attn.raw"}), target="llvm"))
    assert next(f.typical for f in whole if f.name == "ffn.x") < 0.01
    free = compare.worst(compare.compare(w, x, ids, prefill, values, forced=frozenset(), target="llvm"))
    assert next(f.typical for f in free if f.name == "ffn.x") < 0.1


# Trap by number: the reference's mistake, the kind of layer that shows it, the stage that has to notice.
TRAPS = [
    (1, "comb_not_transposed", 4, "attn.x"),
    (2, "sinkhorn_from_exp", 4, "attn.comb"),
    (3, "ape_missing_in_state", 4, "attn.compressed_pages"),
    (3, "ape_missing_in_state", 128, "attn.compressed_pages"),
    (4, "rope_at_block_end", 4, "attn.compressed_pages"),
    (4, "rope_at_block_end", 128, "attn.compressed_pages"),
    (5, "one_theta", 0, "attn.q"),
    (6, "yarn_mscale", 4, "attn.q"),
    (7, "window_in_bf16", 0, "attn.window_kv"),
    (8, "sink_scaled", 0, "attn.sums"),
    (9, "swiglu_unclamped", 0, "moe.out"),
    (10, "route_weight_after_w2", 0, "moe.out"),
    (11, "indexer_unscaled", 4, "indexer.weights"),
    (12, "topk_unmasked", 4, "indexer.topk"),
    (13, "sum_of_rounded", 0, "attn.sums"),
    (14, "page_unpadded", 4, "attn.compressed_pages"),
    (15, "hc_eps_swapped", 0, "attn.post"),
]


@pytest.mark.parametrize(("number", "trap", "ratio", "stage"), TRAPS, ids=lambda x: str(x))
def test_a_trap_is_noticed(number: int, trap: str, ratio: int, stage: str) -> None:
    assert reference.TRAPS[trap].startswith(f"{number}:")
    assert stage in out_of_bounds(trap, ratio=ratio, saturated=number == 15)


def test_every_trap_has_its_test() -> None:
    assert {trap for _, trap, _, _ in TRAPS} == set(reference.TRAPS) and len(reference.TRAPS) == 15
    assert out_of_bounds(ratio=0, saturated=True) == set()


@pytest.mark.parametrize("ratio", [4, 128, 0])
def test_prefill_chunks_and_single_tokens_have_the_same_bits(ratio: int) -> None:
    """Beyond the window too, where the ring has been overwritten."""
    w = case(ratio)[0]
    n = 150
    ids = np.resize(np.frombuffer(layer.TEXT.encode(), np.uint8), n).astype(np.int32)
    x = block.embed(w, ids)
    whole = block.Block(w, n, "llvm")(x, ids)
    assert np.isfinite(whole.astype(np.float32)).all() and np.abs(whole.astype(np.float32)).max() > 0.1
    other, made = block.Block(w, n, "llvm"), []
    for start, stop in ((0, 1), (1, 4), (4, 137), (137, 138), (138, 139), (139, n)):
        made.append(other(x[start:stop], ids[start:stop]))
    np.testing.assert_array_equal(np.concatenate(made).view(np.uint16), whole.view(np.uint16))
    with pytest.raises(ValueError, match="150 tokens and 1 more"):
        other(x[:1], ids[:1])


def test_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    layer.main("--size small --tokens 9 --decode 3 --target llvm".split())
    printed = capsys.readouterr().out
    assert "the same bits" in printed and "OUT OF BOUNDS" not in printed and "attn.comb" in printed
    layer.main("--size small --ratio 128 --target llvm".split())  # as many tokens as complete a block
    printed = capsys.readouterr().out
    assert "prefill of 126 tokens" in printed and "caches for 129" in printed and "attn.compressed_pages" in printed
    assert "the same bits" in printed and "OUT OF BOUNDS" not in printed
    with pytest.raises(SystemExit, match="2"):
        layer.main(["--tokens", "0"])
