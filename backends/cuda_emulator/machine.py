"""Launching a kernel's library on the emulated machine: options, arguments, memory with red zones, outcomes."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tiledsl.backends.cuda_emulator.reports import BankConflict, Report, Symbols
from tiledsl.backends.cuda_emulator.toolchain import LoadedKernel, build_kernel, load_kernel, runtime
from tiledsl.errors import TileRuntimeError, TileValueError, suggest

__all__ = ["Argument", "Options", "Outcome", "launch", "parse_options", "run_text", "word"]

RED_ZONE = 1 << 16  # bytes around every array of a checked run; RED_ZONE of runtime/check.cpp
_WRITTEN, _UNINITIALISED = 1, 2
_ORDERS = {"first": 0, "last": 1, "random": 2}
_COPIES = {"early": 0, "late": 1, "any": 2}


@dataclass(frozen=True)
class Options:
    """How a grid is run; none of these may change what a right kernel computes.

    order    which thread goes on where several can: "first" (first come), "last" (last come), "random" (by seed)
    copies   when asynchronous copies happen: "early" (when issued), "late" (when waited for), "any" (by seed)
    check    watch every access of shared and global memory; arrays are copied and red zones laid around them
    banks    count bank conflicts of shared memory too (needs check)
    workers  operating system's threads that take blocks (1 while checking)
    """

    order: str = "first"
    seed: int = 0
    copies: str = "early"
    check: bool = False
    banks: bool = False
    workers: int = 1


_WORDS = {"checked": {"check": True}, "banks": {"check": True, "banks": True}, **{c: {"copies": c} for c in _COPIES}}


def parse_options(words: Sequence[str]) -> Options:
    """Options as they stand in a target: "checked", "banks", "early", "late", "any", "first", "last", "random=SEED",
    "workers=N". Raises TileValueError."""
    options = Options()
    for one in words:
        name, _, value = one.partition("=")
        if name in _WORDS and not value:
            options = replace(options, **_WORDS[name])  # type: ignore[arg-type]
        elif name in ("first", "last") and not value:
            options = replace(options, order=name)
        elif name == "random" and (value or "0").isdigit():
            options = replace(options, order="random", seed=int(value or 0))
        elif name == "workers" and value.isdigit() and int(value):
            options = replace(options, workers=int(value))
        else:
            known = [*_WORDS, "first", "last", "random=SEED", "workers=N"]
            raise TileValueError(
                f"target cuda-emulator has no option {one!r}; it has {', '.join(known)}", help=suggest(name, known)
            )
    return options


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel.

    word     64 bits: an address, or a value's bits
    bytes    extent of the memory behind an address; 0: a value
    granule  bytes of an element
    written  the kernel may write it; defined: it holds values before the launch
    """

    word: int
    name: str = ""
    bytes: int = 0
    granule: int = 1
    written: bool = True
    defined: bool = True


@dataclass(frozen=True)
class Outcome:
    """What a launch did. ended: every block came to its end; reports: what the machine and the checker found;
    conflicts: bank conflicts by instruction; switches: between threads."""

    ended: bool
    reports: tuple[Report, ...]
    conflicts: tuple[BankConflict, ...]
    switches: int


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64), ("bytes", ctypes.c_uint64), ("granule", ctypes.c_uint32),
        ("flags", ctypes.c_uint32), ("name", ctypes.c_char_p),
    )  # fmt: skip


class _LaunchOptions(ctypes.Structure):
    _fields_ = (
        ("entry", ctypes.c_void_p), ("args", ctypes.c_void_p), ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3), ("shared_bytes", ctypes.c_uint32), ("order", ctypes.c_uint32),
        ("late", ctypes.c_uint32), ("check", ctypes.c_uint32), ("resident", ctypes.c_uint32),
        ("workers", ctypes.c_uint32), ("buffers", ctypes.c_uint32), ("pad", ctypes.c_uint32),
        ("seed", ctypes.c_uint64), ("buffer", ctypes.c_void_p),
    )  # fmt: skip


def word(value: Any) -> int:
    """The bits of a NumPy scalar or Python int or bool, zero-extended."""
    if isinstance(value, (bool, int)):
        return int(value) & (1 << 64) - 1
    return int.from_bytes(np.asarray(value).tobytes(), "little")


