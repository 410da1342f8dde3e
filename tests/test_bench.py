"""Each job of the bench runs, and its contestants compute the same; the ceilings, the table and the picture."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tiledsl.backends.cpu.ceilings import Ceilings
from tiledsl.bench import JOBS, run
from tiledsl.bench.measure import format_row
from tiledsl.bench.plot import plot
from tiledsl.cli import main

pytest.importorskip("tiledsl.kernels")
UNITS = {"float32": 2.0**-24, "bfloat16": 2.0**-8, "float16": 2.0**-11}


def results(x: Any) -> list[np.ndarray[Any, Any]]:
    """What a contestant returned, as NumPy arrays."""
    if isinstance(x, (tuple, list)):
        return [a for part in x for a in results(part)]
    if type(x).__module__.startswith("torch"):
        return results(x.float().numpy() if x.is_floating_point() else x.numpy())
    return [np.asarray(x)]


@pytest.mark.parametrize("job", [j for j in JOBS.values() if not j.told], ids=lambda j: j.name)
def test_contestants_agree(job: Any) -> None:
    """To the roundings of a result, and sums of at most 2048 float32 terms in another order."""
    contest = job.make(None, True)
    assert next(iter(contest)) == "tiledsl"
    for f in contest.values():  # some add to what they have given: all are called as often
        f()
    ours, *peers = (results(f()) for f in contest.values())
    for theirs in peers:
        assert len(ours) == len(theirs)
        for x, y in zip(ours, theirs, strict=True):
            assert x.shape == y.shape
            if x.dtype.kind in "iu":
                assert (x == y).all()
                continue
            limit = (4 * UNITS[str(x.dtype)] + 2048 * UNITS["float32"]) * np.abs(y).max()
            np.testing.assert_allclose(x.astype(np.float64), y.astype(np.float64), rtol=0, atol=limit)


@pytest.mark.parametrize("job", [j for j in JOBS.values() if j.told], ids=lambda j: j.name)
def test_what_is_waited_for(job: Any) -> None:
    """Contestants that say themselves how long they took: seconds, of one call or of one process."""
    contest = job.make(None, True)
    assert next(iter(contest)) == "tiledsl"
    assert all(0 < f() < 60 for f in contest.values())


def test_bound_and_share() -> None:
    ceilings = Ceilings(fma=1e9, bytes=4e9, read=2e9, copy=1e9)
    assert ceilings.seconds(work=2e9, moved=0) == 2.0
    assert ceilings.seconds(work=2e9, moved=0, integer=True) == 0.5
    assert ceilings.seconds(work=1e9, moved=3e9) == 3.0
    assert ceilings.seconds(work=1e9, moved=3e9, written=False) == 1.5
    (row,) = run([JOBS["gemm-f32-512"]], None, 1, ceilings, small=True)
    assert row.share is None and row.milliseconds["tiledsl"] > 0  # a small job has no bound of its own
    assert "GFLOP/s" in format_row(row)


def test_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    table, picture = tmp_path / "table.json", tmp_path / "roof.svg"
    words = ["gemm-f32-48x1000x777", "--json", str(table)]
    assert main_of(["bench", *words, "--plot", str(picture)]) == 0
    printed = capfd.readouterr().out
    assert "this machine, 1 thread" in printed and "of the bound" in printed
    found = json.loads(table.read_text())
    (row,) = found["rows"]
    assert row["job"] == "gemm-f32-48x1000x777" and 0 < row["share"] < 1.5
    assert found["ceilings"]["fma"] > found["ceilings"]["copy"] / 100 > 0
    assert picture.read_text().lstrip().startswith("<?xml")


def main_of(words: list[str]) -> int:
    import sys
    from unittest import mock

    with mock.patch.object(sys, "argv", ["tiledsl", *words]):
        return main(words)


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gem"]) == 1
    assert "unknown job 'gem'" in capsys.readouterr().err
    assert main(["bench", "--threads", "0", "gemm-f32-512"]) == 1
    assert "--threads is 0" in capsys.readouterr().err


def test_picture_of_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = run([JOBS["threads-sum"]], None, 1, None, small=True)
    plot(rows, Ceilings(1e9, 1e9, 1e9, 1e9), str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").stat().st_size > 1000
