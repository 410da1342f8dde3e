"""The n-gram hash: which rows of a table a position looks up."""

# mypy: disable-error-code="no-untyped-def,valid-type"
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

__all__ = ["engram_primes", "ngram_hash", "ngram_hash_kernel"]

RUN = 256  # positions of a block


def engram_primes(start: int, ngrams: int, heads: int) -> np.ndarray[Any, Any]:
    """Table sizes [ngrams, heads] int32: distinct primes, ascending from the first one at or above `start`, as the
    Engram demonstration chooses them. Raises TileValueError where start or a count is not positive."""
    if min(start, ngrams, heads) < 1:
        raise TileValueError(
            f"engram_primes: start {start}, {ngrams} n-grams, {heads} heads, expected positive numbers"
        )
    found: list[int] = []
    candidate = max(start, 2)
    while len(found) < ngrams * heads:
        if all(candidate % d for d in range(2, int(candidate**0.5) + 1)):
            found.append(candidate)
        candidate += 1
    return np.array(found, np.int32).reshape(ngrams, heads)


@tiledsl.jit
def ngram_hash_kernel(length: int, heads: int, threads: int = 128) -> Any:
    """H[l, t, (n - 2) heads + j] = (XOR of ids[t, i] * mult[l, i] over i < n) mod sizes[l, n - 2, j] + the rows of the
    tables before, for n = 2 ... length; int64, products wrap."""
    L, M = T.dynamic("L"), T.dynamic("M")

    @T.prim_func
    def ngram_hash(
        ids: T.Tensor((M, length), T.int32),
        mult: T.Tensor((L, length), T.int64),
        sizes: T.Tensor((L, length - 1, heads), T.int32),
        offsets: T.Tensor((L, length - 1, heads), T.int32),
        H: T.Tensor((L, M, (length - 1) * heads), T.int32),
    ):
        with T.Kernel(T.ceildiv(M, RUN), L, threads=threads) as (bx, layer):
            for i in T.Parallel(RUN):
                t = bx * RUN + i
                if t < M:
                    mixed = T.alloc_var(T.int64, T.cast(ids[t, 0], T.int64) * mult[layer, 0])
                    for n in T.unroll(1, length):
                        mixed = mixed ^ (T.cast(ids[t, n], T.int64) * mult[layer, n])
                        for j in T.unroll(heads):
                            row = mixed % T.cast(sizes[layer, n - 1, j], T.int64)
                            H[layer, t, (n - 1) * heads + j] = T.cast(row, T.int32) + offsets[layer, n - 1, j]

    return ngram_hash


_ngram_hash_kernel = cache(ngram_hash_kernel)  # the same values, the same kernel


def ngram_hash(ids: Any, multipliers: Any, sizes: Any, *, target: Any = None) -> Any:
    """Rows of the tables for each position: with h_n = XOR over i < n of (ids[t, i] * multipliers[l, i]) in int64 that
    wraps, row(l, t, n, j) = h_n mod sizes[l, n - 2, j] + the sizes of the layer's tables before that one, n = 2 ... N.
    mod gives 0 ... size - 1 for negative h too.

    ids          [positions, N] int32, ids[t, i] the token i places back (compressed ids, 0 or a pad id before the
                 beginning); NumPy or torch
    multipliers  [layers, N] int64, odd
    sizes        [layers, N - 1, heads] int32, positive (engram_primes); a layer's sizes sum to less than 2^31
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns [layers, positions, (N - 1) heads] int32. Exact on every target.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for sizes that are not positive or too large (where
    they lie on the host).
    """
    name = "ngram_hash"
    for which, x, dtype in (("ids", ids, "int32"), ("multipliers", multipliers, "int64"), ("sizes", sizes, "int32")):
        arrays.dtype_of(name, which, x, (dtype,))
    m, length = arrays.rank(name, "ids", ids, "positions, n")
    layers, length_m = arrays.rank(name, "multipliers", multipliers, "layers, n")
    layers_s, grams, heads = arrays.rank(name, "sizes", sizes, "layers, n - 1, heads")
    if (layers, length) != (layers_s, length_m) or grams != length - 1 or length < 2:
        shapes = arrays.describe(ids=ids, multipliers=multipliers, sizes=sizes)
        raise TileTypeError(f"{name}: {shapes} do not fit", help="[positions, N], [layers, N], [layers, N - 1, heads]")
    arrays.check_size(name, "sizes", sizes, 1, 2**31 - 1)
    known = arrays.on_host(sizes)
    if known is not None and known.reshape(layers, -1).sum(1, dtype=np.int64).max(initial=0) >= 2**31:
        raise TileValueError(f"{name}: a layer's sizes sum to 2^31 or more, and rows are int32")
    out = allocate((layers, m, grams * heads), as_dtype("int32"), ids)
    if layers and m and heads:
        flat = sizes.reshape(layers, grams * heads)
        offsets = arrays.as_int32(flat.cumsum(1) - flat).reshape(layers, grams, heads)
        kernel = _ngram_hash_kernel(length, heads, tiles_for(target).threads)
        dense = (arrays.dense(x) for x in (ids, multipliers, sizes, offsets))
        kernel(*dense, out, target=target)
    return out
