"""The library, the programs, generated kernels and the conformance suite on the target "cuda-emulator".

Here each of them meets one of the orders in which threads go on and copies arrive; `make emulator` names all in
TILEDSL_TEST_TARGETS, and runs the library's own tests on them as well.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from properties import support

from tiledsl import config
from tiledsl.backend import load_backend
from tiledsl.testing import conformance
from tiledsl.testing.fuzz import check
from tiledsl.testing.fuzz_run import drawn

pytest.importorskip("tiledsl.kernels")

from library_calls import CALLS, covered, public  # noqa: E402

ORDERS = ("cuda-emulator:sm_80,checked,late", "cuda-emulator:sm_90a,last", "cuda-emulator:sm_80,random=1,any")
NAMED = tuple(config.TEST_TARGETS.get().split())
pytestmark = pytest.mark.skipif(not NAMED and not load_backend("cuda-emulator").probe().ok, reason="no C++ compiler")
ROUNDS = range(300, 310) if NAMED else range(300, 301)  # of generated kernels, 20 each


def test_every_function_of_the_library_is_called() -> None:
    assert covered() - {"", "matmul_float64"} == public()


def flat(x: Any) -> list[Any]:
    return list(x) if isinstance(x, (list, tuple)) else [x]


def turns() -> list[tuple[str, str]]:
    """(name of a call, target): every target, or one each in turn."""
    if NAMED:
        return [(name, target) for name in CALLS for target in NAMED]
    return list(zip(CALLS, itertools.cycle(ORDERS), strict=False))


@pytest.mark.parametrize(("name", "target"), turns())
def test_library(name: str, target: str) -> None:
    want, got = (flat(CALLS[name](np.random.default_rng(1), t)) for t in ("numpy:exact", target))
    for i, (a, b) in enumerate(zip(got, want, strict=True)):
        support.assert_same(np.asarray(a), np.asarray(b), f"{name} on {target}: result {i}")


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMED or ORDERS[:1])
@pytest.mark.parametrize("number", ROUNDS)
def test_generated_kernels(number: int, target: str) -> None:
    for program in drawn(number) if NAMED else itertools.islice(drawn(number), 6):
        with config.TEST_TARGETS.override(target):
            check(program, 0, ["targets"])


@pytest.mark.slow
@pytest.mark.parametrize("target", NAMED or ORDERS[:1])
def test_conformance(target: str) -> None:
    some = "^(protocol|control|gemm float16|reductions float16|atomics int32|casts from float32$)"
    report = conformance(target, rounds=1 if NAMED else 0, only="" if NAMED else some)
    assert report.ok and not report.skipped, f"{report}\n{report.skipped}"
