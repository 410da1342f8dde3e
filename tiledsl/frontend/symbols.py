"""Shape symbols: one variable per name and dtype, shared by every kernel that mentions it."""

from __future__ import annotations

from tiledsl.dtypes import DType
from tiledsl.ir import Var

__all__ = ["is_symbol", "symbol"]

_SYMBOLS: dict[tuple[str, DType], Var] = {}


def symbol(name: str, dtype: DType) -> Var:
    """The shape symbol of this name, bound from argument shapes and strides at launch."""
    var = _SYMBOLS.get((name, dtype))
    if var is None:
        var = _SYMBOLS[name, dtype] = Var(name, dtype)
    return var


def is_symbol(var: Var) -> bool:
    return _SYMBOLS.get((var.name, var.type)) is var
