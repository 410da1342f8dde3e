"""What every test gets: reproducible property tests, golden files, a count of what was skipped and why at the end."""

from __future__ import annotations

import gc
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tiledsl import backend, config
from tiledsl.backend import load_backend

# A first call compiles, so the time of one example says nothing. CI repeats the same examples on every run.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("default"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")

collect_ignore = ["tilelang_programs"]  # run by `tiledsl pytest`, with a conftest of their own

# The user's cache of compiled kernels is neither read nor written: a run compiles what it tests. The folder is made by
# the process that starts first and handed to pytest-xdist's workers in the environment.
if "TILEDSL_CACHE_DIR" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="tiledsl-tests-", ignore_cleanup_errors=True)
    os.environ["TILEDSL_CACHE_DIR"] = CACHE.name


backend.BUILT_IN |= {"cuda-copied": "gpu.copied:backend"} if "cuda-copied" in config.TEST_TARGETS.get() else {}


def pytest_sessionfinish() -> None:
    if place := os.environ.get("TILEDSL_GPU_RESULTS"):  # of `make gpu`
        from gpu import machine, recorded

        recorded.save(Path(place), **machine.facts())


# Compiling makes many small objects and few cycles: with the default thresholds a quarter of its time went into looking
# for them, and every full collection visited all of NumPy, torch and the collected tests.
gc.set_threshold(20_000, 20, 20)


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()


GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the files under tests/goldens anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """golden("errors/gemm_inner_sizes", text): the text equals tests/goldens/errors/gemm_inner_sizes.txt.
    numbered=False: line numbers in it may change, as those of a test's own file do."""

    def compare(name: str, text: str, numbered: bool = True) -> None:
        if not numbered:
            text = re.sub(r":\d+:(\d+)", r":NN:\1", text)
            text = re.sub(r"(?m)^ +\|", "   |", re.sub(r"(?m)^\d+ \|", "NN |", text))
        path = GOLDENS / f"{name}.txt"
        text = text.rstrip("\n") + "\n"
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"no golden {path.name} yet; run pytest --update-golden and review what it writes"
        assert text == path.read_text(encoding="utf-8")

    return compare


@pytest.fixture(params=config.TEST_TARGETS.get().split() or ["numpy", "llvm"], scope="module")
def target(request: pytest.FixtureRequest) -> str:
    """What the tests of the library run on: the meaning and the default target, unless others are named."""
    state = load_backend(request.param.partition(":")[0]).probe()
    if not state.ok:
        pytest.skip(f"target {request.param} is not available: {state.reason}")
    return str(request.param)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(skip_reason(report) for report in skipped)
    terminalreporter.section(f"skipped: {len(skipped)}")
    for reason, count in reasons.most_common():
        terminalreporter.write_line(f"{count:6} {reason}")


def skip_reason(report: pytest.TestReport) -> str:
    """The author's words of a skip, without its place."""
    words = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return words.removeprefix("Skipped: ")
