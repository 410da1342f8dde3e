"""The wrapper of every function of the surface: argument errors become diagnostics with a place and a suggestion."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from tiledsl.errors import TileNotImplementedError, TileSyntaxError, TileTypeError, suggest
from tiledsl.frontend.builder import current
from tiledsl.frontend.control import CONTROL, Tracer, tracer
from tiledsl.frontend.habits import KEYWORDS
from tiledsl.frontend.location import error
from tiledsl.frontend.values import Undefined

__all__ = ["hints", "named", "not_inside_parallel", "not_yet", "operation", "signature_text", "surface"]

_OUTPUTS = "it gives nothing back: {} is the tile that it writes to, made by T.alloc_fragment or T.alloc_shared"
_P = ParamSpec("_P")
_R = TypeVar("_R")


def surface(fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """Checks keywords and argument count of a `T` function."""
    name = f"T.{fn.__name__}"

    @functools.wraps(fn)
    def checked(*args: _P.args, **kw: _P.kwargs) -> _R:
        signature, known = _signature(fn)
        for keyword in kw:
            if keyword not in known:
                meant = KEYWORDS.get(keyword.lower())
                raise error(
                    "unknown-keyword",
                    TileTypeError,
                    f"{name} has no keyword {keyword}",
                    help=f"did you mean {meant}?"
                    if meant in known
                    else suggest(keyword, known) or f"keywords: {', '.join(known)}",
                )
        try:
            signature.bind(*args, **kw)
        except TypeError as e:
            raise error(
                "argument-count",
                TileTypeError,
                f"wrong arguments for {name}{signature_text(signature)}: {e}",
                help=next((_OUTPUTS.format(n) for n in ("out", "C", "dst") if f"'{n}'" in str(e)), None),
            ) from None
        for value in args:
            if isinstance(value, Undefined):
                CONTROL.read(value)
        return fn(*args, **kw)

    return checked


@functools.cache
def _signature(fn: Callable[..., Any]) -> tuple[inspect.Signature, list[str]]:
    """A function's signature and its keywords; looked at when it is first called, for the sake of imports."""
    signature = inspect.signature(fn)
    return signature, [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def signature_text(signature: inspect.Signature) -> str:
    """(src, dst, coalesced_width=None): names and defaults only."""
    parts = []
    for p in signature.parameters.values():
        star = "*" if p.kind is p.VAR_POSITIONAL else ""
        parts.append(star + p.name + ("" if p.default is p.empty else f"={p.default!r}"))
    return f"({', '.join(parts)})"


def operation(fn: Callable[_P, _R]) -> Callable[_P, _R]:
    """A `surface` function that emits statements: it needs a kernel."""
    checked = surface(fn)
    name = f"T.{fn.__name__}"

    @functools.wraps(fn)
    def staged(*args: _P.args, **kw: _P.kwargs) -> _R:
        current(name)
        return checked(*args, **kw)

    return staged


def named(fn: Callable[_P, _R], name: str, doc: str) -> Callable[_P, _R]:
    """A function made in a function, under its own name and docstring."""
    fn.__name__ = fn.__qualname__ = name
    fn.__doc__ = doc
    return fn


def not_inside_parallel(what: str) -> Tracer:
    """The tracer, for an operation of the whole block."""
    builder = tracer(what)
    loop = builder.inside("parallel")
    if loop is not None:
        raise error(
            "tile-op-in-parallel",
            TileSyntaxError,
            f"{what} works on the whole block and cannot stand inside T.Parallel",
            notes=(f"the T.Parallel begins at {loop.loc}",),
            help="move it before or after the loop",
        )
    return builder


def not_yet(what: str, help: str | None = None) -> TileNotImplementedError:
    """The diagnostic for a part of the language that this version does not have."""
    return error("not-yet", TileNotImplementedError, f"{what} is not supported yet", help=help)


def hints(**given: Any) -> tuple[tuple[str, Any], ...]:
    """Annotations of a node: the hints that were given."""
    return tuple((name, value) for name, value in given.items() if value is not None)
