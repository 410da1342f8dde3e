"""Element by element: the gated activation of feed-forward layers, and rotary position embedding."""

# mypy: disable-error-code="no-untyped-def,valid-type"
import math
from functools import cache
from typing import Any

import numpy as np

import tiledsl
import tiledsl.language as T
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError
from tiledsl.kernels import arrays
from tiledsl.kernels.attention_args import check_layout
from tiledsl.kernels.tiles import fit, fit_row, tiles_for

__all__ = ["rope", "rope_kernel", "swiglu", "swiglu_kernel"]


@tiledsl.jit
def swiglu_kernel(block_M: int, block_N: int, dtype: DType, threads: int = 128) -> Any:
    """Y[i, j] = G[i, j] * sigmoid(G[i, j]) * U[i, j]."""
    M, N = T.dynamic("M"), T.dynamic("N")
    wide = arrays.accumulator(dtype)
    ldg, ldu, ldy = (T.dynamic(f"ld{x}", "int64") for x in "guy")

    @T.prim_func
    def swiglu(
        G: T.StridedTensor((M, N), (ldg, 1), dtype),
        U: T.StridedTensor((M, N), (ldu, 1), dtype),
        Y: T.StridedTensor((M, N), (ldy, 1), dtype),
    ):
        with T.Kernel(T.ceildiv(N, block_N), T.ceildiv(M, block_M), threads=threads) as (bx, by):
            for i, j in T.Parallel(block_M, block_N):
                gate = T.cast(G[by * block_M + i, bx * block_N + j], wide)
                up = T.cast(U[by * block_M + i, bx * block_N + j], wide)
                Y[by * block_M + i, bx * block_N + j] = gate / (1.0 + T.exp(-gate)) * up

    return swiglu


_swiglu_kernel = cache(swiglu_kernel)  # the same values, the same kernel


def swiglu(gate: Any, up: Any = None, *, out: Any = None, target: Any = None) -> Any:
    """Gated activation y = gate / (1 + exp(-gate)) * up (SwiGLU without its matrices: Shazeer, "GLU Variants Improve
    Transformer", 2020).

    gate    [..., n], float32, float16, bfloat16 or float64; NumPy (ml_dtypes) or torch
    up      the same shape and dtype; None: gate is [..., 2 n], its first half the gate and its second half up
    out     contiguous array [..., n] that receives the result; with `up` it may be gate or up itself
    target  where to run (default: TILEDSL_TARGET, else auto)

    Returns [..., n]. Computed in float32 (float64 for float64), rounded once; gate = -inf gives NaN, as the formula
    does.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError when out overlaps an input without being it.
    """
    dtype = arrays.dtype_of("swiglu", "gate", gate)
    if gate.ndim == 0:
        raise TileTypeError("swiglu: gate is a scalar array, expected at least one dimension")
    given = {"gate": gate} if up is None else {"gate": gate, "up": up}
    if up is None:
        n = gate.shape[-1] // 2
        if gate.shape[-1] % 2:
            raise TileTypeError(
                f"swiglu: the last axis has two halves: {arrays.describe(gate=gate)}",
                help="pass up=, or an even number of columns",
            )
        gate, up = gate[..., :n], gate[..., n:]
    else:
        arrays.floats("swiglu", gate=gate, up=up)
        if tuple(gate.shape) != tuple(up.shape):
            raise TileTypeError(f"swiglu: one shape expected: {arrays.describe(gate=gate, up=up)}")
    out = arrays.output("swiglu", out, gate, gate.shape, dtype, dense=True, in_place=tuple(given), **given)
    rows = (math.prod(gate.shape[:-1]), gate.shape[-1])
    if all(rows):
        G, U = (arrays.unit_last(x.reshape(rows)) for x in (gate, up))
        tiles = tiles_for(target)
        kernel = _swiglu_kernel(*fit_row(tiles, *rows), dtype, tiles.threads)
        kernel(G, U, out.reshape(rows), target=target)
    return out


