"""The gradients of softmax, of RMS and layer normalisation, and of the gated activation.

A norm's gradient takes two launches. One owns rows: it computes the row's mean and factor again, writes dx, and leaves
mean and factor for the other, which owns columns and adds up, row after row, what the weight and the bias get. So every
sum has one owner and one order, and nothing is added atomically.
"""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import fit_row, tiles_for
from tiledsl.runtime import allocate

__all__ = [
    "layer_norm_backward",
    "norm_backward_kernel",
    "norm_weight_backward_kernel",
    "rms_norm_backward",
    "softmax_backward",
    "softmax_backward_kernel",
    "swiglu_backward",
    "swiglu_backward_kernel",
]

SUM_ROWS = 64  # rows that enter a weight's gradient at a time: a reduced axis, so one number for all targets
COLUMNS = 64  # columns of a block of the weight's gradient


@tiledsl.jit
def softmax_backward_kernel(block_M: int, block_N: int, dtype: DType, threads: int = 128) -> Any:
    """dX[i, j] = Y[i, j] (dY[i, j] - sum_j Y[i, j] dY[i, j])."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldy, ldg = T.dynamic("ldy", "int64"), T.dynamic("ldg", "int64")
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def softmax_backward(
        Y: T.StridedTensor((M, N), (ldy, 1), dtype),
        dY: T.StridedTensor((M, N), (ldg, 1), dtype),
        dX: T.Tensor((M, N), dtype),
    ):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as bx:
            y = T.alloc_fragment((block_M, block_N), wide)
            g = T.alloc_fragment((block_M, block_N), wide)
            dot = T.alloc_fragment((block_M,), wide)
            T.clear(dot)
            for k in T.serial(T.ceildiv(N, block_N)):
                T.copy(Y[bx * block_M, k * block_N], y)
                T.copy(dY[bx * block_M, k * block_N], g)
                for i, j in T.Parallel(block_M, block_N):
                    y[i, j] = y[i, j] * g[i, j]
                T.reduce_sum(y, dot, dim=1, clear=False)
            for k in T.serial(T.ceildiv(N, block_N)):
                T.copy(Y[bx * block_M, k * block_N], y)
                T.copy(dY[bx * block_M, k * block_N], g)
                for i, j in T.Parallel(block_M, block_N):
                    y[i, j] = y[i, j] * (g[i, j] - dot[i])
                T.copy(y, dX[bx * block_M, k * block_N])

    return softmax_backward


@tiledsl.jit
def norm_backward_kernel(
    block_M: int,
    block_N: int,
    dtype: DType,
    weight_dtype: DType,
    centred: bool,
    has_weight: bool,
    threads: int = 128,
) -> Any:
    """With d = X - mean (centred) or X, r = 1 / sqrt(mean_j d^2 + eps), g = W dY:
    dX = r (g - [centred] mean_j g - d r^2 mean_j g d). Mean and r of each row are left in Mean and Factor."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldx, ldg = T.dynamic("ldx", "int64"), T.dynamic("ldg", "int64")
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def norm_backward(
        X: T.StridedTensor((M, N), (ldx, 1), dtype),
        W: T.Tensor((N,), weight_dtype),
        dY: T.StridedTensor((M, N), (ldg, 1), dtype),
        eps: wide,
        dX: T.Tensor((M, N), dtype),
        Mean: T.Tensor((M,), wide),
        Factor: T.Tensor((M,), wide),
    ):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as bx:
            x = T.alloc_fragment((block_M, block_N), wide)
            g = T.alloc_fragment((block_M, block_N), wide)
            w = T.alloc_fragment((block_N,), wide)
            mean = T.alloc_fragment((block_M,), wide)
            square = T.alloc_fragment((block_M,), wide)
            factor = T.alloc_fragment((block_M,), wide)
            dot = T.alloc_fragment((block_M,), wide)
            average = T.alloc_fragment((block_M,), wide)
            T.clear(mean)
            if centred:
                for k in T.serial(T.ceildiv(N, block_N)):
                    T.copy(X[bx * block_M, k * block_N], x)
                    T.reduce_sum(x, mean, dim=1, clear=False)
                for i in T.Parallel(block_M):
                    mean[i] = mean[i] / T.cast(N, wide)
            T.clear(square)
            T.clear(dot)
            T.clear(average)
            T.fill(w, 1.0)
            for k in T.serial(T.ceildiv(N, block_N)):
                T.copy(X[bx * block_M, k * block_N], x)
                T.copy(dY[bx * block_M, k * block_N], g)
                if has_weight:
                    T.copy(W[k * block_N], w)
                for i, j in T.Parallel(block_M, block_N):
                    g[i, j] = g[i, j] * w[j]  # beyond the row 0
                if centred:
                    T.reduce_sum(g, average, dim=1, clear=False)
                    for i, j in T.Parallel(block_M, block_N):
                        x[i, j] = T.if_then_else(k * block_N + j < N, x[i, j] - mean[i], 0.0)
                for i, j in T.Parallel(block_M, block_N):
                    g[i, j] = g[i, j] * x[i, j]
                T.reduce_sum(g, dot, dim=1, clear=False)
                for i, j in T.Parallel(block_M, block_N):
                    x[i, j] = x[i, j] * x[i, j]
                T.reduce_sum(x, square, dim=1, clear=False)
            for i in T.Parallel(block_M):
                factor[i] = T.rsqrt(square[i] / T.cast(N, wide) + eps)
                average[i] = average[i] / T.cast(N, wide)
                dot[i] = dot[i] / T.cast(N, wide) * factor[i] * factor[i]
            for k in T.serial(T.ceildiv(N, block_N)):
                T.copy(X[bx * block_M, k * block_N], x)
                T.copy(dY[bx * block_M, k * block_N], g)
                if has_weight:
                    T.copy(W[k * block_N], w)
                for i, j in T.Parallel(block_M, block_N):
                    x[i, j] = (g[i, j] * w[j] - average[i] - (x[i, j] - mean[i]) * dot[i]) * factor[i]
                T.copy(x, dX[bx * block_M, k * block_N])
            T.copy(mean, Mean[bx * block_M])
            T.copy(factor, Factor[bx * block_M])

    return norm_backward


