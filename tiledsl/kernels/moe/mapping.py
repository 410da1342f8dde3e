"""From tokens to rows sorted by expert and back: the mapping, expansion, and the ordered sum of a token's rows."""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.scales import blocks
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["Mapping", "expand", "expand_kernel", "mapping_kernel", "reduce_rows", "reduce_rows_kernel"]
__all__ += ["token_mapping"]

CHUNK = 256  # pairs of a token and an expert that a block ranks
WIDTH = 256  # columns of a block that moves rows
MOVED = ("bfloat16", "float32", "float16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint8", "int8", "int32")


@dataclass(frozen=True)
class Mapping:
    """Which row of the expanded array belongs to which choice of which token.

    slots   [tokens, k] int32: the row of a token's j-th choice; -1 where the choice named no expert
    pairs   [rows] int32: token * k + j of a row; -1 for padding
    counts  [experts] int32: tokens of each expert
    sizes   [experts] int32: its rows: counts rounded up to the alignment; group_sizes of the grouped products
    starts  [experts + 1] int32: its first row; the last one is the number of rows in use
    """

    slots: Any
    pairs: Any
    counts: Any
    sizes: Any
    starts: Any

    @property
    def rows(self) -> int:
        """Rows of an expanded array: enough for any choice of experts."""
        return int(self.pairs.shape[0])


@tiledsl.jit
def mapping_kernel(experts: int, threads: int = 128) -> Any:
    """Four launches: padding; counts per chunk of pairs; exclusive sums over chunks and, aligned, over experts; rows.

    A pair's row is its expert's first row, plus the pairs with this expert in earlier chunks, plus those before it in
    its own: pairs keep their order.
    """
    P, R, chunks = T.dynamic("P"), T.dynamic("R"), T.dynamic("chunks")

    @T.prim_func
    def mapping(
        I: T.Tensor((P,), T.int32),
        alignment: T.int32,
        Base: T.Tensor((chunks, experts), T.int32),
        Slots: T.Tensor((P,), T.int32),
        Pairs: T.Tensor((R,), T.int32),
        Counts: T.Tensor((experts,), T.int32),
        Sizes: T.Tensor((experts,), T.int32),
        Starts: T.Tensor((experts + 1,), T.int32),
    ):
        with T.Kernel(T.ceildiv(R, CHUNK), threads=threads) as b:
            for i in T.Parallel(CHUNK):
                Pairs[b * CHUNK + i] = -1
        with T.Kernel(chunks, threads=threads) as c:
            tally = T.alloc_shared((experts,), T.int32)
            T.clear(tally)
            for i in T.Parallel(CHUNK):
                if c * CHUNK + i < P:
                    e = I[c * CHUNK + i]
                    if e >= 0 and e < experts:
                        T.atomic_add(tally[e], 1)
            T.copy(tally, Base[c, 0])
        with T.Kernel(1, threads=threads):
            size = T.alloc_shared((experts,), T.int32)
            end = T.alloc_shared((experts,), T.int32)
            for e in T.Parallel(experts):
                so_far = T.alloc_var(T.int32, 0)
                for c in T.serial(chunks):
                    here = Base[c, e]
                    Base[c, e] = so_far
                    so_far += here
                Counts[e] = so_far
                size[e] = (so_far + alignment - 1) // alignment * alignment
            T.cumsum(size, end, dim=0)
            for e in T.Parallel(experts):
                Sizes[e] = size[e]
                Starts[e] = end[e] - size[e]
                if e == experts - 1:
                    Starts[experts] = end[e]
                for c in T.serial(chunks):
                    Base[c, e] = Base[c, e] + (end[e] - size[e])
        with T.Kernel(chunks, threads=threads) as c:
            mine = T.alloc_shared((CHUNK,), T.int32)
            for i in T.Parallel(CHUNK):
                mine[i] = T.if_then_else(c * CHUNK + i < P, I[c * CHUNK + i], -1)
            for i in T.Parallel(CHUNK):
                if c * CHUNK + i < P:
                    before = T.alloc_var(T.int32, 0)
                    for j in T.serial(i):
                        before += T.if_then_else(mine[j] == mine[i], 1, 0)
                    if mine[i] >= 0 and mine[i] < experts:
                        slot = Base[c, mine[i]] + before
                        Slots[c * CHUNK + i] = slot
                        Pairs[slot] = c * CHUNK + i
                    else:
                        Slots[c * CHUNK + i] = -1

    return mapping


