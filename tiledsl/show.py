"""`tiledsl show FILE[:KERNEL]`: print kernels of a Python file, or of a TileLang program, at any stage."""

from __future__ import annotations

import argparse
import re
import runpy
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from tiledsl import ir
from tiledsl.errors import TileError, TileValueError
from tiledsl.runtime import JITFunction, JITKernel, compile

__all__ = ["arguments", "main"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `tiledsl show`."""
    parser.add_argument(
        "place", metavar="FILE[:KERNEL]", help="KERNEL is a name, or a call such as 'matmul(64, 64, 32)'"
    )
    parser.add_argument("--stage", choices=("tile", "loop"), default="tile", help="print the IR at this stage")
    parser.add_argument("--source", action="store_true", help="print what the target's backend generates")
    parser.add_argument("--target", help="name[:arch] (default: TILEDSL_TARGET, else auto)")


def main(options: argparse.Namespace) -> int:
    """Print what was asked for."""
    file, _, wanted = options.place.partition(":")
    if not Path(file).is_file():
        raise TileValueError(f"there is no file {file}")
    if re.search(r"(?m)^\s*(import|from)\s+(tilelang|tvm)\b", Path(file).read_text(encoding="utf-8")):
        from tiledsl.compat import prepare

        prepare(argparse.Namespace(target=options.target or "cpu", capability="9.0"))
    sys.path.insert(0, str(Path(file).resolve().parent))
    words, sys.argv = sys.argv, [file]  # the file sees its own words, not ours
    try:
        with redirect_stdout(sys.stderr):  # what it prints is not the text that was asked for
            names = runpy.run_path(file, run_name="__tiledsl_show__")
    finally:
        sys.argv = words
    if wanted:
        for kernel in _kernels(_evaluate(wanted, names), wanted):
            print(_text(kernel, options))
        return 0
    found = {n: v for n, v in names.items() if _is_kernel(v) and not n.startswith("_")}
    if not found:
        raise TileValueError(f"{file} has no kernels at its top level", help="name one: tiledsl show FILE:'make(64)'")
    for name, value in found.items():
        try:
            for kernel in _kernels(value, name):
                print(_text(kernel, options))
        except TileError as e:
            print(f"# {e.message}\n# {e.help}")
    return 0


def _is_kernel(x: Any) -> bool:
    x = getattr(x, "native", x)
    return isinstance(x, (JITFunction, JITKernel)) or isinstance(getattr(x, "function", None), ir.Function)


def _evaluate(text: str, names: dict[str, Any]) -> Any:
    """The kernel that the text names, or makes, in the file's own names."""
    try:
        return eval(text, names)
    except TileError:
        raise
    except Exception as e:
        known = ", ".join(n for n, v in names.items() if _is_kernel(v))
        raise TileValueError(f"{text}: {type(e).__name__}: {e}", help=f"kernels of this file: {known}") from None


def _kernels(x: Any, name: str) -> tuple[JITKernel, ...]:
    """The kernel that x is or makes; of a factory that needs values, those that the file itself has made."""
    x = getattr(x, "native", x)  # of a TileLang program
    if isinstance(x, JITKernel):
        return (x,)
    if isinstance(x, JITFunction):
        try:
            return x.kernels or (x.kernel(),)
        except TileError as e:
            style = f"{name}(...)" if x.lazy else f"{name}.kernel(M=..., ...)"
            raise TileValueError(f"{name} needs values: {e.message}", help=f"tiledsl show FILE:'{style}'") from None
    if _is_kernel(x):
        return (compile(x),)
    raise TileValueError(f"{name} is no kernel, but {type(x).__name__}")


def _text(kernel: JITKernel, options: argparse.Namespace) -> str:
    if options.source:
        return kernel.get_kernel_source(options.target)
    return kernel.text(options.stage, options.target)
