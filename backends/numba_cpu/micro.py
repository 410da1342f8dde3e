"""Micro-kernels in printed text: `gemm_float32_64 = micro("gemm", "float32", panel=64)` and calls of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiledsl import ir
from tiledsl.backends.cpu.emit.bytes import Bytes
from tiledsl.backends.cpu.emit.gemm import blocking, emit_gemm
from tiledsl.backends.cpu.emit.transpose import emit_transpose
from tiledsl.backends.cpu.emit.values import register_bytes
from tiledsl.backends.numba_cpu.dialect import VOID, Kind, Op
from tiledsl.dtypes import as_dtype

__all__ = ["micro", "micro_names"]


def micro_names(s: ir.MicroCall) -> tuple[str, str]:
    """The name that the text gives the called variant of a micro-kernel, and the line that defines it."""
    name, d, left, attrs = s.name, s.writes[0].buffer.dtype, s.reads[0].buffer.dtype, dict(s.attrs)
    if name == "gemm":
        panel = int(str(attrs["NR"]))
        clear, flip = bool(attrs.get("clear")), bool(attrs.get("flip"))
        text = f"gemm_{d.name}_{panel}" + "_clear" * clear
        more = ", clear=True" * clear
        if left.bits == 8:
            text += f"_{left.name}" + "_flip" * flip
            more += f', left="{left.name}"' + ", flip=True" * flip
        return text, f'{text} = micro("gemm", "{d.name}", panel={panel}{more})'
    assert name == "transpose" and d.bits in (32, 64)
    text = f"transpose_{d.bits}"
    return text, f'{text} = micro("transpose", "{d.name}")'


def micro(
    name: str, dtype: str, *, panel: int = 0, clear: bool = False, left: str | None = None, flip: bool = False
) -> Op:
    """The function of the dialect that calls a micro-kernel; arguments as in its emitter."""
    d = as_dtype(dtype)

    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> None:
        width = register_bytes(b)
        if name == "gemm":
            small = Bytes.of(as_dtype(left), flip, b.module) if left else None
            f = emit_gemm(b.module, d, panel, blocking(d, panel, width), clear, small)
        else:
            f = emit_transpose(b.module, d.bits, min(16, max(4, width * 8 // d.bits)))
        b.call(f, list(args))

    return Op(f"{name}_{d.name}_{panel}_{left}" + "_clear" * clear + "_flip" * flip, lambda kinds: VOID, emit)
