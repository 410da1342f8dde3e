"""DeepSeek-V4's own mechanisms: hyper-connections and hybrid compressed attention."""

from tiledsl.kernels.deepseek_v4.compress import CompressorState, compress, compress_kernel, compressor_state
from tiledsl.kernels.deepseek_v4.compress_backward import compress_backward, compress_backward_kernel
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
    hyper_head_backward,
    hyper_post_backward,
    hyper_post_backward_kernel,
    hyper_pre_backward,
    hyper_pre_backward_kernel,
)
from tiledsl.kernels.deepseek_v4.indexer import (
    index_logits,
    index_logits_kernel,
    index_page_bytes,
    index_queries,
    select_blocks,
    write_index_keys,
    write_index_keys_kernel,
)
from tiledsl.kernels.deepseek_v4.indexer_fp8 import (
    index_logits_fp8,
    index_logits_fp8_kernel,
    index_page_bytes_fp8,
    index_queries_fp8,
    write_index_keys_fp8,
    write_index_keys_fp8_kernel,
)
from tiledsl.kernels.deepseek_v4.mla_entries import (
    mla_page_bytes,
    read_mla_entries,
    read_mla_entries_kernel,
    write_mla_entries,
    write_mla_entries_kernel,
)
from tiledsl.kernels.deepseek_v4.output import inverse_rope, output_projection, prepare_queries
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
    "compress_backward",
    "compress_backward_kernel",
    "compress_kernel",
    "compressor_state",
    "hyper_head",
    "hyper_head_backward",
    "hyper_post",
    "hyper_post_backward",
    "hyper_post_backward_kernel",
    "hyper_post_kernel",
    "hyper_pre",
    "hyper_pre_backward",
    "hyper_pre_backward_kernel",
    "hyper_pre_kernel",
    "index_logits",
    "index_logits_fp8",
    "index_logits_fp8_kernel",
    "index_logits_kernel",
    "index_page_bytes",
    "index_page_bytes_fp8",
    "index_queries",
    "index_queries_fp8",
    "inverse_rope",
    "mla_page_bytes",
    "output_projection",
    "page_bytes",
    "prepare_queries",
    "read_entries",
    "read_entries_kernel",
    "read_mla_entries",
    "read_mla_entries_kernel",
    "rope_tables",
    "select_blocks",
    "sparse_attention",
    "sparse_attention_backward",
    "sparse_attention_backward_kernel",
    "sparse_attention_kernel",
    "visible_blocks",
    "window_slots",
    "write_entries",
    "write_entries_kernel",
    "write_index_keys",
    "write_index_keys_fp8",
    "write_index_keys_fp8_kernel",
    "write_index_keys_kernel",
    "write_mla_entries",
    "write_mla_entries_kernel",
]
