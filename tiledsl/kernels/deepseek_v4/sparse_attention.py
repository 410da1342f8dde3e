"""Attention over selected entries: each query gathers its own keys, which are its values too (one key head).

Sources are paged FP8 caches (entries.py, mla_entries.py) or plain bfloat16 rows; a query sees those that two lists of
slots name, in their order: a window and a compressed cache.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.attention_args import check_scale, check_sink
from tiledsl.kernels.attention_block import LN_2, LOG2_E, clear_softmax, online_softmax
from tiledsl.kernels.deepseek_v4.entries import CODES, ENTRY, check_cache, load_entries, page_bytes
from tiledsl.kernels.deepseek_v4.mla_entries import MLA_ENTRY, load_mla_entries, mla_page_bytes
from tiledsl.kernels.tiles import KV_TILE, fit, tiles_for
from tiledsl.runtime import allocate

__all__ = ["block_slots", "sparse_attention", "sparse_attention_kernel", "visible_blocks", "window_slots"]

HEADS = (16, 64)  # of a block; no bit depends on it
# The forms of cache entries by their elements: bytes of a page, and the macro that reads them.
FORMS = {ENTRY: (page_bytes, load_entries), MLA_ENTRY: (mla_page_bytes, load_mla_entries)}


def window_slots(positions: Any, window: int = 128, *, ring: bool = False) -> np.ndarray[Any, Any]:
    """[n, window] int32: the tokens p - window + 1 ... p of each position p, oldest first, -1 before the first token.
    ring: their places t % window in a cache of `window` entries."""
    at = np.asarray(positions, np.int64)[:, None] - np.arange(window - 1, -1, -1)
    return np.where(at < 0, -1, at % window if ring else at).astype(np.int32)


def visible_blocks(positions: Any, ratio: int) -> np.ndarray[Any, Any]:
    """[n] int32: how many compressed blocks each position p sees, (p + 1) // ratio: the token that closes one does."""
    return ((np.asarray(positions, np.int64) + 1) // ratio).astype(np.int32)


def block_slots(positions: Any, ratio: int) -> np.ndarray[Any, Any]:
    """[n, most] int32: all visible blocks of each position, -1 beyond: the lists of heavily compressed attention."""
    seen = visible_blocks(positions, ratio)
    blocks = np.arange(int(seen.max(initial=0)), dtype=np.int32)
    return np.where(blocks < seen[:, None], blocks, np.int32(-1))


@tiledsl.jit
def sparse_attention_kernel(
    block_H: int, key_dim: int, value_dim: int, pages: tuple[int, ...], sink: bool, threads: int = 128
) -> Any:
    """One query and block_H of its heads per block. pages: a page size for each source, 0 for rows as they are."""
    M, H = T.dynamic("M"), T.dynamic("H")
    N1, R1, B1 = T.dynamic("N1"), T.dynamic("R1"), T.dynamic("B1")
    N2, R2, B2 = (T.dynamic(s) if len(pages) == 2 else 1 for s in ("N2", "R2", "B2"))
    sizes = (*pages, 0)[:2]
    types = ["bfloat16" if size == 0 else "uint8" for size in sizes]
    q_strides = (T.dynamic("q_token", "int64"), T.dynamic("q_head", "int64"), 1)

    @T.prim_func
    def sparse_attention(
        Q: T.StridedTensor((M, H, key_dim), q_strides, "bfloat16"),
        C1: T.Tensor((R1, key_dim if sizes[0] == 0 else B1), types[0]),
        I1: T.Tensor((M, N1), T.int32),
        C2: T.Tensor((R2, key_dim if sizes[1] == 0 else B2), types[1]),
        I2: T.Tensor((M, N2), T.int32),
        scale_log2: T.float32,
        SINK: T.Tensor((H,), T.float32),
        O: T.Tensor((M, H, value_dim), "bfloat16"),
        LSE: T.Tensor((M, H), T.float32),
    ):
        with T.Kernel(T.ceildiv(H, block_H), M, threads=threads) as (bx, t):
            q = T.alloc_shared((block_H, key_dim), "bfloat16")
            KV = T.alloc_shared((KV_TILE, key_dim), "bfloat16")
            slot = T.alloc_shared((KV_TILE,), T.int32)
            any_slot = T.alloc_fragment((1,), T.int32)
            scale = T.alloc_fragment((KV_TILE, CODES // 64), T.float32)
            S = T.alloc_fragment((block_H, KV_TILE), T.float32)
            P = T.alloc_shared((block_H, KV_TILE), "bfloat16")
            acc = T.alloc_fragment((block_H, value_dim), T.float32)
            peak = T.alloc_fragment((block_H,), T.float32)
            before = T.alloc_fragment((block_H,), T.float32)
            origin = T.alloc_fragment((block_H,), T.float32)
            shrink = T.alloc_fragment((block_H,), T.float32)
            part = T.alloc_fragment((block_H,), T.float32)
            total = T.alloc_fragment((block_H,), T.float32)

            @T.macro
            def visit(C, I, count, size):
                for k in T.serial(T.ceildiv(count, KV_TILE)):
                    for j in T.Parallel(KV_TILE):
                        slot[j] = T.if_then_else(k * KV_TILE + j < count, I[t, k * KV_TILE + j], -1)
                    T.reduce_max(slot, any_slot, dim=0)
                    if any_slot[0] >= 0:  # a tile that nobody sees would change nothing
                        if size == 0:
                            for i, j in T.Parallel(KV_TILE, key_dim):
                                KV[i, j] = C[slot[i], j]
                        else:
                            FORMS[key_dim][1](C, slot, scale, KV, rows=KV_TILE, page_size=size)
                        T.gemm(q, KV, S, transpose_B=True, clear_accum=True)
                        for i, j in T.Parallel(block_H, KV_TILE):
                            S[i, j] = T.if_then_else(slot[j] < 0, -T.infinity(T.float32), S[i, j] * scale_log2)
                        online_softmax(
                            S, P, acc, peak, before, origin, shrink, part, total,
                            rows=block_H, keys=KV_TILE, value_dim=value_dim,
                        )  # fmt: skip
                        T.gemm(P, KV[:, 0:value_dim], acc)

            T.copy(Q[t, bx * block_H : (bx + 1) * block_H, :], q)
            clear_softmax(acc, peak, origin, total)
            visit(C1, I1, N1, sizes[0])
            if len(pages) == 2:
                visit(C2, I2, N2, sizes[1])
            for i in T.Parallel(block_H):
                head = bx * block_H + i
                if head < H:
                    LSE[t, head] = (T.log2(total[i]) + origin[i]) * LN_2
                if sink:
                    if head < H and total[i] > 0.0:  # a sink alone has no value: the result stays 0
                        total[i] = total[i] + T.exp2(SINK[head] * LOG2_E - origin[i])
            for i, j in T.Parallel(block_H, value_dim):
                acc[i, j] = T.if_then_else(total[i] > 0.0, acc[i, j] / total[i], 0.0)
            T.copy(acc, O[t, bx * block_H : (bx + 1) * block_H, :])

    return sparse_attention


_sparse_attention_kernel = cache(sparse_attention_kernel)  # the same values, the same kernel


def check_source(name: str, which: str, source: Any, slots: Any, page_size: int, tokens: int, key_dim: int) -> None:
    """Raises TileTypeError or TileValueError unless the slots fit the queries and lie in the source."""
    if page_size:
        count = check_cache(name, which, source, page_size, FORMS[key_dim][0](page_size))
    else:
        arrays.dtype_of(name, which, source, ("bfloat16",))
        count, width = arrays.rank(name, which, source, "rows, dim")
        if width != key_dim:
            raise TileTypeError(f"{name}: {arrays.describe(**{which: source})}, expected rows of {key_dim} elements")
    arrays.dtype_of(name, f"slots of {which}", slots, ("int32",))
    if slots.ndim != 2 or slots.shape[0] != tokens:
        raise TileTypeError(f"{name}: {arrays.describe(slots=slots)}, expected [{tokens}, n] for {which}")
    arrays.check_size(name, f"slots of {which}", slots, -1, count - 1)


def sparse_attention(
    q: Any,
    source: Any,
    slots: Any,
    *,
    page_size: int = 0,
    extra: Any = None,
    extra_slots: Any = None,
    extra_page_size: int = 0,
    value_dim: int | None = None,
    scale: float | None = None,
    sink: Any = None,
    return_lse: bool = False,
    target: Any = None,
) -> Any:
    """o[t, h] = sum over the slots s of query t of p(t, h, s) v(s), p = softmax of scale q[t, h] . k(s), where k(s) is
    an entry and v(s) its first value_dim elements. DeepSeek-V4: the window's entries, then those that the indexer
    selected (or all visible ones), K = V of 512 elements; V3.2: latent rows of 576 elements, of which 512 are values.

    q           [tokens, heads, dim] bfloat16; NumPy (ml_dtypes) or torch
    source      with page_size: uint8 [pages, page_bytes(page_size)], entries of 512 elements (write_entries), or
                [pages, mla_page_bytes(page_size)], of 576 (write_mla_entries); without: bfloat16 [rows, dim]
    slots       [tokens, n] int32, -1: nothing
    extra, extra_slots, extra_page_size   a second source, after the first
    value_dim   default: dim
    scale       default dim^-0.5
    sink        [heads] float32: exp(sink) joins the denominator; not scaled
    return_lse  also return log of the sum of exp(scale q . k), without the sink, float32 [tokens, heads]
    target      where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, heads, value_dim] bfloat16, or (that, lse). Scores and sums in float32; the sum is of the
    probabilities before they are rounded to bfloat16 for the second product. A query whose slots are all -1 gives 0 and
    lse -inf. A query's bits do not depend on other queries, on the number of threads, or on the CPU target; there is no
    split along the slots.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for slots outside of a source (where they lie on the
    host) and a scale that is not finite.
    """
    name = "sparse_attention"
    arrays.dtype_of(name, "q", q, ("bfloat16",))
    m, heads, dim = arrays.rank(name, "q", q, "tokens, heads, dim")
    if (page_size or extra_page_size) and dim not in FORMS:
        raise TileTypeError(f"{name}: {arrays.describe(q=q)}, but cache entries have {ENTRY} or {MLA_ENTRY} elements")
    if (extra is None) is not (extra_slots is None):
        raise TileTypeError(f"{name}: extra and extra_slots come together")
    values = dim if value_dim is None else int(value_dim)
    if not 0 < values <= dim:
        raise TileTypeError(f"{name}: value_dim is {value_dim}, but rows have {dim} elements")
    check_source(name, "source", source, slots, page_size, m, dim)
    pages: tuple[int, ...] = (page_size,)
    if extra is not None:
        check_source(name, "extra", extra, extra_slots, extra_page_size, m, dim)
        pages = (page_size, extra_page_size)
    factor = check_scale(name, scale, dim) * LOG2_E
    sink = check_sink(name, sink, heads, as_dtype("float32"))
    o, lse = allocate((m, heads, values), as_dtype("bfloat16"), q), allocate((m, heads), as_dtype("float32"), q)
    if m and heads:
        tiles = tiles_for(target)
        form = fit(HEADS, heads), dim, values, pages, sink is not None, tiles.threads_for(values)
        kernel = _sparse_attention_kernel(*form)
        second = (None, None) if extra is None else (arrays.dense(extra), arrays.dense(extra_slots))
        first = arrays.unit_last(q), arrays.dense(source), arrays.dense(slots)
        kernel(*first, *second, factor, sink, o, lse, target=target)
    return (o, lse) if return_lse else o
