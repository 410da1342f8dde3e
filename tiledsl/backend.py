"""What a backend is (seven members), what it hands back, how backends are found, and how a target is chosen."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, runtime_checkable

from tiledsl import config, ir
from tiledsl.dtypes import DType
from tiledsl.errors import (
    Loc,
    TileError,
    TileNotImplementedError,
    TileRuntimeError,
    TileTypeError,
    TileValueError,
    suggest,
)
from tiledsl.passes.pipeline import Pass

__all__ = [
    "Artifact",
    "Availability",
    "Backend",
    "Call",
    "Capabilities",
    "Entry",
    "Launchable",
    "Site",
    "Target",
    "Workspace",
    "backends",
    "check_target",
    "resolve",
]

ENTRY_POINTS = "tiledsl.backends"
# Used when tiledsl runs from a checkout without installation, where no entry points exist.
BUILT_IN: dict[str, str] = {
    "numpy": "tiledsl.backends.numpy_reference:backend",
    "numba": "tiledsl.backends.numba_cpu:backend",
    "llvm": "tiledsl.backends.llvm_cpu:backend",
    "cuda": "tiledsl.backends.cuda_nvrtc:backend",
    "cuda-emulator": "tiledsl.backends.cuda_emulator:backend",
}


@dataclass(frozen=True)
class Target:
    """A backend's name and an optional architecture: "numba", "cuda:sm_90a"."""

    name: str
    arch: str = ""

    def __str__(self) -> str:
        return f"{self.name}:{self.arch}" if self.arch else self.name


