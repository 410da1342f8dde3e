"""One DeepSeek-V4 block of this library's kernels: hyper-connections, compressed attention, mixture of experts.

Prefill and decode are one function: `Block(x)` takes the next tokens of the sequence, as many as there are. The result
of a token has the same bits in one call, in chunks, and token by token.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from weights import BF16, HEAD, INDEX_HEAD, Array, Compressor, Config, Hyper, Linear, Weights

from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import matmul, rms_norm
from tiledsl.kernels.moe import moe_forward, route
from tiledsl.kernels.quant import per_token_cast, scaled_gemm

PAGE = 256  # tokens of a page: 64 entries of compressed sparse attention, 2 of heavily compressed attention


class Cache:
    """What one layer keeps of one sequence, as bytes.

    window      uint8 [1, page_bytes(window)]: a ring, token t in slot t % window
    compressed  uint8 [pages, page_bytes(PAGE / ratio)], or None without compression
    keys        uint8 [pages, index_page_bytes(64)]: the indexer's, of compressed sparse attention
    state, key_state   of the compressors: tokens that do not yet make a block
    """

    def __init__(self, config: Config, tokens: int) -> None:
        pages, self.page = -(-tokens // PAGE), PAGE // config.ratio if config.ratio else 0
        self.window = np.zeros((1, v4.page_bytes(config.window)), np.uint8)
        self.compressed: Any = None
        self.keys: Any = None
        self.state: Any = None
        self.key_state: Any = None
        if config.ratio:
            self.compressed = np.zeros((pages, v4.page_bytes(self.page)), np.uint8)
            self.state = v4.compressor_state(1, config.ratio, config.compressed_width)
        if config.ratio == 4:
            self.keys = np.zeros((pages, v4.index_page_bytes(self.page)), np.uint8)
            self.key_state = v4.compressor_state(1, 4, 2 * INDEX_HEAD)

    @property
    def nbytes(self) -> int:
        """Of the entries; they grow with the sequence, but for the window."""
        return sum(x.nbytes for x in (self.window, self.compressed, self.keys) if x is not None)

    @property
    def state_bytes(self) -> int:
        """Of the compressors' states; fixed."""
        return sum(s.kv.nbytes + s.score.nbytes for s in (self.state, self.key_state) if s is not None)


