"""What the compatibility layer accepts and passes over is said once, on standard error."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable
from typing import Any

__all__ = ["notice", "pass_configs", "passed_over"]

# Pass configurations of versions 0.1.6 to 0.1.15, without "tl.", and those of the compiler below it, without "tir.".
PASS_CONFIGS = frozenset(
    """
    disable_warp_specialized disable_tma_lower disable_safe_memory_legalize disable_dynamic_tail_split
    dynamic_alignment config_index_bitwidth ptxas_register_usage_level enable_ptxas_verbose_output
    device_compile_flags disable_vectorize_256 disable_wgmma enable_fast_math disable_fast_math
    debug_merge_shared_memory_allocations enable_aggressive_shared_memory_merge disable_shuffle_elect
    disable_loop_unswitching disable_thread_storage_sync force_let_inline ast_print_enable simplify
    layout_visualization_enable layout_visualization_formats disable_data_race_check enable_lower_ldgstg
    enable_lower_ldgstg_predicated disable_out_of_bound_warning storage_rewrite_detect_inplace
    disable_shared_memory_reuse enable_async_copy enable_vectorize_planner_verbose
    enable_equiv_terms_in_cse_tir enable_equiv_terms_in_cse disable_cse_tir disable_cse disable_storage_rewrite
    disable_vectorize use_async_copy enable_debug merge_static_smem add_lower_pass noalias disable_assert
    dump_pass_ir cuda.kernels_output_dir
    """.split()
)

_said: set[str] = set()


def notice(text: str) -> None:
    """Print a line, once per process."""
    if text not in _said:
        _said.add(text)
        print(f"tiledsl: {text}", file=sys.stderr)


def passed_over(where: str, options: Iterable[str], known: Collection[str] = ()) -> None:
    """Say which options are not among those that some version has."""
    for name in options:
        if name not in known:
            notice(f"{where}: the option {name} is passed over")


def pass_configs(where: str, given: Any) -> None:
    """Say which keys no version has; none of the others can change a value here."""
    for key in given or ():
        text = str(getattr(key, "value", key))
        if text.removeprefix("tl.").removeprefix("tir.").removeprefix("tirx.").lower() not in PASS_CONFIGS:
            notice(f"{where}: the pass configuration {text} is passed over")
