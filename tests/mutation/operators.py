"""The mistakes that can be made in a source file: one change each, found by walking its syntax tree.

Left out are places that cannot change what is computed: imports, annotations, docstrings, texts of messages, what is
raised, locations and hints, `__all__`, `__repr__`, decorators.
"""

from __future__ import annotations

import ast
import copy
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

__all__ = ["Mutant", "mutants", "sample"]


@dataclass
class Mutant:
    """One change: text[start:end] (bytes) of a file becomes `new`. where: the enclosing function; nth: which of the
    equal changes of that function."""

    file: str
    line: int
    where: str
    kind: str
    old: str
    new: str
    start: int
    end: int
    nth: int = 0
    state: str = ""  # killed, survived, explained
    by: str = ""
    how: str = ""
    tests: int = 0  # how many were run
    seconds: float = 0.0  # of CPU time
    reason: str = ""  # why a survivor is no mistake

    @property
    def key(self) -> str:
        """What stays the same when the file changes elsewhere."""
        return f"{self.file}:{self.where}:{self.kind}:{self.old}:{self.new}:{self.nth}"


_COMPARE = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
            ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is}  # fmt: skip
_BINARY = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
           ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift}  # fmt: skip
_ORDERED = (ast.Sub, ast.FloorDiv, ast.Mod, ast.LShift, ast.RShift)
# Names of operations, dtypes and functions that stand for one another in a mistake.
_WORDS = {"lt": "le", "le": "lt", "add": "sub", "sub": "add", "min": "max", "max": "min", "and": "or", "or": "and",
          "floordiv": "truncdiv", "mod": "truncmod", "shl": "shr", "shr": "shl", "eq": "ne", "ne": "eq", "mul": "add",
          "bitand": "bitor", "bitor": "bitand", "float32": "float64", "float64": "float32", "float16": "bfloat16",
          "bfloat16": "float16", "int32": "int64", "int64": "int32", "uint32": "int32", "uint64": "int64",
          "left": "right", "right": "left", "shared": "local", "global": "shared", "==": "!=", "!=": "==",
          "<": "<=", "<=": "<", ">": ">=", ">=": ">"}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any", "lshr": "ashr", "ashr": "lshr", "zext": "sext",
          "sext": "zext", "sitofp": "uitofp", "uitofp": "sitofp", "fptosi": "fptoui", "and_": "or_", "or_": "and_",
          "icmp_signed": "icmp_unsigned", "icmp_unsigned": "icmp_signed", "fcmp_ordered": "fcmp_unordered",
          "fcmp_unordered": "fcmp_ordered", "widen": "narrow", "lt": "le", "le": "lt", "fadd": "fsub", "floor": "ceil",
          "add": "sub", "sub": "add"}  # fmt: skip
# Calls whose arguments may change places.
_COMMUTATIVE = frozenset(["add", "mul", "and_", "or_", "xor", "fadd", "fmul", "eq", "ne", "max_", "min_", "smax",
                          "smin", "same_type", "promote", "gcd", "zip"])  # fmt: skip
_QUIET_KEYWORDS = frozenset(["loc", "strict", "help", "notes", "note", "message", "stacklevel", "maxsize", "name",
                             "title"])  # fmt: skip
_QUIET_CALLS = frozenset(["error", "require", "warn", "fail", "refuse", "describe", "print", "TypeVar"])
_QUIET_FUNCTIONS = frozenset(["__repr__", "__rich_repr__"])


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """All changes of one file, in order."""
    data = text.encode()
    offsets = [0]
    for row in data.splitlines(keepends=True):
        offsets.append(offsets[-1] + len(row))
    count: dict[str, int] = {}
    for n, where in _executable(ast.parse(text), "", ""):
        for kind, new in _changed(n):
            start = offsets[n.lineno - 1] + n.col_offset
            end = offsets[(n.end_lineno or n.lineno) - 1] + (n.end_col_offset or 0)
            line = n.lineno
            if kind == "condition":  # of a statement: its text is that of the test
                test = n.test  # type: ignore[union-attr]
                start = offsets[test.lineno - 1] + test.col_offset
                end = offsets[test.end_lineno - 1] + test.end_col_offset
                line = test.lineno
            m = Mutant(file, line, where, kind, data[start:end].decode(), new, start, end)
            if m.old == new:
                continue
            first = m.key
            m.nth = count[first] = count.get(first, -1) + 1
            yield m


def sample(every: Mapping[str, list[Mutant]], count: int, seed: int) -> list[Mutant]:
    """`count` mutants, from each file in proportion to how many it has, at least one.

    Within a file those with the smallest hash of seed and key are taken, so that a change elsewhere in the repository
    leaves most of the choice as it was.
    """
    total = sum(map(len, every.values()))
    if not count:
        return []
    shares = {f: max(1.0, count * len(found) / total) for f, found in every.items() if found}
    scale = (count - sum(s <= 1 for s in shares.values())) / max(1e-9, sum(s for s in shares.values() if s > 1))
    exact = {f: s if s <= 1 else max(1.0, s * scale) for f, s in shares.items()}
    taken = {f: int(x) for f, x in exact.items()}
    rest = sorted(exact, key=lambda f: (taken[f] - exact[f], f))
    for f in rest[: max(0, count - sum(taken.values()))]:
        taken[f] += 1
    chosen: list[Mutant] = []
    for f, n in taken.items():
        order = sorted(every[f], key=lambda m: hashlib.sha256(f"{seed}:{m.key}".encode()).digest())
        lines: set[int] = set()
        for m in order:  # one per line, as long as there are lines
            if len(lines) < n and m.line not in lines:
                lines.add(m.line)
                chosen.append(m)
    return chosen


