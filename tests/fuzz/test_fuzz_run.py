"""A run of the fuzzer: what it remembers, and what becomes of failures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tiledsl.testing import fuzz_run
from tiledsl.testing.oracles import Mismatch
from tiledsl.testing.strategies import random_program


@pytest.mark.slow
def test_the_folder_is_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A failure is saved as a file that runs, tried again by the next run, and put aside once it passes."""

    def fails(*args: Any, **kw: Any) -> None:
        raise Mismatch("targets", "3 of 20 elements of O1 differ")

    small = next(p for p in (random_program(f"s{k}", 3) for k in range(50)) if p.statements < 12)
    monkeypatch.setattr(fuzz_run, "drawn", lambda number, most: iter([small]))
    monkeypatch.setattr(fuzz_run, "reduce", lambda program, same, seconds: program)
    monkeypatch.setattr(fuzz_run, "check", fails)
    command = ["--minutes", "0.01", "--folder", str(tmp_path), "--start", "7"]
    assert fuzz_run.main(command) == 1
    saved = list(tmp_path.glob("*.py"))
    assert len(saved) == 1
    first = int((tmp_path / "next-round").read_text())
    assert first > 7
    monkeypatch.setattr(fuzz_run, "check", lambda *args, **kw: None)
    assert fuzz_run.main(command[:4]) == 0  # the bug is fixed: the file that shows it passes
    assert not list(tmp_path.glob("*.py")) and len(list((tmp_path / "fixed").glob("*.py"))) == 1
    assert int((tmp_path / "next-round").read_text()) > first
    totals = json.loads((tmp_path / "totals.json").read_text())
    assert totals["programs"] > first - 7 and list(totals["failures"].values()) == [first - 7]
    assert "kinds of failures" in capsys.readouterr().out


def test_one_key_for_one_bug() -> None:
    def key(text: str) -> str:
        try:
            raise Mismatch("targets", text)
        except Mismatch as e:
            return fuzz_run.failure_key(e)

    assert key("3 of 20 elements of O1 differ") == key("17 of 40 elements of O12 differ")
    assert key("3 of 20 elements of O1 differ") != key("memory around an array was written")


def test_a_run_that_is_interrupted_keeps_what_it_has_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kw: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fuzz_run, "check", interrupted)
    assert fuzz_run.main(["--minutes", "5", "--folder", str(tmp_path), "--start", "3", "--most", "3"]) == 0
    assert json.loads((tmp_path / "totals.json").read_text())["programs"] == 1
    assert json.loads((tmp_path / "report.json").read_text())["programs"] == 1
