"""What 200 drawn programs contain, without running them: rows of the operation table, bug classes, nodes, size."""

from __future__ import annotations

import functools
import re

import pytest
from fuzz.bug_classes import BUG_CLASSES

from tiledsl.ir.operations import OPERATIONS
from tiledsl.ir.stmt import Function, MicroCall
from tiledsl.ir.verifier import STAGES
from tiledsl.ir.walk import walk
from tiledsl.testing.fuzz_run import drawn
from tiledsl.testing.strategies import Program
from tiledsl.testing.strategies.rows import NOT_DRAWN


@functools.cache
def programs() -> list[tuple[Program, Function]]:
    return [(p, p.function) for n in range(10) for p in drawn(n, 20)]


@pytest.mark.slow
def test_every_bug_class_is_drawn() -> None:
    assert [name for name, holds in BUG_CLASSES.items() if not any(holds(p, f) for p, f in programs())] == []


def test_bug_classes_can_be_absent() -> None:
    """Each predicate tells programs apart: a copy of one element shows hardly any of them."""
    source = """
import tiledsl
import tiledsl.language as T

@T.prim_func
def main(A: T.Tensor((16,), "float32"), B: T.Tensor((16,), "float32")):
    with T.Kernel(1):
        for i in T.Parallel(16):
            B[i] = A[i]

kernel = tiledsl.compile(main)
"""
    plain = Program(source, ())
    assert [name for name, holds in BUG_CLASSES.items() if holds(plain, plain.function)] == []


@pytest.mark.slow
def test_every_row_of_the_table_is_drawn_or_says_why_not() -> None:
    """A new row is drawn as soon as it stands in the table; one that cannot be is named in NOT_DRAWN, with a reason."""
    words: set[str] = set()
    for p in (p for n in range(60) for p in drawn(n, 20)):  # only drawn, which is quick
        words |= set(re.findall(r"\bT\.(\w+)", p.source))
        words |= {f.removeprefix("row ") for f in p.features if f.startswith("row ")}
    assert [name for name in OPERATIONS if name not in words and name not in NOT_DRAWN] == []
    assert [name for name in NOT_DRAWN if name in words or name not in OPERATIONS] == []


@pytest.mark.slow
def test_nodes_and_size() -> None:
    """All nodes of the tile stage that the surface can make; the median program has 15 statements or more."""
    sizes = sorted(p.statements for p, _ in programs())
    assert sizes[len(sizes) // 2] >= 15
    seen = {type(n) for _, f in programs() for k in f.kernels for n in walk(k.body)}
    assert {c.__name__ for c in STAGES["tile"] - seen - {MicroCall}} == set()  # which only lowerings make
