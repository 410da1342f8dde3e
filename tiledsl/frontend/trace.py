"""T.prim_func and T.macro: running an author's function once to collect its IR."""

from __future__ import annotations

import builtins
import functools
import inspect
import linecache
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType, ModuleType
from typing import Any

from tiledsl.analysis.uniformity import thread_level
from tiledsl.dtypes import SCALARS, DType, as_dtype
from tiledsl.errors import (
    Loc,
    TileAttributeError,
    TileError,
    TileIndexError,
    TileNameError,
    TileSyntaxError,
    TileTypeError,
    TileValueError,
    suggest,
)
from tiledsl.frontend import location
from tiledsl.frontend.annotations import make_param
from tiledsl.frontend.builder import is_tracing, tracing
from tiledsl.frontend.control import CONTROL, Tracer, tracer
from tiledsl.frontend.habits import advice
from tiledsl.frontend.location import error
from tiledsl.frontend.regions import freeze
from tiledsl.frontend.rewrite import compiled, rewritten
from tiledsl.frontend.storage import Cell, Element
from tiledsl.frontend.symbols import is_symbol
from tiledsl.frontend.values import Value
from tiledsl.ir import Buffer, Function, Param, Var
from tiledsl.ir.printer import to_text
from tiledsl.ir.walk import free_vars

__all__ = [
    "Macro",
    "PrimFunc",
    "Ref",
    "captures",
    "finish",
    "located",
    "parameter_annotations",
    "trace_prim_func",
]


@dataclass(eq=False)
class PrimFunc:
    """A traced kernel function.

    single  an eager kernel's `return C` (one array), not `return C, D` (a tuple)
    consts  the T.const values that an eager kernel was traced with
    """

    function: Function
    pyfunc: Callable[..., Any]
    single: bool = True
    consts: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.function.name

    def __call__(self, *args: Any, **kw: Any) -> Any:
        raise error(
            "call-prim-func",
            TileTypeError,
            f"{self.name} is a kernel, not yet a compiled one",
            help="return it from a @tiledsl.jit factory, or compile it: tiledsl.compile(kernel)(...)",
        )

    def __repr__(self) -> str:
        return f"PrimFunc({self.name})"

    def script(self) -> str:
        """The IR as text, which is Python."""
        return to_text(self.function)


class Ref:
    """Annotation of a macro parameter that is a place: `x: T.Ref` may be assigned, and the caller sees it."""


