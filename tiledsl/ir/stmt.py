"""Statements of all stages, and the tops: Kernel (one launch) and Function (what an author writes).

Block structure: a block is a tuple of statements; a Let, Alloc or Atomic result is visible in the rest of
its block. `STAGES` in `verifier.py` says which statements are legal in which stage.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tiledsl.ir.buffer import Buffer, Region
from tiledsl.ir.expr import Expr, Var
from tiledsl.ir.node import Node, attribute, binding, block, hint, node, operand

__all__ = [
    "Alloc",
    "Atomic",
    "Break",
    "Collective",
    "Continue",
    "Copy",
    "Debug",
    "Fill",
    "For",
    "Function",
    "Gemm",
    "If",
    "Kernel",
    "Let",
    "MicroCall",
    "Parallel",
    "Param",
    "Reduce",
    "ReducerOp",
    "Return",
    "Scan",
    "Stmt",
    "Store",
    "Sync",
    "TILE_OPS",
    "Wait",
    "While",
]


@node
class Stmt(Node):
    """Base of all statements."""


# -- shared by all stages -----------------------------------------------------------------------------


@node
class Alloc(Stmt):
    """Storage exists from here to the end of the block; contents undefined. `init` only for scope var."""

    buffer: Buffer = binding()
    init: Expr | None = operand(default=None)


@node
class Let(Stmt):
    """var has this value from here to the end of the block; evaluated once, here."""

    var: Var = binding()
    value: Expr = operand()


@node
class Store(Stmt):
    """One element (or `value.dtype.lanes` contiguous ones, or a scatter when an index is a vector). The value
    has the buffer's dtype. Tile stage: out of range of a global buffer is skipped. mask, proved: as in Load."""

    buffer: Buffer = operand("w")
    indices: tuple[Expr, ...] = operand()
    value: Expr = operand()
    mask: Expr | None = operand(default=None)
    proved: bool = attribute(default=False)


@node
class For(Stmt):
    """var = start, start + step, ... below stop (above, for a negative constant step); sequential.

    kind: "serial" | "pipelined" | "unroll" | "vectorized" | "thread" - all mean the same, sequentially.
    start, stop, step and var share one integer dtype. `annotations`: hints such as num_stages.
    """

    var: Var = binding()
    start: Expr = operand()
    stop: Expr = operand()
    step: Expr = operand()
    body: tuple[Stmt, ...] = block()
    kind: str = hint(default="serial")
    annotations: tuple[tuple[str, Any], ...] = hint(default=())


@node
class While(Stmt):
    """Repeats while cond, evaluated before each iteration, is true."""

    cond: Expr = operand()
    body: tuple[Stmt, ...] = block()


@node
class If(Stmt):
    cond: Expr = operand()
    then: tuple[Stmt, ...] = block()
    orelse: tuple[Stmt, ...] = block(default=())


@node
class Break(Stmt):
    """Leaves the innermost For or While (inside T.Parallel: clears this lane)."""


@node
class Continue(Stmt):
    """Next iteration of the innermost For or While."""


@node
class Return(Stmt):
    """Ends the thread; where no thread index decides about it, with it the block."""


@node
class Debug(Stmt):
    """kind "print": message and values; "assert": values[0] must hold; "breakpoint"; "assume": a promise;
    "bounds": an access is in range if values[0] holds; message is a template (`explain_debug`) for the other
    values, whose lines are what is wrong, notes, and help."""

    kind: str = attribute()
    values: tuple[Expr | Buffer, ...] = operand(default=())
    message: str = attribute(default="")


@node
class Atomic(Stmt):
    """One atomic read-modify-write. op: add max min or and xor exchange load store. `result` holds the old
    value in the rest of the block."""

    op: str = attribute()
    buffer: Buffer = operand("rw")
    indices: tuple[Expr, ...] = operand()
    value: Expr | None = operand()
    result: Var | None = binding(default=None)
    order: str = attribute(default="relaxed")


