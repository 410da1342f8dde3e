"""What the CPU backends share: architectures, capabilities, the pipeline, loading, versions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tiledsl import ir
from tiledsl.backend import Artifact, Availability, Capabilities, CompiledFunction, Site, Target
from tiledsl.dtypes import SCALARS

__all__ = ["CpuBackend", "Modules"]

_COMPILER_ROOMS = ("ir", "analysis", "passes")


@cache
def _versions(packages: tuple[str, ...]) -> str:
    return ", ".join(f"{p} {version(p)}" for p in packages)


@cache
def _compiler(printer: str) -> str:
    """Identifies the code that turns IR into machine code: any edit of it makes other cache keys."""
    root = Path(ir.__file__).parent.parent
    here = Path(__file__).parent
    folders = (here.parent / printer, here, *(root / x for x in _COMPILER_ROOMS))
    files = [p for d in folders for p in sorted(d.rglob("*.py"))]
    stats = [(p.name, s.st_size, s.st_mtime_ns) for p in files for s in [p.stat()]]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


class Modules(NamedTuple):
    """What a printer makes: text for people, llvmlite modules, the C symbol of each kernel, sites of debug records."""

    source: str
    modules: Sequence[Any]
    symbols: tuple[str, ...]
    sites: tuple[Site, ...]


class CpuBackend:
    """All members of a CPU backend; a printer adds `modules`. Architectures: "" is this machine, "x86-64-v3" its AVX2
    subset.

    name      the target's name; printer: the folder of its sources; packages: what it needs
    lines     whether its code names the author's lines
    """

    name: str
    printer: str
    packages: tuple[str, ...]
    lines: bool = False

    def cpu(self, target: Target) -> Any:
        """The CPU to compile for. Raises TileValueError for an architecture that this machine cannot run."""
        from tiledsl.backends.cpu.native import host_cpu, named_cpu

        return named_cpu(target.arch) if target.arch else host_cpu()

    def probe(self) -> Availability:
        missing = [m for m in self.packages if find_spec(m) is None]
        if missing:
            return Availability(False, f"{' and '.join(missing)} not installed", f"pip install {self.packages[0]}")
        return Availability(True, _versions(self.packages))

    def capabilities(self, target: Target) -> Capabilities:
        facts = frozenset(["aliased"])  # hoist_packs has to know
        return Capabilities(dtypes=SCALARS, facts=facts, lines=self.lines)

    def pipeline(self, target: Target) -> Sequence[Callable[[ir.Function], ir.Function]]:
        from tiledsl.backends.cpu.pipeline import cpu_pipeline

        return cpu_pipeline()

    def modules(self, function: ir.Function, cpu: Any) -> Modules:
        """A loop-stage function for `cpu` before LLVM sees it."""
        raise NotImplementedError

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        from tiledsl.backends.cpu.native import compile_module

        cpu = self.cpu(target)
        made = self.modules(function, cpu)
        code = compile_module(made.modules, cpu)
        return Artifact.of(function, made.source, symbols=made.symbols, code=code, sites=made.sites)

    def load(self, artifact: Artifact) -> CompiledFunction:
        from tiledsl.backends.cpu.native import load_object

        symbols = [e.symbol for e in artifact.entries]
        loaded = load_object(artifact.code, symbols)
        return CompiledFunction([loaded.addresses[s] for s in symbols], keep=loaded)

    def version(self, target: Target) -> str:
        cpu = self.cpu(target)
        return f"compiler {_compiler(self.printer)}, {_versions(self.packages)}, {cpu.triple} {cpu.name} {cpu.features}"
