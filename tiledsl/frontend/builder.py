"""The IR under construction: nested open blocks, and the checks that every emitted statement passes.

The builder knows IR only. It refuses statements outside a kernel, variables and buffers used outside the block
that defines them, and loads whose buffer was written between their evaluation in Python and their use in the IR
(the author's Python would have seen the old value).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tiledsl.errors import Loc, TileNameError, TileSyntaxError, TileValueError
from tiledsl.frontend.describe import expr_text
from tiledsl.frontend.location import error, here
from tiledsl.frontend.symbols import is_symbol
from tiledsl.ir import (
    Alloc,
    Atomic,
    Break,
    Buffer,
    Continue,
    Expr,
    Kernel,
    Let,
    Load,
    ReducerOp,
    Region,
    Return,
    Stmt,
    Store,
    Var,
    fields_of,
)
from tiledsl.ir.walk import loads_of, reads, walk, writes

__all__ = ["Block", "Builder", "current", "is_tracing", "tracing"]


@dataclass(eq=False)
class Block:
    """Statements being collected. kind: "kernel" | "for" | "while" | "parallel" | "if" | "scratch"."""

    kind: str
    loc: Loc | None
    epoch: int
    statements: list[Stmt] = field(default_factory=list)
    open: bool = True
    dead: bool = False  # after break, continue or return nothing more is emitted
    outer_loads: dict[Buffer, tuple[Load, int]] = field(default_factory=dict)  # used here, evaluated before this block
    written: set[Buffer] = field(default_factory=set)
    nest: tuple[tuple[Var, Expr], ...] = ()  # the axes of a T.Parallel: variable and extent


class _State(threading.local):
    def __init__(self) -> None:
        self.builders: list[Builder] = []


_state = _State()


def is_tracing() -> bool:
    return bool(_state.builders)


def current(what: str) -> Builder:
    """The builder of the kernel being traced; an author's error where there is none."""
    if not _state.builders:
        raise error(
            "not-tracing",
            TileSyntaxError,
            f"{what} is only possible inside a kernel",
            help="call it in a function decorated with @T.prim_func, @T.macro or @tiledsl.jit",
        )
    return _state.builders[-1]


@contextmanager
def tracing(builder: Builder) -> Iterator[Builder]:
    """Makes `builder` the current one of this thread."""
    _state.builders.append(builder)
    try:
        yield builder
    finally:
        _state.builders.pop()


