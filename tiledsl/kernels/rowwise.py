"""Row-wise kernels over the last axis: softmax, RMS and layer normalisation."""

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

__all__ = ["layer_norm", "layer_norm_kernel", "rms_norm", "rms_norm_kernel", "softmax", "softmax_kernel"]


@tiledsl.jit
def softmax_kernel(block_M: int, block_N: int, dtype: DType, threads: int = 128) -> Any:
    """Y[i, :] = exp(X[i, :] - max) / sum: the maximum, then the exponentials and their sum, then the quotients.

    In float32 and float64 the exponentials wait in Y; narrower types would round them, so they are computed again.
    """
    M, N = T.dynamic("M"), T.dynamic("N")
    wide = arrays.accumulator(dtype)
    ldx, ldy = T.dynamic("ldx", "int64"), T.dynamic("ldy", "int64")

    @T.prim_func
    def softmax(X: T.StridedTensor((M, N), (ldx, 1), dtype), Y: T.StridedTensor((M, N), (ldy, 1), dtype)):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as bx:
            x = T.alloc_fragment((block_M, block_N), wide)
            peak = T.alloc_fragment((block_M,), wide)
            total = T.alloc_fragment((block_M,), wide)
            T.annotate_safe_value({X: -T.infinity(dtype)})  # beyond the row: no maximum, nothing in the sum
            T.fill(peak, -T.infinity(wide))
            T.clear(total)
            for k in T.serial(T.ceildiv(N, block_N)):
                T.copy(X[bx * block_M, k * block_N], x)
                T.reduce_max(x, peak, dim=1, clear=False)
            for i in T.Parallel(block_M):  # 0 where all is -inf: no inf - inf
                peak[i] = T.if_then_else(peak[i] == -T.infinity(wide), 0.0, peak[i])
            for k in T.serial(T.ceildiv(N, block_N)):
                for i, j in T.Parallel(block_M, block_N):
                    x[i, j] = T.exp(X[bx * block_M + i, k * block_N + j] - peak[i])
                    if dtype == wide:
                        Y[bx * block_M + i, k * block_N + j] = x[i, j]
                T.reduce_sum(x, total, dim=1, clear=False)
            for i in T.Parallel(block_M):  # from here on the reciprocal
                total[i] = T.if_then_else(total[i] == 0.0, 0.0, 1.0 / total[i])
            for k in T.serial(T.ceildiv(N, block_N)):
                for i, j in T.Parallel(block_M, block_N):
                    row, column = bx * block_M + i, k * block_N + j
                    if dtype == wide:
                        Y[row, column] = Y[row, column] * total[i]
                    else:
                        Y[row, column] = T.exp(X[row, column] - peak[i]) * total[i]

    return softmax


@tiledsl.jit
def rms_norm_kernel(block_M: int, block_N: int, dtype: DType, weight_dtype: DType, threads: int = 128) -> Any:
    """Y[i, j] = X[i, j] / sqrt(mean_j X[i, j]^2 + eps) * W[j]."""
    M, N = T.dynamic("M"), T.dynamic("N")
    wide = arrays.accumulator(dtype)
    ldx, ldy = T.dynamic("ldx", "int64"), T.dynamic("ldy", "int64")

    @T.prim_func
    def rms_norm(
        X: T.StridedTensor((M, N), (ldx, 1), dtype),
        W: T.Tensor((N,), weight_dtype),
        eps: wide,
        Y: T.StridedTensor((M, N), (ldy, 1), dtype),
    ):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as bx:
            x = T.alloc_fragment((block_M, block_N), wide)
            square = T.alloc_fragment((block_M,), wide)
            factor = T.alloc_fragment((block_M,), wide)
            T.clear(square)
            for k in T.serial(T.ceildiv(N, block_N)):
                for i, j in T.Parallel(block_M, block_N):
                    value = T.cast(X[bx * block_M + i, k * block_N + j], wide)
                    x[i, j] = value * value
                T.reduce_sum(x, square, dim=1, clear=False)
            for i in T.Parallel(block_M):
                factor[i] = T.rsqrt(square[i] / T.cast(N, wide) + eps)
            for k in T.serial(T.ceildiv(N, block_N)):
                for i, j in T.Parallel(block_M, block_N):
                    row, column = bx * block_M + i, k * block_N + j
                    Y[row, column] = X[row, column] * factor[i] * W[column]

    return rms_norm


@tiledsl.jit
def layer_norm_kernel(
    block_M: int,
    block_N: int,
    dtype: DType,
    weight_dtype: DType,
    has_weight: bool,
    has_bias: bool,
    threads: int = 128,
) -> Any:
    """Y[i, j] = (X[i, j] - mean) / sqrt(mean_j (X[i, j] - mean)^2 + eps) * W[j] + B[j], in three passes."""
    M, N = T.dynamic("M"), T.dynamic("N")
    wide = arrays.accumulator(dtype)
    ldx, ldy = T.dynamic("ldx", "int64"), T.dynamic("ldy", "int64")

    @T.prim_func
    def layer_norm(
        X: T.StridedTensor((M, N), (ldx, 1), dtype),
        W: T.Tensor((N,), weight_dtype),
        B: T.Tensor((N,), weight_dtype),
        eps: wide,
        Y: T.StridedTensor((M, N), (ldy, 1), dtype),
    ):
        with T.Kernel(T.ceildiv(M, block_M), threads=threads) as bx:
            x = T.alloc_fragment((block_M, block_N), wide)
            mean = T.alloc_fragment((block_M,), wide)
            square = T.alloc_fragment((block_M,), wide)
            factor = T.alloc_fragment((block_M,), wide)
            T.clear(mean)
            for k in T.serial(T.ceildiv(N, block_N)):
                T.copy(X[bx * block_M, k * block_N], x)
                T.reduce_sum(x, mean, dim=1, clear=False)
            for i in T.Parallel(block_M):
                mean[i] = mean[i] / T.cast(N, wide)
            T.clear(square)
            for k in T.serial(T.ceildiv(N, block_N)):
                for i, j in T.Parallel(block_M, block_N):
                    row, column = bx * block_M + i, k * block_N + j
                    centred = T.if_then_else(column < N, X[row, column] - mean[i], 0.0)
                    x[i, j] = centred * centred
                T.reduce_sum(x, square, dim=1, clear=False)
            for i in T.Parallel(block_M):
                factor[i] = T.rsqrt(square[i] / T.cast(N, wide) + eps)
            for k in T.serial(T.ceildiv(N, block_N)):
                for i, j in T.Parallel(block_M, block_N):
                    row, column = bx * block_M + i, k * block_N + j
                    y = (X[row, column] - mean[i]) * factor[i]
                    y = y * W[column] if has_weight else y
                    Y[row, column] = y + (B[column] if has_bias else 0.0)

    return layer_norm


