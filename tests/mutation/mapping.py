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
    """tests: file -> {"sha", "sources": {file: sha}, "tests": {name: {"seconds", "lines": {file: mask}}}}; sources: the
    texts that had these lines, by their sha."""

    tests: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path) -> Map:
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()

    def save(self, path: Path) -> None:
        used = {sha for group in self.tests.values() for sha in group["sources"].values()}
        self.sources = {sha: text for sha, text in self.sources.items() if sha in used}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"tests": self.tests, "sources": self.sources}), encoding="utf-8")

    def covering(self, file: str, line: int, text: str) -> tuple[dict[str, float], dict[str, float]]:
        """Tests (name -> seconds) that run the line of the file, whose text is now `text`, and others that run some
        line of it: what runs on import, or once and is kept, matters to tests that do not run it themselves."""
        lines: dict[str, int] = {}  # the line's number in older texts
        by_line: dict[str, float] = {}
        by_file: dict[str, float] = {}
        for group in self.tests.values():
            sha = group["sources"].get(file)
            if sha is None:
                continue
            if sha not in lines:
                lines[sha] = _then(line, text, self.sources[sha])
            for name, row in group["tests"].items():
                mask = int(row["lines"].get(file, "0"), 16)
                if mask:
                    (by_line if mask >> lines[sha] & 1 else by_file)[name] = row["seconds"]
        return by_line, by_file


def _then(line: int, text: str, before: str) -> int:
    """The number that a line of the text had in an older one."""
    if before != text:
        matcher = difflib.SequenceMatcher(None, text.splitlines(), before.splitlines(), autojunk=False)
        for kind, a, b, c, _ in matcher.get_opcodes():
            if a < line <= b:
                return c + line - a if kind == "equal" else max(c, 1)
    return line


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_files(root: Path) -> list[str]:
    found = sorted(str(p.relative_to(root)) for p in (root / "tests").rglob("test_*.py"))
    return [f for f in found if Path(f).stem not in LEFT_OUT]


def measure(root: Path, share: Any, path: Path, report: Callable[[str], None], most: float) -> None:
    """Bring the map at `path` up to date with the tests below root. share: calls a function (root, item) for items;
    most: seconds of CPU time for each file of tests."""
    known = Map.load(path)
    shas = {f: _sha((root / f).read_text(encoding="utf-8")) for f in test_files(root)}
    known.tests = {f: row for f, row in known.tests.items() if f in shas}
    changed = [f for f, sha in shas.items() if known.tests.get(f, {}).get("sha") != sha]
    for file, out in share(lambda root, f: (f, run_file(root, f, {}, trace=TRACED, most=most)), changed):
        rows = {name: {"seconds": seconds, "lines": out.lines.get(name, {})}
                for name, seconds in out.passed.items() if seconds <= LONGEST}  # fmt: skip
        texts = {s: (root / s).read_text(encoding="utf-8") for row in rows.values() for s in row["lines"]}
        sources = {s: _sha(text) for s, text in texts.items()}
        known.tests[file] = {"sha": shas[file], "sources": sources, "tests": rows}
        known.sources.update({sources[s]: text for s, text in texts.items()})
        known.save(path)
        trouble = f"; {out.how} {out.failed} {out.why}" if out.how else ""
        report(f"measured {len(rows)} tests of {file} in {out.seconds:.0f} s{trouble}")
