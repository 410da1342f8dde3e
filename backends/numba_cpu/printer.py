"""Prints a loop-stage function as one Python text in the dialect: one function per kernel, no decisions.

The names are the author's, and comments carry the author's source lines. A printed kernel has the CPU ABI
`f(first, last, args, context) -> int64` of docs/architecture.md.
"""

from __future__ import annotations

import linecache
import os
from dataclasses import dataclass

from tiledsl import ir
from tiledsl.analysis.meeting import may_wait
from tiledsl.backend import Site
from tiledsl.backends.cpu.emit.micro import operands
from tiledsl.backends.cpu.printing import buffers_of, constant_index, count_of
from tiledsl.backends.numba_cpu.dialect import TYPE_NAMES
from tiledsl.backends.numba_cpu.expressions import (
    RESERVED,
    ExpressionPrinter,
    plain,
    type_name,
    unique,
)
from tiledsl.backends.numba_cpu.micro import micro_names
from tiledsl.dtypes import INT64, DType
from tiledsl.errors import InternalError, Loc
from tiledsl.ir.walk import free_vars, walk

__all__ = ["Printed", "print_function"]

_WIDTH = 118


@dataclass
class Printed:
    """The text, the C symbol of each kernel's Python function, and the sites of its debug records."""

    text: str
    symbols: tuple[str, ...]
    sites: tuple[Site, ...]


def print_function(function: ir.Function) -> Printed:
    """The Python text of a loop-stage function."""
    names: dict[str, str] = {}  # functions used -> their definition line ("" for the dialect's own)
    sites: list[Site] = []
    bodies: list[str] = []
    symbols: list[str] = []
    for kernel in function.kernels:
        symbol = unique(kernel.name, set(symbols) | RESERVED)
        symbols.append(symbol)
        bodies.append(_KernelPrinter(function, kernel, symbol, names, sites).text())
    imported = sorted(n for n, definition in names.items() if not definition)
    head = [f'"""{plain(function.name)}: printed by tiledsl for Numba; see tiledsl.backends.numba_cpu.dialect."""', ""]
    line = "from tiledsl.backends.numba_cpu.names import ("
    head += [line, *_wrapped(imported), ")"] if imported else []
    definitions = [d for _, d in sorted(names.items()) if d]
    if definitions:
        head += ["from tiledsl.backends.numba_cpu.micro import micro", "", *definitions]
    return Printed("\n".join([*head, "", *bodies]), tuple(symbols), tuple(sites))


def _wrapped(names: list[str]) -> list[str]:
    lines, line = [], "   "
    for name in names:
        if len(line) + len(name) > _WIDTH:
            lines.append(line)
            line = "   "
        line += f" {name},"
    return [*lines, line]


