"""The command `tiledsl`: a table of subcommands, imported when they are used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from tiledsl import config
from tiledsl.errors import TileError

__all__ = ["COMMANDS", "main"]

# Name -> (module, one line of help). A module has `arguments(parser)` and `main(options) -> exit status`.
COMMANDS: dict[str, tuple[str, str]] = {
    "bench": ("tiledsl.bench", "measure the library against NumPy and torch"),
    "demo": ("tiledsl.demo", "run attention and a mixture of experts on a real text, and measure"),
    "doctor": ("tiledsl.doctor", "what works here, what does not and how to get it"),
    "port": ("tiledsl.compat.port", "which operations of a TileLang program are supported, without running it"),
    "pytest": ("tiledsl.compat.pytest_command", "run pytest on TileLang programs, unchanged, on a target of ours"),
    "run": ("tiledsl.compat.run", "run a TileLang program, unchanged, on a target of ours"),
    "show": ("tiledsl.show", "print a kernel: its tile IR, the loop stage, or the generated source"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `tiledsl ARGV...` and return the exit status."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="tiledsl", description="Tile kernels in Python: one kernel, all targets.")
    parser.add_argument("--version", action="version", version=f"tiledsl {config.VERSION}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = None
    for name, (module, help) in COMMANDS.items():
        sub = commands.add_parser(name, help=help, description=help)
        if name in given[:1]:
            chosen = importlib.import_module(module)
            chosen.arguments(sub)
    options = parser.parse_args(given)
    assert chosen is not None  # argparse has ended the program otherwise
    try:
        return int(chosen.main(options))
    except TileError as e:
        print(f"{type(e).__name__}: {e}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `tiledsl show FILE | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
