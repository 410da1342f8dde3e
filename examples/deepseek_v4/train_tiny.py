"""Train two small blocks of DeepSeek-V4 on characters: Muon against AdamW, MXFP4 experts against float32.

Run it: python examples/deepseek_v4/train_tiny.py [--steps 200 --plot train_tiny.png]

Every run starts from the same weights and sees the same text in the same order (Alice's Adventures in Wonderland, from
tiledsl.demo; its last tenth is kept for validation). The model is tiny_model.py; forward, backward and optimisers are
kernels of tiledsl. What is printed: the losses of each run. What is drawn: their curves.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path

try:
    import torch
except ModuleNotFoundError:
    raise SystemExit("train_tiny.py is a PyTorch program: pip install torch") from None
from tiny_model import Config, Model
from torch import Tensor

from tiledsl.demo.report import Progress
from tiledsl.kernels import optim

# As DeepSeek-V4: matrices by Muon, these by AdamW, and with them whatever is no matrix.
ADAMW_ALONE = ("embedding", "head", "ape")
# Peak learning rates, the best in runs of 100 steps (of 0.005, 0.01, 0.02, 0.03 and of 0.004, 0.01, 0.02); and their
# share at the end.
MUON_RATE, ADAMW_RATE, LAST = 0.02, 0.01, 0.1


@dataclass(frozen=True)
class Text:
    """characters: the vocabulary; training and validation: their numbers, int64."""

    characters: str
    training: Tensor
    validation: Tensor


def read_text() -> Text:
    """The text that comes with the package, without its comments."""
    lines = files("tiledsl.demo").joinpath("text.txt").read_text(encoding="utf-8").splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).strip()
    characters = "".join(sorted(set(text)))
    numbers = torch.tensor([characters.index(c) for c in text])
    cut = len(numbers) * 9 // 10
    return Text(characters, numbers[:cut], numbers[cut:])


def batch(text: Tensor, size: int, seq: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pieces of the text at random places [size, seq], and the characters behind each."""
    starts = torch.randint(len(text) - seq, (size, 1), generator=random)
    pieces = text[starts + torch.arange(seq + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def loss_of(model: Model, tokens: Tensor, wanted: Tensor) -> Tensor:
    """Mean cross-entropy in nats per character."""
    return torch.nn.functional.cross_entropy(model(tokens), wanted.reshape(-1))


@dataclass
class Optimiser:
    """Muon for matrices (stacks of experts in one call) and AdamW for the rest, or AdamW for all."""

    model: Model
    muon: bool
    state: dict[str, list[Tensor]] = field(default_factory=dict)
    steps: int = 0

    def step(self, rate: float) -> None:
        """One step from the gradients, which are then forgotten."""
        self.steps += 1
        for name, weight in self.model.weights.items():
            w, grad = weight.data, weight.grad
            assert grad is not None
            if self.muon and w.ndim > 1 and name.rpartition(".")[2] not in ADAMW_ALONE:
                (momentum,) = self.state.setdefault(name, [torch.zeros_like(w)])
                optim.muon_step(w, grad, momentum, lr=rate)
            else:
                moments = self.state.setdefault(name, [torch.zeros_like(w), torch.zeros_like(w)])
                optim.adamw_step(w, grad, *moments, step=self.steps, lr=rate, weight_decay=0.1 if w.ndim > 1 else 0.0)
            weight.grad = None


def rate_at(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over the first twentieth, then a cosine down to a tenth."""
    warm = max(steps // 20, 1)
    if step < warm:
        return peak * (step + 1) / warm
    turned = (step - warm) / max(steps - warm, 1)
    return peak * (LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * turned)))


@dataclass
class Run:
    """One training run: losses of each step, and of the validation text at `checked` steps."""

    name: str
    training: list[float] = field(default_factory=list)
    checked: list[int] = field(default_factory=list)
    validation: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def last(self) -> float:
        """The training loss at the end: the mean of the last tenth."""
        tail = self.training[-max(len(self.training) // 10, 1) :]
        return sum(tail) / len(tail)


def validate(model: Model, text: Tensor, seq: int) -> float:
    """The loss over the whole validation text, cut into pieces of seq."""
    count = (len(text) - 1) // seq
    tokens, wanted = (text[i : i + count * seq].reshape(count, seq) for i in (0, 1))
    with torch.no_grad():
        return float(loss_of(model, tokens, wanted))


def train(
    name: str,
    config: Config,
    text: Text,
    steps: int,
    *,
    muon: bool = True,
    rate: float | None = None,
    size: int = 8,
    seq: int = 128,
    show: Callable[[str], None] = lambda _: None,
) -> Run:
    """Train a new model for so many steps; `show` is told how it goes, ten times. rate: None: that of the optimiser."""
    peak = (MUON_RATE if muon else ADAMW_RATE) if rate is None else rate
    model = Model(replace(config, vocabulary=len(text.characters)))
    optimiser, run, random = Optimiser(model, muon), Run(name), torch.Generator().manual_seed(1)
    started = time.perf_counter()
    for step in range(steps):
        loss = loss_of(model, *batch(text.training, size, seq, random))
        loss.backward()
        optimiser.step(rate_at(step, steps, peak))
        model.balance()
        run.training.append(float(loss.detach()))
        if step % max(steps // 10, 1) == 0 or step == steps - 1:
            run.checked.append(step)
            run.validation.append(validate(model, text.validation, seq))
            show(f"{name}: step {step + 1}, loss {run.training[-1]:.3f}, validation {run.validation[-1]:.3f}")
    run.seconds = time.perf_counter() - started
    return run


def draw(runs: list[Run], path: Path) -> None:
    """The curves of Muon, AdamW and Muon with MXFP4: training (thin, the mean of 10 steps) and validation (dots)."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
    panels = (("Muon against AdamW", runs[:2]), ("MXFP4 experts against float32", runs[::2]))
    for panel, (title, pair) in zip(axes, panels, strict=True):
        for run in pair:
            smooth = [sum(run.training[max(i - 9, 0) : i + 1]) / min(i + 1, 10) for i in range(len(run.training))]
            (line,) = panel.plot(smooth, linewidth=1, label=f"{run.name}, training")
            panel.plot(run.checked, run.validation, "o--", color=line.get_color(), label=f"{run.name}, validation")
        panel.set(title=title, xlabel="step", ylabel="nats per character")
        panel.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--steps", type=int, default=200, help="of each run (default 200)")
    rates = f"default {MUON_RATE} for Muon, {ADAMW_RATE} for AdamW"
    parser.add_argument("--rate", type=float, default=None, help=f"the learning rate's peak ({rates})")
    parser.add_argument("--plot", type=Path, default=Path("train_tiny.png"), help="where the picture goes")
    args = parser.parse_args()
    torch.set_num_threads(1)  # torch is glue here: its threads would only wait, and take the kernels' cores to do so
    text, config = read_text(), Config()
    kinds = (("Muon", config, True), ("AdamW", config, False), ("Muon, MXFP4", replace(config, fp4=True), True))
    count = math.ceil(args.steps / max(args.steps // 10, 1)) + ((args.steps - 1) % max(args.steps // 10, 1) != 0)
    with Progress(len(kinds) * count) as progress:
        runs = [
            train(name, form, text, args.steps, muon=muon, rate=args.rate, show=progress.step)
            for name, form, muon in kinds
        ]
    weights = sum(w.numel() for w in Model(replace(config, vocabulary=len(text.characters))).weights.values())
    print(f"\n{weights} weights, {len(text.training)} characters of {len(text.characters)} kinds, {args.steps} steps")
    print(f"{'run':14} {'training':>9} {'validation':>11} {'best':>7} {'seconds':>8}")
    for run in runs:
        best = min(run.validation)
        print(f"{run.name:14} {run.last:9.3f} {run.validation[-1]:11.3f} {best:7.3f} {run.seconds:8.0f}")
    try:
        draw(runs, args.plot)
        print(f"curves: {args.plot}")
    except ImportError:
        print("no curves: matplotlib is not installed (pip install 'tiledsl[demo]')")


if __name__ == "__main__":
    main()
