"""DeepSeek-V3.2's indexer, the baseline: FP8 keys and queries with one scale each, normalised with mean and variance.

A key has 132 bytes: 128 e4m3 codes, one float32. A page of n keys holds n x 128 bytes, then n x 4. Queries have the
same form, one to a page.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.kernels import arrays
from tiledsl.kernels.deepseek_v4.entries import places, rotated, write_rows
from tiledsl.kernels.deepseek_v4.indexer import DIM, KEYS, ROPE, ROWS, check_lookup, query_slots, rotate_all
from tiledsl.kernels.quant.scales import E4M3, FLOOR, scale_of
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["index_logits_fp8", "index_logits_fp8_kernel", "index_page_bytes_fp8", "index_queries_fp8"]
__all__ += ["load_float", "store_float", "write_index_keys_fp8", "write_index_keys_fp8_kernel"]

SCALE = 4  # bytes


def index_page_bytes_fp8(page_size: int) -> int:
    """Bytes of a page of so many keys."""
    return page_size * (DIM + SCALE)


@T.macro
def store_float(cache, page, where, value):
    """A float32 as four bytes, the lowest first."""
    bits = T.reinterpret(value, T.uint32)
    for b in T.unroll(4):
        cache[page, where + b] = T.cast((bits >> (8 * b)) & 255, T.uint8)


def load_float(buffer: Any, *where: Any) -> Any:
    """The float32 of four bytes, the first of which lies there."""
    *lead, first = where
    bits = T.cast(buffer[(*lead, first)], T.uint32)
    for b in (1, 2, 3):
        bits = bits | (T.cast(buffer[(*lead, first + b)], T.uint32) << (8 * b))
    return T.reinterpret(bits, T.float32)


@tiledsl.jit
def write_index_keys_fp8_kernel(page_size: int, dtype: DType, normalise: bool, threads: int = 128) -> Any:
    """x rounded to bfloat16, normalised, its first 64 rotated in pairs 32 apart, multiplied by Hadamard's matrix /
    sqrt(128), each step rounded to bfloat16; then FP8 and to its slot."""
    N, P, pages = T.dynamic("N"), T.dynamic("P"), T.dynamic("pages")
    ldx = T.dynamic("ldx", "int64")
    half = ROPE // 2

    @T.prim_func
    def write_index_keys_fp8(
        X: T.StridedTensor((N, DIM), (ldx, 1), dtype),
        W: T.Tensor((DIM,), T.float32),
        Bias: T.Tensor((DIM,), T.float32),
        eps: T.float32,
        Cos: T.Tensor((P, half), T.float32),
        Sin: T.Tensor((P, half), T.float32),
        At: T.Tensor((N,), T.int32),
        Slots: T.Tensor((N,), T.int32),
        Cache: T.Tensor((pages, page_size * (DIM + SCALE)), T.uint8),
    ):
        with T.Kernel(T.ceildiv(N, ROWS), threads=threads) as by:
            x = T.alloc_shared((ROWS, DIM), "bfloat16")
            y = T.alloc_shared((ROWS, DIM), T.float32)
            turned = T.alloc_shared((ROWS, DIM), T.float32)
            total = T.alloc_fragment((ROWS,), T.float32)
            mean = T.alloc_fragment((ROWS,), T.float32)
            largest = T.alloc_fragment((ROWS,), T.float32)
            scale = T.alloc_fragment((ROWS,), T.float32)
            page = T.alloc_fragment((ROWS,), T.int32)
            entry = T.alloc_fragment((ROWS,), T.int32)
            places(Slots, by * ROWS, page, entry, page_size)
            T.copy(X[by * ROWS, 0], x)
            if normalise:
                T.copy(x, y)
                T.reduce_sum(y, total, dim=1)
                for i in T.Parallel(ROWS):
                    mean[i] = total[i] / DIM
                for i, j in T.Parallel(ROWS, DIM):
                    y[i, j] = (x[i, j] - mean[i]) * (x[i, j] - mean[i])
                T.reduce_sum(y, total, dim=1)
                for i, j in T.Parallel(ROWS, DIM):
                    x[i, j] = (x[i, j] - mean[i]) * T.rsqrt(total[i] / DIM + eps) * W[j] + Bias[j]
            T.copy(x, y)
            for i, p in T.Parallel(ROWS, half):
                at = At[by * ROWS + i]
                a, b = rotated(x[i, p], x[i, half + p], Cos[at, p], Sin[at, p])
                y[i, p] = a
                y[i, half + p] = b
            rotate_all(y, turned, rows=ROWS)
            T.reduce_absmax(y, largest, dim=1)
            for i in T.Parallel(ROWS):
                scale[i] = scale_of(largest[i], FLOOR, as_dtype(E4M3), as_dtype("float32"))
                store_float(Cache, page[i], page_size * DIM + entry[i] * SCALE, scale[i])
            for i, j in T.Parallel(ROWS, DIM):
                Cache[page[i], entry[i] * DIM + j] = T.reinterpret(T.cast(y[i, j] / scale[i], E4M3), T.uint8)

    return write_index_keys_fp8


@tiledsl.jit
def index_logits_fp8_kernel(heads: int, page_size: int = 64, threads: int = 128) -> Any:
    """L[t, s] = scale of k[s] * sum over h of w[t, h] scale of q[t, h] max(q[t, h] . k[s], 0) for s < Visible[t], -inf
    beyond."""
    M, S, pages, per, sequences = (T.dynamic(s) for s in ("M", "S", "pages", "per", "sequences"))

    @T.prim_func
    def index_logits_fp8(
        Q: T.Tensor((M, heads, DIM + SCALE), T.uint8),
        W: T.Tensor((M, heads), T.float32),
        Cache: T.Tensor((pages, page_size * (DIM + SCALE)), T.uint8),
        Table: T.Tensor((sequences, per), T.int32),
        Sequence: T.Tensor((M,), T.int32),
        Visible: T.Tensor((M,), T.int32),
        L: T.Tensor((M, S), T.float32),
    ):
        with T.Kernel(T.ceildiv(S, KEYS), M, threads=threads) as (bx, t):
            q = T.alloc_shared((heads, DIM), E4M3)
            k = T.alloc_shared((KEYS, DIM), E4M3)
            weight = T.alloc_fragment((heads,), T.float32)
            k_scale = T.alloc_fragment((KEYS,), T.float32)
            page = T.alloc_fragment((KEYS,), T.int32)
            entry = T.alloc_fragment((KEYS,), T.int32)
            score = T.alloc_fragment((heads, KEYS), T.float32)
            logit = T.alloc_fragment((KEYS,), T.float32)
            T.clear(logit)
            T.clear(k_scale)
            if bx * KEYS < Visible[t]:
                for h, j in T.Parallel(heads, DIM):
                    q[h, j] = T.reinterpret(Q[t, h, j], E4M3)
                for h in T.Parallel(heads):
                    weight[h] = W[t, h] * load_float(Q, t, h, DIM)
                for c in T.Parallel(KEYS):
                    at = T.min(bx * KEYS + c, Visible[t] - 1)
                    page[c] = Table[Sequence[t], at // page_size]
                    entry[c] = at % page_size
                for c, j in T.Parallel(KEYS, DIM):
                    k[c, j] = T.reinterpret(Cache[page[c], entry[c] * DIM + j], E4M3)
                for c in T.Parallel(KEYS):
                    k_scale[c] = load_float(Cache, page[c], page_size * DIM + entry[c] * SCALE)
                T.gemm(q, k, score, transpose_B=True, clear_accum=True)
                for h, c in T.Parallel(heads, KEYS):
                    score[h, c] = weight[h] * T.max(score[h, c], 0.0)
                T.reduce_sum(score, logit, dim=0)
            for c in T.Parallel(KEYS):
                at = bx * KEYS + c
                L[t, at] = T.if_then_else(at < Visible[t], logit[c] * k_scale[c], -T.infinity(T.float32))

    return index_logits_fp8


_write_index_keys_fp8_kernel = cache(write_index_keys_fp8_kernel)  # the same values, the same kernel
_index_logits_fp8_kernel = cache(index_logits_fp8_kernel)


def write_index_keys_fp8(
    x: Any,
    weight: Any,
    bias: Any,
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
    """Write keys of DeepSeek-V3.2's indexer: y = (x - mean) / sqrt(variance + eps) * weight + bias, the first 64 of 128
    elements rotated in pairs (j, j + 32), then H y / sqrt(128) with Hadamard's matrix, each rounded to bfloat16; cast
    as per_token_cast(block=128) does.

    x             [n, 128] float32 or bfloat16; NumPy (ml_dtypes) or torch
    weight, bias  [128] float32 of the norm; both None: no norm
    cos, sin      [positions, 32] float32 (rope_tables)
    positions     [n] int32
    slots         [n] int32: key slot % page_size of page slot // page_size; what lies outside of the cache is not
                  written
    cache         [pages, index_page_bytes_fp8(page_size)] uint8, written in place
    target        where to run (default: TILEDSL_TARGET, else auto)

    Bit-exact on every CPU target; a key does not depend on others.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for positions outside of the tables (where they lie
    on the host) and a negative eps.
    """
    name, norm, tables = "write_index_keys_fp8", (weight, bias), (cos, sin, positions, slots)
    kernel = _write_index_keys_fp8_kernel
    write_rows(name, kernel, DIM, x, norm, eps, tables, cache, page_size, index_page_bytes_fp8, target)


def index_queries_fp8(q: Any, cos: Any, sin: Any, positions: Any, *, target: Any = None) -> Any:
    """Queries of V3.2's indexer in the form of keys, without a norm: uint8 [tokens, heads, 132], codes and a scale.

    q          [tokens, heads, 128] bfloat16 or float32; NumPy (ml_dtypes) or torch
    cos, sin   [positions, 32] float32 (rope_tables)
    positions  [tokens] int32
    target     where to run (default: TILEDSL_TARGET, else auto)

    Raises TileTypeError and TileValueError as write_index_keys_fp8.
    """
    m, heads, at, slots = query_slots("index_queries_fp8", q, positions)
    made = allocate((m * heads, DIM + SCALE), as_dtype("uint8"), q)
    flat = arrays.dense(q).reshape(m * heads, q.shape[2])
    write_index_keys_fp8(flat, None, None, cos, sin, at, slots, made, 1, target=target)
    return made.reshape(m, heads, DIM + SCALE)


def index_logits_fp8(
    q: Any,
    weights: Any,
    cache: Any,
    page_size: int,
    visible: Any,
    length: int,
    *,
    block_table: Any = None,
    sequence: Any = None,
    target: Any = None,
) -> Any:
    """Scores of tokens by DeepSeek-V3.2's indexer: logits[t, s] = scale of k[s] * sum over h of
    (weights[t, h] * scale of q[t, h]) max(q[t, h] . k[s], 0).

    q            uint8 [tokens, heads, 132] (index_queries_fp8)
    weights      [tokens, heads] float32; DeepSeek-V3.2's carry a factor of 128^-0.5 heads^-0.5
    cache        uint8 [pages, index_page_bytes_fp8(page_size)] (write_index_keys_fp8)
    visible, length, block_table, sequence, target   as in index_logits

    Returns [tokens, length] float32, -inf where s >= visible[t]; select_blocks takes it. The same bits in any batch and
    on every CPU target.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for visible outside of 0 ... length, and pages and
    sequences that do not exist (where they lie on the host).
    """
    name, key = "index_logits_fp8", DIM + SCALE
    m, heads, given = check_lookup(
        name, q, key, weights, cache, page_size, index_page_bytes_fp8(page_size), visible, length, block_table, sequence
    )
    logits = allocate((m, int(length)), as_dtype("float32"), q)
    if m and length and heads:
        kernel = _index_logits_fp8_kernel(heads, page_size, tiles_for(target).threads)
        kernel(*given, logits, target=target)
    return logits
