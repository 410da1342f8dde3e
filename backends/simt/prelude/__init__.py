"""The prelude of generated CUDA C++ (README.md is its table of names), and the marks of authors' lines in the text."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

__all__ = ["author_line", "prelude"]

_FILES = {"device": ("tl_types.h", "tl_device.h"), "host": ("tl_types.h", "tl_host.h")}
_MARK = re.compile(r"\s*//@(?:\s+(?P<path>.+?):(?P<line>\d+)(?:\s*\|\s?(?P<source>.*))?)?\s*$")


@cache
def prelude(side: str) -> str:
    """The text that goes before a kernel's: side "device" for NVRTC, "host" for the emulator."""
    here = Path(__file__).parent
    return "\n".join((here / name).read_text(encoding="utf-8") for name in _FILES[side])


def author_line(text: str, line: int) -> tuple[str, int, str] | None:
    """The author's file, line and source that line `line` (from 1) of a kernel's text stands for; None where no mark
    says so."""
    for one in reversed(text.splitlines()[:line]):
        mark = _MARK.match(one)
        if mark:
            return (mark["path"], int(mark["line"]), mark["source"] or "") if mark["path"] else None
    return None
