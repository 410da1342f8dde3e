"""Runs tests of a copied tree in forked children of a process that has the slow imports behind it.

`run_file` forks: the child imports the tree anew (so it sees what stands on the disk now), runs chosen tests of one
file with pytest and tells the parent each outcome through a pipe. A child that loops, waits or crashes is an outcome.
"""

from __future__ import annotations

import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Outcome", "preload", "run_file"]

MEMORY = 12 << 30
SLOWER = 4.0  # a test may take this much longer than it took on the sound tree, and ...
GRACE = 4.0  # ... these many seconds of CPU time more, before it counts as one that does not end


@dataclass
class Outcome:
    """What became of the tests of one file. failed: the first that did; how: "failed", "hang", "crash" or ""."""

    passed: dict[str, float] = field(default_factory=dict)  # name -> seconds of CPU time
    failed: str = ""
    how: str = ""
    why: str = ""
    seconds: float = 0.0  # CPU time of the child and of what it started
    lines: dict[str, dict[str, str]] = field(default_factory=dict)  # test -> file -> lines as a hexadecimal bit mask


def preload() -> None:
    """Import what every test needs and no mutant changes; one thread each, so that forks are safe."""
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    import hypothesis.strategies  # noqa: F401
    import llvmlite.binding  # noqa: F401
    import ml_dtypes  # noqa: F401
    import numba  # noqa: F401
    import numba.core.typed_passes  # noqa: F401
    import numpy as np
    import pytest  # noqa: F401

    try:
        import torch  # noqa: F401
    except ImportError:
        pass
    numba.njit(lambda x: x + 1)(np.float32(1))  # the registries of Numba fill on the first compilation


def run_file(
    root: Path, file: str, tests: Mapping[str, float], *, trace: Sequence[str] = (), most: float = 30.0
) -> Outcome:
    """Run tests (name -> expected seconds of CPU time; none: all of the file, in order) of a file below root until the
    first one fails. trace: folders below root whose lines are recorded per test, with all tests run that are not slow,
    until `most` seconds of CPU time are spent (needs coverage).
    """
    scratch = tempfile.mkdtemp(prefix="tiledsl-mutant-")
    reading, writing = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reading)
        os.setsid()
        _child(root, file, tests, trace, most, Path(scratch), writing)
    os.close(writing)
    allowed = sum(tests.values()) * SLOWER + GRACE if tests else 3000.0
    out = Outcome()
    running = ""
    buffer = b""
    killed = False
    while True:
        ready, _, _ = select.select([reading], [], [], 5.0)
        if ready:
            got = os.read(reading, 1 << 20)
            if not got:
                break
            buffer += got
            *rows, buffer = buffer.split(b"\n")
            for row in rows:
                running = _note(json.loads(row), out, running)
        elif time.monotonic() - started > 120 + 12 * allowed:  # it waits for what does not come
            killed = True
            break
    if killed:
        os.killpg(child, signal.SIGKILL)
    os.close(reading)
    _, status, usage = os.wait4(child, 0)
    try:
        os.killpg(child, signal.SIGKILL)  # what it left behind
    except ProcessLookupError:
        pass
    shutil.rmtree(scratch, ignore_errors=True)
    out.seconds = usage.ru_utime + usage.ru_stime
    if not out.how and (killed or status):
        hang = killed or (os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGXCPU, signal.SIGKILL))
        hang = hang or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 97)
        out.failed, out.how = running or file, "hang" if hang else "crash"
        out.why = f"status {status}"
    return out


def _note(row: Any, out: Outcome, running: str) -> str:
    kind, name, *rest = row
    if kind == "start":
        return str(name)
    if kind == "passed":
        out.passed[name] = rest[0]
    elif kind == "lines":
        out.lines[name] = rest[0]
    elif not out.how:
        out.failed, out.how, out.why = name, "failed", rest[0]
    return running


