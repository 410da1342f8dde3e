"""Reading printed IR back: text of `ir.printer` -> the equal tree. A builder over Python's AST; nothing is executed.

The text is data: only the notation of the printer is understood, names are looked up in the function's own scope,
and literals are literals. What cannot be read is a TileError that points into the text.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import linecache
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn, TypeGuard

from tiledsl.dtypes import FLOAT32, INT32, DType, as_dtype
from tiledsl.errors import Loc, TileNameError, TileSyntaxError, TileTypeError, suggest
from tiledsl.ir import SCOPES, Buffer, Region, fields_of
from tiledsl.ir import expr as E
from tiledsl.ir import stmt as S
from tiledsl.ir.intrinsics import INTRINSICS
from tiledsl.ir.printer import (
    BINARY_FUNCTIONS,
    DEBUG_FUNCTIONS,
    LOOPS,
    OPERATORS,
    STATEMENTS,
    UNARY_FUNCTIONS,
    result_type,
)

__all__ = ["from_text", "ir_function"]

_PYTHON: dict[str, type] = {
    "==": ast.Eq, "!=": ast.NotEq, "<": ast.Lt, "<=": ast.LtE, ">": ast.Gt, ">=": ast.GtE, "|": ast.BitOr,
    "^": ast.BitXor, "&": ast.BitAnd, "<<": ast.LShift, ">>": ast.RShift, "+": ast.Add, "-": ast.Sub,
    "*": ast.Mult, "/": ast.Div, "//": ast.FloorDiv, "%": ast.Mod, "and": ast.And, "or": ast.Or,
}  # fmt: skip
_OP_OF = {_PYTHON[text]: op for op, (text, _) in OPERATORS.items()}
_LOOP_OF = {function: kind for kind, function in LOOPS.items()}
_DEBUG_OF = {function: kind for kind, function in DEBUG_FUNCTIONS.items()}
_JUMPS: dict[type[ast.stmt], type[S.Stmt]] = {
    ast.Break: S.Break,
    ast.Continue: S.Continue,
    ast.Return: S.Return,
}
_UNDEFINED = "bind it in the lines before"
_HELP = "pass one function as ir.printer.to_text prints it"


def from_text(text: str, filename: str | None = None) -> S.Function:
    """The function that the text of `ir.printer.to_text` describes, equal to the printed one (`ir.equal`).

    Node locations point into the text. Raises TileError subclasses for text that is not printed IR.
    """
    name = filename or f"<ir {abs(hash(text)):x}>"
    if filename is None:  # so that errors can show the line
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    try:
        module = ast.parse(text)
    except (RecursionError, MemoryError):
        raise _too_deep(Loc(name, 1)) from None
    except (SyntaxError, ValueError) as e:
        loc = Loc(name, getattr(e, "lineno", None) or 1, getattr(e, "offset", None) or 1)
        raise TileSyntaxError(f"not printed IR: {e.args[0] if e.args else e}", loc, help=_HELP) from None
    return _read(module, name, 0)


def ir_function(**options: Any) -> Callable[[Callable[..., Any]], S.Function]:
    """Decorator that printed IR carries, which makes it a module to import: the function's source is read as IR,
    its body never runs. The options are those of the printer."""

    def read(function: Callable[..., Any]) -> S.Function:
        lines, first = inspect.getsourcelines(function)
        filename = inspect.getsourcefile(function) or "<ir>"
        return _read(ast.parse(textwrap.dedent("".join(lines))), filename, first - 1)

    return read


def _read(module: ast.Module, filename: str, offset: int) -> S.Function:
    reader = _Reader(filename, offset)
    found = [n for n in module.body if isinstance(n, ast.FunctionDef)]
    if len(found) != 1:
        raise TileSyntaxError(
            f"printed IR holds one function, this text {len(found)}", Loc(filename, offset + 1), help=_HELP
        )
    try:
        return reader.function(found[0])
    except RecursionError:
        raise _too_deep(reader.place or Loc(filename, offset + 1)) from None


def _too_deep(loc: Loc) -> TileSyntaxError:
    return TileSyntaxError(
        "expressions are nested too deeply to be read", loc, help="bind parts of them to names: `x = ...`"
    )


def _callee(n: ast.AST | None) -> str | None:
    """f of a call T.f(...), else None."""
    if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute):
        owner = n.func.value
        return n.func.attr if isinstance(owner, ast.Name) and owner.id == "T" else None
    return None


def _calls(n: ast.AST | None, name: str) -> TypeGuard[ast.Call]:
    return _callee(n) == name


class _Reader:
    def __init__(self, filename: str, offset: int) -> None:
        self.filename, self.offset = filename, offset
        self.scope: dict[str, E.Var | Buffer] = {}
        self.name = ""
        self.place: Loc | None = None  # of the statement that is read

    # -- places and errors -----------------------------------------------------------------------------------

    def loc(self, n: ast.AST) -> Loc:
        line, col = getattr(n, "lineno", 1), getattr(n, "col_offset", 0)
        same_line = getattr(n, "end_lineno", line) == line
        end = (getattr(n, "end_col_offset", None) or col) + 1 if same_line else 0
        return Loc(self.filename, line + self.offset, col + 1, end, self.name)

    def fail(self, n: ast.AST, message: str, help: str | None = None) -> NoReturn:
        raise TileSyntaxError(f"not printed IR: {message}", self.loc(n), help=help or _HELP)

    def var(self, n: ast.expr, dtype: DType) -> E.Var:
        if not isinstance(n, ast.Name):
            self.fail(n, "a name was expected")
        v = E.Var(n.id, dtype, loc=self.loc(n))
        self.scope[n.id] = v
        return v

    def lookup(self, n: ast.Name) -> E.Var | Buffer:
        found = self.scope.get(n.id)
        if found is None:
            raise TileNameError(f"{n.id} is not defined", self.loc(n), help=suggest(n.id, self.scope) or _UNDEFINED)
        return found

    def buffer(self, n: ast.expr) -> Buffer:
        found = self.lookup(n) if isinstance(n, ast.Name) else None
        if not isinstance(found, Buffer):
            self.fail(n, "a buffer was expected")
        return found

    # -- calls -----------------------------------------------------------------------------------------------

    def arguments(
        self, n: ast.Call, least: int, most: int | None, *options: str
    ) -> tuple[list[ast.expr], dict[str, Any]]:
        """Positional arguments (how many are allowed) and keyword arguments, as AST."""
        keywords: dict[str, Any] = {}
        for k in n.keywords:
            if k.arg is None or k.arg not in options or k.arg in keywords:
                self.fail(n, f"unexpected option {k.arg}", suggest(k.arg or "", options))
            keywords[k.arg] = k.value
        if len(n.args) < least or (most is not None and len(n.args) > most):
            self.fail(n, f"wrong number of arguments ({len(n.args)})")
        return n.args, keywords

    # -- the function ----------------------------------------------------------------------------------------

    def function(self, n: ast.FunctionDef) -> S.Function:
        options: dict[str, Any] = {}
        for d in n.decorator_list:
            if isinstance(d, ast.Call):
                options.update({k.arg or "": self.data(k.value) for k in d.keywords})
        self.name = str(options.get("name", n.name))
        symbols = tuple(self.declare(name, dtype, n) for name, dtype in dict(options.get("symbols", {})).items())
        for name, dtype in dict(options.get("free", {})).items():
            self.declare(name, dtype, n)
        for a in n.args.args:  # scalars first: shapes may use them
            if isinstance(a.annotation, ast.Attribute):
                self.scope[a.arg] = E.Var(a.arg, self.dtype_named(a.annotation.attr, a), loc=self.loc(a))
        names = options.get("params") or [a.arg for a in n.args.args]
        params = tuple(self.param(a, str(name)) for a, name in zip(n.args.args, names, strict=True))
        workspaces: list[Buffer] = []
        kernels: list[S.Kernel] = []
        for s in n.body:
            if isinstance(s, ast.With):
                kernels.append(self.kernel(s))
            elif isinstance(s, ast.Assign) and _callee(s.value) == "alloc_global":
                workspaces.append(self.define(s, "global"))
            elif isinstance(s, ast.Assign) and _callee(s.value) == "buffer":
                self.define(s, "global")
            elif not isinstance(s, ast.Pass):
                self.fail(s, "a kernel or a workspace was expected")
        return S.Function(
            self.name,
            params,
            tuple(kernels),
            symbols,
            tuple(options.get("outputs", ())),
            tuple(workspaces),
            str(options.get("stage", "tile")),
            _pairs(options.get("attrs", ())),
            loc=self.loc(n),
        )

    def declare(self, name: str, dtype: str, n: ast.AST) -> E.Var:
        v = E.Var(name, self.dtype_named(dtype, n), loc=self.loc(n))
        self.scope[name] = v
        return v

    def param(self, a: ast.arg, name: str) -> S.Param:
        if isinstance(a.annotation, ast.Attribute):
            found = self.scope[a.arg]
            assert isinstance(found, E.Var)
            return S.Param(name, None, found, loc=self.loc(a))
        if not _calls(a.annotation, "Tensor"):
            self.fail(a, f"parameter {a.arg} has no type")
        b = self.new_buffer(a.annotation, a.arg, "global")
        self.scope[a.arg] = b
        return S.Param(name, b, loc=self.loc(a))

    def define(self, s: ast.Assign, scope: str) -> Buffer:
        target, call = s.targets[0], s.value
        if not isinstance(target, ast.Name) or not isinstance(call, ast.Call):
            self.fail(s, "a name was expected")
        b = self.new_buffer(call, target.id, scope)
        self.scope[target.id] = b
        return b

    def new_buffer(self, call: ast.Call, name: str, scope: str) -> Buffer:
        parts = ("strides", "alias_of", "offset", "base", "safe")
        args, options = self.arguments(call, 2, 2, *parts, "layout", "scope", "init")
        fields: dict[str, Any] = {k: self.operand(options[k]) for k in parts if k in options}
        if "layout" in options:
            fields["layout"] = self.data(options["layout"])
        shape = self.operand(args[0])
        dtype = self.dtype(args[1])
        scope = self.data(options["scope"]) if "scope" in options else scope
        return Buffer(name, dtype, shape, scope, **fields, loc=self.loc(call))

    def kernel(self, n: ast.With) -> S.Kernel:
        call = n.items[0].context_expr
        names = n.items[0].optional_vars
        if len(n.items) != 1 or not _calls(call, "Kernel") or not isinstance(names, ast.Tuple):
            self.fail(n, "`with T.Kernel(...) as (...)` was expected")
        grid, options = self.arguments(call, 0, None, "threads", "name", "types", "attrs")
        extents = tuple(map(self.expr, grid))
        threads = self.operand(options["threads"]) if "threads" in options else ()
        types = self.data(options["types"]) if "types" in options else ("int32",) * len(names.elts)
        block_vars = tuple(self.var(v, self.dtype_named(t, v)) for v, t in zip(names.elts, types, strict=True))
        thread_vars: list[E.Var] = []
        body = list(n.body)
        while body and isinstance(s := body[0], ast.Assign) and _calls(s.value, "get_thread_binding"):
            body.pop(0)
            given, _ = self.arguments(s.value, 1, 2)
            thread_vars.append(self.var(s.targets[0], self.dtype(given[1]) if len(given) == 2 else INT32))
        return S.Kernel(
            str(self.data(options["name"])) if "name" in options else self.name,
            extents,
            threads,
            block_vars,
            tuple(thread_vars),
            self.block(body),
            _pairs(self.data(options["attrs"])) if "attrs" in options else (),
            loc=self.loc(n),
        )

    # -- statements ------------------------------------------------------------------------------------------

    def block(self, body: list[ast.stmt]) -> tuple[S.Stmt, ...]:
        found = (self.stmt(s) for s in body)
        return tuple(s for s in found if s is not None)

    def stmt(self, n: ast.stmt) -> S.Stmt | None:
        self.place = loc = self.loc(n)
        if isinstance(n, ast.Assign) and len(n.targets) == 1:
            return self.assign(n)
        if isinstance(n, ast.AnnAssign) and n.value is not None:
            return self.bound(n, n.target, n.value, self.dtype(n.annotation))
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Call):
            return self.statement(n.value, loc)
        if isinstance(n, ast.If):
            cond = self.expr(n.test)
            return S.If(cond, self.block(n.body), self.block(n.orelse), loc=loc)
        if isinstance(n, ast.While) and not n.orelse:
            cond = self.expr(n.test)
            return S.While(cond, self.block(n.body), loc=loc)
        if isinstance(n, ast.For) and not n.orelse:
            return self.loop(n)
        if type(n) in _JUMPS and getattr(n, "value", None) is None:
            return _JUMPS[type(n)](loc=loc)
        if isinstance(n, ast.Pass):
            return None
        self.fail(n, f"unexpected {type(n).__name__}")

    def assign(self, n: ast.Assign) -> S.Stmt | None:
        target, loc = n.targets[0], self.loc(n)
        if isinstance(target, ast.Subscript):
            value = self.expr(n.value)
            b, indices, proved = self.element(target)
            return S.Store(b, indices, value, None, proved, loc=loc)
        if not isinstance(target, ast.Name):
            self.fail(target, "a name or an element was expected")
        called = _callee(n.value)
        if called == "buffer":
            self.define(n, "global")
            return None
        if called is not None and called.startswith("alloc_") and called[6:] in SCOPES:
            assert isinstance(n.value, ast.Call)
            b = self.define(n, called[6:])
            init = [self.expr(k.value) for k in n.value.keywords if k.arg == "init"]
            return S.Alloc(b, init[0] if init else None, loc=loc)
        return self.bound(n, target, n.value, None)

    def bound(self, n: ast.stmt, target: ast.expr, value: ast.expr, dtype: DType | None) -> S.Stmt:
        """A Let, or the result of an atomic or collective."""
        loc = self.loc(n)
        if _calls(value, "atomic") or _calls(value, "collective"):
            s = self.statement(value, loc)
            found = dtype or result_type(s)
            if found is None:
                self.fail(n, "the result has no type")
            return s.replace(result=self.var(target, found))
        e = self.expr(value)
        return S.Let(self.var(target, dtype or e.dtype), e, loc=loc)

    def loop(self, n: ast.For) -> S.Stmt:
        called, call, loc = _callee(n.iter), n.iter, self.loc(n)
        if not isinstance(call, ast.Call) or (called != "Parallel" and called not in _LOOP_OF):
            self.fail(n, "a loop of the language was expected")
        if called == "Parallel":
            args, options = self.arguments(call, 0, None, "types", "annotations")
            extents = tuple(map(self.expr, args))
            names = n.target.elts if isinstance(n.target, ast.Tuple) else [n.target]
            types = [self.dtype_named(t, n) for t in self.data(options["types"])] if "types" in options else None
            dtypes = types or [e.dtype for e in extents]
            vs = tuple(self.var(v, t) for v, t in zip(names, dtypes, strict=True))
            return S.Parallel(vs, extents, self.block(n.body), self.annotations(options), loc=loc)
        args, options = self.arguments(call, 1, 3, "kind", "type", "annotations")
        parts = list(map(self.expr, args))
        if len(parts) == 1:
            parts = [E.Const(0, parts[0].dtype), parts[0], E.Const(1, parts[0].dtype)]
        if len(parts) != 3:
            self.fail(call, "a loop has one or three bounds")
        kind = str(self.data(options["kind"])) if "kind" in options else _LOOP_OF[str(called)]
        start, stop, step = parts
        v = self.var(n.target, self.dtype(options["type"]) if "type" in options else stop.dtype)
        return S.For(v, start, stop, step, self.block(n.body), kind, self.annotations(options), loc=loc)

    def annotations(self, options: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
        return _pairs(self.data(options["annotations"])) if "annotations" in options else ()

    def statement(self, call: ast.Call, loc: Loc) -> S.Stmt:
        """T.<operation>(...)."""
        called = _callee(call)
        if called == "alloc":
            args, options = self.arguments(call, 1, 1, "init")
            return S.Alloc(self.buffer(args[0]), self.expr(options["init"]) if "init" in options else None, loc=loc)
        if called in _DEBUG_OF:
            args, options = self.arguments(call, 0, None, "message")
            message = str(self.data(options["message"])) if "message" in options else ""
            return S.Debug(_DEBUG_OF[called], tuple(map(self.operand, args)), message, loc=loc)
        cls = STATEMENTS.get(called or "")
        if cls is None:
            self.fail(call, f"unknown operation {called or ''}".rstrip(), suggest(called or "", STATEMENTS))
        roles = {f.name: f.role for f in fields_of(cls)}
        specs = [f for f in dataclasses.fields(cls) if roles.get(f.name, "binding") != "binding"]
        required = [f.name for f in specs if f.default is dataclasses.MISSING]
        args, options = self.arguments(
            call, 2 if cls is S.Copy else len(required), len(required), *(f.name for f in specs)
        )
        fields: dict[str, Any] = {}
        for f in specs:
            given = args[required.index(f.name)] if f.name in required[: len(args)] else options.get(f.name)
            if given is None:
                continue
            if roles[f.name] == "operand":
                value = self.operand(given)
                fields[f.name] = _as_regions(value) if "Region" in str(f.type) else value
            else:
                value = self.data(given)
                fields[f.name] = _pairs(value) if f.name in ("attrs", "annotations") else value
        if cls is S.Copy and len(args) == 2:
            axes = tuple(range(len(fields["dst"].extents)))
            fields.update(domain=fields["dst"].extents, src_axes=axes, dst_axes=axes)
        if cls is S.Collective:
            fields["result"] = E.Var("_", INT32)  # `bound` puts the author's there
        made: S.Stmt = cls(**fields, loc=loc)
        return made

    # -- operands --------------------------------------------------------------------------------------------

    def operand(self, n: ast.expr) -> Any:
        """An expression, buffer, region, None or a tuple of them."""
        if isinstance(n, ast.Tuple):
            return tuple(map(self.operand, n.elts))
        if isinstance(n, ast.Constant) and n.value is None:
            return None
        if isinstance(n, ast.Name):
            return self.lookup(n)
        if _calls(n, "region"):
            args, _ = self.arguments(n, 3, 3)
            return Region(self.buffer(args[0]), self.operand(args[1]), self.operand(args[2]), loc=self.loc(n))
        return self.expr(n)

    def dtype(self, n: ast.expr) -> DType:
        return self.dtype_named(self.data(n), n)

    def dtype_named(self, name: Any, n: ast.AST) -> DType:
        try:
            return as_dtype(name)
        except TypeError:
            raise TileTypeError(f"unknown dtype {name!r}", self.loc(n)) from None

    def data(self, n: ast.expr) -> Any:
        """Literal data."""
        if isinstance(n, ast.Constant):
            return n.value
        if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.USub) and isinstance(n.operand, ast.Constant):
            return -n.operand.value  # type: ignore[operator]
        if isinstance(n, ast.Tuple):
            return tuple(map(self.data, n.elts))
        if isinstance(n, ast.List):
            return list(map(self.data, n.elts))
        if isinstance(n, ast.Dict):
            return {self.data(k): self.data(v) for k, v in zip(n.keys, n.values, strict=True) if k is not None}
        if isinstance(n, ast.Call) and len(n.args) == 1 and not n.keywords:
            if isinstance(n.func, ast.Name) and n.func.id == "float":
                return float(self.data(n.args[0]))
            called = _callee(n)
            if called == "dtype":
                return self.dtype(n.args[0])
            if called == "operand":
                return self.operand(n.args[0])
            if called == "opaque":
                self.fail(n, f"this text holds data that has no notation ({self.data(n.args[0])})")
        self.fail(n, "a literal was expected")

    # -- expressions -----------------------------------------------------------------------------------------

    def expr(self, n: ast.expr) -> E.Expr:
        loc = self.loc(n)
        if isinstance(n, ast.Name):
            found = self.lookup(n)
            if isinstance(found, E.Var):
                return found
            self.fail(n, f"{n.id} is a buffer, a value was expected")
        if isinstance(n, ast.Constant):
            return self.literal(n.value, n)
        if isinstance(n, ast.UnaryOp):
            if isinstance(n.op, ast.USub) and isinstance(n.operand, ast.Constant):
                return self.literal(-n.operand.value, n)  # type: ignore[operator]
            op = {ast.Not: "not", ast.USub: "neg", ast.Invert: "bitnot"}.get(type(n.op))
            if op is not None:
                return E.Unary(op, self.expr(n.operand), loc=loc)
        if isinstance(n, ast.BinOp) and type(n.op) in _OP_OF:
            return E.Binary(_OP_OF[type(n.op)], self.expr(n.left), self.expr(n.right), loc=loc)
        if isinstance(n, ast.Compare) and len(n.ops) == 1 and type(n.ops[0]) in _OP_OF:
            return E.Binary(_OP_OF[type(n.ops[0])], self.expr(n.left), self.expr(n.comparators[0]), loc=loc)
        if isinstance(n, ast.BoolOp):
            result = self.expr(n.values[0])
            for value in n.values[1:]:
                result = E.Binary(_OP_OF[type(n.op)], result, self.expr(value), loc=loc)
            return result
        if isinstance(n, ast.IfExp):
            return E.IfThenElse(self.expr(n.test), self.expr(n.body), self.expr(n.orelse), loc=loc)
        if isinstance(n, ast.Subscript):
            b, indices, proved = self.element(n)
            return E.Load(b, indices, proved=proved, loc=loc)
        if isinstance(n, ast.Call):
            return self.call(n)
        self.fail(n, f"unexpected {type(n).__name__} in an expression")

    def literal(self, value: Any, n: ast.expr) -> E.Const:
        if isinstance(value, (bool, int, float)):
            dtype = E.BOOL if isinstance(value, bool) else INT32 if isinstance(value, int) else FLOAT32
            return E.Const(value, dtype, loc=self.loc(n))
        self.fail(n, "a number was expected")

    def element(self, n: ast.Subscript) -> tuple[Buffer, tuple[E.Expr, ...], bool]:
        raw = isinstance(n.value, ast.Attribute) and n.value.attr == "raw"
        b = self.buffer(n.value.value if isinstance(n.value, ast.Attribute) and raw else n.value)
        indices = n.slice.elts if isinstance(n.slice, ast.Tuple) else [n.slice]
        return b, tuple(map(self.expr, indices)), raw

    def call(self, n: ast.Call) -> E.Expr:
        name, loc = _callee(n) or "", self.loc(n)
        if name == "load":
            args, options = self.arguments(n, 2, 2, "mask", "lanes", "proved")
            mask = self.expr(options["mask"]) if "mask" in options else None
            rest = {k: self.data(v) for k, v in options.items() if k != "mask"}
            return E.Load(self.buffer(args[0]), self.operand(args[1]), mask, **rest, loc=loc)
        args, _ = self.arguments(n, 1, 3)
        if name in _FIXED:
            arity, make = _FIXED[name]
            if len(args) != arity:
                self.fail(n, f"T.{name} takes {arity} arguments")
            return make(self, args, loc)
        known = INTRINSICS.get(name)
        if known is not None and known.kind == "math" and len(args) == known.arity:
            operands = tuple(map(self.expr, args))
            return E.Call(name, operands, operands[0].dtype, loc=loc)
        try:
            dtype = as_dtype(name)
        except TypeError:
            self.fail(n, f"unknown function {name}".rstrip(), suggest(name, [*_FIXED, *INTRINSICS]))
        value = self.data(args[0])
        return E.Const(float(value) if isinstance(value, str) else value, dtype, loc=loc)


_Make = Callable[[_Reader, list[ast.expr], Loc], E.Expr]
_FIXED: dict[str, tuple[int, _Make]] = {
    "cast": (2, lambda r, a, loc: E.Cast(r.expr(a[0]), r.dtype(a[1]), loc=loc)),
    "call": (3, lambda r, a, loc: E.Call(str(r.data(a[0])), r.operand(a[1]), r.dtype(a[2]), loc=loc)),
    "binary": (3, lambda r, a, loc: E.Binary(str(r.data(a[0])), r.expr(a[1]), r.expr(a[2]), loc=loc)),
    "unary": (2, lambda r, a, loc: E.Unary(str(r.data(a[0])), r.expr(a[1]), loc=loc)),
    "fma": (3, lambda r, a, loc: E.Fma(r.expr(a[0]), r.expr(a[1]), r.expr(a[2]), loc=loc)),
    "Select": (3, lambda r, a, loc: E.Select(r.expr(a[0]), r.expr(a[1]), r.expr(a[2]), loc=loc)),
    "broadcast": (2, lambda r, a, loc: E.Broadcast(r.expr(a[0]), r.data(a[1]), loc=loc)),
    "ramp": (3, lambda r, a, loc: E.Ramp(r.expr(a[0]), r.data(a[1]), r.data(a[2]), loc=loc)),
}


def _binary(op: str) -> _Make:
    return lambda r, a, loc: E.Binary(op, r.expr(a[0]), r.expr(a[1]), loc=loc)


def _unary(op: str) -> _Make:
    return lambda r, a, loc: E.Unary(op, r.expr(a[0]), loc=loc)


_FIXED.update({op: (2, _binary(op)) for op in BINARY_FUNCTIONS})
_FIXED.update({op: (1, _unary(op)) for op in UNARY_FUNCTIONS})


def _pairs(value: Any) -> tuple[tuple[str, Any], ...]:
    """A dict in the text stands for a tuple of (name, value)."""
    return tuple(value.items()) if isinstance(value, dict) else tuple(value)


def _as_regions(value: Any) -> Any:
    """A buffer's name where a region belongs means all of it."""
    if isinstance(value, tuple):
        return tuple(map(_as_regions, value))
    if isinstance(value, Buffer):
        return Region(value, tuple(E.Const(0, INT32) for _ in value.shape), value.shape)
    return value
