"""tiledsl in PyTorch programs: kernels as custom operators that torch.compile, autograd and opcheck understand."""

from __future__ import annotations

from tiledsl.torch.library import (
    flash_attention,
    grouped_gemm,
    k_grouped_gemm,
    layer_norm,
    matmul,
    rms_norm,
    rope,
    softmax,
    swiglu,
)
from tiledsl.torch.op import op

__all__ = [
    "flash_attention", "grouped_gemm", "k_grouped_gemm", "layer_norm", "matmul", "op", "rms_norm", "rope", "softmax",
    "swiglu",
]  # fmt: skip
