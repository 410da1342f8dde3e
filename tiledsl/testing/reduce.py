"""Makes a failing program smaller by leaving out lines while it still fails in the same way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from tiledsl.testing.strategies import Program

__all__ = ["reduce"]


def reduce(program: Program, fails: Callable[[Program], bool], seconds: float = 60.0) -> Program:
    """The smallest program found in that time for which `fails` still holds.

    Lines go together with the block that they open, the largest pieces first; a body is also put in the place of its
    loop or branch. fails: must not raise.
    """
    end = time.monotonic() + seconds
    lines = program.source.splitlines()
    changed = True
    while changed:
        changed = False
        for candidate in _candidates(lines):
            if time.monotonic() > end:
                return replace(program, source="\n".join(lines) + "\n")
            if fails(replace(program, source="\n".join(candidate) + "\n")):
                lines = candidate
                changed = True
                break
    return replace(program, source="\n".join(lines) + "\n")


def _candidates(lines: list[str]) -> list[list[str]]:
    spans = sorted(_spans(lines), key=lambda s: s[0] - s[1])
    found = [lines[:a] + lines[b:] for a, b in spans]
    half = len(lines) // 2
    while half > 1:  # runs of lines, whatever they are
        found += [lines[:a] + lines[a + half :] for a in range(0, len(lines) - half, half)]
        half //= 2
    for a, b in spans:
        if b - a > 1 and lines[a].rstrip().endswith(":"):
            found.append(lines[:a] + [x[4:] for x in lines[a + 1 : b]] + lines[b:])
    return found


def _spans(lines: list[str]) -> list[tuple[int, int]]:
    """(first, end) of each statement with what it contains."""
    found = []
    for a, line in enumerate(lines):
        if not line.strip() or line.startswith(("import", "kernel")):
            continue
        depth, b = _depth(line), a + 1
        while b < len(lines) and line.rstrip().endswith(":") and (not lines[b].strip() or _depth(lines[b]) > depth):
            b += 1
        found.append((a, b))
    return found


def _depth(line: str) -> int:
    return len(line) - len(line.lstrip())
