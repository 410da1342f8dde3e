"""The node machinery: frozen dataclasses whose fields say what they are.

Each field of a node is an *operand* (a child expression, buffer or region), an *attribute* (plain data), a
*block* (a tuple of statements) or a *binding* (a Var or Buffer that the node introduces). Walk, rewrite,
print, compare, verify and hash come from these marks; no node writes them by hand.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar, dataclass_transform

from tiledsl.errors import Loc

__all__ = ["Field", "Node", "attribute", "binding", "block", "fields_of", "node", "operand"]

_T = TypeVar("_T", bound=type)


def _mark(role: str, **kw: Any) -> Any:
    return field(metadata={"role": role}, **kw)


def operand(effect: str = "", **kw: Any) -> Any:
    """A child Expr, Buffer or Region, or a tuple of them, or None. effect: what the statement may do to these buffers
    or regions, "r", "w" or "rw"."""
    return field(metadata={"role": "operand", "effect": effect}, **kw)


def attribute(**kw: Any) -> Any:
    """Plain hashable data that takes part in equality."""
    return _mark("attribute", **kw)


def hint(**kw: Any) -> Any:
    """Plain data that never changes a value: carried, printed, but not part of equality or hash."""
    return _mark("hint", compare=False, **kw)


def block(**kw: Any) -> Any:
    """A tuple of statements."""
    return _mark("block", **kw)


def binding(**kw: Any) -> Any:
    """A Var or Buffer (or tuple of them) that this node introduces."""
    return _mark("binding", **kw)


@dataclass(frozen=True, slots=True)
class Field:
    """Name and role of one field of a node class; effect: see `operand`."""

    name: str
    role: str
    effect: str


@dataclass(frozen=True, eq=False)  # eq=False: Var, Buffer and the tops must inherit identity, not "no fields differ"
class Node:
    """Base of everything in the IR. `loc` is the author's source and never takes part in equality."""

    loc: Loc | None = field(default=None, compare=False, kw_only=True, repr=False, metadata={"role": "loc"})

    def replace(self, **changes: Any) -> Self:
        """A copy of this node with some fields changed."""
        return dataclasses.replace(self, **changes)


_FIELDS: dict[type, tuple[Field, ...]] = {}


def fields_of(cls: type) -> tuple[Field, ...]:
    """The marked fields of a node class in declaration order (without loc)."""
    found = _FIELDS.get(cls)
    if found is None:
        found = tuple(
            Field(f.name, f.metadata["role"], f.metadata.get("effect", ""))
            for f in dataclasses.fields(cls)
            if f.metadata.get("role", "loc") != "loc"
        )
        _FIELDS[cls] = found
    return found


@dataclass_transform(frozen_default=True, field_specifiers=(operand, attribute, hint, block, binding, field))
def node(cls: _T) -> _T:
    """Class decorator: a frozen dataclass with structural equality (Var and Buffer opt out)."""
    return dataclass(frozen=True)(cls)  # type: ignore[return-value]
