"""The lists of mutants fit the sources: planted mistakes apply to them, and explained ones have reasons."""

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
    """The text to change stands once in its file, and what becomes of the file is Python. Sources change; most of the
    rows have to fit them. (After a change of such a place write the same mistake in the new text, in planted.toml.)"""
    stale = []
    found = [row for row in rows("planted.toml") if (ROOT / row["file"]).exists()]  # rooms may have been taken out
    for row in found:
        text = (ROOT / row["file"]).read_text(encoding="utf-8")
        if text.count(row["old"]) == 1:
            compile(text.replace(row["old"], row["new"]), row["file"], "exec")
        else:
            stale.append(row)
    assert len(found) - len(stale) >= 40, stale


def test_explained_mutants_have_a_reason() -> None:
    assert all(row["reason"] and {"file", "old", "new"} <= row.keys() for row in rows("explained.toml"))
