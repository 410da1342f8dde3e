"""The conformance suite passes what is sound and sees what is broken."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tiledsl import backend
from tiledsl.testing import conformance
from tiledsl.testing.suite import Report


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The backends of broken_backends.py, registered as an installed distribution would."""

    def forget() -> None:
        for found in (backend.backends, backend.load_backend, backend._resolve):
            found.cache_clear()

    folder = tmp_path / "toys-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n", encoding="utf-8")
    rows = "".join(f"{n} = broken_backends:{n}\n" for n in ("sound", "off_by_one", "lost_mask", "no_rounding"))
    (folder / "entry_points.txt").write_text(f"[tiledsl.backends]\n{rows}", encoding="utf-8")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    forget()
    yield
    forget()


def passes(report: Report) -> None:
    """What is skipped needs a type below a byte, which some operations of this version refuse."""
    assert report.ok, str(report)
    assert all(re.search("int4|float4|below a byte", case) for case, _ in report.skipped), report.skipped


BROKEN = {"off_by_one": "control", "lost_mask": "control", "no_rounding": "elementwise bfloat16 in T.serial"}


def test_a_sound_backend_passes(toys: None) -> None:
    """What the broken ones fail; the example backend passes the whole suite (test_plugin.py)."""
    passes(conformance("sound", rounds=0, only=f"^({'|'.join(BROKEN.values())})$"))


@pytest.mark.parametrize(("name", "case"), BROKEN.items())
def test_broken_backends_fail(toys: None, name: str, case: str) -> None:
    report = conformance(name, rounds=0, only=f"^{case}$")
    assert not report.ok and case in dict(report.failed), str(report)


@pytest.mark.slow
def test_numba_conforms() -> None:
    pytest.importorskip("numba")
    some = [
        "protocol", "control", "copies$", "copies (float16|bool)", "gemm (float16|int8).*transposed",
        "reductions (float64|int64)", "elementwise (float16|int32|uint64) in T.Parallel", "casts from float32$",
        "atomics (int32|float16)",
    ]  # fmt: skip
    passes(conformance("numba", rounds=0, only=f"^({'|'.join(some)})"))
