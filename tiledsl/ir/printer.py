"""Functions of any stage as text: Python in the manner of the language, which `frontend.reader` reads back exactly.

The text is a module with one decorated function. Operators, loads, stores, loops, branches and allocations look as
an author writes them; types are explicit where a literal or a cast has one (a bare int is int32, a bare float
float32), `A.raw[i]` is an access marked proved, `T.region(A, starts, extents)` a part of a buffer, and what has no
notation of its own is `T.<operation>(field, option=value)` with the fields of its node. Names are made identifiers
and unique; everything else that an author chose appears as a quoted literal.
"""

from __future__ import annotations

import dataclasses
import keyword
import math
import re
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.ir import expr as E
from tiledsl.ir import stmt as S
from tiledsl.ir.buffer import SCOPES, Buffer, Region
from tiledsl.ir.collectives import COLLECTIVES
from tiledsl.ir.intrinsics import INTRINSICS
from tiledsl.ir.node import Node, fields_of

__all__ = [
    "BINARY_FUNCTIONS",
    "DEBUG_FUNCTIONS",
    "LOOPS",
    "OPERATORS",
    "STATEMENTS",
    "UNARY_FUNCTIONS",
    "result_type",
    "to_text",
]

# op -> (Python's operator, its precedence); comparisons do not chain, so their operands bind tighter
OPERATORS: dict[str, tuple[str, int]] = {
    "or": ("or", 2),
    "and": ("and", 3),
    **{op: (text, 5) for op, text in zip(("eq", "ne", "lt", "le", "gt", "ge"), "== != < <= > >=".split(), strict=True)},
    "bitor": ("|", 6),
    "bitxor": ("^", 7),
    "bitand": ("&", 8),
    "shl": ("<<", 9),
    "shr": (">>", 9),
    "add": ("+", 10),
    "sub": ("-", 10),
    "mul": ("*", 11),
    "div": ("/", 11),
    "floordiv": ("//", 11),
    "floormod": ("%", 11),
}
_NOT, _UNARY, _ATOM = 4, 12, 15
BINARY_FUNCTIONS = ("min", "max", "truncdiv", "truncmod")
UNARY_FUNCTIONS = ("neg", "abs", "sqrt", "floor", "ceil", "trunc", "rint")
LOOPS = {"serial": "serial", "pipelined": "Pipelined", "unroll": "unroll", "vectorized": "vectorized", "thread": "loop"}
DEBUG_FUNCTIONS = {"print": "print", "assert": "device_assert", "assume": "assume", "breakpoint": "breakpoint"}
STATEMENTS: dict[str, type[S.Stmt]] = {
    "store": S.Store,
    "copy": S.Copy,
    "fill": S.Fill,
    "gemm": S.Gemm,
    "reduce": S.Reduce,
    "scan": S.Scan,
    "reducer": S.ReducerOp,
    "atomic": S.Atomic,
    "sync": S.Sync,
    "collective": S.Collective,
    "wait": S.Wait,
    "micro_call": S.MicroCall,
    "debug": S.Debug,
}
_FUNCTIONS: dict[type, tuple[str, ...]] = {E.Binary: BINARY_FUNCTIONS, E.Unary: UNARY_FUNCTIONS}
_CALLS: dict[type[E.Expr], str] = {
    E.Binary: "binary",
    E.Unary: "unary",
    E.Cast: "cast",
    E.Call: "call",
    E.Fma: "fma",
    E.Select: "Select",
    E.Broadcast: "broadcast",
    E.Ramp: "ramp",
}
_NAME_OF = {cls: name for name, cls in STATEMENTS.items()}
_RESERVED = frozenset(keyword.kwlist) | {"T", "float", "match", "case", "type", "_"}
_HEADER = """from __future__ import annotations

from tiledsl.frontend.reader import ir_function


"""


def to_text(function: S.Function) -> str:
    """The function as text; `tiledsl.frontend.reader.from_text` gives an equal tree (`ir.equal`, hints included).
    Trees that the verifier refuses print as well, so that they can be reported."""
    return _Printer().function(function)


