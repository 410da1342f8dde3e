"""The part that dense and variable-length attention share: one block of query rows of one head."""

# mypy: disable-error-code="no-untyped-def"
import math

import tiledsl.language as T

__all__ = ["LOG2_E", "attend"]

LOG2_E = math.log2(math.e)
LN_2 = math.log(2.0)


@T.macro
def attend(
    Q,
    K,
    V,
    scale_log2,
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
    dtype,
):
    """Rows row ... row + block_M - 1 of a sequence that owns rows q_start ... of Q and kv_start ... of K and V.

    Q, O [batch, heads, rows, head_dim], K, V [batch, kv_heads, rows, head_dim], LSE [batch, heads, rows].
    scale_log2 is scale * log2(e): exponents are to base 2. Tiles of keys below `full` are visible to every row and
    need no mask; the loop ends with the last key that some row may see.
    """
    Q_s = T.alloc_shared((block_M, head_dim), dtype)
    K_s = T.alloc_shared((block_N, head_dim), dtype)
    V_s = T.alloc_shared((block_N, head_dim), dtype)
    S = T.alloc_fragment((block_M, block_N), T.float32)  # scores, then probabilities
    P = T.alloc_fragment((block_M, block_N), dtype)
    acc = T.alloc_fragment((block_M, head_dim), T.float32)
    peak = T.alloc_fragment((block_M,), T.float32)  # running maximum of the scores
    before = T.alloc_fragment((block_M,), T.float32)  # the maximum before this tile
    origin = T.alloc_fragment((block_M,), T.float32)  # the maximum, 0 while all is masked: no inf - inf
    shrink = T.alloc_fragment((block_M,), T.float32)
    part = T.alloc_fragment((block_M,), T.float32)
    total = T.alloc_fragment((block_M,), T.float32)

    @T.macro
    def step(k, masked):
        T.copy(K[b, kv_head, kv_start + k * block_N, 0], K_s)
        T.gemm(Q_s, K_s, S, transpose_B=True, clear_accum=True)
        if masked:
            for i, j in T.Parallel(block_M, block_N):
                key = k * block_N + j
                visible = key <= row + i + lead if causal else key < kv_len
                S[i, j] = T.if_then_else(visible, S[i, j] * scale_log2, -T.infinity(T.float32))
        else:
            for i, j in T.Parallel(block_M, block_N):
                S[i, j] = S[i, j] * scale_log2
        T.copy(peak, before)
        T.reduce_max(S, peak, dim=1, clear=False)
        for i in T.Parallel(block_M):
            origin[i] = T.if_then_else(peak[i] == -T.infinity(T.float32), 0.0, peak[i])
            shrink[i] = T.exp2(before[i] - origin[i])
        for i, j in T.Parallel(block_M, block_N):
            S[i, j] = T.exp2(S[i, j] - origin[i])
        T.reduce_sum(S, part, dim=1)
        for i in T.Parallel(block_M):
            total[i] = total[i] * shrink[i] + part[i]
        for i, j in T.Parallel(block_M, head_dim):
            acc[i, j] = acc[i, j] * shrink[i]
        T.copy(S, P)
        T.copy(V[b, kv_head, kv_start + k * block_N, 0], V_s)
        T.gemm(P, V_s, acc)

    T.copy(Q[b, h, q_start + row, 0], Q_s)
    T.clear(acc)
    T.clear(total)
    T.fill(peak, -T.infinity(T.float32))
    lead = kv_len - q_len  # causal: row i sees keys up to i + lead, so the last row sees all
    if causal:
        full = T.max(row + lead + 1, 0) // block_N
        last = T.ceildiv(T.max(T.min(row + block_M + lead, kv_len), 0), block_N)
    else:
        full = kv_len // block_N
        last = T.ceildiv(kv_len, block_N)
    for k in T.Pipelined(full, num_stages=2):
        step(k, masked=False)
    for k in T.Pipelined(full, last, num_stages=2):
        step(k, masked=True)

    for i, j in T.Parallel(block_M, head_dim):
        if row + i < q_len:
            O[b, h, q_start + row + i, j] = T.if_then_else(total[i] == 0.0, 0.0, acc[i, j] / total[i])
    for i in T.Parallel(block_M):
        if row + i < q_len:
            LSE[b, h, q_start + row + i] = T.if_then_else(
                total[i] == 0.0, -T.infinity(T.float32), peak[i] * LN_2 + T.log(total[i])
            )
