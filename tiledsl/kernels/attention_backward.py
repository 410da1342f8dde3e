"""The gradient of flash attention: scores are computed again from q, k and the forward pass's lse.

With P = exp(scale Q K^T - lse), dP = dO V^T, delta_i = sum_d dO_id O_id and dS = P * (dP - delta):
dV = P^T dO, dQ = scale dS K, dK = scale dS^T Q. One launch owns tiles of keys and walks over the queries, for dK and
dV; another owns tiles of queries and walks over the keys, for dQ. So every sum has one owner and one order, and
nothing is added atomically, for the price of computing S and dP twice.
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
    window_limits,
)
from tiledsl.kernels.attention_block import LOG2_E, view_strides
from tiledsl.kernels.tiles import fit, tiles_for
from tiledsl.runtime import allocate

__all__ = ["flash_attention_backward", "flash_attention_backward_kernel", "flash_attention_varlen_backward"]

SUM_TILE = 512  # rows that enter a sink's gradient at a time


@T.macro
def probabilities(
    S, first_row, first_key, L, lead, kv_len, scale_log2, left, right, *, rows, keys, masked, causal, window
):
    """S becomes exp2(scale_log2 S - L), 0 where row i may not see key j."""
    for i, j in T.Parallel(rows, keys):
        x = T.exp2(S[i, j] * scale_log2 - L[i])
        if masked:
            key, at = first_key + j, first_row + i + lead
            if window:
                visible = key < kv_len and at - left <= key and key <= at + right
            else:
                visible = key <= at if causal else key < kv_len
            S[i, j] = T.if_then_else(visible, x, 0.0)
        else:
            S[i, j] = x


@tiledsl.jit
def flash_attention_backward_kernel(
    part: str,
    block_M: int,
    block_N: int,
    head_dim: int,
    causal: bool,
    dtype: DType,
    window: bool = False,
    sink: bool = False,
    lse_gradient: bool = False,
    threads: int = 128,
) -> Any:
    """part: "delta" (the rows' constants, before the others), "keys" (dK and dV), "queries" (dQ) or "sink"."""
    batch, heads, kv_heads = T.dynamic("batch"), T.dynamic("heads"), T.dynamic("kv_heads")
    seq_q, seq_kv = T.dynamic("seq_q"), T.dynamic("seq_kv")
    q_strides, k_strides, v_strides, o_strides, g_strides, x_strides, y_strides = (view_strides(x) for x in "qkvogxy")
    q_shape, k_shape = (batch, heads, seq_q, head_dim), (batch, kv_heads, seq_kv, head_dim)
    rows = (batch, heads, seq_q)
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def delta(
        O: T.StridedTensor(q_shape, o_strides, dtype),
        dO: T.StridedTensor(q_shape, g_strides, dtype),
        LSE: T.Tensor(rows, wide),
        dLSE: T.Tensor(rows, wide),
        SINK: T.Tensor((heads,), wide),
        L: T.Tensor(rows, wide),
        D: T.Tensor(rows, wide),
        Share: T.Tensor(rows, wide),
    ):
        """L: the logarithm of the denominator to base 2, with the sink. D: sum_d dO O, less the gradient of lse as P
        meets it (lse is without the sink, P with it). Share: each row's part of the sink's gradient."""
        with T.Kernel(T.ceildiv(seq_q, block_M), heads, batch, threads=threads) as (bx, h, b):
            o = T.alloc_fragment((block_M, head_dim), wide)
            g = T.alloc_fragment((block_M, head_dim), wide)
            d = T.alloc_fragment((block_M,), wide)
            T.copy(O[b, h, bx * block_M, 0], o)
            T.copy(dO[b, h, bx * block_M, 0], g)
            for i, j in T.Parallel(block_M, head_dim):
                o[i, j] = o[i, j] * g[i, j]
            T.reduce_sum(o, d, dim=1)
            for i in T.Parallel(block_M):
                row = bx * block_M + i
                if row < seq_q:
                    x = LSE[b, h, row]
                    seen = x != -T.infinity(wide)  # else nothing is visible and every P is 0 anyway
                    base = T.if_then_else(seen, x, 0.0)
                    if sink:
                        higher = T.max(base, SINK[h])
                        both = higher + T.log(T.exp(base - higher) + T.exp(SINK[h] - higher))
                        Share[b, h, row] = -T.exp(SINK[h] - both) * d[i]
                    else:
                        both = base
                    L[b, h, row] = T.if_then_else(seen, both, 0.0) * wide(LOG2_E)
                    if lse_gradient:
                        extra = T.if_then_else(
                            seen, dLSE[b, h, row] * T.min(T.exp(both - base), T.max_value(wide)), 0.0
                        )
                        D[b, h, row] = d[i] - extra
                    else:
                        D[b, h, row] = d[i]

    @T.prim_func
    def keys(
        Q: T.StridedTensor(q_shape, q_strides, dtype),
        K: T.StridedTensor(k_shape, k_strides, dtype),
        V: T.StridedTensor(k_shape, v_strides, dtype),
        dO: T.StridedTensor(q_shape, g_strides, dtype),
        L: T.Tensor(rows, wide),
        D: T.Tensor(rows, wide),
        scale: wide,
        scale_log2: wide,
        left: T.int32,
        right: T.int32,
        dK: T.StridedTensor(k_shape, x_strides, dtype),
        dV: T.StridedTensor(k_shape, y_strides, dtype),
    ):
        with T.Kernel(T.ceildiv(seq_kv, block_N), kv_heads, batch, threads=threads) as (bx, kv_head, b):
            K_s = T.alloc_shared((block_N, head_dim), dtype)
            V_s = T.alloc_shared((block_N, head_dim), dtype)
            Q_s = T.alloc_shared((block_M, head_dim), dtype)  # as left operands
            dO_s = T.alloc_shared((block_M, head_dim), dtype)
            Q_r = T.alloc_shared((block_M, head_dim), dtype)  # as right operands
            dO_r = T.alloc_shared((block_M, head_dim), dtype)
            S = T.alloc_fragment((block_M, block_N), wide)
            dP = T.alloc_fragment((block_M, block_N), wide)
            P = T.alloc_fragment((block_M, block_N), dtype)
            dS = T.alloc_fragment((block_M, block_N), dtype)
            acc_k = T.alloc_fragment((block_N, head_dim), wide)
            acc_v = T.alloc_fragment((block_N, head_dim), wide)
            l = T.alloc_fragment((block_M,), wide)
            d = T.alloc_fragment((block_M,), wide)

            @T.macro
            def step(h, m, masked):
                row = m * block_M
                T.copy(Q[b, h, row, 0], Q_s)
                T.copy(dO[b, h, row, 0], dO_s)
                T.copy(L[b, h, row], l)
                T.copy(D[b, h, row], d)
                T.gemm(Q_s, K_s, S, transpose_B=True, clear_accum=True)
                probabilities(
                    S, row, bx * block_N, l, lead, seq_kv, scale_log2, left, right,
                    rows=block_M, keys=block_N, masked=masked, causal=causal, window=window,
                )  # fmt: skip
                T.gemm(dO_s, V_s, dP, transpose_B=True, clear_accum=True)
                T.copy(S, P)
                for i, j in T.Parallel(block_M, block_N):
                    dS[i, j] = S[i, j] * (dP[i, j] - d[i])
                T.copy(dO[b, h, row, 0], dO_r)
                T.gemm(P, dO_r, acc_v, transpose_A=True)
                T.copy(Q[b, h, row, 0], Q_r)
                T.gemm(dS, Q_r, acc_k, transpose_A=True)

            group = heads // kv_heads
            lead = seq_kv - seq_q
            T.copy(K[b, kv_head, bx * block_N, 0], K_s)
            T.copy(V[b, kv_head, bx * block_N, 0], V_s)
            T.clear(acc_k)
            T.clear(acc_v)
            tiles = T.ceildiv(seq_q, block_M)
            # Rows that see the first key, and rows after which all see the last key.
            first = T.max(bx * block_N - lead - (right if window else 0), 0) // block_M if causal or window else 0
            for g in T.serial(group):
                h = kv_head * group + g
                T.assume(h < heads)
                if window:
                    end = T.min(tiles, T.max((bx + 1) * block_N - lead + left + block_M - 1, 0) // block_M)
                    for m in T.Pipelined(first, end, num_stages=2):
                        step(h, m, masked=True)
                elif causal:
                    full = T.min(T.ceildiv(T.max((bx + 1) * block_N - 1 - lead, 0), block_M), tiles)
                    for m in T.Pipelined(first, full, num_stages=2):
                        step(h, m, masked=True)
                    for m in T.Pipelined(full, tiles, num_stages=2):
                        step(h, m, masked=False)
                else:
                    for m in T.Pipelined(tiles, num_stages=2):
                        step(h, m, masked=False)
            for i, j in T.Parallel(block_N, head_dim):
                acc_k[i, j] = acc_k[i, j] * scale
            T.copy(acc_k, dK[b, kv_head, bx * block_N, 0])
            T.copy(acc_v, dV[b, kv_head, bx * block_N, 0])

    @T.prim_func
    def queries(
        Q: T.StridedTensor(q_shape, q_strides, dtype),
        K: T.StridedTensor(k_shape, k_strides, dtype),
        V: T.StridedTensor(k_shape, v_strides, dtype),
        dO: T.StridedTensor(q_shape, g_strides, dtype),
        L: T.Tensor(rows, wide),
        D: T.Tensor(rows, wide),
        scale: wide,
        scale_log2: wide,
        left: T.int32,
        right: T.int32,
        dQ: T.StridedTensor(q_shape, x_strides, dtype),
    ):
        with T.Kernel(T.ceildiv(seq_q, block_M), heads, batch, threads=threads) as (bx, h, b):
            kv_head = h // (heads // kv_heads)
            T.assume(kv_head < kv_heads)
            Q_s = T.alloc_shared((block_M, head_dim), dtype)
            dO_s = T.alloc_shared((block_M, head_dim), dtype)
            K_s = T.alloc_shared((block_N, head_dim), dtype)  # transposed in the product
            K_r = T.alloc_shared((block_N, head_dim), dtype)
            V_s = T.alloc_shared((block_N, head_dim), dtype)
            S = T.alloc_fragment((block_M, block_N), wide)
            dP = T.alloc_fragment((block_M, block_N), wide)
            dS = T.alloc_fragment((block_M, block_N), dtype)
            acc = T.alloc_fragment((block_M, head_dim), wide)
            l = T.alloc_fragment((block_M,), wide)
            d = T.alloc_fragment((block_M,), wide)

            @T.macro
            def step(n, masked):
                key = n * block_N
                T.copy(K[b, kv_head, key, 0], K_s)
                T.gemm(Q_s, K_s, S, transpose_B=True, clear_accum=True)
                probabilities(
                    S, row, key, l, lead, seq_kv, scale_log2, left, right,
                    rows=block_M, keys=block_N, masked=masked, causal=causal, window=window,
                )  # fmt: skip
                T.copy(V[b, kv_head, key, 0], V_s)
                T.gemm(dO_s, V_s, dP, transpose_B=True, clear_accum=True)
                for i, j in T.Parallel(block_M, block_N):
                    dS[i, j] = S[i, j] * (dP[i, j] - d[i])
                T.copy(K[b, kv_head, key, 0], K_r)
                T.gemm(dS, K_r, acc)

            row = bx * block_M
            lead = seq_kv - seq_q
            T.copy(Q[b, h, row, 0], Q_s)
            T.copy(dO[b, h, row, 0], dO_s)
            T.copy(L[b, h, row], l)
            T.copy(D[b, h, row], d)
            T.clear(acc)
            if window:
                first = T.max(row + lead - left, 0) // block_N
                last = T.ceildiv(T.max(T.min(row + block_M + lead + right, seq_kv), 0), block_N)
                for n in T.Pipelined(first, last, num_stages=2):
                    step(n, masked=True)
            else:
                if causal:
                    full = T.max(row + lead + 1, 0) // block_N
                    last = T.ceildiv(T.max(T.min(row + block_M + lead, seq_kv), 0), block_N)
                else:
                    full = seq_kv // block_N
                    last = T.ceildiv(seq_kv, block_N)
                for n in T.Pipelined(full, num_stages=2):
                    step(n, masked=False)
                for n in T.Pipelined(full, last, num_stages=2):
                    step(n, masked=True)
            for i, j in T.Parallel(block_M, head_dim):
                acc[i, j] = acc[i, j] * scale
            T.copy(acc, dQ[b, h, row, 0])

    @T.prim_func
    def sinks(Share: T.Tensor(rows, wide), dSINK: T.Tensor((heads,), wide)):
        """Each head's sum over all rows."""
        with T.Kernel(heads, threads=threads) as h:
            x = T.alloc_fragment((SUM_TILE,), wide)
            total = T.alloc_fragment((1,), wide)
            T.clear(total)
            for b in T.serial(batch):
                for t in T.serial(T.ceildiv(seq_q, SUM_TILE)):
                    T.copy(Share[b, h, t * SUM_TILE], x)
                    T.reduce_sum(x, total, dim=0, clear=False)
            dSINK[h] = total[0]

    return {"delta": delta, "keys": keys, "queries": queries, "sink": sinks}[part]


_backward_kernel = cache(flash_attention_backward_kernel)  # the same values, the same kernel


def flash_attention_backward(
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    do: Any,
    *,
    dlse: Any = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    sink: Any = None,
    scale: float | None = None,
    layout: str = "bshd",
    target: Any = None,
) -> Any:
    """The gradients of flash_attention with respect to q, k and v (Dao et al., "FlashAttention", 2022).

    q, k, v, causal, window, sink, scale, layout, target   as in flash_attention
    o, lse   what flash_attention(..., return_lse=True) returned: like q, and float32 [batch, heads, seq_q]
    do       the gradient with respect to o, like q
    dlse     the gradient with respect to lse, float32 [batch, heads, seq_q]; None: 0

    Returns (dq, dk, dv), like q, k and v; with a sink (dq, dk, dv, dsink), dsink float32 [heads]. Sums are float32
    (float64 for float64, as lse, dlse and dsink are then), in one order (over the query heads of a group and their
    rows, ascending), without atomics: the same bits for any number of threads and any CPU target, and for dq, dk, dv
    for any batch. P and dS are rounded to the inputs' dtype before they are multiplied.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for an unknown layout, a scale that is not finite
    or a negative window.
    """
    name = "flash_attention_backward"
    dims = check_layout(name, layout)
    dtype = arrays.floats(name, q=q, k=k, v=v, o=o, do=do)
    given = {"q": q, "k": k, "v": v, "o": o, "do": do}
    for n, x in given.items():
        arrays.rank(name, n, x, dims)
    dq, dk, dv = (allocate(tuple(x.shape), dtype, q) for x in (q, k, v))
    turn = layout == "bshd"
    Q, K, V, O, G, dQ, dK, dV = (x.swapaxes(1, 2) if turn else x for x in (q, k, v, o, do, dq, dk, dv))
    check_heads(name, dims, Q, K, V, (q, k, v))
    batch, heads, seq_q, head_dim = Q.shape
    if O.shape != Q.shape or G.shape != Q.shape or K.shape[0] != batch:
        raise TileTypeError(f"{name}: shapes do not fit: {arrays.describe(**given)}", help="o and do are like q")
    wide = arrays.accumulator(dtype)
    for n, x in (("lse", lse), ("dlse", dlse)):
        if x is not None:
            arrays.dtype_of(name, n, x, (wide.name,))
            if tuple(x.shape) != (batch, heads, seq_q):
                raise TileTypeError(
                    f"{name}: {arrays.describe(**{n: x})}, expected [batch, heads, seq_q] = ({batch}, {heads}, {seq_q})"
                )
    scale = check_scale(name, scale, head_dim)
    limits = window_limits(name, window, causal, max(seq_q, K.shape[2]))
    sink = check_sink(name, sink, heads, dtype)
    dsink = None if sink is None else allocate((heads,), wide, q)
    views = Q, K, V, O, G, dQ, dK, dV
    _gradients(dtype, views, lse, dlse, dsink, bool(causal), limits, sink, scale, target)
    return (dq, dk, dv) if sink is None else (dq, dk, dv, dsink)


def flash_attention_varlen_backward(
    q: Any,
    k: Any,
    v: Any,
    o: Any,
    lse: Any,
    do: Any,
    cu_seqlens_q: Any,
    cu_seqlens_kv: Any = None,
    *,
    dlse: Any = None,
    causal: bool = False,
    window: tuple[int | None, int | None] | None = None,
    sink: Any = None,
    scale: float | None = None,
    target: Any = None,
) -> Any:
    """The gradients of flash_attention_varlen with respect to q, k and v, and to sink.

    q, k, v, cu_seqlens_q, cu_seqlens_kv, causal, window, sink, scale, target   as in flash_attention_varlen
    o, lse   what flash_attention_varlen(..., return_lse=True) returned: like q, and float32 [heads, total_q]
    do       the gradient with respect to o, like q
    dlse     the gradient with respect to lse, float32 [heads, total_q]; None: 0

    Returns (dq, dk, dv), like q, k and v; with a sink (dq, dk, dv, dsink), dsink float32 [heads], the sum over the
    sequences in their order. A sequence's dq, dk and dv have the bits that flash_attention_backward gives it alone.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for bounds that do not ascend from 0 to the
    number of rows, a scale that is not finite or a negative window.
    """
    name = "flash_attention_varlen_backward"
    dims = "rows, heads, head_dim"
    given = {"q": q, "k": k, "v": v, "o": o, "do": do}
    dtype = arrays.floats(name, **given)
    for n, x in given.items():
        arrays.rank(name, n, x, dims)
    made = [allocate(tuple(x.shape), dtype, q) for x in (q, k, v)]
    all_rows = [x.swapaxes(0, 1)[None] for x in (q, k, v, o, do, *made)]
    Q, K, V, O, G = all_rows[:5]
    check_heads(name, dims, Q, K, V, (q, k, v))
    if O.shape != Q.shape or G.shape != Q.shape:
        raise TileTypeError(f"{name}: shapes do not fit: {arrays.describe(**given)}", help="o and do are like q")
    _, heads, total_q, head_dim = Q.shape
    wide = arrays.accumulator(dtype)
    for n, x in (("lse", lse), ("dlse", dlse)):
        if x is not None:
            arrays.dtype_of(name, n, x, (wide.name,))
            if tuple(x.shape) != (heads, total_q):
                raise TileTypeError(f"{name}: {arrays.describe(**{n: x})}, expected [heads, total_q]")
    q_ends = checked_bounds(name, "cu_seqlens_q", cu_seqlens_q, total_q)
    kv_ends = q_ends if cu_seqlens_kv is None else checked_bounds(name, "cu_seqlens_kv", cu_seqlens_kv, K.shape[2])
    if q_ends.shape != kv_ends.shape or q_ends[-1] != total_q or kv_ends[-1] != K.shape[2]:
        raise TileTypeError(f"{name}: one number of sequences, and of rows, expected: {arrays.describe(**given)}")
    scale, sink = check_scale(name, scale, head_dim), check_sink(name, sink, heads, dtype)
    dsink = None if sink is None else arrays.like_kind(np.zeros(heads, wide.numpy), q)
    for s in range(len(q_ends) - 1):
        rows, keys = slice(q_ends[s], q_ends[s + 1]), slice(kv_ends[s], kv_ends[s + 1])
        views = tuple(x[:, :, keys if n in (1, 2, 6, 7) else rows] for n, x in enumerate(all_rows))
        longest = max(views[0].shape[2], views[1].shape[2])
        limits = window_limits(name, window, causal, longest)
        own, dlse_of = lse[None, :, rows], None if dlse is None else dlse[None, :, rows]
        share = None if dsink is None else allocate((heads,), wide, q)
        _gradients(dtype, views, own, dlse_of, share, bool(causal), limits, sink, scale, target)
        dsink = None if dsink is None else dsink + share
    return tuple(made) if sink is None else (*made, dsink)


def _gradients(
    dtype: DType, views: tuple[Any, ...], lse: Any, dlse: Any, dsink: Any, causal: bool,
    limits: tuple[int, int] | None, sink: Any, scale: float, target: Any,
) -> None:  # fmt: skip
    """Fills dQ, dK, dV and dsink. views: Q, K, V, O, dO, dQ, dK, dV as [batch, heads, rows, head_dim]."""
    Q, K, V, O, G, dQ, dK, dV = views
    batch, heads, seq_q, head_dim = Q.shape
    if not heads:
        return
    wide, tiles = arrays.accumulator(dtype), tiles_for(target)
    L, D = (allocate((batch, heads, seq_q), wide, dQ) for _ in "LD")
    share = None if sink is None else allocate((batch, heads, seq_q), wide, dQ)

    def launch(part: str, rows: int, *args: Any) -> None:
        flags = limits is not None, sink is not None, dlse is not None
        kernel = _backward_kernel(part, rows, BACKWARD_KEYS, head_dim, causal, dtype, *flags, tiles.threads)
        kernel(*args, target=target)

    Q, K, V, O, G = (arrays.unit_last(x) for x in (Q, K, V, O, G))
    size = dtype.bytes  # of the part "keys": rows four times and two products, keys twice; of "queries" less
    each, others = (4 * head_dim + 2 * BACKWARD_KEYS) * size, 2 * BACKWARD_KEYS * head_dim * size
    rows = fit(tiles.within(tiles.attention_backward, each, others), seq_q)
    common = Q, K, V, G, L, D, scale, scale * LOG2_E, *(limits or (0, 0))
    if batch and seq_q:
        lse, dlse = arrays.dense(lse), None if dlse is None else arrays.dense(dlse)
        launch("delta", rows, O, G, lse, dlse, sink, L, D, share)
        launch("queries", rows, *common, dQ)
    if batch and K.shape[2]:
        launch("keys", rows, *common, dK, dV)
    if sink is not None:
        launch("sink", rows, share, dsink)


BACKWARD_KEYS = 64
