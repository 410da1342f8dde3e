"""The library: matrix products, attention and row-wise kernels, written in the language, for all targets.

NumPy (ml_dtypes) or torch in, the same kind out; float32, float16, bfloat16 and float64. The factories behind the
functions (`matmul_kernel`, ...) take tile sizes and dtypes and leave all shapes symbolic: one compile serves all.
"""

from tiledsl.kernels.attention import (
    flash_attention,
    flash_attention_kernel,
    flash_attention_varlen,
    flash_attention_varlen_kernel,
)
from tiledsl.kernels.attention_backward import (
    flash_attention_backward,
    flash_attention_backward_kernel,
    flash_attention_varlen_backward,
)
from tiledsl.kernels.block_sparse import block_sparse_attention, block_sparse_attention_kernel
from tiledsl.kernels.conv import conv2d, conv2d_kernel
from tiledsl.kernels.decode import attention_decode, attention_decode_kernel, mla_decode
from tiledsl.kernels.gemm import matmul, matmul_kernel
from tiledsl.kernels.grouped import grouped_gemm, grouped_gemm_kernel
from tiledsl.kernels.grouped_more import (
    k_grouped_gemm,
    k_grouped_gemm_kernel,
    masked_grouped_gemm,
    masked_grouped_gemm_kernel,
)
from tiledsl.kernels.int8 import int8_matmul, int8_matmul_kernel
from tiledsl.kernels.packed import PackedTensor, prepack, prepack_kernel
from tiledsl.kernels.pointwise import rope, rope_kernel, swiglu, swiglu_kernel
from tiledsl.kernels.reorder import cumsum, cumsum_kernel, top_k, top_k_kernel, transpose, transpose_kernel
from tiledsl.kernels.rowwise import (
    layer_norm,
    layer_norm_kernel,
    rms_norm,
    rms_norm_kernel,
    softmax,
    softmax_kernel,
)
from tiledsl.kernels.rowwise_backward import (
    layer_norm_backward,
    norm_backward_kernel,
    norm_weight_backward_kernel,
    rms_norm_backward,
    softmax_backward,
    softmax_backward_kernel,
    swiglu_backward,
    swiglu_backward_kernel,
)

__all__ = [
    "block_sparse_attention",
    "block_sparse_attention_kernel",
    "PackedTensor",
    "prepack",
    "prepack_kernel",
    "attention_decode",
    "attention_decode_kernel",
    "conv2d",
    "conv2d_kernel",
    "cumsum",
    "cumsum_kernel",
    "flash_attention",
    "flash_attention_backward",
    "flash_attention_backward_kernel",
    "flash_attention_kernel",
    "flash_attention_varlen",
    "flash_attention_varlen_backward",
    "flash_attention_varlen_kernel",
    "grouped_gemm",
    "grouped_gemm_kernel",
    "int8_matmul",
    "int8_matmul_kernel",
    "k_grouped_gemm",
    "k_grouped_gemm_kernel",
    "layer_norm",
    "layer_norm_backward",
    "layer_norm_kernel",
    "masked_grouped_gemm",
    "masked_grouped_gemm_kernel",
    "matmul",
    "matmul_kernel",
    "mla_decode",
    "norm_backward_kernel",
    "norm_weight_backward_kernel",
    "rms_norm",
    "rms_norm_backward",
    "rms_norm_kernel",
    "rope",
    "rope_kernel",
    "softmax",
    "softmax_backward",
    "softmax_backward_kernel",
    "softmax_kernel",
    "swiglu",
    "swiglu_backward",
    "swiglu_backward_kernel",
    "swiglu_kernel",
    "top_k",
    "top_k_kernel",
    "transpose",
    "transpose_kernel",
]
