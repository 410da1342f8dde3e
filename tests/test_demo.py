"""The demo: its text, its batch, and a small run of the command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from kernels_support import attention_reference, product_bound, window_mask, worst

from tiledsl import cli
from tiledsl.backend import load_backend
from tiledsl.demo import run, text, work


def test_text_is_sentences() -> None:
    parts = text.sentences()
    assert len(parts) > 100
    assert parts[0].startswith("Alice was beginning to get very tired")
    assert not any("\n" in p or "CHAPTER" in p or p.startswith("#") for p in parts)
    assert "(Dinah was the cat.)" in parts


def test_packing_takes_whole_sentences() -> None:
    batch = text.pack(["One two three.", "Four, five!", "Six seven eight nine ten."], 9)
    assert batch.cu_seqlens.tolist() == [0, 4, 8]
    assert len(batch.tokens) == 8 and batch.tokens.max() < text.VOCABULARY
    one, four = text.pack(["Down, down, DOWN."], 99).tokens, batch.tokens
    assert one[0] == one[2] == one[4] and one[1] == four[5]  # words whatever their case; commas
    whole = text.pack(text.sentences(), 10**6)
    assert whole.lengths.min() >= 1 and whole.cu_seqlens[-1] == len(whole.tokens)


def test_cases_agree_with_float64_and_with_the_other_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    batch, given = text.pack(text.sentences(), 150), []
    for name in ("_gemm", "_attention", "_grouped"):
        make = getattr(work, name)
        monkeypatch.setattr(work, name, lambda *args, make=make: given.append(args[1:-1]) or make(*args))
    cases = work.cases(batch, "float32", None)
    (a, b), (q, k, v, ends), (rows, experts, sizes) = given
    spans = zip(ends[:-1], ends[1:], strict=True)
    parts = [[x[None, i:j].swapaxes(1, 2) for x in (q, k, v)] for i, j in spans]
    found = [
        attention_reference(*p, window_mask(n := p[0].shape[2], n, True, None), 128**-0.5, "float32") for p in parts
    ]
    which = np.repeat(np.arange(len(sizes)), sizes)
    products = [product_bound(row[None], experts[e], "float32") for row, e in zip(rows, which, strict=True)]
    bounds = [
        product_bound(a, b, "float32"),
        tuple(np.concatenate([f[i][0].swapaxes(0, 1) for f in found]) for i in (0, 2)),
        tuple(np.concatenate([p[i] for p in products]) for i in (0, 1)),
    ]
    for case, (exact, bound) in zip(cases, bounds, strict=True):
        np.testing.assert_allclose(case.exact, exact, rtol=1e-12, atol=1e-12)
        for got in (case.run("numpy"), case.rivals["NumPy"]()):
            assert worst(got, exact, bound) <= 1


@pytest.mark.parametrize("missing", [(), ("rich", "matplotlib", "torch")], ids=["all", "bare"])
def test_command(
    missing: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [m for m in sys.modules if m.split(".")[0] in missing]:
        monkeypatch.delitem(sys.modules, name)
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(run, "SECONDS", 0.0)
    picture = tmp_path / "demo.png"
    assert cli.main(["demo", "--tokens", "150", "--png", str(picture)]) == 0
    shown = capsys.readouterr().out
    for word in ["GEMM (q, k, v projection)", "causal GQA attention", "grouped GEMM", "float32", "bfloat16", "numpy"]:
        assert word in shown
    if load_backend("llvm").probe().ok:
        assert "Largest difference between numpy and the other targets" in shown
    drawn = "matplotlib" not in missing and _importable("matplotlib")
    assert picture.exists() is drawn
    assert drawn or "matplotlib is not installed (pip install matplotlib)" in shown


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


@pytest.mark.parametrize("tokens", ["0", "-4", "3"])
def test_too_few_tokens_for_a_sentence(tokens: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--tokens", tokens]) == 1
    assert f"at most {tokens} were asked for" in capsys.readouterr().err


def test_demo_looks_for_the_picture_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["demo", "--png", "/nonexistent/demo.png"]) == 1
    assert "there is no folder /nonexistent" in capsys.readouterr().err
