"""Block-scaled FP8 and MXFP4: casts and their inverses, the fused gated activation, roundings, scaled products.

Scales are float32 or float8_e8m0fnu (powers of two); MXFP4 is uint8, two e2m1 elements per byte, the low half first.
"""

from tiledsl.kernels.quant.casts import cast_kernel, mxfp4_cast, per_block_cast, per_channel_cast, per_token_cast
from tiledsl.kernels.quant.dequantize import dequantize, dequantize_kernel, fp4_to_fp8, fp4_to_fp8_kernel
from tiledsl.kernels.quant.gemm import scaled_gemm, scaled_gemm_kernel, scaled_grouped_gemm, scaled_masked_gemm
from tiledsl.kernels.quant.rounding import (
    e5m6_kernel,
    pack_e5m6,
    stochastic_round,
    stochastic_round_kernel,
    unpack_e5m6,
)
from tiledsl.kernels.quant.swiglu import (
    swiglu_cast,
    swiglu_cast_backward,
    swiglu_cast_backward_kernel,
    swiglu_cast_kernel,
)
from tiledsl.kernels.quant.weight_only import (
    PackedMXFP4,
    fp4_grouped_gemm,
    fp4_grouped_gemm_kernel,
    fp4_prepack,
    fp4_prepack_kernel,
)

__all__ = [
    "PackedMXFP4",
    "cast_kernel",
    "dequantize",
    "dequantize_kernel",
    "e5m6_kernel",
    "fp4_grouped_gemm",
    "fp4_grouped_gemm_kernel",
    "fp4_prepack",
    "fp4_prepack_kernel",
    "fp4_to_fp8",
    "fp4_to_fp8_kernel",
    "mxfp4_cast",
    "pack_e5m6",
    "per_block_cast",
    "per_channel_cast",
    "per_token_cast",
    "scaled_gemm",
    "scaled_gemm_kernel",
    "scaled_grouped_gemm",
    "scaled_masked_gemm",
    "stochastic_round",
    "stochastic_round_kernel",
    "swiglu_cast",
    "swiglu_cast_backward",
    "swiglu_cast_backward_kernel",
    "swiglu_cast_kernel",
    "unpack_e5m6",
]
