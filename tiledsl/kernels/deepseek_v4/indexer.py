"""The lightning indexer: rotated MXFP4 keys and queries, their scores in exact integers, the blocks selected by them.

A key has 68 bytes: 64 of e2m1 pairs, then 4 e8m0 scales. A page of n keys holds n x 64 bytes, then n x 4. Queries have
the same form, one to a page. indexer_fp8.py has those of DeepSeek-V3.2.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
import sys
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.deepseek_v4.entries import check_cache, norm_rows, places, rotated, write_rows
from tiledsl.kernels.quant.casts import FP4_FLOOR
from tiledsl.kernels.quant.scales import E8M0, scale_of
from tiledsl.kernels.reorder import top_k
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import address_of, allocate, is_torch

__all__ = ["DIM", "KEYS", "ROPE", "ROWS", "check_lookup", "index_logits", "index_logits_kernel"]
__all__ += ["index_page_bytes", "index_queries", "query_slots", "rotate_all", "select_blocks", "write_index_keys"]
__all__ += ["write_index_keys_kernel"]

DIM, ROPE, CODES, SCALES = 128, 64, 64, 4  # elements of a key, its rotated part; bytes
ROWS = 4
KEYS, STEPS = 64, 8  # keys of a tile, tiles of a block
SHIFT = 3  # 12 * 2^3 is the largest that fits into int8
LEAST, MOST = 97, 157  # e8m0 codes, of 2^-30 and 2^30: their products, and sums of so many, are far from any bound


def index_page_bytes(page_size: int) -> int:
    """Bytes of a page of so many keys."""
    return page_size * (CODES + SCALES)


@T.macro
def rotate_all(y, turned, *, rows):
    """Each row of y [rows, 128] times Hadamard's matrix / sqrt(128), rounded to bfloat16; turned is scratch like y."""
    for s in T.serial(7):  # sums and differences of elements 1, 2, 4, ... apart
        apart = T.shift_left(1, s)
        for i, j in T.Parallel(rows, DIM):
            other = y[i, j ^ apart]
            turned[i, j] = T.if_then_else((j & apart) == 0, y[i, j] + other, other - y[i, j])
        T.copy(turned, y)
    for i, j in T.Parallel(rows, DIM):
        y[i, j] = T.cast(y[i, j] * (DIM**-0.5), "bfloat16")


