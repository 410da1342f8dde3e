"""What is open while a kernel is traced: the tracer, branches, loops.

A branch or loop knows which names it may rebind, so that reading one that has no single value behind it is an error
that says so (language.md 0.6).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tiledsl.errors import Loc, TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.builder import Block, Builder, current
from tiledsl.frontend.location import error, here
from tiledsl.frontend.loops import LoopSpec, close_loop, open_loop
from tiledsl.frontend.promotion import convert, is_number
from tiledsl.frontend.storage import BufferRef, Cell, RegionRef
from tiledsl.frontend.strictness import refuse
from tiledsl.frontend.values import Undefined, Value, Vector, as_bool, as_value
from tiledsl.ir import (
    BOOL,
    Atomic,
    Break,
    Buffer,
    Const,
    Expr,
    If,
    Load,
    Return,
    Stmt,
    Unary,
    Var,
    Wait,
    While,
)
from tiledsl.ir.walk import loads_of, substitute, walk

__all__ = ["MISSING", "Branch", "ForLoop", "Tracer", "WhileLoop", "freeze", "rename", "spin", "tracer"]

MISSING = object()
_META_ITERATIONS = 100_000  # a Python `while` that runs this long while tracing will not end


class Tracer(Builder):
    """A builder with the Python side of tracing: open loops, function activations, where names were assigned."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.loops: list[Loop] = []
        self.activations: list[tuple[str, int]] = []  # (kind, number of open blocks when it was entered)
        self.assigned: dict[tuple[int, str], Loc | None] = {}

    def declare(self, name: str, annotation: Any) -> Any:
        """`A: T.Tensor[...]` in a body; only eager kernels have it."""
        raise error(
            "declaration",
            TileSyntaxError,
            f"{name}: a parameter can be declared in the body of an eager kernel only",
            help="annotate it in the signature of the @T.prim_func",
        )

    def enter_kernel(self) -> None:
        """Called at `with T.Kernel`; the first pass over an eager kernel ends here."""

    def staged_depth(self) -> int:
        """Open staged regions of the running function (the T.Kernel block is none)."""
        base = self.activations[-1][1] if self.activations else 0
        return sum(b.kind != "kernel" for b in self.blocks[base:])


def tracer(what: str) -> Tracer:
    builder = current(what)
    assert isinstance(builder, Tracer)
    return builder


def rename(buffer: Buffer, name: str) -> None:
    """Gives a buffer the author's name, which Python reveals just after the allocation."""
    object.__setattr__(buffer, "name", name)


def freeze(value: Any, name: str) -> Any:
    """The value at this moment: expressions become lets, also inside tuples, lists and dicts."""
    if isinstance(value, Cell) and not value.bound:
        return value
    if isinstance(value, Vector):
        return Vector([_freeze_value(x, f"{name}_{k}") for k, x in enumerate(value.lanes)])
    if isinstance(value, Value):
        return _freeze_value(value, name)
    if type(value) is tuple and any(isinstance(v, (Value, tuple)) for v in value):
        return tuple(freeze(v, name) for v in value)
    if type(value) is list:
        value[:] = [freeze(v, name) if type(v) is not list else v for v in value]
    elif type(value) is dict:
        for k, v in value.items():
            if isinstance(v, Value):
                value[k] = _freeze_value(v, f"{name}_{k}") if not _unbound_cell(v) else v
    return value


def _freeze_value(value: Value, name: str) -> Value:
    expr = value.expr
    if isinstance(expr, (Var, Const)) and expr.dtype is value.dtype:
        return value if type(value) is Value else Value(expr)
    builder = current("an assignment")
    if not builder.in_kernel and not loads_of(expr):
        return value  # before T.Kernel: shape arithmetic
    return Value(builder.let(name or "t", convert(expr, value.dtype)))


def _unbound_cell(v: Value) -> bool:
    return isinstance(v, Cell) and not v.bound


def _same(a: Any, b: Any) -> bool:
    """The binding did not change (equal Python constants count as the same)."""
    return a is b or (type(a) is type(b) and isinstance(a, (int, float, str)) and a == b)