class _KernelPrinter(ExpressionPrinter):
    """The statements of one kernel, and what comes before its first block."""

    def __init__(
        self, function: ir.Function, kernel: ir.Kernel, symbol: str, used: dict[str, str], sites: list[Site]
    ) -> None:
        super().__init__(kernel, used)
        self.function, self.symbol, self.sites = function, symbol, sites
        for s in walk(kernel.body):
            if isinstance(s, ir.MicroCall):
                self.taken.add(micro_names(s)[0])
        self.loops = 0  # nesting of loops around the current statement, inside the block loop
        self.shown: tuple[str, int] | None = None

    def source(self, loc: Loc | None) -> None:
        """A comment with the author's line, where it changes."""
        if loc is None or self.shown == (loc.file, loc.line):
            return
        self.shown = (loc.file, loc.line)
        text = linecache.getline(loc.file, loc.line).strip()
        self.line(plain(f"# {os.path.basename(loc.file)}:{loc.line}  {text}")[:_WIDTH])

    # -- a kernel ------------------------------------------------------------------------------------------

    def text(self) -> str:
        kernel = self.kernel
        self.line(f"def {self.symbol}(first, last, args, context):")
        self.depth += 1
        self.prologue()
        counter = self.name(("block",), "block_index")
        self.line(f"for {counter} in range(first, last):")
        self.depth += 1
        self.line(f"if {self.use('cancelled')}(context):")
        self.line("    return 1")
        self.block_variables(counter)
        if any(isinstance(n, ir.Return) for n in walk(kernel.body)):
            self.line("returned = False")
        self.block(kernel.body)
        self.depth -= 1
        self.line("return 0")
        return "\n".join(self.lines) + "\n"

    def prologue(self) -> None:
        """Pointers, scalars and symbols out of the argument words."""
        function = self.function
        used = {n for n in walk(self.kernel.body) if isinstance(n, ir.Var)}
        buffers = buffers_of(self.kernel.body)
        for b in list(buffers):
            for e in (*b.shape, *(b.strides or ()), *((b.offset,) if b.offset is not None else ())):
                used |= free_vars(e)
        for extent in self.kernel.grid:
            used |= free_vars(extent)
        word = 0
        for p in function.params:
            if p.buffer is not None:
                if any(b.root is p.buffer for b in buffers):
                    self.define_pointer(p.buffer, f"args[{word}]", f"  # {_describe(p.buffer)}")
            elif p.var is not None and p.var in used:
                self.line(f"{self.name(p.var, p.var.name)} = {self.from_word(p.var.type, f'args[{word}]')}")
            word += 1
        for s in function.symbols:
            if s in used:
                self.line(f"{self.name(s, s.name)} = {self.from_word(s.type, f'args[{word}]')}")
            word += 1
        for w in function.workspaces:
            if any(b.root is w for b in buffers):
                self.define_pointer(w, f"args[{word}]", f"  # workspace {_describe(w)}")
            word += 1
        scratch = [b for b in buffers if b.scope == "scratch" and b.alias_of is None]
        if scratch:
            self.line("scratch = context[0]")
        for b in scratch:
            assert isinstance(b.base, ir.Const)
            self.define_pointer(b, f"scratch + {b.base.value}", f"  # {_describe(b)}")
        known = set(self.names)
        for b in buffers:  # views that do not move
            if b.alias_of is not None and (b.offset is None or free_vars(b.offset) <= known):
                self.define_pointer(b, self.view(b), f"  # view {_describe(b)}")

    def define_pointer(self, b: ir.Buffer, address: str, comment: str) -> None:
        maker = self.use(f"{TYPE_NAMES[b.dtype.scalar.name]}_pointer")
        name = self.name(b, b.name)
        self.line(f"{name} = {maker}({address}){comment}")
        self.pointers[b] = name

    def from_word(self, d: DType, word: str) -> str:
        """A scalar out of its argument word (zero- or sign-extended bits)."""
        if d is INT64:
            return word
        if d.is_float:
            bits = f"{self.use(f'i{d.bits}')}({word})" if d.bits < 64 else word
            return f"{self.use('as_' + type_name(d))}({bits})"
        return f"{self.use(type_name(d))}({word})"

    def block_variables(self, counter: str) -> None:
        """Block indices out of the linear one, x fastest."""
        grid, variables = self.kernel.grid, self.kernel.block_vars
        used = {n for n in walk(self.kernel.body) if isinstance(n, ir.Var)}
        wanted = [i for i, v in enumerate(variables) if v in used]
        rest = counter
        for i in range(max(wanted, default=-1) + 1):
            last = i == len(grid) - 1
            extent = self.as_index(grid[i], 11)
            if i in wanted:
                index = rest if last else f"{rest} % {extent}"
                v = variables[i]
                text = index if v.type is INT64 else f"{self.use(type_name(v.type))}({index})"
                self.line(f"{self.name(v, v.name)} = {text}")
            rest = f"{rest} // {extent}"

    # -- statements ------------------------------------------------------------------------------------------

    def block(self, body: tuple[ir.Stmt, ...]) -> None:
        before = len(self.lines)
        for s in body:
            self.statement(s)
        if all(x.lstrip().startswith("#") for x in self.lines[before:]):
            self.line("pass")

    def statement(self, s: ir.Stmt) -> None:
        method = getattr(self, f"do_{type(s).__name__}", None)
        if method is None:
            raise InternalError(f"{type(s).__name__} has no place in the loop stage")
        if not (isinstance(s, ir.Alloc) and s.buffer.scope == "scratch"):  # placed already
            self.source(s.loc)
        method(s)

    def do_Alloc(self, s: ir.Alloc) -> None:
        b = s.buffer
        if b.base is not None and b.scope == "global":  # an address out of a table; the prologue places scratch
            self.define_pointer(b, self.expr(b.base), f"  # {_describe(b)}")
            return
        if b.scope != "var":
            return
        for i in range(count_of(b)):
            value = self.expr(s.init) if s.init is not None else self.zero(b.dtype)
            self.line(f"{self.var_name(b, i)} = {value}")

    def do_Let(self, s: ir.Let) -> None:
        self.line(f"{self.name(s.var, s.var.name)} = {self.expr(s.value)}")

    def do_Store(self, s: ir.Store) -> None:
        b = s.buffer
        value = self.expr(s.value)
        if b.scope == "var":
            self.line(f"{self.var_name(b, constant_index(s.indices))} = {value}")
            return
        if s.value.dtype.lanes == 1 or any(i.dtype.lanes > 1 for i in s.indices):
            base, index = self.place(b, s.indices)
            if s.mask is None:
                self.line(f"{base}[{index}] = {value}")
            else:
                self.line(f"{self.use('store')}({base}, {index}, {value}, {self.expr(s.mask)})")
        else:
            base, index = self.place(b, s.indices)
            mask = "" if s.mask is None else f", {self.expr(s.mask)}"
            self.line(f"{self.use('store16')}({base}, {index}, {value}{mask})")

    def do_For(self, s: ir.For) -> None:
        args = [s.start, s.stop, s.step]
        if isinstance(s.step, ir.Const) and s.step.value == 1:
            args.pop()
        plain = s.var.type is INT64 or not all(isinstance(a, ir.Const) for a in args)
        texts = [self.expr(a, literal=plain) for a in args]
        self.line(f"for {self.name(s.var, s.var.name)} in range({', '.join(texts)}):")
        self.loop(s.body)

    def do_While(self, s: ir.While) -> None:
        self.line(f"while {self.expr(s.cond)}:")
        if may_wait(s):
            self.line(f"    if {self.use('waited')}(context):")
            self.line("        return 1")
        self.loop(s.body)

    def loop(self, body: tuple[ir.Stmt, ...]) -> None:
        self.depth += 1
        self.loops += 1
        self.block(body)
        self.loops -= 1
        self.depth -= 1
        if any(isinstance(n, ir.Return) for n in walk(body)):  # a return inside ends the block, not only the loop
            self.line("if returned:")
            self.line("    break" if self.loops else "    continue")

    def do_If(self, s: ir.If) -> None:
        self.line(f"if {self.expr(s.cond)}:")
        self.indented(s.then)
        if s.orelse:
            self.line("else:")
            self.indented(s.orelse)

    def indented(self, body: tuple[ir.Stmt, ...]) -> None:
        self.depth += 1
        self.block(body)
        self.depth -= 1

    def do_Break(self, s: ir.Break) -> None:
        self.line("break")

    def do_Continue(self, s: ir.Continue) -> None:
        self.line("continue")

    def do_Return(self, s: ir.Return) -> None:
        if self.loops:
            self.line("returned = True")
            self.line("break")
        else:
            self.line("continue")

    def do_MicroCall(self, s: ir.MicroCall) -> None:
        name, definition = micro_names(s)
        self.use(name, definition)
        pieces = []
        for r, strides in operands(s):
            base, index = self.place(r.buffer, r.starts)
            pieces.append(base if index == "0" else f"{base} + ({index})" if " " in index else f"{base} + {index}")
            pieces += [self.stride(x) for x in strides]
        pieces += [self.as_index(x, 0) for x in s.scalars]
        self.line(f"{name}({', '.join(pieces)})")

    def do_Atomic(self, s: ir.Atomic) -> None:
        base, index = self.place(s.buffer, s.indices)
        value = "" if s.value is None else f", {self.expr(s.value)}"
        name = f"atomic_{s.op}" + f"_{s.order}" * (s.order != "relaxed")
        call = f"{self.use(name)}({base}, {index}{value})"
        self.line(call if s.result is None else f"{self.name(s.result, s.result.name)} = {call}")

    def do_Debug(self, s: ir.Debug) -> None:
        fails = s.kind in ("assert", "bounds")
        if not fails and s.kind != "print":
            return  # assume and breakpoint do nothing in compiled code
        values = s.values
        if fails:
            assert isinstance(values[0], ir.Expr)
            self.line(f"if not ({self.expr(values[0])}):")
            self.depth += 1
            values = values[1:]
        site = len(self.sites)
        self.sites.append(Site.of(s))
        head = f"context, {int(fails)}, {site}"
        if any(isinstance(v, ir.Buffer) for v in values):
            self.record(head, len(self.sites[site].dtypes), values)
        else:
            texts = "".join(f", {self.expr(v)}" for v in values if isinstance(v, ir.Expr))
            self.line(f"{self.use('ring_write')}({head}{texts})")
        if fails:
            self.line("return 2")
            self.depth -= 1

    def record(self, head: str, count: int, values: tuple[ir.Expr | ir.Buffer, ...]) -> None:
        """A debug record with whole buffers in it, filled word by word."""
        record, slots, element = (self.name(("debug", n), n) for n in ("record", "slots", "element"))
        bits = self.use("bits")
        self.line(f"{record} = {self.use('ring_record')}({head}, {count})")
        self.line(f"if {record} != 0:")
        self.depth += 1
        self.line(f"{slots} = {self.use('i64_pointer')}({record})")
        at = 0
        for v in values:
            if isinstance(v, ir.Expr):
                self.line(f"{slots}[{at}] = {bits}({self.expr(v)})")
                at += 1
                continue
            n = count_of(v)
            if v.scope == "var":
                for i in range(n):
                    self.line(f"{slots}[{at + i}] = {bits}({self.var_name(v, i)})")
            else:
                self.line(f"for {element} in range({n}):")
                self.line(f"    {slots}[{at} + {element}] = {bits}({self.pointer(v)}[{element}])")
            at += n
        self.depth -= 1


def _describe(b: ir.Buffer) -> str:
    shape = ", ".join(str(e.value) if isinstance(e, ir.Const) else getattr(e, "name", "...") for e in b.shape)
    return f"({plain(shape)}) {b.dtype.name}"
