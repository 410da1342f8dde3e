"""The part that all forms of attention share: the online softmax, and one block of query rows of one head."""

# mypy: disable-error-code="no-untyped-def"
import math
from typing import Any

import tiledsl.language as T
from tiledsl.kernels.arrays import accumulator

__all__ = ["LN_2", "LOG2_E", "attend", "clear_softmax", "online_softmax", "view_strides"]

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


def view_strides(name: str) -> tuple[Any, ...]:
    """Strides of a [batch, heads, rows, head_dim] view whose last dimension is contiguous."""
    return (*(T.dynamic(f"{name}_{d}", "int64") for d in ("batch", "head", "row")), 1)


@T.macro
def clear_softmax(acc, peak, origin, total):
    """The state before the first key."""
    T.clear(acc)
    T.clear(total)
    T.fill(peak, -T.infinity(peak.dtype))
    T.clear(origin)


@T.macro
def online_softmax(S, P, acc, peak, before, origin, shrink, part, total, *, rows, keys, value_dim):
    """One tile of scores (base 2, -inf where masked) enters: S and P become its probabilities relative to the new
    maximum, acc and total are rescaled to it, total counts the tile. What is left is acc += P V.

    origin is the maximum, but 0 while all is masked: no inf - inf.
    """
    T.copy(peak, before)
    T.reduce_max(S, peak, dim=1, clear=False)
    for i in T.Parallel(rows):
        origin[i] = T.if_then_else(peak[i] == -T.infinity(peak.dtype), 0.0, peak[i])
        shrink[i] = T.exp2(before[i] - origin[i])
    for i, j in T.Parallel(rows, keys):
        S[i, j] = T.exp2(S[i, j] - origin[i])
    T.reduce_sum(S, part, dim=1)
    for i in T.Parallel(rows):
        total[i] = total[i] * shrink[i] + part[i]
    for i, j in T.Parallel(rows, value_dim):
        acc[i, j] = acc[i, j] * shrink[i]
    T.copy(S, P)


@T.macro
def attend(
    Q,
    K,
    V,
    scale_log2,
    left,
    right,
    SINK,
    O,
    LSE,
    b,
    h,
    kv_head,
    row,
    q_start,
    q_len,
    kv_start,
    kv_len,
    *,
    block_M,
    block_N,
    head_dim,
    causal,
    window,
    sink,
    dtype,
):
    """Rows row ... row + block_M - 1 of a sequence that owns rows q_start ... of Q and kv_start ... of K and V.

    Q, O [batch, heads, rows, head_dim], K, V [batch, kv_heads, rows, head_dim], LSE [batch, heads, rows].
    scale_log2 is scale * log2(e): exponents are to base 2. Tiles of keys below `full` are visible to every row and
    need no mask; the loop ends with the last key that some row may see. With `window` row i sees the keys
    i + lead - left ... i + lead + right (causal then says right = 0), and every tile is masked. With `sink`, SINK[h]
    is one more score, of a key without value.
    """
    wide = accumulator(dtype)
    Q_s = T.alloc_shared((block_M, head_dim), dtype)
    K_s = T.alloc_shared((block_N, head_dim), dtype)
    V_s = T.alloc_shared((block_N, head_dim), dtype)
    S = T.alloc_fragment((block_M, block_N), wide)  # scores, then probabilities
    P = T.alloc_fragment((block_M, block_N), dtype)
    acc = T.alloc_fragment((block_M, head_dim), wide)
    peak = T.alloc_fragment((block_M,), wide)  # running maximum of the scores
    before = T.alloc_fragment((block_M,), wide)  # the maximum before this tile
    origin = T.alloc_fragment((block_M,), wide)  # the maximum, 0 while all is masked: no inf - inf
    shrink = T.alloc_fragment((block_M,), wide)
    part = T.alloc_fragment((block_M,), wide)
    total = T.alloc_fragment((block_M,), wide)

    @T.macro
    def step(k, masked):
        T.copy(K[b, kv_head, kv_start + k * block_N, 0], K_s)
        T.gemm(Q_s, K_s, S, transpose_B=True, clear_accum=True)
        if masked:
            for i, j in T.Parallel(block_M, block_N):
                key = k * block_N + j
                if window:
                    at = row + i + lead
                    visible = key < kv_len and at - left <= key and key <= at + right
                else:
                    visible = key <= row + i + lead if causal else key < kv_len
                S[i, j] = T.if_then_else(visible, S[i, j] * scale_log2, -T.infinity(wide))
        else:
            for i, j in T.Parallel(block_M, block_N):
                S[i, j] = S[i, j] * scale_log2
        online_softmax(
            S, P, acc, peak, before, origin, shrink, part, total, rows=block_M, keys=block_N, value_dim=head_dim
        )
        T.copy(V[b, kv_head, kv_start + k * block_N, 0], V_s)
        T.gemm(P, V_s, acc)

    T.copy(Q[b, h, q_start + row, 0], Q_s)
    clear_softmax(acc, peak, origin, total)
    lead = kv_len - q_len  # causal: row i sees keys up to i + lead, so the last row sees all
    if window:
        first = T.max(row + lead - left, 0) // block_N
        last = T.ceildiv(T.max(T.min(row + block_M + lead + right, kv_len), 0), block_N)
        for k in T.Pipelined(first, last, num_stages=2):
            step(k, masked=True)
    elif causal:
        full = T.max(row + lead + 1, 0) // block_N
        last = T.ceildiv(T.max(T.min(row + block_M + lead, kv_len), 0), block_N)
    else:
        full = kv_len // block_N
        last = T.ceildiv(kv_len, block_N)
    if not window:
        for k in T.Pipelined(full, num_stages=2):
            step(k, masked=False)
        for k in T.Pipelined(full, last, num_stages=2):
            step(k, masked=True)

    if sink:  # the larger of maximum and sink becomes the origin: nothing overflows
        for i in T.Parallel(block_M):
            extra = SINK[h] * wide(LOG2_E)
            higher = T.max(origin[i], extra)
            shrink[i] = T.exp2(origin[i] - higher)
            part[i] = total[i] * shrink[i] + T.exp2(extra - higher)
    for i, j in T.Parallel(block_M, head_dim):
        if row + i < q_len:
            mean = acc[i, j] * shrink[i] / part[i] if sink else acc[i, j] / total[i]
            O[b, h, q_start + row + i, j] = T.if_then_else(total[i] == 0.0, 0.0, mean)
    for i in T.Parallel(block_M):
        if row + i < q_len:
            LSE[b, h, q_start + row + i] = T.if_then_else(
                total[i] == 0.0, -T.infinity(wide), peak[i] * wide(LN_2) + T.log(total[i])
            )