class _Region:
    """A staged region's view of the author's local names."""

    def __init__(self, names: tuple[str, ...], frame: FrameType) -> None:
        self.names, self.frame = names, frame
        self.before = self.snapshot()
        self.changed: dict[str, Loc | None] = {}
        self.last: dict[str, Any] = {}  # what tracing bound them to
        self.staged = False
        self.loc = here()

    def snapshot(self) -> dict[str, Any]:
        values = self.frame.f_locals
        return {n: values.get(n, MISSING) for n in self.names}

    def note_changes(self) -> None:
        """Remembers which names the region has rebound so far."""
        assigned = tracer("a name").assigned
        for name, value in self.snapshot().items():
            if not _same(value, self.before[name]):
                self.changed[name] = assigned.get((id(self.frame), name))
                self.last[name] = value

    def tuple_of(self, values: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(self._undefined(n) if values[n] is MISSING else values[n] for n in self.names)

    def _undefined(self, name: str, what: str = "", value: Any = None) -> Undefined:
        """What a name becomes that has no value here; `what`: the region that took it."""
        if not what:
            return Undefined(name, "it is not assigned on every path", (), "assign it first")
        where = f"this {what}" if self.loc is None else f"the {what} at line {self.loc.line}"
        place = self.changed.get(name)
        notes = (f"it was assigned at {place}",) if place else ()
        scalar = isinstance(value, Value) or is_number(value)
        reason = f"it belongs to {where}"
        help = f"define it before the {what}"
        if self.before[name] is not MISSING:
            reason = f"{where} rebinds it"
            help = f"give the new value a name of its own, and use it inside the {what}"
        if scalar:
            help = f"make it a variable before the {what}: {name} = T.alloc_var(T.{as_value(value, name).dtype})"
        return Undefined(name, reason, notes, help, self.last.get(name, MISSING))

    def after(self, what: str) -> tuple[Any, ...]:
        """The names' values after the region: what they were, or unusable where the region changed them."""
        now = self.snapshot()
        if not self.staged:
            return self.tuple_of(now)
        undefined = {n: self._undefined(n, what, now[n]) for n in self.changed}
        return tuple(
            undefined[n] if n in undefined else value
            for n, value in zip(self.names, self.tuple_of(self.before), strict=True)
        )


class Branch(_Region):
    """`if`: the object whose methods bracket the two bodies."""

    def __init__(self, cond: Any, names: tuple[str, ...], frame: FrameType) -> None:
        super().__init__(names, frame)
        self.staged = isinstance(cond, Value)
        self.bodies: dict[str, tuple[Any, ...]] = {"then": (), "orelse": ()}
        self.side = ""
        self.block: Block | None = None
        if self.staged:
            self.cond: Expr = as_bool(cond, "a condition")
            current("a condition").check(self.cond)
            if not current("a condition").in_kernel:
                raise error(
                    "if-outside-kernel",
                    TileSyntaxError,
                    f"`if {cond!r}` depends on a run-time value but stands outside T.Kernel",
                    help="move it into the T.Kernel block, or use T.if_then_else in an expression",
                )
        else:
            self.truth = bool(cond)

    def _enter(self, side: str) -> bool:
        if self.staged:
            self.side = side
            self.block = current("if").push("if", self.loc)
            return True
        return self.truth == (side == "then")

    def then(self) -> bool:
        return self._enter("then")

    def orelse(self) -> bool:
        return self._enter("orelse")

    def end(self) -> tuple[Any, ...]:
        if not self.staged:
            return self.tuple_of(self.snapshot())
        assert self.block is not None
        self.bodies[self.side] = current("if").pop(self.block)
        self.note_changes()
        return self.tuple_of(self.before)

    def leave(self) -> tuple[Any, ...]:
        if self.staged:
            current("if").emit(If(self.cond, self.bodies["then"], self.bodies["orelse"], loc=self.loc), checked=True)
        return self.after("branch")


class Loop(_Region):
    """`for` and `while`: iterating it traces the body once when staged, else as often as Python would."""

    def __init__(self, carried: tuple[str, ...], after: tuple[str, ...], frame: FrameType) -> None:
        self.carried = carried
        super().__init__(tuple(dict.fromkeys((*after, *carried))), frame)
        self.after_names = after
        self.depth = 0

    def enter(self, staged: bool) -> None:
        builder = tracer("a loop")
        self.staged = staged
        self.before = self.snapshot()
        builder.loops.append(self)
        self.depth = len(builder.blocks)

    def exit(self) -> None:
        builder = tracer("a loop")
        builder.loops.pop()
        if not self.staged:
            return
        self.note_changes()
        for name in self.carried:
            if name in self.changed and self.before[name] is not MISSING:
                refused = error(
                    "loop-carried",
                    TileValueError,
                    f"{name} is rebound in this loop, and its new value would be read in the next iteration",
                    loc=self.changed[name] or self.loc,
                    notes=(f"the loop begins at {self.loc}",),
                    help=f"a name is an immutable value; make it a variable before the loop: {self._var(name)}",
                )
                refuse(refused, f"every iteration begins with the value that {name} has before the loop")

    def _var(self, name: str) -> str:
        """The variable that could stand for a name."""
        last, first = self.last.get(name), self.before[name]
        scalar = isinstance(last, Value) or is_number(last)
        dtype = as_value(last, name).dtype if scalar else "int32"
        return f"{name} = T.alloc_var(T.{dtype}, init={first if is_number(first) else '...'})"

    def leave(self) -> tuple[Any, ...]:
        values = dict(zip(self.names, self.after("loop"), strict=True))
        return tuple(values[n] for n in self.after_names)


class ForLoop(Loop):
    def __init__(
        self,
        iterable: Any,
        targets: tuple[str, ...],
        carried: tuple[str, ...],
        after: tuple[str, ...],
        frame: FrameType,
    ) -> None:
        super().__init__(carried, after, frame)
        self.iterable, self.targets = iterable, targets

    def __iter__(self) -> Iterator[Any]:
        builder = tracer("a loop")
        if isinstance(self.iterable, LoopSpec):
            loop = open_loop(builder, self.iterable, self.targets)
            if 1 < len(self.targets) != len(loop.targets):
                raise error(
                    "loop-targets",
                    TileTypeError,
                    f"this {loop.spec.what} has {len(loop.targets)} of the {len(self.targets)} indices that the names "
                    f"{', '.join(self.targets)} ask for",
                    help="give as many extents as names: `for i, j in T.Parallel(m, n):`",
                )
            self.enter(staged=True)
            yield loop.values
            self.exit()
            close_loop(builder, loop)
            return
        if isinstance(self.iterable, (Value, BufferRef, RegionRef)):
            self.iterable = tuple(self.iterable)  # a thread index, or an error
        if not hasattr(type(self.iterable), "__iter__"):
            raise error(
                "not-iterable",
                TileTypeError,
                f"a for loop runs over T.serial, T.Parallel ... or a Python sequence, not over {self.iterable!r}",
                help="count with range(n)",
            )
        values = freeze(self.iterable, self.targets[0] if self.targets else "")
        self.enter(staged=False)
        try:
            yield from values
        finally:
            self.exit()


class WhileLoop(Loop):
    def __init__(
        self, cond: Callable[[], Any], forever: bool, carried: tuple[str, ...], after: tuple[str, ...], frame: FrameType
    ) -> None:
        super().__init__(carried, after, frame)
        self.cond, self.forever = cond, forever

    def _evaluate(self) -> Any:
        with current("while").scratch("the condition of a while loop"):
            return self.cond()

    def _first(self, builder: Tracer) -> tuple[Any, bool]:
        """The condition, and whether it does something, as `while T.atomic_load(flag[0]) == 0` does."""
        if not builder.in_kernel:
            return self.cond(), False
        block = builder.push("scratch")
        try:
            cond = self.cond()
        except BaseException:
            builder.abandon(block)
            raise
        builder.pop(block)
        if block.statements and not isinstance(cond, Value):
            cond = self._evaluate()  # says that it cannot
        return cond, bool(block.statements)

    def __iter__(self) -> Iterator[Any]:
        builder = tracer("a loop")
        cond, acts = self._first(builder)
        if acts:
            block = builder.push("while", self.loc)  # repeats: the condition's statements, break, the body
            done = Unary("not", as_bool(self.cond(), "a condition"), loc=self.loc)
            leave = builder.push("if", self.loc)
            builder.emit(Break(loc=self.loc))
            builder.emit(If(done, builder.pop(leave), loc=self.loc), "a while loop")
            yield from self._trace(builder, block, Const(True, BOOL))
            return
        if not isinstance(cond, Value) and not self.forever:
            self.enter(staged=False)
            try:
                for _ in range(_META_ITERATIONS):
                    if not cond:
                        return
                    yield None
                    cond = self._evaluate()
                raise error(
                    "endless-python-while",
                    TileValueError,
                    f"this while loop ran {_META_ITERATIONS} times while tracing: its condition is plain Python",
                    loc=self.loc,
                    help="for a loop at run time compare kernel values, for example a T.alloc_var",
                )
            finally:
                self.exit()
        test = as_bool(cond, "a condition")
        builder.check(test)
        yield from self._trace(builder, builder.push("while", self.loc), test)

    def _trace(self, builder: Tracer, block: Block, test: Expr) -> Iterator[Any]:
        """The body, once, into the open block of the loop."""
        self.enter(staged=True)
        yield None
        self.exit()
        body = builder.pop(block)
        until = spin(test, body)
        if until is not None:
            builder.emit(Wait(until, loc=self.loc), "a loop that waits")
            return
        if isinstance(test, Const) and test.value and not any(isinstance(n, (Break, Return)) for n in walk(body)):
            raise error(
                "endless-loop",
                TileValueError,
                "this loop never ends: its condition is always true, and nothing leaves it",
                loc=self.loc,
                help="break out of it, or compare kernel values, for example a T.alloc_var",
            )
        builder.emit(While(test, body, loc=self.loc), "a while loop", checked=True)


def spin(test: Expr, body: tuple[Stmt, ...]) -> Expr | None:
    """What a loop waits for that does nothing but look at shared or global memory; None for other loops."""
    until: Expr = Unary("not", test, loc=test.loc)
    if body:  # a condition of atomic loads: they, then a break
        *before, last = body
        if not (isinstance(last, If) and len(last.then) == 1 and isinstance(last.then[0], Break) and not last.orelse):
            return None
        loads: dict[Var, Expr] = {}
        for s in before:
            if not (isinstance(s, Atomic) and s.op == "load" and s.result is not None):
                return None
            loads[s.result] = Load(s.buffer, s.indices, loc=s.loc)
        until = substitute(last.cond, loads)
    memory = [load.buffer.root.scope in ("shared", "global") for load in loads_of(until)]
    return until if any(memory) else None
