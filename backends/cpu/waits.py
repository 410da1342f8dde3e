"""A block that waits for another one spins: its condition is read again, atomically, until it holds.

So do barriers of the grid that no launch can end (`grid_barriers.py`): blocks count their arrivals in a workspace. That
every block goes on is up to whoever runs them (`tiledsl.runtime.resident`); a cancelled launch leaves the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.dtypes import INT32, INT64
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.walk import Rewriter, loads_of, walk

__all__ = ["SpinWaits", "observed"]

_ZERO, _ONE = build.const(0, INT64), build.const(1, INT64)


@dataclass(frozen=True)
class SpinWaits:
    """The pass, on tile-stage functions whose threads are spread: waiting over global memory becomes a loop."""

    name: ClassVar[str] = "spin_waits"

    def __call__(self, function: ir.Function) -> ir.Function:
        kernels: list[ir.Kernel] = []
        workspaces = list(function.workspaces)
        for k in function.kernels:
            spin = _Spin(k)
            body = spin.visit_block(k.body)
            if spin.arrivals is not None:
                workspaces.append(spin.arrivals)
                kernels.append(_clear(k, spin.arrivals))
            kernels.append(k if body is k.body else k.replace(body=body))
        return function.replace(kernels=tuple(kernels), workspaces=tuple(workspaces))


def _clear(k: ir.Kernel, counter: ir.Buffer) -> ir.Kernel:
    """The kernel before k that sets its counter to 0."""
    body = (ir.Store(counter, (_ZERO,), _ZERO),)
    axes = tuple(ir.Var(v.name, v.type) for v in k.thread_vars)  # a binding belongs to one kernel
    block = ir.Var("b", INT32)
    grid = (build.const(1, block.type),)
    return k.replace(name=f"{k.name}_clear", grid=grid, block_vars=(block,), thread_vars=axes, body=body, attrs=())


class _Spin(Rewriter):
    def __init__(self, kernel: ir.Kernel) -> None:
        self.kernel = kernel
        self.arrivals: ir.Buffer | None = None  # at barriers of the grid, over all rounds

    def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.Sync) and s.scope == "grid":
            return self._meet(s)
        if not isinstance(s, ir.Wait):
            return s
        reads, cond = observed(s.cond)
        assert reads  # waiting for threads of the own block has become turns (`roles.py`)
        leave = ir.If(cond, (ir.Break(loc=s.loc),), loc=s.loc)
        return ir.While(build.TRUE, (*reads, leave), loc=s.loc)

    def _meet(self, s: ir.Sync) -> tuple[ir.Stmt, ...]:
        """The block arrives, and waits until as many have as there are blocks, once more than before."""
        if any(isinstance(n, ir.Return) for n in walk(self.kernel.body)):
            raise TileNotImplementedError(
                "a barrier of the grid inside a branch or a long loop, in a kernel whose blocks may return before it, "
                "is not supported by the CPU targets",
                s.loc,
                help="put what blocks do into an `if` instead of returning from the others",
            )
        if self.arrivals is None:
            self.arrivals = ir.Buffer(f"{self.kernel.name}_arrivals", INT64, (_ONE,), "global")
        blocks: ir.Expr = _ONE
        for extent in self.kernel.grid:
            blocks = build.mul(blocks, build.cast(extent, INT64))
        mine = ir.Var("arrival", INT64)
        arrive = ir.Atomic("add", self.arrivals, (_ZERO,), _ONE, mine, "acq_rel", loc=s.loc)
        round_, reached = build.floordiv(mine, blocks), build.floordiv(self.arrivals.load(_ZERO), blocks)
        wait = self.stmt(ir.Wait(build.ne(reached, round_), loc=s.loc))
        assert isinstance(wait, ir.Stmt)
        return arrive, wait


def observed(cond: ir.Expr) -> tuple[tuple[ir.Stmt, ...], ir.Expr]:
    """Statements that read what the condition reads of global memory, atomically, and the condition over that."""
    loads = dict.fromkeys(x for x in loads_of(cond) if x.buffer.root.scope == "global")
    values = {x: ir.Var("seen", x.dtype) for x in loads}
    reads = tuple(ir.Atomic("load", x.buffer, x.indices, None, v, "acquire", loc=x.loc) for x, v in values.items())
    return reads, _Seen(values).visit_expr(cond)


class _Seen(Rewriter):
    """The condition over the values that were read."""

    def __init__(self, values: dict[ir.Load, ir.Var]) -> None:
        self.values = values

    def expr(self, e: ir.Expr) -> ir.Expr:
        return self.values.get(e, e) if isinstance(e, ir.Load) else e
