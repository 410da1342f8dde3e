"""The AST rewriting: control flow, assignment and boolean operators become calls of `control`; nothing else changes.

    x = e                  x = tile.assign("x", e)
    a, b = e               tmp = tile.unpack(e, ("a", "b"), -1); then one assignment per target
    x += e                 x = tile.augment("x", "iadd", x, e)
    if c: ... else: ...    t = tile.if_(c, names)
                           if t.then():    ...; (names) = t.end()
                           if t.orelse():  ...; (names) = t.end()
                           (names) = t.leave()
    for i in range(n): ... t = tile.loop(tile.range_(range, n), ("i",), carried, after)
                           for i in t: ...
                           (after) = t.leave()
    while c: ...           t = tile.while_(lambda: c, literal, carried, after); for _ in t: ...
    break                  if tile.jump("break"): break
    return e               if tile.return_(has_value): return e
    a and b, not a         tile.logical("and", a, lambda: b), tile.not_(a)
    a if c else b          tile.choose(c, lambda: a, lambda: b)
    0 <= i < n             tile.chain(0, ("le", lambda: i), ("lt", lambda: n))
    f"{x}..", print(x)     tile.text((x, -1, ""), ".."), tile.print_(print, x)

Every new node gets the position of what it replaces, so locations and tracebacks stay those of the author's file.
"""

from __future__ import annotations

import ast
import inspect
import itertools
import linecache
import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import CellType, CodeType, FunctionType
from typing import Any, TypeVar

from tiledsl.errors import Loc, TileSyntaxError
from tiledsl.frontend.liveness import Liveness, analyse
from tiledsl.frontend.location import error

__all__ = ["Compiled", "Source", "compiled", "read_source", "rewritten"]

FACADE = "__tile__"  # the free variable of rewritten functions that holds `control`

_T = TypeVar("_T", bound=ast.AST)
_REFUSED: dict[type[ast.AST], tuple[str, str]] = {
    ast.Try: ("try", "kernels have no exceptions; check conditions with `if` or T.device_assert"),
    ast.ClassDef: ("class", "define the class outside the kernel"),
    ast.AsyncFunctionDef: ("async def", "define the function outside the kernel"),
    ast.AsyncFor: ("async for", "use a plain for loop"),
    ast.AsyncWith: ("async with", "use a plain with statement"),
    ast.Match: ("match", "use if / elif"),
    ast.Global: ("global", "kernels cannot rebind global names; use T.alloc_var for a mutable scalar"),
    ast.Nonlocal: ("nonlocal", "kernels cannot rebind outer names; use T.alloc_var for a mutable scalar"),
    ast.NamedExpr: (":=", "assign on a line of its own"),
    ast.Yield: ("yield", "kernels and macros are no generators"),
    ast.YieldFrom: ("yield from", "kernels and macros are no generators"),
    ast.Await: ("await", "kernels are not asynchronous"),
}
for _name in ("TryStar", "TypeAlias"):
    if hasattr(ast, _name):
        _REFUSED[getattr(ast, _name)] = (_name, "move it outside the kernel")


@dataclass(frozen=True)
class Source:
    """The parsed definition of a function, with the positions of its file."""

    tree: ast.FunctionDef
    file: str
    qualname: str

    def loc(self, n: ast.AST) -> Loc:
        """The place of a node."""
        line, col = n.lineno, n.col_offset  # type: ignore[attr-defined]
        raw = linecache.getline(self.file, line).encode()
        end_line, end = getattr(n, "end_lineno", line), getattr(n, "end_col_offset", None)
        text = raw.split(b"#")[0].rstrip() if end_line != line or end is None else raw[:end]
        return Loc(self.file, line, len(raw[:col].decode()) + 1, len(text.decode()) + 1, self.qualname)


def read_source(pyfunc: Callable[..., Any]) -> Source:
    """Parses the function's source where it stands in its file."""
    code = pyfunc.__code__
    qualname = pyfunc.__qualname__.replace("<locals>.", "")
    try:
        lines, first = inspect.getsourcelines(pyfunc)
    except (OSError, TypeError):
        raise error(
            "no-source", TileSyntaxError, f"the source of {qualname} is not available",
            help="define the kernel in a file, a notebook cell or a doctest",
        ) from None  # fmt: skip
    text, shift = "".join(lines), first - 1
    if text[:1] in " \t":
        text, shift = "if True:\n" + text, shift - 1  # keeps columns and multi-line strings as they are
    tree = ast.parse(text)
    ast.increment_lineno(tree, shift)
    body = tree.body[0].body if isinstance(tree.body[0], ast.If) else tree.body
    found = body[0]
    if not isinstance(found, ast.FunctionDef):
        raise error("not-a-function", TileSyntaxError, f"{qualname} is not defined by a `def` statement")
    return Source(found, code.co_filename, qualname)


