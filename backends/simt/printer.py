"""Prints a kernel of the thread stage as CUDA C++ in a C subset, with the author's lines as marks.

All PTX lies behind the prelude's names (`prelude/README.md`). Storage: arrays of the block lie in one block of shared
memory at the offsets of `shared.py`; arrays of a thread are C arrays, in registers where indices are constant.
"""

from __future__ import annotations

import linecache
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tiledsl import ir
from tiledsl.analysis.uniformity import Varying, varying
from tiledsl.backend import Site
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import Loc, TileNotImplementedError
from tiledsl.ir import build
from tiledsl.ir.walk import walk

from .abi import ADDED, Param, SimtKernel
from .expressions import ExpressionPrinter, Functions
from .lower_threads import AT_ONCE
from .names import c_type, constant, suffix, unique
from .place import thread_count
from .shared import shared_offsets, swizzles
from .vectors import VECTOR, substitute_all
from .warps import WarpText
from .wrapping import plain_arithmetic

__all__ = ["print_kernel"]

_I32, _I64, _U64 = as_dtype("int32"), as_dtype("int64"), as_dtype("uint64")
_ORDERS = {
    "relaxed": "TL_RELAXED", "acquire": "TL_ACQUIRE", "release": "TL_RELEASE", "acq_rel": "TL_ACQ_REL",
    "seq_cst": "TL_ACQ_REL",
}  # fmt: skip
_ATOMICS = {"exchange": "exch"}
_BLOCKS = ("blockIdx", "threadIdx")
_TILE = 8  # elements of arrays of a thread


def print_kernel(
    function: ir.Function, kernel: ir.Kernel, name: str, sites: list[Site], grid_state: ir.Buffer | None
) -> SimtKernel:
    """The text of one kernel and what its parameters are. sites: of all kernels so far; this one's are appended;
    grid_state: the workspace by which blocks meet, two words that are 0 at first."""
    return _Printer(function, kernel, name, sites, grid_state).kernel_text()


