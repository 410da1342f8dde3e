"""The target "numba": loop stage -> readable Python in a small dialect -> Numba -> object code.

`backend` is what the registry finds. For tests: `run_loop_function(function, args, symbols)` runs a loop-stage
function in place on NumPy arrays; `compile_function(function)` gives `.source`, `.code` and `.run(words, grids)`.
Only `emit` imports Numba; loading needs llvmlite alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tiledsl import ir
from tiledsl.backend import Artifact, Availability, Capabilities, CompiledFunction, Target
from tiledsl.dtypes import SCALARS
from tiledsl.errors import TileValueError

__all__ = ["NumbaCpu", "backend", "compile_function", "run_loop_function"]

_COMPILER_ROOMS = ("ir", "analysis", "passes")


def _cpu(target: Target) -> Any:
    from tiledsl.backends.cpu.native import LEVELS, host_cpu, x86_level

    if not target.arch:
        return host_cpu()
    if target.arch not in LEVELS or not host_cpu().triple.startswith("x86_64"):
        raise TileValueError(
            f"target numba has no architecture {target.arch!r}", help=f"use numba, or on x86: {', '.join(LEVELS)}"
        )
    return x86_level(target.arch)


@cache
def _versions() -> str:
    return f"numba {version('numba')}, llvmlite {version('llvmlite')}"


@cache
def _compiler() -> str:
    """Identifies the code that turns IR into machine code: any edit of it makes other cache keys."""
    root = Path(ir.__file__).parent.parent
    here = Path(__file__).parent
    files = [
        p for d in (here, here.parent / "cpu", *(root / x for x in _COMPILER_ROOMS)) for p in sorted(d.rglob("*.py"))
    ]
    stats = [(p.name, s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


class NumbaCpu:
    """The backend object. Architectures: "" is this machine, "x86-64-v3" its AVX2 subset."""

    name = "numba"

    def probe(self) -> Availability:
        missing = [m for m in ("numba", "llvmlite") if find_spec(m) is None]
        if missing:
            return Availability(False, f"{' and '.join(missing)} not installed", "pip install numba")
        return Availability(True, _versions())

    def capabilities(self, target: Target) -> Capabilities:
        return Capabilities(dtypes=SCALARS)

    def pipeline(self, target: Target) -> Sequence[Callable[[ir.Function], ir.Function]]:
        from tiledsl.backends.cpu.pipeline import cpu_pipeline

        return cpu_pipeline()

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        from tiledsl.backends.numba_cpu.compile import object_code
        from tiledsl.backends.numba_cpu.printer import print_function

        printed = print_function(function)
        code = object_code(printed, _cpu(target))
        return Artifact.of(function, printed.text, symbols=printed.symbols, code=code, sites=printed.sites)

    def load(self, artifact: Artifact) -> CompiledFunction:
        from tiledsl.backends.cpu.native import load_object

        symbols = [e.symbol for e in artifact.entries]
        loaded = load_object(artifact.code, symbols)
        return CompiledFunction([loaded.addresses[s] for s in symbols], keep=loaded)

    def version(self, target: Target) -> str:
        cpu = _cpu(target)
        return f"compiler {_compiler()}, {_versions()}, {cpu.triple} {cpu.name} {cpu.features}"


backend = NumbaCpu()


def __getattr__(name: str) -> Any:
    if name in ("compile_function", "run_loop_function"):
        from tiledsl.backends.numba_cpu import compile as _compile

        return getattr(_compile, name)
    raise AttributeError(name)
