"""Attention over chosen blocks of keys: a mask or a list of blocks for each block of queries."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.attention_args import check_heads, check_layout, check_scale, prepare
from tiledsl.kernels.attention_block import LN_2, LOG2_E, clear_softmax, online_softmax, view_strides
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["block_sparse_attention", "block_sparse_attention_kernel"]


@tiledsl.jit
def block_sparse_attention_kernel(
    block_M: int, block_N: int, head_dim: int, causal: bool, listed: bool, dtype: DType, threads: int = 128
) -> Any:
    """As flash_attention, but a block of queries visits blocks of keys where Blocks[b, h, m, n] is true, or (listed)
    the blocks Blocks[b, h, m, :], those below 0 left out."""
    batch, heads, kv_heads = T.dynamic("batch"), T.dynamic("heads"), T.dynamic("kv_heads")
    seq_q, seq_kv, entries = T.dynamic("seq_q"), T.dynamic("seq_kv"), T.dynamic("entries")
    q_strides, k_strides, v_strides, o_strides = (view_strides(x) for x in "qkvo")
    m_strides = tuple(T.dynamic(f"m_{d}", "int64") for d in ("batch", "head", "row", "entry"))
    q_blocks = T.dynamic("q_blocks")
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def block_sparse_attention(
        Q: T.StridedTensor((batch, heads, seq_q, head_dim), q_strides, dtype),
        K: T.StridedTensor((batch, kv_heads, seq_kv, head_dim), k_strides, dtype),
        V: T.StridedTensor((batch, kv_heads, seq_kv, head_dim), v_strides, dtype),
        Blocks: T.StridedTensor((batch, heads, q_blocks, entries), m_strides, T.int32 if listed else T.bool),
        scale_log2: wide,
        O: T.StridedTensor((batch, heads, seq_q, head_dim), o_strides, dtype),
        LSE: T.Tensor((batch, heads, seq_q), wide),
    ):
        with T.Kernel(T.ceildiv(seq_q, block_M), heads, batch, threads=threads) as (m, h, b):
            kv_head = h // (heads // kv_heads)
            T.assume(kv_head < kv_heads)
            Q_s = T.alloc_shared((block_M, head_dim), dtype)
            K_s = T.alloc_shared((block_N, head_dim), dtype)
            V_s = T.alloc_shared((block_N, head_dim), dtype)
            S = T.alloc_fragment((block_M, block_N), wide)
            P = T.alloc_fragment((block_M, block_N), dtype)
            acc = T.alloc_fragment((block_M, head_dim), wide)
            peak = T.alloc_fragment((block_M,), wide)
            before = T.alloc_fragment((block_M,), wide)
            origin = T.alloc_fragment((block_M,), wide)
            shrink = T.alloc_fragment((block_M,), wide)
            part = T.alloc_fragment((block_M,), wide)
            total = T.alloc_fragment((block_M,), wide)
            row = m * block_M
            lead = seq_kv - seq_q
            T.copy(Q[b, h, row, 0], Q_s)
            clear_softmax(acc, peak, origin, total)
            for e in T.serial(entries):
                n = Blocks[b, h, m, e] if listed else T.if_then_else(Blocks[b, h, m, e], e, -1)
                beyond = n * block_N > row + block_M - 1 + lead if causal else n * block_N >= seq_kv
                if n >= 0 and not beyond:
                    T.copy(K[b, kv_head, n * block_N, 0], K_s)
                    T.gemm(Q_s, K_s, S, transpose_B=True, clear_accum=True)
                    for i, j in T.Parallel(block_M, block_N):
                        key = n * block_N + j
                        visible = key <= row + i + lead if causal else key < seq_kv
                        S[i, j] = T.if_then_else(visible, S[i, j] * scale_log2, -T.infinity(wide))
                    online_softmax(
                        S, P, acc, peak, before, origin, shrink, part, total,
                        rows=block_M, keys=block_N, value_dim=head_dim,
                    )  # fmt: skip
                    T.copy(V[b, kv_head, n * block_N, 0], V_s)
                    T.gemm(P, V_s, acc)
            for i, j in T.Parallel(block_M, head_dim):
                if row + i < seq_q:
                    O[b, h, row + i, j] = T.if_then_else(total[i] == 0.0, 0.0, acc[i, j] / total[i])
            for i in T.Parallel(block_M):
                if row + i < seq_q:
                    LSE[b, h, row + i] = T.if_then_else(
                        total[i] == 0.0, -T.infinity(wide), peak[i] * wide(LN_2) + T.log(total[i])
                    )

    return block_sparse_attention


_block_sparse_kernel = cache(block_sparse_attention_kernel)  # the same values, the same kernel


def block_sparse_attention(
    q: Any,
    k: Any,
    v: Any,
    *,
    block_mask: Any = None,
    block_indices: Any = None,
    block_size: tuple[int, int] = (64, 64),
    causal: bool = False,
    scale: float | None = None,
    return_lse: bool = False,
    layout: str = "bshd",
    out: Any = None,
    target: Any = None,
) -> Any:
    """Attention in which a block of queries sees chosen blocks of keys only; what it does not see costs nothing
    (as in Child et al., "Generating Long Sequences with Sparse Transformers", 2019).

    q, k, v, causal, scale, return_lse, layout, out, target   as in flash_attention
    block_size     (queries, keys) of a block
    block_mask     bool [batch, heads, query blocks, key blocks]: who sees whom; batch and heads may be 1 for "all"
    block_indices  in its place: int32 or int64 [batch, heads, query blocks, entries], the key blocks that a query
                   block sees, each at most once; entries below 0 are left out

    Returns an array like q, or (that, lse). Queries that see no key give 0 and lse -inf. Blocks are added in the
    order of the mask or the list, so ascending lists give the bits of the mask. Bits depend on a block's own row.

    Raises TileTypeError for wrong dtypes or shapes, or unless one of mask and indices is given; TileValueError for
    an unknown layout, block sizes below 1, key blocks that do not exist (where the list lies on the host), a scale
    that is not finite, or an out that shares memory with an input.
    """
    name = "block_sparse_attention"
    dims = check_layout(name, layout)
    dtype, out = prepare(name, dims, q, k, v, out)
    Q, K, V, O = (x.swapaxes(1, 2) if layout == "bshd" else x for x in (q, k, v, out))
    check_heads(name, dims, Q, K, V, (q, k, v))
    batch, heads, seq_q, head_dim = Q.shape
    if K.shape[0] != batch:
        raise TileTypeError(f"{name}: q and k differ in batch: {arrays.describe(q=q, k=k)}")
    rows, keys = (int(n) for n in block_size)
    if rows < 1 or keys < 1:
        raise TileValueError(f"{name}: block_size is {block_size}, expected two numbers from 1 on")
    blocks = _blocks(name, block_mask, block_indices, (batch, heads, -(-seq_q // rows)), -(-K.shape[2] // keys))
    scale = check_scale(name, scale, head_dim)
    lse = allocate((batch, heads, seq_q), arrays.accumulator(dtype), q)
    if batch and heads and seq_q:
        listed = block_mask is None
        kernel = _block_sparse_kernel(rows, keys, head_dim, bool(causal), listed, dtype, tiles_for(target).threads)
        Q, K, V = (arrays.unit_last(x) for x in (Q, K, V))
        kernel(Q, K, V, blocks, scale * LOG2_E, O, lse, target=target)
    return (out, lse) if return_lse else out


def _blocks(name: str, mask: Any, indices: Any, shape: tuple[int, int, int], key_blocks: int) -> Any:
    """The mask, or the list as int32, as [batch, heads, query blocks, entries] (with stride 0 where one stands for
    all). Raises TileTypeError or TileValueError."""
    given, what = (indices, "block_indices") if mask is None else (mask, "block_mask")
    if (mask is None) is (indices is None):
        raise TileTypeError(f"{name}: pass either block_mask or block_indices")
    arrays.dtype_of(name, what, given, ("bool",) if mask is not None else ("int32", "int64"))
    found = arrays.rank(name, what, given, "batch, heads, query blocks, entries")
    fits = all(n in (1, m) for n, m in zip(found[:2], shape[:2], strict=True)) and found[2] == shape[2]
    if not fits or (mask is not None and found[3] != key_blocks):
        raise TileTypeError(
            f"{name}: {arrays.describe(**{what: given})}, expected {(*shape, key_blocks if mask is not None else 'n')}",
            help="batch and heads may be 1; the blocks cover the queries and keys",
        )
    if mask is None:
        known = arrays.on_host(given)
        if known is not None and known.size and known.max() >= key_blocks:
            raise TileValueError(f"{name}: block_indices holds {known.max()}, but keys have {key_blocks} blocks")
        given = arrays.as_int32(given)
    whole = (*shape, found[3])
    return np.broadcast_to(given, whole) if isinstance(given, np.ndarray) else given.expand(whole)