class _Printer(ExpressionPrinter):
    def __init__(
        self, function: ir.Function, kernel: ir.Kernel, name: str, sites: list[Site], grid_state: ir.Buffer | None
    ) -> None:
        super().__init__(Functions())
        self.function, self.kernel, self.entry, self.sites = function, kernel, name, sites
        self.grid_state = grid_state
        self.lines: list[str] = []
        self.depth = 1
        self.mark: tuple[str, int] | None = None
        self.taken.add(name)
        self.threads = thread_count(kernel)
        self.varying: Varying = varying(kernel.body, kernel.thread_vars, kernel.threads)
        self.warps = WarpText(self)
        self.plain = plain_arithmetic(function, kernel)
        views = {n.root for n in walk(kernel.body) if isinstance(n, ir.Buffer) and n.alias_of is not None}
        self.bytewise = {b for b in views if b.scope != "global"}
        short = [n for n in walk(kernel.body) if isinstance(n, ir.For) and VECTOR in dict(n.annotations)]
        self.pieces = {n.buffer for s in short for n in walk(s.body) if isinstance(n, ir.Load)}  # those of threads
        # operands of matrix instructions are words of several elements
        micro = [n for n in walk(kernel.body) if isinstance(n, ir.MicroCall)]
        self.swizzled = swizzles(kernel)
        self.words = {r.buffer for m in micro for r in (m.reads if m.name == "mma" else m.writes)}
        self.offsets, self.shared_bytes = shared_offsets(kernel, self.bytewise)

    # -- the kernel ------------------------------------------------------------------------------------------------

    def kernel_text(self) -> SimtKernel:
        params, declared = self._parameters()
        self._launch_variables()
        for s in self.kernel.body:
            self.stmt(s)
        bounds = f"__launch_bounds__({self.threads}{', 1' if self._wide() else ''})"
        head = f'extern "C" __global__ void {bounds} {self.entry}({", ".join(declared)}) {{'
        definitions = "".join(f"{text}\n" for text in self.functions.texts.values())
        text = "\n".join([head, *self.lines, "}"]) + "\n"
        extents = [e.value for e in self.kernel.threads if isinstance(e, ir.Const)]
        x, y, z = (*extents, 1, 1, 1)[:3]
        waits = any(isinstance(n, ir.Wait) for n in walk(self.kernel)) or _meets_grid(self.kernel)
        block = (int(x), int(y), int(z))
        return SimtKernel(definitions + text, self.entry, params, self.kernel.grid, block, self.shared_bytes, waits)

    def _wide(self) -> bool:
        """Threads hold tiles: they may have all registers, rather than share them with more blocks and spill."""
        local = (n.buffer for n in walk(self.kernel.body) if isinstance(n, ir.Alloc) and n.buffer.scope == "local")
        return sum(math.prod(b.const_shape or ()) for b in local) >= _TILE

    def _parameters(self) -> tuple[tuple[Param, ...], list[str]]:
        """The parameters: those of the function, its symbols, its workspaces, and the ring where something is said."""
        used = {
            n.root if isinstance(n, ir.Buffer) else n for n in walk(self.kernel) if isinstance(n, (ir.Buffer, ir.Var))
        }
        f = self.function
        params: list[Param] = []
        declared: list[str] = []

        def add(kind: str, index: int, dtype: DType, wanted: str, key: object, text: str) -> None:
            name = self.name(key, wanted)
            params.append(Param(kind, index, dtype, wanted))
            declared.append(f"{text}{name}")

        for i, p in enumerate(f.params):
            if p.buffer is not None:
                pointed = "tl_u8" if p.buffer.dtype.is_packed else c_type(p.buffer.dtype.scalar)
                add("array", i, p.buffer.dtype, p.name, p.buffer, f"{pointed}* ")
            elif p.var is not None:
                add("scalar", i, p.var.dtype, p.name, p.var, f"{c_type(p.var.dtype)} ")
        for i, v in enumerate(f.symbols):
            add("symbol", i, v.dtype, v.name, v, f"{c_type(v.dtype)} ")
        for i, b in enumerate(f.workspaces):
            if b in used or (b is self.grid_state and _meets_grid(self.kernel)):
                add("workspace", i, b.dtype, b.name, b, f"{c_type(b.dtype)}* ")
        if any(isinstance(n, ir.Debug) and n.kind in ("print", "assert", "bounds") for n in walk(self.kernel)):
            add("ring", 0, _U64, "tl_ring", "ring", "tl_u64* ")
        return tuple(params), declared

    def _launch_variables(self) -> None:
        """Block and thread indices under the author's names."""
        used = {n for n in walk(self.kernel.body) if isinstance(n, ir.Var)}
        for source, variables in zip(_BLOCKS, (self.kernel.block_vars, self.kernel.thread_vars), strict=True):
            linear = len(variables) > 3
            for at, v in enumerate(variables):
                if v in used:
                    if linear:
                        raise TileNotImplementedError(f"a grid of {len(variables)} axes", self.kernel.loc)
                    self.declare(v, f"{source}.{'xyz'[at]}", cast=True)

    # -- lines -----------------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        self.lines.append("  " * self.depth + text)

    def at(self, loc: Loc | None) -> None:
        """Marks that what follows stands for a line of the author's."""
        if loc is None or (loc.file, loc.line) == self.mark:
            return
        self.mark = (loc.file, loc.line)
        source = linecache.getline(loc.file, loc.line).strip().replace("\\", "/")
        source = "".join(c if " " <= c <= "~" else "?" for c in source)
        path = loc.file if loc.file.startswith("<") else os.path.relpath(loc.file)
        path = loc.file if path.startswith("..") else path
        self.line(f"//@ {path}:{loc.line} | {source}".rstrip())

    def declare(self, v: ir.Var, value: str, cast: bool = False) -> None:
        t = c_type(v.dtype)
        self.line(f"const {t} {self.name(v, v.name)} = {f'({t})' if cast else ''}{value};")

    def block(self, body: Sequence[ir.Stmt], head: str, tail: str = "}") -> None:
        self.line(head)
        self.depth += 1
        for s in body:
            self.stmt(s)
        self.depth -= 1
        if tail:
            self.line(tail)

    def stmt(self, s: ir.Stmt) -> None:
        self.at(s.loc)
        getattr(self, f"do_{type(s).__name__}")(s)

    # -- storage ----------------------------------------------------------------------------------------------------

    def do_Alloc(self, s: ir.Alloc) -> None:
        b = s.buffer
        if b.alias_of is not None or b.base is not None:
            pointer = self.pointer(b)
            self.line(f"{self.pointed(b)}* const {self.name(b, b.name)} = {pointer};")
            return
        if b.dtype.is_vector:
            raise TileNotImplementedError(f"vectors ({b.name} {b.dtype}) are not supported on GPUs yet", s.loc or b.loc)
        t = self.pointed(b)
        if b.scope == "shared":
            self.line(f"{t}* const {self.name(b, b.name)} = ({t}*)(tl_shared() + {self.offsets[b]});")
            return
        shape = b.const_shape
        if shape is None:
            raise TileNotImplementedError(
                f"{b.name} has a shape that is known only at run time: each thread's arrays have constant shapes", s.loc
            )
        n = math.prod(shape)
        if b.scope == "var" and n == 1 and b not in self.bytewise:
            first = "" if s.init is None else f" = {self.expr(s.init)}"
            self.line(f"{t} {self.name(b, b.name)}{first};")
            return
        if b in self.words:
            self.line(f"tl_u32 {self.name(b, b.name)}[{n * b.dtype.bytes // 4}];")
            return
        n = -(-n // 2) if self.halved(b) else n
        aligned = "alignas(16) " if b in self.bytewise | self.pieces else ""
        self.line(f"{aligned}{t} {self.name(b, b.name)}[{max(n, 1)}];")
        if s.init is not None:
            self.line(f"{self.names[b]}[0] = {self.expr(s.init)};")

    def do_Let(self, s: ir.Let) -> None:
        value = self.expr(s.value)
        self.declare(s.var, value)

    def do_Store(self, s: ir.Store) -> None:
        b = s.buffer
        if b.dtype.is_vector or s.value.dtype.is_vector:
            raise TileNotImplementedError(f"vectors ({s.value.dtype}) are not supported on GPUs yet", s.loc)
        value = self.expr(s.value)
        if b.scope == "var" and b not in self.bytewise and b.const_shape == (1,):
            self.line(f"{self.names[b]} = {value};")
        elif self.halved(b):
            store = "tl_merge_nibble" if b.root.scope in ("shared", "global") else "tl_set_nibble"
            self.line(f"{store}({self.pointer(b)}, {self.place(b, s.indices)}, {value});")
        else:
            self.line(f"{self.pointer(b)}[{self.place(b, s.indices)}] = {value};")

    # -- control ---------------------------------------------------------------------------------------------------

    def do_If(self, s: ir.If) -> None:
        if isinstance(s.cond, ir.Const) and s.cond.value and not s.orelse:
            self.block(s.then, "{")
            return
        outer = self.warps.group
        parts = self.varying.expr(s.cond)
        sides = self.warps.groups.split(outer, s.cond) if parts else (outer, outer)
        self.warps.group = sides[0]
        self.block(s.then, f"if ({self.expr(s.cond)}) {{", "" if s.orelse else "}")
        if s.orelse:
            self.warps.group = sides[1]
            self.block(s.orelse, "} else {")
        self.warps.group = self.warps.groups.after(s, outer) if parts else outer

    def do_For(self, s: ir.For) -> None:
        how = dict(s.annotations).get(VECTOR)
        if how is not None and self.vector_copy(s, how):
            return
        t = c_type(s.var.dtype)
        start = self.expr(s.start)
        stop = self._once(s.stop, f"{s.var.name}_stop")
        step = self._once(s.step, f"{s.var.name}_step")
        v = self.name(s.var, s.var.name)
        if isinstance(s.step, ir.Const):
            test = f"{v} {'<' if s.step.value > 0 else '>'} {stop}"
        else:
            test = f"{step} > 0 ? {v} < {stop} : {v} > {stop}"
        move = f"++{v}" if isinstance(s.step, ir.Const) and s.step.value == 1 else f"{v} += {step}"
        if s.kind == "unroll":
            self.line("#pragma unroll")
        elif AT_ONCE in dict(s.annotations):
            self.line(f"#pragma unroll {dict(s.annotations)[AT_ONCE]}")
        with self.loop(s.body, (s.start, s.stop, s.step)):
            self.block(s.body, f"for ({t} {v} = {start}; {test}; {move}) {{")

    def vector_copy(self, s: ir.For, how: str) -> bool:
        """A short loop that copies elements which lie in a row: one access where addresses allow it."""
        inner: ir.Stmt = s.body[0]
        inside: ir.Expr | None = None
        if isinstance(inner, ir.If):
            inside, inner = inner.cond, inner.then[0]
        assert isinstance(inner, ir.Store) and isinstance(s.stop, ir.Const)
        value = inner.value
        if isinstance(value, ir.IfThenElse):
            inside, value = value.cond, value.t
        assert isinstance(value, ir.Load)
        size = inner.buffer.dtype.bytes
        n = int(s.stop.value) * size
        first: dict[ir.Var, ir.Expr] = {s.var: build.zero(s.var.type)}
        dst, src = unique("dst", self.taken), unique("src", self.taken)
        t = c_type(inner.buffer.dtype)
        self.line("{")
        self.depth += 1
        self.line(f"{t}* const {dst} = {self.place_of(inner.buffer, substitute_all(inner.indices, first))};")
        self.line(f"const {t}* const {src} = {self.place_of(value.buffer, substitute_all(value.indices, first))};")
        valid = self.expr(inside.b, 10) if isinstance(inside, ir.Binary) else None
        far = [p for p, b in ((src, value.buffer), (dst, inner.buffer)) if b.root.scope == "global"]
        aligned = " && ".join(f"(tl_u64){p} % {n} == 0" for p in far)
        if how == "async":
            fill = f"_zfill({dst}, {src}, {valid} * {size})" if valid is not None else f"({dst}, {src})"
            copy = f"tl_cp_async_{n}{fill};"
        else:
            copy = f"tl_copy_{n}({dst}, {src});"
            aligned = " && ".join(
                ([f"{valid} == {s.stop.value}"] if valid is not None else []) + ([aligned] if aligned else [])
            )
        if aligned:
            self.line(f"if ({aligned}) {copy}")
            e = unique("e", self.taken)
            guard = f"if ({e} < {valid}) " if valid is not None else ""
            one = f"{guard}{dst}[{e}] = {src}[{e}];"
            if guard and isinstance(s.body[0], ir.Store):
                one = f"{dst}[{e}] = {e} < {valid} ? {src}[{e}] : {constant(0, inner.buffer.dtype)};"
            turns = f"for (int {e} = 0; {e} < {s.stop.value}; ++{e}) {one}"
            if value.buffer.scope == "local":  # registers have no numbers when the kernel runs
                self.line("else {")
                self.line("  #pragma unroll")
                self.line(f"  {turns}")
                self.line("}")
            else:
                self.line(f"else {turns}")
        else:
            self.line(copy)
        self.depth -= 1
        self.line("}")
        return True

    def _once(self, e: ir.Expr, wanted: str) -> str:
        """The text of a bound that is evaluated before the loop."""
        if isinstance(e, (ir.Const, ir.Var)):
            return self.expr(e, 8)
        name = unique(wanted, self.taken)
        self.line(f"const {c_type(e.dtype)} {name} = {self.expr(e)};")
        return name

    def do_While(self, s: ir.While) -> None:
        with self.loop(s.body, (s.cond,)):
            self.block(s.body, f"while ({self.expr(s.cond)}) {{")

    @contextmanager
    def loop(self, body: tuple[ir.Stmt, ...], bounds: tuple[ir.Expr, ...]) -> Iterator[None]:
        """In a loop that threads leave one by one it is not known who is there."""
        outer = self.warps.group
        if any(map(self.varying.expr, bounds)) or self.varying.leaves(body):
            self.warps.group = None
        yield
        self.warps.group = None if any(isinstance(n, ir.Return) for n in walk(body)) else outer

    def do_Break(self, s: ir.Break) -> None:
        self.line("break;")

    def do_Continue(self, s: ir.Continue) -> None:
        self.line("continue;")

    def do_Return(self, s: ir.Return) -> None:
        self.line("tl_exit();")

    # -- threads -----------------------------------------------------------------------------------------------------

    def do_Sync(self, s: ir.Sync) -> None:
        if s.scope != "async":
            self.line(self.barrier(s) + (f"  {ADDED}" if s.added else ""))

    def barrier(self, s: ir.Sync) -> str:
        if s.scope == "warp":
            return f"tl_syncwarp({self.warps.here()});"
        if s.scope == "grid":
            return f"tl_sync_grid({self.names[self.grid_state]});"
        if s.count is None and s.barrier == 0:
            return "tl_sync();"
        n = self.threads if s.count is None else s.count
        if n % 32:
            raise TileNotImplementedError(
                f"a barrier of {n} threads: on GPUs whole warps of 32 meet", s.loc, help="use a multiple of 32"
            )
        if not 0 <= s.barrier < 15:
            raise TileNotImplementedError(f"barrier {s.barrier}: GPUs have 0 to 14 for authors", s.loc)
        return f"tl_sync_named({s.barrier + 1}, {n});"

    def do_Wait(self, s: ir.Wait) -> None:
        self.waiting = True
        cond = self.expr(s.cond)
        self.waiting = False
        self.line(f"while (!({cond})) tl_spin();")

    def do_Collective(self, s: ir.Collective) -> None:
        self.warps.collective(s)

    def do_Atomic(self, s: ir.Atomic) -> None:
        b, d = s.buffer, s.buffer.dtype
        if d.bits < 8 or d.is_vector or (d.is_narrow and d.bits < 16):
            raise TileNotImplementedError(f"atomics on {d} are not supported on GPUs", s.loc)
        op = "add" if s.op == "arrive" else _ATOMICS.get(s.op, s.op)
        order = "TL_ACQ_REL" if s.op == "arrive" else _ORDERS[s.order]
        kind = "u8" if d.is_bool else suffix(d)
        place = self.place_of(b, s.indices)
        place = f"(tl_u8*){place}" if d.is_bool else place
        value = "" if s.value is None else f", {self.expr(s.value)}"
        call = f"tl_atomic_{op}_{kind}({place}{value}, {order})"
        if s.result is None:
            self.line(f"{call};")
        else:
            self.declare(s.result, call, cast=d.is_bool)

    def do_MicroCall(self, s: ir.MicroCall) -> None:
        if s.name == "ldmatrix":
            self.ldmatrix(s)
        elif s.name == "tf32":
            name, w = self.names[s.writes[0].buffer], unique("w", self.taken)
            count = math.prod(s.writes[0].buffer.const_shape or ())
            self.line("#pragma unroll")
            self.line(
                f"for (int {w} = 0; {w} < {count}; ++{w}) {name}[{w}] = tl_cvt_tf32_f32(tl_f32_bits({name}[{w}]));"
            )
        elif s.name == "async_commit":
            self.line("tl_cp_async_commit();")
        elif s.name == "async_wait":
            self.line(f"tl_cp_async_wait({dict(s.attrs)['groups']});")
        else:
            self.mma(s)

    def ldmatrix(self, s: ir.MicroCall) -> None:
        attrs = dict(s.attrs)
        name = f"tl_ldmatrix_x{attrs['matrices']}{'_trans' if attrs['trans'] else ''}"
        self.line(f"{name}({self.operand(s.writes[0])}, {self.place_of(s.reads[0].buffer, s.scalars)});")

    def operand(self, r: ir.Region) -> str:
        """The first word of a region of an operand's registers."""
        per = 4 // r.buffer.dtype.bytes
        return f"{self.names[r.buffer]} + ({self.place(r.buffer, r.starts)}) / {per}"

    def mma(self, s: ir.MicroCall) -> None:
        """The accumulators of a tile lie apart (rows of registers), so they are gathered around the instruction."""
        a, b = (r.buffer.dtype for r in s.reads)
        total, starts = s.writes[0].buffer, s.writes[0].starts
        d = total.dtype
        kinds = {"float16": "f16", "bfloat16": "bf16", "float32": "tf32", "int8": "s8", "uint8": "u8"}
        names = [kinds.get(x.name) or suffix(x) for x in (a, b)]
        types = names[0] if a.bytes > 1 else "_".join(names)
        name = f"tl_mma_m16n8k{32 // a.bytes}_{suffix(d)}_{types}"
        places = []
        for e in range(4):
            row, col = build.add(starts[-2], e // 2), build.add(starts[-1], e % 2)
            places.append(f"{self.names[total]}[{self.place(total, (*starts[:-2], row, col))}]")
        tile = unique("tile", self.taken)
        self.line(f"{c_type(d)} {tile}[4] = {{{', '.join(places)}}};")
        self.line(f"{name}({tile}, {self.operand(s.reads[0])}, {self.operand(s.reads[1])});")
        self.line(" ".join(f"{place} = {tile}[{e}];" for e, place in enumerate(places)))

    # -- messages ----------------------------------------------------------------------------------------------------

    def do_Debug(self, s: ir.Debug) -> None:
        fails = s.kind in ("assert", "bounds")
        if not fails and s.kind != "print":
            return
        values = s.values
        if fails:
            assert isinstance(values[0], ir.Expr)
            self.line(f"if (!({self.expr(values[0])})) {{")
            self.depth += 1
            values = values[1:]
        site = len(self.sites)
        self.sites.append(Site.of(s))
        dtypes, shapes = self.sites[site].dtypes, self.sites[site].shapes
        words = unique("words", self.taken)
        if not fails:
            self.line("{")
            self.depth += 1
        self.line(f"tl_u64 {words}[{max(len(dtypes), 1)}];")
        at = 0
        for v, shape in zip(values, shapes, strict=True):
            if isinstance(v, ir.Expr):
                self.line(f"{words}[{at}] = {self.word(self.expr(v), v.dtype)};")
                at += 1
                continue
            n = math.prod(shape)
            whole = ir.Buffer(v.name, v.dtype, (ir.Const(n, _I32),), v.scope, alias_of=v)
            e = unique("e", self.taken)
            index = ir.Var(e, _I32)
            self.names[whole], self.names[index] = self.pointer(v), e
            element = self.word(self.expr(ir.Load(whole, (index,))), v.dtype)
            self.line(f"for (int {e} = 0; {e} < {n}; ++{e}) {words}[{at} + {e}] = {element};")
            at += n
        self.line(f"tl_report({self.names['ring']}, {int(fails)}, {site}, {len(dtypes)}, {words});")
        if fails:
            self.line("tl_exit();")
        self.depth -= 1
        self.line("}")

    def word(self, text: str, d: DType) -> str:
        """A value as the 64 bits of a record."""
        if d.name in ("float32", "float64"):
            return f"(tl_u64)tl_bits_{suffix(d)}({text})"
        return f"(tl_u64)(tl_i64)({text})" if d.kind == "int" else f"(tl_u64)({text})"


def _meets_grid(kernel: ir.Kernel) -> bool:
    return any(isinstance(n, ir.Sync) and n.scope == "grid" for n in walk(kernel))
