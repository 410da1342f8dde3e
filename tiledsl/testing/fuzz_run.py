"""Fuzzing for a while: `python -m tiledsl.testing.fuzz_run --minutes 10`.

Draws programs, checks each in every way, makes failing ones smaller and saves them as files that run by themselves.
A round of programs follows from its number alone. The folder is the database: the next number, so that runs continue;
the failures, which the next run tries first (what passes by then goes to fixed/); and the totals of all runs. Ctrl-C
ends a run early, with its report.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import runpy
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tiledsl.errors import InternalError
from tiledsl.ir.walk import walk
from tiledsl.testing.fuzz import COMPILING, ORACLES, check
from tiledsl.testing.oracles import applies
from tiledsl.testing.reduce import reduce
from tiledsl.testing.strategies import Program, random_program

__all__ = ["Session", "drawn", "failure_key", "main"]

_ROUND = 20


def drawn(number: int, count: int = _ROUND, most: int = 12) -> Iterator[Program]:
    """The programs of one round."""
    return (random_program(f"{number}.{k}", most) for k in range(count))


def failure_key(error: BaseException) -> str:
    """What makes two failures one: the kind of error, the line of this package that raised it, and its words without
    numbers and names of buffers."""
    cause = error.__cause__ if isinstance(error, InternalError) and error.__cause__ is not None else error
    frames = traceback.extract_tb(cause.__traceback__) or traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "tiledsl" in f.filename or "backends" in f.filename] or list(frames)
    where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else ""
    words = re.sub(r"\b[A-Z]?\d+\b|\d+", "#", str(error).splitlines()[0] if str(error) else "")
    return f"{type(error).__name__} {where} {words}"[:160]


@dataclass
class Session:
    """What a run has seen."""

    folder: Path
    compile_every: int = 2  # every how many programs the compiled targets are run, too
    programs: int = 0
    statements: list[int] = field(default_factory=list)
    oracles: Counter[str] = field(default_factory=Counter)
    features: Counter[str] = field(default_factory=Counter)
    nodes: Counter[str] = field(default_factory=Counter)
    failures: Counter[str] = field(default_factory=Counter)

    def try_one(self, program: Program, seconds: float) -> None:
        """Check one program; the first failure of its kind is reduced (for that long) and saved."""
        compiled = self.programs % self.compile_every == 0
        names = [n for n in ORACLES if compiled or n not in COMPILING]
        self.programs += 1
        self.statements.append(program.statements)
        self.features.update(program.features)
        try:
            kernels = program.function.kernels
            self.nodes.update({type(n).__name__ for k in kernels for n in walk(k.body)})
            self.oracles.update(n for n in names if applies(n, program))
            check(program, 0, names)
        except Exception as error:
            key = failure_key(error)
            self.failures[key] += 1
            if self.failures[key] == 1:
                self.save(program, key, error, names, seconds)

    def save(self, program: Program, key: str, error: Exception, names: Sequence[str], seconds: float) -> None:
        def same(candidate: Program) -> bool:
            try:
                check(candidate, 0, ["checked", *names])
            except Exception as e:
                return failure_key(e) == key
            return False

        small = reduce(program, same, seconds)
        name = re.sub(r"\W+", "-", key).strip("-").lower()[:80]
        path = self.folder / f"{name}.py"
        path.write_text(small.text(0, f"{key}\n{error}"), encoding="utf-8")
        print(f"\nfailure: {key}\n  saved as {path}", file=sys.stderr)

    def report(self, seconds: float) -> dict[str, Any]:
        ordered = sorted(self.statements)
        return {
            "seconds": round(seconds),
            "programs": self.programs,
            "median statements": ordered[len(ordered) // 2] if ordered else 0,
            "oracles": dict(self.oracles.most_common()),
            "failures": dict(self.failures),
            "features": dict(self.features.most_common()),
            "tile-stage nodes": dict(self.nodes.most_common()),
        }


def retry(folder: Path) -> None:
    """Runs the failures of earlier runs; those that pass move to fixed/."""
    for path in sorted(folder.glob("*.py")):
        try:
            runpy.run_path(str(path), run_name="__main__")
        except Exception as error:
            print(f"still fails: {path} ({type(error).__name__})", file=sys.stderr)
            continue
        (folder / "fixed").mkdir(exist_ok=True)
        path.rename(folder / "fixed" / path.name)
        print(f"fixed: {path}", file=sys.stderr)


@contextlib.contextmanager
def progress(seconds: float) -> Iterator[Callable[[str], None]]:
    """`with progress(600) as show: show("what was done so far")`: a bar of the time with rich on a terminal, else a
    line every half minute."""
    begin = time.monotonic()
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        terminal = False
    else:
        terminal = sys.stderr.isatty()
    if terminal:
        columns = (BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("", total=seconds)
            yield lambda text: bar.update(task, completed=time.monotonic() - begin, description=text)
        return
    last = begin

    def line(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > 30:
            last = time.monotonic()
            print(f"{(last - begin) / 60:5.1f} of {seconds / 60:.0f} minutes: {text}", file=sys.stderr, flush=True)

    yield line


def add_totals(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The totals of all runs with this folder, written back."""
    path = folder / "totals.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    totals: dict[str, Any] = {k: old.get(k, 0) + report[k] for k in ("seconds", "programs")}
    for k in ("oracles", "failures"):
        totals[k] = dict((Counter(old.get(k, {})) + Counter(report[k])).most_common())
    path.write_text(json.dumps(totals, indent=2), encoding="utf-8")
    return totals


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the number of kinds of failures, at most 100."""
    parser = argparse.ArgumentParser(prog="python -m tiledsl.testing.fuzz_run", description=__doc__.split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--folder", type=Path, default=Path(".fuzz"), help="the database")
    parser.add_argument("--start", type=int, help="number of the first round (default: where the last run ended)")
    parser.add_argument("--most", type=int, default=12, help="statements of a kernel, roughly, before its macros")
    parser.add_argument("--compile-every", type=int, default=2, help="compile every n-th program")
    given = parser.parse_args(argv)
    session = Session(given.folder, given.compile_every)
    given.folder.mkdir(parents=True, exist_ok=True)
    retry(given.folder)
    state = given.folder / "next-round"
    number = given.start if given.start is not None else int(state.read_text()) if state.exists() else 0
    begin = time.monotonic()
    end = begin + 60 * given.minutes
    with progress(60 * given.minutes) as show, contextlib.suppress(KeyboardInterrupt):
        while time.monotonic() < end:
            for program in drawn(number, most=given.most):
                if time.monotonic() > end:
                    break
                session.try_one(program, min(45.0, max(5.0, end - time.monotonic())))
                show(
                    f"{session.programs} programs, {session.oracles['targets']} compiled, "
                    f"{len(session.failures)} kinds of failures"
                )
            number += 1
            state.write_text(str(number), encoding="utf-8")
    report = session.report(time.monotonic() - begin)
    totals = add_totals(given.folder, report)
    minutes, kept = report["seconds"] / 60, given.folder / "report.json"
    kept.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(f"{session.programs} programs in {minutes:.1f} minutes, median {report['median statements']} statements, "
          f"{len(session.failures)} kinds of failures; what they contained: {kept}")  # fmt: skip
    print("checked by", ", ".join(f"{oracle} {n}" for oracle, n in report["oracles"].items()))
    print(f"all runs in {given.folder}: {totals['programs']} programs in {totals['seconds'] / 60:.0f} minutes, "
          f"{len(totals['failures'])} kinds of failures")  # fmt: skip
    for key, count in session.failures.items():
        print(f"{count:5} x {key}")
    return min(100, len(session.failures))


if __name__ == "__main__":
    sys.exit(main())
