"""What is said of a member that kernels and jit functions do not have: TileLang's and Triton's, and misspelt ones."""

from __future__ import annotations

from typing import NoReturn

from tiledsl.errors import TileAttributeError, suggest
from tiledsl.frontend.location import here

__all__ = ["no_member"]

_TIME = "tiledsl.tune.milliseconds(lambda: kernel(a, b)) measures a call; TileLang programs have it under `tiledsl run`"
_SOURCE = 'kernel.get_kernel_source("numba") is readable Python; without a target, what the default compiler gets'
_RACES = 'results do not vary between calls; target="numpy:checked" finds races'
_CHECK = "compare the outputs with NumPy's: np.testing.assert_allclose(kernel(a, b), wanted)"
INSTEAD = {
    "get_profiler": _TIME, "do_bench": _TIME, "latency": _TIME, "run_once": "call it: kernel(a, b)",
    "assert_allclose": _CHECK, "assert_consistent": _RACES,
    "kernel_source": _SOURCE, "get_host_source": _SOURCE, "show_source": _SOURCE, "source": _SOURCE, "asm": _SOURCE,
    "print_source_code": _SOURCE, "ptx": _SOURCE, "get_ptx": _SOURCE, "show_ptx": _SOURCE,
    "run": "call it: kernel(a, b); the grid stands in T.Kernel", "warmup": "kernel.compile() compiles now",
    "export_library": "compiled kernels are kept in the cache on disk; there is no library of a kernel",
}  # fmt: skip


def no_member(what: str, kind: type, name: str) -> NoReturn:
    """Raises the TileAttributeError of `x.name`, for x of that kind."""
    known = [n for n in dir(kind) if not n.startswith("_")]
    if name.startswith("_") or name in known:  # the latter: a property that failed, which Python shows
        raise AttributeError(name)
    help = INSTEAD.get(name) or suggest(name, known) or f"it has {', '.join(known)}"
    raise TileAttributeError(f"{what} has no member .{name}", here(), help=help)
