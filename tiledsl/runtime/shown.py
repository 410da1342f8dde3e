"""A kernel's text for reading: plain in a terminal, a panel with line numbers in a notebook."""

from __future__ import annotations

import html
from dataclasses import dataclass

__all__ = ["Shown"]

_PRE = "margin:0;padding:0.5em 0.8em;overflow:auto;max-height:40em;line-height:1.35"


@dataclass(frozen=True)
class Shown:
    """title: what is shown; stage: "tile", "loop" or "source"; text: runnable Python."""

    title: str
    stage: str
    text: str

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        lines = html.escape(self.text.rstrip("\n")).split("\n")
        wide = len(str(len(lines)))
        body = "\n".join(f'<span style="opacity:0.45">{n:>{wide}}  </span>{line}' for n, line in enumerate(lines, 1))
        return (
            f'<details open style="border:1px solid #8884;border-radius:4px"><summary style="padding:0.3em 0.8em">'
            f"<b>{html.escape(self.title)}</b> ({html.escape(self.stage)} stage, {len(lines)} lines)</summary>"
            f'<pre style="{_PRE}">{body}</pre></details>'
        )
