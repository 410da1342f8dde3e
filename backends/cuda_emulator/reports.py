"""What the emulated machine found, in the author's terms: addresses of instructions become lines of the author."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tiledsl.backends.cuda_emulator.toolchain import KERNEL_FILE
from tiledsl.backends.simt.abi import ADDED
from tiledsl.backends.simt.prelude import author_line
from tiledsl.errors import Loc, TileRuntimeError

__all__ = ["BankConflict", "Place", "Report", "Symbols", "raise_reports"]

_FRAME = re.compile(rf"(?:.*/)?{re.escape(KERNEL_FILE)}:(\d+)")


@dataclass(frozen=True)
class Place:
    """A line of the generated text, and the author's line that it stands for (file None: no mark says so)."""

    line: int
    text: str
    file: str | None = None
    author: int = 0
    source: str = ""

    @property
    def added(self) -> bool:
        """A barrier that the compiler put in front of the author's line."""
        return self.text.endswith(ADDED)

    def __str__(self) -> str:
        if self.file is None:
            return f"line {self.line} of the generated text: {self.text}"
        return f"{self.file}:{self.author}: {'a barrier added before ' * self.added}{self.source or self.text}"


@dataclass(frozen=True)
class Report:
    """One finding.

    kind    "race", "race between blocks", "uninitialised", "out of bounds", "misaligned", "divergent barrier",
            "divergent warp", "deadlock", "mbarrier", "barrier", "cp.async", "shuffle" or "stack overflow"
    place   of the instruction; other: of the one it collides with; count: how often. Of two places where threads wait
            the author's own comes first, before that of a barrier that was added.
    """

    kind: str
    message: str
    place: Place | None
    other: Place | None
    count: int

    def __str__(self) -> str:
        lines = [f"{self.kind}: {self.message}" + (f" (and {self.count - 1} more)" if self.count > 1 else "")]
        lines += [f"  {word} {place}" for word, place in (("at", self.place), ("and", self.other)) if place]
        return "\n".join(lines)


@dataclass(frozen=True)
class BankConflict:
    """One instruction on shared memory: how often warps executed it, the wavefronts it took, and how few would do."""

    place: Place | None
    accesses: int
    wavefronts: int
    ideal: int


class Symbols:
    """Turns addresses inside a kernel's library into lines, by its debug information (addr2line or llvm-symbolizer)."""

    def __init__(self, runtime: ctypes.CDLL, library: Path, entry: int, text: str) -> None:
        self._runtime, self._library, self._text = runtime, library, text
        runtime.tlr_base.restype = ctypes.c_uint64
        self._base = runtime.tlr_base(ctypes.c_void_p(entry))

    def reports(self, result: Any) -> tuple[Report, ...]:
        library = self._runtime
        library.tlr_report_count.restype = ctypes.c_uint64
        rows = []
        for i in range(library.tlr_report_count(result)):
            kind, message, numbers = ctypes.c_char_p(), ctypes.c_char_p(), (ctypes.c_uint64 * 3)()
            library.tlr_report_at(result, ctypes.c_uint64(i), ctypes.byref(kind), ctypes.byref(message), numbers)
            rows.append(((kind.value or b"").decode(), (message.value or b"").decode(), *numbers))
        places = self.places(pc for row in rows for pc in row[2:4])
        return tuple(Report(k, m, *_own_first(places.get(pc), places.get(other)), n) for k, m, pc, other, n in rows)

    def conflicts(self, result: Any) -> tuple[BankConflict, ...]:
        library = self._runtime
        library.tlr_conflicts.restype = ctypes.c_uint64
        count = library.tlr_conflicts(result, None, ctypes.c_uint64(0))
        if not count:
            return ()
        rows = (ctypes.c_uint64 * (4 * count))()
        library.tlr_conflicts(result, rows, ctypes.c_uint64(count))
        places = self.places(rows[0::4])
        return tuple(BankConflict(places.get(rows[i]), *rows[i + 1 : i + 4]) for i in range(0, 4 * count, 4))

    def places(self, pcs: Iterable[int]) -> dict[int, Place]:
        """Place of each address (of the instruction before it: addresses are where calls return to)."""
        wanted = [pc for pc in dict.fromkeys(pcs) if pc]
        lines = self._lines([pc - self._base - 1 for pc in wanted])
        return {pc: self._place(found) for pc, found in zip(wanted, lines, strict=True) if found}

    def _place(self, lines: list[int]) -> Place:
        """Of the functions that were inlined into each other there, the innermost that an author's line stands for."""
        rows = self._text.splitlines()
        line = next((n for n in lines if author_line(self._text, n)), lines[0])
        shown = rows[line - 1].strip() if 0 < line <= len(rows) else ""
        author = author_line(self._text, line)
        return Place(line, shown) if author is None else Place(line, shown, *author)

    def _lines(self, offsets: Sequence[int]) -> list[list[int]]:
        """Lines of the generated text for each offset, innermost first; none where they are unknown."""
        tool = next(filter(None, map(shutil.which, ("addr2line", "llvm-addr2line"))), None)
        if not offsets or tool is None:
            return [[] for _ in offsets]
        command = [tool, "-i", "-a", "-e", str(self._library), *map(hex, offsets)]
        out = subprocess.run(command, capture_output=True, text=True).stdout
        found: list[list[int]] = []
        for row in out.splitlines():
            if row.startswith("0x"):
                found.append([])
            elif found and (frame := _FRAME.match(row)):
                found[-1].append(int(frame[1]))
        return found if len(found) == len(offsets) else [[] for _ in offsets]


def _own_first(place: Place | None, other: Place | None) -> tuple[Place | None, Place | None]:
    return (other, place) if place and other and place.added and not other.added else (place, other)


def raise_reports(name: str, reports: Sequence[Report]) -> None:
    """Raises TileRuntimeError for the first report, with the others as notes; nothing where there are none."""
    if not reports:
        return
    first = reports[0]
    place = first.place
    loc = Loc(place.file, place.author) if place and place.file else None
    notes = [f"and {first.other}"] if first.other else []
    notes += [f"{r.kind}: {r.message}" + (f" ({r.place})" if r.place else "") for r in reports[1:4]]
    if len(reports) > 4:
        notes.append(f"{len(reports) - 4} more reports")
    if place and place.file is None:
        notes.insert(0, str(place))
    raise TileRuntimeError(f"{name}: {first.kind}: {first.message}", loc, tuple(notes))
