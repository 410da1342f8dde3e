"""Texts of kernels: f-strings are made while tracing, `print` of run-time values prints when the kernel runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tiledsl.errors import TileSyntaxError, TileTypeError
from tiledsl.frontend.builder import current
from tiledsl.frontend.location import error, here
from tiledsl.frontend.storage import BufferRef, RegionRef
from tiledsl.frontend.strictness import refuse
from tiledsl.frontend.values import Value, as_value
from tiledsl.ir import Debug

__all__ = ["StagedText", "check_text", "is_staged", "make_text", "print_values"]


_CONVERSIONS: dict[int, Callable[[Any], Any]] = {-1: lambda x: x, ord("s"): str, ord("r"): repr, ord("a"): ascii}


class StagedText(str):
    """An f-string that names run-time values: it shows how they are written, not what they are."""

    values: tuple[Any, ...] = ()


def is_staged(x: Any) -> bool:
    """x exists when the kernel runs."""
    return isinstance(x, (Value, BufferRef, RegionRef))


def make_text(parts: tuple[Any, ...]) -> str:
    """An f-string of texts and (value, conversion, format) triples."""
    found, staged = [], []
    for part in parts:
        if isinstance(part, str):
            found.append(part)
            continue
        value, conversion, form = part
        if is_staged(value):
            staged.append(value)
            found.append(repr(value))
        else:
            found.append(format(_CONVERSIONS[conversion](value), form))
    made = StagedText("".join(found))
    made.values = tuple(staged)
    return made if staged else str(made)


def check_text(what: str, text: Any) -> None:
    """Refuses to print a text that was to show run-time values."""
    if isinstance(text, StagedText):
        value = repr(text.values[0])
        refused = error(
            "text-of-values",
            TileTypeError,
            f"{what}: an f-string is made while the kernel is traced, and has no value of {value}",
            help=f'give the value itself: T.print({value}, msg="...")',
        )
        refuse(refused, f"it shows {str(text)!r}")


def print_values(args: tuple[Any, ...], options: dict[str, Any]) -> None:
    """Python's `print` with run-time values among its arguments: a line per block, texts first."""
    first = next((i for i, x in enumerate(args) if is_staged(x)), len(args))
    values = [x.buffer if isinstance(x, BufferRef) else x for x in args[first:]]
    late = next((x for x in values if isinstance(x, (str, RegionRef))), None)
    if options or late is not None:
        why = next(iter(options), "a slice" if isinstance(late, RegionRef) else "a text behind values")
        refused = error(
            "print-arguments",
            TileSyntaxError,
            f"print in a kernel takes texts, and then elements, scalars and tiles; not {why}",
            help='T.print(x, msg="...") prints a tile, a slice or a scalar',
        )
        refuse(refused, "it prints while the kernel is traced")
        print(*args, **options)
        return
    for x in args[:first]:
        check_text("print", x)
    shown = tuple(as_value(x, "print").typed if isinstance(x, Value) or not hasattr(x, "shape") else x for x in values)
    current("print").emit(Debug("print", shown, " ".join(map(str, args[:first])), loc=here()), "print")
