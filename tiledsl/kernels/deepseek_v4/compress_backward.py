"""The gradient of the compressors: each token's channels belong to one block, so each has one owner."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.deepseek_v4.compress import WIDTH, check_tokens, pooled
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["compress_backward", "compress_backward_kernel"]


@tiledsl.jit
def compress_backward_kernel(ratio: int, overlap: bool, channels: int, threads: int = 128) -> Any:
    """Two launches: with p the softmax of a block's rows and C its entry, dkv = p dC and dz = p (kv - C) dC, both 0 in
    rows of blocks that are not complete; then dApe, the sum of dz over the tokens that share a row of it."""
    B, S, N, W = T.dynamic("B"), T.dynamic("S"), T.dynamic("N"), channels * (2 if overlap else 1)
    rows = 2 * ratio if overlap else ratio

    @T.prim_func
    def compress_backward(
        KV: T.Tensor((B, S, W), T.float32),
        Z: T.Tensor((B, S, W), T.float32),
        Ape: T.Tensor((ratio, W), T.float32),
        Lengths: T.Tensor((B,), T.int32),
        dC: T.Tensor((B, N, channels), T.float32),
        dKV: T.Tensor((B, S, W), T.float32),
        dZ: T.Tensor((B, S, W), T.float32),
        dApe: T.Tensor((ratio, W), T.float32),
    ):
        # With overlap a token counts for the next block too, so one block more has rows.
        with T.Kernel(T.ceildiv(channels, WIDTH), N + (1 if overlap else 0), B, threads=threads) as (bx, i, b):
            begin = i * ratio - (ratio if overlap else 0)
            whole = (i + 1) * ratio <= Lengths[b]
            z = T.alloc_fragment((rows, WIDTH), T.float32)
            v = T.alloc_fragment((rows, WIDTH), T.float32)
            for r, j in T.Parallel(rows, WIDTH):
                t = begin + r
                channel = bx * WIDTH + j + T.if_then_else(r >= ratio, channels, 0)
                if t < 0 or bx * WIDTH + j >= channels or not whole:
                    z[r, j] = -T.infinity(T.float32)
                    v[r, j] = 0.0
                else:
                    z[r, j] = Z[b, t, channel] + Ape[t % ratio, channel]
                    v[r, j] = KV[b, t, channel]
            for j in T.Parallel(WIDTH):
                if bx * WIDTH + j < channels:
                    peak, total, value = pooled(z, v, j)
                    for r in T.serial(rows):
                        t = begin + r
                        channel = bx * WIDTH + j + T.if_then_else(r >= ratio, channels, 0)
                        if t >= 0 and t < S:
                            if whole:
                                to_value = T.exp(z[r, j] - peak) / total * dC[b, i, bx * WIDTH + j]
                                dKV[b, t, channel] = to_value
                                dZ[b, t, channel] = to_value * (v[r, j] - value / total)
                            else:
                                dKV[b, t, channel] = 0.0
                                dZ[b, t, channel] = 0.0
        with T.Kernel(T.ceildiv(W, WIDTH), ratio, threads=threads) as (bx, row):
            total = T.alloc_fragment((WIDTH,), T.float32)
            T.clear(total)
            for b in T.serial(B):
                for i in T.serial(T.ceildiv(S - row, ratio)):
                    for j in T.Parallel(WIDTH):
                        total[j] = total[j] + dZ[b, i * ratio + row, bx * WIDTH + j]
            T.copy(total, dApe[row, bx * WIDTH])

    return compress_backward


_compress_backward_kernel = cache(compress_backward_kernel)  # the same values, the same kernel


def compress_backward(
    kv: Any, scores: Any, ape: Any, ratio: int, dentries: Any, *, lengths: Any = None, target: Any = None
) -> tuple[Any, Any, Any]:
    """The gradients of compress of whole sequences, from an empty state (training). With p the softmax of a block's
    rows: dkv = p dentry, dscores = p (kv - entry) dentry; of tokens whose block is not complete 0.

    kv, scores, ape, ratio, lengths, target   as in compress
    dentries  [batch, ceil(seq / ratio), c] float32, the gradient with respect to the entries; rows of blocks that are
              not complete are not read

    Returns (dkv, dscores [batch, seq, width], dape [ratio, width]), float32. A token's gradients do not depend on other
    sequences; dape is summed sequence by sequence, token by token.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for lengths outside of 0 ... seq (where they lie on
    the host).
    """
    name = "compress_backward"
    batch, seq, width = check_tokens(name, kv, scores, ape, ratio)
    overlap = ratio == 4
    channels, blocks = width // 2 if overlap else width, -(-seq // ratio)
    arrays.dtype_of(name, "dentries", dentries, ("float32",))
    if tuple(dentries.shape) != (batch, blocks, channels):
        given = arrays.describe(kv=kv, dentries=dentries)
        raise TileTypeError(f"{name}: {given}, expected dentries {[batch, blocks, channels]}")
    if lengths is None:
        lengths = arrays.like_kind(np.full(batch, seq, np.int32), kv)
    arrays.check_lengths(name, lengths, batch, seq)
    f32 = as_dtype("float32")
    dkv, dscores, dape = (allocate(tuple(x.shape), f32, kv) for x in (kv, scores, ape))
    if width:
        inputs = [arrays.dense(x) for x in (kv, scores, ape, lengths, dentries)]
        kernel = _compress_backward_kernel(ratio, overlap, channels, tiles_for(target).threads)
        kernel(*inputs, dkv, dscores, dape, target=target)
    return dkv, dscores, dape