class Block:
    """A block with the state of one sequence of up to `tokens` tokens. `seen` is how many there were so far.

    trace: where not None, a dict that receives what the layers computed in the last call, by name. forced: values that
    take the place of those computed (with a trace), so that each stage can be compared with another source given the
    same inputs.
    """

    def __init__(self, weights: Weights, tokens: int, target: Any = None) -> None:
        self.weights, self.config, self.target = weights, weights.config, target
        self.cache, self.seen, self.most = Cache(weights.config, tokens), 0, tokens
        self.rope = v4.rope_tables(tokens, **self.config.rope)
        self.trace: dict[str, Array] | None = None
        self.forced: dict[str, Array] = {}

    def __call__(self, x: Array, token_ids: Array | None = None) -> Array:
        """x [tokens, streams, d] bfloat16, the next tokens; token_ids [tokens] for hash-routed layers. Returns the
        streams after the block, the same shape."""
        w, s = self.weights, len(x)
        if self.seen + s > self.most:
            raise ValueError(f"{self.seen} tokens and {s} more, but the caches hold {self.most}")
        at = np.arange(self.seen, self.seen + s, dtype=np.int32)
        x = self.around("attn", x, w.attn_hyper, w.attn_norm, lambda h: self.attention(h, at))
        x = self.around("ffn", x, w.ffn_hyper, w.ffn_norm, lambda h: self.experts(h, token_ids))
        self.seen += s
        return x

    def seam(self, name: str, value: Array) -> Array:
        """What goes on from here: the value, or the one of its shape that is forced in its place."""
        if self.trace is not None:
            self.trace[name] = value.copy()
        given = self.forced.get(name)
        if given is None or given.shape != value.shape:
            return value
        return np.ascontiguousarray(given).astype(value.dtype)

    def around(self, name: str, x: Array, hyper: Hyper, norm: Array, layer: Any) -> Array:
        """Hyper-connections around one layer: mix the streams, norm, layer, back into the streams."""
        c, at = self.config, {"target": self.target}
        y, post, comb, _ = v4.hyper_pre(
            x, hyper.fn, hyper.scale, hyper.base, iterations=c.iterations, eps=c.eps, norm_eps=c.eps, **at
        )
        y, post, comb = (self.seam(f"{name}.{k}", v) for k, v in (("mixed", y), ("post", post), ("comb", comb)))
        f = layer(self.seam(f"{name}.normed", rms_norm(y, norm, eps=c.eps, **at)))
        return self.seam(f"{name}.x", v4.hyper_post(f, x, post, comb, **at))

    def linear(self, x: Array, w: Linear) -> Array:
        """FP8 product: activations cast per token and 128 columns, scales powers of two."""
        q, scale = per_token_cast(x, scale_dtype="float8_e8m0fnu", target=self.target)
        y: Array = scaled_gemm(q, scale, w.codes, w.scale, target=self.target)
        return y

    def attention(self, x: Array, at: Array) -> Array:
        """x [tokens, d] at positions `at` -> [tokens, d]."""
        c, w, on = self.config, self.weights, {"target": self.target}
        cos, sin = self.rope
        qr = self.seam("attn.qr", rms_norm(self.linear(x, w.wq_a), w.q_norm, eps=c.eps, **on))
        q = self.linear(qr, w.wq_b).reshape(len(x), c.heads, HEAD)
        q = self.seam("attn.q", v4.prepare_queries(q, cos, sin, at, eps=c.eps, **on))
        near, near_slots, near_page = self.window_entries(self.linear(x, w.wkv), at)
        far: dict[str, Any] = {}
        if c.ratio:
            blocks = self.compress(x, w.compressor, self.cache.state)
            self.write(v4.write_entries, *blocks, w.compressor, self.cache.compressed)
            used = self.cache.compressed[: -(-((self.seen + len(at)) // c.ratio) // self.cache.page)]
            used[:] = self.seam("attn.compressed_pages", used)
            slots = self.select(x, qr, at) if c.ratio == 4 else v4.block_slots(at, c.ratio)
            far = {"extra": self.cache.compressed, "extra_slots": slots, "extra_page_size": self.cache.page}
        o, lse = v4.sparse_attention(
            q, near, near_slots, page_size=near_page, **far, scale=HEAD**-0.5, sink=w.sink, return_lse=True, **on
        )
        self.seam("attn.lse", lse)
        o = self.seam("attn.o", v4.inverse_rope(self.seam("attn.raw", o), cos, sin, at, **on))
        return self.seam("attn.out", v4.output_projection(o, w.wo_a, w.wo_b.codes, w.wo_b.scale, **on))

    def window_entries(self, kv: Array, at: Array) -> tuple[Array, Array, int]:
        """Write the tokens' entries into the ring. Returns what attention reads, its slots and its page size.

        One token reads the ring. More would overwrite what the first of them still sees, so they read the values of
        the entries, those before them from the ring: the same numbers.
        """
        c, w, s, on = self.config, self.weights, len(at), {"target": self.target}
        ring, place = self.cache.window, (at % c.window).astype(np.int32)
        how: dict[str, Any] = {"eps": c.eps, **on}
        if s == 1:
            v4.write_entries(kv, w.kv_norm, *self.rope, at, place, ring, c.window, **how)
            self.entries_seam(ring, place, c.window)
            self.seam("attn.window_kv", v4.read_entries(ring, place, c.window, **on))
            return ring, v4.window_slots(at, c.window, ring=True), c.window
        before = np.arange(max(0, self.seen - c.window + 1), self.seen, dtype=np.int32)
        old = v4.read_entries(ring, (before % c.window).astype(np.int32), c.window, **on)
        chunk, mine = np.zeros((-(-s // 64), v4.page_bytes(64)), np.uint8), np.arange(s, dtype=np.int32)
        v4.write_entries(kv, w.kv_norm, *self.rope, at, mine, chunk, 64, **how)
        self.entries_seam(chunk, mine, 64)
        put_rows(ring, place[-c.window :], c.window, entry_rows(chunk, mine[-c.window :], 64))
        rows = np.concatenate([old, self.seam("attn.window_kv", v4.read_entries(chunk, mine, 64, **on))])
        slots = v4.window_slots(at, c.window)
        return rows, np.where(slots < 0, -1, slots - (self.seen - len(old))).astype(np.int32), 0

    def entries_seam(self, cache: Array, slots: Array, page: int) -> None:
        """The seam of entries just written, as bytes."""
        if self.trace is not None:
            put_rows(cache, slots, page, self.seam("attn.window_rows", entry_rows(cache, slots, page)))

    def compress(self, x: Array, w: Compressor, state: Any) -> tuple[Array, Array]:
        """(entries float32 [blocks, width] that these tokens complete, their numbers int32)."""
        first = int(state.seen[0]) // self.config.ratio
        kv, gate = (matmul(x, m.T, out_dtype="float32", target=self.target)[None] for m in (w.kv, w.gate))
        entries, count = v4.compress(kv, gate, w.ape, self.config.ratio, state, target=self.target)
        n = int(count[0])
        return entries[0, :n], np.arange(first, first + n, dtype=np.int32)

    def write(self, how: Any, entries: Array, numbers: Array, w: Compressor, cache: Array) -> None:
        """Blocks to their slots, rotated as their first token."""
        at = (numbers * self.config.ratio).astype(np.int32)
        how(entries, w.norm, *self.rope, at, numbers, cache, self.cache.page, eps=self.config.eps, target=self.target)

    def select(self, x: Array, qr: Array, at: Array) -> Array:
        """The lightning indexer: [tokens, k] int32 slots of the best visible blocks, -1 beyond."""
        c, w, cache, on = self.config, self.weights, self.cache, {"target": self.target}
        blocks = self.compress(x, w.index_compressor, cache.key_state)
        self.write(v4.write_index_keys, *blocks, w.index_compressor, cache.keys)
        q = self.linear(qr, w.index_wq_b).reshape(len(x), c.index_heads, INDEX_HEAD)
        q = v4.index_queries(q, *self.rope, at, **on)
        weights = matmul(x, w.index_weights.T, out_dtype="float32", **on)
        weights *= np.float32((INDEX_HEAD * c.index_heads) ** -0.5)
        visible = v4.visible_blocks(at, c.ratio)
        logits = v4.index_logits(q, weights, cache.keys, cache.page, visible, int(visible.max(initial=0)), **on)
        self.seam("indexer.weights", weights)
        self.seam("indexer.scores", logits)
        return self.seam("indexer.topk", v4.select_blocks(logits, c.top_k, visible, **on))

    def experts(self, x: Array, token_ids: Array | None) -> Array:
        """x [tokens, d] -> [tokens, d]."""
        c, w = self.config, self.weights
        how: dict[str, Any] = {"bias": w.bias, "k": c.active}
        if w.table is not None:
            how = {"token_ids": token_ids, "table": w.table}
        if self.trace is not None:
            logits = matmul(x, w.gate.T, out_dtype="float32", target=self.target)
            weights, chosen = route(logits, **how, scale=c.route_scale, target=self.target)
            self.seam("moe.experts", chosen), self.seam("moe.weights", weights)
        y = moe_forward(
            x, w.gate, w.routed, **how, scale=c.route_scale, shared=w.shared, limit=c.limit, target=self.target
        )
        return self.seam("moe.out", y)


def embed(weights: Weights, token_ids: Array) -> Array:
    """[tokens, streams, d] bfloat16: a token's row of the embedding, repeated for each stream."""
    rows = weights.embedding[token_ids]
    return np.repeat(rows[:, None], weights.config.streams, 1).astype(BF16)


def entry_rows(cache: Array, slots: Array, page: int) -> Array:
    """uint8 [n, 584]: entries' bytes, 576 of data and 8 of scales."""
    return cache[_places(slots, page)]


def put_rows(cache: Array, slots: Array, page: int, rows: Array) -> None:
    """Entries' bytes back to their slots."""
    cache[_places(slots, page)] = rows


def _places(slots: Array, page: int) -> tuple[Array, Array]:
    """Indices of entries' bytes in a cache of such pages."""
    entry = slots[:, None] % page
    return slots[:, None] // page, np.concatenate(
        [entry * 576 + np.arange(576), page * 576 + entry * 8 + np.arange(8)], 1
    )
