"""What the operation table says about drawing: elementwise rows as templates, and the rows that are drawn nowhere."""

from __future__ import annotations

import functools
import re

from tiledsl.ir.operations import OPERATIONS, Operation

__all__ = ["NOT_DRAWN", "WRITTEN", "families_for", "fill_in", "operand_kinds", "statement_rows"]

# The table's kinds of dtypes -> the kinds of values that programs are made of.
_KINDS = {"float": "float", "int": "int", "uint": "int", "bool": "bool"}
# How often a family is drawn beside the others; a math function is dozens of operations.
_WEIGHTS = {"Arithmetic": 6, "Bits": 3, "Choice": 2, "Comparison": 3, "Logic": 3, "Functions of floats": 3}

# Rows with operands that their `takes` cannot say: the kind they give, and how they are written.
WRITTEN: dict[str, tuple[str, str]] = {
    "ceildiv": ("int", "T.ceildiv({int}, {number})"),
    "align_up": ("int", "T.align_up(T.cast({int}, 'int32'), {positive})"),
    "popcount": ("int", "T.popcount(T.cast({int}, '{bits}'))"),
    "clz": ("int", "T.clz(T.cast({int}, '{bits}'))"),
    "ffs": ("int", "T.ffs(T.cast({int}, '{bits}'))"),
    "brev": ("int", "T.brev(T.cast({int}, '{bits}'))"),
    "byte_perm": ("int", "T.byte_perm(T.cast({int}, 'uint32'), T.cast({int}, 'uint32'), T.cast({int}, 'uint32'))"),
    **{
        f"{op}2": ("float", f"T.extract_lane(T.{op}2(T.{{pair}}({{float}}, 1.5), T.{{pair}}(2, {{float}})), {{lane}})")
        for op in ("add", "sub", "mul", "min", "max")
    },
    "ldexp": ("float", "T.ldexp({float}, {int})"),
    "abs2": ("float", "T.abs2(T.{pair}({float}, -1.5))[{lane}]"),
    "fma2": ("float", "T.fma2(T.{pair}({float}, 0.5), 2.0, T.{pair}(1.5, {float}))[{lane}]"),
    "vectorized_cast": ("float", "T.vectorized_cast(T.{pair}({float}, 3.0), 'float32x2')[{lane}]"),
    "pow_of_int": ("float", "T.pow_of_int({float}, {positive})"),
}

# Rows that no program contains, and why.
NOT_DRAWN = {
    "empty": "arguments are given by the caller, so that canaries can surround them",
    "dtype": "a Python value: nothing of it is in the IR",
    "Buffer": "older name of Tensor",
    "symbolic": "older name of dynamic",
    "determine_fp8_type": "a Python value",
    "call_extern": "the table of named functions; each is one of the rows that are drawn",
    "evaluate": "runs a call for its effect; nothing of it is in the IR",
    "PersistentTileScheduler": "an object around the arithmetic of T.Persistent",
    "thread_binding": "another spelling of get_thread_binding",
    **dict.fromkeys(
        ("rng_init", "rng_rand", "rng_rand_float"), "a loop of drawn integer operators, tested by its numbers"
    ),
}
_REASONS = {
    "annotations, which only the macro's author reads": "SharedBuffer FragmentBuffer LocalBuffer PrimExpr meta_class",
    "a hint without meaning on CPU targets": "ClusterKernel Fragment GemmWarpPolicy warpgroup_fence_operand "
    "inc_max_nreg dec_max_nreg annotate_producer_reg_dealloc annotate_consumer_reg_alloc",
}
NOT_DRAWN |= {name: why for why, names in _REASONS.items() for name in names.split()}


@functools.cache
def families_for(kind: str) -> tuple[tuple[Operation, ...], ...]:
    """Elementwise rows that give a value of this kind, by family; a family stands there as often as it is to be
    drawn."""
    found: dict[str, list[Operation]] = {}
    for row in OPERATIONS.values():
        if not row.arity or row.family == "Tiles" or row.gives not in ("promoted", "bool"):
            continue
        gives = {"bool"} if row.gives == "bool" else {_KINDS[k] for k in row.takes}
        if kind in gives:
            found.setdefault(row.family, []).append(row)
    return tuple(tuple(rows) for family, rows in found.items() for _ in range(_WEIGHTS.get(family, 1)))


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
