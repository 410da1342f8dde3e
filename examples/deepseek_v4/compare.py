"""The block of kernels against the block of plain NumPy (reference.py), stage by stage on the same inputs.

A flipped rounding of FP8 moves what follows by far more than its cause. So each stage of the kernels' block is given
the reference's inputs (its seams are forced), and what it makes of them is held to a bound of its own: the largest
error and the root mean square of the errors, as parts of the root mean square of the values. With fewer seams forced
the blocks run side by side: with attention's result alone the whole block agrees as its stages do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from block import Block
from reference import Block as Reference
from reference import Values
from reference_formats import NO_TRAPS
from reference_weights import (
    AttentionWeights,
    BlockWeights,
    CompressorWeights,
    HyperWeights,
    IndexerWeights,
    MoEWeights,
)
from reference_weights import Config as ReferenceConfig
from weights import BF16, HEAD, INDEX_HEAD, Array, Compressor, Hyper, Linear, Weights, fp4_values

from tiledsl.kernels.quant import PackedMXFP4

# Bounds of (largest error / rms, rms of errors / rms) per stage, given the same inputs. bfloat16 has 8 bits: half a
# step is 2^-9 of a value, and a value that lies near the middle of two may go either way: a step, 2^-7 at most of the
# value. Values are up to about 6 times the rms. Where a stage rounds to FP8 inside, single codes flip: a step of 2^-3.
# Attention's probabilities are rounded to bfloat16 relative to the largest so far, the reference's to that of all.
HALF_STEP = (2.0**-4, 2.0**-9)
NARROW = (2.0**-2, 2.0**-7)
BOUNDS = {
    "mixed": HALF_STEP, "post": (1e-4, 1e-5), "comb": (1e-4, 1e-5), "normed": HALF_STEP, "x": HALF_STEP,
    "attn.qr": HALF_STEP, "attn.q": HALF_STEP, "attn.raw": (2.0**-4, 2.0**-8), "attn.o": HALF_STEP, "attn.out": NARROW,
    "attn.window_kv": (2.0**-1, 2.0**-7), "attn.sums": (2e-5, 5e-6),
    "indexer.weights": (1e-5, 1e-5), "indexer.scores": (0.5, 0.02),
    "moe.weights": (1e-4, 1e-5), "moe.out": NARROW,
}  # fmt: skip
BYTES = 2.0**-6  # of the bytes of entries may differ: flips of the last bit of a code


@dataclass
class Finding:
    """One stage of one call: errors as parts of the rms of the reference's values, and whether they are allowed."""

    name: str
    largest: float
    typical: float
    ok: bool


