"""One typed table of knobs: environment variable, default, meaning. `tiledsl doctor` lists all of them.

A knob is read when it is used, so a change of the environment takes effect at the next call.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, TypeVar

from tiledsl.errors import TileValueError

__all__ = [
    "CACHE_DIR",
    "CHECK_SEMANTICS",
    "CPU",
    "DISABLE_CACHE",
    "FULL_TRACEBACK",
    "KNOBS",
    "Knob",
    "NUM_THREADS",
    "PASS_LIMIT",
    "PRINT_BUFFER",
    "PRETEND",
    "PRINT_IR",
    "TARGET",
    "TEST_TARGETS",
    "TIME_PASSES",
    "VERSION",
]

VERSION = "0.1.0"

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Knob(Generic[T]):
    """env: environment variable; default: value when it is unset or empty; parse: its text -> value
    (ValueError says what was expected); help: one sentence."""

    env: str
    default: T
    parse: Callable[[str], T]
    help: str

    @cached_property
    def _key(self) -> Any:
        return os.environ.encodekey(self.env)

    def get(self) -> T:
        """The value now. Raises TileValueError naming the variable when its text cannot be understood."""
        # os.environ raises and catches a KeyError for a missing name, which takes longer than a small kernel: look
        # into the dict behind it first, where there is one.
        known = getattr(os.environ, "_data", None)
        if known is not None and self._key not in known:
            return self.default
        text = os.environ.get(self.env)
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError as e:
            raise TileValueError(f"{self.env}={text}: {e}", help=f"{self.env}: {self.help}") from None

    @contextmanager
    def override(self, value: T) -> Iterator[None]:
        """The knob has this value inside the `with` (in this process and its children)."""
        old = os.environ.get(self.env)
        os.environ[self.env] = ("1" if value else "0") if isinstance(value, bool) else str(value)
        try:
            yield
        finally:
            if old is None:
                del os.environ[self.env]
            else:
                os.environ[self.env] = old


def _flag(text: str) -> bool:
    low = text.strip().lower()
    if low in ("1", "true", "yes", "on"):
        return True
    if low in ("0", "false", "no", "off"):
        return False
    raise ValueError("expected 0 or 1")


def _count(lowest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text) if text.strip().lstrip("-").isdigit() else lowest - 1
        if value < lowest:
            raise ValueError(f"expected a whole number of at least {lowest}")
        return value

    return parse


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


TARGET = Knob("TILEDSL_TARGET", "auto", str.strip, "target of kernels that name none: name[:arch], cpu or auto")
NUM_THREADS = Knob("TILEDSL_NUM_THREADS", 0, _count(0), "threads of CPU kernels; 0: one per usable core")
CPU = Knob("TILEDSL_CPU", "", str.strip, "CPU that llvm and numba compile for, such as x86-64-v3; empty: this one")
CACHE_DIR = Knob("TILEDSL_CACHE_DIR", "", str, "folder of compiled kernels; empty: the user's cache folder")
DISABLE_CACHE = Knob("TILEDSL_DISABLE_CACHE", False, _flag, "1: neither read nor write compiled kernels on disk")
PRINT_BUFFER = Knob(
    "TILEDSL_PRINT_BUFFER",
    1 << 16,
    _count(64),
    "64-bit words that T.print of a compiled kernel may fill between flushes",
)
PRINT_IR = Knob("TILEDSL_PRINT_IR", "", str, "print the IR after passes: 'all', or a comma-separated list of passes")
TIME_PASSES = Knob("TILEDSL_TIME_PASSES", False, _flag, "1: print the time that each pass takes")
PASS_LIMIT = Knob("TILEDSL_PASS_LIMIT", -1, _count(-1), "run only the first N optional passes (bisection); -1: all")
CHECK_SEMANTICS = Knob(
    "TILEDSL_CHECK_SEMANTICS", False, _flag, "1: interpret before and after every pass; a difference names the pass"
)
FULL_TRACEBACK = Knob(
    "TILEDSL_FULL_TRACEBACK", False, _flag, "1: uncaught errors of scripts are shown with the frames of tiledsl"
)
PRETEND = Knob("TILEDSL_PRETEND", "", str, "compute capability that TileLang programs are told; set by `tiledsl run`")
TEST_TARGETS = Knob(
    "TILEDSL_TEST_TARGETS",
    "",
    str,
    "targets, with blanks between, that tiledsl.testing compares with the reference; empty: all here but the emulator",
)

KNOBS: tuple[Knob[str] | Knob[int] | Knob[bool], ...] = (
    TARGET,
    NUM_THREADS,
    CPU,
    CACHE_DIR,
    DISABLE_CACHE,
    PRINT_BUFFER,
    PRINT_IR,
    TIME_PASSES,
    PASS_LIMIT,
    CHECK_SEMANTICS,
    FULL_TRACEBACK,
    PRETEND,
    TEST_TARGETS,
)
