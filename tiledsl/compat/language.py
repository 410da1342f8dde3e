"""`tilelang.language`: the language with the union of TileLang's signatures; hints it does not know are passed over."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import tiledsl.language as T
from tiledsl.compat.notices import notice

__all__ = ["lookup", "names"]


def names() -> list[str]:
    """The public names."""
    return list(T.__all__)


@functools.cache
def lookup(name: str) -> Any:
    """`T.<name>` as a TileLang program means it. Raises what `tiledsl.language` raises for unknown names."""
    value = getattr(T, name)
    return _lenient(f"T.{name}", value) if inspect.isfunction(value) else value


def _lenient(what: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function without the keywords that it does not have."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return function

    @functools.wraps(function)
    def accepting(*args: Any, **kw: Any) -> Any:
        for unknown in [k for k in kw if k not in parameters]:
            notice(f"{what}: the hint {unknown}={kw.pop(unknown)!r} is passed over")
        return function(*args, **kw)

    return accepting
