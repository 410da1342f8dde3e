"""One attention layer of DeepSeek-V4-Flash while it decodes: its caches in the published formats, filled by the
kernels, and the step for one token, from the projections' outputs to the heads' results."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import Any

import ml_dtypes
import numpy as np
from measure import Clock, Work, draw

from tiledsl.kernels import deepseek_v4 as v4

__all__ = ["HEADS", "INDEX_HEADS", "KINDS", "RATIOS", "TOP_K", "WINDOW", "Layer", "Step", "tables", "work"]

Array = np.ndarray[Any, Any]

HEADS, DIM, WINDOW = 64, 512, 128
INDEX_HEADS, INDEX_DIM, TOP_K = 64, 128, 512
RATIOS = (0, 0, *(4, 128) * 20, 4)  # tokens of a compressed entry, layer by layer; 0: the window alone
KINDS = {0: "window", 4: "CSA", 128: "HCA"}
PAGE = {0: 64, 4: 64, 128: 2}  # entries: 256 tokens per page of a compressed cache
TAIL = 256  # last tokens of the context, which go through the compressors
CHUNK = 1 << 15  # blocks drawn at a time
ROPE = {0: (1e4, 1.0), 4: (160000.0, 16.0), 128: (160000.0, 16.0)}  # theta, YaRN's factor
BF16 = ml_dtypes.bfloat16


@cache
def tables(positions: int, theta: float, factor: float) -> tuple[Array, Array]:
    """cos and sin of so many positions."""
    cos, sin = v4.rope_tables(positions, theta, factor=factor)
    return cos, sin


def slots(first: int, last: int) -> Array:
    """int32 first ... last - 1."""
    return np.arange(first, last, dtype=np.int32)


@dataclass
class Step:
    """What one step read and gave, for the checks: position, the layer's inputs, and results."""

    position: int
    q: Array
    index_q: Array
    weights: Array
    queries: Array = field(default_factory=lambda: np.empty(0))  # normalised and rotated
    index_bytes: Array = field(default_factory=lambda: np.empty(0))
    logits: Array = field(default_factory=lambda: np.empty(0))  # bfloat16, what the selection saw
    chosen: Array = field(default_factory=lambda: np.empty(0))
    o: Array = field(default_factory=lambda: np.empty(0))  # before the rotation back


