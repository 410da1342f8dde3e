"""The disk cache of compiled kernels: one private folder, one checksummed file per artifact, never a pickle.

A file is read only from a folder that belongs to this user and is closed to others; a damaged or foreign file
counts as absent and is replaced. Writers never wait for each other: a file appears complete, by rename.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

from tiledsl import config

__all__ = ["DiskCache", "cache_state", "default_cache", "folder"]

MAGIC = b"tiledsl artifact 1\n"


def folder() -> Path:
    """Where the cache is: TILEDSL_CACHE_DIR, else the user's cache folder."""
    chosen = config.CACHE_DIR.get()
    if chosen:
        return Path(chosen)
    try:
        import platformdirs
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tiledsl"
    return Path(platformdirs.user_cache_dir("tiledsl", appauthor=False))


def default_cache() -> DiskCache | None:
    """The cache that the knobs name; None when it is switched off or its folder cannot be trusted."""
    if config.DISABLE_CACHE.get():
        return None
    cache = DiskCache(folder())
    return cache if cache.problem() is None else None


class DiskCache:
    """Files in `root`, named by key (hexadecimal). Every method treats a failing disk as an empty cache."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def problem(self) -> str | None:
        """Why the folder cannot be used; None when it can. Creates it; closes it to others when it is ours."""
        try:
            self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
            state = os.lstat(self.root)
            if not stat.S_ISDIR(state.st_mode):
                return f"{self.root} is not a folder"
            if hasattr(os, "geteuid") and state.st_uid != os.geteuid():
                return f"{self.root} belongs to another user"
            if stat.S_IMODE(state.st_mode) & 0o077:
                os.chmod(self.root, 0o700)
            return None if os.access(self.root, os.W_OK | os.X_OK) else f"{self.root} is not writable"
        except OSError as e:
            return f"{self.root} cannot be used: {e.strerror}"

    def path(self, key: str) -> Path:
        return self.root / f"{key}.tile"

    def get(self, key: str) -> tuple[dict[str, Any], bytes] | None:
        """The JSON data and the bytes stored under key, or None."""
        try:
            handle = os.open(self.path(key), os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
            with os.fdopen(handle, "rb") as file:
                if hasattr(os, "geteuid") and os.fstat(file.fileno()).st_uid != os.geteuid():
                    return None
                text = file.read()
        except OSError:
            return None
        return _decode(text, key)

    def put(self, key: str, data: dict[str, Any], code: bytes) -> None:
        """Store; the last writer wins."""
        name = ""
        try:
            handle, name = tempfile.mkstemp(prefix=".new-", dir=self.root)
            with os.fdopen(handle, "wb") as file:
                file.write(_encode(key, data, code))
            os.replace(name, self.path(key))
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)

    def size(self) -> tuple[int, int]:
        """Number of artifacts and their bytes."""
        sizes = []
        for path in self.root.glob("*.tile"):
            with contextlib.suppress(OSError):
                sizes.append(path.stat().st_size)
        return len(sizes), sum(sizes)


def _encode(key: str, data: dict[str, Any], code: bytes) -> bytes:
    header = json.dumps({"key": key, "data": data}, sort_keys=True).encode()
    body = len(header).to_bytes(8, "little") + header + code
    return MAGIC + hashlib.sha256(body).digest() + body


def _decode(text: bytes, key: str) -> tuple[dict[str, Any], bytes] | None:
    start = len(MAGIC) + 32
    digest, body = text[len(MAGIC) : start], text[start:]
    if text[: len(MAGIC)] != MAGIC or hashlib.sha256(body).digest() != digest:
        return None
    end = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:end])
    return (header["data"], body[end:]) if header["key"] == key else None


def cache_state() -> dict[str, Any]:
    """Where the cache is and what is in it, as JSON data."""
    place = folder()
    state: dict[str, Any] = {"folder": str(place), "disabled": config.DISABLE_CACHE.get(), "problem": None}
    if place.exists():
        state["problem"] = DiskCache(place).problem()
    count, size = DiskCache(place).size()
    return {**state, "artifacts": count, "bytes": size}
