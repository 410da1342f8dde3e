"""pytest, started by `tiledsl pytest` or inside a program: the pretended device comes before pytest's own finder."""

from __future__ import annotations

from tiledsl import config
from tiledsl.compat.startup import activate

__all__ = ["pytest_configure"]


def pytest_configure() -> None:
    """Called by pytest in the main process and in every worker of pytest-xdist."""
    if config.PRETEND.get():
        activate()
