"""`tiledsl run [--target T] SCRIPT.py [ARGS]` and `tiledsl run -m MODULE [ARGS]`: a TileLang program, unchanged."""

from __future__ import annotations

import argparse
import itertools
import linecache
import os
import runpy
import sys
import traceback
from pathlib import Path

from tiledsl.compat.hosts import on_gpu
from tiledsl.compat.install import install
from tiledsl.compat.startup import activate
from tiledsl.errors import Loc, TileError, TileValueError, render

_PACKAGE = str(Path(__file__).parents[1]) + os.sep

__all__ = ["arguments", "device_arguments", "main", "prepare"]


def device_arguments(parser: argparse.ArgumentParser) -> None:
    """Where kernels run, and what the program is told about it."""
    parser.add_argument("--target", default="cpu", help="name[:arch] for every kernel, whatever the program says")
    parser.add_argument("--capability", default="9.0", help="compute capability that the program is told")


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl run`."""
    device_arguments(parser)
    parser.add_argument(
        "-m", dest="module", nargs=argparse.REMAINDER, metavar="MODULE ARGS", help="run a module instead of a file"
    )
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="SCRIPT.py ARGS")


def prepare(options: argparse.Namespace) -> None:
    """From here on this process, and those it starts, are what a TileLang program expects."""
    parts = options.capability.split(".")
    if len(parts) > 2 or not all(p.isdigit() for p in parts):
        raise TileValueError(f"--capability {options.capability}: two numbers are expected", help="--capability 9.0")
    os.environ["TILEDSL_TARGET"] = options.target
    install()
    if not on_gpu():
        activate(options.capability)


def main(options: argparse.Namespace) -> int:
    """Run the program; its own exit status is returned."""
    rest = list(options.rest)
    if not options.module and not rest:
        raise TileValueError("tiledsl run: which program?", help="tiledsl run SCRIPT.py [ARGS]")
    script = Path(rest[0]) if not options.module else None
    if script is not None and not script.is_file():
        raise TileValueError(f"tiledsl run: there is no file {script}")
    prepare(options)
    try:
        if script is None:
            sys.argv = list(options.module)
            sys.path.insert(0, os.getcwd())
            runpy.run_module(options.module[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = rest
            sys.path.insert(0, str(script.resolve().parent))
            runpy.run_path(str(script), run_name="__main__")
    except TileError as e:
        print("\n".join([f"{type(e).__name__}: {e}", *_call(e)]), file=sys.stderr)
        return 1
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else 0 if e.code is None else 1
    return 0


def _call(error: TileError) -> list[str]:
    """The program's own line that led to an error, where the error itself is about other lines."""
    frames = traceback.extract_tb(error.__traceback__)
    begin = max((i for i, f in enumerate(frames) if f.filename == "<frozen runpy>"), default=-1) + 1
    own = list(itertools.takewhile(lambda f: not f.filename.startswith(_PACKAGE), frames[begin:]))
    if not own:
        return []
    told, loc = set[tuple[str, int]](), error.loc
    while loc is not None:
        told.add((loc.file, loc.line))
        loc = loc.caller
    last = own[-1]
    if (last.filename, last.lineno) in told:
        return []
    text = linecache.getline(last.filename, last.lineno or 0).encode()
    col, end = (len(text[: at or 0].decode(errors="replace")) + 1 for at in (last.colno, last.end_colno))
    function = "" if last.name == "<module>" else last.name
    return render(TileError("called from", Loc(last.filename, last.lineno or 0, col, end, function))).splitlines()