def result_type(s: S.Stmt) -> DType | None:
    """The dtype of what a statement binds."""
    if isinstance(s, S.Atomic):
        return s.buffer.dtype
    if isinstance(s, S.Collective) and s.op in COLLECTIVES and (s.args or not COLLECTIVES[s.op].takes):
        return COLLECTIVES[s.op].result(tuple(a.dtype for a in s.args))
    return None


def is_standard_copy(s: S.Copy) -> bool:
    """The copy moves along every axis of both regions, over all of dst: printed without its domain."""
    axes = tuple(range(len(s.domain)))
    return s.domain == s.dst.extents and s.src_axes == axes and s.dst_axes == axes and len(s.src.starts) == len(axes)


def is_whole(r: Region) -> bool:
    """The region is all of its buffer, counted in int32: printed as the buffer's name."""
    return r.whole and len(r.starts) == r.buffer.rank and all(e.dtype.name == "int32" for e in r.starts)


def _tuple(texts: list[str]) -> str:
    return f"({texts[0]},)" if len(texts) == 1 else f"({', '.join(texts)})"


def _quoted(text: str) -> str:
    """A string literal, in double quotes where that needs no escapes."""
    literal = repr(text)
    return literal if '"' in literal else f'"{literal[1:-1]}"'


class _Printer:
    def __init__(self) -> None:
        self.names: dict[Node, str] = {}
        self.used: set[str] = set()
        self.free: list[E.Var] = []
        self.lines: list[str] = []
        self.pending: list[str] = []
        self.depth = 0

    # -- names -----------------------------------------------------------------------------------------------

    def fresh(self, wanted: str) -> str:
        """An unused identifier like the wanted name."""
        base = re.sub(r"[^A-Za-z0-9_]", "_", wanted)[:48] or "x"
        if base[0].isdigit() or base in _RESERVED:
            base = f"x_{base}"
        name, n = base, 2
        while name in self.used:
            name, n = f"{base}_{n}", n + 1
        self.used.add(name)
        return name

    def bind(self, n: E.Var | Buffer) -> str:
        if n not in self.names:
            self.names[n] = self.fresh(n.name)
        return self.names[n]

    def name(self, n: E.Var | Buffer) -> str:
        """The name of something used; what nobody bound is defined here, or listed as free."""
        if n not in self.names:
            if isinstance(n, Buffer):
                args = self.buffer_args(n)
                self.pending.append(f"{self.bind(n)} = T.buffer({args}, scope={_quoted(n.scope)})")
            else:
                self.free.append(n)
        return self.bind(n)

    def buffer_args(self, b: Buffer) -> str:
        args = [self.group(b.shape), _quoted(b.dtype.name)]
        for f in ("strides", "alias_of", "offset", "base", "safe"):
            value = getattr(b, f)
            if value is not None:
                args.append(f"{f}={self.operand(value)}")
        if b.layout is not None:
            args.append(f"layout={self.data(b.layout)}")
        return ", ".join(args)

    # -- lines -----------------------------------------------------------------------------------------------

    def line(self, text: str) -> None:
        for part in (*self.pending, text):
            self.lines.append("    " * self.depth + part)
        self.pending.clear()

    def block(self, body: tuple[Any, ...]) -> None:
        self.depth += 1
        for s in body:
            self.stmt(s)
        if not body:
            self.line("pass")
        self.depth -= 1

    def function(self, f: S.Function) -> str:
        for s in f.symbols:
            self.bind(s)
        own = self.fresh(f.name)
        for p in f.params:
            for n in (p.var, p.buffer):
                if n is not None:
                    self.names[n] = self.fresh(p.name)
        params = ", ".join(f"{self.names[p.buffer or p.var]}: {self.annotation(p)}" for p in f.params)  # type: ignore[index]
        self.depth = 1
        for w in f.workspaces:
            args = self.buffer_args(w) + ("" if w.scope == "global" else f", scope={_quoted(w.scope)}")
            self.line(f"{self.bind(w)} = T.alloc_global({args})")
        for k in f.kernels:
            self.kernel(k)
        if not self.lines:
            self.line("pass")
        idents = tuple(self.names[p.buffer or p.var] for p in f.params)  # type: ignore[index]
        options = [f"stage={_quoted(f.stage)}"]
        if f.symbols:
            options.append(f"symbols={self.types(f.symbols)}")
        if own != f.name:
            options.append(f"name={_quoted(f.name)}")
        if idents != tuple(p.name for p in f.params):
            options.append(f"params={self.data(tuple(p.name for p in f.params))}")
        if f.outputs:
            options.append(f"outputs={self.data(f.outputs)}")
        if f.attrs:
            options.append(f"attrs={self.data(f.attrs, pairs=True)}")
        if self.free:
            options.append(f"free={self.types(tuple(self.free))}")
        head = f"@ir_function({', '.join(options)})\ndef {own}({params}):\n"
        return _HEADER + head + "\n".join(self.lines) + "\n"

    def types(self, vs: tuple[E.Var, ...]) -> str:
        return self.data({self.names[v]: v.type.name for v in vs})

    def annotation(self, p: S.Param) -> str:
        if p.buffer is None:
            assert p.var is not None
            return f"T.{p.var.type.name}"
        scope = "" if p.buffer.scope == "global" else f", scope={_quoted(p.buffer.scope)}"
        text = f"T.Tensor({self.buffer_args(p.buffer)}{scope})"
        self.lines += [f"    {part}" for part in self.pending]
        self.pending.clear()
        return text

    def kernel(self, k: S.Kernel) -> None:
        args = [self.expr(g) for g in k.grid]
        args += [f"threads={self.group(k.threads)}", f"name={_quoted(k.name)}"]
        if any(v.type.name != "int32" for v in k.block_vars):
            args.append(f"types={self.data(tuple(v.type.name for v in k.block_vars))}")
        if k.attrs:
            args.append(f"attrs={self.data(k.attrs, pairs=True)}")
        self.line(f"with T.Kernel({', '.join(args)}) as {self.binders(k.block_vars)}:")
        self.depth += 1
        for axis, v in enumerate(k.thread_vars):
            extra = "" if v.type.name == "int32" else f", {_quoted(v.type.name)}"
            self.line(f"{self.bind(v)} = T.get_thread_binding({axis}{extra})")
        self.depth -= 1
        if k.body or not k.thread_vars:
            self.block(k.body)

    def binders(self, vs: tuple[E.Var, ...]) -> str:
        return _tuple([self.bind(v) for v in vs])

    # -- statements ------------------------------------------------------------------------------------------

    def stmt(self, s: S.Stmt) -> None:
        if isinstance(s, S.Let):
            value = self.expr(s.value)
            same = s.var.type is s.value.dtype
            self.line(f"{self.bind(s.var)}{'' if same else f': {_quoted(s.var.type.name)}'} = {value}")
        elif isinstance(s, S.Alloc):
            self.alloc(s)
        elif isinstance(s, S.Store) and s.mask is None:
            value = self.expr(s.value)
            self.line(f"{self.element(s)} = {value}")
        elif isinstance(s, S.If):
            self.branch(s, "if")
        elif isinstance(s, S.While):
            self.line(f"while {self.expr(s.cond)}:")
            self.block(s.body)
        elif isinstance(s, S.For):
            self.loop(s)
        elif isinstance(s, S.Parallel):
            args = [self.expr(e) for e in s.extents]
            if tuple(v.type for v in s.vars) != tuple(e.dtype for e in s.extents):
                args.append(f"types={self.data(tuple(v.type.name for v in s.vars))}")
            if s.annotations:
                args.append(f"annotations={self.data(s.annotations, pairs=True)}")
            names = ", ".join(map(self.bind, s.vars)) or "()"
            self.line(f"for {names} in T.Parallel({', '.join(args)}):")
            self.block(s.body)
        elif isinstance(s, (S.Break, S.Continue, S.Return)):
            self.line(type(s).__name__.lower())
        elif isinstance(s, S.Debug) and s.kind in DEBUG_FUNCTIONS:
            args = [self.operand(v) for v in s.values] + ([f"message={_quoted(s.message)}"] if s.message else [])
            self.line(f"T.{DEBUG_FUNCTIONS[s.kind]}({', '.join(args)})")
        elif isinstance(s, S.Copy) and is_standard_copy(s):
            self.line(f"T.copy({self.operand(s.src)}, {self.operand(s.dst)}{self.options(s)})")
        else:
            self.generic(s)

    def branch(self, s: S.If, word: str) -> None:
        self.line(f"{word} {self.expr(s.cond)}:")
        self.block(s.then)
        if len(s.orelse) == 1 and isinstance(s.orelse[0], S.If) and not self.defines(s.orelse[0].cond):
            self.branch(s.orelse[0], "elif")
        elif s.orelse:
            self.line("else:")
            self.block(s.orelse)

    def defines(self, e: E.Expr) -> bool:
        """Printing e needs lines of its own before it, for which an `elif` has no place."""
        names, used, free = dict(self.names), set(self.used), list(self.free)
        self.expr(e)
        needed = bool(self.pending)
        if needed:
            self.names, self.used, self.free = names, used, free
            self.pending.clear()
        return needed

    def loop(self, s: S.For) -> None:
        zero, one = (E.Const(n, s.stop.dtype) for n in (0, 1))
        parts = (s.stop,) if s.start == zero and s.step == one else (s.start, s.stop, s.step)
        args = [self.expr(e) for e in parts]
        if s.kind not in LOOPS or s.kind == "thread":
            args.append(f"kind={_quoted(s.kind)}")
        if s.var.type is not s.stop.dtype:
            args.append(f"type={_quoted(s.var.type.name)}")
        if s.annotations:
            args.append(f"annotations={self.data(s.annotations, pairs=True)}")
        self.line(f"for {self.bind(s.var)} in T.{LOOPS.get(s.kind, 'loop')}({', '.join(args)}):")
        self.block(s.body)

    def alloc(self, s: S.Alloc) -> None:
        b = s.buffer
        init = "" if s.init is None else f", init={self.expr(s.init)}"
        if b in self.names or b.scope not in SCOPES:
            self.line(f"T.alloc({self.name(b)}{init})")
        else:
            args = self.buffer_args(b)
            self.line(f"{self.bind(b)} = T.alloc_{b.scope}({args}{init})")

    def generic(self, s: S.Stmt) -> None:
        """T.<operation>(fields without default, option=value)."""
        name = _NAME_OF[type(s)]
        required = [
            self.field(s, f.name)
            for f in dataclasses.fields(s)
            if f.default is dataclasses.MISSING and f.metadata.get("role", "loc") not in ("loc", "binding")
        ]
        call = f"T.{name}({', '.join(required)}{self.options(s)})"
        result = s.result if isinstance(s, (S.Atomic, S.Collective)) else None
        if result is not None:
            same = result.type is result_type(s)
            call = f"{self.bind(result)}{'' if same else f': {_quoted(result.type.name)}'} = {call}"
        self.line(call)

    def options(self, s: S.Stmt) -> str:
        """The fields that differ from their defaults."""
        changed = [
            f.name
            for f in dataclasses.fields(s)
            if f.metadata.get("role", "loc") not in ("loc", "binding")
            and f.default is not dataclasses.MISSING
            and getattr(s, f.name) != f.default
        ]
        return "".join(f", {name}={self.field(s, name)}" for name in changed)

    def field(self, n: Node, name: str) -> str:
        value = getattr(n, name)
        role = next(f.role for f in fields_of(type(n)) if f.name == name)
        return self.operand(value) if role == "operand" else self.data(value, pairs=name in ("attrs", "annotations"))

    # -- operands and data -----------------------------------------------------------------------------------

    def operand(self, x: Any) -> str:
        if x is None:
            return "None"
        if isinstance(x, tuple):
            return self.group(x)
        if isinstance(x, Buffer):
            return self.name(x)
        if isinstance(x, Region):
            if is_whole(x):
                return self.name(x.buffer)
            return f"T.region({self.name(x.buffer)}, {self.group(x.starts)}, {self.group(x.extents)})"
        return self.expr(x)

    def group(self, items: tuple[Any, ...]) -> str:
        return _tuple([self.operand(x) for x in items])

    def data(self, x: Any, pairs: bool = False) -> str:
        """Plain data as literals. pairs: a tuple of (name, value), shown as a dict."""
        if pairs and isinstance(x, tuple) and all(isinstance(p, tuple) and len(p) == 2 for p in x):
            keys = [p[0] for p in x]
            if all(isinstance(k, str) for k in keys) and len(set(keys)) == len(keys):
                x = dict(x)
        if isinstance(x, DType):
            return f"T.dtype({_quoted(x.name)})"
        if isinstance(x, str):
            return _quoted(x)
        if x is None or isinstance(x, (bool, int)):
            return repr(x)
        if isinstance(x, float):
            return repr(x) if math.isfinite(x) else f"float({_quoted(str(x))})"
        if isinstance(x, tuple):
            return _tuple([self.data(v) for v in x])
        if isinstance(x, list):
            return f"[{', '.join(self.data(v) for v in x)}]"
        if isinstance(x, dict):
            return f"{{{', '.join(f'{self.data(k)}: {self.data(v)}' for k, v in x.items())}}}"
        if isinstance(x, (E.Expr, Buffer, Region)):
            return f"T.operand({self.operand(x)})"
        return f"T.opaque({_quoted(f'{type(x).__name__}: {x!r}')})"

    # -- expressions -----------------------------------------------------------------------------------------

    def expr(self, e: E.Expr, least: int = 0) -> str:
        """e as text that binds at least as tightly as `least`."""
        text, precedence = self.parts(e)
        return text if precedence >= least else f"({text})"

    def parts(self, e: E.Expr) -> tuple[str, int]:
        if isinstance(e, E.Var):
            return self.name(e), _ATOM
        if isinstance(e, E.Const):
            return self.const(e)
        if isinstance(e, E.Binary) and e.op in OPERATORS:
            text, own = OPERATORS[e.op]
            left = self.expr(e.a, own + (own == 5))
            return f"{left} {text} {self.expr(e.b, own + 1)}", own
        if isinstance(e, E.Unary):
            if e.op == "not":
                return f"not {self.expr(e.x, _NOT)}", _NOT
            if e.op in ("neg", "bitnot") and not isinstance(e.x, E.Const):
                return f"{'-' if e.op == 'neg' else '~'}{self.expr(e.x, _UNARY)}", _UNARY
        if isinstance(e, E.IfThenElse):
            return f"{self.expr(e.t, 1)} if {self.expr(e.cond, 1)} else {self.expr(e.f)}", 0
        if isinstance(e, E.Load) and e.mask is None and e.lanes == 1:
            return self.element(e), _ATOM
        return self.call(e), _ATOM

    def call(self, e: E.Expr) -> str:
        if isinstance(e, E.Load):
            options = "" if e.mask is None else f", mask={self.expr(e.mask)}"
            options += "" if e.lanes == 1 else f", lanes={e.lanes}"
            options += ", proved=True" if e.proved else ""
            return f"T.load({self.name(e.buffer)}, {self.group(e.indices)}{options})"
        if isinstance(e, (E.Binary, E.Unary)) and e.op in _FUNCTIONS[type(e)]:
            return f"T.{e.op}({', '.join(self.field(e, f.name) for f in fields_of(type(e))[1:])})"
        if isinstance(e, E.Call):
            known = INTRINSICS.get(e.name)
            if known and known.kind == "math" and len(e.args) == known.arity and e.type is e.args[0].dtype:
                return f"T.{e.name}({', '.join(map(self.expr, e.args))})"
        if type(e) not in _CALLS:
            return self.data(e)
        names = [f.name for f in fields_of(type(e))]
        texts = [_quoted(e.dtype.name) if n == "type" else self.field(e, n) for n in names]
        return f"T.{_CALLS[type(e)]}({', '.join(texts)})"

    def element(self, n: E.Load | S.Store) -> str:
        indices = ", ".join(map(self.expr, n.indices)) or "()"
        return f"{self.name(n.buffer)}{'.raw' if n.proved else ''}[{indices}]"

    def const(self, c: E.Const) -> tuple[str, int]:
        value, name = c.value, c.type.name
        if (name, type(value)) == ("bool", bool):
            return repr(value), _ATOM
        if (name, type(value)) == ("int32", int) or (
            (name, type(value)) == ("float32", float) and math.isfinite(value)
        ):
            text = repr(value)
            return text, _UNARY if text.startswith("-") else _ATOM
        infinite = isinstance(value, float) and not math.isfinite(value)
        literal = _quoted(str(value)) if infinite else repr(value)
        return f"T.{name}({literal})", _ATOM
