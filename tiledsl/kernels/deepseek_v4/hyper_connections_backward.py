"""The gradients of hyper-connections: of both mixtures, of Sinkhorn's iteration, and of the parameters."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.deepseek_v4.hyper_connections import (
    COLUMNS,
    K_TILE,
    Mixes,
    check_post,
    check_streams,
    sigmoid,
    sinkhorn_start,
    sinkhorn_step,
)
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["hyper_head_backward", "hyper_post_backward", "hyper_post_backward_kernel", "hyper_pre_backward"]
__all__ += ["hyper_pre_backward_kernel"]

ROWS = 16  # tokens of a block
SUM_ROWS = 64  # tokens that enter a parameter's gradient at a time: a reduced axis, so one number for all targets


@tiledsl.jit
def hyper_post_backward_kernel(n: int, dtype: DType, threads: int = 128) -> Any:
    """dF = sum_j Post[j] dY[j], dX[m] = sum_j Comb[m, j] dY[j], dPost[j] = dY[j] . F, dComb[m, j] = X[m] . dY[j]."""
    M, D = T.dynamic("M"), T.dynamic("D")

    @T.prim_func
    def hyper_post_backward(
        F: T.Tensor((M, D), dtype),
        X: T.Tensor((M, n, D), dtype),
        Post: T.Tensor((M, n), T.float32),
        Comb: T.Tensor((M, n, n), T.float32),
        dY: T.Tensor((M, n, D), dtype),
        dF: T.Tensor((M, D), dtype),
        dX: T.Tensor((M, n, D), dtype),
        dPost: T.Tensor((M, n), T.float32),
        dComb: T.Tensor((M, n, n), T.float32),
    ):
        with T.Kernel(M, threads=threads) as t:
            terms = T.alloc_fragment((n + 1, COLUMNS), T.float32)
            dots = T.alloc_fragment((n, n + 1), T.float32)
            part = T.alloc_fragment((n + 1,), T.float32)
            T.clear(dots)
            for k in T.serial(T.ceildiv(D, COLUMNS)):
                for i in T.Parallel(COLUMNS):
                    total = T.alloc_var(T.float32, 0.0)
                    for j in T.unroll(n):
                        total = total + Post[t, j] * dY[t, j, k * COLUMNS + i]
                    dF[t, k * COLUMNS + i] = total
                for a in T.serial(n):
                    for i in T.Parallel(COLUMNS):
                        total = T.alloc_var(T.float32, 0.0)
                        for j in T.unroll(n):
                            total = total + Comb[t, a, j] * dY[t, j, k * COLUMNS + i]
                        dX[t, a, k * COLUMNS + i] = total
                for j in T.serial(n):
                    for i in T.Parallel(COLUMNS):
                        g = T.cast(dY[t, j, k * COLUMNS + i], T.float32)
                        terms[n, i] = g * F[t, k * COLUMNS + i]
                        for a in T.unroll(n):
                            terms[a, i] = g * X[t, a, k * COLUMNS + i]
                    T.reduce_sum(terms, part, dim=1)
                    for a in T.Parallel(n + 1):
                        dots[j, a] = dots[j, a] + part[a]
            for j in T.Parallel(n):
                dPost[t, j] = dots[j, n]
            for a, j in T.Parallel(n, n):
                dComb[t, a, j] = dots[j, a]

    return hyper_post_backward


_hyper_post_backward_kernel = cache(hyper_post_backward_kernel)  # the same values, the same kernel


def hyper_post_backward(
    f: Any, x: Any, post: Any, comb: Any, dy: Any, *, target: Any = None
) -> tuple[Any, Any, Any, Any]:
    """The gradients of hyper_post: df = sum_j post_j dy_j, dx_m = sum_j comb[m, j] dy_j, dpost_j = dy_j . f,
    dcomb[m, j] = x_m . dy_j.

    f, x, post, comb, target   as in hyper_post
    dy                         the gradient with respect to the result, like x

    Returns (df, dx, dpost, dcomb), like f, x, post and comb. Computed in float32; sums have one order.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    name = "hyper_post_backward"
    dtype, (m, n, d) = check_post(name, f, x, post, comb)
    if arrays.floats(name, x=x, dy=dy) is not dtype or tuple(dy.shape) != (m, n, d):
        raise TileTypeError(f"{name}: dy does not fit: {arrays.describe(x=x, dy=dy)}")
    f32 = as_dtype("float32")
    made = [allocate(s, t, x) for s, t in (((m, d), dtype), ((m, n, d), dtype), ((m, n), f32), ((m, n, n), f32))]
    if m:
        kernel = _hyper_post_backward_kernel(n, dtype, tiles_for(target).threads)
        kernel(*(arrays.dense(a) for a in (f, x, post, comb, dy)), *made, target=target)
    return tuple(made)


