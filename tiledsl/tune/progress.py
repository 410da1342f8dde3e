"""What a tuner says on standard error while it works."""

from __future__ import annotations

import sys
import time
from typing import Any

__all__ = ["Progress"]

_PAUSE = 5.0  # seconds between lines where nobody watches a terminal


class Progress:
    """wanted True: a line per configuration; None: that on a terminal, elsewhere a line every few seconds; False:
    nothing. Behind them comes what was found."""

    def __init__(self, wanted: bool | None, total: int) -> None:
        self.total, self.wanted = total, wanted is not False
        self.every = sys.stderr.isatty() if wanted is None else wanted
        self.last = time.monotonic()

    def compiled(self, number: int, of: int) -> None:
        """So many kernels are compiled ahead."""
        self._say(f"compiled {number} of {of}", end="\r" if self.every else "\n")

    def tried(self, number: int, trial: Any) -> None:
        """A configuration is done."""
        found = trial.error.splitlines()[0] if trial.error else f"{trial.latency:.4f} ms" + " (stored)" * trial.stored
        self._say(f"{number}/{self.total} {trial.config}: {found}")

    def found(self, config: dict[str, Any], latency: float, failed: int) -> None:
        """The end."""
        text = f"best of {self.total}: {config}: {latency:.4f} ms" + f", {failed} failed" * bool(failed)
        self._say(text, always=True)

    def _say(self, text: str, end: str = "\n", always: bool = False) -> None:
        now = time.monotonic()
        if self.wanted and (always or self.every or now - self.last > _PAUSE):
            self.last = now
            print(f"tiledsl: {text}", end=end, file=sys.stderr, flush=True)
