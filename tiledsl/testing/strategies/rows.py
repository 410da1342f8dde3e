"""What the operation table says about drawing: elementwise rows as templates, and the rows that are drawn nowhere."""

from __future__ import annotations

import functools
import re

from tiledsl.ir.operations import OPERATIONS, Operation

__all__ = ["NOT_DRAWN", "fill_in", "operand_kinds", "rows_for", "statement_rows"]

# The table's kinds of dtypes -> the kinds of values that programs are made of.
_KINDS = {"float": "float", "int": "int", "uint": "int", "bool": "bool"}
# The four operators make most of arithmetic; a math function is dozens of operations.
_WEIGHTS = {"Arithmetic": 4, "Bits": 2, "Choice": 2, "Comparison": 4, "Logic": 4}

# Rows that no program contains, and why.
NOT_DRAWN = {
    "empty": "arguments are given by the caller, so that canaries can surround them",
    "dtype": "a Python value: nothing of it is in the IR",
    "Buffer": "older name of Tensor",
    "symbolic": "older name of dynamic",
    "GemmWarpPolicy": "a hint without meaning on CPU targets",
}


@functools.cache
def rows_for(kind: str) -> tuple[Operation, ...]:
    """Elementwise rows that give a value of this kind, as often as they are to be drawn."""
    found: list[Operation] = []
    for row in OPERATIONS.values():
        if not row.arity or row.family == "Tiles" or row.gives not in ("promoted", "bool"):
            continue
        gives = {"bool"} if row.gives == "bool" else {_KINDS[k] for k in row.takes}
        found += [row] * (_WEIGHTS.get(row.family, 1) * (kind in gives))
    return tuple(found)


def operand_kinds(row: Operation, kind: str) -> list[str]:
    """Kinds that the operands may be of, where the result is to be of `kind`."""
    return list(dict.fromkeys(_KINDS[k] for k in row.takes)) if row.gives == "bool" else [kind]


def needs_sign(row: Operation) -> str:
    """ "int" or "uint" where a row takes integers of one signedness only, else ""."""
    signs = {"int", "uint"} & set(row.takes)
    return signs.pop() if len(signs) == 1 else ""


def fill_in(row: Operation, operands: list[str]) -> str:
    """The row's spelling with these texts for x, y and z, in brackets where it is no call."""
    texts = dict(zip("xyz", operands, strict=False))
    text = re.sub(r"\b[xyz]\b", lambda m: texts[m.group()], row.spelling)
    return text if row.params else f"({text})"


@functools.cache
def statement_rows(prefix: str) -> tuple[Operation, ...]:
    """Rows of statements whose names begin like this: T.reduce_sum, T.reduce_max ..."""
    return tuple(row for name, row in OPERATIONS.items() if name.startswith(prefix) and row.family != "Structure")