def _child(
    root: Path, file: str, tests: Mapping[str, float], trace: Sequence[str], most: float, scratch: Path, writing: int
) -> None:
    """Never returns."""
    status = 0
    try:
        null = os.open(scratch / "output", os.O_RDWR | os.O_CREAT)
        for handle in (0, 1, 2):
            os.dup2(null, handle)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if tests:
            spent = resource.getrusage(resource.RUSAGE_SELF)
            limit = int(spent.ru_utime + spent.ru_stime + sum(tests.values()) * SLOWER + GRACE) + 1
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        os.chdir(root)
        os.environ.update(
            CI="1", PYTHONPATH=str(root), TILEDSL_CACHE_DIR=str(scratch / "cache"), HOME=str(scratch),
            PYTHONDONTWRITEBYTECODE="1", TMPDIR=str(scratch),
        )  # fmt: skip
        tempfile.tempdir = None
        sys.dont_write_bytecode = not trace
        sys.path.insert(0, str(root))
        _pytest(root, file, tests, trace, most, writing, scratch)
    except BaseException:
        # The tree cannot be imported, or pytest itself stopped.
        os.write(writing, (json.dumps(["failed", file, traceback.format_exc()[-400:]]) + "\n").encode())
        status = 1
    finally:
        os._exit(status)


def _pytest(
    root: Path, file: str, tests: Mapping[str, float], trace: Sequence[str], most: float, writing: int, scratch: Path
) -> None:
    import pytest

    recorder = _recorder(root, trace, scratch) if trace else None

    began = time.process_time()

    def tell(*row: Any) -> None:
        data = (json.dumps(row) + "\n").encode()
        while data:
            data = data[os.write(writing, data) :]

    class Plugin:
        begin = 0.0

        def pytest_collection_modifyitems(self, items: list[Any]) -> None:
            if tests:
                place = {name: i for i, name in enumerate(tests)}
                chosen = sorted((i for i in items if i.nodeid in place), key=lambda i: place[i.nodeid])
                items[:] = chosen
            elif recorder:  # the first case of every test, then the second: whoever is cut short has seen all tests
                seen: Counter[str] = Counter()
                turn = {}
                for i in items:
                    seen[i.nodeid.partition("[")[0]] += 1
                    turn[i] = seen[i.nodeid.partition("[")[0]]
                items.sort(key=lambda i: turn[i])

        @pytest.hookimpl(wrapper=True)
        def pytest_runtest_protocol(self, item: Any, nextitem: Any) -> Any:
            tell("start", item.nodeid)
            if recorder:
                recorder.switch_context(item.nodeid)
            self.begin = time.process_time()
            self.bad = ""
            signal.setitimer(signal.ITIMER_PROF, tests[item.nodeid] * SLOWER + GRACE if tests else 300.0)
            result = yield
            signal.setitimer(signal.ITIMER_PROF, 0)
            if recorder:
                recorder.switch_context("")
                if time.process_time() - began > most:
                    item.session.shouldstop = "enough was seen of this file"
            if self.bad:
                tell("failed", item.nodeid, self.bad)
            elif self.bad is not None:
                tell("passed", item.nodeid, round(time.process_time() - self.begin, 3))
            return result

        def pytest_runtest_logreport(self, report: Any) -> None:
            if report.failed:
                self.bad = str(report.longrepr)[-300:]
            elif report.skipped:
                self.bad = None

        def pytest_collectreport(self, report: Any) -> None:
            if report.failed:
                tell("failed", file, str(report.longrepr)[-300:])

    signal.signal(signal.SIGPROF, lambda *_: os._exit(97))
    arguments = ["-q", "-p", "no:cacheprovider", "-p", "no:faulthandler", "-W",
                 "ignore:Module already imported", "--rootdir", str(root),
                 f"--basetemp={scratch / 'tests'}", *(["-m", "not slow"] if trace else ["-x"]), file]  # fmt: skip
    code = pytest.main(arguments, plugins=[Plugin()])
    if code not in (0, 1, 2 if trace else 0, 5):
        tell("failed", file, f"pytest ended with {code}")
    if recorder:
        recorder.stop()
        for name, lines in _lines(root, recorder).items():
            tell("lines", name, lines)


def _recorder(root: Path, trace: Sequence[str], scratch: Path) -> Any:
    from coverage import Coverage

    recorder = Coverage(
        data_file=str(scratch / "coverage"), include=[f"{root / f}/*" for f in trace], config_file=False
    )
    recorder.start()
    return recorder


def _lines(root: Path, recorder: Any) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, int]] = {}
    data = recorder.get_data()
    for path in data.measured_files():
        name = str(Path(path).resolve().relative_to(root.resolve()))
        for line, contexts in data.contexts_by_lineno(path).items():
            for context in contexts:
                masks = found.setdefault(context, {})
                masks[name] = masks.get(name, 0) | 1 << line
    return {test: {f: f"{m:x}" for f, m in masks.items()} for test, masks in found.items()}
