"""`tiledsl pytest [--target T] -- ARGS`: pytest over TileLang tests, unchanged, its workers included."""

from __future__ import annotations

import argparse
import os
import sys

from tiledsl.compat.run import device_arguments, prepare
from tiledsl.errors import TileRuntimeError

__all__ = ["arguments", "main"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl pytest`."""
    device_arguments(parser)
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="-- PYTEST-ARGS")


def main(options: argparse.Namespace) -> int:
    """pytest's exit status."""
    try:
        import pytest
    except ModuleNotFoundError:
        raise TileRuntimeError("tiledsl pytest: pytest is not installed", help="pip install pytest") from None
    rest = list(options.rest)
    if rest[:1] == ["--"]:
        del rest[0]
    prepare(options)
    plugins = [p for p in os.environ.get("PYTEST_PLUGINS", "").split(",") if p]
    os.environ["PYTEST_PLUGINS"] = ",".join([*plugins, "tiledsl.compat.plugin"])
    sys.path.insert(0, os.getcwd())  # as `python -m pytest` does
    return int(pytest.main(rest))
