"""Options of `tiledsl.jit` and `tiledsl.compile`: which are known, which change nothing, and what is misspelt."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tiledsl.backend import check_target
from tiledsl.errors import TileError, TileTypeError, TileValueError, suggest
from tiledsl.frontend.location import here

__all__ = ["HINTS", "PASS_CONFIGS", "check_options", "check_place"]

# Accepted with TileLang's names and without effect: none of them can change a value here.
HINTS = ("target_host", "execution_backend", "verbose", "debug_root_path", "compile_flags", "pass_configs")

# Hints of other targets, and fast math, which only widens the error that is permitted: IEEE results satisfy it.
PASS_CONFIGS = frozenset(
    [
        "fast_math",
        "tl.enable_fast_math",
        "tl.disable_fast_math",
        "tl.disable_warp_specialized",
        "tl.disable_tma_lower",
        "tl.disable_thread_storage_sync",
        "tl.disable_vectorize_256",
        "tl.disable_out_of_bound_warning",
        "tl.enable_lower_ldgstg_predicated",
        "tl.layout_visualization_enable",
        "tl.layout_visualization_formats",
        "tl.ptxas_register_usage_level",
    ]
)


def check_options(where: str, given: Mapping[str, Any]) -> None:
    """Raises TileTypeError for an unknown option and TileValueError for an unknown pass configuration, with the
    name that was probably meant."""
    for name in given:
        if name not in HINTS:
            known = ("out_idx", "target", *HINTS)
            raise TileTypeError(
                f"{where} has no option {name!r}", here(), help=suggest(name, known) or f"options: {', '.join(known)}"
            )
    for key in given.get("pass_configs") or ():
        text = str(getattr(key, "value", key))
        if text not in PASS_CONFIGS:
            raise TileValueError(
                f"{where}: unknown pass configuration {text!r}",
                here(),
                help=suggest(text, PASS_CONFIGS) or f"known: {', '.join(sorted(PASS_CONFIGS))}",
            )


def check_place(target: Any) -> None:
    """`backend.check_target`, with the author's line."""
    try:
        check_target(target)
    except TileError as e:
        e.loc = here()
        raise
