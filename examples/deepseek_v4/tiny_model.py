"""DeepSeek-V4 in miniature, for training: a block with compressed sparse attention, one with heavily compressed.

Everything between the embedding and the loss is a kernel of `tiledsl.kernels` (operators.py, tiledsl.torch); torch
keeps the graph, cuts and joins tensors. What differs from the model but its size: projections are float32 (attention
rounds queries and entries to bfloat16, as the model does); entries are not cast to FP8; there is no indexer, because at
this length a token sees fewer blocks than the indexer would select, all of which it would take.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import operators as op
import torch
from torch import Tensor

import tiledsl.torch as tt
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import moe

__all__ = ["Config", "Model"]


@dataclass(frozen=True)
class Config:
    """Sizes; ratios: tokens per compressed entry of each block (4 overlaps); fp4: experts' weights rounded to MXFP4
    in the forward and the backward pass, while the optimiser keeps them in float32."""

    vocabulary: int = 64
    width: int = 64
    streams: int = 4
    heads: int = 4
    head_dim: int = 64
    rotated: int = 16
    query_rank: int = 32
    output_groups: int = 2
    output_rank: int = 32
    window: int = 32
    ratios: tuple[int, ...] = (4, 16)
    experts: int = 8
    active: int = 2
    hidden: int = 64
    route_scale: float = 1.5
    fp4: bool = False


@cache
def slots(batch: int, seq: int, window: int, ratio: int) -> Tensor:
    """[batch seq, window + seq / ratio]: each token's window, then the blocks that it sees, in rows that hold all
    tokens and behind them all blocks."""
    at = range(seq)
    near, far = (torch.from_numpy(x) for x in (v4.window_slots(at, window), v4.block_slots(at, ratio)))

    def spread(x: Tensor, first: int, each: int) -> Tensor:
        starts = first + each * torch.arange(batch, dtype=torch.int32)[:, None, None]
        return torch.where(x < 0, x, x + starts)

    both = torch.cat([spread(near, 0, seq), spread(far, batch * seq, seq // ratio)], -1)
    return both.reshape(batch * seq, -1)


def rotate(x: Tensor, tables: tuple[Tensor, Tensor], positions: Tensor, inverse: bool = False) -> Tensor:
    """The last elements of each row [rows, ..., c] rotated in neighbouring pairs by the angles of its position."""
    rows = x.reshape(1, x.shape[0], -1, x.shape[-1])
    still, tail = rows.split([x.shape[-1] - 2 * tables[0].shape[1], 2 * tables[0].shape[1]], -1)
    tail = tt.rope(tail.contiguous(), *tables, positions=positions, interleaved=True, inverse=inverse)
    return torch.cat([still, tail], -1).reshape(x.shape)


class Model:
    """weights: name -> float32 parameter; biases: of each block's router, moved by `balance`, without a gradient."""

    def __init__(self, config: Config, seed: int = 0) -> None:
        self.config = c = config
        self.random = torch.Generator().manual_seed(seed)
        self.weights: dict[str, Tensor] = {}
        self.biases = [torch.zeros(c.experts) for _ in c.ratios]
        self.loads: list[Tensor] = []
        self._normal("embedding", c.vocabulary, c.width, size=1.0)
        for i, ratio in enumerate(c.ratios):
            self._block(f"{i}.", ratio)
        self._mixture("head_hyper.", c.streams, 1)
        self._ones("norm", c.width)
        self._normal("head", c.width, c.vocabulary)
        for w in self.weights.values():
            w.requires_grad_()

    def _normal(self, name: str, *shape: int, size: float | None = None) -> None:
        """Normal numbers, by default of size (inputs)^-1/2; inputs come first in matrices, last where a stack of them
        is transposed (experts, the groups of the output)."""
        inputs = shape[-1] if len(shape) == 3 else shape[0]
        self.weights[name] = torch.randn(shape, generator=self.random) * (inputs**-0.5 if size is None else size)

    def _ones(self, name: str, n: int) -> None:
        self.weights[name] = torch.ones(n)

    def _mixture(self, name: str, mixes: int, scales: int) -> None:
        """A hyper-connection: small dependence on the token, streams at first mostly kept apart."""
        c, n = self.config, self.config.streams
        flat = n * c.width
        self.weights[name + "fn"] = torch.randn((mixes, flat), generator=self.random) * flat**-0.5
        self.weights[name + "scale"] = torch.full((scales,), 0.1)
        base = torch.randn(mixes, generator=self.random) * 0.5
        if mixes > n:
            base[2 * n :] += 4 * torch.eye(n).reshape(-1)
        self.weights[name + "base"] = base

    def _block(self, name: str, ratio: int) -> None:
        c = self.config
        entry = c.head_dim * (2 if ratio == 4 else 1)
        for part in ("attention", "experts"):
            self._mixture(f"{name}{part}_hyper.", c.streams * (c.streams + 2), 3)
            self._ones(f"{name}{part}_norm", c.width)
        self._normal(name + "wq_a", c.width, c.query_rank)
        self._ones(name + "q_norm", c.query_rank)
        self._normal(name + "wq_b", c.query_rank, c.heads * c.head_dim)
        self._normal(name + "wkv", c.width, c.head_dim)
        self._ones(name + "kv_norm", c.head_dim)
        self._normal(name + "compress_kv", c.width, entry)
        self._normal(name + "compress_gate", c.width, entry)
        self._normal(name + "ape", ratio, entry, size=0.1)
        self._ones(name + "compress_norm", c.head_dim)
        self.weights[name + "sink"] = torch.zeros(c.heads)
        self._normal(name + "wo_a", c.output_groups, c.output_rank, c.heads * c.head_dim // c.output_groups)
        self._normal(name + "wo_b", c.output_groups * c.output_rank, c.width)
        self._normal(name + "gate", c.width, c.experts)
        self._normal(name + "gate_up", c.experts, 2 * c.hidden, c.width)
        self._normal(name + "down", c.experts, c.width, c.hidden)
        self._normal(name + "shared_gate_up", c.width, 2 * c.hidden)
        self._normal(name + "shared_down", c.hidden, c.width)

    def attention(self, x: Tensor, name: str, ratio: int, batch: int) -> Tensor:
        """x [tokens, d], normalised: window and compressed entries, sparse attention, the grouped output."""
        c, w = self.config, {k.removeprefix(name): v for k, v in self.weights.items() if k.startswith(name)}
        tokens, seq = x.shape[0], x.shape[0] // batch
        tables = tuple(map(torch.from_numpy, v4.rope_tables(seq, 1e4, dims=c.rotated)))
        at = torch.arange(seq, dtype=torch.int32).repeat(batch)
        q = tt.matmul(tt.rms_norm(tt.matmul(x, w["wq_a"]), w["q_norm"]), w["wq_b"]).reshape(tokens, c.heads, c.head_dim)
        q = rotate(tt.rms_norm(q, torch.ones(c.head_dim)), tables, at)
        near = rotate(tt.rms_norm(tt.matmul(x, w["wkv"]), w["kv_norm"]), tables, at)
        kv, scores = (tt.matmul(x, w[k]).reshape(batch, seq, -1) for k in ("compress_kv", "compress_gate"))
        entries = op.compress(kv, scores, w["ape"], ratio).reshape(-1, c.head_dim)
        far = rotate(tt.rms_norm(entries, w["compress_norm"]), tables, at[at % ratio == 0])
        o = op.sparse_attention(q, torch.cat([near, far]), w["sink"], slots(batch, seq, c.window, ratio))
        o = rotate(o, tables, at, inverse=True)
        groups = o.reshape(tokens, c.output_groups, -1).swapaxes(0, 1).reshape(c.output_groups * tokens, -1)
        sizes = torch.full((c.output_groups,), tokens, dtype=torch.int32)
        middle = tt.grouped_gemm(groups, w["wo_a"], sizes, transpose_b=True)
        middle = middle.reshape(c.output_groups, tokens, -1).swapaxes(0, 1).reshape(tokens, -1)
        return tt.matmul(middle, w["wo_b"])

    def mixture_of_experts(self, x: Tensor, name: str, block: int) -> Tensor:
        """x [tokens, d], normalised: routed experts and the shared one."""
        c, w = self.config, {k.removeprefix(name): v for k, v in self.weights.items() if k.startswith(name)}
        weights, chosen = op.route(tt.matmul(x, w["gate"]), self.biases[block], c.active, c.route_scale)
        mapping = moe.token_mapping(chosen, c.experts)
        self.loads.append(mapping.counts)
        gate_up, down = (op.fp4(w[k]) if c.fp4 else w[k] for k in ("gate_up", "down"))
        hidden = tt.grouped_gemm(op.expand(x, mapping), gate_up, mapping.sizes, transpose_b=True)
        hidden = op.swiglu(hidden, weights.reshape(-1)[mapping.pairs.long()])
        routed = op.reduce_rows(tt.grouped_gemm(hidden, down, mapping.sizes, transpose_b=True), mapping)
        return routed + tt.matmul(op.swiglu(tt.matmul(x, w["shared_gate_up"])), w["shared_down"])

    def __call__(self, tokens: Tensor) -> Tensor:
        """Logits [batch seq, vocabulary] of the token behind each of tokens [batch, seq]; the largest ratio divides
        seq."""
        c, w = self.config, self.weights
        self.loads = []
        x = w["embedding"][tokens.reshape(-1)][:, None].expand(-1, c.streams, -1)
        for i, ratio in enumerate(c.ratios):
            for part in ("attention", "experts"):
                name = f"{i}.{part}"
                mixture = (w[f"{name}_hyper.{k}"] for k in ("fn", "scale", "base"))
                y, post, comb = op.hyper_pre(x, *mixture)
                y = tt.rms_norm(y, w[f"{name}_norm"])
                if part == "attention":
                    f = self.attention(y, f"{i}.", ratio, len(tokens))
                else:
                    f = self.mixture_of_experts(y, f"{i}.", i)
                x = op.hyper_post(f, x, post, comb)
        y = op.hyper_head(x, *(w[f"head_hyper.{k}"] for k in ("fn", "scale", "base")))
        return tt.matmul(tt.rms_norm(y, w["norm"]), w["head"])

    def balance(self, speed: float = 0.001) -> None:
        """After a step: experts that had more tokens than the mean are chosen a little less."""
        for bias, load in zip(self.biases, self.loads, strict=True):
            bias += speed * torch.sign(load.float().mean() - load)
