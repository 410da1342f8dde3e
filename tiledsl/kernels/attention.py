"""Flash attention: softmax(Q K^T) V in one pass over K and V, nothing of the size of Q K^T in memory.

`attention_block.py` holds the mathematics; here are the launches and the functions, for batches of equal and of
different lengths.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.attention_args import (
    check_heads,
    check_layout,
    check_scale,
    check_sink,
    checked_bounds,
    prepare,
    window_limits,
)
from tiledsl.kernels.attention_block import LOG2_E, attend, view_strides
from tiledsl.kernels.tiles import KV_TILE, Tiles, fit, tiles_for
from tiledsl.runtime import allocate

__all__ = ["flash_attention", "flash_attention_kernel", "flash_attention_varlen", "flash_attention_varlen_kernel"]


@tiledsl.jit
def flash_attention_kernel(
    block_M: int,
    block_N: int,
    head_dim: int,
    causal: bool,
    dtype: DType,
    window: bool = False,
    sink: bool = False,
    threads: int = 128,
) -> Any:
    """O = softmax(scale Q K^T) V and LSE, the logarithm of the softmax's denominator."""
    batch, heads, kv_heads = T.dynamic("batch"), T.dynamic("heads"), T.dynamic("kv_heads")
    seq_q, seq_kv = T.dynamic("seq_q"), T.dynamic("seq_kv")
    q_strides, k_strides, v_strides, o_strides = (view_strides(x) for x in "qkvo")
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def flash_attention(
        Q: T.StridedTensor((batch, heads, seq_q, head_dim), q_strides, dtype),
        K: T.StridedTensor((batch, kv_heads, seq_kv, head_dim), k_strides, dtype),
        V: T.StridedTensor((batch, kv_heads, seq_kv, head_dim), v_strides, dtype),
        scale_log2: wide,
        left: T.int32,
        right: T.int32,
        SINK: T.Tensor((heads,), wide),
        O: T.StridedTensor((batch, heads, seq_q, head_dim), o_strides, dtype),
        LSE: T.Tensor((batch, heads, seq_q), wide),
    ):
        with T.Kernel(T.ceildiv(seq_q, block_M), heads, batch, threads=threads) as (bx, by, bz):
            kv_head = by // (heads // kv_heads)
            T.assume(kv_head < kv_heads)
            attend(
                Q, K, V, scale_log2, left, right, SINK, O, LSE, bz, by, kv_head, bx * block_M, 0, seq_q, 0, seq_kv,
                block_M=block_M, block_N=block_N, head_dim=head_dim, causal=causal, window=window, sink=sink,
                dtype=dtype,
            )  # fmt: skip

    return flash_attention


@tiledsl.jit
def flash_attention_varlen_kernel(
    block_M: int,
    block_N: int,
    head_dim: int,
    causal: bool,
    dtype: DType,
    window: bool = False,
    sink: bool = False,
    threads: int = 128,
) -> Any:
    """As above for sequences packed one after the other: sequence s owns rows ends[s] ... ends[s + 1] - 1."""
    one, heads, kv_heads = T.dynamic("one"), T.dynamic("heads"), T.dynamic("kv_heads")
    total_q, total_kv, bounds = T.dynamic("total_q"), T.dynamic("total_kv"), T.dynamic("bounds")
    q_strides, k_strides, v_strides, o_strides = (view_strides(x) for x in "qkvo")
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def flash_attention_varlen(
        Q: T.StridedTensor((one, heads, total_q, head_dim), q_strides, dtype),
        K: T.StridedTensor((one, kv_heads, total_kv, head_dim), k_strides, dtype),
        V: T.StridedTensor((one, kv_heads, total_kv, head_dim), v_strides, dtype),
        q_ends: T.Tensor((bounds,), T.int32),
        kv_ends: T.Tensor((bounds,), T.int32),
        longest: T.int32,
        scale_log2: wide,
        left: T.int32,
        right: T.int32,
        SINK: T.Tensor((heads,), wide),
        O: T.StridedTensor((one, heads, total_q, head_dim), o_strides, dtype),
        LSE: T.Tensor((one, heads, total_q), wide),
    ):
        with T.Kernel(T.ceildiv(longest, block_M), heads, bounds - 1, threads=threads) as (bx, by, bz):
            kv_head = by // (heads // kv_heads)
            T.assume(kv_head < kv_heads)
            q_start, kv_start = q_ends[bz], kv_ends[bz]
            q_len = q_ends[bz + 1] - q_start
            kv_len = kv_ends[bz + 1] - kv_start
            if bx * block_M < q_len:
                attend(
                    Q, K, V, scale_log2, left, right, SINK, O, LSE, 0, by, kv_head, bx * block_M,
                    q_start, q_len, kv_start, kv_len,
                    block_M=block_M, block_N=block_N, head_dim=head_dim, causal=causal, window=window, sink=sink,
                    dtype=dtype,
                )  # fmt: skip

    return flash_attention_varlen


