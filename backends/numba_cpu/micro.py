"""Micro-kernels in printed text: `gemm_float32_64 = micro("gemm", "float32", panel=64)` and calls of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tiledsl.backends.cpu.emit.gemm import blocking, emit_gemm
from tiledsl.backends.cpu.emit.transpose import emit_transpose
from tiledsl.backends.cpu.emit.values import register_bytes
from tiledsl.backends.numba_cpu.dialect import VOID, Kind, Op
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import InternalError

__all__ = ["micro", "micro_names"]


def micro_names(name: str, d: DType, attrs: Mapping[str, Any]) -> tuple[str, str]:
    """The name that the text gives a variant of a micro-kernel, and the line that defines it."""
    if name == "gemm":
        panel = int(attrs["NR"])
        clear = bool(attrs.get("clear"))
        text = f"gemm_{d.name}_{panel}" + "_clear" * clear
        return text, f'{text} = micro("gemm", "{d.name}", panel={panel}{", clear=True" * clear})'
    if name == "transpose" and d.bits in (32, 64):
        text = f"transpose_{d.bits}"
        return text, f'{text} = micro("transpose", "{d.name}")'
    raise InternalError(f"no micro-kernel {name} for {d}")


def micro(name: str, dtype: str, *, panel: int = 0, clear: bool = False) -> Op:
    """The function of the dialect that calls a micro-kernel; arguments as in its emitter."""
    d = as_dtype(dtype)

    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> None:
        width = register_bytes(b)
        if name == "gemm":
            f = emit_gemm(b.module, d, panel, blocking(d, panel, width), clear)
        else:
            f = emit_transpose(b.module, d.bits, min(16, max(4, width * 8 // d.bits)))
        b.call(f, list(args))

    return Op(f"{name}_{d.name}_{panel}" + "_clear" * clear, lambda kinds: VOID, emit)
