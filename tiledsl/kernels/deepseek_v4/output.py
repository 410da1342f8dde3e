"""Around attention: queries normalised and rotated; rotation back, and the output projection in groups of heads."""

from __future__ import annotations

from typing import Any

import numpy as np

from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.gemm import matmul
from tiledsl.kernels.grouped_more import masked_grouped_gemm
from tiledsl.kernels.pointwise import rope
from tiledsl.kernels.quant import per_token_cast, scaled_gemm
from tiledsl.kernels.rowwise import rms_norm
from tiledsl.runtime import allocate

__all__ = ["inverse_rope", "output_projection", "prepare_queries"]


def rotated_part(name: str, which: str, x: Any, cos: Any) -> Any:
    """The last elements of each head, as rope takes them: [1, tokens, heads, 2 half], a view. Raises TileTypeError."""
    dim, half = (
        arrays.rank(name, which, x, "tokens, heads, dim")[2],
        arrays.rank(name, "cos", cos, "positions, half")[1],
    )
    if 2 * half > dim:
        raise TileTypeError(f"{name}: {arrays.describe(**{which: x}, cos=cos)}, expected at most {dim // 2} angles")
    return x[None, :, :, dim - 2 * half :]


def prepare_queries(q: Any, cos: Any, sin: Any, positions: Any, *, eps: float = 1e-6, target: Any = None) -> Any:
    """y = q / sqrt(mean q^2 + eps) over each head, without a weight, then its last elements rotated.

    q          [tokens, heads, dim] bfloat16 or float32; NumPy (ml_dtypes) or torch
    cos, sin   [positions, half] float32 (rope_tables); the last 2 half elements are rotated, in neighbouring pairs
    positions  [tokens] int32 or int64
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns an array like q; rounded to its dtype after the norm and after the rotation. Raises what rms_norm and rope
    raise, TileTypeError for tables that are wider than a head.
    """
    width = rotated_part("prepare_queries", "q", q, cos).shape[-1]
    y = rms_norm(q, arrays.like_kind(np.ones(q.shape[2], np.float32), q), eps=eps, target=target)
    tail = y[None, :, :, q.shape[2] - width :]
    rope(tail, cos, sin, positions=positions, interleaved=True, out=tail, target=target)
    return y


def inverse_rope(o: Any, cos: Any, sin: Any, positions: Any, *, target: Any = None) -> Any:
    """Rotate the last elements of each head back by the angles of the query's position, in place.

    o          [tokens, heads, dim] bfloat16 or float32; NumPy (ml_dtypes) or torch
    cos, sin   [positions, half] float32 (rope_tables); the last 2 half elements are rotated, in neighbouring pairs
    positions  [tokens] int32 or int64
    target     where to run (default: TILEDSL_TARGET, else auto)

    Returns o. Raises what rope raises, TileTypeError for tables that are wider than a head.
    """
    tail = rotated_part("inverse_rope", "o", o, cos)
    rope(tail, cos, sin, positions=positions, interleaved=True, inverse=True, out=tail, target=target)
    return o


def output_projection(o: Any, group_weights: Any, weight: Any, weight_scale: Any = None, *, target: Any = None) -> Any:
    """y = concat over g of (o_g @ group_weights[g]^T) @ weight^T, o_g being the heads of group g side by side.

    o              [tokens, heads, dim] bfloat16; NumPy (ml_dtypes) or torch
    group_weights  [groups, r, heads * dim / groups], of the dtype of o
    weight         [d, groups * r], of the dtype of o; or FP8 with
    weight_scale   as scaled_gemm takes them: the result of the groups is then cast by per_token_cast, with scales of
                   the same dtype
    target         where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, d] of the dtype of o; both products as in matmul (the second one of FP8: as in scaled_gemm), each
    rounded once.

    Raises TileTypeError for wrong dtypes or shapes.
    """
    name = "output_projection"
    same = {"o": o, "group_weights": group_weights} | ({"weight": weight} if weight_scale is None else {})
    dtype = arrays.floats(name, **same)
    m, heads, dim = arrays.rank(name, "o", o, "tokens, heads, dim")
    groups, r, k = arrays.rank(name, "group_weights", group_weights, "groups, r, k")
    if groups * k != heads * dim or tuple(weight.shape)[1:] != (groups * r,):
        given = arrays.describe(o=o, group_weights=group_weights, weight=weight)
        raise TileTypeError(
            f"{name}: {given} do not fit",
            help="o is [tokens, heads, dim], group_weights [groups, r, heads dim / groups], weight [d, groups r]",
        )
    middle = allocate((m, groups, r), as_dtype(dtype), o)
    if m:
        each = arrays.dense(o).reshape(m, groups, k).swapaxes(0, 1)
        counts = arrays.like_kind(np.full(groups, m, np.int32), o)
        masked_grouped_gemm(each, group_weights, counts, transpose_b=True, out=middle.swapaxes(0, 1), target=target)
    middle = middle.reshape(m, groups * r)
    if weight_scale is None:
        return matmul(middle, weight.swapaxes(0, 1), target=target)
    q, scale = per_token_cast(middle, scale_dtype=as_dtype(weight_scale.dtype), target=target)
    return scaled_gemm(q, scale, weight, weight_scale, out_dtype=dtype, target=target)