@tiledsl.jit
def hyper_pre_backward_kernel(n: int, iterations: int, head: bool, dtype: DType, threads: int = 128) -> Any:
    """Four launches: gradients of a token's mixes; of its streams; of fn; of scale and base. head: only pre was made.

    A step of Sinkhorn's iteration, C' = C / t with t = sum C + eps, turns a gradient g into (g - sum g C') / t; the
    matrices of all steps are computed again and kept.
    """
    M, D = T.dynamic("M"), T.dynamic("D")
    mixes, steps, size = n if head else n * (n + 2), 2 * iterations, n * n
    scales = 1 if head else 3

    @T.prim_func
    def hyper_pre_backward(
        X: T.Tensor((M, n, D), dtype),
        fn: T.Tensor((mixes, n, D), T.float32),
        scale: T.Tensor((scales,), T.float32),
        base: T.Tensor((mixes,), T.float32),
        eps: T.float32,
        Mix: T.Tensor((M, mixes), T.float32),
        R: T.Tensor((M,), T.float32),
        dY: T.Tensor((M, D), dtype),
        dPost: T.Tensor((M, n), T.float32),
        dComb: T.Tensor((M, n, n), T.float32),
        Pre: T.Tensor((M, n), T.float32),
        Coef: T.Tensor((M,), T.float32),
        dMix: T.Tensor((M, mixes), T.float32),
        dLogit: T.Tensor((M, mixes), T.float32),
        dX: T.Tensor((M, n, D), dtype),
        dfn: T.Tensor((mixes, n, D), T.float32),
        dscale: T.Tensor((scales,), T.float32),
        dbase: T.Tensor((mixes,), T.float32),
    ):
        with T.Kernel(T.ceildiv(M, ROWS), threads=threads) as by:
            terms = T.alloc_fragment((ROWS, K_TILE), T.float32)
            dot = T.alloc_fragment((ROWS,), T.float32)
            dpre = T.alloc_fragment((n, ROWS), T.float32)
            history = T.alloc_shared((steps, size, ROWS), T.float32)
            for a in T.serial(n):
                T.clear(dot)
                for k in T.serial(T.ceildiv(D, K_TILE)):
                    for i, j in T.Parallel(ROWS, K_TILE):
                        terms[i, j] = (
                            T.cast(dY[by * ROWS + i, k * K_TILE + j], T.float32) * X[by * ROWS + i, a, k * K_TILE + j]
                        )
                    T.reduce_sum(terms, dot, dim=1, clear=False)
                for i in T.Parallel(ROWS):
                    dpre[a, i] = dot[i]
            for i in T.Parallel(ROWS):
                row = by * ROWS + i
                if row < M:
                    r = R[row]
                    g = T.alloc_local((mixes,), T.float32)
                    for a in T.unroll(n):
                        s = sigmoid(Mix[row, a] * r * scale[0] + base[a])
                        Pre[row, a] = s + eps
                        g[a] = dpre[a, i] * (s * (1.0 - s))
                    if not head:
                        c = T.alloc_local((size,), T.float32)
                        for a in T.unroll(n):
                            s = sigmoid(Mix[row, n + a] * r * scale[1] + base[n + a])
                            g[n + a] = dPost[row, a] * (2.0 * (s * (1.0 - s)))
                        for q in T.unroll(size):
                            c[q] = Mix[row, 2 * n + q] * r * scale[2] + base[2 * n + q]
                        sinkhorn_start(c, n, eps)
                        for q in T.unroll(size):
                            history[0, q, i] = c[q]
                        for step in T.serial(1, steps):
                            if step % 2 == 1:
                                sinkhorn_step(c, n, eps, 1, n)
                            else:
                                sinkhorn_step(c, n, eps, n, 1)
                            for q in T.unroll(size):
                                history[step, q, i] = c[q]
                        for a in T.unroll(n):
                            for b in T.unroll(n):
                                c[a * n + b] = dComb[row, a, b]  # from here on the gradient
                        for back in T.serial(steps - 1):
                            step = steps - 1 - back
                            columns = step % 2 == 1
                            for a in T.unroll(n):
                                weighted = T.alloc_var(T.float32, 0.0)
                                total = T.alloc_var(T.float32, 0.0)
                                for b in T.unroll(n):
                                    q = T.if_then_else(columns, b * n + a, a * n + b)
                                    weighted = weighted + c[q] * history[step, q, i]
                                    total = total + history[step - 1, q, i]
                                for b in T.unroll(n):
                                    q = T.if_then_else(columns, b * n + a, a * n + b)
                                    c[q] = (c[q] - weighted) / (total + eps)
                        for a in T.unroll(n):
                            weighted = T.alloc_var(T.float32, 0.0)
                            for b in T.unroll(n):
                                weighted = weighted + c[a * n + b] * (history[0, a * n + b, i] - eps)
                            for b in T.unroll(n):
                                chance = history[0, a * n + b, i] - eps
                                g[2 * n + a * n + b] = chance * (c[a * n + b] - weighted)
                    dr = T.alloc_var(T.float32, 0.0)
                    for j in T.unroll(mixes):
                        factor = scale[0]
                        if not head:
                            factor = T.if_then_else(j < n, scale[0], T.if_then_else(j < 2 * n, scale[1], scale[2]))
                        dLogit[row, j] = g[j]
                        dMix[row, j] = g[j] * factor * r
                        dr = dr + g[j] * factor * Mix[row, j]
                    # r = (mean x^2 + eps)^(-1/2): dr / dx = -r^3 x / (n d)
                    Coef[row] = -(dr * (r * r * r)) / T.cast(n * D, T.float32)
        with T.Kernel(T.ceildiv(D, COLUMNS), n, T.ceildiv(M, ROWS), threads=threads) as (bx, s, by):
            d = T.alloc_shared((ROWS, mixes), T.float32)
            f = T.alloc_shared((mixes, COLUMNS), T.float32)
            acc = T.alloc_fragment((ROWS, COLUMNS), T.float32)
            T.copy(dMix[by * ROWS, 0], d)
            T.copy(fn[0:mixes, s, bx * COLUMNS : (bx + 1) * COLUMNS], f)
            T.gemm(d, f, acc, clear_accum=True)
            for i, j in T.Parallel(ROWS, COLUMNS):
                row, column = by * ROWS + i, bx * COLUMNS + j
                direct = Pre[row, s] * dY[row, column]
                dX[row, s, column] = acc[i, j] + direct + Coef[row] * X[row, s, column]
        with T.Kernel(T.ceildiv(D, COLUMNS), n, threads=threads) as (bx, s):
            d = T.alloc_shared((SUM_ROWS, mixes), T.float32)
            x = T.alloc_shared((SUM_ROWS, COLUMNS), T.float32)
            acc = T.alloc_fragment((mixes, COLUMNS), T.float32)
            T.clear(acc)
            for k in T.Pipelined(T.ceildiv(M, SUM_ROWS), num_stages=2):
                T.copy(dMix[k * SUM_ROWS, 0], d)
                T.copy(X[k * SUM_ROWS : (k + 1) * SUM_ROWS, s, bx * COLUMNS : (bx + 1) * COLUMNS], x)
                T.gemm(d, x, acc, transpose_A=True)
            T.copy(acc, dfn[0:mixes, s, bx * COLUMNS : (bx + 1) * COLUMNS])
        with T.Kernel(1, threads=threads):
            g = T.alloc_fragment((SUM_ROWS, mixes), T.float32)
            to_base = T.alloc_fragment((mixes,), T.float32)
            to_scale = T.alloc_fragment((mixes,), T.float32)
            T.clear(to_base)
            T.clear(to_scale)
            for k in T.serial(T.ceildiv(M, SUM_ROWS)):
                T.copy(dLogit[k * SUM_ROWS, 0], g)
                T.reduce_sum(g, to_base, dim=0, clear=False)
                for i, j in T.Parallel(SUM_ROWS, mixes):
                    g[i, j] = g[i, j] * (Mix[k * SUM_ROWS + i, j] * R[k * SUM_ROWS + i])
                T.reduce_sum(g, to_scale, dim=0, clear=False)
            T.copy(to_base, dbase)
            for part in T.Parallel(scales):
                total = T.alloc_var(T.float32, 0.0)
                for j in T.serial(mixes):
                    mine = T.if_then_else(j < n, 0, T.if_then_else(j < 2 * n, 1, 2)) == part
                    total = total + T.if_then_else(mine, to_scale[j], 0.0)
                dscale[part] = total

    return hyper_pre_backward


