"""The C++ compiler of this machine: found, asked for its version, and used to build the runtime and kernels.

The runtime is built once per machine and compiler and kept in the cache folder; kernels are shared libraries that
name the runtime by its soname, so that the one that is loaded already serves them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

from tiledsl import config
from tiledsl.backends.simt.prelude import prelude
from tiledsl.errors import InternalError, TileRuntimeError

__all__ = ["Compiler", "build_kernel", "compiler", "find_compiler", "load_kernel", "runtime"]

_CANDIDATES = ("g++", "c++", "clang++")
_SOURCES = Path(__file__).parent / "runtime"
# No contraction, no reassociation, and integers that wrap: what the prelude promises.
_FLAGS = ("-std=c++17", "-fPIC", "-shared", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-pthread")
# Reports name the line that a call returns to: no jumps instead of calls, and tables that older tools read.
_KERNEL = (
    "-O1",
    "-gdwarf-4",
    "-g1",
    "-w",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-optimize-sibling-calls",
    "-Wl,-z,defs",
)
HELP = "install g++ or clang++, or name one in the environment variable CXX"


@dataclass(frozen=True)
class Compiler:
    """path: of the program; version: its own words; clang: whether it is one; flags: for this processor."""

    path: str
    version: str
    clang: bool
    flags: tuple[str, ...]


@cache
def find_compiler(named: str | None = None) -> Compiler | None:
    """The compiler that CXX names, else the first of g++, c++ and clang++ that runs; None where there is none."""
    for name in [named] if named else _CANDIDATES:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            asked = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.SubprocessError):
            continue
        if asked.returncode == 0 and asked.stdout:
            version = asked.stdout.splitlines()[0]
            return Compiler(path, version, "clang" in version, _processor_flags())
    return None


def compiler() -> Compiler:
    """As `find_compiler` for the environment. Raises TileRuntimeError that says what to install."""
    named = os.environ.get("CXX")
    found = find_compiler(named)
    if found is None:
        what = f"CXX={named} cannot be run" if named else "no C++ compiler was found"
        raise TileRuntimeError(f"target cuda-emulator is not available here: {what}", help=HELP)
    return found


def _processor_flags() -> tuple[str, ...]:
    """Instructions that make the emulated arithmetic fast where this processor has them; none changes a result."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    flags = next((line.split(":")[1].split() for line in text.splitlines() if line.startswith("flags")), [])
    return ("-mavx2", "-mfma") if {"avx2", "fma"} <= set(flags) else ()


def _folder() -> Path:
    """Where the built runtime is kept: beside the other compiled code, closed to other users."""
    chosen = config.CACHE_DIR.get()
    base = Path(chosen) if chosen else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiledsl"
    place = base / "emulator"
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        if os.lstat(place).st_uid == os.getuid() and os.access(place, os.W_OK):
            return place
    except OSError:
        pass
    return Path(tempfile.mkdtemp(prefix="tiledsl-emulator-"))


def _run(command: Sequence[str], what: str, source: str = "") -> None:
    """Runs the compiler on source from standard input. Raises InternalError with its first lines."""
    done = subprocess.run(command, input=source, capture_output=True, text=True)
    if done.returncode:
        lines = [x for x in done.stderr.splitlines() if "error" in x][:4] or done.stderr.splitlines()[:4]
        raise InternalError(f"{what} does not compile", notes=tuple(lines))


@cache
def _runtime_path() -> Path:
    """The runtime's library, built when it is not there."""
    cxx = compiler()
    files = sorted(_SOURCES.glob("*.[ch]*"))
    text = b"".join(p.read_bytes() for p in files)
    key = hashlib.sha256(text + repr((cxx, _FLAGS, platform.machine())).encode()).hexdigest()[:16]
    place = _folder() / f"libtlemu-{key}.so"
    if not place.exists():
        handle, new = tempfile.mkstemp(prefix=".new-", dir=place.parent)
        os.close(handle)
        sources = [str(p) for p in files if p.suffix == ".cpp"]
        _run([cxx.path, *_FLAGS, *cxx.flags, "-O2", f"-Wl,-soname,{place.name}", *sources, "-o", new], "the emulator")
        os.replace(new, place)
    return place


@cache
def runtime() -> ctypes.CDLL:
    """The runtime, loaded; built first where that has not been done. Raises TileRuntimeError without a compiler."""
    return ctypes.CDLL(str(_runtime_path()))


def build_kernel(text: str, names: Sequence[str], *, watched: bool) -> bytes:
    """A shared library of kernels (all but the prelude is in `text`), as bytes.

    names: of the kernels, each of which gets an entry; watched: loads and stores call the checker
    """
    return _built(text, tuple(names), watched)


@lru_cache(maxsize=32)  # options of a target that choose an order of threads do not change the library
def _built(text: str, names: tuple[str, ...], watched: bool) -> bytes:
    cxx, library = compiler(), _runtime_path()
    spaces = [n for n in names if f"namespace {n}_ {{" in text]  # where several kernels share a text
    entries = "".join(f"using {n}_::{n};\n" for n in spaces) + "".join(f"TL_ENTRY_({name})\n" for name in names)
    source = f'#line 1 "prelude"\n{prelude("host")}\n#line 1 "{KERNEL_FILE}"\n{text}\n#line 1 "entries"\n{entries}'
    flags: list[str] = []
    if watched:
        flags = ["-fsanitize=thread"]
        calls = "tsan-instrument-func-entry-exit=0"  # the checker has no use for calls and returns
        flags += ["-mllvm", f"-{calls}"] if cxx.clang else [f"--param={calls}"]
    with tempfile.TemporaryDirectory() as folder:
        made, linked = f"{folder}/kernel.o", f"{folder}/kernel.so"
        # Two steps: at link time -fsanitize=thread would bring the sanitizer's own runtime.
        compile_flags = [f for f in (*_FLAGS, *_KERNEL) if f != "-shared" and not f.startswith("-Wl")]
        _run(
            [cxx.path, *compile_flags, *cxx.flags, *flags, "-x", "c++", "-c", "-", "-o", made], "generated text", source
        )
        _run([cxx.path, "-shared", "-pthread", "-Wl,-z,defs", made, str(library), "-lm", "-o", linked], "a kernel")
        return Path(linked).read_bytes()


KERNEL_FILE = "kernel.cu"  # what compilers and debug information call the generated text


class LoadedKernel:
    """A kernel library, mapped from a private file that lives as long as this object: it has the line numbers."""

    def __init__(self, code: bytes, names: Sequence[str]) -> None:
        runtime()
        folder = tempfile.mkdtemp(prefix="tiledsl-kernel-")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        self.path = Path(folder) / "kernel.so"
        self.path.write_bytes(code)
        library = ctypes.CDLL(str(self.path))
        self.entries = {n: ctypes.cast(getattr(library, f"tl_entry_{n}"), ctypes.c_void_p).value or 0 for n in names}
        self._library = library


def load_kernel(code: bytes, names: Sequence[str]) -> LoadedKernel:
    """What `build_kernel` made, loaded into this process."""
    return LoadedKernel(code, names)
