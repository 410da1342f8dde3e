"""Kernels whose tiles do not fit into shared memory: tiles of one shape and type that never hold a value at the same
time become one tile. (Where all fit, each keeps its own: sharing costs barriers.)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from tiledsl import ir
from tiledsl.analysis.uniformity import thread_level
from tiledsl.ir.walk import Rewriter, loads_of, map_kernels, substitute, walk

from .shared import shared_limit, shared_offsets
from .stages import ASYNC

__all__ = ["ReuseTiles"]

Body = Sequence[ir.Stmt]


@dataclass(frozen=True)
class ReuseTiles:
    """The pass; expects that moves are nests, and that barriers have not been put in."""

    name: ClassVar[str] = "reuse_tiles"
    optional: ClassVar[bool] = True
    arch: str = ""

    def __call__(self, function: ir.Function) -> ir.Function:
        return map_kernels(lambda k: _kernel(k, shared_limit(self.arch)), function)


def _kernel(kernel: ir.Kernel, limit: int) -> ir.Kernel:
    if thread_level(kernel) or shared_offsets(kernel, set())[1] <= limit:
        return kernel
    allocs = _Allocs()
    body = allocs.visit_block(kernel.body)
    kernel = kernel.replace(body=(*allocs.found, *body))
    kept: list[ir.Buffer] = []
    for b in _candidates(kernel):
        if shared_offsets(kernel, set())[1] <= limit:
            break
        like = (a for a in kept if a.dtype is b.dtype and a.const_shape == b.const_shape)
        free = next((a for a in like if not _overlap(kernel.body, a, b, False)), None)
        if free is None:
            kept.append(b)
        else:
            body = tuple(s for s in kernel.body if not (isinstance(s, ir.Alloc) and s.buffer is b))
            kernel = kernel.replace(body=substitute(body, {}, {b: free}))
    return kernel


class _Allocs(Rewriter):
    """Takes the allocations of shared memory out, wherever they stand: they are the whole block's."""

    def __init__(self) -> None:
        self.found: list[ir.Alloc] = []

    def stmt(self, s: ir.Stmt) -> ir.Stmt | tuple[ir.Stmt, ...]:
        if isinstance(s, ir.Alloc) and s.buffer.scope == "shared" and s.buffer.alias_of is None:
            self.found.append(s)
            return ()
        return s


def _candidates(kernel: ir.Kernel) -> list[ir.Buffer]:
    """Tiles that are no views, have none, and are not filled ahead of their use."""
    kept_apart = {n.root for n in walk(kernel.body) if isinstance(n, ir.Buffer) and n.alias_of is not None}
    for n in walk(kernel.body):
        if isinstance(n, ir.Debug) or (isinstance(n, ir.Parallel) and dict(n.annotations).get(ASYNC)):
            kept_apart |= {x.root for x in walk(n) if isinstance(x, ir.Buffer)}
    allocs = [s.buffer for s in kernel.body if isinstance(s, ir.Alloc)]
    return [b for b in allocs if b.scope == "shared" and b.alias_of is None and b not in kept_apart]


def _overlap(body: Body, a: ir.Buffer, b: ir.Buffer, again: bool) -> bool:
    """Both tiles may hold values that are still wanted at some point of these statements; again: they are a loop's."""
    lives = [_lives(body, x) for x in (a, b)]
    for x, live in zip((a, b), lives, strict=True):
        first, last = live[0]
        if again and not (_renews(body[first], x) and (first == last or isinstance(body[first], ir.Parallel))):
            return True  # a round may want what the one before left
    for x0, x1 in lives[0]:
        for y0, y1 in lives[1]:
            if x0 <= y1 and y0 <= x1:
                s = body[x0]
                if not x0 == x1 == y0 == y1 or not isinstance(s, (ir.For, ir.While, ir.If)):
                    return True
                if not isinstance(s, ir.If):
                    if _overlap(s.body, a, b, True):
                        return True
                elif any(_touches(x, a) and _touches(x, b) and _overlap(x, a, b, again) for x in (s.then, s.orelse)):
                    return True
    return False


def _lives(body: Body, b: ir.Buffer) -> list[list[int]]:
    """From where to where a value of the tile is wanted: it begins where all of the tile is written."""
    found: list[list[int]] = []
    for at, s in enumerate(body):
        if isinstance(s, ir.Alloc) or not _touches((s,), b):
            continue
        if not found or _renews(s, b):
            found.append([at, at])
            continue
        while len(found) > 1 and not isinstance(body[found[-1][0]], ir.Parallel):  # a branch or loop may not have run
            found.pop()
        found[-1][1] = at
    return found or [[-1, -1]]


def _touches(body: Body, b: ir.Buffer) -> bool:
    return any(n is b for s in body for n in walk(s))


def _renews(s: ir.Stmt, b: ir.Buffer) -> bool:
    """Whatever s does with the tile, it first writes all of it."""
    if isinstance(s, ir.Parallel):
        *names, store = s.body
        return (
            isinstance(store, ir.Store)
            and store.buffer is b
            and store.indices == s.vars
            and s.extents == b.shape
            and all(isinstance(n, ir.Let) for n in names)
            and not any(n.buffer is b for n in loads_of(s))
        )
    blocks = [s.body] if isinstance(s, (ir.For, ir.While)) else [s.then, s.orelse] if isinstance(s, ir.If) else []
    if not blocks or any(n is b for name in ("cond", "start", "stop") for n in _walked(s, name)):
        return False
    return all(_renews(next(x for x in block if _touches((x,), b)), b) for block in blocks if _touches(block, b))


def _walked(s: ir.Stmt, name: str) -> list[ir.Node]:
    e = getattr(s, name, None)
    return list(walk(e)) if isinstance(e, ir.Node) else []