_mapping_kernel = cache(mapping_kernel)  # the same values, the same kernel


def token_mapping(chosen: Any, experts: int, *, alignment: int = 1, target: Any = None) -> Mapping:
    """Rows sorted by expert for every choice of every token: expert after expert, within an expert by token and then by
    choice, each expert's rows rounded up to the alignment.

    chosen     [tokens, k] int32, as route returns it; entries outside of 0 ... experts - 1 get no row (-1 by custom);
               NumPy or torch
    experts    how many there are
    alignment  rows of an expert are rounded up to a multiple of it
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns a Mapping. It has tokens * k rows, and with an alignment as many more as the padding can take.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError unless experts and alignment are positive.
    """
    name = "token_mapping"
    arrays.dtype_of(name, "chosen", chosen, ("int32",))
    tokens, k = arrays.rank(name, "chosen", chosen, "tokens, k")
    if experts < 1 or alignment < 1:
        raise TileValueError(f"{name}: experts is {experts}, alignment {alignment}, expected positive numbers")
    pairs = tokens * k
    rows = pairs + min(experts, pairs) * (alignment - 1)
    int32 = as_dtype("int32")
    made = [allocate(s, int32, chosen) for s in ((tokens, k), (rows,), (experts,), (experts,), (experts + 1,))]
    base = allocate((blocks(pairs, CHUNK), experts), int32, chosen)
    kernel = _mapping_kernel(experts, tiles_for(target).threads)
    flat = arrays.dense(chosen).reshape(pairs)
    kernel(flat, int(alignment), base, made[0].reshape(pairs), *made[1:], target=target)
    return Mapping(*made)