def _rows(function: str, x: Any, out: Any, **vectors: Any) -> tuple[Any, Any, Any]:
    """x as [rows, n], the array that takes the result, and the latter as [rows, n]. Raises unless
    the vectors fit the last axis, and what arrays.output does."""
    if x.ndim == 0:
        raise TileTypeError(f"{function}: x is a scalar array, expected at least one dimension")
    dtype = arrays.dtype_of(function, "x", x)
    for name, p in vectors.items():
        arrays.check_vector(function, name, p, x)
    out = arrays.output(function, out, x, x.shape, dtype, dense=True, in_place="x", x=x, **vectors)
    shape = (math.prod(x.shape[:-1]), x.shape[-1])
    return arrays.unit_last(x).reshape(shape), out, out.reshape(shape)


_softmax_kernel = cache(softmax_kernel)  # the same values, the same kernel


def softmax(x: Any, *, out: Any = None, target: Any = None) -> Any:
    """Softmax over the last axis: y[..., j] = exp(x[..., j] - max) / sum_j exp(x[..., j] - max), the usual form
    that cannot overflow.

    x       [..., n], float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    out     contiguous array like x that receives the result; it may be x itself
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns an array like x. Computed in float32 (float64 for float64), rounded once. A row whose elements are all
    -inf gives 0 (as a fully masked row of attention does); a row that holds NaN or +inf gives NaN.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when out overlaps x without being x.
    """
    dtype = arrays.dtype_of("softmax", "x", x)
    source, out, result = _rows("softmax", x, out)
    m, n = source.shape
    if m and n:
        tiles = tiles_for(target)
        _softmax_kernel(*fit_row(tiles, m, n), dtype, tiles.threads)(source, result, target=target)
    return out


_rms_norm_kernel = cache(rms_norm_kernel)  # the same values, the same kernel


def rms_norm(x: Any, weight: Any, *, eps: float = 1e-6, out: Any = None, target: Any = None) -> Any:
    """RMS normalisation over the last axis: y[..., j] = x[..., j] / sqrt(mean_j(x[..., j]^2) + eps) * weight[j]
    (Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019, with eps inside the root).

    x       [..., n], float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    weight  [n], one of the same four dtypes
    eps     added to the mean square; not negative
    out     contiguous array like x that receives the result; it may be x itself
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns an array like x. Computed in float32 (float64 for float64), rounded once.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when eps is negative or when out shares memory
    with weight, or overlaps x without being x.
    """
    dtype = arrays.dtype_of("rms_norm", "x", x)
    weight_dtype = arrays.dtype_of("rms_norm", "weight", weight)
    source, out, result = _rows("rms_norm", x, out, weight=weight)
    m, n = source.shape
    eps = arrays.check_eps("rms_norm", eps)
    if m and n:
        tiles = tiles_for(target)
        kernel = _rms_norm_kernel(*fit_row(tiles, m, n), dtype, weight_dtype, tiles.threads)
        kernel(source, arrays.unit_last(weight), eps, result, target=target)
    return out


_layer_norm_kernel = cache(layer_norm_kernel)  # the same values, the same kernel


def layer_norm(
    x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5, out: Any = None, target: Any = None
) -> Any:
    """Layer normalisation over the last axis: y[..., j] = (x[..., j] - mean) / sqrt(variance + eps) * weight[j] +
    bias[j], with the mean of the squared differences from the mean as variance (Ba, Kiros and Hinton, "Layer
    Normalization", 2016).

    x             [..., n], float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    weight, bias  [n], one of the same four dtypes, the same for both; None: 1 and 0
    eps           added to the variance; not negative
    out           contiguous array like x that receives the result; it may be x itself
    target        where to run (default: TILEDSL_TARGET, else auto)

    Returns an array like x. Computed in float32 (float64 for float64), rounded once. The variance is summed after the
    mean is known: no cancellation between large squares.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when eps is negative or when out shares memory
    with weight or bias, or overlaps x without being x.
    """
    dtype = arrays.dtype_of("layer_norm", "x", x)
    given = {name: p for name, p in (("weight", weight), ("bias", bias)) if p is not None}
    weight_dtype = arrays.floats("layer_norm", **given) if given else dtype
    source, out, result = _rows("layer_norm", x, out, **given)
    m, n = source.shape
    eps = arrays.check_eps("layer_norm", eps)
    if m and n:
        tiles = tiles_for(target)
        kernel = _layer_norm_kernel(
            *fit_row(tiles, m, n), dtype, weight_dtype, weight is not None, bias is not None, tiles.threads
        )
        w, b = (None if p is None else arrays.unit_last(p) for p in (weight, bias))
        kernel(source, w, b, eps, result, target=target)
    return out