_flash_attention_kernel = cache(flash_attention_kernel)  # the same values, the same kernel


def flash_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    sink: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
    layout: str = "bshd",
    out: Any = None,
    target: Any = None,
) -> Any:
    """Attention o_i = sum_j p_ij v_j with p_ij = exp(scale q_i . k_j) / sum_j exp(scale q_i . k_j), computed with
    the online softmax (Milakov and Gimelshein, 2018; tiled as in Dao, "FlashAttention-2", 2023).

    q           [batch, seq_q, heads, head_dim]; layout="bhsd": [batch, heads, seq_q, head_dim]
    k, v        the same with seq_kv and kv_heads; heads must be a multiple of kv_heads (grouped queries: query
                head h reads key head h // (heads / kv_heads))
    causal      query i sees keys j <= i + seq_kv - seq_q: the ends are aligned
    window      (left, right), inclusive: query i sees keys j with -left <= j - (i + seq_kv - seq_q) <= right only;
                None in place of a number: no limit on that side
    sink        [heads] float32: exp(sink) joins the denominator, as a key with score `sink` (in units of the scores,
                after the scale) and value 0 would (Xiao et al., "Efficient Streaming Language Models with Attention
                Sinks", 2023)
    scale       default 1 / sqrt(head_dim)
    return_lse  also return log sum_j exp(scale q_i . k_j), natural logarithm, without the sink, float32 [batch,
                heads, seq_q]
    out         array like q that receives the result
    target      where to run (default: TILEDSL_TARGET, else auto)

    float32, float16, bfloat16 or float64, one dtype for all; NumPy (ml_dtypes) or torch; strided views are read in
    place. Returns an array like q, or (that, lse). Queries that see no key give 0 and lse -inf. Scores, softmax and
    sums are float32 (float64 for float64, and so are then sink and lse); p is rounded to the inputs' dtype before it
    meets v. Finite inputs give the same bits for any batch, any set of other queries, any number of threads, and
    every CPU target.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for an unknown layout, a scale that is not
    finite, a negative window, or an out that shares memory with an input.
    """
    dims = check_layout("flash_attention", layout)
    dtype, out = prepare("flash_attention", dims, q, k, v, out)
    # The kernel sees [batch, heads, seq, head_dim]; the layouts differ in strides only.
    Q, K, V, O = (x.swapaxes(1, 2) if layout == "bshd" else x for x in (q, k, v, out))
    check_heads("flash_attention", dims, Q, K, V, (q, k, v))
    batch, heads, seq_q, head_dim = Q.shape
    if K.shape[0] != batch:
        raise TileTypeError(f"flash_attention: q and k differ in batch: {arrays.describe(q=q, k=k)}")
    scale = check_scale("flash_attention", scale, head_dim)
    limits = window_limits("flash_attention", window, causal, max(seq_q, K.shape[2]))
    sink = check_sink("flash_attention", sink, heads, dtype)
    lse = allocate((batch, heads, seq_q), arrays.accumulator(dtype), q)
    if batch and heads and seq_q:
        tiles = tiles_for(target)
        kernel = _flash_attention_kernel(
            fit(_rows_that_fit(tiles, head_dim, dtype), seq_q),
            KV_TILE,
            head_dim,
            bool(causal),
            dtype,
            limits is not None,
            sink is not None,
            tiles.threads,
        )
        Q, K, V = (arrays.unit_last(x) for x in (Q, K, V))
        kernel(Q, K, V, scale * LOG2_E, *(limits or (0, 0)), sink, O, lse, target=target)
    return (out, lse) if return_lse else out