class Layer:
    """Caches and state of one sequence in one layer.

    window   a ring of 128 entries; comp   [pages, bytes] one entry per `ratio` tokens; index   the indexer's keys (CSA)
    state    of the compressors, with the tokens that no block has taken yet

    Compressed entries of all but the last TAIL tokens are drawn as the compressor would give them, uniformly
    distributed, of variance 1. Index keys of some blocks have to do with the layer's queries (`plant`).
    """

    def __init__(self, number: int, tokens: int, seed: int, needles: int, strength: float, related: int) -> None:
        self.number, self.ratio, self.tokens, self.seed = number, RATIOS[number], tokens, seed
        self.page = PAGE[self.ratio]
        rng = self.rng("layer")
        self.norm = rng.uniform(0.5, 1.5, DIM).astype(np.float32)
        self.sink = rng.standard_normal(HEADS).astype(np.float32)
        self.window = np.zeros((WINDOW // 64, v4.page_bytes(64)), np.uint8)
        if not self.ratio:
            return
        self.blocks = tokens // self.ratio
        width = DIM * (2 if self.ratio == 4 else 1)
        pages = -(-self.blocks // self.page)
        self.comp = np.zeros((pages, v4.page_bytes(self.page)), np.uint8)
        self.ape = rng.standard_normal((self.ratio, width)).astype(np.float32)
        self.state = v4.compressor_state(1, self.ratio, width)
        if self.ratio == 4:
            self.index = np.zeros((pages, v4.index_page_bytes(self.page)), np.uint8)
            self.index_norm = np.ones(INDEX_DIM, np.float32)  # so that planted angles stay what they are
            self.index_ape = rng.standard_normal((4, 2 * INDEX_DIM)).astype(np.float32)
            self.index_state = v4.compressor_state(1, 4, 2 * INDEX_DIM)
            self.plant(rng, needles, strength, related)

    def rng(self, *what: str | int) -> np.random.Generator:
        """Random numbers of this layer for a purpose: the same whenever they are asked for."""
        return np.random.default_rng([self.seed, self.number, *(hash_of(w) for w in what)])

    def plant(self, rng: np.random.Generator, needles: int, strength: float, related: int) -> None:
        """Draw the indexer's queries and weights, and which drawn blocks have something to do with them.

        u is the direction that the weighted queries share, within the 64 elements that are not rotated, since content
        is found at any distance. A needle's key has the cosine `strength` with u; those of `related` other blocks have
        cosines spread evenly over 0.2 ... 0.9; all others those of random vectors, about 0 +- 0.09.
        """
        drawn = (self.tokens - TAIL) // 4
        self.index_q = draw(rng, INDEX_HEADS, INDEX_DIM)
        self.weights = (rng.standard_normal(INDEX_HEADS) * (INDEX_DIM * INDEX_HEADS) ** -0.5).astype(np.float32)
        u = self.weights @ self.index_q
        u[INDEX_DIM // 2 :] = 0
        self.u = (u / np.linalg.norm(u)).astype(np.float32)
        places = rng.choice(drawn, needles + related, replace=False)
        self.needles = np.sort(places[:needles])
        order = np.argsort(places)
        cosines = np.concatenate([np.full(needles, strength), rng.uniform(0.2, 0.9, related)])
        self.places, self.cosines = places[order], cosines[order].astype(np.float32)

    def index_keys(self, first: int, last: int) -> Array:
        """Drawn keys of blocks first ... last - 1, before the norm [n, 128], with those planted among them."""
        keys = draw(self.rng("keys", first), last - first, INDEX_DIM)
        here = slice(*np.searchsorted(self.places, [first, last]))
        at, a = self.places[here] - first, self.cosines[here, None]
        noise = keys[at] - (keys[at] @ self.u)[:, None] * self.u
        noise /= np.linalg.norm(noise, axis=1, keepdims=True)
        keys[at] = (a * self.u + np.sqrt(1 - a * a) * noise) * np.float32(INDEX_DIM**0.5)
        return keys

    def entries(self, first: int, last: int) -> Array:
        """Drawn compressor outputs of blocks first ... last - 1 [n, 512]."""
        return draw(self.rng("entries", first), last - first, DIM)

    def chunks(self) -> list[tuple[int, int]]:
        """Ranges of blocks that are drawn together."""
        drawn = (self.tokens - TAIL) // self.ratio
        return [(first, min(first + CHUNK, drawn)) for first in range(0, drawn, CHUNK)]

    def fill(self, steps: int) -> None:
        """The caches as they are `steps` tokens before the end of the context."""
        cos, sin = self.tables
        if self.ratio:
            for first, last in self.chunks():
                at = slots(first, last)
                v4.write_entries(
                    self.entries(first, last), self.norm, cos, sin, at * self.ratio, at, self.comp, self.page
                )
                if self.ratio == 4:
                    keys = self.index_keys(first, last)
                    v4.write_index_keys(keys, self.index_norm, cos, sin, at * 4, at, self.index, self.page)
            begin = (self.tokens - TAIL) // self.ratio * self.ratio
            for state in self.states:
                state.seen[:] = begin
            self.advance(begin, self.tokens - steps - begin)
        ring = slots(max(self.tokens - steps - WINDOW, 0), self.tokens - steps)
        self.keep(ring, draw(self.rng("window"), len(ring), DIM))

    @property
    def tables(self) -> tuple[Array, Array]:
        return tables(self.tokens, *ROPE[self.ratio])

    @property
    def states(self) -> list[v4.CompressorState]:
        return [self.state, self.index_state] if self.ratio == 4 else [self.state] if self.ratio else []

    def keep(self, positions: Array, kv: Array) -> None:
        """Window entries of tokens, into the ring."""
        v4.write_entries(kv, self.norm, *self.tables, positions, positions % WINDOW, self.window, 64)

    def advance(self, position: int, count: int) -> None:
        """The compressors take so many tokens from a position on; blocks that are complete go to the caches."""
        rng = self.rng("tokens", position)
        cos, sin = self.tables
        kv, score = (draw(rng, 1, count, self.ape.shape[1]) for _ in range(2))
        made, n = v4.compress(kv, score, self.ape, self.ratio, self.state)
        at = slots(position // self.ratio, position // self.ratio + int(n[0]))
        v4.write_entries(made[0, : n[0]], self.norm, cos, sin, at * self.ratio, at, self.comp, self.page)
        if self.ratio == 4:
            kv, score = (draw(rng, 1, count, 2 * INDEX_DIM) for _ in range(2))
            made, n = v4.compress(kv, score, self.index_ape, 4, self.index_state)
            v4.write_index_keys(made[0, : n[0]], self.index_norm, cos, sin, at * 4, at, self.index, self.page)

    def inputs(self, position: int) -> Step:
        """What the projections of this token give, drawn; the indexer's queries are the layer's with a tenth noise."""
        rng = self.rng("step", position)
        q = draw(rng, 1, HEADS, DIM).astype(BF16)
        if self.ratio != 4:
            return Step(position, q, np.empty(0), np.empty(0))
        index_q = self.index_q + np.float32(0.1) * draw(rng, INDEX_HEADS, INDEX_DIM)
        return Step(position, q, index_q[None], self.weights[None])

    def decode(self, step: Step, clock: Clock) -> None:
        """One token: queries, new entries, the choice of blocks, attention, rotation back."""
        kind, p, cos_sin = KINDS[self.ratio], step.position, self.tables
        at = slots(p, p + 1)
        kv = draw(self.rng("kv", p), 1, DIM)
        with clock(f"{kind}: queries, new entries"):
            step.queries = v4.prepare_queries(step.q, *cos_sin, at)
            self.keep(at, kv)
            if self.ratio:
                self.advance(p, 1)
            window = v4.window_slots(at, ring=True)
        more: dict[str, Any] = {}
        if self.ratio == 4:
            seen = v4.visible_blocks(at, 4)
            with clock(f"{kind}: index scores"):
                step.index_bytes = v4.index_queries(step.index_q, *cos_sin, at)
                step.logits = v4.index_logits(
                    step.index_bytes, step.weights, self.index, self.page, seen, int(seen[0]), out_dtype="bfloat16"
                )
            with clock(f"{kind}: selection"):
                step.chosen = v4.select_blocks(step.logits, TOP_K, seen)
        elif self.ratio:
            step.chosen = v4.block_slots(at, self.ratio)
        if self.ratio:
            more = {"extra": self.comp, "extra_slots": step.chosen, "extra_page_size": self.page}
        with clock(f"{kind}: attention"):
            step.o = v4.sparse_attention(step.queries, self.window, window, page_size=64, sink=self.sink, **more)
        turned = step.o.copy()  # in place; the checks want what was before
        with clock(f"{kind}: rotation back"):
            v4.inverse_rope(turned, *cos_sin, at)

    @property
    def bytes(self) -> tuple[int, int]:
        """Bytes of the entries and keys themselves, and bytes allocated for caches (pages are padded)."""
        kept, made = WINDOW * 584, self.window.nbytes
        if self.ratio:
            kept += self.blocks * (584 + (68 if self.ratio == 4 else 0))
            made += self.comp.nbytes + (self.index.nbytes if self.ratio == 4 else 0)
        return kept, made


def hash_of(what: str | int) -> int:
    """A number for a name, the same in every process."""
    return what if isinstance(what, int) else int.from_bytes(what.encode(), "little") & 0xFFFFFFFF


def work(ratio: int, tokens: int) -> dict[str, Work]:
    """What the parts of a layer's step at this length cannot do without. Products and sums count one each."""
    visible = tokens // ratio if ratio else 0
    read = WINDOW + (min(TOP_K, visible) if ratio == 4 else visible)
    heads = HEADS * DIM * 2.0
    kind = KINDS[ratio]
    found = {
        f"{kind}: queries, new entries": Work(moved=2 * heads),
        f"{kind}: attention": Work(moved=read * 584.0 + 2 * heads, floats=2.0 * HEADS * read * (DIM + DIM)),
        f"{kind}: rotation back": Work(moved=2 * HEADS * 64 * 2.0),
    }
    if ratio == 4:
        dots = 2.0 * INDEX_HEADS * INDEX_DIM * visible
        found[f"{kind}: index scores"] = Work(moved=visible * 68.0, integers=dots)
        found[f"{kind}: selection"] = Work(moved=visible * 2.0)
    return found
