"""Generated kernels, the same ones on every run, most of them without a compiler; `make fuzz` goes on for longer."""

from __future__ import annotations

import pytest

from tiledsl.testing.fuzz import COMPILING, ORACLES, check
from tiledsl.testing.fuzz_run import drawn

INTERPRETED = [n for n in ORACLES if n not in COMPILING]


@pytest.mark.slow
@pytest.mark.parametrize("number", range(5))
def test_interpreter_and_passes(number: int) -> None:
    for program in drawn(number, 3):
        check(program, number, INTERPRETED)


@pytest.mark.slow
@pytest.mark.parametrize("number", range(100, 104))
def test_compiled(number: int) -> None:
    for program in drawn(number, 2):
        check(program, number, sorted(COMPILING))
