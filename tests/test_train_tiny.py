"""The small model of DeepSeek-V4 learns, its gradients are those of differences, its FP4 weights are FP4."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from v4_examples import load
from v4_reference import fp4_cast, fp4_values

from tiledsl.backend import load_backend
from tiledsl.kernels import quant

torch: Any = pytest.importorskip("torch", reason="torch is not installed")
pytestmark = pytest.mark.skipif(not load_backend("llvm").probe().ok, reason="sizes for compiled code")

operators, model, example = load("operators"), load("tiny_model"), load("train_tiny")


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_the_gradients_of_all_parameters_are_those_of_differences() -> None:
    """Along a direction that is the gradient's and half as much another, with steps that move the loss by 0.01 on each
    side: a hundred times what bfloat16 in attention leaves undecided. All experts are active, so no choice jumps."""
    text = example.read_text()
    config = model.Config(vocabulary=len(text.characters), experts=2, active=2, heads=2, window=16)
    random = torch.Generator().manual_seed(1)
    pieces = example.batch(text.training, 4, 32, random)
    net = model.Model(config)
    example.loss_of(net, *pieces).backward()
    checked = []
    for name, weight in net.weights.items():
        grad = weight.grad
        aside = torch.randn(weight.shape, generator=random)
        direction = grad + aside / aside.norm() * grad.norm() / 2
        direction = direction / direction.norm()
        wanted = float((grad * direction).sum())
        step, kept = 0.01 / wanted, weight.detach().clone()
        if step > 0.3 * float(kept.norm() + 0.05 * kept.numel() ** 0.5):
            continue  # a parameter that hardly matters yet: so long a step is no difference any more
        losses = []
        for side in (step, -step):
            with torch.no_grad():
                weight.copy_(kept + side * direction)
                losses.append(float(example.loss_of(net, *pieces)))
                weight.copy_(kept)
        assert abs((losses[0] - losses[1]) / (2 * step) - wanted) < 0.1 * wanted, name
        checked.append(name.rpartition(".")[2])
    assert len(checked) > 36
    needed = "embedding head norm fn wq_a wq_b wkv compress_kv compress_gate compress_norm wo_a wo_b gate gate_up down"
    assert set(needed.split()) <= set(checked)


@pytest.mark.parametrize(("muon", "steps"), [(True, 12), (False, 6)])
def test_the_loss_falls(muon: bool, steps: int) -> None:
    """With MXFP4 experts; and runs repeat to the bit."""
    text, lines = example.read_text(), []
    options: dict[str, Any] = {"muon": muon, "size": 4, "seq": 64, "show": lines.append}
    run = example.train("run", model.Config(fp4=True), text, steps, **options)
    assert run.training[0] > 4 and run.last < 3.5 and run.validation[-1] < 3.6
    assert len(lines) == len(run.checked) and "validation" in lines[-1]
    weights = [model.Model(model.Config(vocabulary=len(text.characters))) for _ in range(2)]
    for net in weights:
        pieces = example.batch(text.training, 2, 32, torch.Generator().manual_seed(1))
        example.loss_of(net, *pieces).backward()
        example.Optimiser(net, muon).step(0.01)
    assert all(torch.equal(a, b) for a, b in zip(*(n.weights.values() for n in weights), strict=True))


def test_the_curves_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    runs = [example.Run(name, [4.0, 3.0, 2.5], [0, 2], [4.0, 3.0]) for name in ("Muon", "AdamW", "Muon, MXFP4")]
    example.draw(runs, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_the_router_is_balanced_without_a_gradient() -> None:
    net = model.Model(model.Config())
    net.loads = [torch.tensor([8, 0, 4, 4, 4, 4, 4, 4]), torch.full((8,), 4)]
    net.balance(0.5)
    assert net.biases[0].tolist() == [-0.5, 0.5, 0, 0, 0, 0, 0, 0] and not net.biases[1].any()
    tokens = torch.zeros(1, 32, dtype=torch.int64)
    net.biases[0][3] = 100.0  # the bias selects: now everybody goes there
    with torch.no_grad():
        net(tokens)
    assert int(net.loads[0][3]) == 32


def test_weights_in_fp4() -> None:
    """The values are those of MXFP4, and of the FP8 that it becomes without loss; the gradient passes unchanged."""
    rng = np.random.default_rng(0)
    weight = torch.from_numpy(rng.standard_normal((3, 8, 64)).astype(np.float32) * 3).requires_grad_()
    y = operators.fp4(weight)
    flat = weight.detach().numpy().reshape(24, 64)
    np.testing.assert_array_equal(y.detach().numpy().reshape(24, 64), fp4_values(*fp4_cast(flat)))
    narrow = quant.fp4_to_fp8(*quant.mxfp4_cast(flat))
    wide = quant.dequantize(*narrow, block=(128, 128), out_dtype="float32")
    np.testing.assert_array_equal(y.detach().numpy().reshape(24, 64), wide)
    grad = torch.from_numpy(rng.standard_normal((3, 8, 64)).astype(np.float32))
    y.backward(grad)
    assert torch.equal(weight.grad, grad)
