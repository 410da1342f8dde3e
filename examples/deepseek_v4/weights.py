"""Sizes of one DeepSeek-V4 block, and random weights for it in the formats of the published checkpoint.

Routed experts are MXFP4 (e2m1 with an e8m0 scale per 32), other linear layers FP8 (e4m3 with an e8m0 scale per
128 x 128), the compressors, the router and the indexer's weights_proj bfloat16, the rest float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl.kernels.moe import Experts
from tiledsl.kernels.quant import PackedMXFP4, fp4_prepack, per_block_cast

Array = np.ndarray[Any, Any]
BF16, E8M0, F = np.dtype(ml_dtypes.bfloat16), np.dtype(ml_dtypes.float8_e8m0fnu), np.float32

HEAD, INDEX_HEAD = 512, 128  # elements of a head, and of one of the indexer's: fixed by the cache's byte layout


@dataclass(frozen=True)
class Config:
    """Defaults: V4-Flash. ratio: 4 (compressed sparse attention), 128 (heavily compressed) or 0 (the window alone).
    hashed: experts by a table of token ids (the first three layers)."""

    ratio: int = 4
    hashed: bool = False
    d: int = 4096
    heads: int = 64
    q_rank: int = 1024
    groups: int = 8
    o_rank: int = 1024
    window: int = 128
    index_heads: int = 64
    top_k: int = 512
    experts: int = 256
    active: int = 6
    inter: int = 2048
    route_scale: float = 1.5
    limit: float = 10.0
    streams: int = 4
    iterations: int = 20
    eps: float = 1e-6
    vocab: int = 256  # bytes: the checkpoint's 129,280 words would only make the table longer

    @property
    def rope(self) -> dict[str, Any]:
        """Arguments of rope_tables."""
        return {"theta": 160000.0, "factor": 16.0} if self.ratio else {"theta": 10000.0}

    @property
    def compressed_width(self) -> int:
        """Channels of the compressor's projections; those of overlapping blocks count twice."""
        return HEAD * (2 if self.ratio == 4 else 1)


FLASH = Config()
SMALL = Config(d=256, heads=4, q_rank=128, groups=2, o_rank=128, index_heads=8, top_k=8, experts=8, active=2, inter=128)


@dataclass
class Linear:
    """FP8 weights: codes e4m3 [out, in], scale e8m0 [out / 128, in / 128]."""

    codes: Array
    scale: Array

    def values(self) -> Array:
        """float32 [out, in]."""
        n, k = self.codes.shape
        wide = np.repeat(np.repeat(self.scale.astype(F), 128, 0)[:n], 128, 1)[:, :k]
        return self.codes.astype(F) * wide


@dataclass
class Hyper:
    """Parameters of hyper-connections around one layer: fn [n (n + 2), n d], scale [3], base [n (n + 2)], float32."""

    fn: Array
    scale: Array
    base: Array


@dataclass
class Compressor:
    """kv, gate bfloat16 [width, d]; ape float32 [ratio, width]; norm float32 [entry]."""

    kv: Array
    gate: Array
    ape: Array
    norm: Array


@dataclass
class Weights:
    """One block's weights. Matrices are [out, in]; gate_up has the gate's rows, then up's; absent parts are None."""

    config: Config
    embedding: Array  # bfloat16 [vocab, d]
    attn_hyper: Hyper
    attn_norm: Array
    wq_a: Linear
    q_norm: Array
    wq_b: Linear
    wkv: Linear
    kv_norm: Array
    wo_a: Array  # bfloat16 [groups, o_rank, heads * 512 / groups]: FP8 in the checkpoint, bfloat16 where it is used
    wo_b: Linear
    sink: Array
    compressor: Any  # a Compressor, of layers that compress
    index_wq_b: Any  # a Linear, of compressed sparse attention, like what follows
    index_weights: Any  # bfloat16 [index_heads, d]
    index_compressor: Any  # a Compressor
    ffn_hyper: Hyper
    ffn_norm: Array
    gate: Array  # bfloat16 [experts, d]
    bias: Array | None  # float32 [experts]; None where a table chooses
    table: Array | None  # int32 [vocab, active]
    routed: Experts
    shared_gate_up: Linear
    shared_down: Linear

    @property
    def shared(self) -> Experts:
        """The shared expert as moe_forward takes it."""
        up, down = self.shared_gate_up, self.shared_down
        return Experts(up.codes[None], down.codes[None], up.scale[None], down.scale[None])