def _executable(tree: ast.AST, where: str, parent: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Nodes that decide what is computed, with the function they are in."""
    for n in ast.iter_child_nodes(tree):
        if isinstance(n, (ast.Import, ast.ImportFrom, ast.Raise, ast.Assert, ast.JoinedStr, ast.arguments)):
            continue
        if isinstance(n, ast.AnnAssign):
            if n.value is not None:
                yield from _executable(ast.Expr(n.value), where, "value")
            continue
        if isinstance(n, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in n.targets):
            continue
        if isinstance(n, ast.keyword) and n.arg in _QUIET_KEYWORDS:
            continue
        if isinstance(n, ast.Call) and _quiet(_called(n)):
            continue
        if isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant):
            continue
        if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test):
            continue
        inside = where
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)):
            if n.name in _QUIET_FUNCTIONS:
                continue
            inside = f"{where}.{n.name}" if where else n.name
            inside += "()" * isinstance(n, ast.FunctionDef)
            for child in n.body:
                yield from _executable(ast.Module([child], []), inside, "")
            continue
        if isinstance(n, (ast.expr, ast.stmt)):
            yield n, inside
        if isinstance(n, ast.Subscript) and isinstance(n.value, ast.Name) and n.value.id[0].isupper():
            continue  # a type
        yield from _executable(n, inside, "")


def _called(n: ast.Call) -> str:
    return n.func.id if isinstance(n.func, ast.Name) else n.func.attr if isinstance(n.func, ast.Attribute) else ""


def _quiet(name: str) -> bool:
    return name in _QUIET_CALLS or name.endswith(("Error", "error", "Warning"))


def _text(n: ast.AST) -> str:
    return f"({ast.unparse(n)})"


def _changed(n: ast.expr | ast.stmt) -> Iterator[tuple[str, str]]:
    """(kind of mistake, the mutated text) of a node."""
    if isinstance(n, ast.Compare) and len(n.ops) == 1 and type(n.ops[0]) in _COMPARE:
        yield "comparison", _text(ast.Compare(n.left, [_COMPARE[type(n.ops[0])]()], n.comparators))
    elif isinstance(n, ast.BinOp) and type(n.op) in _BINARY and not _builds_text(n):
        yield "operator", _text(ast.BinOp(n.left, _BINARY[type(n.op)](), n.right))
        if isinstance(n.op, _ORDERED):
            yield "swapped", _text(ast.BinOp(n.right, n.op, n.left))
    elif isinstance(n, ast.BoolOp):
        yield "logic", _text(ast.BoolOp(ast.Or() if isinstance(n.op, ast.And) else ast.And(), n.values))
        if len(n.values) > 1:
            yield "lost condition", _text(ast.BoolOp(n.op, n.values[:-1]) if len(n.values) > 2 else n.values[0])
            yield "lost condition", _text(ast.BoolOp(n.op, n.values[1:]) if len(n.values) > 2 else n.values[1])
    elif isinstance(n, ast.UnaryOp) and isinstance(n.op, (ast.Not, ast.USub, ast.Invert)):
        yield "negation", _text(n.operand)
    elif isinstance(n, ast.IfExp):
        yield "branches", _text(ast.IfExp(n.test, n.orelse, n.body))
    elif isinstance(n, ast.Constant):
        if type(n.value) is bool:
            yield "constant", str(not n.value)
        elif type(n.value) is int and abs(n.value) < 1 << 16:
            yield "constant", str(n.value + 1)
        elif isinstance(n.value, str) and n.value in _WORDS:
            yield "word", repr(_WORDS[n.value])
    elif isinstance(n, ast.Call):
        yield from _call(n)
    elif isinstance(n, ast.Expr) and isinstance(n.value, ast.Call) and not _quiet(_called(n.value)):
        yield "lost effect", "pass"
    elif isinstance(n, ast.AugAssign):
        yield "lost effect", "pass"
    elif isinstance(n, (ast.Continue, ast.Break)):
        yield "lost jump", "pass"
    elif isinstance(n, (ast.If, ast.While)):
        if isinstance(n, ast.If) and not (len(n.body) == 1 and isinstance(n.body[0], ast.Raise)):
            yield "condition", "True"
        yield "condition", "False"


def _call(n: ast.Call) -> Iterator[tuple[str, str]]:
    name = _called(n)
    if name in _CALLS:
        other = copy.deepcopy(n.func)
        if isinstance(other, ast.Name) and name in ("min", "max", "any", "all"):
            other.id = _CALLS[name]
            yield "call", ast.unparse(ast.Call(other, n.args, n.keywords))
        elif isinstance(other, ast.Attribute):
            other.attr = _CALLS[name]
            yield "call", ast.unparse(ast.Call(other, n.args, n.keywords))
    plain = [a for a in n.args if not isinstance(a, ast.Starred)]
    fixed = name in _COMMUTATIVE or name in _CALLS or name in ("isinstance", "getattr", "hasattr", "setattr", "super")
    if len(plain) == len(n.args) == 2 and not fixed:
        yield "swapped", ast.unparse(ast.Call(n.func, n.args[::-1], n.keywords))
    for k in n.keywords:
        if k.arg is not None and k.arg not in _QUIET_KEYWORDS and k.arg != "key":
            yield "lost keyword", ast.unparse(ast.Call(n.func, n.args, [x for x in n.keywords if x is not k]))


def _builds_text(n: ast.BinOp) -> bool:
    return any(
        isinstance(x, ast.JoinedStr) or (isinstance(x, ast.Constant) and isinstance(x.value, str)) for x in ast.walk(n)
    )
