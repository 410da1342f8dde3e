"""`tiledsl.jit`: factories of kernels (lazy style) and kernels that are Python functions of arrays (eager style)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tiledsl import frontend, ir
from tiledsl.backend import Target
from tiledsl.dtypes import as_dtype
from tiledsl.errors import TileError, TileTypeError, TileValueError, suggest
from tiledsl.frontend.location import here
from tiledsl.frontend.rewrite import read_source
from tiledsl.runtime.explain import Explanation
from tiledsl.runtime.kernel import JITKernel, call_key, compile
from tiledsl.runtime.members import no_member
from tiledsl.runtime.options import check_options, check_place
from tiledsl.runtime.shown import Shown
from tiledsl.runtime.views import describe, device_of, kind_of, view

__all__ = ["JITFunction", "freeze", "jit"]

MOST_CALLS = 4096


class JITFunction:
    """What `tiledsl.jit` makes of a Python function.

    Lazy style (the function returns a `@T.prim_func`): calling it with Python values gives a JITKernel, the same
    one for the same values. Eager style (the function is the kernel): calling it with arrays and options runs it.
    """

    def __init__(
        self, pyfunc: Callable[..., Any], out_idx: int | Sequence[int] | None, target: str | Target | None
    ) -> None:
        self.pyfunc, self.out_idx, self.target = pyfunc, out_idx, target
        functools.update_wrapper(self, pyfunc)
        self._template: frontend.EagerTemplate | None = None
        self._lazy: bool | None = None
        self._signature = inspect.signature(pyfunc)
        self._kernels: dict[Any, JITKernel] = {}
        self._calls: dict[Any, JITKernel] = {}

    def __repr__(self) -> str:
        return f"<tiledsl.jit {self.pyfunc.__qualname__}>"

    @property
    def lazy(self) -> bool:
        """True for a factory of kernels. Looked up at the first call, when all names it uses exist."""
        if self._lazy is None:
            self._lazy = frontend.is_lazy(self.pyfunc)
            if not self._lazy:
                if self.out_idx is not None:
                    raise TileValueError(
                        f"{self.pyfunc.__name__}: out_idx belongs to factories of kernels; this function is a kernel",
                        here(),
                        help="make the outputs with T.empty and return them",
                    )
                self._template = frontend.EagerTemplate(self.pyfunc)
        return self._lazy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Lazy: the kernel for these values. Eager: run on these arrays (`target=` and `out=` as for a kernel)."""
        if self.lazy:
            return self._factory(args, kwargs)
        run = {k: kwargs.pop(k) for k in ("target", "out", "stream") if k in kwargs and k not in self._names}
        values = self._positional(args) if not kwargs else None
        if values is None:
            values = self._bind(args, kwargs).arguments
        assert self._template is not None
        arrays = [values[n] for n in self._template.arguments]
        return self._eager(arrays, values)(*arrays, **run)

    @property
    def arguments(self) -> tuple[str, ...]:
        """Eager style: the parameters that are arrays and numbers of a launch; the others are compile-time options."""
        return () if self.lazy or self._template is None else self._template.arguments

    # -- other ways to use it -------------------------------------------------------------------------------------

    def kernel(self, *args: Any, **kwargs: Any) -> JITKernel:
        """The JITKernel that a call with these values (and arrays) would run. Values of T.const dimensions can be
        given by name instead of arrays: `f.kernel(M=64, N=128)`."""
        if self.lazy:
            found = self._factory(args, kwargs)
            assert isinstance(found, JITKernel)
            return found
        assert self._template is not None
        consts = {k: kwargs.pop(k) for k in list(kwargs) if k not in self._names}
        values = self._bind(args, kwargs, partial=True).arguments
        return self._eager([values.get(n) for n in self._template.arguments], values, consts)

    @property
    def kernels(self) -> tuple[JITKernel, ...]:
        """The kernels made so far, oldest first."""
        return tuple(dict.fromkeys(self._kernels.values()))

    def compile(self, *args: Any, **kwargs: Any) -> JITKernel:
        """As `kernel`, compiled for its target now."""
        return self.kernel(*args, **kwargs).compile()

    def par_compile(self, configs: Iterable[Mapping[str, Any] | Sequence[Any]]) -> list[JITKernel]:
        """One compiled kernel per configuration (keyword arguments, or a sequence of positional ones)."""
        return [self.compile(**c) if isinstance(c, Mapping) else self.compile(*c) for c in configs]

    def get_tir(self, *args: Any, **kwargs: Any) -> ir.Function:
        """The traced function for these values."""
        return self.kernel(*args, **kwargs).function

    def get_kernel_source(self, *args: Any, **kwargs: Any) -> str:
        """The text that the target's backend makes for these values."""
        return self.kernel(*args, **kwargs).get_kernel_source()

    def explain(self, *args: Any, out: Any = None, target: str | Target | None = None, **kwargs: Any) -> Explanation:
        """How an eager call with these arguments would be done (`JITKernel.explain`)."""
        if self.lazy:
            name, sizes = self.pyfunc.__name__, ", ".join(self._names)
            raise TileTypeError(
                f"{name} makes kernels, and a kernel can be explained",
                here(),
                help=f"make it first: {name}({sizes}).explain(a, b)",
            )
        kernel, values = self.kernel(*args, **kwargs), self._bind(args, kwargs, partial=True).arguments
        return kernel.explain(*(values.get(n) for n in self.arguments), out=out, target=target)

    def show(self, *args: Any, stage: str = "tile", target: str | Target | None = None, **kwargs: Any) -> Shown:
        """The kernel for these values (and arrays), for reading (`JITKernel.show`)."""
        return self.kernel(*args, **kwargs).show(stage, target)

    # -- finding kernels ------------------------------------------------------------------------------------------

    @functools.cached_property
    def _names(self) -> tuple[str, ...]:
        return tuple(self._signature.parameters)

    def _captured(self) -> tuple[Any, ...]:
        """Values of globals and closure cells that tracing may read: other values are another kernel."""
        found = []
        for name, value in frontend.captures(self.pyfunc).items():
            frozen = freeze(value)
            try:
                hash(frozen)
            except TypeError:
                frozen = _Same(value)
            found.append((name, frozen))
        return tuple(found)

    def _factory(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        target = kwargs.pop("target", self.target) if "target" not in self._names else self.target
        captured = self._captured()
        call = (self._key({**dict(enumerate(args)), **kwargs}), target, captured)
        kernel = self._calls.get(call)
        if kernel is not None:
            return kernel
        values = self._bind(args, kwargs)
        key = (self._key(values.arguments), target, captured)  # however the values were passed
        kernel = self._kernels.get(key)
        if kernel is None:
            try:
                made = self.pyfunc(*values.args, **values.kwargs)
            except TileError as e:
                for name, value in values.arguments.items():
                    if kind_of(value) is not None:  # a torch tensor can be hashed
                        raise self._not_hashable(name, value) from e
                raise
            if getattr(made, "function", None) is None:
                raise self._no_kernel(made)
            kernel = self._kernels[key] = compile(made, self.out_idx, target)
        self._remember(call, kernel)
        return kernel

    def _no_kernel(self, made: Any) -> TileTypeError:
        what, loc = type(made).__name__, here()
        help = f"end {self.pyfunc.__name__} with `return` and the name of its @T.prim_func"
        if inspect.isfunction(made):
            source = read_source(made)
            what, loc = f"the plain function {made.__name__}", source.loc(source.tree)
            help = f"write @T.prim_func above `def {made.__name__}`"
        return TileTypeError(
            f"{self.pyfunc.__name__}: a factory of kernels returns a @T.prim_func, this one returned {what}",
            loc,
            help=help,
        )

    def __get__(self, owner: Any, kind: Any = None) -> JITFunction:
        if owner is not None and self._names[:1] == ("self",):
            raise TileTypeError(
                f"{self.pyfunc.__qualname__} is a method, and tiledsl.jit makes kernels of functions",
                here(),
                help="define it outside the class, and pass what it needs of the object",
            )
        return self

    def __getitem__(self, grid: Any) -> Any:
        raise TileTypeError(
            f"{self.pyfunc.__name__}[...] is not how a kernel is launched here",
            here(),
            help=f"the grid stands in the kernel, `with T.Kernel(grid_x, grid_y) as (bx, by):`; call it: "
            f"{self.pyfunc.__name__}({', '.join(self._names)})",
        )

    def __getattr__(self, name: str) -> Any:
        no_member(f"{self.pyfunc.__name__} (made by tiledsl.jit)", type(self), name)

    def _remember(self, call: Any, kernel: JITKernel) -> None:
        if len(self._calls) >= MOST_CALLS:
            self._calls.clear()
        self._calls[call] = kernel

    def _eager(
        self, arrays: Sequence[Any], values: Mapping[str, Any], consts: Mapping[str, int] | None = None
    ) -> JITKernel:
        assert self._template is not None
        template = self._template
        options = {n: values[n] for n in template.options if n in values}
        group = (self._key(options), self._captured(), self._key(consts or {}))
        exact = call_key(arrays, frozenset())
        kernel = self._calls.get((group, exact)) if exact is not None else None
        if kernel is not None:
            return kernel
        infos = {n: _info(n, x) for n, x in zip(template.arguments, arrays, strict=True)}
        coarse = tuple(i and (i.dtype, len(i.shape)) for i in infos.values())
        kernel = self._kernels.get((group, coarse, ()))  # no T.const dimension: serves every shape
        if kernel is None:
            prim = template.bind(infos, options, consts or {})
            chosen = (group, coarse, tuple(sorted(prim.consts.items())))
            kernel = self._kernels.get(chosen)
            if kernel is None:
                kernel = self._kernels[chosen] = compile(prim, None, self.target)
        if exact is not None:
            self._remember((group, exact), kernel)
        return kernel

    # -- arguments -------------------------------------------------------------------------------------------------

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any], partial: bool = False) -> inspect.BoundArguments:
        """The arguments by parameter name, defaults included."""
        for name in kwargs:
            if name not in self._names and not any(
                p.kind is p.VAR_KEYWORD for p in self._signature.parameters.values()
            ):
                raise TileTypeError(
                    f"{self.pyfunc.__name__} has no parameter {name!r}",
                    here(),
                    help=suggest(name, self._names) or f"parameters: {', '.join(self._names)}",
                )
        try:
            bound = (self._signature.bind_partial if partial else self._signature.bind)(*args, **kwargs)
        except TypeError as e:
            raise TileTypeError(
                f"{self.pyfunc.__name__} cannot be called like this: {e}",
                here(),
                help=f"parameters: {', '.join(self._names)}",
            ) from None
        bound.apply_defaults()
        return bound

    def _positional(self, args: tuple[Any, ...]) -> dict[str, Any] | None:
        """What `_bind` gives for positional arguments alone, quickly; None when it has to look closer."""
        if self._defaults is None or len(args) > len(self._names):
            return None
        values = {**self._defaults, **dict(zip(self._names, args, strict=False))}
        return values if len(values) == len(self._names) else None

    @functools.cached_property
    def _defaults(self) -> dict[str, Any] | None:
        parameters = self._signature.parameters.values()
        if any(p.kind is not p.POSITIONAL_OR_KEYWORD for p in parameters):
            return None
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    def _not_hashable(self, option: str, value: Any) -> TileTypeError:
        name, what = self.pyfunc.__name__, type(value).__name__
        if kind_of(value) is None:
            return TileTypeError(
                f"{name}: option {option} is a compile-time value and cannot be hashed ({what})",
                here(),
                help="pass numbers, strings, tuples, or lists and dicts of them",
            )
        found = f"{what} of {describe(value)}"
        if self.lazy:
            return TileTypeError(
                f"{name} makes kernels from sizes and options, and {option} is an array ({found})",
                here(),
                help=f"first make the kernel, then call it with arrays: kernel = {name}({', '.join(self._names)}); "
                "kernel(array, ...)",
            )
        return TileTypeError(
            f"{name}: {option} is a compile-time option, and got an array ({found})",
            here(),
            help=f"declare it in the kernel if it is an argument: `{option}: T.Tensor[(n,), T.float32]`",
        )

    def _key(self, values: Mapping[Any, Any]) -> tuple[Any, ...]:
        found = []
        for name, value in values.items():
            try:
                frozen = freeze(value)
                hash(frozen)
                if frozen is value and kind_of(value):  # torch hashes tensors, by identity
                    raise TypeError
            except TypeError:
                which = self._names[name] if isinstance(name, int) and name < len(self._names) else str(name)
                raise self._not_hashable(which, value) from None
            found.append((name, frozen))
        return tuple(found)


