"""Annotations of parameters: tensors, symbols, constants, outputs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import TileSyntaxError, TileTypeError
from tiledsl.frontend.annotations import TensorSpec
from tiledsl.frontend.annotations import dynamic as _dynamic
from tiledsl.frontend.builder import current
from tiledsl.frontend.eager import EagerTracer
from tiledsl.frontend.location import error
from tiledsl.frontend.storage import BufferRef, Element
from tiledsl.ir import Const
from tiledsl.language.operation import named, surface

__all__ = [
    "Buffer", "FragmentBuffer", "LocalBuffer", "SharedBuffer", "StridedTensor", "Tensor", "const", "dtype",
    "dynamic", "empty", "symbolic",
]  # fmt: skip


class _Annotation:
    """A function of the surface that brackets call too: `arguments` gives what a key means."""

    def __init__(self, make: Callable[..., Any], arguments: Callable[[Any], tuple[Any, ...]]) -> None:
        self.__name__, self.__doc__ = make.__name__, make.__doc__
        self._make, self._arguments = surface(make), arguments
        self.__signature__ = inspect.signature(make)

    def __repr__(self) -> str:
        return f"T.{self.__name__} without a shape"

    def __call__(self, *args: Any, **kw: Any) -> Any:
        return self._make(*args, **kw)

    def __getitem__(self, key: Any) -> Any:
        return self._make(*self._arguments(key))


def _tensor(name: str) -> _Annotation:
    def make(shape: Any, dtype: Any = "float32", data: Any = None) -> Any:
        return TensorSpec.make(f"T.{name}", shape, dtype) if data is None else _seen_as(name, shape, dtype, data)

    named(make, name, "`T.Tensor(shape, dtype)` and `T.Tensor[shape, dtype]`.")
    return _Annotation(make, lambda key: key if isinstance(key, tuple) and len(key) == 2 else (key,))


def _seen_as(name: str, shape: Any, dtype: Any, data: Any) -> Any:
    """`T.Tensor(shape, dtype, x.data)` inside a kernel: the storage of x with another shape."""
    from tiledsl.language.memory import view

    whole = isinstance(data, Element) and all(isinstance(i, Const) and i.value == 0 for i in data.indices)
    if not whole and not isinstance(data, BufferRef):
        raise error(
            "tensor-of-data",
            TileTypeError,
            f"T.{name}(shape, dtype, data): data is {data!r}, expected the .data of a tensor",
            help="T.view gives a buffer another shape",
        )
    return view(BufferRef(data.buffer), shape, dtype)


class TileAnnotation:
    """`x: T.SharedBuffer((m, n), dtype)` or with brackets: what a macro's parameter is; for readers."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, shape: Any = None, dtype: Any = None) -> TileAnnotation:
        return self

    def __getitem__(self, key: Any) -> TileAnnotation:
        return self

    def __repr__(self) -> str:
        return f"T.{self.__name__}"


SharedBuffer, FragmentBuffer, LocalBuffer = map(TileAnnotation, ("SharedBuffer", "FragmentBuffer", "LocalBuffer"))


def _strided(shape: Any, strides: Any, dtype: Any = "float32") -> Any:
    return TensorSpec.make("T.StridedTensor", shape, dtype, strides)


named(_strided, "StridedTensor", "`T.StridedTensor(shape, strides, dtype)` and the same with brackets.")


def _strided_arguments(key: Any) -> tuple[Any, ...]:
    if not isinstance(key, tuple) or not 2 <= len(key) <= 3:
        raise error("strided-arguments", TileTypeError, "T.StridedTensor[shape, strides, dtype] takes 2 or 3 arguments")
    return key


if TYPE_CHECKING:
    # For a type checker a tensor annotation is just something that can be indexed.
    def Tensor(shape: Any, dtype: Any = "float32", data: Any = None) -> Any:
        """A row-major contiguous tensor. shape: ints and symbols; the caller's array is checked against it.

        data: `x.data` inside a kernel: the storage of x with this shape, as T.view.
        """

    def Buffer(shape: Any, dtype: Any = "float32", data: Any = None) -> Any:
        """Older name of `Tensor`."""

    def StridedTensor(shape: Any, strides: Any, dtype: Any = "float32") -> Any:
        """A tensor with explicit strides in elements; they may be symbols."""
else:
    Tensor, Buffer = _tensor("Tensor"), _tensor("Buffer")
    StridedTensor = _Annotation(_strided, _strided_arguments)


@surface
def dynamic(names: str, dtype: Any = "int32") -> Any:
    """Shape symbols that every launch binds from its arguments: `m = T.dynamic("m")`, `m, n = T.dynamic("m, n")`.

    dtype: "int32", or "int64" for sizes above 2**31 - 1. Equal names are one symbol.
    """
    return _dynamic(names, dtype)


@surface
def symbolic(names: str, dtype: Any = "int32") -> Any:
    """Older name of `dynamic`."""
    return _dynamic(names, dtype)


@surface
def dtype(x: Any) -> DType:
    """The dtype meant by x: a name, a NumPy or torch dtype, Python's int, float or bool."""
    try:
        return as_dtype(x)
    except TypeError as e:
        raise error("dtype-of", TileTypeError, f"T.dtype: {e}") from None


def _eager(what: str) -> EagerTracer:
    builder = current(what)
    if not isinstance(builder, EagerTracer):
        raise error(
            "eager-only",
            TileSyntaxError,
            f"{what} belongs into an eager kernel",
            help="in a @T.prim_func take sizes from the factory's arguments or T.dynamic, and outputs as parameters",
        )
    return builder


@surface
def const(names: str) -> Any:
    """Sizes that specialise an eager kernel: `M, N = T.const("M, N")`.

    Each name must stand directly as an extent or stride of a declared argument, or come as an option of the call.
    """
    builder = _eager("T.const")
    if not isinstance(names, str):
        raise error("symbol-name", TileTypeError, f"T.const: {names!r} is no text", help='T.const("M, N")')
    made = tuple(builder.const(n) for n in names.replace(",", " ").split())
    return made if len(made) != 1 else made[0]


@surface
def empty(shape: Any, dtype: Any = "float32") -> Any:
    """An output of an eager kernel, allocated by the runtime; it must be returned."""
    return _eager("T.empty").empty(TensorSpec.make("T.empty", shape, dtype))
