"""Where groups of threads, and blocks, wait for each other, and how far they go on without each other after parting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tiledsl.ir import TILE_OPS, Alloc, Atomic, Collective, Expr, If, Kernel, ReducerOp, Stmt, Sync, Wait, While
from tiledsl.ir.walk import walk

__all__ = ["apart", "may_wait", "waits"]


def waits(body: Kernel | Sequence[Stmt]) -> bool:
    """Something in it may have to wait for other groups of threads, or for other blocks."""
    root = body.body if isinstance(body, Kernel) else tuple(body)
    return any(isinstance(n, Wait) or (isinstance(n, Sync) and _meets(n)) for n in walk(root))


def may_wait(s: While) -> bool:
    """The loop may wait for another block: it looks at what others change."""
    return any(isinstance(n, Atomic) and n.result is not None for n in walk(s.body))


def _meets(s: Sync) -> bool:
    return s.scope == "grid" or s.count is not None


def _by_block(s: Stmt) -> bool:
    """Something in it is done by all threads of the block together."""
    return any(
        isinstance(n, (*TILE_OPS, ReducerOp))
        or (isinstance(n, Sync) and n.scope in ("block", "grid") and n.count is None)
        or (isinstance(n, Collective) and n.scope == "block")
        or (isinstance(n, Alloc) and n.buffer.root.scope not in ("local", "var"))
        for n in walk(s)
    )


def apart(body: Sequence[Stmt], at: int, differs: Callable[[Expr], bool]) -> int:
    """Behind the last statement that groups of threads, which part at this one, go on to without each other: until
    the last such branch in which they wait, if the block does nothing as a whole before. differs: between threads."""
    s = body[at]
    end = at + 1
    if isinstance(s, If) and waits((s,)) and differs(s.cond):
        for k in range(end, len(body)):
            then = body[k]
            if isinstance(then, If) and waits((then,)) and (differs(then.cond) or not _by_block(then)):
                end = k + 1
            elif _by_block(then):
                break
    return end
