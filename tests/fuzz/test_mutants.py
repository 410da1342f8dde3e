"""The lists of mutants fit the sources: a planted mistake applies to them, and an explained one is still possible."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "tests" / "mutation"


def rows(name: str) -> list[dict[str, str]]:
    if not FOLDER.is_dir() or not (ROOT / "tiledsl").is_dir():
        pytest.skip("not in a checkout")
    found: list[dict[str, str]] = tomllib.loads((FOLDER / name).read_text(encoding="utf-8"))["mutant"]
    return found


def test_planted_mutants_apply() -> None:
    """The text to change stands once in its file, and what becomes of the file is Python. (After a change of that
    place: write the same mistake in the new text, in planted.toml.)"""
    for row in rows("planted.toml"):
        text = (ROOT / row["file"]).read_text(encoding="utf-8")
        assert text.count(row["old"]) == 1, row
        compile(text.replace(row["old"], row["new"]), row["file"], "exec")


def test_explained_mutants_are_possible() -> None:
    for row in rows("explained.toml"):
        assert row["old"] == "*" or row["old"] in (ROOT / row["file"]).read_text(encoding="utf-8"), row