def to_reference(w: Weights) -> tuple[ReferenceConfig, BlockWeights]:
    """The same weights for the reference, whose layer 0 is this block."""
    c = w.config
    config = ReferenceConfig(
        hidden=c.d, heads=c.heads, head_dim=HEAD, q_lora=c.q_rank, o_groups=c.groups, o_lora=c.o_rank, window=c.window,
        compress_ratios=(c.ratio,), index_heads=c.index_heads, index_dim=INDEX_HEAD, index_topk=c.top_k,
        experts=c.experts, active=c.active, inter=c.inter, hash_layers=int(c.hashed), route_scale=c.route_scale,
        swiglu_limit=c.limit, eps=c.eps, hc_streams=c.streams, hc_iters=c.iterations, hc_eps=c.eps, vocab=c.vocab,
    )  # fmt: skip

    def wide(x: Array | None) -> Any:
        return None if x is None else x.astype(np.float64)

    def hyper(h: Hyper) -> HyperWeights:
        return HyperWeights(wide(h.fn), wide(h.scale), wide(h.base))

    def compressor(p: Compressor | None) -> CompressorWeights | None:
        return None if p is None else CompressorWeights(wide(p.kv), wide(p.gate), wide(p.ape), wide(p.norm))

    def matrix(w: Linear, rows: slice = slice(None)) -> Any:
        return _Values(w.values()[rows].astype(np.float64))

    def experts(packed: PackedMXFP4, rows: slice) -> Any:
        return _Experts(packed, rows)

    indexer, keys = None, compressor(w.index_compressor)
    if w.index_wq_b is not None and keys is not None:
        indexer = IndexerWeights(matrix(w.index_wq_b), wide(w.index_weights), keys)
    wo_a: Any = _Values(wide(w.wo_a).reshape(-1, w.wo_a.shape[-1]))
    attn = AttentionWeights(
        matrix(w.wq_a), wide(w.q_norm), matrix(w.wq_b), matrix(w.wkv), wide(w.kv_norm), wo_a, matrix(w.wo_b),
        wide(w.sink), compressor(w.compressor), indexer,
    )  # fmt: skip
    gate, up, every = slice(0, c.inter), slice(c.inter, 2 * c.inter), slice(None)
    moe = MoEWeights(
        gate=wide(w.gate), bias=wide(w.bias), tid2eid=w.table,
        w1=experts(w.routed.gate_up, gate), w2=experts(w.routed.down, every), w3=experts(w.routed.gate_up, up),
        shared_w1=matrix(w.shared_gate_up, gate), shared_w2=matrix(w.shared_down),
        shared_w3=matrix(w.shared_gate_up, up),
    )  # fmt: skip
    norms = wide(w.attn_norm), wide(w.ffn_norm)
    return config, BlockWeights(hyper(w.attn_hyper), norms[0], attn, hyper(w.ffn_hyper), norms[1], moe)


class _Values:
    """What the reference asks of a matrix."""

    def __init__(self, values: Array) -> None:
        self.values = values


class _Experts:
    """Some rows of every expert, widened when they are asked for: all at once would take 50 GB."""

    def __init__(self, packed: PackedMXFP4, rows: slice) -> None:
        self.packed, self.rows = packed, rows

    def __getitem__(self, expert: int) -> _Values:
        return _Values(_widened(_Same(self.packed), int(expert))[self.rows])


class _Same:
    """A key that is equal to itself alone."""

    def __init__(self, packed: PackedMXFP4) -> None:
        self.packed = packed

    def __hash__(self) -> int:
        return id(self.packed)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.packed is self.packed


@lru_cache(maxsize=2)  # gate and up of one expert, and down
def _widened(which: _Same, expert: int) -> Array:
    return fp4_values(which.packed, expert).astype(np.float64)


def parts(tokens: int, prefill: int) -> list[slice]:
    """The calls: a prefill of so many tokens, then one token each."""
    return [slice(0, prefill), *(slice(t, t + 1) for t in range(prefill, tokens))]


def reference_values(
    w: Weights, x: Array, token_ids: Array, prefill: int, traps: frozenset[str] = NO_TRAPS
) -> list[Values]:
    """What the reference computes on the way in each call. traps: the mistakes it makes."""
    config, weights = to_reference(w)
    block, calls = Reference(config, 0, weights, traps), []
    for part in parts(len(x), prefill):
        wide = x[part].astype(np.float64)
        made = block.prefill(wide, token_ids[part]) if part.start == 0 else block.decode(wide[0], token_ids[part][0])
        calls.append(made[1])
    return calls


def compare(
    w: Weights,
    x: Array,
    token_ids: Array,
    prefill: int,
    calls: Sequence[Values],
    *,
    forced: frozenset[str] | None = None,
    target: Any = None,
) -> list[list[Finding]]:
    """Findings of each call of the kernels' block. calls: reference_values of the same tokens; forced: the seams that
    get the reference's values (default: all)."""
    block, out = Block(w, len(x), target), []
    for part, values in zip(parts(len(x), prefill), calls, strict=True):
        block.trace, block.forced = {}, {k: v for k, v in values.items() if forced is None or k in forced}
        block(x[part], token_ids[part].astype(np.int32))
        out.append(list(findings(block.trace, values, w)))
    return out


