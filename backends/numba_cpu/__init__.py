"""The target "numba": loop stage -> readable Python in a small dialect -> Numba -> object code.

For tests: `run_loop_function(function, args, symbols)` runs a loop-stage function in place on NumPy arrays;
`compile_function(function)` gives `.source` (the text), `.code` (object code) and `.run(words, grids)`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["compile_function", "run_loop_function"]


def __getattr__(name: str) -> Any:
    if name in ("compile_function", "run_loop_function"):
        from tiledsl.backends.numba_cpu import compile as _compile

        return getattr(_compile, name)
    raise AttributeError(name)
