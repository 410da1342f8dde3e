"""Which experts a token goes to, and with what weight: scores, selection with a bias and by groups, hash-routed layers;
the gradient of the weights."""

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

__all__ = ["route", "route_backward", "route_backward_kernel", "route_kernel"]

SCORES = ("sqrtsoftplus", "sigmoid")
ROWS = 4
LOWEST = -(2**31)


def ordered(x: Any) -> Any:
    """A float32 as an int32 of the same order; NaN below all, -0 equals 0."""
    bits = T.reinterpret(T.if_then_else(x == 0.0, 0.0, x), T.int32)
    return T.if_then_else(x == x, T.if_then_else(bits >= 0, bits, bits ^ 0x7FFFFFFF), LOWEST + 1)


def scored(z: Any, score: str) -> Any:
    """The score of a logit; NaN of NaN."""
    if score == "sigmoid":
        return 1.0 / (1.0 + T.exp(-z))
    s = T.sqrt(T.if_then_else(z > 20.0, z, T.log1p(T.exp(T.min(z, 20.0)))))
    return T.if_then_else(z == z, s, z)


@T.macro
def keep_groups(value, key, rank, experts, groups, kept, pairs):
    """key = LOWEST for the experts outside of the `kept` best groups; a group is worth its largest value, with `pairs`
    the sum of its two largest; NaN counts as -inf, and of equal groups the first is better."""
    per = experts // groups
    for i, g in T.Parallel(ROWS, groups):
        best = T.alloc_var(T.float32, -T.infinity(T.float32))
        second = T.alloc_var(T.float32, -T.infinity(T.float32))
        for e in T.serial(per):
            v = value[i, g * per + e]
            v = T.if_then_else(v == v, v, -T.infinity(T.float32))
            second = T.max(second, T.min(best, v))
            best = T.max(best, v)
        rank[i, g] = ordered(best + second if pairs and per > 1 else best)
    for i, j in T.Parallel(ROWS, experts):
        better = T.alloc_var(T.int32, 0)
        for g in T.serial(groups):
            more = rank[i, g] > rank[i, j // per] or (rank[i, g] == rank[i, j // per] and g < j // per)
            better = better + T.if_then_else(more, 1, 0)
        key[i, j] = T.if_then_else(better < kept, key[i, j], LOWEST)


@tiledsl.jit
def route_kernel(
    experts: int, k: int, score: str, has_bias: bool, given: bool, groups: int, kept: int, threads: int = 128
) -> Any:
    """S = score(Z); the k experts with the largest S + B, one after the other, the first of equals, out of the `kept`
    best groups; or those that Table has for the token. W = S of the chosen / (their sum + eps) * scale."""
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
            value = T.alloc_shared((ROWS, experts), T.float32)
            key = T.alloc_fragment((ROWS, experts), T.int32)
            rank = T.alloc_shared((ROWS, groups), T.int32)
            place = T.alloc_fragment((ROWS, experts), T.int32)
            best = T.alloc_fragment((ROWS,), T.int32)
            at = T.alloc_fragment((ROWS,), T.int32)
            chosen = T.alloc_shared((ROWS, k), T.int32)
            picked = T.alloc_fragment((ROWS, k), T.float32)
            total = T.alloc_fragment((ROWS,), T.float32)
            for i, j in T.Parallel(ROWS, experts):
                z = Z[by * ROWS + i, j]
                s[i, j] = scored(z, score)
                value[i, j] = s[i, j] + B[j] if has_bias else s[i, j]
                key[i, j] = ordered(value[i, j])
            if kept < groups:
                keep_groups(value, key, rank, experts, groups, kept, has_bias)
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


@tiledsl.jit
def route_backward_kernel(experts: int, k: int, score: str, threads: int = 128) -> Any:
    """With T = the sum of the chosen S + eps and W = scale S / T: dS = (scale dW - sum dW W) / T of the chosen;
    dZ = dS S (1 - S) (sigmoid), or dS S'(Z) = dS sigmoid(Z) / 2 S."""
    M = T.dynamic("M")
    ldz = T.dynamic("ldz", "int64")

    @T.prim_func
    def route_backward(
        Z: T.StridedTensor((M, experts), (ldz, 1), T.float32),
        I: T.Tensor((M, k), T.int32),
        dW: T.Tensor((M, k), T.float32),
        scale: T.float32,
        eps: T.float32,
        dZ: T.Tensor((M, experts), T.float32),
    ):
        with T.Kernel(T.ceildiv(M, ROWS), threads=threads) as by:
            s = T.alloc_shared((ROWS, experts), T.float32)
            chosen = T.alloc_shared((ROWS, k), T.int32)
            ds = T.alloc_shared((ROWS, k), T.float32)
            picked = T.alloc_fragment((ROWS, k), T.float32)
            total = T.alloc_fragment((ROWS,), T.float32)
            shared = T.alloc_fragment((ROWS,), T.float32)
            T.copy(I[by * ROWS, 0], chosen)
            for i, j in T.Parallel(ROWS, experts):
                s[i, j] = scored(Z[by * ROWS + i, j], score)
            for i, n in T.Parallel(ROWS, k):
                fits = chosen[i, n] >= 0 and chosen[i, n] < experts
                picked[i, n] = T.if_then_else(fits, s[i, T.clamp(chosen[i, n], 0, experts - 1)], 0.0)
            T.reduce_sum(picked, total, dim=1)
            for i, n in T.Parallel(ROWS, k):
                ds[i, n] = dW[by * ROWS + i, n] * scale
                picked[i, n] = ds[i, n] * (picked[i, n] / (total[i] + eps))
            T.reduce_sum(picked, shared, dim=1)
            for i, j in T.Parallel(ROWS, experts):
                z = Z[by * ROWS + i, j]
                d = T.alloc_var(T.float32, 0.0)
                some = T.alloc_var(T.int32, 0)
                for n in T.serial(k):
                    if chosen[i, n] == j:
                        d = d + (ds[i, n] - shared[i]) / (total[i] + eps)
                        some = 1
                slope = s[i, j] * (1.0 - s[i, j])
                if score != "sigmoid":
                    above = T.if_then_else(z > 20.0, 1.0, 1.0 / (1.0 + T.exp(-z)))
                    slope = T.if_then_else(s[i, j] == 0.0, 0.0, above / (2.0 * s[i, j]))
                dZ[by * ROWS + i, j] = T.if_then_else(some > 0, d * slope, 0.0)

    return route_backward


_route_kernel = cache(route_kernel)  # the same values, the same kernel
_route_backward_kernel = cache(route_backward_kernel)


def _logits(name: str, logits: Any, score: str) -> tuple[int, int]:
    arrays.dtype_of(name, "logits", logits, ("float32",))
    if score not in SCORES:
        raise TileValueError(f"{name}: score is {score!r}, expected {' or '.join(SCORES)}")
    m, experts = arrays.rank(name, "logits", logits, "tokens, experts")
    return m, experts


def route(
    logits: Any,
    k: int | None = None,
    *,
    bias: Any = None,
    score: str = "sqrtsoftplus",
    scale: float = 1.0,
    eps: float = 1e-20,
    groups: int = 1,
    kept: int | None = None,
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
    scale      the routing scale: 1.5 (V4-Flash), 2.5 (V4-Pro and V3.2)
    groups     experts are cut into so many groups, of which the `kept` best stay (DeepSeek-V3.2: 8 and 4); a group is
               worth its largest s, with a bias the sum of its two largest s + bias; kept: None: all
    token_ids  [tokens] int32 or int64 and
    table      [words, k] int32: hash-routed layers, where table[token_id] names the experts; both or neither; weights
               still come from the logits
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns (weights [tokens, k] float32, experts [tokens, k] int32), in the order of choice (of the table). Of equal
    values the smaller expert (group) comes first. A NaN is chosen after all numbers, and the weights of a token that
    has one among its chosen are NaN; in the worth of a group it counts as -inf. An expert of the table that does not
    exist has weight 0. The sum has one order; a row does not depend on another.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for k outside of 1 ... experts (of the groups kept),
    an unknown score, groups that do not divide the experts, and token ids outside of the table (where they lie on the
    host).
    """
    name = "route"
    m, experts = _logits(name, logits, score)
    kept = groups if kept is None else kept
    if groups < 1 or experts % groups or not 1 <= kept <= groups:
        raise TileValueError(
            f"{name}: groups is {groups}, kept {kept}: {arrays.describe(logits=logits)}",
            help="groups divides the experts, and 1 to groups are kept",
        )
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
    most = experts if table is not None else experts // groups * kept
    if k is None or not 1 <= int(k) <= most:
        raise TileValueError(f"{name}: k is {k}, but there are {most} experts: {arrays.describe(logits=logits)}")
    if bias is not None:
        arrays.dtype_of(name, "bias", bias, ("float32",))
        arrays.check_vector(name, "bias", bias, logits)
    weights, chosen = (allocate((m, int(k)), as_dtype(t), logits) for t in ("float32", "int32"))
    if m:
        ids = None if token_ids is None else arrays.dense(arrays.as_int32(token_ids))
        form = experts, int(k), score, bias is not None, table is not None, groups, kept
        kernel = _route_kernel(*form, tiles_for(target).threads)
        b, names = (None if x is None else arrays.dense(x) for x in (bias, table))
        kernel(arrays.unit_last(logits), b, ids, names, float(scale), float(eps), weights, chosen, target=target)
    return weights, chosen


def route_backward(
    logits: Any,
    chosen: Any,
    dweights: Any,
    *,
    score: str = "sqrtsoftplus",
    scale: float = 1.0,
    eps: float = 1e-20,
    target: Any = None,
) -> Any:
    """The gradient of the weights of route with respect to the logits; the choice itself has none, nor has the bias.
    With w = scale s / (sum of the chosen s + eps): ds = (scale dw - sum dw w) / (sum + eps) for the chosen experts, 0
    for the others; dz = ds s (1 - s) for "sigmoid", ds sigmoid(z) / (2 s) for "sqrtsoftplus" (1 / (2 s) above 20).

    logits, score, scale, eps, target   as in route
    chosen    [tokens, k] int32, as route returned it; experts that do not exist count for nothing
    dweights  [tokens, k] float32, the gradient with respect to the weights

    Returns [tokens, experts] float32. A row does not depend on another; sums over the choices have one order. NaN among
    the chosen scores of a token gives NaN for all of its chosen experts.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for an unknown score.
    """
    name = "route_backward"
    m, experts = _logits(name, logits, score)
    arrays.dtype_of(name, "chosen", chosen, ("int32",))
    arrays.dtype_of(name, "dweights", dweights, ("float32",))
    rows, k = arrays.rank(name, "chosen", chosen, "tokens, k")
    if rows != m or tuple(dweights.shape) != (m, k):
        given = arrays.describe(logits=logits, chosen=chosen, dweights=dweights)
        raise TileTypeError(f"{name}: {given} do not fit", help="chosen and dweights are [tokens, k]")
    dlogits = allocate((m, experts), as_dtype("float32"), logits)
    if m and experts:
        kernel = _route_backward_kernel(experts, k, score, tiles_for(target).threads)
        inputs = arrays.unit_last(logits), arrays.dense(chosen), arrays.dense(dweights)
        kernel(*inputs, float(scale), float(eps), dlogits, target=target)
    return dlogits