class _Rewriter(ast.NodeTransformer):
    """One function's body."""

    def __init__(self, source: Source, liveness: Liveness) -> None:
        self.source, self.liveness = source, liveness
        self.count = itertools.count(1)

    # -- small constructors ---------------------------------------------------------------------
    def temp(self) -> str:
        return f"{FACADE}{next(self.count)}"

    def call(self, at: ast.AST, method: str, *args: ast.expr, of: str = FACADE) -> ast.Call:
        f = ast.Attribute(ast.Name(of, ast.Load()), method, ast.Load())
        return _at(ast.Call(f, list(args), []), at)

    def lazily(self, e: ast.expr) -> ast.Lambda:
        none = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        return _at(ast.Lambda(none, self.visit(e)), e)

    def rebind(self, at: ast.AST, names: tuple[str, ...], value: ast.expr) -> list[ast.stmt]:
        """(x, y) = value."""
        if not names:
            return [_at(ast.Expr(value), at)]
        target = ast.Tuple([ast.Name(n, ast.Store()) for n in names], ast.Store())
        return [_at(ast.Assign([target], value), at)]

    def body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for s in statements:
            new = self.visit(s)
            out.extend(new if isinstance(new, list) else [new])
        return out

    # -- refused --------------------------------------------------------------------------------
    def visit(self, node: ast.AST) -> Any:
        refused = _REFUSED.get(type(node))
        if refused is not None:
            raise error(
                "unsupported-construct",
                TileSyntaxError,
                f"`{refused[0]}` is not possible inside a kernel",
                loc=self.source.loc(node),
                help=refused[1],
            )
        return super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> Any:
        return node  # a helper or macro: its own function

    def visit_Lambda(self, node: ast.Lambda) -> Any:
        return node

    # -- names and assignment -------------------------------------------------------------------
    def visit_Name(self, node: ast.Name) -> Any:
        if isinstance(node.ctx, ast.Load) and node.id in self.liveness.fragile:
            return self.call(node, "read", node)
        return node

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "breakpoint" and not node.args and not node.keywords:
            return self.call(node, "breakpoint_", node.func)
        if isinstance(node.func, ast.Name) and node.func.id == "print":
            made = self.call(node, "print_", node.func, *node.args)
            made.keywords = node.keywords
            return made
        return node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> Any:
        parts: list[ast.expr] = []
        for part in node.values:
            if isinstance(part, ast.FormattedValue):
                form = ast.Constant("") if part.format_spec is None else self.visit(part.format_spec)
                parts.append(ast.Tuple([self.visit(part.value), ast.Constant(part.conversion), form], ast.Load()))
            else:
                parts.append(part)
        return self.call(node, "text", *parts)

    def visit_Assign(self, node: ast.Assign) -> Any:
        value = self.visit(node.value)
        if len(node.targets) == 1:
            return self.store(node, node.targets[0], value)
        temp = self.temp()
        name = next((t.id for t in node.targets if isinstance(t, ast.Name)), "")
        frozen = self.call(node, "freeze", value, ast.Constant(name))
        out: list[ast.stmt] = [_at(ast.Assign([ast.Name(temp, ast.Store())], frozen), node)]
        for target in node.targets:
            out += self.store(node, target, ast.Name(temp, ast.Load()))
        return out

    def store(self, at: ast.AST, target: ast.expr, value: ast.expr) -> list[ast.stmt]:
        """target = value, for any kind of target."""
        match target:
            case ast.Name(id=name):
                new = self.call(at, "assign", ast.Constant(name), value)
                return [_at(ast.Assign([target], new), at)]
            case ast.Tuple(elts=elts) | ast.List(elts=elts):
                return self.unpack(at, elts, value)
            case ast.Attribute(value=owner, attr=name):
                stored = self.call(target, "set_attribute", self.visit(owner), ast.Constant(name), value)
                return [_at(ast.Expr(stored), at)]
        self.generic_visit(target)
        return [_at(ast.Assign([target], value), at)]

    def unpack(self, at: ast.AST, elts: list[ast.expr], value: ast.expr) -> list[ast.stmt]:
        temp = self.temp()
        star = next((i for i, t in enumerate(elts) if isinstance(t, ast.Starred)), -1)
        plain = [t.value if isinstance(t, ast.Starred) else t for t in elts]
        names = ast.Tuple([ast.Constant(t.id if isinstance(t, ast.Name) else "") for t in plain], ast.Load())
        parts = self.call(at, "unpack", value, names, ast.Constant(star))
        out: list[ast.stmt] = [_at(ast.Assign([ast.Name(temp, ast.Store())], parts), at)]
        for i, t in enumerate(plain):
            item = ast.Subscript(ast.Name(temp, ast.Load()), ast.Constant(i), ast.Load())
            out += self.store(at, t, item)
        return out

    def visit_AugAssign(self, node: ast.AugAssign) -> Any:
        if isinstance(node.target, ast.Attribute):
            owner, attr = self.visit(node.target.value), ast.Constant(node.target.attr)
            op = ast.Constant(_AUGMENTED[type(node.op)])
            stored = self.call(node.target, "augment_attribute", owner, attr, op, self.visit(node.value))
            return _at(ast.Expr(stored), node)
        if not isinstance(node.target, ast.Name):
            return self.generic_visit(node)
        name = node.target.id
        old = self.visit(_at(ast.Name(name, ast.Load()), node.target))
        op = ast.Constant(_AUGMENTED[type(node.op)])
        new = self.call(node, "augment", ast.Constant(name), op, old, self.visit(node.value))
        return _at(ast.Assign([node.target], new), node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> Any:
        if not isinstance(node.target, ast.Name):
            return self.store(node, node.target, self.visit(node.value)) if node.value else node
        name = ast.Constant(node.target.id)
        annotation = self.visit(node.annotation)
        if node.value is None:
            new = self.call(node, "declare", name, annotation)
        else:
            new = self.call(node, "assign_as", name, annotation, self.visit(node.value))
        return _at(ast.Assign([node.target], new), node)

    # -- control flow ---------------------------------------------------------------------------
    def visit_If(self, node: ast.If) -> Any:
        names = self.liveness.regions[node].after
        t = self.temp()
        out: list[ast.stmt] = [
            _at(
                ast.Assign(
                    [ast.Name(t, ast.Store())], self.call(node.test, "if_", self.visit(node.test), _names(names))
                ),
                node.test,
            )
        ]
        for method, branch in (("then", node.body), ("orelse", node.orelse)):
            if branch:
                end = self.rebind(node.test, names, self.call(node.test, "end", of=t))
                out.append(_at(ast.If(self.call(node.test, method, of=t), self.body(branch) + end, []), node.test))
        return out + self.rebind(node.test, names, self.call(node.test, "leave", of=t))

    def visit_For(self, node: ast.For) -> Any:
        self._no_else(node)
        header: ast.expr = node.iter
        if isinstance(header, ast.Call) and isinstance(header.func, ast.Name) and header.func.id == "range":
            args = [self.visit(a) for a in header.args]
            made = self.call(header, "range_", header.func, *args)
            made.keywords = [self.visit(k) for k in header.keywords]
            header = made
        else:
            header = self.visit(header)
        targets = tuple(n.id for n in ast.walk(node.target) if isinstance(n, ast.Name))
        return self._loop(node, "loop", [header, _names(targets)], node.target, node.iter)

    def visit_With(self, node: ast.With) -> Any:
        """`with c as (a, b):` unpacks like an assignment."""
        if isinstance(node.items[-1].context_expr, ast.Name) and node.items[0].optional_vars is not None:
            first = ast.unparse(node.items[0].optional_vars)
            more = ", ".join(ast.unparse(i.context_expr) for i in node.items[1:])
            raise error(
                "with-names", TileSyntaxError, f"`as {first}, {more}` names {first} alone; {more} is another context",
                loc=self.source.loc(node.items[-1].context_expr), help=f"write `as ({first}, {more})`",
            )  # fmt: skip
        self.generic_visit(node)
        for item in reversed(node.items):
            if item.optional_vars is not None:
                names = _names(tuple(n.id for n in ast.walk(item.optional_vars) if isinstance(n, ast.Name)))
                item.context_expr = self.call(item.context_expr, "context", item.context_expr, names)
            if isinstance(item.optional_vars, (ast.Tuple, ast.List)):
                target, temp = item.optional_vars, self.temp()
                item.optional_vars = _at(ast.Name(temp, ast.Store()), target)
                node.body[:0] = self.store(target, target, _at(ast.Name(temp, ast.Load()), target))
        return node

    def visit_While(self, node: ast.While) -> Any:
        self._no_else(node)
        forever = isinstance(node.test, ast.Constant) and bool(node.test.value)
        args = [self.lazily(node.test), ast.Constant(forever)]
        return self._loop(node, "while_", args, ast.Name(self.temp(), ast.Store()), node.test)

    def _loop(
        self, node: ast.For | ast.While, method: str, args: list[ast.expr], target: ast.expr, at: ast.expr
    ) -> list[ast.stmt]:
        names = self.liveness.regions[node]
        t = self.temp()
        made = self.call(at, method, *args, _names(names.carried), _names(names.after))
        return [
            _at(ast.Assign([ast.Name(t, ast.Store())], made), at),
            _at(ast.For(target, ast.Name(t, ast.Load()), self.body(node.body), []), at),
            *self.rebind(at, names.after, self.call(at, "leave", of=t)),
        ]

    def _no_else(self, node: ast.For | ast.While) -> None:
        if node.orelse:
            raise error(
                "loop-else",
                TileSyntaxError,
                "`else` on a loop is not possible inside a kernel",
                loc=self.source.loc(node.orelse[0]),
                help="test a T.alloc_var after the loop",
            )

    def visit_Break(self, node: ast.Break | ast.Continue) -> Any:
        what = ast.Constant(type(node).__name__.lower())
        return _at(ast.If(self.call(node, "jump", what), [node], []), node)

    visit_Continue = visit_Break

    def visit_Return(self, node: ast.Return) -> Any:
        has_value = ast.Constant(node.value is not None)
        self.generic_visit(node)
        return _at(ast.If(self.call(node, "return_", has_value), [node], []), node)

    def visit_Assert(self, node: ast.Assert) -> Any:
        message = self.lazily(node.msg or _at(ast.Constant(""), node))
        return _at(ast.Expr(self.call(node, "assert_", self.visit(node.test), message)), node)

    # -- expressions ----------------------------------------------------------------------------
    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        op = ast.Constant("and" if isinstance(node.op, ast.And) else "or")
        first, *rest = node.values
        return self.call(node, "logical", op, self.visit(first), *(self.lazily(v) for v in rest))

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        if isinstance(node.op, ast.Not):
            return self.call(node, "not_", self.visit(node.operand))
        return self.generic_visit(node)

    def visit_IfExp(self, node: ast.IfExp) -> Any:
        return self.call(node, "choose", self.visit(node.test), self.lazily(node.body), self.lazily(node.orelse))

    def visit_Compare(self, node: ast.Compare) -> Any:
        if len(node.ops) == 1:
            return self.generic_visit(node)
        links = [
            _at(ast.Tuple([ast.Constant(_COMPARED[type(op)]), self.lazily(e)], ast.Load()), e)
            for op, e in zip(node.ops, node.comparators, strict=True)
        ]
        return self.call(node, "chain", self.visit(node.left), *links)


_AUGMENTED: dict[type[ast.operator], str] = {
    ast.Add: "iadd", ast.Sub: "isub", ast.Mult: "imul", ast.Div: "itruediv", ast.FloorDiv: "ifloordiv",
    ast.Mod: "imod", ast.BitAnd: "iand", ast.BitOr: "ior", ast.BitXor: "ixor", ast.LShift: "ilshift",
    ast.RShift: "irshift", ast.Pow: "ipow", ast.MatMult: "imatmul",
}  # fmt: skip
_COMPARED: dict[type[ast.cmpop], str] = {
    ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge", ast.Eq: "eq", ast.NotEq: "ne",
    ast.Is: "is_", ast.IsNot: "is_not", ast.In: "in", ast.NotIn: "not_in",
}  # fmt: skip


def _at(n: _T, origin: ast.AST) -> _T:
    """n and its new children, at the position of `origin`."""
    for child in ast.walk(n):
        if "lineno" in child._attributes and not hasattr(child, "lineno"):
            ast.copy_location(child, origin)
    return n


def _names(names: tuple[str, ...]) -> ast.Tuple:
    return ast.Tuple([ast.Constant(n) for n in names], ast.Load())


def _inner_code(module: CodeType, name: str, qualname: str) -> CodeType:
    """The code of the function `name` inside the factory of a compiled module, under its original name."""
    factory = next(c for c in module.co_consts if isinstance(c, CodeType))
    found = next(c for c in factory.co_consts if isinstance(c, CodeType) and c.co_name == name)
    return _renamed(found, found.co_qualname, qualname)


def _renamed(code: CodeType, old: str, new: str) -> CodeType:
    consts = tuple(_renamed(c, old, new) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_qualname=new + code.co_qualname.removeprefix(old), co_consts=consts)


@dataclass(frozen=True)
class Compiled:
    """A rewritten function: its code, and where it and its parameters are defined."""

    code: CodeType
    loc: Loc
    parameters: dict[str, Loc]


# By identity: equal code objects may come from different files, or from a notebook cell whose annotations changed.
_compiled: dict[int, tuple[CodeType, Compiled]] = {}


def _compile(pyfunc: Callable[..., Any]) -> Compiled:
    source = read_source(pyfunc)
    function, code = source.tree, pyfunc.__code__
    liveness = analyse(function)
    rewriter = _Rewriter(source, liveness)
    function.body = rewriter.body(function.body)
    function.decorator_list, function.returns = [], None
    arguments = function.args
    arguments.defaults, arguments.kw_defaults = [], [None] * len(arguments.kwonlyargs)
    everyone = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg)
    places = {a.arg: source.loc(a) for a in everyone if a is not None}
    definition = source.loc(function)
    for a in everyone:
        if a is not None:
            a.annotation = None
    free = ast.arguments(
        posonlyargs=[],
        args=[ast.arg(n) for n in (*code.co_freevars, FACADE)],
        kwonlyargs=[],
        kw_defaults=[],
        defaults=[],
    )
    keep = _at(ast.Expr(ast.Name(FACADE, ast.Load())), function)  # the facade is a free variable even if unused
    docstring = 1 if ast.get_docstring(function, clean=False) is not None else 0
    function.body.insert(docstring, keep)
    local = {*code.co_varnames, *code.co_cellvars, *code.co_freevars}
    if (
        function.name in _mentioned(code) and function.name not in local
    ):  # its own name is the module's, not the factory's
        function.body.insert(docstring, _at(ast.Global([function.name]), function))
    extra: dict[str, Any] = {"type_params": []} if sys.version_info >= (3, 12) else {}
    factory = ast.FunctionDef("factory", free, [function], [], **extra)
    module = ast.fix_missing_locations(ast.Module([_at(factory, function)], []))
    compiled = compile(module, code.co_filename, "exec", dont_inherit=True)
    return Compiled(_inner_code(compiled, function.name, code.co_qualname), definition, places)


def _mentioned(code: CodeType) -> set[str]:
    """Global names that a function, or one inside it, mentions."""
    return {*code.co_names}.union(*(_mentioned(c) for c in code.co_consts if isinstance(c, CodeType)))


def compiled(pyfunc: Callable[..., Any]) -> Compiled:
    """The rewritten code of a function; compiled once."""
    code = pyfunc.__code__
    if id(code) not in _compiled:
        _compiled[id(code)] = code, _compile(pyfunc)
    return _compiled[id(code)][1]


def rewritten(pyfunc: Callable[..., Any], facade: object) -> FunctionType:
    """pyfunc with staged control flow; shares its globals and closure cells."""
    code, new = pyfunc.__code__, compiled(pyfunc).code
    cells = dict(zip(code.co_freevars, pyfunc.__closure__ or (), strict=True))
    cells[FACADE] = CellType(facade)
    closure = tuple(cells[name] for name in new.co_freevars)
    made = FunctionType(new, pyfunc.__globals__, pyfunc.__name__, pyfunc.__defaults__, closure)
    made.__kwdefaults__ = pyfunc.__kwdefaults__
    made.__qualname__ = pyfunc.__qualname__
    return made
