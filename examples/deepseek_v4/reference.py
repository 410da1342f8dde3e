"""One whole DeepSeek-V4 block in plain NumPy: the independent source that kernels are compared with.

Float64 inside; a value is rounded (by ml_dtypes) only where the model stores it in bf16, FP8 (e4m3), FP4 (e2m1) or
e8m0. What the model keeps in fp32 is left in float64. The order of a token's sums does not depend on how many tokens
there are: `Block.prefill` of s tokens and s calls of `Block.decode` agree bit for bit. A flipped rounding of FP8 moves
the block's output by far more than its cause, so compare stage by stage: feed a kernel with this file's own inputs of
its stage, which the dict of values holds.

Written from the facts about the model alone, not from any kernel. Where those leave a choice, this file chose:

 1. Linears give bf16 (w1, w3 and w2 of experts too: "in fp32" is taken as the arithmetic behind the GEMM's bf16).
 2. FP8 linears quantise their input per token in blocks of 128 with power-of-two (ue8m0) scales; a tail is a block.
 3. wo_a is FP8 only in the checkpoint: its input stays bf16, its output is bf16, then wo_b is an FP8 linear.
 4. The per-head norm of q is rounded to bf16 before RoPE rotates it, and again after; so are norm and RoPE of entries.
 5. YaRN's ramp is the published one (floor and ceil of the correction dims, kept in [0, dims - 1]), at every length.
 6. The Hadamard matrix is in Sylvester order; its result is rounded to bf16 before FP4. FP4 keys pack like weights.
 7. The indexer's weights and scores are not rounded (weights_proj reads bf16 and computes in fp32; fp32 scores).
 8. Top-k lists come best first, ties to the smaller block (also among -inf); they keep their width, -1 fills it.
 9. P is rounded relative to the row's final maximum (an online softmax rounds relative to a running one). The sink is
    not part of that maximum.
10. sqrt(softplus) is exact (no threshold), and nothing is added to the sum of routing weights.
11. Routed outputs are bf16 rows, summed over slots; the shared expert's bf16 row is added before the one last rounding.
12. Rows of score_state that were not written are -inf, of kv_state 0. Behind an emitted block, decode leaves old rows
    m.. and prefill initial ones; nobody reads them.
13. A data row of a page holds e4m3 then bf16 bytes (little endian), scales are padded to a multiple of 8 bytes, a page
    to one of a data row (576 B in the published sizes). A page holds 256 tokens (64 CSA or 2 HCA entries).
14. vec(X) goes stream by stream. A block is hc_pre, norm, attention, hc_post, then the same with MoE.
15. FP8 weights have the smallest power-of-two scale per 128x128 that does not overflow, clamped like activations'.
16. An expert's clamp works on the bf16 values of gate and up; the routing weight is not rounded before it multiplies.
17. A trap whose wrong form is not told is given one: see TRAPS.

Run it: python examples/deepseek_v4/reference.py
"""

from dataclasses import dataclass

import numpy as np
from reference_formats import (
    NO_TRAPS,
    Array,
    Fp4Weight,
    Fp8Weight,
    bf16,
    dequantize_fp4,
    fake_fp8,
    pack_nibbles,
    pack_pages,
    quantize_fp4,
    quantize_kv,
)
from reference_weights import (
    SMALL,
    AttentionWeights,
    BlockWeights,
    CompressorWeights,
    Config,
    HyperWeights,
    IndexerWeights,
    MoEWeights,
    block_weights,
    random_state,
)

Values = dict[str, Array]

