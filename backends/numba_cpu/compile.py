"""Printed text -> LLVM modules, by Numba."""

from __future__ import annotations

import linecache
from typing import Any

from tiledsl.backends.cpu.native import Cpu
from tiledsl.backends.numba_cpu.printer import Printed
from tiledsl.errors import InternalError

__all__ = ["llvm_modules"]


def llvm_modules(printed: Printed, cpu: Cpu) -> list[Any]:
    """One llvmlite module per kernel of the text."""
    from numba.core.errors import NumbaError

    from tiledsl.backends.numba_cpu.numba_target import to_llvm

    file = f"<tiledsl {printed.symbols[0] if printed.symbols else 'empty'}>"
    linecache.cache[file] = (len(printed.text), None, printed.text.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "tiledsl_printed"}
    exec(compile(printed.text, file, "exec"), namespace)
    try:
        return [to_llvm(namespace[s], s, cpu) for s in printed.symbols]
    except NumbaError as e:
        raise InternalError(f"Numba refuses the printed text of {', '.join(printed.symbols)}: {e}") from e
