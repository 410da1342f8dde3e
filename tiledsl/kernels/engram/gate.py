"""The gate of a looked-up value: how well a key fits each residual stream; forward and backward."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["engram_gate", "engram_gate_backward", "engram_gate_backward_kernel", "engram_gate_kernel"]

WIDTH = 256  # elements of a row at a time
SUM_ROWS = 32  # tokens that enter a weight's gradient at a time: a reduced axis, so one number for all targets
INPUTS = ("bfloat16", "float32")


@tiledsl.jit
def engram_gate_kernel(dtype: DType, threads: int = 128) -> Any:
    """Dot = sum x w k rx rk / sqrt(D), Gate = sigmoid(sign(Dot) sqrt(max(|Dot|, clamp))), Y = X + Gate V. RX, RK are
    the roots of the mean squares, and w = WX WK."""
    M, S, D = T.dynamic("M"), T.dynamic("S"), T.dynamic("D")

    @T.prim_func
    def engram_gate(
        X: T.Tensor((M, S, D), dtype),
        K: T.Tensor((M, S, D), dtype),
        V: T.Tensor((M, D), dtype),
        WX: T.Tensor((S, D), T.float32),
        WK: T.Tensor((S, D), T.float32),
        eps: T.float32,
        clamp: T.float32,
        Raw: T.Tensor((M, S), T.float32),
        RX: T.Tensor((M, S), T.float32),
        RK: T.Tensor((M, S), T.float32),
        Y: T.Tensor((M, S, D), dtype),
    ):
        with T.Kernel(S, M, threads=threads) as (s, t):
            terms = T.alloc_fragment((3, WIDTH), T.float32)
            sums = T.alloc_fragment((3,), T.float32)
            gate = T.alloc_fragment((1,), T.float32)
            T.clear(sums)
            for b in T.serial(T.ceildiv(D, WIDTH)):
                for j in T.Parallel(WIDTH):
                    x = T.cast(X[t, s, b * WIDTH + j], T.float32)
                    k = T.cast(K[t, s, b * WIDTH + j], T.float32)
                    terms[0, j] = x * (WX[s, b * WIDTH + j] * WK[s, b * WIDTH + j]) * k
                    terms[1, j] = x * x
                    terms[2, j] = k * k
                T.reduce_sum(terms, sums, dim=1, clear=False)
            for i in T.Parallel(1):
                size = T.cast(D, T.float32)
                rx = T.rsqrt(sums[1] / size + eps)
                rk = T.rsqrt(sums[2] / size + eps)
                dot = sums[0] * rx * rk / T.sqrt(size)
                root = T.copysign(T.sqrt(T.max(T.abs(dot), clamp)), dot)
                gate[i] = 1.0 / (1.0 + T.exp(-root))
                Raw[t, s] = sums[0]
                RX[t, s] = rx
                RK[t, s] = rk
            for b in T.serial(T.ceildiv(D, WIDTH)):
                for j in T.Parallel(WIDTH):
                    at = b * WIDTH + j
                    Y[t, s, at] = X[t, s, at] + gate[0] * V[t, at]

    return engram_gate


@tiledsl.jit
def engram_gate_backward_kernel(dtype: DType, threads: int = 128) -> Any:
    """Two launches: dX, dK, dV of a token with its gradients of dots; then dWX and dWK, tokens in order."""
    M, S, D = T.dynamic("M"), T.dynamic("S"), T.dynamic("D")

    @T.prim_func
    def engram_gate_backward(
        X: T.Tensor((M, S, D), dtype),
        K: T.Tensor((M, S, D), dtype),
        V: T.Tensor((M, D), dtype),
        WX: T.Tensor((S, D), T.float32),
        WK: T.Tensor((S, D), T.float32),
        clamp: T.float32,
        Raw: T.Tensor((M, S), T.float32),
        RX: T.Tensor((M, S), T.float32),
        RK: T.Tensor((M, S), T.float32),
        dY: T.Tensor((M, S, D), dtype),
        Scale: T.Tensor((M, S), T.float32),
        Gate: T.Tensor((M, S), T.float32),
        dX: T.Tensor((M, S, D), dtype),
        dK: T.Tensor((M, S, D), dtype),
        dV: T.Tensor((M, D), dtype),
        dWX: T.Tensor((S, D), T.float32),
        dWK: T.Tensor((S, D), T.float32),
    ):
        with T.Kernel(S, M, threads=threads) as (s, t):
            terms = T.alloc_fragment((1, WIDTH), T.float32)
            dgate = T.alloc_fragment((1,), T.float32)
            T.clear(dgate)
            for b in T.serial(T.ceildiv(D, WIDTH)):
                for _, j in T.Parallel(1, WIDTH):
                    terms[0, j] = T.cast(dY[t, s, b * WIDTH + j], T.float32) * V[t, b * WIDTH + j]
                T.reduce_sum(terms, dgate, dim=1, clear=False)
            rx, rk, size = RX[t, s], RK[t, s], T.cast(D, T.float32)
            common = rx * rk / T.sqrt(size)
            dot = Raw[t, s] * common
            magnitude = T.sqrt(T.max(T.abs(dot), clamp))
            gate = 1.0 / (1.0 + T.exp(-T.copysign(magnitude, dot)))
            slope = dgate[0] * (gate * (1.0 - gate)) * (0.5 / magnitude)
            ddot = T.if_then_else(T.abs(dot) < clamp, 0.0, slope)
            Scale[t, s] = ddot * common
            Gate[t, s] = gate
            for b in T.serial(T.ceildiv(D, WIDTH)):
                for j in T.Parallel(WIDTH):
                    at = b * WIDTH + j
                    x, k = T.cast(X[t, s, at], T.float32), T.cast(K[t, s, at], T.float32)
                    w = WX[s, at] * WK[s, at]
                    dX[t, s, at] = dY[t, s, at] + ddot * (k * w * common - x * (dot * (rx * rx) / size))
                    dK[t, s, at] = ddot * (x * w * common - k * (dot * (rk * rk) / size))
        with T.Kernel(T.ceildiv(D, WIDTH), M, threads=threads) as (bx, t):
            for j in T.Parallel(WIDTH):
                total = T.alloc_var(T.float32, 0.0)
                for s in T.serial(S):
                    total = total + Gate[t, s] * dY[t, s, bx * WIDTH + j]
                dV[t, bx * WIDTH + j] = total
        with T.Kernel(T.ceildiv(D, WIDTH), S, threads=threads) as (bx, s):
            terms = T.alloc_fragment((SUM_ROWS, WIDTH), T.float32)
            total = T.alloc_fragment((WIDTH,), T.float32)
            T.clear(total)
            for b in T.serial(T.ceildiv(M, SUM_ROWS)):
                for i, j in T.Parallel(SUM_ROWS, WIDTH):
                    t, at = b * SUM_ROWS + i, bx * WIDTH + j
                    terms[i, j] = Scale[t, s] * (T.cast(X[t, s, at], T.float32) * K[t, s, at])
                T.reduce_sum(terms, total, dim=0, clear=False)
            for j in T.Parallel(WIDTH):
                dWX[s, bx * WIDTH + j] = total[j] * WK[s, bx * WIDTH + j]
                dWK[s, bx * WIDTH + j] = total[j] * WX[s, bx * WIDTH + j]

    return engram_gate_backward


_engram_gate_kernel = cache(engram_gate_kernel)  # the same values, the same kernel
_engram_gate_backward_kernel = cache(engram_gate_backward_kernel)


def _checked(name: str, x: Any, key: Any, value: Any, wx: Any, wk: Any) -> tuple[DType, tuple[int, int, int]]:
    dtype = arrays.dtype_of(name, "x", x, INPUTS)
    arrays.floats(name, x=x, key=key, value=value)
    m, s, d = arrays.rank(name, "x", x, "tokens, streams, d")
    for which, given, wanted in (("key", key, (m, s, d)), ("value", value, (m, d)), ("x_weight", wx, (s, d)),
                                 ("key_weight", wk, (s, d))):  # fmt: skip
        if "weight" in which:
            arrays.dtype_of(name, which, given, ("float32",))
        if tuple(given.shape) != wanted:
            raise TileTypeError(f"{name}: {arrays.describe(x=x, **{which: given})}, expected {which} {list(wanted)}")
    return dtype, (m, s, d)


def engram_gate(
    x: Any,
    key: Any,
    value: Any,
    x_weight: Any,
    key_weight: Any,
    *,
    eps: float = 1e-20,
    clamp: float = 1e-6,
    target: Any = None,
) -> tuple[Any, tuple[Any, Any, Any]]:
    """A looked-up value joins each residual stream by how well its key fits: with both normalised by their root mean
    square, dot = sum_j (x_j x_weight_j / rms(x)) (key_j key_weight_j / rms(key)) / sqrt(d),
    gate = sigmoid(sign(dot) sqrt(max(|dot|, clamp))), y = x + gate value.

    x, key                 [tokens, streams, d], bfloat16 or float32; NumPy (ml_dtypes) or torch
    value                  [tokens, d] of that dtype, shared by the streams
    x_weight, key_weight   [streams, d] float32, of the two norms
    eps                    added to the mean squares
    target                 where to run (default: TILEDSL_TARGET, else auto)

    Returns (y like x, saved for engram_gate_backward). In float32, rounded once; a token does not depend on others.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when eps is negative.
    """
    name = "engram_gate"
    dtype, (m, s, d) = _checked(name, x, key, value, x_weight, key_weight)
    f32 = as_dtype("float32")
    saved = tuple(allocate((m, s), f32, x) for _ in range(3))
    y = allocate((m, s, d), dtype, x)
    if m and s:
        given = [arrays.dense(a) for a in (x, key, value, x_weight, key_weight)]
        kernel = _engram_gate_kernel(dtype, tiles_for(target).threads)
        kernel(*given, arrays.check_eps(name, eps), float(clamp), *saved, y, target=target)
    return y, saved


def engram_gate_backward(
    x: Any,
    key: Any,
    value: Any,
    x_weight: Any,
    key_weight: Any,
    saved: tuple[Any, Any, Any],
    dy: Any,
    *,
    clamp: float = 1e-6,
    target: Any = None,
) -> tuple[Any, Any, Any, Any, Any]:
    """The gradients of engram_gate. With w = x_weight key_weight and dgate = dy . value:
    ddot = dgate gate (1 - gate) / (2 sqrt(max(|dot|, clamp))), 0 where |dot| < clamp;
    dx = dy + ddot (key w rx rk / sqrt(d) - x dot rx^2 / d), dkey likewise without dy, dvalue = sum over streams of
    gate dy, dx_weight = key_weight sum over tokens of ddot x key rx rk / sqrt(d), dkey_weight likewise.

    x, key, value, x_weight, key_weight, clamp, target   as in engram_gate
    saved  what engram_gate returned beside y
    dy     the gradient with respect to y, like x

    Returns (dx, dkey, dvalue, dx_weight, dkey_weight). In float32, each rounded once; sums over streams and tokens
    have one owner and one order.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    name = "engram_gate_backward"
    dtype, (m, s, d) = _checked(name, x, key, value, x_weight, key_weight)
    arrays.floats(name, x=x, dy=dy)
    if tuple(dy.shape) != (m, s, d):
        raise TileTypeError(f"{name}: {arrays.describe(x=x, dy=dy)}, expected the same shape")
    if len(saved) != 3 or any(arrays.rank(name, "saved", a, "tokens, streams") != (m, s) for a in saved):
        raise TileTypeError(f"{name}: saved is not what engram_gate returned for {arrays.describe(x=x)}")
    f32 = as_dtype("float32")
    inner = [allocate((m, s), f32, x) for _ in range(2)]
    made = [allocate(shape, dtype, x) for shape in ((m, s, d), (m, s, d), (m, d))]
    weights = [allocate((s, d), f32, x) for _ in range(2)]
    given = [arrays.dense(a) for a in (x, key, value, x_weight, key_weight)]
    kernel = _engram_gate_backward_kernel(dtype, tiles_for(target).threads)
    kernel(*given, float(clamp), *saved, arrays.dense(dy), *inner, *made, *weights, target=target)
    return (*made, *weights)
