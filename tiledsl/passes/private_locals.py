"""Per-thread arrays that a T.Parallel nest writes: each iteration gets a copy of its own, and the last one's stays.

That is what the interpreter does with storage from outside of a nest (language.md 0.4: iterations are unordered, and
none sees what another one wrote). Arrays of one element that live in variables are left to the lowering.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tiledsl.analysis.uniformity import thread_level
from tiledsl.dtypes import INT32
from tiledsl.ir import (
    Alloc,
    Break,
    Buffer,
    Const,
    Continue,
    Expr,
    For,
    Function,
    If,
    Kernel,
    Load,
    Parallel,
    Stmt,
    Store,
    Var,
    build,
)
from tiledsl.ir.walk import Rewriter, map_kernels, substitute, walk, writes

__all__ = ["PrivateLocals"]


@dataclass(frozen=True)
class PrivateLocals:
    """The pass; where thread indices are looked at, arrays belong to threads, and it changes nothing."""

    name: ClassVar[str] = "private_locals"
    apart: bool = (
        False  # iterations belong to different threads: for variables too, and no last value meets a first read
    )

    def __call__(self, function: Function) -> Function:
        return map_kernels(lambda k: k if thread_level(k) else self._kernel(k), function)

    def _kernel(self, kernel: Kernel) -> Kernel:
        body = _Nests(self.apart).visit_block(kernel.body)
        return kernel if body is kernel.body else kernel.replace(body=body)


class _Nests(Rewriter):
    def __init__(self, apart: bool) -> None:
        self.apart, self.scopes = apart, ("local", "var") if apart else ("local",)

    def stmt(self, s: Stmt) -> Stmt | tuple[Stmt, ...]:
        if not isinstance(s, Parallel):
            return s
        inside = {n.buffer for n in walk(s.body) if isinstance(n, Alloc)}
        touched = {b.root: None for n in walk(s.body) if isinstance(n, Stmt) for b in writes(n)}
        arrays = [b for b in touched if b.scope in self.scopes and b not in inside and b.const_shape is not None]
        views = {n.root for n in walk(s.body) if isinstance(n, Buffer) and n.alias_of is not None}
        arrays = [b for b in arrays if b not in views]
        if not arrays:
            return s
        if not self.apart:
            return s.replace(body=_private(s, {b: b for b in arrays}))
        last = {b: Buffer(f"{b.name}_last", b.dtype, b.shape, "local") for b in arrays}
        some: Expr = build.all_of(build.gt(n, 0) for n in s.extents)
        after = If(some, tuple(_copied(last[b], b) for b in arrays))
        return (*map(Alloc, last.values()), s.replace(body=_private(s, last)), after)


def _private(nest: Parallel, arrays: dict[Buffer, Buffer]) -> tuple[Stmt, ...]:
    """arrays: where the last iteration leaves the value of each."""
    own = {b: Buffer(f"{b.name}_own", b.dtype, b.shape, "local") for b in arrays}
    last: Expr = build.TRUE
    for v, n in zip(nest.vars, nest.extents, strict=True):
        last = build.and_(last, build.eq(build.cast(v, n.dtype), build.sub(n, Const(1, n.dtype))))
    body = substitute(nest.body, {}, own)
    if any(isinstance(n, (Break, Continue)) for n in walk(body)):
        # Who leaves an iteration early leaves this loop, and comes by the copies behind it.
        zero, one = Const(0, INT32), Const(1, INT32)
        body = (For(Var("once", INT32), zero, one, one, body),)
    before = [s for outer, b in own.items() for s in (Alloc(b), _copied(outer, b))]
    return (*before, *body, If(last, tuple(_copied(b, arrays[outer]) for outer, b in own.items())))


def _copied(src: Buffer, dst: Buffer) -> Stmt:
    """dst = src, element by element."""
    at = tuple(Var(f"i{k}", INT32) for k in range(src.rank))
    s: Stmt = Store(dst, at, Load(src, at))
    for v, n in zip(reversed(at), reversed(src.const_shape or ()), strict=True):
        s = For(v, Const(0, INT32), Const(n, INT32), Const(1, INT32), (s,))
    return s
