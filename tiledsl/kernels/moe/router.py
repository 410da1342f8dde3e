"""Which experts a token goes to, and with what weight: scores, selection with a bias, hash-routed layers."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["route", "route_kernel"]

SCORES = ("sqrtsoftplus", "sigmoid")
ROWS = 4
LOWEST = -(2**31)


def ordered(x: Any) -> Any:
    """A float32 as an int32 of the same order; NaN below all, -0 equals 0."""
    bits = T.reinterpret(T.if_then_else(x == 0.0, 0.0, x), T.int32)
    return T.if_then_else(x == x, T.if_then_else(bits >= 0, bits, bits ^ 0x7FFFFFFF), LOWEST + 1)


@tiledsl.jit
def route_kernel(experts: int, k: int, score: str, has_bias: bool, given: bool, threads: int = 128) -> Any:
    """S = score(Z); the k experts with the largest S + B, one after the other, the first of equals; or those that
    Table has for the token. W = S of the chosen / (their sum + eps) * scale."""
    M, words = T.dynamic("M"), T.dynamic("words") if given else 1
    ldz = T.dynamic("ldz", "int64")

    @T.prim_func
    def route(
        Z: T.StridedTensor((M, experts), (ldz, 1), T.float32),
        B: T.Tensor((experts,), T.float32),
        tokens: T.Tensor((M,), T.int32),
        Table: T.Tensor((words, k), T.int32),
        scale: T.float32,
        eps: T.float32,
        W: T.Tensor((M, k), T.float32),
        I: T.Tensor((M, k), T.int32),
    ):
        with T.Kernel(T.ceildiv(M, ROWS), threads=threads) as by:
            s = T.alloc_shared((ROWS, experts), T.float32)
            key = T.alloc_fragment((ROWS, experts), T.int32)
            place = T.alloc_fragment((ROWS, experts), T.int32)
            best = T.alloc_fragment((ROWS,), T.int32)
            at = T.alloc_fragment((ROWS,), T.int32)
            chosen = T.alloc_shared((ROWS, k), T.int32)
            picked = T.alloc_fragment((ROWS, k), T.float32)
            total = T.alloc_fragment((ROWS,), T.float32)
            for i, j in T.Parallel(ROWS, experts):
                z = Z[by * ROWS + i, j]
                if score == "sigmoid":
                    s[i, j] = 1.0 / (1.0 + T.exp(-z))
                else:
                    s[i, j] = T.sqrt(T.if_then_else(z > 20.0, z, T.log1p(T.exp(T.min(z, 20.0)))))
                    s[i, j] = T.if_then_else(z == z, s[i, j], z)
                key[i, j] = ordered(s[i, j] + B[j] if has_bias else s[i, j])
            if given:
                for i, n in T.Parallel(ROWS, k):
                    chosen[i, n] = T.if_then_else(by * ROWS + i < M, Table[tokens[by * ROWS + i], n], 0)
            else:
                for n in T.serial(k):
                    T.reduce_max(key, best, dim=1)
                    for i, j in T.Parallel(ROWS, experts):
                        place[i, j] = T.if_then_else(key[i, j] == best[i], j, experts)
                    T.reduce_min(place, at, dim=1)
                    for i in T.Parallel(ROWS):
                        chosen[i, n] = at[i]
                    for i, j in T.Parallel(ROWS, experts):
                        key[i, j] = T.if_then_else(j == at[i], LOWEST, key[i, j])
            for i, n in T.Parallel(ROWS, k):
                fits = chosen[i, n] >= 0 and chosen[i, n] < experts
                picked[i, n] = T.if_then_else(fits, s[i, T.clamp(chosen[i, n], 0, experts - 1)], 0.0)
            T.reduce_sum(picked, total, dim=1)
            for i, n in T.Parallel(ROWS, k):
                W[by * ROWS + i, n] = picked[i, n] / (total[i] + eps) * scale
            T.copy(chosen, I[by * ROWS, 0])

    return route


_route_kernel = cache(route_kernel)  # the same values, the same kernel


def route(
    logits: Any,
    k: int | None = None,
    *,
    bias: Any = None,
    score: str = "sqrtsoftplus",
    scale: float = 1.0,
    eps: float = 1e-20,
    token_ids: Any = None,
    table: Any = None,
    target: Any = None,
) -> tuple[Any, Any]:
    """Experts and weights of each token (DeepSeek-V4): s = sqrt(softplus(z)) with softplus(z) = log(1 + exp(z)), z
    itself above 20 (score="sigmoid": 1 / (1 + exp(-z)), as DeepSeek-V3); the k experts with the largest s + bias are
    chosen, the bias deciding on the choice alone; their weights are s / (sum of the chosen s + eps) * scale.

    logits     [tokens, experts] float32; NumPy or torch
    k          1 ... experts; left out with a table
    bias       [experts] float32, or None
    score      "sqrtsoftplus" or "sigmoid"
    scale      the routing scale: 1.5 (V4-Flash), 2.5 (V4-Pro)
    token_ids  [tokens] int32 or int64 and
    table      [words, k] int32: hash-routed layers, where table[token_id] names the experts; both or neither; weights
               still come from the logits
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns (weights [tokens, k] float32, experts [tokens, k] int32), in the order of choice (of the table). Of equal
    values the smaller expert comes first. A NaN is chosen after all numbers, and the weights of a token that has one
    among its chosen are NaN. An expert of the table that does not exist has weight 0. The sum has one order; a row
    does not depend on another.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for k outside of 1 ... experts, an unknown score,
    and token ids outside of the table (where they lie on the host).
    """
    name = "route"
    arrays.dtype_of(name, "logits", logits, ("float32",))
    m, experts = arrays.rank(name, "logits", logits, "tokens, experts")
    if score not in SCORES:
        raise TileValueError(f"{name}: score is {score!r}, expected {' or '.join(SCORES)}")
    if (token_ids is None) is not (table is None):
        raise TileTypeError(f"{name}: token_ids and table come together")
    if table is not None:
        arrays.dtype_of(name, "table", table, ("int32",))
        arrays.dtype_of(name, "token_ids", token_ids, ("int32", "int64"))
        words, columns = arrays.rank(name, "table", table, "words, k")
        k = columns if k is None else k
        if columns != k or tuple(token_ids.shape) != (m,):
            raise TileTypeError(
                f"{name}: {arrays.describe(logits=logits, token_ids=token_ids, table=table)} do not fit"
            )
        arrays.check_size(name, "token_ids", token_ids, 0, words - 1)
    if k is None or not 1 <= int(k) <= experts:
        raise TileValueError(f"{name}: k is {k}, but there are {experts} experts: {arrays.describe(logits=logits)}")
    if bias is not None:
        arrays.dtype_of(name, "bias", bias, ("float32",))
        arrays.check_vector(name, "bias", bias, logits)
    weights, chosen = (allocate((m, int(k)), as_dtype(t), logits) for t in ("float32", "int32"))
    if m:
        ids = None if token_ids is None else arrays.dense(arrays.as_int32(token_ids))
        kernel = _route_kernel(experts, int(k), score, bias is not None, table is not None, tiles_for(target).threads)
        b, names = (None if x is None else arrays.dense(x) for x in (bias, table))
        kernel(arrays.unit_last(logits), b, ids, names, float(scale), float(eps), weights, chosen, target=target)
    return weights, chosen
