"""Eager kernels: the body is the kernel, specialised on its options and on the sizes of its arguments.

Two passes. The first runs the body up to `T.Kernel` with unknown constants, to learn which extent or stride each
`T.const` names; the second runs it whole with Python ints.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tiledsl.dtypes import DType
from tiledsl.errors import Loc, TileError, TileSyntaxError, TileTypeError, TileValueError
from tiledsl.frontend import location
from tiledsl.frontend.annotations import Const_, TensorSpec, make_param
from tiledsl.frontend.builder import tracing
from tiledsl.frontend.control import CONTROL, Tracer
from tiledsl.frontend.location import error, here
from tiledsl.frontend.rewrite import compiled, read_source, rewritten
from tiledsl.frontend.storage import BufferRef
from tiledsl.frontend.trace import PrimFunc, finish, located, parameter_annotations
from tiledsl.ir import Buffer, Param, Var

__all__ = ["ArgInfo", "EagerTemplate", "EagerTracer", "is_lazy"]


@dataclass(frozen=True)
class ArgInfo:
    """An array argument: extents, element type, strides in elements (None = contiguous)."""

    shape: tuple[int, ...]
    dtype: DType
    strides: tuple[int, ...] | None = None


class _Learned(Exception):
    """The first pass has reached T.Kernel."""


class _NotDeclared:
    """A tensor argument before the body declares its type."""

    def __init__(self, name: str) -> None:
        self.name = name

    def _use(self, *args: Any) -> Any:
        raise error(
            "undeclared-argument",
            TileSyntaxError,
            f"{self.name} is used before it is declared",
            help=f"first write `{self.name}: T.Tensor[(M, N), T.float32]`",
        )

    __getattr__ = __getitem__ = __setitem__ = _use


class EagerTracer(Tracer):
    """One pass over an eager kernel."""

    def __init__(self, template: EagerTemplate, consts: Mapping[str, int], learning: bool) -> None:
        super().__init__(template.name)
        self.arguments, self.loc = template.arguments, compiled(template.pyfunc).loc
        self.consts, self.learning = dict(consts), learning
        self.params: dict[str, Param] = {}
        self.outputs: dict[Buffer, Loc | None] = {}
        self.named: dict[str, tuple[str, str, int]] = {}  # const -> (argument, "extent" | "stride", axis)
        self.placeholders: dict[Var, str] = {}
        self.returned: tuple[Buffer, ...] | None = None
        self.single = True

    def const(self, name: str) -> Any:
        """The value of one T.const, or a placeholder in the first pass."""
        if name in self.consts:
            return self.consts[name]
        if not self.learning:
            raise error(
                "unbound-const",
                TileValueError,
                f"T.const {name} is the extent or stride of no argument",
                help=f"use it directly in a declaration (A: T.Tensor[({name},), ...]), or pass {name}=... as an option",
            )
        made = Const_(name)
        assert isinstance(made.expr, Var)
        self.placeholders[made.expr] = name
        self.owner[made.expr] = None
        return made

    def declare(self, name: str, annotation: Any) -> Any:
        if name not in self.arguments:
            raise error(
                "declare-unknown",
                TileSyntaxError,
                f"{name} is declared but is no parameter of {self.name}",
                help=f"parameters: {', '.join(self.arguments)}; T.empty makes an output",
            )
        if name in self.params:
            raise error("declare-twice", TileSyntaxError, f"{name} is declared twice")
        if isinstance(annotation, TensorSpec):
            for kind, dims in (("extent", annotation.shape), ("stride", annotation.strides or ())):
                for axis, e in enumerate(dims):
                    if isinstance(e, Var) and e in self.placeholders:
                        self.named.setdefault(self.placeholders[e], (name, kind, axis))
        param, value = make_param(name, annotation, here())
        self.define(param.buffer if param.buffer is not None else param.var)  # type: ignore[arg-type]
        self.params[name] = param
        return value

    def empty(self, spec: TensorSpec) -> BufferRef:
        """An output of this kernel, named when it is bound."""
        buffer = Buffer("", spec.dtype, spec.shape, "global", spec.strides, loc=here())
        self.define(buffer)
        self.outputs[buffer] = here()
        return BufferRef(buffer)

    def enter_kernel(self) -> None:
        if self.learning:
            raise _Learned

    def take_result(self, result: Any) -> None:
        """What the body returned."""
        items = result if isinstance(result, (tuple, list)) else () if result is None else (result,)
        self.single = not isinstance(result, (tuple, list))
        buffers = [x.buffer for x in items if isinstance(x, BufferRef) and x.buffer in self.outputs]
        if len(buffers) != len(items):
            raise error(
                "return-not-empty",
                TileTypeError,
                "an eager kernel returns tensors made by T.empty only",
                loc=self.loc,
                help="make the result with C = T.empty((M, N), dtype)",
            )
        for b, loc in self.outputs.items():
            if b not in buffers:
                raise error(
                    "empty-not-returned",
                    TileSyntaxError,
                    f"the output {b.name or 'of T.empty'} is not returned",
                    loc=loc,
                    help=f"end with `return {b.name or 'C'}`",
                )
        self.returned = tuple(buffers)


class EagerTemplate:
    """An eager kernel before specialisation; `tiledsl.frontend` lists the members."""

    def __init__(self, pyfunc: Callable[..., Any]) -> None:
        self.pyfunc = pyfunc
        self.name: str = pyfunc.__name__
        self.signature = inspect.signature(pyfunc)
        self._annotations = parameter_annotations(pyfunc, {})
        declared = {
            s.target.id for s in ast.walk(read_source(pyfunc).tree)
            if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name) and s.value is None
        }  # fmt: skip
        typed = {n for n, a in self._annotations.items() if isinstance(a, (TensorSpec, DType))}
        names = list(self.signature.parameters)
        self.arguments = tuple(n for n in names if n in declared or n in typed)
        self.options = tuple(n for n in names if n not in self.arguments)
        self.defaults: dict[str, object] = {
            n: p.default for n, p in self.signature.parameters.items() if p.default is not p.empty and n in self.options
        }
        self._in_signature = tuple(n for n in self.arguments if n not in declared)

    def bind(
        self,
        arguments: Mapping[str, ArgInfo | None],
        options: Mapping[str, object],
        consts: Mapping[str, int] | None = None,
    ) -> PrimFunc:
        """Traces the kernel for these options and argument sizes."""
        values = {**self.defaults, **options}
        missing = [n for n in self.options if n not in values]
        if missing:
            raise error(
                "missing-option", TileTypeError, f"{self.name}: option {missing[0]} has no value", loc=self._loc
            )
        failed: TileError | None = None
        first = EagerTracer(self, consts or {}, learning=True)
        try:
            self._run(first, values)
        except _Learned:
            pass
        except TileError as e:  # perhaps a T.const in Python arithmetic: the second pass will tell
            failed = e
        known = dict(consts or {})
        for name, (argument, kind, axis) in first.named.items():
            info = arguments.get(argument)
            sizes = None if info is None else info.shape if kind == "extent" else info.strides
            if name not in known and info is None:
                raise error(
                    "const-without-array",
                    TileTypeError,
                    f"{argument} must be an array here, because T.const {name} is its {kind} {axis}",
                    loc=first.params[argument].loc,
                    help=f"pass an array, or {name} by name: {self.name}.kernel({name}=...)",
                )
            if name in known or sizes is None:
                continue
            if axis >= len(sizes):
                raise error(
                    "const-rank",
                    TileTypeError,
                    f"{self.name}: argument {argument} has rank {len(sizes)}, and {name} names its axis {axis}",
                    loc=self._loc,
                )
            known[name] = int(sizes[axis])
        second = EagerTracer(self, known, learning=False)
        try:
            self._run(second, values)
        except TileError as e:
            if failed is not None and getattr(e, "ident", "") == "unbound-const":
                raise failed from None
            raise
        assert second.returned is not None
        undeclared = [n for n in self.arguments if n not in second.params]
        if undeclared:
            raise error(
                "argument-not-declared",
                TileSyntaxError,
                f"{self.name}: {undeclared[0]} is never declared",
                loc=self._loc,
            )
        params = [second.params[n] for n in self.arguments]
        params += [Param(b.name, buffer=b, loc=b.loc) for b in second.returned]
        outputs = tuple(range(len(self.arguments), len(params)))
        function = finish(second, params, outputs, self._loc)
        return PrimFunc(function, self.pyfunc, second.single, known)

    @property
    def _loc(self) -> Loc:
        return compiled(self.pyfunc).loc

    def _run(self, builder: EagerTracer, options: Mapping[str, object]) -> None:
        run = rewritten(self.pyfunc, CONTROL)
        with tracing(builder), location.tracing_root(run.__code__), located():
            builder.activations.append(("eager", 0))
            values = {
                n: builder.declare(n, self._annotations[n]) if n in self._in_signature else _NotDeclared(n)
                for n in self.arguments
            }
            result = run(**values, **options)
            builder.take_result(result)


_EAGER_CALLS = frozenset(["Kernel", "const", "empty"])


def is_lazy(pyfunc: Callable[..., Any]) -> bool:
    """The function is a factory of kernels, not itself a kernel: it defines an inner @T.prim_func, or its body
    launches nothing. An inner function without a decorator does not count: a factory may have forgotten it."""
    tree = read_source(pyfunc).tree
    inner = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n is not tree]
    if any(_last_name(d) == "prim_func" for n in inner for d in n.decorator_list):
        return True
    plain = {id(m) for n in inner if not n.decorator_list for m in ast.walk(n)}
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and id(n) not in plain]
    return not any(_last_name(n) in _EAGER_CALLS for n in calls)


def _last_name(e: ast.expr) -> str:
    e = e.func if isinstance(e, ast.Call) else e
    return e.attr if isinstance(e, ast.Attribute) else e.id if isinstance(e, ast.Name) else ""
