"""How the demo shows itself: a progress line, a table (rich where it is installed), and a picture (matplotlib)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tiledsl.demo.run import Measurement
    from tiledsl.demo.text import Batch

__all__ = ["Progress", "draw", "print_table"]


class Progress:
    """`with Progress(steps) as p: p.step("what happens now")`: a bar with rich on a terminal, else plain lines."""

    def __init__(self, steps: int) -> None:
        self.steps, self.done = steps, 0
        self.bar: Any = None
        self.task: Any = None

    def __enter__(self) -> Progress:
        try:
            from rich.console import Console
            from rich.progress import Progress as Bar
        except ImportError:
            return self
        if Console().is_terminal:
            self.bar = Bar(transient=True)
            self.bar.start()
            self.task = self.bar.add_task("", total=self.steps)
        return self

    def step(self, what: str, advance: int = 1) -> None:
        """A new step begins."""
        if self.bar is None:
            print(f"[{self.done + advance:2}/{self.steps}] {what}", flush=True)
        else:
            self.bar.update(self.task, description=what, completed=self.done)
        self.done += advance

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()


def print_table(rows: list[Measurement]) -> None:
    """kernel, shape, dtype, target, error, times, and how many times faster than other libraries."""
    names = sorted({name for r in rows for name in r.rivals})
    header = ["kernel", "dtype", "target", "max error", "first call", "time", "GFLOP/s", *(f"vs {n}" for n in names)]
    shapes = {r.case.kernel: r.case.shape for r in rows}
    print("\nShapes: " + "\n        ".join(f"{kernel}: {shape}" for kernel, shape in shapes.items()))
    cells = [
        [
            r.case.kernel,
            r.case.dtype,
            r.target,
            f"{r.error:.1e}",
            f"{r.first:.2f} s",
            f"{r.seconds * 1e3:.1f} ms",
            f"{r.gflops:.1f}",
            *(f"{r.rivals[n] / r.seconds:.2f}x" if n in r.rivals else "-" for n in names),
        ]
        for r in rows
    ]
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        _print_plain(header, cells)
        return
    table = Table(title="max error: against float64; vs: their time / ours, above 1 = faster than they are")
    for i, name in enumerate(header):
        table.add_column(name, justify="left" if i < 3 else "right", no_wrap=i > 0)
    for line in cells:
        table.add_row(*line)
    console = Console()
    if not console.is_terminal:
        console = Console(width=130)
    console.print(table)


def _print_plain(header: list[str], cells: list[list[str]]) -> None:
    widths = [max(len(line[i]) for line in [header, *cells]) for i in range(len(header))]
    print("max error: against float64; vs: their time / ours, above 1 = faster than they are")
    for line in [header, ["-" * w for w in widths], *cells]:
        print("  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))))


def draw(rows: list[Measurement], batch: Batch, path: Path) -> None:
    """The picture: speed and error of each row, and the lengths of the sentences."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path} was not drawn: matplotlib is not installed (pip install matplotlib).")
        return
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), layout="constrained")
    speed, error, lengths = figure.subplots(1, 3)
    labels = [f"{r.case.kernel.split(' (')[0]}\n{r.case.dtype}, {r.target}" for r in rows]
    colors = ["tab:blue" if r.target == "llvm" else "tab:gray" for r in rows]
    speed.barh(labels, [r.gflops for r in rows], color=colors)
    for name, color in (("NumPy", "black"), ("torch", "tab:red")):
        theirs = [r.case.flops / r.rivals[name] / 1e9 if name in r.rivals else float("nan") for r in rows]
        if any(name in r.rivals for r in rows):
            speed.plot(theirs, range(len(rows)), "|", color=color, markersize=14, markeredgewidth=2, label=name)
    speed.set(title="speed", xlabel="GFLOP/s")
    speed.legend(loc="lower right")
    error.barh(labels, [r.error for r in rows], color=colors)
    error.set(title="largest error against float64", xscale="log", yticks=[])
    lengths.hist(batch.lengths, bins=24, color="tab:green")
    lengths.set(title=f"{len(batch.lengths)} sentences in the batch", xlabel="tokens")
    for axes in (speed, error):
        axes.invert_yaxis()
        axes.tick_params(axis="y", labelsize=7)
    figure.savefig(path, dpi=130)
    print(f"{path} shows these numbers.")
