"""Sizes and random weights of the DeepSeek-V4 reference."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from reference_formats import Array, Fp4Weight, Fp8Weight, bf16, to_e8m0


@dataclass(frozen=True)
class Config:
    """Dimensions of a model; the field names follow its published configuration where it has them."""

    hidden: int = 4096
    heads: int = 64
    head_dim: int = 512
    rope_dim: int = 64
    q_lora: int = 1024
    o_groups: int = 8
    o_lora: int = 1024
    window: int = 128
    compress_ratios: tuple[int, ...] = (0, 0) + (4, 128) * 20 + (4, 0)  # the last one is the MTP layer
    index_heads: int = 64
    index_dim: int = 128
    index_topk: int = 512
    experts: int = 256
    active: int = 6
    inter: int = 2048
    hash_layers: int = 3
    route_scale: float = 1.5
    swiglu_limit: float = 10.0
    eps: float = 1e-6
    hc_streams: int = 4
    hc_iters: int = 20
    hc_eps: float = 1e-6
    vocab: int = 129280
    window_theta: float = 1e4
    theta: float = 160000.0
    yarn_factor: float = 16.0
    yarn_original: int = 65536
    yarn_beta: tuple[float, float] = (32.0, 1.0)
    page_tokens: int = 256


V4_FLASH = Config()
V4_PRO = Config(
    hidden=7168, heads=128, q_lora=1536, o_groups=16, compress_ratios=(128, 128) + (4, 128) * 29 + (4, 0),
    index_topk=1024, experts=384, inter=3072, route_scale=2.5,
)  # fmt: skip
#: Layers: 0 window alone and hash routed, 1 CSA, 2 HCA (with a ratio of 16, so that few tokens make several blocks).
SMALL = Config(
    hidden=256, heads=4, head_dim=128, q_lora=128, o_groups=2, o_lora=64, window=8, compress_ratios=(0, 4, 16),
    index_heads=4, index_topk=3, experts=8, active=2, inter=128, hash_layers=1, swiglu_limit=1.0, vocab=64,
    page_tokens=16,
)  # fmt: skip


@dataclass(frozen=True)
class HyperWeights:
    """fn [n (n + 2), n d], scale [3] and base [n (n + 2)] of hc_pre; the final head's are [n, n d], [1] and [n]."""

    fn: Array
    scale: Array
    base: Array


@dataclass(frozen=True)
class CompressorWeights:
    """wkv and wgate [width, d], ape [ratio, width], norm [dim]; width is 2 dim where blocks overlap, else dim."""

    wkv: Array
    wgate: Array
    ape: Array
    norm: Array


@dataclass(frozen=True)
class IndexerWeights:
    """wq_b [heads dim, q_lora], weights_proj [heads, d], and the compressor of the keys."""

    wq_b: Fp8Weight
    weights_proj: Array
    compressor: CompressorWeights


@dataclass(frozen=True)
class AttentionWeights:
    """Names of the checkpoint; wo_a.values is [groups o_lora, heads head_dim / groups]; sink [heads]."""

    wq_a: Fp8Weight
    q_norm: Array
    wq_b: Fp8Weight
    wkv: Fp8Weight
    kv_norm: Array
    wo_a: Fp8Weight
    wo_b: Fp8Weight
    sink: Array
    compressor: CompressorWeights | None
    indexer: IndexerWeights | None


@dataclass(frozen=True)
class MoEWeights:
    """gate [experts, d], bias [experts] or, in hash layers, tid2eid [vocab, active]; w1, w2 and w3 of all experts."""

    gate: Array
    bias: Array | None
    tid2eid: Array | None
    w1: Fp4Weight
    w2: Fp4Weight
    w3: Fp4Weight
    shared_w1: Fp8Weight
    shared_w2: Fp8Weight
    shared_w3: Fp8Weight


@dataclass(frozen=True)
class BlockWeights:
    """Everything that one block reads."""

    attn_hc: HyperWeights
    attn_norm: Array
    attn: AttentionWeights
    ffn_hc: HyperWeights
    ffn_norm: Array
    moe: MoEWeights


