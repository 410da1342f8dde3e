"""A mixture-of-experts layer: router, expansion, two grouped products with the clamped SwiGLU between, ordered sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tiledsl.errors import TileTypeError
from tiledsl.kernels import arrays
from tiledsl.kernels.gemm import matmul
from tiledsl.kernels.moe.mapping import expand, reduce_rows, token_mapping
from tiledsl.kernels.moe.router import route
from tiledsl.kernels.quant import (
    PackedMXFP4,
    fp4_grouped_gemm,
    per_token_cast,
    scaled_grouped_gemm,
    swiglu_cast,
)

__all__ = ["Experts", "feed_forward", "moe_forward"]


@dataclass(frozen=True)
class Experts:
    """Weights of feed-forward networks [experts, ...], all of one kind:

    - quantised: gate_up [experts, 2 n, d] and down [experts, d, n], FP8 or MXFP4, with their scales as in scaled_gemm;
      activations are then cast to FP8 with e8m0 scales per 128 columns;
    - packed: gate_up and down are PackedMXFP4 (fp4_prepack) and have no scales here; activations stay bfloat16, or
      with cast=True are cast to FP8 as above, with the same bits as unpacked MXFP4.

    The first n rows of gate_up make the gate, the others up.
    """

    gate_up: Any
    down: Any
    gate_up_scale: Any = None
    down_scale: Any = None
    cast: bool = False


def feed_forward(
    x: Any, experts: Experts, sizes: Any, weights: Any = None, *, limit: float | None = None, mapping: Any = None,
    target: Any = None,
) -> Any:  # fmt: skip
    """y[r] = down_e(silu(gate_e x[r]) * up_e x[r] * weights[r]) for rows sorted by expert e.

    x        [rows, d] bfloat16; with a mapping [tokens, d], whose quantised rows are expanded
    experts  Experts
    sizes    [experts] int32 rows of each
    weights  [rows] float32 (routing weights, multiplied in before the second product), or None
    limit    clamps the gate from above and up on both sides: 10.0 in DeepSeek-V4
    mapping  a Mapping: x is expanded (after the cast, which is then done once per token)
    target   where to run (default: TILEDSL_TARGET, else auto)

    Returns [rows, d] bfloat16; products are rounded to bfloat16. Raises what its parts raise.
    """
    at: dict[str, Any] = {"target": target}
    packed = isinstance(experts.gate_up, PackedMXFP4)
    if packed and not experts.cast:
        rows = x if mapping is None else expand(x, mapping, **at)
        hidden = fp4_grouped_gemm(rows, experts.gate_up, sizes, **at)
        hidden = swiglu_cast(hidden, weights, limit=limit, block=None, **at)
        return fp4_grouped_gemm(hidden, experts.down, sizes, **at)
    q, scale = per_token_cast(x, scale_dtype="float8_e8m0fnu", **at)
    if mapping is not None:
        q, scale = expand(q, mapping, **at), expand(scale, mapping, **at)

    def product(q: Any, scale: Any, w: Any, w_scale: Any) -> Any:
        if packed:
            return fp4_grouped_gemm(q, w, sizes, a_scale=scale, **at)
        return scaled_grouped_gemm(q, scale, w, w_scale, sizes, **at)

    hidden = product(q, scale, experts.gate_up, experts.gate_up_scale)
    q, scale = swiglu_cast(hidden, weights, limit=limit, scale_dtype="float8_e8m0fnu", **at)
    return product(q, scale, experts.down, experts.down_scale)


def moe_forward(
    x: Any,
    gate: Any,
    experts: Experts,
    k: int | None = None,
    *,
    bias: Any = None,
    score: str = "sqrtsoftplus",
    scale: float = 1.0,
    groups: int = 1,
    kept: int | None = None,
    token_ids: Any = None,
    table: Any = None,
    shared: Experts | None = None,
    limit: float | None = None,
    target: Any = None,
) -> Any:
    """y[t] = sum over the chosen experts e of down_e(silu(gate_e x) up_e x w_e) + the shared expert of x[t], as
    DeepSeek-V4: router in float32, weights before the second product and its cast, sum in float32 in the order of the
    choices, one rounding.

    x            [tokens, d] bfloat16; NumPy (ml_dtypes) or torch
    gate         [experts, d] bfloat16, the router's weights
    experts      Experts
    k, bias, score, scale, groups, kept, token_ids, table   as in route
    shared       Experts with one expert, which every token goes to with weight 1; or None
    limit        of the clamp: 10.0 in DeepSeek-V4, for the shared expert too
    target       where to run (default: TILEDSL_TARGET, else auto)

    Returns [tokens, d] bfloat16. A row has the same bits in every batch. Experts without tokens cost nothing; zero
    tokens give zero rows.

    Raises TileTypeError for wrong dtypes or shapes, TileValueError as route does.
    """
    name = "moe_forward"
    for which, w in (("x", x), ("gate", gate)):
        arrays.dtype_of(name, which, w, ("bfloat16",))
    (m, d), (count, d_gate) = arrays.rank(name, "x", x, "tokens, d"), arrays.rank(name, "gate", gate, "experts, d")
    if d != d_gate:
        raise TileTypeError(f"{name}: {arrays.describe(x=x, gate=gate)} do not fit")
    logits = matmul(x, gate.swapaxes(0, 1), out_dtype="float32", target=target)
    given: dict[str, Any] = {"token_ids": token_ids, "table": table, "target": target}
    weights, chosen = route(logits, k, bias=bias, score=score, scale=scale, groups=groups, kept=kept, **given)
    mapping = token_mapping(chosen, count, target=target)
    per_row = expand(weights.reshape(m, weights.shape[1], 1), mapping, target=target).reshape(mapping.rows)
    y = feed_forward(x, experts, mapping.sizes, per_row, limit=limit, mapping=mapping, target=target)
    everyone = None
    if shared is not None:
        everyone = feed_forward(x, shared, arrays.like_kind(np.array([m], np.int32), x), limit=limit, target=target)
    return reduce_rows(y, mapping, add=everyone, target=target)