#: What each trap does wrong, in the order of the list of known mistakes, and what notices it.
TRAPS = {
    "comb_not_transposed": "1: streams are mixed by comb instead of its transpose",
    "sinkhorn_from_exp": "2: Sinkhorn starts from exp without softmax and eps, and runs 20 x (columns, rows)",
    "ape_missing_in_state": "3: score state is stored without ape (seen in decode only)",
    "rope_at_block_end": "4: a compressed entry is rotated at its block's last token",
    "one_theta": "5: layers with the window alone take the theta and YaRN of the others (seen in those only)",
    "yarn_mscale": "6: cos and sin are multiplied by YaRN's 0.1 ln(factor) + 1 (seen in layers with YaRN)",
    "window_in_bf16": "7: only compressed entries are quantised to FP8; the window's stay bf16",
    "sink_scaled": "8: the sink logit is multiplied by the softmax scale",
    "swiglu_unclamped": "9: no clamp of gate and up",
    "route_weight_after_w2": "10: the routing weight multiplies w2's output",
    "indexer_unscaled": "11: indexer weights lack dim^-0.5 heads^-0.5 (seen in indexer.weights and .scores only)",
    "topk_unmasked": "12: picks that the query cannot see stay in the list (seen in prefill)",
    "sum_of_rounded": "13: the softmax sum adds P after its rounding to bf16",
    "page_unpadded": "14: cache pages are not padded (seen in attn.compressed_pages)",
    "hc_eps_swapped": "15: eps is added to post instead of pre (1e-6: seen in .pre and .post)",
}


# ---- arithmetic


def rows_times(x: Array, w: Array) -> Array:
    """x [..., k] times w [n, k] transposed; a row's sum never depends on how many other rows there are."""
    rows = x.reshape(-1, x.shape[-1])
    if w.size < 2**17:  # too little for the threads of a BLAS, which stand in each other's way on a busy machine
        out = np.einsum("ik,jk->ij", rows, w)
    else:
        padded = np.concatenate([rows, np.zeros((-len(rows) % 16, x.shape[-1]))])
        out = np.matmul(padded.reshape(-1, 16, x.shape[-1]), w.T).reshape(-1, len(w))[: len(rows)]
    return out.reshape(*x.shape[:-1], len(w))


def linear(x: Array, w: Fp8Weight | Fp4Weight) -> Array:
    """A quantised linear: FP8 input in blocks of 128, bf16 output [..., out]."""
    return bf16(rows_times(fake_fp8(x, 128), w.values))


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Weighted RMSNorm over the last axis, rounded to bf16."""
    return bf16(x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight)


def softmax(x: Array, axis: int) -> Array:
    """softmax over one axis; -inf has no weight."""
    p = np.exp(x - x.max(axis, keepdims=True))
    return p / p.sum(axis, keepdims=True)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -x))


def hadamard(n: int) -> Array:
    """The Sylvester matrix [n, n] of +-1, n a power of two."""
    h = np.ones((1, 1))
    while len(h) < n:
        h = np.block([[h, h], [h, -h]])
    return h


@dataclass(frozen=True)
class Rope:
    """Rotation of interleaved pairs: frequencies [dims / 2] and the factor on cos and sin (1 in the model)."""

    frequencies: Array
    amplitude: float = 1.0

    @classmethod
    def of(cls, config: Config, ratio: int, traps: frozenset[str] = NO_TRAPS) -> "Rope":
        """The rotation of a layer with that compress ratio."""
        dims = config.rope_dim
        plain = ratio == 0 and "one_theta" not in traps
        theta = config.window_theta if plain else config.theta
        frequencies = theta ** -(np.arange(0, dims, 2) / dims)
        if plain or config.yarn_factor == 1:
            return cls(frequencies)
        low, high = (
            dims * np.log(config.yarn_original / (turns * 2 * np.pi)) / (2 * np.log(theta))
            for turns in config.yarn_beta
        )
        low, high = max(np.floor(low), 0), min(np.ceil(high), dims - 1)
        ramp = np.clip((np.arange(dims // 2) - low) / max(high - low, 0.001), 0, 1)  # 1: divided by the factor
        frequencies = frequencies * (1 - ramp) + frequencies / config.yarn_factor * ramp
        return cls(frequencies, 0.1 * np.log(config.yarn_factor) + 1 if "yarn_mscale" in traps else 1.0)

    def __call__(self, x: Array, positions: Array, inverse: bool = False) -> Array:
        """x [s, ..., d] with its last dims rotated at positions [s] and the whole rounded to bf16."""
        dims = 2 * len(self.frequencies)
        angle = np.multiply.outer(positions, self.frequencies).reshape(len(x), *[1] * (x.ndim - 2), dims // 2)
        cos, sin = self.amplitude * np.cos(angle), self.amplitude * np.sin(angle) * (-1 if inverse else 1)
        even, odd = x[..., -dims::2], x[..., -dims + 1 :: 2]
        turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1).reshape(*x.shape[:-1], dims)
        return bf16(np.concatenate([x[..., :-dims], turned], axis=-1))


# ---- hyper-connections


def sinkhorn(logits: Array, iters: int, eps: float, traps: frozenset[str] = NO_TRAPS) -> Array:
    """comb [..., n, n] of logits: softmax of rows + eps, one pass over columns, then iters - 1 of rows and columns."""
    if "sinkhorn_from_exp" in traps:
        p = np.exp(logits - logits.max((-2, -1), keepdims=True))
        for _ in range(iters):
            p = p / (p.sum(-2, keepdims=True) + eps)
            p = p / (p.sum(-1, keepdims=True) + eps)
        return p
    p = softmax(logits, -1) + eps
    p = p / (p.sum(-2, keepdims=True) + eps)
    for _ in range(iters - 1):
        p = p / (p.sum(-1, keepdims=True) + eps)
        p = p / (p.sum(-2, keepdims=True) + eps)
    return p


def _mix(x: Array, fn: Array, eps: float) -> Array:
    flat = x.reshape(len(x), -1)
    return rows_times(flat, fn) / np.sqrt((flat * flat).mean(-1, keepdims=True) + eps)


def hc_pre(
    x: Array, w: HyperWeights, config: Config, traps: frozenset[str] = NO_TRAPS
) -> tuple[Array, Array, Array, Array]:
    """Of X [s, n, d]: the layer's input (bf16 [s, d]), pre [s, n], post [s, n] and comb [s, n, n]."""
    n = x.shape[1]
    mix = _mix(x, w.fn, config.eps)
    swapped = "hc_eps_swapped" in traps
    pre = sigmoid(mix[:, :n] * w.scale[0] + w.base[:n]) + (0 if swapped else config.hc_eps)
    post = 2 * sigmoid(mix[:, n : 2 * n] * w.scale[1] + w.base[n : 2 * n]) + (config.hc_eps if swapped else 0)
    logits = (mix[:, 2 * n :] * w.scale[2] + w.base[2 * n :]).reshape(-1, n, n)
    comb = sinkhorn(logits, config.hc_iters, config.hc_eps, traps)
    return bf16((pre[..., None] * x).sum(1)), pre, post, comb


