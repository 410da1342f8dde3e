"""The demo's text: its sentences, their words as token numbers, and a packed batch of them."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np

from tiledsl.errors import TileValueError

__all__ = ["VOCABULARY", "Batch", "pack", "sentences"]

VOCABULARY = 4096  # words are hashed into this many tokens

_SENTENCE_END = re.compile(r"""([.!?]["')]*)\s+(?=["'(]*[A-Z])""")
_WORD = re.compile(r"[\w'-]+|[^\w\s]")


@dataclass(frozen=True)
class Batch:
    """Sentences one after the other. tokens [total] int64; cu_seqlens [sentences + 1] int32: sentence s owns
    tokens cu_seqlens[s] ... cu_seqlens[s + 1] - 1."""

    tokens: np.ndarray[Any, Any]
    cu_seqlens: np.ndarray[Any, Any]

    @property
    def lengths(self) -> np.ndarray[Any, Any]:
        return np.diff(self.cu_seqlens)


def sentences() -> list[str]:
    """The sentences of the text that comes with the package, headings left out."""
    text = files("tiledsl.demo").joinpath("text.txt").read_text(encoding="utf-8")
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    body = [p for p in paragraphs if p and not p.startswith(("#", "CHAPTER"))]
    return [s for p in body for s in _SENTENCE_END.sub(r"\1\n", p).split("\n")]


def pack(parts: list[str], most: int) -> Batch:
    """As many of the first sentences as fit into `most` tokens; a token is the hash of a lower-case word.

    Raises TileValueError when not even the first sentence fits.
    """
    rows: list[list[int]] = []
    for part in parts:
        row = [zlib.crc32(w.lower().encode()) % VOCABULARY for w in _WORD.findall(part)]
        if sum(map(len, rows)) + len(row) > most:
            break
        rows.append(row)
    if not rows:
        raise TileValueError(f"the demo's first sentence has {len(row)} tokens, and at most {most} were asked for")
    ends = np.cumsum([0, *map(len, rows)])
    return Batch(np.array([t for row in rows for t in row], np.int64), ends.astype(np.int32))
