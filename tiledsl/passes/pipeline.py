"""Running passes over a function, with instruments around each; failures become InternalErrors with a repro file."""

from __future__ import annotations

import dataclasses
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import numpy as np

from tiledsl.errors import InternalError, TileError
from tiledsl.ir.stmt import Function

__all__ = ["Instrument", "Pass", "failed", "pass_text", "pipeline_text", "run", "save_repro"]


class Pass(Protocol):
    """A frozen dataclass whose fields are the options. `optional = True` (default False) says that the rest of
    the pipeline can do without it, so that a bisection may leave it out."""

    @property
    def name(self) -> str: ...

    def __call__(self, function: Function, /) -> Function: ...


class Instrument:
    """Something that watches a pipeline. Override what is needed; the base does nothing."""

    def wants(self, p: Pass, index: int) -> bool:
        """False leaves this pass out."""
        return True

    def after(self, p: Pass, index: int, before: Function, result: Function, seconds: float) -> None:
        """Called after each pass that ran."""


def pass_text(p: Pass) -> str:
    """`name{option=value}`, only options that differ from their defaults."""
    options = []
    fields: tuple[dataclasses.Field[Any], ...] = dataclasses.fields(p) if dataclasses.is_dataclass(p) else ()
    for f in fields:
        value = getattr(p, f.name)
        if value != f.default:
            options.append(f"{f.name}={_option(value)}")
    return f"{p.name}{{{', '.join(options)}}}" if options else p.name


def _option(value: Any) -> str:
    if isinstance(value, (frozenset, set)):
        return "{" + ", ".join(sorted(map(_option, value))) + "}"
    return str(value.name) if hasattr(value, "name") else repr(value)


def pipeline_text(passes: Iterable[Pass]) -> str:
    return ", ".join(map(pass_text, passes))


def run(function: Function, passes: Sequence[Pass], instruments: Sequence[Instrument] | None = None) -> Function:
    """The function after all passes.

    instruments: None takes those that the environment asks for (`instruments.from_environment`). TileErrors that
    a pass raises reach the author; anything else becomes an InternalError that names the pass and a repro file.
    """
    if instruments is None:
        from tiledsl.passes.instruments import from_environment

        instruments = from_environment(function)
    for index, p in enumerate(passes):
        if not all([i.wants(p, index) for i in instruments]):
            continue
        try:
            start = time.perf_counter()
            result = p(function)
            seconds = time.perf_counter() - start
            for i in instruments:
                i.after(p, index, function, result, seconds)
        except InternalError as e:
            e.notes = (*e.notes, f"in pass {pass_text(p)} ({save_repro(function, passes, index, e)})")
            raise
        except TileError:
            raise
        except Exception as e:
            place = save_repro(function, passes, index, e)
            raise failed(f"pass {pass_text(p)} failed on", function, place, e) from e
        function = result
    return function


def failed(what: str, function: Function, place: str, e: Exception) -> InternalError:
    """The error that reports another one, of a step on the function that should not have failed."""
    return InternalError(
        f"{what} {function.name}: {type(e).__name__}: {e}".splitlines()[0],
        function.loc,
        (place,),
        "this is a bug of tiledsl; please report it with that file",
    )


def save_repro(
    function: Function, passes: Sequence[Pass], index: int, error: BaseException, seed: int | None = None
) -> str:
    """Writes what is needed to see a failure of pass number `index` again: the IR before it as text, the pipeline,
    versions and seed. Returns the sentence that names the file; never raises."""
    from tiledsl.config import VERSION as __version__
    from tiledsl.ir.printer import to_text

    try:
        text = to_text(function)
    except Exception as e:  # a tree that cannot be printed is still worth a report
        text = f"# the function cannot be printed: {type(e).__name__}: {e}\n"
    trace = "".join(traceback.format_exception(error)).rstrip()
    facts = [
        f"A reproduction of an internal error of tiledsl {__version__}: the IR before pass {pass_text(passes[index])}.",
        f"pipeline: {pipeline_text(passes)} (this is number {index})",
        f"Python {sys.version.split()[0]}, NumPy {np.__version__}, {platform.platform()}; seed: {seed}",
        "",
        *trace.splitlines(),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", encoding="utf-8", prefix=f"tiledsl-repro-{passes[index].name}-", suffix=".py", delete=False
        ) as out:
            out.writelines(f"# {line}\n" for line in facts)
            out.write(text)
    except OSError as e:
        return f"no reproduction could be saved: {e}"
    return f"saved {out.name}"