def random_weights(config: Config, seed: int = 0, target: Any = None) -> Weights:
    """Weights that keep activations near 1: normal numbers of size in^-0.5, cast to their formats by the kernels."""
    rng = np.random.default_rng(seed)
    c, d = config, config.d

    def normal(*shape: int, size: float = 1.0) -> Array:
        return rng.standard_normal(shape, dtype=F) * F(size)

    def linear(n: int, k: int) -> Linear:
        return Linear(*per_block_cast(normal(n, k, size=k**-0.5), scale_dtype="float8_e8m0fnu", target=target))

    def near_one(n: int) -> Array:
        return 1 + normal(n, size=0.1)

    def hyper() -> Hyper:
        n = c.streams
        base = normal(n * (n + 2)) * np.repeat([F(0.5), F(3)], [2 * n, n * n])  # Sinkhorn has something to do
        return Hyper(normal(n * (n + 2), n * d, size=(n * d) ** -0.5), np.ones(3, F), base)

    def compressor(width: int, entry: int) -> Compressor:
        kv, gate = (normal(width, d, size=d**-0.5).astype(BF16) for _ in range(2))
        return Compressor(kv, gate, normal(c.ratio, width, size=0.5), near_one(entry))

    sparse, k, table = c.ratio == 4, c.heads * HEAD // c.groups, None
    if c.hashed:
        every = np.tile(np.arange(c.experts, dtype=np.int32), (c.vocab, 1))
        table = rng.permuted(every, axis=1)[:, : c.active].copy()
    up, down = (random_fp4(rng, c.experts, *shape, target) for shape in ((2 * c.inter, c.d), (c.d, c.inter)))
    return Weights(
        config=c,
        embedding=normal(c.vocab, d).astype(BF16),
        attn_hyper=hyper(),
        attn_norm=near_one(d),
        wq_a=linear(c.q_rank, d),
        q_norm=near_one(c.q_rank),
        wq_b=linear(c.heads * HEAD, c.q_rank),
        wkv=linear(HEAD, d),
        kv_norm=near_one(HEAD),
        wo_a=linear(c.groups * c.o_rank, k).values().astype(BF16).reshape(c.groups, c.o_rank, k),
        wo_b=linear(d, c.groups * c.o_rank),
        sink=normal(c.heads),
        compressor=compressor(c.compressed_width, HEAD) if c.ratio else None,
        index_wq_b=linear(c.index_heads * INDEX_HEAD, c.q_rank) if sparse else None,
        index_weights=normal(c.index_heads, d, size=d**-0.5).astype(BF16) if sparse else None,
        index_compressor=compressor(2 * INDEX_HEAD, INDEX_HEAD) if sparse else None,
        ffn_hyper=hyper(),
        ffn_norm=near_one(d),
        gate=normal(c.experts, d, size=d**-0.5).astype(BF16),
        bias=None if c.hashed else normal(c.experts, size=0.1),
        table=table,
        routed=Experts(up, down, cast=True),
        shared_gate_up=linear(2 * c.inter, d),
        shared_down=linear(d, c.inter),
    )


def fp4_matrix(seed: Any, n: int, k: int) -> tuple[Array, Array]:
    """One expert's matrix: every code equally often, values of size about k^-0.5. Returns (bytes [n, k / 2], e8m0
    scales [n, k / 32])."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 2**64, n * k // 16, np.uint64).view(np.uint8).reshape(n, k // 2)
    middle = round(127 + np.log2(k**-0.5 / 2.9))  # 2.9 is the root mean square of the sixteen codes
    return codes, rng.integers(middle - 1, middle + 1, (n, k // 32), np.uint8).view(E8M0)


def random_fp4(rng: np.random.Generator, experts: int, n: int, k: int, target: Any) -> PackedMXFP4:
    """All experts' matrices, packed one by one so that they are never held twice."""
    seeds = rng.integers(0, 2**63, experts)
    data = np.empty((experts, -(-n // 64), k // 32, 16, 16), np.int32)
    scale = np.empty((experts, -(-n // 64), k // 32, 64), E8M0)
    for e, seed in enumerate(seeds):
        codes, scales = fp4_matrix(seed, n, k)
        one = fp4_prepack(codes[None], scales[None], target=target)
        data[e], scale[e] = one.data[0], one.scale[0]
    return PackedMXFP4(data, scale, (experts, n, k))


def fp4_values(packed: PackedMXFP4, expert: int) -> Array:
    """float32 [n, k] of one expert of packed weights, from the documented order of codes."""
    _, n, k = packed.shape
    e2m1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], F)
    data, scale = packed.data[expert], packed.scale[expert].astype(F)
    codes = data[..., None, :] >> np.arange(0, 32, 4, dtype=np.int32)[:, None] & 15  # [panels, k / 32, 16, 8, 16]
    wide = e2m1[codes].reshape(-1, k, 64) * np.repeat(scale, 32, 1)
    return np.asarray(wide.transpose(0, 2, 1).reshape(-1, k)[:n])


def with_ratio(config: Config, ratio: int, hashed: bool = False) -> Config:
    """The same sizes with another kind of attention."""
    return replace(config, ratio=ratio, hashed=hashed)
