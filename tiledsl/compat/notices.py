"""What the compatibility layer accepts and passes over is said once, on standard error."""

from __future__ import annotations

import sys

__all__ = ["notice"]

_said: set[str] = set()


def notice(text: str) -> None:
    """Print a line, once per process."""
    if text not in _said:
        _said.add(text)
        print(f"tiledsl: {text}", file=sys.stderr)