@tiledsl.jit
def expand_kernel(dtype: DType, threads: int = 128) -> Any:
    """Y[r] = X[P[r] // per]; 0 where P[r] is -1."""
    M, N, R = T.dynamic("M"), T.dynamic("N"), T.dynamic("R")
    ldx = T.dynamic("ldx", "int64")

    @T.prim_func
    def expand(
        X: T.StridedTensor((M, N), (ldx, 1), dtype),
        P: T.Tensor((R,), T.int32),
        per: T.int32,
        Y: T.Tensor((R, N), dtype),
    ):
        with T.Kernel(T.ceildiv(N, WIDTH), R, threads=threads) as (bx, r):
            pair = P[r]
            row = T.if_then_else(pair < 0, -1, pair // per)  # out of range reads 0
            for j in T.Parallel(WIDTH):
                Y[r, bx * WIDTH + j] = X[row, bx * WIDTH + j]

    return expand


_expand_kernel = cache(expand_kernel)


def expand(x: Any, mapping: Mapping, *, target: Any = None) -> Any:
    """The rows of x sorted by expert: y[r] = x[token of row r], 0 for padding (scales that are float8_e8m0fnu: 2^-127).

    x        [tokens, n], or [tokens, k, n] with a row per choice; float32, bfloat16, float16, FP8, float8_e8m0fnu,
             uint8, int8 or int32; NumPy (ml_dtypes) or torch
    mapping  token_mapping's result
    target   where to run (default: TILEDSL_TARGET, else auto)

    Returns [mapping.rows, n]. Raises TileTypeError for wrong dtypes or shapes.
    """
    name = "expand"
    dtype = arrays.dtype_of(name, "x", x, MOVED)
    tokens, k = (int(n) for n in mapping.slots.shape)
    per_choice = x.ndim == 3
    shape = arrays.rank(name, "x", x, "tokens, k, n" if per_choice else "tokens, n")
    if shape[:-1] != ((tokens, k) if per_choice else (tokens,)):
        raise TileTypeError(f"{name}: {arrays.describe(x=x)}, but the mapping is of {tokens} tokens and {k} choices")
    y = allocate((mapping.rows, shape[-1]), dtype, x)
    if math.prod(y.shape):
        source = arrays.dense(x).reshape(tokens * k, shape[-1]) if per_choice else arrays.unit_last(x)
        kernel = _expand_kernel(dtype, tiles_for(target).threads)
        kernel(source, mapping.pairs, 1 if per_choice else k, y, target=target)
    return y


@tiledsl.jit
def reduce_rows_kernel(dtype: DType, out_dtype: DType, weighted: bool, added: bool, threads: int = 128) -> Any:
    """Y[t] = sum of W[t, j] X[S[t, j]] over j = 0, 1, ..., then + A[t]; float32, one rounding at the end."""
    M, N, R, K = T.dynamic("M"), T.dynamic("N"), T.dynamic("R"), T.dynamic("K")

    @T.prim_func
    def reduce_rows(
        X: T.Tensor((R, N), dtype),
        S: T.Tensor((M, K), T.int32),
        W: T.Tensor((M, K), T.float32),
        A: T.Tensor((M, N), dtype),
        Y: T.Tensor((M, N), out_dtype),
    ):
        with T.Kernel(T.ceildiv(N, WIDTH), M, threads=threads) as (bx, t):
            total = T.alloc_fragment((WIDTH,), T.float32)
            T.clear(total)
            for k in T.serial(K):
                slot = S[t, k]
                if slot >= 0:
                    for j in T.Parallel(WIDTH):
                        value = T.cast(X[slot, bx * WIDTH + j], T.float32)
                        total[j] = total[j] + (value * W[t, k] if weighted else value)
            for j in T.Parallel(WIDTH):
                value = total[j]
                Y[t, bx * WIDTH + j] = value + A[t, bx * WIDTH + j] if added else value

    return reduce_rows


_reduce_rows_kernel = cache(reduce_rows_kernel)


def reduce_rows(
    x: Any, mapping: Mapping, weights: Any = None, *, add: Any = None, out_dtype: Any = None, target: Any = None
) -> Any:
    """Back from experts to tokens: y[t] = sum over j of weights[t, j] x[slots[t, j]], then + add[t].

    x          [mapping.rows, n], float32, bfloat16 or float16; NumPy (ml_dtypes) or torch
    mapping    token_mapping's result
    weights    [tokens, k] float32; None: 1
    add        [tokens, n] of the dtype of x (a shared expert's result), or None
    out_dtype  "bfloat16", "float32" or "float16"; default: that of x
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, n]: summed in float32 in the order of the choices, whatever the rows are, and rounded once.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    name = "reduce_rows"
    dtype = arrays.dtype_of(name, "x", x, ("float32", "bfloat16", "float16"))
    rows, n = arrays.rank(name, "x", x, "rows, n")
    tokens, k = (int(s) for s in mapping.slots.shape)
    if rows != mapping.rows:
        raise TileTypeError(f"{name}: {arrays.describe(x=x)}, but the mapping has {mapping.rows} rows")
    if weights is not None:
        arrays.dtype_of(name, "weights", weights, ("float32",))
        if tuple(weights.shape) != (tokens, k):
            raise TileTypeError(f"{name}: {arrays.describe(weights=weights)}, expected [{tokens}, {k}]")
    if add is not None and (arrays.floats(name, x=x, add=add), tuple(add.shape)) != (dtype, (tokens, n)):
        raise TileTypeError(f"{name}: {arrays.describe(add=add)}, expected [{tokens}, {n}]")
    y = allocate((tokens, n), arrays.out_dtype(name, out_dtype, None, dtype), x)
    if tokens and n:
        form = dtype, as_dtype(y.dtype), weights is not None, add is not None, tiles_for(target).threads
        w, a = (None if o is None else arrays.dense(o) for o in (weights, add))
        _reduce_rows_kernel(*form)(arrays.dense(x), mapping.slots, w, a, y, target=target)
    return y
