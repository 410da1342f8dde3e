"""`tiledsl.torch.op`: kernels, and functions that call kernels, as PyTorch custom operators."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from torch.library import custom_op

import tiledsl
from tiledsl.dtypes import DType
from tiledsl.errors import TileTypeError, TileValueError

__all__ = ["op"]


def op(
    function: Any = None,
    *,
    name: str | None = None,
    mutates: Sequence[str] = (),
    fake: Callable[..., Any] | None = None,
    device_types: str | Sequence[str] | None = None,
) -> Any:
    """Make a PyTorch custom operator of a kernel; a decorator, bare or with options.

    function  one of
              - a function of tensors and Python numbers with type annotations, which calls kernels;
              - a kernel that `tiledsl.jit` made in the eager style: its T.Tensor arguments become tensors, options
                take the type of their default;
              - a `JITKernel` (what a factory of kernels returns): its inputs in order; arguments that it writes and
                does not return become mutated arguments of the operator
    name      "namespace::name"; default: the module's last name and the function's
    mutates   names of tensor arguments that a Python function writes in place (kernels know theirs)
    fake      computes the outputs' shapes and dtypes from tensors without memory. Default: the function itself,
              because a kernel that is called with such tensors checks them, allocates its outputs and does not run;
              so it is needed only where the function looks at elements
    device_types  devices that the operator is for, as in torch.library.custom_op

    Returns torch's `CustomOpDef`: call it like the function; `register_autograd(backward, setup_context=...)` gives
    it a derivative, `register_vmap` a batching rule. Works under `torch.compile(fullgraph=True)` and in
    `torch.library.opcheck`.
    Raises TileTypeError for something that is no function or kernel, or an argument whose type cannot be derived,
    TileValueError for a name without namespace.
    """
    if function is None:
        return lambda f: op(f, name=name, mutates=mutates, fake=fake, device_types=device_types)
    if isinstance(function, tiledsl.JITKernel):
        run, schema, written = _of_kernel(function)
    elif isinstance(function, tiledsl.JITFunction):
        run, schema, written = _of_eager(function, mutates)
    elif callable(function):
        run, schema, written = function, None, tuple(mutates)
    else:
        raise TileTypeError(
            f"tiledsl.torch.op: expected a function or a kernel, got {type(function).__name__}",
            help="decorate a function with annotated torch.Tensor arguments that calls the kernel",
        )
    made = custom_op(_full_name(function, name), run, mutates_args=written, device_types=device_types, schema=schema)
    made.register_fake(fake or run)
    return made


def _full_name(function: Any, name: str | None) -> str:
    if name is None:
        pyfunc = getattr(function, "pyfunc", function)
        own = function.function.name if isinstance(function, tiledsl.JITKernel) else pyfunc.__name__
        space = getattr(pyfunc, "__module__", None) or "tiledsl"
        name = f"{_word(space.rpartition('.')[2])}::{_word(own)}"
    if not re.fullmatch(r"\w+::\w+", name):
        raise TileValueError(
            f"tiledsl.torch.op: the name {name!r} is not of the form 'namespace::name'",
            help=f"for example 'mylib::{_word(name.rpartition(':')[2]) or 'kernel'}'",
        )
    return name


def _word(text: str) -> str:
    return re.sub(r"\W", "_", text).strip("_")


# -- kernels whose parameters are known ---------------------------------------------------------------------------


def _of_kernel(kernel: tiledsl.JITKernel) -> tuple[Callable[..., Any], str, tuple[str, ...]]:
    """(function of the inputs, schema, names of written inputs) of a JITKernel."""
    written = set(kernel.written)
    inputs = [p for i, p in enumerate(kernel.params) if i not in kernel.out_idx]
    parts = []
    for k, p in enumerate(inputs):
        if p.buffer is not None:
            parts.append(f"Tensor({chr(97 + k)}!) {p.name}" if p.name in written else f"Tensor {p.name}")
        else:
            assert p.var is not None
            parts.append(f"{_scalar_kind(p.var.dtype)} {p.name}")
    count = len(kernel.out_idx)

    def run(*args: Any) -> Any:
        found = kernel(*args)
        return tuple(found) if isinstance(found, list) else found

    return run, f"({', '.join(parts)}) -> {_returns(count)}", tuple(p.name for p in inputs if p.name in written)


def _returns(count: int) -> str:
    return "Tensor" if count == 1 else f"({', '.join(['Tensor'] * count)})"


# -- eager kernels -------------------------------------------------------------------------------------------------

_OPTIONS = {bool: "bool", int: "int", float: "float", str: "str"}


def _of_eager(function: Any, mutates: Sequence[str]) -> tuple[Callable[..., Any], str, tuple[str, ...]]:
    """(function, schema, names of written inputs) of an eager kernel."""
    if function.lazy:
        raise TileTypeError(
            f"tiledsl.torch.op: {function.pyfunc.__name__} is a factory of kernels",
            help=f"call it first: tiledsl.torch.op({function.pyfunc.__name__}(...)), "
            "or decorate a function that picks the kernel for its arguments",
        )
    parts = []
    for k, p in enumerate(inspect.signature(function.pyfunc).parameters.values()):
        kind = _OPTIONS.get(type(p.default)) or _OPTIONS.get(p.annotation) or _scalar_kind(p.annotation)
        if kind is None and p.name in function.arguments:
            kind = f"Tensor({chr(97 + k)}!)" if p.name in mutates else "Tensor"
        if kind is None:
            raise TileTypeError(
                f"tiledsl.torch.op: the type of option {p.name} of {function.pyfunc.__name__} is not known",
                help="operators take tensors, bool, int, float and str: give it a default or an annotation of these",
            )
        default = "" if p.default is p.empty else f"={p.default!r}"
        parts.append(f"{kind} {p.name}{default}")

    def run(*args: Any, **kwargs: Any) -> Any:
        kernel = function.kernel(*args, **kwargs)
        hidden = [n for n in kernel.written if n in function.arguments and n not in mutates]
        if hidden:
            raise TileTypeError(
                f"tiledsl.torch.op: {function.pyfunc.__name__} writes its argument {hidden[0]}",
                help=f"declare it: tiledsl.torch.op(..., mutates={hidden!r})",
            )
        found = function(*args, **kwargs)
        return tuple(found) if isinstance(found, list) else found

    return run, f"({', '.join(parts)}) -> {_returns(_returned(function.pyfunc))}", tuple(mutates)


def _scalar_kind(annotation: Any) -> str | None:
    """The schema type of a scalar that is annotated with a dtype of the language."""
    if not isinstance(annotation, DType):
        return None
    return "bool" if annotation.is_bool else "float" if annotation.is_float else "SymInt"


def _returned(pyfunc: Callable[..., Any]) -> int:
    """How many arrays an eager kernel returns, by its source."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(pyfunc)))
    returns = [n.value for n in ast.walk(tree) if isinstance(n, ast.Return)]
    counts = {0 if v is None else len(v.elts) if isinstance(v, (ast.Tuple, ast.List)) else 1 for v in returns}
    if len(counts) > 1:
        raise TileTypeError(f"tiledsl.torch.op: {pyfunc.__name__} returns different numbers of arrays")
    return counts.pop() if counts else 0
