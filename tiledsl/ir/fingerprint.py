"""A stable hash of a function, for cache keys."""

from __future__ import annotations

import hashlib

from tiledsl.ir.equal import canonical
from tiledsl.ir.stmt import Function

__all__ = ["fingerprint"]


def fingerprint(function: Function, hints: bool = True) -> str:
    """Hex sha256 of the canonical form: equal for functions that differ only in locations and in the names of
    variables and buffers, in every process. Hints (num_stages, loop kinds, annotations) never change a value but
    do select code, so a key of compiled code has to include them; `hints=False` gives the hash of the meaning."""
    return hashlib.sha256("\0".join(canonical(function, hints)).encode()).hexdigest()
