"""The examples of DeepSeek-V4 run at small sizes and check themselves; and their checks find what is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from v4_examples import FOLDER, load

from tiledsl.backend import load_backend

measure, decode, million, moe, paged, serve = map(
    load, ("measure", "decode", "million_tokens", "moe", "paged", "serve")
)

pytestmark = pytest.mark.skipif(not load_backend("llvm").probe().ok, reason="sizes for compiled code")


def run(name: str, *options: str, fails: bool = False) -> str:
    """What an example prints; `fails`: it ends with status 1."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(FOLDER / f"{name}.py"), *options],
        env={**os.environ, "TILEDSL_TARGET": "llvm"},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == (1 if fails else 0), done.stdout + done.stderr
    return done.stdout + done.stderr


def test_million_tokens(tmp_path: Path) -> None:
    small = "--tokens 8192 --layers 4 --steps 2 --related 400 --threads 1 --sample 1".split()
    printed = run("million_tokens", *small, "--json", str(tmp_path / "out.json"))
    assert "needles found: 32 of 32" in printed and "13 checks passed" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert set(found["kinds"]) == {"window", "CSA", "HCA"}
    for kind in found["kinds"].values():
        assert kind["ratio"] == pytest.approx(kind["seconds"] / kind["bound"]) and kind["seconds"] > 0
    weak = "--tokens 4096 --layers 3 --steps 1 --related 400 --threads 1 --strength 0.0".split()
    assert "FAILED: needles" in run("million_tokens", *weak, fails=True)


def test_what_a_step_cannot_do_without() -> None:
    """Bytes and operations by hand: 8192 tokens have 2048 CSA entries and 64 of HCA."""
    csa, hca = decode.work(4, 8192), decode.work(128, 8192)
    assert csa["CSA: index scores"] == measure.Work(2048 * 68.0, 0.0, 2.0 * 64 * 128 * 2048)
    assert csa["CSA: attention"].floats == 4.0 * 64 * 512 * (128 + 512)
    assert hca["HCA: attention"].floats == 4.0 * 64 * 512 * (128 + 64)
    machine = SimpleNamespace(read=10.0, fma=4.0, bytes=8.0)
    assert measure.Work(30.0, 4.0, 8.0).seconds(machine) == 3.0
    assert measure.Work(10.0, 4.0, 8.0).seconds(machine) == 2.0


def decoded(number: int) -> tuple[Any, Any]:
    layer = decode.Layer(number, 4096, 3, 8, 0.9, 300)
    layer.fill(1)
    step = layer.inputs(4095)
    layer.decode(step, measure.Clock(1))
    return layer, step


@pytest.mark.parametrize("number", [2, 3])
def test_the_checks_of_caches_and_steps_find_changes(number: int) -> None:
    layer, step = decoded(number)
    assert million.check_entries(layer) and all(million.check_step(layer, step).values())
    first = layer.comp[0].copy()
    layer.comp[0, 3] ^= 0x40  # an exponent's bit of one FP8 element
    assert not million.check_entries(layer)
    layer.comp[0] = first
    step.o = (step.o.astype(np.float32) * 1.02).astype(step.o.dtype)
    assert not million.check_step(layer, step)["attention"]
    if number == 2:
        layer.index[0, 0] ^= 0x04
        assert not million.check_entries(layer) and not million.check_step(layer, step)["bfloat16 scores"]
        layer.index[0, 0] ^= 0x04
        step.chosen[0, [0, 1]] = step.chosen[0, [1, 0]]
        assert not million.check_step(layer, step)["selection"]
        lost = SimpleNamespace(logits=step.logits, chosen=np.arange(512)[None], **{k: getattr(step, k) for k in
                               ("index_bytes", "weights")})  # fmt: skip
        assert million.overlap(layer, step) >= 0.99 > million.overlap(layer, lost)


def test_moe(tmp_path: Path) -> None:
    small = "--experts 12 --dim 256 --inner 128 --batches 1 5 --runs 2 --peer-experts 8 --threads 1".split()
    printed = run("moe", *small, "--json", str(tmp_path / "out.json"))
    assert "checks passed: float64; a token alone has the same bits" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["bytes"] == 12 * 3 * 256 * 128 * (1 / 2 + 1 / 32)
    one, five = found["batches"]
    assert one["moved"] == found["bytes"] / 2 and five["moved"] > one["moved"]


def test_the_reference_of_an_expert_layer_tells_experts_apart() -> None:
    options = SimpleNamespace(experts=8, top=2, dim=128, inner=64, seed=1, peer_experts=0)
    with moe.Progress(1) as progress:
        model = moe.Model(options, progress)
    batch = moe.Batch(np.random.default_rng(0), 3, options, 8)
    y = moe.run(batch, model)
    for t in range(3):
        assert moe.far(y[t], moe.exact(batch, t, model)) < moe.NEAR
    batch.chosen[0] = batch.chosen[0, ::-1]
    assert moe.far(y[0], moe.exact(batch, 0, model)) > moe.NEAR


def test_serve(tmp_path: Path) -> None:
    small = "--requests 3 --prompt 300 --prefix 256 --new 3 --slots 2 --blocks 5 --heads 4 --dim 64 --threads 1".split()
    printed = run("serve", *small, "--ratios", "4", "128", "--json", str(tmp_path / "out.json"))
    assert "5 checks passed" in printed
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["formula"] == (584 + 68) / 4 + 584 / 128
    assert found["allocated"] == (37440 + 64 * 68 + 1728) / 256


def test_a_damaged_prefix_is_noticed(tmp_path: Path) -> None:
    model = paged.Model((0, 4), 64, 4, 300, 0)
    prefixes = serve.Prefixes(tmp_path, 256)
    server = serve.Server(model, 2, 5, prefixes, measure.Clock(1))
    tokens = [int(x) for x in np.random.default_rng(0).integers(0, 256, 260)]
    first = serve.Request("first", tokens, 2)
    server.serve([first])
    path = prefixes.file(tokens)
    with np.load(path) as stored:
        parts = dict(stored)
    second = serve.Request("second", tokens, 2)
    server.serve([second])
    assert second.loaded == 256 and prefixes.intact and second.logits == first.logits
    parts["block0.comp1"][:512] ^= 0x10
    np.savez(path.with_suffix(""), **parts)
    third = serve.Request("third", tokens, 2)
    server.serve([third])
    assert not prefixes.intact and third.logits != first.logits
