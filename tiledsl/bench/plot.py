"""The roofline picture of a table: operations per second over operations per byte, in PNG, SVG or PDF."""

from __future__ import annotations

from collections.abc import Sequence

from tiledsl.backends.cpu.ceilings import Ceilings
from tiledsl.bench.measure import Row
from tiledsl.errors import TileValueError

__all__ = ["plot"]


def plot(rows: Sequence[Row], ceilings: Ceilings, file: str) -> None:
    """Draw the machine's roof, the jobs that go through memory on it, and all jobs' shares of their bound beside it.

    Raises TileValueError where matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        raise TileValueError(
            "a picture needs matplotlib", help="pip install 'tiledsl[viz]', or leave --plot away"
        ) from None
    figure, (roof, bars) = pyplot.subplots(1, 2, figsize=(12, max(4.0, 0.3 * len(rows))), constrained_layout=True)
    low, high = 0.05, 1000.0
    edge = ceilings.fma / ceilings.read
    roof.loglog([low, edge, high], [low * ceilings.read / 1e9, ceilings.fma / 1e9, ceilings.fma / 1e9], "k-")
    inside = [r for r in rows if r.intensity is not None]
    for row in inside:
        assert row.intensity is not None
        roof.plot([row.intensity], [row.gflops], "o")
        roof.annotate(row.job, (row.intensity, row.gflops), fontsize=7)
    cached = [r for r in rows if r.gflops and r.intensity is None]
    for row in cached:
        roof.plot([high], [row.gflops], "_", markersize=12)
    roof.set_xlabel("operations per byte from memory (at the right: data in the caches)")
    roof.set_ylabel("GFLOP/s")
    shares = [r for r in rows if r.share is not None]
    bars.barh([r.job for r in shares], [r.share or 0.0 for r in shares])
    bars.axvline(1.0, color="k")
    bars.set_xlabel("share of the bound")
    bars.invert_yaxis()
    figure.savefig(file)
    pyplot.close(figure)
