"""Compiles statements to closures `f(env, mask) -> mask of the lanes that go on` (None = all, False = nobody).

A block that cannot be left early ignores the returned masks. Break, Continue and Return record what happened in the
loop's own slot and return False; in T.Parallel they do so for the lanes that reach them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tiledsl.analysis.effects import effects
from tiledsl.analysis.meeting import apart, may_wait, waits
from tiledsl.analysis.uniformity import thread_level, varying
from tiledsl.errors import InternalError, TileValueError
from tiledsl.interp.atomic import Atomics
from tiledsl.interp.collective import Collectives
from tiledsl.interp.debug import Debugs
from tiledsl.interp.expr import Expressions
from tiledsl.interp.nibbles import Nibbles
from tiledsl.interp.reducer import Reducers
from tiledsl.interp.scope import RETURNED, TRACKER, Env, Fn, Nest, Scope
from tiledsl.interp.shadow import lift, micro
from tiledsl.interp.tile import Tiles
from tiledsl.interp.views import make_view
from tiledsl.interp.waits import Waits
from tiledsl.ir import (
    TILE_OPS,
    Alloc,
    Atomic,
    Break,
    Buffer,
    Collective,
    Const,
    Continue,
    Copy,
    Debug,
    Fill,
    For,
    Gemm,
    If,
    Kernel,
    Let,
    MicroCall,
    Parallel,
    Reduce,
    ReducerOp,
    Return,
    Scan,
    Stmt,
    Store,
    Sync,
    Var,
    Wait,
    While,
)
from tiledsl.ir.micro import MICRO
from tiledsl.ir.walk import walk

__all__ = ["Statements"]


def _leaves(body: Sequence[Stmt]) -> bool:
    """Control may leave this block before its end."""
    return any(isinstance(n, (Break, Continue, Return)) for s in body for n in walk(s))


class Statements:
    """The statement compiler of one kernel."""

    def __init__(self, scope: Scope, kernel: Kernel, aliases: dict[Buffer, list[Buffer]]) -> None:
        self.scope = scope
        self.expressions = Expressions(scope)
        self.tiles = Tiles(scope, self.expressions)
        self.atomics = Atomics(scope, self.expressions)
        self.collectives = Collectives(scope, self.expressions)
        self.reducers = Reducers(scope, self.expressions)
        self.debugs = Debugs(scope, self.expressions)
        self.waits = Waits(scope, self.expressions)
        self.kernel = kernel
        self.aliases = aliases  # views without an Alloc of their own, by what they are a view of
        self.exits: list[int] = []  # slots of the enclosing loops: lanes (or True) that broke out

    # -- the kernel --------------------------------------------------------------------------------------

    def kernel_body(self) -> Fn:
        """The body of the kernel for one block; where it looks at its threads, they are lanes all the way."""
        kernel, scope = self.kernel, self.scope
        if not thread_level(kernel):
            return self.block(kernel.body)
        extents = [self.expressions.compile(e) for e in reversed(kernel.threads)]
        found = varying(kernel.body, kernel.thread_vars, kernel.threads)
        threads = kernel.thread_vars[::-1]  # lanes are row-major and x runs fastest
        scope.nest = Nest(threads, scope.new_slot(), found.buffers, threads=True)
        scope.varying = set(threads)
        slots = [(scope.bind(v), v.dtype.numpy) for v in threads]
        shape_slot, tracks = scope.nest.shape_slot, scope.options.tracks
        with scope.loop(*kernel.thread_vars):
            body = self.block(kernel.body)

        def run(env: Env, mask: Any) -> Any:
            env[shape_slot] = shape = tuple([f(env, None) for f in extents])
            if any(n < 1 for n in shape):
                return mask
            for (slot, storage), index in zip(slots, np.ogrid[tuple(slice(n) for n in shape)], strict=True):
                env[slot] = index.astype(storage)
            if not tracks:
                return body(env, None)
            with env[TRACKER].threads(shape):
                return body(env, None)

        return run

    def _collectively(self, f: Fn) -> Fn:
        """f, done by the block: once, if some thread comes to it."""
        if not self.scope.options.tracks:
            return f

        def run(env: Env, mask: Any) -> Any:
            with env[TRACKER].whole_block():
                f(env, None)
            return mask

        return run

    # -- blocks ------------------------------------------------------------------------------------------

    def block(self, body: Sequence[Stmt]) -> Fn:
        steps: list[Fn] = []
        at = 0
        while at < len(body):
            s, end = body[at], apart(body, at, self.scope.varies)
            if end > at + 1:
                assert isinstance(s, If)
                with self.scope.at(s.loc):
                    steps.append(self.scope.counted(self._if(s, body[at + 1 : end])))
            else:
                steps.append(self.statement(s))
            at = end
        if len(steps) == 1:
            return steps[0]
        if not _leaves(body):

            def straight(env: Env, mask: Any) -> Any:
                for step in steps:
                    step(env, mask)
                return mask

            return straight

        def run(env: Env, mask: Any) -> Any:
            for step in steps:
                mask = step(env, mask)
                if mask is False:
                    return False
            return mask

        return run

    def statement(self, s: Stmt) -> Fn:
        with self.scope.at(s.loc):
            compiler = _COMPILERS.get(type(s))
            if compiler is None:
                raise self.scope.not_yet(f"the statement {type(s).__name__}")
            whole = s.action != "update" if isinstance(s, ReducerOp) else isinstance(s, TILE_OPS)
            if self.scope.threaded and whole:
                with self.scope.whole_block():
                    f = compiler(self, s)
                return self.scope.counted(self._collectively(f))
            return self.scope.counted(compiler(self, s))

    # -- names and storage -------------------------------------------------------------------------------

    def _let(self, s: Let) -> Fn:
        value = self.expressions.compile(s.value)
        array = self.expressions.is_array(s.value)
        if self.scope.varies(s.value):
            self.scope.varying.add(s.var)
        slot = self.scope.bind(s.var)

        def let(env: Env, mask: Any) -> Any:
            env[slot] = _owned(value(env, mask)) if array else value(env, mask)
            return mask

        return let

    def _alloc(self, s: Alloc) -> Fn:
        buffer = s.buffer
        scope = self.scope
        scope.alloc_locs[buffer] = s.loc or buffer.loc
        packed = buffer.dtype if buffer.dtype.is_packed else None
        nest = scope.nest
        if nest is not None and not nest.threads:
            nest.private.add(buffer.root)
        if nest is not None and not scope.is_private(buffer):
            nest = None  # one for all threads
        if buffer.alias_of is not None or buffer.base is not None or buffer.scope == "scratch":
            bind = self.bind_view(buffer)

            def alias(env: Env, mask: Any) -> Any:
                bind(env)
                return mask

            return alias
        slot = scope.bind(buffer)
        init = None if s.init is None else self.expressions.compile(s.init)
        views = self.bind_views(buffer)
        extents = [self.expressions.compile(e) for e in buffer.shape]
        storage, lanes = buffer.dtype.numpy, (buffer.dtype.lanes,) if buffer.dtype.is_vector else ()
        const = buffer.const_shape
        fixed = None if const is None or nest is not None else (*const, *lanes)
        shape_slot = None if nest is None else nest.shape_slot
        poison = scope.options.tracks
        shadowed = scope.options.shadow and buffer.dtype.is_float and packed is None

        def alloc(env: Env, mask: Any) -> Any:
            if fixed is not None:
                shape = fixed
            else:
                front = () if shape_slot is None else env[shape_slot]
                shape = (*front, *(f(env, None) for f in extents), *lanes)
            data: Any = np.zeros(shape, storage) if packed is None else Nibbles.empty(packed, shape)
            env[slot] = data = lift(data) if shadowed else data
            if init is not None:
                first = init(env, mask)
                # one element per lane of the nest, and the lanes of its own type where it is a vector
                data[...] = first[(..., None, *[slice(None)] * len(lanes))] if isinstance(first, np.ndarray) else first
            if poison:
                env[TRACKER].allocate(buffer, data, written=init is not None)
            views(env)
            return mask

        return alloc

    def bind_view(self, buffer: Buffer) -> Callable[[Env], None]:
        """A function that makes a view or a buffer of scratch memory, and the views of it."""
        slot = self.scope.bind(buffer)
        make, views = make_view(self.scope, self.expressions, buffer), self.bind_views(buffer)

        def bind(env: Env) -> None:
            env[slot] = make(env)
            views(env)

        return bind

    def bind_views(self, root: Buffer) -> Callable[[Env], None]:
        """A function that makes the views of a buffer that have no Alloc of their own, and the views of those."""
        views = [self.bind_view(alias) for alias in self.aliases.get(root, ())]

        def bind(env: Env) -> None:
            for view in views:
                view(env)

        return bind

    # -- branches ----------------------------------------------------------------------------------------

    def _if(self, s: If, rest: Sequence[Stmt] = ()) -> Fn:
        """rest: statements behind it that the two sides go on to without each other."""
        cond = self.expressions.compile(s.cond)
        then, orelse = self.block(s.then), self.block(s.orelse) if s.orelse else None
        leaves = _leaves((*s.then, *s.orelse, *rest))
        if not self.scope.varies(s.cond):

            def uniform(env: Env, mask: Any) -> Any:
                if cond(env, mask):
                    rest = then(env, mask)
                else:
                    rest = mask if orelse is None else orelse(env, mask)
                return rest if leaves else mask

            return uniform
        both = None
        if waits((s,)):
            go_on, together = orelse or self.block(()), self.block(rest)
            rejoin = self.waits.rejoin(rest, self.bind_views)
            both = self.waits.branches(then, go_on, together, tuple(self.exits), rejoin)

        def lanes(env: Env, mask: Any) -> Any:
            c = _owned(cond(env, mask))
            yes = c if mask is None else c & mask
            no = ~c if mask is None else mask & ~c
            if both is not None:
                rest_yes, rest_no = both(env, yes, no)
                return _either(rest_yes, rest_no) if leaves else mask
            rest_yes = then(env, yes) if yes.any() else False
            rest_no = no
            if orelse is not None or leaves:
                rest_no = no if no.any() else False
                if orelse is not None and rest_no is not False:
                    rest_no = orelse(env, no)
            return _either(rest_yes, rest_no) if leaves else mask

        return lanes

    # -- loops -------------------------------------------------------------------------------------------

    def _body(self, body: Sequence[Stmt], *loop_vars: Var) -> tuple[Fn, int]:
        """The body of a loop and the slot of those who left it."""
        exit_slot = self.scope.new_slot()
        self.exits.append(exit_slot)
        with self.scope.loop(*loop_vars):
            f = self.block(body)
        self.exits.pop()
        return f, exit_slot

    def _for(self, s: For) -> Fn:
        if any(self.scope.varies(e) for e in (s.start, s.stop, s.step)):
            return self._for_lanes(s)
        start, stop, step = (self.expressions.compile(e) for e in (s.start, s.stop, s.step))
        slot, left = self.scope.bind(s.var), self.scope.new_slot()
        body, exit_slot = self._body(s.body, s.var)
        report = self.scope.reporter(TileValueError, "count up by at least 1, or down by at least 1")

        def values(env: Env) -> range:
            by = step(env, None)
            if by == 0:
                raise report(env, "the step of a loop is 0")
            return range(start(env, None), stop(env, None), by)

        if not _leaves(s.body):

            def straight(env: Env, mask: Any) -> Any:
                for value in values(env):
                    env[slot] = value
                    body(env, mask)
                return mask

            return straight

        def begin(env: Env, mask: Any) -> None:
            env[left] = iter(values(env))

        def going(env: Env, mask: Any) -> bool:
            env[slot] = value = next(env[left], None)
            return value is not None

        return self._rounds(begin, going, False, body, exit_slot)

    def _for_lanes(self, s: For) -> Fn:
        """A loop whose bounds differ between lanes: each lane counts on its own."""
        start, stop, step = (self.expressions.compile(e) for e in (s.start, s.stop, s.step))
        slot, next_slot, end_slot, by_slot = self.scope.bind(s.var), *(self.scope.new_slot() for _ in range(3))
        self.scope.varying.add(s.var)
        body, exit_slot = self._body(s.body, s.var)
        assert self.scope.nest is not None
        rank, storage = self.scope.nest.rank, s.var.dtype.numpy
        down = isinstance(s.step, Const) and s.step.value < 0

        def begin(env: Env, mask: Any) -> None:
            env[end_slot], env[by_slot] = stop(env, mask), step(env, mask)
            first = start(env, mask)
            env[next_slot] = first if isinstance(first, np.ndarray) else np.full((1,) * rank, first, storage)

        def going(env: Env, mask: Any) -> Any:
            env[slot] = value = env[next_slot]
            env[next_slot] = value + env[by_slot]
            return value > env[end_slot] if down else value < env[end_slot]

        return self._rounds(begin, going, True, body, exit_slot)

    def _while(self, s: While) -> Fn:
        cond, varies = self.expressions.compile(s.cond), self.scope.varies(s.cond)
        body, exit_slot = self._body(s.body)
        rounds = self.waits.by_turns(body) if may_wait(s) else body
        return self._rounds(lambda env, mask: None, cond, varies, rounds, exit_slot)

    def _rounds(self, begin: Callable[[Env, Any], None], going: Fn, varies: bool, body: Fn, exit_slot: int) -> Fn:
        """Runs body while `going` says so (varies: lane by lane), without the lanes that have left the loop."""
        if self.scope.nest is None:

            def uniform(env: Env, mask: Any) -> Any:
                env[exit_slot] = False
                begin(env, None)
                while going(env, None):
                    if body(env, None) is False and (env[exit_slot] or env[RETURNED]):
                        break
                return False if env[RETURNED] else None

            return uniform

        def lanes(env: Env, mask: Any) -> Any:
            env[exit_slot] = None
            begin(env, mask)
            active = mask
            while True:
                c = going(env, active)
                if varies:
                    c = _owned(c)
                    active = c if active is None else active & c
                elif not c:
                    break
                if active is not None and not active.any():
                    break
                body(env, active)
                active = _without(_without(active, env[exit_slot]), env[RETURNED])
            return _some(_without(mask, env[RETURNED]))

        return lanes

    def _break(self, s: Break) -> Fn:
        if not self.exits:
            raise InternalError("break outside a loop", s.loc)
        slot = self.exits[-1]
        nest = self.scope.nest

        def leave(env: Env, mask: Any) -> Any:
            if nest is None:
                env[slot] = True
            else:
                mask = np.ones((1,) * nest.rank, np.bool_) if mask is None else mask
                env[slot] = mask if env[slot] is None else env[slot] | mask
            return False

        return leave

    def _return(self, s: Return) -> Fn:
        nest = self.scope.nest
        if nest is not None and not nest.threads:
            raise self.scope.not_yet("return inside T.Parallel")

        def leave(env: Env, mask: Any) -> Any:
            if nest is None:
                env[RETURNED] = True
            else:  # these threads end
                mask = np.ones((1,) * nest.rank, np.bool_) if mask is None else mask
                env[RETURNED] = mask if env[RETURNED] is False else env[RETURNED] | mask
            return False

        return leave

    # -- T.Parallel --------------------------------------------------------------------------------------

    def _parallel(self, s: Parallel) -> Fn:
        scope = self.scope
        if scope.nest is not None:
            raise scope.not_yet("a T.Parallel inside another that is not perfectly nested")
        if any(n in self.kernel.thread_vars for n in walk(s) if isinstance(n, Var)):
            raise InternalError("a T.Parallel that looks at threads has not been written out for them", s.loc)
        while len(s.body) == 1 and isinstance(s.body[0], Parallel):
            inner = s.body[0]
            s = s.replace(vars=s.vars + inner.vars, extents=s.extents + inner.extents, body=inner.body)
        nest = Nest(s.vars, scope.new_slot(), self._privatised(s.body))
        extents = [self.expressions.compile(e) for e in s.extents]
        saved = set(scope.varying)
        scope.nest = nest
        scope.varying.update(s.vars)
        axes = [(scope.bind(v), k, v.dtype.numpy) for k, v in enumerate(s.vars)]
        exits, self.exits = self.exits, []
        with scope.loop(*s.vars):
            body = self.block(s.body)
        self.exits = exits
        own = _allocated(s.body)
        shared = [b for b in nest.private if b not in own]
        copies = [scope.slot(b) for b in shared]
        inner_views = [self.bind_views(b) for b in shared]
        scope.nest, scope.varying = None, saved
        outer_views = [self.bind_views(b) for b in shared]
        rank, shape_slot = nest.rank, nest.shape_slot
        tracks, after = scope.options.tracks, nest.after

        def parallel(env: Env, mask: Any) -> Any:
            shape = tuple([f(env, None) for f in extents])
            if 0 in shape or any(n < 0 for n in shape):
                return mask
            env[shape_slot] = shape
            for slot, axis, storage in axes:
                view = [1] * rank
                view[axis] = shape[axis]
                env[slot] = np.arange(shape[axis], dtype=storage).reshape(view)
            outer = [env[slot] for slot in copies]
            for slot, data in zip(copies, outer, strict=True):
                packed = isinstance(data, Nibbles)
                env[slot] = data.copies(shape) if packed else np.broadcast_to(data, shape + data.shape).copy()
            for views in inner_views:
                views(env)
            if tracks:
                with env[TRACKER].nest(shape, {b: env[slot] for b, slot in zip(shared, copies, strict=True)}):
                    body(env, None)
            else:
                body(env, None)
            for finish in after:
                finish(env)
            last = tuple(n - 1 for n in shape)
            for slot, data in zip(copies, outer, strict=True):
                data[...] = env[slot][last]
                env[slot] = data
            for views in outer_views:
                views(env)
            return mask

        return parallel

    def _privatised(self, body: Sequence[Stmt]) -> set[Buffer]:
        """Per-thread storage from outside the nest that its lanes write: one copy per lane."""
        return {b for b in effects(body).writes if b.scope in ("local", "var")}

    # -- the rest ----------------------------------------------------------------------------------------

    def _sync(self, s: Sync) -> Fn:
        return self.waits.barrier(s) if s.scope == "grid" or s.count is not None else self.collectives.sync(s)

    def _micro(self, s: MicroCall) -> Fn:
        meaning = MICRO.get(s.name)
        if meaning is None:
            raise self.scope.not_yet(f"the micro-kernel {s.name}")
        view = self.tiles.lanes_view if self.scope.threaded else self.tiles.view
        written = [view(r, s.name) for r in s.writes]
        read = [view(r, s.name) for r in s.reads]
        scalars = [self.expressions.compile(e) for e in s.scalars]
        attrs, exact = dict(s.attrs), self.scope.options.exact
        if self.scope.options.shadow:
            meaning = micro(meaning)

        def call(env: Env, mask: Any) -> Any:
            values = [f(env, None) for f in scalars]
            meaning([f(env) for f in written], [f(env) for f in read], values, attrs, exact)
            return mask

        return call


def _allocated(body: Sequence[Stmt]) -> set[Buffer]:
    return {n.buffer for s in body for n in walk(s) if isinstance(n, Alloc)}


def _owned(v: Any) -> Any:
    """An array that later stores cannot change: views of buffers are copied."""
    return v.copy() if isinstance(v, np.ndarray) and v.base is not None else v


def _either(a: Any, b: Any) -> Any:
    if a is False:
        return b
    return a if b is False else a | b


def _without(active: Any, gone: Any) -> Any:
    if gone is None or gone is False:
        return active
    return ~gone if active is None else active & ~gone


def _some(mask: Any) -> Any:
    """A mask of the lanes that go on; False when there are none."""
    return mask if mask is None or mask.any() else False


_COMPILERS: dict[type[Stmt], Callable[[Statements, Any], Fn]] = {
    Alloc: Statements._alloc,
    Let: Statements._let,
    Store: lambda c, s: c.expressions.memory.store(s),
    If: Statements._if,
    For: Statements._for,
    While: Statements._while,
    Break: Statements._break,
    Continue: lambda c, s: lambda env, mask: False,
    Return: Statements._return,
    Parallel: Statements._parallel,
    Copy: lambda c, s: c.tiles.copy(s),
    Fill: lambda c, s: c.tiles.fill(s),
    Gemm: lambda c, s: c.tiles.gemm(s),
    Reduce: lambda c, s: c.tiles.reduce(s),
    Scan: lambda c, s: c.tiles.scan(s),
    Sync: Statements._sync,
    Collective: lambda c, s: c.collectives.compile(s),
    Wait: lambda c, s: c.waits.compile(s),
    Debug: lambda c, s: c.debugs.compile(s),
    MicroCall: Statements._micro,
    Atomic: lambda c, s: c.atomics.compile(s),
    ReducerOp: lambda c, s: c.reducers.compile(s),
}
