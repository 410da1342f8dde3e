"""DeepSeek-V4's own mechanisms: hyper-connections and hybrid compressed attention."""

from tiledsl.kernels.deepseek_v4.hyper_connections import (
    Mixes,
    hyper_head,
    hyper_post,
    hyper_post_kernel,
    hyper_pre,
    hyper_pre_kernel,
)
from tiledsl.kernels.deepseek_v4.hyper_connections_backward import (
    hyper_post_backward,
    hyper_post_backward_kernel,
    hyper_pre_backward,
    hyper_pre_backward_kernel,
)

__all__ = [
    "Mixes",
    "hyper_head",
    "hyper_post",
    "hyper_post_backward",
    "hyper_post_backward_kernel",
    "hyper_post_kernel",
    "hyper_pre",
    "hyper_pre_backward",
    "hyper_pre_backward_kernel",
    "hyper_pre_kernel",
]