def _rows_that_fit(tiles: Tiles, head_dim: int, dtype: DType) -> tuple[int, ...]:
    """Tiles of query rows beside a tile of keys and one of values; each row has its probabilities there as well."""
    size = dtype.bytes
    return tiles.within(tiles.attention, (head_dim + KV_TILE) * size, 2 * KV_TILE * head_dim * size)


_flash_attention_varlen_kernel = cache(flash_attention_varlen_kernel)  # the same values, the same kernel


def flash_attention_varlen(
    q: Any,
    k: Any,
    v: Any,
    cu_seqlens_q: Any,
    cu_seqlens_kv: Any = None,
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    sink: Any = None,
    scale: float | None = None,
    return_lse: bool = False,
    out: Any = None,
    target: Any = None,
) -> Any:
    """Attention within each sequence of a packed batch; the formula is that of flash_attention.

    q              [total_q, heads, head_dim]: the sequences one after the other
    k, v           [total_kv, kv_heads, head_dim]
    cu_seqlens_q   [sequences + 1] int32 or int64, ascending from 0 to total_q: sequence s owns rows
                   cu_seqlens_q[s] ... cu_seqlens_q[s + 1] - 1; on the host
    cu_seqlens_kv  the same for k and v; default: that of q
    causal, window, sink, scale, return_lse, out, target as in flash_attention; causal and window are aligned to the
    end of each sequence

    Returns an array like q, or (that, lse) with lse float32 [heads, total_q]. A sequence has the bits that
    flash_attention gives it alone.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for bounds that do not ascend from 0 to the
    number of rows, a scale that is not finite, a negative window, or an out that shares memory with an input.
    """
    name = "flash_attention_varlen"
    dims = "rows, heads, head_dim"
    dtype, out = prepare(name, dims, q, k, v, out)
    Q, K, V, O = (x.swapaxes(0, 1)[None] for x in (q, k, v, out))
    check_heads(name, dims, Q, K, V, (q, k, v))
    cu_seqlens_kv = cu_seqlens_q if cu_seqlens_kv is None else cu_seqlens_kv
    q_ends = checked_bounds(name, "cu_seqlens_q", cu_seqlens_q, Q.shape[2])
    kv_ends = checked_bounds(name, "cu_seqlens_kv", cu_seqlens_kv, K.shape[2])
    if q_ends.shape != kv_ends.shape:
        raise TileTypeError(
            f"{name}: one number of sequences expected: "
            f"{arrays.describe(cu_seqlens_q=cu_seqlens_q, cu_seqlens_kv=cu_seqlens_kv)}"
        )
    _, heads, total_q, head_dim = Q.shape
    scale = check_scale(name, scale, head_dim)
    limits = window_limits(name, window, causal, max(total_q, K.shape[2]))
    sink = check_sink(name, sink, heads, dtype)
    lse = allocate((1, heads, total_q), arrays.accumulator(dtype), q)
    if total_q and heads:
        tiles = tiles_for(target)
        longest = int(np.diff(q_ends).max())
        kernel = _flash_attention_varlen_kernel(
            fit(_rows_that_fit(tiles, head_dim, dtype), -(-total_q // (len(q_ends) - 1))),
            KV_TILE,
            head_dim,
            bool(causal),
            dtype,
            limits is not None,
            sink is not None,
            tiles.threads,
        )
        Q, K, V = (arrays.unit_last(x) for x in (Q, K, V))
        ends = q_ends, kv_ends, longest
        kernel(Q, K, V, *ends, scale * LOG2_E, *(limits or (0, 0)), sink, O, lse, target=target)
    return (out, lse[0]) if return_lse else out
