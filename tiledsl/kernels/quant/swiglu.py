"""The gated activation of a mixture's experts, clamped, weighted and cast to FP8 in one kernel; and its gradient."""

# mypy: disable-error-code="no-untyped-def,valid-type"
from functools import cache
from typing import Any

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.quant.scales import E4M3, FLOOR, INPUTS, SCALES, block_size, blocks, scale_of
from tiledsl.kernels.tiles import tiles_for
from tiledsl.runtime import allocate

__all__ = ["swiglu_cast", "swiglu_cast_backward", "swiglu_cast_backward_kernel", "swiglu_cast_kernel"]

TILE_ROWS = 4


def _clamped(gate: Any, up: Any, limit: Any, limited: bool) -> tuple[Any, Any]:
    """min(gate, limit) and up within -limit ... limit; NaN stays NaN."""
    if not limited:
        return gate, up
    above = T.if_then_else(up > limit, limit, up)
    return T.if_then_else(gate > limit, limit, gate), T.if_then_else(above < -limit, -limit, above)


@tiledsl.jit
def swiglu_cast_kernel(
    block: int, dtype: DType, out_dtype: DType, scale_dtype: DType, limited: bool, weighted: bool, threads: int = 128
) -> Any:
    """H = min(G, limit) * sigmoid(min(G, limit)) * clamp(U, -limit, limit) * W, rounded to dtype, then cast to FP8 with
    a scale per row and block; G and U are the halves of the rows of X. out_dtype == dtype: H itself, without scales."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldx = T.dynamic("ldx", "int64")
    scaled = out_dtype != dtype

    @T.prim_func
    def swiglu_cast(
        X: T.StridedTensor((M, 2 * N), (ldx, 1), dtype),
        W: T.Tensor((M,), T.float32),
        limit: T.float32,
        Q: T.Tensor((M, N), out_dtype),
        S: T.Tensor((M, T.ceildiv(N, block)), scale_dtype),
    ):
        with T.Kernel(T.ceildiv(N, block), T.ceildiv(M, TILE_ROWS), threads=threads) as (bx, by):
            h = T.alloc_fragment((TILE_ROWS, block), dtype)
            largest = T.alloc_fragment((TILE_ROWS,), T.float32)
            scale = T.alloc_fragment((TILE_ROWS,), T.float32)
            for i, j in T.Parallel(TILE_ROWS, block):
                row, column = by * TILE_ROWS + i, bx * block + j
                inside = column < N  # beyond it lies the other half
                gate = T.cast(T.if_then_else(inside, X[row, column], T.cast(0, dtype)), T.float32)
                up = T.cast(T.if_then_else(inside, X[row, N + column], T.cast(0, dtype)), T.float32)
                gate, up = _clamped(gate, up, limit, limited)
                value = gate / (1.0 + T.exp(-gate)) * up
                h[i, j] = value * W[row] if weighted else value
            if scaled:
                T.reduce_absmax(h, largest, dim=1)
                for i in T.Parallel(TILE_ROWS):
                    found = scale_of(largest[i], FLOOR, out_dtype, scale_dtype)
                    S[by * TILE_ROWS + i, bx] = found
                    scale[i] = T.cast(found, T.float32)
                for i, j in T.Parallel(TILE_ROWS, block):
                    Q[by * TILE_ROWS + i, bx * block + j] = T.cast(h[i, j], T.float32) / scale[i]
            else:
                T.copy(h, Q[by * TILE_ROWS, bx * block])

    return swiglu_cast


@tiledsl.jit
def swiglu_cast_backward_kernel(
    block: int, dtype: DType, out_dtype: DType, scale_dtype: DType, limited: bool, weighted: bool, threads: int = 128
) -> Any:
    """With g = min(G, limit), u = clamp(U), s = sigmoid(g): dG = D W s u (1 + g (1 - s)), dU = D W s g, both 0 where
    clamped, dW = sum_j D s g u. dX = (dG | dU) rounded to dtype, then cast to FP8 with a scale per row and block;
    out_dtype == dtype: without scales. s and 1 - s by exp(-|g|), both to the last bits."""
    M, N = T.dynamic("M"), T.dynamic("N")
    ldx, ldd = T.dynamic("ldx", "int64"), T.dynamic("ldd", "int64")
    scaled = out_dtype != dtype

    @T.prim_func
    def swiglu_cast_backward(
        X: T.StridedTensor((M, 2 * N), (ldx, 1), dtype),
        W: T.Tensor((M,), T.float32),
        limit: T.float32,
        D: T.StridedTensor((M, N), (ldd, 1), dtype),
        dX: T.Tensor((M, 2 * N), out_dtype),
        S: T.Tensor((M, T.ceildiv(2 * N, block)), scale_dtype),
        dW: T.Tensor((M,), T.float32),
    ):
        with T.Kernel(T.ceildiv(M, TILE_ROWS), threads=threads) as by:
            dg = T.alloc_fragment((TILE_ROWS, block), dtype)
            du = T.alloc_fragment((TILE_ROWS, block), dtype)
            part = T.alloc_fragment((TILE_ROWS, block), T.float32)
            total = T.alloc_fragment((TILE_ROWS,), T.float32)
            largest = T.alloc_fragment((TILE_ROWS,), T.float32)
            scale = T.alloc_fragment((TILE_ROWS,), T.float32)

            @T.macro
            def write(d, first, columns):
                if scaled:
                    T.reduce_absmax(d, largest, dim=1)
                    for i in T.Parallel(TILE_ROWS):
                        found = scale_of(largest[i], FLOOR, out_dtype, scale_dtype)
                        S[by * TILE_ROWS + i, first // block] = found
                        scale[i] = T.cast(found, T.float32)
                    for i, j in T.Parallel(TILE_ROWS, block):
                        dX[by * TILE_ROWS + i, first + j] = T.cast(d[i, j], T.float32) / scale[i]
                else:
                    for i, j in T.Parallel(TILE_ROWS, block):
                        if j < columns:
                            dX[by * TILE_ROWS + i, first + j] = d[i, j]

            T.clear(total)
            for k in T.serial(T.ceildiv(N, block)):
                for i, j in T.Parallel(TILE_ROWS, block):
                    row, column = by * TILE_ROWS + i, k * block + j
                    inside = column < N
                    raw_gate = T.cast(T.if_then_else(inside, X[row, column], T.cast(0, dtype)), T.float32)
                    raw_up = T.cast(T.if_then_else(inside, X[row, N + column], T.cast(0, dtype)), T.float32)
                    d = T.cast(D[row, column], T.float32)
                    gate, up = _clamped(raw_gate, raw_up, limit, limited)
                    small = T.exp(-T.abs(gate))
                    large = 1.0 / (1.0 + small)
                    s = T.if_then_else(gate >= 0.0, large, small * large)
                    rest = T.if_then_else(gate >= 0.0, small * large, large)
                    weight = W[row] if weighted else T.cast(1.0, T.float32)
                    part[i, j] = d * (gate * s * up)
                    to_gate = d * weight * up * (s * (1.0 + gate * rest))
                    to_up = d * weight * (gate * s)
                    if limited:
                        dg[i, j] = T.if_then_else(raw_gate > limit, 0.0, to_gate)
                        du[i, j] = T.if_then_else(T.abs(raw_up) > limit, 0.0, to_up)
                    else:
                        dg[i, j] = to_gate
                        du[i, j] = to_up
                if weighted:
                    T.reduce_sum(part, total, dim=1, clear=False)
                write(dg, k * block, N - k * block)
                write(du, N + k * block, N - k * block)
            if weighted:
                T.copy(total, dW[by * TILE_ROWS])

    return swiglu_cast_backward


_swiglu_cast_kernel = cache(swiglu_cast_kernel)  # the same values, the same kernel
_swiglu_cast_backward_kernel = cache(swiglu_cast_backward_kernel)


def _checked(function: str, x: Any, weight: Any, limit: float | None) -> tuple[DType, int, int]:
    dtype = arrays.dtype_of(function, "gate_up", x, INPUTS)
    m, wide = arrays.rank(function, "gate_up", x, "tokens, 2 n")
    if wide % 2:
        raise TileTypeError(f"{function}: {arrays.describe(gate_up=x)}, expected an even number of columns")
    if weight is not None:
        arrays.dtype_of(function, "weight", weight, ("float32",))
        if arrays.rank(function, "weight", weight, "tokens") != (m,):
            raise TileTypeError(f"{function}: one weight per token expected: {arrays.describe(weight=weight)}")
    if limit is not None and not limit > 0:
        raise TileValueError(f"{function}: limit is {limit}, expected a positive number or None")
    return dtype, m, wide // 2


def swiglu_cast(
    gate_up: Any,
    weight: Any = None,
    *,
    limit: float | None = None,
    block: int | None = 128,
    scale_dtype: Any = "float32",
    target: Any = None,
) -> Any:
    """h = silu(g) * u * weight, with g = min(gate, limit), u = clamp(up, -limit, limit), silu(g) = g / (1 + exp(-g)),
    in float32 and rounded to the dtype of gate_up; then cast to e4m3 as per_token_cast does. The routing weight is
    multiplied in before the second product of an expert, and before the cast, as DeepSeek-V4 does.

    gate_up      [tokens, 2 n]: gate, then up; float32, bfloat16 or float16; NumPy (ml_dtypes) or torch
    weight       [tokens] float32; None: 1
    limit        10.0 in DeepSeek-V4; None: no clamp
    block        128, 64 or 32 columns share a scale; None: no cast
    scale_dtype  "float32" or "float8_e8m0fnu"
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns (q [tokens, n], scale [tokens, ceil(n / block)]), or h for block=None. The cast has the bits of
    per_token_cast(h). Bit-exact on every CPU target. NaN stays NaN.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for another block or a limit that is not positive.
    """
    name = "swiglu_cast"
    dtype, m, n = _checked(name, gate_up, weight, limit)
    scales = arrays.choice(name, "scale_dtype", scale_dtype, SCALES)
    width = 128 if block is None else block_size(name, block)
    out = dtype if block is None else as_dtype(E4M3)
    q = allocate((m, n), out, gate_up)
    scale = None if block is None else allocate((m, blocks(n, width)), scales, gate_up)
    if m and n:
        form = width, dtype, out, scales, limit is not None, weight is not None, tiles_for(target).threads
        w = None if weight is None else arrays.dense(weight)
        _swiglu_cast_kernel(*form)(arrays.unit_last(gate_up), w, float(limit or 0), q, scale, target=target)
    return q if block is None else (q, scale)


def swiglu_cast_backward(
    gate_up: Any,
    weight: Any,
    dh: Any,
    *,
    limit: float | None = None,
    block: int | None = None,
    scale_dtype: Any = "float32",
    target: Any = None,
) -> Any:
    """The gradients of h of swiglu_cast (straight through the cast). With g, u clamped and s = 1 / (1 + exp(-g)):
    dgate = dh weight s u (1 + g (1 - s)), dup = dh weight s g, each 0 where its own value was clamped, and
    dweight = sum_j dh s g u.

    gate_up, weight, limit, scale_dtype, target   as in swiglu_cast
    dh     the gradient with respect to h [tokens, n], of the dtype of gate_up
    block  128, 64 or 32: the gradient leaves as e4m3 with a scale per row and block, n is a multiple of it;
           None: in the dtype of gate_up

    Returns (dgate_up [tokens, 2 n], dweight [tokens] float32 or None), with a block (q [tokens, 2 n],
    scale [tokens, 2 n / block], dweight). Computed in float32, rounded to the dtype of gate_up, then cast with the
    bits of per_token_cast. Each row's sum has one order; no row depends on another.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError for another block, one that does not divide n, or a
    limit that is not positive.
    """
    name = "swiglu_cast_backward"
    dtype, m, n = _checked(name, gate_up, weight, limit)
    scales = arrays.choice(name, "scale_dtype", scale_dtype, SCALES)
    if arrays.floats(name, gate_up=gate_up, dh=dh) is not dtype or tuple(dh.shape) != (m, n):
        raise TileTypeError(f"{name}: dh does not fit: {arrays.describe(gate_up=gate_up, dh=dh)}, expected [{m}, {n}]")
    width = 128 if block is None else block_size(name, block)
    if block is not None and n % width:
        raise TileValueError(f"{name}: block is {block}, but a half of gate_up has {n} columns", help="block=None")
    out = dtype if block is None else as_dtype(E4M3)
    dx = allocate((m, 2 * n), out, gate_up)
    scale = None if block is None else allocate((m, 2 * n // width), scales, gate_up)
    dw = None if weight is None else allocate((m,), as_dtype("float32"), gate_up)
    if m:
        form = width, dtype, out, scales, limit is not None, weight is not None, tiles_for(target).threads
        w = None if weight is None else arrays.dense(weight)
        X, D = arrays.unit_last(gate_up), arrays.unit_last(dh)
        _swiglu_cast_backward_kernel(*form)(X, w, float(limit or 0), D, dx, scale, dw, target=target)
    return (dx, dw) if block is None else (dx, scale, dw)
