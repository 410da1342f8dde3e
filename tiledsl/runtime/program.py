"""From a traced function to a loaded program for one target: specialise, look up, lower, emit, load."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from tiledsl import ir
from tiledsl.backend import Artifact, Launchable, Target, load_backend
from tiledsl.config import VERSION
from tiledsl.errors import InternalError, TileError, TileNotImplementedError
from tiledsl.ir.walk import walk
from tiledsl.passes.pipeline import Pass, failed, run, save_repro
from tiledsl.runtime import artifacts, cache

__all__ = ["Program", "compile_function", "lower"]

# One compilation at a time: threads that meet at a kernel's first call would all compile it.
COMPILING = threading.RLock()


def _unlock() -> None:
    """After fork: the thread that held the lock does not exist in the child."""
    global COMPILING
    COMPILING = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)

ABI_VERSION = 1  # of the argument words, the context and the artifact's JSON


class Program:
    """A function, lowered and loaded for a target; `compiled` is False when the code came from the disk."""

    def __init__(
        self, function: ir.Function, target: Target, artifact: Artifact, launchable: Launchable, compiled: bool
    ) -> None:
        self.function, self.target, self.artifact, self.launchable = function, target, artifact, launchable
        self.compiled = compiled


def compile_function(function: ir.Function, target: Target, facts: Mapping[str, Any]) -> Program:
    """A program for the target, specialised on facts ("aliased", "aligned16", "divisible16"; they become attrs of
    the function). Raises TileError for author errors, InternalError for everything else that goes wrong."""
    if facts:
        function = function.replace(attrs=function.attrs + tuple(sorted(facts.items())))
    backend = load_backend(target.name)
    _check_dtypes(function, target)
    store = cache.default_cache() if backend.capabilities(target).cacheable else None
    key, lines, artifact = _find(store, function, target, backend.version(target)) if store else ("", "", None)
    compiled = artifact is None
    if artifact is None:
        lowered = lower(function, target)
        artifact = _guarded("emit", lambda: backend.emit(lowered, target), lowered, backend.pipeline(target))
        if store and artifact.payload is None:
            named = artifact.sites or backend.capabilities(target).lines
            said = {"lines": lines or _lines(function)} if named else {}
            store.put(key, artifacts.to_json(artifact) | said, artifact.code)
    found = artifact
    return Program(function, target, found, _guarded("load", lambda: backend.load(found), function, ()), compiled)


def lower(function: ir.Function, target: Target) -> ir.Function:
    """The function after the target's passes: what its backend emits code for."""
    return run(function, load_backend(target.name).pipeline(target))


@dataclass(frozen=True)
class _Step:
    """A step behind the passes, named in a reproduction as if it were one."""

    name: str

    def __call__(self, function: ir.Function, /) -> ir.Function:
        return function


T = TypeVar("T")


def _guarded(name: str, step: Callable[[], T], function: ir.Function, passes: Sequence[Pass]) -> T:
    """What the step gives. TileErrors reach the author; anything else becomes an InternalError that names a file
    with the function as it was before the step."""
    try:
        return step()
    except Exception as e:
        if isinstance(e, TileError) and not isinstance(e, InternalError):
            raise
        place = save_repro(function, (*passes, _Step(name)), len(passes), e)
        if isinstance(e, InternalError):
            e.notes = (*e.notes, place)
            raise
        raise failed(f"{name} failed for", function, place, e) from e


def _check_dtypes(function: ir.Function, target: Target) -> None:
    able = load_backend(target.name).capabilities(target).dtypes
    for p in function.params:
        dtype = p.buffer.dtype if p.buffer is not None else p.var.dtype  # type: ignore[union-attr]
        if dtype.scalar.name not in able:
            raise TileNotImplementedError(
                f"target {target} does not have {dtype} yet (parameter {p.name} of {function.name})",
                p.loc or function.loc,
                help='target="numpy" has every type that this version knows',
            )


def _find(
    store: cache.DiskCache, function: ir.Function, target: Target, version: str
) -> tuple[str, str, Artifact | None]:
    """The code that is kept for it, with the key to keep new code under and the function's lines if they mattered.

    What names no lines serves every text that means the same. The first text whose code names lines has the plain
    key as well, the next ones have keys of their own.
    """
    from tiledsl.ir.fingerprint import fingerprint

    parts = (ABI_VERSION, fingerprint(function), str(target), version, VERSION)  # facts are attrs of the function
    key, lines = _hash(parts), ""
    found = store.get(key)
    if found is not None and "lines" in found[0]:
        lines = _lines(function)
        if found[0]["lines"] != lines:
            key = _hash((*parts, lines))
            found = store.get(key)
    return key, lines, _artifact(found)


def _artifact(found: tuple[dict[str, Any], bytes] | None) -> Artifact | None:
    try:
        return artifacts.from_json(*found) if found is not None else None
    except (KeyError, TypeError, ValueError, IndexError):
        return None  # written by another version with the same key: replaced


def _hash(parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _lines(function: ir.Function) -> str:
    """Identifies where the author wrote what: messages and generated text may name it."""
    places = [n.loc for n in (function, *function.buffers, *function.kernels)]
    places += [n.loc for k in function.kernels for n in walk(k)]
    return _hash(places)