@tiledsl.jit
def write_index_keys_kernel(page_size: int, dtype: DType, normalise: bool, threads: int = 128) -> Any:
    """x rounded to bfloat16, normalised, its last 64 rotated, multiplied by Hadamard's matrix / sqrt(128), each step
    rounded to bfloat16; then MXFP4 and to its slot."""
    N, P, pages = T.dynamic("N"), T.dynamic("P"), T.dynamic("pages")
    ldx = T.dynamic("ldx", "int64")

    @T.prim_func
    def write_index_keys(
        X: T.StridedTensor((N, DIM), (ldx, 1), dtype),
        W: T.Tensor((DIM,), T.float32),
        eps: T.float32,
        Cos: T.Tensor((P, ROPE // 2), T.float32),
        Sin: T.Tensor((P, ROPE // 2), T.float32),
        At: T.Tensor((N,), T.int32),
        Slots: T.Tensor((N,), T.int32),
        Cache: T.Tensor((pages, page_size * (CODES + SCALES)), T.uint8),
    ):
        with T.Kernel(T.ceildiv(N, ROWS), threads=threads) as by:
            x = T.alloc_shared((ROWS, DIM), "bfloat16")
            y = T.alloc_shared((ROWS, DIM), T.float32)
            turned = T.alloc_shared((ROWS, DIM), T.float32)
            code = T.alloc_shared((ROWS, DIM), T.uint8)
            total = T.alloc_fragment((ROWS,), T.float32)
            tile = T.alloc_fragment((ROWS, 32), T.float32)
            largest = T.alloc_fragment((ROWS,), T.float32)
            scale = T.alloc_fragment((ROWS,), T.float32)
            page = T.alloc_fragment((ROWS,), T.int32)
            entry = T.alloc_fragment((ROWS,), T.int32)
            places(Slots, by * ROWS, page, entry, page_size)
            T.copy(X[by * ROWS, 0], x)
            if normalise:
                norm_rows(x, W, eps, y, total)
            T.copy(x, y)
            for i, p in T.Parallel(ROWS, ROPE // 2):
                at, first = At[by * ROWS + i], DIM - ROPE + 2 * p
                a, b = rotated(x[i, first], x[i, first + 1], Cos[at, p], Sin[at, p])
                y[i, first] = a
                y[i, first + 1] = b
            rotate_all(y, turned, rows=ROWS)
            for k in T.serial(DIM // 32):
                for i, j in T.Parallel(ROWS, 32):
                    tile[i, j] = y[i, k * 32 + j]
                T.reduce_absmax(tile, largest, dim=1)
                for i in T.Parallel(ROWS):
                    found = scale_of(largest[i], FP4_FLOOR, as_dtype("float4_e2m1fn"), as_dtype(E8M0))
                    Cache[page[i], page_size * CODES + entry[i] * SCALES + k] = T.reinterpret(found, T.uint8)
                    scale[i] = T.cast(found, T.float32)
                for i, j in T.Parallel(ROWS, 32):
                    code[i, k * 32 + j] = nibble(tile[i, j] / scale[i])
            for i, j in T.Parallel(ROWS, CODES):
                Cache[page[i], entry[i] * CODES + j] = code[i, 2 * j] | (code[i, 2 * j + 1] << 4)

    return write_index_keys


def nibble(x: Any) -> Any:
    """The e2m1 code of x as uint8: to nearest even, saturated, NaN +6: how many of the bounds between values lie below
    |x|, with ties to the even code."""
    size = T.abs(x)
    code: Any = T.int32(0)
    for i, bound in list(enumerate((0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0))):
        reached = size > bound if i % 2 == 0 else size >= bound
        code = code + T.if_then_else(reached, 1, 0)
    negative = T.reinterpret(x, T.uint32) >> 31 != 0
    return T.cast(T.if_then_else(x == x, code + T.if_then_else(negative, 8, 0), 7), T.uint8)


_write_index_keys_kernel = cache(write_index_keys_kernel)  # the same values, the same kernel


def write_index_keys(
    x: Any,
    weight: Any,
    cos: Any,
    sin: Any,
    positions: Any,
    slots: Any,
    cache: Any,
    page_size: int,
    *,
    eps: float = 1e-6,
    target: Any = None,
) -> None:
    """Write keys of the indexer: y = x / rms(x) * weight, the last 64 of 128 elements rotated in neighbouring pairs,
    then H y / sqrt(128) with Hadamard's matrix H[i, j] = (-1)^popcount(i & j), each rounded to bfloat16; cast as
    mxfp4_cast does.

    x          [n, 128] float32 or bfloat16, compressed blocks; NumPy (ml_dtypes) or torch
    weight     [128] float32 of the RMS norm; None: no norm
    cos, sin   [positions, 32] float32 (rope_tables)
    positions  [n] int32, of the first token of each block
    slots      [n] int32: key slot % page_size of page slot // page_size; what lies outside of the cache is not written
    cache      [pages, index_page_bytes(page_size)] uint8, written in place
    target     where to run (default: TILEDSL_TARGET, else auto)

    Bit-exact on every CPU target; a key does not depend on others.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for positions outside of the tables (where they lie
    on the host) and a negative eps.
    """
    name = "write_index_keys"
    tables = cos, sin, positions, slots
    write_rows(
        name, _write_index_keys_kernel, DIM, x, (weight,), eps, tables, cache, page_size, index_page_bytes, target
    )


def query_slots(name: str, q: Any, positions: Any) -> tuple[int, int, Any, Any]:
    """Tokens, heads, the position of each head's query, and its slot where each has a page of its own."""
    m, heads, _ = arrays.rank(name, "q", q, "tokens, heads, 128")
    arrays.dtype_of(name, "positions", positions, ("int32",))
    if tuple(positions.shape) != (m,):
        raise TileTypeError(f"{name}: {arrays.describe(q=q, positions=positions)}, expected [{m}]")
    each = positions[:, None] + arrays.like_kind(np.zeros((1, heads), np.int32), q)
    return m, heads, each.reshape(m * heads), arrays.like_kind(np.arange(m * heads, dtype=np.int32), q)


def index_queries(q: Any, cos: Any, sin: Any, positions: Any, *, target: Any = None) -> Any:
    """Queries of the indexer in the form of keys, without a norm: uint8 [tokens, heads, 68], e2m1 pairs and scales.

    q          [tokens, heads, 128] bfloat16 or float32; NumPy (ml_dtypes) or torch
    cos, sin   [positions, 32] float32 (rope_tables)
    positions  [tokens] int32
    target     where to run (default: TILEDSL_TARGET, else auto)

    Raises TileTypeError and TileValueError as write_index_keys.
    """
    m, heads, at, slots = query_slots("index_queries", q, positions)
    made = allocate((m * heads, CODES + SCALES), as_dtype("uint8"), q)
    flat = arrays.dense(q).reshape(m * heads, q.shape[2])
    write_index_keys(flat, None, cos, sin, at, slots, made, 1, target=target)
    return made.reshape(m, heads, CODES + SCALES)


def above_middle(words: Any, shift: Any) -> Any:
    """The e2m1 in the low half of each of four bytes, as uint8: 128 and twice its value times 2^shift, shift <= 3.

    All four at once, in the bits of a word: twice the values are 0, 1, 2, 3, 4, 6, 8, 12, that is the code c, and from
    4 on c + l + 2 [l = 3] with l the lower two bits of c.
    """
    ones = T.uint32(0x01010101)
    code = words & 0x07070707
    large = (code >> 2) & ones
    low = code & (large | (large << 1))
    size = (code + low + ((low & (low >> 1) & ones) << 1)) << shift
    negative = (words >> 3) & ones
    return (size ^ ((negative << 8) - negative) ^ 0x80808080) + negative  # 128 - x is (127 ^ x) + 1


@T.macro
def examine(scales, base, far, i):
    """base[i] = the least of four e8m0 codes; far[i] = 0 where one exact sum of all 128 products takes their place."""
    a, b, c, d = scales & 255, (scales >> 8) & 255, (scales >> 16) & 255, scales >> 24
    base[i] = T.min(T.min(a, b), T.min(c, d))
    most = T.max(T.max(a, b), T.max(c, d))
    far[i] = T.if_then_else(most - base[i] <= SHIFT and base[i] >= LEAST and most <= MOST, 0, 1)


def power(code: Any) -> Any:
    """The float32 of an e8m0 code."""
    return T.cast(T.reinterpret(T.cast(code, T.uint8), E8M0), T.float32)


@tiledsl.jit
def index_logits_kernel(heads: int, page_size: int, out_dtype: DType, threads: int = 128) -> Any:
    """L[t, s] = sum over h of w[t, h] max(q[t, h] . k[s], 0) for s < Visible[t], -inf beyond. Words hold four bytes.

    Twice an e2m1 is a small integer: products of 32 that share scales are exact int32 sums, in any order, so the low
    halves of all bytes come first and then the high ones, for keys and queries alike. The four sums are scaled and
    added in float32. Where the four scales lie close together, as those of rotated vectors do, the integers take up
    their differences: one sum of 128 products, which is exact in float32 as well, so that it is the same number.
    """
    M, S, pages, per, sequences = (T.dynamic(s) for s in ("M", "S", "pages", "per", "sequences"))
    words, groups = DIM // 4, CODES // 4  # of 8-bit integers, of pairs
    half = groups // SCALES  # words of pairs that share a scale
    rows = -(-heads // 16) * 16  # heads, with zeros up to a multiple of 16: sums over heads are 16 partial ones

    @T.prim_func
    def index_logits(
        Q: T.Tensor((M, heads, groups + 1), T.int32),
        W: T.Tensor((M, heads), T.float32),
        Cache: T.Tensor((pages, page_size * (groups + 1)), T.int32),
        Table: T.Tensor((sequences, per), T.int32),
        Sequence: T.Tensor((M,), T.int32),
        Visible: T.Tensor((M,), T.int32),
        L: T.Tensor((M, S), out_dtype),
    ):
        with T.Kernel(T.ceildiv(S, KEYS * STEPS), M, threads=threads) as (bx, t):
            q_plain = T.alloc_shared((rows, DIM), T.int8)
            q_words = T.view(q_plain, (rows, words), T.uint32)
            q = T.alloc_shared((rows, DIM), T.int8)
            q_part = T.alloc_shared((rows, 32), T.int8)
            q_scales = T.alloc_fragment((rows,), T.uint32)
            q_base = T.alloc_fragment((rows,), T.uint32)
            q_far = T.alloc_fragment((rows,), T.int32)
            q_apart = T.alloc_fragment((1,), T.int32)
            q_scale = T.alloc_fragment((rows,), T.float32)
            q_sum = T.alloc_fragment((rows,), T.int32)
            weight = T.alloc_fragment((rows,), T.float32)
            k = T.alloc_shared((KEYS, DIM), T.uint8)  # 128 more than the integer, so that nothing else has to be added
            k_words = T.view(k, (KEYS, words), T.uint32)
            k_part = T.alloc_shared((KEYS, 32), T.int8)
            k_scales = T.alloc_fragment((KEYS,), T.uint32)
            k_base = T.alloc_fragment((KEYS,), T.uint32)
            k_far = T.alloc_fragment((KEYS,), T.int32)
            apart = T.alloc_fragment((1,), T.int32)
            k_scale = T.alloc_fragment((KEYS,), T.float32)
            page = T.alloc_fragment((KEYS,), T.int32)
            entry = T.alloc_fragment((KEYS,), T.int32)
            dot = T.alloc_fragment((KEYS, rows), T.int32)
            score = T.alloc_fragment((KEYS, rows), T.float32)
            part = T.alloc_fragment((KEYS, 16), T.float32)
            logit = T.alloc_fragment((KEYS,), T.float32)
            T.copy(W[t, 0:rows], weight)
            for h in T.Parallel(rows):
                near = T.uint32(127 * 0x01010101)
                q_scales[h] = T.if_then_else(h < heads, T.reinterpret(Q[t, h, groups], T.uint32), near)
            for h in T.Parallel(rows):
                examine(q_scales[h], q_base, q_far, h)
            T.reduce_max(q_far, q_apart, dim=0)
            for h in T.Parallel(rows):
                q_scale[h] = power(q_base[h]) * 0.25
            for h, j in T.Parallel(rows, groups):
                code = (q_scales[h] >> T.cast(j // half * 8, T.uint32)) & 255
                shift = T.if_then_else(q_apart[0] == 0, code - q_base[h], 0)
                pairs = T.reinterpret(Q[t, h, j], T.uint32)
                q_words[h, j] = above_middle(pairs, shift) ^ 0x80808080
                q_words[h, groups + j] = above_middle(pairs >> 4, shift) ^ 0x80808080
            T.copy(q_plain, q)
            T.reduce_sum(q_plain, q_sum, dim=1)
            for h in T.Parallel(rows):
                q_sum[h] = 128 * q_sum[h]
            for step in T.serial(STEPS):
                first = (bx * STEPS + step) * KEYS
                if first < S:
                    if first < Visible[t]:
                        if page_size % KEYS == 0:  # a tile is a piece of one page
                            whole = Table[Sequence[t], first // page_size]
                            start = first % page_size
                            for c in T.Parallel(KEYS):
                                k_scales[c] = T.reinterpret(Cache[whole, page_size * groups + start + c], T.uint32)
                        else:
                            for c in T.Parallel(KEYS):
                                at = T.min(first + c, Visible[t] - 1)
                                page[c] = Table[Sequence[t], at // page_size]
                                entry[c] = at % page_size
                                k_scales[c] = T.reinterpret(Cache[page[c], page_size * groups + entry[c]], T.uint32)
                        for c in T.Parallel(KEYS):
                            examine(k_scales[c], k_base, k_far, c)
                        T.reduce_max(k_far, apart, dim=0)
                        apart[0] = T.max(apart[0], q_apart[0])
                        for c, j in T.Parallel(KEYS, groups):
                            code = (k_scales[c] >> T.cast(j // half * 8, T.uint32)) & 255
                            shift = T.if_then_else(apart[0] == 0, code - k_base[c], 0)
                            if page_size % KEYS == 0:
                                pairs = T.reinterpret(Cache[whole, (start + c) * groups + j], T.uint32)
                            else:
                                pairs = T.reinterpret(Cache[page[c], entry[c] * groups + j], T.uint32)
                            k_words[c, j] = above_middle(pairs, shift)
                            k_words[c, groups + j] = above_middle(pairs >> 4, shift)
                        if apart[0] == 0:
                            for c in T.Parallel(KEYS):
                                k_scale[c] = power(k_base[c])
                            T.gemm(k, q, dot, transpose_B=True, clear_accum=True)
                            for c, p in T.Parallel(KEYS, 16):
                                total = T.alloc_var(T.float32, 0.0)
                                for g in T.unroll(rows // 16):
                                    h = g * 16 + p
                                    value = T.cast(dot[c, h] - q_sum[h], T.float32) * (q_scale[h] * k_scale[c])
                                    total = total + weight[h] * T.max(value, 0.0)
                                part[c, p] = total
                        else:
                            T.clear(score)
                            for b in T.serial(SCALES):
                                byte = T.cast(b * 8, T.uint32)
                                for c, j in T.Parallel(KEYS, 32):
                                    k_part[c, j] = T.cast(k[c, j // 16 * CODES + b * 16 + j % 16], T.int32) - 128
                                for h, j in T.Parallel(rows, 32):
                                    q_part[h, j] = q_plain[h, j // 16 * CODES + b * 16 + j % 16]
                                T.gemm(k_part, q_part, dot, transpose_B=True, clear_accum=True)
                                for c, h in T.Parallel(KEYS, rows):
                                    own = T.if_then_else(q_apart[0] == 0, q_base[h], (q_scales[h] >> byte) & 255)
                                    factor = power(own) * 0.25 * power((k_scales[c] >> byte) & 255)
                                    score[c, h] = score[c, h] + T.cast(dot[c, h], T.float32) * factor
                            for c, p in T.Parallel(KEYS, 16):
                                total = T.alloc_var(T.float32, 0.0)
                                for g in T.unroll(rows // 16):
                                    total = total + weight[g * 16 + p] * T.max(score[c, g * 16 + p], 0.0)
                                part[c, p] = total
                        T.reduce_sum(part, logit, dim=1)
                        for c in T.Parallel(KEYS):
                            seen = first + c < Visible[t]
                            L[t, first + c] = T.if_then_else(seen, logit[c], -T.infinity(T.float32))
                    else:
                        for c in T.Parallel(KEYS):
                            L[t, first + c] = -T.infinity(T.float32)

    return index_logits


_index_logits_kernel = cache(index_logits_kernel)


def as_words(x: Any) -> Any:
    """Bytes [..., n] as int32 [..., n / 4], copied where they do not begin at one."""
    x = arrays.dense(x)
    if is_torch(x):
        return (x.clone() if address_of(x) % 4 else x).view(sys.modules["torch"].int32)
    return (x.copy() if address_of(x) % 4 else x).view(np.int32)


def index_logits(
    q: Any,
    weights: Any,
    cache: Any,
    page_size: int,
    visible: Any,
    length: int,
    *,
    block_table: Any = None,
    sequence: Any = None,
    out_dtype: Any = "float32",
    target: Any = None,
) -> Any:
    """Scores of compressed blocks: logits[t, s] = sum over h of weights[t, h] max(q[t, h] . k[s], 0).

    q            uint8 [tokens, heads, 68] (index_queries)
    weights      [tokens, heads] float32; DeepSeek-V4's carry a factor of 128^-0.5 heads^-0.5
    cache        uint8 [pages, index_page_bytes(page_size)] (write_index_keys)
    visible      [tokens] int32: blocks that a token sees (visible_blocks)
    length       columns of the result; at least the largest of visible
    block_table  [sequences, n] int32: block s lies in page table[s // page_size]; None: in page s // page_size
    sequence     [tokens] int32, a token's row of the table; None: 0
    out_dtype    "float32", or "bfloat16" (which halves the time of the selection)
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, length], -inf where s >= visible[t]. q . k is exact for the products that share scales; their four
    sums and those over heads are float32 in a fixed order. The same bits in any batch and on every CPU target.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for visible outside of 0 ... length, and pages and
    sequences that do not exist (where they lie on the host).
    """
    name = "index_logits"
    out = arrays.choice(name, "out_dtype", out_dtype, ("float32", "bfloat16"))
    key = CODES + SCALES
    m, heads, given = check_lookup(
        name, q, key, weights, cache, page_size, index_page_bytes(page_size), visible, length, block_table, sequence
    )
    logits = allocate((m, int(length)), out, q)
    if m and length:
        kernel = _index_logits_kernel(heads, page_size, out, tiles_for(target).threads)
        given[0], given[2] = as_words(given[0]), as_words(given[2])
        kernel(*given, logits, target=target)
    return logits


def check_lookup(
    name: str, q: Any, width: int, weights: Any, cache: Any, page_size: int, bytes_per_page: int, visible: Any,
    length: int, block_table: Any, sequence: Any,
) -> tuple[int, int, list[Any]]:  # fmt: skip
    """Tokens, heads, and dense q, weights, cache, block_table, sequence and visible as the kernels of logits take them.
    Raises TileTypeError or TileValueError unless they fit; a query has `width` bytes."""
    arrays.dtype_of(name, "q", q, ("uint8",))
    m, heads, bytes_of_query = arrays.rank(name, "q", q, f"tokens, heads, {width}")
    pages = check_cache(name, "cache", cache, page_size, bytes_per_page) // page_size
    arrays.dtype_of(name, "weights", weights, ("float32",))
    arrays.dtype_of(name, "visible", visible, ("int32",))
    if bytes_of_query != width or tuple(weights.shape) != (m, heads) or tuple(visible.shape) != (m,):
        given = arrays.describe(q=q, weights=weights, visible=visible)
        raise TileTypeError(f"{name}: {given} do not fit", help=f"a query has {width} bytes")
    if block_table is None:
        block_table = arrays.like_kind(np.arange(pages, dtype=np.int32)[None], q)
    arrays.dtype_of(name, "block_table", block_table, ("int32",))
    rows, per = arrays.rank(name, "block_table", block_table, "sequences, pages")
    sequence = arrays.like_kind(np.zeros(m, np.int32), q) if sequence is None else sequence
    arrays.dtype_of(name, "sequence", sequence, ("int32",))
    if tuple(sequence.shape) != (m,):
        raise TileTypeError(f"{name}: {arrays.describe(sequence=sequence)}, expected [{m}]")
    arrays.check_size(name, "visible", visible, 0, min(int(length), per * page_size))
    arrays.check_size(name, "block_table", block_table, 0, max(pages - 1, 0))
    arrays.check_size(name, "sequence", sequence, 0, rows - 1)
    return m, heads, [arrays.dense(x) for x in (q, weights, cache, block_table, sequence, visible)]


@tiledsl.jit
def keep_visible_kernel(threads: int = 128) -> Any:
    """I[t, j] = -1 where it is no column below Visible[t]."""
    M, K = T.dynamic("M"), T.dynamic("K")

    @T.prim_func
    def keep_visible(I: T.Tensor((M, K), T.int32), Visible: T.Tensor((M,), T.int32)):
        with T.Kernel(T.ceildiv(K, 256), M, threads=threads) as (bx, t):
            for j in T.Parallel(256):
                if bx * 256 + j < K:
                    found = I[t, bx * 256 + j]
                    I[t, bx * 256 + j] = T.if_then_else(found < Visible[t], found, -1)

    return keep_visible


_keep_visible_kernel = cache(keep_visible_kernel)


def select_blocks(logits: Any, k: int, visible: Any, *, target: Any = None) -> Any:
    """The blocks with the k largest logits of each token, largest first, of equals the lowest block.

    logits   [tokens, n] float32 or bfloat16, -inf for invisible blocks (index_logits)
    k        how many; where n is less, all n
    visible  [tokens] int32
    target   where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, min(k, n)] int32, with -1 in place of blocks that are not visible: a token that sees fewer than k
    has its last ones -1. A NaN counts as larger than everything.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError unless k is positive.
    """
    m, n = arrays.rank("select_blocks", "logits", logits, "tokens, n")
    arrays.dtype_of("select_blocks", "visible", visible, ("int32",))
    if tuple(visible.shape) != (m,):
        raise TileTypeError(f"select_blocks: {arrays.describe(logits=logits, visible=visible)}, expected [{m}]")
    if n == 0 and k > 0:
        return allocate((m, 0), as_dtype("int32"), logits)
    _, found = top_k(logits, min(int(k), n), target=target)
    if m:
        _keep_visible_kernel(tiles_for(target).threads)(found, arrays.dense(visible), target=target)
    return found
