"""Plants mistakes in the compiler and looks whether its tests notice: `python tests/mutation/run.py --count 200`.

Works in copies of the repository, one for each process. Mutants are drawn per file, in proportion to how many are
possible there; with them come the planted ones (planted.toml). Each is run against the tests that are known to execute
its line (mapping.py), the most telling and quickest first, for at most 60 seconds of CPU time. A survivor that is no
mistake stands in explained.toml with the reason. The report goes to .fuzz/mutation/report.json and report.md. Not part
of `make test`.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing
import random
import shutil
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from mapping import Map, measure
from operators import Mutant, mutants, sample
from runner import preload, run_file

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / ".fuzz" / "mutation"
SECONDS = 60.0  # of CPU time per mutant, at most
STAGES = (3.0, 10.0, SECONDS)  # the most telling tests of all files first, then more of them
STARTING = 0.6  # seconds of CPU time that each test file costs before its first test
# What is mutated: the rooms between the author's text and the machine's code, and the keys of the caches.
ROOMS = ("tiledsl/frontend", "tiledsl/language", "tiledsl/ir", "tiledsl/analysis", "tiledsl/passes", "tiledsl/interp",
         "tiledsl/conversions.py", "tiledsl/runtime/cache.py", "tiledsl/runtime/program.py",
         "tiledsl/runtime/arguments.py", "tiledsl/runtime/artifacts.py", "backends/cpu", "backends/cpu/emit",
         "backends/numba_cpu", "backends/llvm_cpu", "backends/simt")  # fmt: skip
# Texts for people: what they say is compared by golden files, not by these tests.
TEXTS = ("describe.py", "instruments.py", "missing.py", "__init__.py")


def sources(root: Path) -> list[str]:
    found: set[Path] = set()
    for room in ROOMS:
        path = root / room
        found |= {path} if path.suffix else set(path.glob("*.py"))
    return sorted(str(f.relative_to(root)) for f in found if f.name not in TEXTS)


# -- one mutant --------------------------------------------------------------------------------------------------------


class History:
    """Which tests killed mutants of which file, kept between runs: they are asked first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kills: dict[str, dict[str, int]] = json.loads(path.read_text("utf-8")) if path.exists() else {}

    def add(self, file: str, test: str) -> None:
        row = self.kills.setdefault(file, {})
        row[test] = row.get(test, 0) + 1

    def save(self) -> None:
        self.path.write_text(json.dumps(self.kills), encoding="utf-8")

    def weights(self, file: str) -> Counter[str]:
        """How telling tests were for the file, those of its room included."""
        found: Counter[str] = Counter()
        for f, row in self.kills.items():
            if Path(f).parent == Path(file).parent:
                found.update({test: n * (23 if f == file else 3) for test, n in row.items()})
        return found


def choose(m: Mutant, text: str, known: Map, history: History, most: float) -> list[dict[str, dict[str, float]]]:
    """Per stage: test file -> tests with the seconds they take, both in the order in which they are to run."""
    able, others = known.covering(m.file, m.line, text)
    if "\n" in m.old:
        able |= known.covering(m.file, m.line + m.old.count("\n"), text)[0]
    near = {t: 1.0 if t in able else 0.25 for t in able | others}
    able = others | able
    telling = history.weights(m.file)
    order = sorted(able, key=lambda t: -near[t] * (1 + telling[t]) / (able[t] + 0.1))
    stages: list[dict[str, dict[str, float]]] = [{} for _ in STAGES]
    spent, stage = 0.0, 0
    for test in order:
        file = test.partition("::")[0]
        if able[test] > most - spent:
            continue
        while stage + 1 < len(STAGES) and spent + able[test] > STAGES[stage]:
            stage += 1
        here = stages[stage].setdefault(file, {})
        spent += able[test] + (0.0 if here else STARTING)
        if spent > most:
            break
        here[test] = able[test]
    return stages


def attempt(
    known: Map, history: History, more: Sequence[str], most: float, end: float, root: Path, m: Mutant
) -> Mutant:
    """Apply the mutant, run tests until one fails, take it back. more: test files to run whole, before the others;
    end: when no other one is begun."""
    if m.state or time.monotonic() > end:
        return m
    path = root / m.file
    before = path.read_bytes()
    chosen = choose(m, before.decode(), known, history, most)
    if more:
        whole = {f: {t: row["seconds"] for t, row in known.tests[f]["tests"].items()} for f in more}
        chosen.insert(0, whole)
    path.write_bytes(before[: m.start] + m.new.encode() + before[m.end :])
    m.state, m.seconds, m.tests = "survived", 0.0, 0
    try:
        for stage in chosen:
            for file, tests in stage.items():
                if not tests or m.seconds > most:
                    continue
                out = run_file(root, file, tests)
                m.seconds = round(m.seconds + out.seconds, 2)
                m.tests += len(out.passed)
                if out.how:
                    m.state, m.by, m.how = "killed", out.failed, out.how
                    history.add(m.file, out.failed)
                    return m
        return m
    finally:
        path.write_bytes(before)


