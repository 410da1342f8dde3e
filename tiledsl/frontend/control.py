"""What rewritten kernels call: assignment, staged loops and branches, lazy operators (`rewrite.py` lists the calls).

Everything decides at trace time: a condition, bound or value that is an IR expression is staged, anything else runs
as the Python it is.
"""

from __future__ import annotations

import builtins
import operator
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import Loc, TileError, TileNameError, TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.builder import Block, Builder, current
from tiledsl.frontend.location import error, here
from tiledsl.frontend.loops import LoopSpec, close_loop, open_loop
from tiledsl.frontend.promotion import as_number, convert, is_number
from tiledsl.frontend.storage import BufferRef, Cell, RegionRef
from tiledsl.frontend.strictness import refuse
from tiledsl.frontend.values import Undefined, Value, Vector, as_bool, as_value, common, to_dtype
from tiledsl.ir import (
    BOOL,
    Atomic,
    Binary,
    Break,
    Buffer,
    Const,
    Continue,
    Debug,
    Expr,
    If,
    IfThenElse,
    Load,
    Return,
    Stmt,
    Unary,
    Var,
    Wait,
    While,
)
from tiledsl.ir.walk import loads_of, substitute, walk

__all__ = ["CONTROL", "Control", "Tracer", "choice_dtype", "if_then_else", "tracer"]

_MISSING = object()
_META_ITERATIONS = 100_000  # a Python `while` that runs this long while tracing will not end