@dataclass(frozen=True)
class Availability:
    """Whether a backend can run here; if not, why and how to get it, and whether its text can be had all the same."""

    ok: bool
    reason: str = ""
    help: str = ""
    text: bool = False


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do and what it wants, as data.

    dtypes     names of the element types that kernels may use
    archs      the architectures that the target's name may carry, besides none; None: the backend decides
    arch       the one that code is made for ("sm_90a"); empty where there are none
    facts      what compiled code is specialised on: any of "aliased", "aligned16" (base addresses, bytes),
               "divisible16" (symbols); see `Function.attrs` in `docs/architecture.md`
    cacheable  artifacts may be kept on disk
    lines      generated text names the author's lines
    lacks      operations of `T` that the target refuses, by name, and why (`tiledsl port` shows them)
    """

    dtypes: frozenset[str]
    facts: frozenset[str] = frozenset()
    cacheable: bool = True
    lines: bool = False
    archs: tuple[str, ...] | None = None
    arch: str = ""
    lacks: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Entry:
    """One kernel of an artifact: its symbol, its grid (over the artifact's `host_vars`), the bytes of scratch that one
    worker needs, and whether blocks may wait for each other, so that each must go on whatever the others do."""

    symbol: str
    grid: tuple[ir.Expr, ...]
    scratch_bytes: int = 0
    waits: bool = False


@dataclass(frozen=True)
class Workspace:
    """A global buffer that exists for one launch; shape over `host_vars`."""

    dtype: DType
    shape: tuple[ir.Expr, ...]


@dataclass(frozen=True)
class Site:
    """A T.print or T.device_assert of compiled code: what the records in the debug ring mean.

    kind     "print" | "assert" | "bounds"
    message  template with one {} per value shown (see `tiledsl.passes.explain_debug`)
    dtypes   of the words of a record
    shapes   of the values shown, in order; () is a scalar, which takes one word. Missing: all scalars.
    """

    kind: str
    message: str
    dtypes: tuple[DType, ...] = ()
    loc: Loc | None = None
    shapes: tuple[tuple[int, ...], ...] = ()

    @classmethod
    def of(cls, s: ir.Debug) -> Site:
        """That of a print, or of a statement that fails unless its first value holds; its records have the others.
        Raises TileNotImplementedError for a buffer whose size is not known."""
        dtypes: list[DType] = []
        shapes: list[tuple[int, ...]] = []
        for v in s.values if s.kind == "print" else s.values[1:]:
            shape = (v.const_shape if v.strides is None else None) if isinstance(v, ir.Buffer) else ()
            if shape is None:
                assert isinstance(v, ir.Buffer)
                raise TileNotImplementedError(
                    f"printing {v.name} whole is not possible yet: its shape or strides are known only at run time",
                    s.loc,
                    help="print single elements",
                )
            shapes.append(shape)
            dtypes += [v.dtype.scalar] * math.prod(shape)
        return cls(s.kind, s.message, tuple(dtypes), s.loc, tuple(shapes))


@dataclass(frozen=True, eq=False)
class Artifact:
    """What `emit` produces: all that a launch needs, without the tree it came from.

    source     text for people (tile IR, Python, CUDA C++)
    code       object code or cubin; empty for backends that run `payload`
    host_vars  integer scalar parameters, then symbols: the variables of grids and workspaces
    meta       JSON data of the backend's own
    payload    an object in memory; artifacts with a payload are never cached on disk
    """

    source: str
    code: bytes = b""
    host_vars: tuple[ir.Var, ...] = ()
    entries: tuple[Entry, ...] = ()
    workspaces: tuple[Workspace, ...] = ()
    sites: tuple[Site, ...] = ()
    meta: Mapping[str, Any] = field(default_factory=dict)
    payload: Any = None

    @staticmethod
    def of(function: ir.Function, source: str, *, symbols: Sequence[str] = (), **more: Any) -> Artifact:
        """The artifact of a lowered function: grids, scratch and workspaces are taken from it.

        symbols: name of the C function of each kernel (default: the kernels' own names)
        """
        entries = []
        for kernel, symbol in zip(function.kernels, symbols or [k.name for k in function.kernels], strict=True):
            attrs: dict[str, Any] = dict(kernel.attrs)
            entries.append(Entry(symbol, kernel.grid, attrs.get("scratch_bytes", 0), attrs.get("waits", False)))
        workspaces = tuple(Workspace(b.dtype, b.shape) for b in function.workspaces)
        return Artifact(source, host_vars=host_vars(function), entries=tuple(entries), workspaces=workspaces, **more)


def host_vars(function: ir.Function) -> tuple[ir.Var, ...]:
    """Variables that the host knows at launch and that shapes and grids may use."""
    scalars = tuple(p.var for p in function.params if p.var is not None and not p.var.dtype.is_float)
    return scalars + function.symbols


class DebugRing(Protocol):
    """Where compiled code puts the records of T.print and T.device_assert."""

    @property
    def address(self) -> int: ...

    def flush(self) -> None:
        """Print what was printed, in order; raise TileRuntimeError for the first failed assert."""


class Call(Protocol):
    """One launch, as a Launchable sees it."""

    @property
    def function(self) -> ir.Function:
        """The function that was traced (tile stage)."""

    @property
    def fresh(self) -> bool:
        """The outputs were allocated for this launch, and hold nothing yet."""

    @property
    def arrays(self) -> Sequence[Any]:
        """Every parameter as a NumPy array (sharing memory) or Python scalar; absent ones are None."""

    @property
    def values(self) -> Sequence[Any]:
        """Every parameter as the caller gave it."""

    @property
    def args(self) -> bytes:
        """The argument words: parameters, symbols, addresses of workspaces (docs/architecture.md, CPU ABI)."""

    @property
    def ring(self) -> DebugRing | None:
        """None where the code has neither prints nor asserts."""

    def run_grid(self, entry: int, function: Any) -> None:
        """Run all blocks of kernel `entry` through a C function of the CPU ABI (a `CPU_FUNCTION`)."""


class Launchable(Protocol):
    """A loaded artifact. stream and device are meaningful on GPUs only."""

    def __call__(self, call: Call, *, stream: Any = None, device: Any = None) -> None: ...


@runtime_checkable
class Backend(Protocol):
    """The seven members of a backend; nothing else is ever asked of it."""

    @property
    def name(self) -> str: ...

    def probe(self) -> Availability:
        """Never raises."""

    def capabilities(self, target: Target) -> Capabilities: ...

    def pipeline(self, target: Target) -> Sequence[Pass]:
        """The passes from the tile stage to what `emit` takes."""

    def emit(self, function: ir.Function, target: Target) -> Artifact:
        """Pure, needs no device."""

    def load(self, artifact: Artifact) -> Launchable: ...

    def version(self, target: Target) -> str:
        """Everything besides the IR that the code depends on: emitter, libraries, processor features. Cheap:
        it is asked on every first launch, also when the code then comes from the disk cache."""


class CompiledFunction:
    """The Launchable of CPU backends: one C function per kernel.

    addresses  of the functions, in the order of the artifact's entries
    keep       whatever owns the code; it lives as long as this object
    """

    def __init__(self, addresses: Sequence[int], keep: Any = None) -> None:
        import ctypes

        # first block, last block, argument words, context words -> 0 done, 1 cancelled, 2 assert, 3 suspended
        signature = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_char_p, ctypes.c_void_p)
        self.functions = tuple(signature(a) for a in addresses)
        self.keep = keep

    def __call__(self, call: Call, *, stream: Any = None, device: Any = None) -> None:
        for entry, function in enumerate(self.functions):
            call.run_grid(entry, function)


# -- registry -----------------------------------------------------------------------------------------------


@cache
def backends() -> dict[str, str]:
    """Name -> "module:object" of every known backend. Raises TileValueError when two claim one name."""
    from importlib.metadata import entry_points

    found = dict(BUILT_IN)
    for point in entry_points(group=ENTRY_POINTS):
        other = found.setdefault(point.name, point.value)
        if other != point.value:
            raise TileValueError(
                f"two backends are called {point.name!r}: {other} and {point.value}",
                help="uninstall one of the packages that bring them",
            )
    return found


@cache
def load_backend(name: str) -> Backend:
    """The backend of that name, imported. Raises TileValueError for unknown names."""
    place = backends().get(name)
    if place is None:
        raise _unknown(name)
    module, _, attribute = place.partition(":")
    try:
        backend = getattr(importlib.import_module(module), attribute)
    except ImportError as e:
        return _Broken(name, f"{module} cannot be imported: {e}")
    if not isinstance(backend, Backend) or backend.name != name:
        raise TileValueError(f"{place} is not a backend called {name!r}: it lacks a member or has another name")
    return backend


class _Broken:
    """Stands for a backend whose module cannot be imported, so that `tiledsl doctor` can show why."""

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason

    def probe(self) -> Availability:
        return Availability(False, self.reason, "reinstall the package that brings this target")

    def _refuse(self, *_: Any) -> Any:
        raise TileRuntimeError(f"target {self.name} is not available: {self.reason}")

    capabilities = pipeline = emit = load = version = _refuse


# -- choice of a target (language.md 0.22) --------------------------------------------------------------------

ALIASES = ("auto", "cpu")
CPU_TARGETS = ("llvm", "numba")  # what "cpu" means: the first that is available, else numpy
ELSEWHERE = {"gpu": "cuda", "c": "llvm", "interpreter": "numpy"}  # what others call them


def _unknown(text: str) -> TileError:
    """What to say of a target that no backend offers, with those that there are."""
    known, (name, _, arch) = [*ALIASES], text.partition(":")
    if arch and name in backends():  # of what there is, only its own architectures
        takes = load_backend(name).capabilities(Target(name, arch)).archs or ()
        near = suggest(text, [f"{name}:{a}" for a in takes])
        return TileValueError(f"unknown target {text!r}: {name} takes {', '.join(takes)}", help=near)
    for other in backends():
        try:
            archs = load_backend(other).capabilities(Target(other)).archs
        except TileError:  # not available here, but a name all the same
            archs = None
        known += [other, *(f"{other}:{arch}" for arch in archs or () if not arch.startswith("sm_"))]
    near = f"did you mean {ELSEWHERE[name]}?" if name in ELSEWHERE else suggest(text, known)
    return TileValueError(f"unknown target {text!r}; known: {', '.join(sorted(known))}", help=near)


def check_target(target: Any) -> None:
    """Raises TileValueError for what can never be a target, such as a misspelt one, and TileTypeError for what is no
    text; whether it can run here is seen when it is used."""
    if target is None or isinstance(target, Target):
        return
    if not isinstance(target, str):
        raise TileTypeError(f"a target is a text, got {target!r}", help='write target="llvm", "numba", "numpy", "cpu"')
    name, _, arch = target.partition(":")
    if name not in (*backends(), *ALIASES):
        raise _unknown(target)
    if arch and name in backends():
        _check_arch(Target(name, arch))


def _check_arch(target: Target) -> None:
    archs = load_backend(target.name).capabilities(target).archs
    if target.arch and archs is not None and target.arch not in archs:
        raise _unknown(str(target))


def resolve(target: str | Target | None, device: str = "cpu", *, runs: bool = True) -> Target:
    """The target meant by an argument ("name[:arch]", "cpu", "auto", None = TILEDSL_TARGET, else auto), for
    arguments that lie on `device`. Raises TileValueError for unknown names, and TileRuntimeError for targets that
    are not available here, unless nothing is to run (`runs`)."""
    if isinstance(target, Target):
        return target
    return _resolve(target or config.TARGET.get(), device, runs)


@cache
def _resolve(text: str, device: str, runs: bool) -> Target:
    name, _, arch = text.partition(":")
    if name == "auto":
        name = "cuda" if device == "cuda" and "cuda" in backends() else "cpu"
    if name == "cpu":
        name = next((n for n in CPU_TARGETS if n in backends() and load_backend(n).probe().ok), "numpy")
    state = load_backend(name).probe()
    if not (state.ok or (state.text and not runs)):
        raise TileRuntimeError(f"target {name} is not available here: {state.reason}", help=state.help or None)
    _check_arch(Target(name, arch))
    return Target(name, arch)
