"""DeepSeek-V4's own mechanisms: hyper-connections and hybrid compressed attention."""

from tiledsl.kernels.deepseek_v4.compress import CompressorState, compress, compress_kernel, compressor_state
from tiledsl.kernels.deepseek_v4.entries import (
    page_bytes,
    read_entries,
    read_entries_kernel,
    rope_tables,
    write_entries,
    write_entries_kernel,
)
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
from tiledsl.kernels.deepseek_v4.sparse_attention import (
    block_slots,
    sparse_attention,
    sparse_attention_kernel,
    visible_blocks,
    window_slots,
)
from tiledsl.kernels.deepseek_v4.sparse_backward import sparse_attention_backward, sparse_attention_backward_kernel

__all__ = [
    "CompressorState",
    "Mixes",
    "block_slots",
    "compress",
    "compress_kernel",
    "compressor_state",
    "hyper_head",
    "hyper_post",
    "hyper_post_backward",
    "hyper_post_backward_kernel",
    "hyper_post_kernel",
    "hyper_pre",
    "hyper_pre_backward",
    "hyper_pre_backward_kernel",
    "hyper_pre_kernel",
    "page_bytes",
    "read_entries",
    "read_entries_kernel",
    "rope_tables",
    "sparse_attention",
    "sparse_attention_backward",
    "sparse_attention_backward_kernel",
    "sparse_attention_kernel",
    "visible_blocks",
    "window_slots",
    "write_entries",
    "write_entries_kernel",
]