@node
class Sync(Stmt):
    """A barrier. scope: "block" | "warp" | "grid" | "async".

    count: how many threads take part in a barrier of the block (None: all that have not ended); barrier: which of the
    block's barriers, so that groups of threads can meet apart; added: by the compiler.
    """

    scope: str = attribute()
    count: int | None = attribute(default=None)
    barrier: int = attribute(default=0)
    added: bool = hint(default=False)


@node
class Collective(Stmt):
    """The threads that are here exchange values; `result` is what this thread gets, in the rest of the block.

    op, args  see `tiledsl.ir.collectives`
    scope     "warp": among the threads of a warp; "block": of the block, which is a barrier of the block as well
    width     shuffles: lanes of a segment (1, 2, 4 ... 32)
    axes      reductions over the block: the thread axes (0 = x) over which they go; () = all
    mask      uint32 per thread: the lanes of its warp that count for it; None = all that are here
    """

    op: str = attribute()
    args: tuple[Expr, ...] = operand()
    result: Var = binding()
    scope: str = attribute(default="warp")
    width: int = attribute(default=32)
    axes: tuple[int, ...] = attribute(default=())
    mask: Expr | None = operand(default=None)


@node
class Wait(Stmt):
    """The thread goes on once cond, a condition over memory that other threads or blocks change, holds."""

    cond: Expr = operand()


# -- tile stage: block-collective operations -----------------------------------------------------------


@node
class Parallel(Stmt):
    """Unordered iterations of a nest; executed as masked lockstep over lane axes (language.md 0.4).
    Loop variables run from 0 to extent - 1, first axis outermost."""

    vars: tuple[Var, ...] = binding()
    extents: tuple[Expr, ...] = operand()
    body: tuple[Stmt, ...] = block()
    annotations: tuple[tuple[str, Any], ...] = hint(default=())


@node
class Copy(Stmt):
    """dst[...] = cast(src[...]) over `domain`.

    Iteration (i_0, ..., i_n) below domain touches src at starts with i_k added to dimension src_axes[k], and
    dst likewise with dst_axes[k]; an axis of -1 does not move (broadcast). dst out of range: skipped. src out
    of range: 0 or the safe value if src is global, else dst stays untouched.
    """

    src: Region = operand("r")
    dst: Region = operand("w")
    domain: tuple[Expr, ...] = operand()
    src_axes: tuple[int, ...] = attribute()
    dst_axes: tuple[int, ...] = attribute()
    annotations: tuple[tuple[str, Any], ...] = hint(default=())


@node
class Fill(Stmt):
    """Every element of the region gets the value (of the buffer's dtype); out of range is skipped."""

    dst: Region = operand("w")
    value: Expr = operand()


@node
class Gemm(Stmt):
    """c (+)= op(a) @ op(b) over the last two dimensions of the regions, leading extents 1.
    clear: bool expression; true = start from 0. precision "tf32": targets may take float32 operands with 11 bits.
    Meaning: language.md 0.9."""

    a: Region = operand("r")
    b: Region = operand("r")
    c: Region = operand("rw")
    clear: Expr = operand()
    transpose_a: bool = attribute(default=False)
    transpose_b: bool = attribute(default=False)
    precision: str = attribute(default="ieee")
    annotations: tuple[tuple[str, Any], ...] = hint(default=())


@node
class Reduce(Stmt):
    """dst = reduction of src along `axis` (of the region's dimensions). op: sum max min abssum absmax bitand
    bitor bitxor. dst has src's shape without the axis, or with 1 there. Meaning: language.md 0.10."""

    op: str = attribute()
    src: Region = operand("r")
    dst: Region = operand("rw")
    axis: int = attribute()
    clear: Expr = operand()
    nan_propagate: bool = attribute(default=False)