# -- the tables --------------------------------------------------------------------------------------------------------


def table(name: str) -> list[dict[str, Any]]:
    """Rows of planted.toml (kind, file, old, new) or of explained.toml (file, where, nth, old, new, reason)."""
    rows: list[dict[str, Any]] = tomllib.loads(Path(__file__).with_name(name).read_text(encoding="utf-8"))["mutant"]
    return rows


def planted(root: Path) -> Iterator[Mutant]:
    """The mutants chosen by hand, but those whose text does not stand there just once any more."""
    for row in table("planted.toml"):
        file, old, new = row["file"], row["old"], row["new"]
        text = (root / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            print(f"not planted, since {file} has changed: {old!r}")
            continue
        before = text[: text.index(old)].encode()
        end = len(before) + len(old.encode())
        yield Mutant(file, before.count(b"\n") + 1, "planted()", row["kind"], old, new, len(before), end)


def explain(m: Mutant, rows: Sequence[dict[str, Any]]) -> None:
    if m.state == "killed":
        return
    for row in rows:
        fits = row["file"] == m.file and fnmatch.fnmatchcase(m.where, row.get("where", "*"))
        if (
            fits
            and row.get("nth", m.nth) == m.nth
            and row["old"] in ("*", m.old)
            and row.get("new", "*") in ("*", m.new)
        ):
            m.state, m.reason = "explained", row["reason"]
            return


# -- the run -----------------------------------------------------------------------------------------------------------


@contextmanager
def progress(total: int) -> Iterator[Any]:
    """A function (mutant, counts) -> None that shows how far the run is: a bar with rich, else one line each."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        Console = None  # type: ignore[assignment,misc]
    if Console is None or not Console(stderr=True).is_terminal:
        done = 0

        def line(m: Mutant, counts: Counter[str]) -> None:
            nonlocal done
            done += 1
            by = f"  by {m.by} ({m.how})" if m.by else ""
            print(f"{done}/{total} {m.state:9} {m.seconds:5.1f} s  {m.file}:{m.line} {m.kind}: {_short(m.old)} -> "
                  f"{_short(m.new)}{by}   {dict(counts)}", flush=True)  # fmt: skip

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("mutants", total=total)

        def advance(m: Mutant, counts: Counter[str]) -> None:
            words = ", ".join(f"{n} {s}" for s, n in sorted(counts.items()))
            bar.update(task, advance=1, description=words)
            if m.state != "killed":
                bar.console.print(f"{m.state} {m.file}:{m.line} {m.kind}: {_short(m.old)} -> {_short(m.new)}")

        yield advance


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 60 else f"{text[:57]}...")


def copy_trees(source: Path, folder: Path, count: int) -> list[Path]:
    """Fresh copies of the repository's files, with their modules compiled so that children import them quickly; the
    compiled ones are checked against the hash of their source, so that no mutant can meet code from before it."""
    roots = [folder / f"tree{k}" for k in range(count)]
    ignore = shutil.ignore_patterns(".git", ".venv", ".fuzz*", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
    for root in roots:
        shutil.rmtree(root, ignore_errors=True)
        if root is roots[0]:
            shutil.copytree(source, root, symlinks=True, ignore=ignore)
            subprocess.run([sys.executable, "-m", "compileall", "-q", "--invalidation-mode", "checked-hash", "tiledsl",
                            "backends"], cwd=root, check=True)  # fmt: skip
        else:
            shutil.copytree(roots[0], root, symlinks=True)
    return roots


_own: tuple[Path, Callable[[Path, Any], Any]]  # of a process of `shared_out`: its tree, and what it does


def shared_out(roots: Sequence[Path], task: Callable[[Path, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """task(root, item) of each item, as they end: a forked process for each of the trees."""
    fork = multiprocessing.get_context("fork")
    left = fork.SimpleQueue()
    for root in roots:
        left.put(root)

    def begin() -> None:
        global _own
        _own = left.get(), task

    with fork.Pool(len(roots), begin) as pool:
        yield from pool.imap_unordered(_next, items)


def _next(item: Any) -> Any:
    root, task = _own
    return task(root, item)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--count", type=int, default=200, help="drawn mutants, besides the planted ones")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only files whose paths begin like one of these, comma-separated")
    parser.add_argument("--no-planted", action="store_true")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of CPU time per mutant")
    parser.add_argument("--minutes", type=float, default=600.0)
    parser.add_argument("--jobs", type=int, default=2, help="processes, each with a copy of the repository")
    parser.add_argument("--again", type=Path, help="the survivors of this report instead of a new sample")
    parser.add_argument("--first", default="", help="test files to run before the others, comma-separated")
    parser.add_argument("--skip-explained", action="store_true", help="do not run what explained.toml explains")
    parser.add_argument("--measured", action="store_true", help="use the map of tests as it is")
    parser.add_argument("--traced-seconds", type=float, default=30.0, help="of CPU time per test file for the map")
    parser.add_argument("--tree", type=Path, default=ROOT, help="the repository, or a snapshot of it")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for the copy, the map of tests and the reports")
    parser.add_argument("--report", default="report", help="name of the reports")
    given = parser.parse_args(argv)
    folder = given.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    preload()
    roots = copy_trees(given.tree.resolve(), folder, given.jobs)
    root, share = roots[0], partial(shared_out, roots)
    more = tuple(x for x in given.first.split(",") if x)
    if not given.measured:
        measure(root, share, folder / "map.json", lambda text: print(text, flush=True), given.traced_seconds)
    known = Map.load(folder / "map.json")
    rooms = tuple(x for x in given.only.split(",") if x)
    every = {f: list(mutants(f, (root / f).read_text(encoding="utf-8"))) for f in sources(root)}
    if given.again:
        chosen = _again(given.again, root, every)
    else:
        chosen = sample(every, given.count, given.seed)
        random.Random(given.seed).shuffle(chosen)  # a run that is cut short has seen all rooms
        chosen = [*(() if given.no_planted else planted(root)), *chosen]
    chosen = [m for m in chosen if not rooms or m.file.startswith(rooms)]
    history = History(folder / "history.json")
    rows = table("explained.toml")
    end = time.monotonic() + 60 * given.minutes
    done: list[Mutant] = []
    counts: Counter[str] = Counter()
    if given.skip_explained:
        for m in chosen:
            explain(m, rows)
    with progress(len(chosen)) as show:
        for m in share(partial(attempt, known, history, more, given.seconds, end), chosen):
            if not m.state:
                continue  # there was no time left
            explain(m, rows)
            if m.by:
                history.add(m.file, m.by)
                history.save()
            done.append(m)
            counts[m.state] += 1
            show(m, counts)
            _report(folder / given.report, done, given, sum(map(len, every.values())))
    for m in _unsound(share, done, known):
        print(f"not counted: {m.by} fails without a mutant too")
        m.state = "unsound"
    _report(folder / given.report, done, given, sum(map(len, every.values())))
    print((folder / f"{given.report}.md").read_text(encoding="utf-8"))
    return 0


def _unsound(share: Any, done: Sequence[Mutant], known: Map) -> list[Mutant]:
    """Mutants whose killer fails on the sound tree as well, for want of time or memory, say."""
    killers: dict[str, dict[str, float]] = {}
    for m in done:
        file = m.by.partition("::")[0]
        seconds = known.tests.get(file, {}).get("tests", {}).get(m.by, {}).get("seconds")
        if seconds is not None:
            killers.setdefault(file, {})[m.by] = seconds
    bad = set(share(lambda root, item: run_file(root, *item).failed, killers.items())) - {""}
    return [m for m in done if m.by in bad]


def _again(report: Path, root: Path, every: dict[str, list[Mutant]]) -> list[Mutant]:
    """The mutants of a report that were not killed, where they are still possible."""
    found = {m.key: m for group in every.values() for m in group} | {m.key: m for m in planted(root)}
    keys = [
        Mutant(**row).key
        for row in json.loads(report.read_text(encoding="utf-8"))["mutants"]
        if row["state"] != "killed"
    ]
    return [found[k] for k in keys if k in found]


def _report(path: Path, done: Sequence[Mutant], given: argparse.Namespace, possible: int) -> None:
    counts = Counter(m.state for m in done)
    real = len(done) - counts["explained"]
    share = counts["killed"] / max(1, real)
    facts = {"seed": given.seed, "count": given.count, "possible": possible, "run": len(done), "counts": dict(counts),
             "killed of those that are mistakes": round(share, 4), "cpu seconds": round(sum(m.seconds for m in done)),
             "date": time.strftime("%Y-%m-%d %H:%M")}  # fmt: skip
    data = {**facts, "mutants": [asdict(m) for m in done]}
    path.with_suffix(".json").write_text(json.dumps(data, indent=1), encoding="utf-8")
    room = lambda m: str(Path(m.file).parent)
    lines = [f"# Mutants, seed {given.seed}", "", *(f"- {k}: {v}" for k, v in facts.items()), "",
             "| of | killed | explained | survived |", "| --- | --- | --- | --- |"]  # fmt: skip
    groups = [(k, [m for m in done if m.kind == k]) for k in sorted({m.kind for m in done})]
    groups += [(r, [m for m in done if room(m) == r]) for r in sorted(set(map(room, done)))]
    for name, group in groups:
        n = Counter(m.state for m in group)
        lines.append(f"| {name} | {n['killed']} | {n['explained']} | {n['survived']} |")
    for state in ("survived", "explained", "unsound"):
        lines += ["", f"## {state}", ""]
        for m in done:
            if m.state == state:
                change = f"{m.kind}: {_short(m.old)} -> {_short(m.new)}"
                reason = f": {m.reason}" if m.reason else ""
                lines.append(f"- `{m.file}:{m.line}` in `{m.where}`, {change} ({m.tests} tests, {m.seconds} s){reason}")
    path.with_suffix(".md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
