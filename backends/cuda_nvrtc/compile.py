"""CUDA C++ text to cubins by NVRTC, which needs neither a driver nor headers, and what ptxas says of the result."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from typing import Any

from tiledsl.backends.simt.prelude import prelude
from tiledsl.errors import InternalError, TileRuntimeError, TileValueError, suggest

__all__ = ["Compiled", "Resources", "compile_text", "missing", "nvrtc_version", "supported"]

HELP = "pip install 'tiledsl[cuda]', on a machine with an NVIDIA GPU; \"cuda-emulator\" runs the same text without"
# IEEE float32: no contraction, correctly rounded division and square root, denormals kept.
_ARITHMETIC = ("-fmad=false", "-prec-div=true", "-prec-sqrt=true", "-ftz=false")
_OPTIONS = ("--std=c++17", *_ARITHMETIC, "-lineinfo", "--ptxas-options=-v")
_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_WARNING = re.compile(r"\bC75\d\d\b.*")  # ptxas on instructions that it had to serialise or wait for


@dataclass(frozen=True)
class Resources:
    """What one kernel takes: registers per thread, bytes of stack per thread, bytes spilled to it."""

    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


@dataclass(frozen=True)
class Compiled:
    """cubin: for one architecture; kernels: resources by name; warnings: of ptxas about performance (C75xx)."""

    cubin: bytes
    arch: str
    kernels: Mapping[str, Resources]
    warnings: tuple[str, ...]
    log: str = field(repr=False)


def missing() -> str:
    """What is not installed, as a sentence; empty when NVRTC can be used."""
    try:
        bindings = find_spec("cuda.bindings")
    except ModuleNotFoundError:
        bindings = None
    if bindings is None:
        return "cuda-bindings not installed"
    return "" if _version() else "nvidia-cuda-nvrtc not installed"


@cache
def _version() -> tuple[int, int] | None:
    """NVRTC's version; None where its library cannot be loaded."""
    try:
        nvrtc = _nvrtc()
        result, major, minor = nvrtc.nvrtcVersion()
    except (ImportError, RuntimeError, OSError):
        return None
    return (int(major), int(minor)) if int(result) == 0 else None


def nvrtc_version() -> str:
    """ "13.5"; "none" where there is no NVRTC."""
    found = _version()
    return "none" if found is None else f"{found[0]}.{found[1]}"


def _nvrtc() -> Any:
    from cuda.bindings import nvrtc

    return nvrtc


@cache
def supported() -> tuple[int, ...]:
    """Compute capabilities that this NVRTC compiles for: 80 is sm_80."""
    result, archs = _nvrtc().nvrtcGetSupportedArchs()
    _check(result, "nvrtcGetSupportedArchs")
    return tuple(int(a) for a in archs)


def _check(result: Any, what: str) -> None:
    if int(result):
        raise InternalError(f"{what} failed: {result.name}")


def capability(arch: str) -> int:
    """90 of "sm_90a". Raises TileValueError for what is no architecture."""
    found = re.fullmatch(r"sm_(\d{2,3})[af]?", arch)
    if not found:
        raise TileValueError(
            f"target cuda has no architecture {arch!r}", help=suggest(arch, ["sm_80", "sm_90a", "sm_100a", "sm_120a"])
        )
    return int(found[1])


def compile_text(text: str, arch: str) -> Compiled:
    """The cubin of a kernel's text (all but the prelude) for an architecture such as "sm_90a".

    Raises TileRuntimeError where NVRTC is missing, TileValueError for an architecture that it does not have, and
    InternalError, with the lines of the text, where the text does not compile: that is a fault of the printer.
    """
    reason = missing()
    if reason:
        raise TileRuntimeError(f"CUDA C++ cannot be compiled here: {reason}", help=HELP)
    if capability(arch) not in supported():
        known = ", ".join(f"sm_{a}" for a in supported())
        raise TileValueError(
            f"NVRTC {nvrtc_version()} cannot compile for {arch}; it has {known}",
            help="choose one of these, or install another version of nvidia-cuda-nvrtc",
        )
    nvrtc = _nvrtc()
    source = f'{prelude("device")}\n#line 1 "kernel.cu"\n{text}'
    result, program = nvrtc.nvrtcCreateProgram(source.encode(), b"prelude.cu", 0, [], [])
    _check(result, "nvrtcCreateProgram")
    try:
        options = [o.encode() for o in (f"--gpu-architecture={arch}", *_OPTIONS)]
        (failed,) = nvrtc.nvrtcCompileProgram(program, len(options), options)
        log = _fetched(nvrtc, "ProgramLog", program).decode(errors="replace").rstrip("\0")
        if int(failed):
            lines = [x for x in log.splitlines() if "error" in x][:6]
            raise InternalError(f"generated text does not compile for {arch}", notes=tuple(lines or [failed.name]))
        cubin = _fetched(nvrtc, "CUBIN", program)
    finally:
        nvrtc.nvrtcDestroyProgram(program)
    return Compiled(cubin, arch, _resources(log), tuple(_WARNING.findall(log)), log)


def _fetched(nvrtc: Any, what: str, program: Any) -> bytes:
    result, size = getattr(nvrtc, f"nvrtcGet{what}Size")(program)
    _check(result, f"nvrtcGet{what}Size")
    data = bytes(size)  # cuda-bindings fills bytes objects
    if size > 1:
        (result,) = getattr(nvrtc, f"nvrtcGet{what}")(program, data)
        _check(result, f"nvrtcGet{what}")
    return data


def _resources(log: str) -> dict[str, Resources]:
    """Per kernel, from the lines that ptxas -v writes."""
    found: dict[str, Resources] = {}
    name, stack = "", (0, 0, 0)
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name, stack = entry[1], (0, 0, 0)
        elif frame := _STACK.search(line):
            stack = (int(frame[1]), int(frame[2]), int(frame[3]))
        elif (used := _USED.search(line)) and name:
            found[name] = Resources(int(used[1]), *stack)
    return found