def findings(ours: dict[str, Array], theirs: Values, w: Weights) -> Iterator[Finding]:
    """One Finding for each stage that both have."""
    ours = dict(ours)
    lse = ours.pop("attn.lse").astype(np.float64)
    ours["attn.sums"] = np.exp(np.logaddexp(lse, w.sink) - peaks(theirs))
    for name, value in ours.items():
        wanted = theirs[name]
        if name in ("attn.compressed_pages", "attn.window_rows"):
            used = max(theirs[name.replace("pages", "rows")].size, 1)
            part = float((value != wanted).sum()) / used if value.shape == wanted.shape else np.inf
            yield Finding(name, part, part, part <= BYTES)
        elif name in ("indexer.topk", "moe.experts"):
            part = picks_apart(name, value, theirs)
            yield Finding(name, part, part, part <= 0.02)
        else:
            largest, typical = BOUNDS.get(name) or BOUNDS[name.split(".")[1]]
            a, b = apart(value, wanted, relative=name.endswith("post"))
            yield Finding(name, a, b, a <= largest and b <= typical)


def apart(value: Array, wanted: Array, relative: bool = False) -> tuple[float, float]:
    """Largest and rms error, over the rms of what is wanted (relative: over each value); infinities must be equal."""
    if value.shape != wanted.shape:
        return np.inf, np.inf
    if not value.size:
        return 0.0, 0.0
    finite = np.isfinite(wanted)
    if (np.isfinite(value.astype(np.float64)) != finite).any():
        return np.inf, np.inf
    a, b = value.astype(np.float64)[finite], wanted[finite]
    error = np.abs(a - b) / (np.abs(b) if relative else np.sqrt((b * b).mean()) + 1e-300)
    return (float(error.max()), float(np.sqrt((error * error).mean()))) if error.size else (0.0, 0.0)


def picks_apart(name: str, value: Array, theirs: Values) -> float:
    """How much worse the picks are than the reference's by its own scores, as part of those; infinite where other
    numbers of them are -1, or one is picked that cannot be."""
    scores = theirs["indexer.scores" if name == "indexer.topk" else "moe.scores"]
    wanted = theirs[name]
    if value.shape != wanted.shape or ((value < 0).sum(1) != (wanted < 0).sum(1)).any():
        return np.inf
    if name == "moe.experts":  # the bias takes part in the choice: almost all must be the same
        return float((np.sort(value, 1) != np.sort(wanted, 1)).mean())

    def total(picks: Array) -> Array:
        chosen = np.take_along_axis(scores, np.maximum(picks, 0).astype(np.int64), 1)
        return np.asarray(np.where(picks >= 0, chosen, 0).sum(1))

    if value.shape[1] == 0:
        return 0.0
    size = np.abs(np.where(np.isfinite(scores), scores, 0)).sum(1) + 1e-300
    return float((np.abs(total(wanted) - total(value)) / size).max())


def peaks(theirs: Values) -> Array:
    """The largest logit of each query and head, which the reference's sums are relative to."""
    q, kv, indices = theirs["attn.q"], theirs["attn.kv"], theirs["attn.indices"]
    found = [(q[t] @ kv[row[row >= 0]].T).max(1) for t, row in enumerate(indices)]
    return np.asarray(np.array(found) * q.shape[-1] ** -0.5)


def failures(calls: Sequence[Sequence[Finding]]) -> set[str]:
    """Names of the stages that are out of bounds in any call."""
    return {f.name for call in calls for f in call if not f.ok}


def worst(calls: Sequence[Sequence[Finding]]) -> list[Finding]:
    """Each stage's largest errors over all calls, in the order of the block."""
    by_name: dict[str, Finding] = {}
    for f in (f for call in calls for f in call):
        old = by_name.get(f.name, f)
        by_name[f.name] = Finding(f.name, max(f.largest, old.largest), max(f.typical, old.typical), f.ok and old.ok)
    return list(by_name.values())


def as_streams(x: Array) -> Array:
    """float64 streams as the kernels take them."""
    return x.astype(np.float32).astype(BF16)


__all__ = ["Finding", "as_streams", "compare", "failures", "reference_values", "to_reference", "worst"]
