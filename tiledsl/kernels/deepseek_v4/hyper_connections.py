"""Manifold-constrained hyper-connections: n residual streams, mixed before and after each layer by small matrices.

A token's streams X [n, d] give, through one product and a root mean square, the weights `pre` [n] of the layer's input,
`post` [n] of its output and `comb` [n, n] between streams, made nearly doubly stochastic by Sinkhorn's iteration.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["COLUMNS", "K_TILE", "Mixes", "check_streams", "hyper_head", "hyper_post", "hyper_post_kernel"]
__all__ += ["hyper_pre", "hyper_pre_kernel", "sigmoid", "sinkhorn_start", "sinkhorn_step"]

K_TILE = 256  # elements of a token's streams that enter the product at a time
COLUMNS = 256  # of a block that mixes streams
ROWS = 16  # tokens of a block
INPUTS = ("bfloat16", "float32")


def sigmoid(x: Any) -> Any:
    return 1.0 / (1.0 + T.exp(-x))


@T.macro
def sinkhorn_start(c, n, eps):
    """c [n * n] logits of one token become softmax over each row, plus eps."""
    for a in T.unroll(n):
        peak = T.alloc_var(T.float32, c[a * n])
        total = T.alloc_var(T.float32, 0.0)
        for b in T.unroll(1, n):
            peak = T.max(peak, c[a * n + b])
        for b in T.unroll(n):
            c[a * n + b] = T.exp(c[a * n + b] - peak)
            total = total + c[a * n + b]
        for b in T.unroll(n):
            c[a * n + b] = c[a * n + b] / total + eps


@T.macro
def sinkhorn_step(c, n, eps, across, down):
    """Each row (across n, down 1: rows are n apart) or column (across 1, down n) divided by its sum + eps."""
    for a in T.unroll(n):
        total = T.alloc_var(T.float32, 0.0)
        for b in T.unroll(n):
            total = total + c[a * across + b * down]
        for b in T.unroll(n):
            c[a * across + b * down] = c[a * across + b * down] / (total + eps)


@tiledsl.jit
def hyper_pre_kernel(n: int, iterations: int, head: bool, dtype: DType, threads: int = 128) -> Any:
    """Mix = X fn^T, R = rsqrt(mean X^2 + norm_eps), then pre, post and comb of Mix * R, and Y = sum_i pre_i X_i."""
    M, D = T.dynamic("M"), T.dynamic("D")
    mixes = n if head else n * (n + 2)

    @T.prim_func
    def hyper_pre(
        X: T.Tensor((M, n, D), dtype),
        fn: T.Tensor((mixes, n, D), T.float32),
        scale: T.Tensor((1 if head else 3,), T.float32),
        base: T.Tensor((mixes,), T.float32),
        eps: T.float32,
        norm_eps: T.float32,
        Mix: T.Tensor((M, mixes), T.float32),
        R: T.Tensor((M,), T.float32),
        Post: T.Tensor((M, n), T.float32),
        Comb: T.Tensor((M, n, n), T.float32),
        Y: T.Tensor((M, D), dtype),
    ):
        with T.Kernel(T.ceildiv(M, ROWS), threads=threads) as by:
            x = T.alloc_shared((ROWS, K_TILE), T.float32)
            f = T.alloc_shared((mixes, K_TILE), T.float32)
            acc = T.alloc_fragment((ROWS, mixes), T.float32)
            squares = T.alloc_fragment((ROWS,), T.float32)
            pre = T.alloc_fragment((ROWS, n), T.float32)
            T.clear(acc)
            T.clear(squares)
            for s in T.serial(n):
                for k in T.Pipelined(T.ceildiv(D, K_TILE), num_stages=2):
                    T.copy(X[by * ROWS : (by + 1) * ROWS, s, k * K_TILE : (k + 1) * K_TILE], x)
                    T.copy(fn[0:mixes, s, k * K_TILE : (k + 1) * K_TILE], f)
                    T.gemm(x, f, acc, transpose_B=True)
                    for i, j in T.Parallel(ROWS, K_TILE):
                        x[i, j] = x[i, j] * x[i, j]
                    T.reduce_sum(x, squares, dim=1, clear=False)
            T.copy(acc, Mix[by * ROWS, 0])
            for i in T.Parallel(ROWS):
                row = by * ROWS + i
                r = T.rsqrt(squares[i] / T.cast(n * D, T.float32) + norm_eps)
                if row < M:
                    R[row] = r
                    for a in T.unroll(n):
                        pre[i, a] = sigmoid(acc[i, a] * r * scale[0] + base[a]) + eps
                    if not head:
                        c = T.alloc_local((n * n,), T.float32)
                        for a in T.unroll(n):
                            Post[row, a] = 2.0 * sigmoid(acc[i, n + a] * r * scale[1] + base[n + a])
                        for a in T.unroll(n * n):
                            c[a] = acc[i, 2 * n + a] * r * scale[2] + base[2 * n + a]
                        sinkhorn_start(c, n, eps)
                        sinkhorn_step(c, n, eps, 1, n)
                        for _ in T.serial(iterations - 1):
                            sinkhorn_step(c, n, eps, n, 1)
                            sinkhorn_step(c, n, eps, 1, n)
                        for a in T.unroll(n):
                            for b in T.unroll(n):
                                Comb[row, a, b] = c[a * n + b]
                else:
                    for a in T.unroll(n):
                        pre[i, a] = 0.0
            for k in T.serial(T.ceildiv(D, COLUMNS)):
                for i, j in T.Parallel(ROWS, COLUMNS):
                    total = T.alloc_var(T.float32, pre[i, 0] * X[by * ROWS + i, 0, k * COLUMNS + j])
                    for a in T.unroll(1, n):
                        total = total + pre[i, a] * X[by * ROWS + i, a, k * COLUMNS + j]
                    Y[by * ROWS + i, k * COLUMNS + j] = total

    return hyper_pre


_hyper_pre_kernel = cache(hyper_pre_kernel)  # the same values, the same kernel


class Mixes:
    """What the backward pass needs of the forward one: mix [tokens, n (n + 2)] (head: n) before the norm,
    r [tokens]."""

    def __init__(self, mix: Any, r: Any) -> None:
        self.mix, self.r = mix, r


def check_streams(
    name: str, x: Any, fn: Any, scale: Any, base: Any, scales: int, mixes_of: Any
) -> tuple[DType, int, int, int]:
    """dtype, tokens, streams and d. Raises TileTypeError unless the parameters fit."""
    dtype = arrays.dtype_of(name, "x", x, INPUTS)
    m, n, d = arrays.rank(name, "x", x, "tokens, streams, d")
    mixes = mixes_of(n)
    wanted = {"fn": (mixes, n * d), "scale": (scales,), "base": (mixes,)}
    for which, given in (("fn", fn), ("scale", scale), ("base", base)):
        arrays.dtype_of(name, which, given, ("float32",))
        if tuple(given.shape) != wanted[which]:
            raise TileTypeError(
                f"{name}: {arrays.describe(x=x, **{which: given})} do not fit", help=f"{which} is {list(wanted[which])}"
            )
    return dtype, m, n, d


def _pre(name: str, head: bool, x: Any, fn: Any, scale: Any, base: Any, iterations: int, eps: float, norm_eps: float,
         target: Any) -> tuple[Any, ...]:  # fmt: skip
    form = check_streams(name, x, fn, scale, base, 1 if head else 3, lambda n: n if head else n * (n + 2))
    dtype, m, n, d = form
    if iterations < 1:
        raise TileValueError(f"{name}: iterations is {iterations}, expected at least 1")
    f32, mixes = as_dtype("float32"), int(fn.shape[0])
    mix, r = allocate((m, mixes), f32, x), allocate((m,), f32, x)
    post, comb = (None, None) if head else (allocate((m, n), f32, x), allocate((m, n, n), f32, x))
    y = allocate((m, d), dtype, x)
    if m and d:
        kernel = _hyper_pre_kernel(n, int(iterations), head, dtype, tiles_for(target).threads)
        weights = arrays.dense(fn).reshape(mixes, n, d)
        small = arrays.dense(scale), arrays.dense(base), arrays.check_eps(name, eps), arrays.check_eps(name, norm_eps)
        kernel(arrays.dense(x), weights, *small, mix, r, post, comb, y, target=target)
    return y, post, comb, Mixes(mix, r)


def hyper_pre(
    x: Any,
    fn: Any,
    scale: Any,
    base: Any,
    *,
    iterations: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
    target: Any = None,
) -> tuple[Any, Any, Any, Mixes]:
    """Before a layer (DeepSeek-V4's hc_pre). With mix = (vec(x) fn^T) / sqrt(mean vec(x)^2 + norm_eps), in the order
    [pre n | post n | comb n x n, row-major]:
    pre = sigmoid(mix scale[0] + base) + eps; post = 2 sigmoid(mix scale[1] + base);
    comb = softmax of the rows of (mix scale[2] + base) + eps, its columns divided by their sum + eps, then
    iterations - 1 times its rows and its columns; y = sum_i pre_i x_i.

    x           [tokens, n, d] bfloat16 or float32; NumPy (ml_dtypes) or torch
    fn          [n (n + 2), n d] float32; scale [3] and base [n (n + 2)] float32
    iterations  of Sinkhorn; eps is added to pre, to the softmax and to each sum
    target      where to run (default: TILEDSL_TARGET, else auto)

    Returns (y [tokens, d] of the dtype of x, post [tokens, n], comb [tokens, n, n], both float32, Mixes for
    hyper_pre_backward). All in float32; the product is one ascending chain over vec(x). A token has the same bits in
    every batch.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for iterations below 1 or a negative eps.
    """
    return _pre("hyper_pre", False, x, fn, scale, base, iterations, eps, norm_eps, target)


def hyper_head(
    x: Any,
    fn: Any,
    scale: Any,
    base: Any,
    *,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
    return_mixes: bool = False,
    target: Any = None,
) -> Any:
    """After the last layer: y = sum_i pre_i x_i with pre as in hyper_pre.

    x       [tokens, n, d] bfloat16 or float32
    fn      [n, n d] float32; scale [1] and base [n] float32
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, d] of the dtype of x; with return_mixes (that, Mixes for hyper_head_backward). Raises TileTypeError
    and TileValueError as hyper_pre.
    """
    y, _, _, mixes = _pre("hyper_head", True, x, fn, scale, base, 1, eps, norm_eps, target)
    return (y, mixes) if return_mixes else y


@tiledsl.jit
def hyper_post_kernel(n: int, dtype: DType, threads: int = 128) -> Any:
    """Y[j] = Post[j] F + sum_m Comb[m, j] X[m]: the matrix is used transposed."""
    M, D = T.dynamic("M"), T.dynamic("D")

    @T.prim_func
    def hyper_post(
        F: T.Tensor((M, D), dtype),
        X: T.Tensor((M, n, D), dtype),
        Post: T.Tensor((M, n), T.float32),
        Comb: T.Tensor((M, n, n), T.float32),
        Y: T.Tensor((M, n, D), dtype),
    ):
        with T.Kernel(T.ceildiv(D, COLUMNS), M, threads=threads) as (bx, t):
            for j in T.serial(n):
                for i in T.Parallel(COLUMNS):
                    total = T.alloc_var(T.float32, Post[t, j] * F[t, bx * COLUMNS + i])
                    for a in T.unroll(n):
                        total = total + Comb[t, a, j] * X[t, a, bx * COLUMNS + i]
                    Y[t, j, bx * COLUMNS + i] = total

    return hyper_post


_hyper_post_kernel = cache(hyper_post_kernel)


def hyper_post(f: Any, x: Any, post: Any, comb: Any, *, target: Any = None) -> Any:
    """After a layer (DeepSeek-V4's hc_post): y_j = post_j f + sum_m comb[m, j] x_m, the sum ascending in float32, one
    rounding. Note that comb is used transposed.

    f       [tokens, d] the layer's result; x [tokens, n, d] its streams; both bfloat16 or both float32
    post    [tokens, n] float32; comb [tokens, n, n] float32, as hyper_pre returns them
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, n, d] like x. Raises TileTypeError for wrong dtypes or shapes.
    """
    dtype, (m, n, d) = check_post("hyper_post", f, x, post, comb)
    y = allocate((m, n, d), dtype, x)
    if m and d:
        kernel = _hyper_post_kernel(n, dtype, tiles_for(target).threads)
        kernel(*(arrays.dense(a) for a in (f, x, post, comb)), y, target=target)
    return y


def check_post(name: str, f: Any, x: Any, post: Any, comb: Any) -> tuple[DType, tuple[int, int, int]]:
    """The dtype and shape of x. Raises TileTypeError unless the others fit."""
    dtype = arrays.dtype_of(name, "x", x, INPUTS)
    m, n, d = arrays.rank(name, "x", x, "tokens, streams, d")
    arrays.floats(name, x=x, f=f)
    for which, given, wanted in (("f", f, (m, d)), ("post", post, (m, n)), ("comb", comb, (m, n, n))):
        if which != "f":
            arrays.dtype_of(name, which, given, ("float32",))
        if tuple(given.shape) != wanted:
            raise TileTypeError(f"{name}: {arrays.describe(x=x, **{which: given})}, expected {which} {list(wanted)}")
    return dtype, (m, n, d)
