"""Which test runs which line, and how long it takes: measured once per test file and kept under .fuzz.

The map only chooses and orders tests; a test file that changed is measured again, and lines of sources that changed are
carried over by comparing the texts.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runner import run_file

__all__ = ["Map", "measure", "test_files"]

TRACED = ("tiledsl", "backends")
# They start processes of their own, build distributions, or look at the repository's files rather than run its code.
LEFT_OUT = ("test_packaging", "test_ci_tools", "test_plugin", "test_demo", "test_examples", "test_readme", "test_cli",
            "test_translation", "test_third_party_backend", "test_mutants")  # fmt: skip
LONGEST = 25.0  # seconds of CPU time; tests that take longer are not used


@dataclass
class Map:
    """tests: file -> {"sha", "tests": {name: {"seconds", "lines": {file: mask}}}}; sources: the texts of the lines."""

    tests: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Map:
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"tests": self.tests, "sources": self.sources}), encoding="utf-8")

    def covering(self, file: str, line: int, text: str) -> tuple[dict[str, float], dict[str, float]]:
        """Tests (name -> seconds) that run the line of the file, whose text is now `text`, and others that run some
        line of it: what runs on import, or once and is kept, matters to tests that do not run it themselves."""
        line = self._then(file, line, text)
        by_line: dict[str, float] = {}
        by_file: dict[str, float] = {}
        for group in self.tests.values():
            for name, row in group["tests"].items():
                mask = int(row["lines"].get(file, "0"), 16)
                if mask:
                    (by_line if mask >> line & 1 else by_file)[name] = row["seconds"]
        return by_line, by_file

    def _then(self, file: str, line: int, text: str) -> int:
        """The line's number when it was measured."""
        before = self.sources.get(file, text)
        if before == text:
            return line
        matcher = difflib.SequenceMatcher(None, text.splitlines(), before.splitlines(), autojunk=False)
        for kind, a, b, c, _ in matcher.get_opcodes():
            if a < line <= b:
                return c + line - a if kind == "equal" else max(c, 1)
        return line


def test_files(root: Path) -> list[str]:
    found = sorted(str(p.relative_to(root)) for p in (root / "tests").rglob("test_*.py"))
    return [f for f in found if Path(f).stem not in LEFT_OUT]


def measure(root: Path, path: Path, report: Callable[[str], None], most: float) -> None:
    """Bring the map at `path` up to date with the tests below root; most: seconds of CPU time for each file of them."""
    known = Map.load(path)
    files = test_files(root)
    known.tests = {f: row for f, row in known.tests.items() if f in files}
    for file in files:
        sha = hashlib.sha256((root / file).read_bytes()).hexdigest()
        if known.tests.get(file, {}).get("sha") == sha:
            continue
        out = run_file(root, file, {}, trace=TRACED, most=most)
        rows = {name: {"seconds": seconds, "lines": out.lines.get(name, {})}
                for name, seconds in out.passed.items() if seconds <= LONGEST}  # fmt: skip
        known.tests[file] = {"sha": sha, "tests": rows}
        for source in {s for row in rows.values() for s in row["lines"]}:
            known.sources.setdefault(source, (root / source).read_text(encoding="utf-8"))
        known.save(path)
        trouble = f"; {out.how} {out.failed} {out.why}" if out.how else ""
        report(f"measured {len(rows)} tests of {file} in {out.seconds:.0f} s{trouble}")
