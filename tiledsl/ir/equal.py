"""Alpha-equivalence of trees through one canonical form: names, locations and (unless asked) hints left out."""

from __future__ import annotations

from typing import Any

from tiledsl.dtypes import DType
from tiledsl.ir.buffer import Buffer
from tiledsl.ir.expr import Var
from tiledsl.ir.node import Node, fields_of
from tiledsl.ir.stmt import Function, Stmt

__all__ = ["canonical", "equal"]

Tree = Node | tuple[Stmt, ...]


def equal(f: Tree, g: Tree, hints: bool = False) -> bool:
    """True when the trees (functions, kernels, blocks or expressions) differ at most in the names of variables
    and buffers, in locations and, unless `hints` is set, in hints. Names of functions, kernels and parameters
    count: callers use them."""
    return f is g or canonical(f, hints) == canonical(g, hints)


def canonical(tree: Tree, hints: bool = False) -> list[str]:
    """The tree as a list of words that determines it up to what `equal` ignores. Variables and buffers are
    numbered where they are bound, free ones where they first appear."""
    writer = _Writer(hints)
    writer.put(tree)
    return writer.out


class _Writer:
    def __init__(self, hints: bool) -> None:
        self.hints = hints
        self.out: list[str] = []
        self.bound = 0  # two kernels may bind one variable: each binding counts
        self.names: dict[Var | Buffer, str] = {}

    def put(self, x: Any) -> None:
        if isinstance(x, (Var, Buffer)):
            self.out.append(self.names[x]) if x in self.names else self.bind(x)
        elif isinstance(x, Function):
            self.function(x)
        elif isinstance(x, Node):
            self.node(x)
        elif isinstance(x, tuple):
            self.out.append(f"({len(x)}")
            for item in x:
                self.put(item)
        elif isinstance(x, dict):
            self.out.append(f"{{{len(x)}")
            for key in sorted(x, key=repr):
                self.put(key)
                self.put(x[key])
        else:
            self.out.append(x.name if isinstance(x, DType) else repr(x))

    def bind(self, x: Any) -> None:
        """A number for a variable or buffer, and what it is."""
        if isinstance(x, (Var, Buffer)):
            self.names[x] = f"{'%' if isinstance(x, Var) else '@'}{self.bound}"
            self.bound += 1
            self.out += (self.names[x], ":")
            for f in fields_of(type(x))[1:]:  # all but the name
                self.put(getattr(x, f.name))
        elif isinstance(x, tuple):
            self.out.append(f"({len(x)}")
            for item in x:
                self.bind(item)
        else:  # a parameter, or None
            self.put(x)

    def node(self, n: Node) -> None:
        self.out.append(type(n).__name__)
        for f in fields_of(type(n)):
            if f.role == "binding":
                self.bind(getattr(n, f.name))
            elif f.role != "hint" or self.hints:
                self.put(getattr(n, f.name))

    def function(self, f: Function) -> None:
        """Symbols first: everything else is written in them, and their order is part of the ABI."""
        self.out += ("Function", repr(f.name), f.stage, repr(f.outputs))
        for bound in (f.symbols, f.params, f.workspaces):
            self.bind(bound)
        self.put(f.kernels)
        if self.hints:
            self.put(f.attrs)
