"""A block that waits for another one spins: its condition is read again, atomically, until it holds.

Blocks begin in the order of the grid, so a wait for an earlier block ends. (One for a later block ends when enough
workers run; a cancelled launch leaves the loop in any case.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.errors import TileNotImplementedError
from tiledsl.ir.build import TRUE
from tiledsl.ir.walk import Rewriter, loads_of, map_kernels

__all__ = ["SpinWaits", "observed"]


@dataclass(frozen=True)
class SpinWaits:
    """The pass, on tile-stage functions whose threads are spread: a Wait over global memory becomes a loop."""

    name: ClassVar[str] = "spin_waits"

    def __call__(self, function: ir.Function) -> ir.Function:
        spun: ir.Function = map_kernels(lambda k: k.replace(body=_Spin().visit_block(k.body)), function)
        return spun


class _Spin(Rewriter):
    def stmt(self, s: ir.Stmt) -> ir.Stmt:
        if not isinstance(s, ir.Wait):
            return s
        loads = dict.fromkeys(x for x in loads_of(s.cond) if x.buffer.root.scope == "global")
        if not loads:
            raise TileNotImplementedError(
                "threads of one block that wait for each other are not yet supported by the CPU targets",
                s.loc,
                help="run on target='numpy'",
            )
        reads, cond = observed(s.cond)
        leave = ir.If(cond, (ir.Break(loc=s.loc),), loc=s.loc)
        return ir.While(TRUE, (*reads, leave), loc=s.loc)


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
