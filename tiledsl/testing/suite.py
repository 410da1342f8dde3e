"""What a backend has to pass: the same numbers as the exact interpreter, on all that it says it can do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from tiledsl.backend import Artifact, Availability, Backend, Capabilities, load_backend, resolve
from tiledsl.dtypes import SCALARS
from tiledsl.errors import TileNotImplementedError
from tiledsl.testing.fuzz import same_bits
from tiledsl.testing.strategies import Program
from tiledsl.testing.suite_cases import PROGRAMS, cases

__all__ = ["Report", "run_suite"]


@dataclass(frozen=True)
class Report:
    """What the suite found. passed: names of cases; failed: (case, why); skipped: (case, missing dtypes, or what the
    backend says that it does not have yet)."""

    target: str
    passed: tuple[str, ...]
    failed: tuple[tuple[str, str], ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def ok(self) -> bool:
        return bool(self.passed) and not self.failed

    def __str__(self) -> str:
        head = f"{self.target}: {len(self.passed)} passed, {len(self.failed)} failed, {len(self.skipped)} skipped"
        return "\n".join([head, *(f"  {case}: {why}" for case, why in self.failed)])


@dataclass(frozen=True)
class _Case:
    """One check. dtypes: what the backend has to support for it."""

    name: str
    dtypes: frozenset[str]
    run: Callable[[str], None]


def run_suite(target: str, rounds: int, only: str, show: Callable[[str], object]) -> Report:
    """See `tiledsl.testing.conformance`. What the backend itself raises is a failed case."""
    wanted = resolve(target)
    backend = load_backend(wanted.name)
    able = backend.capabilities(wanted).dtypes
    passed: list[str] = []
    failed: list[tuple[str, str]] = []
    skipped: list[tuple[str, str]] = []
    for case in _cases(backend, able, rounds):
        if not re.search(only, case.name):
            continue
        missing = sorted(case.dtypes - able)
        if missing:
            skipped.append((case.name, ", ".join(missing)))
            continue
        show(case.name)
        try:
            case.run(str(wanted))
        except TileNotImplementedError as error:
            skipped.append((case.name, str(error).splitlines()[0]))
        except Exception as error:
            lines = str(error).splitlines() or [""]
            failed.append((case.name, f"{type(error).__name__}: {lines[0]}"))
        else:
            passed.append(case.name)
    return Report(str(wanted), tuple(passed), tuple(failed), tuple(skipped))


def _cases(backend: Backend, able: frozenset[str], rounds: int) -> Iterator[_Case]:
    yield _Case("protocol", frozenset(), lambda target: _protocol(backend, target))
    for name, program in cases(able):
        yield _Case(name, _used(program), _runner(program))
    for number in range(rounds):
        from tiledsl.testing.fuzz_run import drawn

        for k, program in enumerate(drawn(5000 + number)):
            yield _Case(f"generated {number}.{k}", _used(program), _runner(program))


def _used(program: Program) -> frozenset[str]:
    words = set(re.findall(r"\w+", program.source)) | {a.dtype for a in program.arguments}
    return frozenset(words & SCALARS)


def _runner(program: Program) -> Callable[[str], None]:
    def run(target: str) -> None:
        kernel = program.kernel()
        want, got = program.make_args(1), program.make_args(1)
        kernel(*want, target="numpy:exact")
        kernel(*got, target=target)
        for p, a, b in zip(kernel.params, want, got, strict=True):
            if isinstance(a, np.ndarray):
                wrong = np.argwhere(~same_bits(a, b))
                assert not len(wrong), (
                    f"{len(wrong)} of {a.size} elements of {p.name} differ, first at {wrong[0].tolist()}: "
                    f"{b[tuple(wrong[0])]!r}, not {a[tuple(wrong[0])]!r}"
                )

    return run


def _protocol(backend: Backend, target: str) -> None:
    """The members give what they promise, and emit is a function of what it is given."""
    wanted = resolve(target)
    assert isinstance(backend.probe(), Availability) and isinstance(backend.capabilities(wanted), Capabilities)
    version = backend.version(wanted)
    assert isinstance(version, str) and version and version == backend.version(wanted), "version changes"
    program = PROGRAMS["copies"]
    kernel = program.kernel()
    made = []
    for _ in range(2):
        function = kernel.function
        for p in backend.pipeline(wanted):
            function = p(function)
        made.append(backend.emit(function, wanted))
    assert all(isinstance(a, Artifact) for a in made)
    assert made[0].source == made[1].source, "two emissions of one function differ"
    assert not (made[0].payload is not None and backend.capabilities(wanted).cacheable), "a payload cannot be cached"