@tiledsl.jit
def rope_kernel(
    block_S: int,
    half: int,
    dtype: DType,
    table_dtype: DType,
    interleaved: bool,
    placed: bool,
    inverse: bool = False,
    threads: int = 128,
) -> Any:
    """Rotates pairs of the first 2 * half elements of each head by the angle of the row's position (inverse: back)."""
    batch, heads, seq, head_dim = T.dynamic("batch"), T.dynamic("heads"), T.dynamic("seq"), T.dynamic("head_dim")
    positions = T.dynamic("positions")
    x_strides = (*(T.dynamic(f"x_{d}", "int64") for d in ("batch", "head", "row")), 1)
    y_strides = (*(T.dynamic(f"y_{d}", "int64") for d in ("batch", "head", "row")), 1)
    wide = arrays.accumulator(dtype)
    step, other = (2, 1) if interleaved else (1, half)

    @T.prim_func
    def rope(
        X: T.StridedTensor((batch, heads, seq, head_dim), x_strides, dtype),
        Cos: T.Tensor((positions, half), table_dtype),
        Sin: T.Tensor((positions, half), table_dtype),
        P: T.Tensor((batch, seq), T.int32),
        Y: T.StridedTensor((batch, heads, seq, head_dim), y_strides, dtype),
    ):
        with T.Kernel(T.ceildiv(seq, block_S), heads, batch, threads=threads) as (bx, h, b):
            for i, j in T.Parallel(block_S, half):
                row = bx * block_S + i
                if row < seq:
                    at = P[b, row] if placed else row
                    c, s = T.cast(Cos[at, j], wide), T.cast(Sin[at, j], wide)
                    x0 = T.cast(X[b, h, row, step * j], wide)
                    x1 = T.cast(X[b, h, row, step * j + other], wide)
                    Y[b, h, row, step * j] = x0 * c + x1 * s if inverse else x0 * c - x1 * s
                    Y[b, h, row, step * j + other] = x1 * c - x0 * s if inverse else x1 * c + x0 * s
            for k in T.serial(T.ceildiv(head_dim - 2 * half, 64)):
                T.copy(
                    X[b, h, bx * block_S : bx * block_S + block_S, 2 * half + k * 64 : 2 * half + k * 64 + 64],
                    Y[b, h, bx * block_S : bx * block_S + block_S, 2 * half + k * 64 : 2 * half + k * 64 + 64],
                )

    return rope


_rope_kernel = cache(rope_kernel)  # the same values, the same kernel


def rope(
    x: Any,
    cos: Any,
    sin: Any,
    *,
    positions: Any = None,
    interleaved: bool = False,
    inverse: bool = False,
    layout: str = "bshd",
    out: Any = None,
    target: Any = None,
) -> Any:
    """Rotary position embedding: pairs (a, b) of each head become (a cos - b sin, b cos + a sin), with the angles of
    the row's position (Su et al., "RoFormer", 2021).

    x            [batch, seq, heads, head_dim]; layout="bhsd": [batch, heads, seq, head_dim]; float32, float16,
                 bfloat16 or float64; NumPy (ml_dtypes) or torch
    cos, sin     [positions, half] with 2 half <= head_dim; one of the same four dtypes. The elements from 2 half on
                 stay as they are
    positions    [seq] or [batch, seq] int32 or int64, rows of cos and sin; default 0 ... seq - 1. Rows outside of
                 the tables are refused where positions lies on the host
    interleaved  pairs are elements (2 j, 2 j + 1); default: (j, j + half)
    inverse      rotate by the negative angles: the gradient of rope is rope of the gradient, inverse
    out          array like x that receives the result; it may be x itself
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns an array like x. Two products and their difference or sum, in float32 (float64 for float64), rounded once
    to the dtype.

    Raises TileTypeError for wrong dtypes or shapes; TileValueError for an unknown layout, positions outside of the
    tables, and when out shares memory with cos or sin, or overlaps x without being x.
    """
    dims = check_layout("rope", layout)
    dtype, table_dtype = arrays.dtype_of("rope", "x", x), arrays.floats("rope", cos=cos, sin=sin)
    arrays.rank("rope", "x", x, dims)
    rows, half = arrays.rank("rope", "cos", cos, "positions, half")
    if tuple(sin.shape) != (rows, half) or half == 0 or 2 * half > x.shape[3]:
        raise TileTypeError(
            f"rope: the tables do not fit: {arrays.describe(x=x, cos=cos, sin=sin)}",
            help="cos and sin have one shape [positions, half] with 0 < 2 half <= head_dim",
        )
    out = arrays.output("rope", out, x, x.shape, dtype, in_place="x", x=x, cos=cos, sin=sin)
    X, Y = (t.swapaxes(1, 2) if layout == "bshd" else t for t in (arrays.unit_last(x), out))
    batch, heads, seq, _ = X.shape
    at = _positions(positions, batch, seq, rows)
    if batch and heads and seq:
        tiles = tiles_for(target)
        block = fit(tiles.rows, seq)
        kernel = _rope_kernel(block, half, dtype, table_dtype, interleaved, at is not None, inverse, tiles.threads)
        kernel(X, arrays.dense(cos), arrays.dense(sin), at, Y, target=target)
    return out


def _positions(positions: Any, batch: int, seq: int, rows: int) -> Any:
    """[batch, seq] int32, or None for 0 ... seq - 1. Raises unless the shape fits and rows exist."""
    if positions is None:
        if seq > rows:
            raise TileValueError(f"rope: {seq} rows, but the tables hold {rows} positions", help="pass longer tables")
        return None
    arrays.dtype_of("rope", "positions", positions, ("int32", "int64"))
    if tuple(positions.shape) not in ((seq,), (batch, seq)):
        raise TileTypeError(
            f"rope: {arrays.describe(positions=positions)}, expected int32 or int64 ({seq},) or ({batch}, {seq})"
        )
    arrays.check_size("rope", "positions", positions, 0, rows - 1)
    at = arrays.as_int32(positions)
    if at.ndim == 1 and batch == 1:
        at = at[None]
    elif at.ndim == 1:
        at = np.broadcast_to(at, (batch, seq)) if isinstance(at, np.ndarray) else at.expand(batch, seq)
    return arrays.dense(at)
