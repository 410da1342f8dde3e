"""DeepSeek-V4's cost model: the published figures come out, and kernels count the same operations and bytes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from v4_examples import FOLDER, load

import tiledsl.kernels  # noqa: F401  (what this example is about)
from tiledsl.dtypes import as_dtype
from tiledsl.kernels import deepseek_v4 as v4
from tiledsl.kernels import matmul_kernel

cost_model, counted, weights, block = (load(name) for name in ("cost_model", "counted", "weights", "block"))


@pytest.mark.parametrize("model", [cost_model.V4_PRO, cost_model.V4_FLASH], ids=lambda m: m.name)
@pytest.mark.parametrize("what", ["operations", "cache"])
def test_published_savings(model: object, what: str) -> None:
    """To the digits that were published: 3.7x and 27 %, ..."""
    times, percent = cost_model.ratios(model, 1_000_000)[what]
    told = cost_model.PUBLISHED[model.name][what]  # type: ignore[attr-defined]
    # One published percentage is told as 10 where the ratio that stands beside it, 9.5x, is 10.5 %.
    assert abs(times - told[0]) <= 0.05 and abs(percent - told[1]) <= 0.55


def test_published_sizes() -> None:
    for m in cost_model.MODELS:
        every, active = cost_model.parameters(m)
        told = cost_model.PUBLISHED_PARAMETERS[m.name]
        assert abs(every / 1e9 / told[0] - 1) < 0.02 and abs(active / 1e9 - told[1]) < 0.5
    wide = [m.wide_cache_bytes(1 << 20) / 2**30 for m in (cost_model.V3_2, cost_model.V4_PRO)]
    assert [round(x, 1) for x in wide] == [83.9, 9.6]
    for m in (cost_model.V4_PRO, cost_model.V4_FLASH):
        share = m.cache_bytes(10**6) / (10**6 * m.layers * cost_model.GROUPED_QUERY)
        assert round(100 * share) == cost_model.PUBLISHED_OF_GROUPED


def test_the_convention_matters() -> None:
    """Without "bfloat16 counts twice, FP4 half" the published ratios do not come out: the check can fail."""
    tokens = 1_000_000

    def plain(m: object) -> float:
        return float(sum(2 * p.touched for p in m.products()) + m.core(tokens) + m.index(tokens))  # type: ignore[attr-defined]

    found = [plain(cost_model.V3_2) / plain(m) for m in (cost_model.V4_PRO, cost_model.V4_FLASH)]
    assert abs(found[0] - 3.7) > 0.05 and abs(found[1] - 9.8) > 0.05


def test_operations_of_the_kernels() -> None:
    """Products, attention and indexer: the formula's operations are those of the kernels' IR, one by one."""
    for m in (cost_model.V3_2, cost_model.V4_FLASH):
        shapes = {(p.k, p.n, p.name): p for p in m.products() if p.name not in ("lm_head", "dense up", "wq_b")}
        for p in shapes.values():
            assert counted.of_product(p) == pytest.approx(2 * p.k * p.n, rel=1e-9), p
    position = 1 << 16
    for m in (cost_model.V4_FLASH, cost_model.V4_PRO):
        assert counted.of_model(m, position) == pytest.approx((m.core(position), m.index(position)), rel=1e-9)
    m = cost_model.V3_2
    assert counted.of_v32(m, position) == pytest.approx((m.core(position), m.index(position)), rel=1e-9)


def test_counting_notices() -> None:
    """Another size is another count; a name that the kernel has not is refused."""
    kernel = matmul_kernel(16, 64, 128, as_dtype("bfloat16"), as_dtype("float32"))
    assert counted.products(kernel, M=16, N=64, K=256) == 2 * counted.products(kernel, M=16, N=64, K=128)
    with pytest.raises(ValueError, match="has no L"):
        counted.products(kernel, L=3)


@pytest.mark.parametrize("model", [cost_model.V4_PRO, cost_model.V4_FLASH], ids=lambda m: m.name)
def test_bytes_of_the_caches(model: object) -> None:
    """What is allocated is the formula's bytes and the padding of pages: 64 bytes of 37,440, and 560 of 1,728."""
    tokens = 1 << 20
    allocated, state = counted.caches(model, tokens)
    m: object = model
    csa, hca, layers = m.csa_layers, m.hca_layers, m.layers  # type: ignore[attr-defined]
    padding = tokens // 256 * (csa * 64 + hca * 560) + layers * (v4.page_bytes(128) - 128 * 584)
    assert allocated == m.cache_bytes(tokens) + padding  # type: ignore[attr-defined]
    assert state == csa * (8 * 2 * 1024 + 8 * 2 * 256) * 4 + hca * 2 * 128 * 512 * 4


def test_bytes_that_the_kernels_write() -> None:
    found = counted.written_bytes()
    assert [published for published, _ in found.values()] == [584, 68, 656, 132]
    for name, (published, written) in found.items():
        assert published == written, name


def test_the_script(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "costs.png"
    command = [sys.executable, "-W", "error", str(FOLDER / "cost_model.py"), "--no-check", "--plot", str(picture)]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "13.67x 7.3%" in done.stdout and "9.83x 10.2%" in done.stdout and picture.stat().st_size > 10_000
    command = [sys.executable, str(FOLDER / "cost_model.py"), "--tokens", "0"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120).returncode == 2
