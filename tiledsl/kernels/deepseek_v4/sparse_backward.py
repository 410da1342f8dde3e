"""The gradient of sparse attention over plain rows: each run of queries sums its keys' gradients in order."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.attention_args import check_scale, check_sink
from tiledsl.kernels.attention_block import LOG2_E
from tiledsl.kernels.deepseek_v4.sparse_attention import check_source
from tiledsl.kernels.tiles import KV_TILE, tiles_for
from tiledsl.runtime import allocate

__all__ = ["sparse_attention_backward", "sparse_attention_backward_kernel"]

RUNS = 8  # buffers of the keys' gradients: decides the order of a sum, so one number for all targets
HEADS = 16  # of a step
WIDTH = 256


@tiledsl.jit
def sparse_attention_backward_kernel(key_dim: int, value_dim: int, sink: bool, threads: int = 128) -> Any:
    """Launches: the sums of runs of queries; their sum in order; the sink's.

    With p = exp(s - lse'), lse' including the sink, and delta = dO . O: ds = p (dO . v - delta), dq = scale ds k,
    dk = scale ds q, dv = p dO, dsink = - exp(sink - lse') delta.
    """
    M, H, N, R = T.dynamic("M"), T.dynamic("H"), T.dynamic("N"), T.dynamic("R")

    @T.prim_func
    def sparse_attention_backward(
        Q: T.Tensor((M, H, key_dim), "bfloat16"),
        KV: T.Tensor((R, key_dim), "bfloat16"),
        I: T.Tensor((M, N), T.int32),
        O: T.Tensor((M, H, value_dim), "bfloat16"),
        LSE: T.Tensor((M, H), T.float32),
        dO: T.Tensor((M, H, value_dim), "bfloat16"),
        scale: T.float32,
        SINK: T.Tensor((H,), T.float32),
        Sums: T.Tensor((RUNS, R, key_dim), T.float32),
        Share: T.Tensor((M, H), T.float32),
        dQ: T.Tensor((M, H, key_dim), "bfloat16"),
        dKV: T.Tensor((R, key_dim), "bfloat16"),
        dSINK: T.Tensor((H,), T.float32),
    ):
        with T.Kernel(RUNS, threads=threads) as run:
            q = T.alloc_shared((HEADS, key_dim), "bfloat16")
            g = T.alloc_shared((HEADS, value_dim), "bfloat16")
            rows = T.alloc_shared((KV_TILE, key_dim), "bfloat16")
            slot = T.alloc_shared((KV_TILE,), T.int32)
            s = T.alloc_fragment((HEADS, KV_TILE), T.float32)
            ds = T.alloc_fragment((HEADS, KV_TILE), T.float32)
            p_s = T.alloc_shared((HEADS, KV_TILE), "bfloat16")
            ds_s = T.alloc_shared((HEADS, KV_TILE), "bfloat16")
            dq = T.alloc_fragment((HEADS, key_dim), T.float32)
            drows = T.alloc_fragment((KV_TILE, key_dim), T.float32)
            dv = T.alloc_fragment((KV_TILE, value_dim), T.float32)
            terms = T.alloc_fragment((HEADS, value_dim), T.float32)
            delta = T.alloc_fragment((HEADS,), T.float32)
            whole = T.alloc_fragment((HEADS,), T.float32)
            for r in T.serial(R):
                for j in T.Parallel(key_dim):
                    Sums[run, r, j] = 0.0
            each = T.ceildiv(M, RUNS)
            for i in T.serial(T.max(T.min(each, M - run * each), 0)):
                t = run * each + i
                for h in T.serial(T.ceildiv(H, HEADS)):
                    T.copy(Q[t, h * HEADS : (h + 1) * HEADS, :], q)
                    T.copy(dO[t, h * HEADS : (h + 1) * HEADS, :], g)
                    for a, j in T.Parallel(HEADS, value_dim):
                        terms[a, j] = T.cast(g[a, j], T.float32) * O[t, h * HEADS + a, j]
                    T.reduce_sum(terms, delta, dim=1)
                    for a in T.Parallel(HEADS):
                        head = h * HEADS + a
                        lse = T.if_then_else(head < H, LSE[t, head], 0.0)
                        whole[a] = lse
                        if sink:
                            if head < H:
                                top = T.max(lse, SINK[head])
                                joined = top + T.log(T.exp(lse - top) + T.exp(SINK[head] - top))
                                whole[a] = T.if_then_else(lse == -T.infinity(T.float32), lse, joined)
                                chance = T.exp(SINK[head] - whole[a])
                                Share[t, head] = T.if_then_else(
                                    lse == -T.infinity(T.float32), 0.0, -(chance * delta[a])
                                )
                    T.clear(dq)
                    for k in T.serial(T.ceildiv(N, KV_TILE)):
                        for j in T.Parallel(KV_TILE):
                            slot[j] = T.if_then_else(k * KV_TILE + j < N, I[t, k * KV_TILE + j], -1)
                        for c, j in T.Parallel(KV_TILE, key_dim):
                            rows[c, j] = KV[slot[c], j]
                        T.gemm(q, rows, s, transpose_B=True, clear_accum=True)
                        T.gemm(g, rows[:, 0:value_dim], ds, transpose_B=True, clear_accum=True)
                        for a, c in T.Parallel(HEADS, KV_TILE):
                            seen = slot[c] >= 0
                            p = T.if_then_else(seen, T.exp2((s[a, c] * scale - whole[a]) * LOG2_E), 0.0)
                            p_s[a, c] = p
                            ds_s[a, c] = p * (ds[a, c] - delta[a]) * scale
                        T.gemm(ds_s, rows, dq)
                        T.gemm(ds_s, q, drows, transpose_A=True, clear_accum=True)
                        T.gemm(p_s, g, dv, transpose_A=True, clear_accum=True)
                        for c, j in T.Parallel(KV_TILE, key_dim):
                            if slot[c] >= 0:
                                extra = T.if_then_else(j < value_dim, dv[c, T.min(j, value_dim - 1)], 0.0)
                                Sums[run, slot[c], j] = Sums[run, slot[c], j] + (drows[c, j] + extra)
                    T.copy(dq, dQ[t, h * HEADS : (h + 1) * HEADS, :])
        with T.Kernel(T.ceildiv(key_dim, WIDTH), R, threads=threads) as (bx, r):
            for j in T.Parallel(WIDTH):
                total = T.alloc_var(T.float32, 0.0)
                if bx * WIDTH + j < key_dim:
                    for run in T.serial(RUNS):
                        total = total + Sums[run, r, bx * WIDTH + j]
                    dKV[r, bx * WIDTH + j] = total
        if sink:
            with T.Kernel(H, threads=threads) as h:
                some = T.alloc_fragment((WIDTH,), T.float32)
                total = T.alloc_fragment((1,), T.float32)
                T.clear(total)
                for k in T.serial(T.ceildiv(M, WIDTH)):
                    for j in T.Parallel(WIDTH):
                        some[j] = T.if_then_else(k * WIDTH + j < M, Share[k * WIDTH + j, h], 0.0)
                    T.reduce_sum(some, total, dim=0, clear=False)
                for i in T.Parallel(1):
                    dSINK[h + i] = total[i]

    return sparse_attention_backward


_sparse_attention_backward_kernel = cache(sparse_attention_backward_kernel)  # the same values, the same kernel


def sparse_attention_backward(
    q: Any,
    source: Any,
    slots: Any,
    o: Any,
    lse: Any,
    do: Any,
    *,
    scale: float | None = None,
    sink: Any = None,
    target: Any = None,
) -> Any:
    """The gradients of sparse_attention over one source of plain rows (training; window and compressed rows one after
    the other in it).

    q, source, slots, scale, sink, target   as in sparse_attention; a query names a row at most once
    o, lse   what sparse_attention returned
    do       the gradient with respect to o, bfloat16 like it

    Returns (dq [tokens, heads, dim] bfloat16, dsource [rows, dim] bfloat16), with a sink also dsink [heads] float32.
    Probabilities and score gradients are rounded to bfloat16 before they are multiplied; sums are float32. Queries are
    cut into 8 runs; each adds to a buffer of its own in ascending order, and the buffers are added in order: no
    atomics, the same bits for any number of threads.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for slots outside of the source or named twice by a
    query (where they lie on the host).
    """
    name = "sparse_attention_backward"
    for which, x in (("q", q), ("source", source), ("o", o), ("do", do)):
        arrays.dtype_of(name, which, x, ("bfloat16",))
    arrays.dtype_of(name, "lse", lse, ("float32",))
    m, heads, dim = arrays.rank(name, "q", q, "tokens, heads, dim")
    values = int(o.shape[-1])
    if tuple(o.shape) != (m, heads, values) or tuple(do.shape) != tuple(o.shape) or tuple(lse.shape) != (m, heads):
        raise TileTypeError(f"{name}: {arrays.describe(q=q, o=o, do=do, lse=lse)} do not fit")
    check_source(name, "source", source, slots, 0, m, dim)
    known = arrays.on_host(slots)
    if known is not None and known.size:
        ordered = known.copy()
        ordered.sort(axis=1)
        if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
            raise TileValueError(
                f"{name}: a query names a row twice: {arrays.describe(slots=slots)}",
                help="its gradients would meet in one place",
            )
    factor = check_scale(name, scale, dim)
    sink = check_sink(name, sink, heads, as_dtype("float32"))
    rows, f32, bf16 = int(source.shape[0]), as_dtype("float32"), as_dtype("bfloat16")
    dq, dkv = allocate((m, heads, dim), bf16, q), allocate((rows, dim), bf16, q)
    dsink, share = allocate((heads,), f32, q), allocate((m, heads), f32, q)
    sums = allocate((RUNS, rows, dim), f32, q)
    kernel = _sparse_attention_backward_kernel(dim, values, sink is not None, tiles_for(target).threads)
    given = [arrays.dense(x) for x in (q, source, slots, o, lse, do)]
    kernel(*given, factor, sink, sums, share, dq, dkv, dsink, target=target)
    return (dq, dkv) if sink is None else (dq, dkv, dsink)
