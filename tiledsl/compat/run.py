"""`tiledsl run [--target T] SCRIPT.py [ARGS]` and `tiledsl run -m MODULE [ARGS]`: a TileLang program, unchanged."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from pathlib import Path

from tiledsl.compat.install import install
from tiledsl.compat.pretended_cuda import pretended
from tiledsl.errors import TileValueError

__all__ = ["arguments", "main"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl run`."""
    parser.add_argument("--target", default="cpu", help="name[:arch] for every kernel, whatever the program says")
    parser.add_argument("--capability", default="9.0", help="compute capability that the program is told")
    parser.add_argument("-m", dest="module", metavar="MODULE", help="run a module instead of a file")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="SCRIPT.py ARGS")


def main(options: argparse.Namespace) -> int:
    """Run the program; its own exit status is returned."""
    rest = list(options.rest)
    if not options.module and not rest:
        raise TileValueError("tiledsl run: which program?", help="tiledsl run SCRIPT.py [ARGS]")
    os.environ["TILEDSL_TARGET"] = options.target
    major, _, minor = options.capability.partition(".")
    install()
    with pretended((int(major), int(minor or 0))):
        try:
            if options.module:
                sys.argv = [options.module, *rest]
                runpy.run_module(options.module, run_name="__main__", alter_sys=True)
            else:
                script = Path(rest[0])
                if not script.is_file():
                    raise TileValueError(f"tiledsl run: there is no file {script}")
                sys.argv = rest
                sys.path.insert(0, str(script.resolve().parent))
                runpy.run_path(str(script), run_name="__main__")
        except SystemExit as e:
            return e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    return 0