_hyper_pre_backward_kernel = cache(hyper_pre_backward_kernel)


def hyper_pre_backward(
    x: Any,
    fn: Any,
    scale: Any,
    base: Any,
    saved: Mixes,
    dy: Any,
    dpost: Any,
    dcomb: Any,
    *,
    iterations: int = 20,
    eps: float = 1e-6,
    target: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """The gradients of hyper_pre, through Sinkhorn's iteration.

    x, fn, scale, base, iterations, eps, target   as in hyper_pre
    saved        the Mixes that hyper_pre returned
    dy           [tokens, d], the gradient with respect to y, of the dtype of x
    dpost, dcomb [tokens, n] and [tokens, n, n] float32, the gradients with respect to post and comb

    Returns (dx like x, dfn, dscale, dbase, float32 like the parameters). Computed in float32, each rounded once; sums
    over tokens have one owner and one order; dx of a token does not depend on others.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for iterations below 1 or a negative eps.
    """
    given = {"dpost": dpost, "dcomb": dcomb}
    return _pre_backward("hyper_pre_backward", x, fn, scale, base, saved, dy, given, iterations, eps, target)


def hyper_head_backward(
    x: Any, fn: Any, scale: Any, base: Any, saved: Mixes, dy: Any, *, eps: float = 1e-6, target: Any = None
) -> tuple[Any, Any, Any, Any]:
    """The gradients of hyper_head.

    x, fn, scale, base, eps, target   as in hyper_head
    saved   the Mixes that hyper_head returned with return_mixes=True
    dy      [tokens, d], the gradient with respect to y, of the dtype of x

    Returns (dx like x, dfn, dscale, dbase, float32 like the parameters), computed as hyper_pre_backward does.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for a negative eps.
    """
    return _pre_backward("hyper_head_backward", x, fn, scale, base, saved, dy, None, 1, eps, target)


def _pre_backward(name: str, x: Any, fn: Any, scale: Any, base: Any, saved: Mixes, dy: Any, others: Any,
                  iterations: int, eps: float, target: Any) -> tuple[Any, ...]:  # fmt: skip
    """others: dpost and dcomb; None: the head, which has none."""
    head = others is None
    scales = 1 if head else 3
    form = check_streams(name, x, fn, scale, base, scales, lambda n: n if head else n * (n + 2))
    dtype, m, n, d = form
    if iterations < 1:
        raise TileValueError(f"{name}: iterations is {iterations}, expected at least 1")
    mixes = int(fn.shape[0])
    arrays.floats(name, x=x, dy=dy)
    wanted = {"dy": (m, d), "dpost": (m, n), "dcomb": (m, n, n), "saved.mix": (m, mixes), "saved.r": (m,)}
    for which, given in ({"dy": dy, "saved.mix": saved.mix, "saved.r": saved.r} | (others or {})).items():
        if which != "dy":
            arrays.dtype_of(name, which, given, ("float32",))
        if tuple(given.shape) != wanted[which]:
            shapes = arrays.describe(x=x, **{which: given})
            raise TileTypeError(f"{name}: {shapes}, expected {which} {list(wanted[which])}")
    f32 = as_dtype("float32")
    inner = [allocate(s, f32, x) for s in ((m, n), (m,), (m, mixes), (m, mixes))]
    dx, dfn = allocate((m, n, d), dtype, x), allocate((mixes, n, d), f32, x)
    dscale, dbase = allocate((scales,), f32, x), allocate((mixes,), f32, x)
    kernel = _hyper_pre_backward_kernel(n, int(iterations), head, dtype, tiles_for(target).threads)
    inputs = [arrays.dense(a) for a in (x, fn.reshape(mixes, n, d), scale, base)]
    grads = [None if a is None else arrays.dense(a) for a in (dy, *((others or {}).values() or (None, None)))]
    epsilon = arrays.check_eps(name, eps)
    kernel(*inputs, epsilon, saved.mix, saved.r, *grads, *inner, dx, dfn, dscale, dbase, target=target)
    return dx, dfn.reshape(mixes, n * d), dscale, dbase