class _Random:
    """Draws weights whose products have about the size of their inputs."""

    def __init__(self, config: Config, seed: Any) -> None:
        self.config, self.rng = config, np.random.default_rng(seed)

    def dense(self, rows: int, columns: int) -> Array:
        return bf16(self.rng.standard_normal((rows, columns)) / np.sqrt(columns))

    def fp8(self, rows: int, columns: int) -> Fp8Weight:
        return Fp8Weight.of(self.rng.standard_normal((rows, columns)) / np.sqrt(columns))

    def fp4(self, rows: int, columns: int) -> Fp4Weight:
        shape = (self.config.experts, rows, columns // 2)
        packed = self.rng.integers(0, 256, shape, np.uint8)
        typical = int(np.round(np.log2(1 / (2.93 * np.sqrt(columns)))))  # 2.93: root mean square of the sixteen codes
        spread = self.rng.integers(-1, 2, (*shape[:2], columns // 32))
        return Fp4Weight(packed, to_e8m0(typical + spread))

    def norm(self, dim: int) -> Array:
        return bf16(1 + 0.2 * self.rng.standard_normal(dim))

    def hyper(self, rows: int, scales: int) -> HyperWeights:
        n, d = self.config.hc_streams, self.config.hidden
        base = self.rng.standard_normal(rows) * np.where(np.arange(rows) < 2 * n, 1, 3)  # wide logits: rows far from 1
        fn = self.rng.standard_normal((rows, n * d)) / np.sqrt(n * d)
        return HyperWeights(fn, self.rng.uniform(0.5, 1.5, scales), base)

    def compressor(self, ratio: int, dim: int) -> CompressorWeights:
        width, d = dim * (2 if ratio == 4 else 1), self.config.hidden
        ape = self.rng.standard_normal((ratio, width))
        return CompressorWeights(self.dense(width, d), self.dense(width, d), ape, self.norm(dim))

    def indexer(self) -> IndexerWeights:
        c = self.config
        wq_b, proj = self.fp8(c.index_heads * c.index_dim, c.q_lora), self.dense(c.index_heads, c.hidden)
        return IndexerWeights(wq_b, proj, self.compressor(4, c.index_dim))


def block_weights(config: Config, layer: int, seed: int = 0) -> BlockWeights:
    """Random weights of a layer; its compress ratio says whether there is a compressor and an indexer."""
    c, r, ratio = config, _Random(config, [seed, layer]), config.compress_ratios[layer]
    attn = AttentionWeights(
        wq_a=r.fp8(c.q_lora, c.hidden),
        q_norm=r.norm(c.q_lora),
        wq_b=r.fp8(c.heads * c.head_dim, c.q_lora),
        wkv=r.fp8(c.head_dim, c.hidden),
        kv_norm=r.norm(c.head_dim),
        wo_a=r.fp8(c.o_groups * c.o_lora, c.heads * c.head_dim // c.o_groups),
        wo_b=r.fp8(c.hidden, c.o_groups * c.o_lora),
        sink=r.rng.standard_normal(c.heads) + 1,
        compressor=r.compressor(ratio, c.head_dim) if ratio else None,
        indexer=r.indexer() if ratio == 4 else None,
    )
    hashed = layer < c.hash_layers
    picks = np.array([r.rng.permutation(c.experts)[: c.active] for _ in range(c.vocab)], np.int32) if hashed else None
    moe = MoEWeights(
        gate=r.dense(c.experts, c.hidden),
        bias=None if hashed else 0.5 * r.rng.standard_normal(c.experts),
        tid2eid=picks,
        w1=r.fp4(c.inter, c.hidden),
        w2=r.fp4(c.hidden, c.inter),
        w3=r.fp4(c.inter, c.hidden),
        shared_w1=r.fp8(c.inter, c.hidden),
        shared_w2=r.fp8(c.hidden, c.inter),
        shared_w3=r.fp8(c.inter, c.hidden),
    )
    mixes = c.hc_streams * (c.hc_streams + 2)
    return BlockWeights(r.hyper(mixes, 3), r.norm(c.hidden), attn, r.hyper(mixes, 3), r.norm(c.hidden), moe)


def random_state(config: Config, tokens: int, seed: int = 0) -> tuple[Array, Array]:
    """A block's input: X (bf16 values [tokens, streams, d]) and token ids (int [tokens])."""
    rng = np.random.default_rng(seed)
    x = bf16(rng.standard_normal((tokens, config.hc_streams, config.hidden)))
    return x, rng.integers(0, config.vocab, tokens)


def head_weights(config: Config, seed: int = 0) -> tuple[HyperWeights, Array, Array]:
    """Random weights of the final head: hyper-connection, norm [d] and lm_head [vocab, d]."""
    r = _Random(config, [seed, len(config.compress_ratios)])
    return r.hyper(config.hc_streams, 1), r.norm(config.hidden), r.dense(config.vocab, config.hidden)