@tiledsl.jit
def norm_weight_backward_kernel(dtype: DType, weight_dtype: DType, threads: int = 128) -> Any:
    """dW[j] = sum_i dY[i, j] (X[i, j] - Mean[i]) Factor[i], dB[j] = sum_i dY[i, j]."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldx, ldg = T.dynamic("ldx", "int64"), T.dynamic("ldg", "int64")
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def norm_weight_backward(
        X: T.StridedTensor((M, N), (ldx, 1), dtype),
        dY: T.StridedTensor((M, N), (ldg, 1), dtype),
        Mean: T.Tensor((M,), wide),
        Factor: T.Tensor((M,), wide),
        dW: T.Tensor((N,), weight_dtype),
        dB: T.Tensor((N,), weight_dtype),
    ):
        with T.Kernel(T.ceildiv(N, COLUMNS), threads=threads) as bx:
            x = T.alloc_fragment((SUM_ROWS, COLUMNS), wide)
            g = T.alloc_fragment((SUM_ROWS, COLUMNS), wide)
            mean = T.alloc_fragment((SUM_ROWS,), wide)
            factor = T.alloc_fragment((SUM_ROWS,), wide)
            weight = T.alloc_fragment((COLUMNS,), wide)
            bias = T.alloc_fragment((COLUMNS,), wide)
            T.clear(weight)
            T.clear(bias)
            for k in T.serial(T.ceildiv(M, SUM_ROWS)):
                T.copy(X[k * SUM_ROWS, bx * COLUMNS], x)
                T.copy(dY[k * SUM_ROWS, bx * COLUMNS], g)
                T.copy(Mean[k * SUM_ROWS], mean)
                T.copy(Factor[k * SUM_ROWS], factor)
                T.reduce_sum(g, bias, dim=0, clear=False)
                for i, j in T.Parallel(SUM_ROWS, COLUMNS):
                    g[i, j] = g[i, j] * ((x[i, j] - mean[i]) * factor[i])
                T.reduce_sum(g, weight, dim=0, clear=False)
            T.copy(weight, dW[bx * COLUMNS])
            T.copy(bias, dB[bx * COLUMNS])

    return norm_weight_backward


@tiledsl.jit
def swiglu_backward_kernel(block_M: int, block_N: int, dtype: DType, threads: int = 128) -> Any:
    """With s = 1 / (1 + exp(-G)): dU = dY G s, dG = dY U s (1 + G (1 - s)); s and 1 - s by exp(-|G|), both to the last
    bits."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldg, ldu, ldd = (T.dynamic(f"ld{x}", "int64") for x in "gud")
    wide = arrays.accumulator(dtype)

    @T.prim_func
    def swiglu_backward(
        G: T.StridedTensor((M, N), (ldg, 1), dtype),
        U: T.StridedTensor((M, N), (ldu, 1), dtype),
        dY: T.StridedTensor((M, N), (ldd, 1), dtype),
        dG: T.Tensor((M, N), dtype),
        dU: T.Tensor((M, N), dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            for i, j in T.Parallel(block_M, block_N):
                gate = T.cast(G[by * block_M + i, bx * block_N + j], wide)
                up = T.cast(U[by * block_M + i, bx * block_N + j], wide)
                d = T.cast(dY[by * block_M + i, bx * block_N + j], wide)
                small = T.exp(-T.abs(gate))
                large = 1.0 / (1.0 + small)  # the larger of s and 1 - s
                s = T.if_then_else(gate >= 0.0, large, small * large)
                rest = T.if_then_else(gate >= 0.0, small * large, large)
                dU[by * block_M + i, bx * block_N + j] = d * (gate * s)
                dG[by * block_M + i, bx * block_N + j] = d * up * (s * (1.0 + gate * rest))

    return swiglu_backward


_softmax_backward_kernel = cache(softmax_backward_kernel)  # the same values, the same kernel
_norm_backward_kernel = cache(norm_backward_kernel)
_norm_weight_backward_kernel = cache(norm_weight_backward_kernel)
_swiglu_backward_kernel = cache(swiglu_backward_kernel)


def _alike(function: str, **given: Any) -> tuple[DType, tuple[int, int]]:
    """The one dtype and shape of all, as [rows, n]. Raises TileTypeError."""
    dtype = arrays.floats(function, **given)
    shapes = {tuple(x.shape) for x in given.values()}
    if len(shapes) != 1 or not (shape := shapes.pop()):
        raise TileTypeError(f"{function}: one shape [..., n] expected: {arrays.describe(**given)}")
    return dtype, (math.prod(shape[:-1]), shape[-1])


def softmax_backward(y: Any, dy: Any, *, target: Any = None) -> Any:
    """The gradient of softmax with respect to its argument: dx[..., j] = y[..., j] (dy[..., j] - sum_j y dy).

    y       [..., n], what softmax returned; float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    dy      the gradient with respect to y, like y
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns an array like y. Computed in float32 (float64 for float64), rounded once.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    dtype, shape = _alike("softmax_backward", y=y, dy=dy)
    dx = allocate(tuple(y.shape), dtype, y)
    if all(shape):
        tiles = tiles_for(target)
        Y, G = (arrays.unit_last(x.reshape(shape)) for x in (y, dy))
        _softmax_backward_kernel(*fit_row(tiles, *shape), dtype, tiles.threads)(Y, G, dx.reshape(shape), target=target)
    return dx


def _norm_backward(function: str, x: Any, weight: Any, dy: Any, eps: float, centred: bool, target: Any) -> Any:
    dtype, shape = _alike(function, x=x, dy=dy)
    weight_dtype = dtype if weight is None else arrays.dtype_of(function, "weight", weight)
    m, n = shape
    if weight is not None:
        arrays.check_vector(function, "weight", weight, x)
    eps = arrays.check_eps(function, eps)
    dx = allocate(tuple(x.shape), dtype, x)
    dw, db = (allocate((n,), weight_dtype, x) for _ in "wb")
    if n:
        mean, factor = (allocate((m,), arrays.accumulator(dtype), x) for _ in "mf")
        tiles = tiles_for(target)
        X, G = (arrays.unit_last(t.reshape(shape)) for t in (x, dy))
        if m:
            form = dtype, weight_dtype, centred, weight is not None, tiles.threads
            W = None if weight is None else arrays.unit_last(weight)
            kernel = _norm_backward_kernel(*fit_row(tiles, m, n), *form)
            kernel(X, W, G, eps, dx.reshape(shape), mean, factor, target=target)
        kernel = _norm_weight_backward_kernel(dtype, weight_dtype, tiles.threads)
        kernel(X, G, mean, factor, dw, db, target=target)
    return dx, dw, db


def rms_norm_backward(x: Any, weight: Any, dy: Any, *, eps: float = 1e-6, target: Any = None) -> Any:
    """The gradients of rms_norm. With r = 1 / sqrt(mean_j x[..., j]^2 + eps) and g = weight dy:
    dx[..., j] = r (g[..., j] - x[..., j] r^2 mean_j(g x)), dweight[j] = sum over all rows of dy x r.

    x, weight, eps, target   as in rms_norm
    dy                       the gradient with respect to the result, like x

    Returns (dx, dweight), like x and weight. Computed in float32 (float64 for float64), each result rounded once; the
    sum over rows has one order, so the same bits for any number of threads; dx does not depend on other rows.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when eps is negative.
    """
    return _norm_backward("rms_norm_backward", x, weight, dy, eps, False, target)[:2]


def layer_norm_backward(x: Any, weight: Any, dy: Any, *, eps: float = 1e-5, target: Any = None) -> Any:
    """The gradients of layer_norm. With d = x - mean, r = 1 / sqrt(mean_j d[..., j]^2 + eps) and g = weight dy:
    dx[..., j] = r (g[..., j] - mean_j(g) - d[..., j] r^2 mean_j(g d)), dweight[j] = sum over all rows of dy d r,
    dbias[j] = sum over all rows of dy.

    x, weight, eps, target   as in layer_norm; weight None: 1
    dy                       the gradient with respect to the result, like x

    Returns (dx, dweight, dbias); dx like x, the others [n] of the dtype of weight (of x where that is None). Computed
    in float32 (float64 for float64), each result rounded once; the sums over rows have one order, so the same bits for
    any number of threads; dx does not depend on other rows.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when eps is negative.
    """
    return _norm_backward("layer_norm_backward", x, weight, dy, eps, True, target)


def swiglu_backward(gate: Any, up: Any, dy: Any, *, target: Any = None) -> Any:
    """The gradients of y = gate s up with s = 1 / (1 + exp(-gate)): dgate = dy up s (1 + gate (1 - s)),
    dup = dy gate s.

    gate, up  [..., n], float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    dy        the gradient with respect to the result of swiglu, like gate
    target    where to run (default: TILEDSL_TARGET, else auto)

    Returns (dgate, dup), like gate. Computed in float32 (float64 for float64), rounded once; infinite gates give NaN.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    dtype, shape = _alike("swiglu_backward", gate=gate, up=up, dy=dy)
    dgate, dup = (allocate(tuple(gate.shape), dtype, gate) for _ in "gu")
    if all(shape):
        tiles = tiles_for(target)
        G, U, D = (arrays.unit_last(x.reshape(shape)) for x in (gate, up, dy))
        kernel = _swiglu_backward_kernel(*fit_row(tiles, *shape), dtype, tiles.threads)
        kernel(G, U, D, dgate.reshape(shape), dup.reshape(shape), target=target)
    return dgate, dup
