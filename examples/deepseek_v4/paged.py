"""A small model with DeepSeek-V4's three kinds of attention, its paged caches, and one pass over a ragged batch.

Memory of a server: blocks of 256 tokens, each a page of 64 entries and 64 index keys in every CSA layer and of 2
entries in every HCA layer; and slots of fixed size, one per running request, with the window's ring and the
compressors' state. The model is attention alone (layer.py has whole blocks), with random weights over bytes as its
vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import matmul, rms_norm

__all__ = ["BLOCK", "CHUNK", "Caches", "Model", "Ragged"]

Array = np.ndarray[Any, Any]
BF16 = np.dtype(ml_dtypes.bfloat16)

BLOCK = 256  # tokens
WINDOW, CHUNK = 128, 128  # tokens seen, and most tokens of a request in one pass
RING = WINDOW + CHUNK  # entries of a slot: a chunk is written before its first token looks back
PAGE = {4: BLOCK // 4, 128: BLOCK // 128}
DIM, INDEX_DIM, TOP_K = 512, 128, 48
VOCABULARY = 256
ROPE = {0: (1e4, 1.0), 4: (160000.0, 16.0), 128: (160000.0, 16.0)}


@dataclass(frozen=True)
class Ragged:
    """Rows of one pass, request by request: what each is and where it belongs.

    tokens, positions, slots  [rows] int32
    spans                     for every request (slot, first row, rows)
    tables                    [slots, blocks] int32: the blocks of a slot's request, 0 where there is none
    """

    tokens: Array
    positions: Array
    slots: Array
    spans: list[tuple[int, int, int]]
    tables: Array


class Caches:
    """All memory that serving needs: `blocks` blocks and `slots` slots, allocated once.

    Of every layer: comp [blocks, bytes] entries, index [blocks, bytes] keys (CSA), ring [slots * RING / 64, bytes] of
    the window, and the state of its compressors for all slots.
    """

    def __init__(self, ratios: tuple[int, ...], blocks: int, slots: int) -> None:
        self.ratios = ratios
        self.comp: dict[int, Array] = {}
        self.index: dict[int, Array] = {}
        self.states: dict[tuple[int, str], v4.CompressorState] = {}
        self.ring = [np.zeros((slots * RING // 64, v4.page_bytes(64)), np.uint8) for _ in ratios]
        for i, ratio in enumerate(ratios):
            if ratio:
                self.comp[i] = np.zeros((blocks, v4.page_bytes(PAGE[ratio])), np.uint8)
                self.states[i, "kv"] = v4.compressor_state(slots, ratio, DIM * (2 if ratio == 4 else 1))
            if ratio == 4:
                self.index[i] = np.zeros((blocks, v4.index_page_bytes(PAGE[4])), np.uint8)
                self.states[i, "index"] = v4.compressor_state(slots, 4, 2 * INDEX_DIM)

    def of_block(self, block: int) -> Iterator[tuple[str, Array]]:
        """Names and views of a block's pages in all layers."""
        for kind, pages in (("comp", self.comp), ("index", self.index)):
            for i, cache in pages.items():
                yield f"{kind}{i}", cache[block]

    def of_slot(self, slot: int) -> Iterator[tuple[str, Array]]:
        """Names and views of a slot's state in all layers."""
        for i, ring in enumerate(self.ring):
            yield f"ring{i}", ring[slot * RING // 64 : (slot + 1) * RING // 64]
        for (i, which), state in self.states.items():
            yield f"{which}{i}.kv", state.kv[slot]
            yield f"{which}{i}.score", state.score[slot]
            yield f"{which}{i}.seen", state.seen[slot : slot + 1]

    def clear(self, slot: int) -> None:
        """A slot for a new request."""
        for name, x in self.of_slot(slot):
            x[...] = -np.inf if name.endswith(".score") else 0


def physical(table: Array, logical: Array, page: int) -> Array:
    """Places of entries in the whole cache from their numbers in their own request; table [rows, blocks], -1 stays."""
    found = np.take_along_axis(table, np.maximum(logical, 0) // page, 1) * page + logical % page
    return np.where(logical < 0, -1, found).astype(np.int32)


class Model:
    """Random weights; `forward` is one pass over a ragged batch, which writes the caches."""

    def __init__(self, ratios: tuple[int, ...], d: int, heads: int, positions: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.ratios, self.heads = ratios, heads

        def matrix(k: int, n: int) -> Array:
            return (rng.standard_normal((k, n)) * k**-0.5).astype(BF16)

        self.embedding = rng.standard_normal((VOCABULARY, d)).astype(BF16)
        self.layers: list[dict[str, Array]] = []
        for ratio in ratios:
            groups = max(heads // 4, 1)
            layer = {"norm": np.ones(d, np.float32), "q": matrix(d, heads * DIM), "kv": matrix(d, DIM)}
            layer |= {"kv_norm": rng.uniform(0.5, 1.5, DIM).astype(np.float32)}
            layer |= {"sink": rng.standard_normal(heads).astype(np.float32)}
            each = [matrix(heads // groups * DIM, 64).T for _ in range(groups)]
            layer |= {"out_groups": np.stack(each), "out": np.ascontiguousarray(matrix(groups * 64, d).T)}
            if ratio:
                width = DIM * (2 if ratio == 4 else 1)
                layer |= {"c_kv": matrix(d, width), "c_gate": matrix(d, width)}
                layer |= {"c_ape": rng.standard_normal((ratio, width)).astype(np.float32)}
            if ratio == 4:
                layer |= {"i_q": matrix(d, heads * INDEX_DIM), "i_weights": matrix(d, heads)}
                layer |= {"i_kv": matrix(d, 2 * INDEX_DIM), "i_gate": matrix(d, 2 * INDEX_DIM)}
                layer |= {"i_ape": rng.standard_normal((4, 2 * INDEX_DIM)).astype(np.float32)}
                layer |= {"i_norm": np.ones(INDEX_DIM, np.float32)}
            self.layers.append(layer)
        tables = {rope: v4.rope_tables(positions, rope[0], factor=rope[1]) for rope in set(ROPE.values())}
        self.tables = {ratio: tables[rope] for ratio, rope in ROPE.items()}

    def forward(self, batch: Ragged, caches: Caches) -> Array:
        """float32 [requests, 256]: what may follow the last row of each request."""
        x = self.embedding[batch.tokens]
        for i, w in enumerate(self.layers):
            y = self.attention(i, rms_norm(x, w["norm"]), w, batch, caches)
            x = (x.astype(np.float32) + y.astype(np.float32)).astype(BF16)
        last = x[[first + n - 1 for _, first, n in batch.spans]]
        out: Array = matmul(rms_norm(last, np.ones(x.shape[1], np.float32)), self.embedding.T, out_dtype="float32")
        return out

    def attention(self, i: int, h: Array, w: dict[str, Array], batch: Ragged, caches: Caches) -> Array:
        ratio, at, rows = self.ratios[i], batch.positions, len(h)
        cos_sin, base = self.tables[ratio], batch.slots.astype(np.int32) * RING
        q = v4.prepare_queries(matmul(h, w["q"]).reshape(rows, self.heads, DIM), *cos_sin, at)
        kv = matmul(h, w["kv"])
        v4.write_entries(kv, w["kv_norm"], *cos_sin, at, base + at % RING, caches.ring[i], 64)
        window = v4.window_slots(at, WINDOW)
        window = np.where(window < 0, -1, base[:, None] + window % RING).astype(np.int32)
        extra: dict[str, Any] = {}
        if ratio:
            self.compress(i, h, w, batch, caches)
            table = batch.tables[batch.slots]
            if ratio == 4:
                chosen = self.choose(i, h, w, batch, caches)
            else:
                chosen = v4.block_slots(at, ratio)
            places = physical(table, chosen, PAGE[ratio])
            extra = {"extra": caches.comp[i], "extra_slots": places, "extra_page_size": PAGE[ratio]}
        o = v4.sparse_attention(q, caches.ring[i], window, page_size=64, sink=w["sink"], **extra)
        v4.inverse_rope(o, *cos_sin, at)
        out: Array = v4.output_projection(o, w["out_groups"], w["out"])
        return out

    def compress(self, i: int, h: Array, w: dict[str, Array], batch: Ragged, caches: Caches) -> None:
        """The tokens go to the compressors; what is complete goes to the pages."""
        ratio, cos_sin = self.ratios[i], self.tables[self.ratios[i]]
        kinds = [("kv", "c_")] + [("index", "i_")] * (ratio == 4)
        for which, prefix in kinds:
            state = caches.states[i, which]
            before = state.seen // ratio
            parts = (matmul(h, w[prefix + name], out_dtype="float32") for name in ("kv", "gate"))
            kv, gate = (self.padded(part, batch, len(state.seen)) for part in parts)
            lengths = np.zeros(len(state.seen), np.int32)
            for slot, _, n in batch.spans:
                lengths[slot] = n
            made, counts = v4.compress(kv, gate, w[prefix + "ape"], ratio, state, lengths=lengths)
            done = np.arange(made.shape[1]) < counts[:, None]
            slot, k = np.nonzero(done)
            number = (before[slot] + k).astype(np.int32)
            places = physical(batch.tables[slot], number[:, None], PAGE[ratio])[:, 0]
            if which == "kv":
                v4.write_entries(
                    made[done], w["kv_norm"], *cos_sin, number * ratio, places, caches.comp[i], PAGE[ratio]
                )
            else:
                v4.write_index_keys(made[done], w["i_norm"], *cos_sin, number * ratio, places, caches.index[i], PAGE[4])

    def choose(self, i: int, h: Array, w: dict[str, Array], batch: Ragged, caches: Caches) -> Array:
        """[rows, TOP_K or fewer]: numbers of the blocks that the indexer selects, -1 beyond."""
        at, rows = batch.positions, len(h)
        seen = v4.visible_blocks(at, 4)
        q = v4.index_queries(matmul(h, w["i_q"]).reshape(rows, self.heads, INDEX_DIM), *self.tables[4], at)
        weights = matmul(h, w["i_weights"], out_dtype="float32") * np.float32((INDEX_DIM * self.heads) ** -0.5)
        logits = v4.index_logits(
            q, weights, caches.index[i], PAGE[4], seen, int(seen.max()), block_table=batch.tables, sequence=batch.slots
        )
        chosen: Array = v4.select_blocks(logits, TOP_K, seen)
        return chosen

    @staticmethod
    def padded(x: Array, batch: Ragged, slots: int) -> Array:
        """[slots, most rows of a request, width] of rows [rows, width]."""
        out = np.zeros((slots, max(n for _, _, n in batch.spans), x.shape[1]), x.dtype)
        for slot, first, n in batch.spans:
            out[slot, :n] = x[first : first + n]
        return out
