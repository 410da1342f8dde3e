"""Buffers: the only mutable storage, and regions of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.ir.expr import Const, Expr, Load
from tiledsl.ir.node import Node, attribute, node, operand

__all__ = ["Buffer", "Region", "SCOPES", "describe", "place_text"]

# Where a buffer lives and who owns it.
#   global    an argument or workspace, visible to all blocks
#   shared    one per block
#   fragment  one logical tile per block (spread over the threads on a GPU)
#   local     one per thread; allocated inside T.Parallel: one per iteration
#   var       a scalar per thread (shape (1,))
#   scratch   loop stage: per worker, laid out by the lowering
SCOPES = ("global", "shared", "fragment", "local", "var", "scratch")


@dataclass(frozen=True, eq=False)
class Buffer(Node):
    """A typed array. Compared by identity.

    shape     logical extents (expressions over symbols for arguments; block-local ones may use symbols too)
    strides   in elements, None = row-major contiguous
    alias_of  this buffer is a view: same storage, `offset` elements (of this dtype) into the root
    base      None: its own storage or the argument's address; else a run-time address (pointer tables)
    layout    None = identity; else a map from logical to physical indices (data, see `tiledsl.ir.layout`)
    safe      value that an out-of-range load gives (None = 0); global buffers only
    """

    name: str = attribute()
    dtype: DType = attribute()
    shape: tuple[Expr, ...] = operand()
    scope: str = attribute()
    strides: tuple[Expr, ...] | None = operand(default=None)
    alias_of: Buffer | None = operand(default=None)
    offset: Expr | None = operand(default=None)
    base: Expr | None = operand(default=None)
    layout: Any = attribute(default=None)
    safe: Const | None = attribute(default=None)

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def root(self) -> Buffer:
        """The buffer that owns the storage; effects are counted on it."""
        return self if self.alias_of is None else self.alias_of.root

    @property
    def chain(self) -> tuple[Buffer, ...]:
        """The buffer that owns the storage, and its views down to this one."""
        return (self,) if self.alias_of is None else (*self.alias_of.chain, self)

    @property
    def const_shape(self) -> tuple[int, ...] | None:
        """The extents as Python ints when all are constants, else None."""
        values = tuple(e.value for e in self.shape if isinstance(e, Const))
        return values if len(values) == len(self.shape) else None

    def load(self, *indices: Expr, **kw: Any) -> Load:
        return Load(self, indices, **kw)


@node
class Region(Node):
    """A box of a buffer: starts and extents per dimension (extent 1 where one index was given)."""

    buffer: Buffer = operand()
    starts: tuple[Expr, ...] = operand()
    extents: tuple[Expr, ...] = operand()

    @property
    def whole(self) -> bool:
        """All of the buffer."""
        return self.extents == self.buffer.shape and all(isinstance(e, Const) and e.value == 0 for e in self.starts)


def describe(b: Buffer) -> str:
    """`A_s (64x32 float16, shared)`."""
    shape = "x".join(str(e.value) if isinstance(e, Const) else "?" for e in b.shape)
    return f"{b.name} ({shape + ' ' if shape else ''}{b.dtype}, {b.scope})"


def place_text(b: Buffer) -> tuple[str, ...]:
    """The note that tells where a buffer comes from."""
    if b.loc is None:
        return ()
    verb = "declared" if b.scope == "global" else "allocated"
    return (f"{b.name} was {verb} at {str(b.loc).rsplit(':', 1)[0]}",)
