"""Attention of one new token per sequence against a cache of keys and values, split over the cache.

A sequence's cache is cut into splits of SPLIT tokens. One launch computes each split by itself (its output relative
to its own maximum, the maximum and the sum); a second one combines a sequence's splits in ascending order. The length
of a split is a constant, so a sequence has the same bits in every batch, whatever the others' lengths.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.attention_args import check_scale, check_sink, window_limits
from tiledsl.kernels.attention_block import LN_2, LOG2_E, clear_softmax, online_softmax
from tiledsl.kernels.tiles import KV_TILE, SPLIT, Tiles, tiles_for
from tiledsl.runtime import allocate

__all__ = ["attention_decode", "attention_decode_kernel", "mla_decode"]

BLOCKS = 16  # splits in a launch from which on a block takes several key heads: fewer have to be spread over threads


@tiledsl.jit
def attention_decode_kernel(
    part: str,
    block_H: int,
    head_dim: int,
    value_dim: int,
    dtype: DType,
    paged: bool = False,
    scattered: bool = False,
    sink: bool = False,
    window: bool = False,
    threads: int = 128,
    together: int = 1,
) -> Any:
    """part "split": unnormalised output, maximum and sum of every split; part "combine": O and LSE.

    together: key heads that a block of "split" takes, a divisor of kv_heads. Several read the cache in the order in
    which it lies in memory, and share the softmax's vectors.
    paged: token t of sequence b lies in row t % page_size of page table[b, t // page_size]; scattered: a tile of
    keys may lie in several pages. Else page b is the cache of sequence b.
    window: keys older than `left` tokens do not count, and are not read.
    """
    batch, heads, kv_heads = T.dynamic("batch"), T.dynamic("heads"), T.dynamic("kv_heads")
    pages, page_size, per_sequence = T.dynamic("pages"), T.dynamic("page_size"), T.dynamic("per_sequence")
    splits = T.dynamic("splits")
    wide = arrays.accumulator(dtype)
    q_strides = (T.dynamic("q_batch", "int64"), T.dynamic("q_head", "int64"), 1)
    k_strides, v_strides = ((*(T.dynamic(f"{x}_{d}", "int64") for d in ("page", "row", "head")), 1) for x in "kv")
    o_strides = (T.dynamic("o_batch", "int64"), T.dynamic("o_head", "int64"), 1)
    table_shape = (batch, per_sequence) if paged else (batch, 1)
    rows = together * block_H

    def own(buffer: Any, g: Any, columns: int) -> Any:
        """The rows of key head g of the block."""
        return buffer if together == 1 else buffer[g * block_H : g * block_H + block_H, 0:columns]

    def each() -> Any:
        return T.serial(together) if together > 1 else (0,)

    @T.prim_func
    def split(
        Q: T.StridedTensor((batch, heads, head_dim), q_strides, dtype),
        K: T.StridedTensor((pages, page_size, kv_heads, head_dim), k_strides, dtype),
        V: T.StridedTensor((pages, page_size, kv_heads, value_dim), v_strides, dtype),
        lengths: T.Tensor((batch,), T.int32),
        table: T.Tensor(table_shape, T.int32),
        scale_log2: wide,
        left: T.int32,
        Part: T.Tensor((batch, heads, splits, value_dim), wide),
        Peak: T.Tensor((batch, heads, splits), wide),
        Sum: T.Tensor((batch, heads, splits), wide),
    ):
        group = heads // kv_heads
        with T.Kernel(kv_heads // together * T.ceildiv(group, block_H), splits, batch, threads=threads) as (y, s, b):
            Q_s = T.alloc_shared((rows, head_dim), dtype)
            K_s = T.alloc_shared((KV_TILE, head_dim), dtype)
            V_s = T.alloc_shared((KV_TILE, value_dim), dtype)
            K_rest = T.alloc_shared((KV_TILE, head_dim), dtype)
            V_rest = T.alloc_shared((KV_TILE, value_dim), dtype)
            S = T.alloc_fragment((rows, KV_TILE), wide)
            P = T.alloc_fragment((rows, KV_TILE), dtype)
            acc = T.alloc_fragment((rows, value_dim), wide)
            peak = T.alloc_fragment((rows,), wide)
            before = T.alloc_fragment((rows,), wide)
            origin = T.alloc_fragment((rows,), wide)
            shrink = T.alloc_fragment((rows,), wide)
            part_sum = T.alloc_fragment((rows,), wide)
            total = T.alloc_fragment((rows,), wide)

            kv_head = y // T.ceildiv(group, block_H) * together
            inside = y % T.ceildiv(group, block_H) * block_H  # this block's first head within the group
            T.assume(kv_head + together <= kv_heads)
            first = s * SPLIT
            last = T.min(first + SPLIT, lengths[b])
            begin = T.max(lengths[b] - 1 - left, 0) if window else 0
            start = T.max(first, begin // KV_TILE * KV_TILE) if window else first

            def counts(key: Any) -> Any:
                return T.bitwise_and(begin <= key, key < last) if window else key < last

            @T.macro
            def fetch(cache, rest, key, head, dim):
                """Rows of keys that count, which may lie in several pages; elsewhere the cache holds anything."""
                for j, d in T.Parallel(KV_TILE, dim):
                    at = key + j
                    page = table[b, at // page_size] if paged else b
                    row = at % page_size if paged else at
                    rest[j, d] = T.if_then_else(counts(at), cache[page, row, head, d], T.cast(0, dtype))

            @T.macro
            def tile(key, whole):
                """Keys key ... key + KV_TILE - 1, all of them (whole), or those that count."""
                page = table[b, key // page_size] if paged and whole else b
                row = key % page_size if paged and whole else key
                for g in each():
                    if whole:
                        T.copy(K[page, row : row + KV_TILE, kv_head + g, 0:head_dim], K_s)
                        T.gemm(own(Q_s, g, head_dim), K_s, own(S, g, KV_TILE), transpose_B=True, clear_accum=True)
                    else:
                        fetch(K, K_rest, key, kv_head + g, head_dim)
                        T.gemm(own(Q_s, g, head_dim), K_rest, own(S, g, KV_TILE), transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(rows, KV_TILE):
                    if whole:
                        S[i, j] = S[i, j] * scale_log2
                    else:
                        S[i, j] = T.if_then_else(counts(key + j), S[i, j] * scale_log2, -T.infinity(wide))
                online_softmax(
                    S, P, acc, peak, before, origin, shrink, part_sum, total, rows=rows, keys=KV_TILE,
                    value_dim=value_dim,
                )  # fmt: skip
                for g in each():
                    if whole:
                        T.copy(V[page, row : row + KV_TILE, kv_head + g, 0:value_dim], V_s)
                        T.gemm(own(P, g, KV_TILE), V_s, own(acc, g, value_dim))
                    else:
                        fetch(V, V_rest, key, kv_head + g, value_dim)
                        T.gemm(own(P, g, KV_TILE), V_rest, own(acc, g, value_dim))

            if start < last:
                for g in each():
                    T.copy(Q[b, (kv_head + g) * group + inside, 0], own(Q_s, g, head_dim))
                clear_softmax(acc, peak, origin, total)
                cut = T.if_then_else(start < begin, 1, 0) if window and not scattered else 0  # the first tile in part
                full = 0 if scattered else T.max((last - start) // KV_TILE, cut)
                if window and not scattered:
                    for _ in T.serial(cut):
                        tile(start, whole=False)
                if not scattered:
                    for k in T.Pipelined(cut, full, num_stages=2):
                        tile(start + k * KV_TILE, whole=True)
                for k in T.Pipelined(full, T.ceildiv(last - start, KV_TILE), num_stages=2):
                    tile(start + k * KV_TILE, whole=False)
                for g in each():
                    head, row = (kv_head + g) * group + inside, g * block_H
                    for i, d in T.Parallel(block_H, value_dim):
                        if inside + i < group:
                            Part[b, head + i, s, d] = acc[row + i, d]
                    for i in T.Parallel(block_H):
                        if inside + i < group:
                            Peak[b, head + i, s] = peak[row + i]
                            Sum[b, head + i, s] = total[row + i]

    @T.prim_func
    def combine(
        lengths: T.Tensor((batch,), T.int32),
        left: T.int32,
        Part: T.Tensor((batch, heads, splits, value_dim), wide),
        Peak: T.Tensor((batch, heads, splits), wide),
        Sum: T.Tensor((batch, heads, splits), wide),
        SINK: T.Tensor((heads,), wide),
        O: T.StridedTensor((batch, heads, value_dim), o_strides, dtype),
        LSE: T.Tensor((batch, heads), wide),
    ):
        with T.Kernel(heads, batch, threads=threads) as (h, b):
            acc = T.alloc_fragment((value_dim,), wide)
            peak = T.alloc_var(wide, -T.infinity(wide))
            total = T.alloc_var(wide, 0.0)
            oldest = T.max(lengths[b] - 1 - left, 0) // SPLIT if window else 0
            count = T.ceildiv(T.max(T.min(lengths[b], splits * SPLIT), 0), SPLIT)
            T.clear(acc)
            for s in T.serial(oldest, count):
                peak = T.max(peak, Peak[b, h, s])
            origin = T.if_then_else(peak == -T.infinity(wide), 0.0, peak)
            for s in T.serial(oldest, count):
                weight = T.exp2(Peak[b, h, s] - origin)
                total = total + Sum[b, h, s] * weight
                for d in T.Parallel(value_dim):
                    acc[d] = acc[d] + Part[b, h, s, d] * weight
            if sink:
                extra = SINK[h] * wide(LOG2_E)
                higher = T.max(origin, extra)
                scaled = T.exp2(origin - higher)
                whole = total * scaled + T.exp2(extra - higher)
            else:
                scaled = wide(1.0)
                whole = total + 0.0
            for d in T.Parallel(value_dim):
                O[b, h, d] = T.if_then_else(total == 0.0, 0.0, acc[d] * scaled / whole)
            LSE[b, h] = T.if_then_else(total == 0.0, -T.infinity(wide), peak * wide(LN_2) + T.log(total))

    return {"split": split, "combine": combine}[part]


_attention_decode_kernel = cache(attention_decode_kernel)  # the same values, the same kernel


def attention_decode(
    q: Any,
    k: Any,
    v: Any,
    lengths: Any = None,
    *,
    block_table: Any = None,
    window: Any = None,
    sink: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: Any = None,
    target: Any = None,
) -> Any:
    """Attention of one query per sequence against its cache: o_b = sum_j p_j v_j over the first lengths[b] tokens,
    p = softmax(scale q_b . k_j) (split over the keys as in "Flash-Decoding", Dao et al., 2023; paged as in Kwon et
    al., "Efficient Memory Management for LLM Serving with PagedAttention", 2023).

    q            [batch, heads, head_dim]; float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    k, v         [batch, seq, kv_heads, head_dim] (v may have another head_dim); with block_table
                 [pages, page_size, kv_heads, head_dim]; heads is a multiple of kv_heads
    lengths      [batch] int32 or int64, the tokens that each sequence has; None: all
    block_table  [batch, pages per sequence] int32 or int64: the page of tokens i page_size ... (i + 1) page_size - 1;
                 entries beyond a sequence's length are not read
    window       (left, right): the query is that of the last token, so the left + 1 last tokens count; None: all. Older
                 tokens, and pages that hold nothing else, are not read
    sink, scale, return_lse, target   as in flash_attention
    out          array [batch, heads, head_dim of v] that receives the result

    Returns [batch, heads, head_dim of v], or (that, lse float32 [batch, heads]; float64 for float64). A sequence of
    length 0 gives 0 and lse -inf. The cache beyond a sequence's length may hold anything. Bits depend on the sequence
    alone: not on the batch, the page size, or where its pages lie. Page sizes that are multiples of 64 are read
    fastest.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for lengths beyond the cache and pages that do
    not exist (both where the numbers lie on the host), a scale that is not finite, and when out shares memory with
    an input.
    """
    return _decode("attention_decode", q, k, v, lengths, block_table, window, sink, scale, return_lse, out, target)


def mla_decode(
    q: Any,
    cache: Any,
    lengths: Any = None,
    *,
    scale: float,
    value_dim: int = 512,
    block_table: Any = None,
    return_lse: bool = False,
    out: Any = None,
    target: Any = None,
) -> Any:
    """Multi-head latent attention when decoding: all heads attend to one cache of latent vectors, whose first
    value_dim elements are the values as well (DeepSeek-AI, "DeepSeek-V2", 2024, with the projections absorbed).

    q            [batch, heads, dim]: the latent part (512), then the rotary part (64)
    cache        [batch, seq, dim]; with block_table [pages, page_size, dim]
    scale        of the scores; it follows from the head size before absorption (192 ** -0.5 there), so there is no
                 default
    value_dim    at most dim
    lengths, block_table, return_lse, out, target   as in attention_decode

    Returns [batch, heads, value_dim], or (that, lse). Bits and errors as in attention_decode.
    """
    name = "mla_decode"
    arrays.rank(name, "cache", cache, "pages, page_size, dim" if block_table is not None else "batch, seq, dim")
    if not 0 < value_dim <= cache.shape[2]:
        raise TileValueError(f"{name}: value_dim is {value_dim}, but {arrays.describe(cache=cache)}")
    k = cache[:, :, None]
    return _decode(name, q, k, k[..., :value_dim], lengths, block_table, None, None, scale, return_lse, out, target)


def head_tile(tiles: Tiles, group: int, head_dim: int, value_dim: int, size: int) -> tuple[int, int]:
    """(query heads that a block takes, of the group of one key head; threads). On GPUs heads are what matrix
    instructions take and has room beside the tiles of keys and values: q, probabilities and scores."""
    least, most = tiles.decode
    if not tiles.shared:
        return min(max(group, least), most), tiles.threads
    each = (head_dim + KV_TILE) * size + 4 * KV_TILE
    sizes = tiles.within((16, 32, 64), each, KV_TILE * (head_dim + value_dim) * size)
    return next((s for s in sizes if s >= group), sizes[-1]), tiles.threads_for(value_dim)


def _decode(
    name: str, q: Any, k: Any, v: Any, lengths: Any, block_table: Any, window: Any, sink: Any, scale: float | None,
    return_lse: bool, out: Any, target: Any,
) -> Any:  # fmt: skip
    dtype = arrays.floats(name, q=q, k=k, v=v)
    batch, heads, head_dim = arrays.rank(name, "q", q, "batch, heads, head_dim")
    paged = block_table is not None
    dims = "pages, page_size, kv_heads, head_dim" if paged else "batch, seq, kv_heads, head_dim"
    pages, page_size, kv_heads, dim = arrays.rank(name, "k", k, dims)
    *v_lead, value_dim = arrays.rank(name, "v", v, dims)
    if v_lead != [pages, page_size, kv_heads] or dim != head_dim or value_dim == 0 or (not paged and pages != batch):
        raise TileTypeError(
            f"{name}: shapes do not fit: {arrays.describe(q=q, k=k, v=v)}",
            help=f"q is [batch, heads, head_dim], k and v are [{dims}]",
        )
    if heads and (kv_heads == 0 or heads % kv_heads):
        raise TileTypeError(
            f"{name}: {heads} query heads, {kv_heads} key heads", help="heads is a multiple of kv_heads"
        )
    scale, sink = check_scale(name, scale, head_dim), check_sink(name, sink, heads, dtype)
    room = page_size
    if paged:
        arrays.dtype_of(name, "block_table", block_table, ("int32", "int64"))
        rows, per_sequence = arrays.rank(name, "block_table", block_table, "batch, pages per sequence")
        if rows != batch:
            raise TileTypeError(f"{name}: {arrays.describe(q=q, block_table=block_table)}: one row for each sequence")
        room = per_sequence * page_size
    lengths, longest = _lengths(name, lengths, batch, room, q)
    limits = window_limits(name, window, True, room)
    left = room if limits is None else limits[0]
    if paged:
        _check_pages(name, block_table, lengths, left, page_size, pages)
        block_table = arrays.dense(arrays.as_int32(block_table))
    out = arrays.output(name, out, q, (batch, heads, value_dim), dtype, q=q, k=k, v=v)
    wide = arrays.accumulator(dtype)
    lse = allocate((batch, heads), wide, q)
    if batch and heads:
        splits = max(1, -(-longest // SPLIT))
        part = allocate((batch, heads, splits, value_dim), wide, q)
        peak, total = (allocate((batch, heads, splits), wide, q) for _ in range(2))
        tiles = tiles_for(target)
        scattered = paged and page_size % KV_TILE != 0
        group = heads // kv_heads
        heads_each, threads = head_tile(tiles, group, head_dim, value_dim, dtype.bytes)
        form = heads_each, head_dim, value_dim, dtype
        K, V = (arrays.unit_last(x) for x in (k, v))
        if longest:
            cut = limits is not None
            most_rows = tiles.decode_rows // form[0] if batch * splits >= BLOCKS else 1
            together = max(n for n in (1, 2, 4, 8) if kv_heads % n == 0 and n <= max(1, most_rows))
            kernel = _attention_decode_kernel("split", *form, paged, scattered, False, cut, threads, together)
            kernel(
                arrays.unit_last(q), K, V, lengths, block_table if paged else lengths[:, None], scale * LOG2_E, left,
                part, peak, total, target=target,
            )  # fmt: skip
        flags = sink is not None, limits is not None
        kernel = _attention_decode_kernel("combine", *form, False, False, *flags, tiles.threads)
        kernel(lengths, left, part, peak, total, sink, out, lse, target=target)
    return (out, lse) if return_lse else out


def _lengths(name: str, lengths: Any, batch: int, room: int, like: Any) -> tuple[Any, int]:
    """[batch] int32 on the device of `like`, and the longest, or what it can be at most. Raises when out of range."""
    if lengths is None:
        filled = np.full(batch, room, np.int32)
        return arrays.like_kind(filled, like), room
    arrays.dtype_of(name, "lengths", lengths, ("int32", "int64"))
    if arrays.rank(name, "lengths", lengths, "batch") != (batch,):
        raise TileTypeError(f"{name}: {arrays.describe(q=like, lengths=lengths)}: one length for each sequence")
    arrays.check_size(name, "lengths", lengths, 0, room)
    known = arrays.on_host(lengths)
    longest = room if known is None else int(known.max(initial=0))
    return arrays.dense(arrays.as_int32(lengths)), longest


def _check_pages(name: str, table: Any, lengths: Any, left: int, page_size: int, pages: int) -> None:
    """Raises TileValueError when a page that is read does not exist, where the table lies on the host."""
    known, sizes = arrays.on_host(table), arrays.on_host(lengths)
    if known is None or sizes is None or not page_size:
        return
    oldest = np.maximum(sizes - 1 - left, 0) // page_size
    index = np.arange(known.shape[1])
    used = (index >= oldest[:, None]) & (index < -(-sizes // page_size)[:, None])
    bad = used & ((known < 0) | (known >= pages))
    if bad.any():
        b, i = (int(x) for x in np.argwhere(bad)[0])
        raise TileValueError(f"{name}: block_table[{b}, {i}] is {int(known[b, i])}, but there are {pages} pages")
