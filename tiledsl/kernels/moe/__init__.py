"""Mixture of experts: router, mapping from tokens to rows sorted by expert, expansion, ordered sum, a whole layer."""

from tiledsl.kernels.moe.forward import Experts, feed_forward, moe_forward
from tiledsl.kernels.moe.mapping import (
    Mapping,
    expand,
    expand_kernel,
    mapping_kernel,
    reduce_rows,
    reduce_rows_kernel,
    token_mapping,
)
from tiledsl.kernels.moe.router import route, route_backward, route_backward_kernel, route_kernel

__all__ = [
    "Experts",
    "Mapping",
    "expand",
    "expand_kernel",
    "feed_forward",
    "mapping_kernel",
    "moe_forward",
    "reduce_rows",
    "reduce_rows_kernel",
    "route",
    "route_backward",
    "route_backward_kernel",
    "route_kernel",
    "token_mapping",
]
