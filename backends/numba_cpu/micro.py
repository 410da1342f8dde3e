"""Micro-kernels in printed text: `gemm_float32_64 = micro("gemm", "float32", panel=64)` and calls of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tiledsl import ir
from tiledsl.backends.cpu.emit.micro import Micro
from tiledsl.backends.numba_cpu.dialect import VOID, Kind, Op

__all__ = ["micro", "micro_names"]


def micro_names(s: ir.MicroCall) -> tuple[str, str]:
    """The name that the text gives the called variant of a micro-kernel, and the line that defines it."""
    form = Micro.of(s)
    words = [form.name, form.dtype]
    words += [k if v is True else str(v) for k, v in form.options().items()]
    name = "_".join(words)
    more = "".join(f", {k}={v if isinstance(v, (bool, int)) else repr(v)}" for k, v in form.options().items())
    return name, f'{name} = micro("{form.name}", "{form.dtype}"{more})'.replace("'", '"')


def micro(name: str, dtype: str, **options: Any) -> Op:
    """The function of the dialect that calls a micro-kernel (`Micro`); arguments as in its emitter."""
    form = Micro(name, dtype, **options)

    def emit(b: Any, kinds: Sequence[Kind], result: Kind, args: Sequence[Any]) -> None:
        b.call(form.emit(b), list(args))

    return Op("_".join(map(str, (name, dtype, *options.items()))), lambda kinds: VOID, emit)
