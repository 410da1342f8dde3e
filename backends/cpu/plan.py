"""Scratch offsets: every scratch buffer of a kernel gets its place in the worker's arena."""

from __future__ import annotations

from collections.abc import Mapping

from tiledsl import ir
from tiledsl.analysis.meeting import may_wait
from tiledsl.ir.walk import Rewriter, walk

from .wide import i64

__all__ = ["plan_scratch"]

_ALIGN = 64  # one cache line and one AVX-512 vector


def plan_scratch(kernel: ir.Kernel, buffers: list[ir.Buffer]) -> ir.Kernel:
    """The kernel with `base` set on every scratch buffer it touches, its arena size in `attrs`; in there too
    whether its blocks may wait for each other."""
    placed: dict[ir.Buffer, ir.Buffer] = {}
    offset = 0
    for b in buffers:
        if b.scope != "scratch" or b.alias_of is not None:
            continue
        placed[b] = b.replace(base=i64(offset))
        size = b.dtype.bytes
        for n in b.const_shape or ():
            size *= n
        # Vectors may be read (never used) up to one vector past a row's end; a spare line keeps arenas apart.
        offset += -(-size // _ALIGN) * _ALIGN + _ALIGN
    for b in buffers:
        if b.scope == "scratch" and b.alias_of is not None:
            placed[b] = _view(b, placed)
    body = _Place(placed).visit_block(kernel.body)
    attrs = (*kernel.attrs, ("scratch_bytes", offset))
    if any(isinstance(n, ir.While) and may_wait(n) for n in walk(kernel.body)):
        attrs = (*attrs, ("waits", True))
    return kernel.replace(body=body, attrs=attrs)


def _view(b: ir.Buffer, placed: Mapping[ir.Buffer, ir.Buffer]) -> ir.Buffer:
    root = placed[b.root]
    shift = b.offset
    assert isinstance(root.base, ir.Const) and (shift is None or isinstance(shift, ir.Const))
    return b.replace(
        alias_of=None, offset=None, base=i64(root.base.value + (shift.value if shift else 0) * b.dtype.bytes)
    )


class _Place(Rewriter):
    def __init__(self, placed: Mapping[ir.Buffer, ir.Buffer]) -> None:
        self.placed = placed

    def buffer(self, b: ir.Buffer) -> ir.Buffer:
        return self.placed.get(b, b)