def freeze(value: Any) -> Any:
    """A hashable stand-in that is equal exactly for equal values of equal type; lists, dicts and sets by content."""
    t = type(value)
    if t in (int, str, bool, type(None)):
        return (t, value)
    if t is float:
        return (t, repr(value))  # nan equals itself, -0.0 differs from 0.0
    if t in (tuple, list):
        return (t, tuple(map(freeze, value)))
    if t is dict:
        return (t, tuple((freeze(k), freeze(v)) for k, v in value.items()))
    if t in (set, frozenset):
        return (t, frozenset(map(freeze, value)))
    return value


class _Same:
    """Stands for a captured object that cannot be hashed: equal to itself only, and kept alive."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _info(name: str, x: Any) -> frontend.ArgInfo | None:
    if x is None or isinstance(x, (int, float, np.generic)):
        return None
    try:
        seen = view(x, name, device_of(x))
        dtype = as_dtype(seen.storage)
    except TileError as e:
        e.loc = here()
        raise
    except TypeError:
        raise TileTypeError(f"{name}: arrays of {seen.storage} are not supported", here()) from None
    return frontend.ArgInfo(seen.shape, dtype, seen.strides)


def jit(
    func: Callable[..., Any] | None = None,
    *,
    out_idx: int | Sequence[int] | None = None,
    target: str | Target | None = None,
    **options: Any,
) -> Any:
    """Decorator for factories of kernels and for kernels; bare or with options.

    out_idx  parameters (indices, negative ones from the end) that the runtime allocates and returns; factories only
    target   "name[:arch]", "cpu" or "auto" for calls that name none (default: TILEDSL_TARGET, else auto)
    Accepted for TileLang's kernels, without effect on values: target_host, execution_backend, verbose,
    debug_root_path, compile_flags, pass_configs. Raises TileTypeError for other names, with the one that is near.
    """
    check_options("tiledsl.jit", options)
    check_place(target)

    def decorate(f: Any) -> Any:
        if hasattr(f, "function"):  # a @T.prim_func
            return compile(f, out_idx, target)
        if not inspect.isfunction(f):
            raise TileTypeError(f"tiledsl.jit decorates functions, got {type(f).__name__}", here())
        return JITFunction(f, out_idx, target)

    return decorate if func is None else decorate(func)