def launch(
    kernel: LoadedKernel,
    name: str,
    text: str,
    arguments: Sequence[Argument],
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int,
    options: Options,
    *,
    resident: bool = False,
    pointers: bool = False,
) -> Outcome:
    """Runs a grid. text: the generated text, for the lines of reports; resident: all blocks are there at once;
    pointers: the kernel has addresses from elsewhere, so that memory which is no argument is not reported.

    Raises TileRuntimeError where a block or its shared memory is larger than any GPU's.
    """
    grid, block = ([*sizes, 1, 1, 1][:3] for sizes in (grid, block))
    threads = block[0] * block[1] * block[2]
    if not 0 < threads <= 1024:
        raise TileRuntimeError(f"{name}: a block of {threads} threads; a GPU runs 1 to 1024")
    if shared_bytes > 228 * 1024 - 1024:
        raise TileRuntimeError(f"{name} needs {shared_bytes} bytes of shared memory; no GPU has more than 232448")
    if 0 in grid:
        return Outcome(True, (), (), 0)
    library = runtime()
    arena = _Arena(arguments, moved=not pointers) if options.check else None
    words = arena.words if arena else [a.word for a in arguments]
    arguments_array = (ctypes.c_uint64 * max(1, len(words)))(*words)
    buffers = arena.buffers if arena else []
    buffer_array = (_Buffer * max(1, len(buffers)))(*buffers)
    request = _LaunchOptions(
        entry=kernel.entries[name],
        args=ctypes.addressof(arguments_array),
        grid=(ctypes.c_uint32 * 3)(*grid),
        block=(ctypes.c_uint32 * 3)(*block),
        shared_bytes=shared_bytes,
        order=_ORDERS[options.order],
        late=_COPIES[options.copies],
        check=options.check and 1 + 2 * options.banks + 4 * pointers,
        resident=resident,
        workers=options.workers,
        buffers=len(buffers),
        seed=options.seed,
        buffer=ctypes.addressof(buffer_array),
    )
    result = ctypes.c_void_p()
    code = library.tlr_launch(ctypes.byref(request), ctypes.byref(result))
    try:
        if arena:
            arena.copy_back()
        if code == 2:
            raise TileRuntimeError(f"{name}: no memory for {threads} threads of {grid[0] * grid[1] * grid[2]} blocks")
        symbols = Symbols(library, kernel.path, kernel.entries[name], text)
        reports, conflicts = symbols.reports(result), symbols.conflicts(result)
        return Outcome(code == 0, reports, conflicts, int(_u64(library.tlr_switches)(result)))
    finally:
        library.tlr_free(result)


def _u64(function: Any) -> Any:
    function.restype = ctypes.c_uint64
    return function


class _Arena:
    """Copies of all arrays, with red zones between them, so that accesses out of bounds meet nothing of value.

    Arrays that overlap stay together, and every address keeps its place modulo 256. moved False: nothing is copied.
    """

    def __init__(self, arguments: Sequence[Argument], *, moved: bool = True) -> None:
        spans: list[list[int]] = []  # first, end
        arrays = sorted((a for a in arguments if a.bytes), key=lambda a: a.word)
        for a in arrays:
            if spans and a.word < spans[-1][1]:
                spans[-1][1] = max(spans[-1][1], a.word + a.bytes)
            else:
                spans.append([a.word, a.word + a.bytes])
        offsets = list(itertools.accumulate((e - f + RED_ZONE + 512 & ~255 for f, e in spans), initial=RED_ZONE))
        self._memory = np.full(offsets[-1] + 256, 0xFF, np.uint8)
        base = self._memory.ctypes.data + 255 & ~255
        self._moves = [
            (base + o + f % 256 if moved else f, f, e - f) for o, (f, e) in zip(offsets, spans, strict=False)
        ]
        for there, here, count in self._moves:
            ctypes.memmove(there, here, count)
        self._written = [any(a.written and f <= a.word < e for a in arrays) for f, e in spans]
        self.words = [self._moved(a.word) if a.bytes else a.word for a in arguments]
        self.buffers = []
        for there, here, count in self._moves:
            group = [a for a in arrays if here <= a.word < here + count]
            flags = _WRITTEN * any(a.written for a in group) | _UNINITIALISED * all(not a.defined for a in group)
            names = "/".join(dict.fromkeys(a.name or "argument" for a in group))
            granule = min(a.granule for a in group)
            self.buffers.append(_Buffer(there, count, granule, flags, names.encode()))

    def _moved(self, address: int) -> int:
        return next(there + address - here for there, here, count in self._moves if here <= address < here + count)

    def copy_back(self) -> None:
        for (there, here, count), written in zip(self._moves, self._written, strict=True):
            if written:
                ctypes.memmove(here, there, count)


def run_text(
    text: str,
    name: str,
    args: Sequence[Any],
    grid: Sequence[int],
    block: Sequence[int],
    shared_bytes: int = 0,
    options: Options | None = None,
    *,
    resident: bool = False,
    outputs: Sequence[int] = (),
) -> Outcome:
    """Builds and runs one kernel of CUDA C++ text on contiguous NumPy arrays (in place) and NumPy scalars.

    outputs: positions of the arrays that hold nothing before the launch. For tests and experiments; programs come
    through the backend.
    """
    options = options or Options()
    code = build_kernel(text, [name], watched=options.check)
    arguments = []
    for i, a in enumerate(args):
        if isinstance(a, np.ndarray):
            if not a.flags.c_contiguous:
                raise TileValueError(f"argument {i} of {name} is not contiguous")
            arguments.append(
                Argument(a.ctypes.data, f"argument {i}", a.nbytes, a.itemsize, a.flags.writeable, i not in outputs)
            )
        else:
            arguments.append(Argument(word(a)))
    kernel = load_kernel(code, [name])
    return launch(kernel, name, text, arguments, grid, block, shared_bytes, options, resident=resident)