@node
class Scan(Stmt):
    """Inclusive running op ("sum" | "max") along `axis`, from the end when reverse."""

    op: str = attribute()
    src: Region = operand("r")
    dst: Region = operand("w")
    axis: int = attribute()
    reverse: bool = attribute(default=False)


@node
class ReducerOp(Stmt):
    """A step in the life of a reducer, a buffer whose elements collect contributions; op: sum max min bitand bitor
    bitxor.

    init      every element becomes value, and has no contributions
    update    value contributes to the element at indices; lane: the number of this iteration among those that may
              contribute to one element (None = 0)
    finalize  every element is combined with its contributions, once (language.md 0.10): float sums go to partial
              lane mod 16, in row-major order of the iterations, and 16 partials are combined 8-4-2-1
    """

    action: str = attribute()
    op: str = attribute()
    buffer: Buffer = operand("rw")
    indices: tuple[Expr, ...] = operand(default=())
    value: Expr | None = operand(default=None)
    lane: Expr | None = operand(default=None)


TILE_OPS: tuple[type[Stmt], ...] = (Parallel, Copy, Fill, Gemm, Reduce, Scan)  # done by the block as a whole


# -- loop stage --------------------------------------------------------------------------------------------


@node
class MicroCall(Stmt):
    """A call of an opaque micro-kernel whose NumPy meaning is registered beside its emitter
    (`tiledsl.ir.micro`). `attrs` select the variant; `writes` may also be read."""

    name: str = attribute()
    writes: tuple[Region, ...] = operand("rw")
    reads: tuple[Region, ...] = operand("r", default=())
    scalars: tuple[Expr, ...] = operand(default=())
    attrs: tuple[tuple[str, Any], ...] = attribute(default=())


# -- tops --------------------------------------------------------------------------------------------------


@node
class Param(Node):
    """One parameter: `buffer` (tensor) or `var` (scalar). written: the kernel stores into it."""

    name: str = attribute()
    buffer: Buffer | None = binding(default=None)
    var: Var | None = binding(default=None)


@dataclass(frozen=True, eq=False)
class Kernel(Node):
    """One launch: a grid of blocks, each running `body`. grid and threads may be symbolic.

    block_vars and thread_vars exist from the first day, one per axis (x first), even when the body does not
    use them. `attrs`: hints such as use_swizzle's panel size.
    """

    name: str = field(metadata={"role": "attribute"})
    grid: tuple[Expr, ...] = field(metadata={"role": "operand"})
    threads: tuple[Expr, ...] = field(metadata={"role": "operand"})
    block_vars: tuple[Var, ...] = field(metadata={"role": "binding"})
    thread_vars: tuple[Var, ...] = field(metadata={"role": "binding"})
    body: tuple[Stmt, ...] = field(metadata={"role": "block"})
    attrs: tuple[tuple[str, Any], ...] = field(default=(), metadata={"role": "hint"})


@dataclass(frozen=True, eq=False)
class Function(Node):
    """What an author writes: parameters, workspaces and one or several kernels in launch order.

    symbols     the free symbols of shapes and strides, bound from arguments at launch
    outputs     indices into params that the runtime allocates and returns
    workspaces  per-launch global buffers
    stage       "tile" | "loop" | "thread"
    """

    name: str = field(metadata={"role": "attribute"})
    params: tuple[Param, ...] = field(metadata={"role": "binding"})
    kernels: tuple[Kernel, ...] = field(metadata={"role": "block"})
    symbols: tuple[Var, ...] = field(default=(), metadata={"role": "binding"})
    outputs: tuple[int, ...] = field(default=(), metadata={"role": "attribute"})
    workspaces: tuple[Buffer, ...] = field(default=(), metadata={"role": "binding"})
    stage: str = field(default="tile", metadata={"role": "attribute"})
    attrs: tuple[tuple[str, Any], ...] = field(default=(), metadata={"role": "hint"})

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        """The tensor parameters in order."""
        return tuple(p.buffer for p in self.params if p.buffer is not None)
