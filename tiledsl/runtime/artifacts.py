"""Artifacts as JSON: the host expressions, sites and attributes that stand beside the code on disk."""

from __future__ import annotations

from typing import Any

from tiledsl import ir
from tiledsl.backend import Artifact, Entry, Site, Workspace
from tiledsl.dtypes import DType, as_dtype
from tiledsl.errors import Loc
from tiledsl.ir.node import fields_of

__all__ = ["from_json", "to_json"]

_NODES: dict[str, type[ir.Expr]] = {
    c.__name__: c for c in (ir.Const, ir.Unary, ir.Binary, ir.Select, ir.IfThenElse, ir.Cast)
}


def to_json(artifact: Artifact) -> dict[str, Any]:
    """Everything but the code."""
    places = {v: i for i, v in enumerate(artifact.host_vars)}

    def expr(e: Any) -> Any:
        if isinstance(e, ir.Var):
            return places[e]
        if type(e).__name__ in _NODES:
            return [type(e).__name__, *(_plain(getattr(e, f.name), expr) for f in fields_of(type(e)))]
        raise TypeError(f"{type(e).__name__} is no host expression")

    return {
        "source": artifact.source,
        "vars": [[v.name, v.dtype.name] for v in artifact.host_vars],
        "entries": [[e.symbol, [expr(x) for x in e.grid], e.scratch_bytes, e.waits] for e in artifact.entries],
        "workspaces": [[w.dtype.name, [expr(x) for x in w.shape]] for w in artifact.workspaces],
        "sites": [[s.kind, s.message, [d.name for d in s.dtypes], _loc(s.loc), s.shapes] for s in artifact.sites],
        "meta": dict(artifact.meta),
    }


def from_json(data: dict[str, Any], code: bytes) -> Artifact:
    """The artifact again. Raises KeyError, TypeError or ValueError for data of another form."""
    variables = tuple(ir.Var(name, as_dtype(dtype)) for name, dtype in data["vars"])

    def expr(x: Any) -> ir.Expr:
        if isinstance(x, int):
            return variables[x]
        cls = _NODES[x[0]]
        values = [_value(v, expr) for v in x[1:]]
        return cls(**{f.name: v for f, v in zip(fields_of(cls), values, strict=True)})

    def exprs(xs: list[Any]) -> tuple[ir.Expr, ...]:
        return tuple(expr(x) for x in xs)

    return Artifact(
        source=data["source"],
        code=code,
        host_vars=variables,
        entries=tuple(Entry(symbol, exprs(grid), *more) for symbol, grid, *more in data["entries"]),
        workspaces=tuple(Workspace(as_dtype(d), exprs(shape)) for d, shape in data["workspaces"]),
        sites=tuple(
            Site(kind, message, tuple(map(as_dtype, dtypes)), Loc(*loc) if loc else None, tuple(map(tuple, shapes)))
            for kind, message, dtypes, loc, shapes in data["sites"]
        ),
        meta=data["meta"],
    )


def _plain(value: Any, expr: Any) -> Any:
    """A field as JSON: an expression, a type, or a plain value in a one-element object."""
    if isinstance(value, ir.Expr):
        return {"e": expr(value)}
    return {"t": value.name} if isinstance(value, DType) else {"v": value}


def _value(x: dict[str, Any], expr: Any) -> Any:
    ((mark, value),) = x.items()
    return {"e": expr, "t": as_dtype, "v": lambda v: v}[mark](value)


def _loc(loc: Loc | None) -> list[Any] | None:
    return [loc.file, loc.line, loc.col, loc.end_col, loc.function] if loc else None