class Builder:
    """One function being traced."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.blocks: list[Block] = []
        self.kernels: list[Kernel] = []
        self.workspaces: list[Buffer] = []
        self.reducers: dict[Buffer, str] = {}  # what each combines with
        self._collecting: set[Buffer] = set()  # reducers that are not finalized
        self.attrs: list[tuple[str, Any]] = []
        self.kernel_attrs: list[tuple[str, Any]] = []
        self.preamble: list[Stmt] = []  # what stands before T.Kernel: every kernel begins with it
        self.launch: Any = None  # the KernelLaunch that is open
        self.updates: list[Store] = []  # of the open kernel: stores that may read what they write
        self.barriers: Any = None  # what T.create_list_of_mbarrier made
        self.random: Any = None  # where the threads of the open kernel are in their random numbers
        self.reducer: Any = None  # of the innermost T.attr(..., "reduce_scope", ...)
        self.owner: dict[Var | Buffer, Block | None] = {}  # None: the whole function
        self.symbols: dict[Var, Loc | None] = {}  # shape symbols used, with their first use
        self.origins: dict[Var, frozenset[Load]] = {}  # the shared and global elements that a let was computed from
        self._epoch = 0
        self._loads: dict[int, tuple[Load, int]] = {}
        self._last_write: dict[Buffer, int] = {}

    # -- blocks ---------------------------------------------------------------------------------
    def push(self, kind: str, loc: Loc | None = None) -> Block:
        self._epoch += 1
        block = Block(kind, loc or here(), self._epoch)
        self.blocks.append(block)
        return block

    def pop(self, block: Block) -> tuple[Stmt, ...]:
        """Closes the innermost block, which must be this one."""
        assert self.blocks and self.blocks[-1] is block, "blocks are closed in the order of a stack"
        self.blocks.pop()
        block.open = False
        if block.kind in ("for", "while", "parallel"):
            stale = [b for b in block.outer_loads if b in block.written]
            if stale:
                raise self._stale(stale[0], expr_text(block.outer_loads[stale[0]][0]), block.loc)
        if self.blocks and block.kind != "scratch":
            outer = self.blocks[-1]
            outer.written |= block.written
            for buffer, (load, epoch) in block.outer_loads.items():
                self._note_outer_load(outer, buffer, load, epoch)
        return tuple(block.statements)

    def abandon(self, block: Block) -> None:
        """Forgets a block and all inside it; an exception is passing through."""
        if block in self.blocks:
            del self.blocks[self.blocks.index(block) :]

    @contextmanager
    def scratch(self, what: str) -> Iterator[None]:
        """Evaluates an operand that may not run statements (the lazy sides of `and`, `or`, `if else`; conditions)."""
        if not self.blocks:
            yield
            return
        block = self.push("scratch")
        try:
            yield
        except BaseException:
            self.abandon(block)
            raise
        self.pop(block)
        if block.statements:
            raise error(
                "statement-in-operand",
                TileSyntaxError,
                f"{what} cannot run statements",
                loc=block.statements[0].loc,
                help="call the macro first and bind its result to a name",
            )

    def inside(self, kind: str) -> Block | None:
        """The innermost open block of this kind."""
        return next((b for b in reversed(self.blocks) if b.kind == kind), None)

    @property
    def in_kernel(self) -> bool:
        return bool(self.blocks)

    # -- names ----------------------------------------------------------------------------------
    def define(self, x: Var | Buffer) -> None:
        """x is visible until the innermost open block closes; a view, as long as the buffer it views."""
        if isinstance(x, Buffer) and x.alias_of is not None:
            self.owner[x] = self.owner.get(x.alias_of)
        else:
            self.owner[x] = self.blocks[-1] if self.blocks else None

    def _check_visible(self, x: Var | Buffer, loc: Loc | None) -> None:
        if x not in self.owner:
            if isinstance(x, Var):
                raise error(
                    "foreign-value",
                    TileNameError,
                    f"{x.name} belongs to another kernel",
                    loc=loc,
                    help="pass it as a parameter of this kernel",
                )
            raise error(
                "foreign-buffer",
                TileNameError,
                f"buffer {x.name} belongs to another kernel",
                loc=loc,
                help="pass it as a parameter of this kernel, or allocate it here",
            )
        block = self.owner[x]
        if block is not None and not block.open:
            what = "buffer" if isinstance(x, Buffer) else "value"
            region = {"kernel": "T.Kernel", "if": "branch", "scratch": "expression"}.get(block.kind, "loop")
            help = f"define it before the {region}" + ("" if what == "buffer" else ", or keep it in a T.alloc_var")
            raise error(
                "outside-region",
                TileNameError,
                f"{what} {x.name} is used outside the {region} that defines it",
                loc=loc,
                notes=(f"the {region} begins at {block.loc}",) if block.loc else (),
                help="a launch hands data on through tensors only" if block.kind == "kernel" else help,
            )

    # -- loads and stores -----------------------------------------------------------------------
    def note_load(self, load: Load) -> Load:
        """Remembers when Python evaluated this element access."""
        self._loads[id(load)] = (load, self._epoch)
        return load

    def _stale(self, buffer: Buffer, text: str, loc: Loc | None) -> Exception:
        return error(
            "stale-load",
            TileValueError,
            f"{text} was read before {buffer.name} was written, and is used after it",
            loc=loc,
            help=f"bind it to a name first: x = {text}",
        )

    def _note_outer_load(self, block: Block, buffer: Buffer, load: Load, epoch: int) -> None:
        if block.kind != "kernel" and epoch < block.epoch:
            block.outer_loads.setdefault(buffer, (load, epoch))

    def _check_operand(self, n: Any, loc: Loc | None) -> None:
        if isinstance(n, Var):
            if is_symbol(n):
                self.symbols.setdefault(n, loc)
            else:
                self._check_visible(n, loc)
            return
        if isinstance(n, Buffer):
            self._check_visible(n, loc)
            return
        if isinstance(n, Load) and id(n) in self._loads:
            epoch, root = self._loads[id(n)][1], n.buffer.root
            if self._last_write.get(root, -1) > epoch:
                raise self._stale(root, expr_text(n), loc)
            if self.blocks:
                self._note_outer_load(self.blocks[-1], root, n, epoch)
        for f in fields_of(type(n)):
            if f.role == "operand":
                value = getattr(n, f.name)
                for item in value if isinstance(value, tuple) else (value,):
                    if isinstance(item, (Expr, Buffer, Region)):
                        self._check_operand(item, loc)

    def check(self, e: Expr | Region, loc: Loc | None = None) -> None:
        """Checks an operand that is not part of an emitted statement yet (a condition, a loop bound)."""
        self._check_operand(e, loc or here())

    # -- statements -----------------------------------------------------------------------------
    def require_kernel(self, what: str, loc: Loc | None = None) -> None:
        if not self.blocks:
            raise error(
                "outside-kernel",
                TileSyntaxError,
                f"{what} must be inside `with T.Kernel(...)`",
                loc=loc,
                help="move it into the T.Kernel block",
            )

    def at_start(self, s: Stmt, what: str) -> None:
        """Emits a statement that may also stand before T.Kernel, where it depends on parameters and symbols only."""
        if self.blocks:
            self.emit(s, what)
        else:
            self.preamble.append(s)

    def emit(self, s: Stmt, what: str = "this operation", *, checked: bool = False) -> None:
        """Appends a statement to the innermost open block. checked: its operands were checked before its body."""
        self.require_kernel(what, s.loc)
        block = self.blocks[-1]
        if block.dead:
            self._define(s)  # statements behind it, which are dropped as well, may name it
            return
        if not checked:
            self._check_operand(s, s.loc)
        if self.reducers:
            self._check_reducers(s)
        for buffer in writes(s):
            self.note_write(buffer)
        self._define(s)
        block.statements.append(s)
        if isinstance(s, (Break, Continue, Return)):
            block.dead = True

    def _define(self, s: Stmt) -> None:
        """What the statement brings into being."""
        if isinstance(s, Let):
            self.define(s.var)
        elif isinstance(s, Alloc):
            self.define(s.buffer)
        elif isinstance(s, Atomic) and s.result is not None:
            self.define(s.result)

    def _check_reducers(self, s: Stmt) -> None:
        """A reducer can be read once it is finalized."""
        if isinstance(s, ReducerOp):
            (self._collecting.discard if s.action == "finalize" else self._collecting.add)(s.buffer)
            read = {load.buffer.root for load in loads_of(s)}
        else:
            read = {b.root for b in reads(s)}
        for buffer in read & self._collecting:
            raise error(
                "reducer-read",
                TileValueError,
                f"{buffer.name} is read before T.finalize_reducer({buffer.name})",
                loc=s.loc,
                help="a reducer collects contributions; finalize it after the T.Parallel, then read it",
            )

    def note_write(self, buffer: Buffer) -> None:
        root = buffer.root
        self._epoch += 1
        self._last_write[root] = self._epoch
        self.blocks[-1].written.add(root)

    def let(self, name: str, value: Expr) -> Var:
        """An immutable value from here to the end of the block."""
        loc = here()
        var = Var(name, value.dtype, loc=loc)
        self.origins[var] = self.sources(value)
        self.emit(Let(var, value, loc=loc), "a value that depends on kernel data")
        return var

    def sources(self, e: Expr) -> frozenset[Load]:
        """The loads of shared and global memory that an expression was computed from, through lets."""
        found: set[Load] = set()
        for n in walk(e):
            if isinstance(n, Var):
                found |= self.origins.get(n, frozenset())
            elif isinstance(n, Load) and n.buffer.scope in ("shared", "global"):
                found.add(n)
        return frozenset(found)