class Tracer(Builder):
    """A builder with the Python side of tracing: open loops, function activations, where names were assigned."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.loops: list[_Loop] = []
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
        return {n: values.get(n, _MISSING) for n in self.names}

    def note_changes(self) -> None:
        """Remembers which names the region has rebound so far."""
        assigned = tracer("a name").assigned
        for name, value in self.snapshot().items():
            if not _same(value, self.before[name]):
                self.changed[name] = assigned.get((id(self.frame), name))
                self.last[name] = value

    def tuple_of(self, values: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(self._undefined(n) if values[n] is _MISSING else values[n] for n in self.names)

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
        if self.before[name] is not _MISSING:
            reason = f"{where} rebinds it"
            help = f"give the new value a name of its own, and use it inside the {what}"
        if scalar:
            help = f"make it a variable before the {what}: {name} = T.alloc_var(T.{as_value(value, name).dtype})"
        return Undefined(name, reason, notes, help, self.last.get(name, _MISSING))

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


class _Branch(_Region):
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


class _Loop(_Region):
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
            if name in self.changed and self.before[name] is not _MISSING:
                refused = error(
                    "loop-carried",
                    TileValueError,
                    f"{name} is rebound in this loop, and its new value would be read in the next iteration",
                    loc=self.changed[name] or self.loc,
                    notes=(f"the loop begins at {self.loc}",),
                    help=f"a name is an immutable value; make it a variable before the loop: "
                    f"{name} = T.alloc_var(T.int32, init=...)",
                )
                refuse(refused, f"every iteration begins with the value that {name} has before the loop")

    def leave(self) -> tuple[Any, ...]:
        values = dict(zip(self.names, self.after("loop"), strict=True))
        return tuple(values[n] for n in self.after_names)


class _For(_Loop):
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
        values = CONTROL.freeze(self.iterable, self.targets[0] if self.targets else "")
        self.enter(staged=False)
        try:
            yield from values
        finally:
            self.exit()


class _While(_Loop):
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


class Control:
    """The facade of rewritten code; stateless (the state is the thread's current tracer)."""

    # -- names ----------------------------------------------------------------------------------
    def assign(self, name: str, value: Any) -> Any:
        """What `name = value` binds: a let, an allocated buffer, or an existing variable after storing into it."""
        frame = sys._getframe(1)
        return self._bind(name, value, frame.f_locals.get(name, _MISSING), frame)

    def _bind(self, name: str, value: Any, old: Any, frame: FrameType) -> Any:
        if isinstance(value, Undefined):
            value = self.read(value)
        builder = tracer("an assignment")
        if isinstance(value, Cell) and not value.bound:
            value.bound = True
            rename(value.buffer, name)
        elif isinstance(old, Cell) and (isinstance(value, Value) or is_number(value)):
            if value is not old:
                old.store(value)
            return old
        else:
            if isinstance(value, BufferRef) and value.buffer.name == "":
                rename(value.buffer, name)
            value = self.freeze(value, name)
        builder.assigned[id(frame), name] = here()
        return value

    def freeze(self, value: Any, name: str) -> Any:
        """The value at this moment: expressions become lets, also inside tuples, lists and dicts."""
        if isinstance(value, Cell) and not value.bound:
            return value
        if isinstance(value, Vector):
            return Vector([self._freeze_value(x, f"{name}_{k}") for k, x in enumerate(value.lanes)])
        if isinstance(value, Value):
            return self._freeze_value(value, name)
        if type(value) is tuple and any(isinstance(v, (Value, tuple)) for v in value):
            return tuple(self.freeze(v, name) for v in value)
        if type(value) is list:
            value[:] = [self.freeze(v, name) if type(v) is not list else v for v in value]
        elif type(value) is dict:
            for k, v in value.items():
                if isinstance(v, Value):
                    value[k] = self._freeze_value(v, f"{name}_{k}") if not _unbound_cell(v) else v
        return value

    def _freeze_value(self, value: Value, name: str) -> Value:
        expr = value.expr
        if isinstance(expr, (Var, Const)) and expr.dtype is value.dtype:
            return value if type(value) is Value else Value(expr)
        builder = current("an assignment")
        if not builder.in_kernel and not loads_of(expr):
            return value  # before T.Kernel: shape arithmetic
        return Value(builder.let(name or "t", convert(expr, value.dtype)))

    def unpack(self, value: Any, names: tuple[str, ...], star: int) -> list[Any]:
        """The parts of a tuple assignment, all evaluated before the first target is bound."""
        if isinstance(value, (Value, BufferRef, RegionRef)) and len(names) != 1:
            raise error(
                "unpack-scalar",
                TileTypeError,
                f"{value!r} cannot be unpacked into {len(names)} names",
                help="a buffer or value is one object; index it to get its elements" if len(names) > 1 else None,
            )
        try:
            items = list(value)
        except TypeError:
            raise error("not-iterable", TileTypeError, f"{value!r} cannot be unpacked into names") from None
        if star >= 0:
            tail = len(names) - star - 1
            items = [*items[:star], items[star : len(items) - tail], *items[len(items) - tail :]]
        if len(items) != len(names):
            raise error(
                "unpack-count", TileValueError, f"{len(items)} values cannot be unpacked into {len(names)} names"
            )
        return [self.freeze(v, n) for v, n in zip(items, names, strict=True)]

    def augment(self, name: str, op: str, old: Any, value: Any) -> Any:
        """What `name op= value` binds."""
        new = getattr(operator, op)(old, value)
        frame = sys._getframe(1)
        return new if new is old else self._bind(name, new, old, frame)

    def declare(self, name: str, annotation: Any) -> Any:
        """`name: annotation` without a value."""
        return tracer("a declaration").declare(name, annotation)

    def assign_as(self, name: str, annotation: Any, value: Any) -> Any:
        """`name: annotation = value`: a dtype annotation converts."""
        frame = sys._getframe(1)
        if isinstance(annotation, DType) and (isinstance(value, Value) or is_number(value)):
            value = Value(to_dtype(value, annotation))
        return self._bind(name, value, frame.f_locals.get(name, _MISSING), frame)

    def read(self, value: Any) -> Any:
        """A name that a staged region may have left undefined."""
        if not isinstance(value, Undefined):
            return value
        refused = error(
            "undefined-after-region",
            TileNameError,
            f"{value.name} has no value here: {value.reason}",
            notes=value.notes,
            help=value.help,
        )
        if not is_number(value.last) and not isinstance(value.last, (str, DType)):
            raise refused
        refuse(refused, f"{value.name} is {value.last!r}, which tracing bound last, whatever ran")
        return value.last

    # -- loops and branches ---------------------------------------------------------------------
    def range_(self, function: Any, *args: Any, **kw: Any) -> Any:
        """`range(...)` in a for statement is a staged serial loop, unless the author's `range` is something else."""
        if function is not builtins.range:
            return function(*args, **kw)
        if kw or not 1 <= len(args) <= 3:
            raise error("range-arguments", TileTypeError, f"range takes 1 to 3 arguments, got {len(args) + len(kw)}")
        return LoopSpec.serial("range", *args)

    def loop(self, iterable: Any, targets: tuple[str, ...], carried: tuple[str, ...], after: tuple[str, ...]) -> _For:
        return _For(iterable, targets, carried, after, sys._getframe(1))

    def while_(
        self, cond: Callable[[], Any], forever: bool, carried: tuple[str, ...], after: tuple[str, ...]
    ) -> _While:
        return _While(cond, forever, carried, after, sys._getframe(1))

    def if_(self, cond: Any, names: tuple[str, ...]) -> _Branch:
        return _Branch(cond, names, sys._getframe(1))

    def jump(self, what: str) -> bool:
        """True: a Python loop, really "break" or "continue"."""
        builder = tracer(what)
        loop = builder.loops[-1]
        if not loop.staged:
            if len(builder.blocks) > loop.depth:
                raise error(
                    "jump-from-python-loop",
                    TileSyntaxError,
                    f"{what} depends on a run-time condition, but the loop is a Python loop",
                    notes=(f"the loop at {loop.loc} runs while tracing",),
                    help="loop with T.serial or range",
                )
            return True
        spec = loop.iterable if isinstance(loop, _For) else None
        if what == "break" and isinstance(spec, LoopSpec) and (spec.kind == "parallel" or len(spec.ranges) > 1):
            raise error(
                "break-nest",
                TileSyntaxError,
                f"break cannot leave {spec.what}",
                help="use continue to skip an iteration, or nested T.serial loops",
            )
        builder.emit(Break(loc=here()) if what == "break" else Continue(loc=here()), what)
        return False

    def return_(self, has_value: bool) -> bool:
        """True: really return (nothing staged is open in this function)."""
        builder = tracer("return")
        kind = builder.activations[-1][0] if builder.activations else "kernel"
        if kind == "kernel" and has_value:
            raise error(
                "kernel-returns-value",
                TileSyntaxError,
                "a kernel returns no value",
                help="store results into a parameter; out_idx makes it the result",
            )
        if not builder.staged_depth():
            return True
        if kind != "kernel" or has_value:
            raise error(
                "return-from-region",
                TileSyntaxError,
                "return from inside a staged loop or branch",
                help="assign to a T.alloc_var and return after the loop or branch",
            )
        if builder.inside("parallel"):
            raise error(
                "return-in-parallel",
                TileSyntaxError,
                "return inside T.Parallel",
                help="use continue to skip an iteration",
            )
        builder.emit(Return(loc=here()), "return")
        return False

    # -- lazy operators -------------------------------------------------------------------------
    def _operand(self, thunk: Callable[[], Any], what: str) -> Any:
        with current(what).scratch(f"the right side of `{what}`" if what in ("and", "or") else f"`{what}`"):
            return thunk()

    def logical(self, op: str, result: Any, *rest: Callable[[], Any]) -> Any:
        """`and` or `or`: the right sides are evaluated only where the left does not decide."""
        for thunk in rest:
            if not isinstance(result, Value):
                if bool(result) == (op == "or"):
                    return result
                result = self._operand(thunk, op)
                continue
            other = self._operand(thunk, op)
            result = Value(Binary(op, as_bool(result, f"`{op}`"), as_bool(other, f"`{op}`"), loc=here()))
        return result

    def not_(self, x: Any) -> Any:
        return Value(Unary("not", as_bool(x, "`not`"), loc=here())) if isinstance(x, Value) else not x

    def choose(self, cond: Any, then: Callable[[], Any], orelse: Callable[[], Any]) -> Any:
        """`then if cond else orelse`."""
        if not isinstance(cond, Value):
            return then() if cond else orelse()
        return if_then_else(cond, self._operand(then, "a if c else b"), self._operand(orelse, "a if c else b"))

    def chain(self, left: Any, *links: tuple[str, Callable[[], Any]]) -> Any:
        """`a < b < c`: every operand once."""
        result: Any = True
        for op, thunk in links:
            right = self._operand(thunk, "a < b < c")
            try:
                link = _COMPARE[op](left, right)
            except TileError:
                raise
            except TypeError as e:  # Python's own, of objects that do not compare
                raise error("not-a-value", TileTypeError, f"a comparison of {left!r} and {right!r}: {e}") from None
            result = link if result is True else self.logical("and", result, lambda link=link: link)  # type: ignore[misc]
            if not isinstance(result, Value) and not result:
                return result
            left = right
        return result

    # -- the rest -------------------------------------------------------------------------------
    def assert_(self, cond: Any, message: Callable[[], Any]) -> None:
        if isinstance(cond, Value):
            current("assert").emit(Debug("assert", (as_bool(cond, "assert"),), str(message()), loc=here()), "assert")
        elif not cond:
            raise AssertionError(message())

    def breakpoint_(self, function: Callable[[], Any]) -> Any:
        """Stops the interpreter here, with the block's buffers in scope."""
        if function is builtins.breakpoint and current("breakpoint").in_kernel:
            current("breakpoint").emit(Debug("breakpoint", (), "", loc=here()), "breakpoint")
            return None
        return function()


def if_then_else(cond: Any, t: Any, f: Any) -> Value:
    """Lazy choice between two scalars, in their common dtype."""
    for side in (t, f):
        if not isinstance(side, Value) and not is_number(side):
            raise error(
                "choose-objects",
                TileTypeError,
                f"a run-time condition can only choose between numbers, got {type(side).__name__}",
                help="use an `if` statement with T.copy or stores in its branches",
            )
    dtype = choice_dtype("if_then_else", t, f)
    return Value(IfThenElse(as_bool(cond, "a condition"), to_dtype(t, dtype), to_dtype(f, dtype), loc=here()))


def choice_dtype(op: str, t: Any, f: Any) -> DType:
    """Dtype of a choice: two literals promote like numbers."""
    if isinstance(t, Value) or isinstance(f, Value):
        return common(op, t, f)
    return common(op, as_value(as_number(t), op), as_value(as_number(f), op))


def _unbound_cell(v: Value) -> bool:
    return isinstance(v, Cell) and not v.bound


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "is_": operator.is_, "is_not": operator.is_not, "in": lambda a, b: a in b, "not_in": lambda a, b: a not in b,
}  # fmt: skip

CONTROL = Control()
