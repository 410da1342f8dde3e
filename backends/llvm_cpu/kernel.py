"""A loop-stage kernel as an LLVM function: statements, loops, the walk over the blocks of the grid.

`int64 f(int64 first, int64 last, int64 *args, int64 *context)` is the CPU ABI of docs/architecture.md.
"""

from __future__ import annotations

import linecache
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from llvmlite import ir as ll

from tiledsl import ir
from tiledsl.analysis.meeting import may_wait
from tiledsl.backend import Site
from tiledsl.backends.cpu.emit import ring, values
from tiledsl.backends.cpu.emit.entry import emit_entry
from tiledsl.backends.cpu.emit.micro import Micro, operands
from tiledsl.backends.cpu.native import Cpu
from tiledsl.backends.cpu.printing import buffers_of, constant_index, count_of
from tiledsl.backends.llvm_cpu.expressions import ExpressionEmitter
from tiledsl.dtypes import INT64
from tiledsl.errors import InternalError, Loc
from tiledsl.ir.walk import free_vars

__all__ = ["emit_function"]


Value = Any
DONE, CANCELLED, FAILED = 0, 1, 2  # what the function returns


def emit_function(function: ir.Function, cpu: Cpu) -> tuple[Any, tuple[str, ...], tuple[Site, ...]]:
    """(the llvmlite module, the C symbol of each kernel, the sites of its debug records) of a loop-stage function."""
    module = ll.Module(re.sub(r"\W", "_", function.name), context=ll.Context())
    module.register_bytes, module.byte_products = cpu.register_bytes, cpu.byte_products
    module.triple = cpu.triple
    symbols: list[str] = []
    sites: list[Site] = []
    for i, k in enumerate(function.kernels):
        symbols.append(f"tiledsl.{i}.{re.sub(r'[^A-Za-z0-9_]', '_', k.name)}")  # unlike any name of LLVM, libc or ours
        inner = _KernelEmitter(module, function, k, f"{symbols[-1]}.blocks", sites).emit()
        emit_entry(module, inner, symbols[-1], cpu.triple)
    return module, tuple(symbols), tuple(sites)


class _Exits(NamedTuple):
    """Where `break` and `continue` go."""

    after: Any
    following: Any