def hc_post(x: Array, out: Array, post: Array, comb: Array, traps: frozenset[str] = NO_TRAPS) -> Array:
    """X' (bf16 [s, n, d]): X'[n] = post[n] out + sum over m of comb[m, n] X[m]."""
    mixing = comb if "comb_not_transposed" in traps else comb.swapaxes(1, 2)
    return bf16(post[..., None] * out[:, None, :] + np.matmul(mixing, x))


def hc_head(x: Array, w: HyperWeights, config: Config) -> Array:
    """The streams of X [s, n, d] joined behind the last block: bf16 [s, d]."""
    pre = sigmoid(_mix(x, w.fn, config.eps) * w.scale[0] + w.base) + config.hc_eps
    return bf16((pre[..., None] * x).sum(1))


def head(x: Array, weights: tuple[HyperWeights, Array, Array], config: Config) -> Array:
    """Logits [s, vocab], not rounded, of X [s, n, d] behind the last block."""
    hyper, norm, lm_head = weights
    return rows_times(rms_norm(hc_head(x, hyper, config), norm, config.eps), lm_head)


# ---- attention


class Compressor:
    """Pools blocks of `ratio` tokens into entries; tokens of an unfinished block wait in kv_state and score_state.

    With overlap (ratio 4) an entry also sees the block before it: channels [:dim] of a token go to the next block,
    [dim:] to its own; rows [:ratio] of the state are then the block before, rows [ratio:] the unfinished one.
    """

    def __init__(self, w: CompressorWeights, config: Config, rope: Rope, traps: frozenset[str]) -> None:
        self.w, self.eps, self.rope, self.traps = w, config.eps, rope, traps
        self.ratio, width = w.ape.shape
        self.dim = len(w.norm)
        self.overlap = width == 2 * self.dim
        self.kv_state = np.zeros((self.ratio * (2 if self.overlap else 1), width))
        self.score_state = np.full_like(self.kv_state, -np.inf)

    def _pool(self, kv: Array, score: Array) -> Array:
        """One entry [dim] of the rows of one block (behind those of the block before, with overlap)."""
        if self.overlap:
            m, dim = self.ratio, self.dim
            kv, score = (np.concatenate([a[:m, :dim], a[m:, dim:]]) for a in (kv, score))
        return (softmax(score, 0) * kv).sum(0)

    def _finish(self, pooled: list[Array], first: int) -> Array:
        """bf16, norm and RoPE of the entries number first, first + 1, ..."""
        rows = rms_norm(bf16(np.array(pooled).reshape(-1, self.dim)), self.w.norm, self.eps)
        shift = self.ratio - 1 if "rope_at_block_end" in self.traps else 0
        return self.rope(rows, (first + np.arange(len(rows))) * self.ratio + shift)

    def __call__(self, x: Array, start: int, decode: bool) -> Array:
        """Entries [new, dim] that tokens x [s, d] at positions start, ... complete; decode takes one token."""
        m = self.ratio
        kv, raw = rows_times(x, self.w.wkv), rows_times(x, self.w.wgate)
        score = raw + self.w.ape[(start + np.arange(len(x))) % m]
        kept = raw if "ape_missing_in_state" in self.traps else score
        return self._step(kv, kept, start) if decode else self._prefill(kv, score, kept)

    def _prefill(self, kv: Array, score: Array, kept: Array) -> Array:
        m, before = self.ratio, self.ratio if self.overlap else 0
        full = len(kv) // m * m
        all_kv = np.concatenate([self.kv_state[:before], kv])
        all_score = np.concatenate([self.score_state[:before], score])
        pooled = [self._pool(all_kv[i : i + before + m], all_score[i : i + before + m]) for i in range(0, full, m)]
        if self.overlap and full:
            self.kv_state[:m], self.score_state[:m] = kv[full - m : full], kept[full - m : full]
        tail = slice(before, before + len(kv) - full)
        self.kv_state[tail], self.score_state[tail] = kv[full:], kept[full:]
        return self._finish(pooled, 0)

    def _step(self, kv: Array, kept: Array, position: int) -> Array:
        m = self.ratio
        row = position % m + (m if self.overlap else 0)
        self.kv_state[row], self.score_state[row] = kv[0], kept[0]
        if (position + 1) % m:
            return np.zeros((0, self.dim))
        pooled = self._pool(self.kv_state, self.score_state)
        if self.overlap:
            self.kv_state[:m], self.score_state[:m] = self.kv_state[m:], self.score_state[m:]
        return self._finish([pooled], position // m)


class Indexer:
    """Scores compressed entries for each query and picks the best; keeps its own FP4 keys."""

    def __init__(self, w: IndexerWeights, config: Config, rope: Rope, traps: frozenset[str]) -> None:
        self.w, self.config, self.rope, self.traps = w, config, rope, traps
        self.compressor = Compressor(w.compressor, config, rope, traps)
        self.rotation = hadamard(config.index_dim) * config.index_dim**-0.5
        self.codes = np.zeros((0, config.index_dim), np.uint8)
        self.exponent = np.zeros((0, config.index_dim // 32), np.int64)

    def __call__(self, x: Array, qr: Array, positions: Array, decode: bool, v: Values) -> Array:
        """Entry numbers [s, min(topk, total // 4)], -1 where there is none that the query sees."""
        c, s = self.config, len(x)
        q = linear(qr, self.w.wq_b).reshape(s, c.index_heads, c.index_dim)
        q = dequantize_fp4(*quantize_fp4(bf16(rows_times(self.rope(q, positions), self.rotation))))
        codes, exponent = quantize_fp4(bf16(rows_times(self.compressor(x, positions[0], decode), self.rotation)))
        self.codes, self.exponent = np.concatenate([self.codes, codes]), np.concatenate([self.exponent, exponent])
        keys = dequantize_fp4(self.codes, self.exponent)
        weights = rows_times(x, self.w.weights_proj)
        if "indexer_unscaled" not in self.traps:
            weights = weights * (c.index_dim**-0.5 * c.index_heads**-0.5)
        scores = np.full((s, len(keys)), -np.inf)
        visible = (positions + 1) // 4
        for t, seen in enumerate(visible):
            scores[t, :seen] = weights[t] @ np.maximum(q[t] @ keys[:seen].T, 0)
        picks = np.argsort(-scores, axis=1, kind="stable")[:, : c.index_topk]
        if "topk_unmasked" not in self.traps:
            picks = np.where(picks < visible[:, None], picks, -1)
        key_rows = np.concatenate([pack_nibbles(self.codes), (self.exponent + 127).astype(np.uint8)], axis=1)
        v |= {"indexer.q": q, "indexer.keys": keys, "indexer.key_rows": key_rows, "indexer.weights": weights}
        v |= {"indexer.scores": scores, "indexer.topk": picks}
        v |= _states("indexer", self.compressor)
        return picks


def _states(name: str, compressor: Compressor) -> Values:
    return {f"{name}.kv_state": compressor.kv_state.copy(), f"{name}.score_state": compressor.score_state.copy()}


def sparse_attention(
    q: Array, kv: Array, indices: Array, sink: Array, traps: frozenset[str] = NO_TRAPS
) -> tuple[Array, Array]:
    """o (bf16 [s, h, c]) and the softmax's denominators [s, h] of q [s, h, c] over rows `indices` [s, k] of kv [n, c].

    An index of -1 is no row; each query has at least one.
    """
    scale = q.shape[-1] ** -0.5
    out, sums = np.empty_like(q), np.empty(q.shape[:2])
    for t, row in enumerate(indices):
        keys = kv[row[row >= 0]]
        logits = q[t] @ keys.T * scale
        peak = logits.max(1)
        p = np.exp(logits - peak[:, None])
        total = (bf16(p) if "sum_of_rounded" in traps else p).sum(1)
        sums[t] = total + np.exp((sink * scale if "sink_scaled" in traps else sink) - peak)
        out[t] = bf16(bf16(p) @ keys / sums[t][:, None])
    return out, sums


class Attention:
    """Window attention, with compressed entries of all tokens (HCA) or of those that the indexer picks (CSA)."""

    def __init__(self, w: AttentionWeights, config: Config, ratio: int, traps: frozenset[str]) -> None:
        self.w, self.config, self.ratio, self.traps = w, config, ratio, traps
        self.rope = Rope.of(config, ratio, traps)
        self.ring = np.zeros((config.window, config.head_dim))  # the entry of position p is row p % window
        self.compressed = np.zeros((0, config.head_dim))
        self.rows = np.zeros((0, 0), np.uint8)
        self.compressor = Compressor(w.compressor, config, self.rope, traps) if w.compressor else None
        self.indexer = Indexer(w.indexer, config, self.rope, traps) if w.indexer else None

    def __call__(self, x: Array, start: int, decode: bool, v: Values) -> Array:
        """bf16 [s, d] of the normed input x (bf16 [s, d]) of tokens at positions start, ..."""
        c, w, s = self.config, self.w, len(x)
        positions = start + np.arange(s)
        qr = rms_norm(linear(x, w.wq_a), w.q_norm, c.eps)
        q = linear(qr, w.wq_b).reshape(s, c.heads, c.head_dim)
        q = self.rope(bf16(q / np.sqrt((q * q).mean(-1, keepdims=True) + c.eps)), positions)
        kv = self.rope(rms_norm(linear(x, w.wkv), w.kv_norm, c.eps), positions)
        quantised, window_rows = quantize_kv(kv, c.rope_dim)
        kv = kv if "window_in_bf16" in self.traps else quantised
        self.ring[positions[-c.window :] % c.window] = kv[-c.window :]
        v |= {"attn.qr": qr, "attn.q": q, "attn.window_kv": kv, "attn.window_rows": window_rows}
        indices = self._window_indices(positions, decode)
        base = self.ring if decode else kv
        if self.compressor is not None:
            self._compress(x, start, decode, v)
            if self.indexer is not None:
                picks = self.indexer(x, qr, positions, decode, v)
            else:
                block = np.arange(len(self.compressed))
                picks = np.where(block < (positions[:, None] + 1) // self.ratio, block, -1)
            indices = np.concatenate([indices, np.where(picks >= 0, picks + len(base), -1)], axis=1)
        source = np.concatenate([base, self.compressed])
        raw, sums = sparse_attention(q, source, indices, w.sink, self.traps)
        o = self.rope(raw, positions, inverse=True)
        groups = o.reshape(s, c.o_groups, -1)
        wo_a = w.wo_a.values.reshape(c.o_groups, c.o_lora, -1)
        latent = bf16(np.concatenate([rows_times(groups[:, g], wo_a[g]) for g in range(c.o_groups)], axis=1))
        out = linear(latent, w.wo_b)
        v |= {"attn.kv": source, "attn.indices": indices, "attn.sums": sums, "attn.raw": raw, "attn.o": o}
        v |= {"attn.latent": latent, "attn.out": out}
        return out

    def _window_indices(self, positions: Array, decode: bool) -> Array:
        """[s, window]: the last positions, oldest first, in prefill; their slots of the ring in decode; -1 behind."""
        window = self.config.window
        oldest = np.maximum(positions - (window - 1), 0)[:, None] + np.arange(window)
        return np.where(oldest <= positions[:, None], oldest % window if decode else oldest, -1)

    def _compress(self, x: Array, start: int, decode: bool, v: Values) -> None:
        assert self.compressor is not None
        c = self.config
        values, rows = quantize_kv(self.compressor(x, start, decode), c.rope_dim)
        self.compressed = np.concatenate([self.compressed, values])
        self.rows = np.concatenate([self.rows.reshape(-1, rows.shape[1]), rows])
        pages = pack_pages(self.rows, c.page_tokens // self.ratio, c.head_dim + c.rope_dim, self.traps)
        v |= {"attn.compressed": self.compressed, "attn.compressed_rows": self.rows, "attn.compressed_pages": pages}
        v |= _states("attn", self.compressor)


# ---- mixture of experts


def swiglu(gate: Array, up: Array, config: Config, traps: frozenset[str] = NO_TRAPS) -> Array:
    """silu(min(gate, limit)) * clamp(up, -limit, limit)."""
    if "swiglu_unclamped" not in traps:
        gate, up = np.minimum(gate, config.swiglu_limit), np.clip(up, -config.swiglu_limit, config.swiglu_limit)
    return gate * sigmoid(gate) * up


def route(x: Array, tokens: Array, w: MoEWeights, config: Config, v: Values) -> tuple[Array, Array]:
    """Experts [s, active], best first (hash layers: as in the table), and their weights [s, active]."""
    scores = np.sqrt(np.logaddexp(0, rows_times(x, w.gate)))
    if w.tid2eid is not None:
        picks = w.tid2eid[tokens]
    else:
        assert w.bias is not None
        picks = np.argsort(-(scores + w.bias), axis=1, kind="stable")[:, : config.active]
    chosen = np.take_along_axis(scores, picks, axis=1)
    weights = chosen / chosen.sum(1, keepdims=True) * config.route_scale
    v |= {"moe.scores": scores, "moe.experts": picks, "moe.weights": weights}
    return picks, weights


def moe(x: Array, tokens: Array, w: MoEWeights, config: Config, traps: frozenset[str], v: Values) -> Array:
    """bf16 [s, d] of the normed input x (bf16 [s, d]) and the token ids [s]."""
    picks, weights = route(x, tokens, w, config, v)
    hidden = np.empty((*picks.shape, config.inter))
    rows = np.empty((*picks.shape, config.hidden))
    late = "route_weight_after_w2" in traps
    for expert in np.unique(picks):
        t, slot = np.nonzero(picks == expert)
        h = swiglu(linear(x[t], w.w1[expert]), linear(x[t], w.w3[expert]), config, traps)
        weight = weights[t, slot][:, None]
        hidden[t, slot] = bf16(h if late else h * weight)
        out = linear(hidden[t, slot], w.w2[expert])
        rows[t, slot] = bf16(out * weight) if late else out
    routed = rows.sum(1)
    h = bf16(swiglu(linear(x, w.shared_w1), linear(x, w.shared_w3), config, traps))
    shared = linear(h, w.shared_w2)
    out = bf16(routed + shared)
    v |= {"moe.hidden": hidden, "moe.rows": rows, "moe.routed": routed, "moe.shared": shared, "moe.out": out}
    return out


# ---- the block


class Block:
    """One layer with its caches, for one sequence: `prefill` once (or never), then `decode` token by token.

    Both give the new X and a dict of everything on the way, whose arrays lead with the call's tokens (caches: with the
    entries so far). ValueError: an unknown trap, a wrong shape, or a prefill that is not the first call.
    """

    def __init__(
        self,
        config: Config,
        layer: int,
        weights: BlockWeights | None = None,
        traps: frozenset[str] = NO_TRAPS,
        seed: int = 0,
    ) -> None:
        if unknown := traps - TRAPS.keys():
            raise ValueError(f"unknown traps {sorted(unknown)}; there are {', '.join(TRAPS)}")
        self.config, self.traps, self.position = config, traps, 0
        self.weights = block_weights(config, layer, seed) if weights is None else weights
        self.attention = Attention(self.weights.attn, config, config.compress_ratios[layer], traps)

    def prefill(self, x: Array, tokens: Array) -> tuple[Array, Values]:
        """X' (bf16 values [s, n, d]) and the values on the way, of X [s, n, d] and token ids [s]."""
        if self.position:
            raise ValueError(f"prefill is the first call, but {self.position} tokens were seen")
        return self._run(x, np.asarray(tokens), decode=False)

    def decode(self, x: Array, token: int) -> tuple[Array, Values]:
        """X' [n, d] and the values on the way (leading dimension 1) of the next token: X [n, d] and its id."""
        out, values = self._run(x[None], np.array([token]), decode=True)
        return out[0], values

    def _run(self, x: Array, tokens: Array, decode: bool) -> tuple[Array, Values]:
        c, w, v = self.config, self.weights, Values()
        expected = (len(tokens), c.hc_streams, c.hidden)
        if x.shape != expected or not len(tokens):
            raise ValueError(f"X has shape {x.shape}, expected {expected} with at least one token")
        x = bf16(x)
        for name, hyper, norm in (("attn", w.attn_hc, w.attn_norm), ("ffn", w.ffn_hc, w.ffn_norm)):
            mixed, pre, post, comb = hc_pre(x, hyper, c, self.traps)
            normed = rms_norm(mixed, norm, c.eps)
            v |= {f"{name}.pre": pre, f"{name}.post": post, f"{name}.comb": comb}
            v |= {f"{name}.mixed": mixed, f"{name}.normed": normed}
            if name == "attn":
                out = self.attention(normed, self.position, decode, v)
            else:
                out = moe(normed, tokens, w.moe, c, self.traps, v)
            x = v[f"{name}.x"] = hc_post(x, out, post, comb, self.traps)
        self.position += len(tokens)
        return x, v


def run(block: Block, x: Array, tokens: Array, prefilled: int) -> Array:
    """X' [s, n, d]: the first `prefilled` tokens at once (none if 0), the others one by one."""
    out = [block.prefill(x[:prefilled], tokens[:prefilled])[0]] if prefilled else []
    out += [block.decode(x[t], int(tokens[t]))[0][None] for t in range(prefilled, len(x))]
    return np.concatenate(out)


def main() -> None:
    """The small model's three kinds of layer: decode against prefill, and how far each trap leads from the truth."""
    x, tokens = random_state(SMALL, 41)
    for layer, kind in enumerate(("window alone", "CSA", "HCA")):
        weights = block_weights(SMALL, layer)
        whole, _ = Block(SMALL, layer, weights).prefill(x, tokens)
        assert np.array_equal(whole, run(Block(SMALL, layer, weights), x, tokens, 0))
        print(f"layer {layer}, {kind}: decode equals prefill; the largest error of outputs in")
        for trap, meaning in TRAPS.items():
            wrong = run(Block(SMALL, layer, weights, frozenset({trap})), x, tokens, 30)
            print(f"  {trap:22} {np.abs(wrong - whole).max():8.3g}  {meaning}")


if __name__ == "__main__":
    main()
