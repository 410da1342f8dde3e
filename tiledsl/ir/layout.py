"""The layout of a global tensor: where its elements lie in memory (language.md 0.17).

`Buffer.layout` is plain data, so that it prints, compares and hashes like other data: (physical extents, index texts).
Text k is index k in memory as a Python expression of the logical indices i0, i1, ...; memory is row-major in the
physical extents. The map is one to one.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from tiledsl.ir import build
from tiledsl.ir.expr import Expr

__all__ = ["LayoutData", "index_names", "is_bijection", "physical_extents", "physical_indices", "positions"]

LayoutData = tuple[tuple[int, ...], tuple[str, ...]]
_OPERATORS: dict[type[ast.operator], tuple[str, Callable[[Any, Any], Any]]] = {
    ast.Add: ("add", lambda a, b: a + b),
    ast.Sub: ("sub", lambda a, b: a - b),
    ast.Mult: ("mul", lambda a, b: a * b),
    ast.FloorDiv: ("floordiv", lambda a, b: a // b),
    ast.Mod: ("floormod", lambda a, b: a % b),
    ast.BitAnd: ("bitand", lambda a, b: a & b),
    ast.BitOr: ("bitor", lambda a, b: a | b),
    ast.BitXor: ("bitxor", lambda a, b: a ^ b),
    ast.LShift: ("shl", lambda a, b: a << b),
    ast.RShift: ("shr", lambda a, b: a >> b),
}


def index_names(rank: int) -> tuple[str, ...]:
    """The names of the logical indices in index texts."""
    return tuple(f"i{k}" for k in range(rank))


@cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _evaluate(n: ast.expr, names: Mapping[str, Any], apply: Callable[[type[ast.operator], Any, Any], Any]) -> Any:
    if isinstance(n, ast.BinOp) and type(n.op) in _OPERATORS:
        return apply(type(n.op), _evaluate(n.left, names, apply), _evaluate(n.right, names, apply))
    if isinstance(n, ast.UnaryOp) and isinstance(n.op, ast.USub):
        return apply(ast.Sub, 0, _evaluate(n.operand, names, apply))
    if isinstance(n, ast.Name) and n.id in names:
        return names[n.id]
    if isinstance(n, ast.Constant) and type(n.value) is int:
        return n.value
    raise ValueError(f"{ast.unparse(n)} is no expression of indices with + - * // % & | ^ << >>")


def physical_indices(layout: LayoutData, indices: Sequence[Expr]) -> tuple[Expr, ...]:
    """The indices in memory of the element at these logical indices."""

    def apply(op: type[ast.operator], a: Any, b: Any) -> Any:
        name, python = _OPERATORS[op]
        return build.binary(name, a, b) if isinstance(a, Expr) or isinstance(b, Expr) else python(a, b)

    names = dict(zip(index_names(len(indices)), indices, strict=True))
    found = [_evaluate(_parsed(text), names, apply) for text in layout[1]]
    return tuple(e if isinstance(e, Expr) else build.const(e, build.INT32) for e in found)


def physical_extents(texts: Sequence[str], shape: Sequence[int]) -> tuple[int, ...]:
    """How far each index in memory reaches: one more than its largest value, by interval arithmetic."""

    def apply(op: type[ast.operator], a: Any, b: Any) -> Any:
        (low, high), (from_, to) = (x if isinstance(x, tuple) else (x, x) for x in (a, b))
        if op is ast.Mod and from_ == to > 0:
            return (low, high) if 0 <= low and high < to else (0, to - 1)
        if op in (ast.BitOr, ast.BitXor):
            return 0, (1 << max(high, to, 0).bit_length()) - 1
        if op is ast.BitAnd:
            return 0, min(high, to)
        corners = [_OPERATORS[op][1](x, y) for x in (low, high) for y in (from_, to)]
        return min(corners), max(corners)

    names = {n: (0, extent - 1) for n, extent in zip(index_names(len(shape)), shape, strict=True)}
    found = [_evaluate(_parsed(text), names, apply) for text in texts]
    return tuple((e[1] if isinstance(e, tuple) else e) + 1 for e in found)


def positions(layout: LayoutData, shape: Sequence[int]) -> np.ndarray[Any, Any]:
    """Per logical element the number of its place in memory; int64 of the logical shape."""
    grids = np.ogrid[tuple(slice(0, n) for n in shape)]
    names = dict(zip(index_names(len(shape)), (g.astype(np.int64) for g in grids), strict=True))
    place: Any = np.zeros(tuple(shape), np.int64)
    for extent, text in zip(*layout, strict=True):
        place = place * extent + _evaluate(_parsed(text), names, lambda op, a, b: _OPERATORS[op][1](a, b))
    return np.broadcast_to(place, tuple(shape))


def is_bijection(layout: LayoutData, shape: Sequence[int]) -> bool:
    """Each place in memory has exactly one element."""
    if math.prod(layout[0]) != math.prod(shape):
        return False
    seen = np.zeros(math.prod(shape), np.bool_)
    found = positions(layout, shape).reshape(-1)
    if found.size and (found.min() < 0 or found.max() >= found.size):
        return False
    seen[found] = True
    return bool(seen.all())