class _KernelEmitter(ExpressionEmitter):
    """The statements of one kernel, and what comes before its first block."""

    def __init__(self, module: Any, function: ir.Function, kernel: ir.Kernel, name: str, sites: list[Site]) -> None:
        signature = ll.FunctionType(values.I64, [values.I64, values.I64, values.PTR, values.PTR])
        self.f = ll.Function(module, signature, name)
        for arg, text in zip(self.f.args, ("first", "last", "args", "context"), strict=True):
            arg.name = text
        entry = self.f.append_basic_block("entry")
        super().__init__(kernel, ll.IRBuilder(entry))
        self.function, self.sites = function, sites
        self.first, self.last, self.args, self.context = self.f.args
        self.loops: list[_Exits] = []
        self.next_block: Any = None  # where Return goes
        self.shown: tuple[str, int] | None = None

    def emit(self) -> Any:
        b = self.b
        body = self.f.append_basic_block("prologue")  # the entry block holds the variables
        b.branch(body)
        b.position_at_end(body)
        self.prologue()
        extents = [self.index(e) for e in self.kernel.grid]
        with self.counted(self.first, self.last, values.constant(INT64, 1), up=True) as (block, exits):
            self.next_block = exits.following
            self.unless(ring.cancelled)
            self.block_variables(block, extents)
            self.block(self.kernel.body)
        b.ret(values.constant(INT64, DONE))
        return self.f

    def unless(self, stopped: Callable[[Any, Value], Value]) -> None:
        """Leaves the kernel if the launch is cancelled."""
        b = self.b
        going, stop = b.append_basic_block(), b.append_basic_block("cancelled")
        b.cbranch(stopped(b, self.context), stop, going)
        b.position_at_end(stop)
        b.ret(values.constant(INT64, CANCELLED))
        b.position_at_end(going)

    # -- before the first block ------------------------------------------------------------------------------------

    def prologue(self) -> None:
        """Pointers, scalars and symbols out of the argument words."""
        function, buffers = self.function, buffers_of(self.kernel.body)
        roots = {b.root for b in buffers}
        for i, p in enumerate(function.params):
            if p.var is not None:
                self.values[p.var] = self.from_word(p.var.type, self.word(self.args, i))
            elif p.buffer in roots:
                self.pointers[p.buffer] = self.address(self.word(self.args, i), p.buffer)
        first = len(function.params)
        for i, s in enumerate(function.symbols, first):
            self.values[s] = self.from_word(s.type, self.word(self.args, i))
        for i, w in enumerate(function.workspaces, first + len(function.symbols)):
            if w in roots:
                self.pointers[w] = self.address(self.word(self.args, i), w)
        scratch = [b for b in buffers if b.scope == "scratch" and b.alias_of is None]
        if scratch:
            start = self.b.inttoptr(self.word(self.context, 0), values.PTR)
            for buffer in scratch:
                assert isinstance(buffer.base, ir.Const)
                at = values.constant(INT64, int(buffer.base.value))
                self.pointers[buffer] = self.b.gep(start, [at], inbounds=True, source_etype=values.I8, name=buffer.name)
        known = set(self.values)
        for buffer in buffers:  # views that do not move
            if buffer.alias_of is not None and (buffer.offset is None or free_vars(buffer.offset) <= known):
                self.pointers[buffer] = self.pointer(buffer)

    def word(self, words: Value, i: int) -> Value:
        at = self.b.gep(words, [ll.Constant(values.I64, i)], inbounds=True, source_etype=values.I64)
        return self.b.load(at, typ=values.I64)

    def address(self, word: Value, buffer: ir.Buffer) -> Value:
        return self.b.inttoptr(word, values.PTR, name=re.sub(r"\W", "_", buffer.name))

    def block_variables(self, block: Value, extents: list[Value]) -> None:
        """Block indices out of the linear one, x fastest."""
        rest = block
        for i, (v, extent) in enumerate(zip(self.kernel.block_vars, extents, strict=False)):
            last = i == len(extents) - 1
            self.values[v] = self.from_word(v.type, rest if last else self.b.urem(rest, extent))
            rest = rest if last else self.b.udiv(rest, extent)

    # -- statements --------------------------------------------------------------------------------------------------

    def block(self, body: tuple[ir.Stmt, ...]) -> None:
        for s in body:
            method = getattr(self, f"do_{type(s).__name__}", None)
            if method is None:
                raise InternalError(f"{type(s).__name__} has no place in the loop stage")
            self.source(s.loc)
            method(s)

    def source(self, loc: Loc | None) -> None:
        """A comment with the author's line, where it changes."""
        if loc is None or self.shown == (loc.file, loc.line):
            return
        self.shown = (loc.file, loc.line)
        text = f"{os.path.basename(loc.file)}:{loc.line}  {linecache.getline(loc.file, loc.line).strip()}"
        self.b.comment(re.sub(r"[^ -~]", "?", text))

    def go(self, target: Any) -> None:
        """Jump; what follows in the same block of statements cannot be reached."""
        self.b.branch(target)
        self.b.position_at_end(self.b.append_basic_block())

    def do_Alloc(self, s: ir.Alloc) -> None:
        b = s.buffer
        if b.scope != "var":
            return
        zero = values.constant(b.dtype, 0) if s.init is None else self.value(s.init)
        for i in range(count_of(b)):
            self.b.store(zero, self.slot(b, i))

    def do_Let(self, s: ir.Let) -> None:
        self.values[s.var] = self.value(s.value)

    def do_Store(self, s: ir.Store) -> None:
        b = s.buffer
        value = self.value(s.value)
        if b.scope == "var":
            self.b.store(value, self.slot(b, constant_index(s.indices)))
            return
        base, index = self.place(b, s.indices)
        mask = None if s.mask is None else self.value(s.mask)
        if any(i.dtype.lanes > 1 for i in s.indices):
            values.scatter(self.b, b.dtype, base, index, value, mask)
        else:
            values.store(self.b, s.value.dtype, base, index, value, mask)

    @contextmanager
    def counted(
        self, start: Value, stop: Value, step: Value, up: bool | None
    ) -> Iterator[tuple[Value, _Exits]]:  # up: the sign of the step where it is known
        """for i in range(start, stop, step), in int64."""
        b = self.b
        before = b.block
        head, inside, following, after = (b.append_basic_block(n) for n in ("head", "loop", "next", "after"))
        b.branch(head)
        b.position_at_end(head)
        i = values.merged(b, (start, before))
        below, above = b.icmp_signed("<", i, stop), b.icmp_signed(">", i, stop)
        if up is None:
            upwards = b.icmp_signed(">", step, values.constant(INT64, 0))
            going = b.select(upwards, below, above)
        else:
            going = below if up else above
        b.cbranch(going, inside, after)
        b.position_at_end(inside)
        yield i, _Exits(after, following)
        b.branch(following)
        b.position_at_end(following)
        i.add_incoming(b.add(i, step, flags=("nsw",)), following)
        b.branch(head)
        b.position_at_end(after)

    def do_For(self, s: ir.For) -> None:
        start, stop, step = (self.index(e) for e in (s.start, s.stop, s.step))
        up = s.step.value > 0 if isinstance(s.step, ir.Const) else None
        with self.counted(start, stop, step, up) as (i, exits):
            self.values[s.var] = self.from_word(s.var.type, i)
            self.loops.append(exits)
            outer, self.innermost = self.innermost, s.var
            self.block(s.body)
            self.innermost = outer
            self.loops.pop()

    def do_While(self, s: ir.While) -> None:
        b = self.b
        head, inside, after = (b.append_basic_block(n) for n in ("head", "loop", "after"))
        b.branch(head)
        b.position_at_end(head)
        b.cbranch(self.value(s.cond), inside, after)
        b.position_at_end(inside)
        self.loops.append(_Exits(after, head))
        if may_wait(s):  # a launch can stop it
            self.unless(ring.waited)
        self.block(s.body)
        self.loops.pop()
        b.branch(head)
        b.position_at_end(after)

    def do_If(self, s: ir.If) -> None:
        with self.b.if_else(self.value(s.cond)) as (then, otherwise):
            with then:
                self.block(s.then)
            with otherwise:
                self.block(s.orelse)

    def do_Break(self, s: ir.Break) -> None:
        self.go(self.loops[-1].after)

    def do_Continue(self, s: ir.Continue) -> None:
        self.go(self.loops[-1].following)

    def do_Return(self, s: ir.Return) -> None:
        self.go(self.next_block)

    def do_MicroCall(self, s: ir.MicroCall) -> None:
        args: list[Value] = []
        for r, strides in operands(s):
            base, index = self.place(r.buffer, r.starts)
            args += [self.moved(base, r.buffer.dtype, index), *(self.index(x) for x in strides)]
        self.b.call(Micro.of(s).emit(self.b), [*args, *(self.index(x) for x in s.scalars)])

    def do_Atomic(self, s: ir.Atomic) -> None:
        base, index = self.place(s.buffer, s.indices)
        value = None if s.value is None else self.value(s.value)
        old = ring.atomic(self.b, s.op, s.buffer.dtype, base, index, value, s.order)
        if s.result is not None:
            self.values[s.result] = old

    # -- prints and asserts --------------------------------------------------------------------------------------------

    def do_Debug(self, s: ir.Debug) -> None:
        if s.kind == "print":
            self.record(s, 0, s.values)
        elif s.kind in ("assert", "bounds"):
            assert isinstance(s.values[0], ir.Expr)
            failed = self.b.not_(self.value(s.values[0]))
            with self.b.if_then(failed):
                self.record(s, 1, s.values[1:])
                self.b.ret(values.constant(INT64, FAILED))
                self.b.position_at_end(self.b.append_basic_block())
        # assume and breakpoint do nothing in compiled code

    def record(self, s: ir.Debug, kind: int, shown: tuple[ir.Expr | ir.Buffer, ...]) -> None:
        """One record in the debug ring: the bits of all values, one word each."""
        b = self.b
        site = len(self.sites)
        self.sites.append(Site.of(s))
        count = len(self.sites[site].dtypes)
        words = [None if isinstance(v, ir.Buffer) else ring.bits(b, v.dtype, self.value(v)) for v in shown]
        place = ring.reserve(b, self.context, values.constant(INT64, kind), values.constant(INT64, site), count)
        with b.if_then(b.icmp_unsigned("!=", place, values.constant(INT64, 0))):
            record = b.inttoptr(place, values.PTR)
            at = 0
            for v, word in zip(shown, words, strict=True):
                if isinstance(v, ir.Buffer):
                    self.record_buffer(record, at, v)
                else:
                    b.store(word, self.moved(record, INT64, values.constant(INT64, at)))
                at += count_of(v) if isinstance(v, ir.Buffer) else 1

    def record_buffer(self, record: Value, at: int, v: ir.Buffer) -> None:
        n, b = count_of(v), self.b
        if v.scope == "var":
            for i in range(n):
                value = b.load(self.slot(v, i), typ=values.value_type(v.dtype))
                word = ring.bits(b, v.dtype, value)
                b.store(word, self.moved(record, INT64, values.constant(INT64, at + i)))
            return
        zero, one = values.constant(INT64, 0), values.constant(INT64, 1)
        with self.counted(zero, values.constant(INT64, n), one, up=True) as (i, _):
            word = ring.bits(b, v.dtype, values.load(b, v.dtype, self.pointer(v), i))
            b.store(word, self.moved(record, INT64, b.add(i, values.constant(INT64, at))))
