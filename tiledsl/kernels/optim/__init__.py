"""Optimisers: Muon with its Newton-Schulz iteration, and AdamW."""

from tiledsl.kernels.optim.muon import (
    adamw_kernel,
    adamw_step,
    affine_product_kernel,
    momentum_kernel,
    muon_step,
    newton_schulz,
    symmetric_product_kernel,
)

__all__ = [
    "adamw_kernel",
    "adamw_step",
    "affine_product_kernel",
    "momentum_kernel",
    "muon_step",
    "newton_schulz",
    "symmetric_product_kernel",
]