def parameter_annotations(pyfunc: Callable[..., Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Annotations by parameter; strings (postponed evaluation) see globals, closure cells and `names`."""
    found = dict(pyfunc.__annotations__)
    scope = dict(names)
    for name, cell in zip(pyfunc.__code__.co_freevars, pyfunc.__closure__ or (), strict=True):
        try:
            scope[name] = cell.cell_contents
        except ValueError:
            continue
    for name, value in found.items():
        if isinstance(value, str) and not isinstance(value, DType):
            try:
                found[name] = eval(value, {**_DTYPES, **pyfunc.__globals__}, scope)  # noqa: S307 - the author's own
            except (NameError, TileError) as e:
                place = compiled(pyfunc).parameters[name]
                if not isinstance(e, TileError):
                    raise error("annotation-name", TileNameError, f"parameter {name}: {e}", loc=place) from None
                if e.loc is None or e.loc.file == "<string>":  # the text itself has no place
                    e.loc = place
                raise
    return found


_DTYPES = {name: as_dtype(name) for name in SCALARS}  # a scalar's dtype may be a text: `n: "int32"`
_PYTHON: dict[type[Exception], type[TileError]] = {
    TypeError: TileTypeError, AttributeError: TileAttributeError, IndexError: TileIndexError,
    ValueError: TileValueError,
}  # fmt: skip


@contextmanager
def located() -> Iterator[None]:
    """Turns errors that Python raises in the author's code into diagnostics with their place."""
    try:
        yield
    except (NameError, TypeError, AttributeError, IndexError, ValueError) as e:
        found = None if isinstance(e, TileError) else location.raised_at(e.__traceback__)
        if found is None:
            raise
        loc, frame = found
        kind = next((ours for theirs, ours in _PYTHON.items() if isinstance(e, theirs)), None)
        if kind is not None:
            message = re.sub(
                r"'?\b(Value|Element|Cell|BlockIndex|Vector|RegionRef)\b'?",
                "kernel value",
                str(e).replace("BufferRef", "buffer"),
            )
            line = linecache.getline(loc.file, loc.line)
            said = advice(line[loc.col - 1 : loc.end_col - 1])
            help = "; ".join(said) if said else None
            if "buffer' object is not callable" in message:
                help = "elements are written with brackets: A[i, j]"
            raise error("python-error", kind, message, loc=loc, help=help) from None
        quoted = re.search(r"'(\w+)'", str(e))
        name = quoted[1] if quoted else ""
        code = frame.f_code
        known = {*code.co_varnames, *code.co_cellvars, *code.co_freevars, *frame.f_globals, *dir(builtins)} - {name}
        if isinstance(e, UnboundLocalError):
            raise error(
                "unbound-local", TileNameError, f"{name} is read before it has a value", loc=loc, help="assign it first"
            ) from None
        raise error(
            "undefined-name",
            TileNameError,
            f"{name} is not defined",
            loc=loc,
            help=suggest(name, [n for n in known if not n.startswith("__")])
            or f"sizes are parameters of the factory, A.shape[0], or symbols: {name} = T.dynamic({name!r}) before it",
        ) from None


def trace_prim_func(pyfunc: Callable[..., Any], names: Mapping[str, Any] | None = None) -> PrimFunc:
    """Runs the function on symbolic arguments. `names`: locals of the place that defines it, for annotations
    written as strings."""
    _check_function(pyfunc, "T.prim_func")
    if is_tracing():
        raise error("nested-prim-func", TileSyntaxError, "a @T.prim_func cannot be defined inside a kernel")
    run, places = rewritten(pyfunc, CONTROL), compiled(pyfunc)
    annotations = parameter_annotations(pyfunc, names or {})
    builder = Tracer(pyfunc.__name__)
    params: list[Param] = []
    arguments: list[Any] = []
    for p in inspect.signature(pyfunc).parameters.values():
        place = places.parameters[p.name]
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) or p.default is not p.empty:
            raise error(
                "param-kind",
                TileSyntaxError,
                f"parameter {p.name}: a kernel has plain parameters without defaults",
                loc=place,
            )
        if p.name not in annotations:
            raise error(
                "param-unannotated",
                TileTypeError,
                f"parameter {p.name} has no annotation",
                loc=place,
                help="a kernel is no method: define it in a function or method that returns it"
                if p.name == "self"
                else f"write `{p.name}: T.Tensor((M, N), T.float16)` or `{p.name}: T.int32`",
            )
        param, argument = make_param(p.name, annotations[p.name], place)
        builder.define(param.buffer if param.buffer is not None else param.var)  # type: ignore[arg-type]
        params.append(param)
        arguments.append(argument)
    with tracing(builder), location.tracing_root(run.__code__), located():
        builder.activations.append(("kernel", 0))
        run(*arguments)
    return PrimFunc(finish(builder, params, (), places.loc), pyfunc)


def _check_function(pyfunc: Any, what: str) -> None:
    if not inspect.isfunction(pyfunc):
        raise error("decorates-function", TileTypeError, f"{what} decorates a function, got {type(pyfunc).__name__}")


def finish(builder: Tracer, params: list[Param], outputs: tuple[int, ...], loc: Loc | None) -> Function:
    """The function of a completed trace."""
    if not builder.kernels:
        raise error(
            "no-kernel",
            TileSyntaxError,
            f"{builder.name} launches nothing",
            loc=loc,
            help="put the work into `with T.Kernel(grid, threads=128) as bx:`",
        )
    buffers = {i: p.buffer for i, p in enumerate(params) if p.buffer is not None}
    symbols = {v: None for i, b in buffers.items() if i not in outputs for v in _shape_vars(b)}
    used = dict(builder.symbols)
    for i in outputs:
        used.update({v: params[i].loc for v in _shape_vars(buffers[i])})
    for var, place in used.items():
        if var not in symbols:
            raise error(
                "unbound-symbol",
                TileNameError,
                f"symbol {var.name} appears in no argument's shape or strides",
                loc=place or loc,
                help="use it in the annotation of a tensor parameter, or pass a scalar parameter",
            )
    kernels = tuple(builder.kernels)
    if len(kernels) > 1:
        kernels = tuple(k.replace(name=f"{builder.name}_{i}") for i, k in enumerate(kernels))
    workspaces, attrs = tuple(builder.workspaces), tuple(builder.attrs)
    made = Function(builder.name, tuple(params), kernels, tuple(symbols), outputs, workspaces, attrs=attrs, loc=loc)
    if not any(map(thread_level, kernels)):
        return made
    from tiledsl.passes.expand_threads import ExpandThreads  # few kernels need it, and import tiledsl shall be quick

    return ExpandThreads()(made)


def _shape_vars(b: Buffer) -> list[Var]:
    """The symbols of a parameter's extents and strides, in order."""
    found: list[Var] = []
    for e in (*b.shape, *(b.strides or ())):
        for v in sorted(free_vars(e), key=lambda v: v.name):
            if not is_symbol(v):
                raise error(
                    "scalar-in-shape",
                    TileTypeError,
                    f"the shape of {b.name} depends on the scalar parameter {v.name}",
                    loc=b.loc,
                    help=f"make {v.name} a symbol: {v.name} = T.dynamic({v.name!r})",
                )
            found.append(v)
    return found


class Macro:
    """A function whose staged body is traced into each caller.

    Scalars are evaluated once, at the call; buffers and regions are passed by reference; a parameter annotated
    `T.Ref` is bound to the place (variable or element) that the caller names.
    """

    def __init__(self, pyfunc: Callable[..., Any]) -> None:
        _check_function(pyfunc, "T.macro")
        self.pyfunc = pyfunc
        functools.update_wrapper(self, pyfunc)

    def __get__(self, owner: Any, kind: Any = None) -> Any:
        """A method: its first argument is the object."""
        return self if owner is None else functools.partial(self, owner)

    def __call__(self, *args: Any, **kw: Any) -> Any:
        builder = tracer(f"the macro {self.pyfunc.__name__}")
        try:
            bound = inspect.signature(self.pyfunc).bind(*args, **kw)
        except TypeError as e:
            raise error(
                "macro-arguments", TileTypeError, f"wrong arguments for the macro {self.pyfunc.__name__}: {e}"
            ) from None
        references = {
            n for n, a in self.pyfunc.__annotations__.items() if a is Ref or (isinstance(a, str) and "Ref" in a)
        }
        for name, value in bound.arguments.items():
            bound.arguments[name] = self._argument(name, value, name in references)
        run = rewritten(self.pyfunc, CONTROL)
        builder.activations.append(("macro", len(builder.blocks)))
        try:
            return run(*bound.args, **bound.kwargs)
        finally:
            builder.activations.pop()

    def _argument(self, name: str, value: Any, reference: bool) -> Any:
        if not reference:
            return freeze(value, name) if isinstance(value, (Value, tuple)) else value
        if isinstance(value, Cell):
            return value
        if isinstance(value, Element):
            return Cell(value.buffer, value.indices, bound=True)
        raise error(
            "macro-ref",
            TileTypeError,
            f"macro {self.pyfunc.__name__}: {name} is a T.Ref and needs a variable or element",
            help="pass a T.alloc_var or A[i, j]",
        )


def captures(pyfunc: Callable[..., Any]) -> dict[str, object]:
    """Globals and closure variables that the function and the Python helpers it names may read."""
    found: dict[str, object] = {}
    seen: set[CodeType] = set()

    def visit(fn: Callable[..., Any]) -> None:
        fn = getattr(fn, "pyfunc", fn)
        code = getattr(fn, "__code__", None)
        if code is None or code in seen or not location.is_author_file(code.co_filename):
            return
        seen.add(code)
        prefix = f"{fn.__module__}.{fn.__qualname__}"
        values: dict[str, object] = {}
        for name, cell in zip(code.co_freevars, fn.__closure__ or (), strict=True):
            try:
                values[name] = cell.cell_contents
            except ValueError:
                continue
        names = _global_names(code)
        values.update({n: fn.__globals__[n] for n in names if n in fn.__globals__})
        for name, value in list(values.items()):
            if isinstance(value, ModuleType) and location.is_author_file(getattr(value, "__file__", None) or "<frozen"):
                values.update({f"{name}.{n}": vars(value)[n] for n in names if n in vars(value)})
        for name, value in values.items():
            found[f"{prefix}.{name}"] = value
            if callable(value):
                visit(value)

    visit(pyfunc)
    return found


def _global_names(code: CodeType) -> set[str]:
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _global_names(constant)
    return names
