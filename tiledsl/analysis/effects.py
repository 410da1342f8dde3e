"""What statements read and write, on the buffers that own the storage; whether two may change places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from tiledsl.ir import (
    Alloc,
    Atomic,
    Break,
    Buffer,
    Collective,
    Continue,
    Debug,
    Function,
    Return,
    Stmt,
    Sync,
    Wait,
    While,
)
from tiledsl.ir.walk import reads, walk, writes

__all__ = ["Effects", "conflict", "effects", "written"]


@dataclass(frozen=True)
class Effects:
    """Alias roots that a statement, its blocks included, may touch; storage that lives inside it does not count.

    ordered  it must keep its place among ordered statements: output, assertions, barriers, atomics on global
             memory, leaving a loop or block, and loops that may wait for another block
    """

    reads: frozenset[Buffer] = field(default=frozenset())
    writes: frozenset[Buffer] = field(default=frozenset())
    ordered: bool = False


def effects(body: Stmt | Iterable[Stmt]) -> Effects:
    """Effects of a statement or block."""
    own: set[Buffer] = set()
    read: set[Buffer] = set()
    written: set[Buffer] = set()
    ordered = False
    for s in walk(body if isinstance(body, Stmt) else tuple(body)):
        if not isinstance(s, Stmt):
            continue
        if isinstance(s, Alloc) and s.buffer.scope != "global":  # else memory of the caller's, at some address
            own.add(s.buffer)
        read.update(b.root for b in reads(s))
        written.update(b.root for b in writes(s))
        if isinstance(s, Debug):
            ordered |= s.kind != "assume"
        elif isinstance(s, Atomic):
            ordered |= s.buffer.root.scope == "global"
        elif isinstance(s, (Sync, Collective, Wait, Break, Continue, Return, While)):
            ordered = True
    return Effects(frozenset(read - own), frozenset(written - own), ordered)


def written(function: Function) -> frozenset[Buffer]:
    """Roots of the arguments and workspaces that the kernels write."""
    return frozenset[Buffer]().union(*(effects(k.body).writes for k in function.kernels))


def conflict(a: Stmt | Effects, b: Stmt | Effects, arguments_alias: bool = False) -> bool:
    """False when a and b may change places, or run at the same time: neither writes what the other touches.

    arguments_alias: different global buffers may share memory. A buffer at a run-time address may share memory with
    every global one in any case.
    """
    a, b = (x if isinstance(x, Effects) else effects(x) for x in (a, b))
    if a.ordered and b.ordered:
        return True
    pairs = [(w, x) for w in a.writes for x in b.reads | b.writes] + [(w, x) for w in b.writes for x in a.reads]
    return any(_share(w, x, arguments_alias) for w, x in pairs)


def _share(a: Buffer, b: Buffer, arguments_alias: bool) -> bool:
    if a is b:
        return True
    if a.scope != "global" or b.scope != "global":
        return False
    return arguments_alias or a.base is not None or b.base is not None
