"""Generated kernels, the same ones on every run, most of them without a compiler; `make fuzz` goes on for longer."""

from __future__ import annotations

from collections import Counter

import pytest

from tiledsl.ir.walk import walk
from tiledsl.testing.fuzz import COMPILING, ORACLES, check
from tiledsl.testing.fuzz_run import drawn
from tiledsl.testing.strategies import Program

INTERPRETED = [n for n in ORACLES if n not in COMPILING]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(3))
def test_interpreter_and_passes(number: int) -> None:
    for program in drawn(number, 12):
        check(program, number, INTERPRETED)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100, 102))
def test_compiled(number: int) -> None:
    for program in drawn(number, 5):
        check(program, number, sorted(COMPILING))


def test_what_is_drawn() -> None:
    """The median program has 15 statements or more, and 100 programs contain what others got wrong."""
    programs: list[Program] = [p for n in range(5) for p in drawn(n, 20)]
    sizes = sorted(p.statements for p in programs)
    assert sizes[len(sizes) // 2] >= 15
    features = Counter(f for p in programs for f in p.features)
    wanted = {"gemm", "gemm chain", "two kernels", "macro", "while", "if in nest", "loop in nest", "strided", "reshape",
              "view", "wild index", "eager", "lazy", "prim_func", "copy of a slice", "clipped tile copy", "two targets",
              "loop Pipelined", "loop runtime", "exit", "meta", "aliased inputs",
              "safe value", "array in nest", "variable in nest", "guarded nest"}  # fmt: skip
    assert not wanted - set(features), wanted - set(features)
    nodes = {type(n).__name__ for p in programs[:40] for k in p.function.kernels for n in walk(k.body)}
    tile_stage = {"Alloc", "Let", "Store", "For", "While", "If", "Copy", "Fill", "Gemm", "Reduce", "Parallel", "Load",
                  "Binary", "Unary", "Fma", "Select", "IfThenElse", "Cast", "Call", "Const", "Var"}  # fmt: skip
    assert not tile_stage - nodes, tile_stage - nodes
