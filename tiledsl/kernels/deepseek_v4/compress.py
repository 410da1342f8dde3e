"""The token-level compressor: each block of tokens becomes one entry, a softmax over its rows for every channel.

Incremental: a state keeps the tokens that a later block needs, so that one long call, chunks, and single tokens give
the same bits.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["WIDTH", "CompressorState", "check_tokens", "compress", "compress_kernel", "compressor_state"]
__all__ += ["pooled"]

WIDTH = 64  # channels of a block


@dataclass
class CompressorState:
    """What a compressor remembers of each sequence.

    kv, score  [batch, slots, width] float32: token t lies in slot t % slots; scores have the position bias added
    seen       [batch] int32 tokens so far
    """

    kv: Any
    score: Any
    seen: Any


def compressor_state(batch: int, ratio: int, width: int, like: Any = None) -> CompressorState:
    """An empty state: zeros, scores of -inf. width is 2 c for overlapping blocks (ratio 4), which keep 2 ratio tokens,
    and c else. `like`: an array of the kind wanted (default NumPy)."""
    slots = ratio if ratio != 4 else 2 * ratio
    made = np.zeros((batch, slots, width), np.float32), np.full((batch, slots, width), -np.inf, np.float32)
    kv, score, seen = (arrays.like_kind(x, like) for x in (*made, np.zeros(batch, np.int32)))
    return CompressorState(kv, score, seen)


@T.macro
def pooled(z, v, j):
    """Of column j: the largest score, and with e the powers relative to it, the sums of e and of e v."""
    peak = T.alloc_var(T.float32, -T.infinity(T.float32))
    total = T.alloc_var(T.float32, 0.0)
    value = T.alloc_var(T.float32, 0.0)
    for r in T.serial(z.shape[0]):
        peak = T.max(peak, z[r, j])
    for r in T.serial(z.shape[0]):
        e = T.exp(z[r, j] - peak)
        total = total + e
        value = value + e * v[r, j]
    return peak, total, value


@tiledsl.jit
def compress_kernel(ratio: int, overlap: bool, channels: int, threads: int = 128) -> Any:
    """C[b, i] = sum over rows of softmax(scores of rows) * kv, of block seen // ratio + i, where the tokens at hand
    complete it; then the state takes them.

    A row is a token t: of the block itself, and with overlap, before those, of the block before, whose first
    `channels` channels count for the next block, and the others for its own. Tokens before the first have kv 0 and
    score -inf.
    """
    B, S, N, W = T.dynamic("B"), T.dynamic("S"), T.dynamic("N"), channels * (2 if overlap else 1)
    slots = 2 * ratio if overlap else ratio
    rows = 2 * ratio if overlap else ratio

    @T.prim_func
    def compress(
        KV: T.Tensor((B, S, W), T.float32),
        Z: T.Tensor((B, S, W), T.float32),
        Ape: T.Tensor((ratio, W), T.float32),
        StateKV: T.Tensor((B, slots, W), T.float32),
        StateZ: T.Tensor((B, slots, W), T.float32),
        Seen: T.Tensor((B,), T.int32),
        Lengths: T.Tensor((B,), T.int32),
        C: T.Tensor((B, N, channels), T.float32),
    ):
        with T.Kernel(T.ceildiv(channels, WIDTH), N, B, threads=threads) as (bx, i, b):
            seen = Seen[b]
            block = seen // ratio + i
            begin = block * ratio - (ratio if overlap else 0)
            z = T.alloc_fragment((rows, WIDTH), T.float32)
            v = T.alloc_fragment((rows, WIDTH), T.float32)
            if (block + 1) * ratio <= seen + Lengths[b]:
                for r, j in T.Parallel(rows, WIDTH):
                    t = begin + r
                    channel = bx * WIDTH + j + T.if_then_else(r >= ratio, channels, 0)
                    if t < 0 or bx * WIDTH + j >= channels:
                        z[r, j] = -T.infinity(T.float32)
                        v[r, j] = 0.0
                    elif t >= seen:
                        z[r, j] = Z[b, t - seen, channel] + Ape[t % ratio, channel]
                        v[r, j] = KV[b, t - seen, channel]
                    else:
                        z[r, j] = StateZ[b, t % slots, channel]
                        v[r, j] = StateKV[b, t % slots, channel]
                for j in T.Parallel(WIDTH):
                    if bx * WIDTH + j < channels:
                        _, total, value = pooled(z, v, j)
                        C[b, i, bx * WIDTH + j] = value / total
        with T.Kernel(T.ceildiv(W, WIDTH), slots, B, threads=threads) as (bx, s, b):
            end = Seen[b] + Lengths[b]
            last = end - 1 - (end - 1 - s) % slots  # the latest token of this slot
            for j in T.Parallel(WIDTH):
                channel = bx * WIDTH + j
                if last >= Seen[b] and channel < W:
                    StateKV[b, s, channel] = KV[b, last - Seen[b], channel]
                    StateZ[b, s, channel] = Z[b, last - Seen[b], channel] + Ape[last % ratio, channel]
        with T.Kernel(T.ceildiv(B, WIDTH), threads=threads) as b:
            for j in T.Parallel(WIDTH):
                if b * WIDTH + j < B:
                    Seen[b * WIDTH + j] = Seen[b * WIDTH + j] + Lengths[b * WIDTH + j]

    return compress


_compress_kernel = cache(compress_kernel)  # the same values, the same kernel


def check_tokens(name: str, kv: Any, scores: Any, ape: Any, ratio: int) -> tuple[int, int, int]:
    """batch, seq and width of kv. Raises TileTypeError or TileValueError unless scores, ape and the ratio fit."""
    for which, x in (("kv", kv), ("scores", scores), ("ape", ape)):
        arrays.dtype_of(name, which, x, ("float32",))
    batch, seq, width = arrays.rank(name, "kv", kv, "batch, seq, width")
    if ratio < 1 or (ratio == 4 and width % 2):
        raise TileValueError(f"{name}: ratio is {ratio}: {arrays.describe(kv=kv)}", help="ratio 4 takes an even width")
    for which, x, shape in (("scores", scores, (batch, seq, width)), ("ape", ape, (ratio, width))):
        if tuple(x.shape) != shape:
            raise TileTypeError(f"{name}: {which} is {tuple(x.shape)}, expected {shape}: {arrays.describe(kv=kv)}")
    return batch, seq, width


def compress(
    kv: Any, scores: Any, ape: Any, ratio: int, state: CompressorState, *, lengths: Any = None, target: Any = None
) -> tuple[Any, Any]:
    """Compress the next tokens of each sequence (DeepSeek-V4's compressors). Block i of a sequence is, for every
    channel, sum over its rows of softmax(scores + ape) * kv. ratio 4 (compressed sparse attention) overlaps: rows are
    the first half of the channels of the 4 tokens before, then the second half of those of its own 4; other ratios
    (128: heavily compressed attention) have the block's own tokens as rows.

    kv, scores  [batch, seq, width] float32, projections of the next tokens; width 2 c for ratio 4, else c
    ape         [ratio, width] float32, added to the scores of token t at row t % ratio
    state       a CompressorState (compressor_state), updated in place
    lengths     [batch] int32 how many of the seq tokens each sequence has; None: all
    target      where to run (default: TILEDSL_TARGET, else auto)

    Returns (entries [batch, blocks, c] float32, counts [batch] int32): row i of a sequence is its block
    state.seen // ratio + i (seen before the call); rows from counts on are not written. In float32, rows in order; the
    same bits for one call, chunks of any length, and single tokens, and in any batch.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for lengths outside of 0 ... seq (where they lie on
    the host).
    """
    name = "compress"
    batch, seq, width = check_tokens(name, kv, scores, ape, ratio)
    overlap = ratio == 4
    kept = (batch, 2 * ratio if overlap else ratio, width)
    for which, x in (("state.kv", state.kv), ("state.score", state.score)):
        arrays.dtype_of(name, which, x, ("float32",))
        if tuple(x.shape) != kept:
            raise TileTypeError(f"{name}: {which} is {tuple(x.shape)}, expected {kept}: {arrays.describe(kv=kv)}")
    arrays.dtype_of(name, "state.seen", state.seen, ("int32",))
    if tuple(state.seen.shape) != (batch,):
        raise TileTypeError(f"{name}: state.seen is {tuple(state.seen.shape)}, expected {(batch,)}")
    if lengths is None:
        lengths = arrays.like_kind(np.full(batch, seq, np.int32), kv)
    arrays.check_lengths(name, lengths, batch, seq)
    channels = width // 2 if overlap else width
    counts = (state.seen + lengths) // ratio - state.seen // ratio
    blocks = -(-seq // ratio)
    entries = allocate((batch, blocks, channels), as_dtype("float32"), kv)
    if batch and seq and channels:
        given = (arrays.dense(x) for x in (kv, scores, ape))
        kernel = _compress_kernel(ratio, overlap, channels, tiles_for(target).threads)
        kernel(*given, state.kv, state.score, state.seen, arrays.dense(lengths), entries, target=target)
    return entries, counts
