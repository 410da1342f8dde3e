"""What rewritten kernels call: assignment, staged loops and branches, lazy operators (`rewrite.py` lists the calls).

Everything decides at trace time: a condition, bound or value that is an IR expression is staged, anything else runs
as the Python it is.
"""

from __future__ import annotations

import builtins
import operator
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import TileError, TileNameError, TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend.builder import current
from tiledsl.frontend.kernel import KernelLaunch
from tiledsl.frontend.location import error, here
from tiledsl.frontend.loops import LoopSpec
from tiledsl.frontend.promotion import as_number, is_number
from tiledsl.frontend.regions import MISSING, Branch, ForLoop, Tracer, WhileLoop, freeze, rename, tracer
from tiledsl.frontend.storage import BufferRef, Cell, RegionRef
from tiledsl.frontend.strictness import refuse
from tiledsl.frontend.text import check_text, is_staged, make_text, print_values
from tiledsl.frontend.values import Undefined, Value, as_bool, as_value, common, describe, to_dtype
from tiledsl.ir import (
    Binary,
    Break,
    Continue,
    Debug,
    IfThenElse,
    Return,
    Unary,
)

__all__ = ["CONTROL", "Control", "Tracer", "choice_dtype", "if_then_else", "tracer"]


class Control:
    """The facade of rewritten code; stateless (the state is the thread's current tracer)."""

    # -- names ----------------------------------------------------------------------------------
    def assign(self, name: str, value: Any) -> Any:
        """What `name = value` binds: a let, an allocated buffer, or an existing variable after storing into it."""
        frame = sys._getframe(1)
        return self._bind(name, value, frame.f_locals.get(name, MISSING), frame)

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
            value = freeze(value, name)
        builder.assigned[id(frame), name] = here()
        return value

    def freeze(self, value: Any, name: str) -> Any:
        """The value of a chained assignment, `a = b = value`, as it is now."""
        return freeze(value, name)

    def context(self, manager: Any, names: tuple[str, ...]) -> Any:
        """The context manager of `with manager as names:`; a T.Kernel calls its indices as the author does."""
        if isinstance(manager, KernelLaunch):
            manager.names = names
        return manager

    def unpack(self, value: Any, names: tuple[str, ...], star: int) -> list[Any]:
        """The parts of a tuple assignment, all evaluated before the first target is bound."""
        if isinstance(value, (Value, BufferRef, RegionRef)) and len(names) != 1:
            raise error(
                "unpack-scalar",
                TileTypeError,
                f"{value!r} cannot be unpacked into {len(names)} names",
                help=getattr(value, "_advice", "a value is one object"),
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
                "unpack-count",
                TileValueError,
                f"{len(items)} values cannot be unpacked into {len(names)} names",
                help=getattr(value, "_advice", None),
            )
        return [freeze(v, n) for v, n in zip(items, names, strict=True)]

    def augment(self, name: str, op: str, old: Any, value: Any) -> Any:
        """What `name op= value` binds."""
        try:
            new = getattr(operator, op)(old, value)
        except TypeError as e:
            if isinstance(e, TileError) or "unsupported operand" not in str(e):
                raise
            raise error(
                "augmented-operand",
                TileTypeError,
                f"{name} is {describe(old)}, and {describe(value)} cannot be put into it: {e}",
                help=f"let {name} start as a number or T.alloc_var(dtype)",
            ) from None
        frame = sys._getframe(1)
        return new if new is old else self._bind(name, new, old, frame)

    def set_attribute(self, owner: Any, name: str, value: Any) -> None:
        """`owner.name = value`: stores into the variable that the attribute holds."""
        old = getattr(owner, name, None)
        if not isinstance(old, Cell):
            raise error(
                "attribute-assignment",
                TileSyntaxError,
                "attributes cannot be assigned inside a kernel",
                help="use a name, a list or dict entry, or T.alloc_var for a mutable scalar",
            )
        if value is not old:
            old.store(value)

    def augment_attribute(self, owner: Any, name: str, op: str, value: Any) -> None:
        """`owner.name op= value`."""
        self.set_attribute(owner, name, getattr(operator, op)(getattr(owner, name), value))

    def declare(self, name: str, annotation: Any) -> Any:
        """`name: annotation` without a value."""
        return tracer("a declaration").declare(name, annotation)

    def assign_as(self, name: str, annotation: Any, value: Any) -> Any:
        """`name: annotation = value`: a dtype annotation converts."""
        frame = sys._getframe(1)
        if isinstance(annotation, DType) and (isinstance(value, Value) or is_number(value)):
            value = Value(to_dtype(value, annotation))
        return self._bind(name, value, frame.f_locals.get(name, MISSING), frame)

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
            if not callable(function):
                raise error(
                    "range-shadowed", TileTypeError, f"range is {describe(function)} here", help="give it another name"
                )
            return function(*args, **kw)
        if kw or not 1 <= len(args) <= 3:
            raise error("range-arguments", TileTypeError, f"range takes 1 to 3 arguments, got {len(args) + len(kw)}")
        return LoopSpec.serial("range", *args)

    def loop(
        self, iterable: Any, targets: tuple[str, ...], carried: tuple[str, ...], after: tuple[str, ...]
    ) -> ForLoop:
        return ForLoop(iterable, targets, carried, after, sys._getframe(1))

    def while_(
        self, cond: Callable[[], Any], forever: bool, carried: tuple[str, ...], after: tuple[str, ...]
    ) -> WhileLoop:
        return WhileLoop(cond, forever, carried, after, sys._getframe(1))

    def if_(self, cond: Any, names: tuple[str, ...]) -> Branch:
        return Branch(cond, names, sys._getframe(1))

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
        spec = loop.iterable if isinstance(loop, ForLoop) else None
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

    def text(self, *parts: Any) -> str:
        """An f-string."""
        return make_text(parts)

    def print_(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """`print(...)`: of run-time values, when the kernel runs."""
        if function is not builtins.print or not current("print").in_kernel:
            return function(*args, **options)
        if any(map(is_staged, args)):
            return print_values(args, options)
        for x in args:
            check_text("print", x)
        return function(*args, **options)

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


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge, "eq": operator.eq, "ne": operator.ne,
    "is_": operator.is_, "is_not": operator.is_not, "in": lambda a, b: a in b, "not_in": lambda a, b: a not in b,
}  # fmt: skip
CONTROL = Control()
